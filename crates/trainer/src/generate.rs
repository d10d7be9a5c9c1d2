//! Greedy and sampled decoding through the plan's inference part: every token runs the whole
//! prefix again, so this is for looking at results, not for serving.

use lowtide_executor::ExecError;
use lowtide_workload::Batch;

use crate::stops::Stops;
use lowtide_data::Micro;
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
    /// Logits at each row's marked position; `None`: asked to end.
    ///
    /// # Errors
    /// What stopped the run.
    fn infer(&mut self, inputs: Micro) -> Result<Option<Outcome>, Self::Error>;
    /// So many prompts are answered.
    fn progress(&mut self, done: usize);
}

/// A session that nothing is asked of, and who is told of progress.
pub struct Plain<'a, P> {
    /// The session.
    pub session: &'a mut Session,
    /// Called with the number of prompts answered.
    pub progress: P,
}

impl<P: FnMut(usize)> Decoder for Plain<'_, P> {
    type Error = ExecError;

    fn infer(&mut self, inputs: Micro) -> Result<Option<Outcome>, ExecError> {
        self.session.infer(inputs).map(Some)
    }

    fn progress(&mut self, done: usize) {
        (self.progress)(done);
    }
}

/// Continues each prompt until one of `stops`, `max_new_tokens` or the sequence length.
/// Prompts that leave no room give nothing; the token that stopped it is no part of an answer. Calls `progress` with the number finished.
///
/// # Errors
/// What stopped the run.
pub fn generate(
    session: &mut Session,
    prompts: &[Vec<i32>],
    stops: &Stops,
    sampling: &Sampling,
    progress: impl FnMut(usize),
) -> Result<Vec<Vec<i32>>, ExecError> {
    let batch = session.decoder().workload().batch;
    let mut plain = Plain { session, progress };
    let answers = decode(&mut plain, batch, prompts, stops, sampling)?;
    Ok(answers.expect("nobody asks it to end"))
}

/// As [`generate`], with whatever runs the tokens, at this batch; `None`: it was asked to end.
///
/// # Errors
/// What stopped the run.
pub fn decode<D: Decoder>(
    decoder: &mut D,
    batch: Batch,
    prompts: &[Vec<i32>],
    stops: &Stops,
    sampling: &Sampling,
) -> Result<Option<Vec<Vec<i32>>>, D::Error> {
    let (b, t) = (batch.micro_batch as usize, batch.seq as usize);
    let rng = Philox::new(sampling.seed, GENERATE_STREAM);
    let mut drawn = 0;
    let mut answers = Vec::with_capacity(prompts.len());
    for group in prompts.chunks(b) {
        let mut rows: Vec<Vec<i32>> = group.to_vec();
        let mut open: Vec<bool> = rows.iter().map(|r| !r.is_empty() && r.len() < t).collect();
        for _ in 0..sampling.max_new_tokens {
            if !open.contains(&true) {
                break;
            }
            let Some(outcome) = decoder.infer(inputs(&rows, &open, b, t))? else {
                return Ok(None);
            };
            let logits = outcome.logits;
            let vocab = logits.len() / b;
            for (i, row) in rows.iter_mut().enumerate() {
                if !open[i] {
                    continue;
                }
                drawn += 1;
                let token = choose(
                    &logits[i * vocab..(i + 1) * vocab],
                    sampling,
                    rng.unit(drawn),
                );
                row.push(token);
                open[i] = !stops.contains(token) && row.len() < t;
            }
        }
        for (row, prompt) in rows.iter().zip(group) {
            answers.push(stops.before(&row[prompt.len()..]).to_vec());
        }
        decoder.progress(answers.len());
    }
    Ok(Some(answers))
}

/// Random numbers of the choice of tokens.
const GENERATE_STREAM: u64 = 3 << 62;

/// Rows padded to B × T, each open one marked at its last token.
fn inputs(rows: &[Vec<i32>], open: &[bool], b: usize, t: usize) -> Micro {
    let n = b * t;
    let mut m = Micro {
        tokens: vec![0; n],
        labels: vec![-100; n],
        positions: vec![0; n],
        doc_start: (0..n).map(|i| (i % t) as i32).collect(),
    };
    for (r, row) in rows.iter().enumerate() {
        for (i, &token) in row.iter().take(t).enumerate() {
            m.tokens[r * t + i] = token;
            m.positions[r * t + i] = i as i32;
            m.doc_start[r * t + i] = 0;
        }
        if open[r] {
            m.labels[r * t + row.len() - 1] = 0;
        }
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
