//! How processes of one host that are the ranks of one group find each other.
//!
//! Rank 0 waits at a name that all of them know, in the namespace of abstract sockets: nothing of it is left when a
//! process ends, however it does. Each other rank says what it is; rank 0 judges, and all get the same answer. Then
//! every pair of ranks has two connections: one for collectives, one to learn of each other's end. Each rank has one
//! more to rank 0, for whatever rank 0 asks of it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::frames::{receive, send};
use super::life::{Ask, Life};
use super::sockets::Sockets;
use super::{CommError, World};

/// Longest word of who comes: a run with all its settings.
const MOST: usize = 16 << 20;
/// How long to wait before it is looked again.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a process that ends may still hold the name.
const HELD: Duration = Duration::from_secs(5);
/// How long those that come late are waited for when it is known that nothing comes of it.
const LATE: Duration = Duration::from_secs(1);
/// How long one that has come may take for its next word.
const WORD: Duration = Duration::from_secs(10);

/// How a verdict begins: that they go together, and that they do not.
const YES: &[u8] = b"yes ";
const NO: &[u8] = b"no ";

/// Where and how ranks meet.
#[derive(Clone, Debug)]
pub struct Meeting {
    /// A name that all of them know and no other group has.
    pub name: String,
    /// Which rank this process is, of how many.
    pub world: World,
    /// How long to wait for the others.
    pub limit: Duration,
    /// How long a rank waits for another one in a collective.
    pub patience: Duration,
}

/// Why ranks did not come together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeetError {
    /// Some processes did not come in time.
    #[error("rank {} did not come within {seconds} s", list(ranks))]
    Missing {
        /// Ranks that did not come.
        ranks: Vec<usize>,
        /// How long they were waited for.
        seconds: u64,
    },
    /// Another process is this rank.
    #[error("another process is rank {rank} of the same launch")]
    Taken {
        /// Rank that is there already.
        rank: usize,
    },
    /// The socket at which a rank would be met is another user's.
    #[error("the socket at which rank {rank} would be met is held by another user")]
    Held {
        /// Rank whose socket it is.
        rank: usize,
    },
    /// They do not go together: why.
    #[error("{0}")]
    Refused(String),
    /// A call of the system failed.
    #[error("{what}: {why}")]
    System {
        /// The call and what it was for.
        what: String,
        /// The system's message.
        why: String,
    },
}

fn list(ranks: &[usize]) -> String {
    let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
    ranks.join(", ")
}

/// Whether the process at the other end is this user's.
fn of_this_user(line: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(line).is_ok_and(|who| who.uid == own)
}

fn system(what: &str) -> impl Fn(io::Error) -> MeetError + '_ {
    move |e| MeetError::System {
        what: what.to_owned(),
        why: e.to_string(),
    }
}

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Calls,
    Life,
    Work,
}

impl For {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Calls, "calls"),
        (Self::Life, "life"),
        (Self::Work, "work"),
    ];
}

/// The first word on a line.
struct Word {
    of: For,
    rank: usize,
    size: usize,
    /// What it is, in its own words.
    hello: Vec<u8>,
}

impl Word {
    fn write(&self) -> Vec<u8> {
        let of = For::ALL.into_iter().find(|f| f.0 == self.of);
        let of = of.expect("one of them").1;
        let mut all = format!("{of} {} {}\n", self.rank, self.size).into_bytes();
        all.extend_from_slice(&self.hello);
        all
    }

    fn read(from: &mut UnixStream) -> Option<Self> {
        let message = receive(from, MOST).ok()??;
        let end = message.iter().position(|&b| b == b'\n')?;
        let head = std::str::from_utf8(&message[..end]).ok()?;
        let mut head = head.split(' ');
        let of = head.next()?;
        Some(Self {
            of: For::ALL.into_iter().find(|f| f.1 == of)?.0,
            rank: head.next()?.parse().ok()?,
            size: head.next()?.parse().ok()?,
            hello: message[end + 1..].to_vec(),
        })
    }
}

impl Meeting {
    fn address(&self, rank: usize) -> Result<SocketAddr, MeetError> {
        let user = rustix::process::geteuid().as_raw();
        let name = format!("lowtide/{user}/{}/{rank}", self.name);
        SocketAddr::from_abstract_name(name).map_err(system("the name where ranks meet"))
    }

    /// Takes the name of this rank.
    fn bind(&self) -> Result<UnixListener, MeetError> {
        let rank = self.world.rank;
        let address = self.address(rank)?;
        let begin = Instant::now();
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => {
                    let polled = listener.set_nonblocking(true);
                    polled.map_err(system("a socket where ranks meet"))?;
                    return Ok(listener);
                }
                Err(e) if e.kind() == ErrorKind::AddrInUse => {
                    if begin.elapsed() > HELD {
                        return Err(MeetError::Taken { rank });
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(e) => return Err(system("a socket where ranks meet")(e)),
            }
        }
    }

