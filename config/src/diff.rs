//! What changes between two documents: as a list of paths for programs, as a text diff for people.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use similar::{Algorithm, DiffTag, TextDiff, capture_diff_slices_deadline};

use crate::document::{Document, join};

/// Past this, a shorter diff is no longer looked for; what is shown stays right.
const TIME_MAX: Duration = Duration::from_millis(500);

/// One change. Values are those of [`Document::to_json`].
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Added { path: String, value: Json },
    Removed { path: String, value: Json },
    Changed { path: String, old: Json, new: Json },
}

impl Change {
    /// Of the new document; of the old one for [`Change::Removed`].
    pub fn path(&self) -> &str {
        match self {
            Change::Added { path, .. } | Change::Removed { path, .. } | Change::Changed { path, .. } => path,
        }
    }
}

/// The difference of two documents; [`fmt::Display`] is a unified diff of their canonical forms.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    changes: Vec<Change>,
    text: String,
}

impl Diff {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// In the order of the documents.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What leads from `old` to `new`.
pub fn diff(old: &Document, new: &Document) -> Diff {
    let mut changes = Vec::new();
    if old == new {
        return Diff { changes, text: String::new() };
    }
    values("", old.json(), new.json(), Instant::now() + TIME_MAX, &mut changes);
    let text = TextDiff::configure().timeout(TIME_MAX).diff_lines(old.canonical(), new.canonical());
    let text = text.unified_diff().context_radius(3).header("old", "new").to_string();
    Diff { changes, text }
}

fn values(path: &str, old: &Json, new: &Json, deadline: Instant, changes: &mut Vec<Change>) {
    match (old, new) {
        _ if old == new => {}
        (Json::Object(before), Json::Object(after)) => {
            for (key, old) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
                changes.push(Change::Removed { path: join(path, key), value: old.clone() });
            }
            for (key, new) in after {
                let path = join(path, key);
                match before.get(key) {
                    Some(old) => values(&path, old, new, deadline, changes),
                    None => changes.push(Change::Added { path, value: new.clone() }),
                }
            }
        }
        (Json::Array(before), Json::Array(after)) => lists(path, before, after, deadline, changes),
        _ => {
            changes.push(Change::Changed { path: path.to_owned(), old: old.clone(), new: new.clone() });
        }
    }
}

/// Items that moved up or down with their list are no change; an item in another's place is one.
fn lists(path: &str, before: &[Json], after: &[Json], deadline: Instant, changes: &mut Vec<Change>) {
    let at = |index: usize| format!("{path}[{index}]");
    let texts = |items: &[Json]| items.iter().map(Json::to_string).collect::<Vec<_>>();
    let (old_texts, new_texts) = (texts(before), texts(after));
    let ops = capture_diff_slices_deadline(Algorithm::Myers, &old_texts, &new_texts, Some(deadline));
    for op in ops {
        let (tag, old, new) = op.as_tag_tuple();
        if tag == DiffTag::Equal {
            continue;
        }
        let both = old.len().min(new.len());
        for (o, n) in old.clone().zip(new.clone()) {
            values(&at(n), &before[o], &after[n], deadline, changes);
        }
        for o in old.skip(both) {
            changes.push(Change::Removed { path: at(o), value: before[o].clone() });
        }
        for n in new.skip(both) {
            changes.push(Change::Added { path: at(n), value: after[n].clone() });
        }
    }
}
