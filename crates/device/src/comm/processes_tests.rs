//! Threads in the place of processes: they meet at the same sockets.
//!
//! One file because its tests make groups with the same few functions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::frames::{receive, send};
use super::{
    Ask, Collective, Comm, CommError, MeetError, Meeting, Party, Pattern, Rendezvous, Stretch,
    World,
};
use crate::Queue;
use crate::view::{Dst, Src};

const STRETCHES: [Stretch; 2] = [
    Stretch {
        whole: 0,
        part: 0,
        bytes: 2,
    },
    Stretch {
        whole: 10,
        part: 4,
        bytes: 3,
    },
];

/// How long ranks wait for each other where nothing else is said.
const SOON: Duration = Duration::from_secs(20);

fn meeting(rank: usize, size: usize, name: &str) -> Meeting {
    Meeting {
        far: None,
        name: name.to_owned(),
        world: World { rank, size },
        limit: SOON,
        patience: SOON,
    }
}

fn name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("test-{}-{number}", std::process::id())
}

type Met = Result<Party, MeetError>;
type Judge = fn(&[Vec<u8>]) -> Result<Vec<u8>, String>;

/// Ranks as these worlds say, each on a thread of its own.
fn meet(worlds: &[(usize, usize)], patience: Duration, judge: Judge) -> Vec<Met> {
    let name = name();
    let threads: Vec<_> = worlds
        .iter()
        .map(|&(rank, size)| {
            let at = Meeting {
                patience,
                ..meeting(rank, size, &name)
            };
            std::thread::spawn(move || at.meet(format!("I am {rank}").as_bytes(), judge))
        })
        .collect();
    threads
        .into_iter()
        .map(|t| t.join().expect("met"))
        .collect()
}

fn group(size: usize) -> Vec<Party> {
    group_of(size, SOON)
}

/// So many that wait for each other so long.
fn group_of(size: usize, patience: Duration) -> Vec<Party> {
    let worlds: Vec<_> = (0..size).map(|rank| (rank, size)).collect();
    let met = meet(&worlds, patience, |_| Ok(b"a word".to_vec())).into_iter();
    let party = |party: Met| {
        let party = party.expect("they come together");
        assert_eq!(party.word(), b"a word");
        party
    };
    met.map(party).collect()
}

/// Runs each rank on a thread of its own.
fn each<T: Send>(ranks: &[Party], work: impl Fn(&Party) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let all: Vec<_> = ranks.iter().map(|p| scope.spawn(move || work(p))).collect();
        all.into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect()
    })
}

fn exchange(party: &Party, of: Collective<'_>, from: &[u8], to: &mut [u8]) -> Option<CommError> {
    let queue = Queue::new("net", 1);
    // SAFETY: a CPU queue: it is done when it returns.
    unsafe {
        party
            .comm()
            .exchange(&queue, of, Src::of(from), Dst::of(to))
    }
    .err()
}

fn gather<'a>(name: &'a str, stretches: &'a [Stretch]) -> Collective<'a> {
    Collective {
        pattern: Pattern::AllGather,
        name,
        stretches,
    }
}

#[test]
fn every_share_comes_to_its_place_from_every_process() {
    for n in [2, 4] {
        let ranks = group(n);
        let all = each(&ranks, |party| {
            let r = party.world().rank as u8;
            let part: Vec<u8> = (0..7).map(|i| 100 + 10 * r + i).collect();
            let (mut whole, mut rows) = (vec![0u8; 10 + 3 * n], vec![0u8; 7 * n]);
            for _ in 0..3 {
                let of = gather("it", &STRETCHES);
                assert_eq!(exchange(party, of, &part, &mut whole), None);
                let back = Collective {
                    pattern: Pattern::AllToAll,
                    ..of
                };
                assert_eq!(exchange(party, back, &whole, &mut rows), None);
            }
            (part, whole, rows)
        });
        for (part, whole, rows) in &all {
            for r in 0..n {
                assert_eq!(whole[2 * r..][..2], all[r].0[0..2]);
                assert_eq!(whole[10 + 3 * r..][..3], all[r].0[4..7]);
                assert_eq!(rows[7 * r..][..2], part[..2]);
                assert_eq!(rows[7 * r + 4..][..3], part[4..]);
            }
        }
    }
}

