//! Where text goes. A closed pipe (`lowtide plan | head`) is no error.

use std::io::{Write, stderr, stdout};

use serde_json::Value;

/// Standard output for people, or for a program.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    json: bool,
}

impl Out {
    /// `json`: people read standard error, a program the last line of standard output.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints for people.
    pub fn text(self, text: &str) {
        if self.json {
            let _ = writeln!(stderr(), "{text}");
        } else {
            let _ = writeln!(stdout(), "{text}");
        }
    }

    /// Prints a command's answer, if a program reads it.
    pub fn answer(self, answer: &Value) {
        if self.json {
            let _ = writeln!(stdout(), "{answer}");
        }
    }
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

/// A size to paste back that is not less than `n`: whole MiB.
pub fn enough(n: u64) -> String {
    format!("{}MiB", n.div_ceil(1 << 20))
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
    }
}
