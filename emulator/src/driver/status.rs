//! The result codes of the driver API: `CUresult`, their names and what they mean here.

use std::borrow::Cow;
use std::ffi::{CStr, c_char};
use std::fmt;

use super::entry::{Out, bare};

/// A `CUresult`: what every driver function returns.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Status(u32);

macro_rules! statuses {
    ($($code:literal $name:ident $meaning:literal;)*) => {
        #[allow(missing_docs, reason = "the table below says what each code means")]
        impl Status {
            $(pub const $name: Self = Self($code);)*
        }

        /// Every code with its name and meaning, in ascending order.
        const STATUSES: &[Entry] = &[
            $(Entry {
                code: $code,
                name: c_text(statuses!(@name $name)),
                meaning: c_text(concat!($meaning, "\0")),
            },)*
        ];
    };
    (@name SUCCESS) => { "CUDA_SUCCESS\0" };
    (@name $name:ident) => { concat!("CUDA_ERROR_", stringify!($name), "\0") };
}

/// One line of the table of codes.
struct Entry {
    code: u32,
    name: &'static CStr,
    meaning: &'static CStr,
}

const fn c_text(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("the table's texts end with their only NUL"),
    }
}

statuses! {
    0 SUCCESS "the call succeeded";
    1 INVALID_VALUE "an argument is not one that the function accepts";
    2 OUT_OF_MEMORY "there is not enough device or host memory left";
    3 NOT_INITIALIZED "cuInit was not called, or it failed";
    4 DEINITIALIZED "the driver is shutting down";
    5 PROFILER_DISABLED "the profiler is not attached";
    6 PROFILER_NOT_INITIALIZED "the profiler was not initialised";
    7 PROFILER_ALREADY_STARTED "the profiler runs already";
    8 PROFILER_ALREADY_STOPPED "the profiler is stopped already";
    34 STUB_LIBRARY "the loaded library is a link-time stub and not a driver";
    36 CALL_REQUIRES_NEWER_DRIVER "the call needs a newer driver";
    46 DEVICE_UNAVAILABLE "the device is in use elsewhere";
    47 MULTICAST_RESOURCE_FULL "the multicast resources are used up";
    100 NO_DEVICE "there is no CUDA device";
    101 INVALID_DEVICE "there is no device with this ordinal";
    102 DEVICE_NOT_LICENSED "the device has no licence";
    200 INVALID_IMAGE "the image is not a kernel image";
    201 INVALID_CONTEXT "no usable context is current, or the handle is not a context";
    202 CONTEXT_ALREADY_CURRENT "the context is current already";
    205 MAP_FAILED "the resource could not be mapped";
    206 UNMAP_FAILED "the resource could not be unmapped";
    207 ARRAY_IS_MAPPED "the array is mapped";
    208 ALREADY_MAPPED "the resource is mapped already";
    209 NO_BINARY_FOR_GPU "the image holds no code for this device";
    210 ALREADY_ACQUIRED "the resource was acquired already";
    211 NOT_MAPPED "the resource is not mapped";
    212 NOT_MAPPED_AS_ARRAY "the resource is not mapped as an array";
    213 NOT_MAPPED_AS_POINTER "the resource is not mapped as a pointer";
    214 ECC_UNCORRECTABLE "an uncorrectable memory error occurred";
    215 UNSUPPORTED_LIMIT "the device does not have this limit";
    216 CONTEXT_ALREADY_IN_USE "the context is in use by another thread";
    217 PEER_ACCESS_UNSUPPORTED "these devices cannot access each other";
    218 INVALID_PTX "the PTX text does not compile";
    219 INVALID_GRAPHICS_CONTEXT "the graphics context is not usable";
    220 NVLINK_UNCORRECTABLE "an uncorrectable NVLink error occurred";
    221 JIT_COMPILER_NOT_FOUND "the PTX compiler library is missing";
    222 UNSUPPORTED_PTX_VERSION "the PTX version is newer than this driver understands";
    223 JIT_COMPILATION_DISABLED "compilation of PTX is switched off";
    224 UNSUPPORTED_EXEC_AFFINITY "the device does not support this execution affinity";
    225 UNSUPPORTED_DEVSIDE_SYNC "the code synchronises on the device, which is not supported";
    226 CONTAINED "an error was contained to this context";
    227 INSUFFICIENT_LOADER_VERSION "the image needs a newer loader";
    300 INVALID_SOURCE "the device code source is not valid";
    301 FILE_NOT_FOUND "the file does not exist";
    302 SHARED_OBJECT_SYMBOL_NOT_FOUND "a symbol of a shared object was not found";
    303 SHARED_OBJECT_INIT_FAILED "a shared object failed to initialise";
    304 OPERATING_SYSTEM "a call of the operating system failed";
    400 INVALID_HANDLE "the handle names no live object of this kind";
    401 ILLEGAL_STATE "a needed resource is not in a state that allows the call";
    402 LOSSY_QUERY "the query would lose information";
    500 NOT_FOUND "no symbol, function or attribute has this name";
    600 NOT_READY "the work has not finished";
    700 ILLEGAL_ADDRESS "a kernel or copy accessed memory that it must not";
    701 LAUNCH_OUT_OF_RESOURCES "the launch needs more registers or threads than a block can have";
    702 LAUNCH_TIMEOUT "the kernel made no progress until the watchdog stopped it";
    703 LAUNCH_INCOMPATIBLE_TEXTURING "the kernel uses an incompatible texturing mode";
    704 PEER_ACCESS_ALREADY_ENABLED "peer access is enabled already";
    705 PEER_ACCESS_NOT_ENABLED "peer access was not enabled";
    708 PRIMARY_CONTEXT_ACTIVE "the primary context is in use";
    709 CONTEXT_IS_DESTROYED "the current context was destroyed";
    710 ASSERT "a device-side assertion failed";
    711 TOO_MANY_PEERS "no more peer mappings are possible";
    712 HOST_MEMORY_ALREADY_REGISTERED "the host memory is registered already";
    713 HOST_MEMORY_NOT_REGISTERED "the host memory was not registered";
    714 HARDWARE_STACK_ERROR "a call stack was corrupted or overflowed";
    715 ILLEGAL_INSTRUCTION "a kernel executed an illegal instruction";
    716 MISALIGNED_ADDRESS "a kernel accessed an address that is not aligned";
    717 INVALID_ADDRESS_SPACE "an instruction got an address of the wrong state space";
    718 INVALID_PC "the program counter left the code";
    719 LAUNCH_FAILED "a kernel failed";
    720 COOPERATIVE_LAUNCH_TOO_LARGE "the cooperative grid does not fit the device at once";
    721 TENSOR_MEMORY_LEAK "a kernel ended without freeing its tensor memory";
    800 NOT_PERMITTED "the call is not permitted here";
    801 NOT_SUPPORTED "this device or driver does not support the call";
    802 SYSTEM_NOT_READY "the system is not ready for CUDA work";
    803 SYSTEM_DRIVER_MISMATCH "kernel-mode and user-mode driver versions differ";
    804 COMPAT_NOT_SUPPORTED_ON_DEVICE "forward compatibility is not supported on this device";
    805 MPS_CONNECTION_FAILED "the MPS server cannot be reached";
    806 MPS_RPC_FAILURE "a call of the MPS server failed";
    807 MPS_SERVER_NOT_READY "the MPS server is not ready";
    808 MPS_MAX_CLIENTS_REACHED "the MPS server has no client slot left";
    809 MPS_MAX_CONNECTIONS_REACHED "the MPS server has no connection left";
    810 MPS_CLIENT_TERMINATED "the MPS server ended this client";
    811 CDP_NOT_SUPPORTED "launches from the device are not supported";
    812 CDP_VERSION_MISMATCH "launches from the device need another version";
    900 STREAM_CAPTURE_UNSUPPORTED "the operation cannot be captured";
    901 STREAM_CAPTURE_INVALIDATED "an earlier error invalidated the capture";
    902 STREAM_CAPTURE_MERGE "the call would merge two captures";
    903 STREAM_CAPTURE_UNMATCHED "the capture was not begun in this stream";
    904 STREAM_CAPTURE_UNJOINED "a forked stream was not joined before the capture ended";
    905 STREAM_CAPTURE_ISOLATION "the call would depend on work outside the capture";
    906 STREAM_CAPTURE_IMPLICIT "the legacy stream would wait for a capturing stream";
    907 CAPTURED_EVENT "the event was recorded in a capture and is not complete";
    908 STREAM_CAPTURE_WRONG_THREAD "the capture was begun by another thread";
    909 TIMEOUT "the time allowed has passed";
    910 GRAPH_EXEC_UPDATE_FAILURE "the graph update was refused";
    911 EXTERNAL_DEVICE "an error occurred outside the device";
    912 INVALID_CLUSTER_SIZE "the cluster size does not fit";
    913 FUNCTION_NOT_LOADED "the function is not loaded";
    914 INVALID_RESOURCE_TYPE "the resource has the wrong type";
    915 INVALID_RESOURCE_CONFIGURATION "the resource configuration is not valid";
    916 KEY_ROTATION "a key rotation is under way";
    917 STREAM_DETACHED "the stream was detached from its context";
    918 GRAPH_RECAPTURE_FAILURE "the graph could not be captured again";
    919 FABRIC_NOT_READY "the fabric manager is not ready";
    999 UNKNOWN "an internal error occurred";
}

