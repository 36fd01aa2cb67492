//! Names, registers, constants and addresses while a kernel is decoded.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::forms::{self, Needs};
use super::functions::{Body, function_address};
use super::modifiers::Modifiers;
use super::{allocate, guesses, liveness, unwritten};
use crate::program::*;
use crate::ptx::{
    FunctionTree, InstructionTree, Operand, Problem, Prototype, Statement, Tree, Type, Variable,
    VariableSpace,
};

pub(super) type Result<T> = std::result::Result<T, Problem>;

/// The carry flag's predicate.
pub(super) const CARRY: P = 2;
/// Registers that nobody reads.
pub(super) const SINK: u16 = 0;
/// A source that is not there.
pub(super) const NONE: Source = Source::P(Test { predicate: FALSE, negated: false });

/// Scopes within each other.
const MOST_SCOPES: usize = 256;
/// Registers that the declarations of a kernel may name.
const MOST_DECLARED: usize = 1 << 20;
/// Local memory of a thread in bytes, as the CUDA programming guide limits it.
const MOST_LOCAL: u32 = 512 << 10;
/// Parameters of a kernel in bytes, as the PTX ISA limits them.
const MOST_PARAMS: usize = 32764;

/// A label, before its place is known.
pub(super) type Label = usize;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    pub(super) ty: Type,
    pub(super) slot: Option<u16>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Symbol {
    Register(Register),
    Global(u64),
    /// A variable in constant memory.
    Constant(u64),
    /// Offset in the shared memory of the block.
    Shared(u64),
    DynamicShared,
    /// Offset in the frame of the function, in the local memory of the thread.
    Local(u32),
    /// What a pointer to a function holds.
    Function(u64),
    /// Offset in the parameter image of the kernel.
    Param(u64),
}

#[derive(Default)]
pub(super) struct Scope {
    pub(super) symbols: HashMap<String, Symbol>,
    labels: HashMap<String, Label>,
    targets: HashMap<String, Vec<String>>,
    prototypes: HashMap<String, Prototype>,
}

pub(super) struct Decoder<'a> {
    pub(super) tree: &'a Tree,
    variables: &'a BTreeMap<String, (u64, u64)>,
    pub(super) scopes: Vec<Scope>,
    /// What the module's target provides.
    target: Needs,
    /// The kernel, and the functions that it may call.
    pub(super) bodies: Vec<Body<'a>>,
    /// The body that is decoded.
    pub(super) current: usize,
    /// Where the frame of the function starts; that of the kernel is at the start of local memory.
    pub(super) frame: Option<Q>,
    /// Results of the function that its declaration puts into registers.
    pub(super) register_results: Vec<(Type, u16, Param)>,
    /// The register that holds where the free part of the stack starts.
    stack: Option<Q>,
    pub(super) pointed_at: OnceCell<BTreeSet<&'a str>>,
    code: Vec<Instruction>,
    places: Vec<Place>,
    labels: Vec<Option<u32>>,
    pub(super) guard: Test,
    place: Place,
    /// Registers that were declared, used or not.
    declared: usize,
    pub(super) r_count: usize,
    pub(super) q_count: usize,
    pub(super) p_count: usize,
    constants32: HashMap<u32, R>,
    constants64: HashMap<u64, Q>,
    /// Constants that hold the address of dynamic shared memory plus an offset.
    pub(super) dynamic32: Vec<(R, u64)>,
    pub(super) dynamic64: Vec<(Q, u64)>,
    dynamic_align: u64,
    /// Names of dynamic shared memory, and how they are aligned.
    dynamic_variables: Vec<(String, u64)>,
    specials: Vec<(Special, R)>,
    /// Offsets of shared variables, by their declarations in the tree.
    shared: HashMap<*const Variable, u64>,
    shared_variables: Vec<SharedVariable>,
    /// How many bytes of shared memory the variables take.
    shared_bytes: u64,
    /// Where the first of them starts, and where the last one ends.
    shared_start: Option<u64>,
    shared_end: u64,
    pub(super) local_bytes: u32,
    pub(super) flow: liveness::Flow,
    /// Whether approximations have errors.
    pub(super) jitter: bool,
}

