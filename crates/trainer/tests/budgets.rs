//! If the plan fits, the run fits; if it does not, nothing was allocated and the nearest budgets
//! that the refusal names do fit and run.

use std::sync::Arc;

use crate::common::{decoder, llama, machine, open, quick, rule, train};
use lowtide_planner::{Budgets, Clip, Pins, PlanError, Request, Tier, make};
use lowtide_tiers::process;
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, ModelShape};

/// What a process has beside arenas: code, thread stacks, kernels' own scratch.
const BESIDE: u64 = 256 << 20;

fn random(x: &mut u64, n: u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x % n
}

#[test]
fn twenty_random_models_and_budgets_run_or_are_refused_with_what_would_run() {
    let mut x = 0xfeed_5eed_0bad_cafe;
    let (mut ran, mut refused) = (0, 0);
    for _ in 0..20 {
        let heads = 1 + random(&mut x, 3) as u32;
        let shape = ModelShape {
            hidden: 16 * heads,
            heads,
            kv_heads: 1,
            head_dim: 16,
            intermediate: 16 + 8 * random(&mut x, 8) as u32,
            ..llama(1 + random(&mut x, 4) as u32, random(&mut x, 2) == 0)
        };
        let accumulate = 1 + random(&mut x, 3) as u32;
        let precision = if random(&mut x, 3) == 0 {
            Dtype::F32
        } else {
            Dtype::Bf16
        };
        let d = decoder(&shape, precision, accumulate);
        let clip = [Clip::Exact, Clip::Previous, Clip::None][random(&mut x, 3) as usize];
        let budgets = Budgets {
            device: Bytes(40_000 << random(&mut x, 7)),
            host: Bytes(20_000 << random(&mut x, 7)),
            disk: Bytes((4 << 20) * random(&mut x, 2)),
        };
        let machine = machine();
        let request = Request {
            workload: d.workload(),
            machine: &machine,
            budgets,
            clip,
            pins: Pins::default(),
        };
        let plan = match make(&request) {
            Ok(plan) => {
                ran += 1;
                plan
            }
            Err(PlanError::Refused(r)) => {
                refused += 1;
                make(&Request {
                    budgets: r.nearest,
                    ..request
                })
                .unwrap_or_else(|e| panic!("{budgets:?}: nearest {:?} is refused: {e}", r.nearest))
            }
            Err(e) => panic!("{e}"),
        };
        // `make` has checked it; a plan that runs also holds its budgets to the byte.
        let plan = Arc::new(plan);
        let mut session = open(&d, &plan, rule(clip).mode, quick());
        let planned = Tier::ALL.map(|t| plan.tier(t).planned_bytes.0);
        assert_eq!(session.reserved(), planned);
        let trained = train(&mut session, 2, accumulate);
        assert!(
            trained
                .losses
                .iter()
                .all(|l| f64::from_bits(l.0).is_finite())
        );
        let peak = process::peak_rss_bytes().expect("a Linux process").0;
        assert!(
            peak <= planned[0] + planned[1] + BESIDE,
            "{peak} bytes at its peak"
        );
    }
    assert!(
        ran >= 8 && refused >= 4,
        "{ran} ran, {refused} were refused"
    );
}
