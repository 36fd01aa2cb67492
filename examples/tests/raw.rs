//! `raw.rs` lowers its loss.

use std::process::Command;

#[test]
fn the_example_learns() {
    let output = Command::new(env!("CARGO_BIN_EXE_raw")).output().expect("the example");
    let text =
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    let loss = |line: &str| line.split_whitespace().nth(1).and_then(|loss| loss.parse().ok());
    let losses: Vec<f64> = text.lines().filter_map(loss).collect();
    assert_eq!(losses.len(), 7, "{text}");
    assert!(losses[6] < losses[0] / 10.0, "{text}");
}
