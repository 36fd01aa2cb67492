/* Each mistake, with its status and a part of its text. */

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda.h>

#include "fused_dora.h"

enum { TOKENS = 8, INPUTS = 16, OUTPUTS = 12, RANK = 4 };

static int failures = 0;

static void expect(const char *call, fused_dora_status found, fused_dora_status expected,
                   const char *text) {
    const char *error = fused_dora_last_error();
    if (found == expected && (!text || strstr(error, text))) return;
    failures++;
    printf("%s: status %d, `%s`; expected %d, `%s`\n", call, (int)found, error, (int)expected,
           text ? text : "");
}

#define EXPECT(call, status, text) expect(#call, (call), FUSED_DORA_STATUS_##status, (text))
#define OK(call) EXPECT(call, OK, NULL)

static void cuda(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS) return;
    printf("%s: CUDA error %d\n", call, (int)result);
    exit(1);
}

#define CUDA(call) cuda((call), #call)

static CUdeviceptr owned[8];
static int owned_count = 0;

static CUdeviceptr zeros(size_t bytes) {
    CUdeviceptr memory;
    CUDA(cuMemAlloc(&memory, bytes));
    CUDA(cuMemsetD8(memory, 0, bytes));
    owned[owned_count++] = memory;
    return memory;
}

static const fused_dora_spec SPEC = {
    .in_features = INPUTS,
    .out_features = OUTPUTS,
    .rank = RANK,
    .scaling_kind = FUSED_DORA_SCALING_VALUE,
    .scaling = 1,
    .norm = FUSED_DORA_NORM_OUTPUT,
    .norm_grad = FUSED_DORA_NORM_GRAD_DETACHED,
    .dtype = FUSED_DORA_DTYPE_F32,
};

static void specs(void) {
    fused_dora_sizes sizes;
    fused_dora_spec spec = SPEC;
    OK(fused_dora_sizes_of(&spec, &sizes));
    if (sizes.padded_rank != 16 || sizes.lora_a.len != RANK * INPUTS ||
        sizes.lora_b.start != RANK * INPUTS || sizes.magnitude.len != OUTPUTS ||
        sizes.bias.len != 0) {
        failures++;
        printf("wrong sizes\n");
    }
    EXPECT(fused_dora_sizes_of(NULL, &sizes), NULL_ARGUMENT, "spec is null");
    EXPECT(fused_dora_sizes_of(&spec, NULL), NULL_ARGUMENT, "sizes is null");
    const void *odd = (const char *)&spec + 1;
    EXPECT(fused_dora_sizes_of(odd, &sizes), NULL_ARGUMENT, "not a multiple of 8 bytes");

    const fused_dora_spec forgotten = {.in_features = INPUTS, .out_features = OUTPUTS};
    EXPECT(fused_dora_sizes_of(&forgotten, &sizes), INVALID_SPEC, "scaling_kind is 0");
    spec.norm = 7;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "norm is 7: it must be");
    spec = SPEC;
    spec.dtype = UINT32_MAX;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "dtype is 4294967295");
    spec = SPEC;
    spec.rank = SIZE_MAX;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "at most 2^30");
    spec = SPEC;
    spec.norm = FUSED_DORA_NORM_NONE;
    spec.norm_grad = FUSED_DORA_NORM_GRAD_EXACT;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "plain LoRA");
}

/* What a thread calls a layer with. */
typedef struct {
    const fused_dora_layer *layer;
    const fused_dora_workspace *workspace;
    CUstream stream;
    const fused_dora_forward_io *forward;
    int failures;
} fused_thread;

static void *forwards(void *argument) {
    fused_thread *thread = argument;
    for (int call = 0; call < 4; call++) {
        if (fused_dora_forward(thread->layer, thread->workspace, thread->stream,
                               thread->forward) != FUSED_DORA_STATUS_OK) {
            thread->failures++;
        }
    }
    /* This thread's text is its own. */
    if (fused_dora_forward(NULL, NULL, NULL, NULL) != FUSED_DORA_STATUS_NULL_ARGUMENT ||
        !strstr(fused_dora_last_error(), "layer is null")) {
        thread->failures++;
    }
    return NULL;
}

