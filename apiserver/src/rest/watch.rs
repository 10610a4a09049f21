//! A watch as a stream of lines.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::Response;
use kontiki_base::{Code, Revision};
use kontiki_registry::row::Row;
use kontiki_registry::status::Status;
use serde_json::{Value, json};

use super::respond::{Show, partial, respond, table};
use crate::cache::change::{EventType, frame};
use crate::error::Result;
use crate::negotiate::{Form, MEDIA_TYPES, Media, View};
use crate::verbs::watch::{Item, Watch};
use crate::verbs::{as_stored, bytes_of, served};

/// How one watch writes its events.
struct Encoder {
    form: Form,
    show: Show,
    /// A table says its columns once.
    columns_sent: bool,
}

impl Encoder {
    fn lines(&mut self, row: &Row, items: Vec<Item>) -> Bytes {
        if let [only] = items.as_slice() {
            return self.line(row, only);
        }
        let mut out = BytesMut::new();
        for item in &items {
            out.extend_from_slice(&self.line(row, item));
        }
        out.freeze()
    }

    fn line(&mut self, row: &Row, item: &Item) -> Bytes {
        match item {
            Item::Present(object) if self.plain(row) => frame("ADDED", &object.bytes),
            Item::Present(object) => self.shown(row, "ADDED", &bytes_of(row, object)),
            Item::Change(kind, change) if self.plain(row) => change.frame(*kind),
            Item::Change(kind, change) => self.converted(row, *kind, &change.object(*kind)),
            Item::Bookmark(revision, initial_end) => {
                let object = self.bookmark(row, *revision, *initial_end);
                frame("BOOKMARK", object.to_string().as_bytes())
            }
        }
    }

    fn plain(&self, row: &Row) -> bool {
        self.form.view == View::Whole && as_stored(row)
    }

    fn converted(&mut self, row: &Row, kind: EventType, stored: &[u8]) -> Bytes {
        let value = served(row, serde_json::from_slice(stored).unwrap_or_default());
        self.shown(row, kind.as_str(), value.to_string().as_bytes())
    }

    /// An object that is not sent as it is.
    fn shown(&mut self, row: &Row, kind: &str, object: &[u8]) -> Bytes {
        if self.form.view == View::Whole {
            return frame(kind, object);
        }
        let value: Value = serde_json::from_slice(object).unwrap_or_default();
        frame(kind, self.view(row, &value).to_string().as_bytes())
    }

    fn view(&mut self, row: &Row, value: &Value) -> Value {
        match self.form.view {
            View::Whole => value.clone(),
            View::Partial(version) | View::PartialList(version) => partial(value, version),
            View::Table(version) => {
                let meta = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let mut shown = table(row, &[value], meta, &self.show, version);
                if std::mem::replace(&mut self.columns_sent, true) {
                    shown["columnDefinitions"] = Value::Null;
                }
                shown
            }
        }
    }

    fn bookmark(&mut self, row: &Row, revision: Revision, initial_end: bool) -> Value {
        let mut meta = json!({"resourceVersion": revision.to_resource_version()});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": row.kind, "apiVersion": row.api_version(), "metadata": meta});
        self.view(row, &object)
    }
}

/// The answer to a watch request.
pub(crate) fn answer(row: std::sync::Arc<Row>, form: Form, show: Show, watch: Result<Watch>) -> Result<Response<Body>> {
    if form.media != Media::Json {
        return Err(Status::not_acceptable(MEDIA_TYPES));
    }
    let form = Form { pretty: false, ..form };
    let encoder = Encoder { form, show, columns_sent: false };
    let watch = match watch {
        Ok(watch) => watch,
        // The connection is a watch already: the client is told within it, and lists again.
        Err(status) if status.code == Code::Compacted => {
            let error = frame("ERROR", status.to_json().to_string().as_bytes());
            return Ok(respond(200, Media::Json.content_type(), error));
        }
        Err(status) => return Err(status),
    };
    let lines = stream::unfold((watch, encoder, row), |(mut watch, mut encoder, row)| async move {
        let items = watch.next().await?;
        let line = encoder.lines(&row, items);
        Some((Ok::<_, std::convert::Infallible>(line), (watch, encoder, row)))
    });
    Ok(respond(200, Media::Json.content_type(), Body::from_stream(lines)))
}
