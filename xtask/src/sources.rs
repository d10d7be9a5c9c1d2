//! Rules on the text of sources: where `unsafe` and printing may stand, what must not be left
//! behind, how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

/// Crates that may contain `unsafe`: memory shared by lanes, io_uring, vector instructions.
pub const UNSAFE: &[&str] = &["device", "tiers", "kernels"];

/// A folder of another crate that may: where the executor makes views of a plan's memory.
pub const UNSAFE_FOLDER: &str = "crates/executor/src/bind/";

/// Lines a file may have.
pub const LINES_MAX: usize = 800;

/// Lines that a file may have without a reason. A longer one has it in its head, in a sentence that begins with
/// [`ONE_FILE`].
pub const LINES_AIM: usize = 500;

/// How a long file says why it is one.
pub const ONE_FILE: &str = "One file because";

/// Lines that a function of the product may have without a reason. A longer one has it in the comment above it, in
/// a sentence that begins with [`LONG_BECAUSE`].
pub const FUNCTION_LINES: usize = 80;

/// How a long function says why.
pub const LONG_BECAUSE: &str = "Long because";

/// A source of one of the crates.
#[derive(Clone, Debug)]
pub struct Source {
    /// From the root, with `/`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// With comments and literals blanked, line by line as long as before.
    pub code: String,
}

impl Source {
    pub fn new(path: String, text: String) -> Self {
        let code = blank(&text);
        Self { path, text, code }
    }

    /// The folder under `crates/`.
    pub fn package(&self) -> &str {
        self.path.split('/').nth(1).unwrap_or_default()
    }

    /// Whether the line is not part of the product: tests, benches, examples.
    pub fn is_test(&self, line: usize) -> bool {
        let outside = ["/tests/", "/benches/", "/examples/"]
            .iter()
            .any(|d| self.path.contains(d));
        let stem = self
            .path
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".rs");
        outside
            || stem.ends_with("tests")
            || stem == "testing"
            || self
                .code
                .lines()
                .take(line)
                .any(|l| l.trim() == "#[cfg(test)]")
    }
}

/// Every Rust file under `crates/`, by path.
pub fn rust_files(root: &Path) -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root.join("crates"), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path
            .strip_prefix(root)
            .expect("under the root")
            .to_string_lossy()
            .into_owned();
        Source::new(name, fs::read_to_string(path).expect("sources are UTF-8"))
    };
    paths.iter().map(read).collect()
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of the workspace") {
        let path = entry.expect("its entry").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|e| e == "rs") {
            paths.push(path);
        }
    }
}

/// `unsafe` outside [`UNSAFE`] and [`UNSAFE_FOLDER`].
pub fn unsafe_code(files: &[Source]) -> Vec<String> {
    let allowed = |f: &&Source| UNSAFE.contains(&f.package()) || f.path.starts_with(UNSAFE_FOLDER);
    let outside = files.iter().filter(|f| !allowed(f));
    outside
        .flat_map(|f| lines_with(f, &f.code, &["unsafe"]))
        .collect()
}

/// What is written on the way and must not stay.
pub fn leftovers(files: &[Source]) -> Vec<String> {
    let find = |f: &Source| {
        let mut found = lines_with(f, &f.code, &["todo!", "unimplemented!", "dbg!", "#[ignore"]);
        found.extend(lines_with(f, &f.text, &["TODO", "FIXME", "XXX", "HACK"]));
        found
    };
    files.iter().flat_map(find).collect()
}

/// Printing by any crate but the command line, tests aside.
pub fn prints(files: &[Source]) -> Vec<String> {
    let macros = ["println!", "print!", "eprintln!", "eprint!"];
    let libraries = files.iter().filter(|f| f.package() != "cli");
    libraries
        .flat_map(|f| {
            let product: String = f
                .code
                .lines()
                .enumerate()
                .map(|(i, l)| {
                    if f.is_test(i) {
                        "\n".to_owned()
                    } else {
                        format!("{l}\n")
                    }
                })
                .collect();
            lines_with(f, &product, &macros)
        })
        .collect()
}

/// What the trainer shows its tests and the fuzzer, in the command's product.
pub fn inside(files: &[Source]) -> Vec<String> {
    let command = files
        .iter()
        .filter(|f| f.path.starts_with("crates/cli/src/"));
    command
        .flat_map(|f| lines_with(f, &f.code, &["inside"]))
        .collect()
}

/// Files longer than [`LINES_MAX`], and those longer than [`LINES_AIM`] whose head does not say why.
pub fn long_files(files: &[Source]) -> Vec<String> {
    let find = |f: &Source| {
        let lines = f.text.lines().count();
        let head = f.text.lines().take_while(|line| line.starts_with("//!"));
        if lines > LINES_MAX {
            Some(format!("{}: more than {LINES_MAX} lines", f.path))
        } else if lines > LINES_AIM && !says(head, ONE_FILE) {
            let what = format!("{lines} lines, and its head does not say why ('{ONE_FILE} ...')");
            Some(format!("{}: {what}", f.path))
        } else {
            None
        }
    };
    files.iter().filter_map(find).collect()
}

