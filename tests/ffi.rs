//! The C API: its header, and a C program that trains a layer through it.

#![cfg(unix)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use cuda_emulator::client::{Choice, Selected, select};

/// Set to 1 to write the header anew.
const BLESS: &str = "FUSED_DORA_BLESS";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The header that the sources ask for.
fn generated() -> String {
    let config =
        cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("a configuration");
    let files = ["src/ffi/status.rs", "src/ffi/types.rs", "src/ffi.rs"];
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = files.iter().fold(builder, |builder, file| builder.with_src(root().join(file)));
    let mut header = Vec::new();
    builder.generate().expect("declarations").write(&mut header);
    String::from_utf8(header).expect("text")
}

#[test]
fn the_header_is_that_of_the_sources() {
    let path = root().join("include/fused_dora.h");
    let generated = generated();
    if env::var_os(BLESS).is_some_and(|value| value == "1") {
        fs::write(&path, generated).expect("the header");
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{} is not what src/ffi.rs declares: {BLESS}=1 cargo test --features ffi --test ffi",
        path.display()
    );
}

/// The libraries that the crate's Cargo builds for C, dynamic and static, as README.md says.
static LIBRARIES: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target's folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["rustc", "--lib", "--features", "ffi", "--crate-type", "cdylib,staticlib"]);
    cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]).arg(target);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.current_dir(root()).output().expect("Cargo");
    let messages = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files: Vec<PathBuf> = messages
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a message of Cargo"))
        .filter(|message| message["target"]["name"] == "fused_dora")
        .filter_map(|message| message["filenames"].as_array().cloned())
        .flatten()
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .collect();
    let ending = |end: &str| files.iter().find(|file| file.extension().is_some_and(|e| e == end));
    let file = |end| ending(end).unwrap_or_else(|| panic!("no {end} in {files:?}")).clone();
    [file("so"), file("a")]
});

/// Where the driver is: a folder in which the emulator's library goes by its names, and whether a
/// GPU's driver is to be used instead when the program runs.
fn driver(test: &str) -> (PathBuf, bool) {
    let choice = Choice::from_env().expect("a choice");
    let is_gpu = matches!(select(choice).expect("a device"), Selected::Cuda(_));
    let profile = env::current_exe().expect("the test's own path");
    let library = profile.with_file_name("libcuda_emulator.so");
    assert!(library.is_file(), "{} is missing", library.display());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ffi-{test}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.join(name)).expect("a link");
    }
    (folder, is_gpu)
}

/// The compiler of a variable, or its usual name.
fn compiler(variable: &str, usual: &str) -> Command {
    let mut command = Command::new(env::var_os(variable).unwrap_or_else(|| usual.into()));
    command.args(["-Wall", "-Wextra", "-Werror", "-I"]).arg(root().join("include"));
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Compiles a program, links it with the library, and runs it.
fn run(source: &str, library: &Path, test: &str) -> Output {
    let (driver, is_gpu) = driver(test);
    let program = driver.join("program");
    let mut compile = compiler("CC", "cc");
    compile.arg("-std=c11").arg("-I").arg(root().join("emulator/include"));
    compile.arg(root().join(source)).arg("-o").arg(&program);
    match library.extension().is_some_and(|extension| extension == "a") {
        true => compile.arg(library),
        false => compile.arg("-L").arg(library.parent().expect("a folder")).arg("-lfused_dora"),
    };
    compile.arg("-L").arg(&driver).args(["-lcuda", "-lm", "-lpthread", "-ldl"]);
    let compiled = compile.output().expect("a C compiler");
    assert!(compiled.status.success(), "{}", text(&compiled));
    let mut run = Command::new(&program);
    let mut folders = vec![library.parent().expect("a folder").to_owned()];
    if !is_gpu {
        folders.push(driver);
    }
    folders.extend(env::var_os("LD_LIBRARY_PATH").iter().flat_map(env::split_paths));
    run.env("LD_LIBRARY_PATH", env::join_paths(folders).expect("folders without a colon"));
    run.output().expect("the program")
}

/// `examples/raw.c` compares what it gets with its own numbers, and its loss falls.
#[test]
fn a_c_program_trains_a_layer() {
    for (library, test) in LIBRARIES.iter().zip(["dynamic", "static"]) {
        let output = run("examples/raw.c", library, test);
        let text = text(&output);
        assert!(output.status.success(), "{test}: {text}");
        assert!(text.contains("largest error of y"), "{test}: {text}");
    }
}

/// Each mistake gives its code and its text, and nothing is undefined that need not be.
#[test]
fn mistakes_are_told_to_c() {
    let output = run("tests/ffi/mistakes.c", &LIBRARIES[0], "mistakes");
    assert!(output.status.success(), "{}", text(&output));
}

/// The header is C11 and C++ by itself, where there is a C++ compiler.
#[test]
fn the_header_stands_alone() {
    let header = root().join("include/fused_dora.h");
    let check = |mut compiler: Command, language: &str, standard: &str| {
        compiler.args(["-fsyntax-only", "-x", language, standard]).arg(&header);
        compiler.output()
    };
    let c = check(compiler("CC", "cc"), "c", "-std=c11").expect("a C compiler");
    assert!(c.status.success(), "{}", text(&c));
    match check(compiler("CXX", "c++"), "c++", "-std=c++17") {
        Ok(cpp) => assert!(cpp.status.success(), "{}", text(&cpp)),
        Err(error) => println!("no C++ compiler ({error}): only C was tested"),
    }
}
