//! The program `replay` as a user runs it: its lines, its files and its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;

fn golden(name: &str) -> PathBuf {
    fused_dora_testkit::workspace().join(format!("tests/golden/{name}.safetensors"))
}

fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs the program.
fn replay(arguments: &[&str], files: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_replay")).args(files).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn golden_cases_are_within_bounds_in_every_dtype() {
    for dtype in ["bf16", "f16", "f32"] {
        let axes = ["input", "output"];
        let of_axis =
            |axis| ["detached", "full"].map(|grad| golden(&format!("tiny_odd_{axis}_{grad}")));
        let cases: Vec<_> = axes.into_iter().flat_map(of_axis).collect();
        let paths: Vec<_> = cases.iter().map(PathBuf::as_path).collect();
        let output = replay(&["--dtype", dtype], &paths);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert_eq!(text.matches(" ok\n").count(), 24, "{text}");
        assert_eq!(text.matches("relative Frobenius error").count(), 24, "{text}");
        assert_eq!(text.matches("norm Input Exact").count(), 1, "{text}");
    }
}

#[test]
fn a_corrupted_expected_tensor_fails() {
    let mut bytes = std::fs::read(golden("tiny_odd_output_detached")).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let view = SafeTensors::deserialize(&bytes).unwrap();
    let expected = view.tensor("expected.grad_lora_A").unwrap();
    // The sign of its first element.
    let at = expected.data().as_ptr() as usize - bytes.as_ptr() as usize + 3;
    assert!(at > start);
    bytes[at] ^= 0x80;
    let path = folder("replay").join("corrupted.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let output = replay(&[], &[&path]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL: 1 of 10 elements"), "{text}");
    assert!(text.contains("at [0, 0]: found "), "{text}");
}

#[test]
fn results_are_written() {
    let folder = folder("replay");
    let write = ["--dtype", "f32", "--write", folder.to_str().unwrap()];
    let output = replay(&write, &[&golden("tiny_odd_input_detached")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let bytes = std::fs::read(folder.join("tiny_odd_input_detached.f32.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort();
    let expected =
        ["grad_bias", "grad_input", "grad_lora_A", "grad_lora_B", "grad_magnitude", "output"];
    assert_eq!(names, expected);
}

/// A golden case whose metadata says that it is plain LoRA.
fn without_a_norm(name: &str) -> Vec<u8> {
    let bytes = std::fs::read(golden(name)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    metadata.insert("norm_axis".to_owned(), "none".to_owned());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let others = tensors.iter().filter(|(name, _)| !name.contains("magnitude"));
    safetensors::serialize(others, Some(metadata)).unwrap()
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let lora = folder("replay").join("lora_full.safetensors");
    std::fs::write(&lora, without_a_norm("tiny_odd_input_full")).unwrap();
    let output = replay(&[], &[&lora]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("lora_full.safetensors: norm_grad is Exact: it must be Detached")
    );

    let output = replay(&["--dtype", "f8"], &[&golden("tiny_odd_input_detached")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--dtype f8: it must be bf16, f16 or f32"));

    let output = replay(&["--device", "abacus"], &[&golden("tiny_odd_input_detached")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("auto, cuda and emulated"));

    let output = replay(&[], &[Path::new("nowhere.safetensors")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("nowhere.safetensors: cannot be read"));

    let output = replay(&[], &[]);
    assert_eq!(output.status.code(), Some(2));
    let output = replay(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).contains("Usage: replay"));
}

/// Of all programs here.
#[cfg(target_os = "linux")]
#[test]
fn a_full_output_is_no_failure() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for program in [
        env!("CARGO_BIN_EXE_limits"),
        env!("CARGO_BIN_EXE_mutate"),
        env!("CARGO_BIN_EXE_profile"),
        env!("CARGO_BIN_EXE_replay"),
        env!("CARGO_BIN_EXE_report"),
    ] {
        let status = Command::new(program).arg("--help").stdout(full()).status().unwrap();
        assert!(status.success(), "{program}: {status}");
        let mut wrong = Command::new(program);
        let status = wrong.arg("--no-such-option").stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(2), "{program}");
    }
    let mut replay = Command::new(env!("CARGO_BIN_EXE_replay"));
    replay.arg(golden("one_token")).args(["--dtype", "f32"]).stdout(full());
    assert!(replay.status().unwrap().success());
}
