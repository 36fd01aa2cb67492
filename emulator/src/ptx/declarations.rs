//! Declarations: variables with their initial values, and functions.

use super::expression::Value;
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
                "texref" | "samplerref" | "surfref" => {
                    let what = "textures and surfaces are not supported";
                    return self.fail(format!("`.{name}`: {what}"));
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
            let sized = !self.is_mark(']');
            let length = sized.then(|| self.integer_expression()).transpose()?;
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
        let element = match (self.peek(), self.peek_after()) {
            (Kind::Name(_), _) => {
                let (name, offset) = self.address()?;
                Initial::Address(name, offset)
            }
            (Kind::Integer(mask), Kind::Mark('(')) => {
                self.at += 2;
                let (name, offset) = self.address()?;
                self.expect(')')?;
                let shift = mask.trailing_zeros();
                if !shift.is_multiple_of(8) || mask.checked_shr(shift) != Some(0xff) {
                    return self.fail(format!("{mask:#x} does not mask one byte of an address"));
                }
                Initial::AddressByte(name, offset, shift)
            }
            (Kind::Single(bits), Kind::Mark(',' | '}' | ';')) if ty != Type::F64 => {
                self.at += 1;
                Initial::Bits(u64::from(bits))
            }
            _ => match self.expression()? {
                Value::Signed(value) => Initial::Bits(value as u64),
                Value::Unsigned(value) => Initial::Bits(value),
                Value::Float(value) if ty == Type::F32 => {
                    Initial::Bits(u64::from((value as f32).to_bits()))
                }
                Value::Float(value) => Initial::Bits(value.to_bits()),
            },
        };
        into.push(element);
        Ok(())
    }

    /// The address of a variable in an initialiser: `name + offset`, `generic(name) + offset`.
    fn address(&mut self) -> Result<(String, i64)> {
        let generic = self.peek() == Kind::Name("generic") && self.peek_after() == Kind::Mark('(');
        self.at += if generic { 2 } else { 0 };
        let name = self.name()?;
        if generic {
            self.expect(')')?;
        }
        Ok((name, self.offset()?))
    }

    /// A signed offset after a name, if any.
    pub(super) fn offset(&mut self) -> Result<i64> {
        if self.accept('+') || self.is_mark('-') {
            return Ok(self.integer_expression()? as i64);
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
            let vector = match self.peek() {
                Kind::Dot("v2") => 2,
                Kind::Dot("v4") => 4,
                _ => 1,
            };
            let variable = self.variable(space, false)?;
            if vector == 1 || space == VariableSpace::Param {
                params.push(variable);
            } else {
                // A vector register is one register for each of its elements.
                let bytes = Some(u64::from(variable.ty.bytes()));
                params.extend(Self::element_names(&variable.name, vector).map(|name| Variable {
                    name,
                    bytes,
                    align: variable.ty.bytes(),
                    ..variable.clone()
                }));
                self.vectors.push((variable.name, vector));
            }
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
        let vectors = self.vectors.len();
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
        self.vectors.truncate(vectors);
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
