//! When copies begin and how long slots live: by predicted times.
//!
//! The order of tasks is what a draft decides, and the times behind it are a prediction: the gpu lane runs its
//! operations one after the other and waits for nothing but the updates of the batch before. From there every fetch
//! is placed backward: it ends when its tensor is first used or when its lane must begin with the next, whichever is
//! earlier, so a lane serves the earliest deadline first, and weights, optimizer state and saved tensors stand in one
//! queue. How far ahead of their use copies may run is bounded in bytes ([`Ahead`]), for the device, the host and for
//! updates apart.
//!
//! Times only decide where a task stands. A wrong prediction costs stalls or bytes; edges make sure that no slot is
//! used again too early.
//!
//! One file because times, pools and scenes are one argument about when a copy may begin.

use std::collections::VecDeque;

use super::agenda::{Agenda, Lists, first_use_table};
use super::heights::Heights;
use super::*;
use crate::choice::Ahead;
use crate::program::Window;

/// Predicted start and end of each operation of a program.
pub(super) struct Times {
    pub(super) starts: Vec<f64>,
    pub(super) ends: Vec<f64>,
}

/// An update of the batch before that runs under a program's forward.
#[derive(Clone, Copy, Default)]
pub(super) struct Pending {
    /// The operation that first reads its weights.
    used: usize,
    on_device: bool,
    elements: u64,
    /// Bytes that it reads from and writes to the drives.
    read: u64,
    pub(super) write: u64,
    /// Bytes that come to the device for it, and that go back.
    up: u64,
    pub(super) back: u64,
    /// Bytes of a gradient that waits on the device for an update on the host.
    down: u64,
    /// Bytes of new weights that the device fetches or gets a copy of.
    fetch: u64,
    /// The copy stays on the device: it is made behind the update.
    copied: bool,
    /// Predicted start and end.
    start: f64,
    pub(super) end: f64,
}

/// What a program's operations stand behind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Event {
    /// Reads from the drives what the update at a position needs.
    Stage(usize),
    /// Fetches what an update on the device needs.
    Lift(usize),
    /// The update at a position.
    Update(usize),
    /// Reads a window's tensor from the drives.
    Read(usize),
    /// Fetches a window's tensor.
    Fetch(usize),
    #[default]
    None,
}

/// A copy to be placed.
pub(super) struct Job {
    pub(super) event: Event,
    seconds: f64,
    pub(super) bytes: u64,
    /// When it must have ended, and when what it moves is there.
    pub(super) deadline: f64,
    pub(super) release: f64,
    /// When it must begin, whether what it moves is there or not.
    pub(super) latest: f64,
    /// First and last operation before which it may stand. Its bytes count as ahead until the last.
    from: usize,
    by: usize,
    /// Where it stands.
    at: usize,
    key: f64,
}

/// Something that stands before an operation: which one, and by class, time and rank among those there.
type Found = (usize, u8, f64, u8, Event);

impl Times {
    /// Operations one after the other.
    pub(super) fn straight(
        program: &Program,
        rates: &Rates,
        pieces: &List<PieceId, Piece>,
    ) -> Self {
        let mut now = 0.0;
        let seconds = program.ops.iter().map(|op| rates.op(op, pieces));
        let (starts, ends) = seconds
            .map(|s| {
                now += s;
                (now - s, now)
            })
            .unzip();
        Self { starts, ends }
    }

