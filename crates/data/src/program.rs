//! A chat template as a program that runs within bounds.
//!
//! A template is untrusted. Sixty characters of Jinja are enough to loop for years, to double a
//! string until memory is gone, or to nest a list until the stack is. minijinja counts instructions
//! (fuel) and limits recursion; what one instruction makes of large values it does not limit. So its
//! compiled form is rewritten before it runs (`rewrite`), and filters, tests, functions and methods are
//! wrapped (`costs`): each charges what it takes to a budget (`guards`). The bounds grow with the
//! conversation and lie far above what real templates use (docs/robustness.md).

use std::collections::BTreeMap;

use minijinja::machinery::{CodeGenerator, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, machinery};

use super::guards::{Bounds, Exceeded, Spent, error, within};
use super::rewrite::{guarded, interned};
use super::trial::foreign;

/// Most bytes of a template's source. Real ones have up to 30 KiB.
const SOURCE_MAX: usize = 512 << 10;
/// Most words in one tag. Real ones have up to 200.
const WORDS_MAX: usize = 4000;
/// Most tags. Real ones have up to 500.
const TAGS_MAX: usize = 20_000;
/// Most that constants in one tag may multiply to, in bytes or items.
const CONSTANT_MAX: u128 = 1 << 20;
/// Longest name, in bytes: each use of it is a search for it. Real ones have up to 60.
const NAME_MAX: usize = 1000;

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

    /// Renders; also says what that took.
    pub fn render(
        &self,
        engine: &Environment<'static>,
        variables: Value,
        bounds: Bounds,
    ) -> (Result<String, Error>, Spent) {
        let mut text = String::new();
        let (ended, mut spent) = within(bounds, || {
            // A panic of the engine is the template's fault, not ours, and no reason to lose a run.
            foreign(|| {
                let mut out = machinery::make_string_output(&mut text);
                let none = AutoEscape::None;
                machinery::eval(engine, &self.main, variables, &self.blocks, &mut out, none)
                    .map(|(_, state)| state.fuel_levels().map_or(0, |f| f.0))
            })
        });
        let ended = match ended {
            Err(panic) => Err(error(format!("it cannot be rendered: {panic}"))),
            Ok(Ok(fuel)) => {
                spent.fuel = fuel;
                Ok(text)
            }
            Ok(Err(e)) => {
                if e.kind() == ErrorKind::OutOfFuel {
                    spent.fuel = bounds.fuel;
                    spent.exceeded.get_or_insert(Exceeded {
                        construct: String::new(),
                        what: format!(
                            "takes more than {} instructions, the limit for this conversation",
                            bounds.fuel
                        ),
                    });
                }
                Err(e)
            }
        };
        (ended, spent)
    }
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
        if let Token::Ident(name) = &token
            && name.len() > NAME_MAX
        {
            return Err(error(format!(
                "a name has {} bytes, at most {NAME_MAX} are allowed",
                name.len()
            )));
        }
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

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
