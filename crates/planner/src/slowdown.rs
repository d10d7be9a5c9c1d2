//! A machine whose lanes take longer than its rates say, or less long.

use lowtide_units::{BytesPerSecond, FlopsPerSecond};

use crate::lanes::LaneKind;
use crate::machine::Machine;

/// Seconds that each kind of lane takes for what its rates say takes one, in the order of [`LaneKind::ALL`].
pub type Slowdown = [f64; LaneKind::ALL.len()];

/// Every lane as its rates say.
pub const AS_RATED: Slowdown = [1.0; LaneKind::ALL.len()];

impl Machine {
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
    use crate::testing::{machine, workload};

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
}
