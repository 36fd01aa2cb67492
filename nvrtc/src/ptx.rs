//! PTX as it ships: such that older drivers read it, and one module for each kernel.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The version that PTX ships as where nothing newer is in it. CUDA 11.8 brought it: drivers from
/// R520 on read it.
pub const VERSION: &str = "7.8";

/// The instructions that the kernels are made of. Each is in PTX 7.8 with all of [`MODIFIERS`].
#[rustfmt::skip]
const INSTRUCTIONS: &[&str] = &[
    "abs", "add", "and", "atom", "bar", "bfe", "bfi", "bra", "call", "clz", "copysign", "cp", "cvt", "cvta",
    "discard", "div", "ex2", "fence", "fma", "ld", "ldmatrix", "lg2", "lop3", "mad", "max", "min", "mma",
    "mov", "mul", "nanosleep", "neg", "not", "or", "prmt", "rcp", "rem", "ret", "rsqrt", "selp",
    "setp", "shf", "shfl", "shl", "shr", "sqrt", "st", "sub", "xor",
];

/// What follows their names.
#[rustfmt::skip]
const MODIFIERS: &[&str] = &[
    "L2", "acq_rel", "add", "aligned", "approx", "async", "b16", "b32", "b64", "b8", "bf16", "bf16x2", "bfly",
    "ca", "cg", "col", "commit_group", "const", "cta", "eq", "equ", "exch", "f16", "f16x2", "f32", "f64", "ftz",
    "ge", "geu", "global", "gpu", "gt", "gtu", "hi", "hs", "idx", "l", "le", "leu", "lo", "ls",
    "lt", "ltu", "lut", "m16n8k16", "m16n8k8", "m8n8", "max", "ne", "neu", "num", "nan", "or", "param",
    "pred", "r", "red", "relaxed", "rm", "rn", "rna", "rni", "row", "rp", "rz", "rzi", "s16", "s32",
    "s64", "s8", "sat", "shared", "sync", "tf32", "to", "trans", "u16", "u32", "u64", "u8", "uni",
    "v2", "v4", "volatile", "wait_group", "warp", "wide", "wrap", "x2", "x4",
];

/// The directives outside and inside of functions.
#[rustfmt::skip]
const DIRECTIVES: &[&str] = &[
    "address_size", "align", "b16", "b32", "b64", "b8", "branchtargets", "const", "entry",
    "extern", "file", "func", "global", "loc", "local", "maxntid", "minnctapersm", "param",
    "pragma", "reg", "section", "shared", "target", "version", "visible", "weak",
];

/// A hint about unused bytes of loads, which ptxas before CUDA 12.9 refuses.
const UNUSED_BYTES: &str = ".pragma \"used_bytes_mask";

