//! One test for each thing that the module's doc promises.

use trestle_raft_store::types::VipHolder;

use super::*;
use crate::lease::vips::VipLease;

const ME: NodeId = 1;
const GUARD: Uuid = Uuid::from_u128(0x51);
const TTL: Duration = Duration::from_secs(1);

fn at(ms: u64) -> BootTime {
    BootTime::from_boot(Duration::from_millis(100_000 + ms))
}

fn config() -> VipConfig {
    VipConfig {
        addresses: vec![([198, 18, 0, 100].into(), 24)],
        interface: None,
        ttl: TTL,
        hold: false,
        notify: None,
    }
}

fn holder(node: NodeId, session: Uuid) -> VipHolder {
    let (via, addresses) = (vec![[198, 18, 0, 10 + node as u8].into()], vec![[198, 18, 0, 100].into()]);
    VipHolder { node, session, fenced: true, via, addresses }
}

/// A node with one VIP, whose guard has started and could hold it.
struct Node {
    owner: Owner,
    state: State,
    leases: VipLeases,
    now: u64,
}

impl Node {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: VipConfig) -> Self {
        let mut node =
            Node { owner: Owner::new(ME), state: State::default(), leases: VipLeases::new(), now: 0 };
        let told =
            node.owner.configure(0, BTreeMap::from([("front".into(), config)]), Duration::from_secs(30));
        assert!(matches!(told[..], [Effect::Tell(ToGuard::Configure { .. })]));
        node.owner.set_ready(true, false);
        node.guard_starts(GUARD);
        node
    }

    fn guard_starts(&mut self, session: Uuid) {
        self.owner.guard_came();
        self.says(FromGuard::Started {
            session: session.into_bytes(),
            unprotected: Vec::new(),
            weak: Vec::new(),
            swept: Vec::new(),
        });
        self.usable(true, None);
        if tells(&self.agree()).contains(&&ToGuard::Probe { vip: "front".to_owned() }) {
            assert!(!self.owner.wishes().report.vips["front"].usable, "a stranger may have it");
            self.says(FromGuard::Probed { vip: "front".to_owned(), taken_by: None });
        }
    }

    fn usable(&mut self, fenced: bool, problem: Option<&str>) {
        let (vip, via) = ("front".to_owned(), vec![[198, 18, 0, 11].into()]);
        let (interface, problem) = (Some("eth0".to_owned()), problem.map(str::to_owned));
        self.says(FromGuard::Usable { vip, interface, via, fenced, problem });
    }

    fn says(&mut self, message: FromGuard) -> Vec<Effect> {
        self.owner.heard(message, at(self.now))
    }

    fn agree(&mut self) -> Vec<Effect> {
        self.owner.agreed(&self.state, at(self.now))
    }

    fn record(&mut self) -> &mut VipRecord {
        self.state.vips.entry("front".to_owned()).or_default()
    }

    /// The VIP is given to the node's guard, or to another's.
    fn given(&mut self, epoch: u64, node: NodeId, session: Uuid) -> Vec<Effect> {
        let record = self.record();
        record.previous = record.owner.take().map(|(_, owner)| owner).or(record.previous.take());
        record.owner = Some((epoch, holder(node, session)));
        record.moving_to = None;
        if let Some(vip) = self.owner.vips.get("front") {
            let addresses = vip.addresses();
            self.record().owner.as_mut().expect("it is given").1.addresses = addresses;
        }
        self.agree()
    }

    fn lease(&mut self, epoch: u64, sent: u64, yields: bool) -> Vec<Effect> {
        let lease = VipLease { epoch, sent: at(sent), until: at(sent) + TTL, yields };
        self.leases.insert("front".into(), lease);
        self.owner.leased(&self.leases, at(self.now))
    }

    /// Owns the VIP under `epoch`, and the guard holds it.
    fn holding(&mut self, epoch: u64) {
        self.given(epoch, ME, GUARD);
        assert!(matches!(self.lease(epoch, self.now, false)[..], [Effect::Tell(ToGuard::Grant { .. })]));
        let told = self.says(FromGuard::Holding { vip: "front".to_owned(), epoch });
        assert!(matches!(told[..], [Effect::Changed { change: Change::Owner, .. }]), "{told:?}");
    }

    fn released(&mut self, epoch: u64, why: Why) -> Vec<Effect> {
        self.says(FromGuard::Released { vip: "front".to_owned(), epoch, why })
    }

    fn gone(&self) -> Vec<(Uuid, u64)> {
        let wishes = self.owner.wishes();
        wishes.gone.values().flatten().map(|gone| (gone.session, gone.epoch)).collect()
    }

    fn holds(&self) -> bool {
        !self.owner.wishes().hold.is_empty()
    }
}

