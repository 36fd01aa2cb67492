/*
 * A DoRA layer trained from C. The program owns the context, the stream and all memory, and passes
 * their addresses to fused-dora. It compares y with its own sums in double.
 *
 *   cargo build --release -p fused-dora-capi
 *   cc -std=c11 -I capi/include -I "$CUDA_HOME/include" capi/examples/raw.c -o raw \
 *       -L target/release -lfused_dora -lcuda -lm
 *   LD_LIBRARY_PATH=target/release ./raw
 *
 * Without a CUDA toolkit, use the cuda.h in emulator/include. emulator/README.md says how to get a
 * libcuda without a GPU.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda.h>

#include "fused_dora.h"

enum { TOKENS = 32, INPUTS = 40, OUTPUTS = 24, RANK = 4, STEPS = 40 };

static const float ALPHA = 8.0f;

/* An error of the driver or of fused-dora ends the program with its text. */

static void cuda(CUresult result, const char *call) {
    const char *text = "unknown";
    if (result == CUDA_SUCCESS) return;
    cuGetErrorString(result, &text);
    fprintf(stderr, "%s: %s\n", call, text);
    exit(1);
}

static void dora(fused_dora_status status, const char *call) {
    if (status == FUSED_DORA_STATUS_OK) return;
    fprintf(stderr, "%s: error %d: %s\n", call, (int)status, fused_dora_last_error());
    exit(1);
}

#define CUDA(call) cuda((call), #call)
#define DORA(call) dora((call), #call)

static CUdeviceptr owned[16];
static int owned_count = 0;

static CUdeviceptr zeros(size_t bytes) {
    CUdeviceptr memory;
    CUDA(cuMemAlloc(&memory, bytes));
    CUDA(cuMemsetD8(memory, 0, bytes));
    owned[owned_count++] = memory;
    return memory;
}

static CUdeviceptr upload(const float *values, size_t len) {
    CUdeviceptr memory = zeros(len * sizeof *values);
    CUDA(cuMemcpyHtoD(memory, values, len * sizeof *values));
    return memory;
}

static void download(float *values, CUdeviceptr memory, size_t len) {
    CUDA(cuMemcpyDtoH(values, memory, len * sizeof *values));
}

/* Numbers from -bound to bound, by a linear congruential generator. */
static void fill(float *values, size_t len, float bound) {
    static uint32_t state = 1;
    for (size_t i = 0; i < len; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = bound * ((float)(state >> 8) / 8388608.0f - 1.0f);
    }
}

/*
 * The largest distance of y from x times m * (W + s B A) / (norm of its rows), as a share of the
 * error bound of products in f32.
 */
static double worst_error(const float *y, const float *x, const float *weight, const float *a,
                          const float *b, const float *m) {
    const double scaling = ALPHA / RANK, unit = 64 * ldexp(1, -24);
    double worst = 0;
    for (int o = 0; o < OUTPUTS; o++) {
        double v[INPUTS], size[INPUTS], squares = 0;
        for (int i = 0; i < INPUTS; i++) {
            double change = 0, sizes = 0;
            for (int k = 0; k < RANK; k++) {
                const double product = scaling * b[o * RANK + k] * a[k * INPUTS + i];
                change += product;
                sizes += fabs(product);
            }
            v[i] = weight[o * INPUTS + i] + change;
            size[i] = fabs(weight[o * INPUTS + i]) + sizes;
            squares += v[i] * v[i];
        }
        const double gain = m[o] / sqrt(squares);
        for (int t = 0; t < TOKENS; t++) {
            double expected = 0, bound = 0;
            for (int i = 0; i < INPUTS; i++) {
                expected += gain * x[t * INPUTS + i] * v[i];
                bound += unit * fabs(gain * x[t * INPUTS + i]) * size[i];
            }
            worst = fmax(worst, fabs(y[t * OUTPUTS + o] - expected) / bound);
        }
    }
    return worst;
}

