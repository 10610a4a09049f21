//! Golden bytes written by Kubernetes 1.36, laws over random objects, and garbage.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::table::{Field, Kind, Label, Message, MessageId, Shape, Table};
use super::*;

/// Drops what Go's JSON prints but does not mean anything: nulls, empty objects and lists. Embedded kinds lose their type in protobuf.
fn meaning(value: &mut Value, top: bool) {
    match value {
        Value::Object(map) => {
            if !top && map.contains_key("apiVersion") && map.get("kind").is_some_and(|k| k == "PersistentVolumeClaim") {
                map.remove("apiVersion");
                map.remove("kind");
            }
            map.values_mut().for_each(|v| meaning(v, false));
            map.retain(|_, v| !v.is_null() && v.as_object().is_none_or(|m| !m.is_empty()) && v.as_array().is_none_or(|l| !l.is_empty()));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| meaning(v, false)),
        _ => {}
    }
}

fn golden() -> Vec<Value> {
    include_str!("../../tests/golden/kinds.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn bytes_of_kubernetes_decode_to_its_json() {
    for case in golden() {
        let bytes = STANDARD.decode(case["protobuf"].as_str().unwrap()).unwrap();
        let (gvk, mut got) = decode(&bytes).unwrap_or_else(|e| panic!("{e}: {}", case["in"]));
        let mut want = case["defaulted"].clone();
        assert_eq!(gvk.kind, want["kind"].as_str().unwrap());
        meaning(&mut got, true);
        meaning(&mut want, true);
        assert_eq!(got, want);
    }
}

#[test]
fn json_of_kubernetes_encodes_to_its_bytes() {
    for case in golden() {
        let want = STANDARD.decode(case["protobuf"].as_str().unwrap()).unwrap();
        let object = &case["defaulted"];
        let gvk = Gvk::from_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let got = encode(&gvk, object).unwrap_or_else(|e| panic!("{e}: {object}"));
        if gvk.kind == "ControllerRevision" {
            // Its data is JSON that keeps the client's spaces.
            assert_eq!(decode(&got).unwrap(), decode(&want).unwrap());
            continue;
        }
        assert!(got == want, "{object}\n got {}\nwant {}", got.escape_ascii(), want.escape_ascii());
    }
}

/// Bodies that kubectl 1.32 really sent, against what it prints for the same command.
#[test]
fn bodies_of_kubectl_decode_to_what_it_prints() {
    let mut seen = 0;
    for line in include_str!("../../tests/golden/kubectl.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let bytes = STANDARD.decode(case["body"].as_str().unwrap()).unwrap();
        let (gvk, mut got) = decode(&bytes).unwrap_or_else(|e| panic!("{e}: {}", case["command"]));
        assert!(is_enveloped(&bytes) && encode(&gvk, &got).unwrap() == bytes, "{}", case["command"]);
        seen += 1;
        if case["json"].is_null() {
            continue;
        }
        let mut want = case["json"].clone();
        // kubectl prints the namespace that it would send only in the path.
        for value in [&mut got, &mut want] {
            if let Some(metadata) = value["metadata"].as_object_mut() {
                metadata.remove("namespace");
            }
            meaning(value, true);
        }
        assert_eq!(got, want, "{}", case["command"]);
    }
    assert_eq!(seen, 17);
}

#[test]
fn a_pointer_to_zero_is_a_value() {
    let gvk = Gvk::from_api_version("apps/v1", "Deployment");
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 0, "template": {}}});
    let (_, back) = decode(&encode(&gvk, &object).unwrap()).unwrap();
    assert_eq!(back["spec"]["replicas"], 0);
    assert_eq!(back["spec"].get("minReadySeconds"), None);
    assert_eq!(back.get("status"), None);
    assert_eq!(back["metadata"], json!({"name": "d"}));
}

#[test]
fn options_decode_in_any_group() {
    let gvk = Gvk::from_api_version("policy/v1", "DeleteOptions");
    let object = json!({"apiVersion": "policy/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": "u"}});
    assert_eq!(decode(&encode(&gvk, &object).unwrap()).unwrap(), (gvk, object));
}