/// Functions of the product longer than [`FUNCTION_LINES`] that do not say why.
pub fn long_functions(files: &[Source]) -> Vec<String> {
    let find = |f: &Source| {
        let lines: Vec<&str> = f.text.lines().collect();
        let mut found = Vec::new();
        for (at, name, length) in functions(&f.code) {
            // The comment and the attributes right above it.
            let above = lines[..at].iter().rev().copied();
            let head = above
                .take_while(|l| !l.trim().is_empty() && !l.trim_end().ends_with(['{', '}', ';']));
            if length > FUNCTION_LINES && !f.is_test(at) && !says(head, LONG_BECAUSE) {
                let what =
                    format!("{name}: {length} lines, and nothing says why ('{LONG_BECAUSE} ...')");
                found.push(format!("{}:{}: {what}", f.path, at + 1));
            }
        }
        found
    };
    files.iter().flat_map(find).collect()
}

/// Whether one of these lines of comment begins a sentence with `words`.
fn says<'a>(mut lines: impl Iterator<Item = &'a str>, words: &str) -> bool {
    lines.any(|line| line.contains(words))
}

/// Each function of blanked code: its line, from 0, its name, and its lines from there to the end of its body.
fn functions(code: &str) -> Vec<(usize, &str, usize)> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("fn ") {
        let first = !code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &code[start + 3..];
        let name = rest
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .next();
        let (Some(name), true) = (name.filter(|n| !n.is_empty()), first) else {
            continue; // a type such as `fn(u32)`, or the end of a longer word
        };
        if let Some(end) = body_end(rest) {
            let line = code[..start].matches('\n').count();
            found.push((line, name, rest[..end].matches('\n').count() + 1));
        }
    }
    found
}

/// Where the body ends of a function whose signature begins `code`, if it has one.
fn body_end(code: &str) -> Option<usize> {
    let (mut brackets, mut braces) = (0, 0);
    for (i, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' if brackets == 0 || braces > 0 => braces += 1,
            '}' if braces == 1 => return Some(i),
            '}' if braces > 1 => braces -= 1,
            _ => {}
        }
    }
    None
}

/// Lines of `text` that hold one of `words`, not as part of a longer name.
fn lines_with(file: &Source, text: &str, words: &[&str]) -> Vec<String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let holds = |line: &str, word: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            let ends_in_name = word.ends_with(is_name);
            let longer =
                before.is_some_and(is_name) || (ends_in_name && after.is_some_and(is_name));
            !longer
        })
    };
    text.lines()
        .enumerate()
        .flat_map(|(i, line)| {
            words
                .iter()
                .filter(move |word| holds(line, word))
                .map(move |word| format!("{}:{}: {word}", file.path, i + 1))
        })
        .collect()
}

/// Rust source with comments, strings and characters blanked; line ends stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match literal_or_comment(&chars, i) {
            Some(end) => end,
            None => {
                out.push(chars[i]);
                i += 1;
                continue;
            }
        };
        out.extend(
            chars[i..end]
                .iter()
                .map(|&c| if c == '\n' { '\n' } else { ' ' }),
        );
        i = end;
    }
    out
}

