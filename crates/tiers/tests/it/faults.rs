//! Each kind of fault ends in the right bytes or a typed error that names the place.

use std::path::PathBuf;
use std::time::Duration;

use lowtide_tiers::{
    ALIGN, ChosenFault, Disk, Fault, Faults, Kind, Os, RamConfig, RamDisk, TierError,
};
use lowtide_units::Bytes;

use crate::{extent, noise, read, write};

const TOTAL: u64 = 1 << 20;

fn disk(verify: bool, faults: Faults) -> (Disk, RamDisk) {
    let config = RamConfig {
        weights: vec![2.0, 1.0],
        verify_reads: verify.then_some(Bytes(ALIGN)),
        faults,
        ..RamConfig::new(Bytes(TOTAL))
    };
    RamDisk::open(&config).unwrap()
}

fn chosen(fault: Fault, offset: u64, kind: Option<Kind>, times: u32) -> Faults {
    let extent = extent(offset, ALIGN);
    let chosen = vec![ChosenFault {
        extent,
        kind,
        fault,
        times,
    }];
    Faults {
        chosen,
        ..Faults::default()
    }
}

#[test]
fn a_bad_place_names_itself_and_leaves_its_neighbours_alone() {
    // With weights 2 and 1 the second 64 KiB unit lies at the start of the second drive.
    let place = (64 << 10) + (20 << 10);
    let (disk, ram) = disk(
        false,
        chosen(Fault::IoError, place, Some(Kind::Read), u32::MAX),
    );
    let image = noise(1, TOTAL);
    write(&disk, 0, &image).unwrap();
    for _ in 0..2 {
        let error = read(&disk, 0, TOTAL).unwrap_err();
        let want = TierError::Io {
            action: "read",
            extent: extent(64 << 10, 64 << 10),
            path: PathBuf::from("ram:1"),
            offset: 0,
            os: Os(5),
        };
        assert_eq!(error, want);
    }
    assert!(read(&disk, 0, place + ALIGN).is_err());
    assert!(read(&disk, 0, 64 << 10).unwrap() == image[..64 << 10]);
    assert!(read(&disk, 128 << 10, TOTAL - (128 << 10)).unwrap() == image[128 << 10..]);
    assert_eq!(ram.count(Fault::IoError), 3);
    assert!(
        TierError::to_string(&read(&disk, place, ALIGN).unwrap_err())
            .starts_with("read of extent 86016+4096 (ram:1 at 20480): Input/output error")
    );
}

#[test]
fn a_passing_error_fails_one_request_only() {
    let (disk, _) = disk(false, chosen(Fault::IoError, 0, None, 1));
    let image = noise(2, TOTAL);
    let error = write(&disk, 0, &image).unwrap_err();
    assert!(
        matches!(
            error,
            TierError::Io {
                action: "write",
                os: Os(5),
                ..
            }
        ),
        "{error}"
    );
    write(&disk, 0, &image).unwrap();
    assert!(read(&disk, 0, TOTAL).unwrap() == image);
}

#[test]
fn a_place_that_interrupts_for_ever_is_an_error() {
    let (disk, ram) = disk(false, chosen(Fault::Interrupted, 0, None, u32::MAX));
    let error = read(&disk, 0, ALIGN).unwrap_err();
    assert!(
        matches!(error, TierError::Io { os: Os(4 | 11), .. }),
        "{error}"
    );
    assert!(ram.count(Fault::Interrupted) > 100);
    read(&disk, 64 << 10, ALIGN).unwrap();
}

#[test]
fn no_space_is_reported_at_the_start_or_where_it_happens() {
    let free = Some(Bytes(TOTAL - 1));
    let faults = Faults {
        free,
        ..Faults::default()
    };
    let config = RamConfig {
        faults,
        ..RamConfig::new(Bytes(TOTAL))
    };
    let error = RamDisk::open(&config).unwrap_err();
    assert!(
        matches!(
            error,
            TierError::Space {
                need: Bytes(TOTAL),
                ..
            }
        ),
        "{error}"
    );

    let faults = Faults {
        writes_until_full: Some(2),
        ..Faults::default()
    };
    let (disk, _) = disk(false, faults);
    for _ in 0..2 {
        write(&disk, 0, &noise(3, ALIGN)).unwrap();
    }
    let error = write(&disk, 0, &noise(4, ALIGN)).unwrap_err();
    let full = TierError::Io {
        action: "write",
        extent: extent(0, ALIGN),
        path: PathBuf::from("ram:0"),
        offset: 0,
        os: Os(28),
    };
    assert_eq!(error, full);
    assert!(read(&disk, 0, ALIGN).unwrap() == noise(3, ALIGN));
}

