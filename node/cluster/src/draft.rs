//! From a document and its files to what the cluster agrees on.
//!
//! A document names files of whoever applies it ([`Draft`]). The node that takes it stores what is in
//! them, and keys that stand in the document, under digests: a [`Proposal`] names digests only, all of
//! which are there or come with it, and what they name has been checked. No problem says anything of
//! what is in a file.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use trestle_config::model::{Content, Digest};
use trestle_config::{Config, Contents, Document, NamedContent, Problem, Rest};
use trestle_raft_store::{MAX_CONTENT, MAX_DOCUMENT, MAX_USES};
use zeroize::Zeroize;

use crate::vault::OVERHEAD;

/// A document, and the files that it names as whoever applies it has read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub document: Document,
    pub files: Files,
}

/// What is in files, by the path under which a document names them. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Files(Arc<Held>);

/// There are private keys among them: whoever has them last wipes them.
#[derive(Default, PartialEq, Eq)]
struct Held(BTreeMap<PathBuf, Arc<[u8]>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.values_mut().filter_map(Arc::get_mut).for_each(|bytes| bytes.zeroize());
    }
}

/// Where digests come from, and what is stored under them.
pub trait Stock {
    fn digest(&self, content: &[u8]) -> Digest;

    fn find(&self, digest: &Digest) -> Found;
}

/// What a [`Stock`] has under a digest.
pub enum Found {
    Content(Arc<[u8]>),
    /// It can't be told here, and is taken for good.
    Unseen,
    /// Why it can't be used.
    Problem(&'static str),
}

/// Without a cluster at hand: files are looked at, what is stored can't be.
#[derive(Clone, Copy, Debug)]
pub struct Offline;

impl Stock for Offline {
    fn digest(&self, content: &[u8]) -> Digest {
        Digest(Sha256::digest(content).into())
    }

    fn find(&self, _: &Digest) -> Found {
        Found::Unseen
    }
}

/// What can be agreed on.
#[derive(Clone, Debug)]
pub struct Proposal {
    document: Document,
    contents: Contents,
    digests: Vec<Digest>,
}

impl Draft {
    /// Of a document that names no files.
    pub fn plain(document: Document) -> Self {
        Self { document, files: Files::default() }
    }

    /// Of a document whose files are read here, relative to `dir`.
    ///
    /// # Errors
    /// Each file that is missing, can't be read or is too large, and what is wrong with the others.
    pub fn read(document: Document, dir: &Path) -> Result<Self, Vec<Problem>> {
        let (files, unread) = Files::read(document.contents(), dir);
        if unread.is_empty() {
            return Ok(Self { document, files });
        }
        Err(with_faults(document.config(), document.contents(), &files, unread))
    }

    /// Blocks for as long as it takes to read certificates.
    ///
    /// # Errors
    /// Everything that is wrong with what the document names.
    pub fn resolve(&self, stock: &impl Stock) -> Result<Proposal, Vec<Problem>> {
        let Resolving { digests, plain, unseen, problems } = self.collect(stock);
        if !problems.is_empty() {
            return Err(problems);
        }
        let stored =
            self.document.stored(|named| digests.get(&named.path).copied().unwrap_or(Digest([0; 32])));
        let document = stored.map_err(Vec::from_iter)?;
        let beside: usize = plain.values().map(|content| content.len() + OVERHEAD).sum();
        let bytes = document.canonical().len() + beside;
        let bytes_of = |named: &NamedContent| plain.get(digests.get(&named.path)?).cloned();
        let problems = bad_rules(self.document.contents(), bytes_of);
        if !problems.is_empty() {
            return Err(problems);
        }
        let contents = Contents::from_iter(plain);
        let is_seen = |path: &str| {
            let named = document.contents().iter().find(|named| named.path == path);
            !matches!(named.map(|named| &named.content), Some(Content::Stored(digest)) if unseen.contains(digest))
        };
        let found = trestle_dataplane::check(document.config(), &contents);
        let found = found.into_iter().filter(|(path, _)| is_seen(path));
        let problems: Vec<_> = found.filter_map(|(path, message)| self.problem_at(&path, message)).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut digests: Vec<_> = document.contents().iter().filter_map(stored_under).collect();
        digests.sort_unstable();
        digests.dedup();
        if digests.len() > MAX_USES || bytes > MAX_DOCUMENT {
            let problem = format!(
                "the document has {bytes} bytes with its {} files, at most {MAX_DOCUMENT} and {MAX_USES} fit",
                digests.len()
            );
            return Err(self
                .document
                .contents()
                .first()
                .map(|named| named.problem(problem))
                .into_iter()
                .collect());
        }
        Ok(Proposal { document, contents, digests })
    }

