//! STYLE.md's glossary, doc comments that say nothing, and columns.
//!
//! Words are looked for where the glossary says. What is not mended yet is allowed by `xtask/words.tsv`: crate or
//! document, word, how often. A number there may only become smaller.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::sources::Source;

/// Where the glossary stands.
const STYLE: &str = "STYLE.md";
/// What is allowed: crate or document, word, number, reason.
const LIST: &str = "xtask/words.tsv";
/// Columns that a line of comment or of a document may have.
const COLUMNS: usize = 120;
/// Stands for a word in the list: lines that are too long, doc comments that say nothing.
const LONG: &str = "(columns)";
const EMPTY: &str = "(says nothing)";
/// Documents that quote words of their day, or the glossary itself.
const QUOTE: [&str; 2] = ["docs/journal.md", STYLE];
/// Documents whose lines other programs make.
const GENERATED: [&str; 2] = ["docs/run-file.md", "bench/RESULTS.md"];

/// Where a word is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Term {
    word: String,
    names: bool,
    types: bool,
    prose: bool,
}

/// Hits by crate or document, and word.
type Hits = BTreeMap<(String, String), Vec<String>>;

/// Words that are not allowed, or allowed less often.
pub fn check(root: &Path, files: &[Source]) -> Vec<String> {
    let hits = match hits(root, files) {
        Ok(hits) => hits,
        Err(what) => return vec![what],
    };
    let list = fs::read_to_string(root.join(LIST)).unwrap_or_default();
    let mut findings = Vec::new();
    let mut allowed = BTreeMap::new();
    for line in entries(&list) {
        let fields: Vec<&str> = line.split('\t').collect();
        match (
            &fields[..],
            fields.get(2).and_then(|n| n.parse::<usize>().ok()),
        ) {
            ([place, word, _, reason], Some(n)) if n > 0 && !reason.is_empty() => {
                allowed.insert(((*place).to_owned(), (*word).to_owned()), n);
            }
            _ => findings.push(format!(
                "{LIST}: '{line}' is not place, word, number, reason"
            )),
        }
    }
    let changed = changed(root);
    for (key, lines) in &hits {
        let most = allowed.remove(key).unwrap_or(0);
        if lines.len() > most {
            // The new ones are in files that git calls changed, if it does.
            let new = |l: &&String| changed.iter().any(|c| l.starts_with(&format!("{c}:")));
            let mut these: Vec<&str> = lines.iter().filter(new).map(|l| &**l).collect();
            if these.is_empty() {
                these = lines.iter().map(|l| &**l).collect();
            }
            let all: String = these.join(", ").chars().take(600).collect();
            findings.push(format!(
                "{}: {} stands {} times, {most} are allowed ({STYLE}, {LIST}): {all}",
                key.0,
                key.1,
                lines.len()
            ));
        }
    }
    let unused = allowed.keys().map(|(place, word)| {
        format!("{LIST}: {place} has no {word} any more: run cargo xtask words")
    });
    findings.extend(unused);
    findings
}

/// Files that differ from the last commit or are not in git; none where there is no git.
fn changed(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let new = ["ls-files", "--others", "--exclude-standard"];
    for args in [&["diff", "--name-only", "HEAD"][..], &new] {
        let out = Command::new("git").current_dir(root).args(args).output();
        if let Ok(out) = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()) {
            files.extend(out.lines().map(str::to_owned));
        }
    }
    files
}

/// Lowers the numbers of the list to what there is, and prints what is counted: words, comments, names of types.
pub fn run(root: &Path, files: &[Source]) -> ExitCode {
    let hits = match hits(root, files) {
        Ok(hits) => hits,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    };
    let list = fs::read_to_string(root.join(LIST)).unwrap_or_default();
    fs::write(root.join(LIST), lowered(&list, &hits)).expect("a file of the repository");
    let mut by_word: BTreeMap<&str, usize> = BTreeMap::new();
    for ((_, word), lines) in &hits {
        *by_word.entry(word).or_default() += lines.len();
    }
    for (word, n) in by_word {
        println!("{n:6} {word}");
    }
    let (comments, lines) = comments(files);
    let share = 100.0 * comments as f64 / lines as f64;
    println!("{comments} of {lines} lines that are not blank are comments: {share:.1} %");
    let (once, all) = types_once(files);
    let share = 100.0 * once as f64 / all as f64;
    println!("{once} of {all} names of the product's types stand for one type: {share:.1} %");
    ExitCode::SUCCESS
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
}

