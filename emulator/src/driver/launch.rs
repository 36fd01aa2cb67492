//! Kernel launches: checked and their parameters copied at the call, run in the order of a stream.

use std::ffi::{c_int, c_void};
use std::slice;
use std::sync::Arc;

use crate::{Device, EntryPoint, FaultKind, InvalidLaunch, Launch, LaunchError, Profile};

use super::entry::{in_context, read};
use super::function::{registers, registers_per_warp, thread_limit};
use super::queue::Operation;
use super::state::Driver;
use super::status::{Failure, Result, Status};

/// `CU_LAUNCH_PARAM_*`: the marks in the `extra` list of a launch.
const EXTRA_END: usize = 0;
const EXTRA_BUFFER: usize = 1;
const EXTRA_BUFFER_SIZE: usize = 2;

/// `CU_LAUNCH_ATTRIBUTE_*` that change what a launch means, or that are known not to.
const ATTRIBUTE_IGNORE: u32 = 0;
const ATTRIBUTE_ACCESS_POLICY: u32 = 1;
const ATTRIBUTE_COOPERATIVE: u32 = 2;
const ATTRIBUTE_SYNC_POLICY: u32 = 3;
const ATTRIBUTE_CLUSTER: u32 = 4;
const ATTRIBUTE_CLUSTER_POLICY: u32 = 5;
const ATTRIBUTE_PROGRAMMATIC_SERIALIZATION: u32 = 6;
const ATTRIBUTE_PRIORITY: u32 = 8;
const ATTRIBUTE_SHARED_CARVEOUT: u32 = 14;

/// The sizes of a launch.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) cooperative: bool,
}

impl Shape {
    /// The threads of a block.
    pub(super) fn threads(&self) -> u64 {
        self.block.iter().map(|&extent| u64::from(extent)).product()
    }
}

/// A launch with everything that it needs to run later.
pub(super) struct KernelLaunch {
    function: Arc<EntryPoint>,
    shape: Shape,
    dynamic_shared_limit: u32,
    parameters: Vec<u8>,
}

impl KernelLaunch {
    /// Runs the kernel.
    pub(super) fn run(&self, device: &Device) -> Result {
        device.launch(&self.function, &self.launch()).map_err(|error| match error {
            LaunchError::Invalid(invalid) => refused(&invalid),
            LaunchError::Fault(fault) => faulted(fault.kind).because(fault.to_string()),
        })
    }

    fn launch(&self) -> Launch<'_> {
        Launch {
            grid: self.shape.grid,
            block: self.shape.block,
            dynamic_shared: self.shape.dynamic_shared,
            dynamic_shared_limit: self.dynamic_shared_limit,
            params: &self.parameters,
            cooperative: self.shape.cooperative,
        }
    }
}

/// The status of a launch that cannot start.
fn refused(invalid: &InvalidLaunch) -> Failure {
    let status = match invalid {
        InvalidLaunch::Cooperative { .. } => Status::COOPERATIVE_LAUNCH_TOO_LARGE,
        InvalidLaunch::Unloaded => Status::INVALID_HANDLE,
        InvalidLaunch::Workspace => Status::OUT_OF_MEMORY,
        _ => Status::INVALID_VALUE,
    };
    status.because(invalid.to_string())
}

/// The status that a device gives for what a kernel did.
fn faulted(kind: FaultKind) -> Status {
    match kind {
        FaultKind::OutOfBounds | FaultKind::UseAfterFree => Status::ILLEGAL_ADDRESS,
        FaultKind::StackOverflow => Status::HARDWARE_STACK_ERROR,
        FaultKind::Misaligned => Status::MISALIGNED_ADDRESS,
        FaultKind::IllegalAccess => Status::INVALID_ADDRESS_SPACE,
        FaultKind::IllegalOperand | FaultKind::MissingLanes | FaultKind::DivergentBarrier => {
            Status::ILLEGAL_INSTRUCTION
        }
        FaultKind::BarrierDeadlock | FaultKind::Timeout => Status::LAUNCH_TIMEOUT,
        FaultKind::Assertion => Status::ASSERT,
        _ => Status::LAUNCH_FAILED,
    }
}

