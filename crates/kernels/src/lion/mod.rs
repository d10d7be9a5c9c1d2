//! Lion on either device (Chen et al. 2023, arXiv 2302.06675): the sign of a mixture of gradient and moment.
//!
//! With bf16 weights and gradients it moves **18 bytes a parameter**, each of them once: weight 2 read + 2
//! written, remainder 2 + 2, moment 4 + 4, gradient 2 read; 14 with a bf16 moment, 12.0625 with an 8-bit one.
//!
//! # The formula
//!
//! The paper's algorithm 2, with decoupled decay, by the rules of [`crate::update`]:
//!
//! ```text
//! g = grad · grad_scale                  g = __fmul_rn(grad, grad_scale)
//! a = g - m                              a = __fsub_rn(g, m)
//! c = fma(one_minus_beta1, a, m)         c = __fmaf_rn(one_minus_beta1, a, m)
//! u = 1 where c > 0, -1 where c < 0, else c
//! m = fma(one_minus_beta2, a, m)         m = __fmaf_rn(one_minus_beta2, a, m)
//! p = p · keep   (1 without decay)       p = __fmul_rn(p, keep)
//! p = fma(minus_rate, u, p)              p = __fmaf_rn(minus_rate, u, p)
//! ```
//!
//! A mixture that is no number makes the weight none: nothing hides behind a sign. There is no correction of
//! the first steps: the sign does not see the moment's size.

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use lowtide_device::cuda::{Launch, Source};

use crate::update::Hyper;
use crate::update::cuda::HEADERS;
use crate::update::elementwise::Rule;

static SOURCE: Source = Source {
    name: "lion.cu",
    text: include_str!("lion.cu"),
    headers: HEADERS,
};

/// The factors of the formula, the same for every number of a step, on every device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Constants {
    /// `grad_scale`.
    pub grad_scale: f32,
    /// 1 - β₁.
    pub one_minus_beta1: f32,
    /// 1 - β₂.
    pub one_minus_beta2: f32,
    /// 1 - lr · weight decay.
    pub keep: f32,
    /// -lr: what the sign of the update is multiplied by.
    pub minus_rate: f32,
    /// Which step this is: with parameter and position, what rounding to a bf16 moment depends on.
    pub step: u64,
}

impl Constants {
    /// The factors of a step, computed in f64 and rounded to f32 once.
    ///
    /// # Panics
    /// When the step is 0.
    pub(crate) fn of(h: &Hyper) -> Self {
        assert!(h.step > 0, "steps count from 1");
        Self {
            grad_scale: h.grad_scale,
            one_minus_beta1: (1.0 - f64::from(h.beta1)) as f32,
            one_minus_beta2: (1.0 - f64::from(h.beta2)) as f32,
            keep: (1.0 - f64::from(h.lr) * f64::from(h.weight_decay)) as f32,
            minus_rate: -h.lr,
            step: h.step,
        }
    }
}

impl Rule<1> for Constants {
    const SIGNED: [bool; 1] = [true];

    fn scaled(self, grad_scale: f32) -> Self {
        Self { grad_scale, ..self }
    }

    fn keep(&self) -> f32 {
        self.keep
    }

    fn number(&self) -> u64 {
        self.step
    }

    /// The formula of the module's head, operation for operation.
    #[inline(always)]
    fn update(&self, keep: f32, grad: f32, p: f32, [m]: [f32; 1]) -> (f32, [f32; 1]) {
        let g = grad * self.grad_scale;
        let a = g - m;
        let c = self.one_minus_beta1.mul_add(a, m);
        let below = if c < 0.0 { -1.0 } else { c };
        let u = if c > 0.0 { 1.0 } else { below };
        let m = self.one_minus_beta2.mul_add(a, m);
        (self.minus_rate.mul_add(u, p * keep), [m])
    }

    fn source() -> &'static Source {
        &SOURCE
    }

    fn factors<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        launch
            .arg(self.grad_scale)
            .arg(self.one_minus_beta1)
            .arg(self.one_minus_beta2)
            .arg(self.keep)
            .arg(self.minus_rate)
    }
}
