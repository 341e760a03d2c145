//! Each rule of the core, against a kernel that does as it is told and can be told to fail.

use std::collections::HashMap;

use super::{vip::seconds_left, *};

const MS: u64 = 1_000_000;
const TTL: u64 = 1000 * MS;
const STRANGER: Mac = [9; 6];

struct World {
    core: Core,
    now: u64,
    /// What the kernel refuses, by the first word of its line in the log.
    fail: HashMap<&'static str, Refused>,
    log: Vec<String>,
    exited: bool,
}

fn link(index: u32, name: &str) -> Link {
    Link { index, name: name.to_owned(), mac: Some([2, 0, 0, 0, 0, index as u8]), up: true, running: true }
}

fn address(link: u32, address: &str) -> Address {
    Address { link, address: address.parse().unwrap(), prefix: 24, by: AddedBy::Machine }
}

fn picture() -> Picture {
    Picture {
        links: vec![link(2, "eth0"), link(3, "eth1")],
        addresses: vec![address(2, "198.18.0.1"), address(3, "198.18.1.1")],
    }
}

fn spec(name: &str, address: &str) -> VipSpec {
    VipSpec {
        name: name.to_owned(),
        addresses: vec![(address.parse().unwrap(), 24)],
        interface: None,
        ttl: TTL,
    }
}

fn front() -> VipSpec {
    spec("front", "198.18.0.100")
}

fn back() -> VipSpec {
    spec("back", "198.18.1.100")
}

impl World {
    fn bare() -> Self {
        Self {
            core: Core::new(Settings::default(), [7; 16], vec!["weak".to_owned()], None),
            now: 1_000_000 * MS,
            fail: HashMap::new(),
            log: Vec::new(),
            exited: false,
        }
    }

    /// With `front` and `back` configured, and the log cleared.
    fn new() -> Self {
        let mut world = Self::bare();
        world.configure(vec![front(), back()]);
        world.log.clear();
        world
    }

    fn configure(&mut self, vips: Vec<VipSpec>) {
        self.event(Event::Picture(picture()));
        self.say(ToGuard::Configure { vips });
    }

    fn event(&mut self, event: Event) {
        self.carry(Event::Time);
        self.carry(event);
    }

    fn carry(&mut self, event: Event) {
        let mut effects = Effects::new();
        self.core.handle(event, self.now, &mut effects);
        while let Some(effect) = effects.pop_front() {
            for done in self.carry_out(effect) {
                self.core.handle(Event::Done(done), self.now, &mut effects);
            }
        }
    }

    fn result(&self, what: &str) -> Result<(), String> {
        match self.fail.get(what) {
            Some(Refused::Failed(why)) => Err(why.clone()),
            _ => Ok(()),
        }
    }

    fn refusal(&self, what: &str) -> Result<(), Refused> {
        self.fail.get(what).map_or(Ok(()), |refused| Err(refused.clone()))
    }

    fn carry_out(&mut self, effect: Effect) -> Vec<Done> {
        let now = self.now;
        let left = |deadline: u64| deadline.saturating_sub(now) / MS;
        let (line, done) = match effect {
            Effect::Send(message) => (say(&message), vec![]),
            Effect::Sweep { configured, keep } => {
                let swept = if self.fail.contains_key("sweep") { configured.clone() } else { vec![] };
                (format!("sweep {configured:?} keep {keep:?}"), vec![Done::Swept(swept)])
            }
            Effect::Attend(links) => {
                let weak = self.result("attend").err().into_iter().collect();
                (format!("attend {}", names(&links)), vec![Done::Attended(weak)])
            }
            Effect::Fence { links, addresses } => {
                (format!("fence {} {addresses:?}", names(&links)), vec![Done::Fenced(self.result("fence"))])
            }
            Effect::Add { vip, place, seconds } => {
                (format!("add {} {seconds}s", place.vip), vec![Done::Added(vip, self.result("add"))])
            }
            Effect::Open { vip, place, deadline } => (
                format!("open {} {}", place.vip, left(deadline)),
                vec![Done::Opened(vip, self.refusal("open"))],
            ),
            Effect::Quiet { vip, place, until } => (
                format!("quiet {} {}", place.vip, left(until)),
                vec![Done::Quieted(vip, self.refusal("quiet"))],
            ),
            Effect::Shut(vips) => {
                let names: Vec<_> = vips.iter().map(|(_, place)| place.vip.as_str()).collect();
                let done = vips.iter().map(|(vip, _)| Done::Shut(*vip, self.result("shut"))).collect();
                (format!("shut {}", names.join("+")), done)
            }
            Effect::Remove { vip, place } => {
                (format!("remove {}", place.vip), vec![Done::Removed(vip, self.result("remove"))])
            }
            Effect::Announce(place) => (format!("announce {}", place.vip), vec![]),
            Effect::Probe(place) => (format!("probe {}", place.vip), vec![]),
            Effect::Chance { vip, place, old, except: _, until } => (
                format!("chance {} {old:?} {}", place.vip, left(until)),
                vec![Done::Chance(vip, self.result("chance"))],
            ),
            Effect::EndChance(place) => (format!("endchance {}", place.vip), vec![]),
            Effect::Notices => (format!("notices {}", self.core.notices().len()), vec![]),
            Effect::Dismantle => ("dismantle".to_owned(), vec![]),
            Effect::Exit => {
                self.exited = true;
                ("exit".to_owned(), vec![])
            }
        };
        self.log.push(line);
        done
    }

