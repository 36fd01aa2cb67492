//! What single instructions compute, in the cases that differ from what one would guess.

use crate::support::{Arg, Bench, kernel};
use cuda_emulator::{Config, FaultKind, LaunchError};

const NAN: u32 = 0x7fff_ffff;

/// Runs one instruction on 32-bit sources and returns its 32-bit result.
fn one(instruction: &str, sources: &[u32]) -> u32 {
    run(instruction, sources, "")
}

/// Runs code on the registers `%a`, `%b`, `%c`, `%e`, which hold the sources; the result is `%d`.
fn run(code: &str, sources: &[u32], declarations: &str) -> u32 {
    let names = ["%a", "%b", "%c", "%e"];
    let moves: String = sources
        .iter()
        .zip(names)
        .map(|(value, name)| format!("mov.b32 {name}, {value:#x};\n"))
        .collect();
    let body = format!(
        ".reg .b32 %a, %b, %c, %d, %e; .reg .pred p, q; .reg .b16 %h<4>; .reg .b64 %w<4>;\n\
         {declarations}\n{moves}\n{code}\nst.global.b32 [%out], %d;"
    );
    Bench::ptx(&body).words(1)[0]
}

fn f(value: f32) -> u32 {
    value.to_bits()
}

#[test]
fn shifts_clamp_and_funnels_wrap_or_clamp() {
    assert_eq!(one("shl.b32 %d, %a, %b;", &[1, 32]), 0);
    assert_eq!(one("shl.b32 %d, %a, %b;", &[1, 31]), 1 << 31);
    assert_eq!(one("shr.u32 %d, %a, %b;", &[u32::MAX, 40]), 0);
    assert_eq!(one("shr.s32 %d, %a, %b;", &[1 << 31, 40]), u32::MAX);
    assert_eq!(one("shf.l.wrap.b32 %d, %a, %b, %c;", &[0x8000_0000, 1, 33]), 3);
    assert_eq!(one("shf.l.clamp.b32 %d, %a, %b, %c;", &[0x1234, 1, 33]), 0x1234);
    assert_eq!(one("shf.r.wrap.b32 %d, %a, %b, %c;", &[0x10, 1, 36]), 0x1000_0001);
    assert_eq!(one("shf.r.clamp.b32 %d, %a, %b, %c;", &[0x10, 0x77, 36]), 0x77);
    let wide = "cvt.u64.u32 %w0, %a; shl.b64 %w0, %w0, %b; shr.u64 %w0, %w0, 32; \
                cvt.u32.u64 %d, %w0;";
    assert_eq!(one(wide, &[0x10, 33]), 0x20);
    assert_eq!(one(wide, &[0x10, 64]), 0);
}

#[test]
fn bytes_and_fields() {
    assert_eq!(one("prmt.b32 %d, %a, %b, 0x7610;", &[0x3322_1100, 0x7766_5544]), 0x7766_1100);
    assert_eq!(one("prmt.b32 %d, %a, %b, 0xc8;", &[0x0000_0080, 0x44]), 0x8080_00ff);
    assert_eq!(one("prmt.b32.f4e %d, %a, %b, %c;", &[0x3322_1100, 0x7766_5544, 1]), 0x4433_2211);
    assert_eq!(one("bfe.u32 %d, %a, %b, %c;", &[0xabcd_1234, 8, 12]), 0xd12);
    assert_eq!(one("bfe.s32 %d, %a, %b, %c;", &[0xabcd_1234, 16, 8]), 0xffff_ffcd);
    assert_eq!(one("bfe.s32 %d, %a, %b, %c;", &[0x8000_0000, 40, 4]), u32::MAX);
    assert_eq!(one("bfe.u32 %d, %a, %b, %c;", &[u32::MAX, 4, 0]), 0);
    assert_eq!(one("bfe.s32 %d, %a, %b, %c;", &[0xf000_0000, 28, 20]), u32::MAX);
    assert_eq!(one("bfi.b32 %d, %a, %b, %c, %e;", &[0xff, 0, 28, 8]), 0xf000_0000);
    assert_eq!(one("bfi.b32 %d, %a, %b, %c, %e;", &[0xff, 0x1234, 32, 8]), 0x1234);
    assert_eq!(one("bfi.b32 %d, %a, %b, %c, %e;", &[0, u32::MAX, 8, 8]), 0xffff_00ff);
    assert_eq!(one("lop3.b32 %d, %a, %b, %c, 0xca;", &[0xff00, 0x1234, 0x5678]), 0x1278);
    assert_eq!(one("bfind.u32 %d, %a;", &[0x0010_0000]), 20);
    assert_eq!(one("bfind.shiftamt.u32 %d, %a;", &[0x0010_0000]), 11);
    assert_eq!(one("bfind.s32 %d, %a;", &[u32::MAX]), u32::MAX);
    assert_eq!(one("clz.b32 %d, %a;", &[0]), 32);
    assert_eq!(one("brev.b32 %d, %a;", &[1]), 1 << 31);
    assert_eq!(one("popc.b32 %d, %a;", &[0xf0f0]), 8);
}

