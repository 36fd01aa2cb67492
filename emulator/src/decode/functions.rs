//! Device functions: which of them a kernel reaches, how they are called, and the stack they need.
//!
//! A function is decoded once for each kernel that may call it, and has registers of its own. Its
//! parameters and variables lie in a frame on the thread's stack, in local memory. A call of one
//! that may be active already, through recursion or a pointer, saves its registers.

use std::collections::BTreeSet;

use super::decoder::{Decoder, Label, Register, Result, SINK, Scope, Symbol, lay_out};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{
    FunctionTree, Initial, InstructionTree, Operand, Prototype, Statement, Tree, Type, Variable,
    VariableSpace,
};

/// Frames start at multiples of this.
const FRAME_ALIGN: u32 = 16;
/// What a call that may nest without bounds takes of the stack besides the frame.
const RETURN_BYTES: u32 = 16;
/// Functions that a kernel may call.
const MOST_FUNCTIONS: usize = 1 << 12;

/// The kernel, or a function that it may reach, while they are decoded.
pub(super) struct Body<'a> {
    tree: &'a FunctionTree,
    pub(super) label: Label,
    formals: Vec<Param>,
    frame: Q,
    frame_bytes: u32,
    saved: SavedRegisters,
    /// Bodies that it calls by name.
    calls: BTreeSet<usize>,
    /// Whether it calls through pointers.
    points: bool,
    /// Whether it takes more of the stack than its frame.
    pub(super) allocates: bool,
}

impl<'a> Body<'a> {
    pub(super) fn new(tree: &'a FunctionTree, label: Label, formals: Vec<Param>) -> Self {
        Self {
            tree,
            label,
            formals,
            frame: SINK,
            frame_bytes: 0,
            saved: SavedRegisters::default(),
            calls: BTreeSet::new(),
            points: false,
            allocates: false,
        }
    }

    pub(super) fn set_frame_bytes(&mut self, bytes: u32) {
        self.frame_bytes = bytes;
    }

    /// The bytes of the stack that it takes itself.
    pub(super) fn frame_end(&self) -> u32 {
        self.frame_bytes.next_multiple_of(FRAME_ALIGN)
    }

    pub(super) fn into_formals(self) -> Vec<Param> {
        self.formals
    }
}

/// What a pointer to a function holds.
pub(crate) fn function_address(tree: &Tree, name: &str) -> Option<u64> {
    let name = tree.resolve(name);
    let number = tree.functions.iter().position(|function| function.name == name)?;
    Some(FUNCTION_BASE + FUNCTION_STEP * number as u64)
}

/// The names of the functions that pointers may hold.
fn pointed_at(tree: &Tree) -> BTreeSet<&str> {
    fn search<'t>(statements: &'t [Statement], into: &mut BTreeSet<&'t str>) {
        for statement in statements {
            match statement {
                Statement::Scope(inner) => search(inner, into),
                // A function as the source is a pointer to it. A call has a list before the name.
                Statement::Instruction(instruction) => {
                    if let [first, Operand::Name(name), ..] = &instruction.operands[..]
                        && !matches!(first, Operand::List(_))
                    {
                        into.insert(name);
                    }
                }
                _ => {}
            }
        }
    }
    let mut names = BTreeSet::new();
    for initial in tree.variables.iter().flat_map(|variable| &variable.initial) {
        if let Initial::Address(name, _) | Initial::AddressByte(name, ..) = initial {
            names.insert(name.as_str());
        }
    }
    let bodies = tree.functions.iter().filter_map(|function| function.body.as_deref());
    bodies.for_each(|body| search(body, &mut names));
    let mut names: BTreeSet<&str> = names.into_iter().map(|name| tree.resolve(name)).collect();
    names.retain(|name| tree.functions.iter().any(|f| f.name == *name && !f.is_kernel));
    names
}

/// A call's results, what is called, its arguments, and its prototype.
type Call<'o> = (&'o [Operand], &'o str, &'o [Operand], Option<&'o str>);

