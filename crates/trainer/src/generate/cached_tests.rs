//! Steps over keys and values that are kept, with a model that keeps tokens.

use std::convert::Infallible;

use lowtide_session::Outcome;

use super::super::tests::{VOCAB, alone, logits_of, prompts_of_all_lengths};
use super::super::{Places, Sampling, decode};
use super::*;
use crate::stops::Stops;

/// The next token is a sum over all that its place keeps up to it, so that anything of another answer shows.
struct Keeps {
    how: Decoding,
    /// The token of each position of each place.
    kept: Vec<Vec<Option<i32>>>,
    /// Rows of each step, and of these those of prompts.
    steps: Vec<(usize, usize)>,
    finished: Vec<usize>,
}

impl Decoder for Keeps {
    type Error = Infallible;

    fn infer(&mut self, m: Micro) -> Result<Option<Outcome>, Infallible> {
        let live = Live::of(&m.labels);
        assert!(m.tokens.len() <= self.how.rows as usize);
        let rows = || m.doc_start.iter().zip(&m.positions).zip(&m.tokens);
        let mut stored = Vec::new();
        for ((&place, &position), &token) in rows().filter(|r| *r.0.0 != PADDING) {
            self.kept[place as usize][position as usize] = Some(token);
            stored.push((place, position));
        }
        self.steps.push((stored.len(), 0));
        let n = stored.len();
        stored.sort_unstable();
        stored.dedup();
        assert_eq!(stored.len(), n, "a position twice");
        let mut logits = vec![0.0; live.answers * VOCAB];
        for (row, part) in logits.chunks_exact_mut(VOCAB).enumerate() {
            if m.labels[row] < 0 {
                continue;
            }
            let (place, last) = (m.doc_start[row] as usize, m.positions[row] as usize);
            let seen = self.kept[place][..=last].iter();
            let seen: Vec<i32> = seen.map(|t| t.expect("kept before it is read")).collect();
            part.copy_from_slice(&logits_of(&seen));
        }
        Ok(Some(Outcome {
            logits,
            ..Outcome::default()
        }))
    }

    fn no_numbers(&mut self, what: String) -> Infallible {
        panic!("{what}")
    }

    fn progress(&mut self, done: usize) {
        self.finished.push(done);
    }

    fn passed(&mut self, pass: Pass) {
        let last = self.steps.last_mut().expect("a pass behind a step");
        last.1 = pass.prompt_tokens;
    }
}

fn answers(how: Decoding, prompts: &[Vec<i32>], temperature: f64) -> (Vec<Vec<i32>>, Keeps) {
    let mut decoder = Keeps {
        how,
        kept: vec![vec![None; how.keys as usize]; how.places as usize],
        steps: Vec::new(),
        finished: Vec::new(),
    };
    let sampling = Sampling {
        temperature,
        top_p: 1.0,
        seed: 3,
        max_new_tokens: 9,
    };
    let stops = Stops::of([0, 1]);
    let made = decode(&mut decoder, Places::Kept(how), prompts, &stops, &sampling);
    let Ok(made) = made;
    (made.expect("nobody asks it to end"), decoder)
}

#[test]
fn answers_of_kept_keys_are_those_of_whole_passes() {
    let prompts = prompts_of_all_lengths();
    let tokens: usize = prompts.iter().filter(|p| p.len() < 32).map(Vec::len).sum();
    for temperature in [0.0, 0.7] {
        let want = alone(&prompts, temperature);
        for (places, rows) in [(1, 1), (1, 8), (3, 4), (4, 4), (5, 64), (40, 64)] {
            let how = Decoding {
                places,
                keys: 32,
                rows,
            };
            let (made, decoder) = answers(how, &prompts, temperature);
            assert_eq!(made, want, "{how:?}");
            assert_eq!(decoder.finished.last(), Some(&prompts.len()));
            assert!(decoder.finished.is_sorted());
            // Each token of a prompt once, each token of an answer but the last ones once.
            let of_prompts: usize = decoder.steps.iter().map(|s| s.1).sum();
            assert_eq!(of_prompts, tokens, "{how:?}");
        }
    }
    // A prompt that fits into a step takes one, and each further token one more.
    let how = Decoding {
        places: 1,
        keys: 32,
        rows: 16,
    };
    let prompt = prompts.iter().find(|p| p.len() == 15).expect("one of 15");
    let (made, decoder) = answers(how, std::slice::from_ref(prompt), 0.0);
    assert!(made[0].len() > 2, "{made:?}");
    assert_eq!(decoder.steps[..2], [(15, 15), (1, 0)]);
}
