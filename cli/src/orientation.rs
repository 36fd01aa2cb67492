//! Whether the base stores a weight `[O, I]`, as linear layers do, or `[I, O]`, as the `Conv1D` of
//! GPT-2 does. The shape shows it, except where a weight is square. PEFT keeps one `fan_in_fan_out`
//! per adapter, that of the module it met last, which says little about the others.

use fused_dora::peft::CheckpointError;

use crate::base::Base;
use crate::error::Failure;
use crate::model::ModelConfig;

/// Types of models in transformers that have `Conv1D`.
const TYPES: [&str; 7] = [
    "gpt2",
    "openai-gpt",
    "imagegpt",
    "decision_transformer",
    "clvp",
    "clvp_decoder",
    "clvp_encoder",
];

/// What the modules of that class are called in these. Heads and all others are linear.
const MODULES: [&str; 4] = ["c_attn", "q_attn", "c_proj", "c_fc"];

/// What is known of all weights.
pub struct Orientations<'a> {
    pub base: &'a Base,
    pub config: Option<&'a ModelConfig>,
    /// `--transposed` and `--not-transposed`.
    pub transposed: &'a [String],
    pub straight: &'a [String],
    /// `fan_in_fan_out`, where the adapter has settings.
    pub setting: Option<bool>,
    /// The last parts of the adapted modules' names.
    pub adapted: Vec<&'a str>,
    /// Whether weights that are not square are stored `[I, O]`.
    pub seen: Vec<bool>,
}

/// A module of the adapter, and its weight in the base.
pub struct Question<'a> {
    pub module: &'a str,
    pub tensor: &'a str,
    /// `[O, I]` by the adapter.
    pub layer: [usize; 2],
    pub weight: [usize; 2],
    /// Whether it is of a 1×1 convolution, which is stored `[O, I, 1, 1]`, or packed: as `[O, I]`.
    pub is_kernel: bool,
}

/// Whether a module is a `Conv1D` by the model's type.
pub fn is_conv1d(config: &ModelConfig, module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or_default();
    MODULES.contains(&last)
        && !config.has_own_code()
        && config.types.iter().any(|name| TYPES.contains(&name.as_str()))
}

impl Question<'_> {
    /// Whether the weight is stored `[I, O]`, where its shape shows it.
    pub fn by_shape(&self) -> Option<bool> {
        let [outputs, inputs] = self.layer;
        if self.is_kernel {
            return Some(false);
        }
        (outputs != inputs).then_some(self.weight == [inputs, outputs])
    }
}

