//! Configurations of the model hub, as they are published.

#[path = "driver/mod.rs"]
mod driver;

use driver::{options, tiny_shapes, window};
use lowtide_model::{
    ModelError, config_json, describe, dropout_of, parse_config, parse_config_for,
};
use lowtide_workload::{Dtype, Family, Layers, Mask, ModelShape, Rope, RopeScaling, builtin_names};
use serde_json::{Value, json};

fn llama31() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3"
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": 128256
    })
}

fn qwen25() -> Value {
    json!({
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": true,
        "use_mrope": false,
        "use_sliding_window": false,
        "vocab_size": 151936
    })
}

fn mistral() -> Value {
    json!({
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "vocab_size": 32768
    })
}

fn gpt2() -> Value {
    json!({
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "vocab_size": 50257
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

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
            scaling: llama3
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
    let yarn = json!({"rope_type": "longrope", "factor": 4.0});
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
                json!({"type": "su", "short_factor": [1.0], "long_factor": [1.0]}),
            ),
            "rope_scaling.rope_type",
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
            with(phi3(), "partial_rotary_factor", json!(0.75)),
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

fn phi3() -> Value {
    json!({
        "attention_bias": false,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": null,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": false,
        "vocab_size": 32064
    })
}

fn smollm3() -> Value {
    json!({
        "attention_bias": false,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 65536,
        "mlp_bias": false,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000.0,
        "sliding_window": null,
        "tie_word_embeddings": true,
        "use_sliding_window": false,
        "vocab_size": 128256
    })
}

/// `layer_types` with a window where `is` holds.
fn types(layers: u32, is: impl Fn(u32) -> bool) -> Vec<&'static str> {
    let of = |l| match is(l) {
        true => "sliding_attention",
        false => "full_attention",
    };
    (0..layers).map(of).collect()
}

fn parsed(config: &Value) -> ModelShape {
    parse_config(config, "x").unwrap_or_else(|e| panic!("{e}: {config}"))
}

/// Windows stand where transformers puts them, by type.
#[test]
fn windows_are_those_of_transformers() {
    let windows = |config: &Value| {
        let shape = parsed(config);
        let of = (0..shape.layers).filter(|&l| shape.mask(l) != Mask::Causal);
        let all: Vec<u32> = of.collect();
        (shape.window.map_or(0, |w| w.keys), all)
    };
    let every = |n: u32| (0..n).collect::<Vec<u32>>();
    // A Mistral has one in every layer; without the key it is 4096, and null is none.
    assert_eq!(windows(&mistral()), (0, vec![]));
    let mut silent = mistral();
    silent.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(windows(&silent), (4096, every(32)));
    let short = with(silent.clone(), "max_position_embeddings", json!(4096));
    assert_eq!(windows(&short), (0, vec![]), "it never slides");
    let fits = parse_config_for(&silent, "x", 4096).unwrap();
    assert_eq!(fits.window, None);
    let slides = parse_config_for(&silent, "x", 4097).unwrap();
    assert!(slides.all_windows());

    // A Qwen has one where it says so, in the layers it names or from max_window_layers on.
    let qwen = |from: u32| {
        let used = with(qwen25(), "use_sliding_window", json!(true));
        let keys = with(used, "sliding_window", json!(99));
        with(keys, "max_window_layers", json!(from))
    };
    assert_eq!(windows(&qwen(22)), (99, vec![22, 23]));
    assert_eq!(windows(&qwen(0)), (99, every(24)));
    assert_eq!(windows(&qwen(24)), (0, vec![]));
    let named = with(qwen(22), "layer_types", json!(types(24, |l| l == 5)));
    assert_eq!(windows(&named), (99, vec![5]));
    let unused = with(named, "use_sliding_window", json!(false));
    assert!(matches!(
        parse_config(&unused, "x"),
        Err(ModelError::BadValue { key, .. }) if key == "layer_types"
    ));
    let few = with(qwen25(), "layer_types", json!(["full_attention"]));
    assert!(matches!(
        parse_config(&few, "x"),
        Err(ModelError::BadValue { key, .. }) if key == "layer_types"
    ));

    assert_eq!(windows(&phi3()), (2047, every(32)));
    let long = with(phi3(), "sliding_window", json!(262_144));
    assert_eq!(windows(&long), (0, vec![]));

    // SmolLM3: in the layers without positions, unless it names them.
    let every_fourth: Vec<u32> = (0..36).filter(|l| l % 4 == 3).collect();
    let shape = parsed(&smollm3());
    assert_eq!((shape.rope.unwrap().theta, &shape.window), (5e6, &None));
    assert_eq!(
        (0..36)
            .filter(|&l| shape.unrotated.has(l))
            .collect::<Vec<_>>(),
        every_fourth
    );
    let used = with(smollm3(), "use_sliding_window", json!(true));
    let used = with(used, "sliding_window", json!(512));
    assert_eq!(windows(&used), (512, every_fourth));
    let marks: Vec<u32> = (0..36).map(|l| u32::from(l != 2)).collect();
    let marked = with(used.clone(), "no_rope_layers", json!(marks));
    assert_eq!(windows(&marked), (512, vec![2]));
    let named = with(marked, "layer_types", json!(types(36, |l| l == 7)));
    assert_eq!(windows(&named), (512, vec![7]));
    assert!(parsed(&named).unrotated.has(2));
    for wrong in [json!([1]), json!(vec![2; 36]), json!("all")] {
        let config = with(used.clone(), "no_rope_layers", wrong);
        assert!(matches!(
            parse_config(&config, "x"),
            Err(ModelError::BadValue { key, .. }) if key == "no_rope_layers"
        ));
    }
}

/// The keys of YaRN as transformers takes them.
#[test]
fn yarn_is_read_as_transformers_reads_it() {
    let of = |keys: Value| {
        let mut scaling = json!({
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768
        });
        for (key, value) in keys.as_object().unwrap() {
            scaling[key] = value.clone();
        }
        with(llama31(), "rope_scaling", scaling)
    };
    let yarn = |config: &Value| match parsed(config).rope.unwrap().scaling {
        RopeScaling::Yarn {
            attention,
            beta_fast,
            beta_slow,
            original,
            truncate,
            ..
        } => (attention, beta_fast, beta_slow, original, truncate),
        other => panic!("{other:?}"),
    };
    let usual = 0.1 * 4f64.ln() + 1.0;
    let plain = yarn(&of(json!({})));
    assert_eq!(plain, (usual, 32.0, 1.0, 32_768.0, true));
    // Null and 0 are as absent; a factor of its own; a ratio of two.
    let same = json!({"beta_fast": null, "beta_slow": 0, "mscale": 0, "attention_factor": null});
    assert_eq!(yarn(&of(same)), plain);
    assert_eq!(yarn(&of(json!({"attention_factor": 1.5}))).0, 1.5);
    let two = yarn(&of(json!({"mscale": 0.7, "mscale_all_dim": 0.5}))).0;
    let longer = |m: f64| 0.1 * m * 4f64.ln() + 1.0;
    assert_eq!(two, longer(0.7) / longer(0.5));
    assert_eq!(yarn(&of(json!({"factor": 1.0}))).0, 1.0);
    assert!(!yarn(&of(json!({"truncate": false}))).4);
    let outside = with(of(json!({})), "original_max_position_embeddings", json!(77));
    assert_eq!(yarn(&outside).3, 77.0);
    for (keys, want) in [
        (json!({"beta_fast": 0.5}), "beta_fast"),
        (json!({"attention_factor": 0.0}), "attention_factor"),
        (json!({"mscale": 1e6, "mscale_all_dim": 1e-3}), "mscale"),
        (json!({"rope_theta": 1.0}), "rope_theta"),
        (json!({"truncate": "no"}), "truncate"),
        (json!({"factor": 0.5}), "factor"),
    ] {
        match parse_config(&of(keys), "x") {
            Err(ModelError::BadValue { key, .. }) => assert_eq!(key, want),
            other => panic!("{want}: {other:?}"),
        }
    }
}

/// What no configuration of its family can say is no shape: an export would be another model.
#[test]
fn shapes_that_no_configuration_has_are_refused() {
    let shape = |name: &str| {
        let all = tiny_shapes();
        all.into_iter().find(|s| s.name == name).expect("a shape")
    };
    let rotated = Layers::those(2, |_| false);
    let odd = Layers::those(2, |l| l == 1);
    let some = window(3, |l| l == 1);
    let options = options(Dtype::F32, 2, 9);
    for wrong in [
        ModelShape {
            window: some.clone(),
            ..shape("llama")
        },
        ModelShape {
            window: some.clone(),
            ..shape("llama with all biases")
        },
        ModelShape {
            window: some.clone(),
            ..shape("gpt2")
        },
        ModelShape {
            window: some,
            ..shape("phi3")
        },
        ModelShape {
            window: window(0, |_| true),
            ..shape("phi3")
        },
        ModelShape {
            window: window(3, |_| false),
            ..shape("phi3")
        },
        ModelShape {
            unrotated: odd.clone(),
            ..shape("llama")
        },
        ModelShape {
            unrotated: odd.clone(),
            ..shape("gpt2")
        },
        ModelShape {
            unrotated: odd,
            ..shape("phi3")
        },
        ModelShape {
            qkv_bias: true,
            ..shape("phi3")
        },
        ModelShape {
            qk_norm: true,
            unrotated: rotated,
            ..shape("smollm3")
        },
        ModelShape {
            qkv_bias: true,
            ..shape("smollm3")
        },
    ] {
        let described = describe(&wrong, &options);
        assert!(
            matches!(described, Err(ModelError::Dimensions { .. })),
            "{wrong:?}"
        );
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
fn dropout_is_told_of() {
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
