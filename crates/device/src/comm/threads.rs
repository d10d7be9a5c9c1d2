//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Collective, Comm, CommError, World, described};
use crate::Queue;
use crate::view::{Dst, Src};

/// How long the others are waited for before it is looked how long that was.
const LOOK: Duration = Duration::from_millis(50);

/// Ranks that are threads of one process and exchange bytes of the host's memory.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    turn: Arc<Turn>,
}

/// Where a rank's bytes are while it waits for the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brought {
    /// Of the host's memory, or of the rank's device.
    pub address: usize,
    /// Bytes that lie there.
    pub bytes: usize,
}

impl Brought {
    /// # Safety
    /// The rank that brought them has not gone yet: it waits until all have taken what they need.
    unsafe fn read<'a>(self) -> &'a [u8] {
        // SAFETY: the rank holds a `Src` of these bytes of the host's memory, so nobody writes them; the caller.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes) }
    }
}

/// Where the threads of one collective wait for each other; the next one uses it again.
#[derive(Debug)]
pub(crate) struct Turn {
    here: Mutex<Here>,
    changed: Condvar,
    limit: Duration,
}

/// Who is at the next collective.
#[derive(Debug)]
struct Here {
    number: u64,
    /// By rank, what it makes and what it brought.
    ranks: Vec<Option<(String, Brought)>>,
    /// How many have taken what the others brought.
    gone: usize,
    failed: Option<CommError>,
}

impl Threads {
    /// So many ranks, in order. One that does not come within `limit` is an error of those that wait for it.
    #[must_use]
    pub fn group(ranks: usize, limit: Duration) -> Vec<Self> {
        let turn = Arc::new(Turn::new(ranks, limit));
        let of = |rank| Self {
            rank,
            turn: Arc::clone(&turn),
        };
        (0..ranks).map(of).collect()
    }
}

impl Turn {
    /// Of so many ranks, each of which is waited for as long as `limit`.
    pub fn new(ranks: usize, limit: Duration) -> Self {
        Self {
            here: Mutex::new(Here {
                number: 0,
                ranks: vec![None; ranks],
                gone: 0,
                failed: None,
            }),
            changed: Condvar::new(),
            limit,
        }
    }

    /// Rank `rank` makes no collectives any more: whoever waits for it gets an error.
    pub fn stop(&self, rank: usize, why: &str) {
        let why = why.to_owned();
        self.fail(self.lock(), CommError::Stopped { rank, why });
    }

    /// Nobody meets here any more, for this reason unless there is one already, which is returned.
    pub fn end(&self, error: CommError) -> CommError {
        self.fail(self.lock(), error)
    }

    /// How many collectives all ranks have left.
    pub fn number(&self) -> u64 {
        self.lock().number
    }

