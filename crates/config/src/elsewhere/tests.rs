//! Keys of other trainers, as they stand in their files.

use super::*;

use crate::run::Run;

/// The commonest keys of five trainers, as they stand in their files, each with a word of what the error says.
const COMMON: &[(&str, &str)] = &[
    // Axolotl
    ("base_model: m", "model.path"),
    ("model_type: AutoModelForCausalLM", "config.json"),
    ("load_in_8bit: false", "bf16 or f32"),
    ("adapter: lora", "not adapters"),
    ("datasets: [a]", "data.train"),
    ("val_set_size: 0.1", "data.eval_split"),
    ("output_dir: out", "output"),
    ("sequence_len: 4096", "train.seq"),
    ("sample_packing: true", "data.packing"),
    ("pad_to_sequence_len: true", "train.seq"),
    ("wandb_project: p", "log.tensorboard"),
    ("micro_batch_size: 1", "train.micro_batch"),
    ("num_epochs: 1", "train.epochs"),
    ("lr_scheduler: cosine", "train.schedule"),
    ("flash_attention: true", "attention is chosen"),
    ("evals_per_epoch: 1", "eval.every_epochs"),
    ("saves_per_epoch: 1", "checkpoint.every_epochs"),
    ("special_tokens: {}", "tokenizer's files"),
    ("group_by_length: false", "data.packing"),
    ("chat_template: chatml", "data.chat_template"),
    ("train_on_inputs: false", "data.train_on"),
    ("deepspeed: zero3.json", "budget.device"),
    // TRL and transformers
    ("model_name_or_path: m", "model.path"),
    ("dataset_name: d", "data.train"),
    ("max_length: 1024", "train.seq"),
    ("packing: true", "data.packing"),
    ("per_device_train_batch_size: 1", "train.micro_batch"),
    ("per_device_eval_batch_size: 1", "train.micro_batch"),
    ("gradient_accumulation_steps: 8", "train.accumulate"),
    ("gradient_checkpointing: true", "the planner decides"),
    ("learning_rate: 2e-5", "train.learning_rate"),
    ("lr_scheduler_type: cosine", "train.schedule"),
    ("warmup_ratio: 0.1", "train.warmup_ratio"),
    ("num_train_epochs: 3", "train.epochs"),
    ("bf16: true", "precision"),
    ("fp16: true", "precision"),
    ("logging_steps: 10", "log.every_steps"),
    ("save_strategy: epoch", "checkpoint.every_steps"),
    ("eval_strategy: steps", "eval.every_steps"),
    ("save_total_limit: 2", "checkpoint.keep"),
    ("report_to: none", "log.tensorboard"),
    ("optim: adamw_torch", "optimizer.name"),
    ("max_grad_norm: 1.0", "train.clip.norm"),
    ("push_to_hub: true", "uploads nothing"),
    ("assistant_only_loss: true", "data.train_on"),
    ("neftune_noise_alpha: 5", "train.neftune_alpha"),
    ("use_liger_kernel: true", "train.logits_chunk"),
    ("attn_implementation: sdpa", "attention is chosen"),
    // torchtune
    ("checkpointer: {}", "model.path"),
    ("tokenizer: {}", "model.tokenizer"),
    ("dataset: {}", "data.train"),
    ("dataset_val: {}", "data.eval"),
    ("shuffle: true", "data.shuffle"),
    ("batch_size: 2", "train.micro_batch"),
    ("epochs: 1", "train.epochs"),
    ("max_steps_per_epoch: 9", "train.steps"),
    (
        "optimizer: {_component_: torch.optim.AdamW}",
        "optimizer.name",
    ),
    ("optimizer: {lr: 2e-5}", "train.learning_rate"),
    ("model: {_component_: models.llama3_8b}", "model.path"),
    ("optimizer_in_bwd: true", "the planner decides"),
    ("loss: {}", "cross entropy"),
    ("clip_grad_norm: 1.0", "train.clip.norm"),
    ("compile: true", "kernels are lowtide's own"),
    ("dtype: bf16", "precision"),
    (
        "enable_activation_checkpointing: true",
        "the planner decides",
    ),
    ("enable_activation_offloading: true", "the planner decides"),
    ("metric_logger: {}", "metrics.jsonl"),
    ("log_every_n_steps: 1", "log.every_steps"),
    ("save_every_n_steps: 1", "checkpoint.every_steps"),
    ("resume_from_checkpoint: false", "checkpoint.resume"),
    ("profiler: {}", "log.trace"),
    // LLaMA-Factory
    ("stage: sft", "lowtide fine-tunes on given texts"),
    ("do_train: true", "lowtide train"),
    ("finetuning_type: full", "all parameters"),
    ("template: qwen", "data.chat_template"),
    ("cutoff_len: 2048", "train.seq"),
    ("max_samples: 1000", "data.max_examples"),
    ("overwrite_cache: true", "lowtide train"),
    ("preprocessing_num_workers: 16", "threads"),
    ("plot_loss: true", "report.html"),
    ("overwrite_output_dir: true", "checkpoint.resume"),
    ("save_only_model: false", "lowtide export"),
    ("ddp_timeout: 180000000", "nothing to set"),
    ("val_size: 0.1", "data.eval_split"),
    ("eval_steps: 500", "eval.every_steps"),
    ("flash_attn: fa2", "attention is chosen"),
    ("neat_packing: true", "data.packing"),
    ("mask_history: true", "data.train_on"),
    ("train_on_prompt: false", "data.train_on"),
    ("enable_liger_kernel: true", "train.logits_chunk"),
    ("quantization_bit: 4", "bf16 or f32"),
    ("freeze_trainable_layers: 2", "train.freeze"),
    ("pure_bf16: true", "precision"),
    // DeepSpeed
    (
        "train_batch_size: 32",
        "train.micro_batch x train.accumulate",
    ),
    ("train_micro_batch_size_per_gpu: 1", "train.micro_batch"),
    ("gradient_clipping: 1.0", "train.clip.norm"),
    ("steps_per_print: 10", "log.every_steps"),
    ("optimizer: {type: AdamW}", "optimizer.name"),
    ("optimizer: {params: {lr: 1e-5}}", "train.learning_rate"),
    ("scheduler: {type: WarmupLR}", "train.schedule"),
    ("zero_optimization: {stage: 3}", "budget.host"),
    ("offload_optimizer: {device: cpu}", "plan.optimizer"),
    ("offload_param: {device: cpu}", "plan.weights"),
    ("overlap_comm: true", "the planner decides"),
    ("contiguous_gradients: true", "the planner decides"),
    ("reduce_bucket_size: 5e8", "the planner decides"),
    (
        "stage3_gather_16bit_weights_on_model_save: true",
        "lowtide export",
    ),
    ("activation_checkpointing: {}", "the planner decides"),
    ("aio: {}", "the planner decides"),
    ("wall_clock_breakdown: false", "metrics.jsonl"),
    ("zero_allow_untested_optimizer: true", "nothing to set"),
    ("communication_data_type: fp16", "nothing to set"),
    ("flops_profiler: {}", "metrics.jsonl"),
    ("tensorboard: {}", "log.tensorboard"),
];

