//! The tokenizer of a Hugging Face model directory: `tokenizer.json` and the files beside it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::chat::ChatTemplate;
use crate::clock::now;
use crate::error::{DataError, RecordProblem};

/// A tokenizer with its special tokens and, if it has one, its chat template.
///
/// Encoding never adds special tokens by itself; who wants the beginning-of-sequence tokens puts
/// [`prefix`](Self::prefix) in front. Special tokens written out in the text are recognised.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    prefix: Vec<i32>,
    eos: Option<i32>,
    special_texts: Vec<String>,
    added_texts: Vec<String>,
    special_tokens: Vec<(String, Value)>,
    templates: Vec<(String, String)>,
    template_given: bool,
    now_unix_s: i64,
    template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Opens `path`, a `tokenizer.json` or the directory that holds one.
    ///
    /// Beside it are read, where they exist: `tokenizer_config.json` (special tokens, chat
    /// template: one or a list of named ones), `special_tokens_map.json` (special tokens the
    /// former lacks) and `chat_template.jinja` (instead of the template in the former). With
    /// none of them, a vocabulary with one special token ends sequences with that one.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_owned()
        };
        let corrupt = |reason: String| DataError::Corrupt {
            path: file.clone(),
            reason,
        };
        let bytes = std::fs::read(&file).map_err(|e| DataError::io(&file, e))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| corrupt(e.to_string()))?;
        // Settings of whoever saved the file last, not of the model.
        inner
            .with_truncation(None)
            .map_err(|e| corrupt(e.to_string()))?;
        inner.with_padding(None);
        let prefix = prefix(&inner).map_err(|e| corrupt(e.to_string()))?;
        // It adds special tokens, which `prefix` now knows, and narrows offsets by white space,
        // which the loss mask must not have.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);

        let beside = Beside::read(file.parent().unwrap_or(Path::new(".")))?;
        let added = inner.get_added_tokens_decoder();
        let special_texts: Vec<String> = added
            .values()
            .filter(|token| token.special)
            .map(|token| token.content.clone())
            .collect();
        let mut added_texts: Vec<String> = added.into_values().map(|token| token.content).collect();
        added_texts.retain(|text| !text.trim().is_empty());
        added_texts.sort_unstable();
        let eos = match (beside.special_token("eos_token"), &special_texts[..]) {
            (Some(text), _) => Some(text.to_owned()),
            (None, [only]) => Some(only.clone()),
            _ => None,
        };
        let mut tokenizer = Self {
            inner,
            path: file,
            prefix,
            eos: None,
            special_texts,
            added_texts,
            special_tokens: beside.special_tokens,
            templates: beside.templates,
            template_given: false,
            now_unix_s: now().as_secs() as i64,
            template: None,
        };
        if let Some(text) = eos {
            tokenizer.eos = Some(tokenizer.id(&text)?);
        }
        tokenizer.parse_template()?;
        Ok(tokenizer)
    }

    /// Ends sequences with `token` instead, which must be in the vocabulary.
    pub fn with_eos(mut self, token: &str) -> Result<Self, DataError> {
        self.eos = Some(self.id(token)?);
        self.special_tokens.retain(|(name, _)| name != "eos_token");
        self.special_tokens.push(("eos_token".into(), token.into()));
        self.parse_template()?;
        Ok(self)
    }

    /// Renders chats with this template instead of the tokenizer's own.
    pub fn with_chat_template(mut self, source: &str) -> Result<Self, DataError> {
        self.templates = vec![("default".into(), source.into())];
        self.template_given = true;
        self.parse_template()?;
        Ok(self)
    }

    /// The source of the template that takes the place of the tokenizer's own, if one was given.
    #[must_use]
    pub fn given_template(&self) -> Option<&str> {
        self.templates
            .first()
            .filter(|_| self.template_given)
            .map(|(_, source)| source.as_str())
    }

    /// Whether the word stands in a template's source.
    pub(crate) fn templates_mention(&self, word: &str) -> bool {
        self.templates
            .iter()
            .any(|(_, source)| source.contains(word))
    }

    /// Shows templates this time (seconds since 1970, UTC) instead of the time of opening. A
    /// template that writes the date makes other tokens each day, so a run keeps its own.
    pub fn with_now(mut self, unix_s: i64) -> Result<Self, DataError> {
        self.now_unix_s = unix_s;
        self.parse_template()?;
        Ok(self)
    }

    /// The time templates are shown, in seconds since 1970.
    #[must_use]
    pub fn now_unix_s(&self) -> i64 {
        self.now_unix_s
    }

    /// The file this tokenizer was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of tokens, added ones too. Every id that encoding gives is below the largest id
    /// plus one, which is this number for vocabularies without gaps.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that ends a sequence, if one is known.
    #[must_use]
    pub fn eos(&self) -> Option<i32> {
        self.eos
    }

    /// The special tokens that the tokenizer puts before a text (beginning of sequence, or none).
    #[must_use]
    pub fn prefix(&self) -> &[i32] {
        &self.prefix
    }

    /// The chat template, if there is one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The text of the token that ends a sequence, if one is known.
    #[must_use]
    pub fn eos_text(&self) -> Option<&str> {
        let named = self.special_tokens.iter().find(|(n, _)| n == "eos_token");
        named.and_then(|(_, text)| text.as_str())
    }

    /// The tokens that are looked for in a text before it is cut into pieces, special or not, but for
    /// white space; in order.
    pub(crate) fn added_texts(&self) -> &[String] {
        &self.added_texts
    }

    /// The longest special token that `text` ends with.
    pub(crate) fn special_at_end<'a>(&'a self, text: &str) -> Option<&'a str> {
        let ends = self
            .special_texts
            .iter()
            .filter(|s| !s.is_empty() && text.ends_with(*s));
        ends.max_by_key(|s| s.len()).map(String::as_str)
    }

    /// The tokens of a text, without anything added.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, RecordProblem> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| tokenize(&*e))?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// A token as it stands in the vocabulary.
    #[cfg(test)]
    pub(crate) fn piece(&self, token: i32) -> Option<String> {
        self.inner.id_to_token(token as u32)
    }

    /// The tokens of a text that goes on from another, without anything added: tokenizers of
    /// SentencePiece's kind put a space before what they take for the beginning of a text. Where one
    /// does, the text is tokenised behind some other text whose tokens stay the same.
    pub fn encode_inside(&self, text: &str) -> Result<Vec<i32>, RecordProblem> {
        let alone = self.encode(text)?;
        let is_space = |c| matches!(c, ' ' | '▁' | 'Ġ');
        let first = alone
            .first()
            .and_then(|&id| self.inner.id_to_token(id as u32));
        if text.starts_with(is_space) || !first.is_some_and(|t| t.starts_with(['▁', 'Ġ'])) {
            return Ok(alone);
        }
        for before in ["\n", "a", "0", ".", ")", "\u{4e00}"] {
            let whole = self.encode(&format!("{before}{text}"))?;
            if let Some(rest) = whole.strip_prefix(&self.encode(before)?[..]) {
                return Ok(rest.to_vec());
            }
        }
        Err(RecordProblem::Border)
    }

    /// The tokens of a text and the bytes of it that each stands for. Tokens of one character
    /// that was cut into several all have the range of the character.
    pub fn encode_with_ranges(
        &self,
        text: &str,
    ) -> Result<Vec<(i32, Range<usize>)>, RecordProblem> {
        let encoding = self.inner.encode(text, false).map_err(|e| tokenize(&*e))?;
        let ids = encoding.get_ids().iter().map(|&id| id as i32);
        Ok(ids
            .zip(encoding.get_offsets().iter().map(|&(a, b)| a..b))
            .collect())
    }

    /// The text of tokens, special ones written out if `with_special`. Unknown ids give nothing.
    #[must_use]
    pub fn decode(&self, tokens: &[i32], with_special: bool) -> String {
        let ids: Vec<u32> = tokens
            .iter()
            .filter_map(|&t| u32::try_from(t).ok())
            .collect();
        self.inner.decode(&ids, !with_special).unwrap_or_default()
    }

    /// One token as a person reads it; a space that decoding a single token would drop is kept.
    #[must_use]
    pub fn token_text(&self, token: i32) -> String {
        let text = self.decode(&[token], true);
        let raw = u32::try_from(token)
            .ok()
            .and_then(|id| self.inner.id_to_token(id));
        match raw {
            Some(raw) if raw.starts_with('▁') && !text.starts_with(' ') => format!(" {text}"),
            _ => text,
        }
    }

    fn id(&self, token: &str) -> Result<i32, DataError> {
        let unknown = || DataError::UnknownToken {
            path: self.path.clone(),
            token: token.to_owned(),
        };
        self.token_id(token).ok_or_else(unknown)
    }

    /// The id of a token, if the vocabulary has it.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<i32> {
        i32::try_from(self.inner.token_to_id(token)?).ok()
    }

    fn parse_template(&mut self) -> Result<(), DataError> {
        self.template = match self.templates.is_empty() {
            true => None,
            false => Some(ChatTemplate::new(
                &self.templates,
                self.special_tokens.clone(),
                self.now_unix_s,
                &self.path,
            )?),
        };
        Ok(())
    }
}

