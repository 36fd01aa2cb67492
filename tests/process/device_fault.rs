//! A fault on the device comes back as an error that names the op. Alone in its process, since it
//! leaves the context unusable.

use fused_dora::cudarc::driver::{DriverError, sys};
use fused_dora::{
    DoraSpec, Dtype, ElementType, Error, Kernels, Layer, Norm, NormGrad, Prepare, Read, Result,
    Scaling, Workspace,
};
use fused_dora_testkit::device::{Choice, open_choice};

/// Prepares a layer whose W is not there.
fn prepare(kernels: &Kernels, layer: &mut Layer, workspace: &mut Workspace) -> Result<()> {
    // Addresses below 2^20 are of no allocation.
    let nowhere = || {
        // SAFETY: it is not, which is what the device has to notice: the emulated one checks
        // addresses.
        unsafe { Read::from_address(4096, ElementType::F32) }
    };
    let inputs = Prepare {
        weight: nowhere().into(),
        lora_a: nowhere(),
        lora_b: nowhere(),
        magnitude: Some(nowhere()).into(),
        bias: None,
    };
    layer.prepare(kernels, &kernels.context().default_stream(), workspace, inputs)
}

#[test]
fn a_fault_names_the_op() {
    // SAFETY: this is the only test of its process, and nothing else runs yet.
    unsafe { std::env::set_var("CUDA_LAUNCH_BLOCKING", "1") };
    let device = open_choice(Some(Choice::Emulated)).expect("the emulated device");
    let kernels = Kernels::load(&device.context).expect("kernels");
    let stream = kernels.context().default_stream();
    let (scaling, detached) = (Scaling::Value(1.0), NormGrad::Detached);
    let spec = DoraSpec::new(8, 8, 2, scaling, Norm::Output, detached, Dtype::F32);
    let spec = spec.expect("a layer");
    let mut layer = Layer::new(&stream, &spec).expect("memory");
    let mut workspace = Workspace::new(&kernels, &stream, &[spec], 1).expect("memory");
    let illegal = sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    // The second launch finds the context in the state that the first left.
    for _ in 0..2 {
        match prepare(&kernels, &mut layer, &mut workspace) {
            Err(error @ Error::Driver { source: DriverError(code), .. }) => {
                assert_eq!(code, illegal);
                assert!(error.to_string().starts_with("prepare: "), "{error}");
            }
            other => panic!("a driver's error, not {other:?}"),
        }
    }
}
