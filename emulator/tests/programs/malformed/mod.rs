//! Damaged modules: whatever is done to a text, nothing panics, hangs or overflows the stack.

mod compiled;
mod damage;
mod text;
