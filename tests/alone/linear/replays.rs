//! Replays of a captured step with a counter on the device draw new masks and round anew.

use fused_dora_testkit::compare;
use fused_dora_testkit::random::with_dropout;

use super::*;

const COUNTER: u64 = 7;
const STEPS: u64 = 3;

/// The results of each of some steps. `captured`: of one captured step, replayed.
fn steps(
    kernels: &Arc<Kernels>,
    (base, case): (&Case, &Case),
    dropout: Dropout,
    captured: bool,
) -> Vec<Vec<Vec<f32>>> {
    let device = open_choice(None).expect("a device");
    // SAFETY: everything is on one stream.
    unsafe { device.context.disable_event_tracking() };
    let mut bench = Bench::on(device, kernels, base);
    let spec = spec(case.norm, case.rank, NormGrad::Detached);
    bench.attach("a", case, &spec).expect("attached");
    bench.layer.activate(Some("a")).expect("attached");
    bench.counter = Some(bench.stream.clone_htod(&[COUNTER]).expect("memory"));
    let layout = *bench.layer.adapter("a").expect("attached").layout();
    let moments = Moments::new(&bench.stream, &layout, AdapterGroups::default());
    let mut moments = moments.expect("memory");
    // Without a learning rate the parameters stay, and only masks and rounding differ.
    let numbers = bench.stream.clone_htod(&[0f32, 1.0]).expect("memory");
    let mut step = |bench: &mut Bench| {
        bench.forward(Some(dropout)).expect("forward");
        bench.backward(Gradients::Overwrite, Some(dropout)).expect("backward");
        let Bench { layer, counter, .. } = bench;
        let counter = counter.as_mut().expect("a counter").into();
        let schedule = Schedule::Counted { numbers: (&numbers).into(), counter };
        layer.adamw(&AdamWConfig::default(), schedule, None, &mut moments).expect("a step");
    };
    let graph = captured.then(|| {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        bench.stream.begin_capture(mode).expect("a capture");
        step(&mut bench);
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        bench.stream.end_capture(flags).expect("a capture").expect("a graph")
    });
    let mut results = Vec::new();
    for count in 1..=STEPS {
        match &graph {
            Some(graph) => graph.launch().expect("a launch"),
            None => step(&mut bench),
        }
        results.push(bench.results("a"));
        let counter = bench.counter.as_ref().expect("a counter");
        let counted = bench.stream.clone_dtoh(counter).expect("a copy");
        assert_eq!(counted, [COUNTER + count], "each step counts once");
    }
    results
}

#[test]
fn each_replay_has_a_mask_of_its_own() {
    let _alone = alone();
    let device = open_choice(None).expect("a device");
    let kernels = Arc::new(Kernels::load(&device.context).expect("kernels"));
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let forms = [
        (Norm::Input, DropoutForm::Adapter),
        (Norm::Output, DropoutForm::Adapter),
        (Norm::Output, DropoutForm::Peft),
    ];
    for (norm, form) in forms {
        let case = case_of(&mut random, Some(&base), 5, norm);
        let dropout = Dropout::new(0.25, form, 3).expect("a probability");
        let replayed = steps(&kernels, (&base, &case), dropout, true);
        let called = steps(&kernels, (&base, &case), dropout, false);
        for (count, (replayed, called)) in (0..).zip(replayed.iter().zip(&called)) {
            assert_eq!(bits(replayed), bits(called), "{norm:?}, {form:?}, step {count}");
            // One mask in y and in all gradients: that of the counter.
            let case = with_dropout(case.clone(), &dropout.at(COUNTER + count));
            let bias = reference::evaluate(&case).expect("a consistent case").grad_bias;
            let mut all: [Vec<f32>; 6] = Default::default();
            all.iter_mut().zip(replayed).for_each(|(to, from)| to.clone_from(from));
            all[5] = bias.iter().map(|&value| value as f32).collect();
            let failures = compare::failures(&case, Dtype::Bf16, &all, [None; 6]);
            let failures = failures.expect("a consistent case");
            assert!(failures.is_empty(), "{norm:?}, {form:?}\n{}", failures.join("\n"));
        }
        for pair in replayed.windows(2) {
            assert_ne!(bits(&pair[0]), bits(&pair[1]), "{norm:?}, {form:?}: the same mask");
        }
    }
}

/// A backward with another mask than its forward's would go unnoticed.
#[test]
fn a_backward_takes_the_counter_of_its_forward() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let case = case_of(&mut random, Some(&base), 5, Norm::Output);
    let mut bench = Bench::new(&base);
    bench.attach("a", &case, &spec(case.norm, case.rank, NormGrad::Detached)).expect("attached");
    bench.layer.activate(Some("a")).expect("attached");
    let counter = bench.stream.clone_htod(&[COUNTER]).expect("memory");
    bench.forward(None).expect("forward");
    bench.counter = Some(counter);
    let outcome = bench.backward(Gradients::Overwrite, None);
    assert!(matches!(outcome, Err(Error::UnexpectedTensor { tensor: "counter", .. })));
    bench.forward(None).expect("forward");
    bench.backward(Gradients::Overwrite, None).expect("backward");
    bench.counter = None;
    let outcome = bench.backward(Gradients::Overwrite, None);
    assert!(matches!(outcome, Err(Error::MissingTensor { tensor: "counter", .. })));
}
