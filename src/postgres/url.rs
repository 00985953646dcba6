//! Connection string -> `Target`: where the database is and how to log in.
//!
//! libpq's two forms, a URI and `key=value` keywords, and libpq's words. tokio-postgres' own parser knows neither
//! `verify-full` nor `sslrootcert`, and its errors do not name what would have been right.

use std::{
    env,
    ffi::CStr,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::config::Secret;

/// Where the database is and how to log in.
#[derive(Clone, Debug)]
pub struct Target {
    /// Tried in order until one answers.
    pub hosts: Vec<Host>,
    /// Who logs in.
    pub user: String,
    /// The database.
    pub database: String,
    /// How the wire is protected.
    pub tls: Tls,
    /// Whether the log-in is bound to the wire's protection.
    pub channel_binding: ChannelBinding,
    /// What reaching one host and logging in may take.
    pub connect_timeout: Duration,
    /// `options`: further command-line options of the session.
    pub options: Option<String>,
    /// What `pg_stat_replication` shows; `offshoot_<name>` when absent.
    pub application_name: Option<String>,
    /// `target_session_attrs=read-write` or `primary`: pass over standbys.
    pub primary_only: bool,
    /// TCP's patience with a silent peer.
    pub patience: Patience,
}

/// One place where a server may listen.
#[derive(Clone, Debug)]
pub struct Host {
    /// How it is named in the connection string: what a certificate is checked against.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// From the connection string, `PGPASSWORD` or the password file.
    pub password: Option<Secret>,
    /// Why the password file gave none, where there is one or should be.
    pub passfile: Option<String>,
}

/// An address to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// The socket itself, not its directory.
    Unix(PathBuf),
}

/// `sslmode` and its companions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// What is asked of the server.
    pub mode: SslMode,
    /// `sslrootcert`: whom to trust.
    pub roots: Roots,
    /// `sslcert` and `sslkey`: who we are.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `sslnegotiation=direct`: TLS from the first byte (PostgreSQL 17).
    pub direct: bool,
}

/// `sslmode`; `allow` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server has it, unverified. libpq's default.
    Prefer,
    /// TLS, unverified.
    Require,
    /// TLS with a certificate that a trusted authority signed.
    VerifyCa,
    /// The same, and the certificate names the host.
    VerifyFull,
}

/// `channel_binding`: SCRAM proves to both ends that nobody between them ends the TLS connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server has it. libpq's default.
    #[default]
    Prefer,
    /// Else no password leaves us.
    Require,
}

/// Which certificate authorities are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// `~/.postgresql/root.crt` when it is there, else the system's.
    Default,
    /// The system's.
    System,
    /// A file of PEM certificates.
    File(PathBuf),
}

/// When TCP gives a silent peer up. Zero leaves a value to the system, as in libpq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// `keepalives`.
    pub keepalives: bool,
    /// `keepalives_idle`.
    pub idle: Duration,
    /// `keepalives_interval`.
    pub interval: Duration,
    /// `keepalives_count`.
    pub count: u32,
    /// `tcp_user_timeout`.
    pub unacknowledged: Duration,
}

/// The connection string cannot be used. Never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// Neither form.
    #[error("source.postgres is neither a URI (postgres://user@host/database) nor keywords (host=... dbname=...)")]
    Form,
    /// Broken inside.
    #[error("source.postgres: {0}")]
    Syntax(&'static str),
    /// A key that nobody knows.
    #[error("source.postgres: unknown key `{key}`; the nearest right one is `{nearest}`")]
    UnknownKey {
        /// As written.
        key: String,
        /// The most similar key.
        nearest: &'static str,
    },
    /// A key of libpq that has no meaning here.
    #[error("source.postgres: `{key}` is not supported: {why}")]
    Unsupported {
        /// As written.
        key: String,
        /// What to do instead.
        why: &'static str,
    },
    /// A value out of its range.
    #[error("source.postgres: {key}={value} is not {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value; never a password's.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The lists of hosts and ports do not fit together.
    #[error("source.postgres: {ports} ports for {hosts} hosts; give one port, or one for each host")]
    Ports {
        /// How many ports.
        ports: usize,
        /// How many hosts.
        hosts: usize,
    },
}

/// Debian's and the packages' directory; libpq's compiled-in one is `/tmp`.
const SOCKET_DIR: &str = "/var/run/postgresql";
const PORT: u16 = 5432;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than any stall of a healthy network, shorter than a person's patience with a pipeline that stands still.
const PATIENCE: Patience = Patience {
    keepalives: true,
    idle: Duration::from_secs(10),
    interval: Duration::from_secs(5),
    count: 3,
    unacknowledged: Duration::from_secs(20),
};

