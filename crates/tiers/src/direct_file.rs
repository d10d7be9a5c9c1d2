//! A file that is written once, in windows, past the page cache where the file system allows: what is
//! written is as large as all of a run's state and read by nobody soon, and pages of the cache would have
//! to be found beside a planned arena first.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FallocateFlags;

use crate::ALIGN;

/// A file while it is written, from any number of threads.
#[derive(Debug)]
pub struct DirectFile {
    plain: File,
    direct: Option<File>,
}

impl DirectFile {
    /// Creates or empties the file and reserves `bytes` bytes, its final length, where the file system
    /// can. A symbolic link of that name is not followed.
    ///
    /// # Errors
    /// The system's; among them that there is no space for all of it, and that there is a link.
    pub fn create(path: &Path, bytes: u64) -> io::Result<Self> {
        let plain = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        match rustix::fs::fallocate(&plain, FallocateFlags::empty(), 0, bytes.max(1)) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            other => other?,
        }
        plain.set_len(bytes)?;
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path);
        Ok(Self {
            plain,
            direct: direct.ok(),
        })
    }

    /// Writes `bytes` from `at` on. Whole units of [`ALIGN`] that lie at one in the file and in memory
    /// ([`Window`]) pass the cache by.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let unit = ALIGN as usize;
        let fits = at.is_multiple_of(ALIGN) && (bytes.as_ptr() as usize).is_multiple_of(unit);
        let whole = if fits { bytes.len() / unit * unit } else { 0 };
        let (body, tail) = bytes.split_at(whole);
        self.write_whole(body, at)?;
        self.plain.write_all_at(tail, at + whole as u64)
    }

    fn write_whole(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Some(file) = &self.direct {
            match file.write_all_at(bytes, at) {
                // The file system opened it so and wants larger units, or does not write so after all.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        self.plain.write_all_at(bytes, at)
    }

    /// What was written is on the drive when the call returns.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.plain.sync_all()
    }
}

/// Memory that begins at a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct Window {
    bytes: Vec<u8>,
    start: usize,
}

impl Window {
    /// `bytes` bytes, all zero.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let all = vec![0; bytes + ALIGN as usize];
        let start = all.as_ptr().align_offset(ALIGN as usize);
        let mut window = Self { bytes: all, start };
        window.bytes.truncate(start + bytes);
        window
    }

    /// The bytes that are filled before they are written.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_whole_units_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; 100]).unwrap();
        let unit = ALIGN as usize;
        for len in [0, 1, unit - 1, unit, unit + 1, 5 * unit + 77] {
            let want: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let file = DirectFile::create(&path, len as u64).unwrap();
            let mut window = Window::new(2 * unit);
            // From the last to the first, as threads may.
            for at in (0..len).step_by(2 * unit).rev() {
                let part = &want[at..(at + 2 * unit).min(len)];
                let bytes = &mut window.bytes()[..part.len()];
                assert!((bytes.as_ptr() as usize).is_multiple_of(unit));
                bytes.copy_from_slice(part);
                file.write(bytes, at as u64).unwrap();
            }
            file.sync().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), want);
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(DirectFile::create(&link, 10).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn places_and_memory_that_do_not_fit_go_through_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let unit = ALIGN as usize;
        let want: Vec<u8> = (0..3 * unit).map(|i| (i % 253) as u8).collect();
        let file = DirectFile::create(&path, want.len() as u64).unwrap();
        file.write(&want[..unit + 3], 0).unwrap();
        file.write(&want[unit + 3..], unit as u64 + 3).unwrap();
        file.sync().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), want);
    }
}
