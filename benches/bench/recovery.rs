//! A backlog and kill -9 in the middle of it -> how soon records flow again, and whether a reader of committed sees each of them once.

use std::time::SystemTime;

use crate::{
    appended,
    asked::Asked,
    drain::{APPEND_TIME, Servers, drop_slot, end_of_log, milliseconds, start, wait_confirmed, wait_published},
    progress::Progress,
    results::{Recovery, mib},
    shapes::SEAT,
    support::{
        postgres::Db,
        program::{self, Config},
    },
};

/// Rows in a transaction.
const PER_TRANSACTION: u64 = 10;
/// Transactions at once, between two looks at the log's length.
const BATCH: u64 = 2_000;

pub(crate) fn measure(servers: &Servers<'_>, asked: &Asked, progress: &Progress) -> Recovery {
    let db = servers.postgres.create_database();
    db.execute(SEAT);
    let text = program::config("recovery", &db.url, servers.broker.address(), &["public.seat"]);
    let config =
        Config::new(&text.replace("delivery: exactly_once", &format!("{APPEND_TIME}, delivery: exactly_once")));
    let mut offshoot = start(&config);
    offshoot.wait_ready(program::START_MAX);
    assert!(offshoot.terminate(program::START_MAX).success());

    progress.tell(&format!("recovery: writes {} MiB of log", asked.wal_mib));
    let (rows, wal_bytes) = write(&db, asked.wal_mib << 20);
    progress.tell("recovery: kill -9 in the middle, and again to the end");
    let mut offshoot = start(&config);
    wait_published(&mut offshoot, rows / 2);
    offshoot.kill();
    let restarted = SystemTime::now();
    let mut offshoot = start(&config);
    let end = end_of_log(&db);
    db.execute("SELECT pg_logical_emit_message(true, 'bench', 'the end')");
    wait_confirmed(&mut offshoot, end);
    assert!(offshoot.terminate(program::START_MAX).success());

    progress.tell("recovery: reads all of it");
    let restarted = milliseconds(restarted);
    let mut seen = vec![0_u8; rows as usize];
    let (mut before, mut first, mut last) = (0, i64::MAX, 0);
    let topic = "recovery.public.seat";
    appended::read(servers.broker, &[topic], |record| {
        let (id, at) = (appended::id(record), appended::at(record));
        seen[id] = seen[id].saturating_add(1);
        if at < restarted {
            before += 1;
        } else {
            (first, last) = (first.min(at), last.max(at));
        }
    });
    servers.broker.delete_topic(topic);
    drop_slot(&db, "offshoot_recovery");
    assert!(0 < before && before < rows, "killed in the middle: {before} of {rows} were committed");
    let since = |at: i64| (at - restarted) as f64 / 1e3;
    Recovery {
        wal_mib: mib(wal_bytes),
        rows,
        rows_before: before,
        seconds_to_first: since(first),
        seconds_to_last: since(last),
        duplicates: seen.iter().map(|times| u64::from(times.saturating_sub(1))).sum(),
        missing: seen.iter().filter(|times| **times == 0).count() as u64,
    }
}

/// Writes rows of about a kilobyte until the log has grown by so many bytes. Gives rows, and bytes of log.
fn write(db: &Db, bytes: u64) -> (u64, u64) {
    let (from, mut transactions) = (end_of_log(db), 0);
    while end_of_log(db) - from < bytes {
        db.execute(&format!(
            "DO $$ DECLARE n bigint := {PER_TRANSACTION}; BEGIN FOR t IN {transactions} .. {} LOOP
                INSERT INTO seat SELECT i, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5, i % 3 = 0, now(), repeat(md5(i::text), 30)
                FROM generate_series(t * n, (t + 1) * n - 1) i;
                COMMIT; END LOOP; END $$",
            transactions + BATCH - 1
        ));
        transactions += BATCH;
    }
    db.execute("SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bench', 'all is on disk')");
    (transactions * PER_TRANSACTION, end_of_log(db) - from)
}
