//! One value against its key's entry in the list.

use std::ops::{Bound, RangeBounds};

use lowtide_units::Bytes;

use crate::error::{ConfigError, Place};
use crate::key::{AUTO, DECAY, GROUPS, Kind, RATE, WEIGHT};
use crate::nearest::nearest;
use crate::run::Group;
use crate::tree::{Entry, Node, Tree, shortened};

/// A value that its key allows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Flag(bool),
    Count(u64),
    Number(f64),
    /// Text, or a path as typed.
    Text(String),
    /// Texts, or paths as typed.
    Texts(Vec<String>),
    /// Paths as typed, with weights.
    Sources(Vec<(String, f64)>),
    Size(Bytes),
    Disks(Vec<(String, Bytes)>),
    Groups(Vec<Group>),
    /// One of the key's words, `auto` among them.
    Word(&'static str),
    Words(Vec<&'static str>),
}

/// Drives that one run can be striped over.
pub(crate) const MOST_DRIVES: usize = 64;

/// Reads `node` as `kind`. `key` is its whole name, for errors. `node` is not empty.
pub(crate) fn check(key: &str, kind: &Kind, node: &Node) -> Result<Value, ConfigError> {
    let item = Item { key, kind, node };
    match kind {
        Kind::Paths | Kind::Texts => item.texts(),
        Kind::Disks => item.disks(),
        Kind::Sources => item.sources(),
        Kind::Rates => item.groups(),
        Kind::Words { .. } => item.words(),
        _ => item.scalar(),
    }
}

struct Item<'a> {
    key: &'a str,
    kind: &'a Kind,
    node: &'a Node,
}

