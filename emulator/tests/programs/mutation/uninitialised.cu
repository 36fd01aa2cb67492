// Things that must be set before they are added to.
// Grid: 1; block: a multiple of 32.

extern "C" __global__ void shared_accumulator(const int* in, int* out, int n) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;  //~ init //~ bounds: sum = 0;
    __syncthreads();                //~ barrier
    //~ atomic: if (threadIdx.x < n) sum += in[threadIdx.x];
    if (threadIdx.x < n) atomicAdd(&sum, in[threadIdx.x]);
    __syncthreads();                   //~ barrier
    if (threadIdx.x == 0) *out = sum;  //~ bounds: *out = sum;
}

// Where no value is positive, the sum is what it was set to.
extern "C" __global__ void register_accumulator(const int* in, int* out, int n) {
    int sum = 0;  //~ init: int sum;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        if (in[i] > 0) sum += in[i];
    }
    out[threadIdx.x] = sum;
}

// A value that is set on one way only.
extern "C" __global__ void register_choice(const int* in, int* out, int n) {
    int value;
    if (in[threadIdx.x] > 0) {
        value = in[threadIdx.x] * n;
    } else {
        value = -n;  //~ init
    }
    out[threadIdx.x] = value / 2;
}

// `+=` to memory that `clear` has to set.
extern "C" __global__ void clear(int* out) {
    out[threadIdx.x] = 0;  //~ init
}
extern "C" __global__ void global_accumulator(const int* in, int* out) {
    out[threadIdx.x] += in[threadIdx.x];
}
