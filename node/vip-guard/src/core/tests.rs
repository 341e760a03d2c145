//! Each rule of the core, against a kernel that does as it is told and can be told to fail.

mod endings;
mod leases;
mod strangers;
mod surroundings;

use std::collections::HashMap;

use super::*;

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
