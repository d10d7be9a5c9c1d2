//! The name under which tokenised examples are kept: a hash of everything that decides their ids and masks.

use std::path::PathBuf;

use super::dataset::{LoadOptions, OnError};
use super::kept::Key;
use super::tokenizer::Tokenizer;
use crate::error::DataError;

/// Raised whenever the same records become other ids or masks than before, so that nothing that was kept is used.
const CONTENT: u32 = 1;

/// The key of data files as they are now, read with these options; `None`: the tokenizer cannot tell what it is.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn key_of(
    paths: &[PathBuf],
    options: &LoadOptions,
    tokenizer: &Tokenizer,
) -> Result<Option<Key>, DataError> {
    let Some(identity) = tokenizer.identity() else {
        return Ok(None);
    };
    // Named one by one, so that no new option is forgotten here.
    let LoadOptions {
        format,
        fields,
        loss_on,
        separator,
        system,
        text_by,
        line_bytes_max,
        on_error,
        // It refuses, and changes nothing of what is read.
        memory: _,
    } = options;
    let mut hash = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(format!("lowtide {} {CONTENT}", env!("CARGO_PKG_VERSION")).as_bytes());
    let settings = (
        format,
        fields,
        loss_on,
        separator,
        system,
        text_by,
        line_bytes_max,
        on_error,
    );
    add(format!("{settings:?}").as_bytes());
    for path in paths {
        // The ending decides what a file is and how its cells are cut.
        let ending = path.extension().map(|e| e.to_ascii_lowercase());
        add(ending.unwrap_or_default().as_encoded_bytes());
        if *on_error == OnError::Skip {
            // The names of files are in what is told of records left out.
            add(path.as_os_str().as_encoded_bytes());
        }
        let mut content = blake3::Hasher::new();
        let file = lowtide_files::open_any(path)?.file;
        content
            .update_reader(std::io::BufReader::with_capacity(1 << 20, file))
            .map_err(|e| DataError::io(path, e))?;
        add(content.finalize().as_bytes());
    }
    add(&identity);
    Ok(Some(*hash.finalize().as_bytes()))
}

/// What of the present time templates can write: with `strftime_now` of whole days, the day; with anything else of it,
/// the second; without it, nothing.
pub(super) fn time_in<'a>(
    templates: impl Iterator<Item = &'a str>,
    now_unix_s: i64,
) -> Option<i64> {
    const NAME: &str = "strftime_now";
    let (mut any, mut whole_days) = (false, true);
    for source in templates {
        for (at, _) in source.match_indices(NAME) {
            any = true;
            let rest = source[at + NAME.len()..].trim_start();
            whole_days &= rest.starts_with("is defined") || is_of_days(rest);
        }
    }
    any.then_some(match whole_days {
        true => now_unix_s.div_euclid(86_400),
        false => now_unix_s,
    })
}

/// Whether a text begins with a call's argument, a literal that writes nothing smaller than a day.
fn is_of_days(call: &str) -> bool {
    let Some(argument) = call.strip_prefix('(') else {
        return false;
    };
    let argument = argument.trim_start();
    let Some(quote) = argument.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return false;
    };
    let Some((format, rest)) = argument[1..].split_once(quote) else {
        return false;
    };
    let letters = format.split('%').skip(1).map(|part| part.chars().next());
    rest.trim_start().starts_with(')')
        && !format.contains('\\')
        && letters
            .into_iter()
            .all(|c| c.is_some_and(|c| "aAbBdejmuwyY".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::time_in;

    #[test]
    fn the_time_counts_as_far_as_a_template_can_write_it() {
        let of = |source: &str| time_in([source].into_iter(), 86_400 * 3 + 5);
        assert_eq!(of("{{ messages }}"), None);
        let llama = "{% if strftime_now is defined %}{% set d = strftime_now(\"%d %b %Y\") %}";
        assert_eq!(of(llama), Some(3));
        assert_eq!(of("{{ strftime_now('%Y-%m-%d') }}"), Some(3));
        for exact in [
            "{{ strftime_now('%H:%M') }}",
            "{{ strftime_now(f) }}",
            "{% set n = strftime_now %}{{ n('%d') }}",
            "{{ strftime_now('%d' ~ x) }}",
            "{{ strftime_now('%%H') }}",
            "{{ strftime_now('%-H') }}",
            "{{ strftime_now('%d\\x25H') }}",
        ] {
            assert_eq!(of(exact), Some(86_400 * 3 + 5), "{exact}");
        }
    }
}