    fn say(&mut self, message: ToGuard) {
        self.event(Event::FromNode(message));
    }

    /// A grant that was sent just now and ends in `ms`.
    fn grant(&mut self, vip: &str, epoch: u64, ms: u64) {
        let (sent, deadline) = (self.now, self.now + ms * MS);
        self.say(ToGuard::Grant { vip: vip.to_owned(), epoch, sent, deadline, probe: false });
    }

    fn grant_sent_at(&mut self, vip: &str, epoch: u64, sent: u64, deadline: u64) {
        self.say(ToGuard::Grant { vip: vip.to_owned(), epoch, sent, deadline, probe: false });
    }

    fn release(&mut self, vip: &str) {
        self.say(ToGuard::Release { vip: vip.to_owned() });
    }

    fn silence(&mut self, vip: &str, ms: u64) {
        let until = self.now + ms * MS;
        self.say(ToGuard::Silence { vip: vip.to_owned(), until });
    }

    /// Time passes as the shell lets it: the core is woken when it asked to be.
    fn pass(&mut self, ms: u64) {
        let end = self.now + ms * MS;
        let mut wakes = 0;
        while let Some(wake) = self.core.next_wake().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.event(Event::Time);
            wakes += 1;
            assert!(wakes < 10_000, "it is woken and does nothing");
        }
        self.now = end;
        self.event(Event::Time);
    }

    /// The process stood still: nothing woke it.
    fn freeze(&mut self, ms: u64) {
        self.now += ms * MS;
    }

    /// What links and addresses are there, with those of the VIPs that are held.
    fn see(&mut self, change: impl FnOnce(&mut Picture)) {
        let mut picture = picture();
        for vip in &self.core.vips {
            if let Some(place) = vip.standing() {
                let there = |ip| Address { link: place.link, address: ip, prefix: 24, by: AddedBy::Guard };
                picture.addresses.extend(place.ips().map(there));
            }
        }
        change(&mut picture);
        self.event(Event::Picture(picture));
    }

    fn hear(&mut self, address: &str, mac: Mac) {
        self.event(Event::Heard { link: 2, address: address.parse().unwrap(), mac });
    }

    /// The log since the last look is this.
    #[track_caller]
    fn did(&mut self, expected: &[&str]) {
        let log = std::mem::take(&mut self.log);
        assert_eq!(log, expected);
    }

    /// Lines of the log since the last look that begin so.
    fn count(&self, start: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with(start)).count()
    }
}

fn names(links: &[(u32, String)]) -> String {
    links.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join("+")
}

fn say(message: &FromGuard) -> String {
    match message {
        FromGuard::Started { unprotected, weak, swept, .. } => {
            format!("> started {unprotected:?} {weak:?} {swept:?}")
        }
        FromGuard::Usable { vip, interface, via, fenced, problem } => {
            let interface = interface.as_deref().unwrap_or("-");
            format!(
                "> usable {vip} {interface} {via:?} fenced={fenced} {}",
                problem.as_deref().unwrap_or("ok")
            )
        }
        FromGuard::Holding { vip, epoch } => format!("> holding {vip} {epoch}"),
        FromGuard::Heard { vip } => format!("> heard {vip}"),
        FromGuard::Released { vip, epoch, why } => format!("> released {vip} {epoch} {why:?}"),
        FromGuard::Silent { vip } => format!("> silent {vip}"),
        FromGuard::ChanceReady { vip } => format!("> chance {vip}"),
        FromGuard::Stranger { vip, address, .. } => format!("> stranger {vip} {address}"),
        FromGuard::Probed { vip, taken_by } => format!("> probed {vip} {}", taken_by.is_some()),
        FromGuard::Problem { vip, text } => format!("> problem {} {text}", vip.as_deref().unwrap_or("-")),
    }
}

