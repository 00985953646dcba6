//! Socket -> bytes of one CopyData, and status back: the replication session. IO.

use std::{
    future::poll_fn,
    io,
    ops::Range,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    pin::Pin,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, CopyDataBody, DataRowBody, ErrorResponseBody, Message},
        frontend,
    },
};
use tokio::sync::mpsc::Receiver;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, unix::AsyncFd},
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::fallible_iterator::FallibleIterator;
use tokio_util::bytes::BytesMut;
use tracing::debug;

use super::{
    Ends,
    catalog::Control,
    connect::{Stream, connect},
    fault::{Fault, NOT_BOUND, Said, Step, Who},
    load,
    pace::{PAUSE, Pace},
    url::{ChannelBinding, Host, Target},
    wire::{Question, TableFacts, Wire},
};
use crate::{
    lsn::Lsn,
    source::{Load, LoadTable, SourceError},
};

/// A write that takes longer has nobody at the other end.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the walsender may take to end when we leave. It is normally gone in a millisecond.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// At most so much at once from a Unix socket, where pacing gains nothing.
const UNIX_READ_BYTES: usize = 64 << 10;
/// Room for each read of a session that does not stream.
const READ_BYTES: usize = 32 << 10;
/// What the buffer keeps after a large message has gone through it.
const BUFFER_BYTES_KEPT: usize = 512 << 10;
/// Postgres makes no message larger than its largest allocation.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Text that is the same whatever the server's, the database's and the role's defaults are.
const PINNED: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("statement_timeout", "0"),
    // The slot of a host that vanished is free within seconds.
    ("wal_sender_timeout", "10s"),
];

/// Where only rows are read. No lock is waited for so long that others queue behind us, a policy that hides rows is an error,
/// and rows come in their physical order.
const PINNED_TO_READ: &[(&str, &str)] = &[
    ("lock_timeout", "2s"),
    ("row_security", "off"),
    ("enable_seqscan", "off"),
    ("synchronize_seqscans", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
];

/// What a session is for. All have the same text settings, and so values look the same in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Replication commands.
    Replicate,
    /// Rows of tables.
    Read,
}

/// A session that has logged in and streams nothing yet.
pub(crate) struct Greeting {
    stream: Stream,
    buffer: BytesMut,
    pub(crate) who: Who,
    /// What errors are said of.
    pub(crate) step: Step,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Debug)]
pub(crate) struct System {
    pub(crate) identifier: String,
    pub(crate) timeline: u32,
    pub(crate) end_of_log: Lsn,
    /// Earlier timelines, each with where the log left it.
    pub(crate) history: Vec<(u32, Lsn)>,
}

impl Greeting {
    /// Connects and logs in.
    pub(crate) async fn open(
        target: &Target,
        host: &Host,
        who: Who,
        application_name: &str,
        decoding_work_mem: Option<u64>,
        purpose: Purpose,
    ) -> Result<Greeting, SourceError> {
        let step = match purpose {
            Purpose::Replicate => Step::LogInToReplicate,
            Purpose::Read => Step::LogIn,
        };
        let open = async {
            let stream = connect(target, host).await?;
            let mut greeting = Greeting { stream, buffer: BytesMut::new(), who: who.clone(), step };
            greeting.log_in(target, host, application_name, decoding_work_mem, purpose).await?;
            Ok(greeting)
        };
        let seconds = target.connect_timeout.as_secs();
        let late = || Fault::ConnectTimeout { address: who.address.clone(), seconds }.passing();
        timeout(target.connect_timeout, open).await.unwrap_or_else(|_| Err(late()))
    }

