/*
 * A C program that uses the driver API as any other would: it compiles with the emulator's header
 * or the CUDA toolkit's, links with -lcuda, and says what is wrong where something is.
 */

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 1000

/* out[i] = a * x[i] for i < n; and a store where asked to. */
static const char *const kernels =
    ".version 8.0\n"
    ".target sm_80\n"
    ".address_size 64\n"
    ".visible .global .align 4 .u32 launches = 5;\n"
    ".visible .entry scale(.param .u64 out, .param .u64 x, .param .f32 a, .param .u32 n)\n"
    "{\n"
    "    .reg .pred %p<2>;\n"
    "    .reg .f32 %f<4>;\n"
    "    .reg .b32 %r<6>;\n"
    "    .reg .b64 %rd<6>;\n"
    "    ld.param.u64 %rd1, [out];\n"
    "    ld.param.u64 %rd2, [x];\n"
    "    ld.param.f32 %f1, [a];\n"
    "    ld.param.u32 %r2, [n];\n"
    "    mov.u32 %r3, %ctaid.x;\n"
    "    mov.u32 %r4, %ntid.x;\n"
    "    mov.u32 %r5, %tid.x;\n"
    "    mad.lo.s32 %r1, %r3, %r4, %r5;\n"
    "    setp.ge.u32 %p1, %r1, %r2;\n"
    "    @%p1 bra DONE;\n"
    "    mul.wide.u32 %rd3, %r1, 4;\n"
    "    add.s64 %rd4, %rd2, %rd3;\n"
    "    ld.global.f32 %f2, [%rd4];\n"
    "    mul.f32 %f3, %f1, %f2;\n"
    "    add.s64 %rd5, %rd1, %rd3;\n"
    "    st.global.f32 [%rd5], %f3;\n"
    "DONE:\n"
    "    ret;\n"
    "}\n"
    ".visible .entry store(.param .u64 address)\n"
    "{\n"
    "    .reg .b64 %rd<2>;\n"
    "    ld.param.u64 %rd1, [address];\n"
    "    st.global.u32 [%rd1], 7;\n"
    "    ret;\n"
    "}\n";

/* Ends the program unless a call returned what it must. */
static void expect(CUresult found, CUresult right, const char *call, int line)
{
    const char *name = NULL;
    if (found == right) {
        return;
    }
    cuGetErrorName(found, &name);
    fprintf(stderr, "line %d: %s returned %s (%d), not %d\n", line, call, name ? name : "?",
            (int)found, (int)right);
    exit(1);
}

#define CODE(call, right) expect((call), (right), #call, __LINE__)
#define OK(call) CODE(call, CUDA_SUCCESS)
#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

static int called;

static void note(void *argument)
{
    called += *(int *)argument;
}

static void devices(CUdevice device)
{
    int count = 0, value = 0, major = 0, minor = 0;
    size_t bytes = 0;
    char name[100];
    OK(cuDeviceGetCount(&count));
    CHECK(count == 1);
    OK(cuDeviceGetName(name, sizeof name, device));
    CHECK(strstr(name, "CPU"));
    OK(cuDeviceTotalMem(&bytes, device));
    CHECK(bytes > 1u << 30);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_WARP_SIZE, device));
    CHECK(value == 32);
    OK(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
    OK(cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device));
    CHECK(10 * major + minor >= 80);
    CODE(cuDeviceGet(&device, 1), CUDA_ERROR_INVALID_DEVICE);
    CODE(cuDeviceGetAttribute(NULL, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0), CUDA_ERROR_INVALID_VALUE);
}

static void kernel(CUmodule module)
{
    static float x[COUNT], y[COUNT];
    float a = 2.5f;
    unsigned int n = COUNT, i;
    CUfunction scale;
    CUdeviceptr in, out;
    CUstream stream;
    CUevent start, end;
    float time = -1;
    int one = 1;
    for (i = 0; i < COUNT; ++i) {
        x[i] = (float)i;
    }
    OK(cuModuleGetFunction(&scale, module, "scale"));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&start, CU_EVENT_DEFAULT));
    OK(cuEventCreate(&end, CU_EVENT_DEFAULT));
    OK(cuMemAlloc(&in, sizeof x));
    OK(cuMemAlloc(&out, sizeof y));
    OK(cuMemcpyHtoD(in, x, sizeof x));
    OK(cuMemsetD8(out, 0xff, sizeof y));
    OK(cuCtxSynchronize());
    {
        void *values[] = {&out, &in, &a, &n};
        OK(cuEventRecord(start, stream));
        OK(cuLaunchKernel(scale, (COUNT + 127) / 128, 1, 1, 128, 1, 1, 0, stream, values, NULL));
        OK(cuEventRecord(end, stream));
        OK(cuLaunchHostFunc(stream, note, &one));
        OK(cuStreamSynchronize(stream));
        OK(cuEventElapsedTime(&time, start, end));
        CHECK(time >= 0 && called == 1);
        OK(cuMemcpyDtoH(y, out, sizeof y));
        for (i = 0; i < COUNT; ++i) {
            CHECK(y[i] == a * x[i]);
        }
        CODE(cuLaunchKernel(scale, 1, 1, 1, 2048, 1, 1, 0, stream, values, NULL),
             CUDA_ERROR_INVALID_VALUE);
    }
    {
        /* The same parameters as one buffer. */
        struct {
            CUdeviceptr out, in;
            float a;
            unsigned int n;
        } buffer;
        size_t size = sizeof buffer;
        void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE,
                         &size, CU_LAUNCH_PARAM_END};
        buffer.out = out;
        buffer.in = in;
        buffer.a = -1.0f;
        buffer.n = 3;
        OK(cuLaunchKernel(scale, 1, 1, 1, 32, 1, 1, 0, 0, NULL, extra));
        OK(cuMemcpyDtoH(y, out, 4 * sizeof *y));
        CHECK(y[0] == 0 && y[1] == -1 && y[2] == -2 && y[3] == 3 * a);
    }
    OK(cuEventDestroy(start));
    OK(cuEventDestroy(end));
    OK(cuStreamDestroy(stream));
    CODE(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE);
    OK(cuMemFree(in));
    OK(cuMemFree(out));
    CODE(cuMemFree(out), CUDA_ERROR_INVALID_VALUE);
}

