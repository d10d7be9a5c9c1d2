//! Writes a Hugging Face directory: safetensors shards, index, configuration, tokenizer.
//!
//! Streams: a piece of a parameter is asked for, rounded and written before the next. Files get
//! their names when their bytes are on the disk, the one that makes the directory a model last.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use lowtide_workload::{Dtype, ModelShape, ParamId};
use serde_json::{Map, Value, json};

use super::BAND_BYTES;
use super::dtype::FileDtype;
use crate::ModelError;
use crate::config_json::{config_json, read_config};
use crate::params::{HfTensor, hf_tensors};

/// Elements asked for at a time.
const PIECE: u64 = 1 << 20;
/// The tensors' bytes begin at a multiple of this, so that they can be read directly from disk.
const ALIGN: u64 = 4096;
/// Beside the weights, what makes a directory usable; copied where the source has it.
const COPIED: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// What to export and how.
#[derive(Clone, Debug)]
pub struct HfWriter<'a> {
    shape: &'a ModelShape,
    dtype: FileDtype,
    source: Option<&'a Path>,
    labels: Option<Vec<String>>,
    shard_bytes: u64,
    pub(super) band_bytes: u64,
}

impl<'a> HfWriter<'a> {
    /// An export in shards of 5 GB at most, its numbers in `dtype`.
    ///
    /// `source` is the directory that the model came from: its `config.json` is kept but for the
    /// type, its tokenizer and generation settings are copied.
    #[must_use]
    pub fn new(
        shape: &'a ModelShape,
        dtype: impl Into<FileDtype>,
        source: Option<&'a Path>,
    ) -> Self {
        Self {
            shape,
            dtype: dtype.into(),
            source,
            labels: None,
            shard_bytes: 5_000_000_000,
            band_bytes: BAND_BYTES,
        }
    }

    /// The same of a model with classes of these names: `config.json` has them, and the architecture that classifies.
    #[must_use]
    pub fn labels(self, labels: Option<Vec<String>>) -> Self {
        Self { labels, ..self }
    }

    /// The same in shards of at most `bytes`, unless a single tensor takes more.
    #[must_use]
    pub fn shard_bytes(self, bytes: u64) -> Self {
        Self {
            shard_bytes: bytes,
            ..self
        }
    }

    /// Writes the model to `dir`, which is made where it does not exist.
    ///
    /// `read(param, range, out)` fills `out` with these elements of the parameter; it is
    /// called for every element once, parameters and ranges ascending, at most about 16 million
    /// elements at a time. When the call returns, everything is on the disk under its final name.
    /// After an error nothing is left under the name `model.safetensors` or the index's.
    ///
    /// # Errors
    /// [`ModelError::ExportExists`] when `dir` has weights already; [`ModelError::Beyond`] for a weight
    /// that is no number, or that the type has none for; [`ModelError::Io`]; the first error of `read`.
    pub fn write<E: From<ModelError>>(
        &self,
        dir: &Path,
        mut read: impl FnMut(ParamId, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        refuse_existing(dir)?;
        self.write_companions(dir)?;

        let tensors = hf_tensors(self.shape);
        let shards = self.cut(&tensors);
        let names: Vec<String> = match shards.len() {
            1 => vec!["model.safetensors".to_owned()],
            n => (1..=n)
                .map(|i| format!("model-{i:05}-of-{n:05}.safetensors"))
                .collect(),
        };
        let mut written = Vec::new();
        for (name, tensors) in names.iter().zip(&shards) {
            let mut pending = Pending::create(dir.join(name))?;
            self.write_shard(&pending, tensors, &mut read)?;
            // Closed: a model may have more shards than a process may have open files.
            pending.close()?;
            written.push(pending);
        }
        for pending in written {
            pending.keep()?;
        }
        if shards.len() > 1 {
            sync_dir(dir)?;
            let index = self.index(&names, &shards);
            write_file(dir.join("model.safetensors.index.json"), index.as_bytes())?;
        }
        Ok(sync_dir(dir)?)
    }

    /// Bytes of all weights' files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let tensors = hf_tensors(self.shape);
        let shards = self.cut(&tensors);
        let headers = shards.iter().map(|s| self.header(s).len() as u64);
        headers.sum::<u64>() + tensors.iter().map(|t| self.bytes(t)).sum::<u64>()
    }

