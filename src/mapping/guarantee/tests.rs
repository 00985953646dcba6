//! What is proven of TicketMonster and the shop, and what each event needs of the replica: exactly, table by table.

use super::*;
use crate::{
    config::Config,
    mapping::catalog::{Catalog, samples},
};

const HEAD: &str = "name: tm\nsource: { postgres: \"postgres://cdc@db/tm\" }\nsink: { kafka: { brokers: \"k:9092\" } }\n\
tables: { ticket: { decimal: { price: 2 } }, booking: { zone: UTC }, performance: { zone: UTC } }\n\
aggregates:\n  Booking: { root: booking, topic: t, children: { tickets: ticket.tickets_id } }\n";
const SHOP: &str = "name: shop\nsource: { postgres: \"postgres://cdc@db/tm\" }\nsink: { kafka: { brokers: \"k:9092\" } }\n\
aggregates:\n  Order: { root: orders, topic: t, children: { lines: order_line.order_id } }\n  Stock: { root: inventory, topic: s }\n  \
Rate: { root: tax_rate, topic: r, key: [from_country, to_country] }\n";

fn proof(text: &str, catalog: &Catalog) -> Proof {
    let config = Config::parse(text, "c.yaml", &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let proof = Rules::prove(&config, catalog).unwrap_or_else(|misfits| panic!("{misfits:?}"));
    // What the rules say is what the sheets say.
    for (rule, sheet) in proof.rules.events.iter().zip(&proof.events) {
        let needs: BTreeSet<_> = rule.needs.iter().map(|table| proof.rules.tables[*table].full_name()).collect();
        let told: BTreeSet<_> = sheet.replica.iter().map(|taken| taken.table.clone()).collect();
        assert_eq!(needs, told);
        assert!(rule.needs.iter().all(|table| proof.rules.tables[*table].held));
        assert!(rule.needs.is_sorted());
    }
    let held: Vec<_> = proof.rules.tables.iter().filter(|table| table.held).map(|table| table.full_name()).collect();
    assert_eq!(held, proof.held.iter().map(|held| held.table.clone()).collect::<Vec<_>>());
    proof
}

fn sheet(head: &str, catalog: &Catalog, when: &str, data: &str) -> EventSheet {
    sheet_of(head, catalog, &format!("when: {when}, data: {data}"))
}

fn sheet_of(head: &str, catalog: &Catalog, rest: &str) -> EventSheet {
    let of = if head == SHOP { "Order" } else { "Booking" };
    proof(&format!("{head}events: {{ E: {{ of: {of}, {rest} }} }}\n"), catalog).events.remove(0)
}

/// Which tables are needed, and for what: `ticket: email, when`.
fn needs(sheet: &EventSheet) -> Vec<String> {
    assert_eq!(sheet.needs, [], "nothing is refused");
    let mut tables: Vec<(&str, Vec<String>)> = Vec::new();
    for FromReplica { table, of, .. } in &sheet.replica {
        let table = table.strip_prefix("public.").unwrap();
        let at = tables.iter().position(|(known, _)| *known == table).unwrap_or_else(|| {
            tables.push((table, Vec::new()));
            tables.len() - 1
        });
        for of in of.iter().map(|of| of.replace('`', "")) {
            if !tables[at].1.contains(&of) {
                tables[at].1.push(of);
            }
        }
    }
    tables.into_iter().map(|(table, of)| format!("{table}: {}", of.join(", "))).collect()
}

const NOTHING: [&str; 0] = [];
const ALL: &str = "{ id: id, email: contactemail, tickets: { each: tickets, data: { id: id, price: price } } }";

#[test]
fn created_is_complete_by_its_foreign_key_and_needs_no_full_identity() {
    let sheet = sheet(HEAD, &samples::ticketmonster(), "created", ALL);
    assert_eq!(needs(&sheet), NOTHING);
    assert_eq!(
        sheet.because,
        ["no row of public.ticket can be without its public.booking: its foreign key tickets_id is valid and enforced"]
    );
    assert_eq!(sheet.fields[1].from, "the inserted row");
    assert_eq!((sheet.fields[2].field.as_str(), sheet.may_stop.len()), ("tickets[].id", 0));
}

#[test]
fn created_needs_its_children_when_the_foreign_key_does_not_hold() {
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("ticket").foreign_keys[0].valid = false;
    let invalid = sheet(HEAD, &catalog, "created", ALL);
    assert_eq!(needs(&invalid), ["ticket: the list of tickets, tickets[].id, tickets[].price"]);
    assert_eq!(
        invalid.fields[2].from,
        "the replica: the foreign key `public.ticket.tickets_id` is not validated or not enforced, so that children may be there without \
         their root"
    );
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("booking").triggers_disabled = true;
    let disabled = sheet(HEAD, &catalog, "created", ALL);
    assert_eq!(disabled.replica[0].instead.as_deref(), Some("ALTER TABLE public.booking ENABLE TRIGGER ALL"));
    // Nor is a deleted root's list whole then.
    catalog.table_mut("ticket").set_full();
    catalog.table_mut("booking").set_full();
    assert_eq!(needs(&sheet(HEAD, &catalog, "deleted", "{ id: id }")), NOTHING);
    assert_eq!(needs(&sheet(HEAD, &catalog, "deleted", ALL)).len(), 1);
}

#[test]
fn a_look_up_needs_each_table_on_the_way_and_the_key_where_it_begins() {
    let catalog = samples::ticketmonster();
    let data = "{ at: performance.date, id: performance.id, old: old.contactemail }";
    let created = sheet(HEAD, &catalog, "created", data);
    assert_eq!(needs(&created), ["performance: at"]);
    assert_eq!(created.fields[0].from, "the replica: a row of `public.performance`, behind `performance_id`");
    assert!(created.fields[0].nullable, "performance_id may be null");
    assert_eq!(
        (created.fields[1].from.as_str(), created.fields[2].from.as_str()),
        ("the inserted row", "null: there was no row")
    );
    let chain = "{ event: performance.show_id.event_id.name }".replace("show_id.event_id", "appearance.event");
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "deleted", &chain)),
        ["booking: event", "performance: event", "appearance: event", "event: event"]
    );
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "deleted", &chain.replace("performance.", "old.performance."))),
        ["booking: event", "performance: event", "appearance: event", "event: event"]
    );
    let child = "{ t: { each: tickets, data: { s: section.name } } }";
    assert_eq!(needs(&sheet(HEAD, &catalog, "created", child)), ["section: t[].s"]);
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "deleted", child)),
        ["ticket: the list of tickets, t[].s", "section: t[].s"]
    );
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "{ performance_id: changed }", "{ at: performance.date }")),
        ["booking: when", "performance: at"]
    );
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "{ tickets: added }", "{ at: performance.date }")),
        ["ticket: when", "booking: at", "performance: at"]
    );
}

