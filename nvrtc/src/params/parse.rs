//! The restricted form of what Rust mirrors, line by line.
//!
//! At the start of a line, outside of any namespace or struct:
//!
//! - `struct Name {`, then a line for each field or more fields of one type, then functions that
//!   start with `__device__` or `template`, then `};`;
//! - `enum class Name : int { kFirst, kSecond };`, on one line or more, without values;
//! - `constexpr int kName = VALUE;`, of literals and constants.
//!
//! A field's type is a pointer, a scalar, or a struct or enum of this form; a scalar or a struct may
//! come as an array. Comments before a line and behind it become documentation.

use super::ParamsError;

#[derive(Debug, Default)]
pub(super) struct File {
    pub name: String,
    pub structs: Vec<Struct>,
    pub enums: Vec<Enum>,
    pub constants: Vec<Constant>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Struct {
    pub name: String,
    pub fields: Vec<Field>,
    pub comments: Vec<String>,
    /// The first line that does not have the form; it matters if the struct is to be mirrored.
    pub error: Option<ParamsError>,
}

#[derive(Debug, Clone)]
pub(super) struct Field {
    pub name: String,
    /// The type; a pointer ends with `*`.
    pub kind: String,
    pub length: Option<String>,
    pub comments: Vec<String>,
    pub line: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Enum {
    pub name: String,
    pub variants: Vec<String>,
    pub comments: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Constant {
    pub name: String,
    pub value: String,
    pub comments: Vec<String>,
    pub line: usize,
}

impl File {
    pub(super) fn error(&self, line: usize, reason: impl Into<String>) -> ParamsError {
        ParamsError { file: self.name.clone(), line, reason: reason.into() }
    }
}

/// One line: its number from 1, its code and its comment.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    number: usize,
    /// As it stands, up to the comment.
    code: &'a str,
    comment: Option<&'a str>,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().enumerate().map(|(at, line)| {
        let (code, comment) = match line.split_once("//") {
            Some((code, comment)) => (code, Some(comment.trim())),
            None => (line, None),
        };
        Line { number: at + 1, code: code.trim_end(), comment }
    })
}

/// Reads what one file has of the form, and passes over the rest.
pub(super) fn file(name: &str, text: &str) -> Result<File, ParamsError> {
    let mut file = File { name: name.to_owned(), ..File::default() };
    let mut lines = lines(text);
    let (mut comments, mut is_template) = (Vec::new(), false);
    while let Some(line) = lines.next() {
        let code = line.code;
        if code.is_empty() {
            match line.comment {
                Some(comment) => comments.push(comment.to_owned()),
                None => comments.clear(),
            }
            continue;
        }
        let comments = std::mem::take(&mut comments);
        if std::mem::replace(&mut is_template, code.starts_with("template")) {
            continue;
        }
        if let Some(rest) = code.strip_prefix("struct ") {
            read_struct(&mut file, rest, comments, line, &mut lines);
        } else if let Some(rest) = code.strip_prefix("enum class ") {
            file.enums.extend(read_enum(rest, comments, &mut lines));
        } else if let Some(rest) = code.strip_prefix("constexpr ") {
            let more = line.comment.map(str::to_owned);
            let comments: Vec<_> = comments.into_iter().chain(more).collect();
            match constants(rest) {
                Some(found) => file.constants.extend(found.into_iter().map(|(name, value)| {
                    Constant { name, value, comments: comments.clone(), line: line.number }
                })),
                None if super::has_constants(name) => {
                    let reason = "only `constexpr int kName = VALUE;` can be mirrored";
                    return Err(file.error(line.number, reason));
                }
                None => {}
            }
        } else if let Some(name) = nested_params(code) {
            let reason = format!("{name} must start a line, outside of a namespace or struct");
            return Err(file.error(line.number, reason));
        }
    }
    Ok(file)
}

/// The name of a parameter struct that does not start its line.
fn nested_params(code: &str) -> Option<&str> {
    let head = code.trim_start().strip_prefix("struct ")?.split([':', '{', ';']).next()?;
    head.split_whitespace().last().filter(|name| name.ends_with("Params"))
}

