//! Where a test can end the process: before any of the calls that change a directory.

/// Makes one call that changes what is on disk.
#[cfg(not(test))]
pub(super) fn step<T, E>(call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    call()
}

/// Whether file systems are asked to exchange two names.
#[cfg(not(test))]
pub(super) fn exchanges() -> bool {
    true
}

#[cfg(test)]
pub(super) use injected::{exchanges, step};

/// As after a kill: from some call on none is made any more, those of cleaning up after it included.
#[cfg(test)]
pub(crate) mod injected {
    use std::cell::Cell;

    use rustix::io::Errno;

    thread_local! {
        static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
        static EXCHANGES: Cell<bool> = const { Cell::new(true) };
    }

    /// Lets this thread make so many calls before it is as good as dead; `None`: any number.
    pub(crate) fn live(calls: Option<u64>) {
        LEFT.set(calls.unwrap_or(u64::MAX));
    }

    /// Has this thread's file systems exchange names, or not.
    pub(crate) fn set_exchanges(on: bool) {
        EXCHANGES.set(on);
    }

    pub(crate) fn exchanges() -> bool {
        EXCHANGES.get()
    }

    /// Whether it is.
    pub(crate) fn dead() -> bool {
        LEFT.get() == 0
    }

    pub(crate) fn step<T, E: From<Errno>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let left = LEFT.get();
        if left == 0 {
            return Err(Errno::CANCELED.into());
        }
        if left != u64::MAX {
            LEFT.set(left - 1);
        }
        call()
    }
}
