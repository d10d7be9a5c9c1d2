//! One exact-size allocation on huge pages, touched before use and never grown.
//!
//! Huge pages double direct disk bandwidth (a block is 2 segments, not 1024) and the touch moves
//! page faults, and the discovery that memory is short, out of the first step.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lowtide_units::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::{HostMemory, TierError, numa};

/// Bytes of a huge page; arenas at least this long start on a multiple of it.
const HUGE: usize = 2 << 20;
const PAGE: usize = 4096;
/// What one thread touches at a time.
const TOUCH: usize = 64 << 20;

/// What an arena holds at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Fresh memory, all zeros.
    Zero,
    /// Bytes `0xff`: NaN in bf16, f16 and f32, so that a read before a write shows.
    Poison,
}

/// One allocation of host memory, sealed after creation. Clones are handles of the same bytes,
/// which are unmapped when the last handle and the last [`RawRange`] are gone.
#[derive(Clone, Debug)]
pub struct Arena {
    map: Arc<Mapping>,
}

/// Bytes of an [`Arena`], without a type. It keeps the arena mapped; it does not say who may use
/// the bytes: the plan does.
///
/// # The contract of arenas Code that makes a reference into an arena, or accesses it by pointer, promises (in
/// `unsafe`) that no request on those bytes is unfinished. Code that submits a request promises that no such
/// reference exists until it is done ([`crate::Disk::submit`]). [`crate::Block`] keeps both promises by being the
/// only holder of its bytes.
#[derive(Clone)]
pub struct RawRange {
    map: Arc<Mapping>,
    offset: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    mapped: NonNull<u8>,
    mapped_bytes: usize,
}

// SAFETY: a mapping is an address and a length; accesses are ordered by the contract of arenas.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Arena {
    /// Maps `bytes` bytes (2 MiB-aligned from 2 MiB on, huge pages where the system grants them)
    /// and writes every page on all cores; when it returns, all of it is resident.
    ///
    /// # Errors
    /// [`TierError::HostMemory`] before anything is touched when the machine or the control group
    /// has less to give; [`TierError::Map`] when the system refuses address space.
    pub fn new(bytes: Bytes, fill: Fill) -> Result<Self, TierError> {
        let host = HostMemory::now();
        if bytes > host.available {
            let (have, limit) = (host.available, host.limit);
            return Err(TierError::HostMemory {
                need: bytes,
                have,
                limit,
            });
        }
        let map = Mapping::new(bytes.usize())?;
        map.touch(fill);
        Ok(Self { map: Arc::new(map) })
    }

    /// The first byte.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.map.base.as_ptr()
    }

    /// Exactly what was asked for.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes(self.map.bytes as u64)
    }

    /// Whether this is the only handle, and no [`RawRange`] of it is left.
    #[must_use]
    pub fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.map) == 1
    }

    /// How much of it lies on huge pages; `None` where the system does not say.
    #[must_use]
    pub fn huge_bytes(&self) -> Option<Bytes> {
        crate::process::huge_bytes(self.base() as u64, self.bytes().0)
    }

    /// `bytes` bytes from `offset`.
    ///
    /// # Errors
    /// [`TierError::Range`] when they are not all inside.
    pub fn range(&self, offset: u64, bytes: u64) -> Result<RawRange, TierError> {
        let have = self.map.bytes as u64;
        match offset.checked_add(bytes) {
            Some(end) if end <= have => Ok(RawRange {
                map: Arc::clone(&self.map),
                offset: offset as usize,
                bytes: bytes as usize,
            }),
            _ => Err(TierError::Range {
                offset,
                bytes,
                have,
            }),
        }
    }
}

impl RawRange {
    /// A handle of the arena that it is of.
    #[must_use]
    pub fn arena(&self) -> Arena {
        let map = Arc::clone(&self.map);
        Arena { map }
    }

