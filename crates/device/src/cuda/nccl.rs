//! What several GPUs exchange, of this process or each of its own, by NCCL: it moves bytes and computes nothing.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::libraries::functions;
use super::links::Links;
use super::{CudaError, Gpu};
use crate::Queue;
use crate::comm::{Collective, Comm, CommError, Party, Pattern, World};
use crate::view::{Dst, Place, Src};

type Status = c_int;
type Handle = *mut c_void;

/// `ncclUint8`.
const BYTES: c_int = 1;
/// `ncclSuccess`.
const SUCCESS: Status = 0;
/// The oldest that is known to do: sends and receives in groups, from several threads.
const LEAST: c_int = 21_800;

/// How often it is looked whether the others are still there while NCCL connects them.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of `ncclUniqueId`.
const ID: usize = 128;

/// `ncclUniqueId`: where ranks of several processes meet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Id([c_char; ID]);

functions! {
    /// NCCL, and the functions of it that are called.
    Nccl {
        fn ncclGetVersion(version: *mut c_int) -> Status;
        fn ncclGetErrorString(status: Status) -> *const c_char;
        fn ncclCommInitAll(comms: *mut Handle, n: c_int, devices: *const c_int) -> Status;
        fn ncclGetUniqueId(id: *mut Id) -> Status;
        fn ncclCommInitRank(comm: *mut Handle, n: c_int, id: Id, rank: c_int) -> Status;
        fn ncclCommDestroy(comm: Handle) -> Status;
        fn ncclCommAbort(comm: Handle) -> Status;
        fn ncclGroupStart() -> Status;
        fn ncclGroupEnd() -> Status;
        fn ncclAllGather(
            from: *const c_void, to: *mut c_void, count: usize, of: c_int, comm: Handle, stream: *mut c_void,
        ) -> Status;
        fn ncclSend(
            from: *const c_void, count: usize, of: c_int, peer: c_int, comm: Handle, stream: *mut c_void,
        ) -> Status;
        fn ncclRecv(
            to: *mut c_void, count: usize, of: c_int, peer: c_int, comm: Handle, stream: *mut c_void,
        ) -> Status;
    }
}

impl Nccl {
    /// The library's answer as a result.
    fn ok(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: the library's own string, ended by a zero, which lives as long as the library.
        let text = unsafe { CStr::from_ptr((self.ncclGetErrorString)(status)) };
        Err(CudaError::Call {
            call,
            what: text.to_string_lossy().into_owned(),
        })
    }

    /// Refuses a version that lacks what is used.
    fn suits(&self) -> Result<(), CudaError> {
        let mut version = 0;
        // SAFETY: writes one number.
        self.ok("ncclGetVersion", unsafe {
            (self.ncclGetVersion)(&raw mut version)
        })?;
        match version < LEAST {
            false => Ok(()),
            true => Err(CudaError::BadLibrary {
                path: self.path.clone(),
                what: format!("NCCL {}; 2.18 or later is needed", dotted(version)),
            }),
        }
    }
}

/// A version's number as people write it.
fn dotted(version: c_int) -> String {
    format!(
        "{}.{}.{}",
        version / 10_000,
        version / 100 % 100,
        version % 100
    )
}

/// One GPU's way to the others of its group.
///
/// A collective is given to a stream and returns. One whose peer is missing runs until it is stopped: whoever
/// waits for it must call [`Comm::stop`] of any rank of the group before it waits for the device.
pub struct NcclComm {
    rank: usize,
    gpu: Gpu,
    group: Arc<Group>,
}

/// What the ranks of a group share that are in this process.
struct Group {
    lib: &'static Nccl,
    /// How many ranks there are, wherever.
    size: usize,
    /// The library's handle of each rank of this process.
    links: Links<c_void>,
    /// Set before the first link is cut.
    stopped: Mutex<Option<CommError>>,
    /// Where others are in processes of their own: what is heard of them, in place of the above.
    party: Option<Arc<Party>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for NcclComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NcclComm({} of {})", self.rank, self.group.size)
    }
}

