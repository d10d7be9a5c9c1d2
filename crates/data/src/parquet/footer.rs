//! What a Parquet file says of itself, written anew before its reader believes it.
//!
//! The reader allocates by the numbers that a file claims and walks its schema by recursion, and where a file is not
//! as the format has it, two readers may see two things in the same bytes. So nothing of the file's own bytes reaches
//! it: what it needs is read here, field by field with its type, held against bounds, and written down again. Fields
//! that it has no use for are left out.

use super::thrift::{
    BINARY, BYTE, FALSE, I32, I64, LIST, Reader, STRUCT, TRUE, Wrong, put_number, put_varint,
};

/// Deepest nesting of a schema.
const DEPTH_MAX: usize = 64;
/// Most elements of a schema.
const ELEMENTS_MAX: u64 = 100_000;
/// Bytes of memory for a structure in a list: the reader's largest, with room.
const STRUCT_COST: u64 = 1024;
/// Bytes of memory for another element of a list.
const ELEMENT_COST: u64 = 64;
/// Bytes of memory for each byte of a footer: itself, what is written anew, and what is made of that.
const BYTE_COST: u64 = 4;

/// What a field is.
enum Kind {
    Truth,
    Byte,
    Small,
    Number,
    Text,
    List(&'static Self),
    Fields(&'static [(i64, Self)]),
    /// One of several, the unknown among them: of these only the number is kept.
    OneOf(&'static [(i64, Self)]),
    /// What is not read: where it is there, the file is refused with these words.
    Refused(&'static str),
}

use Kind::{Byte, Fields, List, Number, OneOf, Refused, Small, Text, Truth};

const NOTHING: Kind = Fields(&[]);
const ENCRYPTED: Kind = Refused("it is encrypted");

const TIME: Kind = Fields(&[
    (1, Truth),
    (2, OneOf(&[(1, NOTHING), (2, NOTHING), (3, NOTHING)])),
]);

const LOGICAL: Kind = OneOf(&[
    (5, Fields(&[(1, Small), (2, Small)])),
    (7, TIME),
    (8, TIME),
    (10, Fields(&[(1, Byte), (2, Truth)])),
]);

const ELEMENT: Kind = Fields(&[
    (1, Small),
    (2, Small),
    (3, Small),
    (4, Text),
    (5, Small),
    (6, Small),
    (7, Small),
    (8, Small),
    (9, Small),
    (10, LOGICAL),
]);

const CHUNK: Kind = Fields(&[
    (1, Refused("its columns are in other files")),
    (2, Number),
    (
        3,
        Fields(&[
            (1, Small),
            (2, List(&Small)),
            (3, List(&Text)),
            (4, Small),
            (5, Number),
            (6, Number),
            (7, Number),
            (9, Number),
            (11, Number),
        ]),
    ),
    (8, ENCRYPTED),
    (9, ENCRYPTED),
]);

const GROUP: Kind = Fields(&[(1, List(&CHUNK)), (2, Number), (3, Number)]);

const FILE: &[(i64, Kind)] = &[
    (1, Small),
    (2, List(&ELEMENT)),
    (3, Number),
    (4, List(&GROUP)),
    (8, ENCRYPTED),
];

/// A footer that is written anew.
pub(super) struct Footer {
    /// Bytes of the footer as it is written anew.
    pub bytes: Vec<u8>,
    /// Bytes of memory that its reader takes for it.
    pub memory: u64,
}

struct Rewriter<'a> {
    reader: Reader<'a>,
    out: Vec<u8>,
    memory: u64,
}

impl Rewriter<'_> {
    /// The fields of a structure that are known; of one of several also the others' numbers.
    fn fields(&mut self, known: &[(i64, Kind)], one_of: bool) -> Result<(), Wrong> {
        let (mut last, mut seen) = (0, 0u64);
        while let Some((id, kind)) = self.reader.field(&mut last)? {
            let Some((_, want)) = known.iter().find(|(known, _)| *known == id) else {
                if one_of {
                    let id16 = i16::try_from(id).ok().filter(|&id| id > 0);
                    id16.ok_or_else(|| format!("a field of it has the number {id}"))?;
                    self.head(STRUCT, id);
                    self.out.push(0);
                }
                self.reader.skip(kind, 1)?;
                continue;
            };
            if let Refused(why) = want {
                return Err((*why).into());
            }
            if !want.is(kind) {
                return Err(format!("field {id} of it has the wrong type {kind}"));
            }
            // Known numbers are below 64.
            if seen & 1 << id != 0 {
                return Err(format!("field {id} of it is there twice"));
            }
            seen |= 1 << id;
            self.head(kind, id);
            self.value(want)?;
        }
        self.out.push(0);
        Ok(())
    }

    fn head(&mut self, kind: u8, id: i64) {
        self.out.push(kind);
        put_number(id, &mut self.out);
    }

    fn value(&mut self, kind: &Kind) -> Result<(), Wrong> {
        match kind {
            // It is in the field's type.
            Truth => {}
            Byte => self.out.push(self.reader.byte()?),
            Small => put_number(self.reader.small()?.into(), &mut self.out),
            Number => put_number(self.reader.number()?, &mut self.out),
            Text => {
                let n = self.reader.varint()?;
                let text = self.reader.take(n)?;
                put_varint(n, &mut self.out);
                self.out.extend_from_slice(text);
            }
            List(element) => {
                let (n, kind) = self.reader.list()?;
                if n > 0 && !element.is(kind) {
                    return Err(format!(
                        "a list in it has elements of the wrong type {kind}"
                    ));
                }
                let cost = match element.wire() {
                    STRUCT => STRUCT_COST,
                    _ => ELEMENT_COST,
                };
                self.memory = self.memory.saturating_add(n.saturating_mul(cost));
                self.out.push(15 << 4 | element.wire());
                put_varint(n, &mut self.out);
                for _ in 0..n {
                    self.value(element)?;
                }
            }
            Fields(known) => self.fields(known, false)?,
            OneOf(known) => self.fields(known, true)?,
            Refused(why) => return Err((*why).into()),
        }
        Ok(())
    }
}

impl Kind {
    /// The type of the protocol.
    fn wire(&self) -> u8 {
        match self {
            Truth => TRUE,
            Byte => BYTE,
            Small => I32,
            Number => I64,
            Text => BINARY,
            List(_) => LIST,
            Fields(_) | OneOf(_) | Refused(_) => STRUCT,
        }
    }

    fn is(&self, kind: u8) -> bool {
        kind == self.wire() || matches!(self, Truth) && kind == FALSE
    }
}

/// Writes a footer anew, in about as many bytes as it has.
pub(super) fn rewritten(bytes: &[u8]) -> Result<Footer, Wrong> {
    let mut rewriter = Rewriter {
        reader: Reader::new(bytes),
        out: Vec::new(),
        memory: bytes.len() as u64 * BYTE_COST,
    };
    rewriter.fields(FILE, false)?;
    let paths = schema_of(&rewriter.out)?;
    Ok(Footer {
        bytes: rewriter.out,
        memory: rewriter.memory.saturating_add(paths),
    })
}

/// Holds the schema of a footer against itself. Gives the bytes of the paths of its columns.
fn schema_of(bytes: &[u8]) -> Result<u64, Wrong> {
    let mut reader = Reader::new(bytes);
    let (mut last, mut paths) = (0, None);
    while let Some((id, kind)) = reader.field(&mut last)? {
        if id != 2 {
            reader.skip(kind, 0)?;
            continue;
        }
        let (n, _) = reader.list()?;
        if n == 0 || n > ELEMENTS_MAX {
            return Err(format!(
                "its schema has {n} elements; up to {ELEMENTS_MAX} are read"
            ));
        }
        paths = Some(schema(&mut reader, n)?);
    }
    paths.ok_or_else(|| "it has no schema".into())
}

/// The elements of a schema stand in the order of a walk from its root. As many children as it says, and not nested
/// too deep.
fn schema(reader: &mut Reader<'_>, n: u64) -> Result<u64, Wrong> {
    // Children that are still to come, and bytes of the path down to them, by depth.
    let mut open: Vec<(u64, u64)> = vec![(1, 0)];
    let (mut left, mut paths) = (n, 0u64);
    for _ in 0..n {
        while open.last().is_some_and(|o| o.0 == 0) {
            open.pop();
        }
        let Some((due, path)) = open.last_mut() else {
            return Err("its schema has elements that belong to nothing".into());
        };
        *due -= 1;
        left -= 1;
        let (mut last, mut children, mut path) = (0, 0, *path);
        while let Some((id, kind)) = reader.field(&mut last)? {
            match id {
                4 => {
                    let name = reader.varint()?;
                    reader.take(name)?;
                    path += name;
                }
                5 => children = reader.number()?,
                _ => reader.skip(kind, 1)?,
            }
        }
        // Its reader keeps the whole path of each column, twice.
        paths = paths.saturating_add(2 * path);
        let children = u64::try_from(children).ok().filter(|&n| n <= left);
        let children =
            children.ok_or("an element of its schema has children that are not there")?;
        if children > 0 {
            open.push((children, path));
        }
        if open.len() > DEPTH_MAX {
            return Err(format!(
                "its schema is nested deeper than {DEPTH_MAX} levels"
            ));
        }
    }
    match open.iter().all(|o| o.0 == 0) {
        true => Ok(paths),
        false => Err("an element of its schema has children that are not there".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::thrift::DOUBLE;
    use super::*;

    /// A structure: fields as (number, type, bytes).
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

    fn footer_of(elements: &[Vec<u8>]) -> Vec<u8> {
        let head = vec![(15 << 4) | STRUCT, elements.len() as u8];
        let list = [head, elements.concat()].concat();
        fields(&[(1, I32, vec![2]), (2, LIST, list)])
    }

    fn children(all: &[u8]) -> Vec<u8> {
        let each = all.iter().map(|n| fields(&[(5, I32, vec![n * 2])]));
        footer_of(&each.collect::<Vec<_>>())
    }

    fn outcome(bytes: &[u8]) -> String {
        let rewritten = rewritten(bytes);
        rewritten.map_or_else(|wrong| wrong, |_| "fine".into())
    }

    #[test]
    fn a_schema_is_what_it_says() {
        assert_eq!(outcome(&children(&[2, 0, 1, 0])), "fine");
        for (all, why) in [
            (&[2, 0][..], "not there"),
            (&[1, 0, 0], "belong to nothing"),
            (&[60, 0], "not there"),
        ] {
            let outcome = outcome(&children(all));
            assert!(outcome.contains(why), "{all:?}: {outcome}");
        }
        let mut deep = vec![1; 100];
        deep.push(0);
        assert!(outcome(&children(&deep)).contains("deeper"));
        assert!(outcome(&[0]).contains("no schema"));
        assert!(outcome(&[]).contains("too early"));
        // A list of more than there is, and structures in structures without an end.
        let huge = [vec![LIST, 4, (15 << 4) | STRUCT], vec![0xff; 8], vec![1]].concat();
        assert!(outcome(&huge).contains("more than there are bytes"));
        let endless = [vec![STRUCT, 40], vec![0x1c; 1000]].concat();
        assert!(outcome(&endless).contains("nested deeper"));
    }

    /// No field counts that has another type, is there twice, or has a number that is one only in fewer bits.
    #[test]
    fn only_fields_as_the_format_has_them_count() {
        let one = fields(&[(5, I32, vec![2])]);
        let leaf = || fields(&[(4, BINARY, vec![1, b'a'])]);
        assert_eq!(outcome(&footer_of(&[one, leaf()])), "fine");
        let typed = fields(&[(5, DOUBLE, vec![2; 8])]);
        assert!(outcome(&footer_of(&[typed, leaf()])).contains("wrong type 7"));
        let twice = fields(&[(5, I32, vec![2]), (5, I32, vec![200])]);
        assert!(outcome(&footer_of(&[twice, leaf()])).contains("twice"));
        // 65541 is 5 in 16 bits; what is behind it would be children.
        let wide = [vec![I32, 0x8a, 0x80, 0x08, 0x7e], vec![0]].concat();
        let bytes = rewritten(&footer_of(&[wide])).unwrap().bytes;
        let expected = [vec![I32, 2, 2, LIST, 4, 15 << 4 | STRUCT, 1], vec![0, 0]].concat();
        assert_eq!(bytes, expected);
        // Elements of another type would be read from the same bytes as other things.
        let list = fields(&[(2, LIST, vec![0x25, 2, 2])]);
        assert!(outcome(&list).contains("elements of the wrong type"));
    }

    #[test]
    fn names_and_lists_are_charged() {
        let name = |n: usize| [vec![n as u8 | 0x80, (n >> 7) as u8], vec![b'a'; n]].concat();
        let root = fields(&[(5, I32, vec![2])]);
        let group = fields(&[(4, BINARY, name(4000)), (5, I32, vec![100])]);
        let leaf = fields(&[(4, BINARY, vec![1, b'a'])]);
        let mut all = vec![root, group];
        all.resize(52, leaf);
        let bytes = footer_of(&all);
        let memory = rewritten(&bytes).unwrap().memory;
        assert!((2 * 51 * 4000..600_000).contains(&memory), "{memory}");
    }
}
