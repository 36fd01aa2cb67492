//! The optimizer's step and the gradient's norm against float64, over tens of steps.

use std::ops::Range;

use fused_dora::cudarc::driver::{CudaSlice, sys};
use fused_dora::{
    AdamW, AdapterGroups, Clip, Error, GradientNorm, Kernels, Norm, OptimizerGroup, OptimizerPart,
    Schedule, Workspace,
};
use fused_dora_testkit::optimizer::{CONFIG, Clipping, Device, From, Problem, adapters, layout};
use fused_dora_testkit::random::fresh_seed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[test]
fn tens_of_steps() {
    adapters().run(&mut Device::open(), 40, From::Host, Clipping::None);
}

#[test]
fn numbers_from_the_device() {
    adapters().run(&mut Device::open(), 40, From::Device, Clipping::None);
}

#[test]
fn clipped_by_the_norm() {
    // The norms of these gradients are a few tens: one of these clips always, one now and then,
    // one never.
    for max_norm in [1e-3, 45.0, 1e6] {
        adapters().run(&mut Device::open(), 10, From::Host, Clipping::Norm(max_norm));
    }
}

#[test]
fn buffers_off_every_boundary() {
    let mut device = Device::open();
    let problem = Problem { offset: 1, ..adapters() };
    problem.run(&mut device, 3, From::Host, Clipping::Norm(10.0));
    // Likewise parts that start where no vector does.
    let part = |range, learning_rate_factor| {
        let group = OptimizerGroup { learning_rate_factor, weight_decay: 0.01 };
        OptimizerPart { range, group }
    };
    let parts =
        vec![part(3..3, 1.0), part(3..1200, 1.0), part(1201..1203, 2.0), part(1204..1208, 3.0)];
    Problem { parts, len: 1210, offset: 0 }.run(&mut device, 3, From::Host, Clipping::Norm(1.0));
}

/// More parts than one launch takes, and more chunks than the norm has CTAs.
#[test]
fn many_parts_and_large_ones() {
    let mut device = Device::open();
    let layouts = vec![layout([9, 6, 1], Norm::Output, true); 50];
    let problem = Problem::of_adapters(&layouts, AdapterGroups::default());
    assert_eq!(problem.parts.len(), 200);
    problem.run(&mut device, 3, From::Host, Clipping::Norm(1.0));
    let layouts = vec![layout([300_001, 7, 1], Norm::Input, false); 2];
    let problem = Problem::of_adapters(&layouts, AdapterGroups::default());
    problem.run(&mut device, 2, From::Host, Clipping::Norm(1.0));
}

fn whole(len: usize) -> Vec<OptimizerPart> {
    vec![OptimizerPart { range: 0..len, group: OptimizerGroup::default() }]
}

#[test]
fn norms() {
    let mut device = Device::open();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for scale in [1.0, 1e-30, 1e30f32] {
        let gradients: Vec<f32> =
            (0..30_001).map(|_| scale * random.random_range(-1.0..1.0)).collect();
        let expected = gradients.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let found = device.norm(&whole(gradients.len()), &gradients).expect("the norm");
        // One rounding to f32; the sum of 30001 squares in f64 is off by far less.
        let error = (f64::from(found) - expected).abs();
        let bound = (1.0 + 1e-6) * f64::from(f32::EPSILON) / 2.0 * expected;
        assert!(error <= bound, "norm {found:e}, not {expected:e}: {error:e} > {bound:e}");
        let again = device.norm(&whole(gradients.len()), &gradients).expect("the norm");
        assert_eq!(found.to_bits(), again.to_bits());
    }
    assert_eq!(device.norm(&[], &[1.0]).expect("nothing"), 0.0);
    assert_eq!(device.norm(&whole(0), &[1.0]).expect("nothing"), 0.0);
    assert!(device.norm(&whole(2), &[1.0, f32::NAN]).expect("a norm").is_nan());
    assert_eq!(device.norm(&whole(2), &[1.0, f32::INFINITY]).expect("a norm"), f32::INFINITY);
}

/// A norm that is NaN is not taken for a small one.
#[test]
fn a_norm_that_is_nan_shows() {
    let device = Device::open();
    let (mut parameters, gradients) = (device.upload(&[1.0; 4]), device.upload(&[1.0; 4]));
    let mut moments = [0, 1].map(|_| device.upload(&[0.0; 4]));
    let norm = device.upload(&[f32::NAN]);
    let [exp_avg, exp_avg_sq] = &mut moments;
    let io = AdamW {
        len: gradients.len(),
        parts: &whole(3),
        schedule: Schedule::Host { learning_rate: 1e-3, step: 1 },
        clip: Some(Clip { max_norm: 1.0, norm: (&norm).into() }),
        parameters: parameters.as_view_mut().into(),
        gradients: gradients.as_view().into(),
        exp_avg: exp_avg.as_view_mut().into(),
        exp_avg_sq: exp_avg_sq.as_view_mut().into(),
    };
    device.kernels.adamw(&device.stream, &CONFIG, io).expect("a step");
    let found = device.stream.clone_dtoh(&parameters).expect("a copy");
    assert!(found[..3].iter().all(|p| p.is_nan()) && found[3] == 1.0, "{found:?}");
}

