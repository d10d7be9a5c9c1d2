//! The ranks of one group that are in this process, and the thread that looks after them: calls of NCCL wait for peers
//! and have no limit, and what goes wrong beside them is known only to who asks.
//!
//! One file because the thread looks at what the calls leave behind.

use std::ffi::{c_char, c_int, c_void};
use std::ops::Deref;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::links::Links;
use super::{BYTES, Handle, ID, IN_PROGRESS, Id, Nccl, SUCCESS, Status};
use crate::comm::{Collective, CommError, Party, Pattern, World};
use crate::cuda::CudaError;

/// How often the ranks of a process are looked after.
const LOOK: Duration = Duration::from_millis(50);
/// How long a stream is asked without a pause: what is measured is about as short.
const SPIN: Duration = Duration::from_millis(20);
/// How long to wait then before it is asked again.
const PAUSE: Duration = Duration::from_micros(50);
/// How long a stream may take to end what an abort has freed.
const FREED: Duration = Duration::from_secs(20);

/// What the ranks of a group share that are in this process.
pub(super) struct Group {
    lib: &'static Nccl,
    /// How many ranks there are, wherever.
    pub size: usize,
    /// The first rank that is in this process.
    pub first: usize,
    /// The library's handle of each rank of this process.
    links: Links<c_void>,
    /// Where each of them is.
    at: Vec<Mutex<At>>,
    /// Set before the first link is cut.
    stopped: Mutex<Option<CommError>>,
    /// Where others are in processes of their own: what is heard of them, in place of the above.
    party: Option<Arc<Party>>,
    /// How long a call, or a stream, may wait for a peer.
    limit: Duration,
}

/// Where a rank is among its collectives.
#[derive(Default)]
struct At {
    /// How many it has begun.
    begun: u64,
    /// The last of them.
    what: String,
    /// How long the call that gives it was seen to last; none: it has returned.
    lasts: Option<Duration>,
}

/// A group with the thread that looks after it. Ends both.
pub(super) struct Guarded {
    group: Arc<Group>,
    /// The thread ends with it.
    end: Option<Sender<()>>,
    guard: Option<JoinHandle<()>>,
}

impl Deref for Guarded {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call on a thread of its own has given; none when it has not returned at the limit, or `ended` says that
/// nobody waits for it any more. The thread is left then: a call of NCCL that makes a handle cannot be broken off
/// before it has made one, and what it gives later is nobody's.
fn within<T: Send + 'static>(
    limit: Duration,
    ended: impl Fn() -> bool,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, CudaError> {
    let (end, hears) = mpsc::channel();
    let run = move || {
        // Nobody hears it when it was left.
        let _ = end.send(call());
    };
    let thread = std::thread::Builder::new().name("nccl".to_owned());
    thread.spawn(run).map_err(no_thread)?;
    // Counted by looks, as what was seen of a call.
    let mut waited = Duration::ZERO;
    loop {
        match hears.recv_timeout(LOOK) {
            Ok(done) => return Ok(Some(done)),
            Err(RecvTimeoutError::Timeout) if waited < limit && !ended() => waited += LOOK,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => panic!("the thread that calls NCCL"),
        }
    }
}

fn no_thread(e: std::io::Error) -> CudaError {
    CudaError::Call {
        call: "a thread for NCCL",
        what: e.to_string(),
    }
}

impl Guarded {
    /// A group of these devices of this process, a rank each.
    ///
    /// # Errors
    /// When the library cannot connect them, or does not within the limit.
    pub fn of_devices(
        lib: &'static Nccl,
        devices: Vec<c_int>,
        limit: Duration,
    ) -> Result<Self, CommError> {
        let size = devices.len();
        let connect = move || {
            let mut comms: Vec<Handle> = vec![std::ptr::null_mut(); size];
            // SAFETY: writes as many handles as there are devices.
            let status = unsafe {
                (lib.ncclCommInitAll)(comms.as_mut_ptr(), size as c_int, devices.as_ptr())
            };
            lib.ok("ncclCommInitAll", status)?;
            Ok::<_, CudaError>(exposed(comms))
        };
        let comms = match within(limit, || false, connect)? {
            Some(comms) => handles(comms?),
            None => {
                return Err(CommError::Unconnected {
                    rank: 0,
                    size,
                    seconds: limit.as_secs(),
                });
            }
        };
        Self::new(lib, World { rank: 0, size }, comms, limit, None)
    }

