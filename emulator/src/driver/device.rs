//! The devices, which are all alike: their names, memory and attributes.

use std::ffi::{c_char, c_int};

use crate::Profile;

use super::copy_2d::MAX_PITCH;
use super::entry::{Out, initialised, write_text};
use super::state::{Driver, Platform};
use super::status::{Result, Status};

impl Driver {
    /// The ordinal of a device that exists.
    pub(super) fn device(&self, device: c_int) -> Result<usize> {
        let count = self.primaries.len();
        usize::try_from(device).ok().filter(|&ordinal| ordinal < count).ok_or_else(|| {
            let reason = format!("there are {count} device(s), from 0, and not number {device}");
            Status::INVALID_DEVICE.because(reason)
        })
    }
}

/// The value of a `CU_DEVICE_ATTRIBUTE_*`, for all that a profile can answer. What the emulated
/// device does not do is answered with no, so that programs take another way.
fn attribute(platform: &Platform, attribute: c_int) -> Option<i64> {
    let profile = &platform.profile;
    let (major, minor) = profile.compute_capability;
    let value = match attribute {
        1 => profile.max_threads_per_block.into(),
        2..=4 => profile.max_block[attribute as usize - 2].into(),
        5..=7 => profile.max_grid[attribute as usize - 5].into(),
        8 => profile.shared_per_block.into(),
        9 => profile.total_constant.into(),
        10 => profile.warp_size.into(),
        12 => profile.registers_per_block.into(),
        13 => profile.clock_khz.into(),
        16 => profile.sm_count.into(),
        36 => profile.memory_clock_khz.into(),
        37 => profile.memory_bus_bits.into(),
        38 => profile.l2_bytes.into(),
        39 => profile.max_threads_per_sm.into(),
        75 => major.into(),
        76 => minor.into(),
        81 => profile.shared_per_sm.into(),
        82 => profile.registers_per_sm.into(),
        97 | 150 => profile.shared_per_block_optin.into(),
        106 => profile.max_blocks_per_sm.into(),
        111 => profile.shared_reserved_per_block.into(),
        115 => platform.memory_pools.into(),
        // The pitch of a copy, and the alignment of textures, of surfaces and of texture rows.
        11 => MAX_PITCH as i64,
        14 | 30 => 512,
        51 => 32,
        // Copy engines.
        40 => 2,
        // How much faster f32 is than f64: consumer chips of this generation have few f64 units.
        87 => match (major, minor) {
            (8, 1..) | (10, 3) | (11.., _) => 64,
            _ => 2,
        },
        // Yes: copies and kernels while kernels run, unified addressing, stream priorities, L1
        // caches, preemption, cooperative launches, registration of host memory.
        15 | 31 | 41 | 78..=80 | 90 | 95 | 99 => 1,
        // No: textures, mapped and managed memory, memory operations in streams, virtual memory
        // management, sharing between processes and devices, clusters, and all that came later.
        17..=161 => 0,
        _ => return None,
    };
    Some(value)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    initialised("cuDeviceGet", |driver| {
        // SAFETY: `device` is null or writable, by the convention of the driver API.
        let device = unsafe { Out::new(device) }?;
        driver.device(ordinal)?;
        device.set(ordinal);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    initialised("cuDeviceGetCount", |driver| {
        // SAFETY: `count` is null or writable, by the convention of the driver API.
        let count = unsafe { Out::new(count) }?;
        count.set(driver.primaries.len() as c_int);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, size: c_int, device: c_int) -> Status {
    initialised("cuDeviceGetName", |driver| {
        driver.device(device)?;
        if name.is_null() || size <= 0 {
            return Err(Status::INVALID_VALUE.because("the name needs a buffer"));
        }
        let text = format!("{} (CUDA on CPU)", driver.platform()?.profile.name);
        // SAFETY: the buffer has `size` bytes, by the convention of the driver API.
        unsafe { write_text(&text, name, size as usize) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> Status {
    initialised("cuDeviceTotalMem_v2", |driver| {
        // SAFETY: `bytes` is null or writable, by the convention of the driver API.
        let bytes = unsafe { Out::new(bytes) }?;
        driver.device(device)?;
        bytes.set(driver.platform()?.profile.total_memory as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    which: c_int,
    device: c_int,
) -> Status {
    initialised("cuDeviceGetAttribute", |driver| {
        // SAFETY: `value` is null or writable, by the convention of the driver API.
        let value = unsafe { Out::new(value) }?;
        driver.device(device)?;
        let known = attribute(driver.platform()?, which).ok_or_else(|| {
            Status::INVALID_VALUE.because(format!("{which} is not a device attribute"))
        })?;
        value.set(c_int::try_from(known).unwrap_or(c_int::MAX));
        Ok(())
    })
}

/// An identifier made of the profile's name and the ordinal: the same in every process.
fn uuid(profile: &Profile, ordinal: usize) -> [u8; 16] {
    let mut bytes = *b"cuda-emulator---";
    let name = profile.name.as_bytes();
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte ^= name[index % name.len()];
    }
    bytes[15] ^= ordinal as u8;
    bytes
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(identifier: *mut [u8; 16], device: c_int) -> Status {
    initialised("cuDeviceGetUuid", |driver| {
        // SAFETY: `identifier` is null or writable, by the convention of the driver API.
        let identifier = unsafe { Out::new(identifier) }?;
        let ordinal = driver.device(device)?;
        identifier.set(uuid(&driver.platform()?.profile, ordinal));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(identifier: *mut [u8; 16], device: c_int) -> Status {
    // SAFETY: passed on from the caller.
    unsafe { cuDeviceGetUuid(identifier, device) }
}

/// The emulated devices sit on no bus: addresses like that of a host bridge.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(
    name: *mut c_char,
    size: c_int,
    device: c_int,
) -> Status {
    initialised("cuDeviceGetPCIBusId", |driver| {
        let ordinal = driver.device(device)?;
        if name.is_null() || size <= 0 {
            return Err(Status::INVALID_VALUE.because("the address needs a buffer"));
        }
        // SAFETY: the buffer has `size` bytes, by the convention of the driver API.
        unsafe { write_text(&format!("0000:00:{ordinal:02x}.0"), name, size as usize) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceComputeCapability(
    major: *mut c_int,
    minor: *mut c_int,
    device: c_int,
) -> Status {
    initialised("cuDeviceComputeCapability", |driver| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (major, minor) = unsafe { (Out::new(major)?, Out::new(minor)?) };
        driver.device(device)?;
        let capability = driver.platform()?.profile.compute_capability;
        major.set(capability.0 as c_int);
        minor.set(capability.1 as c_int);
        Ok(())
    })
}

/// No device reaches into another's memory; `cuMemcpyPeer` copies between them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(
    can: *mut c_int,
    device: c_int,
    peer: c_int,
) -> Status {
    initialised("cuDeviceCanAccessPeer", |driver| {
        // SAFETY: `can` is null or writable, by the convention of the driver API.
        let can = unsafe { Out::new(can) }?;
        driver.device(device)?;
        driver.device(peer)?;
        can.set(0);
        Ok(())
    })
}
