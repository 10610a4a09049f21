//! Log files of containers: the CRI format, reading with the options of `kubectl logs`, rotation.
//!
//! A record is a line `TIME STREAM TAG TEXT`; the tag `P` says that the text goes on in the next record. After rotation the older part of
//! a log stands beside it; what is served is the newest file, as the kubelet does it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;

use super::runtime::{LogSource, label, wire};
use super::time::parse_nanos;
use super::work::Workshop;

/// A log is rotated when it has grown to this.
pub const ROTATE_BYTES: u64 = 10 << 20;
/// So many older parts are kept.
const KEPT_PARTS: usize = 4;
const ROTATE_EVERY: Duration = Duration::from_secs(10);
/// A log that is followed is looked at this often.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
const BLOCK: usize = 64 << 10;
/// A record is at most the runtime's line limit and its time stamp; one that is longer is not a record.
const MAX_RECORD: usize = 1 << 20;

/// What a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail: Option<usize>,
    /// Only records from this time on; nanoseconds since the epoch.
    pub since_ns: Option<i64>,
    /// Each line with its time.
    pub timestamps: bool,
    /// End after so many bytes.
    pub limit: Option<usize>,
    /// Only `stdout` or `stderr`.
    pub stream: Option<String>,
    /// The log of the container that ended before.
    pub previous: bool,
}

impl LogOptions {
    /// From a query string.
    ///
    /// # Errors
    /// The name of the option that cannot be read.
    pub fn parse(query: &str, now_ms: i64) -> Result<Self, String> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let number = || value.parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(|| name.to_owned());
            let truth = || match value {
                "true" | "1" => Ok(true),
                "false" | "0" | "" => Ok(false),
                _ => Err(name.to_owned()),
            };
            match name {
                "follow" => options.follow = truth()?,
                "previous" => options.previous = truth()?,
                "timestamps" => options.timestamps = truth()?,
                "tailLines" => options.tail = Some(usize::try_from(number()?).unwrap_or(usize::MAX)),
                "limitBytes" => options.limit = Some(usize::try_from(number()?).unwrap_or(usize::MAX)),
                "sinceSeconds" => options.since_ns = Some((now_ms - number()?.saturating_mul(1_000)).saturating_mul(1_000_000)),
                "sinceTime" => {
                    let decoded = value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+");
                    options.since_ns = Some(parse_nanos(&decoded).ok_or_else(|| name.to_owned())?);
                }
                "stream" => options.stream = Some(value.to_lowercase()).filter(|s| s != "all"),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// A record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    /// Whether the text goes on in the next record.
    partial: bool,
    text: &'a [u8],
}

fn record(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Record { time, stream, partial: tag.first() == Some(&b'P'), text: parts.next().unwrap_or_default() })
}

/// Turns records into what the reader sees.
#[derive(Debug, Default)]
struct Printer {
    options: LogOptions,
    /// Bytes that do not make a whole record yet.
    rest: Vec<u8>,
    /// Whether the last record was partial: then the next one gets no time.
    inside: bool,
    sent: usize,
    /// Whether the limit has been reached.
    done: bool,
}

impl Printer {
    fn feed(&mut self, block: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(block);
        let mut out = Vec::new();
        let mut from = 0;
        let rest = std::mem::take(&mut self.rest);
        while let Some(n) = rest[from..].iter().position(|b| *b == b'\n') {
            self.print(&rest[from..from + n], &mut out);
            from += n + 1;
        }
        self.rest = rest[from..].to_vec();
        if self.rest.len() > MAX_RECORD {
            self.rest.clear();
        }
        if let Some(limit) = self.options.limit {
            out.truncate(limit.saturating_sub(self.sent));
            self.sent += out.len();
            self.done = self.sent >= limit;
        }
        out
    }

