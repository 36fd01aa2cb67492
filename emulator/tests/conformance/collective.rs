//! What threads do together: shuffles (PTX ISA 9.7.9.6), barriers, votes, matches and reductions
//! (9.7.13).

use cuda_emulator::FaultKind;

use super::harness::*;

const ALL: u64 = 0xffff_ffff;

pub fn families() -> Vec<Family> {
    vec![
        family("9.7.9.6 shfl.sync", "shfl", shuffles()),
        family("9.7.13.9 vote.sync", "vote", votes()),
        family("9.7.13.10 match.sync", "match", matches()),
        family("9.7.13.11 activemask", "activemask", active()),
        family("9.7.13.12 redux.sync", "redux", reductions()),
        family(
            "9.7.13.13 griddepcontrol",
            "griddepcontrol",
            vec![exact(
                "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.u32 r0, 1;",
                &[(&[], 1)],
            )],
        ),
        family("9.7.13.14 elect.sync", "elect", elections()),
        family("9.7.13.1 bar", "bar", barriers("bar")),
        family("9.7.13.1 barrier", "barrier", barriers("barrier")),
    ]
}

#[test]
fn collectives() {
    check(&families());
}

/// The value that lane l offers.
fn value(lane: usize) -> u64 {
    10 * lane as u64 + 3
}

/// A shuffle: the lane that each one reads and whether that is in range.
fn shuffle(mode: &str, b: &str, c: u64, source: fn(usize) -> Option<usize>) -> Case {
    let code = format!(
        "shfl.sync.{mode}.b32 r10|p10, r1, {b}, {c:#x}, 0xffffffff; selp.u32 r11, 1, 0, p10; \
         mov.b64 w0, {{r10, r11}};"
    );
    warp(
        code,
        |lane| vec![value(lane), lane as u64 % 5],
        move |lane| match source(lane) {
            Some(source) => value(source) | 1 << 32,
            None => value(lane),
        },
    )
}

fn shuffles() -> Vec<Case> {
    // A segment mask of 0b11000 makes four segments of eight lanes.
    vec![
        shuffle("up", "3", 0, |lane| lane.checked_sub(3)),
        shuffle("up", "3", 0x1800, |lane| lane.checked_sub(3).filter(|s| s / 8 == lane / 8)),
        shuffle("up", "35", 0, |lane| lane.checked_sub(3)),
        // For `up` the clamp is the lowest lane.
        shuffle("up", "1", 4, |lane| lane.checked_sub(1).filter(|&s| s >= 4)),
        shuffle("down", "3", 31, |lane| Some(lane + 3).filter(|&s| s < 32)),
        shuffle("down", "3", 0x1807, |lane| Some(lane + 3).filter(|s| s / 8 == lane / 8)),
        shuffle("down", "1", 11, |lane| Some(lane + 1).filter(|&s| s <= 11)),
        shuffle("bfly", "1", 31, |lane| Some(lane ^ 1)),
        shuffle("bfly", "16", 31, |lane| Some(lane ^ 16)),
        shuffle("bfly", "31", 0x1f, |lane| Some(31 - lane)),
        // Lanes of lower segments are in range, those of higher ones are not.
        shuffle("bfly", "8", 0x1807, |lane| Some(lane ^ 8).filter(|&s| s < lane)),
        shuffle("idx", "37", 31, |_| Some(5)),
        shuffle("idx", "6", 0x1807, |lane| Some(lane / 8 * 8 + 6)),
        shuffle("idx", "6", 3, |lane| Some(6).filter(|_| lane > 99)),
        // Every lane names its own source: input 2.
        shuffle("idx", "r2", 31, |lane| Some(lane % 5)),
        shuffle("down", "r2", 31, |lane| Some(lane + lane % 5).filter(|&s| s < 32)),
        // Without a predicate, and among the lanes of a mask.
        warp(
            "setp.lt.u32 p10, rl, 16; mov.u32 r0, 7; \
             @p10 shfl.sync.bfly.b32 r0, r1, 1, 31, 0xffff;",
            |lane| vec![value(lane)],
            |lane| if lane < 16 { value(lane ^ 1) } else { 7 },
        ),
        fault(
            "setp.lt.u32 p10, rl, 16; @p10 shfl.sync.idx.b32 r10, r1, 0, 31, -1;",
            FaultKind::MissingLanes,
        ),
        refused("shfl.sync.idx.b32 _|p0, r1, 0, 31, -1;", "needs a register"),
        refused("shfl.idx.b32 r0, r1, 0, 31;", "does not exist"),
        refused("shfl.sync.b32 r0, r1, 0, 31, -1;", "does not exist"),
    ]
}

