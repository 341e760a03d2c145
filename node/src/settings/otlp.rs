//! Where spans go: by our own options, else by the variables that OpenTelemetry's SDKs know.

use std::fmt;
use std::path::PathBuf;

use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::{Reader, path, switch};

/// Port of OTLP over gRPC.
const PORT: u16 = 4317;

/// How spans are exported.
#[derive(Clone, PartialEq)]
pub(crate) struct Otlp {
    /// With scheme, host and port.
    pub(crate) endpoint: Uri,
    pub(crate) service: String,
    /// Further attributes of the resource.
    pub(crate) resource: Vec<(String, String)>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Authorities that are trusted, in PEM; `None`: the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// Of traces that begin here, so many are sampled.
    pub(crate) ratio: f64,
}

impl fmt::Debug for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers hold secrets.
        let Self { endpoint, service, ratio, .. } = self;
        f.debug_struct("Otlp")
            .field("endpoint", endpoint)
            .field("service", service)
            .field("ratio", ratio)
            .finish_non_exhaustive()
    }
}

/// What `--otlp` says.
enum Target {
    Off,
    At(Uri),
}

/// `None`: spans go nowhere.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Option<Otlp> {
    let own_ratio = reader.value("trace-ratio", ratio);
    let endpoint = match reader.value("otlp", target) {
        Some(Target::Off) => return None,
        Some(Target::At(endpoint)) => endpoint,
        None => of_environment(reader)?,
    };
    Some(Otlp {
        endpoint,
        service: reader.variable(&["OTEL_SERVICE_NAME"], any).unwrap_or_else(|| "trestle".to_owned()),
        resource: reader.variable(&["OTEL_RESOURCE_ATTRIBUTES"], pairs).unwrap_or_default(),
        headers: reader
            .variable(&["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"], headers)
            .unwrap_or_default(),
        ca_file: reader
            .variable(&["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"], path),
        ratio: own_ratio.or_else(|| sampler(reader)).unwrap_or(1.0),
    })
}

fn of_environment(reader: &mut Reader<'_>) -> Option<Uri> {
    let is_off = reader.variable(&["OTEL_SDK_DISABLED"], switch).unwrap_or(false)
        || reader.variable(&["OTEL_TRACES_EXPORTER"], any).is_some_and(|exporter| exporter == "none");
    if is_off {
        return None;
    }
    let endpoint =
        reader.variable(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"], endpoint)?;
    reader.variable(&["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"], protocol);
    Some(endpoint)
}

/// The share of traces that begin here and are sampled. (Those that go on are always their client's to decide.)
fn sampler(reader: &mut Reader<'_>) -> Option<f64> {
    let fixed = reader.variable(&["OTEL_TRACES_SAMPLER"], |sampler| match sampler {
        "always_on" | "parentbased_always_on" => Ok(Some(1.0)),
        "always_off" | "parentbased_always_off" => Ok(Some(0.0)),
        "traceidratio" | "parentbased_traceidratio" => Ok(None),
        _ => Err(format!("{sampler:?} is not known here; give --trace-ratio")),
    });
    fixed.flatten().or_else(|| reader.variable(&["OTEL_TRACES_SAMPLER_ARG"], ratio))
}

// === one value each ===

fn target(text: &str) -> Result<Target, String> {
    match text {
        "off" => Ok(Target::Off),
        _ => endpoint(text).map(Target::At),
    }
}

fn endpoint(text: &str) -> Result<Uri, String> {
    let wrong = || {
        format!(
            "{text:?} is no endpoint of OTLP over gRPC, such as http://127.0.0.1:4317, https://otel.example.com or off"
        )
    };
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = full.parse().map_err(|_| wrong())?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_path = uri.path_and_query().is_some_and(|path| !matches!(path.as_str(), "" | "/"));
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
    if !is_http || has_path {
        return Err(wrong());
    }
    let authority = match authority.port() {
        Some(_) => authority.to_string(),
        None => format!("{}:{PORT}", authority.host()),
    };
    let scheme = uri.scheme_str().unwrap_or("http");
    Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build().map_err(|_| wrong())
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| format!("{text:?} is no share of traces, 0 to 1"))
}

fn protocol(text: &str) -> Result<(), String> {
    match text {
        "grpc" => Ok(()),
        _ => Err(format!(
            "{text:?} is not spoken, only grpc: name an endpoint that does with --otlp, or leave it with --otlp off"
        )),
    }
}

fn any(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// `a=1,b=2`, values percent-encoded.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').filter(|(name, _)| !name.trim().is_empty())?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim().to_owned(), value.into_owned()))
    };
    let all = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    all.map(|part| pair(part).ok_or_else(|| "a list such as name=value,other=value is expected".to_owned()))
        .collect()
}

fn headers(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    // The value is secret, and so not shown.
    let header = |(name, value): (String, String)| {
        let wrong = |_| format!("{name:?} is no header of gRPC, or its value none");
        let parsed = HeaderName::try_from(name.to_ascii_lowercase()).map_err(|e| wrong(e.to_string()))?;
        let mut value = HeaderValue::try_from(value).map_err(|e| wrong(e.to_string()))?;
        value.set_sensitive(true);
        Ok((parsed, value))
    };
    pairs(text)?.into_iter().map(header).collect()
}
