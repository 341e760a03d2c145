//! Whether a password is the one of a hash: looked at off the workers, and remembered for a moment.
//!
//! A look takes some 10 to 500 ms of a processor, on purpose. So at most [`AT_ONCE`] run, in threads of their own;
//! at most [`WAITING_MAX`] requests wait for one; and what was found is remembered, under a keyed digest of name,
//! password and hash: neither can be read back from memory, and a hash that is changed is another one.
//!
//! Bounds: [`REMEMBERED_MAX`] right ones and as many wrong ones, of 48 bytes each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon2::{Argon2, Params, PasswordHash, PasswordVerifier};
use aws_lc_rs::hmac;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Looks that run at once. Each takes what its hash says, 64 MiB at most.
const AT_ONCE: usize = 2;
const WAITING_MAX: usize = 256;
const REMEMBERED_MAX: usize = 4_096;
/// A user who is taken out of the config, or whose hash is changed, is out at once all the same.
const RIGHT_FOR: Duration = Duration::from_secs(60);
/// So that a program that goes on trying a wrong one costs little.
const WRONG_FOR: Duration = Duration::from_secs(10);

/// Bytes of a password that count for bcrypt.
const BCRYPT_READS: usize = 72;

type Digest = [u8; 32];

#[derive(Debug)]
pub(crate) struct Passwords {
    key: hmac::Key,
    right: Mutex<Remembered>,
    wrong: Mutex<Remembered>,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// What became of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Right,
    Wrong,
    /// Too many wait.
    Busy,
}

#[derive(Debug, Default)]
struct Remembered {
    until: HashMap<Digest, Instant, ahash::RandomState>,
}

impl Remembered {
    fn has(&self, digest: &Digest, now: Instant) -> bool {
        self.until.get(digest).is_some_and(|until| *until > now)
    }

    /// Makes room by what is over, or else by any.
    fn add(&mut self, digest: Digest, now: Instant, length: Duration) {
        if self.until.len() >= REMEMBERED_MAX {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() >= REMEMBERED_MAX
            && let Some(any) = self.until.keys().next().copied()
        {
            self.until.remove(&any);
        }
        self.until.insert(digest, now + length);
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<Digest>()),
            right: Mutex::default(),
            wrong: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Passwords {
    /// Whether this is the user's password. `hash` is one that the config has taken.
    pub(crate) async fn check(&self, user: &str, password: &[u8], hash: &str) -> Verdict {
        let digest = self.digest(user, password, hash);
        if let Some(known) = self.remembered(&digest) {
            return known;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Verdict::Busy;
        }
        let waiting = Waiting(&self.waiting);
        let Ok(turn) = Arc::clone(&self.turns).acquire_owned().await else { return Verdict::Busy };
        // Whoever stood before may have asked the same.
        if let Some(known) = self.remembered(&digest) {
            return known;
        }
        let (password, hash) = (password.to_owned(), hash.to_owned());
        // Goes on when nobody waits for it any more, so its turn is its own.
        let look = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            is_of(&password, &hash)
        });
        let is_right = look.await.unwrap_or(false);
        drop(waiting);
        let now = Instant::now();
        if is_right {
            self.right.lock().add(digest, now, RIGHT_FOR);
            Verdict::Right
        } else {
            self.wrong.lock().add(digest, now, WRONG_FOR);
            Verdict::Wrong
        }
    }

    fn remembered(&self, digest: &Digest) -> Option<Verdict> {
        let now = Instant::now();
        if self.right.lock().has(digest, now) {
            return Some(Verdict::Right);
        }
        self.wrong.lock().has(digest, now).then_some(Verdict::Wrong)
    }

    fn digest(&self, user: &str, password: &[u8], hash: &str) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user.as_bytes(), password, hash.as_bytes()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }
}

struct Waiting<'p>(&'p AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_of(password: &[u8], hash: &str) -> bool {
    if hash.starts_with("$argon2") {
        return PasswordHash::new(hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok());
    }
    // It reads no more of a password, so that a longer one would be right whatever it ends in. Looked at all the same:
    // how long it takes tells nothing then.
    bcrypt::verify(password, hash).unwrap_or(false) && password.len() <= BCRYPT_READS
}

