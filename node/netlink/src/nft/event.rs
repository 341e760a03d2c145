//! What changes in the ruleset, by whomever. The changes of one transaction come together and end with
//! [`Event::Generation`]: only then do they hold (an extended element comes as new, deleted, new).
//! An element that ends by itself makes no event: its reader goes by what was left of it.

use std::os::fd::{AsFd, BorrowedFd};

use super::{ChainInfo, ListedElement, RuleInfo, TableInfo, kind_of, list, msg};
use crate::{
    socket::{Error, Groups, Protocol, Socket},
    wire::Message,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    TableAdded(TableInfo),
    TableDeleted(TableInfo),
    ChainAdded(ChainInfo),
    ChainDeleted(ChainInfo),
    RuleAdded(RuleInfo),
    RuleDeleted(RuleInfo),
    SetAdded {
        table: String,
        set: String,
    },
    SetDeleted {
        table: String,
        set: String,
    },
    /// New ones, or live ones with a new time-out.
    ElementsAdded {
        table: String,
        set: String,
        elements: Vec<ListedElement>,
    },
    /// Empty: all there were.
    ElementsDeleted {
        table: String,
        set: String,
        elements: Vec<ListedElement>,
    },
    /// The changes before it took effect.
    Generation {
        number: u32,
        /// Who made them: the id of the thread, which is the process's id for its first one.
        thread: Option<u32>,
    },
}

impl Event {
    /// The table that it is about.
    #[must_use]
    pub fn table(&self) -> Option<&str> {
        match self {
            Self::TableAdded(table) | Self::TableDeleted(table) => Some(&table.name),
            Self::ChainAdded(chain) | Self::ChainDeleted(chain) => Some(&chain.table),
            Self::RuleAdded(rule) | Self::RuleDeleted(rule) => Some(&rule.table),
            Self::SetAdded { table, .. }
            | Self::SetDeleted { table, .. }
            | Self::ElementsAdded { table, .. }
            | Self::ElementsDeleted { table, .. } => Some(table),
            Self::Generation { .. } => None,
        }
    }
}

/// Follows the ruleset of this network namespace. What there is when it begins is read with
/// [`Nft`](super::Nft), after this was opened.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    pub fn start() -> Result<Self, Error> {
        let socket = Socket::listen(Protocol::Netfilter, Groups::NFTABLES)?;
        // A large ruleset of somebody else's comes in one burst; the default holds some hundred events.
        let _ = socket.set_receive_buffer(4 * 1024 * 1024);
        Ok(Self { socket })
    }

    /// Room for events that wait to be read.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<(), Error> {
        self.socket.set_receive_buffer(bytes)
    }

    /// What has happened, without waiting; empty if nothing has. After [`Error::EventsLost`]: read it all.
    pub fn read(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        while events.len() < 4096 && self.socket.events(|message| events.extend(read(message)))? {}
        Ok(events)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read(message: &Message<'_>) -> Option<Event> {
    Some(match kind_of(message)? {
        msg::NEWTABLE => Event::TableAdded(list::read_table(message)?),
        msg::DELTABLE => Event::TableDeleted(list::read_table(message)?),
        msg::NEWCHAIN => Event::ChainAdded(list::read_chain(message)?),
        msg::DELCHAIN => Event::ChainDeleted(list::read_chain(message)?),
        msg::NEWRULE => Event::RuleAdded(list::read_rule(message)?),
        msg::DELRULE => Event::RuleDeleted(list::read_rule(message)?),
        kind @ (msg::NEWSET | msg::DELSET) => {
            let (_, attributes) = message.split::<4>()?;
            let (table, set) = (attributes.find(1)?.text(), attributes.find(2)?.text());
            if kind == msg::NEWSET {
                Event::SetAdded { table, set }
            } else {
                Event::SetDeleted { table, set }
            }
        }
        msg::NEWSETELEM => {
            let (table, set, elements) = list::read_elements(message)?;
            Event::ElementsAdded { table, set, elements }
        }
        msg::DELSETELEM => {
            let (table, set, elements) = list::read_elements(message)?;
            Event::ElementsDeleted { table, set, elements }
        }
        msg::NEWGEN => {
            let (_, attributes) = message.split::<4>()?;
            let thread = attributes.find(2).and_then(|a| a.be32());
            Event::Generation { number: attributes.find(1)?.be32()?, thread }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn events_of_any_bytes_are_read(kind in 0u16..24, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let message = Message { kind: 10 << 8 | kind, flags: 0, sequence: 0, port: 0, payload: &payload };
            let _ = read(&message);
        }
    }
}
