//! Names that are found, and what is said of those that are not: word by word, since that is what users see.

use super::*;
use crate::mapping::catalog::samples::{shop, ticketmonster};

const HEAD: &str =
    "name: tm\nsource: { postgres: \"postgres://cdc@db/tm\" }\nsink: { kafka: { brokers: \"k:9092\" } }\n";

fn config(text: &str) -> Config {
    Config::parse(&format!("{HEAD}{text}"), "c.yaml", &|_| None).unwrap_or_else(|error| panic!("{error}"))
}

const BOOKING: &str = "\
types: com.acme
tables:
  appearance: { name: show }
  ticket: { decimal: { price: 2 } }
  booking: { zone: America/Toronto }
aggregates:
  Booking: { root: booking, topic: tm.booking, children: { tickets: ticket.tickets_id } }
events:
  BookingCreated:
    of: Booking
    when: created
    data:
      bookingId: id
      email: contactemail
      bookedAt: createdon
      performance: { id: performance_id }
      tickets: { each: tickets, data: { ticketId: id, row: rownumber, seat: number, price: price } }
";

#[test]
fn a_mapping_is_resolved_to_places() {
    let rules = Rules::compile(&config(BOOKING), &ticketmonster()).unwrap();
    let columns = |table: usize| rules.tables[table].columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
    assert_eq!(columns(0), ["id", "contactemail", "createdon", "performance_id"]);
    assert_eq!(columns(1), ["id", "number", "price", "rownumber", "tickets_id"]);
    assert_eq!((rules.tables[0].key_len, rules.tables[1].full_name().as_str()), (1, "public.ticket"));
    assert_eq!(rules.tables[0].roles, [Role::Root { aggregate: 0 }]);
    assert_eq!(rules.tables[1].roles, [Role::Child { aggregate: 0, collection: 0 }]);
    assert_eq!(rules.tables[0].columns[2].zone.as_deref(), Some("America/Toronto"));
    assert_eq!((rules.tables[1].columns[2].decimal, rules.tables[0].columns[1].zone.as_deref()), (Some(2), None));
    let booking = &rules.aggregates[0];
    assert_eq!((booking.key.as_slice(), booking.subject.as_str(), booking.children[0].link), (&[0][..], "booking", 4));
    let event = &rules.events[0];
    assert_eq!(
        (event.ce_type.as_str(), event.when.as_slice()),
        ("com.acme.BookingCreated.v1", &[Trigger::Created][..])
    );
    let Field::Each { collection: 0, data } = &event.data[4].1 else { panic!("{:?}", event.data) };
    assert!(matches!(data[3], (_, Field::Column { column: 2, old: false, mask: None })), "{data:?}");
    assert_eq!(rules.tables[1].columns[1].needed_by, "BookingCreated.tickets.seat");
}

#[test]
fn versions_masks_conditions_and_causes_are_resolved() {
    let text = "\
aggregates:
  Order: { root: orders, topic: shop.order, children: { lines: order_line.order_id } }
  Rate: { root: tax_rate, key: [from_country, to_country] }
events:
  Placed.v2:
    of: Order
    when: [created, { status: cart -> placed, lines: added }]
    data: { id: id, email: customer_email, total: total }
    mask: { email: sha256, total: drop }
  Placed: { of: Order, when: created, data: { id: id }, because: Placed.v2 via id }
  Rate: { of: Rate, when: { from_country: US -> * }, compact: true, data: { id: id } }
";
    let mut catalog = shop();
    catalog.table_mut("orders").set_full();
    catalog.table_mut("tax_rate").set_full();
    let rules = Rules::compile(&config(text), &catalog).unwrap();
    let names: Vec<_> = rules.events.iter().map(|event| event.ce_type.as_str()).collect();
    assert_eq!(names, ["tm.Placed.v2", "tm.Placed.v1", "tm.Rate.v1"]);
    assert_eq!(rules.events[0].data.len(), 2, "what is dropped is not even read");
    assert!(matches!(rules.events[0].data[1].1, Field::Column { mask: Some(Mask::Sha256), .. }));
    let columns: Vec<_> = rules.tables[0].columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(columns, ["id", "customer_email", "status"]);
    let Trigger::All(tests) = &rules.events[0].when[1] else { panic!("{:?}", rules.events[0].when) };
    let text = |text: &str| Side::Text(text.into());
    assert_eq!(
        tests.as_slice(),
        [Test::Column(2, Transition { from: text("cart"), to: text("placed") }), Test::Children(0, ChildChange::Added)]
    );
    assert_eq!(rules.events[1].because, Some(Because { event: 0, via: 0 }));
    assert_eq!(
        (rules.aggregates[1].topic.name.as_str(), rules.aggregates[1].key.as_slice()),
        ("tm.tax_rate", &[1, 2][..])
    );
}

