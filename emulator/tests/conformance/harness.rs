//! Runs hand-written PTX in one warp and compares what every lane computed with a table.
//!
//! The code of a case finds its inputs in registers: input i is in `w<i>` (64 bits), and its low
//! parts in `r<i>` (32 bits) and `h<i>` (16 bits); `p<i>` is whether the low 32 bits are not
//! zero. The result is what it leaves in `w0`, `r0`, `h0` or `p0`, the first of them that it names.
//! Besides, `rl` is the lane, and `wm`, `ws` and `rs` are addresses of 64 bytes of the lane's own:
//! in global memory, where byte i holds i, and in shared memory, in 64 and 32 bits. What stands
//! before `---` goes outside of the kernel.

use std::fmt::Write;

use cuda_emulator::{Config, Device, FaultKind, Launch, LaunchError, profile};

pub const LANES: usize = 32;
/// Inputs of a lane.
pub const INPUTS: usize = 8;
/// What a result holds where nothing was stored.
pub const UNTOUCHED: u64 = 0x5555_aaaa_5555_aaaa;
/// Bytes of memory that every lane has for itself.
const SLOT: usize = 64;

/// Inputs and the expected result of one lane.
pub type Row<'a> = (&'a [u64], u64);

/// How far an approximation may be off.
#[derive(Clone, Copy)]
pub enum Bound {
    /// Units in the last place of the exact result.
    Ulp(f64),
    Relative(f64),
    Absolute(f64),
}

type PerLane<T> = Box<dyn Fn(usize) -> T>;

/// What is checked.
enum Check {
    /// Independent lanes; the result is exact.
    Rows(Vec<(Vec<u64>, u64)>),
    /// Independent lanes; the result lies near a real number.
    Near(Bound, Vec<(Vec<u64>, f64)>),
    /// A whole warp: inputs and result are functions of the lane.
    Warp(PerLane<Vec<u64>>, PerLane<u64>),
    /// The launch stops with a fault.
    Fault(FaultKind),
    /// The module is refused, with a message that contains this.
    Refused(&'static str),
}

/// One sequence of instructions and what it must do.
pub struct Case {
    code: String,
    check: Check,
}

/// The cases of one opcode.
pub struct Family {
    /// Section of the PTX ISA, in the numbering of its version 9.0.
    pub section: &'static str,
    pub opcode: &'static str,
    pub cases: Vec<Case>,
}

pub fn family(section: &'static str, opcode: &'static str, cases: Vec<Case>) -> Family {
    Family { section, opcode, cases }
}

/// Exact results of independent lanes.
pub fn exact(code: impl Into<String>, rows: &[Row]) -> Case {
    let rows = rows.iter().map(|&(inputs, result)| (inputs.to_vec(), result)).collect();
    Case { code: code.into(), check: Check::Rows(rows) }
}

/// Results that lie within a bound of a function of the first input, a floating-point number.
pub fn near(
    code: impl Into<String>,
    bound: Bound,
    inputs: &[f64],
    exact: impl Fn(f64) -> f64,
) -> Case {
    let code = code.into();
    let format = Format::of(&code);
    let row = |&input: &f64| {
        let bits = format.encode(input);
        (vec![bits], exact(format.decode(bits)))
    };
    let rows = inputs.iter().map(row).collect();
    Case { code, check: Check::Near(bound, rows) }
}

/// Results of a whole warp.
pub fn warp(
    code: impl Into<String>,
    inputs: impl Fn(usize) -> Vec<u64> + 'static,
    expected: impl Fn(usize) -> u64 + 'static,
) -> Case {
    Case { code: code.into(), check: Check::Warp(Box::new(inputs), Box::new(expected)) }
}

/// A launch that must stop.
pub fn fault(code: &str, kind: FaultKind) -> Case {
    Case { code: code.to_owned(), check: Check::Fault(kind) }
}

/// Code that must not load.
pub fn refused(code: &str, message: &'static str) -> Case {
    Case { code: code.to_owned(), check: Check::Refused(message) }
}

/// The bits of a f32.
pub const fn f(value: f32) -> u64 {
    value.to_bits() as u64
}

/// The bits of a f64.
pub const fn d(value: f64) -> u64 {
    value.to_bits()
}

/// The low 32 bits of a signed number.
pub const fn i(value: i32) -> u64 {
    value as u32 as u64
}

/// The low 16 bits of a signed number.
pub const fn s(value: i16) -> u64 {
    value as u16 as u64
}

/// A signed number of 64 bits.
pub const fn l(value: i64) -> u64 {
    value as u64
}

/// The NaN that f32 instructions return.
pub const NAN: u64 = 0x7fff_ffff;
/// The NaN that 16-bit instructions return.
pub const NAN16: u64 = 0x7fff;
pub const INF: u64 = f(f32::INFINITY);

/// Floating-point formats of results.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    F16,
    Bf16,
    F32,
    F64,
}