fn tokenize(error: &(dyn std::error::Error + Send + Sync)) -> RecordProblem {
    RecordProblem::Tokenize {
        reason: error.to_string(),
    }
}

/// What the tokenizer's own rule for special tokens puts in front of a text.
fn prefix(inner: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<i32>> {
    let (bare, whole) = (
        inner.encode_fast("a", false)?,
        inner.encode_fast("a", true)?,
    );
    let (bare, whole) = (bare.get_ids(), whole.get_ids());
    let n = whole
        .windows(bare.len().max(1))
        .position(|w| w == bare)
        .unwrap_or(0);
    Ok(whole[..n].iter().map(|&id| id as i32).collect())
}

/// What the files beside `tokenizer.json` say.
#[derive(Default)]
struct Beside {
    special_tokens: Vec<(String, Value)>,
    templates: Vec<(String, String)>,
}

impl Beside {
    fn read(dir: &Path) -> Result<Self, DataError> {
        let mut beside = Self::default();
        let config_path = dir.join("tokenizer_config.json");
        let config = json_object(&config_path)?;
        for file in [&config, &json_object(&dir.join("special_tokens_map.json"))?] {
            beside.add_special_tokens(file);
        }
        let jinja = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&jinja) {
            Ok(source) => beside.templates.push(("default".into(), source)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                beside.templates = templates(config.get("chat_template")).map_err(|reason| {
                    DataError::Corrupt {
                        path: config_path,
                        reason,
                    }
                })?;
            }
            Err(e) => return Err(DataError::io(&jinja, e)),
        }
        Ok(beside)
    }

    fn add_special_tokens(&mut self, file: &Map<String, Value>) {
        for (name, value) in file {
            let text = match value {
                Value::Object(token) => token.get("content"),
                other => Some(other),
            };
            let text = text
                .filter(|t| t.is_string())
                .filter(|_| name.ends_with("_token"));
            let known = self.special_tokens.iter().any(|(n, _)| n == name);
            if let (Some(text), false) = (text, known) {
                self.special_tokens.push((name.clone(), text.clone()));
            }
        }
    }

    fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens
            .iter()
            .find(|(n, _)| n == name)
            .and_then(|(_, v)| v.as_str())
    }
}

/// The object in a JSON file, or an empty one where there is no file.
fn json_object(path: &Path) -> Result<Map<String, Value>, DataError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(DataError::io(path, e)),
    };
    serde_json::from_slice(&bytes).map_err(|e| DataError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// The `chat_template` of a tokenizer's configuration: a string, or a list of named ones.
fn templates(value: Option<&Value>) -> Result<Vec<(String, String)>, String> {
    let named = |entry: &Value| {
        let text = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        Some((text("name")?, text("template")?))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![("default".into(), source.clone())]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| named(entry).ok_or("a chat_template without name or template".to_owned()))
            .collect(),
        Some(_) => Err("chat_template is neither a string nor a list".into()),
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
