//! Mutants, what became of them, and the table of scores; also for the mutants of the crate's own
//! kernels.
#![allow(dead_code, reason = "each of the tests uses its own part")]

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
    /// The line's code as it should be.
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

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The device reported a fault: which, and where.
    Reported(String),
    /// It ran to its end, and a result was wrong.
    Wrong(String),
    /// It could not be told from the original.
    Survived,
}

/// A mutant that is known to survive.
#[derive(Clone, Copy, Debug)]
pub struct Survivor {
    /// The file's name.
    pub file: &'static str,
    /// The line's code as it should be.
    pub code: &'static str,
    /// What replaces it.
    pub becomes: &'static str,
    /// Which of several equal changes of the file, from 0.
    pub nth: usize,
    /// Why it survives.
    pub why: Why,
}

/// Why a mutant survives.
#[derive(Clone, Copy, Debug)]
pub enum Why {
    /// No execution can tell it from the original, for this reason.
    Equivalent(&'static str),
    /// It is wrong, and the device does not see why. Counts against the score.
    Unseen(&'static str),
}

impl Survivor {
    /// The place in a list of mutants of the one that this is about.
    fn find(&self, rows: &[(Mutant, Verdict)]) -> Option<usize> {
        let is_this = |mutant: &Mutant| {
            (mutant.file.as_str(), mutant.code.as_str(), mutant.becomes.as_str())
                == (self.file, self.code, self.becomes)
        };
        let same = rows.iter().enumerate().filter(|(_, (mutant, _))| is_this(mutant));
        same.map(|(at, _)| at).nth(self.nth)
    }
}

/// How many mutants of a category there were, and what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    mutants: usize,
    reported: usize,
    wrong: usize,
    equivalent: usize,
}

/// Prints every mutant's verdict and the scores, and returns what is wrong with them: survivors
/// without an explanation, and explanations without a survivor.
pub fn judge(rows: &[(Mutant, Verdict)], survivors: &[Survivor]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut explained: BTreeMap<usize, Why> = BTreeMap::new();
    for survivor in survivors {
        let Survivor { file, code, becomes, .. } = survivor;
        match survivor.find(rows) {
            None => problems.push(format!(
                "the list of survivors has `{code}` → `{becomes}` of {file}, which is no mutant"
            )),
            Some(at) if rows[at].1 != Verdict::Survived => problems.push(format!(
                "{}: {} is in the list of survivors and was found",
                rows[at].0.place(),
                rows[at].0.change()
            )),
            Some(at) => {
                explained.insert(at, survivor.why);
            }
        }
    }
    let mut scores: BTreeMap<&str, Score> = BTreeMap::new();
    let mut total = Score::default();
    for (at, (mutant, verdict)) in rows.iter().enumerate() {
        let (place, change) = (mutant.place(), mutant.change());
        let verdict = match (verdict, explained.get(&at)) {
            (Verdict::Reported(report), _) => report.clone(),
            (Verdict::Wrong(difference), _) => format!("wrong result: {difference}"),
            (Verdict::Survived, Some(Why::Equivalent(reason))) => format!("equivalent: {reason}"),
            (Verdict::Survived, Some(Why::Unseen(reason))) => format!("NOT SEEN: {reason}"),
            (Verdict::Survived, None) => {
                problems.push(format!("{place}: {}: {change}: not noticed", mutant.category));
                "NOT NOTICED".to_owned()
            }
        };
        println!("{place:<22} {:<14} {change}\n{:24}{verdict}", mutant.category, "");
        for score in [scores.entry(&mutant.category).or_default(), &mut total] {
            score.mutants += 1;
            match &rows[at].1 {
                Verdict::Reported(_) => score.reported += 1,
                Verdict::Wrong(_) => score.wrong += 1,
                Verdict::Survived => {
                    let is_equivalent = matches!(explained.get(&at), Some(Why::Equivalent(_)));
                    score.equivalent += usize::from(is_equivalent);
                }
            }
        }
    }
    println!(
        "\n{:<16}{:>8}{:>10}{:>10}{:>12}{:>8}",
        "", "mutants", "reported", "wrong", "equivalent", "score"
    );
    for (category, score) in scores.into_iter().chain([("all", total)]) {
        let Score { mutants, reported, wrong, equivalent } = score;
        let percent = 100.0 * (reported + wrong) as f64 / (mutants - equivalent).max(1) as f64;
        println!(
            "{category:<16}{mutants:>8}{reported:>10}{wrong:>10}{equivalent:>12}{percent:>7.1}%"
        );
    }
    problems
}
