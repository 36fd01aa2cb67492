//! What `prepare` leaves for the other ops: norms, gains and packed operands in one block of memory.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaViewMut};

#[cfg(doc)]
use crate::device::Kernels;
use crate::device::{DeviceMemory, Regions};
use crate::dtype::Dtype;
use crate::error::{During, Error, Result};
use crate::spec::{DoraSpec, Norm};
use crate::tensor::{Tensors, check_len, vector};

/// What prepared operands hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing yet.
    Empty,
    /// The gains alone, for an unmerge.
    Gains,
    /// Packed operands, and squared norms where norms and gains will be.
    Squares,
    /// Everything.
    Ready,
}

/// Where each tensor starts in the block, in bytes; `None` where the spec has no such tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// c `[I]` or `[O]`, f32, at the start of the block.
    norm: Option<usize>,
    /// g `[I]` or `[O]`, f32.
    gain: Option<usize>,
    /// A, packed: `[R, I]`.
    a: Option<usize>,
    /// s·B, packed: `[O, R]`.
    sb: Option<usize>,
    /// g∘(s·B), packed: `[O, R]`; norm axis output only. In f16 times 2ᵏ.
    gsb: Option<usize>,
    /// A·2⁻ᵏ, packed: `[R, I]`; f16 only.
    balanced_a: Option<usize>,
    /// s·B·2ᵏ, packed: `[O, R]`; f16 only, and not with norm axis output.
    balanced_sb: Option<usize>,
    /// 2ᵏ and 2⁻ᵏ, f32; f16 only.
    balance: Option<usize>,
    /// The trained bias `[O]`, rounded to the dtype.
    bias: Option<usize>,
    bytes: usize,
}

impl Layout {
    fn new(spec: &DoraSpec) -> Self {
        let (element, single) = (spec.dtype().bytes(), size_of::<f32>());
        let (inputs, outputs, rank) = (spec.in_features(), spec.out_features(), spec.padded_rank());
        let mut regions = Regions::default();
        let mut take = |count: usize, size| (count > 0).then(|| regions.take(count, size));
        let norm = take(spec.magnitude_len(), single);
        let gain = take(spec.magnitude_len(), single);
        let a = take(rank.saturating_mul(inputs), element);
        let sb = take(rank.saturating_mul(outputs), element);
        let on_output = spec.norm() == Norm::Output;
        let gsb = take(if on_output { rank.saturating_mul(outputs) } else { 0 }, element);
        let of_balance = |count: usize| if balances(spec) { count } else { 0 };
        let balanced_a = take(of_balance(rank.saturating_mul(inputs)), element);
        let balanced_sb = if on_output { 0 } else { rank.saturating_mul(outputs) };
        let balanced_sb = take(of_balance(balanced_sb), element);
        let balance = take(of_balance(2), single);
        let bias = take(outputs, element);
        let bytes = regions.bytes();
        Self { norm, gain, a, sb, gsb, balanced_a, balanced_sb, balance, bias, bytes }
    }
}

/// Whether operands of the gradients are scaled by a power of two, so that small adapters are normal
/// numbers in them: in f16 alone, which has none below 2⁻¹⁴.
pub(super) fn balances(spec: &DoraSpec) -> bool {
    spec.dtype() == Dtype::F16 && spec.rank() > 0
}

/// The tensors' addresses, 0 where the spec has no such tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) norm: u64,
    pub(crate) gain: u64,
    pub(crate) a: u64,
    pub(crate) sb: u64,
    pub(crate) gsb: u64,
    pub(crate) balanced_a: u64,
    pub(crate) balanced_sb: u64,
    pub(crate) balance: u64,
    pub(crate) bias: u64,
}

impl Operands {
    /// What dY is contracted with for P: g∘(s·B), or s·B where the output has no gain; in f16 times
    /// 2ᵏ.
    pub(crate) fn contracted(&self) -> u64 {
        [self.gsb, self.balanced_sb, self.sb].into_iter().find(|&found| found != 0).unwrap_or(0)
    }

    /// What P is multiplied by for D: A, in f16 times 2⁻ᵏ.
    pub(crate) const fn expanded(&self) -> u64 {
        if self.balanced_a == 0 { self.a } else { self.balanced_a }
    }

