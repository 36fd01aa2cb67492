/*
 * fused-dora: CUDA kernels for DoRA, forward and backward, from C and C++.
 *
 * The caller owns the CUDA context, the streams and all device memory. Kernels are opened once per
 * context, a workspace for all layers of a stream, and a layer for each; the ops then take a
 * structure of device addresses. They run on the stream, allocate nothing on the device, and but
 * for the unmerge wait for nothing. Structures are best zeroed first: what was forgotten is then an
 * error, or absent.
 *
 * Functions that can fail return a status; fused_dora_last_error has the text. What can be told
 * from handles and numbers is checked before anything is launched.
 *
 * The safety of all functions: a pointer of the host that is neither null nor misaligned is of what
 * its type says, for the duration of the call. A handle is one that its function opened and that is
 * not closed; several threads may use it at once, but one alone may close it. A stream is a
 * CUstream (or cudaStream_t) of the kernels' context, or null for its default stream. A device
 * address other than 0 is of memory of that context that holds, or has room for, what its structure
 * says, valid until the stream has run the op, and ordered on it against other uses; what is
 * written overlaps with nothing else.
 */


#ifndef FUSED_DORA_H
#define FUSED_DORA_H

/* Made of src/ffi.rs: FUSED_DORA_BLESS=1 cargo test --features ffi --test ffi */

#include <stddef.h>
#include <stdint.h>

