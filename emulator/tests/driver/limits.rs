//! The limits of a context: the stack and the heap of kernels.

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{LaunchConfig, PushKernelArg};

use crate::support::{code, context, kernel};

/// Stores how many calls nested.
const NESTED: &str = r#"
.version 8.0
.target sm_80
.address_size 64

.func (.reg .u32 %depth) nest (.reg .u32 %left)
{
    .local .align 16 .b8 space[256];
    .reg .pred %p;
    .reg .u32 %r<3>;

    mov.u32 %depth, 0;
    setp.eq.u32 %p, %left, 0;
    @%p ret;
    st.local.u32 [space], %left;
    sub.u32 %r1, %left, 1;
    call.uni (%depth), nest, (%r1);
    ld.local.u32 %r2, [space];
    setp.eq.u32 %p, %r2, %left;
    @%p add.u32 %depth, %depth, 1;
    ret;
}

.visible .entry nested(
    .param .u64 nested_param_0,
    .param .u32 nested_param_1
)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;

    ld.param.u64 %rd1, [nested_param_0];
    ld.param.u32 %r1, [nested_param_1];
    call.uni (%r2), nest, (%r1);
    st.global.u32 [%rd1], %r2;
    ret;
}
"#;

/// Stores whether the heap had room.
const ALLOCATING: &str = r#"
.version 8.0
.target sm_80
.address_size 64

.extern .func (.param .b64 pointer) malloc (.param .b64 bytes);

.visible .entry allocate(
    .param .u64 allocate_param_0,
    .param .u64 allocate_param_1
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<2>;
    .reg .b64 %rd<4>;
    .param .b64 pointer;
    .param .b64 bytes;

    ld.param.u64 %rd1, [allocate_param_0];
    ld.param.u64 %rd2, [allocate_param_1];
    st.param.b64 [bytes], %rd2;
    call.uni (pointer), malloc, (bytes);
    ld.param.b64 %rd3, [pointer];
    setp.ne.u64 %p1, %rd3, 0;
    selp.u32 %r1, 1, 0, %p1;
    st.global.u32 [%rd1], %r1;
    ret;
}
"#;

#[test]
fn limits_of_the_stack_and_the_heap() {
    const STACK: sys::CUlimit = sys::CUlimit::CU_LIMIT_STACK_SIZE;
    const HEAP: sys::CUlimit = sys::CUlimit::CU_LIMIT_MALLOC_HEAP_SIZE;
    // SAFETY: the function takes numbers.
    let set = |limit, value| unsafe { sys::cuCtxSetLimit(limit, value) };
    let get = |limit| {
        let mut value = 0;
        // SAFETY: a place for a number.
        assert_eq!(unsafe { sys::cuCtxGetLimit(&mut value, limit) }, CUresult::CUDA_SUCCESS);
        value
    };
    let context = context();
    let stream = context.default_stream();
    let mut out = stream.alloc_zeros::<u32>(1).unwrap();
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

    assert_eq!((get(STACK), get(HEAP)), (1 << 10, 8 << 20));
    assert_eq!(set(STACK, 1 << 30), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(set(STACK, 64 << 10), CUresult::CUDA_SUCCESS);
    assert_eq!(set(HEAP, 1 << 20), CUresult::CUDA_SUCCESS);
    let nested = kernel(&context, NESTED, "nested");
    // SAFETY: the kernel stores one word.
    unsafe { stream.launch_builder(&nested).arg(&mut out).arg(&100u32).launch(shape) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [100]);

    let allocate = kernel(&context, ALLOCATING, "allocate");
    assert_eq!(set(HEAP, 2 << 20), CUresult::CUDA_ERROR_INVALID_VALUE);
    for (bytes, fits) in [(600u64 << 10, 1), (600 << 10, 0), (100 << 10, 1)] {
        // SAFETY: the kernel stores one word.
        unsafe { stream.launch_builder(&allocate).arg(&mut out).arg(&bytes).launch(shape) }
            .unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), [fits], "{bytes} bytes");
    }
    assert_eq!((get(STACK), get(HEAP)), (64 << 10, 1 << 20));

    assert_eq!(set(STACK, 1 << 10), CUresult::CUDA_SUCCESS);
    // SAFETY: the kernel stores one word, if anything.
    let launched =
        unsafe { stream.launch_builder(&nested).arg(&mut out).arg(&100u32).launch(shape) };
    let finished = launched.and_then(|_| stream.synchronize());
    assert_eq!(code(finished), CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR);
}
