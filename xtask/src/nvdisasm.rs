//! Finds nvdisasm, NVIDIA's disassembler, or fetches NVIDIA's Python wheel of it into the target
//! folder.

use std::path::Path;

use fused_dora_cuda_tools::nvdisasm::{ENV_PROGRAM, NAME, Nvdisasm, WHEEL_FOLDER};

use crate::Failure;
use crate::steps::target_folder;
use crate::wheel;

const PACKAGE: &str = "nvidia-cuda-nvdisasm>=13,<14";

/// Makes sure that the limits will find an nvdisasm.
pub(crate) fn provide() -> Result<(), Failure> {
    let fetched = target_folder().join("nvdisasm");
    if std::env::var_os(ENV_PROGRAM).is_none_or(|value| value.is_empty())
        && Nvdisasm::find(Some(&fetched)).is_err()
    {
        println!("no nvdisasm on this machine");
        let otherwise = format!("install the CUDA toolkit or set {ENV_PROGRAM} to nvdisasm");
        wheel::fetch(PACKAGE, &fetched, &otherwise)?;
        make_executable(&fetched.join(WHEEL_FOLDER).join(NAME))?;
    }
    let found = Nvdisasm::find(Some(&fetched)).map_err(Failure::new)?;
    println!("nvdisasm {}: {}", found.version, found.path.display());
    Ok(())
}

/// Python's zipfile leaves the permissions of what it unpacks behind.
fn make_executable(program: &Path) -> Result<(), Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).map_err(
            |error| Failure::new(format!("cannot make {} executable: {error}", program.display())),
        )?;
    }
    Ok(())
}