/// A mapping with one place changed -> the places and words of what is wrong.
#[track_caller]
fn refuses(from: &str, to: &str, at: &str, said: &str) {
    refuses_of(&ticketmonster(), BOOKING, from, to, at, said);
}

#[track_caller]
fn refuses_of(catalog: &Catalog, text: &str, from: &str, to: &str, at: &str, said: &str) {
    assert!(text.contains(from), "{from}");
    let misfits = resolve(&config(&text.replacen(from, to, 1)), catalog).map(|_| ()).expect_err(to);
    let found: Vec<_> = misfits.iter().map(|misfit| (misfit.path.join("."), misfit.said.as_str())).collect();
    assert_eq!(found, [(at.to_owned(), said)]);
}

#[test]
fn a_mistake_answers_with_its_keys_and_the_nearest_right_name() {
    let data = |field: &str| format!("events.BookingCreated.data.{field}");
    let d = data("email");
    for (from, to, at, said) in [
        (
            "root: booking",
            "root: bookings",
            "aggregates.Booking.root",
            "there is no table `public.bookings`; did you mean `booking`?",
        ),
        (
            "root: booking",
            "root: app.booking",
            "aggregates.Booking.root",
            "there is no table `app.booking`; did you mean `public.booking`?",
        ),
        (
            "contactemail",
            "contactmail",
            &d,
            "`public.booking` has no column `contactmail`; did you mean `contactemail`?",
        ),
        (
            "contactemail",
            "performence.date",
            &d,
            "`performence` leads nowhere from `public.booking`; did you mean `performance`?",
        ),
        (
            "contactemail",
            "performance.show.evnt.name",
            &d,
            "`evnt` leads nowhere from `public.appearance`; did you mean `event`?",
        ),
        (
            "contactemail",
            "performance",
            &d,
            "`performance` leads from `public.booking` to another table; write `performance.` and a column of it",
        ),
        (
            "contactemail",
            "createdon.year",
            &d,
            "`createdon` is a column of `public.booking` without a foreign key: nothing can be looked up behind it",
        ),
        ("contactemail", "tickets", &d, "`tickets` is a collection; write `{ each: tickets, data: { ... } }`"),
        (
            "tickets_id }",
            "ticket_id }",
            "aggregates.Booking.children.tickets",
            "`public.ticket` has no column `ticket_id`; did you mean `tickets_id`?",
        ),
        (
            "ticket.tickets_id",
            "ticket.section_id",
            "aggregates.Booking.children.tickets",
            "`public.ticket.section_id` is no foreign key to `public.booking`, the aggregate's root; did you mean `ticket.tickets_id`?",
        ),
        (
            "tickets: ticket",
            "createdon: ticket",
            "aggregates.Booking.children.createdon",
            "`createdon` is a column of `public.booking` too; give the collection another name",
        ),
        (
            "each: tickets",
            "each: ticket",
            &data("tickets.each"),
            "`Booking` has no collection `ticket`; did you mean `tickets`?",
        ),
        (
            "of: Booking",
            "of: Bookings",
            "events.BookingCreated.of",
            "there is no aggregate `Bookings`; did you mean `Booking`?",
        ),
        (
            "when: created",
            "when: create",
            "events.BookingCreated.when.0",
            "`when` knows no `create`; did you mean `created`?",
        ),
        (
            "when: created",
            "when: [created, tickets]",
            "events.BookingCreated.when.1",
            "`tickets` is a collection; write `{ tickets: added }`, or removed, changed, any",
        ),
        (
            "when: created",
            "when: { id: 1->2 }",
            "events.BookingCreated.when.0.id",
            "`id`: `1->2` is no transition; write `1 -> 2`, with a blank on both sides of the arrow",
        ),
        (
            "when: created",
            "when: { id: \"* -> *\" }",
            "events.BookingCreated.when.0.id",
            "`id`: `* -> *` is any change; write `changed`",
        ),
        (
            "when: created",
            "when: { id: 1 -> x }",
            "events.BookingCreated.when.0.id",
            "`id`: `x` is no value of bigint; write one such as `1`",
        ),
        (
            "when: created",
            "when: { createdn: changed }",
            "events.BookingCreated.when.0.createdn",
            "`public.booking` has no column or collection `createdn`; did you mean `createdon`?",
        ),
        (
            "when: created",
            "when: { tickets: add }",
            "events.BookingCreated.when.0.tickets",
            "`tickets` cannot be `add`; did you mean `added`?",
        ),
        (
            "topic: tm.booking",
            "topic: tm/booking",
            "aggregates.Booking.topic",
            "Kafka allows no `/` in a topic's name, only letters, digits, `.`, `_` and `-`",
        ),
        (
            "name: show",
            "name: booking",
            "tables.booking",
            "`booking` is what `public.appearance` is called; each table needs a name of its own",
        ),
        (
            "America/Toronto",
            "Amerika/Toronto",
            "tables.booking.zone",
            "`Amerika/Toronto` is no time zone of the IANA database; did you mean `America/Toronto`?",
        ),
        (
            "price: 2",
            "price: 2, prize: 2",
            "tables.ticket.decimal.prize",
            "`public.ticket` has no column `prize`; did you mean `price`?",
        ),
        (
            "price: 2",
            "price: 2, number: 2",
            "tables.ticket.decimal.number",
            "`decimal` is for `real`, `double precision` and bare `numeric`; `number` is integer",
        ),
        (
            "name: show }",
            "zone: UTC }",
            "tables.appearance.zone",
            "`public.appearance` has no `timestamp` without time zone, so that `zone` has no use",
        ),
        (
            "    when: created",
            "    when: created\n    compact: true\n    because: BookingCreatd via id",
            "events.BookingCreated.because",
            "there is no event `BookingCreatd`; did you mean `BookingCreated`?",
        ),
        (
            "    when: created",
            "    when: created\n    because: BookingCreated via contactemail",
            "events.BookingCreated.because",
            "`contactemail` is `text` and cannot hold the key of `public.booking`, which is bigint; name the column that holds `booking.id`",
        ),
        (
            "    when: created",
            "    when: created\n    because: BookingCreated via id",
            "events.BookingCreated.because",
            "events cause each other: BookingCreated because of BookingCreated; take one `because` away",
        ),
        (
            "    when: created",
            "    when: created\n    mask: { mail: drop }",
            "events.BookingCreated.mask.mail",
            "`data` has no field `mail`; did you mean `email`?",
        ),
        (
            "    when: created",
            "    when: created\n    mask: { performance: drop }",
            "events.BookingCreated.mask.performance",
            "`performance` is an object; mask its fields, such as `performance.name`",
        ),
    ] {
        refuses(from, to, at, said);
    }
}

