//! A cluster of three brokers of which one dies, and then two -> a topic that tells the table's history all the same.

use std::time::Instant;

use crate::{
    outages::{DEADLINE, IN_FLIGHT_BYTES_MAX, Walk},
    support::{
        kafka,
        postgres::{self, V17},
        program::Offshoot,
    },
};

/// Where Kafka keeps transactions: the leader of it is their coordinator.
const TRANSACTIONS: &str = "__transaction_state";

fn commits(offshoot: &Offshoot) -> f64 {
    offshoot.metric("offshoot_commits_total").expect("it runs")
}

#[test]
fn brokers_of_three_that_die_under_load() {
    let cluster = kafka::cluster();
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, &cluster.all);
    let mut offshoot = walk.started();
    walk.commit(100);
    offshoot.wait("a commit", DEADLINE, |o| (commits(o) > 1.0).then_some(()));
    let topics = [TRANSACTIONS, &walk.topic.clone(), &format!("offshoot.{}.progress", db.name)];
    cluster.wait_in_sync(&topics);

    // One: the coordinator of our transactions moves, then the leader of what we write to.
    for topic in [TRANSACTIONS, topics[1]] {
        let dies = cluster.leader(topic);
        dies.kill();
        let (began, before) = (Instant::now(), commits(&offshoot));
        offshoot.wait("commits without it", DEADLINE, |o| (commits(o) >= before + 5.0).then_some(()));
        println!("the leader of {topic} was killed: commits again after {:.1?}", began.elapsed());
        walk.commit(50);
        dies.start();
        cluster.wait_in_sync(&topics);
    }
    assert_eq!(offshoot.metric("offshoot_restarts_total"), Some(0.0), "{}", offshoot.log().join("\n"));

    // Two: what is left may not take anything, since two replicas must have it.
    let pid = walk.slot("active_pid").expect("the slot is held");
    let dead: Vec<_> = cluster.others(cluster.leader(topics[1])).collect();
    dead.iter().for_each(|broker| broker.kill());
    offshoot.wait("what is in flight to fill up", DEADLINE, |o| {
        (o.metric("offshoot_in_flight_bytes")? > 0.5 * IN_FLIGHT_BYTES_MAX).then_some(())
    });
    let (confirmed, before) = (walk.confirmed(), commits(&offshoot));
    walk.commit(300);
    assert_eq!(
        (walk.confirmed(), commits(&offshoot)),
        (confirmed, before),
        "something was confirmed that one replica has"
    );
    assert!(offshoot.metric("offshoot_in_flight_bytes").expect("it runs") < IN_FLIGHT_BYTES_MAX);
    assert_eq!(walk.slot("active_pid"), Some(pid), "the walsender has gone");
    dead.iter().for_each(|broker| broker.start());
    let began = Instant::now();
    offshoot.wait("commits", DEADLINE, |o| (commits(o) > before).then_some(()));
    println!("two were killed: commits again {:.1?} after they are back", began.elapsed());
    walk.commit(50);
    walk.settle(offshoot, 0);
}
