//! What a machine can do: rates, and what lanes share. Measured, with a date.
//!
//! One file because a machine's file is one table, and what follows from a rate stands beside it.

use std::collections::BTreeMap;

use lowtide_units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};
use lowtide_workload::{Dtype, Op, Optimizer};
use serde::{Deserialize, Serialize};

use crate::lanes::{Lane, LaneKind};
use crate::together::Together;
use crate::updates::Updates;

/// Where the rates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Measured on the machine by `lowtide probe` or by hand there.
    Measured,
    /// Taken from a publication: a plan for it is an estimate.
    Published,
}

/// A value that no machine has.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("'{key}' is {value}, which must be {need}")]
pub struct BadRate {
    /// The key, with those that it is in.
    pub key: String,
    /// What the file has there.
    pub value: f64,
    /// What it must be.
    pub need: &'static str,
}

/// Transfers between drives and the device's memory that pass no host memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectRates {
    /// Rate of reads while nothing is written.
    pub read: BytesPerSecond,
    /// Rate of writes while nothing is read.
    pub write: BytesPerSecond,
    /// Reads and writes at once, as many bytes of each: the sum of both rates.
    pub mixed: BytesPerSecond,
    /// Time of the smallest transfer.
    pub latency: Seconds,
    /// The most memory of devices that a process may have registered for them: all of a run's share of the device is.
    /// 0 where a machine file does not say: then no plan has direct transfers.
    #[serde(default)]
    pub most_memory: Bytes,
}

impl DirectRates {
    /// As each of so many ranks has them.
    fn share(self, ranks: u32) -> Self {
        let part = |rate: BytesPerSecond| BytesPerSecond(rate.0 / f64::from(ranks));
        Self {
            read: part(self.read),
            write: part(self.write),
            mixed: part(self.mixed),
            latency: self.latency,
            most_memory: Bytes(self.most_memory.0 / u64::from(ranks)),
        }
    }

    /// The means of two measurements.
    fn mean(self, other: Self) -> Self {
        let rate = |a: BytesPerSecond, b: BytesPerSecond| BytesPerSecond((a.0 + b.0) / 2.0);
        Self {
            read: rate(self.read, other.read),
            write: rate(self.write, other.write),
            mixed: rate(self.mixed, other.mixed),
            latency: Seconds((self.latency.0 + other.latency.0) / 2.0),
            most_memory: self.most_memory.min(other.most_memory),
        }
    }
}

/// One drive, or several that are striped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRates {
    /// Rate of reads while nothing is written.
    pub read: BytesPerSecond,
    /// Rate of writes while nothing is read.
    pub write: BytesPerSecond,
    /// Reads and writes at once, as many bytes of each: the sum of both rates.
    pub mixed: BytesPerSecond,
    /// Time of the smallest transfer.
    pub latency: Seconds,
    /// Bytes that the drives together are rated for over their life, as their maker says; never measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rated_writes: Option<Bytes>,
    /// The same drives and the device's memory, where they were found to reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<DirectRates>,
}

impl DiskRates {
    /// Rescales the drive's speeds in `sets` so that simultaneous reads and writes add up to its mixed rate. A set is
    /// a short sample, which may show the drive's cache or another tenant; `mixed` is measured for seconds without a
    /// pause, as a step's I/O runs. What other lanes cost the drive stays as measured.
    pub fn settle(&self, sets: &mut [Together]) {
        let both = |t: &Together| Some((t.get(Lane::DISK_READ)?, t.get(Lane::DISK_WRITE)?));
        let pair = sets.iter().filter(|t| t.speed.len() == 2).find_map(both);
        let Some((read, write)) = pair else { return };
        let factor = self.mixed.0 / (self.read.0 * read + self.write.0 * write);
        for t in sets.iter_mut().filter(|t| both(t).is_some()) {
            for lane in [Lane::DISK_READ, Lane::DISK_WRITE] {
                let speed = t.speed.get_mut(lane.name()).expect("one of the set");
                *speed = (*speed * factor).min(1.0);
            }
        }
    }