#[test]
fn a_state_topic_needs_a_key_that_names_one_row() {
    let text = BOOKING.replace("    when: created\n", "    when: created\n    compact: true\n");
    refuses_of(
        &ticketmonster(),
        &text,
        "root: booking,",
        "root: booking, key: contactemail,",
        "events.BookingCreated.compact",
        "`compact` keeps one record per key, and `contactemail` is not unique in `public.booking`; use its primary key, or CREATE UNIQUE INDEX ON public.booking (contactemail)",
    );
}

#[test]
fn versions_do_not_contradict_or_meet() {
    let twin = BOOKING
        .replace("events:\n", "events:\n  BookingCreated.v1: { of: Booking, when: created, data: { id: id } }\n");
    refuses_of(
        &ticketmonster(),
        &twin,
        "",
        "",
        "events.BookingCreated",
        "`BookingCreated` of version 1 is there as `BookingCreated.v1` already; write `BookingCreated.v2`",
    );
    refuses(
        "BookingCreated:\n",
        "BookingCreated.v2:\n    version: 3\n",
        "events.BookingCreated.v2.version",
        "the name says version 2, and `version` says 3; leave one out",
    );
}

#[test]
fn tables_that_cannot_be_mapped_are_refused_with_what_mends_them() {
    use crate::mapping::catalog::Kind;
    let with = |change: &dyn Fn(&mut CatalogTable)| {
        let mut catalog = ticketmonster();
        change(catalog.table_mut("booking"));
        catalog
    };
    let root = |catalog: Catalog, said: &str| {
        let text = BOOKING.replace("  booking: { zone: America/Toronto }\n", "");
        let misfits = resolve(&config(&text), &catalog).map(|_| ()).unwrap_err();
        assert_eq!(misfits, [Misfit::at(&["aggregates", "Booking", "root"], said)]);
    };
    root(
        with(&|table| table.kind = Kind::Other("a view")),
        "`public.booking` is a view: it has no rows in the log; name the table below it",
    );
    root(
        with(&|table| table.kind = Kind::Unlogged),
        "`public.booking` is unlogged: its rows are not in the log; ALTER TABLE public.booking SET LOGGED writes them there",
    );
    root(
        with(&|table| table.primary_key.clear()),
        "`public.booking` has no primary key, which the root of an aggregate needs; ALTER TABLE public.booking ADD PRIMARY KEY (...)",
    );
    root(
        with(&|table| table.identity = Identity::Nothing),
        "`public.booking` has REPLICA IDENTITY NOTHING: the log does not say which row went; ALTER TABLE public.booking REPLICA IDENTITY DEFAULT",
    );
}

