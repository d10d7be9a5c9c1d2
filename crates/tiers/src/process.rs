//! What this process uses, and what a file system has left.

use std::fs;
use std::path::Path;

use lowtide_units::Bytes;

use crate::TierError;
use crate::memory::field;

/// The most memory that was ever resident at once in this process (`VmHWM`); `None` where the
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

fn status(key: &str) -> Option<Bytes> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    field(&text, key).map(|kib| Bytes(kib * 1024))
}
