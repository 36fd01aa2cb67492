/*
 * fused-dora: CUDA kernels for DoRA, forward and backward, from C and C++.
 *
 * The caller owns the CUDA context, the streams and all device memory. It opens the kernels once per
 * context, a workspace once per stream, and a layer for each layer; the ops then take a structure of
 * device addresses. They run on the stream and allocate nothing on the device. Only the unmerge
 * waits for the stream.
 *
 * Zero each structure before you fill it. A forgotten field is then an error or an absent tensor.
 *
 * Functions that can fail return a status, and fused_dora_last_error returns the text. What handles
 * and numbers show is checked before anything is launched.
 *
 * The safety of all functions:
 * - A host pointer that is neither null nor misaligned points to what its type says during the call.
 * - A handle comes from the function that opens it, and is not closed. Several threads may use it at
 *   once, but only one may close it.
 * - A stream is a CUstream (or cudaStream_t) of the kernels' context, or null for its default
 *   stream.
 * - A device address other than 0 is of memory in that context. The memory holds, or has room for,
 *   what its structure says. It stays valid until the stream has run the op, other uses of it are
 *   ordered against the stream, and nothing else overlaps with what the op writes.
 */


#ifndef FUSED_DORA_H
#define FUSED_DORA_H

/* Made from src/lib.rs: FUSED_DORA_BLESS=1 cargo test -p fused-dora-capi header */

#include <stddef.h>
#include <stdint.h>

// Whether a function succeeded. An op makes all checks before it launches anything: unless the
// status is `FUSED_DORA_STATUS_DRIVER` or `FUSED_DORA_STATUS_PANIC`, an op that failed has not
// touched device memory. `fused_dora_last_error` returns the text, with the numbers and the
// remedy.
typedef enum fused_dora_status {
    // Success: done, or queued on the stream.
    FUSED_DORA_STATUS_OK = 0,
    // A host pointer is null, or not aligned for what it points to.
    FUSED_DORA_STATUS_NULL_ARGUMENT,
    // A bug in the library.
    FUSED_DORA_STATUS_PANIC,
    // A layer that cannot exist, or a setting that makes no sense.
    FUSED_DORA_STATUS_INVALID_SPEC,
    // A part of a packed weight has the wrong length.
    FUSED_DORA_STATUS_SHAPE,
    // Rows that overlap, or lie too far apart.
    FUSED_DORA_STATUS_STRIDE,
    // A device address that is not a multiple of what it must be.
    FUSED_DORA_STATUS_MISALIGNED,
    // A tensor of another dtype than the spec's. No function of this interface returns it.
    FUSED_DORA_STATUS_DTYPE,
    // A tensor that the op needs has address 0.
    FUSED_DORA_STATUS_MISSING_TENSOR,
    // A tensor was given that this kind of layer does not have.
    FUSED_DORA_STATUS_UNEXPECTED_TENSOR,
    // `fused_dora_norm_gradient` for a layer whose gradients do not flow through a norm.
    FUSED_DORA_STATUS_NO_NORM_GRADIENT,
    // An op before `fused_dora_prepare`.
    FUSED_DORA_STATUS_NOT_PREPARED,
    // A workspace that was opened for smaller layers or fewer tokens.
    FUSED_DORA_STATUS_WORKSPACE_TOO_SMALL,
    // An unmerge where a gain is 0.
    FUSED_DORA_STATUS_LOST_FEATURE,
    // An adapter that does not fit its layer. No function of this interface returns it.
    FUSED_DORA_STATUS_ADAPTER,
    // A launch that is larger than the device allows.
    FUSED_DORA_STATUS_DEVICE_LIMIT,
    // A GPU before Ampere.
    FUSED_DORA_STATUS_UNSUPPORTED_ARCHITECTURE,
    // The library was built without NVRTC and holds no kernels.
    FUSED_DORA_STATUS_KERNELS_NOT_BUILT,
    // No CUDA driver.
    FUSED_DORA_STATUS_DRIVER_MISSING,
    // A device that does not exist.
    FUSED_DORA_STATUS_NO_DEVICE,
    // A driver that is older than the NVRTC that compiled the kernels.
    FUSED_DORA_STATUS_PTX_TOO_NEW,
    // Handles of different CUDA contexts.
    FUSED_DORA_STATUS_CONTEXT_MISMATCH,
    // The CUDA driver reported an error, perhaps of an earlier launch.
    FUSED_DORA_STATUS_DRIVER,
    // Ranks that disagree in a sum over them. No function of this interface returns it.
    FUSED_DORA_STATUS_RANKS,
    // Memory for a layer or a workspace that has too few bytes.
    FUSED_DORA_STATUS_MEMORY_TOO_SMALL,
    // A step without an active adapter. No function of this interface returns it.
    FUSED_DORA_STATUS_NO_ACTIVE_ADAPTER,
    // A packed weight where the spec says a dense one, or the other way round, or another kind.
    FUSED_DORA_STATUS_WEIGHT_FORMAT,
} fused_dora_status;

