//! Which algorithm computes which product: names of products, and the table of measured choices on
//! disk.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Format;

/// The library's words for a configured algorithm; they mean something to one version of it only.
pub(super) type Words = [u64; 8];

/// What a product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Add {
    /// Nothing: the output is overwritten unread.
    Nothing,
    /// Another tensor of the output's shape.
    Other,
    /// The output's own numbers.
    Itself,
}

/// All that a choice depends on. Two calls with equal keys run the same code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub input: Format,
    pub output: Format,
    pub rows: usize,
    pub cols: usize,
    pub inner: usize,
    pub a_transposed: bool,
    pub b_transposed: bool,
    /// Numbers between stored rows of a, and of c and d.
    pub gaps: [usize; 2],
    pub add: Add,
    pub bias: bool,
    /// Bytes to which a, b, c, d and the bias are aligned.
    pub aligned: [u16; 5],
    /// Bytes of scratch that it may use.
    pub scratch: usize,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Bf16, Self::F32]
            .into_iter()
            .find(|f| f.name() == name)
    }
}

impl Add {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "new",
            Self::Other => "add",
            Self::Itself => "in-place",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Nothing, Self::Other, Self::Itself]
            .into_iter()
            .find(|a| a.name() == name)
    }
}

/// `bf16>f32 4096x1024x512 tn add bias 256.256.256.256.16 33554432`: types, rows x columns x inner,
/// which of a and b are stored transposed, what is added, alignments, scratch; and `7+0` where there are
/// gaps between rows of a, or of c and d.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transposed = |t: bool| if t { 't' } else { 'n' };
        let [a, b, c, d, bias] = self.aligned;
        write!(
            f,
            "{}>{} {}x{}x{} {}{} {} {} {a}.{b}.{c}.{d}.{bias} {}",
            self.input.name(),
            self.output.name(),
            self.rows,
            self.cols,
            self.inner,
            transposed(self.a_transposed),
            transposed(self.b_transposed),
            self.add.name(),
            if self.bias { "bias" } else { "-" },
            self.scratch,
        )?;
        match self.gaps {
            [0, 0] => Ok(()),
            [a, d] => write!(f, " {a}+{d}"),
        }
    }
}

impl FromStr for Key {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [
            types,
            sizes,
            transposed,
            add,
            bias,
            aligned,
            scratch,
            ref gaps @ ..,
        ] = parts[..]
        else {
            return Err(());
        };
        let gaps = match gaps {
            [] => [0; 2],
            [gaps] => numbers(gaps, '+')?.try_into().map_err(drop)?,
            _ => return Err(()),
        };
        let (input, output) = types.split_once('>').ok_or(())?;
        let sizes: Vec<usize> = numbers(sizes, 'x')?;
        let [rows, cols, inner] = sizes[..] else {
            return Err(());
        };
        let (a_transposed, b_transposed) = match transposed {
            "nn" => (false, false),
            "nt" => (false, true),
            "tn" => (true, false),
            "tt" => (true, true),
            _ => return Err(()),
        };
        let key = Self {
            input: Format::of(input).ok_or(())?,
            output: Format::of(output).ok_or(())?,
            rows,
            cols,
            inner,
            a_transposed,
            b_transposed,
            gaps,
            add: Add::of(add).ok_or(())?,
            bias: bias == "bias",
            aligned: numbers(aligned, '.')?.try_into().map_err(drop)?,
            scratch: scratch.parse().map_err(drop)?,
        };
        // One spelling a key: a table is looked up by it.
        if key.to_string() == text {
            Ok(key)
        } else {
            Err(())
        }
    }
}

fn numbers<T: FromStr>(text: &str, by: char) -> Result<Vec<T>, ()> {
    text.split(by).map(|n| n.parse().map_err(drop)).collect()
}

/// Alignment as the library gets it: exact below 16 bytes, and whether it is a whole slot's
/// (256) above. Nothing needs more than 16, and the fewer classes there are the less a choice
/// depends on an address. `stride` is the bytes from row to row.
pub(super) fn alignment(address: u64, stride: usize) -> u16 {
    let power = |x: u64| 1u16 << x.trailing_zeros().min(8);
    let (start, stride) = (power(address), power(stride as u64));
    match start.min(stride) {
        small @ ..16 => small,
        _ if start == 256 => 256,
        _ => 16,
    }
}

/// The file of measured choices for a chip and a version of the library.
pub(super) fn file(folder: &Path, gpu: &str, version: usize) -> PathBuf {
    let gpu: String = gpu
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    folder.join(format!("products-{gpu}-{version}.json"))
}

/// The choices in a file; none where there is no such file or it is not what it must be, for it is
/// a cache.
pub(super) fn read(path: &Path) -> BTreeMap<String, Words> {
    let table: BTreeMap<String, Vec<u64>> = std::fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let words = |(key, words): (String, Vec<u64>)| Some((key, words.try_into().ok()?));
    table.into_iter().filter_map(words).collect()
}