impl<'a> Decoder<'a> {
    /// Decodes a kernel.
    pub(super) fn kernel(
        tree: &'a Tree,
        variables: &'a BTreeMap<String, (u64, u64)>,
        source: Arc<SourceText>,
        function: &'a FunctionTree,
        jitter: bool,
    ) -> Result<Kernel> {
        let mut decoder = Self {
            tree,
            variables,
            scopes: Vec::new(),
            target: Needs::of_module(tree.target_number(), tree.version),
            bodies: Vec::new(),
            current: 0,
            frame: None,
            register_results: Vec::new(),
            stack: None,
            pointed_at: OnceCell::new(),
            code: Vec::new(),
            places: Vec::new(),
            labels: Vec::new(),
            guard: Test { predicate: TRUE, negated: false },
            place: Place { line: function.line, location: None, text: 0..0 },
            declared: 0,
            r_count: 1,
            q_count: 1,
            p_count: usize::from(CARRY) + 1,
            constants32: HashMap::new(),
            constants64: HashMap::new(),
            dynamic32: Vec::new(),
            dynamic64: Vec::new(),
            dynamic_align: 0,
            dynamic_variables: Vec::new(),
            specials: Vec::new(),
            shared: HashMap::new(),
            shared_variables: Vec::new(),
            shared_bytes: 0,
            shared_start: None,
            shared_end: 0,
            local_bytes: 0,
            flow: liveness::Flow::default(),
            jitter,
        };
        let (params, param_bytes, symbols) = lay_out(function.params.iter())?;
        decoder.scopes.push(Scope { symbols, ..Scope::default() });
        let start = decoder.new_label();
        decoder.bodies.push(Body::new(function, start, params));
        decoder.place_label(start);
        decoder.body(function.body.as_deref().unwrap_or_default())?;
        decoder.always();
        decoder.leave();
        decoder.bodies[0].set_frame_bytes(decoder.local_bytes);
        let length = decoder.code.len();
        decoder.functions()?;
        decoder.finish(source, function, length, param_bytes)
    }

