//! Small shapes with experts in the MLP's place.

use lowtide_workload::{Experts, Family, ModelShape};

use super::{tiny_llama, window};

fn of(name: &str, family: Family, (count, chosen, renormalise): (u32, u32, bool)) -> ModelShape {
    ModelShape {
        name: name.to_owned(),
        family,
        intermediate: 12,
        experts: Some(Experts {
            count,
            chosen,
            renormalise,
        }),
        ..tiny_llama()
    }
}

/// One of each feature that models with experts have, by name.
pub fn shapes() -> [ModelShape; 3] {
    let mixtral = of("mixtral", Family::Mixtral, (5, 2, true));
    let qwen3 = of("qwen3_moe", Family::Qwen3Moe, (4, 3, false));
    let name = "qwen3_moe with biases and experts that nobody takes";
    let biases = of(name, Family::Qwen3Moe, (40, 1, true));
    [
        ModelShape {
            window: window(3, |_| true),
            ..mixtral
        },
        ModelShape {
            qk_norm: true,
            ..qwen3
        },
        ModelShape {
            qk_norm: true,
            qkv_bias: true,
            out_bias: true,
            tied: true,
            ..biases
        },
    ]
}
