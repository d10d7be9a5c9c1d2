//! Bytes, seconds and names of models as people read them.

use std::path::Path;
use std::time::Duration;

/// Bytes: `1.5 GiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut x = n as f64;
    let mut unit = 0;
    while x >= 1024.0 && unit + 1 < UNITS.len() {
        x /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        4 => format!("{x:.2} {}", UNITS[unit]),
        _ => format!("{x:.1} {}", UNITS[unit]),
    }
}

/// Seconds: `1.25 s`, `12.3 ms`.
#[must_use]
pub fn seconds(s: f64) -> String {
    match s {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}

/// A length of time: `3 min 20 s`.
#[must_use]
pub fn duration(d: Duration) -> String {
    match d.as_secs() {
        s @ 0..10 => format!("{s}.{} s", d.subsec_millis() / 100),
        s @ 10..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// A count with thin groups of three: `1,048,576`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `org/name`, of the Hub cache's `models--org--name/snapshots/COMMIT`.
pub(crate) fn hub_name(path: &Path) -> Option<String> {
    let snapshots = path.parent().filter(|p| p.ends_with("snapshots"))?;
    let model = snapshots.parent()?.file_name()?.to_str()?;
    Some(model.strip_prefix("models--")?.replacen("--", "/", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_meant() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(u64::MAX >> 2), "4194304.00 TiB");
        assert_eq!(seconds(0.0123), "12.3 ms");
        let length = |s: f64| duration(Duration::from_secs_f64(s));
        assert_eq!(length(0.25), "0.2 s");
        assert_eq!(length(59.9), "59 s");
        assert_eq!(length(200.0), "3 min 20 s");
        assert_eq!(length(7260.0), "2 h 1 min");
        assert_eq!(length(90_000.0), "1 d 1 h");
        assert_eq!(
            [0, 999, 1000, 1_048_576].map(count),
            ["0", "999", "1,000", "1,048,576"]
        );
    }

    #[test]
    fn a_snapshot_of_the_hub_has_its_models_name() {
        let name = |path: &str| hub_name(Path::new(path));
        let snapshot = "/c/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de2";
        assert_eq!(name(snapshot).as_deref(), Some("Qwen/Qwen3-0.6B"));
        assert_eq!(name("/c/snapshots/c1899de2"), None);
        assert_eq!(name("/models/mine"), None);
    }
}