#[test]
fn integers() {
    assert_eq!(one("mul.hi.s32 %d, %a, %b;", &[u32::MAX, 5]), u32::MAX);
    assert_eq!(one("mul.hi.u32 %d, %a, %b;", &[u32::MAX, 5]), 4);
    assert_eq!(one("mul24.lo.s32 %d, %a, %b;", &[0x00ff_ffff, 3]), -3_i32 as u32);
    assert_eq!(one("add.sat.s32 %d, %a, %b;", &[i32::MAX as u32, 1]), i32::MAX as u32);
    assert_eq!(one("sub.sat.s32 %d, %a, %b;", &[1 << 31, 1]), 1 << 31);
    assert_eq!(one("div.s32 %d, %a, %b;", &[-7_i32 as u32, 2]), -3_i32 as u32);
    assert_eq!(one("rem.s32 %d, %a, %b;", &[-7_i32 as u32, 2]), u32::MAX);
    assert_eq!(one("sad.s32 %d, %a, %b, %c;", &[-3_i32 as u32, 4, 10]), 17);
    assert_eq!(one("abs.s32 %d, %a;", &[1 << 31]), 1 << 31);
    assert_eq!(one("dp4a.s32.u32 %d, %a, %b, %c;", &[0xff01_ff01, 0x0203_0405, 100]), 102);
    let carry = "add.cc.u32 %a, %a, %b; addc.u32 %d, %c, %e;";
    assert_eq!(one(carry, &[u32::MAX, 1, 5, 6]), 12);
    let borrow = "sub.cc.u32 %a, %a, %b; subc.u32 %d, %c, %e;";
    assert_eq!(one(borrow, &[0, 1, 5, 3]), 1);
    let halves = "mov.b32 {%h0, %h1}, %a; add.s16 %h2, %h0, %h1; cvt.s32.s16 %d, %h2;";
    assert_eq!(one(halves, &[0x7fff_0001]), 0xffff_8000);
    let wide = "mov.b32 {%h0, %h1}, %a; mul.wide.s16 %d, %h0, %h1;";
    assert_eq!(one(wide, &[0x0003_fffe]), -6_i32 as u32);
}

#[test]
fn comparisons_with_nan() {
    let compare = |relation: &str, a: u32, b: u32| {
        let code = format!(".reg .pred t; setp.{relation}.f32 t, %a, %b; selp.b32 %d, 1, 0, t;");
        one(&code, &[a, b]) == 1
    };
    let nan = f(f32::NAN);
    for (ordered, unordered, equal, less) in [
        ("eq", "equ", true, false),
        ("ne", "neu", false, true),
        ("lt", "ltu", false, true),
        ("le", "leu", true, true),
        ("gt", "gtu", false, false),
        ("ge", "geu", true, false),
    ] {
        for name in [ordered, unordered] {
            assert_eq!(compare(name, f(1.0), f(1.0)), equal, "1 {name} 1");
            assert_eq!(compare(name, f(1.0), f(2.0)), less, "1 {name} 2");
        }
        assert!(!compare(ordered, nan, f(1.0)), "NaN {ordered} 1");
        assert!(compare(unordered, nan, f(1.0)), "NaN {unordered} 1");
    }
    assert!(compare("num", f(1.0), f(2.0)) && !compare("num", nan, f(2.0)));
    assert!(compare("nan", f(1.0), nan) && !compare("nan", f(1.0), f(2.0)));
    assert!(compare("eq", f(0.0), f(-0.0)));
    let both = "setp.lt.and.s32 p|q, %a, %b, %t; selp.b32 %d, 1, 0, p; selp.b32 %c, 2, 0, q; \
                add.u32 %d, %d, %c;";
    let with = |flag: u32, a: u32, b: u32| {
        let code = format!("setp.ne.u32 %t, {flag}, 0; {both}");
        run(&code, &[a, b], ".reg .pred %t;")
    };
    assert_eq!(with(1, 1, 2), 1);
    assert_eq!(with(1, 2, 1), 2);
    assert_eq!(with(0, 1, 2), 0);
    assert_eq!(one("set.lt.u32.s32 %d, %a, %b;", &[u32::MAX, 0]), u32::MAX);
    assert_eq!(one("set.lt.f32.u32 %d, %a, %b;", &[0, 1]), f(1.0));
}

