//! A CUDA device against the host: the same bits. And the step with the factor of clipping in
//! memory, on both.

use super::*;
use crate::testing::{Numbers, everywhere};

/// The arrays of a piece, as views on either device.
struct Loaded {
    w16: Numbers<u16>,
    rem: Numbers<i16>,
    w32: Numbers<f32>,
    kind: Moments,
    m: Numbers<f32>,
    v: Numbers<f32>,
    m16: Numbers<u16>,
    v16: Numbers<u16>,
    m8: Numbers<u8>,
    v8: Numbers<u8>,
    m_scale: Numbers<f32>,
    v_scale: Numbers<f32>,
    g16: Numbers<u16>,
    g32: Numbers<f32>,
}

impl Loaded {
    fn new(a: &Arrays) -> Self {
        Self {
            w16: Numbers::of(&a.w16),
            rem: Numbers::of(&a.rem),
            w32: Numbers::of(&a.w32),
            kind: a.kind,
            m: Numbers::of(&a.m),
            v: Numbers::of(&a.v),
            m16: Numbers::of(&a.m16),
            v16: Numbers::of(&a.v16),
            m8: Numbers::of(&a.m8),
            v8: Numbers::of(&a.v8),
            m_scale: Numbers::of(&a.m_scale),
            v_scale: Numbers::of(&a.v_scale),
            g16: Numbers::of(&a.g16),
            g32: Numbers::of(&a.g32),
        }
    }

    fn piece(&mut self, q: &Queue, (dtype, grad_dtype): (Dtype, Dtype)) -> Piece<'_, 2> {
        let bf16 = dtype == Dtype::Bf16;
        Piece {
            w: if bf16 { self.w16.on(q) } else { self.w32.on(q) },
            rem: bf16.then(|| self.rem.on(q)),
            moments: MomentViews {
                kind: self.kind,
                arrays: match self.kind {
                    Moments::F32 => [self.m.on(q), self.v.on(q)],
                    Moments::Bf16 => [self.m16.on(q), self.v16.on(q)],
                    Moments::Int8 => [self.m8.on(q), self.v8.on(q)],
                },
                scales: (self.kind == Moments::Int8)
                    .then(|| [self.m_scale.on(q), self.v_scale.on(q)]),
            },
            grad: match grad_dtype {
                Dtype::Bf16 => self.g16.src(q),
                Dtype::F32 => self.g32.src(q),
            },
            grad_dtype,
            dtype,
        }
    }

    /// State and padding as `Arrays` of these segments, when the queue's work is done.
    fn arrays(&self, q: &Queue, a: &Arrays) -> Arrays {
        if let Some(stream) = q.cuda() {
            stream.synchronize().unwrap();
        }
        Arrays {
            segments: a.segments.clone(),
            w16: self.w16.values(),
            rem: self.rem.values(),
            w32: self.w32.values(),
            kind: self.kind,
            m: self.m.values(),
            v: self.v.values(),
            m16: self.m16.values(),
            v16: self.v16.values(),
            m8: self.m8.values(),
            v8: self.v8.values(),
            m_scale: self.m_scale.values(),
            v_scale: self.v_scale.values(),
            g16: self.g16.values(),
            g32: self.g32.values(),
        }
    }
}

/// One step as the plan's tasks make it, with the settings' factor of clipping.
fn take(q: &Queue, p: Piece<'_, 2>, segments: &[Segment], h: &Hyper) {
    let mut clip = Numbers::of(&[f64::from(h.grad_scale), 0.0, 1.0]);
    step_clipped(q, &p, segments, Constants::of(h), clip.src(q), None);
    if let Some(stream) = q.cuda() {
        stream.synchronize().unwrap();
    }
}

#[track_caller]
fn same(what: &str, all: &[(&str, Vec<Row>)], want: &[Row]) {
    for (device, got) in all {
        if let Some(i) = (0..want.len()).find(|&i| got[i] != want[i]) {
            panic!("{what}, {device}, {i}: {:x?} for {:x?}", got[i], want[i]);
        }
    }
}

/// Segments that fill a launch, and more; a tile, one less, one more; longer than the grid's first
/// round of tiles on no device, but many tiles.
fn lengths() -> Vec<usize> {
    let mut lengths = LENGTHS.to_vec();
    lengths.extend([1023, 1024, 1025, 2049, 3, 130, 300_001, 5, 127, 128, 129]);
    lengths
}

/// Every type with every kind of moments.
fn cases() -> impl Iterator<Item = ((Dtype, Dtype), Moments)> {
    DTYPES
        .into_iter()
        .flat_map(|types| Moments::ALL.map(|kind| (types, kind)))
}

