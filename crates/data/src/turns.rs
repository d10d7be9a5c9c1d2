//! Where the assistant speaks in a conversation that a template without `{% generation %}` renders.
//!
//! A turn begins where the prompt for generation ends: from there on the model speaks for itself. Where
//! a template ignores `add_generation_prompt`, the header that it writes before the content is not the
//! model's to say. A turn ends behind what the template writes directly behind its content
//! ([`Frame::end`]); what belongs to the next turn, and what is written once at the end of a
//! conversation, is not part of it. Each place is proven by a rendering of this very conversation;
//! what no rendering proves is refused.

use std::cell::OnceCell;
use std::ops::Range;

use serde_json::Value;

use super::chat::ChatTemplate;
use super::frame::{Atoms, Frame, behind, excerpt, ignored, message};
use super::tokenizer::Tokenizer;
use crate::error::RecordProblem;

/// Finds the assistant's turns under one template.
#[derive(Debug)]
pub(crate) struct Turns<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    frame: Result<Frame, String>,
    /// Around turns behind the first one, where that is not the same.
    later: Option<Frame>,
}

/// One conversation, as its template sees it.
pub(super) struct Conversation<'a> {
    pub(super) turns: &'a Turns<'a>,
    pub(super) messages: &'a [Value],
    pub(super) tools: Option<&'a Value>,
    pub(super) whole: &'a str,
    /// A content that is nowhere in it.
    probe: String,
    /// The frame as this conversation's beginning shows it, where the template's alone does not fit.
    own: OnceCell<Result<Frame, String>>,
}

impl<'a> Turns<'a> {
    /// Asks the template what it writes around a turn.
    pub fn new(template: &'a ChatTemplate, tokenizer: &'a Tokenizer) -> Self {
        let render = |messages: &[Value], prompt| Ok(template.render(messages, None, prompt)?.text);
        let frame = Frame::of_template(&render, tokenizer);
        let before = ["user", "assistant", "user"].map(|role| message(role, "Jm5Td"));
        let later = Frame::derive(&render, tokenizer, &before).ok();
        Self {
            template,
            tokenizer,
            later: later.filter(|later| frame.as_ref() != Ok(later)),
            frame,
        }
    }

    /// The texts of the tokens that end an answer, in the first turn or a later one.
    fn stops(&self) -> Vec<&str> {
        let frames = self.frame.iter().chain(&self.later);
        let mut all = Vec::new();
        for stop in frames.flat_map(|frame| frame.stops(self.tokenizer)) {
            if !all.contains(&stop) {
                all.push(stop);
            }
        }
        all
    }

    /// The text of the token with which the template itself ends an answer, of the last message or another one.
    pub fn end_of(&self, last: bool) -> Option<&str> {
        let frame = self.frame.as_ref().ok()?;
        frame.end_token(self.tokenizer, last)
    }

