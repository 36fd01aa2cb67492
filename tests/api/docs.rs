//! What the guides say of the crate is so: errors, links and bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use fused_dora::{
    AdapterLayout, DoraSpec, Dtype, Kernels, Norm, NormGrad, Prepared, Scaling, Workspace,
};
use fused_dora_testkit::device::{Choice, open_choice};
use regex::Regex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern")
}

/// The variants of an enum in a source file, and the `#[error("…")]` of each, `…` for its values.
fn variants(file: &str, name: &str) -> BTreeMap<String, String> {
    let source = read(file);
    let start = source.find(&format!("pub enum {name} {{")).expect("the enum");
    let body = &source[start..];
    let body = &body[..body.find("\n}").expect("its end")];
    let item = regex(r#"(?s)\n    #\[error\(\s*"((?:[^"\\]|\\.)*)"|\n    ([A-Z]\w*)[ ,(]"#);
    let (mut found, mut message) = (BTreeMap::new(), String::new());
    for item in item.captures_iter(body) {
        if let Some(text) = item.get(1) {
            let joined = regex(r"\\\n\s*").replace_all(text.as_str(), "");
            message = regex(r"\{[^}]*\}([.:]\{[^}]*\})*").replace_all(&joined, "…").into_owned();
        } else {
            found.insert(item[2].to_owned(), std::mem::take(&mut message));
        }
    }
    assert!(found.len() > 4, "{file}: {found:?}");
    found
}

/// The entries of the page: each heading of the third level, and the text below it.
fn entries() -> Vec<(String, String)> {
    let page = read("docs/troubleshooting.md");
    let sections = page.split("\n### ").skip(1);
    let entry = |section: &str| {
        let (heading, text) = section.split_once('\n').expect("a text below each heading");
        let text = text.split("\n## ").next().unwrap_or_default().replace("\n> ", " ");
        (heading.replace('`', ""), text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    sections.map(entry).collect()
}

#[test]
fn each_error_has_an_entry() {
    let entries = entries();
    let text = |heading: &str| {
        let entry = entries.iter().find(|(found, _)| found == heading);
        entry.map_or("", |(_, text)| text)
    };
    let (mut known, mut missing) = (BTreeSet::new(), Vec::new());
    for (file, name) in [
        ("src/error.rs", "Error"),
        ("src/peft/error.rs", "CheckpointError"),
        ("src/tensor/dlpack.rs", "DlpackError"),
    ] {
        for (variant, message) in variants(file, name) {
            let heading = format!("{name}::{variant}");
            let text = text(&heading);
            if text.is_empty() || !text.contains(&message) {
                missing.push(format!("{heading}: {message}"));
            }
            known.insert(heading);
        }
    }
    // Statuses of the C API stand with the errors that they are of, or by themselves.
    let errors = variants("src/error.rs", "Error");
    let capital = regex("([a-z])([A-Z])");
    for status in variants("capi/src/status.rs", "Status").into_keys() {
        let name = capital.replace_all(&status, "${1}_$2").to_uppercase();
        let name = format!("FUSED_DORA_STATUS_{name}");
        let is_there = match errors.contains_key(&status) {
            true => text(&format!("Error::{status}")).contains(&format!("C: `{name}`.")),
            false => !text(&name).is_empty(),
        };
        if !is_there {
            missing.push(name.clone());
        }
        known.insert(name);
    }
    assert!(missing.is_empty(), "docs/troubleshooting.md lacks {missing:#?}");
    for (heading, _) in &entries {
        assert!(known.contains(heading), "docs/troubleshooting.md: there is no {heading}");
    }
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A page without its blocks of code.
fn prose(page: &str) -> String {
    regex(r"(?ms)^```.*?^```$").replace_all(page, "").into_owned()
}

#[test]
fn links_lead_somewhere() {
    let mut pages = vec![PathBuf::from("README.md"), PathBuf::from("candle/README.md")];
    let folder = fs::read_dir(root().join("docs")).expect("the guides");
    pages.extend(folder.map(|entry| Path::new("docs").join(entry.expect("an entry").file_name())));
    let link = regex(r"\]\(([^)\s]+)\)");
    let mut count = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        let text = read(page);
        for link in link.captures_iter(&prose(&text)) {
            let target = &link[1];
            if target.starts_with("https://") {
                continue;
            }
            count += 1;
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let at = match file {
                "" => page.clone(),
                file => page.parent().expect("a folder").join(file),
            };
            assert!(root().join(&at).exists(), "{}: {target} is not there", page.display());
            if !fragment.is_empty() {
                let found = anchors(&read(&at));
                assert!(found.contains(fragment), "{}: {target}: {found:?}", page.display());
            }
        }
    }
    assert!(count > 20, "{count} links");
}

#[test]
fn anchors_are_githubs() {
    assert_eq!(anchor("From C, C++ and other libraries"), "from-c-c-and-other-libraries");
    assert_eq!(anchor("`Error::InvalidSpec`"), "errorinvalidspec");
}

#[test]
fn memory_is_what_the_guide_says() {
    let (tokens, features, rank) = (2048, 4096, 16);
    let device = open_choice(Some(Choice::Emulated)).expect("the emulated device");
    let kernels = Kernels::load(&device.context).expect("kernels");
    let specs = [
        (Norm::None, NormGrad::Detached),
        (Norm::Input, NormGrad::Detached),
        (Norm::Input, NormGrad::Exact),
        (Norm::Output, NormGrad::Detached),
        (Norm::Output, NormGrad::Exact),
    ];
    let specs = specs.map(|(norm, norm_grad)| {
        let scaling = Scaling::Value(1.0);
        DoraSpec::new(features, features, rank, scaling, norm, norm_grad, Dtype::Bf16)
            .expect("spec")
    });
    let mut rows = Vec::new();
    let mut row = |what: &str, bytes: &dyn Fn(&DoraSpec) -> usize| {
        let cells: Vec<_> =
            specs.iter().map(|spec| format!("{:.3}", bytes(spec) as f64 / 1e6)).collect();
        rows.push(format!("| {what} | {} |\n", cells.join(" | ")));
    };
    let element = Dtype::Bf16.bytes();
    row("W", &|spec| element * spec.in_features() * spec.out_features());
    let buffer = |spec: &DoraSpec| size_of::<f32>() * AdapterLayout::new(spec).len();
    row("adapter", &buffer);
    row("gradients", &buffer);
    row("moments of AdamW", &|spec| 2 * buffer(spec));
    row("prepared operands", &|spec| Prepared::bytes(spec));
    row("H", &|spec| element * tokens * spec.padded_rank());
    row("z, with PEFT's dropout", &|spec| match spec.norm() {
        Norm::Output => element * tokens * spec.out_features(),
        _ => 0,
    });
    let bytes = |spec: &DoraSpec| Workspace::bytes(&kernels, &[*spec], tokens).expect("bytes");
    row("workspace, shared by all layers", &bytes);
    let table = rows.concat();
    let page = read("docs/memory-and-speed.md");
    assert!(page.contains(&table), "docs/memory-and-speed.md lacks this table:\n{table}");
}
