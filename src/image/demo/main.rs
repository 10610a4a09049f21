//! The program in the demo and pause images: a small HTTP server, and the other things that one wants a container to do.
//!
//! Standard library only, so that the build script can compile it with a bare `rustc` into one static file.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const USAGE: &str = "usage: demo serve [PORT] | pause | sleep [SECONDS] | get URL [SECONDS] | exit CODE | echo WORDS… | count [EVERY_MS] \
| hog MIB | burn | cat FILE | write FILE TEXT | hostname | env | udp-echo PORT | udp-send HOST:PORT TEXT";
/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::from(1)
        }
    }
}

type Outcome = Result<u8, Box<dyn std::error::Error>>;

fn run(words: &[&str]) -> Outcome {
    match words {
        [] => serve(8080),
        ["serve"] => serve(8080),
        ["serve", port] => serve(port.parse()?),
        ["pause"] | ["sleep"] => forever(),
        ["sleep", seconds] => sleep(seconds.parse()?),
        ["get", url] => get(url, 5),
        ["get", url, seconds] => get(url, seconds.parse()?),
        ["exit", code] => Ok(code.parse()?),
        ["echo", rest @ ..] => say(&rest.join(" ")),
        ["count"] => count(1_000),
        ["count", every] => count(every.parse()?),
        ["hog", mib] => hog(mib.parse()?),
        ["burn"] => burn(),
        ["cat", file] => say(std::fs::read_to_string(file)?.trim_end_matches('\n')),
        ["write", file, text] => std::fs::write(file, text).map(|()| 0).map_err(Into::into),
        ["hostname"] => say(&hostname()),
        ["env"] => say(&environment()),
        ["udp-echo", port] => udp_echo(port.parse()?),
        ["udp-send", to, text] => udp_send(to, text),
        _ => Err(USAGE.into()),
    }
}

fn forever() -> Outcome {
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

fn sleep(seconds: f64) -> Outcome {
    std::thread::sleep(Duration::try_from_secs_f64(seconds)?);
    Ok(0)
}

fn say(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(0)
}

/// Numbered lines, to see that no line of a log is lost.
fn count(every_ms: u64) -> Outcome {
    for n in 1_u64.. {
        say(&format!("line {n}"))?;
        std::thread::sleep(Duration::from_millis(every_ms));
    }
    Ok(0)
}

/// Takes memory and keeps it; touches every page, since only touched pages count.
fn hog(mib: usize) -> Outcome {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for n in 0..mib {
        held.push(vec![u8::try_from(n % 255)? + 1; 1 << 20]);
    }
    say(&format!("holding {} MiB", held.len()))?;
    forever()
}

fn burn() -> Outcome {
    let mut x = 1_u64;
    loop {
        x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|s| s.trim().to_owned()).unwrap_or_default()
}

fn environment() -> String {
    let mut lines: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    lines.sort();
    lines.join("\n")
}

fn udp_echo(port: u16) -> Outcome {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    let mut buffer = [0; 2_048];
    loop {
        let (n, from) = socket.recv_from(&mut buffer)?;
        let reply = format!("{}: {}", hostname(), String::from_utf8_lossy(&buffer[..n]));
        socket.send_to(reply.as_bytes(), from)?;
    }
}

fn udp_send(to: &str, text: &str) -> Outcome {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send_to(text.as_bytes(), to)?;
    let mut buffer = [0; 2_048];
    let n = socket.recv(&mut buffer)?;
    say(&String::from_utf8_lossy(&buffer[..n]))
}

/// GET over plain HTTP; prints the body. Fails for any status but 2xx.
fn get(url: &str, seconds: u64) -> Outcome {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').map_or((rest, String::from("/")), |(host, path)| (host, format!("/{path}")));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let resolved = std::net::ToSocketAddrs::to_socket_addrs(&address)?.next().ok_or("no address")?;
    let timeout = Duration::from_secs(seconds.max(1));
    let mut stream = TcpStream::connect_timeout(&resolved, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: kontiki-demo\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or("");
    say(body.trim_end_matches('\n'))?;
    if status.starts_with('2') { Ok(0) } else { Err(format!("status {status}").into()) }
}

/// What requests share.
#[derive(Default)]
struct Server {
    requests: AtomicUsize,
    open: AtomicUsize,
    unhealthy: AtomicBool,
}

fn serve(port: u16) -> Outcome {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    say(&format!("serving on port {port} as {}", hostname()))?;
    let server = Arc::new(Server::default());
    for stream in listener.incoming() {
        let stream = stream?;
        while server.open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let server = Arc::clone(&server);
        server.open.fetch_add(1, Ordering::Relaxed);
        std::thread::spawn(move || {
            // A client that goes away in the middle is its own affair.
            let _ = converse(&server, &stream);
            server.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(0)
}

/// Serves one connection until the client closes it or asks for that.
fn converse(server: &Server, stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.take(1 << 20));
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let mut close = line.contains("HTTP/1.0");
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            close |= header.trim().eq_ignore_ascii_case("connection: close");
        }
        let (status, body) = answer(server, &target);
        let connection = if close { "close" } else { "keep-alive" };
        let mut out = stream;
        write!(
            out,
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        )?;
        if close {
            return Ok(());
        }
        reader.get_mut().set_limit(1 << 20);
    }
}

fn answer(server: &Server, target: &str) -> (&'static str, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok());
    match path {
        "/healthz" | "/readyz" if server.unhealthy.load(Ordering::Relaxed) => ("500 Internal Server Error", "unhealthy\n".into()),
        "/healthz" | "/readyz" => ("200 OK", "ok\n".into()),
        "/unhealthy" | "/healthy" => {
            server.unhealthy.store(path == "/unhealthy", Ordering::Relaxed);
            ("200 OK", "noted\n".into())
        }
        "/env" => ("200 OK", environment() + "\n"),
        "/slow" => {
            std::thread::sleep(Duration::from_millis(number("ms").unwrap_or(1_000).min(600_000)));
            ("200 OK", "done\n".into())
        }
        "/exit" => std::process::exit(number("code").and_then(|c| i32::try_from(c).ok()).unwrap_or(1)),
        "/" => {
            let n = server.requests.fetch_add(1, Ordering::Relaxed) + 1;
            let of = |name: &str| std::env::var(name).unwrap_or_default();
            let pod = Some(of("POD_NAME")).filter(|name| !name.is_empty()).unwrap_or_else(hostname);
            ("200 OK", format!("hello from {pod} version {} request {n}\n", of("DEMO_VERSION")))
        }
        _ => ("404 Not Found", "no such page\n".into()),
    }
}
