//! Which rules belong to which kind, and what kinds are stored as.

use kontiki_base::object::Gvk;

use super::{PLAIN, PLAIN_RULES, Rules, WITH_SPEC, batch, cluster, config, event, namespace, node, pod, service, workload};

const ADMISSION: &str = "admissionregistration.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// Group, version (empty for any), kind, rules. A kind that is not named here is [`PLAIN`].
static RULES: &[(&str, &str, &str, Rules)] = &[
    ("", "", "ConfigMap", config::CONFIG_MAP),
    ("", "", "Endpoints", config::ENDPOINTS),
    ("", "", "Event", event::CORE),
    ("", "", "LimitRange", cluster::LIMIT_RANGE),
    ("", "", "Namespace", namespace::RULES),
    ("", "", "Node", node::RULES),
    ("", "", "PersistentVolume", cluster::VOLUME),
    ("", "", "PersistentVolumeClaim", cluster::CLAIM),
    ("", "", "Pod", pod::RULES),
    ("", "", "PodTemplate", workload::POD_TEMPLATE),
    ("", "", "ReplicationController", workload::REPLICATION_CONTROLLER),
    ("", "", "ResourceQuota", cluster::RETURNED),
    ("", "", "Secret", config::SECRET),
    ("", "", "Service", service::RULES),
    ("", "", "ServiceAccount", config::SERVICE_ACCOUNT),
    ("apiextensions.k8s.io", "", "CustomResourceDefinition", cluster::DEFINITION),
    ("apiregistration.k8s.io", "", "APIService", cluster::API_SERVICE),
    ("apps", "", "ControllerRevision", workload::CONTROLLER_REVISION),
    ("apps", "", "DaemonSet", workload::DAEMON_SET),
    ("apps", "", "Deployment", workload::DEPLOYMENT),
    ("apps", "", "ReplicaSet", workload::REPLICA_SET),
    ("apps", "", "StatefulSet", workload::STATEFUL_SET),
    ("autoscaling", "v1", "HorizontalPodAutoscaler", cluster::AUTOSCALER_V1),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", cluster::AUTOSCALER_V2),
    ("batch", "", "CronJob", batch::CRON_JOB),
    ("batch", "", "Job", batch::JOB),
    ("certificates.k8s.io", "", "CertificateSigningRequest", cluster::SIGNING_REQUEST),
    ("coordination.k8s.io", "", "Lease", config::LEASE),
    ("discovery.k8s.io", "", "EndpointSlice", config::ENDPOINT_SLICE),
    ("events.k8s.io", "", "Event", event::NEW),
    ("flowcontrol.apiserver.k8s.io", "", "FlowSchema", cluster::FLOW_SCHEMA),
    ("flowcontrol.apiserver.k8s.io", "", "PriorityLevelConfiguration", cluster::PRIORITY_LEVEL),
    ("node.k8s.io", "", "RuntimeClass", cluster::RUNTIME_CLASS),
    ("policy", "", "PodDisruptionBudget", cluster::DISRUPTION_BUDGET),
    ("scheduling.k8s.io", "", "PriorityClass", cluster::PRIORITY_CLASS),
    (ADMISSION, "", "MutatingAdmissionPolicy", cluster::ADMISSION_POLICY),
    (ADMISSION, "", "MutatingAdmissionPolicyBinding", cluster::ADMISSION_BINDING),
    (ADMISSION, "", "MutatingWebhookConfiguration", cluster::MUTATING_WEBHOOKS),
    (ADMISSION, "", "ValidatingAdmissionPolicy", cluster::ADMISSION_POLICY),
    (ADMISSION, "", "ValidatingAdmissionPolicyBinding", cluster::ADMISSION_BINDING),
    (ADMISSION, "", "ValidatingWebhookConfiguration", cluster::VALIDATING_WEBHOOKS),
    (NETWORKING, "", "IPAddress", PLAIN),
    (NETWORKING, "", "Ingress", cluster::INGRESS),
    (NETWORKING, "", "IngressClass", cluster::INGRESS_CLASS),
    (NETWORKING, "", "NetworkPolicy", cluster::NETWORK_POLICY),
    (NETWORKING, "", "ServiceCIDR", WITH_SPEC),
    (RBAC, "", "ClusterRole", cluster::ROLE),
    (RBAC, "", "ClusterRoleBinding", cluster::ROLE_BINDING),
    (RBAC, "", "Role", cluster::ROLE),
    (RBAC, "", "RoleBinding", cluster::ROLE_BINDING),
    (RESOURCE, "", "DeviceClass", cluster::RETURNED_WITH_SPEC),
    (RESOURCE, "", "ResourceClaim", cluster::RESOURCE_CLAIM),
    (RESOURCE, "", "ResourceClaimTemplate", cluster::RESOURCE_CLAIM_TEMPLATE),
    (RESOURCE, "", "ResourceSlice", cluster::RESOURCE_SLICE),
    (STORAGE, "", "CSIDriver", cluster::CSI_DRIVER),
    (STORAGE, "", "CSINode", cluster::CSI_NODE),
    (STORAGE, "", "CSIStorageCapacity", cluster::CSI_CAPACITY),
    (STORAGE, "", "StorageClass", cluster::STORAGE_CLASS),
    (STORAGE, "", "VolumeAttachment", cluster::ATTACHMENT),
    (STORAGE, "", "VolumeAttributesClass", cluster::RETURNED),
];

/// The rules of a kind.
pub fn rules_of(gvk: &Gvk) -> &'static Rules {
    let fits = |(g, v, k, _): &&(&str, &str, &str, Rules)| *g == gvk.group && (v.is_empty() || *v == gvk.version) && *k == gvk.kind;
    RULES.iter().find(fits).map_or(&PLAIN_RULES, |(.., r)| r)
}

/// What a kind is stored as: itself, but for the kinds that are served in several forms.
pub fn stored_as(gvk: &Gvk) -> Gvk {
    let of = |group: &str, version: &str| Gvk { group: group.into(), version: version.into(), kind: gvk.kind.clone() };
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("events.k8s.io", "Event") => of("", "v1"),
        ("autoscaling", "HorizontalPodAutoscaler") => of("autoscaling", "v2"),
        _ => gvk.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_belongs_to_a_row() {
        let registry = crate::table::Registry::builtin();
        for (group, version, kind, _) in RULES {
            let rows = registry.rows().filter(|r| r.group == *group && r.kind == *kind && (version.is_empty() || r.version == *version));
            assert_ne!(rows.count(), 0, "{group}/{version} {kind}");
        }
    }
}
