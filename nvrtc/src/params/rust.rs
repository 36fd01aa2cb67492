//! The mirror as Rust code.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::layout::{Layout, scalar};
use super::parse::{Enum, Struct};
use super::{COMMON, Op};

/// All modules.
pub(super) fn code(ops: &BTreeMap<String, Op>) -> String {
    let mut text = "// Written by build.rs from the sources in kernels/.\n".to_owned();
    for (name, op) in ops {
        let _ = writeln!(text, "\n/// Of `kernels/{name}`.\npub(crate) mod {name} {{");
        for (constant, value, comments) in &op.constants {
            docs(&mut text, "    ", comments);
            let constant = screaming(constant);
            let _ = writeln!(text, "    pub(crate) const {constant}: usize = {value};");
        }
        op.enums.iter().for_each(|found| write_enum(&mut text, found));
        let is_here =
            |kind: &str| op.structs.iter().any(|(found, _)| found.name == kind) || has(op, kind);
        let path = |kind: &str| match scalar(kind) {
            Some(scalar) => scalar.rust.to_owned(),
            None if is_here(kind) => kind.to_owned(),
            None => format!("super::{COMMON}::{kind}"),
        };
        for (found, layout) in &op.structs {
            write_struct(&mut text, found, layout, &path);
        }
        text += "}\n";
    }
    text
}

fn has(op: &Op, kind: &str) -> bool {
    op.enums.iter().any(|found| found.name == kind)
}

fn write_enum(text: &mut String, Enum { name, variants, comments }: &Enum) {
    text.push('\n');
    docs(text, "    ", comments);
    let _ = writeln!(text, "    #[repr(i32)]");
    let _ = writeln!(text, "    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]");
    let _ = writeln!(text, "    pub(crate) enum {name} {{\n        #[default]");
    for variant in variants {
        let _ = writeln!(text, "        {},", variant.strip_prefix('k').unwrap_or(variant));
    }
    text.push_str("    }\n");
}

fn write_struct(text: &mut String, of: &Struct, layout: &Layout, path: &dyn Fn(&str) -> String) {
    let Struct { name, fields, comments, .. } = of;
    let (mut declared, mut zero, mut proofs) = (String::new(), String::new(), String::new());
    let hole = |declared: &mut String, zero: &mut String, at: usize| {
        if layout.holes[at] > 0 {
            let (bytes, padding) = (layout.holes[at], format!("_padding{at}"));
            let _ = writeln!(declared, "        pub(crate) {padding}: [u8; {bytes}],");
            let _ = writeln!(zero, "                {padding}: [0; {bytes}],");
        }
    };
    for (at, field) in fields.iter().enumerate() {
        hole(&mut declared, &mut zero, at);
        docs(&mut declared, "        ", &field.comments);
        let kind = path(&field.kind);
        let value = match scalar(&field.kind) {
            Some(scalar) if scalar.rust.starts_with('f') => "0.0".to_owned(),
            Some(_) => "0".to_owned(),
            None => format!("{kind}::default()"),
        };
        let (kind, value) = match layout.counts[at] {
            Some(count) => (format!("[{kind}; {count}]"), format!("[{value}; {count}]")),
            None => (kind, value),
        };
        let (field, offset) = (&field.name, layout.offsets[at]);
        let _ = writeln!(declared, "        pub(crate) {field}: {kind},");
        let _ = writeln!(zero, "                {field}: {value},");
        let _ =
            writeln!(proofs, "        assert!(std::mem::offset_of!({name}, {field}) == {offset});");
    }
    hole(&mut declared, &mut zero, fields.len());
    let size = layout.size;
    text.push('\n');
    docs(text, "    ", comments);
    let _ = write!(
        text,
        "    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct {name} {{
{declared}    }}

    impl Default for {name} {{
        /// All zero.
        fn default() -> Self {{
            Self {{
{zero}            }}
        }}
    }}

    // SAFETY: plain values without unused bytes, laid out as CUDA has them.
    unsafe impl cudarc::driver::DeviceRepr for {name} {{}}

    const _: () = {{
        assert!(size_of::<{name}>() == {size});
{proofs}    }};
"
    );
}

/// Comments as documentation. Brackets are no links.
fn docs(text: &mut String, indent: &str, comments: &[String]) {
    for line in comments {
        let line = line.replace('[', "\\[").replace(']', "\\]");
        let _ = writeln!(text, "{indent}/// {line}");
    }
}

/// `kLoraARanks` as `LORA_A_RANKS`, and `kStrip16Bit` as `STRIP_16_BIT`.
fn screaming(name: &str) -> String {
    let chars: Vec<char> = name.strip_prefix('k').unwrap_or(name).chars().collect();
    let mut result = String::new();
    for (at, &c) in chars.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| chars[before]);
        let ends_word = chars.get(at + 1).is_some_and(char::is_ascii_lowercase);
        let starts_word = before.is_some_and(|before| {
            let in_word = before.is_ascii_uppercase() && !ends_word;
            c.is_ascii_uppercase() && !in_word || c.is_ascii_digit() && before.is_ascii_lowercase()
        });
        if starts_word {
            result.push('_');
        }
        result.push(c.to_ascii_uppercase());
    }
    result
}
