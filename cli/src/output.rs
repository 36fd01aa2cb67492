//! What is written: next to its place first, and moved there when it is complete and on the disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fused_dora::peft::CheckpointError;
use fused_dora::peft::files::{file_beside, folder_beside, move_folder, parent, sync_folder};
use indicatif::ProgressBar;
use tempfile::{NamedTempFile, TempDir};

use crate::error::Failure;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether SIGINT or SIGTERM came.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Lets the work stop at the next chunk when a signal comes, and remove what it has written; where
/// that cannot be had, the process ends at once and leaves the unfinished files.
pub fn watch_signals() {
    drop(ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)));
}

/// Refuses a target that is there already, or that is read.
pub fn check_target(
    option: &'static str,
    target: &Path,
    inputs: &[(&'static str, &Path)],
) -> Result<(), Failure> {
    let path = target.to_owned();
    let parent = fused_dora::peft::files::parent(target).canonicalize();
    for real in [target.canonicalize(), parent].into_iter().flatten() {
        for (input, source) in inputs {
            if source.canonicalize().is_ok_and(|source| real.starts_with(source)) {
                return Err(Failure::IsInput { option, path, input });
            }
        }
    }
    match target.symlink_metadata() {
        Ok(_) => Err(Failure::Exists { option, path }),
        Err(_) => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Failure + '_ {
    |source| CheckpointError::Write { path: path.to_owned(), source }.into()
}

/// A file or a folder that is being written.
pub struct Output {
    path: PathBuf,
    unfinished: Unfinished,
}

enum Unfinished {
    File(NamedTempFile),
    Folder(TempDir),
}

impl Output {
    pub fn new(path: &Path, is_folder: bool) -> Result<Self, Failure> {
        let unfinished = match is_folder {
            true => folder_beside(path).map(Unfinished::Folder),
            false => file_beside(path).map(Unfinished::File),
        };
        Ok(Self { path: path.to_owned(), unfinished: unfinished.map_err(failed(path))? })
    }

    /// Where it is until it is finished.
    pub fn place(&self) -> &Path {
        match &self.unfinished {
            Unfinished::Folder(folder) => folder.path(),
            Unfinished::File(file) => file.path(),
        }
    }

    /// The file of a name in the folder, or the file itself.
    pub fn sink<'a>(&self, name: &Path, progress: &'a ProgressBar) -> Result<Sink<'a>, Failure> {
        let (path, file) = match &self.unfinished {
            Unfinished::Folder(folder) => {
                (self.path.join(name), File::create_new(folder.path().join(name)))
            }
            Unfinished::File(file) => (self.path.clone(), file.as_file().try_clone()),
        };
        let file = file.map_err(failed(&path))?;
        Ok(Sink { path, file, progress })
    }

    /// Copies a file into the folder.
    pub fn copy(&self, source: &Path, name: &Path) -> Result<(), Failure> {
        self.fill(name, |target| fs::copy(source, target).map(drop))
    }

    /// Writes a text into a file of the folder.
    pub fn text(&self, text: &str, name: &Path) -> Result<(), Failure> {
        self.fill(name, |target| fs::write(target, text))
    }

    fn fill(
        &self,
        name: &Path,
        fill: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let Unfinished::Folder(folder) = &self.unfinished else { return Ok(()) };
        let target = folder.path().join(name);
        let write = || {
            if is_interrupted() {
                return Err(std::io::Error::other("interrupted"));
            }
            fs::create_dir_all(parent(&target))?;
            fill(&target)?;
            File::open(&target)?.sync_all()
        };
        write().map_err(failed(&self.path.join(name)))
    }

    /// Moves what was written to its place.
    pub fn finish(self) -> Result<(), Failure> {
        let Self { path, unfinished } = self;
        let finish = || match unfinished {
            Unfinished::Folder(folder) => {
                sync_folder(folder.path())?;
                move_folder(folder, &path)
            }
            Unfinished::File(file) => {
                file.persist_noclobber(&path)?;
                sync_folder(parent(&path))
            }
        };
        finish().map_err(failed(&path))
    }
}

/// A file that is being written, from its start to its end.
pub struct Sink<'a> {
    path: PathBuf,
    file: File,
    progress: &'a ProgressBar,
}

impl Sink<'_> {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let result = match is_interrupted() {
            true => Err(std::io::Error::other("interrupted")),
            false => self.file.write_all(bytes),
        };
        self.progress.inc(bytes.len() as u64);
        result.map_err(failed(&self.path))
    }

    /// Waits until the disk has it.
    pub fn finish(self) -> Result<(), Failure> {
        self.file.sync_all().map_err(failed(&self.path))
    }
}
