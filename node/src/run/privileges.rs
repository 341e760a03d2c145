//! `--user`: a node that root starts goes on as somebody else.
//!
//! What only root may read is read before. From then on the process, the guard that it starts and whatever
//! else it starts have the capabilities of [`KEPT`] at most, and no way to more: what is not among them leaves
//! the bounding set. The system calls are those of one thread, so this comes before there is a second one.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Low ports; addresses and nf_tables; ARP and neighbour discovery: see docs/security.md.
const KEPT: CapabilitySet =
    CapabilitySet::NET_BIND_SERVICE.union(CapabilitySet::NET_ADMIN).union(CapabilitySet::NET_RAW);

/// What the guard may do without being root: lock so many bytes of memory (a debug build has 150 MB of code and
/// data), and run in real time up to this priority.
const LOCKED_MEMORY: u64 = 256 << 20;
const REAL_TIME: u64 = 10;

/// Somebody whom a process can become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    name: String,
    uid: u32,
    gid: u32,
    /// Further groups that the user is in.
    groups: Vec<u32>,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.name, self.uid, self.gid)
    }
}

impl User {
    /// By `NAME`, `NAME:GROUP`, `UID` or `UID:GID`. Names are looked up in `/etc/passwd` and `/etc/group` alone:
    /// the program is static, and has no other directories.
    pub(super) fn find(asked: &str) -> anyhow::Result<User> {
        let read = |file: &str| match std::fs::read_to_string(file) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).with_context(|| format!("--user {asked}: can't read {file}")),
        };
        User::find_in(asked, &read("/etc/passwd")?, &read("/etc/group")?)
            .with_context(|| format!("--user {asked}"))
    }

    fn find_in(asked: &str, passwd: &str, group: &str) -> anyhow::Result<User> {
        let (name, of_group) = match asked.split_once(':') {
            Some((name, of_group)) => (name, Some(of_group)),
            None => (asked, None),
        };
        let number = |text: Option<&&str>| text.and_then(|text| text.parse::<u32>().ok());
        let known = entries(passwd).find(|fields| fields[0] == name && number(fields.get(2)).is_some());
        let (uid, own_gid) = match (&known, name.parse::<u32>()) {
            (Some(fields), _) => (number(fields.get(2)), number(fields.get(3))),
            (None, Ok(uid)) => {
                let numbered = entries(passwd).find(|fields| number(fields.get(2)) == Some(uid));
                (Some(uid), numbered.and_then(|fields| number(fields.get(3))))
            }
            (None, Err(_)) => bail!("/etc/passwd has no {name:?}; a user from elsewhere is given as UID:GID"),
        };
        let uid = uid.context("its line in /etc/passwd has no number")?;
        let gid = match of_group {
            None => own_gid.context("which group? Give it as UID:GID")?,
            Some(text) => match text.parse() {
                Ok(gid) => gid,
                Err(_) => entries(group)
                    .find(|fields| fields[0] == text)
                    .and_then(|fields| number(fields.get(2)))
                    .with_context(|| format!("/etc/group has no {text:?}; give its number"))?,
            },
        };
        ensure!(uid != 0, "that is root: leave --user out to stay root");
        let is_in =
            |fields: &Vec<&str>| fields.get(3).is_some_and(|users| users.split(',').any(|u| u == name));
        let groups = entries(group).filter(is_in).filter_map(|fields| number(fields.get(2))).collect();
        Ok(User { name: name.to_owned(), uid, gid, groups })
    }

    /// Sees to it that a folder is there and the user's. `what` it is called.
    pub(super) fn take(&self, what: &str, dir: &Path) -> anyhow::Result<()> {
        let shown = dir.display();
        if !dir.exists() {
            make_private(what, dir)?;
            self.give(what, dir)?;
        }
        let can_read = || format!("can't look into the {what} {shown}");
        let mut foreign = Vec::new();
        let own = std::fs::metadata(dir).with_context(can_read)?.uid();
        if own != self.uid {
            foreign.push(dir.to_owned());
        }
        for entry in std::fs::read_dir(dir).with_context(can_read)? {
            let entry = entry.with_context(can_read)?;
            if entry.file_name() != OsStr::new("lost+found")
                && entry.metadata().with_context(can_read)?.uid() != self.uid
            {
                foreign.push(entry.path());
            }
        }
        let Some(first) = foreign.first() else { return Ok(()) };
        bail!(
            "{} does not belong to {self}, whom --user names (it may be of an earlier start as root): `chown -R \
             {}:{} {shown}` gives it away",
            first.display(),
            self.uid,
            self.gid
        )
    }

    /// Makes a folder that was just made the user's.
    pub(super) fn give(&self, what: &str, dir: &Path) -> anyhow::Result<()> {
        std::os::unix::fs::chown(dir, Some(self.uid), Some(self.gid))
            .with_context(|| format!("can't give the {what} {} to {self}", dir.display()))
    }

    /// Becomes the user, for good.
    pub(super) fn become_it(&self) -> anyhow::Result<()> {
        let me = geteuid().as_raw();
        if me == self.uid {
            return Ok(());
        }
        ensure!(me == 0, "--user {}: only root can become somebody else, and this is user {me}", self.name);
        raise(Resource::Memlock, LOCKED_MEMORY);
        raise(Resource::Rtprio, REAL_TIME);
        let may = capabilities(None).context("capabilities")?.permitted;
        for capability in CapabilitySet::all().difference(KEPT).iter() {
            // Unknown to this kernel, or not ours to take away: what is not permitted is not given back either.
            match remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
                Err(error) => {
                    return Err(error).context("capabilities that are not needed can't be given up");
                }
            }
        }
        let group = |id: &u32| Gid::from_raw(*id);
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let said = || {
            format!(
                "can't become {self}; it takes CAP_SETUID and CAP_SETGID (in a container `cap_add: [SETUID, SETGID]`)"
            )
        };
        set_keep_capabilities(true).with_context(said)?;
        set_thread_groups(&self.groups.iter().map(group).collect::<Vec<_>>()).with_context(said)?;
        set_thread_res_gid(gid, gid, gid).with_context(said)?;
        set_thread_res_uid(uid, uid, uid).with_context(said)?;
        let kept = may.intersection(KEPT);
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
        set_capabilities(None, sets).context("capabilities can't be given up")?;
        for capability in kept.iter() {
            configure_capability_in_ambient_set(capability, true)
                .context("the guard can't be given its capabilities")?;
        }
        // Nor by a program that is root for whoever starts it.
        set_no_new_privs(true).context("ways back to root can't be closed")?;
        ensure!(geteuid() == uid && set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_err(), said());
        tracing::info!(user = %self, capabilities = %names(kept), "no longer root");
        Ok(())
    }
}

