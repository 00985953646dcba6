//! Mistakes that the crash simulation must find. They are there in test builds alone, and made on one thread.

use std::cell::Cell;

/// A mistake in what keeps the promises of delivery.
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
    /// A standby fences off the active one before it has the slot.
    FencesBeforeTheSlot,
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
