//! What `Config::measure` counts, against counts made by hand.

use crate::support::{Arg, Bench, kernel};
use cuda_emulator::{ByClass, Config, Counters, InstructionClass as Class, MeasuredLaunch};

fn measuring(ptx: &str) -> Bench {
    let config = Config { measure: true, sanitizer: false, ..Config::default() };
    Bench::load(ptx, config)
}

/// Runs the body of one kernel on memory of its own, and returns what was measured.
fn measure_on(body: &str, grid: u32, block: u32) -> MeasuredLaunch {
    let bench = measuring(&kernel(body));
    let out = bench.room::<u8>(1 << 16);
    bench.launch("k", grid, block, &[Arg::U64(out)]);
    let mut launches = bench.device.take_launches();
    assert_eq!(launches.len(), 1);
    assert!(bench.device.take_launches().is_empty());
    launches.remove(0)
}

fn measure(body: &str) -> Counters {
    measure_on(body, 1, 32).counters
}

/// The sectors and the least sectors that one load of `ty` reads at `stride * lane + start`.
fn load_sectors(ty: &str, registers: &str, stride: u32, start: u32) -> [u64; 2] {
    let counters = measure(&format!(
        ".reg .b32 %v<5>; .reg .b64 %w<5>;
         mad.wide.u32 %out, %lane, {stride}, %out; ld.global.{ty} {registers}, [%out+{start}];"
    ));
    assert_eq!(counters.global_loads, 1);
    assert_eq!([counters.global_stores, counters.sectors_written], [0, 0]);
    // Nothing is read twice.
    assert_eq!(counters.dram_sectors_read, counters.sectors_read);
    [counters.sectors_read, counters.least_sectors_read]
}

#[test]
fn sectors_of_a_load() {
    // 128 bytes in a row: four sectors; shifted by a word, five.
    assert_eq!(load_sectors("b32", "%v1", 4, 0), [4, 4]);
    assert_eq!(load_sectors("b32", "%v1", 4, 4), [5, 4]);
    // Every second and every eighth word, and a sector each and more apart.
    assert_eq!(load_sectors("b32", "%v1", 8, 0), [8, 4]);
    assert_eq!(load_sectors("b32", "%v1", 32, 0), [32, 4]);
    assert_eq!(load_sectors("b32", "%v1", 128, 0), [32, 4]);
    // One word for all.
    assert_eq!(load_sectors("b32", "%v1", 0, 12), [1, 1]);
    // Narrow and wide ones.
    assert_eq!(load_sectors("u8", "%v1", 1, 0), [1, 1]);
    assert_eq!(load_sectors("u16", "%v1", 2, 2), [3, 2]);
    assert_eq!(load_sectors("b64", "%w1", 8, 0), [8, 8]);
    assert_eq!(load_sectors("v4.b32", "{%v1, %v2, %v3, %v4}", 16, 0), [16, 16]);
    assert_eq!(load_sectors("v4.b32", "{%v1, %v2, %v3, %v4}", 16, 16), [17, 16]);
    assert_eq!(load_sectors("v2.b64", "{%w1, %w2}", 64, 0), [32, 16]);
}

#[test]
fn sectors_of_a_store_and_of_some_lanes() {
    let counters = measure(
        ".reg .pred p; setp.lt.u32 p, %lane, 9;
         mad.wide.u32 %out, %lane, 4, %out; @p st.global.b32 [%out], %lane;",
    );
    assert_eq!([counters.global_stores, counters.sectors_written], [1, 2]);
    assert_eq!(counters.least_sectors_written, 2);
    assert_eq!([counters.dram_bytes_written, counters.dram_sectors_written], [36, 2]);
    assert_eq!([counters.global_loads, counters.dram_bytes_read], [0, 0]);
    // Nobody stores: no request, though an instruction.
    let counters = measure(
        ".reg .pred p; setp.gt.u32 p, %lane, 99;
         @p st.global.b32 [%out], %lane;",
    );
    assert_eq!([counters.global_stores, counters.sectors_written], [0, 0]);
    assert_eq!(counters.by_class[Class::GlobalStore], 1);
}

