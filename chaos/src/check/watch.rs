//! The promises of a watch, each against the list of all changes.
//!
//! Let E be the changes that match the watch's range and filters, from its start on (or from one more than the revision at which it was
//! created, if it asked for "from now on"). Then, for the events that it delivered:
//! *filter*: each lies in the range and passes the filters; *ordered*: revisions never decrease; *unique*: no (revision, key) twice;
//! *atomic*: all events of a revision come in one response (its fragments count as one); *reliable*: they are a prefix of E, value, versions
//! and lease included, that ends with a whole revision; *resumable*: the first one is the first of E; *bookmarkable*: a progress notification
//! at r means that all of E up to r was delivered, nothing of it comes later, these revisions do not decrease, and r existed by then;
//! *prev*: what was before an event is the state at its revision minus one, and is left out only if that was compacted; *compacted*: a watch
//! is refused as compacted only if what it needs next is; *delivered*: in the end an open watch has all of E that is 5 s old.

use std::collections::{BTreeMap, BTreeSet};

use super::log::{Log, in_range};
use super::times::Times;
use super::{Outcome, Tally, Violation, clock};
use crate::history::{Answer, Ask, At, Change, Frame, History, SeenEvent, Watch, WatchAsk};

/// An open watch has every change that is this old when the run ends, counted from the end of the last fault.
const DELIVERY: At = 5_000_000_000;

/// The check `watch`.
pub fn judge(history: &History) -> Outcome {
    let mut tally = Tally::default();
    let log = Log::new(&history.changes);
    let times = Times::new(history);
    let compactions: Vec<(At, i64)> =
        history.ops.iter().filter_map(|op| if let Ask::Compact { revision } = op.ask { Some((op.call, revision)) } else { None }).collect();
    let mut watches: BTreeMap<u64, Vec<&Watch>> = BTreeMap::new();
    history.watches.iter().for_each(|frame| watches.entry(frame.watch).or_default().push(frame));
    for (id, frames) in watches {
        let Some(Frame::Asked(ask)) = frames.first().map(|f| &f.frame) else { continue };
        let mut one = One {
            id,
            ask,
            log: &log,
            times: &times,
            compactions: &compactions,
            next: (ask.start > 0).then_some(ask.start),
            last: None,
            last_response: None,
            progress: 0,
            seen: BTreeSet::new(),
            delivered: 0,
            tally: &mut tally,
        };
        let mut open = true;
        for frame in &frames[1..] {
            open &= one.frame(frame);
        }
        if open && let Some(end) = history.ended {
            one.end(end, history.calm_from());
        }
    }
    answered_compactions(history, &mut tally);
    tally.finish("watch", &["events", "watches"])
}

/// Compactions that were acknowledged say how often a start can have been refused.
fn answered_compactions(history: &History, tally: &mut Tally) {
    let done = history.ops.iter().filter(|op| matches!(op.answer, Answer::Compacted { .. })).count();
    tally.add("compactions", done);
}

struct One<'a, 'l> {
    id: u64,
    ask: &'a WatchAsk,
    log: &'l Log<'a>,
    times: &'l Times,
    compactions: &'l [(At, i64)],
    /// Everything before this revision was delivered, or is not wanted. `None` until the start is known.
    next: Option<i64>,
    /// The last event.
    last: Option<i64>,
    /// The last revision of the response before, unless more fragments of it follow.
    last_response: Option<i64>,
    progress: i64,
    seen: BTreeSet<(i64, &'a str)>,
    delivered: usize,
    tally: &'l mut Tally,
}

impl<'a> One<'a, '_> {
    /// Takes a frame; `false`: it was the last one.
    fn frame(&mut self, watch: &'a Watch) -> bool {
        match &watch.frame {
            Frame::Asked(_) => {}
            Frame::Created { revision } => {
                self.tally.saw("watches");
                self.next.get_or_insert(revision + 1);
            }
            Frame::Events { revision, events, fragment } => {
                for event in events {
                    self.event(event, watch);
                }
                if let Some(last) = events.last() {
                    if last.kv.modified > *revision {
                        let detail = format!("the header says {revision}, an event {}", last.kv.modified);
                        self.fail("bookmarkable", detail, watch, last.kv.modified);
                    }
                    self.last_response = (!fragment).then_some(last.kv.modified);
                }
            }
            Frame::Progress { revision } => self.progress(*revision, watch),
            Frame::Cancelled { compact, .. } => {
                let needs = self.position();
                if *compact != 0 {
                    self.tally.saw("watches refused as compacted");
                    let asked = self.compactions.iter().any(|(call, revision)| *call < watch.at && revision >= compact);
                    if needs >= *compact || !asked {
                        let detail = format!("refused as compacted at {compact}, needs {needs}; somebody asked for that: {asked}");
                        self.fail("compacted", detail, watch, *compact);
                    }
                }
                return false;
            }
            Frame::Closed => return false,
        }
        true
    }

    fn fail(&mut self, rule: &'static str, detail: String, watch: &Watch, revision: i64) {
        let place = format!("watch {} of client {} at member {}, {}", self.id, watch.client, watch.member, clock(watch.at));
        let asked = format!("asked for {:?}", self.ask);
        self.tally.fail(Violation::new(rule, format!("{place}: {detail}")).revision(revision).at(watch.at).state(asked));
    }

    /// The revision that the watch needs next.
    fn position(&self) -> i64 {
        self.next.unwrap_or(0).max(self.last.map_or(0, |last| last + 1))
    }

