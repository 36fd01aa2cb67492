//! Models whose head has the weight of the embedding (`tie_word_embeddings`): where one of the two
//! is changed, the output holds both, and its `config.json` says that they are not tied.

use fused_dora::peft::CheckpointError;

use crate::base::Base;
use crate::error::Failure;
use crate::model::{CONFIG, ModelConfig};

/// The last parts of the names of heads, where these and the embedding are all that is tied.
const HEADS: [&str; 2] = ["lm_head", "embed_out"];

/// Heads of models that tie more than two weights, or a bias too.
const OTHER_HEADS: [&str; 6] = [
    "predictions.decoder",
    "lm_head.decoder",
    "proj_out",
    "vocab_projector",
    "generator_lm_head",
    "pred_layer.proj",
];

/// The last parts of the names of embeddings.
const EMBEDDINGS: [&str; 9] = [
    "embed_tokens",
    "wte",
    "word_embeddings",
    "tokens_embed",
    "embed_in",
    "tok_embeddings",
    "embeddings",
    "embedding",
    "shared",
];

fn is_one(tensor: &str, names: &[&str]) -> bool {
    let Some(module) = tensor.strip_suffix(".weight") else { return false };
    names.iter().any(|name| {
        module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// Whether a tensor is a head's weight.
pub fn is_head(tensor: &str) -> bool {
    is_one(tensor, &HEADS)
}

/// Whether a tensor's name is that of a head or an embedding, which models tie.
pub fn is_tied_part(tensor: &str) -> bool {
    is_one(tensor, &HEADS) || is_one(tensor, &OTHER_HEADS) || is_one(tensor, &EMBEDDINGS)
}

/// The embedding whose weight a head has that the base does not store.
pub fn source<'a>(
    base: &'a Base,
    config: Option<&ModelConfig>,
    head: &str,
    shape: [usize; 2],
) -> Result<Option<&'a str>, Failure> {
    if !is_head(head) || base.names().any(is_head) {
        return Ok(None);
    }
    let is_source = |name: &&str| {
        is_one(name, &EMBEDDINGS) && base.matrix(name).is_some_and(|weight| weight.shape == shape)
    };
    let sources: Vec<_> = base.names().filter(is_source).collect();
    let wrong = |reason: String| {
        let (path, tensor) = (base.path.clone(), head.to_owned());
        Err(CheckpointError::MissingTensor { path, tensor, reason }.into())
    };
    let [source] = sources[..] else { return Ok(None) };
    match config {
        Some(config) if config.is_tied() && base.is_folder() => {
            check_kind(config, head)?;
            Ok(Some(source))
        }
        Some(config) if config.is_tied() => wrong(format!(
            "it is tied to `{source}` by {}, whose tie_word_embeddings has to change with it: \
             name the folder as --base",
            config.path.display()
        )),
        Some(_) => Ok(None),
        None => wrong(format!(
            "it may be tied to `{source}`, and there is no config.json that says so: name a folder \
             with the model's config.json as --base"
        )),
    }
}

/// Refuses models that tie more than the head and the embedding, or scale by the setting.
fn check_kind(config: &ModelConfig, tensor: &str) -> Result<(), Failure> {
    if !config.is_encoder_decoder() && !is_one(tensor, &OTHER_HEADS) {
        return Ok(());
    }
    Err(CheckpointError::Setting {
        path: config.path.clone(),
        setting: "tie_word_embeddings".to_owned(),
        value: "true".to_owned(),
        remedy: format!(
            "`{tensor}` would change, and in a model of type {} more than that depends on the \
             setting: untie its weights with transformers (set it to false, copy the shared \
             weight into each module, save_pretrained), then merge",
            config.types.join(", ")
        ),
    }
    .into())
}

/// What follows from the tensors that an output changes or adds.
#[derive(Default)]
pub struct Untied {
    /// Whether config.json has to say that weights are not tied.
    pub config: bool,
    /// What is to be said.
    pub note: Option<String>,
}

/// Whether the output's settings have to change, given the names of tensors that differ from the
/// base's, and of those that are added.
pub fn check<'a>(
    base: &Base,
    config: Option<&ModelConfig>,
    changed: impl Iterator<Item = &'a str>,
    added: &[&'a str],
) -> Result<Untied, Failure> {
    let mut untied = Untied::default();
    let Some(tensor) = changed.chain(added.iter().copied()).find(|name| is_tied_part(name)) else {
        return Ok(untied);
    };
    let Some(config) = config else {
        untied.note = Some(format!(
            "`{tensor}` is changed, and there is no config.json: if the model's config ties its \
             embeddings (tie_word_embeddings), set that to false, or a loader undoes the change"
        ));
        return Ok(untied);
    };
    if !config.is_tied() {
        return Ok(untied);
    }
    check_kind(config, tensor)?;
    let head = base.names().chain(added.iter().copied()).find(|name| is_one(name, &HEADS));
    let embedding = base.names().find(|name| is_one(name, &EMBEDDINGS));
    if head.is_none() || embedding.is_none() {
        let other = if head.is_none() { "head" } else { "embedding" };
        return Err(CheckpointError::UnexpectedTensor {
            path: base.path.clone(),
            tensor: tensor.to_owned(),
            reason: format!(
                "it would change, and by tie_word_embeddings in {} it is also the weight of the \
                 {other}, which the base does not store: untie them first with transformers (set \
                 tie_word_embeddings to false, copy the weight, save_pretrained)",
                config.path.display()
            ),
        }
        .into());
    }
    if !base.is_folder() {
        return Err(Failure::Call(format!(
            "--base {}: `{tensor}` changes, and {} ties it to another weight, which has to change \
             with it: name the folder as --base",
            base.path.display(),
            config.path.display()
        )));
    }
    untied.config = true;
    untied.note = Some(format!(
        "`{tensor}` is no longer tied: the output has both weights, and tie_word_embeddings is \
         false in its {CONFIG}"
    ));
    Ok(untied)
}
