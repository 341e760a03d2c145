//! gRPC services between nodes and the code generated from `proto/trestle.proto`.
#![forbid(unsafe_code)]

/// The generated code.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("trestle.v1");
}

/// Largest message on the cluster port: above the largest log entry
/// (8 MiB document and its frame), since tonic's default of 4 MiB would wedge replication.
pub const MAX_MESSAGE: usize = 12 << 20;
