//! How requests and connections are recorded, and where.

use std::fmt;
use std::path::PathBuf;

use crate::text::log::LogTemplate;

#[derive(Clone, Debug, PartialEq, Default)]
pub struct AccessLog {
    pub format: AccessLogFormat,
    pub to: AccessLogTarget,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum AccessLogFormat {
    #[default]
    Json,
    /// As Apache and nginx have it.
    Combined,
    Own(LogTemplate),
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum AccessLogTarget {
    #[default]
    Stdout,
    /// An absolute path.
    File(PathBuf),
    Syslog(SyslogAddress),
}

/// Where syslog takes datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAddress {
    /// A name, or an address without brackets.
    Udp { host: String, port: u16 },
    /// An absolute path.
    Unix(PathBuf),
}

impl fmt::Display for AccessLogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccessLogFormat::Json => f.write_str("json"),
            AccessLogFormat::Combined => f.write_str("combined"),
            AccessLogFormat::Own(form) => form.fmt(f),
            AccessLogFormat::Off => f.write_str("off"),
        }
    }
}

impl fmt::Display for AccessLogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccessLogTarget::Stdout => f.write_str("stdout"),
            AccessLogTarget::File(path) => write!(f, "file:{}", path.display()),
            AccessLogTarget::Syslog(address) => write!(f, "syslog:{address}"),
        }
    }
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SyslogAddress::Udp { host, port } if host.contains(':') => write!(f, "udp://[{host}]:{port}"),
            SyslogAddress::Udp { host, port } => write!(f, "udp://{host}:{port}"),
            SyslogAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
