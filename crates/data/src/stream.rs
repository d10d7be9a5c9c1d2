//! Data that are tokenised while they are trained on.
//!
//! Records come in the order of the files, and a window is [`WINDOW`] tokens of them or the first few more: what is cut
//! at these places depends on the data alone, and so do rows and their order. Each window is packed by itself. Tokens
//! go to a file of the cache; when all are there, the next run reads them from it and has the same windows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lowtide_units::Bytes;

use super::batches::{BatchShape, Batches, Dealing};
use super::dataset::{
    Cache, Dataset, Gathered, Hash, Keeping, KeyOf, LoadOptions, LoadReport, Opened, Sink,
};
use super::jsonl::Format;
use super::kept::{List, Part, Writer};
use super::mask::Encoder;
use super::packing::{Packed, Packing, TooLong};
use super::reading::read;
use super::remarks::Remarks;
use super::store::{Span, Store};
use super::tokenizer::Tokenizer;
use crate::error::DataError;

mod shared;

pub use shared::News;
use shared::{End, Known, Shared};

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

/// Threads of a stream's own that tokenise.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    /// How many, 1 at least.
    pub n: usize,
    /// What each does first: it may give way to others.
    pub begin: fn(),
}

/// As long as it is there, nothing is tokenised.
#[derive(Debug)]
pub struct Rest(Arc<Stream>);

impl Drop for Rest {
    fn drop(&mut self) {
        let shared = &self.0.shared;
        shared.change(|_| {
            shared.asked_to_rest.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Longest wait for a thread to stand still: it ends the records that it has begun, 1,024 at most.
const REST_WAIT: Duration = Duration::from_secs(10);

/// What stands at a window's number.
pub(crate) enum Window {
    /// Rows that a window gave.
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
        threads: Threads,
    ) -> Result<(Self, Vec<String>), DataError> {
        let shared = Arc::new(Shared::default());
        let how = (layout, threads);
        let (mut stream, notes) = Self::begin(paths, options, tokenizer, cache, how, shared)?;
        stream.format = stream.first_format()?;
        let mut hash = Hash(stream.fingerprint);
        hash.add(stream.format as u64);
        stream.fingerprint = hash.0;
        Ok((stream, notes))
    }

    /// The same, but it does not wait.
    fn begin(
        paths: &[PathBuf],
        options: &LoadOptions,
        tokenizer: Tokenizer,
        cache: &Cache,
        (layout, threads): (RowLayout, Threads),
        shared: Arc<Shared>,
    ) -> Result<(Self, Vec<String>), DataError> {
        let opened = Dataset::open_kept(paths, options, &tokenizer, cache)?;
        let (Opened::Found(_, key, _) | Opened::New(_, key, _)) = &opened;
        let mut hash = Hash::default();
        for word in key.data.as_chunks().0 {
            hash.add(u64::from_le_bytes(*word));
        }
        hash.add(layout.window);
        hash.add(layout.seq as u64);
        hash.add(layout.packing as u64);
        let first = paths.first().cloned().unwrap_or_default();
        shared.known().news = Some(News::default());
        let (store, list, worker, notes) = match opened {
            Opened::Found((data, list), _, notes) => {
                shared.change(|known| {
                    known.windows = windows_of(data.spans(), layout.window);
                    known.format = Some(data.report().format);
                    known.end = Some(End::All);
                    known.news = Some(News {
                        all: true,
                        n_unsupervised: data.report().n_unsupervised,
                        remarks: data.remarks().clone(),
                        kept: None,
                    });
                });
                (data.store(), list, None, notes)
            }
            Opened::New(mut writer, key, mut notes) => {
                notes.push(format!("tokens go to {}", writer.path().display()));
                let store = writer.so_far().map_err(|e| writer.failed(&e))?;
                let list = writer.list().map_err(|e| writer.failed(&e))?;
                let job = Job {
                    paths: paths.to_vec(),
                    options: options.clone(),
                    tokenizer,
                    window: layout.window,
                    required: cache.required,
                    shared: Arc::clone(&shared),
                };
                let thread = job.start(writer, key, threads);
                let thread = thread.map_err(|e| DataError::io(&first, e))?;
                (Arc::new(store), list, Some(thread), notes)
            }
        };
        let stream = Self {
            shared,
            store,
            list,
            first,
            format: Format::Text,
            layout,
            fingerprint: hash.0,
            worker,
        };
        Ok((stream, notes))
    }

    /// The format of the records, when the first window is there.
    fn first_format(&self) -> Result<Format, DataError> {
        self.shared.wait(|known| match known.format {
            Some(format) if !known.windows.is_empty() => Some(Ok(format)),
            _ => Some(known.ended()?.and_then(|()| Err(self.nothing()))),
        })
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
            None => Some(known.ended()?.map(|()| None)),
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
        self.shared.wait(|known| {
            let ended = known.ended()?;
            Some(ended.map(|()| known.windows.len()))
        })
    }

    /// What people should know of all data, when all are read, or at once of those so far; `None`: not yet, or it has
    /// been shown.
    #[must_use]
    pub fn news(&self, at_once: bool) -> Option<News> {
        let mut known = self.shared.known();
        match at_once || matches!(known.end, Some(End::All)) {
            true => known.news.take(),
            false => None,
        }
    }

    /// Lets nothing be tokenised as long as the answer is there: others measure. It waits until what was begun is done,
    /// a few seconds at most.
    #[must_use]
    pub fn rest(self: &Arc<Self>) -> Rest {
        let shared = &self.shared;
        shared.asked_to_rest.fetch_add(1, Ordering::SeqCst);
        let rest = Rest(Arc::clone(self));
        let works = |known: &mut Known| !known.rests && known.end.is_none();
        let waited = shared
            .changed
            .wait_timeout_while(shared.known(), REST_WAIT, works);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        rest
    }

    /// Tokens of a row.
    pub(crate) fn seq(&self) -> usize {
        self.layout.seq
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Under the lock, so that who rests hears of it.
        self.shared
            .change(|_| self.shared.stop.store(true, Ordering::SeqCst));
        if let Some(worker) = self.worker.take() {
            // A panic of it goes on where its window was waited for, or nobody waited.
            let _ = worker.join();
        }
    }
}

/// What the thread of a stream does.
struct Job {
    paths: Vec<PathBuf>,
    options: LoadOptions,
    tokenizer: Tokenizer,
    window: u64,
    /// Whether tokens must be kept.
    required: bool,
    shared: Arc<Shared>,
}

impl Job {
    /// Starts the thread, and those that tokenise for it.
    fn start(
        self,
        writer: Box<Writer>,
        key: KeyOf,
        threads: Threads,
    ) -> std::io::Result<JoinHandle<()>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.n)
            .thread_name(|i| format!("tokens-{i}"))
            .start_handler(move |_| (threads.begin)())
            .build()
            .map_err(std::io::Error::other)?;
        let work = move || {
            let changed = || key.changed(&self.paths);
            let sink = Sink::File(writer, &changed);
            let work = || pool.install(|| self.work(sink));
            let end = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => End::All,
                Ok(Err(e)) => End::Error(Arc::new(e)),
                Err(what) => End::Panic(Some(what)),
            };
            self.shared.change(|known| known.end = Some(end));
        };
        std::thread::Builder::new()
            .name("tokens".into())
            .spawn(work)
    }

