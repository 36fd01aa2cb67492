//! What a forward keeps for its backward.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};
use half::{bf16, f16};

use super::Layer;
use crate::dropout::{Dropout, DropoutForm};
use crate::dtype::Dtype;
use crate::error::{During, Error, Result};
use crate::spec::{DoraSpec, Norm};
use crate::tensor::{Read, Write};

/// What a forward keeps for its backward, H and perhaps z: one for each micro-batch that is under
/// way.
#[derive(Debug)]
pub struct Saved {
    h: Buffer,
    z: Option<Buffer>,
    /// Whether the forward of a [`DoraLinear`](crate::DoraLinear) had a counter.
    pub(super) has_counter: bool,
}

/// Elements of one dtype.
#[derive(Debug)]
enum Buffer {
    Bf16(CudaSlice<bf16>),
    F16(CudaSlice<f16>),
    F32(CudaSlice<f32>),
}

impl Saved {
    /// Room for forwards of up to `max_tokens` tokens, for any of `specs`, all of one dtype; `form`
    /// is that of the dropout, if there will be any.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if `max_tokens` is beyond 2³⁰, or the driver's, e.g. out of memory.
    pub fn new(
        stream: &Arc<CudaStream>,
        specs: &[DoraSpec],
        max_tokens: usize,
        form: Option<DropoutForm>,
    ) -> Result<Self> {
        let dtype = specs.first().map_or(Dtype::F32, DoraSpec::dtype);
        let keeps_z =
            |spec: &&DoraSpec| spec.norm() == Norm::Output && form == Some(DropoutForm::Peft);
        let mut ranks = 0;
        for spec in specs {
            spec.check_tokens(max_tokens)?;
            ranks = ranks.max(spec.padded_rank());
        }
        let outputs = specs.iter().filter(keeps_z).map(DoraSpec::out_features).max();
        let zeros = |cols| Buffer::zeros(stream, dtype, max_tokens.saturating_mul(cols));
        Ok(Self { h: zeros(ranks)?, z: outputs.map(zeros).transpose()?, has_counter: false })
    }

    /// H and z, for the forward of a layer.
    ///
    /// # Errors
    /// [`Error::Shape`] if they were made for fewer tokens or a smaller rank.
    pub fn write(
        &mut self,
        layer: &Layer,
        tokens: usize,
        dropout: Option<&Dropout>,
    ) -> Result<(Write<'_>, Option<Write<'_>>)> {
        let [h_len, z_len] = self.check(layer, tokens, dropout)?;
        let keeps_z = layer.keeps_z(dropout)?;
        let z = self.z.as_mut().map(|z| z.write(z_len)).filter(|_| keeps_z);
        Ok((self.h.write(h_len), z))
    }

    /// H and z, for the backward of a layer.
    ///
    /// # Errors
    /// [`Error::Shape`] if they were made for fewer tokens or a smaller rank.
    pub fn read(
        &self,
        layer: &Layer,
        tokens: usize,
        dropout: Option<&Dropout>,
    ) -> Result<(Read<'_>, Option<Read<'_>>)> {
        let [h_len, z_len] = self.check(layer, tokens, dropout)?;
        let keeps_z = layer.keeps_z(dropout)?;
        let z = self.z.as_ref().map(|z| z.read(z_len)).filter(|_| keeps_z);
        Ok((self.h.read(h_len), z))
    }

    /// The elements of H and z of a call, if there is room for them.
    fn check(&self, layer: &Layer, tokens: usize, dropout: Option<&Dropout>) -> Result<[usize; 2]> {
        let outputs = layer.spec().out_features();
        let z_len = if layer.keeps_z(dropout)? { tokens.saturating_mul(outputs) } else { 0 };
        let lens = [layer.h_len(tokens), z_len];
        let room = [self.h.len(), self.z.as_ref().map_or(0, Buffer::len)];
        let cols = [layer.spec().padded_rank(), outputs];
        let names = ["the saved H", "the saved z"];
        for (((tensor, expected), found), cols) in names.into_iter().zip(lens).zip(room).zip(cols) {
            if expected > found {
                let shape = format!("[T={tokens}, {cols}]");
                return Err(Error::Shape { tensor, shape, expected, found });
            }
        }
        Ok(lens)
    }
}

impl Buffer {
    fn zeros(stream: &Arc<CudaStream>, dtype: Dtype, len: usize) -> Result<Self> {
        let (len, during) = (len.max(1), "allocating what a forward keeps");
        match dtype {
            Dtype::Bf16 => stream.alloc_zeros(len).during(during).map(Self::Bf16),
            Dtype::F16 => stream.alloc_zeros(len).during(during).map(Self::F16),
            Dtype::F32 => stream.alloc_zeros(len).during(during).map(Self::F32),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Bf16(slice) => slice.len(),
            Self::F16(slice) => slice.len(),
            Self::F32(slice) => slice.len(),
        }
    }

    fn read(&self, len: usize) -> Read<'_> {
        match self {
            Self::Bf16(slice) => slice.slice(..len).into(),
            Self::F16(slice) => slice.slice(..len).into(),
            Self::F32(slice) => slice.slice(..len).into(),
        }
    }

    fn write(&mut self, len: usize) -> Write<'_> {
        match self {
            Self::Bf16(slice) => slice.slice_mut(..len).into(),
            Self::F16(slice) => slice.slice_mut(..len).into(),
            Self::F32(slice) => slice.slice_mut(..len).into(),
        }
    }
}