    async fn log_in(
        &mut self,
        target: &Target,
        host: &Host,
        application_name: &str,
        decoding_work_mem: Option<u64>,
        purpose: Purpose,
    ) -> Result<(), SourceError> {
        let work_mem = decoding_work_mem.map(|bytes| format!("{}kB", bytes.div_ceil(1024)));
        let named = [
            ("user", target.user.as_str()),
            ("database", target.database.as_str()),
            ("application_name", application_name),
        ];
        let of_purpose = match purpose {
            Purpose::Replicate => &[("replication", "database")],
            Purpose::Read => PINNED_TO_READ,
        };
        let options = target.options.as_deref().map(|options| ("options", options));
        let work_mem = work_mem.as_deref().map(|size| ("logical_decoding_work_mem", size));
        let parameters = named.into_iter().chain(options).chain(PINNED.iter().copied()).chain(work_mem);
        let parameters = parameters.chain(of_purpose.iter().copied());
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|error| self.impossible(error))?;
        self.send(&out).await?;
        // Whoever is in between could ask for less than SCRAM-SHA-256-PLUS, or for nothing.
        let mut may_be_unbound = target.channel_binding != ChannelBinding::Require;
        loop {
            match self.message(self.step).await? {
                Message::AuthenticationSasl(body) => {
                    self.scram(body, target.channel_binding, host).await?;
                    may_be_unbound = true;
                }
                Message::AuthenticationOk
                | Message::AuthenticationCleartextPassword
                | Message::AuthenticationMd5Password(_)
                    if !may_be_unbound =>
                {
                    return Err(self.not_bound());
                }
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => {
                    let password = self.password(host)?;
                    self.send_password(password.as_bytes()).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(target.user.as_bytes(), self.password(host)?.as_bytes(), body.salt());
                    self.send_password(hash.as_bytes()).await?;
                }
                Message::ReadyForQuery(_) => return Ok(()),
                Message::BackendKeyData(_) | Message::ParameterStatus(_) => {}
                _ => return Err(self.refuse("the server asks for a way to log in that offshoot does not know")),
            }
        }
    }

    async fn scram(
        &mut self,
        body: AuthenticationSaslBody,
        channel_binding: ChannelBinding,
        host: &Host,
    ) -> Result<(), SourceError> {
        let mut mechanisms = body.mechanisms();
        let (mut plain, mut plus) = (false, false);
        while let Some(mechanism) = mechanisms.next().map_err(|error| self.impossible(error))? {
            plain |= mechanism == SCRAM_SHA_256;
            plus |= mechanism == SCRAM_SHA_256_PLUS;
        }
        let end_point = self.stream.end_point().filter(|_| channel_binding != ChannelBinding::Disable);
        let (mechanism, binding) = match end_point {
            Some(end_point) if plus => (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point)),
            _ if channel_binding == ChannelBinding::Require => return Err(self.not_bound()),
            _ if !plain => return Err(self.refuse("the server offers no SCRAM-SHA-256")),
            // A server that did offer it notices that somebody has taken the offer out.
            Some(_) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        let mut scram = ScramSha256::new(self.password(host)?.as_bytes(), binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out)
            .map_err(|error| self.impossible(error))?;
        self.send(&out).await?;
        let Message::AuthenticationSaslContinue(body) = self.message(self.step).await? else {
            return Err(self.refuse("the server breaks off SCRAM"));
        };
        scram.update(body.data()).map_err(|error| self.refuse(&error.to_string()))?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(|error| self.impossible(error))?;
        self.send(&out).await?;
        let Message::AuthenticationSaslFinal(body) = self.message(self.step).await? else {
            return Err(self.refuse("the server breaks off SCRAM"));
        };
        // The server proves that it knows the password too.
        scram.finish(body.data()).map_err(|error| self.refuse(&error.to_string()))
    }

    /// IDENTIFY_SYSTEM: which cluster this is.
    pub(crate) async fn identify(&mut self) -> Result<System, SourceError> {
        let nonsense = || "IDENTIFY_SYSTEM says nothing that makes sense".to_owned();
        let texts = self.ask("IDENTIFY_SYSTEM").await?.ok_or_else(|| self.refuse(&nonsense()))?;
        let mut system = read_system(&texts).ok_or_else(|| self.refuse(&nonsense()))?;
        if system.timeline > 1 {
            let command = format!("TIMELINE_HISTORY {}", system.timeline);
            let texts = self.ask(&command).await?.unwrap_or_default();
            system.history = texts.get(1).map(|history| read_history(history)).unwrap_or_default();
        }
        Ok(system)
    }

    /// A slot that is gone with this session, and where it begins.
    pub(crate) async fn create_temporary_slot(&mut self, slot: &str) -> Result<Lsn, SourceError> {
        let name = quote_identifier(slot);
        let command = format!("CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT");
        let lsn = self.ask(&command).await?.and_then(|texts| texts.get(1)?.parse().ok());
        lsn.ok_or_else(|| self.refuse("CREATE_REPLICATION_SLOT says nothing that makes sense"))
    }

    /// The same, and the name of a snapshot of all that was committed before it: it lasts until the next command, or the end.
    pub(crate) async fn create_exporting_slot(&mut self, slot: &str) -> Result<(Lsn, String), SourceError> {
        let name = quote_identifier(slot);
        let texts =
            self.ask(&format!("CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT")).await?;
        let told = texts.and_then(|texts| Some((texts.get(1)?.parse().ok()?, texts.get(2)?.clone())));
        told.ok_or_else(|| self.refuse("CREATE_REPLICATION_SLOT says nothing that makes sense"))
    }

    /// The rows of statements, or what the server says against them; it goes on after that.
    pub(crate) async fn statements(&mut self, sql: &str) -> Result<Result<Vec<Vec<String>>, Said>, SourceError> {
        self.send_query(sql).await?;
        let (mut rows, mut said) = (Vec::new(), None);
        loop {
            match self.any_message().await? {
                Message::DataRow(row) => rows.push(read_texts(&row).map_err(|error| self.impossible(error))?),
                Message::ErrorResponse(body) => said = Some(self.read_said(&body)?),
                Message::ReadyForQuery(_) => return Ok(said.map_or(Ok(rows), Err)),
                _ => {}
            }
        }
    }

    /// Begins a COPY to us, of which `line` gives the rows.
    pub(crate) async fn copy(&mut self, sql: &str) -> Result<(), SourceError> {
        self.send_query(sql).await?;
        while !matches!(self.message(self.step).await?, Message::CopyOutResponse(_)) {}
        Ok(())
    }

    /// The next row of a COPY: the server sends each apart. `None` at the end.
    pub(crate) async fn line(&mut self) -> Result<Option<CopyDataBody>, SourceError> {
        loop {
            match self.message(self.step).await? {
                Message::CopyData(line) => return Ok(Some(line)),
                Message::ReadyForQuery(_) => return Ok(None),
                _ => {}
            }
        }
    }

    /// An error that the server has said.
    pub(crate) fn sort(&self, said: Said) -> SourceError {
        said.sort(self.step, &self.who)
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), SourceError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|error| self.impossible(error))?;
        self.send(&out).await
    }

    /// The first row of the answer to a replication command, without its nulls.
    async fn ask(&mut self, command: &str) -> Result<Option<Vec<String>>, SourceError> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out).map_err(|error| self.impossible(error))?;
        self.send(&out).await?;
        let mut first = None;
        loop {
            match self.message(self.step).await? {
                Message::DataRow(row) => first = Some(read_texts(&row).map_err(|error| self.impossible(error))?),
                Message::ReadyForQuery(_) => return Ok(first),
                _ => {}
            }
        }
    }

    /// START_REPLICATION from where the slot stands.
    pub(crate) async fn start(
        mut self,
        slot: &str,
        publications: &[String],
        wishes: Wishes,
        control: Control,
        ends: Ends,
    ) -> Result<Session, SourceError> {
        let names = publications.iter().map(|name| quote_identifier(name)).collect::<Vec<_>>().join(",");
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 ({}, publication_names '{}'{})",
            quote_identifier(slot),
            if wishes.open_transactions { "proto_version '2', streaming 'on'" } else { "proto_version '1'" },
            names.replace('\'', "''"),
            if wishes.messages { ", messages 'true'" } else { "" }
        );
        let mut out = BytesMut::new();
        frontend::query(&command, &mut out).map_err(|error| self.impossible(error))?;
        self.send(&out).await?;
        // CopyBothResponse is unknown to postgres-protocol: it is looked for before anything is parsed.
        loop {
            match self.buffer.first() {
                None => self.fill().await?,
                Some(b'W') => {
                    match self.buffer.get(1..5).map(|len| u32::from_be_bytes(len.try_into().expect("four"))) {
                        Some(len) if self.buffer.len() > len as usize => {
                            let _ = self.buffer.split_to(1 + len as usize);
                            break;
                        }
                        _ => self.fill().await?,
                    }
                }
                Some(_) => {
                    let _ = self.message(Step::Stream).await?;
                }
            }
        }
        let pause = Pause::new().map_err(|error| self.impossible(error))?;
        let pace = self.stream.received().map(Pace::new);
        Ok(Session {
            stream: self.stream,
            control,
            ends,
            who: self.who,
            inbox: Inbox { bytes: self.buffer.to_vec(), start: 0 },
            outbox: Vec::new(),
            sent: 0,
            pace,
            pause,
            last_read: Instant::now(),
            waiting_since: None,
            asked: None,
        })
    }

    /// Leaves, and waits until the server has noticed.
    pub(crate) async fn close(mut self) {
        leave(&mut self.stream).await;
    }

    fn password<'a>(&self, host: &'a Host) -> Result<&'a str, SourceError> {
        host.password.as_ref().map(|password| password.reveal()).ok_or_else(|| self.refuse(&self.who.no_password()))
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<(), SourceError> {
        let mut out = BytesMut::new();
        frontend::password_message(password, &mut out).map_err(|error| self.impossible(error))?;
        self.send(&out).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|source| self.broken("write", source))
    }

    /// The next message that is not a notice; an ErrorResponse is an error.
    async fn message(&mut self, step: Step) -> Result<Message, SourceError> {
        match self.any_message().await? {
            Message::ErrorResponse(body) => Err(self.read_said(&body)?.sort(step, &self.who)),
            message => Ok(message),
        }
    }

    /// The next message that is not a notice.
    async fn any_message(&mut self) -> Result<Message, SourceError> {
        loop {
            match Message::parse(&mut self.buffer).map_err(|error| self.impossible(error))? {
                None => self.fill().await?,
                Some(Message::NoticeResponse(_)) => {}
                Some(message) => return Ok(message),
            }
        }
    }

    async fn fill(&mut self) -> Result<(), SourceError> {
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(self.broken("read", io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(source) => Err(self.broken("read", source)),
        }
    }

    fn read_said(&self, body: &ErrorResponseBody) -> Result<Said, SourceError> {
        Said::read(body.fields()).map_err(|error| self.impossible(error))
    }

    fn broken(&self, doing: &'static str, source: io::Error) -> SourceError {
        Fault::Broken { doing, address: self.who.address.clone(), source }.passing()
    }

    fn refuse(&self, what: &str) -> SourceError {
        Fault::LogIn { address: self.who.address.clone(), what: what.into() }.refused()
    }

    fn not_bound(&self) -> SourceError {
        Fault::NotBound { address: self.who.address.clone(), why: NOT_BOUND }.refused()
    }

    fn impossible(&self, error: io::Error) -> SourceError {
        Fault::Protocol { address: self.who.address.clone(), what: error.to_string() }.refused()
    }
}