/* Two threads use one layer and one workspace, on one stream. */
static void threads(fused_thread thread) {
    pthread_t started[2];
    fused_thread arguments[2] = {thread, thread};
    for (int i = 0; i < 2; i++) {
        if (pthread_create(&started[i], NULL, forwards, &arguments[i]) != 0) exit(1);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(started[i], NULL);
        failures += arguments[i].failures;
        if (arguments[i].failures) printf("thread %d: %d failures\n", i, arguments[i].failures);
    }
}

/* A layer of a larger rank than its workspace and its memory were made for, and other misuse. */
static void memory(fused_dora_kernels *kernels, CUstream stream) {
    fused_dora_workspace *workspace = NULL;
    fused_dora_layer *layer = NULL;
    fused_dora_sizes sizes, larger;
    fused_dora_spec wide = SPEC;
    size_t bytes;
    wide.rank = 256;
    OK(fused_dora_sizes_of(&SPEC, &sizes));
    OK(fused_dora_sizes_of(&wide, &larger));
    OK(fused_dora_workspace_bytes(kernels, &SPEC, 1, TOKENS, &bytes));
    const CUdeviceptr scratch = zeros(bytes), operands = zeros(larger.layer_bytes);
    EXPECT(fused_dora_workspace_bytes(kernels, NULL, 1, TOKENS, &bytes), NULL_ARGUMENT, "specs");
    EXPECT(fused_dora_workspace_open(kernels, &SPEC, 1, TOKENS, scratch, bytes - 1, stream,
                                     &workspace),
           MEMORY_TOO_SMALL, "ask fused_dora_workspace_bytes for the size");
    EXPECT(fused_dora_workspace_open(kernels, &SPEC, 1, TOKENS, scratch + 8, bytes, stream,
                                     &workspace),
           MISALIGNED, "not a multiple of 256 bytes");
    EXPECT(fused_dora_workspace_open(kernels, &SPEC, 1, TOKENS, 0, bytes, stream, &workspace),
           MISSING_TENSOR, "its address is 0");
    EXPECT(fused_dora_layer_open(kernels, &wide, operands, sizes.layer_bytes, &layer),
           MEMORY_TOO_SMALL, "ask fused_dora_sizes_of for the size");
    EXPECT(fused_dora_layer_open(kernels, &SPEC, 0, sizes.layer_bytes, &layer), MISSING_TENSOR,
           "its address is 0");
    EXPECT(fused_dora_layer_open(NULL, &SPEC, operands, sizes.layer_bytes, &layer), NULL_ARGUMENT,
           "kernels is null");
    if (workspace || layer) {
        failures++;
        printf("a handle came of a failure\n");
    }

    OK(fused_dora_workspace_open(kernels, &SPEC, 1, TOKENS, scratch, bytes, stream, &workspace));
    OK(fused_dora_layer_open(kernels, &wide, operands, larger.layer_bytes, &layer));
    const CUdeviceptr tensor = zeros(65536);
    fused_dora_prepare_io prepare = {
        .weight = tensor,
        .lora_a = tensor,
        .lora_b = tensor,
        .magnitude = tensor,
    };
    fused_dora_forward_io forward = {
        .tokens = TOKENS,
        .x = {tensor, INPUTS},
        .weight = tensor,
        .y = {tensor, OUTPUTS},
        .h = tensor,
    };
    EXPECT(fused_dora_forward(layer, workspace, stream, &forward), NOT_PREPARED, "call prepare");
    OK(fused_dora_prepare(layer, workspace, stream, &prepare));
    forward.tokens = 100 * TOKENS;
    EXPECT(fused_dora_forward(layer, workspace, stream, &forward), WORKSPACE_TOO_SMALL,
           "make it with this spec among its specs and max_tokens >= 800");
    forward.tokens = TOKENS;
    fused_dora_layer_close(layer);
    OK(fused_dora_layer_open(kernels, &SPEC, operands, sizes.layer_bytes, &layer));

    prepare.bias = tensor;
    EXPECT(fused_dora_prepare(layer, workspace, stream, &prepare), UNEXPECTED_TENSOR, "bias");
    prepare.bias = 0;
    prepare.magnitude_out = tensor;
    EXPECT(fused_dora_prepare(layer, workspace, stream, &prepare), UNEXPECTED_TENSOR,
           "magnitude_out is given too");
    prepare.magnitude = prepare.magnitude_out = 0;
    EXPECT(fused_dora_prepare(layer, workspace, stream, &prepare), MISSING_TENSOR,
           "magnitude is missing");
    prepare.magnitude = tensor;
    prepare.weight = 0;
    EXPECT(fused_dora_prepare(layer, workspace, stream, &prepare), MISSING_TENSOR,
           "weight is missing: its address is 0");
    prepare.weight = tensor;
    OK(fused_dora_prepare(layer, workspace, stream, &prepare));
    forward.y.pointer = tensor + 16384;
    forward.h = tensor + 32768;
    threads((fused_thread){layer, workspace, stream, &forward, 0});
    EXPECT(fused_dora_forward(layer, workspace, stream, NULL), NULL_ARGUMENT, "io is null");
    EXPECT(fused_dora_forward(NULL, workspace, stream, &forward), NULL_ARGUMENT, "layer is null");
    EXPECT(fused_dora_forward(layer, NULL, stream, &forward), NULL_ARGUMENT, "workspace is null");
    forward.x = (fused_dora_matrix){0, 0};
    EXPECT(fused_dora_forward(layer, workspace, stream, &forward), MISSING_TENSOR,
           "x is missing: its address is 0");
    forward.x.stride = INPUTS;
    forward.x.pointer = tensor + 2;
    EXPECT(fused_dora_forward(layer, workspace, stream, &forward), MISALIGNED, "multiple of 4");
    forward.x = (fused_dora_matrix){tensor, INPUTS - 1};
    EXPECT(fused_dora_forward(layer, workspace, stream, &forward), STRIDE, "15 elements apart");
    forward.x.stride = INPUTS;
    forward.dropout = (fused_dora_dropout){.form = 9};
    EXPECT(fused_dora_forward(layer, workspace, stream, &forward), INVALID_SPEC, "form is 9");
    forward.dropout.form = FUSED_DORA_DROPOUT_FORM_ADAPTER;
    forward.dropout.probability = 1;
    EXPECT(fused_dora_forward(layer, workspace, stream, &forward), INVALID_SPEC, "is 1.0");
    const fused_dora_backward_io backward = {.tokens = TOKENS};
    EXPECT(fused_dora_backward(layer, workspace, stream, &backward), INVALID_SPEC,
           "gradients is 0");
    const fused_dora_norm_gradient_io exact = {.weight = tensor};
    EXPECT(fused_dora_norm_gradient(layer, workspace, stream, &exact), NO_NORM_GRADIENT,
           "detached");
    const fused_dora_merge_io merge = {
        .weight = tensor,
        .lora_a = tensor,
        .lora_b = tensor,
        .merged = tensor,
        .merged_dtype = FUSED_DORA_DTYPE_BF16,
    };
    EXPECT(fused_dora_merge(layer, workspace, stream, &merge), INVALID_SPEC,
           "merged_dtype is bf16");
    /* The magnitude is 0. */
    const fused_dora_unmerge_io unmerge = {
        .merged = tensor,
        .merged_dtype = FUSED_DORA_DTYPE_F32,
        .lora_a = tensor,
        .lora_b = tensor,
        .weight = tensor,
    };
    EXPECT(fused_dora_unmerge(layer, workspace, stream, &unmerge), LOST_FEATURE,
           "the gain of output feature 0 is 0");

    const fused_dora_optimizer_part parts[] = {{0, 8, 1, 0}, {4, 8, 1, 0}};
    fused_dora_gradient_norm_io norm = {.parts = parts, .part_count = 2, .len = 16,
                                        .gradients = tensor, .norm = tensor};
    EXPECT(fused_dora_gradient_norm(kernels, workspace, stream, &norm), INVALID_SPEC, "4..12");
    norm.parts = NULL;
    EXPECT(fused_dora_gradient_norm(kernels, workspace, stream, &norm), NULL_ARGUMENT, "parts");
    const fused_dora_adamw_io adamw = {.parts = parts, .part_count = 1, .epsilon = 1e-8, .len = 8};
    EXPECT(fused_dora_adamw(kernels, stream, &adamw), INVALID_SPEC, "step is 0");

    CUDA(cuStreamSynchronize(stream));
    fused_dora_layer_close(layer);
    fused_dora_workspace_close(workspace);
}

