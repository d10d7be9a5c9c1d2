//! Opening and reading.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::FileError;
use crate::foreign::{Foreign, NotRegular, PEEK};
use crate::json::json_from_slice;

/// An open regular file.
#[derive(Debug)]
pub struct Regular {
    /// The file, at its beginning, for reading.
    pub file: File,
    /// Its bytes when it was opened.
    pub len: u64,
}

fn not_regular(kind: fs::FileType) -> Option<NotRegular> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some(NotRegular::Directory)
    } else if kind.is_fifo() {
        Some(NotRegular::Fifo)
    } else if kind.is_socket() {
        Some(NotRegular::Socket)
    } else {
        Some(NotRegular::Device)
    }
}

/// Opens a regular file of any size and make for reading; links are followed. Never waits for another
/// process, and never touches a device.
///
/// # Errors
/// Nothing there, or not a regular file.
pub fn open_any(path: &Path) -> Result<Regular, FileError> {
    let at = || path.to_owned();
    let io = |source: std::io::Error| match (source.kind(), fs::read_link(path)) {
        (ErrorKind::NotFound, Ok(target)) => FileError::Dangling { path: at(), target },
        (ErrorKind::NotFound, Err(_)) => FileError::Missing { path: at() },
        _ => FileError::Io { path: at(), source },
    };
    let refuse = |kind| FileError::NotRegular { path: at(), kind };
    // Asked before it is opened, because opening a device may do something.
    if let Some(kind) = not_regular(fs::metadata(path).map_err(io)?.file_type()) {
        return Err(refuse(kind));
    }
    // And not to wait if the name changes hands in between: opening a pipe waits for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if let Some(kind) = not_regular(meta.file_type()) {
        return Err(refuse(kind));
    }
    Ok(Regular {
        file,
        len: meta.len(),
    })
}

/// The same of a file that is read as it is.
///
/// # Errors
/// As [`open_any`], and for a file whose first bytes say that it is of a make that is never read here (a
/// Git LFS pointer, a page of HTML, an archive).
pub fn open(path: &Path) -> Result<Regular, FileError> {
    let Regular { file, len } = open_any(path)?;
    let io = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut head = [0; PEEK];
    let mut got = 0;
    while got < PEEK {
        match file.read_at(&mut head[got..], got as u64).map_err(io)? {
            0 => break,
            n => got += n,
        }
    }
    match Foreign::of(&head[..got]) {
        Some(kind) => Err(FileError::Foreign {
            path: path.to_owned(),
            kind,
        }),
        None => Ok(Regular { file, len }),
    }
}

/// All bytes of a regular file that has at least one and at most `most`.
///
/// # Errors
/// As [`open`]; an empty file; one with more bytes than `most`, of which no more are read.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, FileError> {
    let Regular { file, len } = open(path)?;
    let too_large = |have| FileError::TooLarge {
        path: path.to_owned(),
        have,
        most,
    };
    if len > most {
        return Err(too_large(len));
    }
    let mut bytes = Vec::with_capacity(len as usize + 1);
    // The file may grow while it is read, and those of /proc have a length of 0.
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Io {
            path: path.to_owned(),
            source,
        })?;
    match bytes.len() as u64 {
        0 => Err(FileError::Empty {
            path: path.to_owned(),
        }),
        n if n > most => Err(too_large(n)),
        _ => Ok(bytes),
    }
}

/// The text of a regular file of at most `most` bytes.
///
/// # Errors
/// As [`read`]; bytes that are not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String, FileError> {
    String::from_utf8(read(path, most)?).map_err(|e| FileError::NotUtf8 {
        path: path.to_owned(),
        valid: e.utf8_error().valid_up_to(),
    })
}

/// What a JSON file of at most `most` bytes says.
///
/// # Errors
/// As [`read`]; text that is not JSON or not of the form of `T`, with line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T, FileError> {
    let bytes = read(path, most)?;
    json_from_slice(&bytes).map_err(|problem| FileError::Json {
        path: path.to_owned(),
        problem,
    })
}

/// The first name in a directory, in the order of the alphabet, that is or ends with one of `names`;
/// earlier ones of these come first. For errors that say what is there instead.
#[must_use]
pub fn find(dir: &Path, names: &[&str]) -> Option<String> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut all: Vec<String> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    all.sort();
    names
        .iter()
        .find_map(|name| all.iter().find(|a| a.ends_with(name)))
        .cloned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    fn text(result: Result<Vec<u8>, FileError>) -> String {
        result.expect_err("it is refused").to_string()
    }

    #[test]
    fn only_regular_files_are_read_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let began = Instant::now();
        let made = Command::new("mkfifo").arg(at("pipe")).status().unwrap();
        assert!(made.success());
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(at("pipe"), at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        for (name, want) in [
            ("pipe", "a named pipe (FIFO), not a file"),
            ("link", "a named pipe (FIFO), not a file"),
            ("socket", "a socket, not a file"),
            ("zero", "a device, not a file"),
            (".", "a directory, not a file"),
            ("dangling", "a symbolic link to nowhere, which is not there"),
            ("nothing", "no such file or directory"),
        ] {
            let path = at(name);
            let want = format!("{}: {want}", path.display());
            assert_eq!(text(read(&path, 100)), want);
        }
        assert!(began.elapsed() < Duration::from_secs(5));
        // A link to a file is that file.
        fs::write(at("file"), "x").unwrap();
        symlink("file", at("good")).unwrap();
        assert_eq!(read(&at("good"), 1).unwrap(), b"x");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [b'x'; 100]).unwrap();
        assert_eq!(read(&path, 100).unwrap().len(), 100);
        let want = format!(
            "{}: 100 bytes, at most 99 are read of such a file",
            path.display()
        );
        assert_eq!(text(read(&path, 99)), want);
        // Sparse: nobody has the memory.
        File::options()
            .write(true)
            .open(&path)
            .and_then(|f| f.set_len(1 << 33))
            .unwrap();
        assert!(matches!(
            read(&path, 99),
            Err(FileError::TooLarge { have, .. }) if have == 1 << 33
        ));
        // A file whose length says 0.
        assert!(
            !read(Path::new("/proc/self/status"), 1 << 20)
                .unwrap()
                .is_empty()
        );
        assert!(matches!(
            read(Path::new("/proc/self/status"), 10),
            Err(FileError::TooLarge { have: 11, .. })
        ));
        fs::write(&path, "").unwrap();
        assert!(text(read(&path, 99)).ends_with("the file is empty"));
        fs::write(&path, b"ab\xff").unwrap();
        let error = read_text(&path, 99).unwrap_err().to_string();
        assert!(error.ends_with("not UTF-8 after 2 bytes"), "{error}");
    }
}
