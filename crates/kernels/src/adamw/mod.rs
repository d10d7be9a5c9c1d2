//! AdamW on either device.
//!
//! With bf16 weights and gradients it moves **26 bytes a parameter**, each of them once: weight 2 read + 2
//! written, remainder 2 + 2, first moment 4 + 4, second moment 4 + 4, gradient 2 read. In precision f32 the
//! weight is the master (4 + 4) and there is no remainder, which is 26 bytes again, or 28 with f32 gradients.
//! bf16 moments make it 18 bytes, 8-bit ones 14.125.
//!
//! # The formula
//!
//! PyTorch's `AdamW` (decoupled decay, epsilon outside the root), by the rules of [`crate::update`]:
//!
//! ```text
//! g = grad · grad_scale                  g = __fmul_rn(grad, grad_scale)
//! a = g - m                              a = __fsub_rn(g, m)
//! m = fma(one_minus_beta1, a, m)         m = __fmaf_rn(one_minus_beta1, a, m)
//! b = fma(g, g, -v)                      b = __fmaf_rn(g, g, -v)
//! v = fma(one_minus_beta2, b, v)         v = __fmaf_rn(one_minus_beta2, b, v)
//! s = sqrt(v)                            s = __fsqrt_rn(v)
//! s = s / root_correction2               s = __fdiv_rn(s, root_correction2)
//! d = s + eps                            d = __fadd_rn(s, eps)
//! u = m / d                              u = __fdiv_rn(m, d)
//! p = p · keep   (1 without decay)       p = __fmul_rn(p, keep)
//! p = fma(minus_rate, u, p)              p = __fmaf_rn(minus_rate, u, p)
//! ```
//!
//! The factors are [`Constants`]. `v` cannot become negative.
//!
//! From |g| of about 1.8e19 on, g² overflows and `v` is infinite, as in PyTorch; unlike there, the
//! next step then makes it NaN.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use lowtide_device::cuda::{Launch, Source};

#[cfg(target_arch = "x86_64")]
use crate::update::cpu::Chunk;
use crate::update::cuda::HEADERS;
use crate::update::elementwise::Rule;
use crate::update::{Hyper, power};

static SOURCE: Source = Source {
    name: "adamw.cu",
    text: include_str!("adamw.cu"),
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
    /// √(1 - β₂ᵗ).
    pub root_correction2: f32,
    /// ε, added to the root of the second moment.
    pub eps: f32,
    /// 1 - lr · weight decay.
    pub keep: f32,
    /// -lr / (1 - β₁ᵗ).
    pub minus_rate: f32,
    /// Which step this is: with parameter and position, what rounding to bf16 moments depends on.
    pub step: u64,
}

impl Constants {
    /// The factors of a step, computed in f64 and rounded to f32 once.
    ///
    /// # Panics
    /// When the step is 0.
    pub(crate) fn of(h: &Hyper) -> Self {
        assert!(h.step > 0, "steps count from 1");
        let (lr, beta1, beta2) = (f64::from(h.lr), f64::from(h.beta1), f64::from(h.beta2));
        Self {
            grad_scale: h.grad_scale,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            root_correction2: (1.0 - power(beta2, h.step)).sqrt() as f32,
            eps: h.eps,
            keep: (1.0 - lr * f64::from(h.weight_decay)) as f32,
            minus_rate: (-lr / (1.0 - power(beta1, h.step))) as f32,
            step: h.step,
        }
    }
}

impl Rule<2> for Constants {
    const SIGNED: [bool; 2] = [true, false];

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
    fn update(&self, keep: f32, grad: f32, p: f32, [m, v]: [f32; 2]) -> (f32, [f32; 2]) {
        let g = grad * self.grad_scale;
        let m = self.one_minus_beta1.mul_add(g - m, m);
        let v = self.one_minus_beta2.mul_add(g.mul_add(g, -v), v);
        let denominator = v.sqrt() / self.root_correction2 + self.eps;
        let p = self.minus_rate.mul_add(m / denominator, p * keep);
        (p, [m, v])
    }

    fn source() -> &'static Source {
        &SOURCE
    }

    fn factors<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        launch
            .arg(self.grad_scale)
            .arg(self.one_minus_beta1)
            .arg(self.one_minus_beta2)
            .arg(self.root_correction2)
            .arg(self.eps)
            .arg(self.keep)
            .arg(self.minus_rate)
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512(chunk: Chunk<'_, 2>, rule: &Self) {
        // SAFETY: as the caller promises.
        unsafe { avx512::update(chunk, rule) }
    }
}
