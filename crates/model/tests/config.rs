//! Configurations of the model hub, as they are published.

#[path = "driver/mod.rs"]
mod driver;
#[path = "published/mod.rs"]
mod published;

use driver::tiny_shapes;
use lowtide_model::{ModelError, config_json, dropout_of, parse_config};
use lowtide_workload::{Dtype, Family, ModelShape, Rope, RopeScaling, builtin_names};
use published::{experts, gpt2, llama31, mistral, parsed, phi3, qwen25, types, with};
use serde_json::{Value, json};

#[test]
fn published_configurations_are_understood() {
    let shape = parse_config(&llama31(), "llama3.1").unwrap();
    assert_eq!(
        (shape.kv_heads, shape.head_dim, shape.vocab),
        (8, 128, 128_256)
    );
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original: 8192.0,
    };
    assert_eq!(
        shape.rope,
        Some(Rope {
            theta: 500_000.0,
            scaling: llama3,
            width: None,
        })
    );
    assert!(!shape.tied && !shape.qkv_bias && !shape.qk_norm);

    let shape = parse_config(&qwen25(), "qwen2.5-0.5b").unwrap();
    assert_eq!(shape, ModelShape::builtin("qwen2.5-0.5b").unwrap());

    let shape = parse_config(&mistral(), "mistral").unwrap();
    assert_eq!((shape.qkv_bias, shape.head_dim), (false, 128));

    let shape = parse_config(&gpt2(), "gpt2").unwrap();
    assert_eq!(shape.family, Family::Gpt2);
    assert_eq!(
        (shape.intermediate, shape.head_dim, shape.kv_heads),
        (3072, 64, 12)
    );
    assert!(shape.tied && shape.qkv_bias && shape.rope.is_none());

    let mut qwen3 = with(qwen25(), "model_type", json!("qwen3"));
    qwen3["head_dim"] = json!(128);
    let shape = parse_config(&qwen3, "qwen3").unwrap();
    assert!(shape.qk_norm && !shape.qkv_bias && !shape.out_bias);
    assert_eq!(shape.attention_width(), 14 * 128);
}

#[test]
fn newer_and_older_spellings_mean_the_same() {
    let plain = parse_config(&llama31(), "x").unwrap();
    let mut newer = llama31();
    let mut parameters = newer["rope_scaling"].take();
    parameters["rope_theta"] = newer["rope_theta"].take();
    newer["rope_parameters"] = parameters;
    assert_eq!(parse_config(&newer, "x").unwrap(), plain);

    let older = json!({"type": "linear", "factor": 2});
    let shape = parse_config(&with(llama31(), "rope_scaling", older), "x").unwrap();
    assert_eq!(shape.rope.unwrap().scaling, RopeScaling::Linear(2.0));
    let default = json!({"rope_type": "default"});
    let shape = parse_config(&with(llama31(), "rope_scaling", default), "x").unwrap();
    assert_eq!(shape.rope.unwrap().scaling, RopeScaling::None);
}

