//! The time, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::strftime;

/// Since 1970; nothing on a machine whose clock is before.
#[must_use]
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Today, `2026-11-21`.
#[must_use]
pub fn today() -> String {
    strftime(now().as_secs() as i64, "%F")
}
