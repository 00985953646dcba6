//! HTTP on `admin.listen`: probes and metrics. Runs on the pipeline's own runtime, so `/livez` answers only while that turns.

mod bounded;

use std::{io, net::SocketAddr};

use axum::{
    Router,
    extract::State as Extract,
    http::{StatusCode, header},
    response::{Html, IntoResponse},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    config::Admin,
    telemetry::{Metrics, State},
};
use bounded::Bounded;

/// `admin.listen` cannot be had; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("`admin.listen`: cannot listen on {listen}: {cause}; is another process there? write another port")]
pub struct AdminError {
    listen: SocketAddr,
    cause: io::Error,
}

/// Takes the port.
pub async fn bind(admin: &Admin) -> Result<TcpListener, AdminError> {
    let listen = admin.listen;
    TcpListener::bind(listen).await.map_err(|cause| AdminError { listen, cause })
}

/// Answers for ever; drop it to end it.
pub async fn serve(listener: TcpListener, metrics: Metrics) {
    let router = Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(metrics);
    // An error of one connection ends that connection alone, and accepting goes on.
    if let Err(error) = axum::serve(Bounded::new(listener), router).await {
        tracing::error!(%error, "the admin listener ended");
    }
}

async fn livez() -> &'static str {
    "alive\n"
}

async fn readyz(Extract(metrics): Extract<Metrics>) -> impl IntoResponse {
    let state = metrics.state();
    let status = match state {
        State::Streaming => StatusCode::OK,
        State::Starting | State::WaitingForSlot | State::Retrying | State::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{}\n", state.as_str()))
}

async fn render(Extract(metrics): Extract<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics.render())
}

async fn index(Extract(metrics): Extract<Metrics>) -> Html<String> {
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Offshoot</title>\n\
         <h1>Offshoot {}</h1>\n<p>{}</p>\n<ul>\n\
         <li><a href=\"/livez\">/livez</a>: 200 while the process turns\n\
         <li><a href=\"/readyz\">/readyz</a>: 200 while changes flow, else 503 and why not\n\
         <li><a href=\"/metrics\">/metrics</a>: for Prometheus\n</ul>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        metrics.state().as_str()
    ))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn started(metrics: &Metrics) -> SocketAddr {
        let listener = bind(&Admin { listen: ([127, 0, 0, 1], 0).into() }).await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, metrics.clone()));
        at
    }

    async fn got(at: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
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
    async fn metrics_come_as_openmetrics() {
        let answer = got(started(&Metrics::new()).await, "/metrics").await;
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
        assert!(answer.contains("offshoot_transactions_total 0\n") && answer.ends_with("# EOF\n"), "{answer}");
    }

    #[tokio::test]
    async fn the_index_lists_the_pages() {
        let answer = got(started(&Metrics::new()).await, "/").await;
        for page in ["/livez", "/readyz", "/metrics"] {
            assert!(answer.contains(&format!("href=\"{page}\"")), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_the_key() {
        let taken = started(&Metrics::new()).await;
        let said = bind(&Admin { listen: taken }).await.unwrap_err().to_string();
        assert!(
            said.starts_with(&format!("`admin.listen`: cannot listen on {taken}: Address already in use")),
            "{said}"
        );
    }
}
