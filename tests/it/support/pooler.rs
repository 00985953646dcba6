//! A Postgres -> a PgBouncer in front of it.

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use super::{
    postgres::{PASSWORD, Server},
    process::{self, Process, User},
    servers::{self, REMEDY},
    wait,
};

/// How long it may take to listen.
const START_MAX: Duration = Duration::from_secs(30);

/// A running PgBouncer in transaction mode, which lets the superuser in.
pub struct Pooler {
    /// Where it listens.
    pub port: u16,
    _process: Process,
}

/// Starts one; `lines` are added to its settings.
pub fn before(server: &Server, lines: &str) -> Pooler {
    let (dir, port) = (process::new_dir("pgbouncer"), servers::free_port());
    let (users, settings) = (dir.join("users"), dir.join("ini"));
    fs::write(&users, format!("\"postgres\" \"{PASSWORD}\"\n")).unwrap();
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n{lines}\n",
        server.port(),
        users.display()
    );
    fs::write(&settings, text).unwrap();
    let (program, libraries) = program();
    let mut command = Command::new(program);
    command.arg("-q").arg(&settings).current_dir(&dir);
    command.stdout(fs::File::create(dir.join("log")).unwrap()).stderr(fs::File::create(dir.join("errors")).unwrap());
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    if let Some(user) = User::ordinary() {
        user.own(&dir);
        user.apply(&mut command);
    }
    let process = Process::spawn("PgBouncer", command, libc::SIGKILL);
    let process = process.unwrap_or_else(|e| panic!("start PgBouncer: {e}; {REMEDY}"));
    let listens = wait::attempt(START_MAX, || std::net::TcpStream::connect(("127.0.0.1", port)));
    listens.unwrap_or_else(|e| panic!("{e}\n{}", fs::read_to_string(dir.join("errors")).unwrap_or_default()));
    Pooler { port, _process: process }
}

/// What `make setup` unpacked, with the directory of its libraries; else one that is installed.
fn program() -> (PathBuf, Option<PathBuf>) {
    let unpacked = servers::fetched().map(|fetched| fetched.join("extras/pgbouncer/usr"));
    if let Some(usr) = unpacked.filter(|usr| usr.join("sbin/pgbouncer").exists()) {
        let libraries = usr.join(format!("lib/{}-linux-gnu", env::consts::ARCH));
        return (usr.join("sbin/pgbouncer"), Some(libraries));
    }
    let installed = PathBuf::from("/usr/sbin/pgbouncer");
    (if installed.exists() { installed } else { "pgbouncer".into() }, None)
}
