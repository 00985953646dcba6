//! What is proven of TicketMonster and the shop, and what needs the replica.

use super::*;
use crate::{
    config::Config,
    mapping::{
        catalog::{Catalog, samples},
        rules::Rules,
    },
};

const HEAD: &str = "name: tm\nsource: { postgres: \"postgres://cdc@db/tm\" }\nsink: { kafka: { brokers: \"k:9092\" } }\n\
tables: { ticket: { decimal: { price: 2 } }, booking: { zone: UTC }, performance: { zone: UTC } }\n\
aggregates:\n  Booking: { root: booking, topic: t, children: { tickets: ticket.tickets_id } }\n";
const SHOP: &str = "name: shop\nsource: { postgres: \"postgres://cdc@db/tm\" }\nsink: { kafka: { brokers: \"k:9092\" } }\n\
aggregates:\n  Order: { root: orders, topic: t, children: { lines: order_line.order_id } }\n  Stock: { root: inventory, topic: s }\n";

fn sheet(head: &str, catalog: &Catalog, when: &str, data: &str) -> EventSheet {
    let of = if head == SHOP { "Order" } else { "Booking" };
    let text = format!("{head}events: {{ E: {{ of: {of}, when: {when}, data: {data} }} }}\n");
    let config = Config::parse(&text, "c.yaml", &|_| None).unwrap_or_else(|error| panic!("{error}"));
    let (_, mut sheets) = Rules::prove(&config, catalog).unwrap_or_else(|misfits| panic!("{misfits:?}"));
    let sheet = sheets.remove(0);
    assert_eq!(Rules::compile(&config, catalog).is_ok(), sheet.needs.is_empty());
    sheet
}

/// The keys after `events.E` of what is needed.
fn needs(sheet: &EventSheet) -> Vec<String> {
    sheet.needs.iter().map(|need| need.at[2..].join(".")).collect()
}

const ALL: &str = "{ id: id, email: contactemail, tickets: { each: tickets, data: { id: id, price: price } } }";

#[test]
fn created_is_complete_by_its_foreign_key_and_needs_no_full_identity() {
    let sheet = sheet(HEAD, &samples::ticketmonster(), "created", ALL);
    assert_eq!(sheet.needs, []);
    assert_eq!(
        sheet.because,
        ["no row of public.ticket can be without its public.booking: its foreign key tickets_id is valid and enforced"]
    );
    assert_eq!(sheet.fields[1].from, "the inserted row");
    assert_eq!((sheet.fields[2].field.as_str(), sheet.may_stop.len()), ("tickets[].id", 0));
}

#[test]
fn created_is_not_complete_when_the_foreign_key_does_not_hold() {
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("ticket").foreign_keys[0].valid = false;
    assert_eq!(needs(&sheet(HEAD, &catalog, "created", ALL)), ["data.tickets.each"]);
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("booking").triggers_disabled = true;
    let sheet = sheet(HEAD, &catalog, "created", ALL);
    assert!(sheet.needs[0].mend.starts_with("ALTER TABLE public.booking ENABLE TRIGGER ALL"), "{:?}", sheet.needs);
}

#[test]
fn a_hop_needs_the_replica_but_for_the_key_itself() {
    let data = "{ at: performance.date, id: performance.id, old: old.contactemail }";
    let sheet = sheet(HEAD, &samples::ticketmonster(), "created", data);
    assert_eq!(needs(&sheet), ["data.at"]);
    assert_eq!(
        (sheet.fields[1].from.as_str(), sheet.fields[2].from.as_str()),
        ("the inserted row", "null: there was no row")
    );
    assert!(sheet.fields[0].nullable, "performance_id may be null");
}

#[test]
fn deleted_needs_full_on_both_unless_keys_say_enough() {
    let mut catalog = samples::ticketmonster();
    assert_eq!(needs(&sheet(HEAD, &catalog, "deleted", "{ id: id }")), Vec::<String>::new());
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "deleted", ALL)),
        ["data.tickets.each", "data.email", "data.tickets.data.price"]
    );
    catalog.table_mut("booking").set_full();
    catalog.table_mut("ticket").set_full();
    assert_eq!(needs(&sheet(HEAD, &catalog, "deleted", ALL)), Vec::<String>::new());
    // The link is of the child's primary key.
    let data = "{ id: id, lines: { each: lines, data: { no: line_no } } }";
    assert_eq!(needs(&sheet(SHOP, &samples::shop(), "deleted", data)), Vec::<String>::new());
}

#[test]
fn a_change_says_new_values_and_not_old_ones_nor_untouched_children() {
    let mut catalog = samples::shop();
    let data = "{ id: id, to: ship_country, email: customer_email, was: old.ship_country }";
    let placed = "{ status: cart -> placed }";
    assert_eq!(needs(&sheet(SHOP, &catalog, placed, data)), ["when.0", "data.email", "data.was"]);
    catalog.table_mut("orders").set_full();
    assert_eq!(needs(&sheet(SHOP, &catalog, placed, data)), Vec::<String>::new());
    let lines = "{ lines: { each: lines, data: { sku: sku } } }";
    assert_eq!(needs(&sheet(SHOP, &catalog, placed, lines)), ["data.lines.each"]);
}

#[test]
fn a_change_of_children_alone_says_the_roots_key_alone() {
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("booking").set_full();
    assert_eq!(
        needs(&sheet(HEAD, &catalog, "{ tickets: added }", "{ id: id, email: contactemail }")),
        ["when.0", "data.email"]
    );
    catalog.table_mut("ticket").set_full();
    assert_eq!(needs(&sheet(HEAD, &catalog, "any", "{ id: id }")), Vec::<String>::new());
    assert_eq!(needs(&sheet(HEAD, &catalog, "any", "{ email: contactemail }")), ["data.email"]);
    assert_eq!(needs(&sheet(SHOP, &samples::shop(), "{ lines: removed }", "{ id: id }")), Vec::<String>::new());
}

#[test]
fn an_adopted_childs_long_value_may_stop_the_run() {
    let mut catalog = samples::ticketmonster();
    catalog.table_mut("ticket").columns[3].toastable = true;
    let data = "{ tickets: { each: tickets, data: { row: rownumber } } }";
    let before = sheet(HEAD, &catalog, "created", data);
    assert!(before.needs.is_empty() && before.may_stop[0].starts_with("`tickets[].row`: a row of `public.ticket`"));
    let ticket = catalog.table_mut("ticket");
    *ticket = ticket.clone().full();
    assert_eq!(sheet(HEAD, &catalog, "created", data).may_stop.len(), 0);
}

#[test]
fn backfill_is_not_there_yet() {
    let sheet = sheet(HEAD, &samples::ticketmonster(), "[created, backfill]", "{ id: id }");
    assert_eq!(needs(&sheet), ["when.1"]);
    assert_eq!(sheet.when, ["created", "backfill"]);
}
