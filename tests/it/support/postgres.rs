//! A version -> a running Postgres with `wal_level = logical`, and databases in it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use testcontainers_modules::testcontainers::{GenericImage, ImageExt, core::WaitFor, runners::AsyncRunner};
use tokio::runtime::{self, Runtime};
use tokio_postgres::{Client, NoTls, Row, SimpleQueryMessage, types::ToSql};

use super::{
    process::{self, Process, User},
    servers::{self, REMEDY},
    wait,
};

/// The superuser's password; scram over TCP asks for it, the socket does not.
pub const PASSWORD: &str = "sEcReT-superuser";

/// How long a server may take to start or stop on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);

/// Room for many tests at once, and no waiting for a disk.
const SETTINGS: [(&str, &str); 12] = [
    ("wal_level", "logical"),
    ("max_wal_senders", "150"),
    ("max_replication_slots", "200"),
    ("max_connections", "400"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "4GB"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("listen_addresses", "127.0.0.1"),
    ("log_line_prefix", "%m [%p] %d "),
];

/// A major version of Postgres that Offshoot reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V14 = 14,
    V15,
    V16,
    V17,
    V18,
}

pub use Version::*;

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Version; 5] = [V14, V15, V16, V17, V18];

    /// The image that Docker runs; the binaries' minor versions are in `tests/servers/pom.xml`.
    fn tag(self) -> String {
        (self as u32).to_string()
    }
}

/// The server of this version that the whole run shares. Tests make databases in it and leave the server alone.
pub fn shared(version: Version) -> &'static Server {
    static SHARED: [OnceLock<Server>; 5] = [const { OnceLock::new() }; 5];
    SHARED[version as usize - V14 as usize].get_or_init(|| {
        if let Some(address) = given(version) {
            return Server { version, address, settings: Mutex::default(), local: None };
        }
        if servers::fetched().is_some() || !servers::docker_runs() { local(version, &[]) } else { container(version) }
    })
}

/// A server of one test's own, to be stopped, killed and configured. `settings` come on top of the usual ones.
pub fn private(version: Version, settings: &[(&str, &str)]) -> Server {
    local(version, settings)
}

/// Where a server is reached, and as whom.
#[derive(Clone, Debug)]
struct Address {
    /// `postgres://user:password@host:port`.
    base: String,
    /// The directory of the Unix socket, and the port in its name.
    socket: Option<(PathBuf, u16)>,
}

/// A running Postgres. Dropped, it is killed.
pub struct Server {
    pub version: Version,
    address: Address,
    settings: Mutex<Vec<(String, String)>>,
    local: Option<Local>,
}

/// What a server of our own has, besides an address.
struct Local {
    dir: PathBuf,
    port: u16,
    process: Mutex<Option<Process>>,
}

impl Server {
    /// The superuser's URL of a database, over TCP with a password.
    pub fn url(&self, database: &str) -> String {
        format!("{}/{database}", self.address.base)
    }

    /// The superuser's URL of a database, over the Unix socket without a password.
    pub fn socket_url(&self, database: &str) -> String {
        let (dir, port) = self.address.socket.as_ref().unwrap_or_else(|| panic!("no local Postgres: {REMEDY}"));
        let dir = dir.to_str().expect("a temporary directory's name is text").replace('/', "%2F");
        format!("postgres:///{database}?host={dir}&port={port}&user=postgres")
    }

    /// A connection of the superuser to a database.
    pub fn session(&self, database: &str) -> Session {
        Session::connect(&self.url(database)).unwrap_or_else(|e| panic!("connect to {database}: {e:?}"))
    }

    /// A database of one test's own. Dropped, it goes with its slots.
    pub fn create_database(&self) -> Db {
        let name = format!("db_{}", std::iter::repeat_with(fastrand::lowercase).take(10).collect::<String>());
        self.session("postgres").execute(&format!("CREATE DATABASE {name}"));
        Db {
            url: self.url(&name),
            socket_url: self.address.socket.as_ref().map(|_| self.socket_url(&name)),
            admin_url: self.url("postgres"),
            session: self.session(&name),
            name,
        }
    }

