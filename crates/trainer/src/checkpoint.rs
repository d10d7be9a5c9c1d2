//! Checkpoints: everything that a run needs to go on bit for bit, whatever the placement.
//!
//! A checkpoint is a directory `step-00000120` with `state.safetensors` (weight, remainder and
//! optimizer state of every parameter, under names like `blocks.0.qkv.first_moment`) and `run.json` (step,
//! place in the data, last norm, numerics key, checksums). It is written under another name, synced
//! and renamed, so one that has its name is whole; `whole.rs` says of one that a stranger or a drive
//! broke what is wrong with it. Writing and reading go in chunks, on all cores, through a few MiB of
//! staging each: neither holds a copy of the state.
//!
//! Bound: the state's bytes (12 a parameter) over what a drive writes, and over what it reads where
//! the state lives on one too.
//!
//! One file because what is written and what is read are each other's inverse, byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lowtide_tiers::{DirectFile, Window};
use lowtide_workload::{ParamId, Role, StateSpec, Workload};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TrainError;
use crate::fit::Best;
use crate::output::folder::Folder;
use crate::output::mark::Holds;
use crate::output::replace::Shelf;
use crate::output::{CHECKPOINTS, Output};
pub use left::{count, list_of, newest_of, prune, set_aside_in, shared};
use lowtide_data::State;
use lowtide_session::Homes;
use lowtide_session::Totals;
pub(crate) use weights::Weights;
use whole::broken;
#[cfg(test)]
pub(crate) use whole::encode;
pub(crate) use whole::with_whole_one;
pub use whole::{look, read_run, verify};

pub mod background;
pub(crate) mod finite;
mod left;
mod weights;
mod whole;

/// Bytes of the state file written at a time.
const WINDOW: u64 = 4 << 20;
pub(crate) const STATE: &str = "state.safetensors";
pub(crate) const RUN: &str = "run.json";
const FORMAT: u32 = 2;

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
    /// The branch of its output that it is of; 0: the first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub branch: u64,
    /// Place in the data.
    pub data: State,
    /// Hash of the data as packed.
    pub data_fingerprint: u64,
    /// Factor, norm and go-ahead of the last step, as the bits of three f64.
    pub clip: [u64; 3],
    /// Norms of the last steps, as bits, the newest last, where the run looks for spikes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub norms: Vec<u64>,
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
    /// The best evaluation so far.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub best: Best,
    /// CRC-32C of each array.
    pub checksums: BTreeMap<String, u32>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_none_yet(best: &Best) -> bool {
    *best == Best::default()
}

impl RunState {
    /// Of a run that has done nothing.
    pub(crate) fn new() -> Self {
        Self {
            format: FORMAT,
            step: 0,
            branch: 0,
            data: State::default(),
            data_fingerprint: 0,
            clip: [0; 3],
            norms: Vec::new(),
            numerics: Value::Null,
            changes: Vec::new(),
            products: BTreeMap::new(),
            now_unix_s: 0,
            tokens: 0,
            loss_first: None,
            exact_match_before: None,
            totals: Totals::default(),
            best: Best::default(),
            checksums: BTreeMap::new(),
        }
    }
}

/// Where each array lies in the state file.
struct Layout {
    header: Vec<u8>,
    /// Arrays in the file's order, by parameter: parameter, which array of its table, its bytes in the file.
    arrays: Vec<(ParamId, StateSpec, Range<u64>)>,
}

impl Layout {
    /// Bytes of the file.
    fn bytes(&self) -> u64 {
        let end = self.arrays.last().map(|array| array.2.end);
        end.unwrap_or(self.header.len() as u64)
    }

    /// First byte of a parameter's role in the file.
    fn start(&self, param: ParamId, role: Role) -> u64 {
        let first = self.arrays.partition_point(|a| a.0 < param);
        let array = self.arrays[first..].iter().find(|a| a.1.role == role);
        array.expect("every parameter has every role").2.start
    }

    /// The bytes of the file in which the arrays of a run of parameters lie.
    fn range(&self, params: &Range<ParamId>) -> Range<u64> {
        let first = self.arrays.partition_point(|a| a.0 < params.start);
        let behind = self.arrays.partition_point(|a| a.0 < params.end);
        let arrays = &self.arrays[first..behind];
        match (arrays.first(), arrays.last()) {
            (Some(first), Some(last)) => first.2.start..last.2.end,
            _ => 0..0,
        }
    }

