//! The run as typed: each key that was given, with its value and its place, and nothing else.
//!
//! Values are of their key's type and within its limits; what they mean together is `run`'s affair.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::elsewhere::{Elsewhere, elsewhere};
use crate::error::{ConfigError, Place};
use crate::key::{Key, KeyDefault, Kind};
use crate::keys::{EXCLUSIVE, KEYS, SECTIONS, find};
use crate::nearest::nearest;
use crate::run::Source;
use crate::tree::{self, Entry, Node, Tree, shortened};
use crate::value::{Value, check, join, unique};
use crate::words::Word;

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Typed {
    pub value: Value,
    pub at: Place,
}

/// What was typed.
#[derive(Clone, Debug)]
pub(crate) struct Low {
    /// The file's name as it was given, for errors about what is not there.
    pub file: Arc<str>,
    given: BTreeMap<&'static str, Typed>,
    /// Paths in the file are relative to this.
    base: PathBuf,
    /// Paths in overrides are relative to this.
    current: PathBuf,
}

impl Low {
    /// Reads a run file's text and its overrides, later ones over earlier ones.
    pub fn read(
        text: &str,
        file: &str,
        base: &Path,
        current: &Path,
        sets: &[String],
    ) -> Result<Self, ConfigError> {
        let file: Arc<str> = file.into();
        let root = tree::parse(text, &tree::in_file(&file))?;
        let (base, current) = (base.to_owned(), current.to_owned());
        let mut low = Self {
            file,
            given: BTreeMap::new(),
            base,
            current,
        };
        let mut unknown = Vec::new();
        let read = low.section("", &root, &mut unknown);
        // Whoever comes from another trainer sees all of its keys at once.
        if let Some(all) = ConfigError::all_unknown(unknown) {
            return Err(all);
        }
        read?;
        for set in sets {
            low.set(set)?;
        }
        low.overrule();
        Ok(low)
    }

    /// Takes a section; keys that are unknown are added to `unknown`.
    fn section(
        &mut self,
        name: &str,
        node: &Node,
        unknown: &mut Vec<ConfigError>,
    ) -> Result<(), ConfigError> {
        let entries = match &node.tree {
            Tree::Null => return Ok(()),
            Tree::Map(entries) => entries,
            _ => {
                let key = if name.is_empty() { "(the file)" } else { name }.to_owned();
                let inside: Vec<_> = children(name).collect();
                let allowed = format!("a mapping with {}", inside.join(", "));
                let (at, found) = (node.at.clone(), node.found());
                return Err(ConfigError::WrongType {
                    at,
                    key,
                    found,
                    allowed,
                });
            }
        };
        unique(name, entries)?;
        entries
            .iter()
            .try_for_each(|entry| self.entry(name, entry, unknown))
    }

    fn entry(
        &mut self,
        section: &str,
        entry: &Entry,
        unknown: &mut Vec<ConfigError>,
    ) -> Result<(), ConfigError> {
        let name = join(section, &entry.key);
        let dotted = entry.key.contains('.');
        if let Some(key) = find(&name).filter(|_| !dotted) {
            return self.give(key, &entry.value);
        }
        if is_section(&name) && !dotted {
            return self.section(&name, &entry.value, unknown);
        }
        unknown.push(no_key(section, &entry.key, entry.at.clone()));
        Ok(())
    }

    /// Takes a value; an empty one takes back what was given before.
    fn give(&mut self, key: &'static Key, node: &Node) -> Result<(), ConfigError> {
        if node.tree == Tree::Null {
            self.given.remove(key.name);
            return Ok(());
        }
        let value = check(key.name, &key.kind, node)?;
        self.given.insert(
            key.name,
            Typed {
                value,
                at: node.at.clone(),
            },
        );
        Ok(())
    }

    fn set(&mut self, set: &str) -> Result<(), ConfigError> {
        let malformed = || ConfigError::Set {
            text: shortened(set),
        };
        let (name, text) = set.split_once('=').ok_or_else(malformed)?;
        let (name, text) = (name.trim(), text.trim());
        if name.is_empty() {
            return Err(malformed());
        }
        let at = Place::Set(shortened(set).into());
        let parsed = |text: &str| tree::parse(text, &|_, _| at.clone());
        if let Some(key) = find(name) {
            let flow = text.starts_with(['[', '{'])
                && matches!(
                    key.kind,
                    Kind::Paths
                        | Kind::Sources
                        | Kind::Texts
                        | Kind::Disks
                        | Kind::Rates
                        | Kind::Words { .. }
                );
            // Outside quotes and lists the text is the value, whatever YAML would make of it.
            let node = if flow || text.starts_with(['"', '\'']) {
                parsed(text)?
            } else {
                Node::scalar(
                    if text == "~" || text == "null" {
                        ""
                    } else {
                        text
                    },
                    at,
                )
            };
            return self.give(key, &node);
        }
        if is_section(name) {
            let mut unknown = Vec::new();
            let read = self.section(name, &parsed(text)?, &mut unknown);
            return ConfigError::all_unknown(unknown).map_or(read, Err);
        }
        let (section, key) = name.rsplit_once('.').unwrap_or(("", name));
        Err(no_key(section, key, at))
    }