#[test]
fn a_key_that_two_rows_may_share_for_a_while_is_refused() {
    let mut catalog = ticketmonster();
    catalog.table_mut("booking").unique.clear();
    let said = "`public.booking` has a primary key that is DEFERRABLE: within a transaction two rows may share it, and nobody can tell them \
                apart; ALTER TABLE public.booking DROP CONSTRAINT ..., ADD PRIMARY KEY (id)";
    refuses_of(&catalog, BOOKING, "", "", "aggregates.Booking.root", said);
    // Another index may say that they never do.
    catalog.table_mut("booking").unique = vec![vec!["id".into()]];
    assert!(resolve(&config(BOOKING), &catalog).is_ok());
    catalog.table_mut("ticket").unique = vec![vec!["id".into(), "number".into()]];
    let misfits = resolve(&config(BOOKING), &catalog).map(|_| ()).unwrap_err();
    assert_eq!(misfits[0].path.join("."), "aggregates.Booking.children.tickets");
}

#[test]
fn a_child_finds_its_root_by_one_text() {
    let numeric = |precision: i32, scale: i32| ((precision << 16) | scale) + 4;
    let with = |key: (Type, i32), link: (Type, i32)| {
        let mut catalog = ticketmonster();
        (catalog.table_mut("booking").columns[0].ty, catalog.table_mut("booking").columns[0].modifier) = key;
        (catalog.table_mut("ticket").columns[1].ty, catalog.table_mut("ticket").columns[1].modifier) = link;
        catalog
    };
    for (key, link) in [
        ((Type::INT8, -1), (Type::INT4, -1)),
        ((Type::INT2, -1), (Type::INT8, -1)),
        ((Type::TEXT, -1), (Type::VARCHAR, 14)),
        ((Type::UUID, -1), (Type::UUID, -1)),
        ((Type::BPCHAR, 6), (Type::BPCHAR, 6)),
        ((Type::NUMERIC, numeric(10, 2)), (Type::NUMERIC, numeric(12, 2))),
    ] {
        assert!(resolve(&config(BOOKING), &with(key.clone(), link.clone())).is_ok(), "{key:?} {link:?}");
    }
    let at = "aggregates.Booking.children.tickets";
    let why =
        "equal values of these may be written in two ways, such as 1 and 1.0, and then a child does not find its root";
    let alter = "ALTER TABLE public.ticket ALTER COLUMN tickets_id TYPE";
    let other = "ALTER TABLE public.booking ALTER COLUMN id TYPE bigint, say, and the child's";
    for (key, link, is, was, mend) in [
        ((Type::INT8, -1), (Type::NUMERIC, -1), "numeric", "bigint", format!("{alter} bigint")),
        ((Type::INT8, -1), (Type::NUMERIC, numeric(10, 2)), "numeric(10,2)", "bigint", format!("{alter} bigint")),
        (
            (Type::NUMERIC, numeric(10, 0)),
            (Type::INT4, -1),
            "integer",
            "numeric(10,0)",
            format!("{alter} numeric(10,0)"),
        ),
        ((Type::NUMERIC, -1), (Type::NUMERIC, -1), "numeric", "numeric", other.into()),
        ((Type::TEXT, -1), (Type::BPCHAR, 7), "char(3)", "text", format!("{alter} text")),
        ((Type::BPCHAR, 7), (Type::BPCHAR, 9), "char(5)", "char(3)", format!("{alter} char(3)")),
    ] {
        let said =
            format!("`public.ticket.tickets_id` is {is} and the key `public.booking.id` is {was}: {why}; {mend}");
        refuses_of(&with(key, link), BOOKING, "", "", at, &said);
    }
}

