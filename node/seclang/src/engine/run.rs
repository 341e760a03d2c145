//! One request before the rules.

use std::borrow::Cow;
use std::ops::Range;

use super::values::{Number, Values};
use super::{Clock, MATCHES_MAX, Match, Skips, Verdict, decimal, shown};
use crate::action::{Allowed, Change, Disruptive, Mode};
use crate::operator::{self, Operator};
use crate::pattern::Pattern;
use crate::request::{Item, Source};
use crate::ruleset::{Controlled, Rule, Rules, Test};
use crate::transaction::Variables;
use crate::transform::Transformation;
use crate::variable::{Collection, Piece, Select, Target, Text};

/// What a rule fitted.
#[derive(Clone, Debug)]
struct Fit {
    collection: Collection,
    source: Source,
    name: Box<[u8]>,
    value: Vec<u8>,
    range: Range<usize>,
}

pub(super) struct Run<'a> {
    rules: &'a Rules,
    items: &'a [Item<'a>],
    /// Of each item.
    numbers: Vec<Number>,
    /// Where the items of each collection are.
    places: [(u32, u32); Collection::COUNT],
    values: Values<'a>,
    variables: &'a mut Variables,
    skips: Option<&'a dyn Skips>,
    clock: Clock,
    mode: Mode,
    /// Bodies are not looked at.
    no_body: bool,
    removed: Vec<bool>,
    removed_targets: Vec<(&'a [usize], &'a Target)>,
    /// Of the test that was last.
    fits: Vec<Fit>,
    /// Of the rule: what in the request it is about.
    about: Option<Fit>,
    verdict: Verdict,
}

/// What comes behind a rule.
enum Then {
    Next,
    Skip(u32),
    To(usize),
    EndPhase,
    End,
}

/// A value before a test.
enum Value<'v> {
    Held(Number),
    Own(Cow<'v, [u8]>),
}

/// Who a value is.
#[derive(Clone, Copy)]
struct Who<'w> {
    collection: Collection,
    source: Source,
    name: &'w [u8],
}