fn votes() -> Vec<Case> {
    let below = |code: &str, limit: u64, expected: fn(usize) -> u64| {
        let code = format!("setp.lt.u32 p10, rl, {limit}; {code}");
        warp(code, |_| vec![], expected)
    };
    let vote = |mode: &str| format!("vote.sync.{mode}.pred p0, p10, 0xffffffff;");
    vec![
        below(&vote("all"), 32, |_| 1),
        below(&vote("all"), 31, |_| 0),
        below(&vote("any"), 1, |_| 1),
        below(&vote("any"), 0, |_| 0),
        below(&vote("uni"), 0, |_| 1),
        below(&vote("uni"), 32, |_| 1),
        below(&vote("uni"), 5, |_| 0),
        below("vote.sync.all.pred p0, !p10, 0xffffffff;", 0, |_| 1),
        below("vote.sync.ballot.b32 r0, p10, 0xffffffff;", 5, |_| 0x1f),
        below("vote.sync.ballot.b32 r0, !p10, 0xffffffff;", 5, |_| ALL & !0x1f),
        // Lanes that do not take part count for nothing.
        warp(
            "setp.ge.u32 p10, rl, 8; mov.u32 r0, 5; and.b32 r10, rl, 1; setp.eq.u32 p11, r10, 0; \
             @p10 vote.sync.ballot.b32 r0, p11, 0xffffff00;",
            |_| vec![],
            |lane| if lane < 8 { 5 } else { 0x5555_5500 },
        ),
        refused("vote.sync.ballot.pred p0, p1, -1;", "does not exist"),
        refused("vote.all.pred p0, p1;", "does not exist"),
        fault(
            "setp.lt.u32 p10, rl, 4; @p10 vote.sync.any.pred p11, p10, -1;",
            FaultKind::MissingLanes,
        ),
    ]
}

fn matches() -> Vec<Case> {
    let pattern = |lane: usize| {
        (0..LANES)
            .filter(|other| other % 3 == lane % 3)
            .fold(0, |mask, other| mask | 1_u64 << other)
    };
    let all = "selp.u32 r11, 1, 0, p10; mov.b64 w0, {r10, r11};";
    vec![
        warp("match.any.sync.b32 r0, r1, 0xffffffff;", |lane| vec![lane as u64 % 3], pattern),
        warp(
            "match.any.sync.b64 r0, w1, 0xffffffff;",
            |lane| vec![(lane as u64 % 3) << 40],
            pattern,
        ),
        warp(
            format!("match.all.sync.b32 r10|p10, r1, 0xffffffff; {all}"),
            |_| vec![9],
            |_| ALL | 1 << 32,
        ),
        warp(
            format!("match.all.sync.b32 r10|p10, r1, 0xffffffff; {all}"),
            |lane| vec![u64::from(lane == 31)],
            |_| 0,
        ),
        warp(
            format!("match.all.sync.b64 r10|p10, w1, -1; {all}"),
            |lane| vec![(lane as u64) << 32],
            |_| 0,
        ),
        warp("match.all.sync.b32 r0, r1, -1;", |_| vec![9], |_| ALL),
        warp("match.all.sync.b32 _|p0, r1, -1;", |_| vec![9], |_| 1),
        refused("match.any.sync.b32 r0|p0, r1, -1;", "writes no predicate"),
        refused("match.some.sync.b32 r0, r1, -1;", "does not exist"),
    ]
}

fn active() -> Vec<Case> {
    vec![
        warp("activemask.b32 r0;", |_| vec![], |_| ALL),
        warp(
            "and.b32 r10, rl, 1; setp.eq.u32 p10, r10, 1; mov.u32 r0, 0; @p10 activemask.b32 r0;",
            |_| vec![],
            |lane| if lane % 2 == 1 { 0xaaaa_aaaa } else { 0 },
        ),
    ]
}

fn reductions() -> Vec<Case> {
    let number = |lane: usize| vec![lane as u64 + 5];
    let sign = |lane: usize| vec![if lane == 7 { ALL - 1 } else { lane as u64 }];
    vec![
        warp("redux.sync.add.u32 r0, r1, -1;", number, |_| 496 + 160),
        warp("redux.sync.add.s32 r0, r1, -1;", |_| vec![ALL], |_| i(-32)),
        warp("redux.sync.min.u32 r0, r1, -1;", sign, |_| 0),
        warp("redux.sync.min.s32 r0, r1, -1;", sign, |_| i(-2)),
        warp("redux.sync.max.u32 r0, r1, -1;", sign, |_| i(-2)),
        warp("redux.sync.max.s32 r0, r1, -1;", sign, |_| 31),
        warp("redux.sync.and.b32 r0, r1, -1;", |lane| vec![0xf0 | lane as u64 | 2], |_| 0xf2),
        warp("redux.sync.or.b32 r0, r1, -1;", |lane| vec![1 << lane], |_| ALL),
        warp("redux.sync.xor.b32 r0, r1, -1;", |lane| vec![3 << (lane / 4)], |_| 0),
        warp(
            "setp.lt.u32 p10, rl, 4; mov.u32 r0, 1; @p10 redux.sync.add.u32 r0, r1, 0xf;",
            number,
            |lane| if lane < 4 { 26 } else { 1 },
        ),
        refused("redux.sync.add.b32 r0, r1, -1;", "redux"),
        refused("redux.sync.and.u32 r0, r1, -1;", "redux"),
    ]
}

