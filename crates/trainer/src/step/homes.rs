//! Weights and optimizer state where they live: read and written by parameter, whatever the
//! placement. Only while no task runs.

use std::ops::Range;

use lowtide_device::{Memory, memory};
use lowtide_executor::Tiers;
use lowtide_kernels::adamw;
use lowtide_planner::{Plan, Slot, Tensor, Tier};
use lowtide_tiers::{Arena, Extent, Fill, Kind, Request, TierError};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, PIECE_ALIGN, Workload};

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

/// Access to every home of a plan. Holds a few MiB of staging; works in chunks of it.
#[derive(Debug)]
pub struct Homes<'a> {
    plan: &'a Plan,
    workload: &'a Workload,
    tiers: &'a Tiers,
    /// Durable extents have changed places.
    flipped: bool,
    staging: Memory,
}

impl<'a> Homes<'a> {
    /// Access to the homes of `plan` in `tiers`; of durable ones to the current version, which is the
    /// second extent where `flipped`.
    ///
    /// # Errors
    /// When there is no memory for the staging.
    pub fn new(
        plan: &'a Plan,
        workload: &'a Workload,
        tiers: &'a Tiers,
        flipped: bool,
    ) -> Result<Self, TierError> {
        let staging = Memory::new(Arena::new(Bytes(CHUNK * 4), Fill::Zero)?);
        Ok(Self {
            plan,
            workload,
            tiers,
            flipped,
            staging,
        })
    }

    /// Moves `elements` of a role of a piece between its home slot and the start of the staging.
    fn transfer(
        &self,
        kind: Kind,
        (idx, slot): (u32, &Slot),
        offset: u64,
        bytes: u64,
    ) -> Result<(), TierError> {
        let staged = self.staging.view(0, bytes);
        let home = match slot.tier {
            Tier::Disk => {
                let extent = Extent {
                    offset: self.plan.offset(idx, self.flipped) + offset,
                    bytes,
                };
                let memory = self.staging.arena().range(0, bytes)?;
                let disk = self
                    .tiers
                    .disk
                    .as_ref()
                    .expect("a plan with extents has a disk");
                return disk
                    .submit(Request {
                        kind,
                        extent,
                        memory,
                        deadline: 0,
                    })
                    .wait();
            }
            Tier::Host => self.tiers.host.view(slot.offset + offset, bytes),
            Tier::Device => self.tiers.device.view(slot.offset + offset, bytes),
        };
        match kind {
            Kind::Read => memory::copy(&staged, &home),
            Kind::Write => memory::copy(&home, &staged),
        }
        Ok(())
    }

    /// Slots of a role of a piece (a weight may have a resident copy too) and its first byte there.
    fn slots(&self, piece: u32, role: Role) -> (Vec<(u32, &Slot)>, u64) {
        let n = self.plan.pieces[piece as usize].elements;
        let (tensor, offset) = match (role, self.plan.precision) {
            (Role::Weight, _) => (Tensor::Weight(piece), 0),
            (Role::Remainder, _) | (Role::FirstMoment, Dtype::F32) => (Tensor::State(piece), 0),
            (Role::FirstMoment, Dtype::Bf16) => (Tensor::State(piece), 2 * n),
            (Role::SecondMoment, Dtype::F32) => (Tensor::State(piece), 4 * n),
            (Role::SecondMoment, Dtype::Bf16) => (Tensor::State(piece), 6 * n),
        };
        (self.plan.homes(tensor).collect(), offset)
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
        let mut at = start;
        while at < end {
            let from = at / PIECE_ALIGN * PIECE_ALIGN;
            let to = (from + CHUNK).min(end.div_ceil(PIECE_ALIGN) * PIECE_ALIGN);
            let until = end.min(to);
            self.transfer(Kind::Read, slots[0], base + from * size, (to - from) * size)?;
            let part = &mut out[((at - start) * size) as usize..((until - start) * size) as usize];
            memory::load(
                &self.staging.view((at - from) * size, (until - at) * size),
                part,
            );
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
                    memory::store(&self.staging.view(0, bytes.len() as u64), &bytes);
                    let (slots, base) = self.slots(piece_idx as u32, role);
                    for slot in slots {
                        let len = bytes.len() as u64;
                        self.transfer(Kind::Write, slot, base + from * size, len)?;
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
        for (piece_idx, piece) in self.plan.pieces.iter().enumerate() {
            let (slots, _) = self.slots(piece_idx as u32, Role::Weight);
            let (truth, copies) = slots.split_first().expect("weights have a home");
            if copies.is_empty() {
                continue;
            }
            for from in (0..piece.elements).step_by(CHUNK as usize) {
                let to = (from + CHUNK).min(piece.elements);
                let (at, bytes) = (from * size, (to - from) * size);
                self.transfer(Kind::Read, *truth, at, bytes)?;
                for copy in copies {
                    self.transfer(Kind::Write, *copy, at, bytes)?;
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
        let (slots, base) = self.slots(piece, Role::Weight);
        for slot in slots {
            self.transfer(Kind::Read, slot, base, bytes)?;
            let mut first = [0u8; 1];
            memory::load(&self.staging.view(0, 1), &mut first);
            memory::store(&self.staging.view(0, 1), &[first[0] ^ 1]);
            self.transfer(Kind::Write, slot, base, bytes)?;
        }
        Ok(())
    }

    /// Fills weights from f32 numbers, moments with zero. `source` is asked for a range more than
    /// once (for the weight and for its remainder) and must give the same numbers each time.
    ///
    /// # Errors
    /// The disk's, or the first of `source`.
    pub fn initialise<E: From<TierError>>(
        &self,
        mut source: impl FnMut(u32, Range<u64>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut numbers: Vec<f32> = Vec::new();
        let mut held: Option<(u32, Range<u64>)> = None;
        self.write_all(|param, range, role, bytes| {
            if matches!(role, Role::FirstMoment | Role::SecondMoment) {
                return Ok(());
            }
            // Weight and remainder of one range come from one read.
            if held.as_ref() != Some(&(param, range.clone())) {
                numbers.resize((range.end - range.start) as usize, 0.0);
                source(param, range.clone(), &mut numbers)?;
                held = Some((param, range));
            }
            match (role, self.plan.precision) {
                (Role::Weight, Dtype::F32) => {
                    for (b, x) in bytes.chunks_exact_mut(4).zip(&numbers) {
                        b.copy_from_slice(&x.to_le_bytes());
                    }
                }
                (Role::Weight, Dtype::Bf16) => {
                    for (b, &x) in bytes.chunks_exact_mut(2).zip(&numbers) {
                        b.copy_from_slice(&adamw::split(x).0.to_le_bytes());
                    }
                }
                _ => {
                    for (b, &x) in bytes.chunks_exact_mut(2).zip(&numbers) {
                        b.copy_from_slice(&adamw::split(x).1.to_le_bytes());
                    }
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
