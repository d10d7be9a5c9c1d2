//! Data that are tokenised while they are trained on.
//!
//! Records come in the order of the files, and a window is [`WINDOW`] tokens of them or the first few more: what is cut at these
//! places depends on the data alone, and so do rows and their order. Each window is packed by itself. Tokens go to a
//! file of the cache; when all are there, the next run reads them from it and has the same windows.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use lowtide_units::Bytes;

use super::batches::{BatchShape, Batches, Dealing};
use super::dataset::{Cache, Dataset, Gathered, Hash, LoadOptions, LoadReport, Opened, Sink};
use super::jsonl::Format;
use super::kept::{List, Part};
use super::mask::Encoder;
use super::packing::{Packed, Packing, TooLong};
use super::reading::read;
use super::remarks::Remarks;
use super::store::{Span, Store};
use super::tokenizer::Tokenizer;
use crate::error::DataError;

/// Tokens of a window, or the few more of its last example.
pub const WINDOW: u64 = 8 << 20;

/// How rows are laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Tokens of a row.
    pub seq: usize,
    /// How documents are laid into rows.
    pub packing: Packing,
    /// Tokens of a window: [`WINDOW`].
    pub window: u64,
}

/// Training rows: of all data at once, or window by window.
#[derive(Clone, Debug)]
pub enum Rows {
    /// All of them.
    Whole(Arc<Packed>),
    /// A window at a time.
    Stream(Arc<Stream>),
}

impl Rows {
    /// What a resumed run compares before it trusts a stored position.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        match self {
            Self::Whole(packed) => packed.fingerprint(),
            Self::Stream(stream) => stream.fingerprint,
        }
    }

    /// What the records are.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Whole(packed) => packed.data().report().format,
            Self::Stream(stream) => stream.format,
        }
    }

    /// Tokens of a row.
    #[must_use]
    pub fn seq(&self) -> usize {
        match self {
            Self::Whole(packed) => packed.seq(),
            Self::Stream(stream) => stream.layout.seq,
        }
    }

    /// Batches from the beginning of epoch 0.
    ///
    /// # Errors
    /// As [`Batches::new`], and what is wrong with the first records of a stream.
    pub fn batches(&self, shape: BatchShape, dealing: Dealing) -> Result<Batches, DataError> {
        match self {
            Self::Whole(packed) => Batches::new(Arc::clone(packed), shape, dealing),
            Self::Stream(stream) => Batches::streamed(Arc::clone(stream), shape, dealing),
        }
    }
}

