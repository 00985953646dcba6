//! Passwords and certificates that are replaced while it runs: the stream goes on without a restart.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rcgen::KeyPair;

use crate::{
    connections::{Asking, Authority, FIRST_PASSWORD, Secured, asking, secured, with_table},
    pipe::{DEADLINE, Pipe, stops},
    support::{
        kafka,
        postgres::{self, Db, Version::V17},
        process::{self, User},
        program::Offshoot,
        wait,
    },
};

/// Ends our sessions in the database, as a restart or a network does.
fn cut_off(db: &Db) {
    let ours = format!("datname = '{}' AND application_name = 'offshoot_{0}'", db.name);
    db.execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}"));
}

/// Cut off, it says these words, is asked again, and goes on once `mended` has been called.
#[track_caller]
fn goes_on(pipe: &Pipe, db: &Db, offshoot: &mut Offshoot, words: &str, mended: impl Fn()) {
    cut_off(db);
    offshoot.wait(words, DEADLINE, |offshoot| {
        let said =
            |line: &String| line.contains(words) && line.contains("it has let us in before, so it is asked again for");
        offshoot.log().iter().any(said).then_some(())
    });
    mended();
    let id: i64 = db.text("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t RETURNING id").parse().unwrap();
    offshoot.wait("a row", DEADLINE, |_| pipe.ids(kafka::shared(), "t").contains(&id).then_some(()));
}

#[test]
fn a_password_of_postgres_is_replaced_while_it_streams() {
    let Asking { server, .. } = asking();
    let db = with_table(server);
    let role = format!("rotating_{}", db.name);
    db.execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'sEcReT-first'"));
    let file = process::new_dir("rotation").join("url");
    let write = |password: &str| {
        let url = format!("postgres://{role}:{password}@127.0.0.1:{}/{}?sslmode=require\n", server.port(), db.name);
        fs::write(&file, url).unwrap();
    };
    write("sEcReT-first");
    let pipe = Pipe { url: format!("file:{}", file.display()), ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    db.execute(&format!("ALTER ROLE {role} PASSWORD 'sEcReT-second'"));
    goes_on(&pipe, &db, &mut offshoot, "password authentication failed", || write("sEcReT-second"));
    fs::remove_file(&file).unwrap();
    goes_on(&pipe, &db, &mut offshoot, "url: No such file", || write("sEcReT-second"));
    // Emptied, and about to be written.
    fs::write(&file, "").unwrap();
    goes_on(&pipe, &db, &mut offshoot, "source.postgres is neither a URI", || write("sEcReT-second"));
    stops(offshoot);
    // What has never been right is not waited for.
    write("sEcReT-first");
    pipe.ends(3, &["password authentication failed"]);
    cut_off(&db);
}

#[test]
fn a_certificate_of_ours_is_replaced_while_it_streams() {
    let Asking { server, signer, authority, .. } = asking();
    let db = with_table(server);
    let dir = process::new_dir("rotation");
    let other = Authority::new("Somebody else");
    let issue = |signer: &Authority| signer.client(&dir, "r_cert");
    let (certificate, key) = issue(signer);
    let shown = |path: &Path| path.display().to_string();
    let url = format!(
        "host=localhost port={} user=r_cert dbname={} sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
        server.port(),
        db.name,
        shown(authority),
        shown(&certificate),
        shown(&key)
    );
    let pipe = Pipe { url, ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    drop(issue(&other));
    goes_on(&pipe, &db, &mut offshoot, "the server refuses our certificate", || drop(issue(signer)));
    stops(offshoot);
}

#[test]
fn a_certificate_of_the_servers_that_has_expired_is_waited_for_while_it_streams() {
    let dir = process::new_dir("rotation");
    let authority = Authority::new("Offshoot's tests");
    let (ca, key) = (authority.write(&dir, "ca.pem"), KeyPair::generate().unwrap());
    let (certificate_file, key_file) = (dir.join("server.crt"), dir.join("server.key"));
    let good_until = |year| fs::write(&certificate_file, authority.sign(&["localhost"], &key, year)).unwrap();
    good_until(4096);
    fs::write(&key_file, key.serialize_pem()).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    if let Some(user) = User::ordinary() {
        user.own(&key_file);
    }
    let file = |path: &Path| path.display().to_string();
    let settings = [("ssl", "on"), ("ssl_cert_file", &file(&certificate_file)), ("ssl_key_file", &file(&key_file))];
    let server = postgres::private(V17, &settings);
    let db = with_table(&server);
    let (port, password, name) = (server.port(), postgres::PASSWORD, &db.name);
    let tls = format!("sslmode=verify-full&sslrootcert={}", ca.display());
    let pipe = Pipe { url: format!("postgres://postgres:{password}@localhost:{port}/{name}?{tls}"), ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    let serve = |year| {
        let reloads = || server.log().matches("received SIGHUP").count();
        let before = reloads();
        good_until(year);
        db.execute("SELECT pg_reload_conf()");
        wait::until(DEADLINE, "the server to take it", || reloads() > before);
    };
    serve(2021);
    goes_on(&pipe, &db, &mut offshoot, "certificate has expired: renew it there", || serve(4096));
    stops(offshoot);
}

#[test]
fn a_password_of_kafka_is_replaced_while_it_streams() {
    let Secured { broker, asks_again, .. } = secured();
    let db = with_table(postgres::shared(V17));
    let file = process::new_dir("rotation").join("password");
    fs::write(&file, FIRST_PASSWORD).unwrap();
    let kafka = format!(
        "properties:\n  security.protocol: SASL_PLAINTEXT\n  sasl.mechanism: SCRAM-SHA-256\n  sasl.username: rotating\n  \
         sasl.password: file:{}",
        file.display()
    );
    let pipe = Pipe { brokers: asks_again.clone(), kafka, ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    let arrives = |offshoot: &mut Offshoot, id: i64| {
        db.execute(&format!("INSERT INTO t VALUES ({id})"));
        offshoot.wait("a row", DEADLINE, |_| pipe.ids(broker, "t").contains(&id).then_some(()));
    };
    arrives(&mut offshoot, 1);
    broker.set_password("rotating", "sEcReT-second");
    offshoot.wait_log("it has let us in before, so it is asked again for", DEADLINE);
    fs::write(&file, "sEcReT-second").unwrap();
    arrives(&mut offshoot, 2);
    stops(offshoot);
}
