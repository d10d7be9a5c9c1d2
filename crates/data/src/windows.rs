//! A long text tokenised in windows: the tokenizers' crate takes about 150 bytes of memory for each byte of a
//! text, so a record of 15 MiB took 2 GiB.
//!
//! A window begins at a token of the one before, some way before that one's end. What both make of the text that
//! they share is compared: near the end of the first and near the beginning of the second the cut may show (half
//! a word, a space that is put before what is taken for a beginning), but where a long run of tokens is the same in
//! both, tokens do not depend on how far away the text was cut. In the middle of the longest such run the one
//! follows on the other. Where there is no long run nothing is guessed: the text has to be tokenised whole.

use std::ops::Range;

use crate::error::RecordProblem;

/// A token and the bytes of the text that it stands for.
pub(super) type Token = (i32, Range<usize>);

/// The tokens of `text`, from windows of at most `window` bytes that share `overlap`; `part` tokenises a range of
/// it, with ranges from that on. `None` where two windows do not agree on half of what they share.
pub(super) fn tokens(
    text: &str,
    window: usize,
    overlap: usize,
    part: &dyn Fn(Range<usize>) -> Result<Vec<Token>, RecordProblem>,
) -> Result<Option<Vec<Token>>, RecordProblem> {
    let mut done: Vec<Token> = Vec::new();
    let (mut start, mut now) = (0, part(0..floor(text, window))?);
    loop {
        let end = floor(text, start + window);
        if end == text.len() {
            done.append(&mut now);
            return Ok(Some(done));
        }
        let shared = end.saturating_sub(overlap);
        let first = now
            .iter()
            .position(|(_, r)| r.start >= shared && text.is_char_boundary(r.start));
        let Some(first) = first.filter(|&i| now[i].1.start > start && now[i].1.start < end) else {
            return Ok(None);
        };
        let from = now[first].1.start;
        let mut next = part(from..floor(text, from + window))?;
        for (_, range) in &mut next {
            *range = range.start + from..range.end + from;
        }
        let Some((i, j)) = meeting(&now, first, &next, overlap / 2) else {
            return Ok(None);
        };
        done.extend(now.drain(..i));
        now = next.split_off(j);
        start = from;
    }
}

/// The largest end of a character at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at.min(text.len()))
}

