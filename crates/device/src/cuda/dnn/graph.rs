//! What a graph is: plain data.

use cudarc::cudnn::sys::{
    cudnnDataType_t as Data, cudnnPointwiseMode_t as Point, cudnnReduceTensorOp_t as Sum,
};

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// bf16.
    Bf16,
    /// f32.
    F32,
    /// i32.
    I32,
    /// Truth values, in registers only.
    Bool,
}

impl Number {
    pub(super) fn data(self) -> Data {
        match self {
            Self::Bf16 => Data::CUDNN_DATA_BFLOAT16,
            Self::F32 => Data::CUDNN_DATA_FLOAT,
            Self::I32 => Data::CUDNN_DATA_INT32,
            Self::Bool => Data::CUDNN_DATA_BOOLEAN,
        }
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::Bool => 1,
        }
    }
}

/// A tensor of the graph that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub(super) usize);

impl Id {
    /// cuDNN's name for it; 0 is none.
    pub(super) fn uid(self) -> i64 {
        self.0 as i64 + 1
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// In memory, at an address that is a multiple of so many bytes; given at each execution.
    Real { align: usize },
    /// Between operations of one kernel.
    Virtual,
    /// One f32, by its bits.
    Scalar(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tensor {
    pub dims: [usize; 4],
    pub strides: [usize; 4],
    pub number: Number,
    pub role: Role,
}

impl Tensor {
    /// Bytes from its first number to behind its last.
    pub(super) fn extent(&self) -> usize {
        let last: usize = (0..4).map(|i| (self.dims[i] - 1) * self.strides[i]).sum();
        (last + 1) * self.number.size()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    Pointwise {
        op: Point,
        math: Number,
        x: Id,
        b: Option<Id>,
        t: Option<Id>,
        y: Id,
        axis: Option<i64>,
    },
    Product {
        a: Id,
        b: Id,
        c: Id,
    },
    Reduce {
        op: Sum,
        x: Id,
        y: Id,
    },
    Reshape {
        x: Id,
        y: Id,
    },
}

/// Operations of one number, or of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// x + b
    Add,
    /// x - b
    Sub,
    /// x · b
    Mul,
    /// x / b
    Div,
    /// e to the power of x
    Exp,
    /// natural logarithm of x
    Log,
}

/// Tensors and the operations between them. Dimensions are (batch, head, row, column); strides are
/// in numbers. Arithmetic is f32.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Graph {
    pub(super) tensors: Vec<Tensor>,
    pub(super) nodes: Vec<Node>,
}

impl Graph {
    fn tensor(&mut self, tensor: Tensor) -> Id {
        assert!(
            tensor.dims.iter().all(|&d| d > 0),
            "a tensor without numbers: {:?}",
            tensor.dims
        );
        self.tensors.push(tensor);
        Id(self.tensors.len() - 1)
    }

    /// A tensor in memory, which starts at a multiple of `align` bytes.
    pub fn real(
        &mut self,
        dims: [usize; 4],
        strides: [usize; 4],
        number: Number,
        align: usize,
    ) -> Id {
        self.tensor(Tensor {
            dims,
            strides,
            number,
            role: Role::Real { align },
        })
    }

    /// A tensor between operations, that is in no memory of the caller's.
    pub fn between(&mut self, dims: [usize; 4], number: Number) -> Id {
        let [_, h, r, c] = dims;
        self.between_strided(dims, [h * r * c, r * c, c, 1], number)
    }

    /// As [`Graph::between`], with strides that say how a [`Graph::reshape`] turns it.
    pub fn between_strided(&mut self, dims: [usize; 4], strides: [usize; 4], number: Number) -> Id {
        self.tensor(Tensor {
            dims,
            strides,
            number,
            role: Role::Virtual,
        })
    }

    /// One number, f32.
    pub fn scalar(&mut self, x: f32) -> Id {
        self.tensor(Tensor {
            dims: [1; 4],
            strides: [1; 4],
            number: Number::F32,
            role: Role::Scalar(x.to_bits()),
        })
    }

    /// Writes `op` of `x` to `y`, or of `x` and `b`, which may have dimensions of 1 where `y` has
    /// more.
    pub fn pointwise(&mut self, op: Op, x: Id, b: Option<Id>, y: Id) {
        let op = match op {
            Op::Add => Point::CUDNN_POINTWISE_ADD,
            Op::Sub => Point::CUDNN_POINTWISE_SUB,
            Op::Mul => Point::CUDNN_POINTWISE_MUL,
            Op::Div => Point::CUDNN_POINTWISE_DIV,
            Op::Exp => Point::CUDNN_POINTWISE_EXP,
            Op::Log => Point::CUDNN_POINTWISE_LOG,
        };
        self.point(op, Number::F32, (x, b, None), y, None);
    }

    fn point(
        &mut self,
        op: Point,
        math: Number,
        (x, b, t): (Id, Option<Id>, Option<Id>),
        y: Id,
        axis: Option<i64>,
    ) {
        self.nodes.push(Node::Pointwise {
            op,
            math,
            x,
            b,
            t,
            y,
            axis,
        });
    }

    /// `x` where its row is not before its column, else `fill`.
    pub fn causal(&mut self, x: Id, fill: f32) -> Id {
        let Tensor { dims, number, .. } = self.tensors[x.0];
        let [row, column] = [2, 3].map(|axis| {
            let index = self.between(dims, Number::I32);
            let op = Point::CUDNN_POINTWISE_GEN_INDEX;
            self.point(op, Number::F32, (x, None, None), index, Some(axis));
            index
        });
        let keep = self.between(dims, Number::Bool);
        let op = Point::CUDNN_POINTWISE_CMP_GE;
        self.point(op, Number::Bool, (row, Some(column), None), keep, None);
        let (fill, y) = (self.scalar(fill), self.between(dims, number));
        let op = Point::CUDNN_POINTWISE_BINARY_SELECT;
        self.point(op, Number::F32, (x, Some(fill), Some(keep)), y, None);
        y
    }

    /// `c = a·b`, summed in f32; heads of `a` may be a multiple of those of `b`.
    pub fn product(&mut self, a: Id, b: Id, c: Id) {
        self.nodes.push(Node::Product { a, b, c });
    }

    /// Sums over the dimensions that `y` has less of than `x`.
    pub fn sum(&mut self, x: Id, y: Id) {
        let op = Sum::CUDNN_REDUCE_TENSOR_ADD;
        self.nodes.push(Node::Reduce { op, x, y });
    }

    /// The largest over the dimensions that `y` has less of than `x`.
    pub fn largest(&mut self, x: Id, y: Id) {
        let op = Sum::CUDNN_REDUCE_TENSOR_MAX;
        self.nodes.push(Node::Reduce { op, x, y });
    }

    /// The same numbers with the dimensions, strides and storage of `y`.
    pub fn reshape(&mut self, x: Id, y: Id) {
        self.nodes.push(Node::Reshape { x, y });
    }
}
