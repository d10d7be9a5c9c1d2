//! One thread per drive that owns all I/O on it.
//!
//! Each turn it takes what was submitted, fills its slots with the most urgent blocks
//! ([`crate::queue`] decides), and sleeps until a block ends or something is submitted. A backend
//! only starts blocks and reports ends; what to do about short transfers, interruptions and
//! errors is decided here, once for all backends.
//!
//! One file because the thread, its inbox and its blocks are one state machine.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use lowtide_units::Bytes;

use crate::extent::Extent;
use crate::lane::{Io, Lane, Made, Wake};
use crate::queue::{Job, Queue};
use crate::reach::{Memory, Pool, Reach};
use crate::request::{Counters, Kind};
use crate::stripe::Stripe;
use crate::ticket::Part;
use crate::versions::Versions;
use crate::{ALIGN, Checksums, TierError};

/// How often in a row a block may be interrupted or move nothing before it counts as failed;
/// after the first few, with [`PAUSE`] between.
const IDLE_MAX: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);

/// What an arbiter needs to know of its drive.
pub(crate) struct Setup {
    pub(crate) drive: usize,
    pub(crate) stripe: Arc<Stripe>,
    pub(crate) path: PathBuf,
    /// Where in the file the drive's bytes begin.
    pub(crate) data: u64,
    pub(crate) block: u64,
    pub(crate) depth: usize,
    pub(crate) checksums: Option<Arc<Checksums>>,
    pub(crate) versions: Arc<OnceLock<Versions>>,
}

/// One drive's part of a request.
pub(crate) struct Piece {
    pub(crate) kind: Kind,
    /// The whole request's extent, of which `local` is this drive's part.
    pub(crate) extent: Extent,
    /// The whole request's memory, as long as `extent`.
    pub(crate) memory: Memory,
    pub(crate) deadline: u64,
    pub(crate) local: Range<u64>,
    pub(crate) part: Part,
}

