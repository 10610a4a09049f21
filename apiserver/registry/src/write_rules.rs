//! Preconditions of writes as a decision table: every input meets exactly one row, and a test proves it.
//!
//! Deletion has its own file: [`crate::delete`].

use serde_json::Value;

use crate::field::{Errors, Path};
use crate::row::Row;
use crate::status::Status;
use crate::val::str_at;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH but for server-side apply: the object is the live one with the patch applied.
    Patch,
    /// PATCH by server-side apply.
    Apply,
}

/// What a client said of a number or a name that must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Nothing.
    Absent,
    /// What the store has.
    Equal,
    /// Something else.
    Different,
}

/// The facts that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteInput {
    /// What is asked for.
    pub write: Write,
    /// Whether there is such an object.
    pub exists: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The uid in the request.
    pub uid: Given,
    /// The resource version in the request.
    pub rv: Given,
    /// Whether a PUT may create objects of this kind.
    pub create_on_update: bool,
    /// Whether a PUT may leave out the resource version.
    pub unconditional: bool,
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A creation must not give a resource version.
    RvOnCreate,
    /// There is one already.
    AlreadyExists,
    /// There is one already, and it is being deleted.
    BeingDeleted,
    /// There is none.
    NotFound,
    /// The uid is another's.
    WrongUid,
    /// Somebody else wrote first.
    Modified,
    /// This kind wants a resource version.
    RvRequired,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteDecision {
    /// Store a new object, if there is still none.
    Insert,
    /// Store over the object, if it is still at the revision that was read.
    Replace,
    /// Nothing.
    Refuse(Refusal),
}

/// A row of the table. `None` is "whatever".
struct Rule {
    writes: &'static [Write],
    exists: Option<bool>,
    deleting: Option<bool>,
    uid: &'static [Given],
    rv: &'static [Given],
    create_on_update: Option<bool>,
    unconditional: Option<bool>,
    then: WriteDecision,
}

use Given::{Absent, Different, Equal};
use Refusal::*;
use Write::{Apply, Create, Patch, Update};
use WriteDecision::{Insert, Refuse, Replace};

const ANY: &[Given] = &[Absent, Equal, Different];
const OK: &[Given] = &[Absent, Equal];
const NONE: &[Given] = &[Absent];
const SOME: &[Given] = &[Equal, Different];
const SAME: &[Given] = &[Equal];
const OTHER: &[Given] = &[Different];
const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);
const X: Option<bool> = None;

macro_rules! rules {
    ($($writes:expr, $exists:expr, $deleting:expr, $uid:expr, $rv:expr, $upsert:expr, $uncond:expr, $then:expr;)*) => {
        &[$(Rule { writes: &$writes, exists: $exists, deleting: $deleting, uid: $uid, rv: $rv,
                   create_on_update: $upsert, unconditional: $uncond, then: $then },)*]
    };
}

// The uid is looked at before the resource version, as the store of kube-apiserver does. Where nothing exists, a uid that is given is
// "different": it names an object that is gone. The resource version is then no precondition, because there is nothing to compare with.
static RULES: &[Rule] = rules! {
    // writes                 exists deleting uid   rv     upsert uncond then
    [Create],                 X,     X,       ANY,   SOME,  X,     X,     Refuse(RvOnCreate);
    [Create],                 NO,    X,       ANY,   NONE,  X,     X,     Insert;
    [Create],                 YES,   NO,      ANY,   NONE,  X,     X,     Refuse(AlreadyExists);
    [Create],                 YES,   YES,     ANY,   NONE,  X,     X,     Refuse(BeingDeleted);
    [Update],                 NO,    X,       ANY,   ANY,   NO,    X,     Refuse(NotFound);
    [Update],                 NO,    X,       OTHER, ANY,   YES,   X,     Refuse(WrongUid);
    [Update],                 NO,    X,       OK,    ANY,   YES,   X,     Insert;
    [Patch],                  NO,    X,       ANY,   ANY,   X,     X,     Refuse(NotFound);
    [Apply],                  NO,    X,       OTHER, ANY,   X,     X,     Refuse(WrongUid);
    [Apply],                  NO,    X,       OK,    ANY,   X,     X,     Insert;
    [Update, Patch, Apply],   YES,   X,       OTHER, ANY,   X,     X,     Refuse(WrongUid);
    [Update, Patch, Apply],   YES,   X,       OK,    OTHER, X,     X,     Refuse(Modified);
    [Update, Patch, Apply],   YES,   X,       OK,    SAME,  X,     X,     Replace;
    [Patch, Apply],           YES,   X,       OK,    NONE,  X,     X,     Replace;
    [Update],                 YES,   X,       OK,    NONE,  X,     YES,   Replace;
    [Update],                 YES,   X,       OK,    NONE,  X,     NO,    Refuse(RvRequired);
};

impl Rule {
    fn matches(&self, i: &WriteInput) -> bool {
        let is = |want: Option<bool>, have: bool| want.is_none_or(|w| w == have);
        self.writes.contains(&i.write)
            && is(self.exists, i.exists)
            && is(self.deleting, i.deleting)
            && self.uid.contains(&i.uid)
            && self.rv.contains(&i.rv)
            && is(self.create_on_update, i.create_on_update)
            && is(self.unconditional, i.unconditional)
    }
}

