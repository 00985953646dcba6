//! Bad situations, one by one on real servers: what `run` and `check` say, and how they end. What they say is also
//! docs/situations.md, so that it can be read, and found by whoever searches for a message.
//!
//! `OFFSHOOT_TEST_WRITE=1` writes the page again.

use std::{
    any::Any,
    collections::BTreeMap,
    env, fs,
    net::TcpListener,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{
    connections::{KAFKA_PASSWORD, secured},
    pipe::{DEADLINE, Pipe, binary, says},
    support::{
        kafka, pooler,
        postgres::{
            self, Db, Server,
            Version::{V17, V18},
        },
        process::{self, User},
        program::{self, Config, Offshoot},
        servers, wait,
    },
};

/// What is set up for a situation, and stays while it is looked at.
struct Scene {
    yaml: String,
    /// What differs from run to run, and what stands for it.
    masks: Vec<(String, &'static str)>,
    _kept: Vec<Box<dyn Any>>,
}

/// One line of the table.
struct Situation {
    name: &'static str,
    run: Run,
    /// The exit code of `check`; `None` when it is not asked.
    check: Option<i32>,
    /// What both must say.
    words: &'static [&'static str],
    set_up: Box<dyn Fn() -> Scene + Send + Sync>,
}

/// What `run` does.
#[derive(Clone, Copy, PartialEq)]
enum Run {
    /// It is not asked.
    Not,
    /// It ends by itself with this code.
    Ends(i32),
    /// It says so, is not ready, and tries again until it is told to stop, which is clean.
    Waits,
    /// It says so and goes on.
    Goes,
}

use Run::{Ends, Goes, Not, Waits};

impl Scene {
    fn of(pipe: &Pipe) -> Scene {
        let host = pipe.url.split_once('@').map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or_default());
        let host = host.to_owned();
        let masks = vec![(pipe.name.clone(), "shop"), (host, "db:5432"), (pipe.brokers.clone(), "kafka:9092")];
        Scene { yaml: pipe.yaml(), masks, _kept: Vec::new() }
    }

    fn with(mut self, kept: impl Any) -> Scene {
        self._kept.push(Box::new(kept));
        self
    }

    fn mask(mut self, text: impl Into<String>, mask: &'static str) -> Scene {
        self.masks.push((text.into(), mask));
        self
    }

    fn masked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let config = env::temp_dir();
        for (from, to) in self.masks.iter().filter(|(from, _)| !from.is_empty()) {
            text = text.replace(from, to);
        }
        // A file of this run: only its name stays.
        for root in [process::run_dir().to_str().unwrap(), config.to_str().unwrap()] {
            while let Some(at) = text.find(root) {
                let path = text[at..].split(|c: char| c.is_whitespace() || ":;,)'\"`".contains(c)).next().unwrap();
                let name = path.rsplit('/').next().unwrap().to_owned();
                text.replace_range(at..at + path.len(), &name);
            }
        }
        text
    }
}

fn situation(
    name: &'static str,
    (run, check): (Run, Option<i32>),
    words: &'static [&'static str],
    set_up: impl Fn() -> Scene + Send + Sync + 'static,
) -> Situation {
    Situation { name, run, check, words, set_up: Box::new(set_up) }
}

fn database() -> Db {
    with_table(postgres::shared(V17))
}

fn with_table(server: &Server) -> Db {
    let db = server.create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

/// A scene on the shared servers.
fn shared(change: impl Fn(&Db, &mut Pipe)) -> Scene {
    on(database(), change)
}

fn on(db: Db, change: impl Fn(&Db, &mut Pipe)) -> Scene {
    let mut pipe = Pipe::of(&db);
    change(&db, &mut pipe);
    Scene::of(&pipe).with(db)
}

/// A role of the situation's own. Roles are the server's: it stays.
fn role(db: &Db, pipe: &mut Pipe, rights: &str) -> String {
    let role = format!("cdc_{}", db.name);
    db.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'secret' {rights}"));
    pipe.url = db.url_as(&role, "secret");
    role
}

/// A config in which one text is another.
fn edited(from: &'static str, to: &'static str) -> impl Fn() -> Scene {
    move || {
        let mut scene = shared(|_, pipe| pipe.kafka = "properties:\n  linger.ms: 5".into());
        assert!(scene.yaml.contains(from), "{from} in\n{}", scene.yaml);
        scene.yaml = scene.yaml.replacen(from, to, 1);
        scene
    }
}

/// Postgres with TLS, a certificate of its own for `localhost`, and no way in without TLS for a password.
struct Tls {
    server: Server,
    authority: PathBuf,
    other_authority: PathBuf,
}

fn tls(expired: bool) -> &'static Tls {
    static TLS: [OnceLock<Tls>; 2] = [const { OnceLock::new() }; 2];
    TLS[usize::from(expired)].get_or_init(|| {
        let dir = process::new_dir("tls");
        let authority = |name| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ours, other) = (authority("Offshoot's tests"), authority("Somebody else"));
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        if expired {
            (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ours).unwrap();
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            if let Some(user) = User::ordinary() {
                user.own(&path);
            }
            path
        };
        let (certificate, key) = (write("server.crt", certificate.pem()), write("server.key", key.serialize_pem()));
        let settings = [
            ("ssl", "on"),
            ("ssl_cert_file", certificate.to_str().unwrap()),
            ("ssl_key_file", key.to_str().unwrap()),
        ];
        let server = postgres::private(V17, &settings);
        let rules = "local all all trust\nhost all postgres 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(server.data_dir().join("pg_hba.conf"), rules).unwrap();
        server.session("postgres").execute("SELECT pg_reload_conf()");
        Tls { server, authority: write("ca.pem", ours.pem()), other_authority: write("other.pem", other.pem()) }
    })
}

/// A scene on one of these, reached by a name and with words of the URL.
fn under_tls(
    expired: bool,
    host: &'static str,
    words: impl Fn(&Tls) -> String + Send + Sync + 'static,
) -> impl Fn() -> Scene {
    move || {
        let tls = tls(expired);
        on(with_table(&tls.server), |db, pipe| {
            let port = tls.server.port();
            pipe.url = format!("postgres://postgres:{}@{host}:{port}/{}?{}", postgres::PASSWORD, db.name, words(tls));
        })
    }
}

/// A server of which `settings` are all that is bad.
fn private(settings: &'static [(&'static str, &'static str)], change: impl Fn(&Db, &mut Pipe)) -> Scene {
    let server = postgres::private(V17, settings);
    let mut scene = on(with_table(&server), change);
    // Dropped last: the database is dropped on it.
    scene._kept.push(Box::new(server));
    scene
}

