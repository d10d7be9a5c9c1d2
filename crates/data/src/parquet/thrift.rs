//! Thrift's compact protocol, in which a Parquet file says what it has.

/// Deepest nesting of what is passed over.
const DEPTH_MAX: usize = 64;

/// What is wrong, in words.
pub(super) type Wrong = String;

/// Bytes of the protocol.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// Bytes that are read.
    pub at: usize,
}

/// Types of the protocol.
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;
pub(super) const BYTE: u8 = 3;
pub(super) const I16: u8 = 4;
pub(super) const I32: u8 = 5;
pub(super) const I64: u8 = 6;
pub(super) const DOUBLE: u8 = 7;
pub(super) const BINARY: u8 = 8;
pub(super) const LIST: u8 = 9;
pub(super) const SET: u8 = 10;
pub(super) const MAP: u8 = 11;
pub(super) const STRUCT: u8 = 12;

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn byte(&mut self) -> Result<u8, Wrong> {
        let byte = self.bytes.get(self.at).ok_or("it ends too early")?;
        self.at += 1;
        Ok(*byte)
    }

    pub fn varint(&mut self) -> Result<u64, Wrong> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number in it has no end".into())
    }

    pub fn number(&mut self) -> Result<i64, Wrong> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// A number of 32 bits.
    pub fn small(&mut self) -> Result<i32, Wrong> {
        let n = self.number()?;
        i32::try_from(n).map_err(|_| format!("the number {n} in it is beyond 32 bits"))
    }

    /// The next bytes.
    pub fn take(&mut self, n: u64) -> Result<&'a [u8], Wrong> {
        let left = (self.bytes.len() - self.at) as u64;
        if n > left {
            return Err("it ends too early".into());
        }
        let from = self.at;
        self.at += n as usize;
        Ok(&self.bytes[from..self.at])
    }

    /// The next field of a structure: its number and type; `None` at its end.
    pub fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, Wrong> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        *last = match head >> 4 {
            0 => self.number()?,
            delta => last.saturating_add(i64::from(delta)),
        };
        Ok(Some((*last, head & 15)))
    }

    /// Number and type of a list's elements.
    pub fn list(&mut self) -> Result<(u64, u8), Wrong> {
        let head = self.byte()?;
        let n = match head >> 4 {
            15 => self.varint()?,
            n => u64::from(n),
        };
        // Each takes a byte at least.
        if n > (self.bytes.len() - self.at) as u64 {
            return Err(format!(
                "a list in it has {n} elements, more than there are bytes"
            ));
        }
        Ok((n, head & 15))
    }

    /// Passes over a value.
    pub fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Wrong> {
        if depth > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
        }
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.take(1).map(|_| ()),
            I16 | I32 | I64 => self.varint().map(|_| ()),
            DOUBLE => self.take(8).map(|_| ()),
            BINARY => {
                let n = self.varint()?;
                self.take(n).map(|_| ())
            }
            LIST | SET => {
                let (n, kind) = self.list()?;
                (0..n).try_for_each(|_| self.element(kind, depth))
            }
            MAP => {
                let n = self.varint()?;
                if n == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                for _ in 0..n {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 15, depth)?;
                }
                Ok(())
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            other => Err(format!("a field in it has the unknown type {other}")),
        }
    }

    /// An element of a list; a truth value takes a byte there.
    fn element(&mut self, kind: u8, depth: usize) -> Result<(), Wrong> {
        match kind {
            TRUE | FALSE => self.take(1).map(|_| ()),
            kind => self.skip(kind, depth + 1),
        }
    }
}

/// Appends a number as the protocol has one without a sign.
pub(super) fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n > 0x7f {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a number as the protocol has one with a sign.
pub(super) fn put_number(n: i64, out: &mut Vec<u8>) {
    put_varint((n << 1 ^ n >> 63) as u64, out);
}