    /// Completes a kernel whose own instructions are the first of `length`.
    fn finish(
        mut self,
        source: Arc<SourceText>,
        function: &FunctionTree,
        length: usize,
        param_bytes: usize,
    ) -> Result<Kernel> {
        // Functions go first: threads at the lowest place run first, so that those that do not call
        // wait for the others where these come back.
        self.code.rotate_left(length);
        self.places.rotate_left(length);
        self.flow.rotate_left(length);
        let after = (self.code.len() - length) as u32;
        let place = |label: usize| match self.labels[label] {
            Some(place) if (place as usize) < length => place + after,
            Some(place) => place - length as u32,
            None => u32::MAX,
        };
        for instruction in &mut self.code {
            match &mut instruction.op {
                Op::Branch(target) => *target = place(*target as usize),
                Op::BranchIndexed(branch) => {
                    branch.targets.iter_mut().for_each(|target| *target = place(*target as usize));
                }
                _ => {}
            }
        }
        let (functions, local_bytes, grows) = self.link(place);
        if local_bytes > MOST_LOCAL {
            let message = format!("a thread has {MOST_LOCAL} bytes of local memory");
            return Err(Problem::new(function.line, &message));
        }
        let uses_heap = self.code.iter().any(|i| {
            matches!(i.op, Op::Builtin(Builtin::Allocate { .. } | Builtin::Free { .. }, _))
        });
        let limit = usize::from(u16::MAX);
        if self.r_count > limit || self.q_count > limit || self.p_count > limit {
            return Err(Problem::new(function.line, "the kernel has too many registers"));
        }
        if self.dynamic_align > 0 {
            let end = self.shared_bytes.checked_next_multiple_of(self.dynamic_align);
            self.shared_bytes = end.unwrap_or(u64::MAX);
            self.place_shared(self.dynamic_align, 0);
        }
        let sizes = (u32::try_from(self.shared_bytes), u32::try_from(self.shared_end));
        let (Ok(static_shared), Ok(dynamic_start)) = sizes else {
            return Err(Problem::new(function.line, "the kernel has too much shared memory"));
        };
        let dynamic = SHARED_BASE + u64::from(dynamic_start);
        self.shared_variables.extend(self.dynamic_variables.drain(..).map(|(name, align)| {
            SharedVariable { name, start: dynamic, bytes: u64::MAX - dynamic, align }
        }));
        let shared_start = self.shared_start.map_or(0, |start| start as u32);
        let start = SHARED_BASE + u64::from(dynamic_start);
        let mut constants32: Vec<_> = self.constants32.into_iter().collect();
        let mut constants64: Vec<_> = self.constants64.into_iter().collect();
        let dynamic32 = self.dynamic32.iter();
        constants32.extend(dynamic32.map(|&(r, offset)| (start.wrapping_add(offset) as u32, r)));
        let dynamic64 = self.dynamic64.iter();
        constants64.extend(dynamic64.map(|&(q, offset)| (start.wrapping_add(offset), q)));
        if let Some(stack) = self.stack {
            let start = self.bodies[0].frame_end();
            constants64.push((LOCAL_BASE + u64::from(start), stack));
        }
        guesses::mark(&mut self.code);
        let registers = self.flow.most_live(&self.code, &functions);
        let words = constants32.iter().map(|&(v, r)| ((RegisterClass::Word, r), u64::from(v)));
        let doubles = constants64.iter().map(|&(v, q)| ((RegisterClass::Double, q), v));
        let known = words.chain(doubles).collect();
        let watch = unwritten::watch(&self.flow, &mut self.code, after, &functions, known);
        let named = [(RegisterClass::Word, self.r_count), (RegisterClass::Double, self.q_count)]
            .map(|(class, count)| self.flow.named(class, count));
        if functions.is_empty()
            && let Some(places) = allocate::allocate(&mut self.code, &named, after as usize)
        {
            (self.r_count, self.q_count) = (places.r_count, places.q_count);
            let r = |slot: &mut R| *slot = places.r[usize::from(*slot)];
            let q = |slot: &mut Q| *slot = places.q[usize::from(*slot)];
            constants32.iter_mut().for_each(|(_, slot)| r(slot));
            constants64.iter_mut().for_each(|(_, slot)| q(slot));
            self.specials.iter_mut().for_each(|(_, slot)| r(slot));
            self.stack.iter_mut().for_each(q);
        }
        let constants = self.tree.variables.iter().filter(|v| v.space == VariableSpace::Const);
        let (major, minor) = self.tree.version;
        Ok(Kernel {
            name: function.name.clone(),
            params: self.bodies.swap_remove(0).into_formals(),
            param_bytes,
            static_shared,
            shared: self.shared_variables,
            shared_start,
            dynamic_start,
            local_bytes,
            grows,
            uses_heap,
            entry: after,
            stack: self.stack.unwrap_or(SINK),
            const_bytes: constants.filter_map(|v| v.bytes).sum::<u64>() as u32,
            thread_limit: function
                .required_threads
                .or(function.max_threads)
                .map(|[x, y, z]| x.saturating_mul(y).saturating_mul(z)),
            required_block: function.required_threads,
            registers,
            watch,
            functions,
            ptx_version: (10 * major + minor) as i32,
            classes: self.code.iter().map(|instruction| instruction.op.class()).collect(),
            code: self.code,
            places: self.places,
            source,
            r_count: self.r_count,
            q_count: self.q_count,
            p_count: self.p_count,
            constants32,
            constants64,
            specials: self.specials,
        })
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        let (line, location, message) = (self.place.line, self.place.location, message.into());
        Err(Problem { line, location, message })
    }

    /// Appends an instruction under the current guard.
    pub(super) fn emit(&mut self, op: Op) {
        self.flow.close(self.guard != Test { predicate: TRUE, negated: false });
        self.code.push(Instruction { guard: self.guard, watched: false, op });
        self.places.push(self.place.clone());
    }

    /// Removes the guard from what follows.
    pub(super) fn always(&mut self) {
        self.guard = Test { predicate: TRUE, negated: false };
    }

    pub(super) fn new_label(&mut self) -> Label {
        self.labels.push(None);
        self.labels.len() - 1
    }

