//! What the choice of tiles depends on besides the problem.

/// The tiles that the products with W are cut into.
///
/// | tiles | of y or dX | k-step | shared memory | where |
/// |---|---|---|---|---|
/// | `Large` | 128 tokens × 128 features | 32 | 48 KiB | many tokens, and dropout |
/// | `Medium` | 64 tokens × 128 features | 32 | 36 or 40 KiB | where they leave fewer multiprocessors idle |
/// | `Small` | up to 64 tokens × 64 features, in parts along the sum | 64 | 48 KiB | up to 64 tokens |
///
/// In f32 the k-steps are half as deep, and the bytes are the same. All have three stages: two
/// k-steps, 32 KiB, are on their way while tensor cores work on a third, and two CTAs on a
/// multiprocessor keep 64 KiB on their way, several times what DRAM delivers within its latency. Two
/// fit into the 100 KiB of compute capability 8.6, 8.9 and 12.x, and into the 164 KiB and more of 8.0,
/// 9.0, 10.x and 11.0, whose further memory would hold a stage that nothing waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tiles {
    /// 128 tokens × 128 features.
    Large,
    /// 64 tokens × 128 features.
    Medium,
    /// Up to 64 tokens × 64 features, in parts along the sum.
    Small,
}

/// What the choice of tiles depends on besides the problem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiling {
    pub(crate) sm_count: usize,
    /// Taken wherever they can be.
    pub(crate) forced: Option<Tiles>,
    /// What multiplies in large and medium tiles of f32.
    pub(crate) f32_math: F32Math,
}

/// How forward and dX multiply f32 matrices; both are as accurate.
///
/// Products that are small compared with those two (H, P, dA, dB), and all of a layer with dropout,
/// are FMAs.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum F32Math {
    /// One FMA per product.
    Fma,
    /// Three tf32 products on tensor cores: each factor is a sum of two tf32 numbers.
    Tf32x3,
}

impl F32Math {
    /// What is faster on devices of a compute capability.
    ///
    /// A 16×8×8 product is 32 FMA instructions of a warp, or 3 tf32 ones. Three products pay where
    /// tensor cores multiply tf32 more than three times as fast as FMA units multiply f32. Peak
    /// TFLOP/s that NVIDIA publishes (white papers and data sheets; tf32 dense):
    ///
    /// | | device | f32 | tf32 | ratio |
    /// |---|---|--:|--:|--:|
    /// | 8.0 | A100 | 19.5 | 156 | 8.0 |
    /// | 8.6 | RTX 3090; A40 | 35.6; 37.4 | 35.6; 74.8 | 1; 2 |
    /// | 8.9 | RTX 4090 | 82.6 | 82.6 | 1 |
    /// | 9.0 | H100 | 66.9 | 494.7 | 7.4 |
    /// | 10.0 | B200 | 80 | 1100 | 13.8 |
    /// | 10.3 | B300 | 75 | 1125 | 15.0 |
    /// | 12.0 | RTX 5090 | 104.8 | 104.8 | 1 |
    ///
    /// `mma.sync` reaches 62.9 % of the tensor peak on H100 (Luo et al., arXiv:2402.13499): 4.6
    /// times the FMAs. On B200 and B300, 22 % would be enough (it is not published what it reaches
    /// there). On all others, FMA units multiply: 8.7, 11.0 (Jetson) and 12.1 (GB10), for which no
    /// such pair of rates is published, and what comes later.
    pub(crate) const fn of(capability: (i32, i32)) -> Self {
        match capability {
            (8, 0) | (9, 0) | (10, _) => Self::Tf32x3,
            _ => Self::Fma,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_math_follows_from_the_capability() {
        for capability in [(8, 0), (9, 0), (10, 0), (10, 3)] {
            assert_eq!(F32Math::of(capability), F32Math::Tf32x3, "{capability:?}");
        }
        for capability in [(8, 6), (8, 7), (8, 9), (11, 0), (12, 0), (12, 1), (13, 0)] {
            assert_eq!(F32Math::of(capability), F32Math::Fma, "{capability:?}");
        }
    }
}
