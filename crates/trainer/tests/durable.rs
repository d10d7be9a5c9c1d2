//! Two versions of weights and optimizer state: whatever is cut off, the committed one is whole.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::common::{batch, checked, choice, decoder, decoder_of_ranks, hyper, llama, quick, rule};
use lowtide_data::State;
use lowtide_model::{Decoder, random_init};
use lowtide_planner::{Clip, Pieces, Plan, Processor, Tier, Version};
use lowtide_session::{
    CommitRecord, DiskChoice, Mark, Session, SessionOptions, StepNumbers, rank_folder,
};
use lowtide_session::{SessionError, Totals};
use lowtide_tiers::{Committed, Extent, Faults, Open, RamConfig, RamDisk, TierError, committed};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, Optimizer};

const ACCUMULATE: u32 = 2;
const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

fn two_blocks() -> Arc<Decoder> {
    decoder(&llama(2, true), Dtype::Bf16, ACCUMULATE)
}

fn durable_plan(d: &Decoder, clip: Clip, weights: Tier, update: Processor) -> Arc<Plan> {
    let mut c = choice(d, weights, Tier::Disk, Tier::Disk);
    c.make_durable();
    c.update.fill(update);
    c.pieces = Pieces::Split(256);
    checked(d, &c, clip)
}

fn mark(step: u64) -> Mark {
    Mark {
        step,
        data: State {
            epoch: step / 3,
            position: step % 3,
        },
        tokens: 100 * step,
        loss_first: None,
        exact_match_before: Some(0.25f64.to_bits()),
        batch_tokens: 100,
        learning_rate: 1e-3f64.to_bits(),
        totals: Totals::default(),
    }
}

fn initialise(session: &mut Session, d: &Decoder) -> Result<(), SessionError> {
    session
        .homes()?
        .initialise(|p, range, out| -> Result<(), SessionError> {
            random_init(d.shape(), 7, p, range, out);
            Ok(())
        })
}

/// Loss and norm of each step, as bits.
type Shown = Vec<(u64, u64)>;

fn steps(
    session: &mut Session,
    which: std::ops::RangeInclusive<u64>,
) -> Result<Shown, SessionError> {
    let mut shown = Vec::new();
    let mut running = None;
    for step in which {
        let data = session.submit_marked(batch(step, ACCUMULATE), hyper(step), Some(mark(step)))?;
        if let Some(before) = running.replace(data) {
            let o = session.outcome(&before)?;
            shown.push((o.loss().to_bits(), o.norm.to_bits()));
        }
    }
    if let Some(last) = running {
        let o = session.outcome(&last)?;
        shown.push((o.loss().to_bits(), o.norm.to_bits()));
    }
    session.drain()?;
    Ok(shown)
}

fn fingerprint(session: &mut Session) -> u64 {
    session
        .homes()
        .expect("staging")
        .fingerprint()
        .expect("read")
        .0
}

fn record(found: &Committed) -> CommitRecord {
    serde_json::from_slice(&found.record).expect("a record of a marked step")
}

fn on_files(
    d: &Arc<Decoder>,
    plan: &Arc<Plan>,
    clip: Clip,
    dir: &Path,
    open: Open,
) -> Result<Session, SessionError> {
    let options = SessionOptions {
        disk: DiskChoice::Durable {
            drives: vec![(dir.join("a"), 1.0), (dir.join("b"), 2.0)],
            run: 7,
            open,
        },
        ..quick()
    };
    Session::open(Arc::clone(d), Arc::clone(plan), rule(clip), options)
}

/// A session that resumes from what is committed, and the step it is at.
fn go_on(d: &Arc<Decoder>, plan: &Arc<Plan>, clip: Clip, dir: &Path) -> (Session, u64) {
    let found = committed(&dir.join("a"))
        .expect("readable")
        .expect("committed");
    assert_eq!(found.run, 7);
    let mut session = on_files(d, plan, clip, dir, Open::Existing).expect("files are there");
    let found = session.resume().expect("a version is whole");
    let said = record(&found);
    session
        .restore_clip(said.clip.map(f64::from_bits))
        .expect("set");
    (session, said.mark.step)
}

