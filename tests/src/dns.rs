//! A DNS server that says what a test tells it to, over UDP on loopback.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// What a zone has for one name.
#[derive(Clone, Debug)]
pub enum Record {
    Ip(IpAddr),
    Srv { priority: u16, weight: u16, port: u16, target: String },
    Alias(String),
}

/// How a question about a name is answered.
#[derive(Clone, Debug, Default)]
pub enum Answer {
    /// With those records that fit the question, which may be none; with this TTL in seconds.
    Records(Vec<Record>, u32),
    /// NXDOMAIN, as every name that was never set.
    #[default]
    Unknown,
    /// SERVFAIL.
    Failure,
    /// SERVFAIL to questions for AAAA; to others as [`Answer::Records`].
    FailureOfV6(Vec<Record>, u32),
    /// Nothing comes back.
    Silence,
}

/// Ended when dropped.
pub struct DnsServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Zone {
    names: BTreeMap<String, Answer>,
    asked: BTreeMap<String, u64>,
}

impl DnsServer {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket has a time-out");
        let (zone, stop) = (Arc::<Mutex<Zone>>::default(), Arc::<AtomicBool>::default());
        let server = std::thread::spawn({
            let (zone, stop) = (zone.clone(), stop.clone());
            move || {
                let mut buffer = [0; 1500];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                    let answer = zone.lock().expect("no test panics in here").answer(&buffer[..n]);
                    if let Some(answer) = answer {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }
        });
        Self { address, zone, stop, server: Some(server) }
    }

    /// From now on.
    pub fn set(&self, name: &str, answer: Answer) {
        self.zone.lock().expect("no test panics in here").names.insert(name.to_owned(), answer);
    }

    /// Addresses with a TTL of 1 s.
    pub fn set_ips(&self, name: &str, ips: &[&str]) {
        let ip = |ip: &&str| Record::Ip(ip.parse().expect("an address"));
        self.set(name, Answer::Records(ips.iter().map(ip).collect(), 1));
    }

    /// Questions about the name so far.
    pub fn asked(&self, name: &str) -> u64 {
        self.zone.lock().expect("no test panics in here").asked.get(name).copied().unwrap_or(0)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Zone {
    /// RFC 1035, section 4.1; `None`: silence.
    fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
        let (name, end) = read_name(question, 12)?;
        let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
        *self.asked.entry(name.clone()).or_default() += 1;
        let (code, records, ttl) = match self.names.get(&name).cloned().unwrap_or_default() {
            Answer::Silence => return None,
            Answer::Unknown => (3, Vec::new(), 0),
            Answer::Failure => (2, Vec::new(), 0),
            Answer::FailureOfV6(..) if kind == AAAA => (2, Vec::new(), 0),
            Answer::Records(records, ttl) | Answer::FailureOfV6(records, ttl) => (0, records, ttl),
        };
        let mut found = Vec::new();
        self.find(&name, &records, kind, &mut found);
        // Its id, our answer (recursion available), one question, so many answers.
        let mut message = question.get(..2)?.to_vec();
        message.extend([0x81, 0x80 | code, 0, 1]);
        message.extend(u16::try_from(found.len()).ok()?.to_be_bytes());
        message.extend([0; 4]);
        message.extend(question.get(12..end + 4)?);
        for (owner, kind, data) in found {
            message.extend(name_bytes(&owner));
            message.extend(kind.to_be_bytes());
            message.extend([0, 1]);
            message.extend(ttl.to_be_bytes());
            message.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            message.extend(data);
        }
        Some(message)
    }

    fn find(&self, name: &str, records: &[Record], kind: u16, found: &mut Vec<(String, u16, Vec<u8>)>) {
        for record in records {
            let data = match record {
                Record::Ip(IpAddr::V4(ip)) if kind == A => ip.octets().to_vec(),
                Record::Ip(IpAddr::V6(ip)) if kind == AAAA => ip.octets().to_vec(),
                Record::Srv { priority, weight, port, target } if kind == SRV => {
                    let numbers = [*priority, *weight, *port];
                    numbers.into_iter().flat_map(u16::to_be_bytes).chain(name_bytes(target)).collect()
                }
                Record::Alias(of) => {
                    found.push((name.to_owned(), CNAME, name_bytes(of)));
                    if let Some(Answer::Records(records, _)) = self.names.get(of) {
                        self.find(of, records, kind, found);
                    }
                    continue;
                }
                _ => continue,
            };
            found.push((name.to_owned(), kind, data));
        }
    }
}

/// A name without compression, lower case, and where it ends.
fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}

fn name_bytes(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let bytes = labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    bytes.chain([0]).collect()
}
