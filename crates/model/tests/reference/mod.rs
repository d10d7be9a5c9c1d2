//! The decoders once more, as transformers writes them: f64, one token at a time, a tensor for
//! every name in the file, nothing fused.

use std::collections::HashMap;
use std::f64::consts::PI;

use lowtide_workload::{Experts, Family, Mask, ModelShape, RopeScaling};

/// Tensors by Hugging Face name, as the file holds them.
pub type Tensors = HashMap<String, Vec<f64>>;

struct Model<'a> {
    shape: &'a ModelShape,
    tensors: &'a Tensors,
}

type Row = Vec<f64>;

/// Logits of every token of one document.
pub fn logits(shape: &ModelShape, tensors: &Tensors, tokens: &[usize]) -> Vec<Row> {
    let m = Model { shape, tensors };
    let c = shape.hidden as usize;
    let gpt2 = shape.family == Family::Gpt2;
    let [table, norm, head] = match shape.family {
        Family::Gpt2 => [
            "transformer.wte.weight",
            "transformer.ln_f",
            "lm_head.weight",
        ],
        Family::GptNeoX => [
            "gpt_neox.embed_in.weight",
            "gpt_neox.final_layer_norm",
            "embed_out.weight",
        ],
        _ => ["model.embed_tokens.weight", "model.norm", "lm_head.weight"],
    };
    let line = |name: &str, i: usize| m.get(name)[i * c..(i + 1) * c].to_vec();
    let mut x: Vec<Row> = tokens.iter().map(|&t| line(table, t)).collect();
    x.iter_mut()
        .flatten()
        .for_each(|x| *x *= shape.scales.embedding);
    if gpt2 {
        for (i, row) in x.iter_mut().enumerate() {
            add(row, &line("transformer.wpe.weight", i));
        }
    }
    for l in 0..shape.layers {
        match shape.family {
            Family::Gpt2 => m.gpt2_layer(&mut x, l),
            Family::GptNeoX => m.gpt_neox_layer(&mut x, l),
            _ => m.llama_layer(&mut x, l),
        }
    }
    let head = if shape.tied { table } else { head };
    let scales = shape.scales;
    let bent = |logit: f64| capped(logit / scales.logits_divisor, scales.logits_cap);
    x.iter()
        .map(|row| product(&m.norm(norm, row), m.get(head)))
        .map(|logits| logits.into_iter().map(bent).collect())
        .collect()
}

