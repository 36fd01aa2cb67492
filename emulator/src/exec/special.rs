//! Special registers that keep their value while a warp runs.

use super::context::Context;
use super::lanes::LANES;

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Special {
    Thread(usize),
    Block(usize),
    BlockSize(usize),
    GridSize(usize),
    Lane,
    Warp,
    WarpCount,
    Sm,
    SmCount,
    Grid,
    LanesEqual,
    LanesLess,
    LanesLessEqual,
    LanesGreater,
    LanesGreaterEqual,
    DynamicShared,
    TotalShared,
}

impl Special {
    /// The register of that name.
    pub(crate) fn by_name(name: &str) -> Option<Special> {
        let (register, axis) = match name.split_once('.') {
            Some((register, "x")) => (register, Some(0)),
            Some((register, "y")) => (register, Some(1)),
            Some((register, "z")) => (register, Some(2)),
            Some(_) => return None,
            None => (name, None),
        };
        Some(match (register, axis) {
            ("%tid", Some(axis)) => Self::Thread(axis),
            ("%ctaid", Some(axis)) => Self::Block(axis),
            ("%ntid", Some(axis)) => Self::BlockSize(axis),
            ("%nctaid", Some(axis)) => Self::GridSize(axis),
            ("%laneid", None) => Self::Lane,
            ("%warpid", None) => Self::Warp,
            ("%nwarpid", None) => Self::WarpCount,
            ("%smid", None) => Self::Sm,
            ("%nsmid", None) => Self::SmCount,
            ("%gridid", None) => Self::Grid,
            ("%lanemask_eq", None) => Self::LanesEqual,
            ("%lanemask_lt", None) => Self::LanesLess,
            ("%lanemask_le", None) => Self::LanesLessEqual,
            ("%lanemask_gt", None) => Self::LanesGreater,
            ("%lanemask_ge", None) => Self::LanesGreaterEqual,
            ("%dynamic_smem_size", None) => Self::DynamicShared,
            ("%total_smem_size", None) => Self::TotalShared,
            _ => return None,
        })
    }

    /// Its value in one thread of a block, given by the thread's number.
    pub(crate) fn value(self, context: &Context, block: [u32; 3], thread: u32) -> u32 {
        let [width, height, depth] = context.block;
        let lane = thread % LANES as u32;
        let equal = 1_u32 << lane;
        match self {
            Self::Thread(0) => thread % width,
            Self::Thread(1) => thread / width % height,
            Self::Thread(_) => thread / width / height,
            Self::Block(axis) => block[axis],
            Self::BlockSize(axis) => context.block[axis],
            Self::GridSize(axis) => context.grid[axis],
            Self::Lane => lane,
            Self::Warp => thread / LANES as u32,
            Self::WarpCount => (width * height * depth).div_ceil(LANES as u32),
            Self::Sm => {
                let [x, y, z] = block.map(u64::from);
                let [columns, rows, _] = context.grid.map(u64::from);
                ((x + columns * (y + rows * z)) % u64::from(context.sm_count)) as u32
            }
            Self::SmCount => context.sm_count,
            Self::Grid => context.launch as u32,
            Self::LanesEqual => equal,
            Self::LanesLess => equal - 1,
            Self::LanesLessEqual => equal | (equal - 1),
            Self::LanesGreater => !(equal | (equal - 1)),
            Self::LanesGreaterEqual => !(equal - 1),
            Self::DynamicShared => context.dynamic_shared,
            Self::TotalShared => context.kernel.static_shared + context.dynamic_shared,
        }
    }
}
