//! Signals: what they ask of a run, and the exit code that tells which one ended it.
//!
//! A thread waits for them. While a run has nothing to lose (any command but `train`, and the start of
//! that) the thread ends the process itself, so it ends at once wherever it stands: loading data,
//! planning, probing, filling weights, compiling kernels. After that the run is asked, and a second
//! signal ends the process: a checkpoint that has its name is whole. One wish may come as two signals:
//! `timeout` signals its command and then its group, a program passes on what the terminal has sent to
//! both. So a second one counts from a second after the first, and SIGUSR2, which no terminal sends, never
//! does.

use std::io::{Write, stdout};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lowtide_session::Requests;
use lowtide_trainer::Farewell;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{exit, signal_name};

use crate::error::CliError;
use crate::out::complain;
use crate::view;

/// Signals that end a run, after a save where there is something to save.
const STOPPING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGUSR2];

/// How long the last words of a process may take: its reader may be asleep.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Signals that come sooner after the first one are the same wish.
const SAME_WISH: Duration = Duration::from_secs(1);

/// The signals that a process has got, and what they ask of its run.
#[derive(Clone, Debug)]
pub struct Watch {
    pub requests: Requests,
    /// The signal that asked the run to stop; 0: none.
    stopped_by: Arc<AtomicI32>,
    /// What is left of a run whose process ends now.
    pub kept: Arc<Kept>,
    /// Who else hears of a signal that ends this process at once: the other ranks of a launcher.
    pub others: Arc<OnceLock<Farewell>>,
}

/// What is left of a run when its process ends: behind which step the next start goes on.
#[derive(Debug, Default)]
pub struct Kept {
    /// Whether a training runs whose steps can be lost.
    begun: AtomicBool,
    /// Whether what is on drives is gone on with (`checkpoint.durable`).
    durable: AtomicBool,
    /// The last step that is saved.
    step: AtomicU64,
}

impl Kept {
    /// Steps begin behind `step`; `durable`: what they make is on drives.
    pub fn begin(&self, step: u64, durable: bool) {
        self.step.store(step, Ordering::Release);
        self.durable.store(durable, Ordering::Release);
        self.begun.store(true, Ordering::Release);
    }

    /// A step is saved.
    pub fn saved(&self, step: u64) {
        self.step.store(step, Ordering::Release);
    }

    /// The last step that is saved; `None` where no step has begun, or drives hold more than is known here.
    pub fn step(&self) -> Option<u64> {
        let known = self.begun.load(Ordering::Acquire) && !self.durable.load(Ordering::Acquire);
        known.then(|| self.step.load(Ordering::Acquire))
    }

    /// What becomes of the run, behind "stopped by SIGINT".
    pub fn words(&self) -> String {
        if !self.begun.load(Ordering::Acquire) {
            return String::new();
        }
        match self.step() {
            None => {
                "; the next start goes on from what the drives hold (checkpoint.durable)".to_owned()
            }
            Some(0) => "; nothing is saved: the next start begins with step 1".to_owned(),
            Some(n) => format!(
                "; what was made after step {n} is not saved: the next start goes on from there"
            ),
        }
    }
}

impl Watch {
    /// The signal that asked the run to stop.
    pub fn stopped_by(&self) -> Option<Signal> {
        match self.stopped_by.load(Ordering::Acquire) {
            0 => None,
            number => Some(Signal(number)),
        }
    }
}

/// A signal that ends a process.
#[derive(Clone, Copy, Debug)]
pub struct Signal(i32);

impl Signal {
    /// The one that another rank's process was ended by, where it is one that ends a run; else what a launcher ends its
    /// processes with.
    pub fn of_another(number: Option<i32>) -> Self {
        let known = number.filter(|n| STOPPING.contains(n));
        Self(known.unwrap_or(SIGTERM))
    }

    /// `SIGTERM`.
    pub fn name(self) -> &'static str {
        signal_name(self.0).unwrap_or("a signal")
    }

    /// The exit code of a process that it ended, as shells count it.
    pub fn code(self) -> u8 {
        128 + self.0 as u8
    }
}

/// Watches for signals from here on; `json`: the answer of a command that a signal ends is wanted.
///
/// # Errors
/// When the system takes no handler.
pub fn watch(json: bool) -> Result<Watch, CliError> {
    let failed = |source| CliError::Write {
        path: "signal handler".into(),
        source,
    };
    // A write beyond the limit on files' sizes fails like any other, and its error names the file.
    let beyond = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGXFSZ, beyond).map_err(failed)?;
    let ignored = ignored();
    let asked = [SIGUSR1].into_iter().chain(STOPPING);
    // Under `nohup` a hang-up is nothing to stop for.
    let asked = asked.filter(|&s| s != SIGHUP || !ignored(s));
    let mut signals = Signals::new(asked).map_err(failed)?;
    let watch = Watch {
        requests: Requests::new(),
        stopped_by: Arc::default(),
        kept: Arc::default(),
        others: Arc::default(),
    };
    let mine = watch.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut first = None;
            for signal in &mut signals {
                mine.got(signal, &mut first, json);
            }
        })
        .map_err(failed)?;
    Ok(watch)
}

impl Watch {
    /// `asked`: when the first signal has asked the run to stop.
    fn got(&self, signal: i32, asked: &mut Option<Instant>, json: bool) {
        if signal == SIGUSR1 {
            return self.requests.save();
        }
        match *asked {
            None if self.requests.guarded() => {
                *asked = Some(Instant::now());
                self.stopped_by.store(signal, Ordering::Release);
                self.requests.stop_by(signal);
            }
            Some(_) if signal == SIGUSR2 => {}
            Some(first) if first.elapsed() < SAME_WISH => {}
            _ => {
                self.stopped_by.store(signal, Ordering::Release);
                end(Signal(signal), self, json);
            }
        }
    }
}

/// Ends the process without waiting for anything that it does.
fn end(signal: Signal, watch: &Watch, json: bool) {
    let kept = &watch.kept;
    let code = i32::from(signal.code());
    // Nothing below may hold the end up: whoever reads may be asleep, and another thread may hold a lock.
    let timer = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(LAST_WORDS);
        exit(code);
    });
    if timer.is_err() {
        exit(code);
    }
    lowtide_session::abandon();
    // Beside this process's own last words: a rank that takes nothing keeps it from none of them.
    let others = watch.others.get().cloned();
    let saying = others.map(|others| {
        std::thread::Builder::new().spawn(move || others.say(signal.0, signal.name()))
    });
    view::restore();
    if json {
        let answer = json!({
            "stopped": true, "signal": signal.name(), "exit_code": code, "saved_step": kept.step(),
        });
        // Past the lock of standard output, which a thread that stands still may hold.
        if let Ok(fd) = stdout().as_fd().try_clone_to_owned() {
            let _ = std::fs::File::from(fd).write_all(format!("{answer}\n").as_bytes());
        }
    }
    complain(&format!("stopped by {}{}", signal.name(), kept.words()));
    // Until the time for last words is over.
    if let Some(Ok(saying)) = saying {
        let _ = saying.join();
    }
    exit(code);
}

/// Which signals this process was started with as ignored (`nohup` does so).
fn ignored() -> impl Fn(i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|l| l.strip_prefix("SigIgn:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    move |signal| mask >> (signal - 1) & 1 == 1
}