int main(void) {
    static float x[TOKENS * INPUTS], y[TOKENS * OUTPUTS], wanted[TOKENS * OUTPUTS];
    static float weight[OUTPUTS * INPUTS], grad[TOKENS * OUTPUTS];

    /* What a trainer has. */
    CUdevice device;
    CUcontext context;
    CUstream stream;
    CUDA(cuInit(0));
    CUDA(cuDeviceGet(&device, 0));
    CUDA(cuDevicePrimaryCtxRetain(&context, device));
    CUDA(cuCtxSetCurrent(context));
    CUDA(cuStreamCreate(&stream, CU_STREAM_DEFAULT));

    /* PEFT's LoraConfig(r=4, lora_alpha=8, use_dora=True), except that the gradients are exact. */
    const fused_dora_spec spec = {
        .in_features = INPUTS,
        .out_features = OUTPUTS,
        .rank = RANK,
        .scaling_kind = FUSED_DORA_SCALING_STANDARD,
        .scaling = ALPHA,
        .norm = FUSED_DORA_NORM_OUTPUT,
        .norm_grad = FUSED_DORA_NORM_GRAD_EXACT,
        .dtype = FUSED_DORA_DTYPE_F32,
    };
    fused_dora_kernels *kernels;
    fused_dora_workspace *workspace;
    fused_dora_layer *layer;
    fused_dora_sizes sizes;
    size_t bytes;
    DORA(fused_dora_kernels_open(context, &kernels));
    DORA(fused_dora_sizes_of(&spec, &sizes));
    DORA(fused_dora_workspace_bytes(kernels, &spec, 1, TOKENS, &bytes));
    const CUdeviceptr scratch = zeros(bytes), operands = zeros(sizes.layer_bytes);
    DORA(fused_dora_workspace_open(kernels, &spec, 1, TOKENS, scratch, bytes, stream, &workspace));
    DORA(fused_dora_layer_open(kernels, &spec, operands, sizes.layer_bytes, &layer));

    /* Tensors: A is random and B is zero. The first prepare writes m. */
    fill(weight, OUTPUTS * INPUTS, 0.15f);
    fill(x, TOKENS * INPUTS, 1);
    fill(wanted, TOKENS * OUTPUTS, 1);
    float *adapter = calloc(sizes.adapter_len, sizeof *adapter);
    if (!adapter) return 1;
    fill(adapter + sizes.lora_a.start, sizes.lora_a.len, 0.15f);
    const CUdeviceptr parameters = upload(adapter, sizes.adapter_len);
    const CUdeviceptr gradients = zeros(4 * sizes.adapter_len);
    const CUdeviceptr exp_avg = zeros(4 * sizes.adapter_len);
    const CUdeviceptr exp_avg_sq = zeros(4 * sizes.adapter_len);
    const CUdeviceptr w = upload(weight, OUTPUTS * INPUTS);
    const CUdeviceptr norm = zeros(4);
    const fused_dora_matrix x_rows = {upload(x, TOKENS * INPUTS), INPUTS};
    const fused_dora_matrix y_rows = {zeros(sizeof y), OUTPUTS};
    const fused_dora_matrix grad_rows = {zeros(sizeof grad), OUTPUTS};
    const CUdeviceptr h = zeros(4 * TOKENS * sizes.padded_rank);

    fused_dora_prepare_io prepare = {
        .weight = w,
        .lora_a = parameters + 4 * sizes.lora_a.start,
        .lora_b = parameters + 4 * sizes.lora_b.start,
        .magnitude_out = parameters + 4 * sizes.magnitude.start,
    };
    const fused_dora_forward_io forward = {
        .tokens = TOKENS,
        .x = x_rows,
        .weight = w,
        .y = y_rows,
        .h = h,
    };
    const fused_dora_backward_io backward = {
        .tokens = TOKENS,
        .gradients = FUSED_DORA_GRADIENTS_OVERWRITE,
        .x = x_rows,
        .weight = w,
        .y = y_rows,
        .grad_output = grad_rows,
        .h = h,
        .grad_lora_a = gradients + 4 * sizes.lora_a.start,
        .grad_lora_b = gradients + 4 * sizes.lora_b.start,
        .grad_magnitude = gradients + 4 * sizes.magnitude.start,
    };
    const fused_dora_norm_gradient_io through_the_norm = {
        .weight = w,
        .lora_a = prepare.lora_a,
        .lora_b = prepare.lora_b,
        .grad_magnitude = backward.grad_magnitude,
        .grad_lora_a = backward.grad_lora_a,
        .grad_lora_b = backward.grad_lora_b,
    };
    const fused_dora_optimizer_part parts[] = {
        {sizes.lora_a.start, sizes.lora_a.len, 1, 0.01},
        {sizes.lora_b.start, sizes.lora_b.len, 4, 0.01},
        {sizes.magnitude.start, sizes.magnitude.len, 1, 0},
    };
    const fused_dora_gradient_norm_io measured = {
        .parts = parts,
        .part_count = 3,
        .len = sizes.adapter_len,
        .gradients = gradients,
        .norm = norm,
    };

    double first = 0, worst = 0;
    for (int step = 1; step <= STEPS; step++) {
        DORA(fused_dora_prepare(layer, workspace, stream, &prepare));
        if (step == 1) {
            prepare.magnitude = prepare.magnitude_out;
            prepare.magnitude_out = 0;
        }
        DORA(fused_dora_forward(layer, workspace, stream, &forward));

        /* The program computes the loss: half the squared distance, per token. */
        CUDA(cuStreamSynchronize(stream));
        download(y, y_rows.pointer, TOKENS * OUTPUTS);
        download(adapter, parameters, sizes.adapter_len);
        worst = fmax(worst, worst_error(y, x, weight, adapter + sizes.lora_a.start,
                                        adapter + sizes.lora_b.start,
                                        adapter + sizes.magnitude.start));
        double loss = 0;
        for (int i = 0; i < TOKENS * OUTPUTS; i++) {
            const double difference = (double)y[i] - wanted[i];
            loss += difference * difference / 2 / TOKENS;
            grad[i] = (float)(difference / TOKENS);
        }
        CUDA(cuMemcpyHtoD(grad_rows.pointer, grad, sizeof grad));

        DORA(fused_dora_backward(layer, workspace, stream, &backward));
        DORA(fused_dora_norm_gradient(layer, workspace, stream, &through_the_norm));
        DORA(fused_dora_gradient_norm(kernels, workspace, stream, &measured));
        const fused_dora_adamw_io adamw = {
            .parts = parts,
            .part_count = 3,
            .beta1 = 0.9,
            .beta2 = 0.999,
            .epsilon = 1e-8,
            .learning_rate = 0.01,
            .step = (uint64_t)step,
            .max_norm = 1,
            .norm = norm,
            .len = sizes.adapter_len,
            .parameters = parameters,
            .gradients = gradients,
            .exp_avg = exp_avg,
            .exp_avg_sq = exp_avg_sq,
        };
        DORA(fused_dora_adamw(kernels, stream, &adamw));

        if (step == 1) first = loss;
        if (step == 1 || step % 10 == 0) printf("step %2d  loss %.6f\n", step, loss);
        if (step == STEPS && loss > 0.7 * first) {
            printf("the loss did not fall\n");
            return 1;
        }
    }
    printf("largest error of y: %.3f of its bound\n", worst);

    fused_dora_layer_close(layer);
    fused_dora_workspace_close(workspace);
    fused_dora_kernels_close(kernels);
    free(adapter);
    CUDA(cuStreamSynchronize(stream));
    while (owned_count > 0) CUDA(cuMemFree(owned[--owned_count]));
    CUDA(cuStreamDestroy(stream));
    CUDA(cuDevicePrimaryCtxRelease(device));
    return worst <= 1 ? 0 : 1;
}
