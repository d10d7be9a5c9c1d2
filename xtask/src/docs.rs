//! Documents name things that exist: files by their path, tests as `crate/name_of_the_test`.

use std::fs;
use std::path::Path;

use crate::edges::EDGES;
use crate::sources::Source;

/// Documents that are checked.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "STYLE.md",
    "CHANGELOG.md",
    "bench/RESULTS.md",
    "docs/checkpoints.md",
    "docs/coming-from.md",
    "docs/disk.md",
    "docs/faq.md",
    "docs/formats.md",
    "docs/gpus.md",
    "docs/guide.md",
    "docs/journal.md",
    "docs/measured.md",
    "docs/models.md",
    "docs/numerics.md",
    "docs/papers.md",
    "docs/plan.md",
    "docs/python.md",
];

/// Folders whose paths are checked.
const FOLDERS: &[&str] = &[
    "crates/",
    "docs/",
    "examples/",
    "reference/",
    "bench/",
    "xtask/",
    ".ci/",
];

/// Paths and tests that documents name and that are not there.
pub fn check(root: &Path, files: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for name in DOCUMENTS {
        match fs::read_to_string(root.join(name)) {
            Ok(text) => findings.extend(missing(root, files, name, &text)),
            Err(e) => findings.push(format!("{name}: {e}")),
        }
    }
    findings
}

fn missing(root: &Path, files: &[Source], name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    // Every second piece between backticks is code; fenced blocks come out as further pieces.
    let code = text.split('`').skip(1).step_by(2);
    let links = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let in_folder = |word: &&str| FOLDERS.iter().any(|f| word.starts_with(f));
    let is_path = |word: &&str| !word.contains(['*', '<', '{', '$']);
    let words = code.flat_map(str::split_whitespace).filter(in_folder);
    let local = links.filter(|l| !l.starts_with("http") && !l.starts_with('#'));
    for word in words.chain(local).filter(is_path) {
        let path = word
            .split('#')
            .next()
            .unwrap_or(word)
            .trim_end_matches([',', ';', '.']);
        let folder = root.join(name);
        let beside = folder.parent().expect("a document has a folder");
        if !root.join(path).exists() && !beside.join(path).exists() {
            findings.push(format!("{name}: {path} does not exist"));
        }
    }
    for word in text.split('`').skip(1).step_by(2) {
        let Some((package, test)) = word.split_once('/') else {
            continue;
        };
        let is_name =
            |t: &str| t.contains('_') && t.chars().all(|c| c == '_' || c.is_alphanumeric());
        if !EDGES.iter().any(|(n, _)| *n == package) || !is_name(test) {
            continue;
        }
        let define = format!("fn {test}(");
        if !files
            .iter()
            .any(|f| f.package() == package && f.code.contains(&define))
        {
            findings.push(format!("{name}: there is no test {word}"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::rust_files;

    #[test]
    fn documents_name_what_exists() {
        let root = crate::root();
        crate::assert_none(&check(&root, &rust_files(&root)));
    }

    #[test]
    fn planted_names_are_found() {
        let root = crate::root();
        let files = [Source::new(
            "crates/units/src/lib.rs".into(),
            "fn a_test() {}".into(),
        )];
        let text = "`xtask/src/main.rs` [x](xtask/Cargo.toml) [y](https://a.b) `units/a_test` `a/b_c` \
                    `crates/*/src`";
        assert_eq!(missing(&root, &files, "README.md", text), [""; 0]);
        let text = "`xtask/src/none.rs` [x](none.md) `units/no_test`";
        assert_eq!(missing(&root, &files, "README.md", text).len(), 3);
    }
}
