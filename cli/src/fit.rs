//! An adapter on a base: which tensor each of its layers changes, how that is stored, and which
//! tensors it replaces.

use std::collections::BTreeMap;

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::{CheckpointError, LayerAdapter};

use crate::adapters::Adapters;
use crate::base::Base;
use crate::error::Failure;
use crate::model::{CONFIG, ModelConfig};
use crate::names::{Names, Starts};
use crate::options::AdapterOptions;
use crate::orientation::{self, Orientations, Question};
use crate::report::count;
use crate::tied::{self, Untied};
use crate::whole;

/// A layer of the adapter for one weight of the base.
pub struct Layer {
    /// The module, as the adapter calls it.
    pub module: String,
    /// The adapter of the weight as the base stores it.
    pub layer: LayerAdapter,
    /// The tensor to take W from: another than the one that is written, where weights are tied.
    pub source: String,
}

/// A tensor that the adapter replaces or adds.
pub struct Replacement {
    pub stored: String,
    pub is_added: bool,
}

/// All that an adapter does to a base.
pub struct Fit {
    /// By the tensor that is written.
    pub layers: BTreeMap<String, Layer>,
    /// Tensors of the base that are written as the adapter has them, and new ones.
    pub replacements: BTreeMap<String, Replacement>,
    /// How many weights are stored `[I, O]`.
    pub transposed: usize,
    /// What is to be said of names, weights and settings.
    pub notes: Vec<String>,
    pub untied: Untied,
    /// Whether the output has dense weights in place of all packed ones.
    pub is_unpacked: bool,
    /// The new text of config.json, where something in it changes.
    pub config: Option<String>,
}

/// Whether whole tensors are compared with the base, which has them as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    Compare,
    /// The base is a merged one.
    Leave,
}

impl Fit {
    pub fn new(
        adapters: &Adapters,
        base: &Base,
        options: &AdapterOptions,
        whole: Whole,
    ) -> Result<Self, Failure> {
        let names = Names::new(base, &options.map, options.strict_names);
        let weights = adapters.layers.keys().map(|module| format!("{module}.weight"));
        let whole_names = adapters.whole.iter().map(|whole| whole.name.clone());
        names.check_map(&weights.chain(whole_names).collect::<Vec<_>>())?;
        let mut starts = Starts::default();
        let mut fit = Self {
            layers: BTreeMap::new(),
            replacements: BTreeMap::new(),
            transposed: 0,
            notes: base.note.iter().chain(&adapters.notes).cloned().collect(),
            untied: Untied::default(),
            is_unpacked: false,
            config: None,
        };
        let config = base.config.as_ref();
        let mut found = Vec::new();
        for (module, layer) in &adapters.layers {
            let written = find(&names, &mut starts, adapters, base, config, module, layer)?;
            found.push((module, layer, written));
        }
        let questions = found.iter().map(|(module, layer, found)| Question {
            module,
            tensor: &found.0,
            layer: layer.shape(),
            weight: found.2,
            is_kernel: base
                .file(&found.1)
                .and_then(|file| file.info(&found.1))
                .is_some_and(|info| info.shape.len() > 2)
                || base.packed.contains(&found.1),
        });
        let questions: Vec<_> = questions.collect();
        let orientations = Orientations {
            base,
            config,
            transposed: &options.transposed,
            straight: &options.not_transposed,
            setting: adapters.by_input,
            adapted: questions.iter().map(|it| last(it.module)).collect(),
            seen: questions.iter().filter_map(Question::by_shape).collect(),
        };
        let modules: Vec<_> = questions
            .iter()
            .flat_map(|it| [it.module, it.tensor.trim_end_matches(".weight")])
            .collect();
        orientations.check_patterns(&modules)?;
        for (question, (module, layer, (tensor, source, _))) in questions.iter().zip(&found) {
            let by_input = orientations.decide(question)?;
            fit.transposed += usize::from(by_input);
            let layer = match by_input {
                true => layer.transposed(),
                false => (*layer).clone(),
            };
            let (module, source) = ((*module).clone(), source.clone());
            fit.layers.insert(tensor.clone(), Layer { module, layer, source });
        }
        fit.whole(adapters, base, &names, &mut starts, whole)?;
        fit.notes.extend(starts.lines());
        if let Some(name) = base.names().find(|name| name.contains(".lora_A.")) {
            fit.notes.push(format!(
                "The base holds tensors of an adapter, which are left as they are: `{name}`, …"
            ));
        }
        if fit.transposed > 0 {
            fit.notes.push(format!("Stored [I, O]: {}", count(fit.transposed, "weight")));
        }
        let changed: Vec<_> = fit.layers.keys().chain(fit.replacements.keys()).cloned().collect();
        let is_added = |name: &&str| base.tensor(name).is_none();
        let added: Vec<_> = changed.iter().map(String::as_str).filter(is_added).collect();
        let kept = changed.iter().map(String::as_str).filter(|name| !is_added(name));
        fit.untied = tied::check(base, config, kept, &added)?;
        fit.notes.extend(fit.untied.note.clone());
        fit.unpack(base)?;
        fit.config = config
            .filter(|_| base.is_folder() && (fit.untied.config || fit.is_unpacked))
            .map(|config| config.changed(fit.untied.config, fit.is_unpacked));
        Ok(fit)
    }

