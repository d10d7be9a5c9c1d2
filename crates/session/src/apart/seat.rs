//! The process of a rank that is not the first: does what the first one asks, until that says to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lowtide_device::comm::{Calls, Comm, Party};
use lowtide_device::cuda::Gpu;
use lowtide_executor::{ExecError, Mode, Options, Trace};
use lowtide_model::Decoder;
use lowtide_planner::check::check;
use lowtide_planner::{Plan, SlotId, Tensor, Tier};
use lowtide_tiers::{DiskConfig, MadeDirs, TierError, limits};
use serde::Serialize;
use serde_json::Value;

use super::wire::{Call, Fault, Opening, get, put};
use crate::error::SessionError;
use crate::homes::{Homes, Reach};
use crate::ranks::{Rank, folders_of_others, rank_folder, sweep, threads_before};
use crate::session::{config_of, open_rank, set_clip, synchronous};

/// Longest read of a slot at once.
const MOST: u64 = 1 << 24;

/// What a rank's process has of a session.
struct Seat {
    at: Rank,
    decoder: Arc<Decoder>,
    plan: Arc<Plan>,
    /// Of another host's first rank: the folders of its drives in which no rank of that host has state files.
    unused: Vec<PathBuf>,
    /// Last: empty when the state files are closed.
    _made: MadeDirs,
}

impl Seat {
    fn open(
        rank: usize,
        decoder: &Arc<Decoder>,
        comm: &Arc<dyn Comm>,
        (gpu, dirs): (Option<&Gpu>, &[PathBuf]),
        opening: Opening,
    ) -> Result<Self, SessionError> {
        let (clip, disk) = (opening.clip(), opening.disk());
        // Rank 0 may be another host's process: files are made where this rank's own run has its drives.
        let own = |dir: &PathBuf| dirs.iter().any(|own| rank_folder(own, rank) == *dir);
        if let Some(dir) = disk.directories().find(|dir| !own(dir)) {
            let dir = dir.display();
            let what =
                format!("rank {rank}: {dir} is no drive of this rank's run, rank 0 says it is");
            return Err(SessionError::Exec(ExecError::Elsewhere { rank, what }));
        }
        let of_host = opening.of_host.max(1);
        let options = Options {
            mode: Mode::Threads,
            gpu: gpu.cloned(),
            comm: Some(Arc::clone(comm)),
            threads: opening.threads,
            threads_before: threads_before(opening.threads, rank, of_host),
            poison: opening.poison,
            watchdog: Duration::from_millis(opening.watchdog_ms),
            trace: Trace::NONE,
            synchronous: synchronous(),
            ..Options::default()
        };
        let plan = Arc::new(opening.plan);
        // Of the model and the run that this process has: with another plan its lanes would do other work.
        check(&plan, decoder.workload(), clip.mode).map_err(|fault| {
            let what = format!(
                "rank {rank}: rank 0's plan is not one of this rank's model and run: {fault}"
            );
            SessionError::Exec(ExecError::Elsewhere { rank, what })
        })?;
        let mut made = MadeDirs::default();
        let need = plan.tier(Tier::Disk).planned_bytes;
        let config = config_of(&disk, need, &mut made)?;
        // The first rank's process looks after its own host for all ranks there; on each other one its first does.
        let leads = rank >= of_host && rank.is_multiple_of(of_host);
        if leads {
            let mut arenas = plan.tier(Tier::Host).planned_bytes;
            if gpu.is_none() {
                arenas += plan.tier(Tier::Device).planned_bytes;
            }
            let on_disk: Vec<&DiskConfig> = config.iter().cycle().take(of_host).collect();
            limits::check(arenas * of_host as u64, limits::BESIDE, &on_disk)?;
        }
        Ok(Self {
            at: open_rank(decoder, &plan, clip, rank, options, (disk, config))?,
            decoder: Arc::clone(decoder),
            plan,
            unused: match leads {
                true => folders_of_others(dirs, rank..rank + of_host),
                false => Vec::new(),
            },
            _made: made,
        })
    }

