//! What the API accepts and refuses, what its guides say, and the files that it reads and writes.

mod address;
mod case_files;
#[cfg(feature = "dlpack")]
mod dlpack;
mod docs;
mod errors;
mod misuse;
#[cfg(feature = "peft")]
mod peft;
mod quant;
mod reference;
mod tensors;
