//! Where servers come from: what `make setup` fetched, a Docker engine, or an address in the environment.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
};

/// The one command that mends a missing server.
pub const REMEDY: &str = "run `make setup`, which installs and fetches what the servers need";

/// What `make setup` fetched, when it is whole.
pub fn fetched() -> Option<&'static Path> {
    static SERVERS: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let link = Path::new(env!("CARGO_MANIFEST_DIR")).join(".servers");
        let dir = env::var_os("OFFSHOOT_SERVERS").map_or(link, PathBuf::from);
        // Its true path: a server that runs as another user may not be able to follow the link.
        let dir = fs::canonicalize(dir).ok()?;
        dir.join("stamp").exists().then_some(dir)
    });
    SERVERS.as_deref()
}

/// Whether a Docker engine answers.
pub fn docker_runs() -> bool {
    static RUNS: LazyLock<bool> = LazyLock::new(|| {
        let mut command = Command::new("docker");
        command.arg("info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    *RUNS
}

/// A TCP port on the loopback interface that was free a moment ago, and that this process gives to nobody else.
///
/// Below the range from which the kernel takes ports for outgoing connections, so that a server that is started again
/// finds its port free.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(10_000..30_000)));
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let ports = std::iter::repeat_with(|| 10_000 + NEXT.fetch_add(1, Relaxed) % 22_000);
    ports.take(22_000).find(free).expect("the loopback interface has a free port")
}
