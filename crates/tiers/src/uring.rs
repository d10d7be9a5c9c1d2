//! A lane on io_uring: one ring per drive, made and used by the arbiter's thread alone.
//!
//! Its gain over threads is processor time, not bandwidth. Registered memory saves pinning the
//! pages of every block; where the limit on locked memory forbids it, blocks go unregistered.

use std::any::Any;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use crate::Arena;
use crate::lane::{Io, Lane, Made, Wake};
use crate::request::Kind;
use crate::state_file::StateFile;
use crate::threads::how_direct;

/// The kernel registers memory in pieces of at most 1 GiB; tests cross small ones.
const PIECE: usize = if cfg!(test) { 64 << 10 } else { 1 << 30 };
/// Marks the end of a poll of the event, not of a block.
const WAKE: u64 = u64::MAX;

pub(crate) struct Uring {
    // Dropped first, when nothing is in flight any more (`drop`). Closing a ring with blocks in flight
    // does not end them: the kernel cancels what it can, some time later.
    ring: IoUring,
    event: Arc<Event>,
    event_polled: bool,
    /// Blocks that were started and whose end was not taken yet.
    in_flight: usize,
    /// Registered under index 0.
    _file: Arc<dyn Any + Send + Sync>,
    registered: Option<Arena>,
}

impl Uring {
    /// A ring for `depth` blocks that has read from the file on trial, or why there is none.
    pub(crate) fn on_file(
        file: &Arc<StateFile>,
        depth: usize,
        host: Option<&Arena>,
    ) -> Result<Made, String> {
        let fail = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let ring = build(depth as u32 + 2).map_err(fail("io_uring refused"))?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(fail("io_uring too old"))?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::ReadFixed::CODE,
            opcode::WriteFixed::CODE,
            opcode::PollAdd::CODE,
        ];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err("io_uring too old: an operation is missing".to_owned());
        }
        ring.submitter()
            .register_files(&[file.fd()])
            .map_err(fail("registering the file"))?;
        let event = Arc::new(Event::new().map_err(fail("making an event"))?);
        let (registered, memory) = match host.map(|arena| (arena, register(&ring, arena))) {
            None => (None, "no registered memory".to_owned()),
            Some((arena, Ok(()))) => (Some(arena.clone()), "registered memory".to_owned()),
            Some((_, Err(e))) => {
                let limit = crate::limits::locked_memory();
                let limit = limit.map_or("none".to_owned(), |l| l.to_string());
                let why = format!("memory not registered ({e}; limit of locked memory: {limit})");
                (None, why)
            }
        };
        let _file: Arc<dyn Any + Send + Sync> = Arc::clone(file) as _;
        let mut lane = Self {
            ring,
            event,
            event_polled: false,
            in_flight: 0,
            _file,
            registered,
        };
        lane.trial().map_err(fail("io_uring fails to read"))?;
        let how = format!("io_uring, {memory}, {}", how_direct(file));
        let wake = Arc::clone(&lane.event);
        Ok((Box::new(lane), wake, how))
    }

    /// Reads the file's header: some sandboxes let a ring be made but not be used.
    fn trial(&mut self) -> io::Result<()> {
        let page = Arena::new(lowtide_units::Bytes(4096), crate::Fill::Zero)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.start(
            0,
            Io {
                kind: Kind::Read,
                memory: page.base(),
                bytes: 4096,
                at: 0,
            },
        );
        let mut ended = Vec::new();
        while ended.is_empty() {
            self.wait(&mut ended);
        }
        match ended.remove(0).1? {
            4096 => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The index of the registered piece that holds all of a block.
    fn piece(&self, io: &Io) -> Option<u16> {
        let arena = self.registered.as_ref()?;
        let start = (io.memory as usize).checked_sub(arena.base() as usize)?;
        let inside = start + io.bytes <= arena.bytes().usize();
        let whole = start / PIECE == (start + io.bytes - 1) / PIECE;
        (inside && whole).then_some((start / PIECE) as u16)
    }

    /// Submits what was pushed and sleeps until something has ended.
    fn enter(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(e) => match e.raw_os_error() {
                    // Interrupted, or short of resources until ends are taken: both pass.
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {
                        if !self.ring.completion().is_empty() {
                            return Ok(());
                        }
                    }
                    _ => return Err(e),
                },
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the memory of an entry is valid until its end is reported (`Io`), and the file
        // and the event live as long as the ring.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the ring has room for every slot and the event");
    }
}

impl Lane for Uring {
    fn start(&mut self, slot: usize, io: Io) {
        let (file, len) = (types::Fixed(0), io.bytes as u32);
        let entry = match (io.kind, self.piece(&io)) {
            (Kind::Read, Some(piece)) => opcode::ReadFixed::new(file, io.memory, len, piece)
                .offset(io.at)
                .build(),
            (Kind::Write, Some(piece)) => opcode::WriteFixed::new(file, io.memory, len, piece)
                .offset(io.at)
                .build(),
            (Kind::Read, None) => opcode::Read::new(file, io.memory, len)
                .offset(io.at)
                .build(),
            (Kind::Write, None) => opcode::Write::new(file, io.memory, len)
                .offset(io.at)
                .build(),
        };
        self.push(&entry.user_data(slot as u64));
        self.in_flight += 1;
    }

    fn wait(&mut self, ended: &mut Vec<(usize, io::Result<usize>)>) {
        if !self.event_polled {
            let poll = opcode::PollAdd::new(types::Fd(self.event.fd()), libc::POLLIN as u32);
            self.push(&poll.build().user_data(WAKE));
            self.event_polled = true;
        }
        if let Err(e) = self.enter() {
            panic!("io_uring_enter: {e}");
        }
        for end in self.ring.completion() {
            if end.user_data() == WAKE {
                // Cleared before the arbiter looks into its inbox, so that what is submitted
                // after that look wakes it again.
                self.event.clear();
                self.event_polled = false;
                continue;
            }
            let result = match end.result() {
                n if n >= 0 => Ok(n as usize),
                e => Err(io::Error::from_raw_os_error(-e)),
            };
            self.in_flight -= 1;
            ended.push((end.user_data() as usize, result));
        }
    }
}

impl Drop for Uring {
    /// Waits until the kernel is through with every block, well or badly: it writes to their memory until
    /// then.
    #[allow(
        clippy::print_stderr,
        reason = "the process ends here, and nobody else can tell why"
    )]
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if let Err(e) = self.enter() {
                // Memory that is written to at any time cannot be given back, nor can the process go on
                // with it.
                end(self.in_flight, e.raw_os_error().unwrap_or_default());
            }
            let ends = self.ring.completion().filter(|end| end.user_data() != WAKE);
            self.in_flight -= ends.count();
        }
    }
}

