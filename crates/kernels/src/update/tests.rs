//! What holds for every optimizer there is, with every storage: the same bits on every path and device, whatever
//! the cuts; and a step that is not to be made writes nothing. Numbers are tested in the optimizers' folders.

use lowtide_workload::{PARAM_ALIGN, PIECE_ALIGN, Param, StateArray};

use super::*;
use crate::testing::{Numbers, everywhere};

/// Lengths that vectorised loops, warps, tiles and chunks get wrong, and more than a launch takes.
const LENGTHS: [usize; 18] = [
    0, 1, 7, 64, 65, 127, 128, 129, 130, 1000, 1023, 1024, 1025, 2049, 3, 4097, 65_537, 5,
];
/// Columns that make matrices of what has whole rows of them.
const COLUMNS: [usize; 4] = [300, 128, 43, 13];
/// What padding holds before and must hold after.
const POISON: u8 = 0xa5;

/// Random bits by position.
fn hash(i: u64) -> u64 {
    let z = i
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

/// In -1..1.
fn signed(i: u64) -> f32 {
    (hash(i) as u32) as i32 as f32 / 2f32.powi(31)
}

/// Every optimizer with every type of numbers.
fn all() -> impl Iterator<Item = Types> {
    let dtypes = [Dtype::Bf16, Dtype::F32];
    let each = dtypes.map(|p| dtypes.map(|g| (p, g)));
    Optimizer::all().flat_map(move |optimizer| {
        each.into_iter()
            .flatten()
            .map(move |(precision, gradient)| Types {
                optimizer,
                precision,
                gradient,
            })
    })
}

fn hyper(types: Types, step: u64) -> Hyper {
    Hyper {
        lr: 0.01,
        weight_decay: 0.1,
        grad_scale: 0.7,
        ..Hyper::usual(types.optimizer.name, step)
    }
}

/// A piece as bytes.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    types: Types,
    elements: u64,
    segments: Vec<Segment>,
    weight: Vec<u8>,
    state: Vec<u8>,
    gradient: Vec<u8>,
}

impl Piece {
    /// Parameters of these lengths and numbers in the model, at least 128 numbers apart: first weights by
    /// parameter and position, a state of zeros, poison between.
    fn new(types: Types, params: &[(u32, usize)]) -> Self {
        let mut offset = 0;
        let mut segments = Vec::new();
        for &(param, elements) in params {
            let whole = |cols: &usize| elements > *cols && elements.is_multiple_of(*cols);
            segments.push(Segment {
                offset,
                elements,
                decay: param % 2 == 0,
                updated: true,
                param,
                start: 0,
                cols: COLUMNS.into_iter().find(whole).unwrap_or(1),
            });
            offset += (elements + 128).next_multiple_of(PARAM_ALIGN as usize);
        }
        let elements = (offset as u64).next_multiple_of(PIECE_ALIGN);
        let params: Vec<Param> = segments.iter().map(param_of).collect();
        let state = types
            .optimizer
            .state_bytes(types.precision, elements, &params);
        let mut piece = Self {
            types,
            elements,
            segments,
            weight: vec![POISON; (elements * types.precision.size()) as usize],
            state: vec![POISON; state as usize],
            gradient: vec![POISON; (elements * types.gradient.size()) as usize],
        };
        let arrays = piece.layout();
        for s in piece.segments.clone() {
            for i in 0..s.elements {
                let p = signed(u64::from(s.param) << 32 | i as u64);
                match types.precision {
                    Dtype::Bf16 => {
                        let (w, rem) = split(p);
                        put(&mut piece.weight, s.offset + i, &w.to_le_bytes());
                        put(&mut piece.state, s.offset + i, &rem.to_le_bytes());
                    }
                    Dtype::F32 => put(&mut piece.weight, s.offset + i, &p.to_le_bytes()),
                }
            }
            for array in arrays
                .iter()
                .filter(|a| a.spec.init == lowtide_workload::Init::Zero)
            {
                let bytes = piece.bytes_of(array, &s);
                piece.state[bytes].fill(0);
            }
        }
        piece
    }

