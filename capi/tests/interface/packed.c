/* Ops on packed weights have the bits of the same ops on the dense W that they stand for, which this
 * program decodes by itself. Wrong lengths, formats and tags have their statuses. */

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda.h>

#include "fused_dora.h"

enum {
    TOKENS = 9,
    INPUTS = 45,
    OUTPUTS = 35,
    RANK = 4,
    ELEMENTS = INPUTS * OUTPUTS,
    BLOCK = 32,
    BLOCKS = (ELEMENTS + BLOCK - 1) / BLOCK,
    MAP = 256,
};

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

static CUdeviceptr owned[128];
static int owned_count = 0;

/* Memory full of NaN. */
static CUdeviceptr poisoned(size_t bytes) {
    CUdeviceptr memory;
    if (owned_count == 128) exit(1);
    CUDA(cuMemAlloc(&memory, bytes));
    CUDA(cuMemsetD8(memory, 0xff, bytes));
    owned[owned_count++] = memory;
    return memory;
}

static CUdeviceptr upload(const void *values, size_t bytes) {
    const CUdeviceptr memory = poisoned(bytes);
    CUDA(cuMemcpyHtoD(memory, values, bytes));
    return memory;
}

static uint32_t random_bits(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static float uniform(float bound) {
    return bound * ((float)random_bits() / 8388608.0f - 1.0f);
}

static CUdeviceptr random_floats(size_t len, float bound) {
    float *values = malloc(len * sizeof *values);
    for (size_t i = 0; i < len; i++) values[i] = uniform(bound);
    const CUdeviceptr memory = upload(values, len * sizeof *values);
    free(values);
    return memory;
}

static const float NF4[16] = {
    -1.0f,
    -0.69619280099868774f,
    -0.52507305145263672f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.091050036251544952f,
    0.0f,
    0.079580299556255341f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.56261700391769409f,
    0.72295683622360229f,
    1.0f,
};

/* fp8 e4m3, by its definition. */
static float e4m3(unsigned code) {
    const int exponent = code >> 3 & 15;
    const float mantissa = (float)(code & 7) / 8;
    const float size =
        exponent == 0 ? ldexpf(mantissa, -6) : ldexpf(1 + mantissa, exponent - 7);
    return code & 0x80 ? -size : size;
}

/* A packed weight on the device, and its dense W. */
typedef struct {
    fused_dora_packed_weight packed;
    CUdeviceptr dense;
} fused_weight;

static fused_weight weight_of(const fused_dora_weight_format *format) {
    static unsigned char codes[ELEMENTS], nested_codes[BLOCKS];
    static float scales[ELEMENTS], absmax[BLOCKS], map[MAP], dense[ELEMENTS];
    const bool is_code4 = format->kind == FUSED_DORA_WEIGHT_NF4;
    const size_t code_bytes = is_code4 ? (ELEMENTS + 1) / 2 : ELEMENTS;
    const size_t across = (INPUTS + 19) / 20;
    size_t scale_count = BLOCKS;
    if (format->kind == FUSED_DORA_WEIGHT_INT8) scale_count = OUTPUTS;
    if (format->kind == FUSED_DORA_WEIGHT_FP8_TENSOR) scale_count = 1;
    if (format->kind == FUSED_DORA_WEIGHT_FP8_ROWS) scale_count = OUTPUTS;
    if (format->kind == FUSED_DORA_WEIGHT_FP8_BLOCKS) scale_count = across * ((OUTPUTS + 15) / 16);

    for (size_t i = 0; i < code_bytes; i++) {
        codes[i] = (unsigned char)random_bits();
        if (!is_code4 && (codes[i] & 0x7f) == 0x7f) codes[i] = 0x38;
    }
    for (size_t i = 0; i < scale_count; i++) {
        scales[i] = fabsf(uniform(0.1f));
        nested_codes[i % BLOCKS] = (unsigned char)random_bits();
    }
    absmax[0] = 0.03f;
    for (int i = 0; i < MAP; i++) map[i] = (float)(i - 127) / 128;
    const float offset = 0.11f;

    for (size_t e = 0; e < ELEMENTS; e++) {
        const size_t row = e / INPUTS, col = e % INPUTS;
        float scale = scales[0];
        switch (format->kind) {
        case FUSED_DORA_WEIGHT_NF4:
            scale = scales[e / BLOCK];
            if (format->nested) {
                /* A product and a sum, not fused: in two statements. */
                const volatile float product = map[nested_codes[e / BLOCK]] * absmax[0];
                scale = product + offset;
            }
            dense[e] = NF4[e % 2 ? codes[e / 2] & 15 : codes[e / 2] >> 4] * scale;
            break;
        case FUSED_DORA_WEIGHT_INT8: {
            const volatile float product = (float)(signed char)codes[e] * scales[row];
            dense[e] = product * 0.007874015718698502f;
            break;
        }
        case FUSED_DORA_WEIGHT_FP8_ROWS:
            scale = scales[row];
            dense[e] = e4m3(codes[e]) * scale;
            break;
        case FUSED_DORA_WEIGHT_FP8_BLOCKS:
            scale = scales[row / 16 * across + col / 20];
            dense[e] = e4m3(codes[e]) * scale;
            break;
        default:
            dense[e] = e4m3(codes[e]) * scale;
        }
    }

    fused_weight weight = {
        .packed = {
            .kind = format->kind,
            .codes = upload(codes, code_bytes),
            .code_bytes = code_bytes,
            .scales = upload(scales, scale_count * sizeof *scales),
            .scale_count = scale_count,
        },
        .dense = upload(dense, sizeof dense),
    };
    if (format->nested) {
        weight.packed.scales = upload(nested_codes, BLOCKS);
        weight.packed.nested_absmax = upload(absmax, sizeof *absmax);
        weight.packed.nested_count = 1;
        weight.packed.nested_map = upload(map, sizeof map);
        weight.packed.nested_offset = offset;
    }
    return weight;
}

static fused_dora_spec spec_of(fused_dora_weight_format format) {
    return (fused_dora_spec){
        .in_features = INPUTS,
        .out_features = OUTPUTS,
        .rank = RANK,
        .scaling_kind = FUSED_DORA_SCALING_VALUE,
        .scaling = 2,
        .norm = FUSED_DORA_NORM_OUTPUT,
        .norm_grad = FUSED_DORA_NORM_GRAD_EXACT,
        .dtype = FUSED_DORA_DTYPE_F32,
        .weight = format,
    };
}

typedef struct {
    CUdeviceptr x, grad, lora_a, lora_b;
} fused_inputs;

enum { RESULTS = 7 };

/* y, m, dX, dA, dB, dm and W', one after the other. */
static const size_t LENGTHS[RESULTS] = {
    TOKENS * OUTPUTS, OUTPUTS, TOKENS * INPUTS, RANK * INPUTS, OUTPUTS * RANK, OUTPUTS, ELEMENTS,
};

typedef struct {
    fused_dora_kernels *kernels;
    CUstream stream;
    fused_inputs inputs;
} fused_device;

/* All ops that read W, of a new adapter. */
static float *results_of(const fused_device *on, const fused_dora_spec *spec, CUdeviceptr dense,
                         fused_dora_packed_weight packed) {
    fused_dora_workspace *workspace = NULL;
    fused_dora_layer *layer = NULL;
    fused_dora_sizes sizes;
    size_t bytes, total = 0;
    const int first = owned_count;
    OK(fused_dora_sizes_of(spec, &sizes));
    if (sizes.code_bytes != packed.code_bytes || sizes.scale_count != packed.scale_count ||
        sizes.nested_count != packed.nested_count) {
        failures++;
        printf("kind %u: other sizes\n", (unsigned)packed.kind);
    }
    OK(fused_dora_workspace_bytes(on->kernels, spec, 1, TOKENS, &bytes));
    OK(fused_dora_workspace_open(on->kernels, spec, 1, TOKENS, poisoned(bytes), bytes, on->stream,
                                 &workspace));
    OK(fused_dora_layer_open(on->kernels, spec, poisoned(sizes.layer_bytes), sizes.layer_bytes,
                             &layer));
    CUdeviceptr out[RESULTS];
    for (int i = 0; i < RESULTS; i++) out[i] = poisoned(LENGTHS[i] * sizeof(float));
    const fused_inputs in = on->inputs;
    const fused_dora_prepare_io prepare = {
        .weight = dense,
        .packed = packed,
        .lora_a = in.lora_a,
        .lora_b = in.lora_b,
        .magnitude_out = out[1],
    };
    OK(fused_dora_prepare(layer, workspace, on->stream, &prepare));
    const CUdeviceptr h = poisoned(TOKENS * sizes.padded_rank * sizeof(float));
    const fused_dora_forward_io forward = {
        .tokens = TOKENS,
        .x = {in.x, INPUTS},
        .weight = dense,
        .packed = packed,
        .y = {out[0], OUTPUTS},
        .h = h,
    };
    OK(fused_dora_forward(layer, workspace, on->stream, &forward));
    const fused_dora_backward_io backward = {
        .tokens = TOKENS,
        .gradients = FUSED_DORA_GRADIENTS_OVERWRITE,
        .x = {in.x, INPUTS},
        .weight = dense,
        .packed = packed,
        .y = {out[0], OUTPUTS},
        .grad_output = {in.grad, OUTPUTS},
        .h = h,
        .grad_input = {out[2], INPUTS},
        .grad_lora_a = out[3],
        .grad_lora_b = out[4],
        .grad_magnitude = out[5],
    };
    OK(fused_dora_backward(layer, workspace, on->stream, &backward));
    const fused_dora_norm_gradient_io exact = {
        .weight = dense,
        .packed = packed,
        .lora_a = in.lora_a,
        .lora_b = in.lora_b,
        .grad_magnitude = out[5],
        .grad_lora_a = out[3],
        .grad_lora_b = out[4],
    };
    OK(fused_dora_norm_gradient(layer, workspace, on->stream, &exact));
    const fused_dora_merge_io merge = {
        .weight = dense,
        .packed = packed,
        .lora_a = in.lora_a,
        .lora_b = in.lora_b,
        .merged = out[6],
        .merged_dtype = FUSED_DORA_DTYPE_F32,
    };
    OK(fused_dora_merge(layer, workspace, on->stream, &merge));
    CUDA(cuStreamSynchronize(on->stream));

    for (int i = 0; i < RESULTS; i++) total += LENGTHS[i];
    float *values = malloc(total * sizeof *values);
    for (size_t i = 0, at = 0; i < RESULTS; at += LENGTHS[i++]) {
        CUDA(cuMemcpyDtoH(values + at, out[i], LENGTHS[i] * sizeof(float)));
    }
    for (size_t i = 0; i < total; i++) {
        if (isnan(values[i])) {
            failures++;
            printf("kind %u: result %zu was not written\n", (unsigned)packed.kind, i);
            break;
        }
    }
    fused_dora_layer_close(layer);
    fused_dora_workspace_close(workspace);
    while (owned_count > first) CUDA(cuMemFree(owned[--owned_count]));
    return values;
}

static void compare(const fused_device *on, const char *name, fused_dora_weight_format format) {
    const int first = owned_count;
    const fused_weight weight = weight_of(&format);
    const fused_dora_spec packed = spec_of(format);
    const fused_dora_spec dense = spec_of((fused_dora_weight_format){0});
    float *found = results_of(on, &packed, 0, weight.packed);
    float *expected = results_of(on, &dense, weight.dense, (fused_dora_packed_weight){0});
    for (size_t i = 0, at = 0; i < RESULTS; at += LENGTHS[i++]) {
        if (memcmp(found + at, expected + at, LENGTHS[i] * sizeof *found) == 0) continue;
        failures++;
        printf("%s: result %zu differs from that on the dense weight\n", name, i);
    }
    free(found);
    free(expected);
    while (owned_count > first) CUDA(cuMemFree(owned[--owned_count]));
}

/* Packing what a packed weight stands for gives its codes again, as far as they are the nearest; and
 * unpacking gives the dense weight. */
static void pack(const fused_device *on, const char *name, fused_dora_weight_format format) {
    const int first = owned_count;
    const fused_weight weight = weight_of(&format);
    const fused_dora_spec spec = spec_of(format);
    fused_dora_workspace *workspace = NULL;
    size_t bytes;
    OK(fused_dora_workspace_bytes(on->kernels, &spec, 1, 0, &bytes));
    OK(fused_dora_workspace_open(on->kernels, &spec, 1, 0, poisoned(bytes), bytes, on->stream,
                                 &workspace));
    static float values[3][ELEMENTS];
    const CUdeviceptr target = poisoned(sizeof values[0]);
    const fused_dora_dequantize_io unpack = {.packed = weight.packed, .target = target};
    OK(fused_dora_dequantize(on->kernels, on->stream, &spec, &unpack));
    CUDA(cuStreamSynchronize(on->stream));
    CUDA(cuMemcpyDtoH(values[0], target, sizeof values[0]));
    CUDA(cuMemcpyDtoH(values[1], weight.dense, sizeof values[1]));
    if (memcmp(values[0], values[1], sizeof values[0]) != 0) {
        failures++;
        printf("%s: unpacked to another weight\n", name);
    }

    fused_dora_packed_weight packed = weight.packed;
    packed.codes = poisoned(packed.code_bytes);
    packed.scales = poisoned(packed.scale_count * sizeof(float));
    if (format.nested) packed.nested_absmax = poisoned(packed.nested_count * sizeof(float));
    const CUdeviceptr mean = format.nested ? poisoned(sizeof(float)) : 0;
    const fused_dora_quantize_io pack = {.weight = target, .packed = packed, .offset = mean};
    OK(fused_dora_quantize(on->kernels, workspace, on->stream, &spec, &pack));
    CUDA(cuStreamSynchronize(on->stream));
    if (mean) CUDA(cuMemcpyDtoH(&packed.nested_offset, mean, sizeof(float)));
    const fused_dora_dequantize_io again = {.packed = packed, .target = target};
    OK(fused_dora_dequantize(on->kernels, on->stream, &spec, &again));
    CUDA(cuStreamSynchronize(on->stream));
    CUDA(cuMemcpyDtoH(values[2], target, sizeof values[2]));
    double error = 0, size = 0;
    for (size_t i = 0; i < ELEMENTS; i++) {
        error += pow(values[2][i] - values[1][i], 2);
        size += pow(values[1][i], 2);
    }
    if (!(sqrt(error / size) < 0.1)) {
        failures++;
        printf("%s: packed with the error %g\n", name, sqrt(error / size));
    }
    EXPECT(fused_dora_quantize(on->kernels, workspace, on->stream, &spec, NULL), NULL_ARGUMENT,
           "io is null");
    EXPECT(fused_dora_quantize(on->kernels, NULL, on->stream, &spec, &pack), NULL_ARGUMENT,
           "workspace is null");
    EXPECT(fused_dora_dequantize(on->kernels, on->stream, NULL, &again), NULL_ARGUMENT,
           "spec is null");
    fused_dora_quantize_io wrong = pack;
    wrong.packed.scale_count++;
    EXPECT(fused_dora_quantize(on->kernels, workspace, on->stream, &spec, &wrong), SHAPE,
           "packed.scales holds");
    wrong = pack;
    wrong.weight = 0;
    EXPECT(fused_dora_quantize(on->kernels, workspace, on->stream, &spec, &wrong), MISSING_TENSOR,
           "weight is missing");
    wrong = pack;
    wrong.packed.kind = FUSED_DORA_WEIGHT_FP4;
    EXPECT(fused_dora_quantize(on->kernels, workspace, on->stream, &spec, &wrong), WEIGHT_FORMAT,
           "the weight is fp4");
    if (!format.nested) {
        wrong = pack;
        wrong.offset = target;
        EXPECT(fused_dora_quantize(on->kernels, workspace, on->stream, &spec, &wrong),
               UNEXPECTED_TENSOR, "offset");
    }
    const fused_dora_spec dense = spec_of((fused_dora_weight_format){0});
    wrong = (fused_dora_quantize_io){.weight = target};
    EXPECT(fused_dora_quantize(on->kernels, workspace, on->stream, &dense, &wrong), INVALID_SPEC,
           "the format of the spec's weight is dense");
    fused_dora_workspace_close(workspace);
    while (owned_count > first) CUDA(cuMemFree(owned[--owned_count]));
}

static void check(const fused_device *on, const char *name, fused_dora_weight_format format) {
    compare(on, name, format);
    pack(on, name, format);
}

static const fused_dora_weight_format NESTED = {
    .kind = FUSED_DORA_WEIGHT_NF4,
    .block = BLOCK,
    .nested = 1,
    .state = FUSED_DORA_DTYPE_F32,
};

static void formats(void) {
    fused_dora_sizes sizes;
    fused_dora_spec spec = spec_of(NESTED);
    OK(fused_dora_sizes_of(&spec, &sizes));
    spec.weight.kind = 7;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "the kind of the weight is 7");
    spec.weight = NESTED;
    spec.weight.block = 48;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "is 48: it must be a power of two");
    spec.weight.block = 65536 + 64;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "weight.block is 65600");
    spec.weight = NESTED;
    spec.weight.nested = 2;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "weight.nested is 2");
    spec.weight = NESTED;
    spec.weight.state = 0;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "weight.state is 0");
    spec.weight = NESTED;
    spec.weight.block_cols = 128;
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "weight.block_cols is 128");
    spec.weight = (fused_dora_weight_format){.kind = FUSED_DORA_WEIGHT_FP8_BLOCKS};
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "[0, 0]");
    spec.weight = (fused_dora_weight_format){.kind = FUSED_DORA_WEIGHT_INT8, .block = 64};
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "weight.block is 64");
    spec.weight = (fused_dora_weight_format){.nested = 1};
    EXPECT(fused_dora_sizes_of(&spec, &sizes), INVALID_SPEC, "weight.nested is 1");
}

