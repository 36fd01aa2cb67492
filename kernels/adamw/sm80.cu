// adamw: one step of the optimizer over one f32 buffer of parameters, and the gradient's norm.
//
//   adamw           g = k·gradient,   k = 1, or max_norm/norm where norm > max_norm
//                   exp_avg += (1 − β1)(g − exp_avg),   exp_avg_sq += (1 − β2)(g² − exp_avg_sq)
//                   Δ = exp_avg/(1 − β1ᵗ) / (√(exp_avg_sq/(1 − β2ᵗ)) + ε)
//                   parameter −= η·(Δ + λ·parameter)
//   gradient_norm   norm = √Σ gradient²
//
// Parameters, gradients and both moments are f32 buffers of one layout. Both kernels go through
// `parts`, ranges of elements with their own η (a factor of the learning rate) and λ (weight decay),
// and touch nothing between them. t counts from 1. Learning rate and t come with the parameters, or
// are read from the device, so that the replay of a captured graph can have new ones. A counter on the
// device goes up by 1, where there is one: seeds of the next step are combined with it.
// The norm's squares are summed in f64: nothing overflows, and its error is one rounding to f32.
// Launch: adamw: one CTA per chunk of 1024 elements of a part; gradient_norm: a few CTAs per
// multiprocessor, each with every n-th chunk; the last to arrive adds the partial sums in order.
// Block 128. More parts than one launch takes come in further launches.
// Formulas: AdamW (arXiv:1711.05101) algorithm 2; η for B of its own: LoRA+ (arXiv:2402.12354).

#include "adamw/params.cuh"
#include "common/schedule/reduce.cuh"

using Vector4 = Vector<float>;
constexpr int kStride = kThreads * kVector<float>;  // elements that a CTA visits at a time

// Calls visit(index, count, vectors) for each four elements of a chunk that are this thread's, of
// which a part's end may leave fewer: `vectors` if four may be moved at once.
template <typename F>
__device__ __forceinline__ void for_each_vector(const Part& part, u32 chunk, bool aligned,
                                                F visit) {
    const bool vectors = aligned && part.start % kVector<float> == 0;
    const i64 first = i64(chunk - part.first_chunk) * kChunk + threadIdx.x * kVector<float>;
#pragma unroll 1
    for (int i = 0; i < kChunk; i += kStride) {
        const i64 at = first + i;
        if (at >= part.len) return;
        visit(part.start + at, int(min(i64(kVector<float>), part.len - at)), vectors);
    }
}

// ---- adamw ------------------------------------------------------------------------------------

// What all elements of a part share.
struct Step {
    float learning_rate, weight_decay, clip, correction, correction_sq;

    __device__ __forceinline__ Step(const AdamWParams& p, const Part& part)
        : learning_rate(p.learning_rate), weight_decay(part.weight_decay), clip(1.0f),
          correction(p.correction), correction_sq(p.correction_sq) {
        if (p.schedule) {
            const float t = p.schedule[1];
            learning_rate = p.schedule[0];
            correction = -1.0f / expm1f(t * p.log_beta1);
            correction_sq = sqrtf(-1.0f / expm1f(t * p.log_beta2));
        }
        learning_rate *= part.learning_rate_factor;
        // A norm that is NaN makes everything NaN, rather than pass for a small one.
        if (p.norm && !(*p.norm <= p.max_norm)) clip = p.max_norm / *p.norm;
    }

    __device__ __forceinline__ void update(const AdamWParams& p, float& parameter, float gradient,
                                           float& exp_avg, float& exp_avg_sq) const {
        const float g = clip * gradient;
        exp_avg = fmaf(p.rate, g - exp_avg, exp_avg);
        exp_avg_sq = fmaf(p.rate_sq, fmaf(g, g, -exp_avg_sq), exp_avg_sq);
        const float denominator = fmaf(correction_sq, sqrtf(exp_avg_sq), p.epsilon);
        const float change = correction * exp_avg / denominator;
        parameter = fmaf(-learning_rate, fmaf(weight_decay, parameter, change), parameter);
    }
};

__device__ __forceinline__ Vector4 load_vector(const float* source) {
    return *reinterpret_cast<const Vector4*>(source);
}

__device__ __forceinline__ void adamw(const AdamWParams& p) {
    const Part& part = p.parts.of_chunk(blockIdx.x);
    const Step step(p, part);
    for_each_vector(part, blockIdx.x, p.aligned, [&](i64 at, int count, bool vectors) {
        if (vectors && count == kVector<float>) {
            Vector4 parameter = load_vector(p.parameters + at);
            Vector4 exp_avg = load_vector(p.exp_avg + at);
            Vector4 exp_avg_sq = load_vector(p.exp_avg_sq + at);
            const Vector4 gradient = load_vector(p.gradients + at);
#pragma unroll
            for (int e = 0; e < kVector<float>; ++e) {
                step.update(p, parameter.values[e], gradient.values[e], exp_avg.values[e],
                            exp_avg_sq.values[e]);
            }
            st_global_v4(p.parameters + at, parameter.values);
            st_global_v4(p.exp_avg + at, exp_avg.values);
            st_global_v4(p.exp_avg_sq + at, exp_avg_sq.values);
        } else {
            for (i64 i = at; i < at + count; ++i) {
                step.update(p, p.parameters[i], p.gradients[i], p.exp_avg[i], p.exp_avg_sq[i]);
            }
        }
    });
    if (p.counter && blockIdx.x == 0 && threadIdx.x == 0) *p.counter += 1;
}

// ---- gradient_norm ----------------------------------------------------------------------------

__device__ __forceinline__ void gradient_norm(const GradientNormParams& p, double* across,
                                              u32* flag) {
    double sum = 0.0;
    for (u32 chunk = blockIdx.x; chunk < p.parts.chunks; chunk += gridDim.x) {
        const Part& part = p.parts.of_chunk(chunk);
        for_each_vector(part, chunk, p.aligned, [&](i64 at, int count, bool vectors) {
            Vector4 gradient = {};
            if (vectors && count == kVector<float>) {
                gradient = load_vector(p.gradients + at);
            } else {
#pragma unroll
                for (int e = 0; e < kVector<float>; ++e) {
                    if (e < count) gradient.values[e] = p.gradients[at + e];
                }
            }
#pragma unroll
            for (int e = 0; e < kVector<float>; ++e) {
                sum = fma(double(gradient.values[e]), double(gradient.values[e]), sum);
            }
        });
    }
    sum = block_sum(sum, across);
    if (threadIdx.x == 0) {
        double* partial = p.partials + blockIdx.x;
        *partial = p.first ? sum : *partial + sum;
    }
    if (!p.last || !arrive_last(p.counter, gridDim.x, flag)) return;
    if (threadIdx.x == 0) *p.norm = float(sqrt(ordered_sum(p.partials, gridDim.x, 1)));
}

// ---- entry points -----------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(kThreads)
    adamw_f32(const __grid_constant__ AdamWParams p) {
    adamw(p);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    gradient_norm_f32(const __grid_constant__ GradientNormParams p) {
    __shared__ double across[kWarps];
    __shared__ u32 flag;
    gradient_norm(p, across, &flag);
}
