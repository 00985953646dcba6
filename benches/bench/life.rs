//! A pipeline that does nothing or next to nothing -> how soon it has begun, and what it takes while it waits.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    appended,
    asked::Asked,
    counted,
    drain::{APPEND_TIME, Servers, drop_slot, milliseconds, start, wait_published},
    progress::Progress,
    results::{Idle, Starts, mib},
    support::program::{self, Config},
};

/// What comes with a start is over by then.
const SETTLED: Duration = Duration::from_secs(5);

fn config(servers: &Servers<'_>, url: &str, name: &str, delivery: &str) -> Config {
    let text = program::config(name, url, servers.broker.address(), &["public.told"]);
    Config::new(&text.replace("delivery: exactly_once", &format!("{APPEND_TIME}, delivery: {delivery}")))
}

/// From exec to the broker's append of a row that was committed before; slot, publication and topic are there.
pub(crate) fn starts(servers: &Servers<'_>, asked: &Asked, progress: &Progress) -> Vec<Starts> {
    let measured = |delivery: &str| {
        let db = servers.postgres.create_database();
        db.execute("SET synchronous_commit = on; CREATE TABLE told (id bigint PRIMARY KEY, note text)");
        let name = format!("starts_{delivery}");
        let config = config(servers, &db.url, &name, delivery);
        let mut began = Vec::new();
        for number in 0..=asked.starts {
            progress.tell(&format!("start {number} of {}, {delivery}", asked.starts));
            if number > 0 {
                db.execute(&format!("INSERT INTO told VALUES ({number}, 'a note of a usual length')"));
            }
            began.push(milliseconds(SystemTime::now()));
            let mut offshoot = start(&config);
            if number == 0 {
                // It makes what it needs, and the topic.
                offshoot.wait_ready(program::START_MAX);
                db.execute("INSERT INTO told VALUES (0, 'a note of a usual length')");
            }
            wait_published(&mut offshoot, 1);
            assert!(offshoot.terminate(program::START_MAX).success());
        }
        let topic = format!("{name}.public.told");
        let mut times = vec![None; began.len()];
        appended::read(servers.broker, &[&topic], |record| {
            // At least once may append it again; the first one counts.
            times[appended::id(record)].get_or_insert(appended::at(record));
        });
        servers.broker.delete_topic(&topic);
        drop_slot(&db, &format!("offshoot_{name}"));
        let took = began.iter().zip(times).skip(1).map(|(began, at)| (at.expect("it was published") - began) as f64);
        Starts { delivery: delivery.into(), milliseconds: took.collect() }
    };
    ["exactly_once", "at_least_once"].map(measured).into()
}

/// Nobody writes, and everything stays connected.
pub(crate) fn idle(servers: &Servers<'_>, asked: &Asked, progress: &Progress) -> Idle {
    let db = servers.postgres.create_database();
    db.execute("CREATE TABLE told (id bigint PRIMARY KEY, note text)");
    let mut offshoot = start(&config(servers, &db.url, "idle", "exactly_once"));
    offshoot.wait_ready(program::START_MAX);
    progress.tell(&format!("idle for {} s", asked.idle.as_secs()));
    thread::sleep(SETTLED);
    let (began, before) = (Instant::now(), counted::exact_cpu(offshoot.pid()));
    thread::sleep(asked.idle);
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), counted::exact_cpu(offshoot.pid()) - before);
    let resident = counted::memory(offshoot.pid(), "VmRSS").expect("it runs");
    assert!(offshoot.terminate(program::START_MAX).success());
    drop_slot(&db, "offshoot_idle");
    Idle { seconds, cpu_percent: cpu.as_secs_f64() / seconds * 100.0, resident_mib: mib(resident) }
}
