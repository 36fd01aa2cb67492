//! Layers over two ranks: a batch in two parts, or a weight in two shards, against the whole layer
//! in float64. Each rank is a thread with a device of its own, where there are two.

use std::array;
use std::sync::{Arc, Mutex};
use std::thread;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::reference::{Case, Results, evaluate, norm_gradient_bounds};
use fused_dora::{
    AdamWConfig, Adapter, AdapterGroups, AdapterLayout, AllReduce, Backward, Base, DoraLinear,
    Dtype, Element, Error, Forward, Gradients, HostRank, Kernels, LinearBackward, LinearForward,
    Magnitude, Moments, Norm, NormGrad, NormGradient, Part, Prepare, Prepared, Result, Schedule,
    Workspace, open_device,
};
use fused_dora_testkit::compare::{self, Comparison};
use fused_dora_testkit::device::{self, Choice};
use fused_dora_testkit::random::{cancelling_case, fresh_seed, random_case};
use fused_dora_testkit::run::{driver, spec};
use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;

const RANKS: usize = 2;

/// T, I, O and r.
const SHAPE: [usize; 4] = [40, 70, 52, 5];

/// Optimizer steps.
const STEPS: u64 = 4;

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// The kernels of two devices, or of one GPU twice where there is but one.
fn kernels() -> [Arc<Kernels>; RANKS] {
    let choice = Choice::from_env().expect("a choice");
    let contexts = match device::open_several(choice, RANKS) {
        Ok(devices) => devices.into_iter().map(|device| device.context).collect(),
        Err(_) => vec![open_device(0).expect("a device"); RANKS],
    };
    array::from_fn(|rank| Arc::new(Kernels::load(&contexts[rank]).expect("kernels")))
}

/// What each rank makes of its part, the ranks side by side.
fn on_ranks<T: Send, R: Send>(
    kernels: &[Arc<Kernels>; RANKS],
    parts: [T; RANKS],
    run: impl Fn(&Arc<Kernels>, T, &HostRank) -> Result<R> + Sync,
) -> [R; RANKS] {
    let streams =
        kernels.each_ref().map(|kernels| kernels.context().new_stream().expect("a stream"));
    let ranks: [HostRank; RANKS] = HostRank::group(&streams).try_into().expect("a rank each");
    let (mut kernels, mut parts) = (kernels.iter(), parts.into_iter());
    thread::scope(|scope| {
        ranks
            .map(|rank| {
                let (kernels, part) = (kernels.next().unwrap(), parts.next().unwrap());
                let run = &run;
                scope.spawn(move || run(kernels, part, &rank))
            })
            .map(|thread| {
                thread.join().expect("no panic").unwrap_or_else(|error| panic!("{error}"))
            })
    })
}

/// What is split between the ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Split {
    Tokens,
    Outputs,
    Inputs,
}

/// How a result of all ranks becomes one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Join {
    Rows,
    Columns,
    /// Each rank has a part of a sum, which a trainer would add.
    Partial,
    /// The ranks have added it.
    Reduced,
    /// Each rank has all of it by itself.
    Same,
}

impl Split {
    /// Whether a norm sums over shards.
    fn cuts_norms(self, norm: Norm) -> bool {
        matches!((self, norm), (Self::Outputs, Norm::Input) | (Self::Inputs, Norm::Output))
    }

    /// In the order of [`Results::NAMES`].
    fn joins(self, norm: Norm) -> [Join; 6] {
        use Join::{Columns, Partial, Reduced, Rows, Same};
        let of_norm = if self.cuts_norms(norm) { Reduced } else { Rows };
        match self {
            Self::Tokens => [Rows, Rows, Reduced, Reduced, Reduced, Reduced],
            Self::Outputs => [Columns, Partial, Reduced, Rows, of_norm, Rows],
            Self::Inputs => [Partial, Columns, Columns, Reduced, of_norm, Same],
        }
    }

