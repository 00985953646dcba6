//! What is in flight -> the position that Postgres may forget. Pure.
//!
//! A ticket is opened for each transaction and for each idle keepalive, in commit order. Acknowledgements come in any
//! order; tickets retire in the order of their opening, so what is delivered is the longest prefix, and a transaction that
//! has not been delivered cannot be passed. Postgres may forget what a committed progress record covers, and no record
//! covers what has not been delivered. It is told positions only that it has named itself: one that a person has named may
//! lie within a commit record, and Postgres would not send that transaction again.

use std::collections::VecDeque;

#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};
use crate::{
    change::{Commit, Micros},
    lsn::Lsn,
    sink::{Acknowledgement, Ticket},
};

/// Tickets in flight, oldest first, and the position before them.
#[derive(Debug)]
pub struct Ledger {
    /// The last position that the source has named and that committed progress records cover.
    confirmed: Lsn,
    /// The end of what committed progress records cover.
    covered: Lsn,
    /// The end of the longest delivered prefix.
    retired: Lsn,
    /// The number of the ticket at the front.
    oldest: u64,
    tickets: VecDeque<Entry>,
    bytes: u64,
    delivered: Option<Commit>,
    /// When those were committed that have retired since somebody asked.
    news: Vec<Micros>,
}

#[derive(Debug)]
struct Entry {
    /// `None` for a keepalive.
    commit: Option<Commit>,
    /// What is confirmed when it and all before it have retired.
    end: Lsn,
    /// Records sent and not acknowledged.
    pending: u64,
    /// All its records have been sent.
    closed: bool,
}

impl Ledger {
    /// Nothing in flight; everything before `confirmed` is done.
    pub fn new(confirmed: Lsn) -> Self {
        Self {
            confirmed,
            covered: confirmed,
            retired: confirmed,
            oldest: 0,
            tickets: VecDeque::new(),
            bytes: 0,
            delivered: None,
            news: Vec::new(),
        }
    }

    /// As `before`, but a committed progress record covers everything before `published`.
    pub fn going_on(before: &Ledger, published: Lsn) -> Self {
        Self { covered: published.max(before.covered), ..Self::new(before.confirmed) }
    }

    /// Opens the ticket of a transaction.
    pub fn open(&mut self, commit: Commit) -> Ticket {
        let end = commit.end;
        self.tickets.push_back(Entry { commit: Some(commit), end, pending: 0, closed: false });
        #[cfg(test)]
        if is_planted(PlantedBug::ConfirmsReceived) {
            self.retired = end;
        }
        Ticket(self.oldest + self.tickets.len() as u64 - 1)
    }

    /// Opens the ticket of records that belong to no transaction: nothing more is confirmed when they are delivered than before them.
    pub fn aside(&mut self) -> Ticket {
        let end = self.tickets.back().map_or(self.retired, |last| last.end);
        self.tickets.push_back(Entry { commit: None, end, pending: 0, closed: false });
        Ticket(self.oldest + self.tickets.len() as u64 - 1)
    }

    /// Counts records of an open ticket, and what they take of the budget, as sent.
    pub fn sent(&mut self, ticket: Ticket, records: u64, bytes: u64) {
        let entry = self.entry(ticket);
        entry.pending += records;
        self.bytes += bytes;
    }

    /// No more records of this ticket will be sent.
    pub fn close(&mut self, ticket: Ticket) {
        self.entry(ticket).closed = true;
        self.retire();
    }

    /// The source has nothing before `position` that it has not given: a ticket without records, which waits its turn.
    pub fn progress(&mut self, position: Lsn) {
        match self.tickets.back_mut() {
            // Nothing to wait for between the two: one ticket serves both.
            Some(last) if last.closed && last.pending == 0 => last.end = last.end.max(position),
            _ => {
                let end = position.max(self.tickets.back().map_or(self.retired, |last| last.end));
                self.tickets.push_back(Entry { commit: None, end, pending: 0, closed: true });
            }
        }
        self.retire();
    }

