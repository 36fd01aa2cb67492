//! BERT, of candle's operations that have a backward, around linear layers of any kind.

use std::fs;
use std::path::Path;

use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, Linear, VarBuilder, ops};
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::data::{Batch, Sentence};

/// Where candle's tensors are; the kernels take those of the CPU to the device that there is.
pub const DEVICE: Device = Device::Cpu;

/// Sentences of one forward without backward.
const BATCH: usize = 64;

/// Of an attention score that is to count for nothing.
const MASKED: f32 = -1e9;

/// What is read of the model's `config.json`.
#[derive(Deserialize)]
pub struct Config {
    pub hidden_size: usize,
    vocab_size: usize,
    type_vocab_size: usize,
    max_position_embeddings: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    model_type: String,
}

/// A pre-trained model on the disk.
pub struct Base {
    pub config: Config,
    pub tokenizer: Tokenizer,
    weights: VarBuilder<'static>,
}

impl Base {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of a folder.
    pub fn read(folder: &Path) -> crate::Result<Self> {
        let file = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|error| {
                format!(
                    "cannot read {}: {error} (--model names the folder of all-MiniLM-L6-v2; \
                     `cargo xtask minilm` fetches it)",
                    path.display()
                )
            })
        };
        let wrong = |name: &str, problem: &dyn std::fmt::Display| {
            format!("{}: {problem}", folder.join(name).display())
        };
        let config: Config = serde_json::from_slice(&file("config.json")?)
            .map_err(|error| wrong("config.json", &error))?;
        let Config { model_type, hidden_act, hidden_size, num_attention_heads, .. } = &config;
        if (model_type.as_str(), hidden_act.as_str()) != ("bert", "gelu") {
            let problem =
                format!("a {model_type} with {hidden_act}, where a bert with gelu is due");
            return Err(wrong("config.json", &problem).into());
        }
        if *num_attention_heads == 0 || hidden_size % num_attention_heads != 0 {
            let problem = format!("{hidden_size} features in {num_attention_heads} heads");
            return Err(wrong("config.json", &problem).into());
        }
        let mut tokenizer = Tokenizer::from_bytes(file("tokenizer.json")?)
            .map_err(|error| wrong("tokenizer.json", &error))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| wrong("tokenizer.json", &error))?;
        let weights = file("model.safetensors")?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &DEVICE)
            .map_err(|error| wrong("model.safetensors", &error))?;
        Ok(Self { config, tokenizer, weights })
    }

    /// The model, with what `project` makes of each linear layer, by its name.
    pub fn bert(
        &self,
        mut project: impl FnMut(&str, Linear) -> crate::Result<Box<dyn Module>>,
    ) -> crate::Result<Bert> {
        let config = &self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let vb = self.weights.pp("embeddings");
        let table = |size, name| candle_nn::embedding(size, hidden, vb.pp(name));
        let words = table(config.vocab_size, "word_embeddings")?;
        let positions = table(config.max_position_embeddings, "position_embeddings")?;
        let kinds = table(config.type_vocab_size, "token_type_embeddings")?;
        let norm = LayerNorm::new(config, vb.pp("LayerNorm"))?;
        let layers = (0..config.num_hidden_layers).map(|index| {
            let name = format!("encoder.layer.{index}");
            let vb = self.weights.pp(&name);
            let mut linear = |inputs, outputs, part: &str| {
                let linear = candle_nn::linear(inputs, outputs, vb.pp(part))?;
                project(&format!("{name}.{part}"), linear)
            };
            Ok(Layer {
                heads: config.num_attention_heads,
                query: linear(hidden, hidden, "attention.self.query")?,
                key: linear(hidden, hidden, "attention.self.key")?,
                value: linear(hidden, hidden, "attention.self.value")?,
                attention: linear(hidden, hidden, "attention.output.dense")?,
                attention_norm: LayerNorm::new(config, vb.pp("attention.output.LayerNorm"))?,
                intermediate: linear(hidden, inner, "intermediate.dense")?,
                output: linear(inner, hidden, "output.dense")?,
                output_norm: LayerNorm::new(config, vb.pp("output.LayerNorm"))?,
            })
        });
        let layers = layers.collect::<crate::Result<_>>()?;
        Ok(Bert { words, positions, kinds, norm, layers })
    }
}

