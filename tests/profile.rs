//! The pieces of `examples/profile.rs`, and the example as a user runs it.

#[allow(dead_code)]
#[path = "../examples/profile/gpu.rs"]
mod gpu;
#[allow(dead_code)]
#[path = "../examples/profile/model.rs"]
mod model;
#[path = "../examples/profile/occupancy.rs"]
mod occupancy;
#[allow(dead_code)]
#[path = "../examples/profile/report.rs"]
mod report;
#[allow(dead_code)]
#[path = "../examples/profile/resources.rs"]
mod resources;
#[allow(dead_code)]
#[path = "../examples/profile/work.rs"]
mod work;

use std::path::Path;
use std::process::{Command, Output};

use approx::assert_relative_eq;
use cuda_emulator::{Counters, MeasuredLaunch, profile};
use fused_dora::{DoraSpec, Dtype, Kernels, Norm, NormGrad, Scaling};
use fused_dora_nvrtc::{Nvrtc, Source};

use gpu::{GPUS, Gpu};
use model::{Bounds, Demand, Resource};
use occupancy::Occupancy;
use report::{GpuFigures, Launch, Report};
use resources::Resources;
use work::{Kernel, compulsory, compulsory_of_op, least_mma};

fn spec(norm: Norm) -> DoraSpec {
    DoraSpec::new(256, 512, 8, Scaling::Value(1.0), norm, NormGrad::Detached, Dtype::Bf16)
        .expect("a layer")
}

fn a100() -> &'static Gpu {
    Gpu::by_name("A100").expect("a known GPU")
}

#[test]
fn bounds_are_amounts_over_rates() {
    let gpu = a100();
    // 108 blocks: one for each multiprocessor.
    let demand = Demand {
        blocks: 108,
        mma: 1 << 20,
        instructions: 108 * 4 * 1410,
        wavefronts: 108 * 2820,
        l2_bytes: 5120 * 4230,
        dram_bytes: 1_555_000,
    };
    let bounds = Bounds::new(gpu, &demand);
    // 2³² operations at 312 TFLOP/s; 1, 2 and 3 µs of clocks at 1.41 GHz; 1 µs at 1555 GB/s.
    assert_relative_eq!(bounds.tensor, 4_294_967_296.0 / 312e6, max_relative = 1e-12);
    assert_relative_eq!(bounds.issue, 1.0, max_relative = 1e-12);
    assert_relative_eq!(bounds.shared, 2.0, max_relative = 1e-12);
    assert_relative_eq!(bounds.l2, 3.0, max_relative = 1e-12);
    assert_relative_eq!(bounds.dram, 1.0, max_relative = 1e-12);
    assert_eq!(bounds.binding(), Resource::Tensor);
    assert_eq!(bounds.bound(), bounds.tensor);

    // The same work in one more block: one multiprocessor has two, and the others wait for it.
    let uneven = Bounds::new(gpu, &Demand { blocks: 109, ..demand });
    assert_relative_eq!(uneven.issue, 2.0 * 108.0 / 109.0, max_relative = 1e-12);
    assert_relative_eq!(uneven.l2, bounds.l2);
    // In half as many blocks half of the multiprocessors idle.
    let few = Bounds::new(gpu, &Demand { blocks: 54, ..demand });
    assert_relative_eq!(few.shared, 4.0, max_relative = 1e-12);
    assert_relative_eq!(few.dram, 1.0, max_relative = 1e-12);

    let nothing = Bounds::new(gpu, &Demand::default());
    assert_eq!(nothing.binding(), Resource::Launch);
    assert_relative_eq!(nothing.bound(), 0.9);
}

