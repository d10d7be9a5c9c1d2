//! The pages of a column: found, bounded and unpacked here, so that the reader of values gets no page that takes more
//! than was counted before.
//!
//! A header is read once, and what it says is held against the file and against the bounds of
//! [`Pages`]. The encodings are those whose decoders take no more than a page's bytes and the values that are asked
//! for: plain values, dictionaries, and runs of truth values. Of the others, the lengths inside of a page decide what
//! a decoder takes; they are refused by name.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use lowtide_units::Bytes as Size;
use parquet::basic::{Compression, Encoding, Type as Physical};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;

use super::thrift::{FALSE, I32, Reader, STRUCT, TRUE, Wrong};

/// Most bytes of one page: writers make them of one or a few MiB.
const PAGE_MAX: u64 = 1 << 30;
/// Most bytes of a page's header: statistics in it have a minimum and a maximum.
const HEADER_MAX: usize = 1 << 20;
/// Bytes of memory for each value of a dictionary.
const ENTRY_COST: u64 = 64;
/// Bytes of memory for each page of a column.
const PAGE_COST: u64 = size_of::<Found>() as u64 * 2;

/// Why a page is refused that is not what it says.
const OTHER_SIZE: &str = "a page unpacks to more bytes than it says, or to fewer";

/// Which levels and values a column has.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Largest level of definition.
    pub definitions: i16,
    /// Largest level of repetition.
    pub repetitions: i16,
    /// What a value is.
    pub physical: Physical,
}

/// The pages of a column, and what they have.
pub(super) struct Pages {
    /// Values, the missing ones among them.
    pub values: u64,
    /// Bytes of memory that reading one page after another takes, the dictionary kept.
    pub memory: u64,
    codec: Compression,
    found: Vec<Found>,
}

/// A page in the file.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Where its bytes begin, behind its header.
    at: u64,
    header: Header,
}

/// Where a page's levels are, and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Make {
    Dictionary,
    /// Levels are in front of the values and packed with them.
    One,
    /// Levels are in front and never packed.
    Two {
        nulls: u32,
        rows: u32,
        definitions: u32,
        repetitions: u32,
        packed: bool,
    },
}

/// What the header of a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Bytes of the page in the file.
    compressed: u64,
    /// Bytes of the page as it is read.
    uncompressed: u64,
    values: u32,
    encoding: Encoding,
    make: Make,
}

/// Reads the header that the bytes begin with, and says how long it is; none of a page that has no values.
fn header(bytes: &[u8], shape: Shape) -> Result<(usize, u64, Option<Header>), Wrong> {
    let mut reader = Reader::new(bytes);
    let (mut all, mut last) = ([None; 4], 0);
    let mut inner = [None; 3];
    while let Some((id, kind)) = reader.field(&mut last)? {
        match (id, kind) {
            (1..=3, I32) => all[id as usize] = Some(reader.small()?),
            (5, STRUCT) => inner[0] = Some(numbers(&mut reader)?),
            (7, STRUCT) => inner[1] = Some(numbers(&mut reader)?),
            (8, STRUCT) => inner[2] = Some(numbers(&mut reader)?),
            (1..=3 | 5 | 7 | 8, _) => return Err(format!("field {id} has the wrong type {kind}")),
            _ => reader.skip(kind, 0)?,
        }
    }
    let size = |n: Option<i32>| {
        let n = n.and_then(|n| u64::try_from(n).ok());
        n.ok_or_else(|| Wrong::from("it has no size, or one below 0"))
    };
    let (uncompressed, compressed) = (size(all[2])?, size(all[3])?);
    if uncompressed > PAGE_MAX || compressed > PAGE_MAX {
        let size = Size(uncompressed.max(compressed));
        let most = Size(PAGE_MAX);
        return Err(format!("it has {size}, and up to {most} are read at once"));
    }
    let make = match all[1] {
        Some(0) => 0,
        Some(2) => 1,
        Some(3) => 2,
        // An index; no writer of today makes one.
        Some(1) => return Ok((reader.at, compressed, None)),
        _ => return Err("it is of an unknown kind".into()),
    };
    let inner = inner[make].ok_or("it lacks what belongs to its kind")?;
    let natural = |i: usize| {
        let n = inner[i].and_then(|n| u32::try_from(n).ok());
        n.ok_or_else(|| Wrong::from("a number in it is not there, or below 0"))
    };
    let values = natural(1)?;
    let header = Header {
        compressed,
        uncompressed,
        values,
        encoding: encoding(
            inner[if make == 2 { 4 } else { 2 }],
            make == 1,
            shape.physical,
        )?,
        make: match make {
            1 => Make::Dictionary,
            0 => {
                // Levels that are always 0 are not there, however they would be written.
                for (i, max) in [(3, shape.definitions), (4, shape.repetitions)] {
                    if max > 0 && inner[i] != Some(3) {
                        return Err("its levels are not written as runs (RLE)".into());
                    }
                }
                Make::One
            }
            _ => Make::Two {
                nulls: natural(2)?,
                rows: natural(3)?,
                definitions: natural(5)?,
                repetitions: natural(6)?,
                packed: inner[7] != Some(0),
            },
        },
    };
    header.bounded()?;
    let empty = values == 0 && header.make != Make::Dictionary;
    Ok((reader.at, compressed, (!empty).then_some(header)))
}

