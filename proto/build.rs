//! Generates the gRPC code; protox stands in for a system `protoc`.

fn main() {
    println!("cargo:rerun-if-changed=proto/trestle.proto");
    let files = protox::compile(["proto/trestle.proto"], ["proto"]).expect("proto/trestle.proto compiles");
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(files)
        .expect("code for proto/trestle.proto is generated");
}
