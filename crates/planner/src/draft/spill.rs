//! Saved tensors whose home is a drive: when they are there, and which never need to be.
//!
//! On its way to a drive a tensor passes through a host slot. Where the drive is behind, because many were
//! written just before or because the tensor is fetched again soon, it would have to be read before it is
//! written. Then it waits in that slot instead and is fetched from there: it is neither written nor read. That is
//! decided here, with predicted times and within the bytes that [`crate::choice::Ahead`] gives to what is on its
//! way to or from the drives; nothing is cancelled while a plan runs.

use std::collections::BTreeSet;

use super::timetable::{Event, Job, Pending, Scene, Times};
use super::*;

/// What the lane of a drive's writes is predicted to do.
pub(super) struct Spill {
    /// When each tensor that lives inside the part is written.
    ends: FastMap<Tensor, f64>,
}

/// Something that is sent down: from when on, bytes through the link, bytes to a drive, whether these pass no host
/// memory, and which tensor that may wait on the host instead.
struct Sent {
    from: f64,
    down: u64,
    write: u64,
    direct: bool,
    tensor: Option<Tensor>,
}

impl Spill {
    /// When a tensor is predicted to be on the drive, queues included.
    pub(super) fn end(&self, t: Tensor) -> Option<f64> {
        self.ends.get(&t).copied()
    }

    /// Removes the reads that would have to begin before the tensor's write has ended. These tensors wait on the
    /// host, next use first, as long as they take at most `most` bytes there.
    pub(super) fn forwarded(
        &self,
        jobs: &mut Vec<Job>,
        scene: &Scene<'_>,
        most: u64,
    ) -> Vec<Tensor> {
        let read = |job: &Job| match job.event {
            Event::Read(wi) => Some(scene.windows[wi].tensor),
            _ => None,
        };
        let mut late: Vec<(f64, Tensor, u64)> = jobs
            .iter()
            .filter(|job| job.latest < job.release)
            .filter_map(|job| Some((job.deadline, read(job)?, job.bytes)))
            .filter(|(_, t, _)| self.ends.contains_key(t))
            .collect();
        late.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut taken = 0;
        let mut stays: BTreeSet<Tensor> = BTreeSet::new();
        for (_, t, bytes) in late {
            if !stays.contains(&t) && taken + bytes <= most {
                taken += bytes;
                stays.insert(t);
            }
        }
        jobs.retain(|job| read(job).is_none_or(|t| !stays.contains(&t)));
        stays.into_iter().collect()
    }
}

impl Emitter<'_> {
    /// Predicts when what goes to the drives is there: the link down and the drives serve in the order in which
    /// tensors are ready, updates included.
    pub(super) fn written(&self, scene: &Scene<'_>, times: &Times, pending: &[Pending]) -> Spill {
        let mut spill = Spill {
            ends: FastMap::default(),
        };
        let passing = |t: Tensor| {
            let local = matches!(t, Tensor::Local(..)) && self.outer_home(t).is_none();
            local && scene.tiers[&t] == Tier::Disk
        };
        if !scene.windows.iter().any(|w| passing(w.tensor)) {
            return spill;
        }
        let mut sent: Vec<Sent> = Vec::new();
        for w in scene.windows {
            let (t, tier) = (w.tensor, scene.tiers[&w.tensor]);
            if matches!(t, Tensor::Weight(_)) || tier == Tier::Device || !(w.continues && w.writes)
            {
                continue;
            }
            let bytes = self.tensor_bytes(t);
            let direct = tier == Tier::Disk && self.direct(t).write;
            sent.push(Sent {
                from: times.ends[w.last],
                down: if direct { 0 } else { bytes },
                write: if tier == Tier::Disk { bytes } else { 0 },
                direct,
                tensor: passing(t).then_some(t),
            });
        }
        sent.extend(pending.iter().map(|p| Sent {
            from: p.end,
            down: p.back,
            write: p.write,
            direct: false,
            tensor: None,
        }));
        sent.extend(scene.ready.iter().map(|&(i, p)| {
            let homes = [Some(self.homes.weight[p]), self.homes.state[p]];
            let slots = homes.into_iter().flatten().map(|h| &self.slots[h]);
            let on_disk = slots.filter(|s| s.tier == Tier::Disk);
            Sent {
                from: times.ends[i] + self.rates.host.of(self.own(p)),
                down: 0,
                write: on_disk.map(|s| s.bytes).sum(),
                direct: false,
                tensor: None,
            }
        }));
        sent.sort_by(|a, b| a.from.total_cmp(&b.from));
        let (mut down, mut write): (f64, f64) = (0.0, 0.0);
        for s in sent {
            let there = match s.direct {
                true => s.from,
                false => {
                    down = down.max(s.from) + self.rates.down.of(s.down);
                    down
                }
            };
            if s.write == 0 {
                continue;
            }
            write = write.max(there) + self.rates.write(s.write, s.direct);
            if let Some(t) = s.tensor {
                spill.ends.insert(t, write);
            }
        }
        spill
    }
}