    pub(super) fn place_label(&mut self, label: Label) {
        self.labels[label] = Some(self.code.len() as u32);
    }

    /// Starts a function whose frame's place is in a register.
    pub(super) fn start_function(&mut self, number: usize, frame: Q, line: u32) {
        (self.current, self.frame) = (number, Some(frame));
        self.scopes.clear();
        self.register_results.clear();
        self.place = Place { line, location: None, text: 0..0 };
        self.always();
    }

    /// The register that holds where the free part of the stack starts.
    pub(super) fn stack_pointer(&mut self) -> Q {
        match self.stack {
            Some(stack) => stack,
            None => {
                let stack = self.new_q();
                self.stack = Some(stack);
                stack
            }
        }
    }

    /// Decodes the statements of a scope.
    pub(super) fn body(&mut self, statements: &'a [Statement]) -> Result<()> {
        if self.scopes.len() >= MOST_SCOPES {
            return self.fail(format!("more than {MOST_SCOPES} scopes within each other"));
        }
        let mut scope = Scope::default();
        for statement in statements {
            match statement {
                Statement::Label(name, line) => {
                    let label = self.new_label();
                    if scope.labels.insert(name.clone(), label).is_some() {
                        return Err(Problem::new(*line, format!("the label `{name}` is taken")));
                    }
                }
                Statement::Targets(name, targets) => {
                    scope.targets.insert(name.clone(), targets.clone());
                }
                Statement::Prototype(name, prototype) => {
                    scope.prototypes.insert(name.clone(), prototype.clone());
                }
                _ => {}
            }
        }
        self.scopes.push(scope);
        for statement in statements {
            match statement {
                Statement::Registers(ty, names, line) => self.declare(*ty, names, *line)?,
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Static(name, linked) => self.static_variable(name, linked),
                Statement::Label(name, _) => {
                    if let Some(label) = self.find_label(name) {
                        self.place_label(label);
                    }
                }
                Statement::Targets(..) | Statement::Prototype(..) => {}
                Statement::Scope(inner) => self.body(inner)?,
                Statement::Instruction(instruction) => self.statement(instruction)?,
            }
        }
        self.scopes.pop();
        Ok(())
    }

    fn statement(&mut self, instruction: &'a InstructionTree) -> Result<()> {
        let InstructionTree { line, location, ref text, .. } = *instruction;
        self.place = Place { line, location, text: text.clone() };
        self.always();
        if let Some((name, negated)) = &instruction.guard {
            let Source::P(test) = self.source(&Operand::Name(name.clone()), Type::Pred)? else {
                return self.fail(format!("`{name}` is not a predicate"));
            };
            self.guard = Test { negated: *negated, ..test };
        }
        let names: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
        let form = match forms::find(&instruction.opcode, &names, self.target) {
            Ok(form) => form,
            Err(message) => return self.fail(message),
        };
        let mut modifiers = Modifiers::new(names, form.position);
        (form.decode)(self, instruction, &mut modifiers)?;
        if let Some(left) = modifiers.rest() {
            let opcode = &instruction.opcode;
            return self.fail(format!("the modifier `.{left}` of `{opcode}` is not supported"));
        }
        Ok(())
    }

    fn declare(&mut self, ty: Type, names: &[(String, Option<u32>)], line: u32) -> Result<()> {
        let Some(scope) = self.scopes.last_mut() else { return Ok(()) };
        let symbol = Symbol::Register(Register { ty, slot: None });
        for (name, count) in names {
            self.declared += count.map_or(1, |count| count as usize);
            if self.declared > MOST_DECLARED {
                let message = format!("the kernel declares more than {MOST_DECLARED} registers");
                return Err(Problem::new(line, message));
            }
            let names: Vec<String> = match count {
                Some(count) => (0..*count).map(|index| format!("{name}{index}")).collect(),
                None => vec![name.clone()],
            };
            for name in names {
                if scope.symbols.insert(name.clone(), symbol.clone()).is_some() {
                    return Err(Problem::new(line, format!("the name `{name}` is taken")));
                }
            }
        }
        Ok(())
    }

