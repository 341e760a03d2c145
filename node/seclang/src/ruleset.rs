//! Rule files, compiled: [`Rules`].

use std::collections::{BTreeMap, BTreeSet};

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use crate::action::{Actions, Control, Disruptive, Mode, SetVar, Which, actions, ids};
use crate::files::Files;
use crate::lex::lines;
use crate::operator::{self, Operator};
use crate::pattern::Pattern;
use crate::transform::Transformation;
use crate::variable::{Target, targets};
use crate::{Fault, RULES_MAX};

/// Words for which all patterns together look.
const WORDS_MAX: usize = 40_000;

/// A rule, with the rules that are chained to it.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) id: u32,
    pub(crate) disruptive: Disruptive,
    pub(crate) logs: bool,
    pub(crate) tags: Vec<Box<str>>,
    message: Option<Box<str>>,
    /// That of a chain's first, then those of the others.
    pub(crate) tests: Vec<Test>,
    pub(crate) skip: u32,
    /// In the order of all rules: where to go on.
    pub(crate) skip_to: Option<usize>,
    phase: u8,
    at: (Box<str>, usize),
    input: usize,
    skip_after: Option<Box<str>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) targets: Vec<Target>,
    pub(crate) without: Vec<Target>,
    pub(crate) operator: Operator,
    pub(crate) negated: bool,
    pub(crate) transformations: Vec<Transformation>,
    /// The operator looks at the value after each of them.
    pub(crate) multi_match: bool,
    pub(crate) captures: bool,
    pub(crate) set: Vec<SetVar>,
    pub(crate) control: Vec<Controlled>,
    /// A value fits only if this bit is set of it.
    pub(crate) bit: Option<usize>,
    words: Option<Vec<Vec<u8>>>,
    own_control: Vec<Control>,
}

/// [`Control`], with the rules that it means by their place.
#[derive(Clone, Debug)]
pub(crate) enum Controlled {
    Engine(Mode),
    NoBody,
    Remove(Box<[usize]>),
    RemoveTarget(Box<[usize]>, Box<Target>),
}

/// Rule files, compiled. Cheap to share; each worker takes an [`crate::Engine`] of its own.
#[derive(Clone, Debug)]
pub struct Rules {
    pub(crate) rules: Vec<Rule>,
    /// Places in `rules` of those of phases 1 and 2.
    pub(crate) phases: [Vec<usize>; 2],
    /// Looks for the words of all patterns at once.
    pub(crate) words: Option<AhoCorasick>,
    /// Of each word: the bits that it sets.
    pub(crate) bits: Vec<Box<[u32]>>,
    pub(crate) bit_count: usize,
}

impl Rules {
    /// Compiles what [`crate::gather`] read, or files as they are; together they are one set, in their order.
    ///
    /// # Errors
    /// The first fault: in which of `files`, and file, line and reason.
    pub fn compile(files: &[&[u8]]) -> Result<Self, (usize, Fault)> {
        let mut reading = Reading::default();
        for (at, bytes) in files.iter().enumerate() {
            reading.input = at;
            let files = Files::open(bytes).map_err(|fault| (at, fault))?;
            for piece in &files.pieces {
                let of_piece = |fault: Fault| (at, fault.of(piece.file));
                for line in lines(piece.text, piece.first).map_err(of_piece)? {
                    reading
                        .directive(&line.words, (piece.file, line.number), &files.lists)
                        .map_err(|why| of_piece(Fault::at(line.number, why)))?;
                }
            }
        }
        reading.finish()
    }

    /// Ids of the rules that look at requests.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.phases.iter().flatten().filter_map(|at| self.rules.get(*at)).map(|rule| rule.id)
    }
}

#[derive(Default)]
struct Reading {
    /// The number of the file that is read.
    input: usize,
    rules: Vec<Rule>,
    known: BTreeSet<u32>,
    defaults: BTreeMap<u8, Actions>,
    /// With how many rules stand before it.
    markers: Vec<(Box<str>, usize)>,
    /// The last rule awaits another one.
    chain: bool,
}

