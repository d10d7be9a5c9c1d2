//! Every filter, test, function and method that a chat template may use, with what it costs.
//!
//! The environment is built from these tables and from nothing else: what has no cost is not there. Each
//! is wrapped, so that `map("upper")` and `select("in", list)` charge every item as a template's own loop
//! would. A cost is charged before the work is done, from what the arguments hold; what comes out is
//! charged after.
//!
//! One file because it is a list: each entry's cost stands beside how it is paid.

use std::sync::Arc;

use minijinja::value::{Kwargs, Object, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions, tests};

use super::guards::{
    ITEM, Size, beyond, charge, error, kept, limit, look_at, made, measure, own_units, shallow,
    within_construct,
};
use super::{dates, python};

/// Widths, counts and precisions that a template may ask for.
const WIDTH_MAX: u64 = 10_000;
/// Units of work of a call itself.
const CALL: u64 = 16;

/// What a call takes. The first argument is what it is applied to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cost {
    /// No more for a large value than for a small one.
    Glance,
    /// All of a string, whose characters are counted; nothing of a list.
    Length,
    /// The items of its arguments, not what is in them; all of a string.
    Items,
    /// One item of the first by the key in the second.
    At,
    /// All that is in its arguments, so many times.
    Through(u64),
    /// Characters of the second taken from the ends of the first: each of these is compared with each of
    /// those.
    Strip,
    /// The second in the first, and the third in its place.
    Replace,
    /// The pieces of the first between the second; of white space if there is none.
    Split,
    /// The lines of the first.
    Lines,
    /// Each place of the second in the first.
    Count,
    /// The first between the items of the second (a method), or the other way around (a filter).
    Join,
    /// A width before each line.
    Indent,
    /// JSON, a width before each item.
    Json,
    /// Debug output: a width before each line, passed on from level to level.
    Pretty,
    /// Digits behind a number's point.
    Round,
    /// Lists of a length.
    Batch,
    /// Values with widths in a text.
    Format,
    /// Items compared with each other, in an order.
    Sort,
    /// Items added up one by one.
    Sum,
    /// All other arguments once for each item of the first.
    Each,
}

