//! Machine code with control fields and source lines, as `nvdisasm -hex -c -gi` prints it.

use std::rc::Rc;

use super::control::Control;

/// What nvdisasm must be asked for: encodings, code alone, lines with those that they are inlined
/// into.
pub const NVDISASM_OPTIONS: [&str; 3] = ["-hex", "-c", "-gi"];

/// A place in a source, of the innermost inlined function first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub file: Rc<str>,
    pub line: usize,
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    pub address: u32,
    /// Its predicate, such as `!P0`.
    pub guard: Option<String>,
    /// With its modifiers, such as `LDG.E.128`.
    pub name: String,
    pub operands: String,
    pub control: Control,
    pub frames: Rc<[Frame]>,
}

/// The code of one kernel.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    pub name: String,
    pub code: Vec<Instruction>,
    /// Labels, and the numbers of the instructions behind them.
    pub labels: Vec<(String, usize)>,
}

impl Instruction {
    /// The name without modifiers.
    pub fn op(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// Whether the name has this modifier.
    pub fn has(&self, modifier: &str) -> bool {
        self.name.split('.').skip(1).any(|word| word == modifier)
    }

    /// The label that a branch names.
    pub fn target(&self) -> Option<&str> {
        self.operands.split_once("`(")?.1.split_once(')').map(|(label, _)| label)
    }

    /// The operands. Commas within brackets do not separate them.
    pub fn arguments(&self) -> Vec<&str> {
        let (mut depth, mut first, mut arguments) = (0, 0, Vec::new());
        for (at, byte) in self.operands.bytes().enumerate() {
            match byte {
                b'[' => depth += 1,
                b']' => depth -= 1,
                b',' if depth == 0 => {
                    arguments.push(self.operands[first..at].trim());
                    first = at + 1;
                }
                _ => {}
            }
        }
        arguments.push(self.operands[first..].trim());
        arguments
    }

    /// Registers of an access's value.
    pub fn width(&self) -> u32 {
        match () {
            () if self.has("128") => 4,
            () if self.has("64") => 2,
            () => 1,
        }
    }

    /// Whether a result comes from global memory.
    pub fn is_global_load(&self) -> bool {
        match self.op() {
            "LDG" | "LD" => true,
            "ATOMG" | "ATOM" => {
                let first = self.arguments().into_iter().find(|argument| *argument != "PT");
                first != Some("RZ")
            }
            _ => false,
        }
    }

    /// The registers that it writes, and those that its other operands name: of a pair or a quad
    /// the first alone.
    pub fn registers(&self) -> (Vec<u32>, Vec<u32>) {
        const NO_RESULT: [&str; 8] = ["STG", "STS", "ST", "RED", "LDGSTS", "BAR", "BRA", "FCHK"];
        let arguments = self.arguments();
        let (result, others) = if NO_RESULT.contains(&self.op()) {
            (None, arguments.as_slice())
        } else {
            let skipped = arguments.iter().take_while(|argument| is_predicate(argument)).count();
            match arguments[skipped..].split_first() {
                Some((result, others)) => (Some(*result), others),
                None => (None, [].as_slice()),
            }
        };
        let width = match self.op() {
            "LDG" | "LDS" | "LD" => self.width(),
            "LDSM" if self.has("4") => 4,
            "HMMA" => 4,
            "CS2R" => 2,
            _ if self.has("WIDE") => 2,
            _ => 1,
        };
        let first = result.and_then(|result| numbers(result).next());
        let written = first.map_or(0..0, |first| first..first + width).collect();
        let read = others.iter().flat_map(|argument| numbers(argument)).collect();
        (written, read)
    }

    /// The address of a global access as it is written, such as `R2.64`, its base register, and the
    /// bytes that are added.
    pub fn address(&self) -> Option<(&str, Option<u32>, i64)> {
        // The last brackets: a descriptor stands in some before it.
        let inside = self.operands.rsplit_once('[')?.1.split_once(']')?.0;
        let (base, offset) = match inside.rfind('+') {
            Some(plus) if inside[plus + 1..].trim_start_matches('-').starts_with("0x") => {
                (&inside[..plus], hexadecimal(&inside[plus + 1..]))
            }
            _ => (inside, 0),
        };
        Some((base, numbers(base).next(), offset))
    }
}

fn hexadecimal(text: &str) -> i64 {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    sign * digits.strip_prefix("0x").and_then(|d| i64::from_str_radix(d, 16).ok()).unwrap_or(0)
}

/// Such as `P0`, `!P3`, `UP1` and `PT`.
fn is_predicate(argument: &str) -> bool {
    let name = argument.trim_start_matches('!');
    let name = name.strip_prefix('U').unwrap_or(name);
    name.strip_prefix('P').is_some_and(|rest| {
        rest == "T" || rest.len() == 1 && rest.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// The numbers of the registers in an operand.
fn numbers(argument: &str) -> impl Iterator<Item = u32> {
    let words = argument.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter_map(|word| word.strip_prefix('R')?.parse().ok())
}

/// All kernels of a disassembled file. Refuses code without encodings, or without line numbers.
pub fn read(text: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut files: Vec<Rc<str>> = Vec::new();
    let (mut frames, mut fresh) = (Vec::new(), true);
    let mut shared: Rc<[Frame]> = Rc::from([]);
    let mut pending: Option<Instruction> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            kernels.push(Kernel { name: name.to_owned(), ..Kernel::default() });
            (frames, fresh, shared, pending) = (Vec::new(), true, Rc::from([]), None);
            continue;
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L_")) {
            kernel.labels.push((label.to_owned(), kernel.code.len()));
        } else if let Some(frame) = frame(line, &mut files) {
            if fresh {
                (frames, fresh) = (Vec::new(), false);
            }
            frames.push(frame);
            shared = Rc::from(frames.as_slice());
        } else if let Some((address, text)) = first_line(line) {
            if pending.is_some() {
                return Err(format!(
                    "{} before {address:#x}: an instruction without its second word, as \
                     `nvdisasm {}` prints it",
                    kernel.name,
                    NVDISASM_OPTIONS.join(" ")
                ));
            }
            pending = Some(instruction(address, text, &shared));
            fresh = true;
        } else if let (Some(high), Some(mut instruction)) =
            (word(line), pending.take_if(|_| word(line).is_some()))
        {
            instruction.control = Control::of(high);
            kernel.code.push(instruction);
        }
    }
    for kernel in &kernels {
        if kernel.code.is_empty() {
            return Err(format!("{}: no encodings in the disassembly", kernel.name));
        }
        if kernel.code.iter().all(|instruction| instruction.frames.is_empty()) {
            return Err(format!(
                "{}: no line numbers; ptxas must have --generate-line-info",
                kernel.name
            ));
        }
    }
    Ok(kernels)
}

/// One line such as `//## File "a.cuh", line 7 inlined at "b.cuh", line 9`.
fn frame(line: &str, files: &mut Vec<Rc<str>>) -> Option<Frame> {
    let (file, rest) = line.split_once("//## File \"")?.1.split_once("\", line ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let line = digits.parse().ok()?;
    let known = files.iter().find(|known| &***known == file).cloned();
    let file = known.unwrap_or_else(|| {
        files.push(Rc::from(file));
        Rc::from(file)
    });
    Some(Frame { file, line })
}

/// Address and text of a line such as `/*0180*/  @!P0 BRA `(.L_x_2) ;  /* 0x…, the first word */`.
fn first_line(line: &str) -> Option<(u32, &str)> {
    let (address, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let (text, _) = rest.rsplit_once("/* 0x")?;
    Some((address, text.trim().trim_end_matches(';').trim_matches(['{', '}', ' ', '\t'])))
}

/// A line that has an encoding's second word alone.
fn word(line: &str) -> Option<u64> {
    let digits = line.trim().strip_prefix("/* 0x")?.strip_suffix("*/")?.trim();
    u64::from_str_radix(digits, 16).ok()
}

fn instruction(address: u32, text: &str, frames: &Rc<[Frame]>) -> Instruction {
    let split = |text: &str| {
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        (word.to_owned(), rest.trim().to_owned())
    };
    let (mut name, mut operands) = split(text);
    let guard = name.strip_prefix('@').map(str::to_owned);
    if guard.is_some() {
        (name, operands) = split(&operands);
    }
    let (control, frames) = (Control::of(0), Rc::clone(frames));
    Instruction { address, guard, name, operands, control, frames }
}
