//! Mutants, what became of them, and the table of scores.

use std::collections::BTreeMap;

/// One change of one line of a source.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// What kind of thing was dropped.
    pub category: String,
    /// The file's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The function that the line is in.
    pub scope: String,
    /// The code as it should be.
    pub code: String,
    /// What replaces it.
    pub becomes: String,
    /// The file's text with the change.
    pub text: String,
}

impl Mutant {
    fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    fn change(&self) -> String {
        match self.becomes.as_str() {
            "" => format!("`{}` dropped", self.code),
            becomes => format!("`{}` → `{becomes}`", self.code),
        }
    }
}

/// The function or type that the last of some lines is in: the nearest one that begins above it.
pub fn scope(lines: &[&str]) -> String {
    let function = |line: &str| {
        let before = line.split_once('(')?.0;
        let is_one = ["__device__", "__global__"].iter().any(|word| line.contains(word));
        let name = before.rsplit([' ', '*', '&']).next()?;
        (is_one && !name.starts_with("__")).then(|| name.to_owned())
    };
    let structure = |line: &str| {
        let name = line.strip_prefix("struct ")?.strip_suffix(" {")?;
        Some(name.to_owned())
    };
    lines.iter().rev().find_map(|line| function(line).or(structure(line))).unwrap_or_default()
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The device reported a fault: which, and where.
    Reported(String),
    /// It ran to its end, and a result was wrong.
    Wrong(String),
    /// No run differed from the original.
    Survived,
}

/// How many mutants of a category there were, and what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    mutants: usize,
    reported: usize,
    wrong: usize,
}

/// Prints every mutant's verdict and the scores, and returns the mutants that nothing noticed.
pub fn judge(rows: &[(Mutant, Verdict)]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut scores: BTreeMap<&str, Score> = BTreeMap::new();
    let mut total = Score::default();
    for (mutant, verdict) in rows {
        let (place, change) = (mutant.place(), mutant.change());
        let text = match verdict {
            Verdict::Reported(report) => report.clone(),
            Verdict::Wrong(difference) => format!("wrong result: {difference}"),
            Verdict::Survived => {
                let Mutant { category, scope, .. } = mutant;
                problems.push(format!("{place}: {category} in {scope}: {change}: not noticed"));
                "NOT NOTICED".to_owned()
            }
        };
        println!("{place:<22} {:<14} {change}\n{:24}{text}", mutant.category, "");
        for score in [scores.entry(&mutant.category).or_default(), &mut total] {
            score.mutants += 1;
            match verdict {
                Verdict::Reported(_) => score.reported += 1,
                Verdict::Wrong(_) => score.wrong += 1,
                Verdict::Survived => {}
            }
        }
    }
    println!("\n{:<16}{:>8}{:>10}{:>10}{:>8}", "", "mutants", "reported", "wrong", "score");
    for (category, Score { mutants, reported, wrong }) in scores.into_iter().chain([("all", total)])
    {
        let percent = 100.0 * (reported + wrong) as f64 / mutants.max(1) as f64;
        println!("{category:<16}{mutants:>8}{reported:>10}{wrong:>10}{percent:>7.1}%");
    }
    problems
}