impl<'a> Decoder<'a> {
    pub(super) fn call(
        &mut self,
        instruction: &'a InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("uni");
        let (returns, name, arguments, prototype): Call = match &instruction.operands[..] {
            [Operand::Name(name)] => (&[], name, &[], None),
            [Operand::Name(name), Operand::Name(prototype)] => (&[], name, &[], Some(prototype)),
            [Operand::Name(name), Operand::List(arguments)] => (&[], name, arguments, None),
            [Operand::Name(name), Operand::List(arguments), Operand::Name(prototype)] => {
                (&[], name, arguments, Some(prototype))
            }
            [Operand::List(returns), Operand::Name(name)] => (returns, name, &[], None),
            [Operand::List(returns), Operand::Name(name), Operand::List(arguments)] => {
                (returns, name, arguments, None)
            }
            [
                Operand::List(returns),
                Operand::Name(name),
                Operand::List(arguments),
                Operand::Name(prototype),
            ] => (returns, name, arguments, Some(prototype)),
            _ => return self.fail("this form of call is not supported"),
        };
        match prototype {
            None => self.call_by_name(returns, name, arguments),
            Some(prototype) => self.call_by_pointer(returns, name, arguments, prototype),
        }
    }

    fn call_by_name(
        &mut self,
        returns: &'a [Operand],
        name: &str,
        arguments: &'a [Operand],
    ) -> Result<()> {
        let tree = self.tree;
        let name = tree.resolve(name);
        let named = || tree.functions.iter().filter(|f| !f.is_kernel && f.name == name);
        let Some(function) = named().find(|f| f.body.is_some()).or_else(|| named().next()) else {
            return self.fail(format!("unknown function `{name}`"));
        };
        if function.body.is_none() {
            return self.builtin(function, returns, arguments);
        }
        let callee = self.callee(function)?;
        let formals = self.bodies[callee].formals.clone();
        let current = self.current;
        self.bodies[current].calls.insert(callee);
        let types = types_of(function.returns.iter().chain(&function.params));
        self.emit_call(Called::Function(callee as u32 - 1), returns, arguments, (formals, types))
    }

    fn call_by_pointer(
        &mut self,
        returns: &'a [Operand],
        pointer: &str,
        arguments: &'a [Operand],
        prototype: &str,
    ) -> Result<()> {
        let tree = self.tree;
        let formals = match self.find_prototype(prototype) {
            Some(Prototype::Parameters(returns, params)) => {
                let all = || returns.iter().chain(&params);
                (lay_out(all())?.0, types_of(all()))
            }
            Some(Prototype::Targets(names)) => {
                let first = names.first().map(|name| tree.resolve(name));
                let first = first.and_then(|n| tree.functions.iter().find(|f| f.name == *n));
                let Some(function) = first else {
                    return self.fail(format!("`{prototype}` names no function"));
                };
                let all = || function.returns.iter().chain(&function.params);
                (lay_out(all())?.0, types_of(all()))
            }
            None => return self.fail(format!("unknown prototype `{prototype}`")),
        };
        let Source::Q(pointer) = self.source(&Operand::Name(pointer.to_owned()), Type::B64)? else {
            return self.fail("a pointer to a function has 64 bits");
        };
        for &name in self.pointed_at.get_or_init(|| pointed_at(tree)).clone().iter() {
            let named = tree.functions.iter().find(|f| f.name == name && f.body.is_some());
            if let Some(function) = named {
                self.callee(function)?;
            }
        }
        let current = self.current;
        self.bodies[current].points = true;
        self.emit_call(Called::Pointer(pointer), returns, arguments, formals)
    }

    /// The number of a function's body, which is decoded later.
    fn callee(&mut self, function: &'a FunctionTree) -> Result<usize> {
        let known = |body: &Body| std::ptr::eq(body.tree, function);
        if let Some(number) = self.bodies.iter().position(known) {
            return Ok(number);
        }
        if self.bodies.len() > MOST_FUNCTIONS {
            return self.fail(format!("the kernel may call more than {MOST_FUNCTIONS} functions"));
        }
        let label = self.new_label();
        let formals = lay_out(function.returns.iter().chain(&function.params))?.0;
        self.bodies.push(Body::new(function, label, formals));
        Ok(self.bodies.len() - 1)
    }

    fn emit_call(
        &mut self,
        callee: Called,
        returns: &[Operand],
        arguments: &[Operand],
        (formals, types): (Vec<Param>, Vec<Option<Type>>),
    ) -> Result<()> {
        if returns.len() + arguments.len() != formals.len() {
            let count = returns.len() + arguments.len();
            return self.fail(format!("{count} results and arguments, not {}", formals.len()));
        }
        let mut call = CallOp {
            callee,
            frame: self.frame,
            arguments: Vec::new(),
            results: Vec::new(),
            formals: formals.clone(),
        };
        let (results, params) = formals.split_at(returns.len());
        let (result_types, param_types) = types.split_at(returns.len());
        for ((operand, formal), ty) in arguments.iter().zip(params).zip(param_types) {
            let from = match self.passed(operand, formal)? {
                Some(local) => Passed::Local(local),
                None => Passed::Value(self.source(operand, ty.unwrap_or(bits_of(formal)))?),
            };
            call.arguments.push((from, formal.clone()));
        }
        for ((operand, formal), ty) in returns.iter().zip(results).zip(result_types) {
            let to = match self.passed(operand, formal)? {
                Some(local) => Received::Local(local),
                None => Received::Value(self.target(operand, ty.unwrap_or(bits_of(formal)))?),
            };
            call.results.push((to, formal.clone()));
        }
        self.stack_pointer();
        self.emit(Op::Call(Box::new(call)));
        Ok(())
    }

