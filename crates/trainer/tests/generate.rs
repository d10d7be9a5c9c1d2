//! Answers made with keys and values that are kept, beside whole passes: logits behind every prefix, placements,
//! refilled places.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{checked, devices, make_of, quick_on, ram_disk, rule};
use lowtide_data::Micro;
use lowtide_device::cuda::Gpu;
use lowtide_executor::ExecError;
use lowtide_model::{Checkpoint, Decoder as Model, Options, load_shape};
use lowtide_planner::{Ahead, Choice, Clip, Processor, Tier};
use lowtide_session::{Outcome, Session, SessionOptions};
use lowtide_trainer::Sampling;
use lowtide_trainer::inside::{Decoder, Decoding, Places, Stops, decode, steps};
use lowtide_units::Bytes;
use lowtide_workload::{Batch, Dtype, Optimizer};

/// Grouped queries; learned positions; windows and caps of scores and logits; attention beside the MLP and heads
/// rotated in part.
const MODELS: [&str; 4] = ["llama", "gpt2", "gemma2", "gpt-neox"];
/// Tokens of a row: one document.
const SEQ: u32 = 32;

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../reference/golden")
        .join(model)
}

fn options(precision: Dtype, gpu: Option<&Gpu>) -> Options {
    Options {
        precision,
        gradient: precision,
        optimizer: Optimizer::default(),
        frozen: Vec::new(),
        lsp: None,
        batch: Batch {
            target: 0,
            micro_batch: 1,
            seq: SEQ,
            accumulate: 1,
        },
        logits_chunk: 24,
        rows_chunk: 0,
        make: make_of(gpu),
        attention: lowtide_kernels::attention::Engine::Own,
    }
}

/// A session with the golden folder's weights.
fn open(model: &str, decoder: Model, gpu: Option<&Gpu>, choice: &Choice) -> Session {
    let decoder = Arc::new(decoder);
    let plan = checked(&decoder, choice, Clip::Exact);
    let options = SessionOptions {
        disk: ram_disk(&plan),
        ..quick_on(gpu, true)
    };
    let made = Session::open(Arc::clone(&decoder), plan, rule(Clip::Exact), options);
    let mut session = made.expect("memory");
    let files = Checkpoint::open(&folder(model), decoder.shape()).expect("the weights fit");
    let homes = session.homes().expect("staging");
    type Failed = Box<dyn std::error::Error + Send + Sync>;
    let filled =
        homes.initialise(|p, range, out| -> Result<(), Failed> { Ok(files.read(p, range, out)?) });
    filled.expect("weights are loaded");
    session
}

/// Logits by the tokens that they stand behind.
type Logits = BTreeMap<Vec<i32>, Vec<f32>>;

/// A session's logits, by the tokens that they stand behind.
struct Heard<'a> {
    session: &'a mut Session,
    /// Tokens that each place keeps.
    kept: Vec<Vec<i32>>,
    logits: RefCell<Logits>,
}

impl Decoder for Heard<'_> {
    type Error = ExecError;

    fn infer(&mut self, m: Micro) -> Result<Option<Outcome>, ExecError> {
        let outcome = self.session.infer(m.clone())?;
        let vocab = self.session.decoder().shape().vocab as usize;
        let mut logits = self.logits.borrow_mut();
        if self.session.decoder().steps().is_none() {
            // One row, and a mark at the end of each document.
            let seq = m.tokens.len() as u32;
            let span = self.session.decoder().span();
            assert_eq!(seq, SEQ);
            for (i, row) in outcome.logits.chunks(vocab).enumerate() {
                let marks = (i * span..(i + 1) * span).find(|&at| m.labels[at] >= 0);
                if let Some(at) = marks {
                    let start = m.doc_start[at] as usize;
                    logits.insert(m.tokens[start..=at].to_vec(), row.to_vec());
                }
            }
            return Ok(Some(outcome));
        }
        for i in 0..m.tokens.len() {
            let Ok(place) = usize::try_from(m.doc_start[i]) else {
                continue;
            };
            let (kept, at) = (&mut self.kept[place], m.positions[i] as usize);
            kept.resize(kept.len().max(at + 1), -1);
            kept[at] = m.tokens[i];
        }
        for (i, row) in outcome.logits.chunks(vocab).enumerate() {
            if m.labels[i] >= 0 {
                let kept = &self.kept[m.doc_start[i] as usize];
                let prefix = kept[..=m.positions[i] as usize].to_vec();
                logits.insert(prefix, row.to_vec());
            }
        }
        Ok(Some(outcome))
    }

    fn no_numbers(&mut self, what: String) -> ExecError {
        panic!("{what}")
    }

    fn progress(&mut self, _: usize) {}
}

/// Greedy answers and the logits behind each of their prefixes.
fn answers(session: &mut Session, prompts: &[Vec<i32>]) -> (Vec<Vec<i32>>, Logits) {
    let places = Places::of(session.decoder(), 0);
    let mut heard = Heard {
        session,
        kept: vec![Vec::new(); 64],
        logits: RefCell::default(),
    };
    let greedy = Sampling {
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        max_new_tokens: 12,
    };
    let stops = Stops::of([2, 7]);
    let made = decode(&mut heard, places, prompts, &stops, &greedy);
    let made = made.expect("it runs").expect("nobody asks it to end");
    (made, heard.logits.into_inner())
}

