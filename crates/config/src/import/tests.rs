//! Files of Axolotl, and what is made of them.

use super::*;
use crate::run::Run;
use crate::words::KeepBest;

const THEIRS: &str = "
base_model: models/Qwen2.5-3B
adapter:
load_in_4bit: false
datasets:
  - path: json
    data_files: [a.jsonl, 'b c.jsonl']
    type: chat_template
    field_messages: conversations
    roles_to_train: [assistant]
val_set_size: 0.05
sequence_len: 4096
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 3
learning_rate: 2e-5
lr_scheduler: cosine
optimizer: paged_adamw_8bit
bf16: auto
eval_steps: 0.1
save_steps: 200
gradient_checkpointing: true
wandb_project: mine
output_dir: ./out
";

#[test]
fn a_run_of_axolotl_is_a_run_of_ours() {
    let imported = import_axolotl(THEIRS, "axolotl.yaml").unwrap();
    let run = Run::parse(&imported.yaml, "run.yaml", Path::new("/r"), &[]).unwrap();
    let files: Vec<_> = run
        .data
        .train
        .iter()
        .map(|s| s.path.display().to_string())
        .collect();
    assert_eq!(files, ["/r/a.jsonl", "/r/b c.jsonl"]);
    assert_eq!(run.data.fields.messages, "conversations");
    assert_eq!((run.train.seq, run.train.accumulate), (4096, 8));
    assert_eq!(run.data.eval_split, 0.05);
    assert_eq!(run.checkpoint.every_steps, 200);
    // A tenth of three epochs.
    assert_eq!(run.eval.every_epochs, Some(0.1 * 3.0));
    assert_eq!(run.optimizer.moments, lowtide_workload::Moments::Int8);
    let names: Vec<&str> = imported.dropped.iter().map(|d| d.0.as_str()).collect();
    let want = [
        "datasets[0].roles_to_train",
        "gradient_checkpointing: true",
        "wandb_project: mine",
    ];
    assert_eq!(names, want);
    for (what, why) in &imported.dropped {
        assert!(
            imported.yaml.contains(&format!("#   {what}: {why}")),
            "{}",
            imported.yaml
        );
    }
}

#[test]
fn another_layout_is_no_part_of_the_data() {
    let text = "base_model: m\ndatasets:\n- {path: a.jsonl, type: chat_template}\n\
                    - {path: b.jsonl, type: alpaca, field_messages: x}\n- {path: c.jsonl, type: sharegpt}\n";
    let imported = import_axolotl(text, "a.yaml").unwrap();
    let run = Run::parse(&imported.yaml, "run.yaml", Path::new("/r"), &[]).unwrap();
    let files: Vec<_> = run.data.train.iter().map(|s| s.path.clone()).collect();
    assert_eq!(files, [Path::new("/r/a.jsonl"), Path::new("/r/c.jsonl")]);
    assert_eq!(run.data.fields.messages, "messages");
    assert_eq!(imported.warned.len(), 1);
    assert!(
        imported.warned[0].0.contains("b.jsonl"),
        "{:?}",
        imported.warned
    );
    assert!(
        imported
            .yaml
            .contains("#   datasets[1] (b.jsonl): its records are alpaca"),
        "{}",
        imported.yaml
    );
}

fn imported(text: &str) -> (Imported, Run) {
    let imported = import_axolotl(text, "a.yaml").unwrap();
    let run = Run::parse(&imported.yaml, "run.yaml", Path::new("/r"), &[]).unwrap();
    (imported, run)
}

/// Python's writers write `True`, and Axolotl's reader of YAML takes more.
#[test]
fn truth_is_written_in_several_ways() {
    for (yes, no) in [
        ("True", "False"),
        ("yes", "no"),
        ("ON", "Off"),
        ("'true'", "'false'"),
        ("y", "n"),
        ("T", "F"),
        ("1", "0"),
    ] {
        let text = format!(
            "base_model: m\ntrain_on_inputs: {yes}\nbf16: {yes}\nsample_packing: {no}\nload_in_4bit: {no}\n\
                 use_tensorboard: {no}\ntest_datasets:\n- {{path: e.jsonl, type: alpaca}}\neval_steps: 9\n\
                 load_best_model_at_end: {yes}\n"
        );
        let (imported, run) = imported(&text);
        assert_eq!(imported.dropped, [], "{yes}");
        assert_eq!(run.data.train_on, crate::words::TrainOn::All, "{yes}");
        assert_eq!(run.checkpoint.keep_best, crate::words::KeepBest::Loss);
        assert!(!run.data.packing && !run.log.tensorboard);
    }
    let (of, run) = imported("base_model: m\ntrain_on_inputs: False\nload_in_8bit: True\n");
    assert_eq!(run.data.train_on, crate::words::TrainOn::Assistant);
    assert_eq!(of.dropped.len(), 1, "{:?}", of.dropped);
}

