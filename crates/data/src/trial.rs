//! A tokenizer file is tried in a process of its own before it is used in this one.
//!
//! `tokenizer.json` is untrusted, and the crate that reads it can be made to panic, to overflow
//! its stack, to ask for more memory than there is, or to search a regular expression for ever. None
//! of these can be caught in the process where it happens. So the command starts itself again with
//! limits of memory and time ([`become_trial`]), and only a file that loads there, and tokenises texts
//! that such files stumble over, is loaded here. A program without such a command of its own gets a
//! thread with a deadline, which catches panics and endless searches.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokenizers::Tokenizer;

/// First argument of the process that only tries a tokenizer.
const ARGUMENT: &str = "__try-tokenizer";
/// Exit code of a trial that the file's reader panicked in.
const PANICKED: u8 = 3;

static COMMAND: OnceLock<()> = OnceLock::new();

thread_local! {
    static FOREIGN: Cell<bool> = const { Cell::new(false) };
}

/// To be called first by a program that lends itself to trials: it returns an exit code when the
/// process was started as one, and then the program must end with it.
#[must_use]
pub fn become_trial() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() != Some(OsStr::new(ARGUMENT)) {
        let _ = COMMAND.set(());
        return None;
    }
    std::panic::set_hook(Box::new(|_| ()));
    Some(ExitCode::from(try_here()))
}

/// Whether this thread runs a tokenizer or a template, in which a panic is the file's fault.
#[must_use]
pub fn in_foreign_code() -> bool {
    FOREIGN.get()
}

/// Runs `work` on an untrusted tokenizer or template; a panic in it becomes an error.
pub(super) fn foreign<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = FOREIGN.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    FOREIGN.set(before);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text: String = text.unwrap_or("no message").chars().take(200).collect();
        format!("its reader panics: {text}")
    })
}

/// What a file of some bytes may take.
struct Limits {
    memory: u64,
    cpu: Duration,
}

impl Limits {
    /// Real files take about 20 bytes of memory a byte and 20 ms of a processor a MiB.
    fn of(bytes: usize) -> Self {
        let mib = bytes as u64 >> 20;
        Self {
            memory: (1 << 30) + 64 * bytes as u64,
            cpu: Duration::from_secs(5 + mib / 2),
        }
    }

    /// Seconds on the clock, for a machine that has others to serve.
    fn clock(&self) -> Duration {
        4 * self.cpu
    }
}

/// Whether a tokenizer file is harmless: it may still be refused when it is loaded.
///
/// # Errors
/// What it does instead.
pub(super) fn harmless(file: &[u8]) -> Result<(), String> {
    let limits = Limits::of(file.len());
    match COMMAND.get() {
        Some(()) => in_a_process(file, &limits),
        None => on_a_thread(file, &limits),
    }
}

fn in_a_process(file: &[u8], limits: &Limits) -> Result<(), String> {
    // This program, even if its file has been replaced since it began.
    let child = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .arg(limits.memory.to_string())
        .arg(limits.cpu.as_secs().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(_) => return on_a_thread(file, limits),
    };
    let mut pipe = child.stdin.take().expect("it is piped");
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let done = thread::scope(|scope| {
        scope.spawn(move || {
            // The child may end before it has read all.
            let _ = pipe.write_all(file);
        });
        let out = scope.spawn(move || text_of(out.as_mut()));
        let err = scope.spawn(move || text_of(err.as_mut()));
        let ended = wait(&mut child, limits.clock());
        let text = |t: thread::ScopedJoinHandle<'_, String>| t.join().unwrap_or_default();
        ended.map(|status| (status, text(out), text(err)))
    });
    let seconds = limits.cpu.as_secs();
    let Some((status, out, err)) = done else {
        return Err(format!("it takes longer than {seconds} s to load and try"));
    };
    let too_long = || Err(format!("it takes longer than {seconds} s to load and try"));
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) if code == i32::from(PANICKED) => Err(out),
        (_, Some(libc::SIGXCPU | libc::SIGKILL)) => too_long(),
        _ if err.contains("memory allocation") => Err(format!(
            "it takes more than {} MiB of memory to load and try",
            limits.memory >> 20
        )),
        _ if err.contains("overflowed its stack") => Err("it nests too deep".to_owned()),
        _ => Err(format!("its reader ends with {status}")),
    }
}

/// At most 4 KiB of what a process prints.
fn text_of(from: Option<&mut impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let _ = from.take(4096).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits, and ends the child when its time is over: `None`.
fn wait(child: &mut Child, most: Duration) -> Option<std::process::ExitStatus> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if began.elapsed() > most {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(pause);
        pause = (2 * pause).min(Duration::from_millis(20));
    }
}

