//! `wmma`: fragments of matrices that a warp loads, multiplies and stores.
//!
//! The instruction set leaves open which lane holds which elements. Here a fragment holds its
//! matrix in order: A by rows, B by columns, C and D by rows. Register r of lane l holds the
//! elements from e (32 r + l) on, where e is how many fit into a register. Where the instruction
//! names more registers than that takes, they hold the matrix again.

use super::decoder::{Decoder, Result};
use super::memory::SPACES;
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

const LANES: u32 = 32;

/// Rows, columns and the length of the contraction.
type Shape = [u32; 3];

const SHAPES: [(&str, Shape); 4] = [
    ("m16n16k16", [16, 16, 16]),
    ("m8n32k16", [8, 32, 16]),
    ("m32n8k16", [32, 8, 16]),
    ("m16n16k8", [16, 16, 8]),
];

const CELLS: [(&str, Cell); 5] = [
    ("bf16", Cell::Bf16),
    ("tf32", Cell::Tf32),
    ("f16", Cell::F16),
    ("u8", Cell::Integer { bits: 8, signed: false }),
    ("s8", Cell::Integer { bits: 8, signed: true }),
];

/// One of the matrices of a product.
#[derive(Clone, Copy)]
struct Matrix {
    /// Lines of the fragment, and elements of a line.
    lines: u32,
    length: u32,
    /// Bits of an element.
    bits: u32,
    /// Registers that the instruction names.
    registers: u32,
    /// Whether lines of the fragment are lines in memory.
    straight: bool,
    ty: Type,
}

impl Matrix {
    /// A, B, or C and D, with elements of a type.
    fn new(role: &str, [m, n, k]: Shape, cell: Option<Cell>, half: bool, rows: bool) -> Self {
        let (lines, length, straight) = match role {
            "a" => (m, k, rows),
            "b" => (n, k, !rows),
            _ => (m, n, rows),
        };
        let bits = cell.map_or(if half { 16 } else { 32 }, Cell::bits);
        let taken = lines * length * bits / 32 / LANES;
        // Of f16 all fragments have as many registers as the largest.
        let registers = if cell == Some(Cell::F16) { 8 } else { taken };
        let ty = match (cell, half) {
            (Some(_), _) => Type::B32,
            (None, true) => Type::F16x2,
            (None, false) => Type::F32,
        };
        Self { lines, length, bits, registers, straight, ty }
    }

    /// Registers that hold the matrix once.
    fn taken(&self) -> u32 {
        self.lines * self.length * self.bits / 32 / LANES
    }

    /// Elements of a register.
    fn each(&self) -> u32 {
        32 / self.bits
    }
}

