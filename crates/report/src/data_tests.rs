use super::*;

fn stretch(text: &str, supervised: bool, cut: bool) -> Stretch {
    Stretch {
        text: text.into(),
        tokens: 1,
        supervised,
        cut,
    }
}

fn report() -> DataReport {
    let lengths: Vec<u64> = (1..=200).collect();
    DataReport {
        seq: 64,
        sets: vec![DataSet {
            name: "train".into(),
            files: vec![DataFile {
                path: "a<b>.jsonl".into(),
                weight: 0.5,
                examples: 200,
            }],
            format: "messages".into(),
            records: 210,
            unusable: 3,
            unsupervised: 7,
            examples: 200,
            tokens: 20_100,
            supervised: 2010,
            truncated: 136,
            answers_cut: 12,
            cut_away: 5,
            tokens_lost: 999,
            supervised_lost: 321,
            rows: 314,
            fill: 0.951,
            holds: holds(&lengths),
            holds_targets: Vec::new(),
            lengths: histogram(&lengths),
            mask_hash: "0".into(),
            remarks: vec!["a remark".into()],
            samples: vec![Sample {
                example: 4,
                path: "a<b>.jsonl".into(),
                tokens: 3,
                supervised: 2,
                stretches: vec![
                    stretch("<user>\u{1b}[2J\n", false, false),
                    stretch("answer & more", true, false),
                    stretch("gone", true, true),
                ],
            }],
        }],
    }
}

#[test]
fn what_holds_a_share_is_the_least_that_does() {
    let all = |lengths: &[u64]| holds(lengths).iter().map(|h| h.seq).collect::<Vec<_>>();
    assert_eq!(all(&(1..=200).rev().collect::<Vec<_>>()), [190, 198, 200]);
    assert_eq!(all(&[7]), [7, 7, 7]);
    // 95 % of ten are ten.
    assert_eq!(all(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 9]), [9, 9, 9]);
    assert!(holds(&[]).is_empty());
}

#[test]
fn every_example_is_in_the_bar_of_its_length() {
    for lengths in [
        vec![1],
        vec![16, 1],
        vec![17; 3],
        (1..=1000).collect::<Vec<u64>>(),
    ] {
        let bars = histogram(&lengths);
        assert!(bars.len() <= BARS);
        for bar in &bars {
            let n = lengths
                .iter()
                .filter(|&&n| (bar.from..=bar.to).contains(&n))
                .count();
            assert_eq!(bar.examples, n as u64, "{bar:?}");
        }
        let total: u64 = bars.iter().map(|b| b.examples).sum();
        assert_eq!(total, lengths.len() as u64);
    }
    assert!(histogram(&[]).is_empty());
    // From the shortest on, not from 1.
    let bars = histogram(&[1000, 1001, 1001]);
    assert_eq!((bars.len(), bars[0].from, bars[1].examples), (2, 1000, 2));
}

#[test]
fn a_terminal_shows_what_is_trained_on_and_obeys_nothing() {
    let plain = text(&report(), false);
    for words in [
        "⟦answer & more⟧⟨gone⟩",
        "20,100 tokens, 2,010 of them trained on (10.0 %)",
        "left out: 3 records that cannot be used",
        "left out: 7 records in which nothing is trained on",
        "cut: the end of 136 examples",
        "in 12 of them, 321 tokens",
        "left out: 5 examples",
        "95 % at train.seq 190, 99 % at train.seq 198, 100 % at train.seq 200",
        "314 rows an epoch",
        "weight 0.5",
        "a remark",
    ] {
        assert!(plain.contains(words), "{words:?} in {plain}");
    }
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let mut alike = report();
    (alike.sets[0].holds, alike.sets[0].rows) = (holds(&[31; 4]), 1);
    let plain = text(&alike, false);
    assert!(
        plain.contains("held whole: all at train.seq 31\n"),
        "{plain}"
    );
    assert!(plain.contains("  1 row an epoch"), "{plain}");
    let coloured = text(&report(), true);
    assert!(coloured.contains("\u{1b}[32manswer & more\u{1b}[0m\u{1b}[31;9mgone\u{1b}[0m"));
    assert!(!coloured.contains("\u{1b}[2J"));
}

#[test]
fn a_page_is_whole_and_its_texts_are_texts() {
    let page = html(&report(), "run <1>");
    assert!(page.starts_with(crate::page::BEGIN) && page.ends_with("</html>\n"));
    for words in [
        "<span class=\"on\">answer &amp; more</span><span class=\"cut\">gone</span>",
        "&lt;user&gt;",
        "run &lt;1&gt;",
        "a&lt;b&gt;.jsonl",
    ] {
        assert!(page.contains(words), "{words:?} in {page}");
    }
    for refused in ["<script", "http:", "https:", "src=", "\u{1b}"] {
        assert!(!page.contains(refused), "{refused}");
    }
    let long = shortened(&"x".repeat(100), 10);
    assert_eq!(long, "xxxxx … 90 characters … xxxxx");
}
