//! One place that turns what went wrong into an answer: status, code and message can't disagree.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use trestle_cluster::ChangeError;
use trestle_config::{Problem, Problems};
use trestle_raft_store::types::Refusal;

/// An answer that is not a success: `{"error": {"code", "message", "problems"}}`.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// For programs; the set only grows.
    pub(crate) code: &'static str,
    /// For people.
    pub(crate) message: String,
    pub(crate) problems: Vec<ProblemBody>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    message: &'a str,
    problems: &'a [ProblemBody],
}

/// One mistake in a document, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ProblemBody {
    file: String,
    line: usize,
    column: usize,
    path: String,
    message: String,
    help: Option<String>,
}

impl From<&Problem> for ProblemBody {
    fn from(problem: &Problem) -> Self {
        ProblemBody {
            file: problem.file.clone(),
            line: problem.line,
            column: problem.column,
            path: problem.path.clone(),
            message: problem.message.clone(),
            help: problem.help.clone(),
        }
    }
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), problems: Vec::new() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(crate) fn starting() -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "starting",
            "this node is not part of a cluster yet; `/readyz` says when it is",
        )
    }

    pub(crate) fn revision_conflict(expected: u64, actual: u64) -> ApiError {
        Refusal::RevisionMismatch { expected, actual }.into()
    }

    pub(crate) fn no_such_revision(number: u64, oldest: u64, newest: u64) -> ApiError {
        let message = match newest {
            0 => format!("there is no revision {number}: the cluster has none yet"),
            _ => format!("revision {number} is not kept; there are {oldest} to {newest}"),
        };
        ApiError::new(StatusCode::NOT_FOUND, "no_such_revision", message)
    }

    /// Nothing the caller can mend; the cause goes to the log, once, here.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> ApiError {
        tracing::error!(error = %cause, "admin request failed");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "this node failed to answer; its log says why",
        )
    }
}

impl From<Problems> for ApiError {
    fn from(problems: Problems) -> Self {
        problems.as_slice().into()
    }
}

impl From<&[Problem]> for ApiError {
    fn from(problems: &[Problem]) -> Self {
        let message = match problems.len() {
            1 => "the document has a problem; nothing was changed".to_owned(),
            n => format!("the document has {n} problems; nothing was changed"),
        };
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_config", message);
        error.problems = problems.iter().map(ProblemBody::from).collect();
        error
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match refusal {
            Refusal::RevisionMismatch { .. } => (StatusCode::CONFLICT, "revision_conflict"),
            Refusal::NoSuchContent(_) | Refusal::TooLarge { .. } => (StatusCode::BAD_REQUEST, "invalid"),
            Refusal::NoSuchNode(_) => (StatusCode::NOT_FOUND, "no_such_node"),
            Refusal::Removed(_) => (StatusCode::GONE, "removed"),
            Refusal::NotFounded => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            Refusal::NoVipOwner(_) | Refusal::VipEpoch { .. } | Refusal::VipAddress { .. } => {
                (StatusCode::CONFLICT, "vip_conflict")
            }
            Refusal::NameTaken { .. }
            | Refusal::Founded(_)
            | Refusal::TooOld { .. }
            | Refusal::TooManyOrders { .. }
            | Refusal::TooManyBans { .. }
            | Refusal::OtherFolder(_) => (StatusCode::CONFLICT, "refused"),
        };
        ApiError::new(status, code, refusal.to_string())
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let (status, code) = match error {
            ChangeError::Refused(refusal) => return refusal.into(),
            ChangeError::NoQuorum { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no_quorum"),
            ChangeError::Unknown(_) => (StatusCode::GATEWAY_TIMEOUT, "outcome_unknown"),
            ChangeError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
        };
        ApiError::new(status, code, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = Body { code: self.code, message: &self.message, problems: &self.problems };
        let mut response = (self.status, Json(Envelope { error })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = http::HeaderValue::from_static("Bearer realm=\"trestle\"");
            response.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn each_failure_has_a_fit_status_and_code() {
        let mismatch = Refusal::RevisionMismatch { expected: 1, actual: 2 };
        let cases = [
            (ChangeError::Refused(mismatch), 409, "revision_conflict"),
            (ChangeError::Refused(Refusal::NoSuchNode(7)), 404, "no_such_node"),
            (ChangeError::NoQuorum { why: "1 of 3 voters".into(), revision: 4 }, 503, "no_quorum"),
            (ChangeError::Unknown("leader lost".into()), 504, "outcome_unknown"),
            (ChangeError::Invalid("too large".into()), 400, "invalid"),
        ];
        for (error, status, code) in cases {
            let answer = ApiError::from(error.clone());
            assert_eq!((answer.status.as_u16(), answer.code), (status, code), "{error}");
        }
    }

    #[tokio::test]
    async fn problems_of_a_document_are_told_with_their_places() {
        let problems =
            trestle_config::parse(trestle_config::Source { name: "web.yaml", text: "listners: {}\n" });
        let response = ApiError::from(problems.err().unwrap()).into_response();
        assert_eq!(response.status(), 400);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "invalid_config");
        let problem = &body["error"]["problems"][0];
        assert_eq!(problem["file"], "web.yaml");
        assert_eq!(problem["line"], 1);
        assert!(problem["message"].as_str().unwrap().contains("listners"), "{problem}");
    }
}
