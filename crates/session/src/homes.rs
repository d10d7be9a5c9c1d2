//! Weights and optimizer state where they live: read and written by parameter, whatever the
//! placement and the number of ranks. Only while no task runs, but for what is held (`hold.rs`).
//!
//! One file because all that fill, read and compare homes go through the same chunks of the same arrays.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_device::{Lent, memory};
use lowtide_executor::{Held, Idle};
use lowtide_kernels::update::split;
use lowtide_planner::{PieceId, Plan, Slot, SlotId, Tensor, Tier};
use lowtide_tiers::{ALIGN, Block, Extent, Fill, Kind, TierError};
use lowtide_units::{Bytes, ids};
use lowtide_workload::{Dtype, Init, ParamId, Role, StateArray, StateSpec, Workload};
use rayon::prelude::*;

use crate::apart::Remote;
use crate::engine::Engine;

/// Numbers or entries moved at a time.
const CHUNK: u64 = 1 << 19;
/// Bytes moved at a time, at most.
pub(crate) const STAGED: u64 = 4 * CHUNK;

/// The disk's units that hold these bytes of an extent, which itself begins at one.
fn whole_units(offset: u64, bytes: u64) -> Range<u64> {
    offset / ALIGN * ALIGN..(offset + bytes).next_multiple_of(ALIGN)
}

fn staging() -> Result<Block, TierError> {
    Block::new(Bytes(STAGED + 2 * ALIGN), Fill::Zero)
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slot of a rank.
#[derive(Clone, Copy)]
struct Home<'a> {
    rank: usize,
    idx: SlotId,
    slot: &'a Slot,
}

/// Entries of an array of a piece of a rank.
struct Chunk {
    rank: usize,
    piece: PieceId,
    array: StateArray,
    entries: Range<u64>,
}

/// A rank's tiers.
#[derive(Debug)]
pub(crate) enum Reach<'a> {
    /// Of this process.
    Here(Idle<'a>),
    /// Of another one.
    There(&'a Remote),
    /// Of this process while steps go on: to read what is held.
    Held(&'a Held<Engine>),
}

impl<'a> Reach<'a> {
    fn here(&self) -> &Idle<'a> {
        match self {
            Self::Here(tiers) => tiers,
            Self::There(_) => panic!("memory of another process"),
            Self::Held(_) => panic!("memory that is only read"),
        }
    }
}

/// Access to every home of a plan, in chunks, from any number of threads. Host and device are read
/// and written where they are, the disk through a few MiB of staging for each caller at a time.
#[derive(Debug)]
pub struct Homes<'a> {
    plan: Arc<Plan>,
    workload: &'a Workload,
    /// Of each rank.
    tiers: Vec<Reach<'a>>,
    /// Durable extents have changed places.
    flipped: bool,
    /// Staging that nobody uses now.
    spare: Mutex<Vec<Block>>,
    /// Held by who rewrites units of the disk that hold another's bytes too.
    mended: Mutex<()>,
}

impl<'a> Homes<'a> {
    /// Access to the homes of `plan` in the `tiers` of its ranks; of durable ones to the current version, which is the
    /// second extent where `flipped`.
    ///
    /// # Errors
    /// When there is no memory for the staging.
    pub(crate) fn new(
        plan: Arc<Plan>,
        workload: &'a Workload,
        tiers: Vec<Reach<'a>>,
        flipped: bool,
    ) -> Result<Self, TierError> {
        let spare = match &tiers[0] {
            Reach::Here(idle) if idle.disk.is_some() => vec![staging()?],
            _ => Vec::new(),
        };
        Ok(Self {
            plan,
            workload,
            tiers,
            flipped,
            spare: Mutex::new(spare),
            mended: Mutex::new(()),
        })
    }

    /// Moves whole units of a slot's disk to or from the start of a staging.
    fn disk(
        &self,
        kind: Kind,
        Home { rank, idx, .. }: Home<'_>,
        range: &Range<u64>,
        staging: Block,
    ) -> (Block, Result<(), TierError>) {
        let extent = Extent {
            offset: self.plan.offset(idx, self.flipped) + range.start,
            bytes: range.end - range.start,
        };
        match &self.tiers[rank] {
            // Behind all that the steps ask of the drive.
            Reach::Held(held) => held.on_disk(idx, |disk| {
                disk.start(kind, extent, staging, u64::MAX).wait()
            }),
            tiers => {
                let disk = tiers.here().disk.expect("a plan with extents has a disk");
                disk.start(kind, extent, staging, 0).wait()
            }
        }
    }

