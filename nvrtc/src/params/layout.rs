//! The layout of structs, by the rules that C++ and `#[repr(C)]` share.

use std::fmt::Write as _;

use super::parse::Struct;

/// A type that is its own alignment.
pub(super) struct Scalar {
    /// Its name in Rust.
    pub rust: &'static str,
    pub size: usize,
}

/// The scalar that a field's type is: pointers are addresses.
pub(super) fn scalar(kind: &str) -> Option<Scalar> {
    let (rust, size) = match kind {
        _ if kind.ends_with('*') => ("u64", 8),
        "u64" => ("u64", 8),
        "i64" => ("i64", 8),
        "double" => ("f64", 8),
        "u32" => ("u32", 4),
        "int" => ("i32", 4),
        "float" => ("f32", 4),
        _ => return None,
    };
    Some(Scalar { rust, size })
}

#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// Of each field: where it starts, and how many elements it has if it is an array.
    pub offsets: Vec<usize>,
    pub counts: Vec<Option<usize>>,
    /// The unused bytes before each field, and those behind the last one.
    pub holes: Vec<usize>,
    pub size: usize,
    pub align: usize,
}

impl Layout {
    pub(super) fn push(&mut self, size: usize, align: usize, count: Option<usize>) {
        self.pad(align);
        self.offsets.push(self.size);
        self.counts.push(count);
        self.size += size * count.unwrap_or(1);
        self.align = self.align.max(align);
    }

    pub(super) fn finish(&mut self) {
        self.align = self.align.max(1);
        self.pad(self.align);
    }

    fn pad(&mut self, align: usize) {
        let padded = self.size.next_multiple_of(align);
        self.holes.push(padded - self.size);
        self.size = padded;
    }

    /// C++ that does not compile if the compiler's layout is another. NVRTC has no `offsetof`;
    /// `__INTADDR__` is what its headers for other compilers define it with.
    pub(super) fn asserts(&self, of: &Struct) -> String {
        let Struct { name, fields, .. } = of;
        let mut text = String::new();
        for (field, offset) in fields.iter().zip(&self.offsets) {
            let field = &field.name;
            let _ = writeln!(
                text,
                "static_assert(__INTADDR__(&(({name}*)0)->{field}) == {offset}, \
                 \"Rust has {name}::{field} at byte {offset}\");"
            );
        }
        let size = self.size;
        let _ = writeln!(
            text,
            "static_assert(sizeof({name}) == {size}, \"{name} has {size} bytes in Rust\");"
        );
        text
    }
}
