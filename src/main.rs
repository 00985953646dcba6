//! Arguments -> config -> telemetry -> the command -> exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use offshoot::{
    causes::told,
    cli::{self, Arguments, Command, bars::Bars},
    config::Config,
    exit::Exit,
    telemetry,
};

fn main() -> ExitCode {
    keep_little_memory();
    let arguments = Arguments::parse();
    let pipeline = match &arguments.command {
        Command::Run(arguments) => arguments,
        Command::Preview(arguments) => &arguments.config,
        Command::Check(arguments) => &arguments.config,
        Command::Drop(arguments) => &arguments.config,
        Command::Resume(arguments) => &arguments.config,
        Command::Skip(arguments) => &arguments.config,
        Command::Reload(arguments) => &arguments.config,
        Command::ConfigSchema => return print(&cli::schema::schema()),
        Command::Completions { shell } => return print(&cli::completions::completions(*shell)),
    };
    let config = match Config::load(&pipeline.config, cli::CHECKS) {
        Ok(config) => config,
        Err(error) => return refuse(&error, Exit::from(&error)),
    };
    let bars = Bars::new(arguments.logs.log_format);
    if let Err(error) = telemetry::init(arguments.logs(&bars), bars.clone()) {
        return refuse(&error, Exit::Config);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error, Exit::Unexpected),
    };
    let exit = runtime.block_on(perform(&arguments.command, &config, &bars));
    // A resolver that is still waiting for its answer is not waited for.
    runtime.shutdown_background();
    exit.into()
}

/// Does what was asked for.
async fn perform(command: &Command, config: &Config, bars: &Bars) -> Exit {
    match command {
        Command::Run(_) => cli::run::run(config, bars).await,
        Command::Preview(arguments) => cli::preview::preview(config, arguments).await,
        Command::Check(arguments) => cli::check::check(config, arguments.json).await,
        Command::Drop(arguments) => cli::drop::drop(config, arguments.yes).await,
        Command::Resume(arguments) => cli::resume::resume(config, arguments).await,
        Command::Skip(arguments) => cli::skip::skip(config, arguments).await,
        Command::Reload(arguments) => cli::reload::reload(config, arguments).await,
        Command::ConfigSchema | Command::Completions { .. } => Exit::Clean,
    }
}

/// What a command prints that needs no pipeline.
fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => refuse(&error, Exit::Unexpected),
        _ => Exit::Clean.into(),
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
/// the process within `limits.memory` and cost no measurable speed. What is large (a transaction's buffer, a batch for Kafka) is
/// mapped by itself and goes back when it is freed: glibc would raise that bound to the largest that it has seen, and keep up to
/// twice as much at the end of each heap. 1 to 5 MiB at the peak, and no measurable speed either.
fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called first, with no other thread about.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 10);
    }
}
