//! What a run would train on, for a person to look at: samples with what is trained on, what is cut and left out,
//! lengths.

use std::fmt::Write;

use serde::Serialize;

use crate::chart::escaped;
use crate::page::{begin, end};
use crate::people::count;
use crate::text::{harmless, printable};

/// Bars of a histogram, at most.
const BARS: usize = 16;
/// Characters of one stretch of a sample on a terminal; of more the middle is left out.
const TERMINAL_CHARS: usize = 800;
/// The same on a page.
const PAGE_CHARS: usize = 20_000;

/// The data of a run.
#[derive(Clone, Debug, Serialize)]
pub struct DataReport {
    /// Tokens of a row, T.
    pub seq: u64,
    /// What is trained on, and what is evaluated on if there is any.
    pub sets: Vec<DataSet>,
}

/// One set of examples.
#[derive(Clone, Debug, Serialize)]
pub struct DataSet {
    /// `train` or `eval`.
    pub name: String,
    /// The files that it is made of.
    pub files: Vec<DataFile>,
    /// The format of its records, by name.
    pub format: String,
    /// Records read, of all files, before a split.
    pub records: u64,
    /// Records left out because they cannot be used.
    pub unusable: u64,
    /// Records left out because nothing in them is trained on.
    pub unsupervised: u64,
    /// Examples that are left.
    pub examples: u64,
    /// Tokens of them, without what is cut off.
    pub tokens: u64,
    /// Those that are trained on.
    pub supervised: u64,
    /// Examples longer than a row, whose end is cut off.
    pub truncated: u64,
    /// Those that lose the end of an answer.
    pub answers_cut: u64,
    /// Examples left out because nothing that is trained on is before the cut.
    pub cut_away: u64,
    /// Tokens that are cut off or left out.
    pub tokens_lost: u64,
    /// Those of them that would be trained on.
    pub supervised_lost: u64,
    /// Rows that an epoch has after packing.
    pub rows: u64,
    /// Share of the rows' places that hold a token.
    pub fill: f64,
    /// Lengths of a row that hold so many percent of the examples whole; of pairs of their sources.
    pub holds: Vec<Holds>,
    /// Of pairs the same of their targets, by `train.target`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds_targets: Vec<Holds>,
    /// Examples by their number of tokens.
    pub lengths: Vec<Bar>,
    /// A hash of all tokens and masks.
    pub mask_hash: String,
    /// What was noticed, a sentence each.
    pub remarks: Vec<String>,
    /// Some of the examples, for people to look at.
    pub samples: Vec<Sample>,
}

/// A data file.
#[derive(Clone, Debug, Serialize)]
pub struct DataFile {
    /// Path as the run file has it.
    pub path: String,
    /// How often an epoch has each of its examples.
    pub weight: f64,
    /// Examples of it in an epoch.
    pub examples: u64,
}

/// A row that holds a share of the examples whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// Share of the examples, in percent.
    pub percent: u64,
    /// Tokens of a row that holds so many whole.
    pub seq: u64,
}

/// A bar of the histogram of lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// Fewest tokens of an example that it counts.
    pub from: u64,
    /// Most tokens of an example that it counts.
    pub to: u64,
    /// How many examples there are of such a length.
    pub examples: u64,
}

/// One example, in stretches that are trained on or not.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Its number in the set, from 0.
    pub example: u64,
    /// Path of the file that it is from.
    pub path: String,
    /// How many tokens the example has.
    pub tokens: u64,
    /// Those that are trained on.
    pub supervised: u64,
    /// Its text in stretches of one kind.
    pub stretches: Vec<Stretch>,
}

/// Tokens that follow each other and are of one kind, as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// Their text, special tokens written out.
    pub text: String,
    /// How many tokens it has.
    pub tokens: u64,
    /// Whether they are trained on.
    pub supervised: bool,
    /// Whether they are beyond the end of a row, and cut off.
    pub cut: bool,
}

/// The rows that hold 95, 99 and 100 % of examples of these lengths whole.
#[must_use]
pub fn holds(lengths: &[u64]) -> Vec<Holds> {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let of = |percent: u64| {
        let n = (sorted.len() as u64 * percent).div_ceil(100).max(1) as usize;
        let seq = *sorted.get(n - 1)?;
        Some(Holds { percent, seq })
    };
    [95, 99, 100].into_iter().filter_map(of).collect()
}

