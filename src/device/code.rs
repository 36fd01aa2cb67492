//! The compiled kernels as they are in the program, and the modules that are made of them.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::{CudaContext, CudaModule, DriverError, sys};
use cudarc::nvrtc::Ptx;
use flate2::read::ZlibDecoder;

use super::launch::Kernel;
use crate::dtype::{Dtype, Variant};
use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What the build script made of a kernel file.
struct Embedded {
    op: &'static str,
    arch: &'static str,
    /// Each entry point, whether it is for a packed W, and its PTX, compressed with zlib, if the build
    /// had an NVRTC.
    kernels: Option<&'static [(&'static str, bool, &'static [u8])]>,
    /// Machine code of all kernels of a dtype (all dtypes if that is empty), whether it is for a packed
    /// W, for a compute capability such as 86, compressed with zlib; with the feature `cubins` only.
    cubins: &'static [(&'static str, bool, u32, &'static [u8])],
}

/// The kernels of one file.
#[derive(Debug)]
pub(super) struct KernelFile {
    pub(super) op: &'static str,
    pub(super) arch: &'static str,
    code: Code,
}

type Modules = Mutex<HashMap<(&'static str, bool), Option<Arc<CudaModule>>>>;

#[derive(Debug)]
enum Code {
    /// A module for each kernel, or for a dtype's machine code: by the file's index, with the
    /// modules of machine code that were loaded (or not: `None`).
    Embedded(usize, Modules),
    /// One module of all kernels, and the PTX to make it.
    Replaced(String, OnceLock<Arc<CudaModule>>),
}

/// Whether the build had an NVRTC.
pub(super) fn are_built() -> bool {
    FILES.iter().all(|file| file.kernels.is_some())
}

impl KernelFile {
    /// All files, some with other PTX or none: see [`Kernels::load_with`](super::Kernels::load_with).
    pub(super) fn all(replaced: &[(&str, Option<&str>)]) -> Result<Vec<Self>> {
        let of_file = |(index, &Embedded { op, arch, kernels, .. }): (usize, &Embedded)| {
            let name = format!("{op}/{arch}.cu");
            let code = match replaced.iter().find(|(file, _)| *file == name) {
                Some((_, ptx)) => ptx.map(|ptx| Code::Replaced(ptx.to_owned(), OnceLock::new())),
                None => kernels.map(|_| Code::Embedded(index, Mutex::default())),
            };
            Ok(Self { op, arch, code: code.ok_or(Error::KernelsNotBuilt)? })
        };
        FILES.iter().enumerate().map(of_file).collect()
    }

    /// Any module of the file, which shows whether the driver takes its code.
    pub(super) fn probe(&self, context: &Arc<CudaContext>, capability: u32) -> Result<()> {
        match &self.code {
            Code::Embedded(index, modules) => {
                let file = &FILES[*index];
                if file.machine_code(context, capability, Dtype::F32.into(), modules).is_some() {
                    return Ok(());
                }
                let first = file.kernels.and_then(|kernels| kernels.first());
                let (_, _, ptx) = first.ok_or(Error::KernelsNotBuilt)?;
                load_image(context, self.op, &text(ptx)).map(drop)
            }
            Code::Replaced(ptx, module) => self.replaced(context, ptx, module).map(drop),
        }
    }

    /// A module with a kernel: of machine code, if the program has some that the device runs, else of
    /// PTX, which the driver translates.
    pub(super) fn module(
        &self,
        context: &Arc<CudaContext>,
        capability: u32,
        kernel: Kernel,
        variant: Variant,
    ) -> Result<Arc<CudaModule>> {
        match &self.code {
            Code::Embedded(index, modules) => {
                let file = &FILES[*index];
                if let Some(module) = file.machine_code(context, capability, variant, modules) {
                    return Ok(module);
                }
                let entry = kernel.entry(variant.dtype);
                let mut all = file.kernels.unwrap_or_default().iter();
                let found =
                    all.find(|(name, packed, _)| *name == entry && *packed == variant.packed);
                let (_, _, ptx) = found.ok_or(Error::KernelsNotBuilt)?;
                load_image(context, self.op, &text(ptx))
            }
            Code::Replaced(ptx, module) => self.replaced(context, ptx, module),
        }
    }

    fn replaced(
        &self,
        context: &Arc<CudaContext>,
        ptx: &str,
        module: &OnceLock<Arc<CudaModule>>,
    ) -> Result<Arc<CudaModule>> {
        match module.get() {
            Some(module) => Ok(module.clone()),
            None => {
                let new = load_image(context, self.op, ptx)?;
                Ok(module.get_or_init(|| new).clone())
            }
        }
    }
}

impl Embedded {
    /// The module of a dtype's machine code. There is none where the program has no such code, or
    /// where the driver refuses it, because it is older than the compiler or emulates a device.
    fn machine_code(
        &self,
        context: &Arc<CudaContext>,
        capability: u32,
        variant: Variant,
        modules: &Modules,
    ) -> Option<Arc<CudaModule>> {
        let name = variant.dtype.to_string();
        let of_variant = self.cubins.iter().filter(|(dtype, packed, ..)| {
            (dtype.is_empty() || *dtype == name) && *packed == variant.packed
        });
        let best = best(of_variant.clone().map(|(_, _, built, _)| *built), capability)?;
        let (dtype, packed, _, cubin) = { of_variant }.find(|(.., built, _)| *built == best)?;
        let mut modules = modules.lock().unwrap_or_else(PoisonError::into_inner);
        let load = || context.load_module(Ptx::from_binary(decompressed(cubin))).ok();
        modules.entry((dtype, *packed)).or_insert_with(load).clone()
    }
}

/// Of the compute capabilities that machine code was built for, the best one that a device runs: the
/// newest of its own generation that is no newer than the device.
fn best(built: impl Iterator<Item = u32>, capability: u32) -> Option<u32> {
    built.filter(|built| built / 10 == capability / 10 && *built <= capability).max()
}

/// What the build script compressed.
fn decompressed(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    ZlibDecoder::new(bytes).read_to_end(&mut plain).expect("the build script compressed it");
    plain
}

fn text(compressed: &[u8]) -> String {
    String::from_utf8(decompressed(compressed)).expect("PTX is ASCII")
}

/// Loads one PTX image; for the test of an image newer than the driver.
#[doc(hidden)]
pub fn load_image(
    context: &Arc<CudaContext>,
    kernel: &'static str,
    ptx: &str,
) -> Result<Arc<CudaModule>> {
    match context.load_module(Ptx::from_src(ptx)) {
        Ok(module) => Ok(module),
        Err(DriverError(sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION)) => {
            let ptx = ptx
                .lines()
                .find_map(|line| line.trim().strip_prefix(".version"))
                .map_or_else(|| "of unknown version".to_owned(), |v| v.trim().to_owned());
            Err(Error::PtxTooNew { kernel, ptx, driver: driver_version() })
        }
        Err(source) => Err(Error::Driver { during: "loading kernels", source }),
    }
}

fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the pointer is valid for the call; on failure the version stays 0.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_or(0, |()| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_runs_on_its_own_generation() {
        let built = [80, 86, 89, 90, 120];
        for (capability, expected) in [
            (80, Some(80)),
            (86, Some(86)),
            (87, Some(86)),
            (89, Some(89)),
            (90, Some(90)),
            (100, None),
            (120, Some(120)),
            (121, Some(120)),
        ] {
            assert_eq!(best(built.into_iter(), capability), expected, "{capability}");
        }
        assert_eq!(best([86].into_iter(), 80), None);
        assert_eq!(best([].into_iter(), 80), None);
    }
}
