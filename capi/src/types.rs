//! The structures of the C API.
//!
//! Enumerations arrive as numbers, so that a wrong number is an error and not undefined behaviour.
//! All except the dropout's and the weight's start from 1, so that a forgotten one is an error too.

/// What x, W, the bias, y and their gradients are stored in. Adapters and their gradients are f32.
#[repr(C)]
pub enum Dtype {
    /// bfloat16.
    Bf16 = 1,
    /// IEEE half precision.
    F16 = 2,
    /// IEEE single precision.
    F32 = 3,
}

/// The axis of V = W + s·B·A along which the norm is taken. The magnitude has one element per norm.
#[repr(C)]
pub enum Norm {
    /// Plain LoRA, which has no norm and no magnitude.
    None = 1,
    /// One norm per input feature: the DoRA paper, OneTrainer, LyCORIS.
    Input = 2,
    /// One norm per output feature: PEFT, torchtune, axolotl, MLX.
    Output = 3,
}

/// Whether the gradients of A and B flow through the norm.
#[repr(C)]
pub enum NormGrad {
    /// No, the backward treats the norm as a constant: the paper's section 4.3, PEFT.
    Detached = 1,
    /// Yes: call `fused_dora_norm_gradient` before the optimizer.
    Exact = 2,
}

/// The meaning of the number `scaling` in a spec.
#[repr(C)]
pub enum Scaling {
    /// alpha of s = alpha/r (LoRA).
    Standard = 1,
    /// alpha of s = alpha/sqrt(r) (rsLoRA).
    RankStabilized = 2,
    /// s itself.
    Value = 3,
}

/// What the backward does with the parameters' gradients that are in the buffers.
#[repr(C)]
pub enum Gradients {
    /// It replaces them: the first micro-batch of an optimizer step.
    Overwrite = 1,
    /// It adds to them: the later micro-batches.
    Accumulate = 2,
}

/// Where dropout is applied.
#[repr(C)]
pub enum DropoutForm {
    /// Nowhere.
    None = 0,
    /// In the adapter branch only.
    Adapter = 1,
    /// As PEFT applies it. With norm axis output it needs z.
    Peft = 2,
}

/// How W is stored.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// A row-major matrix of the spec's dtype.
    Dense = 0,
    /// NF4 of bitsandbytes (QLoRA): two codes a byte, the even element in the high half, and one
    /// scale for each `block` elements of the flattened W.
    Nf4 = 1,
    /// bitsandbytes' FP4, stored likewise.
    Fp4 = 2,
    /// bitsandbytes' int8 (LLM.int8): a signed byte per element, and a scale (SCB) per row.
    Int8 = 3,
    /// fp8 e4m3 with one scale.
    Fp8Tensor = 4,
    /// fp8 e4m3 with a scale per row.
    Fp8Rows = 5,
    /// fp8 e4m3 with a scale per block of `block_rows` rows and `block_cols` columns.
    Fp8Blocks = 6,
}

/// How W is stored. All zero means a dense W. Fields that a kind does not have must be 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct WeightFormat {
    /// A `fused_dora_weight`.
    pub kind: u32,
    /// NF4 and FP4: elements of a block, a power of two from 32 to 4096.
    pub block: u32,
    /// NF4 and FP4: 1 if the blocks' scales are nested (double quantisation), 0 if they are f32.
    pub nested: u32,
    /// NF4 and FP4: a `fused_dora_dtype`, that of bitsandbytes' `quant_state`, which W is rounded
    /// to.
    pub state: u32,
    /// `FUSED_DORA_WEIGHT_FP8_BLOCKS`: rows of a block.
    pub block_rows: u32,
    /// `FUSED_DORA_WEIGHT_FP8_BLOCKS`: columns of a block.
    pub block_cols: u32,
}

/// A layer with I input features and O output features, y = x·W'ᵀ + b, and an adapter of rank r.
/// Below, R is r rounded up to a multiple of 16, and T is the number of tokens. All matrices are
/// row-major.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// I.
    pub in_features: usize,
    /// O.
    pub out_features: usize,
    /// r; 0 for an adapter without A and B.
    pub rank: usize,
    /// A `fused_dora_scaling`.
    pub scaling_kind: u32,
    /// alpha or s, as `scaling_kind` says.
    pub scaling: f32,
    /// A `fused_dora_norm`.
    pub norm: u32,
    /// A `fused_dora_norm_grad`. `FUSED_DORA_NORM_NONE` needs `FUSED_DORA_NORM_GRAD_DETACHED`.
    pub norm_grad: u32,
    /// A `fused_dora_dtype`.
    pub dtype: u32,
    /// 1 if the bias is trained with the adapter, 0 if it is frozen or absent.
    pub trains_bias: u32,
    /// How W is stored.
    pub weight: WeightFormat,
}

/// Where one of an adapter's tensors lies in its buffer, in f32 elements. A tensor that the adapter
/// does not have has length 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The first element.
    pub start: usize,
    /// The number of elements.
    pub len: usize,
}