impl Status {
    /// The number that C programs see.
    pub fn code(self) -> u32 {
        self.0
    }

    /// The status of a number that a C program passed in, if it is one.
    pub fn from_code(code: u32) -> Option<Self> {
        Self(code).entry().map(|_| Self(code))
    }

    fn entry(self) -> Option<&'static Entry> {
        STATUSES.binary_search_by_key(&self.0, |entry| entry.code).ok().map(|at| &STATUSES[at])
    }

    /// The name of the code, for example `CUDA_ERROR_INVALID_VALUE`.
    pub fn name(self) -> &'static str {
        self.entry().and_then(|entry| entry.name.to_str().ok()).unwrap_or("not a CUresult")
    }

    /// What the code means, in a few words.
    pub fn meaning(self) -> &'static str {
        self.entry().and_then(|entry| entry.meaning.to_str().ok()).unwrap_or("not a CUresult")
    }

    /// This status together with what was wrong in this call.
    pub(super) fn because(self, detail: impl Into<Cow<'static, str>>) -> Failure {
        Failure { status: self, detail: Some(detail.into()) }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.name(), self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.name(), self.meaning())
    }
}

impl std::error::Error for Status {}

/// A call that did not succeed: the code that the caller gets, and the reason for a person.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) detail: Option<Cow<'static, str>>,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self { status, detail: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(formatter, "{}: {detail}", self.status.name()),
            None => write!(formatter, "{}: {}", self.status.name(), self.status.meaning()),
        }
    }
}

