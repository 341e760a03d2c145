//! What a node is told: from flags, variables and the node file to one checked [`NodeSettings`].
//!
//! Every key of [`KEYS`] may be given as `--key`, as `TRESTLE_KEY` or in the node file, and wins in
//! that order; an empty variable counts as not given (a container's way to leave one out). Past
//! [`resolve`] a value can't be bad, and a refusal lists every mistake with the place it was made.

mod file;
mod otlp;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

pub(crate) use file::NodeFile;
pub(crate) use otlp::Otlp;

/// Every key, and what `--help` says of it.
pub(crate) const KEYS: &[Key] = &[
    Key { name: "name", value: "NAME", help: "This node's name in the cluster [default: the host's name]" },
    Key {
        name: "data-dir",
        value: "DIR",
        help: "Where the node keeps what it must not lose [default: ./trestle-data]",
    },
    Key {
        name: "cluster",
        value: "ADDR:PORT",
        help: "Where Raft (TCP) and gossip (UDP) listen; port 0: the system's choice, kept for later starts [default: 127.0.0.1:7400]",
    },
    Key {
        name: "admin",
        value: "ADDR:PORT",
        help: "Where the admin API listens; beyond loopback it speaks TLS [default: 127.0.0.1:7480]",
    },
    Key {
        name: "key-file",
        value: "FILE",
        help: "The cluster's secret, made by `trestle keygen` [default with --bootstrap: one is made in the data folder]",
    },
    Key {
        name: "user",
        value: "USER[:GROUP]",
        help: "Whom a node that root starts becomes, by name or number, once it has read what only root may; it keeps the capabilities for low ports and VIPs [default: nobody else]",
    },
    Key {
        name: "bootstrap",
        value: "",
        help: "Found a cluster (ignored when the data folder knows one; with --join: only if none of those is in one)",
    },
    Key { name: "config", value: "FILE", help: "First config of a cluster that is founded" },
    Key { name: "join", value: "ADDR:PORT,...", help: "Nodes of the cluster to join" },
    Key { name: "replace", value: "NAME", help: "Take the name of a node that is gone for good" },
    Key {
        name: "advertise",
        value: "HOST:PORT",
        help: "Where others reach this node's cluster port [default: as bound]",
    },
    Key { name: "admin-token-file", value: "FILE", help: "A token that admits to the admin API" },
    Key {
        name: "admin-read-token-file",
        value: "FILE",
        help: "A token that admits to what only reads (status, config, metrics)",
    },
    Key {
        name: "zone",
        value: "ZONE",
        help: "Where this node stands; pools that are `zone_aware` prefer members of the same zone [default: nowhere]",
    },
    Key {
        name: "resolver",
        value: "ADDR[:PORT]",
        help: "DNS server that is asked for members' names [default: those of /etc/resolv.conf]",
    },
    Key {
        name: "memory-max",
        value: "SIZE",
        help: "Memory that the node should not exceed, e.g. `2GiB`: near it, it refuses clients [default: the limit of its cgroup, or what the machine has]",
    },
    Key {
        name: "cache-memory",
        value: "SIZE",
        help: "Memory for cached responses, e.g. `256MiB`; `0`: nothing is cached [default: a sixteenth of the memory that there is, at most 1GiB]",
    },
    Key {
        name: "cache-disk",
        value: "DIR",
        help: "Folder of this node alone for long cached responses, over 1MiB; they outlast a restart [default: they are kept in memory]",
    },
    Key {
        name: "cache-disk-max",
        value: "SIZE",
        help: "How much of the disk cached responses may take, from 64MiB [default: 10GiB]",
    },
    Key { name: "workers", value: "N", help: "Threads that carry traffic [default: one a core]" },
    Key {
        name: "otlp",
        value: "URL",
        help: "Where spans of requests go, over gRPC: `http://HOST:4317`, `https://HOST:PORT` or `off` [default: as OTEL_EXPORTER_OTLP_ENDPOINT says, else off]",
    },
    Key {
        name: "trace-ratio",
        value: "SHARE",
        help: "How many of the traces that begin here are sampled, 0 to 1 [default: as OTEL_TRACES_SAMPLER and its _ARG say, else 1]",
    },
    Key { name: "log-format", value: "text|json", help: "How log lines look [default: text]" },
    Key {
        name: "log",
        value: "FILTER",
        help: "What is logged, e.g. `debug` or `info,trestle_cluster=debug`; read again from the node file on SIGHUP [default: info]",
    },
];

