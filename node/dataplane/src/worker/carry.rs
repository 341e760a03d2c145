//! A TCP connection that is carried to a member of a pool: as it comes, with its TLS ended, by the name that its
//! TLS asks for, or with what FTP says in it followed.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use trestle_config::model::FtpSettings;

use super::connection::Counted;
use super::relayed::{Asked, Relayed};
use super::{Handle, ListenerRef, Worker};
use crate::l4::Carriage;
use crate::l4::sni::{self, Hello, Malformed, Refusal};
use crate::l4::tcp::{End, Secured, Socket, reset};
use crate::metrics::Reason;
use crate::pool::Pool;
use crate::proxy_protocol::{Ends, Facts, Tlvs};
use crate::tls::accept::{failed, say_unknown, shake_hands};
use crate::tls::failure::HandshakeFailure;
use crate::{l4, l7};

/// A connection, and for whom it is.
pub(super) struct Carried {
    pub(super) worker: Rc<Worker>,
    pub(super) listener: ListenerRef,
    pub(super) stream: TcpStream,
    pub(super) ends: Ends,
    /// What a proxy in front has told.
    pub(super) told: Tlvs,
    /// Where the member is asked, if not at its own port.
    pub(super) port: Option<u16>,
    pub(super) carriage: Arc<Carriage>,
}

/// To the listener's pool, as it comes.
pub(super) async fn plain(carried: Carried) {
    let Carried { worker, listener, stream, ends, told, port, carriage } = carried;
    let Some(pool) = listener.pool.clone() else { return };
    let facts = Facts { told: Some(&told), ..Facts::default() };
    if let Some(settings) = &listener.settings.ftp {
        let place = (worker, &listener, pool);
        return Box::pin(follow_ftp(place, settings, stream, (&ends, facts, port, carriage))).await;
    }
    relay((worker, &listener, pool), Socket::new(stream), (&ends, facts, port, carriage), Asked::default())
        .await;
}

/// To the listener's pool, without the client's TLS.
pub(super) async fn opened(carried: Carried) {
    let Carried { worker, listener, stream, ends, told, port, carriage } = carried;
    let Some(pool) = listener.pool.clone() else { return };
    let (began, settings) = (Instant::now(), &listener.settings.tcp);
    let handshake = shake_hands(worker.index, &listener, stream, ends.client, settings.handshake_timeout);
    // Boxed: of a handshake nothing is held while bytes are carried.
    let Some((stream, tls)) = Box::pin(handshake).await else {
        return worker.count_refused(&listener, ends.client, Reason::HandshakeFailed, began.elapsed());
    };
    let facts = Facts { told: Some(&told), ..tls.facts() };
    let asked = Asked { version: Some(tls.version), name: tls.name.as_deref(), status: None };
    relay(
        (worker, &listener, pool),
        Secured::new(stream, settings.buffer),
        (&ends, facts, port, carriage),
        asked,
    )
    .await;
}

/// To the pool of the name that is asked for, or the listener's.
pub(super) async fn by_name(carried: Carried) {
    let began = Instant::now();
    let (worker, listener, client) = (&carried.worker, &carried.listener, carried.ends.client);
    let hello = match sni::read(&carried.stream, listener.settings.tcp.handshake_timeout).await {
        Ok(hello) => hello,
        Err(refusal) => {
            tracing::debug!(listener = %listener.name, %client, why = %refusal, "no TLS that could be passed on");
            reset(&carried.stream);
            return worker.count_refused(listener, client, refusal.reason(), began.elapsed());
        }
    };
    let Some(pool) = listener.through.find(hello.name.as_deref()).or(listener.pool.as_ref()).cloned() else {
        tracing::debug!(listener = %listener.name, %client, name = hello.name, "nobody has this TLS name");
        say_unknown(&carried.stream);
        let asked = Asked { name: hello.name.as_deref(), ..Asked::default() };
        return worker.count_refused_of(listener, client, Reason::UnknownName, (began.elapsed(), asked));
    };
    pass(carried, pool, &hello).await;
}

