//! The coverage-guided program: libFuzzer on the target that `LOWTIDE_FUZZ` names. Its arguments are
//! libFuzzer's own (docs/robustness.md).
#![no_main]

use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use lowtide_fuzz::mutate::{Mutator, Random};
use lowtide_fuzz::{Seed, TARGETS, Target, seeds};

static TARGET: OnceLock<(&'static Target, Mutator)> = OnceLock::new();

fn chosen() -> &'static (&'static Target, Mutator) {
    TARGET.get_or_init(|| {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        let name = std::env::var("LOWTIDE_FUZZ").unwrap_or_default();
        let target = Target::named(&name)
            .unwrap_or_else(|| panic!("LOWTIDE_FUZZ must be one of {}", names.join(", ")));
        (target, Mutator::new(target, &begin_from(&name)))
    })
}

/// The seeds of the sources, or of a folder that was copied along.
fn begin_from(name: &str) -> Vec<Seed> {
    match std::env::var_os("LOWTIDE_FUZZ_SEEDS") {
        Some(dir) => lowtide_fuzz::seeds_in(&std::path::Path::new(&dir).join(name)),
        None => seeds(name),
    }
}

/// A panic in our own code is a bug even where something catches it. One in a library that is caught, as
/// those of tokenizers are, is an error of the file.
fn on_panic(info: &PanicHookInfo<'_>, print: &dyn Fn(&PanicHookInfo<'_>)) {
    let ours = info
        .location()
        .is_none_or(|at| at.file().starts_with("crates/") || at.file().contains("/lowtide"));
    if ours || !lowtide_data::trial::in_foreign_code() {
        print(info);
        std::process::abort();
    }
}

fuzz_target!(
    init: {
        let _ = std::panic::take_hook();
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| on_panic(info, &print)));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        pool.build_global().expect("nobody has made one before");
        chosen();
    },
    |bytes: &[u8]| {
        let _ = chosen().0.read(bytes);
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // libFuzzer's own changes know what comparisons looked for, those here know the form.
    if seed.is_multiple_of(4) {
        return fuzzer_mutate(data, size, max_size);
    }
    let mut random = Random::new(u64::from(seed));
    let changed = chosen().1.change(&data[..size], &mut random);
    let n = changed.len().min(max_size);
    data[..n].copy_from_slice(&changed[..n]);
    n
});