    /// The parts of arrays that lie in these bytes of the file: parameter, which array, its bytes.
    fn parts(&self, bytes: &Range<u64>) -> impl Iterator<Item = (ParamId, StateSpec, Range<u64>)> {
        let first = self.arrays.partition_point(|a| a.2.end <= bytes.start);
        let bytes = bytes.clone();
        self.arrays[first..]
            .iter()
            .take_while(move |a| a.2.start < bytes.end)
            .map(move |(p, spec, at)| {
                let (from, to) = (bytes.start.max(at.start), bytes.end.min(at.end));
                (*p, *spec, from - at.start..to - at.start)
            })
    }
}

fn array_name(w: &Workload, param: ParamId, role: Role) -> String {
    format!("{}.{}", w.params[param].name, role.name())
}

fn layout(w: &Workload) -> Layout {
    let mut entries = serde_json::Map::new();
    let mut arrays = Vec::new();
    let mut offset = 0u64;
    for (p, param) in w.params.pairs() {
        for &spec in w.arrays(param) {
            let length = spec.entries(param);
            let bytes = length * spec.size();
            entries.insert(
                array_name(w, p, spec.role),
                serde_json::json!({
                    "dtype": spec.encoding.safetensors(),
                    "shape": [length],
                    "data_offsets": [offset, offset + bytes],
                }),
            );
            arrays.push((p, spec, offset..offset + bytes));
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
    output.join(CHECKPOINTS)
}

/// What a checkpoint is called.
fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// Where the checkpoint of a step is in an output directory.
#[must_use]
pub fn path_of(output: &Path, step: u64) -> PathBuf {
    directory(output).join(name_of(step))
}

/// The step that a checkpoint's name says; `None` of other names.
#[must_use]
pub fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name_of(step) == name).then_some(step)
}

/// The checkpoints in their directory.
pub(crate) fn shelf(checkpoints: &Folder) -> Shelf<'_> {
    Shelf {
        folder: checkpoints,
        holds: Holds::Checkpoint,
        always: &[STATE, RUN],
        earlier: is_earlier,
    }
}

/// Puts in order what a killed run left among the checkpoints of an output, which is locked. Says what was found and kept.
///
/// # Errors
/// Files.
pub fn recover(output: &Output) -> Result<Vec<String>, TrainError> {
    match output.folder().sub(CHECKPOINTS)? {
        Some(checkpoints) => shelf(&checkpoints).recover(left::is_name),
        None => Ok(Vec::new()),
    }
}

/// Whether a directory without a mark is a checkpoint of an earlier version, or what a killed save of one
/// left: it wrote the state first.
fn is_earlier(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().as_encoded_bytes();
    read_run(dir).is_ok() || name.ends_with(b".pending") && !dir.join(RUN).exists()
}

/// Bytes of a checkpoint, but for a few KiB beside the state.
#[must_use]
pub fn bytes(w: &Workload) -> u64 {
    layout(w).bytes()
}

/// Saves a checkpoint. When it returns, the checkpoint is on the disk under its name; when it fails,
/// nothing has that name that had not before, and older ones are untouched. The first of a branch has
/// those of the branch that was left set aside, when it is written and before it has its name. Says what
/// was a stranger's in one of that step that it replaced, and what was set aside.
///
/// # Errors
/// Files, or the disk that state is read from.
pub fn save(
    output: &Output,
    w: &Workload,
    homes: &Homes<'_>,
    state: &RunState,
) -> Result<(PathBuf, Vec<String>), TrainError> {
    put(output, state.step, |folder| write(folder, w, homes, state))
}

/// The same with files that `write` writes.
pub(crate) fn put(
    output: &Output,
    step: u64,
    write: impl FnOnce(&Folder) -> Result<(), TrainError>,
) -> Result<(PathBuf, Vec<String>), TrainError> {
    let (begun, folder) = Begun::begin(output, step)?;
    match write(&folder) {
        Ok(()) => begun.finish(output, &folder),
        Err(e) => {
            begun.abandon();
            Err(e)
        }
    }
}

