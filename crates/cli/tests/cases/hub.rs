//! Models and data sets that a run names as the Hugging Face Hub does, with a cache and a program of the case's own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::cases::scratch::{Ended, Scratch};

const RUN: &str = "
model: {path: org/name}
device: cpu
budget: {device: 256MiB, host: 256MiB}
log: {trace: false, tensorboard: false}
train: {steps: 1, seq: 64, warmup_steps: 0, schedule: constant}
data: {train: train.jsonl, max_examples: 2, packing: false}
";

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A folder with a run of a model on the Hub, and no cache yet.
fn scratch() -> Scratch {
    let scratch = Scratch::bare();
    scratch.write("run.yaml", RUN);
    for dir in ["home", "bin"] {
        fs::create_dir(scratch.at(dir)).expect("made");
    }
    scratch
}

/// Lays files of the model into the cache as `huggingface_hub` does: blobs, and links to them.
fn cache(scratch: &Scratch, files: &[&str]) {
    let repository = scratch.at("home/hub/models--org--name");
    let snapshot = repository.join("snapshots").join(COMMIT);
    for dir in [
        &repository.join("refs"),
        &repository.join("blobs"),
        &snapshot,
    ] {
        fs::create_dir_all(dir).expect("made");
    }
    fs::write(repository.join("refs/main"), COMMIT).expect("written");
    for file in files {
        let blob = repository.join("blobs").join(file);
        fs::copy(scratch.at("m").join(file), blob).expect("copied");
        symlink(format!("../../blobs/{file}"), snapshot.join(file)).expect("linked");
    }
}

const WHOLE: [&str; 4] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
];

/// A program of this name in place of Hugging Face's: it notes its arguments, then does what the script says.
fn program(scratch: &Scratch, name: &str, script: &str) {
    let path = scratch.at("bin").join(name);
    let text = format!("#!/bin/sh\necho \"$@\" >> asked\n{script}\n");
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("made to run");
}

/// The command with this case's cache and programs, and nothing of the machine's own.
fn run(scratch: &Scratch, args: &[&str], env: &[(&str, &str)]) -> Ended {
    let mut command = scratch.command(args);
    command
        .env_remove("HF_HUB_CACHE")
        .env_remove("HUGGINGFACE_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("TRANSFORMERS_OFFLINE")
        .env("HF_HOME", scratch.at("home"))
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", scratch.at("bin").display()),
        )
        .envs(env.iter().copied());
    Ended::of(&command.output().expect("the binary starts"))
}

const TRAIN: &[&str] = &["train", "run.yaml"];

#[test]
fn a_model_in_the_cache_is_trained_without_a_network() {
    let scratch = scratch();
    cache(&scratch, &WHOLE);
    let offline = [("HF_HUB_OFFLINE", "1")];
    run(&scratch, TRAIN, &offline).fine();
    let card = scratch.read("out/model/README.md");
    assert!(card.contains("org/name"), "{card}");
    // The same numbers as from a directory.
    scratch.train(&["model.path=m", "output=here"]).fine();
    let weights = |output: &str| {
        fs::read(scratch.at(output).join("model/model.safetensors")).expect("a model")
    };
    assert!(weights("out") == weights("here"));
    let commit = format!("model.path=org/name@{COMMIT}");
    run(&scratch, &["plan", "run.yaml", "--set", &commit], &[]).fine();
    // An answer is all that standard output has.
    let ask = [
        "generate",
        "run.yaml",
        "--prompt",
        "x",
        "--max-new-tokens",
        "1",
    ];
    let answer = run(&scratch, &ask, &[]);
    assert!(!answer.fine().out.contains("snapshots"), "{}", answer.out);
    // A run goes on without the weights that it began with.
    let repository = scratch.at("home/hub/models--org--name");
    fs::remove_file(repository.join("blobs/model.safetensors")).expect("there");
    let more = ["train", "run.yaml", "--set", "train.steps=2"];
    run(&scratch, &more, &offline).fine();
    // A directory of that name comes first.
    fs::create_dir_all(scratch.at("org/name")).expect("made");
    run(&scratch, TRAIN, &[]).refused(&["org/name", "config.json"]);
}

