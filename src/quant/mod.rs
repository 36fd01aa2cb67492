//! Packed weights on the host: the formats of bitsandbytes (NF4, FP4, int8) and fp8, what they
//! mean, and how W is packed into them.
//!
//! The ops take packed weights as they are, and [`Kernels::quantize`](crate::Kernels::quantize) packs on
//! the device. A packed weight means one W, which norms, products, a merge and gradients all see:
//!
//! > W = round_T(round_S(formula in f32))
//!
//! T is the layer's dtype, and S the format's ([`WeightFormat::state`]): `quant_state.dtype` of
//! bitsandbytes' 4 bits, and f32, which does not round, for the others.
//!
//! | format | formula of an element |
//! |---|---|
//! | [`Code4`](WeightFormat::Code4) | `code[q]·absmax` of its block; nested: `absmax = map[q]·nested_absmax + offset` |
//! | [`Int8Rows`](WeightFormat::Int8Rows) | `(q·SCB)·f32(1/127)` of its row |
//! | [`Fp8`](WeightFormat::Fp8) | `e4m3(q)·scale` |
//!
//! ```
//! use fused_dora::Dtype;
//! use fused_dora::quant::{BlockScales, Code4, QuantizedWeight, WeightFormat};
//! use half::bf16;
//!
//! let (code, scales) = (Code4::Nf4, BlockScales::F32);
//! let format = WeightFormat::Code4 { code, block: 64, scales, state: Dtype::Bf16 };
//! // Two rows of 48: the first block ends in the second row.
//! let weight: Vec<bf16> = (0..96).map(|n| bf16::from_f32((n as f32).sin())).collect();
//! let packed = QuantizedWeight::quantize(&weight, [2, 48], format)?;
//! assert_eq!(packed.bytes(), 96 / 2 + 2 * 4);
//! let unpacked: Vec<bf16> = packed.dequantize();
//! let error = weight.iter().zip(&unpacked).map(|(a, b)| (a.to_f32() - b.to_f32()).abs());
//! assert!(error.fold(0.0, f32::max) < 0.17);
//! # Ok::<(), fused_dora::Error>(())
//! ```

mod code;
mod format;
mod quantize;
mod weight;

pub use code::{dynamic_map, fp8_from_f32, fp8_to_f32};
pub use format::{BlockScales, Code4, Fp8Scales, NESTED_BLOCK, WeightFormat};
pub use weight::{QuantizedWeight, Scales};
