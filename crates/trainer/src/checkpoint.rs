//! Checkpoints: everything that a run needs to go on bit for bit, whatever the placement.
//!
//! A checkpoint is a directory `step-00000120` with `state.safetensors` (weight, remainder and
//! moments of every parameter, under names like `blocks.0.qkv.first_moment`) and `run.json` (step,
//! place in the data, last norm, numerics key, checksums). It is written under another name, synced
//! and renamed, so one that has its name is whole. Writing and reading go in chunks, on all cores,
//! through a few MiB of staging each: neither holds a copy of the state.
//!
//! Bound: the state's bytes (12 a parameter) over what a drive writes, and over what it reads where
//! the state lives on one too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lowtide_tiers::{DirectFile, Window};
use lowtide_workload::{Dtype, Moments, Workload};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::State;
use crate::error::TrainError;
use crate::step::{Homes, Role};
use crate::tally::Totals;

/// Bytes of the state file written at a time.
const WINDOW: u64 = 4 << 20;
const STATE: &str = "state.safetensors";
const RUN: &str = "run.json";
const FORMAT: u32 = 1;

/// A setting that a run went on with instead of its checkpoint's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The last step with the setting of before.
    pub after_step: u64,
    /// The key that named it (`checkpoint.change`).
    pub key: String,
    /// The part of the numerics key.
    pub part: String,
    /// As it was; null: not there.
    pub from: Value,
    /// As it is now.
    pub to: Value,
}

impl Change {
    /// For people: the key, with the part where it has several.
    #[must_use]
    pub fn name(&self) -> String {
        if self.part == self.key || self.part.starts_with("train.schedule.length") {
            self.key.clone()
        } else {
            format!("{} ({})", self.key, self.part)
        }
    }
}

/// What a checkpoint says beside the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of this format.
    pub format: u32,
    /// Updates that were made.
    pub step: u64,
    /// Place in the data.
    pub data: State,
    /// Hash of the data as packed.
    pub data_fingerprint: u64,
    /// Factor, norm and go-ahead of the last step, as the bits of three f64.
    pub clip: [u64; 3],
    /// All that decides the numbers.
    pub numerics: Value,
    /// What was changed of that on the way, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Which algorithm computed which matrix product on a GPU: a run goes on with the same ones.
    #[serde(default)]
    pub products: BTreeMap<String, Vec<u64>>,
    /// Time that chat templates are shown, seconds since 1970.
    pub now_unix_s: i64,
    /// Real tokens trained on so far.
    pub tokens: u64,
    /// Loss of the run's first step.
    pub loss_first: Option<f64>,
    /// Exact match before training, if it was measured.
    pub exact_match_before: Option<f64>,
    /// Times and losses of the whole run so far, for its summary.
    #[serde(default)]
    pub totals: Totals,
    /// CRC-32C of each array.
    pub checksums: BTreeMap<String, u32>,
}

impl RunState {
    /// Of a run that has done nothing.
    pub(crate) fn new() -> Self {
        Self {
            format: FORMAT,
            step: 0,
            data: State::default(),
            data_fingerprint: 0,
            clip: [0; 3],
            numerics: Value::Null,
            changes: Vec::new(),
            products: BTreeMap::new(),
            now_unix_s: 0,
            tokens: 0,
            loss_first: None,
            exact_match_before: None,
            totals: Totals::default(),
            checksums: BTreeMap::new(),
        }
    }
}

/// Where each array lies in the state file.
struct Layout {
    header: Vec<u8>,
    /// Arrays in the file's order, by parameter: parameter, role, its bytes in the file.
    arrays: Vec<(u32, Role, Range<u64>)>,
}

impl Layout {
    /// Bytes of the file.
    fn bytes(&self) -> u64 {
        let end = self.arrays.last().map(|array| array.2.end);
        end.unwrap_or(self.header.len() as u64)
    }

    /// First byte of a parameter's role in the file.
    fn start(&self, param: u32, role: Role) -> u64 {
        let first = self.arrays.partition_point(|a| a.0 < param);
        let array = self.arrays[first..].iter().find(|a| a.1 == role);
        array.expect("every parameter has every role").2.start
    }

