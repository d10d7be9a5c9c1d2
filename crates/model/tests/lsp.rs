//! Training in subspaces: a base, a core and a projector are the model that their sum is, and the core's gradient is
//! the slope of its loss.

#[path = "driver/mod.rs"]
mod driver;
#[path = "reference/mod.rs"]
mod reference;

use std::collections::BTreeMap;
use std::time::Instant;

use driver::{Driver, inputs, options, tiny_gpt2, tiny_llama, tiny_shapes};
use lowtide_model::{ModelError, Options, describe, file_params, hf_tensors};
use lowtide_workload::{
    Access, Dtype, Lsp, ModelShape, Param, ParamId, ParamKind, Projector, What, Workload,
};

const ROWS: usize = 18;
const SEQ: usize = 9;

fn lsp(compression: u32) -> Lsp {
    Lsp {
        compression,
        projector: Projector::Random,
    }
}

/// The tiny shapes that have no experts.
fn dense() -> impl Iterator<Item = ModelShape> {
    let all = tiny_shapes().into_iter();
    all.filter(|shape| shape.experts.is_none())
}

fn with(lsp: Option<Lsp>, precision: Dtype) -> Options {
    Options {
        lsp,
        ..options(precision, (ROWS / SEQ) as u32, SEQ as u32)
    }
}

/// A parameter of the workload by its name.
fn named<'a>(w: &'a Workload, name: &str) -> Option<(ParamId, &'a Param)> {
    w.params.pairs().find(|(_, p)| p.name == name)
}

/// A base's core and projector, and whether its output side is projected.
fn beside(w: &Workload, base: &str) -> (ParamId, ParamId, bool) {
    let at = |letter: &str| named(w, &format!("{base}_{letter}")).map(|(id, _)| id);
    let core = at("s").expect("a core");
    match (at("q"), at("p")) {
        (Some(q), None) => (core, q, false),
        (None, Some(p)) => (core, p, true),
        both => panic!("{base}: {both:?}"),
    }
}

/// Every parameter of the files in f64, with what is added to it.
fn whole(driver: &Driver) -> Vec<Vec<f64>> {
    let w = driver.decoder.workload();
    let wide = |id| -> Vec<f64> { driver.weight(id).iter().map(|&x| f64::from(x)).collect() };
    let mut all = Vec::new();
    for file in file_params(&driver.shape).iter() {
        let (id, param) = named(w, &file.name).expect("each is there");
        let mut numbers = wide(id);
        if param.kind == ParamKind::Base {
            let (core, projector, output) = beside(w, &file.name);
            let (s, p) = (wide(core), wide(projector));
            let r = w.params[core].cols as usize;
            let n = param.cols as usize;
            for (i, x) in numbers.iter_mut().enumerate() {
                let (row, col) = (i / n, i % n);
                let (of_s, of_p) = if output { (col, row) } else { (row, col) };
                *x += (0..r)
                    .map(|j| s[of_s * r + j] * p[of_p * r + j])
                    .sum::<f64>();
            }
        }
        all.push(numbers);
    }
    all
}

/// The loss of the driver's inputs by the reference, each document alone.
fn reference_loss(driver: &Driver) -> f64 {
    let params = whole(driver);
    let mut tensors = reference::Tensors::new();
    for tensor in hf_tensors(&driver.shape) {
        let range = tensor.elements();
        let own = &params[tensor.param.0 as usize][range.start as usize..range.end as usize];
        let mut values = vec![f64::NAN; own.len()];
        for (i, &value) in (0..).zip(own) {
            values[tensor.in_file(i) as usize] = value;
        }
        tensors.insert(tensor.name, values);
    }
    let planes = inputs(driver.decoder.workload(), driver.shape.vocab);
    let (tokens, rest) = planes.split_at(ROWS);
    let (labels, positions) = (&rest[..ROWS], &rest[ROWS..2 * ROWS]);
    let mut sum = 0.0;
    let starts: Vec<usize> = (0..ROWS).filter(|&i| positions[i] == 0).collect();
    for (n, &start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(ROWS);
        let document: Vec<usize> = tokens[start..end].iter().map(|&t| t as usize).collect();
        let rows = reference::logits(&driver.shape, &tensors, &document);
        for (row, &label) in rows.into_iter().zip(&labels[start..]) {
            if label >= 0 {
                let max = row.iter().copied().fold(f64::MIN, f64::max);
                let log_sum = row.iter().map(|v| (v - max).exp()).sum::<f64>().ln() + max;
                sum += log_sum - row[label as usize];
            }
        }
    }
    sum
}

