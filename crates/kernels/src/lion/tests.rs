//! Against f64 and against exact arithmetic. Paths, devices, cuts and clipping: `update/tests.rs`, for every
//! optimizer.

use lowtide_device::{Dst, Queue, Src};
use lowtide_workload::{Dtype, Moments};

use super::*;
use crate::testing::{self, Numbers, everywhere};
use crate::update::elementwise::{MomentViews, Path, Piece, step_clipped, step_on};
use crate::update::moments::{self, BLOCK};
use crate::update::{MASTER_MAX, Segment, join, split};

const LENGTHS: [usize; 9] = [0, 1, 7, 65, 128, 130, 1000, 4097, 65_537];
/// The betas differ much, so that it shows which is where.
const HYPER: Hyper = Hyper {
    beta1: 0.7,
    beta2: 0.95,
    eps: f32::NAN,
    weight_decay: 0.1,
    grad_scale: 0.7,
    ..Hyper::new(0.02, 3)
};

fn signed(i: u64) -> f32 {
    let z = i
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z >> 31) as u32) as i32 as f32 / 2f32.powi(31)
}

/// A piece with its moment in every storage.
#[derive(Clone)]
struct Arrays {
    segments: Vec<Segment>,
    dtype: Dtype,
    kind: Moments,
    w16: Vec<u16>,
    rem: Vec<i16>,
    w32: Vec<f32>,
    m32: Vec<f32>,
    m16: Vec<u16>,
    m8: Vec<u8>,
    scale: Vec<f32>,
    grad: Vec<f32>,
}

impl Arrays {
    fn new(lengths: &[usize], dtype: Dtype, kind: Moments) -> Self {
        let mut n = 0;
        let mut segments = Vec::new();
        for (i, &elements) in lengths.iter().enumerate() {
            segments.push(Segment {
                offset: n,
                elements,
                decay: i % 2 == 0,
                updated: true,
                param: i as u32,
                start: 0,
                cols: 1,
            });
            n += (elements + 1).next_multiple_of(BLOCK);
        }
        let of = |salt: u64| move |i: usize| signed(salt << 40 | i as u64);
        let w32: Vec<f32> = (0..n).map(of(1)).collect();
        let mut a = Self {
            segments,
            dtype,
            kind,
            w16: w32.iter().map(|&x| split(x).0).collect(),
            rem: w32.iter().map(|&x| split(x).1).collect(),
            w32,
            m32: (0..n).map(of(2)).map(|x| 0.3 * x).collect(),
            m16: vec![0; n],
            m8: vec![0; n],
            scale: vec![0.0; n / BLOCK],
            grad: (0..n).map(of(3)).collect(),
        };
        for i in 0..n {
            a.m16[i] = (a.m32[i].to_bits() >> 16) as u16;
        }
        for (b, scale) in a.scale.iter_mut().enumerate() {
            let block: [f32; BLOCK] = a.m32[b * BLOCK..][..BLOCK].try_into().unwrap();
            let codes = (&mut a.m8[b * BLOCK..][..BLOCK]).try_into().unwrap();
            *scale = moments::encode(&block, codes, moments::first_code, 0x7f);
        }
        a
    }

    fn moment(&self, i: usize) -> f32 {
        match self.kind {
            Moments::F32 => self.m32[i],
            Moments::Bf16 => f32::from_bits(u32::from(self.m16[i]) << 16),
            Moments::Int8 => moments::first(self.m8[i], self.scale[i / BLOCK]),
        }
    }

    fn master(&self, i: usize) -> f32 {
        match self.dtype {
            Dtype::Bf16 => join(self.w16[i], self.rem[i]),
            Dtype::F32 => self.w32[i],
        }
    }

    fn step(&mut self, path: Path, q: &Queue, h: &Hyper) {
        let int8 = self.kind == Moments::Int8;
        let piece = Piece {
            w: match self.dtype {
                Dtype::Bf16 => Dst::of(&mut self.w16),
                Dtype::F32 => Dst::of(&mut self.w32),
            },
            rem: (self.dtype == Dtype::Bf16).then(|| Dst::of(&mut self.rem)),
            moments: MomentViews {
                kind: self.kind,
                arrays: [match self.kind {
                    Moments::F32 => Dst::of(&mut self.m32),
                    Moments::Bf16 => Dst::of(&mut self.m16),
                    Moments::Int8 => Dst::of(&mut self.m8),
                }],
                scales: int8.then(|| [Dst::of(&mut self.scale)]),
            },
            grad: Src::of(&self.grad),
            grad_dtype: Dtype::F32,
            dtype: self.dtype,
        };
        step_on(path, q, &piece, &self.segments, Constants::of(h));
    }