    /// The parts of a layer that the ranks have.
    fn parts(self, case: &Case) -> [Case; RANKS] {
        let len = match self {
            Self::Tokens => case.tokens,
            Self::Outputs => case.out_features,
            Self::Inputs => case.in_features,
        };
        let cut = len * 3 / 5;
        [(0, 0..cut), (1, cut..len)].map(|(rank, range)| {
            let rows = |values: &[f64], width: usize| {
                values[range.start * width..range.end * width].to_vec()
            };
            let columns = |values: &[f64], width: usize| -> Vec<f64> {
                values.chunks(width).flat_map(|row| row[range.clone()].iter().copied()).collect()
            };
            let mut part = case.clone();
            let &Case { in_features, out_features, rank: r, norm, .. } = case;
            match self {
                Self::Tokens => {
                    part.tokens = range.len();
                    part.input = rows(&case.input, in_features);
                    part.grad_output = rows(&case.grad_output, out_features);
                }
                Self::Outputs => {
                    part.out_features = range.len();
                    part.weight = rows(&case.weight, in_features);
                    part.lora_b = rows(&case.lora_b, r);
                    part.bias = case.bias.as_ref().map(|bias| rows(bias, 1));
                    part.grad_output = columns(&case.grad_output, out_features);
                }
                Self::Inputs => {
                    part.in_features = range.len();
                    part.weight = columns(&case.weight, in_features);
                    part.lora_a = columns(&case.lora_a, in_features);
                    part.input = columns(&case.input, in_features);
                    part.bias = part.bias.filter(|_| rank == 0);
                }
            }
            if part.magnitudes() != case.magnitudes() {
                part.magnitude = rows(&case.magnitude, 1);
            }
            assert!(part.magnitude.len() == part.magnitudes() || norm == Norm::None);
            part
        })
    }
}

/// A rank's c, and the results in the order of [`Results::NAMES`].
struct Found {
    norms: Vec<f32>,
    results: [Vec<f32>; 6],
}

/// The part of one rank: prepared, through forward and backward, and its gradients completed.
fn run_rank<E: Element>(
    kernels: &Kernels,
    part: &Case,
    split: Split,
    rank: &HostRank,
) -> Result<Found> {
    let stream = rank.stream();
    let spec = spec(part, E::DTYPE)?;
    let upload = |values: &[f64]| upload::<E>(stream, values);
    let weight = upload(&part.weight)?;
    let bias = part.bias.as_deref().map(upload).transpose()?;
    let (x, grad_output) = (upload(&part.input)?, upload(&part.grad_output)?);
    let layout = AdapterLayout::with_bias(&spec);
    let mut parameters = vec![0.0; layout.len()];
    for (kind, values) in [
        (Part::LoraA, &part.lora_a),
        (Part::LoraB, &part.lora_b),
        (Part::Magnitude, &part.magnitude),
    ] {
        let values: Vec<_> = values.iter().map(|&value| value as f32).collect();
        parameters[layout.range(kind)].copy_from_slice(&values);
    }
    let parameters = stream.clone_htod(&parameters).map_err(driver("uploading parameters"))?;
    let zeros = |len: usize| stream.alloc_zeros::<E>(len).map_err(driver("allocating"));
    let mut gradients = stream.alloc_zeros::<f32>(layout.len()).map_err(driver("allocating"))?;
    let tokens = part.tokens;
    let mut y = zeros(tokens * part.out_features)?;
    let mut grad_input = zeros(tokens * part.in_features)?;
    let mut h = zeros(tokens * spec.padded_rank())?;
    let mut workspace = Workspace::new(kernels, stream, &[spec], tokens)?;
    let mut prepared = Prepared::new(stream, &spec)?;

    let adapter = layout.view(parameters.as_view())?;
    let given = || {
        let magnitude = layout.view(parameters.as_view())?.magnitude;
        Ok::<_, Error>(Magnitude::from(magnitude))
    };
    let inputs = Prepare {
        weight: (&weight).into(),
        lora_a: adapter.lora_a.slice(..).into(),
        lora_b: adapter.lora_b.slice(..).into(),
        magnitude: match split.cuts_norms(part.norm) {
            true => Magnitude::Sharded,
            false => given()?,
        },
        bias: None,
    };
    kernels.prepare(stream, &spec, &mut workspace, &mut prepared, inputs)?;
    if let Some(squares) = prepared.squared_norms_mut() {
        rank.sum_over_ranks(squares)?;
        let lora_b = adapter.lora_b.slice(..);
        kernels.finish_prepare(stream, &spec, &mut prepared, lora_b, given()?)?;
    }

    let io = Forward {
        tokens,
        x: (&x).into(),
        base: Base::new(&weight).with_bias(bias.as_ref()),
        // Ranks with the same x round it alike.
        seed: if split == Split::Outputs { 1 } else { 1 + rank.rank() as u64 },
        dropout: None,
        counter: None,
        z: None,
        y: (&mut y).into(),
        h: (&mut h).into(),
    };
    kernels.forward(stream, &spec, &prepared, &mut workspace, io)?;
    let grads = layout.view_mut(gradients.as_view_mut())?;
    let io = Backward {
        tokens,
        gradients: Gradients::Overwrite,
        x: (&x).into(),
        base: Base::new(&weight).with_bias(bias.as_ref()),
        output: Some((&y).into()),
        z: None,
        dropout: None,
        counter: None,
        grad_output: (&grad_output).into(),
        h: (&h).into(),
        grad_input: Some((&mut grad_input).into()),
        grad_lora_a: grads.lora_a.into(),
        grad_lora_b: grads.lora_b.into(),
        grad_magnitude: grads.magnitude.map(Into::into),
        grad_bias: grads.bias.map(Into::into),
    };
    kernels.backward(stream, &spec, &prepared, &mut workspace, io)?;

    // The order that src/layer/parallel.rs gives.
    let mut sum = |kind: Part| rank.sum_over_ranks(gradients.slice_mut(layout.range(kind)));
    match split {
        Split::Tokens => rank.sum_over_ranks(gradients.as_view_mut())?,
        _ if split.cuts_norms(part.norm) => sum(Part::Magnitude)?,
        _ => {}
    }
    if part.norm_grad == NormGrad::Exact {
        let grads = layout.view_mut(gradients.as_view_mut())?;
        let io = NormGradient {
            weight: (&weight).into(),
            lora_a: adapter.lora_a.into(),
            lora_b: adapter.lora_b.into(),
            grad_magnitude: grads.magnitude.as_ref().expect("a magnitude").as_view().into(),
            grad_lora_a: grads.lora_a.into(),
            grad_lora_b: grads.lora_b.into(),
        };
        kernels.norm_gradient(stream, &spec, &prepared, &mut workspace, io)?;
    }
    let mut sum = |kind: Part| rank.sum_over_ranks(gradients.slice_mut(layout.range(kind)));
    match split {
        Split::Tokens => {}
        Split::Outputs => sum(Part::LoraA)?,
        Split::Inputs => sum(Part::LoraB)?,
    }

    let download = driver("copying from the device");
    let gradients = stream.clone_dtoh(&gradients).map_err(&download)?;
    let of = |kind| gradients[layout.range(kind)].to_vec();
    let host = |buffer: &CudaSlice<E>| -> Result<Vec<f32>> {
        let values = stream.clone_dtoh(buffer).map_err(&download)?;
        Ok(values.into_iter().map(Element::to_f32).collect())
    };
    let norms = prepared.read_norm(stream)?;
    let [da, db, dm, dbias] = [Part::LoraA, Part::LoraB, Part::Magnitude, Part::Bias].map(of);
    Ok(Found { norms, results: [host(&y)?, host(&grad_input)?, da, db, dm, dbias] })
}

