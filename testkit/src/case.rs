//! Case files: one DoRA linear layer's inputs, and what it should compute from them.
//!
//! The format is described in `tests/golden/README.md`, and that of packed weights in
//! `tests/golden-quant/README.md`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fused_dora::quant::QuantizedWeight;
use fused_dora::reference::{Case, Results};
use fused_dora::{Norm, NormGrad};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as Stored, SafeTensorError, SafeTensors};

use crate::packed;
use crate::tensors::{Tensors, floats};

/// A case file's content.
#[derive(Clone, Debug)]
pub struct CaseFile {
    /// The file's name without its extension.
    pub name: String,
    /// The layer's inputs. A packed W is unpacked to f32: rounded to S, and not to the layer's dtype.
    pub case: Case,
    /// W, if the file has it packed.
    pub packed: Option<QuantizedWeight<'static>>,
    /// The tensors `expected.*` that the file has, in the order of [`Results::NAMES`].
    pub expected: [Option<Vec<f64>>; 6],
}

/// Why a case file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub struct CaseFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Box<Problem>,
}

/// What is wrong with a case file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot be read: {0}; check the path")]
    Read(std::io::Error),
    #[error("cannot be written: {0}; check the folder")]
    Write(String),
    #[error("not a safetensors file, or truncated: {0}")]
    Malformed(SafeTensorError),
    #[error("tensor `{0}` is missing; a case has {INPUTS}")]
    MissingTensor(&'static str),
    #[error("`{tensor}` has shape {found:?} where {needed} is needed")]
    Rank { tensor: &'static str, found: Vec<usize>, needed: &'static str },
    #[error(
        "`{tensor}` has shape {found:?}, which does not fit `{other}` of shape {other_shape:?}: it \
         must be {expected:?}"
    )]
    Shape {
        tensor: &'static str,
        found: Vec<usize>,
        expected: Vec<usize>,
        other: &'static str,
        other_shape: Vec<usize>,
    },
    #[error("`{tensor}` is stored as {found}; use BF16, F16, F32 or F64")]
    Dtype { tensor: &'static str, found: Stored },
    #[error("the packed W: {0}")]
    Packed(String),
    #[error("metadata `{key}` is missing; it must be {needed}")]
    MissingMetadata { key: &'static str, needed: &'static str },
    #[error("metadata `{key}` is `{found}`; it must be {needed}")]
    Metadata { key: &'static str, found: String, needed: &'static str },
}

impl Problem {
    fn of(self, path: &Path) -> CaseFileError {
        CaseFileError { path: path.to_owned(), problem: Box::new(self) }
    }
}

const INPUTS: &str =
    "input, weight, lora_A, lora_B, magnitude, grad_output and, if it has one, bias";

/// What a case calls its expected tensors, in the order of [`Results::NAMES`].
const EXPECTED: [&str; 6] = [
    "expected.output",
    "expected.grad_input",
    "expected.grad_lora_A",
    "expected.grad_lora_B",
    "expected.grad_magnitude",
    "expected.grad_bias",
];

impl CaseFile {
    /// Reads a case and checks that its shapes fit together.
    pub fn read(path: &Path) -> Result<Self, CaseFileError> {
        let read = || Self::parse(path, &std::fs::read(path).map_err(Problem::Read)?);
        read().map_err(|problem: Problem| problem.of(path))
    }

    /// Reads a case from a file's bytes; the path names it.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Problem> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(Problem::Malformed)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(Problem::Malformed)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let metadata = header.metadata().as_ref();
        let setting = |key| metadata.and_then(|metadata| metadata.get(key));
        let Some(format) = setting(FORMAT) else {
            return Reader { tensors, metadata }.case_file(name);
        };
        if let Some(block) = setting(BLOCK).filter(|block| *block != "[128,128]") {
            let (found, needed) = (block.clone(), "[128,128]");
            return Err(Problem::Metadata { key: BLOCK, found, needed });
        }
        let (packed, bytes) = unpacked(format, &tensors)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(Problem::Malformed)?;
        let file = Reader { tensors, metadata }.case_file(name)?;
        Ok(CaseFile { packed: Some(packed), ..file })
    }
}

