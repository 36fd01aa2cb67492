//! The training loop: batches, softmax cross-entropy and AdamW, all on the host in f32.

use fused_dora::{Element, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::digits::{CLASSES, Digits, PIXELS};
use crate::network::Network;

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

/// Trains the adapters; `on_step` is told each step's loss. Returns all losses.
pub fn train<E: Element>(
    network: &mut Network<'_, E>,
    digits: &Digits,
    schedule: Schedule,
    mut on_step: impl FnMut(f32),
) -> Result<Vec<f32>> {
    let mut rng = StdRng::seed_from_u64(schedule.seed);
    let mut order = Order::new(digits.len());
    let mut optimizer = AdamW::new(schedule.learning_rate);
    let mut losses = Vec::with_capacity(schedule.steps);
    for _ in 0..schedule.steps {
        let rows = order.next(schedule.batch, &mut rng);
        let images: Vec<f32> = rows.iter().flat_map(|&row| image(digits, row)).copied().collect();
        let labels: Vec<u8> = rows.iter().map(|&row| digits.labels[row]).collect();
        let mut logits = network.forward(schedule.batch, &images, rng.random())?;
        let loss = cross_entropy(&mut logits, &labels);
        let gradients = network.backward(schedule.batch, &logits)?;
        optimizer.step += 1;
        network.update(|layer, parameters| {
            optimizer.update(layer, parameters, &gradients[layer]);
        })?;
        on_step(loss);
        losses.push(loss);
    }
    Ok(losses)
}

/// The share of images whose largest logit is the right one.
pub fn accuracy<E: Element>(network: &mut Network<'_, E>, digits: &Digits) -> Result<f64> {
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
    Ok(right as f64 / digits.len() as f64)
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

/// The batch's mean loss; the logits become its gradient, (softmax − one-hot)/batch.
fn cross_entropy(logits: &mut [f32], labels: &[u8]) -> f32 {
    let scale = 1.0 / labels.len() as f32;
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

/// AdamW (arXiv:1711.05101) with the usual constants; the decay applies to A, B and m alike.
struct AdamW {
    learning_rate: f32,
    step: i32,
    /// Per layer, the running means of the gradient and of its square.
    moments: Vec<Vec<[f32; 2]>>,
}

impl AdamW {
    const BETA: [f32; 2] = [0.9, 0.999];
    const EPSILON: f32 = 1e-8;
    const WEIGHT_DECAY: f32 = 0.01;

    fn new(learning_rate: f32) -> Self {
        Self { learning_rate, step: 0, moments: Vec::new() }
    }

    fn update(&mut self, layer: usize, parameters: &mut [f32], gradients: &[f32]) {
        if self.moments.len() <= layer {
            self.moments.resize(layer + 1, Vec::new());
        }
        let moments = &mut self.moments[layer];
        moments.resize(parameters.len(), [0.0; 2]);
        let corrections = Self::BETA.map(|beta| 1.0 - beta.powi(self.step));
        for ((parameter, &gradient), [mean, square]) in
            parameters.iter_mut().zip(gradients).zip(moments)
        {
            *mean += (1.0 - Self::BETA[0]) * (gradient - *mean);
            *square += (1.0 - Self::BETA[1]) * (gradient * gradient - *square);
            let change =
                (*mean / corrections[0]) / ((*square / corrections[1]).sqrt() + Self::EPSILON);
            *parameter -= self.learning_rate * (change + Self::WEIGHT_DECAY * *parameter);
        }
    }
}
