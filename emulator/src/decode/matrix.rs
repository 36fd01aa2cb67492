//! Matrix instructions.

use super::decoder::{Decoder, Result, SINK};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

/// The elements of factors, by their names.
const CELLS: [(&str, Cell); 8] = [
    ("u8", Cell::Integer { bits: 8, signed: false }),
    ("s8", Cell::Integer { bits: 8, signed: true }),
    ("u4", Cell::Integer { bits: 4, signed: false }),
    ("s4", Cell::Integer { bits: 4, signed: true }),
    ("b1", Cell::Integer { bits: 1, signed: false }),
    ("e4m3", Cell::E4m3),
    ("e5m2", Cell::E5m2),
    ("f64", Cell::F64),
];

/// Rows and the length of the contraction, by the names of the shapes.
const SHAPES: [(&str, (usize, usize)); 10] = [
    ("m8n8k4", (8, 4)),
    ("m8n8k16", (8, 16)),
    ("m8n8k32", (8, 32)),
    ("m8n8k128", (8, 128)),
    ("m16n8k4", (16, 4)),
    ("m16n8k8", (16, 8)),
    ("m16n8k16", (16, 16)),
    ("m16n8k32", (16, 32)),
    ("m16n8k64", (16, 64)),
    ("m16n8k128", (16, 128)),
];