/// A captured step, replayed with new numbers each time, is the step launched each time.
#[test]
fn a_captured_step() {
    let context = fused_dora_testkit::device::open().expect("a device");
    // SAFETY: everything runs in one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let kernels = Kernels::load(&context).expect("kernels");
    let mut workspace = Workspace::new(&kernels, &stream, &[], 0).expect("memory");
    let parts = whole(1000);
    let gradients = stream.clone_htod(&[0.25f32; 1000]).expect("memory");
    let mut run = |replay: bool| {
        let mut parameters = stream.clone_htod(&[1.0f32; 1000]).expect("memory");
        let mut exp_avg = stream.alloc_zeros::<f32>(1000).expect("memory");
        let mut exp_avg_sq = stream.alloc_zeros::<f32>(1000).expect("memory");
        let mut norm = stream.alloc_zeros::<f32>(1).expect("memory");
        let mut numbers = stream.alloc_zeros::<f32>(2).expect("memory");
        let mut launch = |numbers: &CudaSlice<f32>| {
            let io = GradientNorm {
                len: gradients.len(),
                parts: &parts,
                gradients: gradients.as_view().into(),
                norm: (&mut norm).into(),
            };
            kernels.gradient_norm(&stream, &mut workspace, io).expect("the norm");
            let io = AdamW {
                len: gradients.len(),
                parts: &parts,
                schedule: Schedule::Device(numbers.as_view().into()),
                clip: Some(Clip { max_norm: 1.0, norm: (&norm).into() }),
                parameters: parameters.as_view_mut().into(),
                gradients: gradients.as_view().into(),
                exp_avg: exp_avg.as_view_mut().into(),
                exp_avg_sq: exp_avg_sq.as_view_mut().into(),
            };
            kernels.adamw(&stream, &CONFIG, io).expect("a step");
        };
        let graph = replay.then(|| {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).expect("a capture");
            launch(&numbers);
            let flags = sys::CUgraphInstantiate_flags(0);
            stream.end_capture(flags).expect("a capture").expect("a graph")
        });
        for step in 1..=5 {
            let written = [1e-2 / step as f32, step as f32];
            stream.memcpy_htod(&written, &mut numbers).expect("a copy");
            match &graph {
                Some(graph) => graph.launch().expect("a replay"),
                None => launch(&numbers),
            }
        }
        stream.clone_dtoh(&parameters).expect("a copy")
    };
    let (replayed, launched) = (run(true), run(false));
    assert_eq!(replayed, launched);
    assert!(launched.iter().all(|&p| p < 1.0 - 1e-2), "five steps of about the learning rate");
}

/// A step counts once, however many launches it takes, and also where it has no elements.
#[test]
fn a_step_counts_once() {
    let device = Device::open();
    let numbers = device.upload(&[1e-2, 1.0]);
    let mut counter = device.stream.clone_htod(&[u64::from(u32::MAX)]).expect("memory");
    let part = |i| OptimizerPart { range: i..i + 1, group: OptimizerGroup::default() };
    let many: Vec<_> = (0..130).map(part).collect();
    for (step, parts) in [&many[..], &many[..1], &[]].into_iter().enumerate() {
        let mut buffers = [1.0, 0.0, 0.0, 0.25].map(|value| device.upload(&[value; 130]));
        let [parameters, exp_avg, exp_avg_sq, gradients] = &mut buffers;
        let io = AdamW {
            len: 130,
            parts,
            schedule: Schedule::Counted {
                numbers: (&numbers).into(),
                counter: (&mut counter).into(),
            },
            clip: None,
            parameters: parameters.into(),
            gradients: (&*gradients).into(),
            exp_avg: exp_avg.into(),
            exp_avg_sq: exp_avg_sq.into(),
        };
        device.kernels.adamw(&device.stream, &CONFIG, io).expect("a step");
        let counted = device.stream.clone_dtoh(&counter).expect("a copy");
        assert_eq!(counted, [u64::from(u32::MAX) + step as u64 + 1]);
        let changed = device.stream.clone_dtoh(&buffers[0]).expect("a copy");
        let changed = changed.iter().filter(|&&value| value != 1.0).count();
        assert_eq!(changed, parts.len());
    }
}

