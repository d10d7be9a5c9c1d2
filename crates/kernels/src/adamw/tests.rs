//! Against f64, against exact arithmetic, and bits against bits.

mod bits;
mod device;
mod numbers;
mod storage;

use lowtide_device::{Dst, Queue, Src};
use lowtide_workload::{Dtype, Moments, OptimizerName};

use super::*;
use crate::update::cpu::{Gradients, Master, Stored};
use crate::update::elementwise::{MomentViews, Path, Piece, step_clipped, step_on, update};
use crate::update::moments::{self, BLOCK, Random};
use crate::update::{CHUNK, MASTER_MAX, Segment, cuda, join, split};

/// Lengths a vectorised loop gets wrong, and one that does not fit a chunk.
const LENGTHS: [usize; 11] = [0, 1, 7, 8, 9, 63, 64, 65, 1000, 4097, 65537];
const DTYPES: [(Dtype, Dtype); 4] = [
    (Dtype::Bf16, Dtype::Bf16),
    (Dtype::Bf16, Dtype::F32),
    (Dtype::F32, Dtype::Bf16),
    (Dtype::F32, Dtype::F32),
];
/// Epsilon is large, so that its place shows.
const HYPER: Hyper = Hyper {
    beta1: 0.8,
    beta2: 0.95,
    eps: 0.3,
    weight_decay: 0.1,
    grad_scale: 0.7,
    ..Hyper::new(0.02, 3)
};
/// A signalling NaN that no computation makes: what padding holds before and must hold after.
const POISON: u32 = 0x7fa5_a5a5;
const POISON_16: u16 = 0x7fa5;
const POISON_8: u8 = 0xa5;

struct Rng(u64);
impl Rng {
    fn bits(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963);
        (self.0 >> 32) as u32
    }
    /// In -1..1.
    fn signed(&mut self) -> f32 {
        self.bits() as i32 as f32 / 2f32.powi(31)
    }
}

/// A piece in every type at once, padding poisoned.
#[derive(Clone)]
struct Arrays {
    segments: Vec<Segment>,
    w16: Vec<u16>,
    rem: Vec<i16>,
    w32: Vec<f32>,
    /// How moments are stored: in `m` and `v`, or in the next two arrays, or in the four after.
    kind: Moments,
    m: Vec<f32>,
    v: Vec<f32>,
    m16: Vec<u16>,
    v16: Vec<u16>,
    m8: Vec<u8>,
    v8: Vec<u8>,
    m_scale: Vec<f32>,
    v_scale: Vec<f32>,
    g16: Vec<u16>,
    g32: Vec<f32>,
}

/// What `Arrays::bits` says of one number: weight, remainder, moments, scales.
type Row = [u32; 6];

impl Arrays {
    /// Segments of these lengths with at least 128 numbers of padding behind each, decay on every
    /// second one; random state such as a few steps leave behind.
    fn new(lengths: &[usize]) -> Self {
        let mut offset = 0;
        let mut segments = Vec::new();
        for (i, &elements) in lengths.iter().enumerate() {
            segments.push(Segment {
                offset,
                elements,
                decay: i % 2 == 0,
                updated: true,
                param: 3 + i as u32,
                start: 0,
                cols: 1,
            });
            offset += (elements + 128).next_multiple_of(128);
        }
        let poison = f32::from_bits(POISON);
        let mut a = Self {
            segments,
            w16: vec![POISON_16; offset],
            rem: vec![POISON_16 as i16; offset],
            w32: vec![poison; offset],
            kind: Moments::F32,
            m: vec![poison; offset],
            v: vec![poison; offset],
            m16: vec![POISON_16; offset],
            v16: vec![POISON_16; offset],
            m8: vec![POISON_8; offset],
            v8: vec![POISON_8; offset],
            m_scale: vec![poison; offset / BLOCK],
            v_scale: vec![poison; offset / BLOCK],
            g16: vec![POISON_16; offset],
            g32: vec![poison; offset],
        };
        let mut rng = Rng(0x5eed + offset as u64);
        for i in a.used() {
            let (p, m, v, g) = (
                rng.signed(),
                rng.signed(),
                rng.signed().powi(2),
                rng.signed(),
            );
            a.set(i, p, 0.3 * m, 0.1 * v, g);
        }
        a
    }