impl NcclComm {
    /// A group of these GPUs, a rank each, in order.
    ///
    /// # Errors
    /// When the library is missing, too old, or cannot connect them.
    pub fn group(gpus: &[Gpu]) -> Result<Vec<Self>, CudaError> {
        let lib = Nccl::get()?;
        lib.suits()?;
        let devices: Vec<c_int> = gpus.iter().map(|g| c_int::from(g.ordinal())).collect();
        let mut comms = vec![std::ptr::null_mut(); gpus.len()];
        // SAFETY: writes as many handles as there are devices.
        lib.ok("ncclCommInitAll", unsafe {
            let n = devices.len() as c_int;
            (lib.ncclCommInitAll)(comms.as_mut_ptr(), n, devices.as_ptr())
        })?;
        let group = Arc::new(Group {
            lib,
            size: gpus.len(),
            links: Links::new(comms),
            stopped: Mutex::default(),
            party: None,
        });
        let rank = |(rank, gpu): (usize, &Gpu)| Self {
            rank,
            gpu: gpu.clone(),
            group: Arc::clone(&group),
        };
        Ok(gpus.iter().enumerate().map(rank).collect())
    }

    /// Where the GPUs of several processes meet: rank 0 makes it and tells the others, once for each group.
    ///
    /// # Errors
    /// As [`NcclComm::group`].
    pub fn id() -> Result<Vec<u8>, CudaError> {
        let lib = Nccl::get()?;
        lib.suits()?;
        let mut id = Id([0; ID]);
        // SAFETY: writes as many bytes as there are.
        lib.ok("ncclGetUniqueId", unsafe {
            (lib.ncclGetUniqueId)(&raw mut id)
        })?;
        Ok(id.0.map(|byte| byte as u8).to_vec())
    }

    /// This process's rank of a group whose others are processes of their own, which all call this at once. The party's
    /// [word](Party::word) is what [`NcclComm::id`] gave rank 0. Once for each party.
    ///
    /// Where one of them ends, so does whatever waits for it here: the party hears it.
    ///
    /// # Errors
    /// When the library cannot connect them, and when one of the others has ended before.
    pub(crate) fn of_process(gpu: &Gpu, party: &Arc<Party>) -> Result<Self, CommError> {
        let lib = Nccl::get()?;
        lib.suits()?;
        let World { rank, size } = party.world();
        let Ok(id) = <[u8; ID]>::try_from(party.word()) else {
            return Err(CommError::Cuda(CudaError::Call {
                call: "ncclCommInitRank",
                what: "rank 0 has not said where GPUs meet".to_owned(),
            }));
        };
        let id = Id(id.map(|byte| byte as c_char));
        // The call waits for all others and has no limit. Where one of them ends it is left: this process ends, too.
        let (end, hears) = mpsc::channel();
        let on = gpu.clone();
        let connect = move || {
            let mut comm = std::ptr::null_mut();
            let done = on.bind().and_then(|()| {
                // SAFETY: writes one handle; the id is passed as NVIDIA's header has it, by value.
                lib.ok("ncclCommInitRank", unsafe {
                    (lib.ncclCommInitRank)(&raw mut comm, size as c_int, id, rank as c_int)
                })
            });
            // Nobody hears it when the others have ended.
            let _ = end.send(done.map(|()| comm.expose_provenance()));
        };
        std::thread::spawn(connect);
        let comm = loop {
            match hears.recv_timeout(LOOK) {
                Ok(done) => break std::ptr::with_exposed_provenance_mut(done?),
                Err(RecvTimeoutError::Timeout) => match party.ended() {
                    None => {}
                    Some(error) => return Err(error),
                },
                Err(RecvTimeoutError::Disconnected) => panic!("the thread that connects GPUs"),
            }
        };
        let group = Arc::new(Group {
            lib,
            size,
            links: Links::new(vec![comm]),
            stopped: Mutex::default(),
            party: Some(Arc::clone(party)),
        });
        let weak = Arc::downgrade(&group);
        party.at_end(move || {
            if let Some(group) = weak.upgrade() {
                group.abort();
            }
        });
        Ok(Self {
            rank,
            gpu: gpu.clone(),
            group,
        })
    }

