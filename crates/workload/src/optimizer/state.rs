//! The arrays that a parameter has in addition to its gradient, and where those of a piece lie. All who read, write,
//! move or count optimizer state read this table.

use std::fmt;
use std::ops::Range;

use lowtide_units::align_up;

use crate::{Dtype, Moments, Param};

/// What an array is for. Its name is the array's name in a checkpoint, behind the parameter's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role(&'static str);

impl Role {
    /// The weight as operations read it: bf16 or f32.
    pub const WEIGHT: Self = Self("weight");
    /// What a bf16 weight lacks of the f32 master.
    pub const REMAINDER: Self = Self("remainder");

    /// A role of an optimizer.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// How one entry of an array is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// bfloat16, 2 bytes.
    Bf16,
    /// IEEE single precision, 4 bytes.
    F32,
    /// The remainder of a split master weight.
    I16,
    /// A code of 8 bits.
    Code,
}

impl Encoding {
    /// Bytes of an entry.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::Code => 1,
            Self::Bf16 | Self::I16 => 2,
            Self::F32 => 4,
        }
    }

    /// As safetensors names it.
    #[must_use]
    pub const fn safetensors(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
            Self::I16 => "I16",
            Self::Code => "U8",
        }
    }
}

/// How many entries an array has for a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// One for each of its numbers.
    Each,
    /// One for each [`Moments::BLOCK`] of its numbers, the last for what is left.
    Block,
    /// One for each of its rows: of a vector one for each number.
    Row,
    /// One for each column of each matrix that is fused in it; none of a vector.
    Column,
}

impl Extent {
    /// Numbers of a parameter for which there is one entry, wherever the parameter lies; `None` where that
    /// depends on its shape.
    const fn numbers(self) -> Option<u64> {
        match self {
            Self::Each => Some(1),
            Self::Block => Some(Moments::BLOCK),
            Self::Row | Self::Column => None,
        }
    }
}

/// What an array holds before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Init {
    /// The parameter's first values, as the device reads them.
    Weight,
    /// What they lack of the f32 values.
    Remainder,
    /// Bytes of zero.
    Zero,
}

/// One of the arrays that each parameter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateSpec {
    /// What it is for.
    pub role: Role,
    /// How many entries it has for a parameter.
    pub extent: Extent,
    /// The storage of an entry.
    pub encoding: Encoding,
    /// Its first content.
    pub init: Init,
}

impl StateSpec {
    /// A moment of an optimizer in f32 or bf16, or its codes: zeros at first.
    pub(super) const fn moment(name: &'static str, encoding: Encoding) -> Self {
        Self {
            role: Role::new(name),
            extent: Extent::Each,
            encoding,
            init: Init::Zero,
        }
    }

    /// The scales of a moment's codes.
    pub(super) const fn scales(name: &'static str) -> Self {
        Self {
            role: Role::new(name),
            extent: Extent::Block,
            encoding: Encoding::F32,
            init: Init::Zero,
        }
    }

    /// One f32 for each row of a parameter: zeros at first.
    pub(super) const fn rows(name: &'static str) -> Self {
        Self {
            extent: Extent::Row,
            ..Self::moment(name, Encoding::F32)
        }
    }

    /// One f32 for each column of a parameter's matrices: zeros at first.
    pub(super) const fn columns(name: &'static str) -> Self {
        Self {
            extent: Extent::Column,
            ..Self::moment(name, Encoding::F32)
        }
    }

    /// Rows and columns of a parameter's array: the parameter's own where there is an entry for each of its
    /// numbers, else one row; of columns a row for each matrix.
    #[must_use]
    pub fn shape(&self, param: &Param) -> [u64; 2] {
        match self.extent {
            Extent::Each => [param.rows(), param.cols],
            Extent::Block => [1, param.elements.div_ceil(Moments::BLOCK)],
            Extent::Row => [1, param.rows()],
            Extent::Column if param.cols == 1 => [0, 1],
            Extent::Column => [param.tensors().count() as u64, param.cols],
        }
    }

    /// Entries of a parameter's array.
    #[must_use]
    pub fn entries(&self, param: &Param) -> u64 {
        let [rows, cols] = self.shape(param);
        rows * cols
    }

    /// Bytes of an entry.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.encoding.size()
    }

    /// Bytes of the array of a piece of so many numbers, padding included, with these parameters.
    fn of_piece(&self, elements: u64, params: &[Param]) -> u64 {
        let entries = match self.extent.numbers() {
            Some(numbers) => elements.div_ceil(numbers),
            None => align_up(params.iter().map(|p| self.entries(p)).sum(), LINE),
        };
        entries * self.size()
    }
}

/// The master weights in a precision: what every optimizer updates.
const MASTER_BF16: &[StateSpec] = &[
    StateSpec {
        role: Role::WEIGHT,
        extent: Extent::Each,
        encoding: Encoding::Bf16,
        init: Init::Weight,
    },
    StateSpec {
        role: Role::REMAINDER,
        extent: Extent::Each,
        encoding: Encoding::I16,
        init: Init::Remainder,
    },
];
const MASTER_F32: &[StateSpec] = &[StateSpec {
    role: Role::WEIGHT,
    extent: Extent::Each,
    encoding: Encoding::F32,
    init: Init::Weight,
}];

/// The arrays of the master weights in a precision: the weight, and in bf16 its remainder.
pub(super) const fn master(precision: Dtype) -> &'static [StateSpec] {
    match precision {
        Dtype::Bf16 => MASTER_BF16,
        Dtype::F32 => MASTER_F32,
    }
}

/// Entries of an array of rows or columns come in multiples of this, so that what follows it starts at a
/// multiple of 64 bytes.
const LINE: u64 = 16;

/// Bytes of these arrays of a piece of so many numbers with these parameters.
pub(super) fn bytes(
    specs: impl Iterator<Item = &'static StateSpec>,
    elements: u64,
    params: &[Param],
) -> u64 {
    specs.map(|s| s.of_piece(elements, params)).sum()
}

/// One array of a piece: the arrays of its parameters one after the other, each at its parameter's place; those of
/// rows and of columns without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateArray {
    /// What it is for, and how an entry is stored.
    pub spec: StateSpec,
    /// First byte in the piece's state, or in its weights.
    pub start: u64,
    /// Its length, padding included.
    pub bytes: u64,
}

impl StateArray {
    /// Its bytes in the piece's state.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes
    }

    /// Entries in it, padding included.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.bytes / self.spec.size()
    }

    /// The first entry of a parameter whose numbers start at `offset` of the piece, a multiple of
    /// [`PARAM_ALIGN`](crate::PARAM_ALIGN), behind these parameters of the piece.
    #[must_use]
    pub fn first(&self, offset: u64, before: &[Param]) -> u64 {
        match self.spec.extent.numbers() {
            Some(numbers) => offset / numbers,
            None => before.iter().map(|p| self.spec.entries(p)).sum(),
        }
    }
}

/// Where the arrays of a piece of so many numbers with these parameters lie, one behind the other.
pub(super) fn layout(
    specs: impl Iterator<Item = &'static StateSpec>,
    elements: u64,
    params: &[Param],
) -> Vec<StateArray> {
    let mut start = 0;
    specs
        .map(|&spec| {
            let bytes = spec.of_piece(elements, params);
            let array = StateArray { spec, start, bytes };
            start += bytes;
            array
        })
        .collect()
}
