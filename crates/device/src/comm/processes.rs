//! How processes that are the ranks of one group find each other.
//!
//! On one host rank 0 waits at a name that all of them know, in the namespace of abstract sockets: nothing of it is
//! left when a process ends, however it does. On several hosts it waits at a port of its host, and sends all the places
//! where each is met. Each other rank says what it is; rank 0 judges, and all get the same answer. Then every pair of
//! ranks has two connections: one for collectives, one to learn of each other's end. Each rank has one more to rank 0,
//! for whatever rank 0 asks of it.
//!
//! One file because who leads and who follows say the same words to each other, each in its turn.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as Name, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::arrivals::Arrivals;
use super::calls::Calls;
use super::frames::{receive, send};
use super::life::{Ask, Life};
use super::line::{Line, Listener, of_this_user};
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
/// How long those that go together may take for their lines to each other.
const WORD: Duration = Duration::from_secs(10);

/// How a verdict begins: that they go together, and that they do not.
const YES: &[u8] = b"yes ";
const NO: &[u8] = b"no ";

/// Where ranks of several hosts meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    /// Name or address of the host of rank 0.
    pub address: String,
    /// The port there at which rank 0 waits.
    pub port: u16,
}

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

impl Rendezvous {
    /// Addresses of the host of rank 0. A name may not be known at once where hosts have just begun.
    fn resolve(&self, limit: Duration) -> Result<Vec<SocketAddr>, MeetError> {
        let begin = Instant::now();
        loop {
            let why = match (&*self.address, self.port).to_socket_addrs() {
                Ok(found) => {
                    let found: Vec<SocketAddr> = found.collect();
                    if !found.is_empty() {
                        return Ok(found);
                    }
                    "it has no address".to_owned()
                }
                Err(e) => e.to_string(),
            };
            if begin.elapsed() > HELD.min(limit) {
                return Err(MeetError::Name {
                    name: self.address.clone(),
                    why,
                });
            }
            std::thread::sleep(PAUSE * 20);
        }
    }

    /// Whether it is said to be on this host, by an address that others do not reach.
    fn is_local(&self) -> bool {
        let literal = self.address.parse::<IpAddr>();
        self.address == "localhost" || literal.is_ok_and(|ip| ip.is_loopback())
    }
}

/// Where and how ranks meet.
#[derive(Clone, Debug)]
pub struct Meeting {
    /// Where, if they are on several hosts.
    pub far: Option<Rendezvous>,
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
    /// The name of rank 0's host is not known.
    #[error("the host of rank 0, {name}, is not known here: {why}")]
    Name {
        /// What was to be resolved.
        name: String,
        /// The system's message.
        why: String,
    },
    /// Rank 0 cannot wait where the others look for it.
    #[error("rank 0 cannot be met at {at}: {why}")]
    Port {
        /// Host and port.
        at: String,
        /// The system's message.
        why: String,
    },
    /// Rank 0 is not where it is looked for.
    #[error("rank 0 was not met at {at} within {seconds} s: {why}")]
    Unreached {
        /// Host and port.
        at: String,
        /// How long it was tried.
        seconds: u64,
        /// The system's message.
        why: String,
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
    /// Of several hosts: the port at which it is met.
    port: u16,
    /// Which launch it is of.
    name: String,
    /// What it is, in its own words.
    hello: Vec<u8>,
}

impl Word {
    fn write(&self) -> Vec<u8> {
        let of = For::ALL.into_iter().find(|f| f.0 == self.of);
        let of = of.expect("one of them").1;
        let mut all = format!(
            "{of} {} {} {} {}\n",
            self.rank, self.size, self.port, self.name
        )
        .into_bytes();
        all.extend_from_slice(&self.hello);
        all
    }

    fn read(message: &[u8]) -> Option<Self> {
        let end = message.iter().position(|&b| b == b'\n')?;
        let head = std::str::from_utf8(&message[..end]).ok()?;
        let mut head = head.split(' ');
        let of = head.next()?;
        Some(Self {
            of: For::ALL.into_iter().find(|f| f.1 == of)?.0,
            rank: head.next()?.parse().ok()?,
            size: head.next()?.parse().ok()?,
            port: head.next()?.parse().ok()?,
            name: head.next()?.to_owned(),
            hello: message[end + 1..].to_vec(),
        })
    }
}

/// A rank that has come: its line, what it is in its own words, and of several hosts where it is met.
type Come = (Line, Vec<u8>, Option<SocketAddr>);

/// Where each rank is met, of several hosts: of each all addresses that may be its. None on one host.
type Places = Vec<Vec<SocketAddr>>;

impl Meeting {
    fn name_of(&self, rank: usize) -> Result<Name, MeetError> {
        let user = rustix::process::geteuid().as_raw();
        let name = format!("lowtide/{user}/{}/{rank}", self.name);
        Name::from_abstract_name(name).map_err(system("the name where ranks meet"))
    }