    /// Gives a variable of the body its place. Parameters of calls live in local memory.
    fn variable(&mut self, variable: &Variable) -> Result<()> {
        let fail = |message| Err(Problem::new(variable.line, message));
        let Some(bytes) = variable.bytes.and_then(|bytes| u32::try_from(bytes).ok()) else {
            return fail(format!("the variable `{}` has no usable size", variable.name));
        };
        let symbol = match variable.space {
            VariableSpace::Shared => Symbol::Shared(self.allot_shared(variable)),
            VariableSpace::Local | VariableSpace::Param => {
                let offset = self.local_bytes.checked_next_multiple_of(variable.align);
                let end = offset.and_then(|offset| offset.checked_add(bytes));
                let (Some(offset), Some(end @ 0..=MOST_LOCAL)) = (offset, end) else {
                    return fail(format!("a thread has {MOST_LOCAL} bytes of local memory"));
                };
                self.local_bytes = end;
                Symbol::Local(offset)
            }
            _ => return fail("device variables are declared outside of functions".to_owned()),
        };
        if let Some(scope) = self.scopes.last_mut() {
            scope.symbols.insert(variable.name.clone(), symbol);
        }
        Ok(())
    }

    /// Names a variable of the body that lies in device memory.
    fn static_variable(&mut self, name: &str, linked: &str) {
        if let (Some(symbol), Some(scope)) = (self.in_device_memory(linked), self.scopes.last_mut())
        {
            scope.symbols.insert(name.to_owned(), symbol);
        }
    }

    /// A variable of the module in device memory.
    fn in_device_memory(&self, name: &str) -> Option<Symbol> {
        let &(address, _) = self.variables.get(name)?;
        let constant = |v: &Variable| v.name == name && v.space == VariableSpace::Const;
        Some(match self.tree.variables.iter().any(constant) {
            true => Symbol::Constant(address),
            false => Symbol::Global(address),
        })
    }

    fn allot_shared(&mut self, variable: &Variable) -> u64 {
        // Named in several functions, it is still one variable.
        let key = std::ptr::from_ref(variable);
        if let Some(&offset) = self.shared.get(&key) {
            return offset;
        }
        let (align, bytes) = (u64::from(variable.align), variable.bytes.unwrap_or(0));
        let packed = self.shared_bytes.checked_next_multiple_of(align).unwrap_or(u64::MAX);
        self.shared_bytes = packed.saturating_add(bytes);
        let offset = self.place_shared(align, bytes);
        self.shared.insert(key, offset);
        let start = SHARED_BASE.saturating_add(offset);
        let name = variable.name.clone();
        self.shared_variables.push(SharedVariable { name, start, bytes, align });
        offset
    }

    /// The next place in shared memory that is a multiple of `align`, a power of two, and of nothing
    /// more: a GPU may put a variable there, and code that needs more must have asked for it.
    fn place_shared(&mut self, align: u64, bytes: u64) -> u64 {
        let offset = match self.shared_end.checked_next_multiple_of(align) {
            // Shared memory itself starts at a multiple of the base; nothing is further aligned.
            Some(place) if align < SHARED_BASE && (place / align).is_multiple_of(2) => {
                place.saturating_add(align)
            }
            place => place.unwrap_or(u64::MAX),
        };
        self.shared_end = offset.saturating_add(bytes);
        self.shared_start.get_or_insert(offset);
        offset
    }

    pub(super) fn find_label(&self, name: &str) -> Option<Label> {
        self.scopes.iter().rev().find_map(|scope| scope.labels.get(name).copied())
    }

    pub(super) fn find_targets(&self, name: &str) -> Option<Vec<String>> {
        self.scopes.iter().rev().find_map(|scope| scope.targets.get(name).cloned())
    }

    pub(super) fn find_prototype(&self, name: &str) -> Option<Prototype> {
        self.scopes.iter().rev().find_map(|scope| scope.prototypes.get(name).cloned())
    }

