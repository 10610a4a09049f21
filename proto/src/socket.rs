//! Connections that notice when the other end is gone.
//!
//! A machine that dies says nothing, and neither does a link that is cut: what was sent waits to be acknowledged, and TCP repeats it at growing
//! intervals, by default for a quarter of an hour. A bound on that (`TCP_USER_TIMEOUT`, RFC 5482) ends a connection on which something was sent;
//! keep-alive probes end one on which nothing was.

use std::io;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use socket2::{SockRef, TcpKeepalive};

/// What was sent and is not acknowledged after this long ends the connection.
pub const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// A silent connection is probed after this long…
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// …then this often…
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// …and ends after so many probes without an answer.
pub const KEEPALIVE_PROBES: u32 = 4;

/// Sets a connection up: small messages leave at once, and a dead end is noticed.
///
/// # Errors
/// The system refuses.
pub fn tune(stream: &tokio::net::TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Makes connections that are set up in the same way.
pub fn connector(connect_timeout: Duration) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    // TLS is put around it by who uses it.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect_timeout));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_EVERY));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    tcp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_notice_a_dead_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let called = async {
            let mut connector = connector(Duration::from_secs(5));
            tonic::codegen::Service::call(&mut connector, url).await.unwrap().into_inner()
        };
        let (accepted, called) = tokio::join!(listener.accept(), called);
        let accepted = accepted.unwrap().0;
        tune(&accepted).unwrap();
        for stream in [&accepted, &called] {
            let socket = SockRef::from(stream);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
            assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_EVERY);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        }
    }
}
