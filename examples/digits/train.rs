//! The training loop: batches and softmax cross-entropy, on the host in f32.

use fused_dora::{AllReduce, Decomposition, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::data::{CLASSES, Digits, PIXELS};
use crate::network::{Network, Number};

/// Test images of one forward.
const TEST_BATCH: usize = 128;

/// How to train.
#[derive(Clone, Copy)]
pub struct Schedule {
    /// Optimizer steps.
    pub steps: usize,
    /// Images of one step.
    pub batch: usize,
    /// The learning rate, constant.
    pub learning_rate: f32,
    /// Of the data order and of the stochastic rounding.
    pub seed: u64,
}

impl Schedule {
    /// Tokens of the largest call that training and testing make.
    pub fn max_tokens(&self) -> usize {
        self.batch.max(TEST_BATCH)
    }
}

/// How often a training looks at how far the weights have moved.
const CHECKPOINTS: usize = 10;

/// What a training leaves behind in addition to a trained network.
pub struct Trained {
    /// The loss of each step.
    pub losses: Vec<f32>,
    /// At some steps, the last among them, how far each layer has moved from the base.
    pub checkpoints: Vec<Vec<Decomposition>>,
}

/// Trains a network; `on_step` gets each step's loss. Where it is one of several ranks, it takes
/// its part of each batch, its losses are parts of the batches', and gradients are summed.
pub fn train<E: Number>(
    network: &mut Network<'_, E>,
    digits: &Digits,
    schedule: Schedule,
    rank: Option<&dyn AllReduce>,
    mut on_step: impl FnMut(f32),
) -> Result<Trained> {
    let mut rng = StdRng::seed_from_u64(schedule.seed);
    let mut order = Order::new(digits.labels.len());
    let mut trained = Trained { losses: Vec::new(), checkpoints: Vec::new() };
    let interval = schedule.steps.div_ceil(CHECKPOINTS);
    let (own, ranks) = rank.map_or((0, 1), |rank| (rank.rank(), rank.ranks()));
    let [start, end] = [own, own + 1].map(|rank| rank * schedule.batch / ranks);
    for step in 1..=schedule.steps {
        // Every rank draws the same batch.
        let rows = &order.next(schedule.batch, &mut rng)[start..end];
        let images: Vec<f32> = rows.iter().flat_map(|&row| image(digits, row)).copied().collect();
        let labels: Vec<u8> = rows.iter().map(|&row| digits.labels[row]).collect();
        let seed = rng.random::<u64>() ^ own as u64;
        let mut logits = network.forward(rows.len(), &images, seed)?;
        let loss = cross_entropy(&mut logits, &labels, schedule.batch);
        network.backward(rows.len(), &logits)?;
        if let Some(rank) = rank {
            network.sum_over_ranks(rank)?;
        }
        network.update(schedule.learning_rate)?;
        on_step(loss);
        trained.losses.push(loss);
        if step % interval == 0 || step == schedule.steps {
            trained.checkpoints.push(network.decompose()?);
        }
    }
    Ok(trained)
}

/// The share of images whose largest logit is the right one.
pub fn accuracy<E: Number>(network: &mut Network<'_, E>, digits: &Digits) -> Result<f64> {
    let mut right = 0;
    for (images, labels) in
        digits.images.chunks(TEST_BATCH * PIXELS).zip(digits.labels.chunks(TEST_BATCH))
    {
        let logits = network.forward(labels.len(), images, 0)?;
        for (logits, &label) in logits.chunks_exact(CLASSES).zip(labels) {
            let best = (0..CLASSES).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            right += usize::from(best == Some(usize::from(label)));
        }
    }
    Ok(right as f64 / digits.labels.len() as f64)
}

fn image(digits: &Digits, row: usize) -> &[f32] {
    &digits.images[row * PIXELS..][..PIXELS]
}

/// The rows of the training set in shuffled order, epoch after epoch.
struct Order {
    rows: Vec<usize>,
    next: usize,
}

impl Order {
    fn new(rows: usize) -> Self {
        Self { rows: (0..rows).collect(), next: rows }
    }

    /// The next batch. What is left of an epoch and fills no batch is skipped.
    fn next(&mut self, batch: usize, rng: &mut impl Rng) -> &[usize] {
        if self.rows.len() - self.next < batch {
            self.rows.shuffle(rng);
            self.next = 0;
        }
        self.next += batch;
        &self.rows[self.next - batch..self.next]
    }
}

/// What these images add to the mean loss of their batch; the logits become its gradient,
/// (softmax − one-hot)/batch.
fn cross_entropy(logits: &mut [f32], labels: &[u8], batch: usize) -> f32 {
    let scale = 1.0 / batch as f32;
    let mut loss = 0.0;
    for (logits, &label) in logits.chunks_exact_mut(CLASSES).zip(labels) {
        let label = usize::from(label);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = logits.iter().map(|logit| (logit - max).exp()).sum::<f32>().ln() + max;
        loss += scale * (log_sum - logits[label]);
        logits.iter_mut().for_each(|logit| *logit = scale * (*logit - log_sum).exp());
        logits[label] -= scale;
    }
    loss
}
