//! What a run leaves behind: the fine-tuned model and the trace.

use std::fs;
use std::path::PathBuf;

use lowtide_config::ModelSource;
use lowtide_model::HfWriter;

use super::{Fit, tokenizer_files};
use crate::error::TrainError;

impl Fit<'_> {
    /// Writes the model beside its final name and then renames it: the name means it is whole.
    /// `None`: the run was asked to end, and nothing of it is left.
    pub(super) fn export(&mut self) -> Result<Option<PathBuf>, TrainError> {
        let target = self.run.output.join("model");
        let pending = self.run.output.join(".model.pending");
        let _ = fs::remove_dir_all(&pending);
        let source = match &self.run.model.source {
            ModelSource::Path(dir) => Some(dir.as_path()),
            _ => None,
        };
        let shape = self.session.decoder().shape().clone();
        let homes = self.session.homes()?;
        let requests = &self.requests;
        let writer = HfWriter::new(&shape, self.run.precision, source);
        let written = writer.write(&pending, |p, range, out| {
            if requests.stopping() {
                return Err(TrainError::Stopped);
            }
            Ok(homes.weights(p, range, out)?)
        });
        if let Err(TrainError::Stopped) = written {
            fs::remove_dir_all(&pending).map_err(TrainError::io(&pending))?;
            return Ok(None);
        }
        written?;
        tokenizer_files::write(&self.tokenizer, &self.stops, &pending)?;
        if target.exists() {
            fs::remove_dir_all(&target).map_err(TrainError::io(&target))?;
        }
        fs::rename(&pending, &target).map_err(TrainError::io(&target))?;
        Ok(Some(target))
    }

    pub(super) fn trace(&self) -> Result<Option<PathBuf>, TrainError> {
        if !self.run.log.trace {
            return Ok(None);
        }
        let path = self.run.output.join("trace.json");
        let file = fs::File::create(&path).map_err(TrainError::io(&path))?;
        let mut out = std::io::BufWriter::new(file);
        self.session
            .write_trace(&mut out)
            .and_then(|()| std::io::Write::flush(&mut out))
            .map_err(TrainError::io(&path))?;
        Ok(Some(path))
    }
}
