//! Changes of a JSON document that leave it one.

use serde_json::{Map, Value, json};

use super::Random;

/// Values and keys of the seeds.
#[derive(Debug, Default)]
pub(super) struct Pool {
    values: Vec<Value>,
    keys: Vec<String>,
}

impl Pool {
    /// Adds what is in a document, if it is one.
    pub fn add(&mut self, text: &[u8]) {
        if let Ok(value) = serde_json::from_slice(text) {
            self.gather(&value);
        }
    }

    fn gather(&mut self, value: &Value) {
        if !self.values.contains(value) {
            self.values.push(value.clone());
        }
        match value {
            Value::Array(list) => list.iter().for_each(|v| self.gather(v)),
            Value::Object(map) => {
                for (key, value) in map {
                    if !self.keys.contains(key) {
                        self.keys.push(key.clone());
                    }
                    self.gather(value);
                }
            }
            _ => {}
        }
    }
}

/// The document with one place changed; `None` where the bytes are no JSON.
pub(super) fn change(text: &[u8], pool: &Pool, random: &mut Random) -> Option<Vec<u8>> {
    let mut root: Value = serde_json::from_slice(text).ok()?;
    let n = count(&root);
    let at = random.below(n);
    let other = nth(&mut root, random.below(n)).map(|v| v.clone());
    let node = nth(&mut root, at)?;
    match random.below(12) {
        0 => *node = random.of(&pool.values)?.clone(),
        1 => *node = other?,
        2 => remove(node, random),
        3 => add(node, pool, random),
        4 => wrap(node, random),
        5 => reorder(node, random),
        _ => *node = edge(node, random),
    }
    serde_json::to_vec(&root).ok()
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value that is the `n`-th in the order of the text.
fn nth(value: &mut Value, n: usize) -> Option<&mut Value> {
    fn seek<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
        if *n == 0 {
            return Some(value);
        }
        *n -= 1;
        match value {
            Value::Array(list) => list.iter_mut().find_map(|v| seek(v, n)),
            Value::Object(map) => map.values_mut().find_map(|v| seek(v, n)),
            _ => None,
        }
    }
    let mut n = n;
    seek(value, &mut n)
}

fn remove(node: &mut Value, random: &mut Random) {
    match node {
        Value::Array(list) if !list.is_empty() => _ = list.remove(random.below(list.len())),
        Value::Object(map) => {
            let key = map.keys().nth(random.below(map.len())).cloned();
            key.and_then(|key| map.shift_remove(&key));
        }
        _ => *node = Value::Null,
    }
}

fn add(node: &mut Value, pool: &Pool, random: &mut Random) {
    let value = match random.below(2) {
        0 => random.of(&pool.values).cloned().unwrap_or_default(),
        _ => edge(&Value::Null, random),
    };
    match node {
        Value::Array(list) => list.insert(random.below(list.len() + 1), value),
        Value::Object(map) => {
            let key = random.of(&pool.keys).cloned().unwrap_or_default();
            map.insert(key, value);
        }
        Value::String(text) => {
            let piece = value
                .as_str()
                .unwrap_or(STRINGS[random.below(STRINGS.len())]);
            let at = text.floor_char_boundary(random.below(text.len() + 1));
            text.insert_str(at, piece);
        }
        _ => *node = value,
    }
}

/// Puts the value into lists or objects, up to a hundred of them.
fn wrap(node: &mut Value, random: &mut Random) {
    let deep = [1, 2, 100][random.below(3)];
    for _ in 0..deep {
        let inner = node.take();
        *node = match random.below(2) {
            0 => Value::Array(vec![inner]),
            _ => Value::Object(Map::from_iter([("a".to_owned(), inner)])),
        };
    }
}

fn reorder(node: &mut Value, random: &mut Random) {
    match node {
        Value::Array(list) if list.len() > 1 => {
            let (a, b) = (random.below(list.len()), random.below(list.len()));
            list.swap(a, b);
        }
        Value::Array(list) => {
            let one = list.clone();
            (0..1 + random.below(30)).for_each(|_| list.extend_from_slice(&one));
        }
        Value::String(text) if text.len() < 2000 => *text = text.repeat(2 + random.below(8)),
        _ => {}
    }
}

const NUMBERS: [&str; 40] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "8",
    "64",
    "127",
    "128",
    "255",
    "256",
    "4095",
    "4096",
    "4097",
    "65535",
    "65536",
    "1048576",
    "1073741823",
    "1073741824",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-2147483649",
    "0.5",
    "-0.0",
    "1e-320",
    "1e-7",
    "2.5",
    "1e15",
    "1e19",
    "1e38",
    "1.7e308",
];
const STRINGS: [&str; 14] = [
    "",
    " ",
    "\0",
    "\n",
    "\u{feff}",
    "\u{e9}",
    "\u{1f642}",
    "\u{fdd0}",
    "e\u{301}",
    "a/../../b",
    "{{ x }}",
    "<|im_end|>",
    "1e400",
    "\u{10ffff}",
];

/// A value at some edge, mostly of the type that was there.
fn edge(old: &Value, random: &mut Random) -> Value {
    let number = |random: &mut Random| {
        serde_json::from_str(NUMBERS[random.below(NUMBERS.len())]).unwrap_or_default()
    };
    match (old, random.below(6)) {
        (_, 0) => [
            Value::Null,
            true.into(),
            false.into(),
            json!([]),
            json!({}),
            json!("x"),
        ][random.below(6)]
        .clone(),
        (Value::Number(n), 1..=3) => match (n.as_u64(), random.below(6)) {
            (Some(n), 0) => n.wrapping_add(1).into(),
            (Some(n), 1) => n.saturating_sub(1).into(),
            (Some(n), 2) => n.wrapping_mul(2).into(),
            (Some(n), 3) => (n / 2).into(),
            (Some(n), 4) => (n << 16).into(),
            (_, _) => json!(n.as_f64().unwrap_or_default() * 1e10),
        },
        (Value::String(_), 1..=4) => STRINGS[random.below(STRINGS.len())].into(),
        (Value::Bool(b), 1..=3) => (!b).into(),
        (Value::Null, 1 | 2) => STRINGS[random.below(STRINGS.len())].into(),
        _ => number(random),
    }
}
