//! Training: adapters and head by candle's AdamW, with warm-up and decay.

use fused_dora_testkit::println;
use std::path::Path;

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{AdamW, Linear, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::bert::{Bert, DEVICE};
use crate::data::{Batch, Sentence, Task, accuracy, right};
use crate::options::Options;
use crate::plot;

/// The head starts from random numbers and learns faster than the adapters.
const HEAD_RATE: f64 = 1e-2;

/// Epochs of the head that is trained alone.
const HEAD_EPOCHS: usize = 20;

/// The share of the steps over which learning rates rise; then they fall to 0.
const WARM_UP: f64 = 0.1;

/// Batches whose sentences are sorted together, so that those of one batch have about one length.
const GROUP: usize = 8;

/// A progress bar over so many things.
pub fn progress(len: usize, what: &str) -> ProgressBar {
    const TEMPLATE: &str = "{prefix:>22} {bar:30} {pos}/{len} {msg}, {eta} left";
    let style =
        ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len as u64).with_style(style).with_prefix(what.to_owned())
}

/// Adapters and a head in training.
pub struct Trainer {
    batches: Batches,
    head: Linear,
    head_variables: VarMap,
    adapters_optimizer: AdamW,
    head_optimizer: AdamW,
    rate: f64,
    step: usize,
    steps: usize,
}

impl Trainer {
    pub fn new(options: &Options, task: &Task, features: usize, adapters: &VarMap) -> Result<Self> {
        let (head_variables, head) = head(features, task)?;
        let optimizer = |variables: &VarMap| {
            let params = ParamsAdamW { lr: 0.0, weight_decay: 0.01, ..Default::default() };
            AdamW::new(variables.all_vars(), params)
        };
        Ok(Self {
            batches: Batches::new(options.seed, options.batch),
            adapters_optimizer: optimizer(adapters)?,
            head_optimizer: optimizer(&head_variables)?,
            head,
            head_variables,
            rate: options.rate,
            step: 0,
            steps: options.steps,
        })
    }

    /// One optimizer step: the loss, and the share of its sentences that the model classified
    /// correctly before it.
    pub fn step(&mut self, bert: &Bert, task: &Task) -> Result<(f32, f32)> {
        let rows = self.batches.next(&task.train);
        let batch = Batch::new(rows.iter().map(|&row| &task.train[row]))?;
        let logits = self.head.forward(&bert.embed(&batch)?)?;
        let loss = loss::cross_entropy(&logits, &batch.labels)?;
        let gradients = loss.backward()?;
        let share = schedule(self.step, self.steps);
        for (optimizer, rate) in
            [(&mut self.adapters_optimizer, self.rate), (&mut self.head_optimizer, HEAD_RATE)]
        {
            optimizer.set_learning_rate(share * rate);
            optimizer.step(&gradients)?;
        }
        self.step += 1;
        Ok((loss.to_scalar()?, right(&logits, &batch.labels)? / rows.len() as f32))
    }

    pub fn head(&self) -> &Linear {
        &self.head
    }

    /// The head's variables.
    pub fn into_variables(self) -> VarMap {
        self.head_variables
    }
}

/// The share of the learning rate at a step, the first of which is 0.
fn schedule(step: usize, steps: usize) -> f64 {
    let warm_up = (WARM_UP * steps as f64).ceil();
    let (step, steps) = (step as f64, steps as f64);
    ((step + 1.0) / warm_up).min((steps - step) / (steps - warm_up).max(1.0))
}

fn head(features: usize, task: &Task) -> Result<(VarMap, Linear)> {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &DEVICE);
    let head = candle_nn::linear(features, task.classes.len(), vb)?;
    Ok((variables, head))
}

/// Trains a head alone on embeddings of the training sentences, and returns the largest share of
/// the test that it classifies correctly after any of its epochs.
pub fn head_alone(
    options: &Options,
    task: &Task,
    train: &Tensor,
    test: &Tensor,
) -> crate::Result<f64> {
    let (variables, head) = head(train.dim(1)?, task)?;
    let params = ParamsAdamW { lr: HEAD_RATE, weight_decay: 0.01, ..Default::default() };
    let mut optimizer = AdamW::new(variables.all_vars(), params)?;
    let labels: Vec<u32> = task.train.iter().map(|sentence| sentence.label).collect();
    let labels = Tensor::new(labels, &DEVICE)?;
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut rows: Vec<u32> = (0..task.train.len() as u32).collect();
    let mut best = 0f64;
    for _ in 0..HEAD_EPOCHS {
        rows.shuffle(&mut random);
        for rows in rows.chunks(options.batch) {
            let rows = Tensor::new(rows, &DEVICE)?;
            let logits = head.forward(&train.index_select(&rows, 0)?)?;
            let loss = loss::cross_entropy(&logits, &labels.index_select(&rows, 0)?)?;
            optimizer.backward_step(&loss)?;
        }
        best = best.max(accuracy(&head.forward(test)?, &task.test)?);
    }
    Ok(best)
}

/// Draws sentences without putting them back, until too few are left.
struct Batches {
    random: StdRng,
    size: usize,
    /// The batches of this epoch that are left.
    left: Vec<Vec<usize>>,
}

impl Batches {
    fn new(seed: u64, size: usize) -> Self {
        Self { random: StdRng::seed_from_u64(seed), size, left: Vec::new() }
    }

    fn next(&mut self, sentences: &[Sentence]) -> Vec<usize> {
        if self.left.is_empty() {
            let mut rows: Vec<usize> = (0..sentences.len()).collect();
            rows.shuffle(&mut self.random);
            for group in rows.chunks_mut(GROUP * self.size) {
                group.sort_by_key(|&row| sentences[row].tokens.len());
                self.left.extend(group.chunks(self.size).map(<[usize]>::to_vec));
            }
            self.left.shuffle(&mut self.random);
        }
        self.left.pop().unwrap_or_default()
    }
}

/// What is drawn of a training.
#[derive(Default)]
pub struct Curves {
    losses: Vec<f64>,
    /// The share of each step's sentences.
    right: Vec<f64>,
    /// Steps, and the share of the test after them.
    test: Vec<(f64, f64)>,
}

impl Curves {
    pub fn step(&mut self, loss: f32, right: f32) {
        self.losses.push(f64::from(loss));
        self.right.push(f64::from(right));
    }

    pub fn test(&mut self, step: usize, share: f64) {
        self.test.push((step as f64, share));
    }

    /// Draws the loss, and next to it the accuracy.
    pub fn write(&self, path: &Path, method: &str, baseline: f64) -> crate::Result<()> {
        plot::curves(path, method, &self.losses, &self.right, &self.test, baseline)?;
        println!("curves: {}", path.display());
        Ok(())
    }
}
