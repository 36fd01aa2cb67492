//! A PEFT checkpoint: its settings and its layers.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype as Stored;
use safetensors::tensor::TensorView;
use serde_json::Map;

use super::config::number;
use super::names::{LayerPart, Meaning, PREFIX, meaning};
use super::{CheckpointError, LayerAdapter, PeftConfig, PeftOptions, TensorFile, files};
use crate::dtype::Dtype;
use crate::spec::Norm;

const LORA_A: &str = "lora_A.weight";
const LORA_B: &str = "lora_B.weight";
const MAGNITUDE: &str = "lora_magnitude_vector";

/// An adapter of a whole model, as PEFT saves it.
#[derive(Debug, Clone)]
pub struct PeftCheckpoint {
    /// `adapter_config.json`.
    pub config: PeftConfig,
    /// The adapters by the name of their module, as `model.layers.0.self_attn.q_proj`: that of the
    /// weight in the base model without its `.weight`. A weight that the base model stores `[I, O]`
    /// ([`PeftConfig::fan_in_fan_out`]) is adapted by [`LayerAdapter::transposed`].
    pub layers: BTreeMap<String, LayerAdapter>,
}

/// A tensor of the model itself that an adapter's file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeTensor {
    /// Its name in the model, as `score.weight`.
    pub name: String,
    /// Its name in the file.
    pub stored: String,
    /// Whether PEFT keeps it as a copy of the base's (`base_layer`, `original_module`), and not as
    /// its replacement.
    pub is_copy: bool,
}

/// What [`PeftCheckpoint::read_with`] finds.
#[derive(Debug)]
pub struct PeftContents {
    /// The settings and the layers.
    pub checkpoint: PeftCheckpoint,
    /// Tensors of the model itself: empty unless [`PeftOptions::whole_modules`] is set.
    pub whole: Vec<WholeTensor>,
    /// The file, to read these from.
    pub file: TensorFile,
}

impl PeftCheckpoint {
    /// The tensors' file in its folder.
    pub const FILE: &str = "adapter_model.safetensors";

    /// A checkpoint of these layers, with the settings that they need. More of them:
    /// [`PeftConfig::with`].
    ///
    /// # Errors
    /// [`CheckpointError::Layer`] where PEFT has no such layers: none at all, LoRA and DoRA
    /// together, a norm along the input axis, rank 0.
    pub fn new(layers: BTreeMap<String, LayerAdapter>) -> Result<Self, CheckpointError> {
        let wrong = |layer: &str, problem: &str| {
            Err(CheckpointError::Layer { layer: layer.to_owned(), problem: problem.to_owned() })
        };
        let Some((_, first)) = layers.first_key_value() else {
            return wrong("", "is missing: a checkpoint needs at least one layer");
        };
        let (rank, norm) = (first.rank(), first.norm());
        let alpha = |layer: &LayerAdapter| f64::from(layer.scaling()) * layer.rank() as f64;
        let (mut ranks, mut alphas) = (Map::new(), Map::new());
        for (name, layer) in &layers {
            if layer.rank() == 0 {
                return wrong(name, "is of rank 0, which PEFT cannot hold: merge it instead");
            }
            if layer.norm() == Norm::Input {
                return wrong(
                    name,
                    "has its norm along the input axis, but PEFT's is along the output axis: merge \
                     it instead",
                );
            }
            if layer.norm() != norm {
                return wrong(
                    name,
                    "is a DoRA next to a LoRA, or the other way round: PEFT has one kind \
                     per checkpoint",
                );
            }
            // PEFT's pattern for this very name.
            let pattern = format!("^{}", fancy_regex::escape(name));
            if layer.rank() != rank {
                ranks.insert(pattern.clone(), layer.rank().into());
            }
            if alpha(layer) != alpha(first) {
                alphas.insert(pattern, number(alpha(layer)));
            }
        }
        let names: Vec<_> = layers.keys().cloned().collect();
        let config = PeftConfig::new(rank, alpha(first), norm == Norm::Output)?
            .with("rank_pattern", ranks)?
            .with("alpha_pattern", alphas)?
            .with("target_modules", names)?;
        Ok(Self { config, layers })
    }

