//! The ends of gradients in a program: what is done when the last operation has added to one.

use lowtide_units::List;
use lowtide_workload::Workload;

use super::{GpuOp, Operand, Program};
use crate::fast::FastMap;
use crate::plan::{Piece, PieceId, Tensor, Use, Work};

/// For each operation, the pieces whose gradient it is the last to add to.
fn complete(program: &Program, pieces: &List<PieceId, Piece>) -> FastMap<usize, Vec<PieceId>> {
    let mut last: List<PieceId, Option<usize>> = vec![None; pieces.len()].into();
    for (i, op) in program.ops.iter().enumerate() {
        for o in &op.operands {
            if let Tensor::Accumulator(p) = o.tensor {
                last[p] = Some(i);
            }
        }
    }
    let mut at: FastMap<usize, Vec<PieceId>> = FastMap::default();
    for (p, i) in last.pairs() {
        if let &Some(i) = i {
            at.entry(i).or_default().push(p);
        }
    }
    at
}

/// Inserts the rounding of each piece's gradient right after the last operation that adds to it, behind the adding up
/// of its sums where there are several. Of several ranks the exchange stands there, and the rounding behind that of the
/// next piece: the gpu lane goes on while ranks exchange.
pub(super) fn gradients(program: &mut Program, w: &Workload, pieces: &List<PieceId, Piece>) {
    let at = complete(program, pieces);
    let old = std::mem::take(&mut program.ops);
    program.visits.clear();
    let mut visit = None;
    let mut sent: Option<PieceId> = None;
    for (i, op) in old.into_iter().enumerate() {
        if visit != Some(op.visit) {
            visit = Some(op.visit);
            program.visits.push(program.ops.len());
        }
        let (run, visit) = (op.run, op.visit);
        let behind = |work, operands| GpuOp {
            work,
            run,
            visit,
            operands,
            workspace: 0,
        };
        let finish = |piece: PieceId| {
            let operands = finished(w, &pieces[piece], piece);
            behind(Work::Finish { piece }, operands)
        };
        program.ops.push(op);
        for &piece in at.get(&i).into_iter().flatten() {
            if w.sums() > 1 {
                let sums = folded(w, &pieces[piece], piece);
                program.ops.push(behind(Work::Fold { piece }, sums));
            }
            if w.ranks == 1 {
                program.ops.push(finish(piece));
                continue;
            }
            let exchange = exchanged(&pieces[piece], piece);
            program.ops.push(behind(Work::AllToAll { piece }, exchange));
            program.ops.extend(sent.replace(piece).map(finish));
        }
    }
    if let (Some(piece), Some(last)) = (sent, program.ops.last()) {
        let (run, visit) = (last.run, last.visit);
        program.ops.push(GpuOp {
            work: Work::Finish { piece },
            run,
            visit,
            operands: finished(w, &pieces[piece], piece),
            workspace: 0,
        });
    }
}

/// All of a tensor.
fn all(tensor: Tensor, bytes: u64, access: Use) -> Operand {
    Operand {
        tensor,
        access,
        offset: 0,
        bytes,
    }
}

/// What is added up of a rank's sums.
fn folded(w: &Workload, piece: &Piece, p: PieceId) -> Vec<Operand> {
    let bytes = piece.elements * 4 * u64::from(w.sums());
    vec![all(Tensor::Accumulator(p), bytes, Use::Update)]
}

/// What ranks exchange of a complete accumulator.
fn exchanged(piece: &Piece, p: PieceId) -> Vec<Operand> {
    let bytes = piece.elements * 4;
    vec![
        all(Tensor::Accumulator(p), bytes, Use::Read),
        all(Tensor::Shares(p), bytes, Use::Write),
    ]
}

/// What makes a gradient of a complete accumulator, or of all ranks' shares.
fn finished(w: &Workload, piece: &Piece, p: PieceId) -> Vec<Operand> {
    let (sums, bytes) = (Tensor::Accumulator(p), piece.elements * 4);
    let parts = all(Tensor::NormParts(p), piece.norm_chunks * 8, Use::Write);
    let own = piece.own(w.ranks) * w.gradient.size();
    let gradient = all(Tensor::Gradient(p), own, Use::Write);
    match w.ranks {
        1 if w.sums_in_place() => vec![all(sums, bytes, Use::Update), parts],
        1 => vec![gradient, parts, all(sums, bytes, Use::Read)],
        _ => vec![gradient, parts, all(Tensor::Shares(p), bytes, Use::Update)],
    }
}