// What x, W, the bias, y and their gradients are stored in. Adapters and their gradients are f32.
typedef enum fused_dora_dtype {
    // bfloat16.
    FUSED_DORA_DTYPE_BF16 = 1,
    // IEEE half precision.
    FUSED_DORA_DTYPE_F16 = 2,
    // IEEE single precision.
    FUSED_DORA_DTYPE_F32 = 3,
} fused_dora_dtype;

// The axis of V = W + s·B·A along which the norm is taken. The magnitude has one element per norm.
typedef enum fused_dora_norm {
    // Plain LoRA, which has no norm and no magnitude.
    FUSED_DORA_NORM_NONE = 1,
    // One norm per input feature: the DoRA paper, OneTrainer, LyCORIS.
    FUSED_DORA_NORM_INPUT = 2,
    // One norm per output feature: PEFT, torchtune, axolotl, MLX.
    FUSED_DORA_NORM_OUTPUT = 3,
} fused_dora_norm;

// Whether the gradients of A and B flow through the norm.
typedef enum fused_dora_norm_grad {
    // No, the backward treats the norm as a constant: the paper's section 4.3, PEFT.
    FUSED_DORA_NORM_GRAD_DETACHED = 1,
    // Yes: call `fused_dora_norm_gradient` before the optimizer.
    FUSED_DORA_NORM_GRAD_EXACT = 2,
} fused_dora_norm_grad;

// The meaning of the number `scaling` in a spec.
typedef enum fused_dora_scaling {
    // alpha of s = alpha/r (LoRA).
    FUSED_DORA_SCALING_STANDARD = 1,
    // alpha of s = alpha/sqrt(r) (rsLoRA).
    FUSED_DORA_SCALING_RANK_STABILIZED = 2,
    // s itself.
    FUSED_DORA_SCALING_VALUE = 3,
} fused_dora_scaling;

// What the backward does with the parameters' gradients that are in the buffers.
typedef enum fused_dora_gradients {
    // It replaces them: the first micro-batch of an optimizer step.
    FUSED_DORA_GRADIENTS_OVERWRITE = 1,
    // It adds to them: the later micro-batches.
    FUSED_DORA_GRADIENTS_ACCUMULATE = 2,
} fused_dora_gradients;

// Where dropout is applied.
typedef enum fused_dora_dropout_form {
    // Nowhere.
    FUSED_DORA_DROPOUT_FORM_NONE = 0,
    // In the adapter branch only.
    FUSED_DORA_DROPOUT_FORM_ADAPTER = 1,
    // As PEFT applies it. With norm axis output it needs z.
    FUSED_DORA_DROPOUT_FORM_PEFT = 2,
} fused_dora_dropout_form;

// How W is stored.
typedef enum fused_dora_weight {
    // A row-major matrix of the spec's dtype.
    FUSED_DORA_WEIGHT_DENSE = 0,
    // NF4 of bitsandbytes (QLoRA): two codes a byte, the even element in the high half, and one
    // scale for each `block` elements of the flattened W.
    FUSED_DORA_WEIGHT_NF4 = 1,
    // bitsandbytes' FP4, stored likewise.
    FUSED_DORA_WEIGHT_FP4 = 2,
    // bitsandbytes' int8 (LLM.int8): a signed byte per element, and a scale (SCB) per row.
    FUSED_DORA_WEIGHT_INT8 = 3,
    // fp8 e4m3 with one scale.
    FUSED_DORA_WEIGHT_FP8_TENSOR = 4,
    // fp8 e4m3 with a scale per row.
    FUSED_DORA_WEIGHT_FP8_ROWS = 5,
    // fp8 e4m3 with a scale per block of `block_rows` rows and `block_cols` columns.
    FUSED_DORA_WEIGHT_FP8_BLOCKS = 6,
} fused_dora_weight;

