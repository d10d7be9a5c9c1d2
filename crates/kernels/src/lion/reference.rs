//! Lion in f64, in the order of the paper's algorithm 2.

use crate::update::Hyper;

/// Master weights and moment of one parameter.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub p: Vec<f64>,
    pub m: Vec<f64>,
}

/// One step over a whole parameter; gives the mixtures whose signs it took.
pub(super) fn step(s: &mut State, grad: &[f64], decay: bool, h: &Hyper) -> Vec<f64> {
    let [lr, beta1, beta2, scale] = [h.lr, h.beta1, h.beta2, h.grad_scale].map(f64::from);
    let weight_decay = if decay {
        f64::from(h.weight_decay)
    } else {
        0.0
    };
    let mut mixtures = Vec::new();
    for (i, g) in grad.iter().enumerate() {
        let g = g * scale;
        let c = beta1 * s.m[i] + (1.0 - beta1) * g;
        let sign = if c == 0.0 { 0.0 } else { c.signum() };
        s.p[i] -= lr * (sign + weight_decay * s.p[i]);
        s.m[i] = beta2 * s.m[i] + (1.0 - beta2) * g;
        mixtures.push(c);
    }
    mixtures
}