/// A server that is somebody else's, by the settings or roles that it comes with; not logical.
fn managed() -> &'static Server {
    static MANAGED: OnceLock<Server> = OnceLock::new();
    MANAGED.get_or_init(|| {
        let server = postgres::private(V17, &[("wal_level", "replica")]);
        server.session("postgres").execute("CREATE ROLE rds_superuser; CREATE ROLE rds_replication");
        server
    })
}

fn hosted(setting: &'static str) -> impl Fn() -> Scene {
    move || {
        on(with_table(managed()), |db, pipe| {
            if !setting.is_empty() {
                db.execute(&format!("ALTER DATABASE {} SET {setting} = 'off'", db.name));
            }
            role(db, pipe, "");
        })
    }
}

/// A server in recovery: it has the whole of its log, and waits for more.
fn standby() -> &'static (Server, Db) {
    static STANDBY: OnceLock<(Server, Db)> = OnceLock::new();
    STANDBY.get_or_init(|| {
        let server = postgres::private(V17, &[]);
        let db = with_table(&server);
        server.stop();
        fs::write(server.data_dir().join("standby.signal"), "").unwrap();
        server.start();
        (server, db)
    })
}

/// A Kafka that asks who is there: as whom, and further properties.
fn as_user(pipe: &mut Pipe, user: &str, password: &str, mechanism: &str) {
    pipe.brokers = secured().sasl.clone();
    pipe.kafka = format!(
        "properties:\n  security.protocol: SASL_PLAINTEXT\n  sasl.mechanism: {mechanism}\n  sasl.username: {user}\n  \
         sasl.password: {password}"
    );
}

/// Slot and publication are there, and a row waits.
fn a_row_waits(db: &Db, pipe: &Pipe, sql: &str) {
    Pipe { kafka: String::new(), brokers: kafka::shared().address().into(), rest: String::new(), ..pipe.clone() }
        .prepare();
    db.execute(sql);
}

fn allow(principal: &str, operations: &[&str], resource: &str) {
    let operations: String = operations.iter().map(|operation| format!(" --operation {operation}")).collect();
    let brokers = &secured().sasl;
    paste(&format!(
        "kafka-acls --bootstrap-server {brokers} --add --allow-principal {principal}{operations} {resource}"
    ));
}

/// Runs a line as an administrator of the secured Kafka would.
fn paste(line: &str) {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    let admin = format!(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required username=\"alice\" password=\"{KAFKA_PASSWORD}\";\n"
    );
    let tools = TOOLS.get_or_init(|| kafka::tools(&admin));
    let path = format!("{}:{}", tools.display(), env::var("PATH").unwrap());
    let output = Command::new("sh").args(["-c", line]).env("PATH", path).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&text));
}

/// A transaction that does not fit into a third of the smallest memory.
const LARGE: &str = "INSERT INTO t SELECT id, repeat('x', 300) FROM generate_series(1, 20000) AS id";

fn situations() -> Vec<Situation> {
    let refused = |code| (Ends(code), Some(code));
    let mut all = the_config();
    all.extend(reaching_postgres());
    all.extend([
        // What the server is set to.
        situation(
            "`wal_level` is not logical",
            refused(3),
            &["replica", "ALTER SYSTEM SET wal_level = logical"],
            || private(&[("wal_level", "replica")], |_, _| {}),
        ),
        situation(
            "the same on Amazon RDS",
            (Not, Some(3)),
            &[
                "on Amazon RDS or Aurora",
                "set rds.logical_replication = 1 in the parameter group",
                "GRANT rds_replication TO \"cdc_shop\";",
            ],
            hosted(""),
        ),
        situation(
            "the same on Google Cloud SQL",
            (Not, Some(3)),
            &[
                "on Google Cloud SQL",
                "set the flag cloudsql.logical_decoding = on",
                "ALTER ROLE \"cdc_shop\" REPLICATION;  -- as a member of cloudsqlsuperuser",
            ],
            hosted("cloudsql.logical_decoding"),
        ),
        situation(
            "the same on Azure",
            (Not, Some(3)),
            &[
                "on Azure Flexible Server",
                "set the server parameter wal_level = logical",
                "ALTER ROLE \"cdc_shop\" REPLICATION;  -- as the server's admin",
            ],
            hosted("azure.extensions"),
        ),
        situation("no replication slot is free", (Waits, Some(3)), &["max_replication_slots", "drop a slot"], || {
            private(&[("max_replication_slots", "1")], |db, _| {
                db.execute("SELECT pg_create_physical_replication_slot('other')");
            })
        }),
        situation("no walsender is free", (Waits, Some(3)), &["max_wal_senders"], || {
            private(&[("max_wal_senders", "0")], |db, pipe| {
                // Logical decoding wants none to make a slot.
                db.execute(&format!("CREATE PUBLICATION {0} FOR TABLE t; CREATE PUBLICATION {0}_inserts", pipe.slot()));
            })
        }),
        situation(
            "a standby, where a primary is asked for",
            (Waits, Some(3)),
            &["find a primary among", "all of them are standbys"],
            || {
                let (_, db) = standby();
                Scene::of(&Pipe { url: format!("{}?target_session_attrs=read-write", db.url), ..Pipe::of(db) })
            },
        ),
        situation("a standby, and nothing is made yet", refused(3), &["on the primary"], || {
            Scene::of(&Pipe::of(&standby().1))
        }),
        situation(
            "`max_slot_wal_keep_size` is unlimited",
            (Not, Some(0)),
            &["! max_slot_wal_keep_size: unlimited", "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';"],
            || shared(|_, _| {}),
        ),
        situation(
            "`idle_replication_slot_timeout` is set (PostgreSQL 18)",
            (Not, Some(0)),
            &["! idle_replication_slot_timeout: 2d: slot offshoot_shop is lost when offshoot is stopped for longer"],
            || {
                let server = postgres::private(V18, &[("idle_replication_slot_timeout", "2d")]);
                on(with_table(&server), |_, _| {}).with(server)
            },
        ),
    ]);
    all.extend(rights_and_slots());
    all.extend(tables_and_publications());
    all.extend(reaching_kafka());
    all.extend(topics_and_records());
    all
}

