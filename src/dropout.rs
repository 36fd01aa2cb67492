//! Dropout on the adapter's input, from a counter: nothing of it is ever stored.

use crate::error::{Error, Result};
use crate::params::common::{Dropout as KernelDropout, Seed as KernelSeed};
use crate::spec::{DoraSpec, Norm};

/// Probabilities are multiples of 1/2¹⁶.
const STEPS: u32 = 1 << 16;

/// Columns that share one counter (kDropoutGroup in the kernels).
const GROUP: usize = 8;

/// Where the mask M is applied; its elements are 0 or 1/(1 − p).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropoutForm {
    /// The adapter branch alone: the base product sees x undropped. It costs no further product.
    ///
    /// y = xs·Wᵀ + s·(xs∘M)·AᵀBᵀ + b with xs = x∘g (norm axis input), g∘(x·Wᵀ + s·(x∘M)·AᵀBᵀ) + b
    /// (output), or with g ≡ 1 (plain LoRA).
    Adapter,
    /// As PEFT does it, where DoRA is what the adapter adds to x·Wᵀ: norm axis output only.
    ///
    /// y = x·Wᵀ + (g − 1)∘((x∘M)·Wᵀ) + s·g∘((x∘M)·AᵀBᵀ) + b. Forward and backward read W twice, and
    /// the forward keeps z = (x∘M)·Vᵀ `[T, O]` for the backward. For plain LoRA it is the same as
    /// [`Adapter`](Self::Adapter).
    Peft,
}

/// Dropout of a layer's input: in the forward, and the same in the backward.
///
/// Element (token, feature) is kept where its 16 bits of Philox4x32-10 (Salmon et al., SC 2011), with
/// the seed as the key and (feature/8, token) as the counter, reach p·2¹⁶.
///
/// ```
/// use fused_dora::{Dropout, DropoutForm};
///
/// let dropout = Dropout::new(0.25, DropoutForm::Adapter, 42)?;
/// let mask = dropout.mask(100, 100);
/// let kept = mask.iter().filter(|&&m| m > 0.0).count();
/// assert!((7300..7700).contains(&kept));
/// assert!(mask.iter().all(|&m| m == 0.0 || m == 4.0 / 3.0));
/// assert_eq!(mask, dropout.mask(100, 100));
/// # Ok::<(), fused_dora::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    probability: f32,
    form: DropoutForm,
    seed: u64,
}

impl Dropout {
    /// Drops elements with `probability`, rounded to a multiple of 2⁻¹⁶. Use another `seed` for each
    /// layer and step; in a captured graph, a counter ([`Forward::counter`](crate::Forward::counter))
    /// makes one of each step.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] unless 0 ≤ p ≤ 1 − 2⁻¹⁶.
    pub fn new(probability: f32, form: DropoutForm, seed: u64) -> Result<Self> {
        let dropout = Self { probability, form, seed };
        if probability >= 0.0 && dropout.steps() < f64::from(STEPS) {
            return Ok(dropout);
        }
        Err(Error::InvalidSpec {
            parameter: "the dropout probability",
            value: format!("{probability:?}"),
            requirement: "at least 0 and at most 1 - 2^-16",
        })
    }

    /// Where the mask is applied.
    pub const fn form(&self) -> DropoutForm {
        self.form
    }

    /// The dropout with the seed that a call has whose counter holds `counter`: see [`seed_at`].
    #[must_use]
    pub const fn at(self, counter: u64) -> Self {
        Self { seed: seed_at(self.seed, counter), ..self }
    }

    fn steps(&self) -> f64 {
        (f64::from(self.probability) * f64::from(STEPS)).round()
    }

    /// M `[tokens, features]`, row-major: for tests, and for those who want to see it. The kernels
    /// never form it.
    pub fn mask(&self, tokens: usize, features: usize) -> Vec<f32> {
        let KernelDropout { threshold, scale, .. } = self.kernel(0);
        let mut mask = Vec::new();
        for token in 0..tokens {
            for feature in 0..features {
                let words = philox(self.seed, [(feature / GROUP) as u32, token as u32, 0, 0]);
                let bits = words[feature % GROUP / 2] >> (16 * (feature % 2)) & (STEPS - 1);
                mask.push(if bits >= threshold { scale } else { 0.0 });
            }
        }
        mask
    }

    /// With the address of a counter, or 0.
    pub(crate) fn kernel(&self, counter: u64) -> KernelDropout {
        let threshold = self.steps() as u32;
        let kept = 1.0 - f64::from(threshold) / f64::from(STEPS);
        KernelDropout {
            seed: KernelSeed { value: self.seed, counter },
            threshold,
            scale: (1.0 / kept) as f32,
        }
    }

