//! What the configurations of families say beside the sizes: windows, layers without positions, scaled rotary
//! positions.
//!
//! One file because each test asks one question of several families' configurations, which they share.

#[path = "driver/mod.rs"]
mod driver;
#[path = "published/mod.rs"]
mod published;

use driver::{options, tiny_shapes, window};
use lowtide_model::{ModelError, describe, parse_config, parse_config_for};
use lowtide_workload::{Dtype, Experts, Layers, Mask, ModelShape, Objective, RopeScaling, Scales};
use published::{later, llama31, mistral, parsed, phi3, qwen25, smollm3, types, with};
use serde_json::{Value, json};

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

/// The keys of LongRoPE as transformers takes them, by Phi-3's names for it too.
#[test]
fn longrope_is_read_as_transformers_reads_it() {
    let ones = vec![1.0; 48];
    let of = |name: &str, keys: Value| {
        let scaling = json!({"type": name, "short_factor": ones, "long_factor": vec![2.5; 48]});
        let mut config = with(phi3(), "max_position_embeddings", json!(131_072));
        config["rope_scaling"] = scaling;
        for (key, value) in keys.as_object().unwrap() {
            config["rope_scaling"][key] = value.clone();
        }
        config
    };
    let usual = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
    for name in ["longrope", "su", "yarn"] {
        let want = RopeScaling::LongRope {
            short: ones.clone(),
            long: vec![2.5; 48],
            attention: usual,
            original: 4096.0,
        };
        assert_eq!(parsed(&of(name, json!({}))).rope.unwrap().scaling, want);
    }
    let attention = |keys: Value| match parsed(&of("longrope", keys)).rope.unwrap().scaling {
        RopeScaling::LongRope { attention, .. } => attention,
        other => panic!("{other:?}"),
    };
    assert_eq!(attention(json!({"attention_factor": 1.5})), 1.5);
    assert_eq!(attention(json!({"factor": 1.0})), 1.0);
    let shape = parsed(&of("longrope", json!({})));
    assert!(describe(&shape, &options(Dtype::F32, 1, 4096)).is_ok());
    let long = describe(&shape, &options(Dtype::F32, 1, 4097));
    assert!(matches!(
        long,
        Err(ModelError::Dimensions { have: 4097, .. })
    ));
    let few = parse_config(&of("longrope", json!({"long_factor": [1.0]})), "x");
    assert!(matches!(few, Err(ModelError::Dimensions { have: 1, .. })));
    for (keys, want) in [
        (json!({"short_factor": vec![0.0; 48]}), "short_factor"),
        (json!({"long_factor": 2.0}), "long_factor"),
    ] {
        match parse_config(&of("longrope", keys), "x") {
            Err(ModelError::BadValue { key, .. }) => assert_eq!(key, want),
            other => panic!("{want}: {other:?}"),
        }
    }
    let short = with(
        of("longrope", json!({})),
        "original_max_position_embeddings",
        json!(1),
    );
    assert!(matches!(
        parse_config(&short, "x"),
        Err(ModelError::BadValue { .. })
    ));
    // Elsewhere "su" means nothing.
    let llama = with(llama31(), "rope_scaling", json!({"type": "su"}));
    assert!(matches!(
        parse_config(&llama, "x"),
        Err(ModelError::Unsupported { .. })
    ));
}

/// `int(head_dim * partial_rotary_factor)`, from the rotary settings or the configuration; the divisors of longrope
/// are as many as there are pairs.
#[test]
fn parts_of_heads_are_those_of_transformers() {
    let width = |config: &Value| parsed(config).rope.unwrap().width;
    let of = |part: f64| with(phi3(), "partial_rotary_factor", json!(part));
    for (part, want) in [(1.0, None), (0.75, Some(72)), (0.545, Some(52))] {
        assert_eq!(width(&of(part)), want, "{part}");
    }
    let inner = json!({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25});
    assert_eq!(width(&with(of(0.75), "rope_parameters", inner)), Some(24));
    for (part, sane) in [(0.0, false), (1.25, false), (0.01, true), (0.532, true)] {
        match parse_config(&of(part), "x") {
            Err(ModelError::Unsupported { .. }) if sane => {}
            Err(ModelError::BadValue { .. }) if !sane => {}
            other => panic!("{part}: {other:?}"),
        }
    }
    let scaling = |n: usize| {
        let (short, long) = (vec![1.0; n], vec![2.0; n]);
        let scaling = json!({"type": "longrope", "short_factor": short, "long_factor": long});
        let long = with(of(0.75), "original_max_position_embeddings", json!(4096));
        parse_config(&with(long, "rope_scaling", scaling), "x")
    };
    assert!(scaling(36).is_ok());
    let all = scaling(48);
    assert!(matches!(all, Err(ModelError::Dimensions { have: 48, .. })));
}