/// Finds out before the first step whether the directory of an output's checkpoints, if it is there, takes one: makes
/// the folder for one, and removes it.
///
/// # Errors
/// Files.
pub(crate) fn try_folder(output: &Output) -> Result<(), TrainError> {
    if let Some(checkpoints) = output.folder().sub(CHECKPOINTS)? {
        let name = name_of(0);
        shelf(&checkpoints).begin(&name)?;
        shelf(&checkpoints).abandon(&name);
    }
    Ok(())
}

/// A checkpoint that has not its name yet.
#[derive(Debug)]
pub(crate) struct Begun {
    checkpoints: Folder,
    name: String,
    notes: Vec<String>,
}

impl Begun {
    /// The checkpoint of a step, and the folder for its files.
    ///
    /// # Errors
    /// Files.
    pub fn begin(output: &Output, step: u64) -> Result<(Self, Folder), TrainError> {
        let checkpoints = output.folder().make(CHECKPOINTS)?;
        let name = name_of(step);
        let (folder, notes) = shelf(&checkpoints).begin(&name)?;
        let begun = Self {
            checkpoints,
            name,
            notes,
        };
        Ok((begun, folder))
    }

    /// Gives it its name, when all of its files are on the disk; otherwise as [`save`].
    ///
    /// # Errors
    /// As [`save`].
    pub fn finish(
        self,
        output: &Output,
        folder: &Folder,
    ) -> Result<(PathBuf, Vec<String>), TrainError> {
        let ready = self.still_there(output).and_then(|checkpoints| {
            let aside = left::set_aside(output, &checkpoints)?;
            Ok((checkpoints, aside))
        });
        let (checkpoints, aside) = match ready {
            Ok(ready) => ready,
            Err(e) => {
                self.abandon();
                return Err(e);
            }
        };
        let mut notes = shelf(&checkpoints).finish(&self.name, folder, self.notes)?;
        notes.extend(aside);
        Ok((checkpoints.at(&self.name), notes))
    }

    /// The directory of the output's checkpoints, which is the one that it was begun in.
    fn still_there(&self, output: &Output) -> Result<Folder, TrainError> {
        let now = output.folder().make(CHECKPOINTS)?;
        let same = |folder: &Folder| {
            let meta = fs::metadata(folder.reach());
            meta.map(|m| (m.dev(), m.ino()))
                .map_err(TrainError::io(folder.path()))
        };
        match same(&now)? == same(&self.checkpoints)? {
            true => Ok(now),
            false => Err(TrainError::File {
                path: now.path().to_owned(),
                what: "was moved or replaced while a checkpoint was written into it".to_owned(),
            }),
        }
    }

    /// Removes what there is of it.
    pub fn abandon(self) {
        shelf(&self.checkpoints).abandon(&self.name);
    }
}

/// Writes what a checkpoint says beside the state, whose arrays have these checksums.
pub(crate) fn write_run(
    folder: &Folder,
    state: &RunState,
    checksums: BTreeMap<String, u32>,
) -> Result<(), TrainError> {
    let said = whole::encode(&RunState {
        checksums,
        ..state.clone()
    });
    folder.write(RUN, |out| out.write_all(&said))
}

fn write(
    folder: &Folder,
    w: &Workload,
    homes: &Homes<'_>,
    state: &RunState,
) -> Result<(), TrainError> {
    // By the descriptor: the output directory may have been renamed since.
    let file = folder.reach().join(STATE);
    let checksums = write_state(&file, &folder.at(STATE), w, homes)?;
    write_run(folder, state, checksums)
}

/// Writes the state file, which is called `path`, to `file`; checksums of its arrays.
///
/// # Errors
/// The file's, or those of the disk that state is read from.
pub fn write_state(
    file: &Path,
    path: &Path,
    w: &Workload,
    homes: &Homes<'_>,
) -> Result<BTreeMap<String, u32>, TrainError> {
    let layout = layout(w);
    let data = layout.header.len() as u64..layout.bytes();
    let file = DirectFile::create(file, data.end);
    let file = file.map_err(TrainError::io(path))?;
    file.write(&layout.header, 0)
        .map_err(TrainError::io(path))?;
    let starts: Vec<u64> = data.clone().step_by(WINDOW as usize).collect();
    let make = || Window::new(WINDOW as usize);
    let sums: Vec<Sums> = starts
        .into_par_iter()
        .map_init(make, |window, at| {
            let range = at..(at + WINDOW).min(data.end);
            let out = &mut window.bytes()[..(range.end - at) as usize];
            let mut sums = Sums::new();
            let mut done = 0;
            for (p, spec, part) in layout.parts(&range) {
                let to = &mut out[done..][..(part.end - part.start) as usize];
                done += to.len();
                read_part((homes, w), p, &spec, part.clone(), to)?;
                sums.push((p, spec.role, part.start, crc32c::crc32c(to), to.len()));
            }
            file.write(out, at).map_err(TrainError::io(path))?;
            Ok(sums)
        })
        .collect::<Result<_, TrainError>>()?;
    let checksums = joined(w, sums.into_iter().flatten().collect());
    file.sync().map_err(TrainError::io(path))?;
    Ok(checksums)
}