#[test]
fn a_torn_write_is_found_when_read() {
    for verify in [false, true] {
        let (disk, ram) = disk(verify, chosen(Fault::Torn, 64 << 10, Some(Kind::Write), 1));
        let image = noise(5, TOTAL);
        write(&disk, 0, &image).unwrap();
        assert_eq!(ram.count(Fault::Torn), 1);
        assert!(ram.peek(extent(0, TOTAL)) != image, "the fault did nothing");
        let got = read(&disk, 0, TOTAL);
        if !verify {
            assert!(got.unwrap() != image, "who repaired it?");
            continue;
        }
        let error = got.unwrap_err();
        let TierError::Corrupt {
            extent: unit,
            path,
            offset,
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((unit.bytes, path), (ALIGN, &PathBuf::from("ram:1")));
        assert_eq!(*offset, unit.offset - (64 << 10));
        assert!((64 << 10..128 << 10).contains(&unit.offset));
        write(&disk, 64 << 10, &image[64 << 10..128 << 10]).unwrap();
        assert!(
            read(&disk, 0, TOTAL).unwrap() == image,
            "writing again heals"
        );
    }
}

#[test]
fn a_misdirected_write_is_found_at_both_places() {
    let (disk, ram) = disk(true, Faults::default());
    write(&disk, 0, &noise(6, TOTAL)).unwrap();
    assert_eq!(ram.count(Fault::Misdirected), 0);
    drop(disk);
    let mut found_elsewhere = 0;
    for seed in 0..20 {
        let mut faults = chosen(Fault::Misdirected, 0, Some(Kind::Write), 1);
        faults.seed = seed;
        faults.chosen[0].extent = extent(256 << 10, ALIGN);
        let (disk, ram) = self::disk(true, faults);
        let image = noise(seed, TOTAL);
        // Everything but the chosen place, then the chosen place: what it hits is found too.
        write(&disk, 0, &image[..256 << 10]).unwrap();
        write(&disk, 260 << 10, &image[260 << 10..]).unwrap();
        write(&disk, 256 << 10, &image[256 << 10..260 << 10]).unwrap();
        assert_eq!(ram.count(Fault::Misdirected), 1);
        let corrupt = |got: Result<Vec<u8>, TierError>| match got {
            Ok(_) => false,
            Err(TierError::Corrupt { .. }) => true,
            Err(other) => panic!("{other}"),
        };
        assert!(
            corrupt(read(&disk, 256 << 10, ALIGN)),
            "seed {seed}: the lost write"
        );
        let others = (0..TOTAL / ALIGN).filter(|&i| i != (256 << 10) / ALIGN);
        let hit = others
            .filter(|i| corrupt(read(&disk, i * ALIGN, ALIGN)))
            .count();
        assert_eq!(hit, 1, "seed {seed}: the place it hit");
        found_elsewhere += hit;
    }
    assert_eq!(found_elsewhere, 20);
}

#[test]
fn rot_is_found_and_what_was_never_written_is_not_checked() {
    let (disk, ram) = disk(true, Faults::default());
    assert!(read(&disk, 0, TOTAL).unwrap().iter().all(|&b| b == 0));
    write(&disk, 8192, &noise(7, 65536)).unwrap();
    ram.rot(extent(70_000, 1));
    let error = read(&disk, 0, TOTAL).unwrap_err();
    assert!(
        matches!(&error, TierError::Corrupt { extent, .. } if extent.offset == 17 * ALIGN),
        "{error}"
    );
}

#[test]
fn under_all_faults_at_once_no_wrong_byte_passes_as_right() {
    let mut n_right = 0;
    let mut n_wrong = 0;
    for seed in 0..8 {
        let random = vec![
            (Fault::Interrupted, 0.1),
            (Fault::Short, 0.2),
            (Fault::IoError, 0.03),
            (Fault::NoSpace, 0.02),
            (Fault::Torn, 0.03),
            (Fault::Misdirected, 0.03),
        ];
        let latency_max = Duration::from_micros(100);
        let (disk, _) = disk(
            true,
            Faults {
                seed,
                latency_max,
                random,
                ..Faults::default()
            },
        );
        let piece = 32 << 10;
        for round in 0..4 {
            for i in 0..TOTAL / piece {
                let image = noise(seed * 1000 + round * 100 + i, piece);
                if write(&disk, i * piece, &image).is_err() {
                    continue;
                }
                match read(&disk, i * piece, piece) {
                    Ok(got) => {
                        assert!(got == image, "seed {seed}: wrong bytes passed as right");
                        n_right += 1;
                    }
                    Err(TierError::Io { .. } | TierError::Corrupt { .. }) => n_wrong += 1,
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
    assert!(
        n_right > 300 && n_wrong > 30,
        "{n_right} right, {n_wrong} found wrong"
    );
}
