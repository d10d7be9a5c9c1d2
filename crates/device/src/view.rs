//! Ranges of memory without a type: a [`Src`] is read, a [`Dst`] is written.
//!
//! They are to memory of any place what `&[u8]` and `&mut [u8]` are to the processor's, and keep the
//! same rule: bytes are shared by readers or belong to one writer. Whoever *makes* one without a
//! borrow promises that rule (`unsafe`); whoever uses one need not. So an operation that writes what it
//! also reads has to say so in its signature, by taking the bytes once, as a [`Dst`].
//!
//! The second use of a view is refused:
//!
//! ```compile_fail,E0382
//! use lowtide_device::{Dst, memory};
//! let mut bytes = [0u8; 4];
//! let to = Dst::of(&mut bytes);
//! memory::poison(to);
//! memory::poison(to); // moved above
//! ```
//!
//! So is a copy onto itself:
//!
//! ```compile_fail,E0505
//! use lowtide_device::{Dst, memory};
//! let mut bytes = [0u8; 4];
//! let to = Dst::of(&mut bytes);
//! let from = to.src();
//! memory::copy(to, from); // still read
//! ```
//!
//! And a write while another thread reads:
//!
//! ```compile_fail,E0505
//! use lowtide_device::{Dst, memory};
//! let mut bytes = [0u8; 4];
//! let to = Dst::of(&mut bytes);
//! let from = to.src();
//! std::thread::scope(|scope| {
//!     scope.spawn(move || memory::store(to, &[1u8; 4]));
//!     memory::load(from, &mut [0u8; 4]);
//! });
//! ```
//!
//! What is allowed in place takes the bytes once:
//!
//! ```
//! use lowtide_device::{Dst, memory};
//! let mut bytes = [1u8, 2, 3, 4];
//! let (to, from) = Dst::of(&mut bytes).split_at(2);
//! memory::copy(to, from.src());
//! assert_eq!(bytes, [3, 4, 3, 4]);
//! ```

use std::marker::PhantomData;

/// Whose memory a view lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host's: the processor reads and writes it.
    Host,
    /// A CUDA device's, by its number; only kernels and copies reach it.
    Cuda(u8),
}

/// Types whose every bit pattern is a value, so that bytes may be read as them.
///
/// # Safety
/// Every pattern of `size_of::<Self>()` bytes is a value, and a value has no byte without one (no
/// padding). `bool`, `char` and references are not such types; to make one of them such a type takes
/// an `unsafe`:
///
/// ```compile_fail,E0200
/// #[derive(Clone, Copy)]
/// struct Flag(bool);
/// impl lowtide_device::Plain for Flag {}
/// ```
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($t:ty),*) => {$(
        // SAFETY: a primitive number: every pattern is a value, and there is no padding.
        unsafe impl Plain for $t {}
    )*};
}
plain!(u8, u16, i16, i32, u32, f32, f64);

/// An address and a length.
#[derive(Clone, Copy, Debug)]
struct Raw {
    ptr: *mut u8,
    bytes: usize,
    place: Place,
}

impl Raw {
    fn part(self, offset: usize, len: usize) -> Self {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.bytes),
            "bytes {offset}+{len} of a view of {}",
            self.bytes
        );
        Self {
            ptr: self.ptr.wrapping_add(offset),
            bytes: len,
            place: self.place,
        }
    }

    /// Its length in numbers. Panics when the processor cannot read it as such.
    fn count<T: Plain>(self) -> usize {
        assert!(
            self.place == Place::Host,
            "the processor cannot reach {:?}",
            self.place
        );
        assert!(
            self.bytes.is_multiple_of(size_of::<T>())
                && self.ptr.align_offset(align_of::<T>()) == 0,
            "{} bytes at {:p} as {}",
            self.bytes,
            self.ptr,
            std::any::type_name::<T>()
        );
        self.bytes / size_of::<T>()
    }
}

/// Bytes to read: nobody writes them while this lives.
#[derive(Clone, Copy, Debug)]
pub struct Src<'a> {
    raw: Raw,
    life: PhantomData<&'a [u8]>,
}

