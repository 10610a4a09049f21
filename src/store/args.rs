//! The command line of `kontiki store`: made of the store's own table of etcd's flags, and read as Go reads flags.

use std::ffi::OsString;

use anyhow::Result;
use clap::error::Error;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use kontiki_store::flags::{Effect, FLAGS, Flag, Given, Kind};

/// `kontiki store`.
#[derive(Debug)]
pub(crate) struct StoreArgs {
    /// Flags and their values, as they were written.
    line: Vec<(String, String)>,
}

impl StoreArgs {
    /// The flags' values: of the command line, of `ETCD_…` variables, or of a file.
    pub(crate) fn given(&self) -> Result<Given> {
        let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let read = |path: &str| std::fs::read_to_string(path).map_err(|e| e.to_string());
        Ok(Given::collect(self.line.clone(), environment, read)?)
    }
}

fn argument(flag: &'static Flag) -> Arg {
    let arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Set).alias(format!("experimental-{}", flag.name));
    let arg = match flag.also {
        Some(also) => arg.alias(also),
        None => arg,
    };
    let arg = match flag.kind {
        // As in Go: `--flag` is true, and `--flag false` is `--flag` and a stray word.
        Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
        Kind::Text(what) => arg.value_name(what).allow_hyphen_values(true),
    };
    let default = if flag.default.is_empty() { String::new() } else { format!(" [default: {}]", flag.default) };
    match flag.effect {
        Effect::Works => arg.help(format!("{}{default} [env: {}]", flag.help, flag.variable())),
        Effect::Idle(why) => {
            arg.help(format!("Does nothing: {why}")).help_heading("Taken because etcd's operators pass them").hide_short_help(true)
        }
        Effect::Refused(why) => arg.help(format!("Refused: {why}")).help_heading("Not built").hide_short_help(true),
    }
}

impl Args for StoreArgs {
    fn augment_args(command: Command) -> Command {
        let command =
            command.after_help("All flags are etcd's, and so are the variables. `--help` lists those, too, that are taken and do nothing.");
        FLAGS.iter().fold(command, |command, flag| command.arg(argument(flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StoreArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let said = |flag: &&Flag| matches.value_source(flag.name) == Some(ValueSource::CommandLine);
        let value = |flag: &Flag| Some((flag.name.to_owned(), matches.get_one::<String>(flag.name)?.clone()));
        Ok(Self { line: FLAGS.iter().filter(said).filter_map(value).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The command line as clap takes it. Go has one dash before long flags, too; and under the name `etcd` this program is its `store`.
pub(crate) fn command_line(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let called = words.first().map(std::path::PathBuf::from);
    if called.as_deref().and_then(std::path::Path::file_name).is_some_and(|name| name == "etcd") {
        words.insert(1, "store".into());
    }
    if words.get(1).is_some_and(|word| word == "store") {
        for word in words.iter_mut().skip(2) {
            let long = word.to_str().filter(|text| text.len() > 2 && text.starts_with('-') && text.as_bytes()[1].is_ascii_lowercase());
            if let Some(long) = long {
                *word = format!("-{long}").into();
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use kontiki_store::flags::apply;

    use super::*;
    use crate::cli::{self, Cli};

    fn line(words: &str) -> Vec<OsString> {
        command_line(words.split(' ').map(OsString::from))
    }

    fn parsed(words: &str) -> Vec<(String, String)> {
        let cli::Command::Store(args) = Cli::try_parse_from(line(words)).unwrap().command else { panic!("another command") };
        args.serve.line
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let quota = pair("quota-backend-bytes", "-1");
        assert_eq!(parsed("kontiki store --name a --quota-backend-bytes=-1"), [pair("name", "a"), quota.clone()]);
        assert_eq!(parsed("/usr/bin/etcd -name=a -quota-backend-bytes -1"), [pair("name", "a"), quota]);
        assert_eq!(
            parsed("kontiki store --client-cert-auth --pre-vote=false"),
            [pair("pre-vote", "false"), pair("client-cert-auth", "true")]
        );
        assert_eq!(parsed("kontiki store --listen-client 127.0.0.1:0"), [pair("listen-client-urls", "127.0.0.1:0")]);
        assert_eq!(parsed("kontiki store --experimental-compact-hash-check-time=1m"), [pair("compact-hash-check-time", "1m")]);
        let unknown = Cli::try_parse_from(line("kontiki store --listen-client-url x")).unwrap_err().to_string();
        assert!(unknown.contains("listen-client-urls"), "it says what is near: {unknown}");
        assert_eq!(line("kontiki agent -x"), ["kontiki", "agent", "-x"], "other commands are left alone");
    }

    #[test]
    fn an_empty_command_line_is_a_member() {
        let cli::Command::Store(args) = Cli::try_parse_from(["kontiki", "store"]).unwrap().command else { panic!("another command") };
        let env = std::sync::Arc::new(kontiki_proto::env::SystemEnv::new());
        let given = Given::collect(args.serve.line, [], |_| Err("no".into())).unwrap();
        assert_eq!(apply(&given, env).map(|a| a.config.name).map_err(|e| e.to_string()), Ok("default".into()));
    }
}
