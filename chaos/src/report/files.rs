//! A report as files: a page that needs nothing but itself, JSON, and JUnit for build servers.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::data::Data;
use crate::check::Outcome;
use crate::history::History;

/// The page without its data.
const PAGE: &str = include_str!("page.html");

/// Where the data go in the page.
const PLACE: &str = "/*DATA*/null";

/// The page in a run's folder.
pub const HTML: &str = "report.html";
/// The data of the page, for programs.
pub const JSON: &str = "report.json";
/// A test case for each check, for build servers.
pub const JUNIT: &str = "junit.xml";

/// Writes all three into a folder.
///
/// # Errors
/// The folder cannot be written.
pub fn write(dir: &Path, history: &History, outcomes: &[Outcome]) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let data = Data::new(history, outcomes);
    std::fs::write(dir.join(HTML), html(&data))?;
    std::fs::write(dir.join(JSON), serde_json::to_vec_pretty(&data).map_err(io::Error::other)?)?;
    std::fs::write(dir.join(JUNIT), junit(&data))
}

/// The page.
pub fn html(data: &Data) -> String {
    let json = serde_json::to_string(data).expect("plain data can be written");
    // Nothing in the data can end the script that holds it.
    let json = json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    PAGE.replacen(PLACE, &json, 1)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' => out.push(c),
            // XML 1.0 has no way to write other control characters.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// JUnit: a failed check is a failure, a vacuous one is skipped.
pub fn junit(data: &Data) -> String {
    let failures = data.checks.iter().filter(|c| c.verdict == "fail").count();
    let skipped = data.checks.iter().filter(|c| matches!(c.verdict, "vacuous" | "none")).count();
    let name = format!("chaos {} {} seed {}", data.header.world, data.header.plan, data.header.seed);
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let put = |out: &mut String, line: std::fmt::Arguments<'_>| out.write_fmt(line).expect("a string takes all");
    put(
        &mut out,
        format_args!(
            "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" skipped=\"{skipped}\" time=\"{:.3}\">\n",
            escape(name.trim()),
            data.checks.len(),
            data.length / 1_000.0
        ),
    );
    for check in &data.checks {
        put(&mut out, format_args!("  <testcase classname=\"chaos\" name=\"{}\">", escape(check.name)));
        match check.verdict {
            "fail" => {
                let first = check.violations.first().map(ToString::to_string).unwrap_or_default();
                let all: Vec<String> = check.violations.iter().map(ToString::to_string).collect();
                put(&mut out, format_args!("<failure message=\"{}\">{}</failure>", escape(&first), escape(&all.join("\n"))));
            }
            "vacuous" | "none" => put(&mut out, format_args!("<skipped message=\"{}\"/>", escape(&check.why))),
            _ => {}
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::judge;
    use crate::history::{Answer, Ask, Change, Header, Op};

    fn history() -> History {
        let ask = Ask::Put { key: "k".into(), value: "</script><b>".into() };
        let op = Op { client: 0, member: 0, call: 1_000_000, ret: 2_000_000, ask, answer: Answer::Written { revision: 2 } };
        let header = Header { plan: "a \"plan\"".into(), ..Header::default() };
        History { header, ops: vec![op], changes: vec![Change::put(2, "k", "other\u{1}")], ended: Some(3_000_000), ..History::default() }
    }

    #[test]
    fn three_files_tell_the_same() {
        let (dir, history) = (tempfile::tempdir().unwrap(), history());
        write(dir.path(), &history, &judge(&history)).unwrap();
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&read(JSON)).unwrap();
        assert_eq!(json["verdict"], "fail");
        let page = read(HTML);
        assert!(!page.contains(PLACE) && page.contains("\\u003c/script>"), "what clients wrote cannot end the script");
        assert!(!page.contains("http://") && !page.contains("https://"), "the page needs nothing else");
        let junit = read(JUNIT);
        assert!(
            junit.contains("failures=\"1\"") && junit.contains("name=\"linearizable\"") && junit.contains("a &quot;plan&quot;"),
            "{junit}"
        );
        assert!(!junit.contains('\u{1}'));
    }
}