type Entry = (&'static str, Value, Cost);

fn filter_table() -> Vec<Entry> {
    use Cost as C;
    let f = |name, call, cost| (name, call, cost);
    macro_rules! call {
        ($function:expr) => {
            Value::from_function($function)
        };
    }
    vec![
        f("abs", call!(filters::abs), C::Glance),
        f("attr", call!(filters::attr), C::At),
        f("batch", call!(filters::batch), C::Batch),
        f("bool", call!(filters::bool), C::Glance),
        f("capitalize", call!(filters::capitalize), C::Through(2)),
        f("chain", call!(chain), C::Items),
        f("count", call!(filters::length), C::Length),
        f("d", call!(filters::default), C::Glance),
        f("default", call!(filters::default), C::Glance),
        f("dictsort", call!(filters::dictsort), C::Sort),
        f("e", call!(filters::escape), C::Through(6)),
        f("escape", call!(filters::escape), C::Through(6)),
        f("first", call!(filters::first), C::Glance),
        f("float", call!(filters::float), C::Through(4)),
        f("format", call!(filters::format), C::Format),
        f("groupby", call!(filters::groupby), C::Sort),
        f("indent", call!(filters::indent), C::Indent),
        f("int", call!(filters::int), C::Through(4)),
        f("items", call!(filters::items), C::Items),
        f("join", call!(filters::join), C::Join),
        f("last", call!(filters::last), C::Items),
        f("length", call!(filters::length), C::Length),
        f("lines", call!(filters::lines), C::Lines),
        f("list", call!(filters::list), C::Items),
        f("lower", call!(filters::lower), C::Through(2)),
        f("map", call!(filters::map), C::Each),
        f("max", call!(filters::max), C::Sort),
        f("min", call!(filters::min), C::Sort),
        f("pprint", call!(filters::pprint), C::Pretty),
        f("reject", call!(filters::reject), C::Each),
        f("rejectattr", call!(filters::rejectattr), C::Each),
        f("replace", call!(filters::replace), C::Replace),
        f("reverse", call!(filters::reverse), C::Items),
        f("round", call!(filters::round), C::Round),
        f("safe", call!(filters::safe), C::Through(4)),
        f("select", call!(filters::select), C::Each),
        f("selectattr", call!(filters::selectattr), C::Each),
        f("slice", call!(filters::slice), C::Batch),
        f("sort", call!(filters::sort), C::Sort),
        f("split", call!(filters::split), C::Split),
        f("string", call!(|v: Value| python::print(&v)), C::Through(4)),
        f("sum", call!(filters::sum), C::Sum),
        f("title", call!(filters::title), C::Through(4)),
        f("tojson", call!(python::tojson), C::Json),
        f("trim", call!(filters::trim), C::Strip),
        f("unique", call!(filters::unique), C::Sort),
        f("upper", call!(filters::upper), C::Through(2)),
        f("zip", call!(filters::zip), C::Items),
    ]
}

fn test_table() -> Vec<Entry> {
    use Cost as C;
    let mut all = Vec::new();
    macro_rules! add {
        ($cost:expr, $function:expr, $($name:literal),+) => {
            $(all.push(($name, Value::from_function($function), $cost));)+
        };
    }
    add!(C::Glance, tests::is_boolean, "boolean");
    add!(C::Glance, tests::is_defined, "defined");
    add!(C::Glance, tests::is_divisibleby, "divisibleby");
    add!(C::Through(1), tests::is_endingwith, "endingwith");
    add!(C::Through(1), tests::is_eq, "eq", "equalto", "==");
    add!(C::Glance, tests::is_even, "even");
    add!(C::Glance, tests::is_false, "false");
    add!(C::Through(1), tests::is_filter, "filter");
    add!(C::Glance, tests::is_float, "float");
    add!(C::Through(1), tests::is_ge, "ge", ">=");
    add!(C::Through(1), tests::is_gt, "gt", "greaterthan", ">");
    add!(C::Through(4), tests::is_in, "in");
    add!(C::Glance, tests::is_integer, "integer", "int");
    add!(C::Items, python::is_iterable, "iterable");
    add!(C::Through(1), tests::is_le, "le", "<=");
    add!(C::Through(2), tests::is_lower, "lower");
    add!(C::Through(1), tests::is_lt, "lt", "lessthan", "<");
    add!(C::Glance, tests::is_mapping, "mapping");
    add!(C::Through(1), tests::is_ne, "ne", "!=");
    add!(C::Glance, tests::is_none, "none");
    add!(C::Glance, tests::is_number, "number");
    add!(C::Glance, tests::is_odd, "odd");
    add!(C::Glance, tests::is_safe, "safe", "escaped");
    add!(C::Through(1), tests::is_sameas, "sameas");
    add!(C::Glance, python::is_sequence, "sequence");
    add!(C::Through(1), tests::is_startingwith, "startingwith");
    add!(C::Glance, tests::is_string, "string");
    add!(C::Through(1), tests::is_test, "test");
    add!(C::Glance, tests::is_true, "true");
    add!(C::Glance, tests::is_undefined, "undefined");
    add!(C::Through(2), tests::is_upper, "upper");
    all
}

fn function_table(now_unix_s: i64) -> Vec<Entry> {
    let strftime = move |format: String| dates::strftime(now_unix_s, &format);
    let raise = |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    };
    vec![
        (
            "dict",
            Value::from_function(functions::dict),
            Cost::Through(2),
        ),
        (
            "namespace",
            Value::from_function(functions::namespace),
            Cost::Through(2),
        ),
        (
            "raise_exception",
            Value::from_function(raise),
            Cost::Through(1),
        ),
        (
            "range",
            Value::from_function(functions::range),
            Cost::Glance,
        ),
        // A directive of two characters gives at most 24.
        (
            "strftime_now",
            Value::from_function(strftime),
            Cost::Through(24),
        ),
    ]
}

/// Methods of strings, lists, mappings and loops. Whatever else minijinja's callback knows is unknown here.
const METHODS: [(&str, Cost); 31] = [
    ("capitalize", Cost::Through(2)),
    ("changed", Cost::Through(2)),
    ("count", Cost::Count),
    ("cycle", Cost::Items),
    ("endswith", Cost::Through(1)),
    ("find", Cost::Through(1)),
    ("format", Cost::Format),
    ("get", Cost::At),
    ("isalnum", Cost::Through(2)),
    ("isalpha", Cost::Through(2)),
    ("isascii", Cost::Through(1)),
    ("isdigit", Cost::Through(2)),
    ("islower", Cost::Through(2)),
    ("isnumeric", Cost::Through(2)),
    ("isspace", Cost::Through(2)),
    ("isupper", Cost::Through(2)),
    ("items", Cost::Items),
    ("join", Cost::Join),
    ("keys", Cost::Items),
    ("lower", Cost::Through(2)),
    ("lstrip", Cost::Strip),
    ("replace", Cost::Replace),
    ("rfind", Cost::Through(1)),
    ("rstrip", Cost::Strip),
    ("split", Cost::Split),
    ("splitlines", Cost::Lines),
    ("startswith", Cost::Through(1)),
    ("strip", Cost::Strip),
    ("title", Cost::Through(4)),
    ("upper", Cost::Through(2)),
    ("values", Cost::Items),
];