static void memory(CUmodule module)
{
    CUDA_MEMCPY2D area;
    CUdeviceptr address, variable;
    size_t pitch = 0, bytes = 0;
    unsigned char in[6] = {1, 2, 3, 4, 5, 6}, out[6];
    unsigned int value = 0;
    void *pinned = NULL;
    CODE(cuMemAlloc(&address, 0), CUDA_ERROR_INVALID_VALUE);
    CODE(cuMemAlloc(&address, (size_t)1 << 60), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAllocPitch(&address, &pitch, 3, 2, 4));
    memset(&area, 0, sizeof area);
    area.srcMemoryType = CU_MEMORYTYPE_HOST;
    area.srcHost = in;
    area.srcPitch = 3;
    area.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    area.dstDevice = address;
    area.dstPitch = pitch;
    area.WidthInBytes = 3;
    area.Height = 2;
    OK(cuMemcpy2D(&area));
    OK(cuMemcpyDtoH(out, address + pitch, 3));
    CHECK(out[0] == 4 && out[1] == 5 && out[2] == 6);
    OK(cuMemFree(address));
    OK(cuMemHostAlloc(&pinned, 64, CU_MEMHOSTALLOC_PORTABLE));
    OK(cuMemFreeHost(pinned));
    OK(cuModuleGetGlobal(&variable, &bytes, module, "launches"));
    OK(cuMemcpyDtoH(&value, variable, sizeof value));
    CHECK(bytes == 4 && value == 5);
    CODE(cuModuleGetGlobal(&variable, &bytes, module, "lunches"), CUDA_ERROR_NOT_FOUND);
}

static void graph(CUmodule module)
{
    CUfunction store;
    CUdeviceptr address;
    CUstream stream;
    CUgraph recorded;
    CUgraphExec exec;
    unsigned int value = 0;
    void *values[] = {&address};
    OK(cuModuleGetFunction(&store, module, "store"));
    OK(cuMemAlloc(&address, 4));
    OK(cuMemsetD32(address, 0, 1));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuLaunchKernel(store, 1, 1, 1, 1, 1, 1, 0, stream, values, NULL));
    OK(cuStreamEndCapture(stream, &recorded));
    OK(cuGraphInstantiate(&exec, recorded, 0));
    OK(cuMemcpyDtoH(&value, address, 4));
    CHECK(value == 0);
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyDtoH(&value, address, 4));
    CHECK(value == 7);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(recorded));
    OK(cuStreamDestroy(stream));
    OK(cuMemFree(address));
}

/* A fault stays with its context, and every call of it returns its code. */
static void fault(CUmodule module)
{
    CUfunction store;
    CUdeviceptr nowhere = 64;
    const char *text = NULL;
    void *values[] = {&nowhere};
    OK(cuModuleGetFunction(&store, module, "store"));
    OK(cuLaunchKernel(store, 1, 1, 1, 1, 1, 1, 0, 0, values, NULL));
    CODE(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
    CODE(cuMemAlloc(&nowhere, 4), CUDA_ERROR_ILLEGAL_ADDRESS);
    OK(cuGetErrorName(CUDA_ERROR_ILLEGAL_ADDRESS, &text));
    CHECK(strcmp(text, "CUDA_ERROR_ILLEGAL_ADDRESS") == 0);
    OK(cuGetErrorString(CUDA_ERROR_ILLEGAL_ADDRESS, &text));
    CHECK(strlen(text) > 0);
}

int main(void)
{
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction function;
    CUdriverProcAddressQueryResult found;
    void *entry = NULL;
    int version = 0;
    CODE(cuInit(1), CUDA_ERROR_INVALID_VALUE);
    CODE(cuDeviceGet(&device, 0), CUDA_ERROR_NOT_INITIALIZED);
    OK(cuInit(0));
    OK(cuDriverGetVersion(&version));
    CHECK(version >= 12000);
    OK(cuDeviceGet(&device, 0));
    devices(device);
    OK(cuGetProcAddress("cuMemAlloc", &entry, 12000, 0, &found));
    CHECK(entry != NULL && found == CU_GET_PROC_ADDRESS_SUCCESS);
    CODE(cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuDevicePrimaryCtxRetain(&context, device));
    OK(cuCtxSetCurrent(context));
    CODE(cuModuleLoadData(&module, "no PTX"), CUDA_ERROR_INVALID_IMAGE);
    OK(cuModuleLoadData(&module, kernels));
    CODE(cuModuleGetFunction(&function, module, "none"), CUDA_ERROR_NOT_FOUND);
    kernel(module);
    memory(module);
    graph(module);
    fault(module);
    OK(cuDevicePrimaryCtxRelease(device));
    puts("all as it should be");
    return 0;
}
