//! Running Cargo, one announced and timed step after another.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;

/// The steps of one command, and how long each took.
pub(crate) struct Steps {
    rows: Vec<(String, Duration)>,
    start: Instant,
}

impl Steps {
    /// Runs a command's steps, and prints their times at the end, whether they succeed or not.
    pub(crate) fn run(work: impl FnOnce(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut steps = Self { rows: Vec::new(), start: Instant::now() };
        let result = work(&mut steps);
        steps.print();
        result
    }

    /// Announces, runs and times one step.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        println!("==> {name}");
        let start = Instant::now();
        let result = work();
        self.rows.push((name.to_owned(), start.elapsed()));
        result
    }

    /// Since the first step began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn print(&self) {
        let width = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        println!("==> seconds");
        for (name, duration) in &self.rows {
            println!("{name:<width$}  {:>8.1}", duration.as_secs_f64());
        }
        println!("{:<width$}  {:>8.1}", "all", self.elapsed().as_secs_f64());
    }
}

/// The folder that Cargo builds into, which holds this very program.
pub(crate) fn target_folder() -> PathBuf {
    env::current_exe()
        .ok()
        .and_then(|program| {
            let marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
            program.ancestors().find(marked).map(Path::to_owned)
        })
        .unwrap_or_else(|| workspace().join("target"))
}

pub(crate) fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map(Path::to_owned).unwrap_or(package)
}

/// A Cargo command in the workspace, by the Cargo that runs this program.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace());
    command
}

pub(crate) fn run(what: &str, command: &mut Command) -> Result<(), Failure> {
    let status = command.stdin(Stdio::null()).status().map_err(|error| {
        let program = Path::new(command.get_program()).display();
        Failure::new(format!("{what}: {program} could not be run: {error}"))
    })?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words: Vec<_> = [program].into_iter().chain(command.get_args()).collect();
    let words: Vec<_> = words.into_iter().map(OsStr::to_string_lossy).collect();
    Err(Failure::with_code(code, format!("{what} failed ({status}): {}", words.join(" "))))
}
