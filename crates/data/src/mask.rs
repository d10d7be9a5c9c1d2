//! From a record to tokens and the loss mask: which tokens the model learns to say.
//!
//! By default those are the assistant's (or the completion and the end of sequence; of a bare
//! text, all). A mask that is silently wrong trains on prompts or on nothing, so nothing here
//! guesses: what the template does not say and rendering cannot prove is an error.
//!
//! One file because the tokens that are trained on and the prompt that is generated from must be cut alike.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value;

use super::chat::{ChatTemplate, Rendered};
use super::dataset::Classes;
use super::jsonl::{Format, Record, Schema};
use super::long;
use super::marks::is_assistant;
use super::pairs::Pairs;
use super::remarks::Remarks;
use super::tokenizer::Tokenizer;
use super::turns::Turns;
use crate::error::{DataError, RecordProblem};

/// Which tokens are supervised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossOn {
    /// What the assistant says in every turn, with its end of turn; the completion; all of a
    /// bare text.
    #[default]
    Answers,
    /// Every token carries loss.
    Everything,
}

/// A tokenised record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// Ids of its tokens.
    pub tokens: Vec<i32>,
    /// For each of them, whether the model learns to say it; where there is a class, whether it is of the second text.
    pub supervised: Vec<bool>,
    /// What the model learns to say of all of them, if not the tokens themselves.
    pub class: Option<i32>,
}

impl Example {
    /// How many labels it has.
    pub(super) fn labels(&self) -> u64 {
        match self.class {
            Some(_) => 1,
            None => self.supervised.iter().filter(|&&s| s).count() as u64,
        }
    }

    /// As it is stored: a class is a number before the tokens.
    pub(super) fn stored(&self) -> Cow<'_, Self> {
        let Some(class) = self.class else {
            return Cow::Borrowed(self);
        };
        Cow::Owned(Self {
            tokens: [&[class], &self.tokens[..]].concat(),
            supervised: [&[false], &self.supervised[..]].concat(),
            class: None,
        })
    }

    /// What was stored with a class.
    pub(super) fn with_class(mut self) -> Self {
        self.supervised.remove(0);
        self.class = Some(self.tokens.remove(0));
        self
    }

    fn push(&mut self, tokens: &[i32], supervised: bool) {
        self.tokens.extend(tokens);
        self.supervised.resize(self.tokens.len(), supervised);
    }

    /// The same where the tokenizer has put one there: whether there was another one before it.
    fn ends_once(&mut self, eos: i32) -> bool {
        let had = self.tokens.ends_with(&[eos, eos]) && self.supervised.ends_with(&[true, true]);
        self.end(eos);
        had
    }

    /// Ends the example with one `eos`, which is supervised; whether it ended with it before.
    fn end(&mut self, eos: i32) -> bool {
        // A prompt's is none of the completion.
        let had = self.tokens.last() == Some(&eos) && self.supervised.last() == Some(&true);
        while self.tokens.ends_with(&[eos, eos]) && self.supervised.ends_with(&[true, true]) {
            self.tokens.pop();
            self.supervised.pop();
        }
        if !had {
            self.push(&[eos], true);
        }
        had
    }
}

/// The tokens of a text that begins a sequence, with the tokenizer's beginning.
struct First {
    tokens: Vec<i32>,
    /// Whether the text had the beginning written out.
    had_begin: bool,
}

/// The roles that say how a conversation is to be led.
const SYSTEM: &str = "system";
const DEVELOPER: &str = "developer";

/// Turns lines of one schema into examples.
#[derive(Debug)]
pub struct Encoder<'a> {
    schema: Schema,
    /// What records are encoded as.
    format: Format,
    tokenizer: &'a Tokenizer,
    ending: Ending<'a>,
    loss_on: LossOn,
    separator: String,
    system: Option<String>,
}

