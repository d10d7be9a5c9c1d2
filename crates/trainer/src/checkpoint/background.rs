//! A checkpoint that is written while steps go on.
//!
//! Threads copy the state, piece by piece in the order in which steps update it, into windows of staging, and write
//! what they have copied. The update of a piece waits until the piece is copied ([`Snapshot`]), so until then all
//! threads that find a free window copy; with none free they write. How long steps wait is thus decided by how much
//! staging there is and by how fast the drive takes what does not fit there.
//!
//! Bound: as of a stopped save, less all that lies between two updates of a piece: a step.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_device::Memory;
use lowtide_device::cuda::Gpu;
use lowtide_executor::ExecError;
use lowtide_planner::{PieceId, Plan};
use lowtide_session::{HeldUp, Homes, NoSnapshot, Ready, Snapshot, can_hold};
use lowtide_tiers::{ALIGN, Arena, DirectFile, Fill};
use lowtide_units::Bytes;
use lowtide_workload::Workload;

use super::{Layout, STATE, Sums, WINDOW, joined, layout, read_part};
use crate::error::TrainError;
use crate::output::folder::Folder;

/// Windows that are needed at least: one is written while another is filled.
const LEAST: u64 = 2;
/// Threads that copy and write, at most: as many writes are in flight.
const THREADS: usize = 8;
/// How long a thread sleeps before it looks again whether a piece is ready.
const LOOK: Duration = Duration::from_millis(1);

/// Host memory that checkpoints in the background take, planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagingPlan {
    /// For what is copied and not written yet.
    pub windows: Bytes,
    /// Beside it, for what is read off drives.
    pub reading: Bytes,
    /// Whether a device copies into it.
    pub pinned: bool,
    /// Threads that copy and write.
    pub threads: usize,
}

/// Why a run stops while it writes a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stops {
    /// `checkpoint.background` is off.
    Asked,
    /// Its state cannot be read while steps go on.
    State(NoSnapshot),
    /// The host's budget leaves too little for staging.
    Room {
        /// What is needed at least.
        need: Bytes,
        /// What is left.
        left: Bytes,
    },
}

impl StagingPlan {
    /// Of a plan that leaves so much of the host's budget, beside lanes of so many threads: no more than the state
    /// takes.
    ///
    /// # Errors
    /// Why the run has to stop.
    pub fn of(plan: &Plan, w: &Workload, left: Bytes, lanes: usize) -> Result<Self, Stops> {
        can_hold(plan).map_err(Stops::State)?;
        // Two at least: one that copies is not to wait for one that writes.
        let threads = (lanes / 2).clamp(2, THREADS);
        let reading = lowtide_session::staging_of_reader(plan) * threads as u64;
        let jobs = layout(w).bytes().div_ceil(WINDOW) + plan.pieces.len() as u64;
        let fit = left.saturating_sub(reading).0 / WINDOW;
        if fit < LEAST {
            return Err(Stops::Room {
                need: Bytes(LEAST * WINDOW) + reading,
                left,
            });
        }
        Ok(Self {
            windows: Bytes(fit.min(jobs.max(LEAST)) * WINDOW),
            reading,
            pinned: lowtide_session::reads_device(plan),
            threads,
        })
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.windows + self.reading
    }

    /// Reserves the windows.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn reserve(&self, gpu: Option<&Gpu>) -> Result<Staging, TrainError> {
        let arena = Arena::new(self.windows, Fill::Zero)?;
        let memory = match gpu.filter(|_| self.pinned) {
            Some(gpu) => Memory::pinned(arena, gpu)?,
            None => Memory::new(arena),
        };
        Ok(Staging {
            memory,
            threads: self.threads,
        })
    }
}

/// Where what is copied waits until it is written.
#[derive(Debug)]
pub struct Staging {
    memory: Memory,
    threads: usize,
}

/// What takes the bytes of a state file. Files, and in tests slow ones.
pub trait Sink: Sync + Send {
    /// Takes bytes that lie at `at`.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// All that it took is on the drive when this returns.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;
}

impl Sink for DirectFile {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        Self::write(self, bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        Self::sync(self)
    }
}

/// Bytes of the state file that are copied and written in one.
#[derive(Clone, Debug)]
struct Job {
    piece: PieceId,
    range: Range<u64>,
}

/// Jobs of all pieces, in order. But for the first bytes of a piece, whose last ones are written with them otherwise,
/// they begin at units that pass the cache by.
fn jobs(layout: &Layout, snapshot: &Snapshot) -> Vec<Job> {
    let mut all = Vec::new();
    for &piece in snapshot.order() {
        let Range { mut start, end } = layout.range(&snapshot.params(piece));
        while start < end {
            let next = match start.is_multiple_of(ALIGN) {
                true => start + WINDOW,
                false => start.next_multiple_of(ALIGN),
            };
            let range = start..next.min(end);
            start = range.end;
            all.push(Job { piece, range });
        }
    }
    all
}

