//! The keys of a configuration, read with checks.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::ModelError;

/// What a real number of a configuration can be, wide around all that models have: beyond it norms, angles or
/// sums of an f32 are zero, infinite or all the same.
pub(crate) struct Sane {
    pub range: RangeInclusive<f64>,
    pub expected: &'static str,
}

/// Added to a mean square before its root: 1e-5 or 1e-6 in models.
pub(crate) const EPS: Sane = Sane {
    range: 1e-20..=1.0,
    expected: "a number from 1e-20 to 1",
};
/// 1e4 to 1e7 in models.
pub(crate) const THETA: Sane = Sane {
    range: 1.0..=1e15,
    expected: "a number from 1 to 1e15",
};
/// By how much positions are stretched: 2 to 40 in models.
pub(crate) const FACTOR: Sane = Sane {
    range: 1.0..=1e6,
    expected: "a number from 1 to 1e6",
};
/// 1 and 4 in models.
pub(crate) const FREQ_FACTOR: Sane = Sane {
    range: 1e-3..=1e6,
    expected: "a number from 1e-3 to 1e6",
};
/// By what rotated queries and keys are multiplied: 1 to 1.4 in models.
pub(crate) const ATTENTION_FACTOR: Sane = Sane {
    range: 1e-3..=1e3,
    expected: "a number from 1e-3 to 1e3",
};
/// What something is multiplied or divided by, and caps: 0.01 to 100 in models.
pub(crate) const MULTIPLIER: Sane = Sane {
    range: 1e-6..=1e6,
    expected: "a number from 1e-6 to 1e6",
};
/// How much of a head is rotated: 0.25 to 1 in models.
pub(crate) const PART: Sane = Sane {
    range: 1e-6..=1.0,
    expected: "a number above 0, at most 1",
};
pub(crate) const LENGTH: Sane = Sane {
    range: 1.0..=4_294_967_295.0,
    expected: "a whole number from 1 to 4294967295",
};

/// A value that makes no sense.
pub(crate) fn bad(key: &str, value: &Value, need: &'static str) -> ModelError {
    ModelError::BadValue {
        key: key.to_owned(),
        value: brief(value),
        need,
    }
}

/// A value that makes sense, and that lowtide cannot do.
pub(crate) fn unsupported(key: &str, value: &Value, supported: &'static str) -> ModelError {
    ModelError::Unsupported {
        key: key.to_owned(),
        value: brief(value),
        supported,
    }
}

/// A value as written, cut where it is long.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A JSON object whose values are read with checks. `null` counts as absent.
pub(crate) struct Config<'a> {
    pub map: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn required(&self, key: &str) -> Result<&'a Value, ModelError> {
        self.get(key).ok_or_else(|| ModelError::MissingKey {
            key: key.to_owned(),
        })
    }

    pub fn size_or_null(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|&n| n > 0)
        {
            Some(n) => Ok(Some(n)),
            None => Err(bad(key, value, "a whole number from 1 to 4294967295")),
        }
    }

    pub fn size_or(&self, key: &str, default: u32) -> Result<u32, ModelError> {
        Ok(self.size_or_null(key)?.unwrap_or(default))
    }

    pub fn size(&self, key: &str) -> Result<u32, ModelError> {
        self.required(key)?;
        self.size_or(key, 0)
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| bad(key, value, "true or false"))
    }

    pub fn number(&self, key: &str, sane: &Sane) -> Result<f64, ModelError> {
        let value = self.required(key)?;
        match value.as_f64().filter(|n| sane.range.contains(n)) {
            Some(n) => Ok(n),
            None => Err(bad(key, value, sane.expected)),
        }
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str, sane: &Sane) -> Result<Vec<f64>, ModelError> {
        let value = self.required(key)?;
        let of = |v: &Value| v.as_f64().filter(|n| sane.range.contains(n));
        let list = value.as_array();
        let all = list.and_then(|list| list.iter().map(of).collect());
        all.ok_or_else(|| bad(key, value, "a list of numbers from 1e-3 to 1e6"))
    }

    /// A number of positions, which an export writes as a whole number.
    pub fn length(&self, key: &str) -> Result<f64, ModelError> {
        let n = self.number(key, &LENGTH)?;
        if n.fract() == 0.0 {
            return Ok(n);
        }
        Err(bad(key, self.required(key)?, LENGTH.expected))
    }

    pub fn number_or(&self, key: &str, sane: &Sane, default: f64) -> Result<f64, ModelError> {
        if self.get(key).is_none() {
            Ok(default)
        } else {
            self.number(key, sane)
        }
    }

    /// The value is one of `known`, or absent.
    pub fn one_of(
        &self,
        key: &str,
        known: &[&str],
        supported: &'static str,
    ) -> Result<(), ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(());
        };
        if value.as_str().is_some_and(|v| known.contains(&v)) {
            return Ok(());
        }
        Err(unsupported(key, value, supported))
    }

    /// A whole number, 0 too.
    pub fn whole_or(&self, key: &str, default: u32) -> Result<u32, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let whole = value.as_u64().and_then(|n| u32::try_from(n).ok());
        whole.ok_or_else(|| bad(key, value, "a whole number from 0 to 4294967295"))
    }

    /// A list with an entry a layer; `None` when the key is absent.
    pub fn by_layer(&self, key: &str, layers: u32) -> Result<Option<&'a [Value]>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_array() {
            Some(list) if list.len() == layers as usize => Ok(Some(list)),
            _ => Err(bad(key, value, "a list with an entry for each layer")),
        }
    }
}
