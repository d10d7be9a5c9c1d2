//! Tokenised examples in a file of lowtide's cache, under a name that is the hash of all that they were made of.
//!
//! A file is written under another name, with a lock that ends with the process, and renamed when it is whole and
//! synced. So nobody reads half of one, and two runs that make the same at once do not disturb each other: both have
//! what they wrote. `docs/formats.md` has its bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dataset::LoadReport;
use super::mask::Example;
use super::remarks::Remarks;
use super::store::{Span, Store, words, words_of};
use crate::error::DataError;

/// Beginning of a file, with the version of its layout.
const MAGIC: &[u8; 16] = b"lowtide tokens 1";
/// Bytes before the first word: the magic and the key.
const HEAD: u64 = 48;
/// Bytes of a span in a file: length, data file.
const SPAN: usize = 8;
/// Bytes at the end: numbers of words and spans, bytes of the counts, checksum, magic.
const TAIL: usize = 44;
/// Most bytes of the counts of a file.
const COUNTS_MAX: u64 = 1 << 20;
/// Ending of a file that is whole.
const WHOLE: &str = "tokens";
/// Ending of a file that is being written.
const PART: &str = "part";

/// What is wrong with a link or a directory at the name of a file.
const STRANGE: &str = "it is no regular file";

/// What a file's examples were made of, as 256 bits.
pub(super) type Key = [u8; 32];

/// What was counted while the examples were made.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Counts {
    pub report: LoadReport,
    pub remarks: Remarks,
}

/// A file that is read back.
pub(super) struct Whole {
    pub store: Store,
    pub spans: Vec<Span>,
    pub list: List,
    pub counts: Counts,
}

/// Examples that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The number of the first one.
    pub first: u64,
    /// How many there are.
    pub n: u64,
    /// The word at which the first one begins.
    pub from: u64,
}

/// Where examples lie, in a file.
#[derive(Debug)]
pub(super) struct List {
    file: File,
    /// Its first byte.
    at: u64,
}

impl List {
    /// Where the examples of a part lie. Whether these are the right ones shows in the examples, which are checked.
    pub fn spans(&self, part: Part) -> std::io::Result<Vec<Span>> {
        let mut bytes = vec![0; part.n as usize * SPAN];
        let at = self.at + part.first * SPAN as u64;
        self.file.read_exact_at(&mut bytes, at)?;
        let mut from = part.from;
        let spans = bytes.as_chunks().0.iter().map(|bytes| {
            let span = span(bytes, from);
            from += words_of(span.len);
            span
        });
        Ok(spans.collect())
    }
}

fn span(bytes: &[u8; SPAN], from: u64) -> Span {
    let word = |i: usize| u32::from_le_bytes(bytes[4 * i..][..4].try_into().expect("4 bytes"));
    Span {
        from,
        len: word(0),
        file: word(1),
    }
}

/// The file of a key.
pub(super) fn path_of(folder: &Path, key: &Key) -> PathBuf {
    folder.join(format!("{}.{WHOLE}", blake3::Hash::from_bytes(*key)))
}

/// What stands at the name of a file.
pub(super) enum Found {
    /// No file has that name.
    Nothing,
    /// A file whose head, places and counts are whole; words are checked as they are read.
    Whole(Box<Whole>),
    /// A file that is not what was written there, and why.
    Damaged(String),
    /// Something that lowtide does not write, and what.
    Strange(String),
}

/// Opens the file of a key, if its places take no more than so many bytes.
pub(super) fn find(path: &Path, key: &Key, memory: u64) -> Found {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Found::Nothing,
        Err(e) => return Found::Strange(e.to_string()),
    };
    if !meta.is_file() {
        return Found::Strange(STRANGE.to_owned());
    }
    match lowtide_files::open_any(path) {
        Ok(regular) => match read(regular.file, path, key, memory) {
            Ok(whole) => Found::Whole(Box::new(whole)),
            Err(what) => Found::Damaged(what),
        },
        Err(e) => Found::Strange(e.to_string()),
    }
}

