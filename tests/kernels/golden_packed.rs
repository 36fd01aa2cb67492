//! The golden layers on packed weights, of PEFT and of the formula.

use std::sync::Arc;

use fused_dora::{Dtype, Kernels};
use fused_dora_testkit::run::Runner;
use fused_dora_testkit::{compare, packed};

/// Outputs and gradients are within the bounds that hold for a dense W, whether the kernels decode W
/// or the host does.
#[test]
fn golden_cases_hold_for_packed_and_for_unpacked_weights() {
    let context = fused_dora_testkit::device::open().expect("a device");
    let kernels = Arc::new(Kernels::load(&context).expect("kernels"));
    let files = packed::files("dora_");
    assert_eq!(files.len(), 17);
    for path in files {
        let (file, weight) = packed::case(&path);
        let expected = file.expected.each_ref().map(Option::as_deref);
        assert!(expected[..5].iter().all(Option::is_some), "{}", file.name);
        for dtype in Dtype::ALL {
            let dense = Runner::with_kernels(&kernels);
            let packed = Runner::with_kernels(&kernels).with_packed(weight.clone());
            for (what, runner) in [("unpacked", dense), ("packed", packed)] {
                let found = runner.run(&file.case, dtype).expect("the ops");
                let failures = compare::failures(&file.case, dtype, &found, expected);
                let failures = failures.expect("a consistent case");
                let name = &file.name;
                assert!(failures.is_empty(), "{name}, {what}, {dtype}\n{}", failures.join("\n"));
            }
        }
    }
}
