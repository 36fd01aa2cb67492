//! What is dropped from the kernels, found by its pattern.

use regex::Regex;

use fused_dora_mutants::{Mutant, scope};

/// Category, pattern, and what replaces a match. A statement leaves its semicolon behind, lest an
/// `if` or a `for` before it take the next one.
const RULES: &[(&str, &str, &str)] = &[
    ("barrier", r"\b__sync(?:threads|warp)\(\);", ";"),
    ("fence", r"\bfence_acq_rel\(\);", ";"),
    ("wait", r"\bcp_async_wait_group<[^>]*>\(\);", ";"),
    ("commit", r"\bcp_async_commit_group\(\);", ";"),
    ("atomic", r"\batomicAdd\((?<a>\w+), (?<b>\w+)\)", PLAIN_ADD),
    ("bounds", r"TERM < TERM", "true"),
    ("bounds", r"TERM >= TERM", "false"),
    ("bounds", r"\bcount == kVector<float>", "true"),
    ("range", r"\b(?:min|max)\((?<a>[^,()]+), (?<b>INNER)\)", "($a)"),
    ("range", r"\b(?:min|max)\((?<a>[^,()]+), (?<b>INNER)\)", "($b)"),
    ("wait", r"\b(?:wait_for|wait|turn\.wait)\((?:INNER)?\);", ";"),
    ("wait", r"\b(?:turn\.pass|signal|retire)\((?:INNER)?\);", ";"),
    ("owner", r"\b(?:threadIdx\.x|blockIdx\.[xyz]|lane|half|c|number|at\.rank) == \w+", "true"),
    ("owner", r"\bblockIdx\.[xyz] != 0", "false"),
    ("owner", r"\b(?:\w+::lane\(\)|threadIdx\.x) (?:< 4|% \w+ == 0)", "true"),
    ("edge", r"TERM > 0\.0f", "true"),
    ("alignment", r"\b[fp]\.aligned(?:_[ab])?\b", "true"),
    ("alignment", r"\bif \((?:ALIGNED|PAIRED)\)", "if (true)"),
    ("alignment", r"\bpart\.start % kVector<float> == 0", "true"),
    ("alignment", r"\b__shared__ __align__\(\d+\)", "__shared__"),
    ("init", r"\b\w+\.clear\(\);", ";"),
    ("init", r"\bat\(i, j\) = 0\.0f;", ";"),
    ("init", r"\b(?<a>\w+(?:\[[\w:]+\])?) = (?:0|0\.0f?|\{[^{}]*\})(?<b>[,;])", "$a$b"),
];

/// An `atomicAdd` that is not atomic.
const PLAIN_ADD: &str = "((*$a += $b) - $b)";

/// A sum or product of names, such as `col + e` or `Mma::warp_m() * Mma::kWarpM`.
const TERM: &str = r"\bNAME(?: [+*] (?:NAME|\d+))*";

/// A name, with what follows it in `Shared<T>::kStrip` or `Mma::row(0)`.
const NAME: &str = r"[a-zA-Z][\w.:]*(?:<T>[\w:]*)?(?:\([\w.]*\))?";

/// An argument, with parentheses in it.
const INNER: &str = r"(?:[^()]|\([^()]*\))+";

/// Lines that no rule is about: choices made when compiling, and the limits of floats.
const LEFT_ALONE: &str = r"\bconstexpr\b|\bstatic_assert\b|__builtin_assume|!\(";

/// Every mutant of a file.
pub fn mutants(file: &str, text: &str) -> Vec<Mutant> {
    let left_alone = Regex::new(LEFT_ALONE).expect("a pattern");
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (category, pattern, replacement) in RULES {
        let pattern = pattern.replace("TERM", TERM).replace("NAME", NAME).replace("INNER", INNER);
        let pattern = Regex::new(&pattern).expect("a pattern");
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if left_alone.is_match(code) {
                continue;
            }
            let start = behind_loop_head(code);
            for captures in pattern.captures_iter(&code[start..]) {
                let (whole, mut becomes) = (captures.get_match(), String::new());
                captures.expand(replacement, &mut becomes);
                let (before, after) =
                    (&line[..start + whole.start()], &line[start + whole.end()..]);
                let changed = format!("{before}{becomes}{after}");
                let mut changed_lines = lines.clone();
                changed_lines[at] = &changed;
                found.push(Mutant {
                    category: (*category).to_owned(),
                    file: file.to_owned(),
                    line: at + 1,
                    scope: scope(&lines[..=at]),
                    code: whole.as_str().to_owned(),
                    becomes,
                    text: changed_lines.join("\n"),
                });
            }
        }
    }
    found.sort_by_key(|mutant| mutant.line);
    found
}

/// Where a line's code starts after `for (…)`, whose own limit is no predicate.
fn behind_loop_head(code: &str) -> usize {
    let Some(head) = code.find("for (") else { return 0 };
    let mut depth = 0;
    for (at, character) in code[head..].char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth == 1 => return head + at + 1,
            ')' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}
