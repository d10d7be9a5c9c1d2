//! What a chat template writes around an assistant's turn, derived by rendering.
//!
//! A template is a program; which of its text belongs to which turn it does not say. Conversations
//! with known contents say it: what stands between them is the template's, and comparing renderings
//! (with and without the prompt for generation, with and without what follows) tells the end of a
//! turn from the header of the next one and from what is written once, at the end of a conversation.

use serde_json::{Value, json};

use super::tokenizer::Tokenizer;
use crate::error::RecordProblem;

/// Renders messages, up to where the answer begins if the flag is set.
pub(crate) type Render<'a> = dyn Fn(&[Value], bool) -> Result<String, RecordProblem> + 'a;

/// What stands around an assistant's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What `add_generation_prompt` adds behind a user's turn; none if the template ignores it.
    pub header: Option<String>,
    /// Whether it adds the same behind an assistant's turn, and nothing more.
    pub header_follows: bool,
    /// Behind an assistant's content, and belonging to its turn: up to where decoding stops at the latest.
    pub end: String,
    /// Whether text stands behind `end`, before anything of the next turn: nothing can say it.
    pub end_goes_on: bool,
    /// Behind the content of the last message, if that is the assistant's: often `end`.
    pub tail: String,
    /// Whether `tail` goes on after `end` with the header of the next turn.
    pub tail_has_header: bool,
    /// Whether `end` holds a token that decoding can stop at.
    pub end_stops: bool,
}

impl Frame {
    /// Derives it with probes behind the messages `before`, the last of which an assistant can answer.
    ///
    /// # Errors
    /// Why the renderings do not tell, for people.
    pub fn derive(
        render: &Render<'_>,
        tokenizer: &Tokenizer,
        before: &[Value],
    ) -> Result<Self, String> {
        let [a, b] = ["Qkv7Lq", "Zwx4Tz"].map(|content| {
            Derivation {
                render,
                atoms: Atoms::of(tokenizer),
                eos: tokenizer.eos_text(),
                before,
                content,
            }
            .frame()
        });
        let (a, b) = (a?, b?);
        if a != b {
            return Err("it writes other text around one content than around another".to_owned());
        }
        Ok(a)
    }

    /// The same behind a single user's turn, or a system prompt and a user's turn where the template
    /// asks for one.
    pub fn of_template(render: &Render<'_>, tokenizer: &Tokenizer) -> Result<Self, String> {
        let (system, user) = (message("system", "Yj3Nm"), message("user", USER));
        Self::derive(render, tokenizer, std::slice::from_ref(&user))
            .or_else(|e| Self::derive(render, tokenizer, &[system, user]).map_err(|_| e))
    }

    /// The texts of the tokens that end an answer: in what stands behind the content, the first that
    /// decoding can stop at, in the middle of a conversation and at its end.
    pub fn stops<'a>(&'a self, tokenizer: &Tokenizer) -> Vec<&'a str> {
        let atoms = Atoms::of(tokenizer);
        let mut stops = Vec::from_iter(atoms.first(&self.end));
        if !self.tail_has_header && !self.ends_tail() {
            stops.extend(atoms.first(&self.tail).filter(|s| !stops.contains(s)));
        }
        stops
    }

    /// The token that ends an answer, of a conversation's last message or of another one.
    pub fn end_token<'a>(&'a self, tokenizer: &Tokenizer, last: bool) -> Option<&'a str> {
        let atoms = Atoms::of(tokenizer);
        match last && !self.tail_has_header {
            true => atoms.first(&self.tail),
            false => atoms.first(&self.end),
        }
    }

    /// Whether the tail begins with the end, and decoding would have stopped there.
    fn ends_tail(&self) -> bool {
        self.end_stops && self.tail.starts_with(self.end.trim_end())
    }
}

/// Contents that stand for a user's; they hold nothing that a template looks for.
const USER: &str = "Hv9Rd";
const NEXT: &str = "Wc2Pf";

pub(crate) fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// What stands behind the only occurrence of `content`.
pub(crate) fn behind<'t>(text: &'t str, content: &str) -> Option<&'t str> {
    let (_, after) = text.split_once(content)?;
    (!after.contains(content)).then_some(after)
}

