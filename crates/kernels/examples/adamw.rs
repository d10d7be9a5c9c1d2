//! Host updates against the best copy of the same threads, in one run.
//!
//! `cargo run --release -p lowtide-kernels --example adamw -- [THREADS [PARAMETERS [ROUNDS [MOMENTS [OPTIMIZER]]]]]`
//! (moments `f32`, `bf16` or `int8`) prints for each round parameters a second, bytes a second (of
//! AdamW 26, 18 or 14.125 a parameter) and the share of the better of memcpy and non-temporal copy; then one JSON
//! object with the median share.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use lowtide_kernels::update::bench;
use lowtide_workload::{Moments, Optimizer, OptimizerName};

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let threads = number(std::thread::available_parallelism().map_or(1, usize::from));
    let (parameters, rounds) = (number(1 << 26), number(5));
    let moments = args.next().map_or(Moments::F32, |name| {
        let known = Moments::ALL.into_iter().find(|m| m.name() == name);
        known.unwrap_or_else(|| panic!("moments are f32, bf16 or int8, not {name}"))
    });
    let name = args.next().map_or(OptimizerName::default(), |name| {
        let known = OptimizerName::ALL.iter().find(|o| o.name() == name);
        *known.unwrap_or_else(|| panic!("no optimizer {name}"))
    });
    let optimizer = Optimizer { name, moments };
    let mut shares = Vec::new();
    for round in 0..rounds {
        let report = bench(threads, parameters, optimizer);
        let best = report.fastest();
        println!(
            "round {round}: {:?} {:.3} G parameters/s, {}, bound {}, share {:.3}",
            best.path,
            best.parameters_per_second / 1e9,
            best.bytes_per_second,
            report.bound(),
            best.share_of_bound
        );
        for path in &report.paths {
            println!(
                "  {:?} {:.3} G parameters/s",
                path.path,
                path.parameters_per_second / 1e9
            );
        }
        shares.push(best.share_of_bound);
    }
    shares.sort_by(f64::total_cmp);
    println!(
        "{{\"threads\": {threads}, \"parameters\": {parameters}, \"optimizer\": \"{}\", \"moments\": \"{}\", \"median_share_of_bound\": {:.4}}}",
        name.name(),
        moments.name(),
        shares[shares.len() / 2]
    );
}
