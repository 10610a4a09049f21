//! The grammar of label selectors as text.

use std::collections::BTreeSet;

use super::{Op, Requirement};
use crate::field::{Errors, Path};
use crate::validate::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    In,
    NotIn,
    Symbol(&'static str),
    Bad,
    End,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else { break };
        let (kind, len) = if is_symbol(first) {
            match SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
                Some(s) => (Kind::Symbol(s), s.len()),
                None => (Kind::Bad, first.len_utf8()),
            }
        } else {
            let len = rest.find(|c: char| is_symbol(c) || matches!(c, ' ' | '\t' | '\r' | '\n')).unwrap_or(rest.len());
            let kind = match &rest[..len] {
                "in" => Kind::In,
                "notin" => Kind::NotIn,
                _ => Kind::Word,
            };
            (kind, len)
        };
        out.push(Token { kind, text: &rest[..len] });
        rest = &rest[len..];
    }
    out.push(Token { kind: Kind::End, text: "" });
    out
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

/// Parses a whole selector.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    let mut p = Parser { tokens: tokens(text), at: 0 };
    let mut out = Vec::new();
    loop {
        let t = p.peek();
        match t.kind {
            Kind::Word | Kind::Symbol("!") => {}
            Kind::End => return Ok(out),
            _ => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", t.text)),
        }
        out.push(p.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
        let t = p.next();
        match t.kind {
            Kind::End => return Ok(out),
            Kind::Symbol(",") => {
                let t = p.peek();
                if !matches!(t.kind, Kind::Word | Kind::Symbol("!")) {
                    return Err(format!("found '{}', expected: identifier after ','", t.text));
                }
            }
            _ => return Err(format!("found '{}', expected: ',' or 'end of string'", t.text)),
        }
    }
}

impl<'a> Parser<'a> {
    /// The next token where a key or a value may stand: `in` and `notin` are words there.
    fn peek(&self) -> Token<'a> {
        let mut t = self.tokens[self.at.min(self.tokens.len() - 1)];
        if matches!(t.kind, Kind::In | Kind::NotIn) {
            t.kind = Kind::Word;
        }
        t
    }

    fn next(&mut self) -> Token<'a> {
        let t = self.peek();
        self.at += 1;
        t
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut t = self.next();
        let negated = t.kind == Kind::Symbol("!");
        if negated {
            t = self.next();
        }
        if t.kind != Kind::Word {
            return Err(format!("found '{}', expected: identifier", t.text));
        }
        let key = t.text;
        check_key(key)?;
        if negated {
            return requirement(key, Op::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek().kind, Kind::End | Kind::Symbol(",")) {
            return requirement(key, Op::Exists, BTreeSet::new());
        }
        let op = self.operator()?;
        let values = if matches!(op, Op::In | Op::NotIn) { self.list()? } else { self.value()? };
        requirement(key, op, values)
    }

    fn operator(&mut self) -> Result<Op, String> {
        let t = self.tokens[self.at.min(self.tokens.len() - 1)];
        self.at += 1;
        Ok(match t.kind {
            Kind::In => Op::In,
            Kind::NotIn => Op::NotIn,
            Kind::Symbol("=") => Op::Equals,
            Kind::Symbol("==") => Op::DoubleEquals,
            Kind::Symbol("!=") => Op::NotEquals,
            Kind::Symbol(">") => Op::Greater,
            Kind::Symbol("<") => Op::Less,
            _ => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", t.text)),
        })
    }

    fn value(&mut self) -> Result<BTreeSet<String>, String> {
        if matches!(self.peek().kind, Kind::End | Kind::Symbol(",")) {
            return Ok(BTreeSet::from([String::new()]));
        }
        let t = self.next();
        match t.kind {
            Kind::Word => Ok(BTreeSet::from([t.text.to_string()])),
            _ => Err(format!("found '{}', expected: identifier", t.text)),
        }
    }

    fn list(&mut self) -> Result<BTreeSet<String>, String> {
        let t = self.next();
        if t.kind != Kind::Symbol("(") {
            return Err(format!("found '{}' expected: '('", t.text));
        }
        let mut out = BTreeSet::new();
        // An empty place between commas or parentheses is the empty value.
        let mut place_is_empty = true;
        loop {
            let t = self.next();
            match t.kind {
                Kind::Word if place_is_empty => {
                    out.insert(t.text.to_string());
                    place_is_empty = false;
                }
                Kind::Symbol(",") => {
                    if place_is_empty {
                        out.insert(String::new());
                    }
                    place_is_empty = true;
                }
                Kind::Symbol(")") => {
                    if place_is_empty {
                        out.insert(String::new());
                    }
                    return Ok(out);
                }
                _ if place_is_empty => return Err(format!("found '{}', expected: ',', or identifier", t.text)),
                _ => return Err(format!("found '{}', expected: ',' or ')'", t.text)),
            }
        }
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let mut e = Errors::default();
    for why in names::qualified_name(key) {
        e.invalid(&Path::root(), key, why);
    }
    joined(&e)
}

fn joined(e: &Errors) -> Result<(), String> {
    match e.0.as_slice() {
        [] => Ok(()),
        [one] => Err(one.to_string()),
        many => Err(format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
    }
}

/// A requirement whose key, operator and values fit together.
pub(super) fn requirement(key: &str, op: Op, values: BTreeSet<String>) -> Result<Requirement, String> {
    check_key(key)?;
    let mut e = Errors::default();
    let path = Path::new("values");
    match op {
        Op::In | Op::NotIn if values.is_empty() => {
            e.invalid(&path, serde_json::json!([]), "for 'in', 'notin' operators, values set can't be empty")
        }
        Op::Exists | Op::DoesNotExist if !values.is_empty() => {
            e.invalid(&path, serde_json::json!(values), "values set must be empty for exists and does not exist");
        }
        Op::Greater | Op::Less => {
            for (i, v) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                e.invalid(&path.index(i), v.as_str(), "for 'Gt', 'Lt' operators, the value must be an integer");
            }
        }
        _ => {}
    }
    for (i, v) in values.iter().enumerate() {
        for why in names::label_value(v) {
            e.invalid(&path.index(i).key(key), v.as_str(), why);
        }
    }
    joined(&e)?;
    Ok(Requirement { key: key.into(), op, values })
}
