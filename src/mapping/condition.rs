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

impl Condition {
    /// Compiles a predicate.
    pub fn compile(text: &str, _column: &dyn Fn(&str) -> Option<usize>) -> Result<Condition, String> {
        let program = cel::Program::compile(text).map_err(|error| error.to_string())?;
        Ok(Condition { text: text.into(), program, old: Vec::new(), new: Vec::new() })
    }
}
