//! The integration tests: the program and its modules against real servers. One binary, so that each server starts once.

mod support;

mod servers;
mod project_files;
mod memory;
mod checker;
mod workload;
mod soak;
mod outages;