/// Refuses what a device refuses at the call of a launch.
fn check(function: &EntryPoint, shape: &Shape, limit: u32, profile: &Profile) -> Result {
    let invalid = |invalid: InvalidLaunch| Err(refused(&invalid));
    let within = |sizes: [u32; 3], most: [u32; 3]| {
        sizes.iter().zip(most).all(|(&size, most)| size >= 1 && size <= most)
    };
    let Shape { grid, block, dynamic_shared: dynamic, .. } = *shape;
    if !within(grid, profile.max_grid) {
        return invalid(InvalidLaunch::Grid { grid, limit: profile.max_grid });
    }
    if !within(block, profile.max_block) {
        return invalid(InvalidLaunch::Block { block, limit: profile.max_block });
    }
    let threads = shape.threads();
    let most = function.max_threads().min(profile.max_threads_per_block);
    if threads > most.into() {
        return invalid(InvalidLaunch::Threads { threads, limit: most });
    }
    if let Some(required) = function.kernel.required_block
        && required != block
    {
        return invalid(InvalidLaunch::RequiredBlock { block, required });
    }
    if threads > thread_limit(function, profile).into() {
        let reason = format!(
            "{threads} threads of {} registers each need more than the {} of a block",
            registers(function, profile),
            profile.registers_per_block
        );
        return Err(Status::LAUNCH_OUT_OF_RESOURCES.because(reason));
    }
    if dynamic > limit {
        return invalid(InvalidLaunch::DynamicShared { dynamic, limit });
    }
    let fixed = function.static_shared();
    if fixed.saturating_add(dynamic) > profile.shared_per_block_optin {
        let limit = profile.shared_per_block_optin;
        return invalid(InvalidLaunch::Shared { fixed, dynamic, limit });
    }
    if shape.cooperative {
        let per_sm = blocks_per_sm(function, threads as u32, dynamic, profile);
        let limit = u64::from(per_sm) * u64::from(profile.sm_count);
        let blocks = grid.iter().map(|&extent| u64::from(extent)).product();
        if blocks > limit {
            return invalid(InvalidLaunch::Cooperative { blocks, limit });
        }
    }
    Ok(())
}

/// How many blocks of a kernel one multiprocessor holds at once: as many as its threads, block
/// slots, registers and shared memory allow.
pub(super) fn blocks_per_sm(
    function: &EntryPoint,
    threads: u32,
    dynamic_shared: u32,
    profile: &Profile,
) -> u32 {
    /// Shared memory is given to blocks in units of this.
    const SHARED_UNIT: u32 = 128;
    let warps = threads.div_ceil(profile.warp_size).max(1);
    let by_warps = profile.max_threads_per_sm / profile.warp_size / warps;
    let by_registers = profile.registers_per_sm / registers_per_warp(function, profile) / warps;
    let shared = function
        .static_shared()
        .saturating_add(dynamic_shared)
        .saturating_add(profile.shared_reserved_per_block)
        .checked_next_multiple_of(SHARED_UNIT)
        .unwrap_or(u32::MAX);
    let by_shared = profile.shared_per_sm / shared.max(1);
    profile.max_blocks_per_sm.min(by_warps).min(by_registers).min(by_shared)
}

/// Copies the values that `kernelParams` points to into the kernel's parameter image.
///
/// # Safety
/// The list has one entry for each parameter, and each points to a value of the parameter's size.
unsafe fn gather(function: &EntryPoint, list: *const *const c_void) -> Result<Vec<u8>> {
    let mut image = vec![0; function.param_bytes()];
    for (index, parameter) in function.params().iter().enumerate() {
        // SAFETY: the list has an entry for each parameter, as the caller promises.
        let value = unsafe { *list.add(index) };
        if value.is_null() {
            let name = function.name();
            let reason = format!("the pointer to parameter {index} of `{name}` is null");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        // SAFETY: it points to a value of this size, as the caller promises.
        let value = unsafe { slice::from_raw_parts(value.cast::<u8>(), parameter.size) };
        image[parameter.offset..parameter.offset + parameter.size].copy_from_slice(value);
    }
    Ok(image)
}

/// Takes the parameter image from the buffer that the `extra` list names.
///
/// # Safety
/// The list ends with its mark, and the buffer has the size that the list says.
unsafe fn unpack(function: &EntryPoint, mut list: *const *const c_void) -> Result<Vec<u8>> {
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), None);
    loop {
        // SAFETY: marks and values alternate until the end mark, as the caller promises.
        match unsafe { *list } as usize {
            EXTRA_END => break,
            // SAFETY: as above.
            EXTRA_BUFFER => buffer = unsafe { *list.add(1) }.cast(),
            EXTRA_BUFFER_SIZE => {
                // SAFETY: as above; the value is the address of a size.
                size = Some(unsafe { read((*list.add(1)).cast::<usize>()) }?);
            }
            mark => {
                let reason = format!("{mark} is not a mark of the extra list of a launch");
                return Err(Status::INVALID_VALUE.because(reason));
            }
        }
        // SAFETY: the mark was not the last, so a pair lies behind it.
        list = unsafe { list.add(2) };
    }
    let expected = function.param_bytes();
    match size {
        Some(given) if given == expected && !buffer.is_null() => {
            // SAFETY: the buffer has this size, as the caller promises.
            Ok(unsafe { slice::from_raw_parts(buffer, given) }.to_vec())
        }
        given => {
            let given = given.unwrap_or(0);
            Err(refused(&InvalidLaunch::Params { given, expected }))
        }
    }
}

