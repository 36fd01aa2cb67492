//! Loading a module: its text is checked and decoded, and its variables get device memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ModuleError;
use crate::config::Config;
use crate::decode;
use crate::memory::Memory;
use crate::profile::Profile;
use crate::program::{Kernel, SourceText};
use crate::ptx::{self, Initial, Problem, Tree, Variable, VariableSpace};

/// Loads a module: its kernels, and its variables with their addresses and sizes.
pub(crate) fn load(
    text: &str,
    profile: &Profile,
    config: &Config,
    memory: &Memory,
    variables: &mut BTreeMap<String, (u64, u64)>,
) -> Result<Vec<Kernel>, ModuleError> {
    if !text.contains(".version") {
        return Err(ModuleError::NotPtx("it has no `.version` directive".to_owned()));
    }
    check_version(text, config)?;
    let files = BTreeMap::new();
    let source = SourceText { text: text.to_owned(), files };
    let tree = ptx::parse(text).map_err(|problem| parse_error(problem, &source))?;
    let source = Arc::new(SourceText { files: tree.files.clone(), ..source });
    check_target(&tree, profile)?;
    allocate(&tree, memory, variables)?;
    initialise(&tree, memory, variables).map_err(|problem| parse_error(problem, &source))?;
    let kernels = tree.functions.iter().filter(|f| f.is_kernel && f.body.is_some());
    kernels
        .map(|function| {
            decode::kernel(&tree, variables, source.clone(), function, config.jitter)
                .map_err(|problem| parse_error(problem, &source))
        })
        .collect()
}

fn parse_error(problem: Problem, source: &SourceText) -> ModuleError {
    let Problem { line, location, message } = problem;
    ModuleError::Parse { line, source_line: source.location(location), message }
}

/// Checks the version before anything else: a newer text need not parse.
fn check_version(text: &str, config: &Config) -> Result<(), ModuleError> {
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(".version"));
    let Some((major, minor)) = line.and_then(|version| version.trim().split_once('.')) else {
        return Ok(());
    };
    let minor: String = minor.chars().take_while(char::is_ascii_digit).collect();
    if let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) {
        let (found, supported) = ((major, minor), config.ptx_version);
        if found > supported {
            return Err(ModuleError::UnsupportedVersion { found, supported });
        }
    }
    Ok(())
}

/// Checks that the device can run code for a target such as `sm_80` or `sm_90a`.
fn check_target(tree: &Tree, profile: &Profile) -> Result<(), ModuleError> {
    let (device, target) = (profile.compute_capability, tree.target.as_str());
    let number = tree.target_number();
    if number == 0 {
        return Err(ModuleError::NotPtx(format!("unknown target `{target}`")));
    }
    let wanted = (number / 10, number % 10);
    let fits = match target.as_bytes().last() {
        Some(b'a') => wanted == device,
        Some(b'f') => wanted.0 == device.0 && wanted <= device,
        _ => wanted <= device,
    };
    if fits { Ok(()) } else { Err(ModuleError::TargetTooNew { target: target.to_owned(), device }) }
}

fn in_device_memory(variable: &&Variable) -> bool {
    matches!(variable.space, VariableSpace::Global | VariableSpace::Const)
}

fn allocate(
    tree: &Tree,
    memory: &Memory,
    variables: &mut BTreeMap<String, (u64, u64)>,
) -> Result<(), ModuleError> {
    for variable in tree.variables.iter().filter(in_device_memory) {
        let bytes = variable.bytes.unwrap_or(0);
        let name = variable.name.clone();
        if variable.external || variable.bytes.is_none() || variable.align > 256 {
            return Err(ModuleError::Parse {
                line: variable.line,
                source_line: None,
                message: format!(
                    "the variable `{name}` is defined elsewhere, has no size, or needs an \
                     alignment beyond 256 bytes"
                ),
            });
        }
        let address = match variable.space {
            VariableSpace::Const => memory.alloc_constant(bytes),
            _ => memory.alloc(bytes),
        };
        let Some(address) = address else { return Err(ModuleError::OutOfMemory { name, bytes }) };
        variables.insert(name, (address, bytes));
    }
    Ok(())
}

/// Writes initial values; what a module leaves out is zero.
fn initialise(
    tree: &Tree,
    memory: &Memory,
    variables: &BTreeMap<String, (u64, u64)>,
) -> Result<(), Problem> {
    for variable in tree.variables.iter().filter(in_device_memory) {
        let (address, bytes) = variables[&variable.name];
        let fail = |message: String| Problem::new(variable.line, message);
        let mut image = vec![0; bytes as usize];
        let width = variable.ty.bytes() as usize;
        for (index, initial) in variable.initial.iter().enumerate() {
            let address = |name: &str, offset: i64| {
                let known = variables.get(name).map(|(address, _)| *address);
                known
                    .or_else(|| decode::function_address(tree, name))
                    .map(|address| address.wrapping_add(offset as u64))
                    .ok_or_else(|| fail(format!("`{name}` has no address in device memory")))
            };
            let value = match initial {
                Initial::Bits(bits) => *bits,
                Initial::Address(name, offset) => address(name, *offset)?,
                Initial::AddressByte(name, offset, bit) => address(name, *offset)? >> bit & 0xff,
            };
            image
                .get_mut(index * width..(index + 1) * width)
                .ok_or_else(|| fail(format!("too many initial values for `{}`", variable.name)))?
                .copy_from_slice(&value.to_le_bytes()[..width]);
        }
        memory.write(address, &image).map_err(|error| fail(error.to_string()))?;
    }
    Ok(())
}
