//! Attention against `f64`.
//!
//! One file because every test runs the same operands by the same few functions.

use lowtide_device::Dst;

use super::*;
use crate::operands::{Planes, Views};
use crate::testing::{
    DTYPES, Numbers, Rng, Scratch, Tensor, close, differences, dot, everywhere, gpu, on_gpu, packed,
};

fn attn(batch: usize, seq: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Attn {
    Attn {
        batch,
        seq,
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        cap: None,
        mask: Mask::Causal,
        engine: Engine::Own,
    }
}

fn windowed(a: Attn, keys: u32) -> Attn {
    Attn {
        mask: Mask::Window(keys),
        ..a
    }
}

fn full(a: Attn) -> Attn {
    Attn {
        mask: Mask::Full,
        ..a
    }
}

fn capped(a: Attn, cap: f32) -> Attn {
    Attn {
        cap: Some(cap),
        ..a
    }
}

/// Operands of one case.
struct Case {
    qkv: Tensor,
    d_out: Tensor,
    starts: Vec<i32>,
}

impl Case {
    fn new(a: &Attn, pack: bool, dtype: Dtype) -> Self {
        let mut rng = Rng((a.seq * 131 + a.head_dim + a.heads) as u64);
        let (n, n_out) = (a.rows() * a.width(), a.rows() * a.heads * a.head_dim);
        Self {
            qkv: rng.tensor(n, dtype, 3.0),
            d_out: rng.tensor(n_out, dtype, 1.0),
            starts: if pack {
                packed(&mut rng, a.batch, a.seq).0
            } else {
                vec![0; a.rows()]
            },
        }
    }

    /// Both directions on `q`.
    fn run(&self, q: &Queue, a: &Attn, dtype: Dtype) -> Done {
        let bytes = workspace(a, dtype, q.make());
        self.run_by(q, a, dtype, bytes, |o, ws| backward(q, o, a, dtype, ws))
    }

    /// Both directions on `q`, backward by `back` with as many bytes of scratch.
    fn run_by(
        &self,
        q: &Queue,
        a: &Attn,
        dtype: Dtype,
        bytes: usize,
        back: impl FnOnce(Backward<Views<'_>>, Dst<'_>),
    ) -> Done {
        let mut done = Done {
            out: Tensor::nan(a.rows() * a.heads * a.head_dim, dtype),
            lse: Tensor::nan(a.rows() * a.heads, Dtype::F32),
            d_qkv: Tensor::nan(a.rows() * a.width(), dtype),
        };
        let (mut qkv, mut d_out) = (self.qkv.clone(), self.d_out.clone());
        let mut starts = Numbers::of(&self.starts);
        let mut ws = Scratch::new(bytes);
        let (qkv, inputs, mut ws) = (qkv.src(q), Planes::all(starts.src(q)), ws.on(q));
        let (mut out, mut lse) = (done.out.on(q), done.lse.on(q));
        let o = Forward {
            out: out.again(),
            lse: lse.again(),
            qkv,
            inputs,
        };
        forward(q, o, a, dtype, ws.again());
        let o = Backward {
            d_qkv: done.d_qkv.on(q),
            d_out: d_out.src(q),
            qkv,
            out: out.src(),
            lse: lse.src(),
            inputs,
        };
        back(o, ws);
        settle(q);
        done
    }

    #[track_caller]
    fn check(&self, device: &str, a: &Attn, dtype: Dtype, done: &Done) {
        let want = reference::forward(&self.qkv.values(), &self.starts, a);
        let saved = done.out.values(); // rounded, which shifts the gradient of every score
        let (qkv, d_out) = (self.qkv.values(), self.d_out.values());
        let d_qkv = reference::backward(&d_out, &qkv, &saved, &self.starts, a);
        let what = |what: &str| format!("{what} of {a:?} on {device}");
        if device == "cuda" && dtype == Dtype::Bf16 {
            near(&what("out"), &saved, &want.out, a.head_dim, ROUNDING);
            close(&what("lse"), &done.lse, &want.lse, 1e-4);
            let got = done.d_qkv.values();
            near(&what("d_qkv"), &got, &d_qkv, a.head_dim, ROUNDING);
        } else {
            close(&what("out"), &done.out, &want.out, 1e-5);
            close(&what("lse"), &done.lse, &want.lse, 1e-5);
            close(&what("d_qkv"), &done.d_qkv, &d_qkv, 5e-5);
        }
    }
}

#[derive(Debug, PartialEq)]
struct Done {
    out: Tensor,
    lse: Tensor,
    d_qkv: Tensor,
}

/// How far each token's head may be off, as a vector: parts of its own length and of the mean one.
///
/// Tensor cores multiply bf16: probabilities and the gradients of scores, f32 in registers, are
/// rounded to bf16 before they are multiplied, each by at most 2^-9 of itself, and cuDNN rounds
/// each query head's part of dk and dv. A number that is a small difference of large ones is
/// further off than its own rounding, so vectors are compared. A key seen wrongly, a wrong head or
/// a wrong scale is far outside.
const ROUNDING: (f64, f64) = (0.015, 0.005);

#[track_caller]
fn near(what: &str, got: &[f64], want: &[f64], head_dim: usize, (own, all): (f64, f64)) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let length = |v: &[f64]| dot(v, v).sqrt();
    let vectors = (want.len() / head_dim) as f64;
    let mean = length(want) / vectors.sqrt();
    let pairs = got.chunks_exact(head_dim).zip(want.chunks_exact(head_dim));
    for (i, (got, want)) in pairs.enumerate() {
        let off: Vec<f64> = got.iter().zip(want).map(|(g, w)| g - w).collect();
        let (off, limit) = (length(&off), own * length(want) + all * mean);
        assert!(
            off <= limit,
            "{what}, vector {i}: off by {off:e}, limit {limit:e}\n got {:?}\nwant {:?}",
            &got[..got.len().min(8)],
            &want[..want.len().min(8)]
        );
    }
}