    /// Sets one number; the gradient is cut to bf16 so that both types hold the same.
    fn set(&mut self, i: usize, p: f32, m: f32, v: f32, g: f32) {
        (self.w16[i], self.rem[i]) = split(p);
        (self.w32[i], self.m[i], self.v[i]) = (p, m, v);
        self.set_gradient(i, g);
    }

    /// Stores the moments in `m` and `v` as `kind`: cut to bf16, or as the nearest codes.
    fn store_as(mut self, kind: Moments) -> Self {
        self.kind = kind;
        let cut = |x: f32| (x.to_bits() >> 16) as u16;
        for i in self.used() {
            (self.m16[i], self.v16[i]) = (cut(self.m[i]), cut(self.v[i]));
        }
        for s in self.segments.clone() {
            for from in (0..s.elements).step_by(BLOCK) {
                let n = BLOCK.min(s.elements - from);
                let at = s.offset + from;
                let block = |x: &[f32]| {
                    let mut all = [0.0; BLOCK];
                    all[..n].copy_from_slice(&x[at..at + n]);
                    all
                };
                let mut codes = [0; BLOCK];
                self.m_scale[at / BLOCK] =
                    moments::encode(&block(&self.m), &mut codes, moments::first_code, 0x7f);
                self.m8[at..at + n].copy_from_slice(&codes[..n]);
                self.v_scale[at / BLOCK] =
                    moments::encode(&block(&self.v), &mut codes, moments::second_code, 0xff);
                self.v8[at..at + n].copy_from_slice(&codes[..n]);
            }
        }
        self.read_back();
        self
    }

    /// Puts what is stored into `m` and `v`.
    fn read_back(&mut self) {
        let wide = |x: u16| f32::from_bits(u32::from(x) << 16);
        for i in self.used() {
            match self.kind {
                Moments::F32 => (),
                Moments::Bf16 => (self.m[i], self.v[i]) = (wide(self.m16[i]), wide(self.v16[i])),
                Moments::Int8 => {
                    self.m[i] = moments::first(self.m8[i], self.m_scale[i / BLOCK]);
                    self.v[i] = moments::second(self.v8[i], self.v_scale[i / BLOCK]);
                }
            }
        }
    }

    fn set_gradient(&mut self, i: usize, g: f32) {
        self.g16[i] = (g.to_bits() >> 16) as u16;
        self.g32[i] = f32::from_bits(u32::from(self.g16[i]) << 16);
    }

    /// Positions that are not padding.
    fn used(&self) -> Vec<usize> {
        self.segments
            .iter()
            .flat_map(|s| s.offset..s.offset + s.elements)
            .collect()
    }

    fn step(&mut self, path: Path, q: &Queue, (dtype, grad_dtype): (Dtype, Dtype), h: &Hyper) {
        let bf16 = dtype == Dtype::Bf16;
        let w = if bf16 {
            Dst::of(&mut self.w16)
        } else {
            Dst::of(&mut self.w32)
        };
        let piece = Piece {
            w,
            rem: bf16.then(|| Dst::of(&mut self.rem)),
            moments: match self.kind {
                Moments::F32 => MomentViews {
                    kind: self.kind,
                    arrays: [Dst::of(&mut self.m), Dst::of(&mut self.v)],
                    scales: None,
                },
                Moments::Bf16 => MomentViews {
                    kind: self.kind,
                    arrays: [Dst::of(&mut self.m16), Dst::of(&mut self.v16)],
                    scales: None,
                },
                Moments::Int8 => MomentViews {
                    kind: self.kind,
                    arrays: [Dst::of(&mut self.m8), Dst::of(&mut self.v8)],
                    scales: Some([Dst::of(&mut self.m_scale), Dst::of(&mut self.v_scale)]),
                },
            },
            grad: match grad_dtype {
                Dtype::Bf16 => Src::of(&self.g16),
                Dtype::F32 => Src::of(&self.g32),
            },
            grad_dtype,
            dtype,
        };
        step_on(path, q, &piece, &self.segments, Constants::of(h));
        self.read_back();
    }

    fn master(&self, i: usize, dtype: Dtype) -> f32 {
        match dtype {
            Dtype::Bf16 => join(self.w16[i], self.rem[i]),
            Dtype::F32 => self.w32[i],
        }
    }

