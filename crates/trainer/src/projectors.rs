//! Projectors that are learned before the first step: one batch's gradients, sketched.
//!
//! A session of its own makes them, of a decoder in which the other side of each matrix is projected: the gradient of
//! a core is then the sketch that directions are learned from. It is closed before the run's own opens. Until that
//! has read them, what was learned lies in a file without a name in the output directory: in memory it would take
//! about an eighth of the weights' bytes, which no plan counts.
//!
//! Where the session's tensors live changes no bit of a gradient, so projectors do not depend on budgets either.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_config::{ClipMode, Run};
use lowtide_data::Micro;
use lowtide_executor::Trace;
use lowtide_kernels::update::Hyper;
use lowtide_model::{Decoder, NotFinite};
use lowtide_planner::{Budgets, Pins, Tier};
use lowtide_session::{DiskChoice, Session};
use lowtide_units::{Bytes, ids};
use lowtide_workload::{Dtype, ParamId, ParamKind, Projector};
use rayon::prelude::*;

use crate::basis::Basis;
use crate::device::Device;
use crate::error::TrainError;
use crate::open::{load_weights, open_on};
use crate::planning::{numbers_of, options_of};

/// Projectors by the matrix that they belong to.
#[derive(Debug)]
pub(crate) struct Projectors {
    file: File,
    /// The directory that the file is in.
    dir: PathBuf,
    /// Where in the file each projector's numbers begin, in bytes.
    at: BTreeMap<ParamId, u64>,
}

impl Projectors {
    /// Fills `out` with the elements `range` of the projector of a matrix, which is named by its index among the
    /// parameters of the model's files.
    pub fn read(
        &self,
        matrix: ParamId,
        range: &Range<u64>,
        out: &mut [f32],
    ) -> Result<(), TrainError> {
        let begin = self.at.get(&matrix).expect("each base has a projector");
        let mut bytes = vec![0; out.len() * 4];
        let read = self.file.read_exact_at(&mut bytes, begin + range.start * 4);
        read.map_err(|e| kept(&self.dir, e))?;
        for (x, b) in out.iter_mut().zip(bytes.as_chunks().0) {
            *x = f32::from_le_bytes(*b);
        }
        Ok(())
    }
}

fn kept(dir: &Path, e: io::Error) -> TrainError {
    TrainError::Projectors {
        dir: dir.to_owned(),
        source: e,
    }
}

/// Whether a run learns projectors before its first step.
pub(crate) fn are_learned(run: &Run) -> bool {
    // With all directions there are none to choose.
    let learned =
        |lsp: lowtide_workload::Lsp| lsp.projector == Projector::Learned && lsp.compression > 1;
    run.lsp.is_some_and(learned)
}

/// Learns the projectors of a run from a batch. `basis` is what the run's own plan is made from.
///
/// # Errors
/// What the session cannot have; a gradient that is no number; a disk that is full.
pub(crate) fn learn(
    run: &Run,
    basis: &Basis<'_>,
    device: &Device,
    batch: Vec<Micro>,
    dir: &Path,
) -> Result<Projectors, TrainError> {
    let mut run = run.clone();
    // Gradients wait as they are, whole, and nothing is updated.
    run.train.clip.mode = ClipMode::Exact;
    run.train.gradient = Dtype::F32;
    run.checkpoint.durable = false;
    let run = &run;
    let shape = basis.decoder.shape();
    let options = options_of(run, shape, run.batch(), basis.target)?;
    let decoder = Decoder::sketching(shape, &options)?;
    let decoder = Arc::new(numbers_of(run, decoder));
    let basis = Basis {
        run,
        target: basis.target,
        decoder: Arc::clone(&decoder),
        machine: basis.machine.clone(),
        here: basis.here,
        whole: basis.whole.clone(),
        // A drive is not written for one step.
        budgets: Budgets {
            disk: Bytes::ZERO,
            ..basis.budgets
        },
        // They are not there yet.
        beside: None,
    };
    let plan = basis.plan_one_step(Pins {
        gradients: Some(Tier::Host),
        ..Pins::default()
    })?;
    let planned = basis.planned(device.clone(), plan, Trace::NONE);
    let mut session = open_on(run, &planned, Trace::NONE, DiskChoice::None)?;
    load_weights(run, &mut session)?;
    let data = session.submit(batch, Hyper::new(0.0, 1))?;
    session.outcome(&data)?;
    let file = tempfile::tempfile_in(dir).map_err(|e| kept(dir, e))?;
    let mut projectors = Projectors {
        file,
        dir: dir.to_owned(),
        at: BTreeMap::new(),
    };
    let mut end = 0;
    for piece in planned.plan.pieces.ids() {
        end = of_piece(run, &mut session, piece, &mut projectors, end)?;
    }
    Ok(projectors)
}

/// Learns what the cores of a piece say, and writes it to the file from byte `end` on; the byte behind it.
fn of_piece(
    run: &Run,
    session: &mut Session,
    piece: lowtide_planner::PieceId,
    projectors: &mut Projectors,
    mut end: u64,
) -> Result<u64, TrainError> {
    let decoder = Arc::clone(session.decoder());
    let w = decoder.workload();
    let plan = Arc::clone(session.plan());
    let own = &plan.pieces[piece];
    let cores: Vec<ParamId> = ids(&own.params)
        .filter(|&p| w.params[p].kind == ParamKind::Core)
        .collect();
    if cores.is_empty() {
        return Ok(end);
    }
    let waiting = session.waiting_gradient(piece)?;
    let waiting = waiting.expect("gradients wait on the host");
    let each = cores.into_par_iter().map(|core| {
        let begin = own.offset_of(core) as usize * 4;
        let bytes = &waiting[begin..][..w.params[core].elements as usize * 4];
        let gradient: Vec<f32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        decoder
            .learned(run.seed, core, &gradient)
            .map_err(|NotFinite| TrainError::NonFinite {
                step: 1,
                what: format!("the gradient of {}", w.params[core].name),
                checkpoint: None,
            })
    });
    let learned: Vec<_> = each.collect::<Result<_, _>>()?;
    for (matrix, numbers) in learned {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let written = projectors.file.write_all_at(&bytes, end);
        written.map_err(|e| kept(&projectors.dir, e))?;
        projectors.at.insert(matrix, end);
        end += bytes.len() as u64;
    }
    Ok(end)
}