#[test]
fn what_is_not_supported_is_named() {
    let yarn = json!({"rope_type": "proportional", "factor": 4.0});
    let by_layer = json!({"full_attention": {"rope_type": "default"}});
    for (config, want) in [
        (with(llama31(), "model_type", json!("mamba")), "model_type"),
        (with(llama31(), "hidden_act", json!("gelu")), "hidden_act"),
        (
            with(llama31(), "rope_scaling", yarn),
            "rope_scaling.rope_type",
        ),
        (
            with(
                with(llama31(), "rope_scaling", Value::Null),
                "rope_parameters",
                by_layer,
            ),
            "rope_parameters",
        ),
        (
            with(llama31(), "partial_rotary_factor", json!(0.5)),
            "partial_rotary_factor",
        ),
        (
            with(llama31(), "quantization_config", json!({"bits": 4})),
            "quantization_config",
        ),
        (
            with(
                with(mistral(), "sliding_window", json!(4096)),
                "layer_types",
                json!(types(32, |l| l % 2 == 0)),
            ),
            "layer_types",
        ),
        (
            with(qwen25(), "layer_types", json!(vec!["linear_attention"; 24])),
            "layer_types",
        ),
        (
            with(
                phi3(),
                "rope_scaling",
                json!({"type": "linear", "factor": 2.0}),
            ),
            "rope_scaling",
        ),
        (
            with(phi3(), "partial_rotary_factor", json!(0.532)),
            "partial_rotary_factor",
        ),
        (
            with(phi3(), "attention_bias", json!(true)),
            "attention_bias",
        ),
        (
            with(gpt2(), "activation_function", json!("relu")),
            "activation_function",
        ),
        (
            with(gpt2(), "scale_attn_weights", json!(false)),
            "scale_attn_weights",
        ),
        (
            with(gpt2(), "scale_attn_by_inverse_layer_idx", json!(true)),
            "scale_attn_by_inverse_layer_idx",
        ),
        (
            with(gpt2(), "add_cross_attention", json!(true)),
            "add_cross_attention",
        ),
    ] {
        match parse_config(&config, "x") {
            Err(ModelError::Unsupported { key, .. }) => assert_eq!(key, want),
            other => panic!("{want}: {other:?}"),
        }
    }
}

#[test]
fn values_that_make_no_sense_are_named() {
    for (config, want) in [
        (with(llama31(), "hidden_size", json!("wide")), "hidden_size"),
        (
            with(llama31(), "num_hidden_layers", json!(0)),
            "num_hidden_layers",
        ),
        (
            with(llama31(), "vocab_size", json!(1u64 << 40)),
            "vocab_size",
        ),
        (with(llama31(), "rms_norm_eps", json!(-1.0)), "rms_norm_eps"),
        (
            with(llama31(), "tie_word_embeddings", json!(1)),
            "tie_word_embeddings",
        ),
        (
            with(llama31(), "rope_scaling", json!("linear")),
            "rope_scaling",
        ),
        (json!([]), "config.json"),
    ] {
        match parse_config(&config, "x") {
            Err(ModelError::BadValue { key, .. }) => assert_eq!(key, want),
            other => panic!("{want}: {other:?}"),
        }
    }
    for key in [
        "model_type",
        "hidden_size",
        "vocab_size",
        "intermediate_size",
    ] {
        match parse_config(&with(llama31(), key, Value::Null), "x") {
            Err(ModelError::MissingKey { key: k }) => assert_eq!(k, key),
            other => panic!("{key}: {other:?}"),
        }
    }
    for config in [
        with(llama31(), "num_key_value_heads", json!(5)),
        with(llama31(), "num_attention_heads", json!(33)),
        with(gpt2(), "n_head", json!(7)),
    ] {
        let result = parse_config(&config, "x");
        assert!(
            matches!(result, Err(ModelError::Dimensions { .. })),
            "{result:?}"
        );
    }
}

