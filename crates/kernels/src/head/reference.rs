//! The head in plain `f64`, with all logits in memory.

use super::Bend;

/// What training computes.
#[derive(Clone, Debug)]
pub struct Train {
    /// Sum of losses.
    pub loss: f64,
    /// Rows with a loss.
    pub count: f64,
    /// (rows, C).
    pub dh: Vec<f64>,
    /// (V, C).
    pub dw: Vec<f64>,
}

/// `h·wᵀ`: (rows, V) for h of rows of `c` numbers.
#[must_use]
pub fn logits(h: &[f64], w: &[f64], c: usize) -> Vec<f64> {
    let dot = |h: &[f64], w: &[f64]| h.iter().zip(w).map(|(h, w)| h * w).sum::<f64>();
    h.chunks_exact(c)
        .flat_map(|h| w.chunks_exact(c).map(move |w| dot(h, w)))
        .collect()
}

/// A bent number, and how fast it changes with `x`.
#[must_use]
pub fn bent(x: f64, bend: Bend) -> (f64, f64) {
    let factor = f64::from(bend.factor);
    match bend.cap.map(f64::from) {
        None => (factor * x, factor),
        Some(cap) => {
            let t = (factor * x / cap).tanh();
            (cap * t, factor * (1.0 - t * t))
        }
    }
}

/// Cross-entropy of `h·wᵀ`, bent, against labels, of which a share is spread over all tokens, and its gradients times
/// `scale`. Rows have `c` numbers; a negative label has no loss.
///
/// `round` is applied to each of the product's results and to its gradient: what storing them does.
#[must_use]
pub fn train(
    h: &[f64],
    w: &[f64],
    labels: &[i32],
    scale: f64,
    (c, bend, smoothing): (usize, Bend, f64),
    round: impl Fn(f64) -> f64,
) -> Train {
    let mut out = Train {
        loss: 0.0,
        count: 0.0,
        dh: vec![0.0; h.len()],
        dw: vec![0.0; w.len()],
    };
    for (row, label) in labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
        let h = &h[row * c..][..c];
        let raw = logits(h, w, c).into_iter().map(&round);
        let (logits, slopes): (Vec<f64>, Vec<f64>) = raw.map(|x| bent(x, bend)).unzip();
        let (loss, d) = smoothed_row_of(&logits, *label as usize, scale, smoothing);
        out.loss += loss;
        out.count += 1.0;
        let d = d.into_iter().zip(slopes).map(|(d, slope)| round(d * slope));
        for (v, d) in d.enumerate() {
            for i in 0..c {
                out.dh[row * c + i] += d * w[v * c + i];
                out.dw[v * c + i] += d * h[i];
            }
        }
    }
    out
}

/// Whether greedy decoding takes the label: its logit is the largest, and the first of those that are.
#[must_use]
pub fn is_right(logits: &[f64], label: usize) -> bool {
    let (before, after) = logits.split_at(label);
    before.iter().all(|x| *x < logits[label]) && after.iter().all(|x| *x <= logits[label])
}

/// Cross-entropy of one row's logits against its label, and its gradient times `scale`.
#[must_use]
pub fn row_of(logits: &[f64], label: usize, scale: f64) -> (f64, Vec<f64>) {
    smoothed_row_of(logits, label, scale, 0.0)
}

/// The same with a share of the label spread evenly over all tokens.
#[must_use]
pub fn smoothed_row_of(
    logits: &[f64],
    label: usize,
    scale: f64,
    smoothing: f64,
) -> (f64, Vec<f64>) {
    let each = smoothing / logits.len() as f64;
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = most + logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
    let gradient = |(v, x): (usize, &f64)| {
        let onehot = if v == label { 1.0 } else { 0.0 };
        ((x - lse).exp() - (1.0 - smoothing) * onehot - each) * scale
    };
    let others: f64 = logits.iter().map(|x| each * (lse - x)).sum();
    (
        (1.0 - smoothing) * (lse - logits[label]) + others,
        logits.iter().enumerate().map(gradient).collect(),
    )
}
