//! Answers in rows that run again for each token.

use std::convert::Infallible;

use super::*;

pub(super) const VOCAB: usize = 50;

/// Logits behind tokens.
pub(super) fn logits_of(tokens: &[i32]) -> [f32; VOCAB] {
    let sum: i32 = (1..).zip(tokens).map(|(i, token)| i * token).sum();
    let mut logits = [0.0; VOCAB];
    logits[sum as usize % VOCAB] = 4.0;
    logits[(sum as usize + 7) % VOCAB] = 3.0;
    logits
}

/// Prompts up to and beyond a row of 32.
pub(super) fn prompts_of_all_lengths() -> Vec<Vec<i32>> {
    (0..23)
        .map(|i| (0..i * 3 % 31).map(|j| (i * 5 + j * 3) % 49 + 1).collect())
        .chain([(0..32).collect(), (0..40).collect()])
        .collect()
}

/// Answers one after the other, each in a row of its own.
pub(super) fn alone(prompts: &[Vec<i32>], temperature: f64) -> Vec<Vec<i32>> {
    let one = Rows {
        rows: 1,
        seq: 32,
        span: 32,
        apart: None,
    };
    match temperature {
        // Who is drawn for which prompt depends on its place in the list.
        0.0 => {
            let each = prompts.iter().map(std::slice::from_ref);
            each.flat_map(|p| answers(one, p, temperature).0).collect()
        }
        _ => answers(one, prompts, temperature).0,
    }
}

/// The next token is a sum over the document at the mark, so that anything of another document shows.
struct Sums {
    places: Rows,
    passes: usize,
    told: Vec<usize>,
}

impl Decoder for Sums {
    type Error = Infallible;

    fn infer(&mut self, m: Micro) -> Result<Option<Outcome>, Infallible> {
        self.passes += 1;
        let Rows {
            rows, seq, span, ..
        } = self.places;
        let mut logits = vec![0.0; rows * seq / span * VOCAB];
        for (i, part) in logits.chunks_exact_mut(VOCAB).enumerate() {
            let marks: Vec<usize> = (i * span..(i + 1) * span)
                .filter(|&at| m.labels[at] >= 0)
                .collect();
            assert!(marks.len() < 2, "two marks in span {i}");
            let Some(&at) = marks.first() else { continue };
            let start = at / seq * seq + m.doc_start[at] as usize;
            assert_eq!(m.positions[at] as usize, at - start);
            part.copy_from_slice(&logits_of(&m.tokens[start..=at]));
        }
        let logits = Outcome {
            logits,
            ..Outcome::default()
        };
        Ok(Some(logits))
    }

    fn no_numbers(&mut self, what: String) -> Infallible {
        panic!("{what}")
    }

    fn progress(&mut self, done: usize) {
        self.told.push(done);
    }
}

fn answers(places: Rows, prompts: &[Vec<i32>], temperature: f64) -> (Vec<Vec<i32>>, Sums) {
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
    let made = decode(
        &mut decoder,
        Places::Rows(places),
        prompts,
        &stops,
        &sampling,
    );
    let Ok(made) = made;
    (made.expect("nobody asks it to end"), decoder)
}

