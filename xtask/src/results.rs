//! `cargo xtask results`: `bench/RESULTS.md` and README.md's tables of measured figures, from the records in
//! `bench/runs` alone.
//!
//! `bench/runs/index.json` says which figures there are: tables, their columns, and the raw file of each row. A column
//! says where its figure stands in that file (a path in its JSON, or a regular expression that must match once), so no
//! figure is copied by hand. Of several rows of one name the newest is shown; the others follow under 'Earlier'.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use regex::Regex;
use serde_json::Value;

/// Where the records are, from the root.
const RUNS: &str = "bench/runs";
/// What is made of them.
const RESULTS: &str = "bench/RESULTS.md";
/// A document that shows some of the tables, each between a line that begins with [`BEGIN`] and one that is [`END`].
const README: &str = "README.md";
const BEGIN: &str = "<!-- results: ";
const END: &str = "<!-- results: end -->";
/// What describes a record: a file of its folder.
const RECORD: &str = "record.json";
/// Shown where a row has no figure in a column.
const NONE: &str = "–";

/// A figure as it is shown, with the unit of its column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Figure {
    /// With its digits, such as `28,347`.
    pub text: String,
    /// Of the column, such as `tokens/s`.
    pub unit: String,
}

struct Table {
    name: String,
    title: String,
    text: String,
    /// Heads of columns.
    heads: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    /// One a column; none where the row has no file for it.
    figures: Vec<Option<Figure>>,
    /// The raw file, from `bench/runs`.
    file: String,
    record: Record,
}

#[derive(Clone, Debug)]
struct Record {
    /// From `bench/runs`.
    folder: String,
    date: String,
    machine: String,
    commit: String,
    of: String,
}

/// Writes what the records give.
pub fn run(root: &Path) -> ExitCode {
    match made(root) {
        Ok(files) => {
            for (path, text) in files {
                fs::write(root.join(&path), text).expect("a file of the repository");
                println!("{path}");
            }
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

/// Files that are not what the records give, and figures that are not in their records.
pub fn check(root: &Path) -> Vec<String> {
    let stale = |(path, text): (String, String)| {
        (fs::read_to_string(root.join(&path)).ok() != Some(text))
            .then(|| format!("{path}: not what the records give: run cargo xtask results"))
    };
    let mut findings = headless(root);
    match made(root) {
        Ok(files) => findings.extend(files.into_iter().filter_map(stale)),
        Err(what) => findings.push(what),
    }
    findings
}

/// Files of records without a head. What tells of several records (a `README.md`) and the index have none.
fn headless(root: &Path) -> Vec<String> {
    let runs = root.join(RUNS);
    let mut findings = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(runs.join(&folder))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = folder.join(entry.file_name());
            let file = name.to_string_lossy();
            if entry.path().is_dir() {
                folders.push(name);
            } else if entry.file_name() != "README.md"
                && entry.file_name() != "index.json"
                && let Err(what) = record_of(&runs, &file)
            {
                findings.push(format!("{RUNS}/{what}"));
            }
        }
    }
    findings.sort();
    findings
}

/// Every figure of the tables, earlier ones included.
pub fn figures(root: &Path) -> Result<Vec<Figure>, String> {
    let rows = tables(root)?.into_iter().flat_map(|t| t.rows);
    Ok(rows.flat_map(|r| r.figures).flatten().collect())
}

/// Path and content of each file that is generated.
fn made(root: &Path) -> Result<Vec<(String, String)>, String> {
    let tables = tables(root)?;
    let records = records(root)?;
    let readme = fs::read_to_string(root.join(README)).map_err(|e| format!("{README}: {e}"))?;
    Ok(vec![
        (RESULTS.to_owned(), results(&tables, &records)),
        (README.to_owned(), filled(&readme, &tables)?),
    ])
}

/// `text` with the tables that it names between its marks.
fn filled(text: &str, tables: &[Table]) -> Result<String, String> {
    let mut out = String::new();
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        let word = line.trim_end();
        if word == END {
            inside = false;
        }
        if !inside {
            out.push_str(line);
        }
        if word != END
            && let Some(name) = word.strip_prefix(BEGIN)
        {
            let name = name.trim_end_matches(" -->");
            let table = tables.iter().find(|t| t.name == name);
            let table = table.ok_or_else(|| format!("{README}: no table {name}"))?;
            out.push_str(&markdown(table, false));
            inside = true;
        }
    }
    if inside {
        return Err(format!("{README}: no line '{END}' behind a table"));
    }
    Ok(out)
}

