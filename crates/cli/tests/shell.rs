//! Completions and manual pages, each read by the program that they are for, where it is installed.

use std::process::{Command, Output};

fn lowtide(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
    command.args(args).output().expect("the binary starts")
}

fn text(args: &[&str]) -> String {
    let output = lowtide(args);
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Every command that `--help` lists.
fn commands() -> Vec<String> {
    let help = text(&["--help"]);
    let list = help.split("Commands:").nth(1).expect("a list of commands");
    let rows = list.lines().skip(1).take_while(|line| !line.is_empty());
    let names = rows.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<String> = names
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert!(names.len() >= 12, "{names:?}");
    names
}

#[test]
fn bash_completes_commands_and_flags() {
    let script = text(&["completions", "bash"]);
    let completed = |words: &str, current: &str, previous: &str| {
        let n = words.split(' ').count() - 1;
        let asked = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={n}; _lowtide lowtide '{current}' {previous}; echo ${{COMPREPLY[@]}}"
        );
        let output = Command::new("bash").args(["-c", &asked]).output();
        let output = output.expect("bash is there");
        assert!(
            output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .expect("UTF-8")
            .trim()
            .to_owned()
    };
    assert_eq!(completed("lowtide tr", "tr", "lowtide"), "train");
    assert_eq!(completed("lowtide train --gp", "--gp", "train"), "--gpus");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = text(&["completions", shell]);
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
        }
    }
    assert_eq!(lowtide(&["completions", "csh"]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_manual_page() {
    let all = text(&["man"]);
    assert!(all.contains(".TH LOWTIDE 1"), "{all}");
    for command in commands().iter().filter(|name| *name != "help") {
        assert!(
            all.contains(&format!("lowtide\\-{command}(1)")),
            "{command}: {all}"
        );
        let page = text(&["man", command]);
        let title = format!(".TH LOWTIDE-{} 1", command.to_uppercase());
        assert!(
            page.contains(&title) && page.contains("\"lowtide "),
            "{page}"
        );
    }
    let unknown = lowtide(&["man", "fly"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("'fly'"));
}