    /// Where in the frame a `.param` variable of the caller lies; `None` for a register or constant.
    fn passed(&mut self, operand: &Operand, formal: &Param) -> Result<Option<u32>> {
        if let Operand::Name(name) = operand
            && let Symbol::Local(offset) = self.symbol(name)?
        {
            return Ok(Some(offset));
        }
        if matches!(formal.size, 1 | 2 | 4 | 8) {
            return Ok(None);
        }
        self.fail(format!("{} bytes can only be passed in a .param variable", formal.size))
    }

    /// A call of a function that the device provides.
    fn builtin(
        &mut self,
        function: &FunctionTree,
        returns: &[Operand],
        arguments: &[Operand],
    ) -> Result<()> {
        let mut places = Vec::new();
        for operand in returns.iter().chain(arguments) {
            let symbol = match operand {
                Operand::Name(name) => Some(self.symbol(name)?),
                _ => None,
            };
            let Some(Symbol::Local(offset)) = symbol else {
                return self.fail("only .param variables can be passed to the device's functions");
            };
            places.push(offset);
        }
        let builtin = match (function.name.as_str(), &places[..]) {
            ("vprintf", &[result, format, arguments]) => {
                Builtin::Print { format, arguments, result }
            }
            ("__assertfail", &[message, file, line, function, _]) => {
                Builtin::AssertFail { message, file, line, function }
            }
            ("malloc", &[result, bytes]) => Builtin::Allocate { bytes, result },
            ("free", &[pointer]) => Builtin::Free { pointer },
            (name, _) => return self.fail(format!("the function `{name}` has no body")),
        };
        self.emit(Op::Builtin(builtin, self.frame));
        Ok(())
    }

    /// Decodes the functions that the kernel may call, and those that these may call.
    pub(super) fn functions(&mut self) -> Result<()> {
        let mut number = 1;
        while number < self.bodies.len() {
            self.function(number)?;
            number += 1;
        }
        Ok(())
    }

    fn function(&mut self, number: usize) -> Result<()> {
        let Body { tree, label, ref formals, .. } = self.bodies[number];
        let formals = formals.clone();
        let start = [self.r_count, self.q_count, self.p_count];
        let frame = self.new_q();
        self.start_function(number, frame, tree.line);
        self.place_label(label);
        let end = formals.last().map_or(0, |formal| formal.offset + formal.size);
        self.local_bytes = u32::try_from(end).unwrap_or(u32::MAX);
        let mut scope = Scope::default();
        let variables = tree.returns.iter().chain(&tree.params);
        for (at, (variable, formal)) in variables.zip(&formals).enumerate() {
            let mut symbol = Symbol::Local(formal.offset as u32);
            if variable.space == VariableSpace::Register {
                let slot = self.new_slot(variable.ty);
                self.flow.call(variable.ty, slot, &variable.name);
                symbol = Symbol::Register(Register { ty: variable.ty, slot: Some(slot) });
                if at < tree.returns.len() {
                    self.register_results.push((variable.ty, slot, formal.clone()));
                } else {
                    self.move_formal(variable.ty, slot, formal, false);
                }
            }
            scope.symbols.insert(variable.name.clone(), symbol);
        }
        self.scopes.push(scope);
        self.body(tree.body.as_deref().unwrap_or_default())?;
        self.always();
        self.leave();
        let body = &mut self.bodies[number];
        body.frame = frame;
        body.frame_bytes = self.local_bytes;
        body.saved = SavedRegisters {
            r: start[0]..self.r_count,
            q: start[1]..self.q_count,
            p: start[2]..self.p_count,
        };
        Ok(())
    }

    /// Leaves the function or the kernel that is decoded.
    pub(super) fn leave(&mut self) {
        if self.current == 0 {
            return self.emit(Op::Exit);
        }
        for (ty, slot, formal) in self.register_results.clone() {
            self.move_formal(ty, slot, &formal, true);
        }
        self.emit(Op::Return(self.current as u32 - 1));
    }