fn elections() -> Vec<Case> {
    let result = "selp.u32 r11, 1, 0, p10; mov.b64 w0, {r10, r11};";
    vec![
        warp(
            format!("elect.sync r10|p10, -1; {result}"),
            |_| vec![],
            |lane| u64::from(lane == 0) << 32,
        ),
        warp("elect.sync _|p0, -1;", |_| vec![], |lane| u64::from(lane == 0)),
        refused("elect.sync r0|_, -1;", "a register is expected"),
        warp(
            format!(
                "setp.ge.u32 p11, rl, 20; mov.u32 r10, 99; setp.ne.u32 p10, 0, 0; \
                 @p11 elect.sync r10|p10, 0xfff00000; {result}"
            ),
            |_| vec![],
            |lane| if lane < 20 { 99 } else { 20 | u64::from(lane == 20) << 32 },
        ),
    ]
}

fn barriers(opcode: &str) -> Vec<Case> {
    // What every lane stores before a barrier, its neighbour reads after it.
    let exchange = |barrier: &str| {
        let code = format!(
            "st.shared.u32 [rs], r1; {opcode}{barrier}; xor.b32 r10, rs, 64; \
             ld.shared.u32 r0, [r10];"
        );
        warp(code, |lane| vec![value(lane)], |lane| value(lane ^ 1))
    };
    // `tile` starts at a multiple of 128, so that the slots of lanes 2i and 2i + 1 differ by bit 6.
    let mut cases = vec![
        exchange(".sync 0"),
        exchange(".sync 3, 32"),
        exchange(".cta.sync 0"),
        exchange(".red.popc.u32 r10, 2, p1"),
    ];
    let odd = "and.b32 r10, rl, 1; setp.eq.u32 p10, r10, 1;";
    let counted = |code: &str, result: u64| {
        warp(format!("{odd} setp.lt.u32 p11, rl, 32; {opcode}{code}"), |_| vec![], move |_| result)
    };
    cases.extend([
        counted(".red.popc.u32 r0, 0, p10;", 16),
        counted(".red.popc.u32 r0, 0, 32, !p11;", 0),
        counted(".red.and.pred p0, 0, p10;", 0),
        counted(".red.and.pred p0, 0, p11;", 1),
        counted(".red.or.pred p0, 1, p10;", 1),
        counted(".red.or.pred p0, 1, !p11;", 0),
        counted(".sync 15; mov.u32 r0, 1;", 1),
        counted(".cta.red.popc.u32 r0, 0, p10;", 16),
        counted(".cta.red.and.pred p0, 0, p11;", 1),
        counted(".cta.red.or.pred p0, 0, !p11;", 0),
        // An arrival waits for nothing; the barrier is complete with it.
        counted(".arrive 4, 32; mov.u32 r0, 1;", 1),
        counted(".cta.arrive 4, 32; mov.u32 r0, 1;", 1),
        refused(&format!("{opcode}.arrive 1;"), "thread count"),
        refused(&format!("{opcode}.nothing 1;"), "does not exist"),
        fault(&format!("{opcode}.sync 16;"), FaultKind::IllegalOperand),
        fault(&format!("{opcode}.sync 1, 64;"), FaultKind::IllegalOperand),
    ]);
    if opcode == "bar" {
        cases.push(exchange(".warp.sync 0xffffffff"));
        cases.push(fault(&format!("{odd} @p10 bar.sync 0;"), FaultKind::DivergentBarrier));
        cases.push(fault(&format!("{odd} @p10 bar.warp.sync -1;"), FaultKind::MissingLanes));
    } else {
        cases.push(exchange(".sync.aligned 0"));
        cases.push(exchange(".cta.sync.aligned 0"));
        cases.push(counted(".red.popc.aligned.u32 r0, 0, p10;", 16));
        cases.push(counted(".red.and.aligned.pred p0, 0, p10;", 0));
        cases.push(counted(".red.or.aligned.pred p0, 0, p10;", 1));
        cases.push(counted(".cta.red.popc.aligned.u32 r0, 0, p10;", 16));
        cases.push(counted(".cta.red.and.aligned.pred p0, 0, p11;", 1));
        cases.push(counted(".cta.red.or.aligned.pred p0, 0, p10;", 1));
        cases.push(counted(".arrive.aligned 4, 32; mov.u32 r0, 1;", 1));
        cases.push(counted(".cta.arrive.aligned 4, 32; mov.u32 r0, 1;", 1));
    }
    cases
}