    /// Decides whether packed weights become dense: all of them if the adapter changes one, because
    /// loaders know no half of a packed model, or else none.
    fn unpack(&mut self, base: &Base) -> Result<(), Failure> {
        let is_packed = |layer: &Layer| base.packed.contains(&layer.source);
        let adapted = self.layers.values().filter(|layer| is_packed(layer)).count();
        if adapted == 0 {
            return Ok(());
        }
        self.is_unpacked = true;
        for tensor in base.packed.names() {
            let weight = base.weight(tensor)?;
            if let Some(config) = &base.config
                && orientation::is_conv1d(config, tensor.trim_end_matches(".weight"))
            {
                return Err(CheckpointError::Setting {
                    path: config.path.clone(),
                    setting: "model_type".to_owned(),
                    value: config.types.join(", "),
                    remedy: format!(
                        "`{tensor}` is packed as {:?}, [O, I], and such a model has it as [I, O] when \
                         it is dense: merge into the model that it was made from",
                        weight.shape
                    ),
                }
                .into());
            }
        }
        let (formats, _) = base.packed.summary(&base.files);
        for (format, packed) in &formats {
            let weights = count(packed.weights, "weight");
            self.notes.push(format!("Packed in the base, dense once merged: {weights} ({format})"));
        }
        let rest = base.packed.names().count() - adapted;
        if rest > 0 {
            self.notes.push(format!(
                "The adapter does not change {rest} of these, and they become dense, too: a loader takes all of a \
                 model's weights packed, or none"
            ));
        }
        if let Some(config) = &base.config
            && !base.is_folder()
            && config.quantization().is_some()
        {
            self.notes.push(format!(
                "{} describes packed weights, which the output has not: remove its \
                 quantization_config for a copy of {CONFIG} next to the output",
                config.path.display()
            ));
        }
        Ok(())
    }

    /// Tensors of the model itself: copies must be the base's, others replace it.
    fn whole(
        &mut self,
        adapters: &Adapters,
        base: &Base,
        names: &Names<'_>,
        starts: &mut Starts,
        whole: Whole,
    ) -> Result<(), Failure> {
        let Some(file) = &adapters.file else { return Ok(()) };
        let mut same = 0;
        for tensor in &adapters.whole {
            if whole == Whole::Leave && tensor.is_copy {
                continue;
            }
            let shape = file.info(&tensor.stored).map_or(&[][..], |info| &info.shape);
            let found = names.find(&tensor.name, |of_base| of_base == shape)?;
            let wrong = |reason: String| {
                let (path, tensor) = (file.path().to_owned(), tensor.stored.clone());
                Err(Failure::from(CheckpointError::UnexpectedTensor { path, tensor, reason }))
            };
            let is_packed = |name: &str| base.packed.contains(name) || base.packed.is_part(name);
            if found.as_ref().is_some_and(|it| is_packed(it.tensor))
                || has_packed_name(&tensor.name)
            {
                return wrong(
                    "it is a whole module (modules_to_save) that is packed, in the base or in the \
                     adapter, and only dense ones can be replaced: merge with PEFT"
                        .to_owned(),
                );
            }
            let mut in_base =
                found.as_ref().and_then(|it| Some((base.file(it.tensor)?, it.tensor)));
            if tensor.is_copy && in_base.is_none() {
                // A head that is tied: its weight is the embedding's.
                let layer = self.layers.get(&tensor.name);
                in_base = layer.and_then(|it| Some((base.file(&it.source)?, it.source.as_str())));
            }
            if let Some(in_base) = in_base
                && whole::is_same((file, &tensor.stored), in_base)?
            {
                same += 1;
                continue;
            }
            if tensor.is_copy {
                return wrong(match in_base {
                    Some((_, name)) => format!(
                        "it is the base's own weight, as PEFT stores it next to the adapter of a \
                         head or an embedding, and it is not the `{name}` of {}: name the base \
                         that the adapter was trained on, or save the adapter again with \
                         save_embedding_layers=False",
                        base.path.display()
                    ),
                    None => "it is the base's own weight, and the base has no such tensor: name \
                             the base that the adapter was trained on"
                        .to_owned(),
                });
            }
            let stored = tensor.stored.clone();
            let replacement = match in_base {
                Some((of_base, name)) => {
                    let info = of_base.info(name);
                    if info.is_none_or(|info| info.shape != shape) {
                        let has = info.map_or(&[][..], |info| &info.shape);
                        return wrong(format!(
                            "it is {shape:?} and replaces `{name}`, which is {has:?} in the base: \
                             resize the base first (transformers: resize_token_embeddings), or \
                             merge with PEFT"
                        ));
                    }
                    (name.to_owned(), Replacement { stored, is_added: false })
                }
                None if tied::is_tied_part(&tensor.name) && names.has_end(&tensor.name) => {
                    return wrong(format!(
                        "which tensor of the base it replaces is not clear: {}",
                        names.similar(&tensor.name)
                    ));
                }
                None => (tensor.name.clone(), Replacement { stored, is_added: true }),
            };
            if let Some(found) = &found {
                starts.add(base, &tensor.name, found)?;
            }
            if self.layers.contains_key(&replacement.0) {
                return wrong(
                    "an adapter changes the tensor, too: which is meant is not known".to_owned(),
                );
            }
            if let Some(other) = self.replacements.insert(replacement.0, replacement.1) {
                return wrong(format!("`{}` replaces the same tensor", other.stored));
            }
        }
        if same > 0 {
            self.notes.push(format!("Whole tensors that are those of the base: {same}"));
        }
        Ok(())
    }

