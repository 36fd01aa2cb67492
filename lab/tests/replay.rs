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

/// A file of `tests/golden-quant`.
fn quantized(name: &str) -> PathBuf {
    fused_dora_testkit::packed::folder().join(format!("{name}.safetensors"))
}

#[test]
fn layers_on_packed_weights_are_within_bounds_in_every_dtype() {
    let files = fused_dora_testkit::packed::files("dora_");
    let paths: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    for dtype in ["bf16", "f16", "f32"] {
        let output = replay(&["--dtype", dtype], &paths);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert_eq!(text.matches(", W in ").count(), 17, "{text}");
        // Five tensors each, and the gradient of the bias of those that have one.
        let ok = text.matches(" ok\n").count();
        assert!(ok >= 5 * 17 && ok == text.matches("relative Frobenius error").count(), "{text}");
    }
}

/// The kernels decode W: one code that is another one shows. What is written has the same names.
#[test]
fn packed_codes_are_what_the_kernels_read() {
    let name = "dora_nf4_one_token_input_full";
    let mut bytes = std::fs::read(quantized(name)).unwrap();
    let view = SafeTensors::deserialize(&bytes).unwrap();
    let at = view.tensor("weight").unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[at] ^= 0xff;
    let folder = folder("replay_packed");
    let path = folder.join("changed.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let output = replay(&["--dtype", "f32"], &[&path]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("FAIL"), "{}", text(&output));

    let write = ["--dtype", "f32", "--write", folder.to_str().unwrap()];
    let output = replay(&write, &[&quantized(name)]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let bytes = std::fs::read(folder.join(format!("{name}.f32.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.names().len(), 6);
    assert_eq!(tensors.tensor("output").unwrap().shape(), [1, 80]);
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

/// A layer on a packed W with other metadata and without a tensor.
fn packed_like(name: &str, format: &str, without: &str) -> PathBuf {
    let bytes = std::fs::read(quantized(name)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    metadata.insert("format".to_owned(), format.to_owned());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let others = tensors.iter().filter(|(name, _)| *name != without);
    let path = folder("replay_packed").join(format!("{name}_{format}_{without}.safetensors"));
    std::fs::write(&path, safetensors::serialize(others, Some(metadata)).unwrap()).unwrap();
    path
}

#[test]
fn packed_weights_that_cannot_be_read_are_refused_by_name() {
    let layer = "dora_nf4_nested_output_full";
    for (path, named) in [
        // A packed weight without a layer.
        (quantized("quant_nf4"), "tensor `input` is missing; a case has input, weight"),
        (quantized("quant_fp8_all"), "an fp8 element of the weight is NaN (number 127)"),
        (packed_like(layer, "gptq", "-"), "metadata `format` is `gptq`; it must be bnb-nf4"),
        (packed_like(layer, "bnb-fp4", "-"), "`format` is `bnb-fp4`; it must be what the tensors"),
        (
            packed_like(layer, "bnb-nf4", "weight.nested_absmax"),
            "the packed W: tensor `weight.nested_absmax` is missing",
        ),
        (
            packed_like(layer, "bnb-nf4", "weight.quant_state.bitsandbytes__nf4"),
            "`weight` is stored as U8, without `weight.quant_state.bitsandbytes__nf4`",
        ),
        (packed_like("dora_int8_input_full", "bnb-int8", "SCB"), "tensor `SCB` is missing"),
        (
            packed_like("dora_fp8_row_input_full", "fp8-row", "weight_scale"),
            "tensor `weight_scale` is missing",
        ),
    ] {
        let output = replay(&[], &[&path]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(text(&output).contains(file), "{}", text(&output));
        assert!(text(&output).contains(named), "{named}: {}", text(&output));
    }
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
