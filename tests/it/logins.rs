//! How we log in to servers that ask for more than a password, and the words of each refusal.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path, process::Command};

use crate::{
    connections::{Asking, Authority, KAFKA_PASSWORD, Secured, a_row_goes_through, asking, secured, with_table},
    pipe::{DEADLINE, Pipe, binary, says, stops},
    support::{
        postgres::{self, Session, Version::V17},
        process,
        program::{self, Config, Offshoot},
        secrets, servers, wait,
    },
};

#[test]
fn a_log_in_is_bound_to_tls_where_the_server_can_and_no_password_leaves_us_where_it_must_be() {
    let Asking { server, authority, .. } = asking();
    let db = with_table(server);
    let (name, port, ca) = (&db.name, server.port(), authority.display());
    let url = |role: &str, words: &str| format!("postgres://{role}:sEcReT-%20spaced@localhost:{port}/{name}?{words}");
    let verified = format!("sslmode=verify-full&sslrootcert={ca}");
    for binding in ["require", "disable"] {
        a_row_goes_through(&db, url("r_scram", &format!("{verified}&channel_binding={binding}")));
    }
    let refuses = |url: String, words: &[&str]| Pipe { url, ..Pipe::of(&db) }.checks(3, words);
    for role in ["r_md5", "r_clear", "r_trust"] {
        let words =
            ["channel_binding=require", "does not bind the log-in to TLS", "password_encryption = scram-sha-256"];
        refuses(url(role, &format!("{verified}&channel_binding=require")), &words);
    }
    let words = ["channel_binding=require", "not under TLS", "sslmode=verify-full"];
    refuses(format!("{}&channel_binding=require", db.socket_url()), &words);
    let plain = with_table(postgres::shared(V17));
    let pipe = Pipe { url: format!("{}?channel_binding=require", plain.url), ..Pipe::of(&plain) };
    pipe.ends(3, &words);
    let never = Pipe { url: format!("{}?channel_binding=require&sslmode=disable", plain.url), ..pipe };
    never.ends(2, &["offshoot.yaml:3:", "sslmode=disable forbids"]);
}

