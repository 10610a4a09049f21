//! Clients that watch: from where they were, from now on, from the past or the future; with filters, in fragments, asking for progress, and
//! sometimes too slowly to keep up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kontiki_proto::etcd::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ask::{self, seen};
use super::choice::{END, PREFIX};
use super::load::Client;
use super::trace::Event;
use crate::history::{Frame, Record, SeenEvent, Watch, WatchAsk};

/// A watcher that hears nothing looks around this often.
const GLANCE: Duration = Duration::from_millis(250);

/// How a watcher behaves on one watch.
struct Manner {
    /// It asks for progress about this often, in milliseconds; 0: never.
    asks_every: u64,
    /// It lets a response wait up to so long, in milliseconds.
    dawdles: u64,
    /// When it goes to another member, so that every member is asked to catch somebody up.
    until: Instant,
}

fn event(event: &kontiki_proto::etcd::mvccpb::Event) -> SeenEvent {
    use kontiki_proto::etcd::mvccpb::event::EventType;
    let delete = event.r#type() == EventType::Delete;
    SeenEvent { delete, kv: event.kv.as_ref().map(seen).unwrap_or_default(), prev: event.prev_kv.as_ref().map(seen) }
}

fn create(ask: &WatchAsk) -> pb::WatchRequest {
    use pb::watch_create_request::FilterType;
    let filters = [(ask.no_put, FilterType::Noput), (ask.no_delete, FilterType::Nodelete)];
    let create = pb::WatchCreateRequest {
        key: ask.key.clone().into(),
        range_end: ask.end.clone().into(),
        start_revision: ask.start,
        prev_kv: ask.prev,
        progress_notify: true,
        fragment: ask.fragment,
        filters: filters.iter().filter(|(on, _)| *on).map(|(_, filter)| *filter as i32).collect(),
        ..pb::WatchCreateRequest::default()
    };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

impl Client {
    /// One watch after another, most of them from where the last one was.
    pub(super) async fn watch(mut self) {
        let mut next = 1;
        while !self.load.stop_watching.load(Ordering::Relaxed) {
            let watch = self.load.watches.fetch_add(1, Ordering::Relaxed);
            let ask = self.wish(next);
            let manner = self.manner();
            self.note(watch, Frame::Asked(ask.clone()));
            match self.follow(watch, &ask, &manner, &mut next).await {
                Ok(()) => return,
                Err(compact) => next = next.max(compact),
            }
            self.note(watch, Frame::Closed);
            self.next_member();
            tokio::time::sleep(Duration::from_millis(self.random.between(5, 200))).await;
        }
    }

    fn wish(&mut self, next: i64) -> WatchAsk {
        let (key, end) = match self.random.below(6) {
            0 => (format!("{PREFIX}k0"), String::new()),
            1 => (format!("{PREFIX}k1"), format!("{PREFIX}k3")),
            _ => (PREFIX.to_owned(), END.to_owned()),
        };
        let some = |n: u64| i64::try_from(n).unwrap_or(0);
        let start = match self.random.below(8) {
            0 => 0,
            1 => (next - some(self.random.below(60))).max(1),
            2 => next + some(self.random.below(40)),
            _ => next,
        };
        let mut now_and_then = |per_million| self.random.chance(per_million);
        let (prev, no_put, no_delete) = (now_and_then(300_000), now_and_then(100_000), now_and_then(150_000));
        WatchAsk { key, end, start, prev, no_put, no_delete, fragment: now_and_then(200_000) }
    }

    fn manner(&mut self) -> Manner {
        Manner {
            asks_every: *self.random.pick(&[0, 0, 15, 150, 700]),
            dawdles: *self.random.pick(&[0, 0, 0, 20, 400, 3_000]),
            until: Instant::now() + Duration::from_millis(self.random.between(2_000, 20_000)),
        }
    }

    fn note(&self, watch: u64, frame: Frame) {
        let (at, member) = (self.trace().now(), self.member);
        let record = Watch { watch, client: self.number, member, at, frame };
        self.trace().add(self.process.node(), Event::Answer, watch, 7);
        self.load.recorder.record(Record::Watch(record));
    }

    /// Follows a watch until it breaks, or until there is no more to watch (`Ok`). The error is where history begins, if that was the reason.
    async fn follow(&mut self, watch: u64, ask: &WatchAsk, manner: &Manner, next: &mut i64) -> Result<(), i64> {
        let (requests, outgoing) = mpsc::channel(4);
        // There is room: nothing was sent yet.
        let _ = requests.try_send(create(ask));
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let opened = tokio::time::timeout(ask::LIMIT, WatchClient::new(self.channel()).watch(outgoing)).await;
        let Ok(Ok(stream)) = opened else { return Err(0) };
        let mut stream = stream.into_inner();
        let mut ask_again = Instant::now();
        let pause = if manner.asks_every == 0 { GLANCE } else { Duration::from_millis(manner.asks_every).min(GLANCE) };
        loop {
            if manner.asks_every > 0 && Instant::now() >= ask_again {
                ask_again = Instant::now() + Duration::from_millis(self.random.between(manner.asks_every / 2, manner.asks_every));
                let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                // A request that finds no room is not missed: the next one comes soon.
                let _ = requests.try_send(pb::WatchRequest { request_union: Some(progress) });
            }
            let response = tokio::select! {
                biased;
                response = stream.message() => response,
                () = tokio::time::sleep(pause) => {
                    if self.load.stop_watching.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    if Instant::now() > manner.until && !self.stopped() {
                        return Err(0);
                    }
                    continue;
                }
            };
            let Ok(Some(response)) = response else { return Err(0) };
            self.heard(watch, response, next)?;
            // Whoever is slow hurries at the end, so that it can be said what everybody must have.
            if manner.dawdles > 0 && !self.stopped() {
                tokio::time::sleep(Duration::from_millis(self.random.below(manner.dawdles))).await;
            }
        }
    }

    /// Takes down a response. The error says that the watch is over.
    fn heard(&self, watch: u64, response: pb::WatchResponse, next: &mut i64) -> Result<(), i64> {
        let revision = ask::revision(response.header.as_ref());
        if response.canceled {
            self.note(watch, Frame::Cancelled { compact: response.compact_revision, why: response.cancel_reason });
            return Err(response.compact_revision);
        }
        if response.created {
            self.note(watch, Frame::Created { revision });
        } else if response.events.is_empty() {
            *next = (*next).max(revision + 1);
            self.note(watch, Frame::Progress { revision });
        } else {
            let events: Vec<SeenEvent> = response.events.iter().map(event).collect();
            *next = (*next).max(events.last().map_or(0, |event| event.kv.modified + 1));
            self.note(watch, Frame::Events { revision, events, fragment: response.fragment });
        }
        Ok(())
    }
}
