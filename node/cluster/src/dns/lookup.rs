//! One look-up: the hosts file first, then the servers, by the resolver file's search list.
//!
//! A search list is gone through here and not by the library, so that A and AAAA come from one and the same
//! name, as libc has it: the first that has any of both.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, join};
use futures::stream::{self, StreamExt as _};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::hosts::{Hosts, Stamp};
use super::resolv_conf::ResolvConf;
use super::table::{ADDRESSES_MAX, Addresses, Answer, Heard, Part, Service, TTL_MAX};
use super::{Ask, LOOKUPS_MAX, Question};

/// All of one look-up, whatever the resolver file says of time-outs and attempts.
const LOOKUP_TIME: Duration = Duration::from_secs(10);
/// How long what the hosts file says is believed.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// Hosts of one SRV name that are looked up at the same time.
const HOSTS_AT_ONCE: usize = 4;

/// Looks names up as this machine is told to.
#[derive(Clone)]
pub(super) struct Resolver(Arc<Shared>);

struct Shared {
    server: Option<SocketAddr>,
    resolv_conf: PathBuf,
    hosts: Mutex<Hosts>,
    /// What the resolver file made; made again when that has changed.
    client: Mutex<Option<(Stamp, Arc<Client>)>>,
}

/// Who is asked, and for which names.
struct Client {
    resolver: TokioResolver,
    conf: ResolvConf,
}

/// What the servers said of one name and type.
enum Said<T> {
    Found(Vec<T>, Duration),
    Nothing,
    Failed(String),
}

impl Ask for Resolver {
    fn ask(&self, question: Question) -> BoxFuture<'static, Heard> {
        let shared = Arc::clone(&self.0);
        let answer = async move {
            let answer = timeout(LOOKUP_TIME, shared.look_up(question)).await;
            answer.unwrap_or_else(|_| Heard::Failed(format!("no answer in {LOOKUP_TIME:?}")))
        };
        answer.boxed()
    }
}

impl Resolver {
    pub(super) fn new(server: Option<SocketAddr>) -> Self {
        Self::with_files(server, Path::new("/etc/resolv.conf"), Path::new("/etc/hosts"))
    }

    pub(super) fn with_files(server: Option<SocketAddr>, resolv_conf: &Path, hosts: &Path) -> Self {
        let (hosts, client) = (Mutex::new(Hosts::new(hosts)), Mutex::default());
        Self(Arc::new(Shared { server, resolv_conf: resolv_conf.to_owned(), hosts, client }))
    }
}

impl Shared {
    async fn look_up(&self, question: Question) -> Heard {
        match question {
            Question::Host(name) => match self.host(&name).await {
                Said::Found(found, ttl) => {
                    let host: Arc<str> = name.strip_suffix('.').unwrap_or(&name).into();
                    let service = Service { host: Arc::clone(&host), port: 0, weight: 0, priority: 0 };
                    let hosts = found.into_iter().map(|addresses| (Arc::clone(&host), addresses)).collect();
                    Heard::Answer(Answer { services: vec![service], hosts, ttl })
                }
                Said::Nothing => Heard::Nothing,
                Said::Failed(why) => Heard::Failed(why),
            },
            Question::Srv(name) => self.srv(&name).await,
        }
    }

    /// One element: the addresses.
    async fn host(&self, name: &str) -> Said<Addresses> {
        let bare = name.strip_suffix('.').unwrap_or(name);
        if let Some(ips) = self.hosts.lock().find(bare) {
            let (v4, v6) = ips.into_iter().partition(IpAddr::is_ipv4);
            return Said::Found(vec![Addresses { v4: Part::Found(v4), v6: Part::Found(v6) }], HOSTS_TTL);
        }
        if bare == "localhost" || bare.ends_with(".localhost") {
            // RFC 6761, section 6.3: no server is asked.
            let v4 = Part::Found(vec![Ipv4Addr::LOCALHOST.into()]);
            let v6 = Part::Found(vec![Ipv6Addr::LOCALHOST.into()]);
            return Said::Found(vec![Addresses { v4, v6 }], HOSTS_TTL);
        }
        let client = match self.client() {
            Ok(client) => client,
            Err(why) => return Said::Failed(why),
        };
        for candidate in client.conf.candidates(name) {
            let (v4, v6) =
                join(client.ask(&candidate, RecordType::A), client.ask(&candidate, RecordType::AAAA)).await;
            match (v4, v6) {
                (Said::Nothing, Said::Nothing) => {}
                (Said::Failed(why), Said::Failed(_)) => return Said::Failed(why),
                (v4, v6) => {
                    let mut ttl = TTL_MAX;
                    let v4 = part(v4, &mut ttl);
                    let v6 = part(v6, &mut ttl);
                    return Said::Found(vec![Addresses { v4, v6 }], ttl);
                }
            }
        }
        Said::Nothing
    }