/// The log holds the config, with whatever is secret in it.
pub(super) fn make_private(what: &str, dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("can't make the {what} {}", dir.display()))
}

fn raise(resource: Resource, to: u64) {
    let Rlimit { current, maximum } = getrlimit(resource);
    let least = |limit: Option<u64>| limit.map(|limit| limit.max(to));
    // Without it the guard says what it could not have.
    let _ = setrlimit(resource, Rlimit { current: least(current), maximum: least(maximum) });
}

fn names(capabilities: CapabilitySet) -> String {
    let names: Vec<_> = capabilities.iter_names().map(|(name, _)| name).collect();
    names.join(",")
}

/// Lines of files like `/etc/passwd`.
fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# nobody knows\nlb:x:998:997::/:/bin/false\nbad:x:y:1::/:\n";
    const GROUP: &str = "root:x:0:\nlb:x:997:\ncerts:x:50:other,lb\nlogs:x:51:lbs\n";

    fn found(asked: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let user = User::find_in(asked, PASSWD, GROUP).map_err(|error| format!("{error:#}"))?;
        Ok((user.uid, user.gid, user.groups))
    }

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        assert_eq!(found("lb"), Ok((998, 997, vec![50])));
        assert_eq!(found("lb:certs"), Ok((998, 50, vec![50])));
        assert_eq!(found("998"), Ok((998, 997, vec![])));
        assert_eq!(found("4000:4001"), Ok((4000, 4001, vec![])));
        assert_eq!(found("lb:7"), Ok((998, 7, vec![50])));
    }

    #[test]
    fn who_is_not_there_or_is_root_is_refused_with_what_to_do() {
        for (asked, says) in [
            ("gone", "UID:GID"),
            ("bad", "UID:GID"),
            ("", "UID:GID"),
            ("4000", "which group"),
            ("lb:gone", "/etc/group has no \"gone\""),
            ("root", "leave --user out"),
            ("0:0", "leave --user out"),
        ] {
            let error = found(asked).unwrap_err();
            assert!(error.contains(says), "{asked}: {error}");
        }
    }

    #[test]
    fn a_data_folder_of_somebody_else_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let uid = std::fs::metadata(dir.path()).unwrap().uid();
        let me = User { name: "me".to_owned(), uid, gid: 1, groups: vec![] };
        std::fs::write(dir.path().join("raft.redb"), "").unwrap();
        me.take("data folder", dir.path()).unwrap();
        let other = User { uid: uid + 1, ..me };
        let error = other.take("data folder", dir.path()).unwrap_err().to_string();
        assert!(error.contains("chown -R") && error.contains(&dir.path().display().to_string()), "{error}");
    }
}
