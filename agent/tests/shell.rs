//! What helps at a shell: completions and manual pages.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;

/// The commands that `culvert --help` names.
const COMMANDS: [&str; 8] = ["plan", "agent", "status", "services", "backends", "flows", "monitor", "cleanup"];

fn culvert(arguments: &[&str]) -> Output {
    Command::new(cargo_bin("culvert")).args(arguments).output().unwrap()
}

fn completions(shell: &str) -> String {
    let output = culvert(&["completions", shell]);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_options() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("culvert.bash");
    fs::write(&script, completions("bash")).unwrap();
    for (words, expected) in [
        (vec!["culvert", "st"], vec!["status"]),
        (vec!["culvert", "flows", "--cl"], vec!["--client"]),
        (vec!["culvert", "services", "-o", "y"], vec!["yaml"]),
        (vec!["culvert", "agent", "--socket-mode", ""], vec!["all", "host"]),
    ] {
        // As readline calls it: the command, the word under the cursor, the word before.
        let line = "source \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                    _culvert culvert \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; \
                    printf '%s\\n' \"${COMPREPLY[@]}\"";
        let output = Command::new("bash").args(["-c", line]).arg(&script).args(&words).output().unwrap();
        let offered: Vec<_> = str::from_utf8(&output.stdout).unwrap().lines().collect();
        assert_eq!(offered, expected, "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn zsh_and_fish_have_every_command() {
    for (shell, mark) in [("zsh", "#compdef culvert"), ("fish", "complete -c culvert")] {
        let script = completions(shell);
        assert!(script.contains(mark), "{shell}: {script}");
        let missing: Vec<_> = COMMANDS.iter().filter(|name| !script.contains(**name)).collect();
        assert!(missing.is_empty(), "{shell} lacks {missing:?}");
    }
}

#[test]
fn an_unknown_shell_is_a_wrong_command_line() {
    let output = culvert(&["completions", "cmd.exe"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("bash"));
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let output = culvert(&["man", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let pages: BTreeSet<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let wanted: BTreeSet<String> =
        COMMANDS.iter().map(|name| format!("culvert-{name}.1")).chain(["culvert.1".to_owned()]).collect();
    assert!(pages.is_superset(&wanted), "{pages:?}");
    let agent = fs::read_to_string(dir.path().join("culvert-agent.1")).unwrap();
    for part in [".TH", "NAME", "SYNOPSIS", r"\-\-source", r"\-\-trace\-datapath", "NET_ADMIN"] {
        assert!(agent.contains(part), "culvert-agent.1 lacks {part}:\n{agent}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let output = culvert(&["man", "/nonexistent/culvert"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/culvert"));
}