#[test]
fn schema_unions_keep_their_form() {
    let gvk = Gvk::from_api_version("apiextensions.k8s.io/v1", "JSONSchemaProps");
    let schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {"a": {"items": {"type": "string"}, "default": [1, null]}, "b": {"additionalProperties": {"x-kubernetes-int-or-string": true}}},
        "items": [{"type": "string"}],
        "x-kubernetes-preserve-unknown-fields": false,
    });
    let bytes = encode_message(&gvk, &schema).unwrap();
    assert_eq!(decode_message(&gvk, &bytes).unwrap(), schema);
}

#[test]
fn errors_name_the_field() {
    let gvk = Gvk::from_api_version("v1", "Pod");
    let bad = json!({"spec": {"containers": [{"name": 7}]}});
    assert_eq!(encode(&gvk, &bad).unwrap_err().to_string(), "spec.containers.name: expected a string");
    assert_eq!(decode(b"nope"), Err(DecodeError::NoMagic));
    let unknown = Gvk::from_api_version("v1", "Nope");
    assert_eq!(encode(&unknown, &json!({})), Err(EncodeError::UnknownKind(unknown.clone())));
    assert_eq!(decode(&encode::envelope(&unknown, b"")), Err(DecodeError::UnknownKind(unknown)));
}

#[test]
fn depth_and_size_are_bounded() {
    // JSONSchemaProps.not nests itself: field 26.
    let gvk = Gvk::from_api_version("apiextensions.k8s.io/v1", "JSONSchemaProps");
    let mut deep = json!({});
    for _ in 0..=MAX_DEPTH {
        deep = json!({ "not": deep });
    }
    assert_eq!(encode_message(&gvk, &deep), Err(EncodeError::TooDeep));
    let not = Table::get().message(Table::get().of_kind(&gvk).unwrap()).fields.iter().find(|f| f.json == "not").unwrap().number;
    let mut bytes = Vec::new();
    for _ in 0..5_000 {
        let mut outer = Vec::new();
        for part in [u64::from(not) << 3 | 2, bytes.len() as u64] {
            let mut n = part;
            while n >= 0x80 {
                outer.push(n as u8 | 0x80);
                n >>= 7;
            }
            outer.push(n as u8);
        }
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    assert_eq!(decode_message(&gvk, &bytes), Err(DecodeError::TooDeep));
    // Two bytes make one container.
    let many = [0x12, 0x00].repeat(1 << 20);
    let spec = Gvk::from_api_version("v1", "PodSpec");
    assert_eq!(decode_message(&spec, &many), Err(DecodeError::TooMany));
}

/// A canonical value of a message: what decoding would give back. `words` is the randomness.
struct Maker<'a> {
    words: &'a mut dyn Iterator<Item = u64>,
    table: &'static Table,
}

