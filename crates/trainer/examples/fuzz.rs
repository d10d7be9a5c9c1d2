//! Fuzz target for longer runs than the property tests of CI: hostile safetensors headers and
//! hostile JSONL lines, mutated from valid ones. Any panic is a bug; its seed is printed first.
//!
//! `cargo run --release -p lowtide-trainer --example fuzz -- [SECONDS [SEED]]`

#![allow(clippy::print_stdout, reason = "tells how far it came")]

use std::path::Path;
use std::time::{Duration, Instant};

use lowtide_model::SafetensorsHeader;
use lowtide_trainer::data::jsonl::Schema;
use lowtide_trainer::data::{Fields, Format};

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
const LINES: [&str; 3] = [
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b\u00e9"}],"tools":[]}"#,
    r#"{"prompt":"x","completion":"y"}"#,
    r#"{"text":"z\n"}"#,
];
/// What mutations insert: characters and words that parsers treat specially.
const WORDS: [&str; 20] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\\u",
    "\\ud800",
    "0",
    "-",
    "1e999",
    "18446744073709551616",
    "null",
    "true",
    "\"dtype\"",
    "\"data_offsets\"",
    "\u{feff}",
    "\0",
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(8) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                1 if at < bytes.len() => {
                    bytes.remove(at);
                }
                2 => bytes.truncate(at),
                3 => {
                    let part = bytes[at..(at + self.below(20)).min(bytes.len())].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, part);
                }
                _ => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(at..at, word.bytes());
                }
            }
        }
    }
}

fn header(rng: &mut Rng) -> bool {
    let mut json = HEADER.as_bytes().to_vec();
    rng.mutate(&mut json);
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(&json);
    file.extend([0; 32]);
    if rng.below(4) == 0 {
        let at = rng.below(8);
        file[at] = rng.below(256) as u8;
    }
    let len = file.len() as u64;
    SafetensorsHeader::read(Path::new("fuzz"), file.as_slice(), len).is_ok()
}

fn line(rng: &mut Rng) -> bool {
    let mut bytes = LINES[rng.below(LINES.len())].as_bytes().to_vec();
    rng.mutate(&mut bytes);
    let line = String::from_utf8_lossy(&bytes);
    let _ = Schema::detect(&line, &Fields::default());
    [Format::Messages, Format::PromptCompletion, Format::Text]
        .into_iter()
        .map(|format| Schema {
            format,
            fields: Fields::default(),
        })
        .any(|schema| schema.parse(&line).is_ok())
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (seconds, seed) = (number(60), number(1));
    println!("seed {seed}");
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut cases, mut accepted) = (0u64, 0u64);
    while Instant::now() < end {
        accepted += u64::from(header(&mut rng)) + u64::from(line(&mut rng));
        cases += 2;
    }
    println!("{cases} cases, {accepted} accepted, no panic");
}