    /// The means of two measurements.
    #[must_use]
    pub fn mean(&self, other: &Self) -> Self {
        let rate = |a: BytesPerSecond, b: BytesPerSecond| BytesPerSecond((a.0 + b.0) / 2.0);
        Self {
            read: rate(self.read, other.read),
            write: rate(self.write, other.write),
            mixed: rate(self.mixed, other.mixed),
            latency: Seconds((self.latency.0 + other.latency.0) / 2.0),
            rated_writes: self.rated_writes.or(other.rated_writes),
            direct: self.direct.zip(other.direct).map(|(a, b)| a.mean(b)),
        }
    }
}

/// What ranks exchange with each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetRates {
    /// How many ranks it was measured with.
    pub ranks: u32,
    /// What each rank gets from all others together.
    pub rate: BytesPerSecond,
    /// Time of the smallest collective.
    pub latency: Seconds,
    /// Over how many hosts they were spread.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub hosts: u32,
}

/// What each rank of a host gets while all ranks there do the same: their links end in one memory, and some of them in
/// one switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankLinks {
    /// How many ranks of a host it was measured with.
    pub ranks: u32,
    /// Host to device, while all ranks copy there.
    pub h2d: BytesPerSecond,
    /// Device to host, while all ranks copy there.
    pub d2h: BytesPerSecond,
    /// Sets of copies and updates on the host, while all ranks do the same.
    pub together: Vec<Together>,
}

fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_one(n: &u32) -> bool {
    *n == 1
}

/// What connects hosts that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRates {
    /// What each host gets from all others together, and sends them at the same time.
    pub rate: BytesPerSecond,
    /// Time of the smallest collective between hosts.
    pub latency: Seconds,
}

/// Something that several lanes draw on at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// Name for people: `cores`, `host memory`.
    pub name: String,
    /// Share of it that each lane takes at full speed, by lane name (`gpu`, `h2d`, `d2h`, `disk`, `host`). Lanes
    /// whose shares add up to more than 1 slow each other down evenly.
    pub share: BTreeMap<String, f64>,
}

/// A machine's rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name for people.
    pub name: String,
    /// Day of measurement, `2026-11-21`.
    pub date: String,
    /// Measured or published.
    pub source: Source,
    /// Free text: how and by whom.
    #[serde(default)]
    pub note: String,
    /// Matrix products and attention of the device, by storage type.
    pub matmul_bf16: FlopsPerSecond,
    /// As above in f32.
    pub matmul_f32: FlopsPerSecond,
    /// Device memory, read and written.
    pub device_memory: BytesPerSecond,
    /// Time to start an operation on the device.
    pub op_overhead: Seconds,
    /// Host to device.
    pub h2d: BytesPerSecond,
    /// Device to host.
    pub d2h: BytesPerSecond,
    /// Time of the smallest copy.
    pub copy_overhead: Seconds,
    /// What ranks exchange, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetRates>,
    /// What copies of all ranks at once take from each other, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<RankLinks>,
    /// What connects it with hosts like it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRates>,
    /// Optimizers that were measured. Others are estimated: [`Machine::update`]. What reads them gets every key that no
    /// other field has, and refuses those that it does not know.
    #[serde(flatten)]
    pub updates: Updates,
    /// Time to start a task on the host.
    pub host_overhead: Seconds,
    /// The drives together; none where there is no disk budget.
    pub disk: Option<DiskRates>,
    /// What lanes share, for sets of lanes that were not measured together.
    #[serde(default)]
    pub shared: Vec<Shared>,
    /// Sets of lanes that were measured while they ran at once.
    #[serde(default)]
    pub together: Vec<Together>,
    /// Bytes of the device that are held beside the plan's arena: context, kernels, libraries.
    #[serde(default)]
    pub device_reserve: Bytes,
    /// Bytes of host memory that the process holds beside the plan's arenas: code, libraries, data.
    #[serde(default)]
    pub host_reserve: Bytes,
    /// Whether the device is an NVIDIA GPU: scratch of operations differs.
    #[serde(default)]
    pub cuda: bool,
    /// Times measured at a run's own shapes, by [`Op::key`].
    #[serde(default)]
    pub ops: BTreeMap<String, Seconds>,
}

