//! What a Parquet file says of itself, looked through before its reader believes it.
//!
//! The reader allocates by the numbers of children, pages and values that a file claims, and walks its schema by
//! recursion. So these are read here first, from the same bytes (Thrift's compact protocol), and held against
//! what is there and what may be taken.

/// Deepest nesting of a schema, and of what the protocol nests.
const DEPTH_MAX: usize = 64;
/// Most elements of a schema.
const ELEMENTS_MAX: u64 = 100_000;
/// Most bytes of a page's header: statistics in it have a minimum and a maximum.
pub(super) const HEADER_MAX: usize = 1 << 20;

/// What is wrong, in words.
pub(super) type Wrong = String;

/// Bytes of the compact protocol.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Types of the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn byte(&mut self) -> Result<u8, Wrong> {
        let byte = self.bytes.get(self.at).ok_or("it ends too early")?;
        self.at += 1;
        Ok(*byte)
    }

    fn varint(&mut self) -> Result<u64, Wrong> {
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

    fn number(&mut self) -> Result<i64, Wrong> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn pass(&mut self, n: u64) -> Result<(), Wrong> {
        let left = (self.bytes.len() - self.at) as u64;
        if n > left {
            return Err("it ends too early".into());
        }
        self.at += n as usize;
        Ok(())
    }

    /// The next field of a structure: its number and type; `None` at its end.
    fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, Wrong> {
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
    fn list(&mut self) -> Result<(u64, u8), Wrong> {
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

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Wrong> {
        if depth > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
        }
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.pass(1),
            I16 | I32 | I64 => self.varint().map(|_| ()),
            DOUBLE => self.pass(8),
            BINARY => {
                let n = self.varint()?;
                self.pass(n)
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
            TRUE | FALSE => self.pass(1),
            kind => self.skip(kind, depth + 1),
        }
    }
}

/// Holds the schema of a file's footer against itself: as many children as it says, and not nested too deep.
pub(super) fn footer(bytes: &[u8]) -> Result<(), Wrong> {
    let mut reader = Reader::new(bytes);
    let (mut last, mut seen) = (0, false);
    while let Some((id, kind)) = reader.field(&mut last)? {
        if (id, kind) != (2, LIST) {
            reader.skip(kind, 0)?;
            continue;
        }
        let (n, kind) = reader.list()?;
        if seen || kind != STRUCT || n == 0 || n > ELEMENTS_MAX {
            return Err(format!(
                "its schema has {n} elements; up to {ELEMENTS_MAX} are read"
            ));
        }
        seen = true;
        schema(&mut reader, n)?;
    }
    match seen {
        true => Ok(()),
        false => Err("it has no schema".into()),
    }
}

/// The elements of a schema stand in the order of a walk from its root.
fn schema(reader: &mut Reader<'_>, n: u64) -> Result<(), Wrong> {
    // Children that are still to come, by depth.
    let mut open: Vec<u64> = vec![1];
    let mut left = n;
    for _ in 0..n {
        while open.last() == Some(&0) {
            open.pop();
        }
        let Some(due) = open.last_mut() else {
            return Err("its schema has elements that belong to nothing".into());
        };
        *due -= 1;
        left -= 1;
        let (mut last, mut children) = (0, 0);
        while let Some((id, kind)) = reader.field(&mut last)? {
            match (id, kind) {
                (5, I16 | I32 | I64) => children = reader.number()?,
                _ => reader.skip(kind, 1)?,
            }
        }
        let children = u64::try_from(children).ok().filter(|&n| n <= left);
        let children =
            children.ok_or("an element of its schema has children that are not there")?;
        if children > 0 {
            open.push(children);
        }
        if open.len() > DEPTH_MAX {
            return Err(format!(
                "its schema is nested deeper than {DEPTH_MAX} levels"
            ));
        }
    }
    match open.iter().all(|&n| n == 0) {
        true => Ok(()),
        false => Err("an element of its schema has children that are not there".into()),
    }
}

/// What the header of a page says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Bytes of the header itself.
    pub header: u64,
    /// Bytes of the page in the file.
    pub compressed: u64,
    /// Bytes of the page as it is read.
    pub uncompressed: u64,
    /// Values that it says it has.
    pub values: u64,
    /// Whether it is a dictionary.
    pub dictionary: bool,
}

