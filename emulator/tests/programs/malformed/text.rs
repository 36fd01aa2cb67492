//! Damaged modules: a text that is cut, shuffled, or full of absurd numbers and names is refused or
//! loads, and what loads runs to its end or to a fault. Nothing panics, hangs or overflows the
//! stack. The damage is drawn from a fixed seed.

use cuda_emulator::LaunchError;

use super::damage::{Random, STRANGE, TYPES, device, survive, tokens};

/// Texts that use every part of the grammar.
const SEEDS: [&str; 3] =
    [include_str!("declarations.ptx"), include_str!("control.ptx"), include_str!("arithmetic.ptx")];

#[test]
fn the_texts_load_and_run() {
    let device = device();
    for text in SEEDS {
        if let Err(error) = device.load_module(text) {
            panic!("{error}");
        }
        let used = device.memory_in_use();
        assert_eq!(survive(&device, text), [Ok(())]);
        assert_eq!(device.memory_in_use(), used, "unloading frees the variables");
    }
}

#[test]
fn texts_that_end_early() {
    let device = device();
    for text in SEEDS {
        for end in 0..text.len() {
            survive(&device, &text[..end]);
        }
    }
}

#[test]
fn tokens_and_lines_that_are_missing_doubled_or_swapped() {
    let device = device();
    for text in SEEDS {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for parts in [tokens(text), lines] {
            for at in 0..parts.len() {
                let (before, after) = (parts[..at].concat(), parts[at + 1..].concat());
                let part = parts[at];
                survive(&device, &format!("{before}{after}"));
                survive(&device, &format!("{before}{part} {part}{after}"));
                if at + 1 < parts.len() {
                    let after = parts[at + 2..].concat();
                    survive(&device, &format!("{before}{}{part}{after}", parts[at + 1]));
                }
            }
        }
    }
}

#[test]
fn numbers_types_and_modifiers_that_are_exchanged() {
    let device = device();
    for text in SEEDS {
        let parts = tokens(text);
        for at in 0..parts.len() {
            let (before, after) = (parts[..at].concat(), parts[at + 1..].concat());
            let part = parts[at];
            let others: &[&str] = match part {
                _ if TYPES.contains(&part) => &TYPES,
                _ if part.starts_with(|c: char| c.is_ascii_digit()) => &STRANGE[..18],
                _ if part.starts_with('.') => &[".nothing", ".sat", ".v4", ".cc", ""],
                _ => continue,
            };
            for other in others {
                survive(&device, &format!("{before}{other}{after}"));
            }
        }
    }
}

#[test]
fn many_kinds_of_damage_at_once() {
    let device = device();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..6000 {
        let mut parts = tokens(SEEDS[round % SEEDS.len()]);
        for _ in 0..=random.below(4) {
            let (at, other) = (random.below(parts.len()), random.below(parts.len()));
            match random.below(5) {
                0 => drop(parts.remove(at)),
                1 => parts.insert(at, parts[other]),
                2 => parts.swap(at, other),
                3 => parts[at] = STRANGE[random.below(STRANGE.len())],
                _ => parts[at] = parts[other],
            }
        }
        survive(&device, &parts.concat());
    }
}

#[test]
fn bytes_that_are_no_text() {
    let device = device();
    let mut random = Random(7);
    for round in 0..3000 {
        let mut bytes = SEEDS[round % SEEDS.len()].as_bytes().to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        survive(&device, &String::from_utf8_lossy(&bytes));
    }
}

