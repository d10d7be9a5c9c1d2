//! What a stream's thread and those who wait for its windows tell each other.

use std::any::Any;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::super::jsonl::Format;
use super::super::kept::Part;
use super::super::remarks::Remarks;
use crate::error::DataError;

/// What people should know of a stream's data that was read, once.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Whether it is of all of the data.
    pub all: bool,
    /// Records left out because not one of their tokens is supervised.
    pub n_unsupervised: u64,
    /// What was noticed in the records.
    pub remarks: Remarks,
    /// What became of the file of the cache.
    pub kept: Option<String>,
}

/// How reading ended.
#[derive(Debug)]
pub(super) enum End {
    /// All is there.
    All,
    /// With an error, which everyone who asks gets.
    Error(Arc<DataError>),
    /// With a panic, which goes on in who asks first.
    Panic(Option<Box<dyn Any + Send>>),
}

/// What is known of the data so far.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub windows: Vec<Part>,
    pub format: Option<Format>,
    pub end: Option<End>,
    /// Of the windows so far; none: it has been shown.
    pub news: Option<News>,
    /// The thread stands still, because somebody asked it to.
    pub rests: bool,
}

impl Known {
    /// How reading ended, if it has.
    pub fn ended(&mut self) -> Option<Result<(), DataError>> {
        match self.end.as_mut()? {
            End::All => Some(Ok(())),
            End::Error(e) => Some(Err(DataError::Streamed(Arc::clone(e)))),
            End::Panic(what) => {
                let again = || Box::new("the thread that tokenises has panicked");
                resume_unwind(what.take().unwrap_or_else(|| again()))
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    known: Mutex<Known>,
    pub changed: Condvar,
    pub stop: AtomicBool,
    /// How many want the thread to stand still.
    pub asked_to_rest: AtomicUsize,
}

impl Shared {
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known());
        self.changed.notify_all();
    }

    /// Waits until something can be said of what is known.
    pub fn wait<T>(&self, mut say: impl FnMut(&mut Known) -> Option<T>) -> T {
        let mut known = self.known();
        loop {
            if let Some(said) = say(&mut known) {
                return said;
            }
            let waited = self.changed.wait(known);
            known = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stands still as long as somebody wants it. Whether to go on after it.
    pub fn goes_on(&self) -> bool {
        let asked = || self.asked_to_rest.load(Ordering::SeqCst) > 0;
        let stops = || self.stop.load(Ordering::SeqCst);
        if asked() && !stops() {
            self.change(|known| known.rests = true);
            self.wait(|known| (!asked() || stops()).then(|| known.rests = false));
        }
        !stops()
    }
}
