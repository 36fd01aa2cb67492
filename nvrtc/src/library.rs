//! The NVRTC library, bound through `libloading`.

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use crate::places::{ENV_LIBRARY, LIBRARY_NAMES, candidates};

/// The functions that read a program's log, its PTX and its device code: size and bytes.
const LOG: [&str; 2] = ["nvrtcGetProgramLogSize", "nvrtcGetProgramLog"];
const PTX: [&str; 2] = ["nvrtcGetPTXSize", "nvrtcGetPTX"];
const CUBIN: [&str; 2] = ["nvrtcGetCUBINSize", "nvrtcGetCUBIN"];

/// Why NVRTC could not be used.
#[derive(Debug)]
pub enum NvrtcError {
    /// No library was found; holds the places looked at, each with the loader's answer.
    NotFound(Vec<String>),
    /// The source did not compile; holds NVRTC's log, with its `file(line)` references.
    Compile(String),
    /// A call failed for a reason other than the source.
    Call(&'static str, String),
    /// The PTX has what older drivers may not read; holds the line and what to do.
    NewerPtx(String),
}

impl fmt::Display for NvrtcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(tried) => write!(
                f,
                "no NVRTC found (run `cargo xtask nvrtc`, or set {ENV_LIBRARY}); tried: {}",
                tried.join("; ")
            ),
            Self::Compile(log) | Self::NewerPtx(log) => write!(f, "{log}"),
            Self::Call(name, message) => write!(f, "{name} failed: {message}"),
        }
    }
}

impl Error for NvrtcError {}

type Program = *mut std::ffi::c_void;
type Status = c_int;

/// A loaded NVRTC.
pub struct Nvrtc {
    library: Library,
    /// What the loader was given.
    pub path: PathBuf,
}

/// One translation unit: a source and the headers that it includes by name.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Shown in diagnostics and line information.
    pub name: &'a str,
    /// CUDA C++ text.
    pub text: &'a str,
    /// `(name as included, text)`.
    pub headers: &'a [(String, String)],
}

impl Nvrtc {
    /// Opens the first usable NVRTC of the places that the crate's page lists. `below_target` is a
    /// path below a target folder that may have a fetched copy: a build script's `OUT_DIR`, or
    /// the program itself.
    ///
    /// # Errors
    /// [`NvrtcError::NotFound`] with the places that were tried.
    pub fn find(below_target: &Path) -> Result<Self, NvrtcError> {
        Self::first_of(candidates(below_target))
    }

