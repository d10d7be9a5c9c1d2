//! Blocks between a drive and memory that the processor does not reach: that of a device which the drives do.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::RawRange;
use crate::lane::{Io, Wake};
use crate::request::Kind;

/// More calls than this at once gain nothing with large blocks.
const THREADS_MAX: usize = 8;

/// One operation between a drive's file and a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceIo {
    /// Whether bytes are read or written.
    pub kind: Kind,
    /// Where in the device's memory, a multiple of [`crate::ALIGN`].
    pub address: u64,
    /// How many bytes, a multiple of [`crate::ALIGN`].
    pub bytes: usize,
    /// First byte in the file, a multiple of [`crate::ALIGN`].
    pub at: u64,
}

/// Moves bytes between the files of a disk's drives and the memory of a device, past the host's.
pub trait Reach: Send + Sync + fmt::Debug {
    /// Moves up to `io.bytes` bytes from or to the file of the drive of this number and tells how many, as `pread` and
    /// `pwrite` do. Blocks until they have moved. Called from several threads at once.
    ///
    /// # Safety
    /// The bytes of the device's memory are the request's: nobody writes them meanwhile, and during a read nobody reads
    /// them either.
    ///
    /// # Errors
    /// What the system says.
    unsafe fn run(&self, drive: usize, io: DeviceIo) -> io::Result<usize>;
}

/// The memory of a request.
#[derive(Clone)]
pub(crate) enum Memory {
    /// Of an arena.
    Host(RawRange),
    /// From an address of a device on, as long as the request's extent.
    Device(u64),
}

impl Memory {
    /// The address of a byte. No pointer to a device's memory is ever followed.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        match self {
            Self::Host(range) => range.as_ptr().wrapping_add(offset),
            Self::Device(address) => std::ptr::without_provenance_mut(*address as usize + offset),
        }
    }
}

/// A block that ended, and what the call said of it.
type Ended = (usize, io::Result<usize>);

/// Threads that make the calls of one drive.
pub(crate) struct Pool {
    /// `None` only while dropping: closing it ends the threads.
    work: Option<mpsc::Sender<(usize, Io)>>,
    ended: Arc<Mutex<Vec<Ended>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// As many threads as blocks of the drive are in flight, up to a few. Each end wakes the drive's lane.
    ///
    /// # Errors
    /// The system's where it has no more threads.
    pub(crate) fn new(
        drive: usize,
        reach: &Arc<dyn Reach>,
        depth: usize,
        wake: &Arc<dyn Wake>,
    ) -> io::Result<Self> {
        let (work, todo) = mpsc::channel::<(usize, Io)>();
        let todo = Arc::new(Mutex::new(todo));
        let ended: Arc<Mutex<Vec<Ended>>> = Arc::default();
        // Dropped with what it has if one cannot be made.
        let mut this = Self {
            work: Some(work),
            ended: Arc::clone(&ended),
            threads: Vec::new(),
        };
        for _ in 0..depth.min(THREADS_MAX) {
            let (reach, wake) = (Arc::clone(reach), Arc::clone(wake));
            let (todo, ended) = (Arc::clone(&todo), Arc::clone(&ended));
            let body = move || {
                loop {
                    let next = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((slot, io)) = next else { return };
                    let asked = DeviceIo {
                        kind: io.kind,
                        address: io.memory.addr() as u64,
                        bytes: io.bytes,
                        at: io.at,
                    };
                    // A block whose call panics has an end too: its ticket is waited for.
                    let result = catch_unwind(AssertUnwindSafe(|| {
                        // SAFETY: the arbiter has the request until its end is reported, and by the contract of
                        // `Disk::submit_device` nobody else uses its bytes.
                        unsafe { reach.run(drive, asked) }
                    }));
                    let result = result.unwrap_or_else(|_| Err(io::Error::other("it panicked")));
                    let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                    ended.push((slot, result));
                    drop(ended);
                    wake.wake();
                }
            };
            let thread = std::thread::Builder::new().name("lowtide-reach".to_owned());
            this.threads.push(thread.spawn(body)?);
        }
        Ok(this)
    }

    pub(crate) fn start(&self, slot: usize, io: Io) {
        let work = self.work.as_ref().expect("open until dropped");
        work.send((slot, io))
            .expect("the threads live as long as the pool");
    }

