//! Greedy and sampled decoding through the plan's inference part, of several prompts at once. In a session of its
//! own, keys and values are kept and a token is one row of a step. In a session that trains, each token runs the
//! whole prefix again, for as many prompts as the rows hold. For looking at results, not for serving.

mod cached;

use std::time::Instant;

pub use lowtide_model::Decoding;

use crate::error::TrainError;
use crate::stops::Stops;
use lowtide_data::{Micro, ends_whole};
use lowtide_random::Philox;
use lowtide_session::{Outcome, Session};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: greedy.
    pub temperature: f64,
    /// Only the most likely tokens that together have this probability.
    pub top_p: f64,
    /// Seed of the choice.
    pub seed: u64,
    /// Most new tokens.
    pub max_new_tokens: usize,
}

/// Runs the tokens of answers.
pub trait Decoder {
    /// What stops it.
    type Error;
    /// Logits at each span's marked position; `None`: asked to end.
    ///
    /// # Errors
    /// What stopped the run.
    fn infer(&mut self, inputs: Micro) -> Result<Option<Outcome>, Self::Error>;
    /// The error of logits that are no numbers: what was seen. A token chosen from them would look like an answer.
    fn no_numbers(&mut self, what: String) -> Self::Error;
    /// So many prompts are answered.
    fn progress(&mut self, done: usize);
    /// A pass has ended: its new tokens, its time, and whether it read tokens of prompts.
    fn passed(&mut self, pass: Pass) {
        let _ = pass;
    }
}

/// What one pass of a session did.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Tokens of prompts that nothing was made of before.
    pub prompt_tokens: usize,
    /// New tokens of all answers.
    pub tokens: usize,
    /// How long the pass took.
    pub seconds: f64,
}

/// Passes of answers, those with tokens of prompts apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Passes {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Seconds of the passes that had some; each gives a token of the prompts that end in it.
    pub prompt_seconds: f64,
    /// Tokens of the other passes.
    pub tokens: usize,
    /// Seconds of the other passes.
    pub seconds: f64,
}

impl Passes {
    fn add(&mut self, pass: Pass) {
        self.prompt_tokens += pass.prompt_tokens;
        if pass.prompt_tokens > 0 {
            self.prompt_seconds += pass.seconds;
        } else {
            self.tokens += pass.tokens;
            self.seconds += pass.seconds;
        }
    }

    /// Tokens a second where no prompt was read; none where there was no such pass.
    #[must_use]
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.tokens as f64 / self.seconds)
    }
}

/// A session that is never asked to end, and a callback for progress.
pub struct Plain<'a, P> {
    /// The session, between two batches.
    pub session: &'a mut Session,
    /// Called with the number of prompts answered.
    pub progress: P,
    /// What the answers took.
    pub passes: Passes,
}

impl<'a, P> Plain<'a, P> {
    /// A decoder on this session that is never asked to end.
    pub fn new(session: &'a mut Session, progress: P) -> Self {
        Self {
            session,
            progress,
            passes: Passes::default(),
        }
    }
}

impl<P: FnMut(usize)> Decoder for Plain<'_, P> {
    type Error = TrainError;

    fn infer(&mut self, inputs: Micro) -> Result<Option<Outcome>, TrainError> {
        Ok(Some(self.session.infer(inputs)?))
    }

    fn no_numbers(&mut self, what: String) -> TrainError {
        TrainError::NoNumbers { what }
    }

    fn progress(&mut self, done: usize) {
        (self.progress)(done);
    }

    fn passed(&mut self, pass: Pass) {
        self.passes.add(pass);
    }
}

