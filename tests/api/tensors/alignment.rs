//! No tensor has to lie at a multiple of more than its elements' size: an op gives the same bits
//! wherever one of its tensors lies.
//!
//! Kernels move 16 or 8 bytes at a time where they can. The emulated device reports a vector access
//! off its boundary as a GPU does.

use std::sync::Arc;

use fused_dora::{Dtype, Kernels, Norm, Tiles};

use super::call::{Needed, Place, Sizes, Tensors};
use super::ops::{Device, OPS, Op, kernels};

/// Rows are multiples of 16 bytes long in all tensors. In 16 bit, sums over features take the main
/// loop of whole k-steps, which f32 has not.
fn aligned(norm: Norm, dtype: Dtype) -> Sizes {
    let [inputs, outputs] = if dtype == Dtype::F32 { [20, 24] } else { [96, 104] };
    Sizes { tokens: 3, inputs, outputs, rank: 4, norm, dtype }
}

/// What a call wrote: its tensors and the prepared operands, byte for byte.
type Outcome = Vec<(&'static str, Vec<u8>)>;

fn call(
    device: &mut Device,
    (name, op): (&str, Op),
    place: Option<(&'static str, Place)>,
) -> (Outcome, Vec<(&'static str, Needed)>) {
    let (sizes, stream, foreign) = (device.sizes, device.stream.clone(), device.foreign.clone());
    let mut tensors = Tensors::new(sizes, &stream, &foreign).with_numbers(place);
    let outcome = op(device, &mut tensors);
    let at = || format!("{name} with {place:?}, of {sizes:?}");
    outcome.unwrap_or_else(|error| panic!("{}: {error}", at()));
    stream.synchronize().unwrap_or_else(|error| panic!("{}: {error}", at()));
    let mut contents: Outcome = tensors.contents().into_iter().collect();
    contents.push(("the prepared operands", device.operands()));
    (contents, tensors.asked.into_iter().collect())
}

/// Each tensor lies one element off, and one whose rows may have a stride also has gaps of one
/// element, or of 16 bytes.
fn places(needed: Needed) -> Vec<Place> {
    let mut places = vec![Place { offset: 1, gap: 0 }];
    if needed.takes_stride {
        places.push(Place { offset: 0, gap: 1 });
        places.push(Place { offset: 0, gap: 16 / needed.element.bytes() });
    }
    places
}

/// Goes through the ops whose names `takes` accepts, and returns how many calls it compared.
fn compare(
    sizes: Sizes,
    (kernels, tiles): (&Arc<Kernels>, Option<Tiles>),
    takes: impl Fn(&str) -> bool,
) -> usize {
    let mut device = Device::new(sizes, kernels);
    let mut calls = 0;
    for (name, op) in OPS.into_iter().filter(|(name, _)| takes(name)) {
        device.prepare(None).expect("the right shapes");
        let (expected, asked) = call(&mut device, (name, op), None);
        for (tensor, needed) in asked {
            for place in places(needed) {
                calls += 1;
                let (found, _) = call(&mut device, (name, op), Some((tensor, place)));
                for (found, (written, bytes)) in found.iter().zip(&expected) {
                    let at = || format!("{tensor} at {place:?}, of {sizes:?}, {tiles:?} tiles");
                    assert!(found.1 == *bytes, "{name} writes other bits to {written}: {}", at());
                }
            }
        }
    }
    calls
}

fn every_op(dtype: Dtype) {
    for tiles in [None, Some(Tiles::Large), Some(Tiles::Medium)] {
        let kernels = kernels(tiles);
        for norm in [Norm::Input, Norm::Output] {
            // The other ops have tiles of one kind. PEFT's dropout is for norms of outputs.
            let takes = |name: &str| match tiles {
                Some(_) => matches!(name, "forward" | "backward"),
                None => norm == Norm::Output || !name.contains("PEFT"),
            };
            let calls = compare(aligned(norm, dtype), (&kernels, tiles), takes);
            let least = if tiles.is_some() { 25 } else { 130 };
            assert!(calls > least, "{calls} calls");
        }
    }
}

#[test]
fn no_tensor_has_to_be_aligned_in_bf16() {
    every_op(Dtype::Bf16);
}

#[test]
fn no_tensor_has_to_be_aligned_in_f32() {
    every_op(Dtype::F32);
}