fn upload<E: Element>(stream: &Arc<CudaStream>, values: &[f64]) -> Result<CudaSlice<E>> {
    let values: Vec<E> = values.iter().map(|&value| E::from_f32(value as f32)).collect();
    stream.clone_htod(&values).map_err(driver("copying to the device"))
}

/// One tensor of those of the ranks, which are `widths` wide.
fn joined(join: Join, tensors: [&[f64]; RANKS], widths: [usize; RANKS]) -> Vec<f64> {
    match join {
        Join::Rows => tensors.concat(),
        Join::Columns => {
            let rows = tensors[0].chunks(widths[0]).zip(tensors[1].chunks(widths[1]));
            rows.flat_map(|(first, second)| [first, second].concat()).collect()
        }
        Join::Partial | Join::Reduced => {
            tensors[0].iter().zip(tensors[1]).map(|(first, second)| first + second).collect()
        }
        Join::Same => tensors[0].to_vec(),
    }
}

/// A part as a layer by itself, which computes the same: its magnitude makes up for what its norms
/// lack. With it, what its dm is to be multiplied with.
fn by_itself(part: &Case, whole: &Case) -> (Case, Vec<f64>) {
    let part = Case { norm_grad: NormGrad::Detached, ..part.clone() };
    let of_part = part.norms().expect("a consistent case");
    let whole = whole.norms().expect("a consistent case");
    if of_part.len() != whole.len() {
        let factors = vec![1.0; of_part.len()];
        return (part, factors);
    }
    let factors: Vec<_> = of_part.iter().zip(whole).map(|(part, whole)| part / whole).collect();
    let magnitude = part.magnitude.iter().zip(&factors).map(|(m, factor)| m * factor).collect();
    (Case { magnitude, ..part }, factors)
}

