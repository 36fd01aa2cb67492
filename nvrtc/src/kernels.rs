//! A folder of kernels, and the images that they compile to.

use std::io;
use std::path::Path;

use crate::cache::included;
use crate::{Cache, Mirror, Nvrtc, NvrtcError, ParamsError, Source, ptx, sources};

/// The dtypes of a kernel file's images, in the order of the crate's `Dtype`.
pub const DTYPES: [&str; 3] = ["bf16", "f16", "f32"];

/// What a kernel file that has entry points per dtype makes them with. Others are about adapters
/// alone, which are f32.
const ENTRIES: &str = "FUSED_DORA_ENTRIES(";

/// What a file compiles for a packed weight with, if what it includes looks for it. A kernel file that
/// looks for it by itself is compiled for packed weights alone.
const PACKED: &str = "FUSED_DORA_PACKED";

/// The sources below a folder: kernel files `OP/ARCH.cu`, and headers.
#[derive(Debug, Clone)]
pub struct KernelFolder {
    kernels: Vec<Kernel>,
    headers: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
struct Kernel {
    file: String,
    /// The name in diagnostics and line information.
    path: String,
    text: String,
}

/// What one compilation makes: the kernels of one file in one dtype.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// The file, such as `forward/sm80.cu`.
    pub file: &'a str,
    /// Its folder, such as `forward`.
    pub op: &'a str,
    /// Its stem, such as `sm80` or `sm90a`.
    pub architecture: &'a str,
    /// The dtype, or `None` where the file has no entry points per dtype.
    pub dtype: Option<&'static str>,
    /// Whether the kernels read a packed weight instead of a dense one.
    pub packed: bool,
    path: &'a str,
    text: &'a str,
    headers: &'a [(String, String)],
}

impl KernelFolder {
    /// Reads the sources.
    ///
    /// # Errors
    /// The I/O error, or one about a kernel file that is not named `OP/ARCH.cu`.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let kernel = |(file, text): (String, String)| {
            if parts(&file).is_none() {
                let reason = "a kernel file is named OP/ARCH.cu, such as forward/sm80.cu";
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{file}: {reason}"),
                ));
            }
            Ok(Kernel { path: format!("kernels/{file}"), file, text })
        };
        let kernels = sources(folder, "cu")?.into_iter().map(kernel).collect::<io::Result<_>>()?;
        Ok(Self { kernels, headers: sources(folder, "cuh")? })
    }

    /// The name and text of every kernel file and header.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let kernels = self.kernels.iter().map(|kernel| (&kernel.file, &kernel.text));
        let headers = self.headers.iter().map(|(name, text)| (name, text));
        kernels.chain(headers).map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The same sources with another text of one file, which must be there.
    pub fn with(&self, file: &str, text: &str) -> Self {
        let mut changed = self.clone();
        let kernels = changed.kernels.iter_mut().map(|kernel| (&kernel.file, &mut kernel.text));
        let headers = changed.headers.iter_mut().map(|(name, text)| (&*name, text));
        if let Some((_, old)) = kernels.chain(headers).find(|(name, _)| *name == file) {
            text.clone_into(old);
        }
        changed
    }

    /// All images: in the order of their files, those for dense weights first, and in the order of
    /// [`DTYPES`].
    pub fn images(&self) -> Vec<Image<'_>> {
        let mut images = Vec::new();
        for Kernel { file, path, text } in &self.kernels {
            let Some((op, architecture)) = parts(file) else { continue };
            let per_dtype = text.contains(ENTRIES);
            let dtypes = if per_dtype { DTYPES.map(Some).to_vec() } else { vec![None] };
            let headers = &self.headers;
            let source = Source { name: path, text, headers };
            let reads_weight = included(&source).iter().any(|(_, header)| header.contains(PACKED));
            let kinds = match (text.contains(PACKED), reads_weight) {
                (true, _) => &[true][..],
                (false, true) => &[false, true],
                (false, false) => &[false],
            };
            for &packed in kinds {
                let image =
                    |&dtype| Image { file, op, architecture, dtype, packed, path, text, headers };
                images.extend(dtypes.iter().map(image));
            }
        }
        images
    }

    /// What Rust mirrors of the sources.
    ///
    /// # Errors
    /// Those of [`Mirror::read`].
    pub fn mirror(&self) -> Result<Mirror, ParamsError> {
        Mirror::read(self.files())
    }

    /// The headers, as a [`Source`] has them.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }
}

