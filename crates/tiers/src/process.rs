//! What this process uses, and what a file system has left.

use std::fs;
use std::path::Path;

use lowtide_units::Bytes;

use crate::TierError;
use crate::memory::field;

/// The most memory that was resident at once in this process (`VmHWM`) since it began; `None` where the
/// system does not say.
#[must_use]
pub fn peak_rss_bytes() -> Option<Bytes> {
    status("VmHWM:")
}

/// Memory now resident in this process (`VmRSS`); `None` where the system does not say.
#[must_use]
pub fn rss_bytes() -> Option<Bytes> {
    status("VmRSS:")
}

/// Bytes that an ordinary user can still write to the file system that holds `path`.
///
/// # Errors
/// [`TierError::File`] when the system does not say, as for a path that does not exist.
pub fn disk_free(path: &Path) -> Result<Bytes, TierError> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| TierError::file("asking for the free space of", path, e))?;
    Ok(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// All bytes of the file system that holds `path`, and which one it is.
///
/// # Errors
/// As [`disk_free`].
pub fn disk_total(path: &Path) -> Result<(Bytes, u64), TierError> {
    let fail = |e| TierError::file("asking for the size of", path, e);
    let stat = rustix::fs::statvfs(path).map_err(fail)?;
    let dev = rustix::fs::stat(path).map_err(fail)?.st_dev;
    Ok((Bytes(stat.f_blocks.saturating_mul(stat.f_frsize)), dev))
}

/// How much of these bytes of this process lies on transparent huge pages; `None` where the system
/// does not say. A mapping that is only partly inside counts as far as it can be inside.
#[must_use]
pub(crate) fn huge_bytes(from: u64, bytes: u64) -> Option<Bytes> {
    let text = fs::read_to_string("/proc/self/smaps").ok()?;
    let mut inside = 0;
    let mut sum = 0;
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            inside = end.min(from + bytes).saturating_sub(start.max(from));
        } else if first == "AnonHugePages:" {
            sum += (field(line, first)? * 1024).min(inside);
        }
    }
    Some(Bytes(sum))
}

fn status(key: &str) -> Option<Bytes> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    field(&text, key).map(|kib| Bytes(kib * 1024))
}
