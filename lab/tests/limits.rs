//! The limits that the kernels must meet without a GPU: the pieces of the program `limits`, and its
//! lines.

use std::process::{Command, Output};

use fused_dora::Kernels;
use fused_dora_lab::limits::line::{Group, Limit, Line};
use fused_dora_lab::limits::sass::{Mix, read};

/// Two loops of products, one of them around a loop of loads, and one without products.
const CODE: &str = "
//--------------------- .text.product_bf16 --------------------------
	.section	.text.product_bf16,\"ax\",@progbits
.text.product_bf16:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_3) ;
.L_x_0:
        /*0020*/                   LDG.E.64 R2, [R4.64] ;
        /*0030*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   LDGSTS.E.BYPASS.128 [R5], [R6.64], P2 ;
        /*0050*/                   LDSM.16.M88.4 R8, [R9] ;
        /*0060*/                   HMMA.16816.F32.BF16 R12, R8, R10, R12 ;
        /*0070*/                   HMMA.16816.F32.BF16 R16, R8, R10, R16 ;
        /*0080*/               @P3 BRA `(.L_x_1) ;
.L_x_2:
.L_x_4:
        /*0090*/                   LDG.E.U16 R2, [R4.64] ;
        /*00a0*/                   STS.U16 [R5], R2 ;
        /*00b0*/               @P1 BRA `(.L_x_4) ;
        /*00c0*/                   HMMA.16816.F32.BF16 R12, R8, R10, R12 ;
        /*00d0*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*00e0*/                   STG.E.128 [R4.64], R12 ;
        /*00f0*/                   STL [R1], R2 ;
        /*0100*/                   EXIT ;
.L_x_5:
        /*0110*/                   BRA `(.L_x_5);
";

#[test]
fn loops_are_found_by_their_branches() {
    let kernels = read(CODE);
    let [code] = kernels.as_slice() else { panic!("{kernels:?}") };
    assert_eq!(code.kernel, "product_bf16");
    let whole = Mix {
        instructions: 18,
        hmma: 3,
        ldsm: 1,
        ldgsts: 1,
        narrow: 2,
        local: 1,
        prmt: 0,
        f2fp: 0,
    };
    assert_eq!(code.mix(), whole);
    let aligned =
        Mix { instructions: 5, hmma: 2, ldsm: 1, ldgsts: 1, narrow: 0, local: 0, prmt: 0, f2fp: 0 };
    let unaligned =
        Mix { instructions: 5, hmma: 1, ldsm: 0, ldgsts: 0, narrow: 1, local: 0, prmt: 0, f2fp: 0 };
    assert_eq!(code.main_loops(), [aligned, unaligned]);
    assert_eq!((aligned.hmma_share(), aligned.ldsm_per_hmma()), (0.4, 0.5));
}

#[test]
fn lines_keep_their_limits_or_fail() {
    let line = |value, limit| Line::new(Group::Counters, "bytes", value, limit);
    assert!(line(1.0, Limit::AtMost(1.0)).holds && line(1.0, Limit::AtLeast(1.0)).holds);
    let over = line(1.0201, Limit::AtMost(1.02));
    assert_eq!(
        (over.verdict(), over.shown(), over.limit_shown()),
        ("FAILS", "1.0201".to_owned(), "≤ 1.0200".to_owned())
    );
    assert_eq!(line(f64::NAN, Limit::AtMost(1.0)).verdict(), "FAILS");
    assert_eq!(line(7.0, Limit::None).verdict(), "");
}

/// Runs the program.
fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_limits")).args(arguments).output().unwrap()
}

/// The architectures that this test checks.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// All lines, of a document, too. Other architectures, and ranks beyond those of the lines, are left
/// to `cargo xtask limits`.
#[test]
fn all_lines_hold() {
    if std::env::var_os("CUDA_EMULATOR_SEED").is_some() {
        println!("counts are those of one schedule: CUDA_EMULATOR_SEED must be unset");
        return;
    }
    assert!(Kernels::are_built(), "run `cargo xtask nvrtc`, then build again");
    let fresh = tempfile::tempdir().unwrap();
    let [folder, document] = ["limits", "document.md"].map(|name| fresh.path().join(name));
    let expectation = "<!-- expectation -->\nold\n<!-- /expectation -->\n";
    let tables = "before\n<!-- limits -->\nold\n<!-- /limits -->\nafter\n";
    std::fs::write(&document, [expectation, tables].concat()).unwrap();
    let [out, path] = [&folder, &document].map(|path| path.to_str().unwrap());
    let mut arguments = vec!["--rank", "16", "--out", out, "--write", path];
    arguments.extend(ARCHITECTURES.iter().flat_map(|name| ["--arch", name]));
    let output = run(&arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let json = std::fs::read_to_string(folder.join("limits.json"))
        .unwrap_or_else(|error| panic!("no limits.json: {error}\n{errors}"));
    let evidence: serde_json::Value = serde_json::from_str(&json).unwrap();
    let lines: Vec<Line> = serde_json::from_value(evidence["lines"].clone()).unwrap();
    for group in Group::ALL {
        assert!(lines.iter().any(|line| line.group == group), "no line of {group:?}");
    }
    let document = std::fs::read_to_string(&document).unwrap();
    let tables = std::fs::read_to_string(folder.join("limits.md")).unwrap();
    let (expected, document) = document.split_once("<!-- /expectation -->\n").unwrap();
    assert!(expected.starts_with("<!-- expectation -->\n**What to expect"), "{expected}");
    assert_eq!(document, format!("before\n<!-- limits -->\n{tables}<!-- /limits -->\nafter\n"));
    for name in ARCHITECTURES {
        assert!(lines.iter().any(|line| line.what.starts_with(&format!("{name}: "))), "{name}");
    }
    let failing: Vec<_> = text.lines().filter(|line| line.ends_with("FAILS")).collect();
    assert_eq!(lines.iter().filter(|line| !line.holds).count(), failing.len());
    assert!(failing.is_empty() && output.status.success(), "{}\n{errors}", failing.join("\n"));
}

#[test]
fn a_folder_that_cannot_be_is_refused_at_once() {
    let output = run(&["--out", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml/below")]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cannot be created"), "{text}");
}

#[test]
fn bad_arguments_are_refused() {
    for (arguments, complaint) in [
        (["--rank", "many"], "many"),
        (["--wride", "x"], "--wride"),
        (["--arch", "sm_75"], "sm_75"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(complaint), "{text}");
    }
}
