//! Loads, stores, atomics, fences and asynchronous copies.

use super::decoder::{Decoder, Result, Symbol};
use super::modifiers::Modifiers;
use crate::exec::op::*;
use crate::ptx::{Instruction, Operand, Type};

/// The state spaces that modifiers name; `None` is constant memory.
const SPACES: [(&str, Option<Space>); 8] = [
    ("global", Some(Space::Global)),
    ("shared", Some(Space::Shared)),
    ("shared::cta", Some(Space::Shared)),
    ("local", Some(Space::Local)),
    ("param", Some(Space::Param)),
    ("param::entry", Some(Space::Param)),
    ("param::func", Some(Space::Param)),
    ("const", None),
];

const SCOPES: [(&str, ()); 4] = [("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())];

/// Cache operators and hints, which change nothing but time.
fn is_hint(modifier: &str) -> bool {
    matches!(modifier, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc")
        || modifier.strip_prefix("L1::").is_some_and(is_eviction)
        || modifier
            .strip_prefix("L2::")
            .is_some_and(|hint| is_eviction(hint) || matches!(hint, "64B" | "128B" | "256B"))
}

fn is_eviction(hint: &str) -> bool {
    matches!(
        hint,
        "evict_normal" | "evict_unchanged" | "evict_first" | "evict_last" | "no_allocate"
    )
}

impl Decoder<'_> {
    /// Decodes a memory instruction; `false` if it is none.
    pub(super) fn memory(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
    ) -> Result<bool> {
        match instruction.opcode.as_str() {
            "ld" | "ldu" => self.load(instruction, modifiers)?,
            "st" => self.store(instruction, modifiers)?,
            "atom" => self.atomic(instruction, modifiers, true)?,
            "red" => self.atomic(instruction, modifiers, false)?,
            "cp" => self.copy(instruction, modifiers)?,
            "membar" => {
                self.count(instruction, &[0])?;
                if modifiers.pick(&[("cta", ()), ("gl", ()), ("sys", ())]).is_none() {
                    return self.fail("`membar` needs a level");
                }
                self.emit(Op::Fence);
            }
            "fence" => {
                self.count(instruction, &[0])?;
                modifiers.pick(&[("sc", ()), ("acq_rel", ()), ("acquire", ()), ("release", ())]);
                if modifiers.pick(&SCOPES).is_none() {
                    return self.fail("`fence` needs a scope");
                }
                self.emit(Op::Fence);
            }
            "prefetch" | "prefetchu" => {
                self.count(instruction, &[1])?;
                let space = modifiers.pick(&SPACES).unwrap_or(Some(Space::Generic));
                let level = modifiers.pick(&[
                    ("L1", ()),
                    ("L2", ()),
                    ("L2::evict_last", ()),
                    ("L2::evict_normal", ()),
                ]);
                modifiers.drop_all(is_hint);
                if level.is_none() {
                    return self.fail("a prefetch needs a cache level");
                }
                self.address(&instruction.operands[0], space.unwrap_or(Space::Global))?;
                self.emit(Op::Nothing);
            }
            "createpolicy" => {
                self.count(instruction, &[1, 2, 4])?;
                modifiers.pick(&[("fractional", ()), ("range", ())]);
                modifiers.drop_all(is_hint);
                modifiers.ty();
                if let Target::Q(d) = self.target(&instruction.operands[0], Type::B64)? {
                    let policy = self.constant64(0);
                    self.emit(Op::Copy64(d, policy));
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Decodes `[base + offset]`.
    pub(super) fn address(&mut self, operand: &Operand, space: Space) -> Result<Address> {
        let Operand::Address(base, offset) = operand else {
            return self.fail("an address in brackets is expected");
        };
        let (space, base, offset) = match &**base {
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(_) => {
                    let base = self.any_source(&Operand::Name(name.clone()), Type::B64)?;
                    if let Source::P(_) = base {
                        return self.fail("a predicate is not an address");
                    }
                    (space, base, *offset)
                }
                symbol => {
                    // Parameters of device functions and of calls live in local memory.
                    let own = match symbol {
                        Symbol::Local(_) => Space::Local,
                        Symbol::Param(_) => Space::Param,
                        Symbol::Global(_) => Space::Global,
                        _ => Space::Shared,
                    };
                    let agrees = own == space
                        || (own == Space::Local && space == Space::Param)
                        || (own == Space::Global && space == Space::Generic);
                    if !agrees {
                        return self.fail(format!("`{name}` does not lie in this state space"));
                    }
                    (own, self.address_of(&symbol, *offset, Type::B64)?, 0)
                }
            },
            Operand::Integer(value) => (space, Source::Q(self.constant64(*value)), *offset),
            _ => return self.fail("this form of address is not supported"),
        };
        Ok(Address { space, base, offset })
    }

    /// The modifiers that loads and stores share: ordering, space, hints, vector length and type.
    fn access(&mut self, modifiers: &mut Modifiers) -> Result<(Order, Option<Space>, usize, Type)> {
        let order = modifiers.pick(&[
            ("weak", Order::Weak),
            ("volatile", Order::Relaxed),
            ("relaxed", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
        ]);
        modifiers.pick(&SCOPES);
        let space = modifiers.pick(&SPACES).unwrap_or(Some(Space::Generic));
        modifiers.drop_all(is_hint);
        let vector = modifiers.pick(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let ty = self.required_type(modifiers)?;
        let bytes = ty.bytes() as usize * vector;
        if ty == Type::Pred || bytes > 16 {
            return self.fail(format!("an access of {bytes} bytes of this type is not supported"));
        }
        Ok((order.unwrap_or(Order::Weak), space, vector, ty))
    }

    fn cache_policy(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
        operands: usize,
    ) -> Result<()> {
        if !modifiers.take("L2::cache_hint") {
            return self.count(instruction, &[operands]);
        }
        self.count(instruction, &[operands + 1])?;
        self.source(&instruction.operands[operands], Type::B64).map(drop)
    }

    fn load(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        let (order, space, vector, ty) = self.access(modifiers)?;
        self.cache_policy(instruction, modifiers, 2)?;
        let address = self.address(&instruction.operands[1], space.unwrap_or(Space::Global))?;
        let mut targets = Vec::new();
        for operand in elements(&instruction.operands[0]) {
            let target = self.any_target(operand)?;
            if let Target::R(_, bits @ 0..32) = target
                && u32::from(bits) < ty.bits()
            {
                return self.fail("a destination is narrower than the type");
            }
            targets.push(target);
        }
        if targets.len() != vector {
            return self.fail(format!("{} destinations for {vector} elements", targets.len()));
        }
        self.emit(Op::Load(Box::new(Access {
            address,
            bytes: ty.bytes(),
            signed: ty.is_signed(),
            order,
            constant: space.is_none(),
            targets,
            sources: Vec::new(),
        })));
        Ok(())
    }

    fn store(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        let (order, space, vector, ty) = self.access(modifiers)?;
        self.cache_policy(instruction, modifiers, 2)?;
        let Some(space) = space else { return self.fail("constant memory cannot be written") };
        let address = self.address(&instruction.operands[0], space)?;
        let mut sources = Vec::new();
        for operand in elements(&instruction.operands[1]) {
            sources.push(self.any_source(operand, ty)?);
        }
        if sources.len() != vector {
            return self.fail(format!("{} sources for {vector} elements", sources.len()));
        }
        self.emit(Op::Store(Box::new(Access {
            address,
            bytes: ty.bytes(),
            signed: false,
            order,
            constant: false,
            targets: Vec::new(),
            sources,
        })));
        Ok(())
    }

    fn atomic(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
        returns: bool,
    ) -> Result<()> {
        let order = modifiers.pick(&[
            ("relaxed", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("acq_rel", Order::AcquireRelease),
        ]);
        let order = order.unwrap_or(Order::Relaxed);
        modifiers.pick(&SCOPES);
        let space = modifiers.pick(&SPACES).unwrap_or(Some(Space::Generic));
        let Some(space @ (Space::Global | Space::Shared | Space::Generic)) = space else {
            return self.fail("atomics are for global and shared memory");
        };
        let atomic = modifiers.pick(&[
            ("add", Atomic::Add),
            ("min", Atomic::Min),
            ("max", Atomic::Max),
            ("and", Atomic::And),
            ("or", Atomic::Or),
            ("xor", Atomic::Xor),
            ("exch", Atomic::Exchange),
            ("cas", Atomic::CompareAndSwap),
            ("inc", Atomic::Increment),
            ("dec", Atomic::Decrement),
        ]);
        let Some(atomic) = atomic else { return self.fail("unknown atomic operation") };
        if !returns && matches!(atomic, Atomic::Exchange | Atomic::CompareAndSwap) {
            return self.fail("`red` cannot exchange or swap");
        }
        let kept_subnormals = modifiers.take("noftz");
        modifiers.drop_all(is_hint);
        let ty = self.required_type(modifiers)?;
        let allowed = match atomic {
            Atomic::Add if ty.is_half() => kept_subnormals,
            Atomic::Add => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::F32 | Type::F64),
            Atomic::Min | Atomic::Max => {
                matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64)
            }
            Atomic::And | Atomic::Or | Atomic::Xor | Atomic::Exchange => {
                matches!(ty, Type::B32 | Type::B64 | Type::U32 | Type::U64)
            }
            Atomic::CompareAndSwap => {
                matches!(ty, Type::B16 | Type::B32 | Type::B64 | Type::U32 | Type::U64)
            }
            Atomic::Increment | Atomic::Decrement => ty == Type::U32,
        };
        if !allowed {
            return self.fail(format!("the atomic operation does not exist for {ty:?}"));
        }
        let swaps = usize::from(atomic == Atomic::CompareAndSwap);
        let first = usize::from(returns);
        self.cache_policy(instruction, modifiers, 2 + first + swaps)?;
        let operands = &instruction.operands;
        let address = self.address(&operands[first], space)?;
        let b = self.source(&operands[first + 1], ty)?;
        let c = if swaps == 1 { self.source(&operands[first + 2], ty)? } else { b };
        let target = if returns { self.target(&operands[0], ty)? } else { Target::Nowhere };
        self.emit(Op::Atomic(Box::new(AtomicOp {
            atomic,
            ty,
            order,
            address,
            target,
            sources: [b, c],
        })));
        Ok(())
    }

    /// `cp.async` and what waits for it.
    fn copy(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        if !modifiers.take("async") {
            return self.fail("only `cp.async` is supported");
        }
        let operands = &instruction.operands;
        if modifiers.take("commit_group") {
            self.count(instruction, &[0])?;
            self.emit(Op::CopyCommit);
            return Ok(());
        }
        if modifiers.take("wait_all") {
            self.count(instruction, &[0])?;
            self.emit(Op::CopyWaitAll);
            return Ok(());
        }
        if modifiers.take("wait_group") {
            self.count(instruction, &[1])?;
            let Operand::Integer(groups) = operands[0] else {
                return self.fail("`cp.async.wait_group` needs a constant");
            };
            self.emit(Op::CopyWait(u32::try_from(groups).unwrap_or(u32::MAX)));
            return Ok(());
        }
        let all_levels = modifiers.pick(&[("ca", true), ("cg", false)]);
        let Some(all_levels) = all_levels else {
            return self.fail("this form of `cp.async` is not supported");
        };
        let to_shared = modifiers.take("shared") || modifiers.take("shared::cta");
        if !to_shared || !modifiers.take("global") {
            return self.fail("`cp.async` copies from .global to .shared");
        }
        let policy = modifiers.take("L2::cache_hint");
        modifiers.drop_all(is_hint);
        let operands = match (policy, operands.split_last()) {
            (true, Some((policy, operands))) => {
                self.source(policy, Type::B64)?;
                operands
            }
            _ => &operands[..],
        };
        if !(3..=4).contains(&operands.len()) {
            return self.fail("`cp.async` takes two addresses, a size and what to read");
        }
        let to = self.address(&operands[0], Space::Shared)?;
        let from = self.address(&operands[1], Space::Global)?;
        let Operand::Integer(bytes @ (4 | 8 | 16)) = operands[2] else {
            return self.fail("`cp.async` copies 4, 8 or 16 bytes");
        };
        if !all_levels && bytes != 16 {
            return self.fail("`cp.async.cg` copies 16 bytes");
        }
        let mut copy = CopyOp {
            to,
            from,
            bytes: bytes as u32,
            read: None,
            ignore: Test { predicate: FALSE, negated: false },
        };
        if let Some(last) = operands.get(3) {
            match self.any_source(last, Type::U32)? {
                Source::R(read) => copy.read = Some(read),
                Source::P(ignore) => copy.ignore = ignore,
                Source::Q(_) => return self.fail("the source size has 32 bits"),
            }
        }
        self.emit(Op::Copy(Box::new(copy)));
        Ok(())
    }
}

fn elements(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(elements) => elements,
        single => std::slice::from_ref(single),
    }
}
