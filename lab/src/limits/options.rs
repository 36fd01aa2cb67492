//! The command line.

use std::path::PathBuf;

use fused_dora_testkit::workspace;
use lexopt::prelude::*;

use super::code::ARCHITECTURE;
use super::counters::RANK;
use super::ptxas::ARCHITECTURES;

pub const USAGE: &str = "\
Checks the kernels against fixed limits without a GPU, and prints a line for each: what is counted,
the number, its limit, and whether it holds.

Usage: limits [OPTIONS]

  --out DIR     folder for limits.json and limits.md (target/limits)
  --arch A      architectures whose code is checked, such as sm_90; sm_80 always is; can be given
                several times (all)
  --rank R      ranks whose bounds are modelled in addition to 16, the rank of the lines; can be
                given several times (64 and 256)
  --write FILE  put the tables into a document, between its lines
                `<!-- limits -->` and `<!-- /limits -->`, and what to expect between
                `<!-- expectation -->` and `<!-- /expectation -->`
  --help        print this

CUDA_EMULATOR_PROFILE names the device whose number of multiprocessors launches are planned for
(a100). Exit codes: 0 all hold, 1 a line fails or the device did, 2 bad arguments.
";

const OTHER_RANKS: [usize; 2] = [64, 256];

/// What to do.
pub struct Options {
    pub out: PathBuf,
    pub architectures: Vec<&'static str>,
    pub ranks: Vec<usize>,
    pub write: Option<PathBuf>,
}

impl Options {
    /// Reads the process's arguments; `None` if help was asked for.
    pub fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let out = workspace().join("target/limits");
        let mut options = Self { out, architectures: Vec::new(), ranks: Vec::new(), write: None };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("out") => options.out = parser.value()?.into(),
                Long("arch") => {
                    let name = parser.value()?.string()?;
                    options.architectures.push(architecture(&name)?);
                }
                Long("rank") => options.ranks.push(parser.value()?.parse()?),
                Long("write") => options.write = Some(parser.value()?.into()),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        if options.ranks.is_empty() {
            options.ranks = OTHER_RANKS.to_vec();
        }
        let all = ARCHITECTURES.map(|(name, _)| name);
        let wanted = |name: &&str| options.architectures.contains(name) || *name == ARCHITECTURE;
        options.architectures = match options.architectures.is_empty() {
            true => all.to_vec(),
            false => all.into_iter().filter(wanted).collect(),
        };
        options.ranks.retain(|rank| *rank != RANK);
        options.ranks.insert(0, RANK);
        Ok(Some(options))
    }
}

/// An architecture by its name.
fn architecture(name: &str) -> Result<&'static str, lexopt::Error> {
    let names = ARCHITECTURES.map(|(name, _)| name);
    let known = names.into_iter().find(|known| *known == name);
    known.ok_or_else(|| format!("--arch {name}: it must be one of {}", names.join(", ")).into())
}
