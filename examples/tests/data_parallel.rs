//! `data_parallel.rs` as a user runs it: two ranks learn as one does, and end up alike.

use std::process::Command;

/// Runs the example on emulated devices.
fn train(ranks: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_data_parallel"))
        .args(["--device", "emulated", "--steps", "6", "--batch", "33", "--ranks", ranks])
        .env("CUDA_EMULATOR_SANITIZER", "0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into();
    assert!(output.status.success(), "{text}");
    text
}

/// The losses that were printed, by step.
fn losses(text: &str) -> Vec<f64> {
    let printed = text.lines().filter_map(|line| line.strip_prefix("step ")?.split_once("loss "));
    printed.map(|(_, loss)| loss.parse().unwrap()).collect()
}

#[test]
fn two_ranks_learn_as_one_does() {
    let (one, two) = (train("1"), train("2"));
    assert!(two.contains("2 rank(s)") && two.contains("sums through the host"), "{two}");
    assert!(two.contains("All 2 rank(s) hold the same adapters, bit by bit."), "{two}");
    let (one, two) = (losses(&one), losses(&two));
    assert_eq!((one.len(), two.len()), (2, 2));
    assert!(one[1] < one[0] && two[1] < two[0], "{one:?} {two:?}");
    for (one, two) in one.iter().zip(&two) {
        // bf16: they round differently, by 2⁻⁸.
        assert!((one - two).abs() < 0.01 * one, "{one} {two}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_output_is_no_failure() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for program in [env!("CARGO_BIN_EXE_data_parallel"), env!("CARGO_BIN_EXE_finetune")] {
        let status = Command::new(program).arg("--help").stdout(full()).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    }
    let mut train = Command::new(env!("CARGO_BIN_EXE_data_parallel"));
    train.args(["--device", "emulated", "--steps", "1", "--batch", "8", "--ranks", "1"]);
    let status = train.env("CUDA_EMULATOR_SANITIZER", "0").stdout(full()).status().unwrap();
    assert!(status.success(), "{status}");
}
