//! Links slowed down to a stated rate, for benches: so that a fast link stands in for a slower machine's.
//!
//! `LOWTIDE_PACE=h2d:12GB/s,d2h:12GB/s`. The copy itself is real. After it, the stream waits until as much time has
//! passed since the copy began as its bytes take at the stated rate; only then does its next work run. No kernel
//! takes part, so no multiprocessor is held: the stream writes a number when it comes to the copy, a thread of the
//! host sees it and answers when the time is over, and the stream waits for the answer. Rates are measured through
//! the same queues, so plans are made for paced links.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use lowtide_tiers::{Arena, Fill};
use lowtide_units::{Bytes, BytesPerSecond};

use super::error::ok;
use super::{CudaError, Gpu, Pinned};
use crate::view::Place;

/// The variable that asks for it.
const PACE: &str = CudaError::PACE;

/// A copy that is seen to begin this soon after the end of the one before is taken to have begun at that end: the two
/// were queued back to back.
const SEEN: Duration = Duration::from_micros(200);
/// How often the thread looks whether a copy began.
const LOOK: Duration = Duration::from_micros(10);
/// The thread sleeps no longer than until so long before its answer.
const SPIN: Duration = Duration::from_micros(100);

/// Rates of a link, each at most what the hardware gives.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// From the host to the device.
    pub h2d: Option<BytesPerSecond>,
    /// From the device to the host.
    pub d2h: Option<BytesPerSecond>,
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let both = [("h2d", self.h2d), ("d2h", self.d2h)];
        let rates = both.map(|(name, rate)| rate.map(|r| format!("{name} {r}")));
        f.write_str(&rates.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl Pace {
    /// What the environment asks for.
    ///
    /// # Errors
    /// A value that is no list of rates.
    pub fn asked() -> Result<Option<Self>, CudaError> {
        let value = std::env::var_os(PACE).map(|v| v.to_string_lossy().into_owned());
        value.map(|v| Self::parse(&v)).transpose()
    }

    /// Reads `h2d:12GB/s,d2h:8GB/s`; one of the two may be missing.
    fn parse(text: &str) -> Result<Self, CudaError> {
        let bad = || CudaError::Pace {
            value: text.to_owned(),
        };
        let mut pace = Self::default();
        for part in text.split(',') {
            let (link, rate) = part.trim().split_once(':').ok_or_else(bad)?;
            let bytes: Bytes = (rate.trim().strip_suffix("/s"))
                .and_then(|rate| rate.parse().ok())
                .filter(|bytes: &Bytes| bytes.0 > 0)
                .ok_or_else(bad)?;
            let place = match link.trim() {
                "h2d" => &mut pace.h2d,
                "d2h" => &mut pace.d2h,
                _ => return Err(bad()),
            };
            if place.replace(BytesPerSecond(bytes.0 as f64)).is_some() {
                return Err(bad());
            }
        }
        Ok(pace)
    }

    /// How long a copy takes at least; `None` where its way has no rate.
    pub(super) fn least(&self, to: Place, from: Place, bytes: u64) -> Option<Duration> {
        let rate = match (to, from) {
            (Place::Cuda(_), Place::Host) => self.h2d,
            (Place::Host, Place::Cuda(_)) => self.d2h,
            _ => None,
        };
        rate.map(|rate| Duration::from_secs_f64(bytes as f64 / rate.0))
    }
}

/// What holds back the copies of one stream.
#[derive(Debug)]
pub(super) struct Pacer {
    page: Arc<Page>,
    asks: Option<Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
    /// Number of the copy that was given to the stream last, counted from 1.
    given: u32,
}

/// A copy that was given to the stream.
#[derive(Clone, Copy, Debug)]
struct Ask {
    number: u32,
    least: Duration,
}

/// Two numbers in pinned memory of the host: of the last copy that began, and of the last that may end.
#[derive(Debug)]
struct Page {
    _pinned: Pinned,
    arena: Arena,
    /// The stream will come to nothing more.
    ended: AtomicBool,
}

impl Page {
    fn address(&self, index: usize) -> u64 {
        self.arena.base() as u64 + 64 * index as u64
    }

    fn number(&self, index: usize) -> &AtomicU32 {
        // SAFETY: within the arena's one page, which lives as long as `self`, aligned to 64, zero at first. The host
        // touches it by atomics alone, the device by whole words.
        unsafe { AtomicU32::from_ptr(self.arena.base().add(64 * index).cast()) }
    }
}

const BEGAN: usize = 0;
const MAY_END: usize = 1;

impl Pacer {
    /// Starts the thread that lets copies end at their time.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let bad = |what: String| CudaError::Call { call: PACE, what };
        let arena = Arena::new(Bytes(4096), Fill::Zero).map_err(|e| bad(e.to_string()))?;
        let page = Arc::new(Page {
            _pinned: Pinned::new(gpu, &arena)?,
            arena,
            ended: AtomicBool::new(false),
        });
        let (asks, asked) = channel();
        let its = Arc::clone(&page);
        let thread = std::thread::Builder::new()
            .name("lowtide-pace".to_owned())
            .spawn(move || answer(&its, &asked))
            .map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            page,
            asks: Some(asks),
            thread: Some(thread),
            given: 0,
        })
    }

    /// Gives `copy` to `stream`, which continues no sooner than `least` after the copy began.
    pub fn copy(
        &mut self,
        stream: sys::CUstream,
        least: Duration,
        copy: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        self.given = self.given.wrapping_add(1);
        let number = self.given;
        // SAFETY: a word of pinned memory, which outlives the stream's work (`Drop`).
        ok("cuStreamWriteValue32", unsafe {
            sys::cuStreamWriteValue32_v2(stream, self.page.address(BEGAN), number, 0)
        })?;
        copy()?;
        let ask = Ask { number, least };
        let asks = self.asks.as_ref().expect("it is open until it is dropped");
        asks.send(ask).map_err(|_| CudaError::Call {
            call: PACE,
            what: "its thread has ended".to_owned(),
        })?;
        // Flag 0: goes on when the word has come to the number, also where numbers wrap.
        // SAFETY: as above.
        ok("cuStreamWaitValue32", unsafe {
            sys::cuStreamWaitValue32_v2(stream, self.page.address(MAY_END), number, 0)
        })
    }
}

