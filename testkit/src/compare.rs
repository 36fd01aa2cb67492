//! Comparison of what a kernel computed with what it should have computed.

use std::fmt;

use fused_dora::Dtype;
use fused_dora::reference::{self, Case, CaseError, Results};

/// How far a run of `case` in `dtype` may be from the float64 results of the case as it stands.
///
/// Where a value of the case is not representable in the dtype, what rounding it does to the
/// results is allowed on top of the bounds.
pub fn bounds(case: &Case, dtype: Dtype) -> Result<Results, CaseError> {
    let rounded = case.rounded(dtype);
    let mut bounds = reference::bounds(&rounded, dtype)?;
    if rounded != *case {
        let (given, rounded) = (reference::evaluate(case)?, reference::evaluate(&rounded)?);
        let pairs = given.tensors().into_iter().zip(rounded.tensors());
        for (bounds, (given, rounded)) in bounds.tensors_mut().into_iter().zip(pairs) {
            for (bound, (given, rounded)) in bounds.iter_mut().zip(given.iter().zip(rounded)) {
                *bound += (given - rounded).abs();
            }
        }
    }
    Ok(bounds)
}

/// What is wrong with the results of a run of `case` in `dtype`, a line or more for each tensor that
/// is: they are compared with `expected` values where there are some, and with the reference's
/// elsewhere.
pub fn failures(
    case: &Case,
    dtype: Dtype,
    found: &[Vec<f32>; 6],
    expected: [Option<&[f64]>; 6],
) -> Result<Vec<String>, CaseError> {
    let (reference, bounds) = (reference::evaluate(case)?, bounds(case, dtype)?);
    let shapes = case.result_shapes();
    let compared = (0..found.len()).map(|i| {
        let expected = expected[i].unwrap_or(reference.tensors()[i]);
        let (name, bounds) = (Results::NAMES[i], bounds.tensors()[i]);
        Comparison::new(name, &shapes[i], dtype, &found[i], expected, bounds)
    });
    Ok(compared.filter(|comparison| !comparison.ok()).map(|wrong| wrong.to_string()).collect())
}

/// How many mismatches a failing comparison prints.
const SHOWN: usize = 5;

/// One element, and how far it may be off.
#[derive(Clone, Debug)]
pub struct Element {
    /// The element's index, one number per dimension.
    pub index: Vec<usize>,
    /// What was computed.
    pub found: f64,
    /// What should have been.
    pub expected: f64,
    /// The largest error allowed.
    pub bound: f64,
}

impl Element {
    /// |error| / bound: at most 1 where all is well, infinite for NaN.
    fn ratio(&self) -> f64 {
        let error = (self.found - self.expected).abs();
        if error == 0.0 {
            0.0
        } else if error.is_nan() || self.bound.is_nan() {
            f64::INFINITY
        } else {
            error / self.bound
        }
    }
}

/// One tensor compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    /// ‖found − expected‖ / ‖expected‖, in the Frobenius norm.
    pub frobenius: f64,
    /// The element that takes up most of its bound; `None` for an empty tensor.
    pub worst: Option<Element>,
    failures: usize,
    first: Vec<Element>,
    length: Option<(usize, usize)>,
}

impl Comparison {
    /// Compares a tensor element by element: |found − expected| ≤ bound, and no NaN.
    pub fn new(
        name: &str,
        shape: &[usize],
        dtype: Dtype,
        found: &[f32],
        expected: &[f64],
        bounds: &[f64],
    ) -> Self {
        let count = shape.iter().product();
        let mut result = Self {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype,
            frobenius: 0.0,
            worst: None,
            failures: 0,
            first: Vec::new(),
            length: None,
        };
        for length in [found.len(), expected.len(), bounds.len()] {
            if length != count {
                result.length = Some((length, count));
                return result;
            }
        }
        let (mut worst_ratio, mut errors, mut squares) = (-1.0, 0.0, 0.0);
        for (flat, &found) in found.iter().enumerate() {
            let element = Element {
                index: unravel(flat, shape),
                found: f64::from(found),
                expected: expected[flat],
                bound: bounds[flat],
            };
            errors += (element.found - element.expected).powi(2);
            squares += element.expected.powi(2);
            let ratio = element.ratio();
            if ratio > 1.0 {
                result.failures += 1;
                if result.first.len() < SHOWN {
                    result.first.push(element.clone());
                }
            }
            if ratio > worst_ratio {
                worst_ratio = ratio;
                result.worst = Some(element);
            }
        }
        result.frobenius = if errors == 0.0 { 0.0 } else { (errors / squares).sqrt() };
        result
    }

    /// Whether every element is within its bound.
    pub fn ok(&self) -> bool {
        self.failures == 0 && self.length.is_none()
    }
}

impl fmt::Display for Comparison {
    /// One line; when the comparison fails, its first mismatches follow, a line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, shape, dtype, frobenius, .. } = self;
        let shape = format!("{shape:?}");
        write!(f, "{name:<14} {shape:<12} {dtype}  ")?;
        if let Some((length, count)) = self.length {
            return write!(f, "FAIL: {length} elements where the shape has {count}");
        }
        write!(f, "relative Frobenius error {frobenius:.2e}  ")?;
        match &self.worst {
            None => write!(f, "empty  ")?,
            Some(worst) => {
                let (ratio, index) = (worst.ratio(), &worst.index);
                write!(f, "worst element {ratio:.3} of its bound at {index:?}  ")?;
            }
        }
        if self.ok() {
            return write!(f, "ok");
        }
        let count: usize = self.shape.iter().product();
        write!(f, "FAIL: {} of {count} elements beyond |error| <= bound", self.failures)?;
        for Element { index, found, expected, bound } in &self.first {
            let error = (found - expected).abs();
            write!(
                f,
                "\n    at {index:?}: found {found:e}, expected {expected:e}, \
                 |error| {error:.3e} > bound {bound:.3e}"
            )?;
        }
        Ok(())
    }
}

fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &extent) in index.iter_mut().zip(shape).rev() {
        *i = flat % extent;
        flat /= extent;
    }
    index
}
