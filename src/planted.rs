//! Mistakes that the crash simulation and the model test of the mapping must find. They are there in test builds alone, and made on one thread.

use std::cell::Cell;

/// A mistake in what keeps the promises of delivery, or in what makes events of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    /// Confirms the newest acknowledged transaction instead of the longest prefix.
    ConfirmsNewest,
    /// Confirms what was received instead of what was delivered.
    ConfirmsReceived,
    /// Retires a ticket while one of its records is in flight.
    RetiresOneEarly,
    /// Confirms what was sent, before the commit.
    ConfirmsBeforeCommit,
    /// The progress record is there to be seen before the events are.
    ProgressBeforeEvents,
    /// The events are there to be seen before the progress record is.
    ProgressAfterEvents,
    /// Sends the last transaction that is published once more.
    SkipsOneTooFew,
    /// Takes a transaction for published whose commit record starts where the published ones end.
    SkipsOneTooMany,
    /// Goes on from the slot, whatever the progress record says.
    ResumesFromTheSlot,
    /// Sends the last published change of a partial transaction once more.
    PartialOneTooFew,
    /// Leaves out the first change of a partial transaction that is not published.
    PartialOneTooMany,
    /// Who says where to go on does so in the epoch that there was.
    EpochNotRaised,
    /// The epoch of a transaction is that of the timeline on which it is published, not of the one that has its commit.
    EpochOfToday,
    /// After a restart within a transaction the mapping does not see what is published of it.
    PublishedIsUnseen,
    /// After a restart within a transaction its events are counted from there on.
    EventsCountAnew,
    /// A standby fences off the active one before it has the slot.
    FencesBeforeTheSlot,
    /// A row that was inserted and deleted is there.
    KeepsWhatWasDeleted,
    /// What was deleted and inserted at its key are two rows.
    ForgetsWhatWasDeleted,
    /// What was a row before a piece of the transaction that is on disk was it before the transaction.
    TakesOlderPiecesForThePast,
    /// A row whose key had changed before it was deleted is gone from where it was last.
    GoesFromWhereItCame,
    /// A value that an update does not repeat is not looked for in what the transaction said before.
    LeavesUnchangedValues,
    /// A child that has moved was changed.
    MovesAreChanges,
    /// Children do not follow their root to its new key.
    ChildrenStayBehind,
    /// A key that another row has got is given a tombstone.
    BuriesReusedKeys,
    /// Rows are kept on disk before Kafka has committed them.
    StoresBeforeTheCommit,
    /// The copy on disk says of the topic one record more than it has.
    StoresOneTooFar,
    /// What was put in a run that failed is kept on disk.
    KeepsWhatFailed,
    /// A standby follows what is not committed.
    FollowsTheUncommitted,
    /// Rows that were loaded from a log that a fail-over has undone are held.
    HoldsWhatWasUndone,
    /// What is left in the topic of loads that were killed stays, unless the run that ends the next load clears it away.
    LeavesEarlierLoads,
    /// What commits at the position of a load, or later, does not wait for its end.
    NothingWaitsForLoads,
    /// Keys come in the order of their text.
    SortsNumbersAsText,
    /// A look-up of what was sees what the transaction has made of it.
    SeesItsOwnFuture,
    /// Children that the transaction has touched are listed as they were too.
    ListsTouchedChildrenTwice,
    /// What the log does not say of an old row is taken from the row that has its new key.
    CompletesFromTheNewKey,
    /// The replica has a transaction's rows before its events are made.
    KeepsBeforeEvents,
    /// A key that a row has left is forgotten, whoever has it now.
    ForgetsReusedKeys,
}

thread_local! {
    static PLANTED: Cell<Option<PlantedBug>> = const { Cell::new(None) };
}

/// From now on this thread makes this mistake, or none.
pub(crate) fn plant(bug: Option<PlantedBug>) {
    PLANTED.set(bug);
}

/// Whether this thread is to make this mistake.
pub(crate) fn is_planted(bug: PlantedBug) -> bool {
    PLANTED.get() == Some(bug)
}