const KEYS: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssencmode",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "passfile",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

impl Target {
    /// Reads a connection string.
    pub fn parse(text: &Secret) -> Result<Target, UrlError> {
        let text = text.reveal().trim();
        let uri = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let pairs = match uri {
            Some(rest) => uri_pairs(rest)?,
            None if text.contains("://") => return Err(UrlError::Form),
            None => keyword_pairs(text)?,
        };
        Words::read(pairs)?.target()
    }
}

/// The words as written, before they are put together.
#[derive(Default)]
struct Words {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<u16>,
    user: Option<String>,
    password: Option<String>,
    passfile: Option<PathBuf>,
    database: Option<String>,
    mode: Option<SslMode>,
    roots: Option<Roots>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    channel_binding: ChannelBinding,
    direct: bool,
    connect_timeout: Option<Duration>,
    options: Option<String>,
    application_name: Option<String>,
    primary_only: bool,
    patience: Option<Patience>,
}

impl Words {
    fn read(pairs: Vec<(String, String)>) -> Result<Words, UrlError> {
        let mut words = Words::default();
        for (key, value) in pairs {
            words.take(&key, value)?;
        }
        Ok(words)
    }

    fn take(&mut self, key: &str, value: String) -> Result<(), UrlError> {
        let wrong = |key, expected| UrlError::Value { key, value: value.clone(), expected };
        let patience = self.patience.get_or_insert(PATIENCE);
        match key {
            "host" => self.hosts = list(&value),
            "hostaddr" => self.addresses = list(&value),
            "port" => {
                let port = |text: String| if text.is_empty() { Some(PORT) } else { text.parse().ok() };
                let ports = list(&value).into_iter().map(port).collect::<Option<Vec<u16>>>();
                self.ports = ports.ok_or_else(|| wrong("port", "a port from 1 to 65535"))?;
            }
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "passfile" => self.passfile = Some(value.into()),
            "dbname" => self.database = Some(value),
            "options" => self.options = Some(value),
            "application_name" | "fallback_application_name" => self.application_name = Some(value),
            "sslmode" => {
                self.mode = Some(match value.as_str() {
                    "disable" => SslMode::Disable,
                    "prefer" => SslMode::Prefer,
                    "require" => SslMode::Require,
                    "verify-ca" => SslMode::VerifyCa,
                    "verify-full" => SslMode::VerifyFull,
                    "allow" => {
                        let why = "it would send without TLS first; say sslmode=prefer, or better verify-full";
                        return Err(UrlError::Unsupported { key: "sslmode=allow".into(), why });
                    }
                    _ => return Err(wrong("sslmode", "one of disable, prefer, require, verify-ca, verify-full")),
                })
            }
            // What JDBC has, and libpq takes in URIs.
            "ssl" if value == "true" => self.mode = Some(SslMode::Require),
            "sslrootcert" if value == "system" => self.roots = Some(Roots::System),
            "sslrootcert" => self.roots = Some(Roots::File(value.into())),
            "sslcert" => self.certificate = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            "sslnegotiation" => match value.as_str() {
                "postgres" => self.direct = false,
                "direct" => self.direct = true,
                _ => return Err(wrong("sslnegotiation", "postgres or direct")),
            },
            "channel_binding" => {
                self.channel_binding = match value.as_str() {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(wrong("channel_binding", "disable, prefer or require")),
                }
            }
            "gssencmode" if matches!(value.as_str(), "disable" | "prefer") => {}
            "load_balance_hosts" if value == "disable" => {}
            "target_session_attrs" => match value.as_str() {
                "any" => self.primary_only = false,
                "read-write" | "primary" => self.primary_only = true,
                _ => return Err(wrong("target_session_attrs", "any, read-write or primary")),
            },
            "connect_timeout" => {
                let seconds: i64 = value.parse().map_err(|_| wrong("connect_timeout", "a number of seconds"))?;
                // 0 waits for ever in libpq; nothing here does.
                self.connect_timeout = (seconds > 0).then(|| Duration::from_secs(seconds as u64));
            }
            "keepalives" => match value.as_str() {
                "0" => patience.keepalives = false,
                "1" => patience.keepalives = true,
                _ => return Err(wrong("keepalives", "0 or 1")),
            },
            "keepalives_idle" => {
                patience.idle = seconds(&value).ok_or_else(|| wrong("keepalives_idle", "a number of seconds"))?
            }
            "keepalives_interval" => {
                patience.interval =
                    seconds(&value).ok_or_else(|| wrong("keepalives_interval", "a number of seconds"))?
            }
            "keepalives_count" => patience.count = value.parse().map_err(|_| wrong("keepalives_count", "a number"))?,
            "tcp_user_timeout" => {
                let millis = value.parse().map_err(|_| wrong("tcp_user_timeout", "a number of milliseconds"))?;
                patience.unacknowledged = Duration::from_millis(millis);
            }
            "client_encoding" | "replication" => {
                return Err(UrlError::Unsupported { key: key.into(), why: "offshoot sets it itself" });
            }
            "service" | "servicefile" => {
                let why = "write what the service file says into source.postgres";
                return Err(UrlError::Unsupported { key: key.into(), why });
            }
            "gssencmode" | "krbsrvname" | "gsslib" | "gssdelegation" => {
                return Err(UrlError::Unsupported { key: key.into(), why: "log in by password or certificate" });
            }
            "sslcrl"
            | "sslcrldir"
            | "sslpassword"
            | "sslsni"
            | "sslcompression"
            | "sslcertmode"
            | "requirepeer"
            | "require_auth"
            | "ssl_min_protocol_version"
            | "ssl_max_protocol_version"
            | "load_balance_hosts" => {
                return Err(UrlError::Unsupported { key: key.into(), why: "leave it out" });
            }
            _ => {
                let nearest = KEYS
                    .iter()
                    .copied()
                    .max_by(|a, b| strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b)));
                return Err(UrlError::UnknownKey { key: key.into(), nearest: nearest.expect("there are keys") });
            }
        }
        Ok(())
    }

    fn target(mut self) -> Result<Target, UrlError> {
        let user = self.user.take().or_else(|| env::var("PGUSER").ok()).or_else(os_user);
        let user = user.ok_or(UrlError::Syntax("no user; write postgres://USER@host/database"))?;
        let database = self.database.take().filter(|name| !name.is_empty()).unwrap_or_else(|| user.clone());
        let count = self.hosts.len().max(self.addresses.len()).max(1);
        if self.ports.len() > 1 && self.ports.len() != count {
            return Err(UrlError::Ports { ports: self.ports.len(), hosts: count });
        }
        if !self.hosts.is_empty() && !self.addresses.is_empty() && self.hosts.len() != self.addresses.len() {
            return Err(UrlError::Syntax("host and hostaddr have different lengths"));
        }
        let passwords = Passwords::of(&self);
        let hosts = (0..count)
            .map(|i| {
                let port = self.ports.get(i).or(self.ports.first()).copied().unwrap_or(PORT);
                let name = self.hosts.get(i).filter(|name| !name.is_empty());
                let address = self.addresses.get(i).filter(|address| !address.is_empty());
                let (name, place) = match (name, address) {
                    (None, None) => (SOCKET_DIR.to_owned(), unix(SOCKET_DIR, port)),
                    (Some(dir), None) if dir.starts_with('/') => (dir.clone(), unix(dir, port)),
                    (name, address) => {
                        let name = name.or(address).expect("one of them is there");
                        (name.clone(), Place::Tcp(address.unwrap_or(name).clone(), port))
                    }
                };
                let password = passwords.find(&name, port, &database, &user);
                let passfile = passwords.why_not.clone().filter(|_| password.is_none());
                Host { name, place, password, passfile }
            })
            .collect();
        let identity = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(UrlError::Syntax("sslcert and sslkey go together")),
        };
        let mode = match (self.mode.unwrap_or(SslMode::Prefer), &self.roots) {
            (mode, Some(Roots::System)) if mode != SslMode::VerifyFull && self.mode.is_some() => {
                return Err(UrlError::Syntax("sslrootcert=system wants sslmode=verify-full, as in libpq"));
            }
            (_, Some(Roots::System)) => SslMode::VerifyFull,
            // As libpq: naming an authority and not asking it would be a trap.
            (SslMode::Require, Some(_)) => SslMode::VerifyCa,
            (mode, _) => mode,
        };
        if self.direct && mode < SslMode::Require {
            return Err(UrlError::Syntax("sslnegotiation=direct wants sslmode=require or stronger"));
        }
        if self.channel_binding == ChannelBinding::Require && mode == SslMode::Disable {
            return Err(UrlError::Syntax("channel_binding=require binds to TLS, which sslmode=disable forbids"));
        }
        let tls = Tls { mode, roots: self.roots.unwrap_or(Roots::Default), identity, direct: self.direct };
        Ok(Target {
            hosts,
            user,
            database,
            tls,
            channel_binding: self.channel_binding,
            connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            options: self.options,
            application_name: self.application_name,
            primary_only: self.primary_only,
            patience: self.patience.unwrap_or(PATIENCE),
        })
    }
}

