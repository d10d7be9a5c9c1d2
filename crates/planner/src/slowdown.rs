//! A machine whose lanes take longer than its rates say, or less long.

use lowtide_units::{BytesPerSecond, FlopsPerSecond};
use lowtide_workload::Workload;

use crate::lanes::LaneKind;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::waits::steady_step;

/// Seconds that each kind of lane takes for what its rates say takes one, in the order of [`LaneKind::ALL`].
pub type Slowdown = [f64; LaneKind::ALL.len()];

/// Every lane as its rates say.
pub const AS_RATED: Slowdown = [1.0; LaneKind::ALL.len()];

/// Seconds of a step that each kind of lane was busy, in the order of [`LaneKind::ALL`]; `None`: at its rates.
pub type Busy = [Option<f64>; LaneKind::ALL.len()];

/// Simulations in which the rates are sought.
const ROUNDS: u32 = 5;
/// Busy seconds are met up to this share.
const NEAR: f64 = 0.005;

impl Machine {
    /// The machine at whose rates the steps of a plan have their lanes busy for so long. A lane that is busy for twice
    /// its seconds need not be half as fast: where lanes are slower they are at work beside each other for longer, and
    /// take more from each other. So a step is simulated, what is still missing is added, and so on.
    #[must_use]
    pub fn fitted(&self, plan: &Plan, w: &Workload, busy: &Busy) -> Self {
        let mut slowdown = AS_RATED;
        let mut machine = self.clone();
        for _ in 0..ROUNDS {
            let lanes = steady_step(plan, w, &machine).lanes;
            let mut far = false;
            for ((by, is), simulated) in slowdown.iter_mut().zip(busy).zip(lanes) {
                let Some(is) = is.filter(|&is| is > 0.0 && simulated.0 > 0.0) else {
                    continue;
                };
                let times = is / simulated.0;
                *by *= times;
                far |= (times - 1.0).abs() > NEAR;
            }
            machine = self.slowed(&slowdown);
            if !far {
                break;
            }
        }
        machine
    }

    /// The machine with the rates at which its lanes take so much longer. What lanes take from each other stays
    /// as it was measured.
    #[must_use]
    pub fn slowed(&self, slowdown: &Slowdown) -> Self {
        let of = |kind: LaneKind| slowdown[kind as usize];
        let slower = |rate: BytesPerSecond, kind| BytesPerSecond(rate.0 / of(kind));
        let gpu = of(LaneKind::Gpu);
        let mut machine = self.clone();
        machine.matmul_bf16 = FlopsPerSecond(self.matmul_bf16.0 / gpu);
        machine.matmul_f32 = FlopsPerSecond(self.matmul_f32.0 / gpu);
        machine.device_memory = slower(self.device_memory, LaneKind::Gpu);
        machine.op_overhead = self.op_overhead * gpu;
        for time in machine.ops.values_mut() {
            *time = *time * gpu;
        }
        machine.h2d = slower(self.h2d, LaneKind::H2d);
        machine.d2h = slower(self.d2h, LaneKind::D2h);
        // One time for both links.
        let links = f64::midpoint(of(LaneKind::H2d), of(LaneKind::D2h));
        machine.copy_overhead = self.copy_overhead * links;
        let host = of(LaneKind::Host);
        machine.host_overhead = self.host_overhead * host;
        for rate in machine.updates.iter_mut() {
            rate.host /= host;
            rate.device /= gpu;
        }
        if let Some(disk) = &mut machine.disk {
            for rate in [&mut disk.read, &mut disk.write, &mut disk.mixed] {
                *rate = slower(*rate, LaneKind::Disk);
            }
            disk.latency = disk.latency * of(LaneKind::Disk);
            // The same drives, and the same lane.
            if let Some(direct) = &mut disk.direct {
                for rate in [&mut direct.read, &mut direct.write, &mut direct.mixed] {
                    *rate = slower(*rate, LaneKind::Disk);
                }
                direct.latency = direct.latency * of(LaneKind::Disk);
            }
        }
        if let Some(net) = &mut machine.net {
            net.rate = slower(net.rate, LaneKind::Net);
            net.latency = net.latency * of(LaneKind::Net);
        }
        machine
    }
}

#[cfg(test)]
mod tests {
    use lowtide_units::{Bytes, Seconds};

    use super::*;
    use crate::choice::{Budgets, Choice, Clip, Direct, Processor, Saved};
    use crate::machine::DirectRates;
    use crate::plan::Tier;
    use crate::simulate::predict;
    use crate::testing::{machine, workload};
    use crate::together::Together;