    /// The next that comes, of this user; none in a moment.
    fn accept(listener: &UnixListener) -> Option<(UnixStream, Word)> {
        let (mut line, _) = listener.accept().ok()?;
        let same = of_this_user(&line);
        let ready =
            line.set_nonblocking(false).is_ok() && line.set_read_timeout(Some(WORD)).is_ok();
        let word = (same && ready).then(|| Word::read(&mut line))??;
        Some((line, word))
    }

    fn connect(&self, to: usize, of: For, hello: &[u8]) -> Result<UnixStream, MeetError> {
        let address = self.address(to)?;
        let begin = Instant::now();
        loop {
            match UnixStream::connect_addr(&address) {
                Ok(mut line) => {
                    // Names of abstract sockets can be guessed, and rank 0 says where files are made.
                    if !of_this_user(&line) {
                        return Err(MeetError::Held { rank: to });
                    }
                    let word = Word {
                        of,
                        rank: self.world.rank,
                        size: self.world.size,
                        hello: hello.to_vec(),
                    };
                    let sent = send(&mut line, &word.write());
                    sent.map_err(system("a word to another rank"))?;
                    return Ok(line);
                }
                Err(_) if begin.elapsed() < self.limit => std::thread::sleep(PAUSE),
                Err(_) => {
                    return Err(MeetError::Missing {
                        ranks: vec![to],
                        seconds: self.limit.as_secs(),
                    });
                }
            }
        }
    }

    /// Rank 0: waits for the others' words, and judges.
    fn lead(
        &self,
        listener: &UnixListener,
        judge: impl FnOnce(&[Vec<u8>]) -> Result<Vec<u8>, String>,
    ) -> Result<(Vec<UnixStream>, Vec<u8>), MeetError> {
        let size = self.world.size;
        let mut come: Vec<Option<(UnixStream, Vec<u8>)>> = (0..size).map(|_| None).collect();
        // Those that have come besides, and what is wrong already.
        let (mut besides, mut wrong) = (Vec::new(), None);
        let (begin, mut known) = (Instant::now(), None::<Instant>);
        while come[1..].iter().any(Option::is_none) {
            let late = known.is_some_and(|at| at.elapsed() > LATE);
            if late || begin.elapsed() > self.limit {
                break;
            }
            let Some((line, word)) = Self::accept(listener) else {
                std::thread::sleep(PAUSE);
                continue;
            };
            if word.of != For::Calls {
                continue;
            }
            let what = match come.get(word.rank) {
                _ if word.size != size => format!(
                    "rank {} was started as one of {} ranks, rank 0 as one of {size}",
                    word.rank, word.size
                ),
                Some(None) if word.rank > 0 => {
                    come[word.rank] = Some((line, word.hello));
                    continue;
                }
                _ => format!("two processes are rank {}", word.rank),
            };
            wrong.get_or_insert(what);
            known.get_or_insert_with(Instant::now);
            besides.push(line);
        }
        let missing = (1..size).filter(|&r| come[r].is_none()).collect::<Vec<_>>();
        let verdict = match wrong {
            Some(what) => Err(MeetError::Refused(what)),
            None if !missing.is_empty() => Err(MeetError::Missing {
                ranks: missing,
                seconds: self.limit.as_secs(),
            }),
            None => {
                let hellos: Vec<Vec<u8>> = come[1..]
                    .iter_mut()
                    .flatten()
                    .map(|c| std::mem::take(&mut c.1))
                    .collect();
                judge(&hellos).map_err(MeetError::Refused)
            }
        };
        let lines: Vec<UnixStream> = come.into_iter().flatten().map(|c| c.0).collect();
        let word = match &verdict {
            Ok(word) => [YES, word].concat(),
            Err(e) => [NO, e.to_string().as_bytes()].concat(),
        };
        for mut line in lines.iter().chain(&besides) {
            // One that is gone is found by its line's end.
            let _ = send(&mut line, &word);
        }
        verdict.map(|word| (lines, word))
    }

    /// Any other rank: sends rank 0 what it is, and receives the verdict.
    fn follow(&self, hello: &[u8]) -> Result<(Vec<UnixStream>, Vec<u8>), MeetError> {
        let mut line = self.connect(0, For::Calls, hello)?;
        let most = self.limit + LATE + WORD;
        let waits = line.set_read_timeout(Some(most));
        waits.map_err(system("a line to rank 0"))?;
        let verdict = receive(&mut line, MOST).ok().flatten();
        let Some(verdict) = verdict else {
            return Err(MeetError::Refused("rank 0 has ended".to_owned()));
        };
        match (verdict.strip_prefix(YES), verdict.strip_prefix(NO)) {
            (Some(word), _) => Ok((vec![line], word.to_owned())),
            (None, why) => {
                let why = why.unwrap_or(b"rank 0 is of another kind");
                let why = String::from_utf8_lossy(why).into_owned();
                Err(MeetError::Refused(why))
            }
        }
    }

