//! Checkpoints in and out of Hugging Face directories, checked with the reference implementation
//! of the format, and files that lie.
//!
//! One file because every test here writes with the same few lines what another one reads.

#[path = "driver/mod.rs"]
mod driver;

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use driver::{tiny_gpt2, tiny_llama, tiny_shapes};
use half::{bf16, f16};
use lowtide_model::{
    Checkpoint, FileDtype, HfTensor, HfWriter, ModelError, SafetensorsHeader, config_json,
    hf_tensors, load_shape, random_init,
};
use lowtide_units::Id;
use lowtide_workload::{Dtype, Family, ModelShape, ParamId};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn elements(shape: &ModelShape) -> Vec<u64> {
    let mut sizes = Vec::new();
    for tensor in hf_tensors(shape) {
        sizes.resize(tensor.param.idx() + 1, 0);
        sizes[tensor.param.idx()] = tensor.elements().end;
    }
    sizes
}

fn random(shape: &ModelShape, param: u32, range: Range<u64>) -> Vec<f32> {
    let mut values = vec![f32::NAN; (range.end - range.start) as usize];
    random_init(shape, 9, ParamId(param), range, &mut values);
    values
}

fn export(shape: &ModelShape, writer: &HfWriter<'_>, dir: &Path) -> Result<(), ModelError> {
    writer.write(dir, |param, range, out: &mut [f32]| {
        random_init(shape, 9, param, range, out);
        Ok(())
    })
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_back() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for shape in tiny_shapes() {
            let dir = tempfile::tempdir().unwrap();
            export(&shape, &HfWriter::new(&shape, dtype, None), dir.path()).unwrap();
            assert_eq!(names(dir.path()), ["config.json", "model.safetensors"]);
            let loaded = load_shape(dir.path()).unwrap();
            assert_eq!(
                ModelShape {
                    name: shape.name.clone(),
                    ..loaded
                },
                shape
            );
            let checkpoint = Checkpoint::open(dir.path(), &shape).unwrap();
            let total: u64 = elements(&shape).iter().sum();
            assert_eq!(checkpoint.bytes(), total * dtype.size());
            for (param, n) in elements(&shape).into_iter().enumerate() {
                let mut want = random(&shape, param as u32, 0..n);
                if dtype == Dtype::Bf16 {
                    want.iter_mut()
                        .for_each(|v| *v = bf16::from_f32(*v).to_f32());
                }
                for range in [0..n, 0..1, n - 1..n, n / 3..n - n / 5, n / 2..n / 2] {
                    let mut got = vec![f32::NAN; (range.end - range.start) as usize];
                    checkpoint
                        .read(ParamId::new(param), range.clone(), &mut got)
                        .unwrap();
                    let want = &want[range.start as usize..range.end as usize];
                    assert_eq!(got, want, "{} parameter {param} {range:?}", shape.name);
                }
            }
        }
    }
}

/// Every tensor as the `safetensors` crate sees it.
fn stored(bytes: &[u8]) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let values = |data: &[u8]| {
        data.chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    file.iter()
        .map(|(n, t)| (n.to_owned(), (t.shape().to_vec(), values(t.data()))))
        .collect()
}

#[test]
fn others_read_what_is_written() {
    for shape in tiny_shapes() {
        let dir = tempfile::tempdir().unwrap();
        export(&shape, &HfWriter::new(&shape, Dtype::F32, None), dir.path()).unwrap();
        let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!((8 + header) % 4096, 0);
        let stored = stored(&bytes);
        let tensors = hf_tensors(&shape);
        assert_eq!(stored.len(), tensors.len());
        for HfTensor {
            name, shape: want, ..
        } in &tensors
        {
            let have: Vec<u64> = stored[name].0.iter().map(|&n| n as u64).collect();
            assert_eq!(&have, want, "{name}");
        }
    }
}