/// Prompts of one token to more than half of a row, and one that leaves no room.
fn prompts(vocab: u32) -> Vec<Vec<i32>> {
    let token = |p: usize, i: usize| ((p * 13 + i * 7 + i * i) % (vocab as usize - 8) + 8) as i32;
    let lengths = [1, 9, 20, 4, SEQ as usize, 15, 2, 24, 5, 12];
    let of = |(p, n): (usize, usize)| (0..n).map(|i| token(p, i)).collect();
    lengths.into_iter().enumerate().map(of).collect()
}

/// Weights on a tier, and how far they are fetched ahead.
fn placed(decoder: &Model, tiers: &[Tier], ahead: Ahead) -> Choice {
    let mut choice = Choice::resident(decoder.workload());
    let all = choice.weights.iter_mut().zip(tiers.iter().cycle());
    all.for_each(|(home, &tier)| *home = tier);
    choice.update.fill(Processor::Host);
    choice.ahead = ahead;
    choice
}

/// Three places, steps of eight tokens: prompts come in several steps, beside answers, and places are taken again.
const HOW: Decoding = Decoding {
    places: 3,
    keys: SEQ,
    rows: 8,
};

fn stepping(model: &str, precision: Dtype, gpu: Option<&Gpu>, how: Decoding) -> Model {
    let shape = load_shape(&folder(model)).expect("a supported config.json");
    Model::decoding(&shape, &options(precision, gpu), how).expect("sizes go together")
}

#[test]
fn logits_of_kept_keys_are_those_of_whole_passes() {
    for gpu in devices() {
        let gpu = gpu.as_ref();
        for model in MODELS {
            for (dtype, bound) in [(Dtype::F32, 2e-5), (Dtype::Bf16, 0.03)] {
                let shape = load_shape(&folder(model)).expect("a supported config.json");
                let whole = Model::new(&shape, &options(dtype, gpu)).expect("sizes go together");
                let resident = Choice::resident(whole.workload());
                let mut whole = open(model, whole, gpu, &resident);
                let prompts = prompts(shape.vocab);
                let (want, passes) = answers(&mut whole, &prompts);
                for how in [HOW, steps(1, SEQ), steps(16, SEQ)] {
                    let decoder = stepping(model, dtype, gpu, how);
                    let resident = placed(&decoder, &[Tier::Device], Ahead::UNLIMITED);
                    let mut session = open(model, decoder, gpu, &resident);
                    let (have, kept) = answers(&mut session, &prompts);
                    let what = format!("{model} {dtype:?} {how:?}");
                    let mut both = 0;
                    for (prefix, logits) in &kept {
                        // Behind an answer that went another way there is nothing to compare.
                        let Some(pass) = passes.get(prefix) else {
                            continue;
                        };
                        both += 1;
                        let size = pass.iter().fold(0f32, |m, x| m.max(x.abs()));
                        for (a, b) in logits.iter().zip(pass) {
                            assert!((a - b).abs() <= bound * size, "{what}: {a} for {b}");
                        }
                    }
                    assert!(both >= 15, "{what}: {both} prefixes of {}", passes.len());
                    // Where they part the two largest logits are as near as logits may be apart.
                    for ((have, want), prompt) in have.iter().zip(&want).zip(&prompts) {
                        let same = have.iter().zip(want).take_while(|(a, b)| a == b).count();
                        if have == want {
                            continue;
                        }
                        let pass = &passes[&[&prompt[..], &want[..same]].concat()];
                        let mut sorted = pass.clone();
                        sorted.sort_by(|a, b| b.total_cmp(a));
                        let size = pass.iter().fold(0f32, |m, x| m.max(x.abs()));
                        let gap = sorted[0] - sorted[1];
                        assert!(gap <= 2.0 * bound * size, "{what}: {have:?} for {want:?}");
                    }
                }
            }
        }
    }
}

/// Where weights are, and how far ahead they are fetched, changes no bit.
#[test]
fn the_place_of_weights_does_not_change_a_bit_of_answers() {
    use Tier::{Device, Disk, Host};
    for gpu in devices() {
        let gpu = gpu.as_ref();
        for (model, dtype) in [("llama", Dtype::Bf16), ("gemma2", Dtype::F32)] {
            let mut first = None;
            let somewhat = Ahead::each(Bytes(1 << 15));
            for (tiers, ahead) in [
                (&[Device][..], Ahead::UNLIMITED),
                (&[Host], Ahead::NONE),
                (&[Host], somewhat),
                (&[Disk], Ahead::NONE),
                (&[Device, Device, Host, Disk], Ahead::UNLIMITED),
            ] {
                let decoder = stepping(model, dtype, gpu, HOW);
                let choice = placed(&decoder, tiers, ahead);
                let prompts = prompts(decoder.shape().vocab);
                let mut session = open(model, decoder, gpu, &choice);
                let (answers, logits) = answers(&mut session, &prompts);
                let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let logits: Vec<_> = logits.into_iter().map(|(p, row)| (p, bits(row))).collect();
                assert!(logits.len() > 40);
                let made = (answers, logits);
                let same = first.get_or_insert_with(|| made.clone()) == &made;
                assert!(same, "{model} {dtype:?} {tiers:?} {ahead:?}");
            }
        }
    }
}