/// The memory that a spec needs.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// R, the length of a row of H `[T, R]`.
    pub padded_rank: usize,
    /// Bytes of memory that `fused_dora_layer_open` needs.
    pub layer_bytes: usize,
    /// Elements of an adapter in one f32 buffer, with padding. Its gradients and each of the
    /// optimizer's moments take as many. You may use another layout: the ops take each tensor by
    /// its own address.
    pub adapter_len: usize,
    /// A `[r, I]`.
    pub lora_a: Part,
    /// B `[O, r]`.
    pub lora_b: Part,
    /// m `[I]` or `[O]`.
    pub magnitude: Part,
    /// b `[O]`.
    pub bias: Part,
    /// Bytes of W's codes; 0 for a dense W, as the two below.
    pub code_bytes: usize,
    /// The number of W's scales.
    pub scale_count: usize,
    /// The number of f32 that nested scales are scaled with; 0 without nested scales.
    pub nested_count: usize,
}

/// A row-major matrix on the device.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Device address of the first element.
    pub pointer: u64,
    /// Elements from the start of one row to the start of the next; at least the length of a row.
    pub stride: usize,
}

/// Dropout of x. All zero means no dropout.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// A `fused_dora_dropout_form`.
    pub form: u32,
    /// From 0 to 1 − 2⁻¹⁶.
    pub probability: f32,
    /// Use another seed for each layer and step, and the same in the backward as in the forward.
    pub seed: u64,
}

/// A packed W on the device, as its checkpoint has it. All zero for a dense W.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PackedWeight {
    /// The spec's `fused_dora_weight`.
    pub kind: u32,
    /// Nested scales: what is added to each of them (`nested_offset`).
    pub nested_offset: f32,
    /// The packed elements.
    pub codes: u64,
    /// Bytes at `codes`: `code_bytes` of `fused_dora_sizes_of`.
    pub code_bytes: usize,
    /// The scales, f32: `absmax`, `SCB` or fp8's multipliers. Nested: a byte each.
    pub scales: u64,
    /// Elements at `scales`: `scale_count`.
    pub scale_count: usize,
    /// Nested scales: `nested_absmax`, f32; otherwise 0.
    pub nested_absmax: u64,
    /// Elements at `nested_absmax`: `nested_count`.
    pub nested_count: usize,
    /// Nested scales: `nested_quant_map` `[256]`, f32; otherwise 0.
    pub nested_map: u64,
}

/// Device addresses for `fused_dora_prepare`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrepareIo {
    /// W `[O, I]`; 0 if it is packed.
    pub weight: u64,
    /// W, if it is packed.
    pub packed: PackedWeight,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// m `[I]` or `[O]`, f32; 0 for plain LoRA, and 0 if `magnitude_out` is given.
    pub magnitude: u64,
    /// For a new adapter: m `[I]` or `[O]`, f32, written. m becomes the norm of V.
    pub magnitude_out: u64,
    /// b `[O]`, f32, if the spec trains the bias; otherwise 0.
    pub bias: u64,
}

/// Device addresses for `fused_dora_forward`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ForwardIo {
    /// T.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: Matrix,
    /// W `[O, I]`; 0 if it is packed.
    pub weight: u64,
    /// W, if it is packed.
    pub packed: PackedWeight,
    /// The frozen b `[O]`, in the dtype; 0 if there is none. Not read if the spec trains the bias.
    pub bias: u64,
    /// Seed of the stochastic rounding, which norm axis input uses in 16 bit. Use another seed each
    /// step.
    pub seed: u64,
    /// Dropout of x.
    pub dropout: Dropout,
    /// For captured graphs: device address of a counter `[1]`, u64, which both seeds are combined
    /// with when the kernel runs; otherwise 0. Zero it before the first step.
    pub counter: u64,
    /// z `[T, O]`, written with PEFT's dropout and norm axis output: keep it for the backward.
    /// Otherwise not used.
    pub z: u64,
    /// y `[T, O]`, written.
    pub y: Matrix,
    /// H `[T, R]`, in the dtype, written: keep it for the backward. 0 for rank 0.
    pub h: u64,
}

/// Device addresses for `fused_dora_backward`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BackwardIo {
    /// T.
    pub tokens: usize,
    /// A `fused_dora_gradients`.
    pub gradients: u32,
    /// x `[T, I]`, as given to the forward.
    pub x: Matrix,
    /// W `[O, I]`; 0 if it is packed.
    pub weight: u64,
    /// W, if it is packed.
    pub packed: PackedWeight,
    /// The frozen b `[O]`, as given to the forward.
    pub bias: u64,
    /// y `[T, O]`, as the forward wrote it. Only norm axis output needs it, and not with PEFT's
    /// dropout.
    pub y: Matrix,
    /// z `[T, O]`, as the forward wrote it.
    pub z: u64,
    /// The forward's dropout.
    pub dropout: Dropout,
    /// The forward's counter, which must not have changed since; 0 if it had none.
    pub counter: u64,
    /// dY `[T, O]`.
    pub grad_output: Matrix,
    /// H `[T, R]`, as the forward wrote it.
    pub h: u64,
    /// dX `[T, I]`, written; address 0 if you do not need it.
    pub grad_input: Matrix,
    /// dA `[r, I]`, f32.
    pub grad_lora_a: u64,
    /// dB `[O, r]`, f32.
    pub grad_lora_b: u64,
    /// dm `[I]` or `[O]`, f32; 0 for plain LoRA.
    pub grad_magnitude: u64,
    /// db `[O]`, f32; 0 if you do not need it.
    pub grad_bias: u64,
}

