//! Messages over a stream of bytes: the length of each, then its bytes.

use std::io::{self, ErrorKind, Read, Write};

/// Writes a message.
///
/// # Errors
/// The stream's; a message of 4 GiB or more.
pub fn send(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let bytes = u32::try_from(message.len()).map_err(|_| ErrorKind::InvalidInput)?;
    to.write_all(&bytes.to_le_bytes())?;
    to.write_all(message)?;
    to.flush()
}

/// Reads a message of at most so many bytes; `None` where the stream ends before it.
///
/// # Errors
/// The stream's; a message that is longer; an end within one.
pub fn receive(from: &mut impl Read, most: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0u8; 4];
    let mut have = 0;
    while have < length.len() {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > most {
        let what = format!("a message of {bytes} bytes, {most} at most");
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    let mut message = vec![0; bytes];
    from.read_exact(&mut message)?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_they_were_sent_and_no_longer_than_allowed() {
        let mut bytes = Vec::new();
        for message in [&b"one"[..], b"", b"three"] {
            send(&mut bytes, message).expect("memory");
        }
        let mut from = &bytes[..];
        for message in [&b"one"[..], b"", b"three"] {
            let got = receive(&mut from, 5).expect("whole");
            assert_eq!(got.as_deref(), Some(message));
        }
        assert_eq!(receive(&mut from, 5).expect("the end"), None);
        receive(&mut &bytes[..], 2).expect_err("too long");
        receive(&mut &bytes[..5], 9).expect_err("cut off");
        receive(&mut &bytes[..2], 9).expect_err("cut off");
    }
}
