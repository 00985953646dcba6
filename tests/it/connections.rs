//! Ways to reach and to log in to either end, each with a row that goes through; and what is made and dropped there.

#![allow(unreachable_pub)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{
    pipe::{DEADLINE, Pipe, now, says, stops},
    support::{
        kafka::{self, Broker, Options},
        postgres::{self, Db, Server, Version::V17},
        process::{self, User},
        servers,
    },
};

/// A certificate authority of this run.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for these names, and its key.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (self.sign(names, &key, 4096), key.serialize_pem())
    }

    /// A certificate for these names and this key that is good until a year begins.
    pub(crate) fn sign(&self, names: &[&str], key: &KeyPair, until: i32) -> String {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.signed_by(key, &self.0).unwrap().pem()
    }

    /// A certificate for a client of this name, and its key: two files.
    pub(crate) fn client(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let (certificate_file, key_file) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        fs::write(&certificate_file, params.signed_by(&key, &self.0).unwrap().pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        (certificate_file, key_file)
    }

    pub(crate) fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, self.0.pem()).unwrap();
        path
    }
}

/// What `alice` and `bob` say to Kafka.
pub(crate) const KAFKA_PASSWORD: &str = "sEcReT-kafka";
/// What `rotating` says to Kafka at first.
pub(crate) const FIRST_PASSWORD: &str = "sEcReT-first";

/// A Kafka that asks who is there. `alice` and `rotating` may do everything, `bob` nothing.
pub(crate) struct Secured {
    /// By its plain listener, where everybody may do everything.
    pub broker: Broker,
    /// `host:port` for PLAIN and SCRAM-SHA-256 without TLS.
    pub sasl: String,
    /// `host:port` for TLS without a user.
    pub ssl: String,
    /// `host:port` for SCRAM under TLS.
    pub sasl_ssl: String,
    /// `host:port` for TLS with a certificate of the client's.
    pub mutual: String,
    /// `host:port` for tokens.
    pub oauth: String,
    /// `host:port` for SCRAM-SHA-256 without TLS; each second it asks who is there.
    pub asks_again: String,
    /// Signed the broker's certificate, and those of clients.
    pub signer: Authority,
    /// Its certificate.
    pub authority: PathBuf,
    /// Signed nothing.
    pub other_authority: PathBuf,
}

/// Started once, when somebody first asks.
pub(crate) fn secured() -> &'static Secured {
    static SECURED: OnceLock<Secured> = OnceLock::new();
    SECURED.get_or_init(|| {
        let dir = process::new_dir("authority");
        let authority = Authority::new("Offshoot's tests");
        let (certificate, key) = authority.issue(&["localhost", "127.0.0.1"]);
        let store = dir.join("kafka.pem");
        fs::write(&store, format!("{key}{certificate}{}", authority.0.pem())).unwrap();
        let [sasl, ssl, sasl_ssl, mutual, oauth, asks_again] = [(); 6].map(|()| format!("127.0.0.1:{}", servers::free_port()));
        let ca = authority.write(&dir, "ca.pem");
        let plain = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_alice=\"{KAFKA_PASSWORD}\" \
             user_bob=\"{KAFKA_PASSWORD}\";"
        );
        let token = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                     unsecuredLoginStringClaim_sub=\"broker\";";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let listeners =
            format!("PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}},SASL://{sasl},TLS://{ssl},BOTH://{sasl_ssl},MUTUAL://{mutual},OAUTH://{oauth},AGAIN://{asks_again}");
        let map = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,BOTH:SASL_SSL,MUTUAL:SSL,OAUTH:SASL_PLAINTEXT,AGAIN:SASL_PLAINTEXT";
        let mut options = Options::default()
            .property("listeners", &listeners)
            .property("listener.security.protocol.map", map)
            .property("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER")
            .property("listener.name.sasl.plain.sasl.jaas.config", &plain)
            .property("listener.name.sasl.sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256")
            .property("listener.name.sasl.scram-sha-256.sasl.jaas.config", scram)
            .property("listener.name.both.sasl.enabled.mechanisms", "SCRAM-SHA-256,SCRAM-SHA-512")
            .property("listener.name.both.scram-sha-256.sasl.jaas.config", scram)
            .property("listener.name.both.scram-sha-512.sasl.jaas.config", scram)
            .property("listener.name.again.sasl.enabled.mechanisms", "SCRAM-SHA-256")
            .property("listener.name.again.scram-sha-256.sasl.jaas.config", scram)
            .property("listener.name.again.scram-sha-256.connections.max.reauth.ms", "1000")
            .property("listener.name.oauth.sasl.enabled.mechanisms", "OAUTHBEARER")
            .property("listener.name.oauth.oauthbearer.sasl.jaas.config", token)
            .property("listener.name.mutual.ssl.client.auth", "required")
            .property("listener.name.mutual.ssl.truststore.type", "PEM")
            .property("listener.name.mutual.ssl.truststore.location", ca.to_str().unwrap())
            .property("listener.name.mutual.ssl.principal.mapping.rules", "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT")
            .property("ssl.keystore.type", "PEM")
            .property("ssl.keystore.location", store.to_str().unwrap())
            .property("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
            .property("super.users", "User:ANONYMOUS;User:alice;User:rotating");
        let users = [
            format!("SCRAM-SHA-256=[name=alice,password={KAFKA_PASSWORD}]"),
            format!("SCRAM-SHA-512=[name=alice,password={KAFKA_PASSWORD}]"),
            format!("SCRAM-SHA-256=[name=rotating,password={FIRST_PASSWORD}]"),
        ];
        options.format = users.into_iter().flat_map(|user| ["--add-scram".into(), user]).collect();
        let broker = kafka::private(&options);
        let other_authority = Authority::new("Somebody else").write(&dir, "other.pem");
        Secured { broker, sasl, ssl, sasl_ssl, mutual, oauth, asks_again, signer: authority, authority: ca, other_authority }
    })
}

