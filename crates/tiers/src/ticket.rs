//! How a request reports to its submitter that it is done.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::TierError;

/// A submitted request. Dropping it neither cancels nor waits: the request keeps its memory
/// mapped until it is done.
#[derive(Clone, Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
}

/// When a request was submitted, first sent to a drive, and done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// [`crate::Disk::submit`] was called.
    pub submitted: Instant,
    /// The first block of it went to a drive.
    pub started: Instant,
    /// The last block ended, well or badly.
    pub finished: Instant,
}

#[derive(Debug)]
struct Shared {
    submitted: Instant,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Drives that are not through with their part.
    parts_left: usize,
    started: Option<Instant>,
    finished: Option<Instant>,
    error: Option<TierError>,
}

impl Ticket {
    /// Of a request with a part on each of `n` drives: the ticket, and for each drive the part that it must finish.
    pub(crate) fn new(n: usize) -> (Self, Vec<Part>) {
        let submitted = Instant::now();
        let finished = (n == 0).then_some(submitted);
        let state = Mutex::new(State {
            parts_left: n,
            finished,
            ..State::default()
        });
        let shared = Arc::new(Shared {
            submitted,
            state,
            done: Condvar::new(),
        });
        let parts = (0..n)
            .map(|_| Part {
                shared: Some(Arc::clone(&shared)),
            })
            .collect();
        (Self { shared }, parts)
    }

    /// A request that was refused before anything moved.
    pub(crate) fn refused(error: TierError) -> Self {
        let (ticket, _) = Self::new(0);
        ticket.shared.lock().error = Some(error);
        ticket
    }

    /// Blocks until every byte has moved or the request has failed. After either, the disk no
    /// longer touches the request's memory. May be called again, and from several threads.
    ///
    /// # Errors
    /// The first thing that went wrong with any part of the request.
    pub fn wait(&self) -> Result<(), TierError> {
        let mut state = self.shared.lock();
        while state.finished.is_none() {
            state = self
                .shared
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.error.clone().map_or(Ok(()), Err)
    }

    /// Whether [`Ticket::wait`] would return at once.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.shared.lock().finished.is_some()
    }

    /// When what happened; `None` until the request is done.
    #[must_use]
    pub fn times(&self) -> Option<Times> {
        let (submitted, state) = (self.shared.submitted, self.shared.lock());
        let finished = state.finished?;
        Some(Times {
            submitted,
            started: state.started.unwrap_or(finished),
            finished,
        })
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change below is whole at each step, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, result: Result<(), TierError>) {
        let mut state = self.lock();
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        state.parts_left -= 1;
        if state.parts_left == 0 {
            state.finished = Some(Instant::now());
            self.done.notify_all();
        }
    }
}

/// One drive's part of a ticket. Dropped unfinished (its arbiter died or was shut down), it
/// fails the ticket, so that nobody waits for ever.
#[derive(Debug)]
pub(crate) struct Part {
    shared: Option<Arc<Shared>>,
}

impl Part {
    /// Takes note that a block of it goes to the drive.
    pub(crate) fn start(&self) {
        let shared = self.shared.as_ref().expect("an unfinished part");
        shared.lock().started.get_or_insert_with(Instant::now);
    }

    /// This drive has moved its last block, or failed; the ticket is done when the last drive says so.
    pub(crate) fn finish(mut self, result: Result<(), TierError>) {
        self.shared.take().expect("an unfinished part").end(result);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.end(Err(TierError::Stopped));
        }
    }
}
