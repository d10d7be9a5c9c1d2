//! Small shapes that the driver runs, one of each feature.

use lowtide_workload::{
    Family, Layers, LocalRope, ModelShape, Objective, Rope, RopeScaling, Scales, Window,
};

/// A small Llama with odd sizes: grouped queries, untied, two blocks.
pub fn tiny_llama() -> ModelShape {
    ModelShape {
        name: "tiny".to_owned(),
        family: Family::Llama,
        vocab: 37,
        hidden: 20,
        intermediate: 28,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        max_positions: 32,
        norm_eps: 1e-5,
        tied: false,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        rope: Some(Rope {
            theta: 10_000.0,
            scaling: RopeScaling::None,
            width: None,
        }),
        window: None,
        unrotated: Layers::default(),
        scales: Scales::default(),
        parallel: false,
        gelu_by_tanh: false,
        local_rope: None,
        experts: None,
        encoder: None,
        objective: Objective::default(),
        stacks: None,
    }
}

/// Gemma 2's factors for these sizes, with some caps.
fn gemma2_scales(attention_cap: Option<f64>, logits_cap: Option<f64>) -> Scales {
    Scales {
        embedding: f64::from(tiny_llama().hidden).sqrt(),
        attention: Some(7f64.powf(-0.5)),
        attention_cap,
        logits_cap,
        ..Scales::default()
    }
}

/// A Gemma 3 whose first layer has other rotary positions than the second, whose are stretched.
fn gemma3(window: Option<Window>, logits_cap: Option<f64>) -> ModelShape {
    let rope = |theta, scaling| Rope {
        theta,
        scaling,
        width: None,
    };
    ModelShape {
        family: Family::Gemma3,
        qk_norm: true,
        window,
        rope: Some(rope(1_000.0, RopeScaling::Linear(2.0))),
        local_rope: Some(LocalRope {
            rope: rope(100.0, RopeScaling::None),
            layers: Layers::those(2, |l| l == 0),
        }),
        scales: gemma2_scales(None, logits_cap),
        ..tiny_llama()
    }
}

/// A window of so many keys in those of two layers.
pub fn window(keys: u32, is: impl Fn(u32) -> bool) -> Option<Window> {
    Some(Window {
        keys,
        layers: Layers::those(2, is),
    })
}

/// A small GPT-2, tied.
pub fn tiny_gpt2() -> ModelShape {
    ModelShape {
        family: Family::Gpt2,
        kv_heads: 4,
        head_dim: 5,
        max_positions: 12,
        tied: true,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        rope: None,
        ..tiny_llama()
    }
}

/// A GPT-NeoX of two heads of ten numbers of which the first `width` are rotated.
fn neox(width: Option<u32>, parallel: bool) -> ModelShape {
    ModelShape {
        family: Family::GptNeoX,
        heads: 2,
        kv_heads: 2,
        head_dim: 10,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        parallel,
        ..rotating(width)
    }
}

/// A StableLM of two query heads and one key head of ten numbers of which the first `width` are rotated.
fn stablelm(width: u32, parallel: bool) -> ModelShape {
    ModelShape {
        family: Family::StableLm,
        heads: 2,
        kv_heads: 1,
        head_dim: 10,
        parallel,
        ..rotating(Some(width))
    }
}

fn rotating(width: Option<u32>) -> ModelShape {
    let mut shape = tiny_llama();
    shape.rope.as_mut().expect("rotary positions").width = width;
    shape
}

/// A Cohere of two query heads and one key head of ten numbers, with a factor of logits that is no power of two.
fn cohere(window: Option<Window>, unrotated: Layers, bias: bool) -> ModelShape {
    ModelShape {
        family: Family::Cohere,
        heads: 2,
        kv_heads: 1,
        head_dim: 10,
        tied: true,
        qkv_bias: bias,
        out_bias: bias,
        parallel: true,
        window,
        unrotated,
        scales: Scales {
            logits_divisor: 1.0 / 0.8,
            ..Scales::default()
        },
        ..tiny_llama()
    }
}