#[track_caller]
fn check(a: &Attn, pack: bool, dtype: Dtype) {
    let case = Case::new(a, pack, dtype);
    for (device, done) in everywhere(|q| case.run(q, a, dtype)) {
        case.check(device, a, dtype, &done);
    }
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
        check(&attn(1, 130, 4, 2, 96), true, dtype);
        check(&attn(1, 193, 2, 1, 256), true, dtype);
        check(&attn(2, 66, 2, 1, 72), false, dtype);
        check(&attn(1, 140, 14, 2, 24), true, dtype);
    }
}

/// Windows of one key, inside a tile, of whole tiles, just short of the row, and longer than it, with documents that
/// are shorter and longer than the window, on every kernel that a GPU has for these heads.
#[test]
fn windows_agree_with_the_reference() {
    for dtype in DTYPES {
        for (seq, keys) in [(7, 1), (9, 3), (129, 64), (130, 128), (300, 17), (300, 299)] {
            check(&windowed(attn(2, seq, 4, 2, 16), keys), false, dtype);
            check(&windowed(attn(2, seq, 4, 2, 16), keys), true, dtype);
        }
        check(&windowed(attn(1, 300, 3, 1, 128), 130), true, dtype);
        check(&windowed(attn(1, 260, 2, 1, 64), 33), false, dtype);
        check(&windowed(attn(1, 193, 2, 1, 256), 40), true, dtype);
        check(&windowed(attn(3, 90, 5, 5, 10), 11), true, dtype);
        check(&windowed(attn(1, 50, 2, 1, 16), 1000), true, dtype);
    }
}