    /// What a name stands for.
    pub(super) fn symbol(&mut self, name: &str) -> Result<Symbol> {
        for at in (0..self.scopes.len()).rev() {
            if let Some(symbol) = self.scopes[at].symbols.get(name) {
                let mut symbol = symbol.clone();
                if let Symbol::Register(register) = &mut symbol
                    && register.slot.is_none()
                {
                    let slot = self.new_slot(register.ty);
                    register.slot = Some(slot);
                    self.flow.call(register.ty, slot, name);
                    self.scopes[at].symbols.insert(name.to_owned(), symbol.clone());
                }
                return Ok(symbol);
            }
        }
        let tree = self.tree;
        if let Some(symbol) = self.in_device_memory(name) {
            return Ok(symbol);
        }
        let shared = |v: &&Variable| v.name == name && v.space == VariableSpace::Shared;
        match tree.variables.iter().find(shared) {
            Some(variable) if variable.bytes.is_none() => {
                let align = u64::from(variable.align);
                self.dynamic_align = self.dynamic_align.max(align.max(16));
                self.dynamic_variables.push((variable.name.clone(), align));
                Ok(Symbol::DynamicShared)
            }
            Some(variable) => Ok(Symbol::Shared(self.allot_shared(variable))),
            None => match function_address(tree, name) {
                Some(address) => Ok(Symbol::Function(address)),
                None => self.fail(format!("unknown name `{name}`")),
            },
        }
    }

    pub(super) fn new_slot(&mut self, ty: Type) -> u16 {
        let count = match ty.bits() {
            1 => &mut self.p_count,
            64 => &mut self.q_count,
            _ => &mut self.r_count,
        };
        *count += 1;
        // Too many registers are refused when the kernel is complete.
        (*count - 1) as u16
    }

    /// A 64-bit register for an intermediate value.
    pub(super) fn new_q(&mut self) -> Q {
        self.new_slot(Type::B64)
    }

    /// A 32-bit register that holds a constant.
    pub(super) fn constant32(&mut self, value: u32) -> R {
        if let Some(&slot) = self.constants32.get(&value) {
            return slot;
        }
        let slot = self.new_slot(Type::B32);
        self.constants32.insert(value, slot);
        slot
    }

    /// A 64-bit register that holds a constant.
    pub(super) fn constant64(&mut self, value: u64) -> Q {
        if let Some(&slot) = self.constants64.get(&value) {
            return slot;
        }
        let slot = self.new_slot(Type::B64);
        self.constants64.insert(value, slot);
        slot
    }

    pub(super) fn constant(&mut self, value: u64, ty: Type) -> Source {
        match ty.bits() {
            1 => {
                let predicate = if value != 0 { TRUE } else { FALSE };
                Source::P(Test { predicate, negated: false })
            }
            64 => Source::Q(self.constant64(value)),
            bits => Source::R(self.constant32(value as u32 & (u32::MAX >> (32 - bits)))),
        }
    }

    pub(super) fn special(&mut self, special: Special) -> R {
        if let Some((_, slot)) = self.specials.iter().find(|(known, _)| *known == special) {
            return *slot;
        }
        let slot = self.new_slot(Type::B32);
        self.specials.push((special, slot));
        slot
    }
}

/// Places parameters one after the other, each at its alignment.
type Layout = (Vec<Param>, usize, HashMap<String, Symbol>);

pub(super) fn lay_out<'v>(variables: impl Iterator<Item = &'v Variable>) -> Result<Layout> {
    let (mut params, mut symbols, mut end) = (Vec::new(), HashMap::new(), 0_usize);
    for variable in variables {
        let Some(size) = variable.bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
            let message = format!("the parameter `{}` has no size", variable.name);
            return Err(Problem::new(variable.line, message));
        };
        let align = variable.align as usize;
        let offset = end.checked_next_multiple_of(align);
        let Some((offset, after @ 0..=MOST_PARAMS)) =
            offset.and_then(|offset| Some((offset, offset.checked_add(size)?)))
        else {
            let message = format!("the parameters exceed {MOST_PARAMS} bytes");
            return Err(Problem::new(variable.line, message));
        };
        end = after;
        params.push(Param { offset, size, align });
        symbols.insert(variable.name.clone(), Symbol::Param(offset as u64));
    }
    Ok((params, end, symbols))
}
