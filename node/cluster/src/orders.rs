//! What operators say of members at run time: drained, or of another weight than the config gives.
//!
//! An order stands in the agreed state beside the config, so that it survives an apply, and goes with its
//! member ([`gone`]). It concerns only members that the config has: whoever proposes one has looked
//! ([`find_member`]), since what applies the log reads no documents.
//!
//! A member that is written as a DNS name may be ordered about as a whole, by [`NamedMember::name`]: that
//! holds of each address that it stands for, whenever DNS brings it ([`order_of`]).

use std::collections::BTreeMap;

use trestle_config::model::{Member, NamedMember, Pool};
use trestle_config::{Config, near_miss};
use trestle_dataplane as plane;
use trestle_raft_store::types::{Command, Drain, MemberChange, MemberOrder, MemberOrders};

use crate::change::ChangeError;
use crate::cluster::Cluster;

/// A pool, or a member of one, that the config does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchMember {
    #[error("no pool has the name {name:?}; {hint}")]
    Pool { name: String, hint: String },
    #[error("pool {pool} has no member {name:?}; {hint}")]
    Member { pool: String, name: String, hint: String },
    #[error("{name:?} is several members of pool {pool}: {}; name one of them", .members.join(", "))]
    Several { pool: String, name: String, members: Vec<String> },
    /// Of something that the document has to name.
    #[error(
        "{name} is one address of {of}, which pool {pool} finds by DNS: the config has {of}, and only all of it can \
         be removed (`trestle member drain {pool} {name}` keeps one address free)"
    )]
    OneAddress { pool: String, name: String, of: String },
}

/// What is meant by the name of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meant {
    /// One address: its place among the pool's members.
    Member(usize),
    /// All that a DNS name stands for: its place among those.
    Named(usize),
}

/// # Errors
/// With what may have been meant.
pub fn find_pool<'a>(config: &'a Config, pool: &str) -> Result<&'a Pool, NoSuchMember> {
    config.pools.get(pool).ok_or_else(|| {
        let hint = hint(pool, config.pools.keys().map(String::as_str), "the config has");
        NoSuchMember::Pool { name: pool.to_owned(), hint }
    })
}

/// The member: one by its name, or by its address where no other has that; or one that was written as a DNS
/// name, by its name or as it was written. Of what DNS brings, a `config` with the answers has it.
///
/// # Errors
/// With what may have been meant.
pub fn find_member(config: &Config, pool: &str, member: &str) -> Result<Meant, NoSuchMember> {
    let Pool { members, named, .. } = find_pool(config, pool)?;
    if let Some(index) = members.iter().position(|settings| settings.name == member) {
        return Ok(Meant::Member(index));
    }
    let mut at = (0..members.len()).filter(|index| members[*index].address.to_string() == member);
    if let (Some(index), None) = (at.next(), at.next()) {
        return Ok(Meant::Member(index));
    }
    // By a name of its own before by what it stands for.
    let titled = named.iter().position(|named| named.name() == member);
    let called: Vec<_> = (0..named.len()).filter(|index| named[*index].is_called(member)).collect();
    match (titled, called.as_slice()) {
        (Some(index), _) => Ok(Meant::Named(index)),
        (None, [index]) => Ok(Meant::Named(*index)),
        (None, []) => {
            let names: Vec<_> = named.iter().map(NamedMember::name).collect();
            let found_by_dns = |found| {
                let of_kind = members.iter().filter(move |member| member.host.is_some() == found);
                of_kind.map(|member| member.name.as_str())
            };
            let all = found_by_dns(false).chain(names.iter().map(String::as_str)).chain(found_by_dns(true));
            let hint = hint(member, all, "it has");
            Err(NoSuchMember::Member { pool: pool.to_owned(), name: member.to_owned(), hint })
        }
        (None, several) => Err(NoSuchMember::Several {
            pool: pool.to_owned(),
            name: member.to_owned(),
            members: several.iter().map(|index| named[*index].name()).collect(),
        }),
    }
}