/// Bounds of rates, and of seconds: what lies outside them is a slip of whoever wrote the file, and sums and
/// quotients of what lies inside are finite.
const RATE: (f64, f64) = (1.0, 1e24);
const SECONDS: (f64, f64) = (0.0, 1e6);
const RESERVE_MAX: u64 = 1 << 50;

impl Machine {
    /// Whether a plan can be made for it: with a rate of 0 or below nothing ever ends.
    ///
    /// # Errors
    /// The first value that cannot be.
    pub fn check(&self) -> Result<(), BadRate> {
        let within = |key: String, value: f64, (least, most): (f64, f64), need| match (least..=most)
            .contains(&value)
        {
            true => Ok(()),
            false => Err(BadRate { key, value, need }),
        };
        let rate = |key: &str, value| within(key.to_owned(), value, RATE, "from 1 to 1e24");
        let seconds = |key: &str, value: Seconds| {
            within(key.to_owned(), value.0, SECONDS, "from 0 to 1e6 seconds")
        };
        rate("matmul_bf16", self.matmul_bf16.0)?;
        rate("matmul_f32", self.matmul_f32.0)?;
        rate("device_memory", self.device_memory.0)?;
        rate("h2d", self.h2d.0)?;
        rate("d2h", self.d2h.0)?;
        for update in self.updates.iter() {
            rate(&update.key("host"), update.host)?;
            rate(&update.key("device"), update.device)?;
        }
        seconds("op_overhead", self.op_overhead)?;
        seconds("copy_overhead", self.copy_overhead)?;
        seconds("host_overhead", self.host_overhead)?;
        if let Some(disk) = &self.disk {
            rate("disk.read", disk.read.0)?;
            rate("disk.write", disk.write.0)?;
            rate("disk.mixed", disk.mixed.0)?;
            seconds("disk.latency", disk.latency)?;
            if let Some(direct) = &disk.direct {
                rate("disk.direct.read", direct.read.0)?;
                rate("disk.direct.write", direct.write.0)?;
                rate("disk.direct.mixed", direct.mixed.0)?;
                seconds("disk.direct.latency", direct.latency)?;
                let (most, range) = (direct.most_memory.0 as f64, (0.0, RESERVE_MAX as f64));
                let key = "disk.direct.most_memory".to_owned();
                within(key, most, range, "at most 1 PiB")?;
            }
        }
        if let Some(links) = &self.links {
            rate("links.h2d", links.h2d.0)?;
            rate("links.d2h", links.d2h.0)?;
        }
        if let Some(net) = &self.net {
            rate("net.rate", net.rate.0)?;
            seconds("net.latency", net.latency)?;
            let hosts = "from 1 to the number of ranks";
            let most = f64::from(net.ranks.max(1));
            within(
                "net.hosts".to_owned(),
                f64::from(net.hosts),
                (1.0, most),
                hosts,
            )?;
        }
        if let Some(network) = &self.network {
            rate("network.rate", network.rate.0)?;
            seconds("network.latency", network.latency)?;
        }
        for (name, time) in &self.ops {
            seconds(&format!("ops.{name}"), *time)?;
        }
        for shared in &self.shared {
            for (lane, &share) in &shared.share {
                let key = format!("shared.{}.share.{lane}", shared.name);
                within(key, share, (0.0, 1e6), "a share from 0 up")?;
            }
        }
        for (key, reserve) in [
            ("device_reserve", self.device_reserve),
            ("host_reserve", self.host_reserve),
        ] {
            let most = (0.0, RESERVE_MAX as f64);
            within(key.to_owned(), reserve.0 as f64, most, "at most 1 PiB")?;
        }
        Ok(())
    }

    /// Time of one operation, alone.
    #[must_use]
    pub fn op(&self, op: &Op, dtype: Dtype) -> Seconds {
        if let Some(&s) = self.ops.get(&op.key) {
            return s;
        }
        let rate = match dtype {
            Dtype::Bf16 => self.matmul_bf16,
            Dtype::F32 => self.matmul_f32,
        };
        let compute = op.flops / rate;
        let memory = op.touched / self.device_memory;
        compute.max(memory) + self.op_overhead
    }

    /// Time of a copy between host and device, alone.
    #[must_use]
    pub fn copy(&self, lane: Lane, bytes: Bytes) -> Seconds {
        let rate = if lane.kind == LaneKind::H2d {
            self.h2d
        } else {
            self.d2h
        };
        bytes / rate + self.copy_overhead
    }

