//! The committed files to begin from.

use std::path::Path;

/// A file to begin from.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Its name in `seeds/TARGET`.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl Seed {
    /// Whether the target must accept it.
    #[must_use]
    pub fn good(&self) -> bool {
        !self.name.starts_with("refused-")
    }
}

/// The seeds of a target by name. A program that was copied to another machine has none: its corpus is
/// given to it ([`seeds_in`]).
#[must_use]
pub fn seeds(target: &str) -> Vec<Seed> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    seeds_in(&dir.join(target))
}

/// The files in a folder, by name.
#[must_use]
pub fn seeds_in(dir: &Path) -> Vec<Seed> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<Seed> = entries
        .filter_map(|entry| {
            Some(Seed {
                name: entry.file_name().into_string().ok()?,
                bytes: std::fs::read(entry.path()).ok()?,
            })
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}
