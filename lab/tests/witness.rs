//! The witness for latency on small pieces of machine code, whose waits can be told by hand.

use std::fmt::Write as _;
use std::fs;

use fused_dora_lab::witness::check::Checked;
use fused_dora_lab::witness::code::{Instruction, Kernel, read};
use fused_dora_lab::witness::control::Control;
use fused_dora_lab::witness::flow::Graph;
use fused_dora_lab::witness::latencies::Latencies;
use fused_dora_lab::witness::pipeline::{Copies, Timing, time};
use fused_dora_lab::witness::tiles;
use fused_dora_lab::witness::way::{Choice, Span, find_loop, line_with};
use fused_dora_testkit::workspace;

const NONE: u64 = 7;

/// A control field: stall count, scoreboards of the result and of the sources, and the wait mask.
fn field(stall: u64, write: u64, read: u64, wait: u64) -> u64 {
    stall | 1 << 4 | write << 5 | read << 8 | wait << 11
}

/// A line of a source, an instruction, and its control field.
type Line<'a> = (usize, &'a str, u64);

/// What nvdisasm would print. A line that begins with `.L` is a label. Fields are `shift` bits
/// further up than they should be.
fn disassembly(lines: &[Line<'_>], shift: u32) -> String {
    let mut text = ".text.kernel:\n".to_owned();
    for (number, (line, instruction, field)) in lines.iter().enumerate() {
        if instruction.starts_with(".L") {
            let _ = writeln!(text, "{instruction}:");
            continue;
        }
        let _ = write!(
            text,
            "\t//## File \"/kernels/op/tile.cuh\", line {line} inlined at \"/kernels/op.cu\", line \
             9\n\t//## File \"/kernels/op.cu\", line 9\n        \
             /*{:04x}*/  {instruction} ;  /* 0x0000000402027981 */\n{:>60}/* {:#018x} */\n",
            16 * number,
            "",
            field << 41 << shift
        );
    }
    text
}

fn kernel(lines: &[Line<'_>]) -> Kernel {
    read(&disassembly(lines, 0)).unwrap().remove(0)
}

/// The timing of the loop in a piece of code.
fn timing(lines: &[Line<'_>]) -> Timing {
    let kernel = kernel(lines);
    let graph = Graph::new(&kernel);
    let loops = graph.loops();
    let [found] = loops.as_slice() else { panic!("{loops:?}") };
    let way = Choice::default().through_loop(&graph, found).unwrap();
    time(&way, &Latencies::of("sm_80").unwrap(), Copies::L2)
}

const LOOP: Line<'static> = (1, ".L_x_0", 0);
const BACK: Line<'static> = (4, "@P0 BRA `(.L_x_0)", field_const(5, 7));
const EXIT: Line<'static> = (5, "EXIT", field_const(5, 7));
const LOAD: &str = "LDG.E.128 R4, [R2.64]";
const USE: &str = "FADD R8, R4, R8";

const fn field_const(stall: u64, write: u64) -> u64 {
    stall | 1 << 4 | write << 5 | 7 << 8
}

#[test]
fn a_load_that_is_used_at_once_is_exposed_and_hasty() {
    let timing = timing(&[
        LOOP,
        (2, LOAD, field(1, 0, NONE, 0)),
        (3, USE, field(4, NONE, NONE, 0b1)),
        BACK,
        EXIT,
    ]);
    assert_eq!((timing.exposed(), timing.hasty()), (1, 1));
    // Device memory's 650 clocks, and the stalls of the sum and of the branch.
    assert_eq!(timing.one, 650.0 + 4.0 + 5.0);
    let [wait] = timing.waits[..] else { panic!("{:?}", timing.waits) };
    assert_eq!((wait.load, wait.user, wait.between, wait.idle), (0, 1, 1, 649.0));
}

#[test]
fn work_in_between_covers_a_load() {
    let mut lines = vec![LOOP, (2, LOAD, field(1, 0, NONE, 0))];
    lines.extend([(3, "IADD3 R9, R9, 0x1, RZ", field(15, NONE, NONE, 0)); 50]);
    lines.extend([(3, USE, field(4, NONE, NONE, 0b1)), BACK, EXIT]);
    let timing = timing(&lines);
    assert_eq!((timing.exposed(), timing.hasty()), (0, 0));
    assert_eq!(timing.one, 1.0 + 50.0 * 15.0 + 4.0 + 5.0);
}

#[test]
fn loads_together_count_once_and_a_load_for_the_next_iteration_does_not() {
    let together = [
        LOOP,
        (2, LOAD, field(1, 0, NONE, 0)),
        (2, "LDG.E.128 R12, [R20.64]", field(1, 1, NONE, 0)),
        (3, USE, field(4, NONE, NONE, 0b1)),
        (3, "FADD R8, R12, R8", field(4, NONE, NONE, 0b10)),
        BACK,
        EXIT,
    ];
    assert_eq!(timing(&together).exposed(), 1);
    let ahead =
        [LOOP, (3, USE, field(4, NONE, NONE, 0b1)), (2, LOAD, field(1, 0, NONE, 0)), BACK, EXIT];
    assert_eq!(timing(&ahead).exposed(), 0);
}

#[test]
fn another_address_is_another_line() {
    let two = |between: &'static str, operand: &'static str| {
        timing(&[
            LOOP,
            (2, LOAD, field(1, 0, NONE, 0)),
            (3, USE, field(4, NONE, NONE, 0b1)),
            (2, between, field(6, NONE, NONE, 0)),
            (2, operand, field(1, 0, NONE, 0)),
            (3, USE, field(4, NONE, NONE, 0b1)),
            BACK,
            EXIT,
        ])
        .exposed()
    };
    assert_eq!(two("IADD3 R9, R9, 0x1, RZ", "LDG.E.128 R4, [R2.64+0x10]"), 1);
    assert_eq!(two("IADD3 R9, R9, 0x1, RZ", "LDG.E.128 R4, [R2.64+0x80]"), 2);
    assert_eq!(two("IADD3 R2, R2, 0x1, RZ", "LDG.E.128 R4, [R2.64+0x10]"), 2);
    // A descriptor is no address.
    assert_eq!(two("IADD3 R9, R9, 0x1, RZ", "LDG.E.128 R4, desc[UR4][R30.64]"), 2);
}

#[test]
fn two_warps_share_the_tensor_cores() {
    let mut lines = vec![LOOP];
    lines.extend([(2, "HMMA.16816.F32.BF16 R12, R8, R10, R12", field(8, NONE, NONE, 0)); 16]);
    lines.extend([BACK, EXIT]);
    let timing = timing(&lines);
    assert_eq!(timing.one, 16.0 * 8.0 + 5.0);
    assert!((timing.two - 2.0 * 16.0 * 8.0).abs() < 6.0, "{}", timing.two);
}

#[test]
fn a_loop_waits_for_groups_of_copies() {
    let lines = |left: &'static str| {
        [
            LOOP,
            (2, "LDGSTS.E.BYPASS.128 [R5], [R6.64]", field(2, NONE, 0, 0)),
            (2, "LDGDEPBAR", field(1, NONE, NONE, 0)),
            (3, left, field(2, NONE, NONE, 0)),
            BACK,
            EXIT,
        ]
    };
    let (all, one_left) =
        (timing(&lines("DEPBAR.LE SB0, 0x0")), timing(&lines("DEPBAR.LE SB0, 0x1")));
    // The L2 cache's 270 clocks for every copy, and for every other one.
    assert_eq!(all.one, 270.0 + 2.0 + 5.0);
    assert!(one_left.one < 0.6 * all.one, "{}", one_left.one);
    assert!(all.copies > 200.0 && all.exposed() == 0);
}

#[test]
fn a_shifted_control_field_is_noticed() {
    let lines = [
        LOOP,
        (2, LOAD, field(1, 2, NONE, 0)),
        (2, "LDS R16, [R3]", field(1, 3, NONE, 0)),
        (3, USE, field(4, NONE, NONE, 0b100)),
        (3, "FADD R8, R16, R8", field(4, NONE, NONE, 0b1000)),
        BACK,
        EXIT,
    ];
    let checked = |shift| Checked::new(&read(&disassembly(&lines, shift)).unwrap()[0]);
    let right = checked(0);
    assert_eq!((right.early, right.beyond, right.unset, right.waits), (0, 0, 0, 2));
    assert!(checked(1).early + checked(1).beyond + checked(1).unset > 0, "{:?}", checked(1));
    // A load of variable latency without a scoreboard.
    let lacking = kernel(&[(2, LOAD, field(1, NONE, NONE, 0)), EXIT]);
    assert_eq!(Checked::new(&lacking).lacking, 1);
}

#[test]
fn code_without_encodings_or_lines_is_refused() {
    let text = disassembly(&[(2, LOAD, field(1, 0, NONE, 0)), EXIT], 0);
    let without = |mark: &str| {
        text.lines().filter(|line| !line.contains(mark)).collect::<Vec<_>>().join("\n")
    };
    let error = read(&without("//## File")).unwrap_err();
    assert!(error.contains("--generate-line-info"), "{error}");
    let second_words: String = text
        .lines()
        .filter(|line| !line.trim().starts_with("/* 0x"))
        .fold(String::new(), |text, line| text + line + "\n");
    let error = read(&second_words).unwrap_err();
    assert!(error.contains("nvdisasm -hex"), "{error}");
}

/// A loop whose iterations copy wide, or element by element, and one that sums up.
const BRANCHES: [Line<'_>; 12] = [
    (1, ".L_x_1", 0),
    (11, "HMMA.16816.F32.BF16 R12, R8, R10, R12", field_const(8, 7)),
    (12, "@P1 BRA `(.L_x_2)", field_const(5, 7)),
    (13, "LDG.E.128 R4, [R2.64]", field_const(1, 0)),
    (14, "BRA `(.L_x_3)", field_const(5, 7)),
    (1, ".L_x_2", 0),
    (15, "LDG.E.U16 R4, [R2.64]", field_const(1, 0)),
    (16, "LDG.E.U16 R5, [R2.64+0x2]", field_const(1, 0)),
    (1, ".L_x_3", 0),
    (17, "STS [R6], R4", field_const(1, 7)),
    (18, "@P0 BRA `(.L_x_1)", field_const(5, 7)),
    EXIT,
];

#[test]
fn the_way_is_that_of_whole_tiles_unless_lines_are_preferred() {
    let kernel = kernel(&BRANCHES);
    let graph = Graph::new(&kernel);
    let is_product = |i: &Instruction| i.op() == "HMMA";
    let span = |first, last| Span { file: "op/tile.cuh".to_owned(), first, last };
    let found = find_loop(&graph, &span(11, 18), is_product, None).unwrap();
    let names = |choice: Choice| -> Vec<String> {
        let way = choice.through_loop(&graph, &found).unwrap();
        way.iter().map(|i| i.name.clone()).collect()
    };
    let wide = ["HMMA.16816.F32.BF16", "BRA", "LDG.E.128", "BRA", "STS", "BRA"];
    assert_eq!(names(Choice::default()), wide);
    let avoid = Choice { avoid: vec![span(13, 13)], ..Choice::default() };
    assert_eq!(names(avoid), wide, "narrow accesses weigh more");
    let products = |count| Choice { products: Some(count), ..Choice::default() };
    assert_eq!(names(products(1)), wide);
    assert!(products(2).through_loop(&graph, &found).is_none());
    // Neither lines of other files nor a loop that is mostly of others.
    let elsewhere = Span { file: "tile.cu".to_owned(), ..span(11, 18) };
    assert!(find_loop(&graph, &elsewhere, is_product, None).is_none());
    assert!(find_loop(&graph, &span(11, 18), is_product, Some(&span(11, 18))).is_none());
}

#[test]
fn places_are_named_by_one_line() {
    let text = "void one() {\n    if (a) {\n        b;\n    }\n}\nvoid two() {\n}\n";
    let span = Span::block("op/tile.cuh", text, "void one() {").unwrap();
    assert_eq!((span.first, span.last), (1, 5));
    for marker in ["void three", "void"] {
        let error = Span::block("op/tile.cuh", text, marker).unwrap_err();
        assert!(error.contains("lines have") && error.contains("named.rs"), "{error}");
    }
}

#[test]
fn fields_have_their_bits() {
    let control = Control::of(field(11, 3, 5, 0b10_0001) << 41);
    assert_eq!((control.stall, control.write, control.read), (11, Some(3), Some(5)));
    assert_eq!(control.waits().collect::<Vec<_>>(), [0, 5]);
}

/// The lists are those of the kernels only as long as these sizes are.
#[test]
fn the_modelled_sizes_are_the_kernels() {
    for (file, name, size) in tiles::SIZES {
        let text = fs::read_to_string(workspace().join("kernels").join(file)).unwrap();
        let line = format!("{name} = {size}");
        line_with(file, &text, &line).unwrap();
    }
}
