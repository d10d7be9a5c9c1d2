//! Tiny decoders of every feature, run by a plain driver: against a plain f64 model, and every
//! gradient against finite differences.

#[path = "driver/mod.rs"]
mod driver;
#[path = "reference/mod.rs"]
mod reference;

use driver::{Driver, inputs, options, tiny_gpt2, tiny_llama, tiny_shapes};
use lowtide_model::{ModelError, describe, hf_tensors};
use lowtide_units::List;
use lowtide_workload::{Dtype, Experts, Lsp, ModelShape, ParamId, Projector, Unit, What};

const ROWS: usize = 18;
const SEQ: usize = 9;

fn tiny(shape: &ModelShape, precision: Dtype) -> Driver {
    Driver::new(
        shape,
        &options(precision, (ROWS / SEQ) as u32, SEQ as u32),
        2,
    )
}

/// The driver's weights under their file names and in the file's layout.
fn by_name(driver: &Driver) -> reference::Tensors {
    let mut tensors = reference::Tensors::new();
    for tensor in hf_tensors(&driver.shape) {
        let all = driver.weight(tensor.param);
        let range = tensor.elements();
        let own = &all[range.start as usize..range.end as usize];
        let mut values = vec![f64::NAN; own.len()];
        for (i, &value) in (0..).zip(own) {
            values[tensor.in_file(i) as usize] = f64::from(value);
        }
        tensors.insert(tensor.name, values);
    }
    tensors
}

/// The loss of the driver's inputs, by the reference: each document alone.
fn reference_loss(driver: &Driver) -> (f64, Vec<Vec<f64>>) {
    let tensors = by_name(driver);
    let planes = inputs(driver.decoder.workload(), driver.shape.vocab);
    let (tokens, rest) = planes.split_at(ROWS);
    let (labels, positions) = (&rest[..ROWS], &rest[ROWS..2 * ROWS]);
    let (mut sum, mut all) = (0.0, Vec::new());
    let starts: Vec<usize> = (0..ROWS).filter(|&i| positions[i] == 0).collect();
    for (n, &start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(ROWS);
        let document: Vec<usize> = tokens[start..end].iter().map(|&t| t as usize).collect();
        for (row, &label) in reference::logits(&driver.shape, &tensors, &document)
            .into_iter()
            .zip(&labels[start..])
        {
            if label >= 0 {
                let max = row.iter().copied().fold(f64::MIN, f64::max);
                let log_sum = row.iter().map(|v| (v - max).exp()).sum::<f64>().ln() + max;
                sum += log_sum - row[label as usize];
            }
            all.push(row);
        }
    }
    (sum, all)
}

#[test]
fn the_loss_is_transformers_loss() {
    for shape in tiny_shapes() {
        let mut driver = tiny(&shape, Dtype::F32);
        let [sum, count] = driver.step(1.0);
        let (want, _) = reference_loss(&driver);
        assert_eq!(count, 14.0);
        let error = (sum - want).abs() / want;
        assert!(error < 2e-6, "{}: loss {sum}, reference {want}", shape.name);
        assert_eq!(
            driver.evaluate(),
            [sum, count],
            "{}: loss without gradients",
            shape.name
        );
    }
}

#[test]
fn logits_come_from_the_marked_position() {
    for shape in tiny_shapes() {
        let mut driver = tiny(&shape, Dtype::F32);
        let (_, all) = reference_loss(&driver);
        // One position with a label in each of the two rows.
        driver.mark(&[4, 16]);
        let logits = driver.infer();
        let vocab = shape.vocab as usize;
        assert_eq!(logits.len(), 2 * vocab);
        for (got, want) in logits.chunks(vocab).zip([&all[4], &all[16]]) {
            for (g, w) in got.iter().zip(want) {
                assert!(
                    (f64::from(*g) - w).abs() < 1e-4,
                    "{}: {g} for {w}",
                    shape.name
                );
            }
        }
    }
}