impl Reading {
    fn directive(
        &mut self,
        words: &[String],
        at: (&str, usize),
        lists: &BTreeMap<&str, &str>,
    ) -> Result<(), String> {
        let Some((name, arguments)) = words.split_first() else { return Ok(()) };
        let first = || arguments.first().map(String::as_str).ok_or_else(|| format!("`{name}` says nothing"));
        let which = |by: fn(&str) -> Result<Which, String>| {
            let all = arguments.iter().map(|argument| by(argument)).collect::<Result<Vec<_>, _>>()?;
            if all.is_empty() { Err(format!("`{name}` names no rule")) } else { Ok(all) }
        };
        let by_id = |text: &str| ids(text).map(Which::Ids);
        let by_tag = |text: &str| Ok(Which::Tag(text.into()));
        let by_message = |text: &str| Ok(Which::Message(text.into()));
        match name.to_ascii_lowercase().as_str() {
            "secrule" => match arguments {
                [targets, operator] => self.rule(Some((targets, operator)), "", at, lists),
                [targets, operator, actions] => self.rule(Some((targets, operator)), actions, at, lists),
                _ => Err("`SecRule` has variables, an operator, and actions".to_owned()),
            },
            "secaction" => self.rule(None, first()?, at, lists),
            "secmarker" => {
                self.markers.push((first()?.into(), self.rules.len()));
                Ok(())
            }
            "secdefaultaction" => {
                let actions = actions(first()?)?;
                self.defaults.insert(actions.phase.unwrap_or(2), actions);
                Ok(())
            }
            "secruleengine" => {
                let mode = first()?;
                // The policy's own `mode` decides.
                Mode::named(mode).map(drop).ok_or_else(|| format!("there is no mode `{mode}`"))
            }
            "secruleremovebyid" => {
                self.remove(&which(by_id)?);
                Ok(())
            }
            "secruleremovebytag" => {
                self.remove(&which(by_tag)?);
                Ok(())
            }
            "secruleremovebymsg" => {
                self.remove(&which(by_message)?);
                Ok(())
            }
            "secruleupdatetargetbyid" => self.update(by_id(first()?)?, arguments),
            "secruleupdatetargetbytag" => self.update(by_tag(first()?)?, arguments),
            "secruleupdatetargetbymsg" => self.update(by_message(first()?)?, arguments),
            "secruleupdateactionbyid" => self.update_actions(&by_id(first()?)?, arguments),
            "include" | "includeoptional" => {
                Err("an include is followed where the file is: apply the config from there".to_owned())
            }
            "secruleinheritance" | "secrulescript" | "secremoterules" => {
                Err(format!("`{name}` is not known here"))
            }
            // Of bodies, logs, answers and storage, which are not the rule files' here.
            other
                if other.starts_with("sec")
                    && IGNORED.iter().any(|known| known.eq_ignore_ascii_case(other)) =>
            {
                Ok(())
            }
            _ => Err(format!("there is no directive `{name}` here")),
        }
    }

    fn rule(
        &mut self,
        looks: Option<(&String, &String)>,
        text: &str,
        at: (&str, usize),
        lists: &BTreeMap<&str, &str>,
    ) -> Result<(), String> {
        let own = actions(text)?;
        let is_link = std::mem::replace(&mut self.chain, own.chains);
        let phase = match is_link {
            true => self.rules.last().map_or(2, |rule| rule.phase),
            false => own.phase.unwrap_or(2),
        };
        let defaults = self.defaults.get(&phase).cloned().unwrap_or_default();
        let (wanted, without, read) = match looks {
            Some((variables, operator)) => {
                let (wanted, without) = targets(variables)?;
                if wanted.is_empty() {
                    return Err("it looks at nothing".to_owned());
                }
                (wanted, without, operator::read(operator, lists)?)
            }
            None => (
                Vec::new(),
                Vec::new(),
                operator::Read { operator: Operator::Always, negated: false, words: None },
            ),
        };
        let mut transformations = if own.forgets { Vec::new() } else { defaults.transformations };
        transformations.extend(own.transformations);
        let test = Test {
            targets: wanted,
            without,
            operator: read.operator,
            negated: read.negated,
            transformations,
            multi_match: own.multi_match,
            captures: own.captures,
            set: own.set,
            control: Vec::new(),
            bit: None,
            words: read.words,
            own_control: own.control,
        };
        if is_link {
            let Some(rule) = self.rules.last_mut() else { return Err("no rule stands before it".to_owned()) };
            if own.id.is_some() || own.phase.is_some() {
                return Err("a chained rule has no `id` and no `phase` of its own".to_owned());
            }
            rule.tests.push(test);
            // What follows the chain stands at its first rule; some write it at the last.
            rule.skip_after = rule.skip_after.take().or(own.skip_after);
            return Ok(());
        }
        let Some(id) = own.id else { return Err("a rule needs an `id`".to_owned()) };
        if !self.known.insert(id) {
            return Err(format!("there are two rules with id {id}"));
        }
        if self.rules.len() >= RULES_MAX {
            return Err(format!("more than {RULES_MAX} rules"));
        }
        let by_default = defaults.disruptive.filter(|d| *d != Disruptive::Block).unwrap_or(Disruptive::Pass);
        let disruptive = match own.disruptive {
            None | Some(Disruptive::Block) => by_default,
            Some(own) => own,
        };
        self.rules.push(Rule {
            id,
            disruptive,
            logs: own.logs.or(defaults.logs).unwrap_or(true),
            tags: own.tags,
            message: own.message,
            tests: vec![test],
            skip: own.skip,
            skip_to: None,
            phase,
            at: (at.0.into(), at.1),
            input: self.input,
            skip_after: own.skip_after,
        });
        Ok(())
    }