/// One option of a node.
pub(crate) struct Key {
    /// As flag and in the node file.
    pub(crate) name: &'static str,
    /// What its value is called; empty: a switch.
    pub(crate) value: &'static str,
    pub(crate) help: &'static str,
}

impl Key {
    pub(crate) fn variable(&self) -> String {
        format!("TRESTLE_{}", self.name.replace('-', "_").to_uppercase())
    }
}

/// The variable of `--node-file`, which can't stand in that file itself.
pub(crate) const NODE_FILE_VARIABLE: &str = "TRESTLE_NODE_FILE";

/// How a node is to run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeSettings {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) cluster: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) key_file: Option<PathBuf>,
    /// Whom to become.
    pub(crate) user: Option<String>,
    pub(crate) bootstrap: bool,
    pub(crate) config: Option<PathBuf>,
    pub(crate) join: Vec<String>,
    pub(crate) replace: bool,
    pub(crate) advertise: Option<String>,
    pub(crate) admin_token_file: Option<PathBuf>,
    pub(crate) admin_read_token_file: Option<PathBuf>,
    pub(crate) zone: String,
    pub(crate) resolver: Option<SocketAddr>,
    /// Bytes that the process should not exceed.
    pub(crate) memory_max: Option<u64>,
    /// Bytes that cached responses may take; `None`: by what there is.
    pub(crate) cache_memory: Option<u64>,
    /// Folder for those that are long.
    pub(crate) cache_disk: Option<PathBuf>,
    /// Bytes that they may take there; `None`: nobody said.
    pub(crate) cache_disk_max: Option<u64>,
    pub(crate) workers: NonZeroUsize,
    /// `None`: spans go nowhere.
    pub(crate) otlp: Option<Otlp>,
    pub(crate) log_format: LogFormat,
    pub(crate) log: Option<String>,
    /// Read again on SIGHUP.
    pub(crate) node_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What the machine offers as defaults.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) cores: NonZeroUsize,
}

impl Host {
    /// The machine that this process runs on.
    pub(crate) fn this() -> Host {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = match name.trim() {
            "" => "node".to_owned(),
            name => name.to_owned(),
        };
        Host { name, cores: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN) }
    }
}

/// Every mistake in what a node was told. Wrong usage: exit code 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct Mistakes(pub(crate) Vec<String>);

/// What was given, before it is checked.
pub(crate) struct Layers<'a> {
    /// From the command line, by key.
    pub(crate) flags: BTreeMap<&'static str, String>,
    /// The environment.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    pub(crate) file: Option<NodeFile>,
}

/// Where a value came from, as its owner would look for it.
#[derive(Debug)]
enum Origin {
    Flag(&'static str),
    Variable(String),
    File { file: PathBuf, line: usize, key: &'static str },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "--{name}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::File { file, line, key } => write!(f, "{}:{line}: {key}", file.display()),
        }
    }
}

struct Given {
    text: String,
    origin: Origin,
}

impl Layers<'_> {
    fn given(&self, key: &Key) -> Option<Given> {
        if let Some(text) = self.flags.get(key.name) {
            return Some(Given { text: text.clone(), origin: Origin::Flag(key.name) });
        }
        let variable = key.variable();
        if let Some(text) = (self.variable)(&variable).filter(|text| !text.is_empty()) {
            return Some(Given { text, origin: Origin::Variable(variable) });
        }
        let file = self.file.as_ref()?;
        let entry = file.entries.get(key.name)?;
        let origin = Origin::File { file: file.path.clone(), line: entry.line, key: key.name };
        Some(Given { text: entry.value.clone(), origin })
    }
}

