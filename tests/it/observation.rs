//! What an operator sees: the admin listener, `/metrics`, alerts and dashboard on a real Prometheus, systemd's notices,
//! completions, and the config's schema.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use offshoot::config;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName},
};
use serde_json::Value;

use crate::{
    pipe::{DEADLINE, Pipe, binary, ends, says, stops},
    support::{
        postgres::{self, Db, Version::V17},
        process::{self, Process},
        program::{Config, Offshoot, START_MAX},
        servers, wait,
    },
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const TOKEN: &str = "a-token-of-the-tests-0123456789";

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn database() -> Db {
    let db = postgres::shared(V17).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

/// A pipeline whose servers are both away: it retries for ever, and its listener answers.
fn nowhere(admin: &str) -> String {
    let [postgres, kafka] = [(); 2].map(|()| servers::free_port());
    format!(
        "name: nowhere
source: {{ postgres: \"postgres://cdc:secret@127.0.0.1:{postgres}/nothing\" }}
sink: {{ kafka: {{ brokers: \"127.0.0.1:{kafka}\", delivery: at_least_once }} }}
changes: {{ tables: [public.*] }}
admin: {admin}
"
    )
}

/// The status and the whole answer, over whatever `stream` is.
fn ask(mut stream: impl Read + Write, path: &str, headers: &str) -> io::Result<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: offshoot\r\n{headers}\r\n")?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // The end of a connection without TLS's own goodbye.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof || answer.is_empty() => return Err(error),
        _ => {}
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, answer))
}

fn plain(at: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    ask(stream, path, headers).unwrap_or_else(|e| panic!("{path} with {headers:?}: {e}"))
}

// The admin listener.

#[test]
fn numbers_want_the_token_and_probes_do_not() {
    let listen = format!("{{ token: {TOKEN}, listen: \"0.0.0.0:{}\" }}", servers::free_port());
    let mut offshoot = Offshoot::run(binary(), &nowhere(&listen));
    offshoot
        .wait("it to retry", START_MAX, |offshoot| offshoot.get("/readyz").filter(|(_, body)| body == "retrying\n"));
    let at = SocketAddr::from(([127, 0, 0, 1], offshoot.config().admin.port()));
    let status = |path: &str, headers: &str| plain(at, path, headers).0;
    for path in ["/metrics", "/"] {
        for wrong in [
            String::new(),
            "Authorization: Bearer \r\n".into(),
            format!("Authorization: Bearer {TOKEN}x\r\n"),
            format!("Authorization: Bearer {}\r\n", &TOKEN[1..]),
            format!("Authorization: Bearer {}\r\n", TOKEN.to_uppercase()),
            format!("Authorization: Basic {TOKEN}\r\n"),
            format!("Authorization: {TOKEN}\r\n"),
        ] {
            let (status, answer) = plain(at, path, &wrong);
            assert_eq!(status, 401, "{path} with {wrong:?}");
            says(&answer.to_lowercase(), &["www-authenticate: bearer", "admin.token"]);
            assert!(!answer.contains("offshoot_up"), "{answer}");
        }
        let (status, answer) = plain(at, path, &format!("authorization: bearer {TOKEN}\r\n"));
        assert_eq!(status, 200, "{path}");
        assert!(!answer.contains(TOKEN), "{answer}");
    }
    assert_eq!((status("/livez", ""), status("/readyz", ""), status("/nothing", "")), (200, 503, 404));
    assert_eq!(offshoot.terminate(DEADLINE).code(), Some(0));
    assert!(!offshoot.log().join("\n").contains(TOKEN));
}

#[test]
fn off_loopback_without_token_or_tls_is_refused_with_the_line() {
    let admin = format!("{{ listen: \"0.0.0.0:{}\" }}", servers::free_port());
    let offshoot = Offshoot::run(binary(), &nowhere(&admin));
    ends(
        offshoot,
        2,
        &["offshoot.yaml:5:", "`admin.listen` is 0.0.0.0:", "add `admin.token`", "or listen on 127.0.0.1"],
    );
}

/// A key pair, and the certificate as a client that trusts nothing else has it.
fn issue(dir: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".into()]).unwrap();
    // As a renewal does it: never half a file, and one after the other.
    for (name, text) in [("key", signing_key.serialize_pem()), ("crt", cert.pem())] {
        fs::write(dir.join("new"), text).unwrap();
        fs::rename(dir.join("new"), dir.join(name)).unwrap();
    }
    cert.der().clone()
}

/// Over TLS by somebody who trusts this certificate alone.
fn encrypted(at: SocketAddr, trusted: &CertificateDer<'static>, path: &str) -> io::Result<(u16, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    ask(StreamOwned::new(connection, stream), path, "")
}

#[test]
fn a_renewed_certificate_is_taken_up_and_half_of_one_is_not() {
    let dir = process::new_dir("certificate");
    let first = issue(&dir);
    let (crt, key) = (dir.join("crt"), dir.join("key"));
    let tls = format!("tls: {{ certificate: {}, key: {} }}", crt.display(), key.display());
    let config = Config::new(&nowhere(&format!("{{ {tls}, listen: \"0.0.0.0:{}\" }}", servers::free_port())));
    let mut command = Command::new(binary());
    command.arg("run").arg("-c").arg(&config.path);
    let mut offshoot = Offshoot::start(command, &config);
    let at = SocketAddr::from(([127, 0, 0, 1], config.admin.port()));
    let livez = |trusted: &CertificateDer<'static>| encrypted(at, trusted, "/livez").map(|(status, _)| status);
    offshoot.wait("HTTPS", START_MAX, |_| livez(&first).ok().filter(|status| *status == 200));
    assert_eq!(encrypted(at, &first, "/readyz").unwrap().0, 503);
    says(&encrypted(at, &first, "/metrics").unwrap().1, &["\noffshoot_up 0\n"]);
    // Who does not speak TLS is not answered, and holds nobody up.
    let silent = TcpStream::connect(at).unwrap();
    assert!(ask(TcpStream::connect(at).unwrap(), "/metrics", "").is_err());
    assert_eq!(livez(&first).unwrap(), 200);
    drop(silent);

    let second = issue(&dir);
    assert_eq!(livez(&second).unwrap(), 200);
    assert!(livez(&first).is_err(), "the certificate that was replaced is not shown any more");
    offshoot.wait_log("the certificate was read again", DEADLINE);

    fs::write(&key, "no key").unwrap();
    assert_eq!(livez(&second).unwrap(), 200);
    let said = offshoot.wait_log("stays", DEADLINE);
    says(&said, &["`admin.tls.key`: cannot use", key.to_str().unwrap()]);
    assert_eq!(offshoot.terminate(DEADLINE).code(), Some(0));
    assert!(!offshoot.log().join("\n").contains("panicked"), "{:#?}", offshoot.log());

    // At the start there is nothing that could stay.
    for (broken, words) in [(&key, "`admin.tls.key`: cannot use"), (&crt, "`admin.tls.certificate`: cannot use")] {
        fs::remove_file(broken).unwrap();
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(&config.path);
        ends(Offshoot::start(command, &config), 2, &[words, broken.to_str().unwrap()]);
    }
}

// Numbers, alerts, dashboard.

/// A program of Prometheus.
fn prometheus(program: &str) -> Command {
    let fetched = Path::new(ROOT).join(".servers/prometheus").join(program);
    let mut command = Command::new(if fetched.exists() { fetched.as_os_str() } else { program.as_ref() });
    command.current_dir(ROOT);
    command
}

/// Runs a program to its end: whether it was content, and what it said.
fn run(mut command: Command, input: &str) -> (bool, String) {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = piped.unwrap_or_else(|e| panic!("{command:?}: {e}; {}", servers::REMEDY));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Name, type and labels of every family on a page of the classic form.
fn families(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut families: BTreeMap<_, _> =
        types.map(|(name, kind)| (name.to_owned(), (kind.to_owned(), BTreeSet::new()))).collect();
    for sample in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = sample.split([' ']).next().unwrap().split_once('{').unwrap_or((sample, ""));
        let name = name.split(' ').next().unwrap();
        let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let family = plain.filter(|plain| families.contains_key(*plain)).unwrap_or(name);
        let (_, known) = families.get_mut(family).unwrap_or_else(|| panic!("{sample} has no type"));
        let names =
            labels.trim_end_matches('}').split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        known.extend(names.filter(|label| label != "le"));
    }
    families
}

/// A Prometheus that reads one Offshoot twice a second.
struct Server {
    _process: Process,
    at: SocketAddr,
}

impl Server {
    fn start(target: SocketAddr) -> Server {
        let dir = process::new_dir("prometheus");
        let at = SocketAddr::from(([127, 0, 0, 1], servers::free_port()));
        let config = format!(
            "global: {{ scrape_interval: 500ms, evaluation_interval: 1s }}
rule_files: [{ROOT}/deploy/prometheus/offshoot.rules.yaml]
scrape_configs:
  - job_name: offshoot
    authorization: {{ credentials: {TOKEN} }}
    static_configs: [{{ targets: [\"{target}\"] }}]
"
        );
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let mut command = prometheus("prometheus");
        command.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={at}")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let process = Process::spawn("Prometheus", command, libc::SIGKILL);
        let process = process.unwrap_or_else(|e| panic!("start Prometheus: {e}; {}", servers::REMEDY));
        let server = Server { _process: process, at };
        let up = wait::attempt(START_MAX, || server.query("up").map(|_| ()));
        up.unwrap_or_else(|e| panic!("start Prometheus: {e}\n{}", fs::read_to_string(dir.join("log")).unwrap()));
        server
    }

    /// The samples that an expression comes to now.
    fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let stream = TcpStream::connect(self.at).map_err(|e| e.to_string())?;
        let (_, answer) = ask(stream, &format!("/api/v1/query?query={escaped}"), "").map_err(|e| e.to_string())?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: Value = serde_json::from_str(body).map_err(|e| format!("{e}: {answer}"))?;
        match body["status"].as_str() {
            Some("success") => Ok(body["data"]["result"].as_array().cloned().unwrap_or_default()),
            _ => Err(body["error"].to_string()),
        }
    }

    /// Whether an expression comes to a number at all.
    fn tells(&self, expression: &str) -> Result<(), String> {
        let samples = self.query(expression)?;
        let known = |sample: &Value| sample["value"][1].as_str().is_some_and(|value| value != "NaN");
        if samples.iter().any(known) { Ok(()) } else { Err(format!("{expression}: {samples:?}")) }
    }
}

/// The series that an expression reads: our names and `up`, each with its braces.
fn selectors(expression: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(is_word) {
        let word = rest[at..].split(|c| !is_word(c)).next().unwrap();
        rest = &rest[at + word.len()..];
        if word.starts_with("offshoot_") || word.starts_with("process_") || word == "up" {
            let braces = rest.strip_prefix('{').map_or("", |_| &rest[..=rest.find('}').unwrap()]);
            found.push(format!("{word}{braces}"));
            rest = &rest[braces.len()..];
        } else if let Some(text) = rest.strip_prefix('"').filter(|_| word.is_empty()) {
            rest = text;
        }
    }
    found
}

/// What alerts there are: name, expression, annotations.
fn alerts() -> Vec<(String, String, Value)> {
    let rules: Value = serde_saphyr::from_str(&read("deploy/prometheus/offshoot.rules.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rules.map(|rule| (text(&rule["alert"]), text(&rule["expr"]), rule["annotations"].clone())).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/offshoot.json")).unwrap()
}

/// Every query of the dashboard, as Grafana would send it with all jobs and instances chosen. An annotation marks moments:
/// without its comparison it must have a value at any.
fn dashboard_queries() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let marks = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let expressions = targets.chain(marks).map(|target| target["expr"].as_str().expect("a query").replace(" > 0", ""));
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter_map(|variable| variable["query"].as_str()?.strip_prefix("label_values("));
    let variables = variables.map(|query| {
        let (series, label) = query.trim_end_matches(')').rsplit_once(", ").unwrap();
        format!("count by ({label}) ({series})")
    });
    let all = expressions.chain(variables).collect::<Vec<_>>();
    all.into_iter()
        .map(|query| query.replace("$__rate_interval", "10s").replace("$job", ".+").replace("$instance", ".+"))
        .collect()
}

/// One pipeline under load serves all of these: the manual's table, promtool, and each query of alerts and dashboard.
#[test]
fn every_number_is_in_the_manual_and_every_query_finds_its_numbers() {
    let db = database();
    let at = SocketAddr::from(([127, 0, 0, 1], servers::free_port()));
    let events = format!(
        "aggregates: {{ Thing: {{ root: t, topic: {}.thing }} }}
events: {{ Added: {{ of: Thing, when: created, data: {{ id: id }} }} }}",
        db.name
    );
    let rest = format!("admin: {{ token: {TOKEN}, listen: \"{at}\" }}\n{events}");
    let pipe = Pipe { rest, ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    let server = Server::start(at);
    let authorization = format!("Authorization: Bearer {TOKEN}\r\n");

    let page = plain(at, "/metrics", &authorization).1;
    let page = page.split_once("\r\n\r\n").unwrap().1;
    let told: BTreeMap<_, _> = families(page);
    let manual = read("docs/operations.md");
    let rows = manual.lines().filter(|line| line.starts_with("| `offshoot_") || line.starts_with("| `process_"));
    let mut written: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (kind, labels) = cells[2].split_once(" by ").unwrap_or((cells[2], ""));
            let labels = labels.split(", ").filter(|label| !label.is_empty());
            let labels = labels.map(|label| label.trim_matches('`').to_owned()).collect();
            (cells[1].trim_matches('`').to_owned(), (kind.to_owned(), labels))
        })
        .collect();
    // This pipeline has no replica, and so no table of it to tell of.
    written.retain(|name, (_, labels): &mut (_, BTreeSet<_>)| told.contains_key(name) || !labels.contains("table"));
    assert_eq!(told, written, "left: /metrics, right: docs/operations.md");
    for state in page.lines().filter_map(|line| line.strip_prefix("offshoot_state{state=\"")?.split('"').next()) {
        says(&manual, &[&format!("`{state}`")]);
    }
    let mut lint = prometheus("promtool");
    lint.args(["check", "metrics"]);
    let (content, said) = run(lint, page);
    assert!(content && said.trim().is_empty(), "promtool check metrics: {said}\n{page}");
    says(page, &[&format!("offshoot_pipeline_info{{pipeline=\"{0}\",slot=\"offshoot_{0}\"}} 1", db.name)]);
    says(&plain(at, "/", &authorization).1, &[&format!("<h1>{}</h1>", db.name), "streaming", &pipe.slot()]);

    // Alerts are well formed, and read only what is there; dashboards show something.
    let mut wanted: Vec<String> = dashboard_queries();
    for (name, expression, _) in alerts() {
        server.query(&expression).unwrap_or_else(|e| panic!("{name}: {e}"));
        let series = selectors(&expression);
        assert!(!series.is_empty(), "{name} reads nothing: {expression}");
        wanted.extend(series);
    }
    assert!(wanted.len() > 40, "{wanted:#?}");
    let mut id = 0;
    offshoot.wait("each query to come to a number", DEADLINE, |_| {
        id += 1;
        db.execute(&format!("INSERT INTO t VALUES ({id}); UPDATE t SET note = 'x' WHERE id = {id}"));
        wanted.retain(|query| server.tells(query).is_err());
        (wanted.is_empty() || id > 600).then_some(())
    });
    assert!(wanted.is_empty(), "{:#?}", wanted.iter().map(|query| server.tells(query)).collect::<Vec<_>>());
    // Of each new row an event tells; of its end none does, and no event has its note.
    db.execute("UPDATE t SET note = 'y' WHERE id = 1");
    db.execute("DELETE FROM t WHERE id = 1");
    let id = f64::from(id);
    // The last to come.
    let untold = "offshoot_net_unmapped_rows_total";
    // What it serves wants the token.
    let metric = |name: &str| {
        let page = plain(at, "/metrics", &authorization).1;
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    offshoot.wait("the row that no event tells of", DEADLINE, |_| (metric(untold)? == 1.0).then_some(()));
    for (name, count) in [
        ("offshoot_net_rows_total", id + 2.0),
        ("offshoot_events_total{event=\"Added.v1\"}", id),
        ("offshoot_outlet_records_total{outlet=\"events\"}", id),
        ("offshoot_net_unmapped_rows_total", 1.0),
        ("offshoot_net_no_op_rows_total", 1.0),
        ("offshoot_netted_on_disk_transactions_total", 0.0),
    ] {
        assert_eq!(metric(name), Some(count), "{name}");
    }
    // Each transaction is measured, and nothing is wrong with a pipeline that runs.
    let count = server.query("offshoot_delivery_seconds_count").unwrap();
    assert!(count[0]["value"][1].as_str().unwrap().parse::<f64>().unwrap() >= 2.0, "{count:?}");
    assert_eq!(server.query("ALERTS{alertstate=\"firing\"}").unwrap(), [] as [Value; 0]);
    stops(offshoot);
}

#[test]
fn each_alert_is_seen_to_fire_and_not_to_fire() {
    for arguments in [
        ["check", "rules", "deploy/prometheus/offshoot.rules.yaml"],
        ["test", "rules", "deploy/prometheus/offshoot.rules.test.yaml"],
    ] {
        let mut command = prometheus("promtool");
        command.args(arguments);
        let (content, said) = run(command, "");
        assert!(content, "{said}");
    }
    let tests: Value = serde_saphyr::from_str(&read("deploy/prometheus/offshoot.rules.test.yaml")).unwrap();
    let tests = tests["tests"].as_array().unwrap().iter();
    let cases = tests.flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let cases: HashSet<(&str, bool)> = cases
        .map(|case| (case["alertname"].as_str().unwrap(), case["exp_alerts"].as_array().unwrap().is_empty()))
        .collect();
    // GitHub's anchors of these headings: lower case, without what is neither a letter nor a digit.
    let manual = read("docs/operations.md");
    let headings = manual.lines().filter_map(|line| line.strip_prefix("### ").or(line.strip_prefix("## ")));
    let anchors: HashSet<String> =
        headings.map(|heading| heading.to_lowercase().replace(' ', "-").replace([',', '`'], "")).collect();
    for (name, _, annotations) in alerts() {
        assert!(cases.contains(&(&name, true)) && cases.contains(&(&name, false)), "{name} is not tested");
        let runbook = annotations["runbook_url"].as_str().unwrap_or_else(|| panic!("{name} has no runbook"));
        let anchor = runbook.strip_prefix("docs/operations.md#").expect("in the manual");
        assert!(anchors.contains(anchor), "{name}: {anchor} is not in {anchors:?}");
        for key in ["summary", "description"] {
            assert!(annotations[key].is_string(), "{name} has no {key}");
        }
    }
}

#[test]
fn panels_have_titles_units_and_places_of_their_own() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut taken) = (HashSet::new(), HashSet::new());
    for panel in panels {
        let title = panel["title"].as_str().filter(|title| !title.is_empty()).unwrap_or_else(|| panic!("{panel}"));
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24 && w > 0 && h > 0, "{title} leaves the grid");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies on another");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        assert!(panel["description"].is_string(), "{title} has no description");
        let letters: HashSet<_> = panel["targets"].as_array().unwrap().iter().map(|t| t["refId"].as_str()).collect();
        assert_eq!(letters.len(), panel["targets"].as_array().unwrap().len(), "{title}");
    }
    let rows = 1 + taken.iter().map(|(_, y)| y).max().unwrap();
    assert_eq!(taken.len() as u64, rows * 24, "there are holes");
}

// systemd.

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// How long the watchdog of these tests waits; signs of life are passed on four times within.
const WATCHDOG: Duration = Duration::from_secs(2);

impl Manager {
    fn new() -> Manager {
        let path = process::new_dir("manager").join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, path }
    }

    fn start(&self, config: &Config, stderr: Option<Stdio>) -> Result<Offshoot, Process> {
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(&config.path);
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        match stderr {
            None => Ok(Offshoot::start(command, config)),
            Some(stderr) => {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
                Err(Process::spawn("offshoot", command, libc::SIGKILL).unwrap())
            }
        }
    }

    /// The next message, or nothing within `deadline`.
    fn next(&self, deadline: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(deadline)).unwrap();
        let mut message = [0; 4096];
        let len = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..len]).into_owned())
    }

    /// All lines up to and with the one that begins so.
    #[track_caller]
    fn until(&self, line: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let message = self.next(START_MAX).unwrap_or_else(|| panic!("waited for {line}; heard {heard:?}"));
            heard.extend(message.lines().map(str::to_owned));
            if heard.iter().any(|heard| heard.starts_with(line)) {
                return heard;
            }
        }
    }

    /// Nothing comes for longer than the watchdog waits; what is on its way may still come.
    fn falls_silent(&self) -> bool {
        (0..20).any(|_| self.next(WATCHDOG).is_none())
    }
}