// The kernels, loaded into a context.
typedef struct fused_dora_kernels fused_dora_kernels;

// A layer: its spec, and memory for what the ops need of its adapter.
typedef struct fused_dora_layer fused_dora_layer;

// Scratch memory that all layers of a stream share. It holds nothing between calls. Calls that
// share a workspace must be ordered on the device.
typedef struct fused_dora_workspace fused_dora_workspace;

// How W is stored. All zero means a dense W. Fields that a kind does not have must be 0.
typedef struct fused_dora_weight_format {
    // A `fused_dora_weight`.
    uint32_t kind;
    // NF4 and FP4: elements of a block, a power of two from 32 to 4096.
    uint32_t block;
    // NF4 and FP4: 1 if the blocks' scales are nested (double quantisation), 0 if they are f32.
    uint32_t nested;
    // NF4 and FP4: a `fused_dora_dtype`, that of bitsandbytes' `quant_state`, which W is rounded
    // to.
    uint32_t state;
    // `FUSED_DORA_WEIGHT_FP8_BLOCKS`: rows of a block.
    uint32_t block_rows;
    // `FUSED_DORA_WEIGHT_FP8_BLOCKS`: columns of a block.
    uint32_t block_cols;
} fused_dora_weight_format;

// A layer with I input features and O output features, y = x·W'ᵀ + b, and an adapter of rank r.
// Below, R is r rounded up to a multiple of 16, and T is the number of tokens. All matrices are
// row-major.
typedef struct fused_dora_spec {
    // I.
    size_t in_features;
    // O.
    size_t out_features;
    // r; 0 for an adapter without A and B.
    size_t rank;
    // A `fused_dora_scaling`.
    uint32_t scaling_kind;
    // alpha or s, as `scaling_kind` says.
    float scaling;
    // A `fused_dora_norm`.
    uint32_t norm;
    // A `fused_dora_norm_grad`. `FUSED_DORA_NORM_NONE` needs `FUSED_DORA_NORM_GRAD_DETACHED`.
    uint32_t norm_grad;
    // A `fused_dora_dtype`.
    uint32_t dtype;
    // 1 if the bias is trained with the adapter, 0 if it is frozen or absent.
    uint32_t trains_bias;
    // How W is stored.
    struct fused_dora_weight_format weight;
} fused_dora_spec;

// Where one of an adapter's tensors lies in its buffer, in f32 elements. A tensor that the adapter
// does not have has length 0.
typedef struct fused_dora_part {
    // The first element.
    size_t start;
    // The number of elements.
    size_t len;
} fused_dora_part;

// The memory that a spec needs.
typedef struct fused_dora_sizes {
    // R, the length of a row of H `[T, R]`.
    size_t padded_rank;
    // Bytes of memory that `fused_dora_layer_open` needs.
    size_t layer_bytes;
    // Elements of an adapter in one f32 buffer, with padding. Its gradients and each of the
    // optimizer's moments take as many. You may use another layout: the ops take each tensor by
    // its own address.
    size_t adapter_len;
    // A `[r, I]`.
    struct fused_dora_part lora_a;
    // B `[O, r]`.
    struct fused_dora_part lora_b;
    // m `[I]` or `[O]`.
    struct fused_dora_part magnitude;
    // b `[O]`.
    struct fused_dora_part bias;
    // Bytes of W's codes; 0 for a dense W, as the two below.
    size_t code_bytes;
    // The number of W's scales.
    size_t scale_count;
    // The number of f32 that nested scales are scaled with; 0 without nested scales.
    size_t nested_count;
} fused_dora_sizes;