#[test]
fn minimum_maximum_and_nan() {
    let nan = f(f32::NAN);
    assert_eq!(one("max.f32 %d, %a, %b;", &[nan, f(1.0)]), f(1.0));
    assert_eq!(one("min.f32 %d, %a, %b;", &[f(1.0), nan]), f(1.0));
    assert_eq!(one("min.f32 %d, %a, %b;", &[nan, nan]), NAN);
    assert_eq!(one("max.NaN.f32 %d, %a, %b;", &[nan, f(1.0)]), NAN);
    assert_eq!(one("min.f32 %d, %a, %b;", &[f(0.0), f(-0.0)]), f(-0.0));
    assert_eq!(one("max.f32 %d, %a, %b;", &[f(-0.0), f(0.0)]), f(0.0));
    assert_eq!(one("add.f32 %d, %a, %b;", &[nan, f(1.0)]), NAN);
    assert_eq!(one("copysign.f32 %d, %a, %b;", &[f(-1.0), f(2.0)]), f(-2.0));
    assert_eq!(one("max.bf16x2 %d, %a, %b;", &[0x3f80_ffff, 0x4000_bf80]), 0x4000_bf80);
}

#[test]
fn rounding_modes_of_f32() {
    let (one_bits, tiny) = (f(1.0), f(2_f32.powi(-30)));
    let next = one_bits + 1;
    assert_eq!(one("add.rn.f32 %d, %a, %b;", &[one_bits, tiny]), one_bits);
    assert_eq!(one("add.rp.f32 %d, %a, %b;", &[one_bits, tiny]), next);
    assert_eq!(one("add.rz.f32 %d, %a, %b;", &[one_bits, tiny]), one_bits);
    assert_eq!(one("sub.rz.f32 %d, %a, %b;", &[one_bits, tiny]), one_bits - 1);
    assert_eq!(one("sub.rm.f32 %d, %a, %b;", &[one_bits, one_bits]), f(-0.0));
    let third = f(1.0 / 3.0);
    assert_eq!(one("div.rz.f32 %d, %a, %b;", &[one_bits, f(3.0)]), third - 1);
    assert_eq!(one("div.rp.f32 %d, %a, %b;", &[one_bits, f(3.0)]), third);
    assert_eq!(one("sqrt.rm.f32 %d, %a;", &[f(2.0)]), f(2_f32.sqrt()));
    assert_eq!(one("sqrt.rp.f32 %d, %a;", &[f(2.0)]), f(2_f32.sqrt()) + 1);
    // A fused multiply-add rounds once.
    let (a, b) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON);
    let fused = a.mul_add(b, -1.0);
    assert_eq!(one("fma.rn.f32 %d, %a, %b, %c;", &[f(a), f(b), f(-1.0)]), f(fused));
    assert_ne!(fused, a * b - 1.0);
    assert_eq!(one("fma.rn.sat.f32 %d, %a, %b, %c;", &[f(2.0), f(3.0), f(-1.0)]), f(1.0));
    assert_eq!(one("add.sat.f32 %d, %a, %b;", &[f(f32::NAN), f(3.0)]), 0);
    // Subnormals go only where `.ftz` is written.
    assert_eq!(one("mul.f32 %d, %a, %b;", &[1, f(1.0)]), 1);
    assert_eq!(one("mul.ftz.f32 %d, %a, %b;", &[0x8000_0001, f(1.0)]), 0x8000_0000);
    assert_eq!(one("mul.rz.f32 %d, %a, %b;", &[f(f32::MAX), f(2.0)]), f(f32::MAX));
    assert_eq!(one("mul.rp.f32 %d, %a, %b;", &[f(f32::MAX), f(2.0)]), f(f32::INFINITY));
}