    /// The bytes of a replacement, in the base's type where that has the tensor.
    pub fn replacement(
        &self,
        adapters: &Adapters,
        tensor: &str,
        to: Stored,
    ) -> Result<Vec<u8>, Failure> {
        let stored = &self.replacements[tensor].stored;
        let file = adapters.file.as_ref().expect("replacements come from a file");
        match whole::converted(file, stored, to)? {
            Some(bytes) => Ok(bytes),
            None => Err(CheckpointError::Dtype {
                path: file.path().to_owned(),
                tensor: stored.clone(),
                found: file.info(stored).map_or_else(String::new, |info| info.dtype.to_string()),
                remedy: "it cannot become the base's type: merge with PEFT",
            }
            .into()),
        }
    }
}

/// Whether a tensor's name is one that only packed weights have.
fn has_packed_name(tensor: &str) -> bool {
    let parts = [".weight.absmax", ".weight.quant_state.", ".weight.quant_map", ".SCB"];
    parts.iter().any(|part| tensor.contains(part))
}

fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The tensor that a module changes, the one to take W from, and its shape.
fn find(
    names: &Names<'_>,
    starts: &mut Starts,
    adapters: &Adapters,
    base: &Base,
    config: Option<&ModelConfig>,
    module: &str,
    layer: &LayerAdapter,
) -> Result<(String, String, [usize; 2]), Failure> {
    let [outputs, inputs] = layer.shape();
    let fits = |shape: &[usize]| match *shape {
        [rows, columns, ref kernel @ ..] => {
            kernel.iter().all(|size| *size == 1)
                && ([rows, columns] == [outputs, inputs] || [rows, columns] == [inputs, outputs])
        }
        _ => false,
    };
    let name = format!("{module}.weight");
    let found = match adapters.is_flat(module) {
        true => names.find_flat(module, fits)?,
        false => names.find(&name, fits)?,
    };
    let Some(found) = found else {
        if let Some(source) = tied::source(base, config, &name, layer.shape())? {
            return Ok((name, source.to_owned(), layer.shape()));
        }
        return Err(missing(names, adapters, base, module, name).into());
    };
    starts.add(base, &name, &found)?;
    let file = base.file(found.tensor).expect("the base has it");
    let weight = base.weight(found.tensor)?;
    let [rows, columns] = weight.shape;
    let is_packed = base.packed.contains(found.tensor);
    let is_kernel = is_packed || file.info(found.tensor).is_some_and(|info| info.shape.len() > 2);
    if weight.shape != [outputs, inputs] && (is_kernel || weight.shape != [inputs, outputs]) {
        let setting = match adapters.by_input {
            Some(by_input) => format!(" (fan_in_fan_out is {by_input})"),
            None => String::new(),
        };
        let turned = match is_packed && weight.shape == [inputs, outputs] {
            true => {
                ". It is packed, and would fit if this were [I, O], as an old bitsandbytes stored it: \
                 pack the model again with a new one, or name the model that it was made from"
            }
            false => "",
        };
        return Err(CheckpointError::Shape {
            path: file.path().to_owned(),
            tensor: found.tensor.to_owned(),
            found: vec![rows, columns],
            needed: format!(
                "the adapter is for [{outputs}, {inputs}]{setting}: is it for another model?{turned}"
            ),
        }
        .into());
    }
    Ok((found.tensor.to_owned(), found.tensor.to_owned(), weight.shape))
}

fn missing(
    names: &Names<'_>,
    adapters: &Adapters,
    base: &Base,
    module: &str,
    tensor: String,
) -> CheckpointError {
    let packed = ["qweight", "weight_packed", "weight.absmax"];
    let quantised = packed.iter().map(|part| format!("{module}.{part}"));
    let reason = match quantised.into_iter().find(|name| base.file(name).is_some()) {
        Some(name) => {
            format!("the base is quantised (it has `{name}`): name the model it was made from")
        }
        None if adapters.is_flat(module) => {
            let layer = &adapters.layers[module];
            format!(
                "the base has no linear layer {:?} of this name: is the adapter for another model, \
                 or for another part of it? If the base has it under another name, pass `--map \
                 {module}=NAME`",
                layer.shape()
            )
        }
        None => names.similar(&tensor),
    };
    let (path, tensor) = match adapters.is_flat(module) {
        true => (adapters.path.clone(), module.to_owned()),
        false => (base.path.clone(), tensor),
    };
    CheckpointError::MissingTensor { path, tensor, reason }
}