#[test]
fn a_certificate_logs_in_and_one_that_does_not_says_why() {
    let Asking { server, signer, authority, .. } = asking();
    let db = with_table(server);
    let dir = process::new_dir("clients");
    let (name, port, ca) = (&db.name, server.port(), authority.display());
    let url = |role: &str, (certificate, key): (&Path, &Path)| {
        format!(
            "postgres://{role}:sEcReT-%20spaced@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={ca}&sslcert={}&sslkey={}",
            certificate.display(),
            key.display()
        )
    };
    let issued = |signer: &Authority, name: &str| signer.client(&dir, name);
    let (certificate, key) = issued(signer, "r_cert");
    let (both_certificate, both_key) = issued(signer, "r_both");
    let right = url("r_cert", (&certificate, &key));
    a_row_goes_through(&db, right.clone());
    a_row_goes_through(&db, url("r_both", (&both_certificate, &both_key)) + "&channel_binding=require");

    let refuses = |url: String, words: &[&str]| Pipe { url, ..Pipe::of(&db) }.checks(3, words);
    let without = |url: &str| url.split("&sslcert").next().unwrap().to_owned();
    let none = ["requires a valid client certificate", "CN=r_cert in sslcert"];
    Pipe { url: without(&right), ..Pipe::of(&db) }.ends(3, &none);
    refuses(without(&right), &none);
    refuses(without(&url("r_both", (&key, &key))), &["requires a valid client certificate", "CN=r_both in sslcert"]);
    let other = ["certificate authentication failed", "must be for CN=r_cert", "pg_ident.conf"];
    refuses(url("r_cert", (&both_certificate, &both_key)), &other);
    refuses(url("r_both", (&certificate, &key)), &["password authentication failed", "is for CN=r_both"]);
    refuses(url("r_cert", (&certificate, &both_key)), &["sslkey", "KeyMismatch"]);
    let foreign = issued(&Authority::new("Somebody else"), "r_foreign");
    refuses(url("r_cert", (&foreign.0, &foreign.1)), &["failed to use TLS with", "UnknownCA", "ssl_ca_file"]);
    let gone = dir.join("gone");
    refuses(url("r_cert", (&gone, &key)), &["sslcert", "gone", "No such file"]);
    refuses(url("r_cert", (&certificate, &gone)), &["sslkey", "gone", "No such file"]);
    refuses(url("r_cert", (&certificate, &certificate)), &["sslkey", "others may use it"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    Pipe { url: right, ..Pipe::of(&db) }.ends(3, &["sslkey", "others may use it; chmod 06"]);
}

#[test]
fn a_password_comes_from_a_file_that_nobody_else_may_read() {
    let Asking { server, .. } = asking();
    let db = with_table(server);
    let (name, port, file) = (&db.name, server.port(), process::new_dir("passfile").join("pgpass"));
    fs::write(&file, "# host:port:database:user:password\nlocalhost:*:*:r_scram:sEcReT- spaced\n").unwrap();
    let rights = |mode: u32| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    rights(0o600);
    let url =
        |host: &str| format!("postgres://r_scram@{host}:{port}/{name}?sslmode=require&passfile={}", file.display());
    a_row_goes_through(&db, url("localhost"));
    let by_environment = Pipe { url: url("localhost").split("&passfile").next().unwrap().into(), ..Pipe::of(&db) };
    let mut command = Command::new(binary());
    command.env("PGPASSFILE", &file).args(["check", "-c"]).arg(Config::new(&by_environment.yaml()).path);
    let (code, text) = program::output(&mut command);
    assert_eq!(code, Some(0), "{text}");
    let ends = |url: String, words: &[&str]| Pipe { url, ..Pipe::of(&db) }.ends(3, words);
    let none = "the server asks for a password, and source.postgres has none";
    ends(url("127.0.0.1"), &[none, "no line of the password file"]);
    rights(0o640);
    ends(url("localhost"), &[none, &format!("chmod 0600 {}", file.display())]);
}

#[test]
fn of_several_hosts_the_first_that_will_do_is_taken() {
    let primary = postgres::private(V17, &[]);
    let standby = primary.standby();
    let db = with_table(&primary);
    wait::until(DEADLINE, "the standby to have the database", || Session::connect(&standby.url(&db.name)).map(drop));
    let away = servers::free_port();
    let (name, p, s) = (&db.name, primary.port(), standby.port());
    let url = |ports: &[u16], words: &str| {
        let hosts = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
        format!("postgres://postgres:{}@{hosts}/{name}{words}", postgres::PASSWORD)
    };
    a_row_goes_through(&db, url(&[away, s, p], "?target_session_attrs=read-write"));
    a_row_goes_through(&db, url(&[away, p, s], ""));
    let checked = |url: String| Pipe { url, ..Pipe::of(&db) }.command(&["check"]).1;
    says(&checked(url(&[s, p], "?target_session_attrs=any")), &[&format!("a standby, at 127.0.0.1:{s}")]);
    let words = [&*format!("find a primary among 127.0.0.1:{s}"), "all of them are standbys"];
    says(&checked(url(&[s], "?target_session_attrs=read-write")), &words);
    let text = checked(url(&[away, s], "?target_session_attrs=read-write"));
    says(&text, &["reach any of the hosts", &format!("127.0.0.1:{away}"), &format!("127.0.0.1:{s} is a standby")]);
    primary.stop();
    let text = checked(url(&[away, p], ""));
    says(&text, &["reach any of the hosts", &format!("127.0.0.1:{away}"), &format!("127.0.0.1:{p}")]);
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up_in_time() {
    let db = with_table(postgres::shared(V17));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let pipe = Pipe { url: format!("postgres://u@{address}/d?connect_timeout=1"), ..Pipe::of(&db) };
    pipe.checks(3, &[&format!("connect and log in to {address} within 1 s")]);
    let mut offshoot = pipe.run();
    offshoot.wait_log("within 1 s retry_in=", DEADLINE);
    stops(offshoot);
}

#[test]
fn kafka_takes_a_certificate_or_a_token_and_says_what_is_wrong_with_either() {
    let Secured { broker, mutual, oauth, signer, authority, .. } = secured();
    let dir = process::new_dir("clients");
    let db = with_table(postgres::shared(V17));
    let with = |brokers: &str, properties: &str| {
        let kafka =
            format!("properties:\n{}", properties.lines().map(|line| format!("  {line}\n")).collect::<String>());
        Pipe { brokers: brokers.into(), kafka, ..Pipe::of(&db) }
    };
    let tls = format!("security.protocol: SSL\nssl.ca.location: {}", authority.display());
    let issued = |signer: &Authority, name: &str| {
        let (certificate, key) = signer.client(&dir, name);
        format!("\nssl.certificate.location: {}\nssl.key.location: {}", certificate.display(), key.display())
    };
    let good = with(mutual, &(tls.clone() + &issued(signer, "alice")));
    good.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    good.arrives_at(broker, "t", &[1]);
    let words = ["ssl.certificate.location and ssl.key.location", "sink.kafka.properties"];
    with(mutual, &tls).checks(4, &words);
    with(mutual, &(tls + &issued(&Authority::new("Somebody else"), "mallory"))).ends(4, &words);

    let token = "security.protocol: SASL_PLAINTEXT\nsasl.mechanism: OAUTHBEARER";
    let unsecured = "\nenable.sasl.oauthbearer.unsecure.jwt: true\nsasl.oauthbearer.config: principal=alice";
    let good = with(oauth, &format!("{token}{unsecured}"));
    db.execute("INSERT INTO t VALUES (2)");
    good.arrives_at(broker, "t", &[1, 2]);
    with(oauth, token).ends(2, &["offshoot.yaml:", "OAUTHBEARER", "enable.sasl.oauthbearer.unsecure.jwt"]);
    with(oauth, &format!("{token}\nsasl.oauthbearer.method: oidc")).ends(2, &["sasl.oauthbearer.method", "libcurl"]);
}

#[test]
fn neither_a_password_nor_a_row_is_in_any_page_log_or_list_of_processes() {
    let Secured { broker, sasl, .. } = secured();
    let Asking { server, .. } = asking();
    let db = with_table(server);
    let properties = format!(
        "properties:\n  security.protocol: SASL_PLAINTEXT\n  sasl.mechanism: SCRAM-SHA-256\n  sasl.username: alice\n  \
         sasl.password: {KAFKA_PASSWORD}\n  debug: \"conf,security,protocol,msg\""
    );
    let url = format!("postgres://r_scram:sEcReT-%20spaced@localhost:{}/{}?sslmode=require", server.port(), db.name);
    let pipe = Pipe { url, brokers: sasl.clone(), kafka: properties, ..Pipe::of(&db) };
    let config = Config::new(&pipe.yaml());
    let mut command = Command::new(binary());
    command.args(["run", "--log", "trace", "-c"]).arg(&config.path);
    let mut offshoot = Offshoot::start(command, &config);
    offshoot.wait_ready(DEADLINE);
    db.execute(&format!("INSERT INTO t VALUES (1, '{}row')", secrets::VALUE));
    offshoot.wait("the row", DEADLINE, |_| (pipe.ids(broker, "t") == [1]).then_some(()));
    for page in ["/metrics", "/readyz", "/livez"] {
        assert_eq!(offshoot.get(page).unwrap().0, 200);
    }
    for file in ["cmdline", "comm", "status"] {
        let text = fs::read_to_string(format!("/proc/{}/{file}", offshoot.pid())).unwrap();
        assert!(!text.is_empty());
        secrets::must_not_be_in(file, &text);
    }
    // The harness looks through each of these.
    assert!(offshoot.log().iter().any(|line| line.contains("TRACE") || line.contains("DEBUG")));
    stops(offshoot);
    for (from, to) in [("spaced", "wrong"), (KAFKA_PASSWORD, "sEcReT-wrong"), (":sEcReT", ":%sEcReT")] {
        let text = pipe.yaml().replace(from, to);
        let config = Config::new(&text);
        let mut command = Command::new(binary());
        command.args(["check", "--json", "-c"]).arg(&config.path);
        let (code, said) = program::output(&mut command);
        assert!(code != Some(0) && !said.is_empty());
    }
}