/// What a list of messages is called where no name is given depends on the type.
#[test]
fn data_sets_are_alike_by_the_usual_names_of_their_types() {
    let (chat, share) = ("type: chat_template", "type: sharegpt");
    let named = "field_messages: conversations";
    let (chat_named, share_named) = (&format!("{chat}, {named}"), &format!("{share}, {named}"));
    for (sets, left, name) in [
        (&[share, share_named][..], &[][..], "conversations"),
        (&[chat_named, share], &[], "conversations"),
        (&[share, chat_named], &[], "conversations"),
        (&[share_named, share, chat_named], &[], "conversations"),
        // Without a name the reader takes both.
        (&[chat, share], &[], "messages"),
        (&[share, chat, share], &[], "messages"),
        // With one it takes that alone.
        (&[chat, share_named], &[1], "messages"),
        (&[share, chat, chat_named], &[2], "messages"),
        (&[share, chat_named, chat], &[2], "conversations"),
    ] {
        let mut text = "base_model: m\ndatasets:\n".to_owned();
        for (i, set) in sets.iter().enumerate() {
            text += &format!("- {{path: {i}.jsonl, {set}}}\n");
        }
        let (imported, run) = imported(&text);
        let want: Vec<_> = left
            .iter()
            .map(|i| format!("datasets[{i}] ({i}.jsonl)"))
            .collect();
        let found: Vec<_> = imported.warned.iter().map(|w| w.0.clone()).collect();
        assert_eq!(found, want, "{text}");
        assert_eq!(run.data.fields.messages, name, "{text}");
    }
}

/// Looking each key up among all that follow took minutes.
#[test]
fn a_file_of_very_many_keys_is_read_in_seconds() {
    let mut text = "base_model: m\n".to_owned();
    for i in 0..100_000 {
        text += &format!("unknown_key_{i}: 1\n");
    }
    let begin = std::time::Instant::now();
    let imported = import_axolotl(&text, "a.yaml").unwrap();
    assert_eq!(imported.dropped.len(), 100_000);
    assert!(begin.elapsed().as_secs() < 30, "{:?}", begin.elapsed());
}

#[test]
fn data_sets_whose_fields_have_other_names_are_left_out() {
    let text = "base_model: m\ndatasets:\n- {path: a.jsonl, type: chat_template, field_messages: conversations}\n\
                    - {path: b.jsonl, type: chat_template}\n\
                    - {path: c.jsonl, type: chat_template, field_messages: conversations}\n\
                    - {path: d.jsonl, type: chat_template, field_messages: turns}\n";
    let (imported, run) = imported(text);
    let files: Vec<_> = run.data.train.iter().map(|s| s.path.clone()).collect();
    assert_eq!(files, [Path::new("/r/a.jsonl"), Path::new("/r/c.jsonl")]);
    assert_eq!(run.data.fields.messages, "conversations");
    let left: Vec<_> = imported.warned.iter().map(|s| s.0.as_str()).collect();
    assert_eq!(left, ["datasets[1] (b.jsonl)", "datasets[3] (d.jsonl)"]);
    let why = &imported.warned[0].1;
    assert!(
        why.starts_with(
            "its records have 'messages' where those of the first data set have 'conversations'"
        ),
        "{why}"
    );
}

/// Each pair as Axolotl has it: what holds there holds here, and the other is named.
#[test]
fn of_two_keys_that_exclude_each_other_the_one_holds_that_held() {
    let text = "base_model: m\nnum_epochs: 3\nmax_steps: 500\nwarmup_ratio: 0.1\nwarmup_steps: 10\n\
                    datasets:\n- {path: a.jsonl, type: alpaca}\ntest_datasets:\n- {path: e.jsonl, type: alpaca}\n\
                    val_set_size: 0.1\n";
    let (of, run) = imported(text);
    assert_eq!(run.train.length, crate::run::Length::Steps(500));
    assert_eq!(run.train.schedule.warmup, crate::run::Warmup::Steps(10));
    assert_eq!(run.data.eval, [Path::new("/r/e.jsonl")]);
    let names: Vec<&str> = of.dropped.iter().map(|d| d.0.as_str()).collect();
    assert_eq!(
        names,
        ["num_epochs: 3", "warmup_ratio: 0.1", "val_set_size: 0.1"]
    );
    // No split and no limit of steps are no choice.
    let (_, run) = imported(
        "base_model: m\nnum_epochs: 3\nmax_steps: -1\nval_set_size: 0.0\ntest_datasets: [{path: e.jsonl}]\n",
    );
    assert_eq!(run.train.length, crate::run::Length::Epochs(3.0));
    assert_eq!(run.data.eval.len(), 1);
}

