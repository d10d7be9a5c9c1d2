//! The router of a mixture of experts: which experts each token takes, with which weights, and the rows of all tokens
//! sorted by expert.
//!
//! For each token the k largest logits are chosen; of equal ones, that of the expert with the lower index. The weight
//! of a choice is its softmax over all experts, or its share of the chosen ones' sum ([`Routes::renormalise`]). Both
//! are f32 and never rounded to E. Each token is in k sorted rows: by expert, then by token. A logit that is no
//! number is chosen last; its token's weights are then no numbers, and so is the loss.
//!
//! Bound: bytes over memory rate, of the logits twice.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};
use crate::operands::{Views, operands};

/// Most experts of a block: as many threads as a block of a GPU has.
pub const EXPERTS_MAX: usize = 1024;
/// Most experts that a token takes: as many as lanes of a warp hold.
pub const CHOSEN_MAX: usize = 32;

/// Sizes of a router, and how it weighs its choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routes {
    /// How many tokens there are.
    pub rows: usize,
    /// E: at most [`EXPERTS_MAX`].
    pub experts: usize,
    /// k: experts that a token takes; at most E and [`CHOSEN_MAX`].
    pub chosen: usize,
    /// The weights of a token's choices add up to 1.
    pub renormalise: bool,
    /// Storage of logits and their gradient.
    pub dtype: Dtype,
}

impl Routes {
    /// Rows sorted by expert: k a token.
    #[must_use]
    pub fn sorted(self) -> usize {
        self.rows * self.chosen
    }

    /// Bytes of a routing: i32 (rows·k) the token of each sorted row; i32 (rows, k) the sorted row of each choice, the
    /// largest logit's first; i32 (rows, k) its expert; i32 (E + 1) the first sorted row of each expert, and their
    /// number.
    #[must_use]
    pub fn bytes(self) -> usize {
        4 * (3 * self.sorted() + self.experts + 1)
    }

    /// Bytes of scratch of [`forward`].
    #[must_use]
    pub fn workspace(self, make: Make) -> usize {
        match make {
            Make::Cpu => 0,
            Make::Cuda => cuda::workspace(self),
        }
    }

    /// A routing in which every expert has as many rows as any other, or one more: for those who measure.
    #[must_use]
    pub fn even(self) -> Vec<i32> {
        let choice = |i: usize| i % self.experts;
        let mut all: Vec<usize> = (0..self.sorted()).collect();
        all.sort_by_key(|&i| choice(i));
        let tokens = all.iter().map(|i| (i / self.chosen) as i32);
        let mut places = vec![0; self.sorted()];
        for (place, &i) in all.iter().enumerate() {
            places[i] = place as i32;
        }
        let choices = (0..self.sorted()).map(|i| choice(i) as i32);
        let below = |e: usize| (0..self.sorted()).filter(move |&i| choice(i) < e).count() as i32;
        let offsets = (0..=self.experts).map(below);
        tokens
            .chain(places.iter().copied())
            .chain(choices)
            .chain(offsets)
            .collect()
    }

    #[track_caller]
    fn check(self) {
        let Self {
            experts, chosen, ..
        } = self;
        assert!(
            (1..=EXPERTS_MAX).contains(&experts),
            "{experts} experts of a block"
        );
        assert!(
            (1..=CHOSEN_MAX.min(experts)).contains(&chosen),
            "{chosen} of {experts} experts for a token"
        );
        assert!(self.sorted() < 1 << 31, "{} sorted rows", self.sorted());
    }
}

/// The parts of a routing ([`Routes::bytes`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    pub tokens: Src<'a>,
    pub places: Src<'a>,
    pub choices: Src<'a>,
    pub offsets: Src<'a>,
}

impl<'a> Parts<'a> {
    pub(crate) fn of(routing: Src<'a>, d: Routes) -> Self {
        expect("routing", routing, d.bytes(), 1);
        let n = 4 * d.sorted();
        Self {
            tokens: routing.part(0, n),
            places: routing.part(n, n),
            choices: routing.part(2 * n, n),
            offsets: routing.part(3 * n, 4 * (d.experts + 1)),
        }
    }
}

operands! {
    /// Operands of [`forward`].
    pub struct Forward<F> {
        /// i32, see [`Routes::bytes`].
        pub routing: F::Write,
        /// f32 (rows·k): the weight of each sorted row.
        pub weights: F::Write,
        /// E (rows, E).
        pub logits: F::Read,
    }
}

operands! {
    /// Operands of [`backward`].
    pub struct Backward<F> {
        /// E (rows, E).
        pub d_logits: F::Write,
        /// f32 (rows·k): the gradient of each sorted row's weight.
        pub d_weights: F::Read,
        /// What forward read, E (rows, experts).
        pub logits: F::Read,
        /// What forward wrote: choices, and the order of sorted rows.
        pub routing: F::Read,
    }
}

/// Chooses each token's k experts, and sorts the rows by expert.
pub fn forward(q: &Queue, o: Forward<Views<'_>>, d: Routes, ws: Dst<'_>) {
    d.check();
    expect("routing", &o.routing, d.bytes(), 1);
    expect("weights", &o.weights, d.sorted(), 4);
    expect("logits", o.logits, d.rows * d.experts, size(d.dtype));
    expect_workspace(&ws, d.workspace(q.make()));
    if let Some(q) = q.cuda() {
        return cuda::forward(q, o, d, ws);
    }
    q.run(|| with_dtype!(d.dtype, cpu::forward(o, d)));
}

/// Gradient of the logits, through weights and softmax. What is chosen is taken as given.
pub fn backward(q: &Queue, o: Backward<Views<'_>>, d: Routes) {
    d.check();
    expect("d_logits", &o.d_logits, d.rows * d.experts, size(d.dtype));
    expect("d_weights", o.d_weights, d.sorted(), 4);
    expect("logits", o.logits, d.rows * d.experts, size(d.dtype));
    expect("routing", o.routing, d.bytes(), 1);
    if let Some(q) = q.cuda() {
        return cuda::backward(q, o, d);
    }
    q.run(|| with_dtype!(d.dtype, cpu::backward(o, d)));
}

#[cfg(test)]
mod tests;