fn read(mut file: File, path: &Path, key: &Key, memory: u64) -> Result<Whole, String> {
    let io = |e: std::io::Error| e.to_string();
    let len = file.metadata().map_err(io)?.len();
    let mut head = [0; HEAD as usize];
    file.read_exact(&mut head).map_err(io)?;
    if head[..16] != MAGIC[..] || head[16..] != key[..] {
        return Err("it begins with other bytes".to_owned());
    }
    let mut tail = [0; TAIL];
    let short = || "its end is missing".to_owned();
    let tail_at = len.checked_sub(TAIL as u64).ok_or_else(short)?;
    file.seek(SeekFrom::Start(tail_at)).map_err(io)?;
    file.read_exact(&mut tail).map_err(io)?;
    let number = |i: usize| u64::from_le_bytes(tail[8 * i..][..8].try_into().expect("8 bytes"));
    let (n_words, n_spans, n_counts) = (number(0), number(1), number(2));
    let check = u32::from_le_bytes(tail[24..28].try_into().expect("4 bytes"));
    // In order, so that no sum is beyond its type before the file's length bounds it.
    let parts = [
        n_words.checked_mul(4),
        n_spans.checked_mul(SPAN as u64),
        Some(n_counts),
        Some(HEAD + TAIL as u64),
    ];
    let sum = parts
        .into_iter()
        .try_fold(0u64, |sum, part| sum.checked_add(part?));
    if tail[28..] != MAGIC[..] || sum != Some(len) || n_counts > COUNTS_MAX {
        return Err(short());
    }
    let need = n_spans.saturating_mul(size_of::<Span>() as u64);
    if need > memory {
        return Err(format!(
            "the places of its {n_spans} examples take {need} bytes of memory"
        ));
    }
    file.seek(SeekFrom::Start(HEAD + 4 * n_words)).map_err(io)?;
    let mut reader = std::io::BufReader::with_capacity(1 << 20, &file);
    let (mut spans, mut found, mut from) = (Vec::with_capacity(n_spans as usize), 0, 0u64);
    for _ in 0..n_spans {
        let mut bytes = [0; SPAN];
        reader.read_exact(&mut bytes).map_err(io)?;
        found = crc32c::crc32c_append(found, &bytes);
        let span = span(&bytes, from);
        spans.push(span);
        from += words_of(span.len);
    }
    let mut counts = vec![0; n_counts as usize];
    reader.read_exact(&mut counts).map_err(io)?;
    found = crc32c::crc32c_append(found, &counts);
    found = crc32c::crc32c_append(found, &tail[..24]);
    if found != check || from != n_words {
        return Err("its list of examples is not what was written".to_owned());
    }
    let counts = lowtide_files::json_from_slice(&counts).map_err(|e| e.to_string())?;
    let list = List {
        file: file.try_clone().map_err(io)?,
        at: HEAD + 4 * n_words,
    };
    let store = Store::File {
        file,
        path: path.to_owned(),
        head: HEAD,
    };
    Ok(Whole {
        store,
        spans,
        list,
        counts,
    })
}

/// A file that is being written; it is removed if it is not finished.
pub(super) struct Writer {
    out: BufWriter<File>,
    /// Lengths and data files of the examples, in a file without a name until they go behind the words.
    list: BufWriter<File>,
    n_words: u64,
    n_spans: u64,
    part: PathBuf,
    whole: PathBuf,
    /// The file that stood at the name at the beginning: one that is not as it was written.
    replaces: Option<(u64, u64)>,
    finished: bool,
}

