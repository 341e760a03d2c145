//! Basic authentication (RFC 7617): who may send requests to a rule.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use trestle_config::model;

use crate::metrics::Reason;
use crate::passwords::{self, Passwords, Verdict};

#[derive(Debug)]
pub(crate) struct Auth {
    /// What asks for a password.
    challenge: HeaderValue,
    users: BTreeMap<String, String>,
    /// The one that takes longest to look at.
    costliest: String,
}

impl Auth {
    /// `None`: everybody may.
    pub(crate) fn compile(auth: &model::Auth) -> Option<Box<Self>> {
        if auth.users.is_empty() {
            return None;
        }
        let realm: String = auth.realm.chars().filter(|c| !c.is_control()).collect();
        let realm = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let challenge = HeaderValue::try_from(format!("Basic realm=\"{realm}\", charset=\"UTF-8\""));
        Some(Box::new(Self {
            challenge: challenge.unwrap_or(HeaderValue::from_static("Basic realm=\"restricted\"")),
            users: auth.users.clone(),
            costliest: auth
                .users
                .values()
                .max_by_key(|hash| passwords::cost(hash))
                .cloned()
                .unwrap_or_default(),
        }))
    }

    pub(crate) fn challenge(&self) -> HeaderValue {
        self.challenge.clone()
    }

    pub(crate) async fn pass(&self, headers: &HeaderMap, passwords: &Passwords) -> Result<(), Reason> {
        let (user, password) = credentials(headers).ok_or(Reason::Unauthorized)?;
        let known = self.users.get(&user);
        // For a name that nobody has the look takes as long, so that names can't be found out.
        match passwords.check(&user, &password, known.unwrap_or(&self.costliest)).await {
            Verdict::Right if known.is_some() => Ok(()),
            Verdict::Right | Verdict::Wrong => Err(Reason::Unauthorized),
            Verdict::Busy => Err(Reason::AuthBusy),
        }
    }
}

/// Name and password of the only `Authorization` there is.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let mut all = headers.get_all(AUTHORIZATION).into_iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let mut user = STANDARD.decode(token.trim()).ok()?;
    let colon = user.iter().position(|b| *b == b':')?;
    let password = user.split_off(colon + 1);
    user.pop();
    Some((String::from_utf8(user).ok()?, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_rfc_7617_says() {
        let of = |values: &[&'static str]| {
            let field = |value: &&'static str| (AUTHORIZATION, HeaderValue::from_static(value));
            credentials(&values.iter().map(field).collect())
        };
        // The RFC's own examples.
        let aladdin = Some(("Aladdin".to_owned(), b"open sesame".to_vec()));
        assert_eq!(of(&["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]), aladdin);
        assert_eq!(of(&["basic  QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]), aladdin);
        assert_eq!(of(&["Basic dGVzdDoxMjPCow=="]), Some(("test".to_owned(), "123£".as_bytes().to_vec())));
        // A password may have colons.
        assert_eq!(of(&["Basic YTpiOmM="]), Some(("a".to_owned(), b"b:c".to_vec())));
        let twice = "Basic YTpiOmM=";
        for bad in [
            &["Bearer YTpiOmM="][..],
            &["Basic"],
            &["Basic YWJj"],
            &["Basic ???"],
            &["Basic /zpi"],
            &[twice, twice],
            &[],
        ] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_nobody_has_takes_as_long_as_the_costliest_hash() {
        let costliest = |hashes: &[&str]| {
            let users = hashes.iter().enumerate().map(|(at, hash)| (at.to_string(), (*hash).to_owned()));
            let auth = Auth::compile(&model::Auth { realm: String::new(), users: users.collect() });
            auth.expect("it has users").costliest
        };
        let (cheap, dear) = ("$2y$04$a", "$2b$11$a");
        assert_eq!(costliest(&[cheap, dear]), dear);
        assert_eq!(costliest(&[dear, cheap]), dear);
        let small = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$4mqQiyq0VpIzuZmp+8eSF3YJ7Av58TkEJ4LIdOVsAc4";
        let large = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$QCiFc5jLZ9nBYpvJzCPQnW3AaXNpbsCQpSDNCmBbWtQ";
        assert_eq!(costliest(&[small, large, cheap]), large);
        assert_eq!(costliest(&[small, dear]), dear);
        assert_eq!(costliest(&[cheap, small]), cheap);
    }

    #[test]
    fn a_realm_is_quoted() {
        let users = [("ann".to_owned(), "$2y$...".to_owned())].into();
        let auth = Auth::compile(&model::Auth { realm: "the \"shop\"".to_owned(), users }).unwrap();
        assert_eq!(auth.challenge(), r#"Basic realm="the \"shop\"", charset="UTF-8""#);
    }
}
