//! The query of a request: options of reads and of writes.

use std::time::Duration;

use kontiki_base::Revision;
use kontiki_registry::field::{Errors, Path, Reason};
use kontiki_registry::row::Row;
use kontiki_registry::schema::decode::FieldValidation;
use kontiki_registry::select::{FieldSelector, LabelSelector};
use kontiki_registry::status::Status;

use crate::error::Result;
use crate::path::percent;
use crate::verbs::WriteOptions;
use crate::verbs::list::{ListRequest, Match, Selection, Token};
use crate::verbs::watch::{Begin, WatchRequest};

/// The pairs of a query string, decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string. What cannot be decoded is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let decode = |part: &str| percent(part.replace('+', " ").as_bytes()).and_then(|b| String::from_utf8(b).ok());
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        };
        Self(text.split('&').filter(|p| !p.is_empty()).filter_map(pair).collect())
    }

    /// The first value of a key; empty if there is none.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    /// Whether a key is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// Every value of a key.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All pairs.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// A switch: given, and neither `false` nor `0`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.has(key) && !matches!(self.get(key).to_ascii_lowercase().as_str(), "false" | "0")
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>> {
        let text = self.get(key);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    }

    /// `resourceVersion` of a GET or a LIST.
    pub(crate) fn revision(&self) -> Result<Option<Revision>> {
        let text = self.get("resourceVersion");
        Revision::parse_resource_version(text).map_err(|_| {
            let parse = format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
            Status::bad_request(format!("invalid resource version: {parse}"))
        })
    }

    fn selection(&self, row: &std::sync::Arc<Row>, namespace: &str) -> Result<Selection> {
        Ok(Selection {
            labels: LabelSelector::parse(self.get("labelSelector"))?,
            fields: FieldSelector::parse(row, self.get("fieldSelector"))?,
            ..Selection::all(row, namespace)
        })
    }

    /// Options of LIST and DELETECOLLECTION.
    pub(crate) fn list(&self, row: &std::sync::Arc<Row>, namespace: &str) -> Result<ListRequest> {
        let limit = self.number("limit")?.unwrap_or(0).max(0);
        let matching = match self.get("resourceVersionMatch") {
            "" => None,
            "NotOlderThan" => Some(Match::NotOlderThan),
            "Exact" => Some(Match::Exact),
            other => return Err(invalid_match(|e, p| e.unsupported(p, other, &["Exact", "NotOlderThan", ""]))),
        };
        if self.has("sendInitialEvents") {
            return Err(list_options("sendInitialEvents", |e, p| e.forbidden(p, "sendInitialEvents is forbidden for list")));
        }
        let (rv, cont) = (self.get("resourceVersion"), self.get("continue"));
        if matching.is_some() && !cont.is_empty() {
            return Err(invalid_match(|e, p| e.forbidden(p, "resourceVersionMatch is forbidden when continue is provided")));
        }
        if matching.is_some() && rv.is_empty() {
            return Err(invalid_match(|e, p| e.forbidden(p, "resourceVersionMatch is forbidden unless resourceVersion is provided")));
        }
        if matching == Some(Match::Exact) && rv == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            return Err(invalid_match(|e, p| e.forbidden(p, why)));
        }
        if !cont.is_empty() && !matches!(rv, "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let page = if cont.is_empty() { None } else { Some(Token::decode(cont)?) };
        Ok(ListRequest {
            selection: self.selection(row, namespace)?,
            revision: self.revision()?,
            matching,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            page,
        })
    }

    /// Options of WATCH.
    pub(crate) fn watch(&self, row: &std::sync::Arc<Row>, namespace: &str) -> Result<WatchRequest> {
        let text = self.get("resourceVersion");
        let revision = Revision::parse_resource_version(text).map_err(|_| {
            Status::bare_error(format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"))
        })?;
        let matching = self.get("resourceVersionMatch");
        let initial = self.has("sendInitialEvents").then(|| self.flag("sendInitialEvents"));
        if self.has("continue") && !self.get("continue").is_empty() {
            return Err(list_options("continue", |e, p| e.forbidden(p, "continue is forbidden for watch")));
        }
        match (initial, matching) {
            (None, "") | (Some(_), "NotOlderThan") => {}
            (None, _) => {
                return Err(invalid_match(|e, p| {
                    e.forbidden(p, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
                }));
            }
            (Some(_), "") => {
                return Err(invalid_match(|e, p| {
                    e.forbidden(p, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
                }));
            }
            (Some(_), other) => return Err(invalid_match(|e, p| e.unsupported(p, other, &["NotOlderThan"]))),
        }
        let begin = match (revision, initial) {
            (None, Some(false)) | (Some(Revision::ZERO), Some(false)) => Begin::Now,
            (None, _) => Begin::State(None),
            (Some(Revision::ZERO), _) => Begin::State(Some(Revision::ZERO)),
            (Some(at), Some(true)) => Begin::State(Some(at)),
            (Some(at), _) => Begin::After(at),
        };
        let timeout = self.number("timeoutSeconds")?.filter(|s| *s > 0);
        Ok(WatchRequest {
            selection: self.selection(row, namespace)?,
            begin,
            bookmarks: self.flag("allowWatchBookmarks"),
            mark_end: self.flag("allowWatchBookmarks"),
            timeout: timeout.map(|s| Duration::from_secs(s.unsigned_abs())),
        })
    }

    /// Options of CREATE, UPDATE and PATCH. `kind`: the name of the options in error texts.
    pub(crate) fn write(&self, kind: &str, agent: &str) -> Result<WriteOptions> {
        let mut errors = Errors::default();
        let dry_run: Vec<&str> = self.all("dryRun").filter(|v| !v.is_empty()).collect();
        kontiki_registry::delete::check_dry_run(&dry_run, &mut errors);
        let validation = FieldValidation::parse(self.get("fieldValidation"), kind)?;
        let manager = self.get("fieldManager");
        if manager.len() > 128 {
            errors.push(Reason::TooLong, &Path::new("fieldManager"), serde_json::Value::Null, "may not be more than 128 bytes");
        }
        if !errors.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", kind, "", &errors));
        }
        let manager = if manager.is_empty() { default_manager(agent) } else { manager.to_owned() };
        Ok(WriteOptions { dry_run: !dry_run.is_empty(), manager, validation, fence: None })
    }
}

/// The field manager of a client that names none: the first word of its user agent.
fn default_manager(agent: &str) -> String {
    agent.split('/').next().unwrap_or_default().chars().take(128).collect()
}

fn list_options(field: &str, add: impl FnOnce(&mut Errors, &Path)) -> Status {
    let mut errors = Errors::default();
    add(&mut errors, &Path::new(field));
    Status::invalid_kind("meta.k8s.io", "ListOptions", "", &errors)
}

fn invalid_match(add: impl FnOnce(&mut Errors, &Path)) -> Status {
    list_options("resourceVersionMatch", add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let q = Query::parse("a=b%3Dc&watch&x=1&x=2&n=abc&e=%zz&s=a+b");
        assert_eq!(q.get("a"), "b=c");
        assert_eq!(q.get("s"), "a b");
        assert!(q.flag("watch") && !q.flag("nope"));
        assert_eq!(q.all("x").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(q.number("n").unwrap_err().message, "strconv.ParseInt: parsing \"abc\": invalid syntax");
        assert!(!q.has("e"));
        for (text, on) in [("watch=true", true), ("watch=", true), ("watch=yes", true), ("watch=0", false), ("watch=False", false)] {
            assert_eq!(Query::parse(text).flag("watch"), on, "{text}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let row = kontiki_registry::table::Registry::builtin().resource("", "v1", "configmaps").unwrap();
        let list = |q: &str| Query::parse(q).list(&row, "").map_err(|s| s.http).map(|_| ());
        let watch = |q: &str| Query::parse(q).watch(&row, "").map_err(|s| s.http).map(|w| w.begin);
        assert_eq!(list("resourceVersionMatch=Exact"), Err(422));
        assert_eq!(list("resourceVersion=0&resourceVersionMatch=Exact"), Err(422));
        assert_eq!(list("resourceVersion=5&resourceVersionMatch=Exact"), Ok(()));
        assert_eq!(list("resourceVersion=abc"), Err(400));
        assert_eq!(list("sendInitialEvents=true"), Err(422));
        assert_eq!(list("limit=-1"), Ok(()));
        assert_eq!(watch("sendInitialEvents=true"), Err(422));
        assert_eq!(watch("resourceVersionMatch=NotOlderThan"), Err(422));
        assert_eq!(watch("resourceVersion=abc"), Err(500));
        assert_eq!(watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan"), Ok(Begin::State(None)));
        assert_eq!(watch("resourceVersion=7"), Ok(Begin::After(Revision::new(7))));
        assert_eq!(watch("resourceVersion=0"), Ok(Begin::State(Some(Revision::ZERO))));
    }
}
