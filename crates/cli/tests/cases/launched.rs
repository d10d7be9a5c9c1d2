//! Ranks that a launcher starts as processes of their own: the same bits as ranks of one process, and what one of them
//! meets ends all.
//!
//! One file because its tests start ranks and compare their runs with the same few functions.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::scratch::{Ended, Scratch, example_rates};

const RUN: &str = r"
model: {path: m}
device: cpu
threads: 2
budget: {device: 200MiB, host: 1GiB, disk: 64MiB}
plan: {optimizer: disk, machine: MACHINE}
data: {train: train.jsonl, eval: eval.jsonl}
train: {steps: 6, micro_batch: 1, seq: 64, accumulate: 4, learning_rate: 0.01, schedule: constant}
eval: {every_steps: 3, batches: 2}
checkpoint: {every_steps: 2}
log: {trace: false, tensorboard: false, report: false}
output: out
";

/// What an end may take that comes of another process's: a second, and more for a machine that is busy.
const SOON: Duration = Duration::from_secs(10);

fn scratch() -> Scratch {
    let scratch = Scratch::bare();
    let machine = example_rates().display().to_string();
    scratch.write("run.yaml", RUN.replace("MACHINE", &machine));
    scratch
}

/// Launches on one machine differ by their port.
fn port() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{number}", std::process::id())
}

/// A rank as torchrun starts it.
fn by_torchrun(command: &mut Command, port: &str, rank: usize, size: usize) {
    command
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", size.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("LOCAL_WORLD_SIZE", size.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port)
        .env("TORCHELASTIC_RUN_ID", "none")
        .env("OMP_NUM_THREADS", "1");
}

/// A rank as srun starts it.
fn by_srun(command: &mut Command, port: &str, rank: usize, size: usize) {
    command
        .env("SLURM_JOB_ID", port)
        .env("SLURM_STEP_ID", "0")
        .env("SLURM_PROCID", rank.to_string())
        .env("SLURM_LOCALID", rank.to_string())
        .env("SLURM_NTASKS", size.to_string())
        .env("SLURM_NNODES", "1");
}

/// A rank that is running; none is left when a test fails.
struct Going(Option<Child>);

impl Drop for Going {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Going {
    fn start(mut command: Command) -> Self {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(Some(child.expect("the binary starts")))
    }

