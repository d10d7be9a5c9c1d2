//! Attention against `f64`.

use super::*;
use crate::testing::{DTYPES, Rng, Scratch, Tensor, close, differences, dot, on_threads, packed};

fn attn(batch: usize, seq: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Attn {
    Attn {
        batch,
        seq,
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        engine: crate::attention::Engine::Own,
    }
}

#[track_caller]
fn check(a: &Attn, pack: bool, dtype: Dtype) {
    let mut rng = Rng((a.seq * 131 + a.head_dim + a.heads) as u64);
    let (n, n_out) = (a.rows() * a.width(), a.rows() * a.heads * a.head_dim);
    let (qkv, d_out) = (rng.tensor(n, dtype, 3.0), rng.tensor(n_out, dtype, 1.0));
    let starts = if pack {
        packed(&mut rng, a.batch, a.seq).0
    } else {
        vec![0; a.rows()]
    };
    let (out, lse, d_qkv) = on_threads(|q| {
        let mut out = Tensor::nan(n_out, dtype);
        let mut lse = Tensor::nan(a.rows() * a.heads, Dtype::F32);
        let mut d_qkv = Tensor::nan(n, dtype);
        let (mut qkv, mut d_out, mut starts) = (qkv.clone(), d_out.clone(), starts.clone());
        let mut ws = Scratch::new(workspace(a, dtype, lowtide_device::Make::Cpu));
        let docs = View::of(&mut starts);
        forward(
            q,
            out.view(),
            lse.view(),
            qkv.view(),
            docs,
            a,
            dtype,
            ws.view(),
        );
        let (from, o, l) = (d_out.view(), out.view(), lse.view());
        backward(
            q,
            d_qkv.view(),
            from,
            qkv.view(),
            o,
            l,
            docs,
            a,
            dtype,
            ws.view(),
        );
        (out, lse, d_qkv)
    });
    let want = reference::forward(&qkv.values(), &starts, a);
    close("out", &out, &want.out, 1e-5);
    close("lse", &lse, &want.lse, 1e-5);
    let saved = out.values(); // rounded, which shifts the gradient of every score
    let want = reference::backward(&d_out.values(), &qkv.values(), &saved, &starts, a);
    close("d_qkv", &d_qkv, &want, 5e-5);
}

#[test]
fn agrees_with_the_reference() {
    for seq in [1, 7, 128, 129, 300] {
        for dtype in DTYPES {
            check(&attn(2, seq, 2, 2, 16), false, dtype);
            check(&attn(2, seq, 4, 2, 16), true, dtype);
        }
    }
}

#[test]
fn wide_heads_and_groups_agree_with_the_reference() {
    for dtype in DTYPES {
        check(&attn(1, 129, 6, 2, 64), true, dtype);
        check(&attn(1, 300, 3, 1, 128), true, dtype);
        check(&attn(1, 65, 1, 1, 128), false, dtype);
        check(&attn(3, 9, 5, 5, 10), true, dtype);
    }
}

#[test]
fn more_key_heads_than_fit_at_once() {
    // Twenty-two slots of 1.5 MiB: several waves over the same workspace.
    let a = attn(8, 3072, 4, 4, 64);
    assert!(backward::slots(&a) < 32, "the case must need several waves");
    let dtype = Dtype::F32;
    let mut rng = Rng(9);
    // Only documents of a few tokens, so that each row equals a short one of its own.
    let row = rng.tensor(a.seq * a.width(), dtype, 1.0).values();
    let mut qkv = Tensor::of(&row.repeat(a.batch), dtype);
    let n_out = a.rows() * a.heads * a.head_dim;
    let d_row = rng.tensor(n_out / a.batch, dtype, 1.0).values();
    let mut d_out = Tensor::of(&d_row.repeat(a.batch), dtype);
    let mut starts: Vec<i32> = (0..a.rows()).map(|i| (i % a.seq / 8 * 8) as i32).collect();
    let [mut out, mut lse] = [n_out, a.rows() * a.heads].map(|n| Tensor::nan(n, dtype));
    let mut d_qkv = Tensor::nan(a.rows() * a.width(), dtype);
    let mut ws = Scratch::new(workspace(&a, dtype, lowtide_device::Make::Cpu));
    let (q, docs) = (Queue::new("test", 2), View::of(&mut starts));
    forward(
        &q,
        out.view(),
        lse.view(),
        qkv.view(),
        docs,
        &a,
        dtype,
        ws.view(),
    );
    let (from, o, l) = (d_out.view(), out.view(), lse.view());
    backward(
        &q,
        d_qkv.view(),
        from,
        qkv.view(),
        o,
        l,
        docs,
        &a,
        dtype,
        ws.view(),
    );
    let got = d_qkv.values();
    let first = &got[..a.seq * a.width()];
    assert!(first.iter().all(|x| x.is_finite()));
    assert!(
        got.chunks_exact(first.len()).all(|row| row == first),
        "rows of equal tokens differ"
    );
}

#[test]
fn large_scores_do_not_overflow() {
    let a = attn(1, 129, 1, 1, 16);
    let mut rng = Rng(3);
    let mut qkv = rng.tensor(a.rows() * a.width(), Dtype::F32, 60.0);
    let mut out = Tensor::nan(a.rows() * 16, Dtype::F32);
    let mut lse = Tensor::nan(a.rows(), Dtype::F32);
    let mut starts = vec![0; a.rows()];
    let mut ws = Scratch::new(workspace(&a, Dtype::F32, lowtide_device::Make::Cpu));
    let q = Queue::new("test", 1);
    let docs = View::of(&mut starts);
    forward(
        &q,
        out.view(),
        lse.view(),
        qkv.view(),
        docs,
        &a,
        Dtype::F32,
        ws.view(),
    );
    let want = reference::forward(&qkv.values(), &vec![0; a.rows()], &a);
    close("out", &out, &want.out, 2e-2); // scores near 1e4 carry errors of 1e-3
    close("lse", &lse, &want.lse, 2e-2);
}

#[test]
fn other_documents_do_not_matter() {
    // Two documents in a row: the second must come out as it does alone (its tiles are cut
    // elsewhere, so not to the bit).
    let (whole, alone) = (attn(1, 200, 2, 1, 16), attn(1, 63, 2, 1, 16));
    let mut rng = Rng(4);
    let qkv = rng.tensor(200 * whole.width(), Dtype::F32, 2.0);
    let q = Queue::new("test", 2);
    let run = |a: &Attn, values: &[f64], mut starts: Vec<i32>| {
        let mut qkv = Tensor::of(values, Dtype::F32);
        let mut out = Tensor::nan(a.rows() * 32, Dtype::F32);
        let mut lse = Tensor::nan(a.rows() * 2, Dtype::F32);
        let mut ws = Scratch::new(workspace(a, Dtype::F32, lowtide_device::Make::Cpu));
        let docs = View::of(&mut starts);
        forward(
            &q,
            out.view(),
            lse.view(),
            qkv.view(),
            docs,
            a,
            Dtype::F32,
            ws.view(),
        );
        out
    };
    let starts = (0..200).map(|t| if t < 137 { 0 } else { 137 }).collect();
    let both = run(&whole, &qkv.values(), starts);
    let second = run(&alone, &qkv.values()[137 * whole.width()..], vec![0; 63]);
    close("out", &second, &both.values()[137 * 32..], 1e-6);
}

#[test]
fn reference_gradient_is_the_slope() {
    let a = attn(2, 7, 4, 2, 6);
    let mut rng = Rng(1);
    let starts = [0, 0, 0, 3, 3, 3, 3, 0, 1, 1, 1, 1, 1, 6];
    let qkv: Vec<f64> = rng
        .vec(a.rows() * a.width())
        .iter()
        .map(|x| 2.0 * x)
        .collect();
    let d_out = rng.vec(a.rows() * a.heads * a.head_dim);
    let out = reference::forward(&qkv, &starts, &a).out;
    let g = reference::backward(&d_out, &qkv, &out, &starts, &a);
    differences("d_qkv", &qkv, &g, |x| {
        dot(&d_out, &reference::forward(x, &starts, &a).out)
    });
}