/// What all ranks should have together, and how far they may be from it.
///
/// A rank errs like a single layer, except in c, which belongs to the whole layer: both errors are
/// allowed.
fn expected(case: &Case, split: Split, dtype: Dtype) -> [(Vec<f64>, Vec<f64>); 6] {
    let detached = Case { norm_grad: NormGrad::Detached, ..case.clone() };
    let (exact, whole) = (evaluate(case).unwrap(), evaluate(&detached).unwrap());
    let of_whole = compare::bounds(&detached, dtype).unwrap();
    let parts = split.parts(case).map(|part| {
        let (part, factors) = by_itself(&part, case);
        let scaled = |mut results: Results| {
            results.grad_magnitude.iter_mut().zip(&factors).for_each(|(dm, factor)| *dm *= factor);
            results
        };
        // The magnitude is not the kernel's, so that it must not be rounded.
        let bounds = fused_dora::reference::bounds(&part, dtype).unwrap();
        (part.result_shapes(), scaled(evaluate(&part).unwrap()), scaled(bounds))
    });
    let joins = split.joins(case.norm);
    let join = |i: usize, tensors: [&Results; RANKS]| {
        let widths = array::from_fn(|rank| parts[rank].0[i].get(1).copied().unwrap_or(1));
        joined(joins[i], tensors.map(|results| &results.tensors()[i][..]), widths)
    };
    let values: [Vec<f64>; 6] = array::from_fn(|i| join(i, [&parts[0].1, &parts[1].1]));
    for (i, values) in values.iter().enumerate() {
        // The table of src/layer/parallel.rs: the parts make the whole.
        for (value, whole) in values.iter().zip(whole.tensors()[i]) {
            let scale = whole.abs().max(1.0);
            assert!((value - whole).abs() < 1e-9 * scale, "{}: {split:?}", Results::NAMES[i]);
        }
    }
    let mut bounds: [Vec<f64>; 6] = array::from_fn(|i| {
        let of_parts = join(i, [&parts[0].2, &parts[1].2]);
        let terms = of_parts.iter().zip(&of_whole.tensors()[i][..]).zip(&whole.tensors()[i][..]);
        // The sum over ranks is rounded once.
        terms.map(|((parts, whole), value)| parts + whole + U * value.abs()).collect()
    });
    if case.norm_grad == NormGrad::Exact {
        let through = norm_gradient_bounds(case, dtype, &whole.grad_magnitude, &bounds[4]).unwrap();
        for (i, through) in [2, 3].into_iter().zip(through) {
            let amounts = exact.tensors()[i].iter().zip(&whole.tensors()[i][..]);
            for ((bound, through), (exact, detached)) in
                bounds[i].iter_mut().zip(through).zip(amounts)
            {
                // Each rank rounds its difference, and their sum is rounded.
                *bound += through + 4.0 * U * (detached.abs() + (detached - exact).abs());
            }
        }
    }
    let mut bounds = bounds.into_iter();
    array::from_fn(|i| (exact.tensors()[i].clone(), bounds.next().unwrap()))
}

/// Runs a layer over the ranks and compares it with the whole.
fn check<E: Element>(kernels: &[Arc<Kernels>; RANKS], case: &Case, split: Split) {
    let case = &case.rounded(E::DTYPE);
    let parts = split.parts(case);
    let found = on_ranks(kernels, parts.clone(), |kernels, part, rank| {
        run_rank::<E>(kernels, &part, split, rank)
    });
    let shapes = case.result_shapes();
    let expected = expected(case, split, E::DTYPE);
    for (i, join) in split.joins(case.norm).into_iter().enumerate() {
        let tensors: [Vec<f64>; RANKS] = found
            .each_ref()
            .map(|found| found.results[i].iter().map(|&value| f64::from(value)).collect());
        if matches!(join, Join::Reduced | Join::Same) {
            assert_eq!(tensors[0], tensors[1], "{}: {split:?}", Results::NAMES[i]);
        }
        // What the ranks have added is there already.
        let join = if join == Join::Reduced { Join::Same } else { join };
        let widths =
            array::from_fn(|rank| parts[rank].result_shapes()[i].get(1).copied().unwrap_or(1));
        let together: Vec<f32> = joined(join, tensors.each_ref().map(Vec::as_slice), widths)
            .iter()
            .map(|&v| v as f32)
            .collect();
        let (values, bounds) = &expected[i];
        let name = Results::NAMES[i];
        let compared = Comparison::new(name, &shapes[i], E::DTYPE, &together, values, bounds);
        assert!(compared.ok(), "{split:?}, norm {:?}: {compared}", case.norm);
    }
}

