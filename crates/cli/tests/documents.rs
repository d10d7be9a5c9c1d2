//! What the documents name is there: tests, keys, other trainers' keys, commands and their flags. The guide can be
//! followed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use crate::common::{answer, complaint, lowtide, root};
use lowtide_config::{KEYS, Run, SECTIONS, axolotl_keys, elsewhere};
use serde_json::Value;

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

/// Lines of a page's blocks of commands that begin with `lowtide`, without their comments.
fn commands(page: &str) -> Vec<&str> {
    let blocks = page.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|rest| rest.split("```").next().unwrap_or_default().lines());
    lines
        .filter(|line| line.starts_with("lowtide "))
        .map(|line| line.split(" #").next().unwrap_or(line))
        .collect()
}

#[test]
fn commands_that_pages_show_have_their_flags_and_keys() {
    let pages = [
        "README.md",
        "docs/checkpoints.md",
        "docs/disk.md",
        "docs/gpus.md",
        "docs/guide.md",
        "docs/measured.md",
        "docs/models.md",
        "docs/python.md",
    ];
    let pages = pages.map(|name| (name, read(name)));
    let mut helps: HashMap<Vec<&str>, String> = HashMap::new();
    let mut n = 0;
    for (name, page) in &pages {
        for line in commands(page) {
            n += 1;
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
            let command: Vec<&str> = words.iter().copied().take_while(plain).collect();
            let help = helps.entry(command).or_insert_with_key(|command| {
                let output = lowtide(command).arg("--help").output();
                let output = output.expect("the binary starts");
                assert!(output.status.success(), "{name}: {line}");
                String::from_utf8_lossy(&output.stdout).into_owned()
            });
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let mut known = help.split([' ', ',', '\n']);
                assert!(known.any(|word| word == *flag), "{name}: {line}: {flag}");
            }
            for pair in words.windows(2).filter(|pair| pair[0] == "--set") {
                let key = pair[1].split('=').next().unwrap_or_default();
                assert!(KEYS.iter().any(|k| k.name == key), "{name}: {line}: {key}");
            }
        }
    }
    assert!(n >= 25, "{n} commands");
}

/// Files that a page's commands write: `cat > NAME <<'EOF'`, their lines, `EOF`.
fn written(page: &str) -> Vec<(&str, &str)> {
    let files = page.split("cat > ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once(" <<'EOF'\n")?;
        Some((name, rest.split_once("EOF\n")?.0))
    });
    files.collect()
}

#[test]
fn the_guide_can_be_followed() {
    let guide = read("docs/guide.md");
    // As in a clone: its examples, and beside them the folder that the guide makes.
    let dir = tempfile::tempdir().expect("a folder");
    let examples = root().join("examples").canonicalize().expect("examples");
    std::os::unix::fs::symlink(examples, dir.path().join("examples")).expect("a link");
    let mine = dir.path().join("mine");
    fs::create_dir(&mine).expect("a folder");
    let here = |args: &[&str], code: i32| -> Value {
        let output = lowtide(args).arg("--json").current_dir(&mine).output();
        let output = output.expect("the binary starts");
        let said = complaint(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{args:?}: {e}: {last}"))
    };
    let files = written(&guide);
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["chats.jsonl", "test.jsonl", "run.yaml"]);
    for (name, text) in files {
        fs::write(mine.join(name), text).expect("written");
    }

    // What it says of these data.
    let set = here(&["data", "run.yaml"], 0)["data"]["sets"][0].clone();
    let [examples, tokens, supervised, rows] = ["examples", "tokens", "supervised", "rows"]
        .map(|key| set[key].as_u64().expect("a number"));
    for said in [
        format!("`{examples} examples of {tokens} tokens, {supervised} of them trained on`"),
        format!("`{rows} rows an epoch, "),
    ] {
        assert!(guide.contains(&said), "the guide does not say {said}");
    }

    // Each form of data is read.
    let forms: Vec<&str> = guide.split("```jsonl\n").skip(1).collect();
    assert_eq!(forms.len(), 5);
    for form in forms {
        let record = form.split("```").next().unwrap_or_default();
        fs::write(mine.join("form.jsonl"), record).expect("written");
        let look = ["data", "run.yaml", "--set", "data.train=form.jsonl"];
        let alone = ["--set", "data.eval=", "--set", "eval.every_steps=0"];
        let seen = here(&[look.as_slice(), &alone].concat(), 0);
        assert_eq!(seen["data"]["sets"][0]["examples"], 1, "{record}");
    }

    // The plan fits, and the budgets that the guide refuses are refused with some that do.
    let plan = [
        "plan",
        "run.yaml",
        "--machine",
        "../examples/machines/h200.json",
        "--set",
        "device=cpu",
    ];
    assert_eq!(here(&plan, 0)["fits"], true);
    let small = ["--set", "budget.device=4MiB", "--set", "budget.host=4MiB"];
    assert!(guide.contains(&format!("lowtide plan run.yaml {}", small.join(" "))));
    let refused = here(&[plan.as_slice(), &small].concat(), 2);
    assert!(refused["nearest"]["device"].is_u64(), "{refused}");
}
