//! Look-ups by a real server, and the task that asks.

use std::collections::BTreeMap;
use std::path::Path;

use trestle_config::model::{NamedMember, Pool};
use trestle_tests::DnsServer;
use trestle_tests::dns::{Answer, Record};

use super::table::{Addresses, Part};
use super::*;

fn host(name: &str) -> Question {
    Question::Host(name.into())
}

fn resolver(dns: &DnsServer) -> Resolver {
    Resolver::with_files(Some(dns.address), Path::new("/nowhere"), Path::new("/nowhere"))
}

/// Addresses of each host, or what else was heard.
async fn found(resolver: &Resolver, question: Question) -> String {
    match resolver.ask(question).await {
        Heard::Answer(answer) => {
            let part = |part: &Part| match part {
                Part::Found(ips) => {
                    let mut ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
                    ips.sort();
                    ips.join(" ")
                }
                Part::Failed(_) => "failed".to_owned(),
            };
            let hosts = answer.hosts.iter();
            let hosts =
                hosts.map(|(host, Addresses { v4, v6 })| format!("{host}: {}, {}", part(v4), part(v6)));
            format!("{} ({:?})", hosts.collect::<Vec<_>>().join("; "), answer.ttl)
        }
        Heard::Nothing => "nothing".to_owned(),
        Heard::Failed(why) => format!("failed: {why}"),
    }
}

fn ip(text: &str) -> Record {
    Record::Ip(text.parse().unwrap())
}

#[tokio::test]
async fn addresses_of_both_kinds_are_found_with_the_shortest_ttl() {
    let dns = DnsServer::start();
    dns.set("app.test", Answer::Records(vec![ip("192.0.2.2"), ip("2001:db8::1"), ip("192.0.2.1")], 17));
    dns.set("alias.test", Answer::Records(vec![Record::Alias("app.test".into())], 9));
    let resolver = resolver(&dns);
    assert_eq!(found(&resolver, host("app.test")).await, "app.test: 192.0.2.1 192.0.2.2, 2001:db8::1 (17s)");
    assert_eq!(
        found(&resolver, host("alias.test.")).await,
        "alias.test: 192.0.2.1 192.0.2.2, 2001:db8::1 (9s)"
    );
    assert_eq!(found(&resolver, host("a.localhost")).await, "a.localhost: 127.0.0.1, ::1 (5s)");
}

#[tokio::test]
async fn nothing_is_not_a_failure() {
    let dns = DnsServer::start();
    dns.set("empty.test", Answer::Records(vec![], 5));
    dns.set("broken.test", Answer::Failure);
    dns.set("half.test", Answer::FailureOfV6(vec![ip("192.0.2.1")], 5));
    let resolver = resolver(&dns);
    assert_eq!(found(&resolver, host("empty.test")).await, "nothing");
    assert_eq!(found(&resolver, host("unknown.test")).await, "nothing");
    let broken = found(&resolver, host("broken.test")).await;
    assert!(broken.starts_with("failed: "), "{broken}");
    assert_eq!(found(&resolver, host("half.test")).await, "half.test: 192.0.2.1, failed (5s)");
    for name in ["empty.test", "unknown.test", "broken.test"] {
        let srv = found(&resolver, Question::Srv(name.into())).await;
        assert_eq!(srv.starts_with("failed: "), name == "broken.test", "{name}: {srv}");
    }
}

