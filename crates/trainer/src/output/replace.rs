//! Directories that appear, are replaced and go as a whole.
//!
//! A name means a whole directory, always. A new one is filled as `.NAME.pending` and renamed in; where
//! the name is taken the two change places in one call, and the old one, now `.NAME.pending`, is taken
//! apart. A file system that cannot exchange has it aside as `.NAME.old` for a moment, and the next start
//! puts it back if the new one is not in. One that is given up is renamed to `.NAME.given-up` first.
//! Taking apart removes what lowtide wrote; a file of somebody else's moves to the directory that has the name now,
//! or to `NAME.kept`.

use std::ffi::OsStr;
use std::path::Path;

use super::folder::{Folder, Found, pending};
use super::mark::{Holds, MARK, Mark};
use crate::error::TrainError;

fn aside(name: &str) -> String {
    format!(".{name}.old")
}

fn given_up(name: &str) -> String {
    format!(".{name}.given-up")
}

/// Directories of one kind in a folder: checkpoints, or the model.
#[derive(Debug)]
pub struct Shelf<'a> {
    /// Where they are.
    pub folder: &'a Folder,
    /// What they are.
    pub holds: Holds,
    /// Files that are lowtide's in a directory of its own without a mark, or changed since.
    pub always: &'static [&'static str],
    /// Whether a directory without a mark is lowtide's, from a version that made none.
    pub earlier: fn(&Path) -> bool,
}

