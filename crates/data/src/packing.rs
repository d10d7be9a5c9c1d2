//! Laying documents into rows of T tokens.
//!
//! Padding costs as much time as text: with documents a third of a row long, packing triples the
//! tokens a second that matter. Documents stay apart: positions restart at 0, attention does not
//! look across a document's start, and no label crosses it.
//!
//! Best fit, longest first, unless the documents' order is to be kept: each document goes into the fullest row that
//! still holds it. The free space of rows is kept in a sorted map, so n documents take O(n log T).

use std::collections::BTreeMap;

use super::dataset::{Dataset, Hash};
use super::targets::Targets;
use crate::error::DataError;

/// Label of a token that has no loss.
pub const NO_LABEL: i32 = -100;
/// The same of a token of the second text of a document with a class.
pub const SECOND_TEXT: i32 = -101;

/// Token that fills rows up; it is never attended to, so any id in the vocabulary would do.
const PADDING: i32 = 0;

/// What becomes of a document longer than a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLong {
    /// Its end is cut off.
    Truncate,
    /// It goes on in further rows, each beginning at position 0 with nothing to look back to. No
    /// label is lost: the last token of a piece still predicts the first of the next.
    Split,
}

/// How documents are laid into rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// One a row.
    No,
    /// Several a row, each in the fullest row that still holds it. Rows are in the order of their
    /// first documents, which is not quite the order of the documents.
    BestFit,
    /// Several a row, in the order of the documents: a row ends where the next one does not fit.
    InOrder,
}

/// A stretch of an example in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Piece {
    pub example: u32,
    pub from: u32,
    pub len: u32,
}

/// What packing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackReport {
    /// Rows an epoch has.
    pub n_rows: u64,
    /// Tokens an epoch has, padding not counted.
    pub n_tokens: u64,
    /// Labels an epoch has.
    pub n_supervised: u64,
    /// Examples whose end was cut off.
    pub n_truncated: u64,
    /// Examples that lost a label to the cut: an answer without its end.
    pub n_answers_cut: u64,
    /// Labels that were cut off.
    pub n_labels_lost: u64,
    /// Tokens of a row that would hold 99 of 100 examples whole.
    pub seq_for_99: usize,
    /// The same for all of them. Of pairs both count sources.
    pub seq_for_all: usize,
    /// Tokens of targets in a row that would hold all of them; 0 where there are no pairs.
    pub target_for_all: usize,
    /// Examples left out because all their labels were in the end cut off.
    pub n_cut: u64,
    /// Tokens left out, by cutting off and leaving out.
    pub n_tokens_lost: u64,
}

impl PackReport {
    /// Share of an epoch's places that hold a real token; `seq` is the length of a row.
    #[must_use]
    pub fn fill(&self, seq: usize) -> f64 {
        self.n_tokens as f64 / (self.n_rows as f64 * seq as f64)
    }
}

impl PackReport {
    /// Of nothing yet.
    pub(super) fn new(data: &Dataset) -> Self {
        Self {
            n_rows: 0,
            n_tokens: 0,
            n_supervised: 0,
            n_truncated: 0,
            n_answers_cut: 0,
            n_labels_lost: 0,
            seq_for_99: length_of(data, 0.99),
            seq_for_all: data.report().tokens_max,
            target_for_all: 0,
            n_cut: 0,
            n_tokens_lost: 0,
        }
    }
}

/// A data set laid into rows of equal length. Rows are in the order of their first documents.
#[derive(Debug)]
pub struct Packed {
    data: Dataset,
    seq: usize,
    too_long: TooLong,
    pieces: Vec<Piece>,
    row_ends: Vec<usize>,
    report: PackReport,
    targets: Option<Targets>,
}

/// Where a row is written to: four slices of T.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub tokens: &'a mut [i32],
    pub labels: &'a mut [i32],
    pub positions: &'a mut [i32],
    pub doc_start: &'a mut [i32],
}