    /// The address of 2⁻ᵏ, or 0 where k is always 0.
    pub(crate) const fn unbalance(&self) -> u64 {
        if self.balance == 0 { 0 } else { self.balance + size_of::<f32>() as u64 }
    }
}

/// What the other ops need of an adapter: c, g and the packed operands, on the device.
///
/// Valid until A, B, m or a trained bias change; then call [`Kernels::prepare`] again. A plain linear
/// layer, of rank 0 and without a norm, needs no `prepare`, unless it trains its bias.
#[derive(Debug)]
pub struct Prepared {
    spec: DoraSpec,
    pub(super) layout: Layout,
    pub(super) state: State,
    pub(super) has_bias: bool,
    pub(super) memory: DeviceMemory,
}

impl Prepared {
    /// Allocates one block for `spec` on `stream`, of [`Prepared::bytes`].
    ///
    /// # Errors
    /// The driver's, e.g. out of memory.
    pub fn new(stream: &Arc<CudaStream>, spec: &DoraSpec) -> Result<Self> {
        let bytes = Self::bytes(spec);
        let memory = DeviceMemory::allocate(stream, bytes, "allocating prepared operands")?;
        Ok(Self::within(memory, spec))
    }

    /// Operands in memory of the caller: `bytes` at `address`, a multiple of 256.
    ///
    /// # Safety
    /// The memory is of the context of the kernels that use it, unused by anything else, and outlives
    /// the operands and the work that uses them.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Misaligned`], [`Error::MemoryTooSmall`].
    pub unsafe fn at_address(spec: &DoraSpec, address: u64, bytes: usize) -> Result<Self> {
        let (name, ask) = ("the memory for prepared operands", "Prepared::bytes");
        let memory = DeviceMemory::lent(name, address, bytes, Self::bytes(spec), ask)?;
        Ok(Self::within(memory, spec))
    }

    /// Bytes of the block: R·(I + O) + O elements of the dtype and twice the magnitude's length in
    /// f32, each tensor padded to a multiple of 256 bytes. R·O elements more for norm axis output, and
    /// in f16 for every axis; there R·I elements more besides, and 256 bytes.
    pub fn bytes(spec: &DoraSpec) -> usize {
        Layout::new(spec).bytes
    }

    fn within(memory: DeviceMemory, spec: &DoraSpec) -> Self {
        let (spec, layout) = (*spec, Layout::new(spec));
        // A plain linear layer has neither norms nor operands to pack.
        let is_plain = spec.norm() == Norm::None && spec.rank() == 0;
        let state = if is_plain { State::Ready } else { State::Empty };
        Self { spec, layout, state, has_bias: false, memory }
    }

    /// Operands for [`Kernels::unmerge`] alone, with the gains `[I]` or `[O]` that
    /// [`Prepared::read_gain`] returned when W' was made; none for plain LoRA.
    ///
    /// # Errors
    /// [`Error::Shape`], or the driver's.
    pub fn for_unmerge(stream: &Arc<CudaStream>, spec: &DoraSpec, gain: &[f32]) -> Result<Self> {
        check_len("gain", gain.len(), vector(("features", spec.magnitude_len())))?;
        let mut prepared = Self::new(stream, spec)?;
        if let Some(offset) = prepared.layout.gain {
            let mut tensors = Tensors::new(stream.context(), stream, spec.dtype())?;
            let address = prepared.memory.write(&mut tensors)? + offset as u64;
            // SAFETY: the block has as many gains at this address.
            unsafe { tensors.upload(gain, address) }.during("uploading gains")?;
        }
        prepared.state = State::Gains;
        Ok(prepared)
    }

    /// The spec that the operands are for.
    pub const fn spec(&self) -> &DoraSpec {
        &self.spec
    }

    /// c, the norm of V along the axis, copied to the host: `[I]` or `[O]`, empty for plain LoRA.
    /// Waits for the stream.
    ///
    /// # Errors
    /// [`Error::NotPrepared`] unless [`Kernels::prepare`] came before; the driver's.
    pub fn read_norm(&self, stream: &Arc<CudaStream>) -> Result<Vec<f32>> {
        match self.state {
            State::Ready => self.download(stream, self.layout.norm),
            _ => Err(Error::NotPrepared { problem: "hold no norms" }),
        }
    }

