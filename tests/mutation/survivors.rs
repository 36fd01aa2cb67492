//! Mutants that cannot be told from the kernels as they stand, each with the reason.

use super::table::Survivor;

/// All of them; the test fails where one is found after all, or no longer exists.
pub const SURVIVORS: &[Survivor] = &[];