/// Device addresses for `fused_dora_norm_gradient`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct NormGradientIo {
    /// W `[O, I]`; 0 if it is packed.
    pub weight: u64,
    /// W, if it is packed.
    pub packed: PackedWeight,
    /// A `[r, I]`, f32.
    pub lora_a: u64,
    /// B `[O, r]`, f32.
    pub lora_b: u64,
    /// dm `[I]` or `[O]`, f32, summed over all micro-batches of the step.
    pub grad_magnitude: u64,
    /// dA `[r, I]`, f32, read and written.
    pub grad_lora_a: u64,
    /// dB `[O, r]`, f32, read and written.
    pub grad_lora_b: u64,
}

/// A range of elements that the optimizer treats alike.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct OptimizerPart {
    /// The first element. A multiple of 4 is faster.
    pub start: usize,
    /// The number of elements.
    pub len: usize,
    /// The factor of the learning rate: 1, or more for B (LoRA+).
    pub learning_rate_factor: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The arguments of `fused_dora_gradient_norm`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GradientNormIo {
    /// The ranges that count, in ascending order and disjoint; on the host.
    pub parts: *const OptimizerPart,
    /// The number of ranges.
    pub part_count: usize,
    /// Elements of the gradients.
    pub len: usize,
    /// Device address of the gradients, f32.
    pub gradients: u64,
    /// Device address of the norm `[1]`, f32, written.
    pub norm: u64,
}

/// The arguments of `fused_dora_adamw`: four f32 buffers of the same length.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdamwIo {
    /// The ranges to update, in ascending order and disjoint; on the host.
    pub parts: *const OptimizerPart,
    /// The number of ranges.
    pub part_count: usize,
    /// 0.9, for example.
    pub beta1: f64,
    /// 0.999, for example.
    pub beta2: f64,
    /// 1e-8, for example.
    pub epsilon: f64,
    /// The learning rate; not read if `schedule` is given.
    pub learning_rate: f64,
    /// The number of the step, which counts from 1; not read if `schedule` is given.
    pub step: u64,
    /// For captured graphs: device address of the learning rate and the step `[2]`, f32; otherwise
    /// 0.
    pub schedule: u64,
    /// For captured graphs: device address of the counter `[1]`, u64, that the forwards read. The
    /// step adds 1 to it. 0 if there is none, and 0 if `schedule` is 0. If several calls make up a
    /// step, give it to the last one.
    pub counter: u64,
    /// Longer gradients are scaled down to this norm; not read if `norm` is 0.
    pub max_norm: f64,
    /// Device address of the gradient's norm `[1]`, f32; 0 for no clipping.
    pub norm: u64,
    /// Elements of each buffer.
    pub len: usize,
    /// Device address of the parameters, updated.
    pub parameters: u64,
    /// Device address of the gradients.
    pub gradients: u64,
    /// Device address of the running mean of the gradient, updated. Zero it before the first step.
    pub exp_avg: u64,
    /// Device address of the running mean of the squared gradient, updated. Zero it before the
    /// first step.
    pub exp_avg_sq: u64,
}

/// Device addresses for `fused_dora_merge`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MergeIo {
    /// W `[O, I]`; 0 if it is packed.
    pub weight: u64,
    /// W, if it is packed.
    pub packed: PackedWeight,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// W' `[O, I]`, written. It may be W itself if both have the same dtype.
    pub merged: u64,
    /// A `fused_dora_dtype`: the dtype of W'.
    pub merged_dtype: u32,
    /// `[3]`, f64, written: the squared norms of D and of E, and their inner product, where D is
    /// the adapter's change of the weight and E the rounding error of W'. 0 if you do not need it.
    pub report: u64,
}

/// Device addresses for `fused_dora_unmerge`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UnmergeIo {
    /// W' `[O, I]`.
    pub merged: u64,
    /// A `fused_dora_dtype`: the dtype of W'.
    pub merged_dtype: u32,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// W `[O, I]`, written. It may be W' itself if both have the same dtype.
    pub weight: u64,
}

/// Device addresses for `fused_dora_quantize`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct QuantizeIo {
    /// W `[O, I]`, of the spec's dtype.
    pub weight: u64,
    /// The packed W in the spec's format: `codes`, `scales` and `nested_absmax` are written, and
    /// `nested_map` is read.
    pub packed: PackedWeight,
    /// Nested scales: where their mean `[1]`, f32, is written, which they are packed by: read it back for
    /// `nested_offset`. 0 to pack them by `packed.nested_offset`.
    pub offset: u64,
}

/// Device addresses for `fused_dora_dequantize`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DequantizeIo {
    /// The packed W in the spec's format.
    pub packed: PackedWeight,
    /// W `[O, I]`, of the spec's dtype, written.
    pub target: u64,
}