    fn first_of(candidates: Vec<PathBuf>) -> Result<Self, NvrtcError> {
        let mut tried = Vec::new();
        for candidate in candidates {
            if candidate.is_dir() {
                let names = LIBRARY_NAMES.join(", ");
                tried.push(format!("{} (a folder with none of {names})", candidate.display()));
                continue;
            }
            match Self::open(&candidate) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => {
                    let reason =
                        error.source().map_or_else(|| error.to_string(), |s| s.to_string());
                    tried.push(format!("{} ({reason})", candidate.display()));
                }
            }
        }
        Err(NvrtcError::NotFound(tried))
    }

    /// Opens one library file, after the companion library that it will ask for by bare name.
    pub fn open(path: &Path) -> Result<Self, libloading::Error> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("libnvrtc-builtins.so") {
                    // SAFETY: NVIDIA's data library has no initialiser with preconditions; it is
                    // leaked, so that NVRTC finds it loaded for the rest of the process.
                    if let Ok(builtins) = unsafe { Library::new(entry.path()) } {
                        std::mem::forget(builtins);
                    }
                }
            }
        }
        // SAFETY: loading NVRTC runs its ordinary initialisers, which have no preconditions.
        let library = unsafe { Library::new(path) }?;
        Ok(Self { library, path: path.to_owned() })
    }

    /// The CUDA version of this NVRTC, such as `(12, 9)`.
    pub fn version(&self) -> Result<(i32, i32), NvrtcError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is that of nvrtc.h; both pointers are valid for the call.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status =
                self.symbol("nvrtcVersion")?;
            self.check("nvrtcVersion", version(&mut major, &mut minor))?;
        }
        Ok((major, minor))
    }

    /// The compute capabilities, such as 80 for 8.0, that this NVRTC makes machine code for.
    ///
    /// # Errors
    /// [`NvrtcError::Call`], also of an NVRTC before CUDA 11.2, which does not tell.
    pub fn capabilities(&self) -> Result<Vec<u32>, NvrtcError> {
        type Get = unsafe extern "C" fn(*mut c_int) -> Status;
        let [count_name, name] = ["nvrtcGetNumSupportedArchs", "nvrtcGetSupportedArchs"];
        let mut count = 0;
        // SAFETY: the signatures are those of nvrtc.h; the array has as many places as NVRTC said.
        let found = unsafe {
            let get_count: Get = self.symbol(count_name)?;
            self.check(count_name, get_count(&mut count))?;
            let mut found = vec![0; count.max(0) as usize];
            let get: Get = self.symbol(name)?;
            self.check(name, get(found.as_mut_ptr()))?;
            found
        };
        Ok(found.into_iter().map(|capability| capability as u32).collect())
    }

    /// Compiles `source` to PTX text. `options` are NVRTC's own, such as
    /// `--gpu-architecture=compute_80`.
    pub fn compile(&self, source: &Source<'_>, options: &[&str]) -> Result<String, NvrtcError> {
        self.compile_to(source, options, [PTX]).map(|[ptx]| without_nul(&ptx))
    }

    /// Compiles `source` for an `--gpu-architecture=sm_80` or another real one: what the compiler says,
    /// which with `--ptxas-options=-v` is what each kernel takes of the device, and its own code.
    pub fn compile_device(
        &self,
        source: &Source<'_>,
        options: &[&str],
    ) -> Result<(String, Vec<u8>), NvrtcError> {
        self.compile_to(source, options, [LOG, CUBIN])
            .map(|[log, cubin]| (without_nul(&log), cubin))
    }

    /// Compiles `source` and reads some of what the program holds, each by the functions of its
    /// size and of its bytes.
    fn compile_to<const N: usize>(
        &self,
        source: &Source<'_>,
        options: &[&str],
        outputs: [[&'static str; 2]; N],
    ) -> Result<[Vec<u8>; N], NvrtcError> {
        let c_string = |what: &str| {
            CString::new(what).map_err(|_| NvrtcError::Call("input", "holds a NUL byte".into()))
        };
        let text = c_string(source.text)?;
        let name = c_string(source.name)?;
        let options = options.iter().map(|o| c_string(o)).collect::<Result<Vec<_>, _>>()?;
        let option_pointers: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let header_names =
            source.headers.iter().map(|h| c_string(&h.0)).collect::<Result<Vec<_>, _>>()?;
        let header_texts =
            source.headers.iter().map(|h| c_string(&h.1)).collect::<Result<Vec<_>, _>>()?;
        let name_pointers: Vec<_> = header_names.iter().map(|h| h.as_ptr()).collect();
        let text_pointers: Vec<_> = header_texts.iter().map(|h| h.as_ptr()).collect();

        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
        type Destroy = unsafe extern "C" fn(*mut Program) -> Status;

        let mut program: Program = ptr::null_mut();
        // SAFETY: the signatures are those of nvrtc.h; every string and array outlives the calls,
        // and the program is destroyed exactly once.
        unsafe {
            let create: Create = self.symbol("nvrtcCreateProgram")?;
            let compile: Compile = self.symbol("nvrtcCompileProgram")?;
            let destroy: Destroy = self.symbol("nvrtcDestroyProgram")?;
            let status = create(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                source.headers.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            );
            self.check("nvrtcCreateProgram", status)?;
            let status = compile(program, options.len() as c_int, option_pointers.as_ptr());
            let result = if status == 0 {
                let mut read = outputs.map(|_| Vec::new());
                let mut each = read.iter_mut().zip(outputs);
                each.try_for_each(|(read, output)| {
                    *read = self.output(program, output)?;
                    Ok(())
                })
                .map(|()| read)
            } else {
                match self.output(program, LOG).map(|log| without_nul(&log)) {
                    Ok(log) if !log.trim().is_empty() => Err(NvrtcError::Compile(log)),
                    _ => Err(self.check("nvrtcCompileProgram", status).unwrap_err()),
                }
            };
            destroy(&mut program);
            result
        }
    }

    /// Reads something that a program holds: its size first, then its bytes.
    ///
    /// # Safety
    /// `program` must be live.
    unsafe fn output(
        &self,
        program: Program,
        [size_name, bytes_name]: [&'static str; 2],
    ) -> Result<Vec<u8>, NvrtcError> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
        type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;
        // SAFETY: the signatures are those of nvrtc.h, and the buffer has the size asked for.
        unsafe {
            let size_of: Size = self.symbol(size_name)?;
            let bytes_of: Bytes = self.symbol(bytes_name)?;
            let mut size = 0;
            self.check(size_name, size_of(program, &mut size))?;
            let mut bytes = vec![0_u8; size];
            self.check(bytes_name, bytes_of(program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }

    /// # Safety
    /// `T` must be the symbol's function type.
    unsafe fn symbol<T: Copy>(&self, name: &'static str) -> Result<T, NvrtcError> {
        // SAFETY: passed on to the caller.
        unsafe { self.library.get::<T>(name.as_bytes()) }
            .map(|symbol| *symbol)
            .map_err(|error| NvrtcError::Call(name, error.to_string()))
    }

    fn check(&self, name: &'static str, status: Status) -> Result<(), NvrtcError> {
        if status == 0 {
            return Ok(());
        }
        type ErrorString = unsafe extern "C" fn(Status) -> *const c_char;
        // SAFETY: the signature is that of nvrtc.h, which returns a static string.
        let message = unsafe {
            self.symbol::<ErrorString>("nvrtcGetErrorString").map(|error_string| {
                CStr::from_ptr(error_string(status)).to_string_lossy().into_owned()
            })
        };
        Err(NvrtcError::Call(name, message.unwrap_or_else(|_| format!("status {status}"))))
    }
}

/// NVRTC's text without the NUL that ends it.
fn without_nul(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_nvrtc_is_named_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let found = Nvrtc::first_of(vec![folder.path().to_owned()]);
        let Err(NvrtcError::NotFound(tried)) = found else { panic!("found in an empty folder") };
        let expected = format!("{} (a folder with none of libnvrtc", folder.path().display());
        assert!(tried[0].starts_with(&expected), "{tried:?}");
    }
}
