//! One target of lines, opened by the writer when it is needed.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use tokio::time::Instant;
use trestle_config::model::{AccessLogTarget, SyslogAddress};

/// Of a new file: who clients are is not for everybody to read.
const MODE: u32 = 0o640;

/// How long a local syslog may take a datagram.
const SEND_WAIT: Duration = Duration::from_secs(1);

/// Shared by the revisions that name the same target; closed with the last of them.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) target: AccessLogTarget,
    /// The writer's alone.
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sink: Option<Sink>,
    /// The call to open anew that it was opened after.
    pub(super) reopens: u64,
    /// It has failed, and is not tried before.
    pub(super) retry_at: Option<Instant>,
    /// The last line that was written has no end.
    pub(super) torn: bool,
}

#[derive(Debug)]
pub(super) enum Sink {
    Stdout,
    File(File),
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Output {
    pub(super) fn new(target: AccessLogTarget) -> Self {
        Self { target, state: Mutex::default() }
    }
}

impl Sink {
    pub(super) fn open(target: &AccessLogTarget) -> io::Result<Self> {
        match target {
            AccessLogTarget::Stdout => Ok(Sink::Stdout),
            AccessLogTarget::File(path) => {
                // Of a named pipe neither its opening nor a write may wait for a reader.
                let flags = OFlags::NONBLOCK.bits() as i32;
                let mut options = OpenOptions::new();
                options.append(true).create(true).mode(MODE).custom_flags(flags).open(path).map(Sink::File)
            }
            AccessLogTarget::Syslog(SyslogAddress::Udp { host, port }) => {
                // Its first address.
                let to = (host.as_str(), *port).to_socket_addrs()?.next();
                let to = to.ok_or(io::ErrorKind::AddrNotAvailable)?;
                let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                socket.connect(to)?;
                Ok(Sink::Udp(socket))
            }
            AccessLogTarget::Syslog(SyslogAddress::Unix(path)) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(SEND_WAIT))?;
                socket.connect(path)?;
                Ok(Sink::Unix(socket))
            }
        }
    }
}
