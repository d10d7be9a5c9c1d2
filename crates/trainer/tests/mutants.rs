//! What the checker lets go of plans with one task done wrong is right: such a plan, run in some order
//! of its edges, gives the same bits as the plan that it was made from.

#![allow(clippy::print_stderr, reason = "the counts are worth reading")]

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::{Trained, batch, checked, choice, decoder, llama, micro, open, quick, train};
use lowtide_executor::Mode;
use lowtide_model::Decoder;
use lowtide_planner::{Choice, Clip, LoopOrder, Pieces, Plan, Saved, Tier, check};
use lowtide_session::SessionOptions;
use lowtide_workload::Dtype;

const ACCUMULATE: u32 = 3;

/// Three steps, then the loss and the logits of another batch.
fn show(d: &Arc<Decoder>, plan: &Arc<Plan>, clip: Clip, seed: u64) -> (Trained, u64, Vec<u32>) {
    let options = SessionOptions {
        mode: Mode::Shuffled(seed),
        ..quick()
    };
    let mut session = open(d, plan, clip, options);
    let trained = train(&mut session, 3, ACCUMULATE);
    let evaluated = session.evaluate(batch(9, ACCUMULATE)).expect("a loss");
    let mut one = micro(5, 2, 12, 61);
    one.labels.fill(-100);
    (one.labels[4], one.labels[12 + 7]) = (0, 0);
    let logits = session.infer(one).expect("logits").logits;
    let logits = logits.iter().map(|x| x.to_bits()).collect();
    let again = train(&mut session, 1, ACCUMULATE);
    assert!(again.losses.iter().all(|l| f64::from_bits(l.0).is_finite()));
    (trained, evaluated.loss().to_bits() ^ again.state, logits)
}

/// Each of the explained kinds at most so many times a plan.
const EACH: usize = 40;

fn what_is_let_go_is_right(d: &Arc<Decoder>, c: &Choice, clip: Clip) {
    let good = checked(d, c, clip);
    let want = show(d, &good, clip, 0);
    let mut found: BTreeMap<(crate::mutation::Kind, &str), Vec<crate::mutation::Mutant>> =
        BTreeMap::new();
    for mutant in crate::mutation::mutants(&good) {
        if check::check(&mutant.plan, d.workload(), clip).is_err() {
            continue;
        }
        let why = mutant.equivalent(d.workload());
        let why = why.unwrap_or_else(|| panic!("let go: {mutant}"));
        found.entry((mutant.kind, why)).or_default().push(mutant);
    }
    let mut run = 0;
    for ((kind, why), all) in found {
        let step = all.len().div_ceil(EACH);
        eprintln!("{kind:?}, {}, every {step}: {why}", all.len());
        for (seed, mutant) in (1..).zip(all.into_iter().step_by(step)) {
            let said = mutant.to_string();
            let got = show(d, &Arc::new(mutant.plan), clip, seed);
            assert_eq!(got, want, "seed {seed}: {said}");
            run += 1;
        }
    }
    assert!(run > EACH, "{run} mutants were run");
}

fn mixed(d: &Decoder) -> Choice {
    let mut c = choice(d, Tier::Disk, Tier::Disk, Tier::Disk);
    let ways = [Saved::Host, Saved::Disk, Saved::Keep, Saved::Recompute];
    for saved in &mut c.saved {
        let each = saved.iter_mut().zip(ways.iter().cycle());
        each.for_each(|(s, &way)| *s = way);
    }
    c.ahead = lowtide_planner::Ahead::UNLIMITED;
    c.pieces = Pieces::Split(256);
    c
}

#[test]
fn what_the_checker_lets_go_gives_the_same_bits() {
    let d = decoder(&llama(2, true), Dtype::Bf16, ACCUMULATE);
    let mut durable = mixed(&d);
    durable.make_durable();
    what_is_let_go_is_right(&d, &durable, Clip::Exact);
    let mut c = mixed(&d);
    c.order = LoopOrder::BatchMajor;
    what_is_let_go_is_right(&d, &c, Clip::Previous);
    let mut c = choice(&d, Tier::Host, Tier::Disk, Tier::Host);
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
    c.round = 1;
    what_is_let_go_is_right(&d, &c, Clip::Exact);
}
