//! A slot -> its rows, counted and thrown away, by a reader that is as simple as one can be: a blocking socket and one buffer.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use offshoot::{
    lsn::Lsn,
    postgres::frame::{Frame, POSTGRES_EPOCH, Status},
};
use postgres_protocol::{
    authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    message::{backend::Message, frontend},
};
use tokio_postgres::{Config, config::Host, fallible_iterator::FallibleIterator};
use tokio_util::bytes::BytesMut;

use crate::counted::{self, Tally};

const PAUSE: Duration = Duration::from_micros(500);
const PLAIN_BYTES_MAX: usize = 16 << 10;
const BUFFER_BYTES: usize = 1 << 20;

/// How it reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// What is there, at once.
    Eager,
    /// At most 16 KiB, and half a millisecond later again.
    Plain,
}

/// A session that streams.
pub(crate) struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Raw {
    /// Logs in and starts to stream.
    pub(crate) fn start(url: &str, slot: &str, publication: &str) -> Raw {
        let config: Config = url.parse().expect("it is a URL");
        let Some(Host::Tcp(host)) = config.get_hosts().first() else { panic!("a host is named") };
        let stream = TcpStream::connect((host.as_str(), config.get_ports()[0])).expect("the server listens");
        stream.set_nodelay(true).expect("TCP has it");
        let mut raw = Raw { stream, buffer: BytesMut::new() };
        raw.log_in(&config).expect("the server lets us in");
        raw.stream_from(slot, publication).expect("the slot is free");
        raw
    }

    fn log_in(&mut self, config: &Config) -> io::Result<()> {
        let named = [("user", config.get_user()), ("database", config.get_dbname()), ("replication", Some("database"))];
        let named = named.into_iter().map(|(name, value)| (name, value.expect("the URL says it")));
        self.send(|out| frontend::startup_message(named.chain([("client_encoding", "UTF8")]), out))?;
        let mut scram = ScramSha256::new(config.get_password().unwrap_or_default(), ChannelBinding::unsupported());
        loop {
            match self.message()? {
                Message::AuthenticationSasl(_) => {
                    self.send(|out| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), out))?;
                }
                Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data())?;
                    self.send(|out| frontend::sasl_response(scram.message(), out))?;
                }
                Message::AuthenticationSaslFinal(body) => scram.finish(body.data())?,
                Message::ReadyForQuery(_) => return Ok(()),
                _ => {}
            }
        }
    }

    fn stream_from(&mut self, slot: &str, publication: &str) -> io::Result<()> {
        let command =
            format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names '{publication}')");
        self.send(|out| frontend::query(&command, out))?;
        loop {
            match (self.buffer.first(), self.buffer.get(1..5)) {
                // CopyBothResponse, which postgres-protocol does not know.
                (Some(b'W'), Some(len)) => {
                    let len = 1 + u32::from_be_bytes(len.try_into().expect("four bytes")) as usize;
                    if self.buffer.len() >= len {
                        let _ = self.buffer.split_to(len);
                        return Ok(());
                    }
                    self.fill()?;
                }
                (Some(b'W') | None, _) => self.fill()?,
                _ => drop(self.message()?),
            }
        }
    }

    fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> io::Result<()> {
        let mut out = BytesMut::new();
        write(&mut out)?;
        self.stream.write_all(&out)
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let read = self.stream.read(&mut bytes)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(())
    }

    fn message(&mut self) -> io::Result<Message> {
        loop {
            match Message::parse(&mut self.buffer)? {
                Some(Message::ErrorResponse(body)) => {
                    let texts: Vec<_> = body
                        .fields()
                        .map(|field| Ok(String::from_utf8_lossy(field.value_bytes()).into_owned()))
                        .collect()?;
                    return Err(io::Error::other(texts.join(", ")));
                }
                Some(message) => return Ok(message),
                None => self.fill()?,
            }
        }
    }

    /// Reads until so many transactions are there. Gives the time from the first row to the last, and this thread's processor time.
    pub(crate) fn drain(&mut self, how: How, tally: &mut Tally) -> (Duration, Duration) {
        let mut inbox = vec![0; BUFFER_BYTES];
        let (mut start, mut end) = (0, self.buffer.len());
        inbox[..end].copy_from_slice(&self.buffer);
        let (mut told, cpu_before) = (Instant::now(), counted::thread_cpu());
        while !tally.is_full() {
            if how == How::Plain {
                thread::sleep(PAUSE);
            }
            if start > 0 && inbox.len() - end < PLAIN_BYTES_MAX {
                inbox.copy_within(start..end, 0);
                (start, end) = (0, end - start);
            }
            if inbox.len() - end < PLAIN_BYTES_MAX {
                inbox.resize(inbox.len() * 2, 0);
            }
            let room = if how == How::Plain { PLAIN_BYTES_MAX } else { inbox.len() - end };
            let read = self.stream.read(&mut inbox[end..end + room]).expect("the server stays");
            assert!(read > 0, "the server has closed");
            end += read;
            let mut wanted = told.elapsed() > Duration::from_secs(3);
            while let Some((tag, body)) = message(&inbox[start..end]) {
                assert_eq!(tag, b'd', "{}", String::from_utf8_lossy(body));
                match Frame::decode(body).expect("a frame") {
                    Frame::Wal { message, .. } => tally.count(message),
                    Frame::Keepalive { reply, .. } => wanted |= reply,
                }
                start += 5 + body.len();
            }
            if start == end {
                (start, end) = (0, 0);
            }
            if wanted {
                self.tell().expect("the server stays");
                told = Instant::now();
            }
        }
        (tally.took(), counted::thread_cpu() - cpu_before)
    }

    /// That we are here; the slot stays where it is.
    fn tell(&mut self) -> io::Result<()> {
        let status = Status { confirmed: Lsn(0), now: POSTGRES_EPOCH }.encode();
        let mut out = vec![b'd'];
        out.extend_from_slice(&(status.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(&status);
        self.stream.write_all(&out)
    }

    /// Leaves, and waits until the server has noticed.
    pub(crate) fn close(mut self) {
        let left = self.send(|out| {
            frontend::terminate(out);
            Ok(())
        });
        left.and_then(|()| io::copy(&mut self.stream, &mut io::sink()).map(drop)).unwrap_or_default();
    }
}

/// The first message, when it is whole: its tag and its body.
fn message(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let len = u32::from_be_bytes(bytes.get(1..5)?.try_into().expect("four bytes")) as usize;
    Some((bytes[0], bytes.get(5..1 + len)?))
}