#[test]
fn every_constant_has_a_source() {
    for gpu in &GPUS {
        assert_eq!(Gpu::by_name(gpu.name).map(|known| known.name), Some(gpu.name));
        let figures = GpuFigures::from(gpu);
        for figure in [
            &figures.tensor_operations_per_second,
            &figures.l2_bytes_per_second,
            &figures.dram_bytes_per_second,
            &figures.instructions_per_clock,
            &figures.wavefronts_per_clock,
            &figures.launch_seconds,
        ] {
            assert!(figure.value > 0.0 && figure.source.len() > 10, "{figure:?}");
        }
    }
    assert!(Gpu::by_name("rtx4090").is_some() && Gpu::by_name("B200").is_none());
}

#[test]
fn occupancy_is_what_the_scarcest_resource_allows() {
    // 208 registers for each of 32 lanes: two warps for each of the four partitions' 16384.
    let few = Occupancy::new(&profile::A100, 128, 206, 49152);
    assert_eq!(few, Occupancy { by_registers: 2, by_shared: 3, by_threads: 16, by_blocks: 32 });
    assert_eq!((few.blocks(), few.limited_by()), (2, vec!["registers"]));
    // 1 KiB more for each block: 25 KiB of 164 KiB.
    let shared = Occupancy::new(&profile::A100, 128, 64, 24 << 10);
    assert_eq!((shared.by_registers, shared.by_shared), (8, 6));
    assert_eq!((shared.blocks(), shared.limited_by()), (6, vec!["shared memory"]));
    // Small blocks: 32 of them, or 48 warps of 1536 threads.
    let small = Occupancy::new(&profile::A100, 32, 16, 0);
    assert_eq!((small.blocks(), small.limited_by()), (32, vec!["blocks"]));
    let large = Occupancy::new(&profile::RTX4090, 1024, 32, 0);
    assert_eq!((large.blocks(), large.limited_by()), (1, vec!["threads"]));
    // A block that needs more registers than there are.
    assert_eq!(Occupancy::new(&profile::A100, 1024, 128, 0).blocks(), 0);
}

#[test]
fn compulsory_bytes_of_one_layer() {
    let tokens = 64;
    let bytes = |norm, kernel| {
        let tensors = compulsory(kernel, &spec(norm), tokens);
        tensors.iter().map(|tensor| tensor.bytes).sum::<u64>()
    };
    // I = 256, O = 512, r = 8, R = 16. The large ones in bf16:
    let (x, w, y) = (64 * 256 * 2, 512 * 256 * 2, 64 * 512 * 2);
    let (h, packed_a, sb) = (64 * 16 * 2, 16 * 256 * 2, 512 * 16 * 2);
    let (a, b) = (8 * 256 * 4, 512 * 8 * 4);
    let (of_input, of_output) = (256 * 4, 512 * 4);
    let prepare = w + a + b + packed_a + sb;
    assert_eq!(bytes(Norm::Output, Kernel::Prepare), prepare + sb + 3 * of_output);
    assert_eq!(bytes(Norm::Input, Kernel::Prepare), prepare + 3 * of_input);
    assert_eq!(bytes(Norm::None, Kernel::Prepare), prepare - w);
    let forward = x + w + packed_a + sb + h + y;
    assert_eq!(bytes(Norm::Output, Kernel::Forward), forward + of_output);
    assert_eq!(bytes(Norm::Input, Kernel::Forward), forward + of_input);
    // dY and dX are as large as y and x.
    let backward = y + x + w + h + packed_a + sb + x + a + b;
    assert_eq!(bytes(Norm::Output, Kernel::Backward), backward + y + 3 * of_output);
    assert_eq!(bytes(Norm::Input, Kernel::Backward), backward + 3 * of_input);

    // An op of two launches does not read back what the first one writes.
    let launches = [Kernel::Prepare, Kernel::Forward]
        .map(|kernel| compulsory(kernel, &spec(Norm::Output), tokens));
    let op = compulsory_of_op(launches.iter().map(Vec::as_slice));
    assert_eq!(op, prepare + sb + 3 * of_output + x + h + y);
}