/// PTX of NVRTC as older drivers read it: with [`VERSION`], and without hints that they refuse.
///
/// # Errors
/// The line that has what is not known to be in that version.
pub fn portable(ptx: &str) -> Result<String, String> {
    let mut text = String::with_capacity(ptx.len());
    let mut seen = BTreeSet::new();
    // Whether the line before ends within an instruction.
    let mut is_open = false;
    for (number, line) in ptx.lines().enumerate() {
        let code = line.split_once("//").map_or(line, |(code, _)| code).trim();
        if code.starts_with(UNUSED_BYTES) {
            continue;
        }
        if let Some(version) = code.strip_prefix(".version") {
            let _ = writeln!(text, ".version {}", older(version.trim()));
            continue;
        }
        for (index, statement) in code.split(';').enumerate() {
            let is_rest = is_open && index == 0;
            let word = if is_rest { "" } else { first_word(statement) };
            // Without a semicolon the instruction goes on in the next line.
            is_open = is_rest || word.starts_with(|c: char| c.is_ascii_lowercase());
            if !word.is_empty() && !seen.contains(word) {
                if !is_known(word) {
                    let number = number + 1;
                    return Err(format!(
                        "PTX line {number}, `{code}`: `{word}` is not in the list of what PTX \
                         {VERSION} has. If the PTX ISA says that it is, add it to nvrtc/src/ptx.rs; \
                         if not, write the kernel without it"
                    ));
                }
                seen.insert(word);
            }
        }
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// [`VERSION`], or a version before it.
fn older(version: &str) -> &str {
    let numbers = |version: &str| {
        let (major, minor) = version.split_once('.')?;
        Some([major.parse::<u32>().ok()?, minor.parse().ok()?])
    };
    if numbers(version).is_some_and(|own| Some(own) < numbers(VERSION)) { version } else { VERSION }
}

/// The directive or the instruction that a statement starts with, after braces, its label and its
/// guard; nothing where it has neither.
fn first_word(statement: &str) -> &str {
    let mut rest = statement;
    loop {
        rest = rest.trim_start_matches(['{', '}', ' ', '\t']);
        let word = rest.split([' ', '\t', '(']).next().unwrap_or("");
        let is_guard = word.starts_with('@');
        let is_label = word.ends_with(':');
        if !is_guard && !is_label {
            let is_code = word.starts_with(|c: char| c == '.' || c.is_ascii_lowercase());
            return if is_code { word } else { "" };
        }
        rest = &rest[word.len()..];
    }
}

fn is_known(word: &str) -> bool {
    let mut parts = word.split(['.', ':']);
    match word.strip_prefix('.') {
        Some(directive) => DIRECTIVES.contains(&directive),
        None => {
            parts.next().is_some_and(|name| INSTRUCTIONS.contains(&name))
                && parts.all(|modifier| MODIFIERS.contains(&modifier))
        }
    }
}

/// One kernel, as a module of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The entry point's name.
    pub entry: String,
    /// Its PTX.
    pub text: String,
}

/// A module for each entry point of PTX that NVRTC made: with all variables and functions, and the
/// names that its line information mentions.
///
/// # Errors
/// What is not as NVRTC writes it.
pub fn modules(ptx: &str) -> Result<Vec<Module>, String> {
    let (mut shared, mut files, mut names) = (String::new(), String::new(), Vec::new());
    let mut entries: Vec<Module> = Vec::new();
    let mut lines = ptx.lines();
    while let Some(line) = lines.next() {
        let until = |last: &str, lines: &mut std::str::Lines<'_>| {
            let mut text = format!("{line}\n");
            for line in lines.by_ref() {
                text += line;
                text.push('\n');
                if line.trim_end() == last {
                    return Ok(text);
                }
            }
            Err(format!("`{line}` has no end"))
        };
        if let Some(name) = line.strip_prefix(".visible .entry ") {
            let entry = name.trim_end_matches(['(', ')']).to_owned();
            entries.push(Module { entry, text: until("}", &mut lines)? });
        } else if line.contains(".entry") {
            return Err(format!("`{line}` is no entry point that others see"));
        } else if line.trim_start().starts_with(".section") {
            let section = until("\t}", &mut lines)?;
            names.extend(debug_names(&section)?);
        } else if line.trim_start().starts_with(".file") {
            files += &format!("{line}\n");
        } else {
            shared += &format!("{line}\n");
        }
    }
    if entries.is_empty() {
        return Err("the PTX has no entry point".to_owned());
    }
    for module in &mut entries {
        let mentioned: BTreeSet<&str> = mentions(&shared).chain(mentions(&module.text)).collect();
        let mut section = String::new();
        for (label, bytes) in &names {
            if mentioned.contains(label.as_str()) {
                section += &format!("{label}:\n{bytes}");
            }
        }
        let mut text = [&shared, module.text.as_str(), &files].concat();
        if !section.is_empty() {
            text += &format!("\t.section\t.debug_str\n\t{{\n{section}\t}}\n");
        }
        module.text = text;
    }
    Ok(entries)
}

const DEBUG_NAME: &str = "$L__info_string";

/// The labels of [`DEBUG_NAME`] that a text has.
fn mentions(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(DEBUG_NAME).map(|(at, _)| {
        let rest = &text[at..];
        let digits = |c: char| c.is_ascii_digit();
        let end = rest[DEBUG_NAME.len()..].find(|c| !digits(c));
        &rest[..end.map_or(rest.len(), |end| DEBUG_NAME.len() + end)]
    })
}