/// Where a password may come from, in libpq's order.
#[derive(Default)]
struct Passwords {
    given: Option<String>,
    /// Lines of the password file: host, port, database, user, password.
    file: Vec<[String; 5]>,
    /// Why it is not the file, with the mend.
    why_not: Option<String>,
}

impl Passwords {
    fn of(words: &Words) -> Passwords {
        let given = words.password.clone().or_else(|| env::var("PGPASSWORD").ok()).filter(|text| !text.is_empty());
        if given.is_some() {
            return Passwords { given, ..Passwords::default() };
        }
        let named = words.passfile.clone().or_else(|| env::var_os("PGPASSFILE").map(PathBuf::from));
        let default = || Some(PathBuf::from(env::var_os("HOME")?).join(".pgpass")).filter(|path| path.exists());
        match named.or_else(default) {
            Some(path) => Passwords::of_file(&path),
            None => Passwords::default(),
        }
    }

    /// As libpq, a file that others may read is not read.
    fn of_file(path: &Path) -> Passwords {
        let shown = path.display();
        let why_not = match fs::metadata(path) {
            Ok(found) if !found.is_file() => format!("the password file {shown} is not a plain file"),
            Ok(found) if found.mode() & 0o077 != 0 => {
                format!("chmod 0600 {shown}: a password file that its group or others may use is ignored")
            }
            Ok(_) => match fs::read_to_string(path) {
                Ok(text) => {
                    let why_not = Some(format!("no line of the password file {shown} fits"));
                    return Passwords { file: text.lines().filter_map(passfile_line).collect(), why_not, given: None };
                }
                Err(error) => format!("the password file {shown} cannot be read: {error}"),
            },
            Err(error) => format!("the password file {shown} cannot be read: {error}"),
        };
        Passwords { why_not: Some(why_not), ..Passwords::default() }
    }