    /// The template that renders it.
    pub fn template(&self) -> &'a ChatTemplate {
        self.template
    }

    /// Whether `{% generation %}` reaches over the token that ends an answer.
    fn marks_its_end(&self) -> bool {
        const ANSWER: &str = "Qkv7Lq";
        let messages = [message("user", "Hv9Rd"), message("assistant", ANSWER)];
        let (Ok(rendered), Ok(frame)) = (self.template.render(&messages, None, false), &self.frame)
        else {
            return true;
        };
        let Some(tail) = behind(&rendered.text, ANSWER) else {
            return true;
        };
        let body = rendered.text.len() - tail.len();
        let token = frame
            .stops(self.tokenizer)
            .into_iter()
            .find_map(|t| Some(tail.find(t)? + t.len()));
        let marked = rendered.generated.last().map_or(0, |range| range.end);
        token.is_none_or(|n| marked >= body + n)
    }

    /// What the template writes around a turn, or why it alone does not show that.
    pub fn frame(&self) -> Result<&Frame, &str> {
        self.frame.as_ref().map_err(String::as_str)
    }

    /// The byte ranges of `whole` in which the assistant speaks, in order and none empty, for messages `wanted`
    /// (indices, ascending).
    pub fn spoken(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        whole: &str,
        wanted: &[usize],
    ) -> Result<Vec<Range<usize>>, RecordProblem> {
        let conversation = Conversation {
            turns: self,
            messages,
            tools,
            whole,
            probe: absent_from(whole),
            own: OnceCell::new(),
        };
        let mut spoken = conversation.all(wanted)?;
        spoken.retain(|range| !range.is_empty());
        Ok(spoken)
    }

    /// The assistant's turns as one rendering shows them, and each as it is proven alone.
    #[cfg(test)]
    #[allow(clippy::type_complexity, reason = "a test looks at both")]
    pub fn both_ways(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
    ) -> Vec<(Option<Range<usize>>, Result<Range<usize>, RecordProblem>)> {
        let Ok(whole) = self.template.render(messages, tools, false) else {
            return Vec::new();
        };
        let conversation = Conversation {
            turns: self,
            messages,
            tools,
            whole: &whole.text,
            probe: absent_from(&whole.text),
            own: OnceCell::new(),
        };
        let turns = (0..messages.len()).filter(|&i| messages[i]["role"] == "assistant");
        let turns: Vec<usize> = turns.collect();
        let aligned = conversation.aligned(&turns).into_iter();
        aligned
            .zip(&turns)
            .map(|(found, &i)| (found, conversation.spoken(i)))
            .collect()
    }

    /// The text to generate from behind `messages`: the template's prompt, with the header of the
    /// assistant's turn also where the template ignores `add_generation_prompt`.
    pub fn prompt(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
    ) -> Result<String, RecordProblem> {
        let text = self.template.render(messages, tools, true)?.text;
        let header = self.frame.as_ref().ok().and_then(|f| f.header.as_deref());
        if header.is_some_and(|h| text.ends_with(h)) {
            return Ok(text);
        }
        let probe = absent_from(&text);
        let mut with = messages.to_vec();
        with.push(message("assistant", &probe));
        let (Ok(without), Ok(with)) = (
            self.template.render(messages, tools, false),
            self.template.render(&with, tools, false),
        ) else {
            return Ok(text);
        };
        if !ignored(&without.text, &text) {
            return Ok(text);
        }
        // The template's own marks say better than the content where the answer begins.
        let begins = match with.generated.last() {
            Some(range) => Some(range.start),
            None => with.text.find(&probe),
        };
        let header = begins.and_then(|at| with.text[..at].strip_prefix(&text));
        Ok(match header {
            Some(header) if !header.trim().is_empty() => text + header,
            _ => text,
        })
    }
}

/// Where a chat template ends the assistant's turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndOfTurn {
    /// What it writes behind an answer, before anything of the next turn.
    pub text: String,
    /// Of the tokens in it those at which decoding stops, with their ids; a template may end the last
    /// turn of a conversation otherwise than the others.
    pub tokens: Vec<(i32, String)>,
    /// Whether a template with `{% generation %}` leaves the first of them outside of it, so that nothing
    /// is learned of it.
    pub unmarked: bool,
}

/// Where the tokenizer's chat template ends the assistant's turns; none without a template.
///
/// # Errors
/// Why its renderings do not tell.
pub fn end_of_turn(tokenizer: &Tokenizer) -> Result<Option<EndOfTurn>, String> {
    let Some(template) = tokenizer.chat_template() else {
        return Ok(None);
    };
    let turns = Turns::new(template, tokenizer);
    let frame = turns.frame.as_ref().map_err(Clone::clone)?;
    let with_id = |text: &str| Some((tokenizer.token_id(text)?, text.to_owned()));
    let stops = turns.stops().into_iter();
    Ok(Some(EndOfTurn {
        text: frame.end.clone(),
        tokens: stops.filter_map(with_id).collect(),
        unmarked: template.marks_assistant() && !turns.marks_its_end(),
    }))
}

