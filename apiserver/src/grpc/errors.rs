//! Statuses of Kubernetes as statuses of gRPC, with details that a program can read.

use std::collections::HashMap;
use std::time::Duration;

use kontiki_base::Code;
use kontiki_registry::status::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

/// Domain of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "kontiki.dev";

/// The gRPC status of a failed request.
pub(crate) fn to_tonic(status: &Status) -> tonic::Status {
    let mut details = ErrorDetails::new();
    let mut metadata = HashMap::from([("http".to_owned(), status.http.to_string())]);
    if let Some(d) = &status.details {
        for (key, text) in [("name", &d.name), ("group", &d.group), ("kind", &d.kind), ("uid", &d.uid)] {
            if !text.is_empty() {
                metadata.insert(key.into(), text.clone());
            }
        }
        if d.retry_after_seconds > 0 {
            details.set_retry_info(Some(Duration::from_secs(u64::from(d.retry_after_seconds))));
        }
        if status.code == Code::Invalid {
            for cause in &d.causes {
                details.add_bad_request_violation(cause.field.clone(), cause.message.clone());
            }
        }
    }
    details.set_error_info(status.reason.clone(), DOMAIN, metadata);
    let precondition = match status.code {
        Code::Conflict => Some("RESOURCE_VERSION"),
        Code::Fenced => Some("FENCE_TERM"),
        Code::FailedPrecondition => Some("PRECONDITION"),
        _ => None,
    };
    if let Some(kind) = precondition {
        let subject = status.details.as_ref().map(|d| format!("{}/{}", d.kind, d.name)).unwrap_or_default();
        details.add_precondition_failure_violation(kind, subject, status.message.clone());
    }
    tonic::Status::with_error_details(tonic::Code::from_i32(status.code.grpc()), status.message.clone(), details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_write_is_aborted_and_says_why() {
        let row = kontiki_registry::table::Registry::builtin().resource("", "v1", "pods").unwrap();
        let status = to_tonic(&Status::modified(&row, "p"));
        assert_eq!(status.code(), tonic::Code::Aborted);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "Conflict");
        let violation = &details.precondition_failure().unwrap().violations[0];
        assert_eq!((violation.r#type.as_str(), violation.subject.as_str()), ("RESOURCE_VERSION", "pods/p"));
    }

    #[test]
    fn every_code_keeps_its_grpc_number() {
        for code in Code::ALL {
            assert_eq!(to_tonic(&Status::new(*code, "x")).code() as i32, code.grpc());
        }
    }
}