impl Maker<'_> {
    fn word(&mut self) -> u64 {
        self.words.next().unwrap_or(0)
    }

    fn message(&mut self, id: MessageId, depth: u32) -> Value {
        let message = self.table.message(id);
        match message.shape {
            Shape::Plain => {
                let mut out = Map::new();
                self.fields(message, depth, &mut out);
                Value::Object(out)
            }
            Shape::Time => json!(crate::time::format(1 + (self.word() % 4_000_000_000) as i64)),
            Shape::MicroTime => json!(crate::time::format_micro(1 + (self.word() % 4_000_000_000) as i64, 123_456_000)),
            Shape::Duration => json!(crate::times::format_go_duration(self.word() as i64)),
            Shape::Quantity => json!(format!("{}m", self.word() % 1000 + 1)),
            Shape::IntOrString => {
                if self.word().is_multiple_of(2) {
                    json!(1 + (self.word() % 100) as i32)
                } else {
                    json!("25%")
                }
            }
            Shape::RawJson => json!({"f:a": {}, "n": self.word() % 9}),
            Shape::Items => json!(["x", "y"]),
            Shape::SchemaOrBool => json!(self.word().is_multiple_of(2)),
            Shape::SchemaOrArray => json!([{"type": "string"}]),
            Shape::SchemaOrStrings => json!(["p"]),
        }
    }

    fn fields(&mut self, message: &'static Message, depth: u32, out: &mut Map<String, Value>) {
        for field in &message.fields {
            if let (true, Kind::Msg(id)) = (field.inline, field.kind) {
                self.fields(self.table.message(id), depth + 1, out);
                continue;
            }
            let shape = match field.kind {
                Kind::Msg(id) => Some(self.table.message(id).shape),
                _ => None,
            };
            // What is printed even when zero must be there; the rest is there sometimes, less often with depth.
            let kept = match (field.label, shape) {
                (Label::One, None) => field.keep && !field.pointer && field.kind != Kind::Bytes,
                (Label::One, Some(shape)) => !field.pointer && shape == Shape::Plain,
                (Label::Many, _) => field.keep,
                (Label::Map, _) => false,
            };
            let value_shape = !field.pointer && matches!(shape, Some(Shape::IntOrString | Shape::Duration | Shape::Quantity));
            let always = kept || (value_shape && field.label == Label::One);
            if !always && (depth > 2 || !self.word().is_multiple_of(u64::from(3 + depth * 2))) {
                continue;
            }
            if let Some(value) = self.field(field, depth) {
                out.insert(field.json.into(), value);
            }
        }
    }

    fn field(&mut self, field: &'static Field, depth: u32) -> Option<Value> {
        let one = self.single(field, depth)?;
        Some(match field.label {
            Label::One => one,
            Label::Many => {
                let two = self.single(field, depth)?;
                json!([one, two])
            }
            Label::Map => json!({"k": one}),
        })
    }

    fn single(&mut self, field: &'static Field, depth: u32) -> Option<Value> {
        let may_be_zero = field.pointer || field.keep || field.label != Label::One;
        let n = if may_be_zero { self.word() % 3 } else { 1 + self.word() % 3 };
        Some(match field.kind {
            Kind::Str => json!("é".repeat(n as usize)),
            Kind::Bool => json!(n != 0),
            Kind::I32 => json!(-(n as i32)),
            Kind::I64 => json!(-(n as i64) << 40),
            Kind::F64 => json!(n as f64 * 0.5),
            Kind::Bytes => json!(STANDARD.encode([0, 255, 7].repeat(n as usize + 1))),
            Kind::Msg(id) => {
                let value = self.message(id, depth + 1);
                let empty = value.as_object().is_some_and(Map::is_empty);
                if empty && !may_be_zero {
                    return None;
                }
                value
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// decode(encode(x)) == x for every message of the table.
    #[test]
    fn encoding_loses_nothing(seed in proptest::collection::vec(any::<u64>(), 1..400)) {
        let table = Table::get();
        let mut words = seed.iter().copied().cycle().enumerate().map(|(i, w)| w.rotate_left(i as u32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7);
        for (id, message) in table.iter().filter(|(_, m)| m.shape == Shape::Plain && m.name != "Unknown") {
            let object = Maker { words: &mut words, table }.message(id, 0);
            let bytes = encode::message(id, &object).unwrap();
            prop_assert_eq!(decode::message(id, &bytes).unwrap(), object, "{}.{}", message.package, message.name);
        }
    }

    /// Random bytes, and real bytes with one byte changed, never panic.
    #[test]
    fn garbage_is_an_error_or_an_object(noise in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), byte in any::<u8>(), pick in any::<usize>()) {
        let kinds = ["Pod", "ConfigMap", "Status", "Event"];
        for kind in kinds {
            let _ = decode_message(&Gvk::from_api_version("v1", kind), &noise);
        }
        let mut enveloped = MAGIC.to_vec();
        enveloped.extend_from_slice(&noise);
        let _ = decode(&enveloped);
        let all = golden();
        let mut real = STANDARD.decode(all[pick % all.len()]["protobuf"].as_str().unwrap()).unwrap();
        let at = at % real.len();
        real[at] = byte;
        let _ = decode(&real);
        let _ = decode(&real[..at]);
    }
}