fn the_config() -> Vec<Situation> {
    let config = |name, words, set_up: Box<dyn Fn() -> Scene + Send + Sync>| Situation {
        name,
        run: Ends(2),
        check: Some(2),
        words,
        set_up,
    };
    vec![
        config("not YAML", &["error: offshoot.yaml:"], Box::new(edited("changes:", "changes: ]"))),
        config(
            "an unknown key",
            &["offshoot.yaml:", "unknown key `chnages`", "did you mean `changes`?"],
            Box::new(edited("changes:", "chnages:")),
        ),
        config(
            "a value of another type",
            &["offshoot.yaml:", "`changes.tables` must be a list"],
            Box::new(edited("tables: [\"public.*\"]", "tables: 3")),
        ),
        config(
            "a variable that is not set",
            &["offshoot.yaml:3:", "OFFSHOOT_TEST_NOT_SET"],
            Box::new(|| shared(|_, pipe| pipe.url = "${OFFSHOOT_TEST_NOT_SET}".into())),
        ),
        config(
            "a secret file that is not there",
            &["offshoot.yaml:3:", "cannot read /nonexistent/url", "No such file"],
            Box::new(|| shared(|_, pipe| pipe.url = "file:/nonexistent/url".into())),
        ),
        config(
            "a word in the URL that libpq does not know",
            &["offshoot.yaml:3:", "unknown key `sslmod`", "sslmode"],
            Box::new(|| shared(|_, pipe| pipe.url = "postgres://h/d?sslmod=require".into())),
        ),
        config(
            "a table without a schema",
            &["has no schema; write `public.orders`"],
            Box::new(edited("public.*", "orders")),
        ),
        config("a pattern that is none", &["`public.[a` is not a pattern"], Box::new(edited("public.*", "public.[a"))),
        config(
            "a property that librdkafka does not know",
            &["`sink.kafka.properties.linger.sm`", "did you mean `linger.ms`?"],
            Box::new(edited("linger.ms", "linger.sm")),
        ),
        config(
            "a property that the promise rests on",
            &["`sink.kafka.properties.acks`", "write `all` or remove it"],
            Box::new(edited("linger.ms: 5", "acks: 1")),
        ),
        situation(
            "an `admin.listen` that is taken",
            (Ends(2), None),
            &["`admin.listen`: cannot listen on", "Address already in use"],
            || {
                let taken = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = taken.local_addr().unwrap().to_string();
                let scene = shared(|_, pipe| pipe.rest = format!("admin: {{ listen: {address} }}"));
                scene.with(taken).mask(address, "127.0.0.1:8642")
            },
        ),
        situation(
            "a `data_dir` that cannot be written, and a transaction that needs it",
            (Ends(1), None),
            &["/dev/null/x", "data_dir must be writable and have room"],
            || {
                shared(|db, pipe| {
                    pipe.rest = "limits: { memory: 8MiB }\ndata_dir: /dev/null/x".into();
                    a_row_waits(db, pipe, LARGE);
                })
            },
        ),
        situation(
            "a `data_dir` that cannot be written, and an event that needs an old value",
            (Ends(1), None),
            &["/dev/null/x/replica-shop.redb", "data_dir must be a directory that offshoot may write to"],
            || {
                shared(|_, pipe| {
                    pipe.rest = format!(
                        "data_dir: /dev/null/x\naggregates: {{ T: {{ root: t, topic: {}.events }} }}\n\
                         events: {{ Noted: {{ of: T, when: {{ note: changed }}, data: {{ was: old.note }} }} }}",
                        pipe.name
                    );
                })
            },
        ),
    ]
}

fn reaching_postgres() -> Vec<Situation> {
    let refused = (Ends(3), Some(3));
    vec![
        situation(
            "nobody listens there",
            (Waits, Some(3)),
            &["failed to connect to db:5432", "Connection refused"],
            || shared(|_, pipe| pipe.url = format!("postgres://x:y@127.0.0.1:{}/d", servers::free_port())),
        ),
        situation("a host without an address", (Waits, Some(3)), &["failed to connect to db:5432"], || {
            shared(|_, pipe| pipe.url = "postgres://x:y@offshoot.invalid:5432/d".into())
        }),
        situation(
            "a wrong password",
            refused,
            &["password authentication failed", "check user and password in source.postgres"],
            || shared(|db, pipe| pipe.url = db.url_as("postgres", "wrong")),
        ),
        situation(
            "no password",
            refused,
            &["asks for a password, and source.postgres has none", "put it there"],
            || shared(|_, pipe| pipe.url = pipe.url.replace(&format!(":{}@", postgres::PASSWORD), "@")),
        ),
        situation(
            "an unknown role",
            refused,
            &["role \"nobody_here\" does not exist", "CREATE ROLE \"nobody_here\" LOGIN REPLICATION"],
            || {
                let scene = shared(|db, pipe| {
                    pipe.url = db.socket_url().replace("user=postgres", "user=nobody_here");
                });
                let socket = postgres::shared(V17).data_dir().parent().unwrap().to_str().unwrap().to_owned();
                scene.mask(socket, "/var/run/postgresql").mask(postgres::shared(V17).port().to_string(), "5432")
            },
        ),
        situation(
            "a role without LOGIN",
            refused,
            &["is not permitted to log in", "ALTER ROLE \"cdc_shop\" LOGIN"],
            || {
                shared(|db, pipe| {
                    let role = role(db, pipe, "REPLICATION");
                    db.execute(&format!("ALTER ROLE {role} NOLOGIN"));
                })
            },
        ),
        situation(
            "an unknown database",
            refused,
            &["database \"no_such_database\" does not exist", "CREATE DATABASE \"no_such_database\""],
            || shared(|_, pipe| pipe.url = postgres::shared(V17).url("no_such_database")),
        ),
        situation(
            "no CONNECT on the database",
            refused,
            &["permission denied for database", "GRANT CONNECT ON DATABASE \"shop\" TO \"cdc_shop\""],
            || {
                shared(|db, pipe| {
                    role(db, pipe, "REPLICATION");
                    db.execute(&format!("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", db.name));
                })
            },
        ),
        situation(
            "a role that has all the sessions it may have",
            (Waits, Some(3)),
            &["too many connections for role", "ALTER ROLE \"cdc_shop\" CONNECTION LIMIT -1"],
            || {
                shared(|db, pipe| {
                    role(db, pipe, "REPLICATION CONNECTION LIMIT 0");
                })
            },
        ),
        situation(
            "`pg_hba.conf` lets nobody in without TLS",
            refused,
            &["no pg_hba.conf entry", "hostssl shop cdc_shop ADDRESS scram-sha-256", "pg_hba.conf and reload it"],
            || {
                on(with_table(&tls(false).server), |db, pipe| {
                    role(db, pipe, "REPLICATION");
                    pipe.url += "?sslmode=disable";
                })
            },
        ),
        situation(
            "TLS is asked for and not offered",
            refused,
            &["the server does not offer it (ssl = off)", "sslmode=disable"],
            || shared(|_, pipe| pipe.url += "?sslmode=require"),
        ),
        situation(
            "a certificate of an authority that is not trusted",
            refused,
            &["failed to use TLS with", "UnknownIssuer", "name the authority that signed it in sslrootcert"],
            under_tls(false, "localhost", |tls| {
                format!("sslmode=verify-ca&sslrootcert={}", tls.other_authority.display())
            }),
        ),
        situation(
            "a certificate for another host",
            refused,
            &["failed to use TLS with", "subjectAltNames", "sslmode=verify-ca"],
            under_tls(false, "127.0.0.1", |tls| format!("sslmode=verify-full&sslrootcert={}", tls.authority.display())),
        ),
        situation(
            "a certificate that has expired",
            refused,
            &["failed to use TLS with", "xpired", "renew it there"],
            under_tls(true, "localhost", |tls| format!("sslmode=verify-full&sslrootcert={}", tls.authority.display())),
        ),
        situation(
            "an `sslrootcert` that is not there",
            refused,
            &["sslrootcert /nonexistent/ca.pem", "name a PEM file that can be read"],
            under_tls(false, "localhost", |_| "sslmode=verify-full&sslrootcert=/nonexistent/ca.pem".into()),
        ),
        situation(
            "PgBouncer, which refuses our options",
            refused,
            &["unsupported startup parameter", "a pooler such as PgBouncer", "name the server itself"],
            || behind_a_pooler(""),
        ),
        situation(
            "PgBouncer, which ignores our options",
            refused,
            &["a pooler such as PgBouncer", "name the server itself"],
            || behind_a_pooler("ignore_startup_parameters = options,extra_float_digits,statement_timeout"),
        ),
    ]
}

