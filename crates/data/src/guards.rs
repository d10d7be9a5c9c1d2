//! What one rendering of a chat template may use, and the guards that hold it to that.
//!
//! Work is counted, not time: a byte that is made, printed or looked through is one unit, an item of a
//! list 16, an instruction 32. What a filter, a test, a function or a method takes stands in `costs`;
//! this file has the budget and the guards of operators, which `rewrite` puts into a program.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::python;

/// Values inside values, at most.
const DEPTH_MAX: usize = 100;
/// Macros and blocks inside each other, at most.
pub(super) const RECURSION_MAX: usize = 150;
/// Units of work that an item of a list counts.
pub(super) const ITEM: u64 = 16;
/// Units of work that an instruction counts.
const INSTRUCTION: u64 = 32;
/// Units of work between two looks at the clock.
const CLOCK: u64 = 1 << 16;

/// What one rendering may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Instructions that a rendering may run.
    pub fuel: u64,
    /// Bytes of one string, or items of one list.
    pub size: u64,
    /// Bytes that are printed in all, into variables too.
    pub prints: u64,
    /// Units of work, without instructions.
    pub work: u64,
    /// Units of work that an honest template stays below, instructions too.
    pub honest: u64,
    /// Time on the clock.
    pub time: Duration,
}

impl Bounds {
    /// For a conversation of so many messages, JSON values and bytes of text.
    pub fn of(messages: usize, values: usize, bytes: usize) -> Self {
        let (m, v, b) = (messages as u64, values as u64, bytes as u64);
        Self {
            fuel: (1_000_000 + 2000 * (m + v) + 100 * m * m).min(1_000_000_000),
            size: (1 << 20) + 16 * b + 16 * v,
            prints: (256 << 10) + 16 * b + 16 * v,
            work: ((64 << 20) + (2048 + 16 * m) * (b + 16 * v)).min(4 << 30),
            honest: (256 << 10) + (32 + 4 * m) * (b + 64 * v) + 8192 * (m + 2 * v),
            time: Duration::from_secs(120) + Duration::from_micros(10 * (b + v)),
        }
    }
}

/// The first limit that a rendering went beyond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exceeded {
    /// The filters, tests, functions, methods or operators that it was in; nothing outside of them.
    pub construct: String,
    /// What it does, and the limit.
    pub what: String,
}

/// What a rendering took.
#[derive(Clone, Debug, Default)]
pub(super) struct Spent {
    /// Units of work, without instructions.
    pub work: u64,
    /// Instructions, as far as they were counted.
    pub fuel: u64,
    /// The limit that it went beyond, also where the template went on after that.
    pub exceeded: Option<Exceeded>,
    /// The construct that took most of the work.
    pub most: String,
}

impl Spent {
    /// All units of work.
    pub fn units(&self) -> u64 {
        self.work.saturating_add(INSTRUCTION * self.fuel)
    }
}

struct Budget {
    bounds: Bounds,
    spent: Spent,
    prints: u64,
    /// Work at which the clock is looked at next.
    look_at: u64,
    until: Instant,
    /// The constructs that are being evaluated, the outermost first.
    constructs: Vec<Construct>,
    /// The largest charge of one construct, and which.
    most: (u64, Vec<Construct>),
}

thread_local! {
    static BUDGET: RefCell<Option<Budget>> = const { RefCell::new(None) };
}

/// A kind of construct and its name.
pub(super) type Construct = (&'static str, &'static str);

fn named(constructs: &[Construct]) -> String {
    let each = constructs.iter().map(|(kind, name)| match name.is_empty() {
        true => (*kind).to_owned(),
        false => format!("{kind} '{name}'"),
    });
    each.collect::<Vec<_>>().join(" with ")
}

