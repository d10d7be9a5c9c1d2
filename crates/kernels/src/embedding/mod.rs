//! Token (and position, and type) embedding: rows of a table by index, and the gradient of the table; and noise on
//! what it gives (NEFTune).
//!
//! Bound: bytes over memory rate; the gradient of a large table is mostly the zeros and sums of
//! the table itself.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};

use crate::Rows;
use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Sum, Views, operands};
use crate::update::moments::{Random, scramble};

/// Bytes of scratch of [`backward`] for a table of `vocab` rows: the rows sorted by token, and where each
/// token's are. Tables use it one after the other.
#[must_use]
pub fn workspace(rows: usize, vocab: usize, make: Make) -> usize {
    match make {
        Make::Cpu => (rows + vocab + 1) * size_of::<u32>(),
        Make::Cuda => cuda::workspace(rows, vocab),
    }
}

/// Sizes of an embedding: rows, and entries of each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows of width C.
    pub rows: Rows,
    /// V: rows of the table of tokens.
    pub vocab: usize,
    /// P: rows of the table of positions, if there is one.
    pub positions: usize,
    /// The row of that table for position 0 (RoBERTa: 2).
    pub first_position: usize,
    /// Rows of the table of types, if there is one.
    pub types: usize,
    /// Whether tokens of a second text, which [`SECOND_TEXT`] marks, have the type 1; else all have 0.
    pub typed: bool,
}

/// The label of a row without a loss that is of a document's second text.
pub const SECOND_TEXT: i32 = -101;

/// Which row of its table a number of the inputs means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Index {
    /// The number and so many.
    Plus(i32),
    /// As a label: 1 for [`SECOND_TEXT`], else 0.
    Type,
    /// 0, whatever the number is.
    First,
}

impl Index {
    /// # Panics
    /// When it is negative.
    fn of(self, number: i32) -> usize {
        match self {
            Self::Plus(first) => match usize::try_from(i64::from(number) + i64::from(first)) {
                Ok(index) => index,
                Err(_) => panic!("index {number} of a table"),
            },
            Self::Type => usize::from(number == SECOND_TEXT),
            Self::First => 0,
        }
    }
}

impl Dims {
    fn position(&self) -> Index {
        Index::Plus(self.first_position as i32)
    }

    fn of_type(&self) -> Index {
        match self.typed {
            true => Index::Type,
            false => Index::First,
        }
    }
}

/// Noise on the output of an embedding (NEFTune, Jain et al. 2023): each number is drawn evenly from -1 to 1 and
/// multiplied by [`Noise::largest`]. It is a function of seed, step, row of the step's batch and column, so nothing is
/// kept and nothing depends on who computes it, or how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// The factor, see [`largest`].
    pub largest: f32,
    /// A hash of seed and step.
    key: u64,
    /// The first row, counted through the micro-batches of the step.
    first: u64,
}

/// What noise is multiplied by: α/√(T·C), of rows of T tokens and C numbers a token; rounded once.
#[must_use]
pub fn largest(alpha: f64, seq: usize, width: usize) -> f32 {
    (alpha / (seq as f64 * width as f64).sqrt()) as f32
}

impl Noise {
    /// Of a seed and a step, from a row of its batch on.
    #[must_use]
    pub fn new(largest: f32, seed: u64, step: u64, first: u64) -> Self {
        let key = scramble(scramble(seed).wrapping_add(step));
        Self {
            largest,
            key,
            first,
        }
    }

    /// Where the random bits of a row come from.
    fn row(&self, row: usize) -> Random {
        let row = self.first.wrapping_add(row as u64);
        Random::of(scramble(self.key.wrapping_add(row)))
    }
}

/// From -1 to less than 1, a multiple of 2⁻²³: exact.
#[inline(always)]
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 8_388_608.0) - 1.0
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// E (rows, C).
        pub y: F::Write,
        /// Of which tokens, positions where there is a table of them, and labels where there are types; i32 (rows).
        pub inputs: F::Inputs,
        /// E (V, C).
        pub tokens: F::Read,
        /// E (types, C); not without positions.
        pub types: Option<F::Read>,
        /// E (P, C).
        pub positions: Option<F::Read>,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// f32 (V, C); none where the table is frozen.
        pub dtokens: Option<F::Add>,
        /// f32 (P, C).
        pub dpositions: Option<F::Add>,
        /// f32 (types, C).
        pub dtypes: Option<F::Add>,
        /// E (rows, C).
        pub dy: F::Read,
        /// As in forward.
        pub inputs: F::Inputs,
    }
}

