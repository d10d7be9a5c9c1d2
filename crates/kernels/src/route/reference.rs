//! The router in plain `f64`.

use super::Routes;

/// What [`super::forward`] writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Token of each sorted row.
    pub tokens: Vec<i32>,
    /// Sorted row of each choice.
    pub places: Vec<i32>,
    /// Expert of each choice.
    pub choices: Vec<i32>,
    /// First sorted row of each expert, and the number of rows.
    pub offsets: Vec<i32>,
    /// Weight of each sorted row.
    pub weights: Vec<f64>,
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// Weights of the experts `chosen`, in their order.
fn weights(logits: &[f64], chosen: &[i32], renormalise: bool) -> Vec<f64> {
    let p = softmax(logits);
    let of: Vec<f64> = chosen.iter().map(|&e| p[e as usize]).collect();
    let sum: f64 = if renormalise { of.iter().sum() } else { 1.0 };
    of.iter().map(|w| w / sum).collect()
}

/// Chooses, weighs, and sorts, each by the standard library's stable sort.
#[must_use]
pub fn forward(logits: &[f64], d: Routes) -> Routing {
    let (mut choices, mut weight): (Vec<i32>, Vec<f64>) = (Vec::new(), Vec::new());
    for x in logits.chunks_exact(d.experts) {
        let mut order: Vec<i32> = (0..d.experts as i32).collect();
        order.sort_by(|&a, &b| x[b as usize].partial_cmp(&x[a as usize]).expect("a number"));
        order.truncate(d.chosen);
        weight.extend(weights(x, &order, d.renormalise));
        choices.extend(order);
    }
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by_key(|&i| choices[i]);
    let mut places = vec![0; order.len()];
    for (place, &i) in order.iter().enumerate() {
        places[i] = place as i32;
    }
    let below = |e: i32| choices.iter().filter(|&&c| c < e).count() as i32;
    Routing {
        tokens: order.iter().map(|i| (i / d.chosen) as i32).collect(),
        weights: order.iter().map(|&i| weight[i]).collect(),
        offsets: (0..=d.experts as i32).map(below).collect(),
        places,
        choices,
    }
}

/// The gradient of the logits, by the chain rule over weights and probabilities.
#[must_use]
pub fn backward(d_weights: &[f64], logits: &[f64], r: &Routing, d: Routes) -> Vec<f64> {
    let mut dx = Vec::new();
    for (row, x) in logits.chunks_exact(d.experts).enumerate() {
        let at = row * d.chosen..(row + 1) * d.chosen;
        let (chosen, places) = (&r.choices[at.clone()], &r.places[at]);
        let p = softmax(x);
        let sum: f64 = chosen.iter().map(|&e| p[e as usize]).sum();
        let mut dp = vec![0.0; d.experts];
        for (&e, &place) in chosen.iter().zip(places) {
            let dw = d_weights[place as usize];
            match d.renormalise {
                false => dp[e as usize] += dw,
                // w = p / sum
                true => {
                    dp[e as usize] += dw / sum;
                    for &other in chosen {
                        dp[other as usize] -= dw * p[e as usize] / (sum * sum);
                    }
                }
            }
        }
        let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        dx.extend(p.iter().zip(&dp).map(|(p, dp)| p * (dp - mean)));
    }
    dx
}
