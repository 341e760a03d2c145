//! Rule files as they travel: one text that has a rule file, all that it includes, and the lists of words that its
//! rules name.
//!
//! Whoever applies a config has the files ([`gather`]); nodes get the text and take it apart ([`Files::open`]). A text
//! without the mark at its beginning is one file by itself. Lines keep their numbers, comments don't travel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Fault, lex};

/// First line of what was gathered.
const MARK: &str = "# trestle: gathered rule files, 1\n";

/// Editors put it before the first line.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Begins the line that names a piece.
const PIECE: char = '\x1e';

/// Files that one file may bring with it, and how deep they may include each other.
const FILES_MAX: usize = 256;
const DEPTH_MAX: usize = 8;

/// Lines of a rule file that belong together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) file: &'a str,
    /// Number of its first line.
    pub(crate) first: usize,
    pub(crate) text: &'a str,
}

/// What was gathered, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Files<'a> {
    /// In their order.
    pub(crate) pieces: Vec<Piece<'a>>,
    /// Lists of words, by the name by which rules of a file call them.
    pub(crate) lists: BTreeMap<&'a str, &'a str>,
}

impl<'a> Files<'a> {
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(bytes).map_err(|_| Fault::at(1, "it is no UTF-8 text"))?;
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let Some(gathered) = text.strip_prefix(MARK) else {
            return Ok(Self { pieces: vec![Piece { file: "", first: 1, text }], lists: BTreeMap::new() });
        };
        let mut files = Self::default();
        for piece in gathered.split(PIECE).filter(|piece| !piece.is_empty()) {
            let broken = || Fault::at(1, "what was gathered of rule files is damaged");
            let (head, text) = piece.split_once('\n').ok_or_else(broken)?;
            match head.split_once(' ') {
                Some(("list", name)) => {
                    files.lists.insert(name, text);
                }
                Some((first, file)) => {
                    let first = first.parse().map_err(|_| broken())?;
                    files.pieces.push(Piece { file, first, text });
                }
                None => return Err(broken()),
            }
        }
        Ok(files)
    }
}

/// Reads a rule file of this machine, with all that it includes (`Include`, `IncludeOptional`, with `*` and `?` in
/// the name of a file) and the lists that its rules name, at most `most` bytes together.
///
/// # Errors
/// The file, the line and the reason.
pub fn gather(path: &Path, most: usize) -> Result<Vec<u8>, Fault> {
    let mut gathering = Gathering { out: MARK.to_owned(), lists: BTreeMap::new(), files: 0, most };
    gathering.file(path, 0)?;
    for (name, text) in &gathering.lists {
        gathering.out.push_str(&format!("{PIECE}list {name}\n{text}"));
    }
    let Gathering { out, .. } = gathering;
    if out.len() > most {
        return Err(Fault::at(1, format!("with what it includes it has more than {most} bytes")));
    }
    Ok(out.into_bytes())
}

struct Gathering {
    out: String,
    lists: BTreeMap<String, String>,
    files: usize,
    most: usize,
}

