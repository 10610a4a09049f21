//! LIST: one consistent revision, whole or in pages, from the cache when it is new enough and from the store otherwise.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use bytes::Bytes;
use kontiki_base::kv::{Consistency, KvError, RangeReq};
use kontiki_base::{Code, KeyRange, Revision, limits};
use kontiki_registry::row::Row;
use kontiki_registry::select::{FieldSelector, LabelSelector};
use kontiki_registry::status::Status;
use serde_json::{Value, json};

use super::{as_stored, served};
use crate::cache::after;
use crate::cache::change::Cached;
use crate::core::{Core, FRESHNESS_PATIENCE};
use crate::error::Result;

/// Objects per read when a list comes from the store.
const STORE_PAGE: usize = 1_000;
/// What a continue token says of itself.
const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// Which objects of a kind are meant.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// The kind.
    pub(crate) row: Arc<Row>,
    /// Namespace; empty for all.
    pub(crate) namespace: String,
    /// By labels.
    pub(crate) labels: LabelSelector,
    /// By fields.
    pub(crate) fields: FieldSelector,
}

impl Selection {
    /// Everything of a kind in a namespace (or in all of them, if it is empty).
    pub(crate) fn all(row: &Arc<Row>, namespace: &str) -> Self {
        let namespace = if row.namespaced { namespace.to_owned() } else { String::new() };
        Self { row: row.clone(), namespace, labels: LabelSelector::default(), fields: FieldSelector::default() }
    }

    /// Prefix of the keys of all objects that may match.
    pub(crate) fn prefix(&self) -> Bytes {
        self.row.storage_prefix(Some(&self.namespace)).into()
    }

    /// The one key that can match, if the selectors pin it.
    pub(crate) fn pinned(&self) -> Option<Bytes> {
        let name = self.fields.pinned_name()?;
        let known = !self.row.namespaced || !self.namespace.is_empty();
        known.then(|| self.row.storage_key(&self.namespace, name).into())
    }

    /// Whether every object of the prefix matches.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether an object of the kind is meant.
    pub(crate) fn matches(&self, object: &Cached) -> bool {
        if !self.namespace.is_empty() && !self.in_namespace(&object.key) {
            return false;
        }
        if self.is_everything() {
            return true;
        }
        if as_stored(&self.row) {
            return self.labels.matches(&object.facets) && self.fields.matches(&self.row, &object.facets);
        }
        let facets = served(&self.row, object.facets.clone());
        self.labels.matches(&facets) && self.fields.matches(&self.row, &facets)
    }

    fn in_namespace(&self, key: &[u8]) -> bool {
        let rest = key.get(self.row.storage.len() + 1..).unwrap_or_default();
        rest.strip_prefix(self.namespace.as_bytes()).is_some_and(|r| r.first() == Some(&b'/'))
    }
}

/// As Go's `RawURLEncoding`: no padding, and lenient about the bits that the last letter has too many.
const URL_SAFE_NO_PAD: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// How `resourceVersion` of a list is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// At least that new.
    NotOlderThan,
    /// That very state.
    Exact,
}

/// A list request.
#[derive(Clone, Debug)]
pub(crate) struct ListRequest {
    /// Which objects.
    pub(crate) selection: Selection,
    /// `None`: the latest; zero: any.
    pub(crate) revision: Option<Revision>,
    /// How the revision is meant; `None`: not said.
    pub(crate) matching: Option<Match>,
    /// At most so many; 0: all.
    pub(crate) limit: usize,
    /// Where to go on.
    pub(crate) page: Option<Token>,
}

/// A place between two pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The state that is listed; `None`: the latest, inconsistent with the pages before.
    pub(crate) revision: Option<Revision>,
    /// The next key, relative to the prefix of the kind.
    pub(crate) start: String,
}

impl Token {
    /// As clients carry it.
    pub(crate) fn encode(&self) -> String {
        let rv = self.revision.map_or(-1, Revision::get);
        URL_SAFE_NO_PAD.encode(json!({"v": TOKEN_VERSION, "rv": rv, "start": self.start}).to_string())
    }

