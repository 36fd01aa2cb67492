//! The C API: its header and statuses, a C program that trains a layer, one that makes mistakes, and
//! one on packed weights.

#![cfg(unix)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use cuda_emulator::client::{Choice, Selected, select};
use regex::Regex;

/// Set to 1 to write the header anew.
const BLESS: &str = "FUSED_DORA_BLESS";

/// The package's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The header that the sources declare.
fn generated() -> String {
    let config =
        cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("a configuration");
    let files = ["src/status.rs", "src/types.rs", "src/lib.rs"];
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = files.iter().fold(builder, |builder, file| builder.with_src(root().join(file)));
    let mut header = Vec::new();
    builder.generate().expect("declarations").write(&mut header);
    String::from_utf8(header).expect("text")
}

#[test]
fn the_header_is_current() {
    let path = root().join("include/fused_dora.h");
    let generated = generated();
    if env::var_os(BLESS).is_some_and(|value| value == "1") {
        fs::write(&path, generated).expect("the header");
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{} is not what src/lib.rs declares: {BLESS}=1 cargo test -p fused-dora-capi",
        path.display()
    );
}

/// Each error of the crate has the status of its name. The crate's errors may grow, so that the
/// compiler does not notice one without a status.
#[test]
fn each_error_has_a_status() {
    let source = read("../src/error.rs");
    let (_, body) = source.split_once("pub enum Error {").expect("the errors");
    let (body, _) = body.split_once("\n}").expect("their end");
    let variant = Regex::new(r"(?m)^    ([A-Z]\w*)[ ,]").expect("a pattern");
    let names: Vec<&str> = variant
        .captures_iter(body)
        .map(|found| found.get(1))
        .map(|name| name.expect("a name").as_str())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let statuses = read("src/status.rs");
    for name in names {
        let arm = Regex::new(&format!(r"Error::{name}\b[^=]*=> Self::{name},")).expect("a pattern");
        assert!(arm.is_match(&statuses), "Error::{name} has no status");
    }
}

/// The libraries for C, shared and static, built by the command in README.md.
static LIBRARIES: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target's folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "-p", "fused-dora-capi"]);
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

/// A folder with the emulator's library under the driver's names, and whether the program is to run
/// with a GPU's driver instead.
fn driver(test: &str) -> (PathBuf, bool) {
    let choice = Choice::from_env().expect("a choice");
    let is_gpu = matches!(select(choice).expect("a device"), Selected::Cuda(_));
    let profile = env::current_exe().expect("the test's own path");
    let library = profile.with_file_name("libcuda_emulator.so");
    assert!(library.is_file(), "{} is missing", library.display());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-{test}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.join(name)).expect("a link");
    }
    (folder, is_gpu)
}

/// The compiler that the variable names, or the usual one.
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
    compile.arg("-std=c11").arg("-I").arg(root().join("../emulator/include"));
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

/// `examples/raw.c` compares y with its own sums, and its loss falls.
#[test]
fn a_c_program_trains_a_layer() {
    for (library, test) in LIBRARIES.iter().zip(["dynamic", "static"]) {
        let output = run("examples/raw.c", library, test);
        let text = text(&output);
        assert!(output.status.success(), "{test}: {text}");
        assert!(text.contains("largest error of y"), "{test}: {text}");
    }
}

/// Each mistake returns its status and its text.
#[test]
fn each_mistake_has_its_status_and_text() {
    let output = run("tests/interface/mistakes.c", &LIBRARIES[0], "mistakes");
    assert!(output.status.success(), "{}", text(&output));
}

/// All ops on packed weights, and each mistake with one.
#[test]
fn packed_weights_give_the_bits_of_dense_ones() {
    let output = run("tests/interface/packed.c", &LIBRARIES[0], "packed");
    assert!(output.status.success(), "{}", text(&output));
}

/// The header compiles by itself as C11, and as C++17 if there is a C++ compiler.
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
