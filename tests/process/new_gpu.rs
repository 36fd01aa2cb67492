//! GPUs that are newer than the kernels: the crate loads and computes on each. A process has one
//! emulated device, and so the test starts itself again for each of them.

use std::process::Command;

use fused_dora::{Dtype, Norm};
use fused_dora_testkit::compare;
use fused_dora_testkit::device::{Choice, open_choice};
use fused_dora_testkit::random::random_case;
use fused_dora_testkit::run::Runner;
use rand::SeedableRng;
use rand::rngs::StdRng;

const PROFILE: &str = "CUDA_EMULATOR_PROFILE";

/// The emulator's profiles, and their compute capabilities.
const GPUS: [(&str, (i32, i32)); 5] = [
    ("b200", (10, 0)),
    ("b300", (10, 3)),
    ("thor", (11, 0)),
    ("rtx5090", (12, 0)),
    ("gb10", (12, 1)),
];

/// What runs on one of them, in f32, whose products depend on the capability: a layer for small
/// tiles, and one for others.
fn layers_are_right(capability: (i32, i32)) {
    let device = open_choice(Some(Choice::Emulated)).expect("the emulated device");
    assert_eq!(device.context.compute_capability(), Ok(capability));
    let runner = Runner::new(&device.context).expect("kernels");
    let mut random = StdRng::seed_from_u64(1);
    let dtype = Dtype::F32;
    for (tokens, norm) in [(9, Norm::Input), (70, Norm::Output)] {
        let case = random_case(&mut random, [tokens, 40, 72, 8], norm, true).rounded(dtype);
        let found = runner.run(&case, dtype).expect("the ops");
        let failures = compare::failures(&case, dtype, &found, [None; 6]);
        let failures = failures.expect("a consistent case");
        assert!(failures.is_empty(), "{tokens} tokens\n{}", failures.join("\n"));
    }
}

#[test]
fn gpus_newer_than_the_kernels_run_them() {
    let profile = std::env::var(PROFILE).ok();
    if let Some(gpu) = GPUS.into_iter().find(|(name, _)| profile.as_deref() == Some(*name)) {
        return layers_are_right(gpu.1);
    }
    let program = std::env::current_exe().expect("this test's path");
    for (name, _) in GPUS {
        let mut again = Command::new(&program);
        let output = again.arg("--nocapture").env(PROFILE, name).output().expect("this test");
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
    }
}
