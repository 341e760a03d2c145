use std::collections::BTreeMap;
use std::io::{Read, Write};

use super::*;
use crate::kernel::Carried;
use crate::listener::Book;
use trestle_config::Contents;

use crate::metrics::Metrics;
use crate::snapshot::Around;
use crate::testing::{Backend, PATIENCE, config};

fn told() -> oneshot::Sender<()> {
    oneshot::channel().0
}

#[tokio::test]
async fn forty_connections_that_wait_in_the_queue_of_a_closing_socket_are_answered() {
    let backend = Backend::named("app").await;
    let config = config(&[backend.address]);
    let metrics = Metrics::new(1);
    let around = Around {
        births: &BTreeMap::new(),
        contents: &Contents::default(),
        orders: &BTreeMap::new(),
        previous: None,
        metrics: &metrics,
        site: &Arc::default(),
        tickets: &Arc::default(),
    };
    let snapshot = Arc::new(Snapshot::compile(1, &config, &around));
    let (log, _end) = crate::access_log::start("n1", Box::new(io::sink())).expect("a thread");
    let equipment = Equipment {
        cuts: Arc::default(),
        workers: 1,
        spans: None,
        give_back: || {},
        limits: Arc::default(),
        passwords: Arc::default(),
        bans: Arc::default(),
        rates: Arc::default(),
        cache: Arc::new(Cache::new(0, None, 1).expect("no disk, no error")),
        compression: Arc::new(crate::l7::compress::Works::new(1)),
        bodies: crate::budget::Budget::new(1 << 20),
        streams_max: 100,
        shed: Arc::default(),
        ledger: Arc::new(Ledger::new(1)),
        locals: Arc::new(Locals::new(1)),
        turns: Arc::new(PerWorker::new(1)),
        log,
        via: HeaderValue::from_static("1.1 n1"),
        stop: CancellationToken::new(),
    };
    let mut book = Book::new(1, BTreeMap::new());
    let plan = book.plan(&config, &Carried::default());
    let open = book.open(&plan, false, &mut BTreeMap::new()).remove(0);
    let address =
        *book.view(&config, &BTreeMap::new(), &Carried::default())[0].state.as_ref().expect("listens");
    let clients: Vec<std::net::TcpStream> = (0..40)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(address).expect("connects");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
            stream.set_read_timeout(Some(PATIENCE)).expect("an option");
            stream
        })
        .collect();
    let close = vec![open[0].key.clone()];
    let (closed, is_closed) = oneshot::channel();
    let serve = |open, close, closed| Serve {
        snapshot: Arc::clone(&snapshot),
        open,
        keep: Vec::new(),
        close,
        served: told(),
        closed,
    };
    LocalSet::new()
        .run_until(async move {
            let worker = Rc::new(Worker::new(0, equipment));
            // The accept loop has not run once when the socket is to be closed.
            worker.serve(serve(open, Vec::new(), told()));
            worker.serve(serve(Vec::new(), close, closed));
            let answers = clients.into_iter().map(|mut stream| {
                tokio::task::spawn_blocking(move || {
                    let mut answer = [0; 15];
                    stream.read_exact(&mut answer).map(|()| answer)
                })
            });
            for answer in answers.collect::<Vec<_>>() {
                let answer = answer.await.expect("read").expect("no reset");
                assert_eq!(&answer, b"HTTP/1.1 200 OK");
            }
            tokio::time::timeout(PATIENCE, is_closed).await.expect("in time").expect("told");
            assert!(std::net::TcpStream::connect(address).is_err());
        })
        .await;
}