/// Real numbers: key, where it stands, what is the least and the most, and what lies outside.
#[test]
fn numbers_that_no_model_has_are_named() {
    let scaled = |key: &str, value: f64| {
        let mut config = llama31();
        config["rope_scaling"][key] = json!(value);
        config
    };
    let plain = |key: &str, value: f64| with(llama31(), key, json!(value));
    let linear = |_: &str, value: f64| {
        let scaling = json!({"rope_type": "linear", "factor": value});
        with(llama31(), "rope_scaling", scaling)
    };
    let newer = |_: &str, value: f64| {
        let parameters = json!({"rope_type": "default", "rope_theta": value});
        let config = with(llama31(), "rope_scaling", Value::Null);
        with(config, "rope_parameters", parameters)
    };
    let old = |key: &str, value: f64| with(gpt2(), key, json!(value));
    type Make<'a> = &'a dyn Fn(&str, f64) -> Value;
    let table: [(&str, Make<'_>, [f64; 2]); 11] = [
        ("rms_norm_eps", &plain, [1e-20, 1.0]),
        ("layer_norm_epsilon", &old, [1e-20, 1.0]),
        ("rope_theta", &plain, [1.0, 1e15]),
        ("rope_theta", &newer, [1.0, 1e15]),
        ("factor", &scaled, [1.0, 1e6]),
        ("factor", &linear, [1.0, 1e6]),
        ("low_freq_factor", &scaled, [1e-3, 3.9]),
        ("high_freq_factor", &scaled, [1.1, 1e6]),
        (
            "original_max_position_embeddings",
            &scaled,
            [1.0, 4_294_967_295.0],
        ),
        ("attention_dropout", &plain, [0.0, 0.99]),
        ("resid_pdrop", &old, [0.0, 0.99]),
    ];
    for (key, make, bounds) in table {
        for value in bounds {
            let parsed = parse_config(&make(key, value), "x");
            assert!(parsed.is_ok(), "{key} {value}: {parsed:?}");
        }
        for value in [
            bounds[0] / 2.0 - 1e-21,
            -bounds[1],
            bounds[1] * 1e6,
            1e300,
            -1e-300,
        ] {
            match parse_config(&make(key, value), "x") {
                Err(ModelError::BadValue { key: found, .. }) => assert_eq!(found, key, "{value}"),
                other => panic!("{key} {value}: {other:?}"),
            }
        }
    }
}

#[test]
fn dropout_is_reported() {
    let none = with(llama31(), "attention_dropout", json!(0.0));
    assert_eq!(dropout_of(&none), []);
    let mut config = gpt2();
    for (key, value) in [
        ("attn_pdrop", json!(0.1)),
        ("embd_pdrop", json!(0)),
        ("resid_pdrop", json!(0.2)),
        ("classifier_dropout", Value::Null),
    ] {
        config[key] = value;
    }
    let want = [
        ("attn_pdrop".to_owned(), 0.1),
        ("resid_pdrop".to_owned(), 0.2),
    ];
    config["summary_first_dropout"] = json!(0.1); // of a head that is not trained
    assert_eq!(dropout_of(&config), want);
    let t5 = json!({"model_type": "t5", "dropout_rate": 0.1, "classifier_dropout": 0.2});
    assert_eq!(dropout_of(&t5), [("dropout_rate".to_owned(), 0.1)]);
}

#[test]
fn a_written_configuration_reads_back() {
    let mut shapes: Vec<_> = builtin_names()
        .into_iter()
        .map(|n| ModelShape::builtin(n).unwrap())
        .collect();
    shapes.extend(tiny_shapes());
    for shape in shapes {
        let json = config_json(&shape, Dtype::Bf16);
        let text = json.to_string();
        let back = parse_config(&serde_json::from_str(&text).unwrap(), &shape.name).unwrap();
        assert_eq!(back, shape, "{text}");
    }
}

/// `rope_scaling or rope_parameters`, then `rope_theta` of that, of the configuration, 10,000.
#[test]
fn where_rope_is_given_twice_transformers_rule_holds() {
    let newer = json!({"rope_type": "default", "rope_theta": 5e5});
    let base = with(
        with(llama31(), "rope_parameters", newer),
        "rope_theta",
        json!(7e4),
    );
    let rope = |config: &Value| parse_config(config, "x").unwrap().rope.unwrap();
    for nothing in [json!(null), json!({})] {
        let one = rope(&with(base.clone(), "rope_scaling", nothing));
        assert_eq!((one.theta, one.scaling), (5e5, RopeScaling::None));
    }
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let both = rope(&with(base.clone(), "rope_scaling", linear.clone()));
    assert_eq!((both.theta, both.scaling), (7e4, RopeScaling::Linear(4.0)));
    let mut bare = with(base, "rope_scaling", linear);
    bare.as_object_mut().unwrap().remove("rope_theta");
    assert_eq!(rope(&bare).theta, 1e4);
    let own = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 3.0});
    assert_eq!(rope(&with(bare, "rope_scaling", own)).theta, 3.0);
}

