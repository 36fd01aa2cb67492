//! `gradient_norm`: the norm of a gradient buffer, for clipping (kernels/adamw/sm80.cu).

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::adamw::{MAX_PARTS, OptimizerPart, check_parts, kernel_parts};
use crate::device::{Kernel, Kernels, Launch, Needs, Regions, Workspace};
use crate::dtype::Dtype;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::params::adamw::GradientNormParams;
use crate::tensor::{ElementType, Read, Tensors, Write, vector};

const GRADIENT_NORM: Kernel = Kernel::f32_only("adamw", "gradient_norm");

/// CTAs per multiprocessor.
const CTAS_PER_SM: usize = 4;

/// The size of the kernel's parameters.
pub(super) const SIZE_OF_NORM_PARAMS: usize = size_of::<GradientNormParams>();

/// Input and output of [`Kernels::gradient_norm`].
#[derive(Debug)]
pub struct GradientNorm<'a> {
    /// Elements of the gradients.
    pub len: usize,
    /// The ranges that count, as for [`AdamW::parts`](crate::AdamW::parts).
    pub parts: &'a [OptimizerPart],
    /// The gradients, f32.
    pub gradients: Read<'a>,
    /// ‖g‖ `[1]`, f32, written.
    pub norm: Write<'a>,
}

impl Kernels {
    /// ‖g‖ over the parts of a gradient buffer, for [`Clip`](crate::Clip): one launch per 64 parts. The squares
    /// are summed in f64, in a fixed order, so that nothing overflows and the norm is rounded once.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Shape`], [`Error::InvalidSpec`] for parts that overlap
    /// or reach beyond the buffer, [`Error::ContextMismatch`], [`Error::WorkspaceTooSmall`].
    /// Afterwards [`Error::Driver`].
    pub fn gradient_norm(
        &self,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
        mut io: GradientNorm<'_>,
    ) -> Result<()> {
        let mut t = Tensors::new(self.context(), stream, Dtype::F32)?;
        check_parts(io.parts, io.len)?;
        let mut batches: Vec<_> = io.parts.chunks(MAX_PARTS).map(kernel_parts).collect();
        if batches.is_empty() {
            // Without any parts the norm, 0, is still to be written.
            batches.push(kernel_parts(&[]));
        }
        // As many CTAs in each launch: each adds to its own partial sum.
        let chunks = batches.iter().map(|parts| parts.chunks as usize).max().unwrap_or(0);
        let ctas = chunks.clamp(1, CTAS_PER_SM * self.sm_count().max(1));
        let launch = Launch::new(GRADIENT_NORM, Dtype::F32, [ctas, 1, 1]);
        let mut scratch = workspace.scratch(&mut t, needs(self.sm_count()), 0)?;
        let (f32, elements) = (ElementType::F32, vector(("elements", io.len)));
        let gradients = t.read_as(f32, "gradients", &io.gradients, elements)?;
        let params = GradientNormParams {
            gradients: gradients.address,
            norm: t.write_as(f32, "norm", &mut io.norm, vector(("1", 1)))?.address,
            partials: scratch.region(0),
            counter: scratch.counters(1),
            aligned: gradients.starts_aligned().into(),
            ..GradientNormParams::default()
        };
        let last = batches.len() - 1;
        for (index, parts) in batches.into_iter().enumerate() {
            let (is_first, is_last) = (index == 0, index == last);
            let (first, last) = (is_first.into(), is_last.into());
            let params = GradientNormParams { first, last, parts, ..params };
            // SAFETY: the struct is the kernel's, each address in it was checked, the parts lie
            // within the gradients, and the workspace holds a partial sum per CTA.
            unsafe { self.launch(stream, &launch, &params) }?;
        }
        Ok(())
    }
}

/// A partial sum per CTA.
pub(super) fn needs(sm_count: usize) -> Needs {
    let mut regions = Regions::default();
    regions.take(CTAS_PER_SM * sm_count.max(1), size_of::<f64>());
    Needs { counters: 1, bytes: regions.bytes() }
}

/// The kernels that train a layer.
pub(super) const fn kernels() -> &'static [Kernel] {
    &[GRADIENT_NORM]
}
