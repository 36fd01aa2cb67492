//! Mutants, what became of them, and the table of scores; also for the mutants of the crate's own
//! kernels.
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

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
    /// It could not be distinguished from the original.
    Survived,
    /// It was left out this time.
    NotRun,
}

/// A mutant that is known to survive.
#[derive(Clone, Copy, Debug)]
pub struct Survivor {
    /// The file's name.
    pub file: &'static str,
    /// The function that it is in.
    pub scope: &'static str,
    /// The code as it should be.
    pub code: &'static str,
    /// What replaces it.
    pub becomes: &'static str,
    /// Which of several equal changes of the function, from 0.
    pub nth: usize,
    /// Why it survives.
    pub why: Why,
}

/// Why a mutant survives.
#[derive(Clone, Copy, Debug)]
pub enum Why {
    /// No execution can distinguish it from the original, for this reason.
    Equivalent(&'static str),
    /// It is wrong, and the device does not see why. Counts against the score.
    Unseen(&'static str),
}

impl Survivor {
    /// The place in a list of mutants of the one that this is about.
    fn find(&self, rows: &[(Mutant, Verdict)]) -> Option<usize> {
        let is_this = |mutant: &Mutant| {
            let Mutant { file, scope, code, becomes, .. } = mutant;
            [file, scope, code, becomes] == [self.file, self.scope, self.code, self.becomes]
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
        let Survivor { file, scope, code, becomes, .. } = survivor;
        match survivor.find(rows) {
            None => problems.push(format!(
                "the list of survivors has `{code}` → `{becomes}` in {scope} of {file}, which is no \
                 mutant"
            )),
            Some(at) if rows[at].1 == Verdict::NotRun => {}
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
            (Verdict::NotRun, _) => continue,
            (Verdict::Reported(report), _) => report.clone(),
            (Verdict::Wrong(difference), _) => format!("wrong result: {difference}"),
            (Verdict::Survived, Some(Why::Equivalent(reason))) => format!("equivalent: {reason}"),
            (Verdict::Survived, Some(Why::Unseen(reason))) => format!("NOT SEEN: {reason}"),
            (Verdict::Survived, None) => {
                let Mutant { category, scope, .. } = mutant;
                problems.push(format!("{place}: {category} in {scope}: {change}: not noticed"));
                "NOT NOTICED".to_owned()
            }
        };
        print(format_args!("{place:<22} {:<14} {change}\n{:24}{verdict}", mutant.category, ""));
        for score in [scores.entry(&mutant.category).or_default(), &mut total] {
            score.mutants += 1;
            match &rows[at].1 {
                Verdict::Reported(_) => score.reported += 1,
                Verdict::Wrong(_) => score.wrong += 1,
                Verdict::NotRun => {}
                Verdict::Survived => {
                    let is_equivalent = matches!(explained.get(&at), Some(Why::Equivalent(_)));
                    score.equivalent += usize::from(is_equivalent);
                }
            }
        }
    }
    print(format_args!(
        "\n{:<16}{:>8}{:>10}{:>10}{:>12}{:>8}",
        "", "mutants", "reported", "wrong", "equivalent", "score"
    ));
    for (category, score) in scores.into_iter().chain([("all", total)]) {
        let Score { mutants, reported, wrong, equivalent } = score;
        let percent = 100.0 * (reported + wrong) as f64 / (mutants - equivalent).max(1) as f64;
        print(format_args!(
            "{category:<16}{mutants:>8}{reported:>10}{wrong:>10}{equivalent:>12}{percent:>7.1}%"
        ));
    }
    problems
}

/// Prints a line. `println!` would panic where stdout is closed or full.
fn print(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}