fn results(tables: &[Table], records: &[Record]) -> String {
    let mut out = String::from(
        "# Results\n\nMade by `cargo xtask results` from the raw files in [runs](runs); do not edit. Each row is the newest of its\n\
         name; older ones are [below](#earlier). A record without a commit is from before records named one.\n",
    );
    for table in tables {
        let _ = write!(
            out,
            "\n## {}\n\n{}\n\n{}",
            table.title,
            table.text,
            markdown(table, true)
        );
    }
    out.push_str("\n## Earlier\n\n| row | figures | record |\n|---|---|---|\n");
    for table in tables {
        for row in older(table) {
            let each = table.heads.iter().zip(&row.figures);
            let each = each.filter_map(|(h, f)| Some(format!("{h} {}", f.as_ref()?.text)));
            let figures = each.collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                out,
                "| {}: {} | {figures} | {} |",
                table.title,
                row.name,
                link(row)
            );
        }
    }
    out.push_str("\n## Records\n\n| folder | date | machine | commit | of | rows above |\n|---|---|---|---|---|---|\n");
    for record in records {
        let newest = tables.iter().flat_map(newest);
        let n = newest.filter(|r| r.record.folder == record.folder).count();
        let n = if n == 0 {
            NONE.to_owned()
        } else {
            n.to_string()
        };
        let Record {
            folder,
            date,
            machine,
            commit,
            of,
        } = record;
        let _ = writeln!(
            out,
            "| [{folder}](runs/{folder}) | {date} | {machine} | {commit} | {of} | {n} |"
        );
    }
    out
}

/// Rows that no later row of their name replaces, in the table's order.
fn newest(table: &Table) -> Vec<&Row> {
    split(table).0
}

fn older(table: &Table) -> Vec<&Row> {
    split(table).1
}

fn split(table: &Table) -> (Vec<&Row>, Vec<&Row>) {
    let replaced = |i: usize, row: &Row| {
        let later = table
            .rows
            .iter()
            .enumerate()
            .filter(|(_, r)| r.name == row.name);
        later
            .map(|(j, r)| (&r.record.date, j))
            .any(|other| other > (&row.record.date, i))
    };
    let (old, new): (Vec<_>, Vec<_>) = table
        .rows
        .iter()
        .enumerate()
        .partition(|(i, row)| replaced(*i, row));
    let rows = |of: Vec<(usize, _)>| of.into_iter().map(|(_, row)| row).collect();
    (rows(new), rows(old))
}

