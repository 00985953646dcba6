//! Every message of a refused config, word by word: they are what the user sees of this module.

use super::*;

const GOOD: &str = "\
name: shop
source:
  postgres: postgres://cdc:hunter2@db/shop
sink:
  kafka:
    brokers: kafka:9092
    delivery: at_least_once
    topics:
      partitions: 6
    properties:
      sasl.password: hunter2
changes:
  tables: [public.*]
";

fn env(name: &str) -> Option<String> {
    let known = [
        ("URL", "postgres://cdc:hunter2@db/shop"),
        ("NAME", "shop"),
        ("SIX", "6"),
        ("NO", "false"),
        ("EMPTY", ""),
        ("EVIL", "x\nsource: { postgres: evil } # \"'"),
    ];
    known.iter().find(|(of, _)| *of == name).map(|(_, value)| value.to_string())
}

fn parsed(text: &str) -> Result<Config, String> {
    Config::parse(text, "c.yaml", &env).map_err(|error| error.to_string())
}

/// The good config with one place changed.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

fn loaded(text: &str) -> Config {
    parsed(text).unwrap_or_else(|said| panic!("{said}\n{text}"))
}

/// The message without its excerpt.
fn refused(text: &str) -> String {
    let said = parsed(text).expect_err(text);
    assert!(!said.contains("hunter2"), "a secret is told: {said}");
    said.lines().next().unwrap_or_default().to_owned()
}

#[track_caller]
fn refuses(from: &str, to: &str, said: &str) {
    assert_eq!(refused(&with(from, to)), said);
}

#[test]
fn an_excerpt_shows_the_culprit_with_a_caret_and_nothing_else_of_its_line() {
    let excerpt = |from, to| parsed(&with(from, to)).unwrap_err();
    assert_eq!(
        excerpt("partitions: 6", "partitons: 6"),
        "\
c.yaml:9:7: unknown key `partitons` in `sink.kafka.topics`; did you mean `partitions`?
  |
9 |       partitons: …
  |       ^^^^^^^^^"
    );
    assert_eq!(
        excerpt("partitions: 6", "partitions: six"),
        "\
c.yaml:9:19: `sink.kafka.topics.partitions` must be a whole number, found `six`
  |
9 |       partitions: six
  |                   ^^^"
    );
    assert_eq!(
        excerpt("name: shop", "limits: { memory: 1MiB }\nname: shop"),
        "\
c.yaml:1:19: `limits.memory` must be at least 8MiB
  |
1 | … memory: 1MiB
  |           ^^^^"
    );
    assert_eq!(
        excerpt("postgres: postgres://cdc:hunter2@db/shop", "postgres: postgres://cdc:hunter2@${NOPE}/shop"),
        "\
c.yaml:3:3: `source.postgres`: environment variable NOPE is not set; set it, or write `${NOPE:-default}`
  |
3 |   postgres: ***
  |   ^^^^^^^^"
    );
}

#[test]
fn places_stay_right_with_a_byte_order_mark_with_crlf_and_beyond_ascii() {
    let said = "c.yaml:9:7: unknown key `partitons` in `sink.kafka.topics`; did you mean `partitions`?";
    let wrong = with("partitions:", "partitons:");
    assert_eq!(refused(&format!("\u{feff}{wrong}")), said);
    assert_eq!(refused(&wrong.replace('\n', "\r\n")), said);
    refuses(
        "name: shop",
        "# ééé\nname: \"é\" ",
        "c.yaml:2:7: `name` must match [a-z0-9_]{1,54}: it names the slot and the publication",
    );
    refuses(
        "name: shop",
        "admin: { \"listen\": \"é\" }\nname: shop",
        "c.yaml:1:20: `admin.listen` must be an address and a port, such as 127.0.0.1:8642",
    );
}

