//! Loads, stores, and what is said to caches.

use super::decoder::{Decoder, Result, Symbol};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

/// The state spaces that modifiers name; `None` is constant memory.
pub(super) const SPACES: [(&str, Option<Space>); 8] = [
    ("global", Some(Space::Global)),
    ("shared", Some(Space::Shared)),
    ("shared::cta", Some(Space::Shared)),
    ("local", Some(Space::Local)),
    ("param", Some(Space::Param)),
    ("param::entry", Some(Space::Param)),
    ("param::func", Some(Space::Param)),
    ("const", None),
];

pub(super) const SCOPES: [(&str, ()); 4] = [("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())];

/// Cache operators and hints, which change nothing but time.
pub(super) fn is_hint(modifier: &str) -> bool {
    matches!(modifier, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "mmio")
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
    /// Checks a prefetch, which changes nothing but time.
    pub(super) fn prefetch(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[1])?;
        let space = modifiers.pick(&SPACES).unwrap_or(Some(Space::Generic));
        modifiers.drop_all(|hint| is_hint(hint) || matches!(hint, "L1" | "L2"));
        self.address(&instruction.operands[0], space.unwrap_or(Space::Global))?;
        self.emit(Op::Nothing);
        Ok(())
    }

    /// Decodes `[base + offset]`.
    pub(super) fn address(&mut self, operand: &Operand, space: Space) -> Result<Address> {
        self.address_in(operand, Some(space))
    }

    /// Decodes an address in a state space, or in constant memory.
    fn address_in(&mut self, operand: &Operand, space: Option<Space>) -> Result<Address> {
        let constant = space.is_none();
        let space = space.unwrap_or(Space::Global);
        let Operand::Address(base, offset) = operand else {
            return self.fail("an address in brackets is expected");
        };
        let (space, base, offset) = match &**base {
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(register) => {
                    // Addresses in windows of 4 GiB need 32 bits.
                    let least = match space {
                        Space::Global | Space::Generic => Type::B64,
                        _ => Type::B32,
                    };
                    let integer = register.ty.is_integer();
                    if !integer || register.ty.bits() < least.bits() {
                        return self.fail(format!("`{name}` cannot hold such an address"));
                    }
                    let base = self.wide_source(&Operand::Name(name.clone()), least)?;
                    (space, base, *offset)
                }
                symbol => {
                    // Parameters of device functions and of calls live in local memory.
                    let own = match symbol {
                        Symbol::Local(_) => Space::Local,
                        Symbol::Param(_) => Space::Param,
                        Symbol::Global(_) | Symbol::Constant(_) => Space::Global,
                        Symbol::Function(_) => return self.fail("a function is no memory"),
                        _ => Space::Shared,
                    };
                    let agrees = (own == space
                        && constant == matches!(symbol, Symbol::Constant(_)))
                        || (own == Space::Local && space == Space::Param)
                        // A name says where it lies.
                        || (own != Space::Param && space == Space::Generic);
                    if !agrees {
                        return self.fail(format!("`{name}` does not lie in this state space"));
                    }
                    match (symbol, self.frame) {
                        (Symbol::Local(at), Some(frame)) => {
                            (own, Source::Q(frame), offset.wrapping_add(i64::from(at)))
                        }
                        (symbol, _) => (own, self.address_of(&symbol, *offset, Type::B64)?, 0),
                    }
                }
            },
            Operand::Integer(value) if space == Space::Local => {
                (space, Source::Q(self.constant64(*value)), *offset)
            }
            Operand::Integer(_) => {
                return self.fail("constant addresses are for local memory only");
            }
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
        let vector = modifiers.pick(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let ty = self.required_type(modifiers)?;
        let bytes = ty.bytes() as usize * vector;
        if bytes > 16 {
            return self.fail(format!("an access of {bytes} bytes is not supported"));
        }
        Ok((order.unwrap_or(Order::Weak), space, vector, ty))
    }

    /// Counts the operands. The last one may be a cache policy.
    pub(super) fn cache_policy(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        operands: usize,
    ) -> Result<()> {
        if !modifiers.take("L2::cache_hint") {
            return self.count(instruction, &[operands]);
        }
        self.count(instruction, &[operands + 1])?;
        self.source(&instruction.operands[operands], Type::U64).map(drop)
    }

    /// A cache policy is opaque; the emulator has no caches, so all are the same.
    pub(super) fn create_policy(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let kind = modifiers.pick(&[("fractional", 0), ("range", 1), ("cvt", 2)]);
        modifiers.drop_all(|hint| is_hint(hint) || matches!(hint, "L2" | "global"));
        let ty = self.required_type(modifiers)?;
        let operands = &instruction.operands;
        match kind {
            Some(0) => {
                self.count(instruction, &[1, 2])?;
                if let Some(fraction) = operands.get(1) {
                    self.source(fraction, Type::F32)?;
                }
            }
            Some(1) => {
                self.count(instruction, &[4])?;
                self.address(&operands[1], Space::Global)?;
                self.source(&operands[2], Type::U32)?;
                self.source(&operands[3], Type::U32)?;
            }
            _ => {
                self.count(instruction, &[2])?;
                self.source(&operands[1], ty)?;
            }
        }
        if let Target::Q(d) = self.target(&operands[0], ty)? {
            let policy = self.constant64(0);
            self.emit(Op::Copy64(d, policy));
        }
        Ok(())
    }

    pub(super) fn discard(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[2])?;
        let space = modifiers.pick(&SPACES).flatten().unwrap_or(Space::Generic);
        modifiers.drop_all(|level| level == "L2");
        let [address, size] = [&instruction.operands[0], &instruction.operands[1]];
        if *size != Operand::Integer(DISCARDED.into()) {
            return self.fail(format!("the only size that can be discarded is {DISCARDED}"));
        }
        let address = self.address(address, space)?;
        self.emit(Op::Discard(address));
        Ok(())
    }

    pub(super) fn load(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let (order, space, vector, ty) = self.access(modifiers)?;
        self.cache_policy(instruction, modifiers, 2)?;
        let address = self.address_in(&instruction.operands[1], space)?;
        let into = elements(&instruction.operands[0]);
        self.same_widths(into)?;
        let mut targets = Vec::new();
        for operand in into {
            targets.push(match operand {
                Operand::Sink if vector > 1 => Target::Nowhere,
                operand => self.wide_target(operand, ty)?,
            });
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

    pub(super) fn store(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let (order, space, vector, ty) = self.access(modifiers)?;
        self.cache_policy(instruction, modifiers, 2)?;
        let Some(space) = space else { return self.fail("constant memory cannot be written") };
        let address = self.address(&instruction.operands[0], space)?;
        let from = elements(&instruction.operands[1]);
        self.same_widths(from)?;
        let mut sources = Vec::new();
        for operand in from {
            sources.push(self.wide_source(operand, ty)?);
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
}

/// The parts of a vector, or a single operand.
pub(super) fn elements(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(elements) => elements,
        single => std::slice::from_ref(single),
    }
}