    /// The same, each operation that reads a weight first behind its update. Tells when the updates run.
    fn behind(self, pending: &mut [Pending], rates: &Rates, ahead: Ahead) -> Self {
        let mut order: Vec<usize> = (0..pending.len()).collect();
        order.sort_by_key(|&k| (pending[k].used, k));
        let mut order = order.into_iter().peekable();
        let (mut read, mut write, mut host) = (0.0, 0.0, 0.0);
        let (mut up, mut down) = (0.0, 0.0);
        // Bytes of updates that are under way, and when each is done with them.
        let mut pools = [Pool::new(ahead.updates.0), Pool::new(ahead.updates.0)];
        let mut late = 0.0;
        let Self { starts, ends } = self;
        let mut out = Self {
            starts: Vec::with_capacity(starts.len()),
            ends: Vec::with_capacity(starts.len()),
        };
        for (i, (start, end)) in starts.into_iter().zip(ends).enumerate() {
            let mut now: f64 = start + late;
            while let Some(k) = order.next_if(|&k| pending[k].used <= i) {
                let p = &mut pending[k];
                if p.on_device {
                    let room = pools[0].room(p.up);
                    read = f64::max(read, room) + rates.read(p.read, false);
                    up = f64::max(up, room).max(if p.read > 0 { read } else { 0.0 })
                        + rates.up.of(p.up);
                    let seconds = rates.device.of(p.elements);
                    (p.start, p.end) = (now.max(up), now.max(up) + seconds);
                    now = p.end;
                    down = f64::max(down, now) + rates.down.of(p.back);
                    pools[0].take(p.up, down);
                } else {
                    let there = if p.read > 0 {
                        read = f64::max(read, pools[1].room(p.read)) + rates.read(p.read, false);
                        read
                    } else {
                        0.0
                    };
                    down += rates.down.of(p.down);
                    let there = if p.down > 0 { there.max(down) } else { there };
                    p.start = f64::max(host, there);
                    host = p.start + rates.host.of(p.elements);
                    p.end = host;
                    if p.write > 0 {
                        write = f64::max(write, host) + rates.write(p.write, false);
                    }
                    pools[1].take(p.read, if p.write > 0 { write } else { host });
                    now = now.max(host + rates.up.of(p.fetch) + rates.gather(p.fetch));
                }
            }
            late = now - start;
            out.starts.push(now);
            out.ends.push(end + late);
        }
        out
    }

    /// The last operation that begins no later.
    fn op_at(&self, time: f64) -> usize {
        let after = self.starts.partition_point(|&s| s <= time);
        after.saturating_sub(1)
    }
}

/// Bytes that are each taken until some time, at most `most` at once; a copy that is larger goes alone.
struct Pool {
    most: u64,
    taken: VecDeque<(u64, f64)>,
    sum: u64,
    freed: f64,
}

impl Pool {
    fn new(most: u64) -> Self {
        Self {
            most,
            taken: VecDeque::new(),
            sum: 0,
            freed: 0.0,
        }
    }

    /// From when on there is room for `bytes` more.
    fn room(&mut self, bytes: u64) -> f64 {
        while self.sum > 0 && self.sum + bytes > self.most {
            let Some((n, until)) = self.taken.pop_front() else {
                break;
            };
            self.sum -= n;
            self.freed = self.freed.max(until);
        }
        self.freed
    }

    fn take(&mut self, bytes: u64, until: f64) {
        self.taken.push_back((bytes, until));
        self.sum += bytes;
    }
}

/// Places each job as late as its lane allows, the earliest deadline first.
fn latest(jobs: &mut [Job], times: &Times) {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by(|&a, &b| {
        let by = |j: &Job| (j.deadline, j.by);
        let ((x, n), (y, m)) = (by(&jobs[a]), by(&jobs[b]));
        y.total_cmp(&x).then(m.cmp(&n)).then(b.cmp(&a))
    });
    let mut free = f64::INFINITY;
    for i in order {
        let job = &mut jobs[i];
        free = free.min(job.deadline) - job.seconds;
        job.latest = free;
        job.key = free.max(job.release);
        job.at = times.op_at(job.key).max(job.from).min(job.by);
    }
}

/// Moves jobs later until no more than `most` bytes are ahead of their use at once. With `alone`, a job that is
/// larger may be ahead by itself.
fn bound(jobs: &mut [&mut Job], most: u64, alone: bool, times: &Times) {
    jobs.sort_by(|a, b| a.at.cmp(&b.at).then(a.key.total_cmp(&b.key)));
    // Bytes that stand ahead, by the operation until which they do.
    let mut ahead: BTreeMap<usize, u64> = BTreeMap::new();
    let mut taken = 0;
    for job in jobs {
        while let Some(first) = ahead.first_entry().filter(|e| *e.key() <= job.at) {
            taken -= first.remove();
        }
        let fits = |taken: u64| taken + job.bytes <= most || (alone && taken == 0);
        if !fits(taken) {
            // From the back, since no more than `most` bytes are passed: a batch may have very many behind.
            let mut left = 0;
            let freed = ahead.iter().rev().map_while(|(&until, &bytes)| {
                let behind = left;
                left += bytes;
                fits(behind).then_some(until)
            });
            let until = freed.filter(|&until| until < job.by).last();
            job.at = until.unwrap_or(job.by);
            job.key = job.key.max(times.starts[job.at]);
        }
        if job.at < job.by {
            *ahead.entry(job.by).or_default() += job.bytes;
            taken += job.bytes;
        }
    }
}