    /// The parts of arrays that lie in these bytes of the file: parameter, role, bytes of the array.
    fn parts(&self, bytes: &Range<u64>) -> impl Iterator<Item = (u32, Role, Range<u64>)> {
        let first = self.arrays.partition_point(|a| a.2.end <= bytes.start);
        let bytes = bytes.clone();
        self.arrays[first..]
            .iter()
            .take_while(move |a| a.2.start < bytes.end)
            .map(move |(p, role, at)| {
                let (from, to) = (bytes.start.max(at.start), bytes.end.min(at.end));
                (*p, *role, from - at.start..to - at.start)
            })
    }
}

fn array_name(w: &Workload, param: u32, role: Role) -> String {
    format!("{}.{}", w.params[param as usize].name, role.name())
}

fn layout(w: &Workload) -> Layout {
    let mut entries = serde_json::Map::new();
    let mut arrays = Vec::new();
    let mut offset = 0u64;
    for (p, param) in w.params.iter().enumerate() {
        for &role in Role::all(w.precision, w.moments) {
            let length = role.entries(param.elements);
            let bytes = length * role.size(w.precision, w.moments);
            let dtype = match (role, w.precision, w.moments) {
                (Role::Weight, Dtype::Bf16, _)
                | (Role::FirstMoment | Role::SecondMoment, _, Moments::Bf16) => "BF16",
                (Role::FirstMoment | Role::SecondMoment, _, Moments::Int8) => "U8",
                (Role::Remainder, ..) => "I16",
                _ => "F32",
            };
            entries.insert(
                array_name(w, p as u32, role),
                serde_json::json!({
                    "dtype": dtype,
                    "shape": [length],
                    "data_offsets": [offset, offset + bytes],
                }),
            );
            arrays.push((p as u32, role, offset..offset + bytes));
            offset += bytes;
        }
    }
    let mut json = serde_json::to_vec(&Value::Object(entries)).expect("a map of plain values");
    // Data starts on a page.
    let padded = (json.len() + 8).next_multiple_of(4096) - 8;
    json.resize(padded, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    for (_, _, bytes) in &mut arrays {
        *bytes = bytes.start + header.len() as u64..bytes.end + header.len() as u64;
    }
    Layout { header, arrays }
}

/// The directory that checkpoints of an output directory are in.
#[must_use]
pub fn directory(output: &Path) -> PathBuf {
    output.join("checkpoints")
}

/// Saves a checkpoint and removes the oldest beyond `keep`. When it returns, the checkpoint is on
/// the disk under its name; when it fails, nothing has that name and older ones are untouched.
///
/// # Errors
/// Files, or the disk that state is read from.
pub fn save(
    output: &Path,
    w: &Workload,
    homes: &Homes<'_>,
    state: &RunState,
    keep: usize,
) -> Result<PathBuf, TrainError> {
    let parent = directory(output);
    fs::create_dir_all(&parent).map_err(TrainError::io(&parent))?;
    let name = format!("step-{:08}", state.step);
    let pending = parent.join(format!(".{name}.pending"));
    let _ = fs::remove_dir_all(&pending);
    fs::create_dir(&pending).map_err(TrainError::io(&pending))?;
    let written = write(&pending, w, homes, state);
    if let Err(error) = written {
        let _ = fs::remove_dir_all(&pending);
        return Err(error);
    }
    let target = parent.join(&name);
    if target.exists() {
        fs::remove_dir_all(&target).map_err(TrainError::io(&target))?;
    }
    fs::rename(&pending, &target).map_err(TrainError::io(&target))?;
    sync_dir(&parent)?;
    let mut all = list(output);
    while all.len() > keep.max(1) {
        let (_, oldest) = all.remove(0);
        fs::remove_dir_all(&oldest).map_err(TrainError::io(&oldest))?;
    }
    Ok(target)
}

fn write(dir: &Path, w: &Workload, homes: &Homes<'_>, state: &RunState) -> Result<(), TrainError> {
    let path = dir.join(STATE);
    let layout = layout(w);
    let data = layout.header.len() as u64..layout.bytes();
    let file = DirectFile::create(&path, data.end).map_err(TrainError::io(&path))?;
    file.write(&layout.header, 0)
        .map_err(TrainError::io(&path))?;
    let starts: Vec<u64> = data.clone().step_by(WINDOW as usize).collect();
    let make = || (Window::new(WINDOW as usize), Vec::new());
    let sums: Vec<Sums> = starts
        .into_par_iter()
        .map_init(make, |(window, entries), at| {
            let range = at..(at + WINDOW).min(data.end);
            let out = &mut window.bytes()[..(range.end - at) as usize];
            let mut sums = Sums::new();
            let mut done = 0;
            for (p, role, part) in layout.parts(&range) {
                let to = &mut out[done..][..(part.end - part.start) as usize];
                done += to.len();
                // Whole entries around the part: a window's end may cut one.
                let size = role.size(w.precision, w.moments);
                let whole = part.start / size..part.end.div_ceil(size);
                entries.resize(((whole.end - whole.start) * size) as usize, 0);
                homes.read(p, role, whole.clone(), entries)?;
                let skip = (part.start - whole.start * size) as usize;
                to.copy_from_slice(&entries[skip..][..to.len()]);
                sums.push((p, role, part.start, crc32c::crc32c(to), to.len()));
            }
            file.write(out, at).map_err(TrainError::io(&path))?;
            Ok(sums)
        })
        .collect::<Result<_, TrainError>>()?;
    let checksums = joined(w, sums.into_iter().flatten().collect());
    file.sync().map_err(TrainError::io(&path))?;
    let path = dir.join(RUN);
    let json = serde_json::to_vec_pretty(&RunState {
        checksums,
        format: FORMAT,
        ..state.clone()
    })
    .expect("plain values");
    let mut file = File::create(&path).map_err(TrainError::io(&path))?;
    file.write_all(&json).map_err(TrainError::io(&path))?;
    file.sync_all().map_err(TrainError::io(&path))?;
    sync_dir(dir)
}

/// Checksum of each part of an array: parameter, role, where it begins, CRC-32C, bytes.
type Sums = Vec<(u32, Role, u64, u32, usize)>;

/// Checksums of whole arrays by name, from those of their parts in any order.
fn joined(w: &Workload, mut parts: Sums) -> BTreeMap<String, u32> {
    parts.sort_by_key(|&(p, role, first, ..)| (p, role.name(), first));
    let mut all = BTreeMap::new();
    for (p, role, _, crc, bytes) in parts {
        let sum = all.entry(array_name(w, p, role)).or_insert(0);
        *sum = crc32c::crc32c_combine(*sum, crc, bytes);
    }
    all
}

fn sync_dir(dir: &Path) -> Result<(), TrainError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(TrainError::io(dir))
}

