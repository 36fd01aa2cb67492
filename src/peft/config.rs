//! `adapter_config.json`: what PEFT writes next to an adapter's tensors.

use std::fmt;
use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::CheckpointError;

/// Settings that are read below.
const UNDERSTOOD: [&str; 11] = [
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "target_modules",
    "bias",
    "init_lora_weights",
];

/// Settings that a trained adapter does not depend on: where it came from, how it was trained, and
/// which modules were chosen, which its tensors show. The `*_config`s belong to initialisations
/// that are refused by `init_lora_weights`, except EVA's, which leaves the base alone.
const WITHOUT_EFFECT: [&str; 18] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
];

/// Settings of PEFT that change what an adapter computes, and that are not supported.
const UNSUPPORTED: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "ensure_weight_tying",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    MODULES_TO_SAVE,
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];

const MODULES_TO_SAVE: &str = "modules_to_save";

/// Initialisations that leave the base weight as it is.
const INITIALISATIONS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// What reading a checkpoint may let pass.
#[derive(Debug, Clone, Default)]
pub struct PeftOptions {
    /// Settings that this crate does not know, and that are known to make no difference.
    pub ignore_settings: Vec<String>,
    /// Whether the file may hold tensors of the model itself, e.g. of `modules_to_save`.
    pub whole_modules: bool,
}

/// The settings of an adapter, and what follows from them for each module.
#[derive(Debug, Clone)]
pub struct PeftConfig {
    path: PathBuf,
    /// As in the file, those without a meaning here included.
    settings: Map<String, Value>,
    rank: usize,
    alpha: f64,
    use_dora: bool,
    use_rslora: bool,
    fan_in_fan_out: bool,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    targets: Targets,
    options: PeftOptions,
}

/// Which modules are adapted.
#[derive(Debug, Clone)]
enum Targets {
    All,
    /// The names' last parts.
    Names(Vec<String>),
    Pattern(Regex),
}

/// The patterns in the order of the file, which matters: the first that matches counts.
#[derive(Default, Deserialize)]
struct Patterns {
    #[serde(default, deserialize_with = "ordered")]
    rank_pattern: Vec<(String, Value)>,
    #[serde(default, deserialize_with = "ordered")]
    alpha_pattern: Vec<(String, Value)>,
}

fn ordered<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<(String, Value)>, D::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, Value)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object or null")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }
        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    source.deserialize_any(Entries)
}

impl PeftConfig {
    /// A file's name in its folder.
    pub const FILE: &str = "adapter_config.json";

