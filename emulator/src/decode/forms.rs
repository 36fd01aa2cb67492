//! The forms of instructions: which modifiers go together, and what they need.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use super::table::{Decode, FORMS, GROUPS, NEEDS, UNSUPPORTED};
use crate::ptx::Type;

/// What is taken for granted: modules for older targets may use all of it.
const LEAST: Needs = Needs { capability: 70, version: (6, 5) };

/// What an instruction needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Ten times the major plus the minor compute capability: 80 is `sm_80`.
    pub capability: u32,
    /// The PTX version: (major, minor).
    pub version: (u32, u32),
}

impl Needs {
    /// What a module for this target and of this version may use.
    pub(super) fn of_module(capability: u32, version: (u32, u32)) -> Self {
        LEAST.and(Self { capability, version })
    }

    fn and(self, other: Self) -> Self {
        Self {
            capability: self.capability.max(other.capability),
            version: self.version.max(other.version),
        }
    }
}

/// One place for a modifier.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The modifiers that may stand here, without their dots.
    pub choices: Vec<&'static str>,
    /// Whether it may be left empty.
    pub optional: bool,
}

/// One form of an instruction, as the PTX ISA's syntax lines give it. Modifiers are known by their
/// names and may be written in any order; only types follow each other as the form has them.
#[derive(Clone, Debug)]
pub struct Form {
    /// The name of the instruction.
    pub opcode: &'static str,
    /// The places of its modifiers.
    pub slots: Vec<Slot>,
    needs: Needs,
    /// The position of the opcode among those of the row.
    pub(super) position: usize,
    pub(super) decode: Decode,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}", self.opcode)?;
        for Slot { choices, optional } in &self.slots {
            let choices = choices.join("|");
            write!(
                f,
                "{}",
                if *optional { format!("{{.{choices}}}") } else { format!(".{choices}") }
            )?;
        }
        write!(f, "`")
    }
}

impl Form {
    /// For each slot the choice that an instruction made, if all its modifiers fit and nothing that
    /// must be there is missing.
    pub fn assign(&self, modifiers: &[&str]) -> Option<Vec<Option<usize>>> {
        let mut chosen = vec![None; self.slots.len()];
        let mut types = 0;
        for modifier in modifiers {
            let is_type = Type::by_name(modifier).is_some();
            let choice = |slot: &Slot| slot.choices.iter().position(|choice| choice == modifier);
            let first = if is_type { types } else { 0 };
            let mut free = (first..chosen.len()).filter(|&at| chosen[at].is_none());
            let at = free.find(|&at| choice(&self.slots[at]).is_some())?;
            chosen[at] = choice(&self.slots[at]);
            if is_type {
                types = at + 1;
            }
        }
        let complete = chosen.iter().zip(&self.slots).all(|(c, slot)| c.is_some() || slot.optional);
        complete.then_some(chosen)
    }

    /// What the form needs with these modifiers.
    pub fn needs(&self, modifiers: &[&str]) -> Needs {
        let known = NEEDS.iter().filter(|(name, ..)| modifiers.contains(name));
        known.fold(self.needs, |needs, &(_, capability, version)| {
            needs.and(Needs { capability, version })
        })
    }

    fn parse((row, decode): (&'static str, Decode)) -> impl Iterator<Item = Form> {
        let (line, needs) = row.split_once("; ").unwrap_or((row, ""));
        let mut words = line.split(' ');
        let opcodes = words.next().unwrap_or_default();
        let slots: Vec<Slot> = words
            .map(|word| {
                let optional = word.ends_with('?');
                let choices = word.trim_end_matches('?').split('|').flat_map(expand).collect();
                Slot { choices, optional }
            })
            .collect();
        let needs = parse_needs(needs);
        opcodes.split('|').enumerate().map(move |(position, opcode)| {
            let slots = slots.clone();
            Form { opcode, slots, needs, position, decode }
        })
    }
}

/// The alternatives that a name stands for.
fn expand(name: &'static str) -> impl Iterator<Item = &'static str> {
    let group = GROUPS.iter().find(|(group, _)| *group == name);
    group.map_or(name, |(_, choices)| choices).split('|')
}

fn parse_needs(text: &str) -> Needs {
    let parse = || {
        let (capability, version) = text.split_once(' ')?;
        let (major, minor) = version.split_once('.')?;
        let version = (major.parse().ok()?, minor.parse().ok()?);
        Some(Needs { capability: capability.parse().ok()?, version })
    };
    parse().unwrap_or(LEAST)
}

static BY_OPCODE: LazyLock<BTreeMap<&'static str, Vec<Form>>> = LazyLock::new(|| {
    let mut forms = BTreeMap::<_, Vec<_>>::new();
    for form in FORMS.iter().copied().flat_map(Form::parse) {
        forms.entry(form.opcode).or_default().push(form);
    }
    forms
});

/// Every form of every instruction that modules may contain, by opcode.
pub fn supported_forms() -> impl Iterator<Item = &'static Form> {
    BY_OPCODE.values().flatten()
}

/// What an instruction is about that devices have and the emulated one has not.
fn unsupported(opcode: &str, modifiers: &[&str]) -> Option<&'static str> {
    let fits = |name: &str| {
        name.is_empty()
            || modifiers.iter().any(|m| *m == name || m.split("::").next() == Some(name))
    };
    let found = UNSUPPORTED.iter().find(|(known, name, _)| *known == opcode && fits(name));
    found.map(|(.., what)| *what)
}

/// Finds the form of an instruction, which the target must provide.
pub(super) fn find(
    opcode: &str,
    modifiers: &[&str],
    target: Needs,
) -> Result<&'static Form, String> {
    let name = || modifiers.iter().fold(opcode.to_owned(), |name, next| format!("{name}.{next}"));
    let Some(forms) = BY_OPCODE.get(opcode) else {
        return Err(match unsupported(opcode, modifiers) {
            Some(what) => format!("`{}`: {what} are not supported", name()),
            None => format!("unknown instruction `{opcode}`"),
        });
    };
    let met = |needs: &Needs| target.and(*needs) == target;
    let fits = |form: &Form| form.assign(modifiers).is_some() && met(&form.needs(modifiers));
    if let Some(form) = forms.iter().find(|form| fits(form)) {
        return Ok(form);
    }
    let fitting: Vec<_> = forms.iter().filter(|f| f.assign(modifiers).is_some()).collect();
    if fitting.is_empty() {
        if let Some(what) = unsupported(opcode, modifiers) {
            return Err(format!("`{}`: {what} are not supported", name()));
        }
        let places = |form: &&Form| {
            let known = |name: &&&str| form.slots.iter().any(|slot| slot.choices.contains(*name));
            modifiers.iter().filter(known).count()
        };
        let nearest = forms.iter().rev().max_by_key(places);
        let nearest = nearest.map(|form| format!("; the nearest form is {form}"));
        return Err(format!("`{}` does not exist{}", name(), nearest.unwrap_or_default()));
    }
    let needs = fitting.iter().map(|form| form.needs(modifiers));
    let least = needs.min_by_key(|needs| (needs.capability, needs.version));
    let Needs { capability, version } = least.unwrap_or(LEAST);
    Err(format!(
        "`{}` needs target sm_{capability} and PTX version {}.{} or newer",
        name(),
        version.0,
        version.1
    ))
}
