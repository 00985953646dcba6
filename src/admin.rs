//! HTTP on `admin.listen`: probes, metrics and a page for people. It runs on the pipeline's own runtime, so that nothing is
//! answered when that hangs.

mod bounded;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State as Extract},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

use crate::{
    config::{Admin, Secret},
    lsn::Lsn,
    telemetry::{Metrics, PageForm, State},
};
use bounded::Bounded;
use tls::Certificate;

/// The pipeline gives a sign of life every 3 seconds at least; much longer than a busy machine may hold it up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The listener cannot be had as the config asks for it; exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The port.
    #[error("`admin.listen`: cannot listen on {listen}: {cause}; is another process there? write another port")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The certificate, with the key of the config and the file.
    #[error("{0}")]
    Tls(String),
}

/// A port that is ours, and who may ask what.
pub struct Endpoint {
    listener: TcpListener,
    certificate: Option<Certificate>,
    token: Option<Secret>,
}

/// Takes the port, and reads the certificate.
pub async fn bind(admin: &Admin) -> Result<Endpoint, AdminError> {
    let certificate = admin.tls.as_ref().map(Certificate::read).transpose().map_err(AdminError::Tls)?;
    let listen = admin.listen;
    let listener = TcpListener::bind(listen).await.map_err(|cause| AdminError::Listen { listen, cause })?;
    Ok(Endpoint { listener, certificate, token: admin.token.clone() })
}

/// Answers for ever; drop it to end it.
pub async fn serve(endpoint: Endpoint, metrics: Metrics) {
    let Endpoint { listener, certificate, token } = endpoint;
    let mut guarded = Router::new().route("/", get(index)).route("/metrics", get(render));
    if let Some(token) = token {
        guarded = guarded.route_layer(middleware::from_fn_with_state(Arc::new(token), only_with_the_token));
    }
    // Without the token: a kubelet has none, and what they tell is one word.
    let probes = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz));
    let router = guarded.merge(probes).with_state(metrics);
    // An error of one connection ends that connection alone, and accepting goes on.
    if let Err(error) = axum::serve(Bounded::new(listener, certificate), router).await {
        tracing::error!(%error, "the admin listener ended");
    }
}

async fn only_with_the_token(Extract(token): Extract<Arc<Secret>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
    let right = given.is_some_and(|(scheme, given)| {
        // How long the comparison takes tells nothing but the token's length.
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(token.reveal().as_bytes()))
    });
    if right {
        return next.run(request).await;
    }
    let asks = [(header::WWW_AUTHENTICATE, "Bearer realm=\"offshoot\"")];
    (StatusCode::UNAUTHORIZED, asks, "`Authorization: Bearer ...` must have what `admin.token` says\n").into_response()
}

/// As systemd's watchdog has it: it is the pipeline's own task that must turn, not this one.
async fn livez(Extract(metrics): Extract<Metrics>) -> (StatusCode, &'static str) {
    if metrics.silent_for() > SILENCE_MAX {
        return (StatusCode::SERVICE_UNAVAILABLE, "the pipeline hangs\n");
    }
    (StatusCode::OK, "alive\n")
}

