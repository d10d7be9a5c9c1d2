//! Descriptions of every built-in shape keep the rules that the planner relies on.

#[path = "driver/mod.rs"]
mod driver;

use std::collections::{BTreeMap, BTreeSet};

use driver::tiny_shapes;
use lowtide_model::{ModelError, Options, Phase, describe, hf_tensors};
use lowtide_units::{Id, ids};
use lowtide_workload::{
    Access, Batch, Dtype, LocalId, ModelShape, Optimizer, ParamId, Unit, UnitKind, What, Workload,
    builtin_names,
};

fn options(micro_batch: u32, seq: u32, accumulate: u32) -> Options {
    let batch = Batch {
        target: 0,
        micro_batch,
        seq,
        accumulate,
    };
    Options {
        precision: Dtype::Bf16,
        gradient: Dtype::Bf16,
        optimizer: Optimizer::default(),
        frozen: Vec::new(),
        lsp: None,
        batch,
        logits_chunk: 0,
        rows_chunk: 0,
        make: lowtide_device::Make::Cpu,
        attention: lowtide_kernels::attention::Engine::Own,
    }
}

fn every_shape() -> Vec<ModelShape> {
    let mut shapes: Vec<_> = builtin_names()
        .into_iter()
        .map(|n| ModelShape::builtin(n).unwrap())
        .collect();
    shapes.extend(tiny_shapes());
    shapes
}

fn workload(shape: &ModelShape) -> Workload {
    describe(shape, &options(2, 8, 3)).unwrap()
}

#[test]
fn parameters_are_as_many_as_published() {
    for (name, want) in [
        ("llama2-7b", 6_738_415_616),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("gpt3-175b", 174_604_259_328),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
    ] {
        let shape = ModelShape::builtin(name).unwrap();
        assert_eq!(workload(&shape).parameters(), want, "{name}");
    }
}

#[test]
fn files_tensors_cover_every_parameter_once() {
    for shape in every_shape() {
        let workload = workload(&shape);
        let mut filled = vec![0; workload.params.len()];
        let mut names = BTreeSet::new();
        for tensor in hf_tensors(&shape) {
            let filled = &mut filled[tensor.param.idx()];
            assert_eq!(
                tensor.elements().start,
                *filled,
                "{} {}",
                shape.name,
                tensor.name
            );
            *filled = tensor.elements().end;
            let size: u64 = tensor.shape.iter().product();
            assert_eq!(size, tensor.elements().end - tensor.elements().start);
            assert!(names.insert(tensor.name));
        }
        let sizes: Vec<u64> = workload.params.iter().map(|p| p.elements).collect();
        assert_eq!(filled, sizes, "{}", shape.name);
    }
}