    fn params(&self) -> Vec<Param> {
        self.segments.iter().map(param_of).collect()
    }

    fn layout(&self) -> Vec<StateArray> {
        let Types {
            optimizer,
            precision,
            ..
        } = self.types;
        optimizer.layout(precision, self.elements, &self.params())
    }

    /// Scratch of a step, garbage.
    fn scratch(&self) -> Vec<u8> {
        let bytes = self.types.optimizer.scratch_bytes(&self.params());
        vec![POISON; bytes.max(1) as usize]
    }

    /// The gradients of a step.
    fn set_gradient(&mut self, step: u64) {
        for s in &self.segments {
            for i in 0..s.elements {
                let x = signed(step << 50 | u64::from(s.param) << 32 | i as u64);
                let cut = (x.to_bits() >> 16) as u16;
                match self.types.gradient {
                    Dtype::Bf16 => put(&mut self.gradient, s.offset + i, &cut.to_le_bytes()),
                    Dtype::F32 => {
                        let wide = (u32::from(cut) << 16).to_le_bytes();
                        put(&mut self.gradient, s.offset + i, &wide);
                    }
                }
            }
        }
    }

    /// A step by a path of the host.
    fn step_on(&mut self, path: Path, q: &Queue, step: u64) {
        self.set_gradient(step);
        let mut scratch = self.scratch();
        let views = Views {
            weight: Dst::of(&mut self.weight),
            state: Dst::of(&mut self.state),
            gradient: Src::of(&self.gradient),
            scratch: Some(Dst::of(&mut scratch)),
        };
        dispatch(
            q,
            self.types,
            self.elements,
            views,
            &self.segments,
            &hyper(self.types, step),
            How::Path(path),
        );
    }

    /// Steps as tasks make them, on a host's or a device's queue.
    fn steps(
        &self,
        q: &Queue,
        steps: std::ops::Range<u64>,
        clip: [f64; 3],
        parts: Option<&[f64]>,
    ) -> Self {
        let mut piece = self.clone();
        let (mut weight, mut state) = (Numbers::of(&self.weight), Numbers::of(&self.state));
        let mut scratch = Numbers::of(&self.scratch());
        for step in steps {
            piece.set_gradient(step);
            let mut gradient = Numbers::of(&piece.gradient);
            let mut clip = Numbers::of(&clip);
            let mut parts = parts.map(Numbers::of);
            let operands = Operands {
                weight: weight.on(q),
                state: state.on(q),
                gradient: gradient.src(q),
                clip: clip.src(q),
                parts: parts.as_mut().map(|p| p.src(q)),
                scratch: Some(scratch.on(q)),
            };
            let settings = Hyper {
                // Not to be used.
                grad_scale: f32::NAN,
                ..hyper(self.types, step)
            };
            super::step(
                q,
                self.types,
                self.elements,
                operands,
                &self.segments,
                &settings,
            );
            if let Some(stream) = q.cuda() {
                stream.synchronize().unwrap();
            }
        }
        (piece.weight, piece.state) = (weight.values(), state.values());
        piece
    }

    /// Which bytes of an array's entries belong to a parameter, as ranges.
    fn bytes_of(&self, array: &StateArray, s: &Segment) -> std::ops::Range<usize> {
        let size = array.spec.size();
        let params = self.params();
        let at = self.segments.iter().position(|x| x == s).unwrap();
        let first = array.start + array.first(s.offset as u64, &params[..at]) * size;
        let entries = array.spec.entries(&params[at]);
        first as usize..(first + entries * size) as usize
    }

    /// All that a parameter has: weight, then its arrays of the state.
    fn of_param(&self, param: u32) -> Vec<u8> {
        let s = self.segments.iter().find(|s| s.param == param).unwrap();
        let size = self.types.precision.size() as usize;
        let mut bytes = self.weight[s.offset * size..][..s.elements * size].to_vec();
        for array in self.layout() {
            bytes.extend_from_slice(&self.state[self.bytes_of(&array, s)]);
        }
        bytes
    }
}

