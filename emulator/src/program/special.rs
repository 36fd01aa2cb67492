//! Special registers that keep their value while a warp runs.

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
    /// What the driver hands to kernels, by number.
    Environment(u32),
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
            (name, None) => {
                let number = name.strip_prefix("%envreg")?.parse().ok()?;
                (number < 32).then_some(Self::Environment(number))?
            }
            _ => return None,
        })
    }
}
