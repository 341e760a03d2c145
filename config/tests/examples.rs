//! Every file in `examples/`, and every example in the docs that is a whole document or the part of one, is a config that a
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

/// The YAML in a page of the docs.
fn blocks(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&path).expect("the page is there");
    let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.map(str::to_owned).collect()
}

fn parses_without_a_warning(name: &str, text: &str) {
    match parse(Source { name, text }) {
        Ok(document) => assert!(document.warnings().is_empty(), "{:?}\n{text}", document.warnings()),
        Err(problems) => panic!("{problems}\n{text}"),
    }
}

#[test]
fn every_example_of_the_docs_on_balancing_parses_without_a_warning() {
    let blocks = blocks("balancing.md");
    assert!(blocks.len() >= 3);
    blocks.iter().for_each(|block| parses_without_a_warning("balancing.md", block));
}

#[test]
fn every_example_of_the_docs_on_ftp_parses_without_a_warning() {
    let blocks = blocks("ftp.md");
    assert!(blocks.len() >= 2);
    blocks.iter().for_each(|block| parses_without_a_warning("ftp.md", block));
}

/// Most show a part of a document: what stands around it is added.
#[test]
fn every_example_of_the_docs_on_routing_parses_without_a_warning() {
    let blocks = blocks("routing.md");
    assert!(blocks.len() >= 9, "only {}", blocks.len());
    for block in blocks {
        let first = block.split(':').next().unwrap_or_default();
        let indented = |by: usize| {
            let space = " ".repeat(by);
            block.lines().map(|line| format!("{space}{line}\n")).collect::<String>()
        };
        let mut text = match first {
            "listeners" | "networks" | "routes" | "policies" => block.clone(),
            "rules" => format!("routes:\n  r:\n{}", indented(4)),
            "match" => format!("routes:\n  r:\n    rules:\n      - pools: [app]\n{}", indented(8)),
            "cors" | "request_headers" => format!("policies:\n  p:\n{}", indented(4)),
            other => panic!("where does {other:?} stand?\n{block}"),
        };
        if !text.contains("\npools:") {
            let pools = ["admin", "app", "app-next", "shop", "wiki"]
                .map(|pool| format!("  {pool}: {{ members: [] }}\n"));
            text.push_str(&format!("\npools:\n{}", pools.concat()));
        }
        parses_without_a_warning("routing.md", &text);
    }
}
