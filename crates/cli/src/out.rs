//! Where text goes. A closed pipe (`lowtide plan | head`) is no error; any other standard output that does not
//! take what it is given makes the command end with one.

use std::io::{ErrorKind, Write, stderr, stdout};
use std::path::Path;
use std::sync::OnceLock;

pub use lowtide_report::people::{bytes, duration, seconds};
use lowtide_report::text::harmless;
use lowtide_trainer::{Place, Taken};
use serde_json::Value;

use crate::error::CliError;

/// Standard output for people, or for a program.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    json: bool,
    verbose: bool,
}

impl Out {
    /// `json`: people read standard error, a program the last line of standard output.
    /// `verbose`: people want to look inside.
    pub fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose }
    }

    /// Prints for people who want to look inside.
    pub fn detail(self, text: &str) {
        if self.verbose {
            self.text(text);
        }
    }

    /// Whether people read standard output.
    pub fn is_for_people(self) -> bool {
        !self.json
    }

    /// Whether they want to look inside.
    pub fn is_verbose(self) -> bool {
        self.verbose
    }

    /// Prints for people, and nothing that a terminal obeys: notes have names of untrusted files and columns.
    pub fn text(self, text: &str) {
        self.as_it_is(&lines_of(text));
    }

    /// Prints a text with colours, whose parts are known to be harmless.
    pub fn as_it_is(self, text: &str) {
        if self.json {
            let _ = writeln!(stderr(), "{text}");
        } else {
            print(format_args!("{text}\n"));
        }
    }

    /// Prints a line for a program that reads along.
    pub fn event(self, event: &Value) {
        print(format_args!("{event}\n"));
    }

    /// Prints a command's answer, if a program reads it.
    pub fn answer(self, answer: &Value) {
        if self.json {
            print(format_args!("{answer}\n"));
        }
    }
}

/// Why standard output did not take all that it was given: the first refusal.
static REFUSED: OnceLock<String> = OnceLock::new();

fn print(text: std::fmt::Arguments<'_>) {
    let mut to = stdout().lock();
    noted(&to.write_fmt(text).and_then(|()| to.flush()));
}

/// Remembers a refusal; a reader that went away is none.
pub fn noted(written: &std::io::Result<()>) {
    if let Err(e) = written
        && e.kind() != ErrorKind::BrokenPipe
    {
        let _ = REFUSED.set(e.to_string());
    }
}

/// Says on standard error if some of what a command printed is lost.
pub fn refused() -> bool {
    let Some(why) = REFUSED.get() else {
        return false;
    };
    complain(&format!(
        "error: standard output: {why}: not all was printed"
    ));
    complain("  help: free some space where it goes to, or send it elsewhere");
    true
}

/// Prints on standard error, and nothing that a terminal obeys: an error has names and texts of untrusted files.
pub fn complain(text: &str) {
    let _ = writeln!(stderr(), "{}", lines_of(text));
}

/// A text of several lines, each without what a terminal obeys.
fn lines_of(text: &str) -> String {
    text.split('\n')
        .map(harmless)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A size to paste back that is not less than `n`: whole MiB.
pub fn enough(n: u64) -> String {
    format!("{}MiB", n.div_ceil(1 << 20))
}

/// A path as a value of `--set` that is taken as it is.
pub fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Where the file of an option is to be written, which was tried. A file that is there must be one of those that this
/// option writes, by its first bytes.
pub fn place(flag: &str, path: &Path, ours: impl Fn(&str) -> bool) -> Result<Place, CliError> {
    Place::find(path, ours)?.map_err(|why| {
        let (what, help) = match why {
            Taken::NoName => (
                "no name of a file".to_owned(),
                "give a path that ends in a name of plain text",
            ),
            Taken::Unreadable(e) => (format!("cannot be read: {e}"), "give another name"),
            Taken::NotOurs => (
                "a file of that name is there, which no such command wrote".to_owned(),
                "give another name, or remove it",
            ),
            Taken::Pending(name) => (
                format!("{name} is in the way"),
                "a command that was killed may have left it: remove it, or give another name",
            ),
        };
        CliError::Usage {
            what: format!("{flag} {}: {what}", path.display()),
            help,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let text = "error: no field '\u{1b}[2J\u{9b}x\u{202e}y'\n  help: é";
        let shown = "error: no field '\\u{1b}[2J\\u{9b}x\\u{202e}y'\n  help: é";
        assert_eq!(lines_of(text), shown);
        assert_eq!(lines_of(shown), shown);
    }

    #[test]
    fn a_size_to_paste_back_is_no_less() {
        assert_eq!(enough((1 << 20) + 1), "2MiB");
        assert_eq!(enough(1 << 20), "1MiB");
    }
}