fn tells(effects: &[Effect]) -> Vec<&ToGuard> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Tell(message) => Some(message),
            _ => None,
        })
        .collect()
}

fn let_go() -> ToGuard {
    ToGuard::Release { vip: "front".to_owned() }
}

#[test]
fn the_guard_holds_until_the_lease_ends_and_each_renewal_is_told_once() {
    let mut node = Node::new();
    assert_eq!(node.given(7, ME, GUARD), []);
    assert_eq!(node.owner.wishes().hold, BTreeMap::from([("front".into(), 7)]));
    assert_eq!(node.owner.leased(&VipLeases::new(), at(0)), [], "nothing is granted yet");
    let grant = |sent: u64, probe| {
        let sent = at(sent).since_boot();
        let (sent, deadline) = (nanos(sent), nanos(sent + TTL));
        Effect::Tell(ToGuard::Grant { vip: "front".to_owned(), epoch: 7, sent, deadline, probe })
    };
    assert_eq!(node.lease(7, 10, false), [grant(10, true)], "nobody had it before: look for strangers");
    assert_eq!(node.lease(7, 10, false), []);
    assert_eq!(node.lease(7, 210, false), [grant(210, true)]);
    assert_eq!(node.lease(7, 100, false), [], "an older one says nothing new");
    assert_eq!(node.lease(6, 900, false), [], "of another epoch");
    node.given(9, 2, Uuid::nil());
    node.given(12, ME, GUARD);
    let again = node.lease(12, 300, false);
    assert!(matches!(tells(&again)[..], [ToGuard::Grant { probe: false, .. }]), "{again:?}");
}

#[test]
fn a_lease_that_has_ended_already_is_not_told() {
    let mut node = Node::new();
    node.given(7, ME, GUARD);
    node.now = 2_000;
    assert_eq!(node.lease(7, 0, false), []);
}

#[test]
fn the_leader_hears_of_it_only_after_the_guard_has_let_go() {
    let mut node = Node::new();
    node.holding(7);
    assert_eq!(tells(&node.owner.set_ready(false, false)), [&let_go()]);
    assert!(node.holds() && node.gone().is_empty(), "the guard has not answered");
    node.released(7, Why::Asked);
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
    node.agree();
    assert!(!node.holds(), "an epoch that was let go of is never held again");
    assert_eq!(node.lease(7, 400, false), []);
    node.given(9, 2, Uuid::nil());
    assert_eq!(node.gone(), [], "the state says it: nothing more to tell");
}

#[test]
fn a_lease_that_is_lost_is_let_go_of_at_once() {
    let mut node = Node::new();
    node.holding(7);
    let lost = VipLease { epoch: 7, sent: at(0), until: BootTime::default(), yields: false };
    node.leases.insert("front".into(), lost);
    assert_eq!(tells(&node.owner.leased(&node.leases, at(1))), [&let_go()]);
}

#[test]
fn another_owner_in_the_state_means_letting_go() {
    let mut node = Node::new();
    node.holding(7);
    let effects = node.given(9, 2, Uuid::nil());
    assert_eq!(tells(&effects), [&let_go()]);
}

#[test]
fn what_an_earlier_guard_held_is_let_go_of_once_a_new_one_has_swept() {
    let mut node = Node::new();
    node.holding(7);
    let effects = node.owner.guard_went("killed".to_owned());
    assert!(matches!(effects[..], [Effect::Changed { change: Change::Released, epoch: 7, .. }]));
    assert!(!node.holds() && node.gone().is_empty(), "it may still be on the interface");
    assert_eq!(node.owner.views()["front"].problem.as_deref(), Some("killed"));
    node.agree();
    assert!(!node.owner.wishes().report.vips["front"].usable && node.gone().is_empty());
    node.guard_starts(Uuid::from_u128(0x52));
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
}

#[test]
fn what_a_former_life_of_this_node_held_is_let_go_of_too() {
    let mut node = Node::new();
    let former = Uuid::from_u128(0x99);
    node.given(7, ME, former);
    assert_eq!((node.holds(), node.gone()), (false, vec![(former, 7)]));
    node.state
        .vips
        .insert("old".to_owned(), VipRecord { owner: Some((5, holder(ME, former))), ..VipRecord::default() });
    node.agree();
    assert!(node.gone().contains(&(former, 5)), "also of a VIP that is in no config any more");
}

#[test]
fn an_epoch_that_was_given_for_a_fence_is_not_held_without_it() {
    let mut node = Node::new();
    node.usable(false, None);
    node.given(7, ME, GUARD);
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
}