    /// The TCP port, also while the server is down.
    pub fn port(&self) -> u16 {
        self.own().port
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.own().dir.join("data")
    }

    /// What it has logged since it was made.
    pub fn log(&self) -> String {
        fs::read_to_string(self.own().dir.join("log")).unwrap_or_default()
    }

    /// The postmaster's process id; `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// Starts a server that is down, and waits until it answers.
    pub fn start(&self) {
        let local = self.own();
        let mut process = self.process();
        assert!(process.is_none(), "Postgres {} runs already", self.version as u32);
        let log = fs::OpenOptions::new().create(true).append(true).open(local.dir.join("log")).unwrap();
        let mut command = command(self.version, "postgres");
        command.arg("-D").arg(local.dir.join("data")).arg("-k").arg(&local.dir).args(["-p", &local.port.to_string()]);
        for (name, value) in self.settings.lock().unwrap().iter() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.current_dir(&local.dir).stdout(log.try_clone().unwrap()).stderr(log);
        // An immediate shutdown: it frees the shared memory that a SIGKILL would leave.
        let started = Process::spawn(&format!("Postgres {}", self.version as u32), command, libc::SIGQUIT);
        let running = process.insert(started.unwrap_or_else(|e| panic!("start Postgres: {e}; {REMEDY}")));
        let answers = wait::attempt(START_MAX, || match running.exited() {
            Some(status) => Ok(Err(format!("it ended with {status}"))),
            None => Session::connect(&self.url("postgres")).map(|_| Ok(())),
        });
        let answers = answers.and_then(|answer| answer);
        answers.unwrap_or_else(|state| panic!("start Postgres {}: {state}\n{}", self.version as u32, self.log()));
    }

    /// A fast shutdown, to its end: sessions are ended, walsenders flush first.
    pub fn stop(&self) {
        self.begin_stop(libc::SIGINT);
        self.end_stop(START_MAX);
    }

    /// Asks for a shutdown: SIGTERM is smart, SIGINT fast, SIGQUIT immediate.
    pub fn begin_stop(&self, signal: libc::c_int) {
        self.process().as_mut().expect("it runs").signal(signal);
    }

    /// Waits for the end of a shutdown that was asked for.
    #[track_caller]
    pub fn end_stop(&self, deadline: Duration) {
        let mut process = self.process();
        process.as_mut().expect("it runs").exit(deadline);
        *process = None;
    }

    /// kill -9 for the postmaster and all its processes, to their end.
    pub fn kill(&self) {
        let mut process = self.process().take().expect("it runs");
        let children = process.children();
        process.kill();
        for child in children {
            // SAFETY: no memory is involved. A child whose parent has just been killed ends by itself in a moment; its
            // id is not given to another process as soon as that.
            unsafe { libc::kill(child as libc::pid_t, libc::SIGKILL) };
            wait::until(START_MAX, "a backend to end", || !is_running(child));
        }
    }

    /// Stops and starts.
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// A hot standby of this server, which is stopped for the copy.
    pub fn standby(&self) -> Server {
        self.stop();
        let (dir, port) = (process::new_dir(&format!("standby-{}", self.version as u32)), servers::free_port());
        let data = dir.join("data");
        copy(&self.data_dir(), &data);
        self.start();
        let (primary_dir, primary_port) = self.address.socket.as_ref().expect("it is ours");
        let follow = format!("primary_conninfo = 'host={} port={primary_port} user=postgres'\n", primary_dir.display());
        let settings = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap() + &follow;
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        let server = Server::at(self.version, dir, port, self.settings.lock().unwrap().clone());
        server.start();
        server
    }

