use std::path::PathBuf;

use super::*;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant {% endif %}";

/// Folders of a model, of a tokenizer and of an export that already has what came with the weights.
struct Folders {
    dir: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let folders = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../data/testdata/chat/tokenizer/tokenizer.json");
        for folder in ["tokenizer", "export"] {
            fs::create_dir(folders.at(folder)).unwrap();
        }
        fs::copy(from, folders.at("tokenizer/tokenizer.json")).unwrap();
        folders
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) -> &Self {
        fs::write(self.at(name), text).unwrap();
        self
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.at(name)).unwrap()).unwrap()
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::open(&self.at("tokenizer")).unwrap()
    }

    fn export(&self, tokenizer: &Tokenizer) {
        let stops = Stops::of(tokenizer.eos()).with_turns(tokenizer);
        write(tokenizer, &stops, &self.at("export")).unwrap();
    }
}

fn ids(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<i32> {
    tokens
        .iter()
        .map(|t| tokenizer.token_id(t).unwrap())
        .collect()
}

#[test]
fn the_tokenizers_files_take_the_place_of_the_models() {
    let folders = Folders::new();
    folders
        .put("export/tokenizer.json", "the model's")
        .put("export/vocab.json", "the model's")
        .put("export/tokenizer_config.json", "{\"a\": 1}")
        .put("export/model.safetensors", "weights")
        .put(
            "tokenizer/tokenizer_config.json",
            "{\"eos_token\": \"</s>\"}",
        )
        .put("tokenizer/spiece.model", "pieces")
        .put("tokenizer/x.tiktoken", "ranks")
        .put("tokenizer/tokenization_x.py", "code")
        .put("tokenizer/model.safetensors", "not the tokenizer's")
        .put("tokenizer/notes.txt", "not the tokenizer's");
    let counted = [
        "tokenizer.json",
        "tokenizer_config.json",
        "spiece.model",
        "x.tiktoken",
        "tokenization_x.py",
    ];
    let counted = counted.map(|n| fs::metadata(path(&folders, "tokenizer", n)).unwrap().len());
    fs::create_dir(folders.at("tokenizer/vocab.txt")).unwrap();
    for of in ["tokenizer", "tokenizer/tokenizer.json"] {
        assert_eq!(bytes(&folders.at(of)), counted.iter().sum::<u64>(), "{of}");
    }
    fs::create_dir(folders.at("tokenizer/additional_chat_templates")).unwrap();
    folders.put(
        "tokenizer/additional_chat_templates/tool_use.jinja",
        "named",
    );
    folders.export(&folders.tokenizer());
    let mut names: Vec<_> = fs::read_dir(folders.at("export"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let want = [
        "additional_chat_templates",
        "generation_config.json",
        "model.safetensors",
        "spiece.model",
        "tokenization_x.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "x.tiktoken",
    ];
    assert_eq!(names, want);
    let same = |name: &str| {
        let read = |folder: &str| fs::read(self::path(&folders, folder, name)).unwrap();
        read("tokenizer") == read("export")
    };
    assert!(
        ["tokenizer.json", "tokenizer_config.json", "spiece.model"]
            .iter()
            .all(|n| same(n))
    );
    assert_eq!(
        fs::read(folders.at("export/model.safetensors")).unwrap(),
        b"weights"
    );
}

/// Models are often read-only, and the configuration of some tokenizers lists every token.
#[test]
fn a_read_only_and_a_long_configuration_are_no_hindrance() {
    use std::os::unix::fs::PermissionsExt;
    let folders = Folders::new();
    let long = "x".repeat(lowtide_files::SMALL as usize);
    let name = "tokenizer/tokenizer_config.json";
    let text = json!({"eos_token": "</s>", "chat_template": "old", "long": long});
    folders.put(name, &text.to_string());
    fs::set_permissions(folders.at(name), fs::Permissions::from_mode(0o444)).unwrap();
    folders.export(&folders.tokenizer().with_chat_template(CHATML).unwrap());
    let config = folders.json("export/tokenizer_config.json");
    assert_eq!(
        (&config["eos_token"], &config["long"]),
        (&json!("<|im_end|>"), &json!(long))
    );
    // Who may do everything would not notice.
    let written = fs::metadata(folders.at("export/tokenizer_config.json")).unwrap();
    assert_eq!(written.permissions().mode() & 0o200, 0o200);
}

fn path(folders: &Folders, folder: &str, name: &str) -> PathBuf {
    folders.at(folder).join(name)
}

#[test]
fn a_given_template_is_the_only_one() {
    let folders = Folders::new();
    folders
        .put(
            "tokenizer/tokenizer_config.json",
            "{\"eos_token\": \"</s>\", \"chat_template\": \"old\", \"z\": 1}",
        )
        .put("tokenizer/chat_template.jinja", "old")
        .put("tokenizer/chat_template.json", "{}");
    fs::create_dir(folders.at("tokenizer/additional_chat_templates")).unwrap();
    folders.put("tokenizer/additional_chat_templates/tool_use.jinja", "old");
    // Not given: all is copied.
    folders.export(&folders.tokenizer());
    assert_eq!(
        fs::read(folders.at("export/chat_template.jinja")).unwrap(),
        b"old"
    );
    assert!(
        folders
            .at("export/additional_chat_templates/tool_use.jinja")
            .exists()
    );
    assert_eq!(
        folders.json("export/tokenizer_config.json")["chat_template"],
        "old"
    );
    // Given.
    folders.export(&folders.tokenizer().with_chat_template(CHATML).unwrap());
    assert_eq!(
        fs::read(folders.at("export/chat_template.jinja")).unwrap(),
        CHATML.as_bytes()
    );
    let config = folders.json("export/tokenizer_config.json");
    assert_eq!(config, json!({"eos_token": "<|im_end|>", "z": 1}));
    assert!(!folders.at("export/chat_template.json").exists());
    assert!(!folders.at("export/additional_chat_templates").exists());
    let reopened = Tokenizer::open(&folders.at("export")).unwrap();
    assert_eq!(reopened.eos_text(), Some("<|im_end|>"));
    assert!(reopened.chat_template().is_some());
}

#[test]
fn a_generation_config_names_every_stop_and_keeps_the_rest() {
    let folders = Folders::new();
    folders.put(
        "tokenizer/tokenizer_config.json",
        "{\"eos_token\": \"</s>\"}",
    );
    let tokenizer = folders.tokenizer().with_chat_template(CHATML).unwrap();
    let want = ids(&tokenizer, &["</s>", "<|im_end|>"]);
    let written = |before: Option<&str>, config: &str| {
        let _ = fs::remove_file(folders.at("export/generation_config.json"));
        if let Some(text) = before {
            folders.put("export/generation_config.json", text);
        }
        folders.put("export/config.json", config);
        folders.export(&tokenizer);
        folders.json("export/generation_config.json")
    };
    assert_eq!(written(None, "{}"), json!({"eos_token_id": want}));
    let config =
        r#"{"eos_token_id": 5, "bos_token_id": 1, "pad_token_id": null, "hidden_size": 8}"#;
    assert_eq!(
        written(None, config),
        json!({"bos_token_id": 1, "pad_token_id": null, "eos_token_id": [5, want[0], want[1]]})
    );
    let some = format!(r#"{{"top_p": 0.5, "eos_token_id": {}, "x": [1]}}"#, want[1]);
    assert_eq!(
        written(Some(&some), config),
        json!({"top_p": 0.5, "eos_token_id": [want[1], want[0]], "x": [1]})
    );
    // All are there: not a byte changes.
    let all = format!("{{\"eos_token_id\":  [{}, {}, 7]}}", want[1], want[0]);
    written(Some(&all), config);
    assert_eq!(
        fs::read_to_string(folders.at("export/generation_config.json")).unwrap(),
        all
    );
    // Only one: a number.
    let plain = folders.tokenizer();
    fs::remove_file(folders.at("export/generation_config.json")).unwrap();
    folders.put("export/config.json", "{}").export(&plain);
    assert_eq!(
        folders.json("export/generation_config.json"),
        json!({"eos_token_id": want[0]})
    );
    // Not what it must be.
    folders.put(
        "export/generation_config.json",
        "{\"eos_token_id\": \"</s>\"}",
    );
    let stops = Stops::of(plain.eos());
    let error = write(&plain, &stops, &folders.at("export"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}

#[test]
fn the_end_of_sequence_changes_only_where_nobody_thought_of_the_end_of_turn() {
    let folders = Folders::new();
    folders.put(
        "tokenizer/tokenizer_config.json",
        "{\"eos_token\": {\"content\": \"</s>\", \"lstrip\": false}}",
    );
    folders.put(
        "tokenizer/special_tokens_map.json",
        "{\"eos_token\": \"</s>\", \"bos_token\": \"<s>\"}",
    );
    let eos = |template: &str, generation_config: &str| {
        folders.put("export/generation_config.json", generation_config);
        folders.export(&folders.tokenizer().with_chat_template(template).unwrap());
        let read = |name: &str| folders.json(name)["eos_token"].clone();
        (
            read("export/tokenizer_config.json"),
            read("export/special_tokens_map.json"),
        )
    };
    let old = (json!({"content": "</s>", "lstrip": false}), json!("</s>"));
    let new = (json!("<|im_end|>"), json!("<|im_end|>"));
    assert_eq!(eos(CHATML, "{}"), new);
    // Its maker has generation stop there, as Phi-3's does.
    let id = folders.tokenizer().token_id("<|im_end|>").unwrap();
    assert_eq!(
        eos(CHATML, &format!("{{\"eos_token_id\": [1, {id}]}}")),
        old
    );
    // The template would write another text.
    let writes =
        format!("{CHATML}{{% if not add_generation_prompt %}}{{{{ eos_token }}}}{{% endif %}}");
    assert_eq!(eos(&writes, "{}"), old);
    // It ends with the end of sequence already.
    assert_eq!(eos(&CHATML.replace("<|im_end|>", "</s>"), "{}"), old);
}

/// As the first checkpoints of T5 have none.
#[test]
fn where_decoding_starts_is_said_where_nobody_has() {
    let folders = Folders::new();
    for (config, generation, want) in [
        ("{}", "{}", [3, 3]),
        ("{\"decoder_start_token_id\": null}", "{}", [3, 3]),
        (
            "{\"decoder_start_token_id\": 7}",
            "{\"decoder_start_token_id\": 8}",
            [7, 8],
        ),
    ] {
        folders.put("export/config.json", config);
        folders.put("export/generation_config.json", generation);
        let at = folders.at("export");
        say_start(3, &at).unwrap();
        let names = ["config.json", "generation_config.json"];
        let said = names.map(|name| folders.json(&format!("export/{name}"))[START].clone());
        assert_eq!(said, want.map(|n| json!(n)), "{config} {generation}");
    }
}
