//! Ranks that a launcher starts as processes of their own (`torchrun`, `srun`): which one this process is, how they
//! come together, and what those do that are not the first.
//!
//! One file because what ranks say when they meet, and ask each other later, has an end here and one there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lowtide_config as config;
use lowtide_config::Run;
use lowtide_device::comm::{
    Ask, Comm, CommError, MeetError, Meeting, Party, Rendezvous, World, way,
};
use lowtide_device::cuda::{CudaError, Gpu, NcclComm};
use lowtide_executor::ExecError;
use lowtide_kernels::attention::Engine;
use lowtide_measure::{NetTimes, RankWork};
use lowtide_session::{Group, RANKS, Remote, Requests, serve};
use lowtide_units::Bytes;
use serde_json::{Value, json};

use crate::basis::work_of;
use crate::device::{self, Device};
use crate::error::TrainError;
use crate::planning::{check_budgets, decoder_of, directories_of, free_of, shape_of};
use crate::resident::Held;

/// How long ranks are waited for at the start.
const LIMIT: Duration = Duration::from_secs(60);
/// The same where it is known that nothing comes of it.
const SHORT: Duration = Duration::from_secs(5);
/// How often it is looked whether this process was asked something.
const LOOK: Duration = Duration::from_millis(100);

/// What a launcher says of this process: one of several ranks, on one host or spread evenly over several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which rank, of how many.
    pub world: World,
    /// How many hosts they are on.
    pub hosts: usize,
    /// Which of this host's ranks it is.
    local: usize,
    /// Of several hosts: where they meet.
    far: Option<Rendezvous>,
    /// What all ranks of the launch know it by, and no other launch.
    pub name: String,
}

impl Launch {
    /// Whether a run can be made on so many hosts.
    ///
    /// # Errors
    /// What it cannot have there.
    pub fn allows(run: &Run, hosts: u32) -> Result<(), String> {
        of_hosts(run, hosts)
    }

    /// Comes together with the other ranks. `run` is what this one is to do, or why it cannot: then nobody does.
    ///
    /// # Errors
    /// Ranks that do not come, or that have another run or version: the same error on all.
    pub fn meet(&self, run: Result<&Run, String>) -> Result<Met, TrainError> {
        let patience = patience();
        let run = run.and_then(|run| {
            of_hosts(run, self.hosts as u32)?;
            patience.as_ref().map_err(ToString::to_string)?;
            let gpu = gpu_of(run, self.local).map_err(|e| e.to_string())?;
            Ok((run, gpu))
        });
        let version = version();
        let own = match &run {
            Ok((run, gpu)) => {
                let gpu = gpu.as_ref().map(|gpu| json!([gpu.name(), gpu.bus()]));
                // Ranks are dealt to hosts in order, so a rank's host follows from its number.
                let host = json!([
                    self.hosts,
                    self.world.rank - self.local.min(self.world.rank)
                ]);
                json!({ "version": version, "run": run, "gpu": gpu, "host": host })
            }
            Err(why) => json!({ "version": version, "error": why }),
        };
        let meeting = Meeting {
            far: self.far.clone(),
            name: self.name.clone(),
            world: self.world,
            limit: if run.is_ok() { LIMIT } else { SHORT },
            patience: patience.unwrap_or(SHORT),
        };
        let hello = own.to_string();
        let judge = |others: &[Vec<u8>]| {
            let gpu = match &run {
                Ok((_, gpu)) => gpu,
                Err(why) => return Err(format!("rank 0: {why}")),
            };
            let others = others.iter();
            let others = others.map(|other| serde_json::from_slice(other).unwrap_or_default());
            let all: Vec<Value> = std::iter::once(own.clone()).chain(others).collect();
            for (rank, other) in all.iter().enumerate().skip(1) {
                agree(rank, &own, other)?;
            }
            on_hosts(&all)?;
            apart(&all)?;
            match gpu {
                None => Ok(Vec::new()),
                Some(_) => NcclComm::id().map_err(|e| format!("rank 0: {e}")),
            }
        };
        let party = Arc::new(meeting.meet(hello.as_bytes(), judge)?);
        let gpu = run.ok().and_then(|(_, gpu)| gpu);
        let of_host = self.world.size / self.hosts;
        Ok(Met {
            party,
            gpu,
            of_host,
        })
    }
}

