//! Which checkpoint is whole: what it says of itself, held against its name and its bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lowtide_workload::Encoding;
use rayon::prelude::*;
use serde_json::Value;

use super::{FORMAT, RUN, RunState, STATE, WINDOW, finite, list, step_of};
use crate::error::TrainError;

/// The format that had no checksum over what it says.
const UNCHECKED: u32 = 1;
/// Where the file keeps its own checksum.
const CHECKSUM: &str = "checksum";
/// Longest header that is read: it names each array.
const LONGEST: u64 = lowtide_files::LIST;

/// What a checkpoint says beside the state, as the bytes of its file: with a checksum over all of it.
pub(crate) fn encode(state: &RunState) -> Vec<u8> {
    let text = serde_json::to_string(&RunState {
        format: FORMAT,
        ..state.clone()
    })
    .expect("plain values");
    // Of the text as it is read: what a number's text becomes then is what the checksum is of.
    let mut said: Value = serde_json::from_str(&text).expect("written above");
    let sum = checksum(&said);
    said[CHECKSUM] = sum.into();
    let mut bytes = serde_json::to_vec_pretty(&said).expect("plain values");
    bytes.push(b'\n');
    bytes
}

/// CRC-32C of the values in the file's order, whatever the space between them.
fn checksum(said: &Value) -> u32 {
    crc32c::crc32c(said.to_string().as_bytes())
}

/// Reads what a checkpoint says besides the state, and compares it with its checksum and the directory's name.
///
/// # Errors
/// [`TrainError::Broken`] when it is missing or does not say what it must.
pub fn read_run(dir: &Path) -> Result<RunState, TrainError> {
    let path = dir.join(RUN);
    let broken = |what: String| broken(dir, what);
    let bytes =
        lowtide_files::read(&path, lowtide_files::LIST).map_err(|e| broken(e.to_string()))?;
    let mut said: Value = lowtide_files::json_from_slice(&bytes)
        .map_err(|e| broken(format!("{RUN} is damaged: {e}")))?;
    let sum = said.as_object_mut().and_then(|o| o.shift_remove(CHECKSUM));
    let format = said["format"].as_u64();
    match sum {
        Some(sum) if sum.as_u64() == Some(checksum(&said).into()) => {}
        Some(_) => return Err(broken(format!("{RUN} is damaged: its checksum differs"))),
        None if format == Some(UNCHECKED.into()) => {}
        None => return Err(broken(format!("{RUN} is damaged: it has no checksum"))),
    }
    if format.is_some_and(|f| f > FORMAT.into()) {
        let format = format.unwrap_or_default();
        return Err(broken(format!(
            "{RUN} has format {format}, this program reads formats up to {FORMAT}"
        )));
    }
    let state: RunState = serde_json::from_value(said)
        .map_err(|e| broken(format!("{RUN} is not a run's state: {e}")))?;
    let named = dir.file_name().and_then(|n| step_of(n.to_str()?));
    if let Some(named) = named
        && named != state.step
    {
        return Err(broken(format!(
            "{RUN} is of step {}, and the directory's name says {named}",
            state.step
        )));
    }
    Ok(state)
}

pub(super) fn broken(dir: &Path, what: String) -> TrainError {
    TrainError::Broken {
        path: dir.to_owned(),
        what,
        whole: None,
    }
}

/// Arrays of a state file with where they lie in it, and how their entries are stored.
type Arrays = Vec<(String, Range<u64>, Encoding)>;

/// How entries of a type of safetensors are stored; those of a type without floats as codes.
fn encoding_of(entry: &Value) -> Encoding {
    let all = [Encoding::F32, Encoding::Bf16];
    let named = all.into_iter().find(|e| entry["dtype"] == e.safetensors());
    named.unwrap_or(Encoding::Code)
}

/// Reads the header of a state file and holds it against the file's length.
fn arrays(file: &File) -> Result<Arrays, String> {
    let have = file.metadata().map_err(|e| e.to_string())?.len();
    let cut = || format!("is cut: {have} bytes");
    let mut length = [0; 8];
    if have < 8 {
        return Err(cut());
    }
    file.read_exact_at(&mut length, 0)
        .map_err(|e| e.to_string())?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST {
        return Err("is damaged: its header says no sensible length".to_owned());
    }
    let data = 8 + length;
    if have < data {
        return Err(cut());
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, 8)
        .map_err(|e| e.to_string())?;
    let damaged = |e: &dyn std::fmt::Display| format!("is damaged: its header: {e}");
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|e| damaged(&e))?;
    let mut all = Vec::new();
    for (name, entry) in header {
        let offset = |i: usize| entry["data_offsets"][i].as_u64();
        match (offset(0), offset(1)) {
            (Some(from), Some(to)) if from <= to && to <= u64::MAX - data => {
                all.push((name, data + from..data + to, encoding_of(&entry)));
            }
            _ => return Err(damaged(&format!("{name} has no place"))),
        }
    }
    let end = all.iter().map(|a| a.1.end).max().unwrap_or(data);
    if have != end {
        return Err(format!("is cut: {have} bytes, its header says {end}"));
    }
    Ok(all)
}

