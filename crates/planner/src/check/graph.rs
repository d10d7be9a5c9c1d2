//! What a workload's units say of each other, before any plan of it is looked at.

use std::collections::HashSet;

use lowtide_workload::{Access, LocalId, What, Workload};

use super::Fault;
use crate::plan::{PartName, TaskId};

/// The units that read a unit's output, in forward order, each with its name for the gradient.
fn readers(w: &Workload, unit: u32) -> Vec<(u32, LocalId)> {
    let all = (0..).zip(&w.units).flat_map(|(u, reader)| {
        let inputs = reader.inputs.iter().filter(|input| input.unit == unit);
        inputs.map(move |input| (u, input.gradient))
    });
    all.collect()
}

/// The gradients of outputs that several units read: the last of these, and its name for it.
pub(super) fn read_often(w: &Workload) -> HashSet<(u32, LocalId)> {
    let several = |unit: u32| {
        let readers = readers(w, unit);
        let last = *readers.last()?;
        (readers.len() > 1).then_some(last)
    };
    (0..w.units.len() as u32).filter_map(several).collect()
}

/// Every unit reads outputs of earlier units, each once, with the size that the output has. Where an output has a
/// gradient, its last reader overwrites it, every other one adds to it, each by one operation.
pub(super) fn graph(w: &Workload) -> Result<(), Fault> {
    let fault = |what: String| {
        Err(Fault {
            part: PartName::First,
            task: TaskId(0),
            what: format!("is of a workload in which {what}"),
        })
    };
    for (u, unit) in (0..).zip(&w.units) {
        for (k, input) in unit.inputs.iter().enumerate() {
            let before = &unit.inputs[..k];
            let output = match w.units.get(input.unit as usize) {
                Some(maker) if input.unit < u => maker.output.map(|i| maker.tensors[i].bytes),
                _ => None,
            };
            if output != Some(unit.tensors[input.tensor].bytes) {
                let (name, from) = (&unit.name, input.unit);
                return fault(format!("{name} reads what unit {from} does not put out"));
            }
            if before.iter().any(|other| other.unit == input.unit) {
                return fault(format!("{} reads unit {} twice", unit.name, input.unit));
            }
        }
    }
    for (u, unit) in (0..).zip(&w.units) {
        let readers = readers(w, u);
        let made: Vec<Vec<Access>> = readers
            .iter()
            .map(|&(r, gradient)| {
                let ops = w.units[r as usize].backward.iter();
                let makes = ops.flat_map(|op| &op.operands);
                let makes = makes.filter(|o| o.what == What::Local(gradient));
                let makes = makes.map(|o| o.access).filter(|&a| a != Access::Read);
                makes.collect()
            })
            .collect();
        // Where nothing below is trained nobody makes it.
        if made.iter().all(Vec::is_empty) {
            continue;
        }
        for (k, (made, (r, _))) in made.iter().zip(&readers).enumerate() {
            let want = match k + 1 == readers.len() {
                true => Access::Write,
                false => Access::Accumulate,
            };
            if made != &[want] {
                let (name, reader) = (&unit.name, &w.units[*r as usize].name);
                return fault(format!(
                    "{reader} makes the gradient of {name}'s output by {made:?}, not {want:?}"
                ));
            }
        }
    }
    Ok(())
}