/// Whether the prompt for generation adds nothing that could be a header.
pub(crate) fn ignored(without: &str, with: &str) -> bool {
    without.trim_end() == with.trim_end()
}

/// What stands around a byte, in few words.
pub(crate) fn excerpt(text: &str, at: usize) -> String {
    const CHARS: usize = 32;
    let at = text.floor_char_boundary(at.min(text.len()));
    let mut shown: Vec<char> = text[..at].chars().rev().take(CHARS).collect();
    shown.reverse();
    shown.extend(text[at..].chars().take(CHARS));
    shown.into_iter().collect()
}

struct Derivation<'a> {
    render: &'a Render<'a>,
    atoms: Atoms<'a>,
    eos: Option<&'a str>,
    before: &'a [Value],
    content: &'a str,
}

/// An end of turn that the last turn does not have.
enum Hidden<'t> {
    /// The prompt for generation writes it before the header.
    BeforePrompt(&'t str),
    /// It is only seen where another turn follows.
    InTheMiddle(&'t str),
}

/// Renderings of one conversation.
struct Texts {
    /// Up to the assistant's turn, without and with the prompt for generation.
    without: String,
    with: String,
    /// Behind the assistant's content: at the end, before a prompt for generation, and what stands
    /// before the content of a user's turn that follows.
    tail: String,
    prompted: String,
    followed: String,
    /// Whether the conversation goes on as it ended before the assistant's turn.
    goes_on: bool,
}

impl Derivation<'_> {
    fn render(&self, messages: &[Value], prompt: bool) -> Result<String, String> {
        (self.render)(messages, prompt).map_err(|e| e.to_string())
    }

    fn texts(&self) -> Result<Texts, String> {
        let (without, with) = (
            self.render(self.before, false)?,
            self.render(self.before, true)?,
        );
        let mut messages = self.before.to_vec();
        messages.push(message("assistant", self.content));
        let last = self.render(&messages, false)?;
        let prompted = self.render(&messages, true)?;
        messages.push(message("user", NEXT));
        let followed = self.render(&messages, false)?;
        let behind = |text: &str| {
            behind(text, self.content)
                .map(str::to_owned)
                .ok_or("it does not write an assistant's content as it is, once")
        };
        let (followed, after) = behind(&followed)?
            .split_once(NEXT)
            .map(|(a, b)| (a.to_owned(), b.contains(NEXT)))
            .ok_or("it does not write a user's content as it is, once")?;
        if after {
            return Err("it writes a user's content twice".to_owned());
        }
        Ok(Texts {
            goes_on: last.starts_with(&without),
            tail: behind(&last)?,
            prompted: behind(&prompted)?,
            without,
            with,
            followed,
        })
    }

    fn frame(&self) -> Result<Frame, String> {
        let texts = self.texts()?;
        let header = if ignored(&texts.without, &texts.with) {
            None
        } else {
            let cut = self.atoms.common(&texts.without, &texts.with).ok_or(
                "what it adds for generation cannot be distinguished from what it writes at the end of a conversation",
            )?;
            Some(&texts.with[cut..]).filter(|h| !h.trim().is_empty())
        };
        let prompted = header
            .filter(|_| texts.prompted != texts.tail)
            .and_then(|h| texts.prompted.strip_suffix(h));
        let (mut header_follows, mut tail_has_header) = (false, false);
        let end = if let Some(end) = prompted {
            header_follows = texts.followed.starts_with(self.trimmed(end));
            if header_follows {
                end
            } else {
                self.common(end, &texts.followed)?
            }
        } else if texts.followed == texts.tail && !texts.tail.trim().is_empty() {
            let end = self.before_user_header(&texts)?;
            tail_has_header = end.len() < texts.tail.len();
            end
        } else if texts.followed.starts_with(&texts.tail) {
            &texts.tail
        } else if header.is_none() && self.header_is_always_there(&texts) {
            tail_has_header = true;
            self.before_any_header(&texts)?
        } else {
            self.common(&texts.tail, &texts.followed)?
        };
        let shown = match tail_has_header {
            true => "",
            false => prompted.unwrap_or(&texts.tail),
        };
        let (end, header) = match self.hidden_end(&texts, end, header, shown)? {
            None => (end, header),
            Some(Hidden::BeforePrompt(hidden)) => {
                (hidden, header.map(|_| &texts.prompted[hidden.len()..]))
            }
            Some(Hidden::InTheMiddle(hidden)) => (hidden, header),
        };
        let said = self.atoms.said(end);
        Ok(Frame {
            header: header.map(str::to_owned),
            header_follows,
            end: end[..said].to_owned(),
            end_goes_on: said < end.len(),
            tail_has_header,
            end_stops: self.atoms.first(end).is_some(),
            tail: texts.tail.clone(),
        })
    }

    fn common<'t>(&self, a: &'t str, b: &str) -> Result<&'t str, String> {
        let cut = self.atoms.common(a, b).ok_or_else(|| {
            format!(
                "behind the assistant's content it writes {:?} at one time and {:?} at another, and where \
                 the turn ends in them is unclear",
                excerpt(a, 0),
                excerpt(b, 0)
            )
        })?;
        Ok(&a[..cut])
    }

    /// The end of a turn that the last message of a conversation does not have, be it a user's or the
    /// assistant's: it looks like the beginning of the next header, but for the first message's header,
    /// which has nothing before it. `shown` is what the last turn ends with: nothing, or another end.
    fn hidden_end<'t>(
        &self,
        texts: &'t Texts,
        end: &str,
        header: Option<&str>,
        shown: &str,
    ) -> Result<Option<Hidden<'t>>, String> {
        if self.atoms.first(end).is_some() {
            return Ok(None);
        }
        let (shared, alone) = self.shared_with_beginning(&texts.followed)?;
        let (hidden, _) = texts.followed.split_at(texts.followed.len() - shared);
        if alone && self.atoms.first(hidden).is_some() {
            let rest = texts.prompted.strip_prefix(hidden);
            if header.is_none_or(|h| rest.is_some_and(|r| !r.is_empty() && h.ends_with(r))) {
                return Ok(Some(Hidden::BeforePrompt(hidden)));
            }
            // The last turn ends with a token, so turns do end with one; others have it in another place.
            let other = self.atoms.first(shown).is_some();
            return Ok(other.then_some(Hidden::InTheMiddle(hidden)));
        }
        if !alone && self.atoms.first(shown).is_some() && self.may_begin_with_end(texts, header) {
            return Err(format!(
                "it ends the last turn with {:?}, and where the others end in {:?} is unclear",
                excerpt(shown, 0),
                excerpt(&texts.followed, 0)
            ));
        }
        if !alone && header.is_some() && !texts.with.starts_with(&texts.without) {
            return Err(format!(
                "whether {:?} behind the assistant's content ends the turn or begins the next one is unclear",
                excerpt(&texts.followed, 0)
            ));
        }
        Ok(None)
    }

    /// Whether what stands before the next turn's content may begin with an end: with a token that does not
    /// begin headers.
    fn may_begin_with_end(&self, texts: &Texts, header: Option<&str>) -> bool {
        let begin = |text: &str| {
            let first = self.atoms.of_text(text.trim_start()).next();
            first.filter(|atom| self.atoms.has(atom)).map(str::to_owned)
        };
        begin(&texts.followed).is_some_and(|token| header.and_then(begin).as_ref() != Some(&token))
    }

    /// White space behind a token is the frame's.
    fn trimmed<'t>(&self, end: &'t str) -> &'t str {
        let trimmed = end.trim_end();
        if self.atoms.at_end(trimmed) {
            trimmed
        } else {
            end
        }
    }

    /// The user's content follows at once on what a conversation ends with: there is no header of the
    /// user's turns, or it is always written already. A conversation that begins with a user shows it.
    fn before_user_header<'t>(&self, texts: &'t Texts) -> Result<&'t str, String> {
        let shared = self.shared_with_beginning(&texts.tail);
        let tail = &texts.tail;
        if Some(tail.trim()) == self.eos {
            return Ok(tail);
        }
        match shared? {
            (0, _) => Ok(tail),
            (n, true) => Ok(&tail[..tail.len() - n]),
            (_, false) => Err(format!(
                "whether {:?} behind the assistant's content ends the turn or begins the next one is unclear",
                excerpt(tail, 0)
            )),
        }
    }

    /// A header of the assistant is written at the end of every conversation: this one's is the same as
    /// that before the assistant's turn, which went on with the content.
    fn header_is_always_there(&self, texts: &Texts) -> bool {
        let shared = self.atoms.common_at_end(&texts.without, &texts.tail);
        texts.goes_on && !texts.tail[texts.tail.len() - shared..].trim().is_empty()
    }

    /// No rendering ends with the turn. It ends where the user's header begins, as that is written at
    /// the beginning of a conversation.
    fn before_any_header<'t>(&self, texts: &'t Texts) -> Result<&'t str, String> {
        let followed = &texts.followed;
        let (shared, alone) = self.shared_with_beginning(followed)?;
        if !alone {
            return Err(format!(
                "it always goes on with the next header, and where that begins in {:?} is unclear",
                excerpt(followed, 0)
            ));
        }
        let upper = self.atoms.shared(followed, &texts.tail);
        Ok(&followed[..upper.min(followed.len() - shared)])
    }

    /// Bytes that `text` ends with and that stand before the content of a conversation's first user
    /// too, and whether nothing but tokens of the beginning stands before them there.
    fn shared_with_beginning(&self, text: &str) -> Result<(usize, bool), String> {
        let first = self.render(&[message("user", USER)], false)?;
        let (before, _) = first
            .split_once(USER)
            .ok_or("it does not write a user's content as it is, once")?;
        let n = self.atoms.common_at_end(before, text);
        let rest = &before[..before.len() - n];
        let bare = self
            .atoms
            .of_text(rest)
            .all(|a| a.len() > 1 && self.atoms.has(a) || a.trim().is_empty());
        Ok((n, bare))
    }
}