    fn id(&self) -> String {
        self.0.as_ref().expect("running").id().to_string()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.id()])
            .status();
        assert!(sent.expect("kill is there").success());
    }

    /// Waits for its first line; what it prints then is nobody's.
    fn speaks(&mut self) {
        let out = self.0.as_mut().expect("running").stdout.take();
        let mut out = BufReader::new(out.expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("text");
        assert!(!line.is_empty(), "it has ended");
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    }

    /// Whether it has ended within that time.
    fn ends_within(&mut self, limit: Duration) -> bool {
        let child = self.0.as_mut().expect("running");
        let begin = Instant::now();
        while child.try_wait().expect("a child").is_none() {
            if begin.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Waits for its end.
    fn output(mut self) -> Output {
        let child = self.0.take().expect("running");
        child.wait_with_output().expect("a child")
    }

    fn end(self) -> Ended {
        Ended::of(&self.output())
    }
}

/// `lowtide train run.yaml` with these settings, as a rank.
fn rank(scratch: &Scratch, sets: &[&str]) -> Command {
    let mut args = vec!["train", "run.yaml"];
    for set in sets {
        args.extend(["--set", set]);
    }
    scratch.command(&args)
}

/// Starts so many ranks as torchrun does.
fn start(scratch: &Scratch, size: usize, sets: &[&str]) -> Vec<Going> {
    let port = port();
    let of = |r| {
        let mut command = rank(scratch, sets);
        by_torchrun(&mut command, &port, r, size);
        Going::start(command)
    };
    (0..size).map(of).collect()
}

/// Runs so many ranks to their ends.
fn launch(scratch: &Scratch, size: usize, sets: &[&str]) -> Vec<Ended> {
    let all = start(scratch, size, sets).into_iter();
    all.map(Going::end).collect()
}

fn model(scratch: &Scratch, output: &str) -> Vec<u8> {
    std::fs::read(scratch.at(output).join("model/model.safetensors")).expect("a model")
}

/// Losses and norms of all steps and evaluations.
fn numbers(scratch: &Scratch, output: &str) -> Vec<String> {
    let text = scratch.read(&format!("{output}/metrics.jsonl"));
    let of = |line: &str| {
        let v: Value = serde_json::from_str(line).expect("JSON");
        format!(
            "{} {} {} {}",
            v["step"], v["loss"], v["grad_norm"], v["eval_loss"]
        )
    };
    text.lines().map(of).collect()
}

#[test]
fn ranks_of_a_launcher_give_the_bits_of_ranks_of_one_process() {
    let scratch = scratch();
    let one = scratch.run(&["train", "run.yaml", "--gpus", "2", "--set", "output=one"]);
    one.fine();
    let want = (model(&scratch, "one"), numbers(&scratch, "one"));
    let all = launch(&scratch, 2, &["output=torchrun"]);
    all.iter().for_each(|ended| _ = ended.fine());
    assert!(
        all[0].text().contains("each a process of its own"),
        "{}",
        all[0].text()
    );
    assert_eq!(all[1].text(), "", "the first one tells");
    let got = |output| (model(&scratch, output), numbers(&scratch, output));
    assert!(got("torchrun") == want);
    let port = port();
    let of = |r| {
        let mut command = rank(&scratch, &["output=srun", "plan.optimizer=host"]);
        by_srun(&mut command, &port, r, 2);
        Going::start(command)
    };
    let all: Vec<Going> = (0..2).map(of).collect();
    all.into_iter().for_each(|rank| _ = rank.end().fine());
    assert!(got("srun") == want, "wherever tensors live");
    // A checkpoint of one process goes on as ranks of a launcher, of another number too.
    let resume = "checkpoint.resume=one/checkpoints/step-00000004";
    let all = launch(&scratch, 2, &[resume, "output=resumed"]);
    all.iter().for_each(|ended| _ = ended.fine());
    assert!(model(&scratch, "resumed") == want.0);
    let sets = [resume, "checkpoint.change=gpus", "output=four"];
    let all = launch(&scratch, 4, &sets);
    all.iter().for_each(|ended| _ = ended.fine());
    // State files and the folders of ranks are gone.
    for output in ["torchrun", "resumed", "four"] {
        let names = std::fs::read_dir(scratch.at(output)).expect("a folder");
        let names: Vec<_> = names.map(|e| e.expect("readable").file_name()).collect();
        let litter = names.iter().any(|n| n.to_string_lossy().contains("rank"));
        assert!(!litter, "{names:?}");
    }
}

#[test]
fn ranks_that_disagree_all_say_the_same() {
    let scratch = scratch();
    let two = |sets: [&[&str]; 2], sizes: [usize; 2]| -> Vec<Ended> {
        let port = port();
        let of = |r: usize| {
            let mut command = rank(&scratch, sets[r]);
            by_torchrun(&mut command, &port, r, sizes[r]);
            Going::start(command)
        };
        let all: Vec<Going> = (0..2).map(of).collect();
        all.into_iter().map(Going::end).collect()
    };
    let told = two([&[], &["train.learning_rate=0.02"]], [2, 2]);
    for ended in &told {
        ended.refused(&["'train.learning_rate' is 0.02 on rank 1, 0.01 on rank 0"]);
    }
    for size in [3, 4] {
        for ended in &two([&[], &[]], [2, size]) {
            ended.refused(&[
                &format!("rank 1 was started as one of {size} ranks"),
                "one of 2",
            ]);
        }
    }
    let told = two([&[], &["train.nothing=1"]], [2, 2]);
    told[1].refused(&["error: --set train.nothing=1", "nothing"]);
    told[0].refused(&["rank 1: ", "train.nothing"]);
    // Another build of the same version: a file that differs.
    let port = port();
    let other = scratch.at("other-lowtide");
    let mut program = std::fs::read(rank(&scratch, &[]).get_program()).expect("readable");
    program.push(0);
    std::fs::write(&other, program).expect("written");
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&other, all).expect("set");
    let of = |r: usize| {
        let plain = rank(&scratch, &[]);
        let mut command = Command::new([plain.get_program(), other.as_os_str()][r]);
        command.args(plain.get_args()).current_dir(scratch.path());
        command.env("LOWTIDE_CACHE", scratch.cache());
        by_torchrun(&mut command, &port, r, 2);
        Going::start(command)
    };
    let all = [of(0), of(1)];
    for ended in all.map(Going::end) {
        ended.refused(&["rank 1 is lowtide 0", ", rank 0 lowtide 0"]);
        let builds: Vec<&str> = ended.err.split("(build ").skip(1).collect();
        assert_eq!(builds.len(), 2, "{}", ended.err);
        assert_ne!(builds[0][..12], builds[1][..12], "{}", ended.err);
    }
    let told = two([&["gpus=4"], &["gpus=4"]], [2, 2]);
    told[0].refused(&["gpus is 4", "2 ranks were started"]);
    // What the first one finds later, too, ends all.
    let much = &["budget.device=1MiB"][..];
    let told = two([much, much], [2, 2]);
    told[0].refused(&["does not fit"]);
    told[1].refused(&["rank 0 has stopped: does not fit"]);
    assert!(!scratch.at("out").exists());
}

#[test]
fn what_a_launcher_cannot_have_is_refused() {
    let scratch = scratch();
    let with = |args: &[&str], vars: &[(&str, &str)]| {
        let mut command = scratch.command(args);
        by_torchrun(&mut command, "1", 0, 2);
        command.envs(vars.iter().copied());
        Ended::of(&command.output().expect("the binary starts"))
    };
    let train = ["train", "run.yaml"];
    with(&train, &[("LOCAL_WORLD_SIZE", "3")]).refused(&["LOCAL_WORLD_SIZE is 3", "--gpus"]);
    with(&train, &[("RANK", "x")]).refused(&["RANK is 'x'"]);
    with(&["verify", "run.yaml"], &[]).refused(&["verify", "rank 0 of 2"]);
    let plan = ["plan", "run.yaml", "--json", "--brief"];
    with(&plan, &[]).fine();
    // One alone is no launch.
    with(&plan, &[("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1")]).fine();
}

/// A rank whose files may not be so long as its state is: its own error, with what to do, and all end.
#[test]
fn the_error_of_one_rank_ends_all_and_is_told_first() {
    let scratch = scratch();
    let port = port();
    let of = |r: usize| {
        let plain = rank(&scratch, &[]);
        let mut command = Command::new("sh");
        let limit = if r == 1 { "ulimit -f 64; " } else { "" };
        command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]);
        command.arg(plain.get_program()).args(plain.get_args());
        command
            .current_dir(scratch.path())
            .env("LOWTIDE_CACHE", scratch.cache());
        by_torchrun(&mut command, &port, r, 2);
        Going::start(command)
    };
    let begin = Instant::now();
    let all: Vec<Going> = (0..2).map(of).collect();
    let told: Vec<Ended> = all.into_iter().map(Going::end).collect();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    told[1].refused(&["rank-1", "File too large"]);
    told[0].refused(&["rank 1", "rank-1", "File too large"]);
    let first = told[0].err.lines().find(|l| l.starts_with("error"));
    assert!(
        first.is_some_and(|l| l.contains("File too large")),
        "{}",
        told[0].err
    );
}