/// More than any socket holds, so that all ranks send and hear at once.
#[test]
fn much_is_exchanged_without_a_standstill() {
    let n = 4;
    let ranks = group(n);
    let bytes = 3 << 20;
    let stretch = [Stretch {
        whole: 0,
        part: 0,
        bytes,
    }];
    let sums = each(&ranks, |party| {
        let part = vec![party.world().rank as u8 + 1; bytes];
        let mut whole = vec![0u8; n * bytes];
        assert_eq!(
            exchange(party, gather("it", &stretch), &part, &mut whole),
            None
        );
        whole
            .chunks(bytes)
            .map(|c| c.iter().map(|&b| u64::from(b)).sum())
            .collect::<Vec<u64>>()
    });
    let want: Vec<u64> = (1..=n as u64).map(|r| r * bytes as u64).collect();
    assert!(sums.iter().all(|s| *s == want), "{sums:?}");
}

#[test]
fn processes_at_different_collectives_are_named() {
    let outcome = each(&group(2), |party| {
        let name = ["weight x", "weight y"][party.world().rank];
        exchange(party, gather(name, &STRETCHES[..1]), &[0; 2], &mut [0; 4])
    });
    for outcome in outcome {
        let text = outcome.expect("they differ").to_string();
        assert!(
            text.contains("weight x") && text.contains("weight y"),
            "{text}"
        );
    }
    let outcome = each(&group(2), |party| {
        let s = [Stretch {
            whole: 2 * party.world().rank,
            ..STRETCHES[0]
        }];
        exchange(party, gather("it", &s), &[0; 2], &mut [0; 6])
    });
    assert!(outcome.iter().all(Option::is_some), "{outcome:?}");
}

/// One stops with a word, one goes without: whoever waits for it has it at once, and the first word counts.
#[test]
fn nobody_waits_for_a_process_that_is_gone() {
    for says in [true, false] {
        let mut ranks = group(3);
        let gone = ranks.remove(1);
        let begin = Instant::now();
        let outcome = std::thread::scope(|scope| {
            let waits = |party| {
                let of = gather("it", &STRETCHES[..1]);
                scope.spawn(move || exchange(party, of, &[0; 2], &mut [0; 6]))
            };
            let waits: Vec<_> = ranks.iter().map(waits).collect();
            std::thread::sleep(Duration::from_millis(50));
            if says {
                gone.stop("its disk is full");
            } else {
                // As when its process is killed: its lines end.
                gone.life.cut();
            }
            let outcome: Vec<_> = waits
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .collect();
            drop(gone);
            outcome
        });
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        for outcome in outcome {
            let outcome = outcome.expect("one is gone");
            assert_eq!(outcome.is_consequence(), says);
            let want = match says {
                true => "rank 1 has stopped: its disk is full",
                false => "the process of rank 1 has ended",
            };
            assert_eq!(outcome.to_string(), want);
        }
    }
}

/// Who is not in a collective hears of it all the same.
#[test]
fn an_idle_process_hears_that_another_one_is_gone() {
    let ranks = group(2);
    ranks[1].life.cut();
    let begin = Instant::now();
    while ranks[0].ended().is_none() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ranks[0].ended(), Some(CommError::Gone { rank: 1 }));
}

/// Whoever waits for a peer elsewhere than at these lines is freed, on every rank, however the end comes and once.
#[test]
fn what_waits_elsewhere_is_freed_at_the_end() {
    for cut in [true, false] {
        let ranks = group(3);
        let (sender, freed) = std::sync::mpsc::channel();
        for party in &ranks[..2] {
            let (sender, rank) = (sender.clone(), party.world().rank);
            party.at_end(move || sender.send(rank).expect("it listens"));
        }
        match cut {
            true => ranks[2].life.cut(),
            false => ranks[0].stop("no memory"),
        }
        let next = || freed.recv_timeout(Duration::from_secs(10)).expect("freed");
        let mut both = [next(), next()];
        both.sort_unstable();
        assert_eq!(both, [0, 1]);
        // One that comes late is freed at once.
        let (sender, late) = std::sync::mpsc::channel();
        ranks[1].at_end(move || sender.send(()).expect("it listens"));
        late.try_recv().expect("at once");
        ranks[1].stop("once more");
        assert!(freed.try_recv().is_err(), "once each");
    }
}

