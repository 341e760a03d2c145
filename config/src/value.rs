//! A document whose every value has the type that the schema asks for, still with its places.
//!
//! [`crate::check`] makes it; [`crate::build`] reads the model from it. Its JSON form is the
//! document's one normal form: keys in schema order, resources by name, units as large as they go,
//! shorthands where they say the same.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Number, Value as Json};

use crate::model::{
    AccessLogFormat, AccessLogTarget, Bind, Content, HashOn, HostPattern, LimitBy, NetworkRef, OriginPattern,
    Ports, Rate, VipAddress,
};
use crate::scalar::{self, MemberAddress};
use crate::schema::{Key, Object};
use crate::text::{Pattern, Template};
use crate::tree::NodeId;

pub(crate) struct Value {
    pub(crate) node: NodeId,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    /// A problem was reported here.
    Bad,
    Off,
    Bool(bool),
    Int(u64),
    Share(f64),
    Duration(Duration),
    DurationRange(Duration, Duration),
    Size(u64),
    Text(String),
    Word(&'static str),
    Bind(WrittenBind),
    VipAddress(VipAddress),
    Host(HostPattern),
    Member(MemberAddress),
    Status(u16, u16),
    Pattern(Pattern),
    Template(Template),
    Network(IpNet),
    NetworkRef(NetworkRef),
    Ports(Ports),
    Origin(OriginPattern),
    HashOn(HashOn),
    Rate(Rate),
    LimitBy(LimitBy),
    Factor(f64),
    Content(Content),
    LogFormat(AccessLogFormat),
    LogTarget(AccessLogTarget),
    List(Vec<Value>),
    /// Prints as its only item if there is just one.
    OneOrList(Vec<Value>),
    /// Sorted by key.
    Map(Vec<(String, Value)>),
    Object(Fields),
    /// Prints as the value of this key if no other is set.
    Short(&'static str, Fields),
}

/// A listener's address as it was written: which addresses a VIP has is known once all is read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WrittenBind {
    At(Bind),
    /// `@VIP:PORT`: this port on all addresses of the VIP, or several in a row.
    Vip {
        vip: String,
        port: u16,
        more: u16,
    },
}

impl WrittenBind {
    /// How many ports follow the first.
    pub(crate) fn more(&self) -> u16 {
        match self {
            WrittenBind::At(bind) => bind.more,
            WrittenBind::Vip { more, .. } => *more,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            WrittenBind::At(bind) => bind.port,
            WrittenBind::Vip { port, .. } => *port,
        }
    }
}

impl From<Bind> for WrittenBind {
    fn from(bind: Bind) -> Self {
        WrittenBind::At(bind)
    }
}

impl fmt::Display for WrittenBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WrittenBind::At(bind) => bind.fmt(f),
            WrittenBind::Vip { vip, port, more: 0 } => write!(f, "@{vip}:{port}"),
            WrittenBind::Vip { vip, port, more } => {
                write!(f, "@{vip}:{port}-{}", port.saturating_add(*more))
            }
        }
    }
}

/// The keys that were set, in schema order.
pub(crate) struct Fields {
    pub(crate) object: &'static Object,
    pub(crate) set: Vec<(&'static Key, Value)>,
    /// Beside them stand keys that nobody knows: problems were reported of these.
    pub(crate) has_unknown: bool,
}

impl Fields {
    /// The value of `key`, if it was set and is no problem already.
    pub(crate) fn at(&self, key: &str) -> Option<&Value> {
        debug_assert!(self.object.key(key).is_some(), "no key {key} in {}", self.object.name);
        let (_, value) = self.set.iter().find(|(k, _)| k.name == key)?;
        (!matches!(value.kind, Kind::Bad)).then_some(value)
    }

    /// Whether the key was written at all, be it well or badly.
    pub(crate) fn has(&self, key: &str) -> bool {
        debug_assert!(self.object.key(key).is_some(), "no key {key} in {}", self.object.name);
        self.set.iter().any(|(k, _)| k.name == key)
    }

    pub(crate) fn bool(&self, key: &str) -> Option<bool> {
        match self.at(key)?.kind {
            Kind::Bool(b) => Some(b),
            _ => None,
        }
    }

    pub(crate) fn int(&self, key: &str) -> Option<u64> {
        match self.at(key)?.kind {
            Kind::Int(n) => Some(n),
            _ => None,
        }
    }

    /// An integer whose bounds in the schema lie within `u32`.
    pub(crate) fn int32(&self, key: &str) -> Option<u32> {
        self.int(key).and_then(|n| u32::try_from(n).ok())
    }

    pub(crate) fn share(&self, key: &str) -> Option<f64> {
        match self.at(key)?.kind {
            Kind::Share(x) => Some(x),
            _ => None,
        }
    }

    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        match self.at(key)?.kind {
            Kind::Duration(d) => Some(d),
            _ => None,
        }
    }

    pub(crate) fn size(&self, key: &str) -> Option<u64> {
        match self.at(key)?.kind {
            Kind::Size(n) => Some(n),
            _ => None,
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.at(key)?.as_text()
    }

    pub(crate) fn word(&self, key: &str) -> Option<&'static str> {
        self.at(key)?.as_word()
    }