/// What a session is to be told beside row changes that are committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    /// What `pg_logical_emit_message` writes.
    pub(crate) messages: bool,
    /// What large transactions do before they commit.
    pub(crate) open_transactions: bool,
}

/// The replication connection, streaming.
pub struct Session {
    stream: Stream,
    control: Control,
    /// How more sessions are opened.
    ends: Ends,
    who: Who,
    inbox: Inbox,
    /// Messages to the server; the first `sent` bytes are on their way.
    outbox: Vec<u8>,
    sent: usize,
    pace: Option<Pace>,
    pause: Pause,
    last_read: Instant,
    /// Set while a read waits for the server, also over calls that were cancelled.
    waiting_since: Option<Instant>,
    asked: Option<(Question, JoinHandle<Answer>)>,
}

type Answer = Result<TableFacts, SourceError>;

impl Wire for Session {
    fn load(&mut self, tables: Vec<LoadTable>) -> Receiver<Result<Load, SourceError>> {
        load::begin(self.ends.clone(), self.control.clone(), tables)
    }

    async fn readable(&mut self) -> Result<(), SourceError> {
        while !self.inbox.has_message().map_err(|what| self.nonsense(what))? {
            if self.pace.as_ref().is_some_and(Pace::pauses) {
                let since = self.last_read.elapsed();
                if since < PAUSE {
                    self.pause.wait(PAUSE - since).await.map_err(|source| self.broken("read", source))?;
                }
            }
            self.fill().await?;
        }
        Ok(())
    }

    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError> {
        loop {
            let Some((tag, body)) = self.inbox.next().map_err(|what| self.nonsense(what))? else { return Ok(None) };
            match tag {
                b'd' => return Ok(Some(&self.inbox.bytes[body])),
                b'E' => return Err(self.said(body, |said, who| said.sort(Step::Stream, who))),
                b'N' => debug!(bytes = body.len(), "notice from the walsender"),
                // ParameterStatus and NotificationResponse may come at any time, and mean nothing here.
                b'S' | b'A' => {}
                // CopyDone, CommandComplete, ReadyForQuery: the server has ended the stream in good order.
                b'c' | b'C' | b'Z' => return Err(Fault::Ended { address: self.who.address.clone() }.passing()),
                tag => return Err(self.nonsense(format!("a message {:?} in the stream", tag as char))),
            }
        }
    }