/// A rank whose line to another one broke, or whose thread panicked, passes that on to those who could not know.
#[test]
fn an_end_that_only_some_know_of_comes_to_all() {
    let mut ranks = group(3);
    let last = ranks.pop().expect("three");
    let (sender, freed) = std::sync::mpsc::channel();
    last.at_end(move || sender.send(()).expect("it listens"));
    ranks[0].life.cut_line(1);
    while ranks.iter().any(|party| party.ended().is_none()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(last.ended(), None, "its own lines are whole");
    drop(ranks);
    let next = freed.recv_timeout(Duration::from_secs(10));
    next.expect("it hears of the end of the others");
    let end = last.ended().expect("an end").to_string();
    assert!(end.contains("the process of rank"), "{end}");

    // By which signal a rank's process was ended comes from whoever has heard of it, as that rank's end.
    let mut ranks = group(3);
    let last = ranks.pop().expect("three");
    ranks[0].life.cut_line(2);
    last.life.cut_line(0);
    ranks[0].end_by(2, "SIGINT");
    let heard = |party: &Party| {
        party
            .ended()
            .filter(|end| matches!(end, CommError::Signalled { .. }))
    };
    let begin = Instant::now();
    while heard(&ranks[1]).is_none() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let name = "SIGINT".to_owned();
    let end = CommError::Signalled {
        rank: 0,
        signal: 2,
        name,
    };
    assert_eq!(heard(&ranks[1]), Some(end));
    drop((ranks, last));

    let mut ranks = group(2);
    let first = ranks.pop().expect("two");
    let panicked = std::thread::spawn(move || {
        let _party = first;
        panic!("on purpose");
    });
    panicked.join().expect_err("it panicked");
    let begin = Instant::now();
    while ranks[0].ended().is_none() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let why = "it panicked".to_owned();
    assert_eq!(ranks[0].ended(), Some(CommError::Stopped { rank: 1, why }));
}

#[test]
fn a_process_that_does_not_come_is_named() {
    let mut ranks = group(2);
    // Its life lasts, and it makes nothing.
    let silent = ranks.pop().expect("two");
    let mut at = ranks.pop().expect("two");
    Arc::get_mut(&mut at.comm)
        .expect("one holder")
        .impatient(Duration::from_millis(200));
    let of = gather("weight x", &STRETCHES[..1]);
    let outcome = exchange(&at, of, &[0; 2], &mut [0; 4]).expect("nobody comes");
    assert!(
        matches!(outcome, CommError::Missing { rank: 1, .. }),
        "{outcome}"
    );
    drop(at);
    drop(silent);
}

#[test]
fn an_end_that_was_said_is_no_failure_and_what_one_was_asked_comes_to_the_first() {
    let mut ranks = group(2);
    let (sender, asked) = std::sync::mpsc::channel();
    ranks[0].hear(move |ask| sender.send(ask).expect("it listens"));
    ranks[1].ask(Ask::Save);
    ranks[1].ask(Ask::Stop(2));
    let next = || asked.recv_timeout(Duration::from_secs(10)).expect("heard");
    assert_eq!([next(), next()], [Ask::Save, Ask::Stop(2)]);
    drop(ranks.pop());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ranks[0].ended(), None);
}

