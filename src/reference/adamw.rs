//! AdamW in float64, one parameter at a time, and how far a kernel may be from it.

use super::U;

/// A number and a bound on the error of a kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tracked {
    /// The number in float64.
    pub value: f64,
    /// The bound.
    pub error: f64,
}

impl Tracked {
    /// A number that the kernel has exactly.
    pub fn exactly(value: f64) -> Self {
        Self { value, error: 0.0 }
    }
}

/// One parameter, and its moments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AdamWState {
    /// p.
    pub parameter: Tracked,
    /// m, the running mean of the gradient.
    pub exp_avg: Tracked,
    /// v, the running mean of its square.
    pub exp_avg_sq: Tracked,
}

/// The constants of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// η, the group's factor included.
    pub learning_rate: f64,
    /// λ.
    pub weight_decay: f64,
    /// β1.
    pub beta1: f64,
    /// β2.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// t, from 1.
    pub step: u64,
    /// k, what clipping multiplies gradients by; 1 for none.
    pub clip: f64,
}

/// The step between f32's subnormals: what a result near 0 may be off absolutely.
const SUBNORMAL: f64 = f32::from_bits(1) as f64;

/// Covers the products of errors, which the terms below leave out.
const SECOND_ORDER: f64 = 1.001;

impl AdamWStep {
    /// The step of algorithm 2 of arXiv:1711.05101 for one parameter, from an f32 gradient, and
    /// the bounds on the state's errors after it.
    ///
    /// With u = 2⁻²⁴ per rounding, e(x) the bound of x before the step and e'(x) after it, and
    /// constants off by u (η by 3u; the bias corrections by 8u, which a logarithm on the device and
    /// expm1f keep):
    /// - e(g) = 3u|g| where it is clipped, else 0, d = g − m, e(d) = e(g) + u|d|;
    /// - e'(m) = β1·e(m) + (1 − β1)(e(d) + u|d|) + u|m'|;
    /// - with q = g² − v: e'(v) = β2·e(v) + (1 − β2)(2|g|e(g) + 2u|q|) + u·v';
    /// - of D = √v̂ + ε: e(D) = (e(√v') + 9u√v')/√(1 − β2ᵗ) + u(ε + D), where e(√v') is the smaller
    ///   of √e'(v) and e'(v)/√v';
    /// - of Δ = m̂/D: e(Δ) = e'(m)/((1 − β1ᵗ)D) + |Δ|(10u + e(D)/D);
    /// - with i = Δ + λp: e'(p) = e(p) + η(λe(p) + e(Δ) + uλ|p| + 4u|i|) + u|p'|.
    pub fn apply(&self, state: &mut AdamWState, gradient: f64) {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let g = self.clip * gradient;
        let e_g = if self.clip == 1.0 { 0.0 } else { 3.0 * U * g.abs() };
        let AdamWState { parameter: p, exp_avg: m, exp_avg_sq: v } = state;

        let (d, rate) = (g - m.value, 1.0 - self.beta1);
        m.value += rate * d;
        m.error = self.beta1 * m.error + rate * (e_g + 2.0 * U * d.abs()) + U * m.value.abs();
        m.error = SECOND_ORDER * m.error + SUBNORMAL;

        let (q, rate) = (g * g - v.value, 1.0 - self.beta2);
        v.value += rate * q;
        v.error = self.beta2 * v.error + rate * 2.0 * (g.abs() * e_g + U * q.abs()) + U * v.value;
        v.error = SECOND_ORDER * v.error + SUBNORMAL;

        let root = v.value.sqrt();
        let e_root = v.error.sqrt().min(v.error / root);
        let correction_sq = correction(self.beta2).sqrt();
        let denominator = root / correction_sq + self.epsilon;
        let e_denominator =
            (e_root + 9.0 * U * root) / correction_sq + U * (self.epsilon + denominator);
        let change = m.value / correction(self.beta1) / denominator;
        let e_change = m.error / (correction(self.beta1) * denominator)
            + change.abs() * (10.0 * U + e_denominator / denominator);

        let i = change + self.weight_decay * p.value;
        let e_i = self.weight_decay * (p.error + U * p.value.abs()) + e_change + 4.0 * U * i.abs();
        p.value -= self.learning_rate * i;
        p.error += self.learning_rate * e_i + U * p.value.abs();
        p.error = SECOND_ORDER * p.error + SUBNORMAL;
    }
}