/// Local tensors by access, in the order of operations.
fn locals(unit: &Unit, phase: Phase, access: Access) -> Vec<LocalId> {
    let ops = phase.ops(unit).iter().flat_map(|op| &op.operands);
    ops.filter(|o| o.access == access)
        .filter_map(|o| {
            if let What::Local(i) = o.what {
                Some(i)
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn every_tensor_is_written_once_and_before_it_is_read() {
    for shape in every_shape() {
        for unit in &workload(&shape).units {
            let mut used = BTreeSet::new();
            let read = unit.inputs.iter().map(|input| input.tensor);
            let given: Vec<LocalId> = read.chain(unit.d_output).collect();
            let phases: &[&[Phase]] = match unit.kind {
                UnitKind::Head => &[&[Phase::Backward], &[Phase::Evaluate], &[Phase::Infer]],
                _ => &[&[Phase::Forward, Phase::Backward]],
            };
            for run in phases {
                let mut written: BTreeSet<LocalId> = given.iter().copied().collect();
                for phase in *run {
                    for op in phase.ops(unit) {
                        for operand in &op.operands {
                            let What::Local(i) = operand.what else {
                                continue;
                            };
                            used.insert(i);
                            match operand.access {
                                Access::Read => assert!(
                                    written.contains(&i),
                                    "{} {} {} reads {i} unwritten",
                                    shape.name,
                                    unit.name,
                                    op.name
                                ),
                                _ => assert_eq!(operand.access, Access::Write),
                            }
                        }
                        for operand in op.operands.iter().filter(|o| o.access == Access::Write) {
                            if let What::Local(i) = operand.what {
                                assert!(
                                    written.insert(i),
                                    "{} {} {} writes {i} again",
                                    shape.name,
                                    unit.name,
                                    op.name
                                );
                            }
                        }
                    }
                }
            }
            assert_eq!(
                used.len(),
                unit.tensors.len(),
                "{} {}: all used",
                shape.name,
                unit.name
            );
            let names: BTreeSet<_> = unit.tensors.iter().map(|t| &t.name).collect();
            assert_eq!(names.len(), unit.tensors.len(), "names in {}", unit.name);
            if unit.kind != UnitKind::Head {
                let forward = locals(unit, Phase::Forward, Access::Write);
                assert!(forward.contains(&unit.output.unwrap()));
                // Forward does not depend on backward's tensors: recomputing needs no gradient.
                assert!(
                    !locals(unit, Phase::Forward, Access::Read).contains(&unit.d_output.unwrap())
                );
            }
            if unit.kind != UnitKind::Embedding {
                let backward = locals(unit, Phase::Backward, Access::Write);
                let mut gradients = unit.inputs.iter().map(|input| input.gradient);
                assert!(gradients.all(|i| backward.contains(&i)), "{}", unit.name);
            }
        }
    }
}

#[test]
fn neighbours_agree_on_the_tensor_between_them() {
    for shape in every_shape() {
        let workload = workload(&shape);
        for pair in workload.units.windows(2) {
            let bytes = |u: &Unit, i: Option<LocalId>| u.tensors[i.unwrap()].bytes;
            let [input] = pair[1].inputs[..] else {
                panic!("{} reads the unit below", pair[1].name);
            };
            assert_eq!(workload.units[input.unit as usize].name, pair[0].name);
            let (x, dx) = (Some(input.tensor), Some(input.gradient));
            assert_eq!(bytes(&pair[0], pair[0].output), bytes(&pair[1], x));
            assert_eq!(bytes(&pair[0], pair[0].d_output), bytes(&pair[1], dx));
        }
        assert_eq!(workload.units.len(), shape.layers as usize + 2);
        let kinds: Vec<UnitKind> = workload.units.iter().map(|u| u.kind).collect();
        assert_eq!(kinds[0], UnitKind::Embedding);
        assert_eq!(*kinds.last().unwrap(), UnitKind::Head);
    }
}

#[test]
fn every_parameter_is_used_and_has_one_gradient() {
    for shape in every_shape() {
        let workload = workload(&shape);
        let mut gradients: BTreeMap<ParamId, u32> = BTreeMap::new();
        let mut first_use = Vec::new();
        for (i, unit) in workload.units.iter().enumerate() {
            for param in ids(&unit.params) {
                assert_eq!(workload.params[param].unit as usize, i);
            }
            let forward = if unit.kind == UnitKind::Head {
                Phase::Backward
            } else {
                Phase::Forward
            };
            for operand in forward.ops(unit).iter().flat_map(|op| &op.operands) {
                if let What::Weight(p) = operand.what
                    && !first_use.contains(&p)
                {
                    first_use.push(p);
                }
            }
            for operand in unit.backward.iter().flat_map(|op| &op.operands) {
                if let What::Gradient(p) = operand.what {
                    assert_eq!(operand.access, Access::Accumulate);
                    *gradients.entry(p).or_default() += 1;
                }
            }
        }
        let all: Vec<ParamId> = workload.params.ids().collect();
        assert_eq!(first_use, all, "{}: parameters in order of use", shape.name);
        for p in all {
            let want = if p == ParamId(0) && shape.tied { 2 } else { 1 };
            assert_eq!(
                gradients.get(&p),
                Some(&want),
                "{} parameter {p}",
                shape.name
            );
        }
    }
}

#[test]
fn decay_is_for_matrices() {
    for shape in every_shape() {
        for param in workload(&shape).params {
            let vector = param.name.ends_with("_bias") || param.name.contains("norm");
            assert_eq!(param.decay, !vector, "{}", param.name);
        }
    }
}

fn names(unit: &Unit, tensors: &[LocalId]) -> Vec<String> {
    tensors
        .iter()
        .map(|&i| unit.tensors[i].name.clone())
        .collect()
}

#[test]
fn a_llama_block_saves_what_its_backward_reads() {
    let shape = ModelShape::builtin("llama3-8b").unwrap();
    let workload = workload(&shape);
    let block = &workload.units[1];
    assert_eq!(
        names(block, &block.saved()),
        [
            "h1", "rstd1", "qkv", "att", "lse", "x2", "h2", "rstd2", "gate_up", "act"
        ]
    );
    assert!(block.backward_reads_input());
    // Bytes a token of one block, saved, in bf16: 2·(3C + (H+2KV)D + HD + 2F + F) and f32
    // statistics 4·(2 + H).
    let saved: u64 = block
        .saved()
        .iter()
        .map(|&i| block.tensors[i].bytes.0)
        .sum();
    assert_eq!(
        saved,
        16 * (2 * (3 * 4096 + 6144 + 4096 + 3 * 14336) + 4 * (2 + 32))
    );
    let qwen3 = tiny_shapes().into_iter().find(|s| s.qk_norm).unwrap();
    let block = &describe(&qwen3, &options(2, 8, 1)).unwrap().units[1];
    let saved = names(block, &block.saved());
    assert!(saved.contains(&"qkv_raw".to_owned()) && saved.contains(&"qk_rstd".to_owned()));
}

#[test]
fn flops_are_counted_as_everyone_counts_them() {
    let shape = ModelShape::builtin("qwen2.5-3b").unwrap();
    let options = options(1, 2048, 8);
    let workload = describe(&shape, &options).unwrap();
    let token = 6.0 * 3_085_938_688.0 + 6.0 * 36.0 * 2048.0 * 2048.0;
    assert_eq!(workload.model_flops.0, token * 16384.0);
    // The operations' own sum: without the embedding's look-up and the norms and biases, with
    // the head's product once more; here the head is tied, so N counts that product as it is.
    let sum: f64 = workload
        .units
        .iter()
        .flat_map(|u| u.forward.iter().chain(&u.backward))
        .map(|op| op.flops.0)
        .sum();
    // Attention costs 2 forward and 5 backward where the usual count says 2 and 4.
    let more = 36.0 * 2048.0 * 2048.0;
    let vectors: u64 = workload
        .params
        .iter()
        .filter(|p| !p.decay)
        .map(|p| p.elements)
        .sum();
    let want = 2048.0 * (token + more - 6.0 * vectors as f64);
    assert!((sum / want - 1.0).abs() < 1e-12, "{sum} for {want}");
}

/// Of experts those that a token takes: the sums of the operations and of the usual count agree on them.
#[test]
fn flops_of_experts_are_those_of_the_chosen() {
    for (name, active) in [("mixtral-8x7b", 12.9e9), ("qwen3-30b-a3b", 3.35e9)] {
        let shape = ModelShape::builtin(name).unwrap();
        let workload = describe(&shape, &options(1, 64, 1)).unwrap();
        let token = workload.model_flops.0 / 64.0;
        assert!(
            (token / (6.0 * active) - 1.0).abs() < 0.02,
            "{name}: {token}"
        );
        let of = |op: &str| -> f64 {
            let unit = &workload.units[1];
            let all = unit.forward.iter().chain(&unit.backward);
            let all = all.filter(|o| o.key.starts_with(op));
            all.map(|o| o.flops.0).sum()
        };
        let (c, f) = (f64::from(shape.hidden), f64::from(shape.intermediate));
        let k = f64::from(shape.experts.unwrap().chosen);
        assert_eq!(of("grouped."), 64.0 * k * 3.0 * 6.0 * c * f);
    }
}

#[test]
fn equal_blocks_have_equal_keys_and_other_sizes_other_keys() {
    let shape = ModelShape::builtin("llama2-7b").unwrap();
    let keys = |o: &Options, unit: usize| -> Vec<String> {
        let workload = describe(&shape, o).unwrap();
        let unit = &workload.units[unit];
        unit.forward
            .iter()
            .chain(&unit.backward)
            .map(|op| op.key.clone())
            .collect()
    };
    let (small, large) = (options(2, 8, 1), options(4, 8, 1));
    assert_eq!(keys(&small, 1), keys(&small, 32));
    assert!(
        keys(&small, 1)
            .iter()
            .zip(&keys(&large, 1))
            .all(|(a, b)| a != b)
    );
    assert!(keys(&small, 1).contains(&"matmul.forward bf16 m16 n12288 k4096".to_owned()));
}

#[test]
fn logits_chunks_take_about_64_mib() {
    let shape = |vocab| ModelShape {
        vocab,
        ..ModelShape::builtin("llama2-7b").unwrap()
    };
    let rows = |vocab, seq, chunk| {
        Options {
            logits_chunk: chunk,
            make: lowtide_device::Make::Cpu,
            attention: lowtide_kernels::attention::Engine::Own,
            ..options(1, seq, 1)
        }
        .chunk_rows(&shape(vocab))
    };
    assert_eq!(rows(151_936, 4096, 0), 192); // 220 would fit
    assert_eq!(rows(32_000, 4096, 0), 1024);
    assert_eq!(rows(4_000_000, 4096, 0), 64);
    assert_eq!(rows(32_000, 10, 0), 10);
    assert_eq!(rows(32_000, 4096, 100), 100);
    assert_eq!(rows(32_000, 10, 100), 10);
}

/// A pass answers as many prompts as there are rows of logits: one a span.
#[test]
fn rows_are_cut_into_spans_for_answers() {
    let shape = ModelShape {
        max_positions: 2048,
        ..tiny_shapes().remove(0)
    };
    let spans = |micro_batch, seq, attention| {
        let options = Options {
            attention,
            ..options(micro_batch, seq, 1)
        };
        let w = describe(&shape, &options).expect("a workload");
        let head = w.units.last().expect("a head");
        let logits = head.logits.expect("it answers");
        head.tensors[logits].bytes.0 / 4 / u64::from(shape.vocab)
    };
    use lowtide_kernels::attention::Engine;
    assert_eq!(spans(2, 256, Engine::Own), 8, "64 tokens each");
    assert_eq!(spans(3, 32, Engine::Own), 3);
    assert_eq!(spans(1, 64 * 7, Engine::Own), 7);
    assert_eq!(spans(1, 64 * 24, Engine::Own), 8);
    assert_eq!(spans(2, 250, Engine::Own), 4, "two of 125");
    assert_eq!(spans(2, 256, Engine::Cudnn), 2, "one document a row");
}

#[test]
fn sizes_that_do_not_go_together_are_reported() {
    let llama = || ModelShape::builtin("llama2-7b").unwrap();
    let gpt = || ModelShape::builtin("gpt3-13b").unwrap();
    let fails = |shape: &ModelShape, o: &Options, want: &str| match describe(shape, o) {
        Err(ModelError::Dimensions { what, .. }) => assert_eq!(what, want),
        other => panic!("{want}: {:?}", other.map(|w| w.model)),
    };
    let good = options(1, 8, 1);
    fails(
        &ModelShape {
            kv_heads: 5,
            ..llama()
        },
        &good,
        "number of key/value heads",
    );
    fails(
        &ModelShape {
            kv_heads: 0,
            ..llama()
        },
        &good,
        "number of key/value heads",
    );
    fails(
        &ModelShape {
            head_dim: 7,
            ..llama()
        },
        &good,
        "head size",
    );
    fails(
        &ModelShape {
            layers: 0,
            ..llama()
        },
        &good,
        "number of layers",
    );
    fails(
        &ModelShape {
            rope: None,
            ..llama()
        },
        &good,
        "rotary position embedding",
    );
    fails(
        &ModelShape {
            kv_heads: 8,
            ..gpt()
        },
        &good,
        "number of key/value heads",
    );
    fails(
        &ModelShape {
            out_bias: false,
            ..gpt()
        },
        &good,
        "places with biases",
    );
    fails(&llama(), &options(0, 8, 1), "micro-batch");
    fails(&llama(), &options(1, 0, 1), "sequence length");
    fails(&llama(), &options(1, 8, 0), "number of micro-batches");
    fails(&llama(), &options(1, 4097, 1), "sequence length");
    fails(
        &llama(),
        &options(1 << 20, 4096, 1),
        "tokens of a micro-batch",
    );
}