/// The list with every number at most as large as what there is, and without what is gone.
fn lowered(list: &str, hits: &Hits) -> String {
    let mut out = String::new();
    for line in list.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [place, word, number, reason] = fields[..] else {
            let _ = writeln!(out, "{line}");
            continue;
        };
        let there = hits
            .get(&(place.to_owned(), word.to_owned()))
            .map_or(0, Vec::len);
        let number = number.parse().unwrap_or(0).min(there);
        if number > 0 {
            let _ = writeln!(out, "{place}\t{word}\t{number}\t{reason}");
        }
    }
    out
}

fn hits(root: &Path, files: &[Source]) -> Result<Hits, String> {
    let style = fs::read_to_string(root.join(STYLE)).map_err(|e| format!("{STYLE}: {e}"))?;
    let terms = glossary(&style)?;
    let mut hits = Hits::new();
    let mut add = |place: &str, word: &str, at: String| {
        let key = (place.to_owned(), word.to_owned());
        hits.entry(key).or_default().push(at);
    };
    for file in files {
        for (line, word) in of_source(file, &terms) {
            add(file.package(), &word, format!("{}:{line}", file.path));
        }
    }
    for name in documents(root) {
        let text = fs::read_to_string(root.join(&name)).map_err(|e| format!("{name}: {e}"))?;
        for (line, word) in of_document(&name, &text, &terms) {
            add(&name, &word, format!("{name}:{line}"));
        }
    }
    Ok(hits)
}

/// The rows of the glossary that a program can look for. Before a bracket stand words, separated by commas.
fn glossary(style: &str) -> Result<Vec<Term>, String> {
    let mut terms = Vec::new();
    for row in style.lines().filter(|l| l.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [not, _, places] = cells[..] else {
            return Err(format!(
                "{STYLE}: a row of the glossary has three cells: {row}"
            ));
        };
        let has = |place: &str| places.split(", ").any(|p| p == place);
        let term = Term {
            word: String::new(),
            names: has("names"),
            types: has("types"),
            prose: has("prose"),
        };
        if !(term.names || term.types || term.prose || has("reader")) {
            return Err(format!("{STYLE}: {not}: looked for in {places}"));
        }
        if term.names || term.types || term.prose {
            let words = not.split(" (").next().unwrap_or(not).split(", ");
            terms.extend(words.map(|word| Term {
                word: word.to_owned(),
                ..term.clone()
            }));
        }
    }
    if terms.is_empty() {
        return Err(format!("{STYLE}: no glossary"));
    }
    Ok(terms)
}

/// Documents of the root, of docs and of bench.
fn documents(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["", "docs/", "bench/"] {
        for entry in fs::read_dir(root.join(folder))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            if name.ends_with(".md") {
                names.push(name);
            }
        }
    }
    names.sort();
    names
}

/// Lines, from 1, and words of a source.
fn of_source(file: &Source, terms: &[Term]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let types = types(file);
    let prose = prose(file);
    let all: Vec<&str> = file.text.lines().collect();
    let lines = all.iter().zip(file.code.lines()).zip(prose.lines());
    for (i, ((text, code), prose)) in lines.enumerate() {
        let at = i + 1;
        let prose = prose.to_lowercase();
        let parts = parts(code);
        for term in terms {
            let named = term.names && parts.contains(&term.word);
            let typed = term.types
                && types
                    .iter()
                    .any(|(line, name)| *line == at && name.eq_ignore_ascii_case(&term.word));
            if named || typed || (term.prose && holds(&prose, &term.word)) {
                found.push((at, term.word.clone()));
            }
        }
        let trimmed = text.trim_start();
        if trimmed.starts_with("//") && text.chars().count() > COLUMNS {
            found.push((at, LONG.to_owned()));
        }
        let before = i.checked_sub(1).map(|j| all[j]);
        if says_nothing(trimmed, before, all.get(at).copied()) {
            found.push((at, EMPTY.to_owned()));
        }
    }
    found
}

