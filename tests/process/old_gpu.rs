//! A GPU that is too old is refused by its numbers. Alone in its process, whose emulated device it
//! chooses.

use fused_dora::{Error, Kernels};
use fused_dora_testkit::device::{Choice, open_choice};

#[test]
fn a_gpu_before_ampere_is_refused() {
    // SAFETY: this is the only test of its process, and nothing else runs yet.
    unsafe { std::env::set_var("CUDA_EMULATOR_PROFILE", "t4") };
    let device = open_choice(Some(Choice::Emulated)).expect("the emulated device");
    match Kernels::load(&device.context) {
        Err(error @ Error::UnsupportedArchitecture { found: (7, 5), needed: (8, 0) }) => {
            assert!(error.to_string().contains("7.5"), "{error}");
        }
        other => panic!("UnsupportedArchitecture, not {:?}", other.map(|_| "kernels")),
    }
}
