use super::super::batches::{BatchShape, EvalBatches, Micro};
use super::super::mask::Example;
use super::*;
use std::sync::Arc;

/// A pair of so many tokens each, which say where they come from.
fn pair(i: usize, [source, target]: [usize; 2]) -> Example {
    let tokens = (0..source + target)
        .map(|t| (i * 100 + t + 1) as i32)
        .collect();
    let supervised = (0..source + target).map(|t| t >= source).collect();
    Example {
        tokens,
        supervised,
        class: None,
    }
}

fn laid(lengths: &[[usize; 2]], packing: Packing) -> Result<Packed, DataError> {
    let examples: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, &n)| pair(i, n))
        .collect();
    let targets = Targets { len: 4, start: 7 };
    Packed::of_pairs(Dataset::of(&examples)?, 6, targets, packing)
}

/// Sources of all rows, then targets of all rows; documents in one order in both; what decoding starts with in front.
#[test]
fn a_batch_has_sources_then_targets() {
    let packed = Arc::new(laid(&[[2, 2], [3, 1], [5, 3]], Packing::InOrder).unwrap());
    assert_eq!((packed.n_rows(), packed.seq(), packed.target()), (2, 6, 4));
    let shape = BatchShape {
        micro_batch: 2,
        accumulate: 1,
    };
    let batch = EvalBatches::new(packed, shape)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!((batch.supervised_tokens, batch.real_tokens), (6, 16));
    let [micro] = &batch.micro[..] else {
        panic!("one micro-batch");
    };
    let no = NO_LABEL;
    let tokens = [
        [1, 2, 101, 102, 103, 0].as_slice(),
        &[201, 202, 203, 204, 205, 0],
        &[7, 3, 7, 0],
        &[7, 206, 207, 0],
    ];
    assert_eq!(micro.tokens, tokens.concat());
    let none = [no; 12];
    let labels = [none.as_slice(), &[3, 4, 104, no], &[206, 207, 208, no]];
    assert_eq!(micro.labels, labels.concat());
    let positions = [0, 1, 0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 0, 1, 0, 0, 0, 1, 2, 0];
    assert_eq!(micro.positions, positions);
    let starts = [0, 0, 2, 2, 2, 5, 0, 0, 0, 0, 0, 5, 0, 0, 2, 3, 0, 0, 0, 3];
    assert_eq!(micro.doc_start, starts);
}

/// Every plane has all sources, then all targets; only these have labels.
#[test]
fn random_pairs_have_targets_behind_their_sources() {
    let [source, target] = [3, 2].map(|len| Micro::random(2, len, 50, u64::from(len)));
    let pairs = source.clone().paired(target.clone());
    let parts = source.planes().into_iter().zip(target.planes());
    for (at, (plane, (of_source, of_target))) in pairs.planes().into_iter().zip(parts).enumerate() {
        let none = [NO_LABEL; 6];
        let first = if at == 1 { &none[..] } else { of_source };
        assert_eq!(plane, [first, of_target].concat(), "plane {at}");
    }
}

