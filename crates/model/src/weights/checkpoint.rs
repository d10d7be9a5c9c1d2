//! Reads a Hugging Face directory, any range of any parameter at a time.
//!
//! One file because how a tensor is found in the files and how it is read go by the same description of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use lowtide_files::Regular;
use lowtide_units::{Id, List};
use lowtide_workload::{ModelShape, ParamId};
use serde::Deserialize;

use super::BAND_BYTES;
use super::header::{SafetensorsHeader, StoredDtype, StoredTensor};
use crate::ModelError;
use crate::families;
use crate::params::{HeadRows, HfTensor, hf_tensors, specs};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// Files of weights that have been found to fit a shape.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, File)>,
    /// For each parameter the tensors that fill it, in row order.
    params: List<ParamId, Vec<Source>>,
    /// Part of the transposed tensor that was read last.
    band: Mutex<Option<Band>>,
    /// Where the files of a tied model hold a head too.
    head: Option<Source>,
    /// Parameters of the head that the files have not, and their names there.
    new: Vec<(ParamId, String)>,
    pub(super) band_bytes: u64,
}

/// A file's tensor and its place in a parameter.
#[derive(Clone, Debug)]
struct Source {
    /// Its name in the file.
    name: String,
    file: usize,
    /// First byte in the file.
    at: u64,
    dtype: StoredDtype,
    /// Rows of the parameter that the tensor fills.
    rows: Range<u64>,
    cols: u64,
    transposed: bool,
    heads: Option<HeadRows>,
}