    /// One parameter in f64.
    fn exact(&self, s: &Segment) -> (reference::State, Vec<f64>) {
        let range = s.offset..s.offset + s.elements;
        let wide = |of: &dyn Fn(usize) -> f32| range.clone().map(|i| f64::from(of(i))).collect();
        let state = reference::State {
            p: wide(&|i| self.master(i)),
            m: wide(&|i| self.moment(i)),
        };
        (state, wide(&|i| self.grad[i]))
    }
}

fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|p| p.is_available())
}

/// What rounding may put a stored moment off by: in parts of the number, and of its block's largest.
fn rounding(kind: Moments) -> [f64; 2] {
    match kind {
        Moments::F32 => [1e-6, 0.0],
        Moments::Bf16 => [1.01 / 128.0, 0.0],
        Moments::Int8 => [0.0, 1.001 * 7.0 / 8.0 / 128.0],
    }
}

#[test]
fn one_step_is_the_reference_within_one_rounding() {
    let q = Queue::new("test", 2);
    for (path, kind) in paths().flat_map(|p| Moments::ALL.map(|kind| (p, kind))) {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let mut a = Arrays::new(&LENGTHS, dtype, kind);
            let exact: Vec<_> = a.segments.iter().map(|s| a.exact(s)).collect();
            a.step(path, &q, &HYPER);
            let [relative, of_top] = rounding(kind);
            let mut signs = [0usize; 2];
            for (s, (mut want, grad)) in a.segments.iter().zip(exact) {
                let mixtures = reference::step(&mut want, &grad, s.decay, &HYPER);
                for i in 0..s.elements {
                    let (p, m) = (a.master(s.offset + i), a.moment(s.offset + i));
                    // Where f32 cannot tell the sign.
                    if mixtures[i].abs() > 1e-6 {
                        let off = (f64::from(p) - want.p[i]).abs();
                        assert!(
                            off < 1.5e-7,
                            "{path:?} {kind:?} {dtype:?} {i}: {p} for {}",
                            want.p[i]
                        );
                        signs[usize::from(mixtures[i] > 0.0)] += 1;
                    }
                    let block = i / BLOCK * BLOCK..(i / BLOCK * BLOCK + BLOCK).min(s.elements);
                    let top = want.m[block].iter().fold(0.0, |t: f64, x| t.max(x.abs()));
                    let off = (f64::from(m) - want.m[i]).abs();
                    let allowed = relative * want.m[i].abs() + of_top * top + 1e-7;
                    assert!(
                        off <= allowed,
                        "{path:?} {kind:?} {i}: {m} for {}, {off:e}",
                        want.m[i]
                    );
                }
            }
            assert!(signs.iter().all(|&n| n > 10_000), "{signs:?}");
        }
    }
}

/// Each step moves a weight by much less than half a bf16 unit: only the remainder can carry it.
#[test]
fn fifty_steps_stay_with_the_reference() {
    let q = Queue::new("test", 2);
    for (path, dtype) in paths().flat_map(|p| [(p, Dtype::Bf16), (p, Dtype::F32)]) {
        let mut a = Arrays::new(&[515, 130], dtype, Moments::F32);
        let mut exact: Vec<_> = a.segments.iter().map(|s| a.exact(s).0).collect();
        for step in 1..=50 {
            for (i, g) in a.grad.iter_mut().enumerate() {
                *g = 0.3 + signed(step << 40 | i as u64);
            }
            let h = Hyper {
                lr: 1e-5,
                step,
                ..HYPER
            };
            a.step(path, &q, &h);
            for (s, want) in a.segments.iter().zip(&mut exact) {
                let grad = a.exact(s).1;
                reference::step(want, &grad, s.decay, &h);
            }
        }
        for (s, want) in a.segments.iter().zip(&exact) {
            for i in 0..s.elements {
                let p = f64::from(a.master(s.offset + i));
                assert!(
                    (p - want.p[i]).abs() < 3e-6,
                    "{path:?} {dtype:?} {i}: {p} for {}",
                    want.p[i]
                );
                let m = f64::from(a.moment(s.offset + i));
                assert!((m - want.m[i]).abs() < 1e-6, "{path:?} {dtype:?} {i}: {m}");
            }
        }
    }
}

fn golden() -> (Constants, Vec<[f32; 5]>) {
    let (factors, rows) = testing::golden(include_str!("golden.txt"));
    let [
        grad_scale,
        one_minus_beta1,
        one_minus_beta2,
        keep,
        minus_rate,
    ] = factors;
    let c = Constants {
        grad_scale,
        one_minus_beta1,
        one_minus_beta2,
        keep,
        minus_rate,
        step: 1,
    };
    (c, rows)
}