/// The model.
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    kinds: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Sentences' embeddings `[sentences, hidden]`: the mean of their tokens'.
    pub fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let length = batch.tokens.dim(1)?;
        let positions = Tensor::arange(0, length as u32, &DEVICE)?;
        let x = self.words.forward(&batch.tokens)?;
        let x = x.broadcast_add(&self.positions.forward(&positions)?)?;
        let x = x.broadcast_add(&self.kinds.forward(&Tensor::zeros(1, DType::U32, &DEVICE)?)?)?;
        let mut x = self.norm.forward(&x)?;
        // [sentences, 1, 1, tokens]
        let mask = batch.mask.affine(-f64::from(MASKED), f64::from(MASKED))?;
        let mask = mask.unsqueeze(1)?.unsqueeze(1)?;
        for layer in &self.layers {
            x = layer.forward(&x, &mask)?;
        }
        let sum = x.broadcast_mul(&batch.mask.unsqueeze(D::Minus1)?)?.sum(1)?;
        sum.broadcast_div(&batch.mask.sum_keepdim(1)?)
    }

    /// The embeddings of sentences in their order, without a backward. `progress` receives how many
    /// more are done.
    pub fn embed_all(
        &self,
        sentences: &[Sentence],
        mut progress: impl FnMut(usize),
    ) -> Result<Tensor> {
        // Such of about one length together: padding costs as much as words.
        let mut order: Vec<u32> = (0..sentences.len() as u32).collect();
        order.sort_by_key(|&index| sentences[index as usize].tokens.len());
        let mut embeddings = Vec::new();
        for part in order.chunks(BATCH) {
            let batch = Batch::new(part.iter().map(|&index| &sentences[index as usize]))?;
            embeddings.push(self.embed(&batch)?.detach());
            progress(part.len());
        }
        let mut place = vec![0; order.len()];
        (0u32..).zip(&order).for_each(|(row, &index)| place[index as usize] = row);
        Tensor::cat(&embeddings, 0)?.index_select(&Tensor::new(place, &DEVICE)?, 0)
    }
}

struct Layer {
    heads: usize,
    query: Box<dyn Module>,
    key: Box<dyn Module>,
    value: Box<dyn Module>,
    attention: Box<dyn Module>,
    attention_norm: LayerNorm,
    intermediate: Box<dyn Module>,
    output: Box<dyn Module>,
    output_norm: LayerNorm,
}

impl Layer {
    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (sentences, tokens, hidden) = x.dims3()?;
        let width = hidden / self.heads;
        // [sentences, heads, tokens, width]
        let heads = |layer: &dyn Module| {
            layer.forward(x)?.reshape((sentences, tokens, self.heads, width))?.transpose(1, 2)
        };
        let query = (heads(&*self.query)? / (width as f64).sqrt())?.contiguous()?;
        let key = heads(&*self.key)?.transpose(2, 3)?.contiguous()?;
        let value = heads(&*self.value)?.contiguous()?;
        let scores = query.matmul(&key)?.broadcast_add(mask)?;
        let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.reshape((sentences, tokens, hidden))?;
        let x = self.attention_norm.forward(&(self.attention.forward(&mixed)? + x)?)?;
        let inner = self.intermediate.forward(&x)?.gelu_erf()?;
        self.output_norm.forward(&(self.output.forward(&inner)? + x)?)
    }
}

/// Candle's own layer norm has no backward.
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let part = |name| vb.get(config.hidden_size, name);
        Ok(Self { weight: part("weight")?, bias: part("bias")?, eps: config.layer_norm_eps })
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_slow(x, &self.weight, &self.bias, self.eps)
    }
}

/// A layer of another dtype than the model around it, which is f32.
pub struct InDtype<L> {
    pub layer: L,
    pub dtype: DType,
}

impl<L: Module> Module for InDtype<L> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward(&x.to_dtype(self.dtype)?)?.to_dtype(DType::F32)
    }
}
