//! What READMEs of data sets mean, and which files patterns do.

use super::*;

/// As of openai/gsm8k, with more beside it.
const GSM8K: &str = "---
license: mit
dataset_info:
- config_name: main
  features:
  - name: question
    dtype: string
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: train
    path:
    - socratic/train-*
    - socratic/more.parquet
---

# GSM8K
configs:
";

fn files(patterns: &[&str]) -> Meant {
    Meant::Files(patterns.iter().map(|p| (*p).to_owned()).collect())
}

#[test]
fn configurations_say_which_files_are_meant() {
    let of = |part| meant(GSM8K, part, "train");
    assert_eq!(of(Some("main/train")), files(&["main/train-*"]));
    assert_eq!(of(Some("main")), files(&["main/train-*"]));
    assert_eq!(
        of(Some("socratic/train")),
        files(&["socratic/train-*", "socratic/more.parquet"])
    );
    assert_eq!(of(Some("main/evaluation")), files(&["main/test-*"]));
    let several = ["main/train", "socratic/train"].map(str::to_owned);
    assert_eq!(of(None), Meant::Several(several.to_vec()));
    assert_eq!(of(Some("train")), Meant::Several(several.to_vec()));
    let parts = ["main/train", "main/test", "socratic/train"].map(str::to_owned);
    assert_eq!(of(Some("socratic/test")), Meant::NoSplit(parts.to_vec()));
    // What it does not name is not taken by its name: that would be another configuration's file.
    for part in ["other/train", "train_sft", "socratic/test"] {
        assert_eq!(of(Some(part)), Meant::NoSplit(parts.to_vec()), "{part}");
    }
}

#[test]
fn one_configuration_is_the_default() {
    let of =
        |configs: &str, part, split| meant(&format!("---\nconfigs:\n{configs}---\n"), part, split);
    let two = "- config_name: a\n  data_files: a.csv\n- config_name: b\n  DEFAULTdata_files: [b.csv, c.csv]\n";
    let marked = two.replace("DEFAULT", "default: true\n  ");
    assert_eq!(of(&marked, None, "train"), files(&["b.csv", "c.csv"]));
    assert_eq!(of(&marked, Some("a"), "train"), files(&["a.csv"]));
    assert_eq!(
        of(&marked, None, "test"),
        Meant::NoSplit(vec!["a/train".to_owned(), "b/train".to_owned()])
    );
    let called = two
        .replace("DEFAULT", "")
        .replace("name: a", "name: default");
    assert_eq!(of(&called, None, "train"), files(&["a.csv"]));
    let one = "- config_name: x\n  data_files:\n  - {split: train_sft, path: d/s-*}\n";
    assert_eq!(of(one, Some("train_sft"), "train"), files(&["d/s-*"]));
    let dir = "- config_name: x\n  data_dir: en/\n";
    assert_eq!(
        of(dir, Some("x/dev"), "train"),
        Meant::Names("en/dev".to_owned())
    );
    let both = "- config_name: x\n  data_dir: en\n  data_files: '*.json'\n";
    assert_eq!(of(both, None, "train"), files(&["en/*.json"]));
}

fn of(configs: &str, part: Option<&str>) -> Meant {
    meant(&format!("---\nconfigs:\n{configs}---\n"), part, "train")
}

/// The default is one of all entries, also of those that name no files, and an odd entry is no reason to take others.
#[test]
fn what_is_not_understood_is_not_passed_over() {
    let odd = "- config_name: a\n  data_files: {train: a.csv}\n";
    let good = "- config_name: b\n  data_files: b.csv\n";
    let both = format!("{odd}{good}");
    let is_odd = |meant: Meant, word: &str| match meant {
        Meant::Odd(why) => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}"),
    };
    is_odd(of(odd, None), "a: data_files");
    is_odd(of(&both, Some("a")), "a: data_files");
    assert_eq!(of(&both, Some("b")), files(&["b.csv"]));
    assert_eq!(of(&both, None), Meant::Several(vec!["b/train".to_owned()]));
    let first = both.replace("name: a\n", "name: a\n  default: true\n");
    is_odd(of(&first, None), "a: data_files");
    is_odd(of(&first, Some("train")), "a: data_files");
    is_odd(of("- data_files: a.csv\n", None), "entry 1");
    is_odd(of("- 3\n", None), "entry 1");
    // The only one with files is not the only one.
    let bare = format!("- config_name: a\n{good}");
    assert_eq!(
        of(&bare, None),
        Meant::Several(vec!["a/train".to_owned(), "b/train".to_owned()])
    );
    let marked = bare.replace("name: a\n", "name: a\n  default: true\n");
    assert_eq!(of(&marked, None), Meant::Names("train".to_owned()));
    let dirs = "- config_name: a\n  data_dir: x\n- config_name: 2024\n  data_dir: ./y/\n";
    assert_eq!(
        of(dirs, None),
        Meant::Several(vec!["a/train".to_owned(), "2024/train".to_owned()])
    );
    assert_eq!(of(dirs, Some("2024")), Meant::Names("y/train".to_owned()));
}

