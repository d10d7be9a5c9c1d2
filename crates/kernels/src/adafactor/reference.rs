//! Adafactor in f64, in the order of `transformers.optimization.Adafactor.step`.

use crate::update::Hyper;

/// Master weights and moments of one tensor of `cols` columns, 1 of a vector.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub p: Vec<f64>,
    pub rows: Vec<f64>,
    pub columns: Vec<f64>,
    pub cols: usize,
}

fn mean(all: &[f64]) -> f64 {
    all.iter().sum::<f64>() / all.len() as f64
}

/// One step over a whole tensor; gives the root mean square of the update before it was clipped.
pub(super) fn step(s: &mut State, grad: &[f64], decay: bool, h: &Hyper) -> f64 {
    let [lr, eps, threshold, scale] = [h.lr, h.eps, h.clip_threshold, h.grad_scale].map(f64::from);
    let beta2 = 1.0 - (h.step as f64).powf(f64::from(h.decay_rate));
    let weight_decay = if decay {
        f64::from(h.weight_decay)
    } else {
        0.0
    };
    let grad: Vec<f64> = grad.iter().map(|g| g * scale).collect();
    let squares: Vec<f64> = grad.iter().map(|g| g * g + eps).collect();
    let mix = |old: &mut f64, new: f64| *old = beta2 * *old + (1.0 - beta2) * new;
    for (row, squares) in s.rows.iter_mut().zip(squares.chunks(s.cols)) {
        mix(row, mean(squares));
    }
    let mut update: Vec<f64> = match s.cols {
        1 => s.rows.iter().map(|v| 1.0 / v.sqrt()).collect(),
        cols => {
            for (j, column) in s.columns.iter_mut().enumerate() {
                let of: Vec<f64> = squares.iter().skip(j).step_by(cols).copied().collect();
                mix(column, mean(&of));
            }
            let mean = mean(&s.rows);
            let r = s.rows.iter().map(|row| 1.0 / (row / mean).sqrt());
            let each = r.flat_map(|r| s.columns.iter().map(move |c| r / c.sqrt()));
            each.collect()
        }
    };
    for (u, g) in update.iter_mut().zip(&grad) {
        *u *= g;
    }
    let rms = mean(&update.iter().map(|u| u * u).collect::<Vec<_>>()).sqrt();
    let clip = (rms / threshold).max(1.0);
    for (p, u) in s.p.iter_mut().zip(&update) {
        *p -= weight_decay * lr * *p;
        *p -= lr * (u / clip);
    }
    rms
}
