//! A state that is read while steps go on is that of a run which stopped for it, byte for byte, however slow the
//! reader; and steps with a reader give the numbers of those without.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::{batch, checked, choice, decoder_on, devices, hyper, llama, open, quick_on};
use lowtide_device::cuda::Gpu;
use lowtide_model::Decoder;
use lowtide_planner::{Clip, Plan, Processor, Tier};
use lowtide_session::{Ready, Session, SessionOptions};
use lowtide_tiers::DirectFile;
use lowtide_trainer::TrainError;
use lowtide_trainer::inside::Folder;
use lowtide_trainer::inside::checkpoint::{Sink, StagingPlan, Writer, write_out, write_state};
use lowtide_units::Bytes;
use lowtide_workload::Dtype;

const ACCUMULATE: u32 = 2;
const ENOSPC: i32 = 28;

/// A file that takes its time, and nothing more behind so many writes.
struct Slow {
    file: DirectFile,
    pause: Duration,
    writes: AtomicUsize,
    most: usize,
}

impl Sink for Slow {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        std::thread::sleep(self.pause);
        if self.writes.fetch_add(1, Ordering::Relaxed) >= self.most {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        Sink::write(&self.file, bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        // It is read by this process, and gone then.
        Ok(())
    }
}

/// A run of four steps, with what it is asked to do behind the second.
struct Case<'a> {
    gpu: Option<&'a Gpu>,
    d: Arc<Decoder>,
    plan: Arc<Plan>,
    clip: Clip,
}

impl Case<'_> {
    fn open(&self) -> Session {
        let options = SessionOptions {
            snapshots: true,
            ..quick_on(self.gpu, false)
        };
        open(&self.d, &self.plan, self.clip, options)
    }

    /// Two steps to begin with, or two more.
    fn steps(&self, session: &mut Session, from: u64) -> Vec<u64> {
        let mut norms = Vec::new();
        for step in from..from + 2 {
            let data = session.submit(batch(step, ACCUMULATE), hyper(step));
            let outcome = session.outcome(&data.expect("submitted"));
            norms.push(outcome.expect("a step").norm.to_bits());
        }
        norms
    }

    fn end(&self, session: &mut Session) -> u64 {
        session.drain().expect("drained");
        let homes = session.homes().expect("staging");
        homes.fingerprint().expect("read").0
    }

    /// Writes behind the second step while the others go on. What came of it, how long steps waited, and what those of
    /// the run gave.
    fn beside(
        &self,
        file: &Path,
        (pause, most): (Duration, usize),
    ) -> (Result<usize, TrainError>, Duration, (Vec<u64>, u64)) {
        let mut session = self.open();
        let mut norms = self.steps(&mut session, 1);
        session.settle().expect("settled");
        let snapshot = session.snapshot().expect("a snapshot");
        let held_up = snapshot.held_up();
        let staging = StagingPlan {
            windows: Bytes::MIB * 8,
            reading: Bytes::ZERO,
            pinned: true,
            threads: 2,
        };
        let mut staging = staging.reserve(self.gpu).expect("memory");
        let stop = AtomicBool::new(false);
        let written_out = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let make = |header: &[u8], bytes: u64| {
                    let made = DirectFile::create(file, bytes)?;
                    made.write(header, 0)?;
                    Ok(Slow {
                        file: made,
                        pause,
                        writes: AtomicUsize::new(0),
                        most,
                    })
                };
                let done = write_out(&snapshot, &mut staging, file, make, &stop);
                drop(snapshot);
                done.map(|sums| sums.len())
            });
            norms.extend(self.steps(&mut session, 3));
            session.drain().expect("drained");
            writer.join().expect("no panic")
        });
        let state = self.end(&mut session);
        (written_out, held_up.time(), (norms, state))
    }

    /// The same of a run that stops and writes.
    fn stopped(&self, file: &Path) -> (usize, (Vec<u64>, u64)) {
        let mut session = self.open();
        let mut norms = self.steps(&mut session, 1);
        session.drain().expect("drained");
        let homes = session.homes().expect("staging");
        let sums = write_state(file, file, self.d.workload(), &homes).expect("written");
        drop(homes);
        norms.extend(self.steps(&mut session, 3));
        let state = self.end(&mut session);
        (sums.len(), (norms, state))
    }
}