impl Format {
    fn of(code: &str) -> Self {
        match Output::of(code) {
            Output::Wide => Self::F64,
            Output::Half if code.contains(".bf16") => Self::Bf16,
            Output::Half => Self::F16,
            _ => Self::F32,
        }
    }

    fn encode(self, value: f64) -> u64 {
        match self {
            Self::F16 => ::half::f16::from_f64(value).to_bits().into(),
            Self::Bf16 => ::half::bf16::from_f64(value).to_bits().into(),
            Self::F32 => (value as f32).to_bits().into(),
            Self::F64 => value.to_bits(),
        }
    }

    fn decode(self, bits: u64) -> f64 {
        match self {
            Self::F16 => ::half::f16::from_bits(bits as u16).to_f64(),
            Self::Bf16 => ::half::bf16::from_bits(bits as u16).to_f64(),
            Self::F32 => f32::from_bits(bits as u32).into(),
            Self::F64 => f64::from_bits(bits),
        }
    }

    /// The distance between the numbers of the format around a value.
    fn ulp(self, value: f64) -> f64 {
        let (digits, least) = match self {
            Self::F16 => (10, -14),
            Self::Bf16 => (7, -126),
            Self::F32 => (23, -126),
            Self::F64 => (52, -1022),
        };
        let exponent = value.abs().log2().floor().max(f64::from(least)) as i32;
        2_f64.powi(exponent - digits)
    }
}

/// The register that holds the result.
#[derive(Clone, Copy)]
enum Output {
    Wide,
    Word,
    Half,
    Predicate,
    None,
}

impl Output {
    fn of(code: &str) -> Self {
        let names: Vec<&str> = parts(code).1.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let outputs =
            [("w0", Self::Wide), ("r0", Self::Word), ("h0", Self::Half), ("p0", Self::Predicate)];
        let found = outputs.into_iter().find(|(name, _)| names.contains(name));
        found.map_or(Self::None, |(_, output)| output)
    }

    fn store(self) -> &'static str {
        match self {
            Self::Wide => "st.global.b64 [wo], w0;",
            Self::Word => "cvt.u64.u32 w0, r0; st.global.b64 [wo], w0;",
            Self::Half => "cvt.u64.u16 w0, h0; st.global.b64 [wo], w0;",
            Self::Predicate => "selp.b64 w0, 1, 0, p0; st.global.b64 [wo], w0;",
            Self::None => "",
        }
    }
}

/// What goes outside of the kernel, and what goes into it.
fn parts(code: &str) -> (&str, &str) {
    code.split_once("---").unwrap_or(("", code))
}

