// sums[0] = Σ in, sums[1] = Σ in², both changed by one block at a time under a lock.
// Grid: any, cooperative; block: 32. `lock` and the sums are 0 before.

extern "C" __global__ void locked(const int* in, int* sums, int* lock) {
    if (threadIdx.x != 0) return;  //~ bounds
    const int value = in[blockIdx.x];
    while (atomicCAS(lock, 0, 1) != 0) {}  //~ atomic
    __threadfence();                       //~ fence
    sums[0] += value;
    sums[1] += value * value;
    __threadfence();      //~ fence
    atomicExch(lock, 0);  //~ reset //~ atomic: *lock = 0;
}
