//! The tokenizer of a Hugging Face model directory: `tokenizer.json` and the files beside it.
//!
//! One file because it is one type: what a tokenizer's files say decides how it encodes and how it is bounded.

use std::ops::Range;
use std::path::{Path, PathBuf};

use lowtide_files::JsonProblem;
use lowtide_units::Bytes;
use serde_json::{Map, Value};
use tokenizers::{ModelWrapper, PostProcessor, PostProcessorWrapper};

use super::chat::ChatTemplate;
use super::{key, trial, windows};
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
    /// A hash of the bytes of its files.
    files: [u8; 32],
    prefix: Vec<i32>,
    /// What puts special tokens around texts.
    around: Option<PostProcessorWrapper>,
    eos: Option<i32>,
    /// The token with the largest id, and that id plus one.
    largest: String,
    ids_end: i32,
    special_texts: Vec<String>,
    added_texts: Vec<String>,
    special_tokens: Vec<(String, Value)>,
    templates: Vec<(String, String)>,
    /// The file that they stand in.
    templates_path: PathBuf,
    template_given: bool,
    now_unix_s: i64,
    template: Option<ChatTemplate>,
    /// Bytes of memory that a text may take while it is tokenised.
    memory: u64,
}

/// Longest text that is tokenised in one go.
pub(super) const WINDOW: usize = 64 << 10;
/// Bytes of a text that two windows of it share.
const OVERLAP: usize = 8 << 10;
/// Bytes of memory that the crate takes for a byte of text while it tokenises it, measured on English: normalised
/// pieces with the place of each byte, a string for each token.
pub(super) const WHOLE_COST: u64 = 150;

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
        if let Some(found) = other_make(path, &file) {
            return Err(DataError::OtherTokenizer {
                path: path.to_owned(),
                found,
            });
        }
        let Vocabulary {
            inner,
            prefix,
            around,
            largest,
            ids_end,
        } = Vocabulary::load(&file)?;
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
            path: file.clone(),
            files: hash_of_files(&file)?,
            prefix,
            around,
            eos: None,
            largest,
            ids_end,
            special_texts,
            added_texts,
            special_tokens: beside.special_tokens,
            templates: beside.templates,
            templates_path: beside.templates_path.unwrap_or(file),
            template_given: false,
            now_unix_s: now().as_secs() as i64,
            template: None,
            memory: u64::MAX,
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

    /// The same with the template in a file, which errors name.
    pub fn with_chat_template_file(mut self, path: &Path) -> Result<Self, DataError> {
        let source = lowtide_files::read_text(path, lowtide_files::SMALL)?;
        self.templates_path = path.to_owned();
        self.with_chat_template(&source)
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
    #[must_use]
    pub fn templates_mention(&self, word: &str) -> bool {
        self.templates
            .iter()
            .any(|(_, source)| source.contains(word))
    }

    /// Refuses a text that would take more bytes of memory than this while it is tokenised.
    #[must_use]
    pub fn with_memory(self, memory: Bytes) -> Self {
        Self {
            memory: memory.0,
            ..self
        }
    }

    /// Shows templates this time (seconds since 1970, UTC) instead of the time of opening. A
    /// template that writes the date makes other tokens each day, so a run keeps its own.
    pub fn with_now(mut self, unix_s: i64) -> Result<Self, DataError> {
        self.now_unix_s = unix_s;
        self.parse_template()?;
        Ok(self)
    }

    /// All that decides what text becomes which tokens, and how conversations become text; `None`: it is unknown.
    pub(super) fn identity(&self) -> Option<Vec<u8>> {
        let mut all = serde_json::to_string(&self.inner).ok()?;
        let templates = self.templates.iter().map(|(_, source)| source.as_str());
        let time = key::time_in(templates, self.now_unix_s);
        let rest = (
            &self.prefix,
            self.eos,
            &self.special_tokens,
            &self.templates,
            time,
        );
        all.push_str(&format!("{rest:?}"));
        Some(all.into_bytes())
    }

    /// A hash of the bytes of its files, as they are.
    pub(super) fn files(&self) -> &[u8; 32] {
        &self.files
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

    /// The token with the largest id, and that id. Every id that encoding gives is at most this one;
    /// it is the number of tokens less one only where the vocabulary has no gaps.
    #[must_use]
    pub fn largest(&self) -> (&str, i32) {
        (&self.largest, self.ids_end - 1)
    }

    /// Number of tokens, added ones too.
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

    /// What puts special tokens around one text or two.
    pub(super) fn around(&self) -> Option<&PostProcessorWrapper> {
        self.around.as_ref()
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
        if text.len() > WINDOW {
            let tokens = self.encode_with_ranges(text)?;
            return Ok(tokens.into_iter().map(|(id, _)| id).collect());
        }
        let encoding = self.encoding(|| self.inner.encode_fast(text, false))?;
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
        if text.len() > WINDOW {
            let part = |range: Range<usize>| self.encode_whole(&text[range]);
            if let Some(tokens) = windows::tokens(text, WINDOW, OVERLAP, &part)? {
                return Ok(tokens);
            }
            // A few texts have no two windows that agree: a word longer than a window, for instance.
            let need = WHOLE_COST.saturating_mul(text.len() as u64);
            if need > self.memory {
                return Err(RecordProblem::Memory {
                    bytes: Bytes(text.len() as u64),
                    need: Bytes(need),
                    have: Bytes(self.memory),
                });
            }
        }
        self.encode_whole(text)
    }

    /// The same in one go, which takes about [`WHOLE_COST`] bytes of memory for each of the text's.
    pub(super) fn encode_whole(
        &self,
        text: &str,
    ) -> Result<Vec<(i32, Range<usize>)>, RecordProblem> {
        let encoding = self.encoding(|| self.inner.encode(text, false))?;
        let ids = encoding.get_ids().iter().map(|&id| id as i32);
        Ok(ids
            .zip(encoding.get_offsets().iter().map(|&(a, b)| a..b))
            .collect())
    }

    /// What the tokenizer makes of a text, with every id in its vocabulary.
    fn encoding(
        &self,
        encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding, RecordProblem> {
        let fail = |reason: String| RecordProblem::Tokenize { reason };
        let encoding = trial::foreign(encode)
            .map_err(fail)?
            .map_err(|e| fail(e.to_string()))?;
        match encoding
            .get_ids()
            .iter()
            .find(|&&id| id >= self.ids_end as u32)
        {
            Some(id) => Err(fail(format!("token {id} is not in the vocabulary"))),
            None => Ok(encoding),
        }
    }

    /// The tokens of a text with what the tokenizer puts around one alone: of T5's an end.
    ///
    /// # Errors
    /// As [`Self::encode`]; a tokenizer that leaves its text out.
    pub fn encode_alone(&self, text: &str) -> Result<Vec<i32>, RecordProblem> {
        let token = |id: i32| tokenizers::Token::new(id as u32, String::new(), (0, 0));
        let tokens = self.encode(text)?.into_iter().map(token).collect();
        let whole = self.surrounded(tokenizers::Encoding::from_tokens(tokens, 0), None)?;
        if whole.is_empty() {
            return Err(RecordProblem::NoTokens);
        }
        Ok(whole.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// One text's tokens or two texts', with what stands around them and the type of each.
    pub(super) fn surrounded(
        &self,
        first: tokenizers::Encoding,
        second: Option<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding, RecordProblem> {
        self.encoding(|| match &self.around {
            Some(around) => around.process(first, second, true),
            None => {
                let mut all = first;
                second
                    .into_iter()
                    .for_each(|second| all.merge_with(second, false));
                Ok(all)
            }
        })
    }

    /// The text of tokens, special ones written out if `with_special`. Unknown ids give nothing.
    #[must_use]
    pub fn decode(&self, tokens: &[i32], with_special: bool) -> String {
        let ids: Vec<u32> = tokens
            .iter()
            .filter_map(|&t| u32::try_from(t).ok())
            .collect();
        trial::foreign(|| self.inner.decode(&ids, !with_special))
            .ok()
            .and_then(Result::ok)
            .unwrap_or_default()
    }

    /// One token as a person reads it; a space that decoding a single token would drop is kept.
    #[must_use]
    pub fn token_text(&self, token: i32) -> String {
        self.part_text(&[token])
    }

    /// A part of a text that is not its beginning; a space in front of it is kept, where decoding takes it for that of
    /// a text's beginning and drops it.
    #[must_use]
    pub fn part_text(&self, tokens: &[i32]) -> String {
        let text = self.decode(tokens, true);
        let first = tokens.first().and_then(|&token| u32::try_from(token).ok());
        match first.and_then(|id| self.inner.id_to_token(id)) {
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
                &self.templates_path,
            )?),
        };
        Ok(())
    }
}

/// What is wrong with a JSON text, where only Python reads it; everything else is for the crate to say.
fn not_json(bytes: &[u8]) -> Option<String> {
    match lowtide_files::json_from_slice::<serde::de::IgnoredAny>(bytes) {
        Err(e @ (JsonProblem::NotANumber { .. } | JsonProblem::ByteOrderMark)) => {
            Some(e.to_string())
        }
        _ => None,
    }
}

/// Equal texts must become equal tokens, in every process.
fn deterministic(inner: &tokenizers::Tokenizer) -> Result<(), String> {
    let random = match inner.get_model() {
        ModelWrapper::BPE(bpe) if bpe.dropout.is_some_and(|p| p != 0.0) => "BPE dropout",
        ModelWrapper::Unigram(unigram) if unigram.alpha.is_some() => "sampling (alpha)",
        _ => return Ok(()),
    };
    Err(format!(
        "{random} makes other tokens of the same text each time"
    ))
}

/// Most that the replacements of a tokenizer may lengthen a text. Real ones make three bytes of a
/// space.
const GROWTH_MAX: f64 = 256.0;

/// Replacements that feed each other make a page of a letter and a library of a page.
pub(crate) fn bounded_growth(inner: &tokenizers::Tokenizer) -> Result<(), String> {
    let part = |value: serde_json::Result<Value>| value.map_err(|e| e.to_string());
    let parts = [
        part(serde_json::to_value(inner.get_normalizer()))?,
        part(serde_json::to_value(inner.get_decoder()))?,
    ];
    for part in parts {
        let growth = growth(&part);
        if growth > GROWTH_MAX {
            return Err(format!(
                "its replacements lengthen a text up to {growth:.0} times, at most {GROWTH_MAX} is allowed"
            ));
        }
    }
    Ok(())
}

/// How many times longer a text may become by all replacements in a part of the tokenizer.
fn growth(part: &Value) -> f64 {
    match part {
        Value::Array(steps) => steps.iter().map(growth).product(),
        Value::Object(map) => {
            let inner: f64 = map.values().map(growth).product();
            let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::len);
            let content = text(map.get("content")).or(text(map.get("prepend")));
            let own = match (
                content,
                text(map.get("pattern").and_then(|p| p.get("String"))),
            ) {
                (Some(content), Some(pattern)) if pattern > 0 => {
                    (content as f64 / pattern as f64).max(1.0)
                }
                // A regular expression may match anywhere, and nothing.
                (Some(content), _) => 1.0 + content as f64,
                (None, _) => 1.0,
            };
            own * inner
        }
        _ => 1.0,
    }
}

/// What `tokenizer.json` itself says.
struct Vocabulary {
    inner: tokenizers::Tokenizer,
    prefix: Vec<i32>,
    around: Option<PostProcessorWrapper>,
    largest: String,
    ids_end: i32,
}

impl Vocabulary {
    /// Reads a file, once it was found harmless.
    fn load(file: &Path) -> Result<Self, DataError> {
        let corrupt = |reason: String| DataError::Corrupt {
            path: file.to_owned(),
            reason,
        };
        let bytes = lowtide_files::read(file, lowtide_files::VOCABULARY)?;
        if let Some(word) = not_json(&bytes) {
            return Err(corrupt(word));
        }
        trial::harmless(&bytes).map_err(|what| DataError::Hostile {
            path: file.to_owned(),
            what,
        })?;
        let loaded = trial::foreign(|| tokenizers::Tokenizer::from_bytes(&bytes));
        let mut inner = loaded
            .map_err(&corrupt)?
            .map_err(|e| corrupt(e.to_string()))?;
        drop(bytes);
        deterministic(&inner).map_err(&corrupt)?;
        bounded_growth(&inner).map_err(&corrupt)?;
        // Settings of whoever saved the file last, not of the model.
        inner
            .with_truncation(None)
            .map_err(|e| corrupt(e.to_string()))?;
        inner.with_padding(None);
        // Added tokens alone make no vocabulary: all text would vanish.
        if inner.get_vocab_size(false) == 0 {
            return Err(corrupt("the vocabulary is empty".to_owned()));
        }
        let (largest, ids_end) = largest_id(&inner).ok_or_else(|| {
            corrupt("the vocabulary is empty, or an id in it is beyond 2^31".to_owned())
        })?;
        let prefix = trial::prefix(&inner).map_err(|e| corrupt(e.to_string()))?;
        if let Some(id) = prefix.iter().find(|id| !(0..ids_end).contains(*id)) {
            return Err(corrupt(format!(
                "its post_processor puts token {id} in front, which the vocabulary does not have"
            )));
        }
        // It adds special tokens, which `prefix` now knows, and narrows offsets by white space,
        // which the loss mask must not have.
        let around = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self {
            inner,
            prefix,
            around,
            largest,
            ids_end,
        })
    }
}

/// The token with the largest id, and that id plus one.
fn largest_id(inner: &tokenizers::Tokenizer) -> Option<(String, i32)> {
    let all = inner.get_vocab(true).into_iter();
    let (token, id) = all.max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)))?;
    Some((token, i32::try_from(id.checked_add(1)?).ok()?))
}