#[test]
fn deleted_needs_both_unless_keys_say_enough_or_the_identity_is_full() {
    let mut catalog = samples::ticketmonster();
    assert_eq!(needs(&sheet(HEAD, &catalog, "deleted", "{ id: id }")), NOTHING);
    let deleted = sheet(HEAD, &catalog, "deleted", ALL);
    assert_eq!(needs(&deleted), ["ticket: the list of tickets, tickets[].id, tickets[].price", "booking: email"]);
    assert_eq!(deleted.fields[0].from, "the old row's key");
    assert_eq!(
        deleted.fields[1].from,
        "the replica: the log says of an old row of `public.booking` its primary key alone (the default REPLICA IDENTITY)"
    );
    assert_eq!(deleted.replica[1].instead.as_deref(), Some("ALTER TABLE public.booking REPLICA IDENTITY FULL"));
    catalog.table_mut("booking").set_full();
    catalog.table_mut("ticket").set_full();
    assert_eq!(needs(&sheet(HEAD, &catalog, "deleted", ALL)), NOTHING);
    // The link is of the child's primary key.
    let data = "{ id: id, lines: { each: lines, data: { no: line_no } } }";
    assert_eq!(needs(&sheet(SHOP, &samples::shop(), "deleted", data)), NOTHING);
}

