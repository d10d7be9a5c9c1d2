//! Weights and optimizer state where they live: read and written by parameter, whatever the
//! placement. Only while no task runs.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_device::{Lent, memory};
use lowtide_executor::Idle;
use lowtide_kernels::adamw;
use lowtide_planner::plan::moments_offset;
use lowtide_planner::{Plan, Slot, Tensor, Tier};
use lowtide_tiers::{ALIGN, Block, Extent, Fill, Kind, TierError};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, Moments, Workload};
use rayon::prelude::*;

/// One of the arrays that a parameter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What the device reads.
    Weight,
    /// What the weight lacks of the f32 master (precision bf16 only), `i16`.
    Remainder,
    /// First moment: f32, bf16 or codes.
    FirstMoment,
    /// Second moment, likewise.
    SecondMoment,
    /// Scales of the first moment's codes (8-bit moments only), f32, one a block.
    FirstScale,
    /// Scales of the second moment's codes, likewise.
    SecondScale,
}

impl Role {
    /// The roles that exist in a precision with moments of a kind.
    #[must_use]
    pub fn all(precision: Dtype, moments: Moments) -> &'static [Self] {
        use Role::{FirstMoment, FirstScale, Remainder, SecondMoment, SecondScale, Weight};
        const ALL: &[Role] = &[
            Weight,
            Remainder,
            FirstMoment,
            SecondMoment,
            FirstScale,
            SecondScale,
        ];
        const WITHOUT_REMAINDER: &[Role] =
            &[Weight, FirstMoment, SecondMoment, FirstScale, SecondScale];
        let all = match precision {
            Dtype::Bf16 => ALL,
            Dtype::F32 => WITHOUT_REMAINDER,
        };
        // Scales stand last.
        match moments {
            Moments::Int8 => all,
            Moments::F32 | Moments::Bf16 => &all[..all.len() - 2],
        }
    }

    /// Bytes of one entry.
    #[must_use]
    pub fn size(self, precision: Dtype, moments: Moments) -> u64 {
        match self {
            Self::Weight => precision.size(),
            Self::Remainder => 2,
            Self::FirstMoment | Self::SecondMoment => moments.size(),
            Self::FirstScale | Self::SecondScale => 4,
        }
    }

    /// Numbers of a parameter that one entry is for: 1, or a block.
    #[must_use]
    pub fn block(self) -> u64 {
        match self {
            Self::FirstScale | Self::SecondScale => Moments::BLOCK,
            _ => 1,
        }
    }

    /// Entries of a parameter of `elements` numbers; the last may be for a part of a block.
    #[must_use]
    pub fn entries(self, elements: u64) -> u64 {
        elements.div_ceil(self.block())
    }

    /// Name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Remainder => "remainder",
            Self::FirstMoment => "first_moment",
            Self::SecondMoment => "second_moment",
            Self::FirstScale => "first_scale",
            Self::SecondScale => "second_scale",
        }
    }
}

/// Numbers moved at a time.
const CHUNK: u64 = 1 << 19;
/// Bytes moved at a time, at most.
const STAGED: u64 = 4 * CHUNK;

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

/// Access to every home of a plan, in chunks, from any number of threads. Host and device are read
/// and written where they are, the disk through a few MiB of staging for each caller at a time.
#[derive(Debug)]
pub struct Homes<'a> {
    plan: Arc<Plan>,
    workload: &'a Workload,
    tiers: Idle<'a>,
    /// Durable extents have changed places.
    flipped: bool,
    /// Staging that nobody uses now.
    spare: Mutex<Vec<Block>>,
    /// Held by who rewrites units of the disk that hold another's bytes too.
    mended: Mutex<()>,
}