#[test]
fn no_norm_is_no_clipping() {
    for zero in ["0", "0.0"] {
        let (of, run) = imported(&format!("base_model: m\nmax_grad_norm: {zero}\n"));
        assert_eq!(of.dropped, []);
        assert_eq!(run.train.clip.mode, crate::words::ClipMode::None);
    }
    let (_, run) = imported("base_model: m\nmax_grad_norm: 0.5\n");
    assert_eq!(run.train.clip.norm, 0.5);
}

#[test]
fn of_a_key_given_twice_the_last_holds_and_the_first_is_named() {
    let text = "base_model: m\nlearning_rate: 1e-3\nseed: 5\nlearning_rate: 1e-5\n\
                    datasets:\n- {path: a.jsonl, path: b.jsonl, type: alpaca}\n\
                    neftune_noise_alpha: 5\nnoisy_embedding_alpha: 10\n";
    let (of, run) = imported(text);
    assert_eq!(run.train.learning_rate, 1e-5);
    assert_eq!(run.data.train[0].path, Path::new("/r/b.jsonl"));
    assert_eq!(run.train.neftune_alpha, 5.0);
    let want = [
        (
            "learning_rate: 1e-3",
            "given again at a.yaml:4:1, which holds",
        ),
        (
            "datasets[0].path: a.jsonl",
            "given again at a.yaml:6:19, which holds",
        ),
        (
            "train.neftune_alpha: 10",
            "another key has already given train.neftune_alpha: 5",
        ),
    ];
    let dropped: Vec<_> = of.dropped.iter().map(|(a, b)| (&**a, &**b)).collect();
    assert_eq!(dropped, want);
}

#[test]
fn files_of_other_trainers_are_refused() {
    for (text, like) in [
        (
            "model_name_or_path: m\npacking: true\n",
            "those of TRL or transformers",
        ),
        (
            "model_name_or_path: m\nfinetuning_type: full\n",
            "those of LLaMA-Factory",
        ),
        ("zero_optimization: {stage: 3}\n", "those of DeepSpeed"),
        ("checkpointer: {}\n", "those of torchtune"),
        ("x: 1\n", "datasets"),
    ] {
        let error = import_axolotl(text, "a.yaml").unwrap_err().to_string();
        assert!(
            error.starts_with("a.yaml: no run file of Axolotl"),
            "{error}"
        );
        assert!(error.ends_with(like), "{error}");
    }
    let imported = import_axolotl("base_model: m\npacking: true\n", "a.yaml").unwrap();
    let why = &imported.dropped[0].1;
    assert!(why.ends_with("here it is data.packing"), "{why}");
}

#[test]
fn what_the_rules_refuse_is_named_and_left_out() {
    let text = "base_model: m\nval_set_size: 0\neval_steps: 50\nsequence_len: 1e9\nnum_epochs: 2\nmax_steps: 7\nadapter: lora\n";
    let imported = import_axolotl(text, "a.yaml").unwrap();
    Run::parse(&imported.yaml, "run.yaml", Path::new("/r"), &[]).unwrap();
    let names: Vec<&str> = imported.dropped.iter().map(|d| d.0.as_str()).collect();
    assert!(names.contains(&"adapter: lora"), "{names:?}");
    assert!(names.contains(&"eval.every_steps: 50"), "{names:?}");
    assert!(
        names.iter().any(|n| n.starts_with("train.seq")),
        "{names:?}"
    );
    assert!(names.contains(&"num_epochs: 2"), "{names:?}");
}

#[test]
fn whatever_it_is_nothing_panics() {
    for text in [
        "",
        "- a",
        "a",
        "datasets: 3",
        "datasets: [3, {path: {a: b}}]",
        "base_model: [a]",
        "a: \"x\\ny\"",
        "base_model: \"a: #b\"",
    ] {
        if let Ok(imported) = import_axolotl(text, "a\nb.yaml") {
            assert!(
                tree::parse(&imported.yaml, &tree::in_file(&"x".into())).is_ok(),
                "{}",
                imported.yaml
            );
        }
    }
    assert!(import_axolotl("a: [", "a.yaml").is_err());
}