/// The contract between host and device: bits from exact rational arithmetic (`golden.py`).
#[test]
fn bits_are_those_of_exact_arithmetic() {
    let (c, rows) = golden();
    let column = |i: usize| rows.iter().map(|r| r[i]).collect::<Vec<f32>>();
    let segments = [Segment {
        offset: 0,
        elements: rows.len(),
        decay: true,
        updated: true,
        param: 0,
        start: 0,
        cols: 1,
    }];
    let run = |q: &Queue, path: Option<Path>| {
        let [mut p, mut m, mut grad] = [1, 2, 0].map(|i| Numbers::of(&column(i)));
        let piece = Piece {
            w: p.on(q),
            rem: None,
            moments: MomentViews {
                kind: Moments::F32,
                arrays: [m.on(q)],
                scales: None,
            },
            grad: grad.src(q),
            grad_dtype: Dtype::F32,
            dtype: Dtype::F32,
        };
        match path {
            Some(path) => step_on(path, q, &piece, &segments, c),
            None => {
                let mut clip = Numbers::of(&[f64::from(c.grad_scale), 0.0, 1.0]);
                step_clipped(q, &piece, &segments, c, clip.src(q), None);
                if let Some(stream) = q.cuda() {
                    stream.synchronize().unwrap();
                }
            }
        }
        [p.values(), m.values()]
    };
    let check = |what: &str, [p, m]: [Vec<f32>; 2]| {
        for (i, row) in rows.iter().enumerate() {
            let want = [row[3], row[4]].map(f32::to_bits);
            assert_eq!([p[i], m[i]].map(f32::to_bits), want, "{what}, row {i}");
        }
    };
    let q = Queue::new("test", 1);
    paths().for_each(|path| check(&format!("{path:?}"), run(&q, Some(path))));
    for (device, got) in everywhere(|q| run(q, None)) {
        check(device, got);
    }
}

/// Without gradient and moment a weight moves by decay alone, and only where its segment asks for it.
#[test]
fn decay_is_decoupled_and_by_segment() {
    let q = Queue::new("test", 1);
    let keep = Constants::of(&HYPER).keep;
    for (path, kind) in paths().flat_map(|p| Moments::ALL.map(|kind| (p, kind))) {
        let mut a = Arrays::new(&[40, 40], Dtype::F32, kind);
        a.grad.fill(0.0);
        a.m32.fill(0.0);
        a.m16.fill(0);
        a.m8.fill(0);
        let before = a.clone();
        a.step(path, &q, &HYPER);
        for i in 0..40 {
            assert_eq!(a.w32[i], before.w32[i] * keep, "{path:?} {kind:?}");
            let plain = a.segments[1].offset + i;
            assert_eq!(a.w32[plain], before.w32[plain], "{path:?} {kind:?}");
        }
    }
}

/// What is not finite shows in the weight, in the moment's whole block, and nowhere else.
#[test]
fn what_is_not_finite_does_not_hide() {
    let q = Queue::new("test", 1);
    for (path, kind) in paths().flat_map(|p| Moments::ALL.map(|kind| (p, kind))) {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut a = Arrays::new(&[300], Dtype::Bf16, kind);
            a.grad[140] = bad;
            a.step(path, &q, &HYPER);
            assert!(!a.moment(140).is_finite(), "{path:?} {kind:?} {bad}");
            a.grad[140] = 0.5;
            a.step(path, &q, &HYPER);
            assert!(a.master(140).is_nan(), "{path:?} {kind:?} {bad}");
            for i in (0..128).chain(256..300) {
                assert!(a.master(i).is_finite(), "{kind:?} {i}");
            }
        }
    }
}

/// A weight near the top stays finite.
#[test]
fn the_top_of_the_range() {
    let q = Queue::new("test", 1);
    for path in paths() {
        let mut a = Arrays::new(&[40], Dtype::Bf16, Moments::F32);
        (a.w16, a.rem) = (
            vec![split(MASTER_MAX).0; 128],
            vec![split(MASTER_MAX).1; 128],
        );
        a.segments[0].decay = false;
        a.grad.fill(-1.0);
        a.m32.fill(0.0);
        a.step(path, &q, &Hyper { lr: 1e35, ..HYPER });
        for i in 0..40 {
            assert_eq!((a.w16[i], a.rem[i]), (0x7f7f, 0x7fff), "{path:?} {i}");
        }
    }
}

#[test]
fn the_factors_of_a_step() {
    let c = Constants::of(&HYPER);
    assert_eq!(c.minus_rate, -0.02);
    assert!((c.one_minus_beta1 - 0.3).abs() < 1e-7 && (c.one_minus_beta2 - 0.05).abs() < 1e-7);
    assert_eq!(c.keep, (1.0 - 0.02f32 as f64 * 0.1f32 as f64) as f32);
    let late = Constants::of(&Hyper {
        step: 1 << 40,
        ..HYPER
    });
    assert_eq!(
        late,
        Constants { step: 1 << 40, ..c },
        "steps are not corrected"
    );
}