    pub(crate) fn pattern(&self, key: &str) -> Option<&Pattern> {
        match &self.at(key)?.kind {
            Kind::Pattern(pattern) => Some(pattern),
            _ => None,
        }
    }

    pub(crate) fn template(&self, key: &str) -> Option<&Template> {
        self.at(key)?.as_template()
    }

    pub(crate) fn content(&self, key: &str) -> Option<&Content> {
        match &self.at(key)?.kind {
            Kind::Content(content) => Some(content),
            _ => None,
        }
    }

    pub(crate) fn ports(&self, key: &str) -> Option<RangeInclusive<u16>> {
        match self.at(key)?.kind {
            Kind::Ports(ports) => Some(ports.first..=ports.last),
            _ => None,
        }
    }

    pub(crate) fn list(&self, key: &str) -> Option<&[Value]> {
        match &self.at(key)?.kind {
            Kind::List(items) | Kind::OneOrList(items) => Some(items),
            _ => None,
        }
    }

    /// Entries of a map; none if it was not set.
    pub(crate) fn map(&self, key: &str) -> &[(String, Value)] {
        match self.at(key).map(|value| &value.kind) {
            Some(Kind::Map(entries)) => entries,
            _ => &[],
        }
    }

    /// The entry of a map that has this name.
    pub(crate) fn entry(&self, map: &str, name: &str) -> Option<&Value> {
        let entries = self.map(map);
        let index = entries.binary_search_by(|(key, _)| key.as_str().cmp(name)).ok()?;
        Some(&entries[index].1)
    }

    pub(crate) fn object(&self, key: &str) -> Option<&Fields> {
        self.at(key)?.as_object()
    }

    pub(crate) fn to_json(&self) -> Json {
        let set: Map<String, Json> =
            self.set.iter().map(|(key, value)| (key.name.to_owned(), value.to_json())).collect();
        Json::Object(set)
    }
}

impl Value {
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn as_template(&self) -> Option<&Template> {
        match &self.kind {
            Kind::Template(template) => Some(template),
            _ => None,
        }
    }

    pub(crate) fn as_word(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }

    pub(crate) fn as_object(&self) -> Option<&Fields> {
        match &self.kind {
            Kind::Object(fields) | Kind::Short(_, fields) => Some(fields),
            _ => None,
        }
    }

    pub(crate) fn to_json(&self) -> Json {
        match &self.kind {
            Kind::Bad => Json::Null,
            Kind::Off => "off".into(),
            Kind::Bool(b) => (*b).into(),
            Kind::Int(n) => (*n).into(),
            Kind::Share(x) if x.fract() == 0.0 => (*x as u64).into(),
            Kind::Share(x) => Number::from_f64(*x).map_or(Json::Null, Json::Number),
            Kind::Duration(d) => scalar::duration_text(*d).into(),
            Kind::DurationRange(low, high) => {
                format!("{}-{}", scalar::duration_text(*low), scalar::duration_text(*high)).into()
            }
            Kind::Size(n) => {
                let text = scalar::size_text(*n);
                if text.bytes().all(|b| b.is_ascii_digit()) { (*n).into() } else { text.into() }
            }
            Kind::Text(text) => text.as_str().into(),
            Kind::Word(word) => (*word).into(),
            Kind::Bind(bind) => bind.to_string().into(),
            Kind::VipAddress(address) => address.to_string().into(),
            Kind::Host(host) => host.to_string().into(),
            Kind::Member(address) => address.to_string().into(),
            Kind::Pattern(pattern) => pattern.as_str().into(),
            Kind::Template(template) => template.to_string().into(),
            Kind::Network(network) => network_text(*network).into(),
            Kind::NetworkRef(NetworkRef::Network(network)) => network_text(*network).into(),
            Kind::NetworkRef(NetworkRef::Set(name)) => format!("@{name}").into(),
            Kind::Ports(ports) if ports.first == ports.last => ports.first.into(),
            Kind::Ports(ports) => ports.to_string().into(),
            Kind::HashOn(on) => on.to_string().into(),
            Kind::Rate(rate) => rate.to_string().into(),
            Kind::LimitBy(by) => by.to_string().into(),
            Kind::Factor(x) if x.fract() == 0.0 => (*x as u64).into(),
            Kind::Factor(x) => Number::from_f64(*x).map_or(Json::Null, Json::Number),
            Kind::Content(content) => content.to_string().into(),
            Kind::LogFormat(format) => format.to_string().into(),
            Kind::LogTarget(target) => target.to_string().into(),
            Kind::Origin(origin) => origin.to_string().into(),
            Kind::Status(low, high) if low == high => (*low).into(),
            Kind::Status(low, high) => scalar::status_text((*low, *high)).into(),
            Kind::OneOrList(items) if items.len() == 1 => items[0].to_json(),
            Kind::List(items) | Kind::OneOrList(items) => items.iter().map(Value::to_json).collect(),
            Kind::Map(entries) => {
                Json::Object(entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect())
            }
            Kind::Object(fields) => fields.to_json(),
            Kind::Short(short, fields) => match fields.set.as_slice() {
                [(key, value)] if key.name == *short => value.to_json(),
                _ => fields.to_json(),
            },
        }
    }
}

/// A single address without its prefix.
fn network_text(network: IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}
