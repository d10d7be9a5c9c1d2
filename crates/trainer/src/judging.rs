//! `lowtide eval`: how good a model is on the run's evaluation data.

use std::sync::Arc;

use lowtide_config::Run;
use lowtide_data::{Packed, Tokenizer};
use lowtide_session::Session;

use crate::answers::{Answer, Extract, Question, answer_all, questions};
use crate::error::TrainError;
use crate::fit::{Evaluation, evaluate};
use crate::generate::{Places, Plain, steps};
use crate::inputs::{load_inputs, open_tokenizer};
use crate::open::{plan_decoding, plan_run};
use crate::pairs::{self, start_of};
use crate::paths;
use crate::planning::Planned;
use crate::stops::{Stops, stops_of};

/// A run's evaluation data and its questions, read.
#[derive(Debug)]
pub struct Judging<'a> {
    run: &'a Run,
    tokenizer: Tokenizer,
    stops: Stops,
    data: Option<Arc<Packed>>,
    extract: Extract,
    questions: Vec<Question>,
    stacks: bool,
    /// What was counted, for people.
    pub notes: Vec<String>,
    /// Details, for those who look inside.
    pub details: Vec<String>,
}

impl<'a> Judging<'a> {
    /// Reads the data, and no weights.
    ///
    /// # Errors
    /// Files that cannot be used; records that cannot.
    pub fn open(run: &'a Run) -> Result<Self, TrainError> {
        run.training_ready()?;
        paths::inputs(run)?;
        let tokenizer = open_tokenizer(run, None)?;
        let mut stops = stops_of(run, &tokenizer)?;
        let inputs = load_inputs(run, &tokenizer)?;
        if inputs.is_chat() {
            stops = stops.with_turns(&tokenizer);
        }
        let extract = Extract::of(run);
        let questions = match inputs.eval {
            Some(_) => questions(run, &tokenizer, &extract)?,
            None => Vec::new(),
        };
        Ok(Self {
            run,
            stops,
            data: inputs.eval,
            extract,
            questions,
            stacks: pairs::has(run)?,
            notes: inputs.notes,
            details: inputs.details,
            tokenizer,
        })
    }

    /// Whether the run has evaluation data.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }

    /// Whether the model has an encoder and a decoder.
    #[must_use]
    pub fn has_stacks(&self) -> bool {
        self.stacks
    }

    /// How many prompts are answered.
    #[must_use]
    pub fn prompts(&self) -> usize {
        self.questions.len()
    }

    /// The plan of a model that is evaluated; nothing of it is durable.
    ///
    /// # Errors
    /// Anything wrong with shape, machine file or budgets.
    pub fn plan(&self) -> Result<Planned, TrainError> {
        plan_run(self.run)
    }

    /// The plan of a model that makes so many answers at once, with keys and values that are kept.
    ///
    /// # Errors
    /// As [`Judging::plan`]; answers of more tokens than the model has positions.
    pub fn plan_answers(&self, at_once: u32) -> Result<Planned, TrainError> {
        let places = at_once.min(self.questions.len() as u32);
        plan_decoding(self.run, steps(places, self.longest()))
    }

    /// Tokens of the longest prompt that leaves room for an answer, with the longest answer.
    fn longest(&self) -> u32 {
        let run = self.run;
        let lengths = self.questions.iter().map(|q| q.prompt.tokens.len() as u32);
        let prompt = lengths.filter(|&n| n < run.train.seq).max().unwrap_or(1);
        let keys = prompt.saturating_add(run.eval.generate.max_new_tokens);
        keys.min(run.train.seq)
    }

    /// Loss and what was right.
    ///
    /// # Errors
    /// What stopped it.
    ///
    /// # Panics
    /// Without evaluation data.
    pub fn evaluate(&self, session: &mut Session) -> Result<Evaluation, TrainError> {
        let data = self.data.as_ref().expect("the caller asked has_data");
        evaluate(session, data, self.run)
    }

    /// Greedy answers to all prompts. `progress` hears how many are done.
    ///
    /// # Errors
    /// What stopped it.
    pub fn answer(
        &self,
        session: &mut Session,
        progress: impl FnMut(usize),
    ) -> Result<Vec<Answer>, TrainError> {
        let start = start_of(self.run, session.decoder().shape())?;
        let places = Places::of(session.decoder(), start);
        let made = answer_all(
            &mut Plain::new(session, progress),
            places,
            &self.tokenizer,
            &self.stops,
            &self.questions,
            &self.extract,
            self.run.eval.generate.max_new_tokens as usize,
        )?;
        Ok(made.expect("nobody asks it to end"))
    }
}