impl Gathering {
    fn file(&mut self, path: &Path, depth: usize) -> Result<(), Fault> {
        let shown = path.display().to_string();
        let text = self.read(path).map_err(|why| Fault::at(1, why).of(&shown))?;
        self.begin(&shown, 1);
        // Of a directive that goes on all lines are taken at once; what it includes stands behind it.
        let lines = lex::lines(&text, 1).map_err(|fault| fault.of(&shown))?;
        let mut included = lines.iter().filter(|line| is_include(&line.words)).peekable();
        let mut skips = false;
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(include) = included.next_if(|include| include.number == number) {
                let of = |fault: Fault| {
                    if fault.file.is_empty() { Fault { line: number, ..fault.of(&shown) } } else { fault }
                };
                self.include(&include.words, path, depth).map_err(of)?;
                self.begin(&shown, number);
                skips = line.ends_with('\\');
            } else if skips {
                skips = line.ends_with('\\');
            } else if !line.trim_start().starts_with('#') || line.ends_with('\\') {
                self.out.push_str(line);
            }
            self.out.push('\n');
        }
        for line in &lines {
            self.lists_of(&line.words, path).map_err(|why| Fault::at(line.number, why).of(&shown))?;
        }
        if self.out.len() > self.most {
            return Err(
                Fault::at(1, format!("rule files have more than {} bytes together", self.most)).of(&shown)
            );
        }
        Ok(())
    }

    fn begin(&mut self, file: &str, first: usize) {
        self.out.push_str(&format!("{PIECE}{first} {file}\n"));
    }

    fn include(&mut self, words: &[String], from: &Path, depth: usize) -> Result<(), Fault> {
        let [directive, pattern] = words else {
            return Err(Fault::at(1, "an include names one file, or some by `*`"));
        };
        if depth >= DEPTH_MAX {
            return Err(Fault::at(1, format!("files include each other more than {DEPTH_MAX} deep")));
        }
        let found = matching(&beside(from, pattern));
        if found.is_empty() && !directive.eq_ignore_ascii_case("IncludeOptional") {
            return Err(Fault::at(1, format!("there is no file `{pattern}`")));
        }
        found.iter().try_for_each(|path| self.file(path, depth + 1))
    }

    /// Reads the lists that a rule names.
    fn lists_of(&mut self, words: &[String], from: &Path) -> Result<(), String> {
        if words.first().is_none_or(|word| !word.eq_ignore_ascii_case("SecRule")) {
            return Ok(());
        }
        let Some(operator) = words.get(2) else { return Ok(()) };
        for name in list_names(operator) {
            if !self.lists.contains_key(name) {
                let text = self.read(&beside(from, name)).map_err(|why| format!("`{name}`: {why}"))?;
                self.lists.insert(name.to_owned(), text);
            }
        }
        Ok(())
    }

    fn read(&mut self, path: &Path) -> Result<String, String> {
        use std::io::Read;
        self.files += 1;
        if self.files > FILES_MAX {
            return Err(format!("more than {FILES_MAX} files"));
        }
        let mut bytes = Vec::new();
        // One that has no end, or whose other side nobody opens, would be waited for.
        if std::fs::metadata(path).is_ok_and(|file| !file.is_file()) {
            return Err("it is no regular file".to_owned());
        }
        let file = std::fs::File::open(path).map_err(|e| format!("can't read it: {e}"))?;
        file.take(self.most as u64 + 1).read_to_end(&mut bytes).map_err(|e| format!("can't read it: {e}"))?;
        if bytes.len() > self.most {
            return Err(format!("it has more than {} bytes", self.most));
        }
        if bytes.starts_with(BYTE_ORDER_MARK.encode_utf8(&mut [0; 4]).as_bytes()) {
            bytes.drain(..BYTE_ORDER_MARK.len_utf8());
        }
        // Lists of attacks have bytes of other character sets here and there.
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|e| e.into_bytes().iter().map(|b| char::from(*b)).collect());
        if text.contains(PIECE) || text.contains('\0') {
            return Err("it is no text".to_owned());
        }
        Ok(text)
    }
}

pub(crate) fn is_include(words: &[String]) -> bool {
    words.first().is_some_and(|word| {
        word.eq_ignore_ascii_case("Include") || word.eq_ignore_ascii_case("IncludeOptional")
    })
}

/// The files that an operator reads.
pub(crate) fn list_names(operator: &str) -> impl Iterator<Item = &str> {
    let operator = operator.trim_start().trim_start_matches('!');
    let (name, rest) = operator.split_once(char::is_whitespace).unwrap_or((operator, ""));
    let reads = ["@pmFromFile", "@pmf", "@ipMatchFromFile", "@ipMatchF"];
    let rest = if reads.iter().any(|known| known.eq_ignore_ascii_case(name)) { rest } else { "" };
    rest.split_whitespace()
}

