//! Networks, and sets of them that have a name.

use std::fmt;

use ipnet::IpNet;

use super::Content;

/// A set that rules name: what stands in the document, and what stands in a file.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct NetworkSet {
    pub entries: Vec<IpNet>,
    /// One a line: [`crate::networks::read`].
    pub file: Option<Content>,
}

/// Where networks are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkRef {
    Network(IpNet),
    /// All of the set of this name. One without networks holds nobody.
    Set(String),
}

impl fmt::Display for NetworkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkRef::Network(network) => network.fmt(f),
            NetworkRef::Set(name) => write!(f, "@{name}"),
        }
    }
}