fn check_all(split: Split) {
    let (kernels, mut random) = (kernels(), StdRng::seed_from_u64(fresh_seed()));
    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let exact = [NormGrad::Exact].into_iter().filter(|_| norm != Norm::None);
        for norm_grad in [NormGrad::Detached].into_iter().chain(exact) {
            let mut case = random_case(&mut random, SHAPE, norm, true);
            case.norm_grad = norm_grad;
            check::<f32>(&kernels, &case, split);
            check::<bf16>(&kernels, &case, split);
        }
    }
}

#[test]
fn a_batch_in_two_parts() {
    check_all(Split::Tokens);
}

#[test]
fn a_weight_split_along_its_outputs() {
    check_all(Split::Outputs);
}

#[test]
fn a_weight_split_along_its_inputs() {
    check_all(Split::Inputs);
}

/// The adapter after some steps of a layer that owns it, on its part of the batch.
fn trained(kernels: &Arc<Kernels>, part: &Case, rank: &HostRank) -> Result<Vec<f32>> {
    let stream = rank.stream();
    let spec = spec(part, Dtype::F32)?;
    let (base, tokens) =
        (DoraLinear::base_spec(part.in_features, part.out_features, Dtype::F32)?, part.tokens);
    let workspace = Workspace::new(kernels, stream, &[base, spec], tokens)?;
    let workspace = Arc::new(Mutex::new(workspace));
    let weight = Arc::new(upload::<f32>(stream, &part.weight)?);
    let shape = [part.out_features, part.in_features];
    let mut layer = DoraLinear::new(kernels, stream, &workspace, shape, weight, None)?;
    layer.attach("one", Adapter::new(stream, &spec, false)?)?;
    layer.initialise("one", 7)?;
    layer.activate(Some("one"))?;
    let layout = *layer.adapter("one")?.layout();
    let mut moments = Moments::new(stream, &layout, AdapterGroups::default())?;
    let mut saved = layer.saved(tokens, None)?;
    let (x, grad_output) =
        (upload::<f32>(stream, &part.input)?, upload::<f32>(stream, &part.grad_output)?);
    let mut y = upload::<f32>(stream, &vec![0.0; tokens * part.out_features])?;
    for step in 1..=STEPS {
        let io = LinearForward {
            tokens,
            x: (&x).into(),
            y: (&mut y).into(),
            seed: step,
            dropout: None,
            counter: None,
        };
        layer.forward(&mut saved, io)?;
        let io = LinearBackward {
            tokens,
            gradients: Gradients::Overwrite,
            x: (&x).into(),
            y: (&y).into(),
            dropout: None,
            counter: None,
            grad_output: (&grad_output).into(),
            grad_input: None,
        };
        layer.backward(&saved, io)?;
        rank.sum_over_ranks(layer.adapter_mut("one")?.gradients_mut())?;
        layer.finish_gradients()?;
        // A step in proportion to the gradient: that of a tiny one is not all sign.
        let config = AdamWConfig { epsilon: 1.0, ..AdamWConfig::default() };
        let schedule = Schedule::Host { learning_rate: 0.01, step };
        layer.adamw(&config, schedule, None, &mut moments)?;
    }
    let parameters = layer.adapter("one")?.parameters();
    stream.clone_dtoh(&parameters).map_err(driver("copying from the device"))
}