/// The metadata that says how W is packed.
const FORMAT: &str = "format";

/// The metadata with the blocks of fp8.
const BLOCK: &str = "block";

/// A packed W, and the same file with W unpacked to f32.
fn unpacked(
    format: &str,
    tensors: &SafeTensors<'_>,
) -> Result<(QuantizedWeight<'static>, Vec<u8>), Problem> {
    let other = |needed| Problem::Metadata { key: FORMAT, found: format.to_owned(), needed };
    if !packed::NAMES.contains(&format) {
        return Err(other("bnb-nf4, bnb-fp4, bnb-int8, fp8-tensor, fp8-row or fp8-block"));
    }
    let tensor = |(name, view): (&str, TensorView<'_>)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    let mut owned: Tensors = tensors.iter().map(tensor).collect();
    let weight = packed::find(&owned).map_err(Problem::Packed)?.into_owned();
    weight.check_values().map_err(|error| Problem::Packed(error.to_string()))?;
    if packed::name(weight.format()) != format {
        return Err(other("what the tensors of W show"));
    }
    if !owned.contains_key("input") {
        return Err(Problem::MissingTensor("input"));
    }
    owned.insert("weight".to_owned(), floats(&weight.shape(), &weight.dequantize::<f32>()));
    let mut views = Vec::new();
    for (name, (dtype, shape, bytes)) in &owned {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(Problem::Malformed)?;
        views.push((name, view));
    }
    let bytes = safetensors::serialize(views, None).map_err(Problem::Malformed)?;
    Ok((weight, bytes))
}

struct Reader<'a> {
    tensors: SafeTensors<'a>,
    metadata: Option<&'a HashMap<String, String>>,
}

impl<'a> Reader<'a> {
    fn case_file(&self, name: String) -> Result<CaseFile, Problem> {
        let norm = self.choice(
            "norm_axis",
            "input, output or none",
            &[("input", Norm::Input), ("output", Norm::Output), ("none", Norm::None)],
        )?;
        let norm_grad = self.choice(
            "norm_grad",
            "full or detached",
            &[("full", NormGrad::Exact), ("detached", NormGrad::Detached)],
        )?;
        let scaling = self.scaling()?;

        let (weight, [out_features, in_features]) =
            self.matrix("weight", "[out_features, in_features]")?;
        let (lora_a, [rank, _]) = self.matrix("lora_A", "[rank, in_features]")?;
        let (input, [tokens, _]) = self.matrix("input", "[tokens, in_features]")?;
        let case = Case {
            tokens,
            in_features,
            out_features,
            rank,
            scaling,
            norm,
            norm_grad,
            input: self.values("input", &input, &[tokens, in_features], &weight)?,
            weight: self.values("weight", &weight, &[out_features, in_features], &weight)?,
            bias: match self.optional("bias") {
                Some(bias) => Some(self.values("bias", &bias, &[out_features], &weight)?),
                None => None,
            },
            lora_a: self.values("lora_A", &lora_a, &[rank, in_features], &weight)?,
            lora_b: self.needed("lora_B", &[out_features, rank], &weight)?,
            magnitude: match norm {
                Norm::None => Vec::new(),
                Norm::Input => self.needed("magnitude", &[in_features], &weight)?,
                Norm::Output => self.needed("magnitude", &[out_features], &weight)?,
            },
            grad_output: self.needed("grad_output", &[tokens, out_features], &input)?,
            dropout: None,
        };
        let mut expected = [const { None }; 6];
        for ((slot, name), shape) in expected.iter_mut().zip(EXPECTED).zip(case.result_shapes()) {
            if let Some(tensor) = self.optional(name) {
                *slot = Some(self.values(name, &tensor, &shape, &weight)?);
            }
        }
        Ok(CaseFile { name, case, packed: None, expected })
    }