#[test]
fn approximations() {
    assert_eq!(one("ex2.approx.f32 %d, %a;", &[f(3.0)]), f(8.0));
    assert_eq!(one("ex2.approx.ftz.f32 %d, %a;", &[f(-140.0)]), 0);
    assert_eq!(one("ex2.approx.f32 %d, %a;", &[f(-140.0)]), f(2_f32.powi(-140)));
    assert_eq!(one("lg2.approx.f32 %d, %a;", &[f(8.0)]), f(3.0));
    assert_eq!(one("rcp.approx.f32 %d, %a;", &[f(0.0)]), f(f32::INFINITY));
    assert_eq!(one("rsqrt.approx.f32 %d, %a;", &[f(4.0)]), f(0.5));
    assert_eq!(one("rsqrt.approx.f32 %d, %a;", &[f(-4.0)]), NAN);
    assert_eq!(one("div.approx.f32 %d, %a, %b;", &[f(1.0), f(3e38)]), 0);
    assert_eq!(one("div.full.f32 %d, %a, %b;", &[f(1.0), f(4.0)]), f(0.25));
    assert_eq!(one("tanh.approx.f32 %d, %a;", &[f(20.0)]), f(1.0));
}

#[test]
fn conversions_between_floats_and_integers() {
    let to_s32 = |x: f32| one("cvt.rzi.s32.f32 %d, %a;", &[f(x)]);
    assert_eq!(to_s32(-2.7) as i32, -2);
    assert_eq!(to_s32(3e9), i32::MAX as u32);
    assert_eq!(to_s32(-3e9), 1 << 31);
    assert_eq!(to_s32(f32::NAN), 0);
    assert_eq!(one("cvt.rni.s32.f32 %d, %a;", &[f(2.5)]), 2);
    assert_eq!(one("cvt.rmi.s32.f32 %d, %a;", &[f(-2.1)]) as i32, -3);
    assert_eq!(one("cvt.rpi.s32.f32 %d, %a;", &[f(2.1)]), 3);
    assert_eq!(one("cvt.rzi.u32.f32 %d, %a;", &[f(-1.0)]), 0);
    assert_eq!(one("cvt.rzi.u8.f32 %d, %a;", &[f(300.0)]), 255);
    let wide = "cvt.rzi.s64.f32 %w0, %a; shr.u64 %w0, %w0, 32; cvt.u32.u64 %d, %w0;";
    assert_eq!(one(wide, &[f(f32::NAN)]), 1 << 31);
    assert_eq!(one("cvt.rn.f32.s32 %d, %a;", &[0x0100_0001]), f(16_777_216.0));
    assert_eq!(one("cvt.rp.f32.u32 %d, %a;", &[0x0100_0001]), f(16_777_218.0));
    assert_eq!(one("cvt.rni.f32.f32 %d, %a;", &[f(-0.4)]), f(-0.0));
    assert_eq!(one("cvt.sat.f32.f32 %d, %a;", &[f(1.5)]), f(1.0));
    assert_eq!(one("cvt.sat.u8.s32 %d, %a;", &[-5_i32 as u32]), 0);
    assert_eq!(one("cvt.s32.s8 %d, %a;", &[0x1ff]), u32::MAX);
    let double = "cvt.f64.f32 %w0, %a; mul.f64 %w0, %w0, 0d3FD5555555555555; \
                  cvt.rn.f32.f64 %d, %w0;";
    assert_eq!(one(double, &[f(3.0)]), f(1.0));
}

