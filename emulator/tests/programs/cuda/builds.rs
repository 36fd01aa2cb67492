//! One program in several builds.

use crate::support::{Arg, Bench};
use cuda_emulator::Config;

/// Options of the compiler that change what it emits.
const BUILDS: [&[&str]; 4] = [&[], &["--device-debug"], &["--use_fast_math"], &["--fmad=false"]];

/// Does something with each build of a program, on a device with room on the stack for recursion.
pub fn each(source: &str, run: impl Fn(&Bench)) {
    for options in BUILDS {
        println!("options {options:?}");
        let bench = Bench::cuda_for("compute_80", options, source, Config::default());
        bench.device.set_stack_limit(16 << 10);
        run(&bench);
    }
}

/// Runs kernel `k(int* out, int n)` of each build with one block, and compares what it stores with
/// `expected` for each place.
pub fn each_stores(source: &str, threads: u32, n: i32, count: usize, expected: fn(i32) -> i32) {
    each(source, |bench| {
        let out = bench.room::<i32>(count);
        bench.launch("k", 1, threads, &[Arg::U64(out), Arg::I32(n)]);
        for (at, found) in bench.download::<i32>(out, count).into_iter().enumerate() {
            assert_eq!(found, expected(at as i32), "place {at}");
        }
    });
}
