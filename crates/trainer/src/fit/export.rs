//! What a run leaves behind: the fine-tuned model and the trace.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_config::{ModelSource, Run};
use lowtide_data::Tokenizer;
use lowtide_model::HfWriter;
use lowtide_workload::ParamId;

use super::card::{CARD, card};
use super::{Fit, tokenizer_files};
use crate::classes::names_of;
use crate::error::TrainError;
use crate::output::folder::Folder;
use crate::output::{MODEL, TRACE};
use crate::pairs::start_if_any;
use crate::stops::Stops;
use crate::threads::threads_of;

/// The directory that the model came from, if it came from one.
pub(super) fn source_of(run: &Run) -> Option<&Path> {
    match &run.model.source {
        ModelSource::Path(dir) => Some(dir),
        _ => None,
    }
}

/// What a model's directory is made of, but for the numbers.
pub(super) struct Parts<'a> {
    pub writer: HfWriter<'a>,
    pub tokenizer: &'a Tokenizer,
    pub stops: &'a Stops,
    /// The token that decoding starts with, of a model with an encoder.
    pub start: Option<i32>,
    /// The card's text.
    pub card: String,
}

impl Parts<'_> {
    /// Fills a directory that has no name yet; `read` gives weights as for [`HfWriter::write`].
    pub fn write(
        &self,
        folder: &Folder,
        read: impl FnMut(ParamId, Range<u64>, &mut [f32]) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let pending = &folder.reach();
        let written = self.writer.write(pending, read);
        written
            .and_then(|()| tokenizer_files::write(self.tokenizer, self.stops, pending))
            .and_then(|()| match self.start {
                Some(start) => tokenizer_files::say_start(start, pending),
                None => Ok(()),
            })
            .and_then(|()| {
                let at = pending.join(CARD);
                std::fs::write(&at, &self.card).map_err(TrainError::io(&at))
            })
            .map_err(|e| folder.known(e))
    }
}

impl Fit<'_> {
    /// Writes the model under another name and then renames it: a model that has its name is whole. `None`: the run
    /// was asked to end, and nothing of it is left.
    /// `loss`: of the last state, on the evaluation data.
    pub(super) fn export(&mut self, loss: Option<f64>) -> Result<Option<PathBuf>, TrainError> {
        self.follow()?;
        let told = self.room.resize(self.output.folder(), 0);
        self.tell(told);
        let decoder = Arc::clone(self.session.decoder());
        let mut merged = decoder.merged(threads_of(self.run));
        let parameters = self.session.decoder().workload().parameters();
        let best = self.kept_best().filter(|_| self.gone_back);
        let evaluation = match best {
            Some(_) => Some(self.state.best.value_text(self.run)),
            None => loss.map(|loss| format!("loss {loss:.4}")),
        };
        let homes = self.session.homes()?;
        let requests = &self.requests;
        let parts = Parts {
            writer: HfWriter::new(decoder.shape(), self.run.precision, source_of(self.run))
                .labels(names_of(self.run, decoder.shape())?),
            tokenizer: &self.tokenizer,
            stops: &self.stops,
            start: start_if_any(self.run, decoder.shape())?,
            card: card(self.run, &self.state, best, parameters, evaluation),
        };
        let put = self.output.model().put(MODEL, |folder| {
            parts.write(folder, |p, range, out| {
                if requests.stopping() {
                    return Err(TrainError::Stopped);
                }
                let weights = |p, range, out: &mut [f32]| {
                    homes.weights(p, range, out).map_err(TrainError::from)
                };
                merged.read(p, range, out, weights)
            })
        });
        match put {
            Ok(told) => self.tell(told),
            Err(TrainError::Stopped) => return Ok(None),
            Err(e) => return Err(e),
        }
        Ok(Some(self.output.folder().at(MODEL)))
    }

    /// Writes the lanes' real times. A trace is not worth a run: if it cannot be written, the user gets a warning.
    pub(super) fn trace(&mut self) -> Option<PathBuf> {
        if !self.run.log.trace {
            return None;
        }
        let folder = self.output.folder();
        match folder.write(TRACE, |out| self.session.write_trace(out)) {
            Ok(()) => Some(folder.at(TRACE)),
            Err(e) => {
                self.observer.note(&format!("warning: {e}: no trace"));
                None
            }
        }
    }
}
