//! Finding and opening the libraries: the CUDA driver's and the emulator's.

use std::cmp::Reverse;
use std::env;
use std::error::Error as _;
use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::Counters;
use crate::driver::Status;
use crate::driver::extension::{INTERFACE, LaunchFacts, Settings};

use super::{Cuda, SelectError};

/// The names of the CUDA driver's library.
const DRIVER_NAMES: &[&str] =
    if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
/// The name under which a program opens the driver first: the emulator's soname.
const SONAME: &str = "libcuda.so";
/// The file name of the emulator's library.
const FILE_NAME: &str = "libcuda_emulator.so";
/// The environment variable with the path of the emulator's library.
const VARIABLE: &str = "CUDA_EMULATOR_LIBRARY";
/// The function that a driver does not have, and the emulator's library does.
const MARK: &str = "cudaEmulatorInterface";

/// The functions of the emulator's library. The library stays open for the life of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Functions {
    pub(super) init: unsafe extern "C" fn(u32) -> Status,
    pub(super) get_counters: unsafe extern "C" fn(*mut Counters) -> Status,
    pub(super) get_launch:
        unsafe extern "C" fn(usize, *mut LaunchFacts, *mut c_char, usize) -> usize,
    pub(super) reset_counters: unsafe extern "C" fn() -> Status,
    pub(super) last_fault: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    pub(super) last_error: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    pub(super) device_name: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    pub(super) reset: unsafe extern "C" fn() -> Status,
    pub(super) set_config: unsafe extern "C" fn(*const Settings) -> Status,
    pub(super) set_devices: unsafe extern "C" fn(usize) -> Status,
}

/// The dynamic loader's own words, which the error's message leaves to its source.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Looks a function up.
///
/// # Safety
/// The library's function of that name has the type `F`.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller's promise.
    let symbol = unsafe { library.get::<F>(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|error| reason(&error))
}

/// Opens the CUDA driver that has a device.
pub(super) fn cuda() -> Result<Cuda, SelectError> {
    let mut tried = Vec::new();
    for &name in DRIVER_NAMES {
        // SAFETY: loading the CUDA driver runs its initialisers, which is what the program is about
        // to do anyway.
        match unsafe { Library::new(name) } {
            Err(error) => tried.push((name.to_owned(), reason(&error))),
            Ok(library) if is_emulator(&library) => {
                tried.push((name.to_owned(), "it is the emulator's library".to_owned()));
            }
            Ok(library) => {
                let probed = probe(&library, name);
                if probed.is_ok() {
                    // The driver does not like to be unloaded, and is about to be used.
                    std::mem::forget(library);
                }
                return probed;
            }
        }
    }
    Err(SelectError::NoDriver { tried })
}

/// Fails where the process has a driver loaded that is not the emulator.
pub(super) fn check_no_other_driver() -> Result<(), SelectError> {
    let foreign = |name: &&&str| loaded(name).is_some_and(|library| !is_emulator(&library));
    match DRIVER_NAMES.iter().find(foreign) {
        Some(&name) => Err(SelectError::OtherDriverLoaded { library: name.to_owned() }),
        None => Ok(()),
    }
}

/// Asks a driver for its devices.
fn probe(library: &Library, name: &str) -> Result<Cuda, SelectError> {
    let no_device = |reason: String| SelectError::NoDevice { library: name.to_owned(), reason };
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    // SAFETY: these are the forms that the driver API documents.
    let (init, get_count, get_name) = unsafe {
        (
            function::<Init>(library, "cuInit").map_err(no_device)?,
            function::<Count>(library, "cuDeviceGetCount").map_err(no_device)?,
            function::<Name>(library, "cuDeviceGetName").map_err(no_device)?,
        )
    };
    let check = |call: &str, code: c_int| match code {
        0 => Ok(()),
        code => {
            let known = u32::try_from(code).ok().and_then(Status::from_code);
            let meaning = known.map_or("an unknown error", Status::name);
            Err(no_device(format!("{call} returned {code} ({meaning})")))
        }
    };
    let (mut count, mut text) = (0, [0u8; 128]);
    // SAFETY: the results have places, and the name a buffer of the length that is passed.
    unsafe {
        check("cuInit", init(0))?;
        check("cuDeviceGetCount", get_count(&mut count))?;
        if count < 1 {
            return Err(no_device("cuDeviceGetCount found none".to_owned()));
        }
        check("cuDeviceGetName", get_name(text.as_mut_ptr().cast(), text.len() as c_int, 0))?;
    }
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    let device = String::from_utf8_lossy(&text[..end]).into_owned();
    Ok(Cuda { library: name.to_owned(), devices: count as usize, device })
}

fn is_emulator(library: &Library) -> bool {
    // SAFETY: the symbol is not called.
    unsafe { library.get::<extern "C" fn() -> u64>(MARK.as_bytes()) }.is_ok()
}

