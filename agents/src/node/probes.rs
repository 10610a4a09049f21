//! Carries out one probe: a command, an HTTP request, or a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kontiki_base::env::Env;

use super::runtime::{NetProbe, PodRuntime, RuntimeError};

/// Where a probe goes.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The container.
    pub container_id: String,
    /// Its sandbox.
    pub sandbox: String,
    /// The pod's address.
    pub ip: String,
}

/// The number of a port that may be given by name.
pub fn port_number(c: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(name) => {
            let named = c.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port);
            named.map_or_else(|| name.parse().ok(), |n| u16::try_from(n).ok())
        }
    }
}

/// One probe. `Err` is what the failure said.
pub async fn run(
    runtime: &dyn PodRuntime,
    env: &Arc<dyn Env>,
    c: &Container,
    probe: &Probe,
    at: &Target,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        return exec_probe(runtime, at, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    let net = if let Some(http) = &probe.http_get {
        http_target(c, http, &at.ip)?
    } else if let Some(tcp) = &probe.tcp_socket {
        let port = port_number(c, &tcp.port).ok_or("the probe's port is not a port of the container")?;
        NetProbe::Tcp { host: tcp.host.clone().unwrap_or_else(|| at.ip.clone()), port }
    } else {
        return Err("this sort of probe is not supported by this node agent".to_owned());
    };
    if let Some(answer) = runtime.probe(&at.sandbox, &net).await {
        return answer;
    }
    tokio::select! {
        answer = over_network(&net) => answer,
        () = env.sleep(timeout) => Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()),
    }
}

fn http_target(c: &Container, http: &HTTPGetAction, ip: &str) -> Result<NetProbe, String> {
    let port = port_number(c, &http.port).ok_or("the probe's port is not a port of the container")?;
    Ok(NetProbe::Http {
        host: http.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| ip.to_owned()),
        port,
        path: http.path.clone().filter(|p| p.starts_with('/')).unwrap_or_else(|| "/".to_owned()),
        headers: http.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
        tls: http.scheme.as_deref() == Some("HTTPS"),
    })
}

async fn exec_probe(runtime: &dyn PodRuntime, at: &Target, command: Vec<String>, timeout: Duration) -> Result<(), String> {
    match runtime.exec_sync(&at.container_id, command, timeout).await {
        Ok(out) if out.exit_code == 0 => Ok(()),
        Ok(out) => {
            let said = if out.stderr.is_empty() { out.stdout } else { out.stderr };
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            Err(if said.is_empty() { format!("exit code {}", out.exit_code) } else { said })
        }
        Err(RuntimeError::Timeout(_)) => Err(format!("command timed out after {}s", timeout.as_secs())),
        Err(e) => Err(e.to_string()),
    }
}

async fn over_network(probe: &NetProbe) -> Result<(), String> {
    let (host, port) = match probe {
        NetProbe::Tcp { host, port } | NetProbe::Http { host, port, .. } => (host, *port),
    };
    let stream = tokio::net::TcpStream::connect((host.as_str(), port)).await.map_err(|e| format!("dial tcp {host}:{port}: {e}"))?;
    let NetProbe::Http { path, headers, tls, .. } = probe else { return Ok(()) };
    if *tls {
        return Err("HTTPS probes are not supported by this node agent".to_owned());
    }
    http_get(stream, host, port, path, headers).await
}

async fn http_get(stream: tokio::net::TcpStream, host: &str, port: u16, path: &str, headers: &[(String, String)]) -> Result<(), String> {
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let authority = SocketAddr::new(host.parse().unwrap_or([0, 0, 0, 0].into()), port);
    let mut request =
        http::Request::get(path).header("User-Agent", "kube-probe/1.36").header("Connection", "close").header("Accept", "*/*");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("Host", authority.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|e| format!("Get \"http://{authority}{path}\": {e}"))?;
        match answer.status().as_u16() {
            200..=399 => Ok(()),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        }
    };
    // The connection is driven here and dies here: a probe leaves no task behind.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        // It may end together with the answer, which is then waiting.
        _ = connection => exchange.await,
    }
}

/// Runs a lifecycle hook to its end.
///
/// # Errors
/// What the hook said, or that it did not end in time.
pub async fn hook(
    runtime: &dyn PodRuntime,
    env: &Arc<dyn Env>,
    c: &Container,
    handler: &LifecycleHandler,
    at: &Target,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        env.sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)).min(timeout)).await;
        return Ok(());
    }
    let probe = Probe {
        exec: handler.exec.clone(),
        http_get: handler.http_get.clone(),
        tcp_socket: handler.tcp_socket.clone(),
        ..Probe::default()
    };
    run(runtime, env, c, &probe, at, timeout).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn answer_with(status: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1_024];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
        });
        port
    }

    #[tokio::test]
    async fn http_status_decides() {
        for (status, fine) in [("200 OK", true), ("302 Found", true), ("404 Not Found", false), ("500 Oops", false)] {
            let port = answer_with(status).await;
            let probe = NetProbe::Http { host: "127.0.0.1".into(), port, path: "/".into(), headers: Vec::new(), tls: false };
            assert_eq!(over_network(&probe).await.is_ok(), fine, "{status}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_fails() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe = NetProbe::Tcp { host: "127.0.0.1".into(), port };
        assert!(over_network(&probe).await.is_ok());
        drop(listener);
        assert!(over_network(&probe).await.unwrap_err().contains("refused"));
    }

    #[test]
    fn ports_by_name() {
        let c: Container = serde_json::from_str(r#"{"name":"c","ports":[{"name":"web","containerPort":80}]}"#).unwrap();
        let name = |s: &str| IntOrString::String(s.to_owned());
        assert_eq!(port_number(&c, &name("web")), Some(80));
        assert_eq!(port_number(&c, &name("81")), Some(81));
        assert_eq!(port_number(&c, &name("no")), None);
        assert_eq!(port_number(&c, &IntOrString::Int(99_999)), None);
    }
}
