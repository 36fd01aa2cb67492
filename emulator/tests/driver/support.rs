//! What the tests of the driver share: the emulated device, and kernels written by hand.

use std::cell::OnceCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuda_emulator::client::{Choice, Emulator, select};
use cudarc::driver::{CudaContext, CudaFunction, DriverError, sys};
use cudarc::nvrtc::Ptx;

/// `out[i] = a * x[i]` for `i < n`, and a variable that nothing uses.
pub const SCALE: &str = r#"
.version 8.0
.target sm_80
.address_size 64

.visible .global .align 4 .u32 launches;

.visible .entry scale(
    .param .u64 scale_param_0,
    .param .u64 scale_param_1,
    .param .f32 scale_param_2,
    .param .u32 scale_param_3
)
.maxntid 256, 1, 1
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;

    ld.param.u64 %rd1, [scale_param_0];
    ld.param.u64 %rd2, [scale_param_1];
    ld.param.f32 %f1, [scale_param_2];
    ld.param.u32 %r2, [scale_param_3];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r1, %r3, %r4, %r5;
    setp.ge.u32 %p1, %r1, %r2;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd3, %rd2;
    mul.wide.u32 %rd4, %r1, 4;
    add.s64 %rd5, %rd3, %rd4;
    ld.global.f32 %f2, [%rd5];
    mul.f32 %f3, %f1, %f2;
    cvta.to.global.u64 %rd6, %rd1;
    add.s64 %rd7, %rd6, %rd4;
    st.global.f32 [%rd7], %f3;
DONE:
    ret;
}
"#;

/// Kernels that do nothing, that need shared memory, and that go wrong at a given address.
pub const SPECIAL: &str = r#"
.version 8.0
.target sm_80
.address_size 64

.extern .shared .align 16 .b8 dynamic[];

.visible .entry nothing()
{
    ret;
}

.visible .entry shared_echo(
    .param .u64 shared_echo_param_0
)
{
    .reg .b32 %r<6>;
    .reg .b64 %rd<5>;

    ld.param.u64 %rd1, [shared_echo_param_0];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, dynamic;
    add.s32 %r4, %r3, %r2;
    st.shared.u32 [%r4], %r1;
    bar.sync 0;
    ld.shared.u32 %r5, [%r4];
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd2, %rd3;
    st.global.u32 [%rd4], %r5;
    ret;
}

.visible .entry store(
    .param .u64 store_param_0,
    .param .u32 store_param_1
)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<3>;

    ld.param.u64 %rd1, [store_param_0];
    ld.param.u32 %r1, [store_param_1];
    cvta.to.global.u64 %rd2, %rd1;
    st.global.u32 [%rd2], %r1;
    ret;
}

.visible .entry give_up()
{
    trap;
    ret;
}
"#;

/// Puts the process on the emulated device, which the test has alone until its thread ends.
pub fn emulator() -> Emulator {
    alone();
    let selected = select(Choice::Emulated).unwrap_or_else(|error| panic!("{error}"));
    *selected.emulator().expect("the emulated device was asked for")
}

/// A context of the emulated device.
pub fn context() -> Arc<CudaContext> {
    emulator();
    CudaContext::new(0).expect("a context")
}

/// Waits until no other test has the device, and keeps it until the thread of this test ends.
fn alone() {
    static DEVICE: Mutex<()> = Mutex::new(());
    thread_local! {
        static MINE: OnceCell<MutexGuard<'static, ()>> = const { OnceCell::new() };
    }
    MINE.with(|mine| {
        mine.get_or_init(|| DEVICE.lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// A kernel of a text.
pub fn kernel(context: &Arc<CudaContext>, text: &str, name: &str) -> CudaFunction {
    let module = context.load_module(Ptx::from_src(text));
    let module = module.unwrap_or_else(|error| {
        panic!("{error}: {}", emulator().last_error().unwrap_or_default());
    });
    module.load_function(name).expect("a kernel")
}

/// The code that a call returned.
pub fn code<T>(result: Result<T, DriverError>) -> sys::CUresult {
    match result {
        Ok(_) => sys::CUresult::CUDA_SUCCESS,
        Err(DriverError(code)) => code,
    }
}
