//! `offshoot check` of mappings against a real catalog: what is complete, what it takes, and what is said of what is not.

use std::path::Path;

use crate::{
    pipe::Pipe,
    support::postgres::{self, Db, Version::V17},
};

/// A database with a fixture's tables, and a pipeline on it.
fn pipe(fixture: &str) -> (Db, Pipe) {
    let db = postgres::shared(V17).create_database();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
    db.connect().execute(&std::fs::read_to_string(dir.join("schema.sql")).unwrap());
    let pipe = Pipe::of(&db);
    (db, pipe)
}

/// The code of `check --json` with these lines below, and what it found of events.
fn check(pipe: &Pipe, mapping: &str) -> (i32, Vec<serde_json::Value>) {
    let pipe = Pipe { rest: mapping.into(), ..pipe.clone() };
    let (code, text) = pipe.command(&["check", "--json"]);
    let json = text.find("[\n").map_or("", |at| &text[at..]);
    let findings: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}"));
    (code, findings.into_iter().filter(|finding| finding["side"] == "config").collect())
}

const BOOKING: &str = "\
tables: { ticket: { decimal: { price: 2 } }, booking: { zone: America/Toronto } }
aggregates:
  Booking: { root: booking, children: { tickets: ticket.tickets_id } }
events:
  BookingCreated:
    of: Booking
    when: created
    data:
      bookingId: id
      email: contactemail
      bookedAt: createdon
      tickets: { each: tickets, data: { ticketId: id, seat: number, price: price } }
";

#[test]
fn an_event_is_proven_from_the_catalog_and_its_sheet_is_told() {
    let (_db, pipe) = pipe("ticketmonster");
    let (code, found) = check(&pipe, BOOKING);
    assert_eq!((code, found.len()), (0, 1), "{found:#?}");
    let sheet = &found[0]["sheet"];
    assert_eq!(
        (found[0]["level"].as_str(), sheet["event"].as_str()),
        (Some("ok"), Some("BookingCreated.v1")),
        "{sheet:#}"
    );
    assert_eq!(sheet["topic"], format!("{}.booking", pipe.name));
    assert_eq!(sheet["fields"][1]["from"], "the inserted row");
    let proof =
        "no row of public.ticket can be without its public.booking: its foreign key tickets_id is valid and enforced";
    assert_eq!(sheet["because"][0], proof);
    let (code, page) = Pipe { rest: BOOKING.into(), ..pipe }.command(&["check"]);
    println!("{page}");
    assert_eq!(code, 0, "{page}");
    for words in [
        "Events\n",
        "\u{2713} BookingCreated.v1: created of Booking -> ",
        "tickets[].seat",
        proof,
        "session_replication_role",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
}

/// What the catalog of a real server changes in the proof; each undone after.
#[test]
fn the_proof_follows_what_is_done_to_the_tables() {
    let (db, pipe) = pipe("ticketmonster");
    let session = db.connect();
    let says = |mapping: &str, code: i32, words: &[&str]| {
        let (ended, found) = check(&pipe, mapping);
        let text = serde_json::to_string_pretty(&found).unwrap();
        assert_eq!(ended, code, "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word}\n{text}"));
    };
    session.execute("ALTER TABLE ticket DISABLE TRIGGER ALL");
    says(BOOKING, 0, &["ALTER TABLE public.ticket ENABLE TRIGGER ALL", "complete with the replica"]);
    session.execute("ALTER TABLE ticket ENABLE TRIGGER ALL");
    session.execute("ALTER TABLE ticket DROP CONSTRAINT ticket_tickets_id_fkey");
    session.execute("ALTER TABLE ticket ADD CONSTRAINT t FOREIGN KEY (tickets_id) REFERENCES booking NOT VALID");
    says(BOOKING, 0, &["the replica: the foreign key `public.ticket.tickets_id` is not validated or not enforced"]);
    session.execute("ALTER TABLE ticket VALIDATE CONSTRAINT t");
    let deleted = BOOKING.replace("when: created", "when: deleted");
    says(
        &deleted,
        0,
        &[
            "ALTER TABLE public.ticket REPLICA IDENTITY FULL",
            "ALTER TABLE public.booking REPLICA IDENTITY FULL",
            "the replica: the log says of an old row of `public.booking` its primary key alone",
        ],
    );
    session.execute("ALTER TABLE ticket REPLICA IDENTITY FULL; ALTER TABLE booking REPLICA IDENTITY FULL");
    says(&deleted, 0, &["the old row (REPLICA IDENTITY FULL)"]);
    let hop = BOOKING.replace("email: contactemail", "event: performance.show.event.name");
    says(&hop, 0, &["the replica: a row of `public.event`, behind `performance_id`, `show_id`, `event_id`"]);
    session.execute("CREATE VIEW seen AS SELECT * FROM booking");
    for (from, to, words) in [
        ("contactemail", "contactmail", "`public.booking` has no column `contactmail`; did you mean `contactemail`?"),
        ("root: booking", "root: bookng", "there is no table `public.bookng`; did you mean `booking`?"),
        ("root: booking", "root: seen", "`public.seen` is a view"),
    ] {
        let (code, found) = check(&pipe, &BOOKING.replacen(from, to, 1));
        let said = |finding: &serde_json::Value| {
            format!("{}; {}", finding["what"].as_str().unwrap_or(""), finding["mend"].as_str().unwrap_or(""))
        };
        let text: String = found.iter().map(said).collect();
        assert!(text.contains(words), "{words}\n{text}");
        assert_eq!(code, 2, "{text}");
    }
}

