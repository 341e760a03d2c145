//! Config documents as this crate handles them: parsed off the async threads, and the one in force.

use std::sync::Arc;

use trestle_config::{Document, Problems, Source};
use trestle_raft_store::types::{Revision, State};

/// Parses without holding up other tasks: a document may have megabytes.
pub(crate) async fn parse(name: String, text: String) -> anyhow::Result<Result<Document, Problems>> {
    let parsed =
        tokio::task::spawn_blocking(move || trestle_config::parse(Source { name: &name, text: &text }));
    Ok(parsed.await?)
}

/// The document of an agreed revision; of none: the empty one.
///
/// # Errors
/// A revision that this release can't read: it was written by a newer one.
pub(crate) async fn of(revision: Option<&Arc<Revision>>) -> anyhow::Result<Document> {
    let Some(revision) = revision else { return Ok(Document::empty()) };
    let name = format!("revision {}", revision.number);
    let text = std::str::from_utf8(&revision.document)?.to_owned();
    parse(name, text).await?.map_err(|problems| anyhow::anyhow!("revision {}: {problems}", revision.number))
}

/// A revision by its number.
pub(crate) fn find(state: &State, number: u64) -> Option<&Arc<Revision>> {
    let newest = state.revision_number();
    let from_the_end = newest.checked_sub(number)?;
    let index = state.revisions.len().checked_sub(1)?.checked_sub(usize::try_from(from_the_end).ok()?)?;
    state.revisions.get(index)
}

/// The oldest and the newest number that is kept.
pub(crate) fn kept(state: &State) -> (u64, u64) {
    (state.revisions.first().map_or(0, |r| r.number), state.revision_number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_found_by_its_number_also_when_older_ones_are_gone() {
        let revision = |number| {
            let document = Arc::from(Vec::new());
            let (author, message) = (String::new(), String::new());
            Arc::new(Revision { number, document, uses: Vec::new(), author, message, at_ms: 0 })
        };
        let state = State { revisions: (41..=140).map(revision).collect(), ..State::default() };
        for number in [41, 77, 140] {
            assert_eq!(find(&state, number).map(|r| r.number), Some(number));
        }
        for number in [0, 40, 141, u64::MAX] {
            assert!(find(&state, number).is_none(), "{number}");
        }
        assert!(find(&State::default(), 0).is_none());
        assert_eq!(kept(&state), (41, 140));
    }
}
