//! Weights and optimizer state as they are behind one step, read while the next ones go on: for checkpoints.

use std::sync::Arc;

use lowtide_device::cuda::CudaError;
use lowtide_executor::{Held, HeldFrom, HeldUp, Mode, Ready};
use lowtide_model::Decoder;
use lowtide_planner::{PieceId, Plan, SlotId, Tier, Use};
use lowtide_tiers::TierError;
use lowtide_units::Bytes;
use lowtide_workload::ParamId;

use crate::engine::Engine;
use crate::homes::{Homes, Reach, STAGED};
use crate::session::Session;

/// The state of a run behind one step. Pieces are read in [`Snapshot::order`], each once it is ready, and released;
/// the update of a piece waits for that. Dropped, it holds nothing any more.
pub struct Snapshot {
    held: Held<Engine>,
    plan: Arc<Plan>,
    decoder: Arc<Decoder>,
    order: Vec<PieceId>,
}

impl Snapshot {
    /// The pieces in the order in which a step updates them, those that are not trained behind them.
    #[must_use]
    pub fn order(&self) -> &[PieceId] {
        &self.order
    }

    /// The parameters of a piece: they lie one behind the other.
    #[must_use]
    pub fn params(&self, piece: PieceId) -> std::ops::Range<ParamId> {
        self.plan.pieces[piece].params.clone()
    }

    /// Whether a piece is as it is behind the step.
    ///
    /// # Errors
    /// The device's.
    pub fn ready(&self, piece: PieceId) -> Result<Ready, CudaError> {
        self.held.ready(piece.0 as usize)
    }

    /// Whether the state is complete, or will be once what is submitted has run.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.held.is_under_way()
    }

    /// A piece was read: it may be updated.
    pub fn release(&self, piece: PieceId) {
        self.held.release(piece.0 as usize);
    }

    /// How long steps waited for it.
    #[must_use]
    pub fn held_up(&self) -> HeldUp {
        self.held.held_up()
    }

    /// The model whose parameters are read.
    #[must_use]
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// To read pieces that are ready and not released.
    ///
    /// # Errors
    /// When there is no memory for staging.
    pub fn homes(&self) -> Result<Homes<'_>, TierError> {
        let tiers = vec![Reach::Held(&self.held)];
        Homes::new(
            Arc::clone(&self.plan),
            self.decoder.workload(),
            tiers,
            false,
        )
    }
}

/// Why a session gives no [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSnapshot {
    /// Each of several ranks has a share.
    Ranks,
    /// Its state is on drives in two versions, of which a step commits one.
    Durable,
}

/// Whether the state of a plan can be read while steps go on.
///
/// # Errors
/// Why not.
pub fn can_hold(plan: &Plan) -> Result<(), NoSnapshot> {
    match plan {
        _ if plan.ranks > 1 => Err(NoSnapshot::Ranks),
        _ if plan.choice.durable => Err(NoSnapshot::Durable),
        _ => Ok(()),
    }
}

/// Where the truth of any piece lies, by tier.
fn has_truth_on(plan: &Plan, tier: Tier) -> bool {
    let pieces = plan.pieces.ids();
    let mut slots = pieces.flat_map(|piece| Homes::truths(plan, piece));
    slots.any(|slot| plan.slots[slot].tier == tier)
}

/// Host memory that each thread needs beside what it reads into, where some of the state is on drives.
#[must_use]
pub fn staging_of_reader(plan: &Plan) -> Bytes {
    match has_truth_on(plan, Tier::Disk) {
        // Whole units around the bytes.
        true => Bytes(2 * STAGED),
        false => Bytes::ZERO,
    }
}

/// Whether some of the state is on the device.
#[must_use]
pub fn reads_device(plan: &Plan) -> bool {
    has_truth_on(plan, Tier::Device)
}

/// The pieces in the order in which their truth is written first in the part of a plan that updates.
fn order(plan: &Plan, groups: &[Vec<SlotId>]) -> Vec<PieceId> {
    let mut piece_of = std::collections::HashMap::new();
    for (piece, group) in plan.pieces.ids().zip(groups) {
        piece_of.extend(group.iter().map(|&slot| (slot, piece)));
    }
    let mut all = Vec::new();
    let mut seen = vec![false; plan.pieces.len()];
    let mut note = |piece: PieceId| {
        if !std::mem::replace(&mut seen[piece.0 as usize], true) {
            all.push(piece);
        }
    };
    for part in plan.parts.values() {
        for arg in part.iter().flat_map(|task| &task.args) {
            if arg.access != Use::Read
                && let Some(&piece) = piece_of.get(&arg.slot)
            {
                note(piece);
            }
        }
    }
    plan.pieces.ids().for_each(note);
    all
}

impl Session {
    /// Waits until everything that was submitted is complete, without completing the update that the last batch's
    /// gradients wait for.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn settle(&mut self) -> Result<(), lowtide_executor::ExecError> {
        self.wait()
    }

    /// The state behind the last batch, to be read while steps go on; nothing runs. Where its update is not made yet
    /// it is made with the next batch, or by [`Session::drain`], and pieces are ready behind their own.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// Where [`can_hold`] says no, the session was not opened for it, or an earlier one holds something still.
    pub fn snapshot(&mut self) -> Result<Snapshot, CudaError> {
        let plan = Arc::clone(self.plan());
        assert!(can_hold(&plan).is_ok(), "state that can be held");
        let pieces = plan.pieces.ids();
        let groups: Vec<Vec<SlotId>> = pieces.map(|p| Homes::truths(&plan, p).collect()).collect();
        let from = match self.has_pending() {
            true => HeldFrom::NextUpdate,
            false => HeldFrom::Now,
        };
        let order = order(&plan, &groups);
        let decoder = Arc::clone(self.decoder());
        let held = self.first_runner().hold(&groups, from)?;
        Ok(Snapshot {
            held,
            plan,
            decoder,
            order,
        })
    }
}

/// Whether a session in this mode has threads that go on while its state is read.
pub(crate) fn holds(plan: &Plan, mode: Mode, asked: bool) -> bool {
    asked && mode == Mode::Threads && can_hold(plan).is_ok()
}