impl Packed {
    /// Lays `data` into rows of `seq` tokens. The result depends on the arguments alone. Fails if not one label is
    /// left, or `seq` is below 2.
    pub fn new(
        data: Dataset,
        seq: usize,
        packing: Packing,
        too_long: TooLong,
    ) -> Result<Self, DataError> {
        if seq < 2 || i32::try_from(seq).is_err() {
            return Err(DataError::Shape {
                name: "sequence length",
                have: seq,
                need: "2 to 2^31 - 1",
            });
        }
        if u32::try_from(data.len()).is_err() {
            return Err(DataError::Shape {
                name: "number of examples",
                have: data.len(),
                need: "below 2^32",
            });
        }
        let (pieces, report) = cut(&data, seq, too_long)?;
        let rows = match packing {
            Packing::BestFit => best_fit(pieces, seq),
            Packing::InOrder => in_order(pieces, seq),
            Packing::No => pieces.into_iter().map(|p| vec![p]).collect(),
        };
        Self::laid(data, seq, too_long, rows, report, None)
    }

    /// Examples that are laid into these rows.
    pub(super) fn laid(
        data: Dataset,
        seq: usize,
        too_long: TooLong,
        rows: Vec<Vec<Piece>>,
        mut report: PackReport,
        targets: Option<Targets>,
    ) -> Result<Self, DataError> {
        if rows.is_empty() {
            return Err(DataError::NothingSupervised {
                path: data.path().to_owned(),
                n_records: data.report().n_records,
                n_tokens: data.report().n_tokens,
                n_cut: report.n_cut,
            });
        }
        report.n_rows = rows.len() as u64;
        let (mut pieces, mut row_ends) = (Vec::new(), Vec::with_capacity(rows.len()));
        for row in rows {
            pieces.extend(row);
            row_ends.push(pieces.len());
        }
        Ok(Self {
            data,
            seq,
            too_long,
            pieces,
            row_ends,
            report,
            targets,
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.row_ends.len()
    }

    /// Length of a row, T.
    #[must_use]
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Of rows of pairs the tokens of targets; else 0.
    #[must_use]
    pub fn target(&self) -> usize {
        self.targets.map_or(0, |targets| targets.len)
    }

    /// Whether the end of an example longer than a row is cut off; else it goes on in further rows.
    #[must_use]
    pub fn cuts(&self) -> bool {
        self.too_long == TooLong::Truncate
    }

    /// The examples that the rows are made of.
    #[must_use]
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// What packing did.
    #[must_use]
    pub fn report(&self) -> &PackReport {
        &self.report
    }

    /// A hash of every token, mask and place: what a resumed run compares before it trusts a
    /// stored position.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Hash(self.data.report().mask_hash);
        hash.add(self.seq as u64);
        if let Some(targets) = self.targets {
            hash.add(targets.len as u64);
            hash.add(targets.start as u64);
        }
        for &end in &self.row_ends {
            hash.add(end as u64);
        }
        for p in &self.pieces {
            hash.add(u64::from(p.example) << 32 | u64::from(p.from));
            hash.add(u64::from(p.len));
        }
        hash.0
    }

    pub(super) fn row(&self, i: usize) -> &[Piece] {
        let from = i.checked_sub(1).map_or(0, |before| self.row_ends[before]);
        &self.pieces[from..self.row_ends[i]]
    }

    /// Writes row `i`, of pairs its sources and its targets; gives the numbers of its labels and of its real tokens.
    pub(crate) fn write_row(&self, i: usize, out: [Row<'_>; 2]) -> Result<(u64, u64), DataError> {
        if let Some(targets) = self.targets {
            return self.write_pairs(i, out, targets.start);
        }
        let [out, _] = out;
        let (mut at, mut n_labels) = (0, 0);
        for piece in self.row(i) {
            let (from, len) = (piece.from as usize, piece.len as usize);
            let example = self.data.example(piece.example as usize)?;
            out.tokens[at..at + len].copy_from_slice(&example.tokens[from..from + len]);
            out.doc_start[at..at + len].fill(at as i32);
            let known = known(example.tokens.len(), piece, self.too_long);
            if let Some(class) = example.class {
                for t in 0..len {
                    out.positions[at + t] = t as i32;
                    out.labels[at + t] = match example.supervised[from + t] {
                        true => SECOND_TEXT,
                        false => NO_LABEL,
                    };
                }
                out.labels[at] = class;
                n_labels += 1;
                at += len;
                continue;
            }
            for t in 0..len {
                let next = from + t + 1;
                let labelled = next < known && example.supervised[next];
                out.positions[at + t] = t as i32;
                out.labels[at + t] = if labelled {
                    example.tokens[next]
                } else {
                    NO_LABEL
                };
                n_labels += u64::from(labelled);
            }
            at += len;
        }
        pad(out, at);
        Ok((n_labels, at as u64))
    }
}

/// Fills a row from `from` on: no loss, and each token a document of its own.
pub(crate) fn pad(out: Row<'_>, from: usize) {
    out.tokens[from..].fill(PADDING);
    out.labels[from..].fill(NO_LABEL);
    out.positions[from..].fill(0);
    for (i, start) in out.doc_start.iter_mut().enumerate().skip(from) {
        *start = i as i32;
    }
}

/// End of the tokens a piece may take labels from: what is cut off is not known, what goes on in
/// the next row is.
fn known(n_tokens: usize, piece: &Piece, too_long: TooLong) -> usize {
    match too_long {
        TooLong::Truncate => (piece.from + piece.len) as usize,
        TooLong::Split => n_tokens,
    }
}

/// Cuts examples into pieces of at most `seq` tokens; leaves out pieces without a label.
fn cut(
    data: &Dataset,
    seq: usize,
    too_long: TooLong,
) -> Result<(Vec<Piece>, PackReport), DataError> {
    let mut report = PackReport::new(data);
    let mut pieces = Vec::new();
    for i in 0..data.len() {
        let example = data.example(i)?;
        let n = example.tokens.len();
        if example.class.is_some() {
            // Its length was bounded with its special tokens in place.
            let len = n.min(seq) as u32;
            report.n_supervised += 1;
            report.n_tokens += u64::from(len);
            pieces.push(Piece {
                example: i as u32,
                from: 0,
                len,
            });
            continue;
        }
        let kept = if too_long == TooLong::Truncate {
            n.min(seq)
        } else {
            n
        };
        report.n_truncated += u64::from(kept < n);
        report.n_tokens_lost += (n - kept) as u64;
        let lost = example.supervised[kept..].iter().filter(|&&s| s).count() as u64;
        report.n_labels_lost += lost;
        report.n_answers_cut += u64::from(lost > 0);
        let mut any = false;
        for from in (0..kept).step_by(seq) {
            let len = seq.min(kept - from);
            let piece = Piece {
                example: i as u32,
                from: from as u32,
                len: len as u32,
            };
            let last = (from + len + 1).min(known(n, &piece, too_long));
            let labels = &example.supervised[from + 1..last.max(from + 1)];
            let n_labels = labels.iter().filter(|&&s| s).count() as u64;
            if n_labels == 0 {
                report.n_tokens_lost += len as u64;
                continue;
            }
            any = true;
            report.n_supervised += n_labels;
            report.n_tokens += len as u64;
            pieces.push(piece);
        }
        report.n_cut += u64::from(!any);
    }
    Ok((pieces, report))
}

/// The least length that so large a share of the examples does not exceed.
fn length_of(data: &Dataset, share: f64) -> usize {
    let mut lengths: Vec<usize> = (0..data.len()).map(|i| data.tokens_of(i)).collect();
    let at = ((lengths.len() as f64 * share).ceil() as usize).clamp(1, lengths.len().max(1)) - 1;
    match at < lengths.len() {
        true => *lengths.select_nth_unstable(at).1,
        false => 0,
    }
}

/// Rows of pieces that follow each other.
fn in_order(pieces: Vec<Piece>, seq: usize) -> Vec<Vec<Piece>> {
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    let mut space = 0;
    for piece in pieces {
        let len = piece.len as usize;
        match rows.last_mut() {
            Some(row) if len <= space => row.push(piece),
            _ => {
                rows.push(vec![piece]);
                space = seq;
            }
        }
        space -= len;
    }
    rows
}

/// Rows of pieces: longest first (ties in order), each into the fullest row that holds it.
fn best_fit(mut pieces: Vec<Piece>, seq: usize) -> Vec<Vec<Piece>> {
    pieces.sort_by_key(|p| (std::cmp::Reverse(p.len), *p));
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    let mut by_space: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for piece in pieces {
        let len = piece.len as usize;
        let fullest = by_space.range_mut(len..).next().map(|(&space, rows)| {
            let row = rows.pop().expect("empty lists are removed");
            (space, row, rows.is_empty())
        });
        let (space, row) = match fullest {
            Some((space, row, emptied)) => {
                if emptied {
                    by_space.remove(&space);
                }
                (space, row)
            }
            None => {
                rows.push(Vec::new());
                (seq, rows.len() - 1)
            }
        };
        rows[row].push(piece);
        if space > len {
            by_space.entry(space - len).or_default().push(row);
        }
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    rows.sort_unstable();
    rows
}

#[cfg(test)]
#[path = "packing_tests.rs"]
mod tests;
