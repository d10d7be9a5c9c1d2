//! Rates of the kernels on this machine, one line an operation:
//! `cargo run --release -p lowtide-kernels --example rates [threads]`.
//!
//! Matrix products and attention in GFLOP/s, the rest in GB/s of bytes that have to move once. The
//! best of several runs, since anything slower had company.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use lowtide_device::{Dst, Queue, Src};
use lowtide_kernels::attention::Attn;
use lowtide_kernels::gradient::Segment;
use lowtide_kernels::head::Head;
use lowtide_kernels::matmul::Dims;
use lowtide_kernels::operands::{Planes, Sum};
use lowtide_kernels::rope::{Heads, Rotation, Table};
use lowtide_kernels::{
    Rows, attention, embedding, gelu, gradient, head, layernorm, matmul, rmsnorm, rope, swiglu,
};
use lowtide_workload::Dtype;

fn main() {
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(available);
    let q = Queue::new("rates", threads);
    println!("{threads} threads");
    for dtype in [Dtype::Bf16, Dtype::F32] {
        // A quickstart model's layers, and a small real one's.
        for (m, k, n) in [
            (2048, 128, 384),
            (2048, 128, 768),
            (2048, 384, 128),
            (512, 1024, 4096),
        ] {
            matmuls(
                &q,
                Dims {
                    rows: m,
                    inner: k,
                    cols: n,
                },
                dtype,
            );
        }
        for (batch, seq, heads, kv_heads, d) in [(8, 256, 4, 2, 32), (1, 2048, 8, 2, 64)] {
            let scale = 1.0 / (d as f32).sqrt();
            attentions(
                &q,
                &Attn {
                    batch,
                    seq,
                    heads,
                    kv_heads,
                    head_dim: d,
                    scale,
                    cap: None,
                    mask: lowtide_workload::Mask::Causal,
                    engine: lowtide_kernels::attention::Engine::Own,
                },
                dtype,
            );
        }
        heads(
            &q,
            Head {
                rows: 2048,
                hidden: 128,
                vocab: 2048,
                chunk: 1024,
                bend: head::Bend::NONE,
                smoothing: 0.0,
            },
            dtype,
        );
        memory_bound(&q, 4096, 1024, dtype);
    }
}