impl Writer {
    /// Begins the file of a key, and removes what runs that died have left half-written in the folder.
    pub fn create(folder: &Path, key: &Key) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        remove_left(folder);
        let whole = path_of(folder, key);
        let replaces = regular(&whole)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let (file, part) = (0..100)
            .map(|n| whole.with_extension(format!("{}-{n}.{PART}", std::process::id())))
            .find_map(|part| match options.open(&part) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => None,
                other => Some(other.map(|file| (file, part))),
            })
            .unwrap_or_else(|| Err(std::io::ErrorKind::AlreadyExists.into()))?;
        let list = part.with_extension(format!("list.{PART}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let side = options.open(&list);
        if side.is_ok() {
            let _ = fs::remove_file(&list);
        }
        let mut writer = Self {
            list: BufWriter::with_capacity(
                1 << 16,
                side.inspect_err(|_| drop(fs::remove_file(&part)))?,
            ),
            n_words: 0,
            n_spans: 0,
            out: BufWriter::with_capacity(1 << 20, file),
            part,
            whole,
            replaces,
            finished: false,
        };
        // Before the magic, without which nobody takes it for one that was left.
        writer.out.get_ref().lock()?;
        writer.out.write_all(MAGIC)?;
        writer.out.write_all(key)?;
        Ok(writer)
    }

    /// The name it will have.
    pub fn path(&self) -> &Path {
        &self.whole
    }

    /// Why it cannot be written.
    pub fn failed(&self, e: &std::io::Error) -> DataError {
        DataError::Kept {
            path: self.whole.clone(),
            reason: e.to_string(),
        }
    }

    /// Appends an example.
    pub fn add(&mut self, example: &Example, file: u32) -> std::io::Result<()> {
        let len = u32::try_from(example.tokens.len()).expect("a record's bytes are bounded");
        self.out.write_all(&words(example))?;
        self.list.write_all(&len.to_le_bytes())?;
        self.list.write_all(&file.to_le_bytes())?;
        self.n_words += words_of(len);
        self.n_spans += 1;
        Ok(())
    }

    /// Where the next example will lie, as a part of none.
    pub fn here(&self) -> Part {
        Part {
            first: self.n_spans,
            n: 0,
            from: self.n_words,
        }
    }

    /// Where examples lie, as far as they are flushed.
    pub fn list(&self) -> std::io::Result<List> {
        let file = self.list.get_ref().try_clone()?;
        Ok(List { file, at: 0 })
    }

    /// What was added can be read.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()?;
        self.list.flush()
    }

    /// A store of what is written so far, and of what will be.
    pub fn so_far(&mut self) -> std::io::Result<Store> {
        self.out.flush()?;
        Ok(Store::File {
            file: self.out.get_ref().try_clone()?,
            path: self.whole.clone(),
            head: HEAD,
        })
    }

    /// Ends the file and gives it its name, unless another run has made the same meanwhile.
    ///
    /// # Errors
    /// It cannot be written, or something else than a file stands at its name. What was added can be read nevertheless.
    pub fn finish(mut self, counts: &Counts) -> std::io::Result<()> {
        let mut check = 0;
        let mut out = |out: &mut BufWriter<File>, bytes: &[u8]| {
            check = crc32c::crc32c_append(check, bytes);
            out.write_all(bytes)
        };
        self.list.flush()?;
        let (mut block, mut at) = (vec![0; 1 << 16], 0);
        let end = self.n_spans * SPAN as u64;
        while at < end {
            let n = (end - at).min(1 << 16) as usize;
            self.list.get_ref().read_exact_at(&mut block[..n], at)?;
            out(&mut self.out, &block[..n])?;
            at += n as u64;
        }
        let counts = serde_json::to_vec(counts).expect("plain values");
        out(&mut self.out, &counts)?;
        for number in [self.n_words, self.n_spans, counts.len() as u64] {
            out(&mut self.out, &number.to_le_bytes())?;
        }
        self.out.write_all(&check.to_le_bytes())?;
        self.out.write_all(MAGIC)?;
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        // What is not lowtide's stays where it is.
        if let Some(there) = regular(&self.whole)?
            && self.replaces != Some(there)
        {
            return Ok(());
        }
        fs::rename(&self.part, &self.whole)?;
        self.finished = true;
        if let Some(folder) = self.whole.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

/// Which regular file stands at a path, if one does.
fn regular(path: &Path) -> std::io::Result<Option<(u64, u64)>> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_file() => Ok(Some((meta.dev(), meta.ino()))),
        Ok(_) => Err(std::io::Error::other(STRANGE)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Removes files that lowtide began to write in a folder and whose process has died: by name, by their first bytes, and
/// by their lock, which nobody holds.
fn remove_left(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|e| e.path()) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        let ours = name.is_some_and(|name| {
            let mut parts = name.split('.');
            let key = parts.next().unwrap_or_default();
            let hex = key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit());
            hex && parts.nth(1) == Some(PART) && parts.next().is_none()
        });
        if !ours || !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
            continue;
        }
        let Ok(regular) = lowtide_files::open_any(&path) else {
            continue;
        };
        let mut head = [0; MAGIC.len()];
        let mut file = regular.file;
        if file.read_exact(&mut head).is_ok() && &head == MAGIC && file.try_lock().is_ok() {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
