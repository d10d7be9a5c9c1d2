//! Training on a terminal: the live view, its keys, and the terminal behind it. A pseudo-terminal, and as much of a
//! terminal as understands what the view writes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use super::scratch::Scratch;

const ROWS: usize = 30;
const COLUMNS: usize = 110;
/// Longer than any of these runs takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

const RUN: &str = "model: {path: m}\noutput: out\nbudget: {device: 64MiB, host: 64MiB}\n\
    log: {trace: false, tensorboard: false, report: false}\n\
    data: {train: train.jsonl}\n\
    train: {steps: 40, seq: 64, learning_rate: 1e-3, schedule: constant, warmup_steps: 0}\n";

/// A run on a terminal.
struct Terminal {
    child: Child,
    keys: File,
    /// The other end: a process's terminal.
    end: OwnedFd,
    before: Termios,
    written: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    /// The reader is to let go of the terminal.
    lost: Arc<AtomicBool>,
}

fn train(case: &Scratch, args: &[&str]) -> Terminal {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .expect("a pseudo-terminal");
    grantpt(&main).expect("granted");
    unlockpt(&main).expect("unlocked");
    let name = ptsname(&main, Vec::new()).expect("a name");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let end = rustix::fs::open(&*name, flags, Mode::empty()).expect("its other end");
    let size = Winsize {
        ws_row: ROWS as u16,
        ws_col: COLUMNS as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&end, size).expect("a size");
    let before = tcgetattr(&end).expect("a terminal");
    // In a session of its own, whose terminal it is: `setsid` becomes the command.
    let own = case.command(&[&["train", "run.yaml"], args].concat());
    let mut command = Command::new("setsid");
    command
        .arg("--ctty")
        .arg(own.get_program())
        .args(own.get_args());
    if let Some(dir) = own.get_current_dir() {
        command.current_dir(dir);
    }
    for (key, value) in own.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.env("TERM", "xterm-256color");
    let own = || end.try_clone().expect("another handle");
    let child = command.stdin(own()).stdout(own()).stderr(own()).spawn();
    let mut from = File::from(main.try_clone().expect("another handle"));
    let written = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&written);
    let lost = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&lost);
    fcntl_setfl(&main, OFlags::RDWR | OFlags::NONBLOCK).expect("set");
    let reader = std::thread::spawn(move || {
        let mut some = [0; 4096];
        while !gone.load(Ordering::Acquire) {
            match from.read(&mut some) {
                Ok(n @ 1..) => to.lock().expect("no panic").extend(&some[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => break,
            }
        }
    });
    Terminal {
        child: child.expect("the binary starts"),
        keys: File::from(main),
        end,
        before,
        written,
        reader,
        lost,
    }
}

impl Terminal {
    fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().expect("no panic")).into_owned()
    }

    /// Waits until the screen has these words.
    fn until(&self, words: &str) {
        let begin = Instant::now();
        while !screen(&self.written()).contains(words) {
            assert!(begin.elapsed() < LONG, "{words}: {}", self.written());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("a key");
    }

    /// How it ended, and all that was written; the terminal is as it was.
    fn ended(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let after = tcgetattr(&self.end).expect("a terminal");
        let modes = |t: &Termios| (t.local_modes, t.input_modes, t.output_modes);
        assert_eq!(modes(&after), modes(&self.before));
        assert!(
            after
                .local_modes
                .contains(LocalModes::ICANON | LocalModes::ECHO)
        );
        // What is on its way comes before the end of the last handle.
        drop(self.end);
        self.reader.join().expect("it ends");
        let all = self.written.lock().expect("no panic");
        (status, String::from_utf8_lossy(&all).into_owned())
    }
}

/// Waits for the end, and not for ever.
fn wait(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it was started") {
            return status;
        }
        if begin.elapsed() > LONG {
            let _ = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The view's screen as it was last drawn; empty before the first time.
fn screen(written: &str) -> String {
    let Some(begin) = written.rfind("\u{1b}[?1049h") else {
        return String::new();
    };
    let shown = &written[begin..];
    let shown = shown.split("\u{1b}[?1049l").next().unwrap_or_default();
    let mut cells = vec![vec![' '; COLUMNS]; ROWS];
    let (mut row, mut column) = (0, 0);
    let mut chars = shown.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            if let Some(cell) = cells
                .get_mut(row)
                .and_then(|r: &mut Vec<char>| r.get_mut(column))
            {
                *cell = c;
            }
            column += 1;
            continue;
        }
        // An order ends with its letter.
        let order: String = chars.by_ref().skip(1).take_while_inclusive();
        let (numbers, letter) = order.split_at(order.len().saturating_sub(1));
        match letter {
            "H" => {
                let mut at = numbers.split(';').map(|n| n.parse().unwrap_or(1));
                let mut next = || at.next().unwrap_or(1) - 1;
                (row, column) = (next(), next());
            }
            "J" => cells.iter_mut().for_each(|r| r.fill(' ')),
            _ => {}
        }
    }
    let rows = cells.iter().map(|r| r.iter().collect::<String>());
    rows.collect::<Vec<_>>().join("\n")
}

