//! One data connection: who comes through a door is connected to the other side, and bytes move.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use trestle_config::model::TcpSettings;

use super::super::tcp::{Open, Relay, Socket, run, tune};
use super::super::{ConnCx, Ended};
use crate::lack::is_ours;
use crate::metrics::Reason;
use crate::pool::MemberState;

/// Who opens a data connection, as FTP calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The client.
    Passive,
    /// The server.
    Active,
}

impl Mode {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Mode::Passive => "passive",
            Mode::Active => "active",
        }
    }
}

/// A data connection that has ended.
pub(crate) struct Transfer {
    pub(crate) mode: Mode,
    pub(crate) took: Duration,
    pub(crate) ended: Ended,
}

/// Somebody has come through a door.
pub(super) struct Begun {
    pub(super) mode: Mode,
    pub(super) came: TcpStream,
    /// Where the other side is.
    pub(super) to: SocketAddr,
    /// Where we connect from; `None`: as the system likes.
    pub(super) from: Option<SocketAddr>,
}

/// What all data connections of a control connection have in common.
pub(super) struct Shared<'a> {
    pub(super) cx: &'a ConnCx,
    pub(super) settings: &'a TcpSettings,
    pub(super) member: Arc<MemberState>,
    pub(super) connect_max: Duration,
    /// When bytes have last moved, on any of them or on the control connection.
    pub(super) moved_at: Cell<Instant>,
    /// Cancelled: the control connection is gone, for this reason.
    pub(super) gone: CancellationToken,
    pub(super) gone_for: Cell<Reason>,
}

impl Shared<'_> {
    /// Ends all data connections. The first reason counts.
    pub(super) fn end(&self, reason: Reason) {
        if !self.gone.is_cancelled() {
            self.gone_for.set(reason);
            self.gone.cancel();
        }
    }
}

/// Carries a data connection to its end, and counts it as one of the listener. Dropping the future resets both
/// sides.
pub(super) async fn transfer(begun: Begun, shared: &Shared<'_>) -> Transfer {
    let (mode, began) = (begun.mode, Instant::now());
    let part = shared.cx.listener.at(shared.cx.worker);
    let _open = Open::count(part);
    tune(&begun.came, shared.settings, &shared.cx.listener);
    let came = Socket::new(begun.came);
    let connecting = async {
        tokio::select! {
            outcome = timeout(shared.connect_max, connect(begun.to, begun.from)) => match outcome {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => Err(failure(mode, &error, begun.to)),
                Err(_) => Err(if mode == Mode::Passive { Reason::ConnectTimeout } else { Reason::ClientGone }),
            },
            () = shared.gone.cancelled() => Err(shared.gone_for.get()),
        }
    };
    let ended = match connecting.await {
        Err(reason) => Ended { reason, member: None, bytes_in: 0, bytes_out: 0 },
        Ok(stream) => {
            tune(&stream, shared.settings, &shared.cx.listener);
            let other = Socket::new(stream);
            let (client, upstream) = match mode {
                Mode::Passive => (came, other),
                Mode::Active => (other, came),
            };
            let mut relay = Relay::new(client, upstream, shared.settings.buffer, part);
            let moved = |now| shared.moved_at.set(now);
            let running = run(&mut relay, shared.settings.idle, shared.cx, || {}, moved);
            let reason = tokio::select! {
                reason = running => reason,
                () = shared.gone.cancelled() => shared.gone_for.get(),
            };
            Ended { reason, member: None, bytes_in: relay.bytes_in(), bytes_out: relay.bytes_out() }
        }
    };
    part.ended.inc(ended.reason);
    let ended = Ended { member: Some(Arc::clone(&shared.member)), ..ended };
    Transfer { mode, took: began.elapsed(), ended }
}

/// Of a failure to connect. It says nothing of the member's health: a port for data is its word of a moment ago.
fn failure(mode: Mode, error: &io::Error, to: SocketAddr) -> Reason {
    tracing::debug!(%error, %to, mode = mode.label(), "data connection can't be made");
    match mode {
        _ if is_ours(error) => Reason::Internal,
        Mode::Passive => Reason::ConnectFailed,
        Mode::Active => Reason::ClientGone,
    }
}

/// Dropping the future resets what the other side may have accepted already: an orderly end of nothing would be
/// a whole upload to it.
async fn connect(to: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(mut from) = from {
        from.set_port(0);
        socket.bind(from)?;
    }
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    let stream = socket.connect(to).await?;
    SockRef::from(&stream).set_linger(None)?;
    Ok(stream)
}
