//! The order in which one drive serves what it was asked: pure bookkeeping, no I/O.
//!
//! 1. A job waits for every earlier unfinished job it conflicts with (ranges overlap, one of the
//!    two writes).
//! 2. Among jobs of one kind that wait for nothing, the earliest deadline is served first, then the
//!    earliest submission. Within a job, blocks go out in ascending order. Where both reads and
//!    writes may go, the kind of which less is in flight goes next, then the earlier deadline: a
//!    drive gives most while it has both, and neither kind starves.
//! 3. A job that others wait for is as urgent as the most urgent of them.
//! 4. A job is finished when nothing of it is in flight and either all was sent or one block
//!    failed; what was not sent of a failed job is dropped, and jobs that waited for it go on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::TierError;
use crate::request::Kind;

/// What a drive needs to know of one request's part on it.
pub(crate) trait Job {
    fn kind(&self) -> Kind;
    /// The drive's own addresses it covers, never empty.
    fn local(&self) -> Range<u64>;
    fn deadline(&self) -> u64;
}

/// One drive's unfinished jobs, numbered in order of submission.
pub(crate) struct Queue<J> {
    next_seq: u64,
    /// Blocks end at multiples of this many bytes of the drive's own addresses.
    block: u64,
    entries: BTreeMap<u64, Entry<J>>,
    /// By kind, (urgency, number) of the jobs with something to send that wait for nothing.
    ready: [BTreeSet<(u64, u64)>; 2],
    /// Blocks in flight, by kind.
    in_flight: [usize; 2],
}

struct Entry<J> {
    job: J,
    /// The next own address to send.
    cursor: u64,
    in_flight: usize,
    /// The deadline, or that of the most urgent job that waits for this one.
    urgency: u64,
    /// Unfinished earlier jobs this one waits for.
    waits_for: BTreeSet<u64>,
    /// Later jobs that wait for this one.
    waited_by: Vec<u64>,
    error: Option<TierError>,
}

impl<J: Job> Entry<J> {
    fn has_more(&self) -> bool {
        self.error.is_none() && self.cursor < self.job.local().end
    }

    fn is_ready(&self) -> bool {
        self.waits_for.is_empty() && self.has_more()
    }
}

