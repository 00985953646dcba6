//! A command -> a child process that does not outlive this one, in a directory that does not either.
//!
//! A run that ends in good order stops its children and then exits. Two safeguards stand behind that, since a run may
//! also end by Ctrl-C or by kill -9. The kernel kills each child when the thread that started it ends
//! (`PR_SET_PDEATHSIG`); that thread is one of our own, which ends only with the process. And a shell in a session of its
//! own reads a pipe that we hold: at its end it removes the directory and the containers.

use std::{
    ffi::CStr,
    fs,
    io::{self, Write},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    ptr,
    sync::{LazyLock, Mutex, MutexGuard, mpsc},
    thread,
    time::Duration,
};

use super::wait;

/// How long a process may take to end that must; longer than writing out its memory takes.
const KILL_MAX: Duration = Duration::from_secs(30);

/// The directory of this run. It is gone shortly after the process is.
pub fn run_dir() -> &'static Path {
    &RUN.dir
}

/// An empty directory of its own below `run_dir`, named for what it holds.
pub fn new_dir(name: &str) -> PathBuf {
    static NUMBER: Mutex<u32> = Mutex::new(0);
    let mut number = NUMBER.lock().unwrap_or_else(|e| e.into_inner());
    *number += 1;
    let dir = run_dir().join(format!("{name}-{number}"));
    fs::create_dir(&dir).expect("the run's directory is ours");
    dir
}

/// Has the container removed when this process has ended.
pub fn remove_at_end(container: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(run_dir().join("containers")).unwrap();
    writeln!(file, "{container}").unwrap();
}

/// A child process in a group of its own. Dropped, it gets the signal that it would get at our end.
pub struct Process {
    name: String,
    child: Child,
    at_our_end: libc::c_int,
}

impl Process {
    /// Starts `command`; `at_our_end` is the signal that it gets should we end first.
    pub fn spawn(name: &str, mut command: Command, at_our_end: libc::c_int) -> io::Result<Process> {
        let us = std::process::id();
        command.process_group(0);
        // SAFETY: between fork and exec these are two system calls, which do not allocate. They come after the change of
        // the user, which would clear the signal.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, at_our_end) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if libc::getppid() as u32 == us { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let (reply, child) = mpsc::channel();
        SPAWNER.send((command, reply)).expect("the spawning thread never ends");
        let child = child.recv().expect("the spawning thread answers")?;
        running().push((child.id(), at_our_end));
        Ok(Process { name: name.into(), child, at_our_end })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends it a signal; nothing happens when it has ended.
    pub fn signal(&mut self, signal: libc::c_int) {
        if self.exited().is_none() {
            // SAFETY: no memory is involved; the child has not been reaped, so that the id is still its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }

    /// Its exit status, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        // Reaped under the lock, so that nobody signals an id that is no longer this child's.
        let mut running = running();
        let status = self.child.try_wait().expect("it is our child");
        if status.is_some() {
            running.retain(|(pid, _)| *pid != self.child.id());
        }
        status
    }

    /// Waits for its end.
    #[track_caller]
    pub fn exit(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        wait::until(deadline, &what, || self.exited())
    }

    /// kill -9, to its end.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        wait::until(KILL_MAX, "a killed process to end", || self.exited());
    }

    /// The ids of its own children.
    pub fn children(&self) -> Vec<u32> {
        let us = self.pid();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| parent(*pid) == Some(us)).collect()
    }

    /// `VmHWM`, the peak of its resident memory, in bytes; `None` when it has ended.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    /// Processor time that it has used, in user and system mode together; `None` when it has ended.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        // SAFETY: no memory is involved.
        let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        Some(Duration::from_millis(ticks * 1000 / ticks_per_second))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(self.at_our_end);
        // It may be frozen.
        self.signal(libc::SIGCONT);
        if wait::attempt(KILL_MAX, || self.exited()).is_err() {
            self.kill();
        }
    }
}

/// The parent of a process that has not been reaped.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// An ordinary user, for what refuses to run as root.
#[derive(Clone, Copy)]
pub struct User {
    uid: libc::uid_t,
    gid: libc::gid_t,
}

impl User {
    /// `None` when we are an ordinary user ourselves; else `postgres`, or `nobody` where that is not.
    pub fn ordinary() -> Option<User> {
        static USER: LazyLock<Option<User>> = LazyLock::new(|| {
            // SAFETY: no memory is involved.
            if unsafe { libc::geteuid() } != 0 {
                return None;
            }
            let user = User::named(c"postgres").or_else(|| User::named(c"nobody"));
            Some(user.expect("every system has a user nobody"))
        });
        *USER
    }

    fn named(name: &CStr) -> Option<User> {
        // SAFETY: called once, from the one place above, so that nobody overwrites what it points to.
        let entry = unsafe { libc::getpwnam(name.as_ptr()).as_ref()? };
        Some(User { uid: entry.pw_uid, gid: entry.pw_gid })
    }

    /// Has `command` run as this user.
    pub fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives this user a file or directory.
    pub fn own(self, path: &Path) {
        chown(path, Some(self.uid), Some(self.gid)).expect("root may give files away");
    }
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

static SPAWNER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
    LazyLock::force(&RUN);
    let (jobs, receiver) = mpsc::channel::<Job>();
    let run = move || {
        for (mut command, reply) in receiver {
            let _ = reply.send(command.spawn());
        }
    };
    thread::Builder::new().name("spawner".into()).spawn(run).expect("a thread can be had");
    jobs
});

/// The children that run, and the signal that each gets at our end.
fn running() -> MutexGuard<'static, Vec<(u32, libc::c_int)>> {
    static RUNNING: Mutex<Vec<(u32, libc::c_int)>> = Mutex::new(Vec::new());
    RUNNING.lock().unwrap_or_else(|e| e.into_inner())
}

/// Stops all children and removes the directory. Called when `main` has returned and when somebody calls `exit`.
extern "C" fn end_run() {
    let running = running();
    for (pid, signal) in running.iter() {
        // SAFETY: no memory is involved; nobody has reaped the child, so that the id is still its own.
        unsafe {
            libc::kill(*pid as libc::pid_t, *signal);
            libc::kill(*pid as libc::pid_t, libc::SIGCONT);
        }
    }
    for (pid, _) in running.iter() {
        // SAFETY: no status is asked for, so that nothing is written.
        let ended = || unsafe { libc::waitpid(*pid as libc::pid_t, ptr::null_mut(), libc::WNOHANG) } != 0;
        let _ = wait::attempt(KILL_MAX, ended);
    }
    let shell = RUN.shell.lock().unwrap_or_else(|e| e.into_inner()).take();
    if let Some(mut shell) = shell {
        drop(shell.stdin.take());
        let _ = shell.wait();
    }
}

struct Run {
    dir: PathBuf,
    /// The end of its standard input tells it that we are gone.
    shell: Mutex<Option<Child>>,
}

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let dir =
        tempfile::Builder::new().prefix("offshoot-").tempdir().expect("the temporary directory is writable").keep();
    // Servers that run as another user have their directories in it.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let script = r#"
        read -r _
        [ -s "$1/containers" ] && xargs docker rm --force --volumes <"$1/containers"
        for _ in $(seq 100); do rm -rf "$1" && exit; sleep 0.1; done"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&dir).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec this is one system call, which does not allocate.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    let shell = command.spawn().expect("there is a shell");
    // SAFETY: the function is there as long as the program is, and does not unwind.
    unsafe { libc::atexit(end_run) };
    Run { dir, shell: Mutex::new(Some(shell)) }
});
