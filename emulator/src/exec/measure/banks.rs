//! Passes over the banks of shared memory: wavefronts, as NVIDIA's profiler calls them.
//!
//! The rule:
//! - Successive 4-byte words lie in successive banks. There are 32 banks, and a bank delivers one
//!   word per pass. Lanes that touch the same word do not conflict: a read is handed to all of
//!   them, and one of several writes is done. (CUDA C++ Programming Guide, compute capability 5.x,
//!   "Shared Memory", which the sections of later ones refer to.)
//! - A pass carries at most 128 bytes, so that an access of 8 bytes per lane takes at least one
//!   pass for each half of the warp, one of 16 bytes at least one for each quarter, and lanes of
//!   different halves or quarters do not conflict. (The guide on 64-bit and 128-bit accesses,
//!   compute capability 2.x; NVIDIA's GTC 2019 talk S9593 on the phases of 128-bit accesses; its
//!   developer forum, thread 260900.)
//! - `ldmatrix` reads eight rows of 16 bytes for each matrix, whose addresses the lanes of one
//!   quarter give: it is an access of 16 bytes per lane.
//! - An atomic is done once for each lane, also where lanes name the same word. (The guide,
//!   "SIMT Architecture".)
//!
//! Devices can do better where lanes of different halves or quarters read the same words (developer
//! forum, thread 77228). That is not counted here: an access that reads one address with all lanes
//! counts a pass for each half or quarter.

use crate::exec::alu::lanes::LANES;
use crate::exec::context::lanes;

const BANKS: usize = 32;
const WORD_BYTES: u32 = 4;

/// Lanes that are served together, with `bytes` each.
fn group(bytes: u32) -> usize {
    (BANKS as u32 * WORD_BYTES / bytes.max(WORD_BYTES)) as usize
}

/// The lanes of a mask by groups that are served together, the empty ones left out.
fn groups(mask: u32, bytes: u32) -> impl Iterator<Item = u32> {
    let size = group(bytes);
    let first = u32::MAX >> (LANES - size);
    (0..LANES).step_by(size).map(move |start| mask & (first << start)).filter(|&lanes| lanes != 0)
}

/// The passes that an access takes when no lanes conflict.
pub(crate) fn least_wavefronts(mask: u32, bytes: u32) -> u64 {
    groups(mask, bytes).count() as u64
}

/// The words that an access touches, bank by bank; kept for the sake of its memory.
pub(crate) struct Banks([[u64; LANES]; BANKS]);

impl Banks {
    pub(crate) fn new() -> Self {
        Self([[0; LANES]; BANKS])
    }

    /// The passes that an access of aligned `bytes` per lane takes. Lanes that touch the same word
    /// share a pass where they are `merged`.
    pub(crate) fn wavefronts(
        &mut self,
        mask: u32,
        bytes: u32,
        merged: bool,
        address: impl Fn(usize) -> u64,
    ) -> u64 {
        let words_per_lane = u64::from(bytes.div_ceil(WORD_BYTES));
        let mut passes = 0;
        for group in groups(mask, bytes) {
            let mut counts = [0_u8; BANKS];
            for lane in lanes(group) {
                let first = address(lane) / u64::from(WORD_BYTES);
                for word in first..first + words_per_lane {
                    let bank = word as usize % BANKS;
                    let (words, count) = (&mut self.0[bank], &mut counts[bank]);
                    let known = usize::from(*count);
                    if !(merged && words[..known].contains(&word)) {
                        words[known] = word;
                        *count += 1;
                    }
                }
            }
            passes += u64::from(counts.into_iter().max().unwrap_or(0));
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes of an access whose lanes are `stride` bytes apart.
    fn strided(bytes: u32, stride: u64) -> u64 {
        Banks::new().wavefronts(u32::MAX, bytes, true, |lane| lane as u64 * stride)
    }

    #[test]
    fn words_conflict_by_their_distance() {
        assert_eq!(
            [0, 4, 8, 12, 16, 64, 128, 132].map(|s| strided(4, s)),
            [1, 1, 2, 1, 4, 16, 32, 1]
        );
        // Narrow accesses share words.
        assert_eq!([1, 2, 4, 128].map(|stride| strided(1, stride)), [1, 1, 1, 32]);
    }

    #[test]
    fn wide_accesses_go_by_halves_and_quarters() {
        assert_eq!([0, 8, 16, 128].map(|stride| strided(8, stride)), [2, 2, 4, 32]);
        assert_eq!([0, 16, 32, 128].map(|stride| strided(16, stride)), [4, 4, 8, 32]);
        assert_eq!([4, 8, 16].map(|bytes| least_wavefronts(u32::MAX, bytes)), [1, 2, 4]);
        // Eight lanes of one quarter, and one of each.
        assert_eq!([0xff, 0x0101_0101].map(|mask| least_wavefronts(mask, 16)), [1, 4]);
    }

    #[test]
    fn atomics_are_done_lane_by_lane() {
        let atomic =
            |mask, address: fn(usize) -> u64| Banks::new().wavefronts(mask, 4, false, address);
        assert_eq!(atomic(u32::MAX, |_| 64), 32);
        assert_eq!(atomic(u32::MAX, |lane| 4 * lane as u64), 1);
        assert_eq!(atomic(0xf, |lane| 4 * (lane as u64 / 2)), 2);
    }
}
