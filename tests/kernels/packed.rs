//! Layers on packed weights: the golden cases of PEFT and of the formula, with W unpacked on the host.

use fused_dora::Dtype;
use fused_dora_testkit::run::Runner;
use fused_dora_testkit::{compare, packed};

/// Outputs and gradients are within the bounds that hold for a dense W.
#[test]
fn golden_cases_hold_for_the_unpacked_weight() {
    let context = fused_dora_testkit::device::open().expect("a device");
    let runner = Runner::new(&context).expect("kernels");
    let files = packed::files("dora_");
    assert_eq!(files.len(), 17);
    for path in files {
        let file = packed::case(&path);
        for dtype in Dtype::ALL {
            let found = runner.run(&file.case, dtype).expect("the ops");
            let expected = file.expected.each_ref().map(Option::as_deref);
            assert!(expected[..5].iter().all(Option::is_some), "{}", file.name);
            let failures = compare::failures(&file.case, dtype, &found, expected);
            let failures = failures.expect("a consistent case");
            assert!(failures.is_empty(), "{} in {dtype}\n{}", file.name, failures.join("\n"));
        }
    }
}