/// Continues each prompt until one of `stops`, `max_new_tokens` or the sequence length. A prompt that leaves no room
/// gets an empty answer; the token at which an answer stops is no part of it. Calls `progress` with the number
/// finished.
///
/// # Errors
/// What stopped the run.
pub fn generate(
    session: &mut Session,
    places: Places,
    prompts: &[Vec<i32>],
    stops: &Stops,
    sampling: &Sampling,
    progress: impl FnMut(usize),
) -> Result<(Vec<Vec<i32>>, Passes), TrainError> {
    let mut plain = Plain::new(session, progress);
    let answers = decode(&mut plain, places, prompts, stops, sampling)?;
    let answers = answers.expect("nobody asks it to end");
    Ok((answers, plain.passes))
}

/// Tokens of a step: more take longer than they save where weights are on the device, and fewer read streamed
/// weights more often for a long prompt.
const STEP: u32 = 256;

/// The steps of decoding that make `places` answers at once, each with its prompt `keys` tokens long at most.
#[must_use]
pub fn steps(places: u32, keys: u32) -> Decoding {
    let most = places.saturating_mul(keys).clamp(1, STEP);
    Decoding {
        places,
        keys,
        rows: most.max(places).next_power_of_two(),
    }
}

/// Where answers are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// In rows of tokens that all run again for each new token.
    Rows(Rows),
    /// In keys and values that are kept.
    Kept(Decoding),
}

/// Rows of tokens, cut into spans. Each span gives logits at its one marked token; an answer
/// with its prompt takes as many spans, one behind the other, as it may come to need. Where prompts are apart, a row
/// has one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Rows that run at once.
    pub rows: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// Tokens of a span, which divides a row.
    pub span: usize,
    /// Where the prompts are, if not in front of their answers.
    pub apart: Option<Apart>,
}

/// Prompts that an encoder reads: rows of their own, in front of all rows of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apart {
    /// Tokens of a prompt's row. What is longer is cut as in training.
    pub source: usize,
    /// The token that answers start with, which is no part of them.
    pub start: i32,
}

impl Places {
    /// Those of a model as it is described for a run. `start`: the token that decoding starts with, of a model with an
    /// encoder ([`crate::pairs::start_of`]).
    #[must_use]
    pub fn of(decoder: &lowtide_model::Decoder, start: i32) -> Self {
        if let Some(how) = decoder.steps() {
            return Self::Kept(how);
        }
        let batch = decoder.workload().batch;
        let [seq, target] = [batch.seq, batch.target].map(|tokens| tokens as usize);
        let apart = Apart { source: seq, start };
        Self::Rows(Rows {
            rows: batch.micro_batch as usize,
            seq: if target > 0 { target } else { seq },
            span: decoder.span(),
            apart: (target > 0).then_some(apart),
        })
    }

    /// Whether prompts are apart from their answers.
    fn apart(&self) -> Option<Apart> {
        match self {
            Self::Rows(rows) => rows.apart,
            Self::Kept(_) => None,
        }
    }

    /// Most tokens of a prompt and its answer; of the answer alone where they are apart.
    fn longest(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.seq,
            Self::Kept(how) => how.keys as usize,
        }
    }
}

/// As `generate`, with any [`Decoder`]; `None`: it was asked to end. When a prompt is answered, the next one takes
/// its place.
///
/// # Errors
/// What stopped the run.
pub fn decode<D: Decoder>(
    decoder: &mut D,
    places: Places,
    prompts: &[Vec<i32>],
    stops: &Stops,
    sampling: &Sampling,
) -> Result<Option<Vec<Vec<i32>>>, D::Error> {
    let asked = Asked {
        prompts,
        stops,
        sampling,
        longest: places.longest(),
        apart: places.apart().is_some(),
        rng: Philox::new(sampling.seed, GENERATE_STREAM),
    };
    match places {
        Places::Rows(rows) => in_rows(decoder, rows, &asked),
        Places::Kept(how) => cached::decode(decoder, how, &asked),
    }
}

/// What answers are asked for.
struct Asked<'a> {
    prompts: &'a [Vec<i32>],
    stops: &'a Stops,
    sampling: &'a Sampling,
    /// Most tokens of a prompt and its answer; of the answer alone where they are apart.
    longest: usize,
    apart: bool,
    rng: Philox,
}