    /// g = m/c (0 where c = 0), copied to the host: `[I]` or `[O]`, empty for plain LoRA. Waits for
    /// the stream.
    ///
    /// # Errors
    /// [`Error::NotPrepared`] unless [`Kernels::prepare`] came before; the driver's.
    pub fn read_gain(&self, stream: &Arc<CudaStream>) -> Result<Vec<f32>> {
        match self.state {
            State::Ready | State::Gains => self.download(stream, self.layout.gain),
            _ => Err(Error::NotPrepared { problem: "hold no gains" }),
        }
    }

    fn download(&self, stream: &Arc<CudaStream>, offset: Option<usize>) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.spec.magnitude_len()];
        let Some(offset) = offset else { return Ok(values) };
        let mut tensors = Tensors::new(stream.context(), stream, self.spec.dtype())?;
        let address = self.memory.read(&mut tensors)? + offset as u64;
        // SAFETY: the block has as many numbers at this address.
        unsafe { tensors.download(&mut values, address) }.during("reading prepared operands")?;
        Ok(values)
    }

    /// Whether the last [`Kernels::prepare`] was given a bias to train: then forward and backward
    /// take it from here, rounded to the dtype, instead of the base layer's.
    pub const fn has_bias(&self) -> bool {
        matches!(self.state, State::Ready) && self.has_bias
    }

    /// Σ V² of a shard, `[I]` or `[O]`, after a [`Kernels::prepare`] with
    /// [`Magnitude::Sharded`](crate::Magnitude::Sharded): to be replaced by its sum over the shards
    /// ([`AllReduce`](crate::AllReduce)) before [`Kernels::finish_prepare`].
    ///
    /// `None` at any other time, and for memory of the caller, whose block starts with Σ V².
    pub fn squared_norms_mut(&mut self) -> Option<CudaViewMut<'_, f32>> {
        let features = self.spec.magnitude_len();
        match (&mut self.memory, self.state) {
            // SAFETY: any bits are numbers; the block starts with as many.
            (DeviceMemory::Own(slice), State::Squares) => unsafe { slice.transmute_mut(features) },
            _ => None,
        }
    }

    /// The operands, to be read by an op that takes all of them.
    pub(crate) fn read<'t>(
        &'t self,
        tensors: &mut Tensors<'t>,
        spec: &DoraSpec,
    ) -> Result<Operands> {
        let operands = self.read_gains(tensors, spec)?;
        match self.state {
            State::Gains => Err(Error::NotPrepared { problem: "hold only gains, for an unmerge" }),
            _ => Ok(operands),
        }
    }

    /// The operands, to be read by an op that takes the gains alone.
    pub(crate) fn read_gains<'t>(
        &'t self,
        tensors: &mut Tensors<'t>,
        spec: &DoraSpec,
    ) -> Result<Operands> {
        self.check_spec(spec)?;
        match self.state {
            State::Gains | State::Ready => {}
            State::Empty => {
                return Err(Error::NotPrepared { problem: "have not been computed yet" });
            }
            State::Squares => {
                let problem = "are those of a shard that finish_prepare has not completed";
                return Err(Error::NotPrepared { problem });
            }
        }
        let address = self.memory.read(tensors)?;
        Ok(self.layout.operands(address))
    }

    pub(super) fn check_spec(&self, spec: &DoraSpec) -> Result<()> {
        match self.spec == *spec {
            true => Ok(()),
            false => Err(Error::NotPrepared { problem: "were made for another spec" }),
        }
    }
}

impl Layout {
    pub(super) fn operands(&self, block: u64) -> Operands {
        let at = |offset: Option<usize>| offset.map_or(0, |offset| block + offset as u64);
        Operands {
            norm: at(self.norm),
            gain: at(self.gain),
            a: at(self.a),
            sb: at(self.sb),
            gsb: at(self.gsb),
            balanced_a: at(self.balanced_a),
            balanced_sb: at(self.balanced_sb),
            balance: at(self.balance),
            bias: at(self.bias),
        }
    }
}
