//! Rows in parallel, and sums over rows with an order that no thread count changes.

use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;
use rayon::prelude::*;

use crate::number;
use crate::operands::Sum;

/// Rows of numbers: what an operation on each row by itself has for sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many rows.
    pub rows: usize,
    /// Numbers of one.
    pub width: usize,
    /// How numbers of the model's tensors (E) are stored.
    pub dtype: Dtype,
}

impl Rows {
    /// Numbers of all of them.
    pub(crate) fn numbers(self) -> usize {
        self.rows * self.width
    }
}

/// Numbers that a task of a memory-bound loop should touch at least: some microseconds of work.
const TASK_NUMBERS: usize = 1 << 14;

/// Calls `work(first, end)` for runs of rows of `width` numbers, in parallel. Only for work whose
/// result for a row does not depend on where the runs end.
pub(crate) fn each(rows: usize, width: usize, work: impl Fn(usize, usize) + Sync) {
    let run = (TASK_NUMBERS / width.max(1)).max(1);
    (0..rows.div_ceil(run)).into_par_iter().for_each(|i| {
        work(i * run, rows.min((i + 1) * run));
    });
}

/// How rows are cut when each run of them leaves one partial sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    rows: usize,
    run: usize,
}

impl Runs {
    /// At most 64 runs of at least 16 rows.
    pub(crate) fn new(rows: usize) -> Self {
        Self {
            rows,
            run: rows.div_ceil(64).max(16),
        }
    }

    /// How many runs, and so how many partial sums of each column.
    pub(crate) fn count(self) -> usize {
        self.rows.div_ceil(self.run)
    }

    /// Bytes of partial sums, `width` numbers of `f32` a run.
    pub(crate) fn workspace(self, width: usize) -> usize {
        self.count() * width * size_of::<f32>()
    }

    /// Calls `work(first, end, partial)` for every run in parallel; `partial` (`width` numbers in
    /// `ws`) is zero on entry.
    pub(crate) fn each(
        self,
        ws: &Dst<'_>,
        width: usize,
        work: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) {
        (0..self.count()).into_par_iter().for_each(|i| {
            // SAFETY: the task owns `ws`; each run has its own part of it.
            let partial = unsafe { number::write::<f32>(ws, i * width, width) };
            partial.fill(0.0);
            work(i * self.run, self.rows.min((i + 1) * self.run), partial);
        });
    }

    /// `sum (+)= Σ partials[from .. from + sum]`, runs in order, for partials of `width` numbers that
    /// [`Self::each`] left in `ws`. Nothing where no sum is wanted.
    pub(crate) fn sum_partials(self, sum: Option<Sum<'_>>, from: usize, ws: Src<'_>, width: usize) {
        let Some(sum) = sum else { return };
        const COLUMNS: usize = 256;
        let n = sum.to.bytes() / size_of::<f32>();
        (0..n.div_ceil(COLUMNS)).into_par_iter().for_each(|i| {
            let (start, len) = (i * COLUMNS, COLUMNS.min(n - i * COLUMNS));
            let mut total = [0.0_f32; COLUMNS];
            for run in 0..self.count() {
                let partial = number::read(ws, run * width + from + start, len);
                number::add::<f32>(&mut total, partial);
            }
            // SAFETY: the task owns `sum`; each run of columns is one thread's.
            let to = unsafe { number::write::<f32>(&sum.to, start, len) };
            put(to, &total, sum.accumulate);
        });
    }
}

/// `to (+)= total`.
pub(crate) fn put(to: &mut [f32], total: &[f32], accumulate: bool) {
    if accumulate {
        number::add(to, total);
    } else {
        number::widen(to, &total[..to.len()]);
    }
}
