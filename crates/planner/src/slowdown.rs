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
    use crate::choice::{Budgets, Choice, Clip, Processor, Saved};
    use crate::plan::Tier;
    use crate::testing::{machine, workload};

    /// Of a plan with work on every lane, each lane takes as much longer as is said and no other does.
    #[test]
    fn a_lane_takes_as_much_longer_as_is_said() {
        let (w, mut m) = (workload(3, 2), machine());
        // Of both links.
        m.copy_overhead = Seconds::ZERO;
        let mut c = Choice::resident(&w);
        c.optimizer.fill(Tier::Disk);
        c.update.fill(Processor::Host);
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Host));
        let busy = |m: &Machine| {
            let plan = crate::build(&w, &c, Clip::Exact, Budgets::UNLIMITED, m);
            let lanes = plan.prediction.lanes.into_iter();
            lanes
                .map(|l| (l.busy_seconds.0, l.bytes))
                .collect::<Vec<_>>()
        };
        let rated = busy(&m);
        assert!(rated.iter().all(|l| l.0 > 0.0), "{rated:?}");
        assert_eq!(m.slowed(&AS_RATED), m);
        for kind in &LaneKind::ALL[..5] {
            let mut slowdown = AS_RATED;
            slowdown[*kind as usize] = 1.5;
            for (k, (now, before)) in busy(&m.slowed(&slowdown)).iter().zip(&rated).enumerate() {
                let times = now.0 / before.0;
                let want = slowdown[k];
                assert!((times - want).abs() < 1e-9, "{kind:?}: lane {k} {times}");
            }
        }
        assert!(m.slowed(&[2.0; 6]).check().is_ok());
        assert!(rated[1].1 > Bytes::ZERO);
    }
}