fn beside(from: &Path, name: &str) -> PathBuf {
    from.parent().unwrap_or(Path::new("")).join(name)
}

/// Those that are there, by name; `*` and `?` count in the last part only.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        return if pattern.exists() { vec![pattern.to_owned()] } else { Vec::new() };
    }
    let folder = pattern.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let fits = |entry: std::fs::DirEntry| {
        let found = entry.file_name();
        wild(name.as_bytes(), found.as_encoded_bytes()).then(|| folder.join(found))
    };
    let mut found: Vec<_> = entries.flatten().filter_map(fits).collect();
    found.sort();
    found
}

fn wild(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            wild(rest, text) || text.split_first().is_some_and(|(_, text)| wild(pattern, text))
        }
        (Some((b'?', pattern)), Some((_, text))) => wild(pattern, text),
        (Some((a, pattern)), Some((b, text))) => a == b && wild(pattern, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_what_it_includes_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "main.conf",
            "# one\nSecMarker A\nInclude sub-*.conf\nIncludeOptional none.conf\nSecMarker B\n",
        );
        write("sub-1.conf", "SecRule ARGS \"@pmFromFile words.data\" \\\n\"id:1\"\n");
        write("sub-2.conf", "SecMarker C\n");
        write("words.data", "one\ntwo\n");
        let gathered = gather(&dir.path().join("main.conf"), 1 << 20).unwrap();
        let files = Files::open(&gathered).unwrap();
        assert_eq!(files.lists["words.data"], "one\ntwo\n");
        let directives: Vec<_> = files
            .pieces
            .iter()
            .flat_map(|piece| {
                let name = Path::new(piece.file).file_name().unwrap().to_str().unwrap();
                lex::lines(piece.text, piece.first)
                    .unwrap()
                    .into_iter()
                    .map(move |line| (name, line.number, line.words[1].clone()))
            })
            .collect();
        let expected =
            [("main.conf", 2, "A"), ("sub-1.conf", 1, "ARGS"), ("sub-2.conf", 1, "C"), ("main.conf", 5, "B")];
        assert_eq!(directives.len(), 4);
        for ((name, line, word), expected) in directives.iter().zip(expected) {
            assert_eq!((*name, *line, word.as_str()), expected);
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
        write("main.conf", b"\xef\xbb\xbfInclude sub.conf\nSecRule ARGS \"@pmf words.data\" id:1\n");
        write("sub.conf", b"\xef\xbb\xbfSecMarker A\n");
        write("words.data", b"\xef\xbb\xbfone\n\xff\n");
        let gathered = gather(&dir.path().join("main.conf"), 1 << 20).unwrap();
        let files = Files::open(&gathered).unwrap();
        assert!(files.pieces.iter().any(|piece| piece.text == "SecMarker A\n"), "{files:?}");
        assert_eq!(files.lists["words.data"], "one\n\u{ff}\n");
        assert!(crate::Rules::compile(&[&gathered]).is_ok());
        assert!(crate::Rules::compile(&["\u{feff}SecAction id:1\n".as_bytes()]).is_ok());
    }

    #[test]
    fn what_is_missing_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conf");
        std::fs::write(&path, "\nInclude gone.conf\n").unwrap();
        let fault = gather(&path, 1 << 20).unwrap_err();
        assert!(fault.to_string().ends_with("a.conf:2: there is no file `gone.conf`"), "{fault}");
        std::fs::write(&path, "SecMarker A\nSecRule ARGS \"@pmf gone.data\" id:1\n").unwrap();
        let fault = gather(&path, 1 << 20).unwrap_err();
        assert!(fault.to_string().contains("a.conf:2: `gone.data`: can't read it"), "{fault}");
        std::fs::write(&path, "Include a.conf\n").unwrap();
        assert!(gather(&path, 1 << 20).unwrap_err().to_string().contains("deep"));
        assert!(gather(&path, 4).unwrap_err().to_string().contains("more than 4 bytes"));
    }
}