    /// Takes what has ended since.
    pub(crate) fn take(&self) -> Vec<Ended> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *ended)
    }
}

impl Drop for Pool {
    /// Waits until every call has ended: the device's memory is in use until then.
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lowtide_units::Bytes;

    use super::*;
    use crate::{Arena, DiskConfig, Extent, Fill, Request, TierError};
    use crate::{Disk, ProbeConfig, RamConfig, RamDisk, probe_device};

    /// A device whose memory is a map of pages, and whose calls move a part at first.
    #[derive(Debug, Default)]
    struct Pages {
        memory: Mutex<HashMap<u64, Vec<u8>>>,
        calls: Mutex<Vec<DeviceIo>>,
        files: Vec<std::fs::File>,
    }

    const PAGE: usize = 4096;

    impl Reach for Pages {
        unsafe fn run(&self, drive: usize, io: DeviceIo) -> io::Result<usize> {
            use std::os::unix::fs::FileExt;
            let mut calls = self.calls.lock().unwrap();
            calls.push(io);
            match calls.len() % 5 {
                0 => return Err(io::Error::from_raw_os_error(libc::EINTR)),
                1 if io.bytes > PAGE => {
                    let part = DeviceIo { bytes: PAGE, ..io };
                    drop(calls);
                    // SAFETY: a part of what is asked.
                    return unsafe { self.run(drive, part) };
                }
                _ => {}
            }
            let mut memory = self.memory.lock().unwrap();
            let at = |k: usize| (io.address + (k * PAGE) as u64, io.at + (k * PAGE) as u64);
            for k in 0..io.bytes / PAGE {
                let (page, at) = at(k);
                let bytes = memory.entry(page).or_insert_with(|| vec![0; PAGE]);
                match io.kind {
                    Kind::Read => self.files[drive].read_exact_at(bytes, at)?,
                    Kind::Write => self.files[drive].write_all_at(bytes, at)?,
                }
            }
            Ok(io.bytes)
        }
    }

