//! The values of special registers that do not change while a warp runs.

use crate::exec::alu::lanes::LANES;
use crate::exec::context::Context;
use crate::program::Special;

/// Its value in one thread of a block, given by the thread's number.
pub(crate) fn value(special: Special, context: &Context, block: [u32; 3], thread: u32) -> u32 {
    let [width, height, depth] = context.block;
    let lane = thread % LANES as u32;
    let equal = 1_u32 << lane;
    match special {
        Special::Thread(0) => thread % width,
        Special::Thread(1) => thread / width % height,
        Special::Thread(_) => thread / width / height,
        Special::Block(axis) => block[axis],
        Special::BlockSize(axis) => context.block[axis],
        Special::GridSize(axis) => context.grid[axis],
        Special::Lane => lane,
        Special::Warp => thread / LANES as u32,
        Special::WarpCount => (width * height * depth).div_ceil(LANES as u32),
        Special::Sm => {
            let [x, y, z] = block.map(u64::from);
            let [columns, rows, _] = context.grid.map(u64::from);
            ((x + columns * (y + rows * z)) % u64::from(context.sm_count)) as u32
        }
        Special::SmCount => context.sm_count,
        Special::Grid => context.launch as u32,
        Special::LanesEqual => equal,
        Special::LanesLess => equal - 1,
        Special::LanesLessEqual => equal | (equal - 1),
        Special::LanesGreater => !(equal | (equal - 1)),
        Special::LanesGreaterEqual => !(equal - 1),
        Special::DynamicShared => context.dynamic_shared,
        // Cooperative groups take the place of the grid's workspace from here.
        Special::Environment(1) => (context.workspace >> 32) as u32,
        Special::Environment(2) => context.workspace as u32,
        Special::Environment(_) => 0,
        Special::TotalShared => context.kernel.static_shared + context.dynamic_shared,
    }
}
