//! Disks on real files: round trips, what opening refuses, and what is left behind.

use std::path::PathBuf;

use lowtide_tiers::{
    ALIGN, Arena, Backend, Checksums, Disk, DiskConfig, Fill, Kind, Open, Request, TierError,
    process,
};
use lowtide_units::Bytes;

use crate::{Memory, extent, noise, read, write};

struct Dirs(Vec<tempfile::TempDir>);

impl Dirs {
    fn new(n: usize) -> Self {
        Self((0..n).map(|_| tempfile::tempdir().unwrap()).collect())
    }

    fn config(&self, weights: &[f64]) -> DiskConfig {
        let dirs = self.0.iter().map(|dir| dir.path().to_owned());
        let mut config = DiskConfig::new(dirs.zip(weights.iter().copied()));
        config.block = Bytes::KIB * 64;
        config.stripe = Bytes::KIB * 128;
        config
    }

    fn state(&self, i: usize) -> PathBuf {
        self.0[i].path().join("lowtide-state.bin")
    }
}

const TOTAL: u64 = 8 << 20;
/// Where in a state file the drive's bytes begin.
const DATA: u64 = 2 << 20;

#[track_caller]
fn check_round_trip(weights: &[f64], backend: Backend, direct: bool) {
    let dirs = Dirs::new(weights.len());
    let host = Arena::new(Bytes(4 << 20), Fill::Poison).unwrap();
    let mut config = dirs.config(weights);
    (config.backend, config.direct) = (backend, direct);
    let disk = Disk::open(&config.fit(Bytes(TOTAL)).unwrap(), Some(&host)).unwrap();
    let image = noise(weights.len() as u64, TOTAL);
    write(&disk, 0, &image).unwrap();
    // Either side of the ends of blocks, stripes and periods, and all of it.
    for (offset, bytes) in [
        (0, ALIGN),
        (60 << 10, 8 << 10),
        (124 << 10, 8 << 10),
        (64 << 10, 64 << 10),
        (4 << 10, 1 << 20),
        ((8 << 20) - ALIGN, ALIGN),
        (0, TOTAL),
    ] {
        let want = &image[offset as usize..(offset + bytes) as usize];
        assert!(
            read(&disk, offset, bytes).unwrap() == want,
            "{offset}+{bytes}"
        );
    }
    // From the registered arena too.
    let range = host.range(0, 4 << 20).unwrap();
    let (kind, extent) = (Kind::Read, extent(1 << 20, 4 << 20));
    // SAFETY: the memory is not used before the ticket is done.
    let ticket = unsafe {
        disk.submit(Request {
            kind,
            extent,
            memory: range.clone(),
            deadline: 0,
        })
    };
    ticket.wait().unwrap();
    // SAFETY: the only request on it is done.
    assert!(unsafe { range.as_slice() } == &image[1 << 20..5 << 20]);
    let times = ticket.times().unwrap();
    assert!(times.submitted <= times.started && times.started <= times.finished);
    assert_eq!(disk.counters().written, Bytes(TOTAL));
    disk.sync().unwrap();
    drop(disk);
    (0..weights.len()).for_each(|i| assert!(!dirs.state(i).exists()));
}

#[test]
fn what_was_written_is_read() {
    for weights in [&[1.0][..], &[3.0, 1.0], &[2.0, 1.0, 0.5]] {
        for backend in [Backend::Auto, Backend::Threads] {
            check_round_trip(weights, backend, true);
            check_round_trip(weights, backend, false);
        }
    }
}

#[test]
fn every_drive_takes_its_share() {
    let dirs = Dirs::new(3);
    let disk = Disk::open(
        &dirs.config(&[3.0, 2.0, 1.0]).fit(Bytes(96 << 20)).unwrap(),
        None,
    );
    let disk = disk.unwrap();
    assert_eq!(disk.paths().count(), 3);
    let sizes = [0, 1, 2].map(|i| dirs.state(i).metadata().unwrap().len() - DATA);
    assert_eq!(sizes.iter().sum::<u64>(), 96 << 20);
    for (size, share) in sizes.iter().zip([0.5, 1.0 / 3.0, 1.0 / 6.0]) {
        let got = *size as f64 / (96 << 20) as f64;
        assert!(
            (got - share).abs() < 0.02,
            "{got} of the bytes, weight {share}"
        );
    }
}