    /// Time of a collective in which a rank gets so many bytes from others, alone.
    #[must_use]
    pub fn exchange(&self, bytes: Bytes) -> Seconds {
        let net = self.net.unwrap_or(SLOWEST_NET);
        bytes / net.rate + net.latency
    }

    /// What so many ranks exchange that are spread evenly over so many hosts like this one: as it was measured, or,
    /// over several hosts, by what ranks of one exchange and what the network carries. Of what a rank gets, the shares
    /// of ranks of other hosts come through its host's line, for all ranks there; the rest meanwhile inside the host.
    /// None where the machine does not say enough.
    #[must_use]
    pub fn net_of(&self, ranks: u32, hosts: u32) -> Option<NetRates> {
        if let Some(net) = self.net.filter(|n| (n.ranks, n.hosts) == (ranks, hosts)) {
            return Some(net);
        }
        let network = self
            .network
            .filter(|_| hosts > 1 && ranks > hosts.max(1) - 1)?;
        let here = ranks / hosts;
        // Seconds a byte of one share.
        let outside = f64::from(here) * f64::from(ranks - here) / network.rate.0;
        let (inside, latency) = match here {
            1 => (0.0, Seconds(0.0)),
            _ => {
                let net = self.net.filter(|n| (n.ranks, n.hosts) == (here, 1))?;
                (f64::from(here - 1) / net.rate.0, net.latency)
            }
        };
        Some(NetRates {
            ranks,
            rate: BytesPerSecond(f64::from(ranks - 1) / outside.max(inside)),
            latency: Seconds(network.latency.0.max(latency.0)),
            hosts,
        })
    }

    /// The machine as each of so many ranks has it: they share the host's memory, its cores and the drives. Each GPU
    /// has a link of its own at its full rate, so what its copies take from lanes of the host is taken once per rank,
    /// while lanes whose rate is divided take as much together as one rank's would. Ranks on the CPU device share its
    /// cores for everything. Where it was measured what copies of so many ranks take from each other, that counts; else
    /// measured sets of lanes stay as they are, because nothing more is known about them.
    #[must_use]
    pub fn share(&self, ranks: u32) -> Self {
        let part = |rate: BytesPerSecond| BytesPerSecond(rate.0 / f64::from(ranks));
        let mut machine = self.clone();
        for rate in machine.updates.iter_mut() {
            rate.host /= f64::from(ranks);
        }
        if let Some(disk) = &mut machine.disk {
            disk.read = part(disk.read);
            disk.write = part(disk.write);
            disk.mixed = part(disk.mixed);
            disk.direct = disk.direct.map(|direct| direct.share(ranks));
        }
        if self.cuda {
            let divided = [LaneKind::Host, LaneKind::Disk].map(LaneKind::name);
            // What no lane of the host draws on is a GPU's own, as its link is.
            let of_host =
                |shared: &Shared| divided.iter().any(|lane| shared.share.contains_key(*lane));
            for shared in machine.shared.iter_mut().filter(|shared| of_host(shared)) {
                for (lane, share) in &mut shared.share {
                    if !divided.contains(&lane.as_str()) {
                        *share *= f64::from(ranks);
                    }
                }
            }
            if let Some(links) = self.links.as_ref().filter(|links| links.ranks == ranks) {
                machine.take(links);
            }
            return machine;
        }
        let compute = |rate: FlopsPerSecond| FlopsPerSecond(rate.0 / f64::from(ranks));
        machine.matmul_bf16 = compute(self.matmul_bf16);
        machine.matmul_f32 = compute(self.matmul_f32);
        machine.device_memory = part(self.device_memory);
        machine.h2d = part(self.h2d);
        machine.d2h = part(self.d2h);
        for rate in machine.updates.iter_mut() {
            rate.device /= f64::from(ranks);
        }
        for time in machine.ops.values_mut() {
            time.0 *= f64::from(ranks);
        }
        machine
    }