#[test]
fn products_are_padded_to_whole_ones() {
    let spec = DoraSpec::new(
        100,
        60,
        20,
        Scaling::Value(1.0),
        Norm::Input,
        NormGrad::Detached,
        Dtype::Bf16,
    );
    let spec = spec.expect("a layer");
    let least = |kernel| least_mma(kernel, &spec, 33);
    // T 33 = 3 × 16 (5 × 8), I 100 = 7 × 16 (13 × 8), O 60 = 4 × 16 (8 × 8), R 32 = 2 × 16 (4 × 8).
    assert_eq!(least(Kernel::Prepare), 6 * 4 * 13 * 2);
    assert_eq!(least(Kernel::Forward), 3 * 4 * 7 + 3 * 8 * (7 + 2));
    assert_eq!(least(Kernel::Backward), 3 * 4 * 4 + 4 * 4 * 3 + 2 * 13 * 3 + 3 * 13 * (4 + 2));
}

fn nvrtc() -> Nvrtc {
    let program = std::env::current_exe().expect("the test's own path");
    Nvrtc::find(&program).unwrap_or_else(|error| {
        panic!("this test compiles CUDA: run `cargo xtask nvrtc` first ({error})")
    })
}

/// A kernel that keeps 64 values at once: in registers, or where its blocks may leave each thread
/// only 32 of them, in memory.
#[test]
fn spills_are_read_from_the_log() {
    let kernel = |name: &str, bounds: &str| {
        format!(
            "extern \"C\" __global__ void {bounds} {name}(float* p) {{
                 __shared__ float tile[256];
                 float v[64];
                 #pragma unroll
                 for (int i = 0; i < 64; ++i) v[i] = p[i * blockDim.x + threadIdx.x];
                 tile[threadIdx.x % 256] = v[0];
                 __syncthreads();
                 #pragma unroll
                 for (int i = 0; i < 64; ++i) {{
                     p[i * blockDim.x + threadIdx.x] = v[i] * v[(i * 7 + 3) % 64] + tile[i];
                 }}
             }}\n"
        )
    };
    let text = kernel("roomy", "__launch_bounds__(128)")
        + &kernel("cramped", "__launch_bounds__(1024, 2)");
    let source = Source { name: "spill.cu", text: &text, headers: &[] };
    let nvrtc = nvrtc();
    for architecture in ["sm_80", "sm_90"] {
        let options = resources::options(architecture);
        let options = options.each_ref().map(String::as_str);
        let (log, _) = nvrtc.compile_device(&source, &options).expect("valid CUDA");
        let found = resources::read_log(&log, architecture);
        let named = |name: &str| {
            let found = found.iter().find(|resources| resources.kernel == name);
            found.unwrap_or_else(|| panic!("{name} is not in the log"))
        };
        let (roomy, cramped) = (named("roomy"), named("cramped"));
        assert_eq!(found.len(), 2);
        assert!((64..=255).contains(&roomy.registers), "{roomy:?}");
        let spilled = |r: &Resources| [r.stack_bytes, r.spill_store_bytes, r.spill_load_bytes];
        assert_eq!(spilled(roomy), [0; 3], "{roomy:?}");
        assert!((16..=32).contains(&cramped.registers), "{cramped:?}");
        assert!(spilled(cramped).into_iter().all(|bytes| bytes >= 64), "{cramped:?}");
        assert_eq!([roomy.shared_bytes, cramped.shared_bytes], [1024; 2]);
        assert_eq!(roomy.architecture, architecture);
    }
}

