//! `/v1/cache`: what this node's cache has and does, and purges, on all nodes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use trestle_cluster::{PurgeError, PurgeOrder};

use super::{Api, ApiError, Author, body};

pub(super) async fn stats(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let stats = api.node.plane.cache_stats();
    let purged = api.node.plane.latest_purge();
    Ok(Json(json!({
        "entries": stats.entries,
        "bytes": stats.bytes,
        "bytes_max": stats.bytes_max,
        "hits": stats.hits,
        "misses": stats.misses,
        "coalesced": stats.coalesced,
        "revalidated": stats.revalidated,
        "stale": stats.stale,
        "passed": stats.passed,
        "evicted": stats.evicted,
        "trusted": stats.trusted,
        "purged": purged,
        "disk": stats.disk.map(|disk| json!({
            "objects": disk.objects,
            "bytes": disk.bytes,
            "bytes_max": disk.bytes_max,
            "served": disk.served,
            "written": disk.written,
            "evicted": disk.evicted,
            "not_kept": disk.not_kept,
            "not_read": disk.not_read,
            "corrupt": disk.corrupt,
            "indexed": disk.indexed,
            "problem": disk.problem,
        })),
    }))
    .into_response())
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Order {
    urls: Vec<String>,
    prefixes: Vec<String>,
    tags: Vec<String>,
    all: bool,
}

pub(super) async fn purge(
    State(api): State<Arc<Api>>,
    Extension(author): Extension<Author>,
    body: Body,
) -> Result<Response, ApiError> {
    let order: Order = serde_json::from_slice(&body::bytes(body).await?).map_err(|e| {
        ApiError::bad_request(format!(
            "expected {{\"urls\": [URL], \"prefixes\": [URL], \"tags\": [TAG], \"all\": false}}: {e}"
        ))
    })?;
    let Order { urls, prefixes, tags, all } = order;
    let order = PurgeOrder { urls, prefixes, tags, all, author: author.0 };
    Ok(Json(api.cluster()?.purge(order).await?).into_response())
}

impl From<PurgeError> for ApiError {
    fn from(error: PurgeError) -> Self {
        match error {
            PurgeError::Change(error) => error.into(),
            PurgeError::Invalid(_) => ApiError::new(StatusCode::BAD_REQUEST, "invalid", error.to_string()),
        }
    }
}