/// Data by a name: the split of the cache, then one that is fetched, the same numbers as from the file, and what is not
/// clear.
#[test]
fn data_sets_have_names_too() {
    let scratch = scratch();
    let repository = scratch.at("home/hub/datasets--org--set");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(repository.join("refs")).expect("made");
    fs::create_dir_all(snapshot.join("main")).expect("made");
    fs::write(repository.join("refs/main"), COMMIT).expect("written");
    fs::copy(scratch.at("train.jsonl"), snapshot.join("main/train.jsonl")).expect("copied");
    let with = |sets: &[&str], env: &[(&str, &str)]| {
        let mut args = vec!["train", "run.yaml", "--set", "model.path=m"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        run(&scratch, &args, env)
    };
    let offline = [("HF_HUB_OFFLINE", "1")];
    with(&["data.train=org/set"], &offline).fine();
    with(&["output=here"], &[]).fine();
    let weights = |output: &str| {
        fs::read(scratch.at(output).join("model/model.safetensors")).expect("a model")
    };
    assert!(weights("out") == weights("here"));
    // What is not there is fetched, once, and a weight goes to it.
    let test = "data.eval=org/set:main/test";
    let args = ["data.train=org/set", test, "output=more"];
    with(&args, &offline).refused(&["data.eval: ", "has no main/test", "HF_HUB_OFFLINE"]);
    let to = format!("home/hub/datasets--org--set/snapshots/{COMMIT}/main/test.jsonl");
    program(&scratch, "hf", &format!("/bin/cp train.jsonl {to}"));
    with(&args, &[]).fine();
    let home = scratch.at("home/hub").display().to_string();
    let asked = |like: &str| {
        format!(
            "download org/set --repo-type dataset --include {like}.[jpct][sa][orv]* --revision main --cache-dir {home}\n"
        )
    };
    // Each time: what the cache has says nothing of what there is.
    let readme = asked("").replace(".[jpct][sa][orv]*", "README.md");
    let both = [
        &readme,
        &asked("*[Tt]rain*"),
        &readme,
        &asked("main/*[Tt]est*"),
    ];
    let both = both.map(String::as_str).concat();
    assert_eq!(scratch.read("asked"), both);
    // Without a program: a file of what is got elsewhere, since a directory is no data.
    fs::remove_file(scratch.at("bin/hf")).expect("there");
    let args = ["data.train=org/gone", "output=none"];
    with(&args, &[]).refused(&["no such path", "--repo-type dataset", "data.train=DIR/FILE"]);
    // What the Hub does not have, and what is two things.
    program(&scratch, "hf", "");
    let args = ["data.train=org/set:dev", "output=none"];
    with(&args, &[]).refused(&["has no dev", "main/test, main/train", "FOLDER/SPLIT"]);
    fs::create_dir(snapshot.join("other")).expect("made");
    fs::copy(
        scratch.at("train.jsonl"),
        snapshot.join("other/train.jsonl"),
    )
    .expect("copied");
    let args = ["data.train=org/set", "output=none"];
    with(&args, &[]).refused(&["several", "main/train, other/train", "org/set:main/train"]);
    with(&["data.train=org/set:other/train", "output=other"], &[]).fine();
    // A README says which files are meant, whatever they are called.
    let of = |split: &str, path: &str| format!("  - {{split: {split}, path: {path}}}\n");
    let configs = format!(
        "---\nconfigs:\n- config_name: easy\n  data_files:\n{}- config_name: hard\n  data_files:\n{}{}---\n",
        of("train", "'other/tra*.jsonl'"),
        of("train", "main/train.jsonl"),
        of("test", "main/gone-*")
    );
    fs::write(snapshot.join("README.md"), configs).expect("written");
    with(&["data.train=org/set", "output=none"], &[])
        .refused(&["several", "easy/train, hard/train"]);
    with(&["data.train=org/set:hard/test", "output=none"], &[])
        .refused(&["has no hard/test", "main/gone-*"]);
    with(&["data.train=org/set:easy/test", "output=none"], &[])
        .refused(&["has no easy/test", "hard/test"]);
    with(&["data.train=org/set:easy", "output=easy"], &[]).fine();
    assert!(weights("easy") == weights("here"));
    let asked = scratch.read("asked");
    assert!(
        asked.contains("--include other/tra*.jsonl --revision main"),
        "{asked}"
    );
    // All patterns at once where the program takes them, and what cannot be read is not fetched.
    for (version, asks) in [("1.2.0", 1), ("huggingface_hub version: 0.36.0", 2)] {
        let says = format!("if [ $1 = version ]; then echo {version}; fi");
        program(&scratch, "hf", &says);
        fs::remove_file(scratch.at("asked")).expect("there");
        let one = "---\nconfigs:\n- {config_name: x, data_files: '**/gone.csv'}\n---\n";
        fs::write(snapshot.join("README.md"), one).expect("written");
        with(&["data.train=org/set", "output=none"], &[]).refused(&["has no train", "**/gone.csv"]);
        let asked = scratch.read("asked");
        let lines = asked.lines().filter(|line| line.contains("gone.csv"));
        assert_eq!(lines.count(), asks, "{asked}");
        assert!(asked.contains("--include gone.csv "), "{asked}");
        fs::write(snapshot.join("README.md"), one.replace("csv", "arrow")).expect("written");
        with(&["data.train=org/set", "output=none"], &[]).refused(&[
            "**/gone.arrow",
            "README.md",
            ".jsonl",
        ]);
        assert!(!scratch.read("asked").contains("arrow"));
        fs::write(snapshot.join("README.md"), one.replace("**/", "../")).expect("written");
        with(&["data.train=org/set", "output=none"], &[]).refused(&[
            "README.md",
            "x: \"../gone.csv\"",
            "org/set:FILE.jsonl",
        ]);
    }
    // What could not be fetched is no smaller data set.
    program(&scratch, "hf", "exit 1");
    let args = ["data.train=org/set:main/train", "output=none"];
    with(&args, &[]).refused(&["hf download: exit status: 1", "HF_HUB_OFFLINE=1"]);
    // A file's path is none, with or without the file.
    let args = ["data.train=some/file.jsonl", "output=none"];
    with(&args, &[]).refused(&["data.train: ", "no such file"]);
    assert!(!scratch.at("none").exists());
}

/// What stands in for `hf`: texts are copied where a pattern is given, else the files that are named.
const HF: &str = r#"
snapshot=home/hub/models--org--name/snapshots/0123456789abcdef0123456789abcdef01234567
case "$*" in
    *--include*) for file in config.json tokenizer.json tokenizer_config.json; do /bin/cp m/$file $snapshot; done ;;
    *) /bin/cp m/$3 $snapshot ;;