/// Lines, from 1, and words of a document.
fn of_document(name: &str, text: &str, terms: &[Term]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (i, line) in text.lines().enumerate() {
        let marks = line.trim_start().starts_with("```");
        if !(fenced || marks) {
            let prose = without_code(line).to_lowercase();
            let quotes = QUOTE.contains(&name);
            let terms = terms.iter().filter(|t| t.prose && !quotes);
            let words = terms.filter(|t| holds(&prose, &t.word));
            found.extend(words.map(|t| (i + 1, t.word.clone())));
            let exempt = line.starts_with('|') || line.contains("](") || GENERATED.contains(&name);
            if line.chars().count() > COLUMNS && !exempt {
                found.push((i + 1, LONG.to_owned()));
            }
        }
        fenced ^= marks;
    }
    found
}

/// Parts of the identifiers of a line of code, in lower case: `a_turned` and `isTurned` have `turned`.
fn parts(code: &str) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    let mut part = String::new();
    for c in code.chars().chain([' ']) {
        let ends = !c.is_alphabetic() || c.is_uppercase();
        if ends && !part.is_empty() {
            parts.insert(std::mem::take(&mut part));
        }
        if c.is_alphabetic() {
            part.extend(c.to_lowercase());
        }
    }
    parts
}

/// Comments and literals of a source, its code blanked, line by line.
fn prose(file: &Source) -> String {
    let code = file.code.chars();
    let blanked = file.text.chars().zip(code).map(|(c, code)| match c {
        '\n' => '\n',
        _ if code == c => ' ',
        _ => c,
    });
    let prose: String = blanked.collect();
    prose.lines().map(|l| without_code(l) + "\n").collect()
}

/// A line without what stands between backticks or braces: names and values.
fn without_code(line: &str) -> String {
    let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let mut out = String::new();
    let mut depth = 0_u32;
    for c in outside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// Whether a line in lower case has a word or phrase.
fn holds(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

/// Whether a line is all of a doc comment, and of at most two words, none of them code.
fn says_nothing(line: &str, before: Option<&str>, after: Option<&str>) -> bool {
    let doc = |l: Option<&str>| l.is_some_and(|l| l.trim_start().starts_with("///"));
    let Some(text) = line.strip_prefix("///").filter(|t| !t.starts_with('/')) else {
        return false;
    };
    let code =
        text.contains(['`', '[', '×', '(', '$']) || text.contains(|c: char| c.is_ascii_digit());
    let words = text.split_whitespace().count();
    (1..=2).contains(&words) && !code && !doc(before) && !doc(after)
}

/// Lines, from 1, and names of the types that a source defines.
fn types(file: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (i, line) in file.code.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let name = pair[1]
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap_or("");
            let upper = name.starts_with(|c: char| c.is_uppercase());
            if ["struct", "enum", "trait", "union", "type"].contains(&pair[0]) && upper {
                found.push((i + 1, name.to_owned()));
            }
        }
    }
    found
}

/// Lines that are comments, and lines that are not blank.
fn comments(files: &[Source]) -> (usize, usize) {
    let mut all = (0, 0);
    for file in files {
        for line in file
            .text
            .lines()
            .map(str::trim_start)
            .filter(|l| !l.is_empty())
        {
            all.0 += usize::from(line.starts_with("//"));
            all.1 += 1;
        }
    }
    all
}

