//! Device code as nvdisasm prints it: kernels, their loops, and what is in them.

/// The code of one kernel.
#[derive(Debug, Default)]
pub struct Code {
    pub kernel: String,
    instructions: Vec<Instruction>,
    /// Where each label stands.
    labels: Vec<(String, usize)>,
}

#[derive(Debug)]
struct Instruction {
    /// With its modifiers, such as `LDGSTS.E.BYPASS.128`.
    name: String,
    /// The label that a branch goes to.
    target: Option<String>,
}

/// What a stretch of code has of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    pub instructions: usize,
    pub hmma: usize,
    pub ldsm: usize,
    /// Asynchronous copies.
    pub ldgsts: usize,
    /// Global loads, stores and asynchronous copies that do not move 16 bytes.
    pub narrow: usize,
    /// Loads and stores of local memory.
    pub local: usize,
    /// Permutations of bytes.
    pub prmt: usize,
    /// Conversions of pairs of f32 to 16 bit.
    pub f2fp: usize,
}

impl Mix {
    /// The tensor-core products' share of the instructions.
    pub fn hmma_share(&self) -> f64 {
        self.hmma as f64 / self.instructions.max(1) as f64
    }

    /// Whether it looks codes of 4 bits up as `kernels/common/tile/code4_gemm.cuh` does: by twelve
    /// permutations for each of four chunks, and eight for a table, which eight conversions make.
    pub fn decodes_ahead(&self) -> bool {
        self.ldgsts > 0 && self.prmt >= 4 * 12 + 8 && self.f2fp == 8
    }

    /// Loads of fragments per tensor-core product.
    pub fn ldsm_per_hmma(&self) -> f64 {
        self.ldsm as f64 / self.hmma.max(1) as f64
    }
}

/// The kernels of a disassembled file.
pub fn read(text: &str) -> Vec<Code> {
    let mut kernels: Vec<Code> = Vec::new();
    for line in text.lines() {
        if let Some(kernel) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            kernels.push(Code { kernel: kernel.to_owned(), ..Code::default() });
        }
        let Some(code) = kernels.last_mut() else { continue };
        if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L_")) {
            code.labels.push((label.to_owned(), code.instructions.len()));
        } else if let Some(instruction) = instruction(line) {
            code.instructions.push(instruction);
        }
    }
    kernels
}

/// One line such as `/*0180*/  @!P0 BRA `(.L_x_2) ;`.
fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let (text, _) = rest.split_once(';')?;
    let mut words = text.trim_start_matches(['{', ' ', '\t']).split_whitespace();
    let name = words.find(|word| !word.starts_with('@'))?.to_owned();
    let target = text.split_once("`(").and_then(|(_, rest)| rest.split_once(')'));
    let target = target.filter(|_| name.starts_with("BRA")).map(|(label, _)| label.to_owned());
    Some(Instruction { name, target })
}

impl Code {
    /// What the whole kernel has.
    pub fn mix(&self) -> Mix {
        self.mix_of(0, self.instructions.len())
    }

    /// The main loops: of the loops with tensor-core products and no such loop inside, those that
    /// have at least half as many as the one with most. The largest share of them comes first.
    pub fn main_loops(&self) -> Vec<Mix> {
        let loops = self.loops();
        let mixes: Vec<_> = loops
            .iter()
            .map(|&(first, end)| ((first, end), self.mix_of(first, end)))
            .filter(|(_, mix)| mix.hmma > 0)
            .collect();
        let innermost = |&&((first, end), _): &&((usize, usize), Mix)| {
            let inside = |&((f, e), _): &((usize, usize), Mix)| {
                (f, e) != (first, end) && f >= first && e <= end
            };
            !mixes.iter().any(inside)
        };
        let mut mixes: Vec<Mix> = mixes.iter().filter(innermost).map(|(_, mix)| *mix).collect();
        let most = mixes.iter().map(|mix| mix.hmma).max().unwrap_or(0);
        mixes.retain(|mix| 2 * mix.hmma >= most);
        mixes.sort_by(|a, b| b.hmma_share().total_cmp(&a.hmma_share()));
        mixes
    }

    /// Each loop once, from the target of a backward branch to the last branch there.
    fn loops(&self) -> Vec<(usize, usize)> {
        let mut loops: Vec<(usize, usize)> = Vec::new();
        for (at, instruction) in self.instructions.iter().enumerate() {
            let Some(target) = &instruction.target else { continue };
            let first = self.labels.iter().find(|(label, _)| label == target).map(|found| found.1);
            let Some(first) = first.filter(|&first| first < at) else { continue };
            match loops.iter_mut().find(|known| known.0 == first) {
                Some(known) => known.1 = at + 1,
                None => loops.push((first, at + 1)),
            }
        }
        loops
    }

    fn mix_of(&self, first: usize, end: usize) -> Mix {
        let mut mix = Mix::default();
        for Instruction { name, .. } in &self.instructions[first..end] {
            let (kind, modifiers) = name.split_once('.').unwrap_or((name, ""));
            mix.instructions += 1;
            match kind {
                "HMMA" => mix.hmma += 1,
                "LDSM" => mix.ldsm += 1,
                "LDL" | "STL" => mix.local += 1,
                "PRMT" => mix.prmt += 1,
                "F2FP" => mix.f2fp += 1,
                _ => {}
            }
            mix.ldgsts += usize::from(kind == "LDGSTS");
            let global = matches!(kind, "LDGSTS" | "LDG" | "STG" | "LD" | "ST");
            mix.narrow += usize::from(global && !modifiers.split('.').any(|word| word == "128"));
        }
        mix
    }
}