fn behind_a_pooler(lines: &str) -> Scene {
    let pooler = pooler::before(postgres::shared(V17), lines);
    let scene = shared(|db, pipe| {
        pipe.url = format!("postgres://postgres:{}@127.0.0.1:{}/{}", postgres::PASSWORD, pooler.port, db.name);
    });
    // It lets go of the database before that is dropped.
    Scene { _kept: vec![Box::new(pooler), Box::new(scene._kept)], ..scene }
}

fn rights_and_slots() -> Vec<Situation> {
    let refused = (Ends(3), Some(3));
    let gap = (Ends(5), Some(3));
    vec![
        situation("no REPLICATION", refused, &["ALTER ROLE \"cdc_shop\" REPLICATION"], || {
            shared(|db, pipe| {
                let role = role(db, pipe, "");
                db.execute(&format!("GRANT CREATE ON DATABASE {} TO {role}; ALTER TABLE t OWNER TO {role}", db.name));
            })
        }),
        situation(
            "no right to make the publication",
            refused,
            &["CREATE PUBLICATION \"offshoot_shop\" FOR TABLE ONLY \"public\".\"t\""],
            || {
                shared(|db, pipe| {
                    role(db, pipe, "REPLICATION");
                })
            },
        ),
        situation(
            "`source.create: false`, and nothing is made",
            refused,
            &["source.create", "CREATE PUBLICATION", "pg_create_logical_replication_slot"],
            || shared(|_, pipe| pipe.source = "create: false".into()),
        ),
        situation(
            "a publication of somebody else that lacks the table",
            refused,
            &["ALTER PUBLICATION \"offshoot_shop\" ADD TABLE ONLY \"public\".\"t\""],
            || {
                shared(|db, pipe| {
                    role(db, pipe, "REPLICATION");
                    db.execute(&format!("CREATE PUBLICATION {0}; CREATE PUBLICATION {0}_inserts", pipe.slot()));
                })
            },
        ),
        situation(
            "a slot of that name, of another plugin",
            refused,
            &["slot of plugin test_decoding, not pgoutput", "name another one in source.slot"],
            || {
                shared(|db, pipe| {
                    let slot = pipe.slot();
                    db.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
                })
            },
        ),
        situation(
            "a slot of that name, physical",
            refused,
            &["it is a physical slot", "name another one in source.slot"],
            || {
                let db = database();
                let pipe = Pipe::of(&db);
                db.execute(&format!("SELECT pg_create_physical_replication_slot('{}')", pipe.slot()));
                Scene::of(&pipe).with(PhysicalSlot(pipe.slot())).with(db)
            },
        ),
        situation(
            "a slot of that name, in another database",
            refused,
            &["it belongs to database other, not shop", "name another one in source.slot"],
            || {
                let other = database();
                let scene = shared(|_, pipe| {
                    other.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", pipe.slot()));
                });
                scene.mask(other.name.clone(), "other").with(other)
            },
        ),
        situation(
            "a slot that lost its log",
            gap,
            &["it is invalidated (wal_removed)", "`offshoot drop`", "load again what was missed"],
            || {
                private(&[("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "64MB")], |db, pipe| {
                    pipe.prepare();
                    for id in 1..=4 {
                        db.execute(&format!("INSERT INTO t VALUES ({id})"));
                        db.execute("SELECT pg_switch_wal()");
                    }
                    db.execute("CHECKPOINT");
                })
            },
        ),
        situation(
            "a slot that is gone",
            gap,
            &["is not there any more", "every change that was committed since", "offshoot resume --new-slot"],
            || {
                shared(|db, pipe| {
                    pipe.prepare();
                    db.execute(&format!("SELECT pg_drop_replication_slot('{}')", pipe.slot()));
                })
            },
        ),
        situation(
            "a publication that is gone",
            gap,
            &["it is not there, but slot offshoot_shop is", "told to nobody", "`offshoot drop`"],
            || {
                shared(|db, pipe| {
                    pipe.prepare();
                    db.execute(&format!("DROP PUBLICATION {}", pipe.slot()));
                })
            },
        ),
        situation(
            "a slot that another Offshoot reads",
            (Waits, None),
            &["another holds the slot; waiting for it"],
            || {
                let db = database();
                let pipe = Pipe::of(&db);
                let scene = Scene::of(&pipe).with(pipe.ready());
                scene.with(db)
            },
        ),
        situation("the same, asked by check", (Not, Some(0)), &["slot: offshoot_shop, held by PID"], || {
            let db = database();
            let pipe = Pipe::of(&db);
            let scene = Scene::of(&pipe).with(pipe.ready());
            scene.with(db)
        }),
    ]
}

/// A physical slot does not go with its database.
struct PhysicalSlot(String);

impl Drop for PhysicalSlot {
    fn drop(&mut self) {
        let drop = format!("SELECT pg_drop_replication_slot('{}')", self.0);
        let _ = postgres::shared(V17).session("postgres").try_execute(&drop);
    }
}

fn tables_and_publications() -> Vec<Situation> {
    let misfit = (Ends(2), Some(2));
    let named = |table: &'static str, sql: &'static str| {
        move || {
            shared(|db, pipe| {
                db.execute(sql);
                pipe.tables = table.into();
            })
        }
    };
    vec![
        situation(
            "a table that is not there",
            misfit,
            &["find a table for `public.tt` of changes.tables", "the nearest is public.t"],
            named("public.tt", ""),
        ),
        situation(
            "a pattern that fits no table",
            misfit,
            &["find a table for `sales.*` of changes.tables"],
            named("sales.*", "CREATE SCHEMA sales"),
        ),
        situation(
            "a view",
            misfit,
            &["public.v: it is a view", "name the tables that it reads from"],
            named("public.v", "CREATE VIEW v AS SELECT * FROM t"),
        ),
        situation(
            "a foreign table",
            misfit,
            &["public.f: it is a foreign table", "take it out of changes.tables"],
            named(
                "public.f",
                "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE f (id int) SERVER s",
            ),
        ),
        situation(
            "an unlogged table",
            misfit,
            &["public.u: it is unlogged", "ALTER TABLE public.u SET LOGGED"],
            named("public.u", "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)"),
        ),
        situation(
            "two tables that come to one topic",
            misfit,
            &["public.t", "other.t", "shop.t", "changes.topic"],
            || {
                shared(|db, pipe| {
                    db.execute("CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)");
                    (pipe.tables, pipe.changes) = ("*.t".into(), "topic: \"{name}.{table}\"".into());
                })
            },
        ),
        situation("a topic name that Kafka does not take", misfit, &["changes.topic"], || {
            shared(|_, pipe| pipe.changes = format!("topic: \"{{name}}.{{table}}.{}\"", "x".repeat(250)))
        }),
        situation(
            "a table without a key",
            (Goes, Some(0)),
            &["neither a primary key nor full identity: only its inserts are told", "REPLICA IDENTITY FULL;"],
            named("public.*", "CREATE TABLE log (note text)"),
        ),
        situation(
            "a table without a key, but with full identity",
            (Not, Some(0)),
            &["! public.log: no key", "a primary key brings those of a row into one, in order"],
            named("public.*", "CREATE TABLE log (note text); ALTER TABLE log REPLICA IDENTITY FULL"),
        ),
        situation(
            "somebody's publication that makes the UPDATE of a keyless table fail",
            (Not, Some(3)),
            &[
                "✗ public.log: neither a primary key",
                "the application's UPDATE and DELETE on it fail",
                "REPLICA IDENTITY FULL;",
            ],
            || {
                shared(|db, pipe| {
                    db.execute(&format!(
                        "CREATE TABLE log (note text); CREATE PUBLICATION {} FOR TABLE t, log",
                        pipe.slot()
                    ));
                })
            },
        ),
        situation(
            "somebody's publication with a list of columns",
            (Goes, Some(0)),
            &["has a column list for public.t", "DROP COLUMN and ALTER TYPE on listed ones fail"],
            || shared(|db, pipe| db.execute(&format!("CREATE PUBLICATION {} FOR TABLE t (id)", pipe.slot()))),
        ),
        situation(
            "somebody's publication with a row filter",
            (Goes, Some(0)),
            &["has a row filter for public.t: rows outside it are not told"],
            || shared(|db, pipe| db.execute(&format!("CREATE PUBLICATION {} FOR TABLE t WHERE (id > 5)", pipe.slot()))),
        ),
        situation(
            "somebody's publication by the roots of partitions",
            (Goes, Some(0)),
            &["publishes via the partition root: TRUNCATE of one partition is not told"],
            || {
                shared(|db, pipe| {
                    let publication = pipe.slot();
                    db.execute(&format!(
                        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT;
                         CREATE PUBLICATION {publication} FOR TABLE t, p WITH (publish_via_partition_root)"
                    ));
                })
            },
        ),
        situation(
            "a value that the format cannot tell",
            (Ends(7), None),
            &["public.t", "column price", "NaN", "`changes.decimal: precise`", "`string`"],
            || {
                shared(|db, pipe| {
                    db.execute("ALTER TABLE t ADD price numeric(10, 2)");
                    a_row_waits(db, pipe, "INSERT INTO t VALUES (2, 'x', 'NaN')");
                })
            },
        ),
    ]
}

fn reaching_kafka() -> Vec<Situation> {
    let refused = (Ends(4), Some(4));
    let ssl = |ca: &Path| format!("properties:\n  security.protocol: SSL\n  ssl.ca.location: {}", ca.display());
    vec![
        situation("no broker is there", (Goes, Some(4)), &["kafka:9092", "Connection refused"], || {
            shared(|_, pipe| pipe.brokers = format!("127.0.0.1:{}", servers::free_port()))
        }),
        situation("TLS, to a listener without", (Goes, Some(4)), &["SSL connection closed by peer"], move || {
            shared(|_, pipe| pipe.kafka = ssl(&secured().other_authority))
        }),
        situation(
            "no TLS, to a listener with",
            (Not, Some(4)),
            &["security.protocol under sink.kafka.properties"],
            || shared(|_, pipe| pipe.brokers = secured().ssl.clone()),
        ),
        situation(
            "no login, to a listener that asks for one",
            (Not, Some(4)),
            &["security.protocol under sink.kafka.properties"],
            || shared(|_, pipe| pipe.brokers = secured().sasl.clone()),
        ),
        situation(
            "a broker of an authority that is not trusted",
            refused,
            &["certificate verify failed", "ssl.ca.location"],
            move || {
                shared(|_, pipe| {
                    pipe.brokers = secured().ssl.clone();
                    pipe.kafka = ssl(&secured().other_authority);
                })
            },
        ),
        situation(
            "a wrong password at Kafka",
            refused,
            &["sasl.username, sasl.password", "sink.kafka.properties"],
            || shared(|_, pipe| as_user(pipe, "alice", "wr0ng", "PLAIN")),
        ),
        situation(
            "a SASL mechanism that the broker does not have",
            refused,
            &["SCRAM-SHA-512", "sasl.mechanism"],
            || shared(|_, pipe| as_user(pipe, "alice", KAFKA_PASSWORD, "SCRAM-SHA-512")),
        ),
    ]
}

fn topics_and_records() -> Vec<Situation> {
    let refused = (Ends(4), Some(4));
    let warned = (Not, Some(0));
    let topic = |properties: &'static [(&'static str, &'static str)]| {
        move || {
            shared(|_, pipe| {
                kafka::shared().create_topic(&pipe.topic("t"), 3, properties);
                pipe.kafka = "topics: { partitions: 3 }".into();
            })
        }
    };
    let made = |topics: &'static str| {
        move || {
            shared(|db, pipe| {
                pipe.kafka = format!("topics: {{ {topics} }}");
                a_row_waits(db, pipe, "INSERT INTO t VALUES (1)");
            })
        }
    };
    vec![
        situation(
            "a topic that is left to its owner and not there",
            refused,
            &[
                "shop.public.t",
                "sink.kafka.topics.create",
                "kafka-topics --bootstrap-server kafka:9092 --create --topic shop.public.t",
            ],
            made("create: false"),
        ),
        situation(
            "more partitions than Kafka makes",
            refused,
            &["shop.public.t", "partitions (20000)"],
            made("partitions: 20000"),
        ),
        situation(
            "more replicas than there are brokers",
            refused,
            &["shop.public.t", "sink.kafka.topics.replication is 3"],
            made("replication: 3"),
        ),
        situation(
            "a topic property that Kafka does not take",
            refused,
            &["shop.public.t", "sink.kafka.topics.properties (retention.ms)"],
            made("properties: { retention.ms: soon }"),
        ),
        situation(
            "no right on any topic",
            refused,
            &["offshoot.shop.progress", "kafka-acls --bootstrap-server kafka:9092 --add --allow-principal User:bob"],
            || {
                shared(|db, pipe| {
                    a_row_waits(db, pipe, "INSERT INTO t VALUES (1)");
                    as_user(pipe, "bob", KAFKA_PASSWORD, "PLAIN");
                })
            },
        ),
        situation(
            "the right to see the topic, and not to write",
            // `run` is told of the topic or of the cluster, as chance has it.
            (Not, Some(4)),
            &["shop.public.t", "--operation Write"],
            || {
                shared(|db, pipe| {
                    a_row_waits(db, pipe, "INSERT INTO t VALUES (1)");
                    as_user(pipe, "bob", KAFKA_PASSWORD, "PLAIN");
                    pipe.kafka += "\ntopics: { partitions: 1 }";
                    secured().broker.create_topic(&pipe.topic("t"), 1, &[]);
                    allow("User:bob", &["Describe"], &format!("--topic {}", pipe.topic("t")));
                })
            },
        ),
        situation(
            "the right to write, and not to make the topic",
            refused,
            &["shop.public.t", "--operation Create"],
            || {
                shared(|db, pipe| {
                    as_user(pipe, "alice", KAFKA_PASSWORD, "PLAIN");
                    pipe.prepare();
                    db.execute("INSERT INTO t VALUES (1)");
                    as_user(pipe, "bob", KAFKA_PASSWORD, "PLAIN");
                    let (progress, id) =
                        (format!("offshoot.{}.progress", pipe.name), format!("offshoot.{}", pipe.name));
                    allow("User:bob", &["Describe", "Read", "Write"], &format!("--topic {progress}"));
                    allow("User:bob", &["Describe", "Write"], &format!("--transactional-id {id}"));
                    allow("User:bob", &["Describe", "Write"], &format!("--topic {}", pipe.topic("t")));
                })
            },
        ),
        situation(
            "`min.insync.replicas` above the replicas",
            (Not, Some(4)),
            &[
                "✗ topic shop.public.t",
                "min.insync.replicas is 2",
                "kafka-configs --bootstrap-server kafka:9092 --alter --topic shop.public.t",
            ],
            topic(&[("min.insync.replicas", "2")]),
        ),
        situation(
            "a topic with another number of partitions",
            warned,
            &[
                "! topic shop.public.t: partitions 5",
                "the config says partitions 6",
                "adding partitions would move keys",
            ],
            || shared(|_, pipe| kafka::shared().create_topic(&pipe.topic("t"), 5, &[])),
        ),
        situation(
            "a compacted topic",
            warned,
            &["! topic shop.public.t", "cleanup.policy is compact", "a state, not a history"],
            topic(&[("cleanup.policy", "compact")]),
        ),
        situation(
            "a topic that keeps records for an hour",
            warned,
            &[
                "! topic shop.public.t",
                "kept for 1h (retention.ms)",
                "a consumer that is away for longer misses events",
            ],
            topic(&[("retention.ms", "3600000")]),
        ),
        situation(
            "a topic that keeps a megabyte",
            warned,
            &["! topic shop.public.t", "(retention.bytes)", "misses events"],
            topic(&[("retention.bytes", "1000000")]),
        ),
        situation(
            "a topic that takes small records only",
            warned,
            &["! topic shop.public.t", "records of up to 3000 bytes (max.message.bytes)"],
            topic(&[("max.message.bytes", "3000")]),
        ),
        situation(
            "a record that is larger than the topic takes",
            (Ends(4), None),
            &["public.t", "{\"id\":2}", "of the transaction that commits at", "max.message.bytes"],
            || {
                shared(|db, pipe| {
                    kafka::shared().create_topic(&pipe.topic("t"), 1, &[("max.message.bytes", "3000")]);
                    // Words that do not compress.
                    let sql =
                        "INSERT INTO t SELECT 2, string_agg(md5(random()::text), '') FROM generate_series(1, 400)";
                    a_row_waits(db, pipe, sql);
                })
            },
        ),
        situation(
            "a record without a key, and a compacted topic",
            (Ends(4), None),
            &["public.log", "topic shop.public.log refuses it", "a compacted topic a record without a key"],
            || {
                shared(|db, pipe| {
                    db.execute("CREATE TABLE log (note text)");
                    kafka::shared().create_topic(&pipe.topic("log"), 1, &[("cleanup.policy", "compact")]);
                    a_row_waits(db, pipe, "INSERT INTO log VALUES ('x')");
                })
            },
        ),
    ]
}

