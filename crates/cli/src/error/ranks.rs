//! What to do about ranks that cannot continue together.

use lowtide_trainer::error::{CommError, MeetError};

use super::cuda_advice;

fn one(advice: &str) -> Vec<String> {
    vec![advice.to_owned()]
}

/// How to find out about a way between GPUs.
const WAYS: &str = "where GPUs exchange by NCCL (the line of the device says it), NCCL_DEBUG=INFO tells what NCCL does; \
                    where they copy, LOWTIDE_EXCHANGE=nccl takes the other way";

/// What to do about ranks that were at work.
pub fn advice(e: &CommError) -> Vec<String> {
    match e {
        CommError::Cuda(e) => cuda_advice(e),
        CommError::Missing { .. } | CommError::Unended { .. } => {
            one(&format!("a GPU or the way to it stands still: {WAYS}"))
        }
        CommError::Unconnected { .. } => one(
            "NCCL_DEBUG=INFO tells what NCCL does, NCCL_SOCKET_IFNAME which network it takes; between hosts it listens at \
             free ports, which a firewall must let it do",
        ),
        CommError::Library { .. } => one(
            "NCCL_DEBUG=INFO tells more; the newest checkpoint, if one was written, is whole, and the same command goes \
             on from it",
        ),
        CommError::Gone { .. } => one(
            "it was killed, perhaps by the system for want of memory (dmesg tells); the newest checkpoint, if one was \
             written, is whole, and the same command goes on from it",
        ),
        CommError::Silent { .. } => one(
            "it was stopped (a debugger, kill -STOP, a queue that suspends jobs), or its host or the network to it is gone; \
             the newest checkpoint, if one was written, is whole, and the same command goes on from it",
        ),
        CommError::Signalled { .. } => {
            one("the same command goes on from the newest checkpoint, if one was written")
        }
        CommError::Stopped { .. } => one(
            "what that rank has printed tells more; the newest checkpoint, if one was written, is whole",
        ),
        CommError::Way { .. } => one("unset it, or give it the value nccl"),
        CommError::Differs { .. } => Vec::new(),
    }
}

/// Whether a standstill is one of several ranks: then its tasks are named with them.
pub fn are_in(chain: &str) -> bool {
    chain.contains("rank ")
}

/// What to do about ranks whose lanes stand still, which on GPUs may be the way between them.
pub fn standstill_advice() -> Vec<String> {
    vec![
        format!(
            "where a lane waits in an exchange, a GPU or the way to it may stand still: {WAYS}"
        ),
        "otherwise this is a bug in lowtide: please report it with the command and its output"
            .to_owned(),
    ]
}

/// What to do about ranks that did not come together.
pub fn meeting_advice(e: &MeetError) -> Vec<String> {
    match e {
        MeetError::Missing { .. } => one(
            "what those ranks have printed tells why they ended; all must be started with the same MASTER_ADDR and \
             MASTER_PORT, on one host by the same user; between hosts every rank connects to rank 0's port and to \
             a free port of each other one before it, which a firewall must let it do",
        ),
        MeetError::Taken { .. } => one(
            "give each launch of this host a port of its own: torchrun --standalone, or --master-port",
        ),
        MeetError::Refused(_) => one(
            "start all ranks with the same run file, --set and program, and no more of them than there are GPUs",
        ),
        MeetError::Held { .. } => one("start the ranks again with another port or run id"),
        MeetError::Name { .. } => {
            one("set MASTER_ADDR to a name or an address of rank 0's host that every host knows")
        }
        MeetError::Port { .. } => one(
            "another process has that port: end it, or give all ranks a free port of rank 0's host as LOWTIDE_PORT",
        ),
        MeetError::Unreached { .. } => one(
            "is rank 0 on that host, and does no firewall keep that port shut? LOWTIDE_PORT names another one, for all ranks",
        ),
        MeetError::System { .. } => Vec::new(),
    }
}

/// What to do about a launcher's environment that cannot be followed.
pub fn launch_advice() -> Vec<String> {
    one(
        "--gpus N starts all ranks of one host in one process; to train without other ranks, unset RANK, WORLD_SIZE and \
         SLURM_PROCID",
    )
}

#[cfg(test)]
mod tests {
    use lowtide_trainer::error::{ExecError, TrainError};

    use super::super::help_of;

    #[test]
    fn a_standstill_of_several_ranks_may_be_the_way_between_them() {
        let help = |chain: &str| {
            let chain = chain.to_owned();
            let seconds = 300;
            help_of(&TrainError::Exec(ExecError::Stuck { seconds, chain })).join(" ")
        };
        let several = help("net runs rank 1: gather weight block 3");
        assert!(
            several.contains("NCCL_DEBUG") && several.contains("report"),
            "{several}"
        );
        let one = help("gpu waits with forward block 1 for h2d");
        assert!(
            !one.contains("NCCL") && one.contains("bug in lowtide"),
            "{one}"
        );
    }
}