// A packed W on the device, as its checkpoint has it. All zero for a dense W.
typedef struct fused_dora_packed_weight {
    // The spec's `fused_dora_weight`.
    uint32_t kind;
    // Nested scales: what is added to each of them (`nested_offset`).
    float nested_offset;
    // The packed elements.
    uint64_t codes;
    // Bytes at `codes`: `code_bytes` of `fused_dora_sizes_of`.
    size_t code_bytes;
    // The scales, f32: `absmax`, `SCB` or fp8's multipliers. Nested: a byte each.
    uint64_t scales;
    // Elements at `scales`: `scale_count`.
    size_t scale_count;
    // Nested scales: `nested_absmax`, f32; otherwise 0.
    uint64_t nested_absmax;
    // Elements at `nested_absmax`: `nested_count`.
    size_t nested_count;
    // Nested scales: `nested_quant_map` `[256]`, f32; otherwise 0.
    uint64_t nested_map;
} fused_dora_packed_weight;

// Device addresses for `fused_dora_prepare`.
typedef struct fused_dora_prepare_io {
    // W `[O, I]`; 0 if it is packed.
    uint64_t weight;
    // W, if it is packed.
    struct fused_dora_packed_weight packed;
    // A `[r, I]`, f32; 0 for rank 0.
    uint64_t lora_a;
    // B `[O, r]`, f32; 0 for rank 0.
    uint64_t lora_b;
    // m `[I]` or `[O]`, f32; 0 for plain LoRA, and 0 if `magnitude_out` is given.
    uint64_t magnitude;
    // For a new adapter: m `[I]` or `[O]`, f32, written. m becomes the norm of V.
    uint64_t magnitude_out;
    // b `[O]`, f32, if the spec trains the bias; otherwise 0.
    uint64_t bias;
} fused_dora_prepare_io;

// A row-major matrix on the device.
typedef struct fused_dora_matrix {
    // Device address of the first element.
    uint64_t pointer;
    // Elements from the start of one row to the start of the next; at least the length of a row.
    size_t stride;
} fused_dora_matrix;

// Dropout of x. All zero means no dropout.
typedef struct fused_dora_dropout {
    // A `fused_dora_dropout_form`.
    uint32_t form;
    // From 0 to 1 − 2⁻¹⁶.
    float probability;
    // Use another seed for each layer and step, and the same in the backward as in the forward.
    uint64_t seed;
} fused_dora_dropout;

// Device addresses for `fused_dora_forward`.
typedef struct fused_dora_forward_io {
    // T.
    size_t tokens;
    // x `[T, I]`.
    struct fused_dora_matrix x;
    // W `[O, I]`; 0 if it is packed.
    uint64_t weight;
    // W, if it is packed.
    struct fused_dora_packed_weight packed;
    // The frozen b `[O]`, in the dtype; 0 if there is none. Not read if the spec trains the bias.
    uint64_t bias;
    // Seed of the stochastic rounding, which norm axis input uses in 16 bit. Use another seed each
    // step.
    uint64_t seed;
    // Dropout of x.
    struct fused_dora_dropout dropout;
    // For captured graphs: device address of a counter `[1]`, u64, which both seeds are combined
    // with when the kernel runs; otherwise 0. Zero it before the first step.
    uint64_t counter;
    // z `[T, O]`, written with PEFT's dropout and norm axis output: keep it for the backward.
    // Otherwise not used.
    uint64_t z;
    // y `[T, O]`, written.
    struct fused_dora_matrix y;
    // H `[T, R]`, in the dtype, written: keep it for the backward. 0 for rank 0.
    uint64_t h;
} fused_dora_forward_io;

// Device addresses for `fused_dora_backward`.
typedef struct fused_dora_backward_io {
    // T.
    size_t tokens;
    // A `fused_dora_gradients`.
    uint32_t gradients;
    // x `[T, I]`, as given to the forward.
    struct fused_dora_matrix x;
    // W `[O, I]`; 0 if it is packed.
    uint64_t weight;
    // W, if it is packed.
    struct fused_dora_packed_weight packed;
    // The frozen b `[O]`, as given to the forward.
    uint64_t bias;
    // y `[T, O]`, as the forward wrote it. Only norm axis output needs it, and not with PEFT's
    // dropout.
    struct fused_dora_matrix y;
    // z `[T, O]`, as the forward wrote it.
    uint64_t z;
    // The forward's dropout.
    struct fused_dora_dropout dropout;
    // The forward's counter, which must not have changed since; 0 if it had none.
    uint64_t counter;
    // dY `[T, O]`.
    struct fused_dora_matrix grad_output;
    // H `[T, R]`, as the forward wrote it.
    uint64_t h;
    // dX `[T, I]`, written; address 0 if you do not need it.
    struct fused_dora_matrix grad_input;
    // dA `[r, I]`, f32.
    uint64_t grad_lora_a;
    // dB `[O, r]`, f32.
    uint64_t grad_lora_b;
    // dm `[I]` or `[O]`, f32; 0 for plain LoRA.
    uint64_t grad_magnitude;
    // db `[O]`, f32; 0 if you do not need it.
    uint64_t grad_bias;
} fused_dora_backward_io;