/// Mixtral and Qwen3-MoE by their own keys and defaults; what is not computed is refused by its key.
#[test]
fn experts_are_those_of_transformers() {
    let [mixtral, qwen] = experts();
    let shape = parsed(&mixtral);
    let named = ModelShape::builtin("mixtral-8x7b").unwrap();
    assert_eq!(
        ModelShape {
            name: named.name.clone(),
            ..shape
        },
        named
    );
    let shape = parsed(&qwen);
    let named = ModelShape::builtin("qwen3-30b-a3b").unwrap();
    assert_eq!(
        ModelShape {
            name: named.name.clone(),
            ..shape
        },
        named
    );

    // Transformers takes either name of the number of experts, and writes Qwen3-MoE's as Mixtral's.
    let mut other = qwen.clone();
    let count = other.as_object_mut().unwrap().remove("num_experts");
    other["num_local_experts"] = count.unwrap();
    assert_eq!(parsed(&other), parsed(&qwen));
    for (config, keys, want) in [
        (
            &mixtral,
            vec!["num_local_experts", "num_experts_per_tok"],
            (8, 2, true),
        ),
        (
            &qwen,
            vec!["num_experts", "num_experts_per_tok", "norm_topk_prob"],
            (128, 8, false),
        ),
    ] {
        let mut silent = config.clone();
        for key in keys {
            silent.as_object_mut().unwrap().remove(key).unwrap();
        }
        let of = parsed(&silent).experts.unwrap();
        assert_eq!((of.count, of.chosen, of.renormalise), want);
    }

    // A window is in every layer, or in none.
    let windows = |config: &Value| {
        let shape = parsed(config);
        (shape.window.as_ref().map(|w| w.keys), shape.all_windows())
    };
    assert_eq!(
        windows(&with(mixtral.clone(), "sliding_window", json!(99))),
        (Some(99), true)
    );
    let used = with(qwen.clone(), "use_sliding_window", json!(true));
    assert_eq!(
        windows(&with(used.clone(), "sliding_window", json!(99))),
        (Some(99), true)
    );
    assert_eq!(windows(&used).0, None, "null is none");
    let mut silent = used.clone();
    silent.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(windows(&silent), (Some(4096), true));

    for (config, key, value) in [
        (&mixtral, "output_router_logits", json!(true)),
        (&qwen, "output_router_logits", json!(true)),
        (&mixtral, "router_jitter_noise", json!(0.1)),
        (&qwen, "decoder_sparse_step", json!(2)),
        (&qwen, "mlp_only_layers", json!([3])),
        (&qwen, "layer_types", json!(types(48, |l| l == 2))),
    ] {
        match parse_config(&with(config.clone(), key, value), "x") {
            Err(ModelError::Unsupported { key: of, .. }) => assert_eq!(of, key),
            other => panic!("{key}: {other:?}"),
        }
    }
    // Without a weight that loss is none.
    let asked = with(mixtral.clone(), "output_router_logits", json!(true));
    assert_eq!(
        parsed(&with(asked, "router_aux_loss_coef", json!(0.0))),
        parsed(&mixtral)
    );
    let two = with(qwen.clone(), "num_local_experts", json!(64));
    assert!(matches!(
        parse_config(&two, "x"),
        Err(ModelError::BadValue { key, .. }) if key == "num_experts"
    ));
    // A number of experts that nobody has is refused before a list of names is made.
    for count in [1025, 4_000_000_000_u32] {
        let many = with(qwen.clone(), "num_experts", json!(count));
        let start = std::time::Instant::now();
        let error = parse_config(&many, "x").unwrap_err().to_string();
        assert!(error.contains("number of experts"), "{error}");
        assert!(start.elapsed().as_secs() < 1, "{:?}", start.elapsed());
    }
    let deep = with(
        with(qwen, "num_experts", json!(1024)),
        "num_hidden_layers",
        json!(65),
    );
    let error = parse_config(&deep, "x").unwrap_err().to_string();
    assert!(error.contains("experts of all layers"), "{error}");
}
