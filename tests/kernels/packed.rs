//! Ops on a packed W give the bits of the same ops on the W that it stands for.

use std::sync::{Arc, Mutex};

use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::quant::{BlockScales, Code4, Fp8Scales, QuantizedWeight, WeightFormat};
use fused_dora::reference::{Case, Results};
use fused_dora::{
    AdamWConfig, Adapter, AdapterGroups, AdapterLayout, DoraLinear, DoraSpec, Dropout, DropoutForm,
    Dtype, Element, Gradients, Kernels, LinearBackward, LinearForward, Moments, Norm, NormGrad,
    Saved, Scaling, Schedule, SharedWeight, Tiles, Workspace,
};
use fused_dora_testkit::compare::failures;
use fused_dora_testkit::random::{NORMS, fresh_seed, normal, random_case, with_dropout};
use fused_dora_testkit::run::Runner;
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn runner() -> Runner {
    let context = fused_dora_testkit::device::open().expect("a device");
    Runner::new(&context).expect("kernels")
}

/// One of each kind, and of each size of blocks that decides how chunks are read.
fn formats() -> Vec<WeightFormat> {
    let code4 = |code, block, scales, state| WeightFormat::Code4 { code, block, scales, state };
    let mut formats = vec![WeightFormat::Int8Rows];
    formats.extend(
        [
            (Code4::Nf4, 64, BlockScales::F32, Dtype::Bf16),
            (Code4::Nf4, 64, BlockScales::Nested, Dtype::Bf16),
            (Code4::Nf4, 32, BlockScales::F32, Dtype::F16),
            (Code4::Fp4, 4096, BlockScales::Nested, Dtype::F32),
        ]
        .map(|(code, block, scales, state)| code4(code, block, scales, state)),
    );
    let blocks = |rows, cols| Fp8Scales::Blocks { rows, cols };
    let scales = [Fp8Scales::Tensor, Fp8Scales::Rows, blocks(128, 128), blocks(16, 20)];
    formats.extend(scales.map(|scales| WeightFormat::Fp8 { scales }));
    formats
}

/// The case with W rounded to what a format holds, and W packed in it.
fn packed<E: Element>(mut case: Case, format: WeightFormat) -> (Case, QuantizedWeight<'static>) {
    let values: Vec<f32> = case.weight.iter().map(|&value| value as f32).collect();
    let shape = [case.out_features, case.in_features];
    let packed = QuantizedWeight::quantize(&values, shape, format).expect("a packed W");
    let stands_for: Vec<E> = packed.dequantize();
    case.weight = stands_for.iter().map(|value| f64::from(value.to_f32())).collect();
    let norms = case.norms().expect("a consistent case");
    case.magnitude = norms.iter().map(|c| 1.1 * c).collect();
    (case.rounded(E::DTYPE), packed)
}

fn check<E: Element>(runner: impl Fn() -> Runner, case: Case, format: WeightFormat) {
    let (case, packed) = packed::<E>(case, format);
    let dense = runner().run(&case, E::DTYPE).expect("a run on a dense W");
    let found = runner().with_packed(packed).run(&case, E::DTYPE).expect("a run on a packed W");
    let &Case { tokens, in_features, out_features, rank, norm, .. } = &case;
    let what = format!(
        "{format}, {}: T={tokens} I={in_features} O={out_features} r={rank} norm {norm:?}",
        E::DTYPE
    );
    for ((name, dense), found) in Results::NAMES.iter().zip(&dense).zip(&found) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(dense) == bits(found), "{what}: {name} differs");
    }
    let failures = failures(&case, E::DTYPE, &found, [None; 6]).expect("a consistent case");
    assert!(failures.is_empty(), "{what}: {}", failures.join("\n"));
}

/// Large, medium and small tiles, rows that are aligned and rows that are not, odd rows that start
/// inside a byte.
const SHAPES: [[usize; 4]; 5] = [
    [140, 136, 160, 19],
    [140, 131, 75, 5],
    [40, 160, 132, 3],
    [7, 67, 83, 4],
    [300, 128, 256, 16],
];

fn all_formats<E: Element>() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for (at, format) in formats().into_iter().enumerate() {
        for (nth, norm) in NORMS.into_iter().enumerate() {
            let shape = SHAPES[(at + nth) % SHAPES.len()];
            let mut case = random_case(&mut random, shape, norm, nth == 0);
            if norm != Norm::None {
                case.norm_grad = NormGrad::Exact;
            }
            check::<E>(runner, case, format);
        }
    }
}