// Whether a function did what it was asked. All checks come before any launch: unless the status
// is `FUSED_DORA_STATUS_DRIVER` or `FUSED_DORA_STATUS_PANIC`, an op that failed has touched no
// device memory. `fused_dora_last_error` has the numbers, and the cure.
typedef enum fused_dora_status {
    // Done, or on its way on the stream.
    FUSED_DORA_STATUS_OK = 0,
    // A pointer of the host is null, or not aligned for what it points to.
    FUSED_DORA_STATUS_NULL_ARGUMENT,
    // A defect of the library.
    FUSED_DORA_STATUS_PANIC,
    // A layer that cannot exist, or a setting that makes no sense.
    FUSED_DORA_STATUS_INVALID_SPEC,
    // Memory of the wrong size.
    FUSED_DORA_STATUS_SHAPE,
    // Rows that overlap, or lie too far apart.
    FUSED_DORA_STATUS_STRIDE,
    // A device address that no element can have.
    FUSED_DORA_STATUS_MISALIGNED,
    // Buffers of another dtype than the spec's.
    FUSED_DORA_STATUS_DTYPE,
    // A tensor that is needed has the address 0.
    FUSED_DORA_STATUS_MISSING_TENSOR,
    // A tensor was given that this kind of layer does not have.
    FUSED_DORA_STATUS_UNEXPECTED_TENSOR,
    // A gradient through the norm of a layer that has none.
    FUSED_DORA_STATUS_NO_NORM_GRADIENT,
    // An op before `fused_dora_prepare`.
    FUSED_DORA_STATUS_NOT_PREPARED,
    // A workspace made for less.
    FUSED_DORA_STATUS_WORKSPACE_TOO_SMALL,
    // An unmerge where a gain is 0.
    FUSED_DORA_STATUS_LOST_FEATURE,
    // An adapter that does not fit its layer.
    FUSED_DORA_STATUS_ADAPTER,
    // A launch larger than the device allows.
    FUSED_DORA_STATUS_DEVICE_LIMIT,
    // A GPU before Ampere.
    FUSED_DORA_STATUS_UNSUPPORTED_ARCHITECTURE,
    // The library was built without NVRTC, and holds no kernels.
    FUSED_DORA_STATUS_KERNELS_NOT_BUILT,
    // No CUDA driver.
    FUSED_DORA_STATUS_DRIVER_MISSING,
    // A device that is not there.
    FUSED_DORA_STATUS_NO_DEVICE,
    // A driver older than the NVRTC that compiled the kernels.
    FUSED_DORA_STATUS_PTX_TOO_NEW,
    // Handles of different CUDA contexts.
    FUSED_DORA_STATUS_CONTEXT_MISMATCH,
    // The CUDA driver reported an error, perhaps of an earlier launch.
    FUSED_DORA_STATUS_DRIVER,
    // Ranks that disagree in a sum over them. No function of this interface makes one yet.
    FUSED_DORA_STATUS_RANKS,
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

// Along which axis of V = W + s·B·A the norm is taken that the magnitude stands against.
typedef enum fused_dora_norm {
    // Plain LoRA, without a norm and a magnitude.
    FUSED_DORA_NORM_NONE = 1,
    // One per input feature: the DoRA paper, OneTrainer, LyCORIS.
    FUSED_DORA_NORM_INPUT = 2,
    // One per output feature: PEFT, torchtune, axolotl, MLX.
    FUSED_DORA_NORM_OUTPUT = 3,
} fused_dora_norm;

// Whether the gradients of A and B flow through the norm.
typedef enum fused_dora_norm_grad {
    // The norm is a constant of the backward: the paper's section 4.3, PEFT.
    FUSED_DORA_NORM_GRAD_DETACHED = 1,
    // They do: call `fused_dora_norm_gradient` before the optimizer.
    FUSED_DORA_NORM_GRAD_EXACT = 2,
} fused_dora_norm_grad;

// What the number `scaling` of a spec is.
typedef enum fused_dora_scaling {
    // alpha of s = alpha/r (LoRA).
    FUSED_DORA_SCALING_STANDARD = 1,
    // alpha of s = alpha/sqrt(r) (rsLoRA).
    FUSED_DORA_SCALING_RANK_STABILIZED = 2,
    // s itself.
    FUSED_DORA_SCALING_VALUE = 3,
} fused_dora_scaling;

// What becomes of the parameters' gradients that are in the buffers.
typedef enum fused_dora_gradients {
    // They are replaced: the first micro-batch of an optimizer step.
    FUSED_DORA_GRADIENTS_OVERWRITE = 1,
    // The new ones are added: the later micro-batches.
    FUSED_DORA_GRADIENTS_ACCUMULATE = 2,
} fused_dora_gradients;

// Where dropout is applied.
typedef enum fused_dora_dropout_form {
    // Nowhere.
    FUSED_DORA_DROPOUT_FORM_NONE = 0,
    // In the adapter branch alone.
    FUSED_DORA_DROPOUT_FORM_ADAPTER = 1,
    // As PEFT does it, with norm axis output: needs z.
    FUSED_DORA_DROPOUT_FORM_PEFT = 2,
} fused_dora_dropout_form;

// The kernels, loaded into a context.
typedef struct fused_dora_kernels fused_dora_kernels;

// A layer: its spec, and memory for what the ops need of its adapter.
typedef struct fused_dora_layer fused_dora_layer;

// Scratch memory, for all layers of a stream: its contents mean nothing between calls. Calls that
// share one must be ordered.
typedef struct fused_dora_workspace fused_dora_workspace;

// A layer of I input and O output features, y = x·W'ᵀ + b, with an adapter of rank r. R below is r
// rounded up to a multiple of 16, T the number of tokens. All matrices are row-major.
typedef struct fused_dora_spec {
    // I.
    size_t in_features;
    // O.
    size_t out_features;
    // r; 0 for none of A and B.
    size_t rank;
    // A `fused_dora_scaling`.
    uint32_t scaling_kind;
    // alpha, or s.
    float scaling;
    // A `fused_dora_norm`.
    uint32_t norm;
    // A `fused_dora_norm_grad`; with `FUSED_DORA_NORM_NONE`, `FUSED_DORA_NORM_GRAD_DETACHED`.
    uint32_t norm_grad;
    // A `fused_dora_dtype`.
    uint32_t dtype;
    // 1 if the bias is trained with the adapter, 0 if it is frozen or absent.
    uint32_t trains_bias;
} fused_dora_spec;

// Where one of an adapter's tensors lies in its buffer, in f32 elements; of none, the length is 0.
typedef struct fused_dora_part {
    // The first element.
    size_t start;
    // How many.
    size_t len;
} fused_dora_part;

// What a spec asks for in memory.
typedef struct fused_dora_sizes {
    // R, the row length of H `[T, R]`.
    size_t padded_rank;
    // Bytes of the memory of `fused_dora_layer_open`.
    size_t layer_bytes;
    // Elements of an adapter in one f32 buffer, padding included, and likewise of its gradients
    // and of an optimizer's moments. This layout is a proposal: the ops take each tensor by its
    // address.
    size_t adapter_len;
    // A `[r, I]`.
    struct fused_dora_part lora_a;
    // B `[O, r]`.
    struct fused_dora_part lora_b;
    // m `[I]` or `[O]`.
    struct fused_dora_part magnitude;
    // b `[O]`.
    struct fused_dora_part bias;
} fused_dora_sizes;

// Device addresses for `fused_dora_prepare`.
typedef struct fused_dora_prepare_io {
    // W `[O, I]`.
    uint64_t weight;
    // A `[r, I]`, f32; 0 for rank 0.
    uint64_t lora_a;
    // B `[O, r]`, f32; 0 for rank 0.
    uint64_t lora_b;
    // m `[I]` or `[O]`, f32; 0 for plain LoRA and where `magnitude_out` is given.
    uint64_t magnitude;
    // For a fresh adapter: where m, the norm that is found, is written to.
    uint64_t magnitude_out;
    // b `[O]`, f32, where it is trained.
    uint64_t bias;
} fused_dora_prepare_io;

// A row-major matrix on the device.
typedef struct fused_dora_matrix {
    // Device address of the first element.
    uint64_t pointer;
    // Elements from the start of a row to that of the next, at least the row's length.
    size_t stride;
} fused_dora_matrix;

// Dropout of x; all zero for none.
typedef struct fused_dora_dropout {
    // A `fused_dora_dropout_form`.
    uint32_t form;
    // From 0 to 1 − 2⁻¹⁶.
    float probability;
    // Another one for each layer and step; the same in the backward as in the forward.
    uint64_t seed;
} fused_dora_dropout;

// Device addresses for `fused_dora_forward`.
typedef struct fused_dora_forward_io {
    // T.
    size_t tokens;
    // x `[T, I]`.
    struct fused_dora_matrix x;
    // W `[O, I]`.
    uint64_t weight;
    // The frozen b `[O]`, in the dtype; 0 where there is none, and where it is trained.
    uint64_t bias;
    // Seed of the stochastic rounding of norm axis input in 16 bit: another one each step.
    uint64_t seed;
    // Dropout of x.
    struct fused_dora_dropout dropout;
    // z `[T, O]`, written; 0 unless the dropout is PEFT's.
    uint64_t z;
    // y `[T, O]`, written.
    struct fused_dora_matrix y;
    // H `[T, R]`, in the dtype, written: keep it for the backward; 0 for rank 0.
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
    // W `[O, I]`.
    uint64_t weight;
    // The frozen b `[O]`, as given to the forward.
    uint64_t bias;
    // y `[T, O]`, as the forward wrote it; needed for norm axis output, but with PEFT's dropout.
    struct fused_dora_matrix y;
    // z `[T, O]`, as the forward wrote it; 0 unless the dropout is PEFT's.
    uint64_t z;
    // The forward's dropout.
    struct fused_dora_dropout dropout;
    // dY `[T, O]`.
    struct fused_dora_matrix grad_output;
    // H `[T, R]`, as the forward wrote it.
    uint64_t h;
    // dX `[T, I]`, written; address 0 where it is not wanted.
    struct fused_dora_matrix grad_input;
    // dA `[r, I]`, f32.
    uint64_t grad_lora_a;
    // dB `[O, r]`, f32.
    uint64_t grad_lora_b;
    // dm `[I]` or `[O]`, f32.
    uint64_t grad_magnitude;
    // db `[O]`, f32; 0 where it is not wanted.
    uint64_t grad_bias;
} fused_dora_backward_io;

// Device addresses for `fused_dora_norm_gradient`.
typedef struct fused_dora_norm_gradient_io {
    // W `[O, I]`.
    uint64_t weight;
    // A `[r, I]`, f32.
    uint64_t lora_a;
    // B `[O, r]`, f32.
    uint64_t lora_b;
    // dm `[I]` or `[O]`, f32, of all micro-batches of the step.
    uint64_t grad_magnitude;
    // dA `[r, I]`, f32, read and written.
    uint64_t grad_lora_a;
    // dB `[O, r]`, f32, read and written.
    uint64_t grad_lora_b;
} fused_dora_norm_gradient_io;

// A range of the optimizer's buffers that is treated alike, in elements.
typedef struct fused_dora_optimizer_part {
    // The first element; a multiple of 4 is faster.
    size_t start;
    // How many.
    size_t len;
    // What the learning rate is multiplied by: 1, or more for B (LoRA+).
    double learning_rate_factor;
    // Decoupled weight decay.
    double weight_decay;
} fused_dora_optimizer_part;

// What `fused_dora_gradient_norm` takes.
typedef struct fused_dora_gradient_norm_io {
    // The ranges that count, ascending and disjoint; on the host.
    const struct fused_dora_optimizer_part *parts;
    // How many ranges.
    size_t part_count;
    // Elements of the gradients.
    size_t len;
    // Device address of the gradients, f32.
    uint64_t gradients;
    // Device address of the norm `[1]`, f32, written.
    uint64_t norm;
} fused_dora_gradient_norm_io;

// What `fused_dora_adamw` takes: four f32 buffers of one length.
typedef struct fused_dora_adamw_io {
    // The ranges to go through, ascending and disjoint; on the host.
    const struct fused_dora_optimizer_part *parts;
    // How many ranges.
    size_t part_count;
    // 0.9, for example.
    double beta1;
    // 0.999, for example.
    double beta2;
    // 1e-8, for example.
    double epsilon;
    // The learning rate, where `schedule` is 0.
    double learning_rate;
    // The number of the step, from 1, where `schedule` is 0.
    uint64_t step;
    // Device address of the learning rate and the step `[2]`, f32, for captured graphs; or 0.
    uint64_t schedule;
    // The longest gradient that is left as it is, where `norm` is not 0.
    double max_norm;
    // Device address of the gradient's norm `[1]`, f32; 0 for no clipping.
    uint64_t norm;
    // Elements of each buffer.
    size_t len;
    // Device address of the parameters, updated.
    uint64_t parameters;
    // Device address of the gradients.
    uint64_t gradients;
    // Device address of the running mean of the gradient, updated; zero before the first step.
    uint64_t exp_avg;
    // Device address of that of its square, updated; zero before the first step.
    uint64_t exp_avg_sq;
} fused_dora_adamw_io;

// Device addresses for `fused_dora_merge`.
typedef struct fused_dora_merge_io {
    // W `[O, I]`.
    uint64_t weight;
    // A `[r, I]`, f32; 0 for rank 0.
    uint64_t lora_a;
    // B `[O, r]`, f32; 0 for rank 0.
    uint64_t lora_b;
    // W' `[O, I]`, written; may be W, if it is of the same dtype.
    uint64_t merged;
    // A `fused_dora_dtype`: that of W'.
    uint32_t merged_dtype;
    // `[3]`, f64, written: with D the adapter's change of the weight and E the error of rounding
    // W', the squared norms of D and E, and their inner product; 0 where they are not wanted.
    uint64_t report;
} fused_dora_merge_io;

// Device addresses for `fused_dora_unmerge`.
typedef struct fused_dora_unmerge_io {
    // W' `[O, I]`.
    uint64_t merged;
    // A `fused_dora_dtype`: that of W'.
    uint32_t merged_dtype;
    // A `[r, I]`, f32; 0 for rank 0.
    uint64_t lora_a;
    // B `[O, r]`, f32; 0 for rank 0.
    uint64_t lora_b;
    // W `[O, I]`, written; may be W', if it is of the same dtype.
    uint64_t weight;
} fused_dora_unmerge_io;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What went wrong in the last call of this thread that failed, with its numbers and what to do
// about it; empty if none has. Valid until the thread's next call that fails, or its end.
const char *fused_dora_last_error(void);

// Opens the kernels on a CUcontext. The primary context, which the CUDA runtime and most libraries
// use, is retained until all that was opened on it is closed; any other must live as long.
//
// # Safety
// That of all functions; `context` is a CUDA context.
enum fused_dora_status fused_dora_kernels_open(void *context, struct fused_dora_kernels **kernels);

// Closes the kernels; null is left alone. Workspaces and layers that were opened of them keep what
// they need.
//
// # Safety
// That of all functions.
void fused_dora_kernels_close(struct fused_dora_kernels *kernels);

// What a spec asks for in memory, and how its adapter lies in one buffer.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_sizes_of(const struct fused_dora_spec *spec,
                                           struct fused_dora_sizes *sizes);

