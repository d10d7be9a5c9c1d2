//! How fast each lane runs while others run: measured sets of lanes, and what follows from them for
//! sets that were not measured.
//!
//! A set that was measured as a whole is taken as it is. Otherwise a lane's slow-downs add up over measured parts of
//! the set, the largest part first and no other lane counted twice: two lanes that take a quarter of the memory's
//! bandwidth each cost a third lane the sum of what each costs it alone. Lanes that no measured part covers share
//! evenly, by the shares that a machine's file gives (`Machine::shared`); reads and writes of a drive share its mixed
//! rate, at once and alternating.

use crate::fast::FastMap;
use crate::lanes::{Lane, LaneSet, PerLane};
use crate::machine::Machine;
use crate::together::Together;

/// The least speed that a lane is taken to run at: a set that was measured badly must not stop a
/// simulation.
const SLOWEST: f64 = 0.01;

/// A measured set, with a speed for each of its lanes.
struct Part {
    lanes: LaneSet,
    speed: PerLane<f64>,
}

/// Speed of every lane in sets of running lanes: of those that were asked for.
pub(crate) struct Speeds {
    parts: Vec<Part>,
    shares: Vec<PerLane<f64>>,
    mix: f64,
    /// The same of direct transfers.
    direct: f64,
    both_ways: bool,
    known: FastMap<LaneSet, PerLane<f64>>,
}

impl Speeds {
    /// Speeds for a step; `both_ways`: it reads drives and writes them.
    pub(crate) fn new(machine: &Machine, both_ways: bool) -> Self {
        let mut parts: Vec<Part> = machine.together.iter().map(part).collect();
        // Larger parts first; among equals the first measured.
        parts.sort_by_key(|p| std::cmp::Reverse(p.lanes.len()));
        Self {
            parts,
            shares: shares(machine),
            mix: machine.fair_mix_factor(),
            direct: machine.fair_direct(),
            both_ways,
            known: FastMap::default(),
        }
    }

    /// Speeds while these lanes run.
    pub(crate) fn of(&mut self, set: LaneSet) -> PerLane<f64> {
        if let Some(&known) = self.known.get(&set) {
            return known;
        }
        let speeds = PerLane::of(|lane| match set.has(lane) {
            false => 1.0,
            true => {
                let in_turn = match self.both_ways {
                    true => turns(lane, set, self.mix),
                    false => 1.0,
                };
                self.speed(lane, set) * in_turn
            }
        });
        self.known.insert(set, speeds);
        speeds
    }

    /// Speeds while these lanes run, the disk lanes among them that `direct` names with direct transfers.
    pub(crate) fn with_direct(
        &mut self,
        set: LaneSet,
        direct: impl Fn(Lane) -> bool,
    ) -> PerLane<f64> {
        let mut speeds = self.of(set);
        for lane in [Lane::DISK_READ, Lane::DISK_WRITE] {
            if direct(lane) {
                speeds[lane] = (speeds[lane] * self.direct(lane, set)).min(1.0);
            }
        }
        speeds
    }

    /// How much faster than [`Speeds::of`] says a direct transfer is on a disk lane while these lanes run. Those
    /// speeds are of transfers that pass the host; of direct ones the drives have a mixed rate of their own, and none
    /// is faster than alone. What lanes of other kinds and direct transfers cost each other is taken as it is for
    /// others.
    pub(crate) fn direct(&mut self, lane: Lane, set: LaneSet) -> f64 {
        if set.holds(drive()) {
            let pair = self.of(drive());
            let both = pair[Lane::DISK_READ] + pair[Lane::DISK_WRITE];
            (self.direct / both).min(1.0 / pair[lane])
        } else if self.both_ways {
            self.direct.min(1.0) / self.mix.min(1.0)
        } else {
            1.0
        }
    }

    fn speed(&self, lane: Lane, set: LaneSet) -> f64 {
        let me = LaneSet::of([lane]);
        let mut others = set.without(me);
        let mut slow = 0.0;
        for part in &self.parts {
            let with = part.lanes.without(me);
            if part.lanes.has(lane) && with != LaneSet::default() && others.holds(with) {
                slow += 1.0 / part.speed[lane] - 1.0;
                others = others.without(with);
            }
        }
        let rest = even(lane, others.with(lane), &self.shares, self.mix);
        1.0 / (slow + 1.0 / rest)
    }
}

fn part(t: &Together) -> Part {
    let speed = |lane| t.get(lane).map_or(1.0, |s| s.clamp(SLOWEST, 1.0));
    let measured = Lane::ALL.into_iter().filter(|&lane| t.get(lane).is_some());
    Part {
        lanes: LaneSet::of(measured),
        speed: PerLane::of(speed),
    }
}

