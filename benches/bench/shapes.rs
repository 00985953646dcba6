//! What backlogs are made of.

use std::fmt::Write as _;

/// A backlog: tables, transactions that write to them, and what is to be told of them.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Below its bars.
    pub(crate) label: &'static str,
    /// Tables, and rows that are there before the slots are.
    pub(crate) schema: &'static str,
    /// The tables that are published.
    pub(crate) tables: &'static [&'static str],
    /// Row changes of these tables, where `ROWS` is not given.
    pub(crate) rows: u64,
    /// Row changes of these tables in a transaction; 0 is all of them in one.
    pub(crate) per_transaction: u64,
    /// SQL for transaction `t` of `n` row changes.
    pub(crate) write: &'static str,
    /// Row changes to an event.
    pub(crate) per_event: u64,
    /// `aggregates` and `events` that a transaction says all of; empty where there are none.
    pub(crate) events: &'static str,
    /// `aggregates` and `events` that need the replica; empty where they have no sense.
    pub(crate) look_ups: &'static str,
    /// Rows as most tables have them, by which processor time a row is judged.
    pub(crate) usual: bool,
    /// About what a row costs whoever reads it, in microseconds: for the estimate alone.
    pub(crate) estimate: u64,
}

/// What `rows` is said for.
pub(crate) const ROWS: u64 = 300_000;

impl Shape {
    /// The shape of this name; `None` when there is none.
    pub(crate) fn named(name: &str) -> Option<Shape> {
        SHAPES.iter().find(|shape| shape.name == name).copied()
    }

    /// How many rows and transactions it has where the usual shapes have so many rows.
    pub(crate) fn size(&self, usual: u64) -> (u64, u64) {
        let rows = (self.rows * usual / ROWS).max(1_000);
        match self.per_transaction {
            0 => (rows, 1),
            n => (rows / n * n, rows / n),
        }
    }

    /// All of it in one transaction: nothing can be published before all of it was read.
    pub(crate) fn is_single(&self) -> bool {
        self.per_transaction == 0
    }

    /// SQL that makes the tables.
    pub(crate) fn schema(&self) -> String {
        if self.name == "columns" { wide_schema() } else { self.schema.into() }
    }

    /// SQL that writes the backlog.
    pub(crate) fn backlog(&self, rows: u64, transactions: u64) -> String {
        let write = if self.name == "columns" { wide_write() } else { self.write.to_owned() };
        format!(
            "DO $$ DECLARE n bigint := {}; BEGIN FOR t IN 0 .. {} LOOP {write}; COMMIT; END LOOP; END $$",
            rows / transactions,
            transactions - 1,
        )
    }

    /// Its tables as a config names them.
    pub(crate) fn table_names(&self) -> Vec<String> {
        self.tables.iter().map(|table| format!("public.{table}")).collect()
    }
}

pub(crate) const SEAT: &str =
    "CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
    held_until timestamptz, note text)";
const SEATS: &str = "INSERT INTO seat SELECT i, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5, i % 3 = 0, now(),
    'a note of some length that makes the row as long as rows are' FROM generate_series(t * n, (t + 1) * n - 1) i";
const SEAT_ADDED: &str = "
aggregates: { Seat: { root: seat, topic: NAME.seat } }
events:
  SeatAdded:
    of: Seat
    when: created
    data: { seatId: id, section: section, row: row, number: number, price: price, sold: sold, heldUntil: held_until, note: note }";

/// What the shapes below have in common.
const TEN: Shape = Shape {
    name: "ten",
    about: "ten rows a transaction",
    label: "10 rows",
    schema: SEAT,
    tables: &["seat"],
    rows: ROWS,
    per_transaction: 10,
    write: SEATS,
    per_event: 1,
    events: SEAT_ADDED,
    look_ups: "",
    usual: true,
    estimate: 9,
};

