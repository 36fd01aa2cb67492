//! Files that appear at their place when they are complete, or not at all.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

/// What the names of unfinished files and folders end in.
const SUFFIX: &str = ".partial";

/// The folder that a path's last part lies in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().display())
}

/// A file next to its place, to be persisted there; gone if it is dropped before.
pub fn file_beside(path: &Path) -> io::Result<NamedTempFile> {
    let prefix = prefix(path);
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    #[cfg(unix)]
    {
        // As of any new file; the process's mask applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(parent(path))
}

/// A folder next to its place, to be renamed; gone if it is dropped before.
pub fn folder_beside(path: &Path) -> io::Result<TempDir> {
    let prefix = prefix(path);
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o777));
    }
    builder.tempdir_in(parent(path))
}

/// Moves a finished folder to its place, where nothing but an empty folder may be.
pub fn move_folder(folder: TempDir, path: &Path) -> io::Result<()> {
    let from: PathBuf = folder.keep();
    std::fs::rename(&from, path).inspect_err(|_| drop(std::fs::remove_dir_all(&from)))?;
    sync_folder(parent(path))
}

/// Makes the names in a folder last through a power failure, where the system can.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    match cfg!(unix) {
        true => File::open(folder)?.sync_all(),
        false => Ok(()),
    }
}
