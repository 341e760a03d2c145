//! gRPC's health protocol (`grpc.health.v1`), as far as a prober needs it.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use prost::Message;

use super::{BODY_MAX, ProbeError, beside};

#[derive(Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn ask<S>(
    service: &str,
    scheme: &str,
    address: SocketAddr,
    stream: S,
) -> Result<(), ProbeError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let request = Request::post(format!("{scheme}://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "trestle-health")
        .body(Full::new(framed(&HealthCheckRequest { service: service.to_owned() })))
        .map_err(ProbeError::Request)?;
    let handshake = http2::handshake(TokioExecutor::new(), stream);
    let (mut sender, connection) = handshake.await.map_err(ProbeError::Answer)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(ProbeError::Answer)?;
        if !response.status().is_success() {
            return Err(ProbeError::Status(response.status().as_u16()));
        }
        // A failure may have no message, and its status in the header.
        status(response.headers())?;
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let body = body.map_err(|error| ProbeError::GrpcStatus(error.to_string()))?;
        body.trailers().map_or(Ok(()), status)?;
        judge(&body.to_bytes())
    };
    beside(exchange, connection).await
}

/// A message as it goes over the wire: not compressed, with its length in front.
fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

fn status(headers: &HeaderMap) -> Result<(), ProbeError> {
    match headers.get("grpc-status").map(|status| status.as_bytes()) {
        None | Some(b"0") => Ok(()),
        Some(other) => Err(ProbeError::GrpcStatus(String::from_utf8_lossy(other).into_owned())),
    }
}

fn judge(body: &[u8]) -> Result<(), ProbeError> {
    let message = body.get(5..).unwrap_or_default();
    let answer = HealthCheckResponse::decode(message).map_err(|_| ProbeError::NotServing("unreadable"))?;
    match answer.status {
        1 => Ok(()),
        2 => Err(ProbeError::NotServing("not serving")),
        3 => Err(ProbeError::NotServing("unknown")),
        _ => Err(ProbeError::NotServing("in no known state")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_must_be_serving() {
        let answer = |status| framed(&HealthCheckResponse { status });
        assert!(judge(&answer(1)).is_ok());
        for (status, expected) in [(0, "in no known state"), (2, "not serving"), (3, "unknown")] {
            let error = judge(&answer(status)).expect_err("not serving");
            assert_eq!(error.to_string(), format!("the service is {expected}"));
        }
        assert!(judge(b"").is_err());
    }
}