/// The numbers and truth values of a structure, by field.
fn numbers(reader: &mut Reader<'_>) -> Result<[Option<i32>; 8], Wrong> {
    let (mut all, mut last) = ([None; 8], 0);
    while let Some((id, kind)) = reader.field(&mut last)? {
        match (id, kind) {
            (1..=7, I32) => all[id as usize] = Some(reader.small()?),
            (1..=7, TRUE | FALSE) => all[id as usize] = Some(i32::from(kind == TRUE)),
            // Its number of values, whatever it is, and its encoding.
            (1 | 2, _) => return Err(format!("field {id} has the wrong type {kind}")),
            _ => reader.skip(kind, 1)?,
        }
    }
    Ok(all)
}

/// How values are written, where it is one of the ways that are read.
fn encoding(number: Option<i32>, dictionary: bool, physical: Physical) -> Result<Encoding, Wrong> {
    let name = match number {
        Some(0) => return Ok(Encoding::PLAIN),
        Some(2) => return Ok(Encoding::PLAIN_DICTIONARY),
        Some(3) if !dictionary && physical == Physical::BOOLEAN => return Ok(Encoding::RLE),
        Some(8) if !dictionary => return Ok(Encoding::RLE_DICTIONARY),
        Some(3) => "RLE",
        Some(4) => "BIT_PACKED",
        Some(5) => "DELTA_BINARY_PACKED",
        Some(6) => "DELTA_LENGTH_BYTE_ARRAY",
        Some(7) => "DELTA_BYTE_ARRAY",
        Some(9) => "BYTE_STREAM_SPLIT",
        _ => "unknown",
    };
    Err(format!(
        "its encoding is {name}, and plain values and dictionaries are read"
    ))
}