/// What marks ends in this data, looked up before the first record.
#[derive(Debug)]
enum Ending<'a> {
    Template(Turns<'a>),
    Eos(i32),
    /// What the tokenizer puts around texts.
    Around(Pairs<'a>),
}

impl<'a> Encoder<'a> {
    /// An encoder for lines of `schema`; `separator` stands between prompt and completion and
    /// belongs to the prompt. Fails where chat data meets a tokenizer without chat template, or
    /// other data one without end-of-sequence token.
    pub fn new(
        schema: Schema,
        tokenizer: &'a Tokenizer,
        loss_on: LossOn,
        separator: &str,
    ) -> Result<Self, DataError> {
        Self::classifying(schema, tokenizer, loss_on, separator, None)
    }

    /// The same where records have one of these classes.
    pub(crate) fn classifying(
        schema: Schema,
        tokenizer: &'a Tokenizer,
        loss_on: LossOn,
        separator: &str,
        classes: Option<&'a Classes>,
    ) -> Result<Self, DataError> {
        let path = || tokenizer.path().to_owned();
        let format = match schema.format {
            Format::Alpaca if tokenizer.chat_template().is_some() => Format::Messages,
            Format::Alpaca => Format::PromptCompletion,
            format => format,
        };
        let ending = match format {
            Format::Messages => {
                let template = tokenizer.chat_template();
                let template =
                    template.ok_or_else(|| DataError::NoChatTemplate { path: path() })?;
                Ending::Template(Turns::new(template, tokenizer))
            }
            Format::Classes => {
                let classes = classes.ok_or_else(|| DataError::NoClasses { path: path() })?;
                Ending::Around(Pairs::new(classes, tokenizer))
            }
            _ => Ending::Eos(
                tokenizer
                    .eos()
                    .ok_or_else(|| DataError::NoEosToken { path: path() })?,
            ),
        };
        Ok(Self {
            schema,
            format,
            tokenizer,
            ending,
            loss_on,
            separator: separator.to_owned(),
            system: None,
        })
    }

    /// The same with a system prompt for conversations that bring none.
    #[must_use]
    pub fn with_system(self, system: Option<String>) -> Self {
        Self { system, ..self }
    }

    /// A line's record, and 1 where answers in it had the end written out that the template writes behind them.
    fn parse(&self, line: &str) -> Result<(Record, u64), RecordProblem> {
        let mut record = match (self.schema.parse(line)?, self.format) {
            (Record::Instruction(one), Format::Messages) => {
                let messages = one.with_system(self.system.as_ref()).conversation();
                Record::Messages {
                    marks: vec![None; messages.len()],
                    messages,
                    n_prompt: 0,
                    tools: None,
                }
            }
            (Record::Instruction(one), _) => {
                let one = one.with_system(self.system.as_ref());
                let (prompt, completion) = one.prompt_completion();
                Record::PromptCompletion { prompt, completion }
            }
            (record, _) => record,
        };
        if let (Record::Messages { messages, .. }, Ending::Template(turns)) =
            (&mut record, &self.ending)
            && !turns.template().mentions(DEVELOPER)
        {
            // Templates that do not know the role have the system's for it.
            let all = messages.iter_mut().filter(|m| m["role"] == DEVELOPER);
            all.for_each(|m| m["role"] = SYSTEM.into());
        }
        if let (
            Record::Messages {
                messages,
                marks,
                n_prompt,
                ..
            },
            Some(system),
        ) = (&mut record, &self.system)
            && messages
                .first()
                .is_some_and(|m| m["role"] != SYSTEM && m["role"] != DEVELOPER)
        {
            marks.insert(0, None);
            *n_prompt += usize::from(*n_prompt > 0);
            messages.insert(0, serde_json::json!({ "role": SYSTEM, "content": system }));
        }
        let n_ended = match (&mut record, &self.ending) {
            (Record::Messages { messages, .. }, Ending::Template(turns)) => {
                let last = messages.len().saturating_sub(1);
                let answers = messages.iter_mut().enumerate();
                let ended = answers
                    .filter(|(_, message)| is_assistant(message))
                    .filter_map(|(i, message)| {
                        let end = turns.end_of(i == last)?;
                        cut_ends(text_of(message)?, end).then_some(())
                    });
                u64::from(ended.count() > 0)
            }
            _ => 0,
        };
        Ok((record, n_ended))
    }

    /// How records are read.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// What records are encoded as: conversations, prompts with completions, or texts.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The tokens of one line and which of them are supervised.
    pub fn example(&self, line: &str) -> Result<Example, RecordProblem> {
        self.encode(line).map(|(example, _)| example)
    }

    /// The same, with what people should hear of the line.
    pub(crate) fn encode(&self, line: &str) -> Result<(Example, Remarks), RecordProblem> {
        let mut remarks = Remarks::default();
        let (record, n_ended) = self.parse(line)?;
        remarks.n_had_end += n_ended;
        let mut example = match (record, &self.ending) {
            (
                Record::Messages {
                    messages,
                    mut marks,
                    n_prompt,
                    tools,
                },
                Ending::Template(turns),
            ) => {
                remarks.of_messages(&messages, &marks, turns.template());
                match self.loss_on {
                    LossOn::Everything => remarks.n_marked_others = 0,
                    // What the assistant says in a prompt is given.
                    LossOn::Answers => (0..n_prompt)
                        .filter(|&i| is_assistant(&messages[i]))
                        .for_each(|i| marks[i] = Some(false)),
                }
                let (example, whole) =
                    self.conversation(turns, &messages, &marks, tools.as_ref())?;
                remarks.of_calls(&messages, tools.as_ref(), &whole, turns.template());
                return Ok((example, remarks));
            }
            (Record::PromptCompletion { prompt, completion }, Ending::Eos(eos)) => {
                let completion = self.up_to_end(&completion, *eos)?;
                let (prompt, completion) = self.prompt_completion(&prompt, completion)?;
                let mut example = Example::default();
                remarks.n_had_begin += u64::from(prompt.had_begin);
                example.push(&prompt.tokens, false);
                example.push(&completion, true);
                remarks.n_had_end += u64::from(example.end(*eos));
                example
            }
            (Record::Text(text), Ending::Eos(eos)) => {
                let mut example = Example::default();
                let first = self.encode_first(self.up_to_end(&text, *eos)?)?;
                remarks.n_had_begin += u64::from(first.had_begin);
                let prefix = self.tokenizer.prefix().len();
                example.push(&first.tokens[..prefix], false);
                example.push(&first.tokens[prefix..], true);
                remarks.n_had_end += u64::from(example.end(*eos));
                example
            }
            (
                Record::Classified {
                    text,
                    text_pair,
                    label,
                },
                Ending::Around(pairs),
            ) => {
                let (example, cut) = pairs.example(&text, text_pair.as_deref(), &label)?;
                remarks.n_texts_cut += u64::from(cut);
                return Ok((example, remarks));
            }
            (Record::Pair { source, target }, Ending::Eos(eos)) => {
                let mut example = Example::default();
                example.push(&self.tokenizer.encode_alone(&source)?, false);
                let target = self.up_to_end(&target, *eos)?;
                example.push(&self.tokenizer.encode_alone(target)?, true);
                remarks.n_had_end += u64::from(example.ends_once(*eos));
                return Ok((example, remarks));
            }
            _ => unreachable!("the schema decides both the record and its ending"),
        };
        if self.loss_on == LossOn::Everything {
            example.supervised.fill(true);
        }
        Ok((example, remarks))
    }

    /// The tokens to generate from and the text of the answer expected after them: the
    /// conversation up to its last assistant turn, or prompt and completion.
    pub fn prompt(&self, line: &str) -> Result<(Vec<i32>, String), RecordProblem> {
        match (self.parse(line)?.0, &self.ending) {
            (
                Record::Messages {
                    messages, tools, ..
                },
                Ending::Template(turns),
            ) => {
                let last = messages.iter().rposition(is_assistant);
                let last = last.ok_or(RecordProblem::NoReference)?;
                let mut reference = messages[last]["content"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                // Decoding stops there, whether it is the last message or not.
                for end in [true, false]
                    .into_iter()
                    .filter_map(|last| turns.end_of(last))
                {
                    cut_ends(&mut reference, end);
                }
                let text = turns.prompt(&messages[..last], tools.as_ref())?;
                Ok((self.tokenizer.encode(&text)?, reference))
            }
            (Record::PromptCompletion { prompt, completion }, _) => Ok((
                self.encode_first(&format!("{prompt}{}", self.separator))?
                    .tokens,
                self.without_end(completion),
            )),
            (Record::Pair { source, target }, _) => Ok((
                self.tokenizer.encode_alone(&source)?,
                self.without_end(target),
            )),
            _ => Err(RecordProblem::NoPrompt {
                format: self.schema.format.name(),
            }),
        }
    }

    /// A text without the white space behind the end of sequence that it has written out: nothing can be said
    /// there.
    fn up_to_end<'t>(&self, text: &'t str, eos: i32) -> Result<&'t str, RecordProblem> {
        let trimmed = text.trim_end();
        let end = self.tokenizer.decode(&[eos], true);
        let ends = trimmed.len() < text.len() && !end.is_empty() && trimmed.ends_with(&end);
        Ok(match ends && self.tokenizer.encode(&end)? == [eos] {
            true => trimmed,
            false => text,
        })
    }

    /// A reference answer is compared with an answer's text, which has no end of sequence.
    fn without_end(&self, completion: String) -> String {
        let Ending::Eos(eos) = self.ending else {
            return completion;
        };
        let (end, mut completion) = (self.tokenizer.decode(&[eos], true), completion);
        cut_ends(&mut completion, &end);
        completion
    }

    /// The tokens of a text that begins a sequence. A beginning that the text has written out is not
    /// put in front of it once more.
    fn encode_first(&self, text: &str) -> Result<First, RecordProblem> {
        let (prefix, tokens) = (self.tokenizer.prefix(), self.tokenizer.encode(text)?);
        let had_begin = !prefix.is_empty() && tokens.starts_with(prefix);
        Ok(First {
            tokens: if had_begin {
                tokens
            } else {
                [prefix, &tokens].concat()
            },
            had_begin,
        })
    }

    /// Prompt and completion, cut where generation will cut them: the prompt's tokens are those
    /// of the prompt alone. Where the tokens of the whole do not begin so (a token would reach
    /// over the border), the completion is tokenised as what stands in the middle of a text.
    fn prompt_completion(
        &self,
        prompt: &str,
        completion: &str,
    ) -> Result<(First, Vec<i32>), RecordProblem> {
        let prompt = format!("{prompt}{}", self.separator);
        let whole = self.encode_first(&format!("{prompt}{completion}"))?;
        let prompt = self.encode_first(&prompt)?;
        let completion = match whole.tokens.strip_prefix(&prompt.tokens[..]) {
            Some(rest) => rest.to_vec(),
            None => self.tokenizer.encode_inside(completion)?,
        };
        Ok((prompt, completion))
    }

    /// A conversation's tokens and mask, and its text.
    fn conversation(
        &self,
        turns: &Turns<'_>,
        messages: &[Value],
        marks: &[Option<bool>],
        tools: Option<&Value>,
    ) -> Result<(Example, String), RecordProblem> {
        let template = turns.template();
        let whole = template.render(messages, tools, false)?;
        let everything = self.loss_on == LossOn::Everything;
        // The turns to find: what is trained on, or of everything what is not.
        let wanted: Vec<usize> = (0..messages.len())
            .filter(|&i| is_assistant(&messages[i]) && (marks[i] == Some(false)) == everything)
            .collect();
        if everything
            && let Some(i) = (0..messages.len())
                .find(|&i| marks[i] == Some(false) && !is_assistant(&messages[i]))
        {
            return Err(RecordProblem::MarkedAgainst {
                message: i,
                role: messages[i]["role"].as_str().unwrap_or_default().to_owned(),
            });
        }
        let none_marked = !marks.contains(&Some(false));
        let spoken = if template.marks_assistant() && none_marked && !everything {
            whole.generated
        } else if template.marks_assistant() {
            blocks_of(&wanted, template, messages, tools, &whole)?
        } else {
            turns.spoken(messages, tools, &whole.text, &wanted)?
        };
        let tokens = self.tokenizer.encode_with_ranges(&whole.text)?;
        let mut supervised = overlapping(tokens.iter().map(|(_, range)| range), &spoken);
        if everything {
            supervised.iter_mut().for_each(|s| *s = !*s);
        }
        let example = Example {
            supervised,
            tokens: tokens.into_iter().map(|(id, _)| id).collect(),
            class: None,
        };
        Ok((example, whole.text))
    }
}

