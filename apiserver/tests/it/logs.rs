//! `pods/log` through a node agent that is not real but speaks TLS and asks for the server's certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kontiki_apiserver::ClientIdentity;
use kontiki_mvcc::LocalKv;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;

use crate::common::{ADMIN, Pki, Server, config};

/// An agent that answers with the path that it was asked for, and then with a line now and then.
async fn agent(pki: &Pki) -> SocketAddr {
    let (cert, key) = pki.issue("system:node:n1", &["system:nodes"]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = builder
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                    let head = format!("{}\n", request.uri());
                    let lines = futures::stream::unfold(0, move |n| {
                        let head = head.clone();
                        async move {
                            if n > 0 {
                                tokio::time::sleep(Duration::from_millis(50)).await;
                            }
                            let line = if n == 0 { head } else { format!("line {n}\n") };
                            (n < 4).then(|| (Ok::<_, std::io::Error>(Frame::data(Bytes::from(line))), n + 1))
                        }
                    });
                    Ok::<_, std::io::Error>(Response::new(StreamBody::new(lines.boxed())))
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn logs_stream_from_the_node() {
    let (pki, kv) = (Pki::new(), LocalKv::new());
    let node = agent(&pki).await;
    let (cert, key) = pki.issue("kontiki-apiserver", &["system:masters"]);
    let mut config = config(&pki, &kv);
    config.node_client = Some(ClientIdentity { cert_pem: cert.into(), key_pem: key.into(), ca_pem: pki.ca_pem().into() });
    let s = Server::start_with(pki, kv, config).await;

    let pods = "/api/v1/namespaces/default/pods";
    s.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(s.post(pods, &pod).await.0, 201);
    assert_eq!(s.get(&format!("{pods}/p/log")).await.0, 204, "not scheduled");
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    assert_eq!(s.post(&format!("{pods}/p/binding"), &binding).await.0, 201);
    assert_eq!(s.get(&format!("{pods}/p/log")).await.0, 404, "no such node");
    let status = json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": node.port()}},
    });
    assert_eq!(s.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await.0, 201);
    assert_eq!(s.merge("/api/v1/nodes/n1/status", &json!({"status": status})).await.0, 200);

    let url = format!("https://localhost{pods}/p/log?follow=true&tailLines=5&pretty=1");
    let request = http::Request::builder().method(Method::GET).uri(url).header("authorization", format!("Bearer {ADMIN}"));
    let answer = s.open(request.body(Default::default()).unwrap(), None).await;
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "/containerLogs/default/p/c?follow=true&tailLines=5\n", "it is here before the rest is written");
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!(rest, "line 1\nline 2\nline 3\n");
    assert_eq!(s.get(&format!("{pods}/p/log?container=zz")).await.0, 400);
    assert_eq!(s.get(&format!("{pods}/p/exec?command=ls")).await.0, 501);
}