    /// A data directory in `dir` that nobody runs.
    fn at(version: Version, dir: PathBuf, port: u16, settings: Vec<(String, String)>) -> Server {
        if let Some(user) = User::ordinary() {
            user.own(&dir);
        }
        let base = format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}");
        let address = Address { base, socket: Some((dir.clone(), port)) };
        let local = Some(Local { dir, port, process: Mutex::new(None) });
        Server { version, address, settings: Mutex::new(settings), local }
    }

    /// Changes settings; those that need a restart hold from the next start.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        let session = self.session("postgres");
        for (name, value) in settings {
            // What stands on the command line would win over ALTER SYSTEM.
            let mut ours = self.settings.lock().unwrap();
            if let Some(entry) = ours.iter_mut().find(|(ours, _)| ours == name) {
                entry.1 = (*value).into();
            }
            session.execute(&format!("ALTER SYSTEM SET {name} = '{}'", value.replace('\'', "''")));
        }
        session.execute("SELECT pg_reload_conf()");
    }

    /// Leaves settings to ALTER SYSTEM from the next start on.
    pub fn leave(&self, names: &[&str]) {
        self.settings.lock().unwrap().retain(|(name, _)| !names.contains(&name.as_str()));
    }

    fn own(&self) -> &Local {
        self.local.as_ref().unwrap_or_else(|| panic!("no local Postgres: {REMEDY}"))
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        // A test that panics while it waits must still be able to drop the server.
        self.own().process.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A database of one test's own, with a connection to it.
pub struct Db {
    pub name: String,
    /// The superuser's, over TCP with a password.
    pub url: String,
    socket_url: Option<String>,
    admin_url: String,
    session: Session,
}

impl Db {
    /// The superuser's, over the Unix socket without a password.
    pub fn socket_url(&self) -> &str {
        self.socket_url.as_deref().unwrap_or_else(|| panic!("no local Postgres: {REMEDY}"))
    }

    /// The URL with other credentials.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        let (_, rest) = self.url.split_once('@').expect("the URL names a user");
        format!("postgres://{user}:{password}@{rest}")
    }

    /// Another connection.
    pub fn connect(&self) -> Session {
        Session::connect(&self.url).unwrap_or_else(|e| panic!("connect to {}: {e:?}", self.name))
    }
}

impl std::ops::Deref for Db {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for Db {
    /// Leaves nothing that holds WAL back. The server may be down: then there is nothing to do.
    fn drop(&mut self) {
        let Ok(admin) = Session::connect(&self.admin_url) else { return };
        let slots = format!("FROM pg_replication_slots WHERE database = '{}' AND active", self.name);
        let _ = wait::attempt(Duration::from_secs(10), || {
            let _ = admin.try_execute(&format!("SELECT pg_terminate_backend(active_pid) {slots}"));
            admin.try_text(&format!("SELECT count(*) {slots}")).is_ok_and(|count| count == "0")
        });
        let _ = admin.try_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}

/// A blocking connection. It may be shared: statements then go one after another.
pub struct Session {
    // Dropped before the runtime that drives it.
    client: Client,
    runtime: Runtime,
}

impl Session {
    /// Connects with a URL or keywords, without TLS.
    pub fn connect(url: &str) -> Result<Session, tokio_postgres::Error> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            Ok::<_, tokio_postgres::Error>(client)
        })?;
        Ok(Session { client, runtime })
    }

    /// Runs statements, several with `;` between them.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.try_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// As `execute`, with the error.
    pub fn try_execute(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.runtime.block_on(self.client.batch_execute(sql))
    }

    /// The rows of a statement, with parameters.
    #[track_caller]
    pub fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.try_query(sql, parameters).unwrap_or_else(|e| panic!("{sql}: {e:?}"))
    }

    /// As `query`, with the error.
    pub fn try_query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.runtime.block_on(self.client.query(sql, parameters))
    }

    /// The rows of statements as text; NULL is `None`.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_rows(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"))
    }

    /// As `rows`, with the error.
    pub fn try_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
        let messages = self.runtime.block_on(self.client.simple_query(sql))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(String::from)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The first column of the first row as text; empty for NULL and for no row.
    #[track_caller]
    pub fn text(&self, sql: &str) -> String {
        self.try_text(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"))
    }

    /// As `text`, with the error.
    pub fn try_text(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let rows = self.try_rows(sql)?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()?).unwrap_or_default())
    }
}