#[test]
fn systemd_hears_ready_signs_of_life_and_the_end() {
    let db = database();
    let pipe = Pipe::of(&db);
    let (first, second) = (Manager::new(), Manager::new());
    let config = Config::new(&pipe.yaml());
    let mut offshoot = first.start(&config, None).ok().unwrap();
    let heard = first.until("READY=1").join(" ");
    says(&heard, &["STATUS=starting", "STATUS=streaming, "]);
    assert!(!heard.contains("STOPPING"), "{heard}");
    (0..3).for_each(|_| drop(first.until("WATCHDOG=1")));

    // A standby is ready and gives signs of life; when the first one ends it takes over.
    let mut standby = second.start(&Config::new(&pipe.yaml()), None).ok().unwrap();
    says(&second.until("READY=1").join(" "), &["STATUS=waiting for the slot"]);
    (0..3).for_each(|_| drop(second.until("WATCHDOG=1")));
    assert_eq!(offshoot.terminate(DEADLINE).code(), Some(0));
    says(&first.until("STATUS=stopped with exit code 0").join(" "), &["STATUS=draining", "STOPPING=1"]);
    second.until("STATUS=streaming");
    assert_eq!(standby.terminate(DEADLINE).code(), Some(0));
}

#[test]
fn systemd_hears_a_server_that_is_away_as_ready_and_a_config_that_is_wrong_as_failed() {
    let manager = Manager::new();
    let admin = format!("{{ listen: 127.0.0.1:{} }}", servers::free_port());
    let mut offshoot = manager.start(&Config::new(&nowhere(&admin)), None).ok().unwrap();
    says(&manager.until("READY=1").join(" "), &["STATUS=retrying"]);
    (0..5).for_each(|_| drop(manager.until("WATCHDOG=1")));
    assert_eq!(offshoot.terminate(DEADLINE).code(), Some(0));
    manager.until("STATUS=stopped with exit code 0");

    let (db, manager) = (database(), Manager::new());
    let wrong = Pipe { tables: "public.no_such_table".into(), ..Pipe::of(&db) };
    let offshoot = manager.start(&Config::new(&wrong.yaml()), None).ok().unwrap();
    ends(offshoot, 2, &["public.no_such_table"]);
    let heard = manager.until("STATUS=stopped with exit code 2");
    assert!(!heard.iter().any(|line| line == "READY=1"), "{heard:?}");
}