#[test]
fn a_planned_move_away_is_silent_first_then_told_then_let_go() {
    let mut node = Node::new();
    node.holding(7);
    node.record().moving_to = Some(2);
    assert_eq!(tells(&node.agree()), [] as [&ToGuard; 0], "the old epoch goes on");
    let effects = node.lease(7, 200, true);
    let silence = tells(&effects).into_iter().find(|message| matches!(message, ToGuard::Silence { .. }));
    let until = nanos((at(0) + Duration::from_secs(30)).since_boot());
    assert_eq!(silence, Some(&ToGuard::Silence { vip: "front".to_owned(), until }));
    assert!(node.gone().is_empty(), "neighbours may still come to us");
    assert_eq!(tells(&node.lease(7, 400, true)), [] as [&ToGuard; 0], "it is told once");

    let effects = node.says(FromGuard::Silent { vip: "front".to_owned() });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Drain { .. })), "{effects:?}");
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
    node.owner.drained("front");
    assert_eq!(node.owner.tick(at(5_000)), [], "nobody else has it yet: who comes, comes here");
    assert!(!node.owner.handed_over(at(5_000)));
    node.now = 5_000;
    assert_eq!(tells(&node.given(9, 2, Uuid::nil())), [] as [&ToGuard; 0], "it is kept for what began here");
    assert!(!node.owner.handed_over(at(5_200)) && node.owner.handed_over(at(5_300)) && !node.owner.idle());
    assert_eq!(node.owner.tick(at(5_900)), [], "some have not heard of the new owner yet");
    assert_eq!(tells(&node.owner.tick(at(6_000))), [&let_go()]);
    node.released(7, Why::Asked);
    assert!(node.owner.idle());
}

#[test]
fn a_move_back_waits_until_what_began_here_has_ended() {
    let mut node = Node::new();
    node.holding(7);
    node.record().moving_to = Some(2);
    node.agree();
    node.lease(7, 200, true);
    node.says(FromGuard::Silent { vip: "front".to_owned() });
    node.given(9, 2, Uuid::nil());
    node.record().moving_to = Some(ME);
    let ready = |node: &Node| node.owner.wishes().report.vips["front"].chance_ready;
    assert_eq!(tells(&node.agree()), [] as [&ToGuard; 0], "what still comes for here would be sent back");
    assert!(!ready(&node));
    node.owner.drained("front");
    assert_eq!(tells(&node.agree()), [] as [&ToGuard; 0], "letting go would end the second chance again");
    node.says(FromGuard::Released { vip: "front".to_owned(), epoch: 7, why: Why::Asked });
    assert!(matches!(tells(&node.agree())[..], [ToGuard::Chance { .. }]));
    node.says(FromGuard::ChanceReady { vip: "front".to_owned() });
    assert!(ready(&node));
}

#[test]
fn without_a_fence_a_move_away_lets_go_at_once() {
    let mut node = Node::new();
    node.holding(7);
    node.usable(false, None);
    assert_eq!(tells(&node.lease(7, 200, true)).last(), Some(&&let_go()));
}

#[test]
fn a_planned_move_to_here_is_prepared_before_it_is_said_to_be_ready() {
    let mut node = Node::new();
    node.given(7, 2, Uuid::nil());
    node.record().moving_to = Some(ME);
    let effects = node.agree();
    let until = nanos((at(0) + Duration::from_secs(31)).since_boot());
    let chance = ToGuard::Chance {
        vip: "front".to_owned(),
        old: vec![[198, 18, 0, 12].into()],
        except: Vec::new(),
        until,
    };
    assert_eq!(tells(&effects), [&chance]);
    let ready = |node: &Node| node.owner.wishes().report.vips["front"].chance_ready;
    assert!(!ready(&node));
    assert_eq!(node.agree(), [], "it is asked once");
    node.says(FromGuard::ChanceReady { vip: "front".to_owned() });
    assert!(ready(&node));
    node.record().moving_to = None;
    let off = node.agree();
    assert_eq!(tells(&off), [&ToGuard::EndChance { vip: "front".to_owned() }]);
    assert!(!ready(&node));
}

#[test]
fn a_move_to_here_goes_on_without_a_second_chance_where_there_can_be_none() {
    let mut node = Node::new();
    node.given(7, 2, Uuid::nil());
    node.record().moving_to = Some(ME);
    node.agree();
    node.says(FromGuard::Problem { vip: Some("front".to_owned()), text: "no fwd".to_owned() });
    assert!(node.owner.wishes().report.vips["front"].chance_ready);

    let mut bare = Node::new();
    bare.usable(false, None);
    bare.given(7, 2, Uuid::nil());
    bare.record().moving_to = Some(ME);
    assert_eq!(bare.agree(), []);
    assert!(bare.owner.wishes().report.vips["front"].chance_ready);
}