/// Whole documents, on every kernel that a GPU has for heads: rows of one document and of several, which end
/// inside tiles and at their edges.
#[test]
fn full_masks_agree_with_the_reference() {
    for dtype in DTYPES {
        for seq in [1, 7, 128, 129, 300] {
            check(&full(attn(2, seq, 2, 2, 16)), false, dtype);
            check(&full(attn(2, seq, 4, 2, 16)), true, dtype);
        }
        check(&full(attn(1, 260, 4, 4, 64)), true, dtype);
        check(&full(attn(1, 130, 4, 2, 96)), false, dtype);
        check(&full(attn(1, 300, 3, 1, 128)), true, dtype);
        check(&full(attn(1, 193, 2, 1, 256)), true, dtype);
        check(&full(attn(3, 90, 5, 5, 10)), true, dtype);
        // Documents of whole tiles, then one that ends with the row.
        let a = full(attn(1, 400, 2, 1, 64));
        let starts = (0..400).map(|t| t / 128 * 128).collect();
        let case = Case {
            starts,
            ..Case::new(&a, false, dtype)
        };
        for (device, done) in everywhere(|q| case.run(q, &a, dtype)) {
            case.check(device, &a, dtype, &done);
        }
    }
}

/// Caps that change scores of order 3 much and hardly, with windows and documents, on every kernel that a GPU has for
/// these heads.
#[test]
fn caps_agree_with_the_reference() {
    for dtype in DTYPES {
        for cap in [1.5, 50.0] {
            check(&capped(attn(2, 129, 4, 2, 16), cap), true, dtype);
        }
        check(&capped(attn(1, 140, 3, 1, 64), 2.0), true, dtype);
        check(&capped(attn(1, 130, 4, 2, 96), 3.0), false, dtype);
        check(
            &capped(windowed(attn(1, 140, 2, 1, 128), 60), 2.0),
            true,
            dtype,
        );
        check(
            &capped(windowed(attn(1, 193, 2, 1, 256), 40), 4.0),
            false,
            dtype,
        );
        check(&capped(attn(3, 40, 5, 5, 10), 0.5), true, dtype);
        let other_scale = Attn {
            scale: 0.9,
            ..capped(attn(1, 100, 2, 2, 16), 1.0)
        };
        check(&other_scale, true, dtype);
    }
}

/// A window that reaches over the row changes no bit, on either device.
#[test]
fn a_window_as_long_as_the_row_is_none() {
    for dtype in DTYPES {
        let a = attn(2, 133, 4, 2, 16);
        let case = Case::new(&a, true, dtype);
        let plain = everywhere(|q| case.run(q, &a, dtype));
        for keys in [133, 1 << 31] {
            let wide = windowed(a, keys);
            assert_eq!(everywhere(|q| case.run(q, &wide, dtype)), plain, "{keys}");
        }
    }
}

#[test]
fn long_rows_agree_with_the_reference() {
    for dtype in DTYPES {
        for (pack, a) in [
            (false, attn(1, 2048, 1, 1, 128)),
            (true, attn(1, 2000, 2, 1, 64)),
            (true, windowed(attn(1, 2048, 2, 1, 64), 500)),
            (true, full(attn(1, 2000, 2, 1, 64))),
        ] {
            let case = Case::new(&a, pack, dtype);
            if let Some(done) = on_gpu(|q| case.run(q, &a, dtype)) {
                case.check("cuda", &a, dtype, &done);
            }
        }
    }
}

/// A CUDA queue whose device has cuDNN for `a`; without a GPU or cuDNN none, and the test is
/// skipped. `supports` has made the plans then.
#[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
fn cudnn_queue(a: &Attn) -> Option<Queue> {
    let q = gpu()?;
    if let Err(e) = lowtide_device::cuda::dnn::library() {
        assert!(
            std::env::var_os("LOWTIDE_REQUIRE_CUDA").is_none(),
            "cuDNN is required: {e}"
        );
        eprintln!("skipped: {e}");
        return None;
    }
    let device = q.cuda().expect("it is one").gpu();
    supports(device, a, Dtype::Bf16).unwrap_or_else(|e| panic!("{a:?}: {e}"));
    Some(q)
}

fn by_cudnn(a: &Attn) -> Attn {
    Attn {
        engine: Engine::Cudnn,
        ..*a
    }
}