#[test]
fn a_change_says_new_values_and_not_old_ones_nor_untouched_children() {
    let mut catalog = samples::shop();
    let data = "{ id: id, to: ship_country, email: customer_email, was: old.ship_country }";
    let placed = "{ status: cart -> placed }";
    assert_eq!(needs(&sheet(SHOP, &catalog, placed, data)), ["orders: when, was, email"]);
    catalog.table_mut("orders").set_full();
    assert_eq!(needs(&sheet(SHOP, &catalog, placed, data)), NOTHING);
    let lines = "{ lines: { each: lines, data: { sku: sku } } }";
    assert_eq!(needs(&sheet(SHOP, &catalog, placed, lines)), ["order_line: the list of lines, lines[].sku"]);
    let both = sheet(SHOP, &catalog, &format!("[created, {placed}]"), lines);
    assert_eq!(
        both.fields[0].from,
        "created: the inserted or linked child; changed: the replica: when `public.orders` only changes, its transaction says nothing of \
         the children that it does not touch"
    );
}

#[test]
fn a_long_value_that_an_update_leaves_needs_the_replica() {
    // What is fired by is in the identity, what is told is not.
    let mut catalog = samples::shop();
    let orders = catalog.table_mut("orders");
    orders.identity = Identity::Index;
    let status = orders.column("status").unwrap();
    orders.columns[status].identity = true;
    let placed = "{ status: cart -> placed }";
    assert_eq!(needs(&sheet(SHOP, &catalog, placed, "{ to: ship_country }")), NOTHING);
    let sheet = sheet(SHOP, &catalog, placed, "{ email: customer_email }");
    assert_eq!(needs(&sheet), ["orders: email"]);
    assert!(sheet.fields[0].from.starts_with("the replica: `customer_email` may be stored out of line"), "{sheet:?}");
}

#[test]
fn a_change_of_children_alone_says_the_roots_key_alone() {
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("booking").set_full();
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "{ tickets: added }", "{ id: id, email: contactemail }")),
        ["ticket: when", "booking: email"]
    );
    catalog.table_mut("ticket").set_full();
    assert_eq!(needs(&sheet(HEAD, &catalog, "any", "{ id: id }")), NOTHING);
    assert_eq!(needs(&sheet(HEAD, &catalog, "any", "{ email: contactemail }")), ["booking: email"]);
    assert_eq!(needs(&sheet(SHOP, &samples::shop(), "{ lines: removed }", "{ id: id }")), NOTHING);
}

/// Where the link is of the child's own key, the identity says where it hung, and not whether it has changed.
#[test]
fn whether_a_child_has_changed_needs_all_that_is_mapped_of_it() {
    let catalog = samples::shop();
    let data = "{ id: id, lines: { each: lines, data: { sku: sku } } }";
    for (when, expected) in [("{ lines: changed }", 2), ("{ lines: any }", 2), ("{ lines: added }", 1)] {
        let sheet = sheet(SHOP, &catalog, when, data);
        assert_eq!(sheet.replica.len(), expected, "{when}: {sheet:?}");
        assert_eq!(sheet.replica[0].of[0] == "`when`", expected == 2, "{when}: {sheet:?}");
    }
    assert_eq!(needs(&sheet(SHOP, &catalog, "{ lines: changed }", "{ id: id }")), NOTHING, "only its key is mapped");
}