/// A log that nobody reads hangs whoever writes to it: the loop.
#[test]
fn a_loop_that_hangs_gives_no_sign_of_life() {
    let (db, manager) = (database(), Manager::new());
    let pipe = Pipe::of(&db);
    let (mut reader, writer) = io::pipe().unwrap();
    // A description of its own, so that the program's end goes on blocking.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filler = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    let mut offshoot = manager.start(&Config::new(&pipe.yaml()), Some(writer.into())).err().unwrap();
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    while filler.write(&[b'\n'; 4096]).is_ok() {}
    while filler.write(b"\n").is_ok() {}
    manager.until("WATCHDOG=1");
    let walsender = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
        pipe.slot()
    );
    db.execute(&walsender);
    assert!(manager.falls_silent(), "the loop hangs, and signs of life come");

    // Read again, it goes on where it was.
    drop(filler);
    std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
    manager.until("WATCHDOG=1");
    manager.until("STATUS=streaming");
    offshoot.signal(libc::SIGTERM);
    manager.until("STOPPING=1");
    assert_eq!(offshoot.exit(DEADLINE).code(), Some(0));
}

#[test]
fn the_unit_is_what_systemd_takes_and_lets_little_out() {
    let unit = read("deploy/systemd/offshoot@.service");
    let exits = "RestartPreventExitStatus=2 3 4 5 6 7";
    says(&unit, &["Type=notify", "WatchdogSec=", "Restart=on-failure", exits, "DynamicUser=yes", "LoadCredential="]);
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return;
    }
    let file = process::new_dir("unit").join("offshoot@shop.service");
    fs::write(&file, unit.replace("/usr/local/bin/offshoot", "/bin/true")).unwrap();
    for arguments in [&["verify", "--man=no"][..], &["security", "--offline=true", "--threshold=15", "--no-pager"]] {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).arg(&file);
        let (content, said) = run(command, "");
        assert!(content && !said.contains("Unknown"), "{said}");
    }
}

