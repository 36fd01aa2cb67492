//! The order in which blocks and warps run: that of their numbers, or one drawn from a seed.

/// Blocks of which the order is drawn freely; of larger grids every so many are taken in turn.
const MOST_SHUFFLED: u64 = 1 << 16;

/// Numbers drawn from a seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of a seed and a stream; none for seed 0, which leaves every order as it is.
    pub(crate) fn new(seed: u64, stream: u64) -> Option<Self> {
        (seed != 0).then_some(Self(seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number below a limit.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }

    /// Permutes a list.
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// The order of a grid's blocks.
pub(crate) enum BlockOrder {
    AsNumbered,
    Shuffled(Vec<u32>),
    /// Every `stride`th, from `first` on, round and round.
    Strided {
        blocks: u64,
        first: u64,
        stride: u64,
    },
}

impl BlockOrder {
    pub(crate) fn new(seed: u64, blocks: u64) -> Self {
        let Some(mut random) = Random::new(seed, u64::MAX) else { return Self::AsNumbered };
        if blocks <= MOST_SHUFFLED {
            let mut order: Vec<u32> = (0..blocks as u32).collect();
            random.shuffle(&mut order);
            return Self::Shuffled(order);
        }
        let first = random.below(blocks);
        let mut stride = 1 + random.below(blocks - 1);
        while common_divisor(stride, blocks) != 1 {
            stride = 1 + stride % (blocks - 1);
        }
        Self::Strided { blocks, first, stride }
    }

    /// The number of the block that is started at a turn.
    pub(crate) fn at(&self, turn: u64) -> u64 {
        match self {
            Self::AsNumbered => turn,
            Self::Shuffled(order) => u64::from(order[turn as usize]),
            Self::Strided { blocks, first, stride } => {
                let far = u128::from(*first) + u128::from(turn) * u128::from(*stride);
                (far % u128::from(*blocks)) as u64
            }
        }
    }
}

fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_its_turn() {
        for blocks in [1, 2, 3, 1000, MOST_SHUFFLED + 1, MOST_SHUFFLED + 2] {
            let orders: Vec<Vec<u64>> = (0..3)
                .map(|seed| {
                    let order = BlockOrder::new(seed, blocks);
                    (0..blocks).map(|turn| order.at(turn)).collect()
                })
                .collect();
            let numbers: Vec<u64> = (0..blocks).collect();
            assert_eq!(orders[0], numbers);
            for order in &orders {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, numbers);
            }
            assert!(blocks < 1000 || (orders[1] != numbers && orders[1] != orders[2]));
        }
    }
}