/// A module around the body of a kernel.
fn kernel(body: &str) -> String {
    format!(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() {{\n{body}\n}}\n")
}

#[test]
fn nesting_without_end() {
    let device = device();
    let many = 200_000;
    for open in ["{", "(", "[", "mov.u32 {", "call (", "{ .reg .b32 r; "] {
        survive(&device, &kernel(&open.repeat(many)));
    }
    survive(&device, &kernel(&format!("{}{}", "{".repeat(many), "}".repeat(many))));
    let braces = format!("{}1{}", "{".repeat(many), "}".repeat(many));
    survive(&device, &format!("{}.global .u32 x[2] = {braces};", kernel("ret;")));
    survive(&device, &kernel(&format!("mov.u32 r, {};", "-".repeat(many))));
    survive(&device, &kernel(&"@".repeat(many)));
}

#[test]
fn calls_that_multiply() {
    let device = device();
    // Each function calls the next one twice: 2^64 calls of the last.
    let header = ".version 8.0\n.target sm_80\n.address_size 64\n";
    let mut functions = String::from(".func f64 () { ret; }\n");
    for at in (0..64).rev() {
        let next = at + 1;
        functions += &format!(".func f{at} () {{ call f{next}; call f{next}; ret; }}\n");
    }
    let text = format!("{header}{functions}.entry k() {{ call f0; ret; }}");
    assert!(matches!(&survive(&device, &text)[..], [Err(LaunchError::Fault(_))]));
    // A chain of calls as long as the text allows.
    let mut functions = String::from(".func f5000 () { ret; }\n");
    for at in (0..5000).rev() {
        functions += &format!(".func f{at} () {{ call f{}; ret; }}\n", at + 1);
    }
    survive(&device, &format!("{header}{functions}.entry k() {{ call f0; ret; }}"));
    // A function that calls itself.
    let text = format!("{header}.func f () {{ call f; }} .entry k() {{ call f; ret; }}");
    assert!(matches!(&survive(&device, &text)[..], [Err(LaunchError::Fault(_))]));
}

#[test]
fn sizes_without_bounds() {
    let device = device();
    for body in [
        ".reg .b32 r<4294967295>; ret;",
        ".reg .b32 a<65535>, b<65535>, c<65535>; mov.u32 a9, b9; ret;",
        ".local .b8 x[4294967295]; ret;",
        ".local .align 2147483648 .b8 x[1]; .local .align 2147483648 .b8 y[1]; ret;",
        ".local .b8 x[4000000000]; .local .b8 y[4000000000]; ret;",
        ".shared .b8 x[4294967295]; .shared .b8 y[1024]; ret;",
        ".shared .align 2147483648 .b64 x[536870911][4294967295]; ret;",
        ".local .v4 .b64 x[576460752303423488]; ret;",
    ] {
        survive(&device, &kernel(body));
    }
    for module in [
        ".global .b8 x[18446744073709551615];",
        ".const .b64 x[2305843009213693952];",
        ".global .align 2147483648 .b8 x[1];",
        ".shared .b8 x[18446744073709551615]; .shared .b8 y[18446744073709551615];",
        ".entry p(.param .b8 a[18446744073709551615], .param .b8 b[18446744073709551615]) { ret; }",
        ".entry q(.param .align 2147483648 .b8 a[1], .param .align 2147483648 .b8 b[1]) { ret; }",
        ".entry r() .maxntid 4294967295, 4294967295, 4294967295 { ret; }",
        ".entry s() .reqntid 0 { ret; }",
        ".version 4294967295.4294967295",
        ".file 4294967296 \"x\"",
    ] {
        survive(&device, &format!("{}{module}\n", kernel("ret;")));
    }
    let shared = ".shared .b8 x[18446744073709551615]; .shared .b8 y[18446744073709551615];";
    let body = ".reg .b64 a, b; mov.u64 a, x; mov.u64 b, y; st.shared.b8 [y+7], 1; ret;";
    survive(&device, &format!("{}{shared}\n", kernel(body)));
}

#[test]
fn programs_that_do_not_end() {
    let device = device();
    for body in [
        "again: bra again;",
        ".reg .pred p; .reg .b32 r; again: mov.u32 r, %laneid; setp.eq.u32 p, r, 3; @p bra again;",
        ".reg .b32 r; mov.u32 r, %laneid; l: .branchtargets a, b; a: brx.idx r, l; b: bra a;",
        ".reg .b32 r; .reg .pred p; mov.u32 r, %laneid; setp.lt.u32 p, r, 9; @p bar.sync 0; ret;",
        "bar.sync 16; ret;",
        "bar.sync 3, 4294967295; ret;",
        "bar.sync 3, 96; ret;",
        "bar.warp.sync 0; ret;",
        ".reg .b32 r; shfl.sync.idx.b32 r, 1, 4294967295, 4294967295, 0; ret;",
        ".reg .b64 a; mov.u64 a, -8; ld.global.b64 a, [a+16]; ret;",
        ".reg .b64 a; ld.local.b64 a, [-8]; st.local.b64 [-1], a; ret;",
        ".reg .b32 r; .reg .b64 a; mov.u64 a, 0; mov.u32 r, -1; cp.async.ca.shared.global [r], [a], 4; ret;",
    ] {
        survive(&device, &kernel(body));
    }
}
