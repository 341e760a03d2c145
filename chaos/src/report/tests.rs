use std::net::IpAddr;

use super::*;
use crate::checkers::judge;
use crate::trace::{
    Blunder, Bounds, FOREVER, Gap, Leader, LoadKind, MILLISECOND as MS, Note, Proof, Run, SECOND, Second,
    Sight, Totals, VipInfo, Watched,
};

/// Of the page, so that it can be attached to a bug.
const PAGE_MAX: usize = 500 << 10;

/// A run with `faults` faults, one every 12 s, and all that can be drawn.
fn made_up(faults: usize) -> Trace {
    let nodes: Vec<_> = (1..=3).map(|n| format!("n{n}")).collect();
    let length = (faults as u64 * 12 + 8) * SECOND;
    let address: IpAddr = [198, 18, 0, 100].into();
    let mut trace = Trace {
        run: Run {
            scenario: "kill-owner".into(),
            environment: "netns".into(),
            seed: 1_765_432_109,
            again: "trestle-chaos run kill-owner --env netns --seed 1765432109 --for 60s".into(),
            nodes: nodes.clone(),
            backends: vec!["b1".into(), "b2".into()],
            length,
            version: "trestle 0.1.0".into(),
            ..Run::default()
        },
        vips: vec![VipInfo { name: "front".into(), addresses: vec![address], ttl: SECOND, hold: false }],
        ..Trace::default()
    };
    let names = ["kill", "freeze-all", "cable-pull", "cut-from-nodes", "rolling-restart"];
    let mut owner = 0;
    let hold = |trace: &mut Trace, node: usize, at: Time, until: Time| {
        let sight = |at, present, open_until| Sight {
            since: at - MS,
            at,
            node: nodes[node].clone(),
            address,
            present,
            open_until,
            quiet_until: 0,
            gap: false,
        };
        trace.sights.extend([sight(at, true, FOREVER), sight(until, false, 0)]);
    };
    let mut since = 10 * MS;
    for number in 0..faults {
        let begun = (6 + number as u64 * 12) * SECOND;
        let name = names[number % names.len()];
        trace.faults.push(FaultRecord {
            number,
            name: name.into(),
            victims: vec![nodes[owner].clone()],
            begun,
            in_force: Some(begun + 12 * MS),
            healed: Some(begun + 4 * SECOND),
            whole: Some(begun + 5_500 * MS),
            proofs: vec![Proof {
                claim: format!("{} does not run", nodes[owner]),
                seen: "no process 4711".into(),
                holds: true,
            }],
            bounds: Bounds { outage: Some(1_600 * MS), heal: 20 * SECOND },
        });
        trace.leaders.push(Leader { at: begun + 300 * MS, node: None, term: number as u64 + 1 });
        let next = (owner + 1) % nodes.len();
        trace.leaders.push(Leader {
            at: begun + 900 * MS,
            node: Some(nodes[next].clone()),
            term: number as u64 + 2,
        });
        hold(&mut trace, owner, since, begun + 20 * MS);
        since = begun + 1_150 * MS;
        owner = next;
    }
    hold(&mut trace, owner, since, length);
    trace.leaders.insert(0, Leader { at: 0, node: Some("n1".into()), term: 1 });
    trace.watched = nodes
        .iter()
        .map(|node| Watched { node: node.clone(), from: 0, until: length, fresh: false })
        .collect();
    for (name, kind, rate) in
        [("probe", LoadKind::Probe, 200), ("kept", LoadKind::Http, 400), ("long", LoadKind::Stream, 80)]
    {
        let mut load = Load {
            name: name.into(),
            kind,
            target: "198.18.0.100:80".into(),
            rate: f64::from(rate),
            measures_outage: kind == LoadKind::Probe,
            until: length,
            complete: true,
            ..Load::default()
        };
        let rate = u64::from(rate as u32);
        for second in 0..length / SECOND {
            let wave = second * 2_654_435_761 % 97;
            load.seconds.push(Second {
                at: second * SECOND,
                ok: rate,
                p50: 300_000 + wave * 1_000,
                p99: 900_000 + wave * 9_000,
                max: 2_000_000 + wave * 90_000,
                ..Second::default()
            });
        }
        for fault in &trace.faults {
            let index = (fault.begun / SECOND) as usize;
            let failed = rate / 8;
            load.seconds[index].failed = failed;
            load.seconds[index].cut = u64::from(kind != LoadKind::Probe) * 6;
            load.seconds[index].ok = rate - failed;
            (load.seconds[index].p99, load.seconds[index].max) = (900 * MS, 1_140 * MS);
            load.gaps.push(Gap {
                from: fault.begun + 14 * MS,
                until: fault.begun + 1_160 * MS,
                failed,
                lag: 0,
            });
            load.failures
                .push(Blunder { at: fault.begun + 15 * MS, text: "connection reset by peer".into() });
        }
        let failed: u64 = load.seconds.iter().map(|s| s.failed).sum();
        let ok = load.seconds.iter().map(|s| s.ok).sum();
        load.total = Totals {
            due: ok + failed,
            ok,
            failed,
            wrong: 0,
            cut: load.seconds.iter().map(|s| s.cut).sum(),
            p50: 340_000,
            p99: 1_700_000,
            p999: 9_000_000,
            max: 1_140 * MS,
            lag: 2_100_000,
        };
        trace.loads.push(load);
    }
    trace.notes.push(Note { at: SECOND, text: "the cluster is whole, load begins".into() });
    trace
}