/// What is known of the data so far.
#[derive(Debug, Default)]
struct Known {
    windows: Vec<Part>,
    format: Option<Format>,
    ended: bool,
    /// Why it ended early; whoever asks first is told.
    error: Option<DataError>,
    failed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known());
        self.changed.notify_all();
    }

    /// Waits until something can be said of what is known.
    fn wait<T>(&self, mut say: impl FnMut(&mut Known) -> Option<T>) -> T {
        let mut known = self.known();
        loop {
            if let Some(said) = say(&mut known) {
                return said;
            }
            let waited = self.changed.wait(known);
            known = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What stands at a window's number.
pub(crate) enum Window {
    /// Its rows.
    Rows(Arc<Packed>),
    /// Records of which none has a label left in a row.
    Empty,
    /// The data ended before it.
    End,
}

/// Data of which as much is known as was read.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    store: Arc<Store>,
    list: List,
    first: PathBuf,
    format: Format,
    layout: RowLayout,
    fingerprint: u64,
    worker: Option<JoinHandle<()>>,
}

impl Stream {
    /// Begins to read and tokenise all files, on a thread of its own, and waits for the first window; or finds their
    /// tokens in the cache. Gives what people should know of it, too.
    ///
    /// # Errors
    /// A record of the first window that cannot be used; a cache that cannot be written.
    pub fn open(
        paths: &[PathBuf],
        options: &LoadOptions,
        tokenizer: Tokenizer,
        cache: &Cache,
        layout: RowLayout,
    ) -> Result<(Self, Vec<String>), DataError> {
        let opened = Dataset::open_kept(paths, options, &tokenizer, cache)?;
        let (Opened::Found(_, key, _) | Opened::New(_, key, _)) = &opened;
        let mut hash = Hash::default();
        for word in key.key.as_chunks().0 {
            hash.add(u64::from_le_bytes(*word));
        }
        hash.add(layout.window);
        hash.add(layout.seq as u64);
        hash.add(layout.packing as u64);
        let first = paths.first().cloned().unwrap_or_default();
        let shared = Arc::new(Shared::default());
        let (store, list, worker, notes) = match opened {
            Opened::Found((data, list), _, notes) => {
                shared.change(|known| {
                    known.windows = windows_of(data.spans(), layout.window);
                    known.format = Some(data.report().format);
                    known.ended = true;
                });
                (data.store(), list, None, notes)
            }
            Opened::New(mut writer, key, mut notes) => {
                notes.push(format!("tokens are kept in {}", writer.path().display()));
                let store = writer.so_far().map_err(|e| writer.failed(&e))?;
                let list = writer.list().map_err(|e| writer.failed(&e))?;
                let (paths, options) = (paths.to_vec(), options.clone());
                let work = {
                    let shared = Arc::clone(&shared);
                    move || {
                        // What cannot be told of any more must not be waited for.
                        let _end = Ends(&shared);
                        let same = || key.is_still_of(&paths);
                        let sink = Sink::File(writer, &same);
                        if let Err(e) =
                            work(&paths, &options, &tokenizer, sink, (&shared, layout.window))
                        {
                            shared.change(|known| known.error = Some(e));
                        }
                    }
                };
                let thread = std::thread::Builder::new().name("tokens".into());
                let thread = thread.spawn(work).map_err(|e| DataError::io(&first, e))?;
                (Arc::new(store), list, Some(thread), notes)
            }
        };
        let mut stream = Self {
            shared,
            store,
            list,
            first,
            format: Format::Text,
            layout,
            fingerprint: hash.0,
            worker,
        };
        stream.format = stream.first_format()?;
        Ok((stream, notes))
    }

    /// The format of the records, when the first window is there.
    fn first_format(&self) -> Result<Format, DataError> {
        let said = self.shared.wait(|known| match known.format {
            Some(format) if !known.windows.is_empty() => Some(Ok(format)),
            _ => known.ended.then(|| Err(known.error.take())),
        });
        said.map_err(|e| e.unwrap_or_else(|| self.nothing()))
    }

    /// Not one row is in the data.
    pub(crate) fn nothing(&self) -> DataError {
        DataError::NothingSupervised {
            path: self.first.clone(),
            n_records: 0,
            n_tokens: 0,
            n_cut: 0,
        }
    }

    /// The rows of window `i`, when it is there.
    pub(crate) fn window(&self, i: usize) -> Result<Window, DataError> {
        let found = self.shared.wait(|known| match known.windows.get(i) {
            Some(part) => Some(Ok(Some(*part))),
            None if !known.ended => None,
            None => Some(match (known.error.take(), known.failed) {
                (Some(e), _) => {
                    known.failed = true;
                    Err(e)
                }
                (None, true) => Err(DataError::Kept {
                    path: self.first.clone(),
                    reason: "the records behind these could not be read".to_owned(),
                }),
                (None, false) => Ok(None),
            }),
        });
        let Some(part) = found? else {
            return Ok(Window::End);
        };
        let spans = self.list.spans(part).map_err(|e| DataError::Kept {
            path: self.first.clone(),
            reason: format!("its examples' places: {e}"),
        })?;
        let data = Dataset::of_spans(
            self.first.clone(),
            Arc::clone(&self.store),
            spans,
            self.format,
        )?;
        let too_long = match self.format {
            Format::Text => TooLong::Split,
            _ => TooLong::Truncate,
        };
        match Packed::new(data, self.layout.seq, self.layout.packing, too_long) {
            Ok(packed) => Ok(Window::Rows(Arc::new(packed))),
            Err(DataError::NothingSupervised { .. }) => Ok(Window::Empty),
            Err(e) => Err(e),
        }
    }

    /// How many windows there are, when all were read.
    pub(crate) fn n_windows(&self) -> Result<usize, DataError> {
        let mut n = self
            .shared
            .wait(|known| known.ended.then_some(known.windows.len()));
        // What ended it early is told.
        while !matches!(self.window(n)?, Window::End) {
            n += 1;
        }
        Ok(n)
    }

    /// Tokens of a row.
    pub(crate) fn seq(&self) -> usize {
        self.layout.seq
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // A panic of it has been told where its window was waited for, or nobody waited.
            let _ = worker.join();
        }
    }
}

