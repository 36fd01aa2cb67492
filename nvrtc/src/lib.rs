#![doc = include_str!("../README.md")]

mod library;
mod places;
mod sources;

pub use library::{Nvrtc, NvrtcError, Source};
pub use places::{ENV_LIBRARY, WHEEL_FOLDERS, fetched_folders, user_cache};
pub use sources::sources;