#[test]
fn conversions_to_narrow_floats() {
    let halves = "cvt.rn.bf16.f32 %h0, %a; mov.b32 %d, {%h0, %h0};";
    let bf16 = |bits: u32| one(halves, &[bits]) & 0xffff;
    assert_eq!(bf16(0x3f80_8000), 0x3f80);
    assert_eq!(bf16(0x3f81_8000), 0x3f82);
    assert_eq!(bf16(0x3f80_8001), 0x3f81);
    assert_eq!(bf16(0x7f7f_ffff), 0x7f80);
    assert_eq!(bf16(0x0000_ffff), 0x0001);
    assert_eq!(bf16(0xffff_ffff), 0x7fff);
    assert_eq!(one("cvt.rn.bf16x2.f32 %d, %a, %b;", &[f(1.0), f(-2.0)]), 0x3f80_c000);
    assert_eq!(one("cvt.rn.relu.bf16x2.f32 %d, %a, %b;", &[f(1.0), f(-2.0)]), 0x3f80_0000);
    assert_eq!(one("cvt.rz.bf16x2.f32 %d, %a, %b;", &[0x3f80_ffff, 0xbf80_ffff]), 0x3f80_bf80);
    assert_eq!(one("cvt.rn.f16x2.f32 %d, %a, %b;", &[f(65519.0), f(65520.0)]), 0x7bff_7c00);
    assert_eq!(
        one("cvt.rn.f16x2.f32 %d, %a, %b;", &[f(2_f32.powi(-24)), f(2_f32.powi(-25))]),
        0x0001_0000
    );
    assert_eq!(one("cvt.rna.tf32.f32 %d, %a;", &[0x3f80_1000]), 0x3f80_2000);
    let back = "mov.b32 {%h0, %h1}, %a; cvt.f32.f16 %d, %h1;";
    assert_eq!(one(back, &[0x0001_0000]), f(2_f32.powi(-24)));
    assert_eq!(one(back, &[0xfc00_0000]), f(f32::NEG_INFINITY));
    let fused = "fma.rn.bf16x2 %d, %a, %b, %c;";
    assert_eq!(one(fused, &[0x3f80_4000, 0x4000_4040, 0x3f80_bf80]), 0x4040_40a0);
}

#[test]
fn shuffle_modes() {
    let shuffle = |mode: &str, lane: &str, clamp: u32| {
        let body = format!(
            ".reg .b32 %v, %c, %b; .reg .b64 %at; .reg .pred p;\n\
             mad.lo.u32 %v, %lane, 10, 3;\nmov.u32 %b, {lane};\n\
             shfl.sync.{mode}.b32 %v|p, %v, %b, {clamp:#x}, 0xffffffff;\n\
             selp.b32 %c, 1000, 0, p;\nadd.u32 %v, %v, %c;\n\
             mad.wide.u32 %at, %lane, 4, %out;\nst.global.b32 [%at], %v;"
        );
        Bench::ptx(&body).words(32)
    };
    let expect = |source: &dyn Fn(u32) -> Option<u32>| -> Vec<u32> {
        let value = |lane: u32| 10 * lane + 3;
        let each = |lane: u32| source(lane).map_or(value(lane), |source| 1000 + value(source));
        (0..32).map(each).collect()
    };
    assert_eq!(shuffle("up", "3", 0), expect(&|lane| lane.checked_sub(3)));
    assert_eq!(shuffle("down", "3", 31), expect(&|lane| Some(lane + 3).filter(|&s| s < 32)));
    assert_eq!(shuffle("bfly", "16", 31), expect(&|lane| Some(lane ^ 16)));
    assert_eq!(shuffle("idx", "37", 31), expect(&|_| Some(5)));
    // Segments of eight lanes.
    let segment = 0x1807;
    let down = |lane: u32| Some(lane + 3).filter(|&s| s / 8 == lane / 8);
    assert_eq!(shuffle("down", "3", segment), expect(&down));
    let up = |lane: u32| lane.checked_sub(3).filter(|&s| s / 8 == lane / 8);
    assert_eq!(shuffle("up", "3", 0x1800), expect(&up));
    assert_eq!(shuffle("idx", "6", segment), expect(&|lane| Some(lane / 8 * 8 + 6)));
}

