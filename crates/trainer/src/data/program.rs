//! A chat template as a program that runs within bounds.
//!
//! A template is a stranger's. Sixty characters of Jinja are enough to loop for years, to double a
//! string until memory is gone, or to nest a list until the stack is. minijinja counts instructions
//! (fuel) and limits recursion; what one instruction makes of large values it does not limit. So its
//! compiled form is rewritten before it runs: wherever a value is made, compared, printed or handed to
//! a filter, a test or a method, an instruction is put in that charges its size to a budget. The
//! bounds grow with the conversation and lie far above what real templates use (docs/numerics.md).

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, machinery};

use super::trial::foreign;

/// Most bytes of a template's source. Real ones have up to 30 KiB.
const SOURCE_MAX: usize = 512 << 10;
/// Most words in one tag. Real ones have up to 200.
const WORDS_MAX: usize = 4000;
/// Most tags. Real ones have up to 500.
const TAGS_MAX: usize = 20_000;
/// Most that constants in one tag may multiply to, in bytes or items.
const CONSTANT_MAX: u128 = 1 << 20;
/// Values inside values, at most.
const DEPTH_MAX: usize = 100;
/// Macros and blocks inside each other, at most.
pub(super) const RECURSION_MAX: usize = 150;
/// Widths, counts and precisions that a template may ask for.
const WIDTH_MAX: u64 = 10_000;

/// What one rendering may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Instructions.
    pub fuel: u64,
    /// Bytes of one string, or items of one list.
    pub size: u64,
    /// Bytes that are printed in all, into variables too.
    pub prints: u64,
    /// Bytes that are made, printed or looked through in all; an item counts 16.
    pub work: u64,
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
            work: ((64 << 20) + (2048 + 16 * m) * (b + 16 * v)).min(16 << 30),
            time: Duration::from_secs(30) + Duration::from_micros(10 * (b + v)),
        }
    }
}

#[derive(Clone, Copy)]
struct Budget {
    bounds: Bounds,
    left: u64,
    /// Bytes that may still be printed.
    prints: u64,
    until: Instant,
}

thread_local! {
    static BUDGET: Cell<Option<Budget>> = const { Cell::new(None) };
}

fn error(text: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

/// Takes bytes from the budget of the rendering that this thread does.
pub(super) fn charge(bytes: u64) -> Result<(), Error> {
    let Some(mut budget) = BUDGET.get() else {
        return Ok(());
    };
    let Some(left) = budget.left.checked_sub(bytes) else {
        let most = budget.bounds.work >> 20;
        return Err(error(format!(
            "it makes and looks through more than {most} MiB, the limit for this conversation"
        )));
    };
    if Instant::now() > budget.until {
        let most = budget.bounds.time.as_secs();
        return Err(error(format!(
            "it takes longer than {most} s, the limit for this conversation"
        )));
    }
    budget.left = left;
    BUDGET.set(Some(budget));
    Ok(())
}

/// Takes bytes that are printed. A conversation is rendered some dozen times to find its turns, and each text
/// is looked through, so what one rendering prints is bounded closer than what it makes.
pub(super) fn print(bytes: u64) -> Result<(), Error> {
    charge(bytes)?;
    let Some(mut budget) = BUDGET.get() else {
        return Ok(());
    };
    let Some(prints) = budget.prints.checked_sub(bytes) else {
        let most = budget.bounds.prints >> 10;
        return Err(error(format!(
            "it prints more than {most} KiB, the limit for this conversation"
        )));
    };
    budget.prints = prints;
    BUDGET.set(Some(budget));
    Ok(())
}

/// Refuses a string or a list that is larger than one may be.
fn limit(size: u128) -> Result<(), Error> {
    let most = BUDGET.get().map_or(u64::MAX, |b| b.bounds.size);
    match size > u128::from(most) {
        true => Err(error(format!(
            "it makes a value of {size} bytes or items, the limit for this conversation is {most}"
        ))),
        false => Ok(()),
    }
}

/// A value's own size: bytes of a string, items of a list.
fn shallow(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => value.len().unwrap_or(1) as u64,
    }
}

/// Charges a value's own size, not that of what is in it.
fn look(value: &Value) -> Result<(), Error> {
    let each = if value.as_str().is_some() { 1 } else { 16 };
    charge(each * shallow(value))
}