#[tokio::test]
async fn srv_names_lead_to_the_addresses_of_their_hosts() {
    let dns = DnsServer::start();
    let srv = |priority, target: &str| Record::Srv { priority, weight: 7, port: 8080, target: target.into() };
    let records = vec![srv(2, "b.test"), srv(1, "A.test"), srv(1, "gone.test"), srv(1, "broken.test")];
    dns.set("_http._tcp.app.test", Answer::Records(records, 60));
    dns.set("none.test", Answer::Records(vec![srv(0, ".")], 60));
    dns.set("a.test", Answer::Records(vec![ip("192.0.2.1")], 30));
    dns.set("b.test", Answer::Records(vec![ip("2001:db8::2")], 40));
    dns.set("broken.test", Answer::Failure);
    let resolver = resolver(&dns);
    let name = Question::Srv("_http._tcp.app.test".into());
    assert_eq!(
        found(&resolver, name.clone()).await,
        "a.test: 192.0.2.1, ; b.test: , 2001:db8::2; broken.test: failed, failed (30s)"
    );
    let Heard::Answer(answer) = resolver.ask(name).await else { panic!("an answer") };
    let first = &answer.services[0];
    assert_eq!((&*first.host, first.port, first.weight, first.priority), ("a.test", 8080, 7, 1));
    let Heard::Answer(none) = resolver.ask(Question::Srv("none.test".into())).await else {
        panic!("an answer")
    };
    assert!(none.services.is_empty());
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_the_resolver_file_is_read_when_it_changes() {
    let dns = DnsServer::start();
    dns.set("app.test", Answer::Records(vec![ip("192.0.2.1"), ip("2001:db8::1")], 60));
    let dir = tempfile::tempdir().unwrap();
    let (resolv_conf, hosts) = (dir.path().join("resolv.conf"), dir.path().join("hosts"));
    let resolver = Resolver::with_files(None, &resolv_conf, &hosts);
    let missing = found(&resolver, host("app.test")).await;
    assert!(missing.contains("resolv.conf: No such file") && missing.contains("--resolver"), "{missing}");
    std::fs::write(&resolv_conf, "# nobody\n").unwrap();
    let nobody = found(&resolver, host("app.test")).await;
    assert!(nobody.contains("it names no server"), "{nobody}");
    std::fs::write(&hosts, "192.0.2.9 app.test\n").unwrap();
    assert_eq!(
        found(&resolver, host("App.test".to_lowercase().as_str())).await,
        "app.test: 192.0.2.9,  (5s)"
    );

    let resolver = Resolver::with_files(Some(dns.address), &resolv_conf, &hosts);
    assert_eq!(found(&resolver, host("app.test.")).await, "app.test: 192.0.2.9,  (5s)");
    std::fs::remove_file(&hosts).unwrap();
    assert_eq!(found(&resolver, host("app.test")).await, "app.test: 192.0.2.1, 2001:db8::1 (60s)");
}

/// A pool `p` with these names.
fn config(names: &[&str]) -> Config {
    let member = |name: &&str| NamedMember::new(DnsName::Host { host: (*name).to_owned(), port: 80 });
    let pool = Pool { named: names.iter().map(member).collect(), ..Pool::default() };
    Config { pools: BTreeMap::from([("p".to_owned(), pool)]), ..Config::default() }
}

#[tokio::test]
async fn names_are_asked_for_while_they_are_wanted() {
    let dns = DnsServer::start();
    dns.set_ips("app.test", &["192.0.2.1"]);
    dns.set("silent.test", Answer::Silence);
    let stop = CancellationToken::new();
    let (names, task) = Names::asking(Arc::new(resolver(&dns)), stop.clone());
    let task = tokio::spawn(task);

    let began = Instant::now();
    names.want(&config(&["app.test", "silent.test"])).await;
    assert!(began.elapsed() >= FIRST_ANSWER, "it waits for the one that is silent, but not for long");
    assert!(began.elapsed() < FIRST_ANSWER * 8);
    let mut answers = names.answers();
    let ips = |answers: &Answers| {
        answers
            .get(&host("app.test"))
            .map(|targets| targets.iter().map(|t| t.ip.to_string()).collect::<Vec<_>>())
    };
    let first = answers.wait_for(|answers| ips(answers) == Some(vec!["192.0.2.1".to_owned()]));
    drop(timeout(Duration::from_secs(10), first).await.expect("in time").expect("it asks"));
    assert!(!answers.borrow().contains_key(&host("silent.test")));

    dns.set_ips("app.test", &["192.0.2.2"]);
    let changed = answers.wait_for(|answers| ips(answers) == Some(vec!["192.0.2.2".to_owned()]));
    drop(timeout(Duration::from_secs(10), changed).await.expect("in time").expect("it asks"));
    let mut text = String::new();
    names.render_metrics(&mut text);
    assert!(text.contains("trestle_dns_addresses{name=\"app.test\"} 1\n"), "{text}");
    assert!(text.contains("trestle_dns_changes_total 2\n"), "{text}");

    names.want(&config(&[])).await;
    drop(
        timeout(Duration::from_secs(10), answers.wait_for(|answers| answers.is_empty()))
            .await
            .expect("in time"),
    );
    let asked = dns.asked("app.test");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(dns.asked("app.test"), asked, "nobody wants to know");
    stop.cancel();
    timeout(Duration::from_secs(10), task).await.expect("in time").expect("it ended");
}
