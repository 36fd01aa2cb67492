//! What the tests share: compiling CUDA, loading PTX, launching, and reading back.

use std::sync::Arc;

use cuda_emulator::{Config, Device, Fault, Launch, LaunchError, Module, profile};
use fused_dora_nvrtc::{Nvrtc, Source};

/// Compiles CUDA C++ for compute_80, with line information.
pub fn compile(source: &str) -> String {
    compile_named("test.cu", source, &[])
}

/// The same, of a file of that name with headers of its own.
pub fn compile_named(name: &str, text: &str, headers: &[(String, String)]) -> String {
    run_nvrtc("compute_80", &["-lineinfo"], Source { name, text, headers })
}

/// Compiles CUDA C++ for an architecture, with options.
pub fn compile_for(architecture: &str, options: &[&str], text: &str) -> String {
    run_nvrtc(architecture, options, Source { name: "test.cu", text, headers: &[] })
}

fn run_nvrtc(architecture: &str, options: &[&str], source: Source) -> String {
    let built = std::env::current_exe().expect("the test's own path");
    let nvrtc = Nvrtc::find(&built).unwrap_or_else(|error| {
        panic!("these tests compile CUDA: run `cargo xtask nvrtc` first ({error})")
    });
    let architecture = format!("--gpu-architecture={architecture}");
    let options = [&[architecture.as_str(), "-default-device"], options].concat();
    nvrtc.compile(&source, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// A device with one module on it.
pub struct Bench {
    pub device: Device,
    pub module: Arc<Module>,
}

/// An argument of a kernel.
pub enum Arg {
    U64(u64),
    U32(u32),
    I32(i32),
    F32(f32),
}

impl Bench {
    /// Compiles and loads CUDA C++.
    pub fn cuda(source: &str) -> Self {
        Self::cuda_with(source, Config::default())
    }

    pub fn cuda_with(source: &str, config: Config) -> Self {
        Self::load(&compile(source), config)
    }

    /// Compiles CUDA C++ for an architecture, with options, and loads it.
    pub fn cuda_for(architecture: &str, options: &[&str], source: &str, config: Config) -> Self {
        Self::load(&compile_for(architecture, options, source), config)
    }

    /// Loads the body of one PTX kernel `k` with a 64-bit parameter `out`. Such bodies may look at
    /// fresh memory, and all of their lanes may store to one place.
    pub fn ptx(body: &str) -> Self {
        Self::load(&kernel(body), Config { sanitizer: false, ..Config::default() })
    }

    pub fn load(ptx: &str, config: Config) -> Self {
        let device = Device::with_config(profile::A100, config);
        let module = device.load_module(ptx).unwrap_or_else(|error| panic!("{error}\n{ptx}"));
        Self { device, module }
    }

    pub fn upload<T: Copy>(&self, values: &[T]) -> u64 {
        let bytes = as_bytes(values);
        let address = self.device.alloc(bytes.len() as u64).expect("memory");
        self.device.write(address, bytes).expect("a write within the allocation");
        address
    }

    pub fn room<T>(&self, count: usize) -> u64 {
        self.device.alloc((count * size_of::<T>()) as u64).expect("memory")
    }

    pub fn download<T: Copy + Default>(&self, address: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * size_of::<T>()];
        self.device.read(address, &mut bytes).expect("a read within the allocation");
        bytes
            .chunks_exact(size_of::<T>())
            // SAFETY: callers ask for integers and floats, for which all bytes are valid.
            .map(|chunk| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() })
            .collect()
    }

    pub fn try_launch(
        &self,
        kernel: &str,
        grid: u32,
        block: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<(), LaunchError> {
        self.launch_with(kernel, [grid, block, shared], false, args)
    }

    /// Launches blocks that may wait for each other.
    pub fn try_cooperative(
        &self,
        kernel: &str,
        grid: u32,
        block: u32,
        args: &[Arg],
    ) -> Result<(), LaunchError> {
        self.launch_with(kernel, [grid, block, 0], true, args)
    }

    fn launch_with(
        &self,
        kernel: &str,
        [grid, block, shared]: [u32; 3],
        cooperative: bool,
        args: &[Arg],
    ) -> Result<(), LaunchError> {
        let function = self.module.function(kernel).expect("the kernel");
        let mut params = vec![0; function.param_bytes()];
        assert_eq!(function.params().len(), args.len(), "arguments of {kernel}");
        for (param, arg) in function.params().iter().zip(args) {
            let bytes: &[u8] = match arg {
                Arg::U64(value) => &value.to_le_bytes(),
                Arg::U32(value) => &value.to_le_bytes(),
                Arg::I32(value) => &value.to_le_bytes(),
                Arg::F32(value) => &value.to_le_bytes(),
            };
            assert_eq!(param.size, bytes.len(), "an argument of {kernel}");
            params[param.offset..param.offset + param.size].copy_from_slice(bytes);
        }
        let launch = Launch {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: shared,
            dynamic_shared_limit: 160 << 10,
            params: &params,
            cooperative,
        };
        self.device.launch(&function, &launch)
    }

    pub fn launch(&self, kernel: &str, grid: u32, block: u32, args: &[Arg]) {
        if let Err(error) = self.try_launch(kernel, grid, block, 0, args) {
            panic!("{error}");
        }
    }

    /// The fault that a launch must end with.
    pub fn fault(&self, kernel: &str, grid: u32, block: u32, args: &[Arg]) -> Fault {
        match self.try_launch(kernel, grid, block, 0, args) {
            Err(LaunchError::Fault(fault)) => *fault,
            other => panic!("a fault was expected, not {other:?}"),
        }
    }

    /// Runs kernel `k` with one warp and returns the words that it wrote.
    pub fn words(&self, count: usize) -> Vec<u32> {
        let out = self.room::<u32>(count);
        self.launch("k", 1, 32, &[Arg::U64(out)]);
        self.download(out, count)
    }
}

/// A module of one kernel.
pub fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n\
         .visible .entry k(.param .u64 out) {{\n\
         .reg .b64 %out; .reg .b32 %lane;\n\
         ld.param.u64 %out, [out];\nmov.u32 %lane, %laneid;\n{body}\nret;\n}}\n"
    )
}

fn as_bytes<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: callers pass integers and floats, which have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