/// Whoever of them is asked, the first one saves, and the same command goes on to the same bits.
#[test]
fn a_signal_to_any_rank_saves_and_ends_all() {
    let scratch = scratch();
    let whole = [
        "train.steps=24",
        "checkpoint.every_steps=0",
        "eval.every_steps=0",
    ];
    let with = |output: &'static str| [&whole[..], &[output]].concat();
    launch(&scratch, 2, &with("output=whole"))[0].fine();
    for asked in [0, 1] {
        let output = ["output=first", "output=second"][asked];
        let name = &output["output=".len()..];
        let all = start(&scratch, 2, &with(output));
        let metrics = scratch.at(name).join("metrics.jsonl");
        let begin = Instant::now();
        while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(240), "no step");
            std::thread::sleep(Duration::from_millis(2));
        }
        // All of them end as the run does, whichever of them the signal came to.
        all[asked].signal(["TERM", "INT"][asked]);
        let told: Vec<Ended> = all.into_iter().map(Going::end).collect();
        let codes: Vec<_> = told.iter().map(|ended| ended.code).collect();
        let want = [[Some(143); 2], [Some(130); 2]][asked];
        assert_eq!(codes, want, "{} {}", told[0].text(), told[1].text());
        let checkpoints = scratch.at(name).join("checkpoints");
        assert!(checkpoints.exists(), "{}", told[0].text());
        launch(&scratch, 2, &with(output))
            .iter()
            .for_each(|ended| _ = ended.fine());
        assert!(model(&scratch, name) == model(&scratch, "whole"));
    }
}

