//! Checkpoints that are written in the background, where a run ends: with an error, or with its output directory gone.

use std::fs;
use std::path::{Path, PathBuf};

use lowtide_config::Run;
use lowtide_session::Requests;
use lowtide_trainer::inside::checkpoint::{directory, list};
use lowtide_trainer::{Observer, StepLine, TrainError, TrainReport, train};
use serde_json::{Map, Value, json};

const HIDDEN: usize = 32;
const VOCAB: usize = 1024;
/// A character that the training data lacks.
const RARE: &str = "~";

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart")
}

/// A model whose embedding of [`RARE`] is a number that the factor of its embeddings makes infinite.
fn write_model(dir: &Path) {
    let tokenizer = fs::read_to_string(quickstart().join("base/tokenizer.json")).expect("there");
    let tokenizer: Value = serde_json::from_str(&tokenizer).expect("JSON");
    let rare = tokenizer["model"]["vocab"][RARE].as_u64().expect("a token") as usize;
    let config = json!({
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 1.0,
        "logits_scaling": 1.0, "tie_word_embeddings": false,
    });
    fs::write(dir.join("config.json"), config.to_string()).expect("written");
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        (layer("input_layernorm"), vec![HIDDEN]),
        (layer("self_attn.q_proj"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.k_proj"), vec![HIDDEN / 2, HIDDEN]),
        (layer("self_attn.v_proj"), vec![HIDDEN / 2, HIDDEN]),
        (layer("self_attn.o_proj"), vec![HIDDEN, HIDDEN]),
        (layer("post_attention_layernorm"), vec![HIDDEN]),
        (layer("mlp.gate_proj"), vec![64, HIDDEN]),
        (layer("mlp.up_proj"), vec![64, HIDDEN]),
        (layer("mlp.down_proj"), vec![HIDDEN, 64]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
    ];
    let (mut header, mut bytes) = (Map::new(), Vec::<u8>::new());
    let mut x = 1u32;
    for (name, shape) in tensors {
        let begin = bytes.len();
        for i in 0..shape.iter().product::<usize>() {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let drawn = (x >> 8) as f32 / (1 << 24) as f32 - 0.5;
            let value = match shape.len() {
                1 => 1.0,
                _ if name.contains("embed") && i / HIDDEN == rare => 3e38,
                _ => drawn / 8.0,
            };
            bytes.extend(value.to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, bytes.len()]});
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(bytes);
    fs::write(dir.join("model.safetensors"), file).expect("written");
}

/// A run of six steps in `dir`, with more of its file behind.
fn run_in(dir: &Path, more: &str, sets: &[&str]) -> Run {
    let rates = quickstart().join("../machines/h200.json");
    let text = format!(
        "
model: {{path: ., tokenizer: {base}}}
output: out
threads: 1
device: cpu
budget: {{device: 64MiB, host: 256MiB, disk: 64MiB}}
data: {{train: {data}, max_examples: 40}}
train: {{steps: 6, seq: 48, micro_batch: 2, learning_rate: 1e-3}}
log: {{tensorboard: false, trace: false, report: false}}
plan: {{machine: {rates}, weights: device, optimizer: disk, gradients: device}}
{more}
",
        base = quickstart().join("base").display(),
        data = quickstart().join("train.jsonl").display(),
        rates = rates.display(),
    );
    let file = dir.join("run.yaml");
    fs::write(&file, text).expect("written");
    let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
    Run::load(&file, &sets).expect("a valid run file")
}

/// The steps whose checkpoints are whole.
fn saved(dir: &Path) -> Vec<u64> {
    let all = list(&dir.join("out"));
    all.into_iter().map(|(step, _)| step).collect()
}

/// Stops behind a step; removes the output directory and asks for a checkpoint once answers behind the last are made.
struct Watcher<'a> {
    requests: &'a Requests,
    stop_after: u64,
    remove: Option<PathBuf>,
    step: u64,
    notes: Vec<String>,
    /// What else happens behind a step.
    more: &'a mut dyn FnMut(u64),
}

impl Observer for Watcher<'_> {
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    fn step(&mut self, line: &StepLine) {
        self.step = line.step;
        (self.more)(line.step);
        if line.step == self.stop_after {
            self.requests.stop();
        }
    }

    fn answering(&mut self, _done: usize, _of: usize) {
        if self.step == 6
            && let Some(dir) = self.remove.take()
        {
            fs::remove_dir_all(dir).expect("removed");
            self.requests.save();
        }
    }
}

fn go(
    run: &Run,
    stop_after: u64,
    remove: Option<PathBuf>,
) -> (Result<TrainReport, TrainError>, Vec<String>) {
    go_with(run, stop_after, remove, &mut |_| ())
}

fn go_with(
    run: &Run,
    stop_after: u64,
    remove: Option<PathBuf>,
    more: &mut dyn FnMut(u64),
) -> (Result<TrainReport, TrainError>, Vec<String>) {
    let requests = Requests::new();
    let mut watcher = Watcher {
        requests: &requests,
        stop_after,
        remove,
        step: 0,
        notes: Vec::new(),
        more,
    };
    (train(run, &mut watcher, &requests), watcher.notes)
}

