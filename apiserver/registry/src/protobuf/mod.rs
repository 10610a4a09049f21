//! Kubernetes' protobuf encoding, to and from JSON values, driven by one table of messages.
//!
//! A body is the magic `k8s\0` followed by a `runtime.Unknown` that names the kind and carries the message. Decoding yields the JSON that Go would print
//! for the decoded object, without the fields that mean "not set"; encoding yields the bytes that Go would write.
//!
//! | module | what it holds |
//! |---|---|
//! | [`table`] | messages, fields, JSON names, Go's treatment of zero values |
//! | `decode` | bytes to JSON |
//! | `encode` | JSON to bytes |

mod decode;
mod encode;
pub mod table;

use kontiki_base::object::Gvk;
use kontiki_base::{Code, limits};
use serde_json::Value;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The first four bytes of every body.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// Messages may nest this deep; a deeper body is refused.
pub const MAX_DEPTH: u32 = limits::PROTOBUF_DEPTH as u32;

/// A body may hold this many values; a fuller one is refused. It bounds the memory that a few bytes of empty messages could claim.
pub const MAX_VALUES: u32 = limits::PROTOBUF_VALUES as u32;

/// Why bytes are not an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body does not start with the magic.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// The bytes end inside a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A varint is longer than 64 bits, or a tag is no tag.
    #[error("proto: illegal tag or integer overflow")]
    BadVarint,
    /// A field has another wire type than the table says.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// The wire type that was found.
        wire: u8,
        /// JSON name of the field.
        field: &'static str,
    },
    /// Text is not UTF-8.
    #[error("proto: field {0} contains invalid UTF-8")]
    NotUtf8(&'static str),
    /// A value is outside what its JSON form can say, such as a time after year 9999.
    #[error("proto: field value out of range: {0}")]
    OutOfRange(&'static str),
    /// Embedded JSON does not parse.
    #[error("invalid embedded JSON: {0}")]
    Json(String),
    /// The envelope names a content type or encoding that is not understood.
    #[error("unsupported content in protobuf envelope: {0:?}")]
    Content(String),
    /// There is no message for this kind.
    #[error("no kind \"{}\" is registered for version \"{}\" in protobuf", .0.kind, .0.api_version())]
    UnknownKind(Gvk),
    /// Deeper than [`MAX_DEPTH`].
    #[error("protobuf message is nested too deeply")]
    TooDeep,
    /// More values than [`MAX_VALUES`].
    #[error("protobuf message holds too many values")]
    TooMany,
}

impl DecodeError {
    /// The outcome code.
    pub const fn code(&self) -> Code {
        match self {
            Self::TooMany => Code::TooLarge,
            _ => Code::BadRequest,
        }
    }
}

/// Why an object cannot be written as protobuf.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// There is no message for this kind.
    #[error("object of kind {0} cannot be encoded as protobuf")]
    UnknownKind(Gvk),
    /// A field holds something else than its type.
    #[error("{path}: expected {expected}")]
    Type {
        /// Dotted path of the field.
        path: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// Deeper than [`MAX_DEPTH`].
    #[error("object is nested too deeply")]
    TooDeep,
}

impl EncodeError {
    /// The outcome code: a kind without messages cannot be had in this form, anything else is an object that should not have been stored.
    pub const fn code(&self) -> Code {
        match self {
            Self::UnknownKind(_) => Code::NotAcceptable,
            Self::Type { .. } | Self::TooDeep => Code::Internal,
        }
    }
}

/// True if a body has the magic of the envelope.
pub fn is_enveloped(body: &[u8]) -> bool {
    body.starts_with(&MAGIC)
}

/// Reads an enveloped object: its kind, and its JSON with `apiVersion` and `kind` set.
pub fn decode(body: &[u8]) -> Result<(Gvk, Value), DecodeError> {
    decode::envelope(body)
}

/// Reads the bytes of a message (no envelope) of a known kind.
pub fn decode_message(gvk: &Gvk, bytes: &[u8]) -> Result<Value, DecodeError> {
    let id = table::Table::get().of_kind(gvk).ok_or_else(|| DecodeError::UnknownKind(gvk.clone()))?;
    decode::message(id, bytes)
}

/// Writes an object as an enveloped message. Fields that the kind does not have are left out, as they would be by Go.
pub fn encode(gvk: &Gvk, obj: &Value) -> Result<Vec<u8>, EncodeError> {
    let message = encode_message(gvk, obj)?;
    Ok(encode::envelope(gvk, &message))
}

/// Writes an object as a bare message.
pub fn encode_message(gvk: &Gvk, obj: &Value) -> Result<Vec<u8>, EncodeError> {
    let id = table::Table::get().of_kind(gvk).ok_or_else(|| EncodeError::UnknownKind(gvk.clone()))?;
    encode::message(id, obj)
}

#[cfg(test)]
mod tests;