#[test]
fn prompts_that_share_rows_are_answered_as_alone() {
    let prompts = prompts_of_all_lengths();
    for temperature in [0.0, 0.7] {
        let alone = alone(&prompts, temperature);
        assert!(alone.iter().any(|a| a.len() == 9) && alone.iter().any(|a| a.len() < 9));
        for (rows, span) in [(1, 8), (2, 8), (3, 16), (2, 32)] {
            let places = Rows {
                rows,
                seq: 32,
                span,
                apart: None,
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
        let places = Rows {
            rows: 2,
            seq: 32,
            span,
            apart: None,
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

/// Logits that are no numbers would choose the first token, greedily as drawn.
#[test]
fn no_token_is_chosen_from_what_is_no_number() {
    let prompts = [vec![4], vec![5, 6]];
    let stops = Stops::of([0]);
    for (bad, temperature) in [(f32::NAN, 0.0), (f32::INFINITY, 0.7), (f32::NAN, 0.7)] {
        let sampling = Sampling {
            temperature,
            top_p: 0.9,
            seed: 1,
            max_new_tokens: 4,
        };
        let asked = Asked {
            prompts: &prompts,
            stops: &stops,
            sampling: &sampling,
            longest: 32,
            apart: false,
            rng: Philox::new(1, GENERATE_STREAM),
        };
        let mut tokens = prompts[1].clone();
        let mut logits = logits_of(&tokens);
        assert_eq!(asked.go_on(1, &mut tokens, &logits), Ok(true));
        logits[3] = bad;
        let what = asked.go_on(1, &mut tokens, &logits).expect_err("no number");
        assert!(what.starts_with("answer 2 after 1 new tokens"), "{what}");
        assert_eq!(tokens.len(), 3, "nothing is appended");
        // A token that is never chosen is a number all the same.
        logits[3] = f32::NEG_INFINITY;
        assert_eq!(asked.go_on(1, &mut tokens, &logits), Ok(true));
    }
}

/// What a decoder is given of prompts that an encoder reads: they in rows of their own, cut as in training, answers
/// behind what decoding starts with. The next token tells the prompt and how far its answer is.
struct Reads {
    places: Rows,
    seen: Vec<Micro>,
}

impl Decoder for Reads {
    type Error = Infallible;

    fn infer(&mut self, m: Micro) -> Result<Option<Outcome>, Infallible> {
        let (rows, source) = (self.places.rows, self.places.apart.unwrap().source);
        let mut logits = vec![0.0; rows * VOCAB];
        for (row, part) in logits.chunks_exact_mut(VOCAB).enumerate() {
            let first = rows * source + row * self.places.seq;
            let own = first..first + self.places.seq;
            let mark = own.clone().find(|&at| m.labels[at] >= 0);
            let Some(at) = mark else { continue };
            assert_eq!(m.positions[at] as usize, at - first);
            assert_eq!(m.tokens[first], 7, "what decoding starts with");
            part[(m.tokens[row * source] as usize + at - first) % VOCAB] = 1.0;
        }
        self.seen.push(m);
        let logits = Outcome {
            logits,
            ..Outcome::default()
        };
        Ok(Some(logits))
    }

    fn no_numbers(&mut self, what: String) -> Infallible {
        panic!("{what}")
    }

    fn progress(&mut self, _: usize) {}
}

#[test]
fn prompts_apart_from_their_answers() {
    let places = Rows {
        rows: 2,
        seq: 4,
        span: 4,
        apart: Some(Apart {
            source: 3,
            start: 7,
        }),
    };
    let mut decoder = Reads {
        places,
        seen: Vec::new(),
    };
    let prompts = [vec![10, 11, 12, 13, 1], vec![20, 1], vec![30]];
    let sampling = Sampling {
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        max_new_tokens: 9,
    };
    let stops = Stops::of([22]);
    let made = decode(
        &mut decoder,
        Places::Rows(places),
        &prompts,
        &stops,
        &sampling,
    );
    // As many as a target has, or up to the stop; the third takes the place of the first that ends.
    let want = [vec![10, 11, 12, 13], vec![20, 21], vec![30, 31, 32, 33]];
    assert_eq!(made.unwrap().unwrap(), want);
    let first = &decoder.seen[0];
    assert_eq!(first.tokens, [10, 11, 1, 20, 1, 0, 7, 0, 0, 0, 7, 0, 0, 0]);
    assert_eq!(first.doc_start, [0, 0, 0, 0, 0, 2, 0, 1, 2, 3, 0, 1, 2, 3]);
    let third = &decoder.seen[2];
    assert_eq!(third.tokens[6..], [7, 10, 11, 0, 7, 20, 21, 0]);
    assert_eq!(third.doc_start[6..], [0, 0, 0, 3, 0, 0, 0, 3]);
    assert_eq!(third.positions[6..], [0, 1, 2, 0, 0, 1, 2, 0]);
}
