use std::fmt::Write as _;

use super::super::batches::{Batch, LastBatch, State};
use super::super::packing::PackReport;
use super::super::testing;
use super::*;

const LAYOUT: RowLayout = RowLayout {
    seq: 96,
    packing: Packing::BestFit,
    window: 700,
};

const SHAPE: BatchShape = BatchShape {
    micro_batch: 2,
    accumulate: 2,
};

const THREADS: Threads = Threads { n: 2, begin: || {} };

struct Place {
    _dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
    cache: Cache,
}

/// A file of records of several lengths, with something else at its end.
fn place(n: usize, end: &str) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for i in 0..n {
        let prompt = "why ".repeat(i * 7 % 11 + 1);
        writeln!(
            text,
            "{{\"prompt\": \"{prompt}\", \"completion\": \"it is {i}\"}}"
        )
        .unwrap();
    }
    let path = dir.path().join("a.jsonl");
    std::fs::write(&path, text + end).unwrap();
    let cache = Cache {
        folder: dir.path().join("cache"),
        required: true,
        bytes_min: 0,
    };
    Place {
        paths: vec![path],
        cache,
        _dir: dir,
    }
}

impl Place {
    fn open(&self) -> Result<(Arc<Stream>, Vec<String>), DataError> {
        let options = LoadOptions::default();
        let tokenizer = testing::tokenizer();
        let opened = Stream::open(
            &self.paths,
            &options,
            tokenizer,
            &self.cache,
            LAYOUT,
            THREADS,
        );
        opened.map(|(stream, notes)| (Arc::new(stream), notes))
    }

    /// A stream that stands still at its first record.
    fn held(&self) -> (Arc<Stream>, Vec<String>, Rest) {
        let shared = Arc::new(Shared::default());
        shared.asked_to_rest.fetch_add(1, Ordering::SeqCst);
        let (options, tokenizer) = (LoadOptions::default(), testing::tokenizer());
        let how = (LAYOUT, THREADS);
        let begun = Stream::begin(&self.paths, &options, tokenizer, &self.cache, how, shared);
        let (stream, notes) = begun.unwrap();
        let stream = Arc::new(stream);
        stream.shared.wait(|known| known.rests.then_some(()));
        let rest = Rest(Arc::clone(&stream));
        (stream, notes, rest)
    }

    fn rows(&self) -> Rows {
        Rows::Stream(self.open().unwrap().0)
    }

    fn is_whole(&self) -> bool {
        let names = std::fs::read_dir(&self.cache.folder).unwrap();
        let mut names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.any(|name| name.ends_with(".tokens"))
    }
}

fn dealing(seed: Option<u64>, last_batch: LastBatch) -> Dealing {
    Dealing { seed, last_batch }
}

fn some(batches: &mut Batches, n: usize) -> Vec<Batch> {
    (0..n).map(|_| batches.next_batch().unwrap()).collect()
}

/// Answers of an epoch in the order in which they are dealt.
fn answers(batches: &mut Batches, epoch: u64) -> Vec<i32> {
    let mut all = Vec::new();
    while batches.state().epoch == epoch {
        let batch = batches.next_batch().unwrap();
        all.extend(batch.micro.into_iter().flat_map(|m| m.labels));
    }
    all.retain(|&label| label >= 0);
    all
}

#[test]
fn batches_are_the_same_whether_tokens_were_kept_or_not() {
    let place = place(300, "");
    let (first, notes) = place.open().unwrap();
    assert!(notes[0].starts_with("tokens go to "), "{notes:?}");
    let rows = Rows::Stream(Arc::clone(&first));
    let of = |rows: &Rows| {
        let mut batches = rows
            .batches(SHAPE, dealing(Some(7), LastBatch::Fill))
            .unwrap();
        let all = some(&mut batches, 150);
        assert!(batches.state().epoch >= 2, "{:?}", batches.state());
        (all, rows.fingerprint(), batches.batches_for(1.0).unwrap())
    };
    let made = of(&rows);
    drop(rows);
    assert!(place.is_whole());
    let (again, notes) = place.open().unwrap();
    assert!(
        notes[0].starts_with("tokens are those kept in "),
        "{notes:?}"
    );
    assert!(of(&Rows::Stream(again)) == made);
}