pub(super) fn error(text: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

/// Runs `work` with a budget; what it gave, and what it took.
pub(super) fn within<T>(bounds: Bounds, work: impl FnOnce() -> T) -> (T, Spent) {
    let budget = Budget {
        bounds,
        spent: Spent::default(),
        prints: 0,
        look_at: CLOCK,
        until: Instant::now() + bounds.time,
        constructs: Vec::new(),
        most: (0, Vec::new()),
    };
    let before = BUDGET.replace(Some(budget));
    let done = work();
    let spent = BUDGET.replace(before).map(|b| Spent {
        most: named(&b.most.1),
        ..b.spent
    });
    (done, spent.unwrap_or_default())
}

/// Refuses what goes beyond a limit: notes which, with the construct.
pub(super) fn beyond(what: String) -> Error {
    BUDGET.with_borrow_mut(|budget| {
        let Some(budget) = budget else {
            return error(format!("it {what}"));
        };
        let construct = named(&budget.constructs);
        let shown = match construct.is_empty() {
            true => format!("it {what}"),
            false => format!("{construct} {what}"),
        };
        budget
            .spent
            .exceeded
            .get_or_insert(Exceeded { construct, what });
        error(shown)
    })
}

/// Does `work` as a named construct: errors and figures of what it takes name it.
pub(super) fn within_construct<T>(
    construct: Construct,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let outer = BUDGET.with_borrow_mut(|budget| {
        budget.as_mut().map(|b| {
            b.constructs.push(construct);
            b.spent.work
        })
    });
    let done = work();
    BUDGET.with_borrow_mut(|budget| {
        if let (Some(b), Some(from)) = (budget, outer) {
            let took = b.spent.work - from;
            if took > b.most.0 {
                b.most = (took, b.constructs.clone());
            }
            b.constructs.pop();
        }
    });
    done
}

/// Takes units of work from the budget of the rendering that this thread does.
pub(super) fn charge(units: u64) -> Result<(), Error> {
    let what = BUDGET.with_borrow_mut(|budget| {
        let b = budget.as_mut()?;
        // A limit that was passed once stays passed, whatever the template made of the error.
        let work = b.spent.work.saturating_add(units);
        if work > b.bounds.work {
            let most = b.bounds.work >> 20;
            return Some(format!(
                "makes and looks through more than {most} MiB, the limit for this conversation"
            ));
        }
        b.spent.work = work;
        if work < b.look_at {
            return None;
        }
        b.look_at = work + CLOCK;
        (Instant::now() > b.until).then(|| {
            let most = b.bounds.time.as_secs();
            format!("takes longer than {most} s, the limit for this conversation")
        })
    });
    what.map_or(Ok(()), |what| Err(beyond(what)))
}

/// Takes bytes that are printed. A conversation is rendered some dozen times to find its turns, and each text
/// is looked through, so what one rendering prints is bounded closer than what it makes.
pub(super) fn print(bytes: u64) -> Result<(), Error> {
    charge(bytes)?;
    let what = BUDGET.with_borrow_mut(|budget| {
        let b = budget.as_mut()?;
        b.prints = b.prints.saturating_add(bytes);
        (b.prints > b.bounds.prints).then(|| {
            let most = b.bounds.prints >> 10;
            format!("prints more than {most} KiB, the limit for this conversation")
        })
    });
    what.map_or(Ok(()), |what| Err(beyond(what)))
}

/// Refuses a string or a list that is larger than one may be.
pub(super) fn limit(size: u128) -> Result<(), Error> {
    let most = BUDGET.with_borrow(|b| b.as_ref().map_or(u64::MAX, |b| b.bounds.size));
    match size > u128::from(most) {
        true => Err(beyond(format!(
            "makes a value of {size} bytes or items, the limit for this conversation is {most}"
        ))),
        false => Ok(()),
    }
}

/// A value's own size: bytes of a string, items of a list.
pub(super) fn shallow(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => value.len().unwrap_or(1) as u64,
    }
}

/// Units of a value's own size, without what is in it.
pub(super) fn own_units(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => ITEM.saturating_mul(value.len().unwrap_or(1) as u64),
    }
}

