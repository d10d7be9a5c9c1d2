//! The name under which tokenised examples are kept: a hash of everything that decides their ids and masks.

use std::path::PathBuf;

use super::dataset::{LoadOptions, OnError};
use super::jsonl::Format;
use super::kept::Key;
use super::source::Make;
use super::tokenizer::Tokenizer;
use crate::error::DataError;

/// Raised whenever the same records become other ids or masks than before, or more is noticed in them, so that nothing
/// that was kept is used: what was kept tells what was noticed then.
const CONTENT: u32 = 2;

/// What is known of data files by their bytes.
pub(super) struct Keys {
    /// Of all that tokens were made of and by: the name that they are kept under.
    pub file: Key,
    /// Of what decides which tokens come in which order, and nothing else: a run that goes on compares it.
    pub data: Key,
}

/// The keys of data files as they are now, read with these options; `None`: the tokenizer cannot tell what it is.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn keys_of(
    paths: &[PathBuf],
    options: &LoadOptions,
    tokenizer: &Tokenizer,
) -> Result<Option<Keys>, DataError> {
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
        classes,
        line_bytes_max,
        on_error,
        // It refuses, and changes nothing of what is read.
        memory: _,
    } = options;
    let (mut file, mut data) = (blake3::Hasher::new(), blake3::Hasher::new());
    let version = format!("lowtide {} {CONTENT}", env!("CARGO_PKG_VERSION"));
    add(&mut file, version.as_bytes());
    let deciding = (fields, loss_on, separator, system, text_by);
    let settings = (format, line_bytes_max, on_error, deciding);
    add(&mut file, format!("{settings:?}").as_bytes());
    // Where records that are too long end the run, the others are the same with any bound.
    let leaves_out = (*on_error == OnError::Skip).then_some(line_bytes_max);
    add(
        &mut data,
        format!("{:?}", (deciding, leaves_out)).as_bytes(),
    );
    let pairs = *format == Some(Format::Pair);
    if classes.is_some() || pairs {
        // What stands around texts is in no other part of the tokenizer's identity.
        let around = serde_json::to_string(&tokenizer.around());
        let Ok(around) = around else {
            return Ok(None);
        };
        for hash in [&mut file, &mut data] {
            let of = match classes {
                Some(classes) => format!("{classes:?} {around}"),
                None => format!("{format:?} {around}"),
            };
            add(hash, of.as_bytes());
        }
    }
    for path in paths {
        let ending = path.extension().map(|e| e.to_ascii_lowercase());
        // How cells of a table are cut.
        let tabs = ending.as_ref().is_some_and(|ending| ending == "tsv");
        let make = format!("{:?}", (Make::of(path), tabs));
        add(&mut data, make.as_bytes());
        add(&mut file, ending.unwrap_or_default().as_encoded_bytes());
        if *on_error == OnError::Skip {
            // The names of files are in the report of records left out.
            add(&mut file, path.as_os_str().as_encoded_bytes());
        }
        let mut content = blake3::Hasher::new();
        let opened = lowtide_files::open_any(path)?.file;
        content
            .update_reader(std::io::BufReader::with_capacity(1 << 20, opened))
            .map_err(|e| DataError::io(path, e))?;
        for hash in [&mut file, &mut data] {
            add(hash, content.finalize().as_bytes());
        }
    }
    for hash in [&mut file, &mut data] {
        add(hash, &identity);
    }
    // What of its files the tokenizers' crate does not write down again may yet decide.
    add(&mut file, tokenizer.files());
    Ok(Some(Keys {
        file: *file.finalize().as_bytes(),
        data: *data.finalize().as_bytes(),
    }))
}

fn add(hash: &mut blake3::Hasher, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
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
    use super::super::dataset::{Dataset, Hash, LoadOptions};
    use super::super::plain::TextBy;
    use super::super::remarks::Remarks;
    use super::super::testing;
    use super::{CONTENT, time_in};

    /// [`CONTENT`], and the hash of ids and masks of the records below.
    const GOLDEN: (u32, u64) = (2, 0xe5fd_ca2a_3d18_70be);

    /// Records of each format through the whole of reading, from a file's bytes to ids and masks.
    #[test]
    fn the_same_records_are_the_same_tokens_as_long_as_content_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let chat = "[{\"role\": \"user\", \"content\": \"Why \u{e9}? 12\"}, {\"role\": \"assistant\", \"content\": \" So.\\n\"}, \
                    {\"role\": \"user\", \"content\": \"And?\"}, {\"role\": \"assistant\", \"content\": \"No\"}]";
        let texts = [
            ("a.jsonl", format!("{{\"messages\": {chat}}}\n")),
            (
                "b.jsonl",
                "{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}\n".repeat(2),
            ),
            (
                "c.json",
                "[{\"text\": \"A text.  Two spaces, <|im_end|>\"},\n {\"text\": \"b\\u00e9\"}]"
                    .to_owned(),
            ),
            (
                "d.jsonl",
                "{\"instruction\": \"Say\", \"input\": \"x\", \"output\": \"y\"}\n".to_owned(),
            ),
            ("e.csv", "prompt,completion\n\"a, b\",c\n".to_owned()),
            ("f.tsv", "prompt\tcompletion\na, b\tc\n".to_owned()),
            ("g.txt", "One line.\n\nAnother one,\nof two.\n".to_owned()),
        ];
        let options = LoadOptions {
            text_by: TextBy::Paragraph,
            ..LoadOptions::default()
        };
        let mut all = Hash::default();
        for template in ["chatml", "llama3", "mistral", "qwen25"] {
            let tokenizer = testing::with_template(template);
            for (name, text) in &texts {
                let path = dir.path().join(name);
                std::fs::write(&path, text).unwrap();
                let data = Dataset::load(&[path], &options, &tokenizer).unwrap();
                all.add(data.report().mask_hash);
            }
        }
        assert!(
            (CONTENT, all.0) == GOLDEN,
            "The same records are other ids or masks than before, {:#018x}: tokens that are kept would be used wrongly. If \
             that is meant, raise CONTENT in this file and write both into GOLDEN.",
            all.0
        );
    }

    /// Counts of a version that noticed less are no counts of this one: 0 would be said of what nobody looked for.
    #[test]
    fn what_an_earlier_version_noticed_is_not_taken_for_all() {
        let mut now = serde_json::to_value(Remarks::default()).unwrap();
        assert!(serde_json::from_value::<Remarks>(now.clone()).is_ok());
        now.as_object_mut().unwrap().remove("n_calls_unwritten");
        assert!(serde_json::from_value::<Remarks>(now).is_err());
    }

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