    async fn write(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        self.control.check()?;
        self.outbox.push(b'd');
        let len = u32::try_from(payload.len() + 4).expect("a status update is a few bytes");
        self.outbox.extend_from_slice(&len.to_be_bytes());
        self.outbox.extend_from_slice(payload);
        match timeout(WRITE_TIMEOUT, self.send()).await {
            Ok(sent) => sent.map_err(|source| self.broken("write", source)),
            Err(_) => {
                let address = self.who.address.clone();
                Err(Fault::WriteTimeout { address, seconds: WRITE_TIMEOUT.as_secs() }.passing())
            }
        }
    }

    async fn facts(&mut self, question: &Question) -> Answer {
        let answer = match &mut self.asked {
            Some((asked, answer)) if asked == question => answer,
            asked => {
                let (control, question) = (self.control.clone(), question.clone());
                let answer = tokio::spawn({
                    let question = question.clone();
                    async move { control.facts(&question).await }
                });
                &mut asked.insert((question, answer)).1
            }
        };
        let answered = answer.await;
        self.asked = None;
        answered.unwrap_or_else(|error| {
            let what = format!("ask the catalog: {error}");
            Err(Fault::Protocol { address: self.who.address.clone(), what }.passing())
        })
    }

    async fn close(mut self) {
        // A status that was begun is ended first, else Terminate would be read as a part of it.
        if timeout(CLOSE_TIMEOUT, self.send()).await.is_ok_and(|sent| sent.is_ok()) {
            leave(&mut self.stream).await;
        }
    }
}

