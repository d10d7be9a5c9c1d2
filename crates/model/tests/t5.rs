//! Models of two stacks against PyTorch (`reference/t5.py`): logits, loss, every gradient by its Hugging Face name, and
//! ten AdamW steps, on the driver that runs every operation in order.

mod driver;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use driver::{Driver, options};
use lowtide_model::{Checkpoint, Options, SafetensorsHeader, hf_tensors, load_shape};
use lowtide_units::Id;
use lowtide_workload::{Access, Batch, Dtype, ModelShape, ParamId, UnitKind, What};

const MODELS: [&str; 2] = ["t5", "t5-v1.1"];
const SOURCE: u32 = 12;
const TARGET: u32 = 9;

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../reference/golden")
        .join(model)
}

/// A file of golden tensors: bytes by name.
struct Case(BTreeMap<String, Vec<u8>>);

impl Case {
    fn open(model: &str) -> Self {
        let path = folder(model).join("golden.safetensors");
        let bytes = std::fs::read(&path).expect("the golden file");
        let file = File::open(&path).expect("just read");
        let header = SafetensorsHeader::read(&path, file, bytes.len() as u64).expect("a header");
        let tensor = |t: lowtide_model::StoredTensor| {
            let part = &bytes[t.begin as usize..(t.begin + t.bytes) as usize];
            (t.name, part.to_vec())
        };
        Self(header.tensors.into_iter().map(tensor).collect())
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let word = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("4 bytes"));
        let bytes = self.0.get(name).unwrap_or_else(|| panic!("no {name}"));
        bytes.chunks_exact(4).map(word).collect()
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        let word = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("8 bytes"));
        self.0[name].chunks_exact(8).map(word).collect()
    }

    fn setting(&self, name: &str) -> f64 {
        self.f64s(&format!("settings.{name}"))[0]
    }

    fn planes(&self) -> Vec<i32> {
        let word = |b: &[u8]| i32::from_le_bytes(b.try_into().expect("4 bytes"));
        let plane = |name: &str| self.0[name].chunks_exact(4).map(word).collect::<Vec<_>>();
        ["tokens", "labels", "positions", "doc_start"]
            .map(plane)
            .concat()
    }
}

fn batch() -> Batch {
    Batch {
        micro_batch: 2,
        seq: SOURCE,
        accumulate: 1,
        target: TARGET,
    }
}

fn with_targets() -> Options {
    Options {
        batch: batch(),
        ..options(Dtype::F32, 2, SOURCE)
    }
}

fn opened(model: &str, case: &Case) -> (Driver, ModelShape) {
    let shape = load_shape(&folder(model)).expect("a supported config.json");
    let mut driver = Driver::new(&shape, &with_targets(), 2);
    driver.set_inputs(&case.planes());
    let weights = Checkpoint::open(&folder(model), &shape).expect("the weights fit the shape");
    for p in driver.params() {
        let elements = driver.decoder.workload().params[p].elements;
        let mut values = vec![f32::NAN; elements as usize];
        weights
            .read(p, 0..elements, &mut values)
            .expect("its weights");
        driver.set_weight(p, &values);
    }
    (driver, shape)
}

/// |a - b| / |b| by norm.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let wide = |x: &f32| f64::from(*x);
    let far = norm(&mut a.iter().zip(b).map(|(a, b)| wide(a) - wide(b)));
    far / norm(&mut b.iter().map(wide))
}

#[test]
fn two_stacks_are_those_of_pytorch() {
    for model in MODELS {
        let case = Case::open(model);
        let (mut driver, shape) = opened(model, &case);
        let labels =
            &case.planes()[(2 * (SOURCE + TARGET)) as usize..][..(2 * (SOURCE + TARGET)) as usize];
        let count = labels.iter().filter(|&&l| l >= 0).count() as f32;
        let [sum, _] = driver.step(1.0 / count);
        let (loss, want) = (sum / f64::from(count), f64::from(case.f32s("loss")[0]));
        assert!(
            (loss - want).abs() / want < 1e-5,
            "{model}: {loss} for {want}"
        );
        let mut named = 0;
        for tensor in hf_tensors(&shape) {
            let gradient = driver.gradient(tensor.param);
            let own = tensor.elements();
            let part = &gradient[own.start as usize..own.end as usize];
            let far = distance(part, &case.f32s(&format!("grad.{}", tensor.name)));
            assert!(
                far < 1e-4,
                "{model}: the gradient of {} is off by {far:e}",
                tensor.name
            );
            named += 1;
        }
        let all = case.0.keys().filter(|name| name.starts_with("grad."));
        assert_eq!(named, all.count(), "{model}: every gradient");

        // Logits of every position: a row of them for each row of targets.
        let (v, targets) = (shape.vocab as usize, TARGET as usize);
        let first = (2 * SOURCE) as usize;
        let want = case.f32s("logits");
        for place in 0..targets {
            let marked: Vec<usize> = (0..2).map(|row| first + row * targets + place).collect();
            driver.mark(&marked);
            let logits = driver.infer();
            for row in 0..2 {
                // Places without a token have none to compare with.
                if labels[first + row * targets + place] < 0 {
                    continue;
                }
                let want = &want[(row * targets + place) * v..][..v];
                let far = distance(&logits[row * v..][..v], want);
                assert!(
                    far < 1e-4,
                    "{model}: logits {row} {place} are off by {far:e}"
                );
            }
        }
    }
}

