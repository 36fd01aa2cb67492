//! The parts of memory that the sanitizer observes.

/// Bytes that are observed together.
pub(super) const GRANULE: usize = 4;
/// Bytes of a line, which most accesses are looked at by.
pub(super) const LINE: usize = 16;
pub(super) const LINE_GRANULES: usize = LINE / GRANULE;
/// All bytes of a granule, as a mask.
pub(super) const WHOLE: u8 = 0xf;

/// The bytes of an access that lie in one granule, as a mask.
#[inline(always)]
pub(super) fn part(offset: usize, bytes: usize) -> u8 {
    let first = offset % GRANULE;
    (((1_u32 << bytes.min(GRANULE)) - 1) << first) as u8 & WHOLE
}