    /// The settings of an adapter of rank r and α: the plain ones, to be changed by
    /// [`with`](Self::with).
    ///
    /// # Errors
    /// [`CheckpointError::Setting`] for a rank of 0 or an α that is not finite.
    pub fn new(rank: usize, alpha: f64, use_dora: bool) -> Result<Self, CheckpointError> {
        let settings = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": number(alpha),
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": {},
            "target_modules": null,
            "task_type": null,
            "use_dora": use_dora,
            "use_rslora": false,
        });
        Self::parse(Path::new(Self::FILE), &settings.to_string(), &PeftOptions::default())
    }

    /// These settings with another value for one of them.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn with(mut self, setting: &str, value: impl Into<Value>) -> Result<Self, CheckpointError> {
        self.settings.insert(setting.to_owned(), value.into());
        Self::parse(&self.path, &self.to_json(), &self.options)
    }

    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// [`CheckpointError::Read`], [`CheckpointError::Malformed`]; [`CheckpointError::Setting`] for
    /// a setting that would change what the adapter computes in a way that this crate does not.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        Self::read_with(path, &PeftOptions::default())
    }

    /// Reads `adapter_config.json`, with more of what can be in it.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), except where the options allow something;
    /// [`CheckpointError::Setting`] for a setting that is to be ignored and that is known, or not
    /// there.
    pub fn read_with(path: &Path, options: &PeftOptions) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(CheckpointError::read(path))?;
        Self::parse(path, &text, options)
    }

    /// The file's text: as PEFT writes it, by name and indented by two.
    pub fn to_json(&self) -> String {
        format!("{:#}", Value::Object(self.settings.clone()))
    }

    /// The settings as the file has them.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// Whether modules have a magnitude.
    pub const fn use_dora(&self) -> bool {
        self.use_dora
    }

    /// Whether the base model stores its weights `[I, O]`.
    pub const fn fan_in_fan_out(&self) -> bool {
        self.fan_in_fan_out
    }

    /// r of a module: by the first pattern that matches the end of its name, at a dot.
    pub fn rank(&self, module: &str) -> usize {
        first(&self.ranks, module).unwrap_or(self.rank)
    }

    /// s of a module: α/r or, with rsLoRA, α/√r.
    pub fn scaling(&self, module: &str) -> f32 {
        let rank = self.rank(module) as f64;
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        (alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Whether PEFT adapts a module of this name.
    pub fn is_target(&self, module: &str) -> bool {
        match &self.targets {
            Targets::All => true,
            Targets::Names(names) => names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Targets::Pattern(pattern) => pattern.is_match(module).unwrap_or(false),
        }
    }

    fn parse(path: &Path, text: &str, options: &PeftOptions) -> Result<Self, CheckpointError> {
        let malformed =
            |error| CheckpointError::malformed(path, format!("is no adapter_config.json: {error}"));
        let settings: Map<String, Value> = serde_json::from_str(text).map_err(malformed)?;
        let patterns: Patterns = serde_json::from_str(text).map_err(malformed)?;
        let reader = Reader { path, settings: &settings, options };
        reader.check()?;
        let rank = |setting: &str, value: &Value| match value.as_u64() {
            Some(rank @ 1..) => Ok(rank as usize),
            _ => Err(reader.wrong(setting, value, "it must be a whole number of at least 1")),
        };
        let alpha = |setting: &str, value: &Value| {
            let number = value.as_f64().filter(|alpha| alpha.is_finite());
            number.ok_or_else(|| reader.wrong(setting, value, "it must be a finite number"))
        };
        let config = Self {
            path: path.to_owned(),
            rank: rank("r", reader.get("r"))?,
            alpha: alpha("lora_alpha", reader.get("lora_alpha"))?,
            use_dora: reader.flag("use_dora")?,
            use_rslora: reader.flag("use_rslora")?,
            fan_in_fan_out: reader.flag("fan_in_fan_out")?,
            ranks: reader.patterns("rank_pattern", patterns.rank_pattern, rank)?,
            alphas: reader.patterns("alpha_pattern", patterns.alpha_pattern, alpha)?,
            targets: reader.targets()?,
            settings: Map::new(),
            options: options.clone(),
        };
        Ok(Self { settings, ..config })
    }
}

/// A number as Python writes it: whole ones without a fraction.
pub(super) fn number(value: f64) -> Value {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => json!(value as i64),
        false => json!(value),
    }
}

fn first<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    let matching = patterns.iter().find(|(regex, _)| regex.is_match(module).unwrap_or(false));
    matching.map(|(_, value)| *value)
}

struct Reader<'a> {
    path: &'a Path,
    settings: &'a Map<String, Value>,
    options: &'a PeftOptions,
}