/// Text as tokens that are looked for in it and single characters between them.
pub(crate) struct Atoms<'a>(&'a [String]);

impl<'a> Atoms<'a> {
    pub fn of(tokenizer: &'a Tokenizer) -> Self {
        Self(tokenizer.added_texts())
    }

    fn has(&self, text: &str) -> bool {
        self.0.iter().any(|t| t == text)
    }

    fn at_end(&self, text: &str) -> bool {
        self.0.iter().any(|t| text.ends_with(t.as_str()))
    }

    fn of_text<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let token = self.0.iter().filter(|t| rest.starts_with(t.as_str()));
            let n = token.map(String::len).max();
            let n = n.or_else(|| rest.chars().next().map(char::len_utf8))?;
            let (atom, after) = rest.split_at(n);
            rest = after;
            Some(atom)
        })
    }

    /// The first token that is looked for in `text`.
    pub fn first<'t>(&self, text: &'t str) -> Option<&'t str> {
        self.of_text(text).find(|atom| self.has(atom))
    }

    /// Bytes of `end` that a turn can say: decoding stops at the first token that is looked for, so text
    /// behind it, and behind tokens that follow it at once, is the template's.
    pub fn said(&self, end: &str) -> usize {
        let (mut at, mut last) = (0, None);
        for atom in self.of_text(end) {
            at += atom.len();
            if self.has(atom) {
                last = Some(at);
            } else if last.is_some() && !atom.trim().is_empty() {
                break;
            }
        }
        match last {
            Some(last) if !end[last..].trim().is_empty() => last,
            _ => end.len(),
        }
    }

    /// Bytes of the atoms that both begin with.
    fn shared(&self, a: &str, b: &str) -> usize {
        let pairs = self.of_text(a).zip(self.of_text(b));
        pairs
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len())
            .sum()
    }

    /// Bytes that both begin with, if they part at a token or where one of them ends: in the middle
    /// of text they may share the beginning of what differs.
    fn common(&self, a: &str, b: &str) -> Option<usize> {
        let n = self.shared(a, b);
        let next = |text: &'_ str| self.of_text(&text[n..]).next().map(|atom| self.has(atom));
        match (next(a), next(b)) {
            (Some(false), Some(false)) => None,
            _ => Some(n),
        }
    }

    /// Bytes of the atoms that both end with.
    fn common_at_end(&self, a: &str, b: &str) -> usize {
        let (a, b): (Vec<_>, Vec<_>) = (self.of_text(a).collect(), self.of_text(b).collect());
        let pairs = a.iter().rev().zip(b.iter().rev());
        pairs
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len())
            .sum()
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