    /// What a device writes the host reads, and the other way, over two drives, beside requests of the host and in
    /// the order of conflicting extents.
    #[test]
    fn a_device_and_the_host_see_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["a", "b"].map(|name| dir.path().join(name));
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
        }
        let mut config = DiskConfig::new(dirs.into_iter().zip([1.0, 2.0]));
        (config.block, config.stripe) = (Bytes(8 << 10), Bytes(8 << 10));
        let arena = Arena::new(Bytes(256 << 10), Fill::Zero).unwrap();
        let disk = Disk::open(&config.fit(Bytes(512 << 10)).unwrap(), Some(&arena)).unwrap();
        let (address, extent) = (7 << 20, 64 << 10);
        let extent = |n: u64| Extent {
            offset: n * extent,
            bytes: extent,
        };
        // SAFETY: one request at a time.
        let device = |kind, n| unsafe { disk.submit_device(kind, extent(n), address, 0) };
        assert_eq!(device(Kind::Read, 0).wait(), Err(TierError::NoReach));
        let open = |path: &std::path::Path| {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(true).open(path).unwrap()
        };
        let pages = Arc::new(Pages {
            files: disk.paths().map(open).collect(),
            ..Pages::default()
        });
        let (n, reach) = (extent(0).bytes as usize / PAGE, Arc::clone(&pages));
        disk.reach_by(reach).unwrap();
        for k in 0..n {
            let bytes: Vec<u8> = (0..PAGE).map(|i| (i * 7 + k * 13) as u8).collect();
            let page = address + (k * PAGE) as u64;
            pages.memory.lock().unwrap().insert(page, bytes);
        }
        let want = pages.memory.lock().unwrap().clone();
        let range = arena.range(0, extent(0).bytes).unwrap();
        let host = |kind, n| {
            let request = Request {
                kind,
                extent: extent(n),
                memory: range.clone(),
                deadline: 0,
            };
            // SAFETY: as above; each is waited for before the arena is looked at.
            unsafe { disk.submit(request) }
        };
        // The read waits for the write of its extent.
        let (written, read) = (device(Kind::Write, 3), host(Kind::Read, 3));
        assert_eq!((written.wait(), read.wait()), (Ok(()), Ok(())));
        host(Kind::Write, 5).wait().unwrap();
        pages.memory.lock().unwrap().clear();
        device(Kind::Read, 5).wait().unwrap();
        assert_eq!(*pages.memory.lock().unwrap(), want);
        let calls = pages.calls.lock().unwrap();
        assert!(calls.len() > 20 && calls.iter().any(|io| io.bytes > PAGE));
        drop(calls);
        let moved = disk.counters();
        assert_eq!(
            (moved.read, moved.written),
            (Bytes(128 << 10), Bytes(128 << 10))
        );
        // Misaligned, and outside.
        let wrong = |address, offset| {
            let extent = Extent {
                offset,
                bytes: 4096,
            };
            // SAFETY: it is refused.
            unsafe { disk.submit_device(Kind::Read, extent, address, 0) }.wait()
        };
        assert!(matches!(wrong(256, 0), Err(TierError::Misaligned { .. })));
        assert!(matches!(
            wrong(0, 1 << 30),
            Err(TierError::OutOfDisk { .. })
        ));
    }

    /// A drive is measured with a device's memory, in blocks that are nobody else's.
    #[test]
    fn a_drive_is_measured_with_a_devices_memory() {
        let dir = tempfile::tempdir().unwrap();
        let config = ProbeConfig {
            bytes: Bytes(512 << 10),
            time: std::time::Duration::from_millis(3),
            block: Bytes(16 << 10),
            depth: 2,
            ..ProbeConfig::default()
        };
        let (address, pages) = (3 << 20, std::cell::OnceCell::new());
        let reach = |disk: &Disk| {
            let open = |path: &std::path::Path| {
                let mut options = std::fs::OpenOptions::new();
                options.read(true).write(true).open(path).unwrap()
            };
            let reach = pages.get_or_init(|| {
                Arc::new(Pages {
                    files: disk.paths().map(open).collect(),
                    ..Pages::default()
                })
            });
            disk.reach_by(Arc::clone(reach) as Arc<dyn Reach>)
        };
        // SAFETY: that memory is the map's.
        let rates = unsafe { probe_device(dir.path(), &config, address, reach) }.unwrap();
        for rate in [rates.read, rates.write, rates.mixed] {
            assert!(rate.0 > 1e6 && rate.0 < 1e12, "{rates:?}");
        }
        let calls = pages.get().unwrap().calls.lock().unwrap();
        let kinds = [Kind::Read, Kind::Write].map(|k| calls.iter().any(|io| io.kind == k));
        assert_eq!(kinds, [true, true]);
        let all = address..address + config.memory().0;
        assert!(calls.iter().all(|io| all.contains(&io.address)));
        // Where the drives do not reach it, that is said.
        // SAFETY: as above.
        let refused = unsafe {
            probe_device(dir.path(), &config, address, |_| {
                Err::<(), _>(TierError::NoReach)
            })
        };
        assert_eq!(refused.unwrap_err(), TierError::NoReach);
    }

    /// Nobody waits forever for a call that panics.
    #[test]
    fn a_call_that_panics_fails_its_request() {
        #[derive(Debug)]
        struct Panics;
        impl Reach for Panics {
            unsafe fn run(&self, _: usize, _: DeviceIo) -> io::Result<usize> {
                panic!("planted");
            }
        }
        let (disk, _) = RamDisk::open(&RamConfig::new(Bytes(64 << 10))).unwrap();
        disk.reach_by(Arc::new(Panics)).unwrap();
        let extent = Extent {
            offset: 0,
            bytes: 4096,
        };
        for kind in [Kind::Read, Kind::Write] {
            // SAFETY: no memory is touched.
            let done = unsafe { disk.submit_device(kind, extent, 0, 0) }.wait();
            assert!(matches!(done, Err(TierError::Io { .. })), "{done:?}");
        }
    }

    /// The processor cannot check what it does not see.
    #[test]
    fn a_disk_that_verifies_its_reads_refuses_a_device() {
        let (disk, _) = RamDisk::open(&RamConfig {
            verify_reads: Some(Bytes(4096)),
            ..RamConfig::new(Bytes(64 << 10))
        })
        .unwrap();
        disk.reach_by(Arc::new(Pages::default())).unwrap();
        let extent = Extent {
            offset: 0,
            bytes: 4096,
        };
        // SAFETY: it is refused.
        let done = unsafe { disk.submit_device(Kind::Write, extent, 0, 0) }.wait();
        assert!(matches!(done, Err(TierError::Setting { .. })), "{done:?}");
    }
}
