//! `finetune`: adapters learn on weights packed to NF4 as they do on dense ones.

use std::path::Path;
use std::process::{Command, Output};

fn finetune(arguments: &[&str]) -> Output {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finetune");
    let mut program = Command::new(env!("CARGO_BIN_EXE_finetune"));
    program.args(arguments).arg("--out").arg(out).output().expect("the example")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The accuracies before and after, of a method.
fn accuracies(text: &str, method: &str) -> [f64; 2] {
    let start = format!("{method}: test accuracy ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start)).expect("the method's line");
    let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
    [0; 2].map(|_| numbers.next().expect("an accuracy"))
}

#[test]
fn adapters_learn_on_nf4_as_on_dense_weights() {
    let output = finetune(&["--base", "nf4", "--steps", "30", "--lr", "1e-2"]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for method in ["LoRA", "DoRA-output", "DoRA-input"] {
        let dense = accuracies(&text, method);
        let packed = accuracies(&text, &format!("{method}-nf4"));
        for [before, after] in [dense, packed] {
            assert!(after > before + 20.0, "{method}: {text}");
        }
        // Of 500 images: NF4 is another network, of the same quality.
        assert!((dense[0] - packed[0]).abs() < 3.0, "{method}: {text}");
        assert!((dense[1] - packed[1]).abs() < 10.0, "{method}: {text}");
    }
}

#[test]
fn another_base_is_refused() {
    let output = finetune(&["--base", "gptq"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--base gptq: it must be dense or nf4"));
}
