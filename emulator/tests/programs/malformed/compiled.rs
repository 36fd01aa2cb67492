//! Damaged modules of compilers: what NVRTC emits for a program with a bit of everything, with
//! statements, operands, functions and declarations lost, doubled, exchanged or changed. Nothing
//! panics or hangs. The damage is random, within a bounded time; failures show the text.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cuda_emulator::{Device, LaunchError};

use super::damage::{Random, STRANGE, TYPES, device, survive, tokens};
use crate::support;

/// How long each test looks for trouble.
const TIME: Duration = Duration::from_secs(3);

/// The program as the compiler emits it, for running and for debugging.
fn programs() -> [String; 2] {
    let source = include_str!("program.cu");
    [&[][..], &["--device-debug"]]
        .map(|options| support::compile_for("compute_80", options, source))
}

/// Repeats the damage that another run did.
const SEED: &str = "CUDA_EMULATOR_TEST_SEED";

/// Damages the programs again and again, and counts the texts that load all the same.
fn damage_again_and_again(change: fn(&str, &mut Random) -> String) {
    let device = device();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let mut random = Random(given.unwrap_or(time.as_nanos() as u64) | 1);
    println!("{SEED}={}", random.0);
    let (programs, start) = (programs(), Instant::now());
    let (mut rounds, mut loaded) = (0, 0);
    while start.elapsed() < TIME {
        let text = change(&programs[rounds % 2], &mut random);
        loaded += survive(&device, &text).len();
        rounds += 1;
    }
    println!("{loaded} of {rounds} texts load");
    assert!(loaded > 0 && loaded < rounds, "{loaded} of {rounds} texts load");
}

#[test]
fn the_programs_run() {
    let device: Device = device();
    for text in programs() {
        let ended = survive(&device, &text);
        assert!(matches!(ended[..], [Ok(())]), "{ended:?}");
    }
}

/// One to three changes of whole lines: statements, labels, declarations.
#[test]
fn lines() {
    damage_again_and_again(|text, random| {
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        for _ in 0..=random.below(3) {
            let (at, other) = (random.below(lines.len()), random.below(lines.len()));
            match random.below(4) {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[other]),
                2 => lines.swap(at, other),
                _ => lines[at] = lines[other],
            }
        }
        lines.concat()
    });
}

/// One to three tokens that become another of their kind: registers, names, types, numbers.
#[test]
fn operands() {
    damage_again_and_again(|text, random| {
        let mut parts = tokens(text);
        let kind = |part: &str| part.chars().next().map(|c| (c.is_alphanumeric(), c));
        for _ in 0..=random.below(3) {
            let at = random.below(parts.len());
            let alike: Vec<&str> =
                parts.iter().copied().filter(|part| kind(part) == kind(parts[at])).collect();
            parts[at] = match random.below(3) {
                0 if TYPES.contains(&parts[at]) => TYPES[random.below(TYPES.len())],
                0 => STRANGE[random.below(STRANGE.len())],
                _ => alike[random.below(alike.len())],
            };
        }
        parts.concat()
    });
}

/// A block in braces, a list in parentheses, or what is between two marks, that moves elsewhere.
#[test]
fn blocks() {
    damage_again_and_again(|text, random| {
        let parts = tokens(text);
        let marks = ["{", "}", "(", ")", ";", ","];
        let places: Vec<usize> =
            (0..parts.len()).filter(|&at| marks.contains(&parts[at])).collect();
        let mut draw = || {
            let first = random.below(places.len() - 8);
            (places[first], places[first + 1 + random.below(7)])
        };
        let ((start, end), (from, to)) = (draw(), draw());
        let taken = parts[from..to].concat();
        match random.below(3) {
            0 => [parts[..start].concat(), parts[end..].concat()].concat(),
            1 => [parts[..start].concat(), taken, parts[end..].concat()].concat(),
            _ => [parts[..start].concat(), taken, parts[start..].concat()].concat(),
        }
    });
}

/// Cuts at any place, as a transfer that breaks off.
#[test]
fn ends() {
    let device = device();
    for text in programs() {
        let step = text.len() / 400 + 1;
        for end in (0..text.len()).step_by(step) {
            let ended = survive(&device, &text[..end]);
            assert!(ended.iter().all(|end| !matches!(end, Err(LaunchError::Invalid(_)))));
        }
    }
}
