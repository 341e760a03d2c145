//! What happens where a disk or memory is short, which a whole plane does not show at will.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::cache::store::Store;

const LENGTH: u64 = 1 << 20;
const KEY: (u128, u128, u16) = (1, 1, 0);

struct Rig {
    disk: Disk,
    budget: Arc<Budget>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let (dir, budget) = (tempfile::tempdir().expect("a folder"), Budget::new(4 << 20));
        let settings = CacheDisk { dir: dir.path().to_owned(), max: 64 << 20, least: 1000 };
        let disk = Disk::open(settings, &budget, &Arc::default()).expect("it opens");
        disk.enter([1; 16]);
        let rig = Self { disk, budget, dir };
        rig.until("what is there is known", || rig.disk.stats().indexed);
        rig
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < until, "{what}: {:?}", self.disk.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn writing(&self) -> Writing {
        let offer = self.disk.offer(KEY, &Stem::of_a_minute(), Some(LENGTH)).expect("it is long");
        offer.take().expect("it can be written")
    }

    fn files(&self) -> usize {
        let below =
            |at: PathBuf| std::fs::read_dir(at).into_iter().flatten().flatten().map(|entry| entry.path());
        below(self.dir.path().join("objects")).flat_map(below).count()
    }

    /// Has a whole body written.
    fn write(&self) {
        let mut writing = self.writing();
        (0..16).for_each(|piece| {
            writing.push(&Bytes::from(vec![piece; 64 << 10]));
            self.until("it is taken", || self.disk.shared.queued.used() == 0);
        });
        let store = Some(Store::new(1 << 20, None));
        writing.finish(Ending {
            stem: Stem::of_a_minute(),
            spec: Spec::default(),
            trailers: None,
            entry: None,
            store,
        });
        self.until("it is written", || self.disk.stats().written == 1);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.disk.shutdown();
    }
}

#[test]
fn a_disk_that_cant_keep_up_is_not_waited_for() {
    let rig = Rig::new();
    // The thread that writes waits for it.
    let held = rig.disk.shared.index.lock();
    let mut writing = rig.writing();
    let began = Instant::now();
    (0..40).for_each(|_| writing.push(&Bytes::from(vec![1; 64 << 10])));
    assert!(!writing.is_going_on() && began.elapsed() < Duration::from_secs(2));
    assert!(rig.budget.used() <= 1 << 20, "a quarter of the memory");
    drop(held);
    drop(writing);
    rig.until("nothing is left of it", || {
        rig.files() == 0 && rig.disk.stats().bytes == 0 && rig.budget.used() == 0
    });
    assert_eq!(rig.disk.stats().not_kept, 1);
    rig.write();
}

#[tokio::test]
async fn without_memory_a_member_is_asked_and_a_head_is_read_once_for_all() {
    let rig = Rig::new();
    rig.write();
    let all = futures::future::join_all((0..1000).map(|_| rig.disk.load(1))).await;
    let first = all[0].as_ref().expect("it is there");
    assert!(all.iter().flatten().filter(|other| Arc::ptr_eq(first, other)).count() > 1, "they share it");
    assert_eq!((all.iter().flatten().count(), rig.disk.stats().not_read), (1000, 0));
    let mut reading = first.body.read(0, LENGTH, false);
    assert_eq!(reading.ready().await, Ready::Yes);
    let most = usize::try_from(rig.budget.most() - rig.budget.used()).expect("it fits");
    let taken = rig.budget.hold(most).expect("what is left");
    let mut without = first.body.read(0, LENGTH, false);
    assert_eq!(without.ready().await, Ready::Busy);
    drop((taken, reading, without));
    let mut again = first.body.read(0, 1, false);
    assert_eq!(again.ready().await, Ready::Yes);
    std::fs::remove_dir_all(rig.dir.path().join("objects")).expect("writable");
    let mut gone = first.body.read(0, 1, false);
    assert_eq!(gone.ready().await, Ready::Gone);
    assert!(rig.disk.load(1).await.is_none());
}

/// A crowd of files is counted, and the first of them named.
#[test]
fn what_is_thrown_away_or_not_ours_is_named_with_why() {
    let rig = Rig::new();
    let elsewhere = tempfile::tempdir().expect("another folder");
    let (root, objects) = (rig.dir.path(), rig.dir.path().join("objects"));
    let part = objects.join("0a");
    std::fs::create_dir(&part).expect("writable");
    let put = |at: PathBuf| std::fs::write(at, "something").expect("writable");
    let file = |number: u32, kind: &str| format!("0a{number:014x}.{kind}");
    (0..20).for_each(|number| put(part.join(file(number, "obj"))));
    put(elsewhere.path().join(file(99, "obj")));
    std::os::unix::fs::symlink(elsewhere.path(), objects.join("0b")).expect("writable");
    std::os::unix::fs::symlink(elsewhere.path().join(file(99, "obj")), part.join(file(99, "obj")))
        .expect("writable");
    put(objects.join("0c"));
    put(root.join("notes"));
    std::fs::create_dir(root.join("lost+found")).expect("writable");

    let (found, told) = scan::look(&rig.disk.shared).expect("it goes on");
    assert!(found.is_empty());
    assert_eq!((told.broken.count, told.broken.first.len(), rig.disk.stats().corrupt), (20, 5, 20));
    assert!(told.broken.first.iter().all(|(at, why)| at.starts_with(&part) && why == "it is too short"));
    let mut foreign = told.foreign.first;
    foreign.sort();
    let foreign: Vec<_> = foreign.iter().map(|(at, why)| (at.as_path(), why.as_str())).collect();
    assert_eq!(
        foreign,
        [
            (root.join("notes").as_path(), "its name is none of ours"),
            (&part.join(file(99, "obj")), "it is a symbolic link"),
            (&objects.join("0b"), "it is a symbolic link"),
            (&objects.join("0c"), "it is no folder"),
        ]
    );
    assert!(foreign.iter().all(|(at, _)| at.exists()) && elsewhere.path().join(file(99, "obj")).exists());
    assert!(!part.join(file(0, "obj")).exists());
}

#[test]
fn a_key_is_written_once_at_a_time() {
    let rig = Rig::new();
    let first = rig.writing();
    assert!(rig.disk.offer(KEY, &Stem::of_a_minute(), Some(LENGTH)).expect("it is long").take().is_none());
    assert!(rig.disk.offer(KEY, &Stem::of_a_minute(), Some(1000)).is_none(), "it is short");
    drop(first);
    rig.until("it is given up", || rig.files() == 0);
    rig.write();
}

#[tokio::test]
async fn where_the_clock_was_set_back_a_member_is_asked() {
    let rig = Rig::new();
    rig.write();
    let validates = async || rig.disk.load(1).await.expect("it is there").stem.terms.validate;
    assert!(!validates().await);
    // A file is newer than now.
    rig.disk.shared.newest.store(crate::wall_clock::now().as_secs() + 10, Relaxed);
    assert!(validates().await);
}