#[test]
fn what_does_not_go_together_is_reported_to_all() {
    let judge = |words: &[Vec<u8>]| match words {
        [one] if one == b"I am 1" => Err("rank 1 has another run file".to_owned()),
        other => Err(format!("unexpected: {other:?}")),
    };
    for outcome in meet(&[(0, 2), (1, 2)], SOON, judge) {
        let outcome = outcome.expect_err("refused").to_string();
        assert_eq!(outcome, "rank 1 has another run file");
    }
    let outcome = meet(&[(0, 2), (1, 3), (2, 3)], SOON, |_| Ok(Vec::new()));
    for outcome in outcome {
        let outcome = outcome.expect_err("refused").to_string();
        assert!(
            outcome.contains("one of 3 ranks") && outcome.contains("one of 2"),
            "{outcome}"
        );
    }
    let name = name();
    let mut alone = meeting(0, 3, &name);
    alone.limit = Duration::from_millis(200);
    let outcome = alone.meet(b"", |_| Ok(Vec::new())).expect_err("alone");
    assert!(
        matches!(&outcome, MeetError::Missing { ranks, .. } if ranks == &[1, 2]),
        "{outcome}"
    );
    let mut alone = meeting(1, 2, &name);
    alone.limit = Duration::from_millis(200);
    let outcome = alone.meet(b"", |_| Ok(Vec::new())).expect_err("alone");
    assert!(
        matches!(&outcome, MeetError::Missing { ranks, .. } if ranks == &[0]),
        "{outcome}"
    );
}

/// A port of this host that nobody has.
fn free_port() -> u16 {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    taken.local_addr().expect("an address").port()
}

fn at_port(port: u16, (rank, size): (usize, usize), name: &str) -> Meeting {
    Meeting {
        far: Some(Rendezvous {
            address: "localhost".to_owned(),
            port,
        }),
        ..meeting(rank, size, name)
    }
}

/// Ranks of several hosts meet at a port, whoever else comes there, and exchange what others do.
#[test]
fn ranks_of_several_hosts_meet_at_a_port() {
    let (port, name) = (free_port(), name());
    // Strangers come first.
    let come = Arc::new(Barrier::new(3));
    let others: Vec<_> = [(1, 3), (2, 3)]
        .map(|world| {
            let (at, come) = (at_port(port, world, &name), Arc::clone(&come));
            std::thread::spawn(move || {
                come.wait();
                at.meet(b"other", |_| Err("not asked".to_owned()))
            })
        })
        .into();
    let first = at_port(port, (0, 3), &name);
    let strangers = std::thread::spawn(move || {
        let connect = || loop {
            if let Ok(line) = std::net::TcpStream::connect(("127.0.0.1", port)) {
                return line;
            }
        };
        use std::io::Write;
        // Some say nothing and stay, one says a word's beginning and stays.
        let mut stay = [0; 5].map(|_| connect());
        stay[0].write_all(b"\x20\0\0\0calls 1 3").expect("sent");
        // Half a word; a page; another launch, which is answered.
        connect().write_all(&[9, 0]).expect("sent");
        connect()
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .expect("sent");
        let mut line = connect();
        super::send(&mut line, b"calls 1 3 5 another\nhello").expect("sent");
        // Rank 0 takes lines in the order in which they came, so this one is answered before all ranks are there.
        come.wait();
        (super::receive(&mut line, 1000).expect("an answer"), stay)
    });
    let begin = Instant::now();
    let met = first.meet(b"first", |hellos| {
        assert_eq!(hellos, [b"other", b"other"]);
        Ok(b"a\nword".to_vec())
    });
    let mut ranks = vec![met.expect("they come together")];
    ranks.extend(
        others
            .into_iter()
            .map(|t| t.join().expect("no panic").expect("met")),
    );
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "who says nothing takes time: {:?}",
        begin.elapsed()
    );
    let (said, stay) = strangers.join().expect("no panic");
    let said = String::from_utf8(said.unwrap_or_default()).expect("text");
    drop(stay);
    // Nobody else is met there while they are together.
    let late = std::net::TcpStream::connect(("127.0.0.1", port)).expect_err("closed");
    assert_eq!(late.kind(), std::io::ErrorKind::ConnectionRefused);
    for party in &ranks {
        // A peer that is slow to read is no host that is gone.
        assert_eq!(party.comm.unconfirmed(), [0, 0]);
        assert_eq!(party.life.unconfirmed(), [16_000; 2]);
    }
    // It may have come when all were there.
    assert!(
        said.is_empty() || said.contains("of another launch"),
        "{said}"
    );
    let whole = each(&ranks, |party| {
        assert_eq!(party.word(), b"a\nword");
        let mut whole = vec![0u8; 19];
        let part = [party.world().rank as u8; 7];
        assert_eq!(
            exchange(party, gather("it", &STRETCHES), &part, &mut whole),
            None
        );
        whole
    });
    assert!(whole.iter().all(|w| w == &whole[0]));
    assert_eq!(whole[0][..6], [0, 0, 1, 1, 2, 2]);
    // The end of one is heard by all.
    ranks.remove(1).life.cut();
    let begin = Instant::now();
    while ranks.iter().any(|party| party.ended().is_none()) {
        assert!(begin.elapsed() < Duration::from_secs(10), "nobody heard");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ranks[0].ended(), Some(CommError::Gone { rank: 1 }));
}