#[test]
fn votes_matches_and_reductions() {
    let body = ".reg .b32 %v<8>; .reg .pred p, q;\n\
        setp.lt.u32 p, %lane, 5;\n\
        vote.sync.ballot.b32 %v0, p, 0xffffffff;\n\
        vote.sync.any.pred q, p, 0xffffffff;\nselp.b32 %v1, 1, 0, q;\n\
        vote.sync.all.pred q, p, 0xffffffff;\nselp.b32 %v2, 1, 0, q;\n\
        and.b32 %v3, %lane, 3;\nmatch.any.sync.b32 %v4, %v3, 0xffffffff;\n\
        redux.sync.add.u32 %v5, %lane, 0xffffffff;\n\
        redux.sync.min.s32 %v6, %v4, 0xffffffff;\n\
        activemask.b32 %v7;\n\
        st.global.v4.b32 [%out], {%v0, %v1, %v2, %v4};\n\
        st.global.v2.b32 [%out+16], {%v5, %v6};\nst.global.b32 [%out+24], %v7;";
    // All lanes store to one place: the last lane wins, which has remainder 3.
    let words = Bench::ptx(body).words(8);
    assert_eq!(words[..7], [31, 1, 0, 0x8888_8888, 496, 0x8888_8888, u32::MAX]);
}

#[test]
fn barriers_that_reduce_and_arrivals() {
    let body = ".reg .b32 %t, %n; .reg .pred p, q; .reg .b64 %at;\n\
        mov.u32 %t, %tid.x;\nsetp.lt.u32 p, %t, 40;\n\
        bar.red.popc.u32 %n, 0, p;\n\
        bar.red.or.pred q, 1, !p;\n@q add.u32 %n, %n, 100;\n\
        bar.red.and.pred q, 1, p;\n@q add.u32 %n, %n, 1000;\n\
        mad.wide.u32 %at, %t, 4, %out;\nst.global.b32 [%at], %n;";
    let bench = Bench::ptx(body);
    let out = bench.room::<u32>(64);
    bench.launch("k", 1, 64, &[Arg::U64(out)]);
    assert_eq!(bench.download::<u32>(out, 64), [140; 64]);
    // One warp produces, the other consumes.
    let body = ".reg .b32 %t, %v; .reg .pred p; .reg .b64 %at; .shared .b32 slot;\n\
        mov.u32 %t, %tid.x;\nsetp.lt.u32 p, %t, 32;\n@!p bra consume;\n\
        st.shared.b32 [slot], 77;\nbar.arrive 3, 64;\nret;\n\
        consume:\nbar.sync 3, 64;\nld.shared.b32 %v, [slot];\nst.global.b32 [%out], %v;";
    let bench = Bench::load(&kernel(body), Config { seed: 5, ..Config::default() });
    let out = bench.room::<u32>(1);
    bench.launch("k", 1, 64, &[Arg::U64(out)]);
    assert_eq!(bench.download::<u32>(out, 1), [77]);
}

#[test]
fn scopes_nest_and_hide() {
    let body = ".reg .b32 %x, %y;\nmov.u32 %x, 1;\nmov.u32 %y, 0;\n\
        {\n.reg .b32 %x;\nmov.u32 %x, 20;\nadd.u32 %y, %y, %x;\nbra done;\nadd.u32 %y, %y, 1000;\n\
        done:\n}\n{\n.reg .b32 %x;\nmov.u32 %x, 300;\nadd.u32 %y, %y, %x;\nbra done;\n\
        add.u32 %y, %y, 5000;\ndone:\n}\nadd.u32 %y, %y, %x;\nst.global.b32 [%out], %y;";
    assert_eq!(Bench::ptx(body).words(1), [321]);
}

#[test]
fn generic_addresses_and_fresh_memory() {
    let body = ".reg .b64 %a<4>; .reg .b32 %v<4>; .shared .align 8 .b32 s[2]; .local .b32 l[2];\n\
        .reg .pred p;\n\
        mov.u64 %a0, s;\ncvta.shared.u64 %a0, %a0;\nst.u32 [%a0+4], 11;\n\
        mov.u64 %a1, l;\ncvta.local.u64 %a1, %a1;\nst.u32 [%a1], 22;\n\
        ld.shared.u32 %v0, [s+4];\nld.local.u32 %v1, [l];\n\
        ld.shared.u32 %v2, [s];\n\
        isspacep.shared p, %a0;\nselp.u32 %v3, 1, 0, p;\n\
        st.global.v4.u32 [%out], {%v0, %v1, %v2, %v3};";
    assert_eq!(Bench::ptx(body).words(5), [11, 22, u32::MAX, 1, u32::MAX]);
}