// Device addresses for `fused_dora_norm_gradient`.
typedef struct fused_dora_norm_gradient_io {
    // W `[O, I]`; 0 if it is packed.
    uint64_t weight;
    // W, if it is packed.
    struct fused_dora_packed_weight packed;
    // A `[r, I]`, f32.
    uint64_t lora_a;
    // B `[O, r]`, f32.
    uint64_t lora_b;
    // dm `[I]` or `[O]`, f32, summed over all micro-batches of the step.
    uint64_t grad_magnitude;
    // dA `[r, I]`, f32, read and written.
    uint64_t grad_lora_a;
    // dB `[O, r]`, f32, read and written.
    uint64_t grad_lora_b;
} fused_dora_norm_gradient_io;

// A range of elements that the optimizer treats alike.
typedef struct fused_dora_optimizer_part {
    // The first element. A multiple of 4 is faster.
    size_t start;
    // The number of elements.
    size_t len;
    // The factor of the learning rate: 1, or more for B (LoRA+).
    double learning_rate_factor;
    // Decoupled weight decay.
    double weight_decay;
} fused_dora_optimizer_part;

// The arguments of `fused_dora_gradient_norm`.
typedef struct fused_dora_gradient_norm_io {
    // The ranges that count, in ascending order and disjoint; on the host.
    const struct fused_dora_optimizer_part *parts;
    // The number of ranges.
    size_t part_count;
    // Elements of the gradients.
    size_t len;
    // Device address of the gradients, f32.
    uint64_t gradients;
    // Device address of the norm `[1]`, f32, written.
    uint64_t norm;
} fused_dora_gradient_norm_io;

// The arguments of `fused_dora_adamw`: four f32 buffers of the same length.
typedef struct fused_dora_adamw_io {
    // The ranges to update, in ascending order and disjoint; on the host.
    const struct fused_dora_optimizer_part *parts;
    // The number of ranges.
    size_t part_count;
    // 0.9, for example.
    double beta1;
    // 0.999, for example.
    double beta2;
    // 1e-8, for example.
    double epsilon;
    // The learning rate; not read if `schedule` is given.
    double learning_rate;
    // The number of the step, which counts from 1; not read if `schedule` is given.
    uint64_t step;
    // For captured graphs: device address of the learning rate and the step `[2]`, f32; otherwise
    // 0.
    uint64_t schedule;
    // For captured graphs: device address of the counter `[1]`, u64, that the forwards read. The
    // step adds 1 to it. 0 if there is none, and 0 if `schedule` is 0. If several calls make up a
    // step, give it to the last one.
    uint64_t counter;
    // Longer gradients are scaled down to this norm; not read if `norm` is 0.
    double max_norm;
    // Device address of the gradient's norm `[1]`, f32; 0 for no clipping.
    uint64_t norm;
    // Elements of each buffer.
    size_t len;
    // Device address of the parameters, updated.
    uint64_t parameters;
    // Device address of the gradients.
    uint64_t gradients;
    // Device address of the running mean of the gradient, updated. Zero it before the first step.
    uint64_t exp_avg;
    // Device address of the running mean of the squared gradient, updated. Zero it before the
    // first step.
    uint64_t exp_avg_sq;
} fused_dora_adamw_io;

// Device addresses for `fused_dora_merge`.
typedef struct fused_dora_merge_io {
    // W `[O, I]`; 0 if it is packed.
    uint64_t weight;
    // W, if it is packed.
    struct fused_dora_packed_weight packed;
    // A `[r, I]`, f32; 0 for rank 0.
    uint64_t lora_a;
    // B `[O, r]`, f32; 0 for rank 0.
    uint64_t lora_b;
    // W' `[O, I]`, written. It may be W itself if both have the same dtype.
    uint64_t merged;
    // A `fused_dora_dtype`: the dtype of W'.
    uint32_t merged_dtype;
    // `[3]`, f64, written: the squared norms of D and of E, and their inner product, where D is
    // the adapter's change of the weight and E the rounding error of W'. 0 if you do not need it.
    uint64_t report;
} fused_dora_merge_io;

