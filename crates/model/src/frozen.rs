//! Which parameters are not trained, from patterns of names as a Hugging Face checkpoint has them.

use std::collections::HashSet;

use lowtide_units::List;
use lowtide_workload::{ModelShape, ParamId};

use crate::ModelError;
use crate::params::{Spec, specs};

/// The parameters that are not trained, by index, ascending: those of which a pattern of `freeze` and none of
/// `unfreeze` is the name.
///
/// A pattern is a tensor's name, in which `*` stands for any run of characters and `?` for one; a name that ends
/// before a dot stands for everything below it (`model.layers.0` for the whole first block).
///
/// # Errors
/// [`ModelError::NothingLike`] for a pattern that fits no tensor, [`ModelError::Partly`] when tensors that are fused
/// into one parameter (queries, keys and values; gate and up) are not frozen together,
/// [`ModelError::NothingTrained`].
pub fn frozen(
    shape: &ModelShape,
    freeze: &[String],
    unfreeze: &[String],
) -> Result<Vec<ParamId>, ModelError> {
    let specs = specs(shape);
    known(&specs, "train.freeze", freeze)?;
    known(&specs, "train.unfreeze", unfreeze)?;
    let any = |patterns: &[String], name: &str| patterns.iter().any(|p| covers(p, name));
    let is_frozen = |name: &str| any(freeze, name) && !any(unfreeze, name);
    let mut all = Vec::new();
    for (i, spec) in specs.pairs() {
        let names = spec.parts.iter().map(|(name, _)| name);
        let (frozen, trained): (Vec<_>, Vec<_>) = names.partition(|name| is_frozen(name));
        if let ([frozen, ..], [trained, ..]) = (&frozen[..], &trained[..]) {
            return Err(ModelError::Partly {
                frozen: (*frozen).clone(),
                trained: (*trained).clone(),
            });
        }
        if trained.is_empty() {
            all.push(i);
        }
    }
    match all.len() == specs.len() {
        true => Err(ModelError::NothingTrained),
        false => Ok(all),
    }
}

/// Whether each pattern of a key of the run file names a tensor.
pub(crate) fn known<'p>(
    specs: &List<ParamId, Spec>,
    key: &'static str,
    patterns: impl IntoIterator<Item = &'p String>,
) -> Result<(), ModelError> {
    for pattern in patterns {
        let mut names = specs.iter().flat_map(|s| &s.parts);
        if !names.any(|(name, _)| covers(pattern, name)) {
            return Err(ModelError::NothingLike {
                key,
                pattern: pattern.clone(),
                names: examples(specs),
            });
        }
    }
    Ok(())
}

/// Whether a pattern is the name, or that of something above it.
pub(crate) fn covers(pattern: &str, name: &str) -> bool {
    let ends = name.match_indices('.').map(|(i, _)| i);
    let mut heads = ends.map(|i| &name[..i]).chain([name]);
    heads.any(|head| matches(pattern.as_bytes(), head.as_bytes()))
}

/// Whether a pattern with `*` and `?` is all of a text. Goes back to the last `*` only, which is enough: what stood
/// before it has matched as early as it can.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((behind, from)) => {
                    star = Some((behind, from + 1));
                    (p, t) = (behind, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Names to choose from: of those that differ in numbers only, which are those of blocks and of experts, the first.
fn examples(specs: &List<ParamId, Spec>) -> Vec<String> {
    let mut seen = HashSet::new();
    let names = specs.iter().flat_map(|s| &s.parts).map(|(name, _)| name);
    let first = |name: &&String| {
        let is_number = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
        let parts = name
            .split('.')
            .map(|part| if is_number(part) { "0" } else { part });
        seen.insert(parts.collect::<Vec<_>>().join("."))
    };
    names.filter(first).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_they_should() {
        for (pattern, name, want) in [
            ("model.norm.weight", "model.norm.weight", true),
            ("model.norm", "model.norm.weight", true),
            ("model.nor", "model.norm.weight", false),
            ("model.layers.1", "model.layers.1.mlp.up_proj.weight", true),
            (
                "model.layers.1",
                "model.layers.11.mlp.up_proj.weight",
                false,
            ),
            (
                "model.layers.?",
                "model.layers.11.mlp.up_proj.weight",
                false,
            ),
            ("*", "lm_head.weight", true),
            ("*norm*", "model.layers.0.input_layernorm.weight", true),
            ("*.mlp.*_proj", "model.layers.0.mlp.up_proj.weight", true),
            ("*.bias", "model.layers.0.mlp.up_proj.weight", false),
            ("**a*b", "xxaxxabxb", true),
            ("", "x", false),
        ] {
            assert_eq!(covers(pattern, name), want, "{pattern} {name}");
        }
        // Time does not grow with the ways in which stars could match.
        let pattern = "*a".repeat(200) + "b";
        assert!(!matches(pattern.as_bytes(), &[b'a'; 5000]));
    }
}
