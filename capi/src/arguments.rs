//! The ops' arguments, made from the structures of the C API.
//!
//! One more tensor of an op takes one line here, besides the field in its structure.

use fused_dora::{
    AdamW, AdamWConfig, AdapterLayout, Backward, Base, Clip, DoraSpec, ElementType, Error, Forward,
    GradientNorm, Magnitude, Merge, NormGradient, OptimizerGroup, Prepare, Prepared, Read, Result,
    Schedule, Unmerge, Write,
};

use crate::status::{Failure, given_all};
use crate::types::{
    AdamwIo, BackwardIo, Dropout, DropoutForm, Dtype, ForwardIo, GradientNormIo, Gradients, Matrix,
    MergeIo, Norm, NormGrad, NormGradientIo, OptimizerPart, Part, PrepareIo, Scaling, Sizes, Spec,
    UnmergeIo,
};
use crate::weight;

/// The choice that a number stands for. `requirement` lists the choices for the error.
pub(crate) fn choose<T: Copy>(
    parameter: &'static str,
    number: u32,
    choices: &[(u32, T)],
    requirement: &'static str,
) -> Result<T> {
    let found = choices.iter().find(|(value, _)| *value == number);
    found.map(|(_, choice)| *choice).ok_or_else(|| Error::InvalidSpec {
        parameter,
        value: number.to_string(),
        requirement,
    })
}

pub(crate) fn dtype(parameter: &'static str, number: u32) -> Result<fused_dora::Dtype> {
    let choices = [
        (Dtype::Bf16 as u32, fused_dora::Dtype::Bf16),
        (Dtype::F16 as u32, fused_dora::Dtype::F16),
        (Dtype::F32 as u32, fused_dora::Dtype::F32),
    ];
    choose(parameter, number, &choices, "a FUSED_DORA_DTYPE: 1 (bf16), 2 (f16) or 3 (f32)")
}

impl Spec {
    pub(crate) fn spec(&self) -> Result<DoraSpec> {
        let alpha = self.scaling;
        let scalings = [
            (Scaling::Standard as u32, fused_dora::Scaling::Standard { alpha }),
            (Scaling::RankStabilized as u32, fused_dora::Scaling::RankStabilized { alpha }),
            (Scaling::Value as u32, fused_dora::Scaling::Value(self.scaling)),
        ];
        let norms = [
            (Norm::None as u32, fused_dora::Norm::None),
            (Norm::Input as u32, fused_dora::Norm::Input),
            (Norm::Output as u32, fused_dora::Norm::Output),
        ];
        let grads = [
            (NormGrad::Detached as u32, fused_dora::NormGrad::Detached),
            (NormGrad::Exact as u32, fused_dora::NormGrad::Exact),
        ];
        let scaling = choose(
            "scaling_kind",
            self.scaling_kind,
            &scalings,
            "a FUSED_DORA_SCALING: 1 (standard), 2 (rank-stabilized) or 3 (value)",
        )?;
        let norm = choose(
            "norm",
            self.norm,
            &norms,
            "a FUSED_DORA_NORM: 1 (none), 2 (input) or 3 (output)",
        )?;
        let norm_grad = choose(
            "norm_grad",
            self.norm_grad,
            &grads,
            "a FUSED_DORA_NORM_GRAD: 1 (detached) or 2 (exact)",
        )?;
        let dtype = dtype("dtype", self.dtype)?;
        let spec = DoraSpec::new(
            self.in_features,
            self.out_features,
            self.rank,
            scaling,
            norm,
            norm_grad,
            dtype,
        )?;
        match self.weight.format()? {
            Some(format) => spec.with_weight(format),
            None => Ok(spec),
        }
    }

    pub(crate) fn trains_bias(&self) -> Result<bool> {
        choose("trains_bias", self.trains_bias, &[(0, false), (1, true)], "0 or 1")
    }

    pub(crate) fn sizes(&self) -> Result<Sizes> {
        let spec = self.spec()?;
        let layout = match self.trains_bias()? {
            true => AdapterLayout::with_bias(&spec),
            false => AdapterLayout::new(&spec),
        };
        let part = |part| {
            let range = layout.range(part);
            Part { start: range.start, len: range.len() }
        };
        let [code_bytes, scale_count, nested_count] = weight::lengths(&spec);
        Ok(Sizes {
            padded_rank: spec.padded_rank(),
            layer_bytes: Prepared::bytes(&spec),
            adapter_len: layout.len(),
            lora_a: part(fused_dora::Part::LoraA),
            lora_b: part(fused_dora::Part::LoraB),
            magnitude: part(fused_dora::Part::Magnitude),
            bias: part(fused_dora::Part::Bias),
            code_bytes,
            scale_count,
            nested_count,
        })
    }
}

impl Dropout {
    fn dropout(&self) -> Result<Option<fused_dora::Dropout>> {
        let forms = [
            (DropoutForm::None as u32, None),
            (DropoutForm::Adapter as u32, Some(fused_dora::DropoutForm::Adapter)),
            (DropoutForm::Peft as u32, Some(fused_dora::DropoutForm::Peft)),
        ];
        let form = choose(
            "the dropout form",
            self.form,
            &forms,
            "a FUSED_DORA_DROPOUT_FORM: 0 (none), 1 (adapter) or 2 (peft)",
        )?;
        form.map(|form| fused_dora::Dropout::new(self.probability, form, self.seed)).transpose()
    }
}