#[test]
fn generic_addresses_count_where_they_lie() {
    let counters = measure(
        ".reg .b32 %v, %s; .reg .b64 %g; .shared .align 16 .b8 tile[128];
         mov.u32 %s, tile; cvt.u64.u32 %g, %s; cvta.shared.u64 %g, %g;
         mad.wide.u32 %g, %lane, 4, %g;
         st.b32 [%g], %lane; ld.b32 %v, [%g];
         mad.wide.u32 %out, %lane, 4, %out; st.b32 [%out], %v;",
    );
    assert_eq!([counters.shared_wavefronts, counters.least_shared_wavefronts], [2, 2]);
    assert_eq!([counters.global_stores, counters.sectors_written], [1, 4]);
    assert_eq!(counters.global_loads, 0);
}

#[test]
fn bytes_count_once_in_a_launch() {
    // Every thread of every block reads the same 128 bytes twice, and its block's 128 bytes once;
    // then it writes the word that it read last, twice.
    let body = ".reg .b32 %v, %b; .reg .b64 %mine, %all;
         mad.wide.u32 %all, %lane, 4, %out;
         ld.global.b32 %v, [%all]; ld.global.b32 %v, [%all];
         mov.u32 %b, %ctaid.x; add.u32 %b, %b, 1;
         mad.wide.u32 %mine, %b, 128, %all;
         ld.global.b32 %v, [%mine];
         st.global.b32 [%mine], %lane; st.global.b32 [%mine], %lane;
         ld.global.b32 %v, [%mine];";
    let launch = measure_on(body, 5, 32);
    let counters = launch.counters;
    assert_eq!([counters.global_loads, counters.global_stores], [4 * 5, 2 * 5]);
    assert_eq!([counters.sectors_read, counters.sectors_written], [4 * 20, 4 * 10]);
    assert_eq!([counters.dram_bytes_read, counters.dram_sectors_read], [128 * 6, 4 * 6]);
    assert_eq!([counters.dram_bytes_written, counters.dram_sectors_written], [128 * 5, 4 * 5]);
}

#[test]
fn what_a_launch_wrote_itself_is_not_read_from_device_memory() {
    let counters = measure(
        ".reg .b32 %v; .reg .b64 %at; mad.wide.u32 %at, %lane, 4, %out;
         st.global.b32 [%at], %lane; ld.global.b32 %v, [%at];
         ld.global.v2.b32 {%v, %lane}, [%out+120];",
    );
    // The last load reads 8 bytes in one sector that was written; the word at 124 was, too.
    assert_eq!([counters.dram_bytes_read, counters.dram_sectors_read], [0, 0]);
    let counters = measure(
        ".reg .b32 %v; .reg .b64 %at; mad.wide.u32 %at, %lane, 4, %out;
         st.global.b32 [%at], %lane; ld.global.b32 %v, [%at+16];",
    );
    // Words 32 to 35 are new.
    assert_eq!([counters.sectors_read, counters.least_sectors_read], [5, 4]);
    assert_eq!([counters.dram_bytes_read, counters.dram_sectors_read], [16, 1]);
}

#[test]
fn what_a_launch_discards_is_not_written_to_device_memory() {
    let write = "mad.wide.u32 %at, %lane, 4, %out; st.global.b32 [%at], %lane;
                 st.global.b32 [%at+128], %lane;";
    let discard = "bar.warp.sync -1; @first discard.global.L2 [%out+128], 128;";
    let count = |code: &str| {
        let counters = measure(&format!(
            ".reg .b64 %at; .reg .pred first; setp.eq.u32 first, %lane, 0; {code}"
        ));
        [counters.sectors_written, counters.dram_sectors_written, counters.dram_bytes_written]
    };
    assert_eq!(count(write), [8, 8, 256]);
    assert_eq!(count(&format!("{write} {discard}")), [8, 4, 128]);
    // What is written afterwards counts again; what was never written does not become less.
    let again = "@first st.global.b32 [%out+132], %lane;";
    assert_eq!(count(&format!("{write} {discard} {again}")), [9, 5, 132]);
    assert_eq!(count(discard), [0, 0, 0]);
}