/// What is trained, what is read, and by whom: each base is made to a weight once in each direction, from its own core
/// and projector; each core has one gradient, no base or projector has one; nothing more of forward is kept for
/// backward than in exact training.
#[test]
fn the_parts_of_a_matrix_are_used_as_they_must() {
    for shape in dense() {
        let exact = describe(&shape, &with(None, Dtype::Bf16)).unwrap();
        let w = describe(&shape, &with(Some(lsp(2)), Dtype::Bf16)).unwrap();
        let name = &shape.name;
        assert_eq!(w.parameters(), exact.parameters(), "{name}");
        let mut kinds: BTreeMap<&str, (u32, u64)> = BTreeMap::new();
        for p in &w.params {
            let of = kinds.entry(match p.kind {
                ParamKind::Own => "own",
                ParamKind::Base => "base",
                ParamKind::Projector => "projector",
                ParamKind::Core => "core",
            });
            let (count, sum) = of.or_default();
            (*count, *sum) = (*count + 1, *sum + p.elements);
            let frozen = matches!(p.kind, ParamKind::Base | ParamKind::Projector);
            assert_eq!(p.frozen, frozen, "{name}: {}", p.name);
        }
        for kind in ["base", "projector", "core"] {
            assert_eq!(kinds[kind].0, 4 * shape.layers, "{name}: {kind}");
        }
        assert_eq!(w.trained(), kinds["own"].1 + kinds["core"].1, "{name}");
        for (unit, of_exact) in w.units.iter().zip(&exact.units) {
            let saved = |u: &lowtide_workload::Unit| -> Vec<String> {
                u.saved()
                    .iter()
                    .map(|&i| u.tensors[i].name.clone())
                    .collect()
            };
            assert_eq!(saved(unit), saved(of_exact), "{name} {}", unit.name);
            let own = lowtide_units::ids(&unit.params);
            for (id, base) in own.map(|id| (id, &w.params[id])) {
                let all = [&unit.forward, &unit.backward];
                let users = |what: What| {
                    all.map(|ops| {
                        let uses =
                            |op: &&lowtide_workload::Op| op.operands.iter().any(|o| o.what == what);
                        ops.iter().filter(uses).count()
                    })
                };
                match base.kind {
                    ParamKind::Base => {
                        let (core, projector, _) = beside(&w, &base.name);
                        assert_eq!(users(What::Weight(id)), [1, 1], "{name}: {}", base.name);
                        assert_eq!(users(What::Weight(core)), [1, 1], "{name}: {}", base.name);
                        // Its own product and the narrow one.
                        assert_eq!(users(What::Weight(projector)), [1, 2], "{name}");
                        assert_eq!(users(What::Gradient(core)), [0, 1], "{name}");
                        for ops in all {
                            let makes = ops.iter().find(|op| {
                                let mut operands = op.operands.iter();
                                operands.any(|o| o.what == What::Weight(id))
                            });
                            let makes: Vec<What> = makes
                                .expect("it is made")
                                .operands
                                .iter()
                                .filter(|o| o.access == Access::Read)
                                .map(|o| o.what)
                                .collect();
                            for what in [core, projector, id].map(What::Weight) {
                                assert!(makes.contains(&what), "{name}: {makes:?}");
                            }
                        }
                    }
                    ParamKind::Projector => {
                        assert_eq!(users(What::Gradient(id)), [0, 0], "{name}");
                    }
                    ParamKind::Own | ParamKind::Core => {}
                }
                if base.kind == ParamKind::Base {
                    assert_eq!(users(What::Gradient(id)), [0, 0], "{name}");
                }
            }
            // What is only read stands before what is trained: two pieces.
            let frozen: Vec<bool> = lowtide_units::ids(&unit.params)
                .map(|p| w.params[p].frozen)
                .collect();
            let first = frozen.iter().take_while(|&&f| f).count();
            assert!(frozen[first..].iter().all(|&f| !f), "{name}: {frozen:?}");
        }
    }
}