#[test]
fn an_untrusted_readme_reaches_nothing_else() {
    for path in [
        "../x/*.csv",
        "/etc/passwd",
        "--include=x",
        "a//b.csv",
        "hf://x/y.csv",
        "a/./b",
        "**/**/**/b.csv",
    ] {
        let one = format!("- config_name: x\n  data_files: '{path}'\n");
        let why = format!("x: {path:?} is no path of the repository");
        assert_eq!(of(&one, None), Meant::Odd(why));
    }
    for dir in ["..", "/etc", "-x"] {
        let one = format!("- config_name: x\n  data_dir: '{dir}'\n");
        assert!(matches!(of(&one, None), Meant::Odd(_)), "{dir}");
    }
    let many = "  - a.csv\n".repeat(PATTERNS + 1);
    let many = format!("- config_name: x\n  data_files:\n{many}");
    assert!(matches!(of(&many, None), Meant::Odd(_)));
    for text in [
        "",
        "---\n",
        "no front matter",
        "---\n- a\n---\n",
        "---\nconfigs: []\n---\n",
        "---\nconfigs:\n---\n",
        "---\nlicense: [\n---\n",
        "---\nconfigs: 3\n---x\n",
    ] {
        assert_eq!(meant(text, None, "train"), Meant::Nothing, "{text}");
    }
    for text in ["---\nconfigs: 3\n---\n", "---\nconfigs: [\n---\n"] {
        assert!(
            matches!(meant(text, None, "train"), Meant::Odd(_)),
            "{text}"
        );
    }
    // The front matter ends at a line of its own, and may begin behind empty ones.
    let text =
        "\n \n---\r\na: |\n  x\n---a: 1\nconfigs:\n- config_name: x\n  data_files: a.csv\n---\n";
    assert_eq!(meant(text, None, "train"), files(&["a.csv"]));
}

/// All shards of a set are meant by a pattern, and one by its own name.
#[test]
fn shards_are_whole_by_their_sets() {
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let found = |all: &[PathBuf], like: &[&str]| {
        let like: Vec<String> = like.iter().map(|p| (*p).to_owned()).collect();
        let files = matching(all, &like)?;
        Ok(files.iter().map(|f| f.display().to_string()).collect())
    };
    let names = |names: &[&str]| -> Result<Vec<String>, String> {
        Ok(names.iter().map(|n| (*n).to_owned()).collect())
    };
    let lacks = |set: &str| -> Result<Vec<String>, String> { Err(set.to_owned()) };
    let two = [
        "en/train-00000-of-00002-ab.parquet",
        "en/train-00001-of-00002-cd.parquet",
        "fr/train-00000-of-00001.parquet",
    ];
    let all = paths(&two);
    assert_eq!(found(&all, &["*/train-*"]), names(&two));
    assert_eq!(
        found(&all, &["en/train-00000*", "*/train-00001*"]),
        names(&two[..2])
    );
    assert_eq!(found(&all, &[two[1]]), names(&two[1..2]));
    // A wildcard that means some of them.
    assert_eq!(found(&all, &["en/train-00000*"]), names(&two[..1]));
    let three = paths(&["b/x-00001-of-00003.csv", "b/x-00003-of-00003.csv"]);
    let last = "b/x-00003-of-00003.csv";
    assert_eq!(found(&three[1..], &["**/*3-of*"]), names(&[last]));
    for like in ["b/x-0000[23]*", "b/*", "b/x-*2-of*"] {
        let found = found(&three, &[like, last]);
        assert!(found.is_err(), "{like}: {found:?}");
    }
    // As few as a pattern means are not all that it means, however many there are said to be.
    let vast = paths(&["x-0-of-99999999999999999999.csv", "x-0-of-9999999999.csv"]);
    assert!(found(&vast[1..], &["x-0*"]).is_err());
    assert!(found(&vast, &["x-*"]).is_err());
    assert_eq!(found(&all, &[two[1], two[0]]), names(&[two[1], two[0]]));
    let set = "en/train-*-of-00002*.parquet";
    assert_eq!(found(&all[1..], &["*/train-*"]), lacks(set));
    assert_eq!(found(&all[..1], &["en/*", two[0]]), lacks(set));
    assert_eq!(found(&all, &["de/*"]), lacks("de/*"));
    assert_eq!(found(&all, &["*/train-*", two[0]]), names(&two));
    // Of the same numbers, in another format.
    let mixed = paths(&["x-0-of-2.csv", "x-1-of-2.json"]);
    assert!(found(&mixed, &["*"]).is_err());
}

#[test]
fn patterns_are_asked_for_as_the_program_takes_them() {
    let asked = |pattern| with_and_without(pattern).join(" ");
    assert_eq!(asked("a/*.csv"), "a/*.csv");
    assert_eq!(asked("**/a.csv"), "**/a.csv a.csv");
    assert_eq!(asked("x/**/y/**/*"), "x/**/y/**/* x/**/y/* x/y/**/* x/y/*");
    for (pattern, may) in [
        ("a/train-*", true),
        ("**", true),
        ("a.csv", true),
        ("v1.0-*", true),
        ("*.[cj]s*", true),
        ("*.parquet", true),
        ("*.arrow", false),
        ("*.json.gz", false),
        ("data/train", false),
    ] {
        assert_eq!(may_be_data(pattern), may, "{pattern}");
    }
}

#[test]
fn patterns_are_those_of_a_shell() {
    for (path, pattern, want) in [
        ("main/train-0.parquet", "main/train-*", true),
        ("main/train-0.parquet", "*", false),
        ("main/train-0.parquet", "**", true),
        ("main/train-0.parquet", "**/train-*", true),
        ("train-0.parquet", "**/train-*", true),
        ("a/b/c.csv", "a/*.csv", false),
        ("a/b/c.csv", "a/**/*.csv", true),
        ("xtrain-0", "**/train-*", false),
        ("a1.csv", "a?.csv", true),
        ("a/.csv", "a?.csv", false),
        ("a1.csv", "a[0-9].csv", true),
        ("ab.csv", "a[!0-9].csv", true),
        ("ab.csv", "a[0-9].csv", false),
        ("a.csv", "a.csv", true),
        ("a.csvx", "a.csv", false),
        ("", "*", true),
    ] {
        assert_eq!(is_like(Path::new(path), pattern), want, "{path} {pattern}");
    }
}
