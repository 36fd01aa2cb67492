//! The text of PTX: tokens, and the tree that the parser makes of them.

mod declarations;
mod expression;
mod lexer;
mod parser;
mod tree;

pub(crate) use parser::parse;
pub(crate) use tree::*;

/// What is wrong with the text, and where.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Line of the text, from 1.
    pub(crate) line: u32,
    /// File index and line of the source, where known.
    pub(crate) location: Option<Location>,
    /// What was wrong.
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, location: None, message: message.into() }
    }
}
