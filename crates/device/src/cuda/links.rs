//! Handles of a library whose calls may wait for each other, and how whoever waits is freed.

use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// A call that lasts longer than this waits for a peer. Before that it may be anywhere in the library, where its
/// handle must not go.
const PATIENCE: Duration = Duration::from_secs(2);

/// A handle for each rank. A call with one may wait until the peers make the same call: NCCL connects two ranks at the
/// first collective that needs it, on the host, and has no limit.
///
/// So a cut never waits for a call to end: a call holds its rank's lock, the handle lies beside the lock. The flag is
/// set first, so no call begins behind it; a short call is waited for; one that lasts is freed by the cut itself.
pub(super) struct Links<T> {
    ranks: Vec<Link<T>>,
    cut: AtomicBool,
    patience: Duration,
}

struct Link<T> {
    /// Null when it was cut.
    handle: AtomicPtr<T>,
    /// Held through a call.
    call: Mutex<()>,
    /// Held while the handle is looked at, beside a call or not, and while it is taken.
    look: Mutex<()>,
}

impl<T> Links<T> {
    pub fn new(handles: Vec<*mut T>) -> Self {
        let link = |handle| Link {
            handle: AtomicPtr::new(handle),
            call: Mutex::new(()),
            look: Mutex::new(()),
        };
        Self {
            ranks: handles.into_iter().map(link).collect(),
            cut: AtomicBool::new(false),
            patience: PATIENCE,
        }
    }

    /// Makes a call with a rank's handle, one at a time; none when it was cut. Where a cut comes while the call lasts,
    /// what it gives means nothing.
    pub fn with<R>(&self, rank: usize, call: impl FnOnce(*mut T) -> R) -> Option<R> {
        let link = &self.ranks[rank];
        let _one = link.call.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = link.handle.load(Ordering::Acquire);
        match handle.is_null() || self.cut.load(Ordering::Acquire) {
            true => None,
            false => Some(call(handle)),
        }
    }

    /// Asks something of a rank's handle that takes no time, also while a call with it lasts; none when it was cut.
    pub fn look<R>(&self, rank: usize, ask: impl FnOnce(*mut T) -> R) -> Option<R> {
        let link = &self.ranks[rank];
        let _kept = link.look.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = link.handle.load(Ordering::Acquire);
        (!handle.is_null()).then(|| ask(handle))
    }

    /// Takes all handles, once, and lets `end` end them: calls that wait for a peer must return by that.
    pub fn cut(&self, end: impl FnOnce(Vec<*mut T>)) {
        if self.cut.swap(true, Ordering::AcqRel) {
            return;
        }
        let until = Instant::now() + self.patience;
        let free: Vec<_> = self.ranks.iter().map(|link| link.free(until)).collect();
        let handles = self.ranks.iter().map(Link::take);
        end(handles.filter(|handle| !handle.is_null()).collect());
        drop(free);
    }
}

impl<T> Link<T> {
    /// Its handle, at which nobody looks any more.
    fn take(&self) -> *mut T {
        let _kept = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.swap(std::ptr::null_mut(), Ordering::AcqRel)
    }

    /// Its lock, unless a call still holds it then.
    fn free(&self, until: Instant) -> Option<MutexGuard<'_, ()>> {
        loop {
            match self.call.try_lock() {
                Ok(free) => return Some(free),
                Err(TryLockError::Poisoned(free)) => return Some(free.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, sync_channel};

    use super::*;

    fn links(values: &mut [u8], patience: Duration) -> Links<u8> {
        let handles = values.iter_mut().map(std::ptr::from_mut).collect();
        Links {
            patience,
            ..Links::new(handles)
        }
    }

    /// What NCCL does when rank 1 fails before its first collective: rank 0 waits for it in the library.
    #[test]
    fn a_cut_frees_a_call_that_waits_for_a_peer() {
        let mut values = [0u8; 2];
        let links = links(&mut values, Duration::from_millis(50));
        let (began, begins) = channel();
        let (abort, aborted) = sync_channel::<usize>(1);
        std::thread::scope(|scope| {
            let links = &links;
            let waits = scope.spawn(move || {
                links.with(0, |_| {
                    began.send(()).expect("the test goes on");
                    aborted.recv_timeout(Duration::from_secs(20))
                })
            });
            begins.recv().expect("it began");
            assert_eq!(links.look(0, |_| ()), Some(()), "beside the call");
            links.cut(|handles| abort.send(handles.len()).expect("it waits"));
            assert_eq!(links.look(0, |_| ()), None, "a look behind the cut");
            let got = waits.join().expect("it returned").expect("it had a handle");
            assert_eq!(got, Ok(2), "nobody ended the call");
            assert_eq!(links.with(1, |_| ()), None, "a call after the cut");
            links.cut(|_| panic!("cut twice"));
        });
    }

    #[test]
    fn a_short_call_keeps_its_handle_until_it_has_ended() {
        let mut values = [0u8; 2];
        let links = links(&mut values, Duration::from_secs(20));
        let (began, begins) = channel();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (links, ended) = (&links, &ended);
            scope.spawn(move || {
                links.with(1, |_| {
                    began.send(()).expect("the test goes on");
                    std::thread::sleep(Duration::from_millis(100));
                    ended.store(true, Ordering::Release);
                })
            });
            begins.recv().expect("it began");
            links.cut(|_| assert!(ended.load(Ordering::Acquire), "its handle went under it"));
        });
    }
    #[test]
    fn a_handle_stays_while_it_is_looked_at() {
        let mut values = [0u8; 1];
        let links = links(&mut values, Duration::ZERO);
        let (began, begins) = channel();
        let looked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (links, looked) = (&links, &looked);
            scope.spawn(move || {
                links.look(0, |_| {
                    began.send(()).expect("the test goes on");
                    std::thread::sleep(Duration::from_millis(100));
                    looked.store(true, Ordering::Release);
                })
            });
            begins.recv().expect("it began");
            links.cut(|_| assert!(looked.load(Ordering::Acquire), "its handle went under it"));
        });
    }
}
