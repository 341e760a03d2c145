//! The exporter between a plane and a collector.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Mutex;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::Response;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use trestle_config::Contents;
use trestle_dataplane::{Install, Options, Plane};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

type Answer = Result<ExportTraceServiceResponse, Status>;

/// Answers as it is told, then well.
#[derive(Clone, Default)]
struct Collector {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    got: Arc<Mutex<Vec<Request<ExportTraceServiceRequest>>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.got.lock().unwrap().push(request);
        self.answers.lock().unwrap().pop_front().unwrap_or(Ok(Default::default())).map(Response::new)
    }
}

impl Collector {
    async fn serve(&self) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone());
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        (address, tokio::spawn(async move { serving.await.unwrap() }))
    }

    fn names(&self) -> Vec<Vec<String>> {
        let got = self.got.lock().unwrap();
        let spans = |request: &Request<ExportTraceServiceRequest>| {
            let of = &request.get_ref().resource_spans[0].scope_spans[0].spans;
            of.iter().map(|span| span.name.clone()).collect()
        };
        got.iter().map(spans).collect()
    }
}

/// A plane that answers by itself, and its exporter.
struct Traced {
    plane: Plane,
    web: SocketAddr,
    counts: Arc<Counts>,
    exporting: JoinHandle<()>,
}

impl Traced {
    async fn start(endpoint: &str) -> Self {
        let settings = Otlp {
            endpoint: endpoint.parse().unwrap(),
            service: "edge".into(),
            resource: vec![("deployment.environment.name".into(), "test".into())],
            headers: vec![("x-key".parse().unwrap(), "secret".parse().unwrap())],
            ca_file: None,
            ratio: 1.0,
        };
        let (tap, queue) = trestle_dataplane::spans(settings.ratio);
        let exporter = Exporter::new(settings, "n1", queue).unwrap();
        let counts = exporter.counts();
        let exporting = tokio::spawn(exporter.run());
        let options = Options {
            workers: NonZeroUsize::MIN,
            node: "n1".into(),
            zone: String::new(),
            secret: [0; 32],
            cookies: [0; 32].into(),
            pinned: BTreeMap::new(),
            spans: Some(tap),
            give_back: || {},
            body_memory: 1 << 20,
            cache_memory: 0,
            cache_disk: None,
            kernel_check: |_, _| Err("not in tests".to_owned()),
        };
        let plane = Plane::start(options).unwrap();
        let text = "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }\naccess_log: { format: off }\n\
                    routes: { all: { rules: [{ respond: { body: x } }] } }";
        let document = trestle_config::parse(trestle_config::Source { name: "test", text }).unwrap();
        let install = Install {
            revision: 1,
            config: document.config().clone(),
            route_births: Arc::default(),
            contents: Contents::default(),
            orders: Arc::default(),
        };
        let web = *plane.install(install).await[0].state.as_ref().unwrap();
        Traced { plane, web, counts, exporting }
    }

    async fn ask(&self, method: &str) {
        let mut stream = TcpStream::connect(self.web).await.unwrap();
        let head = format!("{method} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }

    fn count(&self) -> (u64, u64, bool) {
        let Counts { exported, failed, failing } = &*self.counts;
        (exported.load(Relaxed), failed.load(Relaxed), failing.load(Relaxed))
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let looks = async {
            while !condition() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, looks).await.is_ok(), "{what}; counts {:?}", self.count());
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.plane.shutdown();
    }
}

fn unavailable() -> Answer {
    Err(Status::unavailable("busy"))
}

#[tokio::test]
async fn what_a_collector_could_not_take_is_sent_again_and_what_it_refuses_is_not() {
    let collector = Collector::default();
    collector.answers.lock().unwrap().extend([unavailable(), unavailable()]);
    let (address, serving) = collector.serve().await;
    let traced = Traced::start(&format!("http://{address}")).await;
    traced.ask("GET").await;
    traced.until("it is exported", || traced.count() == (1, 0, false)).await;
    assert_eq!(collector.names(), [["GET all"], ["GET all"], ["GET all"]]);
    {
        let got = collector.got.lock().unwrap();
        assert_eq!(got[0].metadata().get("x-key").unwrap(), "secret");
        let resource = got[0].get_ref().resource_spans[0].resource.clone().unwrap();
        let of: Vec<_> = resource.attributes.iter().map(|of| of.key.as_str()).collect();
        assert_eq!(
            of,
            ["service.name", "deployment.environment.name", "service.instance.id", "service.version"]
        );
    }

    collector.answers.lock().unwrap().push_back(Err(Status::invalid_argument("no")));
    traced.ask("PUT").await;
    traced.until("it is given up", || traced.count() == (1, 1, true)).await;
    assert_eq!(collector.names().len(), 4, "not sent again");

    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: String::new() };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) };
    collector.answers.lock().unwrap().push_back(Ok(partial));
    traced.ask("POST").await;
    traced.until("it is refused", || traced.count() == (1, 2, false)).await;
    serving.abort();
}

#[tokio::test]
async fn the_end_of_the_plane_sends_what_is_left_and_ends_the_exporter() {
    let collector = Collector::default();
    let (address, serving) = collector.serve().await;
    let mut traced = Traced::start(&format!("http://{address}")).await;
    traced.ask("GET").await;
    traced.plane.shutdown();
    timeout(END, &mut traced.exporting).await.expect("soon").expect("no panic");
    assert_eq!(collector.names(), [["GET all"]]);
    serving.abort();
}

#[tokio::test]
async fn without_a_collector_traffic_goes_on_and_spans_are_counted_as_lost() {
    // Bound, so that nobody else gets it, and not listening.
    let unused = tokio::net::TcpSocket::new_v4().unwrap();
    unused.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let traced = Traced::start(&format!("http://{}", unused.local_addr().unwrap())).await;
    traced.ask("GET").await;
    traced.until("it is given up", || traced.count() == (0, 1, true)).await;
    traced.ask("GET").await;
}
