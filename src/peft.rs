//! Adapters in files, as PEFT and LyCORIS write them (feature `peft`).
//!
//! [`PeftCheckpoint`] is a folder with `adapter_config.json` and `adapter_model.safetensors`, which
//! [huggingface/peft](https://github.com/huggingface/peft) writes with `save_pretrained` and loads
//! with `from_pretrained`: LoRA, and DoRA with the norm along the output axis. [`read_lycoris`]
//! reads the single files of LyCORIS, kohya and diffusers. The first two have DoRA with its norm
//! along either axis.
//!
//! [`PackedModules`] reads packed weights of a base: those of bitsandbytes, and fp8.
//!
//! What a setting of such a file would change and this crate does not do is refused by name: a
//! checkpoint that is read means here what it means to its writer.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use fused_dora::Dtype;
//! use fused_dora::Norm;
//! use fused_dora::peft::{LayerAdapter, PeftCheckpoint};
//!
//! // A DoRA of rank 1 on a layer with two inputs and three outputs.
//! let (lora_a, lora_b, magnitude) = (vec![0.1, 0.2], vec![0.0; 3], vec![1.0; 3]);
//! let layer = LayerAdapter::new([3, 2], 1, 2.0, Norm::Output, lora_a, lora_b, magnitude)?;
//! let layers = BTreeMap::from([("model.layers.0.self_attn.q_proj".to_owned(), layer)]);
//! let checkpoint = PeftCheckpoint::new(layers)?;
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! checkpoint.write(folder, Dtype::F32)?;
//! assert_eq!(PeftCheckpoint::read(folder)?.layers, checkpoint.layers);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod config;
mod error;
#[doc(hidden)]
pub mod files;
mod layer;
mod lycoris;
#[doc(hidden)]
pub mod names;
mod packed;
mod tensors;

pub use checkpoint::{PeftCheckpoint, PeftContents, WholeTensor};
pub use config::{PeftConfig, PeftOptions};
pub use error::CheckpointError;
pub use layer::LayerAdapter;
#[doc(hidden)]
pub use lycoris::lycoris_modules;
pub use lycoris::read_lycoris;
pub use packed::{PackedModules, QuantizationConfig, QuantizedTensor};
pub use safetensors;
pub use tensors::TensorFile;
