//! Kubernetes' protobuf encoding, to and from JSON values.
