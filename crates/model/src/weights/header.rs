//! The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes.
//!
//! Files are untrusted. Every number is checked against the file's real length before it is used, and nothing is
//! allocated by a length that the file merely states: the tensors must fill the file from the first byte behind the
//! header to the last, without gap or overlap.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::ModelError;

/// Longest header that is read, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// A number's type in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// Another one that the format knows, which cannot be a weight here: name, bytes.
    Other(String, u64),
}

impl StoredDtype {
    fn parse(name: &str) -> Option<Self> {
        let bytes = match name {
            "BF16" => return Some(Self::Bf16),
            "F16" => return Some(Self::F16),
            "F32" => return Some(Self::F32),
            "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 1,
            "I16" | "U16" => 2,
            "I32" | "U32" => 4,
            "I64" | "U64" | "F64" | "C64" => 8,
            _ => return None,
        };
        Some(Self::Other(name.to_owned(), bytes))
    }

    /// Bytes of one number.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::Other(_, bytes) => *bytes,
        }
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name in the file's header.
    pub name: String,
    /// Its numbers' type.
    pub dtype: StoredDtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub begin: u64,
    /// Length of its data in the file, in bytes.
    pub bytes: u64,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// First byte behind the header.
    pub data_start: u64,
    /// Every tensor, in the order of their bytes.
    pub tensors: Vec<StoredTensor>,
}

impl SafetensorsHeader {
    /// Reads and checks the header of a file of `file_len` bytes from its beginning.
    ///
    /// `file` is the name for errors. This is the function to call with hostile bytes.
    ///
    /// # Errors
    /// The `ModelError` variants about headers, offsets and lengths; `Io` when `reader` fails or
    /// ends early.
    pub fn read(file: &Path, mut reader: impl Read, file_len: u64) -> Result<Self, ModelError> {
        let length = |need, have| ModelError::HeaderLength {
            file: file.to_owned(),
            need,
            have,
        };
        let Some(behind) = file_len.checked_sub(8) else {
            return Err(length(8, file_len));
        };
        let mut stated = [0; 8];
        reader
            .read_exact(&mut stated)
            .map_err(ModelError::io(file))?;
        let stated = u64::from_le_bytes(stated);
        let most = behind.min(MAX_HEADER);
        if stated > most {
            return Err(length(stated, most));
        }
        let mut text = Vec::new();
        let got = reader
            .take(stated)
            .read_to_end(&mut text)
            .map_err(ModelError::io(file))?;
        if got as u64 != stated {
            return Err(length(stated, got as u64));
        }
        let parsed: Result<Entries, _> = serde_json::from_slice(&text);
        let entries = parsed.map_err(|source| ModelError::Header {
            file: file.to_owned(),
            source,
        })?;
        let data_start = 8 + stated;
        let tensors = check(file, entries.0, data_start, behind - stated)?;
        Ok(Self {
            data_start,
            tensors,
        })
    }
}

/// Tensors that fill `data_len` bytes exactly.
fn check(
    file: &Path,
    mut entries: Vec<(String, Entry)>,
    data_start: u64,
    data_len: u64,
) -> Result<Vec<StoredTensor>, ModelError> {
    let at = || file.to_owned();
    let mut names: Vec<&str> = entries.iter().map(|e| e.0.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ModelError::DuplicateTensor {
            file: at(),
            tensor: pair[0].to_owned(),
        });
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut need = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        if begin != need {
            return Err(ModelError::Offset {
                file: at(),
                tensor: name,
                need,
                have: begin,
            });
        }
        let Some(dtype) = StoredDtype::parse(&entry.dtype) else {
            return Err(ModelError::TensorDtype {
                file: at(),
                tensor: name,
                dtype: entry.dtype,
            });
        };
        let by_shape = entry
            .shape
            .iter()
            .try_fold(dtype.size(), |bytes, &n| bytes.checked_mul(n))
            .unwrap_or(u64::MAX);
        // An end before the begin counts as no bytes.
        let bytes = end.saturating_sub(begin);
        if bytes != by_shape || end < begin {
            let (need, have) = (by_shape, bytes);
            return Err(ModelError::TensorBytes {
                file: at(),
                tensor: name,
                need,
                have,
            });
        }
        if end > data_len {
            return Err(ModelError::DataLength {
                file: at(),
                need: end,
                have: data_len,
            });
        }
        need = end;
        tensors.push(StoredTensor {
            name,
            dtype,
            shape: entry.shape,
            begin: data_start + begin,
            bytes,
        });
    }
    if need != data_len {
        return Err(ModelError::DataLength {
            file: at(),
            need,
            have: data_len,
        });
    }
    Ok(tensors)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's members in file order, a name that occurs twice included.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map
                            .next_value::<Entry>()
                            .map_err(|e| de::Error::custom(format_args!("tensor '{name}': {e}")))?;
                        entries.push((name, entry));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Members)
    }
}