    /// Makes links as fast as they are while all ranks use theirs, and takes the sets that were measured so. Sets with
    /// other lanes keep what was measured of one rank, where that is not more.
    fn take(&mut self, links: &RankLinks) {
        for (rate, all) in [(&mut self.h2d, links.h2d), (&mut self.d2h, links.d2h)] {
            rate.0 = rate.0.min(all.0);
        }
        let lanes = |set: &Together| set.speed.keys().cloned().collect::<Vec<_>>();
        let measured: Vec<_> = links.together.iter().map(lanes).collect();
        self.together.retain(|set| !measured.contains(&lanes(set)));
        // A lane is no faster because one more runs beside it.
        for set in &mut self.together {
            let inside = |part: &&Together| part.speed.keys().all(|l| set.speed.contains_key(l));
            let parts: Vec<_> = links.together.iter().filter(inside).collect();
            for (lane, speed) in parts.into_iter().flat_map(|part| &part.speed) {
                if let Some(own) = set.speed.get_mut(lane) {
                    *own = own.min(*speed);
                }
            }
        }
        self.together.extend_from_slice(&links.together);
    }

    /// Time of a transfer between host memory and the drives, alone.
    #[must_use]
    pub fn disk(&self, lane: Lane, bytes: Bytes) -> Seconds {
        let disk = self.disk.unwrap_or(SLOWEST);
        let rate = if lane == Lane::DISK_READ {
            disk.read
        } else {
            disk.write
        };
        bytes / rate + disk.latency
    }

    /// Time of a transfer between the device's memory and the drives, alone. Of a machine that does not say how fast
    /// these are that of a slow drive.
    #[must_use]
    pub fn direct(&self, lane: Lane, bytes: Bytes) -> Seconds {
        let direct = self.disk.and_then(|d| d.direct).unwrap_or(SLOWEST_DIRECT);
        let rate = if lane == Lane::DISK_READ {
            direct.read
        } else {
            direct.write
        };
        bytes / rate + direct.latency
    }

    /// Measured mixed rate of direct transfers over what fair sharing of the two alone would give.
    pub(crate) fn fair_direct(&self) -> f64 {
        let direct = self.disk.and_then(|d| d.direct).unwrap_or(SLOWEST_DIRECT);
        fair_mix(direct.read, direct.write, direct.mixed)
    }

    /// Whether a share of the device so large may be registered for direct transfers; false where there are none.
    #[must_use]
    pub fn may_register(&self, device: Bytes) -> bool {
        let direct = self.disk.and_then(|d| d.direct);
        direct.is_some_and(|direct| device <= direct.most_memory)
    }

    /// Time of an update, alone: at the optimizer's own rate, or at another's as
    /// [`UpdateRate::times`](crate::UpdateRate::times) says.
    #[must_use]
    pub fn update(&self, lane: Lane, elements: u64, optimizer: Optimizer) -> Seconds {
        let nearest = self.updates.nearest(optimizer);
        if lane.kind == LaneKind::Gpu {
            nearest.time(nearest.device, elements, optimizer) + self.op_overhead
        } else {
            nearest.time(nearest.host, elements, optimizer) + self.host_overhead
        }
    }

    /// How much of the drives' time is left when reads and writes run at once: the sum of both
    /// lanes' speeds where they were measured together, else the measured mixed rate over what fair
    /// sharing would give.
    #[must_use]
    pub fn disk_mix_factor(&self) -> f64 {
        let both = |t: &Together| {
            let pair = (t.get(Lane::DISK_READ)?, t.get(Lane::DISK_WRITE)?);
            (t.speed.len() == 2).then_some(pair.0 + pair.1)
        };
        let measured = self.together.iter().find_map(both);
        measured.map_or_else(|| self.fair_mix_factor(), |sum| sum.clamp(0.25, 2.0))
    }

    /// Measured mixed rate over what fair sharing of the two alone would give.
    pub(crate) fn fair_mix_factor(&self) -> f64 {
        let Some(d) = self.disk else { return 1.0 };
        fair_mix(d.read, d.write, d.mixed)
    }
}

/// A mixed rate over what fair sharing of two rates alone would give.
fn fair_mix(read: BytesPerSecond, write: BytesPerSecond, mixed: BytesPerSecond) -> f64 {
    let fair = 2.0 / (1.0 / read.0 + 1.0 / write.0);
    (mixed.0 / fair).clamp(0.25, 2.0)
}

