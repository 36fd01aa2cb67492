// A program with a bit of everything that compilers emit.

typedef int (*Operation)(int, int);

__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int mul(int a, int b) { return a * b; }
__device__ Operation table[2] = {add, mul};
__constant__ float weights[4] = {1.f, 2.f, 0.5f, 0.25f};
__device__ const char* names[2] = {"first", "second"};
__device__ unsigned long long total;

__device__ __noinline__ int depth(int n) { return n < 2 ? n : depth(n - 1) + depth(n - 2); }

struct Pair {
    double x;
    long long y;
};

__device__ __noinline__ Pair swapped(Pair pair) { return {(double)pair.y, (long long)pair.x}; }

extern "C" __global__ void everything(float* out, int n) {
    extern __shared__ float dynamic[];
    __shared__ __align__(16) unsigned tile[64];
    int i = threadIdx.x, local[8];
    for (int j = 0; j < 8; ++j) local[j] = j * i;
    tile[i] = local[(i + n) & 7];
    dynamic[i & 15] = weights[i & 3];
    __syncthreads();
    float x = dynamic[(i + 1) & 15] + tile[31 - i];
    __syncthreads();
    switch (i % 6) {
        case 0: x = sqrtf(x); break;
        case 1: x = x / 3.f; break;
        case 2: x = (float)depth(i & 7); break;
        case 3: x = (float)table[i & 1](i, 5); break;
        case 4: x += names[i & 1][2]; break;
        default: x = (float)swapped({1.0 * i, 7}).y;
    }
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    unsigned votes = __ballot_sync(~0u, x > 3.f);
    if (i == 3) printf("%d %s %f\n", i, names[0], x);
    atomicAdd(&total, (unsigned long long)votes);
    atomicMax(&tile[1], votes);
    int* space = (int*)malloc(16);
    if (space) {
        space[1] = i;
        x += space[1];
        free(space);
    }
    assert(n > 0);
    float4 vector = ((const float4*)out)[i];
    double sum = vector.x + (double)vector.w / 7.0 + (long long)n / (i + 1);
    __syncthreads();
    unsigned to = (unsigned)__cvta_generic_to_shared(&tile[4 * (i & 7)]);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(to), "l"(out));
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    unsigned a[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"((unsigned)__cvta_generic_to_shared(&tile[4 * (i & 7)])));
    float c[4] = {x, x, x, x};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(votes), "r"(n));
    out[i] = (float)sum + c[0] + c[3];
}
