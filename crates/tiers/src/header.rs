//! What a state file says of itself in its first 4 KiB.

use crate::stripe::Stripe;

/// Bytes of a header.
pub(crate) const HEADER: usize = 4096;
/// Where in the file the drive's bytes begin.
pub(crate) const DATA: u64 = 2 << 20;
pub(crate) const MAGIC: &[u8; 8] = b"LOWTIDE\n";
const VERSION: u32 = 2;
const KEEP: u32 = 1;

/// What a header says. A file can be used again only by a disk that would write the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) run: u128,
    pub(crate) keep: bool,
    pub(crate) drive: u32,
    /// Bytes of data in this file.
    pub(crate) share: u64,
    pub(crate) stripe: Stripe,
}

/// Why bytes are no header of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Nothing that lowtide writes, or no longer so.
    Damaged(&'static str),
    /// A whole header of another version; whether its file was to be kept.
    Format { version: u32, keep: bool },
}

impl Unread {
    pub(crate) fn tell(&self) -> String {
        match self {
            Self::Damaged(what) => (*what).to_owned(),
            Self::Format { version, .. } => format!(
                "it has format {version}, this program reads format {VERSION}: the version of lowtide \
                 that wrote it can go on with it"
            ),
        }
    }
}

impl Header {
    /// Whether a disk of the header `new` finds its bytes where this one's put them. Each drive's
    /// bytes lie the same whatever its share is.
    pub(crate) fn goes_on_as(&self, new: &Self) -> bool {
        let share = new.share;
        Self {
            share,
            ..self.clone()
        } == *new
    }

    /// magic, version, flags, run, share, drive, drives, unit, units, pattern, crc32c.
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let (pattern, unit) = self.stripe.pattern();
        let mut text = Vec::with_capacity(HEADER);
        text.extend_from_slice(MAGIC);
        text.extend_from_slice(&VERSION.to_le_bytes());
        text.extend_from_slice(&(if self.keep { KEEP } else { 0 }).to_le_bytes());
        text.extend_from_slice(&self.run.to_le_bytes());
        text.extend_from_slice(&self.share.to_le_bytes());
        text.extend_from_slice(&self.drive.to_le_bytes());
        text.extend_from_slice(&(self.stripe.n_drives() as u32).to_le_bytes());
        text.extend_from_slice(&unit.to_le_bytes());
        text.extend_from_slice(&(pattern.len() as u32).to_le_bytes());
        text.extend(pattern.iter().flat_map(|drive| drive.to_le_bytes()));
        let mut bytes = [0; HEADER];
        bytes[..text.len()].copy_from_slice(&text);
        let sum = crc32c::crc32c(&bytes[..HEADER - 4]).to_le_bytes();
        bytes[HEADER - 4..].copy_from_slice(&sum);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Self, Unread> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
        if &bytes[..8] != MAGIC {
            return Err(Unread::Damaged(
                "it is no state file of lowtide, or its header is damaged",
            ));
        }
        // Version, flags and checksum lie where they lay in every version.
        if u32_at(HEADER - 4) != crc32c::crc32c(&bytes[..HEADER - 4]) {
            return Err(Unread::Damaged(
                "its header is damaged: it does not have its checksum",
            ));
        }
        let keep = u32_at(12) & KEEP != 0;
        let version = u32_at(8);
        if version != VERSION {
            return Err(Unread::Format { version, keep });
        }
        let n = u32_at(56) as usize;
        let pattern: Vec<u32> = (0..n.min(1000)).map(|i| u32_at(60 + 4 * i)).collect();
        let stripe = Stripe::from_pattern(u64_at(48), u32_at(44) as usize, pattern);
        Ok(Self {
            keep,
            run: u128::from_le_bytes(bytes[16..32].try_into().expect("16")),
            share: u64_at(32),
            drive: u32_at(40),
            stripe: stripe.ok_or(Unread::Damaged("its header tells of no possible striping"))?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn header(keep: bool) -> Header {
        let stripe = Stripe::new(1 << 20, &[3.0, 2.0]);
        Header {
            run: 0xfeed << 100,
            keep,
            drive: 1,
            share: 5 << 20,
            stripe,
        }
    }

    #[test]
    fn headers_survive_and_every_changed_byte_shows() {
        let bytes = header(true).encode();
        assert_eq!(Header::decode(&bytes), Ok(header(true)));
        for at in 0..HEADER {
            let mut bad = bytes;
            bad[at] ^= 1;
            let read = Header::decode(&bad);
            assert!(matches!(read, Err(Unread::Damaged(_))), "byte {at}");
        }
    }

    #[test]
    fn another_format_is_named() {
        for keep in [true, false] {
            let mut old = header(keep).encode();
            old[8] = 1;
            let sum = crc32c::crc32c(&old[..HEADER - 4]).to_le_bytes();
            old[HEADER - 4..].copy_from_slice(&sum);
            let unread = Header::decode(&old).unwrap_err();
            assert_eq!(unread, Unread::Format { version: 1, keep });
            assert!(unread.tell().contains("format 1"), "{}", unread.tell());
        }
    }
}
