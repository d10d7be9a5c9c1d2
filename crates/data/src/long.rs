//! The turns of long conversations, found together.
//!
//! Each turn alone takes renderings of all that leads up to it: by the square of the turns. One rendering with another
//! content in every turn shows at once what the template writes between them. Where the whole is that with the contents
//! in their places, and the template's header and end stand around a content, the turn lies there. That is held against
//! the proof of some turns one by one, and the turns it does not show are proven one by one too; what that may take is
//! bounded.

use std::ops::Range;

use serde_json::Value;

use super::chat::ChatTemplate;
use super::error::RecordProblem;
use super::frame::Frame;
use super::marks::is_assistant;
use super::turns::Conversation;

/// Turns that are proven one by one in any case.
pub(crate) const FEW: usize = 32;
/// Messages that are rendered at most to prove turns one by one, each as often as it is: some ten seconds.
const MOST: u64 = 16_000_000;
/// Renderings of a conversation that a turn takes alone, about.
const EACH: u64 = 2;

/// Refuses to look for so many turns of a conversation one by one.
pub(crate) fn bounded(turns: usize, messages: usize) -> Result<(), RecordProblem> {
    let need = EACH
        .saturating_mul(turns as u64)
        .saturating_mul(messages as u64);
    if turns <= FEW || need <= MOST {
        return Ok(());
    }
    Err(RecordProblem::TooManyTurns {
        turns,
        messages,
        most: MOST,
        need,
    })
}

/// Those of `n` that are looked at one by one: the first, the last and some between.
pub(crate) fn some_of(n: usize) -> impl Iterator<Item = usize> {
    const ENDS: usize = 3;
    const BETWEEN: usize = 6;
    (0..n).filter(move |&i| {
        i < ENDS || i + ENDS >= n || i * BETWEEN / n != (i.saturating_sub(1)) * BETWEEN / n
    })
}

