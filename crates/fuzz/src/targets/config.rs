//! `config.json`: to a shape, its tensors, its workload and a plan.

use lowtide_config::Run;
use lowtide_model::{Decoder, Options, config_json, describe, hf_tensors, parse_config_for};
use lowtide_planner::{Budgets, Clip, Machine, Pins, Request};
use lowtide_trainer::inside::{shape_of, stops_of};
use lowtide_workload::{Batch, Dtype, Lsp, Projector};
use std::sync::OnceLock;

use super::{BATCH, chat_tokenizer, message, options};
use crate::scratch;

/// A batch as large as one may be.
const LARGE: Batch = Batch {
    target: 0,
    micro_batch: 4096,
    seq: 1 << 18,
    accumulate: 1 << 16,
};

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let dir = scratch::folder("model");
    let path = dir.join("config.json");
    scratch::write(&path, bytes);
    let text = format!("model: {{path: {}}}\ntrain: {{seq: 64}}", dir.display());
    let run = Run::parse(&text, "fuzz.yaml", &dir, &[]).expect("a run of a model");
    let stops = stops_of(&run, chat_tokenizer());
    let shape = shape_of(&run).map_err(message)?;
    // What is exported must say the same.
    let again = config_json(&shape, Dtype::Bf16);
    let again = parse_config_for(&again, &shape.name, 64).expect("what is written can be read");
    assert_eq!(again, shape);
    // Counts in 128 bits do not wrap.
    let tensors = hf_tensors(&shape);
    let elements: u128 = tensors
        .iter()
        .map(|t| t.shape.iter().map(|&n| u128::from(n)).product::<u128>())
        .sum();
    let decoder = Decoder::new(&shape, &options(BATCH)).map_err(message)?;
    assert_eq!(u128::from(decoder.workload().parameters()), elements);
    if let Ok(large) = describe(&shape, &options(LARGE)) {
        // Each of the M micro-batches has every tensor.
        let tensors = large.units.iter().flat_map(|unit| &unit.tensors);
        let bytes: u128 = tensors.map(|t| u128::from(t.bytes.0)).sum();
        assert!(bytes * u128::from(LARGE.accumulate) < 1 << 62);
    }
    let by = crc32c::crc32c(bytes);
    let lsp = Lsp {
        compression: [1, 2, 4, 64][(by >> 8) as usize % 4],
        projector: Projector::Random,
    };
    let subspaces = Options {
        lsp: Some(lsp),
        ..options(BATCH)
    };
    // Where nothing can be projected, that is an error.
    let subspaces = Decoder::new(&shape, &subspaces).map_err(message);
    if let Ok(decoder) = &subspaces {
        assert_eq!(u128::from(decoder.workload().parameters()), elements);
    }
    // Planning takes as long as all else together a hundred times.
    if shape.layers <= 2 && by.is_multiple_of(8) {
        let of = match &subspaces {
            Ok(subspaces) if by & 8 == 0 => subspaces,
            _ => &decoder,
        };
        let request = Request {
            workload: of.workload(),
            machine: machine(),
            budgets: Budgets::UNLIMITED,
            clip: Clip::Exact,
            pins: Pins::default(),
        };
        match lowtide_planner::make(&request) {
            Ok(plan) => assert!(plan.hash() != 0),
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    }
    stops.map(drop).map_err(message)
}

fn machine() -> &'static Machine {
    static READ: OnceLock<Machine> = OnceLock::new();
    READ.get_or_init(|| {
        let text = include_bytes!("../../../../examples/machines/h200.json");
        lowtide_files::json_from_slice(text).expect("an example")
    })
}