// Device addresses for `fused_dora_unmerge`.
typedef struct fused_dora_unmerge_io {
    // W' `[O, I]`.
    uint64_t merged;
    // A `fused_dora_dtype`: the dtype of W'.
    uint32_t merged_dtype;
    // A `[r, I]`, f32; 0 for rank 0.
    uint64_t lora_a;
    // B `[O, r]`, f32; 0 for rank 0.
    uint64_t lora_b;
    // W `[O, I]`, written. It may be W' itself if both have the same dtype.
    uint64_t weight;
} fused_dora_unmerge_io;

// Device addresses for `fused_dora_quantize`.
typedef struct fused_dora_quantize_io {
    // W `[O, I]`, of the spec's dtype.
    uint64_t weight;
    // The packed W in the spec's format: `codes`, `scales` and `nested_absmax` are written, and
    // `nested_map` is read.
    struct fused_dora_packed_weight packed;
    // Nested scales: where their mean `[1]`, f32, is written, which they are packed by: read it back for
    // `nested_offset`. 0 to pack them by `packed.nested_offset`.
    uint64_t offset;
} fused_dora_quantize_io;

// Device addresses for `fused_dora_dequantize`.
typedef struct fused_dora_dequantize_io {
    // The packed W in the spec's format.
    struct fused_dora_packed_weight packed;
    // W `[O, I]`, of the spec's dtype, written.
    uint64_t target;
} fused_dora_dequantize_io;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The text of the last failure in this thread, with its numbers and the remedy; empty if no call
// has failed. The text is valid until the next call that fails in this thread, or until the thread
// ends.
const char *fused_dora_last_error(void);

// Opens the kernels in a CUcontext. A primary context, which the CUDA runtime and most libraries
// use, is retained until everything that was opened in it is closed. Any other context must live
// until then.
//
// # Safety
// That of all functions; `context` is a CUDA context.
enum fused_dora_status fused_dora_kernels_open(void *context, struct fused_dora_kernels **kernels);

// Closes the kernels; does nothing for null. Workspaces and layers that were opened with them keep
// what they need.
//
// # Safety
// That of all functions.
void fused_dora_kernels_close(struct fused_dora_kernels *kernels);

// The memory that a spec needs, and how its adapter lies in one buffer.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_sizes_of(const struct fused_dora_spec *spec,
                                           struct fused_dora_sizes *sizes);

// Bytes of memory that a workspace needs for calls of up to `max_tokens` tokens, for any of the
// specs.
//
// # Safety
// That of all functions; `specs` points to `spec_count` specs.
enum fused_dora_status fused_dora_workspace_bytes(const struct fused_dora_kernels *kernels,
                                                  const struct fused_dora_spec *specs,
                                                  size_t spec_count,
                                                  size_t max_tokens,
                                                  size_t *bytes);

// Opens a workspace in memory of the caller: `bytes` at the device address `memory`, a multiple of
// 256. The workspace needs the memory until it is closed. The function zeroes the counters in it,
// on the stream, and loads the kernels that train the specs.
//
// # Safety
// That of all functions; `specs` points to `spec_count` specs, and nothing else uses the memory.
enum fused_dora_status fused_dora_workspace_open(const struct fused_dora_kernels *kernels,
                                                 const struct fused_dora_spec *specs,
                                                 size_t spec_count,
                                                 size_t max_tokens,
                                                 uint64_t memory,
                                                 size_t bytes,
                                                 void *stream,
                                                 struct fused_dora_workspace **workspace);

// Closes a workspace; does nothing for null. You can free its memory when the streams have run all
// calls that use it.
//
// # Safety
// That of all functions.
void fused_dora_workspace_close(struct fused_dora_workspace *workspace);

