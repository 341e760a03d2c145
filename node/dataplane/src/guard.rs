//! The guard: who is let in at a listener, in this order: bans, its firewall, the node's own strain, its
//! limits, its rates.
//!
//! A connection or session is judged when it begins, by the address that connects or that the PROXY protocol
//! names. A proxy that a listener trusts (`trusted_proxies`) speaks for others: its connection passes the
//! firewall, and each request is judged by whom it names; so is each request by the firewalls of its route and
//! rule. A kept connection is judged again when its listener has changed since.

use std::net::IpAddr;

use trestle_config::model::{Action, OnLimit};

use crate::l7::record::{Record, rule_at};
use crate::limits::{Excess, Of, OfConnection, Short};
use crate::metrics::Reason;
use crate::snapshot::Listener;
use crate::worker::Worker;

/// Why somebody is not let in, and how the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) ending: Ending,
    /// It is of the client's own doing: what may count for a ban.
    pub(crate) own: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// In order, without a word.
    Close,
    Reset,
    /// As [`Ending::Reset`] or [`Ending::Close`], but http says why, with a status.
    Told(OnLimit),
}

/// How somebody is let in who may come.
#[derive(Debug)]
pub(crate) enum Entry {
    Free(OfConnection),
    /// Once there is room, if there is some in time: [`Listener::admit_in_time`]. Who can't wait is refused so.
    Waits(Refused),
}

impl Listener {
    /// Room for a connection or session of this client, which has come to this port of ours.
    pub(crate) fn admit(&self, worker: &Worker, client: IpAddr, port: u16) -> Result<Entry, Refused> {
        self.judge(worker, client, port)?;
        if worker.shed.refuses() || !worker.has_room() {
            return Err(Refused { own: false, ..self.told(Reason::Overload) });
        }
        let room = match &self.bounds {
            None => OfConnection::default(),
            Some(bounds) => match bounds.connection(&worker.limits, client) {
                Ok(room) => room,
                Err(Short { excess, waits: true }) => return Ok(Entry::Waits(self.too_much(excess))),
                Err(Short { excess, waits: false }) => return Err(self.too_much(excess)),
            },
        };
        self.keep_rates(worker, client)?;
        Ok(Entry::Free(room))
    }

    /// As [`Listener::admit`], for whom it told to wait. Dropping it takes nothing.
    pub(crate) async fn admit_in_time(
        &self,
        worker: &Worker,
        client: IpAddr,
        port: u16,
    ) -> Result<OfConnection, Refused> {
        let room = match &self.bounds {
            None => OfConnection::default(),
            Some(bounds) => {
                let room = bounds.connection_in_time(&worker.limits, client).await;
                room.map_err(|excess| self.too_much(excess))?
            }
        };
        // Who waited may have been banned meanwhile.
        self.judge(worker, client, port)?;
        self.keep_rates(worker, client)?;
        Ok(room)
    }

    fn judge(&self, worker: &Worker, client: IpAddr, port: u16) -> Result<(), Refused> {
        if worker.is_banned(client) {
            return Err(Refused { reason: Reason::Banned, ending: Ending::Close, own: true });
        }
        if self.speaks_for_others(client) {
            return Ok(());
        }
        let ending = match self.firewall.as_ref().map(|fw| fw.judge(worker.index, client, port)) {
            None | Some(Action::Allow) => return Ok(()),
            Some(Action::Deny) => Ending::Close,
            Some(Action::Reject) => Ending::Reset,
        };
        Err(Refused { reason: Reason::Firewall, ending, own: true })
    }

    fn keep_rates(&self, worker: &Worker, client: IpAddr) -> Result<(), Refused> {
        match self.connects_too_often(&worker.rates, client) {
            Some(bound) => Err(Refused { own: bound.is_of_client(), ..self.told(Reason::RateLimit) }),
            None => Ok(()),
        }
    }

    fn too_much(&self, excess: Excess) -> Refused {
        let reason = match excess.of {
            Of::Client => Reason::ClientLimit,
            Of::All => Reason::ListenerLimit,
        };
        Refused { own: excess.own, ..self.told(reason) }
    }

    fn told(&self, reason: Reason) -> Refused {
        Refused { reason, ending: Ending::Told(self.settings.on_limit), own: true }
    }

    /// Whether a trusted proxy whose connection is passed on unopened, so that it names nobody, is let in by
    /// itself; all others were judged when they came.
    pub(crate) fn admit_unopened(&self, worker: &Worker, peer: IpAddr, port: u16) -> Result<(), Reason> {
        let firewall = self.firewall.as_ref().filter(|_| self.speaks_for_others(peer));
        firewall.map_or(Ok(()), |firewall| verdict(firewall.judge(worker.index, peer, port)))
    }

    fn speaks_for_others(&self, peer: IpAddr) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.has(peer))
    }
}

impl Record {
    /// Whether its client may ask at this listener.
    pub(crate) fn pass_listener(&self) -> Result<(), Reason> {
        let (client, worker) = (&self.conn.client, &self.conn.client.worker);
        let is_named = self.told.is_some();
        if is_named && worker.is_banned(self.client().ip()) {
            return Err(Reason::Banned);
        }
        // Whoever has come without a proxy was judged then, by the listener as it was.
        if !is_named && client.handle.was_let_in_as_of(worker.version()) {
            return Ok(());
        }
        if let Some(firewall) = &self.listener.firewall {
            verdict(firewall.judge(worker.index, self.client().ip(), client.handle.port()))?;
        }
        client.handle.let_in_as_of(worker.version());
        Ok(())
    }

    /// And at its route and rule.
    pub(crate) fn pass_rule(&self) -> Result<(), Reason> {
        let Some(rule) = self.rule.and_then(|at| rule_at(&self.listener, at)) else { return Ok(()) };
        let client = &self.conn.client;
        rule.firewalls.iter().try_for_each(|firewall| {
            verdict(firewall.judge(client.worker.index, self.client().ip(), client.handle.port()))
        })
    }
}

/// Of a request there is one answer.
fn verdict(action: Action) -> Result<(), Reason> {
    match action {
        Action::Allow => Ok(()),
        Action::Deny | Action::Reject => Err(Reason::Firewall),
    }
}