/// Matrices that are too short, frozen or in embedding and head are trained, or not, as they are.
#[test]
fn what_is_not_projected_is_as_it_was() {
    let of = |shape: &ModelShape, frozen: Vec<ParamId>, compression| {
        let options = Options {
            frozen,
            ..with(Some(lsp(compression)), Dtype::F32)
        };
        let w = describe(shape, &options).unwrap();
        let bases = w.params.iter().filter(|p| p.kind == ParamKind::Base);
        bases.map(|p| p.name.clone()).collect::<Vec<_>>()
    };
    // A quarter of 20 is less than eight: nothing is left of it.
    match describe(&tiny_llama(), &with(Some(lsp(4)), Dtype::F32)) {
        Err(ModelError::NothingProjected {
            shorter: 20,
            compression: 4,
        }) => {}
        other => panic!("{other:?}"),
    }
    let all = of(&tiny_llama(), Vec::new(), 2);
    let block = [
        "blocks.0.qkv",
        "blocks.0.o",
        "blocks.0.gate_up",
        "blocks.0.down",
    ];
    assert_eq!(all[..4], block);
    let off = file_params(&tiny_llama()).position(|p| p.name == "blocks.0.o");
    let some = of(&tiny_llama(), off.into_iter().collect(), 2);
    assert_eq!(
        some[..3],
        ["blocks.0.qkv", "blocks.0.gate_up", "blocks.0.down"]
    );
    assert_eq!(of(&tiny_gpt2(), Vec::new(), 2)[2], "blocks.0.up");
    let experts = tiny_shapes().into_iter().find(|s| s.experts.is_some());
    let described = describe(&experts.unwrap(), &with(Some(lsp(2)), Dtype::F32));
    assert!(matches!(described, Err(ModelError::ExpertsProjected)));
}

/// The loss is that of the model with W0 + S·Qᵀ (or W0 + P·Sᵀ) in its place, and every gradient its slope: along the
/// gradient itself, and along its largest number alone. In f64, so that the slope is sharp.
#[test]
fn the_gradient_of_the_core_is_the_slope() {
    for shape in dense() {
        let mut driver = Driver::new(&shape, &with(Some(lsp(2)), Dtype::F32), 2);
        let [loss, _] = driver.step(1.0);
        let want = reference_loss(&driver);
        let far = (loss - want).abs() / want;
        assert!(far < 2e-6, "{}: loss {loss}, reference {want}", shape.name);
        let params = driver.decoder.workload().params.clone();
        for (id, param) in params.pairs().filter(|(_, p)| p.kind == ParamKind::Core) {
            // Two blocks are alike.
            if param.name.starts_with("blocks.1") {
                continue;
            }
            let gradient = driver.gradient(id);
            let length = gradient
                .iter()
                .map(|&g| f64::from(g).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!(length > 1e-3, "{}: {}", shape.name, param.name);
            let own: Vec<f64> = gradient.iter().map(|&g| f64::from(g) / length).collect();
            let largest = own.iter().enumerate();
            let largest = largest
                .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))
                .unwrap()
                .0;
            let mut single = vec![0.0; own.len()];
            single[largest] = 1.0;
            let before = driver.weight(id);
            for direction in [own, single] {
                let mut slope = |step: f64| {
                    let moved: Vec<f32> = before
                        .iter()
                        .zip(&direction)
                        .map(|(&x, d)| (f64::from(x) + step * d) as f32)
                        .collect();
                    // What was really moved, after rounding to f32.
                    let along: f64 = moved
                        .iter()
                        .zip(&before)
                        .zip(&direction)
                        .map(|((&a, &b), d)| (f64::from(a) - f64::from(b)) * d)
                        .sum();
                    driver.set_weight(id, &moved);
                    (reference_loss(&driver), along)
                };
                let mut difference = |h: f64| {
                    let ((up, a), (down, b)) = (slope(h), slope(-h));
                    (up - down) / (a - b)
                };
                let (wide, narrow) = (difference(2e-3), difference(1e-3));
                let measured = (4.0 * narrow - wide) / 3.0;
                let predicted: f64 = gradient
                    .iter()
                    .zip(&direction)
                    .map(|(&g, d)| f64::from(g) * d)
                    .sum();
                let far = (predicted - measured).abs() / length;
                assert!(
                    far < 1e-5,
                    "{}, {}: gradient {predicted}, slope {measured}",
                    shape.name,
                    param.name
                );
                driver.set_weight(id, &before);
            }
        }
    }
}