const TAKE: [&str; 4] = ["add front 1s", "open front 1000", "announce front", "> holding front 7"];
const TAKE_9: [&str; 4] = ["add front 1s", "open front 1000", "announce front", "> holding front 9"];
const ENDED: [&str; 3] = ["shut front", "remove front", "> released front 7 Ended"];

fn holding() -> World {
    let mut world = World::new();
    world.grant("front", 7, 1000);
    world.did(&TAKE);
    world
}

#[test]
fn at_the_start_it_sweeps_then_fences_then_says_so() {
    let mut world = World::bare();
    world.fail.insert("sweep", Refused::Late);
    world.configure(vec![front(), spec("lost", "198.51.100.1")]);
    world.did(&[
        "sweep [198.18.0.100, 198.51.100.1] keep []",
        "attend eth0",
        "fence eth0 [198.18.0.100, 198.51.100.1]",
        "> started [\"weak\"] [] [198.18.0.100, 198.51.100.1]",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
        "> usable lost - [] fenced=true no interface has an address whose subnet holds 198.51.100.1/24: \
         name one with `interface`",
    ]);
}

#[test]
fn what_the_interface_can_not_give_is_in_started() {
    let mut world = World::bare();
    world.fail.insert("attend", Refused::Failed("no arp_announce".to_owned()));
    world.configure(vec![front()]);
    assert_eq!(world.log[3], "> started [\"weak\"] [\"no arp_announce\"] []");
}

#[test]
fn a_grant_adds_then_opens_then_announces_then_tells() {
    holding();
}

#[test]
fn nothing_is_opened_that_could_not_be_added_and_nothing_told_that_could_not_be_opened() {
    let failed = || Refused::Failed("no".to_owned());
    let not_added = ["add front 1s", "shut front", "remove front", "> released front 7 Failed(\"no\")"];
    let not_opened = [
        "add front 1s",
        "open front 1000",
        "shut front",
        "remove front",
        "> released front 7 Failed(\"no\")",
    ];
    let late = ["add front 1s", "open front 1000", "shut front", "remove front", "> released front 7 Ended"];
    for (what, refused, expected) in
        [("add", failed(), &not_added[..]), ("open", failed(), &not_opened), ("open", Refused::Late, &late)]
    {
        let mut world = World::new();
        world.fail.insert(what, refused);
        world.grant("front", 7, 1000);
        world.did(expected);
    }
}

#[test]
fn at_its_deadline_it_is_shut_then_removed_then_told() {
    let mut world = holding();
    world.pass(999);
    assert_eq!(world.count("shut"), 0);
    world.log.clear();
    world.pass(1);
    world.did(&ENDED);
}

#[test]
fn a_renewal_extends_address_and_fence_and_is_answered() {
    let mut world = holding();
    world.pass(90);
    world.grant("front", 7, 1200);
    world.did(&["add front 2s", "open front 1200", "> holding front 7"]);
}

#[test]
fn an_extension_that_fails_lets_go() {
    for what in ["add", "open"] {
        let mut world = holding();
        world.fail.insert(what, Refused::Failed("no".to_owned()));
        world.pass(10);
        world.grant("front", 7, 1200);
        assert_eq!(world.count("> released front 7 Failed(\"no\")"), 1, "{what}: {:?}", world.log);
    }
}

