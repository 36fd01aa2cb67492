//! Tables within a document that is written by hand.

use std::error::Error;
use std::fs;
use std::path::Path;

/// Puts tables into the file at `path`, in place of what is between the lines `<!-- name -->` and
/// `<!-- /name -->`.
///
/// # Errors
/// Where it cannot be read or written, or lacks the lines.
pub fn into_file(path: &Path, name: &str, tables: &str) -> Result<(), Box<dyn Error>> {
    let failed = |error: String| format!("--write {}: {error}", path.display());
    let document = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let document = spliced(&document, name, tables).map_err(failed)?;
    fs::write(path, document).map_err(|error| failed(error.to_string()))?;
    Ok(())
}

fn spliced(document: &str, name: &str, tables: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let lacks = |line: &str| format!("it has no line `{line}`");
    let (before, rest) = document.split_once(&begin).ok_or_else(|| lacks(&begin))?;
    let (_, after) = rest.split_once(&end).ok_or_else(|| lacks(&end))?;
    Ok(format!("{before}{begin}\n{tables}{end}{after}"))
}