    /// This process's rank of a group whose others are processes of their own. `bind` makes its device the thread's.
    ///
    /// # Errors
    /// When the library cannot connect them, or does not within the party's time, which the others hear; when one of
    /// them has ended before.
    pub fn of_process(
        lib: &'static Nccl,
        party: &Arc<Party>,
        bind: impl FnOnce() -> Result<(), CudaError> + Send + 'static,
    ) -> Result<Self, CommError> {
        let World { rank, size } = party.world();
        let limit = party.patience();
        let Ok(id) = <[u8; ID]>::try_from(party.word()) else {
            return Err(CommError::Cuda(CudaError::Call {
                call: "ncclCommInitRank",
                what: "rank 0 has not said where GPUs meet".to_owned(),
            }));
        };
        let id = Id(id.map(|byte| byte as c_char));
        let connect = move || {
            bind()?;
            let mut comm = std::ptr::null_mut();
            // SAFETY: writes one handle; the id is passed as NVIDIA's header has it, by value.
            lib.ok("ncclCommInitRank", unsafe {
                (lib.ncclCommInitRank)(&raw mut comm, size as c_int, id, rank as c_int)
            })?;
            Ok::<_, CudaError>(exposed(vec![comm]))
        };
        // A thread that is left is no loss: this process ends, too.
        let comms = match within(limit, || party.ended().is_some(), connect)? {
            Some(comms) => handles(comms?),
            None => {
                let seconds = limit.as_secs();
                let late = CommError::Unconnected {
                    rank,
                    size,
                    seconds,
                };
                return Err(party.fail(late));
            }
        };
        let guarded = Self::new(lib, party.world(), comms, limit, Some(Arc::clone(party)))?;
        let weak = Arc::downgrade(&guarded.group);
        party.at_end(move || {
            if let Some(group) = weak.upgrade() {
                group.abort();
            }
        });
        Ok(guarded)
    }

    fn new(
        lib: &'static Nccl,
        World { rank, size }: World,
        comms: Vec<Handle>,
        limit: Duration,
        party: Option<Arc<Party>>,
    ) -> Result<Self, CommError> {
        let group = Arc::new(Group {
            lib,
            size,
            first: rank,
            at: comms.iter().map(|_| Mutex::default()).collect(),
            links: Links::new(comms),
            stopped: Mutex::default(),
            party,
            limit,
        });
        let (end, ends) = mpsc::channel::<()>();
        let watched = Arc::clone(&group);
        let watch = move || {
            while ends.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) && watched.look() {}
        };
        let thread = std::thread::Builder::new().name("nccl-guard".to_owned());
        let mut guarded = Self {
            group,
            end: Some(end),
            guard: None,
        };
        guarded.guard = Some(thread.spawn(watch).map_err(no_thread)?);
        Ok(guarded)
    }
}

/// Handles as numbers, for another thread.
fn exposed(comms: Vec<Handle>) -> Vec<usize> {
    let comms = comms.into_iter();
    comms.map(|comm| comm.expose_provenance()).collect()
}

/// What [`exposed`] has made of them, as handles.
fn handles(comms: Vec<usize>) -> Vec<Handle> {
    let comms = comms.into_iter();
    comms.map(std::ptr::with_exposed_provenance_mut).collect()
}

impl Group {
    /// Why it makes no collectives any more.
    fn end(&self) -> CommError {
        self.stopped().unwrap_or(CommError::Stopped {
            rank: 0,
            why: "the group has ended".to_owned(),
        })
    }

    /// Why no rank of it makes collectives any more, if one has said so.
    pub fn stopped(&self) -> Option<CommError> {
        match &self.party {
            None => lock(&self.stopped).clone(),
            Some(party) => party.ended(),
        }
    }

    /// A rank of this process makes no collectives any more.
    pub fn stop(&self, rank: usize, why: &str) {
        match &self.party {
            // Tells the others, and aborts here.
            Some(party) => party.stop(why),
            None => {
                let why = why.to_owned();
                lock(&self.stopped).get_or_insert(CommError::Stopped { rank, why });
                self.abort();
            }
        }
    }

