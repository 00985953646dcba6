//! CopyData payload -> `Frame`; `Status` -> CopyData payload. Pure.
//!
//! The shapes are those of "Streaming Replication Protocol" in Postgres' manual. Times on this wire count microseconds
//! since 2000-01-01 UTC; here they count since 1970, as everywhere else in Offshoot.

use crate::{change::Micros, lsn::Lsn};

/// Microseconds from 1970-01-01 to 2000-01-01, both UTC.
pub const POSTGRES_EPOCH: Micros = 946_684_800_000_000;

/// What the server sends in one CopyData message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of the decoded log: one pgoutput message.
    Wal {
        /// Where the piece stands in the log; invalid for messages that stand nowhere, such as Relation.
        start: Lsn,
        /// The server's position when it sent this.
        server: Lsn,
        /// One pgoutput message.
        message: &'a [u8],
    },
    /// Nothing to send; a sign of life.
    Keepalive {
        /// Everything that was committed before this has been sent.
        server: Lsn,
        /// The server wants a status now.
        reply: bool,
    },
}

/// What we tell the server: how far its log may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Everything before this is durable in Kafka.
    pub confirmed: Lsn,
    /// Our clock.
    pub now: Micros,
}

/// The payload is not a frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Neither `w` nor `k`.
    #[error("a replication frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// It ends too early, or goes on after its end.
    #[error("a replication frame {kind:?} of {len} bytes")]
    Length {
        /// The frame's tag; `?` when there is none.
        kind: char,
        /// Bytes, tag included.
        len: usize,
    },
    /// A keepalive's reply flag is neither 0 nor 1.
    #[error("a keepalive whose reply flag is {0}")]
    ReplyFlag(u8),
}

impl<'a> Frame<'a> {
    /// Reads one CopyData payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, FrameError> {
        let (&kind, body) = payload.split_first().ok_or(FrameError::Length { kind: '?', len: 0 })?;
        let wrong_length = FrameError::Length { kind: kind as char, len: payload.len() };
        match kind {
            b'w' => {
                let (head, message) = body.split_first_chunk::<24>().ok_or(wrong_length)?;
                Ok(Frame::Wal { start: lsn_at(head, 0), server: lsn_at(head, 8), message })
            }
            b'k' => {
                let head: &[u8; 17] = body.try_into().map_err(|_| wrong_length)?;
                let reply = match head[16] {
                    0 => false,
                    1 => true,
                    flag => return Err(FrameError::ReplyFlag(flag)),
                };
                Ok(Frame::Keepalive { server: lsn_at(head, 0), reply })
            }
            _ => Err(FrameError::UnknownKind(kind)),
        }
    }
}

impl Status {
    /// The payload of a Standby Status Update. Written, flushed and applied are one position: what Kafka has.
    pub fn encode(self) -> [u8; 34] {
        let mut payload = [0; 34];
        payload[0] = b'r';
        for at in [1, 9, 17] {
            payload[at..at + 8].copy_from_slice(&self.confirmed.0.to_be_bytes());
        }
        payload[25..33].copy_from_slice(&(self.now - POSTGRES_EPOCH).to_be_bytes());
        payload
    }
}

fn lsn_at(bytes: &[u8], at: usize) -> Lsn {
    Lsn(u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keepalive(reply: u8) -> Vec<u8> {
        let mut payload = vec![b'k'];
        payload.extend(7u64.to_be_bytes());
        payload.extend(0u64.to_be_bytes());
        payload.push(reply);
        payload
    }

    #[test]
    fn reads_wal_and_keepalive() {
        let mut wal = vec![b'w'];
        for number in [5u64, 6, 0] {
            wal.extend(number.to_be_bytes());
        }
        wal.extend(b"message");
        let expected = Frame::Wal { start: Lsn(5), server: Lsn(6), message: b"message" };
        assert_eq!(Frame::decode(&wal), Ok(expected));
        assert_eq!(Frame::decode(&keepalive(1)), Ok(Frame::Keepalive { server: Lsn(7), reply: true }));
    }

    #[test]
    fn refuses_short_long_and_unknown_frames() {
        assert_eq!(Frame::decode(b""), Err(FrameError::Length { kind: '?', len: 0 }));
        assert_eq!(Frame::decode(b"w123"), Err(FrameError::Length { kind: 'w', len: 4 }));
        let mut long = keepalive(0);
        long.push(0);
        assert_eq!(Frame::decode(&long), Err(FrameError::Length { kind: 'k', len: 19 }));
        assert_eq!(Frame::decode(b"x"), Err(FrameError::UnknownKind(b'x')));
        assert_eq!(Frame::decode(&keepalive(2)), Err(FrameError::ReplyFlag(2)));
    }

    #[test]
    fn status_carries_one_position_three_times() {
        let payload = Status { confirmed: Lsn(0x0102), now: POSTGRES_EPOCH + 9 }.encode();
        assert_eq!(payload[0], b'r');
        assert_eq!(payload[1..9], payload[9..17]);
        assert_eq!(payload[9..17], 0x0102u64.to_be_bytes());
        assert_eq!(payload[17..25], 0x0102u64.to_be_bytes());
        assert_eq!(payload[25..33], 9u64.to_be_bytes());
        assert_eq!(payload[33], 0);
    }
}