async fn readyz(Extract(metrics): Extract<Metrics>) -> impl IntoResponse {
    let state = metrics.state();
    let status = match state {
        State::Streaming => StatusCode::OK,
        State::Starting | State::WaitingForSlot | State::Retrying | State::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{}\n", state.as_str()))
}

/// Prometheus asks for OpenMetrics; older collectors, `promtool check metrics` and `curl` get the form that all know.
async fn render(Extract(metrics): Extract<Metrics>, headers: HeaderMap) -> impl IntoResponse {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (form, content_type) = if accepts.contains("application/openmetrics-text") {
        (PageForm::OpenMetrics, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    } else {
        (PageForm::Classic, "text/plain; version=0.0.4; charset=utf-8")
    };
    ([(header::CONTENT_TYPE, content_type)], metrics.render(form))
}

/// What an operator looks at first, without a dashboard.
async fn index(Extract(metrics): Extract<Metrics>) -> Html<String> {
    let names = metrics.names();
    let bytes = |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string();
    let position = |lsn: u64| if lsn == 0 { "not known yet".into() } else { Lsn(lsn).to_string() };
    let behind = match metrics.state() {
        State::Streaming | State::Draining => {
            format!("{:.1} s, {} of the log", metrics.lag_seconds.get(), bytes(metrics.lag_bytes.get()))
        }
        State::Starting | State::WaitingForSlot | State::Retrying => "not known while it does not stream".into(),
    };
    let (transactions, in_flight) = (metrics.in_flight_transactions.get(), bytes(metrics.in_flight_bytes.get()));
    let (read, acknowledged) = (metrics.transactions.get(), metrics.records_acknowledged.get());
    let rows = [
        ("State", metrics.state().as_str().to_owned()),
        ("Replication slot", names.slot),
        ("Behind", behind),
        ("In flight", format!("{transactions} transactions, {in_flight}")),
        ("Confirmed to Postgres", position(metrics.confirmed_lsn.get())),
        ("End of the server's log", position(metrics.server_lsn.get())),
        ("Log kept for the slot", bytes(metrics.slot_retained_bytes.get())),
        ("Since the start", format!("{read} transactions read, {acknowledged} records acknowledged")),
        ("Started again", format!("{} times", metrics.restarts.get())),
    ];
    let rows: String = rows.iter().map(|(what, value)| format!("<tr><th>{what}<td>{value}\n")).collect();
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Offshoot {name}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"5\">\n<style>{STYLE}</style>\n\
         <h1>{name}</h1>\n<p>Offshoot {version}\n<table>\n{rows}</table>\n<ul>\n\
         <li><a href=\"/livez\">/livez</a>: 200 while the pipeline turns\n\
         <li><a href=\"/readyz\">/readyz</a>: 200 while changes flow, else 503 and why not\n\
         <li><a href=\"/metrics\">/metrics</a>: for Prometheus\n</ul>\n</html>\n",
        name = names.pipeline,
        version = env!("CARGO_PKG_VERSION"),
    ))
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}\
    table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:normal;opacity:.7}\
    th,td{padding:.3rem .5rem .3rem 0;border-bottom:1px solid #8884;font-variant-numeric:tabular-nums}";

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn started(metrics: &Metrics) -> SocketAddr {
        let listen = ([127, 0, 0, 1], 0).into();
        let endpoint = bind(&Admin { listen, ..Admin::default() }).await.unwrap();
        let at = endpoint.listener.local_addr().unwrap();
        tokio::spawn(serve(endpoint, metrics.clone()));
        at
    }

    async fn got(at: SocketAddr, path: &str) -> String {
        got_with(at, path, "accept: */*").await
    }

    async fn got_with(at: SocketAddr, path: &str, header: &str) -> String {
        let mut socket = TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn alive_is_only_whose_pipeline_gives_signs_of_life() {
        let metrics = Metrics::new();
        let status = async || livez(Extract(metrics.clone())).await.0;
        metrics.beating(tokio::time::sleep(SILENCE_MAX * 3)).await;
        assert_eq!(status().await, StatusCode::OK);
        tokio::time::sleep(SILENCE_MAX + Duration::from_secs(2)).await;
        assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
        metrics.beat();
        assert_eq!(status().await, StatusCode::OK);
    }

    #[tokio::test]
    async fn ready_is_only_who_streams() {
        let metrics = Metrics::new();
        let at = started(&metrics).await;
        for (state, first, last) in [
            (State::Starting, "HTTP/1.1 503", "starting\n"),
            (State::WaitingForSlot, "HTTP/1.1 503", "waiting for the slot\n"),
            (State::Streaming, "HTTP/1.1 200", "streaming\n"),
            (State::Retrying, "HTTP/1.1 503", "retrying\n"),
            (State::Draining, "HTTP/1.1 503", "draining\n"),
        ] {
            metrics.set_state(state);
            let answer = got(at, "/readyz").await;
            assert!(answer.starts_with(first) && answer.ends_with(last), "{answer}");
            assert!(got(at, "/livez").await.starts_with("HTTP/1.1 200"));
        }
    }

    #[tokio::test]
    async fn metrics_come_in_the_form_that_is_asked_for() {
        let at = started(&Metrics::new()).await;
        let prometheus = "accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let answer = got_with(at, "/metrics", prometheus).await;
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
        assert!(answer.contains("\n# TYPE offshoot_transactions counter\n"), "{answer}");
        assert!(answer.contains("\noffshoot_transactions_total 0\n") && answer.ends_with("# EOF\n"), "{answer}");
        let answer = got(at, "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\n# TYPE offshoot_transactions_total counter\n"), "{answer}");
        assert!(answer.contains("\noffshoot_transactions_total 0\n") && !answer.contains("# EOF"), "{answer}");
    }

    #[tokio::test]
    async fn the_index_lists_the_pages() {
        let metrics = Metrics::new();
        let at = started(&metrics).await;
        let answer = got(at, "/").await;
        assert!(answer.contains("not known while it does not stream") && answer.contains("not known yet"), "{answer}");
        for page in ["/livez", "/readyz", "/metrics"] {
            assert!(answer.contains(&format!("href=\"{page}\"")), "{answer}");
        }
        metrics.set_state(State::Streaming);
        metrics.confirmed_lsn.set(0x16_B374_D848);
        metrics.lag_bytes.set(3 << 20);
        let answer = got(at, "/").await;
        assert!(answer.contains("16/B374D848") && answer.contains("0.0 s, 3.0 MiB of the log"), "{answer}");
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_the_key() {
        let taken = started(&Metrics::new()).await;
        let said = bind(&Admin { listen: taken, ..Admin::default() }).await.err().unwrap().to_string();
        assert!(
            said.starts_with(&format!("`admin.listen`: cannot listen on {taken}: Address already in use")),
            "{said}"
        );
    }
}
