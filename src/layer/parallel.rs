//! Several devices: gradients summed over ranks, and layers of which each rank has a shard.
//!
//! A rank is a device with a thread (or a process) of its own, its own [`Kernels`](crate::Kernels)
//! and its own [`Workspace`](crate::Workspace). What ranks exchange is f32 and small, of the
//! adapter's size, and goes through [`AllReduce`]: NCCL's communicator (feature `nccl`), or
//! [`HostRank`], which goes through the host and works anywhere. Activations of sharded layers are
//! the trainer's, who has its own exchange for them.
//!
//! # Data parallel: every rank has the layer, and a part of the batch
//!
//! All gradients are sums over tokens, dm too, and they lie in one buffer: one all-reduce of it.
//! Dividing the loss by the tokens of all ranks makes the sum the mean's gradient.
//!
//! 1. Each rank: forward and backward of its micro-batches, accumulated.
//! 2. [`AllReduce::sum_over_ranks`] of [`Adapter::gradients_mut`](crate::Adapter::gradients_mut),
//!    or of a buffer with the adapters of many layers.
//! 3. Each rank: [`norm_gradient`](crate::Kernels::norm_gradient)
//!    ([`DoraLinear::finish_gradients`](crate::DoraLinear::finish_gradients)), clipping, the
//!    optimizer.
//!
//! `norm_gradient` is linear in dm, so that it may also come before the sum. After it, it is of
//! bits that all ranks have alike, rounds once instead of once per rank, and costs the same. With
//! clipping and optimizer behind the sum, all ranks then have the same parameters, to the bit, on
//! devices of one kind: no parameters are ever sent. Ranks should draw from different seeds: for
//! dropout, and for the forward's stochastic rounding.
//!
//! # Tensor parallel: every rank has a shard of W
//!
//! A rank's spec is that of its shard, with the whole layer's r and [`Scaling`](crate::Scaling).
//! Split along O (column parallel), a rank has its rows of W, B and b; x and A are everybody's, and
//! each makes its columns of y. Split along I (row parallel), a rank has its columns of x, W and A;
//! B is everybody's, and what each makes of y is to be summed. The axis that a norm sums over is
//! whole on a rank, or it is not:
//!
//! | | norm axis output | norm axis input |
//! |---|---|---|
//! | split along O | whole: as a layer by itself | **sums over shards** |
//! | split along I | **sums over shards** | whole: as a layer by itself |
//!
//! Where it sums over shards, m and dm are everybody's, and c² = Σ V² is completed by an all-reduce
//! of `[I]` or `[O]` numbers between two launches. The second launch does not read W:
//!
//! ```
//! use fused_dora::{
//!     AllReduce, DoraSpec, Dtype, HostRank, Kernels, Magnitude, Norm, NormGrad, Prepare, Prepared,
//!     Scaling, Workspace, open_device,
//! };
//!
//! # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
//! let kernels = Kernels::load(&open_device(0)?)?;
//! let stream = kernels.context().default_stream();
//! // One of the shards of a W [O, 2·64] that is split along I.
//! let (inputs, outputs, scaling) = (64, 32, Scaling::Standard { alpha: 8.0 });
//! let (norm, norm_grad) = (Norm::Output, NormGrad::Exact);
//! let spec = DoraSpec::new(inputs, outputs, 4, scaling, norm, norm_grad, Dtype::F32)?;
//! let mut workspace = Workspace::new(&kernels, &stream, &[spec], 0)?;
//! let mut prepared = Prepared::new(&stream, &spec)?;
//! let weight = stream.clone_htod(&vec![0.5f32; outputs * inputs])?;
//! let lora_a = stream.alloc_zeros::<f32>(4 * inputs)?;
//! let lora_b = stream.alloc_zeros::<f32>(outputs * 4)?;
//! let mut magnitude = stream.alloc_zeros::<f32>(outputs)?;
//! let rank = HostRank::group(&[stream.clone()]).pop().expect("here, a group of one");
//!
//! let shard = Prepare {
//!     weight: (&weight).into(),
//!     lora_a: (&lora_a).into(),
//!     lora_b: (&lora_b).into(),
//!     magnitude: Magnitude::Sharded,
//!     bias: None,
//! };
//! kernels.prepare(&stream, &spec, &mut workspace, &mut prepared, shard)?;
//! rank.sum_over_ranks(prepared.squared_norms_mut().expect("those of the shard"))?;
//! let fresh = Magnitude::Init((&mut magnitude).into());
//! kernels.finish_prepare(&stream, &spec, &mut prepared, &lora_b, fresh)?;
//! assert_eq!(stream.clone_dtoh(&magnitude)?, [4.0; 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is a partial sum on each rank, and what is complete, with V = W + s·B·A, k = dm·m/c² and
//! the rest as in [`Kernels::backward`](crate::Kernels::backward):
//!
//! | | split along O | split along I |
//! |---|---|---|
//! | y | complete: its columns | partial: of its columns of x; b is one rank's alone |
//! | H = xs·Aᵀ | complete | partial, and stays so: y is linear in it |
//! | P = G·(sB) | partial, and stays so | complete |
//! | dX | partial | complete: its columns |
//! | dA | **partial**: of its rows of V | complete: its columns |
//! | dB | complete: its rows | **partial**: of its H |
//! | dm | complete, or **partial** where a norm sums over shards | likewise |
//! | db | complete: its rows | complete, on every rank |
//!
//! So two sums at most are needed per optimizer step, in this order, since the correction of dA and
//! dB takes the whole of dm, and adds to the partial gradient what is partial, too (s·Bᵀ(V∘k) sums
//! over the rows of V, s·(V∘k)Aᵀ over its columns):
//!
//! 1. dm over the ranks, where a norm sums over shards;
//! 2. [`norm_gradient`](crate::Kernels::norm_gradient) on each rank;
//! 3. dA over the ranks where W is split along O, dB where it is split along I.
//!
//! The backward of norm axis output takes z from y, so that it must be given the y, and the b or
//! none, of the rank's own forward, before it is summed. Dropout and stochastic rounding draw by
//! row and column of x: ranks with the same x (split along O) must share a seed, ranks with
//! different columns should not. The norm of all gradients, for clipping, counts what is
//! everybody's once.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaStream, CudaViewMut, DeviceSlice};

