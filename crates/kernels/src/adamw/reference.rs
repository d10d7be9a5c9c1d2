//! AdamW in f64, in the order in which PyTorch's documentation writes it.

use super::Hyper;

/// Master weights and moments of one parameter.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub p: Vec<f64>,
    pub m: Vec<f64>,
    pub v: Vec<f64>,
}

/// One step over a whole parameter.
pub(super) fn step(s: &mut State, grad: &[f64], decay: bool, h: &Hyper) {
    let [lr, beta1, beta2, eps, scale] =
        [h.lr, h.beta1, h.beta2, h.eps, h.grad_scale].map(f64::from);
    let weight_decay = if decay {
        f64::from(h.weight_decay)
    } else {
        0.0
    };
    let correction1 = 1.0 - beta1.powf(h.step as f64);
    let correction2 = 1.0 - beta2.powf(h.step as f64);
    for (i, g) in grad.iter().enumerate() {
        let g = g * scale;
        s.p[i] -= lr * weight_decay * s.p[i];
        s.m[i] = beta1 * s.m[i] + (1.0 - beta1) * g;
        s.v[i] = beta2 * s.v[i] + (1.0 - beta2) * g * g;
        let corrected = (s.m[i] / correction1, s.v[i] / correction2);
        s.p[i] -= lr * corrected.0 / (corrected.1.sqrt() + eps);
    }
}
