//! The built program and a config -> a running Offshoot, its log line by line, and its end.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    process::{self, Process},
    secrets, servers, wait,
};

/// How long the program may take to start and to stop on a busy machine.
pub const START_MAX: Duration = Duration::from_secs(30);

/// A running program. Dropped, it is killed, and what it has printed is looked through for secrets.
pub struct Offshoot {
    process: Process,
    lines: Arc<Mutex<Vec<String>>>,
    collectors: Vec<JoinHandle<()>>,
    config: Config,
}

/// A config file in a directory of its own.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Where the program answers to probes.
    pub admin: SocketAddr,
    /// Its `data_dir`.
    pub data_dir: PathBuf,
}

/// A config of what a test needs in most cases; lines may be added, and words changed.
pub fn config(name: &str, postgres: &str, brokers: &str, tables: &[&str]) -> String {
    let tables = tables.join(", ");
    format!(
        "name: {name}
source: {{ postgres: \"{postgres}\" }}
sink: {{ kafka: {{ brokers: \"{brokers}\", delivery: exactly_once }} }}
changes: {{ tables: [{tables}] }}
"
    )
}

impl Config {
    /// Writes a config; `admin` with a free port and `data_dir` are added unless the text has them.
    pub fn new(text: &str) -> Config {
        let dir = process::new_dir("offshoot");
        let mut text = text.trim_end().to_string();
        let key = |text: &str, key: &str| text.lines().any(|line| line.starts_with(key));
        if !key(&text, "data_dir:") {
            let data = dir.join("data");
            fs::create_dir(&data).unwrap();
            text += &format!("\ndata_dir: {}", data.display());
        }
        if !key(&text, "admin:") {
            text += &format!("\nadmin: {{ listen: 127.0.0.1:{} }}", servers::free_port());
        }
        let data_dir = text.lines().find_map(|line| line.strip_prefix("data_dir:")).expect("the text has `data_dir`");
        let data_dir = PathBuf::from(data_dir.trim().trim_matches('"'));
        let listen = text.split("listen:").nth(1).expect("the text has `admin: listen`");
        let listen: String = listen.trim_start().chars().take_while(|c| !c.is_whitespace() && *c != '}').collect();
        let admin = listen.trim_matches('"').parse().expect("`admin: listen` is an address and a port");
        let path = dir.join("offshoot.yaml");
        fs::write(&path, text + "\n").unwrap();
        Config { path, admin, data_dir }
    }
}

impl Offshoot {
    /// `offshoot run -c FILE` with this config.
    pub fn run(binary: &Path, config: &str) -> Offshoot {
        Offshoot::run_again(binary, &Config::new(config))
    }

    /// The same with a config that is written already, for one life of several.
    pub fn run_again(binary: &Path, config: &Config) -> Offshoot {
        let mut command = Command::new(binary);
        command.arg("run").arg("-c").arg(&config.path);
        Offshoot::start(command, config)
    }

    /// Starts a command that reads `config`; may be used again with the same config for another life.
    pub fn start(mut command: Command, config: &Config) -> Offshoot {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Process::spawn("offshoot", command, libc::SIGKILL);
        let mut process = started.unwrap_or_else(|e| panic!("start offshoot: {e}; run `make build`"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let out = process.child().stdout.take().expect("it was piped");
        let err = process.child().stderr.take().expect("it was piped");
        let collectors = vec![collect(out, lines.clone()), collect(err, lines.clone())];
        Offshoot { process, lines, collectors, config: config.clone() }
    }

    /// Its config, for another life.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has printed so far, line by line.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().expect("no collector panics").clone()
    }

    /// Waits for a line of the log that contains `text`, and gives the first one.
    #[track_caller]
    pub fn wait_log(&mut self, text: &str, deadline: Duration) -> String {
        self.wait(&format!("a log line with {text:?}"), deadline, |offshoot| {
            offshoot.log().into_iter().find(|line| line.contains(text))
        })
    }

    /// Waits until it says that it is ready: connected to both ends and streaming.
    #[track_caller]
    pub fn wait_ready(&mut self, deadline: Duration) {
        self.wait("/readyz", deadline, |offshoot| offshoot.get("/readyz").filter(|(status, _)| *status == 200));
    }

    /// Waits until `condition` holds; panics with the log when it does not, or when the program ends first.
    #[track_caller]
    pub fn wait<T>(&mut self, what: &str, deadline: Duration, mut condition: impl FnMut(&Self) -> Option<T>) -> T {
        let found = wait::attempt(deadline, || {
            let ended = self.process.exited();
            match (condition(self), ended) {
                (Some(value), _) => Ok(Ok(value)),
                (None, Some(status)) => Ok(Err(format!("it ended with {status}"))),
                (None, None) => Err("nothing"),
            }
        });
        let found = found.and_then(|found| found);
        found.unwrap_or_else(|state| panic!("wait for {what}: {state}; its log:\n{}", self.log().join("\n")))
    }

    /// What an address of the admin server answers; `None` when it does not.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.config.admin, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: offshoot\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        secrets::must_not_be_in(path, &answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.into()))
    }

    /// The value of a metric without labels, or of one with them when they are part of `name`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// SIGTERM, and the exit status.
    #[track_caller]
    pub fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.process.signal(libc::SIGTERM);
        self.exit(deadline)
    }

    /// kill -9, to its end.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits for its end by itself.
    #[track_caller]
    pub fn exit(&mut self, deadline: Duration) -> ExitStatus {
        let ended = wait::attempt(deadline, || self.process.exited());
        ended.unwrap_or_else(|_| panic!("offshoot runs still after {deadline:?}; its log:\n{}", self.log().join("\n")))
    }

    /// The peak of its resident memory in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        self.process.peak_memory()
    }
}

impl Drop for Offshoot {
    fn drop(&mut self) {
        self.process.kill();
        // The pipes end with the process.
        self.collectors.drain(..).for_each(|collector| collector.join().expect("no collector panics"));
        if !thread::panicking() {
            secrets::must_not_be_in("the log", &self.log().join("\n"));
        }
    }
}

/// Runs a command of the program to its end: its exit code and what it printed, standard output first.
#[track_caller]
pub fn output(command: &mut Command) -> (Option<i32>, String) {
    // A file that was just copied is busy while another thread's fork has not come to its exec.
    let run = || match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => None,
        output => Some(output),
    };
    let output = wait::until(START_MAX, "the program to be startable", run);
    let output = output.unwrap_or_else(|e| panic!("start offshoot: {e}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    secrets::must_not_be_in("the output", &text);
    (output.status.code(), text)
}

/// Appends the lines of a pipe, until it ends.
fn collect(pipe: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { return };
            lines.lock().expect("no collector panics").push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}
