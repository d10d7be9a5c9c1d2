//! What processes of one group report to each other besides their work: that they are there, that one stops and why,
//! that one is gone, what one was asked.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::CommError;
use super::frames::{receive, send};
use super::line::Line;

/// What a process was asked from outside, which concerns all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To save and to end; by which signal, or 0.
    Stop(i32),
    /// To save and then to continue.
    Save,
}

/// Bytes of the longest message.
const MOST: usize = 1 << 20;
/// How long a peer may take to take a message.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often in the time after which a silent peer is missing a process says that it is there.
const BEATS: u32 = 10;
/// The longest pause between two of them.
const PAUSE: Duration = Duration::from_secs(5);

type Hear = Box<dyn Fn(Ask) + Send>;
type AtEnd = Box<dyn FnOnce() + Send>;

/// What is known of another process.
#[derive(Clone, Copy, Debug)]
enum Peer {
    /// It was there then.
    Heard(Instant),
    /// It has said that it ends, well.
    Over,
    /// It is gone, or silent for too long. What it says later changes nothing.
    Lost,
}

/// A process's lines to all others.
pub(super) struct Life {
    rank: usize,
    /// How long another process may be silent.
    limit: Duration,
    /// What is known of each rank's process, in order.
    peers: Mutex<Vec<Peer>>,
    /// It says nothing of itself, as if it was stopped.
    #[cfg(test)]
    quiet: AtomicBool,
    /// By rank; none to itself.
    lines: Vec<Option<Mutex<Line>>>,
    ended: Mutex<Option<CommError>>,
    changed: Condvar,
    /// This process has said that it ends, well.
    over: AtomicBool,
    hear: Mutex<Option<Hear>>,
    /// What frees whoever waits for a peer elsewhere than at these lines.
    at_end: Mutex<Option<AtEnd>>,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Life({} of {})", self.rank, self.lines.len())
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which rank's process a signal ended, of the words behind `signal`.
fn signalled(what: &str) -> Option<CommError> {
    let mut words = what.splitn(3, ' ');
    Some(CommError::Signalled {
        rank: words.next()?.parse().ok()?,
        signal: words.next()?.parse().ok()?,
        name: words.next()?.to_owned(),
    })
}

/// Says again and again that a process is there, until it has ended.
fn beat(life: &Weak<Life>, every: Duration) {
    let mut before = Instant::now();
    loop {
        std::thread::sleep(every);
        let stood = std::mem::replace(&mut before, Instant::now()).elapsed();
        if !life.upgrade().is_some_and(|life| life.beat(stood)) {
            return;
        }
    }
}

impl Life {
    /// Listens to all others from here on, and says that this one is there. One of them that is silent for `limit`,
    /// stopped or on a host that is gone, ends all.
    pub fn start(
        rank: usize,
        lines: Vec<Option<Line>>,
        limit: Duration,
    ) -> std::io::Result<Arc<Self>> {
        let mut ears = Vec::new();
        for (peer, line) in lines.iter().enumerate() {
            if let Some(line) = line {
                line.set_read_timeout(None)?;
                line.set_write_timeout(Some(PATIENCE))?;
                line.hurry()?;
                ears.push((peer, line.try_clone()?));
            }
        }
        let life = Arc::new(Self {
            rank,
            limit,
            peers: Mutex::new(vec![Peer::Heard(Instant::now()); lines.len()]),
            #[cfg(test)]
            quiet: AtomicBool::new(false),
            lines: lines.into_iter().map(|l| l.map(Mutex::new)).collect(),
            ended: Mutex::default(),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
            hear: Mutex::default(),
            at_end: Mutex::default(),
        });
        for (peer, line) in ears {
            let life = Arc::clone(&life);
            std::thread::Builder::new()
                .name(format!("rank-{peer}"))
                .spawn(move || life.listen(peer, line))?;
        }
        let (weak, every) = (Arc::downgrade(&life), (limit / BEATS).min(PAUSE));
        std::thread::Builder::new()
            .name("ranks".to_owned())
            .spawn(move || beat(&weak, every))?;
        Ok(life)
    }