    fn remove(&mut self, which: &[Which]) {
        for which in which {
            let chosen = which.chooses();
            // It stays where it is, since markers count places.
            self.rules.iter_mut().filter(|rule| chosen(rule)).for_each(|rule| rule.phase = 0);
        }
    }

    fn update(&mut self, which: Which, arguments: &[String]) -> Result<(), String> {
        let [_, text] = arguments else { return Err("it names rules, and targets".to_owned()) };
        let (wanted, without) = targets(text)?;
        let chosen = which.chooses();
        for rule in self.rules.iter_mut().filter(|rule| chosen(rule)) {
            let Some(test) = rule.tests.first_mut() else { continue };
            test.targets.extend(wanted.iter().cloned());
            test.without.extend(without.iter().cloned());
        }
        Ok(())
    }

    fn update_actions(&mut self, which: &Which, arguments: &[String]) -> Result<(), String> {
        let [_, text] = arguments else { return Err("it names rules, and actions".to_owned()) };
        let own = actions(text)?;
        if own.id.is_some() || own.phase.is_some() || own.chains {
            return Err("neither `id` nor `phase` nor `chain` of a rule can be changed".to_owned());
        }
        let chosen = which.chooses();
        for rule in self.rules.iter_mut().filter(|rule| chosen(rule)) {
            rule.disruptive = own.disruptive.unwrap_or(rule.disruptive);
            rule.logs = own.logs.unwrap_or(rule.logs);
            rule.tags.extend(own.tags.iter().cloned());
            rule.skip_after = own.skip_after.clone().or(rule.skip_after.take());
            let Some(test) = rule.tests.first_mut() else { continue };
            if own.forgets {
                test.transformations.clear();
            }
            test.transformations.extend(&own.transformations);
            test.set.extend(own.set.iter().cloned());
            test.own_control.extend(own.control.iter().cloned());
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Rules, (usize, Fault)> {
        if self.chain
            && let Some(rule) = self.rules.last()
        {
            return Err(rule.fault("the rule that is chained to it is missing"));
        }
        let places: BTreeMap<u32, usize> =
            self.rules.iter().enumerate().map(|(at, rule)| (rule.id, at)).collect();
        for at in 0..self.rules.len() {
            let Some(rule) = self.rules.get(at) else { break };
            let mut controls = Vec::new();
            for test in &rule.tests {
                controls.push(
                    test.own_control.iter().map(|control| self.controlled(control)).collect::<Vec<_>>(),
                );
            }
            let skip_to = match &rule.skip_after {
                Some(name) => {
                    let marker = self.markers.iter().find(|(marker, place)| marker == name && *place > at);
                    let rule_after =
                        name.parse().ok().and_then(|id: u32| places.get(&id)).map(|place| place + 1);
                    let to = marker.map(|(_, place)| *place).or(rule_after.filter(|to| *to > at));
                    // One that was removed skips nothing.
                    if to.is_none() && rule.phase != 0 {
                        return Err(rule.fault(format!("no marker `{name}` stands behind it")));
                    }
                    to
                }
                None => None,
            };
            let Some(rule) = self.rules.get_mut(at) else { break };
            rule.skip_to = skip_to;
            for (test, control) in rule.tests.iter_mut().zip(controls) {
                test.control = control;
            }
        }
        let mut phases = [Vec::new(), Vec::new()];
        for (at, rule) in self.rules.iter().enumerate() {
            match rule.phase {
                1 => phases[0].push(at),
                2 => phases[1].push(at),
                _ => {}
            }
        }
        let mut rules = Rules { rules: self.rules, phases, words: None, bits: Vec::new(), bit_count: 0 };
        rules.index()?;
        Ok(rules)
    }

    fn controlled(&self, control: &Control) -> Controlled {
        let places = |which: &Which| -> Box<[usize]> {
            let chosen = which.chooses();
            self.rules.iter().enumerate().filter(|(_, rule)| chosen(rule)).map(|(at, _)| at).collect()
        };
        match control {
            Control::Engine(mode) => Controlled::Engine(*mode),
            Control::NoBody => Controlled::NoBody,
            Control::Remove(which) => Controlled::Remove(places(which)),
            Control::RemoveTarget(which, target) => {
                Controlled::RemoveTarget(places(which), Box::new(target.clone()))
            }
        }
    }
}

impl Rules {
    /// Gives each test that needs words a bit, and makes one search of all words.
    fn index(&mut self) -> Result<(), (usize, Fault)> {
        let mut words: BTreeMap<Vec<u8>, Vec<u32>> = BTreeMap::new();
        let mut count = 0u32;
        for rule in self.rules.iter_mut().filter(|rule| matches!(rule.phase, 1 | 2)) {
            for test in &mut rule.tests {
                let Some(own) = test.words.take() else { continue };
                for word in own {
                    words.entry(word).or_default().push(count);
                }
                if words.len() > WORDS_MAX {
                    return Err(rule.fault(format!("rules look for more than {WORDS_MAX} words")));
                }
                test.bit = Some(count as usize);
                count += 1;
            }
        }
        self.bit_count = count as usize;
        if words.is_empty() {
            return Ok(());
        }
        let built = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(words.keys());
        self.words = Some(
            built.map_err(|why| (0, Fault::at(1, format!("their words can't be searched for: {why}"))))?,
        );
        self.bits = words.into_values().map(Vec::into_boxed_slice).collect();
        Ok(())
    }
}

impl Rule {
    fn fault(&self, why: impl Into<String>) -> (usize, Fault) {
        (self.input, Fault::at(self.at.1, why).of(&self.at.0))
    }
}

/// What is in a tag or a message.
enum Part<'a> {
    Text(&'a str),
    Pattern(Pattern),
}

impl<'a> Part<'a> {
    fn new(text: &'a str) -> Self {
        let is_plain =
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/' | b'_' | b' '));
        match Pattern::new(text) {
            Ok(pattern) if !is_plain => Self::Pattern(pattern),
            _ => Self::Text(text),
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Text(part) => text.contains(part),
            Self::Pattern(pattern) => matches!(pattern.find(text.as_bytes()), Ok(Some(_))),
        }
    }
}

impl Which {
    fn chooses(&self) -> Box<dyn Fn(&Rule) -> bool + '_> {
        match self {
            Self::Ids(ids) => {
                Box::new(|rule| ids.iter().any(|(first, last)| (*first..=*last).contains(&rule.id)))
            }
            Self::Tag(part) => {
                let part = Part::new(part);
                Box::new(move |rule| rule.tags.iter().any(|tag| part.fits(tag)))
            }
            Self::Message(part) => {
                let part = Part::new(part);
                Box::new(move |rule| rule.message.as_deref().is_some_and(|message| part.fits(message)))
            }
        }
    }
}

/// Directives that say nothing about which requests pass.
const IGNORED: &[&str] = &[
    "SecArgumentSeparator",
    "SecArgumentsLimit",
    "SecAuditEngine",
    "SecAuditLog",
    "SecAuditLog2",
    "SecAuditLogDirMode",
    "SecAuditLogFileMode",
    "SecAuditLogFormat",
    "SecAuditLogParts",
    "SecAuditLogRelevantStatus",
    "SecAuditLogStorageDir",
    "SecAuditLogType",
    "SecCollectionTimeout",
    "SecComponentSignature",
    "SecConnEngine",
    "SecCookieFormat",
    "SecCookieV0Separator",
    "SecDataDir",
    "SecDebugLog",
    "SecDebugLogLevel",
    "SecGeoLookupDb",
    "SecGsbLookupDb",
    "SecHttpBlKey",
    "SecInterceptOnError",
    "SecPcreMatchLimit",
    "SecPcreMatchLimitRecursion",
    "SecRequestBodyAccess",
    "SecRequestBodyInMemoryLimit",
    "SecRequestBodyJsonDepthLimit",
    "SecRequestBodyLimit",
    "SecRequestBodyLimitAction",
    "SecRequestBodyNoFilesLimit",
    "SecResponseBodyAccess",
    "SecResponseBodyLimit",
    "SecResponseBodyLimitAction",
    "SecResponseBodyMimeType",
    "SecResponseBodyMimeTypesClear",
    "SecRulePerfTime",
    "SecSensorId",
    "SecServerSignature",
    "SecStatusEngine",
    "SecStreamInBodyInspection",
    "SecTmpDir",
    "SecTmpSaveUploadedFiles",
    "SecUnicodeMapFile",
    "SecUnicodeCodePage",
    "SecUploadDir",
    "SecUploadFileLimit",
    "SecUploadFileMode",
    "SecUploadKeepFiles",
    "SecWebAppId",
    "SecXmlExternalEntity",
    "SecParseXmlIntoArgs",
];