    /// Of plans with work on every lane, each lane takes as much longer as is said and no other does; of transfers
    /// that pass host memory by, too.
    #[test]
    fn a_lane_takes_as_much_longer_as_is_said() {
        let (w, mut m) = (workload(3, 2), machine());
        // Of both links.
        m.copy_overhead = Seconds::ZERO;
        m.disk.as_mut().expect("a drive").direct = Some(DirectRates {
            read: BytesPerSecond(3e9),
            write: BytesPerSecond(2e9),
            mixed: BytesPerSecond(2.5e9),
            latency: Seconds(1e-5),
            most_memory: Bytes(1 << 40),
        });
        let mut c = Choice::resident(&w);
        c.optimizer.fill(Tier::Disk);
        c.update.fill(Processor::Host);
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Host));
        let mut straight = c.clone();
        straight.weights.fill(Tier::Disk);
        straight.saved[1].fill(Saved::Disk);
        straight.direct = Direct::BOTH;
        assert_eq!(m.slowed(&AS_RATED), m);
        for (c, direct) in [(c, false), (straight, true)] {
            let busy = |m: &Machine| {
                let plan = crate::build(&w, &c, Clip::Exact, Budgets::UNLIMITED, m);
                assert_eq!(plan.reaches_device(), direct);
                let lanes = plan.prediction.lanes.into_iter();
                lanes
                    .map(|l| (l.busy_seconds.0, l.bytes))
                    .collect::<Vec<_>>()
            };
            let rated = busy(&m);
            assert!(rated.iter().all(|l| l.0 > 0.0), "{rated:?}");
            for kind in &LaneKind::ALL[..5] {
                let mut slowdown = AS_RATED;
                slowdown[*kind as usize] = 1.5;
                let now = busy(&m.slowed(&slowdown));
                for (k, (now, before)) in now.iter().zip(&rated).enumerate() {
                    let times = now.0 / before.0;
                    let want = slowdown[k];
                    assert!((times - want).abs() < 1e-9, "{kind:?}: lane {k} {times}");
                }
            }
            assert!(rated[1].1 > Bytes::ZERO);
        }
        let slow = m.slowed(&[2.0; 6]);
        assert!(slow.check().is_ok());
        let mixed = slow.disk.and_then(|d| d.direct).expect("as before").mixed;
        assert_eq!(mixed, BytesPerSecond(1.25e9));
    }

    /// From what lanes did, with what they took from each other, follow the rates at which they did it, and the time of
    /// a step. Taking busy seconds for rates, as one round does, is off by as much as lanes disturb each other.
    #[test]
    fn rates_are_those_at_which_lanes_are_busy_for_so_long() {
        use crate::lanes::Lane;
        let (w, mut m) = (workload(6, 2), machine());
        m.copy_overhead = Seconds::ZERO;
        m.together = vec![
            Together::of([(Lane::H2D, 0.6), (Lane::HOST, 0.8)]),
            Together::of([(Lane::D2H, 0.9), (Lane::HOST, 0.7)]),
            Together::of([(Lane::H2D, 0.5), (Lane::D2H, 0.9), (Lane::HOST, 0.6)]),
        ];
        let mut c = Choice::resident(&w);
        for homes in [&mut c.weights, &mut c.optimizer, &mut c.gradients] {
            homes.fill(Tier::Host);
        }
        c.update.fill(Processor::Host);
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Host));
        let plan = crate::build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &m);
        let lanes = |m: &Machine| steady_step(&plan, &w, m).lanes.map(|s| s.0);
        for times in [0.5, 2.0, 4.0] {
            let now = m.slowed(&[1.0, times, times, 1.0, 2.0, 1.0]);
            let busy = lanes(&now);
            let off = |lane: usize| [1, 2, 4].contains(&lane).then_some(busy[lane]);
            let fitted = m.fitted(&plan, &w, &std::array::from_fn(off));
            let of = |rates: &Machine| predict(&plan, &w, rates).step_seconds.0;
            let near = |got: f64, want: f64| {
                assert!((got / want - 1.0).abs() < 0.01, "{times}: {got}, {want}");
            };
            near(of(&fitted), of(&now));
            near(fitted.h2d.0, now.h2d.0);
            near(fitted.d2h.0, now.d2h.0);
            let host = |m: &Machine| m.updates.nearest(w.optimizer).host;
            near(host(&fitted), host(&now));
            assert_eq!(fitted.matmul_bf16, m.matmul_bf16);
        }
    }
}
