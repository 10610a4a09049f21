//! Logs to standard error; traces over OTLP when an endpoint is given.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

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
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.with_context(|| format!("--otlp-endpoint {endpoint:?} cannot be used"))?;
    let resource = Resource::builder()
        .with_service_name(service.to_owned())
        .with_attribute(opentelemetry::KeyValue::new("service.instance.id", instance.to_owned()))
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    // Our own spans; a span for each HTTP/2 frame helps nobody.
    let ours = EnvFilter::new("off,kontiki=debug,kontiki_store=debug,kontiki_apiserver=debug,kontiki_agents=debug");
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("kontiki")).with_filter(ours);
    tracing_subscriber::registry().with(logs).with(traces).init();
    Ok(Telemetry(Some(provider)))
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take() {
            let _ = provider.shutdown();
        }
    }
}