/// How many names stand for one type of the product, of how many. Types that a trait asks for (`Output`) are no names
/// of ours.
fn types_once(files: &[Source]) -> (usize, usize) {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for file in files {
        for (line, name) in types(file) {
            let text = file.code.lines().nth(line - 1).unwrap_or("").trim_start();
            let associated = text.starts_with("type ");
            if !associated && !file.is_test(line - 1) {
                *names.entry(name).or_default() += 1;
            }
        }
    }
    let once = names.values().filter(|&&n| n == 1).count();
    (once, names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_glossarys() {
        let root = crate::root();
        crate::assert_none(&check(&root, &crate::sources::rust_files(&root)));
    }

    const GLOSSARY: &str = "| not | but | looked for in |\n|---|---|---|\n| told | said | names, prose |\n\
                            | make (of a device) | backend | types |\n| go on | resume | reader |\n| send back, lift | fetch | prose |\n";

    #[test]
    fn the_glossary_is_read() {
        let terms = glossary(GLOSSARY).expect("a glossary");
        let words: Vec<_> = terms.iter().map(|t| &*t.word).collect();
        assert_eq!(words, ["told", "make", "send back", "lift"]);
        assert!(terms[0].names && terms[0].prose && !terms[0].types && terms[1].types);
        for bad in ["| a | b | somewhere |", "| a | names |"] {
            assert!(glossary(&format!("{GLOSSARY}{bad}\n")).is_err(), "{bad}");
        }
        assert!(glossary("nothing").is_err());
    }

    #[test]
    fn planted_words_are_found() {
        let terms = glossary(GLOSSARY).expect("a glossary");
        let long = format!("// {}", "x".repeat(COLUMNS));
        for (text, want) in [
            ("let was_told = 1;", vec!["told"]),
            ("let x = isTold();", vec!["told"]),
            ("let x = retold + untold_y;", vec![]),
            ("// It is Told.", vec!["told"]),
            ("f(\"cannot be told\")", vec!["told"]),
            ("f(\"{told}\") // `told`, retold", vec![]),
            ("/* sent */ // to send back", vec!["send back"]),
            ("f(\"send backwards\")", vec![]),
            ("pub enum Make {", vec!["make"]),
            ("fn make() {} // what they make of it", vec![]),
            ("/// The file.\nx", vec![EMPTY]),
            ("/// The file\n/// that is read.", vec![]),
            ("/// `file`.\nx", vec![]),
            ("//// The file.", vec![]),
            (&*long, vec![LONG]),
        ] {
            let source = Source::new("crates/x/src/a.rs".to_owned(), text.to_owned());
            let found = of_source(&source, &terms);
            let found: Vec<_> = found.into_iter().map(|(_, word)| word).collect();
            assert_eq!(found, want, "{text}");
        }
        let text = format!("It is told.\n```\ntold\n```\n{long}\n| {long} |\n[a](told) `told`\n");
        let found = of_document("README.md", &text, &terms);
        let want = [(1, "told"), (5, LONG), (7, "told")];
        assert_eq!(found, want.map(|(at, word)| (at, word.to_owned())));
        assert_eq!(
            of_document("docs/journal.md", &text, &terms).len(),
            1,
            "columns"
        );
    }

    #[test]
    fn what_is_allowed_may_only_become_less() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write(STYLE, GLOSSARY);
        let source = |n: usize| {
            let text = "let told = 1;\n".repeat(n);
            [Source::new("crates/x/src/a.rs".to_owned(), text)]
        };
        assert_eq!(check(dir.path(), &source(2)).len(), 1);
        let list = "# head\nx\ttold\t2\ta reason\n";
        write(LIST, list);
        assert_eq!(check(dir.path(), &source(2)), [""; 0]);
        assert_eq!(check(dir.path(), &source(3)).len(), 1);
        assert_eq!(
            check(dir.path(), &source(0)).len(),
            1,
            "an entry for nothing"
        );
        let lower = |n| lowered(list, &hits(dir.path(), &source(n)).expect("a glossary"));
        assert_eq!(lower(1), list.replace('2', "1"));
        assert_eq!(lower(3), list);
        assert_eq!(lower(0), "# head\n");
        for bad in ["x\ttold\t0\ta reason\n", "x\ttold\t2\t\n", "x\ttold\n"] {
            write(LIST, bad);
            assert!(!check(dir.path(), &source(0)).is_empty(), "{bad}");
        }
    }
}