#[test]
fn the_description_tells_backend_and_reason() {
    let dirs = Dirs::new(1);
    let describe = |backend, direct| {
        let mut config = dirs.config(&[1.0]);
        (config.backend, config.direct) = (backend, direct);
        Disk::open(&config.fit(Bytes(TOTAL)).unwrap(), None)
            .unwrap()
            .describe()
            .to_owned()
    };
    let threads = describe(Backend::Threads, true);
    assert!(threads.contains("8 threads (as asked)"), "{threads}");
    let auto = describe(Backend::Auto, true);
    assert!(
        auto.contains("io_uring"),
        "used, or refused with its name: {auto}"
    );
    let buffered = describe(Backend::Auto, false);
    assert!(
        buffered.contains("buffered (O_DIRECT not asked for)"),
        "{buffered}"
    );
}

#[test]
fn space_that_is_not_there_is_refused_at_the_start() {
    let dirs = Dirs::new(2);
    let config = dirs.config(&[1.0, 1.0]).fit(Bytes(1 << 55)).unwrap();
    let error = Disk::open(&config, None).unwrap_err();
    let TierError::Space { path, need, free } = &error else {
        panic!("{error}")
    };
    assert_eq!(*path, dirs.state(0));
    assert_eq!(need.0, (1 << 54) + DATA);
    let now = process::disk_free(dirs.0[0].path()).unwrap();
    assert!(
        free.0.abs_diff(now.0) < now.0 / 2 + (1 << 30),
        "{free} reported, {now} there"
    );
    assert!(
        !dirs.state(0).exists() && !dirs.state(1).exists(),
        "a failed start left a file"
    );
}

#[test]
fn a_directory_has_one_disk() {
    let dirs = Dirs::new(2);
    let config = dirs.config(&[1.0, 1.0]).fit(Bytes(TOTAL)).unwrap();
    let disk = Disk::open(&config, None).unwrap();
    write(&disk, 0, &noise(1, TOTAL)).unwrap();
    let mut second = dirs.config(&[1.0, 1.0]).fit(Bytes(TOTAL)).unwrap();
    second.drives.remove(0);
    let error = Disk::open(&second, None).unwrap_err();
    assert_eq!(
        error,
        TierError::InUse {
            path: dirs.0[1].path().to_owned(),
            holder: Some(std::process::id()),
        }
    );
    assert!(
        read(&disk, 0, TOTAL).unwrap() == noise(1, TOTAL),
        "the refused opening did harm"
    );
    drop(disk);
    Disk::open(&second, None).unwrap();
}

