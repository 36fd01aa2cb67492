//! Which tensor of the base an adapter's module means.

use std::collections::{BTreeMap, BTreeSet};

use fused_dora::peft::CheckpointError;
use fused_dora::peft::names::{FLAT_PREFIXES, unwrapped};

use crate::base::Base;
use crate::error::Failure;
use crate::report::count;

/// Parts at the start of a module's name that say only which class holds it: models with and
/// without a head, and before and after transformers 4.52, differ by these.
const NEUTRAL: [&str; 11] = [
    "model",
    "transformer",
    "language_model",
    "text_model",
    "llm",
    "module",
    "backbone",
    "base_model",
    "unet",
    "diffusion_model",
    "dit",
];

/// What diffusers puts before the names of a text encoder's modules, to say which one it is.
const COMPONENTS: [&str; 3] = ["text_encoder", "text_encoder_2", "text_encoder_3"];

/// What in a part of a name says that the module has a role of its own, e.g. in an image encoder.
const ROLES: [&str; 16] = [
    "vision", "visual", "image", "audio", "speech", "encoder", "decoder", "tower", "talker",
    "thinker", "student", "teacher", "draft", "control", "mtp", "eagle",
];

/// What other programs put there, besides kohya's and LyCORIS's.
const OTHER_FLAT_PREFIXES: [&str; 2] = ["lora_prior_", "lora_"];

/// The names of a base's tensors.
pub struct Names<'a> {
    base: &'a Base,
    /// Tensors with the parts of their names, by the last two of these.
    by_end: BTreeMap<(String, String), Vec<Known<'a>>>,
    /// `--map`: what a name begins with, and what it begins with in the base.
    map: Vec<(String, String)>,
    is_strict: bool,
}

struct Known<'a> {
    tensor: &'a str,
    parts: Vec<String>,
}

/// How a name was found.
pub struct Found<'a> {
    pub tensor: &'a str,
    /// What the names begin with, up to the layer's number: in the adapter, and in the base. Where
    /// these are the same, the names are.
    pub start: (String, String),
}

