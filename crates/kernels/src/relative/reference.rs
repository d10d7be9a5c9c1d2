//! Pairs of queries and keys in plain `f64`, every pair looked at.

use super::Pair;

/// The number of a token's document in its row.
fn document(starts: &[i32], t: usize) -> usize {
    (1..=t).filter(|&i| starts[i] != starts[i - 1]).count()
}

/// Whether query `t` of row `b` sees key `s`.
fn sees([queries, keys]: [&[i32]; 2], p: &Pair, b: usize, t: usize, s: usize) -> bool {
    let queries = &queries[b * p.queries..][..p.queries];
    let keys = &keys[b * p.keys..][..p.keys];
    document(queries, t) == document(keys, s) && (!p.causal || s <= t)
}

/// Probabilities of query `t` over all keys, 0 where it does not see one, and their lse.
fn probabilities(
    (q, kv, bias): (&[f64], &[f64], Option<&[f64]>),
    starts: [&[i32]; 2],
    p: &Pair,
    (b, h, t): (usize, usize, usize),
) -> (Vec<f64>, f64) {
    let (d, c) = (p.head_dim, p.heads * p.head_dim);
    let score = |s: usize| {
        let query = &q[(b * p.queries + t) * c + h * d..][..d];
        let key = &kv[(b * p.keys + s) * 2 * c + h * d..][..d];
        let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
        let distances = p.queries + p.keys - 1;
        let bias = bias.map_or(0.0, |bias| bias[h * distances + s + p.queries - 1 - t]);
        f64::from(p.scale) * dot + bias
    };
    let keys = (0..p.keys).map(|s| sees(starts, p, b, t, s).then(|| score(s).exp()));
    let keys: Vec<Option<f64>> = keys.collect();
    let sum: f64 = keys.iter().flatten().sum();
    let lse = if sum > 0.0 { sum.ln() } else { 0.0 };
    (
        keys.iter().map(|k| k.map_or(0.0, |k| k / sum)).collect(),
        lse,
    )
}

/// Output and lse.
#[must_use]
pub fn forward(
    of: (&[f64], &[f64], Option<&[f64]>),
    starts: [&[i32]; 2],
    p: &Pair,
) -> (Vec<f64>, Vec<f64>) {
    let (d, c) = (p.head_dim, p.heads * p.head_dim);
    let rows = p.batch * p.queries;
    let (mut out, mut lse) = (vec![0.0; rows * c], vec![0.0; rows * p.heads]);
    for b in 0..p.batch {
        for h in 0..p.heads {
            for t in 0..p.queries {
                let (weights, sum) = probabilities(of, starts, p, (b, h, t));
                lse[(b * p.heads + h) * p.queries + t] = sum;
                for (s, weight) in weights.iter().enumerate() {
                    for i in 0..d {
                        let value = of.1[(b * p.keys + s) * 2 * c + c + h * d + i];
                        out[(b * p.queries + t) * c + h * d + i] += weight * value;
                    }
                }
            }
        }
    }
    (out, lse)
}

/// Gradients of queries, of keys and values, and of the bias.
#[must_use]
pub fn backward(
    d_out: &[f64],
    of: (&[f64], &[f64], Option<&[f64]>),
    starts: [&[i32]; 2],
    p: &Pair,
) -> [Vec<f64>; 3] {
    let (d, c) = (p.head_dim, p.heads * p.head_dim);
    let distances = p.queries + p.keys - 1;
    let (q, kv, _) = of;
    let mut dq = vec![0.0; q.len()];
    let mut d_kv = vec![0.0; kv.len()];
    let mut d_bias = vec![0.0; p.heads * distances];
    for b in 0..p.batch {
        for h in 0..p.heads {
            for t in 0..p.queries {
                let (weights, _) = probabilities(of, starts, p, (b, h, t));
                let query = (b * p.queries + t) * c + h * d;
                let dp = |s: usize| -> f64 {
                    let value = (b * p.keys + s) * 2 * c + c + h * d;
                    (0..d).map(|i| d_out[query + i] * kv[value + i]).sum()
                };
                let mean: f64 = weights.iter().enumerate().map(|(s, w)| w * dp(s)).sum();
                for (s, weight) in weights.iter().enumerate() {
                    let key = (b * p.keys + s) * 2 * c + h * d;
                    let ds = weight * (dp(s) - mean);
                    d_bias[h * distances + s + p.queries - 1 - t] += ds;
                    for i in 0..d {
                        dq[query + i] += f64::from(p.scale) * ds * kv[key + i];
                        d_kv[key + i] += f64::from(p.scale) * ds * q[query + i];
                        d_kv[key + c + i] += weight * d_out[query + i];
                    }
                }
            }
        }
    }
    [dq, d_kv, d_bias]
}
