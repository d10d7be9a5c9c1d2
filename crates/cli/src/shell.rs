//! What a shell and a reader of manuals get of the command line's grammar.

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use crate::Answer;
use crate::args::{Args, ManArgs};
use crate::error::CliError;
use crate::out::Out;

/// The name that completions and manuals are for.
const NAME: &str = "lowtide";

/// Prints the completions for a shell.
pub fn completions(shell: Shell, out: Out) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), NAME, &mut script);
    let script = text(script);
    out.text(script.trim_end());
    Ok((json!({ "shell": shell.to_string(), "script": script }), 0))
}

/// Prints the manual page of the command, or of one of its commands.
pub fn man(args: &ManArgs, out: Out) -> Answer {
    let mut all = Args::command();
    all.build();
    let command = match &args.command {
        None => all,
        Some(name) => all.find_subcommand(name).cloned().ok_or_else(|| {
            let what = format!("lowtide man: there is no command '{name}'");
            let help = "lowtide --help lists them";
            CliError::Usage { what, help }
        })?,
    };
    let title = command.get_bin_name().unwrap_or(NAME).replace(' ', "-");
    let mut page = Vec::new();
    let drawn = clap_mangen::Man::new(command.clone().display_name(&title))
        .title(title.to_uppercase())
        .source(concat!("lowtide ", env!("CARGO_PKG_VERSION")))
        .render(&mut page);
    drawn.expect("memory takes what is written to it");
    let page = text(page);
    out.text(page.trim_end());
    Ok((json!({ "page": page }), 0))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("the grammar is written in UTF-8")
}
