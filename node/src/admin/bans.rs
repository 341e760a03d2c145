//! `/v1/bans`: clients that are shut out for a time, on all nodes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use trestle_cluster::{BanError, BanOrder, BanStatus};
use trestle_config::networks;

use super::{Api, ApiError, Author, body};
use crate::durations;

/// As of a `ban` policy.
const LENGTH: Duration = Duration::from_secs(600);

#[derive(Serialize)]
struct Ban {
    #[serde(flatten)]
    status: BanStatus,
    until: String,
}

impl From<BanStatus> for Ban {
    fn from(status: BanStatus) -> Self {
        Ban { until: durations::rfc3339(status.until_ms), status }
    }
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let bans: Vec<Ban> = api.cluster()?.bans().into_iter().map(Ban::from).collect();
    Ok(Json(json!({ "bans": bans })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    network: String,
    #[serde(rename = "for")]
    length: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    force: bool,
}

pub(super) async fn add(
    State(api): State<Arc<Api>>,
    Extension(author): Extension<Author>,
    body: Body,
) -> Result<Response, ApiError> {
    let order: Order = serde_json::from_slice(&body::bytes(body).await?).map_err(|e| {
        ApiError::bad_request(format!(
            "expected {{\"network\": ADDRESS, \"for\": TIME, \"reason\": TEXT, \"force\": false}}: {e}"
        ))
    })?;
    let length = order.length.as_deref().map(durations::parse).transpose().map_err(ApiError::bad_request)?;
    let order = BanOrder {
        network: networks::parse(&order.network).map_err(ApiError::bad_request)?,
        length: length.unwrap_or(LENGTH),
        reason: order.reason,
        author: author.0,
        force: order.force,
    };
    Ok(Json(Ban::from(api.cluster()?.ban(order).await?)).into_response())
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path(network): Path<String>,
) -> Result<Response, ApiError> {
    let wanted = networks::parse(&network).map_err(ApiError::bad_request)?;
    api.cluster()?.unban(wanted).await?;
    Ok(Json(json!({ "network": network, "removed": true })).into_response())
}

impl From<BanError> for ApiError {
    fn from(error: BanError) -> Self {
        let (status, code) = match error {
            BanError::Change(error) => return error.into(),
            BanError::Protected { .. } => (StatusCode::CONFLICT, "protected"),
            BanError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
            BanError::NotBanned { .. } => (StatusCode::NOT_FOUND, "not_banned"),
        };
        ApiError::new(status, code, error.to_string())
    }
}
