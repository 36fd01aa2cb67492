//! A C program that knows nothing of the emulator: it includes `cuda.h`, links with `-lcuda`, and
//! finds the emulator's library under the driver's name.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The library that Cargo built next to this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let library = test.with_file_name("libcuda_emulator.so");
    assert!(library.is_file(), "{} is missing", library.display());
    library
}

/// A folder in which the library goes by the names of the driver.
fn folder(test: &str) -> PathBuf {
    let name = format!("{test}-{}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(library(), folder.join(name)).expect("a link");
    }
    folder
}

/// Compiles the program with the headers of a folder, and runs it.
fn compile_and_run(test: &str, standard: &str, headers: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder(test);
    let program = folder.join("program");
    let compiled = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", standard])
        .arg("-I")
        .arg(headers)
        .arg(root.join("tests/driver/program.c"))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(&folder)
        .arg("-lcuda")
        .output()
        .expect("a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&program).env("LD_LIBRARY_PATH", &folder).output().expect("the program");
    let text = [&ran.stdout[..], &ran.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(ran.status.success(), "{text}");
    assert!(text.contains("all as it should be"), "{text}");
    std::fs::remove_dir_all(folder).expect("the folder");
}

#[test]
fn a_c_program_runs_on_the_emulated_device() {
    let headers = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    compile_and_run("own_header", "-std=c99", &headers);
}

/// Where there is a CUDA toolkit, its own header works as well.
#[test]
fn a_c_program_with_the_header_of_the_toolkit() {
    let variables = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];
    let roots = variables.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let mut folders = roots.chain(["/usr/local/cuda".into()]).map(|root| root.join("include"));
    match folders.find(|folder| folder.join("cuda.h").is_file()) {
        Some(headers) => compile_and_run("toolkit_header", "-std=gnu11", &headers),
        None => println!("no CUDA toolkit: only the emulator's own header was tested"),
    }
}