#[test]
fn with_hold_a_vip_is_kept_without_a_quorum_but_not_against_the_leaders_word() {
    let mut node = Node::with(VipConfig { hold: true, ..config() });
    node.holding(7);
    assert_eq!(node.owner.tick(at(400)), [], "the lease is good for long");
    let effects = node.owner.tick(at(600));
    let deadline = nanos((at(600) + TTL).since_boot());
    assert!(matches!(tells(&effects)[..], [ToGuard::Grant { deadline: d, .. }] if *d == deadline));
    assert!(node.owner.views()["front"].without_quorum);
    node.now = 700;
    node.lease(7, 650, false);
    assert!(!node.owner.views()["front"].without_quorum, "renewed again");
    let lost = VipLease { epoch: 7, sent: at(0), until: BootTime::default(), yields: false };
    node.leases.insert("front".into(), lost);
    assert_eq!(tells(&node.owner.leased(&node.leases, at(800))), [&let_go()]);

    let mut plain = Node::new();
    plain.holding(7);
    assert_eq!(plain.owner.tick(at(600)), []);
}

#[test]
fn a_guard_that_does_not_answer_renewals_is_ended() {
    let mut node = Node::new();
    node.holding(7);
    node.now = 200;
    node.lease(7, 200, false);
    assert!(!node.owner.tick(at(1_100)).contains(&Effect::EndGuard));
    node.says(FromGuard::Holding { vip: "front".to_owned(), epoch: 7 });
    assert!(!node.owner.tick(at(5_000)).contains(&Effect::EndGuard), "it has answered");
    node.now = 5_000;
    node.lease(7, 4_900, false);
    node.lease(7, 5_100, false);
    assert!(node.owner.tick(at(6_000)).contains(&Effect::EndGuard));
}

#[test]
fn a_guard_that_waits_for_the_kernel_is_given_half_of_a_long_lease_to_come_back() {
    let mut node = Node::with(VipConfig { ttl: Duration::from_secs(8), ..config() });
    node.holding(7);
    node.now = 1_000;
    node.lease(7, 1_000, false);
    assert!(!node.owner.tick(at(4_900)).contains(&Effect::EndGuard));
    assert!(node.owner.tick(at(5_000)).contains(&Effect::EndGuard));
}

#[test]
fn a_stranger_with_the_address_is_told_and_the_vip_not_tried_for_a_while() {
    let mut node = Node::new();
    node.given(7, ME, GUARD);
    node.lease(7, 0, false);
    node.released(7, Why::Taken([2, 0, 0, 0, 0, 9]));
    assert_eq!(node.gone(), [(GUARD, 7)]);
    let problem = node.owner.views()["front"].problem.clone().expect("it is told");
    assert!(problem.contains("02:00:00:00:00:09"), "{problem}");
    assert!(!node.owner.wishes().report.vips["front"].usable);
    node.state.vips.clear();
    node.agree();
    let looks = node.owner.tick(at(11_000));
    assert_eq!(tells(&looks), [&ToGuard::Probe { vip: "front".to_owned() }]);
    assert!(!node.owner.wishes().report.vips["front"].usable, "not before it was looked for again");
    node.says(FromGuard::Probed { vip: "front".to_owned(), taken_by: None });
    assert!(node.owner.wishes().report.vips["front"].usable);
}

#[test]
fn a_stranger_is_looked_for_before_the_vip_is_wanted_but_not_while_one_of_ours_has_it() {
    let mut node = Node::new();
    let (vip, address) = ("front".to_owned(), [198, 18, 0, 100].into());
    node.says(FromGuard::Probed { vip, taken_by: Some((address, [2, 0, 0, 0, 0, 9])) });
    assert!(!node.owner.wishes().report.vips["front"].usable);
    assert!(node.owner.views()["front"].problem.is_some());

    let mut late = Node::new();
    late.given(7, 2, Uuid::nil());
    late.owner.guard_went("killed".to_owned());
    late.guard_starts(Uuid::from_u128(0x52));
    assert!(
        late.owner.wishes().report.vips["front"].usable,
        "it was not asked to look: its owner would answer"
    );
}

#[test]
fn a_short_ttl_needs_the_kernels_fence() {
    let mut node = Node::with(VipConfig { ttl: Duration::from_millis(250), ..config() });
    assert!(node.owner.wishes().report.vips["front"].usable);
    node.usable(false, None);
    assert!(!node.owner.wishes().report.vips["front"].usable);
    assert!(node.owner.views()["front"].problem.as_ref().is_some_and(|p| p.contains("nf_tables")));
}

