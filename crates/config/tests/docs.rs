//! Documents say what the code does: the page of keys, and the run files that are shown.

use std::fs;
use std::path::Path;

use lowtide_config::{Run, reference_markdown};

fn document(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .canonicalize()
        .expect("this package's folder");
    fs::read_to_string(root.join("../..").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// After a change of a key: `lowtide schema --markdown > docs/run-file.md`.
#[test]
fn the_page_of_keys_is_up_to_date() {
    let (page, written) = (reference_markdown(), document("docs/run-file.md"));
    let line = page.lines().zip(written.lines()).position(|(a, b)| a != b);
    assert!(
        page.trim_end() == written.trim_end(),
        "docs/run-file.md is out of date, from line {line:?} (counted from 0)"
    );
}

/// What a document shows as YAML.
fn yaml(document: &str) -> Vec<&str> {
    document
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}

#[test]
fn run_files_in_the_readme_are_ready_to_train() {
    let readme = document("README.md");
    let files = yaml(&readme);
    assert!(!files.is_empty(), "README.md shows no run file");
    for text in files {
        let run =
            Run::parse(text, "README.md", Path::new("/"), &[]).unwrap_or_else(|e| panic!("{e}"));
        run.training_ready().unwrap_or_else(|e| panic!("{e}"));
    }
}

/// They have no model: it stands in the guide's run file.
#[test]
fn parts_of_run_files_in_the_guide_are_read() {
    let guide = document("docs/guide.md");
    let parts = yaml(&guide);
    assert!(parts.len() >= 3, "{} parts", parts.len());
    for part in parts {
        let text = format!("model:\n  path: m\n{part}");
        let run = Run::parse(&text, "docs/guide.md", Path::new("/"), &[]);
        let run = run.unwrap_or_else(|e| panic!("{e}"));
        assert!(!run.data.train.is_empty(), "{part}");
    }
}