/// The parameter that a segment is all of.
fn param_of(s: &Segment) -> Param {
    Param {
        elements: s.elements as u64,
        cols: s.cols as u64,
        ..Param::sample(0)
    }
}

fn put(bytes: &mut [u8], i: usize, entry: &[u8]) {
    bytes[i * entry.len()..][..entry.len()].copy_from_slice(entry);
}

fn params() -> Vec<(u32, usize)> {
    (3..).zip(LENGTHS).collect()
}

fn same(what: &str, types: Types, got: &Piece, want: &Piece) {
    for (name, got, want) in [
        ("weights", &got.weight, &want.weight),
        ("state", &got.state, &want.state),
    ] {
        if let Some(i) = (0..want.len()).find(|&i| got[i] != want[i]) {
            panic!(
                "{what}, {types:?}, {name}, byte {i}: {:x} for {:x}",
                got[i], want[i]
            );
        }
    }
}

#[test]
fn every_path_and_device_gives_the_same_bits() {
    let q = Queue::new("test", 2);
    for types in all() {
        let start = Piece::new(types, &params());
        let on = |path| {
            let mut piece = start.clone();
            (1..6).for_each(|step| piece.step_on(path, &q, step));
            piece
        };
        let want = on(Path::Portable);
        assert!(want.weight != start.weight, "{types:?}");
        for path in Path::ALL.into_iter().filter(|p| p.is_available()) {
            same(&format!("{path:?}"), types, &on(path), &want);
        }
        let clip = [f64::from(hyper(types, 1).grad_scale), 5.0, 1.0];
        for (device, got) in everywhere(|q| start.steps(q, 1..6, clip, Some(&[1.0; 300]))) {
            same(device, types, &got, &want);
        }
        // Padding: what no parameter has is as it was.
        let mut masked = want.clone();
        for s in &start.segments {
            let size = types.precision.size() as usize;
            let range = s.offset * size..(s.offset + s.elements) * size;
            masked.weight[range.clone()].copy_from_slice(&start.weight[range]);
            for array in start.layout() {
                let range = start.bytes_of(&array, s);
                masked.state[range.clone()].copy_from_slice(&start.state[range]);
            }
        }
        same("padding", types, &masked, &start);
    }
}

/// Half of the segments and then the other half are a step of all: each stands where it would, and stays as it is
/// while it is left out.
#[test]
fn segments_that_are_left_out_keep_their_places() {
    for types in all() {
        let start = Piece::new(types, &params());
        let clip = [1.0, 5.0, 1.0];
        let wants = everywhere(|q| start.steps(q, 1..3, clip, None));
        let gots = everywhere(|q| {
            let mut piece = start.clone();
            for step in 1..3 {
                for half in [0, 1] {
                    for (i, s) in piece.segments.iter_mut().enumerate() {
                        s.updated = i % 2 == half;
                    }
                    piece = piece.steps(q, step..step + 1, clip, None);
                }
            }
            piece
        });
        for ((device, got), (_, want)) in gots.into_iter().zip(wants) {
            same(device, types, &got, &want);
        }
    }
}

