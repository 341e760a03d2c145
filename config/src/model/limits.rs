//! How many may be open at once, and come in a time.

use std::fmt;
use std::time::Duration;

/// How many may be open at once, over the whole cluster. 0: as many as there are.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// How nodes agree on a count.
    pub mode: LimitMode,
    /// How long what is above waits for room; zero: it is refused at once. Default 0.
    pub wait: Duration,
    /// IPv6 addresses with a common prefix of so many bits are one client. Default 64.
    pub prefix_v6: u8,
    /// On listeners only.
    pub connections_per_client: u32,
    /// On listeners only.
    pub connections: u32,
    /// In flight. Where there are requests.
    pub requests_per_client: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mode: LimitMode::Converging,
            wait: Duration::ZERO,
            prefix_v6: 64,
            connections_per_client: 0,
            connections: 0,
            requests_per_client: 0,
        }
    }
}

impl Limits {
    /// Nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.connections_per_client == 0 && self.connections == 0 && self.requests_per_client == 0
    }
}

/// How nodes agree on a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitMode {
    /// By what they say to each other: quick, and cuts nothing, but a little above the limit at times.
    Converging,
    /// By slots that one node lends: never above the limit; who loses touch with the cluster cuts connections.
    Exact,
}

/// How many may come in a time, over the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub by: LimitBy,
    pub rate: Rate,
    /// After a pause so many may come at once. Default: the rate's number.
    pub burst: u32,
    pub of: RateOf,
    /// Answers tell of it.
    pub headers: bool,
    /// As the `limits` beside it have it. Default 64.
    pub prefix_v6: u8,
}

/// Who or what has a rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitBy {
    Client,
    /// Each of its values; lower case.
    Header(String),
    Route,
    Listener,
}

impl fmt::Display for LimitBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitBy::Client => f.write_str("client"),
            LimitBy::Header(name) => write!(f, "header:{name}"),
            LimitBy::Route => f.write_str("route"),
            LimitBy::Listener => f.write_str("listener"),
        }
    }
}

/// What a rate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RateOf {
    #[default]
    Requests,
    /// And sessions. On listeners only.
    Connections,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    pub per: RateUnit,
}

impl Rate {
    pub fn per_second(self) -> f64 {
        let seconds = match self.per {
            RateUnit::Second => 1.0,
            RateUnit::Minute => 60.0,
            RateUnit::Hour => 3600.0,
        };
        f64::from(self.count) / seconds
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            RateUnit::Second => "s",
            RateUnit::Minute => "m",
            RateUnit::Hour => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateUnit {
    Second,
    Minute,
    Hour,
}

/// How a connection above a limit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnLimit {
    #[default]
    Reset,
    Close,
}