use crate::error::{During, Error, Result};

/// One rank's end of an exchange between ranks.
pub trait AllReduce {
    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Which one this is, from 0.
    fn rank(&self) -> usize;

    /// Replaces `buffer` by its sum over all ranks, ordered on the rank's stream. To be called by
    /// every rank, with buffers of one length; all get the same bits.
    ///
    /// # Errors
    /// [`Error::ContextMismatch`] for a buffer of another device, [`Error::Ranks`] for what goes
    /// wrong between the ranks, or the driver's.
    fn sum_over_ranks(&self, buffer: CudaViewMut<'_, f32>) -> Result<()>;
}

/// A rank whose sums go through the host: every rank copies its buffer there and waits for the
/// others.
///
/// Elements are added in f64, in the order of the ranks, and rounded once. For devices of one
/// process, each driven by its thread; of use where there is no NCCL, and to check what there is.
///
/// ```
/// use fused_dora::{AllReduce, HostRank, open_device};
///
/// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
/// // Two streams of one device, for want of more.
/// let context = open_device(0)?;
/// let ranks = HostRank::group(&[context.new_stream()?, context.new_stream()?]);
/// std::thread::scope(|scope| {
///     for (rank, mine) in ranks.into_iter().zip([[1.0f32, 2.0], [10.0, 20.0]]) {
///         let stream = rank.stream().clone();
///         scope.spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///             let mut buffer = stream.clone_htod(&mine)?;
///             rank.sum_over_ranks(buffer.as_view_mut())?;
///             assert_eq!(stream.clone_dtoh(&buffer)?, [11.0, 22.0]);
///             Ok(())
///         });
///     }
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct HostRank {
    meeting: Arc<Meeting>,
    rank: usize,
    stream: Arc<CudaStream>,
}

impl HostRank {
    /// A rank for each stream, in their order: to be moved to the threads that use them.
    pub fn group(streams: &[Arc<CudaStream>]) -> Vec<Self> {
        let round = Round { parts: vec![None; streams.len()], sum: None, takers: 0, left: None };
        let meeting = Arc::new(Meeting { round: Mutex::new(round), changed: Condvar::new() });
        let rank = |(rank, stream): (usize, &Arc<CudaStream>)| Self {
            meeting: meeting.clone(),
            rank,
            stream: stream.clone(),
        };
        streams.iter().enumerate().map(rank).collect()
    }

