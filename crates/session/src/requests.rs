//! Requests to a run while it is under way: to save, to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Requests to a run, as signals make them. A handle: clones share what was asked.
///
/// A run looks at them between steps, between the batches of an evaluation and between the tokens of
/// answers; the work of an evaluation or a token that is under way is broken off. Whoever hands them
/// over may end the process by itself while the run is not [`guarded`](Requests::guarded).
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    stop: AtomicBool,
    /// The signal that asked to stop, wherever it came; 0: none.
    signal: AtomicI32,
    save: AtomicBool,
    guarded: AtomicBool,
}

impl Requests {
    /// No request yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to save and to end.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
    }

    /// The same by a signal, of this process or of another rank's. The first one counts.
    pub fn stop_by(&self, signal: i32) {
        let (is, of) = (Ordering::AcqRel, Ordering::Acquire);
        // One that came before has asked already.
        let _ = self.0.signal.compare_exchange(0, signal, is, of);
        self.stop();
    }

    /// The signal by which the run was asked to end; `None`: by none.
    #[must_use]
    pub fn stopped_by(&self) -> Option<i32> {
        let signal = self.0.signal.load(Ordering::Acquire);
        (signal != 0).then_some(signal)
    }

    /// Asks the run to save and then to continue.
    pub fn save(&self) {
        self.0.save.store(true, Ordering::Release);
    }

    /// Whether the run was asked to end.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.0.stop.load(Ordering::Acquire)
    }

    /// Whether the run was asked to save and has not done so.
    #[must_use]
    pub fn saving(&self) -> bool {
        self.0.save.load(Ordering::Acquire)
    }

    /// Whether anything is asked that the run has not done.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.stopping() || self.saving()
    }

    /// Takes a request to save: it is being done.
    pub fn take_save(&self) -> bool {
        self.0.save.swap(false, Ordering::AcqRel)
    }

    /// From here on the run ends by itself when it is asked to: ending its process would lose steps,
    /// or leave something half written.
    pub fn guard(&self) {
        self.0.guarded.store(true, Ordering::Release);
    }

    /// Whether the run has something to lose. Before that (while it reads data, measures, plans,
    /// loads) a request to stop is best answered by ending the process.
    #[must_use]
    pub fn guarded(&self) -> bool {
        self.0.guarded.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_what_was_asked_and_a_save_is_done_once() {
        let (requests, other) = (Requests::new(), Requests::new());
        let clone = requests.clone();
        assert!(!requests.pending());
        clone.save();
        assert!(requests.saving() && requests.pending() && !requests.stopping());
        assert!(requests.take_save() && !requests.take_save() && !clone.pending());
        clone.stop();
        assert_eq!(requests.stopped_by(), None);
        clone.stop_by(2);
        requests.stop_by(15);
        assert_eq!([&requests, &clone].map(Requests::stopped_by), [Some(2); 2]);
        assert!(requests.stopping() && requests.pending() && !requests.saving());
        assert!(!other.pending());
    }
}
