//! The kernels' sources as they stand, and their PTX after a change.

use std::collections::BTreeMap;
use std::path::Path;

use fused_dora::Dtype;
use fused_dora_nvrtc::{Nvrtc, Source, sources};
use regex::Regex;

/// As the build script's.
const OPTIONS: [&str; 3] = ["--gpu-architecture=compute_80", "--std=c++17", "--generate-line-info"];

/// All files, by their names as `#include` has them: `forward.cu`, `common/tile.cuh`.
pub struct Sources {
    files: BTreeMap<String, String>,
    nvrtc: Nvrtc,
}

impl Sources {
    /// Reads the sources and finds NVRTC.
    pub fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let read = |extension| sources(&root, extension).expect("the kernels' folder");
        let files = read("cu").into_iter().chain(read("cuh")).collect();
        let built = std::env::current_exe().expect("the test's own path");
        let nvrtc = Nvrtc::find(&built).unwrap_or_else(|error| {
            panic!("mutants are compiled: run `cargo xtask nvrtc` first ({error})")
        });
        Self { files, nvrtc }
    }

    /// Every file's name and text.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The kernel files.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str).filter(|name| name.ends_with(".cu"))
    }

    /// Whether a file is another or includes it, at any depth.
    pub fn includes(&self, file: &str, other: &str) -> bool {
        let text = self.files.get(file).map_or("", String::as_str);
        let included = text.lines().filter_map(|line| {
            line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'))
        });
        file == other || included.into_iter().any(|header| self.includes(header, other))
    }

    /// The PTX of a kernel file for one dtype, after a change of a file's text.
    pub fn compile(
        &self,
        kernel: &str,
        dtype: Dtype,
        changed: Option<(&str, &str)>,
    ) -> Result<String, String> {
        let text = |name: &str| match changed {
            Some((file, text)) if file == name => text.to_owned(),
            _ => self.files[name].clone(),
        };
        let headers: Vec<(String, String)> = self
            .files
            .keys()
            .filter(|name| name.ends_with(".cuh"))
            .map(|name| (name.clone(), text(name)))
            .collect();
        let source = Source { name: kernel, text: &text(kernel), headers: &headers };
        let dtype = format!("--define-macro=FUSED_DORA_DTYPE={dtype}");
        let options: Vec<&str> = OPTIONS.into_iter().chain([dtype.as_str()]).collect();
        let ptx = self.nvrtc.compile(&source, &options);
        ptx.map_err(|error| format!("{kernel}: {error}"))
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