impl Asked<'_> {
    /// Whether a prompt leaves room for an answer.
    fn has_room(&self, prompt: &[i32]) -> bool {
        let has = !prompt.is_empty() && prompt.len() < self.most(prompt);
        has && self.sampling.max_new_tokens > 0
    }

    /// Most tokens of a prompt with its answer.
    fn most(&self, prompt: &[i32]) -> usize {
        match self.apart {
            true => prompt.len() + self.longest,
            false => self.longest,
        }
    }

    /// Appends the next token to a prompt and its answer so far. Returns whether there may be more; an error says
    /// where logits are no numbers.
    fn go_on(&self, prompt: usize, tokens: &mut Vec<i32>, logits: &[f32]) -> Result<bool, String> {
        // Its own numbers, whichever prompts are answered beside it.
        let drawn = tokens.len() - self.prompts[prompt].len() + 1;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !largest.is_finite() || logits.iter().any(|x| x.is_nan()) {
            return Err(format!(
                "answer {} after {} new tokens: the logits are no numbers: the model's numbers overflow",
                prompt + 1,
                drawn - 1
            ));
        }
        let u = self.rng.unit(((prompt as u64) << 32) + drawn as u64);
        let token = choose(logits, self.sampling, u);
        tokens.push(token);
        Ok(!self.stops.contains(token)
            && tokens.len() < self.most(&self.prompts[prompt])
            && drawn < self.sampling.max_new_tokens)
    }

    /// The answer behind a prompt.
    fn answer(&self, prompt: usize, tokens: &[i32]) -> Vec<i32> {
        let new = &tokens[self.prompts[prompt].len()..];
        self.stops.before(new).to_vec()
    }
}

/// An answer in the making.
struct Making {
    /// Index of the prompt that it answers.
    prompt: usize,
    /// Prompt and answer so far.
    tokens: Vec<i32>,
    /// Its first span, counted through all rows, and how many it has.
    first: usize,
    spans: usize,
}

/// In rows that run again for each token.
fn in_rows<D: Decoder>(
    decoder: &mut D,
    places: Rows,
    asked: &Asked<'_>,
) -> Result<Option<Vec<Vec<i32>>>, D::Error> {
    let prompts = asked.prompts;
    let mut answers: Vec<Vec<i32>> = vec![Vec::new(); prompts.len()];
    let room = |prompt: &Vec<i32>| asked.has_room(prompt);
    let mut waiting = (0..prompts.len()).filter(|&i| room(&prompts[i])).peekable();
    let mut done = prompts.iter().filter(|p| !room(p)).count();
    let mut making: Vec<Making> = Vec::new();
    loop {
        let mut prompt_tokens = 0;
        while let Some(&prompt) = waiting.peek() {
            let tokens = prompts[prompt].clone();
            let most = (tokens.len() + asked.sampling.max_new_tokens).min(places.seq);
            let spans = most.div_ceil(places.span);
            let Some(first) = free(&places, &making, spans) else {
                break;
            };
            prompt_tokens += tokens.len();
            making.push(Making {
                prompt,
                tokens,
                first,
                spans,
            });
            waiting.next();
        }
        if making.is_empty() {
            decoder.progress(done);
            return Ok(Some(answers));
        }
        let begin = Instant::now();
        let Some(outcome) = decoder.infer(inputs(&places, &making, prompts))? else {
            return Ok(None);
        };
        let tokens = making.len();
        let vocab = outcome.logits.len() * places.span / (places.rows * places.seq);
        let before = done;
        let mut wrong = None;
        making.retain_mut(|m| {
            let at = m.first + places.last(m, prompts) / places.span;
            let logits = &outcome.logits[at * vocab..][..vocab];
            let open = asked.go_on(m.prompt, &mut m.tokens, logits);
            let open = open.unwrap_or_else(|what| {
                wrong.get_or_insert(what);
                false
            });
            if !open {
                answers[m.prompt] = asked.answer(m.prompt, &m.tokens);
                done += 1;
            }
            open
        });
        if let Some(what) = wrong {
            return Err(decoder.no_numbers(what));
        }
        decoder.passed(Pass {
            prompt_tokens,
            tokens,
            seconds: begin.elapsed().as_secs_f64(),
        });
        if done > before {
            decoder.progress(done);
        }
    }
}

