//! Logs to standard error; traces over OTLP when an endpoint is given.
//!
//! Spans are of level `debug`: without an endpoint they do not exist, and cost nothing. Their names are in `kontiki_base::trace::names`.
//! Which traces are recorded is told by OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`): by default all, and none of those whose
//! caller says that it is not recorded.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_base::limits;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Spans go out at least this often.
const EXPORT_EVERY: Duration = Duration::from_secs(1);

/// How long the end of the process waits for the last spans to go out.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// Ends the export of traces when dropped: sends what is still buffered.
pub(crate) struct Telemetry(Option<SdkTracerProvider>);

/// Starts logging, and tracing to `otlp_endpoint`. Must be called within a tokio runtime when there is an endpoint.
pub(crate) fn init(filter: &str, otlp_endpoint: Option<&str>, service: &str, instance: &str) -> Result<Telemetry> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?}: not a log filter; try `info` or `kontiki_store=debug`"))?;
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_filter(filter);
    let Some(endpoint) = otlp_endpoint else {
        tracing_subscriber::registry().with(logs).init();
        return Ok(Telemetry(None));
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.with_context(|| format!("--otlp-endpoint {endpoint:?} cannot be used"))?;
    let batches = BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).with_max_queue_size(limits::SPANS_QUEUED).build();
    let resource = Resource::builder().with_service_name(service.to_owned()).with_attributes([
        KeyValue::new("service.instance.id", instance.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ]);
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let provider = SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource.build()).build();
    let traces = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("kontiki"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(exported).with_max_level_hint(LevelFilter::DEBUG));
    tracing_subscriber::registry().with(logs).with(traces).init();
    Ok(Telemetry(Some(provider)))
}

/// Our own spans, and what they have to say: a span for each HTTP/2 frame helps nobody.
fn exported(what: &Metadata<'_>) -> bool {
    let ours = what.target().split("::").next().is_some_and(|root| root == "kontiki" || root.starts_with("kontiki_"));
    ours && *what.level() <= if what.is_span() { Level::DEBUG } else { Level::INFO }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take() {
            let _ = provider.shutdown_with_timeout(LAST_EXPORT);
        }
    }
}
