//! What stands where a file should be.

use std::fmt;

/// A name that is not a regular file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRegular {
    /// A directory where a file should be.
    Directory,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character or block device.
    Device,
}

impl fmt::Display for NotRegular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::Fifo => "a named pipe (FIFO)",
            Self::Socket => "a socket",
            Self::Device => "a device",
        })
    }
}

/// A regular file of another format than its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The text that Git leaves where the large file has not been fetched.
    LfsPointer,
    /// A page of HTML or XML, mostly an error message that a download saved.
    Page,
    /// A zip archive, which PyTorch's own weights are too.
    Zip,
    /// A GGUF file.
    Gguf,
    /// A file packed by gzip.
    Gzip,
    /// A file packed by Zstandard.
    Zstd,
    /// A Parquet file.
    Parquet,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LfsPointer => "a Git LFS pointer",
            Self::Page => "an HTML or XML page",
            Self::Zip => "a zip archive (or PyTorch's own weights)",
            Self::Gguf => "a GGUF file",
            Self::Gzip => "a gzip archive",
            Self::Zstd => "a Zstandard archive",
            Self::Parquet => "a Parquet file",
        })
    }
}

/// Bytes from a file's beginning that [`Foreign::of`] wants to see.
pub(crate) const PEEK: usize = 256;

impl Foreign {
    /// What a file is by its first bytes, where they are not those of any file that is read here.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        // A safetensors file may begin with any eight bytes: its header's length.
        if head.get(8) == Some(&b'{') {
            return None;
        }
        Self::begins(head)
    }

    /// What begins with these bytes, of a file that is no safetensors file by its name.
    #[must_use]
    pub fn begins(head: &[u8]) -> Option<Self> {
        let binary = [
            (&b"PK\x03\x04"[..], Self::Zip),
            (b"GGUF", Self::Gguf),
            (b"\x1f\x8b\x08", Self::Gzip),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (b"PAR1", Self::Parquet),
            (b"version https://git-lfs", Self::LfsPointer),
            (b"version https://hawser", Self::LfsPointer),
        ];
        if let Some((_, kind)) = binary.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Some(*kind);
        }
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
        let text = text.trim_ascii_start().to_ascii_lowercase();
        let page = [&b"<!doctype html"[..], b"<html", b"<?xml", b"<error>"];
        page.iter()
            .any(|p| text.starts_with(p))
            .then_some(Self::Page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 17\n";
        for (head, want) in [
            (&lfs[..], Some(Foreign::LfsPointer)),
            (b"<!DOCTYPE html>\n<html>", Some(Foreign::Page)),
            (b"\xef\xbb\xbf \n<HTML lang=en>", Some(Foreign::Page)),
            (b"<?xml version='1.0'?><Error>", Some(Foreign::Page)),
            (b"PK\x03\x04\0\0\x08\x08data", Some(Foreign::Zip)),
            (b"GGUF\x03\0\0\0", Some(Foreign::Gguf)),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", Some(Foreign::Gzip)),
            (b"PAR1\x15\x04", Some(Foreign::Parquet)),
            // A safetensors header of 559,903 bytes begins like gzip.
            (b"\x1f\x8b\x08\0\0\0\0\0{\"a\"", None),
            // A chat template may begin with a tag, a data file with anything.
            (b"<|im_start|>", None),
            (b"<s>{% for m", None),
            (b"version: 3", None),
            (b"{\"text\": \"<html>\"}", None),
            (b"", None),
        ] {
            assert_eq!(Foreign::of(head), want, "{}", String::from_utf8_lossy(head));
        }
    }
}
