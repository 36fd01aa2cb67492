//! Every tensor of every op is checked: whatever is wrong with one of them, the error names it, and
//! nothing is launched.
//!
//! An op asks [`Tensors`] for each of its tensors by name. It first runs with all of them right.
//! Then each tensor that it asked for is wrong in each way that its type and shape allow, one at a
//! time.

mod alignment;
mod call;
mod ops;

use std::sync::{Arc, Mutex};

use call::{Needed, Sizes, Tensors};
use fused_dora::cudarc::driver::CudaStream;
use fused_dora::{DoraLinear, Dtype, ElementType, Error, Norm, Workspace};
use half::{bf16, f16};
use ops::{Device, OPS, kernels};

const SIZES: Sizes =
    Sizes { tokens: 6, inputs: 10, outputs: 12, rank: 3, norm: Norm::Output, dtype: Dtype::Bf16 };

/// What is wrong with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// One element is missing.
    Short,
    /// There is one element too many.
    Long,
    /// Rows with a stride. The last one ends too late.
    ShortRows,
    /// Elements of this type.
    Type(ElementType),
    /// Memory of another context.
    Context,
    /// An address one byte off.
    Odd,
    /// Address 0.
    Nowhere,
    /// A row stride of this many elements.
    Stride(usize),
}

/// Whether an error is what a mistake in a tensor gives.
fn is_right(error: &Error, tensor: &str, needed: Needed, mistake: Mistake) -> bool {
    use Mistake::{Context, Long, Nowhere, Odd, Short, ShortRows, Stride, Type};
    match (mistake, error) {
        (Short | Long, Error::Shape { tensor: named, expected, .. }) => {
            *named == tensor && *expected == needed.len()
        }
        (ShortRows, Error::Shape { tensor: named, expected, found, .. }) => {
            *named == tensor && *found + 1 == *expected
        }
        (Type(wrong), Error::Dtype { tensor: named, found, needed: right }) => {
            *named == tensor && (*found, *right) == (wrong, needed.element)
        }
        (Type(wrong), Error::InvalidSpec { value, .. }) => {
            needed.takes_any_dtype && *value == wrong.to_string()
        }
        (Context, Error::ContextMismatch) => true,
        (Odd, Error::Misaligned { tensor: named, alignment, .. }) => {
            *named == tensor && *alignment == needed.element.bytes()
        }
        (Nowhere, Error::MissingTensor { tensor: named, .. }) => *named == tensor,
        (Stride(wrong), Error::Stride { tensor: named, stride, cols, .. }) => {
            *named == tensor && (*stride, *cols) == (wrong, needed.cols)
        }
        _ => false,
    }
}

#[test]
fn every_tensor_of_every_op_is_checked() {
    let mut device = Device::new(SIZES, &kernels(None));
    let (mut mistakes, mut wrong) = (0, Vec::new());
    for (name, op) in OPS {
        let (stream, foreign) = (device.stream.clone(), device.foreign.clone());
        let tensors = || Tensors::new(SIZES, &stream, &foreign);
        device.prepare(None).expect("the right shapes");
        let mut right = tensors();
        op(&mut device, &mut right).unwrap_or_else(|error| panic!("{name}: {error}"));
        stream.synchronize().unwrap_or_else(|error| panic!("{name}: {error}"));
        device.prepare(None).expect("the right shapes");
        let mut untouched = tensors();
        for (tensor, needed) in right.asked {
            for mistake in needed.mistakes() {
                mistakes += 1;
                untouched.mistake = Some((tensor, mistake));
                let outcome = op(&mut device, &mut untouched);
                if !outcome.as_ref().is_err_and(|error| is_right(error, tensor, needed, mistake)) {
                    wrong.push(format!("{name}, {tensor}: {mistake:?} gives {outcome:?}"));
                }
            }
        }
        assert!(!untouched.was_written(), "{name}: something was launched");
    }
    assert!(wrong.is_empty(), "{} of {mistakes} mistakes: {wrong:#?}", wrong.len());
    println!("{mistakes} mistakes");
    assert!(mistakes > 900, "{mistakes} mistakes");
}

/// The tensors that a layer takes to keep.
#[test]
fn the_weight_and_the_bias_of_a_layer_are_checked() {
    let device = Device::new(SIZES, &kernels(None));
    let Device { kernels, stream, foreign, spec, .. } = &device;
    let Sizes { tokens, inputs, outputs, .. } = SIZES;
    let make = |weight_len: usize, bias: Option<(Dtype, usize)>, on: &Arc<CudaStream>| {
        on.context().bind_to_thread().expect("a context");
        let weight = Arc::new(on.alloc_zeros::<bf16>(weight_len).expect("memory"));
        let bias = bias.map(|(dtype, len)| match dtype {
            Dtype::Bf16 => Arc::new(stream.alloc_zeros::<bf16>(len).expect("memory")).into(),
            Dtype::F16 => Arc::new(stream.alloc_zeros::<f16>(len).expect("memory")).into(),
            Dtype::F32 => Arc::new(stream.alloc_zeros::<f32>(len).expect("memory")).into(),
        });
        stream.context().bind_to_thread().expect("the first context");
        let workspace = Workspace::new(kernels, stream, &[*spec], tokens).expect("memory");
        let workspace = Arc::new(Mutex::new(workspace));
        DoraLinear::new(kernels, stream, &workspace, [outputs, inputs], weight, bias).map(drop)
    };
    let right = (SIZES.weight().len(), Some((Dtype::Bf16, outputs)));
    make(right.0, right.1, stream).expect("the right shapes");
    make(right.0, None, stream).expect("the right shapes");
    for len in [SIZES.weight().len() - 1, SIZES.weight().len() + 1] {
        let outcome = make(len, right.1, stream);
        assert!(matches!(outcome, Err(Error::Shape { tensor: "weight", .. })), "{outcome:?}");
    }
    for len in [outputs - 1, outputs + 1] {
        let outcome = make(right.0, Some((Dtype::Bf16, len)), stream);
        assert!(matches!(outcome, Err(Error::Shape { tensor: "bias", .. })), "{outcome:?}");
    }
    for dtype in [Dtype::F16, Dtype::F32] {
        let outcome = make(right.0, Some((dtype, outputs)), stream);
        assert!(matches!(outcome, Err(Error::Dtype { tensor: "bias", .. })), "{outcome:?}");
    }
    let outcome = make(right.0, right.1, foreign);
    assert!(matches!(outcome, Err(Error::ContextMismatch)), "{outcome:?}");
}