    fn collect(&self, stock: &impl Stock) -> Resolving {
        let mut resolving = Resolving::default();
        for named in self.document.contents() {
            match self.bytes(named, stock) {
                Ok(Bytes::Here(bytes)) => {
                    resolving.problems.extend(bad_lines(named, &bytes));
                    let digest = stored_under(named).unwrap_or_else(|| stock.digest(&bytes));
                    resolving.digests.insert(named.path.clone(), digest);
                    resolving.plain.insert(digest, bytes);
                }
                Ok(Bytes::Unseen(digest)) => resolving.unseen.push(digest),
                Ok(Bytes::InDocument) => {}
                Err(message) => resolving.problems.push(named.problem(message)),
            }
        }
        resolving
    }

    fn bytes(&self, named: &NamedContent, stock: &impl Stock) -> Result<Bytes, String> {
        let bytes: Arc<[u8]> = match &named.content {
            Content::Inline(text) if named.secret => Arc::from(text.as_bytes()),
            Content::Inline(_) => return Ok(Bytes::InDocument),
            Content::File(path) => {
                let sent = self.files.0.0.get(path).cloned();
                sent.ok_or_else(|| {
                    format!(
                        "`{}` is a file of whoever applies this: `trestle apply` sends it along",
                        path.display()
                    )
                })?
            }
            Content::Stored(digest) => {
                return match stock.find(digest) {
                    Found::Content(bytes) => Ok(Bytes::Here(bytes)),
                    Found::Unseen => Ok(Bytes::Unseen(*digest)),
                    Found::Problem(why) => {
                        Err(format!("`stored:{digest}` {why}: name the file it came from"))
                    }
                };
            }
        };
        if bytes.len() > MAX_CONTENT {
            return Err(format!("it has {} bytes, at most {MAX_CONTENT} fit", bytes.len()));
        }
        Ok(Bytes::Here(bytes))
    }