/// Of https: names that are passed through go to their pools, the others end here.
pub(super) async fn by_name_or_served(carried: Carried, handle: Rc<Handle>) {
    let (began, listener) = (Instant::now(), &carried.listener);
    let hello = sni::read(&carried.stream, listener.settings.http.header_timeout).await;
    let pool = hello.as_ref().ok().and_then(|hello| listener.through.find(hello.name.as_deref())).cloned();
    if let (Some(pool), Ok(hello)) = (pool, &hello) {
        // A proxy that is trusted names nobody here.
        if let Err(reason) = listener.admit_unopened(&carried.worker, carried.ends.client.ip(), handle.port())
        {
            reset(&carried.stream);
            return carried.worker.count_refused(listener, carried.ends.client, reason, began.elapsed());
        }
        return pass(carried, pool, hello).await;
    }
    let Carried { worker, listener, stream, ends, .. } = carried;
    let _counted = Counted::new(worker.index, &listener);
    let failure = match hello {
        // Its name may be one that is not to be opened here.
        Err(Refusal::Malformed(Malformed::TooLong)) => {
            reset(&stream);
            HandshakeFailure::Incompatible
        }
        Err(Refusal::Timeout) => HandshakeFailure::Timeout,
        Err(Refusal::Gone) => HandshakeFailure::ClientGone,
        // What is no hello is told of as where no name is passed through.
        Ok(_) | Err(Refusal::Malformed(_)) => {
            return Box::pin(l7::server::serve(worker, handle, listener, stream, ends)).await;
        }
    };
    failed(worker.index, &listener, ends.client, failure, "no whole hello came, or one that is too long");
}

async fn pass(carried: Carried, pool: Arc<Pool>, hello: &Hello) {
    let Carried { worker, listener, stream, ends, told, port, carriage } = carried;
    let (authority, alpn) = (hello.name.as_deref(), hello.alpn.as_deref());
    let facts = Facts { told: Some(&told), authority, alpn, ..Facts::default() };
    let asked = Asked { name: authority, ..Asked::default() };
    relay((worker, &listener, pool), Socket::new(stream), (&ends, facts, port, carriage), asked).await;
}

async fn relay(
    (worker, listener, pool): (Rc<Worker>, &ListenerRef, Arc<Pool>),
    client: impl End,
    (ends, facts, port, carriage): (&Ends, Facts<'_>, Option<u16>, Arc<Carriage>),
    asked: Asked<'_>,
) {
    let began = Instant::now();
    let id = worker.request_id(began);
    let cx = cx(&worker, listener, port, carriage);
    let named = Arc::clone(&pool);
    let facts = Facts { unique_id: Some(id.as_str()), ..facts };
    let ended = l4::tcp::proxy(client, (ends, &facts), pool, &listener.settings.tcp, cx).await;
    worker.log_connection(listener, named.name(), ends.client, (id, began.elapsed()), (asked, ended));
}

/// As [`relay`], for a control connection of FTP, with what hangs on it.
async fn follow_ftp(
    (worker, listener, pool): (Rc<Worker>, &ListenerRef, Arc<Pool>),
    settings: &FtpSettings,
    client: TcpStream,
    (ends, facts, port, carriage): (&Ends, Facts<'_>, Option<u16>, Arc<Carriage>),
) {
    let began = Instant::now();
    let id = worker.request_id(began);
    let cx = cx(&worker, listener, port, carriage);
    let named = Arc::clone(&pool);
    let facts = Facts { unique_id: Some(id.as_str()), ..facts };
    // Data connections have the id of their control connection.
    let log_data = |l4::ftp::Transfer { mode, took, ended }: l4::ftp::Transfer| {
        let (node, pool, client, asked) = (worker.node(), named.name(), ends.client, Asked::default());
        worker.log_relayed(&Relayed {
            node,
            listener,
            pool,
            client,
            id,
            took,
            asked,
            ftp: Some(mode),
            ended,
        });
    };
    let random = || worker.random();
    let ftp = l4::ftp::Ftp { settings, listener: &listener.name, random: &random, ended: &log_data };
    let ended = l4::ftp::proxy(client, (ends, &facts), pool, &listener.settings.tcp, (&ftp, cx)).await;
    let took = began.elapsed();
    worker.log_connection(listener, named.name(), ends.client, (id, took), (Asked::default(), ended));
}

fn cx(worker: &Worker, listener: &ListenerRef, port: Option<u16>, carriage: Arc<Carriage>) -> l4::ConnCx {
    l4::ConnCx {
        worker: worker.index,
        listener: Arc::clone(&listener.counters),
        closing: worker.uncut.clone(),
        port,
        carriage,
    }
}

impl Worker {
    /// Counts and logs a connection that was carried to nobody.
    pub(super) fn count_refused(
        &self,
        listener: &ListenerRef,
        client: SocketAddr,
        reason: Reason,
        took: Duration,
    ) {
        self.count_refused_of(listener, client, reason, (took, Asked::default()));
    }

    /// The same, of one that has asked for something.
    pub(super) fn count_refused_of(
        &self,
        listener: &ListenerRef,
        client: SocketAddr,
        reason: Reason,
        (took, asked): (Duration, Asked<'_>),
    ) {
        let part = listener.counters.at(self.index);
        part.opened.inc();
        part.ended.inc(reason);
        part.closed.inc();
        let ended = l4::Ended { reason, member: None, bytes_in: 0, bytes_out: 0 };
        let pool = listener.pool.as_ref().map_or("", |pool| pool.name());
        let id = self.request_id(Instant::now());
        self.log_connection(listener, pool, client, (id, took), (asked, ended));
    }
}