    /// Moves a formal that is declared as a register out of the frame or into it.
    fn move_formal(&mut self, ty: Type, slot: u16, formal: &Param, store: bool) {
        let Some(frame) = self.frame else { return };
        let address =
            Address { space: Space::Local, base: Source::Q(frame), offset: formal.offset as i64 };
        if store {
            self.flow.read(ty, slot);
        } else {
            self.flow.write(ty, slot);
        }
        let (source, target) = match ty.bits() {
            1 => (Source::P(Test { predicate: slot, negated: false }), Target::P(slot)),
            64 => (Source::Q(slot), Target::Q(slot)),
            bits => (Source::R(slot), Target::R(slot, bits as u8)),
        };
        let access = Box::new(Access {
            address,
            bytes: ty.bytes(),
            signed: false,
            order: Order::Weak,
            constant: false,
            targets: if store { Vec::new() } else { vec![target] },
            sources: if store { vec![source] } else { Vec::new() },
        });
        self.emit(if store { Op::Store(access) } else { Op::Load(access) });
    }

    /// The functions as the executor needs them, and how much of the stack the kernel takes: what
    /// is known of it, and whether calls may take more.
    pub(super) fn link(&self, entry: impl Fn(Label) -> u32) -> (Vec<DeviceFunction>, u32, bool) {
        let bounded = self.bounded_stacks();
        let functions: Vec<_> = self.bodies[1..]
            .iter()
            .zip(&bounded[1..])
            .map(|(body, bounded)| DeviceFunction {
                name: body.tree.name.clone(),
                address: function_address(self.tree, &body.tree.name).unwrap_or_default(),
                entry: entry(body.label),
                frame: body.frame,
                frame_bytes: match bounded {
                    Some(_) => body.frame_end(),
                    None => body.frame_end().saturating_add(RETURN_BYTES),
                },
                formals: body.formals.clone(),
                saved: bounded.is_none().then(|| body.saved.clone()),
            })
            .collect();
        let kernel = &self.bodies[0];
        let allocates = self.bodies.iter().any(|body| body.allocates);
        match bounded[0] {
            Some(0) if !allocates => (functions, kernel.frame_bytes, false),
            Some(above) => (functions, kernel.frame_end().saturating_add(above), allocates),
            None => (functions, kernel.frame_end(), true),
        }
    }

    /// The stack above each body; `None` where recursion makes it unbounded.
    fn bounded_stacks(&self) -> Vec<Option<u32>> {
        let callees: Vec<Vec<usize>> = self.bodies.iter().map(|body| self.callees(body)).collect();
        let mut callers = vec![Vec::new(); self.bodies.len()];
        for (caller, callees) in callees.iter().enumerate() {
            callees.iter().for_each(|&callee| callers[callee].push(caller));
        }
        // From those that call nothing towards the kernel; what calls itself is never reached.
        let mut open: Vec<usize> = callees.iter().map(Vec::len).collect();
        let mut ready: Vec<usize> = (0..open.len()).filter(|&number| open[number] == 0).collect();
        let mut stacks = vec![None; open.len()];
        while let Some(number) = ready.pop() {
            let above = |&callee: &usize| {
                self.bodies[callee].frame_end().saturating_add(stacks[callee].unwrap_or(0))
            };
            stacks[number] = Some(callees[number].iter().map(above).max().unwrap_or(0));
            for &caller in &callers[number] {
                open[caller] -= 1;
                if open[caller] == 0 {
                    ready.push(caller);
                }
            }
        }
        stacks
    }

    fn callees(&self, body: &Body) -> Vec<usize> {
        let mut callees = body.calls.clone();
        if let (true, Some(names)) = (body.points, self.pointed_at.get()) {
            let pointed = |&number: &usize| names.contains(self.bodies[number].tree.name.as_str());
            callees.extend((1..self.bodies.len()).filter(pointed));
        }
        callees.into_iter().collect()
    }
}

/// Which formals are predicates: registers tell nothing else about their contents.
fn types_of<'v>(variables: impl Iterator<Item = &'v Variable>) -> Vec<Option<Type>> {
    variables.map(|variable| (variable.ty == Type::Pred).then_some(Type::Pred)).collect()
}

fn bits_of(formal: &Param) -> Type {
    match formal.size {
        1 => Type::B8,
        2 => Type::B16,
        4 => Type::B32,
        _ => Type::B64,
    }
}
