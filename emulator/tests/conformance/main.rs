//! What every instruction computes, compared with the PTX ISA: tables of instructions, inputs and
//! expected results, by family. The results were worked out by hand or with plain Rust arithmetic,
//! never with the emulator. An opcode without a case fails a test of its own.

mod access;
mod atomic;
mod bits;
mod collective;
mod compare;
mod control;
mod conversions;
mod convert;
mod float;
mod fragments;
mod functions;
mod half;
mod harness;
mod integer;
mod matrix;
mod memory;
mod products;
mod relations;
mod syntax;
mod video;

use cuda_emulator::{Device, Form, profile, supported_forms};

/// The cases of all modules.
fn families() -> Vec<harness::Family> {
    let families = [
        integer::families(),
        bits::families(),
        float::families(),
        functions::families(),
        half::families(),
        compare::families(),
        relations::families(),
        convert::families(),
        conversions::families(),
        access::families(),
        memory::families(),
        atomic::families(),
        collective::families(),
        matrix::families(),
        products::families(),
        fragments::families(),
        control::families(),
        video::families(),
        syntax::families(),
    ];
    families.into_iter().flatten().collect()
}

/// Goes through what the decoder accepts: every form of every instruction, and in it every choice
/// of every modifier, stands in a case whose result is checked.
#[test]
fn every_form_and_modifier_has_a_case() {
    let forms: Vec<&Form> = supported_forms().collect();
    let seen = |form: &Form| -> Vec<Vec<bool>> {
        form.slots.iter().map(|slot| vec![false; slot.choices.len()]).collect()
    };
    let mut used: Vec<_> = forms.iter().map(|form| (false, seen(form))).collect();
    for family in families() {
        assert!(forms.iter().any(|f| f.opcode == family.opcode), "unknown: {}", family.opcode);
        for modifiers in family.cases.iter().flat_map(|case| case.modifiers(family.opcode)) {
            for (form, (any, choices)) in forms.iter().zip(&mut used) {
                let fits = form.opcode == family.opcode;
                let Some(chosen) = form.assign(&modifiers).filter(|_| fits) else { continue };
                *any = true;
                for (choices, chosen) in choices.iter_mut().zip(chosen) {
                    chosen.into_iter().for_each(|at| choices[at] = true);
                }
            }
        }
    }
    let mut missing = Vec::new();
    for (form, (any, choices)) in forms.iter().zip(used) {
        for (slot, used) in form.slots.iter().zip(choices) {
            let unused = slot.choices.iter().zip(used).filter(|(_, used)| !used);
            let unused: Vec<_> = unused.map(|(choice, _)| format!(".{choice}")).collect();
            if !unused.is_empty() {
                missing.push(format!("{} of {form}", unused.join(" ")));
            }
        }
        if !any {
            missing.push(format!("all of {form}"));
        }
    }
    assert!(missing.is_empty(), "without a conformance case:\n{}", missing.join("\n"));
}

/// What a form needs, older targets and versions do not have.
#[test]
fn forms_are_refused_below_what_they_need() {
    let least = (70, (6, 5));
    let device = Device::new(profile::H100);
    let mut wrong = Vec::new();
    for form in supported_forms() {
        let required = form.slots.iter().filter(|slot| !slot.optional);
        let modifiers: Vec<&str> = required.map(|slot| slot.choices[0]).collect();
        let fits =
            |other: &&Form| other.opcode == form.opcode && other.assign(&modifiers).is_some();
        let needs = supported_forms().filter(fits).map(|other| other.needs(&modifiers));
        let needs = needs.min_by_key(|needs| (needs.capability, needs.version));
        let needs = needs.expect("the form itself fits");
        let (target, version) = match (needs.capability, needs.version) {
            needs if needs == least => continue,
            (70, _) => (70, "6.5"),
            _ => (70, "8.8"),
        };
        let name = modifiers.iter().fold(form.opcode.to_owned(), |name, m| format!("{name}.{m}"));
        let text = format!(
            ".version {version}\n.target sm_{target}\n.address_size 64\n.entry k() {{ {name}; }}"
        );
        match device.load_module(&text) {
            Err(error) if error.to_string().contains("needs target") => {}
            other => wrong.push(format!("{form}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
