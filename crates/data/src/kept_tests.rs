use std::os::unix::fs::symlink;

use super::super::dataset::{Cache, Dataset, Keeping, LoadOptions, OnError, Opened, Sink};
use super::super::jsonl::Format;
use super::super::mask::LossOn;
use super::super::packing::{Packed, Packing, TooLong};
use super::super::plain::TextBy;
use super::super::testing;
use super::*;

/// A folder with a data file, and its cache.
struct Place {
    dir: tempfile::TempDir,
    tokenizer: super::super::Tokenizer,
    paths: Vec<PathBuf>,
    cache: Cache,
}

fn place(n: usize) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let line = |i: usize| {
        let prompt = "why ".repeat(i % 7 + 1);
        format!("{{\"prompt\": \"{prompt}\", \"completion\": \"it is {i}\"}}\n")
    };
    let paths = [dir.path().join("a.jsonl"), dir.path().join("b.jsonl")];
    fs::write(&paths[0], (0..n).map(line).collect::<String>()).unwrap();
    fs::write(&paths[1], line(n)).unwrap();
    let cache = Cache {
        folder: dir.path().join("cache"),
        required: true,
        bytes_min: 0,
    };
    Place {
        paths: paths.into(),
        tokenizer: testing::tokenizer(),
        cache,
        dir,
    }
}

impl Place {
    fn load(&self, options: &LoadOptions) -> (Dataset, Vec<String>) {
        Dataset::load_kept(&self.paths, options, &self.tokenizer, &self.cache).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(&self.cache.folder).unwrap();
        let mut all: Vec<PathBuf> = all.map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    }
}

fn same(a: &Dataset, b: &Dataset) {
    assert_eq!(a.report(), b.report());
    assert_eq!(a.remarks(), b.remarks());
    for i in 0..a.len() {
        assert_eq!(a.example(i).unwrap(), b.example(i).unwrap());
        assert_eq!(a.file_of(i), b.file_of(i));
    }
    let packed = |data: &Dataset| {
        let all: Vec<usize> = (0..data.len()).collect();
        let data = data.select(&all).unwrap();
        Packed::new(data, 64, Packing::BestFit, TooLong::Truncate).unwrap()
    };
    assert_eq!(packed(a).fingerprint(), packed(b).fingerprint());
}

#[test]
fn kept_tokens_are_those_that_were_made() {
    let place = place(2000);
    let options = LoadOptions::default();
    let plain = Dataset::load(&place.paths, &options, &testing::tokenizer()).unwrap();
    let (made, notes) = place.load(&options);
    same(&plain, &made);
    assert!(notes[0].starts_with("tokens are kept in "), "{notes:?}");
    let file = place.files();
    let before = fs::metadata(&file[0]).unwrap().modified().unwrap();
    let (found, notes) = place.load(&options);
    same(&plain, &found);
    assert!(
        notes[0].starts_with("tokens are those kept in "),
        "{notes:?}"
    );
    assert_eq!((place.files(), file.len()), (file.clone(), 1));
    assert_eq!(fs::metadata(&file[0]).unwrap().modified().unwrap(), before);
    // In memory the tokens would not fit, and they do not where nothing is kept.
    let small = LoadOptions {
        memory: plain.report().n_tokens * 4,
        ..options
    };
    let error = Dataset::load(&place.paths, &small, &testing::tokenizer()).unwrap_err();
    assert!(matches!(error, DataError::Examples { .. }), "{error}");
    fs::remove_file(&file[0]).unwrap();
    same(&plain, &place.load(&small).0);
    same(&plain, &place.load(&small).0);
}

#[test]
fn whatever_byte_is_damaged_the_tokens_are_made_anew() {
    let place = place(3);
    let options = LoadOptions::default();
    let (whole, _) = place.load(&options);
    let file = place.files().remove(0);
    let bytes = fs::read(&file).unwrap();
    let mut wrong: Vec<Vec<u8>> = (0..bytes.len())
        .step_by(5)
        .map(|at| {
            let mut one = bytes.clone();
            one[at] ^= 0x10;
            one
        })
        .collect();
    wrong.extend([0, 1, 47, 48, bytes.len() - 1].map(|n| bytes[..n].to_vec()));
    wrong.push([&bytes[..], b"x"].concat());
    for one in wrong {
        fs::write(&file, one).unwrap();
        let (again, notes) = place.load(&options);
        assert!(
            notes[0].starts_with("warning: tokens kept in "),
            "{notes:?}"
        );
        same(&whole, &again);
        assert_eq!(
            fs::read(&file).unwrap(),
            bytes,
            "the same bytes are written"
        );
    }
    assert_eq!(place.files(), [file]);
}