impl Job for Piece {
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

/// The submitters' handle of an arbiter. Dropping it finishes what was submitted.
pub(crate) struct Arbiter {
    shared: Arc<Shared>,
    wake: Arc<dyn Wake>,
    drive: usize,
    depth: usize,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    inbox: Mutex<Inbox>,
    read: AtomicU64,
    written: AtomicU64,
}

#[derive(Default)]
struct Inbox {
    pieces: Vec<Piece>,
    /// For the thread to take, before the pieces that need it.
    pool: Option<Pool>,
    stop: bool,
    /// The thread is gone; what arrives now is dropped, which fails its tickets.
    closed: bool,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arbiter {
    /// Starts the thread, makes the lane on it (a ring belongs to one thread), and returns when
    /// that has worked or failed.
    pub(crate) fn spawn(
        setup: Setup,
        make: impl FnOnce() -> Result<Made, TierError> + Send + 'static,
    ) -> Result<(Self, String), TierError> {
        let shared = Arc::new(Shared {
            path: setup.path.clone(),
            inbox: Mutex::default(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        });
        let (drive, depth) = (setup.drive, setup.depth);
        let (answer, answers) = mpsc::channel();
        let closing = Closing(Arc::clone(&shared));
        let body = move || {
            let closing = closing;
            match make() {
                Ok((lane, wake, how)) => {
                    let _ = answer.send(Ok((wake, how)));
                    Loop::new(setup, Arc::clone(&closing.0), lane).run();
                }
                Err(error) => {
                    let _ = answer.send(Err(error));
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("lowtide-disk".to_owned())
            .spawn(body)
            .map_err(|e| TierError::file("starting a thread for", &shared.path, &e))?;
        let (wake, how) = answers.recv().unwrap_or(Err(TierError::Stopped))?;
        Ok((
            Self {
                shared,
                wake,
                drive,
                depth,
                thread: Some(thread),
            },
            how,
        ))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Threads by which the drive reaches a device's memory, to be [given](Arbiter::give) to it.
    pub(crate) fn pool(&self, reach: &Arc<dyn Reach>) -> Result<Pool, TierError> {
        let pool = Pool::new(self.drive, reach, self.depth, &self.wake);
        pool.map_err(|e| TierError::file("starting a thread for", self.path(), &e))
    }

    /// From now on the drive reaches a device's memory by these.
    pub(crate) fn give(&self, pool: Pool) {
        let mut inbox = self.shared.inbox();
        if !inbox.closed {
            inbox.pool = Some(pool);
        }
    }

    pub(crate) fn submit(&self, piece: Piece) {
        let mut inbox = self.shared.inbox();
        if !inbox.closed {
            inbox.pieces.push(piece);
        }
        drop(inbox);
        self.wake.wake();
    }

    pub(crate) fn stop(&self) {
        self.shared.inbox().stop = true;
        self.wake.wake();
    }

    pub(crate) fn counters(&self) -> Counters {
        let load = |n: &AtomicU64| Bytes(n.load(Ordering::Relaxed));
        Counters {
            read: load(&self.shared.read),
            written: load(&self.shared.written),
        }
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its hook, and its tickets have failed.
            let _ = thread.join();
        }
    }
}

/// Closes the inbox when the thread ends, also by a panic.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox();
        inbox.closed = true;
        let orphans = std::mem::take(&mut inbox.pieces);
        drop(inbox);
        drop(orphans);
    }
}

struct Loop {
    setup: Setup,
    shared: Arc<Shared>,
    // Dropped before the queue, also by a panic: dropping the lane waits until nothing is in flight, and only then
    // does the queue's drop fail the tickets. So no ticket fails while its memory is still in use.
    lane: Box<dyn Lane>,
    /// Set where the drive reaches a device's memory. Dropped before the queue as the lane is, and for the same reason.
    pool: Option<Pool>,
    queue: Queue<Piece>,
    slots: Vec<Option<Block>>,
    free: Vec<usize>,
}

/// A block in flight.
struct Block {
    seq: u64,
    io: Io,
    /// Its memory is a device's.
    direct: bool,
    /// Its first byte in the flat address space.
    flat: u64,
    /// Bytes of it that have moved: what is left is a multiple of [`ALIGN`].
    moved: usize,
    /// Attempts in a row that moved nothing.
    idle: u32,
}

impl Loop {
    fn new(setup: Setup, shared: Arc<Shared>, lane: Box<dyn Lane>) -> Self {
        let queue = Queue::new(setup.block);
        let slots = (0..setup.depth).map(|_| None).collect();
        let free = (0..setup.depth).rev().collect();
        Self {
            setup,
            shared,
            lane,
            pool: None,
            queue,
            slots,
            free,
        }
    }

    /// Sends a block on its way.
    fn start(&mut self, slot: usize, io: Io, direct: bool) {
        if !direct {
            return self.lane.start(slot, io);
        }
        let pool = self.pool.as_ref();
        pool.expect("asked for by `Disk::submit_device`")
            .start(slot, io);
    }

    fn run(mut self) {
        let mut ended = Vec::with_capacity(self.setup.depth);
        loop {
            let stop = {
                let mut inbox = self.shared.inbox();
                inbox
                    .pieces
                    .drain(..)
                    .for_each(|piece| self.queue.push(piece));
                if let Some(pool) = inbox.pool.take() {
                    self.pool = Some(pool);
                }
                inbox.stop
            };
            self.fill();
            if stop && self.queue.is_empty() {
                return;
            }
            self.lane.wait(&mut ended);
            if let Some(pool) = &self.pool {
                ended.append(&mut pool.take());
            }
            for (slot, result) in ended.drain(..) {
                self.step(slot, result);
            }
        }
    }

    /// Starts blocks while there are slots and something may go.
    fn fill(&mut self) {
        let (drive, data) = (self.setup.drive, self.setup.data);
        let stripe = Arc::clone(&self.setup.stripe);
        while let Some(&slot) = self.free.last() {
            let next = self.queue.next(|_, local| stripe.flat(drive, local).1);
            let Some((seq, piece, local)) = next else {
                return;
            };
            let (flat, _) = stripe.flat(drive, local.start);
            let memory = (flat - piece.extent.offset) as usize;
            let bytes = (local.end - local.start) as usize;
            assert!(
                memory + bytes <= piece.extent.bytes as usize,
                "a block outside its request"
            );
            piece.part.start();
            let direct = matches!(piece.memory, Memory::Device(_));
            let io = Io {
                kind: piece.kind,
                memory: piece.memory.at(memory),
                bytes,
                at: data + local.start,
            };
            // Of a version that is to be proven nothing comes from a device: a commit then finds that it was not
            // written whole.
            if io.kind == Kind::Write && !direct {
                // SAFETY: mapped while the piece lives; nobody writes it until it is done (`Disk::submit`).
                let bytes = unsafe { std::slice::from_raw_parts(io.memory, bytes) };
                if let Some(sums) = &self.setup.checksums {
                    sums.record(flat, bytes);
                }
                if let Some(versions) = self.setup.versions.get() {
                    versions.record(flat, bytes);
                }
            }
            self.free.pop();
            self.slots[slot] = Some(Block {
                seq,
                io,
                direct,
                flat,
                moved: 0,
                idle: 0,
            });
            self.start(slot, io, direct);
        }
    }

    /// Goes on with a block after the system has answered: again for the rest, or done.
    fn step(&mut self, slot: usize, answer: io::Result<usize>) {
        let block = self.slots[slot]
            .as_mut()
            .expect("a slot that ended was in flight");
        let left = block.io.bytes - block.moved;
        let before = block.moved;
        let error = match answer {
            Ok(n) if n >= left => return self.finish(slot, None),
            Ok(n) => {
                // Direct I/O continues at an aligned place only; a few bytes move twice.
                let align = ALIGN as usize;
                block.moved = (block.moved + n) / align * align;
                None
            }
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) if block.idle < IDLE_MAX => None,
                _ => Some(e),
            },
        };
        block.idle = if block.moved > before {
            0
        } else {
            block.idle + 1
        };
        if error.is_some() || block.idle > IDLE_MAX {
            let error = self.failed(slot, error.as_ref());
            return self.finish(slot, Some(error));
        }
        if block.idle > 16 {
            std::thread::sleep(PAUSE);
        }
        let io = Io {
            // `moved` is less than the block's bytes.
            memory: block.io.memory.wrapping_add(block.moved),
            bytes: block.io.bytes - block.moved,
            at: block.io.at + block.moved as u64,
            ..block.io
        };
        let direct = block.direct;
        self.start(slot, io, direct);
    }

    fn failed(&self, slot: usize, error: Option<&io::Error>) -> TierError {
        let block = self.slots[slot].as_ref().expect("in flight");
        let (moved, left) = (block.moved as u64, block.io.bytes - block.moved);
        let (action, path) = (block.io.kind.name(), self.setup.path.clone());
        let extent = Extent {
            offset: block.flat + moved,
            bytes: left as u64,
        };
        let offset = block.io.at + moved;
        match error {
            Some(e) => TierError::Io {
                action,
                extent,
                path,
                offset,
                os: e.into(),
            },
            None => TierError::Stalled {
                action,
                extent,
                path,
                offset,
            },
        }
    }

    /// Frees the slot, checks what was read, and ends the request's part with its last block.
    fn finish(&mut self, slot: usize, error: Option<TierError>) {
        let block = self.slots[slot].take().expect("in flight");
        self.free.push(slot);
        let result = match error {
            Some(error) => Err(error),
            None => self.verify(&block),
        };
        if result.is_ok() {
            let moved = match block.io.kind {
                Kind::Read => &self.shared.read,
                Kind::Write => &self.shared.written,
            };
            moved.fetch_add(block.io.bytes as u64, Ordering::Relaxed);
        }
        if let Some((piece, result)) = self.queue.done(block.seq, result) {
            piece.part.finish(result);
        }
    }

    fn verify(&self, block: &Block) -> Result<(), TierError> {
        let (Kind::Read, Some(sums)) = (block.io.kind, &self.setup.checksums) else {
            return Ok(());
        };
        // SAFETY: the block has been read whole, and nobody else writes there until the request is done
        // (`Disk::submit`), which the drive is with this block.
        let bytes = unsafe { std::slice::from_raw_parts(block.io.memory, block.io.bytes) };
        sums.differs(block.flat, bytes).map_or(Ok(()), |at| {
            Err(TierError::Corrupt {
                extent: Extent {
                    offset: at,
                    bytes: sums.unit().0,
                },
                path: self.setup.path.clone(),
                offset: block.io.at + (at - block.flat),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, Fill, Ticket};

    struct Broken;

    impl Lane for Broken {
        fn start(&mut self, _: usize, _: Io) {}
        fn wait(&mut self, _: &mut Vec<(usize, io::Result<usize>)>) {
            panic!("planted: this drive's thread dies");
        }
    }

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    #[test]
    fn tickets_of_a_dead_arbiter_fail() {
        let setup = Setup {
            drive: 0,
            stripe: Arc::new(Stripe::new(ALIGN, &[1.0])),
            path: PathBuf::from("dead"),
            data: 0,
            block: ALIGN,
            depth: 1,
            checksums: None,
            versions: Arc::default(),
        };
        let made = || {
            Ok((
                Box::new(Broken) as Box<dyn Lane>,
                Arc::new(Nobody) as _,
                String::new(),
            ))
        };
        let (arbiter, _) = Arbiter::spawn(setup, made).unwrap();
        let arena = Arena::new(Bytes(ALIGN), Fill::Zero).unwrap();
        for _ in 0..3 {
            let (ticket, mut parts) = Ticket::new(1);
            arbiter.submit(Piece {
                kind: Kind::Read,
                extent: Extent {
                    offset: 0,
                    bytes: ALIGN,
                },
                memory: Memory::Host(arena.range(0, ALIGN).unwrap()),
                deadline: 0,
                local: 0..ALIGN,
                part: parts.remove(0),
            });
            assert_eq!(ticket.wait(), Err(TierError::Stopped));
        }
    }
}
