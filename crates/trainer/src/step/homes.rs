//! Weights and optimizer state where they live: read and written by parameter, whatever the
//! placement. Only while no task runs.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use lowtide_device::{Memory, View, memory};
use lowtide_executor::Tiers;
use lowtide_kernels::adamw;
use lowtide_planner::{Plan, Slot, Tensor, Tier};
use lowtide_tiers::{Arena, Extent, Fill, Kind, Request, TierError};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, PIECE_ALIGN, Workload};
use rayon::prelude::*;

/// One of the arrays that a parameter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What the device reads.
    Weight,
    /// What the weight lacks of the f32 master (precision bf16 only), `i16`.
    Remainder,
    /// First moment, f32.
    FirstMoment,
    /// Second moment, f32.
    SecondMoment,
}

impl Role {
    /// The roles that exist in a precision.
    #[must_use]
    pub fn all(precision: Dtype) -> &'static [Self] {
        match precision {
            Dtype::Bf16 => &[
                Self::Weight,
                Self::Remainder,
                Self::FirstMoment,
                Self::SecondMoment,
            ],
            Dtype::F32 => &[Self::Weight, Self::FirstMoment, Self::SecondMoment],
        }
    }

    /// Bytes of one number.
    #[must_use]
    pub fn size(self, precision: Dtype) -> u64 {
        match self {
            Self::Weight => precision.size(),
            Self::Remainder => 2,
            Self::FirstMoment | Self::SecondMoment => 4,
        }
    }

    /// Name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Remainder => "remainder",
            Self::FirstMoment => "first_moment",
            Self::SecondMoment => "second_moment",
        }
    }
}

/// Numbers moved at a time.
const CHUNK: u64 = 1 << 19;

/// Access to every home of a plan, in chunks. Host and device are read and written where they are,
/// the disk through a few MiB of staging for each caller at a time.
#[derive(Debug)]
pub struct Homes<'a> {
    plan: &'a Plan,
    workload: &'a Workload,
    tiers: &'a Tiers,
    /// Staging that nobody uses now.
    spare: Mutex<Vec<Memory>>,
}

impl<'a> Homes<'a> {
    /// Access to the homes of `plan` in `tiers`.
    ///
    /// # Errors
    /// When there is no memory for the staging.
    pub fn new(
        plan: &'a Plan,
        workload: &'a Workload,
        tiers: &'a Tiers,
    ) -> Result<Self, TierError> {
        let spare = match tiers.disk {
            Some(_) => vec![Self::staging()?],
            None => Vec::new(),
        };
        Ok(Self {
            plan,
            workload,
            tiers,
            spare: Mutex::new(spare),
        })
    }

    fn staging() -> Result<Memory, TierError> {
        Ok(Memory::new(Arena::new(Bytes(CHUNK * 4), Fill::Zero)?))
    }

