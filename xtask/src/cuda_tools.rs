//! Finds NVIDIA's command-line tools, or fetches NVIDIA's Python wheels of them into the target
//! folder.

use std::path::Path;

use fused_dora_cuda_tools::{Kind, NVDISASM, PTXAS};

use crate::Failure;
use crate::steps::target_folder;
use crate::wheel;

/// Makes sure that the limits will find ptxas and nvdisasm.
pub(crate) fn provide() -> Result<(), Failure> {
    [PTXAS, NVDISASM].iter().try_for_each(provide_one)
}

fn provide_one(kind: &Kind) -> Result<(), Failure> {
    let Kind { name, variable, wheel, .. } = *kind;
    let target = target_folder();
    if std::env::var_os(variable).is_none_or(|value| value.is_empty())
        && kind.find(&target).is_err()
    {
        println!("no {name} on this machine");
        let otherwise = format!("install the CUDA toolkit or set {variable} to {name}");
        wheel::fetch(wheel, &kind.folder(&target), &otherwise)?;
        make_executable(&kind.fetched(&target))?;
    }
    let found = kind.find(&target).map_err(Failure::new)?;
    println!("{name} {}: {}", found.version, found.path.display());
    Ok(())
}

/// Python's zipfile leaves the permissions of what it unpacks behind.
pub(crate) fn make_executable(program: &Path) -> Result<(), Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).map_err(
            |error| Failure::new(format!("cannot make {} executable: {error}", program.display())),
        )?;
    }
    Ok(())
}