    /// How many files the weights are cut into.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.cut(&hf_tensors(self.shape)).len() as u64
    }

    /// Bytes of a tensor in the file.
    fn bytes(&self, tensor: &HfTensor) -> u64 {
        let elements = tensor.elements();
        (elements.end - elements.start) * self.dtype.size()
    }

    /// Tensors in order, as many to a shard as fit.
    fn cut<'t>(&self, tensors: &'t [HfTensor]) -> Vec<&'t [HfTensor]> {
        let (mut shards, mut first, mut size) = (Vec::new(), 0, 0);
        for (i, tensor) in tensors.iter().enumerate() {
            let bytes = self.bytes(tensor);
            if i > first && size + bytes > self.shard_bytes {
                shards.push(&tensors[first..i]);
                (first, size) = (i, 0);
            }
            size += bytes;
        }
        shards.push(&tensors[first..]);
        shards
    }

    fn header(&self, tensors: &[HfTensor]) -> Vec<u8> {
        let dtype = self.dtype.safetensors();
        let mut map = Map::new();
        map.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut at = 0;
        for tensor in tensors {
            let end = at + self.bytes(tensor);
            let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end]});
            map.insert(tensor.name.clone(), entry);
            at = end;
        }
        let mut text = Value::Object(map).to_string().into_bytes();
        let padded = (8 + text.len() as u64).next_multiple_of(ALIGN) - 8;
        text.resize(padded as usize, b' ');
        let mut header = padded.to_le_bytes().to_vec();
        header.append(&mut text);
        header
    }

    fn write_shard<E: From<ModelError>>(
        &self,
        out: &Pending,
        tensors: &[HfTensor],
        read: &mut impl FnMut(ParamId, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let header = self.header(tensors);
        out.write_at(&header, 0)?;
        let mut at = header.len() as u64;
        let size = self.dtype.size();
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let (rows, cols) = (tensor.rows.end - tensor.rows.start, tensor.cols);
            let step = match (tensor.heads, tensor.transposed) {
                (Some(heads), _) => heads.head_dim * cols,
                (None, true) => (self.band_bytes / 4 / cols).clamp(1, rows) * cols,
                (None, false) => PIECE,
            };
            let own = tensor.elements();
            let mut begin = own.start;
            while begin < own.end {
                let end = (begin + step).min(own.end);
                values.clear();
                values.resize((end - begin) as usize, f32::NAN);
                read(tensor.param, begin..end, &mut values)?;
                let first = begin - own.start;
                self.expect_in_range(tensor, first, &values)?;
                if let Some(heads) = tensor.heads {
                    let at = at + heads.in_file(first / cols) / heads.head_dim * step * size;
                    self.write_head(out, at, (tensor, first), &values, &mut bytes)?;
                } else if tensor.transposed {
                    let band = first / cols..(end - own.start) / cols;
                    self.write_columns(out, at, (rows, band), &values, &mut bytes)?;
                } else {
                    bytes.clear();
                    self.narrow(values.iter().copied(), &mut bytes);
                    out.write_at(&bytes, at + first * size)?;
                }
                begin = end;
            }
            at += self.bytes(tensor);
        }
        Ok(())
    }

    /// Writes the rows of a head, from element `first` of the tensor's on, in the file's order from `at` on.
    fn write_head(
        &self,
        out: &Pending,
        at: u64,
        (tensor, first): (&HfTensor, u64),
        values: &[f32],
        bytes: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let n = values.len() as u64;
        let mut stored = vec![f32::NAN; values.len()];
        for (i, &value) in (first..).zip(values) {
            stored[(tensor.in_file(i) % n) as usize] = value;
        }
        bytes.clear();
        self.narrow(stored.into_iter(), bytes);
        out.write_at(bytes, at)
    }

    /// Writes rows `band` of a parameter of `rows` rows as columns of the file's tensor at `at`.
    fn write_columns(
        &self,
        out: &Pending,
        at: u64,
        (rows, band): (u64, Range<u64>),
        values: &[f32],
        bytes: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let n_band = (band.end - band.start) as usize;
        let cols = values.len() / n_band;
        bytes.clear();
        for col in 0..cols {
            self.narrow((0..n_band).map(|row| values[row * cols + col]), bytes);
        }
        if n_band as u64 == rows {
            return out.write_at(bytes, at);
        }
        let line = n_band * self.dtype.size() as usize;
        for (col, chunk) in bytes.chunks(line).enumerate() {
            out.write_at(
                chunk,
                at + (col as u64 * rows + band.start) * self.dtype.size(),
            )?;
        }
        Ok(())
    }

    /// Refuses what is no number in the file's type of `values`, numbers of a tensor from element `first` of the
    /// parameter's part on.
    fn expect_in_range(
        &self,
        tensor: &HfTensor,
        first: u64,
        values: &[f32],
    ) -> Result<(), ModelError> {
        let Some(bad) = self.dtype.first_beyond(values) else {
            return Ok(());
        };
        let at = tensor.in_file(first + bad as u64);
        Err(ModelError::Beyond {
            tensor: tensor.name.clone(),
            value: values[bad],
            dtype: self.dtype.safetensors(),
            place: match *tensor.shape {
                [_, width] => vec![at / width, at % width],
                _ => vec![at],
            },
        })
    }

    /// Appends numbers in the file's type, little-endian.
    fn narrow(&self, values: impl Iterator<Item = f32>, bytes: &mut Vec<u8>) {
        match self.dtype {
            FileDtype::Bf16 => {
                values.for_each(|v| bytes.extend(bf16::from_f32(v).to_bits().to_le_bytes()));
            }
            FileDtype::F16 => {
                values.for_each(|v| bytes.extend(f16::from_f32(v).to_bits().to_le_bytes()));
            }
            FileDtype::F32 => values.for_each(|v| bytes.extend(v.to_le_bytes())),
        }
    }

    fn index(&self, names: &[String], shards: &[&[HfTensor]]) -> String {
        let total: u64 = shards
            .iter()
            .flat_map(|s| s.iter())
            .map(|t| self.bytes(t))
            .sum();
        let mut map = Map::new();
        for (name, tensors) in names.iter().zip(shards) {
            for tensor in *tensors {
                map.insert(tensor.name.clone(), json!(name));
            }
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        format!("{index:#}\n")
    }

    /// `config.json` and the source's tokenizer.
    fn write_companions(&self, dir: &Path) -> Result<(), ModelError> {
        let mut config = config_json(self.shape, Dtype::F32);
        if let Some(source) = self.source {
            let path = source.join("config.json");
            if path.exists() {
                config = read_config(&path)?;
            }
            for name in COPIED {
                let from = source.join(name);
                if from.is_file() {
                    copy_file(&from, dir.join(name))?;
                }
            }
        }
        if let (Some(labels), Some(map)) = (&self.labels, config.as_object_mut()) {
            let own = config_json(self.shape, Dtype::F32);
            for key in ["architectures", "problem_type"] {
                map.insert(key.to_owned(), own[key].clone());
            }
            map.remove("num_labels");
            let numbered = || labels.iter().enumerate();
            let names: Map<String, Value> = numbered()
                .map(|(i, name)| (i.to_string(), json!(name)))
                .collect();
            let numbers: Map<String, Value> = numbered()
                .map(|(i, name)| (name.clone(), json!(i)))
                .collect();
            map.insert("id2label".to_owned(), names.into());
            map.insert("label2id".to_owned(), numbers.into());
        }
        if let Some(map) = config.as_object_mut() {
            say_dtype(map, self.dtype.torch());
        }
        write_file(dir.join("config.json"), format!("{config:#}\n").as_bytes())
    }
}

