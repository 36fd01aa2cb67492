//! Tensor maps: descriptions of tiles of device memory, in 128 bytes.
//!
//! No instruction of the emulated device reads one. Programs make them before they know whether a
//! kernel takes one, and may print or compare them.

use std::ffi::c_void;

use super::entry::{Out, in_context};
use super::status::{Result, Status};

/// The capability of devices with tensor maps.
const LEAST_CAPABILITY: (u32, u32) = (9, 0);
const MOST_DIMENSIONS: usize = 5;
/// What marks the emulator's own format.
const MARK: u64 = u64::from_le_bytes(*b"emu-map1");

const FLOAT16: u32 = 6;
const PACKED4_8: u32 = 13;
const PACKED4_16: u32 = 14;
const PACKED6_16: u32 = 15;
/// Bits of an element, by `CUtensorMapDataType`.
const BITS: [u64; 16] = [8, 16, 32, 32, 64, 64, 16, 32, 64, 16, 32, 32, 32, 4, 4, 6];

const INTERLEAVE_32: u32 = 2;
const SWIZZLE_32: u32 = 1;
const SWIZZLE_128: u32 = 3;
/// The span of each `CUtensorMapSwizzle` in bytes, beyond the first.
const SPANS: [u64; 7] = [0, 32, 64, 128, 128, 128, 128];
const MOST_PROMOTION: u32 = 3;

/// `CUtensorMap`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap([u64; 16]);

/// What a tensor map describes.
struct Tiles {
    kind: u32,
    address: u64,
    sizes: Vec<u64>,
    strides: Vec<u64>,
    tile: Vec<u32>,
    steps: Vec<u32>,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
}

fn demand(holds: bool, reason: impl FnOnce() -> String) -> Result {
    if holds { Ok(()) } else { Err(Status::INVALID_VALUE.because(reason())) }
}

impl Tiles {
    /// Checks what the driver API documents.
    fn check(&self) -> Result {
        let Self { kind, interleave, swizzle, .. } = *self;
        demand((kind as usize) < BITS.len(), || format!("{kind} is not a data type"))?;
        demand(interleave <= INTERLEAVE_32, || format!("{interleave} is not an interleaving"))?;
        demand((swizzle as usize) < SPANS.len(), || format!("{swizzle} is not a swizzle"))?;
        let promotion = self.promotion;
        demand(promotion <= MOST_PROMOTION, || format!("{promotion} is not a promotion to L2"))?;
        demand(self.fill <= 1, || format!("{} is not a way to fill", self.fill))?;
        let float = (FLOAT16..PACKED4_8).contains(&kind);
        demand(self.fill == 0 || float, || "NaN fills only floating-point data".to_owned())?;
        let rank = self.sizes.len();
        demand(interleave == 0 || rank >= 3, || {
            format!("interleaved data has at least 3 dimensions, not {rank}")
        })?;
        self.check_layout()?;
        self.check_tile()
    }

    fn check_layout(&self) -> Result {
        let padded = matches!(self.kind, PACKED4_16 | PACKED6_16);
        let unit = if padded || self.interleave == INTERLEAVE_32 { 32 } else { 16 };
        let address = self.address;
        demand(address.is_multiple_of(unit), || {
            format!("the address {address:#x} is not a multiple of {unit}")
        })?;
        for &size in &self.sizes {
            demand((1..=1 << 32).contains(&size), || {
                format!("a dimension of {size} is not within 1 to 2^32")
            })?;
        }
        let first = match self.kind {
            PACKED4_16 | PACKED6_16 => 128,
            PACKED4_8 => 2,
            _ => 1,
        };
        demand(self.sizes[0].is_multiple_of(first), || {
            format!("the first dimension must be a multiple of {first}")
        })?;
        for &stride in &self.strides {
            demand(stride.is_multiple_of(unit) && stride < 1 << 40, || {
                format!("a stride of {stride} bytes is not a multiple of {unit} below 2^40")
            })?;
        }
        Ok(())
    }