    fn text(&self, key: &'static str, needed: &'static str) -> Result<&'a str, Problem> {
        self.metadata
            .and_then(|metadata| metadata.get(key))
            .map(String::as_str)
            .ok_or(Problem::MissingMetadata { key, needed })
    }

    fn choice<T: Copy>(
        &self,
        key: &'static str,
        needed: &'static str,
        choices: &[(&str, T)],
    ) -> Result<T, Problem> {
        let found = self.text(key, needed)?;
        match choices.iter().find(|(name, _)| *name == found) {
            Some(&(_, choice)) => Ok(choice),
            None => Err(Problem::Metadata { key, found: found.to_owned(), needed }),
        }
    }

    fn scaling(&self) -> Result<f64, Problem> {
        let (key, needed) = ("scaling", "a finite number");
        let found = self.text(key, needed)?;
        match found.parse::<f64>() {
            Ok(scaling) if scaling.is_finite() => Ok(scaling),
            _ => Err(Problem::Metadata { key, found: found.to_owned(), needed }),
        }
    }

    fn optional(&self, name: &'static str) -> Option<TensorView<'_>> {
        self.tensors.tensor(name).ok()
    }

    fn tensor(&self, name: &'static str) -> Result<TensorView<'_>, Problem> {
        self.optional(name).ok_or(Problem::MissingTensor(name))
    }

    fn matrix(
        &self,
        tensor: &'static str,
        needed: &'static str,
    ) -> Result<(TensorView<'_>, [usize; 2]), Problem> {
        let view = self.tensor(tensor)?;
        match *view.shape() {
            [rows, cols] => Ok((view, [rows, cols])),
            _ => Err(Problem::Rank { tensor, found: view.shape().to_vec(), needed }),
        }
    }

    fn needed(
        &self,
        name: &'static str,
        shape: &[usize],
        other: &TensorView<'_>,
    ) -> Result<Vec<f64>, Problem> {
        self.values(name, &self.tensor(name)?, shape, other)
    }

    /// A tensor's values, once its shape is the one that `other` asks for.
    fn values(
        &self,
        tensor: &'static str,
        view: &TensorView<'_>,
        shape: &[usize],
        other: &TensorView<'_>,
    ) -> Result<Vec<f64>, Problem> {
        if view.shape() != shape {
            let reference = if tensor == "grad_output" { "input" } else { "weight" };
            return Err(Problem::Shape {
                tensor,
                found: view.shape().to_vec(),
                expected: shape.to_vec(),
                other: reference,
                other_shape: other.shape().to_vec(),
            });
        }
        decode(view).ok_or_else(|| Problem::Dtype { tensor, found: view.dtype() })
    }
}

/// A floating-point tensor's values; `None` for other dtypes.
pub fn decode(view: &TensorView<'_>) -> Option<Vec<f64>> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|&chunk| value(chunk)).collect()
    }
    let bytes = view.data();
    Some(match view.dtype() {
        Stored::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f64()),
        Stored::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f64()),
        Stored::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Stored::F64 => each(bytes, f64::from_le_bytes),
        _ => return None,
    })
}

/// Writes the tensors that a run of `case` computed, as f32 under the names of
/// [`Results::NAMES`].
pub fn write_results(
    path: &Path,
    case: &Case,
    tensors: &[Vec<f32>; 6],
) -> Result<(), CaseFileError> {
    let failed = |reason: String| Problem::Write(reason).of(path);
    let bytes = tensors
        .each_ref()
        .map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    let mut views = Vec::new();
    for ((name, shape), bytes) in Results::NAMES.into_iter().zip(case.result_shapes()).zip(&bytes) {
        let view = TensorView::new(Stored::F32, shape, bytes);
        views.push((name, view.map_err(|error| failed(error.to_string()))?));
    }
    let file = safetensors::serialize(views, None).map_err(|error| failed(error.to_string()))?;
    std::fs::write(path, file).map_err(|error| failed(error.to_string()))
}