#[test]
fn each_grant_is_answered_since_a_guard_that_is_silent_is_ended() {
    let answers = |world: &World| world.log.iter().filter(|line| line.starts_with("> ")).count();
    // While it is held, free, given up, shut by a stranger; too late, too old, and of a lease that became shorter.
    let mut held = holding();
    let mut shut = holding();
    shut.hear("198.18.0.100", STRANGER);
    let mut given_up = holding();
    given_up.release("front");
    for world in [&mut held, &mut shut, &mut given_up, &mut World::new()] {
        for (epoch, sent, deadline) in [(7, 0, 1), (7, 5, 300), (6, 5, 1000), (7, 5, 1000)] {
            world.log.clear();
            let (sent, deadline) = (world.now.saturating_sub(sent * MS), world.now + deadline * MS);
            world.pass(1);
            world.grant_sent_at("front", epoch, sent, deadline);
            assert!(answers(world) >= 1, "{epoch} {sent} {deadline}: {:?}", world.log);
        }
    }
}

#[test]
fn what_the_machine_has_for_its_own_is_neither_fenced_nor_taken() {
    let mut world = World::bare();
    let mut own = picture();
    own.addresses.push(address(2, "198.18.0.100"));
    world.event(Event::Picture(own));
    world.say(ToGuard::Configure { vips: vec![front(), back()] });
    assert_eq!(world.count("fence eth1 [198.18.1.100]"), 1, "{:?}", world.log);
    assert!(
        world.log.iter().any(|line| line.starts_with("> usable front eth0") && line.contains("own address"))
    );
    world.log.clear();
    world.grant("front", 7, 1000);
    assert_eq!(world.count("add"), 0, "{:?}", world.log);
    world.log.clear();
    // Taken off there, it is a VIP like others.
    world.see(|_| {});
    world.did(&[
        "attend eth0+eth1",
        "fence eth0+eth1 [198.18.0.100, 198.18.1.100]",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
    ]);
    // One that appears when the VIP is configured already is kept shut by the fence, and said.
    world.see(|picture| picture.addresses.push(address(2, "198.18.0.100")));
    assert_eq!(world.log.len(), 1, "{:?}", world.log);
    assert!(world.log[0].contains("own address"));
}

#[test]
fn a_deadline_moves_only_forward_within_an_epoch() {
    let mut world = holding();
    world.grant("front", 7, 300);
    world.did(&["> heard front"]);
    world.pass(400);
    assert_eq!(world.count("shut"), 0);
}

#[test]
fn a_higher_epoch_is_a_new_lease_with_its_own_deadline_and_announced() {
    let mut world = holding();
    world.grant("front", 8, 300);
    world.did(&["add front 1s", "open front 300", "announce front", "> holding front 8"]);
    world.pass(300);
    assert_eq!(world.count("> released front 8 Ended"), 1);
}

#[test]
fn a_lower_epoch_and_a_deadline_that_has_passed_do_nothing() {
    let mut world = holding();
    world.grant("front", 6, 5000);
    world.did(&["> heard front"]);
    world.pass(1000);
    world.log.clear();
    let now = world.now;
    world.grant_sent_at("front", 9, now, now);
    world.grant("front", 6, 1000);
    world.did(&["> heard front", "> heard front"]);
}

#[test]
fn thawed_after_the_deadline_it_lets_go_before_it_hears_anything() {
    let mut world = holding();
    let (sent, deadline) = (world.now + 200 * MS, world.now + 1200 * MS);
    world.freeze(1300);
    // Renewals that waited in the socket.
    world.grant_sent_at("front", 7, sent, deadline);
    world.did(&[&ENDED[..], &["> heard front"]].concat());
}

#[test]
fn an_epoch_that_it_let_go_of_is_never_taken_again() {
    for (what, end) in [
        ("thawed after the deadline", (|world| world.freeze(1300)) as fn(&mut World)),
        ("released", |world| world.release("front")),
        ("the fence was lost", |world| world.event(Event::FenceLost("flushed".to_owned()))),
        ("the carrier was lost", |world| {
            world.see(|picture| picture.links[0].running = false);
            world.see(|_| {});
        }),
        ("silent", |world| world.silence("front", 60_000)),
        ("other addresses", |world| {
            world.say(ToGuard::Configure { vips: vec![spec("front", "198.18.0.101")] });
        }),
        ("out of the config and back", |world| {
            world.say(ToGuard::Configure { vips: vec![] });
            world.say(ToGuard::Configure { vips: vec![front()] });
        }),
    ] {
        let mut world = holding();
        end(&mut world);
        world.pass(1);
        world.log.clear();
        // A renewal that was sent later: the node may not have heard of the end when it asked, and the
        // leader not when it granted.
        world.grant("front", 7, 1000);
        world.did(&["> heard front"]);
        world.grant("front", 9, 1000);
        assert_eq!(world.log, TAKE_9, "{what}");
    }
}

