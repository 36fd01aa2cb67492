//! Plain reads whose value a compare-and-swap compares with: the loop that swaps starts with a
//! guess, and a wrong one costs a turn. Such a read races with nothing that is atomic, too.

use std::collections::HashMap;

use crate::program::{Address, Atomic, Instruction, Named, Op, Order, Source, Un32, Use};

/// The instructions that write to each register.
type Writers = HashMap<Source, Vec<usize>>;

/// Marks the reads of a kernel that are guesses; its registers share no places yet.
pub(super) fn mark(code: &mut [Instruction]) {
    let swaps: Vec<(Source, Address)> = code.iter().filter_map(|at| swap(&at.op)).collect();
    if swaps.is_empty() {
        return;
    }
    let mut writers = Writers::new();
    for (at, instruction) in code.iter_mut().enumerate() {
        instruction.op.registers(&mut |register, how| {
            if how == Use::Write {
                let register = match register {
                    Named::R(r) => Source::R(*r),
                    Named::Q(q) => Source::Q(*q),
                };
                writers.entry(register).or_default().push(at);
            }
        });
    }
    for (compared, address) in swaps {
        let place = (origin(code, &writers, address.base), address.offset);
        let (mut open, mut seen) = (vec![compared], Vec::new());
        while let Some(register) = open.pop() {
            if seen.contains(&register) {
                continue;
            }
            seen.push(register);
            for &at in writers.get(&register).into_iter().flatten() {
                if let Some(from) = moved(&code[at].op) {
                    open.push(from);
                }
                let Op::Load(access) = &code[at].op else { continue };
                let read = (origin(code, &writers, access.address.base), access.address.offset);
                let alone = access.targets.len() == 1 && access.order == Order::Weak;
                if alone && read == place && access.address.space == address.space {
                    let Op::Load(access) = &mut code[at].op else { continue };
                    access.order = Order::Relaxed;
                }
            }
        }
    }
}

/// What a compare-and-swap compares with, and where.
fn swap(op: &Op) -> Option<(Source, Address)> {
    let Op::Atomic(op) = op else { return None };
    (op.atomic == Atomic::CompareAndSwap).then_some((op.sources[0], op.address))
}

/// The register that an instruction copies.
fn moved(op: &Op) -> Option<Source> {
    match *op {
        Op::Un32(Un32::Copy, _, a) => Some(Source::R(a)),
        Op::Copy64(_, a) => Some(Source::Q(a)),
        _ => None,
    }
}

/// The register that one is a copy of.
fn origin(code: &[Instruction], writers: &Writers, mut register: Source) -> Source {
    for _ in 0..code.len() {
        let only = writers.get(&register).map(Vec::as_slice);
        let Some(&[at]) = only else { break };
        let Some(from) = moved(&code[at].op) else { break };
        register = from;
    }
    register
}