#[test]
fn any_needs_all_that_is_mapped() {
    let mut catalog = samples::ticketmonster();
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "any", "{ id: id }")),
        ["ticket: when"],
        "of a booking only its key is mapped"
    );
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "any", "{ id: id, at: createdon }")),
        ["booking: when, at", "ticket: when"]
    );
    catalog.table_mut("booking").set_full();
    catalog.table_mut("ticket").set_full();
    assert_eq!(needs(&sheet(HEAD, &catalog, "any", "{ id: id, at: createdon }")), ["booking: at"]);
}

#[test]
fn if_needs_what_it_reads_and_the_root_when_only_children_have_changed() {
    let catalog = samples::shop();
    let of = |rest: &str| needs(&sheet_of(SHOP, &catalog, rest));
    assert_eq!(of("when: created, if: \"new.status == 'placed' && old.status == null\", data: { id: id }"), NOTHING);
    assert_eq!(of("when: deleted, if: \"new.status == null\", data: { id: id }"), NOTHING);
    assert_eq!(of("when: deleted, if: \"old.status == 'cart'\", data: { id: id }"), ["orders: if"]);
    assert_eq!(of("when: { lines: added }, if: \"new.id != 'x'\", data: { id: id }"), ["orders: if"]);
    assert_eq!(of("when: { lines: added }, if: \"old == null\", data: { id: id }"), ["orders: if"]);
}

#[test]
fn the_keys_that_a_root_had_are_needed_where_it_may_have_another() {
    let mut catalog = samples::shop();
    catalog.table_mut("tax_rate").identity = Identity::Index;
    let rate = catalog.table_mut("tax_rate").column("rate").unwrap();
    catalog.table_mut("tax_rate").columns[rate].identity = true;
    let of = |rest: &str| {
        let text = format!("{SHOP}events: {{ E: {{ of: Rate, {rest}, data: {{ id: id }} }} }}\n");
        needs(&proof(&text, &catalog).events[0])
    };
    assert_eq!(of("when: created"), NOTHING);
    assert_eq!(of("when: { rate: changed }"), ["tax_rate: the key that it had"]);
    assert_eq!(of("when: created, compact: true"), ["tax_rate: the key that it had"], "a deletion leaves a tombstone");
    assert_eq!(of("when: deleted"), ["tax_rate: the record's key"]);
    // What is not told of a tombstone is not needed.
    let text =
        format!("{SHOP}events: {{ E: {{ of: Stock, when: deleted, compact: true, data: {{ n: on_hand }} }} }}\n");
    let proof = proof(&text, &catalog);
    assert_eq!(needs(&proof.events[0]), NOTHING);
    assert_eq!(proof.events[0].fields[0].from, "none: a tombstone");
}

#[test]
fn because_needs_its_column_and_what_tells_whether_the_cause_has_happened() {
    let catalog = samples::ticketmonster();
    let head = format!("{HEAD}  Performance: {{ root: performance, topic: p }}\n");
    let of = |cause: &str, when: &str| {
        let text = format!(
            "{head}events:\n  Cause: {{ of: Performance, {cause} }}\n  E: {{ of: Booking, when: {when}, because: Cause via performance_id, \
             data: {{ id: id }} }}\n"
        );
        needs(&proof(&text, &catalog).events[1])
    };
    assert_eq!(of("when: created, data: { id: id }", "created"), NOTHING);
    assert_eq!(of("when: deleted, data: { id: id, at: date }", "deleted"), ["booking: because"]);
    let moved = "when: { date: changed }, data: { id: id }";
    assert_eq!(of(moved, "created"), ["performance: because"]);
    assert_eq!(of("when: deleted, if: \"old.show_id > 1\", data: { id: id }", "created"), ["performance: because"]);
    assert_eq!(of("when: created, data: { id: id }", "{ tickets: added }"), ["ticket: when", "booking: because"]);
}