/// A report of one launch, made by hand.
fn report() -> Report {
    let counters = Counters {
        instructions: 1000,
        mma: 32,
        sectors_read: 300,
        dram_sectors_read: 200,
        shared_wavefronts: 70,
        ..Counters::default()
    };
    let measured = MeasuredLaunch {
        kernel: "forward_bf16".to_owned(),
        grid: [4, 1, 1],
        block: [128, 1, 1],
        static_shared: 49152,
        dynamic_shared: 0,
        counters,
    };
    let resources = vec![Resources {
        kernel: "forward_bf16".to_owned(),
        architecture: "sm_80".to_owned(),
        registers: 206,
        ..Resources::default()
    }];
    let spec = spec(Norm::Output);
    let launch = Launch::new(&spec, 64, &measured, &[a100()], &resources).expect("a known kernel");
    Report {
        note: report::NOTE.to_owned(),
        counted_on: "Emulated A100".to_owned(),
        dtype: "bf16".to_owned(),
        nvrtc: "12.9".to_owned(),
        gpus: vec![GpuFigures::from(a100())],
        launches: vec![launch],
        resources,
    }
}

#[test]
fn a_report_survives_json() {
    let report = report();
    let json = serde_json::to_string_pretty(&report).expect("JSON");
    let read: Report = serde_json::from_str(&json).expect("the same");
    assert_eq!(read, report);
    let launch = &read.launches[0];
    assert_eq!([launch.counts.l2_bytes(), launch.counts.dram_bytes()], [9600, 6400]);
    assert_eq!(launch.on_gpus[0].occupancy.blocks(), 2);
}

#[test]
fn what_the_profile_does_not_know_is_an_error() {
    let mut measured = MeasuredLaunch {
        kernel: "unheard_of_bf16".to_owned(),
        grid: [1, 1, 1],
        block: [128, 1, 1],
        static_shared: 0,
        dynamic_shared: 0,
        counters: Counters::default(),
    };
    let new = |measured: &MeasuredLaunch| {
        Launch::new(&spec(Norm::Output), 1, measured, &[a100()], &[]).unwrap_err()
    };
    assert!(new(&measured).contains("unheard_of_bf16"));
    measured.kernel = "forward_bf16".to_owned();
    assert!(new(&measured).contains("sm_80"));
}

/// Runs the example that Cargo built beside this test.
fn run(arguments: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap();
    let program = folder.join(format!("examples/profile{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "{} is missing: cargo build --examples", program.display());
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn the_command_writes_tables_json_and_pictures() {
    if std::env::var_os("CUDA_EMULATOR_SEED").is_some() {
        println!("counts are those of one schedule: CUDA_EMULATOR_SEED must be unset");
        return;
    }
    assert!(Kernels::are_built(), "run `cargo xtask nvrtc`, then build again");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("profile");
    let out = folder.to_str().unwrap();
    let output = run(&["--shape", "40,64,96,8", "--gpu", "a100", "--out", out]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let json = std::fs::read_to_string(folder.join("profile.json")).unwrap();
    let report: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(report.launches.len(), 2 * Kernel::ALL.len());
    for launch in &report.launches {
        let (counts, name) = (&launch.counts, launch.kernel.name());
        assert!(text.contains(name), "{name}");
        assert_eq!(counts.by_class.values().sum::<u64>(), counts.instructions, "{name}");
        // Everything that must move moves, and no product is left out.
        let moved = counts.dram_bytes_read + counts.dram_bytes_written;
        assert!(moved >= launch.compulsory_bytes(), "{name}: {moved} bytes");
        assert!(counts.mma >= launch.least_mma, "{name}: {} products", counts.mma);
        assert!(counts.sectors_read >= counts.least_sectors_read, "{name}");
        assert!(counts.shared_wavefronts >= counts.least_shared_wavefronts, "{name}");
        assert!(counts.l2_bytes() >= counts.dram_bytes(), "{name}");
    }
    let picture = std::fs::read_to_string(folder.join("T40I64O96r8-a100.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("not measured"));

    for (arguments, complaint) in [
        (["--shape", "0,64,96,8"], "--shape 0,64,96,8"),
        (["--shape", "40,64"], "it must be T,I,O,R"),
        (["--gpu", "abacus"], "one of a100, rtx4090 and h100"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(complaint), "{text}");
    }
}
