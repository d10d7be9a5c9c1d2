//! Fine-tunes on GSM8K with GPT-2's tokenizer and a small model from random weights; skips where
//! that data is not beside the project.

use std::fs;
use std::path::{Path, PathBuf};

use lowtide_config::Run;
use lowtide_model::{Checkpoint, load_shape};
use lowtide_session::Requests;
use lowtide_trainer::{Observer, train};

struct Silent;
impl Observer for Silent {}

#[test]
#[allow(clippy::print_stderr, reason = "says that it skips")]
fn evaluation_loss_falls_and_the_output_is_a_hugging_face_model() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared: PathBuf = root.join("../shared/data");
    if !shared.exists() {
        eprintln!("skipped: {} is absent", shared.display());
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "vocab_size": 50257, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_inner": 32,
        "n_positions": 128, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05,
        "tie_word_embeddings": true}"#;
    fs::write(dir.path().join("config.json"), config).expect("a writable directory");
    let data = shared.canonicalize().expect("it exists");
    let text = format!(
        r#"
model: {{config: config.json, tokenizer: {data}/tokenizers/gpt2}}
output: out
budget: {{device: 200MiB, host: 100MiB}}
data:
  train: {data}/gsm8k/train.jsonl
  eval: {data}/gsm8k/test.jsonl
  fields: {{prompt: question, completion: answer}}
  separator: "\n"
  max_examples: 400
train: {{steps: 6, micro_batch: 2, seq: 128, learning_rate: 1e-2, warmup_steps: 1}}
eval: {{batches: 2}}
log: {{tensorboard: false, trace: false}}
"#,
        data = data.display()
    );
    let file = dir.path().join("run.yaml");
    fs::write(&file, text).expect("a writable directory");
    let run = Run::load(&file, &[]).expect("a valid run file");
    let report = train(&run, &mut Silent, &Requests::new()).expect("trains");
    let (first, last) = (
        report.eval_loss_first.expect("eval"),
        report.eval_loss_last.expect("eval"),
    );
    assert!(last < first - 0.1, "{first} -> {last}");
    let model = report.output.expect("an exported model");
    let shape = load_shape(&model).expect("a config.json");
    Checkpoint::open(&model, &shape).expect("every tensor, in its shape");
    assert!(model.join("tokenizer.json").exists());
}