impl Shelf<'_> {
    /// Fills a new directory and gives it its name. When it returns, the name means the new directory, on the disk;
    /// when it fails, what it meant before. Returns where files that are not lowtide's went, for the user.
    pub fn put(
        &self,
        name: &str,
        fill: impl FnOnce(&Folder) -> Result<(), TrainError>,
    ) -> Result<Vec<String>, TrainError> {
        let (folder, notes) = self.begin(name)?;
        if let Err(error) = fill(&folder) {
            self.abandon(name);
            return Err(error);
        }
        self.finish(name, &folder, notes)
    }

    /// Makes a new directory that has not its name yet: to fill it, and then to [`finish`](Self::finish) or to
    /// [`abandon`](Self::abandon) it.
    pub fn begin(&self, name: &str) -> Result<(Folder, Vec<String>), TrainError> {
        let mut notes = Vec::new();
        let new = pending(name);
        if self.folder.expect(&new, Found::Folder)? {
            self.take_apart(&new, name, &mut notes)?;
        }
        self.folder.make_new(&new)?;
        let marked = self.folder.make(&new).and_then(|folder| {
            Mark::begin(&folder, self.holds)?;
            Ok(folder)
        });
        if marked.is_err() {
            self.abandon(name);
        }
        Ok((marked?, notes))
    }

    /// Removes a new directory that is not to have its name.
    pub fn abandon(&self, name: &str) {
        // A failure is on its way already; what is left is found at the next start.
        let _ = self.take_apart(pending(name), name, &mut Vec::new());
    }

    /// Gives a new directory that is filled its name; otherwise as [`put`](Self::put).
    pub fn finish(
        &self,
        name: &str,
        folder: &Folder,
        mut told: Vec<String>,
    ) -> Result<Vec<String>, TrainError> {
        let new = pending(name);
        let done = Mark::finish(folder, self.holds, self.always).and_then(|_| folder.sync());
        if let Err(error) = done {
            self.abandon(name);
            return Err(error);
        }
        if self.folder.rename_new(&new, self.folder, name)? {
            self.folder.sync()?;
            return Ok(told);
        }
        self.folder.expect(name, Found::Folder)?;
        let old = if self.folder.exchange(&new, name)? {
            new
        } else {
            let old = aside(name);
            if self.folder.expect(&old, Found::Folder)? {
                self.take_apart(&old, name, &mut told)?;
            }
            self.folder.rename(name, self.folder, &old)?;
            self.folder.rename(&new, self.folder, name)?;
            old
        };
        self.folder.sync()?;
        // The new one is in; what cannot be removed now is found at the next start.
        if let Err(e) = self.take_apart(&old, name, &mut told) {
            told.push(format!("warning: {e}: a replaced directory is left over"));
        }
        Ok(told)
    }

    /// Gives a directory up: its name is gone at once and as a whole, then its files.
    pub fn give_up(&self, name: &str) -> Result<Vec<String>, TrainError> {
        let mut told = Vec::new();
        let gone = given_up(name);
        if self.folder.expect(&gone, Found::Folder)? {
            self.take_apart(&gone, name, &mut told)?;
        }
        // A link or a file under the other name would stop every start from here on.
        if !self.folder.expect(name, Found::Folder)? {
            return Ok(told);
        }
        self.folder.rename(name, self.folder, &gone)?;
        self.folder.sync()?;
        self.take_apart(&gone, name, &mut told)?;
        Ok(told)
    }

    /// Puts in order what a killed process left of directories whose name `is_ours`.
    pub fn recover(&self, is_ours: impl Fn(&str) -> bool) -> Result<Vec<String>, TrainError> {
        let mut told = Vec::new();
        for (entry, _) in self.folder.entries()? {
            let Some((name, suffix)) = entry
                .to_str()
                .and_then(|e| e.strip_prefix('.'))
                .and_then(|e| e.rsplit_once('.'))
                .filter(|(name, _)| is_ours(name))
            else {
                continue;
            };
            match suffix {
                "pending" | "given-up" => {}
                "old" if self.folder.found(name)? == Found::Nothing => {
                    self.folder.expect(&entry, Found::Folder)?;
                    self.folder.rename(&entry, self.folder, name)?;
                    self.folder.sync()?;
                    continue;
                }
                "old" => {}
                _ => continue,
            }
            let cleared = self.folder.expect(&entry, Found::Folder);
            let cleared = cleared.and_then(|_| self.take_apart(&entry, name, &mut told));
            match cleared {
                // It is in the way of no save and no export.
                Err(e) if suffix == "given-up" => {
                    told.push(format!("warning: {e}: it is left over from an earlier run"));
                }
                cleared => cleared?,
            }
        }
        Ok(told)
    }

    /// Removes a directory that has lost its name: our files go, all others move to where the name is now. The mark
    /// goes last, so that a process that dies here can be followed by another.
    fn take_apart(
        &self,
        gone: impl AsRef<OsStr>,
        name: &str,
        told: &mut Vec<String>,
    ) -> Result<(), TrainError> {
        let gone = gone.as_ref();
        let Some(old) = self.folder.sub(gone)? else {
            return Ok(());
        };
        let mark = Mark::of(&old)?;
        let always = match &mark {
            None if !(self.earlier)(old.path()) => &[],
            _ => self.always,
        };
        self.remove_ours(&old, "", mark.as_ref(), always)?;
        for (entry, _) in old.entries()? {
            if entry != MARK {
                told.push(self.keep(&old, &entry, name)?);
            }
        }
        if old.expect(MARK, Found::File)? {
            old.remove(MARK)?;
        }
        self.folder.remove_empty(gone)
    }

    /// Removes what lowtide wrote in a folder, which is called `at` seen from the mark, and folders in it
    /// that are empty then.
    fn remove_ours(
        &self,
        folder: &Folder,
        at: &str,
        mark: Option<&Mark>,
        always: &[&str],
    ) -> Result<(), TrainError> {
        // Backwards: `run.json`, by which a directory is known, goes after the state.
        for (entry, found) in folder.entries()?.into_iter().rev() {
            let Some(text) = entry.to_str().filter(|n| *n != MARK) else {
                continue;
            };
            if found == Found::Folder {
                // One that lowtide has no file in is somebody else's, empty or not.
                let below = format!("{at}{text}/");
                if let Some(sub) = folder.sub(text)?
                    && mark.is_some_and(|m| m.has_below(&below))
                {
                    self.remove_ours(&sub, &below, mark, always)?;
                    if sub.entries()?.is_empty() {
                        folder.remove_empty(text)?;
                    }
                }
                continue;
            }
            let ours = found == Found::File
                && (at.is_empty() && always.contains(&text)
                    || match mark {
                        Some(mark) => mark.wrote(folder, at, text)?,
                        // Killed while the first mark was written.
                        None => text == pending(MARK),
                    });
            if ours {
                folder.remove(&entry)?;
            }
        }
        Ok(())
    }

    /// Moves a file that is not lowtide's to the directory that has the name now, or beside it.
    fn keep(&self, old: &Folder, entry: &OsStr, name: &str) -> Result<String, TrainError> {
        let moved = |to: &Folder| {
            let path = to.at(entry);
            format!("{}: not lowtide's, kept", path.display())
        };
        if let Some(new) = self.folder.sub(name)?
            && old.rename_new(entry, &new, entry)?
        {
            return Ok(moved(&new));
        }
        for n in 0u32.. {
            let beside = match n {
                0 => format!("{name}.kept"),
                n => format!("{name}.kept-{n}"),
            };
            if !matches!(self.folder.found(&beside)?, Found::Nothing | Found::Folder) {
                continue;
            }
            let to = self.folder.make(&beside)?;
            if old.rename_new(entry, &to, entry)? {
                return Ok(moved(&to));
            }
        }
        unreachable!("2^32 directories have a file of this name")
    }
}

#[cfg(test)]
#[path = "replace_tests.rs"]
mod tests;