/// Those of the template's generation blocks that messages `wanted` (the assistant's, in order) are in.
///
/// A message's blocks lie between the ends of the conversation without it and with it, where both are
/// prefixes of the whole. A template may write more behind a turn once another follows, such as a
/// separator: a block that begins in the turn then ends before the content of the next message. Templates
/// that render a turn differently once another follows have no such ends; then each of the assistant's
/// messages must have one block.
fn blocks_of(
    wanted: &[usize],
    template: &ChatTemplate,
    messages: &[Value],
    tools: Option<&Value>,
    whole: &Rendered,
) -> Result<Vec<Range<usize>>, RecordProblem> {
    let turns: Vec<usize> = (0..messages.len())
        .filter(|&i| is_assistant(&messages[i]))
        .collect();
    let end = |n: usize| {
        if n == 0 {
            return Some(0);
        }
        let text = template.render(&messages[..n], tools, false).ok()?.text;
        whole.text.starts_with(&text).then_some(text.len())
    };
    let one_each = turns.len() == whole.generated.len();
    let of_turn = |i: usize| {
        if let (Some(from), Some(to)) = (end(i), end(i + 1)) {
            let next = next_content(template, messages, tools, i, &whole.text).unwrap_or(to);
            let inside = |block: &&Range<usize>| {
                from <= block.start && (block.end <= to || block.start < to && block.end <= next)
            };
            return Ok(whole.generated.iter().filter(inside).cloned().collect());
        }
        if one_each {
            let at = turns.iter().position(|&turn| turn == i).expect("a turn");
            return Ok(vec![whole.generated[at].clone()]);
        }
        Err(RecordProblem::BlocksOfTurn {
            message: i,
            blocks: whole.generated.len(),
            turns: turns.len(),
        })
    };
    // Of many turns, those whose blocks are seen without a rendering; some of them are held against that.
    let mut found: Vec<Option<Vec<Range<usize>>>> = vec![None; wanted.len()];
    if wanted.len() > long::FEW {
        let all = long::blocks_in_order(wanted, template, messages, &whole.generated, &whole.text);
        let seen: Vec<usize> = (0..all.len()).filter(|&k| all[k].is_some()).collect();
        let agree = |k: usize| {
            let k = seen[k];
            of_turn(wanted[k]).ok() == all[k].clone().map(|block| vec![block])
        };
        if long::some_of(seen.len()).all(agree) {
            found = all
                .into_iter()
                .map(|block| block.map(|b| vec![b]))
                .collect();
        }
        let alone = found.iter().filter(|f| f.is_none()).count();
        long::bounded(alone, messages.len())?;
    }
    let each = wanted.iter().zip(found);
    let blocks = each.map(|(&i, found)| found.map_or_else(|| of_turn(i), Ok));
    Ok(blocks.collect::<Result<Vec<_>, RecordProblem>>()?.concat())
}

