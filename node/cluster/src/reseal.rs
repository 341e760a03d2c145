//! Seals anew what the agreed state holds under a key that is about to go: contents, also those that only
//! history names, and keys of session tickets.
//!
//! One task runs on every node and acts on the leader, once its key file says that the new key is in use. It
//! goes by the state alone: what another node sealed under the old key meanwhile comes next. So when every node
//! uses the new key and tells that nothing is left ([`left`]), nothing under the old one can come any more, and
//! it can be dropped.
//!
//! Nothing goes wrong when two leaders do it at once, or one does it twice: the plain bytes and their names stay
//! as they are.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use trestle_config::model::Digest;
use trestle_raft_store::contents::{ContentDigest, Sealed};
use trestle_raft_store::types::{Command, State};

use crate::identity::Stage;
use crate::lease::Consensus;
use crate::rt::sleep;
use crate::vault::{NoRandom, Vault};

/// Sealed bytes in one command, but that one content always goes.
const BATCH: usize = 1 << 20;
/// After one was not agreed on.
const AGAIN: Duration = Duration::from_secs(1);

/// What [`run`] needs.
pub(crate) struct ResealSettings {
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) vault: Vault,
    pub(crate) stage: Stage,
}

/// Until `stop`.
pub(crate) async fn run(settings: ResealSettings, stop: CancellationToken) {
    let ResealSettings { consensus, vault, stage } = settings;
    if stage != Stage::Used {
        return;
    }
    let (mut state, mut leadership) = (consensus.state(), consensus.leadership());
    loop {
        let now = state.borrow_and_update().clone();
        let term = *leadership.borrow_and_update();
        let mut pause = None;
        if let Some(term) = term.filter(|_| left(&now, &vault) > 0) {
            let again = tokio::select! {
                () = stop.cancelled() => return,
                again = reseal(consensus.as_ref(), &vault, term, now) => again,
            };
            pause = again.then_some(AGAIN);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            changed = state.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

/// How many contents and ticket keys are not under the current key.
pub(crate) fn left(state: &State, vault: &Vault) -> usize {
    let contents = state.contents.iter().map(|(_, sealed)| sealed);
    let keys = state.ticket_keys.iter().map(|key| &key.key);
    contents.chain(keys).filter(|sealed| vault.is_stale(sealed)).count()
}

/// Whether to try again though the state does not change.
async fn reseal(consensus: &dyn Consensus, vault: &Vault, term: u64, state: Arc<State>) -> bool {
    let made = {
        let vault = vault.clone();
        tokio::task::spawn_blocking(move || batch(&state, &vault)).await
    };
    let command = match made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
        Ok(Some(command)) => command,
        Ok(None) => return false,
        Err(error) => {
            tracing::error!(%error, "nothing can be sealed under the new cluster key");
            return true;
        }
    };
    let what = command.to_string();
    match consensus.propose(term, command).await {
        Ok(_) => {
            tracing::info!(what, "sealed under the new cluster key");
            false
        }
        Err(error) => {
            tracing::warn!(%error, what, "not sealed under the new cluster key yet");
            true
        }
    }
}

/// As much as fits into one command; `None`: there is nothing that opens.
fn batch(state: &State, vault: &Vault) -> Result<Option<Command>, NoRandom> {
    let mut bytes = 0;
    let mut closed = 0;
    let mut contents: Vec<(ContentDigest, Sealed)> = Vec::new();
    for (digest, sealed) in state.contents.iter().filter(|(_, sealed)| vault.is_stale(sealed)) {
        if bytes > 0 && bytes + sealed.len() > BATCH {
            break;
        }
        match vault.reseal_content(&Digest(digest.0), sealed)? {
            Some(anew) => {
                bytes += anew.len();
                contents.push((*digest, anew));
            }
            None => closed += 1,
        }
    }
    let mut ticket_keys = Vec::new();
    for key in state.ticket_keys.iter().filter(|key| vault.is_stale(&key.key)) {
        match vault.reseal_ticket_key(&key.key)? {
            Some(anew) => ticket_keys.push((key.epoch, anew)),
            None => closed += 1,
        }
    }
    if closed > 0 {
        tracing::warn!(closed, "sealed under neither cluster key that this node has");
    }
    let any = !contents.is_empty() || !ticket_keys.is_empty();
    Ok(any.then_some(Command::Reseal { contents, ticket_keys }))
}

#[cfg(test)]
mod tests {
    use trestle_raft_store::apply::apply;
    use trestle_raft_store::types::{NodeProfile, PutConfig};
    use uuid::Uuid;

    use super::*;
    use crate::identity::ClusterKey;

    /// A state with contents of these sizes and a ticket key, all sealed by this vault.
    fn sealed_by(vault: &Vault, sizes: &[usize]) -> State {
        let mut state = State::default();
        let node = NodeProfile {
            name: "a".to_owned(),
            cluster: "a:7400".to_owned(),
            admin: "a:7480".to_owned(),
            join_token: Uuid::nil(),
            version: "0.1.0".to_owned(),
            feature_level: 1,
        };
        let contents = sizes.iter().enumerate().map(|(number, size)| {
            let plain = vec![number as u8; *size];
            let digest = vault.digest(&plain);
            (ContentDigest(digest.0), vault.seal_content(&digest, &plain).unwrap())
        });
        let contents: Vec<_> = contents.collect();
        let put = PutConfig {
            document: Arc::from(&b"x"[..]),
            routes: Vec::new(),
            leases: Default::default(),
            uses: contents.iter().map(|(digest, _)| *digest).collect(),
            contents,
            gone: Vec::new(),
            expected: None,
            author: String::new(),
            message: String::new(),
            at_ms: 0,
        };
        let commands = [
            Command::Found { cluster_id: Uuid::nil(), node, at_ms: 0 },
            Command::PutConfig(put),
            Command::AddTicketKey { after: 0, key: vault.make_ticket_key().unwrap(), at_ms: 0 },
        ];
        for (index, command) in (1..).zip(&commands) {
            apply(&mut state, index, command);
        }
        state
    }

    #[test]
    fn all_is_sealed_anew_in_commands_of_bounded_size_and_the_old_key_can_go() {
        let old = ClusterKey::generate().unwrap();
        let added = old.stepped().unwrap().1;
        let used = added.stepped().unwrap().1;
        let new = used.stepped().unwrap().1;
        let [old, added, used, new] = [old, added, used, new].map(|key| Vault::new(&key));
        let sizes = [10, BATCH / 2, BATCH / 2, 2 * BATCH, 0, 300_000];
        let mut state = sealed_by(&old, &sizes);
        assert_eq!((left(&state, &old), left(&state, &added)), (0, 0));
        assert_eq!((left(&state, &used), left(&state, &new)), (7, 7));
        let mut index = 10;
        while let Some(command) = batch(&state, &used).unwrap() {
            let Command::Reseal { contents, .. } = &command else { panic!("{command}") };
            let bytes: usize = contents.iter().map(|(_, sealed)| sealed.len()).sum();
            assert!(contents.len() == 1 || bytes <= BATCH + 1_000, "{bytes}");
            index += 1;
            apply(&mut state, index, &command);
        }
        assert!((13..=17).contains(&index), "{index}");
        assert_eq!((left(&state, &used), left(&state, &new)), (0, 0));
        for (digest, sealed) in state.contents.iter() {
            let digest = Digest(digest.0);
            let plain = new.open_content(&digest, sealed).expect("it opens with the new key alone");
            assert_eq!(new.digest(&plain), digest);
        }
        assert!(new.open_ticket_key(&state.ticket_keys[0].key).is_some());
    }

    #[test]
    fn what_opens_with_neither_key_is_left_as_it_is() {
        let stranger = Vault::new(&ClusterKey::generate().unwrap());
        let used = ClusterKey::generate().unwrap().stepped().unwrap().1.stepped().unwrap().1;
        let (state, used) = (sealed_by(&stranger, &[10]), Vault::new(&used));
        assert!(batch(&state, &used).unwrap().is_none());
        assert_eq!(left(&state, &used), 2, "so the old key is not dropped");
    }
}