#[test]
fn every_example_is_dealt_out_once_an_epoch_and_only_windows_are_mixed() {
    let place = place(300, "");
    let rows = place.rows();
    let tokenizer = testing::tokenizer();
    let whole = Dataset::load(&place.paths, &LoadOptions::default(), &tokenizer).unwrap();
    let mut want: Vec<i32> = Vec::new();
    for i in 0..whole.len() {
        let example = whole.example(i).unwrap();
        let both = example.tokens.iter().zip(&example.supervised);
        want.extend(both.filter(|(_, s)| **s).map(|(t, _)| *t));
    }
    let sorted = |mut all: Vec<i32>| {
        all.sort_unstable();
        all
    };
    let mut unlike = Vec::new();
    for seed in [None, Some(1), Some(2)] {
        let mut batches = rows.batches(SHAPE, dealing(seed, LastBatch::Keep)).unwrap();
        for epoch in 0..3 {
            let all = answers(&mut batches, epoch);
            assert!(
                sorted(all.clone()) == sorted(want.clone()),
                "{seed:?} {epoch}"
            );
            unlike.push(all);
        }
    }
    assert!(
        unlike[0] == unlike[1] && unlike[1] == unlike[2],
        "without a seed each is the same"
    );
    for i in 3..9 {
        assert!((0..i).all(|j| unlike[i] != unlike[j]), "{i}");
    }
    // In epoch 0 windows come in the order of the data.
    let Rows::Stream(stream) = &rows else {
        panic!("a stream")
    };
    let labels = |report: &PackReport| report.n_supervised as usize;
    let mut from = 0;
    for i in 0..stream.n_windows().unwrap() {
        let Window::Rows(packed) = stream.window(i).unwrap() else {
            panic!("rows")
        };
        let to = from + labels(packed.report());
        for dealt in [&unlike[0], &unlike[3], &unlike[6]] {
            assert!(sorted(dealt[from..to].to_vec()) == sorted(want[from..to].to_vec()));
        }
        from = to;
    }
    assert!(from == want.len() && stream.n_windows().unwrap() > 5);
}

#[test]
fn a_pass_goes_on_where_it_was() {
    let place = place(300, "");
    let Rows::Stream(stream) = place.rows() else {
        panic!("a stream")
    };
    let rows_of = |i| match stream.window(i).unwrap() {
        Window::Rows(packed) => packed.n_rows(),
        _ => 0,
    };
    let n_rows: usize = (0..stream.n_windows().unwrap()).map(rows_of).sum();
    for last_batch in [LastBatch::Fill, LastBatch::Keep, LastBatch::Drop] {
        let how = dealing(Some(3), last_batch);
        let mut unbroken = place.rows().batches(SHAPE, how).unwrap();
        let mut states = vec![unbroken.state()];
        let all: Vec<Batch> = (0..120)
            .map(|_| {
                let batch = unbroken.next_batch().unwrap();
                states.push(unbroken.state());
                batch
            })
            .collect();
        for at in (0..120).step_by(17) {
            let mut again = place.rows().batches(SHAPE, how).unwrap();
            again.restore(states[at]).unwrap();
            assert_eq!(again.state(), states[at]);
            assert!(some(&mut again, 3.min(120 - at)) == all[at..(at + 3).min(120)]);
        }
        let nowhere = State {
            epoch: 1,
            position: 999 << 32,
        };
        let before = unbroken.state();
        let error = unbroken.restore(nowhere).unwrap_err();
        assert!(matches!(error, DataError::Position { .. }), "{error}");
        assert_eq!(unbroken.state(), before);
        let rows = |batch: &Batch| {
            let labels = batch.micro.iter().flat_map(|m| m.labels.chunks(LAYOUT.seq));
            labels.filter(|row| row.iter().any(|&l| l >= 0)).count()
        };
        let short = all.iter().filter(|batch| rows(batch) < 4).count();
        let uneven = last_batch == LastBatch::Keep && !n_rows.is_multiple_of(4);
        assert_eq!(short > 0, uneven, "{last_batch:?} {n_rows}");
    }
}

