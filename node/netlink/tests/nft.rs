//! nf_tables against the kernel, in a namespace: transactions, sets, maps and the `inet` family.
#![allow(clippy::unwrap_used)]

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use trestle_netlink::{
    Error,
    nft::{
        Batch, DataType, Element, Expression as X, Family, Field, Hook, Nft, Register, Set, Table,
        TableFlags, Verdict,
    },
    testing::{Namespace, available},
};

const TABLE: Table<'static> = Table { family: Family::Inet, name: "trial" };

#[test]
fn a_transaction_that_fails_says_where_and_leaves_nothing() {
    if !available(&[]) {
        return;
    }
    Namespace::new("nft").enter(|| {
        let mut nft = Nft::open().unwrap();
        let error = nft
            .change(|batch| {
                batch.table(TABLE, TableFlags::NONE);
                batch.set(TABLE, &Set::new("some", DataType::IPV4));
                batch.delete_set(TABLE, "others");
                batch.add_elements(TABLE, "some", &[Element::new(&[198, 18, 0, 1])]);
            })
            .unwrap_err();
        assert!(matches!(error, Error::Refused { what: "delete a set", errno: Errno::NOENT, .. }), "{error}");
        assert_eq!(nft.tables().unwrap(), []);
        assert_eq!(nft.elements(TABLE, "some").unwrap(), None);
        assert!(Batch::new().is_empty());
        nft.commit(&Batch::new().finish()).unwrap();
    });
}

#[test]
fn what_does_not_own_a_table_can_not_change_it() {
    if !available(&[]) {
        return;
    }
    Namespace::new("nft").enter(|| {
        let (mut owner, mut other) = (Nft::open().unwrap(), Nft::open().unwrap());
        if let Err(error) = owner.change(|batch| batch.table(TABLE, TableFlags::OWNER)) {
            eprintln!("skipped: this kernel has no owned tables: {error}");
            return;
        }
        assert!(owner.table(TABLE).unwrap().unwrap().flags.owner());
        let error = other.change(|batch| batch.delete_table(TABLE)).unwrap_err();
        assert!(
            matches!(error, Error::Refused { what: "delete a table", errno: Errno::PERM, .. }),
            "{error}"
        );
        drop(owner);
        let end = Instant::now() + Duration::from_secs(2);
        while other.table(TABLE).unwrap().is_some() {
            assert!(Instant::now() < end, "without persist it goes with its owner");
        }
    });
}

#[test]
fn sets_and_maps_keep_what_they_are_given() {
    if !available(&[]) {
        return;
    }
    Namespace::new("nft").enter(|| {
        let mut nft = Nft::open().unwrap();
        nft.socket().set_send_buffer(4 * 1024 * 1024).unwrap();
        let flow = DataType::concat(&[DataType::IPV4, DataType::PORT]);
        // More than fit one message, or the socket's usual buffer.
        let keys: Vec<[u8; 8]> =
            (0..20_000u16).map(|n| [198, 18, 0, 1, n.to_be_bytes()[0], n.to_be_bytes()[1], 0, 0]).collect();
        nft.change(|batch| {
            batch.table(TABLE, TableFlags::NONE);
            batch.set(TABLE, &Set { timeout: true, size: Some(30_000), ..Set::new("flows", flow) });
            batch.set(TABLE, &Set { value: Some(DataType::IPV6), ..Set::new("map", DataType::IPV4) });
            let elements: Vec<_> =
                keys.iter().map(|key| Element::new(key).lasting(Duration::from_secs(60))).collect();
            batch.add_elements(TABLE, "flows", &elements);
            batch.add_elements(TABLE, "map", &[Element::new(&[198, 18, 0, 9]).with(&[7; 16])]);
        })
        .unwrap();
        let listed = nft.elements(TABLE, "flows").unwrap().unwrap();
        assert_eq!(listed.len(), 20_000);
        for element in &listed {
            assert_eq!(element.timeout, Some(Duration::from_secs(60)));
            assert!(element.expires.is_some_and(|left| left > Duration::from_secs(50)), "{element:?}");
        }
        let map = nft.elements(TABLE, "map").unwrap().unwrap();
        assert_eq!(
            (map[0].key.as_slice(), map[0].value.as_deref()),
            (&[198, 18, 0, 9][..], Some(&[7; 16][..]))
        );

        nft.change(|batch| {
            let [first, second] = [Element::new(&keys[0]), Element::new(&keys[1])];
            batch.renew(TABLE, "flows", first.lasting(Duration::from_secs(600)));
            batch.expel(TABLE, "flows", second.lasting(Duration::from_secs(1)));
            // Not there, and no failure.
            batch.expel(TABLE, "flows", Element::new(&[9; 8]).lasting(Duration::from_secs(1)));
        })
        .unwrap();
        let listed = nft.elements(TABLE, "flows").unwrap().unwrap();
        assert_eq!(listed.len(), 19_999);
        let first = listed.iter().find(|element| element.key == keys[0]).unwrap();
        assert!(first.expires.is_some_and(|left| left > Duration::from_secs(500)), "{first:?}");
        nft.change(|batch| batch.flush_set(TABLE, "flows")).unwrap();
        assert_eq!(nft.elements(TABLE, "flows").unwrap().unwrap(), []);
    });
}

#[test]
fn an_inet_chain_decides() {
    if !available(&["nft"]) {
        return;
    }
    let namespace = Namespace::new("nft");
    namespace.enter(|| {
        let mut nft = Nft::open().unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let port = server.local_addr().unwrap().port().to_be_bytes();
        let r = Register(0);
        nft.change(|batch| {
            batch.table(TABLE, TableFlags::NONE);
            batch.base_chain(TABLE, "in", Hook::Inet { hook: 1 }, 0);
            batch.rule(
                TABLE,
                "in",
                &[
                    X::LoadEthertype(r),
                    X::Equal(r, &[8, 0]),
                    X::LoadProtocol(r),
                    X::NotEqual(r, &[6]),
                    X::Load(Field::DESTINATION_PORT, r),
                    X::Equal(r, &port),
                    X::Counter,
                    X::Decide(Verdict::Drop),
                ],
            );
        })
        .unwrap();
        let send = || {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            let _ = client.send_to(b"x", server.local_addr().unwrap());
            server.recv(&mut [0; 8]).is_ok()
        };
        assert!(!send(), "dropped");
        let text = namespace.run("nft", "list table inet trial");
        assert!(text.contains("counter packets 1 bytes 29 drop"), "{text}");
        assert_eq!(nft.rules(TABLE).unwrap().len(), 1);
        let chain = nft.chains(TABLE).unwrap().remove(0);
        assert_eq!((chain.name.as_str(), chain.hook), ("in", Some((1, 0, None))));
        nft.change(|batch| batch.flush_chain(TABLE, "in")).unwrap();
        assert!(send(), "nothing decides any more");
        nft.change(|batch| batch.delete_chain(TABLE, "in")).unwrap();
        assert_eq!(nft.chains(TABLE).unwrap(), []);
    });
}