/// Finds the emulator's library and opens it under the driver's name.
pub(super) fn emulator() -> Result<Functions, SelectError> {
    if let Some(library) = loaded(SONAME).filter(is_emulator) {
        return adopt(library, Path::new(SONAME));
    }
    let searched = candidates();
    let Some(path) = searched.iter().find(|path| path.is_file()) else {
        // SAFETY: as in `cuda`; it is kept only if it is the emulator's library.
        if let Some(library) = unsafe { Library::new(SONAME) }.ok().filter(is_emulator) {
            return adopt(library, Path::new(SONAME));
        }
        let cure = format!(
            "build the package cuda-emulator for this profile, or set {VARIABLE} to its library"
        );
        return Err(SelectError::LibraryNotFound { searched, cure });
    };
    let unusable = |reason| SelectError::LibraryUnusable { path: path.clone(), reason };
    let path = path.canonicalize().map_err(|error| unusable(error.to_string()))?;
    let library = open(&path).map_err(|error| unusable(reason(&error)))?;
    let functions = adopt(library, &path)?;
    // What other code will do: it must end at the library just opened.
    if !loaded(SONAME).is_some_and(|library| is_emulator(&library)) {
        let reason = format!("the dynamic loader does not take it for {SONAME}");
        return Err(SelectError::LibraryUnusable { path, reason });
    }
    Ok(functions)
}

/// Takes the functions of an emulator's library, which then stays open.
fn adopt(library: Library, path: &Path) -> Result<Functions, SelectError> {
    let unusable = |reason| SelectError::LibraryUnusable { path: path.to_owned(), reason };
    // SAFETY: the library is the emulator's, and its functions have these forms where its interface
    // number is ours.
    let functions = unsafe {
        let interface = function::<extern "C" fn() -> u64>(&library, MARK).map_err(unusable)?();
        if interface != INTERFACE {
            let reason = "it was built from another version of the emulator: rebuild it";
            return Err(unusable(reason.to_owned()));
        }
        Functions {
            init: function(&library, "cuInit").map_err(unusable)?,
            get_counters: function(&library, "cudaEmulatorGetCounters").map_err(unusable)?,
            get_launch: function(&library, "cudaEmulatorGetLaunch").map_err(unusable)?,
            reset_counters: function(&library, "cudaEmulatorResetCounters").map_err(unusable)?,
            last_fault: function(&library, "cudaEmulatorLastFault").map_err(unusable)?,
            last_error: function(&library, "cudaEmulatorLastError").map_err(unusable)?,
            device_name: function(&library, "cudaEmulatorDeviceName").map_err(unusable)?,
            reset: function(&library, "cudaEmulatorReset").map_err(unusable)?,
            set_config: function(&library, "cudaEmulatorSetConfig").map_err(unusable)?,
            set_devices: function(&library, "cudaEmulatorSetDevices").map_err(unusable)?,
        }
    };
    std::mem::forget(library);
    Ok(functions)
}

/// The places where the emulator's library may be: where the variable says, else around the running
/// program, where cargo puts it and may have left an older one, else where this crate was built.
fn candidates() -> Vec<PathBuf> {
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return vec![PathBuf::from(path)];
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    let program = env::current_exe().and_then(|path| path.canonicalize());
    if let Some(folder) = program.as_deref().ok().and_then(Path::parent) {
        folders.push(folder.to_owned());
        folders.push(folder.join("deps"));
        if let Some(above) = folder.parent() {
            folders.push(above.join("deps"));
            folders.push(above.to_owned());
        }
    }
    let mut around: Vec<PathBuf> = folders.iter().map(|folder| folder.join(FILE_NAME)).collect();
    newest_first(&mut around);
    // Cargo's folder for build scripts lies three levels below that of the profile.
    let built = Path::new(env!("OUT_DIR")).ancestors().nth(3);
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in around.into_iter().chain(built.map(|folder| folder.join("deps").join(FILE_NAME))) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// Sorts files by their age, those that there are not to the end.
fn newest_first(paths: &mut [PathBuf]) {
    let written = |path: &PathBuf| path.metadata().and_then(|found| found.modified()).ok();
    paths.sort_by_cached_key(|path| Reverse(written(path)));
}

/// Opens the emulator's library for all later users of its soname.
#[cfg(unix)]
fn open(path: &Path) -> Result<Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library is this crate's own, whose initialisers are those of Rust.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(Into::into)
}

/// The library of that name, if the process has loaded it.
#[cfg(unix)]
fn loaded(name: &str) -> Option<Library> {
    use libloading::os::unix::{Library, RTLD_NOW};
    /// Do not load what is not loaded.
    const RTLD_NOLOAD: c_int = if cfg!(target_os = "linux") { 0x4 } else { 0x10 };
    // SAFETY: nothing is loaded, so nothing runs.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD) }.ok().map(Into::into)
}

/// Names of loaded libraries work in another way here: the emulator serves Unix.
#[cfg(not(unix))]
fn open(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: the library is this crate's own, whose initialisers are those of Rust.
    unsafe { Library::new(path) }
}

#[cfg(not(unix))]
fn loaded(_name: &str) -> Option<Library> {
    None
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_newest_library_comes_first() {
        let folder = env::temp_dir().join(format!("cuda-emulator-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let [missing, older, newer] = ["missing", "older", "newer"].map(|name| folder.join(name));
        for (path, age) in [(&older, 60), (&newer, 0)] {
            let file = File::create(path).expect("a file");
            let time = SystemTime::now() - Duration::from_secs(age);
            file.set_modified(time).expect("a time");
        }
        let mut paths = [missing.clone(), older.clone(), newer.clone()];
        newest_first(&mut paths);
        assert_eq!(paths, [newer, older, missing]);
        std::fs::remove_dir_all(folder).expect("the folder is removed");
    }
}
