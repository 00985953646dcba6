//! The config's JSON Schema, as a file for editors.

use crate::config;

/// The schema, with a line end.
pub fn schema() -> String {
    format!("{:#}\n", config::schema())
}