#[test]
fn where_ranks_of_several_hosts_do_not_meet_is_named() {
    let short = |address: &str, port: u16, rank: usize| {
        let at = Meeting {
            far: Some(Rendezvous {
                address: address.to_owned(),
                port,
            }),
            limit: Duration::from_millis(50),
            ..meeting(rank, 2, "x")
        };
        at.meet(b"", |_| Ok(Vec::new()))
            .expect_err("nobody there")
            .to_string()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let said = short("127.0.0.1", port, 0);
    assert!(
        said.contains(&format!("127.0.0.1:{port}")) && said.contains("in use"),
        "{said}"
    );
    drop(taken);
    let said = short("127.0.0.1", port, 1);
    assert!(
        said.contains(&format!("127.0.0.1:{port}")) && said.contains("refused"),
        "{said}"
    );
    let said = short("no..name", port, 1);
    assert!(said.contains("no..name, is not known here"), "{said}");
    let said = short("127.0.0.1", free_port(), 0);
    assert!(said.contains("rank 1 did not come"), "{said}");
}

/// As a process that is stopped: its lines stay, and nothing comes over them.
#[test]
fn a_process_that_is_silent_for_too_long_is_named_and_nobody_waits_for_its_answer() {
    for quiet in [0, 1] {
        let limit = Duration::from_millis(600);
        let mut ranks = group_of(3, limit);
        // A pause that is shorter is none.
        ranks[quiet].life.be_quiet(true);
        std::thread::sleep(limit / 2);
        ranks[quiet].life.be_quiet(false);
        std::thread::sleep(limit);
        assert!(ranks.iter().all(|party| party.ended().is_none()));
        ranks[quiet].life.be_quiet(true);
        let stopped = ranks.remove(quiet);
        let silent = CommError::Silent {
            rank: quiet,
            seconds: 0,
        };
        let begin = Instant::now();
        // Rank 0 waits for an answer of rank 1, or rank 1 for a question of rank 0.
        let mut calls = ranks[0].take_calls().into_iter();
        let mut line = calls.next().expect("a line to the other one");
        receive(&mut line, 1 << 20).expect_err("nobody is there");
        // A question that it does not take.
        send(&mut line, &vec![0; 16 << 20]).expect_err("nobody takes it");
        for party in &ranks {
            while party.ended().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let error = party.ended().expect("seen above");
            let why = format!("{error}");
            assert!(why.contains(&silent.to_string()), "{error}");
        }
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        drop(stopped);
    }
}

/// What was said before the end is heard, whatever becomes of who said it.
#[test]
fn an_answer_that_came_before_the_end_is_read() {
    let ranks = group(2);
    let mut second = ranks[1].take_calls().pop().expect("a line");
    send(&mut second, b"an answer").expect("sent");
    ranks[1].life.cut();
    while ranks[0].ended().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut first = ranks[0].take_calls().pop().expect("a line");
    let answer = receive(&mut first, 100).expect("whole");
    assert_eq!(answer.as_deref(), Some(&b"an answer"[..]));
    receive(&mut first, 100).expect_err("nothing is to come");
}