    /// What the kernels do for this dropout, if its form fits the norm axis.
    pub(crate) fn mode(dropout: Option<&Self>, spec: &DoraSpec) -> Result<DropoutMode> {
        match (dropout.map(|dropout| dropout.form), spec.norm()) {
            (None, _) => Ok(DropoutMode::None),
            (Some(DropoutForm::Peft), Norm::Output) => Ok(DropoutMode::Peft),
            (Some(DropoutForm::Peft), Norm::Input) => Err(Error::InvalidSpec {
                parameter: "the dropout form",
                value: "Peft with norm axis input".to_owned(),
                requirement: "Adapter, because PEFT has norm axis output only",
            }),
            (Some(_), _) => Ok(DropoutMode::Adapter),
        }
    }
}

/// Which kernels a call's dropout takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropoutMode {
    /// Those without.
    None,
    /// Those that drop the adapter's input.
    Adapter,
    /// Those of PEFT's form with norm axis output, which keep z.
    Peft,
}

/// The seed that a call has for a `seed` of the host and a counter on the device that holds
/// `counter`: the kernels compute it when they run. It is `seed` itself where the counter is 0.
pub const fn seed_at(seed: u64, counter: u64) -> u64 {
    const WEYL: u64 = 0x9e37_79b9_7f4a_7c15;
    seed.wrapping_add(WEYL.wrapping_mul(counter))
}

/// The `index`th number of a seed, uniform in [0, 1), a multiple of 2⁻²⁴.
pub(crate) fn uniform(seed: u64, index: u64) -> f32 {
    let words = philox(seed, [(index / 4) as u32, (index >> 34) as u32, 0, 0]);
    (words[(index % 4) as usize] >> 8) as f32 / (1u32 << 24) as f32
}

/// Philox4x32-10.
fn philox(seed: u64, counter: [u32; 4]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let mut keys = [seed as u32, (seed >> 32) as u32];
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..10 {
        let wide = |x: u32, multiplier: u32| {
            let product = u64::from(x) * u64::from(multiplier);
            (product as u32, (product >> 32) as u32)
        };
        let ((low0, high0), (low1, high1)) = (wide(c0, MULTIPLIERS[0]), wide(c2, MULTIPLIERS[1]));
        (c0, c1, c2, c3) = (high1 ^ c1 ^ keys[0], low1, high0 ^ c3 ^ keys[1], low0);
        keys = [keys[0].wrapping_add(WEYL[0]), keys[1].wrapping_add(WEYL[1])];
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the Random123 library.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let cases = [
            (0, [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (u64::MAX, [ones; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                0x299f_31d0_a409_3822,
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (seed, counter, expected) in cases {
            assert_eq!(philox(seed, counter), expected);
        }
    }

    #[test]
    fn counters_make_seeds() {
        let seeds = (0..1000).map(|counter| seed_at(5, counter));
        assert_eq!(seeds.clone().next(), Some(5));
        assert_eq!(seeds.collect::<std::collections::BTreeSet<_>>().len(), 1000);
        let dropout = Dropout::new(0.5, DropoutForm::Adapter, 5).expect("valid");
        assert_eq!(dropout.at(0), dropout);
        assert_ne!(dropout.at(1).mask(8, 8), dropout.mask(8, 8));
    }

    #[test]
    fn masks_keep_the_mean() {
        for probability in [0.0, 0.05, 0.5, 0.9] {
            let dropout = Dropout::new(probability, DropoutForm::Adapter, 7).expect("valid");
            let mask = dropout.mask(500, 203);
            let mean = mask.iter().map(|&m| f64::from(m)).sum::<f64>() / mask.len() as f64;
            let p = f64::from(probability);
            let deviation = (p / (1.0 - p) / mask.len() as f64).sqrt();
            assert!((mean - 1.0).abs() <= 5.0 * deviation + 1e-6, "{probability}: {mean}");
            let dropped = mask.iter().filter(|&&m| m == 0.0).count() as f64 / mask.len() as f64;
            assert!((dropped - p).abs() < 0.01, "{probability}: {dropped}");
        }
    }

    #[test]
    fn probabilities_have_limits() {
        for probability in [-0.1, 1.0, 0.999_999, f32::NAN, f32::INFINITY] {
            let error = Dropout::new(probability, DropoutForm::Adapter, 0).expect_err("a limit");
            assert!(error.to_string().contains("dropout probability"), "{error}");
        }
        assert!(Dropout::new(1.0 - 1.0 / 65536.0, DropoutForm::Peft, 0).is_ok());
    }
}
