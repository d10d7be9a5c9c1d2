//! The line over which rank 0 asks things of another rank.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::life::Life;
use super::line::Line;

/// How long a call on the line may take before it is looked whether the other end is there.
const LOOK: Duration = Duration::from_millis(100);

/// One end of a line between rank 0 and another rank. Who waits at it waits as long as the other end's process says
/// that it is there: an answer may take as long as the work that was asked for.
pub struct Calls {
    line: Line,
    /// Which rank is at the other end.
    peer: usize,
    life: Arc<Life>,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Calls(with rank {})", self.peer)
    }
}

impl Calls {
    pub(super) fn new(line: Line, peer: usize, life: Arc<Life>) -> io::Result<Self> {
        line.set_read_timeout(Some(LOOK))?;
        line.set_write_timeout(Some(LOOK))?;
        Ok(Self { line, peer, life })
    }

    /// Makes a call again and again until something is moved, or nothing is to come any more.
    fn patiently(&self, mut call: impl FnMut(&Line) -> io::Result<usize>) -> io::Result<usize> {
        let mut last = false;
        loop {
            match call(&self.line) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(e);
                }
                // What it has sent before may have come since.
                Err(e) if last => return Err(e),
                Err(_) => last = self.life.is_lost(self.peer),
                moved => return moved,
            }
        }
    }
}

impl Read for Calls {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.patiently(|mut line| line.read(to))
    }
}

impl Write for Calls {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.patiently(|mut line| line.write(from))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
