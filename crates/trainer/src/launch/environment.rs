//! What the environment of a process says of the launcher that has started it.

use std::time::Duration;

use lowtide_device::comm::{Rendezvous, World};

use super::{Launch, RANKS};
use crate::error::TrainError;

/// Slurm's numbers of steps that are none: the batch script's own, among others.
const NO_STEP: u32 = 0xffff_fff0;

/// Where rank 0 waits for ranks of other hosts when a launcher names no port.
pub(super) const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// A variable with the port at which rank 0 waits for ranks of other hosts.
const PORT: &str = "LOWTIDE_PORT";
/// A variable with the seconds that a rank waits for another one.
const LIMIT: &str = "LOWTIDE_RANK_LIMIT";
/// How long a rank waits for another one, and at most: half of the watchdog's time.
const PATIENCE: u64 = 150;

/// How long a rank waits for another one: in a collective, while GPUs are connected and measured, and for the answer of
/// its process.
///
/// # Errors
/// The environment asks for a time that cannot be.
pub(crate) fn patience() -> Result<Duration, TrainError> {
    patience_of(std::env::var(LIMIT).ok().as_deref())
}

/// What [`LIMIT`] asks for.
pub(super) fn patience_of(asked: Option<&str>) -> Result<Duration, TrainError> {
    let Some(asked) = asked else {
        return Ok(Duration::from_secs(PATIENCE));
    };
    match asked.trim().parse() {
        Ok(seconds @ 1..=PATIENCE) => Ok(Duration::from_secs(seconds)),
        _ => Err(TrainError::RankLimit {
            name: LIMIT,
            value: asked.to_owned(),
            most: PATIENCE,
        }),
    }
}

/// A variable that is a number.
fn number(name: &str, value: &str) -> Result<usize, TrainError> {
    value.trim().parse().map_err(|_| {
        TrainError::Launch(format!(
            "{name} is '{value}', which is no rank or number of them"
        ))
    })
}

/// Whether there is no other rank.
///
/// # Errors
/// A rank that so many do not have.
fn is_alone(world: World) -> Result<bool, TrainError> {
    let World { rank, size } = world;
    match rank < size {
        true => Ok(size == 1),
        false => Err(TrainError::Launch(format!(
            "the environment says rank {rank} of {size} (ranks count from 0)"
        ))),
    }
}