// Opens a layer. It keeps what the ops need of its adapter in memory of the caller: `bytes` at the
// device address `memory`, a multiple of 256. The layer needs the memory until it is closed.
// `fused_dora_sizes_of` returns the number of bytes.
//
// # Safety
// That of all functions; nothing else uses the memory.
enum fused_dora_status fused_dora_layer_open(const struct fused_dora_kernels *kernels,
                                             const struct fused_dora_spec *spec,
                                             uint64_t memory,
                                             size_t bytes,
                                             struct fused_dora_layer **layer);

// Closes a layer; does nothing for null. You can free its memory when the streams have run all
// calls that use it.
//
// # Safety
// That of all functions.
void fused_dora_layer_close(struct fused_dora_layer *layer);

// Computes the norms, the gains and the packed operands of an adapter, in one launch. Call it
// again after each change of A, B, m or b.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_prepare(const struct fused_dora_layer *layer,
                                          const struct fused_dora_workspace *workspace,
                                          void *stream,
                                          const struct fused_dora_prepare_io *io);

// Computes y, and H for the backward, in one launch.
//
// # Safety
// That of all functions; A, B, m and b have not changed since `fused_dora_prepare`.
enum fused_dora_status fused_dora_forward(const struct fused_dora_layer *layer,
                                          const struct fused_dora_workspace *workspace,
                                          void *stream,
                                          const struct fused_dora_forward_io *io);

// Computes all gradients, in one launch. It treats the norm as a constant.
//
// # Safety
// That of all functions; A, B, m and b have not changed since `fused_dora_prepare`.
enum fused_dora_status fused_dora_backward(const struct fused_dora_layer *layer,
                                           const struct fused_dora_workspace *workspace,
                                           void *stream,
                                           const struct fused_dora_backward_io *io);

// Adds the gradient through the norm to dA and dB, in two launches. Call it once per optimizer
// step, for specs with `FUSED_DORA_NORM_GRAD_EXACT`.
//
// # Safety
// That of all functions; A, B, m and b have not changed since `fused_dora_prepare`.
enum fused_dora_status fused_dora_norm_gradient(const struct fused_dora_layer *layer,
                                                const struct fused_dora_workspace *workspace,
                                                void *stream,
                                                const struct fused_dora_norm_gradient_io *io);

// Computes the norm of a gradient, for clipping, in one launch per 64 parts.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_gradient_norm(const struct fused_dora_kernels *kernels,
                                                const struct fused_dora_workspace *workspace,
                                                void *stream,
                                                const struct fused_dora_gradient_norm_io *io);

// One step of AdamW over a buffer of parameters, of one adapter or of several, in one launch per
// 64 parts.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_adamw(const struct fused_dora_kernels *kernels,
                                        void *stream,
                                        const struct fused_dora_adamw_io *io);

// Computes the adapted weight W', for export, in one launch.
//
// # Safety
// That of all functions; A, B and m have not changed since `fused_dora_prepare`.
enum fused_dora_status fused_dora_merge(const struct fused_dora_layer *layer,
                                        const struct fused_dora_workspace *workspace,
                                        void *stream,
                                        const struct fused_dora_merge_io *io);

// Computes the weight W from which W' was made. Waits for the stream, because it reads the gains
// back.
//
// # Safety
// That of all functions; A, B and m are those from which W' was made, and have not changed since
// `fused_dora_prepare`.
enum fused_dora_status fused_dora_unmerge(const struct fused_dora_layer *layer,
                                          const struct fused_dora_workspace *workspace,
                                          void *stream,
                                          const struct fused_dora_unmerge_io *io);

// Packs a W in the format of a spec, in up to three launches. Of the spec only I, O, the dtype and the
// format count.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_quantize(const struct fused_dora_kernels *kernels,
                                           const struct fused_dora_workspace *workspace,
                                           void *stream,
                                           const struct fused_dora_spec *spec,
                                           const struct fused_dora_quantize_io *io);

// Unpacks a W to the dtype of a spec, in one launch. The other ops decode a packed W themselves.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_dequantize(const struct fused_dora_kernels *kernels,
                                             void *stream,
                                             const struct fused_dora_spec *spec,
                                             const struct fused_dora_dequantize_io *io);

// The text of the last failure in this thread, with its numbers and the remedy; empty if no call
// has failed. The text is valid until the next call that fails in this thread, or until the thread
// ends.
const char *fused_dora_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FUSED_DORA_H */