/// Refuses what a run cannot have on so many hosts.
///
/// # Errors
/// The key, and what to do.
pub fn of_hosts(run: &Run, hosts: u32) -> Result<(), String> {
    if hosts > 1 && run.checkpoint.durable {
        let why = "checkpoint.durable: a durable run on several hosts is not supported; save checkpoints instead";
        return Err(why.to_owned());
    }
    Ok(())
}

/// Ranks that have come together, as this process has them.
#[derive(Clone, Debug)]
pub struct Met {
    /// All of them.
    pub party: Arc<Party>,
    /// This rank's GPU; none: the CPU device.
    gpu: Option<Gpu>,
    /// How many ranks each host has.
    of_host: usize,
}

/// The GPU of a rank; none where its run is for the CPU device. A launcher that gives each process one GPU shows it
/// that one alone, another shows all of them: then each rank of a host has its own by its number there.
fn gpu_of(run: &Run, local: usize) -> Result<Option<Gpu>, CudaError> {
    let open = || match Gpu::open(local as u32) {
        Err(CudaError::Ordinal { have: 1, .. }) => Gpu::open(0),
        opened => opened,
    };
    match run.device {
        config::Device::Cpu => Ok(None),
        config::Device::Cuda => open().map(Some),
        config::Device::Auto => match open() {
            Err(CudaError::NoDevice(_) | CudaError::TooOld { .. }) => Ok(None),
            opened => opened.map(Some),
        },
    }
}

/// Refuses two ranks on one GPU, and GPUs that are not alike.
fn apart(all: &[Value]) -> Result<(), String> {
    for (rank, own) in all.iter().enumerate() {
        let (first, gpu) = (&all[0]["gpu"], &own["gpu"]);
        if first[0] != gpu[0] {
            let of = |v: &Value| v[0].as_str().unwrap_or("none").to_owned();
            let (gpu, first) = (of(gpu), of(first));
            return Err(format!("rank {rank} has as GPU: {gpu}, rank 0: {first}"));
        }
        let same = |other: &Value| {
            !gpu.is_null() && other["gpu"][1] == gpu[1] && other["host"] == own["host"]
        };
        if let Some(other) = all[..rank].iter().position(same) {
            return Err(format!(
                "ranks {other} and {rank} have the same GPU ({}): each needs its own",
                gpu[1].as_str().unwrap_or_default()
            ));
        }
    }
    Ok(())
}

/// The version of this program, and by a hash of its file which build of it: two builds of one version may compute
/// other bits, and have other calls for each other.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let hash = || {
        let mut hash = blake3::Hasher::new();
        hash.update_reader(std::fs::File::open("/proc/self/exe")?)?;
        Ok::<_, std::io::Error>(hash.finalize())
    };
    match hash() {
        Ok(hash) => format!("{version} (build {})", &hash.to_hex()[..12]),
        Err(_) => version.to_owned(),
    }
}

/// Refuses ranks that are not dealt to hosts in order, as many to each. What each says is the number of hosts, and the
/// first rank of its own.
fn on_hosts(all: &[Value]) -> Result<(), String> {
    let hosts = all[0]["host"][0].as_u64().unwrap_or(1);
    let each = (all.len() as u64 / hosts.max(1)).max(1);
    for (rank, own) in all.iter().enumerate() {
        let said = own["host"][0].as_u64().unwrap_or(1);
        if said != hosts {
            return Err(format!(
                "rank {rank} was started on one of {said} hosts, rank 0 on one of {hosts}"
            ));
        }
        let first = rank as u64 / each * each;
        if hosts > 1 && own["host"][1].as_u64() != Some(first) {
            return Err(format!(
                "rank {rank} is not where it is with {each} ranks on each host, one host after the other: start as many on \
                 each (of srun: --ntasks-per-node={each} --distribution=block)"
            ));
        }
    }
    Ok(())
}

/// Whether another rank is to do what the first one is.
fn agree(rank: usize, own: &Value, other: &Value) -> Result<(), String> {
    if own["version"] != other["version"] {
        let of = |v: &Value| {
            v["version"]
                .as_str()
                .unwrap_or("of another kind")
                .to_owned()
        };
        return Err(format!(
            "rank {rank} is lowtide {}, rank 0 lowtide {}",
            of(other),
            of(own)
        ));
    }
    if let Some(why) = other["error"].as_str() {
        return Err(format!("rank {rank}: {why}"));
    }
    match differs("", &own["run"], &other["run"]) {
        None => Ok(()),
        Some((key, a, b)) => Err(format!(
            "ranks have different runs: '{key}' is {b} on rank {rank}, {a} on rank 0"
        )),
    }
}