/// As [`find_member`], of a `config` as the document has it: one address of a DNS name is none of its members.
///
/// # Errors
/// With what may have been meant.
pub fn find_in_document(config: &Config, pool: &str, member: &str) -> Result<Meant, NoSuchMember> {
    find_member(config, pool, member).map_err(|error| {
        match find_pool(config, pool).ok().and_then(|pool| pool.named.iter().find(|n| n.covers(member))) {
            Some(named) => {
                NoSuchMember::OneAddress { pool: pool.to_owned(), name: member.to_owned(), of: named.name() }
            }
            None => error,
        }
    })
}

fn hint<'a>(typed: &str, names: impl Iterator<Item = &'a str> + Clone, there_are: &str) -> String {
    const SHOWN_MAX: usize = 20;
    if let Some(near) = near_miss(typed, names.clone()) {
        return format!("did you mean {near}?");
    }
    let shown: Vec<_> = names.clone().take(SHOWN_MAX).collect();
    match (shown.is_empty(), names.skip(SHOWN_MAX).count()) {
        (true, _) => format!("{there_are} none"),
        (_, 0) => format!("{there_are} {}", shown.join(", ")),
        (_, more) => format!("{there_are} {} and {more} more", shown.join(", ")),
    }
}

/// Pools and members with orders that this config does not have.
pub(crate) fn gone(orders: &MemberOrders, config: &Config) -> Vec<(String, String)> {
    let stays = |pool: &str, member: &str| {
        config.pools.get(pool).is_some_and(|pool| {
            pool.members.iter().any(|settings| settings.name == member)
                // Addresses of a DNS name come and go with its answers.
                || pool.named.iter().any(|named| named.name() == member || named.covers(member))
        })
    };
    let all = orders.iter().flat_map(|(pool, members)| members.keys().map(move |member| (pool, member)));
    all.filter(|(pool, member)| !stays(pool, member)).map(|(p, m)| (p.clone(), m.clone())).collect()
}

/// Orders about a pool's members, by name.
pub type PoolOrders = BTreeMap<String, MemberOrder>;

/// What holds of a member: what was said of itself, and of the DNS name that it was found by. Of two drains
/// the stricter one; its own weight before that of all.
pub fn order_of(orders: &PoolOrders, pool: &Pool, member: &Member) -> MemberOrder {
    let mut order = orders.get(&member.name).copied().unwrap_or_default();
    if member.host.is_none() {
        return order;
    }
    let all = pool.named.iter().filter(|named| named.covers(&member.name));
    for of_all in all.filter_map(|named| orders.get(&named.name())) {
        order.drain = match (order.drain, of_all.drain) {
            (Drain::Off, drain) | (drain, Drain::Off) => drain,
            (Drain::New, Drain::New) => Drain::New,
            (Drain::All, _) | (_, Drain::All) => Drain::All,
        };
        order.weight = order.weight.or(of_all.weight);
        // The earlier one.
        order.cut_at_ms = [order.cut_at_ms, of_all.cut_at_ms].into_iter().flatten().min();
    }
    order
}

/// As the plane, and so the API, has it.
pub fn drain_of_plane(drain: Drain) -> plane::Drain {
    match drain {
        Drain::Off => plane::Drain::Off,
        Drain::New => plane::Drain::New,
        Drain::All => plane::Drain::All,
    }
}

/// As the plane takes them: by the members that `config`, with what DNS brought, has.
pub(crate) fn of_plane(orders: &MemberOrders, config: &Config) -> plane::MemberOrders {
    let order = |MemberOrder { drain, cut_at_ms, weight }: MemberOrder| plane::MemberOrder {
        drain: drain_of_plane(drain),
        cut_at_ms,
        weight,
    };
    let members = |name: &String, orders: &PoolOrders| -> BTreeMap<_, _> {
        let own = orders.iter().map(|(name, own)| (name.clone(), order(*own)));
        let Some(pool) = config.pools.get(name).filter(|pool| !pool.named.is_empty()) else {
            return own.collect();
        };
        let found = pool.members.iter().filter(|member| member.host.is_some());
        let found = found.map(|member| (member.name.clone(), order(order_of(orders, pool, member))));
        own.chain(found.filter(|(_, order)| *order != plane::MemberOrder::default())).collect()
    };
    orders.iter().map(|(pool, of)| (pool.clone(), members(pool, of))).collect()
}

