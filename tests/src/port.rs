//! Ports for programs that can't say which one the system chose.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use socket2::{Domain, Socket, Type};

/// Sockets that hold the ports that were given out, to the end of the process.
static HELD: Mutex<Vec<Socket>> = Mutex::new(Vec::new());

/// A port of TCP on loopback, for one program; see [`free_address`].
pub fn free_port() -> u16 {
    free_address(Ipv4Addr::LOCALHOST.into()).port()
}

/// An address of TCP at `ip`, for one program.
///
/// A socket of ours stays bound there without listening. The system then gives the port to nobody that asks for
/// any, and uses it for no outgoing connection; a server that binds with `SO_REUSEADDR`, as all do, gets it.
pub fn free_address(ip: IpAddr) -> SocketAddr {
    let wanted = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(wanted), Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option that all sockets have");
    socket.bind(&wanted.into()).expect("a free port");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("an address of IP");
    HELD.lock().expect("nobody panics with it").push(socket);
    address
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_held_port_is_refused_until_a_server_listens_there() {
        let address = free_address(Ipv4Addr::LOCALHOST.into());
        assert!(TcpStream::connect(address).is_err());
        let server = TcpListener::bind(address).expect("the standard library sets SO_REUSEADDR");
        TcpStream::connect(address).expect("it listens");
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}