#[test]
fn announced_at_once_and_three_times_more_and_then_slowly() {
    let mut world = World::new();
    let mut at = Vec::new();
    let start = world.now;
    for step in 0..=95_000 / 50 {
        world.now = start + step * 50 * MS;
        world.log.clear();
        world.grant("front", 7, 10_000);
        world.event(Event::Time);
        at.extend(std::iter::repeat_n(step * 50, world.count("announce")));
    }
    assert_eq!(at, [0, 100, 500, 2000, 32_000, 62_000, 92_000]);
}

#[test]
fn after_a_gap_in_the_lease_it_is_announced_again() {
    let mut world = holding();
    world.pass(1000);
    world.log.clear();
    world.pass(1);
    world.grant("front", 9, 1000);
    world.did(&TAKE_9);
}

#[test]
fn a_release_shuts_then_removes_and_is_answered_also_when_nothing_is_held() {
    let mut world = holding();
    world.release("front");
    world.did(&["shut front", "remove front", "> released front 7 Asked"]);
    world.release("front");
    world.did(&["> released front 7 Asked"]);
}

#[test]
fn a_removal_that_fails_is_told_and_tried_again() {
    let mut world = holding();
    world.fail.insert("remove", Refused::Failed("busy".to_owned()));
    world.release("front");
    world.did(&["shut front", "remove front", "> problem front it can't be removed: busy"]);
    world.grant("front", 8, 1000);
    world.did(&[]);
    world.pass(50);
    assert_eq!(world.count("remove front"), 1);
    world.fail.clear();
    world.log.clear();
    world.pass(50);
    world.did(&["remove front", "> released front 8 Asked"]);
}

#[test]
fn a_stranger_shuts_the_fence_until_a_renewal_that_was_sent_later() {
    let mut world = holding();
    world.pass(10);
    world.hear("198.18.0.100", STRANGER);
    world.did(&["shut front", "> stranger front 198.18.0.100"]);
    let (seen, deadline) = (world.now, world.now + TTL);
    world.pass(90);
    world.grant_sent_at("front", 7, seen, deadline);
    // It stays shut, and is not announced; the address lives on.
    world.did(&["add front 1s", "> heard front"]);
    world.grant("front", 7, 1000);
    world.did(&TAKE);
}

#[test]
fn a_stranger_and_no_renewal_end_with_the_lease() {
    let mut world = holding();
    world.hear("198.18.0.100", STRANGER);
    world.log.clear();
    world.pass(1000);
    world.did(&ENDED);
}

#[test]
fn a_stranger_is_heeded_once_a_ttl() {
    let mut world = holding();
    world.hear("198.18.0.100", STRANGER);
    world.pass(1);
    world.grant("front", 7, 5000);
    world.log.clear();
    world.hear("198.18.0.100", STRANGER);
    world.pass(998);
    world.hear("198.18.0.100", STRANGER);
    assert_eq!(world.count("shut"), 0);
    world.pass(1);
    world.hear("198.18.0.100", STRANGER);
    assert_eq!(world.count("shut"), 1);
}

#[test]
fn a_stranger_that_goes_on_does_not_put_the_reopening_off() {
    let mut world = holding();
    world.grant("front", 7, 9000);
    world.hear("198.18.0.100", STRANGER);
    world.pass(500);
    let (sent, deadline) = (world.now, world.now + 9000 * MS);
    world.pass(1000);
    world.hear("198.18.0.100", STRANGER);
    world.log.clear();
    world.grant_sent_at("front", 7, sent, deadline);
    assert_eq!(world.count("> holding front 7"), 1);
}

#[test]
fn own_interfaces_other_addresses_other_links_and_quiet_vips_have_no_strangers() {
    let mut world = holding();
    world.hear("198.18.0.100", [2, 0, 0, 0, 0, 3]);
    world.hear("198.18.0.101", STRANGER);
    world.event(Event::Heard { link: 3, address: "198.18.0.100".parse().unwrap(), mac: STRANGER });
    world.did(&[]);
    world.silence("front", 1000);
    world.log.clear();
    world.hear("198.18.0.100", STRANGER);
    world.did(&[]);
}