/// Reads bytes of an array, and refuses numbers that are none. A window's end may cut an entry: then all of that is
/// read.
fn read_part(
    (homes, w): (&Homes<'_>, &Workload),
    param: ParamId,
    spec: &StateSpec,
    part: Range<u64>,
    out: &mut [u8],
) -> Result<(), TrainError> {
    let size = spec.size();
    let look = |first: u64, bytes: &[u8]| match finite::first_bad(bytes, spec.encoding) {
        None => Ok(()),
        Some(i) => Err(TrainError::NonFinite {
            step: 0,
            what: finite::bad_number(&array_name(w, param, spec.role), first + i),
            checkpoint: None,
        }),
    };
    // The whole entries, and one before and behind of which a part is wanted.
    let first = part.start.next_multiple_of(size).min(part.end);
    let last = (part.end / size * size).max(first);
    let mut entry = vec![0u8; size as usize];
    for cut in [part.start..first, last..part.end] {
        if !cut.is_empty() {
            let nth = cut.start / size;
            homes.read(param, spec.role, nth..nth + 1, &mut entry)?;
            look(nth, &entry)?;
            let of = (cut.start - nth * size) as usize..(cut.end - nth * size) as usize;
            let to = (cut.start - part.start) as usize;
            out[to..][..of.len()].copy_from_slice(&entry[of]);
        }
    }
    let out = &mut out[(first - part.start) as usize..(last - part.start) as usize];
    if out.is_empty() {
        return Ok(());
    }
    homes.read(param, spec.role, first / size..last / size, out)?;
    look(first / size, out)
}

/// Checksum of each part of an array: parameter, role, where it begins, CRC-32C, bytes.
type Sums = Vec<(ParamId, Role, u64, u32, usize)>;

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

/// The newest checkpoint in a directory that is none itself: an output, or the directory of its checkpoints.
#[must_use]
pub fn newest_in(dir: &Path) -> Option<PathBuf> {
    if run_path(dir).exists() && dir.join(STATE).exists() {
        return None;
    }
    let mut all = list_in(dir);
    all.append(&mut list(dir));
    all.pop().map(|(_, dir)| dir)
}

/// The checkpoints of an output directory by step, oldest first.
#[must_use]
pub fn list(output: &Path) -> Vec<(u64, PathBuf)> {
    list_in(&directory(output))
}

fn list_in(dir: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut all: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|e| Some((step_of(e.file_name().to_str()?)?, e.path())))
        .filter(|(_, path)| path.is_dir())
        .collect();
    all.sort();
    all
}

/// What has the name of a checkpoint in an output directory and is no directory.
pub(crate) fn strange_in(output: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory(output)).into_iter().flatten();
    let named = entries.flatten().filter(|e| {
        let name = e.file_name();
        name.to_str().is_some_and(|name| step_of(name).is_some())
    });
    let mut all: Vec<PathBuf> = named.map(|e| e.path()).filter(|p| !p.is_dir()).collect();
    all.sort();
    all
}

/// The file in which a checkpoint says what it says beside the state.
#[must_use]
pub fn run_path(dir: &Path) -> PathBuf {
    dir.join(RUN)
}

/// Whether a state file, whole as it is, has the arrays of a run's parameters and optimizer.
fn expect_header(file: &fs::File, path: &Path, layout: &Layout) -> Result<(), TrainError> {
    let mut header = vec![0u8; layout.header.len()];
    let dir = path.parent().unwrap_or(path);
    file.read_exact_at(&mut header, 0)
        .map_err(|e| broken(dir, format!("{STATE} cannot be read: {e}")))?;
    if header != layout.header {
        let what =
            "holds the state of another model, precision, optimizer or kind of moments".to_owned();
        let path = path.to_owned();
        return Err(TrainError::File { path, what });
    }
    Ok(())
}

