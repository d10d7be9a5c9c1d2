//! Where a record stands in its file.

use std::fmt;

/// Where a record stands, as it follows the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a line, or from one on, from 1.
    Line(u64),
    /// An element of a JSON array.
    Element {
        /// The line on which it begins, from 1.
        line: u64,
        /// Its index, from 0.
        index: u64,
    },
    /// A row of a table that has no lines, from 1.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, ":{line}"),
            Self::Element { line, index } => write!(f, ":{line}, element [{index}]"),
            Self::Row(row) => write!(f, ", row {row}"),
        }
    }
}