#[test]
fn unknown_keys_are_refused_at_every_level_with_the_nearest_right_one() {
    refuses("changes:", "change:", "c.yaml:12:1: unknown key `change`; did you mean `changes`?");
    refuses("postgres:", "postgress:", "c.yaml:3:3: unknown key `postgress` in `source`; did you mean `postgres`?");
    refuses("kafka:\n", "kafak:\n", "c.yaml:5:3: unknown key `kafak` in `sink`; did you mean `kafka`?");
    refuses("brokers:", "Broker:", "c.yaml:6:5: unknown key `Broker` in `sink.kafka`; did you mean `brokers`?");
    refuses("tables:", "table:", "c.yaml:13:3: unknown key `table` in `changes`; did you mean `tables`?");
    refuses(
        "partitions:",
        "colour:",
        "c.yaml:9:7: unknown key `colour` in `sink.kafka.topics`; the keys there are `create`, `partitions`, `replication` or `properties`",
    );
    refuses(
        "name: shop",
        "name: shop\nlimits: { memry: 1GiB }",
        "c.yaml:2:11: unknown key `memry` in `limits`; did you mean `memory`?",
    );
    refuses(
        "name: shop",
        "name: shop\nadmin: { port: 80 }",
        "c.yaml:2:10: unknown key `port` in `admin`; the keys there are `listen`, `token` or `tls`",
    );
}

#[test]
fn missing_keys_are_named_with_what_to_write() {
    refuses("name: shop\n", "", "c.yaml:1:1: missing key `name`; write `name: shop`");
    refuses(
        "  postgres: postgres://cdc:hunter2@db/shop\n",
        "",
        "c.yaml:2:1: missing key `postgres` in `source`; write `postgres: postgres://user@host/database`",
    );
    refuses(
        "    brokers: kafka:9092\n",
        "",
        "c.yaml:5:3: missing key `brokers` in `sink.kafka`; write `brokers: host:9092`",
    );
    refuses(
        "  tables: [public.*]",
        "  topic: x",
        "c.yaml:12:1: missing key `tables` in `changes`; write `tables: [public.*]`",
    );
    refuses(
        "changes:\n  tables: [public.*]\n",
        "",
        "c.yaml:1:1: nothing says what is to leave; write `changes: { tables: [public.*] }`, or `aggregates` and `events`",
    );
    assert_eq!(refused(""), "c.yaml:1:1: missing key `name`; write `name: shop`");
}

#[test]
fn a_wrong_type_says_what_is_wanted() {
    refuses(
        "partitions: 6",
        "partitions: [6]",
        "c.yaml:9:7: `sink.kafka.topics.partitions` must be a whole number, found a list",
    );
    refuses(
        "partitions: 6",
        "partitions: 6.5",
        "c.yaml:9:19: `sink.kafka.topics.partitions` must be a whole number, found `6.5`",
    );
    refuses(
        "partitions: 6",
        "create: maybe",
        "c.yaml:9:15: `sink.kafka.topics.create` must be true or false, found `maybe`",
    );
    refuses("[public.*]", "public.*", "c.yaml:13:11: `changes.tables` must be a list such as [a, b], found `public.*`");
    refuses("[public.*]", "[a.b, [c]]", "c.yaml:13:17: `changes.tables[1]` must be text, found a list");
    refuses(
        "topics:\n      partitions: 6",
        "topics: 6",
        "c.yaml:8:13: `sink.kafka.topics` must be a map of keys, found `6`",
    );
    refuses(
        "name: shop",
        "name: shop\nlimits: { memory: lots }",
        "c.yaml:2:19: `limits.memory` must be a size, such as 24MiB or 10GiB",
    );
    refuses(
        "source:",
        "source:\n  decoding_work_mem: much",
        "c.yaml:3:22: `source.decoding_work_mem` must be a size, such as 24MiB or 10GiB",
    );
    refuses(
        "at_least_once",
        "at_lest_once",
        "c.yaml:7:15: `sink.kafka.delivery` cannot be `at_lest_once`; did you mean `at_least_once`?",
    );
    refuses(
        "changes:",
        "changes:\n  decimal: float",
        "c.yaml:13:12: `changes.decimal` cannot be `float`; write `precise`, `double` or `string`",
    );
    assert_eq!(refused("- a"), "c.yaml:1:1: the file must be a map of keys, found a list");
}