/// Takes each key from the first layer that has it, checks it, and fills in defaults.
pub(crate) fn resolve(layers: Layers<'_>, host: &Host) -> Result<NodeSettings, Mistakes> {
    let mut reader = Reader { layers: &layers, mistakes: Vec::new() };
    let replaced = reader.value("replace", node_name);
    let name = reader.value("name", node_name);
    if let (Some(name), Some(replaced)) = (&name, &replaced)
        && name != replaced
    {
        reader.mistakes.push(format!(
            "--name {name} and --replace {replaced} differ: a node that replaces another takes its name"
        ));
    }
    let settings = NodeSettings {
        replace: replaced.is_some(),
        name: name.or(replaced).unwrap_or_else(|| host.name.clone()),
        data_dir: reader.value("data-dir", path).unwrap_or_else(|| PathBuf::from("./trestle-data")),
        cluster: reader.value("cluster", address).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7400))),
        admin: reader.value("admin", address).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7480))),
        key_file: reader.value("key-file", path),
        user: reader.value("user", user),
        bootstrap: reader.value("bootstrap", switch).unwrap_or(false),
        config: reader.value("config", path),
        join: reader.value("join", peers).unwrap_or_default(),
        advertise: reader.value("advertise", host_and_port),
        admin_token_file: reader.value("admin-token-file", path),
        admin_read_token_file: reader.value("admin-read-token-file", path),
        zone: reader.value("zone", zone).unwrap_or_default(),
        resolver: reader.value("resolver", resolver),
        memory_max: reader.value("memory-max", size),
        cache_memory: reader.value("cache-memory", cache_memory),
        cache_disk: reader.value("cache-disk", path),
        cache_disk_max: reader.value("cache-disk-max", size),
        workers: reader.value("workers", workers).unwrap_or(host.cores),
        otlp: otlp::resolve(&mut reader),
        log_format: reader.value("log-format", log_format).unwrap_or(LogFormat::Text),
        log: reader.value("log", log_filter),
        node_file: layers.file.as_ref().map(|file| file.path.clone()),
    };
    let mut mistakes = reader.mistakes;
    mistakes.extend(contradictions(&settings));
    if mistakes.is_empty() { Ok(settings) } else { Err(Mistakes(mistakes)) }
}

struct Reader<'a> {
    layers: &'a Layers<'a>,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    fn value<T>(&mut self, name: &str, parse: fn(&str) -> Result<T, String>) -> Option<T> {
        let key = KEYS.iter().find(|key| key.name == name).expect("every key read is in KEYS");
        let given = self.layers.given(key)?;
        match parse(&given.text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.mistakes.push(format!("{}: {why}", given.origin));
                None
            }
        }
    }

    /// The first of these variables that is set, of those that are not ours.
    fn variable<T>(&mut self, names: &[&str], parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let set = |name: &str| (self.layers.variable)(name).filter(|text| !text.is_empty());
        let (name, text) = names.iter().find_map(|name| Some((name, set(name)?)))?;
        parse(&text).map_err(|why| self.mistakes.push(format!("{name}: {why}"))).ok()
    }
}

/// Values that are fine each, but not together.
fn contradictions(settings: &NodeSettings) -> Vec<String> {
    let mut found = Vec::new();
    if settings.config.is_some() && !settings.bootstrap {
        found.push(
            "--config is the first config of a cluster and needs --bootstrap; to change a running one use \
             `trestle apply -f FILE`"
                .to_owned(),
        );
    }
    if settings.cluster.ip().is_unspecified() && settings.advertise.is_none() {
        found.push(format!(
            "--cluster {} listens on every address: say with --advertise HOST:PORT at which one others reach \
             this node",
            settings.cluster
        ));
    }
    if settings.cache_disk_max.is_some() && settings.cache_disk.is_none() {
        found.push("--cache-disk-max says how much, but not where: give --cache-disk DIR as well".to_owned());
    }
    if settings.cache_disk.is_some() && settings.cache_memory == Some(0) {
        found.push(
            "--cache-disk with --cache-memory 0: what goes to the disk and comes from it takes memory on its way; \
             give it some, as 64MiB"
                .to_owned(),
        );
    }
    if settings.cache_disk.as_ref().is_some_and(|dir| *dir == settings.data_dir) {
        found.push("--cache-disk is the data folder: give cached responses a folder of their own".to_owned());
    }
    found
}

