//! What people read when a config is refused: `testdata/errors/*.yaml`, each with the expected
//! output beside it. `UPDATE_EXPECT=1` rewrites them; commit only a change that you can explain.

use std::fmt::Write as _;
use std::path::Path;

use trestle_config::{Source, parse};

#[test]
fn messages_are_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/errors");
    let mut cases: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 35, "only {} cases", cases.len());
    let mut wrong = String::new();
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&case).unwrap();
        let output = match parse(Source { name: &name, text: &text }) {
            Err(problems) => format!("{problems}\n"),
            Ok(document) if document.warnings().is_empty() => panic!("{name} is accepted"),
            Ok(document) => document.warnings().iter().fold(String::new(), |mut all, problem| {
                let _ = writeln!(all, "warning: {problem}\n{}", problem.excerpt().unwrap_or(""));
                all
            }),
        };
        let expected_file = case.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&expected_file, &output).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&expected_file).unwrap_or_default();
        if expected != output {
            let _ = write!(wrong, "=== {name}\n--- expected\n{expected}--- found\n{output}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
