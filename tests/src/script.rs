//! Golden scripts: a script of the shell is run, and what it says is compared with a file, but for what differs from run to run.
//!
//! A script says what it does (`$ etcdctl put a 1`), and what came of it. Identifiers, ports, terms, times and sizes become words. Lines between
//! `%unordered` and `%end` are sorted after that.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use regex::Regex;

use crate::run::run;

/// A script may take this long on a busy machine.
const LIMIT: Duration = Duration::from_secs(150);

/// What becomes of whatever differs from run to run, in order.
const WORDS: &[(&str, &str)] = &[
    (r"\b[0-9.]+ (?:B|kB|MB)\b", "SIZE"),
    // The client's warnings: what the server said, with its code.
    (r#"^\{"level":"warn".*"error":"(.*)"\}$"#, "warning: $1"),
    (r#"^\{"level":"info".*"msg":"([^"]*)".*\}$"#, "info: $1"),
    (r"\b[0-9a-f]{13,16}\b", "ID"),
    (r"\b[0-9]{15,20}\b", "NUMBER"),
    (r#"("(?:raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|dbSizeQuota|hash)"):[0-9]+"#, "$1:N"),
    (r#"^("(?:RaftTerm|RaftIndex|RaftAppliedIndex|DBSize|Hash)") : [0-9]+$"#, "$1 : N"),
    (r"(SIZE, (?:true|false), (?:true|false)), [0-9]+, [0-9]+, [0-9]+,", "$1, N, N, N,"),
    (r"(\| +(?:true|false) \| +(?:true|false)) \| +[0-9]+ \| +[0-9]+ \| +[0-9]+ \|", "$1 | N | N | N |"),
    (r"^([A-Z]+, )[0-9]+$", "${1}HASH"),
    // What a snapshot has in it: internal records, too, are counted.
    (r"^[0-9a-f]{7,8}, ([0-9]+), [0-9]+, SIZE", "HASH, $1, N, SIZE"),
    (r"^\| +[0-9a-f]{7,8} \| +([0-9]+) \| +[0-9]+ \|", "| HASH | $1 | N |"),
    (r#"("(?:totalKey|totalSize)"):[0-9]+"#, "$1:N"),
    (r"took = [0-9.]+(?:ns|µs|ms|s)", "took = TIME"),
    (r#""took":"[0-9.]+(?:ns|µs|ms|s)""#, r#""took":"TIME""#),
    (r"remaining\([0-9]+s\)", "remaining(TIME)"),
    (r#"("ttl"|"TTL" ): ?[0-9]+"#, "$1: TIME"),
    (r"\b3\.[0-9]+\.[0-9]+\b", "VERSION"),
    // Tables: their columns are as wide as what is in them.
    (r"-{3,}", "---"),
    (r" {2,}", " "),
];

/// Runs a script with `bash`, after a prelude of functions, in a folder of its own; `names` become variables of it, and their values become
/// their names again in what it says.
///
/// # Panics
/// It cannot be run, or takes too long.
pub fn play(script: &Path, folder: &Path, names: &[(&str, String)]) -> String {
    std::fs::create_dir_all(folder).expect("a folder for the script");
    let prelude = script.with_file_name("prelude.sh");
    let mut command = Command::new("bash");
    command.current_dir(folder).arg("-c").arg(". \"$0\"; . \"$1\" 2>&1").arg(prelude).arg(script);
    command.envs(names.iter().map(|(name, value)| (name, value)));
    let output = run(&mut command, LIMIT);
    normal(&format!("{}{}", output.out, output.err), names)
}

/// What a script said, with words for what differs from run to run.
pub fn normal(said: &str, names: &[(&str, String)]) -> String {
    let words: Vec<_> = WORDS.iter().map(|(from, to)| (Regex::new(from).expect("a pattern of the table"), *to)).collect();
    let mut out: Vec<String> = Vec::new();
    let mut unordered = None;
    for line in said.lines() {
        match line {
            "%unordered" => unordered = Some(out.len() + 1),
            "%end" => {
                // The first line says what was asked.
                let from = unordered.take().expect("%end has a beginning").min(out.len());
                out[from..].sort();
            }
            line => {
                let named = names.iter().fold(line.to_owned(), |line, (name, value)| line.replace(value.as_str(), name));
                out.push(words.iter().fold(named, |line, (from, to)| from.replace_all(&line, *to).into_owned()).trim_end().to_owned());
            }
        }
    }
    out.join("\n") + "\n"
}

/// The first place where two texts differ, with what is around it; `None` if they do not.
pub fn difference(expected: &str, seen: &str) -> Option<String> {
    if expected == seen {
        return None;
    }
    let (left, right): (Vec<_>, Vec<_>) = (expected.lines().collect(), seen.lines().collect());
    let at = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let show = |lines: &[&str]| lines[at.saturating_sub(6).min(lines.len())..(at + 4).min(lines.len())].join("\n    ");
    Some(format!("line {}:\n  expected\n    {}\n  seen\n    {}", at + 1, show(&left), show(&right)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_becomes_words() {
        let names = [("LEADER", "127.0.0.1:41".to_owned())];
        for (said, expected) in [
            (
                "127.0.0.1:41 is healthy: successfully committed proposal: took = 1.5ms",
                "LEADER is healthy: successfully committed proposal: took = TIME",
            ),
            ("lease 26e7a20e2822ff0c granted with TTL(300s), remaining(299s)", "lease ID granted with TTL(300s), remaining(TIME)"),
            (
                r#""header":{"member_id":15163712682167158701,"revision":4,"raft_term":2}"#,
                r#""header":{"member_id":NUMBER,"revision":4,"raft_term":N}"#,
            ),
            (r#"{"level":"warn","ts":"x","error":"rpc error: code = A desc = b"}"#, "warning: rpc error: code = A desc = b"),
            ("| 20 kB |      false |", "| SIZE | false |"),
        ] {
            assert_eq!(normal(said, &names), format!("{expected}\n"));
        }
        assert_eq!(normal("%unordered\n$ x\nb\na\n%end\nc", &[]), "$ x\na\nb\nc\n");
    }

    #[test]
    fn the_first_difference_is_shown() {
        assert_eq!(difference("a\n", "a\n"), None);
        assert!(difference("a\nb\n", "a\nc\n").is_some_and(|text| text.starts_with("line 2:")));
        assert!(difference("a\n", "a\nc\n").is_some_and(|text| text.starts_with("line 2:")));
    }
}
