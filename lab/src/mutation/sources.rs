//! The kernels' sources as they stand, and their PTX after a change.

use fused_dora::Dtype;
use fused_dora_nvrtc::{Cache, KernelFolder, Nvrtc};
use fused_dora_testkit::workspace;
use regex::Regex;

/// All files, by their names as `#include` has them: `forward/sm80.cu`, `common/tile/tile.cuh`.
pub struct Sources {
    folder: KernelFolder,
    nvrtc: Nvrtc,
    cache: Cache,
}

impl Sources {
    /// Reads the sources and finds NVRTC.
    pub fn read() -> Self {
        let folder = KernelFolder::read(&workspace().join("kernels")).expect("the kernels' folder");
        let built = std::env::current_exe().expect("the program's own path");
        let nvrtc = Nvrtc::find(&built).unwrap_or_else(|error| {
            panic!("mutants are compiled: run `cargo xtask nvrtc` first ({error})")
        });
        Self { folder, nvrtc, cache: Cache::from_env() }
    }

    /// Every file's name and text.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.folder.files()
    }

    /// The kernel files.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.files().map(|(name, _)| name).filter(|name| name.ends_with(".cu"))
    }

    /// Whether a file is another or includes it, at any depth.
    pub fn includes(&self, file: &str, other: &str) -> bool {
        let text = self.files().find(|(name, _)| *name == file).map_or("", |(_, text)| text);
        let included = text.lines().filter_map(|line| {
            line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'))
        });
        file == other || included.into_iter().any(|header| self.includes(header, other))
    }

    /// The PTX of a kernel file for one dtype and kind of weight, after a change of a file's text. The
    /// cache has the kernels as they stand; mutants would fill it.
    pub fn compile(
        &self,
        kernel: &str,
        dtype: Dtype,
        packed: bool,
        changed: Option<(&str, &str)>,
    ) -> Result<String, String> {
        let folder = changed.map(|(file, text)| self.folder.with(file, text));
        let images = folder.as_ref().unwrap_or(&self.folder).images();
        let dtype = dtype.to_string();
        let is_wanted = |dtype_of: Option<&str>| dtype_of.is_none_or(|of| of == dtype);
        let of_kernel =
            images.iter().filter(|image| image.file == kernel && is_wanted(image.dtype));
        // A file that reads no weight has one kind only.
        let image = { of_kernel }.max_by_key(|image| image.packed == packed);
        let image = image.ok_or_else(|| format!("{kernel}: no such image"))?;
        let cache = changed.is_none().then_some(&self.cache);
        image.ptx(&self.nvrtc, cache).map_err(|error| format!("{kernel}: {error}"))
    }
}

/// The names of a module's entry points.
fn entries(ptx: &str) -> Vec<String> {
    let entry = Regex::new(r"\.entry (\w+)").expect("a pattern");
    entry.captures_iter(ptx).map(|found| found[1].to_owned()).collect()
}

/// The module with nothing in its entry points.
pub fn emptied(ptx: &str) -> String {
    let directives = [".version", ".target", ".address_size"];
    let is_head = |line: &&str| directives.iter().any(|directive| line.starts_with(directive));
    let head: Vec<&str> = ptx.lines().filter(is_head).collect();
    let empty = |name: &String| format!("\n.visible .entry {name}()\n{{\n\tret;\n}}\n");
    entries(ptx).iter().fold(head.join("\n"), |text, entry| text + &empty(entry))
}
