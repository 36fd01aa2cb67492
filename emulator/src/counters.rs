//! What a device counts: calls from the host, and the work of its kernels.

use std::ops::{AddAssign, Index, Sub};

/// What a warp instruction does, as a profiler would sort it.
///
/// Instructions are those of the PTX text. A compiler for a device merges some, drops moves, and
/// adds others.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstructionClass {
    /// Matrix multiply-accumulate.
    Tensor,
    /// Floating-point arithmetic: sums, products, fused multiply-adds, minima, signs.
    Float,
    /// Integer and bit arithmetic.
    Integer,
    /// Conversions between types.
    Conversion,
    /// Special functions and what is made of them: reciprocals, roots, exponentials, divisions.
    Special,
    /// Branches, exits, calls, and hints for caches.
    Control,
    /// Moves, selections, comparisons and logic on predicates.
    Move,
    /// Loads of parameters and of constant memory.
    Constant,
    /// Loads from shared memory.
    SharedLoad,
    /// Stores to shared memory.
    SharedStore,
    /// Loads of matrix fragments from shared memory.
    LoadMatrix,
    /// Loads from global memory, and generic ones.
    GlobalLoad,
    /// Stores to global memory, and generic ones.
    GlobalStore,
    /// Asynchronous copies from global to shared memory, and the waits for them.
    AsyncCopy,
    /// Loads from and stores to the thread's own memory, where spilled registers would be.
    Local,
    /// Atomic operations.
    Atomic,
    /// Barriers of the block, and fences.
    Barrier,
    /// Shuffles, votes, matches and reductions of a warp, and its barriers.
    Collective,
}

impl InstructionClass {
    /// How many classes there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 18] = [
        Self::Tensor,
        Self::Float,
        Self::Integer,
        Self::Conversion,
        Self::Special,
        Self::Control,
        Self::Move,
        Self::Constant,
        Self::SharedLoad,
        Self::SharedStore,
        Self::LoadMatrix,
        Self::GlobalLoad,
        Self::GlobalStore,
        Self::AsyncCopy,
        Self::Local,
        Self::Atomic,
        Self::Barrier,
        Self::Collective,
    ];

    /// A short name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tensor => "mma",
            Self::Float => "float",
            Self::Integer => "integer",
            Self::Conversion => "conversion",
            Self::Special => "special function",
            Self::Control => "control",
            Self::Move => "move/predicate",
            Self::Constant => "parameter/constant",
            Self::SharedLoad => "shared load",
            Self::SharedStore => "shared store",
            Self::LoadMatrix => "ldmatrix",
            Self::GlobalLoad => "global load",
            Self::GlobalStore => "global store",
            Self::AsyncCopy => "cp.async",
            Self::Local => "local",
            Self::Atomic => "atomic",
            Self::Barrier => "barrier/fence",
            Self::Collective => "shuffle/vote",
        }
    }
}

/// One count for each class of instructions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByClass([u64; InstructionClass::COUNT]);

impl ByClass {
    /// Counts `times` more instructions of a class.
    pub(crate) fn add(&mut self, class: InstructionClass, times: u64) {
        self.0[class as usize] += times;
    }

    /// Instructions of all classes.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The classes with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (InstructionClass, u64)> + '_ {
        InstructionClass::ALL.into_iter().zip(self.0)
    }
}

impl Index<InstructionClass> for ByClass {
    type Output = u64;

    fn index(&self, class: InstructionClass) -> &u64 {
        &self.0[class as usize]
    }
}

impl AddAssign for ByClass {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }
}

impl Sub for ByClass {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|class| self.0[class] - other.0[class]))
    }
}