/// Places each job as far ahead of its use as it wants to be, as long as no more than `most` bytes are taken; the
/// earliest deadline comes first.
fn fill(jobs: &mut [&mut Job], taken: &mut [u64], most: u64, times: &Times) {
    if jobs.is_empty() {
        return;
    }
    jobs.sort_by(|a, b| a.by.cmp(&b.by).then(a.key.total_cmp(&b.key)));
    let mut heights = Heights::new(taken);
    for job in jobs {
        let full = match most.checked_sub(job.bytes) {
            Some(room) => heights.last_above(job.at..job.by, room),
            None => job.by.checked_sub(1),
        };
        if let Some(full) = full.filter(|&full| full >= job.at) {
            job.at = full + 1;
            job.key = job.key.max(times.starts[job.at]);
        }
        heights.add(job.at..job.by, job.bytes);
    }
    heights.write(taken);
}

/// What copies are placed by.
#[derive(Clone, Copy)]
struct Asked<'a> {
    scene: &'a Scene<'a>,
    times: &'a Times,
    pending: &'a [Pending],
    /// Of pieces whose update runs in this part: where among the updates.
    position: &'a FastMap<PieceId, usize>,
}

/// What an agenda is made from.
pub(super) struct Scene<'s> {
    pub(super) program: &'s Program,
    pub(super) windows: &'s [Window],
    pub(super) tiers: &'s FastMap<Tensor, Tier>,
    /// Pieces in the order of their updates.
    pub(super) order: &'s [PieceId],
    /// Where updates follow their gradients: the operation behind each, in that order.
    pub(super) ready: &'s [(usize, PieceId)],
}

impl Scene<'_> {
    /// Windows that a copy must have filled when they begin, each with the last operations of the window before
    /// it and of the last one before it that wrote.
    fn fetched(&self) -> impl Iterator<Item = (usize, &Window, [Option<usize>; 2])> {
        let mut before: FastMap<Tensor, [Option<usize>; 2]> = FastMap::default();
        let windows = self.windows.iter().enumerate();
        windows.filter_map(move |(wi, window)| {
            let known = before.entry(window.tensor).or_default();
            let last = *known;
            known[0] = Some(window.last);
            if window.writes {
                known[1] = Some(window.last);
            }
            let elsewhere = self.tiers[&window.tensor] != Tier::Device && !window.fresh;
            elsewhere.then_some((wi, window, last))
        })
    }
}

