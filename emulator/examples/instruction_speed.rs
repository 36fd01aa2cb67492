//! How fast the emulator is: host time per warp instruction, by class.
//!
//! These are times of this program on this processor. They say nothing about any device.
//!
//! `CUDA_EMULATOR_SANITIZER=0` shows them without the sanitizer; a word as the argument, only the
//! classes whose names hold it.
//!
//! `cargo run --release -p cuda-emulator --example instruction_speed`

use std::io::{self, Write};
use std::sync::LazyLock;
use std::time::Instant;

use cuda_emulator::{Config, Device, Launch, profile};

const UNROLL: usize = 64;
const ROUNDS: usize = 20_000;
const WARPS: u32 = 4;

const CLASSES: [(&str, &str); 19] = [
    ("add.u32", "add.u32 %r1, %r2, %r3;"),
    ("mad.lo.s32", "mad.lo.s32 %r1, %r2, %r3, %r4;"),
    ("lop3.b32", "lop3.b32 %r1, %r2, %r3, %r4, 0x96;"),
    ("shf.l.wrap.b32", "shf.l.wrap.b32 %r1, %r2, %r3, %r4;"),
    ("add.s64", "add.s64 %d1, %d2, %d3;"),
    ("mul.wide.s32", "mul.wide.s32 %d1, %r2, %r3;"),
    ("fma.rn.f32", "fma.rn.f32 %f1, %f2, %f3, %f4;"),
    ("add.f32, half of the lanes", "@p add.f32 %f1, %f2, %f3;"),
    ("setp.lt.s32", "setp.lt.s32 q, %r2, %r3;"),
    ("selp.b32", "selp.b32 %r1, %r2, %r3, p;"),
    ("cvt.rn.bf16x2.f32", "cvt.rn.bf16x2.f32 %r1, %f2, %f3;"),
    ("ex2.approx.f32", "ex2.approx.f32 %f1, %f2;"),
    ("ld.shared.b32", "ld.shared.b32 %r1, [%s4];"),
    ("st.shared.v4.b32", "st.shared.v4.b32 [%s16], {%r1, %r2, %r3, %r4};"),
    ("ld.global.b32", "ld.global.b32 %r1, [%g4];"),
    ("ld.global.v4.b32", "ld.global.v4.b32 {%r1, %r5, %r6, %r7}, [%g16];"),
    ("cp.async 16, with its waits", "cp.async.cg.shared.global [%s16], [%g16], 16;"),
    ("ldmatrix.x4", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r5, %r6, %r7}, [%s16];"),
    (
        "mma.m16n8k16 bf16",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f5, %f6, %f7}, \
         {%r1, %r5, %r6, %r7}, {%r2, %r3}, {%f1, %f5, %f6, %f7};",
    ),
];

fn module(body: &str) -> String {
    let body = vec![body; UNROLL].join("\n");
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 memory) {{
        .reg .b32 %r<8>; .reg .f32 %f<8>; .reg .b64 %d<4>; .reg .pred p, q, again;
        .reg .b32 %i, %s4, %s16, %lane; .reg .b64 %g4, %g16, %base;
        .shared .align 16 .b8 tile[2048];
        mov.u32 %lane, %tid.x;
        mov.u32 %s4, tile;
        mov.u32 %s16, %s4;
        mad.lo.u32 %s4, %lane, 4, %s4;
        mad.lo.u32 %s16, %lane, 16, %s16;
        ld.param.u64 %base, [memory];
        mad.wide.u32 %g4, %lane, 4, %base;
        mad.wide.u32 %g16, %lane, 16, %base;
        mov.u32 %r1, 5; mov.u32 %r2, 6; mov.u32 %r3, 7; mov.u32 %r4, 8;
        mov.u32 %r5, 5; mov.u32 %r6, 6; mov.u32 %r7, 7;
        mov.u64 %d2, 6; mov.u64 %d3, 7;
        mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F800000; mov.f32 %f3, 0f3F800000;
        mov.f32 %f4, 0f3F800000; mov.f32 %f5, 0f3F800000; mov.f32 %f6, 0f3F800000;
        mov.f32 %f7, 0f3F800000;
        st.shared.v4.b32 [%s16], {{0, 0, 0, 0}};
        bar.sync 0;
        mov.u32 %lane, %laneid;
        setp.lt.u32 p, %lane, 16;
        mov.u32 %i, 0;
        loop:
        {body}
        cp.async.wait_all;
        add.u32 %i, %i, 1;
        setp.lt.u32 again, %i, {ROUNDS};
        @again bra loop;
        ret; }}"
    )
}

/// Seconds that this thread has spent on a processor, or wall-clock seconds if they are unknown.
fn clock() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
        .map_or_else(|| START.elapsed().as_secs_f64(), |nanoseconds| nanoseconds * 1e-9)
}

fn main() {
    let config = Config { threads: 1, ..Config::default() };
    let device = Device::with_config(profile::A100, config);
    let memory = device.alloc(2048).expect("memory");
    device.fill8(memory, 0, 2048).expect("a fill");
    let _ = writeln!(io::stdout(), "host time per warp instruction of the emulator, one thread:");
    let wanted = std::env::args().nth(1).unwrap_or_default();
    for (name, body) in CLASSES.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        let module = device.load_module(&module(body)).expect("a valid module");
        let kernel = module.function("k").expect("the kernel");
        let launch = Launch {
            grid: [1, 1, 1],
            block: [32 * WARPS, 1, 1],
            dynamic_shared: 0,
            dynamic_shared_limit: 0,
            params: &memory.to_le_bytes(),
            cooperative: false,
        };
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = clock();
            device.launch(&kernel, &launch).expect("a clean run");
            best = best.min(clock() - start);
        }
        let count = (UNROLL * ROUNDS) as f64 * f64::from(WARPS);
        let nanoseconds = best / count * 1e9;
        let _ = write!(io::stdout(), "{name:30} {nanoseconds:7.1} ns");
        if name.starts_with("mma") {
            let flops = 2.0 * 16.0 * 8.0 * 16.0;
            let _ = write!(io::stdout(), "  ({:.1} GFLOP/s of the emulator)", flops / nanoseconds);
        }
        let _ = writeln!(io::stdout());
        device.unload_module(&module);
    }
}