#[test]
fn ten_steps_are_those_of_pytorch() {
    for model in MODELS {
        let case = Case::open(model);
        let (mut driver, _) = opened(model, &case);
        let labels =
            &case.planes()[(2 * (SOURCE + TARGET)) as usize..][..(2 * (SOURCE + TARGET)) as usize];
        let count = labels.iter().filter(|&&l| l >= 0).count() as f32;
        let params: Vec<ParamId> = driver.params().collect();
        let mut state: Vec<Vec<(f64, f64, f64)>> = Vec::new();
        for &p in &params {
            let weights = driver.weight(p);
            state.push(weights.iter().map(|&w| (f64::from(w), 0.0, 0.0)).collect());
        }
        let [lr, b1, b2, eps, decay, most] =
            ["lr", "beta1", "beta2", "eps", "weight_decay", "max_norm"].map(|n| case.setting(n));
        let (losses, norms) = (case.f64s("losses"), case.f64s("grad_norms"));
        for (step, (want, norm)) in (1..).zip(losses.iter().zip(&norms)) {
            driver.new_batch();
            driver.forget_locals();
            let [sum, _] = driver.step(1.0 / count);
            let loss = sum / f64::from(count);
            assert!(
                (loss - want).abs() / want < 1e-5,
                "{model} {step}: {loss} for {want}"
            );
            let gradients: Vec<Vec<f32>> = params.iter().map(|&p| driver.gradient(p)).collect();
            let squares = gradients.iter().flatten().map(|&g| f64::from(g).powi(2));
            let have = squares.sum::<f64>().sqrt();
            assert!(
                (have - norm).abs() / norm < 1e-4,
                "{model} {step}: norm {have} for {norm}"
            );
            let factor = (most / (have + 1e-6)).min(1.0);
            for ((&p, gradient), state) in params.iter().zip(&gradients).zip(&mut state) {
                let decays = driver.decoder.workload().params[p].decay;
                for ((w, m, v), g) in state.iter_mut().zip(gradient) {
                    let g = f64::from(*g) * factor;
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    let (m, v) = (*m / (1.0 - b1.powi(step)), *v / (1.0 - b2.powi(step)));
                    *w -= lr * (if decays { decay * *w } else { 0.0 } + m / (v.sqrt() + eps));
                }
                let values: Vec<f32> = state.iter().map(|s| s.0 as f32).collect();
                driver.set_weight(p, &values);
            }
        }
    }
}

/// Every block of a stack adds to the gradient of what they all read, and the last one overwrites it; every parameter
/// has a gradient.
#[test]
fn what_several_units_read_adds_up() {
    let shape = load_shape(&folder("t5")).expect("a supported config.json");
    let w = lowtide_model::describe(&shape, &with_targets()).expect("it fits");
    let names: Vec<&str> = w.units.iter().map(|u| u.name.as_str()).collect();
    let end = names
        .iter()
        .position(|n| *n == "encoder.end")
        .expect("an end");
    assert_eq!(w.units[0].kind, UnitKind::Embedding);
    let readers = |unit: usize| {
        let reads = |u: &&lowtide_workload::Unit| u.inputs.iter().any(|i| i.unit as usize == unit);
        w.units.iter().filter(reads).count()
    };
    assert_eq!((readers(1), readers(end), readers(end + 2)), (2, 3, 3));
    for unit in &w.units {
        let adds = unit.backward.iter().flat_map(|op| &op.operands);
        let adds =
            adds.filter(|o| matches!(o.what, What::Local(_)) && o.access == Access::Accumulate);
        let last = unit.name.ends_with("blocks.1") && unit.name.starts_with('e')
            || unit.name.ends_with("blocks.2");
        let want = match &unit.name {
            n if !n.contains("blocks") || last => 0,
            n if n.starts_with('e') => 1,
            _ => 2,
        };
        assert_eq!(adds.count(), want, "{}", unit.name);
    }
    for p in w.params.ids() {
        let all = w
            .units
            .iter()
            .flat_map(|u| &u.backward)
            .flat_map(|op| &op.operands);
        let shares = all.filter(|o| o.what == What::Gradient(p)).count();
        let want = if p.idx() == 0 { 3 } else { 1 };
        assert_eq!(shares, want, "{}", w.params[p].name);
    }
}

