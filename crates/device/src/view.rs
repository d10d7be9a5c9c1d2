//! Ranges of memory without a type.

use std::marker::PhantomData;

/// Whose memory a view lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host's: the processor reads and writes it.
    Host,
    /// A CUDA device's, by its number; only kernels and copies reach it.
    Cuda(u8),
}

/// A range of memory. Copying the view copies no bytes.
///
/// Whoever holds a view may use it only while the plan lets its task use those bytes; no two tasks
/// that run at once hold overlapping views of which one is written.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    ptr: *mut u8,
    bytes: usize,
    place: Place,
    arena: PhantomData<&'a [u8]>,
}

// SAFETY: a view is an address and a length; the plan keeps concurrent users of the same bytes
// apart (checker: every pair of conflicting accesses is ordered by a path of events).
unsafe impl Send for View<'_> {}
// SAFETY: as above; shared views only hand out slices through the `unsafe` methods below.
unsafe impl Sync for View<'_> {}

/// Types whose every bit pattern is a value, so that bytes may be read as them.
pub trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for i16 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for f32 {}
impl Plain for f64 {}

impl<'a> View<'a> {
    /// A view of `bytes` bytes at `ptr`.
    ///
    /// # Safety
    /// The range must be valid for reads and writes for `'a`, and uses of the view must be ordered
    /// against all other uses of the same bytes, as the type's head says.
    #[must_use]
    pub unsafe fn new(ptr: *mut u8, bytes: usize) -> Self {
        Self {
            ptr,
            bytes,
            place: Place::Host,
            arena: PhantomData,
        }
    }

    /// A view of `bytes` bytes at `address` of CUDA device `ordinal`.
    ///
    /// # Safety
    /// The range must stay allocated there for `'a`, and uses of the view must be ordered against
    /// all other uses of the same bytes, as the type's head says.
    #[must_use]
    pub unsafe fn on_cuda(address: u64, bytes: usize, ordinal: u8) -> Self {
        Self {
            ptr: std::ptr::without_provenance_mut(address as usize),
            bytes,
            place: Place::Cuda(ordinal),
            arena: PhantomData,
        }
    }

    /// Whose memory it lies in.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Where it starts, in its place's address space.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.ptr.addr() as u64
    }

    /// A view of a slice, which it borrows for as long as it lives.
    #[must_use]
    pub fn of<T: Plain>(slice: &'a mut [T]) -> Self {
        Self {
            ptr: slice.as_mut_ptr().cast(),
            bytes: size_of_val(slice),
            place: Place::Host,
            arena: PhantomData,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `len` bytes from `offset`. Panics when they are not all inside.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.bytes),
            "bytes {offset}+{len} of a view of {}",
            self.bytes
        );
        let ptr = self.ptr.wrapping_add(offset);
        Self {
            ptr,
            bytes: len,
            place: self.place,
            arena: PhantomData,
        }
    }

    /// The bytes as numbers. Panics when the length or the address does not suit `T`.
    ///
    /// # Safety
    /// No writer of these bytes may run while the slice lives.
    #[must_use]
    pub unsafe fn read<T: Plain>(&self) -> &'a [T] {
        let n = self.count::<T>();
        // SAFETY: valid range (`new`), aligned and whole (`count`), no writer (caller).
        unsafe { std::slice::from_raw_parts(self.ptr.cast(), n) }
    }

    /// The bytes as numbers that may be written.
    ///
    /// # Safety
    /// No other user of these bytes may run while the slice lives.
    #[must_use]
    pub unsafe fn write<T: Plain>(&self) -> &'a mut [T] {
        let n = self.count::<T>();
        // SAFETY: valid range (`new`), aligned and whole (`count`), no other user (caller).
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), n) }
    }

    /// Copies all bytes of `from`. Both must be equally long and not overlap.
    ///
    /// # Safety
    /// No other user of the destination, no writer of the source while the call runs.
    ///
    /// # Panics
    /// When one of them is not in host memory, or their lengths differ.
    pub unsafe fn copy_from(&self, from: &View<'_>) {
        assert_eq!(
            self.bytes, from.bytes,
            "copy between views of different lengths"
        );
        assert!(
            self.place == Place::Host && from.place == Place::Host,
            "the processor cannot reach {:?}",
            if self.place == Place::Host {
                from.place
            } else {
                self.place
            }
        );
        // SAFETY: both ranges valid for `bytes` (`new`); disjoint and unused by others (caller).
        unsafe { std::ptr::copy_nonoverlapping(from.ptr, self.ptr, self.bytes) }
    }

    fn count<T: Plain>(&self) -> usize {
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
