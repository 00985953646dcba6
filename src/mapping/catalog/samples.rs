//! The catalogs of the two databases of tests/fixtures, written down.

use postgres_types::{Kind as TypeKind, Type};

use super::{Catalog, CatalogColumn, CatalogTable, ForeignKey, Kind, may_be_toasted};
use crate::change::Identity;

/// A table of `public` as `CREATE TABLE` has it: `name bigint!` is NOT NULL, the first `key` columns are the primary key.
pub(crate) fn table(name: &str, key: usize, columns: &[&str]) -> CatalogTable {
    let columns: Vec<_> = columns.iter().enumerate().map(|(at, text)| column(text, at < key)).collect();
    let primary_key: Vec<_> = columns[..key].iter().map(|column| column.name.clone()).collect();
    CatalogTable {
        oid: 0,
        schema: "public".into(),
        name: name.into(),
        kind: Kind::Table,
        identity: Identity::Default,
        columns,
        unique: if key == 0 { Vec::new() } else { vec![primary_key.clone()] },
        primary_key,
        foreign_keys: Vec::new(),
        triggers_disabled: false,
        rows: None,
    }
}

fn column(text: &str, key: bool) -> CatalogColumn {
    let (name, ty) = text.split_once(' ').expect("`name type`");
    let not_null = key || ty.ends_with('!');
    let (ty, modifier) = self::ty(ty.trim_end_matches('!'));
    let toastable = may_be_toasted(&ty, modifier);
    CatalogColumn { name: name.into(), ty, modifier, not_null, toastable, identity: key, width: None }
}

fn ty(text: &str) -> (Type, i32) {
    let (name, arguments) = text.trim_end_matches(')').split_once('(').unwrap_or((text, ""));
    let arguments: Vec<i32> = arguments.split(',').filter_map(|argument| argument.parse().ok()).collect();
    match (name, arguments.as_slice()) {
        ("smallint", []) => (Type::INT2, -1),
        ("integer", []) => (Type::INT4, -1),
        ("bigint", []) => (Type::INT8, -1),
        ("real", []) => (Type::FLOAT4, -1),
        ("boolean", []) => (Type::BOOL, -1),
        ("text", []) => (Type::TEXT, -1),
        ("varchar", [len]) => (Type::VARCHAR, len + 4),
        ("char", [len]) => (Type::BPCHAR, len + 4),
        ("numeric", []) => (Type::NUMERIC, -1),
        ("numeric", [precision, scale]) => (Type::NUMERIC, ((precision << 16) | scale) + 4),
        ("date", []) => (Type::DATE, -1),
        ("timestamp", []) => (Type::TIMESTAMP, -1),
        ("timestamptz", []) => (Type::TIMESTAMPTZ, -1),
        ("uuid", []) => (Type::UUID, -1),
        ("jsonb", []) => (Type::JSONB, -1),
        ("bytea", []) => (Type::BYTEA, -1),
        ("order_status", []) => {
            let labels = ["cart", "placed", "shipped", "cancelled"].map(String::from).to_vec();
            (Type::new("order_status".into(), 90_000, TypeKind::Enum(labels), "public".into()), -1)
        }
        _ => panic!("no type `{text}`"),
    }
}

impl CatalogTable {
    /// With a foreign key, valid and enforced, to a table of `public`: `column -> table.column`, commas between several.
    pub(crate) fn foreign(mut self, columns: &str, to: &str, to_columns: &str) -> Self {
        let names = |text: &str| text.split(',').map(str::to_owned).collect();
        let (columns, to_columns, to) = (names(columns), names(to_columns), ("public".into(), to.into()));
        self.foreign_keys.push(ForeignKey { columns, to, to_columns, valid: true });
        self
    }

    /// With a unique index.
    pub(crate) fn unique(mut self, columns: &[&str]) -> Self {
        self.unique.push(columns.iter().map(|column| (*column).to_owned()).collect());
        self
    }

    /// With `REPLICA IDENTITY FULL`.
    pub(crate) fn full(mut self) -> Self {
        self.set_full();
        self
    }

    /// `REPLICA IDENTITY FULL`.
    pub(crate) fn set_full(&mut self) {
        self.identity = Identity::Full;
        self.columns.iter_mut().for_each(|column| column.identity = true);
    }
}

impl Catalog {
    /// To change what is written down here.
    pub(crate) fn table_mut(&mut self, name: &str) -> &mut CatalogTable {
        self.tables.iter_mut().find(|table| table.name == name).expect("a table of the sample")
    }
}

