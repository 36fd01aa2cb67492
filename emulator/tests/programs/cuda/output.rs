//! What kernels print, and how they give up.

use std::process::Command;

use crate::support::{Arg, Bench};
use cuda_emulator::FaultKind;

/// The environment variable that makes the test print.
const INNER: &str = "CUDA_EMULATOR_TEST_INNER";

const PRINTING: &str = r#"
    extern "C" __global__ void k(int* out, long long x, double d) {
        if (threadIdx.x == 5) {
            out[0] = printf("<%d %5i %-5u| %05d %x %X %o %c %s>\n",
                            -1, 2, 3u, 4, 0xabu, 0xcdu, 8u, 'c', "text");
            out[1] = printf("<%lld %llu %llx %ld %zu %hhd %hd>\n", -x,
                            (unsigned long long)x, (unsigned long long)x, 5l, (size_t)6,
                            (signed char)-3, (short)4);
            out[2] = printf("<%f %.3f %e %E %g %G %a>\n", d, d, d, d, d, d, d);
            out[3] = printf("<%% %+d % d %#x %#o %*d|%-*d|%.*f>\n", 5, 6, 255u, 8u, 6, 7, 6, 7, 2, d);
            out[4] = printf("<nothing>\n");
            out[5] = printf("<%f %.1e %d>\n", 1.5f, -0.0, (short)-9);
        }
        __syncwarp();
        if (threadIdx.x % 16 == 0) printf("<lane %d>\n", threadIdx.x);
    }"#;

const PRINTED: [&str; 8] = [
    "<-1     2 3    | 00004 ab CD 10 c text>",
    "<-81985529216486895 81985529216486895 123456789abcdef 5 6 -3 4>",
    "<1234.567800 1234.568 1.234568e+03 1.234568E+03 1234.57 1234.57 0x1.34a456d5cfaadp+10>",
    "<% +5  6 0xff 010      7|7     |1234.57>",
    "<nothing>",
    "<1.500000 -0.0e+00 -9>",
    "<lane 0>",
    "<lane 16>",
];

#[test]
fn printing() {
    if std::env::var_os(INNER).is_some() {
        for options in [&[][..], &["--device-debug"]] {
            let bench = Bench::cuda_for("compute_80", options, PRINTING, Default::default());
            let out = bench.room::<i32>(6);
            let number = 0x0123_4567_89ab_cdef_u64;
            let args = [Arg::U64(out), Arg::U64(number), Arg::U64(1234.5678_f64.to_bits())];
            bench.launch("k", 1, 32, &args);
            // As many as there are arguments.
            assert_eq!(bench.download::<i32>(out, 6), [9, 7, 7, 10, 0, 3]);
        }
        return;
    }
    let program = std::env::current_exe().expect("the test's own path");
    let output = Command::new(program)
        .args(["--exact", "cuda::output::printing", "--nocapture"])
        .env(INNER, "1")
        .output()
        .expect("the test runs again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('<')).collect();
    assert_eq!(lines, [PRINTED, PRINTED].concat());
}

#[test]
fn assertions() {
    let source = r#"
        extern "C" __global__ void k(int limit) {
            assert((int)threadIdx.x < limit && "too many threads");
        }"#;
    for options in [&[][..], &["--device-debug"]] {
        let bench = Bench::cuda_for("compute_80", options, source, Default::default());
        bench.launch("k", 1, 32, &[Arg::I32(32)]);
        let fault = bench.fault("k", 1, 32, &[Arg::I32(20)]);
        assert_eq!(fault.kind, FaultKind::Assertion);
        assert_eq!(fault.thread, Some([20, 0, 0]));
        assert!(fault.detail.contains("too many threads"), "{fault}");
        assert!(fault.detail.contains("test.cu"), "{fault}");
    }
}

#[test]
fn traps() {
    let source = r#"
        extern "C" __global__ void k(int x) {
            if (x == 1 && threadIdx.x == 3) __trap();
            if (x == 2 && threadIdx.x == 4) __brkpt();
        }"#;
    for options in [&[][..], &["--device-debug"]] {
        let bench = Bench::cuda_for("compute_80", options, source, Default::default());
        bench.launch("k", 1, 32, &[Arg::I32(0)]);
        for (x, thread) in [(1, 3), (2, 4)] {
            let fault = bench.fault("k", 1, 32, &[Arg::I32(x)]);
            assert_eq!((fault.kind, fault.thread), (FaultKind::Trap, Some([thread, 0, 0])));
        }
    }
}
