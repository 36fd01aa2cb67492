//! DLPack tensors as arguments of an op: what the descriptor may say, and what is refused.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fused_dora::cudarc::driver::{CudaSlice, DevicePtr};
use fused_dora::dlpack::dlpark::ffi::{
    DLDataType, DLDevice, DLManagedTensorVersioned, DLPackVersion, DLTensor,
};
use fused_dora::dlpack::dlpark::{DlpackFlags, tensor, versioned};
use fused_dora::dlpack::{DlpackError, dense, matrix};
use fused_dora::{
    Base, DoraSpec, Dtype, ElementType, Error, Forward, Kernels, Layer, Norm, NormGrad, Prepare,
    Read, Scaling, Workspace, Write,
};

/// A tensor as a framework exports it.
#[derive(Clone)]
struct Tensor<'a> {
    device: DLDevice,
    dtype: DLDataType,
    data: u64,
    byte_offset: u64,
    shape: &'a [i64],
    strides: &'a [i64],
    flags: DlpackFlags,
}

/// What the framework keeps until the tensor's deleter is called.
struct Kept {
    shape: Vec<i64>,
    strides: Vec<i64>,
    deleted: Arc<AtomicBool>,
}

unsafe extern "C" fn delete(tensor: *mut DLManagedTensorVersioned) {
    // SAFETY: `export` made both boxes, and a deleter is called once.
    let kept = unsafe { Box::from_raw(Box::from_raw(tensor).manager_ctx.cast::<Kept>()) };
    kept.deleted.store(true, Ordering::Relaxed);
}

impl<'a> Tensor<'a> {
    fn new(data: u64, shape: &'a [i64], strides: &'a [i64]) -> Self {
        Self {
            device: DLDevice::cuda(0),
            dtype: DLDataType::F32,
            data,
            byte_offset: 0,
            shape,
            strides,
            flags: DlpackFlags::empty(),
        }
    }

    fn export(&self) -> (versioned::Dlpack, Arc<AtomicBool>) {
        let deleted = Arc::new(AtomicBool::new(false));
        let (shape, strides) = (self.shape.to_vec(), self.strides.to_vec());
        let mut kept = Box::new(Kept { shape, strides, deleted: deleted.clone() });
        let dl_tensor = DLTensor {
            data: std::ptr::without_provenance_mut::<c_void>(self.data as usize),
            device: self.device,
            ndim: kept.shape.len() as i32,
            dtype: self.dtype,
            shape: kept.shape.as_mut_ptr(),
            strides: kept.strides.as_mut_ptr(),
            byte_offset: self.byte_offset,
        };
        let managed = Box::into_raw(Box::new(DLManagedTensorVersioned {
            version: DLPackVersion { major: 1, minor: 1 },
            manager_ctx: Box::into_raw(kept).cast::<c_void>(),
            deleter: Some(delete),
            flags: self.flags,
            dl_tensor,
        }));
        // SAFETY: the tensor is initialised, and what it points to lives until its deleter runs.
        let imported = unsafe { versioned::Dlpack::from_raw(managed) }.expect("a version it knows");
        (imported, deleted)
    }
}

fn kernels() -> Kernels {
    Kernels::load(&fused_dora_testkit::device::open().expect("a device")).expect("kernels")
}

fn upload(kernels: &Kernels, values: &[f32]) -> (CudaSlice<f32>, u64) {
    let stream = kernels.context().default_stream();
    let slice = stream.clone_htod(values).expect("memory");
    let address = slice.device_ptr(&stream).0;
    (slice, address)
}

/// A and B of rank 0.
fn nothing() -> Read<'static> {
    // SAFETY: the tensor is empty.
    unsafe { Read::from_address(0, ElementType::F32) }
}

