//! `lowtide probe`: this machine's rates.

use std::path::PathBuf;

use lowtide_config::Run;
use lowtide_data::clock::today;
use lowtide_measure::{Drive, ProbeOptions, RankWork, probe as measure};
use lowtide_planner::Machine;

use crate::basis::net_of;
use crate::device::{self, Device};
use crate::error::TrainError;
use crate::inputs::sample_of;
use crate::planning::{decoder_of, direct_of, probed, shape_of};
use crate::threads::{threads_of, usual_threads};

/// Seconds spent on each figure, about.
const SECONDS: f64 = 0.5;

/// What is measured beside the device.
#[derive(Debug)]
pub struct Probe<'a> {
    /// At this run's shapes, on a sample of its data, and with its settings where nothing else is said.
    pub run: Option<&'a Run>,
    /// GPUs that exchange.
    pub gpus: Option<u32>,
    /// Threads of the host's lane.
    pub threads: Option<usize>,
    /// A directory on each drive; none: the run's.
    pub disks: Vec<PathBuf>,
}

impl Probe<'_> {
    /// The threads of the host's lane where nothing is said: all cores.
    #[must_use]
    pub fn usual_threads() -> usize {
        usual_threads()
    }

    /// Measures. `measuring` hears when preparing is done.
    ///
    /// # Errors
    /// A model that cannot be read; ranks that cannot reach each other; a directory that cannot be measured.
    pub fn measure<W>(
        &self,
        device: &Device,
        measuring: impl FnOnce() -> W,
    ) -> Result<Machine, TrainError> {
        let run = self.run;
        let decoder = match run {
            Some(run) => Some(decoder_of(run, run.batch(), device.target)?),
            None => None,
        };
        let named = self.disks.iter().cloned();
        let mut drives: Vec<Drive> = named.map(|dir| Drive { dir, most: None }).collect();
        if let Some(run) = run
            && drives.is_empty()
        {
            drives = probed(run);
        }
        let threads = match (self.threads, run) {
            (Some(n), _) => n,
            (None, Some(run)) => threads_of(run),
            (None, None) => Self::usual_threads(),
        };
        let options = ProbeOptions {
            threads,
            drives,
            seconds: SECONDS,
            optimizer: run.map(|run| run.optimizer.what()).unwrap_or_default(),
            date: today(),
            gpu: device.gpu.clone(),
            direct: run.is_none_or(direct_of),
            room: run.and_then(|run| run.budget.device),
        };
        let _shown = measuring();
        let gpus = self.gpus.or(run.map(|run| run.gpus)).unwrap_or(1);
        let work = RankWork {
            threads,
            ranks: gpus,
            optimizer: options.optimizer,
        };
        let (net, links) = net_of(gpus, device, work)?;
        let sample = run.and_then(sample_of);
        let mut machine = measure(&options, [None, decoder.as_deref()], sample.as_ref())?;
        (machine.net, machine.links) = (net, links);
        Ok(machine)
    }
}

/// The device to measure: the one named as the key `device` has it, else the run's, else what `auto` gives; and others
/// beside it, as many as named or as the run has.
///
/// # Errors
/// A name that is none; a device that cannot be used.
pub fn device(
    name: Option<&str>,
    run: Option<&Run>,
    gpus: Option<u32>,
) -> Result<Device, TrainError> {
    let mut sets = Vec::new();
    if let Some(name) = name {
        sets.push(format!("device={name}"));
    }
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    // Without a run any shape does: only its attention is asked about.
    sets.push("model.shape=qwen2.5-0.5b".to_owned());
    let any = Run::parse("", "the command line", &here, &sets)?;
    let mut asked = run.unwrap_or(&any).clone();
    if name.is_some() {
        asked.device = any.device;
    }
    asked.gpus = gpus.unwrap_or(asked.gpus);
    device::open(&asked, &shape_of(&asked)?)
}