#[test]
fn shared_variables_are_aligned_as_declared_and_no_further() {
    let body = "
        .shared .b8 a;
        .shared .align 2 .b8 b[3];
        .shared .b32 c;
        .shared .align 8 .b8 d[8];
        .shared .align 16 .b8 e[16];
        .shared .align 128 .b8 f[1];
        .reg .b32 %x;
        mov.u32 %x, a; st.global.u32 [%out], %x;
        mov.u32 %x, b; st.global.u32 [%out+4], %x;
        mov.u32 %x, c; st.global.u32 [%out+8], %x;
        mov.u32 %x, d; st.global.u32 [%out+12], %x;
        mov.u32 %x, e; st.global.u32 [%out+16], %x;
        mov.u32 %x, f; st.global.u32 [%out+20], %x;
        mov.u32 %x, dynamic; st.global.u32 [%out+24], %x;
        mov.u32 %x, %total_smem_size; st.global.u32 [%out+28], %x;";
    let ptx =
        kernel(body).replace(".visible", ".extern .shared .align 64 .b8 dynamic[];\n.visible");
    let words = Bench::load(&ptx, Config { sanitizer: false, ..Config::default() }).words(8);
    for (address, align) in words.iter().zip([1, 2, 4, 8, 16, 128, 64]) {
        assert_eq!(address % (2 * align), align, "{address} for an alignment of {align}");
    }
    // As if they lay next to each other: 1, 2..5, 8..12, 16..24, 32..48, 128..129.
    assert_eq!(words[7], 192);
}

#[test]
fn atomics() {
    let body = ".reg .b32 %v<8>;\n.reg .pred p;\nsetp.ne.u32 p, %lane, 0;\n@p ret;\n\
        st.global.v4.u32 [%out], {7, 0, 9, 0};\nst.global.v2.u32 [%out+16], {0x3f800000, 0};\n\
        atom.global.inc.u32 %v0, [%out], 7;\natom.global.dec.u32 %v1, [%out+4], 3;\n\
        atom.global.cas.b32 %v2, [%out+8], 9, 10;\natom.global.max.s32 %v3, [%out+12], -1;\n\
        red.global.add.f32 [%out+16], 0f40000000;\natom.global.exch.b32 %v4, [%out+20], 5;\n\
        mov.b32 %v5, 0x3c003c00;\n\
        atom.global.add.noftz.f16x2 %v5, [%out+24], %v5;";
    let words = Bench::ptx(body).words(7);
    assert_eq!(words[..6], [0, 3, 10, 0, f(3.0), 5]);
    assert_eq!(words[6], 0x7fff_7fff);
}

#[test]
fn copies_of_no_bytes_touch_nothing() {
    let body = ".reg .b32 %n, %s, %v; .reg .pred p; .shared .align 16 .b8 tile[512];\n\
        mov.u32 %s, tile;\nmad.lo.u32 %s, %lane, 16, %s;\nmov.u32 %n, 0;\n.reg .b64 %nowhere;\nmov.u64 %nowhere, 0;\n\
        cp.async.cg.shared.global [%s], [%nowhere], 16, %n;\n\
        cp.async.wait_all;\nld.shared.u32 %v, [%s];\nst.global.u32 [%out], %v;";
    assert_eq!(Bench::ptx(body).words(1), [0]);
    let bench = Bench::ptx(&body.replace("%n, 0;", "%n, 17;"));
    let fault = bench.fault("k", 1, 32, &[Arg::U64(bench.room::<u32>(1))]);
    assert_eq!(fault.kind, FaultKind::IllegalOperand);
}