/// Wavefronts, and the least, of one load of `ty` from shared memory at `stride * lane`.
fn load_wavefronts(ty: &str, registers: &str, stride: u32) -> [u64; 2] {
    let counters = measure(&format!(
        ".reg .b32 %v<5>, %s; .reg .b64 %w<5>; .shared .align 16 .b8 tile[8192];
         mov.u32 %s, tile; mad.lo.u32 %s, %lane, {stride}, %s;
         ld.shared.{ty} {registers}, [%s];"
    ));
    assert_eq!(counters.shared_requests, 1);
    assert_eq!(
        counters.bank_conflicts(),
        counters.shared_wavefronts - counters.least_shared_wavefronts
    );
    [counters.shared_wavefronts, counters.least_shared_wavefronts]
}

#[test]
fn wavefronts_of_loads_from_shared_memory() {
    // No conflict, two ways, 32 ways, padded rows, one word for all.
    assert_eq!(load_wavefronts("b32", "%v1", 4), [1, 1]);
    assert_eq!(load_wavefronts("b32", "%v1", 8), [2, 1]);
    assert_eq!(load_wavefronts("b32", "%v1", 128), [32, 1]);
    assert_eq!(load_wavefronts("b32", "%v1", 132), [1, 1]);
    assert_eq!(load_wavefronts("b32", "%v1", 0), [1, 1]);
    // Four lanes to a word.
    assert_eq!(load_wavefronts("u8", "%v1", 1), [1, 1]);
    // Halves of the warp.
    assert_eq!(load_wavefronts("b64", "%w1", 8), [2, 2]);
    assert_eq!(load_wavefronts("b64", "%w1", 16), [4, 2]);
    assert_eq!(load_wavefronts("v2.b32", "{%v1, %v2}", 8), [2, 2]);
    // Quarters of the warp.
    let four = "{%v1, %v2, %v3, %v4}";
    assert_eq!(load_wavefronts("v4.b32", four, 16), [4, 4]);
    assert_eq!(load_wavefronts("v4.b32", four, 32), [8, 4]);
    assert_eq!(load_wavefronts("v4.b32", four, 128), [32, 4]);
    assert_eq!(load_wavefronts("v4.b32", four, 144), [4, 4]);
}

#[test]
fn wavefronts_of_stores_and_atomics() {
    let counters = measure(
        ".reg .b32 %s, %row; .shared .align 16 .b8 tile[4096];
         mov.u32 %s, tile; mad.lo.u32 %row, %lane, 128, %s;
         st.shared.b32 [%row], %lane; st.shared.b32 [%s], %lane;",
    );
    assert_eq!([counters.shared_wavefronts, counters.least_shared_wavefronts], [33, 2]);
    let counters = measure(
        ".reg .b32 %s, %row; .shared .align 16 .b8 tile[128];
         mov.u32 %s, tile; mad.lo.u32 %row, %lane, 4, %s;
         red.shared.add.u32 [%row], 1; red.shared.add.u32 [%s], 1;",
    );
    // Each lane has a word and a bank of its own; then they take turns at one.
    assert_eq!([counters.shared_wavefronts, counters.least_shared_wavefronts], [33, 2]);
    assert_eq!(counters.atomics, 2);
    let counters = measure("mad.wide.u32 %out, %lane, 4, %out; red.global.add.u32 [%out], 1;");
    assert_eq!([counters.global_loads, counters.global_stores], [1, 1]);
    assert_eq!([counters.sectors_read, counters.sectors_written], [4, 4]);
    assert_eq!([counters.dram_bytes_read, counters.dram_bytes_written], [128, 128]);
}

/// Wavefronts, and the least, of an `ldmatrix` whose rows are `stride` bytes apart.
fn ldmatrix_wavefronts(count: u32, registers: &str, stride: u32) -> [u64; 2] {
    let counters = measure(&format!(
        ".reg .b32 %v<5>, %s; .shared .align 16 .b8 tile[8192];
         mov.u32 %s, tile; mad.lo.u32 %s, %lane, {stride}, %s;
         ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {registers}, [%s];"
    ));
    assert_eq!(counters.by_class[Class::LoadMatrix], 1);
    [counters.shared_wavefronts, counters.least_shared_wavefronts]
}

