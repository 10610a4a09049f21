//! A container's environment: plain values, references to config maps, secrets, fields and resources, and the services of its namespace.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use serde_json::Value;

use super::lifecycle::{resources, spec};
use super::objects::Objects;

/// Why a container cannot be configured; the message of `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigProblem(pub String);

/// What of a pod is known only while it runs.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// The node's address.
    pub host_ip: String,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// What the node can give away: millicores, bytes.
    pub allocatable: (i64, i64),
}

/// The variables of a container, in the order of their definition; a later one of the same name wins.
///
/// # Errors
/// If something that is not optional is missing, or cannot be fetched.
pub async fn variables(pod: &Pod, c: &Container, at: &Situation, objects: &Objects) -> Result<Vec<(String, String)>, ConfigProblem> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut known: BTreeMap<String, String> = service_variables(pod, namespace, objects).await;
    let mut order: Vec<String> = known.keys().cloned().collect();
    let mut set = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        if known.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for source in c.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(r), _) => (Kind::ConfigMap, r.name.clone(), r.optional),
            (None, Some(r)) => (Kind::Secret, r.name.clone(), r.optional),
            (None, None) => continue,
        };
        let Some(object) = fetch(objects, kind, namespace, &name, optional).await? else { continue };
        for (key, value) in entries(kind, &object) {
            if let Ok(text) = String::from_utf8(value) {
                set(&mut known, format!("{prefix}{key}"), text);
            }
        }
    }
    for var in c.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) => Some(expand(text, &known)),
            (None, Some(_)) => referenced(pod, c, var, at, objects).await?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut known, var.name.clone(), value);
        }
    }
    Ok(order.into_iter().filter_map(|name| known.remove(&name).map(|value| (name, value))).collect())
}

async fn fetch(
    objects: &Objects,
    kind: Kind,
    namespace: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<std::sync::Arc<Value>>, ConfigProblem> {
    let found = objects.get(kind, &ObjectKey::new(namespace, name)).await.map_err(|e| ConfigProblem(e.to_string()))?;
    if found.is_none() && optional != Some(true) {
        return Err(ConfigProblem(format!("{} {name:?} not found", singular(kind))));
    }
    Ok(found)
}

fn singular(kind: Kind) -> &'static str {
    if kind == Kind::Secret { "secret" } else { "configmap" }
}

/// The entries of a config map or secret, decoded.
pub fn entries(kind: Kind, object: &Value) -> BTreeMap<String, Vec<u8>> {
    use base64::Engine as _;
    let decode = |v: &Value| base64::engine::general_purpose::STANDARD.decode(v.as_str()?).ok();
    let plain = |v: &Value| v.as_str().map(|s| s.as_bytes().to_vec());
    let of = |field: &str| object[field].as_object().into_iter().flatten();
    let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    if kind == Kind::Secret {
        all.extend(of("data").filter_map(|(k, v)| Some((k.clone(), decode(v)?))));
    } else {
        all.extend(of("data").filter_map(|(k, v)| Some((k.clone(), plain(v)?))));
        all.extend(of("binaryData").filter_map(|(k, v)| Some((k.clone(), decode(v)?))));
    }
    all
}

async fn referenced(pod: &Pod, c: &Container, var: &EnvVar, at: &Situation, objects: &Objects) -> Result<Option<String>, ConfigProblem> {
    let Some(source) = &var.value_from else { return Ok(None) };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let keyed = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => Some((Kind::ConfigMap, r.name.clone(), r.key.clone(), r.optional)),
        (None, Some(r)) => Some((Kind::Secret, r.name.clone(), r.key.clone(), r.optional)),
        (None, None) => None,
    };
    if let Some((kind, name, key, optional)) = keyed {
        let Some(object) = fetch(objects, kind, namespace, &name, optional).await? else { return Ok(None) };
        let value = entries(kind, &object).remove(&key);
        if value.is_none() && optional != Some(true) {
            return Err(ConfigProblem(format!("couldn't find key {key} in {} {namespace}/{name}", singular(kind))));
        }
        return Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, at)
            .map(Some)
            .ok_or_else(|| ConfigProblem(format!("unsupported fieldPath: {}", field.field_path)));
    }
    if let Some(r) = &source.resource_field_ref {
        let of = r.container_name.as_deref().and_then(|name| super::lifecycle::container(pod, name)).unwrap_or(c);
        let divisor = r.divisor.as_ref().map_or("", |d| d.0.as_str());
        return resource_value(of, &r.resource, divisor, at)
            .map(Some)
            .ok_or_else(|| ConfigProblem(format!("unsupported resource: {}", r.resource)));
    }
    Err(ConfigProblem(format!("the source of {} is not supported", var.name)))
}

/// A field of the pod, by the paths that the downward API has.
pub fn field_value(pod: &Pod, path: &str, at: &Situation) -> Option<String> {
    let meta = &pod.metadata;
    let spec = spec(pod);
    let quoted = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> = map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
        lines.join("\n")
    };
    let keyed = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let text = match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => quoted(&meta.labels),
        "metadata.annotations" => quoted(&meta.annotations),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => at.host_ip.clone(),
        "status.podIP" => at.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => at.pod_ips.join(","),
        _ => return keyed(&meta.labels, "metadata.labels").or_else(|| keyed(&meta.annotations, "metadata.annotations")),
    };
    Some(text)
}