/* A prepare with each part of a packed weight wrong in turn. */
static void mistakes(const fused_device *on) {
    fused_dora_workspace *workspace = NULL;
    fused_dora_layer *layer = NULL;
    fused_dora_sizes sizes;
    size_t bytes;
    const fused_dora_spec spec = spec_of(NESTED);
    const fused_weight weight = weight_of(&NESTED);
    OK(fused_dora_sizes_of(&spec, &sizes));
    OK(fused_dora_workspace_bytes(on->kernels, &spec, 1, TOKENS, &bytes));
    OK(fused_dora_workspace_open(on->kernels, &spec, 1, TOKENS, poisoned(bytes), bytes, on->stream,
                                 &workspace));
    OK(fused_dora_layer_open(on->kernels, &spec, poisoned(sizes.layer_bytes), sizes.layer_bytes,
                             &layer));
    const fused_dora_prepare_io right = {
        .packed = weight.packed,
        .lora_a = on->inputs.lora_a,
        .lora_b = on->inputs.lora_b,
        .magnitude_out = poisoned(OUTPUTS * sizeof(float)),
    };
    OK(fused_dora_prepare(layer, workspace, on->stream, &right));

#define WRONG(change, status, text)                                                             \
    do {                                                                                        \
        fused_dora_prepare_io io = right;                                                       \
        io.change;                                                                              \
        EXPECT(fused_dora_prepare(layer, workspace, on->stream, &io), status, text);            \
    } while (0)
    WRONG(packed.codes = 0, MISSING_TENSOR, "the packed weight is missing: its address is 0");
    WRONG(packed.scales = 0, MISSING_TENSOR, "absmax is missing: its address is 0");
    WRONG(packed.nested_absmax = 0, MISSING_TENSOR, "nested_absmax is missing");
    WRONG(packed.nested_map = 0, MISSING_TENSOR, "nested_quant_map is missing");
    WRONG(packed.nested_map += 2, MISALIGNED, "nested_quant_map");
    WRONG(packed.code_bytes -= 1, SHAPE, "packed.codes holds 787 elements");
    WRONG(packed.code_bytes += 1, SHAPE, "packed.codes holds 789 elements");
    WRONG(packed.scale_count -= 1, SHAPE, "packed.scales holds 49 elements");
    WRONG(packed.scale_count += 1, SHAPE, "packed.scales holds 51 elements");
    WRONG(packed.nested_count = 0, SHAPE, "packed.nested_absmax holds 0 elements");
    WRONG(packed.nested_count = 2, SHAPE, "packed.nested_absmax holds 2 elements");
    WRONG(packed.nested_offset = NAN, INVALID_SPEC, "packed.nested_offset is NaN");
    WRONG(packed.kind = FUSED_DORA_WEIGHT_FP4, WEIGHT_FORMAT, "the weight is fp4");
    WRONG(packed.kind = 99, INVALID_SPEC, "the kind of the weight is 99");
    WRONG(packed = (fused_dora_packed_weight){0}, WEIGHT_FORMAT, "the weight is dense");
    WRONG(weight = weight.dense, UNEXPECTED_TENSOR, "leave the address of a dense W 0");
#undef WRONG

    const fused_dora_merge_io merge = {
        .packed = weight.packed,
        .lora_a = on->inputs.lora_a,
        .lora_b = on->inputs.lora_b,
        .merged = weight.packed.codes,
        .merged_dtype = FUSED_DORA_DTYPE_F32,
    };
    EXPECT(fused_dora_merge(layer, workspace, on->stream, &merge), INVALID_SPEC,
           "dense for a merge in place");
    const fused_dora_unmerge_io unmerge = {
        .merged = weight.dense,
        .merged_dtype = FUSED_DORA_DTYPE_F32,
        .lora_a = on->inputs.lora_a,
        .lora_b = on->inputs.lora_b,
        .weight = weight.dense,
    };
    EXPECT(fused_dora_unmerge(layer, workspace, on->stream, &unmerge), INVALID_SPEC,
           "dense for a merge in place and for an unmerge");
    fused_dora_layer_close(layer);

    /* A layer on a dense W. */
    const fused_dora_spec dense = spec_of((fused_dora_weight_format){0});
    OK(fused_dora_layer_open(on->kernels, &dense, poisoned(sizes.layer_bytes), sizes.layer_bytes,
                             &layer));
    EXPECT(fused_dora_prepare(layer, workspace, on->stream, &right), WEIGHT_FORMAT,
           "the weight is nf4, and the spec's is dense");
    fused_dora_prepare_io forgotten = right;
    forgotten.packed.kind = 0;
    EXPECT(fused_dora_prepare(layer, workspace, on->stream, &forgotten), UNEXPECTED_TENSOR,
           "packed.kind is 0");
    CUDA(cuStreamSynchronize(on->stream));
    fused_dora_layer_close(layer);
    fused_dora_workspace_close(workspace);
}

