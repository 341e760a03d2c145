//! `/v1/config`: read, change, history, diff, rollback.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use trestle_cluster::{Applied, ChangeError, Cluster, Consistency, Draft, Files};
use trestle_config::{Document, Problem};
use trestle_raft_store::types::{self, Revision};

use super::error::ProblemBody;
use super::{Api, ApiError, Author, Params, body};
use crate::documents::{self, Parcel};
use crate::durations;

/// Bytes of a change's message that history keeps.
const MESSAGE_MAX: usize = 1_024;

/// Bytes of the name under which a document is spoken of.
const SOURCE_MAX: usize = 512;

#[derive(Deserialize)]
pub(super) struct ReadQuery {
    revision: Option<u64>,
    #[serde(default)]
    consistency: Wanted,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    #[default]
    Local,
    Linearizable,
}

impl From<Wanted> for Consistency {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Local => Consistency::Local,
            Wanted::Linearizable => Consistency::Linearizable,
        }
    }
}

pub(super) async fn read(
    State(api): State<Arc<Api>>,
    Params(query): Params<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let state = api.cluster()?.state(query.consistency.into()).await?;
    let revision = revision_or_last(&state, query.revision)?;
    let document = documents::of(revision.as_ref()).await.map_err(ApiError::internal)?;
    let number = revision.map_or(0, |r| r.number);
    let (kind, bytes) = if wants_json(&headers) {
        ("application/json", serde_json::to_vec(&document.to_json()).map_err(ApiError::internal)?)
    } else {
        ("application/yaml", Vec::from(document.canonical()))
    };
    let etag = HeaderValue::try_from(format!("\"{number}\"")).map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(kind)), (header::ETAG, etag)], bytes)
        .into_response())
}

#[derive(Deserialize)]
pub(super) struct WriteQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    message: String,
    /// Name of the document in problems.
    source: Option<String>,
}

/// What a change did, or would do.
#[derive(Serialize)]
struct Change {
    revision: u64,
    /// The document equals the one in force: no new revision.
    unchanged: bool,
    dry_run: bool,
    /// For people.
    diff: String,
    warnings: Vec<ProblemBody>,
}

impl Change {
    fn new(applied: Applied, diff: String, document: &Document) -> Self {
        let Applied { revision, unchanged } = applied;
        Self { revision, unchanged, dry_run: false, diff, warnings: warnings(document) }
    }
}

fn warnings(document: &Document) -> Vec<ProblemBody> {
    document.warnings().iter().map(ProblemBody::from).collect()
}

pub(super) async fn write(
    State(api): State<Arc<Api>>,
    Params(query): Params<WriteQuery>,
    Extension(author): Extension<Author>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let expected = if_match(&headers)?;
    bounded("message", &query.message, MESSAGE_MAX)?;
    let source = query.source.unwrap_or_else(|| "document".to_owned());
    bounded("source", &source, SOURCE_MAX)?;
    let draft = draft(source, &headers, body).await?;
    let document = draft.document.clone();
    let proposal = cluster.resolve(draft).await.map_err(|problems| ApiError::from(&problems[..]))?;
    let base = base(cluster, query.dry_run).await?;
    let diff = difference(&base, proposal.document()).await?;
    if query.dry_run {
        cluster.check(&proposal).map_err(ChangeError::Invalid)?;
        let revision = base.revision_number();
        if let Some(expected) = expected.filter(|expected| *expected != revision) {
            return Err(ApiError::revision_conflict(expected, revision));
        }
        let (unchanged, warnings) = (diff.is_empty(), warnings(&document));
        return Ok(Json(Change { revision, unchanged, dry_run: true, diff, warnings }).into_response());
    }
    let applied = cluster.put_config(&proposal, expected, author.0, query.message).await?;
    Ok(Json(Change::new(applied, diff, &document)).into_response())
}

/// A document, alone or with its files.
async fn draft(source: String, headers: &HeaderMap, body: Body) -> Result<Draft, ApiError> {
    if !is_parcel(headers) {
        let text = body::text(body).await?;
        let document = documents::parse(source, text).await.map_err(ApiError::internal)??;
        return Ok(Draft::plain(document));
    }
    let bytes = body::bytes_within(body, body::PARCEL_MAX).await?;
    let unpack = move || -> Result<(String, Files), String> {
        // What the reader says could quote a private key.
        let parcel: Parcel = serde_json::from_slice(&bytes).map_err(|e| {
            let (line, column) = (e.line(), e.column());
            format!("expected {{\"document\": TEXT, \"files\": {{PATH: BASE64}}}}, at {line}:{column} is something else")
        })?;
        let files = parcel.files()?;
        Ok((parcel.document, files))
    };
    let unpacked = tokio::task::spawn_blocking(unpack).await.map_err(ApiError::internal)?;
    let (text, files) = unpacked.map_err(ApiError::bad_request)?;
    let document = documents::parse(source, text).await.map_err(ApiError::internal)??;
    Ok(Draft { document, files })
}

