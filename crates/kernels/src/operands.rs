//! The operands of an operation, written once.
//!
//! Each operation has a struct with a field an operand, in the order in which a description lists them:
//!
//! ```ignore
//! operands! {
//!     /// `dx = dy·gelu'(x)`.
//!     pub struct Backward<F> {
//!         pub dx: F::Write,
//!         pub dy: F::Read,
//!         pub x: F::Read,
//!     }
//! }
//! ```
//!
//! What a field holds depends on the [`Form`] `F`. A description fills `Backward<Names>` with the tensors that it
//! means; [`Named::list`] is then what the planner reads, each operand with its access. A call turns the same value
//! into `Backward<Views>`, the bytes that the kernel takes, by [`Named::bind`]. Both go through the fields in the
//! order of the struct, so an operand cannot be listed at one place and taken at another, and a field that is written
//! takes neither the name nor the bytes of one that is read:
//!
//! ```
//! use lowtide_kernels::gelu::Forward;
//! use lowtide_kernels::operands::{Names, Read, Write};
//! use lowtide_workload::{LocalId, What};
//! let (x, y) = (Read(What::Local(LocalId(0))), Write(What::Local(LocalId(1))));
//! let operands: Forward<Names> = Forward { y, x };
//! ```
//!
//! ```compile_fail,E0308
//! use lowtide_kernels::gelu::Forward;
//! use lowtide_kernels::operands::{Names, Read, Write};
//! use lowtide_workload::{LocalId, What};
//! let (x, y) = (Read(What::Local(LocalId(0))), Write(What::Local(LocalId(1))));
//! let operands: Forward<Names> = Forward { y: x, x: y };
//! ```

use std::marker::PhantomData;

use lowtide_device::{Dst, Src};
use lowtide_workload::{Access, LocalId, Operand, ParamId, What};

/// What stands for an operand: its name or its bytes.
pub trait Form {
    /// An operand that is read.
    type Read;
    /// An operand that is overwritten in full.
    type Write;
    /// A gradient, to which is added.
    type Add;
    /// The gradient of an output that several units read, in f32: the last of them overwrites it, the others add.
    type Share;
    /// What is kept from one step of decoding to the next, of which a part is written and all may be read.
    type Kept;
    /// The micro-batch's inputs, which are read.
    type Inputs;
}

/// Operands by name, as a description of the work has them.
#[derive(Debug)]
pub enum Names {}

impl Form for Names {
    type Read = Read;
    type Write = Write;
    type Add = Add;
    type Share = Share;
    type Kept = Kept;
    type Inputs = Inputs;
}

/// Operands as bytes, as a kernel takes them.
#[derive(Debug)]
pub struct Views<'a>(PhantomData<&'a ()>);

impl<'a> Form for Views<'a> {
    type Read = Src<'a>;
    type Write = Dst<'a>;
    type Add = Sum<'a>;
    type Share = Sum<'a>;
    type Kept = Dst<'a>;
    type Inputs = Planes<'a>;
}

/// A tensor that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read(pub What);

/// A tensor that is overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write(pub What);

/// A gradient, by the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add(pub ParamId);

/// An input's gradient, see [`lowtide_workload::Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The reader's name for it.
    pub gradient: LocalId,
    /// This is the last reader, which overwrites it.
    pub last: bool,
}

/// The unit's keys and values: [`What::Cache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept;

/// The micro-batch's inputs: [`What::Inputs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs;

/// A gradient's accumulator in f32.
#[derive(Debug)]
pub struct Sum<'a> {
    /// Numbers of the accumulator, f32.
    pub to: Dst<'a>,
    /// Whether to add to what is there; if not, it is overwritten (the first micro-batch of a batch).
    pub accumulate: bool,
}

/// The planes of a micro-batch's inputs, i32 (B·T) each: what [`lowtide_workload::Batch::input_bytes`] lays out.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    /// Token ids, each below the vocabulary's size.
    pub tokens: Src<'a>,
    /// The token that follows; negative where there is no loss.
    pub labels: Src<'a>,
    /// Position of each token in its document.
    pub positions: Src<'a>,
    /// First index of the token's document in its row.
    pub doc_start: Src<'a>,
}

impl<'a> Planes<'a> {
    /// The planes of `inputs`, a quarter of its bytes each.
    ///
    /// # Panics
    /// When the bytes are not those of four planes.
    #[must_use]
    pub fn of(inputs: Src<'a>) -> Self {
        let bytes = inputs.bytes();
        assert!(bytes.is_multiple_of(16), "{bytes} bytes of inputs");
        let plane = |i: usize| inputs.part(bytes / 4 * i, bytes / 4);
        Self {
            tokens: plane(0),
            labels: plane(1),
            positions: plane(2),
            doc_start: plane(3),
        }
    }