esac"#;

#[test]
fn what_is_not_in_the_cache_is_fetched_as_far_as_it_is_needed() {
    let scratch = scratch();
    // A part is there, as another program leaves it.
    cache(&scratch, &WHOLE[..1]);
    program(&scratch, "hf", HF);
    run(&scratch, &["plan", "run.yaml"], &[]).fine();
    let home = scratch.at("home/hub").display().to_string();
    let ends = |revision: &str| format!("--revision {revision} --cache-dir {home}\n");
    let text = "download org/name --include *.[jt][isx]* --exclude */* ";
    let of_plan = format!("{text}{}", ends("main"));
    assert_eq!(scratch.read("asked"), of_plan, "a plan reads no weights");
    fs::remove_file(scratch.at("asked")).expect("just read");
    // What else is wrong is found before gigabytes are fetched.
    let typo = ["train", "run.yaml", "--set", "data.train=typo.jsonl"];
    run(&scratch, &typo, &[]).refused(&["typo.jsonl"]);
    assert!(!scratch.read("asked").contains(WHOLE[3]));
    fs::remove_file(scratch.at("asked")).expect("just read");
    run(&scratch, TRAIN, &[]).fine();
    let asked = scratch.read("asked");
    let of_weights = format!("download org/name model.safetensors {}", ends(COMMIT));
    assert!(asked.ends_with(&of_weights), "{asked}");
    run(
        &scratch,
        &["train", "run.yaml", "--set", "output=again"],
        &[],
    )
    .fine();
    assert_eq!(
        scratch.read("asked").matches(WHOLE[3]).count(),
        1,
        "fetched once"
    );
}

