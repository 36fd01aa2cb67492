//! The Rust types of tensors' elements.

use cudarc::driver::{CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

use super::{Memory, MemoryMut};
use crate::dtype::{Dtype, ElementType};

mod sealed {
    use super::{CudaView, CudaViewMut, Memory, MemoryMut};

    /// How a view of the type becomes one of any type.
    pub trait Erase: Sized {
        fn read(view: CudaView<'_, Self>) -> Memory<'_>;
        fn write(view: CudaViewMut<'_, Self>) -> MemoryMut<'_>;
    }
}

use sealed::Erase;

/// A Rust type that an [`ElementType`] stands for.
pub trait TensorElement: DeviceRepr + ValidAsZeroBits + Copy + Erase + 'static {
    /// The element type.
    const TYPE: ElementType;
}

macro_rules! tensor_elements {
    ($($rust:ty: $name:ident),*) => {$(
        impl Erase for $rust {
            fn read(view: CudaView<'_, Self>) -> Memory<'_> {
                Memory::$name(view)
            }
            fn write(view: CudaViewMut<'_, Self>) -> MemoryMut<'_> {
                MemoryMut::$name(view)
            }
        }

        impl TensorElement for $rust {
            const TYPE: ElementType = ElementType::$name;
        }
    )*};
}

tensor_elements!(bf16: Bf16, f16: F16, f32: F32, f64: F64, u64: U64, u8: U8);

/// A Rust type that a [`Dtype`] stands for.
pub trait Element: TensorElement {
    /// The matching compute type.
    const DTYPE: Dtype;
    /// Rounds to nearest.
    fn from_f32(value: f32) -> Self;
    /// Widens exactly.
    fn to_f32(self) -> f32;
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
}
