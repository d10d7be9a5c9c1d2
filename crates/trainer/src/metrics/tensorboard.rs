//! TensorBoard event files, written without TensorFlow or its protocol-buffer library.
//!
//! A file is a row of records: length (u64), masked CRC-32C of the length, an `Event` message,
//! masked CRC-32C of the message; all little-endian. Of `Event` three fields are used: wall time
//! (1), step (2), and either file version (3) or a summary (5) of values, each a tag (1) and a
//! plain f32 (2) or a text (a tensor, 8, with metadata, 9).

use super::appender::Appender;
use crate::error::TrainError;
use crate::output::folder::{Folder, Found};
use lowtide_data::clock::now;

/// An event file open for writing.
#[derive(Debug)]
pub struct EventFile {
    records: Appender,
    name: String,
}

impl EventFile {
    /// Creates a new event file in a directory, under the name TensorBoard looks for.
    /// A resumed run makes a further file; TensorBoard joins the files of a directory by step.
    pub fn create(folder: &Folder) -> Result<Self, TrainError> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = match host.trim() {
            "" => "localhost",
            name => name,
        };
        let (now, pid) = (now().as_secs_f64(), std::process::id());
        for n in 0u32.. {
            let name = format!("events.out.tfevents.{:010}.{host}.{pid}.{n}", now as u64);
            if folder.found(&name)? == Found::Nothing {
                let file = folder.create_new(&name)?;
                let records = Appender::new(file, folder.at(&name));
                let mut new = Self {
                    records,
                    name: name.clone(),
                };
                let told = new.record(&event(now, 0, |e| bytes_field(e, 3, b"brain.Event:2")));
                return match told {
                    None => Ok(new),
                    Some(what) => Err(TrainError::File {
                        path: folder.at(&name),
                        what,
                    }),
                };
            }
        }
        unreachable!("2^32 event files of one process and second")
    }

    /// Where the events go.
    #[cfg(test)]
    fn path(&self) -> &std::path::Path {
        self.records.path()
    }

    /// Writes one point of each named curve at `step`; see [`Appender::append`].
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Option<String> {
        let mut summary = Vec::new();
        for (tag, x) in values {
            let mut value = Vec::new();
            bytes_field(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | FIXED32);
            value.extend(x.to_le_bytes());
            bytes_field(&mut summary, 1, &value);
        }
        self.record(&event(now().as_secs_f64(), step, |e| {
            bytes_field(e, 5, &summary)
        }))
    }

    /// Writes a text, as Markdown, under TensorBoard's tab of texts; see [`Appender::append`].
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Option<String> {
        // A tensor of one string, with the name of the plugin that shows it.
        let mut plugin = Vec::new();
        bytes_field(&mut plugin, 1, b"text");
        let mut metadata = Vec::new();
        bytes_field(&mut metadata, 1, &plugin);
        let mut tensor = vec![1 << 3 | VARINT, DT_STRING];
        // One dimension of size 1.
        bytes_field(&mut tensor, 2, &[2 << 3 | BYTES, 2, 1 << 3 | VARINT, 1]);
        bytes_field(&mut tensor, 8, text.as_bytes());
        let mut value = Vec::new();
        bytes_field(&mut value, 1, tag.as_bytes());
        bytes_field(&mut value, 9, &metadata);
        bytes_field(&mut value, 8, &tensor);
        let mut summary = Vec::new();
        bytes_field(&mut summary, 1, &value);
        self.record(&event(now().as_secs_f64(), step, |e| {
            bytes_field(e, 5, &summary)
        }))
    }

    /// See [`Appender::follow`].
    pub fn follow(&mut self, folder: &Folder) -> Option<String> {
        self.records.follow(folder, &self.name)
    }

    /// See [`Appender::missing`].
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.records.missing()
    }

    fn record(&mut self, message: &[u8]) -> Option<String> {
        let length = (message.len() as u64).to_le_bytes();
        let mut out = Vec::with_capacity(message.len() + 16);
        out.extend(length);
        out.extend(masked_crc(&length).to_le_bytes());
        out.extend(message);
        out.extend(masked_crc(message).to_le_bytes());
        self.records.append(&out)
    }
}

// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// TensorFlow's type of strings.
const DT_STRING: u8 = 7;

