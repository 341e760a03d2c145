//! Clusters of real nodes in one process: TLS, disks and timers are real, the network is loopback.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Launch, SOON, World, eventually, leader, put, revision, until, voters};
use tokio::time::Instant;
use trestle_cluster::Ended;
use trestle_cluster::identity::ClusterKey;
use trestle_cluster::membership::{Act, EnterError};
use trestle_cluster::raft::{Enter, Entered, LeaseHandler, ProposeError, StartError, Tuning};
use trestle_proto::v1::{RenewReply, RenewRequest};
use trestle_raft_store::types::{Command, Outcome, Refusal, Role};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_join_and_agree() {
    let world = World::new();
    let nodes = world.cluster(3).await;
    assert_eq!(nodes[0].id(), 0, "the first node's id is 0");
    assert_eq!(nodes[0].raft().entered(), Entered::Founded);
    assert_eq!(nodes[1].raft().entered(), Entered::Joined);
    for (at, node) in nodes.iter().enumerate() {
        assert_eq!(node.put(&format!("document {at}")).await, at as u64 + 1, "by way of node {at}");
    }
    revision(&nodes, 3).await;
    let state = nodes[0].raft().state();
    for node in &nodes {
        let id = node.id();
        assert_eq!(state.nodes[&id].profile.name, node.name);
        assert_eq!(node.raft().cluster_id(), state.cluster_id.unwrap());
        assert_eq!(node.store().identity().node_id, Some(id), "the id is on disk");
    }
    // A read on a follower sees what was acknowledged before it was asked.
    let number = nodes[0].put("one more").await;
    nodes[2].on(|raft| async move { raft.read_index().await }).await.unwrap();
    assert_eq!(nodes[2].raft().state().revision_number(), number);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_succeeds_again_after_the_leader_was_killed() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    nodes[0].put("before").await;
    let first = leader(&nodes).await;
    let killed = nodes.remove(first);
    let (name, id, address) = (killed.name.clone(), killed.id(), killed.address);
    killed.kill().await;
    let started = Instant::now();
    assert_eq!(nodes[0].put("after").await, 2);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let back = world.resume(&name, address).await;
    assert_eq!((back.id(), back.raft().entered()), (id, Entered::Resumed));
    nodes.push(back);
    revision(&nodes, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_beyond_the_target_stays_one_until_it_is_promoted_by_hand() {
    let mut world = World::new();
    world.target = 2;
    let mut nodes = vec![world.found("n0").await];
    for name in ["n1", "n2"] {
        let node = world.join(name, &nodes[0]).await;
        nodes.push(node);
    }
    voters(&nodes, 2).await;
    let learner = nodes[2].id();
    nodes[0].put("served by learners too").await;
    revision(&nodes, 1).await;
    assert!(nodes[2].raft().metrics().learners.contains(&learner));

    let promote = move |act| {
        move |raft: trestle_cluster::raft::RaftNode| async move { raft.change_member(act, learner).await }
    };
    nodes[1].on(promote(Act::Promote)).await.unwrap();
    voters(&nodes, 3).await;
    assert_eq!(nodes[0].raft().state().nodes[&learner].role, Role::Voter);

    nodes[2].on(promote(Act::Demote)).await.unwrap();
    voters(&nodes, 2).await;
    // It stays a learner though the target has room for it now.
    for node in &nodes {
        node.voters.send_replace(5);
    }
    nodes[0].put("another").await;
    revision(&nodes, 2).await;
    assert!(nodes[0].raft().metrics().learners.contains(&learner));
}

#[tokio::test(flavor = "multi_thread")]
async fn openraft_waits_too_little_for_a_learner_so_it_is_promoted_only_when_it_has_a_fresh_entry() {
    let world = World::new();
    let nodes = world.cluster(1).await;
    // Admitted, and never to be heard of: openraft's own wait would let it vote.
    let mut profile = nodes[0].raft().profile().clone();
    profile.name = "ghost".to_owned();
    profile.join_token = uuid::Uuid::from_u128(77);
    profile.cluster = "127.0.0.1:1".to_owned();
    let admit = Command::Admit { node: profile, replace: false, at_ms: 0 };
    let (outcome, index) = nodes[0].on(|raft| async move { raft.propose(admit).await }).await.unwrap();
    let Outcome::Admitted { id, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(id, index, "an id is the index of the entry that let the node in");
    until("the ghost is a learner", || nodes[0].raft().metrics().learners.contains(&id)).await;
    let promote = nodes[0].on(move |raft| async move { raft.change_member(Act::Promote, id).await }).await;
    let error = promote.unwrap_err().to_string();
    assert!(error.contains("has not caught up"), "{error}");
    assert_eq!(nodes[0].raft().metrics().voters.len(), 1);
    // And nothing that was written since is in danger.
    nodes[0].put("still writing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_gets_the_same_id() {
    let world = World::new();
    let mut nodes = world.cluster(2).await;
    let profile = nodes[1].raft().profile().clone();
    let id = nodes[1].id();
    let admit = Command::Admit { node: profile, replace: false, at_ms: 0 };
    let (outcome, index) = nodes[0].on(|raft| async move { raft.propose(admit).await }).await.unwrap();
    assert!(matches!(outcome, Outcome::Admitted { id: again, .. } if again == id), "{outcome:?}");
    assert_ne!(index, id);
    // And a folder that knows its cluster goes on in it, whatever it is told.
    let node = nodes.remove(1);
    node.shutdown().await;
    let node = world.start("n1", Enter::Found { ask: vec![] }).await.unwrap();
    assert_eq!((node.id(), node.raft().entered()), (id, Entered::Resumed));
    assert_eq!(node.raft().cluster_id(), nodes[0].raft().cluster_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ids_are_never_reused_a_wiped_node_is_a_new_one_and_needs_replace() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let wiped = nodes.remove(2);
    let old = wiped.id();
    wiped.kill().await;
    std::fs::remove_dir_all(world.dir("n2")).unwrap();
    let ask = vec![nodes[0].address.to_string()];
    let refused = world.start("n2", Enter::Join { ask: ask.clone() }).await.err().unwrap();
    let StartError::Enter(EnterError::Refused(Refusal::NameTaken { id, .. })) = refused else {
        panic!("{refused}");
    };
    assert_eq!(id, old);

    let mut launch = Launch::new(&world, "n2", Enter::Join { ask });
    launch.replace = true;
    let node = launch.start().await.unwrap();
    assert!(node.id() > old, "{} after {old}", node.id());
    nodes.push(node);
    voters(&nodes, 3).await;
    let state = nodes[0].raft().state();
    assert!(state.removed.contains(&old) && !state.nodes.contains_key(&old));
    assert!(!nodes[0].raft().metrics().voters.contains(&old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_ends_and_its_folder_is_refused() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let removed = nodes.remove(2);
    let id = removed.id();
    nodes[1].on(move |raft| async move { raft.change_member(Act::Remove, id).await }).await.unwrap();
    assert_eq!(removed.ended().await, Ended::Removed);
    assert!(removed.store().identity().removed, "the folder knows");
    removed.shutdown().await;
    voters(&nodes, 2).await;
    until("it is out of the membership", || !nodes[0].raft().metrics().learners.contains(&id)).await;

    let error =
        world.start("n2", Enter::Join { ask: vec![nodes[0].address.to_string()] }).await.err().unwrap();
    assert!(matches!(error, StartError::Enter(EnterError::Removed(node)) if node == id), "{error}");
    // A second removal says that it is gone.
    let again = nodes[0].on(move |raft| async move { raft.change_member(Act::Remove, id).await }).await;
    assert_eq!(again, Err(ProposeError::Refused(Refusal::Removed(id))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_can_be_removed_and_hears_it_when_it_comes_back() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let dead = nodes.remove(2);
    let (id, address) = (dead.id(), dead.address);
    dead.kill().await;
    nodes[0].on(move |raft| async move { raft.change_member(Act::Remove, id).await }).await.unwrap();
    voters(&nodes, 2).await;
    let back = world.resume("n2", address).await;
    assert_eq!(back.ended().await, Ended::Removed);
    assert!(back.store().identity().removed);
    // It has not disturbed those that stayed.
    nodes[1].put("calm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_leader_hands_over_first() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let at = leader(&nodes).await;
    let id = nodes[at].id();
    nodes[at].on(move |raft| async move { raft.change_member(Act::Remove, id).await }).await.unwrap();
    let removed = nodes.remove(at);
    assert_eq!(removed.ended().await, Ended::Removed);
    voters(&nodes, 2).await;
    nodes[0].put("the others go on").await;
    revision(&nodes, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_end_the_majority_is_refused() {
    let world = World::new();
    let mut nodes = world.cluster(1).await;
    for act in [Act::Remove, Act::Demote] {
        let error =
            nodes[0].on(move |raft| async move { raft.change_member(act, 0).await }).await.unwrap_err();
        assert!(matches!(&error, ProposeError::Invalid(why) if why.contains("last voter")), "{error}");
    }
    let error = nodes[0].on(|raft| async move { raft.change_member(Act::Remove, 99).await }).await;
    assert_eq!(error, Err(ProposeError::Refused(Refusal::NoSuchNode(99))));

    for name in ["n1", "n2"] {
        let node = world.join(name, &nodes[0]).await;
        nodes.push(node);
    }
    voters(&nodes, 3).await;
    nodes.pop().unwrap().kill().await;
    // n0 and n1 are the majority of three; without n1 the two that are left would be one.
    let id = nodes[1].id();
    let error = eventually("the loss is noticed", || async {
        nodes[0].on(move |raft| async move { raft.change_member(Act::Demote, id).await }).await.err()
    });
    let error = error.await.to_string();
    assert!(error.contains("no majority"), "{error}");
    nodes[0].put("still three voters").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_key_is_refused_and_both_sides_say_so() {
    let lines = common::capture();
    let world = World::new();
    let nodes = world.cluster(1).await;
    let mut launch = Launch::new(&world, "stranger", Enter::Join { ask: vec![nodes[0].address.to_string()] });
    launch.key = ClusterKey::generate().unwrap();
    let said = |side: &str| {
        let text = lines.text();
        text.lines().any(|line| line.contains(side) && line.contains("peer holds another cluster key"))
    };
    let counted = || nodes[0].raft().port_counts().1 > 0;
    let both = || {
        counted() && ["waiting for a cluster", "connection to the cluster port refused"].into_iter().all(said)
    };
    tokio::select! {
        _ = launch.start() => panic!("it must not come in"),
        () = until("both sides say so, and it is counted", both) => {}
    }
    assert_eq!(nodes[0].raft().state().nodes.len(), 1);
}

/// The joiner believes the member, which refuses the joiner: TLS 1.3 tells that late.
#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_whose_key_was_dropped_in_a_rotation_is_told_so() {
    let lines = common::capture();
    let mut world = World::new();
    let old = ClusterKey::generate().unwrap();
    let with_both = old.stepped().unwrap().1;
    world.key = with_both.stepped().unwrap().1.stepped().unwrap().1;
    let nodes = world.cluster(1).await;
    let mut launch = Launch::new(&world, "late", Enter::Join { ask: vec![nodes[0].address.to_string()] });
    launch.key = with_both;
    let told = |line: &str| {
        line.contains("waiting for a cluster")
            && line.contains(
                "peer holds another cluster key (it refused ours); start this node with the key file",
            )
    };
    tokio::select! {
        _ = launch.start() => panic!("it must not come in"),
        () = until("it is told so", || lines.text().lines().any(told)) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_with_one_key_stay_apart() {
    let world = World::new();
    let one = world.found("a").await;
    let two = world.found("b").await;
    assert_ne!(one.raft().cluster_id(), two.raft().cluster_id());
    // Somebody who knows both addresses must say which.
    let ask = vec![one.address.to_string(), two.address.to_string()];
    let error = world.start("c", Enter::Join { ask }).await.err().unwrap();
    assert!(error.to_string().contains("different clusters"), "{error}");
    // A member whose peer's address has passed to a node of another cluster does not talk to it.
    let joined = world.join("c", &one).await;
    joined.put("in one").await;
    revision(std::slice::from_ref(&joined), 1).await;
    let bind = one.address;
    one.kill().await;
    let mut launch = Launch::new(&world, "usurper", Enter::Found { ask: vec![] });
    launch.bind = bind;
    let usurper = launch.start().await.unwrap();
    until("it is told apart", || {
        common::capture().text().lines().any(|line| line.contains("of another cluster, not as node 0"))
    })
    .await;
    assert_eq!(joined.raft().state().revision_number(), 1);
    assert_eq!(usurper.raft().state().nodes.len(), 1);
    assert_eq!(usurper.raft().state().revision_number(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_bootstrap_join_each_other_make_one_cluster() {
    let world = World::new();
    // Ports are known before, as in a compose file.
    let ports: Vec<std::net::TcpListener> =
        (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = ports.iter().map(|p| p.local_addr().unwrap()).collect();
    drop(ports);
    let ask: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let launch = |at: usize, name: &str| {
        let mut launch = Launch::new(&world, name, Enter::Found { ask: ask.clone() });
        launch.bind = addresses[at];
        launch.start()
    };
    let (one, two) =
        tokio::time::timeout(SOON, async { tokio::join!(launch(0, "beta"), launch(1, "alpha")) })
            .await
            .expect("both come into a cluster");
    let nodes = vec![one.unwrap(), two.unwrap()];
    assert_eq!(nodes[0].raft().cluster_id(), nodes[1].raft().cluster_id());
    assert_eq!(nodes[1].raft().entered(), Entered::Founded, "the first by name founds");
    assert_eq!(nodes[0].raft().entered(), Entered::Joined);
    voters(&nodes, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_first_node_joins_the_cluster_that_exists_rather_than_make_a_second() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let cluster = nodes[0].raft().cluster_id();
    let ask = nodes[1..].iter().map(|node| node.address.to_string()).collect();
    nodes.remove(0).kill().await;
    std::fs::remove_dir_all(world.dir("n0")).unwrap();
    let mut launch = Launch::new(&world, "n0", Enter::Found { ask });
    launch.replace = true;
    let back = launch.start().await.unwrap();
    assert_eq!(back.raft().cluster_id(), cluster);
    assert!(back.id() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_8_mib_replicates_though_tonics_default_limit_is_4() {
    let world = World::new();
    let nodes = world.cluster(3).await;
    let at = leader(&nodes).await;
    let document = vec![b'x'; trestle_raft_store::MAX_DOCUMENT];
    // By way of a follower, so that it is forwarded as well as replicated.
    let follower = &nodes[(at + 1) % 3];
    let command = put(document.clone());
    propose_slowly(follower, command).await;
    revision(&nodes, 1).await;
    for node in &nodes {
        assert_eq!(node.raft().state().revision().unwrap().document.len(), document.len());
    }
    let too_large = put(vec![b'x'; trestle_raft_store::MAX_DOCUMENT + 1]);
    let error = follower.on(|raft| async move { raft.propose(too_large).await }).await.unwrap_err();
    assert!(matches!(error, ProposeError::Invalid(_)), "{error}");
    // Several large ones while a node is away: what it gets on return is cut into messages that fit.
    let mut nodes = nodes;
    let away = nodes.remove((at + 2) % 3);
    let (name, address) = (away.name.clone(), away.address);
    away.kill().await;
    for fill in [b'a', b'b', b'c'] {
        let command = put(vec![fill; trestle_raft_store::MAX_DOCUMENT]);
        propose_slowly(&nodes[0], command).await;
    }
    nodes.push(world.resume(&name, address).await);
    revision(&nodes, 4).await;
}

/// An unoptimized build on a busy machine may need longer than a caller waits, and elections may come
/// in between. Repeating is harmless: the same document twice is one revision.
async fn propose_slowly(node: &common::Node, command: Command) {
    eventually("it takes effect", || async {
        let command = command.clone();
        match node.on(|raft| async move { raft.propose(command).await }).await {
            Ok(_) => Some(()),
            Err(ProposeError::Unknown(_) | ProposeError::NoQuorum(_)) => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_after_snapshot_and_purge() {
    let mut world = World::new();
    world.tuning = Tuning { snapshot_after: 20, keep_entries: 5 };
    let mut nodes = world.cluster(1).await;
    for at in 0..60 {
        // Over a mebibyte in all, so that the snapshot goes in pieces.
        nodes[0].put(&format!("{at}-{}", "y".repeat(40_000))).await;
    }
    until("the log is purged", || nodes[0].raft().metrics().purged_index > 20).await;
    for name in ["n1", "n2"] {
        let node = world.join(name, &nodes[0]).await;
        nodes.push(node);
    }
    voters(&nodes, 3).await;
    revision(&nodes, 60).await;
    assert!(nodes[2].raft().metrics().snapshot_index > 20, "it came by snapshot");
    let history = |node: &common::Node| node.raft().state().revisions.len();
    assert_eq!(history(&nodes[2]), history(&nodes[0]));
    // And starts again from it.
    let last = nodes.pop().unwrap();
    let address = last.address;
    last.kill().await;
    nodes[0].put("while it is away").await;
    nodes.push(world.resume("n2", address).await);
    revision(&nodes, 61).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_membership_leaves_no_joint_config_though_the_leader_is_killed_in_it() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    for round in 0..3 {
        let at = leader(&nodes).await;
        let name = format!("extra{round}");
        let joiner = world.join(&name, &nodes[(at + 1) % 3]).await;
        // Its promotion is under way or about to be; at a different moment in each round.
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        let killed = nodes.remove(at);
        let (name, address) = (killed.name.clone(), killed.address);
        killed.kill().await;
        nodes.push(joiner);
        until("no joint config is left", || nodes.iter().all(|node| node.raft().metrics().settled)).await;
        nodes.push(world.resume(&name, address).await);
        voters(&nodes, 4).await;
        // Back to three, by a change that passes through joint configs too.
        let extra = nodes.iter().position(|node| node.name.starts_with("extra")).unwrap();
        let id = nodes[extra].id();
        let other = (extra + 1) % nodes.len();
        nodes[other].on(move |raft| async move { raft.change_member(Act::Remove, id).await }).await.unwrap();
        nodes.remove(extra).shutdown().await;
        voters(&nodes, 3).await;
    }
    nodes[0].put("all is well").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_quorum_fails_within_five_seconds_and_says_so() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    nodes[0].put("before").await;
    let addresses: Vec<_> = nodes.iter().map(|node| node.address).collect();
    for _ in 0..2 {
        nodes.pop().unwrap().kill().await;
    }
    let alone = &nodes[0];
    // Once it is known that the majority is gone, nothing is proposed any more.
    until("the loss is noticed", || !alone.raft().metrics().quorum).await;
    let started = Instant::now();
    let error = alone.on(|raft| async move { raft.propose(put(b"lost".to_vec())).await }).await.unwrap_err();
    // Four and a half, and what a busy machine adds.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(matches!(error, ProposeError::NoQuorum(_)), "{error:?}");
    let confirmed = alone.on(|raft| async move { raft.confirm_leadership(Duration::from_millis(500)).await });
    assert!(confirmed.await.is_err());
    let read = alone.on(|raft| async move { raft.read_index().await }).await;
    assert!(matches!(read, Err(ProposeError::NoQuorum(_))), "{read:?}");
    // What it had is still there, also after a restart without the others.
    assert_eq!(alone.raft().state().revision_number(), 1);
    nodes.pop().unwrap().kill().await;
    let again = world.resume("n0", addresses[0]).await;
    assert_eq!(again.raft().state().revision_number(), 1);
    // And with one more it goes on.
    let other = world.resume("n1", addresses[1]).await;
    assert_eq!(other.put("after").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_hands_the_leadership_over_first() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let at = leader(&nodes).await;
    let leaving = nodes.remove(at);
    let (name, address) = (leaving.name.clone(), leaving.address);
    let term = leaving.raft().metrics().term;
    assert!(leaving.on(|raft| async move { raft.transfer_leadership().await }).await);
    // A hand-over is one election, not a wait for the old leader's silence.
    let next = leader(&nodes).await;
    assert_eq!(nodes[next].raft().metrics().term, term + 1);
    leaving.shutdown().await;
    nodes[0].put("no gap").await;
    nodes.push(world.resume(&name, address).await);
    revision(&nodes, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_under_another_address_is_found_again() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let moved = nodes.pop().unwrap();
    let (id, old) = (moved.id(), moved.address);
    moved.shutdown().await;
    let back = world.moved("n2").await;
    assert_ne!(back.address, old);
    let wanted = back.address.to_string();
    nodes.push(back);
    until("the new address is agreed on", || {
        nodes.iter().all(|node| node.raft().state().nodes[&id].profile.cluster == wanted)
    })
    .await;
    nodes[0].put("reaches all").await;
    revision(&nodes, 1).await;
    voters(&nodes, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_majority_moved_finds_itself_again() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    for _ in 0..2 {
        nodes.pop().unwrap().kill().await;
    }
    // Both come back elsewhere while there is no leader to record it: they call those that they know.
    for name in ["n1", "n2"] {
        let node = world.moved(name).await;
        nodes.push(node);
    }
    leader(&nodes).await;
    nodes[0].put("found").await;
    revision(&nodes, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn initialize_returns_too_early_so_a_founding_that_a_crash_cut_off_is_completed() {
    let world = World::new();
    let cluster_id = uuid::Uuid::now_v7();
    save_identity(&world, "n0", 0, cluster_id).await;
    let node = world.moved("n0").await;
    assert_eq!((node.id(), node.raft().cluster_id()), (0, cluster_id));
    // What `start` returns on is agreed on, not only asked for.
    assert_eq!(node.raft().state().cluster_id, Some(cluster_id));
    node.put("founded").await;
    // Alone it is its own majority, also when nothing is written for a while.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let metrics = node.raft().metrics();
    assert!(metrics.quorum && metrics.role == "leader", "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_a_crash_cut_off_is_completed() {
    let world = World::new();
    let mut nodes = world.cluster(1).await;
    // Admitted, the answer was lost: the folder only has its token.
    let mut profile = nodes[0].raft().profile().clone();
    profile.name = "n1".to_owned();
    profile.join_token = open(&world, "n1").await.identity().join_token;
    let admit = Command::Admit { node: profile, replace: false, at_ms: 0 };
    let (outcome, _) = nodes[0].on(|raft| async move { raft.propose(admit).await }).await.unwrap();
    let Outcome::Admitted { id, cluster_id } = outcome else { panic!("{outcome:?}") };
    let node = world.join("n1", &nodes[0]).await;
    assert_eq!(node.id(), id, "it asks again and gets the id that it was given");
    nodes.push(node);
    voters(&nodes, 2).await;

    // Admitted and noted in the folder, but Raft never ran.
    let mut profile = nodes[0].raft().profile().clone();
    profile.name = "n2".to_owned();
    profile.join_token = open(&world, "n2").await.identity().join_token;
    let admit = Command::Admit { node: profile, replace: false, at_ms: 0 };
    let (outcome, _) = nodes[0].on(|raft| async move { raft.propose(admit).await }).await.unwrap();
    let Outcome::Admitted { id, .. } = outcome else { panic!("{outcome:?}") };
    save_identity(&world, "n2", id, cluster_id).await;
    // Its address is one at which nobody answers: it calls those that it knows of, which is nobody,
    // so it is told where the others are.
    let ask = vec![nodes[0].address.to_string()];
    let node = world.start("n2", Enter::Join { ask }).await.unwrap();
    assert_eq!(node.id(), id);
    nodes.push(node);
    voters(&nodes, 3).await;
}

async fn open(world: &World, name: &str) -> trestle_raft_store::Store {
    let dir = world.dir(name);
    let store = eventually("the folder is free", || async {
        let dir = dir.clone();
        tokio::task::spawn_blocking(move || trestle_raft_store::Store::open(&dir)).await.unwrap().ok()
    })
    .await;
    store.sync().await.unwrap();
    store
}

async fn save_identity(world: &World, name: &str, id: u64, cluster_id: uuid::Uuid) {
    let store = open(world, name).await;
    let mut identity = store.identity();
    (identity.node_id, identity.cluster_id, identity.name) = (Some(id), Some(cluster_id), name.to_owned());
    store.save_identity(identity).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_fails_ends_and_says_why() {
    let world = World::new();
    let mut nodes = world.cluster(3).await;
    let at = leader(&nodes).await;
    let failing = nodes.remove(at);
    failing.store().close().await.unwrap();
    let command = put(b"can't be written".to_vec());
    let _ = failing.on(|raft| async move { raft.propose(command).await }).await;
    let Ended::Failed(why) = failing.ended().await else { panic!("removed?") };
    assert!(why.contains("store"), "{why}");
    // It takes no part any more; the others go on.
    leader(&nodes).await;
    nodes[0].put("without it").await;
}

/// Grants every renewal; takes no seat back.
struct Granting;

impl LeaseHandler for Granting {
    fn renew(&self, request: RenewRequest, caller: u64) -> futures::future::BoxFuture<'_, RenewReply> {
        assert_eq!(request.node, caller);
        let reply = RenewReply { seat_epoch: caller + 1, ttl_ms: 1_000, ..RenewReply::default() };
        Box::pin(async move { reply })
    }

    fn vacate(&self, _node: u64) -> futures::future::BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Err("a lease is alive".to_owned()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_lease_is_alive_is_not_taken_out() {
    let world = World::new();
    let nodes = world.cluster(3).await;
    let at = leader(&nodes).await;
    let away = (at + 1) % 3;
    let id = nodes[away].id();
    let seat = Command::Seat { node: id, session: uuid::Uuid::now_v7() };
    nodes[at].on(|raft| async move { raft.propose(seat).await }).await.unwrap();
    nodes[at].raft().set_lease_handler(std::sync::Arc::new(Granting));

    let removed = nodes[at].on(move |raft| async move { raft.change_member(Act::Remove, id).await }).await;
    let Err(why) = removed else { panic!("it was removed with its seat") };
    assert!(why.to_string().contains("a lease is alive"), "{why}");
    assert!(nodes[at].raft().state().nodes.contains_key(&id), "nothing was taken out");
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_go_to_the_leader_and_are_refused_until_it_has_a_handler() {
    let world = World::new();
    let nodes = world.cluster(2).await;
    let at = leader(&nodes).await;
    let renew = |at: usize| {
        let raft = nodes[at].raft();
        let cluster_id = raft.cluster_id().as_bytes().to_vec().into();
        let request = RenewRequest { cluster_id, node: raft.id(), ..RenewRequest::default() };
        nodes[at].on(|raft| async move { raft.renew(request).await })
    };
    for node in 0..2 {
        let reply = renew(node).await.unwrap();
        assert!(reply.ttl_ms == 0 && reply.refused.contains("not ready"), "{reply:?}");
    }
    nodes[at].raft().set_lease_handler(std::sync::Arc::new(Granting));
    for (node, raft) in nodes.iter().enumerate() {
        assert_eq!(renew(node).await.unwrap().seat_epoch, raft.id() + 1);
    }
    let index = nodes[at].on(|raft| async move { raft.confirm_leadership(Duration::from_secs(2)).await });
    assert!(index.await.unwrap() > 0);
    let other = nodes[1 - at].on(|raft| async move { raft.confirm_leadership(Duration::from_secs(2)).await });
    assert!(other.await.is_err(), "state == Leader elsewhere is no authority here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_joins_leaves_and_elections_ends_in_a_sound_cluster() {
    let mut world = World::new();
    world.tuning = Tuning { snapshot_after: 15, keep_entries: 3 };
    let nodes = world.cluster(3).await;
    let mut revisions = 0;
    for round in 0..10 {
        let at = leader(&nodes).await;
        let other = (at + 1) % nodes.len();
        let joiner = world.join(&format!("storm{round}"), &nodes[other]).await;
        let id = joiner.id();
        // An election in the middle of its promotion.
        nodes[at].on(|raft| async move { raft.transfer_leadership().await }).await;
        nodes[other].put(&format!("round {round}")).await;
        revisions += 1;
        let by = nodes[at].on(move |raft| async move { raft.change_member(Act::Remove, id).await }).await;
        assert!(by.is_ok(), "round {round}: {by:?}");
        assert_eq!(joiner.ended().await, Ended::Removed, "round {round}");
        joiner.kill().await;
    }
    voters(&nodes, 3).await;
    revision(&nodes, revisions).await;
    assert_eq!(nodes[0].raft().state().nodes.len(), 3);
}