    /// Ends the group with an error that is no rank's own. What it has ended with.
    fn fail(&self, error: CommError) -> CommError {
        match &self.party {
            Some(party) => party.fail(error),
            None => {
                let first = lock(&self.stopped).get_or_insert(error).clone();
                self.abort();
                first
            }
        }
    }

    /// Ends all that waits for a peer.
    fn abort(&self) {
        self.links.cut(|comms| {
            // SAFETY: our own handles, taken: nobody begins a call with them again or looks at them, and a call that is
            // under way waits for a peer, which is what an abort ends. So do kernels that wait for one. In a group,
            // because an end may wait for the others'.
            unsafe {
                let _ = (self.lib.ncclGroupStart)();
                for comm in comms {
                    let _ = (self.lib.ncclCommAbort)(comm);
                }
                let _ = (self.lib.ncclGroupEnd)();
            }
        });
    }

    /// What has become of a rank's handle beside its calls; none when it was taken.
    fn status(&self, link: usize) -> Option<Status> {
        self.links.look(link, |comm| {
            let mut status = SUCCESS;
            // SAFETY: our own handle, which nobody ends while it is looked at (`Links::look`). Writes one number. This
            // call is made to be made beside others: it reads what they note.
            let asked = unsafe { (self.lib.ncclCommGetAsyncError)(comm, &raw mut status) };
            match asked {
                SUCCESS => status,
                failed => failed,
            }
        })
    }

    /// Looks after the ranks of this process, and ends the group where one of them cannot go on. Whether it goes on.
    fn look(&self) -> bool {
        for link in 0..self.at.len() {
            let error = match self.status(link) {
                None => return false,
                Some(SUCCESS | IN_PROGRESS) if !self.is_late(link) => continue,
                Some(SUCCESS | IN_PROGRESS) => self.late(link),
                Some(status) => CommError::Library {
                    rank: self.first + link,
                    what: self.lib.text(status),
                },
            };
            self.fail(error);
            return false;
        }
        true
    }

    /// Whether a rank's call lasts too long. Counted by looks: what this process was stopped for is no time in which a
    /// peer did not come.
    fn is_late(&self, link: usize) -> bool {
        let mut at = lock(&self.at[link]);
        let Some(lasts) = &mut at.lasts else {
            return false;
        };
        *lasts += LOOK;
        *lasts >= self.limit
    }

    /// What a rank has waited for that waits too long. Of the ranks of this process it is known how far each one is.
    fn late(&self, link: usize) -> CommError {
        let (begun, collective) = {
            let at = lock(&self.at[link]);
            (at.begun, at.what.clone())
        };
        let number = begun.saturating_sub(1);
        let seconds = self.limit.as_secs();
        match (0..self.at.len()).find(|&other| lock(&self.at[other]).begun < begun) {
            Some(behind) => CommError::Missing {
                rank: self.first + behind,
                number,
                collective,
                seconds,
            },
            None => CommError::Unended {
                rank: self.first + link,
                number,
                collective,
                seconds,
            },
        }
    }

    /// Gives a rank's next collective to a stream.
    ///
    /// # Errors
    /// The library's; why the group has ended.
    ///
    /// # Safety
    /// The addresses are of the rank's device, and their ranges stay as
    /// [`Comm::exchange`](crate::comm::Comm::exchange) has it.
    pub unsafe fn exchange(
        &self,
        link: usize,
        collective: Collective<'_>,
        places: (u64, u64, usize),
        stream: *mut c_void,
    ) -> Result<(), CommError> {
        {
            let mut at = lock(&self.at[link]);
            at.begun += 1;
            at.what = format!("the {} of {}", collective.pattern, collective.name);
            at.lasts = Some(Duration::ZERO);
        }
        let given = self.links.with(link, |comm| {
            // SAFETY: the caller's promise; the handle is nobody else's now.
            unsafe { self.give(comm, collective, places, stream) }
        });
        lock(&self.at[link]).lasts = None;
        // A call that was freed by a cut may say anything.
        match (given, self.stopped()) {
            (Some(given), None) => Ok(given?),
            (_, Some(error)) => Err(error),
            (None, None) => Err(self.end()),
        }
    }

