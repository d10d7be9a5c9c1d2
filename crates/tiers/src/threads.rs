//! A lane of blocking calls on a few threads: for systems that refuse io_uring, and for media
//! that are no files.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::lane::{Io, Lane, Made, Wake};
use crate::request::Kind;
use crate::state_file::StateFile;

/// More threads than this gain nothing with large blocks.
const THREADS_MAX: usize = 8;

/// What blocks are read from and written to, by blocking calls from several threads.
pub(crate) trait Medium: Send + Sync + 'static {
    /// Moves up to `io.bytes` bytes and tells how many, like `pread` and `pwrite`.
    ///
    /// # Safety
    /// `io.memory` must be valid for `io.bytes` bytes and, for a read, used by nobody else.
    unsafe fn run(&self, io: &Io) -> io::Result<usize>;
}

pub(crate) struct Threads {
    /// `None` only while dropping: closing it ends the threads.
    work: Option<mpsc::Sender<(usize, Io)>>,
    events: mpsc::Receiver<Event>,
    threads: Vec<JoinHandle<()>>,
}

enum Event {
    Wake,
    Ended(usize, io::Result<usize>),
}

impl Threads {
    /// `pread` and `pwrite` on a state file; `why` threads and not io_uring.
    pub(crate) fn on_file(file: Arc<StateFile>, depth: usize, why: &str) -> Made {
        let n = depth.min(THREADS_MAX);
        let how = format!("{n} threads ({why}), {}", how_direct(&file));
        Self::on(file, n, how)
    }

    /// A lane of `n` threads on a medium.
    pub(crate) fn on(medium: Arc<dyn Medium>, n: usize, how: String) -> Made {
        let (work, todo) = mpsc::channel::<(usize, Io)>();
        let todo = Arc::new(Mutex::new(todo));
        let (tell, events) = mpsc::channel();
        let thread = |_| {
            let (todo, tell, medium) = (Arc::clone(&todo), tell.clone(), Arc::clone(&medium));
            std::thread::spawn(move || {
                loop {
                    let next = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((slot, io)) = next else { return };
                    // SAFETY: the arbiter keeps the memory valid until the end is reported, and by the
                    // contract of `Disk::submit` nobody else uses it.
                    let result = unsafe { medium.run(&io) };
                    if tell.send(Event::Ended(slot, result)).is_err() {
                        return;
                    }
                }
            })
        };
        let threads = (0..n).map(thread).collect();
        (
            Box::new(Self {
                work: Some(work),
                events,
                threads,
            }),
            Arc::new(Waker(tell)),
            how,
        )
    }
}

impl Lane for Threads {
    fn start(&mut self, slot: usize, io: Io) {
        let work = self.work.as_ref().expect("open until dropped");
        work.send((slot, io))
            .expect("the threads live as long as the lane");
    }

    fn wait(&mut self, ended: &mut Vec<(usize, io::Result<usize>)>) {
        let first = self
            .events
            .recv()
            .expect("the threads live as long as the lane");
        for event in std::iter::once(first).chain(self.events.try_iter()) {
            if let Event::Ended(slot, result) = event {
                ended.push((slot, result));
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Waker(mpsc::Sender<Event>);

impl Wake for Waker {
    fn wake(&self) {
        // Fails when the lane is gone; then there is nobody to wake.
        let _ = self.0.send(Event::Wake);
    }
}

impl Medium for StateFile {
    unsafe fn run(&self, io: &Io) -> io::Result<usize> {
        // SAFETY: an open file and memory valid for `io.bytes` (caller).
        unsafe { transfer(self.fd(), io) }
    }
}

/// One `pread` or `pwrite`.
///
/// # Safety
/// `fd` must be an open file; the rest as [`Medium::run`].
pub(crate) unsafe fn transfer(fd: RawFd, io: &Io) -> io::Result<usize> {
    let at = libc::off_t::try_from(io.at).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: an open file and memory valid for `io.bytes` (caller).
    let n = unsafe {
        match io.kind {
            Kind::Read => libc::pread(fd, io.memory.cast(), io.bytes, at),
            Kind::Write => libc::pwrite(fd, io.memory.cast(), io.bytes, at),
        }
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// How a file's blocks pass the page cache, for `describe`.
pub(crate) fn how_direct(file: &StateFile) -> String {
    file.note
        .as_ref()
        .map_or("O_DIRECT".to_owned(), |note| format!("buffered ({note})"))
}