// Bytes of the memory that a workspace needs for calls of up to `max_tokens` tokens, for any of
// the specs.
//
// # Safety
// That of all functions; `specs` are `spec_count`.
enum fused_dora_status fused_dora_workspace_bytes(const struct fused_dora_kernels *kernels,
                                                  const struct fused_dora_spec *specs,
                                                  size_t spec_count,
                                                  size_t max_tokens,
                                                  size_t *bytes);

// Opens a workspace in memory of the caller: `bytes` at the device address `memory`, a multiple of
// 256, which it needs until it is closed. Sets what has to be zero, on the stream, and loads the
// kernels that train the specs.
//
// # Safety
// That of all functions; `specs` are `spec_count`, and nothing else uses the memory.
enum fused_dora_status fused_dora_workspace_open(const struct fused_dora_kernels *kernels,
                                                 const struct fused_dora_spec *specs,
                                                 size_t spec_count,
                                                 size_t max_tokens,
                                                 uint64_t memory,
                                                 size_t bytes,
                                                 void *stream,
                                                 struct fused_dora_workspace **workspace);

// Closes a workspace; null is left alone. Its memory can be freed when the streams are through.
//
// # Safety
// That of all functions.
void fused_dora_workspace_close(struct fused_dora_workspace *workspace);

// Opens a layer. What the ops need of its adapter is kept in memory of the caller: `bytes` at the
// device address `memory`, a multiple of 256, which the layer needs until it is closed;
// `fused_dora_sizes_of` tells how many.
//
// # Safety
// That of all functions; nothing else uses the memory.
enum fused_dora_status fused_dora_layer_open(const struct fused_dora_kernels *kernels,
                                             const struct fused_dora_spec *spec,
                                             uint64_t memory,
                                             size_t bytes,
                                             struct fused_dora_layer **layer);