impl Session {
    /// Reads once, bounded.
    async fn fill(&mut self) -> Result<(), SourceError> {
        let read_bytes = self.pace.as_ref().map_or(UNIX_READ_BYTES, Pace::read_bytes);
        self.inbox.make_room(read_bytes);
        let (stream, inbox, waiting_since) = (&mut self.stream, &mut self.inbox, &mut self.waiting_since);
        let read = poll_fn(|cx| {
            let mut buf = ReadBuf::uninit(&mut inbox.bytes.spare_capacity_mut()[..read_bytes]);
            if Pin::new(&mut *stream).poll_read(cx, &mut buf)?.is_pending() {
                waiting_since.get_or_insert_with(Instant::now);
                return Poll::Pending;
            }
            let read = buf.filled().len();
            let len = inbox.bytes.len() + read;
            // SAFETY: `poll_read` has filled that many bytes of the spare room.
            unsafe { inbox.bytes.set_len(len) };
            Poll::Ready(Ok(read))
        });
        // The control connection is told of a shutdown first: a walsender waits for us to confirm what we may not.
        let read: io::Result<usize> = tokio::select! {
            biased;
            read = read => read,
            lost = self.control.lost() => return Err(lost),
        };
        let read = match read {
            Ok(0) => return Err(self.broken("read", io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => read,
            Err(source) => return Err(self.broken("read", source)),
        };
        self.last_read = Instant::now();
        let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| self.last_read - since);
        if let Some(pace) = &mut self.pace
            && pace.read(read, waited)
            && let Some(received) = self.stream.received()
        {
            pace.judge(received);
        }
        Ok(())
    }

    async fn send(&mut self) -> io::Result<()> {
        while self.sent < self.outbox.len() {
            match self.stream.write(&self.outbox[self.sent..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => self.sent += sent,
            }
        }
        self.outbox.clear();
        self.sent = 0;
        self.stream.flush().await
    }

    fn said(&self, body: Range<usize>, sort: impl Fn(Said, &Who) -> SourceError) -> SourceError {
        let mut message = BytesMut::with_capacity(body.len() + 5);
        message.extend_from_slice(b"E");
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(&self.inbox.bytes[body]);
        match Message::parse(&mut message) {
            Ok(Some(Message::ErrorResponse(body))) => match Said::read(body.fields()) {
                Ok(said) => sort(said, &self.who),
                Err(error) => self.nonsense(error.to_string()),
            },
            _ => self.nonsense("an ErrorResponse that is none".into()),
        }
    }

    fn broken(&self, doing: &'static str, source: io::Error) -> SourceError {
        Fault::Broken { doing, address: self.who.address.clone(), source }.passing()
    }

    fn nonsense(&self, what: String) -> SourceError {
        SourceError::Undecodable(Box::new(Fault::Protocol { address: self.who.address.clone(), what }))
    }
}

/// What has come and has not been taken.
struct Inbox {
    bytes: Vec<u8>,
    /// Where the first message that has not been taken starts.
    start: usize,
}

impl Inbox {
    /// The length of the first message with its tag, once that is here.
    fn message_len(&self) -> Result<Option<usize>, String> {
        let Some(head) = self.bytes.get(self.start..self.start + 5) else { return Ok(None) };
        let len = u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&len) {
            return Err(format!("a message {:?} of {len} bytes", head[0] as char));
        }
        Ok(Some(1 + len))
    }

    fn has_message(&self) -> Result<bool, String> {
        Ok(self.message_len()?.is_some_and(|len| self.bytes.len() - self.start >= len))
    }

    /// Takes the first message: its tag and where its body is.
    fn next(&mut self) -> Result<Option<(u8, Range<usize>)>, String> {
        let Some(len) = self.message_len()? else { return Ok(None) };
        if self.bytes.len() - self.start < len {
            return Ok(None);
        }
        let (tag, body) = (self.bytes[self.start], self.start + 5..self.start + len);
        self.start += len;
        Ok(Some((tag, body)))
    }

    /// Sees to it that `room` more bytes can be read.
    fn make_room(&mut self, room: usize) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            if self.bytes.capacity() > BUFFER_BYTES_KEPT {
                self.bytes.shrink_to(BUFFER_BYTES_KEPT);
            }
        }
        if self.bytes.capacity() - self.bytes.len() >= room {
            return;
        }
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.capacity() - self.bytes.len() < room {
            // Towards the message's own end, by doubling: a length that lies costs no more than what has come.
            let missing = self.message_len().ok().flatten().unwrap_or(0).saturating_sub(self.bytes.len());
            self.bytes.reserve_exact(missing.min(self.bytes.len()).max(room));
        }
    }
}