    fn find(&self, host: &str, port: u16, database: &str, user: &str) -> Option<Secret> {
        let host = if host == SOCKET_DIR { "localhost" } else { host };
        let wanted = [host, &port.to_string(), database, user];
        let fits = |line: &&[String; 5]| wanted.iter().zip(*line).all(|(want, have)| have == "*" || have == want);
        let found = || self.file.iter().find(fits).map(|line| line[4].clone());
        self.given.clone().or_else(found).map(Secret::from)
    }
}

/// `host:port:database:user:password` with `\:` and `\\` escaped.
fn passfile_line(line: &str) -> Option<[String; 5]> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => fields.last_mut()?.extend(chars.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            c => fields.last_mut()?.push(c),
        }
    }
    fields.try_into().ok()
}

fn uri_pairs(rest: &str) -> Result<Vec<(String, String)>, UrlError> {
    let mut pairs = Vec::new();
    let mut push = |key: &str, value: String| pairs.push((key.to_owned(), value));
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (login, places) = authority.rsplit_once('@').map_or((None, authority), |(login, places)| (Some(login), places));
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        if !user.is_empty() {
            push("user", decode(user)?);
        }
        if let Some(password) = password {
            push("password", decode(password)?);
        }
    }
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for place in places.split(',') {
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => {
                let (host, after) = v6.split_once(']').ok_or(UrlError::Syntax("`[` without `]`"))?;
                (host, after.strip_prefix(':').unwrap_or(after))
            }
            None => place.rsplit_once(':').unwrap_or((place, "")),
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        push("host", hosts.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        push("port", ports.join(","));
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if let Some(name) = path.strip_prefix('/').filter(|name| !name.is_empty()) {
        push("dbname", decode(name)?);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(UrlError::Syntax("a parameter after `?` without `=`"))?;
        push(&decode(key)?, decode(value)?);
    }
    Ok(pairs)
}

fn decode(text: &str) -> Result<String, UrlError> {
    const BROKEN: UrlError =
        UrlError::Syntax("a `%` that two hexadecimal digits do not follow; write `%` itself as %25");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or(BROKEN)?;
        let digit = |at: usize| (digits[at] as char).to_digit(16).ok_or(BROKEN);
        match (digit(0)? * 16 + digit(1)?) as u8 {
            0 => return Err(UrlError::Syntax("%00 is not allowed")),
            byte => bytes.push(byte),
        }
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Syntax("percent-encoded bytes that are not UTF-8"))
}