/// The parts of a name, without what wrappers and other programs add.
fn parts(name: &str) -> Vec<String> {
    let mut name = unwrapped(name);
    for prefix in ["module.", "base_model.model.", "0.auto_model."] {
        if let Some(rest) = name.strip_prefix(prefix) {
            name = rest.to_owned();
        }
    }
    name.split('.').filter(|part| *part != "base_layer").map(str::to_owned).collect()
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name's parts before its first number, or before the parameter where it has none.
fn start(parts: &[String]) -> String {
    let end = parts.iter().position(|part| is_number(part)).unwrap_or(parts.len() - 1);
    parts[..end].join(".")
}

fn end(parts: &[String]) -> Option<(String, String)> {
    let [.., module, parameter] = parts else { return None };
    Some((module.clone(), parameter.clone()))
}

impl<'a> Names<'a> {
    pub fn new(base: &'a Base, map: &[(String, String)], is_strict: bool) -> Self {
        let mut by_end = BTreeMap::<_, Vec<Known<'a>>>::new();
        for tensor in base.names() {
            let parts = parts(tensor);
            if let Some(end) = end(&parts) {
                by_end.entry(end).or_default().push(Known { tensor, parts });
            }
        }
        Self { base, by_end, map: map.to_vec(), is_strict }
    }

    /// The tensor of the base that a tensor's name means, if there is one; `fits` says whether a
    /// tensor's shape is right.
    pub fn find(
        &self,
        name: &str,
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Option<Found<'a>>, Failure> {
        if let Some((from, mapped)) = self.mapped(name) {
            return match self.exact(&mapped)? {
                Some(tensor) => Ok(Some(found(&parts(name), tensor, &parts(tensor)))),
                None => Err(Failure::Call(format!(
                    "--map {from}: it makes `{name}` into `{mapped}`, which {} does not have",
                    self.base.path.display()
                ))),
            };
        }
        if let Some(tensor) = self.base.tensor(name) {
            return Ok(Some(found(&parts(name), tensor, &parts(tensor))));
        }
        if self.is_strict {
            return Ok(None);
        }
        let wanted = parts(name);
        if let Some(tensor) = self.exact(name)? {
            return Ok(Some(found(&wanted, tensor, &parts(tensor))));
        }
        let known = end(&wanted).and_then(|end| self.by_end.get(&end));
        let related: Vec<(usize, &Known<'a>)> = known
            .into_iter()
            .flatten()
            .filter_map(|known| Some((relation(&wanted, &known.parts)?, known)))
            .collect();
        let fitting = related.iter().filter(|(_, known)| fits(&self.base.shape(known.tensor)));
        let longest = fitting.clone().map(|(length, _)| *length).max();
        let best: Vec<_> = fitting.filter(|(length, _)| Some(*length) == longest).collect();
        match (best[..].first(), best.len()) {
            (Some((_, known)), 1) => Ok(Some(found(&wanted, known.tensor, &known.parts))),
            (None, _) => match related[..] {
                // Its shape is wrong, which the caller explains.
                [(_, known)] => Ok(Some(found(&wanted, known.tensor, &known.parts))),
                _ => Ok(None),
            },
            _ => Err(self.ambiguous(name, best.iter().map(|(_, known)| known.tensor))),
        }
    }

    /// The same for a name with `_` for each dot, as kohya's scripts write them.
    pub fn find_flat(
        &self,
        module: &str,
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Option<Found<'a>>, Failure> {
        if self.mapped(&format!("{module}.weight")).is_some() {
            return self.find(&format!("{module}.weight"), fits);
        }
        let prefixes = FLAT_PREFIXES.iter().chain(&OTHER_FLAT_PREFIXES);
        let stripped = prefixes.filter_map(|prefix| module.strip_prefix(prefix));
        let mut candidates: Vec<String> = stripped.map(str::to_owned).collect();
        candidates.push(module.to_owned());
        let renamed: Vec<_> = candidates.iter().filter_map(|name| renamed_block(name)).collect();
        candidates.extend(renamed);
        let mut best: Vec<(usize, &'a str)> = Vec::new();
        for known in self.by_end.values().flatten() {
            let [module @ .., parameter] = &known.parts[..] else { continue };
            if parameter != "weight" || !fits(&self.base.shape(known.tensor)) {
                continue;
            }
            let starts = if self.is_strict { 0..1 } else { 0..module.len() };
            for start in starts {
                let flat = module[start..].join("_").replace('.', "_");
                let is_other = |part: &String| is_number(part) || has_role(part);
                if !module[..start].iter().any(is_other) && candidates.contains(&flat) {
                    best.push((flat.len(), known.tensor));
                }
            }
        }
        let longest = best.iter().map(|(length, _)| *length).max();
        best.retain(|(length, _)| Some(*length) == longest);
        match best[..] {
            [] => Ok(None),
            [(_, tensor)] => Ok(Some(Found { tensor, start: Default::default() })),
            _ => Err(self.ambiguous(module, best.iter().map(|(_, tensor)| *tensor))),
        }
    }

    /// Whether the base has a tensor whose name ends in the same module and parameter.
    pub fn has_end(&self, name: &str) -> bool {
        end(&parts(name)).is_some_and(|end| self.by_end.contains_key(&end))
    }

    /// A hint where nothing was found: tensors of the base with the same end.
    pub fn similar(&self, name: &str) -> String {
        let wanted = parts(name);
        let same = |known: &&Known<'a>| {
            let ends = known.parts.iter().rev().zip(wanted.iter().rev());
            ends.take_while(|(a, b)| a == b).count()
        };
        let known = end(&wanted).and_then(|end| self.by_end.get(&end));
        match known.into_iter().flatten().max_by_key(same) {
            Some(known) => {
                // One map for all modules, where only the starts differ.
                let (from, to) = (start(&wanted), start(&known.parts));
                let rest = |parts: &[String], start: &str| {
                    let skipped = start.split('.').filter(|part| !part.is_empty()).count();
                    parts[skipped..].to_vec()
                };
                let is_start = from != to && rest(&wanted, &from) == rest(&known.parts, &to);
                let (from, to) = match is_start {
                    true => (&*from, &*to),
                    false => {
                        (name.trim_end_matches(".weight"), known.tensor.trim_end_matches(".weight"))
                    }
                };
                format!(
                    "`{}` is the most similar name in it. If it is meant, pass `--map \
                     {from}={to}`; otherwise the adapter is for another model",
                    known.tensor
                )
            }
            None => "the adapter changes it: is it for another model? If the base has it under \
                     another name, pass `--map FROM=TO`"
                .to_owned(),
        }
    }

    /// The tensor of a name, wrappers aside.
    fn exact(&self, name: &str) -> Result<Option<&'a str>, Failure> {
        if let Some(tensor) = self.base.tensor(name) {
            return Ok(Some(tensor));
        }
        let wanted = parts(name);
        let known = end(&wanted).and_then(|end| self.by_end.get(&end));
        let same = known.into_iter().flatten().filter(|known| known.parts == wanted);
        let same: Vec<_> = same.map(|known| known.tensor).collect();
        match same[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(self.ambiguous(name, same.iter().copied())),
        }
    }

    /// A name after `--map`, and the map's text.
    fn mapped(&self, name: &str) -> Option<(String, String)> {
        let longest = self.map.iter().filter(|(from, _)| begins(name, from));
        let (from, to) = longest.max_by_key(|(from, _)| from.len())?;
        let rest = name[from.len()..].trim_start_matches('.');
        let parts = [to.trim_end_matches('.'), rest];
        let mapped: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Some((format!("{from}={to}"), mapped.join(".")))
    }

    /// Refuses a `--map` that no name of the adapter begins with.
    pub fn check_map(&self, names: &[String]) -> Result<(), Failure> {
        for (from, to) in &self.map {
            if !names.iter().any(|name| begins(name, from)) {
                let first = names.first().map_or("", |name| name.trim_end_matches(".weight"));
                return Err(Failure::Call(format!(
                    "--map {from}={to}: no module of the adapter begins with `{from}`; its first \
                     is `{first}`"
                )));
            }
        }
        Ok(())
    }

    fn ambiguous<'b>(&self, name: &str, candidates: impl Iterator<Item = &'b str>) -> Failure {
        let all: Vec<_> = candidates.map(|name| format!("`{name}`")).collect();
        let reason = format!(
            "the base has no tensor of this name, and {} tensors that it could be: {}. Pass \
             `--map {}=NAME` with the name of the one that is meant, without `.weight`",
            all.len(),
            all.join(", "),
            name.trim_end_matches(".weight"),
        );
        let (path, tensor) = (self.base.path.clone(), name.to_owned());
        CheckpointError::MissingTensor { path, tensor, reason }.into()
    }
}