    fn check_tile(&self) -> Result {
        let Self { kind, interleave, swizzle, .. } = *self;
        for &size in &self.tile {
            demand((1..=256).contains(&size), || {
                format!("{size} elements of a tile are not within 1 to 256")
            })?;
        }
        // Without interleaving the first step counts for nothing.
        for &step in self.steps.iter().skip(usize::from(interleave == 0)) {
            demand((1..=8).contains(&step), || format!("a step of {step} is not within 1 to 8"))?;
        }
        let padded = matches!(kind, PACKED4_16 | PACKED6_16);
        demand(!padded || self.tile[0] == 128, || {
            "a tile of padded packed data has 128 elements in its first dimension".to_owned()
        })?;
        let row = u64::from(self.tile[0]) * BITS[kind as usize];
        if interleave == 0 {
            demand(row.is_multiple_of(16 * 8), || {
                "the first dimension of a tile must take a multiple of 16 bytes".to_owned()
            })?;
            let span = SPANS[swizzle as usize];
            // Padded data takes its room in shared memory as bytes.
            let width = if padded { u64::from(self.tile[0]) } else { row / 8 };
            demand(swizzle == 0 || width <= span, || {
                format!("{width} bytes in a row of a tile exceed the {span} of the swizzle")
            })?;
        }
        demand(interleave != INTERLEAVE_32 || swizzle == SWIZZLE_32, || {
            "interleaving by 32 bytes needs the swizzle of 32 bytes".to_owned()
        })?;
        let patterns: &[u32] = match kind {
            PACKED6_16 => &[0, SWIZZLE_128, 4, 6],
            PACKED4_16 => &[0, SWIZZLE_128, 4],
            _ => return Ok(()),
        };
        demand(patterns.contains(&swizzle), || format!("the type has no swizzle {swizzle}"))?;
        demand(kind != PACKED6_16 || interleave == 0, || {
            "6-bit data cannot be interleaved".to_owned()
        })
    }

    /// The emulator's own format: a mark, the options, the address, then sizes, strides, and the
    /// tile with its steps.
    fn encode(&self) -> TensorMap {
        let mut words = [0; 16];
        let options = [
            self.kind,
            self.sizes.len() as u32,
            self.interleave,
            self.swizzle,
            self.promotion,
            self.fill,
        ];
        words[0] = MARK;
        words[1] = options
            .iter()
            .enumerate()
            .fold(0, |word, (at, &option)| word | u64::from(option) << (8 * at));
        words[2] = self.address;
        words[3..3 + self.sizes.len()].copy_from_slice(&self.sizes);
        words[8..8 + self.strides.len()].copy_from_slice(&self.strides);
        for (at, (&size, &step)) in self.tile.iter().zip(&self.steps).enumerate() {
            words[12 + at / 2] |= (u64::from(size) | u64::from(step) << 16) << (32 * (at % 2));
        }
        TensorMap(words)
    }
}

/// # Safety
/// The list is null or has so many elements.
unsafe fn list<T: Copy>(list: *const T, length: usize, what: &str) -> Result<Vec<T>> {
    if length == 0 {
        return Ok(Vec::new());
    }
    if list.is_null() || !list.is_aligned() {
        return Err(Status::INVALID_VALUE.because(format!("{what} are null or not aligned")));
    }
    // SAFETY: not null and aligned; the length is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(list, length) }.to_vec())
}

