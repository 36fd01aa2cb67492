//! A fault on the device comes back as an error that names the op. Alone in its process, since it
//! leaves the context unusable.

use fused_dora::cudarc::driver::{DriverError, sys};
use fused_dora::{DoraSpec, Dtype, Error, Kernels, Norm, NormGrad, Result, Scaling, raw};
use fused_dora_testkit::device::{Choice, open_choice};

/// Prepares a layer whose W is not there.
fn prepare(kernels: &Kernels) -> Result<()> {
    let stream = kernels.context().default_stream();
    let (scaling, detached) = (Scaling::Value(1.0), NormGrad::Detached);
    let spec = DoraSpec::new(8, 8, 2, scaling, Norm::Output, detached, Dtype::F32)?;
    // Addresses below 2^20 are of no allocation.
    let nowhere = 4096;
    let prepared = raw::Prepared {
        norm: nowhere,
        gain: nowhere,
        a: nowhere,
        sb: nowhere,
        gsb: nowhere,
        bias: 0,
    };
    let size = raw::WorkspaceSize::new(kernels, &[spec], 1)?;
    let workspace = raw::Workspace { pointer: nowhere, size };
    let inputs = raw::Prepare {
        weight: nowhere,
        lora_a: nowhere,
        lora_b: nowhere,
        magnitude: nowhere,
        magnitude_out: 0,
        bias: 0,
    };
    // SAFETY: it is not, which is what the device has to notice: the emulated one checks addresses.
    unsafe { kernels.prepare_raw(&stream, &spec, &workspace, &prepared, &inputs) }
}

#[test]
fn a_fault_names_the_op() {
    // SAFETY: this is the only test of its process, and nothing else runs yet.
    unsafe { std::env::set_var("CUDA_LAUNCH_BLOCKING", "1") };
    let device = open_choice(Some(Choice::Emulated)).expect("the emulated device");
    let kernels = Kernels::load(&device.context).expect("kernels");
    let illegal = sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    // The second launch finds the context in the state that the first left.
    for _ in 0..2 {
        match prepare(&kernels) {
            Err(error @ Error::Driver { source: DriverError(code), .. }) => {
                assert_eq!(code, illegal);
                assert!(error.to_string().starts_with("prepare: "), "{error}");
            }
            other => panic!("a driver's error, not {other:?}"),
        }
    }
}