/// One of each feature, by name.
pub fn tiny_shapes() -> Vec<ModelShape> {
    let named = |name: &str, shape: ModelShape| ModelShape {
        name: name.to_owned(),
        ..shape
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original: 16.0,
    };
    let rope = |scaling| {
        Some(Rope {
            theta: 100.0,
            scaling,
            width: None,
        })
    };
    let base = tiny_llama;
    let mut all = vec![
        named("llama", base()),
        named(
            "llama tied",
            ModelShape {
                tied: true,
                ..base()
            },
        ),
        named(
            "llama 3 rope",
            ModelShape {
                rope: rope(llama3),
                ..base()
            },
        ),
        named(
            "linear rope",
            ModelShape {
                rope: rope(RopeScaling::Linear(2.0)),
                ..base()
            },
        ),
        named(
            "yarn",
            ModelShape {
                qk_norm: true,
                rope: rope(RopeScaling::Yarn {
                    factor: 3.0,
                    attention: 1.25,
                    beta_fast: 4.0,
                    beta_slow: 0.5,
                    original: 8.0,
                    truncate: false,
                }),
                ..base()
            },
        ),
        named(
            "dynamic rope",
            ModelShape {
                rope: rope(RopeScaling::Dynamic(2.0)),
                ..base()
            },
        ),
        named(
            "llama with all biases",
            ModelShape {
                qkv_bias: true,
                out_bias: true,
                mlp_bias: true,
                ..base()
            },
        ),
        named(
            "qwen2",
            ModelShape {
                qkv_bias: true,
                tied: true,
                ..base()
            },
        ),
        named(
            "qwen3",
            ModelShape {
                qk_norm: true,
                tied: true,
                ..base()
            },
        ),
        named(
            "mistral with a window",
            ModelShape {
                window: window(3, |_| true),
                ..base()
            },
        ),
        named(
            "qwen2 with a window above",
            ModelShape {
                qkv_bias: true,
                window: window(2, |l| l == 1),
                ..base()
            },
        ),
        named(
            "phi3",
            ModelShape {
                family: Family::Phi3,
                window: window(4, |_| true),
                ..base()
            },
        ),
        named(
            "phi3 with longrope",
            ModelShape {
                family: Family::Phi3,
                rope: rope(RopeScaling::LongRope {
                    short: vec![1.0, 1.5, 2.5],
                    long: vec![1.0, 4.0, 9.0],
                    attention: 1.125,
                    original: 9.0,
                }),
                ..base()
            },
        ),
        named(
            "phi3 with a part of each head rotated",
            ModelShape {
                family: Family::Phi3,
                head_dim: 10,
                rope: Some(Rope {
                    width: Some(6),
                    ..rope(RopeScaling::LongRope {
                        short: vec![1.0, 1.5, 2.5],
                        long: vec![1.0, 4.0, 9.0],
                        attention: 1.125,
                        original: 9.0,
                    })
                    .unwrap()
                }),
                ..base()
            },
        ),
        named(
            "smollm3",
            ModelShape {
                family: Family::SmolLm3,
                tied: true,
                unrotated: Layers::those(2, |l| l == 1),
                ..base()
            },
        ),
        named(
            "smollm3 with biases and windows",
            ModelShape {
                family: Family::SmolLm3,
                qkv_bias: true,
                out_bias: true,
                mlp_bias: true,
                unrotated: Layers::those(2, |l| l == 0),
                window: window(3, |l| l == 0),
                ..base()
            },
        ),
        named(
            "olmo2",
            ModelShape {
                family: Family::Olmo2,
                qk_norm: true,
                ..base()
            },
        ),
        named(
            "olmo2 with biases",
            ModelShape {
                family: Family::Olmo2,
                qk_norm: true,
                qkv_bias: true,
                out_bias: true,
                tied: true,
                ..base()
            },
        ),
        named(
            "granite",
            ModelShape {
                family: Family::Granite,
                mlp_bias: true,
                scales: Scales {
                    embedding: 3.0,
                    attention: Some(0.3),
                    residual: 0.6,
                    logits_divisor: 0.7,
                    ..Scales::default()
                },
                ..base()
            },
        ),
        named(
            "gemma",
            ModelShape {
                family: Family::Gemma,
                tied: true,
                scales: Scales {
                    embedding: f64::from(base().hidden).sqrt(),
                    ..Scales::default()
                },
                ..base()
            },
        ),
        named(
            "gemma2",
            ModelShape {
                family: Family::Gemma2,
                tied: true,
                window: window(3, |l| l == 0),
                scales: gemma2_scales(Some(0.8), Some(1.1)),
                ..base()
            },
        ),
        named("gemma3", gemma3(window(3, |l| l == 0), Some(1.2))),
        named(
            "gemma3 whose windows never slide",
            ModelShape {
                local_rope: gemma3(None, None).local_rope.map(|mut local| {
                    local.rope.scaling = RopeScaling::Linear(3.0);
                    local
                }),
                qkv_bias: true,
                out_bias: true,
                tied: true,
                ..gemma3(None, None)
            },
        ),
        named(
            "gemma2 without caps and windows",
            ModelShape {
                family: Family::Gemma2,
                qkv_bias: true,
                out_bias: true,
                scales: gemma2_scales(None, None),
                ..base()
            },
        ),
        named("gpt_neox", neox(Some(4), true)),
        named(
            "gpt_neox in turn, without biases of attention",
            ModelShape {
                qkv_bias: false,
                out_bias: false,
                gelu_by_tanh: true,
                ..neox(None, false)
            },
        ),
        named(
            "stablelm",
            ModelShape {
                qkv_bias: true,
                tied: true,
                ..stablelm(2, false)
            },
        ),
        named("stablelm side by side", stablelm(6, true)),
        named("cohere", cohere(None, Layers::default(), true)),
        named(
            "cohere with windows",
            cohere(window(3, |l| l == 0), Layers::those(2, |l| l == 1), false),
        ),
        named(
            "cohere whose windows never slide",
            cohere(None, Layers::those(2, |l| l == 0), false),
        ),
        named("gpt2", tiny_gpt2()),
        named(
            "gpt2 untied",
            ModelShape {
                tied: false,
                ..tiny_gpt2()
            },
        ),
    ];
    all.extend(super::experts::shapes());
    all
}