#[test]
fn a_vip_that_left_the_config_is_let_go_of_and_the_leader_hears_it() {
    let mut node = Node::new();
    node.holding(7);
    let told = node.owner.configure(0, BTreeMap::new(), Duration::ZERO);
    assert_eq!(tells(&told), [&ToGuard::Configure { vips: Vec::new() }]);
    assert!(!node.holds());
    node.released(7, Why::Unconfigured);
    assert_eq!(node.gone(), [(GUARD, 7)]);
}

#[test]
fn there_is_something_to_say_for_a_node_that_dies_while_its_guard_may_be_given_a_vip() {
    let mut node = Node::new();
    assert_eq!(node.owner.notice(), Some(GUARD), "it may be given one at any moment");
    node.given(7, ME, GUARD);
    assert_eq!(node.owner.notice(), Some(GUARD));
    node.owner.set_ready(false, false);
    assert_eq!(node.owner.notice(), None);
}

#[test]
fn what_is_given_to_a_node_that_is_not_ready_goes_back_at_once() {
    let mut node = Node::new();
    node.owner.set_ready(false, false);
    assert_eq!(node.given(7, ME, GUARD), []);
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));

    // Given just before, and nothing told to the guard yet: there is no answer to wait for.
    let mut node = Node::new();
    node.given(7, ME, GUARD);
    assert_eq!(tells(&node.owner.set_ready(false, false)), [&let_go()]);
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
}

#[test]
fn a_node_that_was_removed_says_farewell_once_it_holds_nothing_and_keeps_what_began_here() {
    let mut node = Node::new();
    node.holding(41);
    assert_eq!(node.owner.farewell(), None);
    assert_eq!(tells(&node.owner.set_ready(false, true)), [&let_go()]);
    assert_eq!(node.owner.farewell(), None, "the guard has it yet");
    node.released(41, Why::Asked);
    assert_eq!(node.owner.farewell(), Some(GUARD));
    node.given(42, ME, GUARD);
    assert!(!node.holds() && node.owner.farewell() == Some(GUARD), "it takes nothing any more");

    let mut node = Node::new();
    node.holding(41);
    node.lease(41, 10, true);
    node.says(FromGuard::Silent { vip: "front".to_owned() });
    assert!(tells(&node.owner.set_ready(false, true)).is_empty(), "it was handed over, and serves on");
    assert!(node.owner.views()["front"].quiet && node.owner.farewell() == Some(GUARD));
}

#[test]
fn nothing_is_granted_that_the_guard_was_told_to_let_go_of() {
    let mut node = Node::new();
    node.holding(7);
    node.owner.set_ready(false, false);
    node.owner.set_ready(true, false);
    assert_eq!(node.lease(7, 200, false), [], "its answer ends the epoch");
    node.released(7, Why::Asked);
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
}

#[test]
fn a_guard_that_heard_a_renewal_lives_also_if_it_had_nothing_to_do() {
    let mut node = Node::new();
    node.holding(7);
    node.now = 200;
    node.lease(7, 200, false);
    node.says(FromGuard::Heard { vip: "front".to_owned() });
    assert!(!node.owner.tick(at(5_000)).contains(&Effect::EndGuard));
}

fn moved() -> BTreeMap<VipName, VipConfig> {
    let addresses = vec![([198, 18, 0, 101].into(), 24)];
    BTreeMap::from([("front".into(), VipConfig { addresses, notify: Some("new".into()), ..config() })])
}

#[test]
fn a_program_hears_of_the_addresses_that_were_there_and_the_one_that_is_there_now_is_run() {
    let told = |effects: &[Effect]| match effects {
        [.., Effect::Changed { change: Change::Released, epoch: 7, addresses, notify, .. }] => {
            (addresses.clone(), notify.clone())
        }
        other => panic!("{other:?}"),
    };
    let old = config().addresses;
    let with_program = || {
        let mut node = Node::with(VipConfig { notify: Some("old".into()), ..config() });
        node.holding(7);
        node
    };
    let mut node = with_program();
    node.owner.configure(0, moved(), Duration::ZERO);
    assert_eq!(told(&node.released(7, Why::Unconfigured)), (old.clone(), Some("new".into())));

    let mut node = with_program();
    node.owner.configure(0, BTreeMap::new(), Duration::ZERO);
    assert_eq!(told(&node.released(7, Why::Unconfigured)), (old.clone(), Some("old".into())));

    let mut node = with_program();
    node.owner.configure(0, BTreeMap::new(), Duration::ZERO);
    assert_eq!(told(&node.owner.guard_went("killed".to_owned())), (old, Some("old".into())));
}