    /// Says that this process is there, and looks who else is; `stood`: for how long this process did not. Whether it
    /// is to be done again.
    fn beat(&self, stood: Duration) -> bool {
        if self.over.load(Ordering::Acquire) {
            return false;
        }
        #[cfg(test)]
        let quiet = self.quiet.load(Ordering::Acquire);
        #[cfg(not(test))]
        let quiet = false;
        if !quiet {
            (0..self.lines.len()).for_each(|to| self.tell(to, "beat"));
        }
        let silent = {
            let mut peers = lock(&self.peers);
            // Who was stopped itself has heard nobody, and may have been so as long as all others.
            if stood > self.limit / 2 {
                for peer in peers.iter_mut() {
                    if let Peer::Heard(at) = peer {
                        *at = Instant::now();
                    }
                }
            }
            let late = |peer: &Peer| matches!(peer, Peer::Heard(at) if at.elapsed() >= self.limit);
            let others = (0..peers.len()).filter(|&rank| rank != self.rank);
            let late: Vec<usize> = others.filter(|&rank| late(&peers[rank])).collect();
            late.iter().for_each(|&rank| peers[rank] = Peer::Lost);
            late.first().copied()
        };
        if let Some(rank) = silent {
            self.fail(CommError::Silent {
                rank,
                seconds: self.limit.as_secs(),
            });
        }
        true
    }

    /// Whether nothing more is to come from a peer.
    pub fn is_lost(&self, peer: usize) -> bool {
        matches!(lock(&self.peers)[peer], Peer::Lost)
    }

    /// Notes what is known of a peer. One that was lost stays so.
    fn know(&self, peer: usize, what: Peer) {
        let peer = &mut lock(&self.peers)[peer];
        if !matches!(peer, Peer::Lost) {
            *peer = what;
        }
    }