/// What was said, as the page has it.
struct Said {
    run: String,
    check: String,
    text: String,
}

impl Situation {
    fn look(&self) -> Said {
        let scene = (self.set_up)();
        let mut text = String::new();
        let mut run = "".to_owned();
        match self.run {
            Not => {}
            Ends(code) => {
                let mut offshoot = Offshoot::run(binary(), &scene.yaml);
                let status = offshoot.exit(DEADLINE);
                let has_all = || self.has_all(&scene.masked(&offshoot.log().join("\n")));
                let _ = wait::attempt(Duration::from_secs(2), has_all);
                let log = scene.masked(&offshoot.log().join("\n"));
                assert_eq!(status.code(), Some(code), "run ends with {code}:\n{log}");
                says(&log, self.words);
                run = code.to_string();
                text = last(&log, &[" ERROR ", "error: "]);
            }
            Waits | Goes => {
                let mut offshoot = Offshoot::run(binary(), &scene.yaml);
                offshoot.wait("its words", DEADLINE, |offshoot| {
                    self.has_all(&scene.masked(&offshoot.log().join("\n"))).then_some(())
                });
                if self.run == Waits {
                    let ready = wait::until(DEADLINE, "/readyz", || offshoot.get("/readyz"));
                    assert_eq!(ready.0, 503, "{ready:?}");
                }
                let log = scene.masked(&offshoot.log().join("\n"));
                assert_eq!(offshoot.terminate(DEADLINE).code(), Some(0), "a stop is clean:\n{log}");
                run = if self.run == Waits { "tries again" } else { "goes on" }.into();
                let line = log.lines().find(|line| line.contains(self.words[0])).unwrap_or_default();
                text = last(line, &[" WARN ", " INFO ", " ERROR "]);
            }
        }
        let mut check = String::new();
        if let Some(code) = self.check {
            let config = Config::new(&scene.yaml);
            let began = Instant::now();
            let mut command = Command::new(binary());
            let (ended, page) = program::output(command.arg("check").arg("-c").arg(&config.path));
            let took = began.elapsed();
            let page = scene.masked(&page);
            assert_eq!(ended, Some(code), "check ends with {code}:\n{page}");
            says(&page, self.words);
            assert!(took < Duration::from_secs(10), "check took {took:?}");
            check = code.to_string();
            if self.run == Not {
                text = page_line(&page, self.words[0]);
            }
        }
        Said { run, check, text }
    }