/// The address in the environment, when it is of this version.
fn given(version: Version) -> Option<Address> {
    let base = env::var("OFFSHOOT_TEST_POSTGRES").ok()?;
    let base = base.trim_end_matches('/').to_string();
    let session = Session::connect(&format!("{base}/postgres"));
    let session = session.unwrap_or_else(|e| panic!("connect to OFFSHOOT_TEST_POSTGRES: {e:?}"));
    let number: u32 = session.text("SHOW server_version_num").parse().expect("a number");
    (number / 10_000 == version as u32).then_some(Address { base, socket: None })
}

/// Starts a server from the fetched binaries.
fn local(version: Version, settings: &[(&str, &str)]) -> Server {
    let dir = process::new_dir(&format!("postgres-{}", version as u32));
    copy(template(version), &dir.join("data"));
    let mut all: Vec<(String, String)> = SETTINGS.map(|(name, value)| (name.into(), value.into())).into();
    for (name, value) in settings {
        all.retain(|(usual, _)| usual != name);
        all.push(((*name).into(), (*value).into()));
    }
    let server = Server::at(version, dir, servers::free_port(), all);
    server.start();
    server
}

/// Copies a data directory, with its owner.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.is_ok_and(|status| status.success()), "copy a data directory to {}", to.display());
}

/// A fresh data directory of this version; initdb runs once, since a copy takes a tenth of its time.
fn template(version: Version) -> &'static Path {
    static TEMPLATES: [OnceLock<PathBuf>; 5] = [const { OnceLock::new() }; 5];
    TEMPLATES[version as usize - V14 as usize].get_or_init(|| {
        let dir = process::new_dir(&format!("initdb-{}", version as u32));
        let password = dir.join("password");
        fs::write(&password, PASSWORD).unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
        if let Some(user) = User::ordinary() {
            user.own(&dir);
        }
        let data = dir.join("data");
        let mut command = command(version, "initdb");
        command.arg("-D").arg(&data).arg(format!("--pwfile={}", password.display())).current_dir(&dir);
        command.args(["--auth-local=trust", "--auth-host=scram-sha-256", "-U", "postgres"]);
        command.args(["-E", "UTF8", "--locale=C", "--no-sync"]);
        let output = command.output().unwrap_or_else(|e| panic!("run initdb: {e}; {REMEDY}"));
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        data
    })
}

/// One of the fetched programs, as a user that it accepts.
fn command(version: Version, program: &str) -> Command {
    let fetched = servers::fetched().unwrap_or_else(|| panic!("no local Postgres {}: {REMEDY}", version as u32));
    let mut command = Command::new(fetched.join("postgres").join(version.tag()).join("bin").join(program));
    // The server takes its messages' language and its defaults from the environment.
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C").stdin(Stdio::null());
    if let Some(user) = User::ordinary() {
        user.apply(&mut command);
    }
    command
}

/// Starts a server in Docker.
fn container(version: Version) -> Server {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    let settings = SETTINGS.iter().filter(|(name, _)| *name != "listen_addresses");
    let arguments = settings.flat_map(|(name, value)| ["-c".to_string(), format!("{name}={value}")]);
    let image = GenericImage::new("postgres", &version.tag())
        // It starts twice: the first time only for its own initialization.
        .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
        .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
        .with_env_var("POSTGRES_PASSWORD", PASSWORD)
        .with_cmd(arguments);
    let started = runtime.block_on(async {
        let container = image.start().await?;
        let (host, port) = (container.get_host().await?, container.get_host_port_ipv4(5432).await?);
        Ok::<_, testcontainers_modules::testcontainers::TestcontainersError>((container, host, port))
    });
    let (container, host, port) = started.unwrap_or_else(|e| panic!("start Postgres in Docker: {e}; or {REMEDY}"));
    process::remove_at_end(container.id());
    // Its own removal needs a runtime that outlives it; the shell that watches us does that.
    std::mem::forget(container);
    let address = Address { base: format!("postgres://postgres:{PASSWORD}@{host}:{port}"), socket: None };
    Server { version, address, settings: Mutex::default(), local: None }
}

/// Whether a process is there and not a zombie.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