    /// Where an override names one key of an exclusive group, the file's others are dropped: also where it turns off
    /// what happens each so many steps.
    fn overrule(&mut self) {
        for group in EXCLUSIVE {
            if group
                .iter()
                .any(|key| self.was_set(key) && (self.chosen(key) || key.ends_with(".every_steps")))
            {
                self.given
                    .retain(|key, typed| !group.contains(key) || matches!(typed.at, Place::Set(_)));
            }
        }
    }

    /// What was given for a key.
    pub fn typed(&self, name: &str) -> Option<&Typed> {
        debug_assert!(find(name).is_some(), "no key {name}");
        self.given.get(name)
    }

    /// Whether an override gave it.
    pub fn was_set(&self, name: &str) -> bool {
        self.typed(name)
            .is_some_and(|t| matches!(t.at, Place::Set(_)))
    }

    /// Whether it was given as a choice among exclusive keys: no split is no choice, and so is a number of steps that
    /// turns off what happens each so many.
    pub fn chosen(&self, name: &str) -> bool {
        let off = [Value::Number(0.0), Value::Count(0)];
        let can_be_off = name == "data.eval_split" || name.ends_with(".every_steps");
        let none = |t: &Typed| can_be_off && off.contains(&t.value);
        self.typed(name).is_some_and(|t| !none(t))
    }

    /// What was given, or the default where the list has one.
    fn value(&self, name: &str) -> Option<Value> {
        if let Some(typed) = self.typed(name) {
            return Some(typed.value.clone());
        }
        let key = find(name).unwrap_or_else(|| panic!("no key {name}"));
        default(key)
    }

    /// A number of a key with or without a default; likewise the next ones.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.value(name).map(|v| match v {
            Value::Count(n) => n,
            other => panic!("{name} is no count: {other:?}"),
        })
    }

    /// A count whose limits fit 32 bits.
    pub fn count32(&self, name: &str) -> Option<u32> {
        self.count(name)
            .map(|n| u32::try_from(n).expect("the key's limits fit 32 bits"))
    }

    pub fn number(&self, name: &str) -> Option<f64> {
        self.value(name).map(|v| match v {
            Value::Number(n) => n,
            other => panic!("{name} is no number: {other:?}"),
        })
    }

    /// A number that was given, whatever the key's default.
    pub fn number_given(&self, name: &str) -> Option<f64> {
        self.typed(name).map(|typed| match typed.value {
            Value::Number(n) => n,
            ref other => panic!("{name} is no number: {other:?}"),
        })
    }

    pub fn flag(&self, name: &str) -> bool {
        match self.value(name) {
            Some(Value::Flag(flag)) => flag,
            other => panic!("{name} is no flag with a default: {other:?}"),
        }
    }

    pub fn text(&self, name: &str) -> Option<String> {
        self.value(name).map(|v| match v {
            Value::Text(text) => text,
            other => panic!("{name} is no text: {other:?}"),
        })
    }

    /// Texts of a list; none when the key was not given.
    pub fn texts(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            None => Vec::new(),
            Some(Value::Texts(texts)) => texts,
            Some(other) => panic!("{name} is no list of texts: {other:?}"),
        }
    }

    /// Words of a list; none when the key was not given.
    pub fn words(&self, name: &str) -> Vec<&'static str> {
        match self.value(name) {
            None => Vec::new(),
            Some(Value::Words(words)) => words,
            Some(other) => panic!("{name} is no list of words: {other:?}"),
        }
    }

    /// Whatever value it is, for keys that take several kinds.
    pub fn any(&self, name: &str) -> Option<Value> {
        self.value(name)
    }

    /// A word as its type; `auto` is `None`.
    pub fn word<W: Word>(&self, name: &str) -> Option<W> {
        match self.value(name)? {
            Value::Word(word) => W::from_word(word),
            other => panic!("{name} is no word: {other:?}"),
        }
    }

    /// A path made absolute.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(|text| self.absolute(name, &text))
    }

    /// Paths made absolute; none when the key was not given.
    pub fn paths(&self, name: &str) -> Vec<PathBuf> {
        match self.value(name) {
            None => Vec::new(),
            Some(Value::Texts(list)) => list.iter().map(|p| self.absolute(name, p)).collect(),
            Some(other) => panic!("{name} is no list of paths: {other:?}"),
        }
    }

    /// Data files with their weights; none when the key was not given.
    pub fn sources(&self, name: &str) -> Vec<Source> {
        let Some(value) = self.value(name) else {
            return Vec::new();
        };
        let Value::Sources(list) = value else {
            panic!("{name} is no list of files: {value:?}");
        };
        let source = |(path, weight): (String, f64)| Source {
            path: self.absolute(name, &path),
            weight,
        };
        list.into_iter().map(source).collect()
    }

    /// Files as they were typed, one text each; none when the key was not given.
    pub fn files_typed(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(Value::Sources(list)) => list.into_iter().map(|(path, _)| path).collect(),
            Some(Value::Texts(list)) => list,
            _ => Vec::new(),
        }
    }

    /// `text` as the path it means at the place where `name` was given. `~/` is the home directory.
    pub fn absolute(&self, name: &str, text: &str) -> PathBuf {
        if let (Some(rest), Some(home)) = (text.strip_prefix("~/"), std::env::home_dir()) {
            return home.join(rest);
        }
        let base = if self.was_set(name) {
            &self.current
        } else {
            &self.base
        };
        let joined = base.join(text);
        std::path::absolute(&joined).unwrap_or(joined)
    }
}