    /// Bytes of a home that is on the host or the device.
    fn view(&self, slot: &Slot, offset: u64, bytes: u64) -> Option<View<'_>> {
        let memory = match slot.tier {
            Tier::Disk => return None,
            Tier::Host => &self.tiers.host,
            Tier::Device => &self.tiers.device,
        };
        Some(memory.view(slot.offset + offset, bytes))
    }

    /// Moves bytes of an extent to or from the start of a staging, which `with` fills before or
    /// reads after.
    fn staged(
        &self,
        kind: Kind,
        (slot, offset, bytes): (&Slot, u64, u64),
        with: impl FnOnce(&Memory),
    ) -> Result<(), TierError> {
        let disk = self.tiers.disk.as_ref();
        let disk = disk.expect("a plan with extents has a disk");
        let lock = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let staging = spare.map_or_else(Self::staging, Ok)?;
        let request = Request {
            kind,
            extent: Extent {
                offset: slot.offset + offset,
                bytes,
            },
            memory: staging.arena().range(0, bytes)?,
            deadline: 0,
        };
        match kind {
            Kind::Read => {
                disk.submit(request).wait()?;
                with(&staging);
            }
            Kind::Write => {
                with(&staging);
                disk.submit(request).wait()?;
            }
        }
        lock().push(staging);
        Ok(())
    }

    /// Reads bytes of a home, from `offset` in its slot; on disk whole sectors.
    fn get(&self, slot: &Slot, offset: u64, out: &mut [u8]) -> Result<(), TierError> {
        let len = out.len() as u64;
        match self.view(slot, offset, len) {
            Some(home) => {
                memory::load(&home, out);
                Ok(())
            }
            None => self.staged(Kind::Read, (slot, offset, len), |staging| {
                memory::load(&staging.view(0, len), out);
            }),
        }
    }

    /// Writes bytes of a home, from `offset` in its slot; on disk whole sectors.
    fn put(&self, slot: &Slot, offset: u64, bytes: &[u8]) -> Result<(), TierError> {
        let len = bytes.len() as u64;
        match self.view(slot, offset, len) {
            Some(home) => {
                memory::store(&home, bytes);
                Ok(())
            }
            None => self.staged(Kind::Write, (slot, offset, len), |staging| {
                memory::store(&staging.view(0, len), bytes);
            }),
        }
    }

    /// Slots of a role of a piece (a weight may have a resident copy too) and its first byte there.
    fn slots(&self, piece: u32, role: Role) -> (Vec<&Slot>, u64) {
        let n = self.plan.pieces[piece as usize].elements;
        let (tensor, offset) = match (role, self.plan.precision) {
            (Role::Weight, _) => (Tensor::Weight(piece), 0),
            (Role::Remainder, _) | (Role::FirstMoment, Dtype::F32) => (Tensor::State(piece), 0),
            (Role::FirstMoment, Dtype::Bf16) => (Tensor::State(piece), 2 * n),
            (Role::SecondMoment, Dtype::F32) => (Tensor::State(piece), 4 * n),
            (Role::SecondMoment, Dtype::Bf16) => (Tensor::State(piece), 6 * n),
        };
        (self.plan.homes(tensor).map(|(_, s)| s).collect(), offset)
    }

    /// Reads numbers `range` of a parameter's role as bytes.
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
        let size = role.size(self.plan.precision);
        let piece_idx = self.plan.piece_of(param);
        let piece = &self.plan.pieces[piece_idx as usize];
        let start = piece.offset_of(param) + range.start;
        let end = piece.offset_of(param) + range.end;
        let (slots, base) = self.slots(piece_idx, role);
        if let Some(home) = self.view(slots[0], base + start * size, (end - start) * size) {
            memory::load(&home, out);
            return Ok(());
        }
        let mut at = start;
        while at < end {
            let from = at / PIECE_ALIGN * PIECE_ALIGN;
            let to = (from + CHUNK).min(end.div_ceil(PIECE_ALIGN) * PIECE_ALIGN);
            let until = end.min(to);
            let extent = (slots[0], base + from * size, (to - from) * size);
            let part = &mut out[((at - start) * size) as usize..((until - start) * size) as usize];
            self.staged(Kind::Read, extent, |staging| {
                let found = staging.view((at - from) * size, (until - at) * size);
                memory::load(&found, part);
            })?;
            at = until;
        }
        Ok(())
    }

    /// Writes every role of every piece from `fill(param, range, role, bytes)`, which puts these
    /// numbers of the parameter into `bytes`; padding becomes zero.
    ///
    /// # Errors
    /// The disk's, or the first of `fill`.
    pub fn write_all<E: From<TierError>>(
        &self,
        mut fill: impl FnMut(u32, Range<u64>, Role, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (piece_idx, piece) in self.plan.pieces.iter().enumerate() {
            for from in (0..piece.elements).step_by(CHUNK as usize) {
                let to = (from + CHUNK).min(piece.elements);
                for &role in Role::all(self.plan.precision) {
                    let size = role.size(self.plan.precision);
                    let mut bytes = vec![0u8; ((to - from) * size) as usize];
                    for (p, &offset) in piece.params.clone().zip(&piece.offsets) {
                        let elements = self.workload.params[p as usize].elements;
                        let (a, b) = (from.max(offset), to.min(offset + elements));
                        if a < b {
                            let part = ((a - from) * size) as usize..((b - from) * size) as usize;
                            fill(p, a - offset..b - offset, role, &mut bytes[part])?;
                        }
                    }
                    let (slots, base) = self.slots(piece_idx as u32, role);
                    for slot in slots {
                        self.put(slot, base + from * size, &bytes)?;
                    }
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
        let bytes = PIECE_ALIGN * Role::Weight.size(self.plan.precision);
        let mut first = vec![0u8; bytes as usize];
        let (slots, base) = self.slots(piece, Role::Weight);
        for slot in slots {
            self.get(slot, base, &mut first)?;
            first[0] ^= 1;
            self.put(slot, base, &first)?;
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
        let pieces = self.plan.pieces.iter().enumerate();
        let chunks: Vec<(usize, u64)> = pieces
            .flat_map(|(i, p)| {
                (0..p.elements)
                    .step_by(CHUNK as usize)
                    .map(move |from| (i, from))
            })
            .collect();
        chunks.into_par_iter().try_for_each(|(piece_idx, from)| {
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
            for &role in Role::all(self.plan.precision) {
                let size = role.size(self.plan.precision);
                bytes.clear();
                match (role, self.plan.precision) {
                    (Role::Weight, Dtype::F32) => {
                        bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
                    }
                    (Role::Weight, Dtype::Bf16) => {
                        bytes.extend(
                            numbers
                                .iter()
                                .flat_map(|&x| adamw::split(x).0.to_le_bytes()),
                        );
                    }
                    (Role::Remainder, _) => {
                        bytes.extend(
                            numbers
                                .iter()
                                .flat_map(|&x| adamw::split(x).1.to_le_bytes()),
                        );
                    }
                    (Role::FirstMoment | Role::SecondMoment, _) => {
                        bytes.resize(((to - from) * size) as usize, 0);
                    }
                }
                let (slots, base) = self.slots(piece_idx as u32, role);
                for slot in slots {
                    self.put(slot, base + from * size, &bytes)?;
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
            for &role in Role::all(self.plan.precision) {
                let size = role.size(self.plan.precision);
                for from in (0..param.elements).step_by(CHUNK as usize) {
                    let to = (from + CHUNK).min(param.elements);
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
