//! What the sanitizer reports, and what it must not report.

mod expect;
mod order;
mod threads;