fn read_struct<'a>(
    file: &mut File,
    rest: &str,
    comments: Vec<String>,
    line: Line<'a>,
    lines: &mut impl Iterator<Item = Line<'a>>,
) {
    // Behind attributes, if any; those are refused below.
    let head = rest.split([':', '{', ';', '<']).next().unwrap_or(rest);
    let name = head.split_whitespace().last().unwrap_or(head).to_owned();
    if rest.ends_with(';') && !rest.contains('{') {
        return; // declared here, defined elsewhere
    }
    let mut found = Struct { name, comments, ..Struct::default() };
    let refuse = |found: &mut Struct, line: Line<'_>, reason: &str| {
        let code = line.code.trim();
        found
            .error
            .get_or_insert(file.error(line.number, format!("cannot read `{code}`: {reason}")));
    };
    if rest.strip_suffix('{').map(str::trim) != Some(found.name.as_str()) {
        refuse(&mut found, line, "a parameter struct starts with `struct Name {`");
        if rest.ends_with("};") {
            file.structs.push(found);
            return;
        }
    }
    let mut before = Vec::new();
    while let Some(line) = lines.next() {
        let code = line.code.trim();
        if line.code == "};" {
            break;
        } else if code.is_empty() {
            match line.comment {
                Some(comment) => before.push(comment.to_owned()),
                None => before.clear(),
            }
        } else if code.starts_with("__device__") || code.starts_with("template") {
            before.clear();
            skip_function(line, lines);
        } else {
            let more = line.comment.map(str::to_owned);
            let comments: Vec<_> = before.drain(..).chain(more).collect();
            match fields(code, &comments, line.number) {
                Ok(fields) => found.fields.extend(fields),
                Err(reason) => refuse(&mut found, line, reason),
            }
        }
    }
    file.structs.push(found);
}

/// Passes over a function, to the brace that closes it.
fn skip_function<'a>(first: Line<'a>, lines: &mut impl Iterator<Item = Line<'a>>) {
    let (mut depth, mut has_body) = (0_i64, false);
    let mut line = Some(first);
    while let Some(at) = line {
        for c in at.code.chars() {
            match c {
                '{' => (depth, has_body) = (depth + 1, true),
                '}' => depth -= 1,
                _ => {}
            }
        }
        if has_body && depth == 0 {
            return;
        }
        line = lines.next();
    }
}

/// The fields that a line declares.
fn fields(code: &str, comments: &[String], line: usize) -> Result<Vec<Field>, &'static str> {
    let declaration = code.strip_suffix(';').ok_or("a field ends with `;`")?;
    if declaration.contains(['(', '&', '=', ':', '{', '<', ';']) {
        return Err("a field is a type and names, without more");
    }
    let declaration = declaration.trim().strip_prefix("const ").unwrap_or(declaration.trim());
    let (kind, names) = match declaration.split_once('*') {
        Some((_, names)) if names.contains(['*', ',', '[']) => {
            return Err("a pointer has a line of its own, and is no array");
        }
        Some((kind, name)) => (format!("{}*", kind.trim()), name),
        None => {
            let (kind, names) = declaration.split_once(' ').ok_or("a field has a name")?;
            (kind.to_owned(), names)
        }
    };
    if !is_name(kind.trim_end_matches('*')) {
        return Err("a type is one name, or a pointer to one");
    }
    let field = |declarator: &str| {
        let (name, length) = match declarator.trim().split_once('[') {
            Some((name, rest)) => {
                let length = rest.strip_suffix(']').filter(|length| !length.contains('['));
                (name, Some(length.ok_or("an array has one length")?.to_owned()))
            }
            None => (declarator.trim(), None),
        };
        if !is_name(name) {
            return Err("a field has a name");
        }
        let (name, kind, comments) = (name.to_owned(), kind.clone(), comments.to_vec());
        Ok(Field { name, kind, length, comments, line })
    };
    names.split(',').map(field).collect()
}

fn read_enum<'a>(
    rest: &str,
    comments: Vec<String>,
    lines: &mut impl Iterator<Item = Line<'a>>,
) -> Option<Enum> {
    let mut text = rest.to_owned();
    while !text.contains('}') {
        text += lines.next()?.code;
    }
    let (head, body) = text.split_once('{')?;
    let (name, kind) = head.split_once(':')?;
    let variants = body.split_once('}')?.0.split(',').map(str::trim);
    let variants: Vec<_> = variants.filter(|variant| !variant.is_empty()).collect();
    let is_plain = kind.trim() == "int" && variants.iter().all(|variant| is_name(variant));
    let variants = variants.into_iter().map(str::to_owned).collect();
    is_plain.then(|| Enum { name: name.trim().to_owned(), variants, comments })
}

/// Names and values of `int kFirst = VALUE, kSecond = VALUE;`.
fn constants(rest: &str) -> Option<Vec<(String, String)>> {
    let declarators = rest.strip_prefix("int ")?.strip_suffix(';')?.split(',');
    let constant = |declarator: &str| {
        let (name, value) = declarator.split_once('=')?;
        is_name(name.trim()).then(|| (name.trim().to_owned(), value.trim().to_owned()))
    };
    declarators.map(constant).collect()
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') && chars.all(is_part)
}
