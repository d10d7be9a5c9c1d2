//! Which files of a data set are meant, on folders as the cache has them.

use super::*;

fn snapshot(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    dir
}

fn files(dir: &tempfile::TempDir, names: &[&str]) -> Picked {
    Picked::Files {
        files: names.iter().map(|n| dir.path().join(n)).collect(),
        by_name: true,
    }
}

#[test]
fn splits_are_told_by_words_in_names_of_files_and_folders() {
    let plain = snapshot(&[
        "README.md",
        "dataset_infos.json",
        "train.jsonl",
        "dev.jsonl",
    ]);
    assert_eq!(pick(plain.path(), "train"), files(&plain, &["train.jsonl"]));
    assert_eq!(
        pick(plain.path(), "validation"),
        files(&plain, &["dev.jsonl"])
    );
    assert_eq!(pick(plain.path(), "dev"), files(&plain, &["dev.jsonl"]));
    assert_eq!(
        pick(plain.path(), "test"),
        Picked::Nothing(vec!["dev".to_owned(), "train".to_owned()])
    );
    assert_eq!(
        pick(plain.path(), "dev.jsonl"),
        files(&plain, &["dev.jsonl"])
    );
    // One folder about it is no question; two are.
    let shards = [
        "data/train-00000-of-00002-ab12.parquet",
        "data/train-00001-of-00002-cd34.parquet",
        "data/test-00000-of-00001.parquet",
    ];
    let data = snapshot(&shards);
    assert_eq!(pick(data.path(), "train"), files(&data, &shards[..2]));
    assert_eq!(pick(data.path(), "data/test"), files(&data, &shards[2..]));
    let two = snapshot(&[
        "main/train-00000-of-00001.parquet",
        "socratic/train-00000-of-00001.parquet",
    ]);
    assert_eq!(
        pick(two.path(), "train"),
        Picked::Several(vec!["main/train".to_owned(), "socratic/train".to_owned()])
    );
    assert_eq!(
        pick(two.path(), "main/train"),
        files(&two, &["main/train-00000-of-00001.parquet"])
    );
    let folders = snapshot(&["train/a.csv", "train/b.csv", "test/a.csv"]);
    assert_eq!(
        pick(folders.path(), "train"),
        files(&folders, &["train/a.csv", "train/b.csv"])
    );
    // Where no file says, all are the training split; a word within a word says nothing.
    let alone = snapshot(&["constraints.json"]);
    assert_eq!(
        pick(alone.path(), "train"),
        Picked::Files {
            files: vec![alone.path().join("constraints.json")],
            by_name: false
        }
    );
    assert_eq!(
        pick(alone.path(), "test"),
        Picked::Nothing(vec!["train".to_owned()])
    );
    // Two sets of one split are a question, and each has a name.
    let tuned = snapshot(&[
        "data/train_gen-00000-of-00001.parquet",
        "data/train_sft-00000-of-00002.parquet",
        "data/train_sft-00001-of-00002.parquet",
    ]);
    assert_eq!(
        pick(tuned.path(), "train"),
        Picked::Several(vec![
            "data/train_gen".to_owned(),
            "data/train_sft".to_owned()
        ])
    );
    let sft = [
        "data/train_sft-00000-of-00002.parquet",
        "data/train_sft-00001-of-00002.parquet",
    ];
    assert_eq!(pick(tuned.path(), "train_sft"), files(&tuned, &sft));
    assert_eq!(pick(tuned.path(), "data/train_sft"), files(&tuned, &sft));
    let numbered = snapshot(&["Train-1.jsonl", "Train-2.jsonl"]);
    assert_eq!(
        pick(numbered.path(), "train"),
        files(&numbered, &["Train-1.jsonl", "Train-2.jsonl"])
    );
}

#[test]
fn what_is_asked_for_is_data_alone() {
    let like = |text: &str| Pattern::Like(text.to_owned());
    assert_eq!(
        patterns("main/train"),
        [
            like("main/*[Tt]rain*.[jpct][sa][orv]*"),
            like("main/*.[jpct][sa][orv]*")
        ]
    );
    assert_eq!(
        patterns("test"),
        [
            like("*[Tt]est*.[jpct][sa][orv]*"),
            like("*[Ee]val*.[jpct][sa][orv]*")
        ]
    );
    assert_eq!(
        patterns("train_sft"),
        [like("*train_sft*.[jpct][sa][orv]*")]
    );
    assert_eq!(patterns("a/b.csv"), [Pattern::File("a/b.csv".to_owned())]);
}

#[test]
fn a_part_of_the_shards_is_nothing_and_two_makes_are_a_question() {
    let other = snapshot(&[
        "train-00000-of-00002.parquet",
        "train-00002-of-00002.parquet",
    ]);
    assert_eq!(
        pick(other.path(), "train"),
        Picked::Nothing(vec!["train".to_owned()])
    );
    let half = snapshot(&["train-00000-of-00002.parquet"]);
    assert_eq!(
        pick(half.path(), "train"),
        Picked::Nothing(vec!["train".to_owned()])
    );
    // Some count from 1.
    let names = ["train-00001-of-00002.json", "train-00002-of-00002.json"];
    let counted = snapshot(&names);
    assert_eq!(pick(counted.path(), "train"), files(&counted, &names));
    let both = snapshot(&["train.csv", "train.jsonl"]);
    assert_eq!(
        pick(both.path(), "train"),
        Picked::Several(vec!["train.csv".to_owned(), "train.jsonl".to_owned()])
    );
}

#[test]
fn names_of_data_sets_are_told_from_paths() {
    assert_eq!(set_of("a/b"), Some(("a/b", None)));
    assert_eq!(set_of("a/b:main/train"), Some(("a/b", Some("main/train"))));
    assert_eq!(set_of("a/b:x.jsonl"), Some(("a/b", Some("x.jsonl"))));
    for path in [
        "data/train.jsonl",
        "data/x.parquet",
        "a/b:",
        "a/b:../x",
        "a/b:-x",
        "a/b:x//y",
        "a/b:.",
    ] {
        assert_eq!(set_of(path), None, "{path}");
    }
}

/// What is not looked at may be what is meant: nothing is taken from a part of the files.
#[test]
fn more_files_than_are_looked_at_are_refused() {
    let many = snapshot(&["a.jsonl", "sub/b.jsonl", "train.jsonl", "README.md"]);
    assert_eq!(pick_of(many.path(), "train", 2), Picked::Many);
    assert_eq!(pick_of(many.path(), "train.jsonl", 2), Picked::Many);
    let all = pick_of(many.path(), "train", 3);
    assert_eq!(all, files(&many, &["train.jsonl"]));
}
