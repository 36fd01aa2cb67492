//! The registers that an instruction names.

use super::op::{BarrierKind, Collective, Op};
use super::operand::{Q, R, Source, Target};
use super::space::Address;

/// A register that an instruction names, as a place to change.
#[derive(Debug)]
pub(crate) enum Named<'a> {
    R(&'a mut R),
    Q(&'a mut Q),
}

/// What an instruction does with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// Visits registers.
struct Visitor<'a>(&'a mut dyn FnMut(Named<'_>, Use));

impl Visitor<'_> {
    fn read<const N: usize>(&mut self, registers: [&mut R; N]) {
        registers.into_iter().for_each(|register| (self.0)(Named::R(register), Use::Read));
    }

    fn read64<const N: usize>(&mut self, registers: [&mut Q; N]) {
        registers.into_iter().for_each(|register| (self.0)(Named::Q(register), Use::Read));
    }

    fn write(&mut self, register: &mut R) {
        (self.0)(Named::R(register), Use::Write);
    }

    fn write64(&mut self, register: &mut Q) {
        (self.0)(Named::Q(register), Use::Write);
    }

    fn source(&mut self, source: &mut Source) {
        match source {
            Source::R(register) => (self.0)(Named::R(register), Use::Read),
            Source::Q(register) => (self.0)(Named::Q(register), Use::Read),
            Source::P(_) => {}
        }
    }

    fn sources(&mut self, sources: &mut [Source]) {
        sources.iter_mut().for_each(|source| self.source(source));
    }

    fn address(&mut self, address: &mut Address) {
        self.source(&mut address.base);
    }

    fn target(&mut self, target: &mut Target) {
        match target {
            Target::R(register, _) => (self.0)(Named::R(register), Use::Write),
            Target::Q(register) => (self.0)(Named::Q(register), Use::Write),
            Target::P(_) | Target::Nowhere => {}
        }
    }
}

impl Op {
    /// Visits the registers of 32 and of 64 bits that it names, each place once. False
    /// where others than those may change, as a call does.
    pub(crate) fn registers(&mut self, visit: &mut dyn FnMut(Named<'_>, Use)) -> bool {
        let mut visit = Visitor(visit);
        match self {
            Self::Un32(_, d, a) => {
                visit.read([a]);
                visit.write(d);
            }
            Self::Bin32(_, d, a, b) => {
                visit.read([a, b]);
                visit.write(d);
            }
            Self::Tri32(_, d, a, b, c) => {
                visit.read([a, b, c]);
                visit.write(d);
            }
            Self::Bin64(_, d, a, b) => {
                visit.read64([a, b]);
                visit.write64(d);
            }
            Self::Copy64(d, a) => {
                visit.read64([a]);
                visit.write64(d);
            }
            Self::Shl64(d, a, b) | Self::Shr64 { d, a, b, .. } => {
                visit.read64([a]);
                visit.read([b]);
                visit.write64(d);
            }
            Self::Fma64(d, a, b, c) => {
                visit.read64([a, b, c]);
                visit.write64(d);
            }
            Self::MulWide { d, a, b, .. } => {
                visit.read([a, b]);
                visit.write64(d);
            }
            Self::MadWide { d, a, b, c, .. } => {
                visit.read([a, b]);
                visit.read64([c]);
                visit.write64(d);
            }
            Self::Extend { d, a, .. } => {
                visit.read([a]);
                visit.write64(d);
            }
            Self::Truncate(d, a) => {
                visit.read64([a]);
                visit.write(d);
            }
            Self::Pack64 { d, low, high } => {
                visit.read([low, high]);
                visit.write64(d);
            }
            Self::Unpack64 { low, high, a } => {
                visit.read64([a]);
                [low, high].into_iter().for_each(|target| visit.target(target));
            }
            Self::Select32 { d, a, b, .. } => {
                visit.read([a, b]);
                visit.write(d);
            }
            Self::Select64 { d, a, b, .. } => {
                visit.read64([a, b]);
                visit.write64(d);
            }
            Self::Compare32(_, _, a, b) => visit.read([a, b]),
            Self::Compare64(_, _, a, b) => visit.read64([a, b]),
            Self::Scalar(op) => {
                visit.sources(&mut op.sources);
                [&mut op.target, &mut op.second]
                    .into_iter()
                    .for_each(|target| visit.target(target));
            }
            Self::Carry(op) => {
                visit.sources(&mut op.sources);
                visit.target(&mut op.target);
            }
            Self::Clock(_, target) => visit.target(target),
            Self::Load(access) | Self::Store(access) => {
                visit.address(&mut access.address);
                visit.sources(&mut access.sources);
                access.targets.iter_mut().for_each(|target| visit.target(target));
            }
            Self::Discard(address) => visit.address(address),
            Self::Atomic(op) => {
                visit.address(&mut op.address);
                visit.sources(&mut op.sources);
                visit.target(&mut op.target);
            }
            Self::Copy(op) => {
                visit.address(&mut op.to);
                visit.address(&mut op.from);
                op.read.iter_mut().for_each(|read| visit.read([read]));
            }
            Self::LoadMatrix(op) => {
                visit.address(&mut op.address);
                op.registers.iter_mut().for_each(|register| visit.write(register));
            }
            Self::StoreMatrix(op) => {
                visit.address(&mut op.address);
                op.registers.iter_mut().for_each(|register| visit.read([register]));
            }
            Self::TransposeMatrix(d, a) => {
                visit.read([a]);
                visit.write(d);
            }
            Self::Mma(op) => {
                visit.read(op.a.each_mut());
                visit.read(op.b.each_mut());
                visit.read(op.c.each_mut());
                op.d.iter_mut().for_each(|register| visit.write(register));
            }
            Self::Product(op) => {
                [&mut op.a, &mut op.b, &mut op.c]
                    .into_iter()
                    .for_each(|sources| visit.sources(sources));
                op.d.iter_mut().for_each(|target| visit.target(target));
            }
            Self::Shuffle(op) => {
                visit.read([&mut op.value, &mut op.lane, &mut op.clamp, &mut op.members]);
                visit.write(&mut op.target);
                visit.target(&mut op.in_range);
            }
            Self::Collective(op) => {
                visit.read([&mut op.members]);
                match &mut op.collective {
                    Collective::Vote { target, .. } => visit.target(target),
                    Collective::MatchAny { target, value } => {
                        visit.source(value);
                        visit.write(target);
                    }
                    Collective::MatchAll { target, all, value } => {
                        visit.source(value);
                        [target, all].into_iter().for_each(|target| visit.target(target));
                    }
                    Collective::Redux { target, value, .. } => {
                        visit.read([value]);
                        visit.write(target);
                    }
                    Collective::Elect { target, .. } => visit.target(target),
                    Collective::Barrier => {}
                }
            }
            Self::ActiveMask(d) => visit.write(d),
            Self::Barrier(op) => {
                visit.read([&mut op.id]);
                op.threads.iter_mut().for_each(|threads| visit.read([threads]));
                if let BarrierKind::Count(d) = &mut op.kind {
                    visit.write(d);
                }
            }
            Self::BranchIndexed(branch) => visit.read([&mut branch.index]),
            Self::IsSpace(_, _, a) => visit.read64([a]),
            Self::StackAllocate(op) => {
                visit.read64([&mut op.size, &mut op.stack]);
                visit.write64(&mut op.pointer);
            }
            Self::Builtin(_, frame) => {
                frame.iter_mut().for_each(|frame| visit.read64([frame]));
            }
            Self::Call(_) | Self::Return(_) => return false,
            Self::Logic(..)
            | Self::Fence
            | Self::CopyCommit
            | Self::CopyWait(_)
            | Self::CopyWaitAll
            | Self::Branch(_)
            | Self::Exit
            | Self::Trap
            | Self::Nothing
            | Self::Sleep => {}
        }
        true
    }
}