/// Two ranks and one differ by the rounding of f32, and the two do not differ.
#[test]
fn steps_on_a_batch_in_two_parts() {
    let (kernels, mut random) = (kernels(), StdRng::seed_from_u64(fresh_seed()));
    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let mut case = random_case(&mut random, SHAPE, norm, false);
        if norm != Norm::None {
            case.norm_grad = NormGrad::Exact;
        }
        let case = case.rounded(Dtype::F32);
        let [first, second] =
            on_ranks(&kernels, Split::Tokens.parts(&case), |kernels, part, rank| {
                trained(kernels, &part, rank)
            });
        assert_eq!(first, second, "norm {norm:?}");
        let alone = HostRank::group(&[kernels[0].context().new_stream().expect("a stream")]);
        let one = trained(&kernels[0], &case, &alone[0]).expect("training");
        let distance = one.iter().zip(&first).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let start = Case { tokens: 0, input: vec![], grad_output: vec![], ..case.clone() };
        let start = trained(&kernels[0], &start, &alone[0]).expect("training");
        let way = one.iter().zip(&start).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        assert!(way > 1e-3 && distance.sqrt() < 1e-4 * way.sqrt(), "{norm:?}: {distance} of {way}");
    }
}

/// Of W, V leaves a thousandth in every shard: squares are added, and nothing cancels then.
#[test]
fn norms_over_shards_are_exact_where_the_adapter_cancels_the_weight() {
    let (kernels, mut random) = (kernels(), StdRng::seed_from_u64(fresh_seed()));
    for (split, norm) in [(Split::Outputs, Norm::Input), (Split::Inputs, Norm::Output)] {
        let case = cancelling_case(&mut random, SHAPE, norm, Dtype::F32, 1e-3);
        let found = on_ranks(&kernels, split.parts(&case), |kernels, part, rank| {
            run_rank::<f32>(kernels, &part, split, rank)
        });
        let [first, second] = found.map(|found| found.norms);
        assert_eq!(first, second);
        for (found, norm) in first.into_iter().zip(case.norms().expect("a consistent case")) {
            let error = (f64::from(found) - norm).abs() / norm;
            assert!(error < 1e-5, "{split:?}: {found} instead of {norm}");
        }
    }
}

#[test]
fn sums_over_and_over() {
    let kernels = kernels();
    let sums = on_ranks(&kernels, [1.0f32, 10.0], |_, own, rank| {
        assert_eq!(rank.ranks(), RANKS);
        let mut buffer = rank.stream().clone_htod(&vec![own; 100]).expect("memory");
        for _ in 0..50 {
            rank.sum_over_ranks(buffer.as_view_mut())?;
        }
        Ok(rank.stream().clone_dtoh(&buffer).expect("a copy"))
    });
    assert_eq!(sums[0], sums[1]);
    assert_eq!(sums[0], [11.0 * 2f32.powi(49); 100]);
}

#[test]
fn what_goes_wrong_comes_back_to_every_rank() {
    let kernels = kernels();
    let errors = on_ranks(&kernels, [3, 4], |_, len, rank| {
        let mut buffer = rank.stream().clone_htod(&vec![1.0f32; len]).expect("memory");
        let error = rank.sum_over_ranks(buffer.as_view_mut()).expect_err("two lengths");
        assert_eq!(rank.stream().clone_dtoh(&buffer).expect("a copy"), vec![1.0; len]);
        Ok(error.to_string())
    });
    for (rank, error) in errors.iter().enumerate() {
        assert!(
            error.contains(&format!("rank {rank} of 2")) && error.contains("[3, 4]"),
            "{error}"
        );
    }
    let outcomes = on_ranks(&kernels, [true, false], |_, stays, rank| {
        if !stays {
            return Ok(String::new());
        }
        let mut buffer = rank.stream().clone_htod(&[1.0f32]).expect("memory");
        let error = rank.sum_over_ranks(buffer.as_view_mut()).expect_err("nobody else");
        Ok(error.to_string())
    });
    assert!(outcomes[0].contains("rank 1 has left"), "{}", outcomes[0]);
}

#[test]
fn a_buffer_of_another_device_is_refused() {
    let [first, second] = kernels();
    if first.context().cu_ctx() == second.context().cu_ctx() {
        return;
    }
    let rank = HostRank::group(&[first.context().default_stream()]).remove(0);
    let mut buffer = second.context().default_stream().alloc_zeros::<f32>(4).expect("memory");
    let refused = rank.sum_over_ranks(buffer.as_view_mut());
    assert!(matches!(refused, Err(Error::ContextMismatch)), "{refused:?}");
}

#[cfg(feature = "nccl")]
#[test]
fn without_nccl_there_is_an_error() {
    use fused_dora::parallel::nccl;

    match nccl::id() {
        // It is installed here.
        Ok(_) => {}
        Err(error @ Error::Ranks { .. }) => {
            assert!(error.to_string().contains("libnccl"), "{error}");
        }
        Err(error) => panic!("{error}"),
    }
}