/// A Postgres that asks each role in its own way, and has TLS with a certificate for `localhost`.
pub(crate) struct Asking {
    pub server: Server,
    /// Signed the server's certificate, and those of clients.
    pub signer: Authority,
    /// Its certificate.
    pub authority: PathBuf,
    pub other_authority: PathBuf,
}

pub(crate) fn asking() -> &'static Asking {
    static ASKING: OnceLock<Asking> = OnceLock::new();
    ASKING.get_or_init(|| {
        let dir = process::new_dir("authority");
        let authority = Authority::new("Offshoot's tests");
        let (certificate, key) = authority.issue(&["localhost"]);
        let ca = authority.write(&dir, "ca.pem");
        let (certificate_file, key_file) = (dir.join("server.crt"), dir.join("server.key"));
        fs::write(&certificate_file, certificate).unwrap();
        fs::write(&key_file, key).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(user) = User::ordinary() {
            user.own(&key_file);
        }
        let settings = [
            ("ssl", "on"),
            ("ssl_cert_file", certificate_file.to_str().unwrap()),
            ("ssl_key_file", key_file.to_str().unwrap()),
            ("ssl_ca_file", ca.to_str().unwrap()),
        ];
        let server = postgres::private(V17, &settings);
        let session = server.session("postgres");
        for (role, encryption) in [
            ("r_trust", "md5"),
            ("r_clear", "md5"),
            ("r_md5", "md5"),
            ("r_scram", "scram-sha-256"),
            ("r_cert", "md5"),
            ("r_both", "scram-sha-256"),
        ] {
            session.execute(&format!("SET password_encryption = '{encryption}'"));
            session.execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'sEcReT- spaced'"));
        }
        let rules = "local all all trust\nhost all r_clear 127.0.0.1/32 password\nhost all r_md5 127.0.0.1/32 md5\n\
                     hostssl all r_scram 127.0.0.1/32 scram-sha-256\nhostssl all r_trust 127.0.0.1/32 trust\n\
                     hostssl all r_cert 127.0.0.1/32 cert\n\
                     hostssl all r_both 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n\
                     host all postgres,/^rotating_ 127.0.0.1/32 scram-sha-256\n";
        fs::write(server.data_dir().join("pg_hba.conf"), rules).unwrap();
        session.execute("SELECT pg_reload_conf()");
        let other_authority = Authority::new("Somebody else").write(&dir, "other.pem");
        Asking { server, signer: authority, authority: ca, other_authority }
    })
}