/// Calls a method within the bounds; no template can write its name.
pub(super) const METHOD: &str = "\u{fdd0}method";

/// Fills an environment with all that has a cost; `now_unix_s` is what `strftime_now` shows.
pub(super) fn add_all(engine: &mut Environment<'static>, now_unix_s: i64) {
    for (name, call, cost) in filter_table() {
        engine.add_filter(name, wrapped(("filter", name), call, cost));
    }
    for (name, call, cost) in test_table() {
        engine.add_test(name, wrapped(("test", name), call, cost));
    }
    for (name, call, cost) in function_table(now_unix_s) {
        engine.add_function(name, wrapped(("function", name), call, cost));
    }
    engine.add_global(METHOD, Value::from_object(Method));
    engine.set_unknown_method_callback(|state, value, method, args| match value.as_str() {
        _ if known(method).is_none() => Err(Error::from(ErrorKind::UnknownMethod)),
        Some(text) if method == "title" && args.is_empty() => Ok(python::title(text).into()),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    });
}

fn known(method: &str) -> Option<(&'static str, Cost)> {
    METHODS.iter().find(|(name, _)| *name == method).copied()
}

fn wrapped(
    construct: (&'static str, &'static str),
    call: Value,
    cost: Cost,
) -> impl Fn(&mut State<'_, '_>, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static
{
    move |state, args| {
        let args = args.into_values();
        within_construct(construct, || {
            pay(cost, &args)?;
            if construct == ("function", "namespace") {
                args.iter()
                    .try_for_each(|arg| kept(arg.clone()).map(drop))?;
            }
            let value = call.call(state, &args)?;
            // A range is not there until it is walked.
            match construct.0 {
                "function" => Ok(value),
                _ => made(value),
            }
        })
    }
}

/// An object, because only an object's arguments may be named ones.
#[derive(Debug)]
struct Method;

impl Object for Method {
    fn call(self: &Arc<Self>, state: &mut State, args: &[Value]) -> Result<Value, Error> {
        let no_name = || error("no name".to_owned());
        let (name, args) = args.split_last().ok_or_else(no_name)?;
        let (this, rest) = args.split_first().ok_or_else(no_name)?;
        let name = name.as_str().ok_or_else(no_name)?;
        let (known, cost) = known(name).unwrap_or(("", Cost::Through(1)));
        within_construct(("method", known), || {
            // What is kept in an object and called is a macro, which charges for itself.
            match known.is_empty() {
                true => rest.iter().try_for_each(|arg| measure(arg).map(drop))?,
                false => pay(cost, args)?,
            }
            made(this.call_method(state, name, rest)?)
        })
    }
}

/// Maps are made one, later keys first in force; other things are put behind each other.
fn chain(state: &State, value: Value, others: Rest<Value>) -> Result<Value, Error> {
    let all: Vec<Value> = std::iter::once(value)
        .chain(others.iter().cloned())
        .collect();
    let maps = all.iter().all(|v| v.kind() == ValueKind::Map);
    let chained = filters::chain(state, all[0].clone(), others)?;
    let items = chained.try_iter()?;
    match maps {
        true => {
            let pair = |key: Value| Ok((key.clone(), chained.get_item(&key)?));
            let pairs = items.map(pair).collect::<Result<Vec<_>, Error>>();
            Ok(Value::from_pairs(pairs?))
        }
        false => Ok(Value::from(items.collect::<Vec<_>>())),
    }
}

/// Positional arguments, and the named ones.
fn parted(args: &[Value]) -> (&[Value], Vec<(String, Value)>) {
    let Ok((positional, named)) = from_args::<(&[Value], Kwargs)>(args) else {
        return (args, Vec::new());
    };
    let values = named.args().filter_map(|key| {
        let value: Value = named.peek(key).ok()?;
        Some((key.to_owned(), value))
    });
    (positional, values.collect())
}

/// The largest whole number among the arguments behind the first, as given; refused above `WIDTH_MAX`.
fn width(args: &[Value]) -> Result<u64, Error> {
    let (positional, named) = parted(args);
    let values = positional
        .iter()
        .skip(1)
        .chain(named.iter().map(|(_, v)| v));
    let numbers = values.filter_map(Value::as_i64).map(i64::unsigned_abs);
    match numbers.max().unwrap_or(0) {
        most if most > WIDTH_MAX => Err(beyond(format!(
            "has a width of {most}, at most {WIDTH_MAX} is allowed"
        ))),
        most => Ok(most),
    }
}

/// Charges a call, and refuses one that would make something huge. Long because each cost is its own few lines, which
/// nothing else asks for.
fn pay(cost: Cost, args: &[Value]) -> Result<(), Error> {
    charge(CALL * (1 + args.len() as u64))?;
    let Some(first) = args.first() else {
        return Ok(());
    };
    let all = || -> Result<Size, Error> {
        let mut size = Size::default();
        for arg in args {
            size.add(measure(arg)?);
        }
        Ok(size)
    };
    let text = |i: usize| args.get(i).and_then(Value::as_str).unwrap_or_default();
    let len = |i: usize| text(i).len() as u64;
    match cost {
        Cost::Glance => Ok(()),
        Cost::Length => charge(len(0)),
        Cost::Items => args.iter().try_for_each(|arg| match arg.as_str() {
            Some(text) => charge(2 * ITEM * text.len() as u64),
            None => charge(own_units(arg)),
        }),
        Cost::At => args.get(1).map_or(Ok(()), |key| look_at(first, key)),
        Cost::Through(times) => charge((times - 1) * all()?.units()),
        Cost::Strip => {
            let size = all()?;
            charge((2 + len(1)).saturating_mul(size.units()))
        }
        Cost::Replace => {
            charge(2 * all()?.units())?;
            let n = places(text(0), text(1));
            charge(ITEM * n)?;
            limit(u128::from(len(0)) + u128::from(n) * u128::from(len(2)))
        }
        Cost::Split => {
            charge(all()?.units())?;
            let n = match args.get(1).and_then(Value::as_str) {
                Some(between) => places(text(0), between),
                None => len(0) / 2,
            };
            limit(u128::from(n))?;
            charge(4 * ITEM * (n + 1))
        }
        Cost::Lines => {
            charge(all()?.units())?;
            charge(4 * ITEM * (places(text(0), "\n") + 1))
        }
        Cost::Count => {
            let size = all()?;
            charge(2 * size.units())?;
            charge(2 * ITEM * (len(0) / len(1).max(1)))
        }
        Cost::Join => {
            // As a filter the list comes first, as a method the separator does.
            let (list, between) = match first.as_str().is_some() && args.len() > 1 {
                true => (args.get(1), first.clone()),
                false => (Some(first), separator(args)),
            };
            let n = u128::from(list.map(shallow).unwrap_or_default());
            let between = u128::from(shallow(&between)) * n;
            charge(4 * all()?.units())?;
            limit(between)?;
            charge(u64::try_from(between).unwrap_or(u64::MAX))
        }
        Cost::Indent => {
            charge(2 * all()?.units())?;
            let lines = places(text(0), "\n") + 1;
            let more = lines * width(args)?;
            limit(u128::from(len(0)) + u128::from(more))?;
            charge(more)
        }
        Cost::Json => {
            let size = all()?;
            let (_, named) = parted(args);
            let between: u64 = match named.iter().find(|(key, _)| key == "separators") {
                Some((_, pair)) => measure(pair)?.bytes,
                None => 4,
            };
            let each = width(args)? * (size.depth + 1) + between;
            limit(u128::from(size.bytes) + u128::from(size.items) * u128::from(each))?;
            charge(size.items.saturating_mul(each) + 8 * size.units())
        }
        Cost::Pretty => {
            let size = all()?;
            charge(8 * (size.depth + 1) * size.units())
        }
        // The digits of a fraction are counted out, up to 1100 of them.
        Cost::Round => {
            width(args)?;
            charge(20_000)
        }
        Cost::Batch => {
            args.iter().try_for_each(|arg| charge(2 * own_units(arg)))?;
            charge(4 * ITEM * width(args)?)
        }
        Cost::Format => format(text(0), args),
        Cost::Sort => sort(first, args),
        Cost::Sum => {
            let mut total = all()?.units();
            // Numbers alone are added in no time; texts and lists are copied for each that is added.
            let number = |v: &Value| v.is_number();
            if first
                .try_iter()
                .is_ok_and(|mut items| items.all(|v| number(&v)))
                && args.len() == 1
            {
                total = ITEM;
            }
            charge(total.saturating_mul(shallow(first) + 1))
        }
        Cost::Each => {
            charge(own_units(first))?;
            let n = first.as_str().map_or(shallow(first), |s| s.len() as u64);
            let mut each = 4 * ITEM;
            for arg in &args[1..] {
                each += ITEM
                    + match arg.kind() {
                        ValueKind::String | ValueKind::Map => measure(arg)?.bytes,
                        _ => 0,
                    };
            }
            charge(n.saturating_mul(each))
        }
    }
}

/// The separator of a join, given by place or by name.
fn separator(args: &[Value]) -> Value {
    let (positional, named) = parted(args);
    let by_name = || {
        named
            .iter()
            .find(|(key, _)| key == "d")
            .map(|(_, v)| v.clone())
    };
    let given = positional.get(1).cloned();
    given.or_else(by_name).unwrap_or_default()
}

/// How often `what` stands in `text`; what is empty stands before and behind each character.
fn places(text: &str, what: &str) -> u64 {
    match what {
        "" => text.len() as u64 + 1,
        what => text.matches(what).count() as u64,
    }
}

/// Sorting compares each item with about as many others as their number has digits, by a lowered copy of
/// each text; the largest item may be one of each pair.
fn sort(list: &Value, args: &[Value]) -> Result<(), Error> {
    let (mut n, mut largest) = (0u64, 0);
    if let Ok(items) = list.try_iter() {
        for item in items {
            let mut size = measure(&item)?.units();
            if list.kind() == ValueKind::Map {
                size += measure(&list.get_item(&item)?)?.units();
            }
            largest = largest.max(size);
            n += 1;
        }
    }
    for arg in &args[1..] {
        largest = largest.saturating_add(measure(arg)?.units());
    }
    let comparisons = n * u64::from(u64::BITS - n.leading_zeros() + 1);
    charge(comparisons.saturating_mul(2 * largest))
}

/// Widths and precisions of a format: as digits, or `*` and the argument. Each of its places may write
/// any argument, in any width.
fn format(format: &str, args: &[Value]) -> Result<(), Error> {
    let mut most = 0;
    for (at, digits) in numbers_in(format) {
        if !is_width(&format[..at]) {
            continue;
        }
        let digits = digits.trim_start_matches('0');
        most = most.max(match digits.len() {
            0 => 0,
            1..=4 => digits.parse().unwrap_or(0),
            _ => WIDTH_MAX + 1,
        });
    }
    let asks = format.contains('*')
        || format.contains(":{")
        || format.matches('{').count() > format.matches('}').count();
    let mut largest = 0;
    for arg in &args[1.min(args.len())..] {
        let size = measure(arg)?;
        largest = largest.max(size.bytes + ITEM * size.items);
        if let (true, Some(n)) = (asks, arg.as_i64()) {
            most = most.max(n.unsigned_abs());
        }
    }
    if most > WIDTH_MAX {
        return Err(beyond(format!(
            "has a width above {WIDTH_MAX}, which is not allowed"
        )));
    }
    let n = places(format, "%") + places(format, "{");
    let each = u128::from(n) * u128::from(most + largest);
    limit(each + format.len() as u128)?;
    charge(format.len() as u64 + n * (4 * ITEM + 16 * most + largest))
}

/// The runs of digits in a text, with where they begin.
fn numbers_in(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let runs = text.split(|c: char| !c.is_ascii_digit());
    let places = runs.map(|digits| (digits.as_ptr() as usize - text.as_ptr() as usize, digits));
    places.filter(|(_, digits)| !digits.is_empty())
}

/// Whether digits behind `before` may be a width or a precision, and not a number that the text tells: in braces, or
/// behind a percent sign, the name of an argument and flags.
fn is_width(before: &str) -> bool {
    let braces = before
        .rfind('{')
        .is_some_and(|open| !before[open..].contains('}'));
    let flags = |c: char| "-+ #.*".contains(c) || c.is_ascii_digit();
    let percent = before.trim_end_matches(flags);
    braces || percent.ends_with('%') || percent.ends_with(')') && percent.contains("%(")
}

#[cfg(test)]
#[path = "costs_tests.rs"]
mod tests_of_costs;
