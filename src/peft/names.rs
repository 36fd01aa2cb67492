//! What the names of an adapter file's tensors say.

/// What PEFT puts before a module's name.
pub(super) const PREFIX: &str = "base_model.model.";

/// Parts of names that FSDP, `torch.compile` and activation checkpointing add to a module's name.
pub const WRAPPERS: [&str; 3] = ["_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"];

/// What kohya's scripts and LyCORIS put before a flattened module's name, by the part of the model.
pub const FLAT_PREFIXES: [&str; 7] = [
    "lycoris_",
    "lora_unet_",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "lora_transformer_",
];

/// A part of one layer's adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LayerPart {
    A,
    B,
    Magnitude,
}

/// What a tensor of PEFT's file is.
#[derive(Debug)]
pub(super) enum Meaning {
    /// A part of a module's adapter, and the adapter's name where the tensor's name has it.
    Part { module: String, part: LayerPart, adapter: Option<String> },
    /// A tensor of the model itself.
    Whole { name: String, is_copy: bool },
    /// Something that is not supported, and why.
    Unsupported(&'static str),
}

/// A name without the parts that wrappers add.
pub fn unwrapped(name: &str) -> String {
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// The program that writes such names, with what to do about its files, where it is neither PEFT
/// nor LyCORIS.
pub fn foreign(name: &str) -> Option<&'static str> {
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        [.., "lora_a" | "lora_b", "weight"] | [.., "magnitude"] => Some(
            "this is torchtune's name: export a LoRA as PEFT's files with torchtune; a DoRA cannot \
             be exported that way, because torchtune's export permutes rows of lora_B and not the \
             magnitude: merge it with torchtune (docs/norm-axis.md)",
        ),
        [.., "lora_a" | "lora_b" | "m"] => Some(
            "this is MLX's name, and MLX stores the transposes of PEFT's factors: fuse the adapter \
             with `mlx_lm.fuse`, or convert it to PEFT's files (docs/norm-axis.md)",
        ),
        [.., "weight_m_wdecomp", "weight"] => Some(
            "this is a name of NVlabs/DoRA, which wrote before PEFT had DoRA: rename it to \
             lora_magnitude_vector and store it as [O] (docs/norm-axis.md), or merge with its code",
        ),
        _ => None,
    }
}

/// The meaning of a tensor's name behind `base_model.model.`; nothing where that is missing.
pub(super) fn meaning(tensor: &str) -> Option<Meaning> {
    let name = unwrapped(tensor);
    let name = name.strip_prefix("module.").unwrap_or(&name).strip_prefix(PREFIX)?;
    let parts: Vec<&str> = name.split('.').collect();
    let of_adapter = parts.iter().position(|part| part.starts_with("lora_"));
    if let Some(at) = of_adapter {
        return Some(of_factor(parts[..at].join("."), parts[at], &parts[at + 1..]));
    }
    if let Some(problem) = foreign(name) {
        return Some(Meaning::Unsupported(problem));
    }
    let whole = |before: &[&str], after: &[&str], is_copy| {
        Some(Meaning::Whole { name: [before, after].concat().join("."), is_copy })
    };
    let position = |word: &str| parts.iter().position(|part| *part == word);
    if let Some(at) = position("modules_to_save").filter(|at| at + 2 < parts.len()) {
        return whole(&parts[..at], &parts[at + 2..], false);
    }
    match position("original_module").or_else(|| position("base_layer")) {
        Some(at) => whole(&parts[..at], &parts[at + 1..], true),
        None => whole(&parts, &[], false),
    }
}

fn of_factor(module: String, word: &str, after: &[&str]) -> Meaning {
    let part = match word {
        "lora_A" => LayerPart::A,
        "lora_B" => LayerPart::B,
        "lora_magnitude_vector" => LayerPart::Magnitude,
        "lora_embedding_A" | "lora_embedding_B" => {
            return Meaning::Unsupported(
                "this is an adapter of an embedding, and only those of linear layers are \
                 supported: merge with PEFT, or train without embeddings in target_modules",
            );
        }
        _ => return Meaning::Unsupported(foreign(&format!("x.{word}.weight")).unwrap_or(OTHER)),
    };
    let adapter = match *after {
        ["weight"] => None,
        [] if part == LayerPart::Magnitude => None,
        [name] if part == LayerPart::Magnitude => Some(name.to_owned()),
        [name, "weight"] => Some(name.to_owned()),
        _ => return Meaning::Unsupported(OTHER),
    };
    Meaning::Part { module, part, adapter }
}

const OTHER: &str = "only lora_A.weight, lora_B.weight and lora_magnitude_vector of linear layers \
                     are supported, not experts or biases of lora_B: merge with PEFT";