impl Item<'_> {
    fn scalar(&self) -> Result<Value, ConfigError> {
        let Tree::Scalar(text) = &self.node.tree else {
            return Err(self.wrong_type());
        };
        match *self.kind {
            Kind::Rates => Err(self.wrong_type()),
            Kind::Flag => flag(text).map(Value::Flag).ok_or_else(|| self.wrong_type()),
            Kind::Count { min, max } => self.count(text, min, max),
            Kind::Number { low, high } => self.number(text, low, high),
            Kind::Text | Kind::Path => Ok(Value::Text(text.clone())),
            Kind::Pattern => self.pattern(text),
            Kind::Size | Kind::Disks => self.size(text).map(Value::Size),
            Kind::Sources => Ok(Value::Sources(vec![(text.clone(), 1.0)])),
            Kind::Paths | Kind::Texts => Ok(Value::Texts(vec![text.clone()])),
            Kind::Word {
                aliases, planned, ..
            } => self.word(text, aliases, planned),
            Kind::Pin { .. } | Kind::Shape | Kind::Words { .. } => self.word(text, &[], &[]),
            Kind::PinCount { max, .. } if digits(text) => self.count(text, 0, max),
            Kind::PinGroups { max, .. } => match text.strip_prefix(GROUPS) {
                Some(number) => self.count(number, 1, max),
                None => self.word(text, &[], &[]),
            },
            Kind::PinCount { .. } => self.word(text, &[], &[]),
            Kind::WordOrPath { .. } => {
                let word = self.kind.words().into_iter().find(|w| w == text);
                Ok(word.map_or_else(|| Value::Text(text.clone()), Value::Word))
            }
        }
    }

    fn count(&self, text: &str, min: u64, max: u64) -> Result<Value, ConfigError> {
        let plain = text.replace('_', "");
        match plain.parse::<u64>() {
            Ok(n) if (min..=max).contains(&n) => Ok(Value::Count(n)),
            Ok(_) => Err(self.out_of_range(text)),
            Err(_) if digits(plain.trim_start_matches(['-', '+'])) => Err(self.out_of_range(text)),
            Err(_) => Err(self.wrong_type()),
        }
    }

    fn number(&self, text: &str, low: Bound<f64>, high: Bound<f64>) -> Result<Value, ConfigError> {
        let plain = text.replace('_', "");
        let special = matches!(
            plain.to_ascii_lowercase().as_str(),
            ".nan" | ".inf" | "-.inf"
        );
        let n: f64 = match plain.parse() {
            Ok(n) => n,
            Err(_) if special => f64::NAN,
            Err(_) => return Err(self.wrong_type()),
        };
        // What is written as another number than 0 is none that f64 has.
        let digits = plain.split(['e', 'E']).next().unwrap_or(&plain);
        let vanishes = n == 0.0 && digits.contains(|c: char| ('1'..='9').contains(&c));
        if vanishes {
            return Err(ConfigError::OutOfRange {
                at: self.node.at.clone(),
                key: self.key.to_owned(),
                found: shortened(text),
                allowed: "0, or a number from 2.3e-308, the least that f64 has in full".to_owned(),
            });
        }
        if n.is_finite() && (low, high).contains(&n) {
            Ok(Value::Number(n))
        } else {
            Err(self.out_of_range(text))
        }
    }

    fn size(&self, text: &str) -> Result<Bytes, ConfigError> {
        text.parse().map_err(|_| self.wrong_type())
    }

    fn word(
        &self,
        text: &str,
        aliases: &[(&str, &'static str)],
        planned: &[&str],
    ) -> Result<Value, ConfigError> {
        let words = self.kind.words();
        let canonical = aliases.iter().find(|a| a.0 == text).map_or(text, |a| a.1);
        if let Some(word) = words.iter().find(|w| **w == canonical) {
            return Ok(Value::Word(word));
        }
        let (key, at) = (self.key.to_owned(), self.node.at.clone());
        let (found, allowed) = (shortened(text), self.kind.allowed());
        let family = text.split(':').next().unwrap_or(text);
        if planned.contains(&family) {
            return Err(ConfigError::NotSupported {
                at,
                key,
                found,
                supported: allowed,
            });
        }
        let nearest = nearest(text, words).map(str::to_owned);
        Err(ConfigError::UnknownWord {
            at,
            key,
            found,
            nearest,
            allowed,
        })
    }

    fn pattern(&self, text: &str) -> Result<Value, ConfigError> {
        match regex::Regex::new(text) {
            Ok(_) => Ok(Value::Text(text.to_owned())),
            Err(e) => Err(ConfigError::Pattern {
                at: self.node.at.clone(),
                key: self.key.to_owned(),
                found: shortened(text),
                why: said(&e.to_string()),
            }),
        }
    }

    fn words(&self) -> Result<Value, ConfigError> {
        let one = |item: &Item<'_>| match item.scalar()? {
            Value::Word(word) => Ok(word),
            other => panic!("a word is read as a word: {other:?}"),
        };
        let Tree::List(items) = &self.node.tree else {
            return one(self).map(|word| Value::Words(vec![word]));
        };
        let each = items.iter().enumerate().map(|(i, node)| {
            let key = &format!("{}[{i}]", self.key);
            one(&Item { key, node, ..*self })
        });
        each.collect::<Result<_, _>>().map(Value::Words)
    }

    fn texts(&self) -> Result<Value, ConfigError> {
        let Tree::List(items) = &self.node.tree else {
            return self.scalar();
        };
        let text = |(i, node): (usize, &Node)| match &node.tree {
            Tree::Scalar(text) => Ok(text.clone()),
            _ => Err(Item {
                key: &format!("{}[{i}]", self.key),
                kind: match self.kind {
                    Kind::Paths => &Kind::Path,
                    _ => &Kind::Text,
                },
                node,
            }
            .wrong_type()),
        };
        items
            .iter()
            .enumerate()
            .map(text)
            .collect::<Result<_, _>>()
            .map(Value::Texts)
    }

    fn sources(&self) -> Result<Value, ConfigError> {
        let one = |key: &str, node: &Node| match &node.tree {
            Tree::Scalar(text) => Ok((text.clone(), 1.0)),
            Tree::Map(_) => source(key, node),
            _ => Err(Item {
                key,
                kind: &Kind::Path,
                node,
            }
            .wrong_type()),
        };
        let Tree::List(items) = &self.node.tree else {
            return match &self.node.tree {
                Tree::Map(_) => Ok(Value::Sources(vec![source(self.key, self.node)?])),
                _ => self.scalar(),
            };
        };
        let each = items.iter().enumerate();
        let each = each.map(|(i, node)| one(&format!("{}[{i}]", self.key), node));
        each.collect::<Result<_, _>>().map(Value::Sources)
    }

    fn disks(&self) -> Result<Value, ConfigError> {
        match &self.node.tree {
            Tree::List(items) if items.len() > MOST_DRIVES => Err(ConfigError::OutOfRange {
                at: self.node.at.clone(),
                key: self.key.to_owned(),
                found: format!("a list of {} drives", items.len()),
                allowed: format!("up to {MOST_DRIVES}"),
            }),
            Tree::List(items) => {
                let disk = |(i, node)| disk(&format!("{}[{i}]", self.key), node, self.kind);
                items
                    .iter()
                    .enumerate()
                    .map(disk)
                    .collect::<Result<_, _>>()
                    .map(Value::Disks)
            }
            Tree::Map(_) => Ok(Value::Disks(vec![disk(self.key, self.node, self.kind)?])),
            _ => self.scalar(),
        }
    }

    fn groups(&self) -> Result<Value, ConfigError> {
        let Tree::List(items) = &self.node.tree else {
            return Ok(Value::Groups(vec![group(self.key, self.node)?]));
        };
        let each = items.iter().enumerate();
        let each = each.map(|(i, node)| group(&format!("{}[{i}]", self.key), node));
        each.collect::<Result<_, _>>().map(Value::Groups)
    }

    fn typed_text(&self) -> Result<String, ConfigError> {
        match &self.node.tree {
            Tree::Scalar(text) => Ok(text.clone()),
            _ => Err(self.wrong_type()),
        }
    }

    fn wrong_type(&self) -> ConfigError {
        ConfigError::WrongType {
            at: self.node.at.clone(),
            key: self.key.to_owned(),
            found: self.node.found(),
            allowed: self.kind.allowed(),
        }
    }

    fn out_of_range(&self, text: &str) -> ConfigError {
        ConfigError::OutOfRange {
            at: self.node.at.clone(),
            key: self.key.to_owned(),
            found: shortened(text),
            allowed: self.kind.allowed(),
        }
    }
}

