//! Syntax of names, keys and values, with the texts of apimachinery `pkg/util/validation`.

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
                             and end with an alphanumeric character";
const SUBDOMAIN_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, \
                              and end with an alphanumeric character";
const LABEL_1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_MSG: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character";
const VALUE_FMT: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY_MSG: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";

/// What the name of an object may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// DNS-1123 subdomain, at most 253 bytes.
    Subdomain,
    /// DNS-1123 label, at most 63 bytes.
    Label,
    /// DNS-1035 label: starts with a letter.
    Label1035,
    /// Anything that can stand alone in a path.
    PathSegment,
}

impl NameRule {
    /// What is wrong with a name. `prefix`: it is a `generateName`, whose last dash is followed by a suffix.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let masked =
            if prefix && name.len() > 1 && name.ends_with('-') { format!("{}a", &name[..name.len() - 2]) } else { name.to_string() };
        match self {
            Self::Subdomain => dns1123_subdomain(&masked),
            Self::Label => dns1123_label(&masked),
            Self::Label1035 => dns1035_label(&masked),
            Self::PathSegment => path_segment(name, prefix),
        }
    }
}

fn max_len(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn regex_text(msg: &str, fmt: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    let examples = examples.join(" or ");
    format!("{msg} (e.g. {examples}regex used for validation is '{fmt}')")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty() && lower_alnum(b[0]) && lower_alnum(b[b.len() - 1]) && b.iter().all(|c| lower_alnum(*c) || *c == b'-')
}

/// Whether the text is a DNS-1123 label within its length.
pub fn is_dns1123_label(s: &str) -> bool {
    s.len() <= 63 && is_label(s)
}

/// Whether the text is a DNS-1123 subdomain within its length.
pub fn is_dns1123_subdomain(s: &str) -> bool {
    s.len() <= 253 && s.split('.').all(is_label)
}

/// What is wrong with a DNS-1123 label.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(max_len(63));
    }
    if !is_label(s) {
        // A name that would do as a subdomain is told that dots are the trouble.
        let msg = if s.split('.').all(is_label) {
            "must not contain dots".into()
        } else {
            regex_text(LABEL_MSG, LABEL_FMT, &["my-name", "123-abc"])
        };
        out.push(msg);
    }
    out
}

/// What is wrong with a DNS-1123 subdomain.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(max_len(253));
    }
    if !s.split('.').all(is_label) {
        out.push(regex_text(SUBDOMAIN_MSG, SUBDOMAIN_FMT, &["example.com"]));
    }
    out
}

/// What is wrong with a DNS-1035 label.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(max_len(63));
    }
    if !is_label(s) || !s.as_bytes()[0].is_ascii_lowercase() {
        out.push(regex_text(LABEL_1035_MSG, LABEL_1035_FMT, &["my-name", "abc-123"]));
    }
    out
}

/// What keeps a name from standing alone in a path.
pub fn path_segment(s: &str, prefix: bool) -> Vec<String> {
    let mut out = Vec::new();
    if !prefix && (s == "." || s == "..") {
        out.push(format!("may not be '{s}'"));
    }
    for c in ["/", "%"] {
        if s.contains(c) {
            out.push(format!("may not contain '{c}'"));
        }
    }
    out
}

fn is_name_part(s: &str) -> bool {
    let b = s.as_bytes();
    let alnum = |c: u8| c.is_ascii_alphanumeric();
    !b.is_empty() && alnum(b[0]) && alnum(b[b.len() - 1]) && b.iter().all(|c| alnum(*c) || matches!(c, b'-' | b'_' | b'.'))
}

/// What is wrong with a qualified name: a label key, a finalizer, a resource name.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".into());
            } else {
                out.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            let text = regex_text(&format!("a valid label key {QUALIFIED_MSG}"), QUALIFIED_FMT, &["MyName", "my.name", "123-abc"]);
            return vec![format!("{text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        out.push(format!("name part {}", max_len(63)));
    }
    if !is_name_part(name) {
        out.push(format!("name part {}", regex_text(QUALIFIED_MSG, QUALIFIED_FMT, &["MyName", "my.name", "123-abc"])));
    }
    out
}

/// What is wrong with a label value.
pub fn label_value(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(max_len(63));
    }
    if !s.is_empty() && !is_name_part(s) {
        out.push(regex_text(VALUE_MSG, VALUE_FMT, &["MyValue", "my_value", "12345"]));
    }
    out
}

/// What is wrong with a key of a ConfigMap or Secret.
pub fn config_key(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(max_len(253));
    }
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        out.push(regex_text(CONFIG_KEY_MSG, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match s {
        "." => out.push("must not be '.'".into()),
        ".." => out.push("must not be '..'".into()),
        s if s.starts_with("..") => out.push("must not start with '..'".into()),
        _ => {}
    }
    out
}

/// What is wrong with the name of a port.
pub fn port_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 15 {
        out.push("must be no more than 15 characters".into());
    }
    if s.is_empty() || !s.bytes().all(|b| lower_alnum(b) || b == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        out.push("must not begin or end with a hyphen".into());
    }
    out
}

/// What is wrong with the name of an environment variable (the relaxed rule).
pub fn env_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.is_empty() || s.bytes().any(|b| b == b'=' || !(0x20..0x7f).contains(&b)) {
        out.push("a valid environment variable name must consist only of printable ASCII characters other than '='".into());
    }
    out
}

/// What is wrong with a port number.
pub fn port_number(n: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&n)).then_some("must be between 1 and 65535, inclusive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_table() {
        let long = "a".repeat(64);
        for (rule, good, bad) in [
            (NameRule::Subdomain, &["a", "a.b-c.0", "0"][..], &["", "A", "a_b", "-a", "a-", "a..b", ".a"][..]),
            (NameRule::Label, &["a", "0-1"], &["a.b", "", "a_", &long]),
            (NameRule::Label1035, &["a", "a-0"], &["0a", "", "-"]),
            (NameRule::PathSegment, &["system:node", "A_b"], &[".", "..", "a/b", "a%"]),
        ] {
            for g in good {
                assert!(rule.check(g, false).is_empty(), "{rule:?} {g}");
            }
            for b in bad {
                assert!(!rule.check(b, false).is_empty(), "{rule:?} {b}");
            }
        }
        assert!(NameRule::Subdomain.check("web-", true).is_empty());
    }

    #[test]
    fn keys_and_values() {
        for good in ["app", "example.com/app", "A.b_c-d"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "a b", "/a", "a/", "a/b/c", "-a", "Ex.com/a"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty() && label_value("a.B-1").is_empty());
        assert!(!label_value("c d").is_empty() && !label_value(&"x".repeat(64)).is_empty());
        assert!(config_key("a.b").is_empty() && !config_key("..a").is_empty() && !config_key("a/b").is_empty());
        assert!(port_name("http-1").is_empty() && !port_name("80").is_empty() && !port_name("a--b").is_empty());
    }
}