/// A timer that keeps half a millisecond; tokio's counts in whole ones.
struct Pause {
    timer: AsyncFd<OwnedFd>,
}

impl Pause {
    fn new() -> io::Result<Pause> {
        // SAFETY: no pointer is passed; the descriptor that comes back is ours alone.
        let timer = unsafe {
            let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: the descriptor stays open as long as the `AsyncFd` that owns it.
        Ok(Pause { timer: unsafe { AsyncFd::register(timer)? } })
    }

    /// Cancel safe: setting the timer again takes back what it had to say.
    async fn wait(&mut self, time: Duration) -> io::Result<()> {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // All zeros would switch it off.
        let nanos = time.as_nanos().clamp(1, 999_999_999) as libc::c_long;
        let once = libc::itimerspec { it_interval: none, it_value: libc::timespec { tv_sec: 0, tv_nsec: nanos } };
        // SAFETY: `once` lives until the call returns; the old value is not asked for.
        let set = unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &raw const once, std::ptr::null_mut()) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        poll_fn(|cx| {
            loop {
                let mut ready = ready!(self.timer.poll_read_ready(cx))?;
                let mut times = 0u64;
                // SAFETY: the kernel writes 8 bytes into `times`.
                let read = unsafe { libc::read(self.timer.as_raw_fd(), (&raw mut times).cast(), size_of::<u64>()) };
                if read == size_of::<u64>() as isize {
                    return Poll::Ready(Ok(()));
                }
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Poll::Ready(Err(error));
                }
                ready.clear_ready();
            }
        })
        .await
    }
}

