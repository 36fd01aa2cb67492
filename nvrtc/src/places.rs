//! Where NVRTC may be, and where the user's caches are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The environment variable that names an NVRTC library, or the folder that holds one.
pub const ENV_LIBRARY: &str = "FUSED_DORA_NVRTC";

/// File names of NVRTC, newest first. CUDA 11.2 to 11.8 share one.
pub(crate) const LIBRARY_NAMES: [&str; 5] =
    ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so", "libnvrtc.dylib"];

/// Where a CUDA toolkit keeps its libraries, below its root.
const TOOLKIT_FOLDERS: [&str; 3] = ["lib64", "lib", "targets/x86_64-linux/lib"];

/// Where NVIDIA's Python wheels keep NVRTC, below `site-packages`.
pub const WHEEL_FOLDERS: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];

/// Reads an environment variable.
type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// fused-dora's folder in the user's cache folder: `$XDG_CACHE_HOME/fused-dora` or
/// `~/.cache/fused-dora`, on Windows `%LOCALAPPDATA%\fused-dora`, on macOS
/// `~/Library/Caches/fused-dora`. `None` if the variables that name it are not set.
pub fn user_cache() -> Option<PathBuf> {
    user_cache_by(&|name| std::env::var_os(name))
}

fn user_cache_by(variables: Variables<'_>) -> Option<PathBuf> {
    // A relative path is no place that every program finds.
    let folder = |name| variables(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
    };
    caches.map(|caches| caches.join("fused-dora"))
}

/// The folders where `cargo xtask nvrtc` may have unpacked NVIDIA's wheel: in the user's cache
/// folder, which every program of the user finds, and in the target folder above `below_target`.
/// They need not exist.
pub fn fetched_folders(below_target: &Path) -> Vec<PathBuf> {
    let above = below_target.ancestors();
    let target = above.filter(|folder| folder.join("CACHEDIR.TAG").is_file());
    user_cache().into_iter().chain(target.map(Path::to_owned)).map(|f| f.join("nvrtc")).collect()
}

/// Every library file worth trying, in order.
pub(crate) fn candidates(below_target: &Path) -> Vec<PathBuf> {
    candidates_by(&|name| std::env::var_os(name), &fetched_folders(below_target))
}

fn candidates_by(variables: Variables<'_>, fetched: &[PathBuf]) -> Vec<PathBuf> {
    let variable = |name| variables(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = variable(ENV_LIBRARY) {
        // The user named it: no other library may stand in for it.
        let named = libraries(&path);
        return if named.is_empty() { vec![path] } else { named };
    }
    let toolkits = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(variable);
    let folders = toolkits.flat_map(|root| TOOLKIT_FOLDERS.map(|below| root.join(below)));
    let mut found: Vec<_> = folders.flat_map(|folder| libraries(&folder)).collect();
    found.extend(LIBRARY_NAMES.map(PathBuf::from)); // on the loader's path
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable);
    let mut wheels = fetched.to_vec();
    for lib in environments.map(|root| root.join("lib")) {
        let pythons = std::fs::read_dir(lib).into_iter().flatten().flatten();
        wheels.splice(0..0, pythons.map(|python| python.path().join("site-packages")));
    }
    let folders = wheels.iter().flat_map(|wheel| WHEEL_FOLDERS.map(|below| wheel.join(below)));
    found.extend(folders.flat_map(|folder| libraries(&folder)));
    found
}

/// The NVRTC libraries in a folder, newest first.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    LIBRARY_NAMES.iter().map(|name| folder.join(name)).filter(|file| file.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables<'a>(set: &'a [(&'a str, &'a Path)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
    }

    /// A library in a folder, which is created.
    fn library(folder: PathBuf, name: &str) -> PathBuf {
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(name);
        std::fs::write(&file, "").unwrap();
        file
    }

    #[test]
    fn a_named_library_is_the_only_candidate() {
        let folder = tempfile::tempdir().unwrap();
        let named = library(folder.path().join("named"), "libnvrtc.so.12");
        let fetched = [folder.path().join("fetched")];
        library(fetched[0].join(WHEEL_FOLDERS[0]), "libnvrtc.so.13");
        let parent = named.parent().unwrap().to_owned();
        let in_folder = [(ENV_LIBRARY, parent.as_path())];
        assert_eq!(candidates_by(&variables(&in_folder), &fetched), [named]);
        let missing = folder.path().join("missing/libnvrtc.so");
        let found = candidates_by(&variables(&[(ENV_LIBRARY, &missing)]), &fetched);
        assert_eq!(found, [missing]);
    }

    #[test]
    fn toolkits_come_first_and_fetched_copies_last() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let toolkit = library(root.join("cuda/lib64"), "libnvrtc.so.12");
        let packages = root.join("venv/lib/python3/site-packages");
        let wheel = library(packages.join(WHEEL_FOLDERS[1]), "libnvrtc.so.12");
        let fetched = root.join("fetched");
        let copy = library(fetched.join(WHEEL_FOLDERS[0]), "libnvrtc.so.13");
        let set = [("CUDA_PATH", root.join("cuda")), ("VIRTUAL_ENV", root.join("venv"))];
        let set = set.each_ref().map(|(name, path)| (*name, path.as_path()));
        let found = candidates_by(&variables(&set), &[fetched]);
        assert_eq!(found[0], toolkit);
        assert_eq!(found[1..1 + LIBRARY_NAMES.len()], LIBRARY_NAMES.map(PathBuf::from));
        assert_eq!(found[1 + LIBRARY_NAMES.len()..], [wheel, copy]);
    }

    #[test]
    fn the_target_folder_is_found_from_below() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("build-output");
        let out = target.join("debug/build/fused-dora/out");
        std::fs::create_dir_all(&out).unwrap();
        std::fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(fetched_folders(&out).last(), Some(&target.join("nvrtc")));
    }

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn the_user_cache_follows_the_environment() {
        let home = ("HOME", Path::new("/home/ada"));
        let user_cache = |set: &[(&str, &Path)]| user_cache_by(&variables(set));
        assert_eq!(user_cache(&[home]), Some("/home/ada/.cache/fused-dora".into()));
        let xdg = ("XDG_CACHE_HOME", Path::new("/cache"));
        assert_eq!(user_cache(&[home, xdg]), Some("/cache/fused-dora".into()));
        let relative = ("XDG_CACHE_HOME", Path::new("cache"));
        assert_eq!(user_cache(&[home, relative]), Some("/home/ada/.cache/fused-dora".into()));
        assert_eq!(user_cache(&[]), None);
    }
}
