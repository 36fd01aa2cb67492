//! Compiles mutants, runs them on the emulated device, and reports what became of them.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use cuda_emulator::Config;
use cuda_emulator::client::Emulator;
use fused_dora::{Dtype, Kernels, open_device};
use fused_dora_testkit::println;
use fused_dora_testkit::trials::{
    Outcome, Trial, trials, trials_of_balance, trials_of_packed_weights,
};
use half::bf16;

use super::sources::{Sources, emptied};
use fused_dora_mutants::{Mutant, Verdict};

/// Enough for any of the trials, and little for a kernel that does not end.
const WATCHDOG: u64 = 1 << 22;

/// What reads packed weights, which no other kernels have.
const PACKED: [&str; 2] = ["common/tile/packed_weight.cuh", "common/tile/code4_gemm.cuh"];

/// One dtype's kernels as they stand, the same with nothing in them, and its trials.
struct Typed {
    dtype: Dtype,
    /// Of packed weights.
    packed: bool,
    /// The order of blocks and warps, of the dtype's own.
    schedule: u64,
    whole: HashMap<String, String>,
    empty: HashMap<String, String>,
    trials: Vec<Trial>,
}

impl Typed {
    fn new(dtype: Dtype, packed: bool, sources: &Sources, trials: Vec<Trial>) -> Self {
        let compile = |name: &str| {
            let ptx = sources.compile(name, dtype, packed, None);
            let ptx = ptx.expect("a kernel file as it stands");
            (name.to_owned(), ptx)
        };
        let whole: HashMap<_, _> = sources.kernels().map(compile).collect();
        let empty = whole.iter().map(|(name, ptx)| (name.clone(), emptied(ptx))).collect();
        let schedule = dtype as u64;
        Self { dtype, packed, schedule, whole, empty, trials }
    }

    fn trials_of(&self, file: &str) -> impl Iterator<Item = &Trial> {
        self.trials.iter().filter(move |trial| trial.about.contains(&file))
    }

    /// All modules, with this PTX for a file, and nothing in those that its trials do not launch.
    fn images<'a>(&'a self, file: &'a str, ptx: &'a str) -> Vec<(&'a str, Option<&'a str>)> {
        let launched = |name: &str| self.trials_of(file).any(|trial| trial.files.contains(&name));
        let image = |name: &'a String| match name.as_str() {
            name if name == file => (name, Some(ptx)),
            name if launched(name) => (name, Some(&self.whole[name][..])),
            name => (name, Some(&self.empty[name][..])),
        };
        self.whole.keys().map(image).collect()
    }
}

/// What mutants are run with.
pub struct Laboratory {
    sources: Sources,
    /// The types whose code differs: tensor cores, FMA units, what only f16 has, and packed weights.
    typed: [Typed; 4],
    /// A process has one emulated device.
    emulator: Mutex<Emulator>,
}

thread_local! {
    /// Whether a panic of this thread is a verdict, and not worth a word.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

impl Laboratory {
    /// Compiles the kernels as they stand, and evaluates the trials' references.
    pub fn new(emulator: Emulator, sources: Sources, seed: u64) -> Self {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
        let typed = thread::scope(|scope| {
            let bf16 =
                scope.spawn(|| Typed::new(Dtype::Bf16, false, &sources, trials::<bf16>(seed)));
            let f32 = Typed::new(Dtype::F32, false, &sources, trials::<f32>(seed));
            let f16 = Typed::new(Dtype::F16, false, &sources, trials_of_balance(seed));
            let packed = trials_of_packed_weights(seed);
            let packed = Typed::new(Dtype::Bf16, true, &sources, packed);
            [bf16.join().expect("sources that compile"), f32, f16, packed]
        });
        Self { sources, typed, emulator: Mutex::new(emulator) }
    }

    /// The sources.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// What becomes of the kernels as they stand.
    pub fn originals(&self) -> Verdict {
        for file in self.sources.kernels() {
            let launched = self.typed.iter().any(|typed| typed.trials_of(file).next().is_some());
            assert!(launched, "no trial runs {file}: add one in testkit/src/trials.rs");
        }
        let whole = |typed: &Typed| {
            let images = typed.whole.iter().map(|(name, ptx)| (name.as_str(), Some(ptx.as_str())));
            self.run(typed, &images.collect::<Vec<_>>(), &typed.trials.iter().collect::<Vec<_>>())
        };
        first_noticed(self.typed.iter().map(whole))
    }

    /// What becomes of a mutant: each kernel file that has the changed line is changed in turn, the
    /// shortest first, which take the least time.
    pub fn verdict(&self, mutant: &Mutant) -> Verdict {
        let files = self.sources.kernels().filter(|file| self.sources.includes(file, &mutant.file));
        let ways = files.flat_map(|file| self.typed.iter().map(move |typed| (file, typed)));
        let ways = ways.filter(|(file, typed)| {
            typed.packed == PACKED.contains(&mutant.file.as_str())
                && typed.trials_of(file).next().is_some()
        });
        let mut ways: Vec<_> = ways.collect();
        ways.sort_by_key(|(file, typed)| typed.whole[*file].len());
        first_noticed(ways.into_iter().map(|(file, typed)| {
            let change = Some((mutant.file.as_str(), mutant.text.as_str()));
            match self.sources.compile(file, typed.dtype, typed.packed, change) {
                Ok(ptx) if ptx == typed.whole[file] => Verdict::Survived,
                Ok(ptx) => {
                    let trials: Vec<&Trial> = typed.trials_of(file).collect();
                    self.run(typed, &typed.images(file, &ptx), &trials)
                }
                // Nothing that anyone noticed by running it.
                Err(error) => {
                    println!("{}:{}: {error}", mutant.file, mutant.line);
                    Verdict::Survived
                }
            }
        }))
    }

    /// Runs trials with these modules, until something is noticed.
    fn run(&self, typed: &Typed, images: &[(&str, Option<&str>)], trials: &[&Trial]) -> Verdict {
        let emulator = self.emulator.lock().unwrap_or_else(PoisonError::into_inner);
        // Forgets the last report.
        emulator.reset();
        let config = Config {
            seed: typed.schedule,
            sanitizer: true,
            watchdog: WATCHDOG,
            ..Config::default()
        };
        emulator.configure(&config).expect("no context is open");
        let context = open_device(0).expect("the emulated device");
        let kernels = Kernels::load_with(&context, images).expect("kernels that load");
        let kernels = Arc::new(kernels);
        let verdict = |trial: &Trial| match quietly(|| (trial.run)(&kernels)) {
            Ok(()) => Verdict::Survived,
            Err(wrong) => match emulator.last_fault() {
                Some(report) => Verdict::Reported(first_words(&report)),
                None => Verdict::Wrong(wrong),
            },
        };
        first_noticed(trials.iter().copied().map(verdict))
    }
}

/// Runs something whose panics are failures like others.
fn quietly(run: impl FnOnce() -> Outcome) -> Outcome {
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned())
    })
}

/// The kind of a fault and its place, of a whole report.
fn first_words(report: &str) -> String {
    report.split(" (PTX line").next().unwrap_or(report).to_owned()
}

/// The first verdict other than that nothing was noticed; the others are not even computed.
fn first_noticed(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let mut noticed = verdicts.filter(|verdict| *verdict != Verdict::Survived);
    noticed.next().unwrap_or(Verdict::Survived)
}