#[test]
fn ops_on_packed_weights_in_bf16() {
    all_formats::<bf16>();
}

#[test]
fn ops_on_packed_weights_in_f16() {
    all_formats::<f16>();
}

#[test]
fn ops_on_packed_weights_in_f32() {
    all_formats::<f32>();
}

/// Whole rows of 32 codes on tiles of both kinds that decode ahead, where W's dtype is the layer's or
/// f32: k-steps that are few and many, features beyond the last tile, k-steps that are not whole.
fn decoded_ahead<E: Element>() {
    let context = fused_dora_testkit::device::open().expect("a device");
    let kernels = [Tiles::Large, Tiles::Medium].map(|tiles| {
        let kernels = Kernels::load(&context).expect("kernels");
        Arc::new(kernels.with_tiles(Some(tiles)))
    });
    let code4 = |code, block, scales, state| WeightFormat::Code4 { code, block, scales, state };
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let formats = [
        code4(Code4::Nf4, 64, BlockScales::F32, E::DTYPE),
        code4(Code4::Nf4, 32, BlockScales::Nested, Dtype::F32),
        code4(Code4::Fp4, 4096, BlockScales::F32, Dtype::F32),
        code4(Code4::Fp4, 64, BlockScales::Nested, E::DTYPE),
    ];
    // The codes of the last row's tile end where W does, or before.
    let shapes = [[150, 96, 200, 8], [130, 288, 96, 20], [70, 160, 136, 0]];
    for (at, format) in formats.into_iter().enumerate() {
        for (nth, shape) in shapes.into_iter().enumerate() {
            let case = random_case(&mut random, shape, NORMS[(at + nth) % 3], true);
            check::<E>(|| Runner::with_kernels(&kernels[nth % 2]), case, format);
        }
    }
}

#[test]
fn codes_are_decoded_ahead_in_bf16() {
    decoded_ahead::<bf16>();
}

#[test]
fn codes_are_decoded_ahead_in_f16() {
    decoded_ahead::<f16>();
}

#[test]
fn dropout_on_packed_weights() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let (code, scales) = (Code4::Nf4, BlockScales::Nested);
    let format = WeightFormat::Code4 { code, block: 64, scales, state: Dtype::Bf16 };
    for (form, norm) in [
        (DropoutForm::Peft, Norm::Output),
        (DropoutForm::Adapter, Norm::Input),
        (DropoutForm::Adapter, Norm::None),
    ] {
        let dropout = Dropout::new(0.3, form, 7).expect("a probability");
        for shape in [[140, 136, 160, 19], [70, 83, 150, 3], [140, 128, 160, 16]] {
            let case = random_case(&mut random, shape, norm, true);
            let case = with_dropout(case, &dropout);
            check::<bf16>(|| runner().with_dropout(dropout), case, format);
        }
    }
}

/// A layer in bf16 of 72 → 48 features on a W that is dense or packed, with an adapter of rank 4.
struct Linear {
    layer: DoraLinear,
    saved: Saved,
    moments: Moments,
    stream: Arc<CudaStream>,
}

const TOKENS: usize = 70;
const SHAPE: [usize; 2] = [48, 72];

impl Linear {
    fn new(kernels: &Arc<Kernels>, weight: SharedWeight, norm: Norm) -> Self {
        let stream = kernels.context().default_stream();
        let [outputs, inputs] = SHAPE;
        let with_format = |spec: DoraSpec| match weight.format() {
            Some(format) => spec.with_weight(format).expect("a format"),
            None => spec,
        };
        let base = DoraLinear::base_spec(inputs, outputs, Dtype::Bf16).expect("a layer");
        let (scaling, grad) = (Scaling::Value(2.0), NormGrad::Exact);
        let spec = DoraSpec::new(inputs, outputs, 4, scaling, norm, grad, Dtype::Bf16);
        let (base, spec) = (with_format(base), with_format(spec.expect("a layer")));
        let workspace = Workspace::new(kernels, &stream, &[base, spec], TOKENS).expect("memory");
        let workspace = Arc::new(Mutex::new(workspace));
        let mut layer = DoraLinear::new(kernels, &stream, &workspace, SHAPE, weight, None)
            .expect("all shapes right");
        let adapter = Adapter::new(&stream, &spec, false).expect("memory");
        layer.attach("one", adapter).expect("the layer's features");
        layer.initialise("one", 3).expect("memory");
        let saved = layer.saved(TOKENS, None).expect("memory");
        let layout = AdapterLayout::new(&spec);
        let moments = Moments::new(&stream, &layout, AdapterGroups::default()).expect("memory");
        Self { layer, saved, moments, stream }
    }

