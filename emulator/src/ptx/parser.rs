//! From tokens to the tree.

use super::declarations::variable_space;
use super::expression::Value;
use super::lexer::{Kind, Token, tokens};
use super::tree::*;
use super::{Location, Problem};

pub(super) type Result<T> = std::result::Result<T, Problem>;

/// The deepest nesting of scopes, lists and initialisers.
const MOST_DEPTH: u32 = 128;

/// Parses the text of a module.
pub(crate) fn parse(text: &str) -> Result<Tree> {
    let tokens = tokens(text)?;
    let mut parser = Parser {
        text,
        tokens,
        at: 0,
        depth: 0,
        location: None,
        vectors: Vec::new(),
        in_call: false,
        tree: Tree::default(),
    };
    parser
        .module()
        .map_err(|problem| Problem { location: problem.location.or(parser.location), ..problem })?;
    Ok(parser.tree)
}

pub(super) struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    pub(super) at: usize,
    /// Braces and brackets that are open.
    depth: u32,
    pub(super) location: Option<Location>,
    /// Vector registers that are in scope, with their lengths; a length of one hides another.
    pub(super) vectors: Vec<(String, usize)>,
    /// Whether the operands are those of a call, whose lists are in parentheses.
    in_call: bool,
    pub(super) tree: Tree,
}

