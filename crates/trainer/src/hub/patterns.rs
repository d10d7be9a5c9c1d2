//! Patterns of paths, as a data set's README has them.

use std::path::Path;

use super::data::is_data;

/// How often a pattern may have `**/`: each is asked for with and without a folder.
const FOLDERS: usize = 2;

/// What makes a path a pattern.
pub(super) const WILD: [char; 3] = ['*', '?', '['];

/// Whether what a pattern matches may be a file that is read: not, where it ends as none does.
pub(super) fn may_be_data(pattern: &str) -> bool {
    let name = pattern.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.') {
        Some((_, ending)) if !ending.contains([']', '*', '?', '[']) => is_data(Path::new(name)),
        Some(_) => true,
        None => name.contains(WILD),
    }
}

/// A pattern as it is asked for: `hf` takes `**/` for a folder that must be there, so also without it.
pub(super) fn with_and_without(pattern: &str) -> Vec<String> {
    let mut parts = pattern.split("**/");
    let mut all = vec![parts.next().unwrap_or_default().to_owned()];
    for part in parts {
        let both = |p: &String| [format!("{p}**/{part}"), format!("{p}{part}")];
        all = all.iter().flat_map(both).collect();
    }
    all
}

/// Whether a pattern stays inside of a snapshot, and is no option of a program.
pub(super) fn is_safe(pattern: &str) -> bool {
    let plain = |part: &str| part != ".." && part != "." && !part.is_empty();
    pattern.len() <= 500
        && pattern.matches("**/").count() <= FOLDERS
        && !pattern.starts_with('-')
        && !pattern.contains(['\\', '\0', '\n'])
        && !pattern.contains("://")
        && pattern.split('/').all(plain)
}

/// Whether a file's path is like a pattern: `*` is any run of characters of a name, `**` of names, `?` one character,
/// `[ab]` one of these.
pub(super) fn is_like(path: &Path, pattern: &str) -> bool {
    let path: Vec<char> = path.to_string_lossy().chars().collect();
    let pattern: Vec<char> = pattern.chars().collect();
    // Which ends of the pattern so far are reached; a pattern of n characters is gone through n times at most.
    let mut at = vec![false; path.len() + 1];
    at[0] = true;
    let mut i = 0;
    while i < pattern.len() {
        let mut next = vec![false; path.len() + 1];
        let rest = &pattern[i..];
        if rest.starts_with(&['*', '*']) {
            let mut reached = false;
            for (j, here) in at.iter().enumerate() {
                reached |= here;
                next[j] = reached;
            }
            i += 2;
            // `**/` is also no folder.
            if pattern.get(i) == Some(&'/') {
                let folders: Vec<bool> = (0..=path.len())
                    .map(|j| at[j] || j > 0 && next[j - 1] && path[j - 1] == '/')
                    .collect();
                next = folders;
                i += 1;
            }
        } else if rest[0] == '*' {
            let mut reached = false;
            for (j, here) in at.iter().enumerate() {
                reached &= j > 0 && path[j - 1] != '/';
                reached |= here;
                next[j] = reached;
            }
            i += 1;
        } else {
            let (one_of, len) = match rest.iter().position(|c| *c == ']') {
                Some(end) if rest[0] == '[' && end > 1 => (Some(&rest[1..end]), end + 1),
                _ => (None, 1),
            };
            for (j, c) in path.iter().enumerate() {
                let same = match (one_of, rest[0]) {
                    (Some(set), _) => in_set(*c, set),
                    (None, '?') => *c != '/',
                    (None, own) => own == *c,
                };
                next[j + 1] = at[j] && same;
            }
            i += len;
        }
        at = next;
    }
    at[path.len()]
}

/// Whether a character is in a set such as `0-9a` or `!x`.
fn in_set(c: char, set: &[char]) -> bool {
    let (not, set) = match set {
        ['!' | '^', rest @ ..] => (true, rest),
        all => (false, all),
    };
    let mut found = false;
    let mut i = 0;
    while i < set.len() {
        if i + 2 < set.len() && set[i + 1] == '-' {
            found |= (set[i]..=set[i + 2]).contains(&c);
            i += 3;
        } else {
            found |= set[i] == c;
            i += 1;
        }
    }
    found != not && c != '/'
}