/// The structure of counters, and sums and differences of all of its fields.
macro_rules! counters {
    ($(#[$about:meta])* $structure:ident { $($(#[$doc:meta])* $name:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $structure {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl AddAssign for $structure {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        /// What was counted between two moments.
        impl Sub for $structure {
            type Output = Self;

            fn sub(self, other: Self) -> Self {
                Self { $($name: self.$name - other.$name,)* }
            }
        }
    };
}

counters! {
    /// Counts since the device was made. Instructions and requests are counted per warp.
    ///
    /// Those from `by_class` on take time to count: they are zero unless
    /// [`Config::measure`](crate::Config::measure) is set.
    Counters {
        /// Kernels launched.
        launches: u64,
        /// Allocations made.
        allocations: u64,
        /// Allocations freed.
        frees: u64,
        /// Copies from the host to the device.
        copies_htod: u64,
        /// Copies from the device to the host.
        copies_dtoh: u64,
        /// Copies from the device to the device.
        copies_dtod: u64,
        /// Fills of device memory.
        memsets: u64,
        /// Synchronisations of the host with the device; counted by the driver.
        synchronizations: u64,
        /// Warp instructions executed.
        instructions: u64,
        /// Matrix multiply-accumulate instructions executed.
        mma: u64,
        /// Warp instructions that read or wrote global memory.
        global_requests: u64,
        /// Bytes that lanes read from global memory.
        global_bytes_read: u64,
        /// Bytes that lanes wrote to global memory.
        global_bytes_written: u64,
        /// Warp instructions that read or wrote shared memory.
        shared_requests: u64,
        /// Arrivals of warps at barriers of the block.
        barriers: u64,
        /// Atomic warp instructions.
        atomics: u64,
        /// Measured: warp instructions by what they do; they add up to `instructions`.
        by_class: ByClass,
        /// Measured: requests that read global memory: loads, asynchronous copies and atomics, of
        /// which generic ones count by where their addresses lie. Constant memory is not counted.
        global_loads: u64,
        /// Measured: requests that wrote global memory: stores and atomics.
        global_stores: u64,
        /// Measured: 32-byte sectors of global memory that requests read, once per request: what
        /// the L2 cache delivers where nothing hits the L1 cache.
        sectors_read: u64,
        /// Measured: the fewest sectors that could hold the bytes that each request read.
        least_sectors_read: u64,
        /// Measured: 32-byte sectors of global memory that requests wrote, once per request.
        sectors_written: u64,
        /// Measured: the fewest sectors that could hold the bytes that each request wrote.
        least_sectors_written: u64,
        /// Measured: bytes of global memory that a launch read before it wrote them, once per
        /// launch: what device memory delivers where the L2 cache holds all that was touched.
        dram_bytes_read: u64,
        /// Measured: bytes of global memory that a launch wrote, once per launch, except those that
        /// it discarded from the L2 cache afterwards.
        dram_bytes_written: u64,
        /// Measured: 32-byte sectors that hold bytes of `dram_bytes_read`, once per launch.
        dram_sectors_read: u64,
        /// Measured: 32-byte sectors that hold bytes of `dram_bytes_written`, once per launch.
        dram_sectors_written: u64,
        /// Measured: passes over the banks of shared memory that requests took, those of
        /// asynchronous copies included.
        shared_wavefronts: u64,
        /// Measured: the passes that they would have taken without bank conflicts.
        least_shared_wavefronts: u64,
        /// Measured: requests that read or wrote the threads' own memory.
        local_requests: u64,
    }
}

impl Counters {
    /// Passes over the banks of shared memory that bank conflicts added.
    pub fn bank_conflicts(&self) -> u64 {
        self.shared_wavefronts - self.least_shared_wavefronts
    }
}

/// What one launch did, where [`Config::measure`](crate::Config::measure) is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredLaunch {
    /// The kernel's name.
    pub kernel: String,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Static shared memory of a block in bytes.
    pub static_shared: u32,
    /// Dynamic shared memory of a block in bytes.
    pub dynamic_shared: u32,
    /// What the launch did; nothing but its kernel is in it.
    pub counters: Counters,
}
