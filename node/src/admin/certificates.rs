//! `/v1/certificates`: those of the config in force, and one of them replaced.
//!
//! Private keys come in here and never go out.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;
use trestle_cluster::{CertificateStatus, Files};
use trestle_config::Document;

use super::config::{self, Edit};
use super::{Api, ApiError, Author, body};
use crate::durations;

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    status: CertificateStatus,
    /// For people.
    not_after: String,
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let row = |status: CertificateStatus| {
        let seconds = u64::try_from(status.not_after_unix).unwrap_or(0);
        Row { not_after: durations::rfc3339(seconds.saturating_mul(1_000)), status }
    };
    let rows: Vec<_> = api.cluster()?.certificates().into_iter().map(row).collect();
    Ok(Json(json!({ "certificates": rows })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    /// PEM.
    chain: String,
    /// PEM.
    key: String,
    /// DER in base64.
    ocsp: Option<String>,
    message: Option<String>,
    if_revision: Option<u64>,
}

/// The present document with this certificate in it, as a new revision.
pub(super) async fn set(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Extension(author): Extension<Author>,
    body: Body,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let order = order(&body::bytes(body).await?)?;
    let message = order.message.clone().unwrap_or_else(|| format!("certificate {name}"));
    let edit = Edit { expected: order.if_revision, message, author };
    config::edit(cluster, edit, order.files()?, |present| {
        Ok(with_certificate(present, &name, order.ocsp.is_some()))
    })
    .await
}

fn order(bytes: &[u8]) -> Result<Order, ApiError> {
    // What the reader says could quote the private key.
    serde_json::from_slice(bytes).map_err(|e| {
        ApiError::bad_request(format!(
            "expected {{\"chain\": PEM, \"key\": PEM, \"ocsp\": BASE64, \"message\": TEXT, \"if_revision\": N}}, the first two \
             at least; at {}:{} is something else",
            e.line(),
            e.column()
        ))
    })
}

/// Names of the files in the draft.
const CHAIN: &str = "chain";
const KEY: &str = "key";
const OCSP: &str = "ocsp";

fn with_certificate(present: &Document, name: &str, ocsp: bool) -> String {
    let mut json = present.to_json().clone();
    let mut certificate = json!({ "chain_file": CHAIN, "key_file": KEY });
    if ocsp {
        certificate["ocsp_file"] = OCSP.into();
    }
    json["certificates"][name] = certificate;
    json.to_string()
}

impl Order {
    fn files(&self) -> Result<Files, ApiError> {
        let file = |name: &str, bytes: &[u8]| (PathBuf::from(name), Arc::from(bytes));
        let ocsp = self.ocsp.as_ref().map(|text| BASE64_STANDARD.decode(text)).transpose();
        let ocsp = ocsp.map_err(|_| ApiError::bad_request("ocsp is no base64"))?;
        let pem = [file(CHAIN, self.chain.as_bytes()), file(KEY, self.key.as_bytes())];
        Ok(pem.into_iter().chain(ocsp.map(|bytes| file(OCSP, &bytes))).collect())
    }
}

#[cfg(test)]
mod tests {
    use trestle_config::Source;

    use super::*;

    #[test]
    fn one_certificate_changes_and_the_rest_of_the_document_stays() {
        let digest = "ab".repeat(32);
        let text = format!(
            "pools: {{ app: {{ members: [] }} }}\ncertificates: {{ a: {{ chain: \"stored:{digest}\", key: \"stored:{digest}\" }} }}\n"
        );
        let present = trestle_config::parse(Source { name: "p", text: &text }).unwrap();
        let added = trestle_config::parse(Source { name: "d", text: &with_certificate(&present, "b", true) })
            .unwrap();
        let paths: Vec<_> = added.contents().iter().map(|named| named.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "certificates.a.chain",
                "certificates.a.key",
                "certificates.b.chain_file",
                "certificates.b.key_file",
                "certificates.b.ocsp_file"
            ]
        );
        assert!(added.config().pools.contains_key("app"));
        let replaced = with_certificate(&present, "a", false);
        assert!(!replaced.contains(&digest), "{replaced}");
        let first = with_certificate(&Document::empty(), "a", false);
        assert!(trestle_config::parse(Source { name: "d", text: &first }).is_ok());
    }

    #[test]
    fn what_is_no_order_is_refused_without_a_word_of_it() {
        let error = order(br#"{"chain": "c", "key": "TOPSECRET", "x": "TOPSECRET"}"#).err().unwrap();
        assert_eq!(error.status, 400);
        assert!(!error.message.contains("TOPSECRET"), "{}", error.message);
    }
}