    /// At the place where the draft says what the stored document says at `path`.
    fn problem_at(&self, path: &str, message: String) -> Option<Problem> {
        let all = self.document.contents();
        let file = format!("{path}_file");
        let exact = all.iter().find(|named| named.path == path || named.path == file);
        if let Some(named) = exact {
            return Some(named.problem(message));
        }
        // It is about several: at one of them, or at least in this document.
        let near = all.iter().find(|named| named.path.starts_with(path)).or(all.first())?;
        let mut problem = near.problem(message);
        path.clone_into(&mut problem.path);
        Some(problem)
    }
}

/// What is wrong with the files of a document that is not valid itself, relative to `dir`.
pub fn problems_of_files(rest: &Rest, dir: &Path) -> Vec<Problem> {
    let (files, unread) = Files::read(&rest.contents, dir);
    with_faults(&rest.config, &rest.contents, &files, unread)
}

/// Beside files that can't be read: what is wrong in those that can.
fn with_faults(
    config: &Config,
    contents: &[NamedContent],
    files: &Files,
    unread: Vec<Problem>,
) -> Vec<Problem> {
    let mut problems = unread;
    let mut plain = BTreeMap::new();
    for named in contents {
        let Content::File(path) = &named.content else { continue };
        if let Some(bytes) = files.0.0.get(path) {
            problems.extend(bad_lines(named, bytes));
            plain.insert(Offline.digest(path.as_os_str().as_encoded_bytes()), Arc::clone(bytes));
        }
    }
    problems.extend(bad_rules(contents, |named| match &named.content {
        Content::File(path) => files.0.0.get(path).cloned(),
        _ => None,
    }));
    // By the digest of its path: what is not there is only not found.
    let mut config = config.clone();
    config.each_tls_content(|content| {
        if let Content::File(path) = content {
            *content = Content::Stored(Offline.digest(path.as_os_str().as_encoded_bytes()));
        }
    });
    for (path, message) in trestle_dataplane::check(&config, &plain.into_iter().collect()) {
        let file = format!("{path}_file");
        let named = contents.iter().find(|named| named.path == path || named.path == file);
        // What follows from another problem has no place of its own, or was not read.
        if let Some(named) = named
            && is_known(named, files)
        {
            problems.push(named.problem(message));
        }
    }
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
}

fn is_known(named: &NamedContent, files: &Files) -> bool {
    match &named.content {
        Content::File(path) => files.0.0.contains_key(path),
        Content::Inline(_) => true,
        Content::Stored(_) => false,
    }
}

/// What was found of the contents of a draft, so far.
#[derive(Default)]
struct Resolving {
    /// By path in the document.
    digests: BTreeMap<String, Digest>,
    plain: BTreeMap<Digest, Arc<[u8]>>,
    unseen: Vec<Digest>,
    problems: Vec<Problem>,
}

enum Bytes {
    Here(Arc<[u8]>),
    Unseen(Digest),
    /// They stay in the document.
    InDocument,
}

/// What is wrong with the lines of a set of networks.
fn bad_lines(named: &NamedContent, bytes: &[u8]) -> Vec<Problem> {
    match named.network_set().map(|_| trestle_config::networks::read(bytes)) {
        Some(Err(lines)) => named.bad_lines(&lines),
        _ => Vec::new(),
    }
}

/// What is wrong with rule files of the web application firewall: those of one list are one set.
fn bad_rules(
    contents: &[NamedContent],
    bytes_of: impl Fn(&NamedContent) -> Option<Arc<[u8]>>,
) -> Vec<Problem> {
    let mut sets: BTreeMap<&[String], Vec<&NamedContent>> = BTreeMap::new();
    for named in contents {
        if let Some(list) = named.rule_set() {
            sets.entry(list).or_default().push(named);
        }
    }
    let problem = |set: Vec<&NamedContent>| {
        let files: Vec<_> = set.iter().map(|named| bytes_of(named)).collect::<Option<_>>()?;
        let files: Vec<&[u8]> = files.iter().map(|bytes| &**bytes).collect();
        let (at, fault) = trestle_dataplane::check_rule_files(&files).err()?;
        Some(set.get(at)?.problem_in(&fault.file, fault.line, &fault.reason))
    };
    sets.into_values().filter_map(problem).collect()
}

/// A document of which only sets of networks are read, relative to `dir`: for whoever asks where requests
/// go and has no private keys at hand.
///
/// # Errors
/// Each file of networks that can't be read, and what is wrong with their lines.
pub fn with_networks(document: &Document, dir: &Path) -> Result<(Document, Contents), Vec<Problem>> {
    let (mut digests, mut contents, mut problems) = (BTreeMap::new(), Vec::new(), Vec::new());
    for named in document.contents().iter().filter(|named| named.network_set().is_some()) {
        let Content::File(path) = &named.content else {
            problems.push(named.problem("only nodes know what is stored: ask one, or name the file"));
            continue;
        };
        match read_file(&dir.join(path)) {
            Ok(bytes) => {
                problems.extend(bad_lines(named, &bytes));
                let digest = Offline.digest(&bytes);
                digests.insert(&named.path, digest);
                contents.push((digest, bytes));
            }
            Err(why) => problems.push(named.problem(format!("can't read `{}`: {why}", path.display()))),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let nothing = Digest([0; 32]);
    let stored = document.stored(|named| digests.get(&named.path).copied().unwrap_or(nothing));
    Ok((stored.map_err(Vec::from_iter)?, contents.into_iter().collect()))
}

fn stored_under(named: &NamedContent) -> Option<Digest> {
    match named.content {
        Content::Stored(digest) => Some(digest),
        _ => None,
    }
}

impl Proposal {
    /// As it is to be agreed on.
    pub fn document(&self) -> &Document {
        &self.document
    }

    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// All that the document names, each once.
    pub(crate) fn digests(&self) -> &[Digest] {
        &self.digests
    }
}

impl Files {
    /// With those that can't be read, each as a problem.
    fn read(contents: &[NamedContent], dir: &Path) -> (Self, Vec<Problem>) {
        let (mut files, mut problems, mut total) = (BTreeMap::new(), Vec::new(), 0);
        for named in contents {
            let Content::File(path) = &named.content else { continue };
            if files.contains_key(path) {
                continue;
            }
            if named.rule_set().is_some() {
                // With all that it includes.
                match trestle_dataplane::gather_rule_file(&dir.join(path), MAX_CONTENT) {
                    Ok(bytes) => {
                        total += bytes.len();
                        files.insert(path.clone(), bytes.into());
                    }
                    Err(fault) => problems.push(named.problem_in(&fault.file, fault.line, &fault.reason)),
                }
                continue;
            }
            match read_file(&dir.join(path)) {
                Ok(bytes) => {
                    total += bytes.len();
                    files.insert(path.clone(), bytes);
                }
                Err(why) => problems.push(named.problem(format!("can't read `{}`: {why}", path.display()))),
            }
            if total > MAX_DOCUMENT {
                problems
                    .push(named.problem(format!("its files have more than {MAX_DOCUMENT} bytes together")));
                break;
            }
        }
        (Self(Arc::new(Held(files))), problems)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Arc<[u8]>)> {
        self.0.0.iter().map(|(path, bytes)| (path.as_path(), bytes))
    }

    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }
}

impl FromIterator<(PathBuf, Arc<[u8]>)> for Files {
    fn from_iter<I: IntoIterator<Item = (PathBuf, Arc<[u8]>)>>(files: I) -> Self {
        Self(Arc::new(Held(files.into_iter().collect())))
    }
}

/// Shows no bytes: there are private keys among them.
impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.0.keys()).finish()
    }
}