/// The first of so many spans of one row that no answer has.
fn free(places: &Rows, making: &[Making], spans: usize) -> Option<usize> {
    let a_row = places.seq / places.span;
    let taken = |span: usize| {
        let has = |m: &Making| (m.first..m.first + m.spans).contains(&span);
        making.iter().any(has)
    };
    let mut firsts = (0..places.rows).flat_map(|row| {
        let end = (a_row + 1).saturating_sub(spans);
        (0..end).map(move |at| row * a_row + at)
    });
    firsts.find(|&first| !(first..first + spans).any(taken))
}

impl Rows {
    /// Where in its first row the last token of an answer is, with its prompt or with what it starts with.
    fn last(&self, making: &Making, prompts: &[Vec<i32>]) -> usize {
        match self.apart {
            Some(_) => making.tokens.len() - prompts[making.prompt].len(),
            None => making.tokens.len() - 1,
        }
    }
}

/// Random numbers of the choice of tokens.
const GENERATE_STREAM: u64 = 3 << 62;

/// Rows padded to B × T: each answer a document at the beginning of its first span, marked at its last token. Where
/// prompts are apart, their rows are in front.
fn inputs(places: &Rows, making: &[Making], prompts: &[Vec<i32>]) -> Micro {
    let source = places.apart.map_or(0, |apart| apart.source);
    let first = places.rows * source;
    let padding = |seq: usize| (0..places.rows * seq).map(move |i| (i % seq) as i32);
    let n = first + places.rows * places.seq;
    let mut m = Micro {
        tokens: vec![0; n],
        labels: vec![-100; n],
        positions: vec![0; n],
        doc_start: padding(source).chain(padding(places.seq)).collect(),
    };
    let mut write = |at: usize, seq: usize, tokens: &[i32]| {
        for (i, &token) in tokens.iter().enumerate() {
            m.tokens[at + i] = token;
            m.positions[at + i] = i as i32;
            m.doc_start[at + i] = ((at - if at < first { 0 } else { first }) % seq) as i32;
        }
    };
    for answer in making {
        let at = first + answer.first * places.span;
        let Some(apart) = places.apart else {
            write(at, places.seq, &answer.tokens);
            continue;
        };
        let (prompt, new) = answer.tokens.split_at(prompts[answer.prompt].len());
        let row = answer.first * places.span / places.seq;
        let kept = ends_whole(prompt, prompt.len().min(source));
        write(row * source, source, &kept);
        write(at, places.seq, &[&[apart.start], new].concat());
    }
    for answer in making {
        m.labels[first + answer.first * places.span + places.last(answer, prompts)] = 0;
    }
    m
}

/// `u`: a random number from 0 to 1.
fn choose(logits: &[f32], sampling: &Sampling, u: f64) -> i32 {
    let best = || {
        let mut best = 0;
        for (i, &x) in logits.iter().enumerate() {
            if x > logits[best] {
                best = i;
            }
        }
        best as i32
    };
    if sampling.temperature <= 0.0 {
        return best();
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - max) / sampling.temperature).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let total: f64 = logits.iter().map(|&x| weight(x)).sum();
    let mut kept = 0.0;
    let mut n = 0;
    while n < order.len() && (n == 0 || kept < sampling.top_p * total) {
        kept += weight(logits[order[n]]);
        n += 1;
    }
    let mut at = u * kept;
    for &i in &order[..n] {
        at -= weight(logits[i]);
        if at <= 0.0 {
            return i as i32;
        }
    }
    order[n - 1] as i32
}

#[cfg(test)]
mod tests;
