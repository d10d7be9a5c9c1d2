//! Guards put into a compiled template: wherever an operator makes, compares or walks a value, an
//! instruction that charges its size.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use minijinja::Error;
use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::Value;

use super::costs::METHOD;
use super::guards::{
    BUILT, CONCAT, FIND, INDEX, KEPT, LOOK, MADE, SLICE, TICK, TIMES, WALK, error,
};

/// One copy of each source for the life of the process: compiled templates borrow theirs.
pub(super) fn interned(source: &str) -> &'static str {
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

/// The same program with guards.
pub(super) fn guarded(old: &Instructions<'static>) -> Result<Instructions<'static>, Error> {
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

/// What one instruction becomes. Filters, tests and functions charge what they take by themselves
/// (`costs`).
fn guard(instruction: &Instruction<'static>) -> Result<Vec<Instruction<'static>>, Error> {
    use Instruction as I;
    let call = |name: &'static str, n: u16| I::ApplyFilter(name, Some(n), !0);
    let own = instruction.clone();
    Ok(match instruction {
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::ApplyFilter(_, None, _)
        | I::PerformTest(_, None, _)
        | I::CallMethod(_, None)
        | I::CallFunction(_, None)
        | I::CallObject(None) => {
            return Err(error("arguments with * are not supported".to_owned()));
        }
        I::CallMethod(name, Some(n)) => vec![
            I::LoadConst(Value::from(*name)),
            I::CallFunction(METHOD, Some(n + 1)),
        ],
        I::Add => vec![own, call(MADE, 1)],
        I::Mul => vec![call(TIMES, 2), I::UnpackList(2), own, call(MADE, 1)],
        I::StringConcat => vec![call(CONCAT, 2)],
        I::Slice => vec![call(SLICE, 4), I::UnpackList(4), own, call(MADE, 1)],
        // The key lies on top of the container.
        I::GetItem => vec![call(INDEX, 2)],
        // The namespace lies on top of the value.
        I::SetAttr(_) => vec![I::Swap, call(KEPT, 1), I::Swap, own],
        I::BuildList(_)
        | I::BuildTuple(_)
        | I::BuildMap(_)
        | I::CallFunction(..)
        | I::CallObject(_) => vec![own, call(BUILT, 1)],
        // The smaller of two values bounds what comparing them takes.
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte => vec![call(LOOK, 1), own],
        I::In | I::CompareAndPreserve(_) => {
            vec![I::Swap, call(FIND, 1), I::Swap, call(FIND, 1), own]
        }
        I::PushLoop(_) => vec![call(WALK, 1), own],
        I::Iterate(_) => vec![own, call(TICK, 1)],
        _ => vec![own],
    })
}
