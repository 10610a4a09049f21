//! Between spans of `tracing` and [`TraceContext`]s: what a span is called in others' words, and whose child it is.
//!
//! Where a span comes from another task, process or member there is no current span to be a child of: the context has travelled as data,
//! and [`adopt`] makes the new span its child. The names of spans are in [`kontiki_base::trace::names`].
//!
//! Without an exporter (no OpenTelemetry layer, and spans at level `debug` not logged) there are no spans: everything here then looks at
//! one thread-local value, answers `None` or does nothing, and allocates nothing. A test counts.

pub use kontiki_base::trace::{TRACEPARENT, TraceContext, names};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The context of the current span; `None` if nothing exports it.
pub fn current() -> Option<TraceContext> {
    of(&Span::current())
}

/// The context of a span; `None` if nothing exports it. It may be one that is not sampled: then its children must not be, either.
///
/// Starts the span, as far as OpenTelemetry is concerned: [`adopt`] comes before.
pub fn of(span: &Span) -> Option<TraceContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    TraceContext::new(span.trace_id().to_bytes(), span.span_id().to_bytes(), span.trace_flags().to_u8())
}

/// Makes a new span the child of a span elsewhere.
pub fn adopt(span: &Span, parent: TraceContext) {
    if !span.is_disabled() {
        // Refused if the span is only logged, which is none of our business, or if it has started, which is too late to matter.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote(parent)));
    }
}

/// Notes that a span works for another one, too, which is not its parent.
pub fn link(span: &Span, other: TraceContext) {
    if !span.is_disabled() {
        span.add_link(remote(other));
    }
}

fn remote(context: TraceContext) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(context.trace_id()), SpanId::from_bytes(context.span_id()));
    SpanContext::new(trace, span, TraceFlags::new(context.flags()), true, TraceState::NONE)
}

/// Makes a new span the child of what a request's headers name, if they do.
pub fn adopt_headers(span: &Span, headers: &http::HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let given = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok());
    if let Some(parent) = given.and_then(TraceContext::parse) {
        adopt(span, parent);
    }
}

/// An interceptor for clients: the request says whose child its work is.
///
/// # Errors
/// None: interceptors may refuse, this one does not.
#[allow(clippy::result_large_err, reason = "the type is tonic's")]
pub fn inject(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    if let Some(context) = current()
        && let Ok(value) = tonic::metadata::MetadataValue::try_from(&context.to_text()[..])
    {
        request.metadata_mut().insert(TRACEPARENT, value);
    }
    Ok(request)
}

/// The type of [`inject`].
pub type Inject = fn(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status>;

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt as _;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// The spans that `work` makes, by name, under an OpenTelemetry layer.
    fn exported(work: impl FnOnce()) -> impl Fn(&str) -> Option<SpanData> {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(LevelFilter::DEBUG).with(layer), work);
        let spans = exporter.get_finished_spans().unwrap();
        move |name| spans.iter().find(|span| span.name == name).cloned()
    }

    fn headers(traceparent: &str) -> http::HeaderMap {
        http::HeaderMap::from_iter([(http::HeaderName::from_static(TRACEPARENT), traceparent.parse().unwrap())])
    }

    #[test]
    fn a_span_becomes_the_child_of_what_the_headers_name() {
        let given = TraceContext::parse(GIVEN).unwrap();
        let span = exported(|| {
            let door = tracing::debug_span!(parent: None, "door");
            adopt_headers(&door, &headers(GIVEN));
            let context = door.in_scope(current).unwrap();
            assert_eq!(context.trace_id(), given.trace_id());
            assert!(context.sampled() && context != given);
            let sent = door.in_scope(|| inject(tonic::Request::new(()))).unwrap();
            assert_eq!(sent.metadata().get(TRACEPARENT).unwrap().to_str().unwrap(), context.to_string());
            // Elsewhere: the context has travelled as bytes.
            let elsewhere = tracing::debug_span!(parent: None, "elsewhere");
            adopt(&elsewhere, TraceContext::decode(&context.encode()).unwrap());
            link(&elsewhere, given);
        });
        let (door, elsewhere) = (span("door").unwrap(), span("elsewhere").unwrap());
        assert_eq!(door.parent_span_id.to_bytes(), given.span_id());
        assert_eq!(elsewhere.parent_span_id, door.span_context.span_id());
        assert_eq!(elsewhere.span_context.trace_id().to_bytes(), given.trace_id());
        assert_eq!(elsewhere.links.iter().map(|link| link.span_context.span_id().to_bytes()).collect::<Vec<_>>(), [given.span_id()]);
    }

    #[test]
    fn whoever_does_not_want_to_be_recorded_is_not() {
        let span = exported(|| {
            let door = tracing::debug_span!(parent: None, "door");
            adopt_headers(&door, &headers(&GIVEN.replace("-01", "-00")));
            let context = of(&door).unwrap();
            assert!(!context.sampled());
            let elsewhere = tracing::debug_span!(parent: None, "elsewhere");
            adopt(&elsewhere, context);
        });
        assert!(span("door").is_none() && span("elsewhere").is_none());
    }

    #[test]
    fn a_span_that_is_only_logged_has_no_context() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(LevelFilter::DEBUG), || {
            let span = tracing::debug_span!("logged");
            adopt_headers(&span, &headers(GIVEN));
            assert!(!span.is_disabled());
            assert_eq!(span.in_scope(current), None);
        });
    }

    #[test]
    fn without_an_exporter_nothing_is_allocated() {
        let given = headers(GIVEN);
        let parent = TraceContext::parse(GIVEN).unwrap();
        let once = || {
            let span = tracing::debug_span!(parent: None, names::REQUEST, verb = "create", code = tracing::field::Empty);
            adopt_headers(&span, &given);
            adopt(&span, parent);
            let _entered = span.enter();
            assert_eq!(current(), None);
            let sent = inject(tonic::Request::new(())).unwrap();
            assert!(sent.metadata().is_empty());
            span.record("code", 201);
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(LevelFilter::INFO), || {
            // The first pass registers call sites and makes thread-local values.
            once();
            let counted = allocation_counter::measure(|| (0..100).for_each(|_| once()));
            assert_eq!(counted.count_total, 0, "{counted:?}");
        });
    }
}