// Closes a layer; null is left alone. Its memory can be freed when the streams are through.
//
// # Safety
// That of all functions.
void fused_dora_layer_close(struct fused_dora_layer *layer);

// The norms, the gains and the packed operands of an adapter, to be computed again after each
// change of A, B, m or b: one launch.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_prepare(const struct fused_dora_layer *layer,
                                          const struct fused_dora_workspace *workspace,
                                          void *stream,
                                          const struct fused_dora_prepare_io *io);

// y, and H for the backward: one launch.
//
// # Safety
// That of all functions; A, B, m and b are as they were when they were prepared.
enum fused_dora_status fused_dora_forward(const struct fused_dora_layer *layer,
                                          const struct fused_dora_workspace *workspace,
                                          void *stream,
                                          const struct fused_dora_forward_io *io);

// All gradients, the norm held constant: one launch.
//
// # Safety
// That of all functions; A, B, m and b are as they were when they were prepared.
enum fused_dora_status fused_dora_backward(const struct fused_dora_layer *layer,
                                           const struct fused_dora_workspace *workspace,
                                           void *stream,
                                           const struct fused_dora_backward_io *io);

// What flows through the norm, taken off dA and dB: two launches, once per optimizer step, for
// specs with `FUSED_DORA_NORM_GRAD_EXACT`.
//
// # Safety
// That of all functions; A, B, m and b are as they were when they were prepared.
enum fused_dora_status fused_dora_norm_gradient(const struct fused_dora_layer *layer,
                                                const struct fused_dora_workspace *workspace,
                                                void *stream,
                                                const struct fused_dora_norm_gradient_io *io);

