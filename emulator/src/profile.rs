//! Device profiles: the limits and capabilities of the devices that can be emulated.
//!
//! Figures are those of NVIDIA's architecture white papers and the CUDA programming guide's table
//! of compute capabilities. Clocks and bus widths are reported to programs that ask, and used for
//! nothing else.

/// What a program can ask about a device, and what launches are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The name that the driver reports.
    pub name: &'static str,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Shared memory that a block may use without asking, in bytes.
    pub shared_per_block: u32,
    /// Shared memory that a block may use after asking for it, in bytes.
    pub shared_per_block_optin: u32,
    /// Shared memory of one multiprocessor, in bytes.
    pub shared_per_sm: u32,
    /// Shared memory that the system takes from every block, in bytes.
    pub shared_reserved_per_block: u32,
    /// 32-bit registers that one block may use.
    pub registers_per_block: u32,
    /// 32-bit registers of one multiprocessor.
    pub registers_per_sm: u32,
    /// Threads of a block.
    pub max_threads_per_block: u32,
    /// Threads resident on one multiprocessor.
    pub max_threads_per_sm: u32,
    /// Blocks resident on one multiprocessor.
    pub max_blocks_per_sm: u32,
    /// Blocks of a grid along x, y and z.
    pub max_grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub max_block: [u32; 3],
    /// Threads of a warp.
    pub warp_size: u32,
    /// Global memory in bytes.
    pub total_memory: u64,
    /// Constant memory in bytes.
    pub total_constant: u32,
    /// L2 cache in bytes.
    pub l2_bytes: u32,
    /// Multiprocessor clock in kHz.
    pub clock_khz: u32,
    /// Memory clock in kHz.
    pub memory_clock_khz: u32,
    /// Width of the memory bus in bits.
    pub memory_bus_bits: u32,
}

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A100-SXM4-40GB (sm_80).
pub const A100: Profile = Profile {
    name: "Emulated A100",
    compute_capability: (8, 0),
    sm_count: 108,
    shared_per_block: 48 * KIB,
    shared_per_block_optin: 163 * KIB,
    shared_per_sm: 164 * KIB,
    shared_reserved_per_block: KIB,
    registers_per_block: 65536,
    registers_per_sm: 65536,
    max_threads_per_block: 1024,
    max_threads_per_sm: 2048,
    max_blocks_per_sm: 32,
    max_grid: [0x7fff_ffff, 65535, 65535],
    max_block: [1024, 1024, 64],
    warp_size: 32,
    total_memory: 40 * GIB,
    total_constant: 64 * KIB,
    l2_bytes: 40 * MIB,
    clock_khz: 1_410_000,
    memory_clock_khz: 1_215_000,
    memory_bus_bits: 5120,
};

/// H100-SXM5-80GB (sm_90).
pub const H100: Profile = Profile {
    name: "Emulated H100",
    compute_capability: (9, 0),
    sm_count: 132,
    shared_per_block_optin: 227 * KIB,
    shared_per_sm: 228 * KIB,
    total_memory: 80 * GIB,
    l2_bytes: 50 * MIB,
    clock_khz: 1_980_000,
    memory_clock_khz: 2_619_000,
    ..A100
};

/// GeForce RTX 4090 (sm_89).
pub const RTX4090: Profile = Profile {
    name: "Emulated RTX 4090",
    compute_capability: (8, 9),
    sm_count: 128,
    shared_per_block_optin: 99 * KIB,
    shared_per_sm: 100 * KIB,
    max_threads_per_sm: 1536,
    max_blocks_per_sm: 24,
    total_memory: 24 * GIB,
    l2_bytes: 72 * MIB,
    clock_khz: 2_520_000,
    memory_clock_khz: 10_501_000,
    memory_bus_bits: 384,
    ..A100
};

/// B200 (sm_100).
pub const B200: Profile = Profile {
    name: "Emulated B200",
    compute_capability: (10, 0),
    sm_count: 148,
    total_memory: 180 * GIB,
    l2_bytes: 126 * MIB,
    clock_khz: 1_965_000,
    memory_clock_khz: 3_906_000,
    memory_bus_bits: 8192,
    ..H100
};

/// B300 (sm_103).
pub const B300: Profile =
    Profile { name: "Emulated B300", compute_capability: (10, 3), total_memory: 270 * GIB, ..B200 };

/// Jetson AGX Thor (sm_110).
pub const THOR: Profile = Profile {
    name: "Emulated Thor",
    compute_capability: (11, 0),
    sm_count: 20,
    max_threads_per_sm: 1536,
    max_blocks_per_sm: 24,
    total_memory: 120 * GIB,
    l2_bytes: 32 * MIB,
    clock_khz: 1_575_000,
    memory_clock_khz: 4_266_000,
    memory_bus_bits: 256,
    ..H100
};

/// GeForce RTX 5090 (sm_120).
pub const RTX5090: Profile = Profile {
    name: "Emulated RTX 5090",
    compute_capability: (12, 0),
    sm_count: 170,
    total_memory: 32 * GIB,
    l2_bytes: 96 * MIB,
    clock_khz: 2_407_000,
    memory_clock_khz: 14_001_000,
    memory_bus_bits: 512,
    ..RTX4090
};

/// GB10, the GPU of DGX Spark (sm_121).
pub const GB10: Profile = Profile {
    name: "Emulated GB10",
    compute_capability: (12, 1),
    sm_count: 48,
    total_memory: 120 * GIB,
    l2_bytes: 24 * MIB,
    clock_khz: 2_418_000,
    memory_clock_khz: 4_266_000,
    memory_bus_bits: 256,
    ..RTX4090
};

/// Tesla T4 (sm_75): a GPU that is too old for code of sm_80.
pub const T4: Profile = Profile {
    name: "Emulated T4",
    compute_capability: (7, 5),
    sm_count: 40,
    shared_per_block_optin: 64 * KIB,
    shared_per_sm: 64 * KIB,
    shared_reserved_per_block: 0,
    max_threads_per_sm: 1024,
    max_blocks_per_sm: 16,
    total_memory: 16 * GIB,
    l2_bytes: 4 * MIB,
    clock_khz: 1_590_000,
    memory_clock_khz: 5_001_000,
    memory_bus_bits: 256,
    ..A100
};

impl Profile {
    /// The profiles by the names that `CUDA_EMULATOR_PROFILE` takes.
    pub const ALL: [(&'static str, Profile); 9] = [
        ("a100", A100),
        ("h100", H100),
        ("rtx4090", RTX4090),
        ("t4", T4),
        ("b200", B200),
        ("b300", B300),
        ("thor", THOR),
        ("rtx5090", RTX5090),
        ("gb10", GB10),
    ];

    /// The profile of that name, in any case.
    pub fn by_name(name: &str) -> Option<Profile> {
        Self::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|entry| entry.1)
    }
}

/// The profile of that name, in any case: one of [`Profile::ALL`].
pub fn by_name(name: &str) -> Option<Profile> {
    Profile::by_name(name)
}