impl Reader<'_> {
    fn get(&self, setting: &str) -> &Value {
        self.settings.get(setting).unwrap_or(&Value::Null)
    }

    fn wrong(&self, setting: &str, value: &Value, remedy: &str) -> CheckpointError {
        CheckpointError::Setting {
            path: self.path.to_owned(),
            setting: setting.to_owned(),
            value: value.to_string(),
            remedy: remedy.to_owned(),
        }
    }

    /// Refuses what this crate does not do.
    fn check(&self) -> Result<(), CheckpointError> {
        let of_mlx = ["fine_tune_type", "lora_parameters", "lora_layers"];
        let of_mlx = of_mlx.into_iter().find(|setting| self.settings.contains_key(*setting));
        if let Some(setting) = of_mlx.filter(|_| self.get("peft_type").is_null()) {
            let remedy = "MLX wrote this adapter, whose factors are the transposes of PEFT's: fuse \
                          it with `mlx_lm.fuse`, or convert it to PEFT's files";
            return Err(self.wrong(setting, self.get(setting), remedy));
        }
        if self.get("peft_type") != "LORA" {
            let remedy = "only \"LORA\" is supported, with or without use_dora";
            return Err(self.wrong("peft_type", self.get("peft_type"), remedy));
        }
        let bias = self.get("bias");
        if !(bias.is_null() || bias == "none") {
            let remedy = "the biases of such an adapter are trained, too: merge it with PEFT, or \
                        train it with bias=\"none\"";
            return Err(self.wrong("bias", bias, remedy));
        }
        let init = self.get("init_lora_weights");
        let known = |name: &str| INITIALISATIONS.contains(&name.to_lowercase().as_str());
        if !(init.is_null() || init.is_boolean() || init.as_str().is_some_and(known)) {
            let remedy = "it changes the base weights: save the adapter with PEFT's \
                        path_initial_model_for_weight_conversion, which makes it a plain LoRA";
            return Err(self.wrong("init_lora_weights", init, remedy));
        }
        for setting in &self.options.ignore_settings {
            let remedy = match self.settings.get(setting) {
                None => "it is not in the file and cannot be ignored: check its spelling",
                Some(_) if UNDERSTOOD.contains(&setting.as_str()) => {
                    "it is understood: it cannot be ignored"
                }
                Some(_) if UNSUPPORTED.contains(&setting.as_str()) => {
                    "it is known to change what the adapter computes: it cannot be ignored"
                }
                Some(_) => continue,
            };
            return Err(self.wrong(setting, self.get(setting), remedy));
        }
        for (setting, value) in self.settings {
            let known = [&UNDERSTOOD[..], &WITHOUT_EFFECT].concat();
            let is_allowed = known.contains(&setting.as_str())
                || setting == MODULES_TO_SAVE && self.options.whole_modules
                || self.options.ignore_settings.contains(setting);
            if !is_allowed && !is_off(value) {
                return Err(self.wrong(setting, value, &remedy(setting)));
            }
        }
        Ok(())
    }

    fn flag(&self, setting: &str) -> Result<bool, CheckpointError> {
        match self.get(setting) {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            other => Err(self.wrong(setting, other, "it must be true or false")),
        }
    }

    /// A pattern matches a name, or its end from a dot on.
    fn patterns<T>(
        &self,
        setting: &str,
        entries: Vec<(String, Value)>,
        read: impl Fn(&str, &Value) -> Result<T, CheckpointError>,
    ) -> Result<Vec<(Regex, T)>, CheckpointError> {
        let one = |(pattern, value): (String, Value)| {
            let regex = self.regex(setting, &pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))?;
            Ok((regex, read(&format!("{setting} of {pattern}"), &value)?))
        };
        entries.into_iter().map(one).collect()
    }

    fn targets(&self) -> Result<Targets, CheckpointError> {
        let remedy = "it must be a list of names, or a regular expression";
        match self.get("target_modules") {
            Value::Null => Ok(Targets::All),
            Value::String(all) if all == "all-linear" => Ok(Targets::All),
            Value::String(pattern) => {
                let whole = format!("^(?:{pattern})$");
                Ok(Targets::Pattern(self.regex("target_modules", pattern, &whole)?))
            }
            Value::Array(names) => {
                let text = |name: &Value| name.as_str().map(str::to_owned);
                let wrong = |name| self.wrong("target_modules", name, remedy);
                let names = names.iter().map(|name| text(name).ok_or_else(|| wrong(name)));
                Ok(Targets::Names(names.collect::<Result<_, _>>()?))
            }
            other => Err(self.wrong("target_modules", other, remedy)),
        }
    }

    fn regex(&self, setting: &str, given: &str, whole: &str) -> Result<Regex, CheckpointError> {
        Regex::new(whole).map_err(|error| {
            let remedy = format!("as a regular expression it cannot be read: {error}");
            self.wrong(setting, &Value::from(given), &remedy)
        })
    }
}

/// What a setting is where it is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

/// What to do about a setting that is not supported.
fn remedy(setting: &str) -> String {
    let remedy = match setting {
        "lora_bias" => "a bias on lora_B is not supported: merge with PEFT, or train without it",
        MODULES_TO_SAVE | "trainable_token_indices" => {
            "such an adapter replaces weights of the base, too: merge it with PEFT, or train it \
             without this setting"
        }
        "target_parameters" => {
            "adapters of parameters, as of the experts of a MoE, are not supported: merge with \
             PEFT, or adapt linear modules by target_modules"
        }
        "layer_replication" => {
            "the adapter is for a model with repeated layers: merge it with PEFT"
        }
        _ if UNSUPPORTED.contains(&setting) => {
            "this setting is not supported, and changes what the adapter computes: merge with \
             PEFT, or train without it"
        }
        _ => {
            return format!(
                "this setting is not known here, and may change what the adapter computes: merge \
                 with the PEFT that wrote it. If it makes no difference, ignore it: pass \
                 `--ignore-setting {setting}`, or name it in PeftOptions::ignore_settings"
            );
        }
    };
    remedy.to_owned()
}