    /// The first rows of each.
    #[must_use]
    pub fn first(self, rows: usize) -> Self {
        self.rows(0, rows)
    }

    /// So many rows of each, from `first` on.
    #[must_use]
    pub fn rows(self, first: usize, rows: usize) -> Self {
        let of = |plane: Src<'a>| plane.part(first * size_of::<i32>(), rows * size_of::<i32>());
        Self {
            tokens: of(self.tokens),
            labels: of(self.labels),
            positions: of(self.positions),
            doc_start: of(self.doc_start),
        }
    }

    /// Every plane is `plane`: for a caller who has one, and an operation that reads one.
    #[must_use]
    pub fn all(plane: Src<'a>) -> Self {
        Self {
            tokens: plane,
            labels: plane,
            positions: plane,
            doc_start: plane,
        }
    }
}

/// One operand of a call: the bytes of its tensor exactly, without padding.
#[derive(Debug)]
pub enum Arg<'a> {
    /// It is read.
    Read(Src<'a>),
    /// It is overwritten; a gradient to which nothing was added in this batch yet too. Gradients of one
    /// operation that belong to one kernel (a norm's scale and bias) are treated as the first is.
    Write(Dst<'a>),
    /// A gradient to which is added, or a cache of which a part is written.
    Add(Dst<'a>),
}

/// The operands of a call, in the order of the list.
#[derive(Debug)]
pub struct Args<'a>(std::vec::IntoIter<Arg<'a>>);

impl<'a> Args<'a> {
    /// `args` in the order of [`Named::list`].
    #[must_use]
    pub fn new(args: Vec<Arg<'a>>) -> Self {
        Self(args.into_iter())
    }

    /// How many are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.0.len()
    }

    fn next(&mut self) -> Arg<'a> {
        self.0.next().expect("as many arguments as operands")
    }
}

/// Operands by name: an operation's, or one of them.
pub trait Named {
    /// The same as bytes.
    type Bound<'a>;

    /// Appends each operand with its access.
    fn list(&self, to: &mut Vec<Operand>);

    /// Takes its bytes from the front of `args`.
    ///
    /// # Panics
    /// When `args` has too few, or one of another access: a mistake in the plan or its executor.
    fn bind<'a>(&self, args: &mut Args<'a>) -> Self::Bound<'a>;
}

impl Named for Read {
    type Bound<'a> = Src<'a>;

    fn list(&self, to: &mut Vec<Operand>) {
        to.push(Operand::read(self.0));
    }

    fn bind<'a>(&self, args: &mut Args<'a>) -> Src<'a> {
        match args.next() {
            Arg::Read(from) => from,
            other => panic!("{other:?} is only read"),
        }
    }
}

impl Named for Write {
    type Bound<'a> = Dst<'a>;

    fn list(&self, to: &mut Vec<Operand>) {
        to.push(Operand {
            what: self.0,
            access: Access::Write,
        });
    }

    fn bind<'a>(&self, args: &mut Args<'a>) -> Dst<'a> {
        match args.next() {
            Arg::Write(to) => to,
            other => panic!("{other:?} is overwritten"),
        }
    }
}

impl Named for Add {
    type Bound<'a> = Sum<'a>;

    fn list(&self, to: &mut Vec<Operand>) {
        to.push(Operand::gradient(self.0));
    }

    fn bind<'a>(&self, args: &mut Args<'a>) -> Sum<'a> {
        let (to, accumulate) = match args.next() {
            Arg::Write(to) => (to, false),
            Arg::Add(to) => (to, true),
            Arg::Read(from) => panic!("{from:?} is a gradient"),
        };
        Sum { to, accumulate }
    }
}

impl Named for Share {
    type Bound<'a> = Sum<'a>;

    fn list(&self, to: &mut Vec<Operand>) {
        to.push(Operand {
            what: What::Local(self.gradient),
            access: match self.last {
                true => Access::Write,
                false => Access::Accumulate,
            },
        });
    }

    fn bind<'a>(&self, args: &mut Args<'a>) -> Sum<'a> {
        match (args.next(), self.last) {
            (Arg::Write(to), true) => Sum {
                to,
                accumulate: false,
            },
            (Arg::Add(to), false) => Sum {
                to,
                accumulate: true,
            },
            (other, _) => panic!("{other:?} is a share of a gradient"),
        }
    }
}

impl Named for Kept {
    type Bound<'a> = Dst<'a>;

    fn list(&self, to: &mut Vec<Operand>) {
        to.push(Operand {
            what: What::Cache,
            access: Access::Accumulate,
        });
    }

    fn bind<'a>(&self, args: &mut Args<'a>) -> Dst<'a> {
        match args.next() {
            Arg::Add(to) => to,
            other => panic!("{other:?} is kept"),
        }
    }
}

