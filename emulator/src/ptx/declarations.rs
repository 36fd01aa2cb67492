//! Declarations: variables with their initial values, and functions.

use super::lexer::Kind;
use super::parser::{Parser, Result};
use super::tree::*;

impl Parser<'_> {
    pub(super) fn declaration(&mut self) -> Result<()> {
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
    pub(super) fn variables(
        &mut self,
        space: VariableSpace,
        external: bool,
    ) -> Result<Vec<Variable>> {
        let mut found = vec![self.variable(space, external)?];
        while self.accept(',') {
            let first = found[0].clone();
            found.push(self.declarator(space, external, first.ty, first.align)?);
        }
        self.expect(';')?;
        Ok(found)
    }

    pub(super) fn variable(&mut self, space: VariableSpace, external: bool) -> Result<Variable> {
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

    pub(super) fn declarator(
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

    pub(super) fn initial(&mut self, ty: Type, into: &mut Vec<Initial>) -> Result<()> {
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
    pub(super) fn offset(&mut self) -> Result<i64> {
        if self.accept('+') {
            return Ok(self.integer()? as i64);
        }
        if self.is_mark('-') {
            return Ok(self.integer()? as i64);
        }
        Ok(0)
    }

    pub(super) fn params(&mut self) -> Result<Vec<Variable>> {
        let mut params = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            let space = match (self.accept_dot("param"), self.accept_dot("reg")) {
                (true, false) => VariableSpace::Param,
                (false, true) => VariableSpace::Register,
                _ => return self.unexpected("`.param` or `.reg`"),
            };
            params.push(self.variable(space, false)?);
            if !self.is_mark(')') {
                self.expect(',')?;
            }
        }
        Ok(params)
    }

    pub(super) fn triple(&mut self) -> Result<[u32; 3]> {
        let mut triple = [self.small()?, 1, 1];
        for size in &mut triple[1..] {
            if self.accept(',') {
                *size = self.small()?;
            }
        }
        Ok(triple)
    }

    pub(super) fn function(&mut self, is_kernel: bool) -> Result<()> {
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
}

/// The state space of that name.
pub(super) fn variable_space(name: &str) -> Option<VariableSpace> {
    Some(match name {
        "global" => VariableSpace::Global,
        "const" => VariableSpace::Const,
        "shared" => VariableSpace::Shared,
        "local" => VariableSpace::Local,
        "param" => VariableSpace::Param,
        _ => return None,
    })
}
