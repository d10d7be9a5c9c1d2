//! Against f64, against transformers, host against device. Storage, paths, threads, pieces and clipping:
//! `update/tests.rs`, for every optimizer.

use lowtide_device::{Dst, Queue, Src};
use lowtide_workload::{Dtype, Moments, Optimizer, OptimizerName};

use super::*;
use crate::testing::{Numbers, everywhere};
use crate::update::{Operands, dispatch, join, split};

const OPTIMIZER: Optimizer = Optimizer {
    name: OptimizerName::Adafactor,
    moments: Moments::F32,
};

fn settings() -> Hyper {
    Hyper {
        eps: 1e-30,
        clip_threshold: 0.9,
        decay_rate: -0.7,
        weight_decay: 0.1,
        ..Hyper::new(0.02, 1)
    }
}

/// Rows and columns: below one band and tile, at their borders, above them, one row, many bands; vectors up to
/// several runs. One behind the other without a gap, as tensors that are fused.
const SHAPES: [(usize, usize); 14] = [
    (3, 5),
    (64, 128),
    (65, 129),
    (70, 260),
    (1, 40),
    (200, 2),
    (7, 1),
    (1030, 1),
    (1, 1),
    (128, 1),
    (5000, 1),
    (700, 43),
    (77, 300),
    (130, 1000),
];

/// As in `reference/adafactor.py`.
fn signed(i: u64) -> f32 {
    let z = i
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z >> 31) as u32) as i32 as f32 / 2f32.powi(31)
}

/// The gradient of a step: rows of very different size, smaller from step to step.
fn gradient(cols: usize, step: u64, i: usize) -> f32 {
    let size = (i / cols % 9) as i32 - 4 - 2 * step as i32;
    signed((step << 8 | cols as u64) << 40 | i as u64) * 2f32.powi(size)
}

/// A piece in f32.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    segments: Vec<Segment>,
    p: Vec<f32>,
    state: Vec<f32>,
    grad: Vec<f32>,
}

impl Piece {
    fn new(shapes: &[(usize, usize)]) -> Self {
        let mut n = 0;
        let (mut segments, mut p) = (Vec::new(), Vec::new());
        for (i, &(rows, cols)) in shapes.iter().enumerate() {
            let elements = rows * cols;
            segments.push(Segment {
                offset: n,
                elements,
                decay: true,
                updated: true,
                param: i as u32,
                start: 0,
                cols,
            });
            p.extend((0..elements).map(|i| signed((rows as u64) << 40 | i as u64)));
            n += elements;
        }
        let types = types(Dtype::F32);
        let mut piece = Self {
            segments,
            grad: vec![0.0; n],
            state: Vec::new(),
            p,
        };
        let params = piece.params();
        let state = OPTIMIZER.state_bytes(types.precision, n as u64, &params);
        piece.state = vec![0.0; state as usize / 4];
        piece
    }

    fn params(&self) -> Vec<Param> {
        let of = |s: &Segment| Param {
            elements: s.elements as u64,
            cols: s.cols as u64,
            ..Param::sample(0)
        };
        self.segments.iter().map(of).collect()
    }

    fn set_gradient(&mut self, step: u64) {
        for s in &self.segments {
            for i in 0..s.elements {
                self.grad[s.offset + i] = gradient(s.cols, step, i);
            }
        }
    }

    fn step(&mut self, path: Path, q: &Queue, h: &Hyper) {
        let scratch = OPTIMIZER.scratch_bytes(&self.params()) as usize / 4;
        let mut scratch = vec![f32::NAN; scratch];
        let n = self.p.len() as u64;
        let views = Views {
            weight: Dst::of(&mut self.p),
            state: Dst::of(&mut self.state),
            gradient: Src::of(&self.grad),
            scratch: Some(Dst::of(&mut scratch)),
        };
        let how = How::Path(path);
        dispatch(q, types(Dtype::F32), n, views, &self.segments, h, how);
    }

    /// Where the moments of a segment are: its rows, its columns.
    fn moments(&self, segment: usize) -> [std::ops::Range<usize>; 2] {
        let params = self.params();
        let arrays = OPTIMIZER.layout(Dtype::F32, self.p.len() as u64, &params);
        [&arrays[0], &arrays[1]].map(|a| {
            let first = (a.start / 4 + a.first(0, &params[..segment])) as usize;
            first..first + a.spec.entries(&params[segment]) as usize
        })
    }