impl Named for Inputs {
    type Bound<'a> = Planes<'a>;

    fn list(&self, to: &mut Vec<Operand>) {
        to.push(Operand::read(What::Inputs));
    }

    fn bind<'a>(&self, args: &mut Args<'a>) -> Planes<'a> {
        Planes::of(Read(What::Inputs).bind(args))
    }
}

/// What a model has or has not, such as a bias.
impl<T: Named> Named for Option<T> {
    type Bound<'a> = Option<T::Bound<'a>>;

    fn list(&self, to: &mut Vec<Operand>) {
        if let Some(operand) = self {
            operand.list(to);
        }
    }

    fn bind<'a>(&self, args: &mut Args<'a>) -> Self::Bound<'a> {
        self.as_ref().map(|operand| operand.bind(args))
    }
}

/// Writes an operation's operands; see the module's head. A field's type is one of `F`'s, an `Option` of one, or
/// another such struct.
macro_rules! operands {
    (
        $(#[$about:meta])*
        $vis:vis struct $name:ident<F> {
            $($(#[$of:meta])* $of_vis:vis $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$about])*
        $vis struct $name<F: $crate::operands::Form> {
            $($(#[$of])* $of_vis $field: $type,)*
        }

        impl $crate::operands::Named for $name<$crate::operands::Names> {
            type Bound<'a> = $name<$crate::operands::Views<'a>>;

            fn list(&self, to: &mut Vec<lowtide_workload::Operand>) {
                $($crate::operands::Named::list(&self.$field, to);)*
            }

            fn bind<'a>(&self, args: &mut $crate::operands::Args<'a>) -> Self::Bound<'a> {
                // Fields are evaluated in the order in which they stand here.
                $name { $($field: $crate::operands::Named::bind(&self.$field, args),)* }
            }
        }

        impl Clone for $name<$crate::operands::Names> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl Copy for $name<$crate::operands::Names> {}

        impl std::fmt::Debug for $name<$crate::operands::Names> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut all = f.debug_struct(stringify!($name));
                $(all.field(stringify!($field), &self.$field);)*
                all.finish()
            }
        }
    };
}
pub(crate) use operands;

#[cfg(test)]
mod tests {
    use super::*;

    operands! {
        struct Inner<F> {
            c: F::Add,
            d: F::Read,
        }
    }

    operands! {
        struct Outer<F> {
            a: F::Write,
            b: F::Read,
            with: Option<Inner<F>>,
            without: Option<F::Add>,
            e: F::Inputs,
            f: F::Read,
        }
    }

    fn outer() -> Outer<Names> {
        Outer {
            a: Write(What::Local(LocalId(1))),
            b: Read(What::Weight(ParamId(2))),
            with: Some(Inner {
                c: Add(ParamId(3)),
                d: Read(What::Local(LocalId(4))),
            }),
            without: None,
            e: Inputs,
            f: Read(What::Local(LocalId(6))),
        }
    }

    #[test]
    fn operands_are_listed_and_taken_in_the_order_of_the_struct() {
        let names = outer();
        let mut list = Vec::new();
        names.list(&mut list);
        let want = [
            Operand::write(What::Local(LocalId(1))),
            Operand::read(What::Weight(ParamId(2))),
            Operand::gradient(ParamId(3)),
            Operand::read(What::Local(LocalId(4))),
            Operand::read(What::Inputs),
            Operand::read(What::Local(LocalId(6))),
        ];
        assert_eq!(list, want);

        // Each argument has a length of its own, by which it is known again.
        let mut bytes: Vec<Vec<u8>> = [1, 2, 3, 4, 16, 6].map(|n| vec![0; n]).into();
        let args = bytes
            .iter_mut()
            .zip(&list)
            .map(|(bytes, o)| match o.access {
                Access::Read => Arg::Read(Src::of(bytes)),
                Access::Write => Arg::Write(Dst::of(bytes)),
                Access::Accumulate => Arg::Add(Dst::of(bytes)),
            });
        let mut args = Args::new(args.collect());
        let views = names.bind(&mut args);
        assert_eq!(args.left(), 0);
        assert_eq!((views.a.bytes(), views.b.bytes()), (1, 2));
        let with = views.with.expect("it is named");
        assert!(with.c.accumulate);
        assert_eq!((with.c.to.bytes(), with.d.bytes()), (3, 4));
        assert!(views.without.is_none());
        assert_eq!((views.e.labels.bytes(), views.f.bytes()), (4, 6));
    }

    #[test]
    #[should_panic(expected = "is only read")]
    fn an_argument_of_another_access_is_not_taken() {
        let mut bytes = [0u8; 2];
        let mut args = Args::new(vec![Arg::Write(Dst::of(&mut bytes))]);
        Read(What::Loss).bind(&mut args);
    }
}
