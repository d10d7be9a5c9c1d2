//! Who comes to a place where ranks meet: anybody can, and nobody is waited for.

use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::line::{Line, Listener};

/// How long the first word of who comes may take, from its first byte to its last.
const WORD: Duration = Duration::from_secs(10);
/// How many may be without their word at once: then the one that came first is dropped.
const PENDING: usize = 256;
/// What they may have sent of their words in all, in longest words: whoever can open a connection can send, and many
/// of them could fill the memory. Ranks' own words are far shorter.
const LONGEST: usize = 2;
/// Bytes read at a time.
const BLOCK: usize = 4096;

/// The lines that come to a listener, each with its first word. Words are read as their bytes come, so a line that is
/// silent, or sends very little at a time, takes nothing from the others.
pub(super) struct Arrivals<'a> {
    listener: &'a Listener,
    /// How many bytes a word may have; a line that announces more is dropped.
    most: usize,
    pending: Vec<Arrival>,
}

/// A line that has not said its word yet.
struct Arrival {
    line: Line,
    from: Option<IpAddr>,
    since: Instant,
    /// What has come of its word: first its length.
    have: Vec<u8>,
}

impl<'a> Arrivals<'a> {
    pub fn new(listener: &'a Listener, most: usize) -> Self {
        Self {
            listener,
            most,
            pending: Vec::new(),
        }
    }

    /// The next line whose word is whole, that word, and the host that it comes from; none at this moment.
    pub fn next(&mut self) -> Option<(Line, Vec<u8>, Option<IpAddr>)> {
        for _ in 0..PENDING {
            match self.listener.accept() {
                Ok(Some((line, from))) => self.pending.push(Arrival {
                    line,
                    from,
                    since: Instant::now(),
                    have: Vec::new(),
                }),
                // One that is not of this user, or has gone again.
                Ok(None) => {}
                Err(_) => break,
            }
        }
        let mut i = 0;
        while i < self.pending.len() {
            let one = &mut self.pending[i];
            match one.read(self.most) {
                Ok(true) => {
                    let Arrival {
                        line, from, have, ..
                    } = self.pending.remove(i);
                    if line.set_nonblocking(false).is_ok() {
                        return Some((line, have[4..].to_vec(), from));
                    }
                }
                Ok(false) if one.since.elapsed() < WORD => i = self.shed(i + 1),
                Ok(false) | Err(_) => drop(self.pending.remove(i)),
            }
        }
        let over = self.pending.len().saturating_sub(PENDING);
        self.pending.drain(..over);
        None
    }

    /// Drops who has sent most, as long as all have sent too much. Returns the place of who was at `next`.
    fn shed(&mut self, mut next: usize) -> usize {
        let sent = |one: &Arrival| one.have.len();
        while self.pending.iter().map(sent).sum::<usize>() > LONGEST * self.most {
            let longest = (0..self.pending.len()).max_by_key(|&i| sent(&self.pending[i]));
            let longest = longest.expect("somebody has sent something");
            self.pending.remove(longest);
            next -= usize::from(longest < next);
        }
        next
    }
}

impl Arrival {
    /// Reads what is there, and nothing behind the word. Whether the word is whole.
    fn read(&mut self, most: usize) -> io::Result<bool> {
        let mut block = [0; BLOCK];
        loop {
            let whole = match self.have.first_chunk() {
                None => 4,
                Some(length) => {
                    let bytes = u32::from_le_bytes(*length) as usize;
                    if bytes > most {
                        return Err(ErrorKind::InvalidData.into());
                    }
                    if self.have.len() == 4 + bytes {
                        return Ok(true);
                    }
                    4 + bytes
                }
            };
            let want = (whole - self.have.len()).min(BLOCK);
            match self.line.read(&mut block[..want]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.have.extend_from_slice(&block[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;

    const MOST: usize = 1 << 16;

    #[test]
    fn many_long_words_fill_no_memory_and_keep_nobody_out() {
        let listener = Listener::far(([127, 0, 0, 1], 0).into()).unwrap();
        let at = listener.port().unwrap();
        let come = || TcpStream::connect(("127.0.0.1", at)).unwrap();
        let mut arrivals = Arrivals::new(&listener, MOST);
        // Each sends its word but for the last byte.
        let mut word = (MOST as u32).to_le_bytes().to_vec();
        word.resize(4 + MOST - 1, 0);
        let mut flood = Vec::new();
        let held = |arrivals: &Arrivals<'_>| -> usize {
            arrivals.pending.iter().map(|one| one.have.len()).sum()
        };
        for _ in 0..10 {
            let mut sender = come();
            sender.set_nonblocking(true).unwrap();
            // As much of it as the system takes at once, which is all of it.
            assert_eq!(sender.write(&word).unwrap(), word.len());
            flood.push(sender);
        }
        let mut slow = come();
        slow.write_all(&[2, 0, 0, 0, b'h']).unwrap();
        let begin = Instant::now();
        while flood.iter().filter(|s| closed(s)).count() < 10 - LONGEST {
            assert!(arrivals.next().is_none());
            assert!(held(&arrivals) <= LONGEST * MOST);
            assert!(begin.elapsed() < WORD, "they are kept");
        }
        slow.write_all(b"i").unwrap();
        let tries = std::iter::from_fn(|| (begin.elapsed() < 2 * WORD).then(|| arrivals.next()));
        let met = tries.flatten().next();
        assert_eq!(met.expect("comes").1, b"hi");
    }

    /// Whether the other side has closed the line.
    fn closed(line: &TcpStream) -> bool {
        match line.peek(&mut [0]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() != ErrorKind::WouldBlock,
        }
    }
}