/// Before the first step nothing can be saved, and the signal ends whoever it comes to: the other one knows why.
#[test]
fn a_signal_before_the_first_step_ends_all_for_the_same_reason() {
    let scratch = scratch();
    // Rates are measured, which takes a while.
    for asked in [&[0][..], &[1], &[0, 1]] {
        let mut all = start(&scratch, 2, &["plan={optimizer: disk}"]);
        all[0].speaks();
        for &rank in asked {
            all[rank].signal("INT");
        }
        for (rank, ended) in all.into_iter().map(Going::end).enumerate() {
            assert_eq!(ended.code, Some(130), "rank {rank}: {}", ended.text());
            assert!(!ended.text().contains("want of memory"), "{}", ended.text());
        }
        assert!(!scratch.at("out/checkpoints").exists());
    }
}

/// Any of them is killed at random moments: the others end at once and say which it was, and the same command goes on
/// from the newest checkpoint, to the same bits. `LOWTIDE_KILLS` says how many (2 unless it is set), `LOWTIDE_SEED`
/// which.
#[test]
fn ranks_killed_at_random_moments_leave_the_same_bits() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
    };
    let kills = number("LOWTIDE_KILLS", 2);
    let mut dice = number("LOWTIDE_SEED", 0x5eed_0f15_0b17_ca5e) | 1;
    let mut draw = |n: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % n
    };
    let scratch = scratch();
    let begin = Instant::now();
    launch(&scratch, 2, &["output=whole"])[0].fine();
    let lasts = begin.elapsed().as_millis() as u64;
    let mut killed = 0;
    for round in 0.. {
        let output = format!("output=out-{round}");
        loop {
            let mut all = start(&scratch, 2, &[&output]);
            let (which, at) = (draw(2) as usize, draw(lasts));
            // Before that they have not come together, and wait for each other longer.
            all[0].speaks();
            std::thread::sleep(Duration::from_millis(at));
            all[which]
                .0
                .as_mut()
                .expect("running")
                .kill()
                .expect("sent");
            let at = Instant::now();
            let other = all.remove(1 - which).output();
            assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
            let own = all.remove(0).output();
            if own.status.success() && other.status.success() {
                break;
            }
            killed += u64::from(own.status.signal() == Some(9));
            let ended = Ended::of(&other);
            // One that was done when the other was killed has nothing to say.
            if !other.status.success() {
                ended.refused(&[&format!("the process of rank {which} has ended")]);
            } else if which == 0 {
                panic!("nobody told it to end: {}", ended.text());
            }
            if killed >= kills {
                break;
            }
        }
        launch(&scratch, 2, &[&output])
            .iter()
            .for_each(|ended| _ = ended.fine());
        let got = &output["output=".len()..];
        assert!(model(&scratch, got) == model(&scratch, "whole"), "{output}");
        assert_eq!(numbers(&scratch, got), numbers(&scratch, "whole"));
        // Folders that were made by who was killed, too.
        assert!(!scratch.at(got).join("disk").exists());
        if killed >= kills {
            break;
        }
    }
}