    /// One tensor in f64.
    fn exact(&self, segment: usize) -> reference::State {
        let s = &self.segments[segment];
        let wide = |of: &[f32]| of.iter().map(|&x| f64::from(x)).collect();
        let [rows, columns] = self.moments(segment);
        reference::State {
            p: wide(&self.p[s.offset..][..s.elements]),
            rows: wide(&self.state[rows]),
            columns: wide(&self.state[columns]),
            cols: s.cols,
        }
    }
}

fn types(precision: Dtype) -> Types {
    Types {
        optimizer: OPTIMIZER,
        precision,
        gradient: precision,
    }
}

fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|p| p.is_available())
}

/// Every tensor of a piece stays with a step of its own in f64. Some are clipped and some are not: a root mean
/// square over all of the piece, or over a part of a tensor, is another number.
#[test]
fn ten_steps_stay_with_the_reference() {
    let q = Queue::new("test", 2);
    for path in paths() {
        let mut piece = Piece::new(&SHAPES);
        piece.segments[3].decay = false;
        let tensors = 0..piece.segments.len();
        let mut exact: Vec<_> = tensors.clone().map(|i| piece.exact(i)).collect();
        let mut clipped = [0; 2];
        for step in 1..=10 {
            piece.set_gradient(step);
            let h = Hyper {
                step,
                lr: 0.02 / step as f32,
                grad_scale: 0.7,
                ..settings()
            };
            piece.step(path, &q, &h);
            for i in tensors.clone() {
                let s = &piece.segments[i];
                let grad = &piece.grad[s.offset..][..s.elements];
                let grad: Vec<f64> = grad.iter().map(|&g| f64::from(g)).collect();
                let rms = reference::step(&mut exact[i], &grad, s.decay, &h);
                clipped[usize::from(rms > 0.9)] += 1;
                let (got, want) = (piece.exact(i), &exact[i]);
                let near = |what: &str, got: &[f64], want: &[f64], relative: f64, off: f64| {
                    for (k, (a, b)) in got.iter().zip(want).enumerate() {
                        assert!(
                            (a - b).abs() <= relative * b.abs() + off,
                            "{path:?}, {:?}, step {step}, {what} {k}: {a} for {b}",
                            SHAPES[i]
                        );
                    }
                };
                near("row", &got.rows, &want.rows, 2e-6, 0.0);
                near("column", &got.columns, &want.columns, 2e-6, 0.0);
                // A weight of order one is rounded once a step.
                near("weight", &got.p, &want.p, 0.0, 1.2e-7 * step as f64);
            }
        }
        assert!(clipped.iter().all(|&n| n > 10), "{clipped:?}");
    }
}

/// Five steps of transformers' own (`reference/adafactor.py`).
#[test]
fn five_steps_are_those_of_transformers() {
    let q = Queue::new("test", 2);
    let golden = include_str!("../../../../reference/golden/adafactor.txt");
    let mut compared = 0;
    let mut piece = Piece::new(&[(1, 1)]);
    for line in golden.lines() {
        let mut words = line.split(' ');
        let [rows, cols, step] = [(); 3].map(|()| words.next().unwrap().parse::<usize>().unwrap());
        let bits = |w: &str| f32::from_bits(u32::from_str_radix(w, 16).unwrap());
        let want: Vec<f32> = words.map(bits).collect();
        if step == 1 {
            piece = Piece::new(&[(rows, cols)]);
        }
        piece.set_gradient(step as u64);
        let h = Hyper {
            step: step as u64,
            ..settings()
        };
        piece.step(Path::best(), &q, &h);
        let n = rows * cols;
        let mut got: Vec<f32> = (0..n)
            .step_by((n / 19).max(1))
            .map(|i| piece.p[i])
            .collect();
        let weights = got.len();
        let [of_rows, of_columns] = piece.moments(0);
        let some = |of: std::ops::Range<usize>| {
            let all = &piece.state[of];
            [0, all.len() / 2, all.len() - 1].map(|i| all[i])
        };
        got.extend(some(of_rows));
        if cols > 1 {
            got.extend(some(of_columns));
        }
        assert_eq!(got.len(), want.len(), "{rows} {cols}");
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            // Weights are of order one; moments of any.
            let limit = if i < weights { 5e-7 } else { 3e-6 * want.abs() };
            assert!(
                (got - want).abs() <= limit,
                "{rows} x {cols}, step {step}, number {i}: {got} for {want}"
            );
            compared += 1;
        }
    }
    assert!(compared > 900, "{compared}");
}

