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
