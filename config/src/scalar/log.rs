//! Form and target of the access log.

use std::path::PathBuf;

use super::{Parsed, hostname, ip, port_number, split_port};
use crate::model::{AccessLogFormat, AccessLogTarget, SyslogAddress};
use crate::problem::{Fault, near_miss, shown};
use crate::text::log::LogTemplate;

/// `PATH_MAX` of Linux, without the zero at its end.
const PATH_MAX: usize = 4_095;

/// `sun_path` of a socket's address, without the zero at its end.
const SOCKET_PATH_MAX: usize = 107;

pub(crate) fn log_format(text: &str) -> Parsed<AccessLogFormat> {
    const WORDS: [&str; 3] = ["json", "combined", "off"];
    match text {
        "json" => Ok(AccessLogFormat::Json),
        "combined" => Ok(AccessLogFormat::Combined),
        "off" | "false" => Ok(AccessLogFormat::Off),
        // It is there to say something of each request.
        _ if text.contains("${") => Ok(AccessLogFormat::Own(LogTemplate::parse(text)?)),
        _ => {
            let what = format!("{} is none of `{}` and has no variable", shown(text), WORDS.join("`, `"));
            let fault = Fault::new(what);
            Err(match near_miss(text, WORDS.into_iter()) {
                Some(near) => fault.near(Some(near)),
                None => {
                    fault.help("a form of your own has some, such as `${client.ip} ${request} ${status}`")
                }
            })
        }
    }
}

pub(crate) fn log_target(text: &str) -> Parsed<AccessLogTarget> {
    if text == "stdout" {
        return Ok(AccessLogTarget::Stdout);
    }
    if let Some(file) = text.strip_prefix("file:") {
        return Ok(AccessLogTarget::File(absolute(file, PATH_MAX)?));
    }
    if let Some(address) = text.strip_prefix("syslog:") {
        return syslog(address).map(AccessLogTarget::Syslog);
    }
    let fault = Fault::new(format!("{} is no target of a log", shown(text)));
    Err(if text.starts_with('/') {
        fault.near(Some(&format!("file:{text}")))
    } else {
        fault.help("`stdout`, `file:/PATH`, `syslog:udp://HOST:PORT` and `syslog:unix:/PATH` are")
    })
}

fn syslog(text: &str) -> Parsed<SyslogAddress> {
    if let Some(path) = text.strip_prefix("unix:") {
        return absolute(path, SOCKET_PATH_MAX).map(SyslogAddress::Unix);
    }
    let Some(address) = text.strip_prefix("udp://") else {
        return Err(Fault::new(format!("{} is no address of syslog", shown(text)))
            .help("`udp://HOST:PORT` and `unix:/PATH` are"));
    };
    let (host, port) = split_port(address)?;
    let port = port_number(port)?;
    if port == 0 {
        return Err(Fault::new("nobody listens at port 0").help("syslog's is 514"));
    }
    let host = match ip(host) {
        Some(address) => address.to_string(),
        None => {
            let name = host.to_ascii_lowercase();
            hostname(&name)?;
            name
        }
    };
    Ok(SyslogAddress::Udp { host, port })
}

fn absolute(text: &str, most: usize) -> Parsed<PathBuf> {
    if !text.starts_with('/') || text.ends_with('/') {
        return Err(Fault::new(format!("{} is no absolute path", shown(text)))
            .help("it is the same on every node: write `/PATH/NAME`"));
    }
    if text.len() > most || text.contains(char::is_control) {
        return Err(Fault::new(format!("{} is no path", shown(text)))
            .help(format!("at most {most} bytes, without control characters")));
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::super::tests::fault;
    use super::*;

    #[test]
    fn targets_print_as_they_are_read() {
        for text in [
            "stdout",
            "file:/var/log/a b.log",
            "syslog:unix:/dev/log",
            "syslog:udp://192.0.2.1:514",
            "syslog:udp://[2001:db8::1]:514",
            "syslog:udp://logs.example.com:514",
        ] {
            assert_eq!(log_target(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bad_target_is_told_what_would_do() {
        for (text, why) in [
            ("/var/log/a", "file:/var/log/a"),
            ("stderr", "syslog:udp://"),
            ("file:a.log", "absolute"),
            ("file:/a/", "absolute"),
            ("syslog:localhost:514", "udp://HOST:PORT"),
            ("syslog:udp://localhost", "port"),
            ("syslog:udp://:514", ""),
            ("syslog:udp://a:0", "514"),
            ("syslog:unix:dev/log", "absolute"),
        ] {
            let message = fault(log_target(text));
            assert!(message.contains(why), "{text}: {message}");
        }
        assert!(fault(log_target(&format!("syslog:unix:/{}", "a".repeat(200)))).contains("107"));
    }

    #[test]
    fn forms_are_words_or_have_variables() {
        assert_eq!(log_format("combined").unwrap(), AccessLogFormat::Combined);
        assert_eq!(log_format("false").unwrap(), AccessLogFormat::Off);
        assert!(matches!(log_format("a ${status}").unwrap(), AccessLogFormat::Own(_)));
        assert!(fault(log_format("combine")).contains("combined"));
        assert!(fault(log_format("plain words")).contains("${client.ip}"));
    }
}
