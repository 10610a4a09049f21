//! A collector of traces in this process: the OTLP/gRPC service, and what came in as trees of spans.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A span as it came in.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// `service.instance.id` of who sent it.
    pub instance: String,
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub id: [u8; 8],
    /// Whose child it is; zeros for nobody's.
    pub parent: [u8; 8],
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds since the Unix epoch.
    pub end: u64,
    /// Its fields, as text.
    pub fields: BTreeMap<String, String>,
}

/// A running collector. Ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _runtime: tokio::runtime::Runtime,
}

/// The service. It keeps everything: it lives as long as one test.
struct Inbox(Arc<Mutex<Vec<Span>>>);

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|any| any.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn fields(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    list.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let id = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).unwrap_or_default();
        for resource in request.into_inner().resource_spans {
            let instance = fields(resource.resource.unwrap_or_default().attributes).remove("service.instance.id").unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.lock().expect("no holder of this lock panics").push(Span {
                    name: span.name,
                    instance: instance.clone(),
                    trace: span.trace_id.as_slice().try_into().map_err(|_| Status::invalid_argument("trace id"))?,
                    id: id(&span.span_id),
                    parent: id(&span.parent_span_id),
                    start: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                    fields: fields(span.attributes),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// It cannot listen.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads can be started");
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let service = TraceServiceServer::new(Inbox(spans.clone()));
        let address = runtime.block_on(async {
            let listener = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("there is a free port");
            let address = listener.local_addr().expect("a listener has an address");
            tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener));
            address
        });
        Self { address, spans, _runtime: runtime }
    }

    /// What `--otlp-endpoint` has to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come in of one trace.
    pub fn trace(&self, id: [u8; 16]) -> Trace {
        let spans = self.spans.lock().expect("no holder of this lock panics");
        let mut spans: Vec<Span> = spans.iter().filter(|span| span.trace == id).cloned().collect();
        spans.sort_by_key(|span| span.start);
        Trace { spans }
    }
}

/// The spans of one trace, by start.
#[derive(Clone, Debug)]
pub struct Trace {
    /// All of them.
    pub spans: Vec<Span>,
}

impl Trace {
    /// The spans of this name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Span> {
        self.spans.iter().filter(move |span| span.name == name)
    }

    /// Who sent spans of this name.
    pub fn instances(&self, name: &str) -> BTreeSet<String> {
        self.named(name).map(|span| span.instance.clone()).collect()
    }

    /// Whether `span` is below `ancestor`.
    pub fn is_below(&self, span: &Span, ancestor: &Span) -> bool {
        // No chain is longer than the trace: a circle ends, too.
        let mut at = span;
        for _ in 0..=self.spans.len() {
            if at.parent == ancestor.id {
                return true;
            }
            let Some(parent) = self.spans.iter().find(|other| other.id == at.parent) else { return false };
            at = parent;
        }
        false
    }

    fn write_below(&self, f: &mut fmt::Formatter<'_>, parent: [u8; 8], depth: usize, zero: u64) -> fmt::Result {
        for span in self.spans.iter().filter(|span| span.parent == parent && depth <= self.spans.len()) {
            let micros = |at: u64| at.saturating_sub(zero) / 1_000;
            let (start, end, indent) = (micros(span.start), micros(span.end), 2 * depth);
            writeln!(f, "{:indent$}{} [{}] {start}..{end} us {:?}", "", span.name, span.instance, span.fields)?;
            self.write_below(f, span.id, depth + 1, zero)?;
        }
        Ok(())
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: BTreeSet<[u8; 8]> = self.spans.iter().map(|span| span.id).collect();
        let roots: BTreeSet<[u8; 8]> = self.spans.iter().map(|span| span.parent).filter(|parent| !known.contains(parent)).collect();
        let zero = self.spans.first().map_or(0, |span| span.start);
        writeln!(f, "{} spans", self.spans.len())?;
        roots.into_iter().try_for_each(|root| self.write_below(f, root, 0, zero))
    }
}