/// The first key whose values differ.
fn differs(key: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let none = Value::Null;
        return a.keys().chain(b.keys()).find_map(|k| {
            let of = |v: &serde_json::Map<String, Value>| v.get(k).unwrap_or(&none).clone();
            let below = if key.is_empty() {
                k.clone()
            } else {
                format!("{key}.{k}")
            };
            differs(&below, &of(a), &of(b))
        });
    }
    (a != b).then(|| (key.to_owned(), a.to_string(), b.to_string()))
}

impl Met {
    /// What tells the others of a signal. It keeps none of them waiting for this process's end.
    #[must_use]
    pub fn farewell(&self) -> Farewell {
        Farewell(Arc::downgrade(&self.party))
    }
}

/// Tells the other ranks' processes of a signal that ends this one at once; nobody where they have parted.
#[derive(Clone, Debug)]
pub struct Farewell(Weak<Party>);

impl Farewell {
    /// Tells them. It may take seconds where one of them does not take it.
    pub fn say(&self, signal: i32, name: &str) {
        if let Some(party) = self.0.upgrade() {
            party.end_by(signal, name);
        }
    }
}

/// The first rank's way to the others.
#[derive(Clone, Debug)]
pub struct Others {
    group: Group,
    gpu: Option<Gpu>,
}

impl Others {
    /// All others of the party that this process is the first of.
    ///
    /// # Errors
    /// GPUs that cannot be connected; a rank that has ended.
    pub(crate) fn of(met: &Met, requests: &Requests) -> Result<Self, TrainError> {
        let requests = requests.clone();
        met.party.hear(move |ask| match ask {
            Ask::Stop(signal) => requests.stop_by(signal),
            Ask::Save => requests.save(),
        });
        Ok(Self {
            group: Group::processes(&met.party, met.gpu.as_ref(), met.of_host)
                .map_err(unconnected)?,
            gpu: met.gpu.clone(),
        })
    }

    /// The first rank's GPU; none: the CPU device.
    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }

    /// The run's ranks; this process has the first of them.
    pub(crate) fn group(&self) -> Group {
        self.group.clone()
    }

    /// Ends the processes of the other ranks; `signal`: what ended the run before its last step.
    pub(crate) fn end(&self, signal: Option<i32>) {
        let there = self.group.there.iter();
        there.for_each(|remote| remote.end(signal));
    }
}

/// Host memory of the other ranks' processes on this host.
pub(crate) fn held_by_others(device: &Device) -> Vec<Held> {
    let there = device.group.iter().flat_map(|group| {
        let near = group.near(usize::MAX);
        group
            .there
            .iter()
            .filter(move |remote| remote.rank() < near)
    });
    let of = |remote: &Arc<Remote>| {
        // A process that is gone holds nothing; the next call to it reports why.
        let [now, most]: [u64; 2] = remote.ask(json!("memory")).unwrap_or_default();
        Held {
            now: Bytes(now),
            most: Bytes(most),
        }
    };
    there.map(of).collect()
}

/// What is free and what there is of the GPU that has least free, of those of the other ranks' processes.
pub(crate) fn least_of_others(device: &Device) -> Result<Option<(Bytes, Bytes)>, TrainError> {
    let there = device.group.iter().flat_map(|group| &group.there);
    let mut least: Option<(Bytes, Bytes)> = None;
    for remote in there {
        let memory = remote.ask(json!("device memory"))?;
        least = Some(least.map_or(memory, |least| least.min(memory)));
    }
    Ok(least)
}

/// Refuses ranks that would compute attention by other kernels than the first one, as where a host lacks cuDNN.
pub(crate) fn same_attention(device: &Device, group: &Group) -> Result<(), TrainError> {
    let own = attention_of(device);
    for remote in &group.there {
        let other: String = remote.ask(json!("attention"))?;
        attention_is(remote.rank(), own, &other).map_err(MeetError::Refused)?;
    }
    Ok(())
}

/// Who computes a rank's attention, for people.
fn attention_of(device: &Device) -> &'static str {
    match device.target.attention {
        Engine::Own => "own kernels",
        Engine::Cudnn => "cuDNN",
    }
}

/// Whether another rank computes attention as the first one does.
fn attention_is(rank: usize, own: &str, other: &str) -> Result<(), String> {
    match own == other {
        true => Ok(()),
        false => Err(format!(
            "rank {rank} would compute attention by {other}, rank 0 by {own}: the GPU libraries of their hosts differ"
        )),
    }
}

