//! Log lines: on stderr, as text or JSON, by a filter that can be changed while the node runs.

mod pace;

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use self::pace::Pace;
use crate::settings::LogFormat;

/// Libraries speak up only when something is wrong: what they do in between is told by ours. (openraft
/// warns of every heartbeat that a dead peer misses; ours says once that the peer is gone.)
const FILTER_DEFAULT: &str = "info,openraft=error,chitchat=error,hyper=warn,tonic=warn,h2=warn,rustls=warn";

/// The log of this process.
pub(crate) struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Telemetry {
    /// Installs the process-wide subscriber; a second call in one process keeps the first.
    pub(crate) fn start(format: LogFormat, filter: Option<&str>) -> Telemetry {
        let (layer, handle) = reload::Layer::new(parse(filter));
        let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
        let lines = match format {
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
            LogFormat::Text => {
                let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                lines.with_ansi(colour).boxed()
            }
        };
        let lines = lines.with_filter(Pace::default());
        let _ = tracing_subscriber::registry().with(layer).with(lines).try_init();
        Telemetry { filter: handle }
    }

    pub(crate) fn set_filter(&self, filter: Option<&str>) {
        if let Err(e) = self.filter.reload(parse(filter)) {
            tracing::warn!(error = %e, "log filter not changed");
        }
    }
}

/// Filters were checked when the settings were read; a bad one falls back to the default.
fn parse(filter: Option<&str>) -> EnvFilter {
    filter.and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new(FILTER_DEFAULT))
}
