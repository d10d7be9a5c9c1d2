use std::fs;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use serde_json::{Value, json};

use super::*;

const SCHEMA: &str = "message schema {
  optional group messages (LIST) {
    repeated group list {
      optional group element {
        optional binary role (STRING);
        optional binary content (STRING);
        optional group tags (LIST) { repeated group list { optional int64 element; } }
      }
    }
  }
  optional int64 id;
}";

/// Levels and values of a column.
#[derive(Default)]
struct Column {
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    texts: Vec<ByteArray>,
    numbers: Vec<i64>,
}

impl Column {
    fn push(&mut self, definition: i16, repetition: i16) {
        self.definitions.push(definition);
        self.repetitions.push(repetition);
    }
}

fn properties(v2: bool, compression: Compression, dictionary: bool) -> WriterProperties {
    WriterProperties::builder()
        .set_writer_version(match v2 {
            true => WriterVersion::PARQUET_2_0,
            false => WriterVersion::PARQUET_1_0,
        })
        .set_compression(compression)
        .set_dictionary_enabled(dictionary)
        // Without it, version 2 has lengths and differences (DELTA_…).
        .set_encoding(Encoding::PLAIN)
        .set_data_page_row_count_limit(7)
        .set_write_batch_size(3)
        .build()
}

/// Records of messages as a Parquet file, some rows a group.
fn written_as(list: &[Value], properties: WriterProperties, group: usize) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    for rows in list.chunks(group) {
        let (mut role, mut content, mut tags, mut id) = (
            Column::default(),
            Column::default(),
            Column::default(),
            Column::default(),
        );
        for row in rows {
            match row["id"].as_i64() {
                Some(n) => {
                    id.push(1, 0);
                    id.numbers.push(n);
                }
                None => id.push(0, 0),
            }
            let Some(messages) = row["messages"].as_array().filter(|m| !m.is_empty()) else {
                let definition = i16::from(row["messages"].is_array());
                for column in [&mut role, &mut content, &mut tags] {
                    column.push(definition, 0);
                }
                continue;
            };
            for (i, message) in messages.iter().enumerate() {
                let repetition = i16::from(i > 0);
                for (column, name) in [(&mut role, "role"), (&mut content, "content")] {
                    match message[name].as_str() {
                        Some(text) => {
                            column.push(4, repetition);
                            column.texts.push(text.into());
                        }
                        None => column.push(3, repetition),
                    }
                }
                match message["tags"].as_array() {
                    None => tags.push(3, repetition),
                    Some(list) if list.is_empty() => tags.push(4, repetition),
                    Some(list) => {
                        for (k, tag) in list.iter().enumerate() {
                            let repetition = if k > 0 { 2 } else { repetition };
                            match tag.as_i64() {
                                Some(n) => {
                                    tags.push(6, repetition);
                                    tags.numbers.push(n);
                                }
                                None => tags.push(5, repetition),
                            }
                        }
                    }
                }
            }
        }
        let mut group = writer.next_row_group().unwrap();
        for (i, c) in [role, content, tags, id].into_iter().enumerate() {
            let mut column = group.next_column().unwrap().unwrap();
            let (def, rep) = (Some(&c.definitions[..]), Some(&c.repetitions[..]));
            match i {
                0 | 1 => column
                    .typed::<ByteArrayType>()
                    .write_batch(&c.texts, def, rep),
                2 => column
                    .typed::<Int64Type>()
                    .write_batch(&c.numbers, def, rep),
                _ => column
                    .typed::<Int64Type>()
                    .write_batch(&c.numbers, def, None),
            }
            .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// Records of messages as a file that a writer of today makes.
pub(crate) fn written(list: &[Value]) -> Vec<u8> {
    written_as(list, properties(false, Compression::SNAPPY, true), 16)
}

fn read(bytes: &[u8], options: &LoadOptions) -> Result<Vec<Result<Value, String>>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    fs::write(&path, bytes).unwrap();
    read_file(&path, options)
}

fn read_file(path: &Path, options: &LoadOptions) -> Result<Vec<Result<Value, String>>, String> {
    let regular = lowtide_files::open_any(path).unwrap();
    let parquet = Parquet::open(regular, path, options).map_err(|e| e.to_string())?;
    parquet
        .map(|line| {
            let text = line.map_err(|e| e.to_string())?.text;
            let json = |text: String| serde_json::from_str(&text).unwrap();
            Ok(text.map(json).map_err(|e| e.to_string()))
        })
        .collect()
}

fn rows() -> Vec<Value> {
    (0..50)
        .map(|i| match i % 10 {
            7 => json!({"id": 7}),
            8 => json!({"messages": []}),
            _ => {
                let message = |k: usize| {
                    let mut m = json!({"role": "user", "content": format!("{i} \"{k}\" é\n")});
                    match (i + k) % 4 {
                        0 => m["tags"] = json!([1, null, -3]),
                        1 => m["tags"] = json!([]),
                        2 => drop(m.as_object_mut().unwrap().remove("content")),
                        _ => {}
                    }
                    m
                };
                let messages: Vec<Value> = (0..1 + i % 5).map(message).collect();
                json!({"messages": messages, "id": i})
            }
        })
        .collect()
}

/// A record as it is read: what is no format's is there without its value, behind the others.
fn seen(row: &Value) -> Value {
    let mut row = row.clone();
    row["id"] = Value::Null;
    row
}

#[test]
fn nested_records_come_back_as_they_were() {
    let (rows, options) = (rows(), LoadOptions::default());
    let want: Vec<_> = rows.iter().map(|r| Ok(seen(r))).collect();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for (v2, compression, dictionary) in [
        (false, Compression::SNAPPY, true),
        (true, zstd, true),
        (false, Compression::GZIP(Default::default()), false),
        (true, Compression::UNCOMPRESSED, false),
    ] {
        for group in [1, 9, 64] {
            let bytes = written_as(&rows, properties(v2, compression, dictionary), group);
            let got = read(&bytes, &options).unwrap();
            assert_eq!(got, want, "{compression:?}, {group} rows a group");
        }
    }
}

#[test]
fn a_row_above_the_bound_is_reported_and_the_next_is_read() {
    let options = LoadOptions {
        line_bytes_max: 200,
        ..LoadOptions::default()
    };
    let message =
        |n: usize| json!({"messages": [{"content": "x".repeat(n)}, {"content": "y"}], "id": 1});
    let list = [message(3), message(300), message(4)];
    let got = read(&written(&list), &options).unwrap();
    assert_eq!(got[0], Ok(seen(&list[0])));
    assert_eq!(got[1], Err("line is longer than 200 bytes".into()));
    assert_eq!(got[2], Ok(seen(&list[2])));
}

#[test]
fn a_file_that_takes_more_memory_than_there_is_is_refused() {
    let bytes = written(&rows());
    let mut outcomes = Vec::new();
    for memory in (1000..200_000).step_by(1000) {
        let options = LoadOptions {
            memory,
            ..LoadOptions::default()
        };
        let what = match read(&bytes, &options) {
            Ok(_) => "fine",
            Err(e) if e.contains("what it says of itself takes up to") => "footer",
            Err(e) if e.contains("row group 0 takes up to") && e.contains("host memory") => "0",
            Err(e) if e.contains("row group") && e.contains("host memory") => "a later one",
            Err(e) => panic!("{e}"),
        };
        if outcomes.last() != Some(&what) {
            outcomes.push(what);
        }
    }
    outcomes.retain(|what| *what != "a later one");
    assert_eq!(outcomes, ["footer", "0", "fine"]);
}

/// Encodings whose decoders take what lengths inside of a page say.
#[test]
fn encodings_by_lengths_are_refused_by_name() {
    for encoding in [
        Encoding::DELTA_LENGTH_BYTE_ARRAY,
        Encoding::DELTA_BYTE_ARRAY,
    ] {
        for v2 in [false, true] {
            let properties = properties(v2, Compression::SNAPPY, false).into_builder();
            let path = ["messages", "list", "element", "content"].map(str::to_owned);
            let path = ColumnPath::new(path.into());
            let properties = properties.set_column_encoding(path, encoding).build();
            let error = read(
                &written_as(&rows(), properties, 64),
                &LoadOptions::default(),
            );
            let error = error.unwrap_err();
            let want = format!("column 'content': a page of it: its encoding is {encoding}");
            assert!(error.contains(&want), "{error}");
        }
    }
}

#[test]
fn files_that_are_not_whole_are_refused() {
    let options = LoadOptions::default();
    let whole = written(&rows());
    assert!(read(&whole, &options).is_ok());
    let cut = &whole[..whole.len() - 9];
    let mut encrypted = whole.clone();
    let n = encrypted.len();
    encrypted[n - 4..].copy_from_slice(b"PARE");
    let mut long = whole.clone();
    long[n - 8..n - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, want) in [
        (&whole[..8], "ends too early"),
        (cut, "no end"),
        (&encrypted, "encrypted"),
        (&long, "of itself"),
    ] {
        let error = read(bytes, &options).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
}

/// Whatever byte of a file is another: records, or an error; no panic that is not caught, no memory without an end.
#[test]
fn no_byte_of_a_file_is_trusted() {
    let options = LoadOptions {
        memory: 64 << 20,
        ..LoadOptions::default()
    };
    let whole = written_as(
        &rows()[..12],
        properties(true, Compression::SNAPPY, true),
        6,
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    fs::write(&path, &whole).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut refused = 0;
    for (i, byte) in whole.iter().enumerate() {
        for flip in [0xff, 0x01] {
            file.write_all_at(&[byte ^ flip], i as u64).unwrap();
            refused += usize::from(read_file(&path, &options).is_err());
        }
        file.write_all_at(&[*byte], i as u64).unwrap();
    }
    assert!(refused > whole.len() / 4, "{refused}");
    assert!(read_file(&path, &options).is_ok());
}

#[test]
fn columns_without_a_word_in_json_are_refused() {
    for (column, what) in [
        ("required fixed_len_byte_array(16) text", "'text' is bytes"),
        ("required int96 text", "a time of 96 bits"),
        ("required int64 text (DECIMAL(9,2))", "a decimal"),
    ] {
        let schema = parse_message_type(&format!("message schema {{ {column}; }}")).unwrap();
        let outcome = columns(&schema, &LoadOptions::default()).err().unwrap();
        assert!(outcome.contains(what), "{outcome}");
    }
}