#[test]
fn damage_behind_the_start_is_an_error() {
    let place = place(12);
    let (data, _) = place.load(&LoadOptions::default());
    let file = place.files().remove(0);
    let out = OpenOptions::new().write(true).open(file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&out, b"????", HEAD + 8).unwrap();
    let error = data.example(0).unwrap_err().to_string();
    assert!(
        error.contains("an example is not what was written"),
        "{error}"
    );
    data.example(5).unwrap();
}

#[test]
fn what_decides_tokens_decides_the_name() {
    let (place, instructions) = (place(12), place(1));
    let base = LoadOptions::default();
    // A system prompt has a place in some layouts only.
    for path in &instructions.paths {
        fs::write(
            path,
            "{\"instruction\": \"why\", \"output\": \"it is so\"}\n",
        )
        .unwrap();
    }
    instructions.load(&base);
    instructions.load(&LoadOptions {
        system: Some("s".into()),
        ..base.clone()
    });
    assert_eq!(instructions.files().len(), 2);
    let variants = [
        base.clone(),
        LoadOptions {
            format: Some(Format::PromptCompletion),
            ..base.clone()
        },
        LoadOptions {
            loss_on: LossOn::Everything,
            ..base.clone()
        },
        LoadOptions {
            separator: "\n".into(),
            ..base.clone()
        },
        LoadOptions {
            text_by: TextBy::Line,
            ..base.clone()
        },
        LoadOptions {
            line_bytes_max: 1 << 20,
            ..base.clone()
        },
        LoadOptions {
            on_error: OnError::Skip,
            ..base.clone()
        },
    ];
    for (n, options) in variants.iter().enumerate() {
        place.load(options);
        assert_eq!(place.files().len(), n + 1, "{options:?}");
    }
    // What only refuses does not.
    place.load(&LoadOptions {
        memory: 1 << 30,
        ..base.clone()
    });
    assert_eq!(place.files().len(), variants.len());
    let with = |tokenizer: &super::super::Tokenizer| {
        Dataset::load_kept(&place.paths, &base, tokenizer, &place.cache).unwrap();
        place.files().len() - variants.len()
    };
    assert_eq!(
        with(&testing::tokenizer().with_eos("<|im_end|>").unwrap()),
        1
    );
    assert_eq!(with(&testing::with_template("chatml")), 2);
    assert_eq!(
        with(&testing::tokenizer().with_now(7).unwrap()),
        2,
        "no template asks"
    );
    // A byte that says nothing counts too: what the tokenizers' crate makes of one is its own affair.
    let own = place.dir.path().join("tokenizer");
    fs::create_dir(&own).unwrap();
    for entry in fs::read_dir(testing::testdata().join("tokenizer")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), own.join(entry.file_name())).unwrap();
    }
    let open = || super::super::Tokenizer::open(&own).unwrap();
    assert_eq!(with(&open()), 2);
    let json = own.join("tokenizer.json");
    let mut bytes = fs::read(&json).unwrap();
    bytes.push(b'\n');
    fs::write(&json, bytes).unwrap();
    assert_eq!(with(&open()), 3);
    let mut text = fs::read_to_string(&place.paths[1]).unwrap();
    text = text.replace("12", "13");
    fs::write(&place.paths[1], text).unwrap();
    assert_eq!(with(&testing::tokenizer()), 4);
}

#[test]
fn what_lowtide_did_not_write_stays() {
    let place = place(12);
    let options = LoadOptions::default();
    let (whole, _) = place.load(&options);
    let file = place.files().remove(0);
    let other = place.dir.path().join("other");
    fs::write(&other, "mine").unwrap();
    let tokenizer = testing::tokenizer();
    for is_link in [true, false] {
        fs::remove_file(&file).unwrap();
        match is_link {
            true => symlink(&other, &file).unwrap(),
            false => fs::create_dir(&file).unwrap(),
        }
        let load = |cache| Dataset::load_kept(&place.paths, &options, &tokenizer, cache);
        let error = load(&place.cache).unwrap_err().to_string();
        assert!(error.ends_with("it is no regular file"), "{error}");
        let unasked = Cache {
            required: false,
            ..place.cache.clone()
        };
        let (data, notes) = load(&unasked).unwrap();
        same(&whole, &data);
        assert!(notes[0].starts_with("tokens are not kept: "), "{notes:?}");
        assert_eq!(fs::read(&other).unwrap(), b"mine");
        assert_eq!(place.files(), std::slice::from_ref(&file));
    }
}

