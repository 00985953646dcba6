//! Connections to a port -> the same to a server, as good or bad as the network between two machines may be.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use super::{servers, wait};

/// How often a listener looks whether it is still wanted.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(10);
/// Read at once; small, so that a slow link is slow and not a link with pauses.
const CHUNK_BYTES: usize = 4 << 10;

/// What the network is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Good,
    /// So many bytes a second pass, in each direction of each connection.
    Slow(u64),
    /// Connections are cut, and new ones refused.
    Refused,
    /// Nothing passes, and nobody is told: connections that are open, or are opened meanwhile, stay so, and are dead
    /// for good.
    Silent,
}

/// A proxy in front of a server on the loopback interface. Dropped, it cuts its connections.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    to: u16,
    state: Mutex<State>,
    changed: Condvar,
    passed_bytes: AtomicU64,
}

struct State {
    network: Network,
    /// Connections that were opened before this many changes of the network are dead.
    dead_before: u64,
    /// Connections that were opened before this many changes are cut.
    cut_before: u64,
    changes: u64,
    /// Connections so far, and those of them that were silenced one by one.
    connections: u64,
    silenced: Vec<u64>,
    /// What is held before it passes, and whether something is.
    hold: Option<(&'static [u8], bool)>,
    over: bool,
}

/// A connection, by when it was opened.
#[derive(Clone, Copy)]
struct Opened {
    changes: u64,
    number: u64,
}

impl Proxy {
    /// In front of a port, which nobody need listen on yet.
    pub fn to(port: u16) -> Proxy {
        let (network, silenced) = (Network::Refused, Vec::new());
        let state = State {
            network,
            dead_before: 0,
            cut_before: 0,
            changes: 0,
            connections: 0,
            silenced,
            hold: None,
            over: false,
        };
        let shared = Shared { to: port, state: Mutex::new(state), changed: Condvar::new(), passed_bytes: 0.into() };
        let proxy = Proxy { port: servers::free_port(), shared: Arc::new(shared) };
        proxy.set(Network::Good);
        proxy
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that have passed in either direction.
    pub fn passed_bytes(&self) -> u64 {
        self.shared.passed_bytes.load(Relaxed)
    }

    /// Kills the connection that was opened last, as `Silent` does with all.
    pub fn silence_last(&self) {
        let mut state = self.shared.state();
        let last = state.connections;
        state.silenced.push(last);
    }

    /// Holds the connection that says these words, before it has said them, until `let_go`. Others pass.
    pub fn hold(&self, words: &'static str) {
        self.shared.state().hold = Some((words.as_bytes(), false));
    }

    /// Whether a connection is held.
    pub fn holds(&self) -> bool {
        self.shared.state().hold.is_some_and(|(_, holds)| holds)
    }

    /// Lets what is held pass.
    pub fn let_go(&self) {
        self.shared.state().hold = None;
        self.shared.changed.notify_all();
    }

    /// Changes the network.
    pub fn set(&self, network: Network) {
        let mut state = self.shared.state();
        state.changes += 1;
        // A silence kills what is open when it begins, and what is opened until it ends.
        if state.network == Network::Silent || network == Network::Silent {
            state.dead_before = state.changes;
        }
        if network == Network::Refused {
            state.cut_before = state.changes;
        }
        let listens = std::mem::replace(&mut state.network, network) != Network::Refused;
        self.shared.changed.notify_all();
        drop(state);
        if network != Network::Refused && !listens {
            // The listener of before may still be there for a moment.
            let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, self.port));
            let listener = wait::until(Duration::from_secs(5), "the proxy's port to be free", bind);
            listener.set_nonblocking(true).unwrap();
            let shared = self.shared.clone();
            thread::spawn(move || accept(&listener, &shared));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits while what was read is to be held.
    fn wait_while_held(&self, read: &[u8]) {
        let mut state = self.state();
        match &mut state.hold {
            Some((words, holds)) if read.windows(words.len()).any(|part| part == *words) => *holds = true,
            _ => return,
        }
        while state.hold.is_some() && !state.over {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Waits until `bytes` of a connection may pass; `false` when the connection is cut.
    fn let_pass(&self, opened: Opened, bytes: u64) -> bool {
        let began = Instant::now();
        let mut state = self.state();
        loop {
            if state.over || state.cut_before > opened.changes {
                return false;
            }
            let dead = state.dead_before > opened.changes
                || state.network == Network::Silent
                || state.silenced.contains(&opened.number);
            let rest = match state.network {
                _ if dead => Duration::from_secs(3600),
                Network::Slow(rate) => Duration::from_micros(bytes * 1_000_000 / rate).saturating_sub(began.elapsed()),
                _ => Duration::ZERO,
            };
            if rest.is_zero() {
                self.passed_bytes.fetch_add(bytes, Relaxed);
                return true;
            }
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(|e| e.into_inner()).0;
        }
    }
}

/// Takes connections until the network refuses them.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let state = shared.state();
        if state.over || state.network == Network::Refused {
            return;
        }
        let changes = state.changes;
        drop(state);
        let Ok((client, _)) = listener.accept() else {
            let state = shared.state();
            let _ = shared.changed.wait_timeout(state, ACCEPT_INTERVAL);
            continue;
        };
        client.set_nonblocking(false).unwrap();
        let mut state = shared.state();
        state.connections += 1;
        let opened = Opened { changes, number: state.connections };
        drop(state);
        let shared = shared.clone();
        thread::spawn(move || {
            // A client whose server is not there finds its connection closed.
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.to)) else { return };
            let [from, to] = [&client, &server].map(|stream| stream.try_clone().unwrap());
            let back = shared.clone();
            thread::spawn(move || pump(&back, opened, &server, &client));
            pump(&shared, opened, &from, &to);
        });
    }
}

/// Moves bytes one way until either end closes or the connection is cut, and closes both ends then.
fn pump(shared: &Shared, opened: Opened, mut from: &TcpStream, mut to: &TcpStream) {
    for stream in [from, to] {
        stream.set_nodelay(true).unwrap();
        // A connection that is cut while nobody says anything.
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let read = match from.read(&mut chunk) {
            Err(e) if [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&e.kind()) => None,
            // An end is not told over a dead connection either.
            read => Some(read.unwrap_or(0)),
        };
        let bytes = read.unwrap_or(0);
        shared.wait_while_held(&chunk[..bytes]);
        if !shared.let_pass(opened, bytes as u64) || read == Some(0) || to.write_all(&chunk[..bytes]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