/// y = x·Wᵀ of a `[batch, sequence, features]` slice of a wider tensor.
#[test]
fn a_strided_batch_goes_through_a_layer() {
    let kernels = kernels();
    let stream = kernels.context().default_stream();
    let (inputs, outputs, tokens) = (4, 3, 6);
    let scaling = Scaling::Value(1.0);
    let spec =
        DoraSpec::new(inputs, outputs, 0, scaling, Norm::None, NormGrad::Detached, Dtype::F32)
            .expect("a layer");
    // Rows of 10; the layer takes elements 3 to 6 of each.
    let values: Vec<f32> = (0..60).map(|at| (at as f32).sin()).collect();
    let weights: Vec<f32> = (0..12).map(|at| (at as f32).cos()).collect();
    let (_x, x) = upload(&kernels, &values);
    let (_weight, weight) = upload(&kernels, &weights);
    let (y_memory, y) = upload(&kernels, &[f32::NAN; 18]);
    let x = Tensor { byte_offset: 12, ..Tensor::new(x, &[2, 3, 4], &[30, 10, 1]) };
    let (x, x_deleted) = x.export();
    let (weight, _) = Tensor::new(weight, &[3, 4], &[4, 1]).export();
    let (mut y, _) = Tensor::new(y, &[2, 3, 3], &[9, 3, 1]).export();

    let descriptor = x.validate().expect("a descriptor");
    let rows =
        matrix("x", &descriptor, kernels.context(), Dtype::F32, [tokens, inputs]).expect("x");
    let weight = weight.validate().expect("a descriptor");
    let weight =
        dense("weight", &weight, kernels.context(), Dtype::F32, &[outputs, inputs]).expect("W");
    let written = y.validate_mut().expect("a descriptor");
    let written =
        matrix("y", &written, kernels.context(), Dtype::F32, [tokens, outputs]).expect("y");
    let mut workspace = Workspace::new(&kernels, &stream, &[spec], tokens).expect("memory");
    let mut layer = Layer::new(&stream, &spec).expect("memory");
    // SAFETY: the tensors have the layer's shapes, and live until the stream is read.
    let (rows, weight, written) = unsafe { (rows.read(), weight.read(), written.write()) };
    let io = Prepare {
        weight: weight.clone().into(),
        lora_a: nothing(),
        lora_b: nothing(),
        magnitude: None::<Read<'_>>.into(),
        bias: None,
    };
    layer.prepare(&kernels, &stream, &mut workspace, io).expect("nothing to prepare");
    let io = Forward {
        tokens,
        base: Base::new(weight),
        x: rows,
        y: written,
        // SAFETY: H of rank 0 is empty.
        h: unsafe { Write::from_address(0, ElementType::F32) },
        z: None,
        dropout: None,
        counter: None,
        seed: 0,
    };
    layer.forward(&kernels, &stream, &mut workspace, io).expect("y");
    let found = stream.clone_dtoh(&y_memory).expect("a copy");
    for (at, found) in found.iter().enumerate() {
        let (row, col) = (at / outputs, at % outputs);
        let term = |i: usize| values[10 * row + 3 + i] * weights[inputs * col + i];
        let expected: f32 = (0..inputs).map(term).sum();
        assert!((found - expected).abs() < 1e-5, "{at}: {found} {expected}");
    }
    assert!(!x_deleted.load(Ordering::Relaxed));
    drop(x);
    assert!(x_deleted.load(Ordering::Relaxed));
}