/// What a value holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// Bytes of all strings.
    pub bytes: u64,
    /// Values, those inside others included.
    pub items: u64,
    /// Values inside each other, most.
    pub depth: u64,
}

impl Size {
    /// Units of work to look through it.
    pub fn units(&self) -> u64 {
        self.bytes.saturating_add(ITEM.saturating_mul(self.items))
    }

    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.items += other.items;
        self.depth = self.depth.max(other.depth);
    }
}

/// Looks through a value, charges that, and refuses one that is too deep.
pub(super) fn measure(value: &Value) -> Result<Size, Error> {
    fn visit(value: &Value, depth: usize, size: &mut Size) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(beyond(format!(
                "puts values inside each other more than {DEPTH_MAX} deep"
            )));
        }
        let text = value.as_str().map_or(0, |text| text.len() as u64);
        charge(ITEM + text)?;
        size.add(Size {
            bytes: text,
            items: 1,
            depth: depth as u64,
        });
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    visit(&item, depth + 1, size)?;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()? {
                    visit(&value.get_item(&key)?, depth + 1, size)?;
                    visit(&key, depth + 1, size)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
    let mut size = Size::default();
    visit(value, 0, &mut size)?;
    Ok(size)
}

/// Charges what a construct has made. What it would make when it is walked it makes now, as a list of its
/// own: views of views of a list would be walked by a recursion as deep as they are many.
pub(super) fn made(value: Value) -> Result<Value, Error> {
    limit(u128::from(shallow(&value)))?;
    charge(own_units(&value))?;
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge(ITEM)?;
        limit(items.len() as u128)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

/// Charges a value that holds others, with all that is in it.
fn built(value: Value) -> Result<Value, Error> {
    limit(u128::from(shallow(&value)))?;
    measure(&value)?;
    Ok(value)
}

/// Whether a value is, or holds, one that changes after it was put somewhere: a namespace, a loop. A chain
/// of them could be made as deep as a template likes, and dropping it takes a stack as deep.
fn holds_live(value: &Value) -> Result<bool, Error> {
    charge(ITEM)?;
    if let Some(object) = value.as_object()
        && ["::Namespace", "::Loop"]
            .iter()
            .any(|live| object.type_name().ends_with(live))
    {
        return Ok(true);
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                if holds_live(&item)? {
                    return Ok(true);
                }
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                if holds_live(&value.get_item(&key)?)? {
                    return Ok(true);
                }
            }
        }
        _ => {}
    }
    Ok(false)
}

/// Charges a value that is to be kept in a namespace.
pub(super) fn kept(value: Value) -> Result<Value, Error> {
    measure(&value)?;
    match holds_live(&value)? {
        true => Err(beyond(
            "puts a namespace or a loop into a namespace, which is not supported".to_owned(),
        )),
        false => Ok(value),
    }
}

/// `container[key]`. Strings and lists that are not there yet are walked up to the place, and a key is read
/// as a whole.
fn index(container: Value, key: Value) -> Result<Value, Error> {
    within_construct(("operator", "[]"), || {
        look_at(&container, &key)?;
        container.get_item(&key)
    })
}

/// Charges looking at one item of a value.
pub(super) fn look_at(container: &Value, key: &Value) -> Result<(), Error> {
    if key.is_number() {
        let walked = match container.kind() {
            ValueKind::String => container.as_str().map_or(0, |s| s.len() as u64),
            ValueKind::Iterable => own_units(container),
            _ => 0,
        };
        return charge(walked + 1);
    }
    measure(key).map(drop)
}

/// `a[b:c:d]`, before it is done; `a`, `b`, `c` and `d` in the order in which they are unpacked.
/// minijinja 3.0.5 panics over what is empty and is read backwards (`messages[::-1]`).
fn slice(a: Value, b: Value, c: Value, d: Value) -> Result<Vec<Value>, Error> {
    within_construct(("a slice", ""), || charge(2 * own_units(&a)))?;
    let backwards = d.as_i64().is_some_and(|step| step < 0);
    let d = match a.len() == Some(0) && backwards {
        true => Value::from(1),
        false => d,
    };
    Ok(vec![d, c, b, a])
}