    fn print(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = record(line) else { return };
        let wanted = self.options.stream.as_ref().is_none_or(|s| s.as_bytes() == record.stream);
        let late = self
            .options
            .since_ns
            .is_none_or(|since| std::str::from_utf8(record.time).ok().and_then(parse_nanos).is_none_or(|t| t >= since));
        if !wanted || !late {
            return;
        }
        if self.options.timestamps && !self.inside {
            out.extend_from_slice(record.time);
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if !record.partial {
            out.push(b'\n');
        }
        self.inside = record.partial;
    }
}

/// Where the last `lines` lines of a log begin.
fn tail_offset(bytes: &[u8], lines: usize) -> usize {
    let mut seen = 0;
    let mut end = bytes.len();
    let mut start = bytes.len();
    while end > 0 {
        let begin = bytes[..end - 1].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        let whole = record(&bytes[begin..end]).is_none_or(|r| !r.partial);
        if whole {
            if seen == lines {
                return start;
            }
            seen += 1;
        }
        (start, end) = (begin, begin);
    }
    start
}

/// The end of a log as plain text, for a termination message.
pub fn tail_text(path: &Path, bytes: usize) -> Vec<u8> {
    let Ok(all) = std::fs::read(path) else { return Vec::new() };
    let mut printer = Printer::default();
    let mut text = printer.feed(&all[tail_offset(&all, 80)..]);
    let cut = text.len().saturating_sub(bytes);
    text.drain(..cut);
    text
}

/// Streams a log to `out` until it ends, the container ends, or the reader goes away.
///
/// # Errors
/// Of the file system.
pub async fn stream(shop: &Workshop, id: &str, source: LogSource, options: LogOptions, out: mpsc::Sender<Bytes>) -> io::Result<()> {
    match source {
        LogSource::Memory(bytes) => {
            let from = options.tail.map_or(0, |n| tail_offset(&bytes, n));
            let text = Printer { options, ..Printer::default() }.feed(&bytes[from..]);
            let _ = out.send(text.into()).await;
            Ok(())
        }
        LogSource::File(path) => stream_file(shop, id, &path, options, &out).await,
    }
}

async fn stream_file(shop: &Workshop, id: &str, path: &Path, options: LogOptions, out: &mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut file = tokio::fs::File::open(path).await?;
    let mut printer = Printer { options: options.clone(), ..Printer::default() };
    if let Some(lines) = options.tail {
        let size = file.metadata().await?.len();
        // A log may be larger than the limit of rotation until it is rotated; further back than this nobody looks.
        let from = size.saturating_sub(2 * ROTATE_BYTES);
        file.seek(io::SeekFrom::Start(from)).await?;
        let mut bytes = Vec::new();
        (&mut file).take(size - from).read_to_end(&mut bytes).await?;
        file.seek(io::SeekFrom::Start(from + tail_offset(&bytes, lines) as u64)).await?;
    }
    let mut block = vec![0; BLOCK];
    let mut ended = false;
    loop {
        let n = file.read(&mut block).await?;
        if n > 0 {
            let text = printer.feed(&block[..n]);
            if (!text.is_empty() && out.send(text.into()).await.is_err()) || printer.done {
                return Ok(());
            }
            continue;
        }
        if !options.follow || ended {
            return Ok(());
        }
        if let Some(next) = rotated(&file, path).await {
            file = next;
            continue;
        }
        tokio::select! {
            () = out.closed() => return Ok(()),
            () = shop.env.sleep(FOLLOW_EVERY) => {}
        }
        // Once more to the end after the container has ended: its last words may have been written in between.
        ended = shop.runtime.container_status(id).await.map_or(true, |s| s.state() == wire::ContainerState::ContainerExited);
    }
}

/// The file that has taken the place of the one that is open.
async fn rotated(open: &tokio::fs::File, path: &Path) -> Option<tokio::fs::File> {
    let here = tokio::fs::metadata(path).await.ok()?;
    let old = open.metadata().await.ok()?;
    if here.ino() == old.ino() { None } else { tokio::fs::File::open(path).await.ok() }
}

/// Rotates the logs of all running containers, for ever.
pub(super) async fn rotate_forever(shop: Arc<Workshop>) {
    loop {
        shop.env.sleep(ROTATE_EVERY).await;
        let containers = shop.runtime.list_containers(None).await.unwrap_or_default();
        for c in containers.into_iter().filter(|c| c.state() == wire::ContainerState::ContainerRunning) {
            let path = log_path(&shop.data_dir, &c);
            let full = tokio::fs::metadata(&path).await.is_ok_and(|m| m.len() >= ROTATE_BYTES);
            if full && let Err(error) = rotate(&shop, &c.id, &path).await {
                tracing::warn!(%error, path = %path.display(), "a log cannot be rotated");
            }
        }
    }
}

fn log_path(data_dir: &Path, c: &wire::Container) -> PathBuf {
    let word = |key: &str| c.labels.get(key).map(String::as_str).unwrap_or_default();
    let pod = format!("{}_{}_{}", word(label::POD_NAMESPACE), word(label::POD_NAME), word(label::POD_UID));
    let (name, attempt) = c.metadata.as_ref().map_or(("", 0), |m| (m.name.as_str(), m.attempt));
    data_dir.join("logs").join(pod).join(name).join(format!("{attempt}.log"))
}

async fn rotate(shop: &Workshop, id: &str, path: &Path) -> io::Result<()> {
    let older = PathBuf::from(format!("{}.{}", path.display(), shop.env.now_wall().0));
    tokio::fs::rename(path, &older).await?;
    if let Err(e) = shop.runtime.reopen_log(id).await {
        // The runtime goes on writing to the renamed file: it gets its name back.
        tokio::fs::rename(&older, path).await?;
        return Err(io::Error::other(e));
    }
    let Some(dir) = path.parent() else { return Ok(()) };
    let prefix = path.file_name().map(|n| format!("{}.", n.to_string_lossy())).unwrap_or_default();
    let mut parts = Vec::new();
    let mut entries = tokio::fs::read_dir(dir).await?;
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            parts.push(entry.path());
        }
    }
    parts.sort();
    let surplus = parts.len().saturating_sub(KEPT_PARTS);
    for part in &parts[..surplus] {
        tokio::fs::remove_file(part).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stderr F two\n\
        2026-01-01T00:00:03.000000000Z stdout P thr\n\
        2026-01-01T00:00:03.000000001Z stdout F ee\n\
        2026-01-01T00:00:04.000000000Z stdout F \n";

    fn show(query: &str) -> String {
        let options = LogOptions::parse(query, 0).unwrap();
        let from = options.tail.map_or(0, |n| tail_offset(LOG, n));
        String::from_utf8(Printer { options, ..Printer::default() }.feed(&LOG[from..])).unwrap()
    }

    #[test]
    fn options_choose() {
        let table = [
            ("", "one\ntwo\nthree\n\n"),
            ("tailLines=0", ""),
            ("tailLines=1", "\n"),
            ("tailLines=2", "three\n\n"),
            ("tailLines=99", "one\ntwo\nthree\n\n"),
            ("stream=stderr", "two\n"),
            ("limitBytes=5", "one\nt"),
            ("sinceTime=2026-01-01T00%3A00%3A03Z", "three\n\n"),
            ("tailLines=2&timestamps=true", "2026-01-01T00:00:03.000000000Z three\n2026-01-01T00:00:04.000000000Z \n"),
        ];
        for (query, text) in table {
            assert_eq!(show(query), text, "{query}");
        }
        for bad in ["tailLines=-1", "tailLines=x", "follow=perhaps", "sinceTime=soon"] {
            assert!(LogOptions::parse(bad, 0).is_err(), "{bad}");
        }
    }

    #[test]
    fn records_may_arrive_in_pieces() {
        let mut printer = Printer::default();
        let text: Vec<u8> = LOG.chunks(7).flat_map(|piece| printer.feed(piece)).collect();
        assert_eq!(text, b"one\ntwo\nthree\n\n");
    }
}