impl Decoder<'_> {
    pub(super) fn transpose_matrix(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.drop_all(|_| true);
        self.count(instruction, &[2])?;
        let a = self.r(&instruction.operands[1])?;
        let d = self.r_target(&instruction.operands[0])?;
        self.emit(Op::TransposeMatrix(d, a));
        Ok(())
    }

    /// The 32-bit registers of a fragment.
    fn registers(
        &mut self,
        operand: &Operand,
        count: usize,
        ty: Type,
        target: bool,
    ) -> Result<[R; 4]> {
        let elements = self.in_braces(operand, count)?;
        let mut registers = [SINK; 4];
        for (register, element) in registers.iter_mut().zip(elements) {
            *register = match (target, element) {
                (true, Operand::Sink) => SINK,
                (true, element) => match self.target(element, ty)? {
                    Target::R(r, _) => r,
                    _ => return self.fail("a 32-bit register is expected as the destination"),
                },
                (false, element) => match self.source(element, ty)? {
                    Source::R(r) => r,
                    _ => return self.fail("a 32-bit operand is expected"),
                },
            };
        }
        Ok(registers)
    }

    pub(super) fn mma(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let layout = |name: &str| matches!(name, "sync" | "aligned" | "row" | "col");
        self.by_rows_and_columns(instruction)?;
        modifiers.drop_all(layout);
        let k = modifiers.pick(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)]).unwrap_or(16);
        let mut types = [Type::B8; 4];
        for ty in &mut types {
            *ty = self.required_type(modifiers)?;
        }
        self.count(instruction, &[4])?;
        let half_result = types[0] == Type::F16;
        let (element, packed) = match types[1] {
            Type::Bf16 => (Element::Bf16, Type::Bf16x2),
            Type::F16 => (Element::F16, Type::F16x2),
            _ => (Element::Tf32, Type::B32),
        };
        // A has 16 rows of k elements over 32 lanes, B half as many.
        let per_register = if element == Element::Tf32 { 1 } else { 2 };
        let a_count = 16 * k / 32 / per_register;
        let c_count = if half_result { 2 } else { 4 };
        let operands = &instruction.operands;
        let sum = if half_result { Type::F16x2 } else { Type::F32 };
        let a = self.registers(&operands[1], a_count, packed, false)?;
        let b = self.registers(&operands[2], a_count / 2, packed, false)?;
        let c = self.registers(&operands[3], c_count, sum, false)?;
        let d = self.registers(&operands[0], c_count, sum, true)?;
        let b = [b[0], b[1]];
        self.emit(Op::Mma(Box::new(MmaOp { element, k, half_result, a, b, c, d })));
        Ok(())
    }

    /// `ldmatrix` and `stmatrix`.
    pub(super) fn move_matrices(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        store: bool,
    ) -> Result<()> {
        let count = modifiers.pick(&[("x1", 1), ("x2", 2), ("x4", 4)]).unwrap_or(1);
        let transposed = modifiers.take("trans");
        let shared = modifiers.take("shared") || modifiers.take("shared::cta");
        modifiers.drop_all(|_| true);
        self.count(instruction, &[2])?;
        let space = if shared { Space::Shared } else { Space::Generic };
        let (at, registers) = if store { (0, 1) } else { (1, 0) };
        let address = self.address(&instruction.operands[at], space)?;
        let registers =
            self.registers(&instruction.operands[registers], count, Type::B32, !store)?;
        let registers = registers[..count].to_vec();
        let op = Box::new(MatricesOp { address, transposed, registers });
        self.emit(if store { Op::StoreMatrix(op) } else { Op::LoadMatrix(op) });
        Ok(())
    }

    /// `mma` of integers, bits, 8-bit floating-point numbers and f64.
    pub(super) fn product(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.by_rows_and_columns(instruction)?;
        self.count(instruction, &[4])?;
        let longest = modifiers.take("m16n8k256").then_some((16, 256));
        let shape = longest.or_else(|| modifiers.pick(&SHAPES));
        let Some((rows, k)) = shape else { return self.fail("the shape is missing") };
        // In f64 the result comes first, of the same name as the factors.
        let double = modifiers.take("f64");
        let cells = [modifiers.pick(&CELLS), modifiers.pick(&CELLS)];
        let [Some(a), Some(b)] = cells else { return self.fail("the elements are missing") };
        let (saturate, half) = (modifiers.take("satfinite"), modifiers.take("f16"));
        let (sum, ty) = match (modifiers.take("and"), modifiers.take("xor")) {
            (true, _) => (Sum::CountAnd, Type::S32),
            (_, true) => (Sum::CountXor, Type::S32),
            _ if double => (Sum::F64, Type::F64),
            _ if half => (Sum::F16, Type::F16x2),
            _ if a.bits() == 8 && !matches!(a, Cell::Integer { .. }) => (Sum::F32, Type::F32),
            _ => (Sum::Integer { saturate }, Type::S32),
        };
        modifiers.drop_all(|_| true);
        let in_register = if double { 1 } else { 32 / a.bits() as usize };
        let factor = if double { Type::F64 } else { Type::B32 };
        let (a_count, b_count) = (rows * k / 32 / in_register, 8 * k / 32 / in_register);
        let c_count = rows * 8 / 32 / if half { 2 } else { 1 };
        let operands = &instruction.operands;
        let op = ProductOp {
            rows,
            columns: 8,
            k,
            in_order: false,
            cells: [a, b],
            sum,
            half_addend: half,
            a: self.fragment(&operands[1], a_count, factor)?,
            b: self.fragment(&operands[2], b_count, factor)?,
            c: self.fragment(&operands[3], c_count, ty)?,
            d: self.result_fragment(&operands[0], c_count, ty)?,
        };
        self.emit(Op::Product(Box::new(op)));
        Ok(())
    }

    fn by_rows_and_columns(&self, instruction: &InstructionTree) -> Result<()> {
        let order = |name| instruction.modifiers.iter().position(|modifier| modifier == name);
        if order("row") > order("col") {
            return self.fail("`mma` takes A by rows and B by columns");
        }
        Ok(())
    }

    /// The registers of a fragment, in braces.
    pub(super) fn fragment(
        &mut self,
        operand: &Operand,
        count: usize,
        ty: Type,
    ) -> Result<Vec<Source>> {
        let elements = self.in_braces(operand, count)?;
        elements.iter().map(|element| self.source(element, ty)).collect()
    }

    pub(super) fn result_fragment(
        &mut self,
        operand: &Operand,
        count: usize,
        ty: Type,
    ) -> Result<Vec<Target>> {
        let elements = self.in_braces(operand, count)?;
        elements.iter().map(|element| self.optional_target(element, ty)).collect()
    }

    fn in_braces<'o>(&self, operand: &'o Operand, count: usize) -> Result<&'o [Operand]> {
        match operand {
            Operand::Vector(elements) if elements.len() == count => Ok(elements),
            Operand::Vector(elements) => {
                self.fail(format!("{} registers where {count} are needed", elements.len()))
            }
            _ => self.fail("registers in braces are expected"),
        }
    }
}