#[test]
fn the_older_program_serves_where_the_newer_is_not() {
    let scratch = scratch();
    cache(&scratch, &WHOLE[1..3]);
    // An hf whose interpreter is gone.
    program(&scratch, "hf", "");
    scratch.write("bin/hf", "#!/gone/python\n");
    program(&scratch, "huggingface-cli", HF);
    // A tokenizer by its name alone, which is there.
    let sets = ["model.path=m", "model.tokenizer=org/name"];
    let args = ["train", "run.yaml", "--set", sets[0], "--set", sets[1]];
    run(&scratch, &args, &[]).fine();
    assert!(!scratch.at("asked").exists());
    run(&scratch, &["data", "run.yaml"], &[]).fine();
    assert!(scratch.read("asked").contains("--include *.[jt][isx]*"));
}

#[test]
fn what_cannot_be_had_is_told_with_what_to_do() {
    let scratch = scratch();
    let commands: [&[&str]; 5] = [
        TRAIN,
        &["plan", "run.yaml"],
        &["eval", "run.yaml"],
        &["verify", "run.yaml"],
        &["generate", "run.yaml", "--prompt", "x"],
    ];
    for command in commands {
        run(&scratch, command, &[]).refused(&[
            "model.path: ",
            "Hugging Face Hub",
            "has no revision main",
            "neither hf nor huggingface-cli",
            "pip install",
            "hf download org/name --revision main --local-dir DIR",
            "lowtide plan and bench step need its config.json alone: --set model.config=FILE",
        ]);
    }
    // A plan of a recipe needs no network.
    let named = "model.path=Qwen/Qwen2.5-0.5B-Instruct";
    let plan = ["plan", "run.yaml", "--set", named];
    let words = [
        "need no files of it: --set model.shape=qwen2.5-0.5b;",
        "--machine FILE",
    ];
    run(&scratch, &plan, &[]).refused(&words);
    let offline = [("TRANSFORMERS_OFFLINE", "1")];
    run(&scratch, TRAIN, &offline).refused(&["has no revision main", "HF_HUB_OFFLINE"]);
    // An hf that says nothing and brings nothing, as one without a network does where a part is there.
    cache(&scratch, &WHOLE[..3]);
    run(&scratch, TRAIN, &offline).refused(&["has no model.safetensors", "HF_HUB_OFFLINE"]);
    program(&scratch, "hf", "echo not allowed >&2; exit 3");
    let words = [
        "not allowed",
        "hf download: exit status: 3",
        "hf auth login",
    ];
    run(&scratch, TRAIN, &[]).refused(&words);
    program(&scratch, "hf", "exit 0");
    run(&scratch, TRAIN, &[]).refused(&["has no model.safetensors", "the Hub was not reached"]);
    // What is written as a path is one.
    let path = ["train", "run.yaml", "--set", "model.path=./org/name"];
    run(&scratch, &path, &[]).refused(&["model.path: ", "no such file"]);
    // A model whose tokenizer has another format is refused with that reason, as a directory is.
    let home = "home/hub/models--org--name/snapshots";
    fs::remove_file(scratch.at(&format!("{home}/{COMMIT}/tokenizer.json"))).expect("there");
    run(&scratch, &["data", "run.yaml"], &[]).refused(&["tokenizer.json"]);
}