impl Launch {
    /// What the environment says, read by `var`; none where there is no launcher, or one rank alone.
    ///
    /// # Errors
    /// [`TrainError::Launch`]: hosts with unlike numbers of ranks, and an environment that does not say all.
    pub fn found(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TrainError> {
        let both = (var("RANK"), var("WORLD_SIZE"));
        let found = match both {
            (Some(rank), Some(size)) => Self::by_torchrun(&var, (&rank, &size))?,
            _ => Self::by_slurm(&var)?,
        };
        match found.as_ref().map(|launch| launch.world) {
            // Before anything is reserved for each of them. Another wrong number is an error when they meet.
            Some(World { size, .. }) if size > RANKS => Err(TrainError::Launch(format!(
                "the environment says {size} ranks, but at most {RANKS} train together"
            ))),
            _ => Ok(found),
        }
    }

    fn by_torchrun(
        var: &impl Fn(&str) -> Option<String>,
        (rank, size): (&str, &str),
    ) -> Result<Option<Self>, TrainError> {
        let world = World {
            rank: number("RANK", rank)?,
            size: number("WORLD_SIZE", size)?,
        };
        if is_alone(world)? {
            return Ok(None);
        }
        let here = var("LOCAL_WORLD_SIZE").zip(var("LOCAL_RANK"));
        let Some((here, local)) = here else {
            return Err(TrainError::Launch(format!(
                "RANK and WORLD_SIZE say rank {rank} of {size}, but LOCAL_RANK and LOCAL_WORLD_SIZE are not set: how many \
                 of them are on this host is unknown"
            )));
        };
        let here = number("LOCAL_WORLD_SIZE", &here)?;
        let hosts = even("LOCAL_WORLD_SIZE", world.size, here)?;
        let Some(port) = var("MASTER_PORT") else {
            return Err(TrainError::Launch(
                "RANK and WORLD_SIZE are set, but MASTER_PORT is not: launches of one host are told apart by it".to_owned(),
            ));
        };
        let of = |name| var(name).unwrap_or_default();
        let rest = [
            "MASTER_ADDR",
            "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_RESTART_COUNT",
        ]
        .map(of);
        let local = match hosts {
            1 => world.rank,
            _ => number("LOCAL_RANK", &local)?,
        };
        let far = match hosts {
            1 => None,
            _ => Some(Rendezvous {
                address: needed(var, "MASTER_ADDR")?,
                port: port_behind(var, &port)?,
            }),
        };
        Ok(Some(Self {
            world,
            hosts,
            local,
            far,
            name: named(&format!("{port} {}", rest.join(" "))),
        }))
    }

    fn by_slurm(var: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TrainError> {
        // In a batch script itself these are set, too, but it is no step and no rank.
        let step = var("SLURM_STEP_ID").and_then(|s| s.parse::<u32>().ok());
        let (Some(step), Some(rank)) = (step.filter(|&s| s < NO_STEP), var("SLURM_PROCID")) else {
            return Ok(None);
        };
        let of = |step: &str, job: &str| var(step).or_else(|| var(job));
        let Some(size) = of("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") else {
            return Ok(None);
        };
        let world = World {
            rank: number("SLURM_PROCID", &rank)?,
            size: number("SLURM_NTASKS", &size)?,
        };
        if is_alone(world)? {
            return Ok(None);
        }
        let hosts = of("SLURM_STEP_NUM_NODES", "SLURM_NNODES");
        let hosts = hosts.map_or(Ok(1), |n| number("SLURM_NNODES", &n))?;
        let job = var("SLURM_JOB_ID").unwrap_or_default();
        let name = named(&format!("slurm {job} {step}"));
        if hosts <= 1 {
            return Ok(Some(Self {
                world,
                hosts: 1,
                local: world.rank,
                far: None,
                name,
            }));
        }
        if !world.size.is_multiple_of(hosts) {
            return Err(uneven(&format!("SLURM_NNODES is {hosts}"), world.size));
        }
        let address = match var("MASTER_ADDR") {
            Some(address) => address,
            None => {
                let nodes = of("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST").unwrap_or_default();
                first_host(&nodes).ok_or_else(|| {
                    TrainError::Launch(format!(
                        "SLURM_JOB_NODELIST is '{nodes}', which names no first host: set MASTER_ADDR to rank 0's"
                    ))
                })?
            }
        };
        let port = match var("MASTER_PORT") {
            Some(port) => port_behind(var, &port)?,
            None => port_of(var)?.unwrap_or_else(|| {
                let number = name
                    .bytes()
                    .fold(0u32, |n, b| n.wrapping_mul(31) + u32::from(b));
                PORTS.start + (number % (PORTS.end - PORTS.start) as u32) as u16
            }),
        };
        Ok(Some(Self {
            world,
            hosts,
            local: number("SLURM_LOCALID", &needed(var, "SLURM_LOCALID")?)?,
            far: Some(Rendezvous { address, port }),
            name,
        }))
    }
}

/// A short name for what a launch is known by.
fn named(by: &str) -> String {
    let hash = by.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A variable that ranks of several hosts need.
fn needed(var: &impl Fn(&str) -> Option<String>, name: &str) -> Result<String, TrainError> {
    let value = var(name).filter(|v| !v.is_empty());
    value.ok_or_else(|| {
        TrainError::Launch(format!(
            "ranks of several hosts were started, but {name} is not set"
        ))
    })
}

/// The port that was asked for.
fn port_of(var: &impl Fn(&str) -> Option<String>) -> Result<Option<u16>, TrainError> {
    var(PORT).map(|port| parsed(PORT, &port)).transpose()
}

fn parsed(name: &str, port: &str) -> Result<u16, TrainError> {
    let parsed = port.trim().parse::<u16>().ok().filter(|&n| n > 0);
    parsed.ok_or_else(|| TrainError::Launch(format!("{name} is '{port}', which is no port")))
}

/// The port that was asked for, or the one behind the launcher's own, at which torchrun itself may wait.
fn port_behind(var: &impl Fn(&str) -> Option<String>, port: &str) -> Result<u16, TrainError> {
    if let Some(asked) = port_of(var)? {
        return Ok(asked);
    }
    let port = parsed("MASTER_PORT", port)?;
    port.checked_add(1).ok_or_else(|| {
        TrainError::Launch(format!(
            "MASTER_PORT is {port}, and no port is behind it: set {PORT}"
        ))
    })
}

/// The first name of a list of hosts as Slurm writes it: `a7,b[01-03]`, `node[008,011-013]-ib`.
pub(super) fn first_host(nodes: &str) -> Option<String> {
    let first = |text: &str, ends: &[char]| -> Option<String> {
        let name = text.split(ends).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    };
    match (nodes.find('['), nodes.find(',')) {
        (Some(open), comma) if comma.is_none_or(|comma| open < comma) => {
            let (prefix, rest) = (&nodes[..open], &nodes[open + 1..]);
            let (inside, behind) = rest.split_once(']')?;
            let number = first(inside, &[',', '-'])?;
            let suffix = behind.split(',').next().unwrap_or_default();
            Some(format!("{prefix}{number}{suffix}"))
        }
        _ => first(nodes, &[',']),
    }
}

/// Over how many hosts ranks are spread that have so many here.
fn even(name: &str, size: usize, here: usize) -> Result<usize, TrainError> {
    match here > 0 && size.is_multiple_of(here) {
        true => Ok(size / here),
        false => Err(uneven(&format!("{name} is {here}"), size)),
    }
}

fn uneven(what: &str, size: usize) -> TrainError {
    TrainError::Launch(format!(
        "{what}, and there are {size} ranks: every host must have as many of them"
    ))
}