/// What ranks exchange, measured by all at once.
pub(crate) fn net_times(group: &Group, work: RankWork) -> Result<NetTimes, TrainError> {
    std::thread::scope(|scope| {
        let ask = |remote: &Arc<Remote>| {
            let remote = Arc::clone(remote);
            scope.spawn(move || remote.ask::<NetTimes>(json!("net")))
        };
        let others: Vec<_> = group.there.iter().map(ask).collect();
        let mut all = NetTimes::of(&group.gpus, &group.comms, work)?;
        for other in others {
            let end = other.join();
            let other = end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            all = all.max(&other);
        }
        Ok(all)
    })
}

/// Makes the GPUs of other ranks' processes compute products as the first one does.
pub(crate) fn tell_choices(
    group: &Group,
    choices: &BTreeMap<String, Vec<u64>>,
) -> Result<(), TrainError> {
    for remote in &group.there {
        remote.ask::<Value>(json!({ "products": choices }))?;
    }
    Ok(())
}

/// Why ranks have no way to each other.
pub(crate) fn unconnected(e: CommError) -> TrainError {
    match e {
        CommError::Cuda(e) => TrainError::Cuda(e),
        source => TrainError::Exec(ExecError::Ranks {
            task: "connecting GPUs".to_owned(),
            source,
        }),
    }
}

/// Does a rank's part of a run whose first rank is another process, until that one says that all is done. What this
/// process is asked is passed on to it. Returns the signal that ended the run before its last step, if one did: what
/// came to this process alone may have come too late.
///
/// # Errors
/// What went wrong here; that another rank has stopped, with why.
pub fn follow(run: &Run, met: &Met, requests: &Requests) -> Result<Option<i32>, TrainError> {
    let (party, gpu) = (&met.party, met.gpu.as_ref());
    let work = || {
        let device = device::of_rank(run, &shape_of(run)?, gpu)?;
        check_budgets(run, &device)?;
        let decoder = decoder_of(run, run.batch(), device.target)?;
        let comm: Arc<dyn Comm> = way(party, gpu).map_err(unconnected)?;
        let gpus: Vec<Gpu> = gpu.cloned().into_iter().collect();
        requests.guard();
        let over = Arc::new(AtomicBool::new(false));
        let passing = {
            let (over, party, requests) = (Arc::clone(&over), Arc::clone(party), requests.clone());
            std::thread::spawn(move || pass_on(&over, &party, &requests))
        };
        let comms = [Arc::clone(&comm)];
        let mut ask = |what: Value| match what.as_str() {
            Some("net") => {
                let times = NetTimes::of(&gpus, &comms, work_of(run)).map_err(|e| e.to_string())?;
                Ok(json!(times))
            }
            Some("attention") => Ok(json!(attention_of(&device))),
            Some("memory") => {
                let held = Held::now();
                Ok(json!([held.now, held.most]))
            }
            Some("device memory") => {
                let gpu = gpu.ok_or("the CPU device has none of its own")?;
                Ok(json!(free_of(gpu).map_err(|e| e.to_string())?))
            }
            _ => {
                let choices = serde_json::from_value(what["products"].clone());
                let (Some(gpu), Ok(choices)) = (gpu, choices) else {
                    return Err(format!("{what} is not known here"));
                };
                gpu.set_choices(&choices).map_err(|e| e.to_string())?;
                Ok(Value::Null)
            }
        };
        let dirs = directories_of(run);
        let served = serve(party, &decoder, (&comm, gpu, &dirs), &mut ask);
        over.store(true, Ordering::Relaxed);
        // It ends by itself, and nothing hangs on it.
        let _ = passing.join();
        Ok(served?)
    };
    let done: Result<Option<i32>, TrainError> = work();
    if let Err(e) = &done {
        party.stop(&e.to_string());
    }
    done
}

/// Tells the first rank what this process is asked, while it serves.
fn pass_on(over: &AtomicBool, party: &Party, requests: &Requests) {
    let mut told = false;
    while !over.load(Ordering::Relaxed) {
        if requests.take_save() {
            party.ask(Ask::Save);
        }
        if requests.stopping() && !std::mem::replace(&mut told, true) {
            party.ask(Ask::Stop(requests.stopped_by().unwrap_or(0)));
        }
        std::thread::sleep(LOOK);
    }
}

impl From<MeetError> for TrainError {
    fn from(e: MeetError) -> Self {
        Self::Meet(e)
    }
}

pub(crate) use environment::patience;

mod environment;
#[cfg(test)]
mod tests;
