//! No text whatever makes the reader panic.

use std::path::Path;

use lowtide_config::{KEYS, Run};

/// SplitMix64; the seed is the round, so that a failure repeats.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const VALUES: &[&str] = &[
    "",
    "~",
    "0",
    "1",
    "-1",
    "1e-5",
    "1e999",
    ".nan",
    "-.inf",
    "99999999999999999999",
    "1_000",
    "_",
    "0x1F",
    "auto",
    "none",
    "all",
    "true",
    "yes",
    "24GiB",
    "9e18TB",
    "-5GiB",
    "é…\u{202e}",
    "\"\\u0000\"",
    "[a, b]",
    "[]",
    "{}",
    "{dir: a, size: 1}",
    "[{dir: a, size: 9999999TiB}]",
    "[[[[1]]]]",
    "*x",
    "&x 1",
    "!!int a",
    "!!binary zzz",
    "|\n  text",
    "<<: *x",
    "? k",
    "'",
    "\"",
    "[",
    "{",
    "disk",
    "cuda:0",
    "wsd",
    "text",
    "skip",
    "0.5",
    "llama2-7b",
];

const PIECES: &[&str] = &[
    "a", ":", " ", "\n", "  ", "-", "[", "]", "{", "}", ",", "#", "&", "*", "!", "|", ">", "'",
    "\"", "%", "@", "`", "\t", "\r\n", "---\n", "...\n", "<<", "model", "train", "seq", "1", "0.5",
    "é", "\u{0}", "\u{feff}", "?", "=", ".",
];

fn never_panics(text: &str, sets: &[String]) -> bool {
    match Run::parse(text, "run.yaml", Path::new("/r"), sets) {
        Ok(run) => {
            let _ = (run.numerics_key(), serde_json::to_string(&run).unwrap());
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty());
            false
        }
    }
}

#[test]
fn pieces_of_yaml_in_any_order() {
    for round in 0..20_000 {
        let mut rng = Rng(round);
        let n = rng.below(40);
        let text: String = (0..n).map(|_| rng.pick(PIECES)).collect();
        let set: String = (0..n / 4).map(|_| rng.pick(PIECES)).collect();
        never_panics(&text, &[]);
        never_panics("model: {path: m}", &[set]);
    }
}

#[test]
fn every_key_with_every_odd_value() {
    let mut accepted = 0;
    for key in KEYS {
        for value in VALUES {
            let set = format!("{}={value}", key.name);
            accepted += usize::from(never_panics("model: {path: m}", &[set]));
            let (section, last) = key.name.rsplit_once('.').unwrap_or(("", key.name));
            let parts: Vec<_> = section.split('.').filter(|s| !s.is_empty()).collect();
            let text = parts
                .iter()
                .rev()
                .fold(format!("{last}: {value}"), |inside, part| {
                    format!("{part}: {{{inside}}}")
                });
            accepted += usize::from(never_panics(&text, &["model.path=m".into()]));
        }
    }
    assert!(
        accepted > 500,
        "only {accepted} accepted: the values do not reach the run"
    );
}

#[test]
fn several_odd_values_together() {
    for round in 0..20_000 {
        let mut rng = Rng(round);
        let mut set = || {
            let key = KEYS[rng.below(KEYS.len())].name;
            format!("{key}={}", rng.pick(VALUES))
        };
        let sets: Vec<String> = (0..4).map(|_| set()).collect();
        never_panics("model: {path: m}\nbudget: {disk: 1GiB}", &sets);
    }
}

#[test]
fn deep_and_long_texts() {
    for n in [30, 100, 10_000] {
        never_panics(&"[".repeat(n), &[]);
        never_panics(&"{a: ".repeat(n), &[]);
        never_panics(&"- ".repeat(n), &[]);
        never_panics(&format!("{}: 1", "k".repeat(n)), &[]);
        never_panics(
            &format!("output: {}", "k".repeat(n)),
            &["model.path=m".into()],
        );
        never_panics("", &[format!("data.train={}", "[".repeat(n))]);
        never_panics("", &[format!("{}=1", "a.".repeat(n))]);
    }
}