impl Orientations<'_> {
    /// Whether a weight is stored `[I, O]`.
    pub fn decide(&self, question: &Question<'_>) -> Result<bool, Failure> {
        let names = [question.module, question.tensor.trim_end_matches(".weight")];
        let is_named = |patterns: &[String]| {
            patterns.iter().any(|pattern| names.iter().any(|name| matches(pattern, name)))
        };
        let named = match (is_named(self.transposed), is_named(self.straight)) {
            (true, true) => {
                return Err(Failure::Call(format!(
                    "--transposed and --not-transposed both name {}",
                    question.module
                )));
            }
            (true, false) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
        match (named, question.by_shape()) {
            (Some(named), Some(shown)) if named != shown => Err(Failure::Call(format!(
                "--{}: {} is {:?} in the base, and its adapter is for {:?} as [O, I]: the shape \
                 shows that it is {}",
                if named { "transposed" } else { "not-transposed" },
                question.module,
                question.weight,
                question.layer,
                if shown { "transposed" } else { "not transposed" },
            ))),
            (Some(known), _) | (None, Some(known)) => Ok(known),
            (None, None) => self.square(question),
        }
    }

    fn square(&self, question: &Question<'_>) -> Result<bool, Failure> {
        let last = question.module.rsplit('.').next().unwrap_or_default();
        let is_conv_name = MODULES.contains(&last);
        let shown = match self.by_biases(last) {
            Ok(None) if is_conv_name => {
                MODULES.into_iter().find_map(|name| self.by_biases(name).transpose()).transpose()
            }
            other => other,
        };
        let Ok(shown) = shown else {
            return Err(
                self.undecided(question, "other weights of this name are stored either way")
            );
        };
        let of_type = |config: &&ModelConfig| !config.types.is_empty() && !config.has_own_code();
        if let Some(config) = self.config.filter(of_type) {
            let types = config.types.join(", ");
            let has_conv = config.types.iter().any(|name| TYPES.contains(&name.as_str()));
            let by_type = has_conv && is_conv_name;
            if shown.is_some_and(|shown| shown != by_type) {
                let why = format!(
                    "the model is of type {types}, but shapes and biases show the opposite of it"
                );
                return Err(self.undecided(question, &why));
            }
            if !has_conv && shown.is_none() && self.setting == Some(true) {
                let why = format!(
                    "the adapter's fan_in_fan_out is true, but a model of type {types} is not \
                     known to store weights [I, O]"
                );
                return Err(self.undecided(question, &why));
            }
            return Ok(by_type);
        }
        if let Some(shown) = shown {
            return Ok(shown);
        }
        let setting = self.setting.unwrap_or(false);
        let is_contradicted = self.seen.iter().any(|seen| *seen != setting);
        let is_alone = self.adapted.iter().all(|name| *name == last);
        let is_sure = match setting {
            _ if is_contradicted => false,
            true => is_alone || is_conv_name,
            false => is_alone || !is_conv_name,
        };
        if is_sure {
            return Ok(setting);
        }
        let why = "the adapter's fan_in_fan_out is that of the module that PEFT met last, and \
                   nothing else shows it: there is no config.json with a known model_type next to \
                   the base";
        Err(self.undecided(question, why))
    }

    /// What weights that are not square, and have a bias, show of modules of a name: a bias has as
    /// many elements as the layer has outputs.
    fn by_biases(&self, last: &str) -> Result<Option<bool>, ()> {
        let (weight, mut shown) = (format!(".{last}.weight"), None);
        for name in self.base.names().filter(|name| name.ends_with(&weight)) {
            let bias = format!("{}.bias", name.trim_end_matches(".weight"));
            let shape = |name: &str| {
                let info = self.base.file(name).and_then(|file| file.info(name));
                info.map_or(&[][..], |info| &info.shape)
            };
            let stored = match (shape(name), shape(&bias)) {
                (&[rows, columns], &[length]) if rows != columns && length == columns => true,
                (&[rows, columns], &[length]) if rows != columns && length == rows => false,
                _ => continue,
            };
            if shown.replace(stored).is_some_and(|before| before != stored) {
                return Err(());
            }
        }
        Ok(shown)
    }

    fn undecided(&self, question: &Question<'_>, why: &str) -> Failure {
        let [rows, columns] = question.weight;
        let module = question.module;
        CheckpointError::UnexpectedTensor {
            path: self.base.path.clone(),
            tensor: question.tensor.to_owned(),
            reason: format!(
                "[{rows}, {columns}] is square, and whether it is stored [I, O] or [O, I] cannot \
                 be determined: {why}. Pass `--transposed {module}` if the module is a Conv1D \
                 ([I, O]), or `--not-transposed {module}` if it is linear"
            ),
        }
        .into()
    }

    /// Refuses patterns that name no module.
    pub fn check_patterns(&self, modules: &[&str]) -> Result<(), Failure> {
        let options = [("transposed", self.transposed), ("not-transposed", self.straight)];
        for (option, patterns) in options {
            for pattern in patterns {
                if !modules.iter().any(|module| matches(pattern, module)) {
                    return Err(Failure::Call(format!(
                        "--{option} {pattern}: the adapter has no such module; its first is `{}`",
                        modules.first().unwrap_or(&"")
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Whether a pattern, in which `*` stands for anything, is a name or its end from a dot on.
pub fn matches(pattern: &str, name: &str) -> bool {
    let ends = name.match_indices('.').map(|(at, _)| &name[at + 1..]);
    std::iter::once(name).chain(ends).any(|end| matches_whole(pattern, end))
}

fn matches_whole(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            starts.into_iter().any(|at| matches_whole(after, &rest[at..]))
        }),
    }
}