/// A file that becomes a content: at most [`MAX_CONTENT`] bytes, whatever it says of its size.
///
/// # Errors
/// Why not, without the path.
pub fn read_file(path: &Path) -> Result<Arc<[u8]>, String> {
    let text = |e: std::io::Error| e.to_string();
    let file = std::fs::File::open(path).map_err(text)?;
    if file.metadata().map_err(text)?.is_dir() {
        return Err("it is a folder".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONTENT as u64 + 1).read_to_end(&mut bytes).map_err(text)?;
    if bytes.len() > MAX_CONTENT {
        return Err(format!("it has more than {MAX_CONTENT} bytes"));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use trestle_config::Source;

    use super::*;

    #[test]
    fn rule_files_come_with_what_they_include_and_are_refused_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("main.conf", "Include more.conf\n");
        write("more.conf", "SecRule ARGS \"@pmFromFile words.data\" \\\n    \"id:1,deny\"\n");
        write("words.data", "attack\n");
        let text = "listeners:\n  web:\n    bind: \":80\"\n    protocol: http\n    pool: app\n    \
                    waf: { mode: block, rules: [builtin, main.conf] }\npools: { app: { members: [] } }\n";
        let draft = Draft::read(document(text), dir.path()).unwrap();
        let proposal = draft.resolve(&Offline).unwrap();
        let stored = proposal.document().canonical().to_owned();
        assert!(stored.contains("stored:") && !stored.contains("main.conf"), "{stored}");
        // As it is stored it is applied again, and checked where it can be.
        let again = Draft::plain(document(&stored));
        assert!(again.resolve(&Offline).is_ok());

        let told = |text: &str| -> Vec<String> {
            let problems = match Draft::read(document(text), dir.path()) {
                Ok(draft) => draft.resolve(&Offline).unwrap_err(),
                Err(problems) => problems,
            };
            problems.iter().map(ToString::to_string).collect()
        };
        write("more.conf", "\nSecRule ARGS \"@rx (\" id:1\n");
        let problems = told(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].contains("more.conf:2:1: listeners.web.waf.rules[1]: unclosed group"),
            "{problems:?}"
        );
        write("more.conf", "SecRule ARGS \"@pmFromFile gone.data\" id:1\n");
        let problems = told(text);
        assert!(
            problems[0].contains("more.conf:1:1: ") && problems[0].contains("`gone.data`"),
            "{problems:?}"
        );
        let problems = told(&text.replace("main.conf", "gone.conf"));
        assert!(problems[0].contains("gone.conf") && problems[0].contains("can't read"), "{problems:?}");
        // Two files are one set.
        write("main.conf", "SecAction \"id:1\"\n");
        let problems = told(&text.replace("builtin, main.conf", "main.conf, main.conf"));
        assert!(problems[0].contains("two rules with id 1"), "{problems:?}");
    }

    /// Knows digests of what it was given, by their first byte.
    struct Shelf(BTreeMap<Digest, Arc<[u8]>>);

    impl Stock for Shelf {
        fn digest(&self, content: &[u8]) -> Digest {
            Digest([content.len() as u8; 32])
        }

        fn find(&self, digest: &Digest) -> Found {
            match self.0.get(digest) {
                Some(bytes) => Found::Content(bytes.clone()),
                None if digest.0[0] == 0xff => Found::Unseen,
                None => Found::Problem("is not stored in this cluster"),
            }
        }
    }

    struct Pair {
        chain: String,
        key: String,
    }

    fn pair(name: &str) -> Pair {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        Pair { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    fn document(text: &str) -> Document {
        trestle_config::parse(Source { name: "web.yaml", text }).unwrap()
    }

    fn shelf() -> Shelf {
        Shelf(BTreeMap::new())
    }

    const FILES: &str = "certificates:\n  shop:\n    chain_file: a.pem\n    key_file: a.key\n";

    fn draft(text: &str, files: &[(&str, &str)]) -> Draft {
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), Arc::from(text.as_bytes())));
        Draft { document: document(text), files: files.collect() }
    }

    fn problems(draft: &Draft) -> Vec<String> {
        draft.resolve(&shelf()).unwrap_err().iter().map(Problem::to_string).collect()
    }

    #[test]
    fn files_become_digests_and_what_is_agreed_on_can_be_taken_again() {
        let pair = pair("shop.example.com");
        let draft = draft(FILES, &[("a.pem", &pair.chain), ("a.key", &pair.key)]);
        let proposal = draft.resolve(&shelf()).unwrap();
        let text = proposal.document().canonical();
        assert!(text.contains("key: \"stored:") && !text.contains("a.key"), "{text}");
        assert_eq!(proposal.digests().len(), 2);
        let stored =
            [&pair.chain, &pair.key].map(|text| (shelf().digest(text.as_bytes()), text.as_bytes().into()));
        let again =
            Draft::plain(proposal.document().clone()).resolve(&Shelf(BTreeMap::from(stored))).unwrap();
        assert_eq!(again.document(), proposal.document());
        assert_eq!(again.digests(), proposal.digests());
    }

    #[test]
    fn each_problem_has_its_place_and_shows_nothing_of_a_key() {
        let (one, other) = (pair("a.example.com"), pair("b.example.com"));
        let found = problems(&draft(FILES, &[("a.pem", &one.chain)]));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("web.yaml:4:") && found[0].contains("trestle apply"), "{found:?}");
        let found = problems(&draft(FILES, &[("a.pem", &one.chain), ("a.key", &other.key)]));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("web.yaml:4:15: certificates.shop.key_file: "), "{found:?}");
        let large = "x".repeat(MAX_CONTENT + 1);
        let found = problems(&draft(FILES, &[("a.pem", &large), ("a.key", &one.key)]));
        assert!(found[0].contains("at most 4194304 fit"), "{found:?}");
        let digest = "ab".repeat(32);
        let unknown = format!("certificates:\n  shop:\n    chain_file: a.pem\n    key: stored:{digest}\n");
        let found = problems(&draft(&unknown, &[("a.pem", &one.chain)]));
        assert!(found[0].starts_with("web.yaml:4:") && found[0].contains("is not stored"), "{found:?}");
        let broken = one.key.replace("BEGIN PRIVATE KEY-----\n", "BEGIN PRIVATE KEY-----\n!");
        let found = problems(&draft(FILES, &[("a.pem", &one.chain), ("a.key", &broken)]));
        let line = one.key.lines().nth(1).unwrap();
        assert!(!found.is_empty() && !found.iter().any(|found| found.contains(&line[1..20])), "{found:?}");
    }

    #[test]
    fn what_can_t_be_told_here_is_taken_for_good() {
        let digest = "ff".repeat(32);
        let unseen = format!("certificates:\n  shop: {{ chain: stored:{digest}, key: stored:{digest} }}\n");
        draft(&unseen, &[]).resolve(&shelf()).unwrap();
    }

    #[test]
    fn a_document_and_its_files_fit_together_or_are_refused() {
        let authority = pair("ca.example.com").chain;
        let draft = |count: usize| {
            let pool = |n: usize| format!("  p{n}: {{ members: [], tls: {{ ca_file: {n}.pem }} }}\n");
            let text = format!("pools:\n{}", (0..count).map(pool).collect::<String>());
            // Text around the certificate counts too. Each has another length, by which the shelf tells them apart.
            let file = |n: usize| authority.clone() + &"#".repeat(MAX_CONTENT - authority.len() - n);
            let files =
                (0..count).map(|n| (PathBuf::from(format!("{n}.pem")), Arc::from(file(n).into_bytes())));
            Draft { document: document(&text), files: files.collect() }
        };
        assert_eq!(draft(1).resolve(&shelf()).unwrap().digests().len(), 1);
        let found = problems(&draft(2));
        assert!(found[0].contains("with its 2 files, at most 8388608"), "{found:?}");
    }

    #[test]
    fn a_file_of_networks_is_checked_line_by_line() {
        let text = "networks:\n  bad:\n    file: lists/bad.txt\n";
        let networks = |lines: &str| Draft {
            document: document(text),
            files: [(PathBuf::from("lists/bad.txt"), Arc::from(lines.as_bytes()))].into_iter().collect(),
        };
        let proposal = networks("192.0.2.0/24 # lab\n\n::1\n").resolve(&shelf()).unwrap();
        let set = &proposal.document().config().networks["bad"];
        assert!(matches!(set.file, Some(Content::Stored(_))), "{set:?}");
        let found = problems(&networks("# x\n192.0.2.1/24\n::1\n  host\n"));
        assert_eq!(
            found,
            [
                "lists/bad.txt:2:1: networks.bad.file: `192.0.2.1/24` has bits behind its prefix (did you mean `192.0.2.0/24`?)",
                "lists/bad.txt:4:3: networks.bad.file: `host` is no network (`192.0.2.0/24`, `2001:db8::/32` and `192.0.2.1` are)",
            ]
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lists")).unwrap();
        let file = dir.path().join("lists/bad.txt");
        // Private keys are not read, so they need not be there.
        let text = format!("{text}{FILES}");
        assert!(with_networks(&document(&text), dir.path()).unwrap_err()[0].message.contains("can't read"));
        std::fs::write(&file, "192.0.2.9\n").unwrap();
        let (routed, contents) = with_networks(&document(&text), dir.path()).unwrap();
        let set = &routed.config().networks["bad"];
        assert_eq!(contents.get(set.file.as_ref().unwrap()).as_deref(), Some(&b"192.0.2.9\n"[..]));
        std::fs::write(&file, "192.0.2.9\nx\n").unwrap();
        let error = with_networks(&document(&text), dir.path()).unwrap_err();
        assert!(error[0].to_string().starts_with("lists/bad.txt:2:1: "), "{error:?}");
    }

    #[test]
    fn files_are_read_beside_the_document_and_told_by_their_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.pem"), "chain").unwrap();
        let error = Draft::read(document(FILES), dir.path()).unwrap_err();
        let error: Vec<String> = error.iter().map(ToString::to_string).collect();
        assert_eq!(error.len(), 2, "{error:?}");
        assert!(
            error[0]
                .starts_with("web.yaml:3:17: certificates.shop.chain_file: there is no certificate in it"),
            "{error:?}"
        );
        assert!(
            error[1].starts_with("web.yaml:4:15: certificates.shop.key_file: can't read `a.key`"),
            "{error:?}"
        );
        std::fs::create_dir(dir.path().join("a.key")).unwrap();
        assert!(Draft::read(document(FILES), dir.path()).unwrap_err()[1].message.contains("folder"));
        std::fs::remove_dir(dir.path().join("a.key")).unwrap();
        std::fs::write(dir.path().join("a.key"), vec![b'x'; MAX_CONTENT + 1]).unwrap();
        assert!(Draft::read(document(FILES), dir.path()).unwrap_err()[1].message.contains("more than"));
        std::fs::write(dir.path().join("a.key"), "secret").unwrap();
        let read = Draft::read(document(FILES), dir.path()).unwrap();
        assert_eq!(read.files.iter().count(), 2);
        assert!(!format!("{read:?}").contains("secret"));
    }
}
