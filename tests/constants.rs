//! The Rust side mirrors each kernel file's tile sizes and parameter struct; here they meet.

use fused_dora::Kernels;
use fused_dora::ops::{adamw, backward, decompose, forward, merge, norm_gradient, prepare};

fn assert_geometry(op: &'static str, mirrored: &[usize]) {
    let context = fused_dora_testkit::device::open().expect("a device");
    let stream = context.default_stream();
    let kernels = Kernels::load(&context).expect("kernels");
    let geometry = kernels.geometry(&stream, op).expect("the constant");
    let geometry: Vec<usize> = geometry.into_iter().map(|value| value as usize).collect();
    assert_eq!(geometry, mirrored, "{op}: kernel file (left), Rust file (right)");
}

#[test]
fn prepare_agrees() {
    assert_geometry("prepare", &prepare::GEOMETRY);
}

#[test]
fn forward_agrees() {
    assert_geometry("forward", &forward::GEOMETRY);
}

#[test]
fn backward_agrees() {
    assert_geometry("backward", &backward::GEOMETRY);
}

#[test]
fn adamw_agrees() {
    assert_geometry("adamw", &adamw::GEOMETRY);
}

#[test]
fn norm_gradient_agrees() {
    assert_geometry("norm_gradient", &norm_gradient::GEOMETRY);
}

#[test]
fn merge_agrees() {
    assert_geometry("merge", &merge::GEOMETRY);
}

#[test]
fn decompose_agrees() {
    assert_geometry("decompose", &decompose::GEOMETRY);
}
