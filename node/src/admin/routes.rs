//! `/v1/routes/explain`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use trestle_dataplane::explain::{Asked, explain as think};

use super::{Api, ApiError, body};

/// By the revision that this node serves. Changes nothing.
pub(super) async fn explain(State(api): State<Arc<Api>>, body: Body) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let asked: Asked = serde_json::from_slice(&body::bytes(body).await?)
        .map_err(|error| ApiError::bad_request(format!("the body is no question: {error}")))?;
    let mut question = asked.question().map_err(|error| ApiError::bad_request(error.to_string()))?;
    let bound = api.node.plane.listeners().into_iter();
    question.chosen = bound.filter_map(|at| Some((at.listener, at.state.ok()?.port()))).collect();
    let (in_force, births) = (cluster.in_force(), cluster.watch_state().borrow().route_births.clone());
    // Thousands of rules take their time.
    let explained = tokio::task::spawn_blocking(move || {
        think(in_force.config(), in_force.contents(), &births, &question)
    });
    let explained = explained.await.map_err(ApiError::internal)?;
    let explained = explained.map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(Json(explained).into_response())
}