/// Says at the end of the thread, however it ends, that nothing more comes.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        self.0.change(|known| {
            known.failed |= panicked;
            known.ended = true;
        });
    }
}

/// Reads all files to their end, and tells of each window.
fn work(
    paths: &[PathBuf],
    options: &LoadOptions,
    tokenizer: &Tokenizer,
    sink: Sink<'_>,
    (shared, window): (&Shared, u64),
) -> Result<(), DataError> {
    let mut data = Gathered::new(sink).without_spans();
    let mut from = data.here();
    let encode = |encoder: &Encoder<'_>, line: &str| {
        let (example, remarks) = encoder.encode(line)?;
        Ok((example, remarks, encoder.format()))
    };
    let mut tell = |data: &mut Gathered<'_>, format: Format| -> Result<(), DataError> {
        let (Some(before), Some(here)) = (from, data.here()) else {
            return Ok(());
        };
        if here == before {
            return Ok(());
        }
        if before.first == 0 {
            // A file that goes on may have other records behind its first window; its first ones are all that are seen.
            data.check_masks(paths, format, options.loss_on)?;
        }
        data.flush()?;
        from = Some(here);
        shared.change(|known| {
            known.format = Some(format);
            known.windows.push(Part {
                n: here.first - before.first,
                ..before
            });
        });
        Ok(())
    };
    let mut tokens = 0;
    let (format, left_out) = read(
        paths,
        options,
        tokenizer,
        encode,
        |file, place, (example, remarks, format)| {
            if shared.stop.load(Ordering::Relaxed) {
                return Err(DataError::NoRecords {
                    path: paths[file].clone(),
                });
            }
            if data.add(&example, file)? {
                tokens += example.tokens.len() as u64;
            }
            data.note(remarks);
            data.afford(&paths[file], place, Bytes(options.memory))?;
            if tokens >= window {
                tokens = 0;
                tell(&mut data, format)?;
            }
            Ok(())
        },
    )?;
    data.note(left_out);
    tell(&mut data, format)?;
    data.finish(paths, format, options.loss_on)?;
    Ok(())
}

/// The windows of examples that are all there.
fn windows_of(spans: &[Span], window: u64) -> Vec<Part> {
    let (mut windows, mut first, mut tokens) = (Vec::new(), 0, 0);
    for (i, span) in spans.iter().enumerate() {
        tokens += u64::from(span.len);
        if tokens >= window || i + 1 == spans.len() {
            windows.push(Part {
                first: first as u64,
                n: (i + 1 - first) as u64,
                from: spans[first].from,
            });
            (first, tokens) = (i + 1, 0);
        }
    }
    windows
}

/// A report of a part of the data, of which only the format counts.
pub(super) fn report_of(format: Format) -> (LoadReport, Remarks) {
    let report = LoadReport {
        format,
        n_records: 0,
        n_unsupervised: 0,
        n_tokens: 0,
        n_supervised: 0,
        tokens_max: 0,
        mask_hash: 0,
    };
    (report, Remarks::default())
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
