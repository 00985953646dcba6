//! The integration tests: the program and its modules against real servers. One binary, so that each server starts once.

mod support;

mod servers;
mod walk;
mod layers;
mod project_files;
