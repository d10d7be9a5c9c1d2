//! Keys of other trainers that have no counterpart here, each with the reason: for the hint at an unknown key, and for
//! what `lowtide import` leaves out. Those that have one stand with ours ([`Key::elsewhere`](crate::Key)).

use crate::keys::KEYS;

/// Names, and why there is nothing to write here.
const NONE: &[(&[&str], &str)] = &[
    (
        &[
            "zero_optimization",
            "deepspeed",
            "deepspeed_config",
            "fsdp",
            "fsdp_config",
            "fsdp_cpu_offload",
            "fsdp_version",
            "pin_memory",
            "overlap_comm",
            "contiguous_gradients",
            "reduce_scatter",
            "reduce_bucket_size",
            "allgather_partitions",
            "allgather_bucket_size",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "sub_group_size",
            "activation_checkpointing",
            "gradient_checkpointing",
            "enable_activation_checkpointing",
            "activation_offloading",
            "activation_offload",
            "enable_activation_offloading",
            "gradient_checkpointing_kwargs",
            "disable_gradient_checkpointing",
            "optimizer_in_bwd",
            "layer_offloading",
            "aio",
        ],
        "the planner decides what is kept, moved and computed again, within budget.device, budget.host and budget.disk",
    ),
    (
        &[
            "stage3_gather_16bit_weights_on_model_save",
            "save_safetensors",
            "save_only_model",
            "save_adapter_weights_only",
        ],
        "checkpoints hold everything to go on from, and OUTPUT/model is a whole Hugging Face directory; `lowtide export` \
         makes one of any checkpoint",
    ),
    (
        &[
            "adapter",
            "use_peft",
            "finetuning_type",
            "lora_r",
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_target",
            "lora_target_modules",
            "lora_target_linear",
            "lora_modules_to_save",
            "peft_use_dora",
            "use_galore",
            "use_badam",
            "use_unsloth",
        ],
        "lowtide trains all parameters, not adapters",
    ),
    (
        &[
            "load_in_4bit",
            "load_in_8bit",
            "quantization_bit",
            "quantizer",
            "fp16",
            "fp8",
            "amp",
        ],
        "weights and activations are bf16 or f32 (precision)",
    ),
    (
        &[
            "tf32",
            "pure_bf16",
            "upcast_layernorm",
            "half_precision_backend",
        ],
        "precision says it: with bf16, products are in bf16 with sums in f32, and master weights are f32",
    ),
    (
        &[
            "attn_implementation",
            "flash_attn",
            "flash_attention",
            "flash_attention_2",
            "sdp_attention",
            "xformers_attention",
            "flex_attention",
            "use_flash_attention_2",
        ],
        "attention is chosen by the device and the data; nothing of size seq x seq is kept",
    ),
    (
        &[
            "compile",
            "torch_compile",
            "use_liger_kernel",
            "enable_liger_kernel",
            "liger_rope",
            "liger_rms_norm",
            "liger_glu_activation",
            "liger_layer_norm",
            "liger_fused_linear_cross_entropy",
            "cut_cross_entropy",
            "plugins",
        ],
        "kernels are lowtide's own; logits are computed in chunks (train.logits_chunk)",
    ),
    (
        &[
            "tensor_parallel_dim",
            "tensor_parallel_size",
            "context_parallel_size",
            "sequence_parallel_degree",
            "pipeline_parallel_size",
            "dp_shard_size",
        ],
        "several GPUs share the batch and the optimizer state (gpus); models and sequences are not divided",
    ),
    (
        &[
            "train_batch_size",
            "global_batch_size",
            "auto_find_batch_size",
            "batch_size_val",
        ],
        "rows of an update are train.micro_batch x train.accumulate, whatever the number of gpus",
    ),
    (
        &[
            "rl",
            "dpo",
            "beta",
            "stage",
            "reward_model",
            "loss_type",
            "trl",
        ],
        "lowtide fine-tunes on given texts; preferences and rewards are not supported",
    ),
    (
        &[
            "do_train",
            "do_eval",
            "overwrite_output_dir",
            "overwrite_cache",
        ],
        "the command says it: `lowtide train` goes on where the output directory stands, and checkpoint.resume: never begins \
         anew; data.eval or data.eval_split ask for evaluations",
    ),
    (
        &["save_strategy", "save_first_step", "checkpoint_every"],
        "checkpoint.every_steps, checkpoint.every_epochs and checkpoint.every_minutes say when to save, checkpoint.keep how many stay",
    ),
    (
        &["eval_strategy", "evaluation_strategy", "eval_on_start"],
        "eval.every_steps or eval.every_epochs says when to evaluate; before the first step and after the last it is done anyway",
    ),
    (
        &["greater_is_better"],
        "checkpoint.keep_best names the measure, which says what is better",
    ),
    (
        &[
            "group_by_length",
            "padding_free",
            "pad_to_sequence_len",
            "eval_packing",
            "eval_sample_packing",
        ],
        "rows have train.seq tokens, filled with several examples unless data.packing is false; evaluation data are laid out alike",
    ),
    (
        &[
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_prefetch_factor",
            "preprocessing_num_workers",
            "dataset_processes",
            "remove_unused_columns",
            "buffer_size",
        ],
        "the next batch is made while one is computed, by as many threads as there are (threads)",
    ),
    (
        &["excess_length_strategy", "truncation_side"],
        "an example that is longer than train.seq loses its end, and the run says how many did",
    ),
    (
        &[
            "mask_history",
            "roles_to_train",
            "train_on_eos",
            "message_property_mappings",
            "loss_mask",
        ],
        "data.train_on: assistant trains on what the assistant says with the end of its turns; a turn with \"weight\": 0 or \
         \"train\": false is context",
    ),
    (
        &[
            "special_tokens",
            "tokens",
            "add_tokens",
            "resize_token_embeddings_to_32x",
            "added_tokens_overrides",
        ],
        "the tokenizer's files say it: add tokens and rows there, before training",
    ),
    (
        &["eos_token", "pad_token", "train_on_eot", "eot_tokens"],
        "the model's template and generation_config.json say what ends a turn",
    ),
    (
        &[
            "trust_remote_code",
            "model_type",
            "tokenizer_type",
            "is_llama_derived_model",
            "processor_type",
            "use_fast_tokenizer",
        ],
        "config.json and tokenizer.json say what the model is; no code of a model's directory is run",
    ),
    (
        &["rope_scaling", "rope_theta", "overrides_of_model_config"],
        "the model's config.json says it",
    ),
    (
        &[
            "wandb_project",
            "wandb_entity",
            "wandb_name",
            "wandb_run_id",
            "wandb_watch",
            "wandb_log_model",
            "wandb",
            "use_wandb",
            "run_name",
            "mlflow_tracking_uri",
            "comet_project_name",
        ],
        "lowtide sends nothing anywhere: metrics.jsonl, report.html and TensorBoard events (log.tensorboard) are in the output directory",
    ),
    (
        &[
            "push_to_hub",
            "hub_model_id",
            "hub_strategy",
            "hub_token",
            "hub_private_repo",
            "hf_hub_token",
            "hf_use_auth_token",
        ],
        "lowtide uploads nothing: OUTPUT/model is a Hugging Face directory that `hf upload` takes",
    ),
    (
        &[
            "plot_loss",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "wall_clock_breakdown",
            "log_peak_memory_stats",
            "flops_profiler",
            "logging_first_step",
            "disable_tqdm",
            "dump_state",
            "memory_breakdown",
            "logging_dir",
            "metric_logger",
            "logging_strategy",
        ],
        "recorded anyway: loss, rates, memory and the time of each lane are in metrics.jsonl, report.html and trace.json",
    ),
    (
        &[
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_backend",
            "local_rank",
            "communication_data_type",
            "prescale_gradients",
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
            "sparse_gradients",
            "average_tokens_across_devices",
        ],
        "there is nothing to set: ranks sum in a fixed order, and the loss is the mean over all supervised tokens of a batch",
    ),
    (
        &[
            "custom_sharded_layers",
            "custom_sharding",
            "stage3_module_granularity_threshold",
        ],
        "the planner cuts parameters (plan.pieces)",
    ),
    (
        &["template", "chat_template_type"],
        "the tokenizer's chat template is used; data.chat_template names a file with another one",
    ),
    (
        &["per_device_eval_batch_size", "eval_batch_size"],
        "evaluations have rows of train.micro_batch; eval.batches bounds how many",
    ),
    (
        &["column_map", "columns", "column_mapping"],
        "data.fields names the fields of a record (data.fields.prompt and so on)",
    ),
    (
        &["_component_"],
        "a run file names values, not classes: model.path, data.train, optimizer.name, train.schedule",
    ),
    (
        &["optimizer.params", "scheduler.params"],
        "its parts are keys of their own: train.learning_rate, train.warmup_steps, optimizer.weight_decay and so on",
    ),
    (
        &["loss"],
        "the loss is the cross entropy of the next token (train.label_smoothing, train.logits_chunk)",
    ),
    (
        &["compute_accuracy"],
        "evaluations count right tokens anyway (eval_accuracy)",
    ),
    (&["strict", "debug", "val_check"], "every key is checked"),
    (
        &["embedding_lr_scale", "loraplus_lr_ratio"],
        "optimizer.groups gives tensors a learning rate of their own, as a rate and not as a ratio",
    ),
    (
        &[
            "lr_scheduler_kwargs",
            "lr_quadratic_warmup",
            "cosine_constant_lr_ratio",
            "cosine_restarts",
        ],
        "schedules are constant, linear, cosine and wsd (train.schedule, train.min_lr_ratio, train.decay_ratio)",
    ),
];

/// What a name of another trainer is here: one of our keys, or the reason for there being none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// This key of ours.
    Key(&'static str),
    /// Nothing, because of this.
    None(&'static str),
}

/// What a key of another trainer is here, by its whole name or by its last part; `None`: it is not known.
#[must_use]
pub fn elsewhere(whole: &str) -> Option<Elsewhere> {
    let last = whole.rsplit('.').next().unwrap_or(whole);
    let key = |name: &str| KEYS.iter().find(|k| k.elsewhere.contains(&name));
    let none = |name: &str| NONE.iter().find(|(names, _)| names.contains(&name));
    [whole, last].into_iter().find_map(|name| {
        let key = key(name).map(|k| Elsewhere::Key(k.name));
        key.or_else(|| none(name).map(|(_, why)| Elsewhere::None(why)))
    })
}

#[cfg(test)]
mod tests;