/// A container's request or limit in units of `divisor`, rounded up. A limit that is not set is what the node can give away.
pub fn resource_value(c: &Container, resource: &str, divisor: &str, at: &Situation) -> Option<String> {
    use kontiki_control::quantity;
    let (side, name) = resource.split_once('.')?;
    let cpu = name == "cpu";
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        return None;
    }
    let amount = match side {
        "requests" => resources::request(c, name),
        "limits" => match (resources::limit(c, name), name) {
            (0, "cpu") => at.allocatable.0,
            (0, "memory") => at.allocatable.1,
            (n, _) => n,
        },
        _ => return None,
    };
    let divisor = if matches!(divisor, "" | "0") { "1" } else { divisor };
    let unit = if cpu { quantity::milli(divisor) } else { quantity::units(divisor) }?.max(1);
    Some(((amount + unit - 1) / unit).to_string())
}

/// Replaces `$(NAME)`; `$$` is a dollar sign, and a name that is not known stays as it is written.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `NAME_SERVICE_HOST` and the rest, for the services of the namespace and for the API itself. Services that cannot be listed now are left
/// out: this must not keep a container from starting.
async fn service_variables(pod: &Pod, namespace: &str, objects: &Objects) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if let Ok(Some(service)) = objects.get(Kind::Service, &ObjectKey::new("default", "kubernetes")).await {
        add_service(&service, &mut all);
    }
    if spec(pod).enable_service_links != Some(false)
        && let Ok(services) = objects.services(namespace).await
    {
        services.as_array().into_iter().flatten().for_each(|service| add_service(service, &mut all));
    }
    all
}

fn add_service(service: &Value, all: &mut BTreeMap<String, String>) {
    let ip = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    let Some(name) = service["metadata"]["name"].as_str().filter(|_| !matches!(ip, "" | "None")) else { return };
    let name = name.to_uppercase().replace('-', "_");
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    for (i, port) in ports.iter().enumerate() {
        let number = port["port"].as_u64().unwrap_or(0);
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let prefix = format!("{name}_PORT_{number}_{protocol}");
        if i == 0 {
            all.insert(format!("{name}_SERVICE_PORT"), number.to_string());
            all.insert(format!("{name}_PORT"), format!("{lower}://{ip}:{number}"));
        }
        if let Some(port_name) = port["name"].as_str().filter(|n| !n.is_empty()) {
            all.insert(format!("{name}_SERVICE_PORT_{}", port_name.to_uppercase().replace('-', "_")), number.to_string());
        }
        all.insert(prefix.clone(), format!("{lower}://{ip}:{number}"));
        all.insert(format!("{prefix}_PROTO"), lower);
        all.insert(format!("{prefix}_PORT"), number.to_string());
        all.insert(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_and_unknown_ones_kept() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let table = [("$(A)", "1"), ("x$(A)y$(B)", "x1y$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A"), ("", "")];
        for (text, expanded) in table {
            assert_eq!(expand(text, &known), expanded, "{text}");
        }
    }

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_str(
            r#"{"metadata":{"name":"p","labels":{"a":"b"}},"spec":{"nodeName":"n","containers":[{"name":"c","resources":{"limits":{"cpu":"250m"},"requests":{"memory":"3Mi"}}}]}}"#,
        )
        .unwrap();
        let at = Situation { host_ip: "1.1.1.1".into(), pod_ips: vec!["2.2.2.2".into()], allocatable: (4_000, 1 << 30) };
        assert_eq!(field_value(&pod, "metadata.labels['a']", &at).as_deref(), Some("b"));
        assert_eq!(field_value(&pod, "metadata.labels", &at).as_deref(), Some("a=\"b\""));
        assert_eq!(field_value(&pod, "status.podIP", &at).as_deref(), Some("2.2.2.2"));
        assert_eq!(field_value(&pod, "spec.containers", &at), None);
        let c = &spec(&pod).containers[0];
        let table =
            [("limits.cpu", "", "1"), ("limits.cpu", "1m", "250"), ("requests.memory", "1Mi", "3"), ("limits.memory", "1Mi", "1024")];
        for (resource, divisor, value) in table {
            assert_eq!(resource_value(c, resource, divisor, &at).as_deref(), Some(value), "{resource} {divisor}");
        }
        assert_eq!(resource_value(c, "limits.gpu", "", &at), None);
    }

    #[test]
    fn services_become_variables() {
        let service = serde_json::json!({"metadata":{"name":"my-db"},"spec":{"clusterIP":"10.0.0.9","ports":[{"port":5432,"name":"sql"}]}});
        let mut all = BTreeMap::new();
        add_service(&service, &mut all);
        assert_eq!(all["MY_DB_SERVICE_HOST"], "10.0.0.9");
        assert_eq!(all["MY_DB_PORT"], "tcp://10.0.0.9:5432");
        assert_eq!(all["MY_DB_SERVICE_PORT_SQL"], "5432");
        let headless = serde_json::json!({"metadata":{"name":"h"},"spec":{"clusterIP":"None","ports":[{"port":1}]}});
        let before = all.len();
        add_service(&headless, &mut all);
        assert_eq!(all.len(), before);
    }
}