/// An untrusted model may have any number of layers: with bases and cores it is described about as fast as without.
#[test]
fn many_layers_are_described_about_as_fast_as_in_exact_training() {
    let shape = ModelShape {
        layers: 4096,
        ..tiny_llama()
    };
    let time = |lsp: Option<Lsp>| {
        let timed = |_| {
            let start = Instant::now();
            describe(&shape, &with(lsp, Dtype::Bf16)).unwrap();
            start.elapsed()
        };
        (0..3).map(timed).min().unwrap()
    };
    let (exact, subspaces) = (time(None), time(Some(lsp(2))));
    // Twice as much on a quiet machine; a walk through all layers for each took 35 times as much.
    assert!(subspaces < 12 * exact, "{subspaces:?} beside {exact:?}");
}

/// The models that are written are those that were trained, whatever the ranges they are asked for in.
#[test]
fn merged_matrices_are_those_that_are_used() {
    for shape in dense() {
        let driver = Driver::new(&shape, &with(Some(lsp(2)), Dtype::F32), 2);
        let want = whole(&driver);
        let mut merged = driver.decoder.merged(2);
        for (file, param) in file_params(&shape).pairs() {
            // Ends inside rows.
            for from in (0..param.elements).step_by(173) {
                let range = from..(from + 173).min(param.elements);
                let mut got = vec![f32::NAN; (range.end - range.start) as usize];
                let weights = |p, range: std::ops::Range<u64>, out: &mut [f32]| {
                    let all = driver.weight(p);
                    out.copy_from_slice(&all[range.start as usize..range.end as usize]);
                    Ok::<(), ModelError>(())
                };
                merged.read(file, range.clone(), &mut got, weights).unwrap();
                let want = &want[file.0 as usize][range.start as usize..range.end as usize];
                for (got, want) in got.iter().zip(want) {
                    let far = (f64::from(*got) - want).abs();
                    assert!(
                        far < 1e-6,
                        "{}: {} {range:?}: {got} {want}",
                        shape.name,
                        param.name
                    );
                }
            }
        }
    }
}

/// With a projector that is the identity a core's gradient is that of its matrix, and so is everything else.
#[test]
fn identity_projectors_are_exact_training() {
    for shape in dense() {
        let mut exact = Driver::new(&shape, &with(None, Dtype::F32), 2);
        let mut whole_rank = Driver::new(&shape, &with(Some(lsp(1)), Dtype::F32), 2);
        let w = whole_rank.decoder.workload().clone();
        for (file, param) in file_params(&shape).pairs() {
            let (id, own) = named(&w, &param.name).unwrap();
            whole_rank.set_weight(id, &exact.weight(file));
            if own.kind == ParamKind::Base {
                let (core, _, _) = beside(&w, &param.name);
                whole_rank.set_weight(core, &vec![0.0; w.params[core].elements as usize]);
            }
        }
        assert_eq!(exact.step(1.0), whole_rank.step(1.0), "{}", shape.name);
        for (file, param) in file_params(&shape).pairs() {
            let (id, own) = named(&w, &param.name).unwrap();
            let want = exact.gradient(file);
            let (rows, cols) = (param.rows() as usize, param.cols as usize);
            let got = match own.kind {
                ParamKind::Base => {
                    let (core, _, output) = beside(&w, &param.name);
                    let got = whole_rank.gradient(core);
                    let at = |i: usize| {
                        if output {
                            i % cols * rows + i / cols
                        } else {
                            i
                        }
                    };
                    (0..got.len()).map(|i| got[at(i)]).collect()
                }
                _ => whole_rank.gradient(id),
            };
            let length = want
                .iter()
                .map(|&g| f64::from(g).powi(2))
                .sum::<f64>()
                .sqrt();
            let far = want
                .iter()
                .zip(&got)
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum::<f64>();
            let far = far.sqrt() / length;
            assert!(far < 1e-6, "{}: {}: {far:e}", shape.name, param.name);
        }
    }
}