/// `y = tokens[token]`, plus `types[type]` and then `positions[position]` where there are such tables.
///
/// The sum is rounded once. A token or position outside its table panics; on a CUDA queue it makes its
/// row of `y` NaN. Finished, or in the stream of a CUDA queue, when the call returns.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Dims) {
    let (e, c) = (size(d.rows.dtype), d.rows.width);
    expect("y", &o.y, d.rows.numbers(), e);
    expect(
        "tokens of the inputs",
        o.inputs.tokens,
        d.rows.rows,
        size_of::<i32>(),
    );
    expect("tokens", o.tokens, d.vocab * c, e);
    if let Some(positions) = o.positions {
        let of = o.inputs.positions;
        expect("positions of the inputs", of, d.rows.rows, size_of::<i32>());
        expect("positions", positions, d.positions * c, e);
    }
    if let Some(types) = o.types {
        assert!(o.positions.is_some(), "types without positions");
        assert!(d.types > usize::from(d.typed), "{} types", d.types);
        let of = o.inputs.labels;
        expect("labels of the inputs", of, d.rows.rows, size_of::<i32>());
        expect("types", types, d.types * c, e);
    }
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d);
    }
    q.run(|| with_dtype!(d.rows.dtype, cpu::forward(o, d)));
}

/// As [`forward`], and then `y += noise`, rounded once more. Without a table of positions that is the only rounding.
pub fn noisy(q: &Queue, mut o: Forward<Views<'_>>, d: Dims, noise: Noise) {
    let own = Forward {
        y: o.y.again(),
        inputs: o.inputs,
        tokens: o.tokens,
        types: o.types,
        positions: o.positions,
    };
    forward(q, own, d);
    if let Some(q) = q.cuda() {
        return cuda::noise(q, &o.y, d.rows, noise);
    }
    q.run(|| with_dtype!(d.rows.dtype, cpu::noise(&o.y, d.rows, noise)));
}

/// `dtokens[v] (+)= Σ dy` over the rows whose token is v, in the order of rows, and where there is a table
/// of positions or of types the same of it; a gradient that is overwritten is zero elsewhere.
///
/// A token outside the table panics; on a CUDA queue its row counts nowhere. There, a token's rows are
/// summed first and added once, and those of a token with more than 32 rows are summed in sixteen runs,
/// which are then added in order. Finished, or in the stream of a CUDA queue, when the call returns.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, d: Dims, mut ws: Dst<'_>) {
    expect("dy", o.dy, d.rows.numbers(), size(d.rows.dtype));
    let Backward { dy, inputs, .. } = o;
    if let Some(dtokens) = o.dtokens {
        let from = (dy, inputs.tokens, Index::Plus(0));
        table(q, dtokens, from, d.rows, d.vocab, ws.again());
    }
    if let Some(dpositions) = o.dpositions {
        let from = (dy, inputs.positions, d.position());
        table(q, dpositions, from, d.rows, d.positions, ws.again());
    }
    if let Some(dtypes) = o.dtypes {
        let from = (dy, inputs.labels, d.of_type());
        table(q, dtypes, from, d.rows, d.types, ws);
    }
}

/// The gradient of a table of `entries` rows, f32 (entries, C), from `dy` and the row of the table that each
/// of its rows is of.
fn table(
    q: &Queue,
    dw: Sum<'_>,
    from: (Src<'_>, Src<'_>, Index),
    d: Rows,
    entries: usize,
    ws: Dst<'_>,
) {
    expect(
        "gradient of a table",
        &dw.to,
        entries * d.width,
        size_of::<f32>(),
    );
    expect("rows of the table", from.1, d.rows, size_of::<i32>());
    expect_workspace(&ws, workspace(d.rows, entries, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::table(q, dw, from, d, entries, ws);
    }
    q.run(|| with_dtype!(d.dtype, cpu::table(dw, from, d, entries, ws)));
}

#[cfg(test)]
mod tests;
