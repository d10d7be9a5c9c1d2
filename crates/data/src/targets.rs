//! Laying pairs of a source and a target into rows of two lengths, for models of two stacks.
//!
//! A pair is an example whose first tokens have no loss (its source) and whose others do (its target); both end
//! with the end of a text. A row has room for so many tokens of sources and so many of targets, and pairs stand in
//! both in one order: the n-th document of the one is the source of the n-th of the other. A target's inputs are
//! what is before each of its tokens: the token that decoding starts with, then the target but for its last.

use super::dataset::Dataset;
use super::packing::{NO_LABEL, PackReport, Packed, Packing, Piece, Row, TooLong, pad};
use crate::error::DataError;

/// What rows of pairs have beside the length of their sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// Tokens of targets in a row.
    pub len: usize,
    /// The token that decoding starts with.
    pub start: i32,
}

/// Tokens of a pair's source, and of its target.
fn lengths(piece: &Piece) -> [usize; 2] {
    [piece.from as usize, piece.len as usize]
}

impl Packed {
    /// Lays the pairs of `data` into rows of `seq` tokens of sources and as many of targets as `targets` says. What is
    /// longer loses what is before its last token, which ends it.
    ///
    /// # Errors
    /// Where no pair has both a source and a target, or rows have no room for any.
    pub fn of_pairs(
        data: Dataset,
        seq: usize,
        targets: Targets,
        packing: Packing,
    ) -> Result<Self, DataError> {
        for (name, have) in [("sequence length", seq), ("length of targets", targets.len)] {
            if have < 2 || i32::try_from(have).is_err() {
                return Err(DataError::Shape {
                    name,
                    have,
                    need: "2 to 2^31 - 1",
                });
            }
        }
        if u32::try_from(data.len()).is_err() {
            return Err(DataError::Shape {
                name: "number of examples",
                have: data.len(),
                need: "below 2^32",
            });
        }
        let mut report = PackReport::new(&data);
        let (mut pieces, mut sources) = (Vec::new(), Vec::new());
        for i in 0..data.len() {
            let example = data.example(i)?;
            let source = example.supervised.iter().position(|&s| s);
            let source = source.filter(|&source| source > 0);
            let Some(source) = source else {
                report.n_cut += 1;
                report.n_tokens_lost += example.tokens.len() as u64;
                continue;
            };
            let whole = [source, example.tokens.len() - source];
            sources.push(whole[0]);
            report.target_for_all = report.target_for_all.max(whole[1]);
            let kept = [whole[0].min(seq), whole[1].min(targets.len)];
            report.n_truncated += u64::from(kept != whole);
            report.n_answers_cut += u64::from(kept[1] < whole[1]);
            report.n_labels_lost += (whole[1] - kept[1]) as u64;
            report.n_tokens_lost += (whole[0] + whole[1] - kept[0] - kept[1]) as u64;
            report.n_tokens += (kept[0] + kept[1]) as u64;
            report.n_supervised += kept[1] as u64;
            pieces.push(Piece {
                example: i as u32,
                from: kept[0] as u32,
                len: kept[1] as u32,
            });
        }
        sources.sort_unstable();
        let of_share = |share: usize| (sources.len() * share).div_ceil(100).saturating_sub(1);
        let length = |share| sources.get(of_share(share)).copied().unwrap_or_default();
        (report.seq_for_99, report.seq_for_all) = (length(99), length(100));
        let rows = rows(pieces, [seq, targets.len], packing);
        Self::laid(data, seq, TooLong::Truncate, rows, report, Some(targets))
    }

    /// Writes a row of pairs, its sources and its targets.
    pub(super) fn write_pairs(
        &self,
        i: usize,
        [mut source, mut target]: [Row<'_>; 2],
        start: i32,
    ) -> Result<(u64, u64), DataError> {
        let (mut at, mut n_labels) = ([0, 0], 0);
        for piece in self.row(i) {
            let [s, t] = lengths(piece);
            let example = self.data().example(piece.example as usize)?;
            let split = example.supervised.iter().position(|&s| s);
            let split = split.expect("a pair has a target");
            let of_source = ends_whole(&example.tokens[..split], s);
            let of_target = ends_whole(&example.tokens[split..], t);
            let mut inputs = vec![start];
            inputs.extend_from_slice(&of_target[..t - 1]);
            let no_label = vec![NO_LABEL; s];
            document(&mut source, at[0], &of_source, &no_label);
            document(&mut target, at[1], &inputs, &of_target);
            n_labels += t as u64;
            at = [at[0] + s, at[1] + t];
        }
        pad(source, at[0]);
        pad(target, at[1]);
        Ok((n_labels, (at[0] + at[1]) as u64))
    }
}

/// The first tokens of a text and its last one, so many in all: what is longer keeps its end.
#[must_use]
pub fn ends_whole(tokens: &[i32], len: usize) -> Vec<i32> {
    let mut kept = tokens[..len.min(tokens.len())].to_vec();
    if let (Some(last), Some(end)) = (kept.last_mut(), tokens.last()) {
        *last = *end;
    }
    kept
}

/// Writes a document from `at` on.
fn document(row: &mut Row<'_>, at: usize, tokens: &[i32], labels: &[i32]) {
    let range = at..at + tokens.len();
    row.tokens[range.clone()].copy_from_slice(tokens);
    row.labels[range.clone()].copy_from_slice(labels);
    row.doc_start[range.clone()].fill(at as i32);
    let positions = row.positions[range].iter_mut();
    (0..).zip(positions).for_each(|(i, position)| *position = i);
}

/// Rows of pairs: in order, or longest first (ties in order), each into the first row that has room for both.
fn rows(mut pieces: Vec<Piece>, room: [usize; 2], packing: Packing) -> Vec<Vec<Piece>> {
    if packing == Packing::No {
        return pieces.into_iter().map(|p| vec![p]).collect();
    }
    if packing == Packing::BestFit {
        pieces.sort_by_key(|p| (std::cmp::Reverse(p.from + p.len), *p));
    }
    let mut rows: Vec<(Vec<Piece>, [usize; 2])> = Vec::new();
    // The first row that still has room for anything worth looking for.
    let mut open = 0;
    for piece in pieces {
        let [s, t] = lengths(&piece);
        let from = match packing {
            Packing::InOrder => rows.len().saturating_sub(1),
            _ => open,
        };
        let fits = |(_, left): &(Vec<Piece>, [usize; 2])| left[0] >= s && left[1] >= t;
        let row = match rows[from..].iter().take(LOOKED_AT).position(fits) {
            Some(at) => from + at,
            None => {
                rows.push((Vec::new(), room));
                rows.len() - 1
            }
        };
        let (row, left) = &mut rows[row];
        row.push(piece);
        *left = [left[0] - s, left[1] - t];
        // A row is left behind when there are more that are open than are looked at.
        open = open.max(rows.len().saturating_sub(LOOKED_AT));
    }
    let mut rows: Vec<Vec<Piece>> = rows.into_iter().map(|(row, _)| row).collect();
    rows.iter_mut().for_each(|row| row.sort_unstable());
    rows.sort_unstable();
    rows
}

/// Open rows that a pair is tried in: packing takes as long as there are pairs, not their square.
const LOOKED_AT: usize = 512;

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