#[test]
fn cudnn_agrees_with_the_reference() {
    let dtype = Dtype::Bf16;
    let mut shapes = vec![attn(1, 2048, 2, 1, 64), attn(1, 2048, 1, 1, 128)];
    for seq in [2, 7, 128, 129] {
        for (heads, kv_heads) in [(4, 4), (4, 2), (14, 2)] {
            for head_dim in [64, 128] {
                let batch = [1, 3][(seq + heads + head_dim / 64) % 2];
                shapes.push(attn(batch, seq, heads, kv_heads, head_dim));
            }
        }
    }
    shapes.extend([attn(2, 200, 4, 2, 96), attn(1, 300, 2, 2, 64)]);
    for a in shapes.iter().map(by_cudnn) {
        if cudnn_queue(&a).is_none() {
            return;
        }
        let case = Case::new(&a, false, dtype);
        let done = on_gpu(|q| case.run(q, &a, dtype)).expect("there is a GPU");
        case.check("cuda", &a, dtype, &done);
    }
}

/// A tile rounds its part of every gradient to bf16 before the parts are added, which the limits of
/// one part's rounding still hold.
#[test]
fn cudnn_in_tiles_agrees_with_the_reference() {
    let dtype = Dtype::Bf16;
    for (shape, cut) in [
        (attn(1, 512, 1, 1, 64), (1, 128)),
        (attn(2, 1000, 4, 2, 128), (1, 256)),
        (attn(1, 900, 8, 1, 96), (1, 384)),
        (attn(1, 385, 2, 2, 64), (1, 128)),
        (attn(1, 700, 5, 5, 64), (2, 256)),
        (attn(2, 520, 12, 6, 128), (4, 128)),
    ] {
        let a = by_cudnn(&shape);
        if cudnn_queue(&a).is_none() {
            return;
        }
        let case = Case::new(&a, false, dtype);
        let run = || {
            on_gpu(|q| {
                let bytes = workspace(&a, dtype, q.make()).max(cudnn::tiles_workspace(&a, cut));
                let stream = q.cuda().expect("it is one");
                case.run_by(q, &a, dtype, bytes, |o, ws| {
                    cudnn::backward_in_tiles(stream, o, &a, cut, ws);
                })
            })
            .expect("there is a GPU")
        };
        let done = run();
        case.check("cuda", &a, dtype, &done);
        assert_eq!(run(), done, "the same bits every time");
    }
}

/// As rows of more than 2 GiB run: a few heads at a time, copied together.
#[test]
fn cudnn_in_copies_agrees_with_the_reference() {
    let dtype = Dtype::Bf16;
    for (shape, heads) in [
        (attn(1, 300, 4, 4, 64), [2, 2]),
        (attn(2, 129, 8, 2, 128), [4, 1]),
        (attn(1, 256, 16, 2, 128), [2, 1]),
        (attn(2, 200, 4, 2, 96), [4, 2]),
    ] {
        let a = by_cudnn(&shape);
        let Some(q) = cudnn_queue(&a) else { return };
        let case = Case::new(&a, false, dtype);
        let want = case.run(&q, &a, dtype);
        let mut out = Tensor::nan(a.rows() * a.heads * a.head_dim, dtype);
        let mut lse = Tensor::nan(a.rows() * a.heads, Dtype::F32);
        let (mut qkv, mut starts) = (case.qkv.clone(), Numbers::of(&case.starts));
        let mut ws = Scratch::new(cudnn::together_workspace(&a, heads));
        let o = Forward {
            out: out.on(&q),
            lse: lse.on(&q),
            qkv: qkv.src(&q),
            inputs: Planes::all(starts.src(&q)),
        };
        let stream = q.cuda().expect("it is one");
        cudnn::forward_in_copies(stream, o, &a, heads, ws.on(&q));
        settle(&q);
        let got = out.values();
        close("lse", &lse, &want.lse.values(), 1e-4);
        near("out", &got, &want.out.values(), a.head_dim, ROUNDING);
        let forward = reference::forward(&case.qkv.values(), &case.starts, &a);
        near("out", &got, &forward.out, a.head_dim, ROUNDING);
    }
}