/// Decides a write from the facts.
pub fn decide(input: &WriteInput) -> WriteDecision {
    RULES.iter().find(|r| r.matches(input)).map(|r| r.then).expect("the table covers every input: a test walks them all")
}

/// Decides a write of `obj` where the store has `live`. A resource version that is no number is an error of its own.
pub fn decide_write(row: &Row, write: Write, obj: &Value, live: Option<&Value>) -> Result<WriteDecision, Status> {
    let uid = str_at(obj, &["metadata", "uid"]);
    let rv = str_at(obj, &["metadata", "resourceVersion"]);
    if !rv.is_empty() && rv.parse::<u64>().is_err() {
        return Err(Status::bare_error(format!("strconv.ParseUint: parsing {}: invalid syntax", crate::val::go_quote(rv))));
    }
    let given = |text: &str, field: &str| match live.map(|l| str_at(l, &["metadata", field])) {
        _ if text.is_empty() || (text == "0" && field == "resourceVersion") => Absent,
        Some(have) if have == text => Equal,
        _ => Different,
    };
    Ok(decide(&WriteInput {
        write,
        exists: live.is_some(),
        deleting: live.is_some_and(|l| l["metadata"]["deletionTimestamp"].is_string()),
        uid: given(uid, "uid"),
        rv: given(rv, "resourceVersion"),
        create_on_update: row.rules.create_on_update,
        unconditional: row.rules.unconditional_update,
    }))
}

/// The answer to a write that is refused.
pub fn refusal(row: &Row, why: Refusal, name: &str, obj: &Value, live: Option<&Value>) -> Status {
    match why {
        RvOnCreate => Status::bare_error("resourceVersion should not be set on objects to be created"),
        AlreadyExists => Status::already_exists(row, name, false),
        BeingDeleted => Status::already_exists(row, name, true),
        NotFound => Status::not_found(row, name),
        Modified => Status::modified(row, name),
        RvRequired => {
            let mut e = Errors::default();
            e.invalid(&Path::new("metadata.resourceVersion"), 0, "must be specified for an update");
            // The message names the plural resource where every other 422 names the kind.
            Status::invalid_kind(&row.group, &row.plural, name, &e)
        }
        WrongUid => {
            let want = str_at(obj, &["metadata", "uid"]);
            let have = live.map_or("", |l| str_at(l, &["metadata", "uid"]));
            let ns = str_at(live.unwrap_or(obj), &["metadata", "namespace"]);
            let key = row.storage_key(ns, name);
            Status::conflict(
                row,
                name,
                &format!(
                    "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in \
                     precondition: {want}, UID in object meta: {have}"
                ),
            )
        }
    }
}

/// Whether an update that is about to be stored completes a deletion: the object goes instead of being stored.
///
/// `old` is the live object, `new` what would be stored.
pub fn completes_deletion(new: &Value, old: &Value) -> bool {
    let grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let none = |path: &[&str]| crate::val::list_at(new, path).is_empty();
    let is_namespace = new["kind"] == "Namespace" && new["apiVersion"] == "v1";
    old["metadata"]["deletionTimestamp"].is_string()
        && grace == 0
        && none(&["metadata", "finalizers"])
        && (!is_namespace || none(&["spec", "finalizers"]))
}

/// Whether storing `new` would change nothing: such a write is answered with the live object and not carried out.
///
/// `managedFields` do not count unless something else differs, but for the set of entries themselves: timestamps are left out.
pub fn is_no_op(new: &Value, old: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        crate::val::take(&mut v, &["metadata", "resourceVersion"]);
        for entry in crate::val::list_mut(&mut v, &["metadata", "managedFields"]) {
            crate::val::take(entry, &["time"]);
        }
        v
    };
    strip(new) == strip(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_meets_exactly_one_row() {
        let bools = [false, true];
        let mut seen = 0;
        for write in [Create, Update, Patch, Apply] {
            for exists in bools {
                for deleting in bools {
                    for uid in [Absent, Equal, Different] {
                        for rv in [Absent, Equal, Different] {
                            for create_on_update in bools {
                                for unconditional in bools {
                                    let i = WriteInput { write, exists, deleting, uid, rv, create_on_update, unconditional };
                                    assert_eq!(RULES.iter().filter(|r| r.matches(&i)).count(), 1, "{i:?}");
                                    seen += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(seen, 4 * 2 * 2 * 3 * 3 * 2 * 2);
    }

    #[test]
    fn a_write_that_changes_only_times_of_managers_is_none() {
        let old =
            serde_json::json!({"metadata": {"resourceVersion": "5", "managedFields": [{"manager": "a", "time": "x"}]}, "data": {"k": "v"}});
        let mut new = old.clone();
        new["metadata"]["resourceVersion"] = "".into();
        new["metadata"]["managedFields"][0]["time"] = "y".into();
        assert!(is_no_op(&new, &old));
        new["metadata"]["managedFields"][0]["manager"] = "b".into();
        assert!(!is_no_op(&new, &old));
    }
}