#[test]
fn backfill_needs_the_root_its_lists_and_its_look_ups() {
    let catalog = samples::ticketmonster();
    let data = "{ id: id, was: old.contactemail, at: performance.date, tickets: { each: tickets, data: { id: id } } }";
    let both = sheet(HEAD, &catalog, "[created, backfill]", data);
    assert_eq!(both.when, ["created", "backfill"]);
    assert_eq!(
        needs(&both),
        ["booking: when, the record's key, id, at", "ticket: the list of tickets, tickets[].id", "performance: at"]
    );
    assert_eq!(both.fields[1].from, "created: null: there was no row; backfill: null: there was no row");
    let only =
        proof(&format!("{HEAD}events: {{ E: {{ of: Booking, when: backfill, data: {{ id: id }} }} }}\n"), &catalog);
    assert!(only.rules.events[0].backfill && only.rules.events[0].when.is_empty());
    assert_eq!(
        only.events[0].fields[0].from,
        "the replica: `backfill` tells of rows that were there before the first event"
    );
}

#[test]
fn an_adopted_childs_long_value_may_stop_the_run_unless_its_table_is_held() {
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("ticket").columns[3].toastable = true;
    let data = "{ tickets: { each: tickets, data: { row: rownumber } } }";
    let before = sheet(HEAD, &catalog, "created", data);
    assert_eq!(needs(&before), NOTHING);
    assert!(before.may_stop[0].starts_with("`tickets[].row`: a row of `public.ticket`"), "{before:?}");
    let held = format!(
        "{HEAD}events:\n  E: {{ of: Booking, when: created, data: {data} }}\n  F: {{ of: Booking, when: {{ tickets: added }}, data: {{ id: id }} }}\n"
    );
    let held = proof(&held, &catalog);
    assert_eq!((held.events[0].may_stop.len(), needs(&held.events[0]).len()), (0, 0));
    let ticket = catalog.table_mut("ticket");
    *ticket = ticket.clone().full();
    assert_eq!(sheet(HEAD, &catalog, "created", data).may_stop.len(), 0);
}

#[test]
fn at_least_once_is_refused_with_the_events_and_the_reason() {
    let text = format!("{HEAD}events: {{ E: {{ of: Booking, when: deleted, data: {ALL} }} }}\n");
    let text = text.replace("brokers: \"k:9092\"", "brokers: \"k:9092\", delivery: at_least_once");
    let config = Config::parse(&text, "c.yaml", &|_| None).unwrap();
    let misfits = Rules::compile(&config, &samples::ticketmonster()).map(drop).unwrap_err();
    let said = "`E.v1` needs the replica for `email`, `tickets[].id`, `tickets[].price`, the list of `tickets`: the log says of an old row \
                of `public.ticket` its primary key alone (the default REPLICA IDENTITY), and the replica agrees with the events only when \
                one transaction of Kafka's writes both, which `at_least_once` has not; write `exactly_once`, or ALTER TABLE public.ticket \
                REPLICA IDENTITY FULL and ALTER TABLE public.booking REPLICA IDENTITY FULL";
    assert_eq!(misfits, [Misfit::at(&["sink", "kafka", "delivery"], said)]);
    let without = text.replace("deleted", "created");
    let config = Config::parse(&without, "c.yaml", &|_| None).unwrap();
    assert!(Rules::compile(&config, &samples::ticketmonster()).is_ok());
}

/// An example of `config`, and what it comes to: per event what it needs, and per table the columns that are held.
fn example(text: &str, catalog: &Catalog) -> (Proof, Vec<String>, Vec<String>) {
    let at = text.find("\ntypes:").unwrap();
    let end = text.find("\ndata_dir:").unwrap_or(text.len());
    let head = &HEAD[..HEAD.find("tables:").unwrap()];
    let proof = proof(&format!("{head}{}", &text[at..end]), catalog);
    let short = |name: &str| name.trim_start_matches("public.").to_owned();
    let names = |rule: &EventRule| {
        let tables = rule.needs.iter().map(|table| proof.rules.tables[*table].name.as_str());
        format!("{}: {}", rule.name, tables.collect::<Vec<_>>().join(", "))
    };
    let events = proof.rules.events.iter().map(names).collect();
    let held = proof.held.iter().map(|held| format!("{}: {}", short(&held.table), held.columns.join(", "))).collect();
    (proof, events, held)
}

