//! Greedy and sampled decoding through the plan's inference part: every token runs the whole
//! prefix again, of as many prompts at once as rows hold. For looking at results, not for serving.

use lowtide_executor::ExecError;

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
    /// Logits at each span's marked position; `None`: asked to end.
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
    let places = Places::of(session.decoder());
    let mut plain = Plain { session, progress };
    let answers = decode(&mut plain, places, prompts, stops, sampling)?;
    Ok(answers.expect("nobody asks it to end"))
}

/// Where answers are made: rows of tokens, cut into spans. Each span gives logits at its one marked token; an answer
/// with its prompt takes as many spans, one behind the other, as it may come to need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Rows.
    pub rows: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// Tokens of a span, which divides a row.
    pub span: usize,
}

impl Places {
    /// Those of a model as it is described for a run.
    #[must_use]
    pub fn of(decoder: &lowtide_model::Decoder) -> Self {
        let batch = decoder.workload().batch;
        Self {
            rows: batch.micro_batch as usize,
            seq: batch.seq as usize,
            span: decoder.span(),
        }
    }
}

/// An answer in the making.
struct Making {
    /// Of which prompt.
    prompt: usize,
    /// Prompt and answer so far.
    tokens: Vec<i32>,
    /// Its first span, counted through all rows, and how many it has.
    first: usize,
    spans: usize,
}

/// As [`generate`], with whatever runs the tokens; `None`: it was asked to end. The place of a prompt that is answered is
/// taken by the next one.
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
    let rng = Philox::new(sampling.seed, GENERATE_STREAM);
    let mut answers: Vec<Vec<i32>> = vec![Vec::new(); prompts.len()];
    let room = |prompt: &Vec<i32>| {
        let has = !prompt.is_empty() && prompt.len() < places.seq;
        has && sampling.max_new_tokens > 0
    };
    let mut waiting = (0..prompts.len()).filter(|&i| room(&prompts[i])).peekable();
    let mut done = prompts.iter().filter(|p| !room(p)).count();
    let mut making: Vec<Making> = Vec::new();
    loop {
        while let Some(&prompt) = waiting.peek() {
            let tokens = prompts[prompt].clone();
            let most = (tokens.len() + sampling.max_new_tokens).min(places.seq);
            let spans = most.div_ceil(places.span);
            let Some(first) = free(&places, &making, spans) else {
                break;
            };
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
        let Some(outcome) = decoder.infer(inputs(&places, &making))? else {
            return Ok(None);
        };
        let vocab = outcome.logits.len() * places.span / (places.rows * places.seq);
        let before = done;
        making.retain_mut(|m| {
            let prompt = &prompts[m.prompt];
            let at = m.first + (m.tokens.len() - 1) / places.span;
            let logits = &outcome.logits[at * vocab..][..vocab];
            // Its own numbers, whichever prompts are answered beside it.
            let drawn = m.tokens.len() - prompt.len() + 1;
            let u = rng.unit(((m.prompt as u64) << 32) + drawn as u64);
            let token = choose(logits, sampling, u);
            m.tokens.push(token);
            let open = !stops.contains(token)
                && m.tokens.len() < places.seq
                && drawn < sampling.max_new_tokens;
            if !open {
                answers[m.prompt] = stops.before(&m.tokens[prompt.len()..]).to_vec();
                done += 1;
            }
            open
        });
        if done > before {
            decoder.progress(done);
        }
    }
}