/// Checks a checkpoint without reading its state: what it says, and that the state file has the right length and
/// arrays.
///
/// # Errors
/// [`TrainError::Broken`].
pub fn look(dir: &Path) -> Result<RunState, TrainError> {
    let state = read_run(dir)?;
    opened(dir, &state)?;
    Ok(state)
}

fn opened(dir: &Path, state: &RunState) -> Result<(File, Arrays), TrainError> {
    let broken = |what: String| broken(dir, format!("{STATE} {what}"));
    let file = lowtide_files::open(&dir.join(STATE))
        .map_err(|e| self::broken(dir, e.to_string()))?
        .file;
    let arrays = arrays(&file).map_err(&broken)?;
    let told: Vec<&String> = state.checksums.keys().collect();
    let found: Vec<&String> = arrays.iter().map(|a| &a.0).collect();
    if told != found {
        return Err(broken(format!("has not the arrays that {RUN} names")));
    }
    Ok((file, arrays))
}

/// Reads all of a checkpoint, holds every array against its checksum and looks for numbers that are none.
///
/// # Errors
/// [`TrainError::Broken`] with the first array that differs or has such a number.
pub fn verify(dir: &Path) -> Result<RunState, TrainError> {
    let state = read_run(dir)?;
    verify_arrays(dir, &state, |_| true)?;
    Ok(state)
}

/// Reads the arrays of a checkpoint that are `wanted` by name and holds them against their checksums.
///
/// # Errors
/// As [`verify`].
pub(super) fn verify_arrays(
    dir: &Path,
    state: &RunState,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), TrainError> {
    let (file, mut arrays) = opened(dir, state)?;
    arrays.retain(|(name, ..)| wanted(name));
    let found: Vec<(String, u32, Option<u64>)> = arrays
        .into_par_iter()
        .map_init(Vec::new, |buffer, (name, range, encoding)| {
            let (mut sum, mut bad) = (0, None);
            let mut at = range.start;
            while at < range.end {
                buffer.resize(WINDOW.min(range.end - at) as usize, 0u8);
                file.read_exact_at(buffer, at)
                    .map_err(|e| broken(dir, format!("{STATE} cannot be read: {e}")))?;
                sum = crc32c::crc32c_append(sum, buffer);
                if bad.is_none() {
                    let before = (at - range.start) / encoding.size();
                    bad = finite::first_bad(buffer, encoding).map(|i| before + i);
                }
                at += buffer.len() as u64;
            }
            Ok((name, sum, bad))
        })
        .collect::<Result<_, TrainError>>()?;
    if let Some((name, ..)) = found.iter().find(|(n, sum, _)| state.checksums[n] != *sum) {
        return Err(broken(dir, damaged(name)));
    }
    // Of a version that did not look before it wrote.
    let bad = found
        .iter()
        .find_map(|(name, _, bad)| Some((name, (*bad)?)));
    match bad {
        None => Ok(()),
        Some((name, entry)) => {
            let what = finite::bad_number(name, entry);
            Err(broken(dir, format!("{STATE}: {what}")))
        }
    }
}

/// What is said of an array whose checksum differs.
pub(super) fn damaged(name: &str) -> String {
    format!("{STATE} is damaged: the checksum of {name} differs")
}

/// Adds to a broken checkpoint which other one of its run is whole: the newest whose every byte is.
/// Other errors pass.
pub(crate) fn with_whole_one(output: &Path, error: TrainError) -> TrainError {
    let TrainError::Broken { path, what, .. } = error else {
        return error;
    };
    let others = list(output).into_iter().rev().map(|(_, other)| other);
    let whole: Option<PathBuf> = others
        .filter(|other| *other != path)
        .find(|other| verify(other).is_ok());
    TrainError::Broken { path, what, whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that rounds twice reads these as other numbers: then the checksum or the settings of a whole
    /// checkpoint would differ, and no start would resume from it.
    #[test]
    fn what_is_said_is_read_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        for x in [
            0.000_410_047_047_661_976_93,
            2.370_114_329_080_853_2e-7,
            1e-30,
        ] {
            let state = RunState {
                numerics: serde_json::json!({ "learning_rate": x }),
                loss_first: Some(x),
                ..RunState::new()
            };
            std::fs::write(dir.path().join(RUN), encode(&state)).unwrap();
            assert_eq!(read_run(dir.path()).unwrap(), state, "{x}");
        }
    }

    /// As an earlier version wrote it, which did not look.
    #[test]
    fn a_checkpoint_with_a_number_that_is_none_is_no_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let put = |numbers: &[f32]| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            let header = serde_json::json!({"w.weight": {"dtype": "F32", "shape": [numbers.len()],
                "data_offsets": [0, bytes.len()]}});
            let header = header.to_string().into_bytes();
            let state = RunState {
                checksums: [("w.weight".to_owned(), crc32c::crc32c(&bytes))].into(),
                ..RunState::new()
            };
            let all = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes].concat();
            std::fs::write(dir.path().join(STATE), all).unwrap();
            std::fs::write(dir.path().join(RUN), encode(&state)).unwrap();
        };
        put(&[1.0, 2.0, 3.0]);
        verify(dir.path()).unwrap();
        put(&[1.0, 2.0, f32::NAN]);
        let error = verify(dir.path()).unwrap_err().to_string();
        let words = "w.weight is infinite or no number at entry 2";
        assert!(error.contains(words), "{error}");
    }
}