/// A rank whose process is stopped. The others wait for it so long as they are allowed to, and go on with it; who is
/// stopped for longer is named, and hears when it goes on that all have ended.
#[test]
fn a_rank_that_is_stopped_is_waited_for_and_then_named() {
    let scratch = scratch();
    let steps = ["train.steps=60", "log.every_steps=1", "eval.every_steps=0"];
    let with = |output: &'static str| [&steps[..], &[output]].concat();
    launch(&scratch, 2, &with("output=whole"))[0].fine();
    let start = |sets: &[&str], limit: &str| -> Vec<Going> {
        let port = port();
        let of = |r| {
            let mut command = rank(&scratch, sets);
            by_torchrun(&mut command, &port, r, 2);
            command.env("LOWTIDE_RANK_LIMIT", limit);
            Going::start(command)
        };
        (0..2).map(of).collect()
    };
    let under_way = |output: &str| {
        let begin = Instant::now();
        while recorded(&scratch, output) < 2 {
            assert!(begin.elapsed() < Duration::from_secs(120), "no step");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    // All of them, for longer than they wait for each other: nobody was missed.
    let all = start(&with("output=all"), "3");
    under_way("all");
    all.iter().for_each(|rank| rank.signal("STOP"));
    std::thread::sleep(Duration::from_secs(5));
    all.iter().for_each(|rank| rank.signal("CONT"));
    all.into_iter().for_each(|rank| _ = rank.end().fine());
    assert!(model(&scratch, "all") == model(&scratch, "whole"));
    for which in [0, 1] {
        let (short, long) = [
            ("output=short-0", "output=long-0"),
            ("output=short-1", "output=long-1"),
        ][which];
        let name = |output: &'static str| &output["output=".len()..];
        let all = start(&with(short), "60");
        under_way(name(short));
        all[which].signal("STOP");
        std::thread::sleep(Duration::from_secs(2));
        all[which].signal("CONT");
        let all: Vec<Ended> = all.into_iter().map(Going::end).collect();
        all.iter().for_each(|ended| _ = ended.fine());
        assert!(model(&scratch, name(short)) == model(&scratch, "whole"));

        let endless = [&with(long)[..], &["train.steps=20000"]].concat();
        let mut all = start(&endless, "3");
        under_way(name(long));
        all[which].signal("STOP");
        let at = Instant::now();
        let mut stopped = all.remove(which);
        let mut other = all.remove(0);
        assert!(other.ends_within(6 * SOON), "it waits for ever");
        let other = other.end();
        // In an exchange, or outside of one.
        let missing = [
            format!("process of rank {which} for 3 s"),
            format!("rank {which} did not come to collective"),
        ];
        let text = other.text();
        assert!(missing.iter().any(|what| text.contains(what)), "{text}");
        assert_ne!(other.code, Some(0), "{text}");
        assert!(at.elapsed() < 2 * SOON, "{text}");
        stopped.signal("CONT");
        assert!(stopped.ends_within(SOON), "it hears nothing");
        let stopped = stopped.end();
        // It hears of its own silence, in the other one's words.
        let text = stopped.text();
        assert!(missing.iter().any(|what| text.contains(what)), "{text}");
        assert_ne!(stopped.code, Some(0), "{text}");
    }
}

/// Steps that the metrics of a run tell of.
fn recorded(scratch: &Scratch, output: &str) -> usize {
    let path = scratch.at(output).join("metrics.jsonl");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|l| l.contains("\"loss\"")).count()
}

/// Of a durable run each process commits by itself; whichever is killed, they go on together from the last step that
/// all have committed, and only as many as there were.
#[test]
fn a_durable_run_of_processes_goes_on_from_its_last_step() {
    let scratch = scratch();
    let sets = |output: &'static str| {
        [
            output,
            "train.steps=30",
            "eval.every_steps=0",
            "checkpoint.every_steps=0",
            "log.every_steps=1",
        ]
    };
    let durable = |output| [&sets(output)[..], &["checkpoint.durable=true"]].concat();
    launch(&scratch, 2, &sets("output=whole"))[0].fine();
    let mut before = 0;
    for which in [1, 0] {
        let mut all = start(&scratch, 2, &durable("output=out"));
        let begin = Instant::now();
        while recorded(&scratch, "out") < before + 4 {
            assert!(begin.elapsed() < Duration::from_secs(120), "no step");
            std::thread::sleep(Duration::from_millis(1));
        }
        let killed = all.remove(which);
        killed.signal("KILL");
        let other = all.remove(0).end();
        other.refused(&[&format!("the process of rank {which} has ended")]);
        killed.output();
        before = recorded(&scratch, "out");
        assert!(before < 30, "killed too late");
    }
    // The shares of two ranks are not those of one or of four.
    for gpus in ["1", "4"] {
        let mut args = vec!["train", "run.yaml", "--gpus", gpus];
        for set in durable("output=out") {
            args.extend(["--set", set]);
        }
        scratch
            .run(&args)
            .refused(&["rank-1", "on 2 GPUs", "gpus: 2"]);
    }
    let ended = launch(&scratch, 2, &durable("output=out"));
    ended.iter().for_each(|ended| _ = ended.fine());
    let text = ended[0].text();
    let step = |n: usize| text.contains(&format!("after step {n}\n"));
    assert!(text.contains("went on from"), "{text}");
    assert!((before - 1..=before + 1).any(step), "{before}: {text}");
    assert!(model(&scratch, "out") == model(&scratch, "whole"));
    assert_eq!(numbers(&scratch, "out"), numbers(&scratch, "whole"));
}

