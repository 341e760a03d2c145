use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use trestle_config::model::{AccessLogTarget, SyslogAddress};

use super::*;
use crate::testing::{Log as Memory, PATIENCE};

fn to(target: AccessLogTarget) -> Arc<Log> {
    let settings = AccessLog { format: AccessLogFormat::Json, to: target };
    Log::compile(&settings, None).expect("not off")
}

/// Pushes lines, and hands them on at once.
async fn push(lines: &Rc<Lines>, log: &Log, texts: &[&str]) {
    let local = tokio::task::LocalSet::new();
    let push = async {
        for text in texts {
            lines.push(log, |out| out.extend_from_slice(format!("{text}\n").as_bytes()));
        }
        lines.flush();
    };
    local.run_until(push).await;
}

#[track_caller]
fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_writer_that_hangs_costs_lines_and_never_time() {
    struct Hanging(std::sync::mpsc::Receiver<()>);
    impl Write for Hanging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (release, held) = sync_channel(0);
    let (tap, end) = start("n1", Box::new(Hanging(held))).expect("a thread");
    let lines = Rc::new(tap.lines());
    let line = "x".repeat(BATCH);
    push(&lines, &to(AccessLogTarget::Stdout), &[line.as_str(); QUEUE + 10]).await;
    let dropped = tap.counts().dropped();
    assert!((9..=10).contains(&dropped), "{dropped}");
    drop((release, lines, tap));
    assert!(end.recv().is_err(), "the writer has ended");
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_made_anew_and_none_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, moved) = (folder.path().join("a.log"), folder.path().join("a.log.1"));
    let (tap, end) = start("n1", Box::new(io::sink())).expect("a thread");
    let (lines, log) = (Rc::new(tap.lines()), to(AccessLogTarget::File(path.clone())));
    tap.open(&log);
    wait("the file is there before a line is", || path.exists());
    push(&lines, &log, &["one"]).await;
    wait("a line", || std::fs::read(&path).is_ok_and(|text| text == b"one\n"));
    std::fs::rename(&path, &moved).expect("moved");
    push(&lines, &log, &["two"]).await;
    wait("it goes on there", || std::fs::read(&moved).is_ok_and(|text| text == b"one\ntwo\n"));
    tap.reopen(&log);
    wait("a new file, without traffic", || path.exists());
    push(&lines, &log, &["three"]).await;
    let counts = tap.counts();
    drop((lines, tap));
    assert!(end.recv().is_err(), "the writer has ended");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "three\n");
    assert_eq!(std::fs::read_to_string(&moved).expect("read"), "one\ntwo\n");
    assert_eq!((counts.dropped(), counts.is_failing()), (0, false));
}

#[tokio::test]
async fn a_target_that_can_not_be_opened_is_counted_and_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("later/a.log");
    let (tap, _end) = start("n1", Box::new(io::sink())).expect("a thread");
    let (lines, log) = (Rc::new(tap.lines()), to(AccessLogTarget::File(path.clone())));
    let counts = tap.counts();
    push(&lines, &log, &["lost", "lost"]).await;
    wait("it is told", || counts.is_failing() && counts.dropped() == 2);
    std::fs::create_dir(path.parent().expect("a parent")).expect("a folder");
    // Asked to: it does not wait for its time.
    tap.reopen(&log);
    push(&lines, &log, &["kept"]).await;
    wait("it is written again", || std::fs::read(&path).is_ok_and(|text| text == b"kept\n"));
    assert_eq!((counts.dropped(), counts.is_failing()), (2, false));
}

#[tokio::test]
async fn syslog_gets_a_message_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let local = UnixDatagram::bind(&path).expect("a socket");
    let remote = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    local.set_read_timeout(Some(PATIENCE)).expect("an option");
    remote.set_read_timeout(Some(PATIENCE)).expect("an option");
    let port = remote.local_addr().expect("bound").port();
    let (tap, _end) = start("n1", Box::new(io::sink())).expect("a thread");
    let lines = Rc::new(tap.lines());
    let unix = to(AccessLogTarget::Syslog(SyslogAddress::Unix(path)));
    let udp = to(AccessLogTarget::Syslog(SyslogAddress::Udp { host: "127.0.0.1".into(), port }));
    let long = "x".repeat(100_000);
    push(&lines, &unix, &["a b", &long]).await;
    push(&lines, &udp, &["c", &long]).await;
    let mut buffer = [0; 70_000];
    let mut next = |recv: &dyn Fn(&mut [u8]) -> io::Result<usize>| {
        let length = recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    };
    let end = format!(" n1 trestle {} access - ", std::process::id());
    for (first, second) in [
        (next(&|b| local.recv(b)), next(&|b| local.recv(b))),
        (next(&|b| remote.recv(b)), next(&|b| remote.recv(b))),
    ] {
        let (head, message) = first.split_once(&end).expect("the head of RFC 5424");
        let time = head.strip_prefix("<134>1 ").expect("priority and version");
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
        assert!(message == "a b" || message == "c", "{message}");
        assert_eq!(second.len(), 60_000, "a long one is cut");
    }
    assert_eq!(tap.counts().dropped(), 0);
}

#[tokio::test]
async fn lines_go_where_their_revision_wants_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.log");
    let stdout = Memory::default();
    let (tap, end) = start("n1", Box::new(stdout.clone())).expect("a thread");
    let lines = Rc::new(tap.lines());
    let (old, new) = (to(AccessLogTarget::Stdout), to(AccessLogTarget::File(path.clone())));
    let local = tokio::task::LocalSet::new();
    let push = async {
        for (log, text) in [(&old, "1\n"), (&new, "2\n"), (&old, "3\n"), (&new, "4\n")] {
            lines.push(log, |out| out.extend_from_slice(text.as_bytes()));
        }
    };
    local.run_until(push).await;
    drop((local, lines, tap));
    assert!(end.recv().is_err(), "the writer has ended");
    assert_eq!(stdout.text(), "1\n3\n");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "2\n4\n");
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_nobody_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pipe");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).expect("a pipe");
    let (tap, end) = start("n1", Box::new(io::sink())).expect("a thread");
    let (lines, log) = (Rc::new(tap.lines()), to(AccessLogTarget::File(path)));
    push(&lines, &log, &["lost"]).await;
    let counts = tap.counts();
    drop((lines, tap));
    assert!(end.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    assert_eq!((counts.dropped(), counts.is_failing()), (1, true));
}
