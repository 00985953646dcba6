//! `if`: a CEL predicate over `old` and `new`, maps of the root's columns. Pure.

/// A compiled predicate.
#[derive(Debug)]
pub struct Condition {
    /// As written.
    pub text: String,
    /// Compiled.
    pub program: cel::Program,
    /// Indexes into the root's columns that it names of `old`.
    pub old: Vec<usize>,
    /// Indexes into the root's columns that it names of `new`.
    pub new: Vec<usize>,
}
