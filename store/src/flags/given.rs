//! Values of flags, and where they come from: a command line, the environment, a YAML file. As in etcd, a file stands alone.

use std::collections::BTreeMap;

use serde_yaml_ng::Value;

use super::FlagError;
use super::table::{FLAGS, Flag, flag};

/// Where a value stood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// On the command line.
    CommandLine,
    /// In the environment.
    Variable(String),
    /// In the file of `--config-file`.
    File(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::File(path) => f.write_str(path),
        }
    }
}

/// Values of flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    values: BTreeMap<&'static str, (String, Source)>,
    /// Variables that look like flags and are none. Kubernetes makes some for a service named etcd, so they are no error.
    pub stray_variables: Vec<String>,
}

/// Groups of flags in a file, and what their names begin with elsewhere.
const GROUPS: &[(&str, &str)] = &[("client-transport-security", ""), ("peer-transport-security", "peer-")];

/// Variables that say which etcd a client talks to, or how the binary behaves: no flags.
const NOT_FLAGS: &[&str] = &["ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY", "ETCD_VERSION"];

impl Given {
    /// What the command line says (pairs of a flag's name and its value), then the environment; or, if either names a file, that file
    /// alone.
    ///
    /// # Errors
    /// [`FlagError::Unknown`], [`FlagError::File`].
    pub fn collect(
        line: impl IntoIterator<Item = (String, String)>,
        environment: impl IntoIterator<Item = (String, String)>,
        read: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Self, FlagError> {
        let mut given = Self::default();
        for (name, value) in line {
            given.put(&name, value, Source::CommandLine)?;
        }
        for (variable, value) in environment {
            let Some(known) = FLAGS.iter().find(|flag| is_variable_of(&variable, flag)) else {
                if variable.starts_with("ETCD_") && !NOT_FLAGS.contains(&variable.as_str()) {
                    given.stray_variables.push(variable);
                }
                continue;
            };
            given.values.entry(known.name).or_insert((value, Source::Variable(variable)));
        }
        match given.values.remove("config-file") {
            Some((path, _)) if !path.is_empty() => {
                Self::from_file(&path, &read(&path).map_err(|why| FlagError::File { path: path.clone(), why })?)
            }
            _ => Ok(given),
        }
    }

    /// What a file says.
    fn from_file(path: &str, text: &str) -> Result<Self, FlagError> {
        let fail = |why: String| FlagError::File { path: path.to_owned(), why };
        let parsed: Value = serde_yaml_ng::from_str(text).map_err(|e| fail(e.to_string()))?;
        let Value::Mapping(rows) = parsed else { return Err(fail("it is not a list of `flag: value` lines".into())) };
        let mut given = Self::default();
        for (key, value) in rows {
            let Some(name) = key.as_str() else { return Err(fail(format!("{key:?} is not the name of a flag"))) };
            let source = || Source::File(path.to_owned());
            match (GROUPS.iter().find(|(group, _)| *group == name), value) {
                (_, Value::Null) => {}
                (Some((_, prefix)), Value::Mapping(rows)) => {
                    for (key, value) in rows {
                        let plain = key.as_str().unwrap_or_default();
                        let grouped = format!("{prefix}{plain}");
                        // `auto-tls` is `peer-auto-tls` in the second group; what only one group has keeps its name.
                        let name = if flag(&grouped).is_some() { grouped } else { plain.to_owned() };
                        given.put(&name, scalar(&value).ok_or_else(|| fail(format!("{name} is not a plain value")))?, source())?;
                    }
                }
                (_, value) => given.put(name, scalar(&value).ok_or_else(|| fail(format!("{name} is not a plain value")))?, source())?,
            }
        }
        Ok(given)
    }

    fn put(&mut self, name: &str, value: String, from: Source) -> Result<(), FlagError> {
        let Some(known) = flag(name) else { return Err(FlagError::Unknown { name: name.to_owned(), from }) };
        self.values.insert(known.name, (value, from));
        Ok(())
    }

    /// The value of a flag: what was given, or its default.
    pub fn get(&self, name: &'static str) -> &str {
        let default = FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default);
        self.values.get(name).map_or(default, |(value, _)| value)
    }