    /// Does `work` with a staging of its own, which comes back from it.
    fn staged(
        &self,
        work: impl FnOnce(Block) -> (Block, Result<(), TierError>),
    ) -> Result<(), TierError> {
        let spare = lock(&self.spare).pop();
        let (block, done) = work(spare.map_or_else(staging, Ok)?);
        lock(&self.spare).push(block);
        done
    }

    /// Reads bytes of a slot; from a disk at most [`STAGED`].
    fn load(&self, home: Home<'_>, offset: u64, out: &mut [u8]) -> Result<(), TierError> {
        let bytes = out.len() as u64;
        if let Reach::There(remote) = self.tiers[home.rank] {
            return remote.load(home.idx, offset, out);
        }
        if home.slot.tier != Tier::Disk {
            match &self.tiers[home.rank] {
                Reach::Held(held) => held.load(home.idx, offset, out),
                _ => memory::load(self.home(home, offset, bytes).src(), out),
            }
            return Ok(());
        }
        let range = whole_units(offset, bytes);
        let skip = (offset - range.start) as usize;
        self.staged(|staging| {
            let (staging, done) = self.disk(Kind::Read, home, &range, staging);
            if done.is_ok() {
                out.copy_from_slice(&staging.as_slice()[skip..][..out.len()]);
            }
            (staging, done)
        })
    }

    /// Writes bytes of a slot; to a disk at most [`STAGED`]. What lies beside them in the disk's
    /// units stays.
    fn store(&self, home: Home<'_>, offset: u64, bytes: &[u8]) -> Result<(), TierError> {
        let len = bytes.len() as u64;
        if let Reach::There(remote) = self.tiers[home.rank] {
            return remote.store(home.idx, offset, bytes);
        }
        if home.slot.tier != Tier::Disk {
            memory::store(self.home(home, offset, len).dst(), bytes);
            return Ok(());
        }
        let range = whole_units(offset, len);
        let skip = (offset - range.start) as usize;
        self.staged(|mut staging| {
            let shared = range != (offset..offset + len);
            // Two that share a unit would each write back what the other has replaced.
            let _alone = shared.then(|| lock(&self.mended));
            if shared {
                let done;
                (staging, done) = self.disk(Kind::Read, home, &range, staging);
                if done.is_err() {
                    return (staging, done);
                }
            }
            staging.as_mut_slice()[skip..][..bytes.len()].copy_from_slice(bytes);
            self.disk(Kind::Write, home, &range, staging)
        })
    }

    /// Reads bytes of a slot of the only rank; from a disk at most [`STAGED`].
    pub(crate) fn load_slot(&self, idx: SlotId, at: u64, out: &mut [u8]) -> Result<(), TierError> {
        self.load(self.only(idx, at, out.len())?, at, out)
    }

    /// The slots of the first rank that hold the truth of a piece: its weights and its optimizer's state.
    pub(crate) fn truths(plan: &Plan, piece: PieceId) -> impl Iterator<Item = SlotId> {
        let of = |tensor| plan.homes(tensor).next().map(|(slot, _)| slot);
        [plan.master(piece), Tensor::State(piece)]
            .into_iter()
            .filter_map(of)
    }

    /// Writes bytes of a slot of the only rank; to a disk at most [`STAGED`].
    pub(crate) fn store_slot(&self, idx: SlotId, at: u64, bytes: &[u8]) -> Result<(), TierError> {
        self.store(self.only(idx, at, bytes.len())?, at, bytes)
    }