/// Threads, chunks, the order of parameters in a piece and their number: nothing of it is seen.
#[test]
fn neither_threads_nor_pieces_show_in_the_bits() {
    let lengths = [
        (1, 2 * CHUNK + 77),
        (2, 5),
        (4, CHUNK - 1),
        (6, 77 * 300),
        (7, 700 * 43),
        (9, 130),
    ];
    for types in all() {
        let run = |threads, params: &[(u32, usize)], short: bool| {
            let mut piece = Piece::new(types, params);
            if short {
                let cut = |s: &Segment| {
                    let s = *s;
                    (0..s.elements).step_by(384).map(move |i| Segment {
                        offset: s.offset + i,
                        elements: 384.min(s.elements - i),
                        start: i as u64,
                        ..s
                    })
                };
                let whole = piece.segments.clone();
                (1..3).for_each(|step| {
                    piece.set_gradient(step);
                    let views = Views {
                        weight: Dst::of(&mut piece.weight),
                        state: Dst::of(&mut piece.state),
                        gradient: Src::of(&piece.gradient),
                        scratch: None,
                    };
                    let segments: Vec<_> = whole.iter().flat_map(cut).collect();
                    let (q, h) = (Queue::new("test", threads), hyper(types, step));
                    let n = piece.elements;
                    dispatch(&q, types, n, views, &segments, &h, How::Path(Path::best()));
                });
                return piece;
            }
            let q = Queue::new("test", threads);
            (1..3).for_each(|step| piece.step_on(Path::best(), &q, step));
            piece
        };
        let want = run(1, &lengths, false);
        same("threads", types, &run(3, &lengths, false), &want);
        if !types.optimizer.is_shaped() {
            same("segments", types, &run(2, &lengths, true), &want);
        }
        let reversed: Vec<_> = lengths.into_iter().rev().collect();
        let (other, alone) = (run(2, &reversed, false), run(2, &lengths[2..3], false));
        for (param, _) in lengths {
            assert!(
                other.of_param(param) == want.of_param(param),
                "{types:?} {param}"
            );
        }
        assert!(
            alone.of_param(4) == want.of_param(4),
            "{types:?}, a piece of its own"
        );
    }
}

#[test]
fn nothing_is_written_without_the_word_or_with_a_gradient_that_is_not_finite() {
    for types in all() {
        let start = Piece::new(types, &params());
        for (device, got) in everywhere(|q| start.steps(q, 1..2, [0.5, 5.0, 0.0], None)) {
            same(device, types, &got, &start);
        }
        for n in [1, 256, 257] {
            for bad in [f64::NAN, f64::NEG_INFINITY] {
                let mut parts = vec![f64::MAX; n];
                parts[n - 1] = bad;
                for (device, got) in
                    everywhere(|q| start.steps(q, 1..2, [0.5, 5.0, 1.0], Some(&parts)))
                {
                    same(device, types, &got, &start);
                }
            }
        }
    }
}

/// The factor is rounded to f32 once, on either device as the host's path takes it.
#[test]
fn the_factor_comes_from_memory_and_is_rounded_once() {
    let half = f64::from(f32::EPSILON) / 2.0;
    for types in all() {
        for factor in [1.0, 1.0 + half, 1.0 + half + 1e-12, 1.0 / 3.0] {
            let start = Piece::new(types, &[(0, 1000), (1, 77)]);
            let mut want = start.clone();
            want.set_gradient(1);
            let mut scratch = want.scratch();
            let views = Views {
                weight: Dst::of(&mut want.weight),
                state: Dst::of(&mut want.state),
                gradient: Src::of(&want.gradient),
                scratch: Some(Dst::of(&mut scratch)),
            };
            let h = Hyper {
                grad_scale: factor as f32,
                ..hyper(types, 1)
            };
            let q = Queue::new("test", 1);
            let n = start.elements;
            dispatch(
                &q,
                types,
                n,
                views,
                &start.segments,
                &h,
                How::Path(Path::Portable),
            );
            for (device, got) in everywhere(|q| start.steps(q, 1..2, [factor, 5.0, 1.0], None)) {
                same(device, types, &got, &want);
            }
        }
    }
}

#[test]
#[should_panic(expected = "of a view of")]
fn a_state_that_is_too_short_is_refused() {
    let types = all().next().unwrap();
    let mut piece = Piece::new(types, &[(0, 1000)]);
    piece.state.truncate(5000);
    piece.step_on(Path::Portable, &Queue::new("test", 1), 1);
}

#[test]
#[should_panic(expected = "no optimizer reads")]
fn a_setting_that_nothing_reads_is_refused() {
    let _ = Hyper::new(1.0, 1).with("momentum", 0.9);
}

/// A key of the table that `Hyper` does not know would fail at a run's start.
#[test]
fn every_setting_of_every_table_is_read() {
    for &name in OptimizerName::ALL {
        assert!(Hyper::usual(name, 1).lr > 0.0);
    }
}