/// One `{dir, size}`.
fn disk(key: &str, node: &Node, kind: &Kind) -> Result<(String, Bytes), ConfigError> {
    let [dir, size] = fields(key, node, kind, ["dir", "size"], |item, name| match name {
        "dir" => item.typed_text().map(Value::Text),
        _ => match &item.node.tree {
            Tree::Scalar(text) => item.size(text).map(Value::Size),
            _ => Err(item.wrong_type()),
        },
    })?;
    match (dir, size) {
        (Some(Value::Text(dir)), Some(Value::Size(size))) => Ok((dir, size)),
        (None, _) => Err(lacks(key, node, "dir")),
        _ => Err(lacks(key, node, "size")),
    }
}

/// One `{path, weight}`.
fn source(key: &str, node: &Node) -> Result<(String, f64), ConfigError> {
    let [path, weight] = fields(
        key,
        node,
        &Kind::Sources,
        ["path", "weight"],
        |item, name| match (name, &item.node.tree) {
            ("path", _) => item.typed_text().map(Value::Text),
            (_, Tree::Scalar(text)) => item.number(text, WEIGHT.0, WEIGHT.1),
            _ => Err(item.wrong_type()),
        },
    )?;
    match (path, weight) {
        (Some(Value::Text(path)), Some(Value::Number(weight))) => Ok((path, weight)),
        (Some(Value::Text(path)), _) => Ok((path, 1.0)),
        _ => Err(lacks(key, node, "path")),
    }
}

