//! A file that a command is to write.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::folder::{Folder, Found, pending};
use crate::error::TrainError;

/// Bytes of a file by which it is known.
const HEAD: u64 = 4096;

/// Where a file is to be written, which was tried.
#[derive(Debug)]
pub struct Place {
    folder: Folder,
    name: String,
}

/// Why a file cannot be written there.
#[derive(Debug)]
pub enum Taken {
    /// The path does not end in a name of plain text.
    NoName,
    /// What is there cannot be read.
    Unreadable(std::io::Error),
    /// What is there was not written by a command that writes such files.
    NotOurs,
    /// The name under which it would be written first is taken.
    Pending(String),
}

impl Place {
    /// Tries whether the file can be written. One that is there must be `ours` by its first bytes: whatever else has
    /// that name is not lowtide's to replace.
    ///
    /// # Errors
    /// The outer one: a directory that cannot be written, or an entry that is no file. The inner one: why not there.
    pub fn find(
        path: &Path,
        ours: impl Fn(&str) -> bool,
    ) -> Result<Result<Self, Taken>, TrainError> {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Ok(Err(Taken::NoName));
        };
        let above = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = Folder::open(above.unwrap_or(Path::new(".")))?;
        if folder.expect(name, Found::File)? {
            let mut head = Vec::new();
            let mut file = folder.read(name)?.take(HEAD);
            if let Err(e) = file.read_to_end(&mut head) {
                return Ok(Err(Taken::Unreadable(e)));
            }
            if !head.is_empty() && !ours(&String::from_utf8_lossy(&head)) {
                return Ok(Err(Taken::NotOurs));
            }
        }
        let tried = pending(name);
        if folder.found(&tried)? != Found::Nothing {
            return Ok(Err(Taken::Pending(tried)));
        }
        folder.create_new(&tried)?;
        folder.remove(&tried)?;
        Ok(Ok(Self {
            folder,
            name: name.to_owned(),
        }))
    }

    /// The path as it was given, below its open directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.at(&self.name)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, text: &str) -> Result<(), TrainError> {
        self.folder.write(&self.name, |file: &mut dyn Write| {
            file.write_all(text.as_bytes())
        })
    }
}