#[test]
fn what_is_refused() {
    let kernels = kernels();
    let (_memory, data) = upload(&kernels, &[0.0; 64]);
    let good = Tensor::new(data, &[4, 6], &[6, 1]);
    let as_matrix = |tensor: Tensor<'_>| {
        let (tensor, _) = tensor.export();
        matrix("x", &tensor.validate()?, kernels.context(), Dtype::F32, [4, 6])
    };
    let refused = |tensor| as_matrix(tensor).expect_err("a mistake");
    let accepted = |tensor| as_matrix(tensor).expect("a matrix");
    let wide = Tensor { strides: &[16, 1], ..good.clone() };
    assert_ne!(accepted(wide.clone()), accepted(good.clone()));
    // Two batches of two rows, of the same rows.
    let batches = Tensor { shape: &[2, 2, 6], strides: &[32, 16, 1], ..good.clone() };
    assert_eq!(accepted(batches), accepted(wide));
    // The offset may be a part of the address.
    let offset = Tensor { byte_offset: 4, ..good.clone() };
    let moved = Tensor { data: data + 4, ..good.clone() };
    assert_eq!(accepted(offset.clone()), accepted(moved));
    assert_ne!(accepted(offset), accepted(good.clone()));

    for device in [DLDevice::CPU, DLDevice::cuda(1), DLDevice::cuda(-1)] {
        let error = refused(Tensor { device, ..good.clone() });
        assert!(matches!(error, DlpackError::Device { ordinal: 0, .. }), "{error:?}");
    }
    let error = refused(Tensor { dtype: DLDataType::F64, ..good.clone() });
    assert_eq!(error.to_string(), "x holds float64, but f32 is needed: convert it");
    let vectors = DLDataType { lanes: 2, ..DLDataType::F32 };
    let error = refused(Tensor { dtype: vectors, ..good.clone() });
    assert_eq!(error.to_string(), "x holds float32x2, but f32 is needed: convert it");

    for shape in [&[6, 4][..], &[4, 5], &[24], &[], &[1, 4, 6, 1]] {
        let strides = &[6, 1, 1, 1][..shape.len()];
        let error = refused(Tensor { shape, strides, ..good.clone() });
        assert!(matches!(error, DlpackError::Shape { .. }), "{shape:?}: {error:?}");
    }
    // Transposed, gaps within rows, batches too far apart, backwards.
    for (shape, strides) in [
        (&[4, 6][..], &[1, 4][..]),
        (&[4, 6], &[12, 2]),
        (&[2, 2, 6], &[20, 6, 1]),
        (&[4, 6], &[-6, 1]),
    ] {
        let error = refused(Tensor { shape, strides, ..good.clone() });
        assert!(matches!(error, DlpackError::Layout { .. }), "{strides:?}: {error:?}");
    }
    // The same row again and again.
    let error = refused(Tensor { strides: &[0, 1], ..good.clone() });
    assert!(
        matches!(error, DlpackError::Tensor(Error::Stride { stride: 0, cols: 6, .. })),
        "{error:?}"
    );
    // A dimension of one element may have any stride.
    let lone = Tensor { shape: &[1, 4, 6], strides: &[7, 6, 1], ..good.clone() };
    assert_eq!(accepted(lone), accepted(good.clone()));

    let error = refused(Tensor { data: 0, byte_offset: 4, ..good.clone() });
    assert!(matches!(error, DlpackError::Tensor(Error::MissingTensor { .. })), "{error:?}");
    let error = refused(Tensor { byte_offset: 2, ..good.clone() });
    assert!(matches!(error, DlpackError::Tensor(Error::Misaligned { .. })), "{error:?}");
    let error = refused(Tensor { byte_offset: u64::MAX, ..good.clone() });
    assert!(matches!(error, DlpackError::Address { byte_offset: u64::MAX, .. }), "{error:?}");
    let error = refused(Tensor { shape: &[-4, 6], ..good.clone() });
    assert!(matches!(error, DlpackError::Descriptor(_)), "{error:?}");

    let (mut frozen, _) = Tensor { flags: DlpackFlags::READ_ONLY, ..good.clone() }.export();
    assert!(matches!(frozen.validate_mut(), Err(tensor::Error::ReadOnly)));

    let (gaps, _) = Tensor { strides: &[8, 1], ..good.clone() }.export();
    let gaps = gaps.validate().expect("a descriptor");
    let error = dense("W", &gaps, kernels.context(), Dtype::F32, &[4, 6]).expect_err("gaps");
    assert!(matches!(error, DlpackError::Layout { tensor: "W", .. }), "{error:?}");
    let error =
        dense("W", &gaps, kernels.context(), Dtype::F32, &[6, 4]).expect_err("another shape");
    assert!(matches!(error, DlpackError::Shape { tensor: "W", .. }), "{error:?}");
}

/// Tensors of no tokens need no memory.
#[test]
fn nothing_is_nowhere() {
    let kernels = kernels();
    let (nothing, _) = Tensor::new(0, &[0, 6], &[6, 1]).export();
    let nothing = nothing.validate().expect("a descriptor");
    matrix("x", &nothing, kernels.context(), Dtype::F32, [0, 6]).expect("an empty matrix");
}
