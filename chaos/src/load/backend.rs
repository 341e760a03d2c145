//! Backends that say who they are and check what they are sent: `trestle-chaos backend`.
//!
//! `trestle sample-backend` serves plain HTTP; these serve what it does not: streams of a pattern, by
//! themselves (`tcp`) or after an HTTP upgrade (`stream`, which answers plain requests as well, as
//! health checks want), and datagrams (`udp`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::http::Reader;
use super::pattern::{self, BLOCK, Way};

pub const COMMAND: &str = "backend";

/// Connections; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4_096;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What it calls itself in answers
    #[arg(long)]
    pub name: String,
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    #[arg(long, value_enum)]
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// HTTP, and a stream of a pattern after `Upgrade: websocket`
    Stream,
    /// A stream of a pattern
    Tcp,
    /// Sends datagrams back, with its name in front
    Udp,
}

/// Until it is killed. Says where it listens on standard error, as `trestle sample-backend` does.
///
/// # Errors
/// It can't listen there.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let backend = Backend::bind(&args.name, args.kind, args.listen).await?;
        // Nobody may be reading.
        let _ = io::Write::write_all(
            &mut io::stderr(),
            format!("{} ({:?}) listens on {}\n", args.name, args.kind, backend.address).as_bytes(),
        );
        backend.serve().await;
        Ok(())
    })
}

enum Socket {
    Stream(TcpListener),
    Datagram(UdpSocket),
}

pub(super) struct Backend {
    name: Arc<str>,
    kind: Kind,
    pub(super) address: SocketAddr,
    socket: Socket,
}

impl Backend {
    pub(super) async fn bind(name: &str, kind: Kind, listen: SocketAddr) -> io::Result<Self> {
        let (socket, address) = if kind == Kind::Udp {
            let socket = UdpSocket::bind(listen).await?;
            let address = socket.local_addr()?;
            (Socket::Datagram(socket), address)
        } else {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            (Socket::Stream(listener), address)
        };
        Ok(Self { name: name.into(), kind, address, socket })
    }

    pub(super) async fn serve(self) {
        let listener = match self.socket {
            Socket::Stream(listener) => listener,
            Socket::Datagram(socket) => return echo(&socket, &self.name).await,
        };
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // The semaphore is never closed.
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            let (name, kind) = (self.name.clone(), self.kind);
            tokio::spawn(async move {
                // How a connection ends is the client's business.
                let _ = connection(stream, kind, &name).await;
                drop(slot);
            });
        }
    }
}

async fn connection(mut stream: TcpStream, kind: Kind, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    let mut reader = Reader::new(read);
    if kind == Kind::Tcp {
        return exchange(&mut reader, &mut write, name).await;
    }
    while let Some(request) = reader.message().await? {
        let upgrade = request.field("upgrade").is_some_and(|u| u.eq_ignore_ascii_case("websocket"));
        if upgrade {
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 x-backend: {name}\r\n\r\n"
            );
            write.write_all(head.as_bytes()).await?;
            return exchange(&mut reader, &mut write, name).await;
        }
        let mut words = request.first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut body = format!("hello from {name}: {method} {target}\n").into_bytes();
        if method != "GET" {
            body.extend_from_slice(&request.body);
        }
        let head = format!("HTTP/1.1 200 OK\r\nx-backend: {name}\r\ncontent-length: {}\r\n\r\n", body.len());
        write.write_all(head.as_bytes()).await?;
        write.write_all(&body).await?;
        if request.closes() {
            break;
        }
    }
    Ok(())
}

/// The client sends its seed; the server says its name. Then each block that arrives is checked and
/// answered by one, so that both directions are checked at the client.
async fn exchange(
    reader: &mut Reader<impl AsyncRead + Unpin>,
    write: &mut (impl AsyncWrite + Unpin),
    name: &str,
) -> io::Result<()> {
    let seed = reader.take(8).await?;
    let seed = u64::from_le_bytes(seed.try_into().map_err(|_| io::ErrorKind::UnexpectedEof)?);
    write.write_all(format!("{name}\n").as_bytes()).await?;
    for number in 0.. {
        let got = reader.take(BLOCK).await?;
        let right = got == pattern::block(seed, Way::Up, number);
        let answer =
            if right { pattern::block(seed, Way::Down, number) } else { pattern::refusal(seed, number) };
        write.write_all(&answer).await?;
    }
    Ok(())
}

async fn echo(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = [name.as_bytes(), b"\n", &buffer[..length]].concat();
        // A reply that can't be sent is a datagram lost, as datagrams are.
        let _ = socket.send_to(&answer, from).await;
    }
}
