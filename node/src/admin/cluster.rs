//! `/v1/nodes`, `/v1/vips`, `/v1/clients`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use trestle_raft_store::types::{self, NodeId};

use super::{Api, ApiError, Params};

/// Clients that one answer lists at most.
const CLIENTS_MAX: usize = 8_192;

pub(super) async fn nodes(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    Ok(Json(serde_json::json!({ "nodes": api.cluster()?.status().nodes })).into_response())
}

pub(super) async fn promote(
    State(api): State<Arc<Api>>,
    Path(node): Path<String>,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let id = resolve(&cluster.watch_state().borrow(), &node)?;
    cluster.promote(id).await?;
    Ok(Json(serde_json::json!({ "node": id, "membership": "voter" })).into_response())
}

pub(super) async fn demote(
    State(api): State<Arc<Api>>,
    Path(node): Path<String>,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let id = resolve(&cluster.watch_state().borrow(), &node)?;
    cluster.demote(id).await?;
    Ok(Json(serde_json::json!({ "node": id, "membership": "learner" })).into_response())
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path(node): Path<String>,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let id = resolve(&cluster.watch_state().borrow(), &node)?;
    cluster.remove(id).await?;
    let note = "a removed node still holds the cluster's key: this is no revocation";
    Ok(Json(serde_json::json!({ "node": id, "removed": true, "note": note })).into_response())
}

pub(super) async fn drain(state: State<Arc<Api>>, node: Path<String>) -> Result<Response, ApiError> {
    set_drained(state, node, true).await
}

pub(super) async fn undrain(state: State<Arc<Api>>, node: Path<String>) -> Result<Response, ApiError> {
    set_drained(state, node, false).await
}

async fn set_drained(
    State(api): State<Arc<Api>>,
    Path(node): Path<String>,
    on: bool,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let id = resolve(&cluster.watch_state().borrow(), &node)?;
    cluster.drain_node(id, on).await?;
    Ok(Json(serde_json::json!({ "node": id, "drained": on })).into_response())
}

pub(super) async fn vips(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let (vips, quorum, left) = (cluster.vips(), cluster.has_quorum(), cluster.left_raft());
    Ok(Json(serde_json::json!({ "vips": vips, "quorum": quorum, "problem": left })).into_response())
}

#[derive(Deserialize)]
pub(super) struct MoveQuery {
    to: String,
}

pub(super) async fn move_vip(
    State(api): State<Arc<Api>>,
    Path(vip): Path<String>,
    Params(query): Params<MoveQuery>,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let in_force = cluster.in_force();
    let vips = &in_force.config().vips;
    if !vips.contains_key(&vip) {
        let names: Vec<_> = vips.keys().map(String::as_str).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let message = format!("no VIP has the name {vip:?}; the config has {known}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_vip", message));
    }
    let id = resolve(&cluster.watch_state().borrow(), &query.to)?;
    let name = cluster.watch_state().borrow().nodes.get(&id).map(|node| node.profile.name.clone());
    let name = name.unwrap_or_default();
    if !vips[&vip].allows(&name) {
        let message = format!("VIP {vip} may not be held by {name}: its `nodes` leave that node out");
        return Err(ApiError::new(StatusCode::CONFLICT, "not_allowed", message));
    }
    cluster.move_vip(&vip, id).await?;
    let mut warnings = Vec::new();
    let rules = &vips[&vip];
    if rules.preempt
        && let Some(first) = rules.prefer.iter().take_while(|preferred| **preferred != name).next()
    {
        warnings.push(format!(
            "VIP {vip} goes back to {first} as soon as that node can hold it: the config prefers it (`prefer`, `preempt: true`)"
        ));
    }
    Ok(Json(serde_json::json!({ "vip": vip, "owner": name, "warnings": warnings })).into_response())
}

/// A node by name or by id. A name that is also another node's id is nobody's.
fn resolve(state: &types::State, wanted: &str) -> Result<NodeId, ApiError> {
    let named = state.node_by_name(wanted).map(|(id, _)| id);
    let numbered = wanted.parse::<NodeId>().ok().filter(|id| state.nodes.contains_key(id));
    match (named, numbered) {
        (Some(named), Some(numbered)) if named != numbered => Err(ApiError::new(
            StatusCode::CONFLICT,
            "ambiguous",
            format!(
                "{wanted} is the name of node {named} and the id of another; use the id {named} for the former"
            ),
        )),
        (Some(id), _) | (None, Some(id)) => Ok(id),
        (None, None) => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "no_such_node",
            format!("no node has the name or id {wanted:?}; the cluster has {}", names(state)),
        )),
    }
}

fn names(state: &types::State) -> String {
    let names: Vec<_> =
        state.nodes.iter().map(|(id, node)| format!("{} ({id})", node.profile.name)).collect();
    names.join(", ")
}

#[derive(Deserialize)]
pub(super) struct ClientsQuery {
    most: Option<usize>,
}

pub(super) async fn clients(
    State(api): State<Arc<Api>>,
    Params(query): Params<ClientsQuery>,
) -> Result<Response, ApiError> {
    let most = query.most.unwrap_or(20).min(CLIENTS_MAX);
    Ok(Json(api.cluster()?.clients(most).await).into_response())
}

#[cfg(test)]
mod tests {
    use trestle_raft_store::types::{NodeProfile, NodeRecord, Role};

    use super::*;

    fn state(nodes: &[(NodeId, &str)]) -> types::State {
        let record = |name: &str| NodeRecord {
            profile: NodeProfile {
                name: name.into(),
                cluster: String::new(),
                admin: String::new(),
                join_token: uuid::Uuid::nil(),
                version: String::new(),
                feature_level: 1,
            },
            role: Role::Auto,
            joined_ms: 0,
        };
        types::State {
            nodes: nodes.iter().map(|(id, name)| (*id, record(name))).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_node_is_found_by_name_or_id_and_never_guessed() {
        let state = state(&[(0, "a"), (5, "b"), (9, "5"), (12, "12")]);
        assert_eq!(resolve(&state, "b").unwrap(), 5);
        assert_eq!(resolve(&state, "9").unwrap(), 9);
        assert_eq!(resolve(&state, "12").unwrap(), 12, "name and id of the same node");
        assert_eq!(resolve(&state, "5").unwrap_err().code, "ambiguous");
        let unknown = resolve(&state, "c").unwrap_err();
        assert_eq!(unknown.status, 404);
        assert!(unknown.message.contains("b (5)"), "{}", unknown.message);
    }
}