/// The checkpoints of an output directory by step, oldest first.
#[must_use]
pub fn list(output: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(directory(output)) else {
        return Vec::new();
    };
    let mut all: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            Some((name.strip_prefix("step-")?.parse().ok()?, e.path()))
        })
        .collect();
    all.sort();
    all
}

/// The file in which a checkpoint says what it says beside the state.
#[must_use]
pub fn run_path(dir: &Path) -> PathBuf {
    dir.join(RUN)
}

/// Reads what a checkpoint says beside the state.
///
/// # Errors
/// When it is missing or does not say what it must.
pub fn read_run(dir: &Path) -> Result<RunState, TrainError> {
    let path = dir.join(RUN);
    let bytes = lowtide_files::read(&path, lowtide_files::LIST)?;
    let state: RunState = lowtide_files::json_from_slice(&bytes).map_err(|e| TrainError::File {
        path: path.clone(),
        what: format!("not a run state: {e}"),
    })?;
    if state.format != FORMAT {
        let what = format!(
            "format {}, this program reads format {FORMAT}",
            state.format
        );
        return Err(TrainError::File { path, what });
    }
    Ok(state)
}

/// Loads a checkpoint's state into its homes and checks every array's checksum.
///
/// # Errors
/// A state file that is damaged, or of another model, precision or kind of moments.
pub fn load(
    dir: &Path,
    w: &Workload,
    homes: &Homes<'_>,
    state: &RunState,
) -> Result<(), TrainError> {
    let path = dir.join(STATE);
    let damaged = |what: String| TrainError::File {
        path: path.clone(),
        what,
    };
    let file = lowtide_files::open(&path)?.file;
    let layout = layout(w);
    let mut header = vec![0u8; layout.header.len()];
    file.read_exact_at(&mut header, 0)
        .map_err(TrainError::io(&path))?;
    if header != layout.header {
        return Err(damaged(
            "holds the state of another model, precision or kind of moments".to_owned(),
        ));
    }
    let sums = Mutex::new(Sums::new());
    homes.write_all(|param, range, role, bytes| -> Result<(), TrainError> {
        let at = layout.start(param, role) + range.start * role.size(w.precision, w.moments);
        file.read_exact_at(bytes, at)
            .map_err(TrainError::io(&path))?;
        let sum = (param, role, range.start, crc32c::crc32c(bytes), bytes.len());
        sums.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sum);
        Ok(())
    })?;
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    let found = joined(w, sums);
    for (p, _) in w.params.iter().enumerate() {
        for &role in Role::all(w.precision, w.moments) {
            let name = array_name(w, p as u32, role);
            let found = found.get(&name).copied().unwrap_or(0);
            if state.checksums.get(&name) != Some(&found) {
                return Err(damaged(format!("{name} is damaged: its checksum differs")));
            }
        }
    }
    Ok(())
}

