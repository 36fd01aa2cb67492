//! The kernels' parameter structs and sizes, read from their sources and written as Rust.
//!
//! Read are all structs whose names end in `Params`, the structs and enums that they contain, and the
//! constants of every `params.cuh` and `sizes.cuh`. The form is restricted (see [`parse`]), and
//! whatever does not have it is an error with file and line. The layout is computed here; the CUDA
//! compiler checks it in the [`Mirror::asserts`], and the Rust compiler in the written code.

mod expression;
mod layout;
mod parse;
mod rust;

use std::collections::BTreeMap;
use std::fmt;

use layout::Layout;
use parse::{Enum, File, Struct};

/// Where and why a source cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamsError {
    /// The file, by its name below the kernels' folder.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for ParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernels/{}({}): {}", self.file, self.line, self.reason)
    }
}

impl std::error::Error for ParamsError {}

/// The folder of what all ops share.
const COMMON: &str = "common";

/// The files whose constants Rust mirrors.
const CONSTANT_FILES: [&str; 2] = ["params.cuh", "sizes.cuh"];

/// What Rust mirrors of the kernels' sources.
#[derive(Debug, Default)]
pub struct Mirror {
    ops: BTreeMap<String, Op>,
}

/// One op's folder, or what is common to all.
#[derive(Debug, Default)]
struct Op {
    structs: Vec<(Struct, Layout)>,
    enums: Vec<Enum>,
    /// Names, values and comments.
    constants: Vec<(String, i64, Vec<String>)>,
}

impl Mirror {
    /// Reads `(name, text)` of all files in a kernels folder.
    ///
    /// # Errors
    /// The first place that does not have the restricted form.
    pub fn read<'a>(
        sources: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ParamsError> {
        let files =
            sources.into_iter().map(|(n, t)| parse::file(n, t)).collect::<Result<Vec<_>, _>>()?;
        let mut mirror = Self::default();
        for file in &files {
            for found in file.structs.iter().filter(|found| found.name.ends_with("Params")) {
                mirror.add(&files, file, found)?;
            }
            for constant in file.constants.iter().filter(|_| has_constants(&file.name)) {
                let value = value(&files, file, &constant.value)
                    .map_err(|reason| file.error(constant.line, reason))?;
                let op = mirror.ops.entry(op_of(&file.name).to_owned()).or_default();
                op.constants.push((constant.name.clone(), value, constant.comments.clone()));
            }
        }
        Ok(mirror)
    }

    /// Adds a struct behind those that it contains.
    fn add(&mut self, files: &[File], file: &File, found: &Struct) -> Result<Layout, ParamsError> {
        let op = op_of(&file.name);
        let known = self.ops.get(op).map_or(&[][..], |op| &op.structs);
        if let Some((_, layout)) = known.iter().find(|(known, _)| known.name == found.name) {
            return Ok(layout.clone());
        }
        if let Some(error) = &found.error {
            return Err(error.clone());
        }
        let mut layout = Layout::default();
        for field in &found.fields {
            let error = |reason| file.error(field.line, reason);
            let (size, align) = match layout::scalar(&field.kind) {
                Some(scalar) => (scalar.size, scalar.size),
                None => self.add_named(files, file, field)?,
            };
            let length = field.length.as_deref().map(|length| {
                let length = value(files, file, length)?;
                usize::try_from(length).map_err(|_| format!("a length of {length}"))
            });
            let count = length.transpose().map_err(error)?;
            layout.push(size, align, count);
        }
        layout.finish();
        let op = self.ops.entry(op.to_owned()).or_default();
        op.structs.push((found.clone(), layout.clone()));
        Ok(layout)
    }

    /// Adds the struct or enum that a field is of; its size and alignment.
    fn add_named(
        &mut self,
        files: &[File],
        file: &File,
        field: &parse::Field,
    ) -> Result<(usize, usize), ParamsError> {
        let name = field.kind.as_str();
        for other in visible(files, file) {
            if let Some(found) = other.structs.iter().find(|found| found.name == name) {
                let layout = self.add(files, other, found)?;
                return Ok((layout.size, layout.align));
            }
            if let Some(found) = other.enums.iter().find(|found| found.name == name) {
                let op = self.ops.entry(op_of(&other.name).to_owned()).or_default();
                if !op.enums.contains(found) {
                    op.enums.push(found.clone());
                }
                return Ok((4, 4));
            }
        }
        let reason = format!("`{name}` is not a type that Rust can mirror");
        Err(file.error(field.line, reason))
    }

    /// The Rust code: a module per op.
    pub fn rust(&self) -> String {
        rust::code(&self.ops)
    }

    /// The ops that have parameters.
    pub fn ops(&self) -> impl Iterator<Item = &str> {
        let has_params = |(name, op): &(&String, &Op)| *name != COMMON && !op.structs.is_empty();
        self.ops.iter().filter(has_params).map(|(name, _)| name.as_str())
    }

    /// A translation unit that compiles if the CUDA compiler's layout of an op's parameters is the
    /// one that Rust has. It includes `OP/params.cuh`.
    pub fn asserts(&self, op: &str) -> String {
        let structs = |name: &str| self.ops.get(name).map_or(&[][..], |op| &op.structs);
        let is_contained = |name: &str| {
            structs(op).iter().flat_map(|(found, _)| &found.fields).any(|field| field.kind == name)
        };
        let common = structs(COMMON).iter().filter(|(found, _)| is_contained(&found.name));
        let asserts = structs(op).iter().chain(common).map(|(of, layout)| layout.asserts(of));
        [format!("#include \"{op}/params.cuh\"\n")].into_iter().chain(asserts).collect()
    }
}

/// The op that a file belongs to: its folder, or for `op.cu` its stem.
fn op_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or(file)
}

fn has_constants(file: &str) -> bool {
    CONSTANT_FILES.contains(&file.rsplit('/').next().unwrap_or(file))
}

/// The files whose names a file may use: those of its op, then the common ones.
fn visible<'a>(files: &'a [File], from: &File) -> impl Iterator<Item = &'a File> {
    let of = move |op: String| files.iter().filter(move |file| op_of(&file.name) == op);
    of(op_of(&from.name).to_owned()).chain(of(COMMON.to_owned()))
}

/// The value of a constant expression in a file.
fn value(files: &[File], file: &File, text: &str) -> Result<i64, String> {
    expression::evaluate(text, &|name| {
        let constants = visible(files, file).flat_map(|file| &file.constants);
        constants.into_iter().find(|constant| constant.name == name).map(|c| c.value.clone())
    })
}

#[cfg(test)]
mod tests;