#[test]
fn a_fence_that_can_not_be_shut_lets_go() {
    let mut world = holding();
    world.fail.insert("shut", Refused::Failed("no".to_owned()));
    world.hear("198.18.0.100", STRANGER);
    assert_eq!(world.count("remove front"), 1);
    assert_eq!(world.count("> released front 7 Failed"), 1);
}

#[test]
fn a_first_take_over_probes_three_times_within_200_ms_before_anything_is_added() {
    let mut world = World::new();
    let (now, vip) = (world.now, "front".to_owned());
    world.say(ToGuard::Grant { vip, epoch: 7, sent: now, deadline: now + 1200 * MS, probe: true });
    world.pass(190);
    world.did(&["probe front"; 3]);
    world.pass(10);
    world.did(&["add front 2s", "open front 1005", "announce front", "> holding front 7"]);
}

#[test]
fn a_first_take_over_that_finds_a_stranger_adds_nothing() {
    let mut world = World::new();
    let (now, vip) = (world.now, "front".to_owned());
    world.say(ToGuard::Grant { vip, epoch: 7, sent: now, deadline: now + TTL, probe: true });
    world.pass(100);
    world.log.clear();
    world.hear("198.18.0.100", STRANGER);
    world.did(&[&format!("> released front 7 Taken({STRANGER:?})")[..]]);
    world.pass(2000);
    world.did(&[]);
}

#[test]
fn a_lease_that_ends_while_it_probes_adds_nothing() {
    let mut world = World::new();
    let (now, vip) = (world.now, "front".to_owned());
    world.say(ToGuard::Grant { vip, epoch: 7, sent: now, deadline: now + 150 * MS, probe: true });
    world.pass(1000);
    assert_eq!(world.count("add"), 0);
    assert_eq!(world.count("> released front 7 Ended"), 1);
}

#[test]
fn a_probe_is_answered() {
    for (heard, expected) in [(false, "> probed front false"), (true, "> probed front true")] {
        let mut world = World::new();
        world.say(ToGuard::Probe { vip: "front".to_owned() });
        world.pass(100);
        if heard {
            world.hear("198.18.0.100", STRANGER);
        }
        world.pass(200);
        assert_eq!(world.log.last().map(String::as_str), Some(expected));
        assert_eq!(world.count("> probed"), 1);
    }
}

#[test]
fn the_fence_lost_lets_go_of_everything_and_is_set_up_anew() {
    let mut world = holding();
    world.grant("back", 3, 1000);
    world.log.clear();
    world.event(Event::FenceLost("flushed".to_owned()));
    world.did(&[
        "remove front",
        "remove back",
        "> usable front eth0 [198.18.0.1] fenced=false flushed",
        "> usable back eth1 [198.18.1.1] fenced=false flushed",
        "fence eth0+eth1 [198.18.0.100, 198.18.1.100]",
        "> released front 7 Failed(\"flushed\")",
        "> released back 3 Failed(\"flushed\")",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
        "> usable back eth1 [198.18.1.1] fenced=true ok",
    ]);
}

#[test]
fn a_fence_that_stood_and_can_not_be_had_again_holds_nothing_until_it_can() {
    let mut world = holding();
    world.fail.insert("fence", Refused::Failed("no".to_owned()));
    world.event(Event::FenceLost("flushed".to_owned()));
    world.log.clear();
    world.grant("front", 8, 400);
    world.did(&["> released front 8 Failed(\"the fence can't be set up: no\")"]);
    world.fail.clear();
    world.pass(500);
    assert_eq!(world.count("fence"), 1);
    world.log.clear();
    world.grant("front", 9, 1000);
    assert_eq!(world.count("> holding front 9"), 1);
}

#[test]
fn without_nf_tables_it_works_unfenced() {
    let mut world = World::bare();
    world.fail.insert("fence", Refused::Failed("not supported".to_owned()));
    world.configure(vec![front()]);
    assert_eq!(world.count("> usable front eth0 [198.18.0.1] fenced=false ok"), 1);
    world.log.clear();
    world.grant("front", 7, 1000);
    world.did(&["add front 1s", "announce front", "> holding front 7"]);
    // The one way to be silent is to have no address.
    world.pass(1);
    world.hear("198.18.0.100", STRANGER);
    world.did(&["remove front", "> stranger front 198.18.0.100"]);
    let held = world.core.vips[0].standing().is_some();
    assert!(held);
    world.event(Event::Picture(picture()));
    world.pass(1);
    world.grant("front", 7, 1000);
    world.did(&["add front 1s", "announce front", "> holding front 7"]);
    world.silence("front", 1000);
    world.did(&[
        "remove front",
        "> released front 7 Failed(\"it can't be kept silently: nf_tables is not available\")",
    ]);
}

