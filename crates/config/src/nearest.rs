//! The name that was probably meant.

/// The candidate with the fewest typing mistakes (a letter wrong, missing, extra, or two swapped)
/// away from `name`, letter case aside. `None` when every candidate is further than a third of the
/// name's letters (at least one is forgiven). Among equals the first wins.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name: Vec<char> = name.to_lowercase().chars().take(MAX_LETTERS + 1).collect();
    if name.len() > MAX_LETTERS {
        return None;
    }
    let forgiven = (name.len() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let letters: Vec<char> = candidate.to_lowercase().chars().collect();
        let d = distance(&name, &letters);
        if d <= forgiven && best.is_none_or(|(least, _)| d < least) {
            best = Some((d, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Longer names are not typing mistakes; the bound keeps the table of distances small.
const MAX_LETTERS: usize = 100;

/// Damerau-Levenshtein distance (optimal string alignment) by three rolling rows.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let wrong = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + wrong);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_the_known_ones() {
        for (a, b, want) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("seq", "sqe", 1),
            ("loop", "loop", 0),
            ("flaw", "lawn", 2),
        ] {
            let letters = |s: &str| s.chars().collect::<Vec<_>>();
            assert_eq!(distance(&letters(a), &letters(b)), want, "{a} {b}");
            assert_eq!(distance(&letters(b), &letters(a)), want, "{b} {a}");
        }
    }

    #[test]
    fn the_nearest_name_or_none() {
        let names = [
            "seq",
            "steps",
            "epochs",
            "micro_batch",
            "qwen2.5-0.5b",
            "qwen2.5-1.5b",
        ];
        for (typed, want) in [
            ("sqe", Some("seq")),
            ("Seq", Some("seq")),
            ("epoch", Some("epochs")),
            ("mirco_batch", Some("micro_batch")),
            ("qwen2.5-1.b", Some("qwen2.5-1.5b")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, names), want, "{typed}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), names), None);
    }
}