#[test]
fn cudnn_in_slices_agrees_with_the_own_kernels() {
    let dtype = Dtype::Bf16;
    // The first is cut into rows, three and two, the second into key heads, the others into tiles, the last
    // of two key heads.
    for own in [
        attn(5, 4096, 8, 2, 64),
        attn(1, 8192, 12, 2, 64),
        attn(1, 16_384, 8, 1, 128),
        attn(1, 12_000, 12, 2, 64),
    ] {
        let a = by_cudnn(&own);
        let Some(q) = cudnn_queue(&a) else { return };
        assert!(cudnn::executions(&a) > 1, "{a:?} must be cut");
        let case = Case::new(&a, false, dtype);
        let want = case.run(&q, &own, dtype);
        let got = on_gpu(|q| case.run(q, &a, dtype)).expect("there is a GPU");
        // Both sum up to 16,384 terms in f32, in other orders.
        close("lse", &got.lse, &want.lse.values(), 2e-4);
        let (out, d_qkv) = (got.out.values(), got.d_qkv.values());
        near("out", &out, &want.out.values(), a.head_dim, ROUNDING);
        // Each engine's gradient starts from its own rounded output, and where a query sees almost
        // only one key, what is left of the gradient of its score is of the size of that rounding.
        let limits = (0.05, 0.05);
        near("d_qkv", &d_qkv, &want.d_qkv.values(), a.head_dim, limits);
    }
}