    /// Which of the group's handles is this rank's.
    fn link(&self) -> usize {
        match self.group.party {
            None => self.rank,
            Some(_) => 0,
        }
    }

    /// The library's version: `2.28.3`.
    ///
    /// # Errors
    /// As [`NcclComm::group`].
    pub fn version() -> Result<String, CudaError> {
        let lib = Nccl::get()?;
        let mut version = 0;
        // SAFETY: writes one number.
        lib.ok("ncclGetVersion", unsafe {
            (lib.ncclGetVersion)(&raw mut version)
        })?;
        Ok(dotted(version))
    }
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
    fn stopped(&self) -> Option<CommError> {
        match &self.party {
            None => lock(&self.stopped).clone(),
            Some(party) => party.ended(),
        }
    }

    /// Ends all that waits for a peer.
    fn abort(&self) {
        self.links.cut(|comms| {
            // SAFETY: our own handles, taken: nobody begins a call with them again, and one that is under way waits
            // for a peer, which is what an abort ends. So do kernels that wait for one. In a group, because an end
            // may wait for the others'.
            unsafe {
                let _ = (self.lib.ncclGroupStart)();
                for comm in comms {
                    let _ = (self.lib.ncclCommAbort)(comm);
                }
                let _ = (self.lib.ncclGroupEnd)();
            }
        });
    }

    /// Gives a collective to a stream.
    ///
    /// # Safety
    /// The addresses are of the rank's device, and their ranges stay as [`Comm::exchange`] has it.
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
}

impl Comm for NcclComm {
    fn world(&self) -> World {
        World {
            rank: self.rank,
            size: self.group.size,
        }
    }

    unsafe fn exchange(
        &self,
        queue: &Queue,
        collective: Collective<'_>,
        from: Src<'_>,
        to: Dst<'_>,
    ) -> Result<(), CommError> {
        let size = self.group.size;
        collective.fits(size, from, &to);
        let here = Place::Cuda(self.gpu.ordinal());
        assert!(
            from.place() == here && to.place() == here,
            "{} of {} from {:?} to {:?}",
            collective.pattern,
            collective.name,
            from.place(),
            to.place()
        );
        let stream = queue.cuda().expect("a stream of the rank's GPU").stream();
        self.gpu.bind()?;
        let places = (from.address(), to.address(), to.bytes() / size);
        let given = self.group.links.with(self.link(), |comm| {
            // SAFETY: the rank's own device (asserted); the caller's promise; the handle is nobody else's now.
            unsafe { self.group.give(comm, collective, places, stream.cast()) }
        });
        // A call that was freed by a cut may say anything.
        match (given, self.stopped()) {
            (Some(given), None) => Ok(given?),
            (_, Some(error)) => Err(error),
            (None, None) => Err(self.group.end()),
        }
    }

    fn stop(&self, why: &str) {
        match &self.group.party {
            // Tells the others, and aborts here.
            Some(party) => party.stop(why),
            None => {
                lock(&self.group.stopped).get_or_insert(CommError::Stopped {
                    rank: self.rank,
                    why: why.to_owned(),
                });
                self.group.abort();
            }
        }
    }

    fn stopped(&self) -> Option<CommError> {
        self.group.stopped()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An end waits for the ranks of other processes, which have ended or never come to theirs.
        if self.party.is_some() && (self.stopped().is_some() || std::thread::panicking()) {
            return self.abort();
        }
        let lib = self.lib;
        self.links.cut(|comms| {
            // SAFETY: our own handles, taken. Whoever gave collectives has waited for their streams. In a group, as
            // above.
            unsafe {
                let _ = (lib.ncclGroupStart)();
                for comm in comms {
                    let _ = (lib.ncclCommDestroy)(comm);
                }
                let _ = (lib.ncclGroupEnd)();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_written_as_people_do() {
        assert_eq!(dotted(22_803), "2.28.3");
        assert_eq!(dotted(LEAST), "2.18.0");
    }
}