/// The labels of a section of names, and the bytes of each.
fn debug_names(section: &str) -> Result<Vec<(String, String)>, String> {
    let is_start = |code: &str| code.starts_with(".section") && code.ends_with(".debug_str");
    let is_frame = |code| is_start(code) || ["{", "}", ""].contains(&code);
    let mut names: Vec<(String, String)> = Vec::new();
    for line in section.lines() {
        let code = line.trim();
        if let Some(label) = code.strip_suffix(':').filter(|label| label.starts_with(DEBUG_NAME)) {
            names.push((label.to_owned(), String::new()));
        } else if code.starts_with(".b8") {
            let (_, bytes) = names.last_mut().ok_or("a section of bytes without a label")?;
            *bytes += &format!("{line}\n");
        } else if !is_frame(code) {
            return Err(format!("`{code}` in a section of line information"));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "\
.version 8.8
.target sm_80
.address_size 64

\t// .globl\tone_f32
.global .align 4 .u32 kTile = 64;
.visible .entry one_f32(
\t.param .u64 one_f32_param_0
)
.maxntid 128, 1, 1
{
\t.reg .b32 \t%r<2>;
\t.loc\t1 10 0
\t.loc\t1 11 0, function_name $L__info_string1, inlined_at 1 10 0
$L__BB0_1: 
\t.pragma \"used_bytes_mask 15\";
\t@!%p1 ld.global.v4.u32 \t{%r1, %r2, %r3, %r4}, [%rd1];
\t// begin inline asm
\t{ .reg .pred p; setp.ne.b32 p, %r1, 0; @p bra $L__BB0_1; }
\tcall.uni (retval0),
\tcareful_sum,
\t(
\tparam0
\t);
\tret;

}
\t// .globl\ttwo_f32
.visible .entry two_f32()
{
\t.loc\t1 11 0, function_name $L__info_string10, inlined_at 1 10 0
\tret;

}
\t.file\t1 \"kernels/one.cu\"
\t.section\t.debug_str
\t{
$L__info_string1:
.b8 95,90
.b8 0
$L__info_string10:
.b8 96,0

\t}
";

    #[test]
    fn ptx_becomes_one_that_older_drivers_read() {
        let text = portable(PTX).unwrap();
        let changed =
            PTX.replace("8.8", VERSION).replace("\t.pragma \"used_bytes_mask 15\";\n", "");
        assert_eq!(text, changed);
        for (found, ships) in [("7.2", "7.2"), ("7.8", "7.8"), ("7.10", "7.8"), ("9.1", "7.8")] {
            let text = portable(&format!(".version {found}\n")).unwrap();
            assert_eq!(text, format!(".version {ships}\n"));
        }
    }

    #[test]
    fn what_may_be_newer_is_refused() {
        for newer in [
            "fence.proxy.async;",
            "@%p1 add.rn.f32x2 %rd1, %rd2, %rd3;",
            "{ elect.sync _|p, -1; }",
            "L: mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%f1}, {%r1}, {%r2}, {%f1};",
            "ld.global.L1::no_allocate.b128 %rq1, [%rd1];",
            ".explicitcluster",
        ] {
            let error = portable(&PTX.replace("\tret;\n", &format!("\t{newer}\n"))).unwrap_err();
            assert!(error.starts_with("PTX line 25, "), "{error}");
        }
    }

    #[test]
    fn each_kernel_has_a_module() {
        let modules = modules(PTX).unwrap();
        assert_eq!(modules.len(), 2);
        for (module, (own, other, name)) in modules
            .iter()
            .zip([("one_f32", "two_f32", ".b8 95,90"), ("two_f32", "one_f32", ".b8 96")])
        {
            assert_eq!(module.entry, own);
            assert!(module.text.contains(&format!(".entry {own}(")), "{}", module.text);
            assert!(!module.text.contains(&format!(".entry {other}(")), "{}", module.text);
            assert_eq!(module.text.matches(".b8").count(), if own == "one_f32" { 2 } else { 1 });
            for part in [".version 8.8\n.target sm_80", "kTile = 64", ".file\t1", name] {
                assert!(module.text.contains(part), "{part} in {}", module.text);
            }
        }
    }

    #[test]
    fn what_nvrtc_does_not_write_is_refused() {
        for (from, to, reason) in [
            (".visible .entry one", ".entry one", "is no entry point that others see"),
            (".visible .entry", ".visible .func", "the PTX has no entry point"),
            (
                "\t.section\t.debug_str",
                "\t.section\t.debug_abbrev",
                "in a section of line information",
            ),
            ("\n\t}\n", "\n", "has no end"),
        ] {
            let error = modules(&PTX.replace(from, to)).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
