//! Saved tensors on drives by the search's own choice, and what keeps them off.

use lowtide_units::Bytes;

use super::Pins;
use crate::choice::{Activations, Saved};
use crate::plan::{Plan, Tensor, Tier};
use crate::simulate::activations_written;
use crate::testing::{dear, host_state, planned, workload};

fn on_drives(plan: &Plan) -> usize {
    let local = |t| matches!(t, Tensor::Local(..));
    let there = plan.slots.iter().filter(|s| s.tier == Tier::Disk);
    there.filter(|s| local(s.tensor)).count()
}

#[test]
fn nothing_is_written_that_may_not_be_or_saves_too_little() {
    let (w, m) = (workload(6, 6), dear());
    let free = planned(&w, &m, host_state());
    let most = activations_written(&free);
    assert!(most > Bytes(0) && on_drives(&free) > 0, "{most}");
    let step = |p: &Plan| p.prediction.step_seconds.0;
    let with = |writes: Option<u64>, min_gain: f64| {
        planned(
            &w,
            &m,
            Pins {
                writes: writes.map(Bytes),
                min_gain,
                ..host_state()
            },
        )
    };
    let none = with(Some(0), 0.0);
    assert_eq!(
        (on_drives(&none), activations_written(&none)),
        (0, Bytes(0))
    );
    let mut before = step(&none);
    for eighths in [2, 8] {
        let allowed = most.0 * eighths / 8;
        let some = with(Some(allowed), 0.0);
        assert!(some.prediction.disk_bytes_written.0 <= allowed);
        assert!(step(&some) <= before * 1.01, "{eighths} eighths are slower");
        before = step(&some);
    }
    assert!(before < step(&none) * 0.995, "{before} of {}", step(&none));
    // What the writes save in all, over what is written.
    let gain = (step(&none) - step(&free)) / most.0 as f64 * 1e12;
    assert!(on_drives(&with(None, gain * 1e3)) == 0);
    assert!(on_drives(&with(None, gain / 1e3)) > 0);
}

/// What may be written is of all ranks.
#[test]
fn nothing_is_written_by_all_ranks_that_may_not_be() {
    let (mut w, m) = (workload(6, 6), dear());
    w.ranks = 2;
    let with = |writes: Option<u64>| {
        let writes = writes.map(Bytes);
        planned(
            &w,
            &m,
            Pins {
                writes,
                ..host_state()
            },
        )
    };
    let free = with(None);
    let most = activations_written(&free);
    assert!(most > Bytes(0), "it writes");
    for eighths in [0, 3, 5] {
        let allowed = most.0 * eighths / 8;
        let written = with(Some(allowed)).prediction.disk_bytes_written.0;
        assert!(written <= allowed, "{written} of {allowed}");
    }
}

#[test]
fn state_counts_among_what_may_be_written() {
    let (w, m) = (workload(6, 6), dear());
    let pins = Pins {
        optimizer: Some(Tier::Disk),
        weights: Some(Tier::Host),
        gradients: Some(Tier::Host),
        writes: Some(Bytes(0)),
        ..Pins::default()
    };
    let state = planned(&w, &m, pins);
    assert_eq!(on_drives(&state), 0);
    let written = state.prediction.disk_bytes_written;
    // As much as state alone: nothing is left for activations.
    let pins = Pins {
        writes: Some(written),
        ..pins
    };
    assert_eq!(on_drives(&planned(&w, &m, pins)), 0);
}

#[test]
fn saved_tensors_go_where_they_are_pinned_to() {
    let (w, m) = (workload(6, 6), dear());
    for (offload, none) in [(Tier::Host, Saved::Disk), (Tier::Disk, Saved::Host)] {
        let pins = Pins {
            offload: Some(offload),
            ..Pins::default()
        };
        let p = planned(&w, &m, pins);
        assert!(p.choice.saved.iter().flatten().all(|&s| s != none));
    }
    let pins = Pins {
        activations: Activations::Offload,
        ..host_state()
    };
    let p = planned(&w, &m, pins);
    let ways = || p.choice.saved.iter().flatten();
    assert!(ways().all(|&s| s != Saved::Recompute));
    assert!(ways().any(|&s| s == Saved::Disk));
}
