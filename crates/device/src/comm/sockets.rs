//! Collectives between processes, on the CPU device.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::life::Life;
use super::line::Line;
use super::{Collective, Comm, CommError, Pattern, World, described};
use crate::Queue;
use crate::view::{Dst, Src};

/// How long a call on a stream may take before it is looked whether the group has ended.
const LOOK: Duration = Duration::from_millis(100);
/// Longest text of what a peer makes.
const MOST: u32 = 1 << 16;

/// Ranks that are processes and exchange bytes of host memory over sockets, each pair over one of its own.
#[derive(Debug)]
pub struct Sockets {
    world: World,
    /// How long to wait for a peer.
    limit: Duration,
    life: Arc<Life>,
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    /// By rank; none to itself.
    peers: Vec<Option<Line>>,
    /// Collectives that this rank has made; named in errors.
    number: u64,
}

/// What is done on a line, with the collective that it is for.
struct On<'a> {
    sockets: &'a Sockets,
    peer: usize,
    what: &'a str,
    number: u64,
}

impl On<'_> {
    /// Does a call again and again until all is moved. A peer that moves nothing for too long is missing.
    fn patiently(
        &self,
        bytes: usize,
        mut call: impl FnMut(usize) -> io::Result<usize>,
    ) -> Result<(), CommError> {
        let life = &self.sockets.life;
        // Counted by looks: what this process was stopped for is no time in which its peer moved nothing.
        let (mut done, mut waited) = (0, Duration::ZERO);
        while done < bytes {
            match call(done) {
                Ok(0) => return Err(life.why(self.peer)),
                Ok(n) => (done, waited) = (done + n, Duration::ZERO),
                Err(e) => match e.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        if let Some(error) = life.ended() {
                            return Err(error);
                        }
                        waited += LOOK;
                        if waited >= self.sockets.limit {
                            return Err(life.fail(CommError::Missing {
                                rank: self.peer,
                                number: self.number,
                                collective: self.what.to_owned(),
                                seconds: self.sockets.limit.as_secs(),
                            }));
                        }
                    }
                    _ => return Err(life.why(self.peer)),
                },
            }
        }
        Ok(())
    }

    fn write(&self, mut line: &Line, bytes: &[u8]) -> Result<(), CommError> {
        self.patiently(bytes.len(), |at| line.write(&bytes[at..]))
    }

    fn read(&self, mut line: &Line, bytes: &mut [u8]) -> Result<(), CommError> {
        self.patiently(bytes.len(), |at| line.read(&mut bytes[at..]))
    }

    /// Says what this rank makes now.
    fn announce(&self, line: &Line) -> Result<(), CommError> {
        let mut head = (self.what.len() as u32).to_le_bytes().to_vec();
        head.extend_from_slice(self.what.as_bytes());
        self.write(line, &head)
    }

    /// Hears what the peer makes, which must be the same.
    fn compare(&self, line: &Line) -> Result<(), CommError> {
        let mut length = [0u8; 4];
        self.read(line, &mut length)?;
        let mut theirs = vec![0; u32::from_le_bytes(length).min(MOST) as usize];
        self.read(line, &mut theirs)?;
        if theirs == self.what.as_bytes() {
            return Ok(());
        }
        Err(self.sockets.life.fail(CommError::Differs {
            number: self.number,
            rank: self.sockets.world.rank,
            collective: self.what.to_owned(),
            other: self.peer,
            others: String::from_utf8_lossy(&theirs).into_owned(),
        }))
    }
}

impl Sockets {
    /// A rank with a line to each other one.
    pub(super) fn new(
        world: World,
        limit: Duration,
        life: Arc<Life>,
        peers: Vec<Option<Line>>,
    ) -> io::Result<Self> {
        for line in peers.iter().flatten() {
            line.set_read_timeout(Some(LOOK))?;
            line.set_write_timeout(Some(LOOK))?;
        }
        Ok(Self {
            world,
            limit,
            life,
            lines: Mutex::new(Lines { peers, number: 0 }),
        })
    }

    /// From here on waits no longer than that.
    #[cfg(test)]
    pub(super) fn impatient(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// How long what was sent to each other one may stay unconfirmed, in milliseconds; 0: as long as the system has it.
    #[cfg(test)]
    pub(super) fn unconfirmed(&self) -> Vec<u32> {
        let lines = self.lines.lock().expect("no panic");
        lines
            .peers
            .iter()
            .flatten()
            .map(Line::unconfirmed)
            .collect()
    }

    /// Sends each peer what it is to get. The next rank comes first, then the one behind it; each hears them the other
    /// way round, so that who sends and who hears come to each other.
    fn give(
        &self,
        lines: &Lines,
        of: Collective<'_>,
        what: &str,
        from: &[u8],
    ) -> Result<(), CommError> {
        let World { rank, size } = self.world;
        for step in 1..size {
            let peer = (rank + step) % size;
            let on = self.on(lines, peer, what);
            let line = lines.peers[peer].as_ref().expect("a line to each other");
            on.announce(line)?;
            for s in of.stretches {
                let at = match of.pattern {
                    Pattern::AllGather => s.part,
                    Pattern::AllToAll => s.whole + peer * s.bytes,
                };
                on.write(line, &from[at..][..s.bytes])?;
            }
        }
        Ok(())
    }

    /// Takes from each peer, and from itself, what this rank is to get.
    fn take(
        &self,
        lines: &Lines,
        of: Collective<'_>,
        what: &str,
        from: &[u8],
        to: &mut [u8],
    ) -> Result<(), CommError> {
        let World { rank, size } = self.world;
        let row = to.len() / size;
        for step in 0..size {
            let peer = (rank + size - step) % size;
            let on = self.on(lines, peer, what);
            let line = lines.peers[peer].as_ref();
            if let Some(line) = line {
                on.compare(line)?;
            }
            for s in of.stretches {
                let (at, own) = match of.pattern {
                    Pattern::AllGather => (s.whole + peer * s.bytes, s.part),
                    Pattern::AllToAll => (peer * row + s.part, s.whole + rank * s.bytes),
                };
                let to = &mut to[at..][..s.bytes];
                match line {
                    Some(line) => on.read(line, to)?,
                    None => to.copy_from_slice(&from[own..][..s.bytes]),
                }
            }
        }
        Ok(())
    }

    fn on<'a>(&'a self, lines: &Lines, peer: usize, what: &'a str) -> On<'a> {
        On {
            sockets: self,
            peer,
            what,
            number: lines.number,
        }
    }
}

impl Comm for Sockets {
    fn world(&self) -> World {
        self.world
    }

    unsafe fn exchange(
        &self,
        _: &Queue,
        collective: Collective<'_>,
        from: Src<'_>,
        to: Dst<'_>,
    ) -> Result<(), CommError> {
        collective.fits(self.world.size, from, &to);
        if let Some(error) = self.life.ended() {
            return Err(error);
        }
        let what = described(&collective, from.bytes());
        let (from, to) = (from.read::<u8>(), to.write::<u8>());
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (given, taken) = std::thread::scope(|scope| {
            let (lines, what) = (&*lines, &*what);
            let giving = scope.spawn(move || self.give(lines, collective, what, from));
            let taken = self.take(lines, collective, what, from, to);
            let given = giving.join();
            (given, taken)
        });
        lines.number += 1;
        let given = given.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What failed first is what both say: the group has one end.
        taken.and(given)
    }

    fn stop(&self, why: &str) {
        self.life.stop(why);
    }

    fn stopped(&self) -> Option<CommError> {
        self.life.ended()
    }

    fn by(&self) -> String {
        "sockets".to_owned()
    }
}
