//! Users of basic authentication (RFC 7617), and the hashes of their passwords.

use argon2::{Algorithm, Params, PasswordHash};

use super::Parsed;
use crate::problem::{Fault, shown};

/// KiB that one look at a password may take: two of them run at once.
const MEMORY_MAX: u32 = 64 << 10;
/// KiB, times passes over them: about half a second of a processor.
const WORK_MAX: u64 = 512 << 10;
/// About a second of a processor.
const BCRYPT_COST_MAX: u32 = 14;

pub(crate) fn user_name(text: &str) -> Parsed<String> {
    if text.is_empty() || text.len() > 255 {
        return Err(Fault::new("a user's name has 1 to 255 bytes"));
    }
    if text.contains(':') {
        return Err(Fault::new("a user's name has no `:`, which ends it in a request"));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new("a user's name has no control characters"));
    }
    Ok(text.to_owned())
}

/// The text is never shown: it may be a password.
pub(crate) fn password_hash(text: &str) -> Parsed<String> {
    const HELP: &str = "make one by `htpasswd -nB NAME` (bcrypt) or `argon2 SALT -id -e`";
    let identifier = text.strip_prefix('$').and_then(|rest| rest.split('$').next());
    match identifier {
        Some("argon2id" | "argon2i" | "argon2d") => argon2(text)?,
        Some("2a" | "2b" | "2y") => bcrypt(text)?,
        Some(other) if text.matches('$').count() > 2 && other.len() <= 16 => {
            let message =
                format!("hashes of {} are not taken, only those of argon2 and bcrypt", shown(other));
            return Err(Fault::new(message).help(HELP));
        }
        _ => return Err(Fault::new("this is no hash of a password").help(HELP)),
    }
    Ok(text.to_owned())
}

fn argon2(text: &str) -> Parsed<()> {
    let hash =
        PasswordHash::new(text).map_err(|error| Fault::new(format!("this is no hash of argon2: {error}")))?;
    let params =
        Params::try_from(&hash).map_err(|error| Fault::new(format!("this is no hash of argon2: {error}")))?;
    if hash.salt.is_none() || hash.hash.is_none() || Algorithm::try_from(hash.algorithm).is_err() {
        return Err(Fault::new("this is no whole hash of argon2: its salt or its end is missing"));
    }
    let (memory, passes) = (params.m_cost(), params.t_cost());
    if memory > MEMORY_MAX || u64::from(memory) * u64::from(passes) > WORK_MAX {
        let message = format!("a look at this password takes {memory} KiB, {passes} times over");
        return Err(Fault::new(message)
            .help(format!("at most {MEMORY_MAX} KiB are taken, and {WORK_MAX} KiB in all passes together")));
    }
    Ok(())
}

/// `$2y$10$`, then 22 characters of salt and 31 of hash.
fn bcrypt(text: &str) -> Parsed<()> {
    let mut parts = text.split('$').skip(2);
    let cost = parts.next().filter(|cost| cost.len() == 2).and_then(|cost| cost.parse::<u32>().ok());
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/');
    let is_whole = parts.next().is_some_and(|rest| rest.len() == 53 && rest.bytes().all(is_letter));
    let Some(cost) = cost.filter(|_| is_whole && parts.next().is_none()) else {
        return Err(Fault::new("this is no whole hash of bcrypt: `$2y$`, two digits, `$` and 53 characters"));
    };
    if !(4..=BCRYPT_COST_MAX).contains(&cost) {
        return Err(Fault::new(format!(
            "a cost of {cost} is out of range, 4 to {BCRYPT_COST_MAX} is allowed"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_common_tools_are_taken() {
        for hash in [
            "$2y$05$/t1Qdn9.cEPKy6lfPOOi/.ZCBX3k0IVZjAyZrt4Vm0plJt1jVWHIe",
            "$argon2id$v=19$m=4096,t=3,p=1$c29tZXNhbHQ$QCiFc5jLZ9nBYpvJzCPQnW3AaXNpbsCQpSDNCmBbWtQ",
            "$argon2i$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$QCiFc5jLZ9nBYpvJzCPQnW3AaXNpbsCQpSDNCmBbWtQ",
        ] {
            assert!(password_hash(hash).is_ok(), "{hash}");
        }
    }

    #[test]
    fn what_is_no_hash_or_takes_too_long_is_refused_and_never_shown() {
        for (text, why) in [
            ("hunter2", "no hash"),
            ("$hunter2", "no hash"),
            ("$apr1$ZjTqBB3f$IF9gdYAGlMrs2fuINjHsz.", "`apr1`"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "no hash"),
            ("$2y$05$short", "no whole hash of bcrypt"),
            ("$2y$31$/t1Qdn9.cEPKy6lfPOOi/.ZCBX3k0IVZjAyZrt4Vm0plJt1jVWHIe", "cost of 31"),
            ("$argon2id$v=19$m=4096,t=3,p=1$c29tZXNhbHQ", "no whole hash"),
            (
                "$argon2id$v=19$m=1048576,t=3,p=1$c29tZXNhbHQ$QCiFc5jLZ9nBYpvJzCPQnW3AaXNpbsCQpSDNCmBbWtQ",
                "1048576 KiB",
            ),
            (
                "$argon2id$v=19$m=65536,t=9,p=1$c29tZXNhbHQ$QCiFc5jLZ9nBYpvJzCPQnW3AaXNpbsCQpSDNCmBbWtQ",
                "9 times",
            ),
            ("$argon2id$nonsense", "no whole hash"),
        ] {
            let fault = password_hash(text).expect_err(text);
            assert!(fault.message.contains(why), "{text}: {}", fault.message);
        }
    }
}