int main(void) {
    CUdevice device;
    CUcontext primary, own, current;
    CUstream stream;
    fused_dora_kernels *kernels = NULL, *others = NULL;
    CUDA(cuInit(0));
    CUDA(cuDeviceGet(&device, 0));
    CUDA(cuDevicePrimaryCtxRetain(&primary, device));
    CUDA(cuCtxSetCurrent(primary));
    CUDA(cuStreamCreate(&stream, CU_STREAM_DEFAULT));

    if (strcmp(fused_dora_last_error(), "") != 0) {
        failures++;
        printf("an error before the first\n");
    }
    EXPECT(fused_dora_kernels_open(NULL, &kernels), NULL_ARGUMENT, "context is null");
    EXPECT(fused_dora_kernels_open(primary, NULL), NULL_ARGUMENT, "kernels is null");
    OK(fused_dora_kernels_open(primary, &kernels));
    specs();
    memory(kernels, stream);

    /* Kernels of two contexts, neither of which becomes the thread's by a call. */
    CUDA(cuCtxCreate(&own, 0, device));
    CUDA(cuCtxSetCurrent(primary));
    OK(fused_dora_kernels_open(own, &others));
    CUDA(cuCtxGetCurrent(&current));
    if (current != primary) {
        failures++;
        printf("another context became current\n");
    }
    fused_dora_workspace *workspace;
    fused_dora_layer *layer;
    fused_dora_sizes sizes;
    size_t bytes;
    OK(fused_dora_sizes_of(&SPEC, &sizes));
    OK(fused_dora_workspace_bytes(kernels, &SPEC, 1, TOKENS, &bytes));
    const CUdeviceptr scratch = zeros(bytes);
    OK(fused_dora_workspace_open(kernels, &SPEC, 1, TOKENS, scratch, bytes, stream, &workspace));
    OK(fused_dora_layer_open(others, &SPEC, zeros(sizes.layer_bytes), sizes.layer_bytes, &layer));
    const fused_dora_prepare_io prepare = {.weight = 4};
    EXPECT(fused_dora_prepare(layer, workspace, stream, &prepare), CONTEXT_MISMATCH, "per context");

    /* What is still open keeps what it needs; nothing is closed by null. */
    fused_dora_kernels_close(others);
    fused_dora_kernels_close(kernels);
    fused_dora_layer_close(layer);
    fused_dora_workspace_close(workspace);
    fused_dora_kernels_close(NULL);
    fused_dora_workspace_close(NULL);
    fused_dora_layer_close(NULL);
    while (owned_count > 0) CUDA(cuMemFree(owned[--owned_count]));
    CUDA(cuCtxDestroy(own));
    CUDA(cuStreamDestroy(stream));
    CUDA(cuDevicePrimaryCtxRelease(device));
    return failures == 0 ? 0 : 1;
}