/// The module around the code of a case.
fn module(code: &str) -> String {
    let (outside, code) = parts(code);
    let mut inputs = String::new();
    for at in 1..=INPUTS {
        let _ = writeln!(
            inputs,
            "ld.global.b64 w{at}, [wi+{}]; cvt.u32.u64 r{at}, w{at}; cvt.u16.u64 h{at}, w{at}; \
             setp.ne.u32 p{at}, r{at}, 0;",
            8 * (at - 1)
        );
    }
    let store = Output::of(code).store();
    format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n{outside}\n\
         .visible .entry k(.param .u64 inputs, .param .u64 outputs, .param .u64 memory, \
         .param .u32 active) {{\n\
         .reg .b16 h<24>; .reg .b32 r<24>, rl, rs, ra; .reg .b64 w<24>, wi, wo, wm, ws;\n\
         .reg .pred p<24>, pa; .shared .align 32 .b8 tile[2048];\n\
         ld.param.u64 wi, [inputs]; ld.param.u64 wo, [outputs]; ld.param.u64 wm, [memory];\n\
         ld.param.u32 ra, [active]; mov.u32 rl, %laneid;\n\
         mad.wide.u32 wi, rl, 64, wi; mad.wide.u32 wo, rl, 8, wo; mad.wide.u32 wm, rl, 64, wm;\n\
         mov.u32 rs, tile; mad.lo.u32 rs, rl, 64, rs; cvt.u64.u32 ws, rs;\n\
         setp.ge.u32 pa, rl, ra; @pa ret;\n{inputs}{{\n{code}\n}}\n{store}\nret;\n}}\n"
    )
}

