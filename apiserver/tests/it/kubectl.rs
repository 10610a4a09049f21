//! The real kubectl against the server. Passed over, with a message, where there is none.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::common::{ADMIN, Server};

struct Kubectl {
    server: Server,
    home: tempfile::TempDir,
}

impl Kubectl {
    async fn start() -> Option<Self> {
        let found = Command::new("kubectl").args(["version", "--client"]).output().await;
        if found.is_err() {
            eprintln!("no kubectl on this machine: passed over");
            return None;
        }
        let server = Server::start().await;
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("ca.crt"), server.pki.ca_pem()).unwrap();
        Some(Self { server, home })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        let ca = self.home.path().join("ca.crt");
        command.env("HOME", self.home.path()).env_remove("KUBECONFIG").kill_on_drop(true);
        command.arg(format!("--server=https://localhost:{}", self.server.addr().port()));
        command.arg(format!("--certificate-authority={}", ca.display())).arg(format!("--token={ADMIN}")).args(args);
        command
    }

    async fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().await.unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {args:?}: {out}{err}");
        out.into_owned()
    }

    async fn apply(&self, manifest: &str) -> String {
        let file = self.home.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        self.run(&["apply", "-f", &file.display().to_string()]).await
    }
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: c
        image: nginx
        ports:
        - containerPort: 80
";

#[tokio::test]
async fn kubectl_creates_applies_scales_describes_and_deletes() {
    let Some(k) = Kubectl::start().await else { return };
    assert_eq!(k.run(&["create", "configmap", "a", "--from-literal=k=v"]).await, "configmap/a created\n");
    assert_eq!(k.run(&["get", "configmap", "a", "-o", "jsonpath={.data.k}"]).await, "v");
    assert_eq!(k.run(&["create", "namespace", "n1"]).await, "namespace/n1 created\n");
    assert_eq!(k.apply(DEPLOYMENT).await, "deployment.apps/web created\n");
    assert_eq!(k.apply(DEPLOYMENT).await, "deployment.apps/web unchanged\n");
    assert_eq!(k.apply(&DEPLOYMENT.replace("nginx", "nginx:2")).await, "deployment.apps/web configured\n");
    assert_eq!(k.run(&["scale", "deployment", "web", "--replicas=5"]).await, "deployment.apps/web scaled\n");
    let table = k.run(&["get", "deployments"]).await;
    assert!(table.starts_with("NAME") && table.contains("web") && table.contains("0/5"), "{table}");
    let text = k.run(&["describe", "deployment", "web"]).await;
    assert!(text.contains("Replicas:") && text.contains("5 desired") && text.contains("nginx:2"), "{text}");
    assert_eq!(k.run(&["label", "deployment", "web", "x=y"]).await, "deployment.apps/web labeled\n");
    assert_eq!(k.run(&["delete", "deployment", "web"]).await, "deployment.apps \"web\" deleted\n");
    assert_eq!(k.run(&["delete", "configmap", "--all"]).await, "configmap \"a\" deleted\n");
    let namespaces = k.run(&["get", "ns", "-o", "name"]).await;
    assert!(namespaces.contains("namespace/kube-system\n") && namespaces.contains("namespace/n1\n"), "{namespaces}");
    let explained = k.run(&["explain", "pod.spec.nodeName"]).await;
    assert!(explained.contains("nodeName"), "{explained}");
    assert!(k.run(&["auth", "can-i", "create", "pods"]).await.contains("yes"));
}

#[tokio::test]
async fn kubectl_watches() {
    let Some(k) = Kubectl::start().await else { return };
    let mut child = k.command(&["get", "configmaps", "-w", "-o", "name"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The list is empty: the first line can only come through the watch.
    tokio::time::sleep(Duration::from_millis(700)).await;
    k.run(&["create", "configmap", "seen"]).await;
    let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.expect("an event in time").unwrap();
    assert_eq!(line.as_deref(), Some("configmap/seen"));
    child.kill().await.unwrap();
}