fn on_a_thread(file: &[u8], limits: &Limits) -> Result<(), String> {
    let (answer, answers) = channel();
    let file = file.to_vec();
    let tried = thread::Builder::new()
        .name("tokenizer trial".to_owned())
        .stack_size(256 << 20)
        .spawn(move || answer.send(foreign(|| attempt(&file))));
    if tried.is_err() {
        return Err("no thread can be started to try it".to_owned());
    }
    match answers.recv_timeout(limits.clock()) {
        Ok(done) => done,
        Err(RecvTimeoutError::Timeout) => Err(format!(
            "it takes longer than {} s to load and try",
            limits.clock().as_secs()
        )),
        Err(RecvTimeoutError::Disconnected) => Err("its reader ends".to_owned()),
    }
}

/// The process of a trial: limits, then the file from standard input.
fn try_here() -> u8 {
    let mut numbers = std::env::args().skip(2).map(|n| n.parse::<u64>());
    let (Some(Ok(memory)), Some(Ok(cpu))) = (numbers.next(), numbers.next()) else {
        return 2;
    };
    for (resource, most) in [
        (Resource::As, memory),
        (Resource::Cpu, cpu),
        (Resource::Core, 0),
    ] {
        // A limit that the process has already may be lower, and cannot be raised.
        let own = getrlimit(resource).maximum;
        let most = Some(own.map_or(most, |own| own.min(most)));
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        if setrlimit(resource, limit).is_err() {
            return 2;
        }
    }
    let mut file = Vec::new();
    if std::io::stdin().read_to_end(&mut file).is_err() {
        return 2;
    }
    match foreign(|| attempt(&file)) {
        Ok(()) => 0,
        Err(panic) => {
            let _ = std::io::stdout().write_all(panic.as_bytes());
            PANICKED
        }
    }
}

/// What the tokenizer's own rule for special tokens puts in front of a text.
pub(super) fn prefix(inner: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<i32>> {
    let (bare, whole) = (
        inner.encode_fast("a", false)?,
        inner.encode_fast("a", true)?,
    );
    let (bare, whole) = (bare.get_ids(), whole.get_ids());
    let n = whole
        .windows(bare.len().max(1))
        .position(|w| w == bare)
        .unwrap_or(0);
    Ok(whole[..n].iter().map(|&id| id as i32).collect())
}

/// Loads the file and does what a run will do with it. What it refuses by an error is no harm.
fn attempt(file: &[u8]) {
    let Ok(mut tokenizer) = Tokenizer::from_bytes(file) else {
        return;
    };
    // Whoever loads it refuses this too, and there is no need to wait for what it makes of a text.
    if crate::tokenizer::bounded_growth(&tokenizer).is_err() {
        return;
    }
    let _ = tokenizer.with_truncation(None);
    tokenizer.with_padding(None);
    let _ = prefix(&tokenizer);
    tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    let _ = tokenizer.get_added_tokens_decoder();
    let size = tokenizer.get_vocab(true).len() as u32;
    for text in texts() {
        let Ok(encoding) = tokenizer.encode(text.as_str(), false) else {
            continue;
        };
        let _ = tokenizer.encode_fast(text, false);
        for skip in [true, false] {
            let _ = tokenizer.decode(encoding.get_ids(), skip);
        }
    }
    // Ids that a model may answer with, those that no token has included.
    let all: Vec<u32> = (0..size.min(1 << 16)).chain([size, u32::MAX]).collect();
    let _ = tokenizer.decode(&all, false);
    for id in all.iter().step_by(97) {
        let _ = tokenizer.decode(&[*id], false);
    }
}

/// Texts over which regular expressions and merges stumble: each character many times, long words,
/// spaces and lines, characters of all lengths, and nothing.
fn texts() -> Vec<String> {
    let mut all = vec![
        String::new(),
        "Hello, world! It's 12345.678 o'clock.\n\tdef f(x):\r\n    return x  # ok".to_owned(),
        "Grüße, 世界! Привет, мир. שלום עולם. नमस्ते 🙂👩‍👩‍👧 e\u{301}\u{200d}\u{feff}\u{fffd}\0\u{10ffff}"
            .to_owned(),
    ];
    let runs = (' '..='~').chain(['\n', '\t', '\u{e9}', '\u{4e16}', '\u{1f642}', '\u{2581}']);
    all.extend(runs.map(|c| format!("{}\u{1}", c.to_string().repeat(60))));
    for word in ["a", " ", "\n", "ab ", "0", "\u{4e16}"] {
        all.push(format!("{}!", word.repeat(3000)));
    }
    all
}