    /// A slot of the only rank that has these bytes.
    fn only(&self, idx: SlotId, at: u64, bytes: usize) -> Result<Home<'_>, TierError> {
        let slot = self.plan.slots.find(idx);
        let whole = |slot: &&Slot| at.saturating_add(bytes as u64) <= slot.bytes;
        let slot = slot.filter(whole).ok_or(TierError::Range {
            offset: at,
            bytes: bytes as u64,
            have: slot.map_or(0, |s| s.bytes),
        })?;
        Ok(Home { rank: 0, idx, slot })
    }

    /// Bytes of a slot in memory.
    fn home(&self, Home { rank, slot, .. }: Home<'_>, offset: u64, bytes: u64) -> Lent<'_> {
        let tiers = self.tiers[rank].here();
        let memory = match slot.tier {
            Tier::Device => &tiers.device,
            _ => &tiers.host,
        };
        memory.lend(slot.offset + offset, bytes)
    }

    /// Homes of a rank's part of an array of a piece: a weight may have a resident copy too.
    fn slots(&self, rank: usize, piece: PieceId, array: &StateArray) -> Vec<Home<'_>> {
        let tensor = match array.spec.role {
            Role::WEIGHT => self.plan.master(piece),
            _ => Tensor::State(piece),
        };
        self.of_rank(rank, tensor).collect()
    }

    /// The homes of a tensor in a rank's memory.
    fn of_rank(&self, rank: usize, tensor: Tensor) -> impl Iterator<Item = Home<'_>> {
        let homes = self.plan.homes(tensor);
        homes.map(move |(idx, slot)| Home { rank, idx, slot })
    }

    /// The ranks of which each has a part of a piece: one where each has all of it.
    fn ranks(&self, piece: PieceId) -> u64 {
        match self.plan.pieces[piece].frozen {
            true => 1,
            false => u64::from(self.plan.ranks),
        }
    }

    /// What a rank has of a parameter in an array of its piece: the first entry in the rank's array, and which entries
    /// of the parameter's they are.
    fn part(
        &self,
        (rank, piece, param): (usize, PieceId, ParamId),
        array: &StateArray,
    ) -> (u64, Range<u64>) {
        let (p, ranks) = (&self.plan.pieces[piece], self.ranks(piece));
        let before = self.workload.params.run(&(p.params.start..param));
        let before = before.expect("a piece of this workload");
        let first = array.first(p.offset_of(param) / ranks, before);
        let of = &self.workload.params[param];
        let all = array.spec.entries(of);
        if ranks == 1 {
            return (first, 0..all);
        }
        let each = array.first(self.workload.padded(of) / ranks, &[]);
        let start = (each * rank as u64).min(all);
        (first, start..(start + each).min(all))
    }

    /// Where a role's array lies in a piece.
    fn array(&self, piece: PieceId, role: Role) -> StateArray {
        let (plan, own) = (&self.plan, self.plan.own(piece));
        let piece = &plan.pieces[piece];
        let params = piece.of(self.workload);
        let array = plan.optimizer.array(plan.precision, own, params, role);
        array.unwrap_or_else(|| panic!("no array for {role:?}"))
    }

    /// What there is of the parameters of a piece: of frozen ones the weight alone.
    fn roles(&self, piece: PieceId) -> impl Iterator<Item = &'static StateSpec> + use<> {
        let frozen = self.plan.pieces[piece].frozen;
        let all = self.plan.optimizer.roles(self.plan.precision);
        all.take(if frozen { 1 } else { usize::MAX })
    }

    /// Reads entries `range` of a parameter's role as bytes.
    ///
    /// # Errors
    /// The disk's.
    ///
    /// # Panics
    /// When the optimizer's table has no such role.
    pub fn read(
        &self,
        param: ParamId,
        role: Role,
        range: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), TierError> {
        let piece = self.plan.piece_of(param);
        let array = self.array(piece, role);
        let size = array.spec.size();
        for rank in 0..self.ranks(piece) as usize {
            let (first, own) = self.part((rank, piece, param), &array);
            let (from, to) = (range.start.max(own.start), range.end.min(own.end));
            if from >= to {
                continue;
            }
            let start = array.start + (first + from - own.start) * size;
            let home = self.slots(rank, piece, &array)[0];
            let out = &mut out[((from - range.start) * size) as usize..];
            let out = &mut out[..((to - from) * size) as usize];
            for (i, part) in out.chunks_mut(STAGED as usize).enumerate() {
                self.load(home, start + i as u64 * STAGED, part)?;
            }
        }
        Ok(())
    }

    /// Chunks of all arrays of all pieces of all ranks.
    fn chunks(&self) -> Vec<Chunk> {
        let mut all = Vec::new();
        for (piece, of) in self.plan.pieces.pairs() {
            for (rank, spec) in
                (0..self.tiers.len()).flat_map(|r| self.roles(piece).map(move |s| (r, s)))
            {
                let array = self.array(piece, spec.role);
                debug_assert!(array.entries() <= of.elements, "{array:?}");
                for from in (0..array.entries()).step_by(CHUNK as usize) {
                    all.push(Chunk {
                        rank,
                        piece,
                        array,
                        entries: from..(from + CHUNK).min(array.entries()),
                    });
                }
            }
        }
        all
    }

    /// The parameters that have some of the entries of a chunk: parameter, its entries, and the first of them among
    /// these.
    fn params_in(&self, chunk: &Chunk) -> Vec<(ParamId, Range<u64>, u64)> {
        let Chunk {
            rank,
            piece,
            array,
            entries,
        } = chunk;
        let mut all = Vec::new();
        for p in ids(&self.plan.pieces[*piece].params) {
            let (first, own) = self.part((*rank, *piece, p), array);
            let end = first + (own.end - own.start);
            let (a, b) = (entries.start.max(first), entries.end.min(end));
            if a < b {
                let of = |x: u64| own.start + x - first;
                all.push((p, of(a)..of(b), a - entries.start));
            }
        }
        all
    }

    /// Writes every array of every piece from `fill(param, range, spec, bytes)`, which puts these
    /// entries of the parameter into `bytes`; padding becomes zero. On all cores: `fill` is called in
    /// any order, from several threads.
    ///
    /// # Errors
    /// The disk's, or one of `fill`.
    pub fn write_all<E: From<TierError> + Send>(
        &self,
        fill: impl Fn(ParamId, Range<u64>, &StateSpec, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let chunks = self.chunks().into_par_iter();
        chunks.try_for_each(|chunk| {
            let Chunk {
                rank,
                piece,
                array,
                ref entries,
            } = chunk;
            let size = array.spec.size();
            let mut bytes = vec![0u8; ((entries.end - entries.start) * size) as usize];
            for (p, range, at) in self.params_in(&chunk) {
                let n = (range.end - range.start) * size;
                let part = &mut bytes[(at * size) as usize..][..n as usize];
                fill(p, range, &array.spec, part)?;
            }
            for slot in self.slots(rank, piece, &array) {
                self.store(slot, array.start + entries.start * size, &bytes)?;
            }
            Ok::<(), E>(())
        })?;
        Ok(self.gather()?)
    }

    /// Of several ranks: fills the whole weights that stay on each from all ranks' parts.
    fn gather(&self) -> Result<(), TierError> {
        let size = self.plan.precision.size();
        let mut bytes = Vec::new();
        for (piece, of) in self.plan.pieces.pairs() {
            let whole = Tensor::Weight(piece);
            if self.ranks(piece) == 1 || self.of_rank(0, whole).next().is_none() {
                continue;
            }
            let array = self.array(piece, Role::WEIGHT);
            for rank in 0..self.tiers.len() {
                for p in ids(&of.params) {
                    let (first, own) = self.part((rank, piece, p), &array);
                    let truth = self.slots(rank, piece, &array)[0];
                    for from in own.clone().step_by(CHUNK as usize) {
                        let to = (from + CHUNK).min(own.end);
                        bytes.resize(((to - from) * size) as usize, 0);
                        self.load(truth, (first + from - own.start) * size, &mut bytes)?;
                        for other in 0..self.tiers.len() {
                            for copy in self.of_rank(other, whole) {
                                self.store(copy, (of.offset_of(p) + from) * size, &bytes)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills every copy of weights that stays on device or host from the truth.
    ///
    /// # Errors
    /// The disk's.
    pub fn refresh_copies(&self) -> Result<(), TierError> {
        let size = self.plan.precision.size();
        let mut bytes = Vec::new();
        for (rank, id) in
            (0..self.tiers.len()).flat_map(|r| self.plan.pieces.ids().map(move |p| (r, p)))
        {
            let slots = self.slots(rank, id, &self.array(id, Role::WEIGHT));
            let (truth, copies) = slots.split_first().expect("weights have a home");
            if copies.is_empty() {
                continue;
            }
            let own = self.plan.own(id);
            for from in (0..own).step_by(CHUNK as usize) {
                let to = (from + CHUNK).min(own);
                bytes.resize(((to - from) * size) as usize, 0);
                self.load(*truth, from * size, &mut bytes)?;
                for copy in copies {
                    self.store(*copy, from * size, &bytes)?;
                }
            }
        }
        self.gather()
    }

    /// Flips the lowest bit of the weight's first number of a piece, in every home: a planted
    /// mistake, for tests that must find one.
    ///
    /// # Errors
    /// The disk's.
    pub fn flip_bit(&self, piece: PieceId) -> Result<(), TierError> {
        for slot in self.slots(0, piece, &self.array(piece, Role::WEIGHT)) {
            let mut first = [0u8; 1];
            self.load(slot, 0, &mut first)?;
            self.store(slot, 0, &[first[0] ^ 1])?;
        }
        self.gather()
    }

    /// Fills weights from f32 numbers, and the optimizer's arrays with what its table says; on all cores,
    /// because a large model has tens of gigabytes. `source` is asked for ranges of parameters in any order,
    /// from several threads, and each number must not depend on the range that it is asked in.
    ///
    /// # Errors
    /// The disk's, or one of `source`.
    pub fn initialise<E: From<TierError> + Send>(
        &self,
        source: impl Fn(ParamId, Range<u64>, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        // What is made of the first weights is made in one go: they are read once.
        let of_weights = |a: &StateArray| matches!(a.spec.init, Init::Weight | Init::Remainder);
        let chunks = self.chunks().into_par_iter();
        chunks.try_for_each(|chunk| {
            let Chunk {
                rank,
                piece,
                array,
                ref entries,
            } = chunk;
            let mut numbers = Vec::new();
            let arrays: Vec<StateArray> = match array.spec.init {
                Init::Remainder => return Ok(()),
                Init::Zero => vec![array],
                Init::Weight => {
                    numbers.resize((entries.end - entries.start) as usize, 0f32);
                    for (p, range, at) in self.params_in(&chunk) {
                        let n = (range.end - range.start) as usize;
                        source(p, range, &mut numbers[at as usize..][..n])?;
                    }
                    let all = self.roles(piece).map(|spec| self.array(piece, spec.role));
                    all.filter(of_weights).collect()
                }
            };
            for array in arrays {
                let weights = numbers.iter();
                let mut bytes = Vec::new();
                match (array.spec.init, self.plan.precision) {
                    (Init::Weight, Dtype::F32) => {
                        bytes.extend(weights.flat_map(|x| x.to_le_bytes()));
                    }
                    (Init::Weight, Dtype::Bf16) => {
                        bytes.extend(weights.flat_map(|&x| split(x).0.to_le_bytes()));
                    }
                    (Init::Remainder, _) => {
                        bytes.extend(weights.flat_map(|&x| split(x).1.to_le_bytes()));
                    }
                    (Init::Zero, _) => {
                        let n = (entries.end - entries.start) * array.spec.size();
                        bytes.resize(n as usize, 0);
                    }
                }
                let at = array.start + entries.start * array.spec.size();
                for slot in self.slots(rank, piece, &array) {
                    self.store(slot, at, &bytes)?;
                }
            }
            Ok::<(), E>(())
        })?;
        Ok(self.gather()?)
    }

    /// A parameter's weights as the device reads them, widened to f32.
    ///
    /// # Errors
    /// The disk's.
    pub fn weights(
        &self,
        param: ParamId,
        range: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), TierError> {
        let size = self.plan.precision.size() as usize;
        let mut bytes = vec![0u8; out.len() * size];
        self.read(param, Role::WEIGHT, range, &mut bytes)?;
        for (x, b) in out.iter_mut().zip(bytes.chunks_exact(size)) {
            *x = match self.plan.precision {
                Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                Dtype::Bf16 => f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16),
            };
        }
        Ok(())
    }

    /// A checksum (FNV-1a) over every role of every parameter: equal state, equal number, whatever
    /// the placement; and how many bytes it covers.
    ///
    /// # Errors
    /// The disk's.
    pub fn fingerprint(&self) -> Result<(u64, u64), TierError> {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut count = 0;
        let mut bytes = Vec::new();
        for (p, param) in self.workload.params.pairs() {
            for spec in self.workload.arrays(param) {
                let (role, size, entries) = (spec.role, spec.size(), spec.entries(param));
                for from in (0..entries).step_by(CHUNK as usize) {
                    let to = (from + CHUNK).min(entries);
                    bytes.resize(((to - from) * size) as usize, 0);
                    self.read(p, role, from..to, &mut bytes)?;
                    count += bytes.len() as u64;
                    for b in &bytes {
                        hash = (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
                    }
                }
            }
        }
        Ok((hash, count))
    }
}
