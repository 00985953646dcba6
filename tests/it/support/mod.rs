//! Real servers for the tests, the demo and the benchmark, and the built program beside them.
//!
//! - `postgres::shared(V17).create_database()` and `kafka::shared().topic("orders")` are the usual start of a test: each
//!   server starts once for the whole run, when somebody first asks, and each test has a database and topics of its own.
//! - `postgres::private(..)` and `kafka::private(..)` are for tests that stop, kill, freeze or configure a server.
//! - `program::Offshoot::run(..)` starts the built binary with a config.
//! - Everything lives in one directory and dies with this process, however it ends: `process`.

// Three kinds of programs include this, and none uses all of it.
#![allow(dead_code, unreachable_pub)]

pub mod wait;
pub mod secrets;
pub mod process;
pub mod servers;
pub mod postgres;
pub mod pooler;
pub mod proxy;
pub mod apart;
pub mod kafka;
pub mod program;
pub mod golden;
pub mod recording;
pub mod fixture;
