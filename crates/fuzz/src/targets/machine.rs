//! A machine file, and plans of a small decoder for that machine.

use std::sync::OnceLock;

use lowtide_model::{describe, parse_config};
use lowtide_planner::explain::{explain, explain_choices, explain_updates, split};
use lowtide_planner::{Budgets, Clip, Pins, PlanError, Request};
use lowtide_trainer::inside::load_machine;
use lowtide_units::Bytes;
use lowtide_workload::{Batch, Workload};
use serde_json::json;

use super::{message, options};
use crate::scratch;

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let path = scratch::folder("machine").join("machine.json");
    scratch::write(&path, bytes);
    let machine = load_machine(&path).map_err(message)?;
    let with_disk = crc32c::crc32c(bytes).is_multiple_of(2);
    let request = Request {
        workload: small(),
        machine: &machine,
        budgets: Budgets {
            device: Bytes(if with_disk { 256 << 10 } else { 4 << 20 }),
            host: Bytes(16 << 20),
            disk: Bytes(if with_disk { 64 << 20 } else { 0 }),
        },
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let plan = match lowtide_planner::make(&request) {
        Ok(plan) => plan,
        Err(PlanError::Refused(refusal)) => panic!("more than enough is refused: {refusal}"),
        Err(wrong) => panic!("{wrong}"),
    };
    assert!(plan.prediction.step_seconds.0.is_finite());
    let cuda = machine.cuda;
    let _ = (
        explain(&plan, request.workload, cuda),
        explain_choices(&plan),
    );
    let _ = (
        split(&plan, &machine),
        explain_updates(&plan, &machine, cuda),
    );
    Ok(())
}

/// The least decoder there is: planning it takes milliseconds.
fn small() -> &'static Workload {
    static SMALL: OnceLock<Workload> = OnceLock::new();
    SMALL.get_or_init(|| {
        let config = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
            "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 64});
        let shape = parse_config(&config, "fuzz").expect("a shape");
        let batch = Batch {
            target: 0,
            micro_batch: 1,
            seq: 16,
            accumulate: 1,
        };
        describe(&shape, &options(batch)).expect("it can be built")
    })
}