#[test]
fn the_commonest_keys_of_others_are_refused_with_ours() {
    for (text, word) in COMMON {
        let refused = Run::parse(text, "run.yaml", std::path::Path::new("/r"), &[]);
        let error = refused.expect_err(text).to_string();
        assert!(
            error.starts_with("run.yaml:1:") && error.contains("unknown key"),
            "{error}"
        );
        assert!(error.contains(word), "{text}: {word} in {error}");
    }
}

/// Of Axolotl's a file can be brought over: nothing common is left out without a reason of its own.
#[test]
fn what_is_left_out_of_a_file_has_a_reason_of_its_own() {
    for (text, _) in &COMMON[..22] {
        let text = match text.contains("base_model") {
            true => (*text).to_owned(),
            false => format!("base_model: m\n{text}"),
        };
        let imported = crate::import_axolotl(&text, "a.yaml").expect(&text);
        for (what, why) in &imported.dropped {
            assert!(!why.contains("does not know"), "{what}: {why}");
        }
    }
}

#[test]
fn a_name_has_one_meaning() {
    let names = || NONE.iter().flat_map(|(names, _)| names.iter());
    for name in names() {
        assert_eq!(names().filter(|n| *n == name).count(), 1, "{name}");
        assert!(
            !KEYS.iter().any(|k| k.elsewhere.contains(name)),
            "{name} is one of our keys, too"
        );
        assert!(!KEYS.iter().any(|k| k.name == *name), "{name}");
    }
}
