//! Times between CUDA events.

use std::sync::Arc;

use fused_dora::Dtype;
use fused_dora::cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use fused_dora::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use fused_dora::cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg,
};
use fused_dora_testkit::bench::Outcome;

use crate::baseline::module;

/// Runs that wait in the stream at once.
const IN_FLIGHT: usize = 32;

/// Threads of a CTA of `read_all`.
const THREADS: u32 = 128;

/// Times runs between CUDA events, each with an L2 cache that holds nothing of use and nothing that
/// must be written back.
pub struct Stopwatch {
    stream: Arc<CudaStream>,
    read_all: CudaFunction,
    /// Twice the L2 cache.
    clean: CudaSlice<f32>,
    sum: CudaSlice<f32>,
    /// CTAs that read it.
    grid: u32,
    events: Vec<[CudaEvent; 2]>,
}

impl Stopwatch {
    /// A stopwatch for work on a stream.
    ///
    /// # Errors
    /// The benches were built without NVRTC, or the driver's.
    pub fn new(stream: &Arc<CudaStream>) -> Outcome<Self> {
        let context = stream.context();
        let attribute = |which| Outcome::Ok(u32::try_from(context.attribute(which)?).unwrap_or(0));
        let cache = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(1 << 20);
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let event = || context.new_event(Some(CU_EVENT_DEFAULT));
        let pair = |_| Outcome::Ok([event()?, event()?]);
        Ok(Self {
            read_all: module(stream, Dtype::F32)?.load_function("read_all")?,
            // Whole vectors of four.
            clean: stream.alloc_zeros(2 * cache as usize / 16 * 4)?,
            sum: stream.alloc_zeros(1)?,
            grid: 8 * multiprocessors.max(1),
            events: (0..IN_FLIGHT).map(pair).collect::<Outcome<_>>()?,
            stream: stream.clone(),
        })
    }

    /// Of the stream.
    pub fn context(&self) -> &CudaContext {
        self.stream.context()
    }

    /// Fills the L2 cache with what no run reads.
    fn flush(&mut self) -> Outcome {
        let (grid, block) = ((self.grid, 1, 1), (THREADS, 1, 1));
        let config = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: 0 };
        let len = self.clean.len() as i64;
        let mut launch = self.stream.launch_builder(&self.read_all);
        launch.arg(&self.clean).arg(&mut self.sum).arg(&len);
        // SAFETY: the arguments are those of `read_all` in elementwise.cu: `len` numbers, of which
        // there are whole vectors, and a place for one.
        unsafe { launch.launch(config) }?;
        Ok(())
    }

    /// The seconds that each of so many runs took. `before` is not timed.
    ///
    /// # Errors
    /// Those of `before` and `run`, or the driver's.
    pub fn time(
        &mut self,
        runs: usize,
        mut before: impl FnMut() -> Outcome,
        mut run: impl FnMut() -> Outcome,
    ) -> Outcome<Vec<f64>> {
        let mut seconds = Vec::with_capacity(runs);
        while seconds.len() < runs {
            let count = IN_FLIGHT.min(runs - seconds.len());
            for i in 0..count {
                before()?;
                self.flush()?;
                self.events[i][0].record(&self.stream)?;
                run()?;
                self.events[i][1].record(&self.stream)?;
            }
            self.stream.synchronize()?;
            for [start, end] in &self.events[..count] {
                seconds.push(f64::from(start.elapsed_ms(end)?) / 1e3);
            }
        }
        Ok(seconds)
    }
}
