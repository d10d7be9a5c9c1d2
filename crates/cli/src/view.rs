//! The live view of a run: what `train` shows on a terminal from the first step on.
//!
//! A thread of its own draws what the run has said last and hears keys, so neither waits for the other. `q` leaves the
//! view and not the run; Ctrl-C is the signal that it is anywhere. What is said meanwhile is printed when the view is
//! left. The terminal is put right by whoever ends first: the view, a panic, or one of the signals that
//! `crate::signals` watches; not by a signal that ends the process where it stands (`SIGKILL`, `SIGSEGV`).

use std::fs::File;
use std::io::{IsTerminal, Stdout, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use rustix::process::{Signal, getpgrp, kill_current_process_group};
use rustix::termios::{OptionalActions, SpecialCodeIndex, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::SIGTSTP;
use signal_hook::low_level::raise;

use crate::out::Out;

mod draw;
mod seen;
#[cfg(test)]
mod svg;

pub use seen::Seen;

/// How often it is drawn, and keys are looked for.
const OFTEN: Duration = Duration::from_millis(100);
/// How long the end of a run waits for the view's.
const END: Duration = Duration::from_millis(500);
/// To the alternate screen, without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &[u8] = b"\x1b[?1049l\x1b[?25h";

/// The terminal is the view's.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Gives the terminal back, if a view has it. From any thread, and without any lock of standard output.
pub fn restore() {
    if TAKEN.swap(false, Ordering::AcqRel) {
        // In the background it would stop the process; there a shell has set the modes that it wants.
        if is_foreground() {
            let _ = disable_raw_mode();
        }
        straight(LEAVE);
    }
}

/// Takes the terminal for the view: raw mode, and reads that never wait.
fn take() -> std::io::Result<()> {
    // First: who ends the process meanwhile puts right what is done by then.
    TAKEN.store(true, Ordering::Release);
    let taken = enable_raw_mode().and_then(|()| never_wait());
    match taken {
        Ok(()) => straight(ENTER),
        Err(_) => restore(),
    }
    taken
}

/// Lets a read return at once, with what there is.
fn never_wait() -> std::io::Result<()> {
    let mut modes = tcgetattr(stdin())?;
    modes.special_codes[SpecialCodeIndex::VMIN] = 0;
    modes.special_codes[SpecialCodeIndex::VTIME] = 0;
    Ok(tcsetattr(stdin(), OptionalActions::Now, &modes)?)
}

/// Whether the terminal is there and this process in its foreground: in the background a change of its modes, or a
/// read, stops the process.
fn is_foreground() -> bool {
    tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}

/// Writes past the lock of standard output, which a thread that stands still may hold.
fn straight(bytes: &[u8]) {
    if let Ok(fd) = stdout().as_fd().try_clone_to_owned() {
        let _ = File::from(fd).write_all(bytes);
    }
}

/// Whether there is a terminal to draw on and to hear keys from.
pub fn is_possible() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    stdout().is_terminal() && stdin().is_terminal() && !dumb && is_foreground()
}

/// What the run reports and the thread draws.
#[derive(Default)]
struct Shared {
    seen: Seen,
    /// Said while the view is open, to be printed behind it.
    unprinted: Vec<String>,
    /// It is to end, or has been left.
    over: bool,
}

/// A view that is open until it is closed, or left.
pub struct View {
    shared: Arc<Mutex<Shared>>,
    out: Out,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl View {
    /// Takes the terminal; `None` where it cannot be had.
    pub fn open(seen: Seen, out: Out) -> Option<Self> {
        take().ok()?;
        let shared = Arc::new(Mutex::new(Shared {
            seen,
            ..Shared::default()
        }));
        let (alive, ended) = channel();
        let end = End {
            shared: Arc::clone(&shared),
            out,
            _alive: alive,
        };
        let begin = std::thread::Builder::new().name("view".to_owned());
        match begin.spawn(move || run(&end)) {
            Ok(_) => Some(Self { shared, out, ended }),
            Err(_) => {
                restore();
                None
            }
        }
    }

    /// Whether it is still there.
    pub fn is_open(&self) -> bool {
        !lock(&self.shared).over
    }

    /// Changes what is drawn next.
    pub fn update(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut lock(&self.shared).seen);
    }

    /// Says something; whether it is said here, and not still to be printed.
    pub fn say(&self, text: &str) -> bool {
        let mut shared = lock(&self.shared);
        if shared.over {
            return false;
        }
        shared.seen.note(text);
        shared.unprinted.push(text.to_owned());
        true
    }
}

impl Drop for View {
    fn drop(&mut self) {
        lock(&self.shared).over = true;
        // A thread that a terminal holds up does not hold up the run.
        let _ = self.ended.recv_timeout(END);
        leave(&self.shared, self.out);
    }
}

/// Gives the terminal back and prints what was said; what is said from here on is printed by who says it.
fn leave(shared: &Mutex<Shared>, out: Out) {
    restore();
    let unprinted = {
        let mut shared = lock(shared);
        shared.over = true;
        std::mem::take(&mut shared.unprinted)
    };
    for text in unprinted {
        out.text(&text);
    }
}

/// Leaves the view when its thread ends, by a panic too.
struct End {
    shared: Arc<Mutex<Shared>>,
    out: Out,
    _alive: Sender<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        leave(&self.shared, self.out);
    }
}

/// Draws and hears until the view is over.
fn run(end: &End) {
    if let Ok(mut terminal) = Terminal::new(CrosstermBackend::new(stdout())) {
        while draw(&end.shared, &mut terminal) && hear(&end.shared, &mut terminal) {}
        // What the run said last, where it ended and was not left.
        draw(&end.shared, &mut terminal);
    }
}

