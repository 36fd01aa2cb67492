//! The control field of an instruction: what the compiler tells the hardware's scheduler.
//!
//! From Volta to Blackwell an instruction has 128 bits, and the field is bits 105 to 125. NVIDIA
//! does not document it. The layout is from Jia et al., "Dissecting the NVIDIA Volta GPU
//! Architecture via Microbenchmarking" (arXiv:1804.06826). [`check`](super::check) shows on the
//! shipping kernels that it is right.
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 105–108 | stall | clocks until this warp may issue its next instruction |
//! | 109 | yield, inverted | 0: the scheduler may prefer another warp |
//! | 110–112 | write barrier | the scoreboard that the result releases; 7: none |
//! | 113–115 | read barrier | the scoreboard that reading the sources releases; 7: none |
//! | 116–121 | wait mask | the scoreboards that must be at zero before the instruction issues |
//! | 122–125 | reuse | operands that stay in the register cache |

/// Where the field starts in the second word.
const SHIFT: u32 = 105 - 64;

/// Scoreboards of a warp.
pub const SCOREBOARDS: u8 = 6;

/// A decoded control field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    pub stall: u8,
    /// The scoreboard that the result releases.
    pub write: Option<u8>,
    /// The scoreboard that is released when the sources have been read.
    pub read: Option<u8>,
    /// A bit for each scoreboard that is waited for.
    pub wait: u8,
}

impl Control {
    /// The field of the instruction whose upper 64 bits these are.
    pub fn of(high: u64) -> Self {
        let field = high >> SHIFT;
        let bits = |at: u32, count: u32| (field >> at & ((1 << count) - 1)) as u8;
        let scoreboard = |at: u32| Some(bits(at, 3)).filter(|&number| number != 7);
        Self { stall: bits(0, 4), write: scoreboard(5), read: scoreboard(8), wait: bits(11, 6) }
    }

    /// The scoreboards that are waited for.
    pub fn waits(self) -> impl Iterator<Item = u8> {
        (0..SCOREBOARDS).filter(move |&scoreboard| self.wait >> scoreboard & 1 == 1)
    }

    /// Clocks until the warp's next instruction: 0 costs as much as 1.
    pub fn issue(self) -> u32 {
        u32::from(self.stall).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_they_were_found() {
        // LDG with scoreboard 2 for its result, read barrier 0, waiting for 1 and 4, stall 5.
        let field = 5 | 1 << 4 | 2 << 5 | 0b10010 << 11;
        let control = Control::of(field << SHIFT | 0x1e1900);
        assert_eq!(control, Control { stall: 5, write: Some(2), read: Some(0), wait: 0b10010 });
        assert_eq!(control.waits().collect::<Vec<_>>(), [1, 4]);
        let none = Control::of(0x000f_c000_0000_0000);
        assert_eq!((none.write, none.read, none.wait, none.issue()), (None, None, 0, 1));
    }
}
