//! Reading the ruleset: tables, chains and rules (by handle, so that a replaced one shows), and the
//! elements of a set with what is left of them.

use std::time::Duration;

use rustix::io::Errno;

use super::{Nft, ObjectKind, SUBSYSTEM, Table, TableFlags, kind_of, msg};
use crate::{
    socket::{Error, next_sequence},
    wire::{self, Attribute, Attributes, Builder, Message},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    pub name: String,
    /// NFPROTO_*.
    pub family: u8,
    pub handle: u64,
    pub flags: TableFlags,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainInfo {
    pub table: String,
    pub name: String,
    pub handle: u64,
    /// Number, priority and device of a base chain.
    pub hook: Option<(u32, i32, Option<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleInfo {
    pub table: String,
    pub chain: String,
    pub handle: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedElement {
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
    pub timeout: Option<Duration>,
    /// What is left of it.
    pub expires: Option<Duration>,
}

/// What a counter has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    pub packets: u64,
    pub bytes: u64,
}

/// An element of a dynamic set, and what it has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedElement {
    pub key: Vec<u8>,
    pub counted: Counted,
}

impl Nft {
    /// All tables, of all families.
    pub fn tables(&mut self) -> Result<Vec<TableInfo>, Error> {
        self.ask(
            msg::GETTABLE,
            wire::DUMP,
            0,
            "list tables",
            |_| {},
            |message| (kind_of(message)? == msg::NEWTABLE).then(|| read_table(message)).flatten(),
        )
    }

    /// `None`: there is no such table.
    pub fn table(&mut self, table: Table<'_>) -> Result<Option<TableInfo>, Error> {
        let family = table.family.number();
        Ok(self.tables()?.into_iter().find(|t| t.family == family && t.name == table.name))
    }

    /// The chains of a table; none where there is no such table.
    pub fn chains(&mut self, table: Table<'_>) -> Result<Vec<ChainInfo>, Error> {
        let (family, name) = (table.family.number(), table.name);
        self.ask(
            msg::GETCHAIN,
            wire::DUMP,
            family,
            "list chains",
            |_| {},
            |message| (kind_of(message)? == msg::NEWCHAIN).then(|| read_chain(message)).flatten(),
        )
        .map(|chains| chains.into_iter().filter(|chain| chain.table == name).collect())
    }

    /// The rules of a table; none where there is no such table.
    pub fn rules(&mut self, table: Table<'_>) -> Result<Vec<RuleInfo>, Error> {
        let (family, name) = (table.family.number(), table.name);
        let filter = |builder: &mut Builder| builder.name(1, name);
        self.ask(msg::GETRULE, wire::DUMP, family, "list rules", filter, |message| {
            (kind_of(message)? == msg::NEWRULE).then(|| read_rule(message)).flatten()
        })
        .map(|rules| rules.into_iter().filter(|rule| rule.table == name).collect())
    }

    /// The elements of a set that have not ended; `None`: there is no such set.
    pub fn elements(&mut self, table: Table<'_>, set: &str) -> Result<Option<Vec<ListedElement>>, Error> {
        let names = |builder: &mut Builder| {
            builder.name(1, table.name);
            builder.name(2, set);
        };
        let family = table.family.number();
        let lists = self.ask(msg::GETSETELEM, wire::DUMP, family, "list elements", names, |message| {
            (kind_of(message)? == msg::NEWSETELEM).then(|| read_elements(message)).flatten()
        });
        match lists {
            Ok(lists) => Ok(Some(lists.into_iter().flat_map(|(_, _, elements)| elements).collect())),
            Err(error) if error.is(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The counters of a table, by name; none where there is no such table.
    pub fn counters(&mut self, table: Table<'_>) -> Result<Vec<(String, Counted)>, Error> {
        let filter = |builder: &mut Builder| {
            builder.name(1, table.name);
            builder.be32(3, ObjectKind::Counter.number());
        };
        let family = table.family.number();
        self.ask(msg::GETOBJ, wire::DUMP, family, "list counters", filter, |message| {
            let (_, attributes) = message.split::<4>()?;
            let is_ours = kind_of(message)? == msg::NEWOBJ && attributes.find(1)?.text() == table.name;
            let data = attributes.find(4).filter(|_| is_ours)?.nested();
            let value = |kind| data.find(kind).and_then(|a| a.be64()).unwrap_or(0);
            Some((attributes.find(2)?.text(), Counted { bytes: value(1), packets: value(2) }))
        })
    }

    /// The elements of a dynamic set whose [`super::Meter`] counts packets; `None`: there is no such set.
    pub fn counted(&mut self, table: Table<'_>, set: &str) -> Result<Option<Vec<CountedElement>>, Error> {
        let names = |builder: &mut Builder| {
            builder.name(1, table.name);
            builder.name(2, set);
        };
        let family = table.family.number();
        let lists = self.ask(msg::GETSETELEM, wire::DUMP, family, "list elements", names, |message| {
            (kind_of(message)? == msg::NEWSETELEM).then(|| read_counted(message)).flatten()
        });
        match lists {
            Ok(lists) => Ok(Some(lists.into_iter().flatten().collect())),
            Err(error) if error.is(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask<T>(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        what: &'static str,
        put: impl FnOnce(&mut Builder),
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(128);
        let open = builder.message(SUBSYSTEM | kind, wire::REQUEST | flags, sequence);
        builder.raw(&[family, 0, 0, 0]);
        put(&mut builder);
        builder.end_message(open);
        self.socket.ask(builder.bytes(), sequence, what, |found, message| found.extend(read(message)))
    }
}

pub(super) fn read_table(message: &Message<'_>) -> Option<TableInfo> {
    let (header, attributes) = message.split::<4>()?;
    Some(TableInfo {
        name: attributes.find(1)?.text(),
        family: header[0],
        handle: attributes.find(4).and_then(|a| a.be64()).unwrap_or(0),
        flags: TableFlags(attributes.find(2).and_then(|a| a.be32()).unwrap_or(0)),
    })
}

pub(super) fn read_chain(message: &Message<'_>) -> Option<ChainInfo> {
    let (_, attributes) = message.split::<4>()?;
    let hook = attributes.find(4).and_then(|hook| {
        let hook = hook.nested();
        let device = hook.find(3).or_else(|| hook.find(4)?.nested().next());
        Some((hook.find(1)?.be32()?, hook.find(2)?.be32()?.cast_signed(), device.map(|d| d.text())))
    });
    Some(ChainInfo {
        table: attributes.find(1)?.text(),
        name: attributes.find(3)?.text(),
        handle: attributes.find(2).and_then(|a| a.be64()).unwrap_or(0),
        hook,
    })
}

pub(super) fn read_rule(message: &Message<'_>) -> Option<RuleInfo> {
    let (_, attributes) = message.split::<4>()?;
    Some(RuleInfo {
        table: attributes.find(1)?.text(),
        chain: attributes.find(2)?.text(),
        handle: attributes.find(3).and_then(|a| a.be64()).unwrap_or(0),
    })
}

/// Table, set and elements.
pub(super) fn read_elements(message: &Message<'_>) -> Option<(String, String, Vec<ListedElement>)> {
    let (_, attributes) = message.split::<4>()?;
    let list = attributes.find(3).map_or(Attributes(&[]), |list| list.nested());
    let elements = list.filter_map(|element| read_element(element.nested())).collect();
    Some((attributes.find(1)?.text(), attributes.find(2)?.text(), elements))
}

fn read_counted(message: &Message<'_>) -> Option<Vec<CountedElement>> {
    let (_, attributes) = message.split::<4>()?;
    let list = attributes.find(3)?.nested();
    let read = |element: Attribute<'_>| {
        let element = element.nested();
        let key = element.find(1)?.nested().find(1)?.value.to_vec();
        let counter = element.find(7)?.nested().find(2)?.nested();
        let value = |kind| counter.find(kind).and_then(|a| a.be64()).unwrap_or(0);
        Some(CountedElement { key, counted: Counted { bytes: value(1), packets: value(2) } })
    };
    Some(list.filter_map(read).collect())
}

fn read_element(attributes: Attributes<'_>) -> Option<ListedElement> {
    let bytes = |data: Attribute<'_>| data.nested().find(1).map(|value| value.value.to_vec());
    let ms = |kind| attributes.find(kind).and_then(|a: Attribute<'_>| a.be64()).map(Duration::from_millis);
    Some(ListedElement {
        key: bytes(attributes.find(1)?)?,
        value: attributes.find(2).and_then(bytes),
        timeout: ms(4),
        expires: ms(5),
    })
}
