//! The example `run_ptx` as a user runs it: its lines, its files and its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::support::SCALE;

/// A kernel with a parameter of several bytes.
const PAIR: &str = r#"
.visible .entry pair(.param .u64 pair_param_0, .param .align 8 .b8 pair_param_1[16])
{
    .reg .b64 %rd<4>;

    ld.param.u64 %rd1, [pair_param_0];
    ld.param.u64 %rd2, [pair_param_1];
    ld.param.u64 %rd3, [pair_param_1+8];
    add.u64 %rd2, %rd2, %rd3;
    st.global.u64 [%rd1], %rd2;
    ret;
}
"#;

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("run_ptx");
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(format!("{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// Runs the example that Cargo built next to this test on the kernels.
fn run(arguments: &str) -> Output {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.parent().and_then(Path::parent).expect("a folder");
    let program = profile.join(format!("examples/run_ptx{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "{} is missing: cargo build --examples", program.display());
    // Written once: other tests of the process may read it at this moment.
    static KERNELS: LazyLock<PathBuf> =
        LazyLock::new(|| write("kernels.ptx", format!("{SCALE}{PAIR}").as_bytes()));
    let mut command = Command::new(program);
    command.arg(&*KERNELS).args(arguments.split_whitespace()).output().expect("the example")
}

/// The exit code, and all that was printed.
fn outcome(arguments: &str) -> (Option<i32>, String) {
    let output = run(arguments);
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn arrays_go_in_and_come_out() {
    let (code, text) = outcome(
        "--kernel scale --grid 2 --block 64 --arg out:f32:100 --arg in:f32:0..100 --arg f32:0.5 \
         --arg u32:100 --print 4",
    );
    assert_eq!((code, text.as_str()), (Some(0), "argument 0: 100 f32: 0.0, 0.5, 1.0, 1.5, …\n"));
    let (code, text) = outcome(
        "--kernel scale --block 4 --arg inout:f32:4*3 --arg in:f32:1,-2,0x40400000,1e3 \
         --arg f32:2 --arg u32:3",
    );
    assert_eq!((code, text.as_str()), (Some(0), "argument 0: 4 f32: 2.0, -4.0, 6.0, 3.0\n"));
    let (code, text) = outcome(
        "--kernel pair --arg out:b64:1 --arg hex:01000000000000000200000000000010 --device h100",
    );
    assert_eq!((code, text.as_str()), (Some(0), "argument 0: 1 b64: 0x1000000000000003\n"));
}

#[test]
fn files_go_in_and_come_out() {
    let numbers: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let (input, output) = (write("in.f32", &numbers), write("out.f32", &[]));
    let (code, text) = outcome(&format!(
        "--kernel scale --block 8 --arg out:f32:8:{} --arg in:f32:{} --arg f32:-1 --arg u32:8",
        output.display(),
        input.display()
    ));
    assert_eq!(code, Some(0), "{text}");
    let scaled: Vec<u8> = (0..8).flat_map(|i| (-(i as f32)).to_le_bytes()).collect();
    assert_eq!(std::fs::read(output).expect("the output"), scaled);
}

#[test]
fn faults_are_reported() {
    let (code, text) = outcome(
        "--kernel scale --block 32 --arg out:f32:8 --arg in:f32:32*1 --arg f32:2 --arg u32:32",
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("access out of bounds in kernel `scale`"), "{text}");
    assert!(text.contains("st.global.f32 [%rd7], %f3"), "{text}");
}

#[test]
fn what_is_wrong_is_named() {
    for (arguments, message) in [
        ("", "--kernel must be one of pair, scale"),
        ("--kernel scael", "there is no kernel `scael`; pair, scale"),
        ("--kernel pair", "`pair` has 2 parameters (of 8, 16 bytes), and there are 0 arguments"),
        ("--kernel pair --arg u32:1 --arg u32:2", "argument 0: 4 bytes for a parameter of 8"),
        ("--arg u31:4", "--arg u31:4: `u31` is not a type"),
        ("--arg u8:256", "--arg u8:256: `256` is not a number of type u8"),
        ("--arg in:f32:1,x", "`x` is not a number of type f32, and there is no file `1,x`"),
        ("--arg out:f32:0", "`0` is not a number of elements"),
        ("--arg 7", "there is no `:` behind its kind"),
        ("--grid 1,2,3,4", "`1,2,3,4` is not one to three whole numbers"),
        ("--device v100", "--device v100: it must be one of a100"),
        ("--kernel pair --arg out:u64:1 --arg hex:00 --block 2000", "argument 1: 1 bytes"),
        ("--frobnicate", "invalid option '--frobnicate'"),
    ] {
        let (code, text) = outcome(arguments);
        assert_eq!(code, Some(2), "{arguments}: {text}");
        assert!(text.contains(message), "{arguments}: {text}");
    }
}