/// Where in the text of the whole conversation the content of the message behind message `i` begins, at the
/// latest: up to there it is the same with another content.
fn next_content(
    template: &ChatTemplate,
    messages: &[Value],
    tools: Option<&Value>,
    i: usize,
    whole: &str,
) -> Option<usize> {
    let mut up_to = messages.get(..i + 2)?.to_vec();
    let content = &mut up_to[i + 1]["content"];
    let begins = |c: char| {
        content
            .as_str()
            .is_some_and(|s| s.trim_start().starts_with(c))
    };
    let other = if begins('0') { "1" } else { "0" };
    *content = Value::from(other);
    let text = template.render(&up_to, tools, false).ok()?.text;
    let same = whole.bytes().zip(text.bytes()).take_while(|(a, b)| a == b);
    Some(same.count())
}

/// Cuts the ends that a text has written out at its end off, with the white space behind them; whether there were any.
fn cut_ends(text: &mut String, end: &str) -> bool {
    let n = text.len();
    while !end.is_empty()
        && let Some(rest) = text.trim_end().strip_suffix(end)
    {
        text.truncate(rest.len());
    }
    text.len() < n
}

/// The text of a message, or of the last of its parts.
fn text_of(message: &mut Value) -> Option<&mut String> {
    let content = message.get_mut("content")?;
    let text = match content {
        Value::Array(parts) => parts.last_mut()?.get_mut("text")?,
        text => text,
    };
    match text {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// For each token, whether its bytes overlap a range of `spans` (in order, apart from each
/// other). A token of no bytes counts where it stands.
fn overlapping<'r>(
    tokens: impl Iterator<Item = &'r Range<usize>>,
    spans: &[Range<usize>],
) -> Vec<bool> {
    let mut spans = spans.iter().peekable();
    tokens
        .map(|token| {
            while spans.next_if(|span| span.end <= token.start).is_some() {}
            spans
                .peek()
                .is_some_and(|span| span.start < token.end.max(token.start + 1))
        })
        .collect()
}

#[cfg(test)]
#[path = "mask_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "shapes_tests.rs"]
mod shapes;