    fn has_all(&self, text: &str) -> bool {
        self.words.iter().all(|word| text.contains(word))
    }
}

/// The last line with one of these marks, from there on, and the first line of the SQL that follows it.
fn last(text: &str, marks: &[&str]) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let Some(at) = lines.iter().rposition(|line| marks.iter().any(|mark| line.contains(mark))) else {
        return String::new();
    };
    let mark = marks.iter().find(|mark| lines[at].contains(**mark)).copied().unwrap_or_default();
    let said = lines[at].split_once(mark).map_or(lines[at], |(_, said)| said).trim();
    // `offshoot::supervisor: `
    let said =
        said.split_once(": ").filter(|(target, _)| target.starts_with("offshoot::")).map_or(said, |(_, said)| said);
    let sql = lines.get(at + 1).filter(|_| said.ends_with("run this in database shop:"));
    format!("{said}{}", sql.map(|sql| format!(" {} ...", sql.trim())).unwrap_or_default())
}

/// The line of a page that has this word, or is above it, with what mends it.
fn page_line(page: &str, word: &str) -> String {
    let lines: Vec<&str> = page.lines().collect();
    let has = |line: &&str| line.contains(word);
    let at = lines.iter().position(has).unwrap_or_default();
    let bad = lines.iter().position(|line| line.starts_with("  ✗")).filter(|_| !lines[at].contains('!')).unwrap_or(at);
    let mend = lines.get(bad + 1).filter(|line| line.starts_with("      ")).map(|line| format!("; {}", line.trim()));
    format!("{}{}", lines[bad].trim().trim_start_matches(['✗', '!', '✓', ' ']), mend.unwrap_or_default())
}