impl<'a> Image<'a> {
    /// What is compiled.
    pub fn source(&self) -> Source<'a> {
        Source { name: self.path, text: self.text, headers: self.headers }
    }

    /// The options that every compilation of the image has, whatever it makes.
    pub fn options(&self) -> Vec<String> {
        let dtype = self.dtype.map(|dtype| format!("--define-macro=FUSED_DORA_DTYPE={dtype}"));
        let packed = self.packed.then(|| format!("--define-macro={PACKED}"));
        ["--std=c++17", "--generate-line-info"]
            .map(str::to_owned)
            .into_iter()
            .chain(dtype)
            .chain(packed)
            .collect()
    }

    /// The image's PTX as it ships ([`ptx::portable`]), for its architecture, such as `compute_80`
    /// for `sm80`. Without a cache, NVRTC compiles it.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`], and [`NvrtcError::NewerPtx`].
    pub fn ptx(&self, nvrtc: &Nvrtc, cache: Option<&Cache>) -> Result<String, NvrtcError> {
        let options = self.ptx_options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let ptx = match cache {
            Some(cache) => cache.ptx(nvrtc, &self.source(), &options),
            None => nvrtc.compile(&self.source(), &options),
        };
        ptx::portable(&ptx?).map_err(NvrtcError::NewerPtx)
    }

    /// The image's machine code for a compute capability, such as 86, without line numbers. Without a
    /// cache, NVRTC compiles it.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile_device`].
    pub fn cubin(
        &self,
        nvrtc: &Nvrtc,
        cache: Option<&Cache>,
        capability: u32,
    ) -> Result<Vec<u8>, NvrtcError> {
        let lines = "--generate-line-info";
        let options: Vec<String> = [format!("--gpu-architecture=sm_{capability}")]
            .into_iter()
            .chain(self.options().into_iter().filter(|option| option != lines))
            .collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let compiled = match cache {
            Some(cache) => cache.device_code(nvrtc, &self.source(), &options),
            None => nvrtc.compile_device(&self.source(), &options),
        };
        compiled.map(|(_, cubin)| cubin)
    }

    /// Whether a cache has its PTX.
    pub fn is_in(&self, cache: &Cache, nvrtc: &Nvrtc) -> bool {
        let options = self.ptx_options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        cache.has_ptx(nvrtc, &self.source(), &options)
    }

    fn ptx_options(&self) -> Vec<String> {
        let virtual_one = self.architecture.replacen("sm", "compute_", 1);
        [vec![format!("--gpu-architecture={virtual_one}")], self.options()].concat()
    }
}

/// Op and architecture of a kernel file.
fn parts(file: &str) -> Option<(&str, &str)> {
    let (op, architecture) = file.strip_suffix(".cu")?.split_once('/')?;
    let number = architecture.strip_prefix("sm")?;
    let is_plain = number.chars().all(|c| c.is_ascii_alphanumeric());
    let is_number = number.starts_with(|c: char| c.is_ascii_digit());
    (is_plain && is_number).then_some((op, architecture))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, io::Result<KernelFolder>) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let read = KernelFolder::read(folder.path());
        (folder, read)
    }

    #[test]
    fn a_new_file_is_a_new_image() {
        let (_folder, kernels) = folder(&[
            ("forward/sm80.cu", "FUSED_DORA_ENTRIES(FORWARD)"),
            ("forward/sm90a.cu", "FUSED_DORA_ENTRIES(FORWARD)"),
            ("adamw/sm80.cu", "void adamw_f32();"),
            ("common/ptx/types.cuh", "using u32 = unsigned int;"),
        ]);
        let kernels = kernels.unwrap();
        let images = kernels.images();
        let named: Vec<_> = images.iter().map(|i| (i.op, i.architecture, i.dtype)).collect();
        let mut expected = vec![("adamw", "sm80", None)];
        for architecture in ["sm80", "sm90a"] {
            expected.extend(DTYPES.map(|dtype| ("forward", architecture, Some(dtype))));
        }
        assert_eq!(named, expected);
        let options = images.last().unwrap().ptx_options();
        assert_eq!(options[0], "--gpu-architecture=compute_90a");
        assert_eq!(options.last().unwrap(), "--define-macro=FUSED_DORA_DTYPE=f32");
        assert_eq!(images[0].ptx_options()[0], "--gpu-architecture=compute_80");
        assert_eq!(images[0].source().headers.len(), 1);
    }

    #[test]
    fn what_reads_a_weight_is_compiled_for_both_kinds() {
        let (_folder, kernels) = folder(&[
            ("common/weight.cuh", "#ifdef FUSED_DORA_PACKED"),
            ("adamw/sm80.cu", "void adamw_f32();"),
            ("merge/sm80.cu", "#include \"common/weight.cuh\"\n"),
            ("quantize/sm80.cu", "#ifndef FUSED_DORA_PACKED\n#include \"common/weight.cuh\"\n"),
        ]);
        let kernels = kernels.unwrap();
        let images = kernels.images();
        let kinds: Vec<_> = images.iter().map(|image| (image.op, image.packed)).collect();
        let expected = [("adamw", false), ("merge", false), ("merge", true), ("quantize", true)];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn one_file_can_be_changed() {
        let files = [("op/sm80.cu", "one"), ("op/params.cuh", "two")];
        let (_folder, kernels) = folder(&files);
        let changed = kernels.unwrap().with("op/params.cuh", "three");
        let texts: Vec<_> = changed.files().collect();
        assert_eq!(texts, [("op/sm80.cu", "one"), ("op/params.cuh", "three")]);
    }

    #[test]
    fn another_name_is_an_error() {
        for name in ["forward.cu", "forward/kernel.cu", "forward/sm80/output.cu"] {
            let (_folder, kernels) = folder(&[(name, "")]);
            assert!(kernels.unwrap_err().to_string().starts_with(name), "{name}");
        }
    }
}