/// The derivative along every parameter's own gradient, along a random direction, and along its
/// largest number alone.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    // Every token takes every expert: another choice is a step in the loss, and differences are wide.
    let all = |of: Experts| Experts {
        count: of.count.min(5),
        chosen: of.count.min(5),
        ..of
    };
    for mut shape in tiny_shapes() {
        shape.experts = shape.experts.map(all);
        let mut driver = tiny(&shape, Dtype::F32);
        driver.step(1.0);
        for param in driver.params() {
            let gradient: Vec<f64> = driver
                .gradient(param)
                .iter()
                .map(|&g| f64::from(g))
                .collect();
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            let name = driver.decoder.workload().params[param].name.clone();
            let name = format!("{}, {name}", shape.name);
            assert!(norm > 1e-3, "{name}: gradient of norm {norm}");

            let own: Vec<f64> = gradient.iter().map(|g| g / norm).collect();
            let sign = |i: usize| {
                if (i * 2_654_435_761) >> 7 & 1 == 0 {
                    1.0
                } else {
                    -1.0
                }
            };
            let length = (gradient.len() as f64).sqrt();
            let random: Vec<f64> = (0..gradient.len()).map(|i| sign(i) / length).collect();
            let largest = (0..gradient.len())
                .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
                .unwrap();
            let mut single = vec![0.0; gradient.len()];
            single[largest] = 1.0;
            for direction in [own, random, single] {
                let want: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let got = slope(&mut driver, param, &direction);
                let error = (got - want).abs() / norm;
                assert!(
                    error < 4e-3,
                    "{name}: slope {got}, gradient {want}, norm {norm}"
                );
            }
        }
    }
}

/// Derivative of the loss along `direction`, by central differences of two widths.
fn slope(driver: &mut Driver, param: ParamId, direction: &[f64]) -> f64 {
    let weight = driver.weight(param);
    let mut difference = |h: f64| {
        let mut at = |h: f64| {
            let moved: Vec<f32> = weight
                .iter()
                .zip(direction)
                .map(|(w, d)| (f64::from(*w) + h * d) as f32)
                .collect();
            driver.set_weight(param, &moved);
            driver.evaluate()[0]
        };
        let slope = (at(h) - at(-h)) / (2.0 * h);
        at(0.0);
        slope
    };
    let (wide, narrow) = (difference(0.02), difference(0.01));
    (4.0 * narrow - wide) / 3.0
}

#[test]
fn gradients_add_up_over_micro_batches() {
    for shape in tiny_shapes() {
        let mut driver = tiny(&shape, Dtype::F32);
        driver.step(0.5);
        let once: List<ParamId, Vec<f32>> = driver.params().map(|p| driver.gradient(p)).collect();
        driver.step(0.5);
        for (param, once) in once.pairs() {
            // A tied table gets four additions: x + y, then + x, then + y.
            let twice = driver.gradient(param);
            let close = once
                .iter()
                .zip(&twice)
                .all(|(a, b)| (2.0 * a - b).abs() <= 1e-5);
            assert!(close, "{}, parameter {param}", shape.name);
        }
        driver.new_batch();
        driver.step(0.5);
        for (param, once) in once.pairs() {
            assert_eq!(&driver.gradient(param), once, "{}: a new batch", shape.name);
        }
    }
}

#[test]
fn threads_and_recomputing_change_no_bit() {
    for precision in [Dtype::F32, Dtype::Bf16] {
        for shape in tiny_shapes() {
            let options = options(precision, 2, 9);
            let mut one = Driver::new(&shape, &options, 1);
            let mut three = Driver::new(&shape, &options, 3);
            let loss = one.step(0.1);
            three.step(0.1);
            three.forget_locals();
            three.new_batch();
            assert_eq!(three.step(0.1), loss, "{}", shape.name);
            for param in one.params() {
                assert_eq!(
                    one.gradient(param),
                    three.gradient(param),
                    "{} {param}",
                    shape.name
                );
            }
        }
    }
}

#[test]
fn bf16_is_f32_within_its_rounding() {
    for shape in [tiny_llama(), tiny_gpt2()] {
        let mut half = tiny(&shape, Dtype::Bf16);
        let mut full = tiny(&shape, Dtype::F32);
        // The same weights: what bf16 holds.
        for param in half.params() {
            full.set_weight(param, &half.weight(param));
        }
        let ([a, _], [b, _]) = (half.step(1.0), full.step(1.0));
        assert!((a - b).abs() / b < 0.01, "loss {a}, in f32 {b}");
        assert!(a != b, "bf16 must round somewhere");
        for param in half.params() {
            let (g, w) = (half.gradient(param), full.gradient(param));
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter()
                    .zip(b)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum()
            };
            let cosine = dot(&g, &w) / (dot(&g, &g) * dot(&w, &w)).sqrt();
            assert!(cosine > 0.999, "parameter {param}: cosine {cosine}");
        }
    }
}

/// Rows of chunks: the second begins in one sequence and ends in the next, the third is shorter.
const CHUNK: u32 = 8;