    /// Reads a folder that PEFT wrote.
    ///
    /// # Errors
    /// Those of [`PeftConfig::read`] and [`TensorFile::open`]; [`CheckpointError::MissingTensor`],
    /// [`CheckpointError::UnexpectedTensor`], [`CheckpointError::Shape`] and
    /// [`CheckpointError::Dtype`] where tensors are not what the settings say.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Ok(Self::read_with(folder, &PeftOptions::default())?.checkpoint)
    }

    /// Reads a folder that PEFT wrote, with more of what can be in it.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), except where the options allow something.
    pub fn read_with(
        folder: impl AsRef<Path>,
        options: &PeftOptions,
    ) -> Result<PeftContents, CheckpointError> {
        let folder = folder.as_ref();
        let config = PeftConfig::read_with(&folder.join(PeftConfig::FILE), options)?;
        let file = TensorFile::open(folder.join(Self::FILE))?;
        let (mut modules, mut whole) = (BTreeMap::<String, Parts>::new(), Vec::new());
        let mut known: Option<(String, String)> = None;
        for tensor in file.names() {
            match meaning(&tensor) {
                None => {
                    let reason = super::names::foreign(&tensor).unwrap_or(
                        "PEFT's names begin with `base_model.model.`: is it a PEFT checkpoint?",
                    );
                    return Err(file.unexpected(&tensor, reason));
                }
                Some(Meaning::Unsupported(reason)) => return Err(file.unexpected(&tensor, reason)),
                Some(Meaning::Whole { name, is_copy }) if options.whole_modules => {
                    whole.push(WholeTensor { name, stored: tensor, is_copy });
                }
                Some(Meaning::Whole { .. }) => {
                    let reason = "it is a tensor of the model itself, not of an adapter: set \
                                  PeftOptions::whole_modules to read it";
                    return Err(file.unexpected(&tensor, reason));
                }
                Some(Meaning::Part { module, part, adapter }) => {
                    let adapter = adapter.unwrap_or_default();
                    match &known {
                        Some((first, other)) if *first != adapter => {
                            let reason = format!(
                                "it is of the adapter `{adapter}`, and `{other}` of `{first}`: \
                                 store one adapter per file"
                            );
                            return Err(file.unexpected(&tensor, reason));
                        }
                        _ => known = Some((adapter, tensor.clone())),
                    }
                    let parts = modules.entry(module).or_default();
                    if parts.insert(part, tensor.clone()).is_some() {
                        return Err(file.unexpected(&tensor, "the module has this tensor twice"));
                    }
                }
            }
        }
        if modules.is_empty() && whole.is_empty() {
            return Err(CheckpointError::malformed(file.path(), "holds no adapter's tensors"));
        }
        let layers = modules.into_iter().map(|(module, parts)| {
            let layer = read_layer(&config, &file, &module, &parts)?;
            Ok((module, layer))
        });
        let layers = layers.collect::<Result<_, CheckpointError>>()?;
        Ok(PeftContents { checkpoint: Self { config, layers }, whole, file })
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into a folder, which is made
    /// where it is missing, with tensors of a dtype: PEFT's own is f32. Each file is complete
    /// before it takes its name.
    ///
    /// # Errors
    /// [`CheckpointError::Layer`] if a layer is not what the settings say;
    /// [`CheckpointError::Write`].
    pub fn write(&self, folder: impl AsRef<Path>, dtype: Dtype) -> Result<(), CheckpointError> {
        let folder = folder.as_ref();
        for (name, layer) in &self.layers {
            self.check(name, layer)?;
        }
        std::fs::create_dir_all(folder).map_err(CheckpointError::write(folder))?;
        let path = folder.join(Self::FILE);
        let bytes = self.serialize(dtype).map_err(|error| {
            CheckpointError::malformed(&path, format!("cannot hold these tensors: {error}"))
        })?;
        write_file(&path, &bytes)?;
        write_file(&folder.join(PeftConfig::FILE), self.config.to_json().as_bytes())
    }

    fn check(&self, name: &str, layer: &LayerAdapter) -> Result<(), CheckpointError> {
        let config = &self.config;
        let norm = if config.use_dora() { Norm::Output } else { Norm::None };
        let found = (layer.norm(), layer.rank(), layer.scaling());
        let settings = (norm, config.rank(name), config.scaling(name));
        let problem = if found != settings {
            format!(
                "has norm {:?}, rank {} and scaling {}, but by the settings {:?}, {} and {}: \
                 change rank_pattern, alpha_pattern or use_dora",
                found.0, found.1, found.2, settings.0, settings.1, settings.2
            )
        } else if !config.is_target(name) {
            "is not among target_modules, so that PEFT would leave it out: name it there".to_owned()
        } else {
            return Ok(());
        };
        Err(CheckpointError::Layer { layer: name.to_owned(), problem })
    }

    fn serialize(&self, dtype: Dtype) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let mut tensors = Vec::new();
        for (module, layer) in &self.layers {
            let ([outputs, inputs], rank) = (layer.shape(), layer.rank());
            let mut add = |part: &str, shape: Vec<usize>, values: &[f32]| {
                tensors.push((format!("{PREFIX}{module}.{part}"), shape, narrowed(values, dtype)));
            };
            add(LORA_A, vec![rank, inputs], layer.lora_a());
            add(LORA_B, vec![outputs, rank], layer.lora_b());
            if layer.norm() != Norm::None {
                add(MAGNITUDE, vec![outputs], layer.magnitude());
            }
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            Ok((name, TensorView::new(stored(dtype), shape.clone(), bytes)?))
        });
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(views, Some(metadata))
    }
}

