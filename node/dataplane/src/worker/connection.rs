//! One connection as its worker knows it: what tells it to go, and what is counted while it lives.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::Instant;
use trestle_config::model::Protocol;

use super::relayed::Relayed;
use super::{ListenerRef, Served, Worker};
use crate::access_log::Format;
use crate::locals::At;
use crate::metrics::ListenerCounters;
use crate::snapshot::Listener;
use crate::{l4, l7};

/// What a connection is told, from outside of its task.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(super) listener: Box<str>,
    pub(super) protocol: Protocol,
    /// The address of ours that it came to, in its canonical form.
    pub(super) local: IpAddr,
    closing: Cell<Option<Instant>>,
    /// Since when its listener is gone, or speaks something else.
    orphaned: Cell<Option<Instant>>,
    cut: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Worker {
    /// Serves an accepted connection in a task of its own.
    pub(crate) fn begin(
        self: &Rc<Self>,
        served: &Served,
        stream: TcpStream,
        client: SocketAddr,
    ) -> io::Result<()> {
        let listener = Rc::clone(&served.target.borrow());
        let local = stream.local_addr()?;
        stream.set_nodelay(true)?;
        let ip = local.ip().to_canonical();
        let orphaned = served.draining.is_cancelled().then(Instant::now);
        let leaving = || self.is_leaving(ip).then(Instant::now);
        let handle = Rc::new(Handle {
            listener: listener.name.clone(),
            protocol: listener.settings.protocol,
            local: ip,
            closing: Cell::new(orphaned.or_else(leaving)),
            orphaned: Cell::new(orphaned),
            cut: Cell::new(false),
            waker: RefCell::default(),
        });
        let place = self.connections.borrow_mut().insert(Rc::clone(&handle));
        let open = Open { worker: Rc::clone(self), place, _at: self.locals.open(self.index, ip) };
        let admission = self.ledger.open(self.index, client.ip());
        let worker = Rc::clone(self);
        match listener.settings.protocol {
            Protocol::Http | Protocol::Https => {
                let counted = Counted::new(self.index, &listener);
                let ends = l7::server::Ends { client, local };
                let serving = l7::server::serve(worker, Rc::clone(&handle), listener, stream, ends);
                spawn_local(async move {
                    let _guards = (open, admission, counted);
                    until_cut(&handle, serving).await;
                });
            }
            Protocol::Tcp | Protocol::TcpUdp | Protocol::Udp => {
                let serving = relay(worker, listener, stream, client);
                spawn_local(async move {
                    let _guards = (open, admission);
                    until_cut(&handle, serving).await;
                });
            }
        }
        Ok(())
    }
}

impl Handle {
    /// Since when the connection should go.
    pub(crate) fn closing_since(&self) -> Option<Instant> {
        self.closing.get()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    pub(super) fn orphaned_since(&self) -> Option<Instant> {
        self.orphaned.get()
    }

    /// As [`Handle::close`], since its listener is gone.
    pub(super) fn orphan(&self) {
        self.orphaned.set(Some(Instant::now()));
        self.close();
    }

    pub(super) fn close(&self) {
        if self.closing.get().is_none() {
            self.closing.set(Some(Instant::now()));
            self.wake();
        }
    }

    pub(super) fn cut(&self) {
        self.cut.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// A connection's place in its worker's list.
struct Open {
    worker: Rc<Worker>,
    place: usize,
    _at: At,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(self.place);
    }
}

/// Counts an HTTP connection in its listener's counters (those of L4 count their own).
struct Counted {
    worker: usize,
    listener: Arc<ListenerCounters>,
}

impl Counted {
    fn new(worker: usize, listener: &Listener) -> Self {
        listener.counters.at(worker).opened.inc();
        Self { worker, listener: Arc::clone(&listener.counters) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.listener.at(self.worker).closed.inc();
    }
}

/// Runs a connection until it ends, or is cut, which drops it.
async fn until_cut(handle: &Handle, serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    poll_fn(|cx| {
        if handle.is_cut() {
            return Poll::Ready(());
        }
        // A task keeps its waker.
        if handle.waker.borrow().is_none() {
            *handle.waker.borrow_mut() = Some(cx.waker().clone());
        }
        serving.as_mut().poll(cx)
    })
    .await;
}

async fn relay(worker: Rc<Worker>, listener: ListenerRef, stream: TcpStream, client: SocketAddr) {
    let Some(pool) = listener.pool.clone() else { return };
    let began = Instant::now();
    let id = worker.request_id(began);
    let cx = l4::ConnCx {
        worker: worker.index,
        listener: Arc::clone(&listener.counters),
        closing: worker.uncut.clone(),
    };
    let settings = listener.settings.tcp.clone();
    let pool_name = Arc::clone(&pool);
    let ended = l4::tcp::proxy(stream, client, pool, settings, cx).await;
    let Some(log) = &listener.log else { return };
    let took = began.elapsed();
    let facts =
        Relayed { node: worker.node(), listener: &listener, pool: pool_name.name(), client, id, took, ended };
    worker.log.push(log, |out| match &log.format {
        Format::Json => facts.json(out),
        Format::Form(form) => form.write(&facts, out),
    });
}
