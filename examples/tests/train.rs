//! `train.rs` lowers its loss, and merges what it learnt.

use std::process::Command;

#[test]
fn the_loop_learns() {
    let output = Command::new(env!("CARGO_BIN_EXE_train")).output().expect("the example");
    let text =
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    let number = |word: &str| word.trim_end_matches(',').parse::<f64>().ok();
    let losses: Vec<f64> =
        text.lines().filter_map(|line| number(line.split_once("loss ")?.1)).collect();
    assert_eq!(losses.len(), 6, "{text}");
    assert!(losses[5] < losses[0] / 20.0, "{text}");
    let distances: Vec<f64> =
        text.lines().last().expect("the result").split(' ').filter_map(number).collect();
    assert!(distances[1] < distances[0] / 4.0, "{text}");
}