#[test]
fn a_session_goes_on_from_its_files_in_another_placement() {
    let d = two_blocks();
    for (k, clip) in CLIPS.into_iter().enumerate() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = tempfile::tempdir().expect("a directory");
        let plans = [
            durable_plan(&d, clip, Tier::Disk, Processor::Host),
            durable_plan(&d, clip, Tier::Host, Processor::Device),
            durable_plan(&d, clip, Tier::Device, Processor::Device),
        ];
        let plan = |i: usize| &plans[(i + k) % 3];
        let mut unbroken = on_files(&d, plan(0), clip, whole.path(), Open::Create).expect("opens");
        initialise(&mut unbroken, &d).expect("written");
        let want = steps(&mut unbroken, 1..=9).expect("a run");
        let mut first = on_files(&d, plan(0), clip, dir.path(), Open::Create).expect("opens");
        initialise(&mut first, &d).expect("written");
        assert_eq!(committed(&dir.path().join("a")).expect("readable"), None);
        let mut got = steps(&mut first, 1..=2).expect("a run");
        drop(first);
        for (i, (from, to)) in [(3, 3), (4, 6), (7, 9)].into_iter().enumerate() {
            let (mut session, at) = go_on(&d, plan(i), clip, dir.path());
            assert_eq!(at, from - 1, "{clip:?}");
            got.extend(steps(&mut session, from..=to).expect("goes on"));
            if to == 9 {
                assert_eq!(
                    fingerprint(&mut session),
                    fingerprint(&mut unbroken),
                    "{clip:?}"
                );
            }
        }
        assert_eq!(got, want, "{clip:?}");
        // What the journal says.
        let said = record(
            &committed(&dir.path().join("a"))
                .expect("readable")
                .expect("there"),
        );
        let last = &want[8];
        assert_eq!(said.mark.step, 9);
        assert_eq!((said.mark.data, said.mark.tokens), (mark(9).data, 900));
        assert_eq!(said.mark.exact_match_before, mark(9).exact_match_before);
        assert_eq!(said.clip[1], last.1);
        let numbers = |step: u64| StepNumbers {
            step,
            loss: want[step as usize - 1].0,
            norm: want[step as usize - 1].1,
            learning_rate: mark(step).learning_rate,
            tokens: 100,
            skipped: false,
        };
        assert_eq!(said.steps, [numbers(8), numbers(9)]);
        // Nothing of it stays when it is not wanted any more.
        let (session, _) = go_on(&d, plan(0), clip, dir.path());
        session.discard_disk();
        drop(session);
        for drive in ["a", "b"] {
            let left = std::fs::read_dir(dir.path().join(drive))
                .expect("there")
                .count();
            assert_eq!(left, 0);
        }
    }
}

/// Overwrites bytes of a state file.
fn damage(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("a state file");
    file.write_all_at(bytes, at).expect("written");
}

#[test]
fn a_torn_record_or_a_torn_uncommitted_version_changes_nothing() {
    let d = two_blocks();
    for clip in CLIPS {
        let plan = durable_plan(&d, clip, Tier::Host, Processor::Host);
        let whole = tempfile::tempdir().expect("a directory");
        let mut unbroken = on_files(&d, &plan, clip, whole.path(), Open::Create).expect("opens");
        initialise(&mut unbroken, &d).expect("written");
        let want = steps(&mut unbroken, 1..=7).expect("a run");
        for (torn, last) in [(0, 5), (1, 4), (300, 5), (4000, 4)] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut first = on_files(&d, &plan, clip, dir.path(), Open::Create).expect("opens");
            initialise(&mut first, &d).expect("written");
            steps(&mut first, 1..=last).expect("a run");
            drop(first);
            // The power went in the middle of the last record.
            let a = dir.path().join("a/lowtide-state.bin");
            let sequence = committed(&dir.path().join("a"))
                .expect("readable")
                .expect("committed")
                .sequence;
            let place = 4096 * (1 + sequence % 2);
            damage(&a, place + torn, &vec![0x5a; 4096 - torn as usize]);
            // And of the writes before it only some arrived: the uncommitted version is noise.
            let (session, at) = go_on(&d, &plan, clip, dir.path());
            assert_eq!(at, last - 1, "{clip:?} torn at {torn}");
            let flipped = at % 2 == 1;
            drop(session);
            let next = plan.slots.pairs();
            let next = next.filter(|(_, s)| matches!(s.version, Some((Version::Next, _))));
            let mut noise = 0;
            for (i, s) in next {
                noise += scribble(dir.path(), plan.offset(i, flipped), s.bytes);
            }
            assert!(noise > 100_000, "{noise}");
            let (mut session, at) = go_on(&d, &plan, clip, dir.path());
            let got = steps(&mut session, at + 1..=7).expect("goes on");
            assert_eq!(got, want[at as usize..], "{clip:?} torn at {torn}");
            assert_eq!(fingerprint(&mut session), fingerprint(&mut unbroken));
        }
    }
}

