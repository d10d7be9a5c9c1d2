//! Changes of files.
//!
//! Blind changes of bytes mostly test a parser. So most changes here keep the form: of JSON they change one
//! value, of lines one line, of text one word; what they put in are values that are at the edge of some type
//! or limit, and pieces of the seeds.

mod json;
mod words;

use crate::{Form, Seed, Target};

/// Random numbers, the same for the same seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }
}

/// What changes of one target's files are made of.
#[derive(Debug)]
pub struct Mutator {
    form: Form,
    pool: json::Pool,
    words: Vec<String>,
}

impl Mutator {
    /// For a target, from its seeds.
    #[must_use]
    pub fn new(target: &Target, seeds: &[Seed]) -> Self {
        let texts = seeds
            .iter()
            .filter_map(|s| std::str::from_utf8(&s.bytes).ok());
        let words = match target.form {
            Form::Text => words::of(target.name, texts),
            _ => Vec::new(),
        };
        let mut pool = json::Pool::default();
        for seed in seeds {
            for part in parts(target.form, &seed.bytes) {
                pool.add(part);
            }
        }
        Self {
            form: target.form,
            pool,
            words,
        }
    }

    /// `bytes` with a few changes that keep the form, where they have it; otherwise with blind ones.
    #[must_use]
    pub fn change(&self, bytes: &[u8], random: &mut Random) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + random.below(3) {
            bytes = self.once(&bytes, random);
        }
        if random.below(8) == 0 {
            blind(&mut bytes, random);
        }
        bytes
    }

    fn once(&self, bytes: &[u8], random: &mut Random) -> Vec<u8> {
        let changed = match self.form {
            Form::Json => json::change(bytes, &self.pool, random),
            Form::Lines => self.line(bytes, random),
            Form::Header => self.header(bytes, random),
            Form::Text => words::change(bytes, &self.words, random),
            Form::Bytes => None,
        };
        changed.unwrap_or_else(|| {
            let mut bytes = bytes.to_vec();
            blind(&mut bytes, random);
            bytes
        })
    }

    /// One line changed, doubled or taken away.
    fn line(&self, bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
        let mut lines: Vec<Vec<u8>> = bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
        let at = random.below(lines.len());
        match random.below(8) {
            0 => lines.insert(at, lines[random.below(lines.len())].clone()),
            1 if lines.len() > 1 => _ = lines.remove(at),
            _ => lines[at] = json::change(&lines[at], &self.pool, random)?,
        }
        Some(lines.join(&b'\n'))
    }

    /// The JSON of a header changed, with its length put right; or of an index, which has none.
    fn header(&self, bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
        if bytes.first() == Some(&b'{') {
            return json::change(bytes, &self.pool, random);
        }
        let (header, rest) = header_of(bytes)?;
        let header = json::change(header, &self.pool, random)?;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(&header);
        file.extend_from_slice(rest);
        Some(file)
    }
}

fn header_of(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// The JSON texts in a file of this form.
fn parts(form: Form, bytes: &[u8]) -> Vec<&[u8]> {
    match form {
        Form::Json => vec![bytes],
        Form::Lines => bytes.split(|&b| b == b'\n').collect(),
        Form::Header => vec![header_of(bytes).map_or(bytes, |(header, _)| header)],
        Form::Text | Form::Bytes => Vec::new(),
    }
}

/// Changes some bytes, whatever they are.
fn blind(bytes: &mut Vec<u8>, random: &mut Random) {
    const SPECIAL: &[u8] = b"{}[]\":,\\0-9.eE\n\r\t \0\xff\x7f\x80#&*!|>'%@`";
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => _ = bytes.remove(at),
            3 if random.below(4) == 0 => bytes.truncate(at),
            4 => {
                let end = (at + random.below(40)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            _ => bytes.insert(at, SPECIAL[random.below(SPECIAL.len())]),
        }
    }
}
