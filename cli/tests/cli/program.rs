//! Running the program, and what is compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const DEVICES: [&str; 2] = ["cpu", "emulated"];

/// The folder of the workspace, which has the samples and the guides.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

pub fn sample(name: &str) -> PathBuf {
    workspace().join("tests/peft").join(name)
}

/// A model of three layers, to which the samples of PEFT belong.
pub fn digits() -> PathBuf {
    workspace().join("examples/data/digits-mlp.safetensors")
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fused-dora"))
}

/// The command line of a command with a base, an adapter and a target.
pub fn call<'a>(
    command: &'a str,
    base: &'a Path,
    adapter: &'a Path,
    out: &'a Path,
) -> Vec<&'a Path> {
    let words = [command, "--base", "--adapter", "--out"].map(Path::new);
    vec![words[0], words[1], base, words[2], adapter, words[3], out]
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

pub fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

/// The error that a command ends with.
pub fn fail(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the program");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains("error: "), "{text}");
    text
}

pub fn assert_near(what: &str, found: &[f32], expected: &[f32], relative: f32, absolute: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = absolute + relative * expected.abs();
        let error = (found - expected).abs();
        assert!(error <= bound, "{what}, element {index}: {found} where {expected} should be");
    }
}

/// Nothing unfinished is left in a folder.
pub fn assert_clean(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        assert!(!name.display().to_string().contains(".partial"), "{} is left", name.display());
    }
}

/// Everything in a folder, to the byte.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(snapshot(&path)),
            false => drop(files.insert(path.clone(), fs::read(path).expect("a file"))),
        }
    }
    files
}