#[test]
fn what_cudnn_does_not_do_is_refused_cleanly() {
    for (a, dtype) in [
        (attn(2, 1, 4, 2, 64), Dtype::Bf16),
        (attn(1, 16, 4, 2, 64), Dtype::F32),
        (attn(1, 16, 4, 2, 10), Dtype::Bf16),
        (attn(1, 16, 4, 2, 264), Dtype::Bf16),
        (windowed(attn(1, 16, 4, 2, 64), 8), Dtype::Bf16),
        (full(attn(1, 16, 4, 2, 64)), Dtype::Bf16),
        (capped(attn(1, 16, 4, 2, 64), 8.0), Dtype::Bf16),
    ] {
        let Some(q) = gpu() else { return };
        let (a, stream) = (by_cudnn(&a), q.cuda().expect("it is one"));
        let why = supports(stream.gpu(), &a, dtype).expect_err("it is refused");
        assert!(!why.is_empty(), "{a:?}");
        let case = Case::new(&a, false, dtype);
        let mut out = Tensor::nan(a.rows() * a.heads * a.head_dim, dtype);
        let mut lse = Tensor::nan(a.rows() * a.heads, Dtype::F32);
        let (mut qkv, mut starts) = (case.qkv.clone(), Numbers::of(&case.starts));
        let mut ws = Scratch::new(workspace(&a, dtype, Make::Cuda));
        let o = Forward {
            out: out.on(&q),
            lse: lse.on(&q),
            qkv: qkv.src(&q),
            inputs: Planes::all(starts.src(&q)),
        };
        forward(&q, o, &a, dtype, ws.on(&q));
        assert!(stream.take_error().is_some(), "{a:?} on {dtype:?}");
        assert!(stream.synchronize().is_ok(), "the queue goes on after it");
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
    let starts: Vec<i32> = (0..a.rows()).map(|i| (i % a.seq / 8 * 8) as i32).collect();
    let [mut out, mut lse] = [n_out, a.rows() * a.heads].map(|n| Tensor::nan(n, dtype));
    let mut d_qkv = Tensor::nan(a.rows() * a.width(), dtype);
    let mut ws = Scratch::new(workspace(&a, dtype, lowtide_device::Make::Cpu));
    let (q, inputs) = (Queue::new("test", 2), Planes::all(Src::of(&starts)));
    let o = Forward {
        out: out.view(),
        lse: lse.view(),
        qkv: qkv.view().into_src(),
        inputs,
    };
    forward(&q, o, &a, dtype, ws.view());
    let o = Backward {
        d_qkv: d_qkv.view(),
        d_out: d_out.view().into_src(),
        qkv: qkv.view().into_src(),
        out: out.view().into_src(),
        lse: lse.view().into_src(),
        inputs,
    };
    backward(&q, o, &a, dtype, ws.view());
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
    let (a, dtype) = (attn(1, 129, 1, 1, 16), Dtype::F32);
    let mut rng = Rng(3);
    let qkv = rng.tensor(a.rows() * a.width(), dtype, 60.0);
    let want = reference::forward(&qkv.values(), &vec![0; a.rows()], &a);
    let all = everywhere(|q| {
        let mut out = Tensor::nan(a.rows() * 16, dtype);
        let mut lse = Tensor::nan(a.rows(), dtype);
        let (mut qkv, mut starts) = (qkv.clone(), Numbers::of(&vec![0_i32; a.rows()]));
        let mut ws = Scratch::new(workspace(&a, dtype, q.make()));
        let o = Forward {
            out: out.on(q),
            lse: lse.on(q),
            qkv: qkv.src(q),
            inputs: Planes::all(starts.src(q)),
        };
        forward(q, o, &a, dtype, ws.on(q));
        settle(q);
        (out, lse)
    });
    for (device, (out, lse)) in all {
        // Scores near 1e4 carry errors of 1e-3.
        close(&format!("out on {device}"), &out, &want.out, 2e-2);
        close(&format!("lse on {device}"), &lse, &want.lse, 2e-2);
    }
}

/// Waits for a GPU, because what a test's closure gave it is freed at its end.
fn settle(q: &Queue) {
    if let Some(q) = q.cuda() {
        q.synchronize().unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn other_documents_do_not_matter() {
    // Two documents in a row: the second must come out as it does alone (its tiles are cut
    // elsewhere, so not to the bit).
    let (whole, alone) = (attn(1, 200, 2, 1, 16), attn(1, 63, 2, 1, 16));
    let mut rng = Rng(4);
    let qkv = rng.tensor(200 * whole.width(), Dtype::F32, 2.0);
    let run = |q: &Queue, a: &Attn, values: &[f64], starts: &[i32]| {
        let (mut qkv, mut starts) = (Tensor::of(values, Dtype::F32), Numbers::of(starts));
        let mut out = Tensor::nan(a.rows() * 32, Dtype::F32);
        let mut lse = Tensor::nan(a.rows() * 2, Dtype::F32);
        let mut ws = Scratch::new(workspace(a, Dtype::F32, q.make()));
        let o = Forward {
            out: out.on(q),
            lse: lse.on(q),
            qkv: qkv.src(q),
            inputs: Planes::all(starts.src(q)),
        };
        forward(q, o, a, Dtype::F32, ws.on(q));
        settle(q);
        out
    };
    let starts: Vec<i32> = (0..200).map(|t| if t < 137 { 0 } else { 137 }).collect();
    let values = qkv.values();
    let all = everywhere(|q| {
        let both = run(q, &whole, &values, &starts);
        let second = run(q, &alone, &values[137 * whole.width()..], &[0; 63]);
        (both, second)
    });
    for (device, (both, second)) in all {
        // A GPU's exponentials are good to two units in the last place, not to half of one.
        let slack = if device == "cuda" { 1e-5 } else { 1e-6 };
        close("out", &second, &both.values()[137 * 32..], slack);
    }
}

#[test]
fn reference_gradient_is_the_slope() {
    slope_of(&attn(2, 7, 4, 2, 6));
    slope_of(&windowed(attn(2, 7, 4, 2, 6), 3));
    slope_of(&full(attn(2, 7, 4, 2, 6)));
    slope_of(&capped(attn(2, 7, 4, 2, 6), 1.25));
}

fn slope_of(a: &Attn) {
    let mut rng = Rng(1);
    let starts = [0, 0, 0, 3, 3, 3, 3, 0, 1, 1, 1, 1, 1, 6];
    let qkv: Vec<f64> = rng
        .vec(a.rows() * a.width())
        .iter()
        .map(|x| 2.0 * x)
        .collect();
    let d_out = rng.vec(a.rows() * a.heads * a.head_dim);
    let out = reference::forward(&qkv, &starts, a).out;
    let g = reference::backward(&d_out, &qkv, &out, &starts, a);
    differences("d_qkv", &qkv, &g, |x| {
        dot(&d_out, &reference::forward(x, &starts, a).out)
    });
}
