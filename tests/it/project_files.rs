//! The files beside the sources: that what they name is there, and that the program runs where they say it does.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use offshoot::config::Config;
use serde_json::Value;

use crate::support::{
    process::{self, User},
    program, servers,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// `NAME: value` or `- NAME=value`, as compose files may have it.
fn environment(service: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match &service["environment"] {
        Value::Object(entries) => entries.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        Value::Array(entries) => {
            let pairs =
                entries.iter().map(|entry| entry.as_str().expect("NAME=value").split_once('=').expect("NAME=value"));
            pairs.map(|(name, value)| (name.into(), value.into())).collect()
        }
        _ => BTreeMap::new(),
    }
}

#[test]
fn docker_compose_mounts_files_that_are_there_and_configs_that_load() {
    let compose: Value = serde_saphyr::from_str(&read("docker-compose.yml")).unwrap();
    let services = compose["services"].as_object().unwrap();
    let mut configs = 0;
    for (name, service) in services {
        let environment = environment(service);
        for mount in service["volumes"].as_array().into_iter().flatten() {
            let source = match mount {
                Value::String(short) => short.split(':').next().unwrap(),
                long => long["source"].as_str().unwrap(),
            };
            // The others are volumes, which Docker makes.
            let Some(source) = source.strip_prefix("./") else { continue };
            let text = fs::read_to_string(Path::new(ROOT).join(source));
            if !source.starts_with("config/") {
                assert!(Path::new(ROOT).join(source).exists(), "{name} mounts {source}");
                continue;
            }
            // The values do not matter: compose fills those that its own file leaves open.
            let env = |variable: &str| Some(environment.get(variable)?.clone());
            let config = Config::parse(&text.unwrap(), source, &env).unwrap_or_else(|e| panic!("{name}: {e}"));
            let postgres: tokio_postgres::Config = config.source.postgres.reveal().parse().unwrap();
            let hosts = postgres.get_hosts().iter().map(|host| match host {
                tokio_postgres::config::Host::Tcp(host) => host.clone(),
                tokio_postgres::config::Host::Unix(path) => panic!("{name} reaches a socket {}", path.display()),
            });
            let brokers = config.sink.kafka.brokers.split(',').map(|b| b.rsplit_once(':').unwrap().0.to_string());
            for host in hosts.chain(brokers) {
                assert!(services.contains_key(&host), "{name} reaches {host}, which is no service");
            }
            configs += 1;
        }
    }
    assert!(configs > 0, "no service mounts a config");
}

#[test]
fn the_readme_names_make_targets_that_are_there() {
    let makefile = read("Makefile");
    let is_target = |word: &str| makefile.lines().any(|line| line.split(':').next() == Some(word));
    let readme = read("README.md");
    let mut named = 0;
    for line in readme.lines() {
        let commands = line.trim_start().strip_prefix("make ").into_iter().chain(line.split("`make ").skip(1));
        for command in commands {
            let word: String = command.chars().take_while(char::is_ascii_lowercase).collect();
            assert!(is_target(&word), "README.md: make {word}");
            named += 1;
        }
    }
    assert!(named > 0, "README.md tells how to make it");
}

/// A copy of the program and a config in a directory that an ordinary user can read and nobody can write, and a command
/// that runs the copy there as an ordinary user.
fn as_ordinary_user(config: &str) -> Command {
    let dir = process::new_dir("read-only");
    fs::copy(env!("CARGO_BIN_EXE_offshoot"), dir.join("offshoot")).unwrap();
    fs::write(dir.join("offshoot.yaml"), config).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = Command::new(dir.join("offshoot"));
    command.current_dir(&dir).env_clear();
    if let Some(user) = User::ordinary() {
        user.apply(&mut command);
    }
    command
}

#[test]
fn the_program_teaches_and_tells_its_version_as_an_ordinary_user_in_a_read_only_directory() {
    let (code, help) = program::output(as_ordinary_user("").arg("--help"));
    assert_eq!(code, Some(0), "{help}");
    for word in ["run", "check", "drop", "Exit codes"] {
        assert!(help.contains(word), "{word} is not in: {help}");
    }
    let (code, version) = program::output(as_ordinary_user("").arg("--version"));
    assert_eq!((code, version.trim()), (Some(0), concat!("offshoot ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn check_against_nothing_names_both_addresses() {
    let (postgres, kafka) = (servers::free_port(), servers::free_port());
    let config = format!(
        "name: nothing
source: {{ postgres: \"postgres://cdc:sEcReT-x@127.0.0.1:{postgres}/nothing\" }}
sink: {{ kafka: {{ brokers: \"127.0.0.1:{kafka}\", delivery: at_least_once }} }}
changes: {{ tables: [public.*] }}
"
    );
    let (code, said) = program::output(as_ordinary_user(&config).args(["check", "-c", "offshoot.yaml"]));
    // The first cross is the source's.
    assert_eq!(code, Some(3), "{said}");
    for address in [format!("127.0.0.1:{postgres}"), format!("127.0.0.1:{kafka}")] {
        assert!(said.contains(&address), "{address} is not in: {said}");
    }
    assert!(!said.contains("sEcReT-"), "{said}");
}

#[test]
fn a_config_that_is_wrong_is_refused_with_file_and_line() {
    let config = "name: shop\nsouce: { postgres: x }\n";
    let (code, said) = program::output(as_ordinary_user(config).args(["run", "-c", "offshoot.yaml"]));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("offshoot.yaml") && said.contains("source"), "{said}");
}

#[test]
fn the_image_is_built_from_all_that_the_manifest_names() {
    let (manifest, dockerfile, ignored) = (read("Cargo.toml"), read("Dockerfile"), read(".dockerignore"));
    let mut wanted = vec!["Cargo.toml", "Cargo.lock", "src"];
    // Cargo reads no manifest whose targets are not there.
    wanted.extend(manifest.contains("[[bench]]").then_some("benches"));
    wanted.extend(manifest.contains("[[example]]").then_some("examples"));
    wanted.extend(manifest.contains("[[test]]").then_some("tests"));
    for name in wanted {
        assert!(ignored.lines().any(|line| line.strip_prefix('!') == Some(name)), ".dockerignore: {name}");
        let copied = |line: &str| line.starts_with("COPY ") && line.split(' ').any(|word| word == name);
        assert!(dockerfile.lines().any(copied), "Dockerfile: {name}");
    }
}