impl<'a> Homes<'a> {
    /// Access to the homes of `plan` in `tiers`; of durable ones to the current version, which is the
    /// second extent where `flipped`.
    ///
    /// # Errors
    /// When there is no memory for the staging.
    pub fn new(
        plan: Arc<Plan>,
        workload: &'a Workload,
        tiers: Idle<'a>,
        flipped: bool,
    ) -> Result<Self, TierError> {
        let spare = match tiers.disk {
            Some(_) => vec![staging()?],
            None => Vec::new(),
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
        (idx, _): (u32, &Slot),
        range: &Range<u64>,
        staging: Block,
    ) -> (Block, Result<(), TierError>) {
        let extent = Extent {
            offset: self.plan.offset(idx, self.flipped) + range.start,
            bytes: range.end - range.start,
        };
        let disk = self.tiers.disk.expect("a plan with extents has a disk");
        disk.start(kind, extent, staging, 0).wait()
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
    fn load(&self, home: (u32, &Slot), offset: u64, out: &mut [u8]) -> Result<(), TierError> {
        let bytes = out.len() as u64;
        let slot = home.1;
        if slot.tier != Tier::Disk {
            memory::load(self.home(slot, offset, bytes).src(), out);
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
    fn store(&self, home: (u32, &Slot), offset: u64, bytes: &[u8]) -> Result<(), TierError> {
        let len = bytes.len() as u64;
        let slot = home.1;
        if slot.tier != Tier::Disk {
            memory::store(self.home(slot, offset, len).dst(), bytes);
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

    /// Bytes of a slot in memory.
    fn home(&self, slot: &Slot, offset: u64, bytes: u64) -> Lent<'_> {
        let memory = match slot.tier {
            Tier::Device => &self.tiers.device,
            _ => &self.tiers.host,
        };
        memory.lend(slot.offset + offset, bytes)
    }

    /// Slots of a role of a piece (a weight may have a resident copy too) and its first byte there.
    fn slots(&self, piece: u32, role: Role) -> (Vec<(u32, &Slot)>, u64) {
        let n = self.plan.pieces[piece as usize].elements;
        let moments = moments_offset(self.plan.precision, n);
        let layout = self.plan.moments.layout(n);
        let (tensor, offset) = match role {
            Role::Weight => (Tensor::Weight(piece), 0),
            Role::Remainder => (Tensor::State(piece), 0),
            Role::FirstMoment => (Tensor::State(piece), moments + layout.first.start),
            Role::SecondMoment => (Tensor::State(piece), moments + layout.second.start),
            Role::FirstScale => (Tensor::State(piece), moments + layout.first_scale.start),
            Role::SecondScale => (Tensor::State(piece), moments + layout.second_scale.start),
        };
        (self.plan.homes(tensor).collect(), offset)
    }

    fn roles(&self) -> &'static [Role] {
        Role::all(self.plan.precision, self.plan.moments)
    }

    fn size(&self, role: Role) -> u64 {
        role.size(self.plan.precision, self.plan.moments)
    }

    /// Reads entries `range` of a parameter's role as bytes.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(
        &self,
        param: u32,
        role: Role,
        range: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), TierError> {
        let piece_idx = self.plan.piece_of(param);
        let piece = &self.plan.pieces[piece_idx as usize];
        let (slots, base) = self.slots(piece_idx, role);
        let first = piece.offset_of(param) / role.block() + range.start;
        let start = base + first * self.size(role);
        for (i, part) in out.chunks_mut(STAGED as usize).enumerate() {
            self.load(slots[0], start + i as u64 * STAGED, part)?;
        }
        Ok(())
    }

    /// Chunks of all pieces: piece and first number.
    fn chunks(&self) -> Vec<(usize, u64)> {
        let pieces = self.plan.pieces.iter().enumerate();
        pieces
            .flat_map(|(i, p)| {
                let starts = (0..p.elements).step_by(CHUNK as usize);
                starts.map(move |from| (i, from))
            })
            .collect()
    }

    /// Writes every role of every piece from `fill(param, range, role, bytes)`, which puts these
    /// entries of the parameter into `bytes`; padding becomes zero. On all cores: `fill` is called in
    /// any order, from several threads.
    ///
    /// # Errors
    /// The disk's, or one of `fill`.
    pub fn write_all<E: From<TierError> + Send>(
        &self,
        fill: impl Fn(u32, Range<u64>, Role, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.chunks()
            .into_par_iter()
            .try_for_each(|(piece_idx, from)| {
                let piece = &self.plan.pieces[piece_idx];
                let to = (from + CHUNK).min(piece.elements);
                for &role in self.roles() {
                    let size = self.size(role);
                    // Pieces, chunks and parameters begin at whole blocks.
                    let block = role.block();
                    let mut bytes = vec![0u8; ((to - from) / block * size) as usize];
                    for (p, &offset) in piece.params.clone().zip(&piece.offsets) {
                        let elements = self.workload.params[p as usize].elements;
                        let (a, b) = (from.max(offset), to.min(offset + elements));
                        if a < b {
                            let entries = (a - offset) / block..role.entries(b - offset);
                            let at = (a - from) / block;
                            let part = at * size..(at + entries.end - entries.start) * size;
                            let part = &mut bytes[part.start as usize..part.end as usize];
                            fill(p, entries, role, part)?;
                        }
                    }
                    let (slots, base) = self.slots(piece_idx as u32, role);
                    for slot in slots {
                        self.store(slot, base + from / block * size, &bytes)?;
                    }
                }
                Ok(())
            })
    }

    /// Fills every copy of weights that stays on device or host from the truth.
    ///
    /// # Errors
    /// The disk's.
    pub fn refresh_copies(&self) -> Result<(), TierError> {
        let size = self.plan.precision.size();
        let mut bytes = Vec::new();
        for (piece_idx, piece) in self.plan.pieces.iter().enumerate() {
            let (slots, _) = self.slots(piece_idx as u32, Role::Weight);
            let (truth, copies) = slots.split_first().expect("weights have a home");
            if copies.is_empty() {
                continue;
            }
            for from in (0..piece.elements).step_by(CHUNK as usize) {
                let to = (from + CHUNK).min(piece.elements);
                bytes.resize(((to - from) * size) as usize, 0);
                self.load(*truth, from * size, &mut bytes)?;
                for copy in copies {
                    self.store(*copy, from * size, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Flips the lowest bit of the weight's first number of a piece, in every home: a planted
    /// mistake, for tests that must find one.
    ///
    /// # Errors
    /// The disk's.
    pub fn flip_bit(&self, piece: u32) -> Result<(), TierError> {
        let (slots, base) = self.slots(piece, Role::Weight);
        for slot in slots {
            let mut first = [0u8; 1];
            self.load(slot, base, &mut first)?;
            self.store(slot, base, &[first[0] ^ 1])?;
        }
        Ok(())
    }

    /// Fills weights from f32 numbers, moments with zero; on all cores, because a large model has
    /// tens of gigabytes. `source` is asked for ranges of parameters in any order, from several
    /// threads, and each number must not depend on the range that it is asked in.
    ///
    /// # Errors
    /// The disk's, or one of `source`.
    pub fn initialise<E: From<TierError> + Send>(
        &self,
        source: impl Fn(u32, Range<u64>, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.chunks()
            .into_par_iter()
            .try_for_each(|(piece_idx, from)| {
                let piece = &self.plan.pieces[piece_idx];
                let to = (from + CHUNK).min(piece.elements);
                let mut numbers = vec![0f32; (to - from) as usize];
                for (p, &offset) in piece.params.clone().zip(&piece.offsets) {
                    let elements = self.workload.params[p as usize].elements;
                    let (a, b) = (from.max(offset), to.min(offset + elements));
                    if a < b {
                        let part = &mut numbers[(a - from) as usize..(b - from) as usize];
                        source(p, a - offset..b - offset, part)?;
                    }
                }
                let mut bytes = Vec::new();
                for &role in self.roles() {
                    let (size, block) = (self.size(role), role.block());
                    bytes.clear();
                    let weights = numbers.iter();
                    match (role, self.plan.precision) {
                        (Role::Weight, Dtype::F32) => {
                            bytes.extend(weights.flat_map(|x| x.to_le_bytes()));
                        }
                        (Role::Weight, Dtype::Bf16) => {
                            bytes.extend(weights.flat_map(|&x| adamw::split(x).0.to_le_bytes()));
                        }
                        (Role::Remainder, _) => {
                            bytes.extend(weights.flat_map(|&x| adamw::split(x).1.to_le_bytes()));
                        }
                        _ => bytes.resize(((to - from) / block * size) as usize, 0),
                    }
                    let (slots, base) = self.slots(piece_idx as u32, role);
                    for slot in slots {
                        self.store(slot, base + from / block * size, &bytes)?;
                    }
                }
                Ok(())
            })
    }

    /// A parameter's weights as the device reads them, widened to f32.
    ///
    /// # Errors
    /// The disk's.
    pub fn weights(&self, param: u32, range: Range<u64>, out: &mut [f32]) -> Result<(), TierError> {
        let size = self.plan.precision.size() as usize;
        let mut bytes = vec![0u8; out.len() * size];
        self.read(param, Role::Weight, range, &mut bytes)?;
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
        for (p, param) in self.workload.params.iter().enumerate() {
            for &role in self.roles() {
                let (size, entries) = (self.size(role), role.entries(param.elements));
                for from in (0..entries).step_by(CHUNK as usize) {
                    let to = (from + CHUNK).min(entries);
                    bytes.resize(((to - from) * size) as usize, 0);
                    self.read(p as u32, role, from..to, &mut bytes)?;
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
