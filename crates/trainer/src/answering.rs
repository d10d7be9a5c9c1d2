//! `lowtide generate`: a look at what a model says.

use lowtide_config::Run;
use lowtide_data::{DataError, RecordProblem, Tokenizer, generation_prompt};
use lowtide_session::Session;
use serde_json::json;

use crate::classes;
use crate::error::TrainError;
use crate::generate::{Passes, Places, Sampling, generate, steps};
use crate::inputs::open_tokenizer;
use crate::open::{plan_decoding, plan_run};
use crate::pairs::start_of;
use crate::paths;
use crate::planning::{Planned, shape_of};
use crate::stops::{Stops, stops_of};

/// What a model is asked.
#[derive(Clone, Copy, Debug)]
pub enum Prompt<'a> {
    /// A user's message, answered by the model's chat template.
    Message(&'a str),
    /// A text to continue.
    Text(&'a str),
}

/// Why a prompt gives no tokens.
#[derive(Debug)]
pub struct BadPrompt {
    /// What is wrong with it.
    pub problem: RecordProblem,
    /// Whether the model has an encoder and a decoder.
    pub stacks: bool,
}

/// A model that is asked one thing.
#[derive(Debug)]
pub struct Answering<'a> {
    run: &'a Run,
    tokenizer: Tokenizer,
    stops: Stops,
    stacks: bool,
    /// Where decoding starts, of a model with an encoder.
    start: i32,
    /// The tokens that are continued, or that an encoder reads.
    pub tokens: Vec<i32>,
}

impl<'a> Answering<'a> {
    /// Reads all but the weights. The outer error is one of files or of the model, the inner one of the prompt.
    ///
    /// # Errors
    /// Files that cannot be used; a model that makes no text; one without a chat template that gets a message.
    pub fn open(run: &'a Run, prompt: Prompt<'_>) -> Result<Result<Self, BadPrompt>, TrainError> {
        paths::reading(run)?;
        classes::answers(run)?;
        let tokenizer = open_tokenizer(run, None)?;
        let mut stops = stops_of(run, &tokenizer)?;
        let shape = shape_of(run)?;
        let stacks = shape.stacks.is_some();
        if matches!(prompt, Prompt::Message(_)) && !stacks {
            stops = stops.with_turns(&tokenizer);
        }
        let tokens = match (prompt, stacks) {
            // An encoder reads a text as it is, whoever says it.
            (Prompt::Message(text) | Prompt::Text(text), true) => tokenizer.encode_alone(text),
            (Prompt::Text(text), false) => tokenizer.encode(text).map(|more| {
                let mut tokens = tokenizer.prefix().to_vec();
                tokens.extend(more);
                tokens
            }),
            (Prompt::Message(text), false) => {
                let mut messages = Vec::new();
                if let Some(system) = &run.data.system {
                    messages.push(json!({ "role": "system", "content": system }));
                }
                messages.push(json!({ "role": "user", "content": text }));
                match generation_prompt(&tokenizer, &messages, None) {
                    Some(text) => text.and_then(|text| tokenizer.encode(&text)),
                    None => {
                        let path = tokenizer.path().to_owned();
                        return Err(DataError::NoChatTemplate { path }.into());
                    }
                }
            }
        };
        let tokens = match tokens {
            Ok(tokens) => tokens,
            Err(problem) => return Ok(Err(BadPrompt { problem, stacks })),
        };
        Ok(Ok(Self {
            start: start_of(run, &shape)?,
            run,
            tokenizer,
            stops,
            stacks,
            tokens,
        }))
    }

    /// Whether the model has an encoder and a decoder: of them no keys are kept yet, and the answer has a row of its
    /// own.
    #[must_use]
    pub fn has_stacks(&self) -> bool {
        self.stacks
    }

    /// The plan, with keys and values that are kept for so many new tokens, or without any.
    ///
    /// # Errors
    /// Anything wrong with machine file or budgets; more tokens than the model has positions.
    pub fn plan(&self, kept: Option<u32>) -> Result<Planned, TrainError> {
        let Some(new) = kept else {
            return plan_run(self.run);
        };
        let prompt = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        let keys = prompt.saturating_add(new).min(self.run.train.seq);
        plan_decoding(self.run, steps(1, keys))
    }

    /// The answer: its tokens and its text, and what it took.
    ///
    /// # Errors
    /// What stopped it.
    pub fn answer(
        &self,
        session: &mut Session,
        sampling: &Sampling,
    ) -> Result<(Vec<i32>, String, Passes), TrainError> {
        let places = Places::of(session.decoder(), self.start);
        let prompts = std::slice::from_ref(&self.tokens);
        let (all, passes) = generate(session, places, prompts, &self.stops, sampling, |_| ())?;
        let tokens = all.into_iter().next().unwrap_or_default();
        let text = self.tokenizer.decode(&tokens, false);
        Ok((tokens, text, passes))
    }
}