    /// The stream that the sums are ordered on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl AllReduce for HostRank {
    fn ranks(&self) -> usize {
        self.meeting.lock().parts.len()
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn sum_over_ranks(&self, mut buffer: CudaViewMut<'_, f32>) -> Result<()> {
        check_context(&self.stream, &buffer)?;
        let part = self.stream.clone_dtoh(&buffer).during("copying a rank's part to the host")?;
        let sum = self.meeting.sum(self.rank, part);
        let sum = sum.map_err(|problem| self.error(problem))?;
        self.stream.memcpy_htod(&sum[..], &mut buffer).during("copying the sum from the host")
    }
}

impl HostRank {
    fn error(&self, problem: String) -> Error {
        Error::Ranks { rank: self.rank, ranks: self.ranks(), problem }
    }
}

/// The others must not wait for a rank that is gone.
impl Drop for HostRank {
    fn drop(&mut self) {
        self.meeting.lock().left.get_or_insert(self.rank);
        self.meeting.changed.notify_all();
    }
}

impl fmt::Debug for HostRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostRank").field("rank", &self.rank).finish_non_exhaustive()
    }
}

/// Where the ranks of a group meet, sum by sum.
struct Meeting {
    round: Mutex<Round>,
    changed: Condvar,
}

/// One sum: the parts come in, the last one makes the sum of them, and everyone takes it.
struct Round {
    parts: Vec<Option<Vec<f32>>>,
    sum: Option<Result<Arc<[f32]>, String>>,
    /// Ranks that have not taken the sum yet.
    takers: usize,
    /// A rank that is gone.
    left: Option<usize>,
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sum of all ranks' parts, or what is wrong.
    fn sum(&self, rank: usize, part: Vec<f32>) -> Result<Arc<[f32]>, String> {
        let wait = |round| self.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        let mut round = self.lock();
        while round.sum.is_some() {
            // Others have yet to take the sum before.
            round = wait(round);
        }
        round.parts[rank] = Some(part);
        if round.parts.iter().all(Option::is_some) {
            let parts: Vec<_> = round.parts.iter_mut().filter_map(Option::take).collect();
            round.takers = parts.len();
            round.sum = Some(added(&parts));
            self.changed.notify_all();
        }
        loop {
            if let Some(sum) = round.sum.clone() {
                round.takers -= 1;
                if round.takers == 0 {
                    round.sum = None;
                    self.changed.notify_all();
                }
                return sum;
            }
            if let Some(left) = round.left {
                round.parts[rank] = None;
                return Err(format!("rank {left} has left the group: look for its error"));
            }
            round = wait(round);
        }
    }
}

/// The sum of buffers of one length, in their order.
fn added(parts: &[Vec<f32>]) -> Result<Arc<[f32]>, String> {
    let lens: Vec<_> = parts.iter().map(Vec::len).collect();
    if lens.iter().any(|len| *len != lens[0]) {
        return Err(format!("their buffers hold {lens:?} elements: all must hold as many"));
    }
    let element = |i| parts.iter().map(|part| f64::from(part[i])).sum::<f64>() as f32;
    Ok((0..lens[0]).map(element).collect())
}

/// A buffer of another device means nothing on the rank's stream.
fn check_context(stream: &CudaStream, buffer: &CudaViewMut<'_, f32>) -> Result<()> {
    match buffer.stream().context().cu_ctx() == stream.context().cu_ctx() {
        true => Ok(()),
        false => Err(Error::ContextMismatch),
    }
}

/// Ranks that exchange through NVIDIA's library, over NVLink, PCIe or a network.
///
/// Its communicator, [`cudarc::nccl::Comm`], is an [`AllReduce`]; its sums run on its stream, and
/// the host does not wait for them. All ranks of a sum must have buffers of one length: NCCL does
/// not check it.
#[cfg(feature = "nccl")]
pub mod nccl {
    use std::error::Error as _;
    use std::ffi::{CStr, c_char};
    use std::sync::Arc;

