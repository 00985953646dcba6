//! The integration tests: the program and its modules against real servers. One binary, so that each server starts once.

mod support;

mod servers;
mod walk;
mod layers;
mod project_files;
mod licenses;
mod pipe;
mod bad_input;
mod situations;
mod connections;
mod logins;
mod rotation;
mod debezium;
mod ways_out;
mod schema_changes;
mod golden;
mod guarantees;
mod fuzz_corpora;
mod memory;
mod checker;
mod workload;
mod soak;
mod outages;
mod network;
mod cluster;
mod kept;
mod late;
mod failover;
mod observation;
mod source_safety;
mod config_changes;
mod endurance;
mod events;
mod mapping_check;