    /// Records have become durable.
    pub fn acknowledge(&mut self, acknowledgement: Acknowledgement) {
        let Acknowledgement { ticket, records, bytes } = acknowledgement;
        #[cfg(test)]
        if is_planted(PlantedBug::RetiresOneEarly) && ticket.0 < self.oldest {
            return;
        }
        let entry = self.entry(ticket);
        entry.pending = entry.pending.checked_sub(records).expect("no more records are acknowledged than were sent");
        #[cfg(test)]
        if is_planted(PlantedBug::ConfirmsNewest) {
            self.retired = self.retired.max(self.entry(ticket).end);
        }
        self.bytes = self.bytes.checked_sub(bytes).expect("no more bytes are acknowledged than were sent");
        self.retire();
    }

    /// A progress record that covers everything before `position` is committed.
    pub fn commit(&mut self, position: Lsn) {
        assert!(position <= self.retired(), "a progress record covers only what is delivered");
        if position > self.covered {
            (self.covered, self.confirmed) = (position, position);
        }
    }

    /// What Postgres may forget.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// The end of what committed progress records cover.
    pub fn covered(&self) -> Lsn {
        self.covered
    }

    /// The end of the longest prefix that is delivered, whether or not it is committed.
    pub fn retired(&self) -> Lsn {
        self.retired.max(self.covered)
    }

    /// The end of the longest prefix of which every record has been sent.
    pub fn sent_whole(&self) -> Lsn {
        // Only the newest ticket can still be open.
        let closed = self.tickets.iter().rev().find(|entry| entry.closed);
        closed.map_or(self.retired, |entry| entry.end).max(self.covered)
    }