impl Model<'_> {
    fn get(&self, name: &str) -> &[f64] {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// `nn.Linear`.
    fn linear(&self, name: &str, x: &Row) -> Row {
        let mut y = product(x, self.get(&format!("{name}.weight")));
        if let Some(bias) = self.tensors.get(&format!("{name}.bias")) {
            add(&mut y, bias);
        }
        y
    }

    /// `Conv1D`: the weight is (in, out).
    fn conv1d(&self, name: &str, x: &Row) -> Row {
        let w = self.get(&format!("{name}.weight"));
        let mut y = self.get(&format!("{name}.bias")).to_vec();
        let n = y.len();
        for (i, xi) in x.iter().enumerate() {
            for (j, yj) in y.iter_mut().enumerate() {
                *yj += xi * w[i * n + j];
            }
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Row {
        let n = x.len() as f64;
        let w = self.get(&format!("{name}.weight"));
        let bias = self.tensors.get(&format!("{name}.bias"));
        let cohere = self.shape.family == Family::Cohere;
        let mean = if bias.is_some() || cohere {
            x.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (var + self.shape.norm_eps).sqrt();
        let gemma = matches!(
            self.shape.family,
            Family::Gemma | Family::Gemma2 | Family::Gemma3
        );
        let one = if gemma { 1.0 } else { 0.0 };
        let scaled = x.iter().zip(w).map(|(v, w)| (v - mean) * r * (one + w));
        let mut y: Row = scaled.collect();
        if let Some(b) = bias {
            add(&mut y, b);
        }
        y
    }

    fn llama_layer(&self, x: &mut [Row], l: u32) {
        let at = format!("model.layers.{l}");
        let d = self.shape.head_dim as usize;
        let mut qkv = [const { Vec::new() }; 3];
        let olmo2 = self.shape.family == Family::Olmo2;
        let gemma2 = matches!(self.shape.family, Family::Gemma2 | Family::Gemma3);
        let residual = self.shape.scales.residual;
        for (pos, row) in x.iter().enumerate() {
            let h = match olmo2 {
                true => row.clone(),
                false => self.norm(&format!("{at}.input_layernorm"), row),
            };
            for (i, p) in ["q", "k", "v"].into_iter().enumerate() {
                let mut y = match self.shape.family {
                    Family::Phi3 => self.part(&format!("{at}.self_attn.qkv_proj"), &h, i),
                    _ => self.linear(&format!("{at}.self_attn.{p}_proj"), &h),
                };
                if i < 2 && olmo2 {
                    y = self.norm(&format!("{at}.self_attn.{p}_norm"), &y);
                }
                if i < 2 && !self.shape.unrotated.has(l) {
                    for head in y.chunks_mut(d) {
                        if self.shape.qk_norm && !olmo2 {
                            let normed = self.norm(&format!("{at}.self_attn.{p}_norm"), head);
                            head.copy_from_slice(&normed);
                        }
                        self.rotate(head, pos, l);
                    }
                }
                qkv[i].push(y);
            }
        }
        let att = self.attend(&qkv, self.shape.mask(l));
        for (row, a) in x.iter_mut().zip(&att) {
            // One norm before both.
            let first = format!("{at}.input_layernorm");
            let beside = self.shape.parallel.then(|| self.norm(&first, row));
            let behind = format!("{at}.post_attention_layernorm");
            let mut o = self.linear(&format!("{at}.self_attn.o_proj"), a);
            if olmo2 || gemma2 {
                o = self.norm(&behind, &o);
            }
            o.iter_mut().for_each(|o| *o *= residual);
            add(row, &o);
            let h = match (beside, olmo2, gemma2) {
                (Some(beside), ..) => beside,
                (_, true, _) => row.clone(),
                (.., true) => self.norm(&format!("{at}.pre_feedforward_layernorm"), row),
                _ => self.norm(&behind, row),
            };
            if let Some(of) = self.shape.experts {
                add(row, &self.experts(&at, &h, of));
                continue;
            }
            let (mut gate, up) = if self.shape.family == Family::Phi3 {
                let mut both = self.linear(&format!("{at}.mlp.gate_up_proj"), &h);
                let up = both.split_off(self.shape.intermediate as usize);
                (both, up)
            } else {
                let [gate, up] = ["gate", "up"].map(|p| format!("{at}.mlp.{p}_proj"));
                (self.linear(&gate, &h), self.linear(&up, &h))
            };
            let geglu = gemma2 || self.shape.family == Family::Gemma;
            let act = |g: f64| match geglu {
                true => gelu(g),
                false => g / (1.0 + (-g).exp()),
            };
            gate.iter_mut().zip(&up).for_each(|(g, u)| *g = act(*g) * u);
            let mut f = self.linear(&format!("{at}.mlp.down_proj"), &gate);
            if olmo2 || gemma2 {
                f = self.norm(&format!("{at}.post_feedforward_layernorm"), &f);
            }
            f.iter_mut().for_each(|f| *f *= residual);
            add(row, &f);
        }
    }

    /// What the experts that a token takes make of it.
    fn experts(&self, at: &str, h: &Row, of: Experts) -> Row {
        let (place, [gate, up, down]) = match self.shape.family {
            Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        };
        let at = format!("{at}.{place}");
        let logits = self.linear(&format!("{at}.gate"), h);
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - most).exp()).sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(of.chosen as usize);
        let share = |e: usize| (logits[e] - most).exp() / sum;
        let shares: f64 = order.iter().map(|&e| share(e)).sum();
        let mut y = vec![0.0; h.len()];
        for e in order {
            let linear = |name: &str, x: &Row| self.linear(&format!("{at}.experts.{e}.{name}"), x);
            let (mut g, u) = (linear(gate, h), linear(up, h));
            let both = g.iter_mut().zip(&u);
            both.for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
            let weight = if of.renormalise {
                share(e) / shares
            } else {
                share(e)
            };
            let made = linear(down, &g);
            add(&mut y, &made.iter().map(|m| m * weight).collect::<Row>());
        }
        y
    }

    fn gpt2_layer(&self, x: &mut [Row], l: u32) {
        let at = format!("transformer.h.{l}");
        let c = self.shape.hidden as usize;
        let mut qkv = [const { Vec::new() }; 3];
        for row in x.iter() {
            let h = self.norm(&format!("{at}.ln_1"), row);
            let all = self.conv1d(&format!("{at}.attn.c_attn"), &h);
            for (i, part) in all.chunks(c).enumerate() {
                qkv[i].push(part.to_vec());
            }
        }
        let att = self.attend(&qkv, Mask::Causal);
        for (row, a) in x.iter_mut().zip(&att) {
            add(row, &self.conv1d(&format!("{at}.attn.c_proj"), a));
            let h = self.norm(&format!("{at}.ln_2"), row);
            let mut f = self.conv1d(&format!("{at}.mlp.c_fc"), &h);
            f.iter_mut().for_each(|v| *v = gelu(*v));
            add(row, &self.conv1d(&format!("{at}.mlp.c_proj"), &f));
        }
    }

    fn gpt_neox_layer(&self, x: &mut [Row], l: u32) {
        let at = format!("gpt_neox.layers.{l}");
        let d = self.shape.head_dim as usize;
        let mut qkv = [const { Vec::new() }; 3];
        for (pos, row) in x.iter().enumerate() {
            let h = self.norm(&format!("{at}.input_layernorm"), row);
            let all = self.linear(&format!("{at}.attention.query_key_value"), &h);
            let mut parts = [const { Vec::new() }; 3];
            // A head's query, key and value behind one another.
            for (i, part) in all.chunks(d).enumerate() {
                let mut part = part.to_vec();
                if i % 3 < 2 {
                    self.rotate(&mut part, pos, l);
                }
                parts[i % 3].extend(part);
            }
            for (all, part) in qkv.iter_mut().zip(parts) {
                all.push(part);
            }
        }
        let att = self.attend(&qkv, Mask::Causal);
        for (row, a) in x.iter_mut().zip(&att) {
            let before = row.clone();
            add(row, &self.linear(&format!("{at}.attention.dense"), a));
            let from = match self.shape.parallel {
                true => before,
                false => row.clone(),
            };
            let h = self.norm(&format!("{at}.post_attention_layernorm"), &from);
            let mut f = self.linear(&format!("{at}.mlp.dense_h_to_4h"), &h);
            let act = |x: f64| match self.shape.gelu_by_tanh {
                true => gelu(x),
                false => 0.5 * x * libm::erfc(-x / 2f64.sqrt()),
            };
            f.iter_mut().for_each(|v| *v = act(*v));
            add(row, &self.linear(&format!("{at}.mlp.dense_4h_to_h"), &f));
        }
    }

    /// `rotate_half` of the first R numbers: number i turns with number i + R/2.
    fn rotate(&self, head: &mut [f64], pos: usize, l: u32) {
        let local = self.shape.local_rope.as_ref();
        let local = local.filter(|local| local.layers.has(l));
        let rope = local.map_or(self.shape.rope.as_ref().unwrap(), |local| &local.rope);
        let rotated = rope.rotated(head.len() as u32);
        let (d, half) = (f64::from(rotated), rotated as usize / 2);
        for i in 0..half {
            let inv = rope.theta.powf(-(2.0 * i as f64) / d);
            let mut longer = 1.0;
            let inv = match rope.scaling {
                RopeScaling::None | RopeScaling::Dynamic(_) => inv,
                RopeScaling::Linear(factor) => inv / factor,
                RopeScaling::LongRope {
                    ref short,
                    attention,
                    ..
                } => {
                    longer = attention;
                    inv / short[i]
                }
                RopeScaling::Yarn {
                    factor,
                    attention,
                    beta_fast,
                    beta_slow,
                    original,
                    truncate,
                } => {
                    assert!(!truncate, "the reference does not round");
                    longer = attention;
                    // Between beta_fast and beta_slow turns, straight in the frequency's number.
                    let number = |turns: f64| {
                        d / 2.0 * (original / (2.0 * PI * turns)).ln() / rope.theta.ln()
                    };
                    let low = number(beta_fast).max(0.0);
                    let high = number(beta_slow).min(d - 1.0);
                    let kept = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    inv * kept + inv / factor * (1.0 - kept)
                }
                RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original,
                } => {
                    let turns = original * inv / (2.0 * PI);
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    inv / factor * (1.0 - smooth) + inv * smooth
                }
            };
            let (sin, cos) = (pos as f64 * inv).sin_cos();
            // Cohere's `rotate_half` takes neighbours.
            let (one, other) = match self.shape.family {
                Family::Cohere => (2 * i, 2 * i + 1),
                _ => (i, i + half),
            };
            let (a, b) = (head[one], head[other]);
            head[one] = (a * cos - b * sin) * longer;
            head[other] = (b * cos + a * sin) * longer;
        }
    }

    /// Queries, keys or values of a product that makes all.
    fn part(&self, name: &str, x: &Row, i: usize) -> Row {
        let (d, s) = (self.shape.head_dim as usize, self.shape);
        let (q, kv) = (s.heads as usize * d, s.kv_heads as usize * d);
        let from = [0, q, q + kv][i];
        self.linear(name, x)[from..from + [q, kv, kv][i]].to_vec()
    }

    fn attend(&self, [q, k, v]: &[Vec<Row>; 3], mask: Mask) -> Vec<Row> {
        let d = self.shape.head_dim as usize;
        let (heads, group) = (
            self.shape.heads as usize,
            (self.shape.heads / self.shape.kv_heads) as usize,
        );
        let scales = self.shape.scales;
        let mut out = vec![vec![0.0; heads * d]; q.len()];
        for t in 0..q.len() {
            for h in 0..heads {
                let kv = h / group * d..(h / group + 1) * d;
                let qh = &q[t][h * d..(h + 1) * d];
                // `kv_idx > q_idx - sliding_window`.
                let first = match mask {
                    Mask::Causal | Mask::Full => 0,
                    Mask::Window(n) => (t + 1).saturating_sub(n as usize),
                };
                let last = match mask {
                    Mask::Causal | Mask::Window(_) => t,
                    Mask::Full => k.len() - 1,
                };
                let scores: Row = k[first..=last]
                    .iter()
                    .map(|k| {
                        let usual = 1.0 / (d as f64).sqrt();
                        let score = dot(qh, &k[kv.clone()]) * scales.attention.unwrap_or(usual);
                        capped(score, scales.attention_cap)
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for (s, value) in scores.iter().zip(&v[first..]) {
                    for (o, x) in out[t][h * d..].iter_mut().zip(&value[kv.clone()]) {
                        *o += (s - max).exp() / sum * x;
                    }
                }
            }
        }
        out
    }
}

/// `x · wᵀ`, `w` (out, in).
fn product(x: &[f64], w: &[f64]) -> Row {
    w.chunks(x.len()).map(|row| dot(row, x)).collect()
}

/// `gelu_pytorch_tanh`.
fn gelu(x: f64) -> f64 {
    let inner = (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// A soft cap, where there is one.
fn capped(x: f64, cap: Option<f64>) -> f64 {
    cap.map_or(x, |cap| (x / cap).tanh() * cap)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], more: &[f64]) {
    to.iter_mut().zip(more).for_each(|(a, b)| *a += b);
}
