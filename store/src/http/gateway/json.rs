//! Messages as JSON and back, by their descriptors: etcd's names of fields, integers of 64 bits as strings, bytes in base64, enums by name,
//! what has its default left out; unknown fields are ignored.

use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// The method of a call, `package.Service/Method`.
pub(super) fn method(call: &str) -> Option<MethodDescriptor> {
    let (service, method) = call.split_once('/')?;
    kontiki_proto::pool().get_service_by_name(service)?.methods().find(|found| found.name() == method)
}

pub(super) fn unreadable(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("the body is not the request's JSON: {error}"))
}

pub(super) fn too_large(limit: usize) -> Status {
    Status::resource_exhausted(format!("a message in the body has more than {limit} bytes"))
}

/// A message of JSON.
pub(super) fn encode(value: Value, descriptor: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options).map_err(unreadable)?;
    Ok(message.encode_to_vec())
}

/// JSON of a message.
pub(super) fn decode(message: Bytes, descriptor: &MessageDescriptor) -> Result<Value, Status> {
    let options = SerializeOptions::new().stringify_64_bit_integers(true).use_proto_field_name(true).skip_default_fields(true);
    let message = DynamicMessage::decode(descriptor.clone(), message).map_err(|e| Status::internal(e.to_string()))?;
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| Status::internal(e.to_string()))
}

/// An error with the keys of every release of etcd.
pub(super) fn error(status: &Status) -> Value {
    json!({ "error": status.message(), "message": status.message(), "code": status.code() as i32, "details": [] })
}

/// An error in the middle of a stream.
pub(super) fn error_in_stream(status: &Status) -> Value {
    let http = http_status(status.code());
    let mut error = error(status);
    error["grpc_code"] = json!(status.code() as i32);
    error["http_code"] = json!(http.as_u16());
    error["http_status"] = json!(http.canonical_reason());
    json!({ "error": error })
}

/// An error as an answer.
pub(super) fn refusal(status: &Status, body: &Value) -> Response {
    (http_status(status.code()), [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// The HTTP status of a gRPC code, as grpc-gateway has it.
pub(super) const fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::super::routes::ROUTES;
    use super::*;
    use crate::grpc::SERVICES;

    #[test]
    fn every_call_has_a_path_and_every_path_a_call() {
        for (path, call) in ROUTES {
            assert!(method(call).is_some(), "{path}");
        }
        // Health is asked for by HTTP without it, and nobody asks for a stream of ranges in JSON.
        for service in SERVICES.iter().filter(|service| service.starts_with("etcdserverpb") || service.starts_with("v3")) {
            for method in kontiki_proto::pool().get_service_by_name(service).unwrap().methods().filter(|m| m.name() != "RangeStream") {
                let call = format!("{service}/{}", method.name());
                assert!(ROUTES.iter().any(|(_, known)| *known == call), "{call} has no path");
            }
        }
    }

    #[test]
    fn json_is_etcds() {
        let range = kontiki_proto::pool().get_message_by_name("etcdserverpb.RangeRequest").unwrap();
        let both = json!({ "key": "Zm9v", "rangeEnd": "Zm9w", "limit": "7", "sort_order": "DESCEND", "sortTarget": 3, "nobody": [1] });
        let bytes = encode(both, &range).unwrap();
        let back = decode(bytes.into(), &range).unwrap();
        assert_eq!(back, json!({ "key": "Zm9v", "range_end": "Zm9w", "limit": "7", "sort_order": "DESCEND", "sort_target": "MOD" }));
        let member = kontiki_proto::pool().get_message_by_name("etcdserverpb.Member").unwrap();
        let value = json!({ "ID": "18446744073709551615", "name": "a", "peerURLs": ["http://a"], "isLearner": true });
        assert_eq!(decode(encode(value.clone(), &member).unwrap().into(), &member).unwrap(), value);
        let txn = kontiki_proto::pool().get_message_by_name("etcdserverpb.TxnRequest").unwrap();
        let value = json!({
            "compare": [{ "target": "CREATE", "key": "YQ==", "create_revision": "0" }],
            "success": [{ "request_put": { "key": "YQ==", "value": "YQ==" } }, { "requestRange": { "key": "YQ==" } }],
        });
        let back = decode(encode(value, &txn).unwrap().into(), &txn).unwrap();
        assert_eq!(back["success"][1]["request_range"]["key"], "YQ==");
        assert_eq!(back["compare"][0]["create_revision"], "0", "a choice that was made is told, whatever its value");
        assert!(encode(json!({ "key": "no base64!" }), &range).unwrap_err().message().starts_with("the body is not"));
        assert!(encode(json!([]), &range).is_err());
    }

    #[test]
    fn errors_have_the_keys_of_every_release() {
        let status = Status::not_found("etcdserver: requested lease not found");
        let text = "etcdserver: requested lease not found";
        assert_eq!(error(&status), json!({ "error": text, "message": text, "code": 5, "details": [] }));
        assert_eq!(error_in_stream(&status)["error"]["http_status"], "Not Found");
    }
}
