//! A scratch folder for a case: the quickstart's base model as `m/`, its data, the case's own files over it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// A folder that is removed when the test ends.
pub struct Scratch {
    dir: TempDir,
}

/// What a command ended with.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Of a command that was run to its end.
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// All that was printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    /// The answer of a command with `--json`.
    #[track_caller]
    pub fn json(&self) -> Value {
        let last = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last:?}\n{}", self.err))
    }

    /// It ended with exit code 2 and its complaint has each of these words.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        assert_eq!(self.code, Some(2), "{}", self.text());
        for word in words {
            assert!(self.err.contains(word), "{word:?} in {}", self.err);
        }
    }

    /// It ended with exit code 0.
    #[track_caller]
    pub fn fine(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{}", self.text());
        self
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rates of the examples' machine, for plans of small budgets on the CPU device: a GPU's libraries take 32 MiB of
/// scratch.
pub fn example_rates() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let text = fs::read_to_string(root().join("examples/machines/h200.json")).expect("rates");
        let of_the_host = text.replace("\"cuda\": true", "\"cuda\": false");
        assert_ne!(text, of_the_host);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("h200-rates.json");
        fs::write(&path, of_the_host).expect("written");
        path
    };
    MADE.get_or_init(make).clone()
}

/// A number of an answer, which is there.
pub fn number(answer: &Value, key: &str) -> f64 {
    answer[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key}: {answer}"))
}

/// The ranks that a command is to have.
fn ranks_of(args: &[&str]) -> u32 {
    let behind = |(flag, n): (&&str, &&str)| (*flag == "--gpus").then(|| n.parse().ok()).flatten();
    let set = |arg: &&str| arg.strip_prefix("gpus=").and_then(|n| n.parse().ok());
    let flag = args.iter().zip(args.iter().skip(1)).find_map(behind);
    flag.or_else(|| args.iter().find_map(set)).unwrap_or(1)
}

/// Copies what is in a folder into another, over what is there.
pub fn copy_over(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder of inputs") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            copy_over(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copied");
        }
    }
}

impl Scratch {
    /// The base model as `m/`, the quickstart's data, and the files of case `name`.
    pub fn new(name: &str) -> Self {
        let scratch = Self::bare();
        let inputs = root().join("crates/cli/tests/cases/inputs").join(name);
        copy_over(&inputs, scratch.path());
        scratch
    }

    /// The base model as `m/` and the quickstart's data alone.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let from = root().join("examples/quickstart");
        copy_over(&from.join("base"), &dir.path().join("m"));
        for name in ["train.jsonl", "eval.jsonl"] {
            fs::copy(from.join(name), dir.path().join(name)).expect("copied");
        }
        Self { dir }
    }

    /// The quickstart's data and base model, and over them an example, whose run writes to `out/`.
    pub fn example(name: &str) -> Self {
        let scratch = Self::bare();
        copy_over(&root().join("examples").join(name), scratch.path());
        let run = scratch.read("run.yaml");
        let here = run.replace(&format!("../../out/{name}"), "out");
        scratch.write("run.yaml", here + "log: {trace: false}\n");
        scratch
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where commands keep what they make for later runs: not in the tester's home, and nothing of another test.
    pub fn cache(&self) -> PathBuf {
        self.at(".cache")
    }

    /// A file of the folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.at(name), bytes).expect("written");
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).expect("a text file")
    }

    pub fn read_bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).expect("a file")
    }

    /// `lowtide` with these arguments, in the folder. A run that says nothing of its machine has the rates of
    /// the examples' machine: measuring them takes seconds of every start, and no case is about them but those
    /// that name a machine (`plan.machine=`: this one is measured).
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
        command.args(args).current_dir(self.dir.path());
        command.env("LOWTIDE_CACHE", self.cache());
        if self.takes_rates(args) {
            let rates = match ranks_of(args) {
                1 => example_rates(),
                ranks => self.rates_of(ranks),
            };
            let machine = format!("plan.machine={}", rates.display());
            command.args(["--set", &machine]);
        }
        command
    }

    fn takes_rates(&self, args: &[&str]) -> bool {
        let measures = ["train", "eval", "generate", "verify", "plan"].contains(&args[0]);
        let mut files = args.iter().filter(|arg| arg.ends_with(".yaml"));
        // A pipe in its place would be read for ever.
        let silent = files.next().map(|file| self.at(file)).is_some_and(|file| {
            file.is_file()
                && fs::read_to_string(file)
                    .is_ok_and(|text| !text.contains("machine") && !text.contains("gpus"))
        });
        measures && silent && !args.iter().any(|arg| arg.contains("machine"))
    }

    /// The examples' rates, with those of an exchange between so many ranks.
    pub fn rates_of(&self, ranks: u32) -> PathBuf {
        let path = self.at(&format!("rates-of-{ranks}.json"));
        let text = fs::read_to_string(example_rates()).expect("rates");
        let mut machine: Value = serde_json::from_str(&text).expect("JSON");
        machine["net"] = serde_json::json!({"ranks": ranks, "rate": 4e9, "latency": 2e-5});
        fs::write(&path, machine.to_string()).expect("written");
        path
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::of(&self.command(args).output().expect("the binary starts"))
    }

    /// `lowtide train run.yaml` with these `--set`s.
    pub fn train(&self, sets: &[&str]) -> Ended {
        let mut args = vec!["train", "run.yaml"];
        for set in sets {
            args.extend(["--set", set]);
        }
        self.run(&args)
    }
}
