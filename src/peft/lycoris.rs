//! The single files of LyCORIS and kohya.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype as Stored;

use super::names::FLAT_PREFIXES;
use super::{CheckpointError, LayerAdapter, TensorFile};
use crate::spec::Norm;

const DOWN: &str = "lora_down.weight";
const UP: &str = "lora_up.weight";
const ALPHA: &str = "alpha";
const SCALE: &str = "dora_scale";
const MAGNITUDE: &str = "lora_magnitude_vector";

/// The ends of tensors' names, and which part each is: kohya's and LyCORIS's, and those of PEFT,
/// which diffusers, SimpleTuner and ai-toolkit write into one file.
const ENDS: [(&str, &str); 8] = [
    (DOWN, DOWN),
    (UP, UP),
    (ALPHA, ALPHA),
    (SCALE, SCALE),
    ("lora_A.weight", DOWN),
    ("lora_B.weight", UP),
    (MAGNITUDE, MAGNITUDE),
    ("lora_magnitude_vector.weight", MAGNITUDE),
];

/// Reads LoRA and DoRA as LyCORIS and kohya's scripts write them, for a base model with these
/// modules: the names of its linear weights without `.weight`, and their shapes `[O, I]`. The
/// result is by the base model's names.
///
/// | tensor | is |
/// |---|---|
/// | `MODULE.lora_down.weight` | A `[r, I]` |
/// | `MODULE.lora_up.weight` | B `[O, r]` |
/// | `MODULE.alpha` | α, s being α/r; where it is missing or 0, s is 1 |
/// | `MODULE.dora_scale` | m: `[1, I]` of norm axis input, `[O, 1]` of output (`wd_on_output`) |
/// | `MODULE.lora_magnitude_vector` | m of norm axis output `[O]`, as PEFT has it |
///
/// `lora_A` and `lora_B` are other names of `lora_down` and `lora_up`. 1×1 convolutions are the
/// linear layers that they are.
///
/// `MODULE` is `lycoris_`, `lora_unet_`, `lora_te_`, … and the module's name with `_` for each `.`.
/// LyCORIS adds 1e-7 to each norm, which this crate does not.
///
/// # Errors
/// [`CheckpointError::MissingTensor`], [`CheckpointError::UnexpectedTensor`] for a module that the
/// base model does not have, or another method than LoRA; [`CheckpointError::Shape`], also where a
/// magnitude without a second dimension could be of either axis; [`CheckpointError::Dtype`],
/// [`CheckpointError::Read`].
pub fn read_lycoris<'a>(
    file: &TensorFile,
    modules: impl IntoIterator<Item = (&'a str, [usize; 2])>,
) -> Result<BTreeMap<String, LayerAdapter>, CheckpointError> {
    let mut known = BTreeMap::<String, Vec<(&str, [usize; 2])>>::new();
    for (name, shape) in modules {
        known.entry(name.replace('.', "_")).or_default().push((name, shape));
    }
    let mut groups = BTreeMap::<String, Group>::new();
    for tensor in file.names() {
        let Some((module, part)) = split(&tensor) else {
            let reason = match tensor.contains("lora_mid") {
                true => Some("this is a convolution's, and convolutions are not supported"),
                false => super::names::foreign(&tensor),
            };
            let reason = reason.unwrap_or(
                "only lora_down, lora_up, alpha and dora_scale of linear layers are supported, not \
                 convolutions or other methods of LyCORIS: merge with the program that wrote it",
            );
            return Err(file.unexpected(&tensor, reason));
        };
        if part == DOWN || part == UP {
            file.matrix(&tensor)?;
        }
        let tensors = &mut groups.entry(module.to_owned()).or_default().tensors;
        if let Some(other) = tensors.insert(part, tensor.clone()) {
            return Err(file.unexpected(&tensor, format!("`{other}` is the same part")));
        }
    }
    if groups.is_empty() {
        return Err(CheckpointError::malformed(file.path(), "holds no adapter's tensors"));
    }
    let mut layers = BTreeMap::new();
    for (module, group) in groups {
        let (name, shape) = find(file, &module, &group, &known)?;
        layers.insert(name.to_owned(), group.layer(file, &module, shape)?);
    }
    Ok(layers)
}

/// The module of a tensor, and which part of its adapter it is.
fn split(tensor: &str) -> Option<(&str, &'static str)> {
    let is_end = |end: &str| tensor.strip_suffix(end)?.strip_suffix('.');
    if let Some(found) = ENDS.into_iter().find_map(|(end, part)| Some((is_end(end)?, part))) {
        return Some(found);
    }
    // With the adapter's name, as in `lora_A.default.weight`.
    let (before, _) = tensor.strip_suffix(".weight")?.rsplit_once('.')?;
    let (module, word) = before.rsplit_once('.')?;
    let named = [("lora_A", DOWN), ("lora_B", UP), (MAGNITUDE, MAGNITUDE)];
    named.into_iter().find(|(name, _)| *name == word).map(|(_, part)| (module, part))
}

/// The modules of a file, as it calls them, each with the shape `[O, I]` of its factors. What
/// [`read_lycoris`] refuses is not among them.
#[doc(hidden)]
pub fn lycoris_modules(file: &TensorFile) -> BTreeMap<String, [usize; 2]> {
    let mut modules = BTreeMap::<String, [usize; 2]>::new();
    for tensor in file.names() {
        let (Some((module, part)), Ok(Some(shape))) = (split(&tensor), file.matrix(&tensor)) else {
            continue;
        };
        match part {
            DOWN => modules.entry(module.to_owned()).or_default()[1] = shape[1],
            UP => modules.entry(module.to_owned()).or_default()[0] = shape[0],
            _ => {}
        }
    }
    modules
}