#[test]
fn what_is_being_written_stays_when_an_evaluation_ends_the_run() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_model(dir.path());
    // It begins without the data that it cannot be evaluated on.
    let (begun, _) = go(&run_in(dir.path(), "", &[]), 1, None);
    assert_eq!(begun.expect("stops").steps, 2);
    assert_eq!(saved(dir.path()), [2]);
    let line = json!({"messages": [
        {"role": "user", "content": format!("What is {RARE}?")},
        {"role": "assistant", "content": "It is a tilde."},
    ]});
    let data = dir.path().join("eval.jsonl");
    fs::write(&data, format!("{line}\n")).expect("written");
    let more = "checkpoint: {every_steps: 1, keep: 9}\neval: {every_steps: 4}";
    let run = run_in(
        dir.path(),
        more,
        &[&format!("data.eval={}", data.display())],
    );
    let (ended, notes) = go(&run, u64::MAX, None);
    match ended {
        Err(TrainError::NonFinite { step: 4, what, .. }) if what.contains("evaluation") => {}
        other => panic!("{other:?}"),
    }
    let beside = |n: &String| n.contains("written while steps go on");
    assert!(notes.iter().any(beside), "{notes:?}");
    // That of step 3 was under way when the evaluation behind step 4 ended the run.
    assert_eq!(saved(dir.path()), [2, 3]);
}

/// Where a checkpoint that cannot be written ends the run, one that is still being written behind the last step ends it
/// with the last state saved.
#[test]
fn the_last_state_is_saved_though_the_one_before_could_not_be() {
    let more = "checkpoint: {every_steps: 5, keep: 9, on_error: stop}";
    // How far the writing is behind the last step is chance.
    let saved_last = (0..40).any(|_| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_model(dir.path());
        let run = run_in(dir.path(), more, &[]);
        let checkpoints = directory(&dir.path().join("out"));
        let mut in_the_way = |step| {
            if step == 6 {
                fs::rename(&checkpoints, dir.path().join("aside")).expect("renamed");
            }
        };
        let (ended, _) = go_with(&run, u64::MAX, None, &mut in_the_way);
        match ended {
            Err(TrainError::Unsaved { step: 5, .. }) => saved(dir.path()) == [6],
            // Written before it was in the way.
            Ok(_) => false,
            other => panic!("{other:?}"),
        }
    });
    assert!(saved_last);
}

/// What a new output directory does not take at first, what run it is of, is written once it does.
#[test]
fn a_new_output_directory_has_the_run_though_it_could_not_be_written_at_first() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_model(dir.path());
    let run = run_in(dir.path(), "", &[]);
    let out = dir.path().join("out");
    let in_the_way = out.join("machine.json");
    let mut anew = |step| match step {
        2 => {
            let mark = fs::read(out.join(".lowtide")).expect("a mark");
            fs::remove_dir_all(&out).expect("removed");
            fs::create_dir_all(&in_the_way).expect("made");
            fs::write(out.join(".lowtide"), mark).expect("written");
        }
        4 => fs::remove_dir(&in_the_way).expect("removed"),
        _ => {}
    };
    let (ended, notes) = go_with(&run, u64::MAX, None, &mut anew);
    ended.expect("trains");
    let said = notes.iter().filter(|n| n.contains("was removed")).count();
    assert_eq!(said, 1, "{notes:?}");
    assert!(in_the_way.is_file() && out.join("run.json").is_file());
}

#[test]
fn what_is_saved_behind_the_last_step_is_written_at_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_model(dir.path());
    let more = "checkpoint: {every_steps: 3}\neval: {generate: {exact_match: true, max_examples: 8, \
        max_new_tokens: 3}}";
    let eval = format!("data.eval={}", quickstart().join("eval.jsonl").display());
    let run = run_in(dir.path(), more, &[&eval, "data.max_examples=8"]);
    let out = dir.path().join("out");
    let (ended, notes) = go(&run, u64::MAX, Some(out.clone()));
    let report = ended.expect("trains");
    assert!(notes.iter().any(|n| n.contains("was removed")), "{notes:?}");
    assert_eq!(saved(dir.path()), [6]);
    assert_eq!(report.checkpoint, list(&out).pop().map(|(_, path)| path));
    // And what was written beside steps before is in the report.
    assert_eq!(report.background.map(|b| b.checkpoints), Some(1));
    let names = fs::read_dir(directory(&out)).expect("a directory").count();
    assert_eq!(names, 1, "nothing half-written");
}

#[test]
fn threads_that_write_checkpoints_are_the_runs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_model(dir.path());
    // Each has memory of its own for what it reads off the drive.
    let through = |threads: &str| {
        let all = [
            "checkpoint.every_steps=1",
            "train.steps=1",
            "budget.host=512MiB",
            "checkpoint.resume=never",
            threads,
        ];
        let (ended, notes) = go(&run_in(dir.path(), "", &all), u64::MAX, None);
        ended.expect("trains");
        let of_memory = |n: &&String| n.contains("written while steps go on");
        notes.iter().find(of_memory).expect("a note").clone()
    };
    assert_ne!(through("threads=1"), through("threads=16"));
}
