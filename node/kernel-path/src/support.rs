//! Whether this kernel can do what the kernel path asks of it. Found by trying: each part is made in a table of
//! its own and taken away again in the same transaction, so that no packet meets it.

use std::time::Duration;

use rustix::io::Errno;
use trestle_config::model::{KernelHash, KernelMode};
use trestle_netlink::nft::{Batch, DataType, Meter, Nft, Object, ObjectKind, Table, TableFlags};
use trestle_netlink::socket;

use crate::change;
use crate::direct;
use crate::machine;
use crate::rule::{Client, Direct, Does, Packets, Pick, Rule, Side, When, Which};
use crate::ruleset::{Base, Chain, Family, Ruleset, Set, SlotTable, Transport, key_type};

/// Why the kernel can't carry listeners of this mode and family; in words for operators.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn check(mode: KernelMode, ipv6: bool) -> Result<(), String> {
    let family = if ipv6 { Family::V6 } else { Family::V4 };
    if mode == KernelMode::Dsr {
        return try_direct(family);
    }
    try_rules(family)?;
    match machine::forwards(family) {
        Some(true) => Ok(()),
        Some(false) => {
            let key = machine::forwarding_key(family);
            Err(format!("this machine does not forward packets: set the sysctl {key} to 1"))
        }
        None => Err(format!("{} can't be read", machine::forwarding_key(family))),
    }
}

/// Every expression that rulesets are made of, part by part, so that what is missing has a name.
fn try_rules(family: Family) -> Result<(), String> {
    let mut nft = Nft::open().map_err(|error| error.to_string())?;
    let name = format!("trestle_trial_{}", std::process::id());
    let table = Table { family: trestle_netlink::nft::Family::Inet, name: &name };
    for (what, ruleset) in parts(family) {
        let mut batch = Batch::new();
        batch.table(table, TableFlags::NONE);
        change::put_whole(&mut batch, table, &ruleset);
        batch.delete_table(table);
        nft.commit(&batch.finish()).map_err(|error| lacks(what, &error))?;
    }
    Ok(())
}

fn lacks(what: &str, error: &socket::Error) -> String {
    match error.errno() {
        Some(Errno::PERM) => "programming it needs the capability CAP_NET_ADMIN".to_owned(),
        _ => format!("this kernel lacks {what} in nf_tables ({error})"),
    }
}

/// The same for direct server return, which asks nothing of forwarding and connection tracking.
fn try_direct(family: Family) -> Result<(), String> {
    let mut nft = Nft::open().map_err(|error| error.to_string())?;
    for (what, rules) in direct_parts(family) {
        let of_slots = SlotTable {
            pool: String::new(),
            family,
            members: Vec::new(),
            slots: Box::default(),
            direct: true,
        };
        let slots = ("slots".to_owned(), Set::of_slots(std::sync::Arc::new(of_slots)));
        direct::try_rules(&mut nft, family, rules, slots).map_err(|error| lacks(what, &error))?;
    }
    Ok(())
}

fn direct_parts(family: Family) -> Vec<(&'static str, Vec<Rule>)> {
    let flows = family.flows().open;
    let follow = |remember| {
        let (packets, begun, members) = (Packets::Datagrams, None, Vec::new());
        Rule::Direct(Direct::Follow { family, packets, flows, remember, begun, members })
    };
    let pick = Pick {
        family,
        packets: Packets::Any,
        table: "slots".to_owned(),
        slots: 11,
        seed: 1,
        hash: KernelHash::ClientPort,
        remember: None,
        begun: None,
        members: Vec::new(),
    };
    let each = Duration::from_secs(1);
    vec![
        ("maps that packets add to, at a device's ingress", Vec::new()),
        ("forwarding to a neighbour (fwd)", vec![follow(None)]),
        ("adding to maps (dynset)", vec![follow(Some((flows, each)))]),
        ("taking out of maps (dynset)", vec![Rule::Direct(Direct::Forget { family, flows })]),
        ("jhash", vec![Rule::Direct(Direct::Pick(pick))]),
        ("look-ups of an address's kind at ingress (fib)", vec![Rule::Direct(Direct::LetOthersIn)]),
        (
            "rates (limit)",
            vec![Rule::Guard(vec![When::Much(Meter::Rate { above: 1, each, burst: 1 })], vec![Does::Drop])],
        ),
        ("resets at ingress (reject)", vec![Rule::Guard(vec![When::Tcp], vec![Does::Reset])]),
        ("refusals at ingress (reject)", vec![Rule::Guard(Vec::new(), vec![Does::Unreachable])]),
    ]
}

