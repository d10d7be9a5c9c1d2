//! Frozen parameters: what is trained has the gradients that it has when everything is, bit for bit, and
//! nothing is computed for the rest.

#[path = "driver/mod.rs"]
mod driver;

use driver::{Driver, options, tiny_gpt2, tiny_llama, tiny_shapes};
use lowtide_model::{ModelError, Options, frozen};
use lowtide_workload::{Access, Dtype, ModelShape, ParamId, What, Workload};

fn patterns(all: &[&str]) -> Vec<String> {
    all.iter().map(|p| (*p).to_owned()).collect()
}

fn with(frozen: Vec<ParamId>, precision: Dtype) -> Options {
    Options {
        frozen,
        ..options(precision, 2, 9)
    }
}

/// Parameters to which some operation adds.
fn added(w: &Workload) -> Vec<ParamId> {
    let operands = w.units.iter().flat_map(|u| &u.backward);
    let mut all: Vec<ParamId> = operands
        .flat_map(|op| &op.operands)
        .filter_map(|o| match o.what {
            What::Gradient(p) => Some(p),
            _ => None,
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// One step with some parameters frozen beside one with none.
fn check(shape: &ModelShape, precision: Dtype, full: &Driver, off: Vec<ParamId>) {
    let case = format!("{} {precision:?} {off:?}", shape.name);
    let mut some = Driver::new(shape, &with(off.clone(), precision), 2);
    let loss = some.step(0.25);
    let w = some.decoder.workload();
    let trained: Vec<ParamId> = w.params.ids().filter(|p| !off.contains(p)).collect();
    assert_eq!(added(w), trained, "{case}");
    let lowest = trained.iter().map(|&p| w.params[p].unit).min();
    for unit in &w.units[..lowest.unwrap() as usize] {
        assert!(unit.backward.is_empty(), "{case}: {}", unit.name);
        assert!(unit.saved().is_empty(), "{case}: {}", unit.name);
    }
    // Everything that backward makes is read, or goes to the unit below.
    for (u, unit) in w.units.iter().enumerate() {
        let reads = |what: What| {
            let mut operands = unit.backward.iter().flat_map(|op| &op.operands);
            operands.any(|o| o.what == what && o.access == Access::Read)
        };
        for op in &unit.backward {
            let adds = op.operands.iter().any(|o| o.access == Access::Accumulate);
            let leads = op.operands.iter().any(|o| match o.what {
                _ if o.access != Access::Write => false,
                What::Local(i) if unit.input_of_gradient(i).is_some() => u as u32 > lowest.unwrap(),
                what => what == What::Loss || reads(what),
            });
            assert!(adds || leads, "{case}: {} {}", unit.name, op.name);
        }
    }
    assert_eq!(
        w.trained(),
        trained.iter().map(|&p| w.params[p].elements).sum::<u64>()
    );
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for &p in &trained {
        let (got, want) = (bits(some.gradient(p)), bits(full.gradient(p)));
        assert_eq!(got, want, "{case}: gradient of {}", w.params[p].name);
    }
    assert_eq!(loss.map(f64::to_bits), {
        let mut again = Driver::new(shape, &with(Vec::new(), precision), 2);
        again.step(0.25).map(f64::to_bits)
    });
}

#[test]
fn what_is_trained_has_the_same_gradients() {
    let mut x = 11u64;
    let mut random = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        x >> 33
    };
    let (mut tried, mut refused) = (0, 0);
    for shape in tiny_shapes() {
        for precision in [Dtype::F32, Dtype::Bf16] {
            let mut full = Driver::new(&shape, &with(Vec::new(), precision), 2);
            full.step(0.25);
            let all = || full.decoder.workload().params.ids();
            let unit_of = |p: ParamId| full.decoder.workload().params[p].unit;
            // The ends, the lower block, everything but the head's own, and chance.
            let mut cases: Vec<Vec<ParamId>> = vec![
                all().filter(|&p| unit_of(p) == 0).collect(),
                all().filter(|&p| unit_of(p) <= 1).collect(),
                all().filter(|&p| unit_of(p) <= 2).collect(),
                all().filter(|&p| unit_of(p) != 2).collect(),
                all().filter(|&p| unit_of(p) == 3).collect(),
            ];
            cases.extend((0..30).map(|_| {
                let share = random() % 4 + 1;
                all().filter(|_| random() % 5 < share).collect()
            }));
            for off in cases {
                match lowtide_model::describe(&shape, &with(off.clone(), precision)) {
                    Ok(_) => check(&shape, precision, &full, off),
                    Err(ModelError::Partly { .. } | ModelError::NothingTrained) => {
                        refused += 1;
                        continue;
                    }
                    Err(e) => panic!("{e}"),
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried} tried, {refused} refused");
}

#[test]
fn patterns_find_parameters() {
    let names = |shape: &ModelShape, off: &[&str], on: &[&str]| -> Vec<String> {
        let w = lowtide_model::describe(shape, &with(Vec::new(), Dtype::F32)).unwrap();
        let found = frozen(shape, &patterns(off), &patterns(on)).unwrap();
        found.iter().map(|&p| w.params[p].name.clone()).collect()
    };
    let llama = tiny_llama();
    assert_eq!(names(&llama, &[], &[]), [""; 0]);
    assert_eq!(
        names(&llama, &["model.embed_tokens"], &[]),
        ["embedding.tokens"]
    );
    assert_eq!(
        names(&llama, &["model.layers.0.mlp", "lm_head"], &[]),
        ["blocks.0.gate_up", "blocks.0.down", "head.lm_head"]
    );
    // All but one block.
    assert_eq!(names(&llama, &["*"], &["model.layers.1"]).len(), 1 + 6 + 2);
    assert_eq!(
        names(&llama, &["*norm*"], &["model.norm"]),
        [
            "blocks.0.norm1",
            "blocks.0.norm2",
            "blocks.1.norm1",
            "blocks.1.norm2"
        ]
    );
}

#[test]
fn what_cannot_be_frozen_is_reported() {
    let (llama, gpt2) = (tiny_llama(), tiny_gpt2());
    let error = |shape: &ModelShape, all: &[&str]| {
        let (on, off): (Vec<&str>, Vec<&str>) = all.iter().partition(|p| p.starts_with('!'));
        let on: Vec<&str> = on.iter().map(|p| &p[1..]).collect();
        let found = frozen(shape, &patterns(&off), &patterns(&on));
        let made = found.and_then(|off| lowtide_model::describe(shape, &with(off, Dtype::F32)));
        made.unwrap_err().to_string()
    };
    for (shape, all, want) in [
        (
            &llama,
            &["model.layer.0"][..],
            "train.freeze: `model.layer.0` names no tensor of the model, which has",
        ),
        (
            &llama,
            &["*", "!nothing"],
            "train.unfreeze: `nothing` names no tensor",
        ),
        // A tied head has no tensor of its own.
        (
            &gpt2,
            &["lm_head"],
            "`lm_head` names no tensor of the model, which has transformer.wte.weight",
        ),
        (
            &llama,
            &["*q_proj*"],
            "model.layers.0.self_attn.q_proj.weight is frozen and model.layers.0.self_attn.k_proj.weight is not",
        ),
        (
            &gpt2,
            &["*ln_1.bias"],
            "transformer.h.0.ln_1.bias is frozen and transformer.h.0.ln_1.weight is not",
        ),
        (&llama, &["*"], "every parameter is frozen"),
    ] {
        let found = error(shape, all);
        assert!(found.contains(want), "{all:?}: {found}");
    }
}