#[test]
fn for_new_addresses_a_stranger_is_looked_for_until_one_of_ours_has_had_them() {
    let probes = |effects: &[Effect]| matches!(tells(effects)[..], [ToGuard::Grant { probe: true, .. }]);
    let usable_again = |node: &mut Node| {
        node.usable(true, None);
        node.agree();
        node.owner.tick(at(node.now));
    };
    let mut node = Node::new();
    node.given(5, 2, Uuid::nil());
    node.holding(7);
    node.owner.configure(0, moved(), Duration::ZERO);
    node.released(7, Why::Unconfigured);
    usable_again(&mut node);
    node.given(9, ME, GUARD);
    assert!(probes(&node.lease(9, 300, false)));
    node.says(FromGuard::Holding { vip: "front".to_owned(), epoch: 9 });
    assert!(!probes(&node.lease(9, 500, false)), "it is ours now");

    // Another node takes them; it may find a stranger, and then it is our turn to look.
    for (kept, look) in [(1_000, true), (4_000, false)] {
        let mut node = Node::new();
        node.given(7, 2, Uuid::nil());
        node.owner.configure(0, moved(), Duration::ZERO);
        usable_again(&mut node);
        node.given(9, 2, Uuid::nil());
        node.now = kept;
        node.owner.tick(at(kept));
        node.given(11, ME, GUARD);
        assert_eq!(probes(&node.lease(11, kept, false)), look, "after {kept} ms");
    }
}

#[test]
fn one_of_ours_is_no_stranger_however_late_the_news() {
    let mac = [2, 0, 0, 0, 0, 2];
    let answer = || {
        let (vip, address) = ("front".to_owned(), [198, 18, 0, 100].into());
        FromGuard::Probed { vip, taken_by: Some((address, mac)) }
    };
    // All nodes start anew: this one looks before it has heard that another one holds it.
    let mut node = Node::new();
    node.says(answer());
    assert!(!node.owner.wishes().report.vips["front"].usable);
    node.given(7, 2, Uuid::nil());
    assert!(node.owner.wishes().report.vips["front"].usable, "it was the rightful owner");
    node.says(answer());
    assert!(node.owner.wishes().report.vips["front"].usable);
}

#[test]
fn a_machine_that_announces_what_is_held_here_is_shown_for_a_minute() {
    let mut node = Node::new();
    node.holding(7);
    let (vip, address) = ("front".to_owned(), [198, 18, 0, 100].into());
    node.says(FromGuard::Stranger { vip, address, mac: [2, 0, 0, 0, 0, 9], at: 0 });
    let rival = node.owner.views()["front"].rival.clone().expect("it is shown");
    assert!(rival.contains("198.18.0.100") && rival.contains("02:00:00:00:00:09"), "{rival}");
    node.owner.tick(at(59_000));
    assert!(node.owner.views()["front"].rival.is_some());
    node.owner.tick(at(60_000));
    assert_eq!(node.owner.views()["front"].rival, None);
}

#[test]
fn why_a_guard_does_not_start_is_shown() {
    let mut node = Node::new();
    node.owner.guard_went("it ended".to_owned());
    node.owner.guard_came();
    node.says(FromGuard::Problem { vip: None, text: "another guard runs here".to_owned() });
    let problem = node.owner.views()["front"].problem.clone();
    assert_eq!(problem.as_deref(), Some("it ended: another guard runs here"), "while it waits, too");
    node.owner.guard_went("it ended".to_owned());
    assert_eq!(node.owner.views()["front"].problem.as_deref(), Some("it ended: another guard runs here"));
    node.guard_starts(GUARD);
    assert_eq!(node.owner.views()["front"].problem, None);
}

/// A node that got the VIP from node 2 by plan, under epoch 9.
fn moved_to() -> Node {
    let mut node = Node::new();
    node.given(7, 2, Uuid::nil());
    node.record().moving_to = Some(ME);
    node.agree();
    node.says(FromGuard::ChanceReady { vip: "front".to_owned() });
    node.holding(9);
    node
}

#[test]
fn moved_on_again_it_is_kept_for_what_began_before_it_came_here() {
    let mut node = moved_to();
    node.record().moving_to = Some(3);
    assert_eq!(tells(&node.agree()), [] as [&ToGuard; 0]);
    let effects = node.lease(9, 200, true);
    let told = tells(&effects);
    assert!(
        matches!(told[..], [ToGuard::Grant { .. }, ToGuard::Silence { .. }]),
        "it goes on forwarding: {told:?}"
    );
    node.says(FromGuard::Silent { vip: "front".to_owned() });
    node.owner.drained("front");
    node.given(11, 3, Uuid::nil());
    assert_eq!(node.owner.tick(at(20_000)), [], "what node 2 serves comes by here");
    assert_eq!(tells(&node.owner.tick(at(31_000))), [&let_go()], "its time is over");
}

