//! What the documents name is there: tests, keys, other trainers' keys.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::common::{answer, root};
use lowtide_config::{KEYS, Run, SECTIONS, axolotl_keys, elsewhere};

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Names of all functions in the sources below a folder.
fn functions(dir: &Path, names: &mut HashSet<String>) {
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            let names_of = text.split("fn ").skip(1).map(|rest| {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                rest[..end.unwrap_or(rest.len())].to_owned()
            });
            names.extend(names_of);
        }
    }
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn each_answer_names_a_test_that_is_there() {
    let faq = read("docs/faq.md");
    let mut names = HashSet::new();
    functions(&root().join("crates"), &mut names);
    let (questions, _) = faq.split_once("## And these").expect("two parts");
    let each: Vec<&str> = questions
        .split("\n")
        .filter(|l| l.starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    assert_eq!(each.len(), 20);
    let mut n = 0;
    for name in quoted(questions) {
        let test = name.matches('_').count() >= 3
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        assert!(!test || names.contains(name), "no test {name}");
        n += usize::from(test);
    }
    assert!(n >= 25, "{n} tests named");
}

#[test]
fn the_table_of_other_trainers_keys_is_that_of_import() {
    let page = read("docs/coming-from.md");
    let known = axolotl_keys();
    let data = ["datasets", "test_datasets"];
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|l| l.starts_with("| `"))
        .map(|l| l.split('|').skip(1).collect())
        .collect();
    assert!(rows.len() > 20);
    for row in rows {
        let ours = quoted(row[0]);
        for key in &ours {
            let is = KEYS.iter().any(|k| k.name == *key) || SECTIONS.iter().any(|s| s.0 == *key);
            assert!(is, "{key} is no key");
        }
        for theirs in quoted(row[1]) {
            let found = known.iter().find(|(name, _)| *name == theirs);
            let named = elsewhere(theirs).is_some() || theirs.contains(' ');
            assert!(
                found.is_some() || named || data.contains(&theirs),
                "{theirs} is not imported"
            );
            // What it is taken over to is what the table says.
            if let Some((_, to)) = found
                && KEYS.iter().any(|k| k.name == *to)
            {
                assert!(ours.contains(to), "{theirs} becomes {to}");
            }
        }
    }
}

#[test]
fn a_run_file_of_axolotl_is_printed_as_one_of_ours() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("axolotl.yaml");
    fs::write(
        &file,
        "base_model: m\ndatasets: [{path: d.jsonl, type: alpaca}]\nadapter: lora\n",
    )
    .expect("written");
    let (code, answered) = answer(&["import", file.to_str().expect("text")]);
    assert_eq!(code, 0, "{answered}");
    assert_eq!(answered["dropped"][0]["key"], "adapter: lora");
    let yaml = answered["yaml"].as_str().expect("text");
    assert!(
        yaml.contains("#   adapter: lora: lowtide trains all parameters"),
        "{yaml}"
    );
    let run = dir.path().join("run.yaml");
    fs::write(&run, yaml).expect("written");
    let run = Run::load(&run, &[]).expect("a run file");
    assert_eq!(run.data.train[0].path, dir.path().join("d.jsonl"));
    let (code, answered) = answer(&[
        "import",
        dir.path().join("none.yaml").to_str().expect("text"),
    ]);
    assert_eq!(code, 2, "{answered}");
}
