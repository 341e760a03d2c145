//! Coded forms of bodies on disk: files like any other, each beside the body that it is a form of.
//!
//! A form's key is made of its body's file and its algorithm. So it is found by nobody who does not have the body, and
//! never taken for a form of another one; whether it may be served is said of the body alone.
//!
//! Invariant: a form goes with its body. What a crash leaves of one that has lost its body is asked for by nobody, and
//! makes room in its turn.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use trestle_config::model::Algorithm;

use super::index::{Index, Object};
use super::reading::{self, Reading, Ready};
use super::writing::{Ending, Offer, Writing};
use super::{OnDisk, Shared};
use crate::cache::entry::Stem;
use crate::cache::vary::Spec;

/// Who takes longer for a body than this, and a second for each [`PACE`] of it, does not keep others from having its form
/// written.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes.
const PACE: u64 = 1 << 20;

/// A body that was coded before.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) algorithm: Algorithm,
    pub(crate) reading: Reading,
}

/// Has a form written while it goes to a client.
pub(crate) struct FormWriting {
    stem: Arc<Stem>,
    of: Arc<Object>,
    writing: Writing,
}

impl Shared {
    fn form(&self, id: u64, algorithm: Algorithm) -> u128 {
        self.keys.variant(u128::from(id), algorithm.name().as_bytes())
    }

    /// Takes forms of what goes out of the index, too, and keeps those that are on their way from coming into it.
    pub(super) fn forget_forms(
        &self,
        index: &mut Index,
        of: &Object,
    ) -> impl Iterator<Item = Arc<Object>> + use<> {
        let mut settling = self.settling.lock();
        Algorithm::ALL
            .map(|algorithm| {
                let at = self.form(of.id, algorithm);
                settling.remove(&at);
                let form = index.get(at).map(Arc::clone)?;
                index.remove(&form).then_some(form)
            })
            .into_iter()
            .flatten()
    }
}

impl OnDisk {
    /// The same body, coded, if that is kept and can be read.
    pub(crate) async fn coded(&self, algorithm: Algorithm) -> Option<Box<Form>> {
        let at = self.shared.form(self.object.id, algorithm);
        let form = self.shared.index.lock().get(at).map(Arc::clone)?;
        let loaded = reading::load(&self.shared, form).await?;
        let mut reading = loaded.body.read(0, loaded.body.len(), false);
        (reading.ready().await == Ready::Yes).then(|| Box::new(Form { algorithm, reading }))
    }

    /// `None`: it is there, or somebody else has it written, or it can't be written now.
    pub(crate) fn keep_coded(&self, stem: &Arc<Stem>, algorithm: Algorithm) -> Option<FormWriting> {
        let Self { shared, object, .. } = self;
        let at = shared.form(object.id, algorithm);
        if shared.index.lock().get(at).is_some() {
            return None;
        }
        let patience = PATIENCE + Duration::from_secs(object.length / PACE);
        let other = shared.open.lock().get(&at).map(Arc::clone);
        if let Some(other) = other {
            if other.since.elapsed() < patience {
                return None;
            }
            shared.give_up(&other, false);
        }
        let offer = Offer::new(shared, (at, at, object.slot), stem, None)?;
        Some(FormWriting { stem: Arc::clone(stem), of: Arc::clone(object), writing: offer.take()? })
    }
}

impl FormWriting {
    /// False: it is not written any more.
    pub(crate) fn push(&mut self, data: &Bytes) -> bool {
        self.writing.push(data);
        self.writing.is_going_on()
    }

    pub(crate) fn finish(self) {
        let Self { stem, of, writing } = self;
        if !of.gone.load(Relaxed) {
            writing.finish(Ending { stem, spec: Spec::default(), trailers: None, entry: None, store: None });
        }
    }
}