/// Seconds of the fastest of the calls that fit half a second (three at least).
fn best(mut work: impl FnMut()) -> f64 {
    let (start, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || start.elapsed().as_secs_f64() < 0.5 {
        let run = Instant::now();
        work();
        best = best.min(run.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn line(what: &str, dtype: Dtype, amount: f64, unit: &str, seconds: f64) {
    let rate = amount / seconds / 1e9;
    println!(
        "{what:<44} {:<4} {:>9.3} ms {rate:>8.1} {unit}",
        dtype.name(),
        seconds * 1e3
    );
}

/// Numbers whose bits are small values in either dtype.
fn numbers(n: usize, dtype: Dtype) -> Vec<u32> {
    let words = n * dtype.size() as usize / 4 + 1;
    (0..words as u32)
        .map(|i| {
            let bits = i.wrapping_mul(2_654_435_761);
            0x3d00_3d00 | bits & 0x807f_807f
        })
        .collect()
}

fn part<'a>(words: &'a mut [u32], n: usize, dtype: Dtype) -> Dst<'a> {
    Dst::of(words).part(0, n * dtype.size() as usize)
}

/// A gradient to which is added.
fn sum(to: Dst<'_>) -> Sum<'_> {
    Sum {
        to,
        accumulate: true,
    }
}

fn scratch(bytes: usize) -> Vec<f64> {
    vec![0.0; bytes / 8 + 1]
}

fn matmuls(q: &Queue, d: Dims, dtype: Dtype) {
    let Dims {
        rows: m,
        inner: k,
        cols: n,
    } = d;
    let (mut x, mut w, mut y) = (
        numbers(m * k, dtype),
        numbers(n * k, dtype),
        numbers(m * n, dtype),
    );
    let mut dw = vec![0.0_f32; n * k];
    let mut ws = scratch(matmul::workspace(d, dtype, lowtide_device::Make::Cpu));
    let (mut x, w, mut y) = (
        part(&mut x, m * k, dtype),
        part(&mut w, n * k, dtype).into_src(),
        part(&mut y, m * n, dtype),
    );
    let (mut dw, mut ws) = (Dst::of(&mut dw), Dst::of(&mut ws));
    let flops = 2.0 * (m * k * n) as f64;
    let name = |what: &str| format!("matmul {what} m{m} k{k} n{n}");
    let dx = best(|| {
        let (dx, dy) = (x.again(), y.src());
        matmul::backward_input(q, matmul::Input { dx, dy, w }, d, dtype, ws.again());
    });
    line(&name("backward_input"), dtype, flops, "GFLOP/s", dx);
    let t = best(|| {
        let o = matmul::Weight {
            dw: sum(dw.again()),
            db: None,
            dy: y.src(),
            x: x.src(),
        };
        matmul::backward_weight(q, o, d, dtype, ws.again());
    });
    line(&name("backward_weight"), dtype, flops, "GFLOP/s", t);
    let t = best(|| {
        let o = matmul::Forward::product(y.again(), x.src(), w);
        matmul::forward(q, o, d, dtype, ws.again());
    });
    line(&name("forward"), dtype, flops, "GFLOP/s", t);
}

fn attentions(q: &Queue, a: &Attn, dtype: Dtype) {
    let rows = a.batch * a.seq;
    let (n, n_out) = (
        rows * (a.heads + 2 * a.kv_heads) * a.head_dim,
        rows * a.heads * a.head_dim,
    );
    let (mut qkv, mut d_qkv) = (numbers(n, dtype), numbers(n, dtype));
    let (mut out, mut d_out) = (numbers(n_out, dtype), numbers(n_out, dtype));
    let (mut lse, starts) = (vec![0.0_f32; rows * a.heads], vec![0_i32; rows]);
    let mut ws = scratch(attention::workspace(a, dtype, lowtide_device::Make::Cpu));
    let (qkv, mut d_qkv) = (
        part(&mut qkv, n, dtype).into_src(),
        part(&mut d_qkv, n, dtype),
    );
    let (mut out, d_out) = (part(&mut out, n_out, dtype), part(&mut d_out, n_out, dtype));
    let (mut lse, starts, mut ws) = (Dst::of(&mut lse), Src::of(&starts), Dst::of(&mut ws));
    let d_out = d_out.into_src();
    let pairs = (a.batch * a.heads * a.seq * (a.seq + 1) / 2) as f64;
    let name = |what: &str| {
        let Attn {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            ..
        } = a;
        format!("attention {what} B{batch} T{seq} H{heads} KV{kv_heads} D{head_dim}")
    };
    let forward = best(|| {
        let o = attention::Forward {
            out: out.again(),
            lse: lse.again(),
            qkv,
            inputs: Planes::all(starts),
        };
        attention::forward(q, o, a, dtype, ws.again());
    });
    line(
        &name("forward"),
        dtype,
        4.0 * pairs * a.head_dim as f64,
        "GFLOP/s",
        forward,
    );
    let backward = best(|| {
        let o = attention::Backward {
            d_qkv: d_qkv.again(),
            d_out,
            qkv,
            out: out.src(),
            lse: lse.src(),
            inputs: Planes::all(starts),
        };
        attention::backward(q, o, a, dtype, ws.again());
    });
    line(
        &name("backward"),
        dtype,
        10.0 * pairs * a.head_dim as f64,
        "GFLOP/s",
        backward,
    );
}

fn heads(q: &Queue, d: Head, dtype: Dtype) {
    let (n_h, n_w) = (d.rows * d.hidden, d.vocab * d.hidden);
    let (mut h, mut dh, mut w) = (
        numbers(n_h, dtype),
        numbers(n_h, dtype),
        numbers(n_w, dtype),
    );
    let (mut dw, mut loss) = (vec![0.0_f32; n_w], [0.0_f64; 2]);
    let labels: Vec<i32> = (0..d.rows).map(|i| (i * 7 % d.vocab) as i32).collect();
    let mut ws = scratch(head::workspace(&d, dtype, lowtide_device::Make::Cpu));
    let (h, mut dh) = (
        part(&mut h, n_h, dtype).into_src(),
        part(&mut dh, n_h, dtype),
    );
    let (w, mut dw, mut loss) = (
        part(&mut w, n_w, dtype).into_src(),
        Dst::of(&mut dw),
        Dst::of(&mut loss),
    );
    let (labels, mut ws) = (Src::of(&labels), Dst::of(&mut ws));
    let seconds = best(|| {
        let o = head::Train {
            dh: dh.again(),
            dw: Some(sum(dw.again())),
            loss: loss.again(),
            h,
            w,
            inputs: Planes::all(labels),
        };
        head::train(q, o, 1e-3, &d, dtype, ws.again());
    });
    let name = format!("head train rows{} C{} V{}", d.rows, d.hidden, d.vocab);
    line(
        &name,
        dtype,
        6.0 * (d.rows * d.hidden * d.vocab) as f64,
        "GFLOP/s",
        seconds,
    );
}

/// Everything whose bound is bytes, on (rows, c) activations.
fn memory_bound(q: &Queue, rows: usize, c: usize, dtype: Dtype) {
    let n = rows * c;
    let mut buffers: [Vec<u32>; 5] = std::array::from_fn(|_| numbers(n, dtype));
    let [mut a, b, x, mut y, mut z] = buffers.each_mut().map(|buffer| part(buffer, n, dtype));
    let (mut w, mut bias) = (numbers(c, dtype), numbers(c, dtype));
    let (w, bias) = (
        part(&mut w, c, dtype).into_src(),
        part(&mut bias, c, dtype).into_src(),
    );
    let (b, x) = (b.into_src(), x.into_src());
    let (mut mean, mut rstd) = (vec![0.0_f32; rows], vec![0.0_f32; rows]);
    let (mut mean, mut rstd) = (Dst::of(&mut mean), Dst::of(&mut rstd));
    let (mut dw, mut db) = (vec![0.0_f32; c], vec![0.0_f32; c]);
    let (mut dw, mut db) = (Dst::of(&mut dw), Dst::of(&mut db));
    let mut ws = scratch(
        layernorm::workspace(rows, c, lowtide_device::Make::Cpu).max(embedding::workspace(
            rows,
            rows,
            lowtide_device::Make::Cpu,
        )),
    );
    let mut ws = Dst::of(&mut ws);
    let bytes = (n as u64 * dtype.size()) as f64;
    let say = |what: &str, passes: f64, seconds: f64| {
        line(
            &format!("{what} ({rows}, {c})"),
            dtype,
            passes * bytes,
            "GB/s",
            seconds,
        );
    };

    let d = Rows {
        rows,
        width: c,
        dtype,
    };
    let t = best(|| {
        let (y, rstd) = (y.again(), rstd.again());
        let plus = rmsnorm::Plus::Nothing;
        rmsnorm::forward(q, rmsnorm::Forward { y, rstd, x, w }, d, 1e-5, plus);
    });
    say("rmsnorm forward", 2.0, t);
    let t = best(|| {
        let o = rmsnorm::Backward {
            dx: a.again(),
            dw: Some(sum(dw.again())),
            dy: b,
            x,
            rstd: rstd.src(),
            w,
            residual: Some(y.src()),
        };
        rmsnorm::backward(q, o, d, rmsnorm::Plus::Nothing, ws.again());
    });
    say("rmsnorm backward", 4.0, t);
    let t = best(|| {
        let o = layernorm::Forward {
            y: y.again(),
            mean: mean.again(),
            rstd: rstd.again(),
            x,
            w,
            b: Some(bias),
        };
        layernorm::forward(q, o, d, 1e-5);
    });
    say("layernorm forward", 2.0, t);
    let t = best(|| {
        let o = layernorm::Backward {
            dx: a.again(),
            dw: Some(sum(dw.again())),
            db: Some(sum(db.again())),
            dy: b,
            x,
            mean: mean.src(),
            rstd: rstd.src(),
            w,
            residual: Some(y.src()),
        };
        layernorm::backward(q, o, d, ws.again());
    });
    say("layernorm backward", 4.0, t);

    let shape = Heads {
        heads: c / 128,
        kv_heads: c / 256,
        head_dim: 64,
    };
    let inv_freq: Vec<f64> = (0..32)
        .map(|i| 1e4_f64.powf(f64::from(i) / -32.0))
        .collect();
    let table = Table::new(&inv_freq, 1.0, rows);
    let positions: Vec<i32> = (0..rows as i32).collect();
    let positions = Src::of(&positions);
    let turns = Rotation {
        table: &table,
        rows,
        heads: shape,
        eps: 1e-5,
        plus: rmsnorm::Plus::Nothing,
        dtype,
    };
    let t = best(|| {
        let o = rope::Forward {
            y: y.again(),
            x,
            inputs: Planes::all(positions),
            norm: None,
        };
        rope::forward(q, o, turns);
    });
    say("rope forward", 2.0, t);

    let half = n / 2 * dtype.size() as usize;
    let halves = Rows { width: c / 2, ..d };
    let t = best(|| {
        let y = y.lend(0, half);
        swiglu::forward(
            q,
            swiglu::Forward { y, gate_up: x },
            halves,
            swiglu::Gate::Silu,
        );
    });
    say("swiglu forward", 1.5, t);
    let t = best(|| {
        let o = swiglu::Backward {
            d_gate_up: a.again(),
            dy: z.src().part(0, half),
            gate_up: x,
        };
        swiglu::backward(q, o, halves, swiglu::Gate::Silu);
    });
    say("swiglu backward", 2.5, t);
    let t = best(|| {
        let y = y.again();
        gelu::forward(q, gelu::Forward { y, x }, n, gelu::Form::Tanh, dtype);
    });
    say("gelu forward", 2.0, t);
    let t = best(|| {
        let dx = a.again();
        gelu::backward(
            q,
            gelu::Backward { dx, dy: b, x },
            n,
            gelu::Form::Tanh,
            dtype,
        );
    });
    say("gelu backward", 3.0, t);

    let tokens: Vec<i32> = (0..rows).map(|i| (i * 7919 % rows) as i32).collect();
    let tokens = Src::of(&tokens);
    let tables = embedding::Dims {
        rows: d,
        vocab: rows,
        positions: 0,
        first_position: 0,
        types: 0,
        typed: false,
    };
    let t = best(|| {
        let o = embedding::Forward {
            y: y.again(),
            inputs: Planes::all(tokens),
            tokens: x,
            positions: None,
            types: None,
        };
        embedding::forward(q, o, tables);
    });
    say("embedding forward", 2.0, t);
    let mut acc = vec![0.0_f32; n];
    let mut acc = Dst::of(&mut acc);
    let t = best(|| {
        let o = embedding::Backward {
            dtokens: Some(Sum {
                to: acc.again(),
                accumulate: false,
            }),
            dpositions: None,
            dtypes: None,
            dy: y.src(),
            inputs: Planes::all(tokens),
        };
        embedding::backward(q, o, tables, ws.again());
    });
    say("embedding backward", 1.0 + 4.0 / dtype.size() as f64, t);
    let params = [Segment {
        offset: 0,
        elements: n,
    }];
    let mut parts = vec![0.0_f64; params[0].norm_chunks()];
    let mut parts = Dst::of(&mut parts);
    let t = best(|| {
        let (to, parts, acc) = (z.again(), parts.again(), Some(acc.src()));
        gradient::finish(q, to, parts, acc, &params, n, dtype);
    });
    say("gradient finish", 1.0 + 4.0 / dtype.size() as f64, t);
    let d = Dims {
        rows,
        inner: 1,
        cols: c,
    };
    let mut ws = scratch(matmul::workspace(d, dtype, lowtide_device::Make::Cpu));
    let mut ws = Dst::of(&mut ws);
    let t = best(|| {
        let o = matmul::Bias {
            db: sum(db.again()),
            dy: x,
        };
        matmul::backward_bias(q, o, d, dtype, ws.again());
    });
    say("backward_bias", 1.0, t);
}
