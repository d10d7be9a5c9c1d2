//! Inverse frequencies of rotary positions, as transformers' `modeling_rope_utils` makes them.

use std::f64::consts::TAU;

use lowtide_workload::{Rope, RopeScaling};

/// `theta^(-2i/D)` for i in 0..D/2, stretched.
pub(crate) fn inverse_frequencies(rope: &Rope, head_dim: u32) -> Vec<f64> {
    let d = f64::from(head_dim);
    (0..head_dim / 2)
        .map(|i| rope.theta.powf(-2.0 * f64::from(i) / d))
        .map(|inv| stretch(inv, rope.scaling))
        .collect()
}

fn stretch(inv: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => inv,
        RopeScaling::Linear(factor) => inv / factor,
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
}