    fn homes<T>(
        &mut self,
        work: impl FnOnce(&Homes<'_>) -> Result<T, TierError>,
    ) -> Result<T, TierError> {
        let flipped = self.at.runner.flipped();
        let tiers = vec![Reach::Here(self.at.runner.idle_tiers())];
        let plan = Arc::clone(&self.plan);
        work(&Homes::new(plan, self.decoder.workload(), tiers, flipped)?)
    }

    fn load(&mut self, slot: SlotId, at: u64, bytes: u64) -> Result<Vec<u8>, TierError> {
        let mut out = vec![0; bytes.min(MOST) as usize];
        self.homes(|homes| homes.load_slot(slot, at, &mut out))?;
        Ok(out)
    }

    fn clip(&mut self, words: [u64; 3]) {
        let words = words.map(f64::from_bits);
        let tiers = self.at.runner.idle_tiers();
        for (_, slot) in self.plan.homes(Tensor::Clip) {
            set_clip(&tiers, slot, &words);
        }
    }

    /// Does one call.
    fn call(&mut self, call: Call, body: &[u8]) -> Result<Vec<u8>, SessionError> {
        match call {
            Call::Submit(part) => {
                let data = part.data(body).ok_or_else(|| wrong("inputs are cut off"))?;
                self.at.runner.submit(part.part, Arc::new(data))?;
            }
            Call::Wait => self.at.runner.wait()?,
            Call::Load { slot, at, bytes } => return Ok(self.load(slot, at, bytes)?),
            Call::Store { slot, at } => self.homes(|h| h.store_slot(slot, at, body))?,
            Call::Clip(words) => self.clip(words),
            Call::Norms(bits) => self.at.engine.restore_norms(&bits),
            Call::Commits => return Ok(bytes(&self.at.commits()?)),
            Call::Proves(sequence) => return Ok(bytes(&self.at.proves(sequence)?)),
            Call::GoBackTo(sequence) => {
                self.at.go_back_to(sequence)?;
            }
            Call::Publish => {
                if let Some(disk) = self.at.runner.disk() {
                    disk.publish()?;
                }
                // Everything has been loaded: what killed runs have left here is nobody's any more.
                sweep(&self.unused);
            }
            Call::Discard => {
                if let Some(disk) = self.at.runner.disk() {
                    disk.discard();
                }
            }
            Call::Open(_) | Call::Close | Call::Ask(_) | Call::End(_) => {
                return Err(wrong("a call that is not the session's"));
            }
        }
        Ok(Vec::new())
    }
}

/// An answer as bytes.
fn bytes(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("plain values")
}

/// A call that the first rank's process cannot make: our bug.
fn wrong(what: &str) -> SessionError {
    SessionError::Exec(ExecError::Elsewhere {
        rank: 0,
        what: what.to_owned(),
    })
}

/// Does what the first rank's process asks of this one, with a model and a device of this one, until it says that all
/// is done. Its drives may be in `dirs` alone. `ask` answers what is known outside of a session. Returns the signal
/// that ended the run before its last step, if one did, to whichever rank it came.
///
/// # Errors
/// What failed here, which is reported to the other ranks; or that another rank has stopped.
///
/// # Panics
/// In the first rank's process.
pub fn serve(
    party: &Party,
    decoder: &Arc<Decoder>,
    (comm, gpu, dirs): (&Arc<dyn Comm>, Option<&Gpu>, &[PathBuf]),
    ask: &mut dyn FnMut(Value) -> Result<Value, String>,
) -> Result<Option<i32>, SessionError> {
    let rank = party.world().rank;
    assert!(rank > 0, "the first rank asks");
    let mut line = party.take_calls().pop().expect("a line to the first rank");
    let served = answer(party, &mut line, decoder, (comm, gpu, dirs), ask);
    if let Err(e) = &served {
        party.stop(&e.to_string());
    }
    served
}

fn answer(
    party: &Party,
    line: &mut Calls,
    decoder: &Arc<Decoder>,
    (comm, gpu, dirs): (&Arc<dyn Comm>, Option<&Gpu>, &[PathBuf]),
    ask: &mut dyn FnMut(Value) -> Result<Value, String>,
) -> Result<Option<i32>, SessionError> {
    let rank = party.world().rank;
    let gone = || {
        SessionError::Exec(ExecError::Ranks {
            task: format!("rank {rank}"),
            source: party.why(0),
        })
    };
    let mut seat: Option<Seat> = None;
    loop {
        let next = get::<Call>(line).map_err(|_| gone())?;
        let (call, body) = next.ok_or_else(gone)?;
        let last = match call {
            Call::End(signal) => Some(signal),
            _ => None,
        };
        let done = match call {
            Call::Open(opening) => {
                // What an earlier session had is free for this one.
                drop(seat.take());
                let opened = Seat::open(rank, decoder, comm, (gpu, dirs), *opening);
                opened
                    .map(|opened| seat = Some(opened))
                    .map(|()| Vec::new())
            }
            Call::Close | Call::End(_) => {
                drop(seat.take());
                Ok(Vec::new())
            }
            Call::Ask(what) => match ask(what) {
                Ok(answer) => Ok(answer.to_string().into_bytes()),
                Err(what) => Err(SessionError::Exec(ExecError::Elsewhere { rank, what })),
            },
            call => match &mut seat {
                Some(seat) => seat.call(call, &body),
                None => Err(wrong("a call before a session is open")),
            },
        };
        let answered = match &done {
            Ok(body) => put(line, &Ok::<(), Fault>(()), body),
            Err(e) => {
                let fault = match e {
                    SessionError::Exec(e) => Fault::of(e),
                    e => Fault::Own(format!("rank {rank}: {e}")),
                };
                put(line, &Err::<(), Fault>(fault), &[])
            }
        };
        done?;
        answered.map_err(|_| gone())?;
        if let Some(signal) = last {
            return Ok(signal);
        }
    }
}
