//! Checkpoints: everything that a run needs to go on bit for bit, whatever the placement.
//!
//! A checkpoint is a directory `step-00000120` with `state.safetensors` (weight, remainder and
//! moments of every parameter, under names like `blocks.0.qkv.first_moment`) and `run.json` (step,
//! place in the data, last norm, numerics key, checksums). It is written under another name, synced
//! and renamed, so one that has its name is whole. Writing and reading go through a few MiB of
//! staging: neither holds a copy of the state.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lowtide_workload::{Dtype, Moments, Workload};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::State;
use crate::error::TrainError;
use crate::step::{Homes, Role};

/// Numbers moved at a time.
const CHUNK: u64 = 1 << 20;
const STATE: &str = "state.safetensors";
const RUN: &str = "run.json";
const FORMAT: u32 = 1;

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
            products: BTreeMap::new(),
            now_unix_s: 0,
            tokens: 0,
            loss_first: None,
            exact_match_before: None,
            checksums: BTreeMap::new(),
        }
    }
}

/// Where each array lies in the state file.
struct Layout {
    header: Vec<u8>,
    /// First byte of each role of each parameter.
    at: BTreeMap<(u32, &'static str), u64>,
}

fn array_name(w: &Workload, param: u32, role: Role) -> String {
    format!("{}.{}", w.params[param as usize].name, role.name())
}

fn layout(w: &Workload) -> Layout {
    let mut entries = serde_json::Map::new();
    let mut at = BTreeMap::new();
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
            at.insert((p as u32, role.name()), offset);
            offset += bytes;
        }
    }
    let mut json = serde_json::to_vec(&Value::Object(entries)).expect("a map of plain values");
    // Data starts on a page.
    let padded = (json.len() + 8).next_multiple_of(4096) - 8;
    json.resize(padded, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    for start in at.values_mut() {
        *start += header.len() as u64;
    }
    Layout { header, at }
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
    let file = File::create(&path).map_err(TrainError::io(&path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&layout(w).header)
        .map_err(TrainError::io(&path))?;
    let mut checksums = BTreeMap::new();
    let mut bytes = Vec::new();
    for (p, param) in w.params.iter().enumerate() {
        for &role in Role::all(w.precision, w.moments) {
            let mut crc = 0;
            let entries = role.entries(param.elements);
            for from in (0..entries).step_by(CHUNK as usize) {
                let to = (from + CHUNK).min(entries);
                let size = role.size(w.precision, w.moments);
                bytes.resize(((to - from) * size) as usize, 0);
                homes.read(p as u32, role, from..to, &mut bytes)?;
                crc = crc32c::crc32c_append(crc, &bytes);
                out.write_all(&bytes).map_err(TrainError::io(&path))?;
            }
            checksums.insert(array_name(w, p as u32, role), crc);
        }
    }
    let file = out
        .into_inner()
        .map_err(|e| TrainError::io(&path)(e.into_error()))?;
    file.sync_all().map_err(TrainError::io(&path))?;
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

/// Reads what a checkpoint says beside the state.
///
/// # Errors
/// When it is missing or does not say what it must.
pub fn read_run(dir: &Path) -> Result<RunState, TrainError> {
    let path = dir.join(RUN);
    let bytes = fs::read(&path).map_err(TrainError::io(&path))?;
    let state: RunState = serde_json::from_slice(&bytes).map_err(|e| TrainError::File {
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
    let file = File::open(&path).map_err(TrainError::io(&path))?;
    let layout = layout(w);
    let mut header = vec![0u8; layout.header.len()];
    file.read_exact_at(&mut header, 0)
        .map_err(TrainError::io(&path))?;
    if header != layout.header {
        return Err(damaged(
            "holds the state of another model, precision or kind of moments".to_owned(),
        ));
    }
    let mut sums: BTreeMap<(u32, &'static str), u32> = BTreeMap::new();
    homes.write_all(|param, range, role, bytes| -> Result<(), TrainError> {
        let at = layout.at[&(param, role.name())] + range.start * role.size(w.precision, w.moments);
        file.read_exact_at(bytes, at)
            .map_err(TrainError::io(&path))?;
        let sum = sums.entry((param, role.name())).or_insert(0);
        *sum = crc32c::crc32c_append(*sum, bytes);
        Ok(())
    })?;
    for (p, _) in w.params.iter().enumerate() {
        for &role in Role::all(w.precision, w.moments) {
            let name = array_name(w, p as u32, role);
            let found = sums.get(&(p as u32, role.name())).copied().unwrap_or(0);
            if state.checksums.get(&name) != Some(&found) {
                return Err(damaged(format!("{name} is damaged: its checksum differs")));
            }
        }
    }
    Ok(())
}

/// Refuses a checkpoint whose numerics differ from this run's.
///
/// # Errors
/// [`TrainError::OtherRun`] with the first key that differs.
pub fn same_numerics(dir: &Path, theirs: &Value, ours: &Value) -> Result<(), TrainError> {
    match difference("", theirs, ours) {
        None => Ok(()),
        Some((key, theirs, ours)) => Err(TrainError::OtherRun {
            path: dir.to_owned(),
            key,
            theirs,
            ours,
        }),
    }
}

fn difference(at: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(x), Value::Object(y)) = (a, b) {
        let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
        return keys.into_iter().find_map(|k| {
            let at = if at.is_empty() {
                k.clone()
            } else {
                format!("{at}.{k}")
            };
            let null = Value::Null;
            difference(&at, x.get(k).unwrap_or(&null), y.get(k).unwrap_or(&null))
        });
    }
    (a != b).then(|| (at.to_owned(), a.to_string(), b.to_string()))
}