/// Bytes to write: nobody else reads or writes them while this lives.
#[derive(Debug)]
pub struct Dst<'a> {
    raw: Raw,
    life: PhantomData<&'a mut [u8]>,
}

// SAFETY: as `&[u8]`: shared bytes that nobody writes.
unsafe impl Send for Src<'_> {}
// SAFETY: as above.
unsafe impl Sync for Src<'_> {}
// SAFETY: as `&mut [u8]`: bytes of one holder, who may be any thread.
unsafe impl Send for Dst<'_> {}
// SAFETY: as `&&mut [u8]`: a shared one only reads, but for `slice`, whose caller keeps the rule.
unsafe impl Sync for Dst<'_> {}

impl<'a> Src<'a> {
    /// A slice, which it borrows for as long as it lives.
    #[must_use]
    pub fn of<T: Plain>(slice: &'a [T]) -> Self {
        // SAFETY: the slice's own bytes, borrowed for `'a`.
        unsafe { Self::new(slice.as_ptr().cast(), size_of_val(slice)) }
    }

    /// `bytes` bytes at `ptr`.
    ///
    /// # Safety
    /// The range is valid for reads for `'a`, and nobody writes it during `'a`.
    #[must_use]
    pub unsafe fn new(ptr: *const u8, bytes: usize) -> Self {
        let (ptr, place) = (ptr.cast_mut(), Place::Host);
        let raw = Raw { ptr, bytes, place };
        Self {
            raw,
            life: PhantomData,
        }
    }

    /// `bytes` bytes at `address` of CUDA device `ordinal`.
    ///
    /// # Safety
    /// The range stays allocated there for `'a`, and nothing that is ordered neither before nor behind
    /// the reads writes it.
    #[must_use]
    pub unsafe fn on_cuda(address: u64, bytes: usize, ordinal: u8) -> Self {
        Self {
            raw: on_cuda(address, bytes, ordinal),
            life: PhantomData,
        }
    }

    /// Whose memory it lies in.
    #[must_use]
    pub fn place(self) -> Place {
        self.raw.place
    }

    /// Where it starts, in its place's address space.
    #[must_use]
    pub fn address(self) -> u64 {
        self.raw.ptr.addr() as u64
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.raw.bytes
    }

    /// `len` bytes from `offset`. Panics when they are not all inside.
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Self {
        Self {
            raw: self.raw.part(offset, len),
            life: PhantomData,
        }
    }

    /// The bytes as numbers.
    ///
    /// # Panics
    /// When the length or the address does not suit `T`, or it is a device's memory.
    #[must_use]
    pub fn read<T: Plain>(self) -> &'a [T] {
        let n = self.raw.count::<T>();
        // SAFETY: a valid range that nobody writes (who made it), aligned and whole (`count`); every
        // pattern of bytes is a `T`.
        unsafe { std::slice::from_raw_parts(self.raw.ptr.cast(), n) }
    }
}

impl<'a> Dst<'a> {
    /// A slice, which it borrows for as long as it lives.
    #[must_use]
    pub fn of<T: Plain>(slice: &'a mut [T]) -> Self {
        // SAFETY: the slice's own bytes, borrowed for `'a`; any bytes are values of `T`.
        unsafe { Self::new(slice.as_mut_ptr().cast(), size_of_val(slice)) }
    }

    /// `bytes` bytes at `ptr`.
    ///
    /// # Safety
    /// The range is valid for reads and writes for `'a`, and nobody else uses it during `'a`.
    #[must_use]
    pub unsafe fn new(ptr: *mut u8, bytes: usize) -> Self {
        let place = Place::Host;
        let raw = Raw { ptr, bytes, place };
        Self {
            raw,
            life: PhantomData,
        }
    }

    /// `bytes` bytes at `address` of CUDA device `ordinal`.
    ///
    /// # Safety
    /// The range stays allocated there for `'a`, and nothing uses it that is ordered neither before nor
    /// behind what uses this.
    #[must_use]
    pub unsafe fn on_cuda(address: u64, bytes: usize, ordinal: u8) -> Self {
        Self {
            raw: on_cuda(address, bytes, ordinal),
            life: PhantomData,
        }
    }