int main(void) {
    CUdevice device;
    CUcontext context;
    fused_device on = {0};
    CUDA(cuInit(0));
    CUDA(cuDeviceGet(&device, 0));
    CUDA(cuDevicePrimaryCtxRetain(&context, device));
    CUDA(cuCtxSetCurrent(context));
    CUDA(cuStreamCreate(&on.stream, CU_STREAM_DEFAULT));
    OK(fused_dora_kernels_open(context, &on.kernels));
    on.inputs.x = random_floats(TOKENS * INPUTS, 1);
    on.inputs.grad = random_floats(TOKENS * OUTPUTS, 1);
    on.inputs.lora_a = random_floats(RANK * INPUTS, 0.2f);
    on.inputs.lora_b = random_floats(OUTPUTS * RANK, 0.1f);

    fused_dora_weight_format plain = NESTED;
    plain.nested = 0;
    check(&on, "nf4", plain);
    check(&on, "nf4, nested", NESTED);
    check(&on, "int8", (fused_dora_weight_format){.kind = FUSED_DORA_WEIGHT_INT8});
    check(&on, "fp8", (fused_dora_weight_format){.kind = FUSED_DORA_WEIGHT_FP8_TENSOR});
    check(&on, "fp8, rows", (fused_dora_weight_format){.kind = FUSED_DORA_WEIGHT_FP8_ROWS});
    check(&on, "fp8, blocks",
          (fused_dora_weight_format){
              .kind = FUSED_DORA_WEIGHT_FP8_BLOCKS, .block_rows = 16, .block_cols = 20});
    formats();
    mistakes(&on);

    fused_dora_kernels_close(on.kernels);
    while (owned_count > 0) CUDA(cuMemFree(owned[--owned_count]));
    CUDA(cuStreamDestroy(on.stream));
    CUDA(cuDevicePrimaryCtxRelease(device));
    return failures == 0 ? 0 : 1;
}