/// Many shapes, with what comes before and behind them: the host's bits on every device.
#[test]
fn every_device_has_the_hosts_bits() {
    let piece = Piece::new(&SHAPES);
    let run = |q: &Queue| {
        let mut piece = piece.clone();
        let scratch = OPTIMIZER.scratch_bytes(&piece.params()) as usize / 4;
        let (mut p, mut state) = (Numbers::of(&piece.p), Numbers::of(&piece.state));
        let mut scratch = Numbers::of(&vec![f32::NAN; scratch]);
        for step in 1..6 {
            piece.set_gradient(step);
            let mut grad = Numbers::of(&piece.grad);
            let mut clip = Numbers::of(&[0.7, 5.0, 1.0]);
            let operands = Operands {
                weight: p.on(q),
                state: state.on(q),
                gradient: grad.src(q),
                clip: clip.src(q),
                parts: None,
                scratch: Some(scratch.on(q)),
            };
            let h = Hyper { step, ..settings() };
            let n = piece.p.len() as u64;
            crate::update::step(q, types(Dtype::F32), n, operands, &piece.segments, &h);
            if let Some(stream) = q.cuda() {
                stream.synchronize().unwrap();
            }
        }
        [p.values(), state.values()]
    };
    let want = run(&Queue::new("test", 3));
    for (device, got) in everywhere(run) {
        for (got, want) in got.iter().zip(&want) {
            let differs = (0..want.len()).find(|&i| got[i].to_bits() != want[i].to_bits());
            assert_eq!(differs, None, "{device}");
        }
    }
}

/// A second step goes by the moments of the first: without them it is another.
#[test]
fn moments_are_carried() {
    let q = Queue::new("test", 1);
    let two = |forget: bool| {
        let mut piece = Piece::new(&[(70, 130), (300, 1)]);
        for step in 1..3 {
            piece.set_gradient(step);
            let h = Hyper { step, ..settings() };
            piece.step(Path::best(), &q, &h);
            if forget {
                piece.state.fill(0.0);
            }
        }
        piece.p
    };
    let (kept, forgotten) = (two(false), two(true));
    let differ = kept.iter().zip(&forgotten).filter(|(a, b)| a != b).count();
    assert!(differ > kept.len() * 9 / 10, "{differ} of {}", kept.len());
}

/// Without gradient a weight moves by decay alone, and only where its segment asks for it.
#[test]
fn decay_is_decoupled_and_by_segment() {
    let q = Queue::new("test", 1);
    let keep = Constants::of(&settings()).keep;
    for path in paths() {
        let mut piece = Piece::new(&[(5, 9), (5, 9), (40, 1)]);
        piece.segments[1].decay = false;
        let before = piece.clone();
        piece.step(path, &q, &settings());
        for s in &piece.segments {
            for i in s.offset..s.offset + s.elements {
                let want = before.p[i] * if s.decay { keep } else { 1.0 };
                assert_eq!(piece.p[i], want, "{path:?} {i}");
            }
        }
    }
}

/// What is not finite shows in all of its tensor, and nowhere else.
#[test]
fn what_is_not_finite_does_not_hide() {
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for at in [50, 70 * 130 + 9] {
            let mut piece = Piece::new(&[(70, 130), (300, 1), (70, 130), (300, 1)]);
            piece.set_gradient(1);
            piece.grad[at] = bad;
            piece.step(Path::best(), &Queue::new("test", 1), &settings());
            for s in &piece.segments {
                let hit = (s.offset..s.offset + s.elements).contains(&at);
                let p = &piece.p[s.offset..][..s.elements];
                match hit {
                    true => assert!(p[at - s.offset].is_nan(), "{bad}"),
                    false => assert!(p.iter().all(|x| x.is_finite()), "{bad} {s:?}"),
                }
            }
        }
    }
}

