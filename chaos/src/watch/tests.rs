//! The kernel's own events and answers, in namespaces.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use trestle_netlink::clock;
use trestle_netlink::fence::{Fence, Ownership};
use trestle_netlink::testing::{Namespace, Segment, available};

use super::*;
use crate::checkers::{Judgement, Verdict, held, judge};
use crate::trace::{Asked, MILLISECOND as MS, Run, SECOND, Trace, VipInfo};

const VIP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 100);

const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, 0x100);

/// Two nodes and a client.
struct Scene {
    vip: IpAddr,
    segment: Segment,
    recorder: Recorder,
    watch: Watch,
}

impl Scene {
    fn new() -> Self {
        Self::of(VIP.into())
    }

    fn of(vip: IpAddr) -> Self {
        let segment = Segment::new(3);
        for host in &segment.hosts {
            host.sysctl("net.ipv4.conf.all.arp_ignore", "1");
        }
        let run = Run { nodes: vec!["n1".into(), "n2".into()], ..Run::default() };
        let info = VipInfo { name: "front".into(), addresses: vec![vip], ttl: SECOND, hold: false };
        let recorder = Recorder::new(run, vec![info]);
        let post = |index: usize| Post {
            node: format!("n{}", index + 1),
            namespace: segment.hosts[index].path(),
            fresh: false,
        };
        let watch = Watch::start(&recorder, &[vip], vec![post(0), post(1)]).unwrap();
        Self { vip, segment, recorder, watch }
    }

    fn node(&self, number: usize) -> &Namespace {
        &self.segment.hosts[number - 1]
    }

    fn fenced(&self, number: usize) -> Fence {
        self.node(number).enter(|| Fence::install(&["eth0"], &[self.vip], Ownership::Plain).unwrap())
    }

    fn add(&self, number: usize) {
        let tail = if self.vip.is_ipv6() { "/64 dev eth0 nodad" } else { "/24 dev eth0" };
        self.node(number).ip(&format!("address add {}{tail}", self.vip));
    }

    /// An address of the same subnet.
    fn beside(&self, last: u8) -> IpAddr {
        match self.vip {
            IpAddr::V4(_) => Ipv4Addr::new(198, 18, 0, last).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, last.into()).into(),
        }
    }

    /// How one asks who has it.
    fn who(&self) -> Asked {
        if self.vip.is_ipv6() { Asked::Nd } else { Asked::Arp }
    }

    fn asker(&self) -> Asker {
        let mac = |number| {
            let text = self.node(number).run("cat", "/sys/class/net/eth0/address");
            let bytes: Vec<_> = text.trim().split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
            (format!("n{number}"), bytes.try_into().unwrap())
        };
        let questions = Questions {
            namespace: self.node(3).path(),
            device: "eth0".into(),
            vip: self.vip,
            pool: (224..240).map(|last| self.beside(last)).collect(),
            nodes: vec![mac(1), mac(2)],
            port: Some(80),
        };
        Asker::start(&self.recorder, questions).unwrap()
    }

    fn end(self) -> Trace {
        self.watch.finish();
        self.recorder.finish()
    }
}

fn pass_time(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }
}

fn verdict(trace: &Trace, name: &str) -> Verdict {
    judge(trace).into_iter().find(|v| v.name == name).unwrap()
}

fn in_ms(ms: u64) -> u64 {
    clock::now() + ms * MS
}

#[test]
fn a_lease_is_seen_to_begin_to_be_renewed_and_to_end_by_itself() {
    if !available(&[]) {
        return;
    }
    let scene = Scene::new();
    let mut fence = scene.fenced(1);
    scene.add(1);
    let opened = scene.recorder.now();
    fence.open(VIP.into(), in_ms(2_000)).unwrap();
    pass_time(Duration::from_millis(500));
    let end = in_ms(2_000);
    fence.open(VIP.into(), end).unwrap();
    let end = scene.recorder.since(end);
    pass_time(Duration::from_millis(2_700));
    // The other takes it over long after the end; nobody ever told that end.
    let mut other = scene.fenced(2);
    scene.add(2);
    other.open(VIP.into(), in_ms(10_000)).unwrap();
    pass_time(Duration::from_millis(50));
    let trace = scene.end();
    let all = held(&trace, &trace.vips[0]);
    let n1 = all.iter().find(|h| h.node == "n1").unwrap();
    let [(from, until)] = n1.sure[..] else { panic!("one span: {n1:?}\n{:#?}", trace.sights) };
    assert!(from >= opened && from < opened + 1_000 * MS, "{from} {opened}");
    // The first lease's own end was half a second earlier.
    assert!(until <= end && until > end - 400 * MS, "{until} {end}");
    let verdict = verdict(&trace, "one VIP owner");
    assert_eq!(verdict.judgement, Judgement::Pass, "{verdict:#?}");
}