/// Places, times and sizes that differ from run to run.
fn stable(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let bare = word.trim_matches(|c: char| "();:,".contains(c));
        let date = |text: &str| text.trim_end_matches('.').len() == 20 && text.contains("T") && text.contains("Z");
        let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let before = words.last().cloned().unwrap_or_default();
        let size = digits(&before) && (["KiB", "MiB", "GiB"].contains(&bare) || word.starts_with("bytes,"));
        if size {
            *words.last_mut().expect("one was there") = "470".into();
        }
        let hex = |text: &str| !text.is_empty() && text.chars().all(|c| matches!(c, '0'..='9' | 'A'..='F'));
        let lsn = bare.split_once('/').is_some_and(|(high, low)| hex(high) && hex(low));
        let mask = match bare {
            _ if lsn => "0/2DA5FF8",
            at if date(at) => "2026-11-22T12:00:00Z",
            "KiB" | "GiB" if size => "MiB",
            number if digits(number) && (number.len() > 8 || before == "PID") => "4711",
            ms if ms.strip_suffix("ms").is_some_and(digits) => "1ms",
            pid if pid.starts_with("pid=") => "pid=4711",
            same => same,
        };
        words.push(if bare.is_empty() { word.to_owned() } else { word.replace(bare, mask) });
    }
    let text = words.join(" ");
    let text = text.split(" retry_in=").next().unwrap_or_default();
    let text = text.split(" exit=").next().unwrap_or_default().to_owned();
    // What the resolver says is the system's; and how far a handshake came that a broker breaks off is chance.
    let cut = |at: &str, then: &str| {
        let (before, _) = text.split_once(at).filter(|_| text.contains(then))?;
        Some(format!("{before}{at}{then} ..."))
    };
    cut("failed to lookup address information:", "")
        .or_else(|| cut("/bootstrap: ", "SSL connection closed by peer"))
        .unwrap_or_else(|| text.clone())
}

