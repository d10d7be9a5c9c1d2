//! The weights of a checkpoint, read from its file: for those who write a model without running one.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lowtide_kernels::update::join;
use lowtide_workload::{Encoding, ParamId, Role, Workload};

use super::whole::{self, broken};
use super::{Layout, RunState, STATE, array_name, layout};
use crate::error::TrainError;

/// Weights that were held against their checksums. Holds a few MiB.
pub(crate) struct Weights<'a> {
    w: &'a Workload,
    dir: PathBuf,
    file: File,
    layout: Layout,
    /// Master weights, where a weight has a remainder.
    master: bool,
    bytes: Vec<u8>,
}

impl<'a> Weights<'a> {
    /// Opens the state of a checkpoint of a run of `w`, and reads once all that [`read`](Self::read) will give: the
    /// weights as the device reads them or, with `master`, the f32 master weights.
    ///
    /// # Errors
    /// [`TrainError::Broken`] for one that is damaged; one of another model, precision or optimizer.
    pub fn open(
        dir: &Path,
        w: &'a Workload,
        state: &RunState,
        master: bool,
    ) -> Result<Self, TrainError> {
        let path = dir.join(STATE);
        let layout = layout(w);
        let file = lowtide_files::open(&path)
            .map_err(|e| broken(dir, e.to_string()))?
            .file;
        super::expect_header(&file, &path, &layout)?;
        let roles = |p: ParamId| {
            let all = w.arrays(&w.params[p]).map(|spec| spec.role);
            all.filter(|role| *role == Role::WEIGHT || master && *role == Role::REMAINDER)
        };
        let wanted: std::collections::HashSet<String> = w
            .params
            .pairs()
            .flat_map(|(p, _)| roles(p).map(move |role| array_name(w, p, role)))
            .collect();
        whole::verify_arrays(dir, state, |name| wanted.contains(name))?;
        Ok(Self {
            w,
            dir: dir.to_owned(),
            file,
            layout,
            master,
            bytes: Vec::new(),
        })
    }

    /// Fills `out` with the elements `range` of a parameter of the workload.
    ///
    /// # Errors
    /// [`TrainError::Broken`] where the file cannot be read any more.
    pub fn read(
        &mut self,
        param: ParamId,
        range: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), TrainError> {
        let w = self.w;
        let of = |role| w.arrays(&w.params[param]).find(|spec| spec.role == role);
        let weight = of(Role::WEIGHT).expect("every parameter has a weight");
        self.fetch(param, Role::WEIGHT, (&range, weight.size()))?;
        if weight.encoding == Encoding::F32 {
            let words = self.bytes.as_chunks().0.iter();
            out.iter_mut()
                .zip(words)
                .for_each(|(x, b)| *x = f32::from_le_bytes(*b));
            return Ok(());
        }
        let words = self.bytes.as_chunks().0.iter();
        out.iter_mut()
            .zip(words)
            .for_each(|(x, b)| *x = join(u16::from_le_bytes(*b), 0));
        if self.master && of(Role::REMAINDER).is_some() {
            self.fetch(param, Role::REMAINDER, (&range, 2))?;
            let words = self.bytes.as_chunks().0.iter();
            out.iter_mut().zip(words).for_each(|(x, b)| {
                *x = join((x.to_bits() >> 16) as u16, i16::from_le_bytes(*b));
            });
        }
        Ok(())
    }

    /// Entries of an array, each of so many bytes, into `bytes`.
    fn fetch(
        &mut self,
        param: ParamId,
        role: Role,
        (range, size): (&Range<u64>, u64),
    ) -> Result<(), TrainError> {
        let n = (range.end - range.start) * size;
        self.bytes.resize(n as usize, 0);
        let at = self.layout.start(param, role) + range.start * size;
        let read = self.file.read_exact_at(&mut self.bytes, at);
        read.map_err(|e| broken(&self.dir, format!("{STATE} cannot be read: {e}")))
    }
}
