use super::super::NodeIdentity;
use super::super::pem::encode;
use super::*;

fn again(key: &ClusterKey) -> ClusterKey {
    ClusterKey::parse(&key.to_pem()).unwrap()
}

/// A key after each step of its rotation: old; old and new; new and old; new.
fn rotated() -> [ClusterKey; 4] {
    let one = ClusterKey::generate().unwrap();
    let (step, added) = one.stepped().unwrap();
    assert_eq!(step, Step::Add);
    let (step, used) = again(&added).stepped().unwrap();
    assert_eq!(step, Step::Use);
    let (step, dropped) = again(&used).stepped().unwrap();
    assert_eq!(step, Step::Drop);
    [one, added, used, dropped]
}

fn part(text: &str, label: &str) -> String {
    let from = text.find(&format!("-----BEGIN {label}")).unwrap();
    let end = format!("-----END {label}-----\n");
    text[from..from + text[from..].find(&end).unwrap() + end.len()].to_owned()
}

#[test]
fn a_key_file_reads_back_as_what_was_written() {
    for key in rotated() {
        let again = again(&key);
        assert_eq!((again.ids(), again.stage()), (key.ids(), key.stage()));
        assert_eq!(again.gossip_keys(), key.gossip_keys());
        assert_eq!(again.cookie_keys(), key.cookie_keys());
        assert!(key.cookie_keys().current != key.gossip_keys().current);
        assert_eq!((again.seed(), again.seeds_id()), (key.seed(), key.seeds_id()));
        assert_eq!(again.authorities(), key.authorities());
        assert_eq!(again.to_pem(), key.to_pem());
    }
}

#[test]
fn a_rotation_ends_with_the_new_key_alone() {
    let [one, added, used, dropped] = rotated();
    assert_eq!(
        [one.stage(), added.stage(), used.stage(), dropped.stage()],
        [Stage::One, Stage::Added, Stage::Used, Stage::One]
    );
    assert_eq!(added.id(), one.id());
    assert_eq!((Some(used.id()), used.ids().other), (added.ids().other, Some(one.id())));
    assert_eq!(dropped.ids(), Both { current: used.id(), other: None });
    assert_ne!(dropped.id(), one.id());
    let secrets = [one.gossip_keys(), dropped.gossip_keys()];
    assert!(
        secrets[0].current != secrets[1].current
            && dropped.cookie_keys().current != one.cookie_keys().current
    );
    assert!(!dropped.to_pem().contains(encode(one.gossip_keys().current.as_slice()).as_str()));
}

#[test]
fn what_nodes_agree_on_stays_through_every_step_and_every_further_rotation() {
    let [one, .., dropped] = rotated();
    assert_eq!(one.seed(), one.cookie_keys().current, "as it was before there were rotations");
    let mut key = one.clone();
    for _ in 0..9 {
        key = again(&key.stepped().unwrap().1);
        assert_eq!(
            (key.seed(), key.digest_key(), key.seeds_id()),
            (one.seed(), one.digest_key(), one.seeds_id())
        );
    }
    assert_ne!(dropped.seeds_id(), ClusterKey::generate().unwrap().seeds_id());
}

#[test]
fn any_file_knows_the_current_key_of_the_step_before_and_of_the_step_after() {
    for pair in rotated().windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        for (one, other) in [(before, after), (after, before)] {
            assert!(other.ids().iter().any(|known| *known == one.id()), "{one:?} {other:?}");
        }
    }
}

#[test]
fn debug_prints_no_secret() {
    for key in rotated() {
        let shown = format!("{key:?} {:?}", NodeIdentity::joining(&key, "n").unwrap());
        assert!(shown.contains(&key.id().to_string()));
        assert!(!shown.contains("PRIVATE"), "{shown}");
        // Neither as text nor as numbers.
        for secret in key.gossip_keys().iter() {
            let (text, numbers) = (encode(secret.as_slice()), format!("{secret:?}"));
            assert!(!shown.contains(&text[..8]) && !shown.contains(&numbers[..16]), "{shown}");
        }
    }
}

#[test]
fn a_damaged_file_says_what_is_wrong() {
    let good = ClusterKey::generate().unwrap().to_pem().to_string();
    let other = ClusterKey::generate().unwrap().to_pem().to_string();
    let (cert, private, gossip) = (part(&good, CERTIFICATE), part(&good, PRIVATE_KEY), part(&good, GOSSIP));
    let cases = [
        (String::new(), "no TRESTLE GOSSIP KEY block"),
        (format!("{cert}{gossip}"), "no PRIVATE KEY block"),
        (format!("{private}{gossip}"), "no CERTIFICATE block"),
        (format!("{cert}{private}"), "no TRESTLE GOSSIP KEY block"),
        (format!("{good}{cert}"), "two CERTIFICATE blocks"),
        (format!("{good}{gossip}"), "two TRESTLE GOSSIP KEY blocks"),
        (format!("{}{private}{gossip}", part(&other, CERTIFICATE)), "does not belong"),
        (good.replace(&gossip, &gossip.replace("\n-----END", "AAAA\n-----END")), "damaged"),
        (
            format!("{good}-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n"),
            "unexpected block",
        ),
        (format!("{good}{}", part(&good, GOSSIP).replace("GOSSIP KEY", "SEEDS")), "64 are right"),
        ("x".repeat(MAX_FILE + 1), "not a key file"),
    ];
    for (text, expected) in cases {
        let error = ClusterKey::parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
}

#[test]
fn two_keys_are_taken_in_the_order_that_was_written_and_in_no_other() {
    let [one, added, used, dropped] = rotated().map(|key| key.to_pem().to_string());
    let keys = |text: &str| {
        let end = format!("-----END {GOSSIP}-----\n");
        let first = text.find("-----BEGIN").unwrap();
        let (middle, last) = (text.find(&end).unwrap() + end.len(), text.rfind(&end).unwrap() + end.len());
        [&text[first..middle], &text[middle..last], &text[last..]].map(str::to_owned)
    };
    let [old, new, rest] = keys(&added);
    let [_, _, rest_used] = keys(&used);
    let seeds = part(&added, SEEDS);
    let cases = [
        (format!("{one}{dropped}"), "only `trestle key rotate`"),
        (format!("{new}{old}{rest}"), "not of the keys in it"),
        (format!("{old}{new}{rest_used}"), "not of the keys in it"),
        (format!("{old}{rest}"), "but a single key"),
        (format!("{old}{new}{}", part(&added, ROTATION)), "no TRESTLE SEEDS block"),
        (added.replace(&seeds, &part(&rotated()[1].to_pem(), SEEDS)), "not of the keys in it"),
        (format!("{old}{new}{new}{rest}"), "two TRESTLE GOSSIP KEY blocks"),
        (format!("{added}{}", part(&added, ROTATION)), "two TRESTLE ROTATION blocks"),
        // The gossip keys exchanged, all else in its place.
        (
            format!("{old}{new}{rest}")
                .replace(&part(&old, GOSSIP), "@")
                .replace(&part(&new, GOSSIP), &part(&old, GOSSIP))
                .replace('@', &part(&new, GOSSIP)),
            "not of the keys in it",
        ),
    ];
    for (text, expected) in cases {
        let error = ClusterKey::parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    assert!(ClusterKey::parse(&format!("# kept\n{old}# two\n{new}{rest}")).is_ok(), "comments don't matter");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = ClusterKey::parse(&text);
    }
}