#[test]
fn wavefronts_of_matrix_loads() {
    let four = "{%v1, %v2, %v3, %v4}";
    // Rows that fill 128 bytes, rows padded by 16 bytes, and rows that begin at the same bank.
    assert_eq!(ldmatrix_wavefronts(4, four, 16), [4, 4]);
    assert_eq!(ldmatrix_wavefronts(4, four, 144), [4, 4]);
    assert_eq!(ldmatrix_wavefronts(4, four, 64), [16, 4]);
    assert_eq!(ldmatrix_wavefronts(4, four, 128), [32, 4]);
    assert_eq!(ldmatrix_wavefronts(2, "{%v1, %v2}", 128), [16, 2]);
    assert_eq!(ldmatrix_wavefronts(1, "{%v1}", 16), [1, 1]);
    // The address's register is a target.
    assert_eq!(ldmatrix_wavefronts(4, "{%s, %v2, %v3, %v4}", 128), [32, 4]);
}

#[test]
fn asynchronous_copies_read_and_write() {
    let counters = measure(
        ".reg .b32 %s, %n; .reg .pred p; .shared .align 16 .b8 tile[512];
         mov.u32 %s, tile; mad.lo.u32 %s, %lane, 16, %s; mad.wide.u32 %out, %lane, 16, %out;
         setp.lt.u32 p, %lane, 8; selp.u32 %n, 16, 0, p;
         cp.async.cg.shared.global [%s], [%out], 16, %n;
         cp.async.commit_group; cp.async.wait_group 0;",
    );
    // A quarter of the warp reads; all of it fills shared memory.
    assert_eq!([counters.global_loads, counters.global_stores], [1, 0]);
    assert_eq!([counters.sectors_read, counters.least_sectors_read], [4, 4]);
    assert_eq!([counters.dram_bytes_read, counters.dram_sectors_read], [128, 4]);
    assert_eq!([counters.shared_wavefronts, counters.least_shared_wavefronts], [4, 4]);
    assert_eq!(counters.by_class[Class::AsyncCopy], 3);
}

#[test]
fn constants_and_local_memory() {
    let ptx = ".version 8.0\n.target sm_80\n.address_size 64
         .const .align 4 .b32 table[4] = {1, 2, 3, 4};
         .visible .entry k(.param .u64 out) {
         .reg .b64 %out; .reg .b32 %v; .local .align 4 .b8 own[16];
         ld.param.u64 %out, [out];
         ld.const.b32 %v, [table+4];
         st.local.b32 [own], %v; ld.local.b32 %v, [own];
         st.global.b32 [%out], %v; ret; }";
    let bench = measuring(ptx);
    assert_eq!(bench.words(1), [2]);
    let counters = bench.device.take_launches()[0].counters;
    assert_eq!(counters.local_requests, 2);
    assert_eq!([counters.global_loads, counters.global_stores], [0, 1]);
    assert_eq!([counters.sectors_read, counters.sectors_written], [0, 1]);
    assert_eq!(counters.by_class[Class::Constant], 2);
    assert_eq!(counters.by_class[Class::Local], 2);
}

/// The classes with a count.
fn classes(by_class: ByClass) -> Vec<(Class, u64)> {
    by_class.iter().filter(|&(_, count)| count > 0).collect()
}

