//! The task: definitions of nouns, and the supersense of each.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Tensor};
use tokenizers::Tokenizer;

use crate::bert::DEVICE;

/// Tokens of a sentence at most; the longest in the data has 40.
const LONGEST: usize = 128;

/// A sentence that was read.
pub struct Sentence {
    pub tokens: Vec<u32>,
    /// Its class.
    pub label: u32,
}

/// What is learnt, and what it is tested with.
pub struct Task {
    /// Names of the classes.
    pub classes: Vec<String>,
    pub train: Vec<Sentence>,
    pub test: Vec<Sentence>,
}

impl Task {
    /// Reads both files of a folder.
    pub fn read(folder: &Path, tokenizer: &Tokenizer) -> crate::Result<Self> {
        let [train, test] = ["train", "test"].map(|part| {
            let path = folder.join(format!("wordnet-supersense-{part}.tsv.gz"));
            rows(&path).map_err(|problem| format!("{}: {problem}", path.display()))
        });
        let (train, test) = (train?, test?);
        let mut classes: Vec<String> = train.iter().map(|(class, _)| class.clone()).collect();
        classes.sort_unstable();
        classes.dedup();
        let sentences = |rows: Vec<(String, String)>| -> crate::Result<Vec<Sentence>> {
            let (labels, texts): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
            let encoded = tokenizer.encode_batch(texts, true).map_err(|error| error.to_string())?;
            let sentence = |(encoded, label): (tokenizers::Encoding, String)| {
                let class = classes.binary_search(&label);
                let class = class.map_err(|_| format!("{label} is in the test alone"))?;
                let tokens = encoded.get_ids();
                let tokens = tokens[..tokens.len().min(LONGEST)].to_vec();
                Ok(Sentence { tokens, label: class as u32 })
            };
            encoded.into_iter().zip(labels).map(sentence).collect()
        };
        let (train, test) = (sentences(train)?, sentences(test)?);
        Ok(Self { classes, train, test })
    }
}

/// Classes and texts of a file.
fn rows(path: &Path) -> crate::Result<Vec<(String, String)>> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(File::open(path)?).read_to_string(&mut text)?;
    let rows = text.lines().enumerate().map(|(line, text)| {
        let fields = text.split_once('\t');
        let (class, text) =
            fields.ok_or_else(|| format!("line {}: no class, tab and text", line + 1))?;
        Ok((class.to_owned(), text.to_owned()))
    });
    let rows = rows.collect::<crate::Result<Vec<_>>>()?;
    if rows.is_empty() { Err("holds no line".into()) } else { Ok(rows) }
}

/// Sentences of one forward, padded to the longest.
pub struct Batch {
    /// `[sentences, tokens]`.
    pub tokens: Tensor,
    /// 1 for a token, 0 for padding.
    pub mask: Tensor,
    /// `[sentences]`.
    pub labels: Tensor,
}

impl Batch {
    pub fn new<'a>(
        sentences: impl Iterator<Item = &'a Sentence> + Clone,
    ) -> candle_core::Result<Self> {
        let length = sentences.clone().map(|sentence| sentence.tokens.len()).max().unwrap_or(0);
        let (mut tokens, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for sentence in sentences {
            let padding = length - sentence.tokens.len();
            tokens.extend(&sentence.tokens);
            tokens.extend(std::iter::repeat_n(0u32, padding));
            mask.extend(std::iter::repeat_n(1f32, sentence.tokens.len()));
            mask.extend(std::iter::repeat_n(0f32, padding));
            labels.push(sentence.label);
        }
        let shape = (labels.len(), length);
        Ok(Self {
            tokens: Tensor::from_vec(tokens, shape, &DEVICE)?,
            mask: Tensor::from_vec(mask, shape, &DEVICE)?,
            labels: Tensor::new(labels, &DEVICE)?,
        })
    }
}

/// How many of the rows of logits `[sentences, classes]` are largest at their label.
pub fn right(logits: &Tensor, labels: &Tensor) -> candle_core::Result<f32> {
    logits.argmax(1)?.eq(labels)?.to_dtype(DType::F32)?.sum_all()?.to_scalar()
}

/// The share of sentences that logits classify correctly.
pub fn accuracy(logits: &Tensor, sentences: &[Sentence]) -> candle_core::Result<f64> {
    let labels: Vec<u32> = sentences.iter().map(|sentence| sentence.label).collect();
    let right = right(logits, &Tensor::new(labels, &DEVICE)?)?;
    Ok(f64::from(right) / sentences.len() as f64)
}