    /// The first byte. Valid while `self` or a clone lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `offset` is inside the mapping (`Arena::range`, `part`).
        unsafe { self.map.base.as_ptr().add(self.offset) }
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `bytes` bytes from `offset`. Panics when they are not all inside.
    #[must_use]
    pub fn part(&self, offset: usize, bytes: usize) -> Self {
        assert!(
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes),
            "bytes {offset}+{bytes} of a range of {}",
            self.bytes
        );
        Self {
            map: Arc::clone(&self.map),
            offset: self.offset + offset,
            bytes,
        }
    }

    /// Fills it with `0xff`: NaN in bf16, f16 and f32.
    ///
    /// # Safety
    /// No other user of these bytes, and no request on them, may run meanwhile.
    pub unsafe fn poison(&self) {
        // SAFETY: valid for `bytes` (mapped while `self` lives); no other user (caller).
        unsafe { self.as_ptr().write_bytes(0xff, self.bytes) }
    }

    /// The bytes, to read.
    ///
    /// # Safety
    /// No writer of these bytes, and no request that reads into them, may run while it lives.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped and initialised while `self` lives; no writer (caller).
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.bytes) }
    }

    /// The bytes, to write.
    ///
    /// # Safety
    /// No other user of these bytes, and no request on them, may run while it lives.
    #[must_use]
    #[allow(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
    pub unsafe fn as_mut_slice(&self) -> &mut [u8] {
        // SAFETY: mapped and initialised while `self` lives; no other user (caller).
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.bytes) }
    }
}

impl fmt::Debug for RawRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawRange({:p}, {} bytes)", self.as_ptr(), self.bytes)
    }
}