impl Conversation<'_> {
    /// Where the assistant speaks in the messages `wanted` (indices, ascending).
    pub(super) fn all(&self, wanted: &[usize]) -> Result<Vec<Range<usize>>, RecordProblem> {
        if wanted.len() <= FEW {
            return wanted.iter().map(|&i| self.spoken(i)).collect();
        }
        let mut found = self.aligned(wanted);
        let shown: Vec<usize> = (0..wanted.len()).filter(|&k| found[k].is_some()).collect();
        let agree = some_of(shown.len()).all(|k| {
            let k = shown[k];
            self.spoken(wanted[k]).ok() == found[k]
        });
        if !agree {
            found.fill(None);
        }
        bounded(
            found.iter().filter(|f| f.is_none()).count(),
            self.messages.len(),
        )?;
        let each = wanted.iter().zip(found);
        each.map(|(&i, found)| found.map_or_else(|| self.spoken(i), Ok))
            .collect()
    }

    /// The turns that one rendering shows; of others nothing.
    pub(super) fn aligned(&self, wanted: &[usize]) -> Vec<Option<Range<usize>>> {
        let none = || vec![None; wanted.len()];
        let Ok(frame) = self.turns.frame() else {
            return none();
        };
        let Some(places) = self.places() else {
            return none();
        };
        let place = |i: usize| {
            let at = places.binary_search_by_key(&i, |place| place.message);
            at.ok().map(|at| &places[at])
        };
        // Where the template has no header for generation, its first turn shows whether white space before the content
        // is the model's to say.
        let lead = match (&frame.header, wanted.iter().find_map(|&i| place(i))) {
            (None, Some(first)) => match self.spoken(first.message) {
                Ok(proven) => first.content.start.checked_sub(proven.start),
                Err(_) => None,
            },
            _ => Some(0),
        };
        let role = |i: usize| {
            i.checked_sub(1)
                .map(|before| &self.messages[before]["role"])
        };
        let first = wanted.iter().find_map(|&i| place(i)).map(|p| p.message);
        let turn = |&i: &usize| {
            // Behind another role the first turn shows nothing.
            let alike = frame.header.is_some() || first.map(role) == Some(role(i));
            self.placed(frame, place(i).filter(|_| alike)?, lead?)
        };
        wanted.iter().map(turn).collect()
    }

    /// Where the contents of the assistant's messages are in the whole, with what stands around them.
    fn places(&self) -> Option<Vec<Place<'_>>> {
        let content = |i: usize| self.messages[i]["content"].as_str();
        let talks = |&i: &usize| {
            is_assistant(&self.messages[i]) && content(i).is_some_and(|c| !c.trim().is_empty())
        };
        let others: Vec<usize> = (0..self.messages.len()).filter(talks).collect();
        let probe = |i: usize| format!("Zk4{i}Vn");
        let mut messages = self.messages.to_vec();
        for &i in &others {
            messages[i]["content"] = Value::from(probe(i));
        }
        let template = self.turns.template();
        let text = template.render(&messages, self.tools, false).ok()?.text;
        // What stands between the contents of others.
        let mut between = Vec::with_capacity(others.len() + 1);
        let mut rest = text.as_str();
        for &i in &others {
            let (before, after) = rest.split_once(&probe(i))?;
            between.push(before.len());
            rest = after;
        }
        between.push(rest.len());
        let (mut places, mut pos, mut from) = (Vec::new(), 0, 0);
        for (k, &i) in others.iter().enumerate() {
            let before = &text[from..from + between[k]];
            from += before.len() + probe(i).len();
            let behind = &text[from..from + between[k + 1]];
            pos += self.whole[pos..]
                .strip_prefix(before)
                .map(|_| before.len())?;
            let rest = &self.whole[pos..];
            let content = content(i)?;
            let forms = [
                content,
                content.trim(),
                content.trim_end(),
                content.trim_start(),
            ];
            let mut fitting = forms.into_iter().filter(|form| {
                rest.strip_prefix(form)
                    .is_some_and(|r| r.starts_with(behind))
            });
            let form = fitting.next()?;
            // Another reading of the same text.
            if fitting.any(|other| other.len() != form.len()) {
                return None;
            }
            places.push(Place {
                message: i,
                content: pos..pos + form.len(),
                before: &self.whole[pos - before.len()..pos],
                behind: &self.whole[pos + form.len()..][..behind.len()],
            });
            pos += form.len();
        }
        (self.whole.len() - pos == between[others.len()]).then_some(places)
    }

    /// The turn of a content that stands behind the template's header and before its end; it begins `lead` bytes of
    /// white space before the content.
    fn placed(&self, frame: &Frame, place: &Place<'_>, lead: usize) -> Option<Range<usize>> {
        let header = frame.header.as_deref().unwrap_or_default();
        let begins = place.before.len().checked_sub(lead)?;
        let space = place.before.get(begins..)?;
        // What the last turn ends with has rules of its own.
        let last = place.message + 1 == self.messages.len();
        if last || frame.end_goes_on || !place.before.ends_with(header) || !space.trim().is_empty()
        {
            return None;
        }
        let shown = match place.behind.starts_with(frame.end.as_str()) {
            true => frame.end.as_str(),
            false => frame.end.trim_end(),
        };
        if shown.is_empty() || !place.behind.starts_with(shown) {
            return None;
        }
        let to = place.content.end + shown.len();
        let from = place.content.start - lead;
        Some(self.said(place.message, from, to, &frame.end))
    }
}

/// A content of the assistant's in the text of the whole.
struct Place<'t> {
    message: usize,
    content: Range<usize>,
    /// What stands between the assistant's last content and it.
    before: &'t str,
    /// What stands between it and the assistant's next content.
    behind: &'t str,
}

/// The blocks of many turns of a template that marks them, where each turn has one and its content is in it; `None`
/// for a turn that this does not show.
pub(crate) fn blocks_in_order(
    wanted: &[usize],
    template: &ChatTemplate,
    messages: &[Value],
    generated: &[Range<usize>],
    whole: &str,
) -> Vec<Option<Range<usize>>> {
    let turns: Vec<usize> = (0..messages.len())
        .filter(|&i| is_assistant(&messages[i]))
        .collect();
    if !template.marks_assistant() || turns.len() != generated.len() {
        return vec![None; wanted.len()];
    }
    let block = |i: &usize| {
        let block = &generated[turns.binary_search(i).ok()?];
        let content = messages[*i]["content"].as_str()?.trim();
        let there = !content.is_empty() && whole[block.clone()].contains(content);
        there.then(|| block.clone())
    };
    wanted.iter().map(block).collect()
}