#[test]
fn a_hundred_steps_have_the_hosts_bits() {
    for (types, kind) in cases() {
        let start = Arrays::new(&lengths()).store_as(kind);
        let used = start.used();
        let run = |q: &Queue| {
            let (mut a, mut rng) = (start.clone(), Rng(0xb175));
            let mut on = Loaded::new(&a);
            for n in 1..=100 {
                for &i in &used {
                    a.set_gradient(i, rng.signed());
                }
                // The state stays where it is; a step brings gradients only.
                (on.g16, on.g32) = (Numbers::of(&a.g16), Numbers::of(&a.g32));
                let h = Hyper { step: n, ..HYPER };
                take(q, on.piece(q, types), &a.segments, &h);
                if let Some(stream) = q.cuda() {
                    stream.synchronize().unwrap();
                }
            }
            on.arrays(q, &a).bits(types.0)
        };
        let all = everywhere(run);
        same(&format!("{types:?} {kind:?}"), &all, &all[0].1);
    }
}

#[test]
fn the_ends_of_the_range_have_the_hosts_bits() {
    for (types, kind) in cases() {
        let mut start = Arrays::new(&lengths());
        bits::extremes(&mut start);
        let start = start.store_as(kind);
        let all = everywhere(|q| {
            let mut on = Loaded::new(&start);
            for n in 3..6 {
                let h = Hyper { step: n, ..HYPER };
                take(q, on.piece(q, types), &start.segments, &h);
            }
            on.arrays(q, &start).bits(types.0)
        });
        same(&format!("{types:?} {kind:?}"), &all, &all[0].1);
    }
}

/// The exact bits of `golden.txt`, with its own factors, by the device's kernel.
#[test]
fn the_kernel_has_the_bits_of_exact_arithmetic() {
    let (c, rows) = bits::golden();
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
    let all = everywhere(|q| {
        let mut state = [1, 2, 3].map(|i| Numbers::of(&column(i)));
        let mut grad = Numbers::of(&column(0));
        let [p, m, v] = &mut state;
        let piece = Piece {
            w: p.on(q),
            rem: None,
            moments: MomentViews {
                kind: Moments::F32,
                arrays: [m.on(q), v.on(q)],
                scales: None,
            },
            grad: grad.src(q),
            grad_dtype: Dtype::F32,
            dtype: Dtype::F32,
        };
        match q.cuda() {
            Some(stream) => {
                cuda::step(stream, &piece, &segments, c, None, None);
                stream.synchronize().unwrap();
            }
            None => step_on(Path::best(), q, &piece, &segments, c),
        }
        let bits = |x: &Numbers<f32>| x.values().into_iter().map(f32::to_bits).collect();
        state.each_ref().map(bits) as [Vec<u32>; 3]
    });
    for (device, got) in all {
        for (i, row) in rows.iter().enumerate() {
            let want = [row[4], row[5], row[6]].map(f32::to_bits);
            assert_eq!([got[0][i], got[1][i], got[2][i]], want, "{device}, row {i}");
        }
    }
}

/// One clipped step's bits on each device.
fn clipped(
    start: &Arrays,
    types: (Dtype, Dtype),
    clip: [f64; 3],
    parts: Option<&[f64]>,
) -> Vec<(&'static str, Vec<Row>)> {
    everywhere(|q| {
        let mut on = Loaded::new(start);
        let mut clip = Numbers::of(&clip);
        let mut parts = parts.map(Numbers::of);
        let p = on.piece(q, types);
        let h = Hyper {
            // Not to be used.
            grad_scale: f32::NAN,
            ..HYPER
        };
        step_clipped(
            q,
            &p,
            &start.segments,
            Constants::of(&h),
            clip.src(q),
            parts.as_mut().map(|x| x.src(q)),
        );
        on.arrays(q, start).bits(types.0)
    })
}

#[test]
fn the_factor_comes_from_memory_and_is_rounded_once() {
    // Halfway between two f32 numbers and past it, and of more digits than f32 has.
    let half = f64::from(f32::EPSILON) / 2.0;
    for (types, kind) in cases() {
        let start = Arrays::new(&lengths()).store_as(kind);
        for factor in [1.0, 0.7, 1.0 + half, 1.0 + half + 1e-12, 1.0 / 3.0] {
            let mut want = start.clone();
            let h = Hyper {
                grad_scale: factor as f32,
                ..HYPER
            };
            want.step(Path::best(), &Queue::new("test", 2), types, &h);
            let want = want.bits(types.0);
            let parts: Vec<f64> = (0..1000).map(f64::from).collect();
            let clip = [factor, 5.0, 1.0];
            for parts in [None, Some(&parts[..]), Some(&parts[..1])] {
                let all = clipped(&start, types, clip, parts);
                same(&format!("{types:?} {factor}"), &all, &want);
            }
        }
    }
}

#[test]
fn nothing_is_written_without_the_word_or_with_a_gradient_that_is_not_finite() {
    for (types, kind) in cases() {
        let start = Arrays::new(&lengths()).store_as(kind);
        let want = start.bits(types.0);
        let all = clipped(&start, types, [0.5, 5.0, 0.0], None);
        same("no go", &all, &want);
        for n in [1, 255, 256, 257, 2000] {
            for bad in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut parts = vec![f64::MAX; n];
                parts[n - 1] = bad;
                let all = clipped(&start, types, [0.5, 5.0, 1.0], Some(&parts));
                same(&format!("{bad} at the end of {n}"), &all, &want);
            }
        }
    }
}