    /// Lines to all others: to those before this one it connects, those behind it come.
    fn lines(&self, listener: &UnixListener) -> Result<[Vec<Option<UnixStream>>; 2], MeetError> {
        let World { rank, size } = self.world;
        let none = || (0..size).map(|_| None).collect::<Vec<Option<UnixStream>>>();
        let (mut life, mut work) = (none(), none());
        for to in 0..rank {
            life[to] = Some(self.connect(to, For::Life, &[])?);
            work[to] = Some(self.connect(to, For::Work, &[])?);
        }
        let begin = Instant::now();
        loop {
            let missing: Vec<usize> = (rank + 1..size)
                .filter(|&r| life[r].is_none() || work[r].is_none())
                .collect();
            if missing.is_empty() {
                return Ok([life, work]);
            }
            match Self::accept(listener) {
                Some((line, word)) if word.rank > rank && word.rank < size => match word.of {
                    For::Life => life[word.rank] = Some(line),
                    For::Work => work[word.rank] = Some(line),
                    For::Calls => {}
                },
                Some(_) => {}
                None if begin.elapsed() > WORD => {
                    return Err(MeetError::Missing {
                        ranks: missing,
                        seconds: WORD.as_secs(),
                    });
                }
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Comes together with the others, of which rank 0 judges by the words of all but itself, in order. What it says
    /// for it ([`Party::word`]) or against it is sent to all.
    ///
    /// # Errors
    /// The same on all where rank 0 finds that they do not go together.
    pub fn meet(
        &self,
        hello: &[u8],
        judge: impl FnOnce(&[Vec<u8>]) -> Result<Vec<u8>, String>,
    ) -> Result<Party, MeetError> {
        // A name is taken before any word is given, so who has the verdict finds all others.
        let listener = self.bind()?;
        let (calls, word) = match self.world.rank {
            0 => self.lead(&listener, judge)?,
            _ => self.follow(hello)?,
        };
        for line in &calls {
            line.set_read_timeout(None)
                .map_err(system("a line to another rank"))?;
        }
        let [life, work] = self.lines(&listener)?;
        let life = Life::start(self.world.rank, life).map_err(system("a line to another rank"))?;
        let comm = Sockets::new(self.world, self.patience, Arc::clone(&life), work);
        Ok(Party {
            world: self.world,
            comm: Arc::new(comm.map_err(system("a line to another rank"))?),
            life,
            calls: Mutex::new(calls),
            word,
            _name: listener,
        })
    }
}

/// Processes that have come together.
pub struct Party {
    world: World,
    pub(super) comm: Arc<Sockets>,
    pub(super) life: Arc<Life>,
    calls: Mutex<Vec<UnixStream>>,
    word: Vec<u8>,
    /// Held while they are together: another process of the same launch cannot be this rank.
    _name: UnixListener,
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Party({} of {})", self.world.rank, self.world.size)
    }
}

impl Party {
    /// Which rank this process is, of how many.
    #[must_use]
    pub fn world(&self) -> World {
        self.world
    }

    /// What rank 0 said to all when they came together.
    #[must_use]
    pub fn word(&self) -> &[u8] {
        &self.word
    }

    /// The way to the others for collectives on the CPU device.
    #[must_use]
    pub fn comm(&self) -> Arc<Sockets> {
        Arc::clone(&self.comm)
    }

    /// Lines for whatever rank 0 asks of the others: of rank 0 one to each other rank, in order; of another one its
    /// line to rank 0. Once: then they are the caller's.
    #[must_use]
    pub fn take_calls(&self) -> Vec<UnixStream> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells all others why this process ends.
    pub fn stop(&self, why: &str) {
        self.life.stop(why);
    }

    /// Why they have ended, if one of them has.
    #[must_use]
    pub fn ended(&self) -> Option<CommError> {
        self.life.ended()
    }

    /// Why the line to a rank is cut: waits a moment for what its process says.
    #[must_use]
    pub fn why(&self, rank: usize) -> CommError {
        self.life.why(rank)
    }

    /// What is to be done when they end: at once, if they have.
    pub(crate) fn at_end(&self, free: impl FnOnce() + Send + 'static) {
        self.life.at_end(Box::new(free));
    }

    /// Passes on to rank 0 what this process was asked.
    pub fn ask(&self, ask: Ask) {
        self.life.ask(ask);
    }

    /// Who hears what other processes were asked.
    pub fn hear(&self, hear: impl Fn(Ask) + Send + 'static) {
        self.life.hear(Box::new(hear));
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.life.close();
    }
}
