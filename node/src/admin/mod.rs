//! The admin API: HTTP/JSON under `/v1`, health, metrics.
//!
//! Reads are answered by the node that is asked; changes go to the leader through
//! [`trestle_cluster::Cluster`]. The server is up before the node is part of a cluster and stays up
//! while it drains, so that `/readyz` can say what goes on. Every request passes [`access`] first.

mod access;
mod bans;
mod body;
mod cache;
mod certificates;
mod cluster;
mod config;
mod error;
mod firewall;
mod health;
mod kernel;
mod members;
mod metrics;
mod openapi;
mod routes;
mod server;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Extension, Router};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use trestle_cluster::Cluster;

use crate::run::Node;

pub(crate) use access::{Access, Author, Proof, Token};
pub(crate) use error::ApiError;
pub(crate) use server::Server;

/// What handlers share.
pub(crate) struct Api {
    pub(crate) node: Arc<Node>,
    pub(crate) access: Access,
    pub(crate) counters: Counters,
    wrong: access::Wrong,
}

/// What the admin API counts about itself.
#[derive(Default)]
pub(crate) struct Counters {
    /// Answers by status class, 1xx to 5xx.
    answers: [AtomicU64; 5],
    /// How often all connection slots were taken.
    full: AtomicU64,
    /// Connections that made room for others.
    made_room: AtomicU64,
}

impl Api {
    pub(crate) fn new(node: Arc<Node>, access: Access) -> Arc<Api> {
        Arc::new(Api { node, access, counters: Counters::default(), wrong: access::Wrong::default() })
    }

    fn cluster(&self) -> Result<&Cluster, ApiError> {
        self.node.cluster().ok_or_else(ApiError::starting)
    }
}

/// One entry of the API; `openapi.json` describes each.
struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the test of the description"))]
    method: &'static str,
    path: &'static str,
    handler: MethodRouter<Arc<Api>>,
}

fn routes() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    vec![
        route("get", "/healthz", get(health::healthz)),
        route("get", "/readyz", get(health::readyz)),
        route("get", "/metrics", get(metrics::metrics)),
        route("get", "/v1/status", get(health::status)),
        route("get", "/v1/config", get(config::read)),
        route("put", "/v1/config", put(config::write)),
        route("get", "/v1/config/history", get(config::history)),
        route("get", "/v1/config/diff", get(config::diff)),
        route("post", "/v1/config/rollback", post(config::rollback)),
        route("get", "/v1/certificates", get(certificates::list)),
        route("put", "/v1/certificates/{certificate}", put(certificates::set)),
        route("get", "/v1/nodes", get(cluster::nodes)),
        route("delete", "/v1/nodes/{node}", delete(cluster::remove)),
        route("post", "/v1/nodes/{node}/promote", post(cluster::promote)),
        route("post", "/v1/nodes/{node}/demote", post(cluster::demote)),
        route("post", "/v1/nodes/{node}/drain", post(cluster::drain)),
        route("delete", "/v1/nodes/{node}/drain", delete(cluster::undrain)),
        route("get", "/v1/vips", get(cluster::vips)),
        route("post", "/v1/vips/{vip}/move", post(cluster::move_vip)),
        route("get", "/v1/members", get(members::list)),
        route("post", "/v1/pools/{pool}/members", post(members::add)),
        route("delete", "/v1/pools/{pool}/members/{member}", delete(members::remove)),
        route("post", "/v1/pools/{pool}/members/{member}/drain", post(members::drain)),
        route("delete", "/v1/pools/{pool}/members/{member}/drain", delete(members::undrain)),
        route("put", "/v1/pools/{pool}/members/{member}/weight", put(members::weigh)),
        route("delete", "/v1/pools/{pool}/members/{member}/weight", delete(members::unweigh)),
        route("get", "/v1/clients", get(cluster::clients)),
        route("get", "/v1/bans", get(bans::list)),
        route("post", "/v1/bans", post(bans::add)),
        route("delete", "/v1/bans/{network}", delete(bans::remove)),
        route("get", "/v1/cache", get(cache::stats)),
        route("post", "/v1/cache/purge", post(cache::purge)),
        route("get", "/v1/firewall", get(firewall::list)),
        route("post", "/v1/firewall/{place}", post(firewall::add)),
        route("delete", "/v1/firewall/{place}/{index}", delete(firewall::remove)),
        route("get", "/v1/kernel", get(kernel::show)),
        route("post", "/v1/routes/explain", post(routes::explain)),
        route("get", "/v1/openapi.json", get(openapi::document)),
    ]
}

pub(crate) fn router(api: Arc<Api>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such path; see /v1/openapi.json")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "see /v1/openapi.json")
        })
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// Lets a request in or not, and counts the answer.
async fn guard(
    State(api): State<Arc<Api>>,
    Extension(proof): Extension<Proof>,
    mut request: Request,
    next: Next,
) -> Response {
    let verdict = api.access.judge(proof, request.method(), request.uri(), request.headers());
    let response = match verdict {
        Ok(author) => {
            request.extensions_mut().insert(author);
            next.run(request).await
        }
        Err(refused) => api.wrong.hold_up(refused).await.into_response(),
    };
    let class = usize::from(response.status().as_u16() / 100).clamp(1, 5);
    api.counters.answers[class - 1].fetch_add(1, Ordering::Relaxed);
    response
}

/// A query string, with mistakes told as every other error is.
struct Params<T>(T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Params(query.0))
            .map_err(|e| ApiError::bad_request(e.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_covers_every_route_and_no_other() {
        let described = openapi::operations();
        let mut served: Vec<_> =
            routes().iter().map(|route| (route.path.to_owned(), route.method.to_owned())).collect();
        served.sort();
        assert_eq!(described, served);
    }
}