/// Reads the header that the bytes begin with.
pub(super) fn page(bytes: &[u8]) -> Result<Page, Wrong> {
    let mut reader = Reader::new(bytes);
    let (mut page, mut last) = (Page::default(), 0);
    let positive = |reader: &mut Reader<'_>| {
        let n = reader.number()?;
        u64::try_from(n).map_err(|_| Wrong::from("a page of it has a size below 0"))
    };
    while let Some((id, kind)) = reader.field(&mut last)? {
        match (id, kind) {
            (2, I32) => page.uncompressed = positive(&mut reader)?,
            (3, I32) => page.compressed = positive(&mut reader)?,
            (5 | 7 | 8, STRUCT) => {
                page.dictionary |= id == 7;
                let mut inner = 0;
                while let Some((inner_id, kind)) = reader.field(&mut inner)? {
                    match (inner_id, kind) {
                        (1, I32) => page.values = page.values.max(positive(&mut reader)?),
                        _ => reader.skip(kind, 1)?,
                    }
                }
            }
            _ => reader.skip(kind, 0)?,
        }
    }
    page.header = reader.at as u64;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure of the compact protocol: fields as (number, type, bytes).
    fn fields(all: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (id, kind, value) in all {
            bytes.push(*kind);
            bytes.push(id * 2);
            bytes.extend(value);
        }
        bytes.push(0);
        bytes
    }

    fn footer_of(children: &[u8]) -> Vec<u8> {
        let mut list = vec![(15 << 4) | STRUCT];
        list.push(children.len() as u8);
        for n in children {
            list.extend(fields(&[(5, I32, vec![n * 2])]));
        }
        fields(&[(1, I32, vec![2]), (2, LIST, list)])
    }

    #[test]
    fn a_schema_is_what_it_says() {
        assert_eq!(footer(&footer_of(&[2, 0, 1, 0])), Ok(()));
        for (children, why) in [
            (&[2, 0][..], "not there"),
            (&[1, 0, 0], "belong to nothing"),
            (&[60, 0], "not there"),
        ] {
            let told = footer(&footer_of(children)).unwrap_err();
            assert!(told.contains(why), "{children:?}: {told}");
        }
        let mut deep = vec![1; 100];
        deep.push(0);
        assert!(footer(&footer_of(&deep)).unwrap_err().contains("deeper"));
        assert!(footer(&[0]).unwrap_err().contains("no schema"));
        assert!(footer(&[]).unwrap_err().contains("too early"));
        // A list of more than there is, and structures in structures without an end.
        let huge = [vec![LIST, 4, (15 << 4) | STRUCT], vec![0xff; 8], vec![1]].concat();
        assert!(
            footer(&huge)
                .unwrap_err()
                .contains("more than there are bytes")
        );
        assert!(footer(&[0x1c; 1000]).unwrap_err().contains("nested deeper"));
    }

    #[test]
    fn a_page_tells_its_sizes() {
        let header = fields(&[
            (1, I32, vec![0]),
            (2, I32, vec![200, 1]),
            (3, I32, vec![100]),
            (5, STRUCT, fields(&[(1, I32, vec![14])])),
        ]);
        let page = page(&[&header[..], b"rest"].concat()).unwrap();
        let want = Page {
            header: header.len() as u64,
            compressed: 50,
            uncompressed: 100,
            values: 7,
            dictionary: false,
        };
        assert_eq!(page, want);
        assert!(super::page(&fields(&[(2, I32, vec![1])])).is_err());
    }
}