fn in_chunks(shape: &ModelShape, precision: Dtype, rows_chunk: u32) -> Driver {
    let whole = options(precision, (ROWS / SEQ) as u32, SEQ as u32);
    let options = lowtide_model::Options {
        rows_chunk,
        ..whole
    };
    Driver::new(shape, &options, 2)
}

/// Every shape whose blocks can be computed in chunks.
fn dense() -> impl Iterator<Item = ModelShape> {
    tiny_shapes().into_iter().filter(|s| s.experts.is_none())
}

/// Against the f64 model, and against all rows at once: a norm in f32, a cosine in bf16, where a gradient of a
/// parameter adds up f32 numbers that are made of the same roundings.
#[test]
fn chunks_of_rows_are_all_rows_but_for_rounding() {
    for shape in dense() {
        let mut driver = in_chunks(&shape, Dtype::F32, CHUNK);
        let [sum, count] = driver.step(1.0);
        let (want, _) = reference_loss(&driver);
        let error = (sum - want).abs() / want;
        assert!(error < 2e-6, "{}: loss {sum}, reference {want}", shape.name);
        assert_eq!(driver.evaluate(), [sum, count], "{}", shape.name);

        for (precision, limit) in [(Dtype::F32, 2e-6), (Dtype::Bf16, 2e-3)] {
            let mut chunks = in_chunks(&shape, precision, CHUNK);
            let mut whole = tiny(&shape, precision);
            // Twice: what a micro-batch adds is added to another one's.
            for _ in 0..2 {
                chunks.step(0.5);
                whole.step(0.5);
            }
            for param in whole.params() {
                let (g, w) = (chunks.gradient(param), whole.gradient(param));
                let square = |x: f32| f64::from(x) * f64::from(x);
                let far: f64 = g.iter().zip(&w).map(|(g, w)| square(g - w)).sum();
                let far = (far / w.iter().map(|&w| square(w)).sum::<f64>()).sqrt();
                assert!(
                    far < limit,
                    "{} {precision:?} {param}: {far:.1e}",
                    shape.name
                );
            }
        }
    }
}

#[test]
fn gradients_of_chunks_are_the_slopes_of_the_loss() {
    for shape in [tiny_llama(), tiny_gpt2()] {
        let mut driver = in_chunks(&shape, Dtype::F32, CHUNK);
        driver.step(1.0);
        for param in driver.params() {
            let gradient = driver.gradient(param);
            let norm = gradient.iter().map(|&g| f64::from(g) * f64::from(g));
            let norm = norm.sum::<f64>().sqrt();
            let own: Vec<f64> = gradient.iter().map(|&g| f64::from(g) / norm).collect();
            let got = slope(&mut driver, param, &own);
            let error = (got - norm).abs() / norm;
            assert!(error < 4e-3, "{param}: slope {got}, gradient {norm}");
        }
    }
}

/// What is frozen has no operation, in chunks as without: all of a block, products alone, norms alone, biases alone.
#[test]
fn frozen_parameters_are_left_out_of_chunks() {
    let cases: [(ModelShape, &[&str], &[&str]); 5] = [
        (tiny_llama(), &["model.embed_tokens", "model.layers.0"], &[]),
        (tiny_llama(), &["*"], &["*norm*"]),
        (tiny_llama(), &["*"], &["*layers.1*o_proj*"]),
        (tiny_gpt2(), &["*"], &["*.bias", "*ln_*"]),
        (tiny_gpt2(), &["*ln_*", "*c_fc*"], &[]),
    ];
    for (shape, off, on) in cases {
        let owned = |names: &[&str]| -> Vec<String> { names.iter().map(|&n| n.into()).collect() };
        let (off, on) = (owned(off), owned(on));
        let frozen = lowtide_model::frozen(&shape, &off, &on).expect("names of tensors");
        let [mut chunks, mut whole] = [CHUNK, 0].map(|rows_chunk| {
            let options = lowtide_model::Options {
                rows_chunk,
                frozen: frozen.clone(),
                ..options(Dtype::F32, 2, 9)
            };
            Driver::new(&shape, &options, 2)
        });
        let ([a, _], [b, _]) = (chunks.step(0.5), whole.step(0.5));
        assert!((a - b).abs() < 2e-6 * b, "{off:?}: loss {a}, whole {b}");
        let params = whole.decoder.workload().params.clone();
        let mut compared = 0;
        for (param, _) in params.pairs().filter(|(_, p)| !p.frozen) {
            let (g, w) = (chunks.gradient(param), whole.gradient(param));
            let square = |x: f32| f64::from(x) * f64::from(x);
            let far: f64 = g.iter().zip(&w).map(|(g, w)| square(g - w)).sum();
            let all: f64 = w.iter().map(|&w| square(w)).sum();
            assert!(
                far <= 4e-12 * all,
                "{off:?} {param}: {far:.1e} of {all:.1e}"
            );
            compared += 1;
        }
        assert!(compared > 0, "{off:?}");
    }
}