/// Adds a choice to a file, unless it holds one for this key: whoever measured first is right, so
/// that two processes compute the same bits. Gives the whole table; `None` where it cannot be kept.
///
/// Written under another name and renamed, so that nobody reads half a file; under a lock, so that no process
/// loses what another adds.
pub(super) fn keep(path: &Path, key: &str, words: Words) -> Option<BTreeMap<String, Words>> {
    std::fs::create_dir_all(path.parent()?).ok()?;
    let lock = File::create(path.with_extension("lock")).ok()?;
    lock.lock().ok()?;
    let mut table = read(path);
    if !table.contains_key(key) {
        table.insert(key.to_owned(), words);
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let text = serde_json::to_vec_pretty(&table).ok()?;
        let kept = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path));
        if kept.is_err() {
            let _ = std::fs::remove_file(&beside);
            return None;
        }
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<Key> {
        let mut keys = Vec::new();
        for (input, output) in [
            (Format::Bf16, Format::Bf16),
            (Format::Bf16, Format::F32),
            (Format::F32, Format::F32),
        ] {
            for add in [Add::Nothing, Add::Other, Add::Itself] {
                for bits in 0..8 {
                    keys.push(Key {
                        input,
                        output,
                        rows: 4096,
                        cols: 151_936,
                        inner: 7,
                        a_transposed: bits & 1 != 0,
                        b_transposed: bits & 2 != 0,
                        gaps: [0, if bits & 3 == 3 { 5 } else { 0 }],
                        bias: bits & 4 != 0,
                        add,
                        aligned: [256, 2, 16, 256, 4],
                        scratch: 32 << 20,
                    });
                }
            }
        }
        keys
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let mut seen = std::collections::BTreeSet::new();
        for key in keys() {
            let text = key.to_string();
            assert_eq!(text.parse(), Ok(key), "{text}");
            assert!(seen.insert(text));
        }
        assert_eq!(
            keys()[0].to_string(),
            "bf16>bf16 4096x151936x7 nn new - 256.2.16.256.4 33554432"
        );
        for bad in [
            "",
            "bf16>bf16",
            "f16>bf16 1x1x1 nn new - 1.1.1.1.1 0",
            "bf16>bf16 1x1 nn new - 1.1.1.1.1 0",
            "bf16>bf16 1x1x1 nx new - 1.1.1.1.1 0",
            "bf16>bf16 1x1x1 nn new ? 1.1.1.1.1 0",
            "bf16>bf16 1x1x1 nn new - 1.1.1.1 0",
            "bf16>bf16 01x1x1 nn new - 1.1.1.1.1 0",
            "bf16>bf16 1x1x1 nn new - 1.1.1.1.1 0 ",
            "bf16>bf16 1x1x1 nn new - 1.1.1.1.1 0 0+0",
            "bf16>bf16 1x1x1 nn new - 1.1.1.1.1 0 1",
            "bf16>bf16 1x1x1 nn new - 1.1.1.1.1 0 1+0 0+0",
        ] {
            assert_eq!(bad.parse::<Key>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn alignments_have_few_classes() {
        // Address, stride of a row in bytes.
        assert_eq!(alignment(4096, 8192), 256);
        assert_eq!(alignment(4096, 80), 256);
        assert_eq!(alignment(4096, 8), 8);
        assert_eq!(alignment(4096, 14), 2);
        assert_eq!(alignment(4096 + 64, 8192), 16);
        assert_eq!(alignment(4096 + 4, 8192), 4);
        assert_eq!(alignment(4096 + 6, 4), 2);
    }

    #[test]
    fn choices_survive_the_disk_and_the_first_one_stays() {
        let folder = std::env::temp_dir().join(format!("lowtide-choices-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let path = file(&folder, "NVIDIA H200/x", 130_100);
        assert!(path.ends_with("products-NVIDIA-H200-x-130100.json"));
        assert!(read(&path).is_empty());

        let key = |i: usize| keys()[i].to_string();
        let one = [u64::MAX, 1, 2, 3, 4, 5, 6, 1 << 63];
        keep(&path, &key(0), one).unwrap();
        let both = keep(&path, &key(1), [7; 8]).unwrap();
        assert_eq!(both, BTreeMap::from([(key(0), one), (key(1), [7; 8])]));
        assert_eq!(keep(&path, &key(0), [9; 8]), Some(both.clone()));
        assert_eq!(read(&path), both);

        // What is no table of ours is no choice.
        std::fs::write(&path, br#"{"x": [1, 2]}"#).unwrap();
        assert!(read(&path).is_empty());
        std::fs::write(&path, b"{").unwrap();
        assert!(read(&path).is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