/// Charges a value with all that is in it, and refuses one that is too deep.
pub(super) fn look_through(value: &Value) -> Result<(), Error> {
    fn visit(value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(error(format!(
                "it puts values inside each other more than {DEPTH_MAX} deep"
            )));
        }
        look(value)?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    charge(16)?;
                    visit(&item, depth + 1)?;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()? {
                    charge(16)?;
                    visit(&value.get_item(&key)?, depth + 1)?;
                    visit(&key, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
    visit(value, 0)
}

/// Charges what an instruction has made.
fn made(value: Value) -> Result<Value, Error> {
    limit(u128::from(shallow(&value)))?;
    look(&value)?;
    Ok(value)
}

/// The same of a slice or of what a filter gives, as a list of its own: views of views of a list would
/// be walked by a recursion as deep as they are many.
fn flat(value: Value) -> Result<Value, Error> {
    let value = made(value)?;
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge(16)?;
        limit(items.len() as u128)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

/// `a[b:c:d]`. minijinja 3.0.5 panics over what is empty and is read backwards (`messages[::-1]`).
fn slice(state: &mut State, a: Value, b: Value, c: Value, d: Value) -> Result<Value, Error> {
    if a.len() == Some(0) && d.as_i64().is_some_and(|step| step < 0) {
        return Ok(match a.kind() {
            ValueKind::String => Value::from(""),
            _ => Value::from(Vec::<Value>::new()),
        });
    }
    let slice = state.env().compile_expression("a[b:c:d]")?;
    slice.eval(minijinja::context! { a, b, c, d })
}

/// The same of one that holds others.
fn built(value: Value) -> Result<Value, Error> {
    limit(u128::from(shallow(&value)))?;
    look_through(&value)?;
    Ok(value)
}

/// Filters that take a list's length or one of its items.
const AT_A_GLANCE: [&str; 8] = [
    "length", "count", "first", "last", "default", "d", "attr", "safe",
];
/// Filters that hand a list's items on as they are.
const ITEMS: [&str; 10] = [
    "items",
    "list",
    "reverse",
    "batch",
    "slice",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "map",
];

/// Names of the guards; no template can write them.
const MADE: &str = "\u{fdd0}made";
const FLAT: &str = "\u{fdd0}flat";
const BUILT: &str = "\u{fdd0}built";
const LOOK: &str = "\u{fdd0}look";
const TICK: &str = "\u{fdd0}tick";
const FILTER: &str = "\u{fdd0}filter";
const TEST: &str = "\u{fdd0}test";
const METHOD: &str = "\u{fdd0}method";
const TIMES: &str = "\u{fdd0}times";
const SLICE: &str = "\u{fdd0}slice";

/// Gives an environment the guards that a rewritten program calls.
pub(super) fn add_guards(engine: &mut Environment<'static>) {
    engine.set_recursion_limit(RECURSION_MAX);
    // It prints everything that a template can see.
    engine.remove_global("debug");
    engine.add_filter(MADE, made);
    engine.add_filter(FLAT, flat);
    engine.add_filter(BUILT, built);
    engine.add_filter(LOOK, |value: Value| look_through(&value).map(|()| value));
    engine.add_filter(TICK, |value: Value| charge(1).map(|()| value));
    for (name, what) in [
        (FILTER, What::Filter),
        (TEST, What::Test),
        (METHOD, What::Method),
    ] {
        engine.add_global(name, Value::from_object(Guard(what)));
    }
    engine.add_filter(SLICE, slice);
    engine.add_filter(TIMES, |state: &mut State, a: Value, b: Value| {
        let times = |n: &Value, of: &Value| {
            let n = n.as_i64().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            limit(u128::from(n) * u128::from(shallow(of)))
        };
        match (a.is_number(), b.is_number()) {
            (true, false) => times(&a, &b)?,
            (false, true) => times(&b, &a)?,
            _ => {}
        }
        let product = state.env().compile_expression("a * b")?;
        made(product.eval(minijinja::context! { a, b })?)
    });
}

/// What is called by a name that stands behind the arguments.
#[derive(Clone, Copy, Debug)]
enum What {
    Filter,
    Test,
    Method,
}

/// Calls a filter, a test or a method within the bounds. An object, because only an object's arguments
/// may be named ones.
#[derive(Debug)]
struct Guard(What);

impl Object for Guard {
    fn call(self: &Arc<Self>, state: &mut State, args: &[Value]) -> Result<Value, Error> {
        let no_name = || error("no name".to_owned());
        let (name, args) = args.split_last().ok_or_else(no_name)?;
        let (this, rest) = args.split_first().ok_or_else(no_name)?;
        let name = name.to_string();
        check_arguments(self.0, &name, args)?;
        match self.0 {
            What::Filter => flat(state.apply_filter(&name, args)?),
            What::Test => Ok(Value::from(state.perform_test(&name, args)?)),
            What::Method => flat(this.call_method(state, &name, rest)?),
        }
    }
}

/// Charges the arguments of a call, and refuses those of which it would make something huge.
fn check_arguments(what: What, name: &str, args: &[Value]) -> Result<(), Error> {
    for arg in args {
        let text = arg.as_str().is_some();
        match what {
            // Whether something is text, a list or there at all is seen without looking at it.
            What::Test if name != "in" => charge(1)?,
            _ if text => look(arg)?,
            What::Filter if AT_A_GLANCE.contains(&name) => charge(1)?,
            What::Filter if ITEMS.contains(&name) => look(arg)?,
            What::Method if name != "join" => look(arg)?,
            _ => look_through(arg)?,
        }
    }
    let first = args.first();
    let text = |i: usize| args.get(i).and_then(Value::as_str).unwrap_or_default();
    let len = |text: &str| text.len() as u128;
    match name {
        "replace" => {
            let n = match text(1) {
                "" => len(text(0)) + 1,
                from => text(0).matches(from).count() as u128,
            };
            limit(len(text(0)) + n * len(text(2)))?;
        }
        "join" => {
            // As a filter the list comes first, as a method the separator does.
            let (list, between) =
                match first.is_some_and(|f| f.as_str().is_some()) && args.len() > 1 {
                    true => (args.get(1), text(0)),
                    false => (first, text(1)),
                };
            let items = list.map(shallow).unwrap_or_default();
            limit(u128::from(items) * len(between))?;
        }
        "indent" | "tojson" | "batch" | "slice" | "round" | "center" | "wordwrap" => {
            let values = args.iter().skip(1).flat_map(|arg| {
                let named = [
                    "width",
                    "indent",
                    "count",
                    "linecount",
                    "slices",
                    "precision",
                ];
                let inner = named.iter().filter_map(|key| arg.get_attr(key).ok());
                std::iter::once(arg.clone()).chain(inner.collect::<Vec<_>>())
            });
            let mut most = 0;
            for number in values.filter_map(|v| v.as_i64()) {
                most = most.max(number.unsigned_abs());
            }
            if most > WIDTH_MAX {
                return Err(error(format!(
                    "{name} of {most}: at most {WIDTH_MAX} is allowed"
                )));
            }
            let lines = text(0).matches('\n').count() as u128 + 1;
            limit(len(text(0)) + lines * u128::from(most))?;
        }
        "format" => check_widths(text(0), &args[1.min(args.len())..])?,
        _ => {}
    }
    Ok(())
}

/// Widths and precisions of a format: as digits, or `*` and the argument.
fn check_widths(format: &str, args: &[Value]) -> Result<(), Error> {
    let digits = |text: &str| text.trim_start_matches('0').len() > 4;
    let written = format.split(|c: char| !c.is_ascii_digit()).any(digits);
    let dynamic = format.contains('*') || format.matches('{').count() > format.matches('}').count();
    let nested = format.contains(":{") || dynamic;
    let given = args
        .iter()
        .any(|a| a.as_i64().is_some_and(|n| n.unsigned_abs() > WIDTH_MAX));
    match written || (nested && given) {
        true => Err(error(format!(
            "format: widths above {WIDTH_MAX} are not allowed"
        ))),
        false => Ok(()),
    }
}

/// A compiled template with guards in it.
#[derive(Debug)]
pub(super) struct Program {
    source: &'static str,
    main: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl Program {
    /// Compiles a source.
    pub fn new(source: &str, syntax: &SyntaxConfig) -> Result<Self, Error> {
        check_length(source)?;
        check_source(source, syntax)?;
        let source = interned(source);
        let syntax = syntax.clone();
        // Depth is bounded by the words of a tag and the number of tags, and so is this stack.
        let compiled = std::thread::Builder::new()
            .name("template".to_owned())
            .stack_size(512 << 20)
            .spawn(move || foreign(|| Self::compile(source, syntax)));
        let thread = compiled.map_err(|e| error(format!("no thread to compile it: {e}")))?;
        let compiled = thread
            .join()
            .unwrap_or_else(|_| Err("no answer".to_owned()));
        compiled.map_err(|panic| error(format!("it cannot be compiled: {panic}")))?
    }

    fn compile(source: &'static str, syntax: SyntaxConfig) -> Result<Self, Error> {
        let tree = parse(source, "default", syntax)?;
        let mut code = CodeGenerator::new("default", source);
        code.compile_stmt(&tree);
        let (main, blocks) = code.finish();
        let blocks = blocks.into_iter().map(|(k, b)| Ok((k, guarded(&b)?)));
        Ok(Self {
            source,
            main: guarded(&main)?,
            blocks: blocks.collect::<Result<_, Error>>()?,
        })
    }

    /// The text that it was compiled from.
    pub fn source(&self) -> &str {
        self.source
    }

    /// Renders; also says how many instructions and bytes of work that took.
    pub fn render(
        &self,
        engine: &Environment<'static>,
        variables: Value,
        bounds: Bounds,
    ) -> Result<(String, u64, u64), Error> {
        let mut text = String::new();
        let budget = Budget {
            bounds,
            left: bounds.work,
            prints: bounds.prints,
            until: Instant::now() + bounds.time,
        };
        let before = BUDGET.replace(Some(budget));
        // A panic of the engine is the template's fault, not ours, and no reason to lose a run.
        let ended = foreign(|| {
            let mut out = machinery::make_string_output(&mut text);
            let none = AutoEscape::None;
            let done = machinery::eval(engine, &self.main, variables, &self.blocks, &mut out, none);
            done.map(|(_, state)| state.fuel_levels().map_or(0, |f| f.0))
        });
        let left = BUDGET.replace(before).map_or(0, |b| b.left);
        match ended.map_err(|panic| error(format!("it cannot be rendered: {panic}")))? {
            Ok(fuel) => Ok((text, fuel, bounds.work - left)),
            Err(e) if e.kind() == ErrorKind::OutOfFuel => Err(error(format!(
                "it takes more than {} instructions, the limit for this conversation",
                bounds.fuel
            ))),
            Err(e) => Err(e),
        }
    }
}

/// One copy of each source for the life of the process: compiled templates borrow theirs.
fn interned(source: &str) -> &'static str {
    static ALL: OnceLock<Mutex<HashSet<&'static str>>> = OnceLock::new();
    let all = ALL.get_or_init(Mutex::default);
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.get(source) {
        return known;
    }
    let kept: &'static str = Box::leak(source.to_owned().into_boxed_str());
    all.insert(kept);
    kept
}

/// Refuses a source that is too long to look at.
pub(super) fn check_length(source: &str) -> Result<(), Error> {
    match source.len() {
        have if have > SOURCE_MAX => Err(error(format!(
            "it has {have} bytes, at most {SOURCE_MAX} are read"
        ))),
        _ => Ok(()),
    }
}

/// What must be known before the parser sees a source: it recurses, and it computes constants.
fn check_source(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut tags, mut words, mut tag) = (0, 0, Constants::default());
    for token in tokenize(source, false, syntax.clone()) {
        let (token, _) = token?;
        match token {
            Token::VariableStart | Token::BlockStart => {
                (tags, words, tag) = (tags + 1, 0, Constants::default());
            }
            Token::VariableEnd | Token::BlockEnd => tag.check()?,
            other => {
                words += 1;
                tag.see(&other);
            }
        }
        if words > WORDS_MAX {
            return Err(error(format!("a tag has more than {WORDS_MAX} words")));
        }
        if tags > TAGS_MAX {
            return Err(error(format!("it has more than {TAGS_MAX} tags")));
        }
    }
    Ok(())
}

/// What the parser could make of the constants in a tag: it multiplies strings and lists while it reads.
struct Constants {
    product: u128,
    bytes: u128,
    times: bool,
    divides: bool,
    float: bool,
    power: bool,
}

impl Default for Constants {
    fn default() -> Self {
        Self {
            product: 1,
            bytes: 0,
            times: false,
            divides: false,
            float: false,
            power: false,
        }
    }
}

impl Constants {
    fn see(&mut self, token: &Token<'_>) {
        match token {
            // Sums, differences and products are at most the product of each plus one; so are
            // quotients of whole numbers, but not those by a difference of fractions.
            Token::Int(n) => self.product = self.product.saturating_mul(u128::from(*n) + 1),
            Token::Int128(n) => self.product = self.product.saturating_mul(n.saturating_add(1)),
            Token::Str(s) => self.bytes += s.len() as u128,
            Token::String(s) => self.bytes += s.len() as u128,
            Token::Comma | Token::BracketOpen => self.bytes += 16,
            Token::Mul => self.times = true,
            Token::Float(x) => {
                let most = (x.abs() as u128).saturating_add(2);
                self.product = self.product.saturating_mul(most);
                self.float = true;
            }
            Token::Div | Token::FloorDiv => self.divides = true,
            Token::Pow => self.power = true,
            _ => {}
        }
    }

    fn check(&self) -> Result<(), Error> {
        if !self.times || self.bytes == 0 {
            return Ok(());
        }
        let most = match self.power || (self.float && self.divides) {
            true => u128::MAX,
            false => self.product.saturating_mul(self.bytes),
        };
        match most > CONSTANT_MAX {
            true => Err(error(format!(
                "a tag multiplies constants to more than {CONSTANT_MAX} bytes or items"
            ))),
            false => Ok(()),
        }
    }
}

/// The same program with guards.
fn guarded(old: &Instructions<'static>) -> Result<Instructions<'static>, Error> {
    let all: Vec<&Instruction<'static>> = (0..).map_while(|i| old.get(i)).collect();
    let groups: Vec<Vec<Instruction<'static>>> =
        all.iter().map(|i| guard(i)).collect::<Result<_, _>>()?;
    // Where the group of each old instruction begins; jumps may go behind the last.
    let mut starts = vec![0u32];
    for group in &groups {
        starts.push(starts[starts.len() - 1] + group.len() as u32);
    }
    let mut new = Instructions::new(old.name(), old.source());
    for (i, group) in groups.into_iter().enumerate() {
        for mut instruction in group {
            use Instruction::{
                BuildMacro, Iterate, Jump, JumpIfFalse, JumpIfFalseOrPop, JumpIfTrueOrPop,
            };
            if let Iterate(to)
            | Jump(to)
            | JumpIfFalse(to)
            | JumpIfFalseOrPop(to)
            | JumpIfTrueOrPop(to)
            | BuildMacro(_, to, _) = &mut instruction
            {
                *to = starts[*to as usize];
            }
            match (old.get_span(i as u32), old.get_line(i as u32)) {
                (Some(span), _) => new.add_with_span(instruction, span),
                (None, Some(line)) => new.add_with_line(instruction, line as u16),
                (None, None) => new.add(instruction),
            };
        }
    }
    Ok(new)
}

/// What one instruction becomes.
fn guard(instruction: &Instruction<'static>) -> Result<Vec<Instruction<'static>>, Error> {
    use Instruction as I;
    let call = |name: &'static str, n: u16| I::ApplyFilter(name, Some(n), !0);
    let named = |guard: &'static str, name: &str, n: u16| {
        vec![
            I::LoadConst(Value::from(name)),
            I::CallFunction(guard, Some(n + 1)),
        ]
    };
    let own = instruction.clone();
    Ok(match instruction {
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::Mul => vec![call(TIMES, 2)],
        I::ApplyFilter(name, Some(n), _) => named(FILTER, name, *n),
        I::PerformTest(name, Some(n), _) => named(TEST, name, *n),
        I::CallMethod(name, Some(n)) => named(METHOD, name, *n),
        I::ApplyFilter(_, None, _)
        | I::PerformTest(_, None, _)
        | I::CallMethod(_, None)
        | I::CallFunction(_, None)
        | I::CallObject(None) => {
            return Err(error("arguments with * are not supported".to_owned()));
        }
        I::Add | I::StringConcat => vec![own, call(MADE, 1)],
        I::Slice => vec![call(SLICE, 4), call(FLAT, 1)],
        I::BuildList(_)
        | I::BuildTuple(_)
        | I::BuildMap(_)
        | I::CallFunction(..)
        | I::CallObject(_) => {
            vec![own, call(BUILT, 1)]
        }
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::In | I::CompareAndPreserve(_) => {
            vec![call(LOOK, 1), own]
        }
        I::Iterate(_) => vec![own, call(TICK, 1)],
        _ => vec![own],
    })
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