/// Loads a checkpoint's state into its homes and checks every array's checksum.
///
/// # Errors
/// [`TrainError::Broken`] for one that is damaged; one of another model, precision, optimizer or kind of moments.
pub fn load(
    dir: &Path,
    w: &Workload,
    homes: &Homes<'_>,
    state: &RunState,
) -> Result<(), TrainError> {
    let path = dir.join(STATE);
    let unread = |e: std::io::Error| broken(dir, format!("{STATE} cannot be read: {e}"));
    let file = lowtide_files::open(&path)
        .map_err(|e| broken(dir, e.to_string()))?
        .file;
    let layout = layout(w);
    expect_header(&file, &path, &layout)?;
    let sums = Mutex::new(Sums::new());
    homes.write_all(|param, range, spec, bytes| -> Result<(), TrainError> {
        let at = layout.start(param, spec.role) + range.start * spec.size();
        file.read_exact_at(bytes, at).map_err(unread)?;
        if let Some(i) = finite::first_bad(bytes, spec.encoding) {
            let array = array_name(w, param, spec.role);
            let what = finite::bad_number(&array, range.start + i);
            return Err(broken(dir, format!("{STATE}: {what}")));
        }
        let sum = (
            param,
            spec.role,
            range.start,
            crc32c::crc32c(bytes),
            bytes.len(),
        );
        sums.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sum);
        Ok(())
    })?;
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    let found = joined(w, sums);
    for (p, param) in w.params.pairs() {
        for spec in w.arrays(param) {
            let name = array_name(w, p, spec.role);
            let found = found.get(&name).copied().unwrap_or(0);
            if state.checksums.get(&name) != Some(&found) {
                return Err(broken(dir, whole::damaged(&name)));
            }
        }
    }
    Ok(())
}

/// Where two numerics keys differ: the part's name, theirs and ours (null: it is not there). What other
/// parts decide too comes last: the hash of the packed data, the default of the logits' chunk, settings of
/// another optimizer. The name of a model's shape is that of the directory it was read from, and no part of it.
#[must_use]
pub fn differences(theirs: &Value, ours: &Value) -> Vec<(String, Value, Value)> {
    let mut all = Vec::new();
    differ("", theirs, ours, &mut all);
    all.retain(|(part, ..)| part != "shape.name");
    let follows = ["data.fingerprint", "train.logits_chunk"];
    // Another optimizer has other settings.
    let named = all.iter().any(|(part, ..)| part == "optimizer.name");
    all.sort_by_key(|(part, ..)| {
        let setting = part.starts_with("optimizer.") && part != "optimizer.name";
        follows.contains(&part.as_str()) || named && setting
    });
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
    use lowtide_workload::{Dtype, Optimizer};

    use lowtide_units::Id;

    use super::*;

    #[test]
    fn only_names_that_are_written_are_checkpoints() {
        assert_eq!(step_of("step-00000120"), Some(120));
        assert_eq!(step_of("step-123456789"), Some(123_456_789));
        for other in [
            "step-120",
            "step-+0000120",
            "step-00000120.kept",
            ".step-00000120.pending",
        ] {
            assert_eq!(step_of(other), None, "{other}");
        }
    }

    #[test]
    fn windows_of_any_size_cover_every_byte_of_every_array_once() {
        // Odd lengths, an empty array, and one that ends with a window.
        let mut arrays = Vec::new();
        let mut start = 16;
        for (p, length) in [5u64, 0, 14, 1, 40, 2].into_iter().enumerate() {
            let spec = *Optimizer::default().roles(Dtype::F32).next().unwrap();
            arrays.push((ParamId::new(p), spec, start..start + length));
            start += length;
        }
        let layout = Layout {
            header: vec![0; 16],
            arrays: arrays.clone(),
        };
        assert_eq!(layout.bytes(), 78);
        assert_eq!(layout.start(ParamId(2), Role::WEIGHT), 21);
        for size in [1, 7, 19, 100] {
            let mut found: Vec<(ParamId, u64)> = Vec::new();
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