impl Emitter<'_> {
    /// What stands before each operation, when the operations run, and which tensors whose home is a drive wait
    /// on the host in its place.
    pub(super) fn agenda(
        &self,
        scene: &Scene<'_>,
        updates: Updates,
        times: Times,
    ) -> (Agenda, Times, Vec<Tensor>) {
        let n = scene.program.ops.len();
        let under_forward = updates == Updates::UnderForward;
        let mut pending = match under_forward {
            true => self.pending(scene),
            false => Vec::new(),
        };
        let times = times.behind(&mut pending, self.rates, self.choice.ahead);
        let position: FastMap<PieceId, usize> = match under_forward {
            true => (0..).zip(scene.order).map(|(k, &p)| (p, k)).collect(),
            false => FastMap::default(),
        };
        let (found, forwarded) = self.events(scene, &times, &pending, &position);
        let events: Vec<(usize, Event)> = found.into_iter().map(|e| (e.0, e.4)).collect();
        let (mut begins, mut ends) = (Vec::new(), Vec::with_capacity(scene.windows.len()));
        for (wi, window) in scene.windows.iter().enumerate() {
            ends.push((window.last, wi));
            if scene.tiers[&window.tensor] == Tier::Device || window.fresh {
                begins.push((window.first, wi));
            }
        }
        let agenda = Agenda {
            events: Lists::new(n, &events),
            begin: Lists::new(n, &begins),
            end: Lists::new(n, &ends),
        };
        (agenda, times, forwarded)
    }

    /// Everything that stands before each operation, in order: reads from the drives first, then by the time at which
    /// it is to begin. Also returns the tensors that are taken from the host in place of the drives.
    fn events(
        &self,
        scene: &Scene<'_>,
        times: &Times,
        pending: &[Pending],
        position: &FastMap<PieceId, usize>,
    ) -> (Vec<Found>, Vec<Tensor>) {
        let mut found: Vec<Found> = Vec::new();
        let asked = Asked {
            scene,
            times,
            pending,
            position,
        };
        let (mut ups, mut taken) = self.ups(&asked, &[]);
        let (mut reads, mut forwarded) = self.reads(&asked, &ups, &mut taken, None);
        // What waits on the host in place of the drives comes from there, also where the drives reach the device.
        if forwarded.iter().any(|&t| self.direct(t).read) {
            (ups, taken) = self.ups(&asked, &forwarded);
            (reads, forwarded) = self.reads(&asked, &ups, &mut taken, Some(forwarded));
        }
        let mut fetched: Vec<Option<(usize, f64)>> = vec![None; pending.len()];
        for job in ups.iter().chain(&reads) {
            let (class, rank) = match job.event {
                Event::Stage(_) | Event::Read(_) => (0, 0),
                Event::Lift(_) => (1, 0),
                _ => (1, 2),
            };
            if let Event::Fetch(wi) = job.event
                && let Some(&k) = self.first_of(&scene.windows[wi], position)
            {
                fetched[k] = Some((job.at, job.key));
            }
            found.push((job.at, class, job.key, rank, job.event));
        }
        for (k, p) in pending.iter().enumerate() {
            let (at, key) = match (p.on_device, fetched[k]) {
                (true, _) => (p.used, p.start),
                (false, Some((at, key))) => (at.min(times.op_at(p.start)), key.min(p.start)),
                (false, None) => {
                    let when = if p.copied { p.end } else { p.start };
                    (times.op_at(when).min(p.used), when)
                }
            };
            found.push((at, 1, key, 1, Event::Update(k)));
        }
        // New weights that an update on the device leaves there are taken where they are read.
        for (wi, window, _) in scene.fetched() {
            if let Some(&k) = self.first_of(window, position)
                && pending[k].on_device
            {
                found.push((window.first, 2, 0.0, 0, Event::Fetch(wi)));
            }
        }
        found.sort_by(|a, b| {
            (a.0, a.1)
                .cmp(&(b.0, b.1))
                .then(a.2.total_cmp(&b.2))
                .then(a.3.cmp(&b.3))
        });
        (found, forwarded)
    }

    /// The update that a window's weights come from, if it is one of this part's.
    fn first_of<'p>(
        &self,
        window: &Window,
        position: &'p FastMap<PieceId, usize>,
    ) -> Option<&'p usize> {
        match window.tensor {
            Tensor::Weight(p) if !window.continued => position.get(&p),
            _ => None,
        }
    }

    /// The updates of the batch before, in their order.
    fn pending(&self, scene: &Scene<'_>) -> Vec<Pending> {
        let used = first_use_table(scene.windows);
        let of = |&p: &PieceId| {
            let tier = |slot: SlotId| self.slots[slot].tier;
            let (weight, state) = (tier(self.updated_from(p)), tier(self.state_home(p)));
            let waits = self.waiting(p).map_or(Tier::Device, tier);
            let (wb, sb, gb) = (
                self.master_bytes(p),
                self.state_bytes(p),
                self.gradient_bytes(p),
            );
            let all = [(weight, wb), (state, sb), (waits, gb)];
            let sum = |which: &dyn Fn(Tier) -> bool, of: &[(Tier, u64)]| {
                let of = of.iter().filter(|(tier, _)| which(*tier));
                of.map(|(_, bytes)| bytes).sum::<u64>()
            };
            let disk = |tier| tier == Tier::Disk;
            let moved = |tier| tier != Tier::Device;
            let on_device = self.updated_on_device(p);
            let copied = self.homes.resident[p].is_some();
            let fetched = copied || self.weight_tier(p) != Tier::Device;
            let written = match self.choice.durable {
                true => wb + sb,
                false => sum(&disk, &all[..2]),
            };
            Pending {
                used: used.get(&p).copied().unwrap_or(0),
                on_device,
                elements: self.own(p),
                read: sum(&disk, &all),
                write: written,
                up: if on_device { sum(&moved, &all) } else { 0 },
                back: if on_device { sum(&moved, &all[..2]) } else { 0 },
                down: if !on_device && waits == Tier::Device {
                    gb
                } else {
                    0
                },
                fetch: if fetched && !on_device { wb } else { 0 },
                copied,
                ..Pending::default()
            }
        };
        scene.order.iter().map(of).collect()
    }

    /// Whether a window's tensor comes straight from a drive. What an update of this part has made is on the host, and
    /// so is what waits there in place of the drives.
    fn straight(&self, asked: &Asked<'_>, window: &Window, on_host: &[Tensor]) -> bool {
        self.direct(window.tensor).read
            && asked.scene.tiers[&window.tensor] == Tier::Disk
            && self.first_of(window, asked.position).is_none()
            && !on_host.contains(&window.tensor)
    }

    /// Copies of the lane to the device: tensors of windows, and what updates on the device need. Also the bytes of the
    /// device that are then taken during each operation. `on_host` wait there in place of the drives.
    fn ups(&self, asked: &Asked<'_>, on_host: &[Tensor]) -> (Vec<Job>, Vec<u64>) {
        let Asked {
            scene,
            times,
            pending,
            position,
        } = *asked;
        let rates = self.rates;
        let mut jobs = Vec::new();
        for (wi, window, [last, written]) in scene.fetched() {
            let update = self.first_of(window, position).map(|&k| &pending[k]);
            if update.is_some_and(|u| u.on_device) || self.straight(asked, window, on_host) {
                continue;
            }
            let bytes = self.tensor_bytes(window.tensor);
            // What was sent away must have arrived before it is fetched again.
            let gone = written.map_or(0.0, |l| times.ends[l] + rates.down.of(bytes));
            let seconds = match window.tensor {
                Tensor::Weight(p) if self.shared(p) => {
                    let own = self.master_bytes(p);
                    rates.up.of(own) + rates.gather(own)
                }
                _ => rates.up.of(bytes),
            };
            jobs.push(Job {
                event: Event::Fetch(wi),
                seconds,
                bytes,
                deadline: times.starts[window.first],
                release: update.map_or(gone, |u| u.end),
                from: last.map_or(0, |l| l + 1),
                by: window.first,
                at: 0,
                key: 0.0,
                latest: 0.0,
            });
        }
        for (k, p) in pending.iter().enumerate().filter(|(_, p)| p.up > 0) {
            jobs.push(Job {
                event: Event::Lift(k),
                seconds: rates.up.of(p.up),
                bytes: p.up,
                deadline: p.start,
                release: 0.0,
                from: 0,
                by: p.used,
                at: 0,
                key: 0.0,
                latest: 0.0,
            });
        }
        latest(&mut jobs, times);
        let (mut lifts, mut windows): (Vec<&mut Job>, Vec<&mut Job>) = jobs
            .iter_mut()
            .partition(|job| matches!(job.event, Event::Lift(_)));
        bound(&mut lifts, self.choice.ahead.updates.0, true, times);
        let mut taken = self.taken(scene, &lifts);
        let most = self.choice.ahead.device.0;
        fill(
            &mut windows,
            &mut taken,
            most.saturating_sub(self.stays()),
            times,
        );
        (jobs, taken)
    }

    /// Bytes of the device that hold something across parts.
    pub(super) fn stays(&self) -> u64 {
        let stays = self
            .slots
            .iter()
            .filter(|s| s.persistent && s.tier == Tier::Device);
        stays.map(|s| s.bytes).sum()
    }

    /// Bytes of the device that are taken during each operation if every window is fetched just in time.
    fn taken(&self, scene: &Scene<'_>, lifts: &[&mut Job]) -> Vec<u64> {
        let n = scene.program.ops.len();
        let (mut more, mut less) = (vec![0; n + 1], vec![0; n + 1]);
        let mut add = |first: usize, last: usize, bytes: u64| {
            more[first] += bytes;
            less[last + 1] += bytes;
        };
        for window in scene.windows.iter().filter(|w| !self.fixed(w.tensor)) {
            add(window.first, window.last, self.tensor_bytes(window.tensor));
        }
        for (i, op) in scene.program.ops.iter().enumerate() {
            add(i, i, op.workspace);
        }
        for job in lifts {
            add(job.at, job.by, job.bytes);
        }
        let mut now = 0;
        let steps = more.into_iter().zip(less).take(n);
        steps
            .map(|(more, less)| {
                now = now + more - less;
                now
            })
            .collect()
    }

    /// Reads from the drives: for windows, and for updates that follow their gradients. (Updates of the batch before
    /// read as far ahead as they may.) Also returns the tensors that need not be read: see [`Spill::forwarded`], or
    /// those that `on_host` says. Reads into slots of the device are as far ahead as `taken` lets them, and add to it.
    /// Long because the reads of windows and of updates stand in one queue.
    fn reads(
        &self,
        asked: &Asked<'_>,
        ups: &[Job],
        taken: &mut [u64],
        on_host: Option<Vec<Tensor>>,
    ) -> (Vec<Job>, Vec<Tensor>) {
        let Asked {
            scene,
            times,
            pending,
            position,
        } = *asked;
        let waits = on_host.as_deref().unwrap_or_default();
        let rates = self.rates;
        let mut fetch: Vec<Option<&Job>> = vec![None; scene.windows.len()];
        for job in ups {
            if let Event::Fetch(wi) = job.event {
                fetch[wi] = Some(job);
            }
        }
        let spill = self.written(scene, times, pending);
        let mut jobs = Vec::new();
        for (wi, window, [last, written]) in scene.fetched() {
            let of_update = self.first_of(window, position).is_some();
            let on_drives = scene.tiers[&window.tensor] == Tier::Disk;
            if of_update || !on_drives || waits.contains(&window.tensor) {
                continue;
            }
            // Before the window, or before the copy that the read is for.
            let straight = self.straight(asked, window, waits);
            let (deadline, from, by) = match fetch[wi] {
                Some(fetch) => (fetch.key, fetch.from, fetch.at),
                None if straight => {
                    let from = last.map_or(0, |l| l + 1);
                    (times.starts[window.first], from, window.first)
                }
                None => continue,
            };
            let bytes = self.tensor_bytes(window.tensor);
            let gone = written.map_or(0.0, |l| {
                let direct = self.direct(window.tensor).write;
                let alone = times.ends[l] + rates.there(bytes, Tier::Disk, direct);
                spill.end(window.tensor).unwrap_or(alone)
            });
            jobs.push(Job {
                event: Event::Read(wi),
                seconds: rates.read(bytes, straight),
                bytes,
                deadline,
                release: gone,
                from,
                by,
                at: 0,
                key: 0.0,
                latest: 0.0,
            });
        }
        for (k, &(i, p)) in scene.ready.iter().enumerate() {
            let homes = [self.updated_from(p), self.state_home(p)];
            let slots = homes.iter().map(|&h| &self.slots[h]);
            let on_disk = slots.filter(|s| s.tier == Tier::Disk);
            let bytes: u64 = on_disk.map(|s| s.bytes).sum();
            if bytes > 0 {
                jobs.push(Job {
                    event: Event::Stage(k),
                    seconds: rates.read(bytes, false),
                    bytes,
                    deadline: times.ends[i],
                    release: 0.0,
                    from: 0,
                    by: i,
                    at: 0,
                    key: 0.0,
                    latest: 0.0,
                });
            }
        }
        latest(&mut jobs, times);
        let ahead = self.choice.ahead;
        let forwarded = match &on_host {
            Some(on_host) => on_host.clone(),
            None => spill.forwarded(&mut jobs, scene, ahead.host.0),
        };
        let (mut stages, windows): (Vec<&mut Job>, Vec<&mut Job>) = jobs
            .iter_mut()
            .partition(|job| matches!(job.event, Event::Stage(_)));
        let (mut straight, mut windows): (Vec<&mut Job>, Vec<&mut Job>) =
            windows.into_iter().partition(|job| match job.event {
                Event::Read(wi) => self.straight(asked, &scene.windows[wi], waits),
                _ => false,
            });
        let most = ahead.device.0.saturating_sub(self.stays());
        fill(&mut straight, taken, most, times);
        bound(&mut windows, ahead.host.0, ahead.host.0 > 0, times);
        bound(&mut stages, ahead.updates.0, ahead.updates.0 > 0, times);
        (jobs, forwarded)
    }
}