impl Header {
    fn bounded(&self) -> Result<(), Wrong> {
        match self.make {
            // A value of one takes a byte at least.
            Make::Dictionary if u64::from(self.values) > self.uncompressed => {
                Err("a dictionary has more values than bytes".into())
            }
            Make::Two {
                nulls,
                definitions,
                repetitions,
                ..
            } => {
                let levels = u64::from(definitions) + u64::from(repetitions);
                match levels > self.uncompressed.min(self.compressed) || nulls > self.values {
                    true => Err("it has more levels than bytes, or than values".into()),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Bytes at the page's beginning that are not packed, and whether the others are.
    fn open(&self, codec: Compression) -> (usize, bool) {
        let packed = codec != Compression::UNCOMPRESSED;
        match self.make {
            Make::Two {
                definitions,
                repetitions,
                packed: itself,
                ..
            } => ((definitions + repetitions) as usize, packed && itself),
            _ => (0, packed),
        }
    }
}

impl Pages {
    /// Finds the pages of a column in a file of so many bytes. Ends where reading them takes more than `memory`.
    ///
    /// # Errors
    /// A page that is not as it must be.
    pub fn of(
        file: &File,
        len: u64,
        column: &ColumnChunkMetaData,
        shape: Shape,
        memory: u64,
    ) -> Result<Self, Wrong> {
        let codec = column.compression();
        if !matches!(
            codec,
            Compression::UNCOMPRESSED
                | Compression::SNAPPY
                | Compression::GZIP(_)
                | Compression::ZSTD(_)
        ) {
            let name = codec.to_string();
            let name = name.split('(').next().unwrap_or_default().to_owned();
            return Err(format!(
                "it is compressed with {name}, and snappy, gzip and zstd are read"
            ));
        }
        let (mut at, end) = range(column, len)?;
        let mut pages = Self {
            values: 0,
            memory: 0,
            codec,
            found: Vec::new(),
        };
        let (mut page_max, mut dictionary, mut head) = (0, 0u64, Vec::new());
        while at < end {
            let (bytes, compressed, header) = read_header(file, at, end, shape, &mut head)?;
            at += bytes as u64;
            if compressed > end - at {
                return Err("a page reaches beyond its column".into());
            }
            if let Some(header) = header {
                match header.make {
                    Make::Dictionary if pages.found.is_empty() => {
                        dictionary = header.uncompressed + u64::from(header.values) * ENTRY_COST;
                    }
                    Make::Dictionary => return Err("a dictionary is behind other pages".into()),
                    _ => pages.values += u64::from(header.values),
                }
                page_max = page_max.max(header.uncompressed + header.compressed);
                pages.found.push(Found { at, header });
            }
            at += compressed;
            let list = pages.found.len() as u64 * PAGE_COST;
            pages.memory = page_max.saturating_add(dictionary).saturating_add(list);
            if list > memory {
                break;
            }
        }
        Ok(pages)
    }
}

/// Where a column is in the file.
fn range(column: &ColumnChunkMetaData, len: u64) -> Result<(u64, u64), Wrong> {
    let data = column.data_page_offset();
    // Some writers have an offset of 0 for no dictionary.
    let begin = match column.dictionary_page_offset() {
        None | Some(0) => data,
        Some(at) if at < data => at,
        Some(_) => return Err("its dictionary is not before its values".into()),
    };
    let (begin, size) = (
        u64::try_from(begin),
        u64::try_from(column.compressed_size()),
    );
    let (Ok(begin), Ok(size)) = (begin, size) else {
        return Err("it lies before the beginning of the file".into());
    };
    match begin.checked_add(size).filter(|&end| end <= len) {
        Some(end) => Ok((begin, end)),
        None => Err("it reaches beyond the end of the file".into()),
    }
}

/// The header of the page at an offset: its bytes, those of its page, and what it says.
fn read_header(
    file: &File,
    at: u64,
    end: u64,
    shape: Shape,
    head: &mut Vec<u8>,
) -> Result<(usize, u64, Option<Header>), Wrong> {
    let mut most = 256;
    loop {
        let n = usize::try_from(end - at).unwrap_or(most).min(most);
        head.resize(n, 0);
        file.read_exact_at(head, at).map_err(|e| e.to_string())?;
        match header(head, shape) {
            Ok(header) => return Ok(header),
            Err(_) if n == most && most < HEADER_MAX => most *= 8,
            Err(what) => return Err(format!("a page of it: {what}")),
        }
    }
}

/// Hands a column's pages to the reader of its values.
pub(super) struct Unpacker {
    file: Arc<File>,
    pages: std::vec::IntoIter<Found>,
    codec: Compression,
}

impl Unpacker {
    pub fn new(file: Arc<File>, pages: Pages) -> Self {
        Self {
            file,
            pages: pages.found.into_iter(),
            codec: pages.codec,
        }
    }

    fn read(&self, found: &Found) -> Result<Page, Wrong> {
        let header = found.header;
        let mut packed = vec![0; header.compressed as usize];
        let read = self.file.read_exact_at(&mut packed, found.at);
        read.map_err(|e| e.to_string())?;
        let (open, is_packed) = header.open(self.codec);
        let size = header.uncompressed as usize;
        let bytes = match is_packed {
            false if packed.len() != size => {
                return Err("a page has other bytes than it says".into());
            }
            false => packed,
            true => {
                let mut bytes = Vec::with_capacity(size);
                bytes.extend_from_slice(&packed[..open]);
                // A page of nothing but missing values has nothing that is packed.
                if size > open {
                    unpack(self.codec, &packed[open..], &mut bytes, size)?;
                }
                bytes
            }
        };
        let (buf, num_values, encoding) = (Bytes::from(bytes), header.values, header.encoding);
        Ok(match header.make {
            Make::Dictionary => Page::DictionaryPage {
                buf,
                num_values,
                encoding,
                is_sorted: false,
            },
            Make::One => Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            },
            Make::Two {
                nulls,
                rows,
                definitions,
                repetitions,
                ..
            } => Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls: nulls,
                num_rows: rows,
                def_levels_byte_len: definitions,
                rep_levels_byte_len: repetitions,
                is_compressed: false,
                statistics: None,
            },
        })
    }
}

/// Appends what is packed, until there are `size` bytes: neither fewer nor more.
fn unpack(codec: Compression, packed: &[u8], out: &mut Vec<u8>, size: usize) -> Result<(), Wrong> {
    let from = out.len();
    // One more than there may be shows that there are more.
    let most = (size - from) as u64 + 1;
    let unpacked = match codec {
        Compression::SNAPPY => {
            let n = snap::raw::decompress_len(packed).map_err(|e| e.to_string())?;
            if n != size - from {
                return Err(OTHER_SIZE.into());
            }
            out.resize(size, 0);
            let decoded = snap::raw::Decoder::new().decompress(packed, &mut out[from..]);
            decoded.map(|_| ()).map_err(|e| e.to_string())
        }
        Compression::GZIP(_) => {
            let decoder = flate2::read::MultiGzDecoder::new(packed);
            let read = decoder.take(most).read_to_end(out);
            read.map(|_| ()).map_err(|e| e.to_string())
        }
        Compression::ZSTD(_) => {
            // Into what there is: no window is kept besides.
            out.resize(size, 0);
            let n = zstd::bulk::decompress_to_buffer(packed, &mut out[from..]);
            n.map(|n| out.truncate(from + n)).map_err(|e| e.to_string())
        }
        _ => Err("a page of it is compressed in a way that is not read".into()),
    };
    unpacked?;
    match out.len() == size {
        true => Ok(()),
        false => Err(OTHER_SIZE.into()),
    }
}

impl Iterator for Unpacker {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.pages.next()?;
        Some(self.read(&found).map_err(ParquetError::General))
    }
}

impl PageReader for Unpacker {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        self.next().transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        let next = self.pages.as_slice().first();
        Ok(next.map(|found| {
            let values = found.header.values as usize;
            let (num_rows, num_levels, is_dict) = match found.header.make {
                Make::Dictionary => (None, None, true),
                Make::One => (None, Some(values), false),
                Make::Two { rows, .. } => (Some(rows as usize), Some(values), false),
            };
            PageMetadata {
                num_rows,
                num_levels,
                is_dict,
            }
        }))
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.pages.next();
        Ok(())
    }
}