/// The first of so many spans of one row that nobody has.
fn free(places: &Places, making: &[Making], spans: usize) -> Option<usize> {
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

/// Random numbers of the choice of tokens.
const GENERATE_STREAM: u64 = 3 << 62;

/// Rows padded to B × T: each answer a document at the beginning of its first span, marked at its last token.
fn inputs(places: &Places, making: &[Making]) -> Micro {
    let n = places.rows * places.seq;
    let mut m = Micro {
        tokens: vec![0; n],
        labels: vec![-100; n],
        positions: vec![0; n],
        doc_start: (0..n).map(|i| (i % places.seq) as i32).collect(),
    };
    for answer in making {
        let start = answer.first * places.span;
        for (i, &token) in answer.tokens.iter().enumerate() {
            m.tokens[start + i] = token;
            m.positions[start + i] = i as i32;
            m.doc_start[start + i] = (start % places.seq) as i32;
        }
        m.labels[start + answer.tokens.len() - 1] = 0;
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
mod tests {
    use std::convert::Infallible;

    use super::*;

    const VOCAB: usize = 50;

    /// The next token is a sum over the document at the mark, so that anything of another document shows.
    struct Sums {
        places: Places,
        passes: usize,
        told: Vec<usize>,
    }

    impl Decoder for Sums {
        type Error = Infallible;

        fn infer(&mut self, m: Micro) -> Result<Option<Outcome>, Infallible> {
            self.passes += 1;
            let Places { rows, seq, span } = self.places;
            let mut logits = vec![0.0; rows * seq / span * VOCAB];
            for (i, part) in logits.chunks_exact_mut(VOCAB).enumerate() {
                let marks: Vec<usize> = (i * span..(i + 1) * span)
                    .filter(|&at| m.labels[at] >= 0)
                    .collect();
                assert!(marks.len() < 2, "two marks in span {i}");
                let Some(&at) = marks.first() else { continue };
                let start = at / seq * seq + m.doc_start[at] as usize;
                assert_eq!(m.positions[at] as usize, at - start);
                let sum: i32 = (start..=at)
                    .map(|j| m.tokens[j] * (m.positions[j] + 1))
                    .sum();
                part[sum as usize % VOCAB] = 4.0;
                part[(sum as usize + 7) % VOCAB] = 3.0;
            }
            let logits = Outcome {
                logits,
                ..Outcome::default()
            };
            Ok(Some(logits))
        }

        fn progress(&mut self, done: usize) {
            self.told.push(done);
        }
    }

    fn answers(places: Places, prompts: &[Vec<i32>], temperature: f64) -> (Vec<Vec<i32>>, Sums) {
        let mut decoder = Sums {
            places,
            passes: 0,
            told: Vec::new(),
        };
        let sampling = Sampling {
            temperature,
            top_p: 1.0,
            seed: 3,
            max_new_tokens: 9,
        };
        let stops = Stops::of([0, 1]);
        let made = decode(&mut decoder, places, prompts, &stops, &sampling);
        let Ok(made) = made;
        (made.expect("nobody asks it to end"), decoder)
    }

    #[test]
    fn prompts_that_share_rows_are_answered_as_alone() {
        let one = Places {
            rows: 1,
            seq: 32,
            span: 32,
        };
        let prompts: Vec<Vec<i32>> = (0..23)
            .map(|i| (0..i * 3 % 31).map(|j| (i * 5 + j * 3) % 49 + 1).collect())
            .chain([(0..32).collect(), (0..40).collect()])
            .collect();
        for temperature in [0.0, 0.7] {
            let alone: Vec<Vec<i32>> = match temperature {
                // Who is drawn for which prompt depends on its place in the list.
                0.0 => {
                    let each = prompts.iter().map(std::slice::from_ref);
                    each.flat_map(|p| answers(one, p, temperature).0).collect()
                }
                _ => answers(one, &prompts, temperature).0,
            };
            assert!(alone.iter().any(|a| a.len() == 9) && alone.iter().any(|a| a.len() < 9));
            for (rows, span) in [(1, 8), (2, 8), (3, 16), (2, 32)] {
                let places = Places {
                    rows,
                    seq: 32,
                    span,
                };
                let (together, decoder) = answers(places, &prompts, temperature);
                assert_eq!(together, alone, "{rows} rows in spans of {span}");
                assert_eq!(decoder.told.last(), Some(&prompts.len()));
                assert!(decoder.told.is_sorted());
            }
        }
        // Of short ones two share a row of two spans.
        let short: Vec<Vec<i32>> = (2..18).map(|i| vec![i; 3]).collect();
        let passes = |span| {
            let places = Places {
                rows: 2,
                seq: 32,
                span,
            };
            answers(places, &short, 0.0).1.passes
        };
        assert!(
            4 * passes(16) < 3 * passes(32),
            "{} {}",
            passes(16),
            passes(32)
        );
    }
}