#[test]
fn rows_and_columns_land_where_transformers_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let llama = tiny_llama();
    export(&llama, &HfWriter::new(&llama, Dtype::F32, None), dir.path()).unwrap();
    let file = stored(&fs::read(dir.path().join("model.safetensors")).unwrap());
    // Parameters of block 0: norm1, qkv, o, norm2, gate_up, ... behind the embedding.
    let (qkv, gate_up) = (random(&llama, 2, 0..48 * 20), random(&llama, 5, 0..56 * 20));
    let at = |name: &str| &file[&format!("model.layers.0.{name}.weight")].1;
    assert_eq!(at("self_attn.q_proj"), &qkv[..24 * 20]);
    assert_eq!(at("self_attn.k_proj"), &qkv[24 * 20..36 * 20]);
    assert_eq!(at("self_attn.v_proj"), &qkv[36 * 20..]);
    assert_eq!(at("mlp.gate_proj"), &gate_up[..28 * 20]);
    assert_eq!(at("mlp.up_proj"), &gate_up[28 * 20..]);

    let dir = tempfile::tempdir().unwrap();
    let gpt2 = tiny_gpt2();
    export(&gpt2, &HfWriter::new(&gpt2, Dtype::F32, None), dir.path()).unwrap();
    let file = stored(&fs::read(dir.path().join("model.safetensors")).unwrap());
    let qkv = random(&gpt2, 4, 0..60 * 20);
    let (shape, values) = &file["transformer.h.0.attn.c_attn.weight"];
    assert_eq!(shape, &[20, 60]);
    for (i, value) in values.iter().enumerate() {
        let (input, output) = (i / 60, i % 60);
        assert_eq!(*value, qkv[output * 20 + input]);
    }
}