impl<'a> Run<'a> {
    pub(super) fn new(
        rules: &'a Rules,
        items: &'a [Item<'a>],
        variables: &'a mut Variables,
        skips: Option<&'a dyn Skips>,
        clock: Clock,
    ) -> Self {
        let mut values = Values::new(rules);
        let numbers = items.iter().map(|item| values.add(Cow::Borrowed(&*item.value))).collect();
        let mut places = [(0, 0); Collection::COUNT];
        for (at, item) in (0u32..).zip(items) {
            if let Some(place) = places.get_mut(item.collection as usize) {
                if place.1 == 0 {
                    place.0 = at;
                }
                place.1 = at + 1;
            }
        }
        Self {
            rules,
            items,
            numbers,
            places,
            values,
            variables,
            skips,
            clock,
            mode: Mode::On,
            no_body: false,
            removed: Vec::new(),
            removed_targets: Vec::new(),
            fits: Vec::new(),
            about: None,
            verdict: Verdict::default(),
        }
    }

    pub(super) fn judge(mut self) -> Verdict {
        let rules = self.rules;
        for phase in &rules.phases {
            let mut at = 0;
            while let Some(&place) = phase.get(at) {
                let Some(rule) = rules.rules.get(place) else { break };
                if self.clock.is_over {
                    self.verdict.exhausted = true;
                    return self.verdict;
                }
                at += 1;
                if self.removed.get(place).copied().unwrap_or(false) {
                    continue;
                }
                match self.rule(place, rule) {
                    Then::Next => {}
                    Then::Skip(count) => at += count as usize,
                    Then::To(to) => at = phase.partition_point(|place| *place < to),
                    Then::EndPhase => break,
                    Then::End => return self.verdict,
                }
            }
        }
        self.verdict
    }

    fn rule(&mut self, place: usize, rule: &'a Rule) -> Then {
        self.about = None;
        for test in &rule.tests {
            if !self.test(place, rule, test) {
                return Then::Next;
            }
        }
        let denies = rule.disruptive == Disruptive::Deny && self.mode == Mode::On;
        if (rule.logs || denies) && self.verdict.matches.len() < MATCHES_MAX + usize::from(denies) {
            let told = match &self.about {
                Some(fit) => Match {
                    rule: rule.id,
                    source: fit.source,
                    name: fit.name.clone(),
                    matched: shown(&fit.value, &fit.range).into(),
                },
                None => {
                    Match { rule: rule.id, source: Source::Computed, name: [].into(), matched: [].into() }
                }
            };
            self.verdict.matches.push(told);
        }
        match rule.disruptive {
            Disruptive::Deny if denies => {
                self.verdict.denied = Some(rule.id);
                Then::End
            }
            Disruptive::Allow(Allowed::Phase) => Then::EndPhase,
            Disruptive::Allow(Allowed::All) => Then::End,
            _ if self.mode == Mode::Off => Then::End,
            _ => match rule.skip_to {
                Some(to) => Then::To(to),
                None if rule.skip > 0 => Then::Skip(rule.skip),
                None => Then::Next,
            },
        }
    }

    /// Whether one of the test's values fits. Whatever it does is done for each that does.
    fn test(&mut self, place: usize, rule: &'a Rule, test: &'a Test) -> bool {
        if test.targets.is_empty() {
            // An action by itself.
            self.act(test, None);
            return true;
        }
        let before = std::mem::take(&mut self.fits);
        let mut fits = Vec::new();
        for target in &test.targets {
            self.target(place, rule, (test, target), &before, &mut fits);
        }
        let is = !fits.is_empty();
        if let Some(fit) = fits.iter().rev().find(|fit| fit.source != Source::Computed)
            && self
                .about
                .as_ref()
                .is_none_or(|about| about.source != Source::Line || fit.source != Source::Line)
        {
            self.about = Some(fit.clone());
        }
        self.fits = if is { fits } else { before };
        is
    }

    fn target(
        &mut self,
        place: usize,
        rule: &'a Rule,
        (test, target): (&'a Test, &'a Target),
        before: &[Fit],
        fits: &mut Vec<Fit>,
    ) {
        use Collection as C;
        if target.counts {
            let count = self.count(test, target, place);
            let who = Who { collection: target.collection, source: Source::Computed, name: b"" };
            self.value(rule, test, who, Value::Own(decimal(count)), fits);
            return;
        }
        if let Some(prefix) = target.collection.written() {
            fn computed<'n>(target: &Target, name: &'n [u8]) -> Who<'n> {
                Who { collection: target.collection, source: Source::Computed, name }
            }
            let of = |name: &[u8]| [prefix.as_bytes(), name].concat();
            match &target.select {
                Select::Name(name) => {
                    if let Some(value) = self.variables.get(&of(name.as_bytes())).map(<[u8]>::to_vec) {
                        self.value(
                            rule,
                            test,
                            computed(target, name.as_bytes()),
                            Value::Own(value.into()),
                            fits,
                        );
                    }
                }
                select => {
                    let names = self.variables.of(prefix).into_iter();
                    for name in names.filter(|name| select.fits(name)) {
                        let is_excluded =
                            test.without.iter().any(|other| other.has(target.collection, &name));
                        if let Some(value) = self.variables.get(&of(&name)).map(<[u8]>::to_vec)
                            && !is_excluded
                        {
                            self.value(rule, test, computed(target, &name), Value::Own(value.into()), fits);
                        }
                    }
                }
            }
            return;
        }
        let of_fit = |fit: &Fit, value: Vec<u8>| (fit.collection, fit.source, fit.name.clone(), value);
        let label = |fit: &Fit| label(fit.collection, &fit.name);
        let last = before.last();
        let of_before: Vec<_> = match target.collection {
            C::MatchedVar => last.map(|fit| of_fit(fit, fit.value.clone())).into_iter().collect(),
            C::MatchedVarName => last.map(|fit| of_fit(fit, label(fit))).into_iter().collect(),
            C::MatchedVars => before.iter().map(|fit| of_fit(fit, fit.value.clone())).collect(),
            C::MatchedVarsNames => before.iter().map(|fit| of_fit(fit, label(fit))).collect(),
            C::Rule => vec![(C::Rule, Source::Computed, [].into(), decimal(rule.id as usize).into_owned())],
            _ => {
                for at in self.of(target) {
                    self.item(place, rule, test, target, at, fits);
                }
                return;
            }
        };
        for (collection, source, name, value) in of_before {
            self.value(rule, test, Who { collection, source, name: &name }, Value::Own(value.into()), fits);
        }
    }

    /// Places of the items of a target's collection.
    fn of(&self, target: &Target) -> impl Iterator<Item = usize> + use<> {
        use Collection as C;
        let (first, second) = match target.collection {
            C::Args => (C::ArgsGet, Some(C::ArgsPost)),
            C::ArgsNames => (C::ArgsGetNames, Some(C::ArgsPostNames)),
            other => (other, None),
        };
        let range = |collection: C| {
            let (from, to) = self.places.get(collection as usize).copied().unwrap_or((0, 0));
            from as usize..to as usize
        };
        range(first).chain(second.map_or(0..0, range))
    }

    fn item(
        &mut self,
        place: usize,
        rule: &'a Rule,
        test: &'a Test,
        target: &Target,
        at: usize,
        fits: &mut Vec<Fit>,
    ) {
        let (Some(item), Some(&number)) = (self.items.get(at), self.numbers.get(at)) else { return };
        if self.is_wanted(place, test, target, item) {
            let who = Who { collection: item.collection, source: item.source, name: &item.name };
            self.value(rule, test, who, Value::Held(number), fits);
        }
    }

    fn is_wanted(&self, place: usize, test: &Test, target: &Target, item: &Item<'_>) -> bool {
        let of_body = matches!(item.source, Source::Body | Source::File | Source::PartHeader | Source::Xml);
        if self.no_body && of_body || !target.select.fits(&item.name) {
            return false;
        }
        let is_removed = |(places, other): &(&[usize], &Target)| {
            places.contains(&place) && other.has(item.collection, &item.name)
        };
        let is_excluded = |other: &Target| other.has(item.collection, &item.name);
        !test.without.iter().any(is_excluded) && !self.removed_targets.iter().any(is_removed)
    }

    fn count(&self, test: &Test, target: &Target, place: usize) -> usize {
        match target.collection.written() {
            Some(prefix) => match &target.select {
                Select::Name(name) => {
                    usize::from(self.variables.get(&[prefix.as_bytes(), name.as_bytes()].concat()).is_some())
                }
                select => self.variables.of(prefix).iter().filter(|name| select.fits(name)).count(),
            },
            None => {
                let items = self.of(target).filter_map(|at| self.items.get(at));
                items.filter(|item| self.is_wanted(place, test, target, item)).count()
            }
        }
    }

    /// Holds one value against the test; does what the test does where it fits.
    fn value(&mut self, rule: &'a Rule, test: &'a Test, who: Who<'_>, value: Value<'_>, fits: &mut Vec<Fit>) {
        let found = match value {
            Value::Held(number) => self.held(test, number),
            Value::Own(bytes) => self.own(test, bytes),
        };
        let Some((value, range)) = found else { return };
        let skipped = |skips: &dyn Skips| skips.skips(rule.id, &rule.tags, who.source, who.name);
        if self.skips.is_some_and(skipped) {
            return;
        }
        let fit = Fit { collection: who.collection, source: who.source, name: who.name.into(), value, range };
        if test.captures {
            self.capture(test, &fit);
        }
        self.act(test, Some(&fit));
        fits.push(fit);
    }

    fn held(&mut self, test: &Test, number: Number) -> Option<(Vec<u8>, Range<usize>)> {
        let mut number = number;
        let mut stages = test.transformations.iter();
        loop {
            if test.multi_match || stages.len() == 0 {
                if let Some(range) = self.at_stage(test, number) {
                    return Some((self.values.bytes(number).to_vec(), range));
                }
                // The next one that makes it another value.
                let before = number;
                while number == before {
                    number = self.transformed(number, *stages.next()?);
                }
            } else {
                number = self.transformed(number, *stages.next()?);
            }
        }
    }

    fn transformed(&mut self, number: Number, by: Transformation) -> Number {
        let (made, bytes) = self.values.transformed(number, by);
        self.clock.charge(bytes);
        made
    }

    fn at_stage(&mut self, test: &Test, number: Number) -> Option<Range<usize>> {
        if let Some(bit) = test.bit {
            let (has, bytes) = self.values.has(number, bit);
            self.clock.charge(bytes);
            if !has {
                return None;
            }
        }
        let value = self.values.bytes(number);
        let found = self.fits(test, value);
        let bytes = value.len();
        self.clock.charge(bytes);
        self.settled(test, found, bytes)
    }

    fn own(&mut self, test: &Test, value: Cow<'_, [u8]>) -> Option<(Vec<u8>, Range<usize>)> {
        let mut value = value;
        for by in &test.transformations {
            if let Some(made) = by.apply(&value) {
                value = made.into();
            }
        }
        let found = self.fits(test, &value);
        self.clock.charge(value.len());
        let range = self.settled(test, found, value.len())?;
        Some((value.into_owned(), range))
    }

    /// With the operator's `!`; a pattern that gave up fits nothing, and is told.
    fn settled(
        &mut self,
        test: &Test,
        found: Result<Option<Range<usize>>, ()>,
        len: usize,
    ) -> Option<Range<usize>> {
        match found {
            Ok(found) if test.negated => {
                if found.is_none() {
                    Some(0..len)
                } else {
                    None
                }
            }
            Ok(found) => found,
            Err(()) => {
                self.verdict.exhausted = true;
                None
            }
        }
    }

    fn fits(&self, test: &Test, value: &[u8]) -> Result<Option<Range<usize>>, ()> {
        let whole = |is: bool| is.then_some(0..value.len());
        Ok(match &test.operator {
            Operator::Always => whole(true),
            Operator::Never => None,
            Operator::Rx(pattern) => pattern.find(value).map_err(|_| ())?,
            Operator::RxOf(text) => {
                let filled = self.filled(text);
                let pattern =
                    std::str::from_utf8(&filled).ok().and_then(|pattern| Pattern::new(pattern).ok());
                match pattern {
                    Some(pattern) => pattern.find(value).map_err(|_| ())?,
                    None => None,
                }
            }
            Operator::Pm(words) => words.find(value).map(|found| found.range()),
            Operator::Holds(relation, text) => match text.plain() {
                Some(text) => relation.find(value, text.as_bytes()),
                None => relation.find(value, &self.filled(text)),
            },
            Operator::Compares(order, text) => whole(match text.plain() {
                Some(text) => order.holds(value, text.as_bytes()),
                None => order.holds(value, &self.filled(text)),
            }),
            Operator::IpMatch(networks) => {
                let address =
                    std::str::from_utf8(value).ok().and_then(|text| text.parse::<std::net::IpAddr>().ok());
                whole(
                    address.is_some_and(|address| networks.iter().any(|network| network.contains(&address))),
                )
            }
            Operator::Bytes(allowed) => operator::odd_byte(value, allowed),
            Operator::UrlEncoding => operator::odd_encoding(value),
            Operator::Utf8 => operator::odd_utf8(value),
            Operator::Sqli => operator::sqli(value).and_then(|_| whole(true)),
            Operator::Xss => whole(operator::xss(value)),
        })
    }

    fn capture(&mut self, test: &Test, fit: &Fit) {
        let groups: Vec<Vec<u8>> = match &test.operator {
            Operator::Rx(pattern) if !test.negated => {
                let groups = pattern.groups(&fit.value).into_iter();
                groups.map(|range| fit.value.get(range).unwrap_or_default().to_vec()).collect()
            }
            Operator::Sqli => vec![operator::sqli(&fit.value).unwrap_or_default().into_bytes()],
            _ => vec![fit.value.get(fit.range.clone()).unwrap_or_default().to_vec()],
        };
        const NAMES: [&[u8]; 10] =
            [b"tx.0", b"tx.1", b"tx.2", b"tx.3", b"tx.4", b"tx.5", b"tx.6", b"tx.7", b"tx.8", b"tx.9"];
        let mut groups = groups.into_iter();
        for name in NAMES {
            match groups.next() {
                Some(group) => self.variables.set(name, group),
                None => self.variables.unset(name),
            }
        }
    }

    fn act(&mut self, test: &'a Test, fit: Option<&Fit>) {
        for set in &test.set {
            let mut name = self.filled_at(&set.name, fit);
            name.make_ascii_lowercase();
            let sum = |of: &Self, other: &Text, sign: i64| {
                let before = of.variables.get(&name).map_or(0, operator::number);
                let change = operator::number(&of.filled_at(other, fit)).saturating_mul(sign);
                before.saturating_add(change).to_string().into_bytes()
            };
            match &set.change {
                Change::Set(value) => {
                    let value = self.filled_at(value, fit);
                    self.variables.set(&name, value);
                }
                Change::Add(value) => {
                    let value = sum(self, value, 1);
                    self.variables.set(&name, value);
                }
                Change::Subtract(value) => {
                    let value = sum(self, value, -1);
                    self.variables.set(&name, value);
                }
                Change::Unset => self.variables.unset(&name),
            }
        }
        for control in &test.control {
            match control {
                Controlled::Engine(mode) => self.mode = *mode,
                Controlled::NoBody => self.no_body = true,
                Controlled::Remove(places) => {
                    self.removed.resize(self.rules.rules.len(), false);
                    for place in places {
                        if let Some(removed) = self.removed.get_mut(*place) {
                            *removed = true;
                        }
                    }
                }
                Controlled::RemoveTarget(places, target) => self.removed_targets.push((places, target)),
            }
        }
    }

    fn filled(&self, text: &Text) -> Vec<u8> {
        self.filled_at(text, self.fits.last())
    }

    fn filled_at(&self, text: &Text, fit: Option<&Fit>) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in &text.0 {
            match piece {
                Piece::Plain(text) => out.extend(text.as_bytes()),
                Piece::Of(target) => out.extend(&*self.first(target, fit)),
            }
        }
        out
    }

    /// What `%{...}` stands for.
    fn first(&self, target: &Target, fit: Option<&Fit>) -> Cow<'_, [u8]> {
        let fit = fit.or(self.fits.last());
        match (target.collection, &target.select) {
            (Collection::MatchedVar, _) => fit.map(|fit| fit.value.clone()).unwrap_or_default().into(),
            (Collection::MatchedVarName, _) => {
                fit.map(|fit| label(fit.collection, &fit.name)).unwrap_or_default().into()
            }
            (collection, Select::Name(name)) if collection.written().is_some() => {
                let key = [collection.written().unwrap_or_default(), name].concat();
                self.variables.get(key.as_bytes()).unwrap_or_default().into()
            }
            _ => {
                let mut items = self.of(target).filter_map(|at| self.items.get(at));
                items.find(|item| target.select.fits(&item.name)).map_or(&b""[..], |item| &*item.value).into()
            }
        }
    }
}

/// As `ARGS:name`.
fn label(collection: Collection, name: &[u8]) -> Vec<u8> {
    let of = match collection {
        Collection::ArgsGet | Collection::ArgsPost => "ARGS",
        Collection::ArgsGetNames | Collection::ArgsPostNames => "ARGS_NAMES",
        other => other.label(),
    };
    if name.is_empty() { of.as_bytes().to_vec() } else { [of.as_bytes(), b":", name].concat() }
}