#[test]
fn a_hop_that_could_be_two_or_hangs_on_two_columns_is_refused() {
    let mut catalog = ticketmonster();
    let booking = catalog.table_mut("booking").clone();
    *catalog.table_mut("booking") = booking.foreign("cancellationcode", "performance", "id");
    let said = "`performance.date` could mean `performance_id -> performance.date` or `cancellationcode -> performance.date`; hop by the foreign key's column less `_id`, or give a table another `name` in `tables`";
    refuses_of(&catalog, BOOKING, "contactemail", "performance.date", "events.BookingCreated.data.email", said);
    let booking = ticketmonster().table("booking").unwrap().clone();
    *catalog.table_mut("booking") = booking.foreign("contactemail,cancellationcode", "venue", "name,city");
    let said = "the hop `venue` from `public.booking` to `public.venue` hangs on several columns, `contactemail`, `cancellationcode`; only a key of one column can be followed";
    refuses_of(&catalog, BOOKING, "contactemail", "venue.name", "events.BookingCreated.data.email", said);
}

#[test]
fn a_look_up_is_resolved_hop_by_hop_to_places_of_tables_without_roles() {
    let text = BOOKING
        .replace("performance_id }", "performance_id, at: performance.date, event: old.performance.show.event.name }");
    let text = text
        .replace("seat: number,", "seat: number, section: section.name,")
        .replace("ticket: {", "performance: { zone: UTC }\n  ticket: {");
    let rules = Rules::compile(&config(&text), &ticketmonster()).unwrap();
    let names: Vec<_> = rules.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["booking", "ticket", "performance", "appearance", "event", "section"]);
    let columns = |table: usize| rules.tables[table].columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
    assert_eq!(
        [columns(2), columns(3), columns(4), columns(5)],
        [vec!["id", "date", "show_id"], vec!["id", "event_id"], vec!["id", "name"], vec!["id", "name"]]
    );
    assert!(rules.tables[2..].iter().all(|table| table.roles.is_empty() && table.held && table.key_len == 1));
    assert!(rules.tables[..2].iter().all(|table| !table.held));
    assert_eq!(rules.tables[2].columns[1].zone.as_deref(), Some("UTC"));
    assert_eq!(rules.tables[4].columns[1].needed_by, "BookingCreated.performance.event");
    assert_eq!(rules.events[0].needs, [2, 3, 4, 5]);
    let hop = |key, table| Hop { key, table, enforced: true };
    let Field::Object(performance) = &rules.events[0].data[3].1 else { panic!("{:?}", rules.events[0].data) };
    let Field::LookUp { hops, column: 1, old: false, mask: None } = &performance[1].1 else {
        panic!("{performance:?}")
    };
    assert_eq!(hops, &[hop(3, 2)]);
    let Field::LookUp { hops, column: 1, old: true, mask: None } = &performance[2].1 else { panic!("{performance:?}") };
    assert_eq!(hops, &[hop(3, 2), hop(2, 3), hop(1, 4)]);
    let Field::Each { collection: 0, data } = &rules.events[0].data[4].1 else { panic!("{:?}", rules.events[0].data) };
    let Field::LookUp { hops, column: 1, old: false, .. } = &data[3].1 else { panic!("{data:?}") };
    assert_eq!(hops, &[hop(4, 5)]);
    assert_eq!([rules.links(0), rules.links(1), rules.links(5)], [vec![], vec![5], vec![]]);
}