impl Drop for Pacer {
    /// The stream's work must be done or lost: nobody answers it any more.
    fn drop(&mut self) {
        self.page.ended.store(true, Ordering::Release);
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers each copy in turn, until there are no more.
fn answer(page: &Page, asked: &Receiver<Ask>) {
    let mut last: Option<Instant> = None;
    while let Ok(ask) = asked.recv() {
        // The stream comes to one copy after the other, and past none that has no answer.
        while page.number(BEGAN).load(Ordering::Acquire) != ask.number {
            if page.ended.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let end = begin(Instant::now(), last) + ask.least;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match left.checked_sub(SPIN) {
                Some(long) if !long.is_zero() => std::thread::sleep(long),
                _ => std::hint::spin_loop(),
            }
        }
        page.number(MAY_END).store(ask.number, Ordering::Release);
        last = Some(end);
    }
}

/// When a copy began that is seen to have: at the last one's end, if that is not long ago.
fn begin(seen: Instant, last: Option<Instant>) -> Instant {
    last.filter(|&end| seen.saturating_duration_since(end) < SEEN)
        .unwrap_or(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_anything_else_is_refused() {
        let rate = |g: f64| Some(BytesPerSecond(g * 1e9));
        let pace = Pace::parse("h2d:12GB/s, d2h:8.5GB/s").expect("two rates");
        assert_eq!((pace.h2d, pace.d2h), (rate(12.0), rate(8.5)));
        assert_eq!(pace.to_string(), "h2d 12.00 GB/s, d2h 8.50 GB/s");
        assert_eq!(Pace::parse("d2h:1GB/s").expect("one").h2d, None);
        for bad in [
            "",
            "12GB/s",
            "h2d:12GB",
            "h2d:0GB/s",
            "h2d:-1GB/s",
            "pcie:1GB/s",
            "h2d:1GB/s,h2d:2GB/s",
            "h2d:1GB/s,",
        ] {
            let error = Pace::parse(bad).expect_err(bad).to_string();
            assert!(
                error.contains(PACE) && error.contains("h2d:12GB/s"),
                "{error}"
            );
        }
    }

    #[test]
    fn copies_one_behind_the_other_lose_no_time_between_them() {
        let end = Instant::now();
        let after = |us| end + Duration::from_micros(us);
        assert_eq!(begin(after(70), Some(end)), end);
        assert_eq!(
            begin(after(900), Some(end)),
            after(900),
            "the stream had waited"
        );
        assert_eq!(begin(end, None), end);
    }

    #[test]
    fn only_what_crosses_the_link_is_held_back() {
        let pace = Pace::parse("h2d:1GB/s").expect("a rate");
        let least = |to, from| pace.least(to, from, 500_000_000);
        let half = Some(Duration::from_millis(500));
        assert_eq!(least(Place::Cuda(0), Place::Host), half);
        assert_eq!(least(Place::Host, Place::Cuda(0)), None);
        assert_eq!(least(Place::Cuda(0), Place::Cuda(0)), None);
    }
}