#[test]
fn a_key_appears_once() {
    refuses("changes:", "name: x\nchanges:", "c.yaml:12:1: key `name` appears twice; the first is on line 1");
    refuses(
        "      sasl.password: hunter2",
        "      sasl.password: hunter2\n      sasl.password: hunter2",
        "c.yaml:12:7: key `sasl.password` appears twice; the first is on line 11",
    );
}

#[test]
fn what_is_not_yaml_is_refused_with_its_place_and_the_usual_remedy() {
    refuses(
        "name: shop",
        "name: shop: x",
        "c.yaml:1:11: not valid YAML: mapping values are not allowed in this context",
    );
    refuses(
        "name: shop",
        "name: shop\nadmin: { listen: ${NAME} }",
        "c.yaml:2:19: not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'; write \"${...}\" in quotes within { }",
    );
    refuses(
        "changes:",
        "changes:\n  topic: {name}.{table}",
        "c.yaml:13:16: not valid YAML: while parsing a block mapping, did not find expected key; a text with { } needs quotes, such as \"{name}.{table}\"",
    );
    assert_eq!(
        refused(&format!("{GOOD}---\n{GOOD}")),
        "c.yaml:15:1: not valid YAML: only single YAML document expected but multiple found"
    );
}

#[test]
fn variables_are_put_into_values() {
    let config = loaded(
        "
name: \"${NAME}_${SIX}\"
source: { postgres: \"${URL}\", create: \"${NO}\" }
data_dir: ${NOPE:-a_${SIX}
sink:
  kafka:
    brokers: ${EMPTY:-kafka:9092}${EMPTY}
    delivery: ${NOPE:-at_least_once}
    topics: { partitions: \"${SIX}\", properties: { a: '$${SIX}', b: $SIX, c: $$, d: \"${NOPE:-}\" } }
changes: { tables: [\"${NAME}.*\"] } # ${NOPE}
",
    );
    assert_eq!(config.name, "shop_6");
    assert_eq!(config.source.postgres.reveal(), "postgres://cdc:hunter2@db/shop");
    assert!(!config.source.create);
    // The first `}` closes, as in a shell.
    assert_eq!(config.data_dir, Path::new("a_${SIX"));
    assert_eq!(config.sink.kafka.brokers, "kafka:9092");
    assert_eq!(config.sink.kafka.topics.partitions, 6);
    let property = |key: &str| config.sink.kafka.topics.properties[key].0.as_str();
    assert_eq!((property("a"), property("b"), property("c"), property("d")), ("${SIX}", "$SIX", "$$", ""));
    assert_eq!(config.changes.unwrap().tables, ["shop.*"]);
}

#[test]
fn what_a_variable_holds_cannot_become_structure() {
    let config = loaded(&with("name: shop", "name: shop\ndata_dir: ${EVIL}"));
    assert_eq!(config.data_dir, Path::new("x\nsource: { postgres: evil } # \"'"));
    assert_eq!(config.source.postgres.reveal(), "postgres://cdc:hunter2@db/shop");
    refuses(
        "name: shop",
        "name: ${EVIL}",
        "c.yaml:1:7: `name` must match [a-z0-9_]{1,54}: it names the slot and the publication",
    );
}

#[test]
fn a_variable_that_is_not_there_is_named_with_its_key() {
    refuses(
        "name: shop",
        "name: ${NOPE}",
        "c.yaml:1:7: `name`: environment variable NOPE is not set; set it, or write `${NOPE:-default}`",
    );
    refuses(
        "[public.*]",
        "[public.*, \"${NOPE}\"]",
        "c.yaml:13:22: `changes.tables[1]`: environment variable NOPE is not set; set it, or write `${NOPE:-default}`",
    );
    refuses(
        "name: shop",
        "name: ${NAME",
        "c.yaml:1:7: `name`: `${` is not closed by `}`; write `$${` for a literal `${`",
    );
    for wrong in ["${}", "${1A}", "${A B}", "${A-b}", "${:-x}"] {
        refuses(
            "name: shop",
            &format!("name: {wrong}"),
            "c.yaml:1:7: `name`: `${...}` wants the name of a variable, `${NAME}` or `${NAME:-default}`; write `$${` for a literal `${`",
        );
    }
    refuses(
        "partitions: 6",
        "partitions: ${URL}",
        "c.yaml:9:19: `sink.kafka.topics.partitions` must be a whole number, found `${URL}`",
    );
}

#[test]
fn secrets_come_from_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, "postgres://cdc:hunter3@db/shop\r\n").unwrap();
    let file = format!("file:{}", path.display());
    let config = loaded(&with("postgres://cdc:hunter2@db/shop", &format!("${{NOPE:-{file}}}")));
    let url = config.source.postgres.clone();
    assert_eq!(url.read().unwrap().reveal(), "postgres://cdc:hunter3@db/shop");
    let config = loaded(&with("sasl.password: hunter2", &format!("sasl.password: {file}")));
    let password = config.sink.kafka.properties["sasl.password"].clone();
    assert_eq!(password.read().unwrap(), "postgres://cdc:hunter3@db/shop");
    // What is in the file may change; a file that is gone is told by its name.
    std::fs::write(&path, "hunter4").unwrap();
    assert_eq!((url.read().unwrap().reveal(), password.read().unwrap().as_str()), ("hunter4", "hunter4"));
    std::fs::remove_file(&path).unwrap();
    let gone = password.read().unwrap_err();
    assert!(crate::causes::told(&gone).contains(&format!("read {}: No such file", path.display())), "{gone}");
    // Elsewhere it is a text like any other.
    let config = loaded(&with("partitions: 6", "properties: { a: file:/x }"));
    assert_eq!(config.sink.kafka.topics.properties["a"].0, "file:/x");

    refuses(
        "postgres://cdc:hunter2@db/shop",
        "file:/nonexistent/x",
        "c.yaml:3:3: `source.postgres`: cannot read /nonexistent/x: No such file or directory (os error 2)",
    );
    refuses(
        "sasl.password: hunter2",
        "sasl.password: file:/",
        "c.yaml:11:7: `sink.kafka.properties.sasl.password`: cannot read /: Is a directory (os error 21)",
    );
    refuses(
        "sasl.password: hunter2",
        "sasl.password: file:/dev/zero",
        "c.yaml:11:7: `sink.kafka.properties.sasl.password`: cannot read /dev/zero: it is larger than 1 MiB",
    );
}

#[test]
fn a_secret_is_in_no_message_whatever_is_wrong_around_it() {
    for (from, to) in [
        ("postgres:", "postgress:"),
        ("postgres://cdc:hunter2@db/shop", "[hunter2]"),
        ("postgres://cdc:hunter2@db/shop", "{ url: hunter2 }"),
        ("postgres://cdc:hunter2@db/shop", "hunter2: x"),
        ("postgres://cdc:hunter2@db/shop", "*hunter2"),
        ("postgres://cdc:hunter2@db/shop", "@hunter2"),
        ("postgres://cdc:hunter2@db/shop", "!!int hunter2"),
        ("postgres://cdc:hunter2@db/shop", "\"hunter2\\q\""),
        ("postgres://cdc:hunter2@db/shop", "'hunter2"),
        ("postgres://cdc:hunter2@db/shop", "|\n    hunter2\n  hunter2"),
        ("postgres://cdc:hunter2@db/shop", "hunter2 ${NOPE}"),
        ("postgres://cdc:hunter2@db/shop", "hunter2 ${hunter2"),
        ("source:\n  postgres: postgres://cdc:hunter2@db/shop", "source: postgres://cdc:hunter2@db/shop"),
        ("source:\n  postgres: postgres://cdc:hunter2@db/shop", "source: { postgres://cdc:hunter2@db/shop }"),
        ("source:\n  postgres: postgres://cdc:hunter2@db/shop", "source: [postgres://cdc:hunter2@db/shop]"),
        (
            "source:\n  postgres: postgres://cdc:hunter2@db/shop",
            "source:\n  postgres:\n  postgres://cdc:hunter2@db/shop",
        ),
        ("postgres://cdc:hunter2@db/shop", "&s postgres://cdc:hunter2@db/shop\n  create: *s"),
        ("sasl.password: hunter2", "sasl.password=hunter2"),
        ("sasl.password: hunter2", "sasl.password=hunter2:"),
        ("sasl.password: hunter2", "\"sasl hunter2\": a\n      \"sasl hunter2\": b"),
        ("sasl.password: hunter2", "sasl.password: { x: hunter2 }"),
        ("properties:\n      sasl.password: hunter2", "properties: sasl.password=hunter2"),
        ("properties:\n      sasl.password: hunter2", "propertys: { sasl.password: hunter2 }"),
    ] {
        let said = refused(&with(from, to));
        assert!(said.starts_with("c.yaml:"), "{said}");
    }
    assert_eq!(refused("postgres://cdc:hunter2@db/shop"), "c.yaml:1:1: the file must be a map of keys, found a text");
    assert!(!format!("{:?}", loaded(GOOD)).contains("hunter2"));
}

#[test]
fn names_are_legal_before_they_reach_a_server() {
    let long = "a".repeat(55);
    for wrong in ["Shop", "my-shop", "\"\"", "my.shop", &long] {
        refuses(
            "name: shop",
            &format!("name: {wrong}"),
            "c.yaml:1:7: `name` must match [a-z0-9_]{1,54}: it names the slot and the publication",
        );
    }
    refuses("source:", "source:\n  slot: my-slot", "c.yaml:3:9: `source.slot` must match [a-z0-9_]{1,63}");
    refuses("source:", "source:\n  publication: Pub", "c.yaml:3:16: `source.publication` must match [a-z0-9_]{1,63}");
    // Numbers and booleans of YAML are their text.
    assert_eq!(loaded(&with("name: shop", "name: 1e5")).name, "1e5");
    assert_eq!(loaded(&with("name: shop", "name: true")).slot(), "offshoot_true");
}

#[test]
fn what_this_version_has_not_is_said() {
    refuses(
        "changes:",
        "changes:\n  format: flat",
        "c.yaml:13:11: `changes.format: flat` is not built yet in this version; write `debezium`",
    );
}

#[test]
fn exactly_once_is_what_nothing_said_means() {
    let config = loaded(&with("    delivery: at_least_once\n", ""));
    assert_eq!(config.sink.kafka.delivery, Delivery::ExactlyOnce);
    let config = loaded(&with("    topics:", "    commit_interval: 50ms\n    commit_events: 10\n    topics:"));
    assert_eq!(config.sink.kafka.commit_interval, Duration::from_millis(50));
    assert_eq!(config.sink.kafka.commit_events, 10);
    refuses(
        "    topics:",
        "    commit_interval: 30s\n    topics:",
        "c.yaml:8:22: `sink.kafka.commit_interval` must be from 1ms to 10s",
    );
    refuses(
        "    topics:",
        "    commit_events: 0\n    topics:",
        "c.yaml:8:20: `sink.kafka.commit_events` must be at least 1",
    );
    refuses(
        "changes:",
        "limits:\n  transaction_events: 10\nchanges:",
        "c.yaml:13:23: `limits.transaction_events` must be at least 1000",
    );
}

#[test]
fn what_cannot_work_is_refused() {
    refuses(
        "postgres: postgres://cdc:hunter2@db/shop",
        "postgres: \"${EMPTY}\"",
        "c.yaml:3:3: `source.postgres` is empty; write `postgres://user@host/database`",
    );
    refuses(
        "source:",
        "source:\n  decoding_work_mem: 1KiB",
        "c.yaml:3:22: `source.decoding_work_mem` must be at least 64KiB, as Postgres asks",
    );
    refuses(
        "source:",
        "ignore_origin: [mirror]\nsource:\n  streaming: true",
        "c.yaml:4:14: `source.streaming` does not go with `messages`, `context`, `outbox.prefix` or `ignore_origin`: of an \
         open transaction Postgres says neither its origin nor which savepoint a message belongs to",
    );
    refuses("name: shop", "name: shop\nlimits: { memory: 8MB }", "c.yaml:2:19: `limits.memory` must be at least 8MiB");
    refuses(
        "name: shop",
        "name: shop\nlimits: { slot_wal_stop: 1MiB }",
        "c.yaml:2:26: `limits.slot_wal_stop` must be at least 64MiB: a slot keeps some log even when nothing is late",
    );
    refuses(
        "name: shop",
        "name: shop\nlimits: { slot_wal_action: drop_slot }",
        "c.yaml:2:28: `limits.slot_wal_action: drop_slot` needs a `limits.slot_wal_stop` at which it is done",
    );
    refuses(
        "source:",
        "source:\n  omit_columns: [ticket.photo]",
        "c.yaml:3:18: `source.omit_columns`: `ticket.photo` must be `schema.table.column`",
    );
    refuses(
        "kafka:9092",
        "a:1,,b:2",
        "c.yaml:6:14: `sink.kafka.brokers` must be `host:port`, with commas between several",
    );
    refuses(
        "kafka:9092",
        "a:1 b:2",
        "c.yaml:6:14: `sink.kafka.brokers` must be `host:port`, with commas between several",
    );
    refuses("partitions: 6", "partitions: 0", "c.yaml:9:19: `sink.kafka.topics.partitions` must be at least 1");
    for wrong in ["0", "-2", "40000"] {
        refuses(
            "partitions: 6",
            &format!("replication: {wrong}"),
            "c.yaml:9:20: `sink.kafka.topics.replication` must be from 1 to 32767, or -1 for the broker's own default",
        );
    }
    assert_eq!(loaded(&with("partitions: 6", "replication: -1")).sink.kafka.topics.replication, -1);
}

#[test]
fn tables_have_a_schema() {
    refuses("[public.*]", "[]", "c.yaml:13:3: `changes.tables` names no table; write `tables: [public.*]`");
    refuses("[public.*]", "[orders]", "c.yaml:13:12: `changes.tables`: `orders` has no schema; write `public.orders`");
    refuses("[public.*]", "[a.b, public.]", "c.yaml:13:17: `changes.tables`: `public.` must be `schema.table`");
    refuses(
        "[public.*]",
        "[public.*]\n  except: [audit]",
        "c.yaml:14:12: `changes.except`: `audit` has no schema; write `public.audit`",
    );
    refuses(
        "[public.*]",
        "[\"public.[a\"]",
        "c.yaml:13:12: `changes.tables`: `public.[a` is not a pattern: unclosed character class; missing ']'",
    );
}

#[test]
fn a_topic_template_makes_legal_names() {
    refuses(
        "changes:",
        "changes:\n  topic: \"{nme}.x\"",
        "c.yaml:13:10: `changes.topic`: `{nme}` is unknown; there are {name}, {schema} and {table}",
    );
    refuses("changes:", "changes:\n  topic: \"{name\"", "c.yaml:13:10: `changes.topic`: `{` is not closed by `}`");
    refuses(
        "changes:",
        "changes:\n  topic: a b",
        "c.yaml:13:10: `changes.topic`: Kafka allows no ` ` in a topic's name, only letters, digits, `.`, `_` and `-`",
    );
    refuses(
        "changes:",
        "changes:\n  topic: a}",
        "c.yaml:13:10: `changes.topic`: Kafka allows no `}` in a topic's name, only letters, digits, `.`, `_` and `-`",
    );
    refuses(
        "changes:",
        "changes:\n  topic: ''",
        "c.yaml:13:10: `changes.topic`: it does not make a topic's name, which has 1 to 249 letters, digits, `.`, `_` and `-`",
    );
    for right in ["all", "{table}", "cdc-{schema}_{table}.v1"] {
        assert_eq!(loaded(&with("changes:", &format!("changes:\n  topic: \"{right}\""))).changes.unwrap().topic, right);
    }
}

#[test]
fn what_a_module_finds_is_told_with_its_place_and_without_a_secret() {
    let refusing = |check: Check| {
        let checked = Config::parse_checked(GOOD, "c.yaml", &env, &[check]);
        checked.unwrap_err().to_string()
    };
    let said = refusing(|_| Err(Misfit::at(&["sink", "kafka", "properties", "sasl.password"], "`x` is wrong")));
    assert!(said.starts_with("c.yaml:11:7: `x` is wrong\n") && !said.contains("hunter2"), "{said}");
    let said = refusing(|_| Err(Misfit::at(&["source", "postgres"], "`y` is wrong")));
    assert!(said.starts_with("c.yaml:3:3: `y` is wrong\n") && !said.contains("hunter2"), "{said}");
}

#[test]
fn defaults_are_safe() {
    let config = loaded(&with("    topics:\n      partitions: 6\n", "    topics:\n"));
    assert_eq!((config.slot(), config.publication()), ("offshoot_shop".into(), "offshoot_shop".into()));
    assert!(config.source.create && config.sink.kafka.topics.create);
    assert_eq!((config.sink.kafka.topics.partitions, config.sink.kafka.topics.replication), (6, -1));
    assert_eq!((config.limits.memory, config.limits.spill), (ByteSize::mib(24), ByteSize::gib(10)));
    assert_eq!((config.limits.slot_wal_warn, config.limits.slot_wal_stop), (ByteSize::gib(10), None));
    assert_eq!(config.limits.slot_wal_action, SlotWalAction::Stop);
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8642");
    assert_eq!(config.data_dir, Path::new("/var/lib/offshoot"));
    assert_eq!(config.changes.unwrap().topic, "{name}.{schema}.{table}");
}

#[test]
fn a_listener_that_others_can_reach_wants_a_token_or_tls() {
    let admin = |yaml: &str| format!("{GOOD}admin: {yaml}\n");
    let said = refused(&admin("{ listen: \"0.0.0.0:8642\" }"));
    assert!(said.contains("`admin.listen` is 0.0.0.0:8642, which others can reach: add `admin.token`"), "{said}");
    assert!(refused(&admin("{ listen: \"[::]:8642\" }")).contains("`admin.listen` is [::]:8642"));
    for good in [
        "{ listen: \"[::1]:8642\" }",
        "{ listen: \"127.8.0.1:8642\" }",
        "{ listen: \"0.0.0.0:8642\", token: 0123456789abcdef }",
        "{ listen: \"0.0.0.0:8642\", tls: { certificate: a, key: b } }",
    ] {
        loaded(&admin(good));
    }
}

#[test]
fn a_token_is_long_enough_fits_a_header_and_is_never_shown() {
    for bad in ["hunter2", "\"\"", "\"hunter2 hunter2 hunter2\"", "hunter2hunter2hunter2é"] {
        let said = refused(&format!("{GOOD}admin:\n  token: {bad}\n"));
        assert!(said.contains("`admin.token` must be at least 16 characters"), "{said}");
        assert!(said.contains("openssl rand -hex 32") && !said.contains("hunter2"), "{said}");
    }
    let config = loaded(&format!("{GOOD}admin: {{ token: 0123456789abcdef }}\n"));
    assert!(!format!("{config:?}").contains("0123456789abcdef"));
}

#[test]
fn the_example_configs_load() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "host=db password=hunter2\n").unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let env = |name: &str| match name {
        "SHOP_URL" | "TICKETMONSTER_URL" => Some("postgres://cdc@db/x".into()),
        "SHOP_URL_FILE" | "SHOP_KAFKA_PASSWORD_FILE" => Some(secret.display().to_string()),
        "KAFKA_BROKERS" => Some("kafka:9092".into()),
        "POSTGRES_PASSWORD" => Some("hunter2".into()),
        "SHOP_ADMIN_TOKEN_FILE" => Some(token.display().to_string()),
        "OFFSHOOT_ADMIN_TOKEN" => Some("0123456789abcdef".into()),
        _ => None,
    };
    let mut names = Vec::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let config = Config::parse(&text, &path.display().to_string(), &env).unwrap_or_else(|error| panic!("{error}"));
        names.push(config.name);
    }
    names.sort();
    assert_eq!(names, ["shop", "shop", "ticketmonster", "ticketmonster", "ticketmonster"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let said = crate::causes::told(&Config::load(Path::new("/nonexistent/c.yaml"), &[]).unwrap_err());
    assert_eq!(said, "cannot read /nonexistent/c.yaml: No such file or directory (os error 2)");
}

#[test]
fn what_the_application_says_itself_is_checked_key_by_key() {
    let changes = "changes:\n  tables: [public.*]\n";
    let whole = "outbox: { table: sales.outbox, prefix: outbox, topic: \"{name}.{aggregatetype}\", columns: { id: event_id }, \
                 fields: { type: { to: header, as: eventType } }, converter: json, on_update: stop }\n\
                 messages: [{ prefix: \"audit.*\", topic: shop.audit, key: who }]\n\
                 context: { prefix: ctx, correlationid: correlation_id }\nignore_origin: [mirror]\n";
    let config = loaded(&with(changes, whole));
    let outbox = config.outbox.as_ref().unwrap();
    assert_eq!((outbox.table(), outbox.columns.payload.as_str()), (Some(("sales", "outbox")), "payload"));
    assert!(config.wants_messages() && config.changes.is_none());
    assert_ne!(config.fingerprint(), loaded(GOOD).fingerprint());
    assert!(!loaded(&with(changes, "outbox: { table: outbox }\n")).wants_messages());
    for (rest, said) in [
        ("outbox: {}", "12:1: `outbox` needs a `table`, or the `prefix` of messages"),
        ("outbox: { table: a.b.c }", "12:18: `outbox.table` must be `table` or `schema.table`"),
        (
            "outbox: { table: a, topic: \"{aggregate}\" }",
            "12:28: `outbox.topic`: `{aggregate}` is unknown; there are {name} and {aggregatetype}",
        ),
        (
            "messages: [{ prefix: a, topic: a/b }]",
            "12:32: `messages`: Kafka allows no `/` in a topic's name, only letters, digits, `.`, `_` and `-`",
        ),
        (
            "outbox: { prefix: ctx }\ncontext: { prefix: ctx }",
            "13:20: `context.prefix`: these messages leave already; choose another",
        ),
        (
            "outbox: { prefix: o }\ncontext: { prefix: ctx, id: x }",
            "13:29: `context`: events have a `id` already; give the attribute another name",
        ),
        (
            "outbox: { prefix: o }\ncontext: { prefix: ctx, traceParent: x }",
            "13:38: `context`: `traceParent` is no attribute's name, which has 1 to 20 of a-z and 0-9",
        ),
        (
            "context: { prefix: ctx }",
            "1:1: nothing says what is to leave; write `changes: { tables: [public.*] }`, or `aggregates` and `events`",
        ),
    ] {
        assert_eq!(refused(&with(changes, &format!("{rest}\n"))), format!("c.yaml:{said}"), "{rest}");
    }
}