fn begins(name: &str, from: &str) -> bool {
    let from = from.trim_end_matches('.');
    name.strip_prefix(from).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        || from.is_empty()
}

fn found<'a>(wanted: &[String], tensor: &'a str, parts: &[String]) -> Found<'a> {
    Found { tensor, start: (start(wanted), start(parts)) }
}

/// How many parts two names have in common at their ends.
fn common(wanted: &[String], known: &[String]) -> usize {
    wanted.iter().rev().zip(known.iter().rev()).take_while(|(a, b)| a == b).count()
}

fn is_neutral(part: &str) -> bool {
    NEUTRAL.contains(&part)
}

fn has_role(part: &str) -> bool {
    !is_neutral(part) && !COMPONENTS.contains(&part) && ROLES.iter().any(|role| part.contains(role))
}

/// How many parts two names have in common at their ends, where the rest of them says that both
/// can be one module.
fn relation(wanted: &[String], known: &[String]) -> Option<usize> {
    let same = common(wanted, known);
    let (dropped, added) = (&wanted[..wanted.len() - same], &known[..known.len() - same]);
    let can_be = match (dropped, added) {
        ([], rest) | (rest, []) => !rest.iter().any(|part| is_number(part) || has_role(part)),
        (dropped, added) => dropped.iter().chain(added).all(|part| is_neutral(part)),
    };
    can_be.then_some(same)
}