    use cudarc::driver::{CudaStream, CudaViewMut};
    use cudarc::nccl::result::NcclError;
    use cudarc::nccl::{Comm, Id, ReduceOp, sys};
    use libloading::Library;

    use super::{AllReduce, check_context};
    use crate::error::{During, Error, Result};

    /// The name by which cudarc finds it.
    const LIBRARY: &str = "libnccl.so";

    /// A name for a group of ranks to come, made once and given to each of them: [`join`].
    ///
    /// # Errors
    /// [`Error::Ranks`] where NCCL is not installed, or fails.
    pub fn id() -> Result<Id> {
        check_installed(0, 0)?;
        Id::new().map_err(|error| failed(0, 0, error))
    }

    /// The communicator of one rank of `ranks`, on the rank's stream; waits until all have joined.
    /// It stays with its thread.
    ///
    /// # Errors
    /// [`Error::Ranks`] where NCCL is not installed, fails, or `rank` is not below `ranks`.
    pub fn join(stream: &Arc<CudaStream>, rank: usize, ranks: usize, id: Id) -> Result<Comm> {
        check_installed(rank, ranks)?;
        if rank >= ranks || i32::try_from(ranks).is_err() {
            let problem = "ranks are numbered from 0, and there are fewer than 2³¹".to_owned();
            return Err(Error::Ranks { rank, ranks, problem });
        }
        // NCCL takes the device of the current context.
        stream.context().bind_to_thread().during("selecting a rank's device")?;
        Comm::from_rank(stream.clone(), rank, ranks, id).map_err(|error| failed(rank, ranks, error))
    }

    impl AllReduce for Comm {
        fn ranks(&self) -> usize {
            self.world_size()
        }

        fn rank(&self) -> usize {
            Comm::rank(self)
        }

        fn sum_over_ranks(&self, mut buffer: CudaViewMut<'_, f32>) -> Result<()> {
            check_context(&self.stream(), &buffer)?;
            let done = self.all_reduce_in_place(&mut buffer, &ReduceOp::Sum);
            done.map(drop).map_err(|error| failed(Comm::rank(self), self.world_size(), error))
        }
    }

    /// cudarc panics where the loader does not find the library.
    fn check_installed(rank: usize, ranks: usize) -> Result<()> {
        // SAFETY: opening NCCL runs its initialisers, which have no preconditions.
        match unsafe { Library::new(LIBRARY) } {
            Ok(library) => {
                // It is about to be used.
                std::mem::forget(library);
                Ok(())
            }
            Err(error) => {
                let reason = error.source().map_or_else(|| error.to_string(), |s| s.to_string());
                let problem = format!(
                    "NCCL was not found ({reason}): install its development package, or link \
                     {LIBRARY} to libnccl.so.2 in the loader's path, or use HostRank"
                );
                Err(Error::Ranks { rank, ranks, problem })
            }
        }
    }

    /// The error with NCCL's own text, and its account of the latest failure.
    fn failed(rank: usize, ranks: usize, NcclError(code): NcclError) -> Error {
        let text = |message: *const c_char| match message.is_null() {
            true => String::new(),
            // SAFETY: NCCL's messages are strings that stay, its latest until the next failure.
            false => unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned(),
        };
        // SAFETY: the code is NCCL's, and the latest failure's account needs no communicator.
        let (meaning, account) =
            unsafe { (sys::ncclGetErrorString(code), sys::ncclGetLastError(std::ptr::null_mut())) };
        let problem = format!("NCCL: {} ({code:?}): {}", text(meaning), text(account));
        Error::Ranks { rank, ranks, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::added;

    #[test]
    fn sums_round_once_in_the_order_of_the_ranks() {
        let tiny = 2f32.powi(-25);
        let parts = [vec![1.0, 1e30], vec![tiny, 1.0], vec![tiny, -1e30]];
        assert_eq!(added(&parts).expect("one length")[..], [1.0 + 2.0 * tiny, 0.0]);
        let error = added(&[vec![0.0; 2], vec![0.0; 3]]).expect_err("two lengths");
        assert!(error.contains("[2, 3]"), "{error}");
    }
}