/// One `{match, learning_rate, weight_decay}`: names, and at least one of the two numbers.
fn group(key: &str, node: &Node) -> Result<Group, ConfigError> {
    let number = |value: Option<Value>| match value {
        Some(Value::Number(n)) => Some(n),
        _ => None,
    };
    let names = ["match", "learning_rate", "weight_decay"];
    let [texts, rate, decay] = fields(key, node, &Kind::Rates, names, |item, name| {
        match (name, &item.node.tree) {
            ("match", _) => item.texts(),
            ("learning_rate", Tree::Scalar(text)) => item.number(text, RATE.0, RATE.1),
            (_, Tree::Scalar(text)) => item.number(text, DECAY.0, DECAY.1),
            _ => Err(item.wrong_type()),
        }
    })?;
    let Some(Value::Texts(names)) = texts.filter(|t| *t != Value::Texts(Vec::new())) else {
        return Err(lacks(key, node, "match"));
    };
    let (learning_rate, weight_decay) = (number(rate), number(decay));
    if learning_rate.or(weight_decay).is_none() {
        return Err(lacks(key, node, "learning_rate' or 'weight_decay"));
    }
    Ok(Group {
        names,
        learning_rate,
        weight_decay,
    })
}

/// The values of a mapping with so many keys, as far as they were given.
fn fields<const N: usize>(
    key: &str,
    node: &Node,
    kind: &Kind,
    names: [&str; N],
    read: impl Fn(&Item<'_>, &str) -> Result<Value, ConfigError>,
) -> Result<[Option<Value>; N], ConfigError> {
    let Tree::Map(entries) = &node.tree else {
        return Err(Item { key, kind, node }.wrong_type());
    };
    unique(key, entries)?;
    let mut values = [const { None }; N];
    for entry in entries {
        let whole = format!("{key}.{}", entry.key);
        let Some(i) = names.iter().position(|name| *name == entry.key) else {
            let nearest = nearest(&entry.key, names).map(|n| format!("{key}.{n}"));
            return Err(ConfigError::UnknownKey {
                at: entry.at.clone(),
                key: shortened(&whole),
                nearest,
                reason: None,
            });
        };
        let kind = match names[i] {
            "size" => &Kind::Size,
            "weight" => &Kind::Number {
                low: WEIGHT.0,
                high: WEIGHT.1,
            },
            "learning_rate" => &Kind::Number {
                low: RATE.0,
                high: RATE.1,
            },
            "weight_decay" => &Kind::Number {
                low: DECAY.0,
                high: DECAY.1,
            },
            "match" => &Kind::Texts,
            _ => &Kind::Path,
        };
        let item = Item {
            key: &whole,
            kind,
            node: &entry.value,
        };
        values[i] = Some(read(&item, names[i])?);
    }
    Ok(values)
}

fn lacks(key: &str, node: &Node, what: &str) -> ConfigError {
    ConfigError::Needs {
        at: node.at.clone(),
        key: key.to_owned(),
        needs: format!("'{what}'"),
    }
}

/// Refuses a mapping with one key twice. `section` is its whole name, empty at the top.
pub(crate) fn unique(section: &str, entries: &[Entry]) -> Result<(), ConfigError> {
    let mut seen: std::collections::HashMap<&str, &Place> = std::collections::HashMap::new();
    for entry in entries {
        if let Some(first) = seen.insert(&entry.key, &entry.at) {
            return Err(ConfigError::DuplicateKey {
                at: entry.at.clone(),
                key: shortened(&join(section, &entry.key)),
                first: first.clone(),
            });
        }
    }
    Ok(())
}

/// The whole name of a key in a section.
pub(crate) fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

/// What a message of several lines says: its last one, those before draw it.
fn said(message: &str) -> String {
    let last = message.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").trim().to_owned()
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'_')
}

fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Whether a pinned knob was left to the planner.
pub(crate) fn is_auto(value: &Value) -> bool {
    *value == Value::Word(AUTO)
}