/// The default of a key as a value.
pub(crate) fn default(key: &Key) -> Option<Value> {
    let text = match key.default {
        KeyDefault::Value(text) => text,
        KeyDefault::Unset(_) => return None,
        KeyDefault::ByOptimizer => match key.by_optimizer().as_slice() {
            [(_, first), rest @ ..] if rest.iter().all(|r| r.1.default == first.default) => {
                first.default
            }
            _ => return None,
        },
    };
    let node = Node::scalar(text, Place::Set("default".into()));
    Some(check(key.name, &key.kind, &node).expect("a key's default is allowed"))
}

/// Names directly inside a section, keys and sections.
fn children(section: &str) -> impl Iterator<Item = &'static str> {
    let prefix = join(section, "");
    let sections = SECTIONS.iter().map(|s| s.0);
    KEYS.iter()
        .map(|k| k.name)
        .chain(sections)
        .filter_map(move |name| name.strip_prefix(prefix.as_str()))
        .filter(|rest| !rest.is_empty() && !rest.contains('.'))
}

fn is_section(name: &str) -> bool {
    !name.is_empty() && SECTIONS.iter().any(|s| s.0 == name)
}

/// The error for a name that is no key, with the key that was probably meant: a key of another section with this name,
/// ours for another trainer's name or why there is none, a neighbour with nearly this name, or a key of another
/// section with nearly it.
fn no_key(section: &str, key: &str, at: Place) -> ConfigError {
    let whole = join(section, key);
    let last = key.rsplit('.').next().unwrap_or(key);
    let ours = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
    let known = elsewhere(&whole);
    let (other, reason) = match known {
        Some(Elsewhere::Key(name)) => (Some(name.to_owned()), None),
        Some(Elsewhere::None(why)) => (None, Some(why)),
        None => (None, None),
    };
    // What is known exactly comes before what is spelled nearly so.
    let exact = named(find(&whole))
        .or_else(|| named(KEYS.iter().find(|k| ours(k.name) == last)))
        .or(other);
    let nearly = || {
        nearest(key, children(section))
            .map(|n| join(section, n))
            .or_else(|| nearest(&whole, KEYS.iter().map(|k| k.name)).map(str::to_owned))
            .or_else(|| {
                let meant = nearest(last, KEYS.iter().map(|k| ours(k.name)))?;
                named(KEYS.iter().find(|k| ours(k.name) == meant))
            })
    };
    let found = match reason {
        Some(_) => exact,
        None => exact.or_else(nearly),
    };
    ConfigError::UnknownKey {
        at,
        key: shortened(&whole),
        reason: reason.filter(|_| found.is_none()),
        nearest: found,
    }
}

fn named(key: Option<&Key>) -> Option<String> {
    key.map(|k| k.name.to_owned())
}