/// Where in `now` and in `next` the middle is of the longest run of tokens that are the same in both, if that
/// has `least` bytes: between two characters. Looks in `now` from `first` on.
fn meeting(now: &[Token], first: usize, next: &[Token], least: usize) -> Option<(usize, usize)> {
    let (mut i, mut j) = (first, 0);
    let mut best: Option<(usize, usize, usize)> = None;
    while i < now.len() && j < next.len() {
        let same = now[i..].iter().zip(&next[j..]);
        let n = same.take_while(|(a, b)| a == b).count();
        if n == 0 {
            match now[i].1.start.cmp(&next[j].1.start) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => (i, j) = (i + 1, j + 1),
            }
            continue;
        }
        let bytes = |(i, _, n): (usize, usize, usize)| now[i + n - 1].1.end - now[i].1.start;
        if best.is_none_or(|b| bytes((i, j, n)) > bytes(b)) {
            best = Some((i, j, n));
        }
        (i, j) = (i + n, j + n);
    }
    let (i, j, n) = best?;
    let (from, to) = (now[i].1.start, now[i + n - 1].1.end);
    if to - from < least.max(1) {
        return None;
    }
    // Tokens that share a character stay together.
    let parted = |k: &usize| now[i + k - 1].1.end <= now[i + k].1.start;
    let middle = from + (to - from) / 2;
    let k = (1..n)
        .filter(parted)
        .min_by_key(|k| now[i + k].1.start.abs_diff(middle))?;
    Some((i + k, j + k))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::Tokenizer;
    use lowtide_random::Philox;
    use serde_json::json;

    /// Texts that are cut at every kind of place: words, lines, long runs of one character, special tokens and
    /// halves of them, characters of several bytes, combining marks.
    fn texts() -> Vec<String> {
        let parts = [
            "the quick brown fox ",
            "don't ",
            "12345 ",
            "\n\n",
            "  \t ",
            "<|im_start|>user\n",
            "<|im_",
            "</s>",
            "é\u{301}\u{302}",
            "你好世界",
            "👩‍👩‍👧",
            "aaaaaaaa",
            "        ",
            "=====",
            "ﬁn\u{ad}",
            "\r\n",
            "x",
        ];
        let mut all: Vec<String> = (0..12u64)
            .map(|seed| {
                let order = Philox::new(seed, 7).permutation(4000);
                order
                    .iter()
                    .map(|&i| parts[i as usize % parts.len()])
                    .collect()
            })
            .collect();
        all.extend(parts.map(|p| p.repeat(20_000 / p.len())));
        all.extend(parts.map(|p| format!("begin {}end.", p.repeat(9_000 / p.len()))));
        all
    }

    fn opened(json: &serde_json::Value) -> Tokenizer {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).expect("written");
        Tokenizer::open(&path).expect("a tokenizer")
    }

    /// Every kind of model, with the normalizers and pre-tokenizers that go with it.
    fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
        let mut all = vec![("byte-level BPE", testing::tokenizer())];
        if let Some(path) = testing::shared("tokenizers/gpt2/tokenizer.json") {
            all.push(("GPT-2", Tokenizer::open(&path).expect("a tokenizer")));
        }
        let words = [
            "th",
            "the",
            "▁the",
            "qu",
            "ck",
            "▁b",
            "ro",
            "wn",
            "aa",
            "aaaa",
            "▁▁",
            "▁▁▁▁",
            "==",
            "12",
            "34",
            "do",
            "n'",
        ];
        let merges = [
            "t h",
            "th e",
            "▁ the",
            "q u",
            "c k",
            "▁ b",
            "r o",
            "w n",
            "a a",
            "aa aa",
            "▁ ▁",
            "▁▁ ▁▁",
            "= =",
            "1 2",
            "3 4",
            "d o",
            "n '",
        ];
        let letters = "▁abcdefghijklmnopqrstuvwxyz0123456789='<|_/>\n\t.é你好".chars();
        let pieces: Vec<String> = std::iter::once("<unk>".to_owned())
            .chain(letters.map(String::from))
            .chain(words.map(str::to_owned))
            .collect();
        let vocab: serde_json::Map<_, _> =
            pieces.iter().cloned().zip((0..).map(Into::into)).collect();
        let scored: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(i, p)| json!([p, -(10.0 - p.chars().count() as f64) - i as f64 / 100.0]))
            .collect();
        let added = json!([
            {"id": 200, "content": "<|im_start|>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false},
            {"id": 201, "content": "</s>", "special": true, "single_word": false, "lstrip": true,
                "rstrip": true, "normalized": false},
        ]);
        let llama = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
        let bpe = json!({"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": true});
        let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": true, "lowercase": true});
        let mut wordpieces = vocab.clone();
        wordpieces.extend(
            pieces
                .iter()
                .zip(300..)
                .map(|(p, i)| (format!("##{p}"), i.into())),
        );
        for (name, model, normalizer, pre_tokenizer) in [
            ("BPE of whole texts", bpe.clone(), llama, json!(null)),
            ("BPE of words", bpe, json!(null), metaspace.clone()),
            (
                "Unigram",
                json!({"type": "Unigram", "vocab": scored, "unk_id": 0}),
                json!({"type": "NFKC"}),
                metaspace,
            ),
            (
                "WordPiece",
                json!({"type": "WordPiece", "vocab": wordpieces, "unk_token": "<unk>",
                    "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
                bert,
                json!({"type": "BertPreTokenizer"}),
            ),
        ] {
            all.push((
                name,
                opened(&json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer,
                    "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model})),
            ));
        }
        all
    }

    /// The tokens are those of the whole text, or there are none.
    #[test]
    #[allow(clippy::print_stdout, reason = "figures for docs/robustness.md")]
    fn windows_give_the_tokens_of_the_whole_text() {
        for (name, tokenizer) in tokenizers() {
            let (mut met, mut all) = (0, 0);
            for text in texts() {
                let part = |r: Range<usize>| tokenizer.encode_whole(&text[r]);
                let want = part(0..text.len()).expect("tokens");
                for (window, overlap) in [(700, 300), (2048, 512), (5000, 1000)] {
                    all += 1;
                    let Some(found) = tokens(&text, window, overlap, &part).expect("tokens") else {
                        continue;
                    };
                    met += 1;
                    let same = found.iter().zip(&want).take_while(|(a, b)| a == b).count();
                    assert!(
                        found == want,
                        "{name}: windows of {window}: token {same}: {:?} {:?} in {:?}",
                        found.get(same),
                        want.get(same),
                        &text[..200],
                    );
                }
            }
            assert!(met * 2 > all, "{name}: {met} of {all}");
            println!("{name}: {met} of {all} by windows");
        }
    }
}
