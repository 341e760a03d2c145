//! The ports that the system chose for this node, kept in its data folder for the next start.
//!
//! A node that was told port 0 keeps the port it was first given: others in the cluster know it by
//! that. The file also says which process runs with the folder, so that a person (and `trestle
//! demo`) finds it. It is written only once the node is part of a cluster, whole or not at all.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use trestle_dataplane::{BoundListener, PinnedPorts};

const FILE: &str = "ports.json";

/// How often a kept port is asked for while it is in use, and the pause between: a second in all.
const KEPT_ATTEMPTS: u32 = 10;
const KEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    /// The process that wrote this; it may be gone.
    pub(crate) pid: u32,
    pub(crate) cluster: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
    #[serde(default)]
    pub(crate) listeners: Vec<ListenerPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenerPort {
    pub(crate) listener: String,
    /// Position in the listener's `bind` list.
    pub(crate) index: usize,
    pub(crate) port: u16,
}

impl Ports {
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    /// `None`: this folder has not been part of a cluster yet.
    pub(crate) fn load(data_dir: &Path) -> anyhow::Result<Option<Ports>> {
        let path = Ports::path(data_dir);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!("{} is damaged; remove it to let the system choose ports anew", path.display())
            }),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("can't read {}", path.display())),
        }
    }

    pub(crate) fn save(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = Ports::path(data_dir);
        let text = serde_json::to_vec_pretty(self).context("ports as JSON")?;
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|e| e.error)?;
            std::fs::File::open(data_dir)?.sync_all()
        };
        write().with_context(|| format!("can't write {}", path.display()))
    }

    pub(crate) fn pinned(&self) -> PinnedPorts {
        self.listeners.iter().map(|kept| ((kept.listener.clone(), kept.index), kept.port)).collect()
    }

    /// Takes over what listeners were given for port 0. One that can't bind at present keeps its
    /// port; one that is gone from the config loses it.
    pub(crate) fn note_listeners(&mut self, bound: &[BoundListener]) {
        let earlier = self.pinned();
        self.listeners = bound
            .iter()
            .filter(|b| b.bind.port == 0)
            .filter_map(|b| {
                let port = match &b.state {
                    Ok(address) => address.port(),
                    Err(_) => *earlier.get(&(b.listener.clone(), b.index))?,
                };
                Some(ListenerPort { listener: b.listener.clone(), index: b.index, port })
            })
            .collect();
    }
}

/// What an address is for, to name the flag when it can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Cluster,
    Admin,
}

/// An address with the port of an earlier start filled in, where 0 was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) address: SocketAddr,
    /// The port comes from the data folder.
    kept: bool,
    used_for: Use,
}

impl Wanted {
    pub(crate) fn new(used_for: Use, given: SocketAddr, earlier: Option<SocketAddr>) -> Wanted {
        match earlier {
            Some(earlier) if given.port() == 0 => {
                Wanted { address: SocketAddr::new(given.ip(), earlier.port()), kept: true, used_for }
            }
            _ => Wanted { address: given, kept: false, used_for },
        }
    }

    /// Whether the address can be had, tried before anything is started; the cluster's needs TCP
    /// and UDP. Sockets are closed again: whoever binds for good reports a race in its own words.
    pub(crate) fn probe(&self, data_dir: &Path) -> anyhow::Result<()> {
        self.patiently(|| TcpListener::bind(self.address)).map_err(|e| self.refusal("TCP", e, data_dir))?;
        if self.used_for == Use::Cluster {
            self.patiently(|| UdpSocket::bind(self.address)).map_err(|e| self.refusal("UDP", e, data_dir))?;
        }
        Ok(())
    }

    pub(crate) fn bind(&self, data_dir: &Path) -> anyhow::Result<TcpListener> {
        self.patiently(|| TcpListener::bind(self.address)).map_err(|e| self.refusal("TCP", e, data_dir))
    }

    /// A port of the system's choice may be held for a moment as the near end of a connection that
    /// somebody else on this machine opens; so a kept one is asked for again for a while.
    fn patiently<T>(&self, mut bind: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
        let mut patience = if self.kept { KEPT_ATTEMPTS } else { 1 };
        loop {
            patience -= 1;
            match bind() {
                Err(e) if e.kind() == ErrorKind::AddrInUse && patience > 0 => std::thread::sleep(KEPT_PAUSE),
                bound => return bound,
            }
        }
    }