fn event(wall_s: f64, step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut e = vec![1 << 3 | FIXED64];
    e.extend(wall_s.to_le_bytes());
    e.push(2 << 3 | VARINT);
    varint(&mut e, step);
    what(&mut e);
    e
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The record format's guard against files that hold checksums of their own.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second implementation of everything the writer does, from the format's description: a
    /// bitwise CRC-32C and a general protocol-buffer reader.
    mod reader {
        pub fn crc32c(bytes: &[u8]) -> u32 {
            let mut crc = !0u32;
            for &b in bytes {
                crc ^= u32::from(b);
                for _ in 0..8 {
                    crc = if crc & 1 == 1 {
                        crc >> 1 ^ 0x82f6_3b78
                    } else {
                        crc >> 1
                    };
                }
            }
            !crc
        }

        fn checked(bytes: &[u8], crc: &[u8]) {
            let stored = u32::from_le_bytes(crc.try_into().unwrap()).wrapping_sub(0xa282_ead8);
            assert_eq!(stored.rotate_left(15), crc32c(bytes), "checksum");
        }

        pub fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
            let mut all = Vec::new();
            while !file.is_empty() {
                checked(&file[..8], &file[8..12]);
                let n = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
                checked(&file[12..12 + n], &file[12 + n..16 + n]);
                all.push(file[12..12 + n].to_vec());
                file = &file[16 + n..];
            }
            all
        }

        fn varint(m: &mut &[u8]) -> u64 {
            let (mut n, mut shift) = (0, 0);
            loop {
                let b = m[0];
                *m = &m[1..];
                n |= u64::from(b & 0x7f) << shift;
                shift += 7;
                if b < 0x80 {
                    return n;
                }
            }
        }

        /// (field, wire type, varint's value, payload) of each field.
        pub fn fields(mut m: &[u8]) -> Vec<(u64, u64, u64, Vec<u8>)> {
            let mut all = Vec::new();
            while !m.is_empty() {
                let key = varint(&mut m);
                let (value, n) = match key & 7 {
                    0 => (varint(&mut m), 0),
                    1 => (0, 8),
                    2 => (0, varint(&mut m) as usize),
                    5 => (0, 4),
                    other => panic!("wire type {other}"),
                };
                all.push((key >> 3, key & 7, value, m[..n].to_vec()));
                m = &m[n..];
            }
            all
        }
    }

    #[test]
    fn events_read_back() {
        assert_eq!(
            reader::crc32c(b"123456789"),
            0xe306_9283,
            "the reader's own check value"
        );
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(&Folder::open(dir.path()).unwrap()).unwrap();
        assert_eq!(file.scalars(1, &[("loss", 2.5), ("lr", 1e-5)]), None);
        assert_eq!(file.scalars(300, &[("loss", f32::NAN)]), None);
        let name = file.path().file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents."), "{name}");

        let records = reader::records(&std::fs::read(file.path()).unwrap());
        assert_eq!(records.len(), 3);
        let version = reader::fields(&records[0]);
        assert_eq!(version[2], (3, 2, 0, b"brain.Event:2".to_vec()));
        for (record, step, want) in [
            (&records[1], 1, &[("loss", 2.5f32), ("lr", 1e-5)][..]),
            (&records[2], 300, &[("loss", f32::NAN)]),
        ] {
            let event = reader::fields(record);
            let wall = f64::from_le_bytes(event[0].3.as_slice().try_into().unwrap());
            assert!(
                (1.7e9..1e10).contains(&wall) && event[0].0 == 1,
                "wall time {wall}"
            );
            assert_eq!((event[1].0, event[1].2), (2, step));
            assert_eq!((event[2].0, event[2].1), (5, 2));
            let values = reader::fields(&event[2].3);
            assert_eq!(values.len(), want.len());
            for ((field, _, _, value), (tag, x)) in values.iter().zip(want) {
                let value = reader::fields(value);
                assert_eq!((*field, value[0].0, value[1].0), (1, 1, 2));
                assert_eq!(value[0].3, tag.as_bytes());
                assert_eq!(value[1].3, x.to_le_bytes());
            }
        }
    }

    #[test]
    fn a_text_is_a_tensor_of_one_string_for_the_plugin_of_texts() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(&Folder::open(dir.path()).unwrap()).unwrap();
        assert_eq!(file.text(7, "answers", "**1**"), None);
        let records = reader::records(&std::fs::read(file.path()).unwrap());
        let event = reader::fields(&records[1]);
        assert_eq!((event[1].0, event[1].2), (2, 7));
        let value = reader::fields(&reader::fields(&event[2].3)[0].3);
        let field = |of: &[(u64, u64, u64, Vec<u8>)], n: u64| {
            let found = of.iter().find(|f| f.0 == n);
            found.expect("there").clone()
        };
        assert_eq!(field(&value, 1).3, b"answers");
        let metadata = reader::fields(&field(&value, 9).3);
        let plugin = reader::fields(&field(&metadata, 1).3);
        assert_eq!(field(&plugin, 1).3, b"text");
        let tensor = reader::fields(&field(&value, 8).3);
        assert_eq!(field(&tensor, 1).2, u64::from(DT_STRING));
        let shape = reader::fields(&field(&tensor, 2).3);
        assert_eq!(reader::fields(&field(&shape, 2).3)[0].2, 1);
        assert_eq!(field(&tensor, 8).3, b"**1**");
    }

    /// As after a write that the disk took half of: the half is cut off again.
    #[test]
    fn what_is_written_behind_a_cut_follows_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(&Folder::open(dir.path()).unwrap()).unwrap();
        let path = file.path().to_owned();
        let whole = std::fs::metadata(&path).unwrap().len();
        assert_eq!(file.scalars(1, &[("loss", 2.5)]), None);
        let other = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        other.set_len(whole).unwrap();
        assert_eq!(file.scalars(2, &[("loss", 2.25)]), None);
        let records = reader::records(&std::fs::read(&path).unwrap());
        let step = |record: &[u8]| reader::fields(record)[1].2;
        assert_eq!((records.len(), step(&records[1])), (2, 2));
    }

    #[test]
    fn two_files_of_one_second_do_not_collide() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let (a, b) = (
            EventFile::create(&folder).unwrap(),
            EventFile::create(&folder).unwrap(),
        );
        assert_ne!(a.path(), b.path());
    }
}
