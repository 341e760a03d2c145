//! Basic authentication (RFC 7617): who may send requests to a rule.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use trestle_config::model;

use crate::metrics::Reason;
use crate::passwords::{Passwords, Verdict};

#[derive(Debug)]
pub(crate) struct Auth {
    /// What asks for a password.
    challenge: HeaderValue,
    users: BTreeMap<String, String>,
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
        }))
    }

    pub(crate) fn challenge(&self) -> HeaderValue {
        self.challenge.clone()
    }

    pub(crate) async fn pass(&self, headers: &HeaderMap, passwords: &Passwords) -> Result<(), Reason> {
        let (user, password) = credentials(headers).ok_or(Reason::Unauthorized)?;
        let known = self.users.get(&user);
        // For a name that nobody has the look takes as long, so that names can't be found out.
        let any = self.users.values().next();
        let Some(hash) = known.or(any) else { return Err(Reason::Unauthorized) };
        match passwords.check(&user, &password, hash).await {
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
    fn a_realm_is_quoted() {
        let users = [("ann".to_owned(), "$2y$...".to_owned())].into();
        let auth = Auth::compile(&model::Auth { realm: "the \"shop\"".to_owned(), users }).unwrap();
        assert_eq!(auth.challenge(), r#"Basic realm="the \"shop\"", charset="UTF-8""#);
    }
}