/// A port of this machine that nobody has, as one behind the launcher's.
fn free_port() -> u16 {
    loop {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        if port > 1024 {
            return port - 1;
        }
    }
}

/// A rank as torchrun starts it on one of several hosts, which are all this machine.
fn on_host(command: &mut Command, port: u16, rank: usize, size: usize, here: usize) {
    by_torchrun(command, &port.to_string(), rank, size);
    command
        .env("LOCAL_RANK", (rank % here).to_string())
        .env("LOCAL_WORLD_SIZE", here.to_string())
        .env("GROUP_RANK", (rank / here).to_string());
}

/// Ranks of several hosts have the bits of as many ranks of one; each host has the budgets; what one meets ends all.
#[test]
fn ranks_of_several_hosts_give_the_bits_of_one_host() {
    let scratch = scratch();
    let start = |port: u16, (size, here): (usize, usize), sets: &[&str]| -> Vec<Going> {
        let of = |r| {
            let mut command = rank(&scratch, sets);
            on_host(&mut command, port, r, size, here);
            Going::start(command)
        };
        (0..size).map(of).collect()
    };
    let mut args = vec!["train", "run.yaml", "--gpus", "4"];
    args.extend(["--set", "output=one"]);
    scratch.run(&args).fine();
    let got = |output| (model(&scratch, output), numbers(&scratch, output));
    let all = start(free_port(), (4, 2), &["output=two"]);
    let all: Vec<Ended> = all.into_iter().map(Going::end).collect();
    all.iter().for_each(|ended| _ = ended.fine());
    let text = all[0].text();
    assert!(text.contains("2 on each of 2 hosts"), "{text}");
    assert!(got("two") == got("one"));

    let port = free_port();
    let of = |r: usize| {
        let mut command = rank(&scratch, &["output=srun"]);
        by_srun(&mut command, "77", r, 4);
        command
            .env("SLURM_NNODES", "4")
            .env("SLURM_LOCALID", "0")
            .env("MASTER_ADDR", "localhost")
            .env("LOWTIDE_PORT", port.to_string());
        Going::start(command)
    };
    let all: Vec<Going> = (0..4).map(of).collect();
    all.into_iter().for_each(|rank| _ = rank.end().fine());
    assert!(got("srun") == got("one"));

    // One that is killed ends those of the other host, too.
    let mut all = start(
        free_port(),
        (2, 1),
        &["output=killed", "train.steps=2000", "log.every_steps=1"],
    );
    let begin = Instant::now();
    while recorded(&scratch, "killed") < 2 {
        assert!(begin.elapsed() < Duration::from_secs(120), "no step");
        std::thread::sleep(Duration::from_millis(2));
    }
    all[1].signal("KILL");
    let at = Instant::now();
    let first = all.remove(0).end();
    first.refused(&["the process of rank 1 has ended"]);
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());

    // What cannot be is refused before anything is made.
    let ended = |all: Vec<Going>| -> Vec<Ended> { all.into_iter().map(Going::end).collect() };
    let durable = ["checkpoint.durable=true", "output=never"];
    let all = ended(start(free_port(), (2, 1), &durable));
    all[0].refused(&["checkpoint.durable", "several hosts"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port() - 1;
    let mut command = rank(&scratch, &["output=never"]);
    on_host(&mut command, port, 0, 2, 1);
    let first = Going::start(command).end();
    first.refused(&["cannot be met", "in use", "LOWTIDE_PORT"]);
    assert!(!scratch.at("never").exists());
}

/// Ranks whose processes each have a drive of their own by the same name, as on hosts of their own: what killed ranks
/// have left on any of them goes when the next start has loaded everything.
#[test]
fn every_host_gives_up_what_killed_ranks_have_left_there() {
    let scratch = scratch();
    let file = scratch.at("run.yaml").display().to_string();
    let drive = "budget.disk=[{dir: /proc/self/cwd/drive, size: 64MiB}]";
    let of = |host: usize, output: &str, sets: &[&str]| {
        let output = format!("output={}", scratch.at(output).display());
        let mut args = vec!["train", &file, "--set", drive, "--set", &output];
        for set in sets {
            args.extend(["--set", set]);
        }
        let mut command = scratch.command(&args);
        let folder = scratch.at(&format!("host-{host}"));
        std::fs::create_dir_all(folder.join("drive")).expect("a folder");
        command.current_dir(folder);
        command
    };
    let endless = ["train.steps=20000", "log.every_steps=1"];
    for host in [0, 1] {
        // Both of its ranks, of a run of that host alone.
        let port = port();
        let start = |r| {
            let mut command = of(host, "killed", &endless);
            by_torchrun(&mut command, &port, r, 2);
            Going::start(command)
        };
        let all = [start(0), start(1)];
        let begin = Instant::now();
        while recorded(&scratch, "killed") < 2 {
            assert!(begin.elapsed() < Duration::from_secs(120), "no step");
            std::thread::sleep(Duration::from_millis(2));
        }
        all.iter().for_each(|rank| rank.signal("KILL"));
        drop(all);
        std::fs::remove_dir_all(scratch.at("killed")).expect("its output");
    }
    let left = |host: usize| -> Vec<String> {
        let drive = scratch.at(&format!("host-{host}/drive"));
        let ranks = [0, 1].map(|rank| drive.join(format!("rank-{rank}")));
        let files = ranks.iter().filter_map(|dir| std::fs::read_dir(dir).ok());
        let files = files.flatten().map(|e| e.expect("readable").path());
        files.map(|path| path.display().to_string()).collect()
    };
    assert!([0, 1].iter().all(|&host| left(host).len() >= 2), "planted");
    let port = free_port();
    let start = |r| {
        let mut command = of(r, "next", &[]);
        on_host(&mut command, port, r, 2, 1);
        Going::start(command)
    };
    let all = [start(0), start(1)];
    all.into_iter().for_each(|rank| _ = rank.end().fine());
    assert_eq!((left(0), left(1)), (Vec::new(), Vec::new()));
}