/// Sends Terminate, and reads until the server has closed: then the slot is free.
///
/// Not CopyDone: after it the walsender goes on to the end of the transaction that it decodes, and reads nothing more;
/// on Terminate it leaves at the next message that it looks at.
async fn leave(stream: &mut Stream) {
    let gone = async {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;
        let mut rest = vec![0; UNIX_READ_BYTES];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    match timeout(CLOSE_TIMEOUT, gone).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "the server was gone before we were"),
        Err(_) => debug!("the server is still busy; it will find the connection closed"),
    }
}

fn read_texts(row: &DataRowBody) -> io::Result<Vec<String>> {
    let mut texts = Vec::new();
    let mut ranges = row.ranges();
    while let Some(range) = ranges.next()? {
        texts.extend(range.map(|range| String::from_utf8_lossy(&row.buffer()[range]).into_owned()));
    }
    Ok(texts)
}

/// System identifier, timeline, and where the log ends.
fn read_system(texts: &[String]) -> Option<System> {
    let [identifier, timeline, end_of_log, ..] = texts else { return None };
    Some(System {
        identifier: identifier.clone(),
        timeline: timeline.parse().ok()?,
        end_of_log: end_of_log.parse().ok()?,
        history: Vec::new(),
    })
}

/// The lines of a timeline's history file: a timeline, where the log left it, and why.
fn read_history(file: &str) -> Vec<(u32, Lsn)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    file.lines().filter_map(line).collect()
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::config::Secret;

    /// What comes of logging in to a server that says this and closes, and how much it gets after the start-up message.
    async fn logged_in(words: &str, says: &[u8]) -> (SourceError, usize) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(says).await.unwrap();
        theirs.shutdown().await.unwrap();
        let text = Secret::from(format!("host=/x user=u dbname=d password=hunter2 {words}"));
        let target = Target::parse(&text).unwrap();
        let mut greeting = Greeting {
            stream: Stream::Unix(ours),
            buffer: BytesMut::new(),
            who: Who::default(),
            step: Step::LogInToReplicate,
        };
        let error = greeting.log_in(&target, &target.hosts[0], "a", None, Purpose::Replicate).await.unwrap_err();
        drop(greeting);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        (error, got.len() - u32::from_be_bytes(got[..4].try_into().unwrap()) as usize)
    }

    #[tokio::test]
    async fn no_password_leaves_us_unbound_where_binding_is_required() {
        let cleartext = b"R\0\0\0\x08\0\0\0\x03";
        for says in [
            &b"R\0\0\0\x08\0\0\0\0"[..],
            cleartext,
            b"R\0\0\0\x0c\0\0\0\x05salt",
            b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0",
            // Offered, but there is no TLS to bind to.
            b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
        ] {
            let (error, sent) = logged_in("channel_binding=require", says).await;
            assert!(matches!(error, SourceError::Refused(_)) && error.to_string().contains("bind"), "{error}");
            assert_eq!(sent, 0, "{error}");
        }
        let (error, sent) = logged_in("", cleartext).await;
        assert!(matches!(error, SourceError::Passing(_)) && sent > "hunter2".len(), "{error}");
    }

    fn inbox(bytes: &[u8]) -> Inbox {
        Inbox { bytes: bytes.to_vec(), start: 0 }
    }

    #[test]
    fn takes_whole_messages_only() {
        let mut inbox = inbox(b"d\0\0\0\x06abd\0\0\0\x05cd\0\0");
        assert_eq!(inbox.next(), Ok(Some((b'd', 5..7))));
        assert_eq!(inbox.next(), Ok(Some((b'd', 12..13))));
        assert_eq!(inbox.has_message(), Ok(false));
        assert_eq!(inbox.next(), Ok(None));
        inbox.make_room(1 << 20);
        assert_eq!((inbox.start, inbox.bytes.as_slice()), (0, &b"d\0\0"[..]));
    }

    #[test]
    fn refuses_lengths_that_cannot_be() {
        assert!(inbox(b"d\0\0\0\x03").next().is_err());
        assert!(inbox(b"d\xff\xff\xff\xff").has_message().is_err());
    }

    #[test]
    fn a_large_message_grows_the_buffer_by_doubling_and_leaves_it_small() {
        let mut large = inbox(b"d");
        large.bytes.extend_from_slice(&(100u32 << 20).to_be_bytes());
        large.make_room(16 << 10);
        assert!(large.bytes.capacity() <= 17 << 10);
        large.bytes.resize(32 << 20, 0);
        large.make_room(16 << 10);
        assert!((64 << 20..=65 << 20).contains(&large.bytes.capacity()));
        large.bytes.resize(5 + (100 << 20) - 4, 0);
        assert!(large.next().unwrap().is_some());
        large.make_room(16 << 10);
        assert_eq!(large.bytes.capacity(), BUFFER_BYTES_KEPT);
    }

    #[tokio::test]
    async fn pauses_for_less_than_a_millisecond() {
        let mut pause = Pause::new().unwrap();
        let best = |mut times: Vec<Duration>| {
            times.sort();
            times[0]
        };
        let mut times = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            pause.wait(PAUSE).await.unwrap();
            times.push(start.elapsed());
        }
        let best = best(times);
        assert!((PAUSE..Duration::from_millis(1)).contains(&best), "{best:?}");
    }

    #[test]
    fn reads_what_the_server_says_of_itself_and_of_earlier_timelines() {
        let texts = ["7710984767264127148", "3", "0/5000060", "shop"].map(String::from);
        let system = read_system(&texts).unwrap();
        assert_eq!((system.timeline, system.end_of_log), (3, Lsn(0x500_0060)));
        assert!(read_system(&texts[..2]).is_none());
        let history = "1\t0/3000000\tno recovery target specified\n\n2\t1/4000000\tbefore 2000-01-01 00:00:00+00\n";
        assert_eq!(read_history(history), [(1, Lsn(0x300_0000)), (2, Lsn(0x1_0400_0000))]);
    }
}
