//! What chat templates expect of Python: how values print, `tojson`, `strftime`.
//!
//! Templates were written against Jinja2 inside transformers, so `{{ x }}` must print as Python's
//! `str(x)`, and `tojson` as `json.dumps(x, ensure_ascii=False)`.

use std::fmt::Write;

use minijinja::Error;
use minijinja::value::{Kwargs, Value, ValueKind};

/// How `str(value)` prints in Python; a string inside a list or dictionary is quoted.
pub fn print(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.to_string(),
        ValueKind::Undefined => String::new(),
        _ => {
            let mut out = String::new();
            repr(&mut out, value);
            out
        }
    }
}

fn repr(out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => _ = write!(out, "{value}"),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(x) => out.push_str(&float(x)),
            Err(_) => _ = write!(out, "{value}"),
        },
        ValueKind::String => string_repr(out, &value.to_string()),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() {
                ('(', ')')
            } else {
                ('[', ']')
            };
            out.push(open);
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(out, &item);
            }
            out.push_str(if value.is_tuple() && value.len() == Some(1) {
                ","
            } else {
                ""
            });
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(out, &key);
                out.push_str(": ");
                repr(out, &value.get_item(&key).unwrap_or_default());
            }
            out.push('}');
        }
        _ => _ = write!(out, "{value}"),
    }
}

/// Single quotes unless the string has some and no double ones.
fn string_repr(out: &mut String, s: &str) {
    let quote = if s.contains('\'') && !s.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in s.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() && (c as u32) < 0x100 => _ = write!(out, "\\x{:02x}", c as u32),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// The shortest digits that read back, positional between 1e-4 and 1e16, as Python's `repr`.
pub fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes a number");
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `tojson(value, indent=None, ensure_ascii=False, separators=None, sort_keys=False)`.
pub fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            let kind = minijinja::ErrorKind::InvalidOperation;
            return Err(Error::new(kind, "tojson: separators are not a pair"));
        }
        None => (
            if indent.is_some() { "," } else { ", " }.to_owned(),
            ": ".to_owned(),
        ),
    };
    let dump = Dump {
        indent,
        item,
        key,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut json = serde_json::to_value(&value).map_err(|e| {
        Error::new(
            minijinja::ErrorKind::BadSerialization,
            format!("tojson: {e}"),
        )
    })?;
    if dump.sort {
        json.sort_all_objects();
    }
    let mut out = String::new();
    dump.write(&mut out, &json, 0);
    Ok(Value::from_safe_string(out))
}

struct Dump {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Dump {
    fn write(&self, out: &mut String, value: &serde_json::Value, depth: usize) {
        use serde_json::Value as Json;
        match value {
            Json::Null => out.push_str("null"),
            Json::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Json::Number(n) if n.is_f64() => out.push_str(&float(n.as_f64().unwrap_or(f64::NAN))),
            Json::Number(n) => _ = write!(out, "{n}"),
            Json::String(s) => self.string(out, s),
            Json::Array(list) if list.is_empty() => out.push_str("[]"),
            Json::Object(map) if map.is_empty() => out.push_str("{}"),
            Json::Array(list) => {
                out.push('[');
                for (i, item) in list.iter().enumerate() {
                    self.separate(out, i, depth + 1);
                    self.write(out, item, depth + 1);
                }
                self.newline(out, depth);
                out.push(']');
            }
            Json::Object(map) => {
                out.push('{');
                for (i, (key, item)) in map.iter().enumerate() {
                    self.separate(out, i, depth + 1);
                    self.string(out, key);
                    out.push_str(&self.key);
                    self.write(out, item, depth + 1);
                }
                self.newline(out, depth);
                out.push('}');
            }
        }
    }

    fn separate(&self, out: &mut String, i: usize, depth: usize) {
        if i > 0 {
            out.push_str(&self.item);
        }
        self.newline(out, depth);
    }