/// The type of an adapter's tensors and their gradients.
pub(crate) const F32: ElementType = ElementType::F32;

/// Where the caller says that a tensor is: an address, or a matrix.
pub(crate) trait Place {
    fn address(&self) -> u64;
    fn stride(&self) -> Option<usize>;
}

impl Place for u64 {
    fn address(&self) -> u64 {
        *self
    }
    fn stride(&self) -> Option<usize> {
        None
    }
}

impl Place for Matrix {
    fn address(&self) -> u64 {
        self.pointer
    }
    fn stride(&self) -> Option<usize> {
        Some(self.stride)
    }
}

/// A tensor that an op reads. The op refuses address 0 unless the tensor is empty.
///
/// # Safety
/// That of [`Read::from_address`].
pub(crate) unsafe fn read(place: &impl Place, element: ElementType) -> Read<'static> {
    // SAFETY: the caller vouches for the address.
    let read = unsafe { Read::from_address(place.address(), element) };
    match place.stride() {
        Some(stride) => read.with_row_stride(stride),
        None => read,
    }
}

/// [`read`] of a tensor that may be absent: then its address is 0.
///
/// # Safety
/// That of [`read`].
unsafe fn read_if_given(place: &impl Place, element: ElementType) -> Option<Read<'static>> {
    // SAFETY: the caller vouches for the address.
    (place.address() != 0).then(|| unsafe { read(place, element) })
}

/// A tensor that an op writes; otherwise like [`read`].
///
/// # Safety
/// That of [`Write::from_address`].
pub(crate) unsafe fn write(place: &impl Place, element: ElementType) -> Write<'static> {
    // SAFETY: the caller vouches for the address.
    let write = unsafe { Write::from_address(place.address(), element) };
    match place.stride() {
        Some(stride) => write.with_row_stride(stride),
        None => write,
    }
}

/// [`write`] of a tensor that may be absent: then its address is 0.
///
/// # Safety
/// That of [`write`].
unsafe fn write_if_given(place: &impl Place, element: ElementType) -> Option<Write<'static>> {
    // SAFETY: the caller vouches for the address.
    (place.address() != 0).then(|| unsafe { write(place, element) })
}

impl PrepareIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments(
        &self,
        spec: &DoraSpec,
        trains_bias: bool,
    ) -> Result<Prepare<'static>> {
        self.check_bias(trains_bias)?;
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(Prepare {
                weight: weight::weight(self.weight, &self.packed, spec)?,
                lora_a: read(&self.lora_a, F32),
                lora_b: read(&self.lora_b, F32),
                magnitude: self.magnitude()?,
                bias: read_if_given(&self.bias, F32),
            })
        }
    }

    /// # Safety
    /// That of [`Self::arguments`].
    unsafe fn magnitude(&self) -> Result<Magnitude<'static>> {
        // SAFETY: the caller vouches for the addresses.
        let (given, new) = unsafe {
            (read_if_given(&self.magnitude, F32), write_if_given(&self.magnitude_out, F32))
        };
        match (given, new) {
            (Some(_), Some(_)) => Err(Error::UnexpectedTensor {
                tensor: "magnitude",
                reason: "magnitude_out is given too, which is for an adapter that has none yet",
            }),
            (None, Some(new)) => Ok(Magnitude::Init(new)),
            (given, None) => Ok(given.into()),
        }
    }

    /// Checks that a bias is given if and only if the spec trains it.
    fn check_bias(&self, trains_bias: bool) -> Result<()> {
        let tensor = "bias";
        match (trains_bias, self.bias != 0) {
            (true, false) => {
                Err(Error::MissingTensor { tensor, reason: "the spec's trains_bias is 1" })
            }
            (false, true) => Err(Error::UnexpectedTensor {
                tensor,
                reason: "the spec's trains_bias is 0, and the forward takes a frozen bias",
            }),
            _ => Ok(()),
        }
    }
}

impl ForwardIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments(&self, spec: &DoraSpec) -> Result<Forward<'static>> {
        let element = spec.dtype().into();
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(Forward {
                tokens: self.tokens,
                base: Base {
                    weight: weight::weight(self.weight, &self.packed, spec)?,
                    bias: read_if_given(&self.bias, element),
                },
                x: read(&self.x, element),
                y: write(&self.y, element),
                h: write(&self.h, element),
                z: write_if_given(&self.z, element),
                dropout: self.dropout.dropout()?,
                counter: read_if_given(&self.counter, ElementType::U64),
                seed: self.seed,
            })
        }
    }
}

