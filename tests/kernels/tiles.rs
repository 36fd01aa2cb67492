//! Every kind of tiles, forced, on layers of every kind against the float64 reference: sums in one
//! part and in several, groups of rows of tiles that share scratch memory, ragged edges.

use std::sync::Arc;

use fused_dora::{Dtype, F32Math, Kernels, Norm, Tiles};
use fused_dora_testkit::compare;
use fused_dora_testkit::random::{NORMS, fresh_seed, random_case};
use fused_dora_testkit::run::Runner;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Tokens from which on one layer does.
const MANY: usize = 256;

/// Runs layers of `[T, I, O, r]` on tiles of one kind, with rows on 16-byte boundaries and off them.
fn forced(tiles: Tiles, shapes: &[[usize; 4]]) {
    let context = fused_dora_testkit::device::open().expect("a device");
    let [fma, tf32x3] = [F32Math::Fma, F32Math::Tf32x3].map(|math| {
        let kernels = Kernels::load(&context).expect("kernels");
        Arc::new(kernels.with_tiles(Some(tiles)).with_f32_math(math))
    });
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for (i, &shape) in shapes.iter().enumerate() {
        assert!(tiles.can(shape[0], false), "{tiles:?} cannot do {shape:?}");
        for (j, norm) in NORMS.into_iter().enumerate() {
            for (k, dtype) in Dtype::ALL.into_iter().enumerate() {
                if shape[0] > MANY && (norm, dtype) != (Norm::Input, Dtype::Bf16) {
                    continue;
                }
                let offset = (i + j + k) % 2;
                let case = random_case(&mut random, shape, norm, true).rounded(dtype);
                // Of the two kinds of f32 products, one on each axis.
                let kernels = if (i + j) % 2 == 0 { &fma } else { &tf32x3 };
                let runner = Runner::with_kernels(kernels).with_offset(offset).with_repeats(1);
                let found = runner.run(&case, dtype).expect("the ops");
                let failures = compare::failures(&case, dtype, &found, [None; 6]);
                let failures = failures.expect("a consistent case");
                assert!(
                    failures.is_empty(),
                    "{tiles:?} tiles: [T, I, O, r] = {shape:?}, norm {norm:?}, {dtype}, offset \
                     {offset}\n{}",
                    failures.join("\n")
                );
            }
        }
    }
}

#[test]
fn large_tiles() {
    // A token in tiles of 128, a part of H for each 512 features, more than two groups of rows.
    forced(Tiles::Large, &[[1, 72, 40, 8], [135, 1064, 136, 20], [2060, 520, 8, 3]]);
}

#[test]
fn medium_tiles() {
    forced(Tiles::Medium, &[[1, 72, 40, 8], [66, 1064, 136, 70], [1100, 520, 136, 3]]);
}

#[test]
fn small_tiles() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let tokens = random.random_range(1..=64);
    // Of one part, and of several for sums over I and over O.
    let shapes = [
        [1, 72, 40, 8],
        [64, 136, 648, 16],
        [17, 1160, 72, 70],
        [33, 200, 264, 0],
        [tokens, 328, 392, 130],
    ];
    forced(Tiles::Small, &shapes);
}