/// Stands in where a machine has no rates of what ranks exchange: slow.
const SLOWEST_NET: NetRates = NetRates {
    ranks: 0,
    rate: BytesPerSecond(1e9),
    latency: Seconds(1e-3),
    hosts: 1,
};

/// Stands in where a machine has no disk rates but a plan uses the disk: a slow drive, so that no
/// plan looks good by not having been measured.
const SLOWEST: DiskRates = DiskRates {
    read: BytesPerSecond(0.5e9),
    write: BytesPerSecond(0.5e9),
    mixed: BytesPerSecond(0.5e9),
    latency: Seconds(1e-3),
    rated_writes: None,
    direct: None,
};

/// The same of transfers that pass no host memory.
const SLOWEST_DIRECT: DirectRates = DirectRates {
    read: SLOWEST.read,
    write: SLOWEST.write,
    mixed: SLOWEST.mixed,
    latency: SLOWEST.latency,
    most_memory: Bytes::ZERO,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// A simulation with such a value would not end, or end in no number.
    #[test]
    fn values_that_no_machine_has_are_found() {
        let whole = testing::machine();
        whole.check().expect("the tests' machine");
        fn direct(m: &mut Machine) -> &mut DirectRates {
            let disk = m.disk.as_mut().expect("a drive");
            disk.direct.get_or_insert(SLOWEST_DIRECT)
        }
        type Number = (&'static str, fn(&mut Machine) -> &mut f64);
        let numbers: [Number; 18] = [
            ("matmul_bf16", |m| &mut m.matmul_bf16.0),
            ("matmul_f32", |m| &mut m.matmul_f32.0),
            ("device_memory", |m| &mut m.device_memory.0),
            ("op_overhead", |m| &mut m.op_overhead.0),
            ("h2d", |m| &mut m.h2d.0),
            ("d2h", |m| &mut m.d2h.0),
            ("copy_overhead", |m| &mut m.copy_overhead.0),
            ("updates.adamw.host (or host_adamw)", |m| {
                &mut m.updates.iter_mut().next().expect("one").host
            }),
            ("updates.adamw.device (or device_adamw)", |m| {
                &mut m.updates.iter_mut().next().expect("one").device
            }),
            ("host_overhead", |m| &mut m.host_overhead.0),
            ("disk.read", |m| {
                &mut m.disk.as_mut().expect("a drive").read.0
            }),
            ("disk.write", |m| {
                &mut m.disk.as_mut().expect("a drive").write.0
            }),
            ("disk.mixed", |m| {
                &mut m.disk.as_mut().expect("a drive").mixed.0
            }),
            ("disk.latency", |m| {
                &mut m.disk.as_mut().expect("a drive").latency.0
            }),
            ("disk.direct.read", |m| &mut direct(m).read.0),
            ("disk.direct.write", |m| &mut direct(m).write.0),
            ("disk.direct.mixed", |m| &mut direct(m).mixed.0),
            ("disk.direct.latency", |m| &mut direct(m).latency.0),
        ];
        for (key, number) in numbers {
            for value in [-1.0, 1e300, f64::NAN, f64::INFINITY] {
                let mut machine = whole.clone();
                *number(&mut machine) = value;
                let bad = machine.check().expect_err("it is refused");
                assert_eq!(bad.key, key);
            }
        }
        let mut huge = whole.clone();
        huge.host_reserve = Bytes(u64::MAX);
        assert_eq!(huge.check().expect_err("it is refused").key, "host_reserve");
        let mut huge = whole.clone();
        direct(&mut huge).most_memory = Bytes(u64::MAX);
        let bad = huge.check().expect_err("it is refused");
        assert_eq!(bad.key, "disk.direct.most_memory");
        let mut none = whole.clone();
        none.h2d = BytesPerSecond(0.0);
        assert_eq!(
            none.check().expect_err("it is refused").to_string(),
            "'h2d' is 0, which must be from 1 to 1e24"
        );
        none = whole;
        none.ops.insert("x".to_owned(), Seconds(-1.0));
        assert_eq!(none.check().expect_err("it is refused").key, "ops.x");
    }
}
