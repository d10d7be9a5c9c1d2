//! Ranks that are processes of their own, as a launcher starts them, on the CPU device and on GPUs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lowtide_config::Run;
use lowtide_session::Requests;
use lowtide_trainer::{Launch, Observer, follow, lead, train};

use crate::gpus;

/// A run of a tiny model from random weights, for two ranks.
fn run_file(dir: &Path, output: &str, device: &str, steps: u64) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let quickstart = root.join("examples/quickstart");
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;
    std::fs::write(dir.join("config.json"), config).expect("a writable folder");
    // On a GPU all that this process holds there counts, what other tests have loaded with it.
    let budget = if device == "cpu" { "1GiB" } else { "16GiB" };
    let text = format!(
        "
model: {{config: config.json, init: random, tokenizer: {base}}}
output: {output}
device: {device}
gpus: 2
threads: 2
budget: {{device: {budget}, host: 1GiB}}
plan: {{weights: host, optimizer: host, gradients: host}}
data: {{train: {data}}}
train: {{steps: {steps}, seq: 64, micro_batch: 2, accumulate: 4, learning_rate: 1e-3}}
log: {{tensorboard: false, trace: false, report: false}}
",
        base = quickstart.join("base").display(),
        data = quickstart.join("train.jsonl").display(),
    );
    let path = dir.join(format!("{output}.yaml"));
    std::fs::write(&path, text).expect("a writable folder");
    path
}

struct Silent;
impl Observer for Silent {}

/// What the second rank takes the run for: as it is, or, where the test asks for it, with rows of another length.
fn other(run: &Run) -> Run {
    let mut run = run.clone();
    if run.output.ends_with("other") {
        run.train.seq /= 2;
    }
    run
}

/// Ranks agree about the run before they begin, but a model is read by each for itself: rank 0's plan is held against
/// it.
#[test]
fn a_plan_of_another_model_is_refused_by_the_rank_that_has_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = run_file(dir.path(), "other", "cpu", 5);
    for mut rank in launched(&file) {
        rank.wait().expect("a child");
    }
    for rank in 0..2 {
        let end = end_of(&file, rank);
        assert!(
            end.contains("rank 1") && end.contains("rank 0's plan"),
            "rank {rank}: {end}"
        );
    }
}

/// The child's side of the tests below: a rank that a launcher has started.
#[test]
fn child() {
    let Ok(file) = std::env::var("LOWTIDE_TEST_CHILD") else {
        return;
    };
    let run = Run::load(Path::new(&file), &[]).expect("a valid run file");
    let launch = Launch::found(|name| std::env::var(name).ok()).expect("a launch");
    let launch = launch.expect("several ranks");
    let requests = Requests::new();
    let done = launch
        .meet(Ok(&run))
        .and_then(|met| match launch.world.rank {
            0 => lead(&run, &met, &mut Silent, &requests).map(drop),
            _ => follow(&other(&run), &met, &requests).map(drop),
        });
    let end = done.map_or_else(|e| e.to_string(), |()| "ended well".to_owned());
    std::fs::write(format!("{file}.{}", launch.world.rank), end).expect("a writable folder");
}

/// Both ranks of a run, as torchrun starts them.
fn launched(file: &Path) -> [Child; 2] {
    static PORT: AtomicU32 = AtomicU32::new(0);
    let port = format!(
        "{}-{}",
        std::process::id(),
        PORT.fetch_add(1, Ordering::Relaxed)
    );
    [0, 1].map(|rank| {
        Command::new(std::env::current_exe().expect("this test"))
            .args(["launched::child", "--exact", "--test-threads=1"])
            .env("LOWTIDE_TEST_CHILD", file)
            .envs([
                ("WORLD_SIZE", "2"),
                ("LOCAL_WORLD_SIZE", "2"),
                ("MASTER_PORT", &port),
            ])
            .envs(["RANK", "LOCAL_RANK"].map(|name| (name, rank.to_string())))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process")
    })
}

/// What a rank ended with.
fn end_of(file: &Path, rank: usize) -> String {
    std::fs::read_to_string(format!("{}.{rank}", file.display())).unwrap_or_default()
}

#[test]
fn gpu_ranks_that_a_launcher_starts_give_the_bits_of_one_process_and_end_together() {
    let both = gpus(2).map(|_| "cuda:0");
    for device in ["cpu"].into_iter().chain(both) {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path();
        let run = Run::load(&run_file(dir, "one", device, 5), &[]).expect("a valid run file");
        train(&run, &mut Silent, &Requests::new()).expect("trains");
        let file = run_file(dir, "launched", device, 5);
        for mut rank in launched(&file) {
            rank.wait().expect("a child");
        }
        for rank in 0..2 {
            assert_eq!(end_of(&file, rank), "ended well", "{device} rank {rank}");
        }
        let model = |output: &str| {
            let path = dir.join(output).join("model/model.safetensors");
            std::fs::read(path).expect("a model")
        };
        assert!(model("one") == model("launched"), "{device}");
        // The first rank that fails of something of its own while the others wait for what it asks: all end, with its
        // error.
        let file = run_file(dir, "refused", device, 5);
        let text = std::fs::read_to_string(&file).expect("a run file");
        let little = text.replace("host: 1GiB", "host: 1MiB");
        std::fs::write(&file, little).expect("a writable folder");
        let begin = Instant::now();
        for mut rank in launched(&file) {
            rank.wait().expect("a child");
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{device}");
        for rank in 0..2 {
            let end = end_of(&file, rank);
            assert!(end.contains("does not fit"), "{device} rank {rank}: {end}");
        }
        // One that is killed ends the other, whichever it is and wherever they are.
        let each: &[usize] = if device == "cpu" { &[1] } else { &[1, 0] };
        for &killed in each {
            let file = run_file(dir, &format!("killed{killed}"), device, 1_000_000);
            let mut ranks = launched(&file);
            let metrics = dir.join(format!("killed{killed}/metrics.jsonl"));
            let begin = Instant::now();
            let steps = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
            while steps() < 3 {
                assert!(
                    begin.elapsed() < Duration::from_secs(100),
                    "{device}: no step"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            ranks[killed].kill().expect("SIGKILL");
            let begin = Instant::now();
            for rank in &mut ranks {
                rank.wait().expect("a child");
            }
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{device} {killed}"
            );
            let text = end_of(&file, 1 - killed);
            assert!(text.contains(&format!("rank {killed}")), "{device}: {text}");
        }
    }
}