/// Says the numbers' type under every name that a configuration has for it. Newer versions of
/// transformers write `dtype`, older ones read `torch_dtype`; a stale one would load the model as
/// another type than it has.
fn say_dtype(config: &mut Map<String, Value>, dtype: &str) {
    let names = ["dtype", "torch_dtype"];
    let there: Vec<&str> = names
        .into_iter()
        .filter(|name| config.contains_key(*name))
        .collect();
    let there = if there.is_empty() {
        &names[1..]
    } else {
        &there
    };
    for name in there {
        config.insert((*name).to_owned(), json!(dtype));
    }
}

/// Weights of another export would be mixed up with the new ones.
fn refuse_existing(dir: &Path) -> Result<(), ModelError> {
    for entry in fs::read_dir(dir).map_err(ModelError::io(dir))? {
        let name = entry.map_err(ModelError::io(dir))?.file_name();
        let text = name.to_string_lossy();
        let weights = text.ends_with(".safetensors") || text.ends_with(".safetensors.index.json");
        if weights && text.starts_with("model") {
            return Err(ModelError::ExportExists {
                path: dir.join(name),
            });
        }
    }
    Ok(())
}

fn write_file(path: PathBuf, bytes: &[u8]) -> Result<(), ModelError> {
    let mut pending = Pending::create(path)?;
    pending.write_at(bytes, 0)?;
    pending.close()?;
    pending.keep()
}

/// Copies a file as it is. Who reads it has looked at it before; a model that is trained is not lost over
/// one that nobody reads, be it empty or a pointer of Git LFS.
fn copy_file(from: &Path, to: PathBuf) -> Result<(), ModelError> {
    let mut file = lowtide_files::open_any(from)?.file;
    let mut pending = Pending::create(to)?;
    io::copy(&mut file, &mut pending.file()).map_err(ModelError::io(&pending.temporary))?;
    pending.close()?;
    pending.keep()
}

/// Makes renames in `dir` last.
fn sync_dir(dir: &Path) -> Result<(), ModelError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(ModelError::io(dir))
}

/// A file under a temporary name, removed unless kept.
struct Pending {
    path: PathBuf,
    temporary: PathBuf,
    /// None once it is closed: a drop then leaves the name alone.
    file: Option<File>,
    kept: bool,
}

impl Pending {
    fn create(path: PathBuf) -> Result<Self, ModelError> {
        let mut name = path
            .file_name()
            .expect("a file's path has a name")
            .to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        // A file of a write that was cut off; of a link, the link itself.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(ModelError::io(&temporary)(e));
            }
            _ => {}
        }
        let file = File::create_new(&temporary).map_err(ModelError::io(&temporary))?;
        Ok(Self {
            path,
            temporary,
            file: Some(file),
            kept: false,
        })
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("written before it is closed")
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), ModelError> {
        self.file()
            .write_all_at(bytes, at)
            .map_err(ModelError::io(&self.temporary))
    }

    /// Has everything on the disk, and closes the file.
    fn close(&mut self) -> Result<(), ModelError> {
        let synced = self.file().sync_all();
        self.file = None;
        synced.map_err(ModelError::io(&self.temporary))
    }

    fn keep(mut self) -> Result<(), ModelError> {
        fs::rename(&self.temporary, &self.path).map_err(ModelError::io(&self.path))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: the error that led here is already on its way.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
