//! Attention in plain `f64`, with every score in memory.

use lowtide_workload::Mask;

use super::Attn;

/// What forward computes.
#[derive(Clone, Debug)]
pub struct Forward {
    /// (B·T, H·D).
    pub out: Vec<f64>,
    /// (B, H, T).
    pub lse: Vec<f64>,
}

/// The first key that query `t` sees, of a document that starts at `doc_start`.
fn first_key(doc_start: i32, a: &Attn, t: usize) -> usize {
    let of_window = match a.mask {
        Mask::Causal | Mask::Full => 0,
        Mask::Window(n) => (t + 1).saturating_sub(n as usize),
    };
    of_window.max(doc_start as usize)
}

/// The keys that query `t` of row `b` sees.
fn seen(doc_start: &[i32], a: &Attn, b: usize, t: usize) -> std::ops::RangeInclusive<usize> {
    let row = &doc_start[b * a.seq..][..a.seq];
    let last = match a.mask {
        Mask::Causal | Mask::Window(_) => t,
        Mask::Full => row
            .iter()
            .rposition(|start| *start == row[t])
            .expect("t is one"),
    };
    first_key(row[t], a, t)..=last
}

/// Probabilities of query `t` of row `b` and head `h` over the keys that it sees, and their lse.
fn probabilities(
    qkv: &[f64],
    seen: std::ops::RangeInclusive<usize>,
    a: &Attn,
    (b, h, t): (usize, usize, usize),
) -> Softmax {
    let query = &qkv[a.query(b * a.seq + t, h)..][..a.head_dim];
    let scores: Vec<f64> = seen
        .map(|s| {
            let key = &qkv[a.key(b * a.seq + s, h / a.group())..][..a.head_dim];
            let score = f64::from(a.scale) * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
            a.cap.map_or(score, |cap| {
                let cap = f64::from(cap);
                cap * (score / cap).tanh()
            })
        })
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    let slope = |s: &f64| a.cap.map_or(1.0, |cap| 1.0 - (s / f64::from(cap)).powi(2));
    Softmax {
        p: scores.iter().map(|s| (s - most).exp() / sum).collect(),
        slopes: scores.iter().map(slope).collect(),
        lse: most + sum.ln(),
    }
}

struct Softmax {
    p: Vec<f64>,
    /// How fast capped scores change with the scores.
    slopes: Vec<f64>,
    lse: f64,
}

/// `softmax(scale·q·kᵀ)·v`, of capped scores where there is a cap, over the keys of the same document that the mask
/// lets the token see.
#[must_use]
pub fn forward(qkv: &[f64], doc_start: &[i32], a: &Attn) -> Forward {
    let d = a.head_dim;
    let mut f = Forward {
        out: vec![0.0; a.rows() * a.heads * d],
        lse: vec![0.0; a.rows() * a.heads],
    };
    for b in 0..a.batch {
        for h in 0..a.heads {
            for t in 0..a.seq {
                let seen = seen(doc_start, a, b, t);
                let softmax = probabilities(qkv, seen.clone(), a, (b, h, t));
                f.lse[(b * a.heads + h) * a.seq + t] = softmax.lse;
                let out = a.output(b * a.seq + t, h);
                for (s, p) in seen.zip(&softmax.p) {
                    let value = a.value(b * a.seq + s, h / a.group());
                    for i in 0..d {
                        f.out[out + i] += p * qkv[value + i];
                    }
                }
            }
        }
    }
    f
}

/// Gradient of `qkv` from that of the output, and the output as it was stored.
#[must_use]
pub fn backward(d_out: &[f64], qkv: &[f64], out: &[f64], doc_start: &[i32], a: &Attn) -> Vec<f64> {
    let (d, scale) = (a.head_dim, f64::from(a.scale));
    let mut g = vec![0.0; qkv.len()];
    for b in 0..a.batch {
        for h in 0..a.heads {
            for t in 0..a.seq {
                let seen = seen(doc_start, a, b, t);
                let Softmax { p, slopes, .. } = probabilities(qkv, seen.clone(), a, (b, h, t));
                let output = a.output(b * a.seq + t, h)..a.output(b * a.seq + t, h) + d;
                let (d_out, out) = (&d_out[output.clone()], &out[output]);
                let dp: Vec<f64> = seen
                    .clone()
                    .map(|s| {
                        let value = &qkv[a.value(b * a.seq + s, h / a.group())..][..d];
                        d_out.iter().zip(value).map(|(d, v)| d * v).sum()
                    })
                    .collect();
                // Σ p·dp, the mean of the gradient over the keys.
                let mean: f64 = d_out.iter().zip(out).map(|(d, o)| d * o).sum();
                let query = a.query(b * a.seq + t, h);
                for (j, s) in seen.enumerate() {
                    let key = a.key(b * a.seq + s, h / a.group());
                    let value = a.value(b * a.seq + s, h / a.group());
                    let ds = scale * p[j] * (dp[j] - mean) * slopes[j];
                    for i in 0..d {
                        g[query + i] += ds * qkv[key + i];
                        g[key + i] += ds * qkv[query + i];
                        g[value + i] += p[j] * d_out[i];
                    }
                }
            }
        }
    }
    g
}

/// What [`super::cached`] computes, and the cache behind it; `rows` are the place and position of each row, place
/// -1 of padding.
#[must_use]
pub fn cached(qkv: &[f64], cache: &[f64], rows: &[(i32, i32)], a: &Attn) -> (Vec<f64>, Vec<f64>) {
    let (d, half) = (a.head_dim, cache.len() / 2);
    let at = |place: usize, kv: usize, t: usize| ((place * a.kv_heads + kv) * a.seq + t) * d;
    let mut cache = cache.to_vec();
    let there = || rows.iter().enumerate().filter(|(_, r)| r.0 >= 0);
    for (row, &(place, t)) in there() {
        for kv in 0..a.kv_heads {
            let to = at(place as usize, kv, t as usize);
            cache[to..to + d].copy_from_slice(&qkv[a.key(row, kv)..][..d]);
            cache[half + to..half + to + d].copy_from_slice(&qkv[a.value(row, kv)..][..d]);
        }
    }
    let mut out = vec![0.0; rows.len() * a.heads * d];
    for (row, &(place, t)) in there() {
        let (place, t) = (place as usize, t as usize);
        for h in 0..a.heads {
            let kv = h / a.group();
            let query = &qkv[a.query(row, h)..][..d];
            let seen = first_key(0, a, t)..t + 1;
            let score = |s: usize| {
                let key = &cache[at(place, kv, s)..][..d];
                let score =
                    f64::from(a.scale) * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
                a.cap.map_or(score, |cap| {
                    f64::from(cap) * (score / f64::from(cap)).tanh()
                })
            };
            let scores: Vec<f64> = seen.clone().map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for (s, score) in seen.zip(scores) {
                let (p, value) = ((score - most).exp() / sum, half + at(place, kv, s));
                for i in 0..d {
                    out[a.output(row, h) + i] += p * cache[value + i];
                }
            }
        }
    }
    (out, cache)
}