#[test]
fn pairs_share_rows_where_both_have_room() {
    let lengths = [[3, 1], [3, 3], [2, 1], [4, 1], [1, 1]];
    let rows = |packing| {
        let packed = laid(&lengths, packing).unwrap();
        let row = |i| packed.row(i).iter().map(|p| p.example).collect::<Vec<_>>();
        (0..packed.n_rows()).map(row).collect::<Vec<_>>()
    };
    assert_eq!(rows(Packing::InOrder), [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(rows(Packing::BestFit), [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(rows(Packing::No), [[0], [1], [2], [3], [4]]);
}

/// What is too long keeps its end, and says what was lost; what is no pair is left out.
#[test]
fn long_pairs_keep_their_ends() {
    let packed = laid(&[[8, 6], [0, 3], [1, 1]], Packing::No).unwrap();
    let report = packed.report();
    assert_eq!((report.n_rows, report.n_cut, report.n_truncated), (2, 1, 1));
    assert_eq!((report.n_answers_cut, report.n_labels_lost), (1, 2));
    assert_eq!((report.n_tokens, report.n_tokens_lost), (12, 7));
    let shape = BatchShape {
        micro_batch: 1,
        accumulate: 1,
    };
    let mut batches = EvalBatches::new(Arc::new(packed), shape).unwrap();
    let micro = &batches.next().unwrap().unwrap().micro[0];
    assert_eq!(micro.tokens, [1, 2, 3, 4, 5, 8, 7, 9, 10, 11]);
    assert_eq!(micro.labels[6..], [9, 10, 11, 14]);
    assert!(matches!(
        laid(&[[0, 3]], Packing::No),
        Err(DataError::NothingSupervised { .. })
    ));
}

/// From files to rows: both texts with their end, as the tokenizer puts it there; a target has one in any case.
#[test]
fn records_become_pairs_with_ends() {
    use super::super::dataset::{Cache, LoadOptions};
    use super::super::jsonl::{Fields, Format, PairFields};
    use super::super::prompts::prompts;
    use super::super::tokenizer::Tokenizer;

    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/reverse");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (json, csv) = (dir.path().join("a.jsonl"), dir.path().join("b.csv"));
    let lines = "{\"s\": \"abc\", \"t\": \"cba\"}\n{\"s\": \"b\", \"t\": \"b</s>\"}\n";
    std::fs::write(&json, lines).unwrap();
    std::fs::write(&csv, "s,t\nda,ad\n").unwrap();
    let options = LoadOptions {
        format: Some(Format::Pair),
        fields: Fields {
            pair: Some(PairFields {
                source: "s".into(),
                target: "t".into(),
            }),
            ..Fields::default()
        },
        ..LoadOptions::default()
    };
    let paths = [json.clone(), csv];
    let data = Dataset::load(&paths, &options, &tokenizer).unwrap();
    let text = |i: usize, of: bool| {
        let example = data.example(i).unwrap();
        let both = example.tokens.iter().zip(&example.supervised);
        let own: Vec<i32> = both.filter(|(_, s)| **s == of).map(|(t, _)| *t).collect();
        tokenizer.decode(&own, true)
    };
    let all = |of| (0..3).map(|i| text(i, of)).collect::<Vec<_>>();
    assert_eq!(all(false), ["abc</s>", "b</s>", "da</s>"]);
    assert_eq!(all(true), ["cba</s>", "b</s>", "ad</s>"]);
    assert_eq!(data.remarks().n_had_end, 1);
    let asked = prompts(&json, &options, &tokenizer).unwrap();
    assert_eq!(tokenizer.decode(&asked[1].tokens, true), "b</s>");
    assert_eq!(
        (asked[0].reference.as_str(), asked[1].reference.as_str()),
        ("cba", "b")
    );

    // What a tokenizer puts around texts is part of what names kept tokens.
    let cache = Cache {
        folder: dir.path().join("cache"),
        required: true,
        bytes_min: 0,
    };
    let kept = |tokenizer: &Tokenizer| {
        let (data, _) = Dataset::load_kept(&paths, &options, tokenizer, &cache).unwrap();
        data.report().n_tokens
    };
    assert_eq!((kept(&tokenizer), kept(&tokenizer)), (18, 18));
    let bare = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
    let mut bare: serde_json::Value = serde_json::from_str(&bare).unwrap();
    bare["post_processor"] = serde_json::Value::Null;
    std::fs::write(dir.path().join("tokenizer.json"), bare.to_string()).unwrap();
    let beside = "tokenizer_config.json";
    std::fs::copy(folder.join(beside), dir.path().join(beside)).unwrap();
    // Sources without an end, and targets with one all the same.
    assert_eq!(kept(&Tokenizer::open(dir.path()).unwrap()), 15);

    // A record that lacks the target names the field.
    std::fs::write(&json, "{\"s\": \"a\", \"text\": \"b\"}\n").unwrap();
    let e = Dataset::load(&[json], &options, &tokenizer).unwrap_err();
    assert!(e.to_string().contains("'t'"), "{e}");
}
