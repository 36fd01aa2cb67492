//! An adapter in one buffer: where its parameters lie, and views of them.
//!
//! The parameters of an adapter, and likewise its gradients and its optimizer's moments, each fill
//! one contiguous f32 buffer of one [`AdapterLayout`]: one all-reduce, one optimizer launch, one
//! tracked tensor per layer.

use std::mem::transmute;
use std::ops::Range;

use cudarc::driver::{CudaView, CudaViewMut};

use crate::error::{Error, Result};
use crate::spec::DoraSpec;

/// Parts start at multiples of this many elements: 16 bytes, one access of a kernel.
const ALIGNMENT: usize = 4;

/// One kind of an adapter's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// A `[r, I]`.
    LoraA,
    /// B `[O, r]`.
    LoraB,
    /// m `[I]` or `[O]`.
    Magnitude,
    /// b `[O]`, where it is trained.
    Bias,
}

impl Part {
    /// All parts, in the order in which they lie in a buffer.
    pub const ALL: [Self; 4] = [Self::LoraA, Self::LoraB, Self::Magnitude, Self::Bias];

    /// The part's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LoraA => "lora_A",
            Self::LoraB => "lora_B",
            Self::Magnitude => "magnitude",
            Self::Bias => "bias",
        }
    }
}

/// Where A, B, m and the bias lie in one f32 buffer, in this order; what an adapter has not is
/// empty.
///
/// Each part starts at a 16-byte boundary of the buffer, and the whole is a multiple of 16 bytes
/// long, so that adapters in one buffer, one behind the other, are aligned like the first. The up
/// to three elements of padding behind a part are nobody's: no op of this crate reads or writes
/// them. Whoever sends a whole buffer somewhere should have zeroed it when it was made.
///
/// | adapter | spec | parts |
/// |---|---|---|
/// | LoRA | [`Norm::None`](crate::Norm::None) | A, B |
/// | DoRA | `Norm::Input`, `Norm::Output` | A, B, m |
/// | magnitude only | likewise, of rank 0 | m |
/// | … with its bias trained | [`with_bias`](Self::with_bias) | … and b |
///
/// ```
/// use fused_dora::{AdapterLayout, DoraSpec, Dtype, Norm, NormGrad, Part, Scaling};
///
/// let scaling = Scaling::Value(1.0);
/// let spec = DoraSpec::new(10, 6, 3, scaling, Norm::Output, NormGrad::Exact, Dtype::F32)?;
/// let layout = AdapterLayout::with_bias(&spec);
/// assert_eq!(Part::ALL.map(|part| layout.range(part)), [0..30, 32..50, 52..58, 60..66]);
/// assert_eq!((layout.parameters(), layout.len()), (60, 68));
/// # Ok::<(), fused_dora::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterLayout {
    lens: [usize; 4],
}

impl AdapterLayout {
    /// The layout of `spec`'s adapter, its bias frozen or absent.
    pub const fn new(spec: &DoraSpec) -> Self {
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let rank = spec.rank();
        let lora_a = rank.saturating_mul(inputs);
        Self { lens: [lora_a, rank.saturating_mul(outputs), spec.magnitude_len(), 0] }
    }

    /// The layout of `spec`'s adapter and a trained bias.
    pub const fn with_bias(spec: &DoraSpec) -> Self {
        let mut layout = Self::new(spec);
        layout.lens[Part::Bias as usize] = spec.out_features();
        layout
    }

    /// The elements of a part; an empty range where the adapter has no such part.
    pub fn range(&self, part: Part) -> Range<usize> {
        let before = self.lens[..part as usize].iter().map(|&len| padded(len));
        let start = before.fold(0, usize::saturating_add);
        start..start.saturating_add(self.lens[part as usize])
    }

    /// Elements of a buffer, padding included.
    pub fn len(&self) -> usize {
        self.lens.iter().map(|&len| padded(len)).fold(0, usize::saturating_add)
    }

    /// Whether there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many numbers are trained: the length without the padding.
    pub fn parameters(&self) -> usize {
        self.lens.iter().fold(0, |sum, &len| sum.saturating_add(len))
    }

