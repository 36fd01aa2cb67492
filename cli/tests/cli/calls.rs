//! The command line itself: help, wrong calls, completions.

use crate::program::{fail, program, succeed};

const COMMANDS: [&str; 5] = ["inspect", "merge", "unmerge", "analyze", "quantize"];

#[test]
fn wrong_calls_are_explained() {
    for (arguments, parts) in [
        (&[][..], &["requires a subcommand", "inspect, merge, unmerge, analyze"][..]),
        (&["smerge"], &["'smerge'", "similar subcommands exist", "'merge'"]),
        (&["inspct"], &["'inspct'", "similar subcommand exists: 'inspect'"]),
        (&["merge", "--base", "x"], &["--adapter <PATH>", "--out <PATH>"]),
        (&["inspect", "--adapter", "x", "--out", "y"], &["unexpected argument '--out'"]),
        (&["analyze", "--base", "x", "--changed", "y"], &["--axis <AXIS>"]),
        (&["analyze", "--axis", "sideways"], &["'sideways'", "input, output"]),
        (&["merge", "--device", "abacus"], &["'abacus'", "auto, cuda, emulated, cpu"]),
        (&["merge", "--devise", "cpu"], &["similar argument exists: '--device'"]),
        (&["merge", "--out", "x", "--out", "y"], &["'--out <PATH>'", "multiple times"]),
        (&["completions", "dush"], &["'dush'", "bash"]),
    ] {
        let output = program().args(arguments).output().expect("the program");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let error = fail(program().args(arguments), 2);
        for part in parts.iter().chain(&["--help"]) {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

/// The help of a command has each of its options and an example that is a complete call.
#[test]
fn each_command_has_help_with_an_example() {
    for flag in ["--help", "-h"] {
        let help = succeed(program().arg(flag));
        assert!(help.contains("Usage: fused-dora <COMMAND>"), "{help}");
        assert!(help.contains("130  interrupted"), "{help}");
        for command in COMMANDS {
            assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
            let help = succeed(program().args([command, flag]));
            let mut examples = help.lines().filter_map(|line| line.strip_prefix("  fused-dora "));
            let example = examples.next().expect("an example");
            let words: Vec<_> = example.split(' ').collect();
            assert_eq!(words[0], command, "{help}");
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.contains(&format!("      {option}")), "{option}: {help}");
            }
        }
    }
    // The examples' files do not exist: the command line is right, and a file is missing.
    for command in COMMANDS {
        let help = succeed(program().args([command, "--help"]));
        for example in help.lines().filter_map(|line| line.strip_prefix("  fused-dora ")) {
            let error = fail(program().args(example.split(' ')), 1);
            assert!(error.contains("cannot be read"), "{example}: {error}");
        }
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let version = format!("fused-dora {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(succeed(program().arg("--version")), version);
    assert_eq!(succeed(program().arg("-V")), version);
}

#[test]
fn completions_know_commands_and_options() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = succeed(program().args(["completions", shell]));
        for word in COMMANDS.iter().chain(&["completions", "gains", "json"]) {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
        // Elvish and PowerShell complete no options' values.
        if ["bash", "fish", "zsh"].contains(&shell) {
            assert!(script.contains("emulated"), "{shell} does not complete values");
        }
    }
}