/// Ends the process with the reason: a panic that nothing can catch, because it may not unwind from here.
extern "C" fn end(in_flight: usize, errno: i32) {
    let e = io::Error::from_raw_os_error(errno);
    panic!(
        "io_uring cannot wait for {in_flight} blocks that are in flight ({e}): the process is ended, because the kernel \
         writes to their memory; what was saved is whole, and the same command goes on from it"
    );
}

/// The newest flags that this kernel takes.
fn build(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries)
        .or_else(|_| IoUring::builder().setup_coop_taskrun().build(entries))
        .or_else(|_| IoUring::new(entries))
}

fn register(ring: &IoUring, arena: &Arena) -> io::Result<()> {
    let (base, bytes) = (arena.base(), arena.bytes().usize());
    let pieces: Vec<libc::iovec> = (0..bytes)
        .step_by(PIECE)
        .map(|start| libc::iovec {
            // SAFETY: inside the arena.
            iov_base: unsafe { base.add(start) }.cast(),
            iov_len: PIECE.min(bytes - start),
        })
        .collect();
    // SAFETY: the lane holds the arena as long as the ring.
    unsafe { ring.submitter().register_buffers(&pieces) }
}

/// A counter that another thread can raise and the ring can wait for.
struct Event(OwnedFd);