/// Tags are closed in order, attributes are quoted, and text holds no markup: what XML asks for.
fn well_formed(page: &str) -> Result<usize, String> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>\n").ok_or("no doctype")?;
    let (mut open, mut count) = (Vec::new(), 0);
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        if open.last() != Some(&"style") {
            for part in text.split('&').skip(1) {
                let entity = part.split(';').next().unwrap_or_default();
                if !["amp", "lt", "gt", "quot", "#39"].contains(&entity) {
                    return Err(format!("a bare & before {part:.20}"));
                }
            }
        }
        let end = rest[at..].find('>').ok_or("a tag that does not end")? + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        count += 1;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes another"));
            }
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        if attributes.matches('"').count() % 2 != 0 || attributes.contains('<') {
            return Err(format!("attributes {attributes}"));
        }
        if attributes.split('"').step_by(2).any(|part| !part.is_empty() && !part.ends_with('=')) {
            return Err(format!("an attribute without quotes: {attributes}"));
        }
        if !closed {
            open.push(name);
        }
    }
    if open.is_empty() { Ok(count) } else { Err(format!("open at the end: {open:?}")) }
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let trace = made_up(5);
    let page = html(&trace, &judge(&trace));
    assert!(well_formed(&page).unwrap() > 200);
    for outside in ["<script", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.contains(&trace.run.again), "the command to run it again");
    let verdicts = page.find("Verdicts").unwrap();
    assert!(verdicts < page.find("<svg").unwrap() && verdicts < page.find("<h2>Faults").unwrap());
}

/// Also a page to look at, where `TRESTLE_CHAOS_REPORT` names a file for it.
#[test]
fn two_owners_are_shown_where_they_were() {
    let mut trace = made_up(5);
    let mut twice = trace.sights.iter().find(|s| s.node == "n2" && s.present).unwrap().clone();
    (twice.node, twice.since, twice.at) = ("n3".into(), twice.since + 4 * SECOND, twice.at + 4 * SECOND);
    let (since, at) = (twice.since + SECOND, twice.at + SECOND);
    let gone = Sight { since, at, present: false, ..twice.clone() };
    trace.sights.extend([twice, gone]);
    trace.faults[1].proofs[0].holds = false;
    trace.loads[0].gaps[2].until += 2 * SECOND;
    trace.loads[1]
        .wrong
        .push(Blunder { at: 40 * SECOND, text: "GET /b1/chaos?n=7: answered by \"b2\"".into() });
    trace.loads[1].total.wrong = 1;
    trace.loads[1].seconds[40].wrong = 1;
    let page = html(&trace, &judge(&trace));
    well_formed(&page).unwrap();
    if let Some(file) = std::env::var_os("TRESTLE_CHAOS_REPORT") {
        std::fs::write(file, &page).unwrap();
    }
    let marks =
        page.matches("n2 and n3 both held front (198.18.0.100) from 11.150 s for 999 ms</title>").count();
    assert_eq!(marks, 2, "on the lanes of both");
}

#[test]
fn the_checker_of_form_can_fail() {
    for bad in ["<p>", "<p></b>", "<p class=a></p>", "<p>a & b</p>", "<p", "</p>"] {
        assert!(well_formed(&format!("<!DOCTYPE html>\n{bad}")).is_err(), "{bad}");
    }
}

#[test]
fn every_verdict_and_what_speaks_against_it_is_told() {
    let mut trace = made_up(2);
    trace.faults[0].bounds.outage = Some(100 * MS);
    let verdicts = judge(&trace);
    let page = html(&trace, &verdicts);
    for verdict in &verdicts {
        assert!(page.contains(&escape(&verdict.name)), "{}", verdict.name);
        assert!(page.contains(&escape(&verdict.text)), "{}", verdict.text);
    }
    assert!(page.contains("kill-owner <span class=\"badge fail big\">FAILED</span>"));
}

#[test]
fn a_run_of_hours_stays_small() {
    let trace = made_up(1_000);
    let page = html(&trace, &judge(&trace));
    well_formed(&page).unwrap();
    assert!(page.len() < PAGE_MAX, "{} KiB", page.len() >> 10);
}

#[test]
fn an_empty_run_and_hostile_text_make_a_page_too() {
    let trace = Trace::default();
    well_formed(&html(&trace, &judge(&trace))).unwrap();
    let mut trace = made_up(1);
    let hostile = "</title><script>alert(\"&\")</script>\u{1b}[31m".to_owned() + &"x".repeat(100_000);
    trace.run.scenario = hostile.clone();
    trace.run.nodes[0] = hostile.clone();
    trace.loads[0].failures[0].text = hostile.clone();
    trace.loads[0].name = hostile.clone();
    trace.faults[0].name = hostile.clone();
    trace.faults[0].proofs[0].seen = hostile.clone();
    trace.notes[0].text = hostile;
    let page = html(&trace, &judge(&trace));
    well_formed(&page).unwrap();
    assert!(!page.contains("<script") && !page.contains('\u{1b}') && page.len() < PAGE_MAX);
}

#[test]
fn the_json_holds_the_same() {
    let trace = made_up(2);
    let verdicts = judge(&trace);
    let value: serde_json::Value = serde_json::from_slice(&json(&trace, &verdicts).unwrap()).unwrap();
    assert_eq!(value["pass"], passes(&verdicts));
    assert_eq!(value["verdicts"].as_array().unwrap().len(), verdicts.len());
    let back: Trace = serde_json::from_value(value["trace"].clone()).unwrap();
    assert_eq!(back, trace);
}