#[test]
fn a_record_that_cannot_be_used_ends_the_pass_where_it_stands() {
    let place = place(300, "{\"prompt\": 1}\n");
    let rows = place.rows();
    let mut batches = rows
        .batches(SHAPE, dealing(Some(3), LastBatch::Fill))
        .unwrap();
    // Others that ask get the same answer.
    let mut preview = rows.batches(SHAPE, dealing(None, LastBatch::Fill)).unwrap();
    while preview.next_batch().is_ok() {}
    let n = (0..).take_while(|_| batches.next_batch().is_ok()).count();
    // The window that it would be in is not dealt out.
    assert!(n > 5, "{n}");
    for i in [0, 1, 0] {
        let batches = if i == 0 { &mut batches } else { &mut preview };
        let error = batches.next_batch().unwrap_err();
        assert!(matches!(error.itself(), DataError::Record { .. }));
        let error = error.to_string();
        assert!(error.contains("a.jsonl:301: no field"), "{error}");
    }
    assert!(rows.batches(SHAPE, dealing(None, LastBatch::Fill)).is_ok());
    drop((batches, rows));
    assert!(!place.is_whole());
    let Rows::Stream(stream) = place.rows() else {
        panic!("a stream")
    };
    let error = stream.n_windows().unwrap_err().to_string();
    assert!(error.contains("a.jsonl:301: no field"), "{error}");
    let first = self::place(0, "{\"prompt\": 1}\n")
        .open()
        .unwrap_err()
        .to_string();
    assert!(first.contains("a.jsonl:1: "), "{first}");
}

#[test]
fn an_epoch_smaller_than_a_batch_is_not_dropped_whole() {
    let place = place(3, "");
    let shape = BatchShape {
        micro_batch: 64,
        accumulate: 1,
    };
    let error = place
        .rows()
        .batches(shape, dealing(None, LastBatch::Drop))
        .unwrap_err();
    assert!(matches!(error, DataError::AllDropped { .. }), "{error}");
    let mut fill = place
        .rows()
        .batches(shape, dealing(None, LastBatch::Fill))
        .unwrap();
    fill.next_batch().unwrap();
    assert!(fill.state().epoch > 10);
}

#[test]
fn a_stream_that_is_given_up_leaves_nothing() {
    let place = place(3000, "");
    drop(place.open().unwrap());
    let left = std::fs::read_dir(&place.cache.folder).unwrap().count();
    assert_eq!(left, usize::from(place.is_whole()));
}

/// Also where a window ends at the last token that it may have.
#[test]
fn windows_end_at_the_same_examples_whether_tokens_are_made_or_found() {
    let place = place(60, "");
    let options = LoadOptions::default();
    let whole = Dataset::load(&place.paths, &options, &testing::tokenizer()).unwrap();
    let parts = |layout| {
        let tokenizer = testing::tokenizer();
        let opened = Stream::open(
            &place.paths,
            &options,
            tokenizer,
            &place.cache,
            layout,
            THREADS,
        );
        let stream = opened.unwrap().0;
        stream.n_windows().unwrap();
        stream.shared.known().windows.clone()
    };
    for n in [1, 2, 7, 20] {
        let tokens: usize = (0..n).map(|i| whole.tokens_of(i)).sum();
        for window in [tokens as u64 - 1, tokens as u64, tokens as u64 + 1] {
            let layout = RowLayout { window, ..LAYOUT };
            let _ = std::fs::remove_dir_all(&place.cache.folder);
            let made = parts(layout);
            assert!(place.is_whole());
            assert_eq!(parts(layout), made);
            let first = if window > tokens as u64 { n + 1 } else { n };
            assert_eq!(made[0].n, first as u64, "{window}");
            let all: u64 = made.iter().map(|part| part.n).sum();
            assert_eq!(all, 60);
        }
    }
}

/// What the cache's last step cannot do takes nothing from the run, unless tokens must be kept.
#[test]
fn a_name_that_cannot_be_had_ends_nothing_that_did_not_ask_for_it() {
    for required in [false, true] {
        let mut place = place(300, "");
        place.cache.required = required;
        let (stream, notes, rest) = place.held();
        let path = notes[0].strip_prefix("tokens go to ").unwrap();
        std::fs::create_dir(path).unwrap();
        drop(rest);
        let windows = stream.n_windows();
        assert_eq!(windows.is_err(), required, "{windows:?}");
        let (Ok(n), Some(news)) = (windows, stream.news(true)) else {
            continue;
        };
        for i in 0..n {
            assert!(matches!(stream.window(i).unwrap(), Window::Rows(_)));
        }
        let kept = news.kept.unwrap();
        assert!(
            kept.contains("not kept") && kept.contains(path) && kept.ends_with("no regular file"),
            "{kept}"
        );
        assert!(stream.news(true).is_none(), "it is reported once");
    }
}

