//! Answers to prompts, as `answers.jsonl` has them: the first few of them.

use std::path::Path;

use serde::Deserialize;

use crate::error::ReportError;
use crate::run::{Answer, lines};

/// Prompts whose answers are shown.
const SHOWN: usize = 8;
/// Characters of a text that are shown.
const TEXT_MAX: usize = 2000;

/// Of the first prompts, the answers before training and the newest ones.
pub(crate) fn answers(path: &Path) -> Result<Vec<[Option<Answer>; 2]>, ReportError> {
    let mut pairs: Vec<[Option<Answer>; 2]> = Vec::new();
    // Answers of one measure follow each other, in the order of the prompts.
    let (mut measure, mut at) = (None, 0);
    lines(path, |line| {
        #[derive(Deserialize)]
        struct Line {
            when: String,
            #[serde(flatten)]
            answer: Answer,
        }
        let Line { when, answer } = serde_json::from_slice(line)?;
        let this = (answer.step, when);
        if measure.as_ref() != Some(&this) {
            (measure, at) = (Some(this), 0);
        }
        if at < SHOWN {
            if pairs.len() == at {
                pairs.push([None, None]);
            }
            let cut = Answer {
                prompt: shortened(&answer.prompt),
                reference: shortened(&answer.reference),
                answer: shortened(&answer.answer),
                ..answer
            };
            let before = measure.as_ref().is_some_and(|(_, when)| when == "before");
            pairs[at][usize::from(!before)] = Some(cut);
        }
        at += 1;
        Ok(())
    })?;
    Ok(pairs)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{} […]", &text[..at]),
        None => text.to_owned(),
    }
}
