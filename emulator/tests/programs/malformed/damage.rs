//! What the tests of damaged modules share: the device, and the parts of texts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use cuda_emulator::{Config, Device, Launch, LaunchError, Profile, profile};

/// The longest that loading and launching one text may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tokens that may take the place of others.
pub const STRANGE: [&str; 40] = [
    "0",
    "1",
    "-1",
    "32",
    "64",
    "255",
    "65536",
    "2147483647",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "99999999999999999999999",
    "0x",
    "0f12",
    "0b2",
    "1.5e",
    "0d7FF0000000000000",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "\"",
    "/*",
    "//",
    "@",
    "!",
    "|",
    "_",
    "%tid.x",
    "%r99999",
    ".param",
    ".shared",
    ".reg",
    ".align",
    ".v4",
    ".nothing",
    "é",
];

pub const TYPES: [&str; 22] = [
    ".pred", ".b8", ".b16", ".b32", ".b64", ".u8", ".u16", ".u32", ".u64", ".s8", ".s16", ".s32",
    ".s64", ".f16", ".f16x2", ".bf16", ".bf16x2", ".tf32", ".f32", ".f64", ".u16x2", ".s16x2",
];

/// A device of which no text gets much memory or time.
pub fn device() -> Device {
    let config = Config { threads: 1, watchdog: 1 << 15, ..Config::default() };
    let profile = Profile { total_memory: 16 << 20, ..profile::H100 };
    Device::with_config(profile, config)
}

/// [`load_and_launch`], in which a panic, or taking long, is a failure.
pub fn survive(device: &Device, text: &str) -> Vec<Result<(), LaunchError>> {
    let start = Instant::now();
    let results = catch_unwind(AssertUnwindSafe(|| load_and_launch(device, text)));
    let took = start.elapsed();
    let results = results.unwrap_or_else(|_| panic!("a panic comes of this text:\n{text}"));
    assert!(took < PATIENCE, "{took:?} went by with this text:\n{text}");
    results
}

/// Loads a text and launches its kernels on a buffer: how each of them ended.
pub fn load_and_launch(device: &Device, text: &str) -> Vec<Result<(), LaunchError>> {
    let Ok(module) = device.load_module(text) else { return Vec::new() };
    let buffer = device.alloc(1 << 12).expect("memory");
    device.fill8(buffer, 0, 1 << 12).expect("the whole buffer");
    let mut results = Vec::new();
    for name in module.function_names() {
        let function = module.function(name).expect("a kernel of the module");
        let mut params = buffer.to_le_bytes().to_vec();
        params.resize(function.param_bytes(), 3);
        let launch = Launch {
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared: 64,
            dynamic_shared_limit: 1024,
            params: &params,
            cooperative: false,
        };
        results.push(device.launch(&function, &launch));
    }
    device.free(buffer).expect("the buffer is live");
    device.unload_module(&module);
    results
}

/// Splits a text so that the parts make it up again: words, blanks and single marks.
pub fn tokens(text: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        c if c.is_alphanumeric() || matches!(c, '_' | '%' | '$' | '.') => 0,
        c if c.is_whitespace() => 1,
        _ => 2,
    };
    let mut tokens = Vec::new();
    let mut start = 0;
    let mut last = None;
    for (at, c) in text.char_indices() {
        let dot = c == '.' && !text[..at].ends_with(|c: char| c.is_ascii_digit());
        if last.is_some_and(|last| last != kind(c) || last == 2) || dot {
            tokens.push(&text[start..at]);
            start = at;
        }
        last = Some(kind(c));
    }
    tokens.push(&text[start..]);
    tokens
}

/// A generator of random numbers (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