/// What the functions behind the driver API return.
pub(super) type Result<T = ()> = std::result::Result<T, Failure>;

/// Hands out the address of one of the two texts of a code, or null for an unknown code.
fn hand_out(code: u32, out: Out<*const c_char>, text: fn(&Entry) -> &'static CStr) -> Result {
    let entry = Status(code).entry();
    out.set(entry.map_or(std::ptr::null(), |entry| text(entry).as_ptr()));
    match entry {
        Some(_) => Ok(()),
        None => Err(Status::INVALID_VALUE.because(format!("{code} is not a CUresult"))),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> Status {
    bare("cuGetErrorName", || {
        // SAFETY: `name` is null or writable, by the convention of the driver API.
        let name = unsafe { Out::new(name) }?;
        hand_out(error, name, |entry| entry.name)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, meaning: *mut *const c_char) -> Status {
    bare("cuGetErrorString", || {
        // SAFETY: `meaning` is null or writable, by the convention of the driver API.
        let meaning = unsafe { Out::new(meaning) }?;
        hand_out(error, meaning, |entry| entry.meaning)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_agree() {
        assert_eq!(Status::SUCCESS.name(), "CUDA_SUCCESS");
        assert_eq!(Status::ILLEGAL_ADDRESS.code(), 700);
        assert_eq!(Status::ILLEGAL_ADDRESS.name(), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(Status::from_code(12345), None);
    }

    #[test]
    fn codes_ascend() {
        assert!(STATUSES.windows(2).all(|pair| pair[0].code < pair[1].code));
    }
}