/// All of them, in the order in which they are measured.
pub(crate) const SHAPES: [Shape; 9] = [
    TEN,
    Shape { name: "one", about: "one row a transaction", label: "1 row", per_transaction: 1, estimate: 12, ..TEN },
    Shape {
        name: "single",
        about: "all rows in one transaction",
        label: "1 transaction",
        rows: 500_000,
        per_transaction: 0,
        estimate: 9,
        ..TEN
    },
    Shape {
        name: "hot",
        about: "updates of 20 rows, ten a transaction",
        label: "20 hot rows",
        schema: "CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
            held_until timestamptz, note text);
            INSERT INTO seat SELECT i, 'a', 1, 1, 5000, false, now(), 'a note of some length that makes the row as long as rows are'
            FROM generate_series(0, 19) i",
        write: "UPDATE seat SET price = t % 1000, sold = NOT sold WHERE id >= t % 2 * 10 AND id < t % 2 * 10 + n",
        events: "",
        look_ups: "
aggregates: { Seat: { root: seat, topic: NAME.seat } }
events: { SeatPriced: { of: Seat, when: { price: changed }, data: { seatId: id, section: section, was: old.price, price: price, sold: sold } } }",
        ..TEN
    },
    Shape {
        name: "booking",
        about: "a booking and its three tickets a transaction",
        label: "bookings",
        schema: "CREATE TABLE event (id bigint PRIMARY KEY, name text NOT NULL);
            CREATE TABLE show (id bigint PRIMARY KEY, event_id bigint NOT NULL REFERENCES event, venue text NOT NULL);
            CREATE TABLE performance (id bigint PRIMARY KEY, show_id bigint NOT NULL REFERENCES show, starts_at timestamptz NOT NULL);
            CREATE TABLE booking (id bigint PRIMARY KEY, performance_id bigint NOT NULL REFERENCES performance, email text NOT NULL,
                booked_at timestamptz NOT NULL);
            CREATE TABLE ticket (id bigint PRIMARY KEY, booking_id bigint NOT NULL REFERENCES booking, section text, row int,
                number int, price numeric(8,2));
            INSERT INTO event SELECT i, 'event ' || i FROM generate_series(0, 19) i;
            INSERT INTO show SELECT i, i % 20, 'venue ' || i FROM generate_series(0, 99) i;
            INSERT INTO performance SELECT i, i % 100, now() + i * interval '1 hour' FROM generate_series(0, 499) i",
        tables: &["booking", "ticket"],
        per_transaction: 4,
        write: "INSERT INTO booking VALUES (t, t % 500, 'somebody' || t || '@acme.example', now());
            INSERT INTO ticket SELECT t * 3 + k, t, 'section ' || t % 40, t % 50, k, t % 300 + 0.5 FROM generate_series(0, n - 2) k",
        per_event: 4,
        events: "
aggregates: { Booking: { root: booking, topic: NAME.booking, children: { tickets: ticket.booking_id } } }
events:
  BookingCreated:
    of: Booking
    when: created
    data:
      bookingId: id
      email: email
      bookedAt: booked_at
      tickets: { each: tickets, data: { ticketId: id, section: section, row: row, seat: number, price: price } }",
        look_ups: "
aggregates: { Booking: { root: booking, topic: NAME.booking, children: { tickets: ticket.booking_id } } }
events:
  BookingCreated:
    of: Booking
    when: created
    data:
      bookingId: id
      email: email
      bookedAt: booked_at
      event: performance.show.event.name
      venue: performance.show.venue
      startsAt: performance.starts_at
      tickets: { each: tickets, data: { ticketId: id, section: section, row: row, seat: number, price: price } }",
        ..TEN
    },
    Shape {
        name: "columns",
        about: "a hundred columns, ten rows a transaction",
        label: "100 columns",
        rows: 60_000,
        events: "
aggregates: { Seat: { root: seat, topic: NAME.seat } }
events: { SeatAdded: { of: Seat, when: created, data: { seatId: id, a: c1, b: c2, c: c3, d: c4, e: c5, f: c6, g: c7 } } }",
        usual: false,
        estimate: 35,
        ..TEN
    },
    Shape {
        name: "large",
        about: "values of 10 kB out of line (TOAST), one a transaction",
        label: "10 kB values",
        schema: "CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
            held_until timestamptz, note text); ALTER TABLE seat ALTER note SET STORAGE EXTERNAL",
        rows: 20_000,
        per_transaction: 1,
        write: "INSERT INTO seat SELECT i, 'a', 1, 1, 1, false, now(), repeat('0123456789', 1000) FROM generate_series(t * n, (t + 1) * n - 1) i",
        usual: false,
        estimate: 110,
        ..TEN
    },
    Shape {
        name: "toast",
        about: "updates that leave a value of 3 kB out of line (TOAST) as it is, ten a transaction",
        label: "TOAST kept",
        schema: "CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
            held_until timestamptz, note text); ALTER TABLE seat ALTER note SET STORAGE EXTERNAL;
            INSERT INTO seat SELECT i, 'a', 1, 1, 1, false, now(), repeat('0123456789', 300) FROM generate_series(0, 1999) i",
        rows: 100_000,
        write: "UPDATE seat SET price = t % 1000 + 0.5, sold = NOT sold WHERE id >= t % 200 * 10 AND id < t % 200 * 10 + n",
        events: "",
        look_ups: "
aggregates: { Seat: { root: seat, topic: NAME.seat } }
events: { SeatPriced: { of: Seat, when: { sold: changed }, data: { seatId: id, was: old.price, price: price, note: note } } }",
        estimate: 18,
        ..TEN
    },
    Shape {
        name: "others",
        about: "ten rows a transaction, and ninety of a table that nobody publishes",
        label: "90 % others'",
        schema: "CREATE TABLE noise (id bigint, note text);
            CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
            held_until timestamptz, note text)",
        rows: 120_000,
        write: "INSERT INTO noise SELECT i, 'a note of some length that nobody reads' FROM generate_series(t * n * 9, (t + 1) * n * 9 - 1) i;
            INSERT INTO seat SELECT i, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5, i % 3 = 0, now(), 'a note'
            FROM generate_series(t * n, (t + 1) * n - 1) i",
        estimate: 20,
        ..TEN
    },
];

/// A key, and 99 columns of six types in turn: how each is declared, and what row `i` has in it.
fn wide_columns() -> impl Iterator<Item = (String, String)> {
    (1..100).map(|c| {
        let (ty, value) = match c % 6 {
            0 => ("boolean", format!("i % {c} = 0")),
            1 => ("text", format!("'text ' || i % {c}")),
            2 => ("int", format!("i * {c} % 100000")),
            3 => ("numeric(10,2)", format!("i % 1000 + 0.{c:02}")),
            4 => ("timestamptz", format!("now() + i % {c} * interval '1 minute'")),
            _ => ("bigint", format!("i * {c}")),
        };
        (format!("c{c} {ty}"), value)
    })
}

fn wide_schema() -> String {
    let columns = wide_columns().fold(String::new(), |mut all, (column, _)| {
        write!(all, ", {column}").expect("a string takes it");
        all
    });
    format!("CREATE TABLE seat (id bigint PRIMARY KEY{columns})")
}

fn wide_write() -> String {
    let values: Vec<_> = wide_columns().map(|(_, value)| value).collect();
    format!("INSERT INTO seat SELECT i, {} FROM generate_series(t * n, (t + 1) * n - 1) i", values.join(", "))
}