/// The tensors of one module.
#[derive(Default)]
struct Group {
    tensors: BTreeMap<&'static str, String>,
}

/// The base's module that is meant by a flattened name.
fn find<'a>(
    file: &TensorFile,
    module: &str,
    group: &Group,
    known: &BTreeMap<String, Vec<(&'a str, [usize; 2])>>,
) -> Result<(&'a str, [usize; 2]), CheckpointError> {
    let flat = |name: &str| name.replace('.', "_");
    let stripped = FLAT_PREFIXES.iter().filter_map(|prefix| module.strip_prefix(prefix));
    let candidates = stripped.chain([module]).filter_map(|name| known.get(&flat(name)));
    let tensor = group.tensors.values().next().map_or(module, String::as_str);
    match candidates.flatten().collect::<Vec<_>>()[..] {
        [&one] => Ok(one),
        [] => Err(file.unexpected(
            tensor,
            "the base has no linear layer of this name: is the adapter for another model?",
        )),
        ref several => {
            let names: Vec<_> = several.iter().map(|(name, _)| *name).collect();
            Err(file.unexpected(tensor, format!("it could be for any of {}", names.join(", "))))
        }
    }
}

impl Group {
    fn layer(
        &self,
        file: &TensorFile,
        module: &str,
        [outputs, inputs]: [usize; 2],
    ) -> Result<LayerAdapter, CheckpointError> {
        let find = |part: &str| {
            let missing = || file.missing(&format!("{module}.{part}"), "a LoRA needs it");
            self.tensors.get(part).map(String::as_str).ok_or_else(missing)
        };
        let base = format!("the base's weight is [{outputs}, {inputs}]");
        let (down, up) = (find(DOWN)?, find(UP)?);
        let rank = match file.matrix(down)? {
            Some([rank, columns]) if rank > 0 && columns == inputs => rank,
            _ => return Err(file.shape(down, format!("must be [r, {inputs}]: {base}"))),
        };
        if file.matrix(up)? != Some([outputs, rank]) {
            return Err(file.shape(up, format!("must be [{outputs}, {rank}]: {base}")));
        }
        let alpha = match self.tensors.get(ALPHA) {
            Some(name) => scalar(file, name)?,
            None => 0.0,
        };
        let scaling = if alpha == 0.0 { 1.0 } else { (alpha / rank as f64) as f32 };
        let (norm, magnitude) = match (self.tensors.get(SCALE), self.tensors.get(MAGNITUDE)) {
            (None, None) => (Norm::None, Vec::new()),
            (Some(name), None) => (axis(file, name, [outputs, inputs])?, file.floats(name)?),
            (None, Some(name)) => (Norm::Output, file.floats(name)?),
            (Some(_), Some(name)) => {
                return Err(file.unexpected(name, "the module has a dora_scale, too"));
            }
        };
        let (lora_a, lora_b) = (file.floats(down)?, file.floats(up)?);
        LayerAdapter::new([outputs, inputs], rank, scaling, norm, lora_a, lora_b, magnitude)
            .map_err(|error| CheckpointError::Layer {
                layer: module.to_owned(),
                problem: error.to_string(),
            })
    }
}

/// The norm axis that a magnitude's shape shows.
fn axis(
    file: &TensorFile,
    name: &str,
    [outputs, inputs]: [usize; 2],
) -> Result<Norm, CheckpointError> {
    let mut shape = file.info(name).map_or(&[][..], |info| &info.shape);
    // A 1×1 convolution's has the kernel's dimensions, too.
    while let &[ref first @ .., 1] = shape
        && first.len() >= 2
    {
        shape = first;
    }
    match *shape {
        [o, 1] if o == outputs => Ok(Norm::Output),
        [1, i] if i == inputs => Ok(Norm::Input),
        [o] if o == outputs && outputs != inputs => Ok(Norm::Output),
        [i] if i == inputs && outputs != inputs => Ok(Norm::Input),
        [n] if n == inputs => Err(file.shape(
            name,
            format!(
                "for a square weight [{outputs}, {inputs}] it can belong to either axis: \
                 store it as [1, {n}] (norm axis input) or [{n}, 1] (output)"
            ),
        )),
        _ => {
            let needed =
                format!("must be [1, {inputs}] (norm axis input) or [{outputs}, 1] (output)");
            Err(file.shape(name, needed))
        }
    }
}

/// A tensor of one number.
fn scalar(file: &TensorFile, name: &str) -> Result<f64, CheckpointError> {
    let info = file.info(name).ok_or_else(|| file.missing(name, "it is needed"))?;
    if info.shape.iter().product::<usize>() != 1 {
        return Err(file.shape(name, "must be one number"));
    }
    let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
    file.read_at(info, 0, &mut bytes)?;
    let found = match (info.dtype, &bytes[..]) {
        (Stored::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f64(),
        (Stored::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
        (Stored::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        (Stored::I32, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
        (Stored::F64, bytes) => bytes.try_into().map_or(f64::NAN, f64::from_le_bytes),
        (Stored::I64, bytes) => bytes.try_into().map_or(f64::NAN, |b| i64::from_le_bytes(b) as f64),
        (other, _) => {
            return Err(CheckpointError::Dtype {
                path: file.path().to_owned(),
                tensor: name.to_owned(),
                found: other.to_string(),
                remedy: "it must be a floating-point number, I32 or I64",
            });
        }
    };
    Ok(found)
}
