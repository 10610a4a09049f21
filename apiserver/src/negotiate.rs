//! What a request is written in, and what its answer may be written in.

use kontiki_registry::status::{Details, Status};

use crate::error::Result;

/// What we read and write, in the order in which we say so.
pub(crate) const MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// A way to write a tree down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Media {
    /// JSON.
    #[default]
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' own protobuf.
    Protobuf,
}

impl Media {
    /// The content type.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// What an object is shown as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum View {
    /// Itself.
    #[default]
    Whole,
    /// A table for people, in this version of `meta.k8s.io`.
    Table(&'static str),
    /// Its metadata.
    Partial(&'static str),
    /// The metadata of each object of a list.
    PartialList(&'static str),
}

/// The negotiated form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    /// How it is written.
    pub(crate) media: Media,
    /// What it shows.
    pub(crate) view: View,
    /// Indented.
    pub(crate) pretty: bool,
}

/// One clause of an `Accept` header.
struct Clause<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| *v)
    }
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut found: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().filter(|m| !m.is_empty())?;
            let params: Vec<(&str, &str)> =
                parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim().trim_matches('"'))).collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            Some(Clause { media, params, quality })
        })
        .collect();
    found.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    found
}

fn media_of(text: &str) -> Option<Media> {
    match text {
        "*/*" | "application/*" | "application/json" => Some(Media::Json),
        "application/yaml" => Some(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Some(Media::Protobuf),
        _ => None,
    }
}

fn view_of(clause: &Clause<'_>) -> Option<View> {
    let version = match clause.param("v") {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => "",
    };
    match clause.param("as") {
        "" => Some(View::Whole),
        _ if clause.param("g") != "meta.k8s.io" || version.is_empty() => None,
        "Table" => Some(View::Table(version)),
        "PartialObjectMetadata" => Some(View::Partial(version)),
        "PartialObjectMetadataList" => Some(View::PartialList(version)),
        _ => None,
    }
}

/// Chooses the form of an answer. Protobuf is chosen only by clients that take nothing else: all that list it take JSON, too.
pub(crate) fn accept(header: &str) -> Result<Form> {
    if header.trim().is_empty() {
        return Ok(Form::default());
    }
    let mut protobuf = None;
    let mut known = false;
    for clause in clauses(header) {
        let Some(media) = media_of(clause.media) else { continue };
        known = true;
        let Some(view) = view_of(&clause) else { continue };
        let form = Form { media, view, pretty: matches!(clause.param("pretty"), "1" | "true") };
        match (media, view) {
            (Media::Protobuf, View::Whole) => protobuf = protobuf.or(Some(form)),
            (Media::Protobuf, _) => {}
            _ => return Ok(form),
        }
    }
    match protobuf {
        Some(form) => Ok(form),
        None if known => Err(Status::not_acceptable(MEDIA_TYPES)),
        None => {
            let mut status = Status::not_acceptable(MEDIA_TYPES);
            status.message = format!("406: Not Acceptable\n\nAvailable representations: {}", MEDIA_TYPES.join(", "));
            Err(status.with_details(Details::default()))
        }
    }
}

/// The media type of a request body; JSON if nothing is said.
pub(crate) fn content(header: &str) -> Result<Media> {
    let bare = header.split(';').next().unwrap_or_default().trim();
    match bare {
        "" | "application/json" => Ok(Media::Json),
        "application/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        _ => Err(Status::unsupported_media(MEDIA_TYPES)),
    }
}

/// Whether a client asks for aggregated discovery, and takes the version that we have.
pub(crate) fn wants_aggregated(header: &str) -> Option<bool> {
    let asked: Vec<_> = clauses(header).into_iter().filter(|c| c.media == "application/json").collect();
    let first = asked.first()?;
    let is_discovery = |c: &Clause<'_>| c.param("as") == "APIGroupDiscoveryList" && c.param("g") == "apidiscovery.k8s.io";
    if !is_discovery(first) {
        return None;
    }
    match asked.iter().find(|c| !is_discovery(c) || c.param("v") == "v2") {
        Some(clause) => Some(is_discovery(clause)),
        None => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_acceptable_clause_wins() {
        let form = |h: &str| accept(h).map(|f| (f.media, f.view)).map_err(|s| s.http);
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl), Ok((Media::Json, View::Table("v1"))));
        assert_eq!(form("application/json;as=Table;v=v9;g=meta.k8s.io,application/json"), Ok((Media::Json, View::Whole)));
        assert_eq!(form("application/json;as=Nope;v=v1;g=meta.k8s.io"), Err(406));
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json"), Ok((Media::Json, View::Whole)));
        assert_eq!(form("application/vnd.kubernetes.protobuf"), Ok((Media::Protobuf, View::Whole)));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(form(metadata), Ok((Media::Json, View::PartialList("v1"))));
        assert_eq!(form("text/html"), Err(406));
        assert_eq!(form(""), Ok((Media::Json, View::Whole)));
        assert_eq!(form("*/*"), Ok((Media::Json, View::Whole)));
        assert_eq!(form("application/yaml;q=0.5, application/json;q=0.9"), Ok((Media::Json, View::Whole)));
    }

    #[test]
    fn aggregated_discovery_is_negotiated() {
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        assert_eq!(wants_aggregated(&format!("{v2},{beta},application/json")), Some(true));
        assert_eq!(wants_aggregated(&format!("{beta},application/json")), Some(false));
        assert_eq!(wants_aggregated("application/json"), None);
    }

    #[test]
    fn bodies_of_unknown_types_are_refused() {
        assert_eq!(content("application/json; charset=utf-8").unwrap(), Media::Json);
        assert_eq!(content("text/plain").unwrap_err().http, 415);
    }
}