/// The text to generate an answer to `messages` from, header of the answer included; none without a chat
/// template.
///
/// # Errors
/// What the template said of these messages.
pub fn generation_prompt(
    tokenizer: &Tokenizer,
    messages: &[Value],
    tools: Option<&Value>,
) -> Option<Result<String, RecordProblem>> {
    let template = tokenizer.chat_template()?;
    Some(Turns::new(template, tokenizer).prompt(messages, tools))
}

/// A word that `text` does not hold.
fn absent_from(text: &str) -> String {
    (0..)
        .map(|n| format!("Qkv7{n}Lq"))
        .find(|word| !text.contains(word))
        .expect("a text is finite")
}

impl Conversation<'_> {
    fn render(&self, n: usize, prompt: bool) -> Result<String, RecordProblem> {
        let messages = &self.messages[..n];
        Ok(self
            .turns
            .template
            .render(messages, self.tools, prompt)?
            .text)
    }

    /// The first `n` messages, with the probe for what the assistant says in message `i`.
    fn probed(&self, n: usize, i: usize) -> Result<String, RecordProblem> {
        let mut messages = self.messages[..n].to_vec();
        messages[i] = message("assistant", &self.probe);
        Ok(self
            .turns
            .template
            .render(&messages, self.tools, false)?
            .text)
    }

    /// Where the assistant speaks in message `i`.
    pub(super) fn spoken(&self, i: usize) -> Result<Range<usize>, RecordProblem> {
        let first = match self.turns.frame() {
            Ok(frame) => self.turn(i, frame),
            Err(reason) => Err(self.no_end(i, reason)),
        };
        match first {
            Err(RecordProblem::TurnEnd { .. }) => match self.own_frame() {
                Ok(own) if self.turns.frame() != Ok(own) => self.turn(i, own),
                _ => first,
            },
            first => first,
        }
    }

    /// What the template writes around a turn, behind the messages that lead up to this conversation's
    /// first one: some templates render nothing without tools or a system prompt.
    fn own_frame(&self) -> &Result<Frame, String> {
        self.own.get_or_init(|| {
            let first = self.messages.iter().position(|m| m["role"] == "assistant");
            let render = |messages: &[Value], prompt| {
                Ok(self
                    .turns
                    .template
                    .render(messages, self.tools, prompt)?
                    .text)
            };
            let before = &self.messages[..first.unwrap_or(0)];
            Frame::derive(&render, self.turns.tokenizer, before)
        })
    }

    fn turn(&self, i: usize, frame: &Frame) -> Result<Range<usize>, RecordProblem> {
        let before = match self.render(i, true) {
            Err(RecordProblem::Render { reason, .. }) if i == 0 => {
                let reason = format!("it renders nothing to begin with: {reason}");
                return Err(self.no_end(i, &reason));
            }
            before => before?,
        };
        if !self.whole.starts_with(&before) {
            return Err(self.not_a_prefix(i, &before));
        }
        let mut from = before.len();
        if !frame.header.as_deref().is_some_and(|h| before.ends_with(h)) {
            let header = self.header(i, &before)?;
            if !self.whole[from..].starts_with(&header) {
                return Err(self.no_end(
                    i,
                    &format!(
                        "it writes {header:?} before another content and {:?} here",
                        excerpt(self.whole, from)
                    ),
                ));
            }
            from += header.len();
        }
        let (to, end) = self.end(i, frame, from)?;
        Ok(self.said(i, from, to, end))
    }

    /// What the assistant says in message `i`, of what stands from `from` to where its turn ends. White space behind
    /// a token that ends the turn belongs to the frame, not to the answer.
    pub(super) fn said(&self, i: usize, from: usize, to: usize, end: &str) -> Range<usize> {
        let trimmed = self.whole[..to].trim_end();
        let ends = |text: &str| self.turns.tokenizer.special_at_end(text).is_some();
        // Some turns end with a token that the frame does not have: then it stands behind the content here.
        let behind = || {
            let content = self.messages[i]["content"].as_str()?.trim();
            let turn = self.whole.get(from..to)?.trim_start();
            turn.strip_prefix(content).filter(|_| !content.is_empty())
        };
        let trim = ends(trimmed)
            && (ends(end.trim_end()) || behind().is_some_and(|text| ends(text.trim_end())));
        let to = if trim { trimmed.len() } else { to };
        from..to.max(from)
    }

    /// What stands between `before` and the content of message `i` and is not the model's to say: the
    /// header, where the template does not write it for generation.
    fn header(&self, i: usize, before: &str) -> Result<String, RecordProblem> {
        let probed = self.probed(i + 1, i)?;
        let header = probed
            .strip_prefix(before)
            .and_then(|rest| rest.split_once(&self.probe))
            .map(|(header, _)| header);
        let Some(header) = header else {
            return Err(self.no_end(i, "it does not write the assistant's content as it is"));
        };
        if header.trim().is_empty() || !ignored(&self.render(i, false)?, before) {
            return Ok(String::new());
        }
        Ok(header.to_owned())
    }

    /// Where message `i`, whose turn begins at `from`, ends in the whole, and with what.
    fn end<'f>(
        &self,
        i: usize,
        frame: &'f Frame,
        from: usize,
    ) -> Result<(usize, &'f str), RecordProblem> {
        let (end, tail): (&str, &str) = (&frame.end, &frame.tail);
        let last = i + 1 == self.messages.len();
        // Behind an end that decoding does not stop at, the model learns the last thing that a
        // conversation ends with.
        let to_the_last = last && !frame.end_stops && !frame.tail_has_header;
        let said = |end: &str| Atoms::of(self.turns.tokenizer).said(end);
        // The conversation up to this turn ends with it, but for a header.
        let up_to = match &frame.header {
            _ if frame.end_goes_on => None,
            Some(header) if frame.header_follows => self
                .render(i + 1, true)?
                .strip_suffix(header)
                .map(str::to_owned),
            _ if tail == end && !last => Some(self.render(i + 1, false)?),
            _ => None,
        };
        if let Some(up_to) = up_to
            && up_to.len() >= from
            && self.whole.starts_with(&up_to)
        {
            let unsaid = tail.len() - said(tail);
            return Ok(match to_the_last {
                true => (self.whole.len() - unsaid, &tail[..tail.len() - unsaid]),
                false => (up_to.len(), end),
            });
        }
        // The same conversation with another content: what stands behind that stands behind this one.
        let probed = self.probed(self.messages.len(), i)?;
        let Some(behind_probe) = behind(&probed, &self.probe) else {
            return Err(self.no_end(
                i,
                "it does not write the assistant's content as it is, once",
            ));
        };
        let body = self.whole.strip_suffix(behind_probe);
        let Some(body) = body.filter(|body| body.len() >= from) else {
            return Err(self.no_end(
                i,
                &format!(
                    "behind another content it writes {:?}, and the whole goes on with {:?}",
                    excerpt(behind_probe, 0),
                    excerpt(self.whole, from)
                ),
            ));
        };
        let body = body.len();
        let shown = if behind_probe.starts_with(end) {
            end
        } else {
            end.trim_end()
        };
        match behind_probe.starts_with(shown) {
            true if to_the_last => Ok((body + said(behind_probe), &tail[..said(tail)])),
            true => Ok((body + shown.len(), end)),
            // At the end of a conversation it writes another end of turn.
            false if last && !frame.tail_has_header => {
                Ok((body + said(behind_probe), &tail[..said(tail)]))
            }
            false => Err(self.no_end(
                i,
                &format!(
                    "behind the content of a last message it writes {end:?}, and here {:?}",
                    excerpt(behind_probe, 0)
                ),
            )),
        }
    }

    fn not_a_prefix(&self, i: usize, before: &str) -> RecordProblem {
        let common = before.bytes().zip(self.whole.bytes());
        let parts_at = common.take_while(|(a, b)| a == b).count();
        RecordProblem::NotAPrefix {
            message: i,
            parts_at,
            alone: excerpt(before, parts_at),
            whole: excerpt(self.whole, parts_at),
        }
    }

    fn no_end(&self, i: usize, reason: &str) -> RecordProblem {
        RecordProblem::TurnEnd {
            message: i,
            reason: reason.to_owned(),
        }
    }
}