/// With bf16 weights the remainder carries what a bf16 weight cannot: fifty small steps end near those of f32.
#[test]
fn a_remainder_is_carried() {
    let q = Queue::new("test", 2);
    let shapes = [(70, 130), (300, 1)];
    let mut whole = Piece::new(&shapes);
    let n = whole.p.len();
    let params = whole.params();
    let state = OPTIMIZER.state_bytes(Dtype::Bf16, n as u64, &params) as usize;
    let mut state = vec![0u32; state.div_ceil(4)];
    let mut w: Vec<u16> = whole.p.iter().map(|&x| split(x).0).collect();
    {
        let rem = Dst::of(&mut state).part(0, 2 * n).write::<i16>();
        for (rem, &x) in rem.iter_mut().zip(&whole.p) {
            *rem = split(x).1;
        }
    }
    let start = whole.p.clone();
    for step in 1..=50 {
        for (i, g) in whole.grad.iter_mut().enumerate() {
            // Exact in bf16.
            let x = 0.3 + signed(step << 40 | i as u64);
            *g = f32::from_bits(x.to_bits() & 0xffff_0000);
        }
        let h = Hyper {
            step,
            lr: 1e-5,
            ..settings()
        };
        whole.step(Path::best(), &q, &h);
        let grad: Vec<u16> = whole
            .grad
            .iter()
            .map(|g| (g.to_bits() >> 16) as u16)
            .collect();
        let mut scratch = vec![f32::NAN; OPTIMIZER.scratch_bytes(&params) as usize / 4];
        let views = Views {
            weight: Dst::of(&mut w),
            state: Dst::of(&mut state),
            gradient: Src::of(&grad),
            scratch: Some(Dst::of(&mut scratch)),
        };
        let types = types(Dtype::Bf16);
        let how = How::Path(Path::best());
        dispatch(&q, types, n as u64, views, &whole.segments, &h, how);
    }
    let rem = Dst::of(&mut state).part(0, 2 * n).write::<i16>();
    for i in 0..n {
        let (p, want) = (join(w[i], rem[i]), whole.p[i]);
        assert_eq!(p.to_bits(), want.to_bits(), "{i}");
    }
    let moved = whole.p.iter().zip(&start).filter(|(a, b)| a != b).count();
    assert!(moved > n * 9 / 10);
}

#[test]
fn the_factors_of_a_step() {
    let c = Constants::of(&settings());
    assert_eq!(c.weight, 1.0, "the first moment is the first square");
    assert_eq!(c.keep, (1.0 - 0.02f32 as f64 * 0.1f32 as f64) as f32);
    let weight = |step, decay_rate| {
        let h = Hyper {
            step,
            decay_rate,
            ..settings()
        };
        Constants::of(&h).weight
    };
    // 0.5, and what Python's decimal says of two to the power of f32(-0.8).
    assert_eq!(weight(2, -1.0), 0.5);
    assert_eq!(weight(4, -0.5), 0.5);
    assert_eq!(weight(2, -0.8), 0.574_349_16);
    assert_eq!(weight(1_000_000, -0.8), 1.584_893e-5);
}

#[test]
#[should_panic(expected = "after one that ends at")]
fn a_segment_without_whole_rows_is_refused() {
    let mut piece = Piece::new(&[(3, 5)]);
    piece.segments[0].cols = 4;
    piece.step(Path::Portable, &Queue::new("test", 1), &settings());
}

#[test]
#[should_panic(expected = "scratch of")]
fn scratch_that_is_too_short_is_refused() {
    let mut piece = Piece::new(&[(70, 130)]);
    let mut scratch = [0f32; 100];
    let views = Views {
        weight: Dst::of(&mut piece.p),
        state: Dst::of(&mut piece.state),
        gradient: Src::of(&piece.grad),
        scratch: Some(Dst::of(&mut scratch)),
    };
    let (n, q) = (70 * 130, Queue::new("test", 1));
    let how = How::Path(Path::Portable);
    dispatch(
        &q,
        types(Dtype::F32),
        n,
        views,
        &piece.segments,
        &settings(),
        how,
    );
}
