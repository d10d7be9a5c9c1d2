//! What a disk is made of.

use std::fmt;
use std::path::PathBuf;

use lowtide_units::Bytes;

use crate::ALIGN;
use crate::error::TierError;
use crate::stripe::Stripe;

/// What a disk is made of. [`DiskConfig::new`] gives what suits NVMe drives.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The drives, one directory each, 1 to 64; their order is part of the layout.
    pub drives: Vec<DriveConfig>,
    /// The most that goes to a drive as one operation; a multiple of [`ALIGN`], at most 1 GiB.
    pub block: Bytes,
    /// Bytes that lie together on one drive; a multiple of [`ALIGN`], best one block.
    pub stripe: Bytes,
    /// Blocks in flight on each drive, 1 to 1024.
    pub depth: usize,
    /// What performs the operations: io_uring or threads.
    pub backend: Backend,
    /// Whether to try O_DIRECT. Without it all bytes pass through the page cache.
    pub direct: bool,
    /// What to do about state files that are there already.
    pub open: Open,
    /// Whether the state files stay when the disk is dropped.
    pub keep: bool,
    /// Which run the state belongs to; [`Open::Existing`] must name the same.
    pub run: u128,
    /// Keeps a checksum of every unit of this many bytes that is written, and checks what is
    /// read. `block`, `stripe` and then every extent must be multiples of it, itself of [`ALIGN`].
    pub verify_reads: Option<Bytes>,
}

/// One drive of a disk.
#[derive(Clone, Debug)]
pub struct DriveConfig {
    /// Where its state file goes: a directory that exists.
    pub dir: PathBuf,
    /// Bytes to reserve there before the first write.
    pub bytes: Bytes,
    /// Its share of the traffic, relative to the others'; best its measured bandwidth.
    pub weight: f64,
}

/// What performs the operations on a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where a trial works, threads elsewhere; [`Disk::describe`](crate::Disk::describe) tells which and why.
    Auto,
    /// io_uring; an error where the system refuses it.
    Uring,
    /// `pread` and `pwrite` on up to 8 threads a drive.
    Threads,
}

/// What to do about state files that are there already. A file that is not ours, or that a living
/// process holds, is always an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Begin anew; refuse to touch a file that an earlier run asked to keep.
    Create,
    /// Begin anew, in the place of kept files too: they stay until [`Disk::publish`](crate::Disk::publish).
    Replace,
    /// Go on with the bytes of a kept run that had the same drives, stripes and run id. Where this
    /// disk is larger, what it has more is unspecified.
    Existing,
}

impl DiskConfig {
    /// Settings for these directories and weights: 4 MiB blocks and stripes, depth 8, no bytes
    /// reserved yet ([`DiskConfig::fit`]), run id 0.
    #[must_use]
    pub fn new(drives: impl IntoIterator<Item = (PathBuf, f64)>) -> Self {
        let drives = drives.into_iter();
        Self {
            drives: drives
                .map(|(dir, weight)| DriveConfig {
                    dir,
                    bytes: Bytes::ZERO,
                    weight,
                })
                .collect(),
            block: Bytes::MIB * 4,
            stripe: Bytes::MIB * 4,
            depth: 8,
            backend: Backend::Auto,
            direct: true,
            open: Open::Create,
            keep: false,
            run: 0,
            verify_reads: None,
        }
    }

    /// The same with each drive's bytes set to what a disk of `total` bytes needs of it. Set
    /// `stripe` before.
    ///
    /// # Errors
    /// [`TierError::Setting`] when the drives or the stripe make no disk.
    pub fn fit(mut self, total: Bytes) -> Result<Self, TierError> {
        let stripe = self.checked()?;
        for (i, drive) in self.drives.iter_mut().enumerate() {
            drive.bytes = Bytes(stripe.local_len(i, total.align_up(ALIGN).0));
        }
        Ok(self)
    }

    pub(crate) fn checked(&self) -> Result<Stripe, TierError> {
        let weights: Vec<f64> = self.drives.iter().map(|d| d.weight).collect();
        let layout = Layout {
            weights: &weights,
            block: self.block,
            stripe: self.stripe,
            depth: self.depth,
            verify_reads: self.verify_reads,
        };
        layout.checked()
    }
}

/// The settings that file-backed disks and those in memory share.
pub(crate) struct Layout<'a> {
    pub(crate) weights: &'a [f64],
    pub(crate) block: Bytes,
    pub(crate) stripe: Bytes,
    pub(crate) depth: usize,
    pub(crate) verify_reads: Option<Bytes>,
}

impl Layout<'_> {
    pub(crate) fn checked(&self) -> Result<Stripe, TierError> {
        let check = |fine, key, value: &dyn fmt::Debug, need| {
            let error = || TierError::Setting {
                key,
                value: format!("{value:?}"),
                need,
            };
            if fine { Ok(()) } else { Err(error()) }
        };
        let unit = self.verify_reads.map_or(ALIGN, |unit| unit.0);
        let whole = |bytes: Bytes, of: u64| bytes.0 > 0 && bytes.0.is_multiple_of(of);
        let weight = |w: &f64| w.is_finite() && *w > 0.0;
        let Self {
            weights,
            block,
            stripe,
            depth,
            ..
        } = *self;
        let n = weights.len();
        check((1..=64).contains(&n), "drives", &n, "1 to 64 directories")?;
        check(
            weights.iter().all(weight),
            "weight",
            &weights,
            "greater than zero",
        )?;
        check((1..=1024).contains(&depth), "depth", &depth, "1 to 1024")?;
        check(
            whole(Bytes(unit), ALIGN),
            "verify_reads",
            &unit,
            "a multiple of 4 KiB",
        )?;
        check(
            whole(block, unit) && block <= Bytes::GIB,
            "block",
            &block.0,
            "a multiple of 4 KiB and of the checksum unit, at most 1 GiB",
        )?;
        check(
            whole(stripe, unit),
            "stripe",
            &stripe.0,
            "a multiple of 4 KiB and of the checksum unit",
        )?;
        Ok(Stripe::new(stripe.0, weights))
    }
}