impl Cluster {
    /// Orders something of a member that [`find_member`] has found. Returns once this node acts by it; the
    /// others do within a heartbeat or two.
    pub async fn order_member(
        &self,
        pool: String,
        member: String,
        change: MemberChange,
    ) -> Result<(), ChangeError> {
        tracing::info!(pool, member, ?change, "member ordered");
        self.have_acted(Command::OrderMember { pool, member, change }).await
    }
}

#[cfg(test)]
mod tests {
    use trestle_config::Source;

    use super::*;

    fn config(text: &str) -> Config {
        let document = trestle_config::parse(Source { name: "t", text }).unwrap();
        document.config().as_ref().clone()
    }

    const TWO: &str = r#"pools:
  app: { members: [{ address: "192.0.2.1:80", name: app-1 }, { address: "192.0.2.2:80", name: app-2 }, "192.0.2.3:80"] }
  pair: { members: [{ address: "192.0.2.1:80", name: a }, { address: "192.0.2.1:80", name: b }] }
  none: { members: [] }
"#;

    #[test]
    fn a_member_is_found_by_name_or_by_an_address_of_its_own() {
        let config = config(TWO);
        for (pool, member, index) in
            [("app", "app-2", 1), ("app", "192.0.2.1:80", 0), ("app", "192.0.2.3:80", 2), ("pair", "b", 1)]
        {
            assert_eq!(find_member(&config, pool, member), Ok(Meant::Member(index)), "{pool} {member}");
        }
        assert!(find_member(&config, "pair", "192.0.2.1:80").is_err(), "it is two members' address");
    }

    #[test]
    fn who_is_not_there_is_told_with_what_may_have_been_meant() {
        let config = config(TWO);
        for (pool, member, expected) in [
            ("ap", "app-1", "no pool has the name \"ap\"; did you mean app?"),
            ("shop", "x", "no pool has the name \"shop\"; the config has app, none, pair"),
            ("app", "app1", "pool app has no member \"app1\"; did you mean app-1?"),
            ("app", "zzz", "pool app has no member \"zzz\"; it has app-1, app-2, 192.0.2.3:80"),
            ("none", "a", "pool none has no member \"a\"; it has none"),
        ] {
            assert_eq!(find_member(&config, pool, member).unwrap_err().to_string(), expected);
        }
        let many = (0..30).map(|n| format!("\"192.0.2.1:{}\"", n + 1)).collect::<Vec<_>>().join(", ");
        let config = self::config(&format!("pools: {{ app: {{ members: [{many}] }} }}"));
        let error = find_member(&config, "app", "zzz").unwrap_err().to_string();
        assert!(error.ends_with("192.0.2.1:20 and 10 more"), "{error}");
    }

    const NAMED: &str = r#"pools:
  dns: { members: ["app.internal:80", "app.internal:81", { address: "srv:_http._tcp.api", name: api }, "192.0.2.9:80"] }
"#;

    /// With addresses of all but the second.
    fn resolved() -> Config {
        let mut config = config(NAMED);
        let pool = config.pools.get_mut("dns").unwrap();
        for name in ["app.internal/192.0.2.1:80", "app.internal/192.0.2.2:80", "api/192.0.2.1:8080"] {
            let address = name.rsplit_once('/').unwrap().1.parse().unwrap();
            pool.members.push(Member { host: Some("h.internal".into()), ..Member::new(name, address) });
        }
        config
    }

    #[test]
    fn a_dns_member_is_meant_as_a_whole_or_by_one_address() {
        let config = resolved();
        for (member, meant) in [
            ("app.internal:80", Meant::Named(0)),
            ("App.internal.:81", Meant::Named(1)),
            ("api", Meant::Named(2)),
            ("srv:_http._tcp.api", Meant::Named(2)),
            ("app.internal/192.0.2.2:80", Meant::Member(2)),
            ("192.0.2.1:8080", Meant::Member(3)),
        ] {
            assert_eq!(find_member(&config, "dns", member), Ok(meant), "{member}");
        }
        let told = |member: &str| find_member(&config, "dns", member).unwrap_err().to_string();
        assert_eq!(
            told("app.internal"),
            "\"app.internal\" is several members of pool dns: app.internal:80, app.internal:81; name one of them"
        );
        assert_eq!(
            told("zzz"),
            "pool dns has no member \"zzz\"; it has 192.0.2.9:80, app.internal:80, app.internal:81, api, \
             app.internal/192.0.2.1:80, app.internal/192.0.2.2:80, api/192.0.2.1:8080"
        );
    }

