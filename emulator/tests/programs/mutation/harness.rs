//! Launches, random data and comparisons of the programs that are mutated.

use cuda_emulator::{Fault, LaunchError};

use crate::support::{Arg, Bench};

/// Why a run of a program failed.
#[derive(Debug)]
pub enum Failure {
    /// The device reported a fault.
    Fault(Box<Fault>),
    /// A result is not what it should be.
    Wrong(String),
}

/// A generator of random numbers (xorshift).
pub struct Random(pub u64);

impl Random {
    /// An integer from 0 to `limit`, without it.
    pub fn below(&mut self, limit: i32) -> i32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 33) % limit as u64) as i32
    }

    /// Integers within ±`limit`, without it.
    pub fn ints(&mut self, count: usize, limit: i32) -> Vec<i32> {
        (0..count).map(|_| self.below(2 * limit - 1) - limit + 1).collect()
    }

    /// Small integers as floats: their sums and products are exact.
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        self.ints(count, 100).into_iter().map(|value| value as f32).collect()
    }
}

/// Launches a kernel.
pub fn launch(
    bench: &Bench,
    kernel: &str,
    grid: usize,
    block: u32,
    args: &[Arg],
) -> Result<(), Failure> {
    faulty(bench.try_launch(kernel, grid as u32, block, 0, args))
}

/// A launch's fault as a failure.
pub fn faulty(result: Result<(), LaunchError>) -> Result<(), Failure> {
    result.map_err(|error| match error {
        LaunchError::Fault(fault) => Failure::Fault(fault),
        LaunchError::Invalid(invalid) => panic!("{invalid}"),
    })
}

/// Compares what a kernel wrote with what it should have written, element by element.
pub fn compare<T: Copy + Default + PartialEq + std::fmt::Debug>(
    bench: &Bench,
    what: &str,
    address: u64,
    expected: &[T],
) -> Result<(), Failure> {
    let found = bench.download::<T>(address, expected.len());
    let differs = (0..found.len()).find(|&at| found[at] != expected[at]);
    differs.map_or(Ok(()), |at| {
        let (found, expected) = (found[at], expected[at]);
        Err(Failure::Wrong(format!("{what}[{at}] is {found:?}, not {expected:?}")))
    })
}

/// An argument: an address.
pub fn pointer(address: u64) -> Arg {
    Arg::U64(address)
}

/// An argument: a count.
pub fn int(value: usize) -> Arg {
    Arg::I32(value as i32)
}

/// A host sum in f64, as a float.
pub fn sum(values: impl Iterator<Item = f32>) -> f32 {
    values.map(f64::from).sum::<f64>() as f32
}