    fn refusal(&self, transport: &str, error: std::io::Error, data_dir: &Path) -> anyhow::Error {
        let flag = match self.used_for {
            Use::Cluster => "--cluster",
            Use::Admin => "--admin",
        };
        let address = self.address;
        if error.kind() != ErrorKind::AddrInUse {
            return anyhow::Error::new(error)
                .context(format!("can't listen on {flag} {address} ({transport})"));
        }
        let port = address.port();
        let advice = if self.kept {
            format!(
                "this node was given that port at an earlier start ({}). Free it, or give {flag} another port, \
                 which the node makes known to the others",
                Ports::path(data_dir).display()
            )
        } else {
            format!("Give {flag} another port, or 0 for one of the system's choice")
        };
        anyhow::anyhow!(
            "{flag} {address}: {transport} port {port} is in use, maybe by another trestle; `ss -lntup 'sport = :{port}'` \
             shows by whom. {advice}"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use trestle_config::model::{Bind, Protocol};

    use super::*;

    fn bound(listener: &str, port: u16, state: Result<u16, &str>) -> BoundListener {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        BoundListener {
            by_kernel: false,
            listener: listener.into(),
            index: 0,
            bind: Bind { ip: None, port, more: 0 },
            protocol: Protocol::Http,
            state: state.map(local).map_err(str::to_owned),
        }
    }

    #[test]
    fn what_was_saved_is_there_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Ports::load(dir.path()).unwrap(), None);
        let mut ports =
            Ports { pid: 7, cluster: Some("127.0.0.1:4000".parse().unwrap()), ..Ports::default() };
        ports.note_listeners(&[bound("web", 0, Ok(5000)), bound("fixed", 80, Ok(80))]);
        ports.save(dir.path()).unwrap();
        assert_eq!(Ports::load(dir.path()).unwrap(), Some(ports.clone()));
        assert_eq!(ports.pinned(), PinnedPorts::from([(("web".to_owned(), 0), 5000)]));
    }

    #[test]
    fn a_damaged_file_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(Ports::path(dir.path()), "{").unwrap();
        assert!(Ports::load(dir.path()).unwrap_err().to_string().contains("remove it"));
    }

    #[test]
    fn a_listener_that_cannot_bind_keeps_its_port_and_one_that_is_gone_loses_it() {
        let mut ports = Ports::default();
        ports.note_listeners(&[bound("a", 0, Ok(1000)), bound("b", 0, Ok(1001))]);
        ports.note_listeners(&[bound("a", 0, Err("in use")), bound("c", 0, Err("in use"))]);
        assert_eq!(ports.pinned(), PinnedPorts::from([(("a".to_owned(), 0), 1000)]));
    }

    #[test]
    fn a_kept_port_that_is_taken_is_named_with_who_to_ask_and_what_to_do() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap();
        let wanted = Wanted::new(Use::Admin, "127.0.0.1:0".parse().unwrap(), Some(taken));
        let error = wanted.probe(Path::new("/data")).unwrap_err().to_string();
        for part in [format!("--admin {taken}"), "ss -lntup".into(), "/data/ports.json".into()] {
            assert!(error.contains(&part), "{part:?} is missing in: {error}");
        }
    }

    #[test]
    fn a_cluster_port_taken_for_udp_only_is_in_use_too() {
        // A number whose TCP half nobody else holds at this moment.
        let free = |udp: &UdpSocket| TcpListener::bind(udp.local_addr().unwrap()).is_ok();
        let mut tries = std::iter::repeat_with(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        let holder = tries.find(free).unwrap();
        let wanted = Wanted::new(Use::Cluster, holder.local_addr().unwrap(), None);
        let error = wanted.probe(Path::new("/data")).unwrap_err().to_string();
        assert!(error.contains("--cluster") && error.contains("UDP"), "{error}");
    }

    #[test]
    fn a_port_that_was_asked_for_beats_the_kept_one() {
        let wanted = Wanted::new(Use::Cluster, "127.0.0.1:7400".parse().unwrap(), "127.0.0.1:9".parse().ok());
        assert_eq!(wanted.address.port(), 7400);
    }
}
