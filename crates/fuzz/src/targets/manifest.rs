//! What a checkpoint says beside the state, `run.json`, and its state file held against that.

use lowtide_trainer::inside::checkpoint::{differences, look, read_run, run_path, verify};
use serde_json::{Value, json};

use super::message;
use crate::scratch;

/// The key of the checksum over all others.
const CHECKSUM: &str = "checksum";

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let dir = scratch::folder("step-00000012");
    scratch::write(&run_path(&dir), bytes);
    let as_is = read_run(&dir).map(drop).map_err(message);
    // Nearly every change is found by the checksum. So it is put right too, as a program that writes
    // nonsense would.
    let Some(sealed) = sealed(bytes) else {
        return as_is;
    };
    scratch::write(&run_path(&dir), &sealed);
    let state = read_run(&dir).map_err(message)?;
    let _ = differences(&state.numerics, &json!({"seed": 1, "train": {"seq": 64}}));
    // A state file with the arrays that it names, of no bytes each, and one that is not there.
    assert!(look(&dir).is_err_and(|e| !e.to_string().is_empty()));
    scratch::write(
        &dir.join("state.safetensors"),
        &arrays(state.checksums.keys()),
    );
    let _ = look(&dir).map_err(message);
    let _ = verify(&dir).map_err(message);
    Ok(())
}

/// The document with the right checksum, where it has one; `None` where it is no object.
fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut said: Value = serde_json::from_slice(bytes).ok()?;
    let object = said.as_object_mut()?;
    if object.shift_remove(CHECKSUM).is_some() {
        let sum = crc32c::crc32c(said.to_string().as_bytes());
        said[CHECKSUM] = sum.into();
    }
    serde_json::to_vec(&said).ok()
}

/// A state file of empty arrays.
fn arrays<'a>(names: impl Iterator<Item = &'a String>) -> Vec<u8> {
    let entry = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    let header: serde_json::Map<String, Value> =
        names.map(|n| (n.clone(), entry.clone())).collect();
    let text = Value::Object(header).to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(text.as_bytes());
    file
}