/// Copies the folders of a rank's drives.
fn copy_rank(from: &Path, to: &Path, rank: usize) {
    for drive in ["a", "b"] {
        let folder = |dir: &Path| rank_folder(&dir.join(drive), rank);
        let (from, to) = (folder(from), folder(to));
        std::fs::create_dir_all(&to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("readable");
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}

/// Ranks that end together may have committed different steps: they go on from the one that both have, whichever is
/// behind; from two that are further apart than they can be, not at all.
#[test]
fn ranks_a_step_apart_go_on_from_the_older_one() {
    let many = (2, ACCUMULATE / 2);
    let d = decoder_of_ranks(
        None,
        &llama(2, true),
        Dtype::Bf16,
        Optimizer::default(),
        many,
    );
    for (clip, weights) in [(Clip::Exact, Tier::Host), (Clip::None, Tier::Device)] {
        let plan = durable_plan(&d, clip, weights, Processor::Host);
        let tmp = tempfile::tempdir().expect("a directory");
        let at = |name: &str| tmp.path().join(name);
        let mut unbroken = on_files(&d, &plan, clip, &at("whole"), Open::Create).expect("opens");
        initialise(&mut unbroken, &d).expect("written");
        let want = steps(&mut unbroken, 1..=7).expect("a run");
        let go_on = |dir: &Path| {
            let mut session = on_files(&d, &plan, clip, dir, Open::Existing).expect("files");
            let said = record(&session.resume()?);
            let words = said.clip.map(f64::from_bits);
            session.restore_clip(words).expect("set");
            Ok::<_, TierError>((session, said.mark.step))
        };
        // What is on disk behind each step.
        let mut session = on_files(&d, &plan, clip, &at("run"), Open::Create).expect("opens");
        initialise(&mut session, &d).expect("written");
        steps(&mut session, 1..=3).expect("a run");
        drop(session);
        for step in 3..=5 {
            for rank in 0..2 {
                copy_rank(&at("run"), &at(&format!("after-{step}")), rank);
            }
            let (mut session, before) = go_on(&at("run")).expect("whole");
            assert_eq!(before, step);
            steps(&mut session, step + 1..=step + 1).expect("goes on");
        }
        for (ahead, behind) in [(0, 1), (1, 0)] {
            let dir = at(&format!("apart-{ahead}"));
            copy_rank(&at("after-5"), &dir, ahead);
            copy_rank(&at("after-4"), &dir, behind);
            let (session, step) = go_on(&dir).expect("both have one");
            assert_eq!(step, 4, "{clip:?}");
            drop(session);
            // The step that only one has is gone with that.
            let dirs = [0, 1].map(|rank| rank_folder(&dir.join("a"), rank));
            let at_step = |dir| {
                record(&committed(dir).expect("readable").expect("there"))
                    .mark
                    .step
            };
            assert_eq!(dirs.each_ref().map(|dir| at_step(dir)), [4, 4]);
            let (mut session, _) = go_on(&dir).expect("as before");
            let got = steps(&mut session, 5..=7).expect("goes on");
            assert_eq!(got, want[4..], "{clip:?}, rank {ahead} ahead");
            assert_eq!(fingerprint(&mut session), fingerprint(&mut unbroken));
        }
        copy_rank(&at("after-5"), &at("far"), 0);
        copy_rank(&at("after-3"), &at("far"), 1);
        let error = go_on(&at("far")).err().expect("none that both have");
        let words = "up to steps 5, 3, and none that all have";
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Fills an extent of the two drives with noise, found through the tiers themselves.
fn scribble(dir: &Path, offset: u64, bytes: u64) -> u64 {
    use lowtide_tiers::{Block, Disk, DiskConfig, Fill, Kind};
    let drives = [(dir.join("a"), 1.0), (dir.join("b"), 2.0)];
    let config = DiskConfig {
        keep: true,
        run: 7,
        open: Open::Existing,
        ..DiskConfig::new(drives)
    };
    let disk =
        Disk::open(&config.fit(Bytes(offset + bytes)).expect("drives"), None).expect("there");
    let block = Block::new(Bytes(bytes), Fill::Poison).expect("memory");
    let extent = Extent { offset, bytes };
    let (_, written) = disk.start(Kind::Write, extent, block, 0).wait();
    written.expect("written");
    bytes
}

#[test]
fn a_session_needs_the_files_of_its_own_run() {
    let d = two_blocks();
    let plan = durable_plan(&d, Clip::Exact, Tier::Host, Processor::Host);
    let dir = tempfile::tempdir().expect("a directory");
    let mut first = on_files(&d, &plan, Clip::Exact, dir.path(), Open::Create).expect("opens");
    initialise(&mut first, &d).expect("written");
    steps(&mut first, 1..=1).expect("a run");
    drop(first);
    // Kept files are not begun anew by mistake.
    let again = on_files(&d, &plan, Clip::Exact, dir.path(), Open::Create);
    assert!(matches!(
        again.err(),
        Some(SessionError::Tier(TierError::Kept { run: 7, .. }))
    ));
    // A drive whose file is gone, or another's.
    damage(&dir.path().join("b/lowtide-state.bin"), 16, &[1; 16]);
    let other = on_files(&d, &plan, Clip::Exact, dir.path(), Open::Existing);
    assert!(matches!(
        other.err(),
        Some(SessionError::Tier(TierError::BadFile { .. }))
    ));
    std::fs::remove_file(dir.path().join("b/lowtide-state.bin")).expect("there");
    let gone = on_files(&d, &plan, Clip::Exact, dir.path(), Open::Existing);
    assert!(matches!(
        gone.err(),
        Some(SessionError::Tier(TierError::BadFile { .. }))
    ));
}

/// The bytes of every durable extent's version that is current after an even or odd number of
/// commits.
fn version_on(medium: &RamDisk, plan: &Plan, flipped: bool) -> Vec<Vec<u8>> {
    let current = plan.slots.pairs();
    let current = current.filter(|(_, s)| matches!(s.version, Some((Version::Current, _))));
    current
        .map(|(i, s)| {
            medium.peek(Extent {
                offset: plan.offset(i, flipped),
                bytes: s.bytes,
            })
        })
        .collect()
}

/// Wherever among its writes a run is cut off, the committed version is that of an unbroken run
/// after as many steps.
#[test]
fn a_run_cut_off_at_any_write_leaves_the_committed_version_whole() {
    const STEPS: u64 = 4;
    let d = two_blocks();
    for clip in CLIPS {
        let plan = durable_plan(&d, clip, Tier::Host, Processor::Host);
        let start = |faults: Faults| {
            let (disk, medium) = RamDisk::open(&RamConfig {
                weights: vec![1.0, 2.0],
                block: Bytes::KIB * 8,
                stripe: Bytes::KIB * 16,
                faults,
                ..RamConfig::new(plan.tier(Tier::Disk).planned_bytes)
            })
            .expect("memory for a disk");
            let options = SessionOptions {
                disk: DiskChoice::Open(disk),
                ..quick()
            };
            let mut session = Session::open(Arc::clone(&d), Arc::clone(&plan), rule(clip), options)
                .expect("a session");
            let begun = initialise(&mut session, &d);
            (session, medium, begun)
        };
        let wholes: Vec<_> = (0..=STEPS)
            .map(|n| {
                let (mut session, medium, begun) = start(Faults::default());
                begun.expect("written");
                steps(&mut session, 1..=n).expect("a run");
                let said = medium.committed();
                assert_eq!(said.map(|c| record(&c).mark.step), (n > 0).then_some(n));
                version_on(&medium, &plan, n % 2 == 1)
            })
            .collect();
        let mut seen = [0; STEPS as usize + 1];
        for n in (40..).step_by(11) {
            let faults = Faults {
                writes_until_full: Some(n),
                ..Faults::default()
            };
            let (mut session, medium, begun) = start(faults);
            if begun.is_err() {
                continue;
            }
            let ended = steps(&mut session, 1..=STEPS);
            drop(session);
            let at = medium.committed().map_or(0, |c| record(&c).mark.step);
            let flipped = at % 2 == 1;
            assert!(
                version_on(&medium, &plan, flipped) == wholes[at as usize],
                "{clip:?}: after step {at}, cut off after {n} writes a drive"
            );
            seen[at as usize] += 1;
            if ended.is_ok() {
                break;
            }
        }
        assert!(seen.iter().all(|&n| n > 0), "{clip:?}: {seen:?}");
    }
}