impl<J: Job> Queue<J> {
    pub(crate) fn new(block: u64) -> Self {
        Self {
            next_seq: 0,
            block,
            entries: BTreeMap::new(),
            ready: Default::default(),
            in_flight: [0; 2],
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn push(&mut self, job: J) {
        let (seq, urgency, local) = (self.next_seq, job.deadline(), job.local());
        self.next_seq += 1;
        let mut waits_for = BTreeSet::new();
        for (&earlier, entry) in &mut self.entries {
            let other = entry.job.local();
            let overlap = local.start < other.end && other.start < local.end;
            if overlap && (job.kind() == Kind::Write || entry.job.kind() == Kind::Write) {
                entry.waited_by.push(seq);
                waits_for.insert(earlier);
            }
        }
        for &earlier in &waits_for {
            self.urge(earlier, urgency);
        }
        if waits_for.is_empty() {
            self.ready[job.kind() as usize].insert((urgency, seq));
        }
        let (cursor, waited_by, error) = (local.start, Vec::new(), None);
        let entry = Entry {
            job,
            cursor,
            in_flight: 0,
            urgency,
            waits_for,
            waited_by,
            error,
        };
        self.entries.insert(seq, entry);
    }

    /// Makes a job, and all it waits for, at least this urgent.
    fn urge(&mut self, seq: u64, urgency: u64) {
        let mut left = vec![seq];
        while let Some(seq) = left.pop() {
            let entry = self.entries.get_mut(&seq).expect("an unfinished job");
            if urgency < entry.urgency {
                let ready = &mut self.ready[entry.job.kind() as usize];
                if ready.remove(&(entry.urgency, seq)) {
                    ready.insert((urgency, seq));
                }
                entry.urgency = urgency;
                left.extend(&entry.waits_for);
            }
        }
    }

    /// The next block to send: its job's number, the job, and the own addresses to move.
    /// `limit` says how many bytes from an address on may go out as one.
    pub(crate) fn next(&mut self, limit: impl Fn(&J, u64) -> u64) -> Option<(u64, &J, Range<u64>)> {
        let first = |kind: usize| self.ready[kind].first().copied();
        let kind = match (first(0), first(1)) {
            (Some(a), Some(b)) => usize::from((self.in_flight[1], b) < (self.in_flight[0], a)),
            (None, _) => 1,
            (_, None) => 0,
        };
        let (urgency, seq) = first(kind)?;
        self.in_flight[kind] += 1;
        let entry = self
            .entries
            .get_mut(&seq)
            .expect("a ready job is unfinished");
        let start = entry.cursor;
        let end = (start / self.block + 1) * self.block;
        let end = end
            .min(start + limit(&entry.job, start))
            .min(entry.job.local().end);
        entry.cursor = end;
        entry.in_flight += 1;
        if !entry.has_more() {
            self.ready[kind].remove(&(urgency, seq));
        }
        Some((seq, &entry.job, start..end))
    }

    /// Takes note that a block ended; returns its job when that is finished.
    #[must_use]
    pub(crate) fn done(
        &mut self,
        seq: u64,
        result: Result<(), TierError>,
    ) -> Option<(J, Result<(), TierError>)> {
        let entry = self
            .entries
            .get_mut(&seq)
            .expect("a block in flight has a job");
        let kind = entry.job.kind() as usize;
        entry.in_flight -= 1;
        self.in_flight[kind] -= 1;
        if let Err(error) = result {
            self.ready[kind].remove(&(entry.urgency, seq));
            entry.error.get_or_insert(error);
        }
        if entry.in_flight > 0 || entry.has_more() {
            return None;
        }
        let entry = self.entries.remove(&seq).expect("found above");
        for later in entry.waited_by {
            let waiting = self.entries.get_mut(&later).expect("it still waits");
            waiting.waits_for.remove(&seq);
            if waiting.is_ready() {
                let ready = &mut self.ready[waiting.job.kind() as usize];
                ready.insert((waiting.urgency, later));
            }
        }
        Some((entry.job, entry.error.map_or(Ok(()), Err)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug)]
    struct Toy {
        kind: Kind,
        local: Range<u64>,
        deadline: u64,
    }

    impl Job for Toy {
        fn kind(&self) -> Kind {
            self.kind
        }
        fn local(&self) -> Range<u64> {
            self.local.clone()
        }
        fn deadline(&self) -> u64 {
            self.deadline
        }
    }

    fn queue(jobs: &[(Kind, Range<u64>, u64)]) -> Queue<Toy> {
        let mut queue = Queue::new(10);
        for (kind, local, deadline) in jobs.iter().cloned() {
            queue.push(Toy {
                kind,
                local,
                deadline,
            });
        }
        queue
    }

    fn send(queue: &mut Queue<Toy>) -> Option<(u64, Range<u64>)> {
        queue.next(|_, _| 7).map(|(seq, _, range)| (seq, range))
    }

    #[test]
    fn blocks_end_at_block_and_unit_ends() {
        let mut q = queue(&[(Kind::Read, 8..21, 0)]);
        assert_eq!(send(&mut q), Some((0, 8..10)));
        assert_eq!(send(&mut q), Some((0, 10..17)));
        assert_eq!(send(&mut q), Some((0, 17..20)));
        assert_eq!(send(&mut q), Some((0, 20..21)));
        assert_eq!(send(&mut q), None);
        for left in (0..4).rev() {
            assert_eq!(q.done(0, Ok(())).is_some(), left == 0);
        }
        assert!(q.is_empty());
    }

    #[test]
    fn the_earliest_deadline_goes_first_even_within_another_job() {
        let mut q = queue(&[(Kind::Read, 0..20, 5), (Kind::Read, 40..42, 5)]);
        assert_eq!(send(&mut q), Some((0, 0..7)));
        q.push(Toy {
            kind: Kind::Write,
            local: 60..65,
            deadline: 1,
        });
        assert_eq!(send(&mut q), Some((2, 60..65)));
        assert_eq!(send(&mut q), Some((0, 7..10)));
        assert_eq!(send(&mut q), Some((0, 10..17)));
        assert_eq!(send(&mut q), Some((0, 17..20)));
        assert_eq!(send(&mut q), Some((1, 40..42)));
    }

    #[test]
    fn reads_and_writes_go_in_turn_whatever_their_deadlines() {
        // Blocks of 10, limits of 7: 0..10 is two blocks.
        let mut q = queue(&[(Kind::Read, 0..20, 1), (Kind::Write, 40..60, 2)]);
        assert_eq!(send(&mut q), Some((0, 0..7)));
        assert_eq!(send(&mut q), Some((1, 40..47)));
        assert_eq!(send(&mut q), Some((0, 7..10)));
        assert_eq!(send(&mut q), Some((1, 47..50)));
        // A write ended: the writes are behind.
        assert!(q.done(1, Ok(())).is_none());
        assert_eq!(send(&mut q), Some((1, 50..57)));
        assert_eq!(send(&mut q), Some((0, 10..17)));
        assert_eq!(q.in_flight, [3, 2]);
    }

    #[test]
    fn conflicts_keep_their_order_and_lend_their_urgency() {
        let mut q = queue(&[
            (Kind::Read, 50..55, 3), // 0: unrelated
            (Kind::Write, 0..5, 9),  // 1
            (Kind::Read, 4..6, 8),   // 2 waits for 1
            (Kind::Write, 5..7, 1),  // 3 waits for 2, so 1 and 2 are urgent
            (Kind::Read, 4..5, 7),   // 4 waits for 1, not for 2
        ]);
        assert_eq!(send(&mut q), Some((1, 0..5)));
        assert_eq!(send(&mut q), Some((0, 50..55)));
        assert_eq!(send(&mut q), None);
        assert!(q.done(1, Ok(())).is_some());
        assert_eq!(send(&mut q), Some((2, 4..6)));
        assert_eq!(send(&mut q), Some((4, 4..5)));
        assert_eq!(
            send(&mut q),
            None,
            "a write overtook a read of the same bytes"
        );
        assert!(q.done(2, Ok(())).is_some());
        assert_eq!(send(&mut q), Some((3, 5..7)));
    }

    #[test]
    fn a_failed_job_ends_early_and_frees_those_that_wait() {
        let mut q = queue(&[(Kind::Write, 0..20, 0), (Kind::Read, 0..5, 0)]);
        assert_eq!(send(&mut q), Some((0, 0..7)));
        assert_eq!(send(&mut q), Some((0, 7..10)));
        assert!(q.done(0, Err(TierError::Stopped)).is_none());
        assert_eq!(send(&mut q), None, "the rest of a failed job was sent");
        let (_, result) = q.done(0, Ok(())).expect("nothing is in flight");
        assert_eq!(result, Err(TierError::Stopped));
        assert_eq!(send(&mut q), Some((1, 0..5)));
    }
}
