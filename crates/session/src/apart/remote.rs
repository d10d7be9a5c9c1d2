//! A rank in another process, as the first rank's process calls it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use lowtide_device::comm::{Calls, Party};
use lowtide_executor::{ExecError, Options};
use lowtide_planner::{PartName, Plan, SlotId};
use lowtide_tiers::TierError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire::{Call, Fault, Opening, Part, get, put};
use crate::engine::ClipRule;
use crate::resume::Said;
use crate::session::DiskChoice;
use crate::step::StepData;

/// A rank in another process: what is asked of it is done there.
pub struct Remote {
    rank: usize,
    party: Arc<Party>,
    line: Mutex<Calls>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.rank)
    }
}

/// What asks for a drive or memory there has the words of there.
fn tier(e: ExecError) -> TierError {
    TierError::Elsewhere {
        what: e.to_string(),
    }
}

impl Remote {
    /// All other ranks of a party, in order: of the process that is the first. They are there once.
    ///
    /// # Panics
    /// In another process.
    #[must_use]
    pub fn all(party: &Arc<Party>) -> Vec<Arc<Self>> {
        assert_eq!(party.world().rank, 0, "the first rank asks");
        let lines = party.take_calls().into_iter().enumerate();
        let of = |(i, line)| {
            Arc::new(Self {
                rank: i + 1,
                party: Arc::clone(party),
                line: Mutex::new(line),
            })
        };
        lines.map(of).collect()
    }

    /// Which rank it is.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Asks for something, and waits until it is done.
    fn call(&self, call: &Call, body: &[u8]) -> Result<Vec<u8>, ExecError> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = put(&mut line, call, body);
        let answer = sent.and_then(|()| get::<Result<(), Fault>>(&mut line));
        match answer {
            Ok(Some((Ok(()), body))) => Ok(body),
            Ok(Some((Err(fault), _))) => Err(fault.error(self.rank)),
            Ok(None) | Err(_) => Err(ExecError::Ranks {
                task: "rank 0".to_owned(),
                source: self.party.why(self.rank),
            }),
        }
    }

    /// What it knows outside of a session.
    ///
    /// # Errors
    /// What failed there, that it is gone, or that its answer is not what was asked for.
    pub fn ask<T: DeserializeOwned>(&self, what: Value) -> Result<T, ExecError> {
        let answer = self.call(&Call::Ask(what), &[])?;
        serde_json::from_slice(&answer).map_err(|e| ExecError::Elsewhere {
            rank: self.rank,
            what: e.to_string(),
        })
    }

    /// Tells it to end, well; by which signal the run has ended, if it has before its last step.
    pub fn end(&self, signal: Option<i32>) {
        // One that is gone has ended.
        let _ = self.call(&Call::End(signal), &[]);
    }

    pub(crate) fn open(
        &self,
        plan: &Plan,
        clip: ClipRule,
        (options, of_host): (&Options, usize),
        disk: &DiskChoice,
    ) -> Result<(), ExecError> {
        let watchdog = options.watchdog.as_millis() as u64;
        let how = (options.threads, options.poison, watchdog, of_host);
        let opening = Opening::new(plan.clone(), clip, how, disk);
        self.call(&Call::Open(Box::new(opening)), &[]).map(drop)
    }

    pub(crate) fn submit(&self, part: PartName, step: &StepData) -> Result<(), ExecError> {
        let (part, inputs) = Part::new(part, step);
        self.call(&Call::Submit(part), &inputs).map(drop)
    }

    pub(crate) fn wait(&self) -> Result<(), ExecError> {
        self.call(&Call::Wait, &[]).map(drop)
    }

    pub(crate) fn load(&self, slot: SlotId, at: u64, out: &mut [u8]) -> Result<(), TierError> {
        let bytes = out.len() as u64;
        let got = self.call(&Call::Load { slot, at, bytes }, &[]);
        let got = got.map_err(tier)?;
        if got.len() != out.len() {
            return Err(TierError::Elsewhere {
                what: format!("{} bytes of {bytes} from rank {}", got.len(), self.rank),
            });
        }
        out.copy_from_slice(&got);
        Ok(())
    }

    pub(crate) fn store(&self, slot: SlotId, at: u64, bytes: &[u8]) -> Result<(), TierError> {
        let done = self.call(&Call::Store { slot, at }, bytes);
        done.map(drop).map_err(tier)
    }

    pub(crate) fn clip(&self, words: [f64; 3]) -> Result<(), ExecError> {
        let words = words.map(f64::to_bits);
        self.call(&Call::Clip(words), &[]).map(drop)
    }

    pub(crate) fn norms(&self, bits: &[u64]) -> Result<(), ExecError> {
        self.call(&Call::Norms(bits.to_vec()), &[]).map(drop)
    }

    /// An answer that is a value.
    fn value<T: for<'a> Deserialize<'a>>(&self, call: &Call) -> Result<T, TierError> {
        let answer = self.call(call, &[]).map_err(tier)?;
        serde_json::from_slice(&answer).map_err(|e| TierError::Elsewhere {
            what: format!("rank {}: {e}", self.rank),
        })
    }

    pub(crate) fn commits(&self) -> Result<Vec<Said>, TierError> {
        self.value(&Call::Commits)
    }

    pub(crate) fn proves(&self, sequence: u64) -> Result<Option<String>, TierError> {
        self.value(&Call::Proves(sequence))
    }

    pub(crate) fn go_back_to(&self, sequence: u64) -> Result<(), TierError> {
        let done = self.call(&Call::GoBackTo(sequence), &[]);
        done.map(drop).map_err(tier)
    }

    pub(crate) fn publish(&self) -> Result<(), TierError> {
        self.call(&Call::Publish, &[]).map(drop).map_err(tier)
    }

    pub(crate) fn discard(&self) {
        // A process that is gone leaves behind only what it was asked to keep, which is nothing.
        let _ = self.call(&Call::Discard, &[]);
    }

    pub(crate) fn close(&self) {
        let _ = self.call(&Call::Close, &[]);
    }
}