    /// Reads all files to their end, and tells of each window.
    fn work(&self, sink: Sink<'_>) -> Result<(), DataError> {
        let (paths, options) = (&self.paths, &self.options);
        let mut data = Gathered::new(sink).without_spans();
        let mut from = data.here();
        let encode = |encoder: &Encoder<'_>, line: &str| {
            let (example, remarks) = encoder.encode(line)?;
            Ok((example, remarks, encoder.format()))
        };
        let mut tokens = 0;
        let (format, left_out) = read(
            paths,
            options,
            &self.tokenizer,
            encode,
            |(file, place), (example, remarks, format), left_out| {
                if !self.shared.goes_on() {
                    return Err(DataError::NoRecords {
                        path: paths[file].clone(),
                    });
                }
                if data.add(&example, file)? {
                    tokens += example.tokens.len() as u64;
                }
                data.note(remarks);
                data.afford(&paths[file], place, Bytes(options.memory))?;
                if tokens >= self.window {
                    tokens = 0;
                    self.tell(&mut data, &mut from, format, left_out)?;
                }
                Ok(())
            },
        )?;
        self.tell(&mut data, &mut from, format, &left_out)?;
        data.note(left_out);
        let (data, keeping) = data.finish(paths, format, options.loss_on)?;
        let kept = match keeping {
            Keeping::Changed(path) => return Err(DataError::Changed { path }),
            keeping => keeping.outcome(self.required)?,
        };
        self.shared.change(|known| {
            if let Some(news) = &mut known.news {
                news.all = true;
                news.n_unsupervised = data.report().n_unsupervised;
                news.remarks = data.remarks().clone();
                news.kept = kept;
            }
        });
        Ok(())
    }

    /// Tells of the window that ends here, if something is in it.
    fn tell(
        &self,
        data: &mut Gathered<'_>,
        from: &mut Option<Part>,
        format: Format,
        left_out: &Remarks,
    ) -> Result<(), DataError> {
        let (Some(before), Some(here)) = (*from, data.here()) else {
            return Ok(());
        };
        if here == before {
            return Ok(());
        }
        if before.first == 0 {
            // A file that goes on may have other records behind its first window; its first ones are all that are seen.
            data.check_masks(&self.paths, format, self.options.loss_on)?;
        }
        // Its rows would not be those that a run which goes on finds.
        data.check_unchanged()?;
        data.flush()?;
        *from = Some(here);
        let (n_unsupervised, noticed) = data.noticed();
        let mut remarks = noticed.clone();
        remarks.add(left_out.clone());
        self.shared.change(|known| {
            known.format = Some(format);
            known.windows.push(Part {
                n: here.first - before.first,
                ..before
            });
            if let Some(news) = &mut known.news {
                (news.n_unsupervised, news.remarks) = (n_unsupervised, remarks);
            }
        });
        Ok(())
    }
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
