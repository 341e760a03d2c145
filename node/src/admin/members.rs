//! `/v1/members` and `/v1/pools/{pool}/members`: members as they are, ordered about, added and removed.
//!
//! A drain or weight is agreed on beside the config and is no revision; adding or removing a member edits
//! the document in force and is one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use trestle_cluster::{
    AdaptiveStatus, Cluster, Consistency, EjectionStatus, Files, Meant, NameStatus, NoSuchMember, PoolOrders,
    PoolStatus, drain_of_plane, find_in_document, find_member, find_pool, order_of,
};
use trestle_config::model;
use trestle_config::{Config, Document};
use trestle_dataplane::MemberView;
use trestle_raft_store::types::{Drain, MemberChange, MemberOrder};

use super::config::{self, Edit, Why};
use super::{Api, ApiError, Author, Params, body};
use crate::documents;

// === as they are ===

/// A pool as the cluster judges it and as this node uses it.
#[derive(Serialize)]
struct Pool {
    pool: String,
    panic: bool,
    members: Vec<Member>,
    /// Members that are DNS names, as the config has them.
    names: Vec<NameStatus>,
    adaptive: Option<AdaptiveStatus>,
}

#[derive(Serialize)]
struct Member {
    name: String,
    address: String,
    /// The member of the config that it is an address of, if it was found by DNS.
    of: Option<String>,
    /// The cluster's verdict.
    up: bool,
    /// Why the last check by this node failed.
    reason: Option<String>,
    /// By this node.
    ejected: bool,
    ejection: Option<EjectionStatus>,
    /// An operator keeps new traffic away: "off", "new" (but for clients that stick to it), "all". As all that
    /// follows by the plane of this node, and absent while that has not taken the revision over.
    drain: Option<&'static str>,
    /// In force.
    weight: Option<u32>,
    /// By the config.
    configured_weight: Option<u32>,
    /// On this node.
    in_flight: Option<u32>,
    /// On the others, of a member that drains; absent until all live ones have told.
    in_flight_elsewhere: Option<u32>,
    /// What each prober saw; `null`: nothing yet.
    probers: Vec<Prober>,
}