fn is_parcel(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(documents::PARCEL)
}

/// What a change is compared with. A dry run should tell what an apply would do now, so it asks a
/// quorum; without one it says what this node knows.
async fn base(cluster: &Cluster, dry_run: bool) -> Result<Arc<types::State>, ApiError> {
    if dry_run {
        match cluster.state(Consistency::Linearizable).await {
            Err(ChangeError::NoQuorum { .. }) => {}
            answer => return Ok(answer?),
        }
    }
    Ok(cluster.state(Consistency::Local).await?)
}

async fn difference(base: &types::State, document: &Document) -> Result<String, ApiError> {
    let old = documents::of(base.revision()).await.map_err(ApiError::internal)?;
    Ok(diff_text(&old, document))
}

fn diff_text(old: &Document, new: &Document) -> String {
    let diff = trestle_config::diff(old, new);
    if diff.is_empty() { String::new() } else { diff.to_string() }
}

/// One kept revision, without its document.
#[derive(Serialize)]
struct HistoryEntry<'a> {
    revision: u64,
    author: &'a str,
    message: &'a str,
    at: String,
    at_ms: u64,
    bytes: usize,
}

impl<'a> From<&'a Revision> for HistoryEntry<'a> {
    fn from(revision: &'a Revision) -> Self {
        HistoryEntry {
            revision: revision.number,
            author: &revision.author,
            message: &revision.message,
            at: durations::rfc3339(revision.at_ms),
            at_ms: revision.at_ms,
            bytes: revision.document.len(),
        }
    }
}

/// Newest first.
pub(super) async fn history(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let state = api.cluster()?.state(Consistency::Local).await?;
    let revisions: Vec<_> = state.revisions.iter().rev().map(|r| HistoryEntry::from(&**r)).collect();
    Ok(Json(serde_json::json!({ "revisions": revisions })).into_response())
}

#[derive(Deserialize)]
pub(super) struct DiffQuery {
    from: Option<u64>,
    to: Option<u64>,
}

