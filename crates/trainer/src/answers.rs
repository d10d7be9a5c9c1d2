//! Answers to prompts with a reference: what of them is compared, and what is recorded.

use lowtide_config::Run;
use regex::Regex;
use serde::Serialize;

use crate::classes::options_of;
use crate::error::TrainError;
use crate::generate::{Decoder, Places, Sampling, decode};
use crate::stops::Stops;
use lowtide_data::{DataError, RecordProblem};
use lowtide_data::{Prompt, Tokenizer, prompts};

/// What of an answer, and of its reference, is compared.
#[derive(Clone, Debug, Default)]
pub struct Extract(Option<Regex>);

impl Extract {
    /// As a run says.
    ///
    /// # Panics
    /// When the run's expression is none: reading the run file has checked it.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let pattern = run.eval.generate.extract.as_deref();
        Self(pattern.map(|p| Regex::new(p).expect("checked with the run file")))
    }

    /// What is compared of a text: without an expression all of it; with one, the first group that took part
    /// (of an expression without groups the whole) in its last match, without the commas between digits
    /// (`1,234` is `1234`). Spaces around it are left out. `None`: nothing matches.
    #[must_use]
    pub fn from(&self, text: &str) -> Option<String> {
        let Some(regex) = &self.0 else {
            return Some(text.trim().to_owned());
        };
        let last = regex.captures_iter(text).last()?;
        let found = match last.len() {
            1 => last.get(0),
            _ => last.iter().skip(1).flatten().next(),
        };
        Some(without_commas(found?.as_str().trim()))
    }
}

/// Numbers as people write them, without the commas between their digits.
fn without_commas(text: &str) -> String {
    let all: Vec<char> = text.chars().collect();
    let digit = |at: Option<usize>| {
        at.and_then(|i| all.get(i))
            .is_some_and(char::is_ascii_digit)
    };
    let between = |i: usize| digit(i.checked_sub(1)) && digit(Some(i + 1));
    let kept = all.iter().enumerate();
    let kept = kept.filter(|&(i, &c)| c != ',' || !between(i));
    kept.map(|(_, &c)| c).collect()
}

/// A prompt with what its answer is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The text or conversation to be answered.
    pub prompt: Prompt,
    /// What of the reference is compared.
    pub wanted: String,
}

/// One answer, as `answers.jsonl` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The text that the answer continues.
    pub prompt: String,
    /// The text of the reference.
    pub reference: String,
    /// The text of the answer.
    pub answer: String,
    /// What of the answer is compared; `None`: nothing matches.
    pub extracted: Option<String>,
    /// What of the reference it is compared with.
    pub wanted: String,
    /// Whether the two are the same.
    pub right: bool,
}

/// The prompts of a run's evaluation files, as many as it asks for.
///
/// # Errors
/// A record that cannot be used, or a reference in which nothing is to be compared: file and line.
pub fn questions(
    run: &Run,
    tokenizer: &Tokenizer,
    extract: &Extract,
) -> Result<Vec<Question>, TrainError> {
    let generate = &run.eval.generate;
    let mut all = Vec::new();
    if !generate.exact_match {
        return Ok(all);
    }
    for path in &run.data.eval {
        let more = (generate.max_examples as usize).saturating_sub(all.len());
        let prompts = prompts(path, &options_of(run)?, tokenizer)?;
        for prompt in prompts.into_iter().take(more) {
            let Some(wanted) = extract.from(&prompt.reference) else {
                let pattern = generate.extract.clone().unwrap_or_default();
                let problem = RecordProblem::NothingExtracted { pattern };
                return Err(DataError::record(path, prompt.place, problem).into());
            };
            all.push(Question { prompt, wanted });
        }
    }
    Ok(all)
}

/// Greedy answers to all questions; `None`: whoever runs the tokens was asked to end.
///
/// # Errors
/// What stopped the run.
pub fn answer_all<D: Decoder>(
    decoder: &mut D,
    places: Places,
    tokenizer: &Tokenizer,
    stops: &Stops,
    questions: &[Question],
    extract: &Extract,
    max_new_tokens: usize,
) -> Result<Option<Vec<Answer>>, D::Error> {
    let tokens: Vec<Vec<i32>> = questions.iter().map(|q| q.prompt.tokens.clone()).collect();
    let greedy = Sampling {
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        max_new_tokens,
    };
    let Some(answers) = decode(decoder, places, &tokens, stops, &greedy)? else {
        return Ok(None);
    };
    let judged = answers.iter().zip(questions).map(|(tokens, question)| {
        let answer = tokenizer.decode(tokens, false);
        let extracted = extract.from(&answer);
        Answer {
            prompt: tokenizer.decode(&question.prompt.tokens, false),
            reference: question.prompt.reference.clone(),
            right: extracted.as_ref() == Some(&question.wanted),
            wanted: question.wanted.clone(),
            answer,
            extracted,
        }
    });
    Ok(Some(judged.collect()))
}

/// How many answers count as right.
#[must_use]
pub fn right(answers: &[Answer]) -> usize {
    answers.iter().filter(|a| a.right).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract(pattern: &str) -> Extract {
        Extract(Some(Regex::new(pattern).unwrap()))
    }

    #[test]
    fn what_is_compared_is_the_last_match() {
        let gsm8k = extract("#### (.*)");
        let of = |text: &str| gsm8k.from(text);
        assert_eq!(of("8 / 2 = 4\n#### 4").as_deref(), Some("4"));
        assert_eq!(
            of("#### 3\nno, wait\n####  1,234,567 \n").as_deref(),
            Some("1234567")
        );
        assert_eq!(of("#### $1,5 and, so").as_deref(), Some("$15 and, so"));
        assert_eq!(of("the answer is 4"), None);
        // Without a group all of the match; where no group takes part there is no match.
        assert_eq!(
            extract(r"-?[\d,]+")
                .from("of 12 and -1,000 left")
                .as_deref(),
            Some("-1000")
        );
        assert_eq!(extract("a(b)?").from("ab a"), None);
        assert_eq!(extract("(a)|b").from("b a b a").as_deref(), Some("a"));
        // Of several groups the first that took part.
        let either = extract(r"#### (\d+)|answer is (\w+)|(never)");
        assert_eq!(either.from("#### 3, the answer is 4").as_deref(), Some("4"));
        assert_eq!(either.from("the answer is 4 #### 3").as_deref(), Some("3"));
        assert_eq!(extract("(a)|(is)").from("a is").as_deref(), Some("is"));
        assert_eq!(extract("(a(b))").from("ab").as_deref(), Some("ab"));
    }

    #[test]
    fn without_an_expression_whole_texts_are_compared_as_before() {
        assert_eq!(
            Extract::default().from(" 1,234 \n").as_deref(),
            Some("1,234")
        );
    }
}