#[test]
fn what_is_forwarded_never_comes_round() {
    let end = ToGuard::EndChance { vip: "front".to_owned() };
    let mut back = moved_to();
    back.record().moving_to = Some(2);
    assert_eq!(tells(&back.agree()), [] as [&ToGuard; 0], "node 2 may still serve what began there");
    let effects = back.lease(9, 200, true);
    let told = tells(&effects);
    assert!(told.contains(&&end) && matches!(told.last(), Some(ToGuard::Silence { .. })), "{told:?}");

    let mut round = moved_to();
    round.record().moving_to = Some(3);
    round.agree();
    round.lease(9, 200, true);
    round.says(FromGuard::Silent { vip: "front".to_owned() });
    assert_eq!(tells(&round.given(11, 3, Uuid::nil())), [] as [&ToGuard; 0]);
    round.record().moving_to = Some(2);
    assert_eq!(tells(&round.agree()), [] as [&ToGuard; 0]);
    assert_eq!(tells(&round.given(13, 2, Uuid::nil())), [&end], "by way of another node");
    assert_eq!(round.agree(), [], "once");
}

#[test]
fn what_was_given_for_other_addresses_is_not_held() {
    // The node's config is behind: what it says may be somebody else's by now.
    let mut node = Node::new();
    let put = |number| {
        std::sync::Arc::new(trestle_raft_store::types::Revision {
            number,
            document: std::sync::Arc::from(&b""[..]),
            uses: Vec::new(),
            author: String::new(),
            message: String::new(),
            at_ms: 0,
        })
    };
    node.state.revisions = vec![put(1)];
    node.record().owner =
        Some((7, VipHolder { addresses: vec![[198, 18, 0, 101].into()], ..holder(ME, GUARD) }));
    assert_eq!(node.agree(), []);
    assert!(!node.holds() && node.gone().is_empty(), "it waits for its config");
    node.owner.configure(1, moved(), Duration::ZERO);
    node.usable(true, None);
    node.agree();
    assert!(node.holds());

    // It was given before they changed.
    let mut node = Node::new();
    node.owner.configure(1, moved(), Duration::ZERO);
    node.usable(true, None);
    node.state.revisions = vec![put(1)];
    node.record().owner = Some((7, holder(ME, GUARD)));
    node.agree();
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
}

#[test]
fn who_holds_an_address_under_another_name_is_no_stranger() {
    let mut node = Node::new();
    node.state.vips.insert(
        "old".to_owned(),
        VipRecord { owner: Some((5, holder(2, Uuid::nil()))), ..VipRecord::default() },
    );
    node.agree();
    let (vip, address) = ("front".to_owned(), [198, 18, 0, 100].into());
    node.says(FromGuard::Probed { vip, taken_by: Some((address, [2, 0, 0, 0, 0, 2])) });
    assert!(node.owner.wishes().report.vips["front"].usable);
}

/// Given the VIP under `epoch`, the guard can't hold it.
fn fails(node: &mut Node, epoch: u64) {
    node.given(epoch, ME, GUARD);
    node.lease(epoch, node.now, false);
    node.released(epoch, Why::Failed("IPv6 is disabled".to_owned()));
}

/// Usable, last resort, and what people are told.
fn chances(node: &mut Node, ms: u64) -> (bool, bool, Option<String>) {
    node.now = ms;
    node.owner.tick(at(ms));
    let report = node.owner.wishes().report.vips["front"].clone();
    (report.usable, report.last_resort, node.owner.views()["front"].problem.clone())
}

#[test]
fn a_node_that_fails_to_hold_it_says_so_for_a_pause_that_grows_and_then_no_more() {
    let told = || Some("IPv6 is disabled".to_owned());
    let mut node = Node::new();
    fails(&mut node, 7);
    assert_eq!(chances(&mut node, 0), (false, true, told()), "others come first; once may be chance");
    fails(&mut node, 9);
    assert_eq!(chances(&mut node, 500), (false, false, told()), "now it is not");
    assert_eq!(chances(&mut node, 1_000), (false, true, told()));
    assert_eq!(chances(&mut node, 19_900), (false, true, told()));
    assert_eq!(chances(&mut node, 20_000), (true, false, None));
    fails(&mut node, 11);
    assert_eq!(chances(&mut node, 59_000), (false, true, told()));
    node.owner.guard_went("killed".to_owned());
    node.guard_starts(GUARD);
    assert_eq!(chances(&mut node, 59_100), (false, true, told()), "another guard is no better");

    node.holding(13);
    assert_eq!(chances(&mut node, 59_200), (true, false, None), "it works");
    node.released(13, Why::Failed("IPv6 is disabled".to_owned()));
    assert_eq!(chances(&mut node, 59_300), (false, false, told()), "but not for long");
}