#[test]
fn indexed_branches() {
    let body = ".reg .b32 %i, %v; .reg .b64 %at;\nrem.u32 %i, %lane, 3;\n\
        list: .branchtargets first, second, third;\nbrx.idx %i, list;\n\
        first:\nmov.u32 %v, 10;\nbra.uni end;\nsecond:\nmov.u32 %v, 20;\nbra.uni end;\n\
        third:\nmov.u32 %v, 30;\n\
        end:\nbar.warp.sync 0xffffffff;\nmad.wide.u32 %at, %lane, 4, %out;\n\
        st.global.u32 [%at], %v;";
    let expected: Vec<u32> = (0..32).map(|lane| 10 * (lane % 3 + 1)).collect();
    assert_eq!(Bench::ptx(body).words(32), expected);
}

/// What cooperative groups make of `this_grid().sync()`: the master of each block adds to a word of
/// the grid's workspace and waits until its upper bit flips.
const GRID_SYNC: &str = r#"
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out) {
    .reg .b64 %out, %workspace, %slot, %other; .reg .b32 %high, %low, %block, %blocks, %thread;
    .reg .b32 %add, %old, %now, %value, %next, %round; .reg .pred %p, %q;
    ld.param.u64 %out, [out];
    mov.u32 %high, %envreg1;
    mov.u32 %low, %envreg2;
    mov.b64 %workspace, {%low, %high};
    setp.ne.u64 %p, %workspace, 0;
    @!%p trap;
    mov.u32 %block, %ctaid.x;
    mov.u32 %blocks, %nctaid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %round, 0;
ROUND:
    // Each block adds what its neighbour had in the round before.
    add.u32 %next, %block, 1;
    rem.u32 %next, %next, %blocks;
    mad.wide.u32 %slot, %block, 4, %out;
    mad.wide.u32 %other, %next, 4, %out;
    and.b32 %low, %round, 1;
    mul.lo.u32 %low, %low, %blocks;
    mul.wide.u32 %workspace, %low, 4;
    add.u64 %other, %other, %workspace;
    xor.b32 %low, %round, 1;
    and.b32 %low, %low, 1;
    mul.lo.u32 %low, %low, %blocks;
    mul.wide.u32 %workspace, %low, 4;
    add.u64 %slot, %slot, %workspace;
    setp.ne.u32 %p, %thread, 0;
    @%p bra ARRIVE;
    ld.global.u32 %value, [%other];
    add.u32 %value, %value, 1;
    st.global.u32 [%slot], %value;
ARRIVE:
    mov.u32 %high, %envreg1;
    mov.u32 %low, %envreg2;
    mov.b64 %workspace, {%low, %high};
    barrier.sync 0;
    @%p bra MET;
    mov.u32 %add, 1;
    sub.u32 %old, 0x80000001, %blocks;
    setp.eq.u32 %q, %block, 0;
    selp.b32 %add, %old, %add, %q;
    atom.add.release.gpu.u32 %old, [%workspace+4], %add;
WAIT:
    ld.acquire.gpu.u32 %now, [%workspace+4];
    xor.b32 %now, %now, %old;
    setp.ge.s32 %q, %now, 0;
    @%q bra WAIT;
MET:
    barrier.sync 0;
    add.u32 %round, %round, 1;
    setp.lt.u32 %q, %round, 5;
    @%q bra ROUND;
    ret;
}
"#;

#[test]
fn the_blocks_of_a_cooperative_grid_meet() {
    let bench = Bench::load(GRID_SYNC, Config::default());
    for _ in 0..2 {
        let out = bench.upload(&[0_u32; 14]);
        bench.try_cooperative("k", 7, 64, &[Arg::U64(out)]).expect("a grid that meets");
        // After five rounds each holds five, and the round before left four.
        assert_eq!(bench.download::<u32>(out, 14), [[4; 7], [5; 7]].concat());
        bench.device.free(out).expect("an allocation");
        assert_eq!(bench.device.memory_in_use(), 0);
    }
    // Another grid has no workspace.
    let out = bench.upload(&[0_u32; 14]);
    match bench.try_launch("k", 7, 64, 0, &[Arg::U64(out)]) {
        Err(LaunchError::Fault(fault)) => assert_eq!(fault.kind, FaultKind::Trap),
        other => panic!("a trap was expected, not {other:?}"),
    }
}