    /// Reads what a client sent back.
    pub(crate) fn decode(text: &str) -> Result<Self> {
        let bad = |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| bad(&e.to_string()))?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|e| bad(&crate::body::go_json_error(&bytes, &e)))?;
        match token["v"].as_str() {
            Some(TOKEN_VERSION) => {}
            other => return Err(bad(&format!("server does not recognize this encoded version {}", other.unwrap_or_default()))),
        }
        let rv = token["rv"].as_i64().unwrap_or(0);
        if rv == 0 {
            return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        let start = token["start"].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
        if start.is_empty() {
            return Err(bad("encoded start key is empty (version meta.k8s.io/v1)"));
        }
        if start.split('/').any(|s| s == "." || s == "..") {
            return Err(bad("encoded start key contains relative paths"));
        }
        Ok(Self { revision: (rv > 0).then(|| Revision::new(rv)), start })
    }
}

/// A list, or a page of one.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    /// The state that it shows.
    pub(crate) revision: Revision,
    /// The objects, in key order.
    pub(crate) items: Vec<Arc<Cached>>,
    /// Where the next page begins.
    pub(crate) next: Option<Token>,
    /// How many follow; only known when nothing is filtered.
    pub(crate) remaining: Option<usize>,
}

enum Source {
    /// The cache, once it is at least here.
    Cache(Revision),
    /// Whatever is at hand.
    Any,
    /// The store, at this revision (zero: the latest), from this key on.
    Store(Revision, Bytes),
}

impl Core {
    /// LIST.
    pub(crate) async fn list(&self, request: &ListRequest) -> Result<Listed> {
        let selection = &request.selection;
        let limit = if request.limit == 0 { 0 } else { request.limit.min(limits::LIST_PAGE_MAX) };
        match self.source(request).await? {
            Source::Cache(revision) => {
                let cache = self.cache(&selection.row).await;
                if let (Some(cache), true) = (cache, self.hub.reach(revision, FRESHNESS_PATIENCE).await) {
                    let (revision, objects) = self.select(&cache, selection);
                    return Ok(page(revision, objects, limit, selection));
                }
                self.list_store(selection, Revision::ZERO, selection.prefix(), limit).await
            }
            // As kube-apiserver: a list that asks for any state gets all of it, whatever the limit.
            Source::Any => match self.cache(&selection.row).await {
                Some(cache) => {
                    let (revision, objects) = self.select(&cache, selection);
                    Ok(page(revision, objects, 0, selection))
                }
                None => self.list_store(selection, Revision::ZERO, selection.prefix(), limit).await,
            },
            Source::Store(at, start) => self.list_store(selection, at, start, limit).await,
        }
    }

    async fn source(&self, request: &ListRequest) -> Result<Source> {
        let prefix = request.selection.prefix();
        if let Some(token) = &request.page {
            let start = format!("{}{}", request.selection.row.storage_prefix(None), token.start).into();
            return Ok(Source::Store(token.revision.unwrap_or(Revision::ZERO), start));
        }
        match (request.revision, request.matching) {
            (None, _) => Ok(Source::Cache(self.quorum_revision().await?)),
            (Some(Revision::ZERO), _) => Ok(Source::Any),
            (Some(at), Some(Match::Exact)) => Ok(Source::Store(at, prefix)),
            (Some(at), None) if request.limit > 0 => Ok(Source::Store(at, prefix)),
            (Some(at), _) => {
                self.not_older(at).await?;
                Ok(Source::Cache(at))
            }
        }
    }

    fn select(&self, cache: &crate::cache::row::RowCache, selection: &Selection) -> (Revision, Vec<Arc<Cached>>) {
        if let Some(key) = selection.pinned() {
            // The revision is read first: the object may only be newer than it says, and a watch from there shows it again.
            let applied = self.hub.applied();
            let found: Vec<_> = cache.get(&key).into_iter().filter(|o| selection.matches(o)).collect();
            let revision = found.first().map_or(applied, |o| o.revision.max(applied));
            return (revision, found);
        }
        let (revision, mut objects) = cache.snapshot(&selection.prefix(), || self.hub.applied());
        if !selection.is_everything() {
            objects.retain(|o| selection.matches(o));
        }
        (revision, objects)
    }