    fn forward(&mut self, x: &CudaSlice<bf16>, adapter: Option<&str>) -> CudaSlice<bf16> {
        self.layer.activate(adapter).expect("attached");
        let mut y = self.stream.alloc_zeros::<bf16>(TOKENS * SHAPE[0]).expect("memory");
        let io = LinearForward {
            tokens: TOKENS,
            x: x.into(),
            y: (&mut y).into(),
            seed: 1,
            dropout: None,
            counter: None,
        };
        self.layer.forward(&mut self.saved, io).expect("a forward");
        y
    }

    /// One step with dY = y.
    fn step(&mut self, x: &CudaSlice<bf16>, step: u64) {
        let y = self.forward(x, Some("one"));
        let io = LinearBackward {
            tokens: TOKENS,
            gradients: Gradients::Overwrite,
            x: x.into(),
            y: (&y).into(),
            dropout: None,
            counter: None,
            grad_output: (&y).into(),
            grad_input: None,
        };
        self.layer.backward(&self.saved, io).expect("a backward");
        self.layer.finish_gradients().expect("the norm's gradient");
        let schedule = Schedule::Host { learning_rate: 1e-2, step };
        let config = AdamWConfig::default();
        self.layer.adamw(&config, schedule, None, &mut self.moments).expect("a step");
    }

    fn parameters(&self) -> Vec<f32> {
        let adapter = self.layer.adapter("one").expect("attached");
        self.stream.clone_dtoh(&adapter.parameters()).expect("a copy")
    }

    fn merged(&mut self) -> Vec<f32> {
        let mut merged = self.stream.alloc_zeros::<f32>(SHAPE[0] * SHAPE[1]).expect("memory");
        self.layer.merge(&mut merged, None).expect("the merge");
        self.stream.clone_dtoh(&merged).expect("a copy")
    }
}

/// A fresh adapter changes nothing. Training, and the merge after it, give the bits of those on the W
/// that the packed one stands for.
#[test]
fn training_on_a_packed_base() {
    let context = fused_dora_testkit::device::open().expect("a device");
    let kernels = Arc::new(Kernels::load(&context).expect("kernels"));
    let stream = context.default_stream();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let mut normals = |count, deviation: f64| -> Vec<f32> {
        (0..count).map(|_| (deviation * normal(&mut random)) as f32).collect()
    };
    let values = normals(SHAPE[0] * SHAPE[1], 0.05);
    let x: Vec<bf16> = normals(TOKENS * SHAPE[1], 1.0).into_iter().map(bf16::from_f32).collect();
    let x = stream.clone_htod(&x).expect("memory");
    for format in formats() {
        let packed = QuantizedWeight::quantize(&values, SHAPE, format).expect("a packed W");
        let dense = Arc::new(stream.clone_htod(&packed.dequantize::<bf16>()).expect("memory"));
        let packed = SharedWeight::packed(&stream, Dtype::Bf16, &packed).expect("memory");
        for norm in [Norm::Input, Norm::Output] {
            let weights = [packed.clone(), SharedWeight::from(dense.clone())];
            let mut layers = weights.map(|weight| Linear::new(&kernels, weight, norm));
            let results = layers.each_mut().map(|layer| {
                let outputs = [None, Some("one")].map(|adapter| {
                    let y = layer.forward(&x, adapter);
                    stream.clone_dtoh(&y).expect("a copy")
                });
                assert!(outputs[0] == outputs[1], "{format} {norm:?}: a fresh adapter shows");
                (1..=3).for_each(|step| layer.step(&x, step));
                (layer.parameters(), layer.merged(), outputs)
            });
            assert!(results[0] == results[1], "{format} {norm:?}: not as on the dense W");
        }
    }
}