    /// No bytes at all, of memory of that place.
    #[must_use]
    pub fn none(place: Place) -> Self {
        let ptr = std::ptr::without_provenance_mut(4096); // suits every type
        let raw = Raw {
            ptr,
            bytes: 0,
            place,
        };
        Self {
            raw,
            life: PhantomData,
        }
    }

    /// Whose memory it lies in.
    #[must_use]
    pub fn place(&self) -> Place {
        self.raw.place
    }

    /// Where it starts, in its place's address space.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.raw.ptr.addr() as u64
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.raw.bytes
    }

    /// `len` bytes from `offset`. Panics when they are not all inside.
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Self {
        Self {
            raw: self.raw.part(offset, len),
            life: PhantomData,
        }
    }

    /// As [`Dst::part`], for as long as `self` is borrowed.
    #[must_use]
    pub fn lend(&mut self, offset: usize, len: usize) -> Dst<'_> {
        Dst {
            raw: self.raw.part(offset, len),
            life: PhantomData,
        }
    }

    /// A second view of some of it.
    ///
    /// # Safety
    /// While it lives, nobody uses these bytes through anything else.
    pub(crate) unsafe fn alias(&self, offset: usize, len: usize) -> Dst<'_> {
        Dst {
            raw: self.raw.part(offset, len),
            life: PhantomData,
        }
    }

    /// All of it, for as long as `self` is borrowed.
    #[must_use]
    pub fn again(&mut self) -> Dst<'_> {
        self.lend(0, self.raw.bytes)
    }

    /// What lies before byte `at`, and the rest.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (front, behind) = (self.raw.part(0, at), self.raw.part(at, self.raw.bytes - at));
        let of = |raw| Self {
            raw,
            life: PhantomData,
        };
        (of(front), of(behind))
    }

    /// Pieces of `bytes` bytes, one behind the other; the last may be shorter.
    #[must_use]
    pub fn chunks(self, bytes: usize) -> Vec<Self> {
        let (mut chunks, mut rest) = (Vec::new(), self);
        while rest.bytes() > bytes {
            let (chunk, behind) = rest.split_at(bytes);
            chunks.push(chunk);
            rest = behind;
        }
        chunks.push(rest);
        chunks
    }

    /// The same bytes to read, while nobody writes them.
    #[must_use]
    pub fn src(&self) -> Src<'_> {
        Src {
            raw: self.raw,
            life: PhantomData,
        }
    }

    /// The same bytes to read from now on.
    #[must_use]
    pub fn into_src(self) -> Src<'a> {
        Src {
            raw: self.raw,
            life: PhantomData,
        }
    }

    /// The bytes as numbers that may be written.
    ///
    /// # Panics
    /// When the length or the address does not suit `T`, or it is a device's memory.
    #[must_use]
    pub fn write<T: Plain>(self) -> &'a mut [T] {
        let n = self.raw.count::<T>();
        // SAFETY: a valid range of this holder alone (who made it), aligned and whole (`count`); every
        // pattern of bytes is a `T`, and any `T` may be written.
        unsafe { std::slice::from_raw_parts_mut(self.raw.ptr.cast(), n) }
    }

    /// Numbers `start .. start + len`, for one of several threads that write parts of it.
    ///
    /// # Safety
    /// While the slice lives, nobody else uses these numbers.
    ///
    /// # Panics
    /// As [`Dst::write`], and when they are not all inside.
    #[must_use]
    #[allow(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
    pub unsafe fn slice<T: Plain>(&self, start: usize, len: usize) -> &mut [T] {
        let raw = self.raw.part(start * size_of::<T>(), len * size_of::<T>());
        let n = raw.count::<T>();
        // SAFETY: as `write`; these numbers have no other user (caller).
        unsafe { std::slice::from_raw_parts_mut(raw.ptr.cast(), n) }
    }
}

fn on_cuda(address: u64, bytes: usize, ordinal: u8) -> Raw {
    Raw {
        ptr: std::ptr::without_provenance_mut(address as usize),
        bytes,
        place: Place::Cuda(ordinal),
    }
}