/// What the threads share.
struct Desk<'a, S> {
    /// The next job to copy.
    next: usize,
    /// Jobs of each piece that are not copied yet.
    left: Vec<usize>,
    free: Vec<&'a mut [u8]>,
    full: VecDeque<(Range<u64>, &'a mut [u8])>,
    /// Jobs that are written.
    written: usize,
    sums: Sums,
    file: Option<Arc<S>>,
    /// Somebody makes the file, or has.
    making: bool,
    error: Option<TrainError>,
}

/// One checkpoint's threads.
struct Crew<'a, S, M> {
    layout: &'a Layout,
    snapshot: &'a Snapshot,
    homes: &'a Homes<'a>,
    jobs: &'a [Job],
    /// Makes the file, of so many bytes, with its header.
    make: M,
    path: &'a Path,
    stop: &'a AtomicBool,
    desk: Mutex<Desk<'a, S>>,
    changed: Condvar,
}

/// What a thread does next.
enum Turn<'a, S> {
    Make,
    Copy(Job, &'a mut [u8]),
    Write(Range<u64>, &'a mut [u8], Arc<S>),
}

impl<'a, S: Sink, M: Fn() -> io::Result<S>> Crew<'a, S, M> {
    fn lock(&self) -> MutexGuard<'_, Desk<'a, S>> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to do; `None`: nothing will be any more.
    fn turn(&self) -> Result<Option<Turn<'a, S>>, TrainError> {
        let mut desk = self.lock();
        loop {
            if desk.error.is_some() || desk.written == self.jobs.len() && desk.file.is_some() {
                return Ok(None);
            }
            if self.stop.load(Ordering::Acquire) {
                return Err(TrainError::Exec(ExecError::Stopped));
            }
            if !std::mem::replace(&mut desk.making, true) {
                return Ok(Some(Turn::Make));
            }
            if let Some(job) = self.jobs.get(desk.next)
                && !desk.free.is_empty()
            {
                match self.snapshot.ready(job.piece)? {
                    Ready::Yes => {
                        desk.next += 1;
                        let window = desk.free.pop().expect("one is free");
                        return Ok(Some(Turn::Copy(job.clone(), window)));
                    }
                    Ready::Never => return Err(TrainError::Exec(ExecError::Stopped)),
                    Ready::NotYet => {}
                }
            }
            if let Some(file) = desk.file.clone()
                && let Some((range, window)) = desk.full.pop_front()
            {
                return Ok(Some(Turn::Write(range, window, file)));
            }
            let woken = self.changed.wait_timeout(desk, LOOK);
            desk = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn fail(&self, e: TrainError) {
        self.lock().error.get_or_insert(e);
        self.changed.notify_all();
    }

    fn work(&self) {
        /// What a thread that panics has taken is never written: the others must not wait for it.
        struct Alive<F: Fn()>(F);
        impl<F: Fn()> Drop for Alive<F> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    (self.0)();
                }
            }
        }
        let _alive = Alive(|| self.fail(TrainError::Exec(ExecError::Stopped)));
        loop {
            let done = match self.turn() {
                Ok(None) => return,
                Ok(Some(turn)) => self.take(turn),
                Err(e) => Err(e),
            };
            match done {
                Ok(()) => self.changed.notify_all(),
                Err(e) => self.fail(e),
            }
        }
    }

    fn take(&self, turn: Turn<'a, S>) -> Result<(), TrainError> {
        match turn {
            Turn::Make => {
                let file = (self.make)().map_err(TrainError::io(self.path))?;
                self.lock().file = Some(Arc::new(file));
            }
            Turn::Copy(job, window) => {
                let range = &job.range;
                let out = &mut window[..(range.end - range.start) as usize];
                let mut done = 0;
                let mut sums = Sums::new();
                let w = self.snapshot.decoder().workload();
                for (p, spec, part) in self.layout.parts(range) {
                    let to = &mut out[done..][..(part.end - part.start) as usize];
                    done += to.len();
                    read_part((self.homes, w), p, &spec, part.clone(), to)?;
                    // While the bytes are in a core's cache.
                    sums.push((p, spec.role, part.start, crc32c::crc32c(to), to.len()));
                }
                let mut desk = self.lock();
                desk.sums.extend(sums);
                let left = &mut desk.left[job.piece.0 as usize];
                *left -= 1;
                let copied = *left == 0;
                desk.full.push_back((job.range, window));
                drop(desk);
                if copied {
                    self.snapshot.release(job.piece);
                }
            }
            Turn::Write(range, window, file) => {
                let bytes = &window[..(range.end - range.start) as usize];
                let written = file.write(bytes, range.start);
                written.map_err(TrainError::io(self.path))?;
                let mut desk = self.lock();
                desk.written += 1;
                desk.free.push(window);
            }
        }
        Ok(())
    }
}