/// GPT-NeoX and StableLM: parts of heads by their own keys and defaults, attention and MLP side by side, biases.
#[test]
fn side_by_side_as_transformers_has_it() {
    let [.., pythia, stablelm] = later();
    let rope = |shape: &ModelShape| shape.rope.clone().unwrap();
    let shape = parsed(&pythia);
    assert!(shape.parallel && shape.qkv_bias && shape.out_bias && shape.mlp_bias);
    assert!(!shape.gelu_by_tanh && !shape.tied);
    assert_eq!((shape.head_dim, rope(&shape).width), (128, Some(32)));
    // Its keys are its own; those of others it does not read.
    let other = json!({"rotary_emb_base": 5e4, "rope_theta": 9e9, "rotary_pct": 1.0,
        "partial_rotary_factor": 0.5, "use_parallel_residual": false, "hidden_act": "gelu_fast",
        "attention_bias": false});
    let mut config = pythia.clone();
    for (key, value) in other.as_object().unwrap() {
        config[key] = value.clone();
    }
    let shape = parsed(&config);
    assert_eq!((rope(&shape).theta, rope(&shape).width), (5e4, None));
    assert!(!shape.parallel && shape.gelu_by_tanh && !shape.qkv_bias && !shape.out_bias);
    let mut silent = pythia.clone();
    for key in ["rotary_pct", "rotary_emb_base", "use_parallel_residual"] {
        silent.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(parsed(&silent), parsed(&pythia));

    let shape = parsed(&stablelm);
    assert!(!shape.parallel && !shape.qkv_bias && !shape.mlp_bias);
    assert_eq!((shape.head_dim, rope(&shape).width), (80, Some(20)));
    let mut silent = stablelm.clone();
    let keys = silent.as_object_mut().unwrap();
    keys.remove("partial_rotary_factor");
    assert_eq!(parsed(&silent), shape);
    for (key, value, of) in [
        ("hidden_act", json!("relu"), &pythia),
        ("rotary_pct", json!(0.01), &pythia),
        ("hidden_act", json!("gelu"), &stablelm),
        ("qk_layernorm", json!(true), &stablelm),
    ] {
        match parse_config(&with(of.clone(), key, value), "x") {
            Err(ModelError::Unsupported { key: reported, .. }) => assert_eq!(reported, key),
            other => panic!("{key}: {other:?}"),
        }
    }
    for (key, value, of) in [
        ("num_attention_heads", json!(24), &pythia),
        ("head_dim", json!(64), &stablelm),
    ] {
        let refused = parse_config(&with(of.clone(), key, value), "x");
        assert!(
            matches!(refused, Err(ModelError::Dimensions { .. })),
            "{key}: {refused:?}"
        );
    }
}

/// Windows in five of six layers, which have rotary positions of their own, by either spelling of the configuration.
#[test]
fn gemma3_is_that_of_transformers() {
    let [_, _, _, gemma3, ..] = later();
    let shape = parsed(&gemma3);
    let sliding: Vec<u32> = (0..26).filter(|l| (l + 1) % 6 != 0).collect();
    let local = shape.local_rope.clone().unwrap();
    for l in 0..26 {
        let here = sliding.contains(&l);
        assert_eq!(shape.mask(l) == Mask::Window(512), here, "{l}");
        assert_eq!(local.layers.has(l), here, "{l}");
    }
    let rope = shape.rope.clone().unwrap();
    assert_eq!((rope.theta, local.rope.theta), (1e6, 1e4));
    assert!(shape.qk_norm && shape.tied && shape.scales.attention == Some(0.0625));
    // Windows that never slide leave the positions of their layers.
    let short = parse_config_for(&gemma3, "x", 512).unwrap();
    assert_eq!(
        (short.window, short.local_rope),
        (None, shape.local_rope.clone())
    );

    let mut silent = gemma3.clone();
    for key in [
        "rope_theta",
        "rope_local_base_freq",
        "sliding_window_pattern",
        "rope_scaling",
    ] {
        silent.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(parsed(&silent), shape);
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let older = parsed(&with(gemma3.clone(), "rope_scaling", linear.clone()));
    assert_eq!(
        older.rope.clone().unwrap().scaling,
        RopeScaling::Linear(8.0)
    );
    assert_eq!(older.local_rope, shape.local_rope);
    let newer = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}
    });
    assert_eq!(
        parsed(&with(silent.clone(), "rope_parameters", newer)),
        older
    );
    let every = with(gemma3.clone(), "layer_types", json!(types(26, |_| false)));
    let every = parsed(&every);
    assert_eq!((every.window, every.local_rope), (None, None));

    for (key, value) in [
        ("model_type", json!("gemma3")),
        ("attn_logit_softcapping", json!(50.0)),
        ("use_bidirectional_attention", json!(true)),
        ("hidden_activation", json!("gelu")),
        ("sliding_window", Value::Null),
        ("rope_parameters", json!({"rope_type": "default"})),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}),
        ),
    ] {
        match parse_config(&with(gemma3.clone(), key, value), "x") {
            Err(ModelError::Unsupported { key: reported, .. }) => {
                assert!(reported.starts_with(key), "{reported}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    // Transformers would not see by this name that it is linear.
    let unseen = json!({"type": "linear", "factor": 8.0});
    assert!(matches!(
        parse_config(&with(gemma3, "rope_scaling", unseen), "x"),
        Err(ModelError::MissingKey { .. })
    ));
}

/// Windows in three of four layers and no positions in the fourth; Command R has neither.
#[test]
fn cohere_is_that_of_transformers() {
    let [_, _, _, _, cohere2, ..] = later();
    let shape = parsed(&cohere2);
    for l in 0..32 {
        let full = (l + 1) % 4 == 0;
        assert_eq!(shape.mask(l) == Mask::Causal, full, "{l}");
        assert_eq!(shape.unrotated.has(l), full, "{l}");
    }
    assert!(shape.parallel && shape.tied && shape.scales.logits_divisor == 4.0);
    assert_eq!(shape.rope.clone().unwrap().theta, 50_000.0);
    let mut silent = cohere2.clone();
    for key in ["sliding_window", "sliding_window_pattern", "head_dim"] {
        silent.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(parsed(&silent), shape);
    // Windows that never slide leave the layers without positions.
    let short = parse_config_for(&cohere2, "x", 4096).unwrap();
    assert_eq!(
        (short.window, short.unrotated),
        (None, shape.unrotated.clone())
    );
    let cohere = with(cohere2.clone(), "model_type", json!("cohere"));
    let plain = parsed(&cohere);
    assert!(plain.window.is_none() && plain.unrotated.is_empty());
    let mut silent = cohere.clone();
    silent.as_object_mut().unwrap().remove("rope_theta");
    assert_eq!(parsed(&silent).rope.unwrap().theta, 500_000.0);
    for (key, value, of) in [
        ("use_qk_norm", json!(true), &cohere),
        ("logit_scale", Value::Null, &cohere),
        ("sliding_window", Value::Null, &cohere2),
        ("hidden_act", json!("gelu"), &cohere2),
    ] {
        match parse_config(&with(of.clone(), key, value), "x") {
            Err(ModelError::Unsupported { key: reported, .. }) => assert_eq!(reported, key),
            other => panic!("{key}: {other:?}"),
        }
    }
    // The factor is written so that it is read as the same divisor.
    for scale in [0.25, 0.8, 0.833_333_333_333_333_4, 0.1, 3.3] {
        let shape = parsed(&with(cohere.clone(), "logit_scale", json!(scale)));
        let written = lowtide_model::config_json(&shape, Dtype::F32);
        assert_eq!(parsed(&written).scales, shape.scales, "{scale}");
    }
}

/// Factors, caps and windows as transformers takes them, absent and null.
#[test]
fn factors_and_caps_are_those_of_transformers() {
    let [olmo2, granite, gemma2, ..] = later();
    let without = |config: &Value, key: &str| {
        let mut config = config.clone();
        config.as_object_mut().unwrap().remove(key);
        config
    };
    assert!(parsed(&olmo2).scales.is_plain() && parsed(&olmo2).qk_norm);
    let want = Scales {
        embedding: 12.0,
        attention: Some(0.015625),
        residual: 0.22,
        logits_divisor: 8.0,
        ..Scales::default()
    };
    assert_eq!(parsed(&granite).scales, want);
    // Its scores have the factor 1, not that of Llama, where the key is absent.
    let absent = parsed(&without(&granite, "attention_multiplier"));
    assert_eq!(absent.scales.attention, Some(1.0));

    let want = Scales {
        embedding: 48.0,
        attention: Some(0.0625),
        attention_cap: Some(50.0),
        logits_cap: Some(30.0),
        ..Scales::default()
    };
    let shape = parsed(&gemma2);
    assert_eq!((shape.scales, shape.tied), (want, true));
    let sliding = |shape: &ModelShape| -> Vec<u32> {
        (0..shape.layers)
            .filter(|&l| shape.mask(l) == Mask::Window(4096))
            .collect()
    };
    let every_second: Vec<u32> = (0..13).map(|l| 2 * l).collect();
    assert_eq!(sliding(&shape), every_second);
    let named = with(gemma2.clone(), "layer_types", json!(types(26, |l| l == 3)));
    assert_eq!(sliding(&parsed(&named)), [3]);
    let silent = without(
        &without(&gemma2, "attn_logit_softcapping"),
        "sliding_window",
    );
    assert_eq!(parsed(&silent), shape);
    let uncapped = with(gemma2.clone(), "attn_logit_softcapping", Value::Null);
    assert_eq!(parsed(&uncapped).scales.attention_cap, None);
    for (key, value, of) in [
        ("residual_multiplier", json!(0.0), &granite),
        ("logits_scaling", json!("8"), &granite),
        ("attn_logit_softcapping", json!(-1.0), &gemma2),
        ("query_pre_attn_scalar", json!(0), &gemma2),
    ] {
        match parse_config(&with(of.clone(), key, value), "x") {
            Err(ModelError::BadValue { key: reported, .. }) => assert_eq!(reported, key),
            other => panic!("{key}: {other:?}"),
        }
    }
    for (key, value) in [
        ("hidden_activation", json!("gelu")),
        ("use_bidirectional_attention", json!(true)),
        ("query_pre_attn_scalar", json!(2.5)),
        ("sliding_window", Value::Null),
    ] {
        match parse_config(&with(gemma2.clone(), key, value), "x") {
            Err(ModelError::Unsupported { key: reported, .. }) => assert_eq!(reported, key),
            other => panic!("{key}: {other:?}"),
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
    let of_width = |name: &str, width: u32| {
        let mut shape = shape(name);
        shape.rope.as_mut().unwrap().width = Some(width);
        shape
    };
    let of_experts = |count, chosen, renormalise| ModelShape {
        experts: Some(Experts {
            count,
            chosen,
            renormalise,
        }),
        ..shape("mixtral")
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
        ModelShape {
            scales: shape("granite").scales,
            ..shape("llama")
        },
        ModelShape {
            scales: shape("gemma2").scales,
            ..shape("granite")
        },
        ModelShape {
            scales: shape("granite").scales,
            ..shape("gemma2")
        },
        ModelShape {
            qk_norm: false,
            ..shape("olmo2")
        },
        of_width("llama", 4),
        of_width("smollm3", 4),
        of_width("phi3", 3),
        of_width("phi3", 6),
        of_width("stablelm", 10),
        ModelShape {
            parallel: false,
            ..shape("cohere")
        },
        ModelShape {
            unrotated: Layers::default(),
            ..shape("cohere with windows")
        },
        ModelShape {
            local_rope: shape("gemma3").local_rope,
            ..shape("llama")
        },
        ModelShape {
            local_rope: None,
            ..shape("gemma3")
        },
        ModelShape {
            qk_norm: false,
            ..shape("gemma3")
        },
        ModelShape {
            parallel: true,
            ..shape("llama")
        },
        ModelShape {
            gelu_by_tanh: true,
            ..shape("gpt2")
        },
        ModelShape {
            out_bias: true,
            ..shape("stablelm")
        },
        ModelShape {
            hidden: 30,
            ..shape("stablelm")
        },
        ModelShape {
            mlp_bias: false,
            ..shape("gpt_neox")
        },
        ModelShape {
            kv_heads: 1,
            ..shape("gpt_neox")
        },
        ModelShape {
            experts: shape("mixtral").experts,
            ..shape("llama")
        },
        ModelShape {
            experts: None,
            encoder: None,
            objective: Objective::default(),
            ..shape("mixtral")
        },
        of_experts(0, 1, true),
        of_experts(1025, 1, true),
        of_experts(5, 0, true),
        of_experts(5, 6, true),
        of_experts(64, 33, true),
        of_experts(5, 2, false),
        ModelShape {
            window: window(3, |l| l == 1),
            ..shape("mixtral")
        },
        ModelShape {
            qkv_bias: true,
            ..shape("mixtral")
        },
        ModelShape {
            qk_norm: false,
            ..shape("qwen3_moe")
        },
        ModelShape {
            out_bias: true,
            ..shape("qwen3_moe")
        },
    ] {
        let described = describe(&wrong, &options);
        assert!(
            matches!(described, Err(ModelError::Dimensions { .. })),
            "{wrong:?}"
        );
    }
}

/// An untrusted number of layers is checked before a list of that length is made.
#[test]
fn no_list_is_made_of_a_number_of_layers_that_nobody_has() {
    let sliding = with(qwen25(), "use_sliding_window", json!(true));
    let configs = [llama31(), mistral(), sliding, phi3(), smollm3()];
    for config in configs.into_iter().chain(later()) {
        let mut config = with(config, "num_hidden_layers", json!(4_000_000_000_u32));
        for list in ["layer_types", "no_rope_layers"] {
            config.as_object_mut().unwrap().remove(list);
        }
        let config = with(config, "sliding_window", json!(99));
        let start = std::time::Instant::now();
        let error = parse_config(&config, "x").unwrap_err().to_string();
        assert!(error.contains("number of layers"), "{error}");
        assert!(start.elapsed().as_secs() < 1, "{:?}", start.elapsed());
    }
}

/// Absent keys have a class's default; null ones what the class makes of null.
#[test]
fn null_is_not_absent() {
    let heads = |value: Option<Value>| {
        let mut config = mistral();
        config
            .as_object_mut()
            .unwrap()
            .remove("num_key_value_heads");
        if let Some(value) = value {
            config["num_key_value_heads"] = value;
        }
        parsed(&config).kv_heads
    };
    assert_eq!(heads(None), 8);
    assert_eq!(heads(Some(json!(null))), 32);
    assert_eq!(heads(Some(json!(4))), 4);
    // A Qwen whose layers slide over nothing.
    let mut config = with(qwen25(), "use_sliding_window", json!(true));
    config["layer_types"] = json!(types(24, |l| l == 5));
    config["sliding_window"] = json!(null);
    let error = parse_config(&config, "x").unwrap_err().to_string();
    assert!(error.contains("sliding_window"), "{error}");
}

/// A checkpoint has its model's shape, and is refused for another: a shape has no key more than before there were
/// windows unless it has one.
#[test]
fn a_shape_without_windows_is_written_as_before_there_were_any() {
    let shape = json!(ModelShape::builtin("llama2-7b").unwrap());
    let keys: Vec<&String> = shape.as_object().unwrap().keys().collect();
    for key in ["window", "unrotated", "scales"] {
        assert!(!keys.iter().any(|k| *k == key), "{keys:?}");
    }
    let read: ModelShape = serde_json::from_value(shape.clone()).unwrap();
    assert_eq!(json!(read), shape);
    assert!(json!(parsed(&smollm3())).get("unrotated").is_some());
}