impl<'a> Parser<'a> {
    pub(super) fn token(&self) -> Token<'a> {
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    pub(super) fn peek(&self) -> Kind<'a> {
        self.token().kind
    }

    pub(super) fn peek_after(&self) -> Kind<'a> {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    /// Whether no gap lies before the token after the next one.
    pub(super) fn touches_next(&self) -> bool {
        self.tokens.get(self.at + 1).is_some_and(|next| next.start == self.token().end)
    }

    pub(super) fn text_of(&self, token: Token<'a>) -> &'a str {
        &self.text[token.start..token.end]
    }

    pub(super) fn next(&mut self) -> Kind<'a> {
        let kind = self.peek();
        self.at += 1;
        kind
    }

    pub(super) fn line(&self) -> u32 {
        self.token().line
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Problem::new(self.line(), message))
    }

    pub(super) fn unexpected<T>(&self, wanted: &str) -> Result<T> {
        let found = match self.peek() {
            Kind::Name(name) => format!("`{name}`"),
            Kind::Dot(name) => format!("`.{name}`"),
            Kind::Integer(value) => format!("`{value}`"),
            Kind::Mark(mark) => format!("`{mark}`"),
            Kind::Text(text) => format!("\"{text}\""),
            Kind::Single(_) | Kind::Double(_) => "a floating-point constant".to_owned(),
            Kind::End => "the end of the text".to_owned(),
        };
        self.fail(format!("expected {wanted}, found {found}"))
    }

    pub(super) fn is_mark(&self, mark: char) -> bool {
        self.peek() == Kind::Mark(mark)
    }

    pub(super) fn accept(&mut self, mark: char) -> bool {
        let found = self.is_mark(mark);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, mark: char) -> Result<()> {
        if self.accept(mark) { Ok(()) } else { self.unexpected(&format!("`{mark}`")) }
    }

    pub(super) fn accept_dot(&mut self, name: &str) -> bool {
        let found = self.peek() == Kind::Dot(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn name(&mut self) -> Result<String> {
        match self.peek() {
            Kind::Name(name) => {
                self.at += 1;
                Ok(name.to_owned())
            }
            _ => self.unexpected("a name"),
        }
    }

    pub(super) fn integer(&mut self) -> Result<u64> {
        let negative = self.accept('-');
        match self.peek() {
            Kind::Integer(value) => {
                self.at += 1;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => self.unexpected("an integer"),
        }
    }

    pub(super) fn small(&mut self) -> Result<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.fail(format!("{value} is out of range")))
    }

    /// Parses what may contain itself.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MOST_DEPTH {
            return self.fail(format!("more than {MOST_DEPTH} scopes or lists within each other"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    pub(super) fn module(&mut self) -> Result<()> {
        loop {
            let line = self.line();
            match self.next() {
                Kind::End => return Ok(()),
                Kind::Dot("version") => self.version()?,
                Kind::Dot("target") => {
                    self.tree.target = self.name()?;
                    while self.accept(',') {
                        let option = self.name()?;
                        // Textures, which the last two are about, are not there.
                        if !matches!(
                            option.as_str(),
                            "debug" | "texmode_unified" | "texmode_independent"
                        ) {
                            return self.fail(format!("unknown target option `{option}`"));
                        }
                    }
                }
                Kind::Dot("address_size") => {
                    if self.integer()? != 64 {
                        return self.fail("only 64-bit addresses are supported");
                    }
                }
                Kind::Dot("file") => self.file()?,
                Kind::Dot("section") => self.section()?,
                Kind::Dot("loc") => self.loc(line)?,
                Kind::Dot("pragma") => self.pragma()?,
                Kind::Dot("alias") => {
                    let alias = self.name()?;
                    self.expect(',')?;
                    let function = self.name()?;
                    self.expect(';')?;
                    self.tree.aliases.insert(alias, function);
                }
                Kind::Mark(';') => {}
                _ => {
                    self.at -= 1;
                    self.declaration()?;
                }
            }
        }
    }

    pub(super) fn version(&mut self) -> Result<()> {
        // `8.8` is one token, a decimal constant: take its text apart instead.
        let token = self.token();
        let text = &self.text[token.start..token.end];
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        match (major.parse(), minor.parse()) {
            (Ok(major @ 0..=99), Ok(minor @ 0..=99)) => self.tree.version = (major, minor),
            _ => return self.unexpected("a version"),
        }
        self.at += 1;
        Ok(())
    }

    pub(super) fn file(&mut self) -> Result<()> {
        let index = self.small()?;
        let Kind::Text(path) = self.next() else {
            self.at -= 1;
            return self.unexpected("a file name");
        };
        self.tree.files.insert(index, path.to_owned());
        while self.accept(',') {
            self.integer()?;
        }
        Ok(())
    }

    /// Debug sections hold nothing that runs.
    pub(super) fn section(&mut self) -> Result<()> {
        while !self.is_mark('{') {
            if self.next() == Kind::End {
                return self.unexpected("a section");
            }
        }
        while !self.accept('}') {
            if self.next() == Kind::End {
                return self.unexpected("`}`");
            }
        }
        Ok(())
    }

    /// A line mark, which ends with its line.
    pub(super) fn loc(&mut self, line: u32) -> Result<()> {
        let file = self.small()?;
        let source_line = self.small()?;
        self.location = (source_line > 0).then_some((file, source_line)).or(self.location);
        while self.line() == line && self.peek() != Kind::End {
            self.at += 1;
        }
        Ok(())
    }

    pub(super) fn pragma(&mut self) -> Result<()> {
        loop {
            match self.next() {
                Kind::Text("nounroll" | "enable_smem_spilling") => {}
                Kind::Text(text) if text.starts_with("used_bytes_mask") => {}
                Kind::Text(text) => return self.fail(format!("unknown pragma \"{text}\"")),
                _ => {
                    self.at -= 1;
                    return self.unexpected("a pragma");
                }
            }
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    /// The statements of a scope, its closing brace included.
    pub(super) fn statements(&mut self) -> Result<Vec<Statement>> {
        let mut statements = Vec::new();
        let vectors = self.vectors.len();
        loop {
            let line = self.line();
            match self.next() {
                Kind::Mark('}') => {
                    self.vectors.truncate(vectors);
                    return Ok(statements);
                }
                Kind::Mark('{') => {
                    statements.push(Statement::Scope(self.nested(Self::statements)?))
                }
                Kind::Mark(';') => {}
                Kind::Dot("loc") => self.loc(line)?,
                Kind::Dot("pragma") => self.pragma()?,
                Kind::Dot("reg") => statements.push(self.registers(line)?),
                Kind::Dot(name) => match variable_space(name) {
                    Some(space) => {
                        for variable in self.variables(space, false)? {
                            statements.push(self.local_variable(variable));
                        }
                    }
                    None => {
                        self.at -= 1;
                        return self.fail(format!("unknown directive `.{name}`"));
                    }
                },
                Kind::Name(label) if self.is_mark(':') => {
                    self.at += 1;
                    if self.accept_dot("branchtargets") {
                        let targets = self.names()?;
                        statements.push(Statement::Targets(label.to_owned(), targets));
                    } else if self.accept_dot("calltargets") {
                        let prototype = Prototype::Targets(self.names()?);
                        statements.push(Statement::Prototype(label.to_owned(), prototype));
                    } else if self.accept_dot("callprototype") {
                        let prototype = self.prototype()?;
                        statements.push(Statement::Prototype(label.to_owned(), prototype));
                    } else {
                        statements.push(Statement::Label(label.to_owned(), line));
                    }
                }
                _ => {
                    self.at -= 1;
                    statements.push(Statement::Instruction(self.instruction()?));
                }
            }
        }
    }

    /// A variable of a body. Those in device memory belong to the module, under their own names.
    fn local_variable(&mut self, mut variable: Variable) -> Statement {
        if !matches!(variable.space, VariableSpace::Global | VariableSpace::Const) {
            return Statement::Variable(variable);
        }
        let number = self.tree.variables.len();
        let linked = format!("{}@{number}", variable.name);
        let name = std::mem::replace(&mut variable.name, linked.clone());
        self.tree.variables.push(variable);
        Statement::Static(name, linked)
    }

    /// Names up to the semicolon.
    pub(super) fn names(&mut self) -> Result<Vec<String>> {
        let mut names = vec![self.name()?];
        while self.accept(',') {
            names.push(self.name()?);
        }
        self.expect(';')?;
        Ok(names)
    }

    /// `(results) _ (parameters)`, both of which may be missing.
    pub(super) fn prototype(&mut self) -> Result<Prototype> {
        let vectors = self.vectors.len();
        let returns = if self.is_mark('(') { self.params()? } else { Vec::new() };
        if self.peek() != Kind::Name("_") {
            return self.unexpected("`_`");
        }
        self.at += 1;
        let params = if self.is_mark('(') { self.params()? } else { Vec::new() };
        self.vectors.truncate(vectors);
        self.accept_dot("noreturn");
        self.expect(';')?;
        Ok(Prototype::Parameters(returns, params))
    }

    pub(super) fn registers(&mut self, line: u32) -> Result<Statement> {
        let mut length = 1;
        for (name, elements) in [("v2", 2), ("v4", 4)] {
            if self.accept_dot(name) {
                length = elements;
            }
        }
        let Kind::Dot(name) = self.peek() else { return self.unexpected("a type") };
        let Some(ty) = Type::by_name(name) else {
            return self.fail(format!("unknown register type `.{name}`"));
        };
        self.at += 1;
        let mut names = Vec::new();
        loop {
            let name = self.name()?;
            let mut count = None;
            if self.accept('<') {
                count = Some(self.small()?);
                self.expect('>')?;
            }
            self.declare_registers(&mut names, name, count, length)?;
            if !self.accept(',') {
                self.expect(';')?;
                return Ok(Statement::Registers(ty, names, line));
            }
        }
    }

    /// Adds registers to a list. A vector register is one register for each of its elements.
    fn declare_registers(
        &mut self,
        names: &mut Vec<(String, Option<u32>)>,
        name: String,
        count: Option<u32>,
        length: usize,
    ) -> Result<()> {
        const MOST_VECTORS: u32 = 1 << 16;
        if length == 1 {
            if count.is_none() && self.vectors.iter().any(|(vector, _)| *vector == name) {
                self.vectors.push((name.clone(), 1));
            }
            names.push((name, count));
            return Ok(());
        }
        if count.is_some_and(|count| count > MOST_VECTORS) {
            return self.fail(format!("more than {MOST_VECTORS} vector registers"));
        }
        let vectors: Vec<String> = match count {
            Some(count) => (0..count).map(|index| format!("{name}{index}")).collect(),
            None => vec![name],
        };
        for vector in vectors {
            names.extend(Self::element_names(&vector, length).map(|name| (name, None)));
            self.vectors.push((vector, length));
        }
        Ok(())
    }

    /// The names of the elements of a vector register.
    pub(super) fn element_names(name: &str, length: usize) -> impl Iterator<Item = String> {
        let elements = ["x", "y", "z", "w"].into_iter().take(length);
        elements.map(move |element| format!("{name}.{element}"))
    }

    /// The length of a vector register of that name; one where there is none.
    fn vector_length(&self, name: &str) -> usize {
        self.vectors
            .iter()
            .rev()
            .find(|(vector, _)| vector == name)
            .map_or(1, |(_, length)| *length)
    }

    pub(super) fn instruction(&mut self) -> Result<InstructionTree> {
        let (start, line) = (self.token().start, self.line());
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            guard = Some((self.name()?, negated));
        }
        let Kind::Name(opcode) = self.peek() else { return self.unexpected("an instruction") };
        self.at += 1;
        let mut modifiers = Vec::new();
        while let Kind::Dot(modifier) = self.peek() {
            self.at += 1;
            modifiers.push(modifier.to_owned());
        }
        self.in_call = opcode == "call";
        let mut operands = Vec::new();
        while !self.is_mark(';') {
            operands.push(self.operand()?);
            if !self.accept(',') {
                break;
            }
        }
        let text = start..self.token().start;
        self.expect(';')?;
        let (opcode, location) = (opcode.to_owned(), self.location);
        Ok(InstructionTree { guard, opcode, modifiers, operands, line, location, text })
    }

    pub(super) fn operand(&mut self) -> Result<Operand> {
        let first = match self.peek() {
            Kind::Mark('{') => {
                self.at += 1;
                return Ok(Operand::Vector(self.list('}')?));
            }
            Kind::Mark('(') if self.in_call => {
                self.at += 1;
                return Ok(Operand::List(self.list(')')?));
            }
            Kind::Mark('[') => {
                self.at += 1;
                let base = match self.peek() {
                    Kind::Name(_) => Operand::Name(self.element_name()?),
                    _ => Operand::Integer(self.integer_expression()?),
                };
                let offset = self.offset()?;
                if self.accept(',') {
                    let mut object = vec![base];
                    object.extend(self.list(']')?);
                    return Ok(Operand::Object(object));
                }
                self.expect(']')?;
                return Ok(Operand::Address(Box::new(base), offset));
            }
            Kind::Mark('!') if matches!(self.peek_after(), Kind::Name(_)) => {
                self.at += 1;
                return Ok(Operand::Not(self.name()?));
            }
            Kind::Mark('-') if matches!(self.peek_after(), Kind::Name(_)) => {
                self.at += 1;
                return Ok(Operand::Negated(self.element_name()?));
            }
            Kind::Single(bits)
                if matches!(self.peek_after(), Kind::Mark(',' | ';' | '}' | ')' | ']')) =>
            {
                self.at += 1;
                return Ok(Operand::Single(bits));
            }
            Kind::Name("_") => {
                self.at += 1;
                Operand::Sink
            }
            Kind::Name(name) => {
                let length = self.vector_length(name);
                let name = self.element_name()?;
                // A vector register as a whole is the vector of its elements.
                if length > 1 && !name.contains('.') {
                    let elements = Self::element_names(&name, length).map(Operand::Name);
                    return Ok(Operand::Vector(elements.collect()));
                }
                match self.offset()? {
                    0 => Operand::Name(name),
                    offset => Operand::SymbolPlus(name, offset),
                }
            }
            _ => {
                return Ok(match self.expression()? {
                    Value::Signed(value) => Operand::Integer(value as u64),
                    Value::Unsigned(value) => Operand::Integer(value),
                    Value::Float(value) => Operand::Double(value.to_bits()),
                });
            }
        };
        if self.accept('|') {
            let second = if self.peek() == Kind::Name("_") {
                self.at += 1;
                Operand::Sink
            } else {
                Operand::Name(self.name()?)
            };
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    /// A name, with the element that it may name of a vector: `.x` or `.r` for the first.
    fn element_name(&mut self) -> Result<String> {
        let name = self.name()?;
        let Kind::Dot(element) = self.peek() else { return Ok(name) };
        self.at += 1;
        let colours = [("r", "x"), ("g", "y"), ("b", "z"), ("a", "w")];
        let colour = colours.iter().find(|(colour, _)| *colour == element);
        let is_vector = self.vector_length(&name) > 1;
        let element = colour.filter(|_| is_vector).map_or(element, |(_, element)| element);
        Ok(format!("{name}.{element}"))
    }

    pub(super) fn list(&mut self, close: char) -> Result<Vec<Operand>> {
        let mut operands = Vec::new();
        while !self.accept(close) {
            match self.nested(Self::operand)? {
                // The elements of a vector are passed one by one.
                Operand::Vector(elements) if self.in_call => operands.extend(elements),
                operand => operands.push(operand),
            }
            if !self.is_mark(close) {
                self.expect(',')?;
            }
        }
        Ok(operands)
    }
}
