//! Lines between processes: sockets of one host, or TCP between hosts.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::sockopt;

/// How long a peer's host may be silent before it is asked whether it is there, and between two such questions.
const SILENT: Duration = Duration::from_secs(4);
/// How many of them may stay without an answer.
const QUESTIONS: u32 = 3;
/// How long a peer's host may take to confirm what was sent, in milliseconds, where a peer always reads.
const UNCONFIRMED: u32 = 16_000;

/// A connection to another process, which both ends read and write.
#[derive(Debug)]
pub(super) enum Line {
    /// To a process of the same host, of the same user.
    Here(UnixStream),
    /// Over TCP, to a process of another host.
    Far(TcpStream),
}

impl Line {
    /// A line between hosts. While nothing is under way, a host that is gone without a word ends it within seconds.
    ///
    /// # Errors
    /// The system's; a line whose two ends are one, as of a call to a free port of this host that the system took for
    /// the caller.
    pub(super) fn far(line: TcpStream) -> io::Result<Self> {
        if line.local_addr()? == line.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        line.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&line, true)?;
        sockopt::set_tcp_keepidle(&line, SILENT)?;
        sockopt::set_tcp_keepintvl(&line, SILENT)?;
        sockopt::set_tcp_keepcnt(&line, QUESTIONS)?;
        Ok(Self::Far(line))
    }

    /// From here on a host that is gone ends it within seconds while something is under way, too. Not for a line whose
    /// peer may be slow to read: the system counts the time in which it has no room as well.
    pub(super) fn hurry(&self) -> io::Result<()> {
        match self {
            Self::Here(_) => Ok(()),
            Self::Far(line) => Ok(sockopt::set_tcp_user_timeout(line, UNCONFIRMED)?),
        }
    }

    /// How long what was sent may stay unconfirmed, in milliseconds; 0: as long as the system has it.
    #[cfg(test)]
    pub(super) fn unconfirmed(&self) -> u32 {
        match self {
            Self::Here(_) => 0,
            Self::Far(line) => sockopt::tcp_user_timeout(line).expect("a line's setting"),
        }
    }

    /// Another handle of it.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Here(line) => Self::Here(line.try_clone()?),
            Self::Far(line) => Self::Far(line.try_clone()?),
        })
    }

    pub(super) fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Here(line) => line.set_read_timeout(limit),
            Self::Far(line) => line.set_read_timeout(limit),
        }
    }

    pub(super) fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Here(line) => line.set_nonblocking(on),
            Self::Far(line) => line.set_nonblocking(on),
        }
    }

    pub(super) fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Here(line) => line.set_write_timeout(limit),
            Self::Far(line) => line.set_write_timeout(limit),
        }
    }

    pub(super) fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Here(line) => line.shutdown(Shutdown::Both),
            Self::Far(line) => line.shutdown(Shutdown::Both),
        }
    }
}

impl Read for &Line {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Line::Here(line) => (&mut &*line).read(to),
            Line::Far(line) => (&mut &*line).read(to),
        }
    }
}

impl Write for &Line {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Line::Here(line) => (&mut &*line).write(from),
            Line::Far(line) => (&mut &*line).write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(to)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a process is met.
pub(super) enum Listener {
    Here(UnixListener),
    Far(TcpListener),
}

impl Listener {
    /// At a port of this host, without waiting.
    pub fn far(at: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(Self::Far(listener))
    }

    /// Its port; none on the same host.
    pub fn port(&self) -> io::Result<u16> {
        match self {
            Self::Here(_) => Ok(0),
            Self::Far(listener) => Ok(listener.local_addr()?.port()),
        }
    }

    /// The next that comes, and from which host; on this host nobody but this user. Reads of it do not wait. None where
    /// the one that came cannot be had.
    ///
    /// # Errors
    /// Nobody is there.
    pub fn accept(&self) -> io::Result<Option<(Line, Option<IpAddr>)>> {
        let (line, from) = match self {
            Self::Here(listener) => {
                let (line, _) = listener.accept()?;
                (of_this_user(&line).then_some(Line::Here(line)), None)
            }
            Self::Far(listener) => {
                let (line, from) = listener.accept()?;
                (Line::far(line).ok(), Some(from.ip()))
            }
        };
        let ready = line.filter(|line| line.set_nonblocking(true).is_ok());
        Ok(ready.map(|line| (line, from)))
    }
}

/// Whether the process at the other end is this user's.
pub(super) fn of_this_user(line: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    sockopt::socket_peercred(line).is_ok_and(|who| who.uid == own)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType, bind, connect, getsockname, socket};

    use super::*;

    /// A free port can be the very one from which the system calls it.
    #[test]
    fn a_line_to_itself_is_none() {
        let own = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&own, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let at = SocketAddr::try_from(getsockname(&own).expect("a name")).expect("an address");
        connect(&own, &at).expect("to itself");
        let error = Line::far(TcpStream::from(own)).expect_err("nobody else is there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