    fn newline(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, out: &mut String, s: &str) {
        let quoted = serde_json::Value::from(s).to_string();
        if !self.ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// `str.title()`: a letter behind anything but a letter is large, all others are small.
pub fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// Jinja2's test `sequence`: what has a length and can be indexed, so strings and mappings too.
pub fn is_sequence(value: &Value) -> bool {
    value.is_undefined()
        || matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::String | ValueKind::Map
        )
}

/// Jinja2's test `iterable`: what Python can iterate over. That is not none, which minijinja reads as an empty
/// list.
pub fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Methods of a dictionary. `x.items` is the method in Python, whatever keys `x` has.
const METHODS: [&str; 10] = [
    "items",
    "keys",
    "values",
    "get",
    "pop",
    "popitem",
    "update",
    "copy",
    "setdefault",
    "clear",
];

/// The method that a template prints without calling it (`{{ x.items }}`), if it does so. Python would
/// print where the method lies in memory, which no two runs have in common.
pub fn printed_method(source: &str) -> Option<&'static str> {
    source.split("{{").skip(1).find_map(|rest| {
        let inner = rest.split("}}").next()?;
        let inner = inner
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        let (object, name) = inner.rsplit_once('.')?;
        let plain =
            |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '[' | ']' | '\'' | '"');
        let method = METHODS.iter().find(|m| **m == name)?;
        (!object.is_empty() && object.chars().all(plain)).then_some(*method)
    })
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    /// Expected strings are those of Python 3.
    #[test]
    fn titles_are_those_of_python() {
        for (text, want) in [
            ("it's a USER's x-ray", "It'S A User'S X-Ray"),
            ("get_weather2day", "Get_Weather2Day"),
            ("\u{e9}t\u{e9} (a)[b]", "\u{c9}t\u{e9} (A)[B]"),
        ] {
            assert_eq!(title(text), want);
        }
    }

    #[test]
    fn a_method_that_is_printed_is_found() {
        for (source, want) in [
            ("a {{ T.items }}", Some("items")),
            ("{{- tools[0]['function'].keys -}}", Some("keys")),
            (
                "{{ T.items() }}{{ T['items'] }}{{ T.itemsize }}{{ '.items' }}",
                None,
            ),
            (
                "{% for k in T.items() %}{{ k }}{% endfor %}{{ items }}",
                None,
            ),
            ("{{ 'see T.items' }}", None),
        ] {
            assert_eq!(printed_method(source), want, "{source}");
        }
    }

    #[test]
    fn floats_print_as_in_python() {
        for (x, want) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.2345e300, "1.2345e+300"),
        ] {
            assert_eq!(float(x), want);
        }
    }

    /// Expected strings are those of `repr` and `json.dumps` in Python 3.11.
    #[test]
    fn values_print_as_in_python() {
        let json: serde_json::Value =
            serde_json::from_str(r#"{"b": [1, 1e-5, null, true], "a": "it's \u00e9\n", "c": {}}"#)
                .unwrap();
        let value = Value::from(Serde(json));
        let want = r#"{'b': [1, 1e-05, None, True], 'a': "it's é\n", 'c': {}}"#;
        assert_eq!(print(&value), want);
        let dump = |options: Vec<(&str, Value)>| {
            tojson(value.clone(), Kwargs::from_iter(options))
                .unwrap()
                .to_string()
        };
        assert_eq!(
            dump(vec![]),
            r#"{"b": [1, 1e-05, null, true], "a": "it's é\n", "c": {}}"#
        );
        assert_eq!(
            dump(vec![
                ("ensure_ascii", true.into()),
                ("sort_keys", true.into())
            ]),
            r#"{"a": "it's \u00e9\n", "b": [1, 1e-05, null, true], "c": {}}"#
        );
        assert_eq!(
            dump(vec![("indent", 2.into())]),
            "{\n  \"b\": [\n    1,\n    1e-05,\n    null,\n    true\n  ],\n  \"a\": \"it's é\\n\",\n  \"c\": {}\n}"
        );
    }
}
