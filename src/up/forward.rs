//! One local address, forwarded to any living server: what the kubeconfig's default context points at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at a time; more wait in the system's accept queue.
const CONNECTIONS: usize = 4_096;

/// A server that does not accept in this time is passed over.
const CONNECT: Duration = Duration::from_millis(500);

/// Forwards until dropped. Each connection goes to the server that last worked, else to the next one that accepts.
pub(crate) async fn run(listen: SocketAddr, servers: Vec<SocketAddr>) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let servers: Arc<[SocketAddr]> = servers.into();
    let preferred = Arc::new(AtomicUsize::new(0));
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = room.clone().acquire_owned().await.context("the semaphore is never closed")?;
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some connections end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (servers, preferred) = (servers.clone(), preferred.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if let Some(mut server) = connect(&servers, &preferred).await {
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                // An error here is either end hanging up: both know already.
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

async fn connect(servers: &[SocketAddr], preferred: &AtomicUsize) -> Option<TcpStream> {
    let first = preferred.load(Ordering::Relaxed);
    for i in 0..servers.len() {
        let index = (first + i) % servers.len();
        if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(servers[index])).await {
            preferred.store(index, Ordering::Relaxed);
            return Some(stream);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_dead_server_is_passed_over() {
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![dead.local_addr().unwrap(), alive.local_addr().unwrap()];
        drop(dead);
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = front.local_addr().unwrap();
        drop(front);
        let forwarder = tokio::spawn(run(listen, servers));
        let server = tokio::spawn(async move {
            let (mut stream, _) = alive.accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
        });
        let mut client = loop {
            match TcpStream::connect(listen).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        server.await.unwrap();
        forwarder.abort();
    }
}