#[test]
fn what_a_stream_left_out_is_reported_when_it_ends_and_when_it_is_found() {
    let place = place(300, "{\"prompt\": 1}\n");
    let options = LoadOptions {
        on_error: crate::OnError::Skip,
        ..LoadOptions::default()
    };
    for found in [false, true] {
        let tokenizer = testing::tokenizer();
        let opened = Stream::open(
            &place.paths,
            &options,
            tokenizer,
            &place.cache,
            LAYOUT,
            THREADS,
        );
        let stream = opened.unwrap().0;
        stream.n_windows().unwrap();
        let news = stream.news(false).unwrap();
        assert!(news.all && news.remarks.n_left_out == 1, "{news:?}");
        assert!(news.remarks.places[0].contains("a.jsonl:301"), "{news:?}");
        assert_eq!(news.kept.is_some(), !found);
    }
}

/// The thread stands still as long as somebody measures, and goes on behind it; so does one that is given up.
#[test]
fn nothing_is_tokenised_while_a_stream_rests() {
    let place = place(300, "");
    let (stream, _, rest) = place.held();
    drop(stream.rest());
    std::thread::sleep(Duration::from_millis(100));
    assert!(stream.shared.known().windows.is_empty());
    drop(rest);
    assert!(stream.n_windows().unwrap() > 5);
    assert!(place.is_whole());
    // Of one that has ended nobody waits for anything.
    drop(stream.rest());
    drop(stream);
    std::fs::remove_dir_all(&place.cache.folder).unwrap();
    let (stream, _, rest) = place.held();
    stream
        .shared
        .change(|_| stream.shared.stop.store(true, Ordering::SeqCst));
    stream.n_windows().unwrap_err();
    drop((rest, stream));
    assert!(!place.is_whole());
}

#[test]
fn a_file_that_changes_under_a_stream_ends_it() {
    let place = place(300, "");
    let (stream, _, rest) = place.held();
    let file = std::fs::File::options()
        .append(true)
        .open(&place.paths[0])
        .unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    std::io::Write::write_all(&mut &file, b"\n").unwrap();
    // Its time of writing set back, and its length as it was.
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    file.set_modified(before).unwrap();
    drop(rest);
    let error = stream.n_windows().unwrap_err();
    assert!(
        matches!(error.itself(), DataError::Changed { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("a.jsonl: this file was changed"),
        "{error}"
    );
    drop(stream);
    assert!(!place.is_whole());
}

#[test]
fn a_panic_goes_on_where_the_window_is_waited_for() {
    let place = place(300, "");
    let (stream, _) = place.open().unwrap();
    stream.n_windows().unwrap();
    stream
        .shared
        .change(|known| known.end = Some(End::Panic(Some(Box::new("ours")))));
    for want in ["ours", "the thread that tokenises has panicked"] {
        let asked = catch_unwind(AssertUnwindSafe(|| stream.n_windows()));
        let what = asked.unwrap_err();
        assert_eq!(what.downcast_ref(), Some(&want));
    }
}

/// A run goes on with its data wherever they lie now, and however large a record may be; not with other ones.
#[test]
fn what_decides_no_token_is_not_in_the_fingerprint() {
    let place = place(60, "");
    let other = place.cache.folder.with_file_name("other.json");
    std::fs::copy(&place.paths[0], &other).unwrap();
    let of = |path: &PathBuf, options: &LoadOptions, layout| {
        let (paths, tokenizer) = ([path.clone()], testing::tokenizer());
        let opened = Stream::open(&paths, options, tokenizer, &place.cache, layout, THREADS);
        opened.unwrap().0.fingerprint
    };
    let base = LoadOptions::default();
    let path = &place.paths[0];
    let want = of(path, &base, LAYOUT);
    let longer = LoadOptions {
        line_bytes_max: 1 << 20,
        memory: 1 << 30,
        format: Some(Format::PromptCompletion),
        ..base.clone()
    };
    assert_eq!(of(&other, &longer, LAYOUT), want);
    let separated = LoadOptions {
        separator: "\n".into(),
        ..base.clone()
    };
    assert_ne!(of(path, &separated, LAYOUT), want);
    assert_ne!(of(path, &base, RowLayout { seq: 64, ..LAYOUT }), want);
    std::fs::write(
        &other,
        std::fs::read_to_string(path)
            .unwrap()
            .replace("it is 7", "it is 8"),
    )
    .unwrap();
    assert_ne!(of(&other, &base, LAYOUT), want);
}
