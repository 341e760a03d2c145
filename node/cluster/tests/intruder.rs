//! A program that holds the cluster's key and does not keep to the rules.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;

use common::{World, until};
use hyper_util::rt::TokioIo;
use openraft::Vote;
use openraft::raft::VoteRequest;
use openraft::vote::leader_id_adv::LeaderId;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use trestle_cluster::identity::{ClusterKey, NodeIdentity, PeerIdentity, Standing};
use trestle_proto::v1::cluster_client::ClusterClient;
use trestle_proto::v1::raft_client::RaftClient;
use trestle_proto::v1::{ProposeRequest, RaftMessage, RenewRequest, SnapshotPiece};
use trestle_raft_store::codec;
use trestle_raft_store::types::{Command, TypeConfig};
use uuid::Uuid;

async fn connect(key: &ClusterKey, cluster_id: Option<Uuid>, standing: Standing, to: SocketAddr) -> Channel {
    let identity = NodeIdentity::joining(key, "intruder").unwrap();
    let name = "intruder".to_owned();
    identity.become_member(PeerIdentity { cluster_id, standing, name }).unwrap();
    let tls = TlsConnector::from(identity.client_config().unwrap());
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(to).await?;
            let stream = tls.connect(ServerName::try_from("trestle").unwrap(), stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://trestle").connect_with_connector(connector).await.unwrap()
}

fn vote_of(node: u64) -> Vec<u8> {
    let vote =
        Vote::<LeaderId<u64, u64>> { leader_id: LeaderId { term: 1_000, node_id: node }, committed: false };
    codec::encode(&VoteRequest::<TypeConfig>::new(vote, None)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_of_a_vote_must_be_the_node_in_its_certificate() {
    let world = World::new();
    let nodes = world.cluster(2).await;
    let (victim, other) = (&nodes[0], nodes[1].id());
    let cluster = victim.raft().cluster_id();
    let term = victim.raft().metrics().term;
    let message = |cluster: Uuid, target: u64, body: Vec<u8>| RaftMessage {
        cluster_id: cluster.as_bytes().to_vec().into(),
        target,
        body: body.into(),
    };
    let elsewhere = Uuid::from_u128(5);
    let strange = || Standing::Node(other);
    for (what, as_cluster, standing, request, expected) in [
        ("in another's name", Some(cluster), strange(), message(cluster, 0, vote_of(0)), "speaks as node 0"),
        ("meant for another", Some(cluster), strange(), message(cluster, 77, vote_of(other)), "not node 77"),
        (
            "another cluster in the call",
            Some(cluster),
            strange(),
            message(elsewhere, 0, vote_of(other)),
            "cluster",
        ),
        (
            "another cluster in the certificate",
            Some(elsewhere),
            strange(),
            message(cluster, 0, vote_of(other)),
            "cluster",
        ),
        (
            "not a member",
            Some(cluster),
            Standing::Joining,
            message(cluster, 0, vote_of(other)),
            "only a member",
        ),
        ("garbage", Some(cluster), strange(), message(cluster, 0, vec![1, 0, 255, 255]), ""),
        ("another format", Some(cluster), strange(), message(cluster, 0, vec![9, 9, 0]), "format"),
    ] {
        let channel = connect(&world.key, as_cluster, standing, victim.address).await;
        let mut client = RaftClient::new(channel);
        for status in [
            client.vote(request.clone()).await.unwrap_err(),
            client.pre_vote(request.clone()).await.unwrap_err(),
        ] {
            assert!(status.message().contains(expected), "{what}: {status}");
            assert!(
                matches!(status.code(), Code::PermissionDenied | Code::InvalidArgument),
                "{what}: {status}"
            );
        }
        assert!(client.append(request).await.is_err(), "{what}");
    }
    assert_eq!(victim.raft().metrics().term, term, "none of it was heard by Raft");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_snapshot_is_refused_and_the_node_lives() {
    let world = World::new();
    let nodes = world.cluster(2).await;
    let (victim, other) = (&nodes[0], nodes[1].id());
    let cluster = victim.raft().cluster_id();
    let channel = connect(&world.key, Some(cluster), Standing::Node(other), victim.address).await;
    let mut client = RaftClient::new(channel);
    let piece = |header: &[u8], data: &[u8]| SnapshotPiece {
        cluster_id: cluster.as_bytes().to_vec().into(),
        target: 0,
        header: header.to_vec().into(),
        data: data.to_vec().into(),
    };
    for pieces in [vec![], vec![piece(b"", b"")], vec![piece(b"\x01\x00junk", b"junk"), piece(b"", b"more")]]
    {
        client.snapshot(tokio_stream::iter(pieces)).await.unwrap_err();
    }
    nodes[0].put("unharmed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_member_may_propose_and_only_for_itself_renew() {
    let world = World::new();
    let nodes = world.cluster(1).await;
    let cluster = nodes[0].raft().cluster_id();
    let command = codec::encode(&Command::Mark).unwrap();
    let request = ProposeRequest {
        cluster_id: cluster.as_bytes().to_vec().into(),
        command: command.into(),
        forwarded: false,
    };
    for (as_cluster, standing) in
        [(None, Standing::Joining), (None, Standing::Operator), (Some(Uuid::from_u128(5)), Standing::Node(0))]
    {
        let channel = connect(&world.key, as_cluster, standing, nodes[0].address).await;
        let mut client = ClusterClient::new(channel);
        client.propose(request.clone()).await.unwrap_err();
    }
    let channel = connect(&world.key, Some(cluster), Standing::Node(7), nodes[0].address).await;
    let renew =
        RenewRequest { cluster_id: cluster.as_bytes().to_vec().into(), node: 0, ..RenewRequest::default() };
    let status = ClusterClient::new(channel).renew(renew).await.unwrap_err();
    assert!(status.message().contains("only its own"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_cluster_port_is_refused_and_counted() {
    let world = World::new();
    let nodes = world.cluster(1).await;
    let mut stream = TcpStream::connect(nodes[0].address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: trestle\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Closed, after an alert at most.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.len() < 64, "{answer:?}");
    until("it is counted", || nodes[0].raft().port_counts().1 >= 1).await;
    nodes[0].put("unharmed").await;
}