#[test]
fn impossible_settings_are_typed() {
    let dirs = Dirs::new(1);
    let good = || dirs.config(&[1.0]);
    type Change = fn(&mut DiskConfig);
    let cases: [(&str, Change); 8] = [
        ("drives", |c| c.drives.clear()),
        ("weight", |c| c.drives[0].weight = 0.0),
        ("weight", |c| c.drives[0].weight = f64::NAN),
        ("depth", |c| c.depth = 0),
        ("block", |c| c.block = Bytes(5000)),
        ("block", |c| c.block = Bytes::GIB * 2),
        ("stripe", |c| c.stripe = Bytes::ZERO),
        ("verify_reads", |c| c.verify_reads = Some(Bytes(512))),
    ];
    for (want, change) in cases {
        let mut config = good();
        change(&mut config);
        let error = Disk::open(&config, None).unwrap_err();
        assert!(
            matches!(error, TierError::Setting { key, .. } if key == want),
            "{error}"
        );
    }
    let missing = DiskConfig::new([(dirs.0[0].path().join("nowhere"), 1.0)]);
    let error = Disk::open(&missing, None).unwrap_err();
    assert!(
        matches!(
            error,
            TierError::File {
                action: "opening",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn impossible_requests_are_typed() {
    let dirs = Dirs::new(1);
    let mut config = dirs.config(&[1.0]);
    config.verify_reads = Some(Bytes(8192));
    let disk = Disk::open(&config.fit(Bytes(TOTAL)).unwrap(), None).unwrap();
    let memory = Memory::new(1 << 20);
    let ask = |offset, bytes, at, len| {
        let (kind, memory) = (Kind::Write, memory.range(at, len));
        // SAFETY: the memory is not used before the ticket is done.
        let ticket = unsafe {
            disk.submit(Request {
                kind,
                extent: extent(offset, bytes),
                memory,
                deadline: 0,
            })
        };
        assert!(ticket.is_done());
        ticket.wait().unwrap_err()
    };
    let off = |what, value, need| TierError::Misaligned { what, value, need };
    assert_eq!(ask(4096, 8192, 0, 8192), off("extent offset", 4096, 8192));
    assert_eq!(ask(0, 1000, 0, 1000), off("extent length", 1000, 8192));
    let error = ask(0, 8192, 256, 8192);
    assert!(matches!(
        error,
        TierError::Misaligned {
            what: "memory address",
            need: 4096,
            ..
        }
    ));
    let lengths = TierError::Lengths {
        extent: extent(0, 8192),
        memory: 4096,
    };
    assert_eq!(ask(0, 8192, 0, 4096), lengths);
    let out = TierError::OutOfDisk {
        extent: extent(TOTAL, 8192),
        have: TOTAL,
    };
    assert_eq!(ask(TOTAL, 8192, 0, 8192), out);
    assert!(matches!(
        ask(u64::MAX - 8191, 8192, 0, 8192),
        TierError::OutOfDisk { .. }
    ));
    assert_eq!(disk.counters().written, Bytes::ZERO);
    // Nothing to move is no error.
    assert!(read(&disk, TOTAL, 0).unwrap().is_empty());
}

#[test]
fn a_kept_run_is_read_and_checked_by_a_later_one() {
    let dirs = Dirs::new(2);
    let mut config = dirs.config(&[2.0, 1.0]).fit(Bytes(TOTAL)).unwrap();
    (config.keep, config.run, config.verify_reads) = (true, 77, Some(Bytes(ALIGN)));
    let disk = Disk::open(&config, None).unwrap();
    let image = noise(5, TOTAL);
    write(&disk, 0, &image).unwrap();
    disk.sync().unwrap();
    let saved = disk.checksums().unwrap().to_bytes();
    drop(disk);

    let fresh = Disk::open(&config, None).unwrap_err();
    assert_eq!(
        fresh,
        TierError::Kept {
            path: dirs.state(0),
            run: 77
        }
    );
    config.open = Open::Existing;
    let disk = Disk::open(&config, None).unwrap();
    disk.load_checksums(&Checksums::from_bytes(&saved).unwrap())
        .unwrap();
    assert!(read(&disk, 0, TOTAL).unwrap() == image);
    drop(disk);

    // One byte of the second drive's file changes behind our back.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dirs.state(1))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x55; 64], DATA + 70_000).unwrap();
    file.sync_all().unwrap();
    let disk = Disk::open(&config, None).unwrap();
    disk.load_checksums(&Checksums::from_bytes(&saved).unwrap())
        .unwrap();
    let error = read(&disk, 0, TOTAL).unwrap_err();
    let TierError::Corrupt { path, offset, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (path, *offset),
        (&dirs.state(1), DATA + 70_000 / ALIGN * ALIGN)
    );
    drop(disk);

    config.run = 78;
    assert!(matches!(
        Disk::open(&config, None),
        Err(TierError::OtherDisk { .. })
    ));
}

#[test]
fn dropping_the_disk_finishes_what_was_submitted() {
    let dirs = Dirs::new(2);
    for backend in [Backend::Auto, Backend::Threads] {
        let mut config = dirs.config(&[1.0, 1.0]).fit(Bytes(TOTAL)).unwrap();
        config.backend = backend;
        let disk = Disk::open(&config, None).unwrap();
        let memory = Memory::new(TOTAL);
        let (kind, all) = (Kind::Write, memory.range(0, TOTAL));
        // SAFETY: the memory is not used before the ticket is done.
        let ticket = unsafe {
            disk.submit(Request {
                kind,
                extent: extent(0, TOTAL),
                memory: all,
                deadline: 0,
            })
        };
        drop(disk);
        assert!(ticket.is_done());
        ticket.wait().unwrap();
    }
}

#[test]
fn a_file_cut_short_under_a_running_disk_is_typed() {
    for backend in [Backend::Auto, Backend::Threads] {
        let dirs = Dirs::new(1);
        let mut config = dirs.config(&[1.0]).fit(Bytes(TOTAL)).unwrap();
        config.backend = backend;
        let disk = Disk::open(&config, None).unwrap();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(dirs.state(0))
            .unwrap();
        file.set_len(DATA + (100 << 10)).unwrap();
        assert!(read(&disk, 0, 100 << 10).unwrap().iter().all(|&b| b == 0));
        let error = read(&disk, 64 << 10, 64 << 10).unwrap_err();
        let TierError::Stalled {
            action: "read",
            extent: left,
            path,
            offset,
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((*left, path), (extent(100 << 10, 28 << 10), &dirs.state(0)));
        assert_eq!(*offset, DATA + (100 << 10));
    }
}