// === one value each ===

fn node_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no name: 1 to 63 of a-z, A-Z, 0-9, '-', '_', '.'"))
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path is missing".to_owned()) } else { Ok(Path::new(text).to_owned()) }
}

fn user(text: &str) -> Result<String, String> {
    let parts: Vec<_> = text.split(':').collect();
    let plain = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic());
    if parts.len() <= 2 && parts.iter().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no user; write it as USER or USER:GROUP, names or numbers"))
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse()
        .map_err(|_| format!("{text:?} is no address; write it as 127.0.0.1:7400, [::1]:7400 or :7400"))
}

fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is no HOST:PORT, such as 198.18.0.11:7400 or node-1.example.com:7400");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    let spaced = text.chars().any(|c| c.is_whitespace() || c.is_control());
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if host.is_empty() || bare_v6 || spaced || port == 0 { Err(wrong()) } else { Ok(text.to_owned()) }
}

fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write it as 512MiB or 2GiB, from 64MiB");
    at_least(64 << 20, "64MiB", text, bytes(text).ok_or_else(wrong)?)
}

fn cache_memory(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write it as 256MiB or 1GiB, from 1MiB, or `0`");
    if text == "0" {
        return Ok(0);
    }
    at_least(1 << 20, "1MiB", text, bytes(text).ok_or_else(wrong)?)
}

fn at_least(least: u64, named: &str, text: &str, bytes: u64) -> Result<u64, String> {
    if bytes >= least { Ok(bytes) } else { Err(format!("{text:?} is too little: {named} at least")) }
}

fn bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let bytes_per_unit = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(bytes_per_unit)
}

fn peers(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(str::trim).filter(|peer| !peer.is_empty()).map(host_and_port).collect()
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn zone(text: &str) -> Result<String, String> {
    if (1..=63).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no zone: 1 to 63 bytes of text, as members have it in the config"))
    }
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    const PORT: u16 = 53;
    let bare = || text.parse().map(|ip| SocketAddr::new(ip, PORT)).ok();
    let usable = |at: &SocketAddr| at.port() != 0 && !at.ip().is_unspecified();
    text.parse().ok().or_else(bare).filter(usable).ok_or_else(|| {
        format!("{text:?} is no DNS server: write its address, as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53")
    })
}

