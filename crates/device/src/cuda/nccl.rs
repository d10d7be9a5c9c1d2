//! What several GPUs exchange, of this process or each of its own, by NCCL: it moves bytes and computes nothing.

mod group;

pub(super) use group::ends_within;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::group::Guarded;
use super::libraries::functions;
use super::{CudaError, Gpu, Queue as Stream};
use crate::Queue;
use crate::comm::{Collective, Comm, CommError, Party, World};
use crate::view::{Dst, Place, Src};

type Status = c_int;
type Handle = *mut c_void;

/// `ncclUint8`.
const BYTES: c_int = 1;
/// `ncclSuccess`.
const SUCCESS: Status = 0;
/// `ncclInProgress`: no error.
const IN_PROGRESS: Status = 7;
/// The oldest that is known to do: sends and receives in groups, from several threads.
const LEAST: c_int = 21_800;

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
        fn ncclGetLastError(comm: Handle) -> *const c_char;
        fn ncclCommGetAsyncError(comm: Handle, status: *mut Status) -> Status;
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
        let what = self.text(status);
        Err(CudaError::Call { call, what })
    }

    /// What the library says of a status, and the last thing that went wrong in it.
    fn text(&self, status: Status) -> String {
        // SAFETY: the library's own strings, ended by a zero, which live as long as it; a null pointer asks for the
        // last error of whichever communicator. The second one may be written while it is read: its last byte stays
        // zero, so what is read ends within it, and a text that is cut or mixed is all that can come of it.
        let (what, last) = unsafe {
            let what = CStr::from_ptr((self.ncclGetErrorString)(status));
            let last = CStr::from_ptr((self.ncclGetLastError)(std::ptr::null_mut()));
            (what.to_string_lossy(), last.to_string_lossy())
        };
        match last.trim() {
            "" => what.into_owned(),
            last => format!("{what}: {last}"),
        }
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
/// waits for it must call [`Comm::stop`] of any rank of the group before it waits for the device. Calls that wait on
/// the host, and [`Comm::wait`], have the group's limit; errors that the library finds beside its calls are asked for.
pub struct NcclComm {
    rank: usize,
    gpu: Gpu,
    group: Arc<Guarded>,
}

impl fmt::Debug for NcclComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NcclComm({} of {})", self.rank, self.group.size)
    }
}

impl NcclComm {
    /// A group of these GPUs, a rank each, in order, that wait for each other no longer than `limit`.
    ///
    /// # Errors
    /// When the library is missing, too old, or cannot connect them.
    pub fn group(gpus: &[Gpu], limit: Duration) -> Result<Vec<Self>, CommError> {
        let lib = Nccl::get()?;
        lib.suits()?;
        let devices = gpus.iter().map(|g| c_int::from(g.ordinal())).collect();
        let group = Arc::new(Guarded::of_devices(lib, devices, limit)?);
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
    /// When the library cannot connect them, or does not within the party's time, and when one of the others has ended
    /// before.
    pub(crate) fn of_process(gpu: &Gpu, party: &Arc<Party>) -> Result<Self, CommError> {
        let lib = Nccl::get()?;
        lib.suits()?;
        let on = gpu.clone();
        Ok(Self {
            rank: party.world().rank,
            gpu: gpu.clone(),
            group: Arc::new(Guarded::of_process(lib, party, move || on.bind())?),
        })
    }

    /// Which of the group's handles is this rank's.
    fn link(&self) -> usize {
        self.rank - self.group.first
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
        collective.lies_on(Place::Cuda(self.gpu.ordinal()), from, &to);
        let stream = queue.cuda().expect("a stream of the rank's GPU").stream();
        self.gpu.bind()?;
        let places = (from.address(), to.address(), to.bytes() / size);
        // SAFETY: the rank's own device (asserted); the caller's promise.
        unsafe { (self.group).exchange(self.link(), collective, places, stream.cast()) }
    }

    fn stop(&self, why: &str) {
        self.group.stop(self.rank, why);
    }

    fn stopped(&self) -> Option<CommError> {
        self.group.stopped()
    }

    fn by(&self) -> String {
        Self::version().map_or_else(|_| "NCCL".to_owned(), |version| format!("NCCL {version}"))
    }

    fn wait(&self, stream: &Stream) -> Result<(), CommError> {
        self.group.wait(self.link(), || stream.is_done())
    }
}

#[cfg(test)]
mod tests;
