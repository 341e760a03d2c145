//! Every file in `examples/`, and every example in the docs that is a whole document, is a config that a
//! node would take.

use std::path::Path;

use trestle_config::{Source, parse};

#[test]
fn every_example_parses_without_a_warning() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let document = match parse(Source { name: &name, text: &text }) {
            Ok(document) => document,
            Err(problems) => panic!("{problems}"),
        };
        assert!(document.warnings().is_empty(), "{name}: {:?}", document.warnings());
        let again = parse(Source { name: "canonical", text: document.canonical() }).unwrap();
        assert_eq!(again, document, "{name}");
        seen += 1;
    }
    assert!(seen >= 2, "{}", folder.display());
}

#[test]
fn every_example_of_the_docs_on_balancing_parses_without_a_warning() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/balancing.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let blocks: Vec<&str> =
        text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect();
    assert!(blocks.len() >= 3, "{}", path.display());
    for block in blocks {
        match parse(Source { name: "balancing.md", text: block }) {
            Ok(document) => assert!(document.warnings().is_empty(), "{:?}\n{block}", document.warnings()),
            Err(problems) => panic!("{problems}\n{block}"),
        }
    }
}