    /// Says nothing of itself from here on, or does so again.
    #[cfg(test)]
    pub(super) fn be_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Release);
    }

    /// Hears one peer to its end.
    fn listen(&self, peer: usize, mut line: Line) {
        while let Ok(Some(message)) = receive(&mut line, MOST) {
            self.know(peer, Peer::Heard(Instant::now()));
            let message = String::from_utf8_lossy(&message);
            match message.split_once(' ').unwrap_or((&message, "")) {
                ("stop", why) => self.set(CommError::Stopped {
                    rank: peer,
                    why: why.to_owned(),
                }),
                ("signal", what) => {
                    self.set(signalled(what).unwrap_or(CommError::Gone { rank: peer }))
                }
                ("ask", what) => {
                    let signal = what.strip_prefix("stop ").and_then(|n| n.parse().ok());
                    let ask = match what {
                        "save" => Ask::Save,
                        _ => Ask::Stop(signal.unwrap_or(0)),
                    };
                    if let Some(hear) = &*lock(&self.hear) {
                        hear(ask);
                    }
                }
                ("beat", _) => {}
                // It has ended, well.
                _ => return self.know(peer, Peer::Over),
            }
        }
        self.know(peer, Peer::Lost);
        if !self.over.load(Ordering::Acquire) {
            self.set(CommError::Gone { rank: peer });
        }
    }

    /// How long what was sent to each other one may stay unconfirmed, in milliseconds.
    #[cfg(test)]
    pub(super) fn unconfirmed(&self) -> Vec<u32> {
        let lines = self.lines.iter().flatten();
        lines.map(|line| lock(line).unconfirmed()).collect()
    }

    /// The first reason counts. Whether this is it.
    fn claim(&self, error: CommError) -> bool {
        let mut ended = lock(&self.ended);
        let first = ended.is_none();
        ended.get_or_insert(error);
        drop(ended);
        self.changed.notify_all();
        first
    }

    /// Does what is to be done at the end, once. It may take seconds, so others hear of the end before.
    fn free(&self) {
        let free = lock(&self.at_end).take();
        if let Some(free) = free {
            free();
        }
    }

    /// What is to be done when they end: at once, if they have.
    pub fn at_end(&self, free: AtEnd) {
        *lock(&self.at_end) = Some(free);
        if self.ended().is_some() {
            self.free();
        }
    }

    fn set(&self, error: CommError) {
        if self.claim(error) {
            self.free();
        }
    }

    fn tell(&self, to: usize, message: &str) {
        if let Some(line) = &self.lines[to] {
            let cut = message.floor_char_boundary(MOST / 2);
            // One that is gone hears nothing any more.
            let _ = send(&mut *lock(line), &message.as_bytes()[..cut]);
        }
    }

    /// Tells all why this process makes no collectives any more, unless they have ended already.
    pub fn stop(&self, why: &str) {
        let rank = self.rank;
        let why = why.to_owned();
        let message = format!("stop {why}");
        if self.claim(CommError::Stopped { rank, why }) {
            (0..self.lines.len()).for_each(|to| self.tell(to, &message));
            self.free();
        }
    }

    /// Tells all that a signal ends this process, which does not wait for what it does.
    pub fn end_by(&self, signal: i32, name: &str) {
        let message = format!("signal {} {signal} {name}", self.rank);
        (0..self.lines.len()).for_each(|to| self.tell(to, &message));
    }

    /// Ends with an error of the exchange itself, which all get.
    pub fn fail(&self, error: CommError) -> CommError {
        let message = format!("stop {error}");
        if self.claim(error.clone()) {
            (0..self.lines.len()).for_each(|to| self.tell(to, &message));
            self.free();
            return error;
        }
        self.ended().unwrap_or(error)
    }

    /// Passes on what this process was asked, to the first.
    pub fn ask(&self, ask: Ask) {
        let message = match ask {
            Ask::Save => "ask save".to_owned(),
            Ask::Stop(signal) => format!("ask stop {signal}"),
        };
        self.tell(0, &message);
    }

    /// Who hears what others were asked.
    pub fn hear(&self, hear: Hear) {
        *lock(&self.hear) = Some(hear);
    }

    /// Why they have ended, if they have.
    pub fn ended(&self) -> Option<CommError> {
        lock(&self.ended).clone()
    }

    /// Why the connection to `peer` that work goes over was cut. The reason arrives on the connection kept here, at
    /// once or soon.
    pub fn why(&self, peer: usize) -> CommError {
        let begin = Instant::now();
        let mut ended = lock(&self.ended);
        while ended.is_none() && begin.elapsed() < PATIENCE {
            let waited = self.changed.wait_timeout(ended, PATIENCE);
            ended = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(ended);
        let gone = CommError::Gone { rank: peer };
        self.set(gone.clone());
        self.ended().unwrap_or(gone)
    }

    /// Cuts all lines without a word.
    #[cfg(test)]
    pub fn cut(&self) {
        self.over.store(true, Ordering::Release);
        for line in self.lines.iter().flatten() {
            let _ = lock(line).shutdown();
        }
    }

    /// Cuts the line to one peer without a word.
    #[cfg(test)]
    pub fn cut_line(&self, to: usize) {
        if let Some(line) = &self.lines[to] {
            let _ = lock(line).shutdown();
        }
    }

    /// Reports to every peer that this process ends, and closes the lines: as planned, or with why it has ended. That
    /// may be something that only this process knows, as that its line to another one broke.
    pub fn close(&self) {
        self.over.store(true, Ordering::Release);
        let message = match self.ended() {
            None => "end".to_owned(),
            Some(CommError::Stopped { rank, why }) if rank == self.rank => format!("stop {why}"),
            Some(CommError::Signalled { rank, signal, name }) => {
                format!("signal {rank} {signal} {name}")
            }
            Some(error) => format!("stop {error}"),
        };
        for (to, line) in self.lines.iter().enumerate() {
            self.tell(to, &message);
            if let Some(line) = line {
                let _ = lock(line).shutdown();
            }
        }
    }
}