#[test]
fn the_two_example_mappings_are_whole_and_say_what_the_replica_has() {
    for (fixture, columns) in [("ticketmonster", ["date", "show_id"]), ("shop", ["ship_country", "status"])] {
        let (db, pipe) = pipe(fixture);
        let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture).join("seed.sql");
        db.connect().execute(&std::fs::read_to_string(seed).unwrap());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/{fixture}.yaml"));
        let text = std::fs::read_to_string(path).unwrap();
        let start = text.find("\ntypes:").unwrap();
        let end = text.find("\ndata_dir:").unwrap_or(text.len());
        let mapping = &text[start..end];
        let (code, found) = check(&pipe, mapping);
        assert_eq!(code, 0, "{found:#?}");
        let (events, held): (Vec<_>, Vec<_>) = found.iter().partition(|finding| finding["sheet"].is_object());
        assert!(events.iter().all(|event| event["what"].as_str().unwrap().ends_with("complete with the replica")));
        let needed: std::collections::BTreeSet<_> = events
            .iter()
            .flat_map(|event| event["sheet"]["replica"].as_array().unwrap())
            .map(|taken| taken["table"].as_str().unwrap())
            .collect();
        let tables: std::collections::BTreeSet<_> =
            held.iter().map(|finding| finding["held"]["table"].as_str().unwrap()).collect();
        assert_eq!((needed, tables.len()), (tables, held.len()), "{found:#?}");
        let table = if fixture == "shop" { "public.orders" } else { "public.performance" };
        let table = held.iter().find(|finding| finding["about"] == table).unwrap();
        assert_eq!(table["held"]["columns"], serde_json::json!(["id", columns[0], columns[1]]));
        // What only one transaction of Kafka's can keep in step is refused where there is none.
        let (code, found) = check(&Pipe { delivery: "at_least_once", ..pipe.clone() }, mapping);
        let text = serde_json::to_string_pretty(&found).unwrap();
        assert_eq!(code, 2, "{text}");
        for words in
            ["offshoot.yaml:", "needs the replica for", "which `at_least_once` has not", "write `exactly_once`"]
        {
            assert!(text.contains(words), "{words}\n{text}");
        }
        let (_, page) = Pipe { rest: mapping.into(), ..pipe }.command(&["check"]);
        println!("{page}");
        assert!(page.contains("\nReplica\n") && page.contains("needs the replica of "), "{page}");
    }
}