/// Where two numerics keys differ: the part's name, theirs and ours (null: it is not there). What other
/// parts decide too comes last: the hash of the packed data, the default of the logits' chunk.
#[must_use]
pub fn differences(theirs: &Value, ours: &Value) -> Vec<(String, Value, Value)> {
    let mut all = Vec::new();
    differ("", theirs, ours, &mut all);
    let follows = ["data.fingerprint", "train.logits_chunk"];
    all.sort_by_key(|(part, ..)| follows.contains(&part.as_str()));
    all
}

fn differ(at: &str, a: &Value, b: &Value, all: &mut Vec<(String, Value, Value)>) {
    let (Value::Object(x), Value::Object(y)) = (a, b) else {
        if a != b {
            all.push((at.to_owned(), a.clone(), b.clone()));
        }
        return;
    };
    let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
    for key in keys {
        let at = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        let null = Value::Null;
        let of = |map: &serde_json::Map<_, Value>| map.get(key).unwrap_or(&null).clone();
        differ(&at, &of(x), &of(y), all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_any_size_cover_every_byte_of_every_array_once() {
        // Odd lengths, an empty array, and one that ends with a window.
        let mut arrays = Vec::new();
        let mut start = 16;
        for (p, length) in [5u64, 0, 14, 1, 40, 2].into_iter().enumerate() {
            arrays.push((p as u32, Role::Weight, start..start + length));
            start += length;
        }
        let layout = Layout {
            header: vec![0; 16],
            arrays: arrays.clone(),
        };
        assert_eq!(layout.bytes(), 78);
        assert_eq!(layout.start(2, Role::Weight), 21);
        for size in [1, 7, 19, 100] {
            let mut found: Vec<(u32, u64)> = Vec::new();
            for at in (16..78).step_by(size) {
                let window = at..(at + size as u64).min(78);
                let parts: Vec<_> = layout.parts(&window).collect();
                let bytes: u64 = parts.iter().map(|p| p.2.end - p.2.start).sum();
                assert_eq!(bytes, window.end - window.start);
                found.extend(
                    parts
                        .into_iter()
                        .flat_map(|(p, _, b)| b.map(move |i| (p, i))),
                );
            }
            let all = arrays.iter();
            let want = all.flat_map(|(p, _, b)| (0..b.end - b.start).map(|i| (*p, i)));
            assert!(found.into_iter().eq(want), "windows of {size} bytes");
        }
    }
}
