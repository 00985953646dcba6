//! Arguments -> config -> telemetry -> the command -> exit code.

use std::process::ExitCode;

use clap::Parser;
use offshoot::{
    causes::told,
    cli::{self, Arguments, Command},
    config::Config,
    exit::Exit,
    telemetry,
};

fn main() -> ExitCode {
    keep_few_arenas();
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config(), cli::CHECKS) {
        Ok(config) => config,
        Err(error) => return refuse(&error, Exit::from(&error)),
    };
    if let Err(error) = telemetry::init(arguments.logs()) {
        return refuse(&error, Exit::Config);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error, Exit::Unexpected),
    };
    let exit = runtime.block_on(perform(&arguments.command, &config));
    // A resolver that is still waiting for its answer is not waited for.
    runtime.shutdown_background();
    exit.into()
}

/// Does what was asked for.
async fn perform(command: &Command, config: &Config) -> Exit {
    match command {
        Command::Run(_) => cli::run::run(config).await,
        Command::Check(arguments) => cli::check::check(config, arguments.json).await,
        Command::Drop(arguments) => cli::drop::drop(config, arguments.yes).await,
    }
}

/// Says on stderr why nothing was begun.
fn refuse(error: &dyn std::error::Error, exit: Exit) -> ExitCode {
    let style = clap::builder::Styles::styled();
    let style = style.get_error();
    anstream::eprintln!("{style}error:{style:#} {}", told(error));
    exit.into()
}

/// glibc gives each thread a heap of its own and keeps what is freed there; librdkafka has a dozen threads. Two heaps keep
/// the process within `limits.memory` and cost no measurable speed.
fn keep_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called first, with no other thread about.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
