//! Where text goes. A closed pipe (`lowtide plan | head`) is no error; any other standard output that does not
//! take what it is given makes the command end with one.

use std::io::{ErrorKind, Write, stderr, stdout};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

/// Standard output for people, or for a program.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    json: bool,
    verbose: bool,
}

impl Out {
    /// `json`: people read standard error, a program the last line of standard output.
    /// `verbose`: people want to look inside.
    pub fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose }
    }

    /// Prints for people who want to look inside.
    pub fn detail(self, text: &str) {
        if self.verbose {
            self.text(text);
        }
    }

    /// Prints for people.
    pub fn text(self, text: &str) {
        if self.json {
            let _ = writeln!(stderr(), "{text}");
        } else {
            print(format_args!("{text}\n"));
        }
    }

    /// Prints a command's answer, if a program reads it.
    pub fn answer(self, answer: &Value) {
        if self.json {
            print(format_args!("{answer}\n"));
        }
    }
}

/// Why standard output did not take all that it was given: the first refusal.
static REFUSED: OnceLock<String> = OnceLock::new();

fn print(text: std::fmt::Arguments<'_>) {
    let mut to = stdout().lock();
    noted(&to.write_fmt(text).and_then(|()| to.flush()));
}

/// Remembers a refusal; a reader that went away is none.
pub fn noted(written: &std::io::Result<()>) {
    if let Err(e) = written
        && e.kind() != ErrorKind::BrokenPipe
    {
        let _ = REFUSED.set(e.to_string());
    }
}

/// Says on standard error if some of what a command printed is lost.
pub fn refused() -> bool {
    let Some(why) = REFUSED.get() else {
        return false;
    };
    complain(&format!(
        "error: standard output: {why}: not all was printed"
    ));
    complain("  help: free some space where it goes to, or send it elsewhere");
    true
}

/// Prints on standard error.
pub fn complain(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// Bytes as people read them: `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut x = n as f64;
    let mut unit = 0;
    while x >= 1024.0 && unit + 1 < UNITS.len() {
        x /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{x:.1} {}", UNITS[unit])
    }
}

/// Seconds as people read them: `1.25 s`, `12.3 ms`.
pub fn seconds(s: f64) -> String {
    match s {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}

/// A length of time as people read it: `3 min 20 s`.
pub fn duration(d: Duration) -> String {
    match d.as_secs() {
        s @ 0..10 => format!("{s}.{} s", d.subsec_millis() / 100),
        s @ 10..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// A size to paste back that is not less than `n`: whole MiB.
pub fn enough(n: u64) -> String {
    format!("{}MiB", n.div_ceil(1 << 20))
}

/// A path as a value of `--set` that is taken as it is.
pub fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_meant() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(u64::MAX >> 2), "4194304.0 TiB");
        assert_eq!(enough((1 << 20) + 1), "2MiB");
        assert_eq!(seconds(0.0123), "12.3 ms");
        let length = |s: f64| duration(Duration::from_secs_f64(s));
        assert_eq!(length(0.25), "0.2 s");
        assert_eq!(length(59.9), "59 s");
        assert_eq!(length(200.0), "3 min 20 s");
        assert_eq!(length(7260.0), "2 h 1 min");
        assert_eq!(length(90_000.0), "1 d 1 h");
    }
}
