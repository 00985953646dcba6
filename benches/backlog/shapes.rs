//! What backlogs are made of.

#![allow(unreachable_pub)]

/// What a backlog is made of.
pub struct Shape {
    pub name: &'static str,
    pub about: &'static str,
    /// Tables, and rows that are there before the slots are.
    pub schema: &'static str,
    /// The tables that are published.
    pub tables: &'static [&'static str],
    /// Row changes of these tables in a transaction; 0 is all of them in one.
    pub per_transaction: u64,
    /// SQL for transaction `t` of `n` row changes; `i` numbers what it inserts from `t * n` on.
    pub write: &'static str,
    /// Row changes to an event.
    pub per_event: u64,
    /// `aggregates` and `events`.
    pub events: &'static str,
}

const SEAT: &str =
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
const SEAT_CHANGED: &str = "
aggregates: { Seat: { root: seat, topic: NAME.seat } }
events: { SeatState: { of: Seat, when: any, data: { seatId: id, section: section, price: price, sold: sold } } }";

pub static SHAPES: [Shape; 7] = [
    Shape {
        name: "ten",
        about: "ten rows a transaction",
        schema: SEAT,
        tables: &["seat"],
        per_transaction: 10,
        write: SEATS,
        per_event: 1,
        events: SEAT_ADDED,
    },
    Shape {
        name: "one",
        about: "one row a transaction",
        schema: SEAT,
        tables: &["seat"],
        per_transaction: 1,
        write: SEATS,
        per_event: 1,
        events: SEAT_ADDED,
    },
    Shape {
        name: "single",
        about: "one transaction",
        schema: SEAT,
        tables: &["seat"],
        per_transaction: 0,
        write: SEATS,
        per_event: 1,
        events: SEAT_ADDED,
    },
    Shape {
        name: "hot",
        about: "updates of 20 rows, ten a transaction",
        schema: "CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
            held_until timestamptz, note text);
            INSERT INTO seat SELECT i, 'a', 1, 1, 1, false, now(), 'a note' FROM generate_series(0, 19) i;
            ALTER TABLE seat REPLICA IDENTITY FULL",
        tables: &["seat"],
        per_transaction: 10,
        write: "UPDATE seat SET price = t % 1000, sold = NOT sold WHERE id >= t % 2 * 10 AND id < t % 2 * 10 + n",
        per_event: 1,
        events: SEAT_CHANGED,
    },
    Shape {
        name: "booking",
        about: "a booking and its three tickets a transaction",
        schema: "CREATE TABLE booking (id bigint PRIMARY KEY, email text NOT NULL, booked_at timestamptz NOT NULL);
            CREATE TABLE ticket (id bigint PRIMARY KEY, booking_id bigint NOT NULL REFERENCES booking, section text, row int,
                number int, price numeric(8,2))",
        tables: &["booking", "ticket"],
        per_transaction: 4,
        write: "INSERT INTO booking VALUES (t, 'somebody' || t || '@acme.example', now());
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
    },
    Shape {
        name: "large",
        about: "values of 10 kB, one a transaction",
        schema: "CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
            held_until timestamptz, note text); ALTER TABLE seat ALTER note SET STORAGE EXTERNAL",
        tables: &["seat"],
        per_transaction: 1,
        write: "INSERT INTO seat SELECT i, 'a', 1, 1, 1, false, now(), repeat('0123456789', 1000) FROM generate_series(t * n, (t + 1) * n - 1) i",
        per_event: 1,
        events: SEAT_ADDED,
    },
    Shape {
        name: "others",
        about: "ten rows a transaction, and ninety of a table that nobody asked for",
        schema: "CREATE TABLE noise (id bigint, note text);
            CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
            held_until timestamptz, note text)",
        tables: &["seat"],
        per_transaction: 10,
        write: "INSERT INTO noise SELECT i, 'a note of some length that nobody reads' FROM generate_series(t * n * 9, (t + 1) * n * 9 - 1) i;
            INSERT INTO seat SELECT i, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5, i % 3 = 0, now(), 'a note'
            FROM generate_series(t * n, (t + 1) * n - 1) i",
        per_event: 1,
        events: SEAT_ADDED,
    },
];

/// The shape of a name; says which there are when there is none of it.
pub fn shape(name: &str) -> &'static Shape {
    SHAPES.iter().find(|shape| shape.name == name).unwrap_or_else(|| {
        let names: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
        panic!("there are the shapes {}, and not {name}", names.join(", "))
    })
}