/// The name of an attention block in diffusers' U-Nets, of that in Stability's files, and the other
/// way round.
fn renamed_block(flat: &str) -> Option<String> {
    let number = |rest: &'static str| -> Option<(usize, &str)> {
        let (number, rest) = flat.strip_prefix(rest)?.split_once('_')?;
        Some((number.parse().ok()?, rest))
    };
    let attention = |rest: &str, block: usize, first: usize| -> Option<(usize, String)> {
        let (number, rest) = rest.strip_prefix("attentions_")?.split_once('_')?;
        Some((3 * block + number.parse::<usize>().ok()? + first, format!("1_{rest}")))
    };
    if let Some((at, rest)) = number("input_blocks_") {
        let (at, rest) = (at.checked_sub(1)?, rest.strip_prefix("1_")?);
        return Some(format!("down_blocks_{}_attentions_{}_{rest}", at / 3, at % 3));
    }
    if let Some((at, rest)) = number("output_blocks_") {
        let rest = rest.strip_prefix("1_")?;
        return Some(format!("up_blocks_{}_attentions_{}_{rest}", at / 3, at % 3));
    }
    if let Some((block, rest)) = number("down_blocks_") {
        let (at, rest) = attention(rest, block, 1)?;
        return Some(format!("input_blocks_{at}_{rest}"));
    }
    if let Some((block, rest)) = number("up_blocks_") {
        let (at, rest) = attention(rest, block, 0)?;
        return Some(format!("output_blocks_{at}_{rest}"));
    }
    let swapped = ["middle_block_1_", "mid_block_attentions_0_"];
    let swap =
        |from: usize| Some(format!("{}{}", swapped[1 - from], flat.strip_prefix(swapped[from])?));
    swap(0).or_else(|| swap(1))
}

/// The starts of an adapter's names in the base: one for each.
#[derive(Default)]
pub struct Starts {
    known: BTreeMap<String, (String, String)>,
    renamed: BTreeMap<(String, String), usize>,
    tensors: BTreeSet<String>,
    /// Tensors whose names have more than another start.
    wrapped: Vec<String>,
}

impl Starts {
    /// Notes a module's tensor, and refuses what contradicts others.
    pub fn add(&mut self, base: &Base, name: &str, found: &Found<'_>) -> Result<(), Failure> {
        let wrong = |reason: String| {
            let (path, tensor) = (base.path.clone(), name.to_owned());
            Err(CheckpointError::UnexpectedTensor { path, tensor, reason }.into())
        };
        if !self.tensors.insert(found.tensor.to_owned()) {
            return wrong(format!(
                "it would change `{}`, which another module of the adapter changes: pass `--map` \
                 for one of them",
                found.tensor
            ));
        }
        let (from, to) = &found.start;
        let (other, first) =
            self.known.entry(from.clone()).or_insert_with(|| (to.clone(), name.to_owned()));
        if !from.is_empty() && other != to {
            return wrong(format!(
                "the base has it as `{}`, but `{first}` begins with `{other}` there: the names \
                 contradict each other. Pass `--map {from}=…`",
                found.tensor
            ));
        }
        if from != to {
            *self.renamed.entry((from.clone(), to.clone())).or_default() += 1;
        } else if !from.is_empty() && name != found.tensor {
            self.wrapped.push(format!("`{name}` is `{}`", found.tensor));
        }
        Ok(())
    }

    /// A line for each start that differs.
    pub fn lines(&self) -> Vec<String> {
        let line = |((from, to), number): (&(String, String), &usize)| {
            let word = |start: &String| match start.is_empty() {
                true => "no prefix".to_owned(),
                false => format!("`{start}.`"),
            };
            format!(
                "Names: {} of the adapter is {} in the base ({})",
                word(from),
                word(to),
                count(*number, "tensor")
            )
        };
        let wrapped = self.wrapped.first().map(|first| {
            format!(
                "Names: {first} in the base, and so on ({})",
                count(self.wrapped.len(), "tensor")
            )
        });
        self.renamed.iter().map(line).chain(wrapped).collect()
    }
}
