//! Threads that wait for others in loops: those that come, and those that never do.

use cuda_emulator::{Config, FaultKind};

use crate::support::{Arg, Bench, kernel};

/// By one thread of the host and by two.
fn configs() -> [Config; 2] {
    [1, 2].map(|threads| Config { threads, ..Config::default() })
}

/// Where the watchdog would stop a loop only after minutes, what cannot end is reported at once.
#[test]
fn a_loop_that_nothing_can_end_is_reported() {
    let flag = "ld.volatile.global.u32 %r, [%p]; setp.eq.u32 %q, %r, 0; @%q bra again;";
    let swap = "atom.global.cas.b32 %r, [%p], 1, 2; setp.ne.u32 %q, %r, 1; @%q bra again;";
    let bodies = [
        "again: bra again;".to_owned(),
        "again: nanosleep.u32 100; bra again;".to_owned(),
        // Seven instructions: a share of instructions ends elsewhere each time.
        "mov.u32 %r, 0; again: not.b32 %r, %r; not.b32 %r, %r; not.b32 %r, %r; not.b32 %r, %r; \
         setp.eq.u32 %q, %r, 0; mov.u32 %s, %r; @%q bra again;"
            .to_owned(),
        format!("again: {flag}"),
        format!("again: {swap}"),
        // The other warp waits at a barrier.
        format!("setp.gt.u32 %q, %t, 31; @%q bra wait; again: {flag} wait: bar.sync 0;"),
        // Half of a warp waits for the other one.
        format!("setp.gt.u32 %q, %t, 15; @%q bra wait; again: {flag} wait: bar.warp.sync -1;"),
    ];
    for config in configs() {
        for body in &bodies {
            let registers = ".reg .b32 %r, %s, %t; .reg .pred %q; .reg .b64 %p; \
                mov.u64 %p, %out; mov.u32 %t, %tid.x;";
            let bench = Bench::load(&kernel(&format!("{registers} {body}")), config);
            for grid in [1, 3] {
                let memory = bench.upload(&[0_u32]);
                let fault = bench.fault("k", grid, 64, &[Arg::U64(memory)]);
                assert_eq!(fault.kind, FaultKind::Timeout, "{body}: {fault}");
                assert!(fault.detail.contains("nothing can end this loop"), "{body}: {fault}");
            }
        }
    }
}

#[test]
fn blocks_that_wait_for_each_other_are_reported() {
    let text = r#"
extern "C" __global__ void k(volatile int* flags) {
    if (threadIdx.x == 0) {
        while (flags[1 - blockIdx.x] == 0) {}
        flags[blockIdx.x] = 1;
    }
    __syncthreads();
}"#;
    for config in configs() {
        let bench = Bench::cuda_with(text, config);
        let fault = bench.fault("k", 2, 64, &[Arg::U64(bench.upload(&[0_i32; 2]))]);
        assert_eq!(fault.kind, FaultKind::Timeout, "{fault}");
        assert!(fault.detail.contains("nothing can end this loop"), "{fault}");
        assert!(fault.detail.contains("warp 1 waits at barrier 0"), "{fault}");
    }
}

/// Each block waits for the one behind it: all of them must be there at once.
#[test]
fn blocks_may_wait_for_any_later_block() {
    let text = r#"
extern "C" __global__ void k(int* flags, int* out) {
    if (threadIdx.x == 0) {
        int next = blockIdx.x + 1;
        volatile int* flag = flags + next;
        if (next < gridDim.x) while (*flag == 0) {}
        __threadfence();
        out[blockIdx.x] = next < gridDim.x ? out[next] + 1 : 0;
        __threadfence();
        atomicExch(flags + blockIdx.x, 1);
    }
}"#;
    for config in configs() {
        let bench = Bench::cuda_with(text, config);
        let (flags, out) = (bench.upload(&[0_i32; 150]), bench.room::<i32>(150));
        bench.launch("k", 150, 32, &[Arg::U64(flags), Arg::U64(out)]);
        let expected: Vec<i32> = (0..150).rev().collect();
        assert_eq!(bench.download::<i32>(out, 150), expected);
    }
}

/// Who counts how often it has looked does something else each time.
#[test]
fn a_loop_that_gives_up_is_no_loop_without_end() {
    let text = r#"
extern "C" __global__ void k(volatile int* flag, int* out, int tries) {
    int tried = 0;
    while (*flag == 0 && tried < tries) ++tried;
    *out = tried;
}"#;
    for config in configs() {
        let bench = Bench::cuda_with(text, config);
        let (flag, out) = (bench.upload(&[0_i32]), bench.room::<i32>(1));
        bench.launch("k", 1, 1, &[Arg::U64(flag), Arg::U64(out), Arg::I32(20_000)]);
        assert_eq!(bench.download::<i32>(out, 1), [20_000]);
    }
}

/// A warp that waits gives way after a few turns of its loop.
#[test]
fn who_waits_lets_others_run() {
    let text = r#"
extern "C" __global__ void k(unsigned* arrived, int* out, int rounds) {
    for (int round = 1; round <= rounds; ++round) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(arrived, 1);
            while (*(volatile unsigned*)arrived < round * gridDim.x) {}
            __threadfence();
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicAdd(out, rounds);
}"#;
    let bench = Bench::cuda_with(text, Config { threads: 1, ..Config::default() });
    let (arrived, out) = (bench.upload(&[0_u32]), bench.upload(&[0_i32]));
    bench.launch("k", 6, 64, &[Arg::U64(arrived), Arg::U64(out), Arg::I32(7)]);
    assert_eq!(bench.download::<i32>(out, 1), [42]);
    let instructions = bench.device.counters().instructions;
    assert!(instructions < 20_000, "{instructions} instructions");
}

/// Lanes that wait for others of their warp, which take long, however the turns of both fall.
#[test]
fn lanes_may_wait_for_lanes_that_take_long() {
    let body = ".reg .b32 %r, %t, %low; .reg .pred %q, %now;
        mov.u32 %t, %tid.x; mov.u32 %r, 0;
        first: add.u32 %r, %r, 1; setp.lt.u32 %q, %r, 1557; @%q bra first;
        mov.u32 %r, 0; setp.gt.u32 %q, %t, 0; @%q bra work;
        again: ld.global.u32 %r, [%out]; setp.eq.u32 %q, %r, 0; @%q bra again;
        st.global.u32 [%out+4], %r; bra end;
        work: add.u32 %r, %r, 1; and.b32 %low, %r, 511; setp.eq.u32 %now, %low, 0;
        @%now st.global.u32 [%out+8], %r;
        setp.lt.u32 %q, %r, 1000000; @%q bra work;
        st.global.u32 [%out], %r;
        end:";
    // Schedules in which a turn of the block ends while only the lanes that wait have run of late.
    for seed in [3, 12, 17] {
        let config = Config { seed, threads: 1, sanitizer: false, ..Config::default() };
        let bench = Bench::load(&kernel(body), config);
        let memory = bench.upload(&[0_u32; 3]);
        bench.launch("k", 1, 32, &[Arg::U64(memory)]);
        assert_eq!(bench.download::<u32>(memory, 2), [1_000_000; 2], "seed {seed}");
    }
}