/// `a * b`, before it is done.
fn times(a: Value, b: Value) -> Result<Vec<Value>, Error> {
    within_construct(("operator", "*"), || {
        let times = |n: &Value, of: &Value| {
            let n = n.as_i64().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            limit(u128::from(n) * u128::from(shallow(of)))
        };
        match (a.is_number(), b.is_number()) {
            (true, false) => times(&a, &b)?,
            (false, true) => times(&b, &a)?,
            _ => {}
        }
        Ok(vec![b, a])
    })
}

/// `a ~ b`, with what is no text written as Python does.
fn concat(a: Value, b: Value) -> Result<Value, Error> {
    within_construct(("operator", "~"), || {
        let mut text = printed(&a)?;
        let more = printed(&b)?;
        limit(text.len() as u128 + more.len() as u128)?;
        text.push_str(&more);
        made(Value::from(text))
    })
}

/// A value as Python's `str` writes it, looked through before that.
pub(super) fn printed(value: &Value) -> Result<String, Error> {
    if value.as_str().is_none() {
        let size = measure(value)?;
        // A character may be written as an escape of four.
        charge(4 * size.units())?;
    }
    Ok(python::print(value))
}

/// Names of the guards; no template can write them.
pub(super) const MADE: &str = "\u{fdd0}made";
pub(super) const BUILT: &str = "\u{fdd0}built";
/// All of a string that is walked through: its characters are counted first.
pub(super) const WALK: &str = "\u{fdd0}walk";
pub(super) const LOOK: &str = "\u{fdd0}look";
pub(super) const FIND: &str = "\u{fdd0}find";
pub(super) const KEPT: &str = "\u{fdd0}kept";
pub(super) const TICK: &str = "\u{fdd0}tick";
pub(super) const TIMES: &str = "\u{fdd0}times";
pub(super) const CONCAT: &str = "\u{fdd0}concat";
pub(super) const INDEX: &str = "\u{fdd0}index";
pub(super) const SLICE: &str = "\u{fdd0}slice";

/// Gives an environment the guards of operators that a rewritten program calls.
pub(super) fn add_operators(engine: &mut Environment<'static>) {
    engine.set_recursion_limit(RECURSION_MAX);
    engine.add_filter(MADE, made);
    engine.add_filter(BUILT, built);
    engine.add_filter(WALK, |value: Value| {
        let text = value.as_str().map_or(0, str::len);
        within_construct(("{% for %}", ""), || charge(text as u64))?;
        Ok::<_, Error>(value)
    });
    engine.add_filter(LOOK, |value: Value| {
        within_construct(("a comparison", ""), || measure(&value))?;
        Ok::<_, Error>(value)
    });
    engine.add_filter(FIND, |value: Value| {
        within_construct(("operator", "in"), || {
            // Values of two kinds are compared by the errors that making them one kind gives.
            let items = measure(&value)?.items;
            charge(3 * ITEM * items)
        })?;
        Ok::<_, Error>(value)
    });
    engine.add_filter(KEPT, |value: Value| {
        within_construct(("{% set %}", ""), || kept(value))
    });
    engine.add_filter(TICK, |state: &mut State, value: Value| {
        let fuel = state.fuel_levels().map_or(0, |(consumed, _)| consumed);
        BUDGET.with_borrow_mut(|b| b.as_mut().map(|b| b.spent.fuel = fuel));
        charge(1)?;
        Ok::<_, Error>(value)
    });
    engine.add_filter(TIMES, times);
    engine.add_filter(CONCAT, concat);
    engine.add_filter(INDEX, index);
    engine.add_filter(SLICE, slice);
}