impl BackwardIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments(&self, spec: &DoraSpec) -> Result<Backward<'static>> {
        let gradients = [
            (Gradients::Overwrite as u32, fused_dora::Gradients::Overwrite),
            (Gradients::Accumulate as u32, fused_dora::Gradients::Accumulate),
        ];
        let gradients = choose(
            "gradients",
            self.gradients,
            &gradients,
            "a FUSED_DORA_GRADIENTS: 1 (overwrite) or 2 (accumulate)",
        )?;
        let element = spec.dtype().into();
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(Backward {
                tokens: self.tokens,
                gradients,
                base: Base {
                    weight: weight::weight(self.weight, &self.packed, spec)?,
                    bias: read_if_given(&self.bias, element),
                },
                x: read(&self.x, element),
                output: read_if_given(&self.y, element),
                z: read_if_given(&self.z, element),
                dropout: self.dropout.dropout()?,
                counter: read_if_given(&self.counter, ElementType::U64),
                grad_output: read(&self.grad_output, element),
                h: read(&self.h, element),
                grad_input: write_if_given(&self.grad_input, element),
                grad_lora_a: write(&self.grad_lora_a, F32),
                grad_lora_b: write(&self.grad_lora_b, F32),
                grad_magnitude: write_if_given(&self.grad_magnitude, F32),
                grad_bias: write_if_given(&self.grad_bias, F32),
            })
        }
    }
}

impl NormGradientIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments(&self, spec: &DoraSpec) -> Result<NormGradient<'static>> {
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(NormGradient {
                weight: weight::weight(self.weight, &self.packed, spec)?,
                lora_a: read(&self.lora_a, F32),
                lora_b: read(&self.lora_b, F32),
                grad_magnitude: read(&self.grad_magnitude, F32),
                grad_lora_a: write(&self.grad_lora_a, F32),
                grad_lora_b: write(&self.grad_lora_b, F32),
            })
        }
    }
}

impl MergeIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments(&self, spec: &DoraSpec) -> Result<Merge<'static>> {
        let merged = dtype("merged_dtype", self.merged_dtype)?.into();
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(Merge {
                weight: weight::weight(self.weight, &self.packed, spec)?,
                lora_a: read(&self.lora_a, F32),
                lora_b: read(&self.lora_b, F32),
                merged: write(&self.merged, merged),
                report: write_if_given(&self.report, ElementType::F64),
            })
        }
    }
}

impl UnmergeIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments(&self, spec: &DoraSpec) -> Result<Unmerge<'static>> {
        let merged = dtype("merged_dtype", self.merged_dtype)?.into();
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(Unmerge {
                merged: read(&self.merged, merged),
                lora_a: read(&self.lora_a, F32),
                lora_b: read(&self.lora_b, F32),
                weight: write(&self.weight, spec.dtype().into()),
            })
        }
    }
}

/// The optimizer's parts.
///
/// # Safety
/// Unless it is null or misaligned, the pointer is of `count` parts.
pub(crate) unsafe fn parts(
    pointer: *const OptimizerPart,
    count: usize,
) -> Result<Vec<fused_dora::OptimizerPart>, Failure> {
    // SAFETY: the caller vouches for the pointer.
    let parts = unsafe { given_all("parts", pointer, count) }?;
    let part = |part: &OptimizerPart| fused_dora::OptimizerPart {
        range: part.start..part.start.saturating_add(part.len),
        group: OptimizerGroup {
            learning_rate_factor: part.learning_rate_factor,
            weight_decay: part.weight_decay,
        },
    };
    Ok(parts.iter().map(part).collect())
}

impl GradientNormIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments<'a>(
        &self,
        parts: &'a [fused_dora::OptimizerPart],
    ) -> GradientNorm<'a> {
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            GradientNorm {
                len: self.len,
                parts,
                gradients: read(&self.gradients, F32),
                norm: write(&self.norm, F32),
            }
        }
    }
}

impl AdamwIo {
    pub(crate) fn config(&self) -> AdamWConfig {
        AdamWConfig { beta1: self.beta1, beta2: self.beta2, epsilon: self.epsilon }
    }

    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name.
    pub(crate) unsafe fn arguments<'a>(
        &self,
        parts: &'a [fused_dora::OptimizerPart],
    ) -> Result<AdamW<'a>> {
        let (learning_rate, step, max_norm) = (self.learning_rate, self.step, self.max_norm);
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            let schedule = read_if_given(&self.schedule, F32);
            let counter = write_if_given(&self.counter, ElementType::U64);
            let schedule = match (schedule, counter) {
                (None, None) => Schedule::Host { learning_rate, step },
                (Some(numbers), None) => Schedule::Device(numbers),
                (Some(numbers), Some(counter)) => Schedule::Counted { numbers, counter },
                (None, Some(_)) => {
                    let reason = "it counts the steps of a schedule on the device: give that, too";
                    return Err(Error::UnexpectedTensor { tensor: "counter", reason });
                }
            };
            Ok(AdamW {
                len: self.len,
                parts,
                schedule,
                clip: read_if_given(&self.norm, F32).map(|norm| Clip { max_norm, norm }),
                parameters: write(&self.parameters, F32),
                gradients: read(&self.gradients, F32),
                exp_avg: write(&self.exp_avg, F32),
                exp_avg_sq: write(&self.exp_avg_sq, F32),
            })
        }
    }
}