    fn wants(&self, change: &Change) -> bool {
        let filtered = if change.value.is_some() { self.ask.no_put } else { self.ask.no_delete };
        !filtered && in_range(&change.key, &self.ask.key, &self.ask.end)
    }

    /// The first change in `from..=to` that is wanted and was not delivered.
    fn missing(&self, from: i64, to: i64) -> Option<(i64, &'a str)> {
        let revisions = self.log.from(from).take_while(|(revision, _)| *revision <= to);
        let changes = revisions.flat_map(|(revision, changes)| changes.iter().map(move |c| (revision, *c)));
        let mut wanted = changes.filter(|(_, c)| self.wants(c)).map(|(revision, c)| (revision, c.key.as_str()));
        wanted.find(|(revision, key)| !self.seen.contains(&(*revision, *key)))
    }

    fn event(&mut self, event: &'a SeenEvent, watch: &'a Watch) {
        self.tally.saw("events");
        let (revision, key) = (event.kv.modified, event.kv.key.as_str());
        let filtered = if event.delete { self.ask.no_delete } else { self.ask.no_put };
        if filtered || !in_range(key, &self.ask.key, &self.ask.end) {
            self.fail("filter", format!("it did not ask for {event:?}"), watch, revision);
        }
        let start = self.next.unwrap_or(0);
        if revision < start {
            self.fail("resumable", format!("starts at {start} and shows {key:?} at {revision}"), watch, revision);
        }
        if self.last.is_some_and(|last| revision < last) {
            self.fail("ordered", format!("{revision} follows {:?}", self.last), watch, revision);
        }
        if !self.seen.insert((revision, key)) {
            self.fail("unique", format!("{key:?} at {revision} comes again"), watch, revision);
        }
        if self.last_response == Some(revision) {
            self.fail("atomic", format!("{revision} is split over two responses"), watch, revision);
        }
        if self.progress >= revision {
            self.fail("bookmarkable", format!("{key:?} at {revision} comes after progress at {}", self.progress), watch, revision);
        }
        self.content(event, watch);
        // Everything before this revision must have come: what comes later cannot be in order.
        if self.last.is_none_or(|last| revision > last) {
            let from = self.last.map_or(start, |last| last.max(start));
            if let Some((at, missed)) = self.missing(from, revision - 1) {
                let rule = if self.delivered == 0 { "resumable" } else { "reliable" };
                self.fail(rule, format!("{missed:?} at {at} is missing before {key:?} at {revision}"), watch, at);
                // Once is enough.
                self.next = Some(revision);
            }
            self.last = Some(revision);
        }
        self.delivered += 1;
    }

    /// The event is a change of the log, and what was before it is right.
    fn content(&mut self, event: &'a SeenEvent, watch: &'a Watch) {
        let (revision, key) = (event.kv.modified, event.kv.key.as_str());
        let change = self.log.at(revision).iter().find(|c| c.key == key).copied();
        let same = match change {
            Some(change) if event.delete => change.value.is_none(),
            Some(_) => self.log.get(key, revision).and_then(|v| v.seen(key)).as_ref() == Some(&event.kv),
            None => false,
        };
        if !same {
            self.fail("reliable", format!("{event:?} never happened; the store has {change:?}"), watch, revision);
        }
        let before = self.log.get(key, revision - 1).and_then(|v| v.seen(key));
        match &event.prev {
            Some(prev) => {
                self.tally.saw("events with what was before");
                if before.as_ref() != Some(prev) {
                    self.fail("prev", format!("{key:?} at {revision}: says {prev:?} was before, it was {before:?}"), watch, revision);
                }
            }
            None if self.ask.prev && before.is_some() => {
                let compacted = self.compactions.iter().any(|(call, at)| *call < watch.at && *at >= revision);
                if !compacted {
                    self.fail("prev", format!("{key:?} at {revision}: leaves out that {before:?} was before"), watch, revision);
                }
            }
            None => {}
        }
    }

    fn progress(&mut self, revision: i64, watch: &'a Watch) {
        self.tally.saw("progress notifications");
        if revision < self.progress || self.last.is_some_and(|last| revision < last) {
            let detail = format!("progress at {revision} after progress at {} and an event at {:?}", self.progress, self.last);
            self.fail("bookmarkable", detail, watch, revision);
        }
        if let Some((at, key)) = self.missing(self.next.unwrap_or(0), revision) {
            self.fail("bookmarkable", format!("progress at {revision} before {key:?} at {at}"), watch, at);
        }
        if let Some(asked) = self.times.not_yet(revision, watch.at) {
            self.fail("bookmarkable", format!("progress at {revision}, which was asked for only at {}", clock(asked)), watch, revision);
        }
        self.progress = self.progress.max(revision);
        // What was promised is not looked for again.
        self.next = self.next.map(|next| next.max(revision + 1)).or(Some(revision + 1));
    }

    fn end(&mut self, end: At, calm: At) {
        let until = self.times.at_least(end.saturating_sub(DELIVERY));
        if end < calm.saturating_add(DELIVERY) || until == 0 {
            return;
        }
        let Some(next) = self.next else { return };
        self.tally.saw("watches open at the end");
        if let Some((at, key)) = self.missing(next, until) {
            let detail = format!("watch {} never got {key:?} at {at}, though the run went on for 5 s after it", self.id);
            self.tally.fail(Violation::new("delivered", detail).revision(at).state(format!("asked for {:?}", self.ask)));
        }
    }
}

#[cfg(test)]
mod tests;