#[test]
fn a_state_that_is_read_beside_steps_is_that_of_a_run_that_stopped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (want, found) = (dir.path().join("want"), dir.path().join("found"));
    for gpu in devices() {
        let gpu = gpu.as_ref();
        let d = decoder_on(gpu, &llama(3, true), Dtype::Bf16, ACCUMULATE);
        let mut longest = Duration::ZERO;
        for (i, (weights, optimizer)) in [
            (Tier::Device, Tier::Device),
            (Tier::Device, Tier::Host),
            (Tier::Host, Tier::Host),
            (Tier::Host, Tier::Disk),
            (Tier::Disk, Tier::Disk),
        ]
        .into_iter()
        .enumerate()
        {
            let mut c = choice(&d, weights, optimizer, Tier::Host);
            if i == 2 {
                // State that comes and goes.
                c.update.fill(Processor::Device);
            }
            let clips = [Clip::Exact, Clip::Previous];
            // Where nothing waits for a norm the state is complete at once.
            for clip in clips.into_iter().take(1 + i % 2) {
                let case = Case {
                    gpu,
                    d: Arc::clone(&d),
                    plan: checked(&d, &c, clip),
                    clip,
                };
                let (arrays, numbers) = case.stopped(&want);
                // Once as fast as it goes, once slower than the steps.
                for pause in [0, 15].map(Duration::from_millis) {
                    let name = format!("{weights} {optimizer} {clip:?} {pause:?} on {gpu:?}");
                    let (sums, waited, beside) = case.beside(&found, (pause, usize::MAX));
                    assert_eq!(sums.expect("written"), arrays, "{name}");
                    assert_eq!(beside, numbers, "{name}");
                    let same = std::fs::read(&want).unwrap() == std::fs::read(&found).unwrap();
                    assert!(same, "{name}: other bytes");
                    longest = longest.max(waited);
                }
            }
        }
        assert!(
            longest > Duration::from_millis(5),
            "steps waited {longest:?}"
        );
    }
}

#[test]
fn a_full_disk_behind_steps_ends_in_its_error_and_holds_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let d = decoder_on(None, &llama(3, true), Dtype::Bf16, ACCUMULATE);
    let c = choice(&d, Tier::Host, Tier::Host, Tier::Host);
    let case = Case {
        gpu: None,
        d: Arc::clone(&d),
        plan: checked(&d, &c, Clip::Exact),
        clip: Clip::Exact,
    };
    let (_, numbers) = case.stopped(&dir.path().join("want"));
    for most in 0..3 {
        let (end, _, beside) = case.beside(&dir.path().join("full"), (Duration::ZERO, most));
        match end {
            Err(TrainError::File { path, what }) => {
                assert!(path.ends_with("full") && what.contains("space"), "{what}");
            }
            other => panic!("{other:?} behind {most} writes"),
        }
        assert_eq!(beside, numbers);
    }
}

#[test]
fn a_reader_begins_under_the_rounds_behind_the_update() {
    const ROUNDS: u32 = 64;
    let d = decoder_on(None, &llama(3, true), Dtype::Bf16, ROUNDS);
    let mut c = choice(&d, Tier::Host, Tier::Host, Tier::Host);
    c.round = 1;
    let plan = checked(&d, &c, Clip::Exact);
    assert!(!plan.rounds().one());
    let options = SessionOptions {
        snapshots: true,
        ..quick_on(None, false)
    };
    let mut session = open(&d, &plan, Clip::Exact, options);
    let first = session.submit(batch(1, ROUNDS), hyper(1));
    session.outcome(&first.expect("submitted")).expect("a step");
    session.settle().expect("settled");
    let snapshot = session.snapshot().expect("a snapshot");
    let begin = Instant::now();
    let (read, submitted) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for &piece in snapshot.order() {
                while snapshot.ready(piece).expect("no device") != Ready::Yes {
                    std::thread::sleep(Duration::from_micros(100));
                }
                snapshot.release(piece);
            }
            begin.elapsed()
        });
        let data = session.submit(batch(2, ROUNDS), hyper(2));
        let submitted = begin.elapsed();
        session.outcome(&data.expect("submitted")).expect("a step");
        (reader.join().expect("no panic"), submitted)
    });
    // The update is in the first of the rounds.
    assert!(
        read < submitted / 2,
        "read after {read:?}, all rounds submitted after {submitted:?}"
    );
}

/// As a run in rounds writes: begun before the update is submitted. One without an update ends when asked to.
#[test]
fn a_writer_that_begins_ahead_of_the_update_writes_its_state_or_ends() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let want = dir.path().join("want");
    let d = decoder_on(None, &llama(3, true), Dtype::Bf16, ACCUMULATE);
    let mut c = choice(&d, Tier::Host, Tier::Host, Tier::Host);
    c.round = 1;
    let case = Case {
        gpu: None,
        d: Arc::clone(&d),
        plan: checked(&d, &c, Clip::Exact),
        clip: Clip::Exact,
    };
    let (_, numbers) = case.stopped(&want);
    let mut session = case.open();
    let mut norms = case.steps(&mut session, 1);
    let begin = |session: &mut Session| {
        session.settle().expect("settled");
        let snapshot = session.snapshot().expect("a snapshot");
        let staging = StagingPlan {
            windows: Bytes::MIB * 8,
            reading: Bytes::ZERO,
            pinned: false,
            threads: 2,
        };
        let staging = staging.reserve(None).expect("memory");
        let folder = Folder::open(dir.path()).expect("opened");
        let writer = Writer::start(snapshot, staging, folder).expect("a thread");
        assert!(!writer.is_under_way());
        writer
    };
    let stopped = begin(&mut session);
    stopped.stop();
    let (_, end) = stopped.join();
    let (_, _, done) = end.expect("no panic");
    assert!(done.is_err());
    let writer = begin(&mut session);
    norms.extend(case.steps(&mut session, 3));
    assert!(writer.is_under_way());
    let (_, _, done) = writer.join().1.expect("no panic");
    done.expect("written");
    let found = std::fs::read(dir.path().join("state.safetensors")).expect("read");
    assert!(std::fs::read(&want).expect("read") == found, "other bytes");
    assert_eq!((norms, case.end(&mut session)), numbers);
}