/// Describes tiles of a tensor. Kernels that use the description do not load: the emulator has no
/// bulk copies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut TensorMap,
    kind: u32,
    rank: u32,
    address: *mut c_void,
    sizes: *const u64,
    strides: *const u64,
    tile: *const u32,
    steps: *const u32,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
) -> Status {
    in_context("cuTensorMapEncodeTiled", |driver, _| {
        if driver.platform()?.profile.compute_capability < LEAST_CAPABILITY {
            let reason = "the device has no tensor maps: they need compute capability 9.0";
            return Err(Status::NOT_SUPPORTED.because(reason));
        }
        // SAFETY: `map` is null or writable, by the convention of the driver API.
        let map = unsafe { Out::new(map) }?;
        let rank = rank as usize;
        demand((1..=MOST_DIMENSIONS).contains(&rank), || {
            format!("{rank} dimensions are not within 1 to {MOST_DIMENSIONS}")
        })?;
        // SAFETY: the lists have as many elements as there are dimensions, the strides one less.
        let (sizes, strides, tile, steps) = unsafe {
            (
                list(sizes, rank, "the sizes")?,
                list(strides, rank - 1, "the strides")?,
                list(tile, rank, "the sizes of a tile")?,
                list(steps, rank, "the steps")?,
            )
        };
        let address = address as u64;
        let tiles = Tiles {
            kind,
            address,
            sizes,
            strides,
            tile,
            steps,
            interleave,
            swizzle,
            promotion,
            fill,
        };
        tiles.check()?;
        map.set(tiles.encode());
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiles() -> Tiles {
        Tiles {
            kind: 9, // bf16
            address: 0x1000,
            sizes: vec![1024, 64],
            strides: vec![2048],
            tile: vec![64, 32],
            steps: vec![1, 1],
            interleave: 0,
            swizzle: SWIZZLE_128,
            promotion: 2,
            fill: 0,
        }
    }

    #[test]
    fn tiles_are_what_the_driver_documents() {
        assert!(tiles().check().is_ok());
        let wrong: [fn(&mut Tiles); 22] = [
            |t| t.kind = 16,
            |t| t.interleave = 3,
            |t| t.interleave = 1,
            |t| t.swizzle = 7,
            |t| t.promotion = 4,
            |t| t.fill = 2,
            |t| (t.kind, t.fill) = (0, 1),
            |t| t.address = 0x1008,
            |t| t.sizes[0] = 0,
            |t| t.sizes[1] = (1 << 32) + 1,
            |t| t.strides[0] = 2056,
            |t| t.strides[0] = 1 << 40,
            |t| t.tile[1] = 0,
            |t| t.tile[1] = 257,
            |t| t.steps[1] = 0,
            |t| t.steps[1] = 9,
            |t| t.tile[0] = 60,
            |t| t.tile[0] = 72,
            |t| t.swizzle = SWIZZLE_32,
            |t| (t.kind, t.tile[0]) = (PACKED4_16, 64),
            |t| (t.kind, t.tile[0], t.swizzle) = (PACKED6_16, 128, SWIZZLE_32),
            |t| (t.kind, t.sizes[0]) = (PACKED4_8, 1023),
        ];
        for (at, change) in wrong.into_iter().enumerate() {
            let mut tiles = tiles();
            change(&mut tiles);
            let failure = tiles.check().expect_err("an error");
            assert_eq!(failure.status, Status::INVALID_VALUE, "{at}: {failure}");
        }
        let right: [fn(&mut Tiles); 5] = [
            |t| t.steps[0] = 0,
            |t| t.fill = 1,
            |t| (t.sizes, t.strides) = (vec![1 << 32, 1], vec![(1 << 40) - 16]),
            |t| (t.kind, t.tile[0]) = (PACKED4_16, 128),
            |t| {
                (t.interleave, t.swizzle) = (INTERLEAVE_32, SWIZZLE_32);
                (t.sizes, t.strides) = (vec![16, 8, 8], vec![32, 256]);
                (t.tile, t.steps) = (vec![16, 8, 8], vec![1, 2, 8]);
            },
        ];
        for (at, change) in right.into_iter().enumerate() {
            let mut tiles = tiles();
            change(&mut tiles);
            assert!(tiles.check().is_ok(), "{at}");
        }
    }

    #[test]
    fn a_map_holds_all_that_was_given() {
        assert_eq!(size_of::<TensorMap>(), 128);
        let TensorMap(words) = tiles().encode();
        assert_eq!(words[0], MARK);
        assert_eq!(words[1], 9 | 2 << 8 | 3 << 24 | 2 << 32);
        assert_eq!(words[2..5], [0x1000, 1024, 64]);
        assert_eq!(words[8], 2048);
        assert_eq!(words[12], 64 | 1 << 16 | 32 << 32 | 1 << 48);
    }
}