/// Runs every case; panics with all that went wrong.
pub fn check(families: &[Family]) {
    let config = Config { threads: 1, watchdog: 1 << 20, ..Config::default() };
    let device = Device::with_config(profile::H100, config);
    let mut wrong = String::new();
    for family in families {
        for case in &family.cases {
            let mentions = case
                .code
                .split([';', '{', '}', ' ', '\n'])
                .any(|word| word.split('.').next() == Some(family.opcode));
            let result = if mentions { case.run(&device) } else { Err("another opcode".into()) };
            if let Err(message) = result {
                let _ = writeln!(wrong, "PTX ISA {}: `{}`: {message}", family.section, case.code);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

impl Case {
    /// The modifiers of each instruction of that name whose effect the case checks.
    pub fn modifiers(&self, opcode: &str) -> Vec<Vec<&str>> {
        let checked = match self.check {
            Check::Fault(FaultKind::Trap) => true,
            Check::Fault(_) | Check::Refused(_) => false,
            _ => true,
        };
        let words = self.code.split([';', '{', '}', ' ', '\n']).filter(|_| checked);
        let names = words.map(|word| word.split('.').collect::<Vec<_>>());
        names.filter(|names| names[0] == opcode).map(|names| names[1..].to_vec()).collect()
    }

    fn run(&self, device: &Device) -> Result<(), String> {
        match &self.check {
            Check::Rows(rows) => self.lanes(device, rows, |&expected, found| {
                (found != expected).then(|| format!("{found:#x} where {expected:#x} is right"))
            }),
            Check::Near(bound, rows) => {
                let format = Format::of(&self.code);
                self.lanes(device, rows, |&expected, found| {
                    let value = format.decode(found);
                    let same = value == expected || (value.is_nan() && expected.is_nan());
                    let error = (value - expected).abs();
                    let fits = same
                        || match *bound {
                            Bound::Ulp(ulps) => error <= ulps * format.ulp(expected),
                            Bound::Relative(most) => error <= most * expected.abs(),
                            Bound::Absolute(most) => error <= most,
                        };
                    (!fits).then(|| format!("{value:e} where {expected:e} is right"))
                })
            }
            Check::Warp(inputs, expected) => {
                let inputs: Vec<Vec<u64>> = (0..LANES).map(inputs).collect();
                let found = self.launch(device, &inputs, LANES)?;
                for (lane, &found) in found.iter().enumerate() {
                    let expected = expected(lane);
                    if found != expected {
                        return Err(format!("lane {lane}: {found:#x}, not {expected:#x}"));
                    }
                }
                Ok(())
            }
            Check::Fault(kind) => match self.try_launch(device, &[], LANES) {
                Ok(Err(LaunchError::Fault(fault))) if fault.kind == *kind => Ok(()),
                Ok(other) => Err(format!("{other:?} where {kind:?} is right")),
                Err(message) => Err(message),
            },
            Check::Refused(message) => match device.load_module(&module(&self.code)) {
                Ok(_) => Err("it was loaded".to_owned()),
                Err(error) if error.to_string().contains(message) => Ok(()),
                Err(error) => Err(format!("refused with `{error}`, not with `{message}`")),
            },
        }
    }

    /// Runs rows in lanes of their own: with all lanes active, and with some of them.
    fn lanes<T>(
        &self,
        device: &Device,
        rows: &[(Vec<u64>, T)],
        differs: impl Fn(&T, u64) -> Option<String>,
    ) -> Result<(), String> {
        for rows in rows.chunks(LANES - 1) {
            let inputs: Vec<_> = rows.iter().cycle().take(LANES).map(|row| row.0.clone()).collect();
            for active in [LANES, rows.len()] {
                let found = self.launch(device, &inputs, active)?;
                for (lane, &found) in found.iter().enumerate() {
                    if lane >= active {
                        if found != UNTOUCHED {
                            return Err(format!("lane {lane} is inactive and stored {found:#x}"));
                        }
                        continue;
                    }
                    let (inputs, expected) = &rows[lane % rows.len()];
                    if let Some(message) = differs(expected, found) {
                        return Err(format!("{inputs:#x?} gives {message}, {active} lanes active"));
                    }
                }
            }
        }
        Ok(())
    }

    fn launch(
        &self,
        device: &Device,
        inputs: &[Vec<u64>],
        active: usize,
    ) -> Result<Vec<u64>, String> {
        self.try_launch(device, inputs, active)?.map_err(|error| error.to_string())
    }

    /// One warp; the outer error is a module that does not load.
    fn try_launch(
        &self,
        device: &Device,
        inputs: &[Vec<u64>],
        active: usize,
    ) -> Result<Result<Vec<u64>, LaunchError>, String> {
        let loaded = device.load_module(&module(&self.code)).map_err(|error| error.to_string())?;
        let function = loaded.function("k").ok_or("no kernel")?;
        let mut image = vec![0_u8; LANES * INPUTS * 8];
        for (lane, values) in inputs.iter().enumerate() {
            for (at, value) in values.iter().enumerate() {
                let place = 8 * (lane * INPUTS + at);
                image[place..place + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        let memory: Vec<u8> = (0..LANES * SLOT).map(|at| (at % SLOT) as u8).collect();
        let untouched = UNTOUCHED.to_le_bytes().repeat(LANES);
        let mut buffers = Vec::new();
        for content in [&image, &untouched, &memory] {
            let address = device.alloc(content.len() as u64).ok_or("no memory")?;
            device.write(address, content).map_err(|error| error.to_string())?;
            buffers.push(address);
        }
        let mut params: Vec<u8> =
            buffers.iter().flat_map(|address| address.to_le_bytes()).collect();
        params.extend((active as u32).to_le_bytes());
        let launch = Launch {
            grid: [1; 3],
            block: [LANES as u32, 1, 1],
            dynamic_shared: 0,
            dynamic_shared_limit: 0,
            params: &params,
            cooperative: false,
        };
        let result = device.launch(&function, &launch);
        let mut out = vec![0; 8 * LANES];
        device.read(buffers[1], &mut out).map_err(|error| error.to_string())?;
        for address in buffers {
            device.free(address).map_err(|error| error.to_string())?;
        }
        device.unload_module(&loaded);
        let word = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|at| bytes[at]));
        Ok(result.map(|()| out.chunks_exact(8).map(word).collect()))
    }
}