impl Decoder<'_> {
    /// `wmma.load` and `wmma.store`.
    pub(super) fn move_fragment(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        store: bool,
    ) -> Result<()> {
        let role = modifiers.pick(&[("a", "a"), ("b", "b"), ("c", "c"), ("d", "c")]);
        let rows = modifiers.pick(&[("row", true), ("col", false)]).unwrap_or(true);
        let space = modifiers.pick(&SPACES).flatten().unwrap_or(Space::Generic);
        let (Some(role), Some(shape)) = (role, modifiers.pick(&SHAPES)) else {
            return self.fail("`wmma` needs a matrix and a shape");
        };
        let factor = role != "c";
        let cell = modifiers.pick(&CELLS).filter(|_| factor);
        let half = instruction.modifiers.iter().any(|name| name == "f16");
        let whole = instruction.modifiers.iter().any(|name| name == "s32");
        modifiers.drop_all(|_| true);
        let mut matrix = Matrix::new(role, shape, cell, half, rows);
        if whole {
            matrix.ty = Type::S32;
        }
        let operands = &instruction.operands;
        self.count(instruction, &[2, 3])?;
        let (at, fragment) = if store { (0, 1) } else { (1, 0) };
        let address = self.address(&operands[at], space)?;
        let stride = match operands.get(2) {
            Some(stride) => self.word(stride)?,
            None => {
                let stride = if matrix.straight { matrix.length } else { matrix.lines };
                self.constant32(stride)
            }
        };
        let Operand::Vector(elements) = &operands[fragment] else {
            return self.fail("registers in braces are expected");
        };
        if elements.len() != matrix.registers as usize {
            let (found, wanted) = (elements.len(), matrix.registers);
            return self.fail(format!("{found} registers where {wanted} are needed"));
        }
        let mut registers = Vec::new();
        for element in elements {
            registers.push(match store {
                true => match self.source(element, matrix.ty)? {
                    Source::R(r) => r,
                    _ => return self.fail("a 32-bit operand is expected"),
                },
                false => match self.target(element, matrix.ty)? {
                    Target::R(r, _) => r,
                    _ => return self.fail("a 32-bit register is expected as the destination"),
                },
            });
        }
        // Which needs all lanes.
        let (lane, here) = (self.special(Special::Lane), self.new_temporary());
        self.emit(Op::TransposeMatrix(here, lane));
        let base = match address.base {
            Source::R(r) => {
                let wide = self.new_q();
                self.emit(Op::Extend { signed: false, d: wide, a: r });
                wide
            }
            Source::Q(q) => q,
            Source::P(_) => return self.fail("an address is expected"),
        };
        let place = Address { base: Source::Q(base), ..address };
        // What is loaded first may be part of the address.
        let mut loaded = Vec::new();
        for number in 0..matrix.taken() {
            let register = registers[number as usize];
            if store {
                self.store_elements(&matrix, number, place, stride, register);
            } else {
                loaded.push(self.load_elements(&matrix, number, place, stride));
            }
        }
        if !store {
            for (at, register) in registers.into_iter().enumerate() {
                let from = loaded[at % loaded.len()];
                self.emit(Op::Un32(Un32::Copy, register, from));
            }
        }
        Ok(())
    }

    /// The address of an element of a register of the fragment.
    fn element_address(
        &mut self,
        matrix: &Matrix,
        register: u32,
        element: u32,
        place: Address,
        stride: R,
    ) -> Address {
        let each = matrix.each();
        let lane = self.special(Special::Lane);
        let position = self.new_temporary();
        let (factor, first) =
            (self.constant32(each), self.constant32(LANES * each * register + element));
        self.emit(Op::Tri32(Tri32::Mad, position, lane, factor, first));
        let (line, at) = (self.new_temporary(), self.new_temporary());
        let shift = self.constant32(matrix.length.trailing_zeros());
        let mask = self.constant32(matrix.length - 1);
        self.emit(Op::Bin32(Bin32::ShrU, line, position, shift));
        self.emit(Op::Bin32(Bin32::And, at, position, mask));
        let (outer, inner) = if matrix.straight { (line, at) } else { (at, line) };
        let bytes = matrix.bits / 8;
        // Offsets in bytes, of lines of any length.
        let (start, sum) = (self.new_q(), self.new_q());
        let Source::Q(base) = place.base else { return place };
        let (size, line_bytes) = (self.constant32(bytes), self.new_temporary());
        self.emit(Op::Bin32(Bin32::Mul, line_bytes, stride, size));
        self.emit(Op::MadWide { signed: false, d: start, a: outer, b: line_bytes, c: base });
        self.emit(Op::MadWide { signed: false, d: sum, a: inner, b: size, c: start });
        Address { base: Source::Q(sum), ..place }
    }

    /// Whether the elements of a register lie next to each other, and how many moves it takes.
    fn moves_of(matrix: &Matrix) -> (u32, u32) {
        match matrix.straight {
            true => (1, 4),
            false => (matrix.each(), matrix.bits / 8),
        }
    }

    fn load_elements(&mut self, matrix: &Matrix, register: u32, place: Address, stride: R) -> R {
        let (count, bytes) = Self::moves_of(matrix);
        let sum = self.new_temporary();
        for element in 0..count {
            let address = self.element_address(matrix, register, element, place, stride);
            let part = if element == 0 { sum } else { self.new_temporary() };
            self.emit(Op::Load(Box::new(Access {
                address,
                bytes,
                signed: false,
                order: Order::Weak,
                constant: false,
                targets: vec![Target::R(part, 32)],
                sources: Vec::new(),
            })));
            if element > 0 {
                let shift = self.constant32(matrix.bits * element);
                self.emit(Op::Bin32(Bin32::Shl, part, part, shift));
                self.emit(Op::Bin32(Bin32::Or, sum, sum, part));
            }
        }
        sum
    }

    fn store_elements(
        &mut self,
        matrix: &Matrix,
        number: u32,
        place: Address,
        stride: R,
        register: R,
    ) {
        let (count, bytes) = Self::moves_of(matrix);
        for element in 0..count {
            let address = self.element_address(matrix, number, element, place, stride);
            let part = self.new_temporary();
            let shift = self.constant32(matrix.bits * element);
            self.emit(Op::Bin32(Bin32::ShrU, part, register, shift));
            self.emit(Op::Store(Box::new(Access {
                address,
                bytes,
                signed: false,
                order: Order::Weak,
                constant: false,
                targets: Vec::new(),
                sources: vec![Source::R(part)],
            })));
        }
    }

    /// `wmma.mma`.
    pub(super) fn multiply_fragments(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[4])?;
        let Some(shape) = modifiers.pick(&SHAPES) else { return self.fail("the shape is missing") };
        let saturate = modifiers.take("satfinite");
        let whole = modifiers.take("s32");
        // Of f16 only the types of D and C are named.
        let named: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
        let halves: Vec<bool> = named
            .iter()
            .filter(|name| matches!(**name, "f16" | "f32"))
            .map(|name| *name == "f16")
            .collect();
        let plain = modifiers.pick(&CELLS[..2]).or_else(|| modifiers.pick(&CELLS[3..]));
        let (cell, halves) = match plain {
            Some(cell) => (cell, [false; 2]),
            None => (Cell::F16, [halves[0], halves[1]]),
        };
        modifiers.drop_all(|_| true);
        let [m, n, k] = shape;
        let (a, b) = (
            Matrix::new("a", shape, Some(cell), false, true),
            Matrix::new("b", shape, Some(cell), false, true),
        );
        let accumulator = |half| {
            let matrix = Matrix::new("c", shape, None, half, true);
            Matrix { ty: if whole { Type::S32 } else { matrix.ty }, ..matrix }
        };
        let (d, c) = (accumulator(halves[0]), accumulator(halves[1]));
        let sum = match (whole, halves[0]) {
            (true, _) => Sum::Integer { saturate },
            (false, true) => Sum::F16,
            (false, false) => Sum::F32,
        };
        let operands = &instruction.operands;
        let op = ProductOp {
            rows: m as usize,
            columns: n as usize,
            k: k as usize,
            in_order: true,
            cells: [cell; 2],
            sum,
            half_addend: halves[1],
            a: self.fragment(&operands[1], a.registers as usize, a.ty)?,
            b: self.fragment(&operands[2], b.registers as usize, b.ty)?,
            c: self.fragment(&operands[3], c.registers as usize, c.ty)?,
            d: self.result_fragment(&operands[0], d.registers as usize, d.ty)?,
        };
        self.emit(Op::Product(Box::new(op)));
        Ok(())
    }
}
