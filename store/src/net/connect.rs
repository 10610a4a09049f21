//! Connections to other members, plaintext or TLS. Made here and not by the gRPC library, because that holds on to the certificates that
//! it was first given: here each connection takes those of its moment.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use kontiki_base::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;

use super::{CONNECT, PING_TIMEOUT};
use crate::tls::CallerTls;

/// Makes connections to one address.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    /// Certificates, and who must be at the other end.
    tls: Option<(Arc<CallerTls>, ServerName<'static>)>,
}

impl Connector {
    /// A connector for `addr` (`http://host:port` or `https://host:port`), and the address as the gRPC library is to have it: it must not do TLS
    /// by itself.
    pub(super) fn to(addr: &str, tls: Option<Arc<CallerTls>>) -> Result<(Self, String), String> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_tcp_user_timeout(Some(PING_TIMEOUT));
        let Some(rest) = addr.strip_prefix("https://") else { return Ok((Self { tcp, tls: None }, addr.to_owned())) };
        let tls = tls.ok_or_else(|| format!("{addr} needs certificates, and this member has none for its peers"))?;
        let uri: http::Uri = addr.parse().map_err(|e| format!("{addr:?} is not a URL: {e}"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|e| format!("{addr:?} names nobody: {e}"))?;
        Ok((Self { tcp, tls: Some((tls, name)) }, format!("http://{rest}")))
    }
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        ready!(Service::poll_ready(&mut self.tcp, cx)).map_err(of_connect).into()
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let connecting = self.tcp.call(uri);
        let tls = self.tls.clone();
        Box::pin(async move {
            let tcp = connecting.await.map_err(of_connect)?.into_inner();
            let Some((tls, name)) = tls else { return Ok(TokioIo::new(Stream::Plain(tcp))) };
            let shaken = TlsConnector::from(tls.current()).connect(name, tcp);
            match tokio::time::timeout(CONNECT, shaken).await {
                Ok(stream) => Ok(TokioIo::new(Stream::Secure(Box::new(stream?)))),
                Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the TLS handshake took too long")),
            }
        })
    }
}

/// The system's own error where there is one: whoever called must be able to tell that a port is closed.
fn of_connect(error: impl std::error::Error) -> std::io::Error {
    let text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return std::io::Error::new(io.kind(), format!("{text}: {io}"));
        }
        cause = inner.source();
    }
    std::io::Error::other(text)
}

/// A connection to a peer.
pub(super) enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With.
    Secure(Box<TlsStream<TcpStream>>),
}

impl hyper_util::client::legacy::connect::Connection for Stream {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