#[test]
fn each_bad_situation_says_what_it_is_and_how_it_is_mended() {
    let all = situations();
    let only = env::var("OFFSHOOT_TEST_SITUATION").unwrap_or_default();
    let names: std::collections::BTreeSet<_> = all.iter().map(|situation| situation.name).collect();
    assert_eq!(names.len(), all.len(), "each has a name of its own");
    let next = Mutex::new(all.iter().enumerate().filter(|(_, situation)| situation.name.contains(&only)));
    let said = Mutex::new(BTreeMap::new());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let Some((at, situation)) = next.lock().unwrap().next() else { return };
                    let began = Instant::now();
                    match panic::catch_unwind(AssertUnwindSafe(|| situation.look())) {
                        Ok(what) => drop(said.lock().unwrap().insert(at, what)),
                        Err(why) => {
                            let text = why.downcast_ref::<String>().cloned();
                            let text = text.or_else(|| why.downcast_ref::<&str>().map(|text| text.to_string()));
                            failed.lock().unwrap().push(format!("{}: {}", situation.name, text.unwrap_or_default()));
                        }
                    }
                    if env::var_os("OFFSHOOT_TEST_SHOW").is_some() {
                        println!("{:?} {}", began.elapsed(), situation.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} situations:\n\n{}", failed.len(), all.len(), failed.join("\n\n"));
    let said = said.into_inner().unwrap();
    if only.is_empty() {
        the_page_is(&page(&all, &said));
    } else {
        said.iter().for_each(|(at, said)| println!("{}", row(&all[*at], said)));
    }
}

fn row(situation: &Situation, said: &Said) -> String {
    let text = stable(&said.text).replace('|', "\\|").replace('<', "&lt;");
    format!("| {} | {} | {} | {text} |\n", situation.name, said.run, said.check)
}

fn page(all: &[Situation], said: &BTreeMap<usize, Said>) -> String {
    let rows: String = said.iter().map(|(at, said)| row(&all[*at], said)).collect();
    format!(
        "# What Offshoot says when something is wrong\n\n\
         Each line is a situation that `tests/it/situations.rs` sets up on real servers: the exit code of `offshoot run` (or\n\
         that it tries again, or goes on), that of `offshoot check`, and what is said. The test writes this page, and compares it. In it\n\
         the pipeline and its database are `shop`, its role is `cdc_shop`, and the servers are `db:5432` and `kafka:9092`.\n\n\
         | situation | run | check | what is said |\n|---|---|---|---|\n{rows}"
    )
}

fn the_page_is(page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/situations.md");
    if env::var_os("OFFSHOOT_TEST_WRITE").is_some() {
        fs::write(&path, page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differ: Vec<_> = page.lines().filter(|line| !written.contains(line)).collect();
    assert!(
        written == page,
        "docs/situations.md differs; OFFSHOOT_TEST_WRITE=1 writes it again:\n{}",
        differ.join("\n")
    );
}

/// The page of `check`, and how long it took.
fn check(pipe: &Pipe, environment: &[(&str, &str)]) -> (i32, String, Duration) {
    let config = Config::new(&pipe.yaml());
    let began = Instant::now();
    let mut command = Command::new(binary());
    let command = command.arg("check").arg("-c").arg(&config.path).envs(environment.iter().copied());
    let (code, page) = program::output(command);
    (code.expect("it ends by itself"), page, began.elapsed())
}

/// Everything is wrong at once; what the page prints is run as it stands, and then all is well.
#[test]
fn the_sql_under_each_cross_mends_it() {
    let bad = [("wal_level", "replica"), ("max_wal_senders", "0"), ("max_replication_slots", "1")];
    let server = postgres::private(V17, &bad);
    let db = with_table(&server);
    db.execute("SELECT pg_create_physical_replication_slot('other')");
    let mut pipe = Pipe::of(&db);
    role(&db, &mut pipe, "");
    let page = pipe.checks(3, &["not ready: 5 things to mend"]);
    let crosses =
        ["✗ wal_level: replica", "✗ role: cdc_", "✗ slots: 1 of 1", "✗ walsenders: 0 of 0", "✗ publications: "];
    says(&page, &crosses);
    for line in page.lines().filter_map(|line| line.strip_prefix("      ")) {
        let statement = line.split("  -- ").next().unwrap();
        if statement.ends_with(';') {
            db.execute(statement);
        }
    }
    server.leave(&bad.map(|(name, _)| name));
    server.restart();
    pipe.checks(0, &["ready to run", "✓ public.t: key id"]);
    pipe.prepare();
    server.session(&db.name).execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
}

#[test]
fn the_rights_that_check_prints_are_all_that_kafka_asks_for() {
    let db = database();
    let mut pipe = Pipe::of(&db);
    as_user(&mut pipe, "alice", KAFKA_PASSWORD, "PLAIN");
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    as_user(&mut pipe, "bob", KAFKA_PASSWORD, "PLAIN");
    let page = pipe.checks(4, &["✗ rights: not granted to User:bob: topic "]);
    let lines: Vec<_> = page.lines().map(str::trim).filter(|line| line.starts_with("kafka-acls ")).collect();
    assert_eq!(lines.len(), 4, "{page}");
    thread::scope(|scope| lines.iter().for_each(|line| drop(scope.spawn(|| paste(line)))));
    pipe.checks(0, &["✓ rights: nothing was refused to User:bob", "not there; `run` makes it"]);
    pipe.arrives_at(&secured().broker, "t", &[1]);
    pipe.checks(
        0,
        &["✓ rights: nothing was refused to User:bob", &format!("✓ topic {}: partitions 6", pipe.topic("t"))],
    );
    // And no more than that.
    let other = database();
    let stranger = Pipe { name: other.name.clone(), url: other.url.clone(), ..pipe };
    stranger.checks(4, &["✗ rights: not granted to User:bob: topic "]);
}

#[test]
fn check_answers_within_ten_seconds_whoever_is_away() {
    let within = |(ended, page, took): (i32, String, Duration), code: i32, words: &[&str]| {
        println!("{took:?}\n{page}");
        assert_eq!(ended, code, "{page}");
        says(&page, words);
        assert!(took < Duration::from_secs(10), "check took {took:?}");
    };
    let frozen_postgres = || {
        let server = postgres::private(V17, &[]);
        let db = with_table(&server);
        let pid = server.pid().unwrap() as libc::pid_t;
        // SAFETY: no memory is involved; it is our child and has not been reaped.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        let said = check(&Pipe::of(&db), &[]);
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGCONT) };
        within(said, 3, &["Postgres did not answer within", "`source.postgres`", "✓ 1 broker"]);
    };
    let frozen_kafka = || {
        let broker = kafka::private(&kafka::Options::default());
        broker.pause();
        let db = database();
        let pipe = Pipe { brokers: broker.address().into(), ..Pipe::of(&db) };
        within(check(&pipe, &[]), 4, &["✓ wal_level: logical", "✓ public.t: key id", "✗ ", "sink.kafka.brokers"]);
        broker.resume();
    };
    let silent = || {
        // The kernel takes connections, and nobody speaks.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [postgres, kafka] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
        let db = database();
        let pipe = Pipe { url: format!("postgres://x:y@{postgres}/d"), brokers: kafka, ..Pipe::of(&db) };
        within(check(&pipe, &[]), 3, &["Postgres did not answer within", "`source.postgres`", "sink.kafka.brokers"]);
    };
    let nowhere = || {
        // An address that is nobody's: packets are dropped or refused, as the network has it.
        let db = database();
        let pipe = Pipe { url: "postgres://x:y@192.0.2.1/d".into(), brokers: "192.0.2.1:9092".into(), ..Pipe::of(&db) };
        within(check(&pipe, &[]), 3, &["`source.postgres`", "sink.kafka.brokers", "not ready: 2 things to mend"]);
    };
    thread::scope(|scope| {
        let _ = [scope.spawn(frozen_postgres), scope.spawn(frozen_kafka), scope.spawn(silent), scope.spawn(nowhere)]
            .map(|case| case.join().unwrap());
    });
}

#[test]
fn colours_are_for_those_who_want_them() {
    let db = database();
    let pipe = Pipe::of(&db);
    let coloured = |environment: &[(&str, &str)]| check(&pipe, environment).1.contains('\u{1b}');
    assert!(!coloured(&[]), "nobody looks on");
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}