/// What the kernel must have, and rules that need it.
fn parts(family: Family) -> Vec<(&'static str, Ruleset)> {
    let of = |base: Base, rules: Vec<Rule>| {
        let mut ruleset = Ruleset::default();
        ruleset.chains.insert(base.name().to_owned(), Chain { hook: Some(base), rules });
        ruleset
    };
    let table = || "slots".to_owned();
    let choose = |hash| {
        let rule = Rule::Choose { family, table: table(), slots: 11, seed: 1, hash, keeps_port: false };
        let mut ruleset = of(Base::Arrive, vec![rule]);
        let of_slots = SlotTable {
            pool: String::new(),
            family,
            members: Vec::new(),
            slots: Box::default(),
            direct: false,
        };
        ruleset.sets.insert(table(), Set::of_slots(std::sync::Arc::new(of_slots)));
        ruleset
    };
    let dispatch = |rule, any_address: bool| {
        let mut ruleset = of(Base::Arrive, vec![rule]);
        ruleset.sets.insert(
            "chains".to_owned(),
            Set::empty(key_type((!any_address).then_some(family)), Some(DataType::CHAIN)),
        );
        ruleset
    };
    let sources = |base, rule| {
        let mut ruleset = of(base, vec![rule]);
        ruleset
            .sets
            .insert("sources".to_owned(), Set::empty(key_type(Some(family)), Some(family.endpoint_type())));
        ruleset
    };
    let own = |base, rule| {
        let mut ruleset = of(base, vec![rule]);
        ruleset.sets.insert("own".to_owned(), Set::empty(key_type(Some(family)), None));
        ruleset
    };
    let guard = |when, does| of(Base::First, vec![Rule::Guard(when, does)]);
    let each = Duration::from_secs(1);
    vec![
        ("NAT in tables of family inet", of(Base::Arrive, Vec::new())),
        ("maps of chains", dispatch(Rule::ByAddress { family, chains: "chains" }, false)),
        ("look-ups of an address's kind (fib)", dispatch(Rule::ByPort { family, chains: "chains" }, true)),
        ("jhash, or NAT to what a map holds", choose(KernelHash::ClientPort)),
        ("maps by five parts, or NAT to what one holds", {
            let rule = Rule::Resume { family, transport: Transport::Tcp, flows: "flows" };
            let mut ruleset = of(Base::Arrive, vec![rule]);
            ruleset.sets.insert("flows".to_owned(), Set::of_flows(family, std::collections::BTreeMap::new()));
            ruleset
        }),
        ("sets of intervals", {
            let mut ruleset = of(Base::First, Vec::new());
            ruleset
                .sets
                .insert("banned".to_owned(), Set { interval: true, ..Set::empty(family.data_type(), None) });
            ruleset
        }),
        ("counters with names, or maps of them", {
            let rule = Rule::CountBy {
                family,
                map: "counted",
                side: Side::Source,
                any_address: true,
                which: Which::Rewritten,
            };
            let mut ruleset = of(Base::Last, vec![rule]);
            let objects = Some(ObjectKind::Counter);
            ruleset.sets.insert("counted".to_owned(), Set { objects, ..Set::empty(key_type(None), None) });
            ruleset
        }),
        ("counts of open flows in sets (ct count)", {
            let (client, set) = (Client { family, prefix_v6: 64 }, "open".to_owned());
            let much = When::MuchOf(client, set.clone(), 0, Meter::Flows { above: 1 });
            let mut ruleset = guard(vec![much], vec![Does::Drop]);
            ruleset.sets.insert(set, Set { metered: Some(16), ..Set::empty(family.data_type(), None) });
            ruleset
        }),
        ("counters in sets", {
            let (client, set) = (Client { family, prefix_v6: 64 }, "offends".to_owned());
            let counted = When::MuchOf(client, set.clone(), 1_000, Meter::Counted);
            let mut ruleset = guard(vec![counted], Vec::new());
            let (metered, timeout) = (Some(16), true);
            ruleset.sets.insert(set, Set { metered, timeout, ..Set::empty(family.data_type(), None) });
            ruleset
        }),
        (
            "rates (limit)",
            guard(vec![When::Much(Meter::Rate { above: 1, each, burst: 1 })], vec![Does::Drop]),
        ),
        ("resets before routing (reject in prerouting)", guard(vec![When::Tcp], vec![Does::Reset])),
        ("refusals before routing (reject in prerouting)", guard(Vec::new(), vec![Does::Unreachable])),
        ("time-outs of flows (ct timeout)", {
            let name = "idle".to_owned();
            let timeout = Object::UdpTimeout { ipv6: family == Family::V6, idle: each };
            let mut ruleset = guard(vec![When::Udp], vec![Does::Apply(ObjectKind::Timeout, name.clone())]);
            ruleset.objects.insert(name, timeout);
            ruleset
        }),
        ("source NAT", {
            let transport = Transport::Tcp;
            sources(Base::Leave, Rule::Answer { family, transport, sources: "sources" })
        }),
        ("masquerading", own(Base::Leave, Rule::Masquerade { family, own: "own", any_address: false })),
        (
            "the state of flows (ct)",
            own(Base::StrayIn, Rule::DropStray { family, own: "own", any_address: false }),
        ),
    ]
}