impl Mapping {
    fn new(bytes: usize) -> Result<Self, TierError> {
        let fail = |os| TierError::Map {
            need: Bytes(bytes as u64),
            os,
        };
        let align = if bytes >= HUGE { HUGE } else { PAGE };
        // Whole huge pages are mapped so that the last one can be huge too.
        let body = bytes.max(1).checked_next_multiple_of(align);
        let mapped_bytes = body
            .and_then(|body| body.checked_add(align - PAGE))
            .ok_or(fail(crate::Os(libc::ENOMEM)))?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a fresh anonymous mapping at an address of the system's choice.
        let mapped =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), mapped_bytes, prot, flags) }
                .map_err(|e| fail(e.into()))?;
        let mapped = NonNull::new(mapped.cast::<u8>()).expect("mmap never returns null");
        // SAFETY: at most `align - PAGE` bytes are skipped, which the mapping has to spare.
        let base = unsafe { mapped.add(mapped.align_offset(align)) };
        if bytes >= HUGE {
            // Refused only where the kernel lacks transparent huge pages: slower, never wrong.
            // SAFETY: the range lies inside our own mapping.
            let _ = unsafe {
                rustix::mm::madvise(
                    base.as_ptr().cast(),
                    bytes.next_multiple_of(HUGE),
                    Advice::LinuxHugepage,
                )
            };
        }
        Ok(Self {
            base,
            bytes,
            mapped,
            mapped_bytes,
        })
    }

    /// Writes every page once, the threads taking pieces as they come. Where memory has several nodes, pieces
    /// alternate between them, so that all of them serve the updates, whichever core makes one.
    fn touch(&self, fill: Fill) {
        let nodes = numa::nodes();
        let n = nodes.len().max(1);
        let next: Vec<AtomicUsize> = (0..n).map(|node| AtomicUsize::new(node * TOUCH)).collect();
        let work = |node: usize| {
            loop {
                let start = next[node].fetch_add(n * TOUCH, Ordering::Relaxed);
                if start >= self.bytes {
                    return;
                }
                let end = self.bytes.min(start + TOUCH);
                for page in (start..end).step_by(PAGE) {
                    // SAFETY: inside the mapping, and each piece has one thread.
                    unsafe {
                        let at = self.base.as_ptr().add(page);
                        match fill {
                            Fill::Zero => at.write_volatile(0),
                            Fill::Poison => at.write_bytes(0xff, PAGE.min(end - page)),
                        }
                    }
                }
            }
        };
        let work = &work;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.bytes.div_ceil(TOUCH).min(cores).min(16);
        std::thread::scope(|scope| {
            if n > 1 {
                for thread in 0..threads.next_multiple_of(n) {
                    scope.spawn(move || {
                        numa::stay_on(&nodes[thread % n]);
                        work(thread % n);
                    });
                }
                return;
            }
            for _ in 1..threads {
                scope.spawn(|| work(0));
            }
            work(0);
        });
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whole, and nobody holds a handle any more.
        let freed = unsafe { rustix::mm::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
        debug_assert!(freed.is_ok(), "munmap: {freed:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_exact_aligned_filled_and_resident() {
        for bytes in [0, 1, 4097, HUGE - 1, HUGE, 3 * HUGE + 5, TOUCH + 4097] {
            for (fill, want) in [(Fill::Zero, 0), (Fill::Poison, 0xff)] {
                let arena = Arena::new(Bytes(bytes as u64), fill).unwrap();
                assert_eq!(arena.bytes().usize(), bytes);
                let align = if bytes >= HUGE { HUGE } else { PAGE };
                assert_eq!(arena.base().align_offset(align), 0, "{bytes} bytes");
                let all = arena.range(0, bytes as u64).unwrap();
                // SAFETY: this test is the only user.
                let slice = unsafe { all.as_slice() };
                assert!(
                    slice.iter().all(|&b| b == want),
                    "{bytes} bytes of {fill:?}"
                );
            }
        }
    }

    #[test]
    fn touching_makes_it_resident() {
        let arena = Arena::new(Bytes(TOUCH as u64 + 5), Fill::Zero).unwrap();
        let mut pages = vec![0u8; (TOUCH + 5).div_ceil(PAGE)];
        // SAFETY: the arena's own pages, and a byte of ours for each.
        let status = unsafe { libc::mincore(arena.base().cast(), TOUCH + 5, pages.as_mut_ptr()) };
        assert_eq!(status, 0);
        assert_eq!(
            pages.iter().position(|page| page & 1 == 0),
            None,
            "a page is not resident"
        );
        let (now, peak) = (
            crate::process::rss_bytes(),
            crate::process::peak_rss_bytes(),
        );
        assert!(
            now.unwrap() > Bytes(TOUCH as u64 / 2) && peak >= now,
            "{now:?} {peak:?}"
        );
    }

    #[test]
    fn a_large_arena_lies_on_huge_pages_where_the_system_has_them() {
        let arena = Arena::new(Bytes(64 * HUGE as u64), Fill::Zero).unwrap();
        let small = Arena::new(Bytes(PAGE as u64), Fill::Zero).unwrap();
        let Some(huge) = arena.huge_bytes() else {
            return;
        };
        assert!(huge <= arena.bytes());
        assert_eq!(small.huge_bytes(), Some(Bytes::ZERO));
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        // Fragmented memory may lack some, but not all of them.
        if setting.is_ok_and(|t| t.contains("[always]") || t.contains("[madvise]")) {
            assert!(huge.0 >= HUGE as u64, "{huge} of {}", arena.bytes());
        }
    }

    #[test]
    fn ranges_end_inside() {
        let arena = Arena::new(Bytes(10_000), Fill::Zero).unwrap();
        assert_eq!(arena.range(4096, 5904).unwrap().bytes(), 5904);
        for (offset, bytes) in [(0, 10_001), (10_000, 1), (u64::MAX, 2), (1, u64::MAX)] {
            let error = arena.range(offset, bytes).unwrap_err();
            assert_eq!(
                error,
                TierError::Range {
                    offset,
                    bytes,
                    have: 10_000
                }
            );
        }
        let range = arena.range(4096, 4096).unwrap();
        drop(arena);
        // SAFETY: the only user; the range keeps the mapping.
        unsafe {
            range.poison();
            assert_eq!(range.part(4095, 1).as_slice(), [0xff]);
        }
    }

    #[test]
    fn more_than_there_is_is_refused_before_touching() {
        let have = HostMemory::now().available;
        let error = Arena::new(Bytes(1 << 50), Fill::Zero).unwrap_err();
        let TierError::HostMemory {
            need, have: limit, ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!(need, Bytes(1 << 50));
        assert!(
            limit.0 > have.0 / 4 && limit.0 < 1 << 46,
            "{limit} against {have}"
        );
    }
}
