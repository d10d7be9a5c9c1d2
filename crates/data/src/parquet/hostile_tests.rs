//! Files that are made to harm, written byte by byte, each read in a process of its own that may have little memory
//! and little time.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use super::*;
use crate::testing::tokenizer;
use crate::{Dataset, OnError};

/// A field of a structure: number, type, bytes.
type Field = (u16, u8, Vec<u8>);

const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 0x7f {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

/// A number as the compact protocol has it.
fn int(n: i64) -> Vec<u8> {
    varint((n << 1 ^ n >> 63) as u64)
}

/// A structure, its fields by number.
fn fields(all: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, kind, value) in all {
        bytes.push(*kind);
        bytes.extend(int(i64::from(*id)));
        bytes.extend(value);
    }
    bytes.push(0);
    bytes
}

fn list(kind: u8, all: &[Vec<u8>]) -> Vec<u8> {
    let head = [vec![(15 << 4) | kind], varint(all.len() as u64)].concat();
    [head, all.concat()].concat()
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// What a file has that is harmful; the rest is as it should be.
struct Plan {
    /// Name of the column.
    name: &'static str,
    /// Whether it may be missing: pages then have levels.
    optional: bool,
    rows: i64,
    codec: i64,
    /// Pages in the file, from its fifth byte on.
    body: Vec<u8>,
    /// Bytes of the column, if not those of all pages.
    size: Option<i64>,
    data_at: i64,
    dictionary_at: Option<i64>,
    /// More fields of the column's metadata and of the root of the schema.
    more: Vec<Field>,
    root: Vec<Field>,
}

impl Plan {
    fn new(rows: i64, body: Vec<u8>) -> Self {
        Self {
            name: "text",
            optional: false,
            rows,
            codec: 0,
            body,
            size: None,
            data_at: 4,
            dictionary_at: None,
            more: Vec::new(),
            root: vec![(5, I32, int(1))],
        }
    }

    fn file(&self) -> Vec<u8> {
        let name = binary(self.name.as_bytes());
        let root = fields(&[vec![(4, BINARY, binary(b"schema"))], self.root.clone()].concat());
        let leaf = fields(&[
            (1, I32, int(6)),
            (3, I32, int(i64::from(self.optional))),
            (4, BINARY, name.clone()),
            (6, I32, int(0)),
        ]);
        let size = self.size.unwrap_or(self.body.len() as i64);
        let mut column = vec![
            (1, I32, int(6)),
            (2, LIST, list(I32, &[int(0), int(3), int(8)])),
            (3, LIST, list(BINARY, &[name])),
            (4, I32, int(self.codec)),
            (5, I64, int(self.rows)),
            (6, I64, int(size)),
            (7, I64, int(size)),
            (9, I64, int(self.data_at)),
        ];
        column.extend(self.dictionary_at.map(|at| (11, I64, int(at))));
        column.extend(self.more.clone());
        let chunk = fields(&[(2, I64, int(0)), (3, STRUCT, fields(&column))]);
        let group = fields(&[
            (1, LIST, list(STRUCT, &[chunk])),
            (2, I64, int(size)),
            (3, I64, int(self.rows)),
        ]);
        let footer = fields(&[
            (1, I32, int(1)),
            (2, LIST, list(STRUCT, &[root, leaf])),
            (3, I64, int(self.rows)),
            (4, LIST, list(STRUCT, &[group])),
        ]);
        let len = (footer.len() as u32).to_le_bytes();
        [b"PAR1", &self.body[..], &footer, &len, b"PAR1"].concat()
    }
}

/// A page: its header and its bytes. `kind` 0 has values in the encoding, 2 is a dictionary.
fn page(kind: i64, values: i64, encoding: i64, size: Option<i64>, bytes: &[u8]) -> Vec<u8> {
    page_with(
        kind,
        &[(1, I32, int(values)), (2, I32, int(encoding))],
        size,
        bytes,
    )
}

fn page_with(kind: i64, inner: &[Field], size: Option<i64>, bytes: &[u8]) -> Vec<u8> {
    let mut inner = inner.to_vec();
    if kind == 0 {
        inner.extend([(3, I32, int(3)), (4, I32, int(3))]);
    }
    let header = fields(&[
        (1, I32, int(kind)),
        (2, I32, int(size.unwrap_or(bytes.len() as i64))),
        (3, I32, int(bytes.len() as i64)),
        (if kind == 2 { 7 } else { 5 }, STRUCT, fields(&inner)),
    ]);
    [header, bytes.to_vec()].concat()
}

/// Texts as values of a page.
fn texts(all: &[&str]) -> Vec<u8> {
    let text = |t: &&str| [&(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat();
    all.iter().map(text).collect::<Vec<_>>().concat()
}

/// All rows the first text of a dictionary, in a few bytes.
fn dictionary_of_one(text: &str, rows: i64) -> Vec<u8> {
    let one = page(2, 1, 0, None, &texts(&[text]));
    let run = [vec![1], varint((rows as u64) << 1), vec![0]].concat();
    [one, page(0, rows, 8, None, &run)].concat()
}

const BILLIONS: i64 = i32::MAX as i64;

/// Each file that harms, and a word of how reading it ends.
fn planted() -> Vec<(&'static str, Plan, &'static str)> {
    let good = page(0, 1, 0, None, &texts(&["hello there"]));
    let claims = page(2, BILLIONS, 0, None, &[0; 8]);
    let mut all = Vec::new();
    let both = [good.clone(), claims.clone()].concat();
    let mut behind = Plan::new(1, both);
    // From the values on, as many bytes have no dictionary; from the dictionary on they begin with it.
    behind.dictionary_at = Some(4 + good.len() as i64);
    behind.size = Some(good.len() as i64);
    all.push((
        "a dictionary behind its data",
        behind,
        "not before its values",
    ));

    let long = page_with(
        2,
        &[(1, I64, int(BILLIONS)), (2, I32, int(0))],
        None,
        &[0; 8],
    );
    let mut typed = Plan::new(1, [long.clone(), good.clone()].concat());
    typed.dictionary_at = Some(4);
    typed.data_at = 4 + long.len() as i64;
    all.push(("a count of another type", typed, "type"));

    // 65537 is 1 in 16 bits.
    let mut wide = vec![I32];
    wide.extend(int(65537));
    wide.extend(int(BILLIONS));
    let mut inner = fields(&[(1, I32, int(1)), (2, I32, int(0))]);
    inner.pop();
    inner.extend(wide);
    inner.push(0);
    let header =
        [fields(&[(1, I32, int(2)), (2, I32, int(8)), (3, I32, int(8))])[..].to_vec()].concat();
    let mut head = header;
    head.pop();
    head.push(STRUCT);
    head.extend(int(7));
    head.extend(inner);
    head.push(0);
    head.extend([0; 8]);
    let mut wrapped = Plan::new(1, [head.clone(), good.clone()].concat());
    wrapped.dictionary_at = Some(4);
    wrapped.data_at = 4 + head.len() as i64;
    // Such a field is unknown, and the file is fine without it.
    all.push(("a field's number beyond 16 bits", wrapped, "read 1"));

    let mut huge = Plan::new(1, good.clone());
    huge.root = vec![(5, DOUBLE, vec![2; 8])];
    all.push(("children of another type", huge, "type"));

    let zeros = vec![0; 2 << 30];
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &zeros).unwrap();
    let packed = packed.finish().unwrap();
    drop(zeros);
    let mut bomb = Plan::new(1, page(0, 1, 0, Some(15), &packed));
    bomb.codec = 2;
    all.push(("a gzip page of more than it says", bomb, "more"));

    // Block of 128 values, 4 miniblocks, two thousand millions of values, the first 0.
    let delta = [
        varint(128),
        varint(4),
        varint(BILLIONS as u64),
        int(0),
        int(0),
        vec![0; 4],
    ];
    for (encoding, name) in [(6, "DELTA_LENGTH_BYTE_ARRAY"), (7, "DELTA_BYTE_ARRAY")] {
        let plan = Plan::new(1, page(0, 1, encoding, None, &delta.concat()));
        all.push((name, plan, name));
    }
    let mut unknown = Plan::new(1 << 20, good.clone());
    unknown.name = "colour";
    all.push(("rows without a column", unknown, "colour"));
    let mut endless = Plan::new(BILLIONS, dictionary_of_one("hello there", BILLIONS));
    endless.dictionary_at = Some(4);
    endless.data_at = 40;
    all.push(("rows without an end", endless, "rows"));
    let mut many = Plan::new(
        1 << 20,
        dictionary_of_one(&"hello there ".repeat(9), 1 << 20),
    );
    many.dictionary_at = Some(4);
    many.data_at = 40;
    all.push(("more tokens than memory", many, "host memory"));
    let few = Plan::new(2, good);
    all.push(("rows that are not there", few, "rows"));
    all
}

const CHILD: &str = "LOWTIDE_TEST_HOSTILE";

/// Reads a file as training does and says how that ended, where a parent has asked for it.
#[test]
fn reads_a_hostile_file() {
    let Some(path) = env::var_os(CHILD) else {
        return;
    };
    let options = LoadOptions {
        memory: 64 << 20,
        on_error: OnError::Skip,
        ..LoadOptions::default()
    };
    let outcome = match Dataset::load(&[path.into()], &options, &tokenizer()) {
        Ok(data) => format!("read {}", data.len()),
        Err(e) => e.to_string(),
    };
    fs::write(env::var_os("LOWTIDE_TEST_OUTCOME").unwrap(), outcome).unwrap();
}

/// How reading a file ended within 1 GiB of address space and 60 s.
fn outcome(dir: &Path, bytes: &[u8]) -> String {
    let (path, outcome) = (dir.join("a.parquet"), dir.join("outcome"));
    fs::write(&path, bytes).unwrap();
    let _ = fs::remove_file(&outcome);
    let done = Command::new("sh")
        .args(["-c", "ulimit -v 1048576; ulimit -t 60; exec \"$0\" \"$@\""])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "parquet::hostile::reads_a_hostile_file"])
        .env(CHILD, &path)
        .env("LOWTIDE_TEST_OUTCOME", &outcome)
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    fs::read_to_string(&outcome).unwrap_or_else(|_| format!("NO END OF ITS OWN: {}", done.status))
}

#[test]
fn no_planted_file_takes_memory_or_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, plan, want) in planted() {
        let outcome = outcome(dir.path(), &plan.file());
        if !outcome.contains(want) {
            wrong.push(format!("{name}: {outcome}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_of_this_make_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let good = page(0, 2, 0, None, &texts(&["hello there", "good morning"]));
    assert_eq!(
        outcome(dir.path(), &Plan::new(2, good.clone()).file()),
        "read 2"
    );
    // No dictionary, as some writers say it.
    let mut zero = Plan::new(2, good);
    zero.dictionary_at = Some(0);
    assert_eq!(outcome(dir.path(), &zero.file()), "read 2");
    let mut one = Plan::new(100, dictionary_of_one("hello there", 100));
    one.dictionary_at = Some(4);
    one.data_at = 40;
    assert_eq!(outcome(dir.path(), &one.file()), "read 100");
}