#[test]
fn what_dead_runs_left_is_removed_and_nothing_else() {
    let place = place(12);
    let folder = &place.cache.folder;
    let key = [7; 32];
    let mut running = Writer::create(folder, &key).unwrap();
    running.so_far().unwrap();
    let other = Writer::create(folder, &key).unwrap();
    assert_ne!(running.part, other.part);
    drop(other);
    let hex = "0".repeat(64);
    let left = folder.join(format!("{hex}.1-0.part"));
    fs::write(&left, [&MAGIC[..], &[0; 16]].concat()).unwrap();
    let others = ["a.part", "b.1-0.part"].map(|name| folder.join(name));
    let begun = folder.join(format!("{hex}.2-0.part"));
    fs::write(&begun, "no magic").unwrap();
    others.iter().for_each(|s| fs::write(s, MAGIC).unwrap());
    place.load(&LoadOptions::default());
    assert!(!left.exists());
    assert!(running.part.exists() && begun.exists());
    assert!(others.iter().all(|s| s.exists()));
    let part = running.part.clone();
    drop(running);
    assert!(!part.exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_done_without_or_refused() {
    let place = place(12);
    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (required, ok) in [(true, false), (false, true)] {
        let cache = Cache {
            folder: file.join("cache"),
            required,
            bytes_min: 0,
        };
        let options = LoadOptions::default();
        let loaded = Dataset::load_kept(&place.paths, &options, &testing::tokenizer(), &cache);
        assert_eq!(loaded.is_ok(), ok, "{loaded:?}");
    }
    let large = Cache {
        bytes_min: 1 << 20,
        required: false,
        ..place.cache.clone()
    };
    let options = LoadOptions::default();
    Dataset::load_kept(&place.paths, &options, &testing::tokenizer(), &large).unwrap();
    assert!(!place.cache.folder.exists(), "small data are not kept");
}

/// Whoever is first gives the file its name; the other's is the same, and is dropped. Only what stood there damaged is
/// replaced.
#[test]
fn of_two_runs_at_once_one_file_stays() {
    let place = place(12);
    let options = LoadOptions::default();
    place.load(&options);
    let whole = Dataset::load(&place.paths, &options, &place.tokenizer).unwrap();
    let file = place.files().remove(0);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[1..]).unwrap();
    let opened = || {
        let opened = Dataset::open_kept(&place.paths, &options, &place.tokenizer, &place.cache);
        match opened.unwrap() {
            Opened::New(writer, ..) => writer,
            Opened::Found(..) => panic!("it is damaged"),
        }
    };
    let read = |writer| {
        let sink = Sink::File(writer, &|| None);
        let (data, keeping) =
            Dataset::read(&place.paths, &options, &place.tokenizer, sink).unwrap();
        same(&whole, &data);
        assert!(matches!(keeping, Keeping::Kept(_)));
        fs::metadata(&file).unwrap().ino()
    };
    let (one, other) = (opened(), opened());
    let (first, second) = (read(one), read(other));
    assert_eq!(first, second);
    assert_eq!(fs::read(&file).unwrap(), bytes);
    assert_eq!(place.files(), std::slice::from_ref(&file));
}

#[test]
fn tokens_of_files_that_change_are_not_kept() {
    let place = place(12);
    let options = LoadOptions::default();
    let opened = Dataset::open_kept(&place.paths, &options, &place.tokenizer, &place.cache);
    let Opened::New(writer, key, _) = opened.unwrap() else {
        panic!("nothing is kept yet")
    };
    let out = OpenOptions::new()
        .append(true)
        .open(&place.paths[1])
        .unwrap();
    let before = out.metadata().unwrap().modified().unwrap();
    out.set_modified(before + std::time::Duration::from_secs(1))
        .unwrap();
    out.set_modified(before).unwrap();
    let changed = || key.changed(&place.paths);
    let sink = Sink::File(writer, &changed);
    let (_, keeping) = Dataset::read(&place.paths, &options, &place.tokenizer, sink).unwrap();
    let outcome = keeping.outcome(true).unwrap().unwrap();
    assert!(
        outcome.starts_with("warning: tokens are not kept: ")
            && outcome.contains("b.jsonl was changed"),
        "{outcome}"
    );
    assert_eq!(place.files(), Vec::<PathBuf>::new());
}

/// Why tokens are in memory is not forgotten when there is no room for them.
#[test]
fn why_tokens_were_not_kept_is_reported_when_memory_is_short() {
    let place = place(200);
    fs::write(place.dir.path().join("file"), "").unwrap();
    let cache = Cache {
        folder: place.dir.path().join("file"),
        required: false,
        bytes_min: 0,
    };
    let (data, _) = place.load(&LoadOptions::default());
    let options = LoadOptions {
        memory: data.report().n_tokens * 4,
        ..LoadOptions::default()
    };
    let error = Dataset::load_kept(&place.paths, &options, &place.tokenizer, &cache).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("are allowed; tokens are not kept: ") && error.contains("/file/"),
        "{error}"
    );
}
