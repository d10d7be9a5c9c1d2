//! The memory that benches use and the two copies that the update is held against.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use lowtide_device::{Dst, Queue, Src};
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

// SAFETY: an allocation of our own, which only views that borrow it reach.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` bytes, at least one; zeros, whose pages the system gives when they are first touched.
    pub(super) fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.next_multiple_of(HUGE_PAGE), HUGE_PAGE)
            .expect("a size that memory can have");
        // SAFETY: the size is not zero (a multiple of a huge page, from at least one byte).
        let start = unsafe { alloc_zeroed(layout) };
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

    pub(super) fn dst(&mut self) -> Dst<'_> {
        // SAFETY: the allocation lives as long as `self`, which is borrowed.
        unsafe { Dst::new(self.start, self.layout.size()) }
    }

    pub(super) fn src(&self) -> Src<'_> {
        // SAFETY: as `dst`: it is written through `&mut self` only.
        unsafe { Src::new(self.start, self.layout.size()) }
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

/// Copies one range to another of the same length.
pub(super) type Copy = fn(&[u8], &mut [u8]);

impl Copies {
    pub(super) fn new(q: &Queue, bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(COPY_CHUNK);
        let (mut from, mut to) = (Memory::new(bytes), Memory::new(bytes));
        q.run(|| {
            let chunks = |m: &mut Memory, byte| {
                let all = m.dst().part(0, bytes).write::<u8>();
                let chunks = all.par_chunks_mut(COPY_CHUNK);
                chunks.for_each(|chunk| chunk.fill(byte));
            };
            chunks(&mut from, 1);
            chunks(&mut to, 2);
        });
        Self { from, to, bytes }
    }

    pub(super) fn traffic(&self) -> Bytes {
        Bytes(2 * self.bytes as u64)
    }

    pub(super) fn run(&mut self, q: &Queue, copy: Copy) {
        let from = self.from.src().part(0, self.bytes).read::<u8>();
        let to = self.to.dst().part(0, self.bytes).write::<u8>();
        q.run(|| {
            let pairs = from
                .par_chunks(COPY_CHUNK)
                .zip(to.par_chunks_mut(COPY_CHUNK));
            pairs.for_each(|(from, to)| copy(from, to));
        });
    }
}

pub(super) fn memcpy_chunk(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
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

    /// How far ahead the source is asked for, in bytes, as the update asks (1 to 3 % faster).
    const AHEAD: usize = 2048;

    macro_rules! copy {
        ($name:ident, $feature:literal, $load:ident, $store:ident, $register:ty) => {
            #[target_feature(enable = $feature)]
            pub(super) fn $name(from: &[u8], to: &mut [u8]) {
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
            let mut copies = Copies::new(&q, 3 * COPY_CHUNK - 5);
            assert_eq!(copies.bytes, 3 * COPY_CHUNK);
            copies.run(&q, copy);
            let to = copies.to.src().read::<u8>();
            assert!(to[..copies.bytes].iter().all(|&byte| byte == 1));
        }
    }
}