/// Without `to`: the one in force; without `from`: the one before `to`.
pub(super) async fn diff(
    State(api): State<Arc<Api>>,
    Params(query): Params<DiffQuery>,
) -> Result<Response, ApiError> {
    let state = api.cluster()?.state(Consistency::Local).await?;
    let to = query.to.unwrap_or(state.revision_number());
    let from = query.from.unwrap_or(to.saturating_sub(1));
    let new = documents::of(numbered(&state, to)?.as_ref()).await.map_err(ApiError::internal)?;
    let old = documents::of(numbered(&state, from)?.as_ref()).await.map_err(ApiError::internal)?;
    Ok(Json(serde_json::json!({ "from": from, "to": to, "diff": diff_text(&old, &new) })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    to: u64,
    if_revision: Option<u64>,
    message: Option<String>,
}

/// A rollback is a new revision with an old document.
pub(super) async fn rollback(
    State(api): State<Arc<Api>>,
    Extension(author): Extension<Author>,
    body: Body,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let order: Rollback = serde_json::from_slice(&body::bytes(body).await?)
        .map_err(|e| ApiError::bad_request(format!("expected {{\"to\": N, \"if_revision\": N}}: {e}")))?;
    let message = order.message.unwrap_or_else(|| format!("rollback to {}", order.to));
    bounded("message", &message, MESSAGE_MAX)?;
    let state = cluster.state(Consistency::Local).await?;
    let target = numbered(&state, order.to)?.ok_or_else(|| {
        let (oldest, newest) = documents::kept(&state);
        ApiError::no_such_revision(order.to, oldest, newest)
    })?;
    let document = documents::of(Some(&target)).await.map_err(ApiError::internal)?;
    let draft = Draft::plain(document.clone());
    let proposal = cluster.resolve(draft).await.map_err(|problems| ApiError::from(&problems[..]))?;
    let diff = difference(&state, &document).await?;
    let applied = cluster.put_config(&proposal, order.if_revision, author.0, message).await?;
    Ok(Json(Change::new(applied, diff, &document)).into_response())
}

/// An order that edits the document in force.
pub(super) struct Edit {
    /// Compare-and-set; at least with the document that is edited.
    pub(super) expected: Option<u64>,
    pub(super) message: String,
    pub(super) author: Author,
}

/// What the query of such an order says of it.
#[derive(Deserialize)]
pub(super) struct Why {
    message: Option<String>,
    if_revision: Option<u64>,
}

impl Why {
    /// `said`: where nothing was said.
    pub(super) fn edit(self, author: Author, said: impl FnOnce() -> String) -> Edit {
        Edit { expected: self.if_revision, message: self.message.unwrap_or_else(said), author }
    }
}

/// Puts in force what `change` makes of the newest document, as a new revision. `files`: what it names.
pub(super) async fn edit(
    cluster: &Cluster,
    Edit { expected, message, author }: Edit,
    files: Files,
    change: impl FnOnce(&Document) -> Result<String, ApiError>,
) -> Result<Response, ApiError> {
    bounded("message", &message, MESSAGE_MAX)?;
    let state = cluster.state(Consistency::Linearizable).await?;
    let expected = expected.unwrap_or(state.revision_number());
    let present = documents::of(state.revision()).await.map_err(ApiError::internal)?;
    let text = change(&present)?;
    let document = documents::parse("document".to_owned(), text).await.map_err(ApiError::internal)?;
    let document = document.map_err(|problems| refused_edit(problems.as_slice()))?;
    let draft = Draft { document, files };
    let proposal = cluster.resolve(draft).await.map_err(|problems| refused_edit(&problems))?;
    let diff = diff_text(&present, proposal.document());
    let applied = cluster.put_config(&proposal, Some(expected), author.0, message).await?;
    Ok(Json(Change::new(applied, diff, proposal.document())).into_response())
}

/// Lines mean nothing here: whoever asks has sent no document.
fn refused_edit(problems: &[Problem]) -> ApiError {
    let told = |problem: &Problem| {
        let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{}: {}{help}", problem.path, problem.message)
    };
    let lines: Vec<_> = problems.iter().map(told).collect();
    let mut error = ApiError::from(problems);
    error.problems.clear();
    error.message = format!("{}; nothing was changed", lines.join("; "));
    error
}

// === revisions and headers ===

/// Revision 0 is the empty document before the first; `None` stands for it.
fn numbered(state: &types::State, number: u64) -> Result<Option<Arc<Revision>>, ApiError> {
    if number == 0 {
        return Ok(None);
    }
    let found = documents::find(state, number).cloned();
    let (oldest, newest) = documents::kept(state);
    found.map(Some).ok_or_else(|| ApiError::no_such_revision(number, oldest, newest))
}

fn revision_or_last(state: &types::State, number: Option<u64>) -> Result<Option<Arc<Revision>>, ApiError> {
    match number {
        Some(number) => numbered(state, number),
        None => Ok(state.revision().cloned()),
    }
}

/// `If-Match: 7` or `"7"`; `*` or nothing: any (RFC 9110, section 13.1.1).
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let wrong = || {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "If-Match takes one revision number, such as `If-Match: 7`",
        )
    };
    bare.parse().map(Some).map_err(|_| wrong())
}

/// JSON when it is asked for by name before YAML; else YAML.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for kind in accepted.flat_map(|value| value.split(',')) {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case("application/json") {
            return true;
        }
        if kind.to_ascii_lowercase().ends_with("yaml") {
            return false;
        }
    }
    false
}

fn bounded(what: &str, text: &str, bytes_max: usize) -> Result<(), ApiError> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("{what} has {} bytes, at most {bytes_max} fit", text.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
    }

    #[test]
    fn the_expected_revision_is_read_quoted_or_bare() {
        for (given, expected) in [("7", Some(7)), ("\"7\"", Some(7)), ("*", None), (" 12 ", Some(12))] {
            assert_eq!(if_match(&headers("if-match", given)).unwrap(), expected, "{given}");
        }
        for bad in ["", "x", "\"7", "W/\"7\"", "7, 8", "-1"] {
            assert_eq!(if_match(&headers("if-match", bad)).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn json_is_sent_to_who_asks_for_it_and_yaml_to_all_others() {
        for (accept, json) in [
            ("application/json", true),
            ("*/*", false),
            ("text/html, application/json;q=0.9", true),
            ("application/yaml, application/json", false),
        ] {
            assert_eq!(wants_json(&headers("accept", accept)), json, "{accept}");
        }
        assert!(!wants_json(&HeaderMap::new()));
    }

    #[test]
    fn revision_zero_is_the_empty_document_and_an_unknown_one_is_not_found() {
        assert!(numbered(&types::State::default(), 0).unwrap().is_none());
        assert_eq!(numbered(&types::State::default(), 1).unwrap_err().status, 404);
    }
}
