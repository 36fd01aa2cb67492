#![doc = include_str!("../README.md")]

mod cache;
mod kernels;
mod library;
mod params;
mod places;
pub mod ptx;
mod sources;

pub use cache::{Cache, ENV_CACHE};
pub use kernels::{DTYPES, Image, KernelFolder};
pub use library::{Nvrtc, NvrtcError, Source};
pub use params::{Mirror, ParamsError};
pub use places::{ENV_LIBRARY, WHEEL_FOLDERS, fetched_folders, user_cache};
pub use sources::sources;
