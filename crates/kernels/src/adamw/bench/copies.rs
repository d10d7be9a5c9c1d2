//! The memory that benches use and the two copies that the update is held against.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

use lowtide_device::{Queue, View};
use lowtide_units::Bytes;
use rayon::prelude::*;

/// Bytes that one thread copies at a time.
const COPY_CHUNK: usize = 1 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Memory in huge pages where the system gives them.
pub(super) struct Memory {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: memory has no thread of its own; what is done in it is the users' to order.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` bytes, at least one, not yet written.
    pub(super) fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.next_multiple_of(HUGE_PAGE), HUGE_PAGE)
            .expect("a size that memory can have");
        // SAFETY: the size is not zero (a multiple of a huge page, from at least one byte).
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        #[cfg(target_os = "linux")]
        {
            use rustix::mm::{Advice, madvise};
            // SAFETY: exactly the pages of this allocation; the advice changes no contents. Where
            // it is refused, ordinary pages serve.
            let _ = unsafe { madvise(start.cast(), layout.size(), Advice::LinuxHugepage) };
        }
        Self { start, layout }
    }

    pub(super) fn view(&self) -> View<'_> {
        // SAFETY: the allocation lives as long as `self`; uses are ordered by this module: one
        // call at a time, whose threads have disjoint parts.
        unsafe { View::new(self.start, self.layout.size()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.start, self.layout) }
    }
}

/// Source and destination of the copies.
pub(super) struct Copies {
    from: Memory,
    to: Memory,
    bytes: usize,
}

/// Copies one view to another of the same length that does not overlap it.
pub(super) type Copy = fn(View<'_>, View<'_>);

impl Copies {
    pub(super) fn new(q: &Queue, bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(COPY_CHUNK);
        let copies = Self {
            from: Memory::new(bytes),
            to: Memory::new(bytes),
            bytes,
        };
        copies.each(q, |from, to| {
            // SAFETY: each turn has bytes of its own.
            let (from, to) = unsafe { (from.write::<u8>(), to.write::<u8>()) };
            from.fill(1);
            to.fill(2);
        });
        copies
    }

    pub(super) fn traffic(&self) -> Bytes {
        Bytes(2 * self.bytes as u64)
    }

    pub(super) fn run(&self, q: &Queue, copy: Copy) {
        self.each(q, copy);
    }

    fn each(&self, q: &Queue, work: impl Fn(View<'_>, View<'_>) + Sync) {
        let (from, to) = (self.from.view(), self.to.view());
        q.run(|| {
            (0..self.bytes / COPY_CHUNK).into_par_iter().for_each(|i| {
                let start = i * COPY_CHUNK;
                work(from.part(start, COPY_CHUNK), to.part(start, COPY_CHUNK));
            });
        });
    }
}

pub(super) fn memcpy_chunk(from: View<'_>, to: View<'_>) {
    // SAFETY: two allocations, and this thread alone has these parts of them.
    unsafe { to.copy_from(&from) }
}

/// The copy with non-temporal stores that this processor has.
pub(super) fn non_temporal_chunk() -> Option<Copy> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            return Some(|from, to| unsafe { x86::copy_avx512(from, to) });
        }
        if is_x86_feature_detected!("avx") {
            // SAFETY: the processor has AVX.
            return Some(|from, to| unsafe { x86::copy_avx(from, to) });
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use lowtide_device::View;

    /// How far ahead the source is asked for, in bytes, as the update asks (1 to 3 % faster).
    const AHEAD: usize = 2048;

    macro_rules! copy {
        ($name:ident, $feature:literal, $load:ident, $store:ident, $register:ty) => {
            #[target_feature(enable = $feature)]
            pub(super) fn $name(from: View<'_>, to: View<'_>) {
                // SAFETY: two allocations, and this thread alone has these parts of them.
                let (from, to) = unsafe { (from.read::<u8>(), to.write::<u8>()) };
                let width = size_of::<$register>();
                assert!(from.len() == to.len() && to.as_ptr().align_offset(width) == 0);
                for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(width)) {
                    _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(AHEAD).cast());
                    // SAFETY: one register's bytes each; `to` is aligned as asserted.
                    unsafe { $store(to.as_mut_ptr().cast(), $load(from.as_ptr().cast())) }
                }
                // Makes the stores visible to whoever this thread's work is handed to.
                _mm_sfence();
            }
        };
    }

    copy!(
        copy_avx,
        "avx",
        _mm256_loadu_si256,
        _mm256_stream_si256,
        __m256i
    );
    copy!(
        copy_avx512,
        "avx512f",
        _mm512_loadu_si512,
        _mm512_stream_si512,
        __m512i
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_copy() {
        let q = Queue::new("test", 2);
        for copy in [Some(memcpy_chunk as Copy), non_temporal_chunk()]
            .into_iter()
            .flatten()
        {
            let copies = Copies::new(&q, 3 * COPY_CHUNK - 5);
            assert_eq!(copies.bytes, 3 * COPY_CHUNK);
            copies.run(&q, copy);
            // SAFETY: no call is running.
            let to = unsafe { copies.to.view().read::<u8>() };
            assert!(to[..copies.bytes].iter().all(|&byte| byte == 1));
        }
    }
}