    /// Why nobody meets here any more, if so.
    pub fn stopped(&self) -> Option<CommError> {
        self.lock().failed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` says so, also where a rank has stopped meanwhile; says who is missing where it never does.
    fn until<'h>(
        &self,
        mut here: MutexGuard<'h, Here>,
        collective: &str,
        ready: impl Fn(&Here) -> bool,
    ) -> Result<MutexGuard<'h, Here>, CommError> {
        let mut waited = Duration::ZERO;
        while !ready(&here) {
            if let Some(error) = &here.failed {
                return Err(error.clone());
            }
            let left = self.limit.saturating_sub(waited);
            if left.is_zero() {
                let rank = here.ranks.iter().position(Option::is_none);
                let error = CommError::Missing {
                    rank: rank.unwrap_or(0),
                    number: here.number,
                    collective: collective.to_owned(),
                    seconds: self.limit.as_secs(),
                };
                return Err(self.fail(here, error));
            }
            let (begin, look) = (Instant::now(), LOOK.min(left));
            let changed = self.changed.wait_timeout(here, look);
            here = changed.unwrap_or_else(PoisonError::into_inner).0;
            // Not what this process was stopped for.
            waited += begin.elapsed().min(look);
        }
        Ok(here)
    }

    /// Records the first error and wakes all who wait, who then return it.
    fn fail(&self, mut here: MutexGuard<'_, Here>, error: CommError) -> CommError {
        let error = here.failed.get_or_insert(error).clone();
        drop(here);
        self.changed.notify_all();
        error
    }

    /// Brings bytes, and lets `take` have those of all ranks. When all are there none returns before all have taken
    /// what they need: nobody's bytes go while another one reads them. That wait needs no limit: taking is copying of
    /// the host's memory, or giving copies to a stream, and a rank that panics at it counts as gone, too.
    pub fn meet(
        &self,
        rank: usize,
        what: String,
        brought: Brought,
        take: impl FnOnce(&[Brought]),
    ) -> Result<(), CommError> {
        let mut here = self.lock();
        if let Some(error) = &here.failed {
            return Err(error.clone());
        }
        let others = here.ranks.iter().enumerate();
        let other = others.filter_map(|(r, at)| at.as_ref().map(|at| (r, &at.0)));
        if let Some((other, others)) = other.into_iter().find(|&(_, others)| *others != what) {
            let error = CommError::Differs {
                number: here.number,
                rank,
                collective: what,
                other,
                others: others.clone(),
            };
            return Err(self.fail(here, error));
        }
        here.ranks[rank] = Some((what.clone(), brought));
        self.changed.notify_all();
        let here = self.until(here, &what, |h| h.ranks.iter().all(Option::is_some))?;
        let all: Vec<Brought> = here.ranks.iter().flatten().map(|at| at.1).collect();
        let leaves = Leaves {
            turn: self,
            number: here.number,
            rank,
        };
        drop(here);
        take(&all);
        drop(leaves);
        match &self.lock().failed {
            // One panicked: the others' bytes are whole, but there is no next collective.
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// A rank that takes what the others brought. However that ends, it waits until all have: its own bytes may go then.
struct Leaves<'m> {
    turn: &'m Turn,
    number: u64,
    rank: usize,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        let mut here = self.turn.lock();
        if std::thread::panicking() {
            here.failed.get_or_insert(CommError::Stopped {
                rank: self.rank,
                why: "it panicked".to_owned(),
            });
        }
        here.gone += 1;
        if here.gone == here.ranks.len() {
            here.ranks.fill(None);
            here.gone = 0;
            here.number += 1;
            self.turn.changed.notify_all();
        }
        while here.number == self.number {
            let changed = &self.turn.changed;
            here = changed.wait(here).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Comm for Threads {
    fn world(&self) -> World {
        World {
            rank: self.rank,
            size: self.turn.lock().ranks.len(),
        }
    }

    unsafe fn exchange(
        &self,
        _: &Queue,
        collective: Collective<'_>,
        from: Src<'_>,
        to: Dst<'_>,
    ) -> Result<(), CommError> {
        let World { rank, size } = self.world();
        collective.fits(size, from, &to);
        let what = described(&collective, from.bytes());
        let row = to.bytes() / size;
        let to = to.write::<u8>();
        let own: &[u8] = from.read();
        let brought = Brought {
            address: own.as_ptr() as usize,
            bytes: own.len(),
        };
        self.turn.meet(rank, what, brought, |all| {
            for (r, theirs) in all.iter().enumerate() {
                // SAFETY: no rank returns before all have gone, and this one has not.
                let theirs = unsafe { theirs.read() };
                for s in collective.stretches {
                    let (at, from) = collective.places((rank, row), s, r);
                    to[at..][..s.bytes].copy_from_slice(&theirs[from..][..s.bytes]);
                }
            }
        })
    }

    fn stop(&self, why: &str) {
        self.turn.stop(self.rank, why);
    }

    fn stopped(&self) -> Option<CommError> {
        self.turn.stopped()
    }

    fn by(&self) -> String {
        "memory of the process".to_owned()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop("it has ended");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pattern, Stretch};
    use super::*;

    const STRETCHES: [Stretch; 2] = [
        Stretch {
            whole: 0,
            part: 0,
            bytes: 2,
        },
        Stretch {
            whole: 10,
            part: 4,
            bytes: 3,
        },
    ];

    /// Runs each rank on a thread of its own.
    fn each<T: Send>(ranks: Vec<Threads>, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
        let work = &work;
        std::thread::scope(|scope| {
            let run = |rank: Threads| {
                scope.spawn(move || {
                    let out = work(&rank);
                    (rank, out)
                })
            };
            let all: Vec<_> = ranks.into_iter().map(run).collect();
            let all: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
            all.into_iter().map(|(_, out)| out).collect()
        })
    }

    fn exchange(
        rank: &Threads,
        of: Collective<'_>,
        from: &[u8],
        to: &mut [u8],
    ) -> Option<CommError> {
        let queue = Queue::new("net", 1);
        // SAFETY: a CPU queue: it is done when it returns.
        unsafe { rank.exchange(&queue, of, Src::of(from), Dst::of(to)) }.err()
    }

    fn gather<'a>(name: &'a str, stretches: &'a [Stretch]) -> Collective<'a> {
        Collective {
            pattern: Pattern::AllGather,
            name,
            stretches,
        }
    }

    #[test]
    fn every_share_comes_to_its_place() {
        for n in [1, 2, 4] {
            let all = each(Threads::group(n, Duration::from_secs(10)), |rank| {
                let r = rank.world().rank as u8;
                let part: Vec<u8> = (0..7).map(|i| 100 + 10 * r + i).collect();
                let mut whole = vec![0u8; 10 + 3 * n];
                let of = gather("it", &STRETCHES);
                assert_eq!(exchange(rank, of, &part, &mut whole), None);
                let mut rows = vec![0u8; 7 * n];
                let back = Collective {
                    pattern: Pattern::AllToAll,
                    ..of
                };
                assert_eq!(exchange(rank, back, &whole, &mut rows), None);
                (part, whole, rows)
            });
            for (part, whole, rows) in &all {
                for r in 0..n {
                    assert_eq!(whole[2 * r..][..2], all[r].0[0..2]);
                    assert_eq!(whole[10 + 3 * r..][..3], all[r].0[4..7]);
                    // Everybody has the same whole, and sends me my own part.
                    assert_eq!(rows[7 * r..][..2], part[..2]);
                    assert_eq!(rows[7 * r + 4..][..3], part[4..]);
                }
            }
        }
    }

    #[test]
    fn a_rank_that_is_missing_is_named_with_the_collective() {
        let outcome = each(Threads::group(3, Duration::from_millis(200)), |rank| {
            let of = gather("weight x", &STRETCHES[..1]);
            (rank.world().rank != 1).then(|| exchange(rank, of, &[0; 2], &mut [0; 6]))
        });
        let text = outcome[0].clone().unwrap().unwrap().to_string();
        assert!(
            text.contains("rank 1") && text.contains("weight x"),
            "{text}"
        );
        assert_eq!(outcome[0], outcome[2]);
    }

    #[test]
    fn ranks_at_different_collectives_are_named() {
        let outcome = each(Threads::group(2, Duration::from_secs(10)), |rank| {
            let name = ["weight x", "weight y"][rank.world().rank];
            exchange(rank, gather(name, &STRETCHES[..1]), &[0; 2], &mut [0; 4])
        });
        let text = outcome[0].clone().unwrap().to_string();
        assert!(
            text.contains("weight x") && text.contains("weight y"),
            "{text}"
        );
        assert!(matches!(outcome[1], Some(CommError::Differs { .. })));
        // Of another size, too.
        let outcome = each(Threads::group(2, Duration::from_secs(10)), |rank| {
            let s = [Stretch {
                bytes: 1 + rank.world().rank,
                ..STRETCHES[0]
            }];
            exchange(rank, gather("it", &s), &[0; 2], &mut [0; 4])
        });
        assert!(
            matches!(outcome[0], Some(CommError::Differs { .. })),
            "{outcome:?}"
        );
    }

    #[test]
    fn ranks_that_place_the_same_bytes_differently_are_named() {
        let outcome = each(Threads::group(2, Duration::from_secs(10)), |rank| {
            let s = [Stretch {
                whole: 2 * rank.world().rank,
                ..STRETCHES[0]
            }];
            exchange(rank, gather("it", &s), &[0; 2], &mut [0; 6])
        });
        assert!(
            matches!(outcome[0], Some(CommError::Differs { .. })),
            "{outcome:?}"
        );
    }

    #[test]
    fn nobody_waits_for_a_rank_that_panics_while_it_takes() {
        let ranks = Threads::group(2, Duration::from_secs(100));
        let turn = Arc::clone(&ranks[0].turn);
        let (sender, ends) = std::sync::mpsc::channel();
        let meet = |rank: usize| {
            let (turn, sender) = (Arc::clone(&turn), sender.clone());
            std::thread::spawn(move || {
                let take = |_: &[Brought]| assert!(rank == 0, "its memory is gone");
                let brought = Brought {
                    address: 0,
                    bytes: 0,
                };
                let end = std::panic::AssertUnwindSafe(|| {
                    turn.meet(rank, "it".to_owned(), brought, take)
                });
                let end = std::panic::catch_unwind(end);
                let _ = sender.send((rank, end.ok()));
            })
        };
        let _threads = [meet(0), meet(1)];
        let limit = Duration::from_secs(20);
        let mut ends: Vec<_> = (0..2)
            .map(|_| ends.recv_timeout(limit).expect("nobody waits for ever"))
            .collect();
        ends.sort_by_key(|end| end.0);
        let outcome = ends[0].1.clone().expect("no panic").expect_err("rank 1's");
        assert!(
            matches!(outcome, CommError::Stopped { rank: 1, .. }),
            "{outcome}"
        );
        assert!(ends[1].1.is_none(), "it panicked");
        assert_eq!(ranks[0].stopped(), Some(outcome));
    }

    #[test]
    fn nobody_waits_for_a_rank_that_stopped() {
        let outcome = each(Threads::group(2, Duration::from_secs(100)), |rank| {
            if rank.world().rank == 1 {
                rank.stop("its disk is full");
                return None;
            }
            exchange(rank, gather("it", &STRETCHES[..1]), &[0; 2], &mut [0; 4])
        });
        let error = outcome[0].clone().unwrap();
        assert!(error.is_consequence());
        assert_eq!(error.to_string(), "rank 1 has stopped: its disk is full");
    }
}
