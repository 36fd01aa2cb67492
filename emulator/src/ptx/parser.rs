//! From tokens to the tree.

use super::lexer::{Kind, Token, tokens};
use super::tree::*;
use super::{Location, Problem};

type Result<T> = std::result::Result<T, Problem>;

/// The deepest nesting of scopes, lists and initialisers.
const MOST_DEPTH: u32 = 128;

/// Parses the text of a module.
pub(crate) fn parse(text: &str) -> Result<Tree> {
    let tokens = tokens(text)?;
    let mut parser =
        Parser { text, tokens, at: 0, depth: 0, location: None, tree: Tree::default() };
    parser
        .module()
        .map_err(|problem| Problem { location: problem.location.or(parser.location), ..problem })?;
    Ok(parser.tree)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
    /// Braces and brackets that are open.
    depth: u32,
    location: Option<Location>,
    tree: Tree,
}

impl<'a> Parser<'a> {
    fn token(&self) -> Token<'a> {
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> Kind<'a> {
        self.token().kind
    }

    fn peek_after(&self) -> Kind<'a> {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    fn next(&mut self) -> Kind<'a> {
        let kind = self.peek();
        self.at += 1;
        kind
    }

    fn line(&self) -> u32 {
        self.token().line
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Problem::new(self.line(), message))
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T> {
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

    fn is_mark(&self, mark: char) -> bool {
        self.peek() == Kind::Mark(mark)
    }

    fn accept(&mut self, mark: char) -> bool {
        let found = self.is_mark(mark);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.accept(mark) { Ok(()) } else { self.unexpected(&format!("`{mark}`")) }
    }

    fn accept_dot(&mut self, name: &str) -> bool {
        let found = self.peek() == Kind::Dot(name);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self) -> Result<String> {
        match self.peek() {
            Kind::Name(name) => {
                self.at += 1;
                Ok(name.to_owned())
            }
            _ => self.unexpected("a name"),
        }
    }

    fn integer(&mut self) -> Result<u64> {
        let negative = self.accept('-');
        match self.peek() {
            Kind::Integer(value) => {
                self.at += 1;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => self.unexpected("an integer"),
        }
    }

    fn small(&mut self) -> Result<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.fail(format!("{value} is out of range")))
    }

    /// Parses what may contain itself.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MOST_DEPTH {
            return self.fail(format!("more than {MOST_DEPTH} scopes or lists within each other"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn module(&mut self) -> Result<()> {
        loop {
            let line = self.line();
            match self.next() {
                Kind::End => return Ok(()),
                Kind::Dot("version") => self.version()?,
                Kind::Dot("target") => {
                    self.tree.target = self.name()?;
                    while self.accept(',') {
                        let option = self.name()?;
                        if option != "debug" {
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
                Kind::Mark(';') => {}
                _ => {
                    self.at -= 1;
                    self.declaration()?;
                }
            }
        }
    }

    fn version(&mut self) -> Result<()> {
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

    fn file(&mut self) -> Result<()> {
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
    fn section(&mut self) -> Result<()> {
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
    fn loc(&mut self, line: u32) -> Result<()> {
        let file = self.small()?;
        let source_line = self.small()?;
        self.location = (source_line > 0).then_some((file, source_line)).or(self.location);
        while self.line() == line && self.peek() != Kind::End {
            self.at += 1;
        }
        Ok(())
    }

    fn pragma(&mut self) -> Result<()> {
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

    fn declaration(&mut self) -> Result<()> {
        let mut external = false;
        loop {
            match self.peek() {
                Kind::Dot("extern") => external = true,
                Kind::Dot("visible" | "weak" | "common") => {}
                Kind::Dot("entry") => {
                    self.at += 1;
                    return self.function(true);
                }
                Kind::Dot("func") => {
                    self.at += 1;
                    return self.function(false);
                }
                Kind::Dot(name) => {
                    let Some(space) = variable_space(name) else {
                        return self.fail(format!("unknown directive `.{name}`"));
                    };
                    self.at += 1;
                    let variables = self.variables(space, external)?;
                    self.tree.variables.extend(variables);
                    return Ok(());
                }
                _ => return self.unexpected("a directive"),
            }
            self.at += 1;
        }
    }

    /// The declarators after a state space, up to the semicolon.
    fn variables(&mut self, space: VariableSpace, external: bool) -> Result<Vec<Variable>> {
        let mut found = vec![self.variable(space, external)?];
        while self.accept(',') {
            let first = found[0].clone();
            found.push(self.declarator(space, external, first.ty, first.align)?);
        }
        self.expect(';')?;
        Ok(found)
    }

    fn variable(&mut self, space: VariableSpace, external: bool) -> Result<Variable> {
        let mut align = None;
        let mut vector = 1;
        let ty = loop {
            let Kind::Dot(name) = self.peek() else { return self.unexpected("a type") };
            self.at += 1;
            match name {
                "align" => align = Some(self.small()?),
                "v2" => vector = 2,
                "v4" => vector = 4,
                "ptr" | "global" | "const" | "shared" | "local" | "generic" => {
                    if space != VariableSpace::Param {
                        return self.fail(format!("unexpected `.{name}`"));
                    }
                }
                _ => match Type::by_name(name) {
                    Some(ty) => break ty,
                    None => return self.fail(format!("unknown type or attribute `.{name}`")),
                },
            }
        };
        // A parameter's `.ptr` attribute follows its type; its alignment is that of the pointee.
        if self.accept_dot("ptr") {
            while let Kind::Dot(name) = self.peek() {
                self.at += 1;
                match name {
                    "global" | "const" | "shared" | "local" | "generic" => {}
                    "align" => drop(self.small()?),
                    _ => return self.fail(format!("unknown pointer attribute `.{name}`")),
                }
            }
        }
        let align = align.unwrap_or(ty.bytes() * vector);
        if !align.is_power_of_two() {
            return self.fail(format!("an alignment of {align} is not a power of two"));
        }
        let mut variable = self.declarator(space, external, ty, align)?;
        variable.bytes = variable.bytes.and_then(|bytes| bytes.checked_mul(u64::from(vector)));
        Ok(variable)
    }

    fn declarator(
        &mut self,
        space: VariableSpace,
        external: bool,
        ty: Type,
        align: u32,
    ) -> Result<Variable> {
        let line = self.line();
        let name = self.name()?;
        let mut elements = Some(1_u64);
        while self.accept('[') {
            let length = if self.is_mark(']') { None } else { Some(self.integer()?) };
            self.expect(']')?;
            elements = elements.zip(length).and_then(|(sofar, length)| sofar.checked_mul(length));
        }
        let mut initial = Vec::new();
        if self.accept('=') {
            self.initial(ty, &mut initial)?;
        }
        if elements.is_none() && !initial.is_empty() {
            elements = Some(initial.len() as u64);
        }
        let bytes = elements.and_then(|count| count.checked_mul(u64::from(ty.bytes())));
        Ok(Variable { space, name, ty, align, bytes, initial, external, line })
    }

    fn initial(&mut self, ty: Type, into: &mut Vec<Initial>) -> Result<()> {
        if self.accept('{') {
            while !self.accept('}') {
                self.nested(|parser| parser.initial(ty, into))?;
                if !self.is_mark('}') {
                    self.expect(',')?;
                }
            }
            return Ok(());
        }
        let element = match self.peek() {
            Kind::Name("generic") if self.peek_after() == Kind::Mark('(') => {
                self.at += 2;
                let name = self.name()?;
                self.expect(')')?;
                Initial::Address(name, self.offset()?)
            }
            Kind::Name(name) => {
                self.at += 1;
                Initial::Address(name.to_owned(), self.offset()?)
            }
            Kind::Single(bits) if ty.bits() == 64 => {
                self.at += 1;
                Initial::Bits(f64::from(f32::from_bits(bits)).to_bits())
            }
            Kind::Single(bits) => {
                self.at += 1;
                Initial::Bits(u64::from(bits))
            }
            Kind::Double(bits) if ty == Type::F32 => {
                self.at += 1;
                Initial::Bits(u64::from((f64::from_bits(bits) as f32).to_bits()))
            }
            Kind::Double(bits) => {
                self.at += 1;
                Initial::Bits(bits)
            }
            _ => Initial::Bits(self.integer()?),
        };
        into.push(element);
        Ok(())
    }

    /// A signed offset after a name, if any.
    fn offset(&mut self) -> Result<i64> {
        if self.accept('+') {
            return Ok(self.integer()? as i64);
        }
        if self.is_mark('-') {
            return Ok(self.integer()? as i64);
        }
        Ok(0)
    }

    fn params(&mut self) -> Result<Vec<Variable>> {
        let mut params = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            if !self.accept_dot("param") {
                return self.unexpected("`.param`");
            }
            params.push(self.variable(VariableSpace::Param, false)?);
            if !self.is_mark(')') {
                self.expect(',')?;
            }
        }
        Ok(params)
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut triple = [self.small()?, 1, 1];
        for size in &mut triple[1..] {
            if self.accept(',') {
                *size = self.small()?;
            }
        }
        Ok(triple)
    }

    fn function(&mut self, is_kernel: bool) -> Result<()> {
        let line = self.line();
        let returns = if self.is_mark('(') { self.params()? } else { Vec::new() };
        let name = self.name()?;
        let params = if self.is_mark('(') { self.params()? } else { Vec::new() };
        let (mut max_threads, mut required_threads) = (None, None);
        let body = loop {
            match self.next() {
                Kind::Dot("maxntid") => max_threads = Some(self.triple()?),
                Kind::Dot("reqntid") => required_threads = Some(self.triple()?),
                Kind::Dot("minnctapersm" | "maxnreg") => drop(self.small()?),
                Kind::Dot("noreturn") => {}
                Kind::Dot("pragma") => self.pragma()?,
                Kind::Mark(';') => break None,
                Kind::Mark('{') => {
                    self.location = None;
                    break Some(self.statements()?);
                }
                Kind::Dot(name) => {
                    self.at -= 1;
                    return self.fail(format!("unknown directive `.{name}`"));
                }
                _ => {
                    self.at -= 1;
                    return self.unexpected("the body of a function");
                }
            }
        };
        let function = FunctionTree {
            name,
            is_kernel,
            returns,
            params,
            max_threads,
            required_threads,
            body,
            line,
        };
        self.tree.functions.push(function);
        Ok(())
    }

    /// The statements of a scope, its closing brace included.
    fn statements(&mut self) -> Result<Vec<Statement>> {
        let mut statements = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Kind::Mark('}') => return Ok(statements),
                Kind::Mark('{') => {
                    statements.push(Statement::Scope(self.nested(Self::statements)?))
                }
                Kind::Mark(';') => {}
                Kind::Dot("loc") => self.loc(line)?,
                Kind::Dot("pragma") => self.pragma()?,
                Kind::Dot("reg") => statements.push(self.registers(line)?),
                Kind::Dot(name) => match variable_space(name) {
                    Some(space) => statements
                        .extend(self.variables(space, false)?.into_iter().map(Statement::Variable)),
                    None => {
                        self.at -= 1;
                        return self.fail(format!("unknown directive `.{name}`"));
                    }
                },
                Kind::Name(label) if self.is_mark(':') => {
                    self.at += 1;
                    if self.accept_dot("branchtargets") {
                        let mut targets = vec![self.name()?];
                        while self.accept(',') {
                            targets.push(self.name()?);
                        }
                        self.expect(';')?;
                        statements.push(Statement::Targets(label.to_owned(), targets));
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

    fn registers(&mut self, line: u32) -> Result<Statement> {
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
            names.push((name, count));
            if !self.accept(',') {
                self.expect(';')?;
                return Ok(Statement::Registers(ty, names, line));
            }
        }
    }

    fn instruction(&mut self) -> Result<Instruction> {
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
        Ok(Instruction { guard, opcode, modifiers, operands, line, location, text })
    }

    fn operand(&mut self) -> Result<Operand> {
        let first = match self.peek() {
            Kind::Mark('{') => {
                self.at += 1;
                return Ok(Operand::Vector(self.list('}')?));
            }
            Kind::Mark('(') => {
                self.at += 1;
                return Ok(Operand::List(self.list(')')?));
            }
            Kind::Mark('[') => {
                self.at += 1;
                let base = match self.peek() {
                    Kind::Name(name) => {
                        self.at += 1;
                        Operand::Name(name.to_owned())
                    }
                    _ => Operand::Integer(self.integer()?),
                };
                let offset = self.offset()?;
                self.expect(']')?;
                return Ok(Operand::Address(Box::new(base), offset));
            }
            Kind::Mark('!') => {
                self.at += 1;
                return Ok(Operand::Not(self.name()?));
            }
            Kind::Single(bits) => {
                self.at += 1;
                return Ok(Operand::Single(bits));
            }
            Kind::Double(bits) => {
                self.at += 1;
                return Ok(Operand::Double(bits));
            }
            Kind::Name("_") => {
                self.at += 1;
                Operand::Sink
            }
            Kind::Name(name) => {
                self.at += 1;
                let mut name = name.to_owned();
                if let (true, Kind::Dot(component)) = (name.starts_with('%'), self.peek()) {
                    self.at += 1;
                    name = format!("{name}.{component}");
                }
                match self.offset()? {
                    0 => Operand::Name(name),
                    offset => Operand::SymbolPlus(name, offset),
                }
            }
            _ => return Ok(Operand::Integer(self.integer()?)),
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

    fn list(&mut self, close: char) -> Result<Vec<Operand>> {
        let mut operands = Vec::new();
        while !self.accept(close) {
            operands.push(self.nested(Self::operand)?);
            if !self.is_mark(close) {
                self.expect(',')?;
            }
        }
        Ok(operands)
    }
}

fn variable_space(name: &str) -> Option<VariableSpace> {
    Some(match name {
        "global" => VariableSpace::Global,
        "const" => VariableSpace::Const,
        "shared" => VariableSpace::Shared,
        "local" => VariableSpace::Local,
        "param" => VariableSpace::Param,
        _ => return None,
    })
}
