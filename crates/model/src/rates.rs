//! Which parameters have a learning rate or a decay of their own, from patterns of names.

use lowtide_workload::{ModelShape, ParamId};

use crate::ModelError;
use crate::frozen::{covers, known};
use crate::params::{Spec, specs};

/// How a parameter's update differs from those of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// What the run's learning rate is multiplied with.
    pub share: f64,
    /// Its decay, whether it is a vector or a matrix; `None`: the run's, if it is a matrix.
    pub weight_decay: Option<f64>,
}

/// Tensors that have one [`Rate`].
#[derive(Clone, Debug, PartialEq)]
pub struct RateGroup {
    /// Patterns of their names, as [`crate::frozen`] has them.
    pub names: Vec<String>,
    /// What they have.
    pub rate: Rate,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            share: 1.0,
            weight_decay: None,
        }
    }
}

/// Whether every pattern names a tensor of a model, tensors that are fused in one parameter are of one group, and each
/// group decides something: of a tensor that is trained it is the first.
///
/// # Errors
/// [`ModelError::NothingLike`], [`ModelError::Split`], [`ModelError::NoEffect`].
pub fn check_rates(
    shape: &ModelShape,
    groups: &[RateGroup],
    frozen: &[ParamId],
) -> Result<(), ModelError> {
    if groups.is_empty() {
        return Ok(());
    }
    let specs = specs(shape);
    known(
        &specs,
        "optimizer.groups",
        groups.iter().flat_map(|g| &g.names),
    )?;
    for spec in specs.iter() {
        let mut names = spec.parts.iter().map(|(name, _)| name);
        let Some(first) = names.next() else { continue };
        if let Some(other) = names.find(|name| group_of(groups, name) != group_of(groups, first)) {
            return Err(ModelError::Split {
                one: first.clone(),
                other: other.clone(),
            });
        }
    }
    let all = (0..).map(ParamId).zip(groups_of(shape, groups));
    let used: Vec<Option<usize>> = all
        .filter(|(p, _)| !frozen.contains(p))
        .map(|(_, group)| group)
        .collect();
    match (0..groups.len()).find(|&g| !used.contains(&Some(g))) {
        None => Ok(()),
        Some(g) => Err(ModelError::NoEffect {
            names: groups[g].names.join(", "),
        }),
    }
}

/// Of each parameter the group that its first tensor is in.
pub(crate) fn groups_of(shape: &ModelShape, groups: &[RateGroup]) -> Vec<Option<usize>> {
    let of = |spec: &Spec| spec.parts.first().and_then(|p| group_of(groups, &p.0));
    specs(shape).iter().map(of).collect()
}

/// The first group that names a tensor.
fn group_of(groups: &[RateGroup], name: &str) -> Option<usize> {
    let names = |g: &RateGroup| g.names.iter().any(|pattern| covers(pattern, name));
    groups.iter().position(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(names: &[&str], share: f64) -> RateGroup {
        let weight_decay = None;
        RateGroup {
            names: names.iter().map(|&n| n.to_owned()).collect(),
            rate: Rate {
                share,
                weight_decay,
            },
        }
    }

    #[test]
    fn the_first_group_that_names_a_tensor_holds() {
        let shape = ModelShape::builtin("qwen2.5-0.5b").expect("built in");
        let groups = [
            group(&["model.layers.0", "*norm*"], 0.5),
            group(&["model.layers"], 2.0),
        ];
        check_rates(&shape, &groups, &[]).expect("names of tensors");
        let of = groups_of(&shape, &groups);
        for (group, spec) in of.iter().zip(specs(&shape).iter()) {
            let name = &spec.parts[0].0;
            let want = match name {
                n if n.starts_with("model.layers.0.") || n.contains("norm") => Some(0),
                n if n.starts_with("model.layers.") => Some(1),
                _ => None,
            };
            assert_eq!(*group, want, "{name}");
        }
    }

    #[test]
    fn names_of_nothing_and_halves_of_one_matrix_are_refused() {
        let shape = ModelShape::builtin("qwen2.5-0.5b").expect("built in");
        let with = |name| check_rates(&shape, &[group(&[name], 0.5)], &[]);
        assert!(matches!(
            with("model.layer"),
            Err(ModelError::NothingLike { .. })
        ));
        for name in ["*.q_proj", "*.gate_proj.weight"] {
            assert!(
                matches!(with(name), Err(ModelError::Split { .. })),
                "{name}"
            );
        }
        assert!(with("*.down_proj").is_ok());
    }

    #[test]
    fn a_group_that_decides_nothing_is_refused() {
        let shape = ModelShape::builtin("qwen2.5-0.5b").expect("built in");
        let table = group(&["model.embed_tokens"], 0.5);
        let later = group(&["model.embed_*"], 2.0);
        for (groups, frozen) in [
            (vec![table.clone()], vec![ParamId(0)]),
            (vec![table.clone(), later], Vec::new()),
        ] {
            let checked = check_rates(&shape, &groups, &frozen);
            assert!(
                matches!(checked, Err(ModelError::NoEffect { .. })),
                "{checked:?}"
            );
        }
        assert!(check_rates(&shape, &[table], &[ParamId(1)]).is_ok());
    }
}
