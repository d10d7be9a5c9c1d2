use std::fs;

use serde_json::{Value, json};

use super::super::testing;
use super::*;

#[test]
fn ids_are_those_of_transformers() {
    let tokenizer = testing::tokenizer();
    for case in testing::golden() {
        assert_eq!(
            tokenizer.encode(&case.text).unwrap(),
            case.tokens,
            "{}",
            case.title
        );
    }
}

#[test]
fn special_tokens_are_found_and_saved_settings_undone() {
    let tokenizer = testing::tokenizer();
    let text = "a text that is longer than the seven tokens it would be cut to";
    let tokens = tokenizer.encode(text).unwrap();
    assert!(tokens.len() > 7);
    assert_eq!(tokenizer.decode(&tokens, true), text);
    assert_eq!(tokenizer.prefix(), tokenizer.encode("<s>").unwrap());
    assert_eq!(tokenizer.eos(), Some(tokenizer.encode("</s>").unwrap()[0]));
    assert_eq!(tokenizer.decode(&[tokenizer.eos().unwrap()], false), "");
    assert_eq!(tokenizer.decode(&[-5, 1_000_000], true), "");
    assert!(tokenizer.chat_template().is_none());
    let other = tokenizer.with_eos("<|im_end|>").unwrap();
    assert_eq!(other.eos(), Some(other.encode("<|im_end|>").unwrap()[0]));
    let error = other.with_eos("<nope>").unwrap_err().to_string();
    assert!(
        error.ends_with("the vocabulary has no token '<nope>'"),
        "{error}"
    );
}

#[test]
fn ranges_cover_the_text_without_trimming() {
    let text = "<s>  two  spaces 你 <|im_end|> x";
    let tokens = testing::tokenizer().encode_with_ranges(text).unwrap();
    let mut end = 0;
    for (_, range) in &tokens {
        assert!(
            range.start <= end && range.end >= end,
            "hole before {range:?}"
        );
        end = range.end;
    }
    assert_eq!(end, text.len());
}

/// A directory with the test tokenizer and further files.
fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = testing::testdata().join("tokenizer/tokenizer.json");
    std::fs::copy(json, dir.path().join("tokenizer.json")).unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn the_files_beside_it_are_read_in_their_order() {
    let config = r#"{"eos_token": {"content": "</s>"}, "bos_token": null, "chat_template": "config {{ eos_token }}{{ bos_token }}"}"#;
    let map = r#"{"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}}"#;
    let files = [
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", map),
    ];
    let render = |dir: &tempfile::TempDir| {
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        tokenizer
            .chat_template()
            .unwrap()
            .render(&[], None, false)
            .unwrap()
            .text
    };
    assert_eq!(render(&dir(&files)), "config </s><s>");
    let with_jinja = [
        &files[..],
        &[("chat_template.jinja", "jinja {{ eos_token }}")],
    ]
    .concat();
    assert_eq!(render(&dir(&with_jinja)), "jinja </s>");
    let list = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(render(&dir(&[("tokenizer_config.json", list)])), "d");
    let dir = dir(&files);
    let by_file = Tokenizer::open(&dir.path().join("tokenizer.json")).unwrap();
    assert!(
        by_file.chat_template().is_some(),
        "the files beside a file are those of its directory"
    );
}

#[test]
fn missing_and_corrupt_files_are_named() {
    let error = Tokenizer::open(Path::new("/no/such/dir")).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(empty.path()).unwrap_err();
    assert!(matches!(&error, DataError::Missing { path } if path.ends_with("tokenizer.json")));
    for (name, text) in [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "{\"version\": \"1.0\", \"model\": 3}"),
        ("tokenizer.json", "\0\0"),
        ("tokenizer_config.json", "{\"chat_template\": 3}"),
        (
            "tokenizer_config.json",
            "{\"chat_template\": [{\"name\": \"x\"}]}",
        ),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "{"),
    ] {
        let error = Tokenizer::open(dir(&[(name, text)]).path()).unwrap_err();
        assert!(
            matches!(&error, DataError::Corrupt { path, .. } if path.ends_with(name)),
            "{error}"
        );
    }
    let error = Tokenizer::open(dir(&[("chat_template.jinja", "{% if")]).path()).unwrap_err();
    assert!(matches!(error, DataError::Template { .. }), "{error}");
    let unknown = r#"{"eos_token": "<|nope|>"}"#;
    let error = Tokenizer::open(dir(&[("tokenizer_config.json", unknown)]).path()).unwrap_err();
    assert!(matches!(error, DataError::UnknownToken { .. }), "{error}");
}

/// GPT-2's file names its special token nowhere, has no prefix, and these are its known ids.
#[test]
fn gpt2_reads_as_everywhere() {
    let Some(path) = testing::shared("tokenizers/gpt2") else {
        return;
    };
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.vocab_size(), 50257);
    assert_eq!(tokenizer.eos(), Some(50256));
    assert!(tokenizer.prefix().is_empty());
    assert_eq!(tokenizer.encode("Hello world").unwrap(), [15496, 995]);
    assert_eq!(tokenizer.encode("a<|endoftext|>").unwrap(), [64, 50256]);
    assert_eq!(tokenizer.token_text(995), " world");
}

/// Decoders of SentencePiece's kind drop the space that a text begins with: of a part of a text it is its own.
#[test]
fn a_part_of_a_text_keeps_its_first_space() {
    let vocab = ["▁Say", "▁it", "▁now", "!"];
    let vocab: serde_json::Map<String, Value> = vocab
        .iter()
        .enumerate()
        .map(|(id, piece)| ((*piece).into(), json!(id)))
        .collect();
    let space =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": space, "decoder": space, "post_processor": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "!"},
    });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.decode(&[0, 1, 2], true), "Say it now");
    assert_eq!(tokenizer.decode(&[1, 2], true), "it now");
    assert_eq!(tokenizer.part_text(&[1, 2]), " it now");
    assert_eq!(tokenizer.part_text(&[3]), "!");
    assert_eq!(tokenizer.token_text(1), " it");
    assert_eq!(tokenizer.part_text(&[]), "");
}
