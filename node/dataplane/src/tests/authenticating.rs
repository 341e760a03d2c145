//! Rules with `auth`: who is asked for a password, who is let in, and what is told of the rest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::testing::{Backend, Client, Proxy, Reply, until, written};

/// Of `secret` and of `other`, by bcrypt at its lowest cost.
const SECRET: &str = "$2y$04$QYO/K6tcpar7KvTkXFrBmOuiPLhE9Xya4FHMSuAxe2cKEFF74bjDu";
const OTHER: &str = "$2y$04$FO2XVqLvFUhkssgqW4EvKeHHWMwYSyli4.Zi4zWK2lM0fbmHoqI4u";

fn config(backend: &Backend, hash: &str) -> trestle_config::model::Config {
    written(&format!(
        r#"
listeners: {{ web: {{ bind: "127.0.0.1:0", protocol: http, use: [staff] }} }}
policies: {{ staff: {{ auth: {{ basic: {{ realm: "the shop", users: {{ ann: "{hash}" }} }} }} }} }}
pools: {{ app: {{ members: ["{}"] }} }}
routes:
  all:
    rules:
      - {{ match: [{{ path: {{ prefix: /open }} }}], pools: [app], auth: {{}} }}
      - {{ match: [{{ path: {{ prefix: /api }} }}], pools: [app], cors: {{ origins: ["*"], methods: [PUT] }} }}
      - {{ pools: [app] }}
"#,
        backend.address
    ))
}

async fn ask(client: &mut Client, line: &str, login: Option<&str>) -> Reply {
    let field = login.map(|login| format!("Authorization: Basic {}\r\n", STANDARD.encode(login)));
    client.write(format!("{line} HTTP/1.1\r\nHost: a\r\n{}\r\n", field.unwrap_or_default())).await;
    client.reply().await
}

#[tokio::test]
async fn only_who_knows_a_password_gets_through() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&backend, SECRET)).await;
    let mut client = Client::connect(address).await;
    for login in [None, Some("ann:wrong"), Some("ann:"), Some("bob:secret"), Some("ann:secret "), Some("ann")]
    {
        let reply = ask(&mut client, "GET /", login).await;
        let challenge = reply.header("www-authenticate");
        assert_eq!(
            (reply.status, challenge),
            (401, Some(r#"Basic realm="the shop", charset="UTF-8""#)),
            "{login:?}"
        );
    }
    assert!(backend.seen().is_empty(), "members see none of it");
    let reply = ask(&mut client, "GET /", Some("ann:secret")).await;
    assert_eq!((reply.status, reply.header("www-authenticate")), (200, None));
    assert!(backend.seen()[0].header("authorization").is_some(), "it is passed on, as peers do");
    assert_eq!(ask(&mut client, "GET /open", None).await.status, 200, "a rule may be open");
    proxy.log.line(&["\"status\":401", "\"reason\":\"unauthorized\""]).await;
    let ended = r#"trestle_route_ended_total{route="all",reason="unauthorized"}"#;
    until("they are counted", || proxy.metric(ended) == Some(6.0)).await;
}

#[tokio::test]
async fn a_preflight_needs_no_password_and_the_request_behind_it_does() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&backend, SECRET)).await;
    let mut client = Client::connect(address).await;
    let asks =
        "OPTIONS /api HTTP/1.1\r\nHost: a\r\nOrigin: http://x\r\nAccess-Control-Request-Method: PUT\r\n\r\n";
    client.write(asks).await;
    assert_eq!(client.reply().await.status, 204);
    let put = "PUT /api HTTP/1.1\r\nHost: a\r\nOrigin: http://x\r\nContent-Length: 2\r\n\r\nhi";
    client.write(put).await;
    let reply = client.reply().await;
    assert_eq!(
        (reply.status, reply.header("access-control-allow-origin")),
        (401, Some("*")),
        "pages may read it"
    );
    assert_eq!(ask(&mut client, "GET /open", None).await.status, 200, "the connection is kept");
}

#[tokio::test]
async fn a_password_that_a_revision_changes_is_out_at_once() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&backend, SECRET)).await;
    let mut client = Client::connect(address).await;
    assert_eq!(ask(&mut client, "GET /", Some("ann:secret")).await.status, 200);
    proxy.install(2, config(&backend, OTHER)).await;
    let mut client = Client::connect(address).await;
    assert_eq!(ask(&mut client, "GET /", Some("ann:secret")).await.status, 401);
    assert_eq!(ask(&mut client, "GET /", Some("ann:other")).await.status, 200);
}