/// Every key that is reported is one of ours.
#[test]
fn keys_of_the_table_are_keys() {
    for (name, way) in AXOLOTL {
        let keys: &[&str] = match way {
            Way::Same(key) | Way::Positive(key) | Way::Words(key, _) => &[*key],
            Way::PerEpoch(key) | Way::Strategy(key) => &[*key],
            Way::Steps(keys) => keys,
            Way::Needless(_) | Way::Other(_) => &[],
        };
        for key in keys {
            assert!(KEYS.iter().any(|k| k.name == *key), "{name}: {key}");
        }
    }
}

/// As often in an epoch, or for a share of all steps; what is not said is as there.
#[test]
fn when_to_evaluate_and_to_save_is_taken_over() {
    let with = |more: &str| {
        let test = "test_datasets: [{path: e.jsonl, type: completion}]\n";
        imported(&format!("base_model: m\n{test}{more}"))
    };
    let (of, run) = with("evals_per_epoch: 4\nsaves_per_epoch: 2\n");
    assert_eq!(of.dropped, []);
    assert_eq!(run.eval.every_epochs, Some(0.25));
    assert_eq!(run.checkpoint.every_epochs, Some(0.5));
    // By default: rows of 512 tokens, an example each.
    assert!(!run.data.packing && run.train.seq == 512);
    assert!(
        of.yaml.contains("default: data.packing, train.seq."),
        "{}",
        of.yaml
    );
    let (of, run) = with("sequence_len: 64\nsample_packing: true\n");
    assert!(run.data.packing && run.train.seq == 64 && !of.yaml.contains("default"));

    let (of, run) = with("eval_strategy: epoch\nsave_strategy: 'no'\n");
    assert_eq!((of.dropped.len(), run.eval.every_epochs), (0, Some(1.0)));
    assert_eq!(run.checkpoint.every_epochs, None);
    let (_, run) = with("eval_steps: 0.25\nsave_steps: 0.3\nmax_steps: 10\n");
    assert_eq!((run.eval.every_steps, run.checkpoint.every_steps), (3, 3));
    let (of, run) = with("eval_steps: 7\nevals_per_epoch: 2\n");
    assert_eq!((run.eval.every_steps, run.eval.every_epochs), (7, None));
    assert!(
        of.dropped[0].1.contains("eval_steps is given"),
        "{:?}",
        of.dropped
    );

    let best = "evals_per_epoch: 1\nload_best_model_at_end: true\n";
    for (metric, by, dropped) in [
        ("", KeepBest::Loss, 0),
        ("metric_for_best_model: eval_loss\n", KeepBest::Loss, 0),
        ("metric_for_best_model: accuracy\n", KeepBest::Accuracy, 0),
        ("metric_for_best_model: rouge\n", KeepBest::Loss, 1),
    ] {
        let (of, run) = with(&format!("{metric}{best}"));
        assert_eq!(
            (run.checkpoint.keep_best, of.dropped.len()),
            (by, dropped),
            "{metric}"
        );
    }
    let (of, run) = with("metric_for_best_model: accuracy\n");
    assert_eq!(
        (run.checkpoint.keep_best, of.dropped.len()),
        (KeepBest::None, 1)
    );

    for (size, split, dropped) in [("0.1", 0.1, 0), ("200", 200.0, 0), ("0.7", 0.0, 1)] {
        let (of, run) = imported(&format!(
            "base_model: m\ndatasets: [{{path: a, type: completion}}]\nval_set_size: {size}\n"
        ));
        assert_eq!(
            (run.data.eval_split, of.dropped.len()),
            (split, dropped),
            "{size}"
        );
    }
}

#[test]
fn what_makes_another_training_is_warned_of() {
    let text = "base_model: m\ndatasets: [{path: a.jsonl, type: alpaca}]\nadapter: qlora\nload_in_4bit: true\n\
                lora_r: 8\nload_in_8bit: false\nrl: dpo\nstrict: false\n";
    let (imported, _) = imported(text);
    let warned: Vec<_> = imported.warned.iter().map(|w| w.0.as_str()).collect();
    assert_eq!(warned, ["adapter: qlora", "load_in_4bit: true", "rl: dpo"]);
    assert!(imported.dropped.iter().any(|d| d.0 == "lora_r: 8"));
}