/// Characters up to a letter, with it.
trait Inclusive {
    fn take_while_inclusive(self) -> String;
}

impl<I: Iterator<Item = char>> Inclusive for I {
    fn take_while_inclusive(self) -> String {
        let mut text = String::new();
        for c in self {
            text.push(c);
            if c.is_ascii_alphabetic() {
                break;
            }
        }
        text
    }
}

fn metrics(case: &Scratch) -> Vec<Value> {
    let text = case.read("out/metrics.jsonl");
    let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
    lines.collect()
}

fn case() -> Scratch {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    case
}

#[test]
fn the_view_shows_what_the_metrics_say_and_leaves_the_terminal_as_it_was() {
    let case = case();
    let (status, written) = train(&case, &[]).ended();
    assert_eq!(status.code(), Some(0), "{written}");
    let lines = metrics(&case);
    let last = lines.last().expect("steps");
    let shown = screen(&written);
    let number = |key: &str| last[key].as_f64().expect("a number");
    for words in [
        "step 40/40".to_owned(),
        format!("loss {:.4}", number("loss")),
        format!("norm {:.3}", number("grad_norm")),
        format!("learning rate {:.3e}", number("learning_rate")),
        format!("{:.0} tokens/s", number("tokens_per_second")),
        "64.0 MiB".to_owned(),
        "h2d".to_owned(),
    ] {
        assert!(shown.contains(&words), "{words}:\n{shown}");
    }
    // Behind the view stands what was said meanwhile, and what came of the run.
    let behind = written.rsplit("\u{1b}[?1049l").next().unwrap_or_default();
    for words in [
        "checkpoint ",
        "step 1/40 loss",
        "step 40/40 loss",
        "steps         40",
        "\u{1b}[?25h",
    ] {
        assert!(behind.contains(words), "{words}: {behind}");
    }
    // An error's words are on the terminal, not on the view.
    let (status, written) = train(
        &case,
        &[
            "--set",
            "output=e",
            "--set",
            "train.spike={factor: 1e-6, window: 2, action: stop}",
        ],
    )
    .ended();
    assert_eq!(status.code(), Some(2));
    let behind = written.rsplit("\u{1b}[?1049l").next().unwrap_or_default();
    assert!(behind.contains("error: step 3: gradient norm"), "{behind}");
    // Lines where they are asked for.
    let (status, written) = train(&case, &["--plain", "--set", "output=p"]).ended();
    assert_eq!(status.code(), Some(0));
    assert!(
        !written.contains('\u{1b}') && written.contains("step 40/40 loss"),
        "{written}"
    );
}

#[test]
fn q_leaves_the_view_and_ctrl_c_stops_the_run() {
    let case = case();
    let many = ["--set", "train.steps=100000"];
    let mut terminal = train(&case, &many);
    terminal.until("step 2");
    terminal.press(b"q");
    // The run goes on, with its bar.
    let begin = Instant::now();
    let behind = |t: &Terminal| {
        t.written()
            .rsplit("\u{1b}[?1049l")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    while !(terminal.written().contains("\u{1b}[?1049l") && behind(&terminal).contains("/100000")) {
        assert!(begin.elapsed() < LONG, "{}", terminal.written());
        std::thread::sleep(Duration::from_millis(10));
    }
    let made = metrics(&case).len();
    // The terminal makes no signal of it: it is nobody's that starts there.
    let id = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("sent");
    let (status, _) = terminal.ended();
    assert_eq!(status.code(), Some(130));
    assert!(metrics(&case).len() >= made);

    let mut terminal = train(&case, &many);
    terminal.until("step ");
    terminal.press(b"\x03");
    let (status, written) = terminal.ended();
    assert_eq!(status.code(), Some(130), "{written}");
    assert!(written.contains("stopping: saving"), "{written}");
    assert!(case.at("out/checkpoints").is_dir());
}

#[test]
fn a_lost_terminal_or_half_a_key_holds_nothing_up() {
    let case = case();
    let mut terminal = train(&case, &["--set", "train.steps=100"]);
    terminal.until("step ");
    terminal.press(b"\x1b[");
    let (status, written) = terminal.ended();
    assert_eq!(status.code(), Some(0), "{written}");

    let set = ["--set", "output=l", "--set", "train.steps=100000"];
    let mut terminal = train(&case, &set);
    terminal.until("step ");
    terminal.lost.store(true, Ordering::Release);
    terminal.reader.join().expect("it lets go");
    drop(terminal.keys);
    assert_eq!(wait(&mut terminal.child).code(), Some(129));
    assert!(case.at("l/checkpoints").is_dir());
}
