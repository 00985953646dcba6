//! `PostgresSource`: a `Wire` -> committed transactions, by way of frame, pgoutput and assemble.

use std::future::pending;

use tokio::sync::mpsc::Receiver;

use crate::{
    change::Micros,
    lsn::Lsn,
    postgres::{
        assemble::{AssembleError, Assembler, Step},
        frame::{Frame, FrameError, Status},
        pgoutput,
        wire::{Question, Wire},
    },
    source::{Item, Load, LoadTable, Source, SourceError},
    transaction::Transaction,
};

/// Committed transactions of one replication session.
pub struct PostgresSource<W> {
    wire: W,
    assembler: Assembler,
    /// What the assembler waits to hear about.
    asked: Option<Question>,
    confirmed: Lsn,
    clock: fn() -> Micros,
    /// What is being loaded.
    loading: Option<Receiver<Result<Load, SourceError>>>,
    /// What of that has come and was not given yet; `None` within when it has broken off.
    loaded: Option<Option<Result<Load, SourceError>>>,
    /// Whose turn it is.
    load_first: bool,
    /// Nothing is read but what is loaded.
    paused: bool,
    /// The server wants a status now.
    status_wanted: bool,
    /// Where in the log we are, for messages.
    lsn: Lsn,
}

/// What came does not decode; the text names where in the log it stands.
#[derive(Debug, thiserror::Error)]
#[error(
    "decode the log at {lsn}: {reason}. Nothing from there on has been confirmed; docs/operations.md, \"A change that \
     cannot be decoded\", tells what to do; to go on without the transaction: offshoot skip --lsn {lsn}"
)]
pub struct Undecodable {
    /// Where the message stands, or the last one that stood somewhere.
    pub lsn: Lsn,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a piece of the log.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not a message, or one that does not fit the ones before.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
}

impl<W: Wire> PostgresSource<W> {
    /// Goes on from `confirmed`, which the slot has.
    pub fn new(wire: W, assembler: Assembler, confirmed: Lsn, clock: fn() -> Micros) -> Self {
        Self {
            wire,
            assembler,
            asked: None,
            confirmed,
            clock,
            loading: None,
            loaded: None,
            load_first: false,
            paused: false,
            status_wanted: false,
            lsn: confirmed,
        }
    }

    /// What has come of the load since it was last asked. Between two of its items the stream has a turn.
    fn next_load(&mut self) -> Result<Option<Load>, SourceError> {
        let Some(load) = self.loaded.take() else { return Ok(None) };
        let load = load.unwrap_or_else(|| Err(SourceError::Passing("the load has broken off".into())))?;
        if load == Load::Done {
            self.loading = None;
        }
        Ok(Some(load))
    }

    fn take(&mut self, step: Result<Step, Reason>) -> Result<Option<Item>, SourceError> {
        match step.map_err(|reason| self.fault(reason))? {
            Step::More => {}
            Step::Ask(question) => self.asked = Some(question),
            Step::Done(mut transaction) => {
                if transaction.commit.xid == 0 {
                    // The log does not say when a message was written that stands alone.
                    transaction.commit.time = (self.clock)();
                }
                return Ok(Some(Item::Transaction(transaction)));
            }
        }
        Ok(None)
    }

    fn fault(&self, reason: Reason) -> SourceError {
        match reason {
            Reason::Assemble(AssembleError::Spill(error)) => SourceError::Spill(error),
            reason => SourceError::Undecodable(Box::new(Undecodable { lsn: self.lsn, reason })),
        }
    }
}

impl<W: Wire> Source for PostgresSource<W> {
    fn load(&mut self, tables: Vec<LoadTable>) {
        (self.loading, self.loaded) = (Some(self.wire.load(tables)), None);
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    async fn ready(&mut self) -> Result<(), SourceError> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let Self { wire, assembler, asked, loading, loaded, load_first, paused, .. } = self;
        let load = async {
            match loading {
                Some(loading) => loading.recv().await,
                None => pending().await,
            }
        };
        let closing = assembler.is_closing();
        let stream = async {
            match (asked.as_ref(), *paused) {
                (_, true) => pending().await,
                // `next` goes on with it, whether or not more comes.
                (None, false) if closing => Ok(None),
                (None, false) => wire.readable().await.map(|()| None),
                (Some(question), false) => wire.facts(question).await.map(Some),
            }
        };
        // In turn, so that neither keeps the other waiting.
        enum Came<L, F> {
            Load(L),
            Stream(F),
        }
        *load_first = !*load_first;
        let came = match *load_first {
            true => tokio::select! { biased; load = load => Came::Load(load), facts = stream => Came::Stream(facts) },
            false => tokio::select! { biased; facts = stream => Came::Stream(facts), load = load => Came::Load(load) },
        };
        match came {
            Came::Load(load) => *loaded = Some(load),
            Came::Stream(facts) => {
                if let Some(facts) = facts? {
                    assembler.answer(facts);
                    *asked = None;
                }
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Item>, SourceError> {
        if let Some(load) = self.next_load()? {
            return Ok(Some(Item::Load(load)));
        }
        while self.asked.is_none() && !self.paused {
            if self.assembler.is_closing() {
                let step = self.assembler.close();
                if let Some(item) = self.take(step.map_err(Reason::from))? {
                    return Ok(Some(item));
                }
                continue;
            }
            let Some(payload) = self.wire.payload()? else { return Ok(None) };
            // The error is made apart from `self`, which the payload borrows.
            let step = match Frame::decode(payload) {
                Ok(Frame::Wal { start, message, .. }) => {
                    self.lsn = if start == Lsn::INVALID { self.lsn } else { start };
                    let assembler = &mut self.assembler;
                    let step = if assembler.is_in_block() {
                        let message = pgoutput::decode_in_block(message).map_err(AssembleError::from);
                        message.and_then(|(xid, message)| assembler.push_in_block(start, xid, message))
                    } else {
                        let message = pgoutput::decode(message).map_err(AssembleError::from);
                        message.and_then(|message| assembler.push(start, message))
                    };
                    step.map_err(Reason::from)
                }
                Ok(Frame::Keepalive { server, reply }) => {
                    self.status_wanted |= reply;
                    // Inside a transaction the server's position may be ahead of what has been sent.
                    if !self.assembler.is_open() && server > self.confirmed {
                        return Ok(Some(Item::Progress(server)));
                    }
                    Ok(Step::More)
                }
                Err(error) => Err(error.into()),
            };
            if let Some(item) = self.take(step)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    fn recycle(&mut self, transaction: Transaction) {
        self.assembler.recycle(transaction);
    }

    fn status_wanted(&self) -> bool {
        self.status_wanted
    }

    async fn confirm(&mut self, confirmed: Lsn) -> Result<(), SourceError> {
        self.confirmed = self.confirmed.max(confirmed);
        self.status_wanted = false;
        self.wire.write(&Status { confirmed: self.confirmed, now: (self.clock)() }.encode()).await
    }

    async fn close(self) {
        self.wire.close().await;
    }
}
