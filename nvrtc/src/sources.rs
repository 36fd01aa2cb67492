//! Reading the sources of a kernels folder.

use std::fs;
use std::io;
use std::path::Path;

/// All files below `folder` with this extension as `(name, text)`, in name order.
///
/// A name is the path below `folder`, with `/` between its parts, as `#include` has it. For the
/// extension `cuh` these are the [`headers`](crate::Source::headers) of every kernel in the folder.
///
/// # Errors
/// The I/O error, with the path that it is about.
pub fn sources(folder: &Path, extension: &str) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    collect(folder, "", extension, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(
    folder: &Path,
    prefix: &str,
    extension: &str,
    found: &mut Vec<(String, String)>,
) -> io::Result<()> {
    let about = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
    };
    for entry in fs::read_dir(folder).map_err(|error| about(folder, error))? {
        let path = entry.map_err(|error| about(folder, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_dir() {
            collect(&path, &format!("{prefix}{name}/"), extension, found)?;
        } else if path.extension().is_some_and(|known| known == extension) {
            let text = fs::read_to_string(&path).map_err(|error| about(&path, error))?;
            found.push((format!("{prefix}{name}"), text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_and_sorted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("common/tile")).unwrap();
        for name in ["op.cu", "common/types.cuh", "common/tile/mma.cuh", "a.cuh", "notes.txt"] {
            fs::write(root.join(name), name).unwrap();
        }
        let pairs = |names: &[&str]| {
            names.iter().map(|name| (name.to_string(), name.to_string())).collect::<Vec<_>>()
        };
        let headers = ["a.cuh", "common/tile/mma.cuh", "common/types.cuh"];
        assert_eq!(sources(root, "cuh").unwrap(), pairs(&headers));
        assert_eq!(sources(root, "cu").unwrap(), pairs(&["op.cu"]));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("kernels");
        let error = sources(&missing, "cu").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
    }
}