/// Bits do not depend on threads, nor on what was computed before; chunks of all rows are none.
#[test]
fn chunks_have_the_same_bits_again() {
    for precision in [Dtype::F32, Dtype::Bf16] {
        for shape in dense() {
            let mut one = in_chunks(&shape, precision, CHUNK);
            let loss = one.step(0.1);
            let mut again = in_chunks(&shape, precision, CHUNK);
            again.step(0.1);
            again.forget_locals();
            again.new_batch();
            assert_eq!(again.step(0.1), loss, "{}", shape.name);
            for param in one.params() {
                let (a, b) = (one.gradient(param), again.gradient(param));
                assert_eq!(a, b, "{} {param}", shape.name);
            }
        }
    }
    let [all, more, whole] = [24, 800, 0].map(|rows| in_chunks(&tiny_llama(), Dtype::F32, rows));
    assert!(all.decoder.rows_chunk().is_none());
    for other in [&all, &more] {
        // The same work in every unit.
        assert_eq!(other.decoder.workload(), whole.decoder.workload());
    }
}

/// Local tensors that the operations of a unit name.
fn named(unit: &Unit) -> Vec<&str> {
    let ops = unit.forward.iter().chain(&unit.backward);
    let mut names: Vec<&str> = ops
        .flat_map(|op| &op.operands)
        .filter_map(|o| match o.what {
            What::Local(i) => Some(&*unit.tensors[i].name),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What is left of all rows is what attention reads and writes, the residual stream, and their gradients.
#[test]
fn wide_tensors_exist_for_a_chunk_alone() {
    let driver = in_chunks(&tiny_llama(), Dtype::Bf16, CHUNK);
    let block = &driver.decoder.workload().units[1];
    assert_eq!(
        named(block),
        [
            "att", "d_att", "d_qkv", "d_x2", "dx", "dy", "lse", "qkv", "x", "y"
        ]
    );
    let saved = block.saved();
    let saved: Vec<&str> = saved.iter().map(|&i| &*block.tensors[i].name).collect();
    assert_eq!(saved, ["qkv", "att", "lse"]);
    let names = |ops: &[lowtide_workload::Op]| -> Vec<String> {
        ops.iter().map(|op| op.name.clone()).collect()
    };
    assert_eq!(
        names(&block.forward),
        ["norm1+qkv+rope", "attention", "o+norm2+gate_up+swiglu+down"]
    );
    assert_eq!(
        names(&block.backward),
        ["down+swiglu+gate_up+norm2+o", "attention", "rope+qkv+norm1"]
    );
    // Scratch is that of a chunk: with as many rows again it stays.
    let scratch = |rows| {
        let options = lowtide_model::Options {
            rows_chunk: CHUNK,
            ..options(Dtype::Bf16, 2, rows)
        };
        let mut llama = tiny_llama();
        llama.max_positions = rows;
        let w = describe(&llama, &options).unwrap();
        w.units[1].backward[lowtide_workload::OpId(0)].workspace
    };
    assert_eq!(scratch(16), scratch(32));
}

#[test]
fn what_is_not_computed_in_chunks_is_refused() {
    let with = |shape: &ModelShape, rows_chunk, lsp| {
        let options = lowtide_model::Options {
            rows_chunk,
            lsp,
            ..options(Dtype::Bf16, 2, 9)
        };
        describe(shape, &options).unwrap_err()
    };
    let experts = tiny_shapes().into_iter().find(|s| s.experts.is_some());
    let refused = with(&experts.unwrap(), 8, None);
    assert!(matches!(refused, ModelError::NotInChunks { what } if what.contains("experts")));
    let lsp = Lsp {
        compression: 2,
        projector: Projector::Random,
    };
    let refused = with(&tiny_llama(), 8, Some(lsp));
    assert!(matches!(refused, ModelError::NotInChunks { what } if what.contains("lsp")));
    let refused = with(&tiny_llama(), 12, None);
    assert!(
        refused.to_string().contains("train.rows_chunk is 12"),
        "{refused}"
    );
}
