//! Answers by steps over keys and values that are kept.
//!
//! A step has a row for the newest token of each answer, and rows for tokens of prompts that nothing is kept of
//! yet, as many as there is room for: a prompt that comes in takes no step of its own, unless it is longer than a
//! step. Rows that give logits stand first. A step's rows are filled up to a power of two, so that products have
//! few shapes.

use std::time::Instant;

use lowtide_data::Micro;
use lowtide_model::{Decoding, Live};

use super::{Asked, Decoder, Pass};

/// An answer in the making, in the place that it has.
struct Making {
    /// Of which prompt.
    prompt: usize,
    /// Prompt and answer so far.
    tokens: Vec<i32>,
    /// Of how many of these keys and values are kept.
    kept: usize,
}

impl Making {
    /// Tokens that are to be run before the next one is known.
    fn left(&self) -> usize {
        self.tokens.len() - self.kept
    }
}

/// As [`super::decode`].
pub(super) fn decode<D: Decoder>(
    decoder: &mut D,
    how: Decoding,
    asked: &Asked<'_>,
) -> Result<Option<Vec<Vec<i32>>>, D::Error> {
    let prompts = asked.prompts;
    let mut answers: Vec<Vec<i32>> = vec![Vec::new(); prompts.len()];
    let mut waiting = (0..prompts.len()).filter(|&i| asked.has_room(&prompts[i]));
    let mut done = prompts.iter().filter(|p| !asked.has_room(p)).count();
    let mut places: Vec<Option<Making>> = (0..how.places).map(|_| None).collect();
    loop {
        for place in places.iter_mut().filter(|place| place.is_none()) {
            *place = waiting.next().map(|prompt| Making {
                prompt,
                tokens: prompts[prompt].clone(),
                kept: 0,
            });
        }
        if places.iter().all(Option::is_none) {
            decoder.progress(done);
            return Ok(Some(answers));
        }
        let begin = Instant::now();
        let step = Step::new(how, &mut places, prompts);
        let answering = Live::of(&step.inputs.labels).answers;
        let Some(outcome) = decoder.infer(step.inputs)? else {
            return Ok(None);
        };
        let vocab = outcome.logits.len() / answering;
        let before = done;
        for (row, &at) in step.answered.iter().enumerate() {
            let place = &mut places[at];
            let making = place.as_mut().expect("a row of an answer");
            let logits = &outcome.logits[row * vocab..][..vocab];
            let open = asked.go_on(making.prompt, &mut making.tokens, logits);
            if !open.map_err(|what| decoder.no_numbers(what))? {
                answers[making.prompt] = asked.answer(making.prompt, &making.tokens);
                done += 1;
                *place = None;
            }
        }
        decoder.passed(Pass {
            prompt_tokens: step.prompt_tokens,
            tokens: step.answered.len(),
            seconds: begin.elapsed().as_secs_f64(),
        });
        if done > before {
            decoder.progress(done);
        }
    }
}

/// The rows of a step.
struct Step {
    inputs: Micro,
    /// Places whose answers get a token, in the order of the first rows.
    answered: Vec<usize>,
    /// Rows that are tokens of prompts.
    prompt_tokens: usize,
}

impl Step {
    /// The next step; what it runs counts as kept.
    fn new(how: Decoding, places: &mut [Option<Making>], prompts: &[Vec<i32>]) -> Self {
        // One row at least is every answer's, so that none waits for another one's prompt.
        let mut room = how.rows as usize - places.iter().flatten().count();
        let mut step = Self {
            inputs: Micro {
                tokens: Vec::new(),
                labels: Vec::new(),
                positions: Vec::new(),
                doc_start: Vec::new(),
            },
            answered: Vec::new(),
            prompt_tokens: 0,
        };
        let mut behind = Vec::new();
        for (place, making) in places.iter_mut().enumerate() {
            let Some(making) = making else { continue };
            let n = making.left().min(room + 1);
            room -= n - 1;
            let first = making.kept;
            making.kept += n;
            let own = prompts[making.prompt].len();
            step.prompt_tokens += making.kept.min(own).saturating_sub(first);
            let row = |i: usize| (making.tokens[i], i as i32, place as i32);
            let gives = making.left() == 0;
            if gives {
                step.push(row(making.kept - 1), 0);
                step.answered.push(place);
            }
            behind.extend((first..making.kept - usize::from(gives)).map(row));
        }
        // Where all are in the middle of prompts, logits of one of them, which nobody reads.
        for (i, row) in behind.into_iter().enumerate() {
            let unread = i == 0 && step.answered.is_empty();
            step.push(row, if unread { 0 } else { NO_LOGITS });
        }
        while !step.inputs.tokens.len().is_power_of_two() {
            step.push((0, 0, PADDING), NO_LOGITS);
        }
        step
    }

    fn push(&mut self, (token, position, place): (i32, i32, i32), label: i32) {
        self.inputs.tokens.push(token);
        self.inputs.labels.push(label);
        self.inputs.positions.push(position);
        self.inputs.doc_start.push(place);
    }
}

/// The label of a row that gives no logits.
const NO_LOGITS: i32 = -100;

/// The place of a row that is none.
const PADDING: i32 = -1;

#[cfg(test)]
#[path = "cached_tests.rs"]
mod tests;