/// How long a look at a password takes with this hash, about, in microseconds of a processor.
pub(crate) fn cost(hash: &str) -> u64 {
    /// Of bcrypt with a cost of 0, and of argon2 for each KiB in each pass.
    const OF_BCRYPT: u64 = 60;
    const OF_KIB: u64 = 1;
    if hash.starts_with("$argon2") {
        let params = PasswordHash::new(hash).ok().and_then(|hash| Params::try_from(&hash).ok());
        return params.map_or(0, |of| u64::from(of.m_cost()) * u64::from(of.t_cost()) * OF_KIB);
    }
    let cost = hash.split('$').nth(2).and_then(|cost| cost.parse::<u32>().ok());
    cost.and_then(|cost| OF_BCRYPT.checked_shl(cost)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `secret`, by `htpasswd -nbB -C 4` and `argon2 somesalt -id -t 1 -k 64 -p 1 -e`.
    const BCRYPT: &str = "$2y$04$QYO/K6tcpar7KvTkXFrBmOuiPLhE9Xya4FHMSuAxe2cKEFF74bjDu";
    const ARGON2: &str =
        "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$4mqQiyq0VpIzuZmp+8eSF3YJ7Av58TkEJ4LIdOVsAc4";

    #[tokio::test]
    async fn the_password_of_a_hash_is_told_from_others() {
        let passwords = Passwords::default();
        for hash in [BCRYPT, ARGON2] {
            for _ in 0..2 {
                assert_eq!(passwords.check("ann", b"secret", hash).await, Verdict::Right, "{hash}");
                assert_eq!(passwords.check("ann", b"Secret", hash).await, Verdict::Wrong, "{hash}");
                assert_eq!(passwords.check("ann", b"", hash).await, Verdict::Wrong, "{hash}");
            }
        }
        assert_eq!((passwords.right.lock().until.len(), passwords.wrong.lock().until.len()), (2, 4));
    }

    #[tokio::test]
    async fn a_password_that_bcrypt_does_not_read_to_its_end_is_wrong() {
        let passwords = Passwords::default();
        let whole = "x".repeat(BCRYPT_READS);
        let hash = bcrypt::hash(&whole, 4).expect("a hash");
        assert_eq!(passwords.check("ann", whole.as_bytes(), &hash).await, Verdict::Right);
        for longer in [format!("{whole}x"), format!("{whole}y")] {
            assert_eq!(passwords.check("ann", longer.as_bytes(), &hash).await, Verdict::Wrong);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_remembered_for_a_moment_and_bounded() {
        let mut known = Remembered::default();
        let digest = |n: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_be_bytes());
            digest
        };
        let now = Instant::now();
        for n in 0..REMEMBERED_MAX * 2 {
            known.add(digest(n), now, RIGHT_FOR);
        }
        assert_eq!(known.until.len(), REMEMBERED_MAX);
        let last = digest(REMEMBERED_MAX * 2 - 1);
        assert!(known.has(&last, now) && !known.has(&last, now + RIGHT_FOR));
        known.add(digest(0), now + RIGHT_FOR, RIGHT_FOR);
        assert_eq!(known.until.len(), 1, "what is over makes room first");
    }

    #[tokio::test]
    async fn looks_are_bounded_and_asked_for_once() {
        let passwords = Arc::new(Passwords::default());
        let held = Arc::clone(&passwords.turns).acquire_many_owned(AT_ONCE as u32).await.unwrap();
        let ask = |n: usize| {
            let passwords = Arc::clone(&passwords);
            let password = format!("wrong {}", n % 3);
            tokio::spawn(async move { passwords.check("ann", password.as_bytes(), BCRYPT).await })
        };
        let asked: Vec<_> = (0..WAITING_MAX).map(ask).collect();
        while passwords.waiting.load(Ordering::Relaxed) < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(passwords.check("ann", b"secret", BCRYPT).await, Verdict::Busy);
        drop(held);
        for asked in asked {
            assert_eq!(asked.await.unwrap(), Verdict::Wrong);
        }
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(passwords.check("ann", b"secret", BCRYPT).await, Verdict::Right);
    }
}