/// Where the comment, string or character that begins at `at` ends, if one does.
fn literal_or_comment(c: &[char], at: usize) -> Option<usize> {
    let get = |i: usize| c.get(i).copied().unwrap_or('\0');
    let after_name = at > 0 && (get(at - 1).is_alphanumeric() || get(at - 1) == '_');
    match (get(at), get(at + 1)) {
        ('/', '/') => Some((at..c.len()).find(|&i| c[i] == '\n').unwrap_or(c.len())),
        ('/', '*') => {
            let (mut depth, mut i) = (0, at);
            while i < c.len() {
                match (get(i), get(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 {
                    return Some(i);
                }
            }
            Some(c.len())
        }
        ('"', _) => Some(quoted(c, at + 1, '"')),
        ('r', '"' | '#') if !after_name || get(at - 1) == 'b' => raw(c, at + 1),
        // A character, not a lifetime: escaped, or closed right behind.
        ('\'', '\\') => Some(quoted(c, at + 1, '\'')),
        ('\'', _) if get(at + 2) == '\'' => Some(at + 3),
        _ => None,
    }
}

/// The end of a literal whose content begins at `i`.
fn quoted(c: &[char], mut i: usize, close: char) -> usize {
    while i < c.len() {
        match c[i] {
            '\\' => i += 2,
            x if x == close => return i + 1,
            _ => i += 1,
        }
    }
    c.len()
}

/// The end of a raw string whose hashes begin at `i`.
fn raw(c: &[char], i: usize) -> Option<usize> {
    let hashes = c[i..].iter().take_while(|&&x| x == '#').count();
    if c.get(i + hashes) != Some(&'"') {
        return None; // a raw identifier
    }
    let mut at = i + hashes + 1;
    while at < c.len() {
        let closed = c[at] == '"'
            && c[at + 1..]
                .iter()
                .take(hashes)
                .filter(|&&x| x == '#')
                .count()
                == hashes;
        if closed {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(c.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<Source> {
        let files = rust_files(&crate::root());
        assert!(files.len() > 100, "only {} files", files.len());
        files
    }

    fn source(path: &str, text: &str) -> Source {
        Source::new(path.to_owned(), text.to_owned())
    }

    #[test]
    fn unsafe_stays_where_it_belongs() {
        crate::assert_none(&unsafe_code(&files()));
    }

    #[test]
    fn nothing_is_left_behind() {
        crate::assert_none(&leftovers(&files()));
    }

    #[test]
    fn only_the_command_line_prints() {
        crate::assert_none(&prints(&files()));
    }

    #[test]
    fn the_command_uses_what_programs_may() {
        crate::assert_none(&inside(&files()));
        let text = "use lowtide_trainer::inside::Folder;\n";
        assert_eq!(inside(&[source("crates/cli/src/plan.rs", text)]).len(), 1);
        assert_eq!(
            inside(&[source("crates/cli/tests/kills.rs", text)]).len(),
            0
        );
    }

    #[test]
    fn files_are_short_or_say_why() {
        crate::assert_none(&long_files(&files()));
    }

    #[test]
    fn functions_are_short_or_say_why() {
        crate::assert_none(&long_functions(&files()));
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "a /* x /* y */ unsafe */ b // unsafe\n\"unsafe \\\" unsafe\" c 'u' '\\'' 'a: loop \
                    r#\"unsafe \" unsafe\"# br\"unsafe\" r#type d";
        let code = blank(text);
        assert_eq!(code.chars().count(), text.chars().count());
        assert!(!code.contains("unsafe"), "{code}");
        for rest in ["a ", " b ", " c ", "'a: loop", "r#type d"] {
            assert!(code.contains(rest), "{rest} in {code}");
        }
    }

    #[test]
    fn planted_lines_are_found() {
        let planner = "crates/planner/src/plan.rs";
        let bad = source(
            planner,
            "fn f() {\n    unsafe { g() }\n    println!();\n}\n",
        );
        assert_eq!(unsafe_code(std::slice::from_ref(&bad)).len(), 1);
        assert_eq!(prints(std::slice::from_ref(&bad)).len(), 1);
        let good = source(
            planner,
            "#![forbid(unsafe_code)]\n// unsafe\n#[cfg(test)]\nprintln!();\n",
        );
        assert_eq!(unsafe_code(std::slice::from_ref(&good)), [""; 0]);
        assert_eq!(prints(std::slice::from_ref(&good)), [""; 0]);
        let left = source(
            planner,
            "// TODO: later\nlet s = \"a TODOS\";\n    todo!()\n#[ignore]\n",
        );
        assert_eq!(leftovers(std::slice::from_ref(&left)).len(), 3);
        let file = |lines: usize, head: &str| {
            source(
                planner,
                &(head.to_owned() + &"\n".repeat(lines - head.matches('\n').count())),
            )
        };
        let reason = format!("//! A file.\n//! {ONE_FILE} it has one topic.");
        for (lines, head, faults) in [
            (LINES_AIM, "//! A file.", 0),
            (LINES_AIM + 1, "//! A file.", 1),
            (
                LINES_AIM + 1,
                "//! A file.\n\n//! One file because it is late.",
                1,
            ),
            (LINES_AIM + 1, &reason, 0),
            (LINES_MAX + 1, &reason, 1),
        ] {
            assert_eq!(
                long_files(&[file(lines, head)]).len(),
                faults,
                "{lines} {head}"
            );
        }
    }

    #[test]
    fn planted_functions_are_found() {
        let function = |above: &str, lines: usize| {
            let body = "    g([0; 2], fn_of);\n".repeat(lines - 2);
            format!(
                "trait T {{\n    fn none(x: [u8; 3]);\n}}\n{above}pub fn f(x: impl Fn(u32)) -> u32 {{\n{body}}}\n"
            )
        };
        let reason = format!("/// It does.\n/// {LONG_BECAUSE} it is a table.\n#[must_use]\n");
        for (above, lines, found) in [
            ("", FUNCTION_LINES, 0),
            ("", FUNCTION_LINES + 1, 1),
            ("/// It does.\n", FUNCTION_LINES + 1, 1),
            (&reason, FUNCTION_LINES + 1, 0),
            ("#[cfg(test)]\n", FUNCTION_LINES + 1, 0),
        ] {
            let text = function(above, lines);
            for path in ["crates/planner/src/plan.rs", "crates/planner/tests/plan.rs"] {
                let want = if path.contains("/tests/") { 0 } else { found };
                let faults = long_functions(&[source(path, &text)]);
                assert_eq!(faults.len(), want, "{path} {lines} {above}: {faults:?}");
            }
        }
    }
}