/// Names of the files beside `tokenizer.json`.
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";

/// A hash of a `tokenizer.json` and of the files beside it that are there.
fn hash_of_files(file: &Path) -> Result<[u8; 32], DataError> {
    let mut all = blake3::Hasher::new();
    let beside = [CONFIG, SPECIAL, TEMPLATE].map(|name| file.with_file_name(name));
    for path in std::iter::once(file.to_owned()).chain(beside) {
        let mut one = blake3::Hasher::new();
        match lowtide_files::open_any(&path) {
            Ok(opened) => one
                .update_reader(opened.file)
                .map_err(|e| DataError::io(&path, e))?,
            Err(e) if e.is_missing() => one.update(b"no file"),
            Err(e) => return Err(e.into()),
        };
        all.update(one.finalize().as_bytes());
    }
    Ok(*all.finalize().as_bytes())
}

/// What the files beside `tokenizer.json` say.
#[derive(Default)]
struct Beside {
    special_tokens: Vec<(String, Value)>,
    templates: Vec<(String, String)>,
    /// The file that they stand in.
    templates_path: Option<PathBuf>,
}

impl Beside {
    fn read(dir: &Path) -> Result<Self, DataError> {
        let mut beside = Self::default();
        let config_path = dir.join(CONFIG);
        let config = json_object(&config_path)?;
        for file in [&config, &json_object(&dir.join(SPECIAL))?] {
            beside.add_special_tokens(file);
        }
        let jinja = dir.join(TEMPLATE);
        match lowtide_files::read_text(&jinja, lowtide_files::SMALL) {
            Ok(source) => {
                beside.templates.push(("default".into(), source));
                beside.templates_path = Some(jinja);
            }
            Err(e) if e.is_missing() => {
                beside.templates = templates(config.get("chat_template")).map_err(|reason| {
                    DataError::Corrupt {
                        path: config_path.clone(),
                        reason,
                    }
                })?;
                beside.templates_path = Some(config_path);
            }
            Err(e) => return Err(e.into()),
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
    let bytes = match lowtide_files::read(path, lowtide_files::LIST) {
        Ok(bytes) => bytes,
        Err(e) if e.is_missing() => return Ok(Map::new()),
        Err(e) => return Err(e.into()),
    };
    lowtide_files::json_from_slice(&bytes).map_err(|e| DataError::Corrupt {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// A tokenizer of another make, where there is no `tokenizer.json`.
fn other_make(path: &Path, file: &Path) -> Option<String> {
    let makes = [
        "tokenizer.model",
        "spiece.model",
        ".bpe.model",
        "tiktoken.model",
        ".tiktoken",
        "tekken.json",
        "merges.txt",
        "vocab.txt",
        "vocab.json",
    ];
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
    match name.filter(|_| path.is_file()) {
        Some(name) => makes.iter().any(|m| name.ends_with(m)).then_some(name),
        None if file.symlink_metadata().is_err() => lowtide_files::find(path, &makes),
        None => None,
    }
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