/// Examples by length, in bars of equal width from the shortest on.
#[must_use]
pub fn histogram(lengths: &[u64]) -> Vec<Bar> {
    let Some(&most) = lengths.iter().max() else {
        return Vec::new();
    };
    let least = lengths.iter().copied().min().unwrap_or(most);
    let wide = most - least + 1;
    let width = wide.div_ceil(BARS as u64);
    let mut bars: Vec<Bar> = (0..wide.div_ceil(width))
        .map(|i| Bar {
            from: least + i * width,
            to: least + (i + 1) * width - 1,
            examples: 0,
        })
        .collect();
    for &n in lengths {
        bars[((n - least) / width) as usize].examples += 1;
    }
    bars
}

/// So many of something.
fn some(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// The sentences about a set, those for people first.
fn sentences(set: &DataSet) -> Vec<String> {
    let mut all = vec![format!(
        "{} ({}), {} of {} tokens, {} of them trained on ({:.1} %)",
        some(set.records, "record"),
        set.format,
        some(set.examples, "example"),
        count(set.tokens),
        count(set.supervised),
        100.0 * set.supervised as f64 / set.tokens.max(1) as f64
    )];
    let mut said = |n: u64, what: String| {
        if n > 0 {
            all.push(what);
        }
    };
    said(
        set.unusable,
        format!(
            "left out: {} records that cannot be used",
            count(set.unusable)
        ),
    );
    said(
        set.unsupervised,
        format!(
            "left out: {} records in which nothing is trained on",
            count(set.unsupervised)
        ),
    );
    said(
        set.truncated,
        format!("cut: the end of {} examples", count(set.truncated)),
    );
    said(
        set.answers_cut,
        format!(
            "cut: the end of the answer in {} of them, {} tokens that would be trained on",
            count(set.answers_cut),
            count(set.supervised_lost)
        ),
    );
    said(
        set.cut_away,
        format!(
            "left out: {} examples, all of whose answers are cut off",
            count(set.cut_away)
        ),
    );
    said(
        set.tokens_lost,
        format!("{} tokens are lost that way", count(set.tokens_lost)),
    );
    all.push(format!(
        "{} an epoch, {:.0} % filled",
        some(set.rows, "row"),
        100.0 * set.fill
    ));
    let held = |what: &str, holds: &[Holds], key: &str| {
        if let [first, rest @ ..] = holds
            && rest.iter().all(|h| h.seq == first.seq)
        {
            return format!("{what}: all at {key} {}", count(first.seq));
        }
        let holds = holds.iter();
        let holds = holds.map(|h| format!("{} % at {key} {}", h.percent, count(h.seq)));
        format!("{what}: {}", holds.collect::<Vec<_>>().join(", "))
    };
    if set.holds_targets.is_empty() {
        all.push(held("held whole", &set.holds, "train.seq"));
    } else {
        all.push(held("sources held whole", &set.holds, "train.seq"));
        all.push(held(
            "targets held whole",
            &set.holds_targets,
            "train.target",
        ));
    }
    all
}

/// For a terminal. What is trained on is green, what is cut off struck through and red; without colours it stands in ⟦
/// ⟧ and in ⟨ ⟩.
#[must_use]
pub fn text(report: &DataReport, colours: bool) -> String {
    let mut out = String::new();
    for set in &report.sets {
        let _ = writeln!(
            out,
            "{} data, rows of {} tokens",
            set.name,
            count(report.seq)
        );
        for file in &set.files {
            let weight = match file.weight {
                1.0 => String::new(),
                weight => format!(", weight {weight}"),
            };
            let path = printable(&file.path);
            let _ = writeln!(out, "  {path}: {}{weight}", some(file.examples, "example"));
        }
        for sentence in sentences(set).iter().chain(&set.remarks) {
            let _ = writeln!(out, "  {}", harmless(sentence));
        }
        let most = set
            .lengths
            .iter()
            .map(|b| b.examples)
            .max()
            .unwrap_or(1)
            .max(1);
        out.push_str("\n  tokens of an example\n");
        for bar in &set.lengths {
            let wide = (40 * bar.examples).div_ceil(most) as usize;
            let range = format!("{} to {}", count(bar.from), count(bar.to));
            let marks = "#".repeat(wide);
            let _ = writeln!(out, "  {range:>20}  {marks:<40} {}", count(bar.examples));
        }
        for sample in &set.samples {
            let _ = writeln!(
                out,
                "\n  example {} of {}: {} tokens, {} trained on",
                sample.example,
                printable(&sample.path),
                count(sample.tokens),
                count(sample.supervised)
            );
            for stretch in &sample.stretches {
                let (before, after) = match (stretch.cut, stretch.supervised, colours) {
                    (true, _, true) => ("\u{1b}[31;9m", "\u{1b}[0m"),
                    (false, true, true) => ("\u{1b}[32m", "\u{1b}[0m"),
                    (true, _, false) => ("⟨", "⟩"),
                    (false, true, false) => ("⟦", "⟧"),
                    (false, false, _) => ("", ""),
                };
                let text = lines(&shortened(&stretch.text, TERMINAL_CHARS));
                let _ = write!(out, "{before}{text}{after}");
            }
            out.push('\n');
        }
        out.push('\n');
    }
    let legend = match colours {
        true => "\u{1b}[32mgreen\u{1b}[0m: trained on; \u{1b}[31;9mred\u{1b}[0m: cut off",
        false => "⟦ ⟧: trained on; ⟨ ⟩: cut off",
    };
    out.push_str(legend);
    out
}

/// Lines for a terminal, without what it obeys.
fn lines(text: &str) -> String {
    let each = text.split('\n').map(harmless);
    each.collect::<Vec<_>>().join("\n")
}

/// A text, of a long one its beginning and its end.
fn shortened(text: &str, most: usize) -> String {
    let n = text.chars().count();
    if n <= most {
        return text.to_owned();
    }
    let half = most / 2;
    let begin: String = text.chars().take(half).collect();
    let rest: String = text.chars().skip(n - half).collect();
    format!(
        "{begin} … {} characters … {rest}",
        count((n - 2 * half) as u64)
    )
}

/// As one page that opens without a network, a script or another file.
#[must_use]
pub fn html(report: &DataReport, title: &str) -> String {
    let mut page = begin(title);
    page.push_str(
        "<p><span class=\"on\">what is trained on</span>, <span class=\"cut\">what is cut off</span></p>\n",
    );
    for set in &report.sets {
        let _ = writeln!(
            page,
            "<h2 id=\"{0}\">{0} data</h2>\n<ul>",
            escaped(&set.name)
        );
        for sentence in sentences(set).iter().chain(&set.remarks) {
            let _ = writeln!(page, "<li>{}</li>", escaped(sentence));
        }
        page.push_str("</ul>\n<table><tr><th>file</th><th class=\"n\">weight</th><th class=\"n\">examples</th></tr>\n");
        for file in &set.files {
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                escaped(&file.path),
                file.weight,
                count(file.examples)
            );
        }
        page.push_str("</table>\n<table><tr><th class=\"n\">tokens</th><th></th><th class=\"n\">examples</th></tr>\n");
        let most = set
            .lengths
            .iter()
            .map(|b| b.examples)
            .max()
            .unwrap_or(1)
            .max(1);
        for bar in &set.lengths {
            let _ = writeln!(
                page,
                "<tr><td class=\"n\">{} to {}</td><td><span class=\"bar\" style=\"width:{:.2}rem\"></span></td>\
                 <td class=\"n\">{}</td></tr>",
                count(bar.from),
                count(bar.to),
                22.0 * bar.examples as f64 / most as f64,
                count(bar.examples)
            );
        }
        page.push_str("</table>\n");
        for sample in &set.samples {
            let _ = write!(
                page,
                "<h3>example {} of {}: {} tokens, {} trained on</h3>\n<pre>",
                sample.example,
                escaped(&sample.path),
                count(sample.tokens),
                count(sample.supervised)
            );
            for stretch in &sample.stretches {
                let text = escaped(&shortened(&stretch.text, PAGE_CHARS));
                let class = match (stretch.cut, stretch.supervised) {
                    (true, _) => "cut",
                    (false, true) => "on",
                    (false, false) => "off",
                };
                let _ = write!(page, "<span class=\"{class}\">{text}</span>");
            }
            page.push_str("</pre>\n");
        }
    }
    end(&mut page);
    page
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