/// Writes the state file of a snapshot, which is called `path`, to what `make` makes of its header and its length; its
/// arrays' checksums. Ends early where `stop` is set or the run fails before the state is complete.
///
/// # Errors
/// Those of the sink and of the disk that state is read from; that it ended early.
pub fn write_out<S: Sink>(
    snapshot: &Snapshot,
    staging: &mut Staging,
    path: &Path,
    make: impl Fn(&[u8], u64) -> io::Result<S> + Sync,
    stop: &AtomicBool,
) -> Result<BTreeMap<String, u32>, TrainError> {
    let w = snapshot.decoder().workload();
    let layout = layout(w);
    let jobs = jobs(&layout, snapshot);
    let homes = snapshot.homes()?;
    let mut left = vec![0usize; snapshot.order().len()];
    jobs.iter().for_each(|job| left[job.piece.0 as usize] += 1);
    for &piece in snapshot.order() {
        if left[piece.0 as usize] == 0 {
            snapshot.release(piece);
        }
    }
    let windows = staging.memory.all().write::<u8>();
    let crew = Crew {
        layout: &layout,
        snapshot,
        homes: &homes,
        jobs: &jobs,
        make: || make(&layout.header, layout.bytes()),
        path,
        stop,
        desk: Mutex::new(Desk {
            next: 0,
            left,
            free: windows.chunks_exact_mut(WINDOW as usize).collect(),
            full: VecDeque::new(),
            written: 0,
            sums: Sums::new(),
            file: None,
            making: false,
            error: None,
        }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 1..staging.threads {
            // One that cannot be started is not missed: this one does it all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || crew.work());
        }
        crew.work();
    });
    let desk = crew.desk.into_inner();
    let desk = desk.unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = desk.error {
        return Err(e);
    }
    let file = desk.file.expect("made before the last is written");
    file.sync().map_err(TrainError::io(path))?;
    Ok(joined(w, desk.sums))
}

/// The end of a writer: the staging and the folder, for the next one, and the checksums.
pub type Written = (Staging, Folder, Result<BTreeMap<String, u32>, TrainError>);

/// A checkpoint's state file while it is written.
#[derive(Debug)]
pub struct Writer {
    thread: Option<JoinHandle<Written>>,
    stop: Arc<AtomicBool>,
    held_up: HeldUp,
    since: Instant,
}

impl Writer {
    /// Begins to write the state file of a snapshot into a folder.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(
        snapshot: Snapshot,
        mut staging: Staging,
        folder: Folder,
    ) -> Result<Self, TrainError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (held_up, stopped) = (snapshot.held_up(), Arc::clone(&stop));
        let path = folder.at(STATE);
        let name = path.clone();
        let write = move || {
            // By the descriptor: the output directory may have been renamed since.
            let file = folder.reach().join(STATE);
            let make = |header: &[u8], bytes: u64| {
                let made = DirectFile::create(&file, bytes)?;
                made.write(header, 0)?;
                Ok(made)
            };
            let done = write_out(&snapshot, &mut staging, &path, make, &stopped);
            drop(snapshot);
            (staging, folder, done)
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned());
        Ok(Self {
            thread: Some(thread.spawn(write).map_err(TrainError::io(&name))?),
            stop,
            held_up,
            since: Instant::now(),
        })
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// How long steps waited for it so far.
    #[must_use]
    pub fn held_up(&self) -> Duration {
        self.held_up.time()
    }

    /// Whether the state is complete, or will be once what is submitted has run.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.held_up.is_under_way()
    }

    /// Ends it early: what it wrote is no checkpoint.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Since when it writes.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Waits until it has ended; how long steps waited for it, and what came of it. `None`: it has panicked, and with
    /// it went its staging.
    pub fn join(mut self) -> (Duration, Option<Written>) {
        let end = self.thread.take().and_then(|thread| thread.join().ok());
        (self.held_up.time(), end)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// For people: how a run writes checkpoints.
#[must_use]
pub fn describe(planned: &Result<StagingPlan, Stops>) -> String {
    let why = match planned {
        Ok(staging) => {
            return format!(
                "checkpoints are written while steps go on, through {} of host memory",
                staging.bytes()
            );
        }
        Err(Stops::Asked) => "checkpoint.background is false".to_owned(),
        Err(Stops::State(NoSnapshot::Ranks)) => "its state is on several GPUs".to_owned(),
        Err(Stops::State(NoSnapshot::Durable)) => "its state is durable".to_owned(),
        Err(Stops::Room { need, left }) => {
            format!("the host's budget leaves {left} of {need} that they would pass through")
        }
    };
    format!("the run stops while it writes a checkpoint: {why}")
}
