//! The acceptance checklist (`tests/README.md`): each test that it names exists, and every line names one, or a command.

use std::path::Path;

const CHECKLIST: &str = include_str!("../README.md");

/// What stands between backquotes.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// What is wrong with a name of a test, if something is.
fn problem(name: &str) -> Option<String> {
    let (file, test) = name.split_once("::")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let Ok(text) = std::fs::read_to_string(root.join(file)) else { return Some(format!("{file} is not there")) };
    let defined = [format!("fn {test}("), format!("fn {test}<")];
    (!defined.iter().any(|def| text.contains(def.as_str()))).then(|| format!("{file} has no {test}"))
}

#[test]
fn every_line_of_the_checklist_names_a_test_that_exists() {
    let rows: Vec<&str> =
        CHECKLIST.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---") && *line != "| what | test |").collect();
    assert!(rows.len() > 40, "the tables were not found");
    let sections = CHECKLIST.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(sections, 9, "one for each line of the checklist");
    let mut wrong: Vec<String> = CHECKLIST.lines().flat_map(quoted).filter_map(problem).collect();
    let named = |row: &&str| {
        let test = row.rsplit('|').nth(1).unwrap_or_default();
        quoted(test).any(|name| name.contains("::") || name.starts_with("kontiki ") || name.starts_with("etcdctl "))
    };
    wrong.extend(rows.iter().filter(|row| !named(row)).map(|row| format!("no test in: {row}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_name_without_a_test_is_noticed() {
    assert_eq!(problem("store/tests/it/acceptance.rs::a_name_without_a_test_is_noticed"), None);
    assert!(problem("store/tests/it/acceptance.rs::nobody_wrote_this").is_some() && problem("store/no.rs::x").is_some());
}