// The norm of a gradient, for clipping: one launch per 64 parts.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_gradient_norm(const struct fused_dora_kernels *kernels,
                                                const struct fused_dora_workspace *workspace,
                                                void *stream,
                                                const struct fused_dora_gradient_norm_io *io);

// One step of AdamW over a buffer of parameters, of one adapter or of many: one launch per 64
// parts.
//
// # Safety
// That of all functions.
enum fused_dora_status fused_dora_adamw(const struct fused_dora_kernels *kernels,
                                        void *stream,
                                        const struct fused_dora_adamw_io *io);

// The adapted weight W', for export: one launch.
//
// # Safety
// That of all functions; A, B and m are as they were when they were prepared.
enum fused_dora_status fused_dora_merge(const struct fused_dora_layer *layer,
                                        const struct fused_dora_workspace *workspace,
                                        void *stream,
                                        const struct fused_dora_merge_io *io);

// The weight W that W' was made of. Waits for the stream: the gains are read back.
//
// # Safety
// That of all functions; A, B and m are as they were when W' was made, and prepared.
enum fused_dora_status fused_dora_unmerge(const struct fused_dora_layer *layer,
                                          const struct fused_dora_workspace *workspace,
                                          void *stream,
                                          const struct fused_dora_unmerge_io *io);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FUSED_DORA_H */
