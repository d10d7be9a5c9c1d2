//! Memory that many threads use at once without a plan: ranges are lent to one holder at a time.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Memory;
use crate::view::{Dst, Src};

/// Lends ranges of some memory. Two that share a byte are never out at the same moment: the second
/// caller waits for the first.
#[derive(Debug)]
pub struct Lender<'a> {
    all: Dst<'a>,
    out: Mutex<Vec<Range<u64>>>,
    back: Condvar,
}

/// A range that is lent, until it is dropped.
#[derive(Debug)]
pub struct Lent<'a> {
    bytes: Dst<'a>,
    range: Range<u64>,
    out: &'a Mutex<Vec<Range<u64>>>,
    back: &'a Condvar,
}

fn lock(out: &Mutex<Vec<Range<u64>>>) -> MutexGuard<'_, Vec<Range<u64>>> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Lender<'a> {
    /// Lends parts of `all`.
    #[must_use]
    pub fn new(all: Dst<'a>) -> Self {
        Self {
            all,
            out: Mutex::default(),
            back: Condvar::new(),
        }
    }

    /// Lends parts of a memory.
    #[must_use]
    pub fn of(memory: &'a mut Memory) -> Self {
        Self::new(memory.all())
    }

    /// `bytes` bytes from `offset`, once nobody else has any of them. Who asks for bytes that the
    /// same thread holds waits for ever.
    ///
    /// # Panics
    /// When they are not all inside.
    pub fn lend(&self, offset: u64, bytes: u64) -> Lent<'_> {
        let range = offset..offset.checked_add(bytes).expect("inside an address space");
        let meets = |r: &Range<u64>| r.start < range.end && range.start < r.end;
        let mut out = lock(&self.out);
        while out.iter().any(meets) {
            out = self.back.wait(out).unwrap_or_else(PoisonError::into_inner);
        }
        // SAFETY: `self.all` is lent whole to this lender, which hands these bytes to nobody else
        // until they come back; it uses none itself. Panics when they are not inside.
        let bytes = unsafe { self.all.alias(offset as usize, bytes as usize) };
        out.push(range.clone());
        drop(out);
        Lent {
            bytes,
            range,
            out: &self.out,
            back: &self.back,
        }
    }
}

impl Lent<'_> {
    /// A view to read from.
    #[must_use]
    pub fn src(&self) -> Src<'_> {
        self.bytes.src()
    }

    /// To write. For as long as this is borrowed: the bytes go back when it is dropped.
    #[must_use]
    pub fn dst(&mut self) -> Dst<'_> {
        self.bytes.again()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut out = lock(self.out);
        let at = out.iter().position(|r| *r == self.range);
        out.swap_remove(at.expect("it is out"));
        self.back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::memory;

    const TURNS: usize = if cfg!(miri) { 8 } else { 500 };
    /// The first two numbers, the last two, one: where each starts and how many.
    const RANGES: [(usize, usize); 3] = [(0, 2), (1, 2), (2, 1)];

    /// Threads that add to one number lose no addition; those of other numbers do not wait for them.
    #[test]
    fn a_byte_has_one_holder_at_a_time() {
        let mut numbers = [0u32; 3];
        let lender = Lender::new(Dst::of(&mut numbers));
        let most = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (lender, most) = (&lender, &most);
                scope.spawn(move || {
                    for turn in 0..TURNS {
                        let (at, n) = RANGES[(thread + turn) % 3];
                        let mut lent = lender.lend(4 * at as u64, 4 * n as u64);
                        most.fetch_max(lock(&lender.out).len(), Ordering::Relaxed);
                        let mut read = vec![0u32; n];
                        memory::load(lent.src(), &mut read);
                        read.iter_mut().for_each(|x| *x += 1);
                        memory::store(lent.dst(), &read);
                    }
                });
            }
        });
        drop(lender);
        assert!(
            most.into_inner() <= 2,
            "three ranges of which two share a number"
        );
        let turns =
            (0..4).flat_map(|thread| (0..TURNS).map(move |turn| RANGES[(thread + turn) % 3]));
        let mut want = [0u32; 3];
        turns.for_each(|(at, n)| want[at..at + n].iter_mut().for_each(|x| *x += 1));
        assert_eq!(numbers, want);
    }
}
