//! Objects that nobody would send: made from the schemas with edge values in them. Nothing may panic, decoding must be idempotent, and
//! what was accepted must stay acceptable.

use kontiki_registry::admit::{self, Facts, Request};
use kontiki_registry::columns;
use kontiki_registry::delete::{DeleteDecision, DeleteOptions, decide_delete};
use kontiki_registry::meta::{self, CreateCtx};
use kontiki_registry::rbac::User;
use kontiki_registry::row::Row;
use kontiki_registry::schema::{self, FieldValidation, Node, conform, decode};
use kontiki_registry::table::Registry;
use kontiki_registry::write_rules;
use serde_json::{Map, Value, json};

const NOW: &str = "2026-01-01T00:00:00Z";

/// A small generator of numbers: the same seed gives the same objects.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()].clone()
    }

    fn value(&mut self, node: &Node, depth: u32) -> Value {
        let texts = ["", "a", "None", "A_b", "x/y/z", "10.96.0.5", "50%", "-1", "é", "0.0.0.0", "ClusterIP", "RollingUpdate", "name"];
        match node {
            Node::Struct(name) => self.fields(name, depth),
            Node::Map(each) => {
                let n = self.roll(3);
                Value::Object((0..n).map(|_| (self.pick(&texts).to_string(), self.value(each, depth + 1))).collect())
            }
            Node::List(each) => {
                let n = self.roll(3);
                Value::Array((0..n).map(|_| self.value(each, depth + 1)).collect())
            }
            Node::String => json!(self.pick(&texts)),
            Node::Bytes => json!(self.pick(&["", "YQ==", "e30="])),
            Node::Integer(32) => json!(self.pick(&[0, 1, -1, 80, i32::MAX, i32::MIN])),
            Node::Integer(_) => json!(self.pick(&[0, 1, -1, 30, i64::MAX, i64::MIN])),
            Node::Number => json!(self.pick(&[0.0, -1.5, 1e300])),
            Node::Boolean => json!(self.roll(2) == 0),
            Node::IntOrString => self.pick(&[json!(0), json!("25%"), json!("http"), json!(-5), json!("200%")]),
            Node::Quantity => json!(self.pick(&["0", "1", "100m", "-1", "9223372036854775807Ei", "0.1n"])),
            Node::Time => json!(self.pick(&[NOW, "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])),
            Node::MicroTime => json!("2026-01-01T00:00:00.000000Z"),
            Node::Any => self.pick(&[json!({}), json!({"x": [1, null]}), json!("text"), json!(7)]),
        }
    }

    fn fields(&mut self, name: &str, depth: u32) -> Value {
        let Some(node) = schema::node(name) else { return json!({}) };
        let mut m = Map::new();
        for (field, of) in &node.fields {
            // Deep trees thin out, or a pod would never end.
            if self.roll(u64::from(2 + depth)) == 0 {
                m.insert(field.clone(), self.value(of, depth + 1));
            }
        }
        Value::Object(m)
    }
}

fn made(row: &Row, dice: &mut Dice) -> Value {
    let mut obj = dice.fields(&row.schema, 0);
    obj["apiVersion"] = json!(row.api_version());
    obj["kind"] = json!(row.kind);
    if dice.roll(4) > 0 {
        obj["metadata"]["name"] = json!("name");
        obj["metadata"]["namespace"] = json!(if row.namespaced { "ns" } else { "" });
        for field in ["labels", "annotations", "finalizers", "ownerReferences", "generateName"] {
            obj["metadata"].as_object_mut().unwrap().remove(field);
        }
    }
    obj
}

/// What a server does with an object, from its creation to its end.
fn live(row: &Row, obj: Value, other: Value) -> bool {
    let user = User { name: "system:node:n1".into(), groups: vec!["system:nodes".into()], uid: String::new() };
    let ns = if row.namespaced { "ns" } else { "" };
    let request = Request { user: &user, row, sub: None, namespace: ns, suffix: "abcde" };
    let account = json!({"metadata": {"name": "default"}});
    let facts = Facts { namespace: Some(&account), service_account: Some(&account), services: &[&other], ..Facts::default() };
    let mut obj = decode(row, obj, &[], FieldValidation::Warn).unwrap().object;
    let mut again = obj.clone();
    assert_eq!(conform(&row.gvk(), &mut again), Ok(Vec::new()));
    assert_eq!(again, obj, "decoding is idempotent");
    (row.rules.defaults)(&mut obj);
    let mut admitted = obj.clone();
    // A refusal is fine, a panic is not.
    drop(admit::create(&request, &mut admitted, &facts));
    let ctx = CreateCtx { uid: "u".into(), now: NOW, user: "me", suffix: "abcde", namespace: ns, field_manager: "m" };
    let created = meta::prepare_create(row, &mut obj, &ctx).is_ok();
    for sub in row.subresources.iter().map(Some).chain([None]) {
        let mut new = decode(row, other.clone(), &[], FieldValidation::Warn).unwrap().object;
        drop(meta::prepare_update(row, &mut new, &obj, sub, NOW));
        drop(admit::update(&request, &mut new, &obj, &facts));
        let _ = write_rules::is_no_op(&new, &obj) || write_rules::completes_deletion(&new, &obj);
    }
    for (field, read) in row.rules.fields {
        let _ = (field, read(&obj));
    }
    let _ = columns::cells(&row.gvk(), &obj, 1_800_000_000);
    for grace in [None, Some(0), Some(i64::MAX), Some(i64::MIN)] {
        let options = DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        if let DeleteDecision::MarkAndKeep(kept) = decide_delete(row, &obj, &options, NOW) {
            let _ = decide_delete(row, &kept, &options, NOW);
        }
    }
    if let (Some(to), Some(from)) = (row.rules.to_stored, row.rules.from_stored) {
        let _ = from(to(obj.clone()));
    }
    if created {
        let mut same = obj.clone();
        meta::prepare_update(row, &mut same, &obj, None, NOW)
            .unwrap_or_else(|e| panic!("{}: accepted, then refused: {e}\n{obj}", row.gvk()));
    }
    created
}

#[test]
fn nothing_panics_and_what_was_accepted_stays_acceptable() {
    let registry = Registry::builtin();
    let mut created = 0;
    for (n, row) in registry.rows().filter(|r| r.is_stored()).enumerate() {
        for seed in 0..60 {
            let mut dice = Dice(seed * 1000 + n as u64 + 1);
            let (obj, other) = (made(row, &mut dice), made(row, &mut dice));
            created += u32::from(live(row, obj, other));
        }
    }
    assert!(created > 300, "the objects are not all hopeless: {created}");
}

#[test]
fn any_json_is_an_object_or_an_error() {
    let registry = Registry::builtin();
    let row = registry.resource("", "v1", "pods").unwrap();
    for text in [
        "null",
        "1",
        "\"x\"",
        "[]",
        "{}",
        "{\"kind\":1}",
        "{\"apiVersion\":[]}",
        "{\"metadata\":[]}",
        "{\"spec\":null}",
        "{\"spec\":{\"containers\":{}}}",
    ] {
        let value: Value = serde_json::from_str(text).unwrap();
        let decoded = decode(&row, value, &[], FieldValidation::Strict);
        assert_eq!(decoded.is_ok(), ["{}", "{\"spec\":null}"].contains(&text), "{text}: {decoded:?}");
        if let Err(e) = decoded {
            assert_eq!(e.http, 400, "{text}");
        }
    }
}
