//! Adafactor: a second moment as one number a row and one a column of each tensor.
//!
//! A tensor is one of the model's files: where a parameter fuses several, each has rows and columns of its own.

use lowtide_units::align_up;

use super::state::StateSpec;
use super::{About, Setting};
use crate::Moments;

const STATE: &[StateSpec] = &[
    StateSpec::rows("second_moment_rows"),
    StateSpec::columns("second_moment_columns"),
];

fn state(_: Moments) -> &'static [StateSpec] {
    STATE
}

/// Where the scratch of a tensor's update has what: first bytes, each a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factoring {
    /// Rows of the tensor.
    pub rows: u64,
    /// Its columns, 1 of a vector.
    pub cols: u64,
}

impl Factoring {
    /// Rows of a band: sums over a column run over the rows of a band first, on one thread of a GPU. Bands, tiles and
    /// runs depend on the tensor's shape alone, so host and device do the same additions.
    pub const BAND: u64 = 64;
    /// Bytes of what the start of the scratch says of the step.
    pub const WORDS: u64 = 64;
    /// Columns of a tile: sums over a row run over the columns of a tile first, which are one warp's.
    pub const TILE: u64 = 128;
    /// Numbers of a vector that are summed first.
    pub const RUN: u64 = 1024;

    /// Bands of the tensor.
    #[must_use]
    pub const fn bands(self) -> u64 {
        self.rows.div_ceil(Self::BAND)
    }

    /// Tiles of a row.
    #[must_use]
    pub const fn tiles(self) -> u64 {
        self.cols.div_ceil(Self::TILE)
    }

    /// Bytes of the parts of its scratch, one behind the other: words of the step; f32 for each band and
    /// column (of a vector for each run); f32 for each tile and row; f32 for each row; f32 for each column.
    #[must_use]
    pub fn parts(self) -> [u64; 5] {
        let Self { rows, cols } = self;
        let numbers = match cols {
            1 => [rows.div_ceil(Self::RUN), 0, 0, 0],
            _ => [self.bands() * cols, self.tiles() * rows, rows, cols],
        };
        let [a, b, c, d] = numbers.map(|n| align_up(4 * n, 64));
        [Self::WORDS, a, b, c, d]
    }
}

fn scratch(rows: u64, cols: u64) -> u64 {
    Factoring { rows, cols }.parts().iter().sum()
}

pub(super) const ABOUT: About = About {
    title: "Adafactor",
    doc: "AdamW without a first moment, the second as a number a row and a column, updates clipped by their root \
          mean square (Shazeer and Stern 2018), as transformers' `Adafactor` with `scale_parameter` and \
          `relative_step` false",
    aliases: &[],
    settings: &[
        Setting::new("eps", "1e-30").with("added to the square of a gradient"),
        Setting::new("clip_threshold", "1"),
        Setting::new("decay_rate", "-0.8"),
        Setting::new("weight_decay", "0"),
    ],
    moments: &[Moments::F32],
    state,
    // The gradient is read three times: for the sums, for the update's size, for the update.
    again: 4.0,
    // Three passes with sums: 0.75 of AdamW's time on 16 cores of a Xeon, 0.85 on an H100, for 14 of its 26 bytes.
    reach: 0.65,
    scratch,
};
