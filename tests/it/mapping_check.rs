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

/// A line that ends in `# ! words` is wrong, and `check` says these words of it; `&` stands between several.
fn marked(pipe: &Pipe, mapping: &str) {
    let yaml = Pipe { rest: mapping.into(), ..pipe.clone() }.yaml();
    let mistakes: Vec<(usize, &str)> =
        yaml.lines().enumerate().filter_map(|(at, line)| Some((at + 1, line.split_once("# ! ")?.1))).collect();
    let (code, found) = check(pipe, mapping);
    let said = |finding: &serde_json::Value| {
        format!("{}; {}", finding["what"].as_str().unwrap_or(""), finding["mend"].as_str().unwrap_or(""))
    };
    let mut found: Vec<String> = found.iter().map(said).collect();
    for (line, words) in &mistakes {
        let place = format!("offshoot.yaml:{line}:");
        let has = |said: &&String| said.contains(&place) && words.split(" & ").all(|word| said.contains(word));
        let at = found.iter().position(|said| has(&said));
        found.remove(at.unwrap_or_else(|| panic!("line {line}: {words}\n{found:#?}")));
    }
    assert_eq!((found, code), (Vec::new(), 2), "nothing else is wrong");
}

/// What people get wrong, on one database whose catalog has all of it.
#[test]
fn each_mistake_answers_with_its_line_and_a_mend() {
    let db = postgres::shared(V17).create_database();
    db.execute(
        "CREATE TABLE pair (a int, b int, v text, PRIMARY KEY (a, b));
         CREATE TABLE person (id int PRIMARY KEY, name text);
         CREATE TABLE orders (id int PRIMARY KEY, status text NOT NULL, total numeric(12,2), weight real, amount double precision,
             at timestamp, buyer_id int REFERENCES person, seller_id int REFERENCES person, a int, b int,
             FOREIGN KEY (a, b) REFERENCES pair);
         CREATE TABLE line (id int PRIMARY KEY, order_id bigint REFERENCES orders, n int);
         CREATE TABLE bill (id numeric PRIMARY KEY); CREATE TABLE bill_line (id int PRIMARY KEY, bill_id int REFERENCES bill);
         CREATE TABLE code (id text PRIMARY KEY); CREATE TABLE code_line (id int PRIMARY KEY, code_id char(3) REFERENCES code);
         CREATE TABLE tag (id int PRIMARY KEY DEFERRABLE, order_id int REFERENCES orders);
         CREATE TABLE note (v text, order_id int REFERENCES orders);
         CREATE TABLE of_pair (id int PRIMARY KEY, a int, b int, FOREIGN KEY (a, b) REFERENCES pair);
         CREATE TABLE keyless (v text);
         CREATE TABLE loose (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE silent (id int PRIMARY KEY); ALTER TABLE silent REPLICA IDENTITY NOTHING;
         CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
         CREATE VIEW seen AS SELECT * FROM orders;
         CREATE MATERIALIZED VIEW kept AS SELECT * FROM orders;
         CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (id int) SERVER s;",
    );
    // The tables of `changes` are not what is asked here.
    let pipe = Pipe { tables: "public.person".into(), ..Pipe::of(&db) };
    marked(
        &pipe,
        r#"
aggregates:
  Order: { root: orders, children: { lines: line.order_id } }
  NoTable: { root: ordrs }                                            # ! there is no table `public.ordrs` & did you mean `orders`?
  NoKey: { root: keyless }                                            # ! `public.keyless` has no primary key & ADD PRIMARY KEY
  Loose: { root: loose }                                              # ! that is DEFERRABLE & ALTER TABLE public.loose DROP CONSTRAINT
  Silent: { root: silent }                                            # ! REPLICA IDENTITY NOTHING & REPLICA IDENTITY DEFAULT
  View: { root: seen }                                                # ! `public.seen` is a view
  Kept: { root: kept }                                                # ! `public.kept` is a materialized view
  Far: { root: far }                                                  # ! `public.far` is a foreign table
  Quick: { root: quick }                                              # ! `public.quick` is unlogged & SET LOGGED
  BadTopic: { root: orders, topic: "a b" }                            # ! Kafka allows no ` `
  BadKey: { root: orders, key: [stats] }                              # ! has no column `stats` & did you mean `status`?
  NoChild: { root: orders, children: { lines: lin.order_id } }        # ! there is no table `public.lin` & did you mean `line`?
  NoLink: { root: orders, children: { lines: line.orderid } }         # ! has no column `orderid` & did you mean `order_id`?
  NotALink: { root: orders, children: { lines: line.n } }             # ! is no foreign key to `public.orders`
  Numeric: { root: bill, children: { lines: bill_line.bill_id } }     # ! is integer and the key `public.bill.id` is numeric & ALTER TABLE public.bill ALTER COLUMN id TYPE bigint
  Char: { root: code, children: { lines: code_line.code_id } }        # ! is char(3) and the key `public.code.id` is text & ALTER COLUMN code_id TYPE text
  LooseChild: { root: orders, children: { tags: tag.order_id } }      # ! that is DEFERRABLE & ALTER TABLE public.tag
  KeylessChild: { root: orders, children: { notes: note.order_id } }  # ! `public.note` has no primary key, which a child needs
  Pair: { root: pair, children: { all: of_pair.a } }                  # ! has several columns, `a`, `b`
events:
  Good: { of: Order, when: created, data: { id: id } }
  Good.v1: { of: Order, when: created, data: { id: id } }             # ! of version 1 is there as `Good` already
  Bad name: { of: Order, when: created, data: { id: id } }            # ! is no name for an event
  Nobodys: { of: Ordr, when: created, data: { id: id } }              # ! there is no aggregate `Ordr` & did you mean `Order`?
  Fields:
    of: Order
    when: created
    if: new.statu == 'placed'                                         # ! statu
    because: Goood via id                                             # ! there is no event `Goood` & did you mean `Good`?
    data:
      a: stat                                                         # ! has no column `stat` & did you mean `status`?
      b: buyr.name                                                    # ! `buyr` leads nowhere & did you mean `buyer`?
      c: person.name                                                  # ! could mean & buyer_id & seller_id
      d: pair.v                                                       # ! hangs on several columns, `a`, `b`
      e: weight                                                       # ! `public.orders.weight` & decimal
      f: amount                                                       # ! `public.orders.amount` & decimal
      g: at                                                           # ! `public.orders.at` & zone
      h: { each: line, data: { id: id } }                             # ! has no collection `line` & did you mean `lines`?
      i: { each: lines, data: { n: m } }                              # ! `public.line` has no column `m`
    mask: { z: drop }                                                 # ! `data` has no field `z`
  Whens:
    of: Order
    when:
      - create                                                        # ! did you mean `created`?
      - { stats: changed }                                            # ! no column or collection `stats`
      - { status: a->b }                                              # ! write `a -> b`, with a blank
      - { id: x -> 1 }                                                # ! `x` is no value of integer
      - { lines: add }                                                # ! did you mean `added`?
    data: { id: id }
"#,
    );
    // What can be asked only when every name is right.
    marked(
        &pipe,
        "aggregates: { Order: { root: orders } }
events:
  A: { of: Order, when: created, because: C via id, data: { id: id } } # ! events cause each other: A because of C because of B because of A
  B: { of: Order, when: created, because: A via id, data: { id: id } }
  C: { of: Order, when: created, because: B via id, data: { id: id } }
",
    );
    marked(
        &pipe,
        "aggregates: { Order: { root: orders } }
events:
  A:
    of: Order
    when: created
    if: new.status == 'placed'
    data: { id: id }
  B:
    of: Order
    when: created
    if: new.id + 1     # ! must give true or false
    data: { id: id }
",
    );
    // An event nobody can complete, and one topic that cannot hold two events.
    marked(
        &pipe,
        "aggregates: { Order: { root: orders }, Twin: { root: orders } }
events:
  State: { of: Order, when: any, compact: true, data: { id: id } } # ! keeps the latest record per key
  Other: { of: Twin, when: created, data: { id: id } }
",
    );
    // What YAML itself shows: it is said before anybody is asked.
    for (mapping, words) in [
        (
            "aggregates: { Order: { root: orders }, Order: { root: line } }\nevents: { A: { of: Order, when: created, data: { id: id } } }",
            ["offshoot.yaml:", "Order"],
        ),
        (
            "aggregates: { Order: { root: orders } }\nevents: { A: { of: Order, topic: other, when: created, data: { id: id } } }",
            ["offshoot.yaml:", "`topic`"],
        ),
    ] {
        let (code, said) = Pipe { rest: mapping.into(), ..pipe.clone() }.command(&["check"]);
        assert_eq!(code, 2, "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
    }
}