/// Rows `rows` of a transposed tensor, as they lie in the file: (cols, rows).
#[derive(Debug)]
struct Band {
    file: usize,
    at: u64,
    rows: Range<u64>,
    bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors` or the shards of `model.safetensors.index.json` in `dir` and
    /// checks every header against `shape`. No tensor is read.
    ///
    /// Names may lack their leading `model.`, `transformer.` or `gpt_neox.`; masks and rotary tables are ignored,
    /// and of a tied head [`check_tied_head`](Self::check_tied_head) says whether it is the embedding.
    ///
    /// # Errors
    /// Files that cannot be read or are damaged, tensors that are missing, unknown, stored twice,
    /// of another shape, or of a type other than bf16, f16 and f32.
    pub fn open(dir: &Path, shape: &ModelShape) -> Result<Self, ModelError> {
        let mut files = Vec::new();
        let mut found: HashMap<String, (usize, StoredTensor)> = HashMap::new();
        let (paths, index) = shards(dir)?;
        for path in paths {
            let Regular { mut file, len } = lowtide_files::open(&path)?;
            let header = SafetensorsHeader::read(&path, &mut file, len)?;
            for tensor in header.tensors {
                let name = tensor.name.clone();
                if found
                    .insert(canonical(&name), (files.len(), tensor))
                    .is_some()
                {
                    return Err(ModelError::DuplicateTensor {
                        file: path,
                        tensor: name,
                    });
                }
            }
            files.push((path, file));
        }
        check_index(dir, index, &found, &files)?;

        let wanted = hf_tensors(shape);
        let n_params = wanted.last().map_or(0, |t| t.param.idx() + 1);
        let mut params = List::from(vec![Vec::new(); n_params]);
        let mut missing = Vec::new();
        for want in &wanted {
            match found.remove(&canonical(&want.name)) {
                Some((file, tensor)) => {
                    let source = source(&files[file].0, file, tensor, want)?;
                    params[want.param].push(source);
                }
                None => missing.push(want.name.clone()),
            }
        }
        let new = fresh(shape, &wanted, &missing);
        missing.retain(|name| !new.iter().any(|(_, new)| new == name));
        if !missing.is_empty() {
            return Err(ModelError::MissingTensors {
                dir: dir.to_owned(),
                tensors: missing,
            });
        }
        let head_name = families::of(shape.family).lm_head();
        let head = match found.remove(head_name) {
            Some((file, tensor)) if shape.tied => {
                let want = HfTensor {
                    name: tensor.name.clone(),
                    ..wanted[0].clone()
                };
                Some(source(&files[file].0, file, tensor, &want)?)
            }
            Some(other) => {
                found.insert(head_name.to_owned(), other);
                None
            }
            None => None,
        };
        let mut unexpected: Vec<String> = found
            .into_values()
            .map(|(_, tensor)| tensor.name)
            .filter(|name| !ignored(name) && !families::of(shape.family).ignores(name))
            .collect();
        if !unexpected.is_empty() {
            unexpected.sort();
            return Err(ModelError::UnexpectedTensors {
                dir: dir.to_owned(),
                tensors: unexpected,
            });
        }
        Ok(Self {
            files,
            params,
            head,
            new,
            band: Mutex::new(None),
            band_bytes: BAND_BYTES,
        })
    }

    /// Names of the head's tensors that the files have not, of a model that classifies: whoever reads gives them their
    /// first values.
    pub fn new_tensors(&self) -> impl Iterator<Item = &str> {
        self.new.iter().map(|(_, name)| name.as_str())
    }

    /// Whether the files have not this parameter, so that [`Self::read`] cannot be asked for it.
    #[must_use]
    pub fn is_new(&self, param: ParamId) -> bool {
        self.new.iter().any(|(new, _)| *new == param)
    }

    /// Bytes of all weights in the files, for showing progress.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.params
            .iter()
            .flatten()
            .map(|s| (s.rows.end - s.rows.start) * s.cols * s.size())
            .sum()
    }

    /// Fills `out` with the elements `range` of a parameter, row-major, widened to f32.
    ///
    /// Any number of threads may read at once. Ranges in ascending order are fastest where the
    /// file holds the transpose: about 64 MiB of such a tensor are kept for the next call.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the file cannot be read or has become shorter;
    /// [`ModelError::NonFinite`] for a weight that is no number: what is trained from it is lost.
    ///
    /// # Panics
    /// When the model has no such parameter or element, or `out` is not as long as `range`.
    pub fn read(
        &self,
        param: ParamId,
        range: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let sources = &self.params[param];
        let elements = sources.last().map_or(0, |s| s.rows.end * s.cols);
        assert!(
            range.start <= range.end && range.end <= elements,
            "elements {range:?} of {elements} of parameter {param}"
        );
        assert_eq!(
            range.end - range.start,
            out.len() as u64,
            "length of the output"
        );
        let mut rest = out;
        for source in sources {
            let own = source.rows.start * source.cols..source.rows.end * source.cols;
            let (begin, end) = (range.start.max(own.start), range.end.min(own.end));
            if begin >= end {
                continue;
            }
            let (part, after) = rest.split_at_mut((end - begin) as usize);
            rest = after;
            let inside = begin - own.start..end - own.start;
            match (source.heads, source.transposed) {
                (Some(heads), _) => self.read_heads(source, heads, inside.clone(), part)?,
                (None, true) => self.read_transposed(source, inside.clone(), part)?,
                (None, false) => self.read_plain(source, inside.clone(), part)?,
            }
            self.finite(source, inside.start, part)?;
        }
        Ok(())
    }

    /// Every number of a source's part from element `first` is finite.
    fn finite(&self, source: &Source, first: u64, part: &[f32]) -> Result<(), ModelError> {
        let Some(bad) = part.iter().position(|x| !x.is_finite()) else {
            return Ok(());
        };
        let at = first + bad as u64;
        let (row, col) = (at / source.cols, at % source.cols);
        let row = source.heads.map_or(row, |heads| heads.in_file(row));
        Err(ModelError::NonFinite {
            file: self.files[source.file].0.clone(),
            tensor: source.name.clone(),
            value: part[bad],
            place: match (source.cols, source.transposed) {
                (1, _) => vec![row],
                (_, false) => vec![row, col],
                (_, true) => vec![col, row],
            },
        })
    }

    /// A tied model's files may hold its head as a copy of the embedding. transformers takes one
    /// that differs as a head of its own, whatever the configuration says; so it is refused here.
    ///
    /// # Errors
    /// [`ModelError::TiedHead`]; as [`Self::read`].
    pub fn check_tied_head(&self) -> Result<(), ModelError> {
        let Some(head) = &self.head else {
            return Ok(());
        };
        let elements = (head.rows.end - head.rows.start) * head.cols;
        let (mut ours, mut theirs) = (vec![0.0; READ_BYTES], vec![0.0; READ_BYTES]);
        for from in (0..elements).step_by(READ_BYTES) {
            let n = (elements - from).min(READ_BYTES as u64) as usize;
            let (ours, theirs) = (&mut ours[..n], &mut theirs[..n]);
            self.read(ParamId(0), from..from + n as u64, ours)?;
            self.read_plain(head, from..from + n as u64, theirs)?;
            if ours != theirs {
                return Err(ModelError::TiedHead {
                    file: self.files[head.file].0.clone(),
                    tensor: head.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn read_plain(
        &self,
        source: &Source,
        range: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let (path, file) = &self.files[source.file];
        let size = source.size() as usize;
        let mut buffer = vec![0; READ_BYTES.min(out.len() * size)];
        let mut at = source.at + range.start * size as u64;
        for chunk in out.chunks_mut(READ_BYTES / size) {
            let bytes = &mut buffer[..chunk.len() * size];
            file.read_exact_at(bytes, at)
                .map_err(ModelError::io(path))?;
            widen(&source.dtype, bytes, chunk);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// The file holds rows in another order, but those of a head together.
    fn read_heads(
        &self,
        source: &Source,
        heads: HeadRows,
        range: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let (d, cols) = (heads.head_dim, source.cols);
        let each = d * cols;
        let mut stored = vec![0.0; each as usize];
        let mut rest = out;
        let mut at = range.start;
        while at < range.end {
            let (head, end) = (at / each, range.end.min((at / each + 1) * each));
            // The head's rows, wherever each of them is, lie behind one another from the first one's head on.
            let first = heads.in_file(head * d) / d * each;
            self.read_plain(source, first..first + each, &mut stored)?;
            let (part, after) = rest.split_at_mut((end - at) as usize);
            for (element, value) in (at..end).zip(part) {
                let from = heads.in_file(element / cols) * cols + element % cols - first;
                *value = stored[from as usize];
            }
            (at, rest) = (end, after);
        }
        Ok(())
    }

    /// The file holds (cols, rows): a row of the parameter is a column there.
    fn read_transposed(
        &self,
        source: &Source,
        range: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        // A panic elsewhere cannot have left half a band: it is replaced as a whole.
        let mut held = self.band.lock().unwrap_or_else(PoisonError::into_inner);
        let size = source.size() as usize;
        let mut done = 0;
        while done < out.len() {
            let pos = range.start + done as u64;
            let (row, col) = (pos / source.cols, pos % source.cols);
            let fits =
                |b: &Band| (b.file, b.at) == (source.file, source.at) && b.rows.contains(&row);
            let band = match held.take() {
                Some(band) if fits(&band) => held.insert(band),
                _ => held.insert(self.load_band(source, row)?),
            };
            let width = (band.rows.end - band.rows.start) as usize;
            let column = (row - band.rows.start) as usize;
            let count = ((source.cols - col) as usize).min(out.len() - done);
            for (i, value) in out[done..done + count].iter_mut().enumerate() {
                let from = ((col as usize + i) * width + column) * size;
                let value = std::slice::from_mut(value);
                widen(&source.dtype, &band.bytes[from..from + size], value);
            }
            done += count;
        }
        Ok(())
    }

    fn load_band(&self, source: &Source, first: u64) -> Result<Band, ModelError> {
        let (path, file) = &self.files[source.file];
        let size = source.size();
        let all = source.rows.end - source.rows.start;
        let width = (self.band_bytes / (source.cols * size)).clamp(1, all);
        // A tensor that fits is read whole, wherever the first request lies.
        let begin = if width == all { 0 } else { first };
        let rows = begin..(begin + width).min(all);
        let line = ((rows.end - rows.start) * size) as usize;
        let mut bytes = vec![0; line * source.cols as usize];
        let lines = if width == all { bytes.len() } else { line };
        for (col, chunk) in bytes.chunks_mut(lines.max(1)).enumerate() {
            let at = source.at + (col as u64 * all + rows.start) * size;
            file.read_exact_at(chunk, at)
                .map_err(ModelError::io(path))?;
        }
        Ok(Band {
            file: source.file,
            at: source.at,
            rows,
            bytes,
        })
    }
}

impl Source {
    fn size(&self) -> u64 {
        self.dtype.size()
    }
}

/// The files that hold the weights of the model in `dir`: `model.safetensors`, or those that its index names, whether
/// they are there or not.
///
/// # Errors
/// [`ModelError::NoWeights`], or an index that cannot be used.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    Ok(shards(dir)?.0)
}

/// The files of a directory, and its index where it has one.
fn shards(dir: &Path) -> Result<(Vec<PathBuf>, Option<Index>), ModelError> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok((vec![single], None));
    }
    let path = index_path(dir);
    if !path.exists() {
        // A link to nothing is named, not overlooked.
        for path in [&single, &path] {
            if path.is_symlink() {
                lowtide_files::open(path)?;
            }
        }
        return Err(ModelError::NoWeights {
            found: lowtide_files::find(dir, &[".bin", ".pt", ".pth", ".gguf", ".safetensors"]),
            dir: dir.to_owned(),
        });
    }
    let index: Index = lowtide_files::read_json(&path, lowtide_files::LIST)?;
    for (tensor, shard) in &index.weight_map {
        // A plain file name: no way out of the directory.
        if Path::new(shard)
            .file_name()
            .is_none_or(|name| name != shard.as_str())
        {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(ModelError::Index {
                file: path,
                tensor,
                shard,
            });
        }
    }
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let paths = names.into_iter().map(|name| dir.join(name)).collect();
    Ok((paths, Some(index)))
}

fn index_path(dir: &Path) -> PathBuf {
    dir.join("model.safetensors.index.json")
}

/// Every tensor of the index is in the file that the index names.
fn check_index(
    dir: &Path,
    index: Option<Index>,
    found: &HashMap<String, (usize, StoredTensor)>,
    files: &[(PathBuf, File)],
) -> Result<(), ModelError> {
    for (tensor, shard) in index.into_iter().flat_map(|i| i.weight_map) {
        let there = found
            .get(&canonical(&tensor))
            .is_some_and(|(file, t)| t.name == tensor && files[*file].0.ends_with(&shard));
        if !there {
            return Err(ModelError::Index {
                file: index_path(dir),
                tensor,
                shard,
            });
        }
    }
    Ok(())
}

/// A name without the prefix that some files leave out, and with a norm's parameters as they are called today.
fn canonical(name: &str) -> String {
    let prefixes = ["model.", "transformer.", "gpt_neox.", "bert.", "roberta."];
    let short = prefixes.iter().find_map(|p| name.strip_prefix(p));
    let short = short.unwrap_or(name);
    let old = [
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
    ];
    let renamed = old
        .iter()
        .find_map(|(old, new)| Some(format!("{}{new}", short.strip_suffix(old)?)));
    renamed.unwrap_or_else(|| short.to_owned())
}

/// Of the tensors that files have not those of a head that classifies, as far as files can be without it: a layer of
/// it is there or is not.
fn fresh(shape: &ModelShape, wanted: &[HfTensor], missing: &[String]) -> Vec<(ParamId, String)> {
    if shape.objective.is_next_token() {
        return Vec::new();
    }
    let specs = specs(shape);
    let is_missing = |t: &HfTensor| missing.contains(&t.name);
    let whole = |t: &&HfTensor| {
        let part = (specs[t.param].unit, specs[t.param].part);
        let layer = wanted
            .iter()
            .filter(|o| (specs[o.param].unit, specs[o.param].part) == part);
        part.0 == shape.layers + 1 && layer.clone().all(is_missing)
    };
    let new = wanted.iter().filter(whole);
    new.map(|t| (t.param, t.name.clone())).collect()
}

/// Tensors that some checkpoints carry and no decoder here needs.
fn ignored(name: &str) -> bool {
    name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
        || name.ends_with(".attention.bias")
        || name.ends_with(".attention.masked_bias")
        || name.ends_with("rotary_emb.inv_freq")
}

fn source(
    path: &Path,
    file: usize,
    tensor: StoredTensor,
    want: &HfTensor,
) -> Result<Source, ModelError> {
    if tensor.shape != want.shape {
        return Err(ModelError::TensorShape {
            file: path.to_owned(),
            tensor: tensor.name,
            need: want.shape.clone(),
            have: tensor.shape,
        });
    }
    if let StoredDtype::Other(dtype, _) = tensor.dtype {
        let (file, tensor) = (path.to_owned(), tensor.name);
        return Err(ModelError::TensorDtype {
            file,
            tensor,
            dtype,
        });
    }
    Ok(Source {
        name: tensor.name,
        file,
        at: tensor.begin,
        dtype: tensor.dtype,
        rows: want.rows.clone(),
        cols: want.cols,
        transposed: want.transposed,
        heads: want.heads,
    })
}

/// Little-endian numbers of a file to f32, all exactly.
fn widen(dtype: &StoredDtype, bytes: &[u8], out: &mut [f32]) {
    let pairs = bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        StoredDtype::Bf16 => {
            out.iter_mut()
                .zip(pairs)
                .for_each(|(o, b)| *o = bf16::from_bits(b).to_f32());
        }
        StoredDtype::F16 => {
            out.iter_mut()
                .zip(pairs)
                .for_each(|(o, b)| *o = f16::from_bits(b).to_f32());
        }
        StoredDtype::F32 => {
            let quads = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            out.iter_mut()
                .zip(quads)
                .for_each(|(o, b)| *o = f32::from_le_bytes(b));
        }
        StoredDtype::Other(name, _) => unreachable!("{name} was refused when opened"),
    }
}
