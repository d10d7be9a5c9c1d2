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
/// How long a peer's host may take to confirm what was sent, in milliseconds.
const UNCONFIRMED: u32 = 16_000;

/// A connection to another process, which both ends read and write.
#[derive(Debug)]
pub enum Line {
    /// To a process of the same host, of the same user.
    Here(UnixStream),
    /// Over TCP, to a process of another host.
    Far(TcpStream),
}

impl Line {
    /// A line between hosts. A host that is gone without a word ends it within seconds.
    pub(super) fn far(line: TcpStream) -> io::Result<Self> {
        line.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&line, true)?;
        sockopt::set_tcp_keepidle(&line, SILENT)?;
        sockopt::set_tcp_keepintvl(&line, SILENT)?;
        sockopt::set_tcp_keepcnt(&line, QUESTIONS)?;
        sockopt::set_tcp_user_timeout(&line, UNCONFIRMED)?;
        Ok(Self::Far(line))
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

    /// The next that comes, and from which host.
    pub fn accept(&self) -> io::Result<(Line, Option<IpAddr>)> {
        match self {
            Self::Here(listener) => {
                let (line, _) = listener.accept()?;
                line.set_nonblocking(false)?;
                Ok((Line::Here(line), None))
            }
            Self::Far(listener) => {
                let (line, from) = listener.accept()?;
                line.set_nonblocking(false)?;
                Ok((Line::far(line)?, Some(from.ip())))
            }
        }
    }
}