impl Event {
    fn new() -> io::Result<Self> {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes of our own. Fails only when the count is zero already.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }
}

impl Wake for Event {
    fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of our own. Fails only when the count is full: raised already.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }
}

#[cfg(test)]
mod tests {
    use lowtide_units::Bytes;

    use super::*;
    use crate::{Backend, Disk, DiskConfig, Extent, Fill, Request};

    /// Blocks inside one registered piece, across two, and outside the registered arena.
    #[test]
    fn registered_and_other_memory_get_the_right_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = DiskConfig::new([(dir.path().to_owned(), 1.0)]);
        config.block = Bytes::KIB * 48;
        config.backend = Backend::Uring;
        let bytes = 1 << 20;
        let arena = || Arena::new(Bytes(bytes), Fill::Poison).unwrap();
        let (host, other) = (arena(), arena());
        let config = config.fit(Bytes(bytes)).unwrap();
        let disk = match Disk::open(&config, Some(&host)) {
            Ok(disk) => disk,
            Err(crate::TierError::Backend { reason, .. }) => {
                #[allow(clippy::print_stderr, reason = "a skipped test says so")]
                {
                    eprintln!("skipped: {reason}");
                }
                return;
            }
            Err(other) => panic!("{other}"),
        };
        let image: Vec<u8> = (0..bytes).map(|i| ((i * i) >> 7) as u8).collect();
        let run = |kind, arena: &Arena| {
            let (memory, extent) = (arena.range(0, bytes).unwrap(), Extent { offset: 0, bytes });
            let request = Request {
                kind,
                extent,
                memory,
                deadline: 0,
            };
            // SAFETY: it is waited for at once.
            unsafe { disk.submit(request) }.wait().unwrap();
        };
        for (from, to) in [(&host, &other), (&other, &host), (&host, &host)] {
            let (from_all, to_all) = (from.range(0, bytes).unwrap(), to.range(0, bytes).unwrap());
            // SAFETY: no request is unfinished where bytes are looked at or changed.
            unsafe {
                from_all.as_mut_slice().copy_from_slice(&image);
                run(Kind::Write, from);
                to_all.poison();
                run(Kind::Read, to);
                assert!(to_all.as_slice() == image, "{}", disk.describe());
            }
        }
    }

    /// A read of a pipe ends when somebody writes into it: until then the kernel has its memory.
    #[test]
    fn a_ring_is_closed_when_nothing_is_in_flight_any_more() {
        use std::io::Write;
        use std::sync::atomic::{AtomicBool, Ordering};

        let (reader, mut writer) = std::io::pipe().unwrap();
        let ring = build(4);
        let registered = ring.and_then(|ring| {
            let done = ring.submitter().register_files(&[reader.as_raw_fd()]);
            done.map(|()| ring)
        });
        let ring = match registered {
            Ok(ring) => ring,
            Err(e) => {
                #[allow(clippy::print_stderr, reason = "a skipped test says so")]
                {
                    eprintln!("skipped: {e}");
                }
                return;
            }
        };
        let mut lane = Uring {
            ring,
            event: Arc::new(Event::new().unwrap()),
            event_polled: false,
            in_flight: 0,
            _file: Arc::new(reader),
            registered: None,
        };
        let page = Arena::new(Bytes(4096), Fill::Zero).unwrap();
        lane.start(
            0,
            Io {
                kind: Kind::Read,
                memory: page.base(),
                bytes: 4096,
                at: u64::MAX, // no place: it is a pipe
            },
        );
        lane.ring.submit().unwrap();
        let written = Arc::new(AtomicBool::new(false));
        let late = Arc::clone(&written);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            late.store(true, Ordering::Release);
            writer.write_all(b"late").unwrap();
        });
        drop(lane);
        assert!(
            written.load(Ordering::Acquire),
            "the ring was closed with a read in flight"
        );
        let all = page.range(0, 4).unwrap();
        // SAFETY: nothing is in flight any more.
        assert_eq!(unsafe { all.as_slice() }, b"late");
        thread.join().unwrap();
    }
}