/// tests/fixtures/ticketmonster/schema.sql.
pub(crate) fn ticketmonster() -> Catalog {
    let event = table(
        "event",
        1,
        &["id bigint", "name varchar(50)!", "description varchar(1000)!", "category_id bigint!", "mediaitem_id bigint"],
    );
    let venue = table(
        "venue",
        1,
        &[
            "id bigint",
            "name text!",
            "street text",
            "city text",
            "country text",
            "description text",
            "capacity integer!",
        ],
    );
    let section = table(
        "section",
        1,
        &[
            "id bigint",
            "venue_id bigint!",
            "name text!",
            "description text!",
            "numberofrows integer!",
            "rowcapacity integer!",
        ],
    );
    let appearance = table("appearance", 1, &["id bigint", "event_id bigint!", "venue_id bigint!"]);
    let performance = table("performance", 1, &["id bigint", "show_id bigint!", "date timestamp!"]);
    let ticketprice = table(
        "ticketprice",
        1,
        &["id bigint", "show_id bigint!", "section_id bigint!", "ticketcategory_id bigint!", "price real!"],
    );
    let sectionallocation = table(
        "sectionallocation",
        1,
        &[
            "id bigint",
            "performance_id bigint!",
            "section_id bigint!",
            "allocated bytea",
            "occupiedcount integer!",
            "version bigint!",
        ],
    );
    let booking = table(
        "booking",
        1,
        &["id bigint", "performance_id bigint", "contactemail text!", "cancellationcode text!", "createdon timestamp!"],
    );
    let ticket = table(
        "ticket",
        1,
        &[
            "id bigint",
            "tickets_id bigint",
            "section_id bigint",
            "rownumber integer!",
            "number integer!",
            "ticketcategory_id bigint!",
            "price real!",
        ],
    );
    Catalog {
        tables: vec![
            table("ticketcategory", 1, &["id bigint", "description text!"]).unique(&["description"]),
            event.unique(&["name"]),
            venue.unique(&["name"]),
            section.foreign("venue_id", "venue", "id").unique(&["name", "venue_id"]),
            appearance.foreign("event_id", "event", "id").foreign("venue_id", "venue", "id"),
            performance.foreign("show_id", "appearance", "id").unique(&["date", "show_id"]),
            ticketprice
                .foreign("show_id", "appearance", "id")
                .foreign("section_id", "section", "id")
                .foreign("ticketcategory_id", "ticketcategory", "id")
                .unique(&["section_id", "show_id", "ticketcategory_id"]),
            sectionallocation.foreign("performance_id", "performance", "id").foreign("section_id", "section", "id"),
            booking.foreign("performance_id", "performance", "id"),
            ticket.foreign("tickets_id", "booking", "id").foreign("section_id", "section", "id").foreign(
                "ticketcategory_id",
                "ticketcategory",
                "id",
            ),
        ],
    }
}

/// tests/fixtures/shop/schema.sql.
pub(crate) fn shop() -> Catalog {
    let product = table(
        "product",
        1,
        &["sku text", "title text!", "weight_g integer", "origin_country char(2)!", "attributes jsonb!"],
    );
    let price =
        table("price", 2, &["sku text", "currency char(3)", "amount numeric(12,2)!", "valid_from timestamptz!"]);
    let tax_rate =
        table("tax_rate", 1, &["id integer", "from_country char(2)!", "to_country char(2)!", "rate numeric(6,4)!"]);
    let inventory = table("inventory", 1, &["sku text", "on_hand integer!", "updated_at timestamptz!"]);
    let orders = table(
        "orders",
        1,
        &[
            "id uuid",
            "customer_email text!",
            "ship_country char(2)!",
            "status order_status!",
            "placed_at timestamptz",
            "total numeric(12,2)",
        ],
    );
    let order_line = table(
        "order_line",
        2,
        &["order_id uuid", "line_no smallint", "sku text!", "quantity integer!", "unit_price numeric(12,2)!"],
    );
    let outbox = table(
        "outbox",
        1,
        &[
            "id uuid",
            "aggregatetype text!",
            "aggregateid text!",
            "type text!",
            "payload jsonb!",
            "correlation_id text",
            "causation_id text",
        ],
    );
    Catalog {
        tables: vec![
            product,
            price.foreign("sku", "product", "sku"),
            tax_rate.unique(&["from_country", "to_country"]),
            inventory.foreign("sku", "product", "sku"),
            orders,
            order_line.foreign("order_id", "orders", "id").foreign("sku", "product", "sku"),
            outbox,
        ],
    }
}