#[test]
fn a_failure_is_over_when_what_it_was_about_has_changed() {
    let gone = || Why::Failed("interface eth0 is gone".to_owned());
    let mut node = Node::new();
    node.holding(7);
    node.usable(true, Some("interface eth0 is gone"));
    node.released(7, gone());
    assert!(!chances(&mut node, 100).0);
    node.usable(true, None);
    assert_eq!(chances(&mut node, 200), (true, false, None), "it is back");

    node.holding(9);
    node.usable(true, Some("interface eth0 is gone"));
    node.released(9, gone());
    node.usable(true, None);
    assert!(!chances(&mut node, 300).0, "it comes and goes");
    let (vip, interface) = ("front".to_owned(), Some("eth1".to_owned()));
    node.says(FromGuard::Usable { vip, interface, via: Vec::new(), fenced: true, problem: None });
    assert!(chances(&mut node, 400).0, "another interface");

    let mut node = Node::new();
    fails(&mut node, 7);
    node.owner.configure(0, moved(), Duration::ZERO);
    node.usable(true, None);
    node.agree();
    node.says(FromGuard::Probed { vip: "front".to_owned(), taken_by: None });
    assert_eq!(chances(&mut node, 500), (true, false, None), "other addresses");
}

#[test]
fn what_only_goes_wrong_by_the_way_is_no_reason_not_to_hold_it() {
    let mut node = Node::new();
    node.says(FromGuard::Problem { vip: Some("front".to_owned()), text: "no second chance".to_owned() });
    assert_eq!(chances(&mut node, 0), (true, false, None));
}

/// A program that takes another's place; its guard has said what it has, and who it is.
fn resumed(held: Option<u64>, ended: Option<u64>) -> Node {
    let mut node = Node { owner: Owner::new(ME), state: State::default(), leases: VipLeases::new(), now: 0 };
    assert_eq!(
        tells(&node.owner.guard_resumes()),
        [&ToGuard::Resume],
        "no config that would end what is held"
    );
    node.owner.configure(3, BTreeMap::from([("front".into(), config())]), Duration::from_secs(30));
    node.given(7, ME, GUARD);
    node.usable(true, None);
    if let Some(epoch) = held {
        node.says(FromGuard::Holding { vip: "front".to_owned(), epoch });
    }
    if let Some(epoch) = ended {
        node.released(epoch, Why::Asked);
    }
    assert!(node.owner.is_resuming());
    let (session, none) = (GUARD.into_bytes(), Vec::new);
    node.says(FromGuard::Started { session, unprotected: none(), weak: none(), swept: Vec::new() });
    node.agree();
    node
}

#[test]
fn what_the_guard_of_the_program_before_holds_is_taken_up_under_the_same_epoch() {
    let mut node = resumed(Some(7), None);
    assert!(!node.holds(), "nothing serves yet");
    assert_eq!(node.gone(), [], "it is held");
    node.owner.set_ready(true, false);
    node.agree();
    assert!(node.holds());
    let told = node.lease(7, 10, false);
    assert!(matches!(told[..], [Effect::Tell(ToGuard::Grant { epoch: 7, .. })]), "{told:?}");
    let told = node.says(FromGuard::Holding { vip: "front".to_owned(), epoch: 7 });
    assert!(matches!(told[..], [Effect::Changed { change: Change::Owner, .. }]), "{told:?}");
}

#[test]
fn what_ended_on_the_way_from_one_program_to_the_next_is_told_and_not_held_again() {
    let mut node = resumed(None, Some(7));
    node.owner.set_ready(true, false);
    node.agree();
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
    // Its lease ended before the new program served.
    let mut node = resumed(Some(7), None);
    node.released(7, Why::Ended);
    node.owner.set_ready(true, false);
    node.agree();
    assert_eq!((node.holds(), node.gone()), (false, vec![(GUARD, 7)]));
}

#[test]
fn what_a_guard_of_before_holds_and_may_not_any_more_is_let_go_of_by_its_word() {
    let mut node = resumed(Some(7), None);
    node.usable(false, None);
    assert_eq!(tells(&node.agree()), [&let_go()], "the epoch was given for a fence");
    assert_eq!(node.gone(), [], "not before it is gone");
    node.released(7, Why::Asked);
    assert_eq!(node.gone(), [(GUARD, 7)]);
}