    /// Every bit of the state, padding included; all NaNs that a step made count as one.
    fn bits(&self, dtype: Dtype) -> Vec<Row> {
        let nan = |x: f32| {
            if x.is_nan() && x.to_bits() != POISON {
                f32::NAN.to_bits()
            } else {
                x.to_bits()
            }
        };
        let pair = |i: usize| match dtype {
            Dtype::Bf16 => [u32::from(self.w16[i]), u32::from(self.rem[i] as u16)],
            Dtype::F32 => [nan(self.w32[i]), 0],
        };
        let stored = |i: usize| match self.kind {
            Moments::F32 => [nan(self.m[i]), nan(self.v[i]), 0, 0],
            Moments::Bf16 => [u32::from(self.m16[i]), u32::from(self.v16[i]), 0, 0],
            Moments::Int8 => [
                u32::from(self.m8[i]),
                u32::from(self.v8[i]),
                self.m_scale[i / BLOCK].to_bits(),
                self.v_scale[i / BLOCK].to_bits(),
            ],
        };
        let row = |i: usize| {
            let ([w, rem], [m, v, m_scale, v_scale]) = (pair(i), stored(i));
            [w, rem, m, v, m_scale, v_scale]
        };
        (0..self.m.len()).map(row).collect()
    }

    /// State and gradients of one segment in f64.
    fn exact(&self, s: &Segment, dtype: Dtype) -> (reference::State, Vec<f64>) {
        let range = s.offset..s.offset + s.elements;
        let wide = |x: &[f32]| x[range.clone()].iter().map(|&x| f64::from(x)).collect();
        let p = range
            .clone()
            .map(|i| f64::from(self.master(i, dtype)))
            .collect();
        (
            reference::State {
                p,
                m: wide(&self.m),
                v: wide(&self.v),
            },
            wide(&self.g32),
        )
    }
}

/// The paths that this processor has; says which it lacks.
#[allow(clippy::print_stderr)]
fn paths() -> Vec<Path> {
    let (have, lack): (Vec<_>, Vec<_>) = Path::ALL.into_iter().partition(|p| p.is_available());
    if !lack.is_empty() {
        eprintln!("not tested, because this processor lacks them: {lack:?}");
    }
    have
}

fn step_with(change: impl FnOnce(&mut Vec<Segment>), rem: bool, step_number: u64) {
    let mut a = Arrays::new(&[100, 100]);
    change(&mut a.segments);
    let q = Queue::new("test", 1);
    let piece = Piece {
        w: Dst::of(&mut a.w16),
        rem: rem.then(|| Dst::of(&mut a.rem)),
        moments: MomentViews {
            kind: a.kind,
            arrays: [Dst::of(&mut a.m), Dst::of(&mut a.v)],
            scales: None,
        },
        grad: Src::of(&a.g16),
        grad_dtype: Dtype::Bf16,
        dtype: Dtype::Bf16,
    };
    let rule = Constants::of(&Hyper {
        step: step_number,
        ..HYPER
    });
    step_clipped(&q, &piece, &a.segments, rule, Src::of(&[1.0_f64; 3]), None);
}

#[test]
fn good_arguments_are_taken() {
    step_with(|_| (), true, 1);
}

#[test]
#[should_panic(expected = "a remainder belongs to bf16 weights")]
fn a_missing_remainder_is_refused() {
    step_with(|_| (), false, 1);
}

#[test]
#[should_panic(expected = "after one that ends at")]
fn overlapping_segments_are_refused() {
    step_with(|s| s[0].elements = 300, true, 1);
}

#[test]
#[should_panic(expected = "in views of")]
fn a_segment_past_the_end_is_refused() {
    step_with(|s| s[1].elements = 300, true, 1);
}

#[test]
#[should_panic(expected = "steps count from 1")]
fn step_zero_is_refused() {
    step_with(|_| (), true, 0);
}

#[test]
#[should_panic(expected = "starts inside a block")]
fn a_segment_inside_a_block_is_refused() {
    step_with(|s| s[1].start = 64, true, 1);
}

#[test]
#[should_panic(expected = "scales belong to 8-bit moments")]
fn missing_scales_are_refused() {
    let mut a = Arrays::new(&[100]);
    let state = Dst::of(&mut a.m8);
    let moments = MomentViews {
        kind: Moments::Int8,
        arrays: [state, Dst::of(&mut a.v8)],
        scales: None,
    };
    let piece = Piece {
        w: Dst::of(&mut a.w32),
        rem: None,
        moments,
        grad: Src::of(&a.g32),
        grad_dtype: Dtype::F32,
        dtype: Dtype::F32,
    };
    piece.check(&a.segments);
}