/// The lanes that read from a drive and write to it.
fn drive() -> LaneSet {
    LaneSet::of([Lane::DISK_READ, Lane::DISK_WRITE])
}

/// The share of its rates that a drive gives when it does one thing at a time, in a step that both reads and writes.
/// A cache that took a write works it off during the next read, so alternating gives no more than the mixed rate
/// either.
fn turns(lane: Lane, set: LaneSet, mix: f64) -> f64 {
    if drive().has(lane) && !set.holds(drive()) {
        mix.min(1.0)
    } else {
        1.0
    }
}

/// Even sharing of what several lanes draw on.
fn even(lane: Lane, set: LaneSet, shares: &[PerLane<f64>], mix: f64) -> f64 {
    let mut speed = 1.0f64;
    for row in shares.iter().filter(|row| row[lane] > 0.0) {
        let those = row.iter().filter(|&(l, _)| set.has(l));
        let wanted: f64 = those.map(|(_, share)| share).sum();
        speed = speed.min(1.0 / wanted.max(1.0));
    }
    if set.holds(drive()) && drive().has(lane) {
        speed = speed.min(mix / 2.0);
    }
    speed
}

/// By shared resource, the share each lane takes.
fn shares(machine: &Machine) -> Vec<PerLane<f64>> {
    let row = |s: &crate::machine::Shared| {
        PerLane::of(|lane| s.share.get(lane.kind.name()).copied().unwrap_or(0.0))
    };
    machine.shared.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use lowtide_units::{Bytes, BytesPerSecond, Seconds};

    use super::*;
    use crate::build::build;
    use crate::choice::{Budgets, Choice, Clip};
    use crate::machine::{DirectRates, DiskRates};
    use crate::plan::{Arg, PartName, PieceId, SlotId, Task, TaskId, Use, Work};
    use crate::{simulate, testing};

    const HOST: usize = 1 << 5;
    const UP: usize = 1 << 1;
    const DOWN: usize = 1 << 2;
    const READ: usize = 1 << 3;
    const WRITE: usize = 1 << 4;

    #[track_caller]
    fn check(machine: &Machine, bits: usize, want: &[(Lane, f64)]) {
        let set = Lane::ALL.into_iter().filter(|l| bits >> l.idx() & 1 == 1);
        let set = LaneSet::of(set);
        let drives = set.has(Lane::DISK_READ) || set.has(Lane::DISK_WRITE);
        let mut speeds = Speeds::new(machine, drives);
        for &(lane, want) in want {
            let got = speeds.of(set)[lane];
            assert!((got - want).abs() < 1e-12, "{lane}: {got}, want {want}");
        }
    }

    #[test]
    fn a_drive_that_reads_and_writes_gives_its_mixed_rate() {
        let rate = |r: f64| BytesPerSecond(r);
        let disk = DiskRates {
            read: rate(2.0),
            write: rate(4.0),
            mixed: rate(2.5),
            latency: Seconds(0.0),
            rated_writes: None,
            direct: None,
        };
        let (read, write) = (Lane::DISK_READ, Lane::DISK_WRITE);
        let untouched = Together::of([(read, 0.9), (Lane::HOST, 0.9)]);
        let mut sets = [
            Together::of([(read, 0.4), (write, 0.2), (Lane::HOST, 0.7)]),
            untouched.clone(),
            Together::of([(read, 0.5), (write, 0.25)]),
        ];
        disk.settle(&mut sets);
        // 2 x 0.5 + 4 x 0.25 = 2 would be the pair's rate: a quarter more, with other lanes too.
        let want = [(read, 0.625), (write, 0.3125)];
        assert_eq!(sets[2], Together::of(want));
        assert_eq!(sets[1], untouched);
        let want = [(read, 0.5), (write, 0.25), (Lane::HOST, 0.7)];
        assert_eq!(sets[0], Together::of(want));
        // Nothing is faster than alone.
        let fast = DiskRates {
            mixed: rate(9.0),
            ..disk
        };
        fast.settle(&mut sets);
        assert_eq!(sets[2], Together::of([(read, 1.0), (write, 1.0)]));
    }

    #[test]
    fn a_drive_that_takes_turns_gives_its_mixed_rate_too() {
        let mut m = testing::machine();
        m.together.clear();
        let d = m.disk.as_mut().expect("a drive");
        (d.read, d.write) = (BytesPerSecond(2e9), BytesPerSecond(6e9));
        // In turn they would give 3 GB/s.
        d.mixed = BytesPerSecond(2.4e9);
        check(&m, READ, &[(Lane::DISK_READ, 0.8)]);
        check(&m, WRITE, &[(Lane::DISK_WRITE, 0.8)]);
        // A drive that gains by doing both at once is no faster with one.
        m.disk.as_mut().expect("a drive").mixed = BytesPerSecond(3.6e9);
        check(&m, READ, &[(Lane::DISK_READ, 1.0)]);
        // Neither is one that has nothing to write.
        m.disk.as_mut().expect("a drive").mixed = BytesPerSecond(2.4e9);
        let read = Speeds::new(&m, false).of(LaneSet::of([Lane::DISK_READ]))[Lane::DISK_READ];
        assert!((read - 1.0).abs() < 1e-12, "{read}");
    }

    /// Direct transfers go by their own mixed rate, alone in turn and both at once, whatever the others' is.
    #[test]
    fn direct_transfers_give_their_own_mixed_rate() {
        let fair = |read: f64, write: f64| 2.0 / (1.0 / read + 1.0 / write);
        for (host, direct, measured) in [
            (0.9, 1.5, None),
            (1.5, 1.0, None),
            (1.0, 0.6, None),
            (1.2, 1.5, Some((0.8, 0.4))),
            (1.2, 2.0, Some((0.9, 0.3))),
        ] {
            let mut m = testing::machine();
            m.together.clear();
            m.shared.clear();
            let d = m.disk.as_mut().expect("a drive");
            (d.read, d.write) = (BytesPerSecond(2e9), BytesPerSecond(6e9));
            d.mixed = BytesPerSecond(host * fair(2e9, 6e9));
            d.direct = Some(DirectRates {
                read: BytesPerSecond(4e9),
                write: BytesPerSecond(3e9),
                mixed: BytesPerSecond(direct * fair(4e9, 3e9)),
                latency: Seconds(0.0),
                most_memory: Bytes::GIB,
            });
            let (read, write) = (Lane::DISK_READ, Lane::DISK_WRITE);
            let (mut pair, mut want) = ((host / 2.0, host / 2.0), (direct / 2.0, direct / 2.0));
            if let Some((r, w)) = measured {
                m.together.push(Together::of([(read, r), (write, w)]));
                let part = direct / (r + w);
                (pair, want) = ((r, w), ((r * part).min(1.0), (w * part).min(1.0)));
            }
            let mut speeds = Speeds::new(&m, true);
            let both = LaneSet::of([read, write]);
            for (lane, pair, want) in [(read, pair.0, want.0), (write, pair.1, want.1)] {
                let close = |got: f64, want: f64| {
                    assert!(
                        (got - want).abs() < 1e-12,
                        "{lane} {host} {direct}: {got}, {want}"
                    );
                };
                let mut of = |set| (speeds.of(set)[lane], speeds.direct(lane, set));
                let (alone, faster) = of(LaneSet::of([lane]));
                close(alone, host.min(1.0));
                close(alone * faster, direct.min(1.0));
                let (at_once, faster) = of(both);
                close(at_once, pair);
                close(at_once * faster, want);
            }
            // A step that only reads has nothing mixed.
            let mut one_way = Speeds::new(&m, false);
            let faster = one_way.direct(read, LaneSet::of([read]));
            assert!((faster - 1.0).abs() < 1e-12, "{faster}");
        }
    }

    #[test]
    fn a_measured_set_is_taken_as_it_is_and_parts_add_up() {
        let mut m = testing::machine();
        m.shared.clear();
        m.disk = None;
        m.together = vec![
            Together::of([(Lane::HOST, 0.8), (Lane::H2D, 0.5)]),
            Together::of([(Lane::HOST, 0.9), (Lane::D2H, 0.7)]),
            Together::of([(Lane::HOST, 0.6), (Lane::H2D, 0.4), (Lane::D2H, 0.3)]),
        ];
        check(&m, HOST, &[(Lane::HOST, 1.0)]);
        check(&m, HOST | UP, &[(Lane::HOST, 0.8), (Lane::H2D, 0.5)]);
        let all = [(Lane::HOST, 0.6), (Lane::H2D, 0.4), (Lane::D2H, 0.3)];
        check(&m, HOST | UP | DOWN, &all);
        // Without the whole the pairs' slow-downs add up; h2d and d2h know nothing of each other.
        m.together.truncate(2);
        let host = 1.0 / (1.0 + (1.0 / 0.8 - 1.0) + (1.0 / 0.9 - 1.0));
        let parts = [(Lane::HOST, host), (Lane::H2D, 0.5), (Lane::D2H, 0.7)];
        check(&m, HOST | UP | DOWN, &parts);
    }

    #[test]
    fn what_was_not_measured_shares_evenly() {
        let mut m = testing::machine(); // host 1, h2d and d2h 0.2, disk 0.1 of memory
        check(
            &m,
            HOST | UP,
            &[(Lane::HOST, 1.0 / 1.2), (Lane::H2D, 1.0 / 1.2)],
        );
        let mix = m.disk_mix_factor() / 2.0;
        check(
            &m,
            READ | WRITE,
            &[(Lane::DISK_READ, mix), (Lane::DISK_WRITE, mix)],
        );
        m.together = vec![Together::of([(Lane::HOST, 0.5), (Lane::H2D, 0.9)])];
        // The pair as measured, and the drive's share of memory beside it.
        let host = 1.0 / (2.0 - 1.0 + 1.1);
        check(
            &m,
            HOST | UP | READ,
            &[(Lane::HOST, host), (Lane::H2D, 0.9)],
        );
    }

    /// The simulator itself, on lanes with nothing to wait for: every pair runs at the speeds that
    /// were measured for it, and so does all of them at once.
    #[test]
    fn the_simulator_reproduces_every_measured_set() {
        let w = testing::workload(1, 1);
        let mut m = testing::machine();
        let mut state = 7u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            0.35 + 0.6 * (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let mut sets: Vec<Vec<Lane>> = vec![Lane::ALL.to_vec()];
        for (i, &a) in Lane::ALL.iter().enumerate() {
            sets.extend(Lane::ALL[i + 1..].iter().map(|&b| vec![a, b]));
        }
        for set in &sets {
            m.together
                .push(Together::of(set.iter().map(|&l| (l, random()))));
        }
        let budgets = Budgets::UNLIMITED;
        let mut plan = build(&w, &Choice::resident(&w), Clip::None, budgets, &m);
        plan.pieces[PieceId(0)].elements = 1 << 22;
        for (set, measured) in sets.iter().zip(m.together.clone()) {
            // As many tasks a lane as take about a second alone; the first lane to end tells when.
            let task = |lane: Lane| {
                let work = match lane {
                    Lane::GPU | Lane::HOST => Work::Update { piece: PieceId(0) },
                    Lane::DISK_READ => Work::Read,
                    Lane::DISK_WRITE => Work::Write,
                    _ => Work::Copy,
                };
                let arg = Arg {
                    slot: SlotId(0),
                    offset: 0,
                    bytes: 1 << 20,
                    access: Use::Read,
                };
                Task {
                    lane,
                    work,
                    args: vec![arg],
                    after: Vec::new(),
                }
            };
            let part = PartName::Evaluate;
            let mut tasks = Vec::new();
            let mut alone = Vec::new();
            for &lane in set {
                plan.parts[part] = vec![task(lane)].into();
                let each = simulate::alone(&plan, &w, &m, part)[TaskId(0)].0;
                alone.push(each);
                tasks.extend(std::iter::repeat_n(task(lane), (1.0 / each) as usize));
            }
            plan.parts[part] = tasks.into();
            let run = simulate::simulate(&plan, &w, &m, &[part]);
            let ends = |lane: Lane| {
                let tasks = plan.part(part).iter().zip(&run.parts[0]);
                tasks
                    .filter(move |(t, _)| t.lane == lane)
                    .map(|(_, time)| time.1)
            };
            let first = set.iter().map(|&l| ends(l).fold(0.0, f64::max));
            let first = first.fold(f64::INFINITY, f64::min);
            for (&lane, each) in set.iter().zip(alone) {
                let done = ends(lane).filter(|&end| end <= first).count() as f64 * each;
                let (got, want) = (done / first, measured.get(lane).unwrap());
                assert!(
                    (got / want - 1.0).abs() < 0.01,
                    "{lane} in {set:?}: {got}, {want}"
                );
            }
        }
    }

    #[test]
    fn nonsense_in_a_file_cannot_stop_a_lane() {
        let mut m = testing::machine();
        m.together = vec![Together::of([
            (Lane::HOST, 0.0),
            (Lane::H2D, f64::INFINITY),
        ])];
        check(&m, HOST | UP, &[(Lane::HOST, SLOWEST), (Lane::H2D, 1.0)]);
        m.together = vec![Together::of([(Lane::HOST, -3.0), (Lane::H2D, 7.0)])];
        check(&m, HOST | UP, &[(Lane::HOST, SLOWEST), (Lane::H2D, 1.0)]);
    }
}