type Screen = Terminal<CrosstermBackend<Stdout>>;

/// Draws once; whether that worked.
fn draw(shared: &Mutex<Shared>, terminal: &mut Screen) -> bool {
    if !TAKEN.load(Ordering::Acquire) {
        return false;
    }
    let seen = lock(shared).seen.clone();
    terminal.draw(|frame| draw::draw(frame, &seen)).is_ok()
}

/// Hears keys for a while; whether the view goes on. Not by crossterm: it never returns from a terminal that has hung
/// up, nor from half a key.
fn hear(shared: &Mutex<Shared>, terminal: &mut Screen) -> bool {
    std::thread::sleep(OFTEN);
    if lock(shared).over || !TAKEN.load(Ordering::Acquire) || !is_foreground() {
        return false;
    }
    let mut keys = [0; 256];
    let keys = match rustix::io::read(stdin(), &mut keys) {
        Ok(n) => &keys[..n],
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => &[],
        Err(_) => return false,
    };
    // Arrows and the like: letters behind an escape are none.
    let keys = keys.split(|&key| key == 0x1b).next().unwrap_or_default();
    keys.iter().all(|&key| pressed(key, terminal))
}

/// What a key asks for; whether the view goes on.
fn pressed(key: u8, terminal: &mut Screen) -> bool {
    // A terminal that the view has sends no signals itself: to all of its foreground, as it would.
    match key {
        b'q' => return false,
        0x03 => {
            let _ = kill_current_process_group(Signal::INT);
        }
        0x1c => {
            restore();
            let _ = kill_current_process_group(Signal::QUIT);
        }
        0x1a => {
            restore();
            let _ = kill_current_process_group(Signal::TSTP);
            // The group's may go to another thread a moment later; this one stops here.
            let _ = raise(SIGTSTP);
            // Here again, in the foreground or not.
            return is_foreground() && take().is_ok() && terminal.clear().is_ok();
        }
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;
    use std::path::Path;

    use super::*;

    /// Halfway through a run of a model of 3B.
    fn seen() -> Seen {
        let mut seen = Seen {
            title: "qwen2.5-3b".to_owned(),
            tiers: vec![("device", 23 << 30, 24 << 30), ("host", 31 << 30, 64 << 30)],
            ..Seen::default()
        };
        for step in 1..=240_u64 {
            let x = step as f64;
            let wave = ((step * 7919) % 97) as f64 / 97.0 - 0.5;
            seen.step = step;
            seen.loss = 0.75 + 0.7 * (-x / 60.0).exp() + 0.08 * wave;
            let loss = seen.loss;
            seen.add_loss(step, loss);
        }
        (seen.steps, seen.norm, seen.learning_rate) = (500, 1.432, 1.17e-5);
        (seen.tokens_per_second, seen.seconds) = (Some(21_896.0), Some(0.748));
        seen.predicted = 0.741;
        seen.left = Some(Duration::from_secs(194));
        seen.lanes = vec![
            ("gpu", 0.97),
            ("h2d", 0.58),
            ("d2h", 0.41),
            ("disk", 0.0),
            ("host", 0.83),
        ];
        (seen.skipped, seen.spikes) = (1, 2);
        seen.note("after step 200: evaluation loss 0.8123, token accuracy 78.4%");
        seen.note("checkpoint /runs/gsm8k/checkpoints/step-00000200");
        seen
    }

    fn drawn(width: u16, height: u16, seen: &Seen) -> ratatui::buffer::Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        terminal
            .draw(|frame| draw::draw(frame, seen))
            .expect("drawn");
        terminal.backend().buffer().clone()
    }

    fn text(buffer: &ratatui::buffer::Buffer) -> String {
        let width = buffer.area.width as usize;
        let symbols: Vec<&str> = buffer.content.iter().map(|c| c.symbol()).collect();
        let rows = symbols.chunks(width).map(|row| row.concat());
        rows.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn all_that_a_run_tells_is_shown() {
        let shown = text(&drawn(100, 30, &seen()));
        for words in [
            "qwen2.5-3b",
            "step 240/500",
            "loss",
            "norm 1.432",
            "21896 tokens/s",
            "748.0 ms (predicted 741.0 ms)",
            "3 min 14 s left",
            "gpu",
            "97%",
            "23.0 GiB of 24.0 GiB",
            "1 left out, 2 spikes",
            "evaluation loss 0.8123",
            "q leaves",
        ] {
            assert!(shown.contains(words), "{words}:\n{shown}");
        }
    }

    /// Whatever a terminal's size, and before anything is known.
    #[test]
    fn any_size_is_drawn() {
        for seen in [Seen::default(), seen()] {
            for (width, height) in [(1, 1), (5, 40), (30, 3), (80, 24), (300, 100)] {
                let _ = drawn(width, height, &seen);
            }
        }
    }

    /// `cargo xtask pictures` draws it anew.
    #[test]
    fn the_picture_is_that_of_the_documents() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/view.svg");
        let picture = svg::svg(&drawn(100, 28, &seen()));
        if std::env::var_os("LOWTIDE_RENEW").is_some() {
            std::fs::write(&path, &picture).expect("written");
        }
        let old = std::fs::read_to_string(&path).expect("docs/view.svg");
        assert!(
            picture == old,
            "docs/view.svg: `cargo xtask pictures` draws it anew"
        );
    }
}