#[test]
fn ticketmonsters_example_is_whole_with_the_replica() {
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("ticket").rows = Some(1_000_000);
    let (proof, events, held) = example(include_str!("../../../config/ticketmonster.yaml"), &catalog);
    assert_eq!(
        events,
        [
            "BookingCreated: performance, appearance, event, section",
            "BookingImported: booking, ticket, performance, appearance, event, section",
            "BookingCancelled: booking, ticket",
            "PerformanceRescheduled: performance",
            "PerformanceCancelled: performance",
            "TicketPriceChanged: ticketprice",
        ]
    );
    assert_eq!(
        held,
        [
            "booking: id, contactemail, createdon, performance_id",
            "ticket: id, number, price, rownumber, section_id, tickets_id",
            "performance: id, date, show_id",
            "ticketprice: id, price, show_id",
            "appearance: id, event_id",
            "event: id, name",
            "section: id, name",
        ]
    );
    let fields: Vec<_> =
        { proof.events[0].fields.iter() }.map(|field| (field.field.as_str(), field.from.as_str())).collect();
    assert_eq!(
        fields,
        [
            ("bookingId", "the inserted row"),
            ("email", "the inserted row"),
            ("bookedAt", "the inserted row"),
            ("performance.id", "the inserted row"),
            ("performance.startsAt", "the replica: a row of `public.performance`, behind `performance_id`"),
            (
                "performance.event",
                "the replica: a row of `public.event`, behind `performance_id`, `show_id`, `event_id`"
            ),
            ("tickets[].ticketId", "the inserted or linked child"),
            ("tickets[].section", "the replica: a row of `public.section`, behind `section_id`"),
            ("tickets[].row", "the inserted or linked child"),
            ("tickets[].seat", "the inserted or linked child"),
            ("tickets[].price", "the inserted or linked child"),
        ]
    );
    assert_eq!(
        proof.rules.events.iter().map(|rule| rule.backfill).collect::<Vec<_>>(),
        [false, true, false, false, false, false]
    );
    let ticket = &proof.held[1];
    assert_eq!(ticket.events, ["BookingImported.v1", "BookingCancelled.v1"]);
    assert_eq!((ticket.rows, ticket.bytes), (Some(1_000_000), Some(TICKET_BYTES * 1_000_000)));
    assert_eq!((proof.held[0].rows, proof.held[0].bytes), (None, None));
}

/// 16 of a record, 6 of its frame, `public.ticket`; the key's cell twice, then number, price, rownumber, section_id, tickets_id.
const TICKET_BYTES: u64 = 16 + 6 + 13 + 2 * (5 + 8) + (5 + 6) + (5 + 7) + (5 + 6) + 2 * (5 + 8);

#[test]
fn the_shops_example_is_whole_with_the_replica() {
    let (proof, events, held) = example(include_str!("../../../config/shop.yaml"), &samples::shop());
    assert_eq!(
        events,
        [
            "OrderPlaced: orders, order_line",
            "OrderCancelled: orders",
            "TaxRateChanged: tax_rate",
            "StockLevel: inventory",
        ]
    );
    assert_eq!(
        held,
        [
            "orders: id, ship_country, status",
            "order_line: order_id, line_no, quantity, sku",
            "tax_rate: id, from_country, rate, to_country",
            "inventory: sku, on_hand",
        ]
    );
    assert_eq!(proof.rules.events.iter().map(|rule| rule.backfill).collect::<Vec<_>>(), [false, false, true, true]);
    assert_eq!(
        proof.events[2].fields[2].from,
        "created: null: there was no row; changed: the replica: the log says of an old row of `public.tax_rate` its primary key alone (the \
         default REPLICA IDENTITY); backfill: null: there was no row"
    );
}