fn keyword_pairs(text: &str) -> Result<Vec<(String, String)>, UrlError> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            break;
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(if pairs.is_empty() { UrlError::Form } else { UrlError::Syntax("a keyword without `=`") });
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err(UrlError::Syntax("a `'` that is not closed")),
                None => break,
            }
        }
        pairs.push((key, value));
    }
    if pairs.is_empty() { Err(UrlError::Form) } else { Ok(pairs) }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(|item| item.trim().to_owned()).collect()
}

fn seconds(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_secs)
}

fn unix(dir: &str, port: u16) -> Place {
    Place::Unix(PathBuf::from(dir).join(format!(".s.PGSQL.{port}")))
}

fn os_user() -> Option<String> {
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut text = [0 as libc::c_char; 1024];
    let mut found = std::ptr::null_mut();
    // SAFETY: the entry and its text outlive the call, and `found` is set only when the entry has been filled.
    let name = unsafe {
        libc::getpwuid_r(libc::geteuid(), entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &mut found);
        if found.is_null() {
            return None;
        }
        CStr::from_ptr((*found).pw_name)
    };
    name.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, UrlError> {
        Target::parse(&Secret::from(text.to_owned()))
    }

    fn tcp(host: &str, port: u16) -> Place {
        Place::Tcp(host.into(), port)
    }

    #[test]
    fn both_forms_say_the_same() {
        let uri = parse("postgres://cdc:p%40ss@db.internal:6543/shop?sslmode=verify-full&connect_timeout=3").unwrap();
        let words =
            r"host=db.internal port=6543 user = cdc password='p@ss' dbname=shop sslmode=verify-full connect_timeout=3";
        let words = parse(words).unwrap();
        for target in [uri, words] {
            assert_eq!(target.hosts[0].place, tcp("db.internal", 6543));
            assert_eq!(target.hosts[0].password.as_ref().unwrap().reveal(), "p@ss");
            assert_eq!((target.user.as_str(), target.database.as_str()), ("cdc", "shop"));
            assert_eq!(target.tls.mode, SslMode::VerifyFull);
            assert_eq!(target.connect_timeout, Duration::from_secs(3));
        }
    }

    #[test]
    fn quotes_and_backslashes_are_taken_as_libpq_takes_them() {
        let target = parse(r"user=a\ b password='it\'s \\' dbname=''").unwrap();
        assert_eq!(target.user, "a b");
        assert_eq!(target.hosts[0].password.as_ref().unwrap().reveal(), r"it's \");
        assert_eq!(target.database, "a b");
    }

    #[test]
    fn finds_unix_sockets() {
        let default = Place::Unix("/var/run/postgresql/.s.PGSQL.5432".into());
        let other = Place::Unix("/tmp/pg/.s.PGSQL.6000".into());
        assert_eq!(parse("postgres://u@/d").unwrap().hosts[0].place, default);
        assert_eq!(parse("user=u").unwrap().hosts[0].place, default);
        assert_eq!(parse("postgres://u@%2Ftmp%2Fpg:6000/d").unwrap().hosts[0].place, other);
        assert_eq!(parse("postgres://u@/d?host=/tmp/pg&port=6000").unwrap().hosts[0].place, other);
        assert_eq!(parse("host=/tmp/pg port=6000 user=u").unwrap().hosts[0].place, other);
    }

    #[test]
    fn takes_several_hosts_in_order() {
        let places = |text| parse(text).unwrap().hosts.into_iter().map(|host| host.place).collect::<Vec<_>>();
        assert_eq!(places("postgres://u@a:1,b,[::1]:3/d"), [tcp("a", 1), tcp("b", 5432), tcp("::1", 3)]);
        assert_eq!(places("host=a,b port=7 user=u"), [tcp("a", 7), tcp("b", 7)]);
        let named = parse("host=db.internal hostaddr=10.0.0.1 user=u").unwrap();
        assert_eq!((named.hosts[0].name.as_str(), &named.hosts[0].place), ("db.internal", &tcp("10.0.0.1", 5432)));
    }

    #[test]
    fn names_what_is_wrong_and_what_would_be_right() {
        let says = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(
            says("postgres://u@h/d?slmode=require"),
            "source.postgres: unknown key `slmode`; the nearest right one is `sslmode`"
        );
        assert_eq!(says("host=h user=u port=x"), "source.postgres: port=x is not a port from 1 to 65535");
        assert!(says("postgres://u@h/d?sslmode=allow").contains("sslmode=allow` is not supported"));
        assert!(says("postgres://u@h/d?sslmode=verifyfull").contains("verify-ca, verify-full"));
        assert!(says("mysql://u@h/d").contains("neither a URI"));
        assert!(says("shop").contains("neither a URI"));
        assert!(says("").contains("neither a URI"));
        assert!(says("host=a,b port=1,2,3 user=u").contains("3 ports for 2 hosts"));
        assert!(says("postgres://u@h/d?sslcert=/c.pem").contains("go together"));
        assert!(says("postgres://u:100%@h/d").contains("%25"));
    }

    #[test]
    fn asks_the_authority_that_is_named() {
        let mode = |text: &str| parse(text).unwrap().tls.mode;
        assert_eq!(mode("postgres://u@h/d"), SslMode::Prefer);
        assert_eq!(mode("postgres://u@h/d?sslmode=require&sslrootcert=/ca.pem"), SslMode::VerifyCa);
        assert_eq!(mode("postgres://u@h/d?sslrootcert=system"), SslMode::VerifyFull);
        assert!(parse("postgres://u@h/d?sslrootcert=system&sslmode=require").is_err());
    }

    #[test]
    fn no_secret_is_ever_printed() {
        for text in ["postgres://u:hunter2@h/d", "user=u password=hunter2"] {
            assert!(!format!("{:?}", parse(text).unwrap()).contains("hunter2"));
        }
        for text in ["postgres://u:hunter2@h:x/d", "password=hunter2 portt=1", "password='hunter2", "pg://u:hunter2@h"]
        {
            let error = parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_binding_that_is_required_wants_tls() {
        let binding = |text: &str| parse(text).map(|target| target.channel_binding);
        assert_eq!(binding("postgres://u@h/d").unwrap(), ChannelBinding::Prefer);
        assert_eq!(binding("postgres://u@h/d?channel_binding=disable").unwrap(), ChannelBinding::Disable);
        assert_eq!(binding("host=h user=u channel_binding=require").unwrap(), ChannelBinding::Require);
        let says = |text: &str| parse(text).unwrap_err().to_string();
        assert!(says("postgres://u@h/d?channel_binding=require&sslmode=disable").contains("sslmode=disable forbids"));
        assert!(says("postgres://u@h/d?channel_binding=always").contains("disable, prefer or require"));
    }

    #[test]
    fn zero_leaves_a_value_to_the_system() {
        let text = "postgres://u@h/d?keepalives_idle=0&keepalives_interval=7&keepalives_count=0&tcp_user_timeout=0";
        let patience = parse(text).unwrap().patience;
        assert_eq!((patience.idle, patience.interval), (Duration::ZERO, Duration::from_secs(7)));
        assert_eq!((patience.count, patience.unacknowledged), (0, Duration::ZERO));
        assert!(parse("postgres://u@h/d?keepalives_idle=-1").is_err());
    }

    #[test]
    fn a_password_file_that_others_may_use_is_ignored_and_says_so() {
        use std::os::unix::fs::PermissionsExt;
        let path = tempfile::tempdir().unwrap().keep().join("pgpass");
        let text = format!("host=h user=u dbname=d passfile={}", path.display());
        let host = || parse(&text).unwrap().hosts.remove(0);
        assert!(host().passfile.unwrap().contains("cannot be read: No such file"));
        fs::write(&path, "h:5432:d:u:hunter2\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let found = host();
        assert!(found.password.is_none() && found.passfile.unwrap().starts_with("chmod 0600 "));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let found = host();
        assert_eq!((found.password.unwrap().reveal(), found.passfile), ("hunter2", None));
        fs::write(&path, "other:5432:d:u:hunter2\n").unwrap();
        assert!(host().passfile.unwrap().starts_with("no line of the password file "));
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn reads_a_password_file() {
        let line = passfile_line(r"db:*:shop:cdc:a\:b\\c").unwrap();
        let passwords = Passwords { file: vec![line], ..Passwords::default() };
        let found = |host| passwords.find(host, 5432, "shop", "cdc").map(|secret| secret.reveal().to_owned());
        assert_eq!(found("db").as_deref(), Some(r"a:b\c"));
        assert_eq!(found("other"), None);
    }
}