    /// Takes the place where this rank is met.
    fn bind(&self) -> Result<Listener, MeetError> {
        match &self.far {
            None => self.bind_here(),
            Some(far) => self.bind_far(far),
        }
    }

    /// Takes the name of this rank.
    fn bind_here(&self) -> Result<Listener, MeetError> {
        let rank = self.world.rank;
        let address = self.name_of(rank)?;
        let begin = Instant::now();
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => {
                    let polled = listener.set_nonblocking(true);
                    polled.map_err(system("a socket where ranks meet"))?;
                    return Ok(Listener::Here(listener));
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

    /// Rank 0 takes the port that all know, any other one a free one, which rank 0 tells the others.
    fn bind_far(&self, far: &Rendezvous) -> Result<Listener, MeetError> {
        let found = far.resolve(self.limit)?;
        let first = found[0].ip();
        let any = match first {
            ip if far.is_local() => ip,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let failed = |e: &io::Error| MeetError::Port {
            at: far.to_string(),
            why: e.to_string(),
        };
        if self.world.rank > 0 {
            return Listener::far((any, 0).into()).map_err(system("a port where ranks meet"));
        }
        let (begin, held) = (Instant::now(), HELD.min(self.limit));
        loop {
            match Listener::far((any, far.port).into()) {
                Ok(listener) => return Ok(listener),
                Err(e) if e.kind() == ErrorKind::AddrInUse && begin.elapsed() < held => {
                    std::thread::sleep(PAUSE);
                }
                Err(e) => return Err(failed(&e)),
            }
        }
    }

    /// The next that comes, of this user or launch, and where it is met; none in a moment.
    fn accept(&self, arrivals: &mut Arrivals<'_>) -> Option<(Line, Word, Option<SocketAddr>)> {
        let (mut line, word, from) = arrivals.next()?;
        let word = Word::read(&word)?;
        if word.name != self.name {
            let what = format!(
                "rank {} is of another launch than who waits here",
                word.rank
            );
            let _ = send(&mut line, &[NO, what.as_bytes()].concat());
            return None;
        }
        let at = from.map(|ip| (ip, word.port).into());
        Some((line, word, at))
    }

    /// One try to reach a rank.
    fn reach(&self, to: usize, places: &Places) -> Result<Line, Result<MeetError, io::Error>> {
        let Some(places) = places.get(to) else {
            let address = self.name_of(to).map_err(Ok)?;
            let line = UnixStream::connect_addr(&address).map_err(Err)?;
            // Names of abstract sockets can be guessed, and rank 0 says where files are made.
            return match of_this_user(&line) {
                true => Ok(Line::Here(line)),
                false => Err(Ok(MeetError::Held { rank: to })),
            };
        };
        let mut failed = io::Error::from(ErrorKind::AddrNotAvailable);
        for at in places {
            match TcpStream::connect_timeout(at, HELD).and_then(Line::far) {
                Ok(line) => return Ok(line),
                Err(e) => failed = e,
            }
        }
        Err(Err(failed))
    }

    fn connect(
        &self,
        (to, of): (usize, For),
        (hello, port): (&[u8], u16),
        places: &Places,
    ) -> Result<Line, MeetError> {
        let begin = Instant::now();
        loop {
            match self.reach(to, places) {
                Ok(mut line) => {
                    let word = Word {
                        of,
                        rank: self.world.rank,
                        size: self.world.size,
                        port,
                        name: self.name.clone(),
                        hello: hello.to_vec(),
                    };
                    let sent = send(&mut line, &word.write());
                    sent.map_err(system("a word to another rank"))?;
                    return Ok(line);
                }
                Err(Ok(e)) => return Err(e),
                Err(Err(_)) if begin.elapsed() < self.limit => std::thread::sleep(PAUSE),
                Err(Err(e)) => {
                    let seconds = self.limit.as_secs();
                    return Err(match &self.far {
                        Some(far) if to == 0 => MeetError::Unreached {
                            at: far.to_string(),
                            seconds,
                            why: e.to_string(),
                        },
                        _ => MeetError::Missing {
                            ranks: vec![to],
                            seconds,
                        },
                    });
                }
            }
        }
    }

    /// Rank 0: waits for the others' words, and judges.
    fn lead(
        &self,
        arrivals: &mut Arrivals<'_>,
        judge: impl FnOnce(&[Vec<u8>]) -> Result<Vec<u8>, String>,
    ) -> Result<(Vec<Line>, Vec<u8>), MeetError> {
        let size = self.world.size;
        let mut come: Vec<Option<Come>> = (0..size).map(|_| None).collect();
        // Those that have come besides, and what is wrong already.
        let (mut besides, mut wrong) = (Vec::new(), None);
        let (begin, mut known) = (Instant::now(), None::<Instant>);
        while come[1..].iter().any(Option::is_none) {
            let late = known.is_some_and(|at| at.elapsed() > LATE);
            if late || begin.elapsed() > self.limit {
                break;
            }
            let Some((line, word, at)) = self.accept(arrivals) else {
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
                    come[word.rank] = Some((line, word.hello, at));
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
        let places = come.iter().skip(1).flatten().filter_map(|c| c.2);
        let places = written(places, size - 1);
        let lines: Vec<Line> = come.into_iter().flatten().map(|c| c.0).collect();
        let word = match &verdict {
            Ok(word) => [YES, places.as_bytes(), word].concat(),
            Err(e) => [NO, e.to_string().as_bytes()].concat(),
        };
        for mut line in lines.iter().chain(&besides) {
            // One that is gone is found by its line's end.
            let _ = send(&mut line, &word);
        }
        verdict.map(|word| (lines, word))
    }

    /// Any other rank: sends rank 0 what it is, and receives the verdict.
    fn follow(
        &self,
        hello: &[u8],
        port: u16,
        places: &mut Places,
    ) -> Result<(Vec<Line>, Vec<u8>), MeetError> {
        if let Some(far) = &self.far {
            places.push(far.resolve(self.limit)?);
        }
        let mut line = self.connect((0, For::Calls), (hello, port), places)?;
        let most = self.limit + LATE + WORD;
        let waits = line.set_read_timeout(Some(most));
        waits.map_err(system("a line to rank 0"))?;
        let verdict = match receive(&mut line, MOST) {
            Ok(Some(verdict)) => verdict,
            Ok(None) => return Err(MeetError::Refused("rank 0 has ended".to_owned())),
            Err(e) => {
                // Who is there may be no rank at all: a port that another program has.
                let why = match e.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => "who is there does not answer",
                    ErrorKind::ConnectionReset => "rank 0 has ended",
                    _ => "who is there does not answer as rank 0 does",
                };
                return Err(match &self.far {
                    Some(far) => MeetError::Unreached {
                        at: far.to_string(),
                        seconds: most.as_secs(),
                        why: why.to_owned(),
                    },
                    None => MeetError::Refused(why.to_owned()),
                });
            }
        };
        match (verdict.strip_prefix(YES), verdict.strip_prefix(NO)) {
            (Some(word), _) if self.far.is_none() => Ok((vec![line], word.to_owned())),
            (Some(word), _) => {
                let (others, word) = read_places(word, &places[0])
                    .ok_or_else(|| MeetError::Refused("rank 0 is of another kind".to_owned()))?;
                places.extend(others);
                Ok((vec![line], word))
            }
            (None, why) => {
                let why = why.unwrap_or(b"rank 0 is of another kind");
                let why = String::from_utf8_lossy(why).into_owned();
                Err(MeetError::Refused(why))
            }
        }
    }

    /// Lines to all others: to those before this one it connects, those behind it come.
    fn lines(
        &self,
        arrivals: &mut Arrivals<'_>,
        places: &Places,
    ) -> Result<[Vec<Option<Line>>; 2], MeetError> {
        let World { rank, size } = self.world;
        let none = || (0..size).map(|_| None).collect::<Vec<Option<Line>>>();
        let (mut life, mut work) = (none(), none());
        for to in 0..rank {
            life[to] = Some(self.connect((to, For::Life), (&[], 0), places)?);
            work[to] = Some(self.connect((to, For::Work), (&[], 0), places)?);
        }
        let begin = Instant::now();
        loop {
            let missing: Vec<usize> = (rank + 1..size)
                .filter(|&r| life[r].is_none() || work[r].is_none())
                .collect();
            if missing.is_empty() {
                return Ok([life, work]);
            }
            let come = self.accept(arrivals);
            let is_one = |word: &Word| missing.contains(&word.rank) && word.size == size;
            match come {
                Some((line, word, _)) if is_one(&word) => {
                    let place = match word.of {
                        For::Life => &mut life[word.rank],
                        For::Work => &mut work[word.rank],
                        For::Calls => continue,
                    };
                    // Who comes first has the place.
                    place.get_or_insert(line);
                }
                _ if begin.elapsed() > WORD => {
                    return Err(MeetError::Missing {
                        ranks: missing,
                        seconds: WORD.as_secs(),
                    });
                }
                Some(_) => {}
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
        let port = listener.port().map_err(system("a port where ranks meet"))?;
        let mut arrivals = Arrivals::new(&listener, MOST);
        let mut places = Places::new();
        let (calls, word) = match self.world.rank {
            0 => self.lead(&mut arrivals, judge)?,
            _ => self.follow(hello, port, &mut places)?,
        };
        let [life, work] = self.lines(&mut arrivals, &places)?;
        drop(arrivals);
        let World { rank, .. } = self.world;
        let life = Life::start(rank, life, self.patience);
        let life = life.map_err(system("a line to another rank"))?;
        let comm = Sockets::new(self.world, self.patience, Arc::clone(&life), work);
        // Of rank 0 there is one to each other rank, in order; of another one that to rank 0.
        let first = usize::from(rank == 0);
        let calls = calls.into_iter().enumerate();
        let calls = calls.map(|(i, line)| Calls::new(line, first + i, Arc::clone(&life)));
        let calls = calls.collect::<io::Result<Vec<_>>>();
        let calls = calls.map_err(system("a line to another rank"))?;
        Ok(Party {
            world: self.world,
            comm: Arc::new(comm.map_err(system("a line to another rank"))?),
            life,
            calls: Mutex::new(calls),
            word,
            patience: self.patience,
            // A port is closed when all have come: nobody else is met there, and it is others' again.
            _name: Some(listener).filter(|_| self.far.is_none()),
        })
    }
}

/// Where the ranks behind the first are met, of several hosts; nothing on one host. Who comes to rank 0 from its own
/// host may come from an address that other hosts do not reach: it is met where rank 0 is.
fn written(places: impl Iterator<Item = SocketAddr>, others: usize) -> String {
    let of = |at: SocketAddr| match at.ip().to_canonical().is_loopback() {
        true => format!("- {}", at.port()),
        false => format!("{} {}", at.ip().to_canonical(), at.port()),
    };
    let all: Vec<String> = places.map(of).collect();
    match all.len() == others {
        true => all.join(" ") + "\n",
        false => String::new(),
    }
}

/// What [`written`] says, with `first` as the addresses of rank 0, and what is behind it.
fn read_places(word: &[u8], first: &[SocketAddr]) -> Option<(Places, Vec<u8>)> {
    let end = word.iter().position(|&b| b == b'\n')?;
    let text = std::str::from_utf8(&word[..end]).ok()?;
    let words: Vec<&str> = text.split(' ').collect();
    let of = |pair: &[&str]| {
        let port: u16 = pair.get(1)?.parse().ok()?;
        let hosts: Vec<IpAddr> = match pair[0] {
            "-" => first.iter().map(SocketAddr::ip).collect(),
            ip => vec![ip.parse().ok()?],
        };
        Some(hosts.into_iter().map(|ip| (ip, port).into()).collect())
    };
    let places = words.chunks(2).map(of).collect::<Option<Places>>()?;
    Some((places, word[end + 1..].to_owned()))
}

/// Processes that have come together.
pub struct Party {
    world: World,
    pub(super) comm: Arc<Sockets>,
    pub(super) life: Arc<Life>,
    calls: Mutex<Vec<Calls>>,
    word: Vec<u8>,
    /// How long a rank waits for another one.
    patience: Duration,
    /// On one host held while they are together: another process of the same launch cannot be this rank.
    _name: Option<Listener>,
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
    pub fn take_calls(&self) -> Vec<Calls> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long a rank waits for another one.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Ends with an error of the way between them, which all others hear; the error with which they have ended before,
    /// if they have.
    pub(crate) fn fail(&self, error: CommError) -> CommError {
        self.life.fail(error)
    }

    /// Tells all others why this process ends.
    pub fn stop(&self, why: &str) {
        self.life.stop(why);
    }

    /// Tells all others that a signal ends this process at once: what it does is broken off.
    pub fn end_by(&self, signal: i32, name: &str) {
        self.life.end_by(signal, name);
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
        // Its thread did not get to say why it ends.
        if std::thread::panicking() {
            self.life.stop("it panicked");
        }
        self.life.close();
    }
}
