//! The command `lowtide`: the only crate that prints.
//!
//! People read standard output, progress is drawn on standard error. With `--json` everything for
//! people goes to standard error and standard output's last line is one JSON object. Exit codes:
//! 0 done, 2 something the user can put right, 1 our bug or a difference found by `verify`, 128 and the
//! number of the signal where one ended it.

mod args;
mod bench;
mod check;
mod compare;
mod data;
mod error;
mod eval;
mod export;
mod generate;
mod import;
mod launch;
mod out;
mod plan;
mod probe;
mod progress;
mod report;
mod shell;
mod signals;
mod train;
mod verify;
mod view;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};
use lowtide_data::trial::{become_trial, in_foreign_code};
use serde_json::{Value, json};

use crate::args::{Args, Command};
use crate::error::{CliError, OURS, USERS};
use crate::out::Out;

/// What a command answers: its JSON object, and the exit code.
type Answer = Result<(Value, u8), CliError>;

fn main() -> ExitCode {
    if let Some(code) = become_trial() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(mut e) => {
            let key = key_of(&e);
            if key.is_some() {
                // It would advise to pass the option as a value.
                e.remove(ContextKind::Suggested);
            }
            let printed = e.print();
            if let Some(key) = key {
                out::complain(&format!(
                    "  help: a key of the run file is changed by --set {key}=VALUE"
                ));
            }
            if !e.use_stderr() {
                out::noted(&printed.and_then(|()| std::io::stdout().flush()));
            }
            let code = u8::try_from(e.exit_code()).unwrap_or(USERS);
            if e.use_stderr() && args::asks_for_json(std::env::args_os()) {
                let text = e.to_string();
                let error = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
                let answer = json!({ "error": error, "help": [], "exit_code": code });
                Out::new(true, false).answer(&answer);
            }
            return ExitCode::from(if out::refused() { USERS } else { code });
        }
    };
    let out = Out::new(args.json(), args.verbose);
    set_hook(Box::new(|info| {
        if in_foreign_code() {
            return;
        }
        view::restore();
        out::complain(&format!("error: this is a bug in lowtide: {info}"));
        out::complain("  help: please report it with the command and its output");
    }));
    let (answer, code) = match catch_unwind(AssertUnwindSafe(|| run(&args, out))) {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => (error.report(), error.code()),
        Err(_) => (
            json!({ "error": "this is a bug in lowtide", "exit_code": OURS }),
            OURS,
        ),
    };
    out.answer(&answer);
    ExitCode::from(match code {
        0 if out::refused() => USERS,
        code => code,
    })
}

/// The key of a run file that an unknown option is named like, or of which it is another trainer's name.
fn key_of(e: &clap::Error) -> Option<&'static str> {
    if e.kind() != clap::error::ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(option)) = e.get(ContextKind::InvalidArg) else {
        return None;
    };
    let name = option.trim_start_matches('-').replace('-', "_");
    let named = lowtide_config::KEYS.iter().find(|key| {
        let last = key.name.rsplit('.').next();
        key.name == name || last == Some(&*name) || key.elsewhere.iter().any(|n| *n == name)
    });
    named.map(|key| key.name)
}

fn run(args: &Args, out: Out) -> Answer {
    launch::suits(&args.command)?;
    let watch = signals::watch(args.json())?;
    match &args.command {
        Command::Train(a) => train::train(a, out, &watch),
        Command::Plan(a) => plan::plan(a, out),
        Command::Probe(a) => probe::probe(a, out),
        Command::Verify(a) => verify::verify(a, out),
        Command::Bench(a) => bench::bench(a, out),
        Command::Compare(a) => compare::compare(a, out, &watch),
        Command::Check(a) => check::check(a, out),
        Command::Data(a) => data::data(a, out),
        Command::Import(a) => import::import(a, out),
        Command::Report(a) => report::report(a, out),
        Command::Eval(a) => eval::eval(a, out),
        Command::Export(a) => export::export(a, out),
        Command::Generate(a) => generate::generate(a, out),
        Command::Completions { shell } => shell::completions(*shell, out),
        Command::Man(a) => shell::man(a, out),
        Command::Schema { markdown } => {
            let schema = lowtide_config::schema();
            match markdown {
                true => out.text(lowtide_config::reference_markdown().trim_end()),
                false => out.text(&format!("{schema:#}")),
            }
            Ok((schema, 0))
        }
    }
}