    /// Whether somebody has given this flag.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Every given flag, with its value and where that stood.
    pub fn all(&self) -> impl Iterator<Item = (&'static Flag, &str, &Source)> {
        FLAGS.iter().filter_map(|flag| self.values.get(flag.name).map(|(value, from)| (flag, value.as_str(), from)))
    }

    /// What is wrong with a flag's value.
    pub fn wrong(&self, name: &'static str, why: impl Into<String>) -> FlagError {
        let from = self.values.get(name).map_or(Source::CommandLine, |(_, from)| from.clone());
        FlagError::Value { name: name.to_owned(), value: self.get(name).to_owned(), from, why: why.into() }
    }
}

fn is_variable_of(variable: &str, flag: &Flag) -> bool {
    let plain = variable.strip_prefix("ETCD_EXPERIMENTAL_").map(|rest| format!("ETCD_{rest}"));
    let own = flag.variable();
    own == variable || plain.is_some_and(|plain| plain == own)
}

/// A plain value as text; a list as etcd writes it on a command line.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Sequence(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>().map(|items| items.join(",")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn no_file(path: &str) -> Result<String, String> {
        Err(format!("{path} was not to be read"))
    }

    #[test]
    fn the_command_line_goes_before_the_environment() {
        let line = pairs(&[("name", "line"), ("experimental-watch-progress-notify-interval", "5s")]);
        let environment = pairs(&[
            ("ETCD_NAME", "variable"),
            ("ETCD_MAX_TXN_OPS", "7"),
            ("ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT", "9"),
            ("ETCD_SERVICE_HOST", "10.0.0.1"),
            ("HOME", "/"),
        ]);
        let given = Given::collect(line, environment, no_file).unwrap();
        assert_eq!((given.get("name"), given.get("max-txn-ops"), given.get("heartbeat-interval")), ("line", "7", "100"));
        assert_eq!((given.get("watch-progress-notify-interval"), given.get("compaction-batch-limit")), ("5s", "9"));
        assert_eq!(given.stray_variables, ["ETCD_SERVICE_HOST"], "what Kubernetes makes for a service of that name");
        assert!(given.has("name") && !given.has("heartbeat-interval"));
    }

    #[test]
    fn a_file_stands_alone() {
        let text = "name: file\nmax-txn-ops: 9\nlog-outputs: [stderr, default]\nclient-transport-security:\n  cert-file: /c\n  client-cert-auth: true\npeer-transport-security:\n  cert-file: /p\n  trusted-ca-file: /ca\n";
        let given =
            Given::collect(pairs(&[("config-file", "f.yaml"), ("name", "line")]), pairs(&[("ETCD_MAX_TXN_OPS", "7")]), |_| Ok(text.into()))
                .unwrap();
        let got = |name| given.get(name);
        assert_eq!((got("name"), got("max-txn-ops"), got("log-outputs")), ("file", "9", "stderr,default"));
        assert_eq!(
            (got("cert-file"), got("client-cert-auth"), got("peer-cert-file"), got("peer-trusted-ca-file")),
            ("/c", "true", "/p", "/ca")
        );
    }

    #[test]
    fn what_is_unknown_is_said_to_be() {
        let unknown = Given::collect(pairs(&[("lisen-client-urls", "x")]), [], no_file).unwrap_err().to_string();
        assert_eq!(unknown, "unknown flag --lisen-client-urls (command line); `kontiki store --help` lists them all");
        let file =
            |text: &'static str| Given::collect(pairs(&[("config-file", "f")]), [], move |_| Ok(text.into())).unwrap_err().to_string();
        assert!(file("nonsense: 1").contains("unknown flag --nonsense (f)"));
        assert!(file("- a").contains("--config-file f: it is not a list"));
        assert!(file("name: {a: b}").contains("name is not a plain value"));
        let missing = Given::collect([], pairs(&[("ETCD_CONFIG_FILE", "gone")]), no_file).unwrap_err().to_string();
        assert!(missing.contains("--config-file gone: gone was not to be read"), "{missing}");
    }
}