// Completions and the schema.

#[test]
fn shells_complete_the_commands() {
    let script = |shell: &str| {
        let mut command = Command::new(binary());
        command.args(["completions", shell]);
        let (content, script) = run(command, "");
        assert!(content, "{script}");
        script
    };
    for shell in ["zsh", "fish"] {
        says(&script(shell), &["offshoot", "config-schema"]);
    }
    let file = process::new_dir("completions").join("offshoot.bash");
    fs::write(&file, script("bash")).unwrap();
    let bash = |arguments: &[&str]| {
        let mut command = Command::new("bash");
        command.args(arguments);
        run(command, "")
    };
    assert_eq!(bash(&["-n", file.to_str().unwrap()]), (true, String::new()));
    let complete = |words: &str| {
        let text = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _offshoot offshoot \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo ${{COMPREPLY[@]}}",
            file.display()
        );
        bash(&["-c", &text]).1.trim().to_owned()
    };
    assert_eq!(complete("offshoot che"), "check");
    assert_eq!(complete("offshoot check --js"), "--json");
    assert_eq!(complete("offshoot completions b"), "bash");
}

/// As JSON, which is how a language server sees it.
fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn the_schema_is_printed_and_takes_every_config_that_we_show() {
    let mut command = Command::new(binary());
    command.arg("config-schema");
    let (content, printed) = run(command, "");
    let schema: Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
    assert!(content && schema == config::schema());
    assert!(jsonschema::meta::is_valid(&schema), "{printed}");
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut seen = 0;
    let mut takes = |what: &str, text: &str| {
        let errors: Vec<String> =
            validator.iter_errors(&yaml(text)).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {errors:#?}");
        seen += 1;
    };
    for entry in fs::read_dir(Path::new(ROOT).join("config")).unwrap() {
        let path = entry.unwrap().path();
        takes(&path.display().to_string(), &fs::read_to_string(&path).unwrap());
    }
    // Whole configs among the examples of the manuals.
    let manuals = fs::read_dir(Path::new(ROOT).join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for manual in manuals.chain([Path::new(ROOT).join("README.md")]) {
        let text = fs::read_to_string(&manual).unwrap();
        for fence in text.split("```").skip(1).step_by(2).filter_map(|fence| fence.trim_start().strip_prefix("yaml\n"))
        {
            if fence.lines().any(|line| line.trim_start().starts_with("name: ") && !line.contains("- name"))
                && fence.contains("source:")
            {
                takes(&manual.display().to_string(), fence);
            }
        }
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn the_schema_refuses_what_loading_refuses() {
    let schema = config::schema();
    let good = "name: shop
source: { postgres: \"postgres://db/shop\", create: true }
sink: { kafka: { brokers: \"kafka:9092\", delivery: at_least_once, topics: { partitions: 6 }, properties: { linger.ms: 5 } } }
changes: { tables: [public.*], decimal: string }
limits: { memory: 24MiB }
admin: { listen: 127.0.0.1:8642 }
data_dir: /tmp
";
    let loads = |text: &str| config::Config::parse(text, "c.yaml", &|_| Some("6".into())).is_ok();
    let valid = |text: &str| jsonschema::is_valid(&schema, &yaml(text));
    assert!(loads(good) && valid(good));
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    for (from, to) in [
        ("name: shop\n", ""),
        ("name: shop", "name: Shop-1"),
        ("name: shop", "name: [shop]"),
        ("name: shop", "nmae: shop"),
        ("postgres:", "postgers:"),
        ("create: true", "create: maybe"),
        ("create: true", "create: 1"),
        ("create: true", "slots: a"),
        ("\"kafka:9092\"", "[kafka]"),
        ("at_least_once", "at_most_once"),
        ("partitions: 6", "partitions: many"),
        ("partitions: 6", "partitions: 1.5"),
        ("partitions: 6", "partition: 6"),
        ("linger.ms: 5", "linger.ms: [5]"),
        ("[public.*]", "public.*"),
        ("decimal: string", "decimal: text"),
        ("24MiB", "plenty"),
        ("24MiB", "24 apples"),
        ("memory", "memroy"),
        ("127.0.0.1:8642", "8642"),
        ("127.0.0.1:8642", "localhost"),
        ("listen: 127.0.0.1:8642", "tls: { certificate: a }"),
        ("listen: 127.0.0.1:8642", "tokn: 0123456789abcdef"),
    ] {
        let bad = with(from, to);
        assert!(!loads(&bad), "it loads:\n{bad}");
        assert!(!valid(&bad), "the schema takes:\n{bad}");
    }
    for (from, to) in [
        ("create: true", "create: \"false\""),
        ("create: true", "slot: \"${SLOT}\""),
        ("partitions: 6", "partitions: \"6\""),
        ("partitions: 6", "partitions: \"${PARTITIONS:-6}\""),
        ("linger.ms: 5", "compression.type: lz4"),
        ("24MiB", "25165824"),
        ("24MiB", "1.5 GB"),
        ("{ memory: 24MiB }", ""),
        ("127.0.0.1:8642", "\"[::1]:1\""),
        ("listen: 127.0.0.1:8642", "token: 0123456789abcdef"),
    ] {
        let fine = with(from, to);
        assert!(loads(&fine), "it does not load:\n{fine}");
        assert!(valid(&fine), "the schema refuses:\n{fine}");
    }
}
