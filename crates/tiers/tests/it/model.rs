//! Many requests at once, with random deadlines and overlapping extents, against a `Vec<u8>`.
//!
//! The model applies requests in order of submission. A read must find the bytes of the model at
//! its own submission: all overlapping writes before it, none after it.

use std::time::Duration;

use lowtide_tiers::{
    ALIGN, Backend, Disk, DiskConfig, Fault, Faults, Kind, RamConfig, RamDisk, Request, Ticket,
};
use lowtide_units::Bytes;
use proptest::prelude::*;

use crate::{Memory, Rng, extent, noise};

const SLOT: u64 = 160 << 10;
const N_SLOTS: u64 = 24;

struct Pending {
    ticket: Ticket,
    /// For a read, the bytes it must find.
    want: Option<Vec<u8>>,
}

/// Keeps up to `N_SLOTS` random requests unfinished on the bytes from `begin` on.
fn exercise(disk: &Disk, begin: u64, model: &mut [u8], n_requests: u64, seed: u64) {
    let (mut rng, memory) = (Rng(seed), Memory::new(SLOT * N_SLOTS));
    let mut slots: Vec<Option<Pending>> = (0..N_SLOTS).map(|_| None).collect();
    let check = |slot: u64, pending: Option<Pending>| {
        let Some(Pending { ticket, want }) = pending else {
            return;
        };
        ticket.wait().unwrap();
        if let Some(want) = want {
            let got = memory.get(slot * SLOT, want.len() as u64);
            assert!(
                got == want,
                "seed {seed}: a read found bytes of another time or place"
            );
        }
    };
    for _ in 0..n_requests {
        let slot = rng.below(N_SLOTS);
        check(slot, slots[slot as usize].take());
        let bytes = (1 + rng.below(SLOT / ALIGN)) * ALIGN;
        let bytes = bytes.min(model.len() as u64);
        let offset = rng.below((model.len() as u64 - bytes) / ALIGN + 1) * ALIGN;
        let here = offset as usize..(offset + bytes) as usize;
        let (kind, want) = if rng.below(2) == 0 {
            let new = noise(rng.next(), bytes);
            memory.set(slot * SLOT, &new);
            model[here].copy_from_slice(&new);
            (Kind::Write, None)
        } else {
            (Kind::Read, Some(model[here].to_vec()))
        };
        // SAFETY: a slot of the memory has one request at a time.
        let ticket = unsafe {
            disk.submit(Request {
                kind,
                extent: extent(begin + offset, bytes),
                memory: memory.range(slot * SLOT, bytes),
                deadline: rng.below(1000),
            })
        };
        slots[slot as usize] = Some(Pending { ticket, want });
    }
    for (slot, pending) in slots.into_iter().enumerate() {
        check(slot as u64, pending);
    }
}

#[derive(Clone, Debug)]
struct Shape {
    weights: Vec<f64>,
    block: u64,
    stripe: u64,
    depth: usize,
    verify: bool,
    seed: u64,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let weights = prop::collection::vec(0.1f64..4.0, 1..=3);
    (
        weights,
        1u64..6,
        1u64..9,
        1usize..10,
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(weights, block, stripe, depth, verify, seed)| Shape {
            weights,
            block: block * ALIGN,
            stripe: stripe * ALIGN,
            depth,
            verify,
            seed,
        })
}

const TOTAL: u64 = 1 << 20;

fn check_files(shape: &Shape, backend: Backend, direct: bool) {
    let dirs: Vec<_> = shape
        .weights
        .iter()
        .map(|_| tempfile::tempdir().unwrap())
        .collect();
    let paths = dirs.iter().map(|dir| dir.path().to_owned());
    let mut config = DiskConfig::new(paths.zip(shape.weights.iter().copied()));
    config.block = Bytes(shape.block);
    config.stripe = Bytes(shape.stripe);
    config.depth = shape.depth;
    config.verify_reads = shape.verify.then_some(Bytes(ALIGN));
    (config.backend, config.direct) = (backend, direct);
    let disk = Disk::open(&config.fit(Bytes(TOTAL)).unwrap(), None).unwrap();
    assert_eq!(disk.bytes(), Bytes(TOTAL));
    exercise(&disk, 0, &mut vec![0; TOTAL as usize], 150, shape.seed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    #[test]
    fn threads_agree_with_the_model(shape in shapes(), direct in any::<bool>()) {
        check_files(&shape, Backend::Threads, direct);
    }

    #[test]
    fn the_best_backend_agrees_with_the_model(shape in shapes()) {
        check_files(&shape, Backend::Auto, true);
    }

    #[test]
    fn harmless_faults_are_harmless(shape in shapes()) {
        let config = RamConfig {
            weights: shape.weights.clone(),
            block: Bytes(shape.block),
            stripe: Bytes(shape.stripe),
            depth: shape.depth,
            verify_reads: shape.verify.then_some(Bytes(ALIGN)),
            faults: Faults {
                seed: shape.seed,
                latency_max: Duration::from_micros(300),
                random: vec![(Fault::Interrupted, 0.2), (Fault::Short, 0.3)],
                ..Faults::default()
            },
            ..RamConfig::new(Bytes(TOTAL))
        };
        let (disk, ram) = RamDisk::open(&config).unwrap();
        let mut model = vec![0; TOTAL as usize];
        exercise(&disk, 0, &mut model, 300, shape.seed);
        prop_assert!(ram.peek(extent(0, TOTAL)) == model, "the medium differs from the model");
        prop_assert!(ram.count(Fault::Interrupted) > 20 && ram.count(Fault::Short) > 20);
    }
}

#[test]
fn several_threads_share_a_disk() {
    let (parts, part) = (4, 512 << 10);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut config = DiskConfig::new(dirs.each_ref().map(|dir| (dir.path().to_owned(), 1.0)));
    config.block = Bytes::KIB * 16;
    config.stripe = Bytes::KIB * 32;
    let disk = Disk::open(&config.fit(Bytes(parts * part)).unwrap(), None).unwrap();
    std::thread::scope(|scope| {
        for i in 0..parts {
            let disk = &disk;
            scope.spawn(move || {
                exercise(disk, i * part, &mut vec![0; part as usize], 200, i);
            });
        }
    });
}
