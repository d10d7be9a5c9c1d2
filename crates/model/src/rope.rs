//! Inverse frequencies of rotary positions, as transformers' `modeling_rope_utils` makes them.

use std::f64::consts::TAU;

use lowtide_workload::{Rope, RopeScaling};

/// What a rotation of the numbers of a head turns by.
pub(crate) struct Angles {
    /// `theta^(-2i/R)` for i in 0..R/2, stretched, where R numbers of a head are rotated.
    pub inverse: Vec<f64>,
    /// By what rotated numbers are multiplied.
    pub factor: f64,
}

/// Angles for positions below the model's longest sequence, and by LongRoPE below its trained length.
pub(crate) fn angles(rope: &Rope, head_dim: u32) -> Angles {
    let factor = match rope.scaling {
        RopeScaling::Yarn { attention, .. } | RopeScaling::LongRope { attention, .. } => attention,
        _ => 1.0,
    };
    Angles {
        inverse: inverse_frequencies(rope, rope.rotated(head_dim)),
        factor,
    }
}

fn inverse_frequencies(rope: &Rope, rotated: u32) -> Vec<f64> {
    let d = f64::from(rotated);
    (0..rotated / 2)
        .map(|i| (i, rope.theta.powf(-2.0 * f64::from(i) / d)))
        .map(|(i, inv)| stretch(f64::from(i), inv, rope, d))
        .collect()
}

/// Frequency `i` where `d` numbers of a head are rotated, of which `inv` is the plain one.
fn stretch(i: f64, inv: f64, rope: &Rope, d: f64) -> f64 {
    match rope.scaling {
        RopeScaling::None | RopeScaling::Dynamic(_) => inv,
        RopeScaling::Linear(factor) => inv / factor,
        RopeScaling::LongRope { ref short, .. } => inv / short[i as usize],
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original,
        } => {
            let wavelength = TAU / inv;
            if wavelength < original / high_freq_factor {
                inv
            } else if wavelength > original / low_freq_factor {
                inv / factor
            } else {
                let kept = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - kept) * inv / factor + kept * inv
            }
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original,
            truncate,
            ..
        } => {
            // The number of the head whose frequency turns so often within the trained length.
            let at = |turns: f64| d * (original / (turns * TAU)).ln() / (2.0 * rope.theta.ln());
            let (mut low, mut high) = (at(beta_fast), at(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
            if low == high {
                high += 0.001;
            }
            let divided = ((i - low) / (high - low)).clamp(0.0, 1.0);
            inv / factor * divided + inv * (1.0 - divided)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling) -> Vec<f64> {
        inverse_frequencies(
            &Rope {
                theta: 500_000.0,
                scaling,
                width: None,
            },
            128,
        )
    }

    #[test]
    fn linear_scaling_divides_all() {
        let (plain, linear) = (
            frequencies(RopeScaling::None),
            frequencies(RopeScaling::Linear(4.0)),
        );
        assert_eq!(plain.len(), 64);
        assert!((plain[1] - 500_000f64.powf(-1.0 / 64.0)).abs() < 1e-15);
        assert!(
            plain
                .iter()
                .zip(&linear)
                .all(|(p, l)| (p / l - 4.0).abs() < 1e-12)
        );
    }

    /// Llama 3.1's values: high frequencies kept, low ones divided by 8, a ramp between that
    /// joins both without a step.
    #[test]
    fn llama3_scaling_keeps_high_frequencies() {
        let plain = frequencies(RopeScaling::None);
        let scaled = frequencies(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        });
        let ratio: Vec<f64> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
        assert_eq!(ratio[0], 1.0);
        assert!((ratio[63] - 8.0).abs() < 1e-12);
        assert!(ratio.windows(2).all(|w| w[0] <= w[1]));
        // Dimension 32 of Llama 3.1 8B has a wavelength of 4443: original/wavelength = 1.8438,
        // kept = 0.2813, so the frequency is multiplied by 0.2813 + 0.7187/8 = 0.3711.
        let inv = 500_000f64.powf(-0.5);
        let kept = (8192.0 * inv / TAU - 1.0) / 3.0;
        assert!((scaled[32] / inv - (kept + (1.0 - kept) / 8.0)).abs() < 1e-12);
        assert!(
            (scaled[32] / inv - 0.3711).abs() < 1e-4,
            "{}",
            scaled[32] / inv
        );
    }

    /// Heads of 16 numbers, theta 10,000, a trained length of 64: the ramp goes from number 0 to number 3, or without
    /// truncation to 2.016.
    #[test]
    fn yarn_keeps_high_frequencies_and_lengthens() {
        let of = |truncate| {
            let rope = Rope {
                theta: 10_000.0,
                scaling: RopeScaling::Yarn {
                    factor: 4.0,
                    attention: 1.5,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    original: 64.0,
                    truncate,
                },
                width: None,
            };
            let angles = angles(&rope, 16);
            assert_eq!(angles.factor, 1.5);
            let plain = |i: usize| 10_000f64.powf(-(i as f64) / 8.0);
            let of = angles.inverse.iter().enumerate();
            of.map(|(i, inv)| plain(i) / inv).collect::<Vec<f64>>()
        };
        // at(1) = 16·ln(64/2π)/(2·ln 10⁴) = 2.016, whose ceiling is 3.
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        let cut = of(true);
        for (i, &ratio) in cut.iter().enumerate() {
            let divided = (i as f64 / 3.0).min(1.0);
            near(ratio, 1.0 / (divided / 4.0 + 1.0 - divided));
        }
        let whole = of(false);
        let end = 16.0 * (64.0 / TAU).ln() / (2.0 * 10_000f64.ln());
        let divided = 1.0 / end;
        near(whole[1], 1.0 / (divided / 4.0 + 1.0 - divided));
        assert!(whole[2] < 4.0 && whole[3] == 4.0);
    }

    #[test]
    fn dynamic_scaling_is_plain_within_the_models_length() {
        assert_eq!(
            frequencies(RopeScaling::Dynamic(4.0)),
            frequencies(RopeScaling::None)
        );
    }
}
