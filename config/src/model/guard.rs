//! Who is let in, and who is shut out for a time.

use std::fmt;
use std::time::Duration;

use super::NetworkRef;

/// The longest that a ban lasts: 30 days.
pub const BAN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Rules about clients, in their order, at a listener, a route or a rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Firewall {
    /// The first that fits decides; at most [`Firewall::RULES_MAX`].
    pub rules: Vec<FirewallRule>,
    /// Where none fits.
    pub default: Action,
}

impl Firewall {
    pub const RULES_MAX: usize = 1_000;

    /// Everybody is let in, and nothing is told apart.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.default == Action::Allow
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallRule {
    /// Empty: everybody.
    pub from: Vec<NetworkRef>,
    /// Of ours, that the client came to. Empty: any.
    pub ports: Vec<Ports>,
    pub action: Action,
}

impl fmt::Display for FirewallRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| items.join(",");
        write!(f, "{}", self.action.text())?;
        match self.from.is_empty() {
            true => f.write_str(" from everybody")?,
            false => write!(f, " from {}", list(self.from.iter().map(ToString::to_string).collect()))?,
        }
        match self.ports.is_empty() {
            true => Ok(()),
            false => write!(f, " to ports {}", list(self.ports.iter().map(ToString::to_string).collect())),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Action {
    #[default]
    Allow,
    /// Closes a connection.
    Deny,
    /// Resets it.
    Reject,
}

impl Action {
    /// As the document has it.
    pub fn text(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Reject => "reject",
        }
    }
}

/// Ports in a row, of which there is at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub fn has(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// When a client is banned by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanPolicy {
    /// Offences on one node. Default 20.
    pub after: u32,
    /// Refusals by limits count. Default: yes.
    pub of_limits: bool,
    /// Answers with a status of 400 to 499 count. Default: yes.
    pub of_4xx: bool,
    /// Requests that the web application firewall refused count. Default: no.
    pub of_waf: bool,
    /// Default 1 min.
    pub within: Duration,
    /// Length of the ban. Default 10 min.
    pub length: Duration,
    /// IPv6 addresses with a common prefix of so many bits are one client: that of `limits` beside it. Default 64.
    pub prefix_v6: u8,
}

impl Default for BanPolicy {
    fn default() -> Self {
        Self {
            after: 20,
            of_limits: true,
            of_4xx: true,
            of_waf: false,
            within: Duration::from_secs(60),
            length: Duration::from_secs(600),
            prefix_v6: 64,
        }
    }
}
