//! Runs operations on one chunk of rows after the other.

use lowtide_device::{Dst, Queue};
use lowtide_kernels::operands::{Arg, Args};
use lowtide_workload::{Access, LocalId, Op, Operand, Unit, What};

use super::Decoder;
use crate::describe::chunks::Chunks;
use crate::describe::kind::Sizes;

/// What operations on chunks use: an operand of theirs together, or scratch of one chunk.
#[derive(Debug)]
struct Held<'a> {
    what: What,
    arg: Arg<'a>,
    /// Bytes of a row, of what has rows.
    row: Option<usize>,
    /// It holds one chunk alone.
    scratch: bool,
    /// Of a gradient: something was added to it.
    added: bool,
}

impl<'a> Held<'a> {
    fn operand(what: What, arg: Arg<'a>, row: Option<usize>) -> Self {
        Self {
            what,
            added: matches!(arg, Arg::Add(_)),
            arg,
            row,
            scratch: false,
        }
    }

    fn scratch(tensor: LocalId, bytes: Dst<'a>, row: usize) -> Self {
        Self {
            what: What::Local(tensor),
            arg: Arg::Write(bytes),
            row: Some(row),
            scratch: true,
            added: false,
        }
    }

    /// Lends an operation its arguments that are this: of what has rows `n` from `first` on.
    fn lend<'b>(
        &'b mut self,
        (first, n): (usize, usize),
        operands: &[Operand],
        args: &mut [Option<Arg<'b>>],
    ) {
        let uses = || (0..).zip(operands).filter(|(_, o)| o.what == self.what);
        let Some((at, o)) = uses().next() else { return };
        let at: usize = at;
        let part = |bytes: usize| match (self.row, self.scratch) {
            (None, _) => (0, bytes),
            (Some(row), true) => (0, n * row),
            (Some(row), false) => (first * row, n * row),
        };
        let from = match &mut self.arg {
            Arg::Read(from) => {
                let (offset, len) = part(from.bytes());
                from.part(offset, len)
            }
            Arg::Write(to) | Arg::Add(to) => {
                let (offset, len) = part(to.bytes());
                let to = to.lend(offset, len);
                match o.access {
                    Access::Read => to.into_src(),
                    Access::Write => return args[at] = Some(Arg::Write(to)),
                    Access::Accumulate => {
                        let before = std::mem::replace(&mut self.added, true);
                        let arg = if before { Arg::Add(to) } else { Arg::Write(to) };
                        return args[at] = Some(arg);
                    }
                }
            }
        };
        for (at, _) in uses() {
            let at: usize = at;
            args[at] = Some(Arg::Read(from));
        }
    }
}

impl Decoder {
    /// Runs operations on one chunk of rows after the other.
    pub(super) fn run_chunks(
        &self,
        q: &Queue,
        chunks: &Chunks,
        (unit, op, all): (&Unit, &Op, &Sizes),
        args: Vec<Arg<'_>>,
        mut ws: Dst<'_>,
    ) {
        let mut held: Vec<Held<'_>> = Vec::new();
        for (o, arg) in op.operands.iter().zip(args) {
            let row = match o.what {
                What::Local(i) => Some(unit.tensors[i].bytes.usize() / all.rows),
                _ => None,
            };
            held.push(Held::operand(o.what, arg, row));
        }
        for &(tensor, row) in &chunks.scratch {
            let (front, rest) = ws.split_at(chunks.bytes(row));
            held.push(Held::scratch(tensor, front, row));
            ws = rest;
        }
        for (first, n) in chunks.each(all.rows) {
            let part = Sizes {
                first: Some(first),
                ..all.of_rows(n)
            };
            for kind in &chunks.kinds {
                let operands = kind.operands();
                let mut args: Vec<Option<Arg<'_>>> = operands.iter().map(|_| None).collect();
                for h in &mut held {
                    h.lend((first, n), &operands, &mut args);
                }
                let args = args
                    .into_iter()
                    .map(|arg| arg.expect("every operand is held"));
                let args = &mut Args::new(args.collect());
                // No head is among them, which alone reads the factor of the loss.
                self.launch(q, (kind.of_rows(n), &part), args, ws.again(), (1.0, None));
            }
        }
    }
}