#[test]
fn a_link_that_goes_down_or_away_or_loses_its_carrier_lets_go_of_its_vips_only() {
    type Change = fn(&mut Picture);
    let cases: [(Change, &str); 3] = [
        (|picture| picture.links[0].running = false, "interface eth0 has no carrier"),
        (
            |picture| (picture.links[0].up, picture.links[0].running) = (false, false),
            "interface eth0 is down",
        ),
        (|picture| _ = picture.links.remove(0), "interface eth0 is gone"),
    ];
    for (change, why) in cases {
        let mut world = holding();
        world.grant("back", 3, 1000);
        world.log.clear();
        world.see(change);
        assert_eq!(world.count("shut front"), 1);
        assert_eq!(world.count(&format!("> released front 7 Failed({why:?})")), 1, "{:?}", world.log);
        assert_eq!(world.count("remove back"), 0);
        let usable: Vec<_> = world.log.iter().filter(|line| line.starts_with("> usable front")).collect();
        assert!(usable.len() == 1 && !usable[0].ends_with("ok"), "{usable:?}");
        world.log.clear();
        world.grant("front", 8, 1000);
        assert_eq!(world.count("> released front 8 Failed"), 1);
        assert_eq!(world.count("add"), 0);
    }
}

#[test]
fn a_link_that_appears_is_fenced_and_told() {
    let mut world = World::bare();
    world.event(Event::Picture(Picture::default()));
    world.say(ToGuard::Configure { vips: vec![front()] });
    world.log.clear();
    world.event(Event::Picture(picture()));
    world.did(&[
        "attend eth0",
        "fence eth0 [198.18.0.100]",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
    ]);
}

#[test]
fn an_address_that_somebody_else_removed_is_let_go() {
    let mut world = holding();
    world.see(|_| {});
    world.did(&[]);
    world.see(|picture| picture.addresses.retain(|address| address.by != AddedBy::Guard));
    world.did(&[
        "shut front",
        "remove front",
        "> released front 7 Failed(\"198.18.0.100 was removed by somebody else\")",
    ]);
}

#[test]
fn another_mac_is_announced() {
    let mut world = holding();
    world.see(|picture| picture.links[0].mac = Some([3; 6]));
    assert_eq!(world.count("announce front"), 1);
    assert_eq!(world.count("shut"), 0);
}

#[test]
fn silence_keeps_the_address_and_ends_when_its_time_is_up() {
    let mut world = holding();
    world.silence("front", 2500);
    world.did(&["add front 3s", "quiet front 2500", "> silent front"]);
    world.pass(2499);
    world.did(&[]);
    world.pass(1);
    world.did(&ENDED);
}

#[test]
fn silence_ends_with_a_release() {
    let mut world = holding();
    world.silence("front", 2500);
    world.log.clear();
    world.release("front");
    world.did(&["shut front", "remove front", "> released front 7 Asked"]);
}

#[test]
fn silence_that_can_not_be_had_lets_go() {
    let mut world = holding();
    world.fail.insert("quiet", Refused::Failed("no".to_owned()));
    world.silence("front", 2500);
    assert_eq!(world.count("> released front 7 Failed(\"no\")"), 1);
    assert_eq!(world.count("> silent"), 0);
    let mut world = World::new();
    world.silence("front", 2500);
    world.did(&["> released front 0 Ended"]);
    let mut world = holding();
    world.silence("front", 0);
    world.did(&["shut front", "remove front", "> released front 7 Asked"]);
}

#[test]
fn silence_is_bounded() {
    let mut world = holding();
    world.silence("front", u64::MAX / MS / 2);
    world.did(&["add front 3600s", "quiet front 3600000", "> silent front"]);
}

