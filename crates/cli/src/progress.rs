//! What is shown while something takes its time: a spinner or a bar on a terminal, elsewhere a line
//! now and then. All of it goes to standard error, but for the lines of steps, which are results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::out::{complain, duration};

/// What takes less is not worth a line.
const SHORT: Duration = Duration::from_secs(2);
/// A line at least this often.
const OFTEN: Duration = Duration::from_secs(30);

/// Lines are asked for, whatever there is.
static PLAIN: AtomicBool = AtomicBool::new(false);

/// Nothing is drawn from here on.
pub fn plain() {
    PLAIN.store(true, Ordering::Relaxed);
}

/// Whether progress can be drawn.
pub fn terminal() -> bool {
    !PLAIN.load(Ordering::Relaxed) && !ProgressBar::new(1).is_hidden()
}

/// Something is under way until this is dropped.
#[derive(Debug)]
pub struct Waiting {
    way: Way,
    /// Parts done, and of how many; 0 where that is not known.
    at: Arc<[AtomicU64; 2]>,
}

#[derive(Debug)]
enum Way {
    Spinner(ProgressBar, &'static str),
    /// A thread that prints what is under way until the sender is gone.
    Lines(Option<Sender<()>>, Option<JoinHandle<()>>),
}

impl Waiting {
    /// `what` begins, such as `planning`.
    pub fn begin(what: &'static str) -> Self {
        Self::telling(what, SHORT, OFTEN, complain)
    }

    fn telling(
        what: &'static str,
        short: Duration,
        often: Duration,
        tell: impl Fn(&str) + Send + 'static,
    ) -> Self {
        let at = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let way = if terminal() {
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            let style = style.expect("a constant template");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.set_message(what);
            bar.enable_steady_tick(Duration::from_millis(120));
            Way::Spinner(bar, what)
        } else {
            let (sender, receiver) = mpsc::channel::<()>();
            let at = Arc::clone(&at);
            let begin = Instant::now();
            let thread = std::thread::spawn(move || {
                let over = |time| {
                    let ended = receiver.recv_timeout(time);
                    ended != Err(RecvTimeoutError::Timeout)
                };
                if over(short) {
                    return;
                }
                tell(&format!("{what} ..."));
                while !over(often) {
                    let took = duration(begin.elapsed());
                    tell(&format!("{what}{}: {took} so far", counted(&at)));
                }
                tell(&format!("{what}: {}", duration(begin.elapsed())));
            });
            Way::Lines(Some(sender), Some(thread))
        };
        Self { way, at }
    }

    /// Sets how many parts are done, and of how many.
    pub fn at(&self, done: u64, of: u64) {
        self.at[0].store(done, Ordering::Relaxed);
        self.at[1].store(of, Ordering::Relaxed);
        if let Way::Spinner(bar, what) = &self.way {
            bar.set_message(format!("{what}{}", counted(&self.at)));
        }
    }

    /// Runs something that prints, above the spinner.
    pub fn above(&self, print: impl FnOnce()) {
        match &self.way {
            Way::Spinner(bar, _) => bar.suspend(print),
            Way::Lines(..) => print(),
        }
    }
}

/// ` 3/120`, where that is known.
fn counted(at: &[AtomicU64; 2]) -> String {
    match at.each_ref().map(|n| n.load(Ordering::Relaxed)) {
        [_, 0] => String::new(),
        [done, of] => format!(" {done}/{of}"),
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        match &mut self.way {
            Way::Spinner(bar, _) => bar.finish_and_clear(),
            Way::Lines(sender, thread) => {
                drop(sender.take());
                // Its last line comes before whatever is printed next.
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
        }
    }
}

/// How long steps take, for what is left of them.
#[derive(Debug, Default)]
pub struct Pace {
    first: Option<(Instant, u64)>,
}

impl Pace {
    /// `step` of `steps` is done now. What the rest will take at the pace since the first step that was
    /// shown; the first one alone has no pace: it warms up, and no update lies in its time.
    pub fn left(&mut self, now: Instant, step: u64, steps: u64) -> Option<Duration> {
        let (begin, first) = *self.first.get_or_insert((now, step));
        let made = step.checked_sub(first).filter(|&n| n > 0)?;
        let each = (now - begin).as_secs_f64() / made as f64;
        let left = steps.saturating_sub(step) as f64 * each;
        (left > 0.0)
            .then(|| Duration::try_from_secs_f64(left).ok())
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_is_short_is_not_told_and_what_is_long_is() {
        if terminal() {
            return; // under a terminal a spinner turns instead
        }
        let ms = Duration::from_millis;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let tell = |short| {
            let lines = Arc::clone(&lines);
            Waiting::telling("thinking", short, ms(40), move |text| {
                lines.lock().expect("no panic").push(text.to_owned());
            })
        };
        drop(tell(ms(10_000)));
        assert!(lines.lock().expect("no panic").is_empty());
        let waiting = tell(ms(0));
        waiting.at(3, 7);
        std::thread::sleep(ms(100));
        drop(waiting);
        let lines = lines.lock().expect("no panic");
        assert_eq!(lines[0], "thinking ...");
        assert!(lines[1].starts_with("thinking 3/7: "), "{lines:?}");
        let last = lines.last().expect("one");
        assert!(last.starts_with("thinking: "), "{lines:?}");
    }

    #[test]
    fn the_rest_is_foretold_from_the_second_step_on() {
        let mut pace = Pace::default();
        let (begin, s) = (Instant::now(), Duration::from_secs);
        // A resumed run: what was made before does not count.
        assert_eq!(pace.left(begin, 41, 100), None);
        assert_eq!(pace.left(begin + s(2), 42, 100), Some(s(116)));
        assert_eq!(pace.left(begin + s(9), 44, 100), Some(s(168)));
        assert_eq!(pace.left(begin + s(99), 100, 100), None);
    }
}
