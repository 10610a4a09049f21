//! What can go wrong between an agent and the API, with the code that decides what happens next.

use kontiki_base::Code;
use tonic_types::StatusExt as _;

/// An answer that is not the one that was hoped for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {message} ({code:?})")]
pub struct ApiError {
    /// What was attempted: `get pods default/web`.
    pub op: String,
    /// What came of it.
    pub code: Code,
    /// The server's own words, or the transport's.
    pub message: String,
}

impl ApiError {
    /// An error that this side noticed.
    pub fn new(op: impl Into<String>, code: Code, message: impl Into<String>) -> Self {
        Self { op: op.into(), code, message: message.into() }
    }

    /// From a gRPC status: the code is the one whose row has the same gRPC code and Kubernetes reason.
    pub fn from_status(op: impl Into<String>, status: &tonic::Status) -> Self {
        Self { op: op.into(), code: code_of(status), message: status.message().to_owned() }
    }

    /// Whether the write may have been carried out although nobody said so.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self.code, Code::Timeout | Code::Unavailable | Code::NoLeader | Code::Cancelled)
    }
}

/// Errors with which an agent refuses to start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is nobody to talk to.
    #[error("no API endpoint is configured")]
    NoEndpoints,
    /// Not a URL of ours.
    #[error("endpoint {url:?}: {why}")]
    BadEndpoint {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A PEM that cannot be read.
    #[error("credentials: {0}")]
    BadCredentials(String),
    /// A value that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// The outcome code of a gRPC status.
fn code_of(status: &tonic::Status) -> Code {
    let number = i32::from(status.code());
    let Some(info) = status.get_details_error_info() else {
        return bare_code(status.code());
    };
    let violations = status.get_details_precondition_failure().map(|p| p.violations).unwrap_or_default();
    let fenced = violations.iter().any(|v| v.r#type == "FENCE_TERM");
    let rows = || Code::ALL.iter().copied().filter(|c| c.grpc() == number && c.reason() == info.reason);
    // Two rows share gRPC code and reason: a stale fence, and a precondition that failed. The difference is who must stop.
    rows().find(|c| (*c == Code::Fenced) == fenced).or_else(|| rows().next()).unwrap_or_else(|| bare_code(status.code()))
}

/// Without details the server did not get to speak: most likely the transport broke.
fn bare_code(code: tonic::Code) -> Code {
    match code {
        tonic::Code::Unknown | tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Internal | tonic::Code::Aborted => {
            if code == tonic::Code::Aborted { Code::Conflict } else { Code::Unavailable }
        }
        tonic::Code::DeadlineExceeded => Code::Timeout,
        tonic::Code::FailedPrecondition => Code::FailedPrecondition,
        tonic::Code::Unauthenticated => Code::Unauthenticated,
        tonic::Code::PermissionDenied => Code::Forbidden,
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::AlreadyExists => Code::AlreadyExists,
        tonic::Code::ResourceExhausted => Code::TooManyRequests,
        tonic::Code::OutOfRange => Code::Compacted,
        tonic::Code::Unimplemented => Code::Unimplemented,
        tonic::Code::DataLoss => Code::DataLoss,
        tonic::Code::InvalidArgument => Code::BadRequest,
        tonic::Code::Ok => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    #[test]
    fn every_code_survives_the_wire() {
        for code in Code::ALL {
            let mut details = ErrorDetails::with_error_info(code.reason(), "kontiki.dev", HashMap::new());
            if *code == Code::Fenced {
                details.add_precondition_failure_violation("FENCE_TERM", "", "");
            }
            let status = tonic::Status::with_error_details(tonic::Code::from(code.grpc()), "text", details);
            let back = ApiError::from_status("x", &status).code;
            assert_eq!((back.grpc(), back.reason(), back.retry()), (code.grpc(), code.reason(), code.retry()), "{code:?}");
            assert_eq!(back == Code::Fenced, *code == Code::Fenced);
        }
    }

    #[test]
    fn a_broken_transport_is_another_node() {
        for code in [tonic::Code::Unknown, tonic::Code::Unavailable, tonic::Code::Internal] {
            assert_eq!(ApiError::from_status("x", &tonic::Status::new(code, "h2")).code, Code::Unavailable);
        }
    }
}