    async fn srv(&self, name: &str) -> Heard {
        let client = match self.client() {
            Ok(client) => client,
            Err(why) => return Heard::Failed(why),
        };
        for candidate in client.conf.candidates(name) {
            return match client.ask(&candidate, RecordType::SRV).await {
                Said::Nothing => continue,
                Said::Failed(why) => Heard::Failed(why),
                Said::Found(records, ttl) => self.hosts_of(services(&records), ttl).await,
            };
        }
        Heard::Nothing
    }

    async fn hosts_of(&self, services: Vec<Service>, mut ttl: Duration) -> Heard {
        let names: BTreeMap<Arc<str>, String> =
            services.iter().map(|s| (Arc::clone(&s.host), format!("{}.", s.host))).collect();
        let asked =
            stream::iter(names.into_iter().map(|(host, name)| async move { (host, self.host(&name).await) }));
        let mut asked = asked.buffer_unordered(HOSTS_AT_ONCE);
        let mut hosts = BTreeMap::new();
        while let Some((host, said)) = asked.next().await {
            let addresses = match said {
                Said::Found(mut found, of_host) => {
                    ttl = ttl.min(of_host);
                    found.pop()
                }
                Said::Nothing => None,
                Said::Failed(why) => Some(Addresses { v4: Part::Failed(why.clone()), v6: Part::Failed(why) }),
            };
            hosts.extend(addresses.map(|addresses| (host, addresses)));
        }
        Heard::Answer(Answer { services, hosts, ttl })
    }

    fn client(&self) -> Result<Arc<Client>, String> {
        let mut made = self.client.lock();
        let now = if self.server.is_none() { Stamp::of(&self.resolv_conf) } else { Stamp::none() };
        if let Some((stamp, client)) = &*made
            && *stamp == now
        {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(match self.server {
            Some(server) => Client::new(ResolvConf::of_server(server))?,
            None => Client::of_file(&self.resolv_conf)?,
        });
        *made = Some((now, Arc::clone(&client)));
        Ok(client)
    }
}

impl Client {
    fn of_file(path: &Path) -> Result<Client, String> {
        let told = |why: String| {
            format!("can't read {}: {why}; name a DNS server with --resolver ADDR:PORT", path.display())
        };
        let text = std::fs::read(path).map_err(|error| told(error.to_string()))?;
        let conf = ResolvConf::parse(&String::from_utf8_lossy(&text));
        if conf.servers.is_empty() {
            return Err(told("it names no server".to_owned()));
        }
        Client::new(conf)
    }

    fn new(conf: ResolvConf) -> Result<Client, String> {
        let server = |server: &SocketAddr| {
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            config.connections.iter_mut().for_each(|connection| connection.port = server.port());
            config
        };
        let servers = conf.servers.iter().map(server).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        // What is fresh, what is kept and for how long is the table's matter.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = conf.timeout;
        options.attempts = conf.attempts;
        options.max_active_requests = LOOKUPS_MAX * HOSTS_AT_ONCE * 2;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        Ok(Client { resolver, conf })
    }

    /// An absolute name.
    async fn ask(&self, name: &str, kind: RecordType) -> Said<Record> {
        match self.resolver.lookup(name, kind).await {
            Ok(found) => {
                let records: Vec<_> =
                    found.answers().iter().filter(|record| record.record_type() == kind).cloned().collect();
                // Those of aliases on the way count too.
                match found.answers().iter().map(|record| record.ttl).min() {
                    Some(ttl) if !records.is_empty() => Said::Found(records, Duration::from_secs(ttl.into())),
                    _ => Said::Nothing,
                }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
            {
                Said::Nothing
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                Said::Failed(format!("the DNS server answers \"{code}\""))
            }
            Err(error) => Said::Failed(error.to_string()),
        }
    }
}

fn text(name: &hickory_resolver::proto::rr::Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

fn part(said: Said<Record>, ttl: &mut Duration) -> Part {
    match said {
        Said::Found(records, of_part) => {
            *ttl = (*ttl).min(of_part);
            Part::Found(records.iter().filter_map(|record| record.data.ip_addr()).collect())
        }
        Said::Nothing => Part::Found(Vec::new()),
        Said::Failed(why) => Part::Failed(why),
    }
}

/// As many as there can be addresses; the same ones, in whatever order they came. A host of "." says that
/// there is no such service.
fn services(records: &[Record]) -> Vec<Service> {
    let service = |record: &Record| match &record.data {
        RData::SRV(srv) if !srv.target.is_root() => Some(Service {
            host: text(&srv.target).into(),
            port: srv.port,
            weight: srv.weight,
            priority: srv.priority,
        }),
        _ => None,
    };
    let mut services: Vec<Service> = records.iter().filter_map(service).collect();
    services.sort_by(|a, b| {
        let key = |s: &Service| (s.priority, Arc::clone(&s.host), s.port, s.weight);
        key(a).cmp(&key(b))
    });
    services.truncate(ADDRESSES_MAX);
    services
}