#[test]
fn bad_inputs() {
    let mut device = Device::open();
    let buffer = || device.upload(&[0.0; 16]);
    let (one, two) = (device.upload(&[1.0]), device.upload(&[1.0; 2]));
    let (mut parameters, gradients, mut exp_avg, mut exp_avg_sq) =
        (buffer(), buffer(), buffer(), buffer());
    let parts = whole(16);
    let host = |learning_rate, step| Schedule::Host { learning_rate, step };
    // The outcome of a step of which `change` has changed something.
    macro_rules! attempt {
        (|$config:ident, $io:ident| $change:expr) => {{
            let mut $config = CONFIG;
            let mut $io = AdamW {
                len: gradients.len(),
                parts: &parts,
                schedule: host(1e-3, 1),
                clip: Some(Clip { max_norm: 1.0, norm: (&one).into() }),
                parameters: parameters.as_view_mut().into(),
                gradients: gradients.as_view().into(),
                exp_avg: exp_avg.as_view_mut().into(),
                exp_avg_sq: exp_avg_sq.as_view_mut().into(),
            };
            let _ = (&mut $config, &mut $io);
            $change;
            device.kernels.adamw(&device.stream, &$config, $io)
        }};
    }
    macro_rules! assert_message {
        (|$config:ident, $io:ident| $change:expr, $start:expr) => {{
            let outcome = attempt!(|$config, $io| $change);
            let found = outcome.expect_err("something wrong").to_string();
            assert!(found.starts_with($start), "{found}");
        }};
    }
    macro_rules! assert_shape {
        (|$io:ident| $change:expr, $expected:expr) => {{
            match attempt!(|config, $io| $change) {
                Err(Error::Shape { tensor, expected, found, .. }) => {
                    assert_eq!((tensor, expected, found), $expected)
                }
                other => panic!("a shape error, not {other:?}"),
            }
        }};
    }
    attempt!(|config, io| {}).expect("nothing wrong");
    assert_message!(
        |config, io| config.beta1 = 1.0,
        "beta1 is 1.0: it must be at least 0 and less"
    );
    assert_message!(|config, io| config.beta2 = -0.1, "beta2 is -0.1: ");
    assert_message!(|config, io| config.beta2 = f64::NAN, "beta2 is NaN: ");
    assert_message!(|config, io| config.epsilon = 0.0, "epsilon is 0.0: it must be positive");
    assert_message!(|config, io| config.epsilon = 1e-60, "epsilon is 1e-60: ");
    assert_message!(|config, io| io.schedule = host(-1.0, 1), "learning_rate is -1.0: ");
    assert_message!(|config, io| io.schedule = host(f64::NAN, 1), "learning_rate is NaN: ");
    assert_message!(|config, io| io.schedule = host(1e-3, 0), "step is 0: it must be at least 1");
    fn clip(max_norm: f64, norm: &CudaSlice<f32>) -> Option<Clip<'_>> {
        Some(Clip { max_norm, norm: norm.into() })
    }
    assert_message!(|config, io| io.clip = clip(0.0, &one), "max_norm is 0.0: ");
    assert_shape!(|io| io.clip = clip(1.0, &two), ("norm", 1, 2));
    assert_shape!(|io| io.schedule = Schedule::Device((&one).into()), ("schedule", 2, 1));
    assert_shape!(|io| io.gradients = gradients.slice(..15).into(), ("gradients", 16, 15));
    let mut short = device.upload(&[0.0; 17]);
    assert_shape!(|io| io.exp_avg = (&mut short).into(), ("exp_avg", 16, 17));
    assert_shape!(|io| io.exp_avg_sq = (&mut short).into(), ("exp_avg_sq", 16, 17));

    let part = |range, learning_rate_factor, weight_decay| {
        let group = OptimizerGroup { learning_rate_factor, weight_decay };
        OptimizerPart { range, group }
    };
    for (parts, start) in [
        (vec![part(0..17, 1.0, 0.0)], "a part of the optimizer is 0..17 of 16 elements"),
        (
            vec![part(0..8, 1.0, 0.0), part(7..9, 1.0, 0.0)],
            "a part of the optimizer is 7..9 of 16 elements, behind a part that ends at 8",
        ),
        (vec![part(Range { start: 3, end: 2 }, 1.0, 0.0)], "a part of the optimizer is 3..2"),
        (vec![part(0..8, -1.0, 0.0)], "learning_rate_factor is -1.0: "),
        (vec![part(0..8, 1.0, f64::INFINITY)], "weight_decay is inf: "),
    ] {
        assert_message!(|config, io| io.parts = &parts, start);
        let error = device.norm(&parts, &[0.0; 16]).expect_err("something wrong").to_string();
        assert!(error.starts_with(start), "{error}");
    }
    // Nothing was written by any of them but the first.
    let found = device.stream.clone_dtoh(&parameters).expect("a copy");
    assert_eq!(found, [0.0; 16]);
}
