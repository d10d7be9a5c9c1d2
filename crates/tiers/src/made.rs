//! Directories that are made for a drive's files, and go with them where nothing stays in them.

use std::io;
use std::path::{Path, PathBuf};

/// Directories that this process has made; dropping it removes those that are empty then.
#[derive(Debug, Default)]
pub struct MadeDirs(Vec<PathBuf>);

impl MadeDirs {
    /// Makes a directory with those above it that are not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(&mut self, dir: &Path) -> io::Result<()> {
        let above = dir.ancestors().filter(|d| !d.as_os_str().is_empty());
        let mut missing: Vec<PathBuf> = above
            .take_while(|d| d.symlink_metadata().is_err())
            .map(Path::to_owned)
            .collect();
        std::fs::create_dir_all(dir)?;
        missing.reverse();
        self.0.extend(missing);
        Ok(())
    }
}

impl Drop for MadeDirs {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            // One that has something in it stays.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_and_is_empty_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        std::fs::create_dir(&there).unwrap();
        let mut made = MadeDirs::default();
        for name in ["there", "there/a/b", "c/d", "e"] {
            made.make(&dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("c/kept"), "").unwrap();
        drop(made);
        let left = |name: &str| dir.path().join(name).exists();
        assert!(left("there") && left("c/kept"));
        assert!(!left("there/a") && !left("c/d") && !left("e"));
    }
}