    #[test]
    fn one_address_is_no_member_of_the_document_and_it_is_told_which_one_is() {
        let config = config(NAMED);
        let find = |member: &str| find_in_document(&config, "dns", member);
        assert_eq!(find("api"), Ok(Meant::Named(2)));
        assert_eq!(find("192.0.2.9:80"), Ok(Meant::Member(0)));
        let one = find("app.internal/192.0.2.7:81").unwrap_err().to_string();
        assert!(one.contains("is one address of app.internal:81, which pool dns finds by DNS"), "{one}");
        let none = find("zzz").unwrap_err().to_string();
        assert!(none.ends_with("it has 192.0.2.9:80, app.internal:80, app.internal:81, api"), "{none}");
    }

    #[test]
    fn an_order_about_a_dns_name_holds_of_each_of_its_addresses() {
        let order = |drain, weight| MemberOrder { drain, weight, ..MemberOrder::default() };
        let orders = |all: &[(&str, MemberOrder)]| {
            let of_pool: PoolOrders = all.iter().map(|(name, order)| ((*name).to_owned(), *order)).collect();
            MemberOrders::from([("dns".to_owned(), of_pool)])
        };
        let plane = |all: &[(&str, MemberOrder)], member: &str| {
            let pools = of_plane(&orders(all), &resolved());
            pools["dns"].get(member).map(|order| (order.drain, order.weight))
        };
        let (first, second) = ("app.internal/192.0.2.1:80", "app.internal/192.0.2.2:80");
        let all = ("app.internal:80", order(Drain::New, Some(7)));
        assert_eq!(plane(&[all], first), Some((plane::Drain::New, Some(7))));
        assert_eq!(plane(&[all], "api/192.0.2.1:8080"), None, "it is of another name");
        assert_eq!(plane(&[all], "192.0.2.9:80"), None);
        let own = (first, order(Drain::All, Some(2)));
        assert_eq!(plane(&[all, own], first), Some((plane::Drain::All, Some(2))));
        assert_eq!(plane(&[all, own], second), Some((plane::Drain::New, Some(7))));
        let stricter = ("app.internal:80", order(Drain::All, None));
        let own = (first, order(Drain::New, None));
        assert_eq!(plane(&[stricter, own], first), Some((plane::Drain::All, None)));
        assert_eq!(plane(&[("api", order(Drain::Off, Some(0)))], "api/192.0.2.1:8080").unwrap().1, Some(0));
    }

    #[test]
    fn orders_go_with_their_members() {
        let order = MemberOrder { drain: Drain::New, ..MemberOrder::default() };
        let members = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), order)).collect();
        let orders: MemberOrders = BTreeMap::from([
            ("app".to_owned(), members(&["app-1", "gone"])),
            ("left".to_owned(), members(&["a", "b"])),
        ]);
        let pair = |pool: &str, member: &str| (pool.to_owned(), member.to_owned());
        assert_eq!(gone(&orders, &config(TWO)), [pair("app", "gone"), pair("left", "a"), pair("left", "b")]);

        let of_names = [
            "app.internal/192.0.2.7:81",
            "app.internal/192.0.2.7:82",
            "app.internal:81",
            "api",
            "api/192.0.2.7:1",
            "srv:_http._tcp.api",
        ];
        let orders = BTreeMap::from([("dns".to_owned(), members(&of_names))]);
        let config = config(NAMED);
        assert_eq!(
            gone(&orders, &config),
            [pair("dns", "app.internal/192.0.2.7:82"), pair("dns", "srv:_http._tcp.api")]
        );
    }

    #[test]
    fn orders_that_say_nothing_of_dns_names_reach_the_plane_as_they_are() {
        let order = MemberOrder { drain: Drain::New, weight: Some(1), ..MemberOrder::default() };
        let orders =
            MemberOrders::from([("app".to_owned(), PoolOrders::from([("app-1".to_owned(), order)]))]);
        let told = of_plane(&orders, &config(TWO));
        assert_eq!(told["app"]["app-1"].weight, Some(1));
        assert_eq!((told.len(), told["app"].len()), (1, 1));
    }
}