fn workers(text: &str) -> Result<NonZeroUsize, String> {
    /// More threads than this on any machine is a typing error.
    const WORKERS_MAX: usize = 1_024;
    match text.parse() {
        Ok(n) if n <= WORKERS_MAX => NonZeroUsize::new(n),
        _ => None,
    }
    .ok_or_else(|| format!("{text:?} is no number of threads, 1 to {WORKERS_MAX}"))
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|e| format!("{text:?} is no log filter: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { name: "machine".to_owned(), cores: NonZeroUsize::new(4).unwrap() }
    }

    fn settle(
        flags: &[(&'static str, &str)],
        variables: &[(&str, &str)],
        file: &str,
    ) -> Result<NodeSettings, Mistakes> {
        let variable = |name: &str| variables.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let layers = Layers {
            flags: flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
            variable: &variable,
            file: (!file.is_empty()).then(|| NodeFile::parse(Path::new("node.yaml"), file).unwrap()),
        };
        resolve(layers, &host())
    }

    #[test]
    fn nothing_given_yields_loopback_defaults_and_the_hosts_name() {
        let settings = settle(&[], &[], "").unwrap();
        assert_eq!(settings.name, "machine");
        assert_eq!(settings.cluster, "127.0.0.1:7400".parse().unwrap());
        assert_eq!(settings.admin, "127.0.0.1:7480".parse().unwrap());
        assert_eq!(settings.data_dir, Path::new("./trestle-data"));
        assert_eq!(settings.workers.get(), 4);
    }

    #[test]
    fn a_flag_beats_a_variable_and_a_variable_beats_the_node_file() {
        let file = "name: from-file\nworkers: 1\nlog-format: json\n";
        let variables = [("TRESTLE_NAME", "from-variable"), ("TRESTLE_WORKERS", "2")];
        let settings = settle(&[("name", "from-flag")], &variables, file).unwrap();
        assert_eq!(settings.name, "from-flag");
        assert_eq!(settings.workers.get(), 2);
        assert_eq!(settings.log_format, LogFormat::Json);
    }

    #[test]
    fn every_key_can_be_given_in_each_of_the_three_ways() {
        for key in KEYS {
            // A bad value must be refused with the place it came from, which shows that it was read.
            let bad = "\u{1}";
            let variable = key.variable();
            let flagged = settle(&[(key.name, bad)], &[], "");
            let exported = settle(&[], &[(&variable, bad)], "");
            let is_path =
                key.name.ends_with("-file") || matches!(key.name, "data-dir" | "config" | "cache-disk");
            if !is_path {
                let flagged = flagged.unwrap_err().to_string();
                assert!(flagged.starts_with(&format!("--{}: ", key.name)), "{flagged}");
                let exported = exported.unwrap_err().to_string();
                assert!(exported.starts_with(&format!("{variable}: ")), "{exported}");
            }
            assert!(NodeFile::parse(Path::new("n"), &format!("{}: x\n", key.name)).is_ok());
        }
    }

    #[test]
    fn an_empty_variable_counts_as_not_given() {
        let settings =
            settle(&[], &[("TRESTLE_JOIN", ""), ("TRESTLE_CLUSTER", "")], "join: 192.0.2.1:7400").unwrap();
        assert_eq!(settings.join, ["192.0.2.1:7400"]);
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_their_places() {
        let error =
            settle(&[("cluster", "nowhere")], &[("TRESTLE_WORKERS", "0")], "# mine\nlog-format: xml\n")
                .unwrap_err()
                .to_string();
        assert_eq!(
            error,
            "--cluster: \"nowhere\" is no address; write it as 127.0.0.1:7400, [::1]:7400 or :7400\n\
             TRESTLE_WORKERS: \"0\" is no number of threads, 1 to 1024\n\
             node.yaml:2: log-format: \"xml\" is neither text nor json"
        );
    }

    #[test]
    fn replacing_a_node_takes_its_name() {
        let settings = settle(&[("replace", "node-2")], &[], "").unwrap();
        assert_eq!((settings.name.as_str(), settings.replace), ("node-2", true));
        assert!(settle(&[("replace", "node-2"), ("name", "node-3")], &[], "").is_err());
    }

    #[test]
    fn listening_on_every_address_needs_one_to_advertise() {
        let error = settle(&[("cluster", "0.0.0.0:7400")], &[], "").unwrap_err().to_string();
        assert!(error.contains("--advertise"), "{error}");
        assert!(settle(&[("cluster", ":7400"), ("advertise", "node-1:7400")], &[], "").is_ok());
    }

    #[test]
    fn join_takes_a_list_and_refuses_what_is_no_address() {
        let settings = settle(&[("join", "a:1, [2001:db8::1]:7400,")], &[], "").unwrap();
        assert_eq!(settings.join, ["a:1", "[2001:db8::1]:7400"]);
        for bad in ["a", "a:", "a:0", ":7400", "2001:db8::1:7400", "a b:1"] {
            assert!(settle(&[("join", bad)], &[], "").is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn spans_go_where_an_option_says_or_the_variables_that_others_know() {
        let otlp = |flags: &[(&'static str, &str)], variables: &[(&str, &str)]| {
            settle(flags, variables, "").unwrap().otlp
        };
        let at = |flags: &[(&'static str, &str)], variables: &[(&str, &str)]| {
            otlp(flags, variables).map(|otlp| otlp.endpoint.to_string())
        };
        let here = Some("http://127.0.0.1:4317/".to_owned());
        assert_eq!(at(&[], &[]), None);
        assert_eq!(at(&[("otlp", "127.0.0.1:4317")], &[]), here);
        assert_eq!(at(&[("otlp", "http://127.0.0.1/")], &[]), here);
        assert_eq!(at(&[("otlp", "https://[2001:db8::1]")], &[]), Some("https://[2001:db8::1]:4317/".into()));
        let standard = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:2"),
        ];
        assert_eq!(at(&[], &standard), Some("http://traces:2/".into()));
        assert_eq!(at(&[], &standard[..1]), Some("http://all:1/".into()));
        assert_eq!(at(&[("otlp", "http://127.0.0.1")], &standard), here);
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(at(&[], &[standard[0], off]), None);
        }
        assert_eq!(at(&[("otlp", "off")], &standard), None);

        let full = otlp(
            &[("otlp", "a:1")],
            &[
                ("OTEL_SERVICE_NAME", "edge"),
                ("OTEL_RESOURCE_ATTRIBUTES", "env=prod, region=eu%2Cwest"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20c2VjcmV0"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ],
        );
        let full = full.unwrap();
        assert_eq!((full.service.as_str(), full.ratio), ("edge", 0.25));
        assert_eq!(full.resource[1], ("region".to_owned(), "eu,west".to_owned()));
        assert_eq!(
            (full.headers[0].0.as_str(), full.headers[0].1.as_bytes()),
            ("authorization", &b"Basic c2VjcmV0"[..])
        );
        assert!(!format!("{full:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn the_share_of_traces_that_begin_here_is_ours_or_the_samplers() {
        let ratio = |flags: &[(&'static str, &str)], variables: &[(&str, &str)]| {
            let flags: Vec<_> = [("otlp", "a:1")].iter().chain(flags).copied().collect();
            settle(&flags, variables, "").map(|settings| settings.otlp.unwrap().ratio)
        };
        let sampler = |name| ("OTEL_TRACES_SAMPLER", name);
        let arg = ("OTEL_TRACES_SAMPLER_ARG", "0.1");
        assert_eq!(ratio(&[], &[]), Ok(1.0));
        assert_eq!(ratio(&[], &[sampler("parentbased_traceidratio"), arg]), Ok(0.1));
        assert_eq!(ratio(&[], &[sampler("always_off"), arg]), Ok(0.0));
        assert_eq!(ratio(&[("trace-ratio", "0.5")], &[sampler("always_off"), arg]), Ok(0.5));
        assert!(ratio(&[], &[sampler("jaeger_remote")]).unwrap_err().to_string().contains("--trace-ratio"));
    }

    #[test]
    fn what_is_no_endpoint_of_otlp_over_grpc_is_refused() {
        for bad in ["", "http://", "ftp://a:1", "http://a:1/v1/traces", "a:b:c", "http://u:p@a:1"] {
            assert!(settle(&[("otlp", bad)], &[], "").is_err(), "{bad:?} was taken");
        }
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ];
        let error = settle(&[], &variables, "").unwrap_err().to_string();
        assert!(error.starts_with("OTEL_EXPORTER_OTLP_PROTOCOL: ") && error.contains("--otlp"), "{error}");
        assert!(settle(&[("otlp", "a:1")], &variables, "").is_ok(), "ours is gRPC anyway");
    }

    #[test]
    fn a_first_config_needs_bootstrap() {
        assert!(settle(&[("config", "c.yaml")], &[], "").is_err());
        assert!(settle(&[("config", "c.yaml"), ("bootstrap", "true")], &[], "").is_ok());
    }
}