fn markdown(table: &Table, with_records: bool) -> String {
    let mut heads = vec![String::new()];
    heads.extend(table.heads.clone());
    if with_records {
        heads.push("record".to_owned());
    }
    let mut out = line(&heads);
    out.push_str(&line(&vec!["---".to_owned(); heads.len()]).replace(' ', ""));
    for row in newest(table) {
        let mut cells = vec![row.name.clone()];
        let cell = |f: &Option<Figure>| f.as_ref().map_or(NONE.to_owned(), |f| f.text.clone());
        cells.extend(row.figures.iter().map(cell));
        if with_records {
            cells.push(link(row));
        }
        out.push_str(&line(&cells));
    }
    out
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn link(row: &Row) -> String {
    format!("[{}](runs/{})", row.record.date, row.file)
}

/// The index, with every figure looked up.
fn tables(root: &Path) -> Result<Vec<Table>, String> {
    let runs = root.join(RUNS);
    let index = json(&runs.join("index.json"))?;
    let tables = index["tables"].as_array().ok_or("index.json: no tables")?;
    tables.iter().map(|t| table(&runs, t)).collect()
}

fn table(runs: &Path, given: &Value) -> Result<Table, String> {
    let text = |v: &Value, key: &str| -> Result<String, String> {
        let found = v[key].as_str().map(str::to_owned);
        found.ok_or_else(|| format!("index.json: no {key} in {v}"))
    };
    let list = |key: &str| given[key].as_array().cloned().unwrap_or_default();
    let columns = list("columns");
    let mut rows = Vec::new();
    for row in list("rows") {
        let name = text(&row, "row")?;
        let mut figures = Vec::new();
        let mut files = BTreeMap::new();
        for (key, value) in row.as_object().ok_or("index.json: a row is an object")? {
            if let Some(value) = value.as_str() {
                files.insert(key.clone(), value.to_owned());
            }
        }
        for column in &columns {
            let value = text(column, "value")?;
            let place = || format!("{name}: {value}");
            let number = number(runs, &files, &value).map_err(|e| format!("{}: {e}", place()))?;
            let form = text(column, "format")?;
            let unit = text(column, "unit")?;
            figures.push(number.map(|n| Figure {
                text: shown(n, &form),
                unit,
            }));
        }
        let first = ["run", "n1", "host"].iter().find_map(|k| files.get(*k));
        let is_file = |v: &&String| runs.join(v).is_file();
        let file = first.or_else(|| files.values().find(is_file));
        let file = file.ok_or_else(|| format!("{name}: no file"))?.clone();
        let record = record_of(runs, &file)?;
        rows.push(Row {
            name,
            figures,
            file,
            record,
        });
    }
    Ok(Table {
        name: text(given, "name")?,
        title: text(given, "title")?,
        text: text(given, "text")?,
        heads: columns
            .iter()
            .map(|c| text(c, "name"))
            .collect::<Result<_, _>>()?,
        rows,
    })
}

/// What a column's value is of a row's files; none where the row does not have the file.
///
/// `FILE#PATH` is a number in JSON, `FILE~REGEX~` what the group of a regular expression matches, with `{KEY}` for a
/// value of the row; the first kind may be summed and divided: `A + B / C + D`.
fn number(
    runs: &Path,
    files: &BTreeMap<String, String>,
    value: &str,
) -> Result<Option<f64>, String> {
    if let Some((file, pattern)) = value.split_once('~') {
        let Some(path) = files.get(file) else {
            return Ok(None);
        };
        let mut pattern = pattern.trim_end_matches('~').to_owned();
        for (key, value) in files {
            pattern = pattern.replace(&format!("{{{key}}}"), &regex::escape(value));
        }
        return matched(&read(&runs.join(path))?, &pattern).map(Some);
    }
    let mut sides = Vec::new();
    for side in value.split(" / ") {
        let mut sum = 0.0;
        for term in side.split(" + ") {
            let (file, path) = term.split_once('#').ok_or("no '#' in a term")?;
            let Some(name) = files.get(file) else {
                return Ok(None);
            };
            sum += field(&read(&runs.join(name))?, path)?;
        }
        sides.push(sum);
    }
    match sides[..] {
        [a] => Ok(Some(a)),
        [a, b] => Ok(Some(a / b)),
        _ => Err("more than one division".to_owned()),
    }
}

/// What the group of `pattern` matches, the only time that it does.
fn matched(text: &str, pattern: &str) -> Result<f64, String> {
    let regex = Regex::new(pattern).map_err(|e| e.to_string())?;
    let found: Vec<_> = regex.captures_iter(text).collect();
    let [one] = &found[..] else {
        return Err(format!("matches {} times", found.len()));
    };
    let group = one.get(1).ok_or("no group")?.as_str();
    group.parse().map_err(|_| format!("'{group}' is no number"))
}

/// A number of a JSON document, or of the last line of a text that is one; `@N.` in front of the path: of the N-th,
/// from 0.
fn field(text: &str, path: &str) -> Result<f64, String> {
    let value = match serde_json::from_str::<Value>(text) {
        Ok(whole) => whole,
        Err(_) => {
            let lines = text.lines().filter(|l| l.starts_with('{'));
            let all: Vec<Value> = lines.filter_map(|l| serde_json::from_str(l).ok()).collect();
            let at = path.strip_prefix('@').and_then(|p| p.split('.').next());
            let at = at.map_or(all.len().wrapping_sub(1), |n| {
                n.parse().unwrap_or(usize::MAX)
            });
            all.get(at).cloned().ok_or("no such line of JSON")?
        }
    };
    let path = match path.strip_prefix('@') {
        Some(rest) => rest.split_once('.').ok_or("no path")?.1,
        None => path,
    };
    let pointer = format!("/{}", path.replace('.', "/"));
    let found = value.pointer(&pointer).and_then(Value::as_f64);
    found.ok_or_else(|| format!("no number at {path}"))
}

/// A number as a format shows it: `GiB 0.0` in GiB with one digit, `% 0` in hundredths, `G 0.00` in billions, `m 0` in
/// thousandths; `0,` with commas.
fn shown(number: f64, form: &str) -> String {
    let (scale, digits) = form.split_once(' ').unwrap_or(("", form));
    let number = match scale {
        "GiB" => number / f64::from(1 << 30),
        "%" => number * 100.0,
        "G" => number / 1e9,
        "m" => number * 1e3,
        _ => number,
    };
    let decimals = digits.split_once('.').map_or(0, |(_, d)| d.len());
    let text = format!("{number:.decimals$}");
    if !digits.ends_with(',') {
        return text;
    }
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i > 0 && (text.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// The record that a file belongs to: of its folder, or of the nearest one above.
fn record_of(runs: &Path, file: &str) -> Result<Record, String> {
    let folders = Path::new(file).ancestors().skip(1);
    let found = folders
        .filter(|f| !f.as_os_str().is_empty())
        .find(|f| runs.join(f).join(RECORD).is_file());
    record(
        runs,
        found.ok_or_else(|| format!("{file}: no {RECORD} in its folders"))?,
    )
}

fn record(runs: &Path, folder: &Path) -> Result<Record, String> {
    let head = json(&runs.join(folder).join(RECORD))?;
    let folder = folder.to_string_lossy().into_owned();
    let text = |key: &str| head[key].as_str().map(str::to_owned);
    let need = |key: &str| text(key).ok_or_else(|| format!("{folder}/{RECORD}: no {key}"));
    let dirty = match head.get("dirty") {
        Some(Value::Bool(true)) => ", with changes",
        Some(Value::Bool(false) | Value::Null) => "",
        _ => return Err(format!("{folder}/{RECORD}: dirty is true, false or null")),
    };
    Ok(Record {
        date: need("date")?,
        machine: need("machine")?,
        commit: text("commit").map_or(NONE.to_owned(), |c| c + dirty),
        of: need("of")?,
        folder,
    })
}

/// Every record, newest first. A folder directly in `bench/runs` is one or consists of such.
fn records(root: &Path) -> Result<Vec<Record>, String> {
    let runs = root.join(RUNS);
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(runs.join(&folder)).map_err(|e| e.to_string())? {
            let entry = entry.map_err(|e| e.to_string())?;
            if entry.path().is_dir() {
                folders.push(folder.join(entry.file_name()));
            } else if entry.file_name() == RECORD {
                found.push(record(&runs, &folder)?);
            }
        }
    }
    found.sort_by(|a, b| (&b.date, &a.folder).cmp(&(&a.date, &b.folder)));
    Ok(found)
}

fn json(path: &Path) -> Result<Value, String> {
    let text = read(path)?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_what_the_records_give() {
        crate::assert_none(&check(&crate::root()));
    }

    #[test]
    fn a_figure_is_found_once_or_not_at_all() {
        let text = "step 5: 1.5 s\n{\"a\":{\"b\":[1,2.5]}}\nnot json\n{\"a\":{\"b\":[3]}}\n";
        assert_eq!(field(text, "a.b.0"), Ok(3.0));
        assert_eq!(field(text, "@0.a.b.1"), Ok(2.5));
        assert!(field(text, "a.b.1").is_err());
        assert!(field(text, "@2.a.b.0").is_err());
        assert!(field("nothing", "a").is_err());
        assert_eq!(matched(text, r"step 5: ([0-9.]+) s"), Ok(1.5));
        assert!(
            matched(text, r#""b":\[([0-9.]+)"#).is_err(),
            "it is there twice"
        );
        assert!(matched(text, r"step 6: ([0-9.]+) s").is_err());
        assert!(matched(text, r"(not) json").is_err());
    }

    #[test]
    fn numbers_are_shown_as_the_column_says() {
        for (number, form, want) in [
            (28346.6, "0,", "28,347"),
            (999.5, "0,", "1,000"),
            (572.2, "0,", "572"),
            (1234567.0, "0,", "1,234,567"),
            (0.9666, "0.00", "0.97"),
            (0.774, "% 0", "77"),
            (25604128768.0, "GiB 0.0", "23.8"),
            (6.98e9, "G 0.00", "6.98"),
        ] {
            assert_eq!(shown(number, form), want, "{form}");
        }
    }

    /// A repository of two records of one row, and one of another.
    fn planted(figure: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        let index = r##"{"tables": [{"name": "t", "title": "T", "text": "", "columns": [
            {"name": "tokens/s", "unit": "tokens/s", "value": "run#rate", "format": "0,"},
            {"name": "ratio", "unit": "times", "value": "run#rate / peer#rate", "format": "0.0"}],
            "rows": [{"row": "a", "run": "new/x.txt"}, {"row": "a", "run": "old/deep/x.txt"},
                     {"row": "b", "run": "new/x.txt", "peer": "old/deep/x.txt"}]}]}"##;
        write("bench/runs/index.json", index);
        for (folder, date, rate) in [("new", "2026-11-27", figure), ("old", "2026-11-21", "500")] {
            let head =
                format!(r#"{{"date":"{date}","machine":"m","commit":"c","dirty":true,"of":"o"}}"#);
            write(&format!("bench/runs/{folder}/record.json"), &head);
            let file = if folder == "old" {
                "old/deep/x.txt"
            } else {
                "new/x.txt"
            };
            write(
                &format!("bench/runs/{file}"),
                &format!("{{\"rate\": {rate}}}\n"),
            );
        }
        write(
            "README.md",
            "before\n<!-- results: t -->\nstale\n<!-- results: end -->\nafter\n",
        );
        dir
    }

    #[test]
    fn the_newest_record_of_a_row_is_shown_and_the_older_stays() {
        let dir = planted("1500");
        let files = made(dir.path()).expect("records");
        let (_, results) = &files[0];
        assert!(
            results.contains("| a | 1,500 | – | [2026-11-27](runs/new/x.txt) |"),
            "{results}"
        );
        assert!(results.contains("| b | 1,500 | 3.0 |"), "{results}");
        assert!(
            results.contains("| T: a | tokens/s 500 | [2026-11-21](runs/old/deep/x.txt) |"),
            "{results}"
        );
        assert!(
            results.contains("| [old](runs/old) | 2026-11-21 | m | c, with changes | o | – |"),
            "{results}"
        );
        let (_, readme) = &files[1];
        let table =
            "| | tokens/s | ratio |\n|---|---|---|\n| a | 1,500 | – |\n| b | 1,500 | 3.0 |\n";
        let want = format!("before\n<!-- results: t -->\n{table}<!-- results: end -->\nafter\n");
        assert_eq!(readme.replace("|  |", "| |"), want);
        let unit = "tokens/s".to_owned();
        let text = "1,500".to_owned();
        assert!(
            figures(dir.path())
                .expect("records")
                .contains(&Figure { text, unit })
        );
    }

    #[test]
    fn what_differs_from_the_records_is_found() {
        let dir = planted("1500");
        assert_eq!(check(dir.path()).len(), 2, "neither file was made");
        for (path, text) in made(dir.path()).expect("records") {
            fs::write(dir.path().join(path), text).expect("written");
        }
        assert_eq!(check(dir.path()), [""; 0]);
        fs::write(dir.path().join("bench/runs/new/x.txt"), "{\"rate\": 1501}").expect("written");
        assert_eq!(check(dir.path()).len(), 2, "the record changed");
        fs::write(dir.path().join("bench/runs/new/x.txt"), "{\"pace\": 1501}").expect("written");
        assert_eq!(check(dir.path()).len(), 1, "the figure is gone");
        fs::remove_file(dir.path().join("bench/runs/new/record.json")).expect("removed");
        let found = check(dir.path());
        assert_eq!(found.len(), 2, "no head: {found:?}");
    }
}