#[derive(Serialize)]
struct Prober {
    node: String,
    up: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    pool: Option<String>,
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ApiError> {
    let mut pools = join_views(api.cluster()?.status().pools, api.node.plane.members());
    if let Some(wanted) = query.pool {
        find_pool(api.cluster()?.in_force().config(), &wanted)?;
        pools.retain(|pool| pool.pool == wanted);
    }
    Ok(Json(json!({ "pools": pools })).into_response())
}

fn join_views(pools: Vec<PoolStatus>, views: Vec<MemberView>) -> Vec<Pool> {
    let views: HashMap<(&str, &str), &MemberView> =
        views.iter().map(|view| ((view.pool.as_str(), view.member.as_str()), view)).collect();
    let member = |pool: &str, health: &trestle_cluster::MemberHealth| {
        let view = views.get(&(pool, health.name.as_str()));
        let drain = view.map(|view| view.drain.text());
        Member {
            name: health.name.clone(),
            address: health.address.clone(),
            of: health.of.clone(),
            up: health.up,
            reason: health.reason.clone(),
            ejected: health.ejected,
            ejection: health.ejection.clone(),
            drain,
            weight: view.map(|view| view.weight),
            configured_weight: view.map(|view| view.configured),
            in_flight: view.map(|view| view.in_flight),
            in_flight_elsewhere: health
                .in_flight_elsewhere
                .filter(|_| drain.is_some_and(|drain| drain != "off")),
            probers: health.probers.iter().map(|(node, up)| Prober { node: node.clone(), up: *up }).collect(),
        }
    };
    pools
        .into_iter()
        .map(|pool| Pool {
            members: pool.members.iter().map(|health| member(&pool.pool, health)).collect(),
            pool: pool.pool,
            panic: pool.panic,
            names: pool.names,
            adaptive: pool.adaptive,
        })
        .collect()
}

// === drained, weighted ===

#[derive(Deserialize)]
pub(super) struct DrainQuery {
    /// Clients that stick to it go elsewhere too.
    #[serde(default)]
    all: bool,
    /// After so many, connections and sessions that are carried there are cut.
    deadline_ms: Option<u64>,
}

pub(super) async fn drain(
    api: State<Arc<Api>>,
    path: Path<(String, String)>,
    Params(query): Params<DrainQuery>,
) -> Result<Response, ApiError> {
    let drain = if query.all { Drain::All } else { Drain::New };
    // The moment is agreed on, so that it is the same on all nodes and survives their restarts.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let cut_at = |after: u64| u64::try_from(now).unwrap_or(u64::MAX).saturating_add(after);
    order(api, path, MemberChange::Drain(drain, query.deadline_ms.map(cut_at))).await
}

pub(super) async fn undrain(
    api: State<Arc<Api>>,
    path: Path<(String, String)>,
) -> Result<Response, ApiError> {
    order(api, path, MemberChange::Drain(Drain::Off, None)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weight {
    weight: u32,
}

/// As in the config language.
const WEIGHT_MAX: u32 = 65_535;

pub(super) async fn weigh(
    api: State<Arc<Api>>,
    path: Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let order_of = |bytes: &[u8]| serde_json::from_slice::<Weight>(bytes);
    let Weight { weight } = order_of(&body::bytes(body).await?)
        .map_err(|e| ApiError::bad_request(format!("expected {{\"weight\": N}}: {e}")))?;
    if weight > WEIGHT_MAX {
        return Err(ApiError::bad_request(format!("a weight is 0 to {WEIGHT_MAX}, not {weight}")));
    }
    order(api, path, MemberChange::Weight(Some(weight))).await
}

pub(super) async fn unweigh(
    api: State<Arc<Api>>,
    path: Path<(String, String)>,
) -> Result<Response, ApiError> {
    order(api, path, MemberChange::Weight(None)).await
}

async fn order(
    State(api): State<Arc<Api>>,
    Path((pool, member)): Path<(String, String)>,
    change: MemberChange,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let document = agreed(cluster).await?;
    let config = &*cluster.with_answers(document.config());
    let before = cluster.watch_state().borrow().member_orders.get(&pool).cloned().unwrap_or_default();
    let subject = Subject::find(config, &before, &pool, &member)?;
    let name = subject.name();
    cluster.order_member(pool.clone(), name.clone(), change).await?;
    let state = cluster.watch_state().borrow().clone();
    let none = PoolOrders::new();
    let orders = state.member_orders.get(&pool).unwrap_or(&none);
    let present = subject.order(orders);
    let mut warnings = subject.overlaps(&pool, orders, change);
    warnings.extend(nobody_left(config, orders, &pool));
    let answer = Ordered {
        drain: drain_of_plane(present.drain).text(),
        cut_at_ms: present.cut_at_ms,
        weight: present.weight.unwrap_or(subject.weight()),
        addresses: subject.addresses(),
        pool,
        member: name,
        warnings,
    };
    Ok(Json(answer).into_response())
}

/// What became of an order.
#[derive(Serialize)]
struct Ordered {
    pool: String,
    /// Its name.
    member: String,
    drain: &'static str,
    /// When what is carried there is cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_at_ms: Option<u64>,
    weight: u32,
    /// Names of all that the order concerns, of a member that is a DNS name.
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<String>>,
    warnings: Vec<String>,
}

/// Whom an order is about.
struct Subject<'a> {
    pool: &'a model::Pool,
    which: Which<'a>,
}

#[derive(Clone, Copy)]
enum Which<'a> {
    Member(&'a model::Member),
    /// As a whole.
    Named(&'a model::NamedMember),
    /// An address that DNS leaves out for now, and of which something was ordered.
    Absent(&'a str, &'a model::NamedMember),
}

impl<'a> Subject<'a> {
    fn find(
        config: &'a Config,
        orders: &PoolOrders,
        name: &str,
        member: &'a str,
    ) -> Result<Self, NoSuchMember> {
        let pool = find_pool(config, name)?;
        let absent = || {
            let of = pool.named.iter().find(|named| named.covers(member))?;
            orders.contains_key(member).then_some(Which::Absent(member, of))
        };
        let which = match find_member(config, name, member) {
            Ok(Meant::Member(index)) => Which::Member(&pool.members[index]),
            Ok(Meant::Named(index)) => Which::Named(&pool.named[index]),
            Err(error) => absent().ok_or(error)?,
        };
        Ok(Self { pool, which })
    }

    fn name(&self) -> String {
        match self.which {
            Which::Member(member) => member.name.clone(),
            Which::Named(named) => named.name(),
            Which::Absent(name, _) => name.to_owned(),
        }
    }

    /// By the config.
    fn weight(&self) -> u32 {
        match self.which {
            Which::Member(member) => member.weight,
            Which::Named(named) | Which::Absent(_, named) => named.weight,
        }
    }

    /// In force.
    fn order(&self, orders: &PoolOrders) -> MemberOrder {
        match self.which {
            Which::Member(member) => order_of(orders, self.pool, member),
            Which::Named(_) | Which::Absent(..) => orders.get(&self.name()).copied().unwrap_or_default(),
        }
    }

    fn addresses(&self) -> Option<Vec<String>> {
        let Which::Named(named) = self.which else { return None };
        let found = self.pool.members.iter().filter(|member| named.covers(&member.name));
        Some(found.map(|member| member.name.clone()).collect())
    }

    /// What else was ordered, so that this order does not do all that may be expected of it.
    fn overlaps(&self, pool: &str, orders: &PoolOrders, change: MemberChange) -> Vec<String> {
        let says_more = |other: &MemberOrder| match change {
            MemberChange::Drain(drain, _) => other.drain != Drain::Off && other.drain != drain,
            MemberChange::Weight(weight) => other.weight.is_some() && other.weight != weight,
        };
        let what = |other: &MemberOrder| match (change, other.weight) {
            (MemberChange::Weight(_), Some(weight)) => format!("has weight {weight}"),
            _ => "is drained".to_owned(),
        };
        let undo = |name: &str| match change {
            MemberChange::Drain(..) => format!("`trestle member drain {pool} {name} --undo` ends that"),
            MemberChange::Weight(_) => format!("`trestle member weight {pool} {name} --reset` ends that"),
        };
        match self.which {
            Which::Member(member) => {
                // A weight of its own counts before that of all.
                let counts = matches!(change, MemberChange::Drain(..) | MemberChange::Weight(None));
                let all = self.pool.named.iter().filter(|named| counts && named.covers(&member.name));
                let all = all.filter_map(|named| Some((named.name(), orders.get(&named.name())?)));
                all.filter(|(_, order)| says_more(order))
                    .map(|(name, order)| {
                        format!(
                            "{name}, which it is an address of, {} as a whole: {}",
                            what(order),
                            undo(&name)
                        )
                    })
                    .collect()
            }
            Which::Absent(..) => Vec::new(),
            Which::Named(named) => {
                let own = orders.iter().filter(|(name, order)| named.covers(name) && says_more(order));
                own.map(|(name, order)| {
                    format!("{name} {} by an order of its own: {}", what(order), undo(name))
                })
                .collect()
            }
        }
    }
}

/// The newest document; this node may not serve by it yet.
async fn agreed(cluster: &Cluster) -> Result<Document, ApiError> {
    let state = cluster.state(Consistency::Linearizable).await?;
    documents::of(state.revision()).await.map_err(ApiError::internal)
}

fn nobody_left(config: &Config, orders: &PoolOrders, name: &str) -> Option<String> {
    let pool = config.pools.get(name)?;
    let takes = |member: &model::Member| {
        let order = order_of(orders, pool, member);
        order.drain == Drain::Off && order.weight.unwrap_or(member.weight) > 0
    };
    (!pool.members.iter().any(takes))
        .then(|| format!("no member of pool {name} takes new traffic any more: clients get 503, or a reset"))
}

// === added, removed ===

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    message: Option<String>,
    if_revision: Option<u64>,
    /// As in the document.
    member: serde_json::Map<String, serde_json::Value>,
}

pub(super) async fn add(
    State(api): State<Arc<Api>>,
    Path(pool): Path<String>,
    Extension(author): Extension<Author>,
    body: Body,
) -> Result<Response, ApiError> {
    let order: NewMember = serde_json::from_slice(&body::bytes(body).await?).map_err(|e| {
        ApiError::bad_request(format!(
            "expected {{\"member\": {{\"address\": ADDRESS, ...}}, \"message\": TEXT, \"if_revision\": N}}: {e}"
        ))
    })?;
    let text = |key: &str| order.member.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let name = text("name").or_else(|| text("address")).unwrap_or_default();
    let edit = Edit {
        expected: order.if_revision,
        message: order.message.unwrap_or_else(|| format!("member {name} added to {pool}")),
        author,
    };
    let added = order.member.into();
    config::edit(api.cluster()?, edit, Files::default(), |present| Ok(with_member(present, &pool, added)?))
        .await
}

fn with_member(present: &Document, pool: &str, member: serde_json::Value) -> Result<String, NoSuchMember> {
    find_pool(present.config(), pool)?;
    let mut json = present.to_json();
    if let Some(members) = json["pools"][pool]["members"].as_array_mut() {
        members.push(member);
    }
    Ok(json.to_string())
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path((pool, member)): Path<(String, String)>,
    Params(why): Params<Why>,
    Extension(author): Extension<Author>,
) -> Result<Response, ApiError> {
    let edit = why.edit(author, || format!("member {member} removed from {pool}"));
    config::edit(api.cluster()?, edit, Files::default(), |present| {
        Ok(without_member(present, &pool, &member)?)
    })
    .await
}

fn without_member(present: &Document, pool: &str, member: &str) -> Result<String, NoSuchMember> {
    let mut json = present.to_json();
    // A valid document lists the members in the order of the config that was made of it, which keeps those
    // that are DNS names apart.
    let (of_name, nth) = match find_in_document(present.config(), pool, member)? {
        Meant::Member(index) => (false, index),
        Meant::Named(index) => (true, index),
    };
    if let Some(members) = json["pools"][pool]["members"].as_array_mut() {
        let same_kind = |member: &serde_json::Value| is_dns_name(member) == of_name;
        let mut places = members.iter().enumerate().filter(|(_, member)| same_kind(member));
        if let Some((place, _)) = places.nth(nth) {
            members.remove(place);
        }
    }
    Ok(json.to_string())
}

/// As the document has it.
fn is_dns_name(member: &serde_json::Value) -> bool {
    let address = member.as_str().or_else(|| member["address"].as_str());
    address.is_some_and(|address| address.parse::<SocketAddr>().is_err())
}

impl From<NoSuchMember> for ApiError {
    fn from(error: NoSuchMember) -> Self {
        let code = match error {
            NoSuchMember::Pool { .. } => "no_such_pool",
            NoSuchMember::Member { .. } => "no_such_member",
            NoSuchMember::Several { .. } => "several_members",
            NoSuchMember::OneAddress { .. } => "one_address",
        };
        ApiError::new(StatusCode::NOT_FOUND, code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use trestle_cluster::MemberHealth;
    use trestle_config::Source;

    use super::*;

    #[test]
    fn a_member_is_shown_as_judged_and_as_used() {
        let health = |name: &str| MemberHealth {
            name: name.into(),
            address: "192.0.2.1:80".into(),
            of: None,
            up: true,
            ejected: true,
            ejection: Some(EjectionStatus { cause: "failures", reason: "5 in a row".into(), left_ms: 9 }),
            drain: "new",
            in_flight_elsewhere: Some(4),
            probers: vec![("n1".into(), None)],
            reason: Some("timeout".into()),
        };
        let members = vec![health("a"), health("new")];
        let pool =
            PoolStatus { pool: "app".into(), panic: false, members, names: Vec::new(), adaptive: None };
        let view = MemberView {
            pool: "app".into(),
            member: "a".into(),
            address: "192.0.2.1:80".parse().unwrap(),
            weight: 3,
            configured: 1,
            drain: trestle_dataplane::Drain::New,
            up: true,
            ejected: true,
            ejection: None,
            in_flight: 2,
        };
        let json = serde_json::to_value(join_views(vec![pool], vec![view])).unwrap();
        assert_eq!(json[0]["members"][0]["ejected"], true);
        assert_eq!(json[0]["members"][0]["reason"], "timeout");
        assert_eq!(json[0]["members"][0]["ejection"]["cause"], "failures");
        assert_eq!(json[0]["members"][0]["in_flight"], 2);
        assert_eq!(json[0]["members"][0]["drain"], "new");
        assert_eq!(json[0]["members"][0]["in_flight_elsewhere"], 4);
        assert_eq!(json[0]["members"][0]["configured_weight"], 1);
        assert_eq!(json[0]["members"][0]["probers"], serde_json::json!([{"node": "n1", "up": null}]));
        assert_eq!(json[0]["members"][1]["weight"], serde_json::Value::Null);
    }

    fn document(text: &str) -> Document {
        trestle_config::parse(Source { name: "t", text }).unwrap()
    }

    const APP: &str =
        r#"pools: { app: { members: ["192.0.2.1:80", { address: "192.0.2.2:80", name: b, weight: 2 }] } }"#;

    #[test]
    fn one_member_comes_or_goes_and_the_rest_of_the_document_stays() {
        let present = document(APP);
        let added = json!({ "address": "192.0.2.3:80", "name": "c", "zone": "east" });
        let grown = document(&with_member(&present, "app", added).unwrap());
        let names = |document: &Document| {
            document.config().pools["app"].members.iter().map(|m| m.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&grown), ["192.0.2.1:80", "b", "c"]);
        assert_eq!(document(&without_member(&grown, "app", "c").unwrap()), present);
        let shrunk = document(&without_member(&grown, "app", "192.0.2.1:80").unwrap());
        assert_eq!(names(&shrunk), ["b", "c"]);
        assert_eq!(shrunk.config().pools["app"].members[0].weight, 2);
        assert!(
            with_member(&present, "apps", json!({})).unwrap_err().to_string().contains("did you mean app?")
        );
        assert!(without_member(&present, "app", "d").is_err());
    }

    #[test]
    fn a_name_among_the_members_is_removed_as_it_stands() {
        let present = document(
            r#"pools: { app: { members: ["a.internal:80", "192.0.2.1:80", { address: "srv:_x._tcp.b", name: b }] } }"#,
        );
        let left = |member: &str| {
            let shrunk = document(&without_member(&present, "app", member).unwrap());
            let pool = &shrunk.config().pools["app"];
            (pool.members.len(), pool.named.iter().map(|named| named.label.clone()).collect::<Vec<_>>())
        };
        assert_eq!(left("192.0.2.1:80"), (0, vec!["a.internal".to_owned(), "b".to_owned()]));
        assert_eq!(left("b"), (1, vec!["a.internal".to_owned()]));
        assert_eq!(left("a.internal"), (1, vec!["b".to_owned()]));
        assert_eq!(left("A.internal.:80"), (1, vec!["b".to_owned()]), "as it is written");
        assert_eq!(left("srv:_x._tcp.b"), (1, vec!["a.internal".to_owned()]));
        let one = without_member(&present, "app", "a.internal/192.0.2.7:80").unwrap_err().to_string();
        assert!(one.contains("is one address of a.internal:80, which pool app finds by DNS"), "{one}");
    }

    #[test]
    fn a_pool_without_anybody_for_new_traffic_is_told() {
        let present = document(APP);
        let drained = MemberOrder { drain: Drain::New, ..MemberOrder::default() };
        let light = MemberOrder { weight: Some(0), ..MemberOrder::default() };
        let told = |all: &[(&str, MemberOrder)]| nobody_left(present.config(), &orders(all), "app").is_some();
        assert!(!told(&[]) && !told(&[("b", drained)]));
        assert!(told(&[("b", drained), ("192.0.2.1:80", light)]));
    }

    fn orders(all: &[(&str, MemberOrder)]) -> PoolOrders {
        all.iter().map(|(name, order)| ((*name).to_owned(), *order)).collect()
    }

    /// Pool `app` of a member by DNS, `two`, with two addresses, and `b`, with one.
    fn resolved() -> Config {
        let present = document(
            r#"pools: { app: { members: [{ address: "two.internal:80", name: two }, "b.internal:80"] } }"#,
        );
        let mut config = present.config().as_ref().clone();
        let pool = config.pools.get_mut("app").unwrap();
        for name in ["two/192.0.2.1:80", "two/192.0.2.2:80", "b.internal/192.0.2.3:80"] {
            let address = name.rsplit_once('/').unwrap().1.parse().unwrap();
            let host = Some("x.internal".into());
            pool.members.push(model::Member { host, ..model::Member::new(name, address) });
        }
        config
    }

    #[test]
    fn an_order_is_about_one_address_or_about_all_of_a_dns_name() {
        let config = resolved();
        let subject = |text| Subject::find(&config, &PoolOrders::new(), "app", text).unwrap();
        let all = subject("two");
        assert_eq!(all.addresses().unwrap(), ["two/192.0.2.1:80", "two/192.0.2.2:80"]);
        let one = subject("192.0.2.2:80");
        assert_eq!((one.name(), one.addresses()), ("two/192.0.2.2:80".to_owned(), None));
        assert_eq!(subject("b.internal").name(), "b.internal:80");

        let drained = MemberOrder { drain: Drain::New, ..MemberOrder::default() };
        let both = orders(&[("two", drained), ("b.internal:80", drained)]);
        assert!(nobody_left(&config, &both, "app").is_some());
        assert!(nobody_left(&config, &orders(&[("two", drained)]), "app").is_none());
        assert_eq!(one.order(&both), drained);

        // What DNS leaves out for now is still there to be ended.
        let left = "two/192.0.2.9:80";
        assert!(Subject::find(&config, &both, "app", left).is_err());
        let ordered = orders(&[(left, drained)]);
        let absent = Subject::find(&config, &ordered, "app", left).unwrap();
        assert_eq!((absent.name(), absent.order(&ordered)), (left.to_owned(), drained));
    }

    #[test]
    fn who_ends_one_of_two_orders_hears_of_the_other() {
        let config = resolved();
        let subject = |text| Subject::find(&config, &PoolOrders::new(), "app", text).unwrap();
        let drained = MemberOrder { drain: Drain::New, ..MemberOrder::default() };
        let heavy = MemberOrder { weight: Some(3), ..MemberOrder::default() };
        let (undo, reset) = (MemberChange::Drain(Drain::Off, None), MemberChange::Weight(None));
        let told = |text: &'static str, order: (&str, MemberOrder), change| {
            subject(text).overlaps("app", &orders(&[order]), change).join("; ")
        };
        assert_eq!(
            told("two/192.0.2.1:80", ("two", drained), undo),
            "two, which it is an address of, is drained as a whole: `trestle member drain app two --undo` ends that"
        );
        assert_eq!(
            told("two", ("two/192.0.2.1:80", heavy), reset),
            "two/192.0.2.1:80 has weight 3 by an order of its own: `trestle member weight app two/192.0.2.1:80 --reset` ends that"
        );
        for (text, order, change) in [
            ("two", ("two/192.0.2.1:80", drained), reset),
            ("two", ("b.internal/192.0.2.3:80", drained), undo),
            ("two", ("two/192.0.2.1:80", drained), MemberChange::Drain(Drain::New, None)),
            ("two/192.0.2.1:80", ("two", heavy), MemberChange::Weight(Some(5))),
            ("b.internal", ("two", drained), undo),
        ] {
            assert_eq!(told(text, order, change), "", "{text} {order:?}");
        }
    }
}