    /// The parts of a buffer that is read.
    ///
    /// # Errors
    /// [`Error::Shape`] if the buffer is not of this layout's length.
    pub fn view<'a>(&self, buffer: CudaView<'a, f32>) -> Result<AdapterView<'a>> {
        self.check(buffer.len())?;
        let part = |part| buffer.slice(self.range(part));
        let present = |kind| (self.lens[kind as usize] > 0).then(|| part(kind));
        Ok(AdapterView {
            lora_a: part(Part::LoraA),
            lora_b: part(Part::LoraB),
            magnitude: present(Part::Magnitude),
            bias: present(Part::Bias),
        })
    }

    /// The parts of a buffer that is written: disjoint, for as long as the buffer is borrowed.
    ///
    /// # Errors
    /// [`Error::Shape`] if the buffer is not of this layout's length.
    pub fn view_mut<'a>(&self, buffer: CudaViewMut<'a, f32>) -> Result<AdapterViewMut<'a>> {
        self.check(buffer.len())?;
        let mut rest = buffer;
        let [lora_a, lora_b, magnitude, bias] = self.lens.map(|len| take(&mut rest, len));
        let present = |part: CudaViewMut<'a, f32>| (!part.is_empty()).then_some(part);
        Ok(AdapterViewMut { lora_a, lora_b, magnitude: present(magnitude), bias: present(bias) })
    }

    fn check(&self, found: usize) -> Result<()> {
        let expected = self.len();
        if found == expected {
            return Ok(());
        }
        let parts = Part::ALL.iter().zip(self.lens).filter(|(_, len)| *len > 0);
        let shape: Vec<_> = parts.map(|(part, len)| format!("{} of {len}", part.name())).collect();
        let shape = format!("[{}], each padded to 4 elements,", shape.join(", "));
        Err(Error::Shape { tensor: "the adapter's buffer", shape, expected, found })
    }
}

const fn padded(len: usize) -> usize {
    match len.checked_next_multiple_of(ALIGNMENT) {
        Some(padded) => padded,
        None => usize::MAX,
    }
}

/// The first `len` elements of `rest`, which keeps what lies behind them and their padding.
fn take<'a>(rest: &mut CudaViewMut<'a, f32>, len: usize) -> CudaViewMut<'a, f32> {
    let (part, mut behind) = rest.split_at_mut(len);
    let behind = behind.slice_mut(padded(len) - len..);
    // SAFETY: the views keep their addresses and lengths, and all that they borrow is what `rest`
    // borrowed for 'a. They are disjoint, and `rest`, the only other way to their elements, is
    // overwritten with the second before the caller can use it.
    let (part, behind) = unsafe {
        (
            transmute::<CudaViewMut<'_, f32>, CudaViewMut<'a, f32>>(part),
            transmute::<CudaViewMut<'_, f32>, CudaViewMut<'a, f32>>(behind),
        )
    };
    *rest = behind;
    part
}

/// An adapter's parts, to be read.
#[derive(Debug)]
pub struct AdapterView<'a> {
    /// A `[r, I]`; empty for rank 0.
    pub lora_a: CudaView<'a, f32>,
    /// B `[O, r]`; empty for rank 0.
    pub lora_b: CudaView<'a, f32>,
    /// m `[I]` or `[O]`; `None` for plain LoRA.
    pub magnitude: Option<CudaView<'a, f32>>,
    /// b `[O]`; `None` unless it is trained.
    pub bias: Option<CudaView<'a, f32>>,
}

/// An adapter's parts, to be written.
#[derive(Debug)]
pub struct AdapterViewMut<'a> {
    /// A or dA `[r, I]`; empty for rank 0.
    pub lora_a: CudaViewMut<'a, f32>,
    /// B or dB `[O, r]`; empty for rank 0.
    pub lora_b: CudaViewMut<'a, f32>,
    /// m or dm, `[I]` or `[O]`; `None` for plain LoRA.
    pub magnitude: Option<CudaViewMut<'a, f32>>,
    /// b or db `[O]`; `None` unless the bias is trained.
    pub bias: Option<CudaViewMut<'a, f32>>,
}