/// The names of a module's tensors.
type Parts = HashMap<LayerPart, String>;

fn read_layer(
    config: &PeftConfig,
    file: &TensorFile,
    module: &str,
    parts: &Parts,
) -> Result<LayerAdapter, CheckpointError> {
    let rank = config.rank(module);
    let find = |part: LayerPart, name: &str, reason: &str| {
        let missing = || file.missing(&format!("{PREFIX}{module}.{name}"), reason);
        parts.get(&part).map(String::as_str).ok_or_else(missing)
    };
    let whole = "an adapter has lora_A and lora_B: the file is incomplete";
    let name_a = find(LayerPart::A, LORA_A, whole)?;
    let name_b = find(LayerPart::B, LORA_B, whole)?;
    let inputs = match file.matrix(name_a)? {
        Some([r, inputs]) if r == rank => inputs,
        _ => {
            let needed = format!("of rank {rank}, which the settings give it, must be [{rank}, I]");
            return Err(file.shape(name_a, needed));
        }
    };
    let outputs = match file.matrix(name_b)? {
        Some([outputs, r]) if r == rank => outputs,
        _ => {
            let needed = format!("of rank {rank}, which the settings give it, must be [O, {rank}]");
            return Err(file.shape(name_b, needed));
        }
    };
    if !config.is_target(module) {
        let reason = "its module is not among the settings' target_modules, so that PEFT would \
                      ignore it: are the two files of one adapter?";
        return Err(file.unexpected(name_a, reason));
    }
    let (norm, magnitude) = match (config.use_dora(), parts.get(&LayerPart::Magnitude)) {
        (true, Some(name)) => {
            // A convolution's is [1, O, 1, 1].
            let found = file.info(name).map_or(&[][..], |info| &info.shape);
            if found
                .iter()
                .copied()
                .filter(|size| *size != 1)
                .ne([outputs].into_iter().filter(|o| *o != 1))
            {
                let needed = format!("next to lora_B of {outputs} rows must be [{outputs}]");
                return Err(file.shape(name, needed));
            }
            (Norm::Output, file.floats(name)?)
        }
        (true, None) => {
            let reason = "use_dora is true, and DoRA needs a magnitude per output feature";
            return Err(file.missing(&format!("{PREFIX}{module}.{MAGNITUDE}"), reason));
        }
        (false, Some(name)) if config.settings().contains_key("use_dora") => {
            let reason = "the settings have use_dora as false: plain LoRA has no magnitude";
            return Err(file.unexpected(name, reason));
        }
        (false, Some(name)) => {
            let reason = format!(
                "use_dora is missing in {}: PEFT would load this DoRA as a LoRA, without its \
                 magnitudes. Set use_dora to true if PEFT wrote the tensors. torchtune's export \
                 leaves it out, and permutes rows of lora_B of q_proj and k_proj but not of the \
                 magnitude: merge such a DoRA with torchtune",
                PeftConfig::FILE
            );
            return Err(file.unexpected(name, reason));
        }
        (false, None) => (Norm::None, Vec::new()),
    };
    let (lora_a, lora_b) = (file.floats(name_a)?, file.floats(name_b)?);
    let scaling = config.scaling(module);
    LayerAdapter::new([outputs, inputs], rank, scaling, norm, lora_a, lora_b, magnitude).map_err(
        |error| CheckpointError::Layer { layer: module.to_owned(), problem: error.to_string() },
    )
}

fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::Bf16 => Stored::BF16,
        Dtype::F16 => Stored::F16,
        Dtype::F32 => Stored::F32,
    }
}

/// The bytes of elements, rounded to nearest.
fn narrowed(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let values = values.iter();
    match dtype {
        Dtype::Bf16 => values.flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Writes a file next to its place, and moves it there when it is complete and on the disk.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || {
        let mut file = files::file_beside(path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        files::sync_folder(files::parent(path))
    };
    write().map_err(CheckpointError::write(path))
}
