//! Video instructions: operations on words, halves and bytes, with a second operation.

use super::decoder::{Decoder, NONE, Result};
use super::logic::clamps;
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

/// The part that a suffix of an operand names.
const PARTS: [(&str, Subword); 6] = [
    ("b0", Subword::Byte(0)),
    ("b1", Subword::Byte(1)),
    ("b2", Subword::Byte(2)),
    ("b3", Subword::Byte(3)),
    ("h0", Subword::Half(0)),
    ("h1", Subword::Half(1)),
];

const RELATIONS: [(&str, Relation); 6] = [
    ("eq", Relation::Eq),
    ("ne", Relation::Ne),
    ("lt", Relation::Lt),
    ("le", Relation::Le),
    ("gt", Relation::Gt),
    ("ge", Relation::Ge),
];

/// An operand without the part that it names, and the part.
fn split(operand: &Operand) -> (Operand, Subword) {
    let part = |name: &str| {
        let (register, suffix) = name.rsplit_once('.')?;
        let (_, part) = PARTS.iter().find(|(known, _)| *known == suffix)?;
        Some((register.to_owned(), *part))
    };
    match operand {
        Operand::Name(name) => match part(name) {
            Some((register, part)) => (Operand::Name(register), part),
            None => (operand.clone(), Subword::Word),
        },
        _ => (operand.clone(), Subword::Word),
    }
}

impl Decoder<'_> {
    /// Two or four operations side by side in 32 bits, stored over the last operand or added to it.
    pub(super) fn video(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        ops: &[Video],
        bytes: bool,
    ) -> Result<()> {
        let op = modifiers.of_opcode(ops);
        let (saturate, accumulate) = (modifiers.take("sat"), modifiers.take("add"));
        let [d, a, b] = [(); 3].map(|()| modifiers.ty().unwrap_or(Type::U32));
        let signs = [d, a, b].map(Type::is_signed);
        self.side_by_side(instruction, Scalar::Video { op, bytes, signs, saturate, accumulate })
    }

    /// Two or four comparisons side by side.
    pub(super) fn video_compare(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let bytes = modifiers.of_opcode(&[false, true]);
        let accumulate = modifiers.take("add");
        let op = Video::Compare(modifiers.pick(&RELATIONS).unwrap_or(Relation::Eq));
        let [a, b] = [(); 2].map(|()| modifiers.ty().unwrap_or(Type::U32).is_signed());
        let signs = [false, a, b];
        let video = Scalar::Video { op, bytes, signs, saturate: false, accumulate };
        self.side_by_side(instruction, video)
    }

    fn side_by_side(&mut self, instruction: &InstructionTree, scalar: Scalar) -> Result<()> {
        let u32s = Type::U32;
        let (target, sources) = self.operands(&instruction.operands, &[u32s; 3], u32s)?;
        if instruction.operands[1..].iter().any(|o| matches!(o, Operand::Integer(_))) {
            return self.fail("constants are not supported here");
        }
        self.emit_scalar(scalar, target, Target::Nowhere, sources);
        Ok(())
    }

    /// One operation on parts of words: `d, a, b`, or with a second operation `d, a, b, c`, or with
    /// a part of c that is replaced `d.part, a, b, c`.
    pub(super) fn video_scalar(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        ops: &[Video],
    ) -> Result<()> {
        let second = modifiers.pick(&[
            ("add", VideoSecond::Add),
            ("min", VideoSecond::Min),
            ("max", VideoSecond::Max),
        ]);
        let saturate = modifiers.take("sat");
        let op = match modifiers.of_opcode(ops) {
            Video::ShiftLeft { .. } => Video::ShiftLeft { clamp: clamps(modifiers) },
            Video::ShiftRight { .. } => Video::ShiftRight { clamp: clamps(modifiers) },
            Video::Compare(_) => Video::Compare(modifiers.pick(&RELATIONS).unwrap_or(Relation::Eq)),
            op => op,
        };
        // The result of a comparison is unsigned and has no type.
        let result = match op {
            Video::Compare(_) => false,
            _ => self.required_type(modifiers)?.is_signed(),
        };
        let [a_type, b_type] = [self.required_type(modifiers)?, self.required_type(modifiers)?];
        let signs = [result, a_type.is_signed(), b_type.is_signed()];
        let (d, part) = match instruction.operands.first() {
            Some(d) => split(d),
            None => return self.fail("the instruction has no operands"),
        };
        if second.is_some() && part != Subword::Word {
            return self.fail("a part of the destination excludes a second operation");
        }
        let merges = second.is_some() || part != Subword::Word;
        self.count(instruction, if merges { &[4] } else { &[3] })?;
        let mut sources = [NONE; 4];
        let mut parts = [part, Subword::Word, Subword::Word];
        for (at, operand) in instruction.operands[1..].iter().enumerate() {
            // The last operand is a whole word.
            let (operand, part) = if at < 2 { split(operand) } else { (operand.clone(), part) };
            sources[at] = self.source(&operand, Type::U32)?;
            if at < 2 {
                parts[at + 1] = part;
            }
        }
        let target = self.target(&d, Type::U32)?;
        let video = Scalar::VideoPart { op, parts, signs, saturate, second };
        self.emit_scalar(video, target, Target::Nowhere, sources);
        Ok(())
    }

    /// `vmad d, a, b, c`: a product of parts, perhaps negated, plus c, perhaps negated, plus one.
    pub(super) fn video_product(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[4])?;
        let plus_one = modifiers.take("po");
        let saturate = modifiers.take("sat");
        let shift = modifiers.pick(&[("shr7", 7), ("shr15", 15)]).unwrap_or(0);
        let types = [(); 3].map(|()| modifiers.ty().unwrap_or(Type::U32).is_signed());
        let [d, operands @ ..] = &instruction.operands[..] else { return Ok(()) };
        let mut negated = [false; 3];
        let mut parts = [Subword::Word; 3];
        let mut sources = [NONE; 4];
        for (at, operand) in operands.iter().enumerate() {
            let operand = match operand {
                Operand::Negated(name) => {
                    negated[at] = true;
                    Operand::Name(name.clone())
                }
                operand => operand.clone(),
            };
            let (register, part) = split(&operand);
            let register = if at < 2 { register } else { operand };
            parts[at] = part;
            sources[at] = self.source(&register, Type::U32)?;
        }
        let [a, b, c] = negated;
        if (a != b && c) || (plus_one && (a || b || c)) {
            return self.fail("either the product or what is added to it may be negated");
        }
        let target = self.target(d, Type::U32)?;
        let scalar = Scalar::VideoProduct {
            parts: [parts[0], parts[1]],
            signs: [types[1], types[2]],
            negate: a != b,
            subtract: c,
            plus_one,
            shift,
            saturate,
        };
        self.emit_scalar(scalar, target, Target::Nowhere, sources);
        Ok(())
    }
}
