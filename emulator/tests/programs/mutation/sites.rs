//! Mutation sites, as the programs mark them.
//!
//! `code;  //~ category` drops the line, and `code;  //~ category: other code;` replaces it. A line
//! of markers only is about the next line of code.

use fused_dora_mutants::{Mutant, scope};

const MARKER: &str = "//~";

/// Every mutant of a program.
pub fn mutants(file: &str, text: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut waiting: Vec<&str> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let mut parts = line.split(MARKER);
        let code = parts.next().unwrap_or_default();
        waiting.extend(parts);
        if code.trim().is_empty() {
            continue;
        }
        for marker in waiting.drain(..) {
            let (category, becomes) = marker.split_once(':').unwrap_or((marker, ""));
            let mut changed = lines.clone();
            changed[at] = becomes;
            found.push(Mutant {
                category: category.trim().to_owned(),
                file: file.to_owned(),
                line: at + 1,
                scope: scope(&lines[..=at]),
                code: code.trim().to_owned(),
                becomes: becomes.trim().to_owned(),
                text: changed.join("\n"),
            });
        }
    }
    found
}