/// A configuration that is written is read as the same shape; what is not supported is refused by its key.
#[test]
fn configurations_go_round() {
    for model in MODELS {
        let shape = load_shape(&folder(model)).expect("a supported config.json");
        let mut json = lowtide_model::config_json(&shape, Dtype::F32);
        let again = lowtide_model::parse_config(&json, &shape.name).expect("its own");
        assert_eq!(again, shape);
        json["feed_forward_proj"] = "gated-silu".into();
        let said = lowtide_model::parse_config(&json, "t5").expect_err("another MLP");
        assert!(said.to_string().contains("feed_forward_proj"), "{said}");
        let batch = |target| Batch { target, ..batch() };
        let describe = |batch| {
            let options = Options {
                batch,
                ..with_targets()
            };
            lowtide_model::describe(&shape, &options)
                .expect_err("sizes")
                .to_string()
        };
        assert!(describe(batch(0)).contains("length of targets"));
        let frozen = Options {
            frozen: vec![ParamId(1)],
            ..with_targets()
        };
        let said = lowtide_model::describe(&shape, &frozen).expect_err("frozen");
        assert!(
            said.to_string().contains("with frozen parameters"),
            "{said}"
        );
    }
}

/// What transformers 5 saves says in keys of its own whether the decoder's output is scaled and what the MLP's
/// activation is, and that embeddings are tied in every model.
#[test]
fn configurations_of_transformers_5_are_read_as_it_reads_them() {
    for model in MODELS {
        let shape = load_shape(&folder(model)).expect("a supported config.json");
        let (scaled, gated) = (shape.tied, model == "t5-v1.1");
        let act = if gated { "gelu_new" } else { "relu" };
        let mut json = lowtide_model::config_json(&shape, Dtype::F32);
        json["tie_word_embeddings"] = true.into();
        json["scale_decoder_outputs"] = scaled.into();
        json["dense_act_fn"] = act.into();
        json["is_gated_act"] = gated.into();
        let read = lowtide_model::parse_config(&json, &shape.name).expect("as it is saved");
        assert_eq!(read, shape);
        for (key, value) in [
            ("dense_act_fn", serde_json::json!("silu")),
            ("is_gated_act", (!gated).into()),
        ] {
            let mut other = json.clone();
            other[key] = value;
            let said = lowtide_model::parse_config(&other, "t5").expect_err(key);
            assert!(said.to_string().contains(key), "{said}");
        }
        json["tie_word_embeddings"] = false.into();
        json["scale_decoder_outputs"] = true.into();
        let said = lowtide_model::parse_config(&json, "t5").expect_err("a head that is scaled");
        assert!(said.to_string().contains("scale_decoder_outputs"), "{said}");
    }
}

/// A name to choose from for each tensor of a block of either stack.
#[test]
fn a_pattern_that_names_nothing_is_refused_with_the_names_of_both_stacks() {
    let shape = load_shape(&folder("t5")).expect("a supported config.json");
    let said = lowtide_model::frozen(&shape, &["encoder.blocks".to_owned()], &[]);
    let said = said.expect_err("no such tensor").to_string();
    assert!(
        said.starts_with("train.freeze: `encoder.blocks` names no tensor"),
        "{said}"
    );
    for name in [
        "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "decoder.block.0.layer.1.EncDecAttention.v.weight",
        "decoder.final_layer_norm.weight",
    ] {
        assert_eq!(said.matches(name).count(), 1, "{name}: {said}");
    }
    assert!(!said.contains("block.1."), "{said}");
}

/// Files of the first T5 have tensors that nobody reads.
#[test]
fn what_files_have_beside_is_left_out() {
    let folder = folder("t5");
    let shape = load_shape(&folder).expect("a supported config.json");
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let dir = tempfile::tempdir().expect("a directory");
    let with = |name: &str| {
        let mut header: serde_json::Value =
            serde_json::from_slice(&bytes[8..8 + n]).expect("a header");
        let end = bytes.len() - 8 - n;
        header[name] =
            serde_json::json!({"dtype": "F32", "shape": [1, 1], "data_offsets": [end, end + 4]});
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length, header.as_bytes(), &bytes[8 + n..], &[0; 4]].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).expect("written");
        Checkpoint::open(dir.path(), &shape)
    };
    for name in [
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ] {
        with(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let said = with("decoder.embed_positions.weight").expect_err("another tensor");
    assert!(said.to_string().contains("embed_positions"), "{said}");
}