#[test]
fn a_second_chance_is_armed_before_the_grant_and_ends_by_word_or_time_or_when_it_is_let_go() {
    let armed = || {
        let mut world = World::new();
        let (vip, until) = ("front".to_owned(), world.now + 3000 * MS);
        world.say(ToGuard::Chance {
            vip,
            old: vec!["198.18.0.2".parse().unwrap()],
            except: Vec::new(),
            until,
        });
        world.did(&["chance front [198.18.0.2] 3000", "> chance front"]);
        world
    };
    let mut world = armed();
    world.say(ToGuard::EndChance { vip: "front".to_owned() });
    world.did(&["endchance front"]);
    let mut world = armed();
    world.pass(3000);
    world.did(&["endchance front"]);
    let mut world = armed();
    world.grant("front", 7, 1000);
    world.pass(1000);
    assert_eq!(world.count("endchance front"), 1);
}

#[test]
fn a_second_chance_that_can_not_be_had_is_a_problem() {
    let mut world = World::new();
    world.fail.insert("chance", Refused::Failed("no fwd".to_owned()));
    let (vip, until) = ("front".to_owned(), world.now + 3000 * MS);
    world.say(ToGuard::Chance { vip, old: vec![], except: Vec::new(), until });
    assert_eq!(world.count("> problem front no second chance: no fwd"), 1);
    assert_eq!(world.count("> chance"), 0);
}

#[test]
fn what_is_not_configured_any_more_is_let_go_and_the_rest_is_kept() {
    let mut world = holding();
    world.grant("back", 3, 1000);
    world.log.clear();
    world.say(ToGuard::Configure { vips: vec![back()] });
    world.did(&[
        "shut front",
        "remove front",
        "sweep [] keep [198.18.0.100, 198.18.1.100]",
        "> released front 7 Unconfigured",
        "attend eth1",
        "fence eth1 [198.18.1.100]",
        "attend eth1",
        "fence eth1 [198.18.1.100]",
        "> usable back eth1 [198.18.1.1] fenced=true ok",
    ]);
}

#[test]
fn a_vip_that_is_not_configured_is_a_problem() {
    let mut world = World::new();
    world.grant("other", 1, 1000);
    world.did(&["> problem other it is not configured at the guard"]);
}

#[test]
fn without_the_capabilities_nothing_is_held() {
    let mut world = World::bare();
    world.core.incapable = Some("CAP_NET_ADMIN is missing".to_owned());
    world.configure(vec![front()]);
    assert_eq!(world.count("> usable front eth0 [198.18.0.1] fenced=true CAP_NET_ADMIN is missing"), 1);
    world.log.clear();
    world.grant("front", 1, 1000);
    world.did(&["> released front 1 Failed(\"CAP_NET_ADMIN is missing\")"]);
}

#[test]
fn the_node_gone_lets_go_of_all_at_once_then_sends_notices_three_times_then_ends() {
    let mut world = holding();
    world.grant("back", 3, 1000);
    world.silence("back", 5000);
    let datagrams = vec![("198.18.0.2:7400".parse().unwrap(), vec![1])];
    world.say(ToGuard::Notice { datagrams });
    world.log.clear();
    world.event(Event::NodeGone);
    world.did(&[
        "shut front+back",
        "remove front",
        "remove back",
        "> released front 7 Asked",
        "> released back 3 Asked",
        "notices 1",
    ]);
    world.pass(4);
    world.did(&[]);
    world.pass(20);
    world.did(&["notices 1", "notices 1", "dismantle", "exit"]);
}

#[test]
fn notices_wait_for_what_can_not_be_removed_and_are_never_sent_in_vain() {
    let mut world = holding();
    world.fail.insert("remove", Refused::Failed("busy".to_owned()));
    world.event(Event::NodeGone);
    world.pass(500);
    assert_eq!(world.count("notices"), 0);
    world.fail.clear();
    world.pass(100);
    assert_eq!(world.count("notices"), 3);
    assert!(world.exited);

    let mut world = holding();
    world.fail.insert("remove", Refused::Failed("busy".to_owned()));
    world.event(Event::NodeGone);
    world.pass(5000);
    assert_eq!(world.count("notices"), 0);
    assert!(world.exited);
}

#[test]
fn after_the_node_is_gone_nothing_is_taken() {
    let mut world = holding();
    world.event(Event::NodeGone);
    world.log.clear();
    world.grant("front", 9, 1000);
    assert_eq!(world.count("add"), 0);
}

#[test]
fn seconds_are_rounded_up() {
    for (nanos, seconds) in [(0, 1), (1, 1), (1_000_000_000, 1), (1_000_000_001, 2), (u64::MAX, u32::MAX - 1)]
    {
        assert_eq!(seconds_left(nanos, 0), seconds);
    }
}