#[test]
fn two_owners_are_seen_by_events_and_by_clients() {
    if !available(&[]) {
        return;
    }
    for vip in [IpAddr::from(VIP), VIP6.into()] {
        let scene = Scene::of(vip);
        let (who, asker) = (scene.who(), scene.asker());
        scene.add(1);
        pass_time(Duration::from_millis(1_000));
        scene.add(2);
        pass_time(Duration::from_millis(1_500));
        asker.finish();
        let trace = scene.end();
        for name in ["one VIP owner", "one VIP owner, as clients see it"] {
            let verdict = verdict(&trace, name);
            assert_eq!(verdict.judgement, Judgement::Fail, "{verdict:#?}");
            assert!(verdict.text.contains("n1") && verdict.text.contains("n2"), "{}", verdict.text);
        }
        let both = |asked| trace.answers.iter().any(|a| a.asked == asked && a.by == ["n1", "n2"]);
        assert!(both(who) && both(Asked::Syn), "{:#?}", trace.answers);
    }
}

#[test]
fn one_owner_after_the_other_passes_and_a_fence_keeps_the_other_silent() {
    if !available(&[]) {
        return;
    }
    for vip in [IpAddr::from(VIP), VIP6.into()] {
        let scene = Scene::of(vip);
        let (mut one, mut two) = (scene.fenced(1), scene.fenced(2));
        // Both have the address all the time: only the fences tell them apart.
        scene.add(1);
        scene.add(2);
        let (who, asker) = (scene.who(), scene.asker());
        one.open(vip, in_ms(1_500)).unwrap();
        pass_time(Duration::from_millis(2_000));
        two.open(vip, in_ms(20_000)).unwrap();
        pass_time(Duration::from_millis(1_500));
        asker.finish();
        let trace = scene.end();
        for name in ["one VIP owner", "one VIP owner, as clients see it"] {
            let verdict = verdict(&trace, name);
            assert_eq!(verdict.judgement, Judgement::Pass, "{verdict:#?}\n{:#?}", trace.answers);
        }
        let by = |asked, name: &str| trace.answers.iter().any(|a| a.asked == asked && a.by == [name]);
        for asked in [who, Asked::Syn] {
            assert!(by(asked, "n1") && by(asked, "n2"), "{:#?}", trace.answers);
        }
    }
}

#[test]
fn a_flushed_fence_is_seen_as_none() {
    if !available(&["nft"]) {
        return;
    }
    let scene = Scene::new();
    let _fence = scene.fenced(1);
    scene.add(1);
    pass_time(Duration::from_millis(50));
    scene.node(1).run("nft", "flush ruleset");
    pass_time(Duration::from_millis(50));
    scene.add(2);
    pass_time(Duration::from_millis(50));
    let trace = scene.end();
    assert_eq!(verdict(&trace, "one VIP owner").judgement, Judgement::Fail, "{:#?}", trace.sights);
}

/// A node is started again, in another namespace.
fn started_again(running: bool, owned_before: bool) -> Judgement {
    let scene = Scene::new();
    let mut fence = scene.fenced(2);
    scene.add(2);
    fence.open(VIP.into(), in_ms(10_000)).unwrap();
    if owned_before {
        // It dies without an end of its ownership that anybody could see.
        scene.node(2).ip("link set eth0 down");
    } else {
        fence.close(VIP.into()).unwrap();
    }
    pass_time(Duration::from_millis(50));
    let anew = Namespace::new("anew");
    let sleep = ["netns", "exec", anew.name(), "sleep", "60"];
    let mut program = running.then(|| std::process::Command::new("ip").args(sleep).spawn().unwrap());
    if running {
        let is_there = || !unused(&anew.path()).unwrap();
        crate::place::eventually(Duration::from_secs(5), "it runs", || {
            anyhow::ensure!(is_there(), "no");
            Ok(())
        })
        .unwrap();
    }
    scene.watch.add(Post { node: "n2".into(), namespace: anew.path(), fresh: true });
    pass_time(Duration::from_secs(1));
    if let Some(program) = &mut program {
        program.kill().unwrap();
        program.wait().unwrap();
    }
    let verdict = verdict(&scene.end(), "one VIP owner");
    assert_ne!(verdict.judgement, Judgement::Fail, "{verdict:?}");
    assert!(verdict.judgement == Judgement::Pass || verdict.text.contains("events of n2 were lost"));
    verdict.judgement
}

#[test]
fn a_new_namespace_counts_as_watched_only_from_before_anything_ran_in_it() {
    if !available(&[]) {
        return;
    }
    assert_eq!(started_again(false, false), Judgement::Pass);
    assert_eq!(started_again(true, false), Judgement::Unknown);
    assert_eq!(started_again(false, true), Judgement::Unknown);
}