    /// From the store, page by page at one revision, until `limit` objects match.
    async fn list_store(&self, selection: &Selection, at: Revision, start: Bytes, limit: usize) -> Result<Listed> {
        let whole = KeyRange::prefix(selection.prefix());
        let mut request = RangeReq { at, ..RangeReq::new(KeyRange { start, end: whole.end }) };
        request.consistency = if at == Revision::ZERO { Consistency::Linearizable } else { Consistency::Serializable };
        let unfiltered = selection.is_everything();
        let mut items: Vec<Arc<Cached>> = Vec::new();
        let mut remaining;
        let mut next = None;
        loop {
            request.limit = if limit > 0 && unfiltered { (limit - items.len()).min(STORE_PAGE) } else { STORE_PAGE };
            let answer = self.read_page(selection, &request).await?;
            if request.at == Revision::ZERO {
                request.at = answer.revision;
            }
            let count = usize::try_from(answer.count).unwrap_or(0);
            let seen = answer.kvs.len();
            for kv in answer.kvs {
                if limit > 0 && items.len() == limit {
                    // Full within this page: go on behind the last object that was taken.
                    next = items.last().map(|o| o.key.clone());
                    break;
                }
                request.range.start = after(&kv.key);
                let object = Cached::new(kv.key.clone(), &kv.value, kv.mod_revision).map(Arc::new);
                items.extend(object.filter(|o| selection.matches(o)));
            }
            remaining = count.saturating_sub(seen);
            if next.is_some() || !answer.more {
                break;
            }
            if limit > 0 && items.len() == limit {
                next = items.last().map(|o| o.key.clone());
                break;
            }
        }
        let token = next.map(|last| token_after(selection, &last, Some(request.at)));
        let remaining = (token.is_some() && unfiltered).then_some(remaining);
        Ok(Listed { revision: request.at, items, next: token, remaining })
    }

    async fn read_page(&self, selection: &Selection, request: &RangeReq) -> Result<kontiki_base::kv::RangeRes> {
        match self.kv.range(request.clone()).await {
            Ok(answer) => Ok(answer),
            Err(KvError::Compacted { .. }) => {
                let prefix = selection.row.storage_prefix(None);
                let start = request.range.start.strip_prefix(prefix.as_bytes()).unwrap_or_default();
                if start.is_empty() {
                    let at = request.at;
                    return Err(Status::expired(format!("The resourceVersion for the provided list is too old: {at}")));
                }
                let token = Token { revision: None, start: String::from_utf8_lossy(start).into_owned() };
                Err(Status::continue_expired(token.encode()))
            }
            Err(KvError::FutureRevision) => {
                let current = self.kv.status().revision.get().unsigned_abs();
                let mut status = Status::too_large_resource_version(request.at.get().unsigned_abs(), current);
                if let Some(details) = &mut status.details {
                    details.retry_after_seconds = 0;
                }
                debug_assert_eq!(status.code, Code::FutureRevision);
                Err(status)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn token_after(selection: &Selection, last: &[u8], revision: Option<Revision>) -> Token {
    let prefix = selection.row.storage_prefix(None);
    let next = after(last);
    let start = next.strip_prefix(prefix.as_bytes()).unwrap_or_default();
    Token { revision, start: String::from_utf8_lossy(start).into_owned() }
}

fn page(revision: Revision, mut objects: Vec<Arc<Cached>>, limit: usize, selection: &Selection) -> Listed {
    if limit == 0 || objects.len() <= limit {
        return Listed { revision, items: objects, next: None, remaining: None };
    }
    let rest = objects.len() - limit;
    objects.truncate(limit);
    let next = objects.last().map(|o| token_after(selection, &o.key, Some(revision)));
    Listed { revision, items: objects, next, remaining: selection.is_everything().then_some(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_bad_ones_are_refused() {
        for revision in [None, Some(Revision::new(284))] {
            let token = Token { revision, start: "ns/name\0".into() };
            assert_eq!(Token::decode(&token.encode()), Ok(token));
        }
        let forged = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
        for bad in [
            "zzz".to_owned(),
            "%".to_owned(),
            forged(json!({"v": "meta.k8s.io/v9", "rv": 1, "start": "a"})),
            forged(json!({"v": TOKEN_VERSION, "rv": 0, "start": "a"})),
            forged(json!({"v": TOKEN_VERSION, "rv": 1, "start": "../a"})),
            forged(json!({"v": TOKEN_VERSION, "rv": 1, "start": "/"})),
        ] {
            assert_eq!(Token::decode(&bad).unwrap_err().code, Code::BadRequest, "{bad}");
        }
        let with_slash = forged(json!({"v": TOKEN_VERSION, "rv": 7, "start": "/ns/a\u{0}"}));
        assert_eq!(Token::decode(&with_slash).unwrap().start, "ns/a\0");
    }
}