    /// Gives a collective to a stream.
    ///
    /// # Safety
    /// As [`Self::exchange`], with the rank's handle.
    unsafe fn give(
        &self,
        comm: Handle,
        of: Collective<'_>,
        (from, to, row): (u64, u64, usize),
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let lib = self.lib;
        let at = |base: u64, offset: usize| (base + offset as u64) as *mut c_void;
        // SAFETY: no arguments.
        lib.ok("ncclGroupStart", unsafe { (lib.ncclGroupStart)() })?;
        let mut given = Ok(());
        for s in of.stretches {
            let mut call = |name, status| {
                if given.is_ok() {
                    given = lib.ok(name, status);
                }
            };
            // SAFETY: every stretch lies inside the ranges (`Collective::fits`), which stay (caller).
            unsafe {
                if of.pattern == Pattern::AllGather {
                    let (from, to) = (at(from, s.part), at(to, s.whole));
                    let status = (lib.ncclAllGather)(from, to, s.bytes, BYTES, comm, stream);
                    call("ncclAllGather", status);
                    continue;
                }
                for peer in 0..self.size {
                    let from = at(from, s.whole + peer * s.bytes);
                    let to = at(to, peer * row + s.part);
                    let p = peer as c_int;
                    let status = (lib.ncclSend)(from, s.bytes, BYTES, p, comm, stream);
                    call("ncclSend", status);
                    let status = (lib.ncclRecv)(to, s.bytes, BYTES, p, comm, stream);
                    call("ncclRecv", status);
                }
            }
        }
        // SAFETY: no arguments. Also behind a call that was refused: a group is closed.
        let closed = lib.ok("ncclGroupEnd", unsafe { (lib.ncclGroupEnd)() });
        given.and(closed)
    }

    /// Waits for a stream with a rank's collectives, which says whether it is done.
    ///
    /// # Errors
    /// The stream's; why the group has ended, now or before: what was exchanged may then be anything.
    pub fn wait(
        &self,
        link: usize,
        mut is_done: impl FnMut() -> Result<bool, CudaError>,
    ) -> Result<(), CommError> {
        if ends_within(self.limit, &mut is_done, || self.stopped().is_some())? {
            return self.stopped().map_or(Ok(()), Err);
        }
        let error = self.stopped().unwrap_or_else(|| self.fail(self.late(link)));
        let aborted = Instant::now();
        while aborted.elapsed() < FREED && !is_done()? {
            std::thread::sleep(PAUSE);
        }
        Err(error)
    }
}

/// Waits until a stream is done; false where that takes longer than the limit, or the group has `ended` before.
pub(in crate::cuda) fn ends_within(
    limit: Duration,
    mut is_done: impl FnMut() -> Result<bool, CudaError>,
    ended: impl Fn() -> bool,
) -> Result<bool, CudaError> {
    let (mut last, mut waited) = (Instant::now(), Duration::ZERO);
    while !is_done()? {
        // Not what this process was stopped for.
        waited += last.elapsed().min(LOOK);
        last = Instant::now();
        if waited < SPIN {
            std::hint::spin_loop();
        } else if waited < limit && !ended() {
            std::thread::sleep(PAUSE);
        } else {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(guard) = self.guard.take() {
            // It catches nothing and has nothing to say.
            let _ = guard.join();
        }
        let group = &self.group;
        // An end waits for the ranks of other processes, which have ended or never come to theirs.
        if group.party.is_some() && (group.stopped().is_some() || std::thread::panicking()) {
            return group.abort();
        }
        let lib = group.lib;
        group.links.cut(|comms| {
            let comms = exposed(comms);
            // SAFETY: our own handles, taken. Whoever gave collectives has waited for their streams. In a group, as
            // above.
            let destroy = move || unsafe {
                let _ = (lib.ncclGroupStart)();
                for comm in handles(comms) {
                    let _ = (lib.ncclCommDestroy)(comm);
                }
                let _ = (lib.ncclGroupEnd)();
            };
            // One that does not end is left: nothing hangs on it.
            let _ = within(group.limit, || group.stopped().is_some(), destroy);
        });
    }
}
