//! What the API accepts and refuses, what its guides say, and the files that it reads and writes.

mod case_files;
#[cfg(feature = "dlpack")]
mod dlpack;
mod docs;
mod errors;
mod misuse;
#[cfg(all(feature = "dlpack", feature = "ffi", feature = "peft"))]
mod peft;
mod raw;
mod reference;