impl Driver {
    /// Checks a launch, copies its parameters and gives it to a stream.
    ///
    /// # Safety
    /// The parameter lists are as `cuLaunchKernel` takes them.
    unsafe fn launch(
        &mut self,
        context: u64,
        stream: u64,
        handle: u64,
        shape: Shape,
        lists: (*const *const c_void, *const *const c_void),
    ) -> Result {
        let entry = self.function(handle)?;
        if entry.context != context {
            let reason = "the function belongs to a context that is not current";
            return Err(Status::INVALID_CONTEXT.because(reason));
        }
        let function = Arc::clone(&entry.function);
        let dynamic_shared_limit = entry.dynamic_shared_limit;
        check(&function, &shape, dynamic_shared_limit, &self.platform()?.profile)?;
        let (values, extra) = lists;
        let parameters = match (values.is_null(), extra.is_null()) {
            // SAFETY: the caller's promise.
            (false, true) => unsafe { gather(&function, values) }?,
            // SAFETY: the caller's promise.
            (true, false) => unsafe { unpack(&function, extra) }?,
            (true, true) if function.params().is_empty() => Vec::new(),
            (true, true) => {
                let expected = function.param_bytes();
                return Err(refused(&InvalidLaunch::Params { given: 0, expected }));
            }
            (false, false) => {
                let reason = "a launch takes kernelParams or extra, not both";
                return Err(Status::INVALID_VALUE.because(reason));
            }
        };
        let stream = self.stream(context, stream)?;
        let launch = KernelLaunch { function, shape, dynamic_shared_limit, parameters };
        self.submit(stream, Operation::Launch(Arc::new(launch)))?;
        let captured = self.streams.get(stream).is_some_and(|entry| entry.capture.is_some());
        if self.platform()?.launch_blocking && !captured {
            return self.finish_stream(context, stream);
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared: u32,
    stream: u64,
    values: *const *const c_void,
    extra: *const *const c_void,
) -> Status {
    in_context("cuLaunchKernel", |driver, context| {
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        let shape = Shape { grid, block, dynamic_shared, cooperative: false };
        // SAFETY: the lists are as the driver API asks for.
        unsafe { driver.launch(context, stream, function, shape, (values, extra)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared: u32,
    stream: u64,
    values: *const *const c_void,
) -> Status {
    in_context("cuLaunchCooperativeKernel", |driver, context| {
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        let shape = Shape { grid, block, dynamic_shared, cooperative: true };
        // SAFETY: the list is as the driver API asks for.
        unsafe { driver.launch(context, stream, function, shape, (values, std::ptr::null())) }
    })
}

/// One attribute of a launch: `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    id: u32,
    padding: u32,
    value: [u64; 8],
}

/// The configuration of a launch: `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfiguration {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: u64,
    attributes: *const LaunchAttribute,
    attribute_count: u32,
}

impl LaunchConfiguration {
    /// The sizes, with what the attributes say.
    ///
    /// # Safety
    /// The attribute list has as many entries as the count says.
    pub(super) unsafe fn shape(&self) -> Result<Shape> {
        let Self { grid, block, dynamic_shared, .. } = *self;
        let mut shape = Shape { grid, block, dynamic_shared, cooperative: false };
        if self.attribute_count > 0 && self.attributes.is_null() {
            return Err(Status::INVALID_VALUE.because("launch attributes without a list"));
        }
        for index in 0..self.attribute_count as usize {
            // SAFETY: within the list, as the caller promises.
            let attribute = unsafe { *self.attributes.add(index) };
            match attribute.id {
                ATTRIBUTE_COOPERATIVE => shape.cooperative = attribute.value[0] as c_int != 0,
                ATTRIBUTE_CLUSTER => {
                    let x = attribute.value[0] as u32;
                    let y = (attribute.value[0] >> 32) as u32;
                    let z = attribute.value[1] as u32;
                    if [x, y, z] != [1; 3] {
                        let reason = format!("a cluster of ({x}, {y}, {z}) blocks; only of one");
                        return Err(Status::NOT_SUPPORTED.because(reason));
                    }
                }
                // They change when a kernel runs or how caches behave: not what it computes.
                // Programmatic serialisation lets a kernel start early; that it starts late is
                // one of the orders it allows.
                ATTRIBUTE_IGNORE
                | ATTRIBUTE_ACCESS_POLICY
                | ATTRIBUTE_SYNC_POLICY
                | ATTRIBUTE_CLUSTER_POLICY
                | ATTRIBUTE_PROGRAMMATIC_SERIALIZATION
                | ATTRIBUTE_PRIORITY
                | ATTRIBUTE_SHARED_CARVEOUT => {}
                id => {
                    let reason = format!("launch attribute {id} is not supported");
                    return Err(Status::NOT_SUPPORTED.because(reason));
                }
            }
        }
        Ok(shape)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    configuration: *const LaunchConfiguration,
    function: u64,
    values: *const *const c_void,
    extra: *const *const c_void,
) -> Status {
    in_context("cuLaunchKernelEx", |driver, context| {
        // SAFETY: null or readable, with its list, by the convention of the driver API.
        let (stream, shape) = unsafe {
            let configuration = read(configuration)?;
            (configuration.stream, configuration.shape()?)
        };
        // SAFETY: the lists are as the driver API asks for.
        unsafe { driver.launch(context, stream, function, shape, (values, extra)) }
    })
}