#[test]
fn classes_of_straight_and_looping_code() {
    // Two warps; each goes through the loop three times.
    let launch = measure_on(
        ".reg .b32 %i, %v, %s; .reg .f32 %f; .reg .pred p; .reg .b16 %h;
         .shared .align 16 .b8 tile[256];
         mov.u32 %i, 0;
         mov.f32 %f, 0f3F800000;
         mov.u32 %s, tile;
         loop:
         fma.rn.f32 %f, %f, %f, %f;
         ex2.approx.f32 %f, %f;
         cvt.rn.bf16.f32 %h, %f;
         shfl.sync.bfly.b32 %v, %i, 1, 31, -1;
         add.u32 %i, %i, 1;
         setp.lt.u32 p, %i, 3;
         @p bra loop;
         st.shared.b32 [%s], %i;
         bar.sync 0;
         ld.shared.b32 %v, [%s];
         membar.gl;
         atom.global.add.u32 %v, [%out], 1;",
        1,
        64,
    );
    let counters = launch.counters;
    let warps = 2;
    let expected = [
        (Class::Float, 3),
        (Class::Integer, 3),
        (Class::Conversion, 3),
        (Class::Special, 3),
        // The branches and `ret`.
        (Class::Control, 4),
        // Four moves (one is the lane's), and the comparisons.
        (Class::Move, 4 + 3),
        (Class::Constant, 1),
        (Class::SharedLoad, 1),
        (Class::SharedStore, 1),
        (Class::Atomic, 1),
        (Class::Barrier, 2),
        (Class::Collective, 3),
    ];
    let expected = expected.map(|(class, count)| (class, warps * count));
    assert_eq!(classes(counters.by_class), expected);
    assert_eq!(counters.by_class.total(), counters.instructions);
    assert_eq!([counters.barriers, counters.atomics], [2, 2]);
    assert_eq!(launch.kernel, "k");
    assert_eq!([launch.grid, launch.block], [[1, 1, 1], [64, 1, 1]]);
    assert_eq!([launch.static_shared, launch.dynamic_shared], [256, 0]);
}

#[test]
fn classes_add_up_where_a_warp_diverges() {
    let counters = measure_on(
        ".reg .b32 %i, %v, %t; .reg .pred p, q;
         mov.u32 %i, 0; and.b32 %t, %lane, 3;
         setp.gt.u32 q, %t, 2; @q bra other;
         loop: add.u32 %i, %i, 1; setp.le.u32 p, %i, %t; @p bra loop;
         bra join;
         other: mul.lo.u32 %i, %lane, 5; @q exit;
         join: shfl.sync.idx.b32 %v, %i, 0, 31, 0x77777777;
         setp.eq.u32 p, %t, 1; @p bra end;
         mad.lo.u32 %v, %v, %i, %v;
         end: bar.warp.sync 0x77777777;",
        3,
        96,
    )
    .counters;
    assert_eq!(counters.by_class.total(), counters.instructions);
    assert!(counters.by_class[Class::Integer] > 0);
}

#[test]
fn many_threads_of_the_host_count_what_one_counts() {
    let body = ".reg .b32 %b, %v, %i; .reg .b64 %at; .reg .pred p;
         mov.u32 %b, %ctaid.x; mov.u32 %i, 0;
         loop: mad.lo.u32 %v, %b, 16, %i; mad.wide.u32 %at, %v, 64, %out;
         mad.wide.u32 %at, %lane, 4, %at; ld.global.b32 %v, [%at];
         add.u32 %i, %i, 1; setp.lt.u32 p, %i, 8; @p bra loop;";
    let run = |threads| {
        let config = Config { measure: true, sanitizer: false, threads, ..Config::default() };
        let bench = Bench::load(&kernel(body), config);
        let out = bench.room::<u8>(1 << 16);
        bench.launch("k", 40, 32, &[Arg::U64(out)]);
        bench.device.take_launches()
    };
    let one = run(1);
    assert_eq!(one, run(4));
    // 40 blocks read 8 rows of 128 bytes, 64 bytes apart, with gaps of 448 bytes between blocks.
    assert_eq!(one[0].counters.dram_bytes_read, 40 * (7 * 64 + 128));
}

#[test]
fn nothing_is_measured_unasked() {
    let bench = Bench::ptx("st.global.b32 [%out], %lane;");
    bench.words(1);
    assert!(bench.device.take_launches().is_empty());
    let counters = bench.device.counters();
    assert_eq!(counters.by_class, ByClass::default());
    let measured = [
        counters.global_loads,
        counters.global_stores,
        counters.sectors_written,
        counters.dram_bytes_written,
        counters.shared_wavefronts,
        counters.local_requests,
    ];
    assert_eq!(measured, [0; 6]);
    assert_eq!([counters.launches, counters.instructions, counters.global_requests], [1, 4, 1]);
}