pub(crate) fn with_table(server: &Server) -> Db {
    let db = server.create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

/// A row goes from the database to the shared Kafka.
#[track_caller]
pub(crate) fn a_row_goes_through(db: &Db, url: String) {
    let pipe = Pipe { url, ..Pipe::of(db) };
    let mut offshoot = pipe.ready();
    let id: i64 = db.text("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t RETURNING id").parse().unwrap();
    offshoot.wait("a row to arrive", DEADLINE, |_| pipe.ids(kafka::shared(), "t").contains(&id).then_some(()));
    stops(offshoot);
}

#[test]
fn postgres_is_reached_by_its_socket_and_by_each_kind_of_password() {
    let Asking { server, .. } = asking();
    let db = with_table(server);
    let (name, port) = (&db.name, server.port());
    let socket_dir = server.data_dir().parent().unwrap().to_str().unwrap().to_owned();
    for url in [
        db.socket_url().replace("user=postgres", "user=r_trust"),
        format!("host={socket_dir} port={port} user=r_trust dbname={name}"),
        format!("postgres://r_clear:sEcReT-%20spaced@127.0.0.1:{port}/{name}"),
        format!("host=127.0.0.1 port={port} user=r_md5 password='sEcReT- spaced' dbname={name}"),
        format!("postgresql://r_scram:sEcReT-%20spaced@127.0.0.1:{port}/{name}"),
    ] {
        a_row_goes_through(&db, url);
    }
    let wrong = format!("postgres://r_scram:sEcReT-wrong@127.0.0.1:{port}/{name}");
    let pipe = Pipe { url: wrong, ..Pipe::of(&db) };
    pipe.ends(3, &["password authentication failed", "check user and password in source.postgres"]);
    let plain = format!("postgres://r_scram:sEcReT-%20spaced@127.0.0.1:{port}/{name}?sslmode=disable");
    let pipe = Pipe { url: plain, ..Pipe::of(&db) };
    pipe.ends(3, &["no pg_hba.conf entry", "pg_hba.conf and reload it"]);
}

#[test]
fn postgres_is_reached_under_tls_and_a_stranger_is_refused() {
    let Asking { server, authority, other_authority, .. } = asking();
    let db = with_table(server);
    let (name, port) = (&db.name, server.port());
    let url = |host: &str, words: &str| format!("postgres://r_scram:sEcReT-%20spaced@{host}:{port}/{name}?{words}");
    let (ca, other) = (authority.display(), other_authority.display());
    for url in [
        url("127.0.0.1", "sslmode=require"),
        url("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={ca}")),
        url("localhost", &format!("sslmode=verify-full&sslrootcert={ca}")),
        format!(
            "host=localhost port={port} user=r_scram password='sEcReT- spaced' dbname={name} sslmode=verify-full \
             sslrootcert={ca} sslnegotiation=direct"
        ),
    ] {
        a_row_goes_through(&db, url);
    }
    let refused = |url: String, words: &[&str]| {
        let pipe = Pipe { url, ..Pipe::of(&db) };
        pipe.ends(3, words);
        pipe.checks(3, words);
    };
    let words = ["failed to use TLS with", "UnknownIssuer", "name the authority that signed it in sslrootcert"];
    refused(url("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={other}")), &words);
    refused(url("localhost", &format!("sslmode=verify-full&sslrootcert={other}")), &words);
    refused(
        url("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}")),
        &["failed to use TLS with 127.0.0.1", "subjectAltNames", "sslmode=verify-ca"],
    );
    refused(
        url("localhost", "sslmode=verify-full&sslrootcert=/nonexistent/ca.pem"),
        &["sslrootcert /nonexistent/ca.pem"],
    );
}

#[test]
fn a_postgres_without_tls_is_told_from_one_that_cannot_be_trusted() {
    let db = with_table(postgres::shared(V17));
    let pipe = Pipe { url: format!("{}?sslmode=require", db.url), ..Pipe::of(&db) };
    pipe.ends(3, &["the server does not offer it (ssl = off)", "sslmode=disable"]);
}

#[test]
fn kafka_is_reached_under_tls_and_by_each_kind_of_password() {
    let Secured { broker, sasl, ssl, sasl_ssl, authority, .. } = secured();
    let ca = format!("ssl.ca.location: {}", authority.display());
    let user =
        |mechanism| format!("sasl.mechanism: {mechanism}\n  sasl.username: alice\n  sasl.password: {KAFKA_PASSWORD}");
    for (brokers, properties) in [
        (ssl, format!("security.protocol: SSL\n  {ca}")),
        (sasl, format!("security.protocol: SASL_PLAINTEXT\n  {}", user("PLAIN"))),
        (sasl, format!("security.protocol: SASL_PLAINTEXT\n  {}", user("SCRAM-SHA-256"))),
        (sasl_ssl, format!("security.protocol: SASL_SSL\n  {ca}\n  {}", user("SCRAM-SHA-256"))),
        (sasl_ssl, format!("security.protocol: SASL_SSL\n  {ca}\n  {}", user("SCRAM-SHA-512"))),
    ] {
        let db = with_table(postgres::shared(V17));
        let kafka = format!("properties:\n  {properties}");
        let pipe = Pipe { brokers: brokers.clone(), kafka, ..Pipe::of(&db) };
        pipe.prepare();
        db.execute("INSERT INTO t VALUES (1)");
        pipe.arrives_at(broker, "t", &[1]);
        pipe.checks(0, &[&format!("topic {}: partitions 6", pipe.topic("t"))]);
    }
}