    /// Bytes sent and not acknowledged.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes
    }

    /// Transactions and keepalives that have not retired.
    pub fn tickets_in_flight(&self) -> usize {
        self.tickets.len()
    }

    /// The commit of a transaction in flight.
    pub fn commit_of(&self, ticket: Ticket) -> Option<Commit> {
        let index = ticket.0.checked_sub(self.oldest)?;
        self.tickets.get(index as usize)?.commit
    }

    /// The commit of the oldest transaction in flight.
    pub fn oldest(&self) -> Option<Commit> {
        self.tickets.iter().find_map(|entry| entry.commit)
    }

    /// The commit of the newest transaction that has retired.
    pub fn delivered(&self) -> Option<Commit> {
        self.delivered
    }

    /// When the transactions were committed in Postgres that have retired since the last call.
    pub fn newly_retired(&mut self) -> impl Iterator<Item = Micros> {
        self.news.drain(..)
    }

    fn entry(&mut self, ticket: Ticket) -> &mut Entry {
        let index = ticket.0.checked_sub(self.oldest).expect("a retired ticket has nothing in flight");
        self.tickets.get_mut(index as usize).expect("the ledger opened the ticket")
    }

    fn retire(&mut self) {
        while let Some(front) = self.tickets.front() {
            if !front.closed || front.pending > self.pending_max() {
                break;
            }
            self.retired = self.retired.max(front.end);
            if self.retired <= self.covered {
                self.confirmed = self.retired;
            }
            self.delivered = front.commit.or(self.delivered);
            self.news.extend(front.commit.map(|commit| commit.time));
            self.tickets.pop_front();
            self.oldest += 1;
        }
    }

    #[cfg(not(test))]
    fn pending_max(&self) -> u64 {
        0
    }

    #[cfg(test)]
    fn pending_max(&self) -> u64 {
        u64::from(is_planted(PlantedBug::RetiresOneEarly))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(end: u64) -> Commit {
        Commit { xid: 1, lsn: Lsn(end - 1), end: Lsn(end), time: 0 }
    }

    fn transaction(ledger: &mut Ledger, end: u64, records: u64) -> Ticket {
        let ticket = ledger.open(commit(end));
        ledger.sent(ticket, records, records * 100);
        ledger.close(ticket);
        ticket
    }

    fn acknowledge(ledger: &mut Ledger, ticket: Ticket, records: u64) {
        ledger.acknowledge(Acknowledgement { ticket, records, bytes: records * 100 });
    }

    #[test]
    fn confirms_the_longest_acknowledged_prefix() {
        let mut ledger = Ledger::new(Lsn(5));
        let first = transaction(&mut ledger, 10, 2);
        let second = transaction(&mut ledger, 20, 1);
        acknowledge(&mut ledger, second, 1);
        assert_eq!(ledger.retired(), Lsn(5));
        acknowledge(&mut ledger, first, 1);
        assert_eq!(ledger.retired(), Lsn(5));
        acknowledge(&mut ledger, first, 1);
        assert_eq!(ledger.retired(), Lsn(20));
        assert_eq!((ledger.bytes_in_flight(), ledger.tickets_in_flight()), (0, 0));
    }

    #[test]
    fn a_transaction_that_is_still_being_sent_holds_what_comes_after() {
        let mut ledger = Ledger::new(Lsn(0));
        let ticket = ledger.open(commit(10));
        ledger.sent(ticket, 1, 100);
        acknowledge(&mut ledger, ticket, 1);
        ledger.progress(Lsn(30));
        assert_eq!(ledger.retired(), Lsn(0));
        assert_eq!((ledger.commit_of(ticket), ledger.oldest()), (Some(commit(10)), Some(commit(10))));
        assert_eq!(ledger.delivered(), None);
        ledger.close(ticket);
        assert_eq!(ledger.retired(), Lsn(30));
        assert_eq!((ledger.commit_of(ticket), ledger.oldest()), (None, None));
        assert_eq!(ledger.delivered(), Some(commit(10)));
    }

    #[test]
    fn a_keepalive_waits_its_turn_and_many_are_one() {
        let mut ledger = Ledger::new(Lsn(0));
        let ticket = transaction(&mut ledger, 10, 1);
        for position in [11, 12, 13] {
            ledger.progress(Lsn(position));
        }
        assert_eq!((ledger.retired(), ledger.tickets_in_flight()), (Lsn(0), 2));
        acknowledge(&mut ledger, ticket, 1);
        assert_eq!(ledger.retired(), Lsn(13));
    }

    #[test]
    fn transactions_without_records_and_idle_progress_advance_at_once() {
        let mut ledger = Ledger::new(Lsn(0));
        transaction(&mut ledger, 10, 0);
        assert_eq!(ledger.retired(), Lsn(10));
        ledger.progress(Lsn(12));
        ledger.progress(Lsn(11));
        assert_eq!(ledger.retired(), Lsn(12));
    }

    #[test]
    fn confirms_what_a_committed_record_covers() {
        let mut ledger = Ledger::new(Lsn(5));
        let first = transaction(&mut ledger, 10, 1);
        ledger.progress(Lsn(12));
        let open = ledger.open(commit(20));
        ledger.sent(open, 1, 100);
        assert_eq!((ledger.sent_whole(), ledger.retired(), ledger.confirmed()), (Lsn(12), Lsn(5), Lsn(5)));
        acknowledge(&mut ledger, first, 1);
        assert_eq!((ledger.retired(), ledger.confirmed()), (Lsn(12), Lsn(5)));
        ledger.commit(Lsn(12));
        assert_eq!((ledger.sent_whole(), ledger.confirmed()), (Lsn(12), Lsn(12)));
    }

    #[test]
    fn confirms_of_what_was_covered_before_only_what_the_source_names() {
        let mut ledger = Ledger::going_on(&Ledger::new(Lsn(5)), Lsn(15));
        assert_eq!((ledger.retired(), ledger.sent_whole(), ledger.confirmed()), (Lsn(15), Lsn(15), Lsn(5)));
        ledger.progress(Lsn(10));
        assert_eq!((ledger.retired(), ledger.confirmed()), (Lsn(15), Lsn(10)));
        let ticket = transaction(&mut ledger, 20, 1);
        ledger.commit(Lsn(15));
        acknowledge(&mut ledger, ticket, 1);
        assert_eq!((ledger.retired(), ledger.covered(), ledger.confirmed()), (Lsn(20), Lsn(15), Lsn(10)));
        ledger.commit(Lsn(20));
        assert_eq!((ledger.covered(), ledger.confirmed()), (Lsn(20), Lsn(20)));
    }

    #[test]
    #[should_panic(expected = "covers only what is delivered")]
    fn no_record_covers_what_is_not_delivered() {
        let mut ledger = Ledger::new(Lsn(5));
        transaction(&mut ledger, 10, 1);
        ledger.commit(Lsn(10));
    }
}