#[test]
fn a_hop_is_enforced_when_its_foreign_key_holds() {
    let text = BOOKING
        .replace("performance_id }", "performance_id, event: performance.show_id }")
        .replace("show_id", "show.venue_id");
    let enforced = |catalog: &Catalog| {
        let rules = Rules::compile(&config(&text), catalog).unwrap();
        let Field::Object(performance) = &rules.events[0].data[3].1 else { panic!("{:?}", rules.events[0].data) };
        let Field::LookUp { hops, .. } = &performance[1].1 else { panic!("{performance:?}") };
        hops.iter().map(|hop| hop.enforced).collect::<Vec<_>>()
    };
    assert_eq!(enforced(&ticketmonster()), [true, true]);
    let mut catalog = ticketmonster();
    catalog.table_mut("booking").foreign_keys[0].valid = false;
    assert_eq!(enforced(&catalog), [false, true]);
    // A second one that says the same is no second way, and may hold.
    let booking = catalog.table_mut("booking").clone();
    *catalog.table_mut("booking") = booking.foreign("performance_id", "performance", "id");
    assert_eq!(enforced(&catalog), [true, true]);
    catalog.table_mut("appearance").triggers_disabled = true;
    assert_eq!(enforced(&catalog), [true, false]);
}

#[test]
fn a_hop_that_cannot_be_followed_is_refused() {
    let at = "events.BookingCreated.data.email";
    let refused = |change: &dyn Fn(&mut Catalog), said: &str| {
        let mut catalog = ticketmonster();
        change(&mut catalog);
        refuses_of(&catalog, BOOKING, "contactemail", "performance.show_id", at, said);
    };
    let performance =
        |catalog: &mut Catalog, change: &dyn Fn(&mut CatalogTable)| change(catalog.table_mut("performance"));
    refused(
        &|catalog| catalog.table_mut("booking").foreign_keys[0].to_columns = vec!["date".into()],
        "the foreign key `public.booking.performance_id` leads to `public.performance.date`, which is not the primary key of \
         `public.performance`; only a primary key of one column can be followed",
    );
    refused(
        &|catalog| performance(catalog, &|table| table.primary_key.push("show_id".into())),
        "the foreign key `public.booking.performance_id` leads to `public.performance.id`, which is not the primary key of \
         `public.performance`; only a primary key of one column can be followed",
    );
    refused(
        &|catalog| performance(catalog, &|table| table.identity = Identity::Nothing),
        "`public.performance` has REPLICA IDENTITY NOTHING: the log does not say which row went; ALTER TABLE public.performance REPLICA \
         IDENTITY DEFAULT",
    );
    refused(
        &|catalog| performance(catalog, &|table| table.kind = crate::mapping::catalog::Kind::Unlogged),
        "`public.performance` is unlogged: its rows are not in the log; ALTER TABLE public.performance SET LOGGED writes them there",
    );
    refused(
        &|catalog| performance(catalog, &|table| table.columns[0].ty = Type::NUMERIC),
        "`public.booking.performance_id` is bigint and `public.performance.id` is numeric: equal values of these may be written in two ways, \
         such as 1 and 1.0, and then the row is not found; give both one type, such as bigint or text",
    );
}

#[test]
fn a_transition_is_compared_in_the_text_form_of_the_type() {
    let (numeric, char) = (((12 << 16) | 2) + 4, 6);
    let to = |text, ty: &Type, modifier| side(text, ty, modifier);
    let text = |text: &str| Ok(Side::Text(text.into()));
    assert_eq!(to("0", &Type::NUMERIC, numeric), text("0.00"));
    assert_eq!(to("-12.5", &Type::NUMERIC, numeric), text("-12.50"));
    assert_eq!(to("A", &Type::BPCHAR, char), text("A "));
    assert_eq!(to("true", &Type::BOOL, -1), text("t"));
    assert_eq!(to("null", &Type::BOOL, -1), Ok(Side::Null));
    assert!(to("1.234", &Type::NUMERIC, numeric).is_err() && to("1", &Type::NUMERIC, -1).is_err());
}

#[test]
fn a_condition_fits_the_types_of_its_columns() {
    for (condition, words) in [
        ("new.contactemail > 1", "they have no order"),
        ("new.id + 1", "must give true or false"),
        ("new.contactmail == 'x'", "contactmail"),
    ] {
        let text = BOOKING.replacen("    when: created", &format!("    when: created\n    if: \"{condition}\""), 1);
        let misfits = resolve(&config(&text), &ticketmonster()).map(|_| ()).expect_err(condition);
        let found: Vec<_> = misfits.iter().map(|misfit| (misfit.path.join("."), misfit.said.contains(words))).collect();
        assert_eq!(found, [("events.BookingCreated.if".to_owned(), true)], "{misfits:?}");
    }
}