// What is made in the database, and what is dropped.

fn publications(db: &Db) -> String {
    let rows = db.rows(
        "SELECT pubname, string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication
                        LEFT JOIN pg_publication_tables USING (pubname) GROUP BY pubname ORDER BY pubname",
    );
    let row =
        |row: &Vec<Option<String>>| format!("{}: {}", row[0].as_deref().unwrap(), row[1].as_deref().unwrap_or("-"));
    rows.iter().map(row).collect::<Vec<_>>().join("; ").replace(&format!("offshoot_{}", db.name), "p")
}

#[test]
fn drop_asks_first_and_touches_nothing_that_is_held_or_not_ours() {
    let db = with_table(postgres::shared(V17));
    let pipe = Pipe::of(&db);
    let slot = pipe.slot();
    let offshoot = pipe.ready();
    let (code, text) = pipe.command(&["drop", "--yes"]);
    let pid = db.text(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'"));
    assert_eq!(code, 3, "{text}");
    says(&text, &[&format!("PID {pid} holds it"), "stop the offshoot that reads from it first"]);
    stops(offshoot);
    let (code, text) = pipe.command(&["drop"]);
    assert_eq!(code, 2, "{text}");
    says(&text, &[&format!("the replication slot {slot}"), "nobody to ask; add --yes"]);
    let slots = || db.text(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'"));
    assert_eq!((slots().as_str(), publications(&db).as_str()), ("1", "p: t; p_inserts: -"));
    let (code, text) = pipe.command(&["drop", "--yes"]);
    assert_eq!(code, 0, "{text}");
    says(
        &text,
        &[
            &format!("dropped slot {slot}"),
            &format!("dropped publication {slot}\n"),
            &format!("dropped publication {slot}_inserts"),
        ],
    );
    assert_eq!((slots().as_str(), publications(&db).as_str()), ("0", ""));
    let (code, text) = pipe.command(&["drop", "--yes"]);
    assert_eq!(code, 0);
    says(&text, &["nothing was there"]);
    // One that a person made stays.
    db.execute(&format!("CREATE PUBLICATION {slot} FOR TABLE t"));
    pipe.prepare();
    let (code, text) = pipe.command(&["drop", "--yes"]);
    assert_eq!(code, 0, "{text}");
    says(&text, &[&format!("left publication {slot}: offshoot did not make it")]);
    assert_eq!((slots().as_str(), publications(&db).as_str()), ("0", "p: t"));
}

#[test]
fn check_says_that_all_is_well_and_each_cross_has_its_mend() {
    let db = with_table(postgres::shared(V17));
    let pipe = Pipe::of(&db);
    let topic = pipe.topic("t");
    pipe.checks(
        0,
        &["wal_level: logical", "will be made", &format!("topic {topic}: not there; `run` makes it"), "ready to run"],
    );
    assert_eq!(publications(&db), "", "it changes nothing");
    kafka::shared().create_topic(&topic, 3, &[("cleanup.policy", "compact")]);
    pipe.prepare();
    let text = pipe.checks(0, &["publications: ", "as the config asks", "free, confirmed 0/"]);
    says(&text, &[&format!("! topic {topic}: partitions 3, replication 1; the config says partitions 6")]);
    let same = Pipe { kafka: "topics: { partitions: 3 }".into(), ..pipe.clone() };
    same.checks(0, &["cleanup.policy is compact"]);
    let away = Pipe { url: db.url.replace("127.0.0.1", "127.0.0.2"), brokers: "127.0.0.1:1".into(), ..pipe };
    let (code, text) = away.command(&["check", "--json"]);
    assert_eq!(code, 3, "{text}");
    let findings: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"));
    let findings = findings.as_array().unwrap();
    let crosses: Vec<_> = findings.iter().filter(|finding| finding["level"] == "cross").collect();
    let sides: Vec<_> = crosses.iter().map(|cross| cross["side"].as_str().unwrap()).collect();
    assert_eq!(sides, ["source", "sink"], "{text}");
    for (cross, key) in crosses.iter().zip(["source.postgres", "sink.kafka.brokers"]) {
        assert!(cross["mend"].as_str().is_some_and(|mend| mend.contains(key)), "{text}");
    }
}

#[test]
fn a_keyless_table_is_told_by_its_inserts_and_the_application_goes_on() {
    let db = with_table(postgres::shared(V17));
    db.execute("CREATE TABLE log (id int, note text)");
    let pipe = Pipe::of(&db);
    let mut offshoot = pipe.ready();
    assert_eq!(publications(&db), "p: t; p_inserts: log");
    db.execute("INSERT INTO log VALUES (1), (2); UPDATE log SET note = 'x' WHERE id = 1; DELETE FROM log WHERE id = 2");
    offshoot.wait("rows to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "log") == [1, 2]).then_some(()));
    // The slot's reader is sent away, and warns no second time.
    db.execute(&format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
        pipe.slot()
    ));
    offshoot.wait_log("retry_in=", DEADLINE);
    offshoot.wait("a second start", DEADLINE, |offshoot| {
        (offshoot.log().iter().filter(|line| line.contains("streaming")).count() >= 2).then_some(())
    });
    let log = offshoot.log();
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("only its inserts are told")).collect();
    assert_eq!(warnings.len(), 1, "{log:#?}");
    stops(offshoot);
    db.execute("ALTER TABLE log ADD PRIMARY KEY (id)");
    let mut offshoot = pipe.ready();
    assert_eq!(publications(&db), "p: log,t; p_inserts: -");
    db.execute("UPDATE log SET id = 7");
    offshoot.wait("a row to arrive", DEADLINE, |_| pipe.ids(kafka::shared(), "log").contains(&7).then_some(()));
    stops(offshoot);
}

#[test]
fn a_publication_for_all_tables_is_left_as_it_is() {
    let db = with_table(postgres::shared(V17));
    let pipe = Pipe::of(&db);
    db.execute(&format!("CREATE PUBLICATION {} FOR ALL TABLES", pipe.slot()));
    pipe.prepare();
    db.execute("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1); INSERT INTO t VALUES (1)");
    pipe.arrives("late", &[1]);
    let found = db.text("SELECT string_agg(pubname || ' ' || puballtables, '; ') FROM pg_publication");
    assert_eq!(found, format!("{} true", pipe.slot()));
}

#[test]
fn replication_is_all_the_right_it_needs_where_the_owner_made_the_publications() {
    let db = with_table(postgres::shared(V17));
    let role = format!("role_{}", db.name);
    db.execute(&format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'sEcReT-role'; GRANT SELECT ON t TO {role}"));
    let pipe = Pipe { url: db.url_as(&role, "sEcReT-role"), ..Pipe::of(&db) };
    let p = pipe.slot();
    db.execute(&format!(
        "CREATE PUBLICATION {p} FOR TABLE t; CREATE PUBLICATION {p}_inserts WITH (publish = 'insert')"
    ));
    pipe.checks(0, &["as the config asks"]);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
    pipe.checks(0, &["as the config asks"]);
}

#[test]
fn the_manual_names_every_exit_code() {
    let manual = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    for code in 0..=7 {
        says(&manual, &[&format!("\n| {code} | ")]);
    }
    says(&manual, &["\n## A change that cannot be decoded\n"]);
}

/// The monolith's memory is its own: a transaction that fits it is spilled by the server only when we ask for less.
#[test]
fn decoding_takes_the_servers_own_memory_unless_more_is_asked_for() {
    let spilled_with = |source: &str| {
        let db = with_table(postgres::shared(V17));
        let pipe = Pipe { source: source.into(), ..Pipe::of(&db) };
        let mut offshoot = pipe.ready();
        // About 1 MB in the server's reorder buffer.
        db.execute("INSERT INTO t SELECT g FROM generate_series(1, 10000) g");
        let spilled = format!("SELECT spill_txns FROM pg_stat_replication_slots WHERE slot_name = '{}'", pipe.slot());
        let written = now(&db);
        offshoot.wait("the rows to be confirmed", DEADLINE, |_| pipe.confirmed_past(&db, &written).then_some(()));
        stops(offshoot);
        db.text(&spilled).parse::<i64>().unwrap()
    };
    assert_eq!(spilled_with(""), 0);
    assert!(spilled_with("decoding_work_mem: 64KiB") > 0);
    assert_eq!(spilled_with("decoding_work_mem: 64MiB"), 0);
}