#[test]
fn shards_are_cut_by_size_and_read_through_their_index() {
    for shape in [tiny_llama(), tiny_gpt2()] {
        let dir = tempfile::tempdir().unwrap();
        let writer = HfWriter::new(&shape, Dtype::F32, None).shard_bytes(6000);
        export(&shape, &writer, dir.path()).unwrap();
        let names = names(dir.path());
        let shards: Vec<&String> = names
            .iter()
            .filter(|n| n.ends_with(".safetensors"))
            .collect();
        assert!(shards.len() > 5, "{names:?}");
        assert_eq!(
            *shards[0],
            format!("model-00001-of-{:05}.safetensors", shards.len())
        );
        assert!(!names.iter().any(|n| n.ends_with(".tmp")));
        for shard in &shards {
            let bytes = fs::read(dir.path().join(shard)).unwrap();
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let count = SafeTensors::deserialize(&bytes).unwrap().len();
            assert!(bytes.len() - header <= 6000 || count == 1);
        }
        let checkpoint = Checkpoint::open(dir.path(), &shape).unwrap();
        for (param, n) in elements(&shape).into_iter().enumerate() {
            let mut got = vec![f32::NAN; n as usize];
            checkpoint
                .read(ParamId::new(param), 0..n, &mut got)
                .unwrap();
            assert_eq!(got, random(&shape, param as u32, 0..n));
        }
        let index = fs::read(dir.path().join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let total: u64 = elements(&shape).iter().sum();
        assert_eq!(index["metadata"]["total_size"], total * 4);
    }
}

#[test]
fn half_precision_is_rounded_once_and_numbers_beyond_a_type_are_refused() {
    for shape in [tiny_llama(), tiny_gpt2()] {
        let dir = tempfile::tempdir().unwrap();
        let writer = HfWriter::new(&shape, FileDtype::F16, None);
        export(&shape, &writer, dir.path()).unwrap();
        let checkpoint = Checkpoint::open(dir.path(), &shape).unwrap();
        for (param, n) in elements(&shape).into_iter().enumerate() {
            let want = random(&shape, param as u32, 0..n);
            let mut got = vec![f32::NAN; n as usize];
            checkpoint
                .read(ParamId::new(param), 0..n, &mut got)
                .unwrap();
            let rounded = want.iter().map(|v| f16::from_f32(*v).to_f32());
            assert!(rounded.eq(got), "{} parameter {param}", shape.name);
        }
        let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
        assert!(config.contains("float16") && !config.contains("bfloat16"));
        // 65519.996 is the last number that rounds to 65504; the second layer's matrix of values, transposed in
        // GPT-2's file.
        let (name, row, col) = match shape.family {
            Family::Gpt2 => ("transformer.h.1.attn.c_attn.weight", 2, 3),
            _ => ("model.layers.1.mlp.up_proj.weight", 2, 3),
        };
        let tensors = hf_tensors(&shape);
        let tensor = tensors.iter().find(|t| t.name == name).unwrap();
        let at = tensor.elements().start + row * tensor.cols + col;
        let (most, bf16_ends) = (f32::from_bits(0x7f7f_7fff), f32::from_bits(0x7f7f_8000));
        for (dtype, value, fits) in [
            (FileDtype::F16, 65519.996, true),
            (FileDtype::F16, -65520.0, false),
            (FileDtype::F16, f32::NAN, false),
            (FileDtype::Bf16, most, true),
            (FileDtype::Bf16, -bf16_ends, false),
            (FileDtype::Bf16, f32::NAN, false),
            (FileDtype::F32, f32::MAX, true),
            (FileDtype::F32, f32::NEG_INFINITY, false),
            (FileDtype::F32, f32::NAN, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let writer = HfWriter::new(&shape, dtype, None);
            let done = writer.write(dir.path(), |param, range, out: &mut [f32]| {
                random_init(&shape, 9, param, range.clone(), out);
                if param == tensor.param && range.contains(&at) {
                    out[(at - range.start) as usize] = value;
                }
                Ok::<(), ModelError>(())
            });
            match done {
                Ok(()) => assert!(fits),
                Err(ModelError::Beyond { tensor, place, .. }) => {
                    let stored = match shape.family {
                        Family::Gpt2 => [col, row],
                        _ => [row, col],
                    };
                    assert_eq!((&*tensor, &*place), (name, &stored[..]));
                    assert!(!fits);
                    assert_eq!(names(dir.path()), ["config.json"]);
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}

#[test]
fn an_export_keeps_configuration_and_tokenizer() {
    let (shape, from, to) = (
        tiny_llama(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let mut config = config_json(&shape, Dtype::F32);
    config["eos_token_id"] = json!(7);
    fs::write(from.path().join("config.json"), config.to_string()).unwrap();
    fs::write(from.path().join("tokenizer.json"), "{}").unwrap();
    fs::write(from.path().join("notes.txt"), "private").unwrap();
    // Files that nobody reads are copied whatever is in them.
    let pointer = "version https://git-lfs.github.com/spec/v1\n";
    fs::write(from.path().join("tokenizer.model"), pointer).unwrap();
    fs::write(from.path().join("merges.txt"), "").unwrap();
    let writer = HfWriter::new(&shape, Dtype::Bf16, Some(from.path()));
    export(&shape, &writer, to.path()).unwrap();
    assert_eq!(
        names(to.path()),
        [
            "config.json",
            "merges.txt",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer.model"
        ]
    );
    let copied = fs::read(to.path().join("tokenizer.model")).unwrap();
    assert_eq!(copied, pointer.as_bytes());
    let config: Value =
        serde_json::from_slice(&fs::read(to.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["eos_token_id"], 7);
    assert_eq!(config["torch_dtype"], "bfloat16");
    let again = export(&shape, &writer, to.path()).unwrap_err();
    assert!(matches!(again, ModelError::ExportExists { .. }), "{again}");
}

#[test]
fn a_failed_export_leaves_no_model() {
    let (shape, dir) = (tiny_llama(), tempfile::tempdir().unwrap());
    let writer = HfWriter::new(&shape, Dtype::F32, None).shard_bytes(6000);
    let mut calls = 0;
    let failed = writer.write(dir.path(), |_, _, out: &mut [f32]| {
        calls += 1;
        out.fill(0.0);
        if calls < 12 {
            return Ok(());
        }
        Err(ModelError::NoWeights {
            dir: "planted".into(),
            found: None,
        })
    });
    assert!(matches!(failed, Err(ModelError::NoWeights { .. })));
    assert_eq!(names(dir.path()), ["config.json"]);
}

#[test]
fn random_values_do_not_depend_on_the_pieces() {
    let shape = ModelShape {
        hidden: 300,
        vocab: 400,
        ..tiny_llama()
    };
    let whole = random(&shape, 0, 0..120_000);
    for range in [0..1, 3..9, 16_383..16_385, 1..119_999, 77_777..99_999] {
        let part = random(&shape, 0, range.clone());
        assert_eq!(
            part,
            whole[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
    let moments = |values: &[f32]| {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (
            mean,
            (values
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>()
                / n)
                .sqrt(),
        )
    };
    let (mean, std) = moments(&whole);
    assert!(
        mean.abs() < 3e-4 && (std - 0.02).abs() < 3e-4,
        "{mean} {std}"
    );
    // `down` of block 0 adds to the residual stream: 0.02 / sqrt(2 * 2 layers).
    let (_, std) = moments(&random(&shape, 6, 0..300 * 28));
    assert!((std - 0.01).abs() < 5e-4, "{std}");
    assert_eq!(random(&shape, 1, 0..300), vec![1.0; 300]);
    let mut other = vec![0.0; 1000];
    random_init(&shape, 10, ParamId(0), 0..1000, &mut other);
    assert_ne!(other, whole[..1000], "another seed");
    assert_ne!(
        random(&shape, 2, 0..1000),
        whole[..1000],
        "another parameter"
    );
}

/// A file of this header and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn parse(bytes: &[u8]) -> Result<SafetensorsHeader, ModelError> {
    SafetensorsHeader::read(Path::new("hostile"), bytes, bytes.len() as u64)
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

#[test]
fn headers_that_lie_are_refused_each_for_its_reason() {
    let one = |e: &str, data| parse(&file(&format!("{{{e}}}"), data));
    let good = entry("a", "F32", "[2,3]", 0, 24);
    assert_eq!(one(&good, 24).unwrap().tensors[0].bytes, 24);
    assert_eq!(one("", 0).unwrap().tensors.len(), 0);
    let scalar = entry("a", "BF16", "[]", 0, 2);
    assert_eq!(one(&scalar, 2).unwrap().tensors[0].bytes, 2);

    macro_rules! fails {
        ($result:expr, $pattern:pat) => {
            match $result {
                Err($pattern) => {}
                other => panic!("{}: {other:?}", stringify!($pattern)),
            }
        };
    }
    use ModelError as E;
    fails!(
        parse(b"short"),
        E::HeaderLength {
            need: 8,
            have: 5,
            ..
        }
    );
    fails!(
        parse(&u64::MAX.to_le_bytes()),
        E::HeaderLength {
            need: u64::MAX,
            have: 0,
            ..
        }
    );
    // The largest header that is accepted, in a file that ends behind its length.
    let stated = 100_000_000u64.to_le_bytes();
    let read = SafetensorsHeader::read(Path::new("h"), &stated[..], 1 << 40);
    fails!(
        read,
        E::HeaderLength {
            need: 100_000_000,
            have: 0,
            ..
        }
    );
    let stated = 100_000_001u64.to_le_bytes();
    let read = SafetensorsHeader::read(Path::new("h"), &stated[..], 1 << 40);
    fails!(
        read,
        E::HeaderLength {
            have: 100_000_000,
            ..
        }
    );
    fails!(parse(&file("{", 0)), E::Header { .. });
    fails!(parse(&file("[]", 0)), E::Header { .. });
    fails!(parse(&file("{} {}", 0)), E::Header { .. });
    fails!(parse(&file(&"[".repeat(100_000), 0)), E::Header { .. });
    fails!(
        one(&good, 23),
        E::DataLength {
            need: 24,
            have: 23,
            ..
        }
    );
    fails!(
        one(&good, 25),
        E::DataLength {
            need: 24,
            have: 25,
            ..
        }
    );
    fails!(
        one(&entry("a", "F32", "[2]", 4, 12), 12),
        E::Offset {
            need: 0,
            have: 4,
            ..
        }
    );
    fails!(
        one(&entry("a", "F32", "[2,3]", 0, 20), 20),
        E::TensorBytes {
            need: 24,
            have: 20,
            ..
        }
    );
    fails!(
        one(&entry("a", "F32", "[2]", 0, 0), 0),
        E::TensorBytes { need: 8, .. }
    );
    let huge = entry("a", "F32", "[4294967296,4294967296]", 0, 24);
    fails!(one(&huge, 24), E::TensorBytes { need: u64::MAX, .. });
    // Sizes that add up to the last byte that 64 bits can name.
    let all = entry("a", "U8", "[18446744073709551615]", 0, u64::MAX);
    let beyond = format!("{all},{}", entry("b", "U8", "[0]", u64::MAX, u64::MAX));
    fails!(
        one(&beyond, 24),
        E::DataLength {
            need: u64::MAX,
            have: 24,
            ..
        }
    );
    fails!(one(&entry("a", "F32", "[-1]", 0, 4), 4), E::Header { .. });
    fails!(
        one(&entry("a", "Q4", "[2]", 0, 1), 1),
        E::TensorDtype { .. }
    );
    let overlap = format!("{good},{}", entry("b", "F32", "[2]", 20, 28));
    fails!(
        one(&overlap, 28),
        E::Offset {
            need: 24,
            have: 20,
            ..
        }
    );
    let gap = format!("{good},{}", entry("b", "F32", "[2]", 28, 36));
    fails!(
        one(&gap, 36),
        E::Offset {
            need: 24,
            have: 28,
            ..
        }
    );
    let twice = format!("{good},{}", entry("a", "F32", "[2]", 24, 32));
    fails!(one(&twice, 32), E::DuplicateTensor { .. });
    fails!(
        one(&entry("a", "F32", "[1]", u64::MAX, 3), 4),
        E::Offset { have: u64::MAX, .. }
    );
}

/// The bytes of a small valid model.
fn model_bytes(shape: &ModelShape) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    export(shape, &HfWriter::new(shape, Dtype::F32, None), dir.path()).unwrap();
    fs::read(dir.path().join("model.safetensors")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Whatever happens to a header: an error, or tensors that lie inside the file.
    #[test]
    fn mutated_headers_never_escape_the_file(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4), 1..12),
        in_length in prop::option::of((0usize..8, any::<u8>())),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let header = format!(
            "{{\"__metadata__\":{{\"format\":\"pt\"}},{},{},{}}}",
            entry("a", "F32", "[2,3]", 0, 24),
            entry("b", "BF16", "[4]", 24, 32),
            entry("c", "U8", "[0]", 32, 32),
        );
        let mut bytes = file(&header, 32);
        let end = 8 + header.len();
        for (at, byte, how) in edits {
            let at = 8 + at.index(end - 8);
            match how {
                0 => bytes[at] = byte,
                1 => bytes[at] = b'0' + byte % 10,
                2 => bytes.insert(at, b"0123456789{}[]\",:-e. "[usize::from(byte) % 21]),
                _ => { bytes.remove(at); }
            }
        }
        // Most edits keep the stated length right, so that parsing gets further.
        let length = (bytes.len() - 32 - 8) as u64;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        if let Some((at, byte)) = in_length {
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        if let Ok(header) = parse(&bytes) {
            let mut at = header.data_start;
            for tensor in header.tensors {
                prop_assert_eq!(tensor.begin, at);
                at += tensor.bytes;
            }
            prop_assert_eq!(at, bytes.len() as u64);
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }
}

/// Writes tensors with the reference implementation.
fn write_with_reference(
    path: &Path,
    tensors: &[(String, safetensors::Dtype, Vec<usize>, Vec<u8>)],
) {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (
            name,
            safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The model's tensors, each number its position, in `dtype`.
fn counted(
    shape: &ModelShape,
    dtype: safetensors::Dtype,
) -> Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = |n: u64| -> Vec<u8> {
        let numbers = (0..n).map(|i| (i % 251) as f32);
        match dtype {
            safetensors::Dtype::F16 => numbers
                .flat_map(|v| f16::from_f32(v).to_le_bytes())
                .collect(),
            safetensors::Dtype::BF16 => numbers
                .flat_map(|v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            safetensors::Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            _ => vec![0; n as usize * 8],
        }
    };
    hf_tensors(shape)
        .into_iter()
        .map(|t| {
            let data = bytes(t.shape.iter().product());
            (
                t.name,
                dtype,
                t.shape.iter().map(|&n| n as usize).collect(),
                data,
            )
        })
        .collect()
}

#[test]
fn others_files_are_read_in_every_type_and_without_prefixes() {
    use safetensors::Dtype::{BF16, F16, F32};
    let partly = tiny_shapes().into_iter();
    let partly = partly.filter(|s| s.rope.as_ref().is_some_and(|r| r.width.is_some()));
    for shape in [tiny_llama(), tiny_gpt2()].into_iter().chain(partly) {
        for (dtype, prefixed) in [(F32, true), (F16, false), (BF16, false)] {
            let dir = tempfile::tempdir().unwrap();
            let mut tensors = counted(&shape, dtype);
            for tensor in &mut tensors {
                if !prefixed {
                    let name = tensor.0.strip_prefix("model.").unwrap_or(&tensor.0);
                    tensor.0 = name.strip_prefix("transformer.").unwrap_or(name).to_owned();
                }
            }
            // What some checkpoints carry beside the weights.
            if shape.family == Family::Gpt2 {
                tensors.push(("h.0.attn.bias".into(), F32, vec![1], vec![0; 4]));
            }
            let inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq";
            tensors.push((inv_freq.into(), F32, vec![1], vec![0; 4]));
            write_with_reference(&dir.path().join("model.safetensors"), &tensors);

            let checkpoint = Checkpoint::open(dir.path(), &shape).unwrap();
            for tensor in hf_tensors(&shape) {
                let range = tensor.elements();
                let mut got = vec![f32::NAN; (range.end - range.start) as usize];
                checkpoint
                    .read(tensor.param, range.clone(), &mut got)
                    .unwrap();
                for (i, value) in (0..).zip(got) {
                    let at = tensor.in_file(i);
                    assert_eq!(value, (at % 251) as f32, "{} {i}", tensor.name);
                }
            }
        }
    }
}

#[test]
fn checkpoints_of_another_model_are_refused_by_name() {
    use safetensors::Dtype::{F32, F64};
    type Tensors = Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>;
    let shape = tiny_llama();
    let open = |change: &dyn Fn(&mut Tensors)| {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = counted(&shape, F32);
        change(&mut tensors);
        write_with_reference(&dir.path().join("model.safetensors"), &tensors);
        Checkpoint::open(dir.path(), &shape)
    };
    let at = |tensors: &Tensors, name: &str| tensors.iter().position(|t| t.0 == name).unwrap();
    let norm = "model.layers.1.input_layernorm.weight";

    let missing = open(&|t| {
        t.remove(at(t, norm));
    });
    match missing {
        Err(ModelError::MissingTensors { tensors, .. }) => assert_eq!(tensors, [norm]),
        other => panic!("{other:?}"),
    }
    let extra = "model.layers.0.self_attn.q_norm.weight";
    match open(&|t| t.push((extra.to_owned(), F32, vec![6], vec![0; 24]))) {
        Err(ModelError::UnexpectedTensors { tensors, .. }) => assert_eq!(tensors, [extra]),
        other => panic!("{other:?}"),
    }
    match open(&|t| {
        let i = at(t, norm);
        (t[i].2, t[i].3) = (vec![19], vec![0; 76]);
    }) {
        Err(ModelError::TensorShape {
            tensor, need, have, ..
        }) => {
            assert_eq!((tensor.as_str(), need, have), (norm, vec![20], vec![19]));
        }
        other => panic!("{other:?}"),
    }
    match open(&|t| {
        let i = at(t, norm);
        (t[i].1, t[i].3) = (F64, vec![0; 160]);
    }) {
        Err(ModelError::TensorDtype { dtype, .. }) => assert_eq!(dtype, "F64"),
        other => panic!("{other:?}"),
    }
    match open(&|t| t.push((norm[6..].to_owned(), F32, vec![20], vec![0; 80]))) {
        Err(ModelError::DuplicateTensor { .. }) => {}
        other => panic!("{other:?}"),
    }
    let empty = tempfile::tempdir().unwrap();
    let none = Checkpoint::open(empty.path(), &shape);
    assert!(matches!(none, Err(ModelError::NoWeights { .. })));
}

#[test]
fn an_index_cannot_point_elsewhere() {
    let shape = tiny_llama();
    let bytes = model_bytes(&shape);
    for (tensor, shard) in [
        ("lm_head.weight", "../weights.safetensors"),
        ("lm_head.weight", "/etc/passwd"),
        ("lm_head.weight", ".."),
        ("no.such.tensor", "part.safetensors"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("part.safetensors"), &bytes).unwrap();
        let index = json!({"metadata": {}, "weight_map": {tensor: shard}});
        let path = dir.path().join("model.safetensors.index.json");
        fs::write(path, index.to_string()).unwrap();
        match Checkpoint::open(dir.path(), &shape) {
            Err(ModelError::Index {
                tensor: t,
                shard: s,
                ..
            }) => {
                assert_eq!((t.as_str(), s.as_str()), (tensor, shard));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_that_shrinks_while_open_is_an_error() {
    let (shape, dir) = (tiny_gpt2(), tempfile::tempdir().unwrap());
    let path = dir.path().join("model.safetensors");
    fs::write(&path, model_bytes(&shape)).unwrap();
    let checkpoint = Checkpoint::open(dir.path(), &shape).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let mut out = vec![0.0; 8];
    // The embedding, plainly; `qkv`, transposed.
    for param in [ParamId(0), ParamId(4)] {
        let read = checkpoint.read(param, 0..8, &mut out);
        assert!(matches!(read, Err(ModelError::Io { .. })), "{read:?}");
    }
}
